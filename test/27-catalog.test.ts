// SPDX-License-Identifier: BSD-3-Clause
// The catalog: what it keeps and refuses, that a change which cannot be recorded is none, and that what takes away works where there is no space for more.
import { open as openEnvironment } from 'lmdb'
import { copyFileSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { LmdbCatalog } from '../src/catalog/lmdb.js'
import type { Change, PartRecord, SetRecord } from '../src/catalog/catalog.js'
import { digestOf, type Scope } from '../src/plugins/tokens.js'
import { cannotMount, empty, fill, mounted, Refusing, tmpfs } from './media.js'
import { folder, run } from './process.js'
import { call, makeFile, makeSet, mapPart, MIB, must, open, openCatalog, PAGE, plus, refused, reopen, world } from './service.js'

const anySpace = async (): Promise<void> => {}

function set (id: string, fields: Partial<SetRecord> = {}): SetRecord {
  return { id, uid: `uid-${id}`, revision: 1, requiredGranularity: 'page', coalescing: 'none', windowAddr: '0x400000000000', windowSize: 2 * MIB, partsMade: 0, labels: {}, createdAt: '2026-11-30T00:00:00.000Z', ...fields }
}

function part (of: string, cookie: number): PartRecord {
  return { id: `part-${cookie}`, cookie, set: `uid-${of}`, source: { type: 'file', volume: 'default', path: 'f', create: 'never', grow: false }, identity: 'x'.repeat(60), offset: 0, length: PAGE, addr: `0x${(0x400000000000 + cookie * PAGE).toString(16)}`, coalesced: false, granularity: 'page', persistence: 'persistent', mapSync: false, createdAt: '2026-11-30T00:00:00.000Z' }
}

const putPart = (of: string, cookie: number): Change => ({ kind: 'put-part', part: part(of, cookie) })

/* ---- what it keeps ---- */

t.test('it has what was committed, also after it was opened anew', async (t) => {
  const dir = join(folder(t), 'state')
  const catalog = await LmdbCatalog.open({ dir, allocate: anySpace })
  t.same([catalog.service(), [...catalog.sets()], [...catalog.intents()]], [undefined, [], []])
  t.same([statSync(dir).mode & 0o777, statSync(join(dir, 'catalog.mdb')).mode & 0o777, statSync(join(dir, 'catalog.mdb-lock')).mode & 0o777], [0o700, 0o600, 0o600])
  const service = { uid: 'me', arenaBase: '0x400000000000', pageSize: PAGE }
  const failures = { set: 'uid-a', failures: [{ at: 1, errno: 28, ranges: [{ addr: '0x1000', length: PAGE }] }] }
  const intent = { token: '00000000000000ff', volume: 'default', path: 'f' }
  await catalog.commit([{ kind: 'put-service', service }, { kind: 'put-set', set: set('a') }, { kind: 'put-set', set: set('ab') }, ...[1, 2, 10, 300, 70_000].map((cookie) => putPart('a', cookie)), putPart('ab', 1), { kind: 'put-failures', failures }, { kind: 'put-intent', intent }])
  await catalog.commit([{ kind: 'put-set', set: set('a', { revision: 2 }) }, { kind: 'delete-part', set: 'uid-a', cookie: 2 }])
  const check = (one: LmdbCatalog): void => {
    t.same([...one.sets()].sort((a, b) => (a.id < b.id ? -1 : 1)), [set('a', { revision: 2 }), set('ab')])
    t.same([...one.parts('uid-a')], [1, 10, 300, 70_000].map((cookie) => part('a', cookie)), 'in the order of their numbers')
    t.same([one.partCount('uid-a'), one.partCount('uid-ab'), one.partCount('uid')], [4, 1, 0])
    t.same([one.service(), one.failures('uid-a'), one.failures('uid-ab'), [...one.intents()]], [service, failures, undefined, [intent]])
  }
  check(catalog)
  await catalog.close()
  const again = await LmdbCatalog.open({ dir, allocate: anySpace })
  check(again)
  await again.commit([{ kind: 'delete-set', uid: 'uid-a' }, { kind: 'delete-intent', token: intent.token }])
  t.same([[...again.sets()], [...again.parts('uid-a')], again.failures('uid-a'), [...again.intents()], [...again.parts('uid-ab')]], [[set('ab')], [], undefined, [], [part('ab', 1)]])
  await again.close()
})

t.test('many at a time share transactions, and each is there', async (t) => {
  const catalog = await LmdbCatalog.open({ dir: folder(t), allocate: anySpace })
  await Promise.all(Array.from({ length: 500 }, (_, i) => catalog.commit([putPart('a', i + 1)])))
  t.equal(catalog.partCount('uid-a'), 500)
  await catalog.close()
})

t.test('one that this version does not know is refused, and left alone', async (t) => {
  const dir = folder(t, 'data')
  const state = join(dir, 'data', '.pmemset')
  await (await LmdbCatalog.open({ dir: state, allocate: anySpace })).close()
  const file = join(state, 'catalog.mdb')
  const raw = openEnvironment<string, string[]>({ path: file, encoding: 'string', overlappingSync: false })
  await raw.put(['schema'], '2')
  await raw.close()
  const before = readFileSync(file)
  await t.rejects(LmdbCatalog.open({ dir: state, allocate: anySpace }), { name: 'CatalogError', message: /has schema 2, which this version does not know; it knows 1$/ })
  const started = run(dir, {})
  t.equal(await started.ended, 1)
  t.match(started.said().trim(), /^pmemsetd: the catalog .*\/data\/\.pmemset\/catalog\.mdb has schema 2, which this version does not know; it knows 1$/)
  t.same(readFileSync(file), before)
  writeFileSync(file, 'no catalog '.repeat(1000))
  await t.rejects(LmdbCatalog.open({ dir: state, allocate: anySpace }), { name: 'CatalogError', message: /catalog\.mdb is no catalog$/ })
})

/* ---- no space ---- */

const skip = cannotMount

/** A file system of its own for the catalog. */
function small (t: Test): string {
  return mounted(t, tmpfs('8m'))
}

t.test('without space for more, what takes away is recorded all the same', { skip }, async (t) => {
  const state = small(t)
  const opened = await open(t, { state })
  await makeSet(t, opened, { id: 's' })
  await makeSet(t, opened, { id: 'other' })
  makeFile(opened.dir, 'f', 400 * PAGE)
  for (let i = 0; i < 400; i++) await mapPart(t, opened, 's', 'f', { id: `p${i}`, offset: i * PAGE }, { create: 'never' })
  await mapPart(t, opened, 'other', 'f', { id: 'p' }, { create: 'never' })
  fill(state)
  // Some more have room in what was allocated; then there is no more.
  const labels = Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`${i}`, 'x'.repeat(200)]))
  let made = 0
  while ((await call(t, opened, 'POST', '/sets', { id: `more-${made}`, requiredGranularity: 'page', windowSize: 2 * MIB, labels })).status === 201) made++
  await refused(t, opened, ['POST', '/sets', { id: 'new', requiredGranularity: 'page', labels }], 507, 'NO_SPACE', { retryable: false })
  for (let i = 0; i < 400; i += 3) t.equal((await call(t, opened, 'DELETE', `/sets/s/parts/p${i}`)).status, 204)
  t.equal((await call(t, opened, 'DELETE', '/sets/other')).status, 204)
  const before = world(opened)
  const again = await reopen(t, opened)
  t.same(world(again), before, 'a start on a full volume')
  t.equal((await call(t, again, 'DELETE', '/sets/s')).status, 204)
  empty(state)
  await makeSet(t, again, { id: 'new' })
})

