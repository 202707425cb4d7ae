// SPDX-License-Identifier: BSD-3-Clause
// Nothing is lost by a restart: sets, parts, addresses, maps, revisions and numbers are as they were, and what cannot be mapped again is told part by part.
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, renameSync, rmSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { buildApp } from '../src/app.js'
import { loadConfig } from '../src/config.js'
import { silent } from '../src/log.js'
import type { Part, PmemSet } from '../src/schemas.js'
import { Service } from '../src/service/service.js'
import { cannotMount, mounted, tmpfs } from './media.js'
import { ask, folder, run, serving, worldOf, type Json } from './process.js'
import { call, makeFile, makeSet, mapPart, mapsOf, MIB, must, open, openCatalog, PAGE, plus, refused, reopen, theEngine, world, type Opened } from './service.js'

async function partsOf (t: Test, opened: Opened, set: string): Promise<Part[]> {
  return (await must(t, opened, 'GET', `/sets/${set}/parts`) as { items: Part[] }).items
}

async function bytesAt (t: Test, opened: Opened, set: string, addr: string, length: number): Promise<string> {
  return (await must(t, opened, 'GET', `/sets/${set}/memory?addr=${addr}&length=${length}`) as Buffer).toString()
}

/** Sets in which every kind of change was made. */
async function manyChanges (t: Test, opened: Opened): Promise<void> {
  await makeSet(t, opened, { id: 'plain', labels: { team: 'a' } })
  await makeSet(t, opened, { id: 'joined', coalescing: 'full', windowSize: 64 * MIB })
  await makeSet(t, opened, { id: 'refilled', coalescing: 'full' })
  await makeSet(t, opened, { id: 'empty' })
  await makeSet(t, opened, { id: 'gone' })
  await mapPart(t, opened, 'gone', 'gone')
  await must(t, opened, 'DELETE', '/sets/gone')
  for (const name of ['a', 'b', 'c']) await mapPart(t, opened, 'plain', name, { id: `id-${name}` })
  await mapPart(t, opened, 'plain', 'large', { length: 4 * MIB })
  await must(t, opened, 'DELETE', '/sets/plain/parts/id-b')
  await must(t, opened, 'PATCH', '/sets/plain', { labels: { team: 'b' }, coalescing: 'opportunistic' })
  for (let i = 0; i < 5; i++) await mapPart(t, opened, 'joined', 'log', { offset: i * PAGE }, { grow: true })
  // Out of a map of three, the middle: two maps. What fills the hole goes to the map before it, and not to the one behind.
  for (const name of ['x', 'y', 'z']) await mapPart(t, opened, 'refilled', name, { id: name })
  const [x, y] = await partsOf(t, opened, 'refilled')
  await must(t, opened, 'DELETE', `/sets/refilled/maps?addr=${y?.addr ?? ''}&length=1`)
  t.match(await mapsOf(t, opened, 'refilled'), [{ addr: x?.addr, size: PAGE }, { addr: plus(x?.addr ?? '', 2 * PAGE), size: PAGE }])
  await mapPart(t, opened, 'refilled', 'w', { id: 'w' })
}

t.test('everything is as it was', async (t) => {
  const opened = await open(t)
  await manyChanges(t, opened)
  const [first] = await partsOf(t, opened, 'joined')
  const addr = first?.addr ?? ''
  await must(t, opened, 'PUT', `/sets/joined/memory?addr=${plus(addr, PAGE - 4)}`, Buffer.from('over a seam'))
  const before = world(opened)
  const again = await reopen(t, opened)
  t.same(world(again), before)
  t.equal(await bytesAt(t, again, 'joined', plus(addr, PAGE - 4), 11), 'over a seam')
  // Once more, with nothing done between.
  const third = await reopen(t, again)
  t.same(world(third), before)
  t.match(await must(t, third, 'GET', '/readyz'), { status: 'ready', sets: 4, parts: 11 })
})

