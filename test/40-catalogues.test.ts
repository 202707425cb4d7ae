// SPDX-License-Identifier: BSD-3-Clause
// The codes are written down four times: in the engine, in src/errors.ts, in the OpenAPI document, at GET /errors. They are the same everywhere.
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { CATALOGUE, EngineError, errnoName, problemOf, REASONS, statusesOf, type AnyCode } from '../src/errors.js'
import type { EngineCode } from '../src/engine/engine.js'
import type { ErrorCode } from '../src/schemas.js'
import { call, makeSet, must, open, refused, type Opened } from './service.js'

const native = (...path: string[]): string => readFileSync(join(import.meta.dirname, '..', '..', 'native', ...path), 'utf8')
const HEADER = native('src', 'error.h')
const PMEM2_HEADER = '/usr/include/libpmem2/base.h'
const rows = Object.entries(CATALOGUE) as Array<[AnyCode, typeof CATALOGUE[AnyCode]]>

/** Codes that no operation of this version can answer with, so that none tells of them: the functions of libpmemset that come later, and errnos that the engine never lets out bare. */
const UNTOLD = [
  'PMEMSET_E_UNKNOWN', 'PMEMSET_E_NOSUPP', 'PMEMSET_E_INVALID_SOURCE_TYPE', 'PMEMSET_E_CANNOT_ALLOCATE_INTERNAL_STRUCTURE', 'PMEMSET_E_PART_EXISTS', 'PMEMSET_E_CANNOT_CREATE_TEMP_FILE', 'PMEMSET_E_OFFSET_OUT_OF_RANGE',
  'PMEMSET_E_INVALID_PART_STATES', 'PMEMSET_E_UNDESIRABLE_PART_STATE', 'PMEMSET_E_SDS_ALREADY_SET', 'PMEMSET_E_SDS_NOSUPP', 'PMEMSET_E_SDS_DEVICE_ID_LEN_TOO_BIG', 'PMEMSET_E_INVALID_ALIGNMENT_VALUE',
  'PMEMSET_E_DAX_REGION_NOT_FOUND', 'PMEMSET_E_CANNOT_READ_BOUNDS', 'PMEMSET_E_BADBLOCK_NOSUPP',
  'EAGAIN', 'ELOOP', 'EISDIR', 'EINVAL', 'EOVERFLOW', 'ENODEV', 'ENXIO',
  // Of a resource, not of an operation.
  'METHOD_NOT_ALLOWED'
]

async function engineCodes (t: Test, opened: Opened): Promise<EngineCode[]> {
  await makeSet(t, opened, { id: 's' })
  return opened.service.sets.get('s').context.engine.codes()
}

/** What the document tells: code and status of every refusal, with the operation. */
function told ({ app }: Opened): Array<{ code: string, status: number, operation: string }> {
  type Documented = Record<string, Record<string, { operationId: string, responses: Record<string, { content?: Record<string, { 'x-problem-codes'?: string[] }> }> }>>
  return Object.values(app.swagger().paths as Documented).flatMap((item) => Object.values(item)).flatMap(({ operationId, responses }) => (
    Object.entries(responses).flatMap(([status, { content = {} }]) => (content['application/problem+json']?.['x-problem-codes'] ?? []).map((code) => ({ code, status: Number(status), operation: operationId })))
  ))
}

t.test('the engine and the service have the same names and numbers', async (t) => {
  const codes = await engineCodes(t, await open(t))
  for (const library of ['libpmemset', 'libpmem2'] as const) {
    const mine = rows.filter(([, row]) => row.library === library).map(([name, { number }]) => [name, number])
    const theirs = codes.filter(({ name }) => name.startsWith(library === 'libpmemset' ? 'PMEMSET_E_' : 'PMEM2_E_')).map(({ name, number }) => [name, number])
    t.same(mine, theirs, library)
  }
  t.equal(codes.length, rows.filter(([, { library }]) => library === 'libpmemset' || library === 'libpmem2').length, 'and the engine has no others')
  for (const { name, text } of codes) t.ok(name.startsWith('PMEM2_E_') || text !== '', `${name} has a text`)
})