t.test('a commit that fails has changed nothing, and the next one is like any other', { skip }, async (t) => {
  const dir = small(t)
  const catalog = await LmdbCatalog.open({ dir, allocate: anySpace })
  await catalog.commit([{ kind: 'put-set', set: set('a') }])
  fill(dir)
  const large = (of: string): Change[] => Array.from({ length: 200 }, (_, i) => putPart(of, i + 1))
  const outcomes = await Promise.allSettled([catalog.commit(large('b')), catalog.commit(large('c')), catalog.commit(large('d'))])
  for (const outcome of outcomes) t.match(outcome, { status: 'rejected', reason: { name: 'ServiceError', code: 'NO_SPACE' } })
  t.same([[...catalog.sets()].length, catalog.partCount('uid-b')], [1, 0])
  empty(dir)
  await catalog.commit(large('b'))
  await catalog.close()
  const again = await LmdbCatalog.open({ dir, allocate: anySpace })
  t.same([[...again.sets()], again.partCount('uid-b'), again.partCount('uid-c')], [[set('a')], 200, 0])
  await again.close()
})

/* ---- changes that cannot be recorded ---- */

t.test('a change that cannot be recorded is none', async (t) => {
  const first = await open(t)
  await first.close()
  const catalog = new Refusing(await openCatalog(first.state))
  const opened = await open(t, { dir: first.dir, state: first.state, catalog })
  for (const [id, coalescing] of [['s', 'none'], ['joined', 'full']]) await makeSet(t, opened, { id, coalescing })
  makeFile(opened.dir, 'f', 8 * PAGE)
  const { addr } = await mapPart(t, opened, 's', 'f', { id: 'p' }, { create: 'never' })
  const { addr: joined } = await mapPart(t, opened, 'joined', 'f', { id: 'p0' }, { create: 'never' })
  for (let i = 1; i < 3; i++) await mapPart(t, opened, 'joined', 'f', { id: `p${i}`, offset: i * PAGE }, { create: 'never' })
  await must(t, opened, 'PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('bytes'))
  const document = (await call(t, opened, 'GET', '/catalog')).json as object
  const changes: Array<[method: string, url: string, body?: object, headers?: Record<string, string>]> = [
    ['POST', '/sets', { id: 'new', requiredGranularity: 'page' }],
    ['PATCH', '/sets/s', { labels: { a: 'b' }, coalescing: 'full' }],
    ['POST', '/sets/s/parts', { id: 'q', source: { type: 'file', path: 'f' }, length: PAGE }],
    ['POST', '/sets/joined/parts', { id: 'q', source: { type: 'file', path: 'f' }, length: PAGE }],
    ['POST', '/sets/s/parts', { id: 'r', source: { type: 'file', path: 'made', create: 'exclusive' }, length: PAGE }],
    ['DELETE', '/sets/joined/parts/p2'],
    ['DELETE', '/sets/joined/parts/p1'],
    ['DELETE', '/sets/joined/parts/p0'],
    ['DELETE', `/sets/joined/maps?addr=${joined}&length=${PAGE + 1}`],
    ['DELETE', `/sets/joined/maps/${joined}`],
    ['DELETE', `/sets/joined/maps?addr=${joined}&length=${3 * PAGE}`],
    ['DELETE', '/sets/s/parts/p'],
    ['PUT', '/catalog', { ...document, sets: [] }, { 'if-match': '*' }],
    ['DELETE', '/sets/s'],
    ['DELETE', '/sets/joined']
  ]
  for (const change of changes) {
    // The reservation of a file to be made is recorded, so that it is made, and has to go again.
    catalog.refuses = (all) => !all.every(({ kind }) => kind === 'put-intent' || kind === 'delete-intent')
    await refused(t, opened, change, 507, 'NO_SPACE', { retryable: false })
    t.same([...catalog.intents()], [])
    t.equal((await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=5`) as Buffer).toString(), 'bytes')
  }
  t.notOk(existsSync(join(opened.dir, 'made')), 'no file is left')
  catalog.refuses = ([first]) => first?.kind === 'put-intent'
  await refused(t, opened, ['POST', '/sets/s/parts', { source: { type: 'file', path: 'made', create: 'exclusive' }, length: PAGE }], 507, 'NO_SPACE')
  t.notOk(existsSync(join(opened.dir, 'made')), 'and none was made')
  catalog.refuses = () => false
  t.match(await mapPart(t, opened, 's', 'f', { id: 'apart' }, { create: 'never' }), { coalesced: false }, 'the mode is the old one to the engine, too')
  const before = world(opened)
  const again = await reopen(t, opened)
  t.same(world(again), before)
  for (const change of changes.filter(([, url]) => url !== '/catalog')) {
    const { status } = await call(t, again, ...change)
    t.ok(status < 300 || status === 404, `${change[0]} ${change[1]}: ${status}`)
  }
})

/* ---- intents ---- */

t.test('what an unfinished step has made is taken away, and nothing else', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  // A process that dies between the engine and the record: the file is there, the record is not.
  const { engine, catalog, volumes } = opened.service.sets.get('s').context
  const volume = volumes.ofSource('default').handle
  const handle = engine.newSet({ windowSize: 2 * MIB, partsMax: 10, requiredGranularity: 'page', coalescing: 'none' })
  const spec = { volume, offset: 0, length: PAGE, cookie: 1, keepFree: 0, create: 'if_needed', mode: 0o600, grow: false } as const
  await engine.mapPart(handle, { ...spec, path: 'dir', create: 'never' }).catch(() => {})
  makeFile(opened.dir, 'old', PAGE)
  await catalog.commit([1n, 2n, 3n].map((token, i) => ({ kind: 'put-intent', intent: { token: token.toString(16).padStart(16, '0'), volume: 'default', path: ['half', 'old', 'never'][i] ?? '' } })))
  await engine.mapPart(handle, { ...spec, path: 'half', intent: 1n })
  await engine.mapPart(handle, { ...spec, path: 'old', cookie: 2, intent: 2n })
  await engine.deleteSet(handle)
  t.ok(existsSync(join(opened.dir, 'half')))
  // One of a volume that is not there, and one that cannot be: neither keeps the service from starting.
  await catalog.commit(['elsewhere', 'default'].map((volume, i) => ({ kind: 'put-intent', intent: { token: `000000000000000${i + 4}`, volume, path: '../f' } })))
  const again = await reopen(t, opened)
  t.notOk(existsSync(join(opened.dir, 'half')), 'it was made by the step')
  t.ok(existsSync(join(opened.dir, 'old')), 'it was there before')
  t.match([...again.service.sets.get('s').context.catalog.intents()], [{ volume: 'elsewhere' }, { volume: 'default', path: '../f' }])
})

/* ---- the document ---- */

t.test('the catalog as one document', async (t) => {
  const opened = await open(t)
  const empty = await call(t, opened, 'GET', '/catalog')
  t.match(empty.json, { schema: 1, uid: /^[0-9a-f-]{36}$/, arenaBase: /^0x/, pageSize: PAGE, sets: [] })
  for (const id of ['b', 'a']) await makeSet(t, opened, { id, coalescing: 'full', labels: { is: id } })
  for (let i = 0; i < 3; i++) await mapPart(t, opened, 'a', 'f', { offset: i * PAGE }, { grow: true })
  await mapPart(t, opened, 'b', 'g')
  await must(t, opened, 'DELETE', '/sets/a/parts/part-2')
  const { json: document, headers: { etag } } = await call(t, opened, 'GET', '/catalog')
  t.match(document, { sets: [{ id: 'a', partsMade: 3, parts: [{ id: 'part-1', identity: /./ }, { id: 'part-3' }], failures: [] }, { id: 'b' }] })
  const before = world(opened)

  await refused(t, opened, ['PUT', '/catalog', empty.json], 428, 'PRECONDITION_REQUIRED')
  await refused(t, opened, ['PUT', '/catalog', empty.json, { 'if-match': String(empty.headers.etag) }], 412, 'PRECONDITION_FAILED')
  const cleared = await call(t, opened, 'PUT', '/catalog', empty.json, { 'if-match': String(etag) })
  t.match([cleared.status, cleared.json, cleared.headers.etag], [200, { sets: [] }, empty.headers.etag])
  t.same(await must(t, opened, 'GET', '/sets'), { items: [] })
  t.match(await must(t, opened, 'GET', '/readyz'), { status: 'ready', sets: 0 })

  const back = await call(t, opened, 'PUT', '/catalog', document)
  t.same([back.status, back.json, back.headers.etag], [200, document, etag])
  t.same(world(opened), before)
  await mapPart(t, opened, 'a', 'f', { id: 'next' }, { create: 'never' })
  const again = await reopen(t, opened)
  t.match(await must(t, again, 'GET', '/sets/a'), { partCount: 3 })
  // On another host: the files are copies, so every part waits to be adopted.
  const copy = await open(t)
  copyFileSync(join(opened.dir, 'g'), join(copy.dir, 'g'))
  await again.close()
  t.equal((await call(t, copy, 'PUT', '/catalog', document)).status, 200)
  t.match((await must(t, copy, 'GET', '/sets/b/parts')), { items: [{ state: 'unavailable', problem: 'SOURCE_REPLACED' }] })
  t.match((await must(t, copy, 'GET', '/sets/a/parts')), { items: [{ problem: 'PMEMSET_E_INVALID_SOURCE_PATH' }, {}] })
  t.match(await must(t, copy, 'POST', '/sets/b/parts/part-1/restore', { adopt: true }), { state: 'mapped' })
})

t.test('a document that no catalog could hold is refused', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  await mapPart(t, opened, 's', 'f', { id: 'p' })
  const { json, headers: { etag } } = await call(t, opened, 'GET', '/catalog')
  const [one] = json.sets
  const [p] = one.parts
  const other = { ...one, id: 'o', uid: '00000000-0000-0000-0000-000000000000', windowAddr: plus(one.windowAddr, one.windowSize), parts: [] }
  const cases: Array<[document: object, pointer: string]> = [
    [{ schema: 2 }, '/schema'], [{ pageSize: 512 }, '/pageSize'],
    [{ sets: [one, { ...other, id: 's' }] }, '/sets/1/id'], [{ sets: [one, { ...other, uid: one.uid }] }, '/sets/1/uid'],
    [{ sets: [one, { ...other, windowAddr: one.windowAddr }] }, '/sets/1/windowAddr'], [{ sets: [{ ...other, windowAddr: '0x200000' }] }, '/sets/0/windowAddr'], [{ sets: [{ ...other, windowSize: PAGE }] }, '/sets/0/windowAddr'],
    [{ sets: [{ ...one, parts: [p, { ...p, cookie: 0 + 1, id: 'q' }] }] }, '/sets/0/parts/1/cookie'], [{ sets: [{ ...one, parts: [{ ...p, cookie: 9 }] }] }, '/sets/0/parts/0/cookie'],
    [{ sets: [{ ...one, partsMade: 2, parts: [p, { ...p, cookie: 2 }] }] }, '/sets/0/parts/1/id'], [{ sets: [{ ...one, partsMade: 2, parts: [p, { ...p, cookie: 2, id: 'q' }] }] }, '/sets/0/parts/1/addr'],
    [{ sets: [{ ...one, parts: [{ ...p, addr: '0x1000' }] }] }, '/sets/0/parts/0/addr'], [{ sets: [{ ...one, parts: [{ ...p, offset: 1 }] }] }, '/sets/0/parts/0'],
    [{ sets: [{ ...one, parts: [{ ...p, granularity: 'byte' }] }] }, '/sets/0/parts/0/granularity'], [{ sets: [{ ...one, effectiveGranularity: undefined }] }, '/sets/0/effectiveGranularity'],
    [{ sets: [{ ...one, unknown: 1 }] }, '/sets/0/unknown'], [{ sets: [{ ...one, parts: [{ ...p, addr: 'x' }] }] }, '/sets/0/parts/0/addr']
  ]
  for (const [fields, pointer] of cases) await refused(t, opened, ['PUT', '/catalog', { ...json, ...fields }, { 'if-match': String(etag) }], 400, 'REQUEST_INVALID', { errors: [{ in: 'body', pointer }] })
})

t.test('the catalog takes admin', async (t) => {
  const tokens = new Map([[digestOf('writer'), new Set<Scope>(['read', 'write'])], [digestOf('admin'), new Set<Scope>(['admin'])]])
  const opened = await open(t, { tokens })
  for (const [method, body] of [['GET', undefined], ['PUT', { sets: [] }]] as const) {
    t.match((await call(t, opened, method, '/catalog', body, { authorization: 'Bearer writer' })).json, { status: 403, code: 'SCOPE_MISSING', requiredScope: 'admin' })
  }
  t.equal((await call(t, opened, 'GET', '/catalog', undefined, { authorization: 'Bearer admin' })).status, 200)
})
