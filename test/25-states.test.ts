// SPDX-License-Identifier: BSD-3-Clause
// Every operation on a set in every state that a set can be in: nothing mapped yet, mapped, everything removed again, deleted.
import t, { type Test } from 'tap'
import { encodeBatch } from '../src/batch.js'
import { call, makeSet, mapPart, must, open, PAGE, type Body, type Opened } from './service.js'

type State = 'empty' | 'mapped' | 'removed' | 'deleted'
type Verdict = number | [status: number, code: string]

const GONE: Verdict = [404, 'SET_NOT_FOUND']
const NO_MAP: Verdict = [404, 'PMEMSET_E_CANNOT_FIND_PART_MAP']
const NO_PART: Verdict = [404, 'PMEMSET_E_PART_NOT_FOUND']
const NO_FAILURE: Verdict = [404, 'FAILURE_NOT_FOUND']
const NEVER_MAPPED: Verdict = [409, 'PMEMSET_E_NO_PART_MAPPED']

interface Row {
  /** Of the OpenAPI document. */
  id: string
  request: (addr: string) => [method: string, path: string, body?: Body]
  empty: Verdict
  mapped: Verdict
  removed: Verdict
  /** Where it is not GONE. */
  deleted?: Verdict
}

const ranges = (addr: string): object => ({ ranges: [{ addr, length: 8 }] })
const access = { empty: NEVER_MAPPED, mapped: 200, removed: NO_MAP } as const

const ROWS: Row[] = [
  { id: 'getSet', request: () => ['GET', ''], empty: 200, mapped: 200, removed: 200 },
  { id: 'changeSet', request: () => ['PATCH', '', { labels: { a: 'b' } }], empty: 200, mapped: 200, removed: 200 },
  { id: 'deleteSet', request: () => ['DELETE', ''], empty: 204, mapped: 204, removed: 204 },
  { id: 'getGranularity', request: () => ['GET', '/granularity'], empty: [404, 'PMEMSET_E_NO_PART_MAPPED'], mapped: 200, removed: 200 },
  { id: 'mapPart', request: () => ['POST', '/parts', { id: 'q', source: { type: 'file', path: 'q.bin', create: 'if_needed' }, length: PAGE }], empty: 201, mapped: 201, removed: 201 },
  { id: 'listParts', request: () => ['GET', '/parts'], empty: 200, mapped: 200, removed: 200 },
  { id: 'getPart', request: () => ['GET', '/parts/p'], empty: NO_PART, mapped: 200, removed: NO_PART },
  { id: 'removePart', request: () => ['DELETE', '/parts/p'], empty: NO_PART, mapped: 204, removed: NO_PART },
  { id: 'restorePart', request: () => ['POST', '/parts/p/restore', {}], empty: NO_PART, mapped: 200, removed: NO_PART },
  // Look-up and removal ask what is there now, so they do not tell "not yet" from "not any more".
  { id: 'findMaps', request: (addr) => ['GET', `/maps?addr=${addr}`], empty: NO_MAP, mapped: 200, removed: NO_MAP },
  { id: 'findMaps', request: (addr) => ['GET', `/maps?addr=${addr}&length=1`], empty: 200, mapped: 200, removed: 200 },
  { id: 'findMaps', request: () => ['GET', '/maps'], empty: 200, mapped: 200, removed: 200 },
  { id: 'getMap', request: (addr) => ['GET', `/maps/${addr}`], empty: NO_MAP, mapped: 200, removed: NO_MAP },
  { id: 'removeMap', request: (addr) => ['DELETE', `/maps/${addr}`], empty: NO_MAP, mapped: 204, removed: NO_MAP },
  { id: 'removeRange', request: (addr) => ['DELETE', `/maps?addr=${addr}&length=1`], empty: NO_MAP, mapped: 200, removed: NO_MAP },
  { id: 'removeRange', request: (addr) => ['DELETE', `/maps?addr=${addr}&length=1&dryRun=true`], empty: NO_MAP, mapped: 200, removed: NO_MAP },
  { id: 'readMemory', request: (addr) => ['GET', `/memory?addr=${addr}&length=8`], ...access },
  { id: 'writeMemory', request: (addr) => ['PUT', `/memory?addr=${addr}`, Buffer.from('8 bytes.')], ...access },
  { id: 'readContent', request: () => ['GET', '/parts/p/content'], empty: NO_PART, mapped: 200, removed: NO_PART },
  { id: 'describeContent', request: () => ['HEAD', '/parts/p/content'], empty: 404, mapped: 200, removed: 404, deleted: 404 },
  { id: 'writeContent', request: () => ['PUT', '/parts/p/content', Buffer.from('8 bytes.')], empty: NO_PART, mapped: 200, removed: NO_PART },
  { id: 'persistRanges', request: (addr) => ['POST', '/persist', ranges(addr)], ...access },
  { id: 'flushRanges', request: (addr) => ['POST', '/flush', ranges(addr)], ...access },
  { id: 'deepFlushRanges', request: (addr) => ['POST', '/deep-flush', ranges(addr)], ...access },
  { id: 'listFailures', request: () => ['GET', '/failures'], empty: 200, mapped: 200, removed: 200 },
  { id: 'acknowledgeFailure', request: () => ['POST', '/failures/failure-1/acknowledge', { action: 'rewrite' }], empty: NO_FAILURE, mapped: NO_FAILURE, removed: NO_FAILURE },
  { id: 'fillMemory', request: (addr) => ['POST', '/memset', { addr, length: 8, value: '0x7' }], ...access },
  { id: 'copyMemory', request: (addr) => ['POST', '/memcpy', { dest: addr, src: addr, length: 8 }], ...access },
  { id: 'moveMemory', request: (addr) => ['POST', '/memmove', { dest: addr, src: addr, length: 8 }], ...access },
  { id: 'atomic', request: (addr) => ['POST', '/atomic', { op: 'add', addr, value: '0x1' }], ...access },
  { id: 'runBatch', request: (addr) => ['POST', '/batch', { operations: [{ op: 'read', addr, length: 8 }] }], ...access },
  { id: 'runBinaryBatch', request: (addr) => ['POST', '/batch/binary', Buffer.from(encodeBatch([{ op: 'read', addr, length: 8 }]))], ...access },
  { id: 'drain', request: () => ['POST', '/drain'], empty: NEVER_MAPPED, mapped: 200, removed: 200 }
]