t.test('what comes next is what would have come', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  const { etag } = (await call(t, opened, 'GET', '/sets/s')).headers
  const first = await mapPart(t, opened, 's', 'f')
  const second = await mapPart(t, opened, 's', 'g')
  await must(t, opened, 'DELETE', `/sets/s/parts/${second.id}`)
  const revision = (await must(t, opened, 'GET', '/sets/s') as PmemSet).revision
  const again = await reopen(t, opened)
  await refused(t, again, ['DELETE', '/sets/s', undefined, { 'if-match': String(etag) }], 412, 'PRECONDITION_FAILED', { revision })
  const third = await mapPart(t, again, 's', 'h')
  t.match([first.id, second.id, third.id], ['part-1', 'part-2', 'part-3'], 'no number is given out twice')
  t.match(third, { addr: second.addr, coalesced: true, map: { addr: first.addr, size: 2 * PAGE }, revision: revision + 1 })
  await refused(t, again, ['POST', '/sets', { id: 's', requiredGranularity: 'page' }], 409, 'SET_EXISTS')
  // The window of a set that is there is not given out again.
  const other = await makeSet(t, again, { id: 'other' })
  t.not(other.window.addr, (await must(t, again, 'GET', '/sets/s') as PmemSet).window.addr)
})

t.test('a set whose parts are all gone keeps its granularity', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const { id, addr } = await mapPart(t, opened, 's', 'f')
  await must(t, opened, 'DELETE', `/sets/s/parts/${id}`)
  const again = await reopen(t, opened)
  t.match(await must(t, again, 'GET', '/sets/s/granularity'), { granularity: 'page' })
  await refused(t, again, ['GET', `/sets/s/memory?addr=${addr}&length=1`], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')
})

/* ---- what cannot be mapped again ---- */

interface Missing {
  name: string
  /** What happens to the file `f` of four pages while the service is down. */
  meanwhile: (path: string) => void
  code: string
  status: number
  members?: object
  /** Makes it good, and whether the file that is there then has to be adopted. */
  mend: (path: string) => void
  adopt?: true
}

