// SPDX-License-Identifier: BSD-3-Clause
// Mapping parts: every refusal with what helps, in its order, and nothing changed by it; creation, growth, coalescing; reading and removing parts.
import { spawnSync } from 'node:child_process'
import { createServer } from 'node:net'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Part } from '../src/schemas.js'
import { call, cannot, makeFile, makeSet, mapPart, mapsOf, MIB, must, open, PAGE, plus, refused, type Opened } from './service.js'

/** Names and sizes of all files beneath a directory. */
function filesIn (dir: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: 'utf8' }).map((name) => `${name} ${statSync(join(dir, name)).size}`).sort()
}

/** A request to map that is refused, and leaves the files as they were. */
async function cannotMap (t: Test, opened: Opened, set: string, body: object | string, status: number, code: string, members: object = {}): Promise<void> {
  const before = filesIn(opened.dir)
  await refused(t, opened, ['POST', `/sets/${set}/parts`, body], status, code, members)
  t.same(filesIn(opened.dir), before, `files are as they were: ${code}`)
}

const file = (path: string, more: object = {}): object => ({ type: 'file', path, ...more })

t.test('ranges and sources that cannot be mapped', async (t) => {
  const opened = await open(t)
  makeFile(opened.dir, 'a', 4 * PAGE)
  makeFile(opened.dir, 'odd', PAGE + 100)
  makeFile(opened.dir, 'empty', 0)
  mkdirSync(join(opened.dir, 'dir'))
  t.equal(spawnSync('mkfifo', [join(opened.dir, 'fifo')]).status, 0)
  const server = createServer().listen(join(opened.dir, 'socket'))
  t.teardown(() => server.close())
  await makeSet(t, opened, { id: 's' })
  const unaligned = { cause: { library: 'libpmem2', code: 'PMEM2_E_OFFSET_UNALIGNED', number: -100011, message: String }, requiredAlignment: PAGE, number: -200008 }
  const wrongType = { number: -200002, cause: { library: 'libpmem2', code: 'PMEM2_E_INVALID_FILE_TYPE', number: -100005 } }
  const cases: Array<[body: object | string, status: number, code: string, members?: object]> = [
    [{ source: { type: 'file' } }, 400, 'PMEMSET_E_INVALID_SOURCE_PATH', { number: -200003 }],
    [{ source: file('gone') }, 422, 'PMEMSET_E_INVALID_SOURCE_PATH', { number: -200003 }],
    [{ source: file('none/gone') }, 422, 'PMEMSET_E_INVALID_SOURCE_PATH'],
    [{ source: file('none/gone', { create: 'always' }), length: PAGE }, 422, 'PMEMSET_E_INVALID_SOURCE_PATH'],
    [{ source: file('dir') }, 422, 'PMEMSET_E_INVALID_PMEM2_SOURCE', wrongType],
    [{ source: file('fifo') }, 422, 'PMEMSET_E_INVALID_PMEM2_SOURCE', wrongType],
    [{ source: file('socket') }, 422, 'PMEMSET_E_INVALID_PMEM2_SOURCE', wrongType],
    [{ source: file('a', { volume: 'none' }) }, 422, 'VOLUME_NOT_FOUND', { volumes: ['default'] }],
    [{ source: file('a'), offset: 9007199254740992 }, 400, 'PMEMSET_E_INVALID_OFFSET_VALUE', { number: -200006, errors: [{ in: 'body', pointer: '/offset' }] }],
    ['{"source":{"type":"file","path":"a"},"offset":9223372036854775808}', 400, 'PMEMSET_E_INVALID_OFFSET_VALUE'],
    ['{"source":{"type":"file","path":"a"},"offset":18446744073709551616}', 400, 'PMEMSET_E_INVALID_OFFSET_VALUE'],
    [{ source: file('a'), offset: 100 }, 422, 'PMEMSET_E_INVALID_PMEM2_MAP', unaligned],
    [{ source: file('a'), offset: 100, length: 1 }, 422, 'PMEMSET_E_INVALID_PMEM2_MAP', unaligned],
    [{ source: file('a'), offset: 4 * PAGE }, 422, 'PMEMSET_E_MAP_LENGTH_UNSET', { number: -200030 }],
    [{ source: file('empty') }, 422, 'PMEMSET_E_MAP_LENGTH_UNSET'],
    [{ source: file('empty', { grow: true }) }, 422, 'PMEMSET_E_MAP_LENGTH_UNSET'],
    [{ source: file('new', { create: 'if_needed' }) }, 422, 'PMEMSET_E_MAP_LENGTH_UNSET'],
    [{ source: file('odd') }, 422, 'PMEMSET_E_LENGTH_UNALIGNED', { number: -200015, requiredAlignment: PAGE }],
    [{ source: file('a'), length: 100 }, 422, 'PMEMSET_E_LENGTH_UNALIGNED', { requiredAlignment: PAGE }],
    [{ source: file('a'), length: 5 * PAGE }, 409, 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', { number: -200031, sourceSize: 4 * PAGE }],
    [{ source: file('odd'), length: 2 * PAGE }, 409, 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', { sourceSize: PAGE + 100 }],
    [{ source: file('a', { create: 'exclusive' }), length: PAGE }, 409, 'EEXIST', { number: -17, errno: 'EEXIST' }],
    [{ source: file('a', { create: 'some' }) }, 400, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS', { number: -200019 }],
    [{ source: file('a', { mode: '0999' }) }, 400, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS'],
    [{ source: file('a', { mode: 416 }) }, 400, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS'],
    [{ source: { type: 'devdax', path: 'a' } }, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/source/type' }] }],
    [{}, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/source', reason: 'is missing' }] }],
    [{ source: file('a'), length: 0 }, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/length' }] }],
    [{ source: file('a'), length: '4096' }, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/length' }] }],
    [{ source: file('a'), len: 4096 }, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/len', reason: 'is not known' }] }],
    [{ source: file('a', { grow: 'true' }) }, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/source/grow' }] }],
    [{ id: 'UP', source: file('a') }, 400, 'REQUEST_INVALID', { errors: [{ pointer: '/id' }] }],
    [{ source: file('n'.repeat(300)) }, 422, 'ENAMETOOLONG', { errno: 'ENAMETOOLONG', number: -36 }],
    [{ source: file('a/b') }, 422, 'ENOTDIR', { errno: 'ENOTDIR' }],
    ['{"source":{"type":"file","path":"a","path":"b"}}', 400, 'REQUEST_INVALID', { errors: [{ pointer: '/source/path' }] }],
    ['{"source":{"type":"file","path":"\\ud800"}}', 400, 'REQUEST_INVALID']
  ]
  for (const [body, ...verdict] of cases) await cannotMap(t, opened, 's', body, ...verdict)
  t.equal((await mapPart(t, opened, 's', 'a', { length: 4 * PAGE }, { create: 'never' })).length, 4 * PAGE, 'what is right still works')
})

t.test('fault after fault is taken away, and the next one answers', async (t) => {
  const opened = await open(t, { env: { PMEMSETD_PARTS_PER_SET_MAX: '2', PMEMSETD_KEEP_FREE_PERCENT: '99' } })
  makeFile(opened.dir, 'a', 2 * PAGE)
  await makeSet(t, opened, { id: 's', coalescing: 'full', windowSize: 2 * MIB })
  await mapPart(t, opened, 's', 'a', { id: 'taken' }, { create: 'never' })
  const source = { type: 'file', path: 'gone', volume: 'none' }
  const body: Record<string, unknown> = { id: 'taken', source, offset: 1, length: 1 }
  const next = async (status: number, code: string, members: object = {}): Promise<void> => await cannotMap(t, opened, 's', body, status, code, members)
  await next(409, 'PART_ID_EXISTS', { location: '/sets/s/parts/taken', revision: 2 })
  body.id = 'x'
  await next(422, 'VOLUME_NOT_FOUND')
  source.volume = 'default'
  await next(422, 'PMEMSET_E_INVALID_SOURCE_PATH')
  source.path = 'a'
  await next(422, 'PMEMSET_E_INVALID_PMEM2_MAP')
  body.offset = 0
  await next(422, 'PMEMSET_E_LENGTH_UNALIGNED')
  body.length = 4 * MIB
  await next(409, 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', { sourceSize: 2 * PAGE })
  Object.assign(source, { grow: true })
  await next(409, 'PMEMSET_E_CANNOT_COALESCE_PARTS', { number: -200014 })
  await must(t, opened, 'PATCH', '/sets/s', { coalescing: 'opportunistic' })
  await next(409, 'PMEMSET_E_CANNOT_FIT_PART_MAP', { number: -200023, largestGap: 2 * MIB - PAGE })
  body.length = 4 * PAGE
  await next(507, 'NO_SPACE', { availableBytes: Number })
  body.length = 2 * PAGE
  await must(t, opened, 'POST', '/sets/s/parts', body)
  body.id = 'y'
  await next(409, 'LIMIT_EXCEEDED', { limit: 'partsPerSet', max: 2 })
})

t.test('a medium that is coarser than the set requires', async (t) => {
  const opened = await open(t)
  makeFile(opened.dir, 'a', PAGE)
  await makeSet(t, opened, { id: 's', requiredGranularity: 'cache_line' })
  const members = { number: -200007, cause: { code: 'PMEM2_E_GRANULARITY_NOT_SUPPORTED', number: -100009 }, requiredGranularity: 'cache_line', availableGranularity: 'page', reason: String }
  await cannotMap(t, opened, 's', { source: file('a') }, 422, 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', members)
  await cannotMap(t, opened, 's', { source: file('new', { create: 'if_needed' }), length: PAGE }, 422, 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', members)
})

t.test('creation and growth', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const size = (name: string): number => statSync(join(opened.dir, name)).size
  await mapPart(t, opened, 's', 'new', { length: 3 * PAGE }, { create: 'if_needed', mode: '0640' })
  t.equal(size('new'), 3 * PAGE)
  t.equal(statSync(join(opened.dir, 'new')).mode & 0o777, 0o640 & ~parseInt(/^Umask:\t(\d+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0', 8))
  t.ok(statSync(join(opened.dir, 'new')).blocks * 512 >= 3 * PAGE, 'allocated')
  await mapPart(t, opened, 's', 'only', {}, { create: 'exclusive' })
  t.equal(size('only'), PAGE)
  makeFile(opened.dir, 'old', Buffer.alloc(2 * PAGE, 'x'))
  const { id } = await mapPart(t, opened, 's', 'old', {}, { create: 'if_needed' })
  t.equal(readFileSync(join(opened.dir, 'old'), 'utf8'), 'x'.repeat(2 * PAGE), 'an existing file is as it was')
  await cannotMap(t, opened, 's', { source: file('old', { create: 'always' }), length: PAGE }, 409, 'SOURCE_IN_USE')
  await must(t, opened, 'DELETE', `/sets/s/parts/${id}`)
  await mapPart(t, opened, 's', 'old', {}, { create: 'always' })
  t.same(readFileSync(join(opened.dir, 'old')), Buffer.alloc(PAGE), 'emptied')
  makeFile(opened.dir, 'small', Buffer.alloc(PAGE, 'y'))
  await mapPart(t, opened, 's', 'small', { offset: PAGE, length: 2 * PAGE }, { create: 'never', grow: true })
  t.same(readFileSync(join(opened.dir, 'small')), Buffer.concat([Buffer.alloc(PAGE, 'y'), Buffer.alloc(2 * PAGE)]))
  mkdirSync(join(opened.dir, 'deep', 'er'), { recursive: true })
  await mapPart(t, opened, 's', 'deep/er/new')
  t.ok(existsSync(join(opened.dir, 'deep', 'er', 'new')))
})

t.test('a volume that is full', { skip: cannot('mkdir m; mount -t tmpfs -o size=1m none m; umount m') }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pmemsetd-full-'))
  t.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', dir]).status, 0)
  t.teardown(() => {
    spawnSync('umount', [dir])
    rmSync(dir, { recursive: true, force: true })
  })
  const path = makeFile(dir, 'a', Buffer.alloc(PAGE, 'a'))
  const { blocks } = statSync(path)
  for (const [percent, length, code, members] of [
    ['0', 2 * MIB, 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE', { number: -200021, errno: 'ENOSPC' }], ['50', MIB * 3 / 4, 'NO_SPACE', { availableBytes: MIB / 2 - PAGE, number: undefined }]
  ] as const) {
    const opened = await open(t, { dir, env: { PMEMSETD_KEEP_FREE_PERCENT: percent } })
    await makeSet(t, opened, { id: 's' })
    for (const source of [file('a', { grow: true }), file('a', { create: 'always' }), file('new', { create: 'if_needed' })]) await cannotMap(t, opened, 's', { source, length }, 507, code, { ...members, retryable: false })
    t.same(readFileSync(path), Buffer.alloc(PAGE, 'a'))
    t.equal(statSync(path).blocks, blocks, 'nothing is allocated')
    t.match(await mapPart(t, opened, 's', 'fits', { length: MIB / 8 }), { length: MIB / 8 })
    rmSync(join(dir, 'fits'))
    await must(t, opened, 'DELETE', '/sets/s')
  }
})

t.test('coalescing', async (t) => {
  const opened = await open(t)
  const where = async (mode: string, windowSize = 4 * MIB): Promise<(id: string, length?: number) => Promise<Part>> => {
    await makeSet(t, opened, { id: mode, coalescing: mode, windowSize })
    return async (id, length = PAGE) => await mapPart(t, opened, mode, `${mode}.bin`, { id, length }, { grow: true })
  }
  const none = await where('none')
  await none('a')
  t.match(await none('b'), { coalesced: false, map: { size: PAGE } })
  const full = await where('full')
  t.match(await full('a'), { coalesced: false }, 'the first one has none to join')
  t.match(await full('b', 4 * MIB - 2 * PAGE), { coalesced: true })
  t.match(await full('c'), { coalesced: true, map: { size: 4 * MIB } }, 'to the window\'s last byte')
  await refused(t, opened, ['POST', '/sets/full/parts', { source: file('full.bin'), length: PAGE }], 409, 'PMEMSET_E_CANNOT_COALESCE_PARTS')
  await must(t, opened, 'DELETE', '/sets/full/parts/b')
  t.match((await mapsOf(t, opened, 'full')).map((map) => map.size), [PAGE, PAGE], 'split')
  const some = await where('opportunistic', 2 * MIB)
  const a = await some('a')
  await some('b', 2 * MIB - 2 * PAGE)
  await must(t, opened, 'DELETE', '/sets/opportunistic/parts/a')
  t.match(await some('c'), { coalesced: true }, 'there is a page left behind')
  t.match(await some('d'), { coalesced: false, addr: a.addr }, 'and one in front, where it goes alone')
})

t.test('the same bytes in two sets; ids; reading and removing', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  await makeSet(t, opened, { id: 'other' })
  const mine = await mapPart(t, opened, 's', 'f')
  const theirs = await mapPart(t, opened, 'other', 'f')
  await must(t, opened, 'PUT', `/sets/s/memory?addr=${mine.addr}`, Buffer.from('shared'))
  t.equal(String(await must(t, opened, 'GET', `/sets/other/memory?addr=${theirs.addr}&length=6`)), 'shared')

  const given = await mapPart(t, opened, 's', 'f', { id: 'part-3' })
  const made = await mapPart(t, opened, 's', 'f')
  t.equal(new Set([mine.id, given.id, made.id]).size, 3, `${mine.id}, ${given.id}, ${made.id}`)
  const reply = await call(t, opened, 'GET', `/sets/s/parts/${made.id}`)
  t.same(reply.json, { ...made, revision: 4 })
  t.match(reply.headers.etag, /^"[0-9a-f-]{36}\.4"$/)
  t.match((await must(t, opened, 'GET', '/sets/s/parts') as { items: Part[] }).items.map((part) => part.addr), [mine.addr, given.addr, made.addr])
  t.match((await must(t, opened, 'GET', `/sets/s/parts?addr=${plus(given.addr, -1)}&length=2`) as { items: Part[] }).items.map((part) => part.id), [mine.id, given.id])
  const first = await must(t, opened, 'GET', '/sets/s/parts?limit=2') as { items: Part[], nextCursor: string }
  t.match((await must(t, opened, 'GET', `/sets/s/parts?limit=2&cursor=${first.nextCursor}`) as { items: Part[] }), { items: [{ id: made.id }], nextCursor: undefined })

  const cursor = (key: string): string => Buffer.from(JSON.stringify(['parts', given.map.addr, '', -1, key])).toString('base64url')
  for (const wrong of [cursor(given.addr), 'x', `${first.nextCursor}x`]) await refused(t, opened, ['GET', `/sets/s/parts?cursor=${wrong}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'cursor' }] })
  const taken: [string, string, object] = ['POST', '/sets/s/parts', { id: 'part-3', source: file('f') }]
  await refused(t, opened, taken, 409, 'PART_ID_EXISTS', { location: '/sets/s/parts/part-3', revision: 4 })
  t.equal((await call(t, opened, ...taken)).headers.location, '/sets/s/parts/part-3')

  await refused(t, opened, ['DELETE', '/sets/s/parts/part-3', undefined, { 'if-match': '"stale"' }], 412, 'PRECONDITION_FAILED', { revision: 4 })
  await must(t, opened, 'DELETE', '/sets/s/parts/part-3')
  t.match((await mapsOf(t, opened, 's')).map((map) => [map.addr, map.size]), [[mine.addr, PAGE], [made.addr, PAGE]], 'its map is split')
  await refused(t, opened, ['DELETE', '/sets/s/parts/part-3'], 404, 'PMEMSET_E_PART_NOT_FOUND', { number: -200016 })
  await refused(t, opened, ['DELETE', '/sets/s/parts/part-3', undefined, { 'if-match': '"stale"' }], 404, 'PMEMSET_E_PART_NOT_FOUND')
  await refused(t, opened, ['GET', '/sets/s/parts/part-3'], 404, 'PMEMSET_E_PART_NOT_FOUND')
  await refused(t, opened, ['GET', '/sets/s/parts/P'], 400, 'PARAMETER_INVALID', { errors: [{ in: 'path', name: 'part' }] })
  t.equal((await mapPart(t, opened, 's', 'f', { id: 'part-3' })).id, 'part-3', 'free again')
  await must(t, opened, 'DELETE', '/sets/s/parts/part-3')
  t.match(await must(t, opened, 'GET', `/sets/s/parts/${made.id}`), { addr: made.addr, map: { addr: made.addr, size: PAGE } }, 'its map is trimmed')
})

t.test('many at once end in one order', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  writeFileSync(join(opened.dir, 'f'), Buffer.alloc(64 * PAGE))
  const replies = await Promise.all(Array.from({ length: 64 }, async (_, i) => (
    await call(t, opened, 'POST', '/sets/s/parts', { id: `p${i % 48}`, source: file('f'), offset: i * PAGE, length: PAGE })
  )))
  t.equal(replies.filter(({ status }) => status === 201).length, 48)
  t.equal(replies.filter(({ json }) => json.code === 'PART_ID_EXISTS').length, 16)
  t.match(await must(t, opened, 'GET', '/sets/s'), { revision: 49, partCount: 48, mapCount: 1, mappedBytes: 48 * PAGE })
  const removals = await Promise.all(Array.from({ length: 96 }, async (_, i) => await call(t, opened, 'DELETE', `/sets/s/parts/p${i % 48}`)))
  t.equal(removals.filter(({ status }) => status === 204).length, 48)
  t.match(await must(t, opened, 'GET', '/sets/s'), { revision: 97, partCount: 0, mapCount: 0, mappedBytes: 0 })
})

t.test('maps and removals at once leave a world that agrees with itself', async (t) => {
  const opened = await open(t)
  const set = await makeSet(t, opened, { id: 's', coalescing: 'opportunistic' })
  writeFileSync(join(opened.dir, 'f'), Buffer.alloc(20 * PAGE))
  for (let i = 0; i < 20; i++) await mapPart(t, opened, 's', 'f', { id: `old${i}`, offset: i * PAGE })
  const range = `addr=${set.window.addr}&length=${5 * PAGE}`
  const replies = await Promise.all(Array.from({ length: 20 }, (_, i): Array<[string, string, object?]> => [
    ['POST', '/sets/s/parts', { id: `new${i}`, source: file('f'), offset: i * PAGE, length: PAGE }], ['DELETE', `/sets/s/parts/old${i}`], ['DELETE', i % 10 === 0 ? `/sets/s/maps?${range}` : `/sets/s/parts/new${i}`]
  ]).flat().map(async ([method, url, body]) => ({ method, url, ...await call(t, opened, method, url, body) })))
  for (const { method, url, status, json } of replies) t.ok([200, 201, 204].includes(status) || (status === 404 && method === 'DELETE'), `${method} ${url}: ${status} ${JSON.stringify(json)}`)
  const done = await must(t, opened, 'GET', '/sets/s') as { revision: number, partCount: number, mapCount: number, mappedBytes: number }
  const { items: parts } = await must(t, opened, 'GET', '/sets/s/parts') as { items: Part[] }
  const maps = await mapsOf(t, opened, 's')
  t.equal(done.revision, 21 + replies.filter(({ status }) => status < 300).length, 'one revision for each change')
  t.match(done, { partCount: parts.length, mapCount: maps.length, mappedBytes: parts.length * PAGE })
  t.equal(maps.reduce((sum, { size }) => sum + size, 0), parts.length * PAGE)
  for (const part of parts) {
    t.same(await must(t, opened, 'GET', `/sets/s/parts/${part.id}`), part)
    t.match(await must(t, opened, 'GET', `/sets/s/maps?addr=${part.addr}`), { items: [{ ...part.map, part: { id: part.id, addr: part.addr, offset: part.offset } }] })
  }
})