t.test('libpmemset\'s numbers are those of its header', async (t) => {
  const inHeader = [...native('include', 'libpmemset.h').matchAll(/^#define (PMEMSET_E_\w+)\s+\((-\d+)\)/gm)].map(([, name, number]) => [name, Number(number)])
  t.same(rows.filter(([, { library }]) => library === 'libpmemset').map(([name, { number }]) => [name, number]), inHeader)
  t.equal(inHeader.length, 38)
  const numbers = inHeader.map(([, number]) => number)
  t.same(numbers, Array.from({ length: 39 }, (_, i) => -200000 - i).filter((number) => number !== -200034), 'without a gap but the one that was never assigned')
})

t.test('libpmem2\'s numbers are those of its header', async (t) => {
  const inHeader = [...readFileSync(PMEM2_HEADER, 'utf8').matchAll(/^#define (PMEM2_E_\w+)\s+\((-\d+)\)/gm)].map(([, name, number]) => [name, Number(number)])
  t.same(rows.filter(([, { library }]) => library === 'libpmem2').map(([name, { number }]) => [name, number]), inHeader)
})

t.test('errnos have the host\'s numbers, and their own names back', async (t) => {
  for (const [name, { number, library }] of rows) {
    if (library !== 'errno') continue
    t.equal(number, -constants.errno[name as keyof typeof constants.errno], name)
    t.equal(errnoName(-(number ?? 0)), name)
  }
})

t.test('reasons are those of the engine', async (t) => {
  t.same(REASONS.map((name, number) => [number, name]), [...HEADER.matchAll(/^\tX\((\d+), (\w+)\)/gm)].map(([, number, name]) => [Number(number), name]))
})

t.test('what the document tells exists, with a status that the code can have, and all that exists is told', async (t) => {
  const opened = await open(t)
  const all = told(opened)
  for (const { code, status, operation } of all) {
    t.ok(Object.hasOwn(CATALOGUE, code) && statusesOf(code as AnyCode).includes(status), `${operation}: ${status} ${code}`)
    if (Object.hasOwn(CATALOGUE, code)) t.not(CATALOGUE[code as AnyCode].library, 'libpmem2', `${code} is a cause only`)
  }
  const codes = new Set(all.map(({ code }) => code))
  t.same(rows.filter(([name, { library }]) => library !== 'libpmem2' && !codes.has(name)).map(([name]) => name).sort(), [...UNTOLD].sort())
  // A status for a circumstance is told somewhere, too.
  for (const [name] of rows) {
    if (!codes.has(name)) continue
    const statuses = new Set(all.filter(({ code }) => code === name).map(({ status }) => status))
    // A map that meets bad blocks; no medium of this version tells of them.
    const possible = statusesOf(name).filter((status) => !(name === 'PMEMSET_E_IO_FAIL' && status === 409))
    t.same([...statuses].sort(), possible.sort(), name)
  }
})

t.test('a status that the cause decides is one that is told', async (t) => {
  const all = told(await open(t))
  const failure = { reason: 0, value: 0n, addr: 0n, size: 0n, offset: 0n, granularity: 3, message: '' }
  const cases: Array<[code: AnyCode, cause: AnyCode | undefined, errnos: Array<keyof typeof constants.errno>]> = [
    // As native/src/part.c makes them: of mmap, and of fallocate and fsync.
    ['PMEMSET_E_INVALID_PMEM2_MAP', 'PMEM2_E_OFFSET_UNALIGNED', []], ['PMEMSET_E_INVALID_PMEM2_MAP', 'PMEM2_E_NO_ACCESS', ['EACCES']], ['PMEMSET_E_INVALID_PMEM2_MAP', 'PMEM2_E_NOSUPP', ['ENOTSUP']],
    ['PMEMSET_E_INVALID_PMEM2_MAP', 'PMEM2_E_MAPPING_EXISTS', ['EEXIST']], ['PMEMSET_E_INVALID_PMEM2_MAP', undefined, ['ENOMEM', 'EAGAIN', 'ENFILE', 'ENODEV', 'EPERM', 'EINVAL', 'EOVERFLOW', 'ETXTBSY']],
    ['PMEMSET_E_CANNOT_GROW_SOURCE_FILE', undefined, ['ENOSPC', 'EDQUOT', 'EFBIG', 'EIO', 'EPERM', 'ENOMEM', 'EROFS', 'ETXTBSY', 'ENODEV', 'EINTR']]
  ]
  for (const [code, cause, errnos] of cases) {
    for (const errno of errnos.length === 0 ? [undefined] : errnos) {
      const error = new EngineError({ ...failure, code: CATALOGUE[code].number ?? 0, cause: cause === undefined ? 0 : CATALOGUE[cause].number ?? 0, errno: errno === undefined ? 0 : constants.errno[errno] })
      const { status, retryable } = problemOf(error, 'id')
      t.ok(all.some((one) => one.code === code && one.status === status && one.operation === 'mapPart'), `${code} ${cause ?? ''} ${errno ?? ''}: ${status}`)
      t.equal(retryable, status === 503)
    }
  }
})

t.test('GET /errors has each code once, and GET /errors/{code} says the same', async (t) => {
  const opened = await open(t)
  const { items } = await must(t, opened, 'GET', '/errors') as { items: ErrorCode[] }
  t.same(items.map(({ code }) => code), rows.map(([name]) => name))
  for (const item of items) {
    const row = CATALOGUE[item.code as AnyCode]
    t.match(item, { library: row.library, number: row.number, status: row.status, statuses: statusesOf(item.code as AnyCode), retryable: row.retryable === true })
    const reply = await call(t, opened, 'GET', `/errors/${item.code}`)
    t.same(reply.json, item)
    t.match(reply.headers['cache-control'], /max-age/)
    for (const text of [item.title, item.meaning, item.advice]) {
      t.ok(text.length > 2 && text === text.trim(), `${item.code}: ${text}`)
      t.notMatch(text, /(^|[\s"'(])\/(?!(capabilities|docs|openapi\.json)\b)[a-z]/, `${item.code} names no path of the host`)
    }
    t.notOk(item.title.endsWith('.'), item.code)
    t.match(item, { meaning: /\.$/, advice: /\.$/ })
  }
  await refused(t, opened, ['GET', '/errors/NO_SUCH_CODE'], 404, 'ROUTE_NOT_FOUND')
  for (const name of ['toString', '__proto__', 'constructor', 'ROUTE_NOT_FOUND%20', 'route_not_found']) await refused(t, opened, ['GET', `/errors/${name}`], 400, 'PARAMETER_INVALID')
})

t.test('the type of a problem answers a GET, with its code', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const requests: Array<[method: string, url: string, body?: object | string]> = [
    ['GET', '/nowhere'], ['GET', '/sets/none'], ['PATCH', '/sets'], ['POST', '/sets', {}], ['POST', '/sets', '{'], ['GET', '/sets/s/granularity'], ['GET', '/sets/s/maps?addr=0x0'], ['GET', '/sets/s/memory?addr=0x0&length=1'],
    ['POST', '/sets/s/parts', { source: { type: 'file', path: '../x' } }], ['POST', '/sets/s/parts', { source: { type: 'file', path: 'n'.repeat(300) } }], ['GET', '/volumes/none'], ['GET', '/errors/NONE']
  ]
  for (const request of requests) {
    const problem = (await call(t, opened, ...request)).json as { type: string, code: string, title: string, status: number }
    t.match(await must(t, opened, 'GET', problem.type), { code: problem.code, title: problem.title }, problem.type)
    t.ok(statusesOf(problem.code as AnyCode).includes(problem.status))
  }
})