const KINDS: Missing[] = [
  { name: 'vanished', meanwhile: (path) => { renameSync(path, `${path}.away`) }, code: 'PMEMSET_E_INVALID_SOURCE_PATH', status: 422, mend: (path) => { renameSync(`${path}.away`, path) } },
  { name: 'replaced', meanwhile: (path) => { cpSync(path, `${path}.new`); rmSync(path); renameSync(`${path}.new`, path) }, code: 'SOURCE_REPLACED', status: 409, mend: () => {}, adopt: true },
  { name: 'shorter', meanwhile: (path) => { truncateSync(path, 2 * PAGE) }, code: 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', status: 409, members: { sourceSize: 2 * PAGE }, mend: (path) => { truncateSync(path, 4 * PAGE) } },
  { name: 'a directory', meanwhile: (path) => { renameSync(path, `${path}.away`); mkdirSync(path) }, code: 'PMEMSET_E_INVALID_PMEM2_SOURCE', status: 422, mend: (path) => { rmSync(path, { recursive: true }); renameSync(`${path}.away`, path) } }
]

for (const { name, meanwhile, code, status, members = {}, mend, adopt } of KINDS) {
  t.test(`unavailable: ${name}`, async (t) => {
    const opened = await open(t)
    await makeSet(t, opened, { id: 's', coalescing: 'full' })
    await makeSet(t, opened, { id: 'other' })
    const path = makeFile(opened.dir, 'f', Buffer.concat(['a', 'b', 'c', 'd'].map((letter) => Buffer.alloc(PAGE, letter))))
    makeFile(opened.dir, 'well', 'w'.repeat(PAGE))
    const head = await mapPart(t, opened, 's', 'well', { id: 'head' }, { create: 'never' })
    const part = await mapPart(t, opened, 's', 'f', { id: 'p', length: 4 * PAGE }, { create: 'never' })
    const tail = await mapPart(t, opened, 's', 'well', { id: 'tail' }, { create: 'never' })
    await mapPart(t, opened, 'other', 'well')
    const before = world(opened)

    const again = await reopen(t, opened, () => { meanwhile(path) })
    t.match(await must(t, again, 'GET', '/sets/s'), { state: 'degraded', partCount: 3, mapCount: 2, mappedBytes: 2 * PAGE })
    t.match(await must(t, again, 'GET', '/sets/other'), { state: 'ready', partCount: 1 })
    t.match((await must(t, again, 'GET', '/metrics') as Buffer).toString(), /^pmemsetd_sets_degraded 1\n[\s\S]*^pmemsetd_parts_unavailable 1$/m)
    t.match(await partsOf(t, again, 's'), [{ id: 'head', addr: head.addr, state: 'mapped', problem: undefined }, { id: 'p', addr: part.addr, length: 4 * PAGE, state: 'unavailable', problem: code }, { id: 'tail', addr: tail.addr, state: 'mapped' }], 'in address order')
    t.match(await must(t, again, 'GET', '/sets/s/parts/p'), { id: 'p', state: 'unavailable', problem: code, revision: tail.revision })
    t.match(await must(t, again, 'GET', `/sets/s/parts?addr=${part.addr}&length=1`), { items: [{ id: 'p' }] })
    t.same((await must(t, again, 'GET', '/sets/s/parts?limit=2') as { items: Part[] }).items.map(({ id }) => id), ['head', 'p'])

    const unavailable = { part: 'p', problem: code }
    for (const at of [part.addr, plus(part.addr, 4 * PAGE - 1)]) {
      await refused(t, again, ['GET', `/sets/s/maps?addr=${at}`], 409, 'PART_UNAVAILABLE', unavailable)
      await refused(t, again, ['GET', `/sets/s/memory?addr=${at}&length=1`], 409, 'PART_UNAVAILABLE', unavailable)
      await refused(t, again, ['PUT', `/sets/s/memory?addr=${at}`, Buffer.from('x')], 409, 'PART_UNAVAILABLE', unavailable)
      await refused(t, again, ['POST', '/sets/s/persist', { ranges: [{ addr: head.addr, length: 1 }, { addr: at, length: 1 }] }], 409, 'PART_UNAVAILABLE', unavailable)
    }
    await refused(t, again, ['GET', `/sets/s/memory?addr=${part.addr}&length=${PAGE * 100}`], 409, 'PART_UNAVAILABLE', unavailable)
    await refused(t, again, ['GET', '/sets/s/parts/p/content'], 409, 'PART_UNAVAILABLE', unavailable)
    await refused(t, again, ['PUT', '/sets/s/parts/p/content', Buffer.from('x')], 409, 'PART_UNAVAILABLE', unavailable)
    await refused(t, again, ['POST', '/sets/s/memset', { addr: part.addr, length: 1, value: '0x1' }], 409, 'PART_UNAVAILABLE', unavailable)
    await refused(t, again, ['POST', '/sets/s/memcpy', { dest: head.addr, src: part.addr, length: 1 }], 409, 'PART_UNAVAILABLE', unavailable)
    await refused(t, again, ['POST', '/sets/s/batch', { operations: [{ op: 'read', addr: head.addr, length: 1 }, { op: 'read', addr: part.addr, length: 1 }] }], 409, 'PART_UNAVAILABLE', { ...unavailable, failedOperation: 1 })
    await refused(t, again, ['DELETE', `/sets/s/maps/${part.addr}`], 409, 'PART_UNAVAILABLE', unavailable)
    t.match((await must(t, again, 'GET', `/sets/s/maps?addr=${tail.addr}`)), { items: [{ addr: tail.addr, part: { id: 'tail' } }] })
    t.equal(await bytesAt(t, again, 's', head.addr, 1), 'w')
    // What is new is placed where nobody's addresses are.
    t.equal((await mapPart(t, again, 's', 'new', { id: 'new' })).addr, plus(tail.addr, PAGE))
    await must(t, again, 'DELETE', '/sets/s/parts/new')

    await refused(t, again, ['POST', '/sets/s/parts/p/restore', {}, { 'if-match': '"x.1"' }], 412, 'PRECONDITION_FAILED')
    await refused(t, again, ['POST', '/sets/s/parts/p/restore', {}], status, code, members)
    mend(path)
    if (adopt === true) await refused(t, again, ['POST', '/sets/s/parts/p/restore', { adopt: false }], status, code, members)
    const restored = await call(t, again, 'POST', '/sets/s/parts/p/restore', { ...(adopt === undefined ? {} : { adopt }) })
    t.match([restored.status, restored.json], [200, { id: 'p', addr: part.addr, length: 4 * PAGE, state: 'mapped', coalesced: true, problem: undefined, map: { addr: head.addr, size: 6 * PAGE } }], 'one with the map before it and with the one behind, as ever')
    t.match(await must(t, again, 'GET', '/sets/s'), { state: 'ready' })
    t.equal(restored.headers.etag, (await call(t, again, 'GET', '/sets/s')).headers.etag)
    t.match((await call(t, again, 'POST', '/sets/s/parts/p/restore', {})).json, restored.json, 'a part that is mapped stays as it is')
    t.equal(await bytesAt(t, again, 's', part.addr, 1), 'a')

    const third = await reopen(t, again)
    t.equal((await must(t, third, 'GET', '/sets/s/parts/p') as Part).state, 'mapped', 'for good')
    const strip = (value: unknown): unknown => JSON.parse(JSON.stringify(value, (key, one: unknown) => (key === 'revision' ? undefined : one)))
    t.same(strip(world(third)), strip(before))
  })
}

t.test('what is unavailable can be removed', async (t) => {
  const opened = await open(t)
  for (const id of ['by-id', 'by-range', 'whole']) {
    await makeSet(t, opened, { id, coalescing: 'full' })
    for (const [i, name] of ['a', 'lost', 'b'].entries()) await mapPart(t, opened, id, `${name}-${id}`, { id: `p${i}` })
  }
  const parts = new Map<string, Part[]>()
  for (const id of ['by-id', 'by-range', 'whole']) parts.set(id, await partsOf(t, opened, id))
  const again = await reopen(t, opened, () => { for (const id of ['by-id', 'by-range', 'whole']) rmSync(join(opened.dir, `lost-${id}`)) })
  const addrOf = (set: string, i: number): string => parts.get(set)?.[i]?.addr ?? ''

  t.equal((await call(t, again, 'DELETE', '/sets/by-id/parts/p1')).status, 204)
  await refused(t, again, ['GET', '/sets/by-id/parts/p1'], 404, 'PMEMSET_E_PART_NOT_FOUND')
  await refused(t, again, ['GET', `/sets/by-id/maps?addr=${addrOf('by-id', 1)}`], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')
  t.match(await must(t, again, 'GET', '/sets/by-id'), { state: 'ready', partCount: 2 })
  await must(t, again, 'DELETE', '/sets/by-id/parts/p0')
  await must(t, again, 'DELETE', '/sets/by-id/parts/p2')
  t.equal((await mapPart(t, again, 'by-id', 'three', { length: 3 * PAGE })).addr, addrOf('by-id', 0), 'its addresses are free again')

  const range = `addr=${addrOf('by-range', 1)}&length=${PAGE + 1}`
  const removal = { removed: [{ id: 'p1', addr: addrOf('by-range', 1), length: PAGE }, { id: 'p2', addr: addrOf('by-range', 2), length: PAGE }], removedCount: 2 }
  t.match(await must(t, again, 'DELETE', `/sets/by-range/maps?${range}&dryRun=true`), { dryRun: true, ...removal })
  t.equal((await partsOf(t, again, 'by-range')).length, 3)
  t.match(await must(t, again, 'DELETE', `/sets/by-range/maps?${range}`), { dryRun: false, ...removal })
  t.match((await partsOf(t, again, 'by-range')).map(({ id }) => id), ['p0'])
  await refused(t, again, ['DELETE', `/sets/by-range/maps?${range}`], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')

  t.equal((await call(t, again, 'DELETE', '/sets/whole')).status, 204)
  const third = await reopen(t, again)
  t.match(world(third), [{ one: { id: 'by-id', partCount: 1 } }, { one: { id: 'by-range', partCount: 1, state: 'ready' } }])
})

t.test('a volume that is not there any more', async (t) => {
  const opened = await open(t)
  const elsewhere = t.testdir()
  mkdirSync(join(elsewhere, 'v'))
  const volumes = { PMEMSETD_VOLUMES: `default=${opened.dir},second=${join(elsewhere, 'v')}` }
  const both = await reopen(t, opened, () => {}, { env: volumes })
  await makeSet(t, both, { id: 's' })
  const part = await mapPart(t, both, 's', 'f', { id: 'p' }, { volume: 'second' })
  const without = await reopen(t, both)
  t.match(await partsOf(t, without, 's'), [{ id: 'p', addr: part.addr, state: 'unavailable', problem: 'VOLUME_NOT_FOUND' }])
  await refused(t, without, ['POST', '/sets/s/parts/p/restore', {}], 422, 'VOLUME_NOT_FOUND', { volume: 'second' })
  const again = await reopen(t, without, () => {}, { env: volumes })
  t.match(await partsOf(t, again, 's'), [{ id: 'p', addr: part.addr, state: 'mapped' }])
})

t.test('many parts of few files', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  makeFile(opened.dir, 'f', 64 * PAGE)
  for (let i = 0; i < 64; i++) await mapPart(t, opened, 's', 'f', { offset: i * PAGE }, { create: 'never' })
  const again = await reopen(t, opened, () => { truncateSync(join(opened.dir, 'f'), 32 * PAGE) })
  const parts = (await must(t, again, 'GET', '/sets/s/parts?limit=100') as { items: Part[] }).items
  t.same(parts.map(({ state }) => state), Array.from({ length: 64 }, (_, i) => (i < 32 ? 'mapped' : 'unavailable')), 'each for itself')
  t.match(await mapsOf(t, again, 's'), [{ partCount: 32, size: 32 * PAGE }])
})
/* ---- the process itself ---- */

async function post (address: string, path: string, body: object, method = 'POST'): Promise<Json> {
  const { status, json } = await ask({ url: address + path }, { method, body })
  if (status >= 300) throw new Error(`${path}: ${status} ${JSON.stringify(json)}`)
  return json
}

for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
  t.test(`after ${signal}`, async (t) => {
    const dir = folder(t)
    const first = await serving(t, dir)
    await post(first.address, '/sets', { id: 's', requiredGranularity: 'page', coalescing: 'full' })
    const parts: Part[] = []
    for (let i = 0; i < 4; i++) parts.push(await post(first.address, '/sets/s/parts', { source: { type: 'file', path: `f${i}`, create: 'if_needed' }, length: PAGE }) as Part)
    await post(first.address, '/sets/s/memset', { addr: parts[0]?.addr, length: 4 * PAGE, value: '0x37' })
    await ask({ url: `${first.address}/sets/s/parts/part-3` }, { method: 'DELETE' })
    const before = await worldOf(first.address)
    first.child.kill(signal)
    t.equal(await first.ended, signal === 'SIGTERM' ? 0 : 'SIGKILL', first.said())

    const second = await serving(t, dir)
    t.same(await worldOf(second.address), before)
    t.match(second.said(), /"message":"ready","sets":1,"parts":3,"unavailable":0/)
    t.match(await post(second.address, '/sets/s/memcpy', { dest: parts[1]?.addr, src: parts[0]?.addr, length: 8 }), { durability: 'persisted' })
    t.match(await post(second.address, '/sets/s/batch', { operations: [{ op: 'read', addr: parts[3]?.addr, length: 4 }] }), { results: [{ data: Buffer.from('7777').toString('base64') }] })
    t.match(await post(second.address, '/sets/s/parts', { source: { type: 'file', path: 'f4', create: 'if_needed' }, length: PAGE }), { id: 'part-5' })
  })
}

t.test('unavailable: a medium of another granularity', async (t) => {
  const dir = folder(t)
  const fine = await serving(t, dir, { PMEMSETD_SIMULATE: 'cache_line' })
  for (const [id, requiredGranularity] of [['any', 'page'], ['fine', 'cache_line']]) {
    await post(fine.address, '/sets', { id, requiredGranularity })
    await post(fine.address, `/sets/${id}/parts`, { id: 'p', source: { type: 'file', path: 'f', create: 'if_needed' }, length: PAGE })
  }
  const before = await worldOf(fine.address)
  fine.child.kill('SIGKILL')
  await fine.ended

  const coarse = await serving(t, dir)
  for (const [id, problem, status, effectiveGranularity] of [['any', 'PMEMSET_E_GRANULARITY_MISMATCH', 409, 'cache_line'], ['fine', 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', 422, undefined]] as const) {
    t.match((await ask({ url: `${coarse.address}/sets/${id}/parts/p` })).json, { state: 'unavailable', problem })
    t.match(await ask({ url: `${coarse.address}/sets/${id}/parts/p/restore` }, { method: 'POST', body: {} }), { status, json: { code: problem, availableGranularity: 'page', effectiveGranularity } })
    t.match((await ask({ url: `${coarse.address}/sets/${id}` })).json, { state: 'degraded', effectiveGranularity: 'cache_line', partCount: 1, mapCount: 0 })
  }
  t.match(coarse.said(), /"message":"part unavailable","set":"any","part":"p","problem":"PMEMSET_E_GRANULARITY_MISMATCH"/)
  coarse.child.kill('SIGTERM')
  t.equal(await coarse.ended, 0)
  const again = await serving(t, dir, { PMEMSETD_SIMULATE: 'cache_line' })
  t.same(await worldOf(again.address), before)
})

t.test('unavailable: a volume that has become read-only', { skip: cannotMount }, async (t) => {
  const dir = folder(t, 'data')
  const second = mounted(t, tmpfs('4m'))
  const env = { PMEMSETD_VOLUMES: `default=./data,second=${second}` }
  const first = await serving(t, dir, env)
  await post(first.address, '/sets', { id: 's', requiredGranularity: 'page' })
  for (const volume of ['default', 'second']) await post(first.address, '/sets/s/parts', { id: volume, source: { type: 'file', volume, path: 'f', create: 'if_needed' }, length: PAGE })
  const before = await worldOf(first.address)
  first.child.kill('SIGKILL')
  await first.ended
  execFileSync('mount', ['-o', 'remount,ro', second])
  const readOnly = await serving(t, dir, env)
  t.match((await ask({ url: `${readOnly.address}/sets/s/parts` })).json, { items: [{ id: 'default', state: 'mapped' }, { id: 'second', state: 'unavailable', problem: 'EROFS' }] })
  t.match(readOnly.said(), /"message":"a volume is read-only","volume":"second"/)
  execFileSync('mount', ['-o', 'remount,rw', second])
  t.match(await post(readOnly.address, '/sets/s/parts/second/restore', {}), { state: 'mapped' })
  readOnly.child.kill('SIGKILL')
  await readOnly.ended
  const again = await serving(t, dir, env)
  const states = (all: Json[]): unknown => all.map(({ json }) => json?.items?.map(({ id, addr, state }: Part) => ({ id, addr, state })) as unknown)
  t.same(states(await worldOf(again.address)), states(before))
})

t.test('the second service of a volume, or of a catalog, says who is there, and ends', async (t) => {
  const dir = folder(t, 'a', 'b', 'state', 'other')
  const env = { PMEMSETD_VOLUMES: 'default=./a', PMEMSETD_STATE_DIR: './state' }
  const { child } = await serving(t, dir, env)
  for (const [other, place] of [[env, 'state'], [{ PMEMSETD_VOLUMES: 'default=./b', PMEMSETD_STATE_DIR: './state' }, 'state'], [{ PMEMSETD_VOLUMES: 'default=./b,more=./a', PMEMSETD_STATE_DIR: './other' }, 'a/.pmemset']] as const) {
    const second = run(dir, other)
    t.equal(await second.ended, 1)
    t.match(second.said().trim(), new RegExp(`^pmemsetd: ${join(dir, place)} is in use by another pmemsetd, process ${child.pid ?? 0}; .*$`))
  }
  // The lock is of the process and not of the file: with its holder it goes, however that ended.
  child.kill('SIGKILL')
  await once(child, 'exit')
  await serving(t, dir, env)
})

t.test('a medium that cannot keep a catalog is refused', async (t) => {
  const dir = folder(t, 'data')
  const state = mkdtempSync('/dev/shm/pmemsetd-test-')
  t.teardown(() => { rmSync(state, { recursive: true, force: true }) })
  const refusedOne = run(dir, { PMEMSETD_VOLUMES: 'default=./data', PMEMSETD_STATE_DIR: state })
  t.equal(await refusedOne.ended, 1)
  t.match(refusedOne.said().trim(), /^pmemsetd: the catalog would be in .*tmpfs.*PMEMSETD_STATE_DIR.*PMEMSETD_EPHEMERAL=true.*$/)
  const { address } = await serving(t, dir, { PMEMSETD_VOLUMES: 'default=./data', PMEMSETD_STATE_DIR: state, PMEMSETD_EPHEMERAL: 'true' })
  await post(address, '/sets', { requiredGranularity: 'page' })
})

t.test('other addresses than those of the catalog are refused', async (t) => {
  const dir = folder(t)
  const first = await serving(t, dir, { PMEMSETD_ARENA_BASE: '0x410000000000', PMEMSETD_ARENA_SIZE: '0x10000000000' })
  await post(first.address, '/sets', { id: 's', requiredGranularity: 'page' })
  first.child.kill('SIGKILL')
  await first.ended
  const other = run(dir, { PMEMSETD_ARENA_BASE: '0x420000000000' })
  t.equal(await other.ended, 1)
  t.equal(other.said().trim(), 'pmemsetd: PMEMSETD_ARENA_BASE is 0x420000000000, but the sets of the catalog are at 0x410000000000; allowed is that, or leave it unset')
  const again = await serving(t, dir, { PMEMSETD_ARENA_SIZE: '0x10000000000' })
  t.match((await ask({ url: `${again.address}/sets/s` })).json, { window: { addr: '0x410000000000' } })
})

t.test('while it restores, it lives and says how far it is', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  for (let i = 0; i < 3; i++) await mapPart(t, opened, 's', `f${i}`)
  await opened.close()
  const catalog = await openCatalog(opened.state)
  const config = loadConfig({ PMEMSETD_VOLUMES: `default=${opened.dir}`, PMEMSETD_STATE_DIR: opened.state })
  const service = new Service({ engine: theEngine(), catalog, config, version: '0.0.0' })
  const app = await buildApp({ config, log: silent, version: '0.0.0', service })
  const restoring = { ...opened, app, service }
  t.teardown(async () => { await app.close(); await service.close() })
  t.match(await must(t, restoring, 'GET', '/livez'), { status: 'live' })
  t.match((await call(t, restoring, 'GET', '/readyz')).json, { status: 503, code: 'RESTORING', retryable: true, parts: Number, restored: 0 })
  for (const [method, url, body] of [['GET', '/sets'], ['POST', '/sets', { requiredGranularity: 'page' }], ['GET', '/sets/s/maps?addr=0x0'], ['GET', '/volumes'], ['GET', '/catalog']] as Array<[string, string, object?]>) {
    const reply = await call(t, restoring, method, url, body)
    t.match([reply.status, reply.json.code, reply.headers['retry-after']], [503, 'RESTORING', '1'], url)
  }
  for (const url of ['/errors/RESTORING', '/openapi.json', '/capabilities', '/metrics']) t.equal((await call(t, restoring, 'GET', url)).status, 200, url)
  t.equal((await call(t, restoring, 'GET', '/nowhere')).status, 404)
  const told: unknown[] = []
  t.same(await service.restore((progress) => told.push(progress)), { unavailable: [], unfinished: [] })
  t.same(told, [{ parts: 3, restored: 3 }])
  t.match(await must(t, restoring, 'GET', '/readyz'), { status: 'ready', parts: 3 })
  t.equal((await must(t, restoring, 'GET', '/sets/s/parts') as { items: Part[] }).items.length, 3)
})

t.test('a service that has nothing to bring back refuses nobody, not for a moment', async (t) => {
  const opened = await open(t, { restore: false })
  const restored = opened.service.restore(() => {})
  for (let i = 0; i < 50; i++) {
    t.equal((await call(t, opened, 'GET', '/sets')).status, 200)
    await setImmediate()
  }
  await restored
})