/** The set `s` in that state; answers the address at which its part is, was, or will be. */
async function enter (t: Test, opened: Opened, state: State): Promise<string> {
  const set = await makeSet(t, opened, { id: 's' })
  if (state === 'empty') return set.window.addr
  const { addr } = await mapPart(t, opened, 's', 'p.bin', { id: 'p' })
  if (state === 'removed') await must(t, opened, 'DELETE', '/sets/s/parts/p')
  if (state === 'deleted') await must(t, opened, 'DELETE', '/sets/s')
  return addr
}

t.test('each operation in each state', async (t) => {
  const opened = await open(t)
  for (const row of ROWS) {
    for (const state of ['empty', 'mapped', 'removed', 'deleted'] as const) {
      const verdict = state === 'deleted' ? row.deleted ?? GONE : row[state]
      const [method, path, body] = row.request(await enter(t, opened, state))
      const reply = await call(t, opened, method, `/sets/s${path}`, body)
      const got: unknown = typeof verdict === 'number' ? reply.status : [reply.status, reply.json?.code]
      t.same(got, verdict, `${row.id}: ${method} ${path} of a set that is ${state}`)
      await call(t, opened, 'DELETE', '/sets/s')
    }
  }
})

t.test('no operation on a set is left out', async (t) => {
  const { app } = await open(t)
  const paths = app.swagger().paths as Record<string, Record<string, { operationId: string }>>
  const ids = Object.entries(paths).filter(([path]) => path.startsWith('/sets/{set}')).flatMap(([, operations]) => Object.values(operations).map(({ operationId }) => operationId))
  t.same([...new Set(ROWS.map(({ id }) => id))].sort(), ids.sort())
})
