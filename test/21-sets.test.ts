// SPDX-License-Identifier: BSD-3-Clause
// Sets: made, listed, read, changed and deleted; their granularity, windows and limits; and that a request that is wrong changes nothing.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { PmemSet } from '../src/schemas.js'
import { call, makeSet, mapPart, MIB, must, open, PAGE, plus, refused, type Body } from './service.js'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
const JSON_TYPE = { 'content-type': 'application/json' }

interface SetPage { items: PmemSet[], nextCursor?: string }

t.test('a set that is made', async (t) => {
  const opened = await open(t)
  const first = await call(t, opened, 'POST', '/sets', { requiredGranularity: 'page' })
  const made = first.json as PmemSet
  t.match(first, { status: 201, headers: { location: `/sets/${made.id}`, etag: `"${made.uid}.1"` } })
  t.match(made, { id: /^[a-z0-9][a-z0-9._-]{0,62}$/, uid: UUID, revision: 1, requiredGranularity: 'page', effectiveGranularity: undefined, coalescing: 'none', window: { addr: /^0x[1-9a-f]/, size: 64 * 1024 * MIB }, partCount: 0, mapCount: 0, mappedBytes: 0, state: 'ready', labels: {}, createdAt: /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/ })
  t.notOk('effectiveGranularity' in made, 'what is unknown is absent')
  const read = await call(t, opened, 'GET', `/sets/${made.id}`)
  t.same([read.status, read.json, read.headers.etag], [200, made, first.headers.etag])
  const labels = { team: 'ledger', 'é 😀': '', '': 'no name' }
  for (const id of ['a', '0', 'a.b_c-d', 'x'.repeat(63)]) {
    const reply = await call(t, opened, 'POST', '/sets', { id, requiredGranularity: 'byte', coalescing: 'full', windowSize: 2 * MIB, labels })
    t.match(reply, { status: 201, headers: { location: `/sets/${id}` }, json: { id, requiredGranularity: 'byte', coalescing: 'full', window: { size: 2 * MIB } } })
    t.same((reply.json as PmemSet).labels, labels)
  }
  const again = await call(t, opened, 'POST', '/sets', { requiredGranularity: 'page', windowSize: 1 })
  t.not((again.json as PmemSet).id, made.id)
  t.not((again.json as PmemSet).uid, made.uid)
})

t.test('an id that is taken', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  await mapPart(t, opened, 's', 'f')
  const again: [string, string, Body] = ['POST', '/sets', { id: 's', requiredGranularity: 'cache_line' }]
  await refused(t, opened, again, 409, 'SET_EXISTS', { location: '/sets/s', revision: 2, number: undefined })
  t.equal((await call(t, opened, ...again)).headers.location, '/sets/s')
  const replies = await Promise.all(Array.from({ length: 8 }, async () => await call(t, opened, 'POST', '/sets', { id: 'n', requiredGranularity: 'page' })))
  t.same(replies.map(({ status }) => status).sort(), [201, ...Array<number>(7).fill(409)])
  for (const { json, headers } of replies.filter(({ status }) => status === 409)) t.match({ json, headers }, { json: { code: 'SET_EXISTS', revision: 1 }, headers: { location: '/sets/n' } })
})

t.test('windows are rounded up, and lie apart', async (t) => {
  const opened = await open(t)
  let end: string | undefined
  for (const [asked, size] of [[1, 2 * MIB], [2 * MIB - 1, 2 * MIB], [2 * MIB, 2 * MIB], [2 * MIB + 1, 4 * MIB], [5 * MIB, 6 * MIB]] as const) {
    const { window } = await makeSet(t, opened, { windowSize: asked })
    t.equal(window.size, size)
    t.equal(BigInt(window.addr) % BigInt(2 * MIB), 0n)
    if (end !== undefined) t.equal(window.addr, end, 'behind the one before it')
    end = plus(window.addr, size)
  }
})

t.test('bodies that are wrong', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', labels: { a: 'b' } })
  const at = (...pointers: string[]): object => ({ errors: pointers.map((pointer) => ({ in: 'body', pointer, reason: String })) })
  const page = '{"requiredGranularity":"page",'
  const makes: Array<[body: Body, pointer: string, code?: string, number?: number]> = [
    [{}, '/requiredGranularity', 'PMEMSET_E_GRANULARITY_NOT_SET', -200010],
    [{ requiredGranularity: 'word' }, '/requiredGranularity', 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', -200007],
    [{ requiredGranularity: 'Page' }, '/requiredGranularity', 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED'],
    [{ requiredGranularity: 'page', coalescing: 'some' }, '/coalescing', 'PMEMSET_E_INVALID_COALESCING_VALUE', -200017],
    ...[2, null, ['page'], {}].map((requiredGranularity): [Body, string] => [{ requiredGranularity }, '/requiredGranularity']),
    ...['', 'UP', '-a', '.a', '_a', 'a/b', 'a b', 'ä', 'a\n', 'x'.repeat(64), 5, null].map((id): [Body, string] => [{ requiredGranularity: 'page', id }, '/id']),
    ...[0, -1, 1.5, '12', true, null, [12], 2 ** 53].map((windowSize): [Body, string] => [{ requiredGranularity: 'page', windowSize }, '/windowSize']),
    ...['9007199254740992', '9223372036854775808', '18446744073709551616', '1e30', '1e400', '12.0000000000000000001'].map((text): [Body, string] => [`${page}"windowSize":${text}}`, '/windowSize']),
    ...[[], 'x', 5, null].map((labels): [Body, string] => [{ requiredGranularity: 'page', labels }, '/labels']),
    ...[1, null, true, {}, ['x']].map((a): [Body, string] => [{ requiredGranularity: 'page', labels: { a } }, '/labels/a']),
    ...['requiredgranularity', 'windowsize', 'uid', 'revision', 'x'].map((name): [Body, string] => [{ requiredGranularity: 'page', [name]: 'x' }, `/${name}`]),
    [`${page}"id":"a","id":"b"}`, '/id'], [`${page}"labels":{"a":"1","\\u0061":"2"}}`, '/labels/a'], [`${page}"labels":{"__proto__":"a"}}`, '/labels/__proto__'],
    [`${page}"labels":{"a":"\\ud800"}}`, '/labels/a'], [`${page}"labels":{"\\udc00":"a"}}`, '/labels'], [`${page}"id":"\\ud800"}`, '/id'],
    ['[]', ''], ['"x"', ''], ['5', ''], ['null', ''], ['{', ''], [undefined, '']
  ]
  for (const [body, pointer, code = 'REQUEST_INVALID', number] of makes) await refused(t, opened, ['POST', '/sets', body], 400, code, { ...at(pointer), ...(number === undefined ? {} : { number }) })
  const octets = Buffer.concat([Buffer.from(`${page}"labels":{"a":"`), Buffer.from([0xff]), Buffer.from('"}}')])
  for (const [method, url] of [['POST', '/sets'], ['PATCH', '/sets/s']] as const) {
    await refused(t, opened, [method, url, octets, JSON_TYPE], 400, 'REQUEST_INVALID', at(''))
    await refused(t, opened, [method, url, '{}', { 'content-type': 'text/plain' }], 415, 'MEDIA_TYPE_UNSUPPORTED')
    await refused(t, opened, [method, `${url}?x=1`, method === 'POST' ? { requiredGranularity: 'page' } : {}], 400, 'PARAMETER_UNKNOWN', { errors: [{ in: 'query', name: 'x' }] })
  }
  const changes: Array<[body: Body, pointer: string, code?: string]> = [
    [{ coalescing: 'some' }, '/coalescing', 'PMEMSET_E_INVALID_COALESCING_VALUE'], [{ coalescing: null }, '/coalescing'], [{ coalescing: 1 }, '/coalescing'],
    ...['id', 'requiredGranularity', 'windowSize', 'state', 'label'].map((name): [Body, string] => [{ [name]: 'x' }, `/${name}`]),
    [{ labels: null }, '/labels'], [{ labels: ['a'] }, '/labels'], [{ labels: { a: null } }, '/labels/a'], [{ coalescing: 'full', labels: { a: 1 } }, '/labels/a'],
    ['{"coalescing":"full","coalescing":"none"}', '/coalescing'], ['{"labels":{"a":"\\udfff"}}', '/labels/a'], ['[]', ''], ['null', ''], [undefined, '']
  ]
  for (const [body, pointer, code = 'REQUEST_INVALID'] of changes) await refused(t, opened, ['PATCH', '/sets/s', body], 400, code, at(pointer))
})

t.test('ids in paths', async (t) => {
  const opened = await open(t)
  for (const [method, rest, body] of [['GET', ''], ['PATCH', '', {}], ['DELETE', ''], ['GET', '/granularity']] as Array<[string, string, Body?]>) {
    for (const id of ['UP', '-a', 'a%2Fb', 'a%00', 'a%0a', '%20', '%C3%A4', 'x'.repeat(64)]) {
      await refused(t, opened, [method, `/sets/${id}${rest}`, body], 400, 'PARAMETER_INVALID', { errors: [{ in: 'path', name: 'set' }] })
    }
    await refused(t, opened, [method, `/sets/%ff${rest}`, body], 400, 'PARAMETER_INVALID', { errors: [{ in: 'path' }] })
    for (const id of ['gone', 'constructor', 'x'.repeat(63)]) await refused(t, opened, [method, `/sets/${id}${rest}`, body], 404, 'SET_NOT_FOUND', { number: undefined })
  }
})

t.test('lists and their pages', async (t) => {
  const opened = await open(t)
  const ids = ['0', 'a', 'a-', 'a.b', 'a0', 'b', 'z']
  for (const id of [...ids].reverse()) await makeSet(t, opened, { id, windowSize: 1 })
  const list = async (query = ''): Promise<SetPage> => await must(t, opened, 'GET', `/sets${query}`) as SetPage
  t.same((await list()).items.map(({ id }) => id), ids)
  t.same((await list()).items[1], await must(t, opened, 'GET', '/sets/a'))
  t.same(await list('?limit=7'), await list(), 'all of them are one page')
  const pages = async (limit: number, between: (page: number) => Promise<void> = async () => {}): Promise<string[]> => {
    const seen: string[] = []
    let cursor: string | undefined = ''
    for (let page = 1; cursor !== undefined; page++) {
      const { items, nextCursor }: SetPage = await list(`?limit=${limit}${cursor === '' ? '' : `&cursor=${cursor}`}`)
      t.ok(items.length <= limit)
      seen.push(...items.map(({ id }) => id))
      cursor = nextCursor
      await between(page)
    }
    return seen
  }
  for (const limit of [1, 2, 3, 6, 7, 8]) t.same(await pages(limit), ids, `pages of ${limit}`)

  const { nextCursor: ofSets = '' } = await list('?limit=2')
  for (let i = 0; i < 2; i++) await mapPart(t, opened, 'b', 'f')
  const { nextCursor: ofParts } = await must(t, opened, 'GET', '/sets/b/parts?limit=1') as SetPage
  const { nextCursor: ofMaps } = await must(t, opened, 'GET', '/sets/b/maps?limit=1') as SetPage
  const made = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
  for (const cursor of [ofParts, ofMaps, 'x', '-', '%00', '0', 'null', `${ofSets}A`, `${ofSets}=`, ofSets.slice(1), ofSets.slice(0, -4), made(null), made({}), made('a'), made(['sets', '', '', -1]), made(['sets', '', '', -1, 5]), made(['sets', '', '', -1, 'a', 'b']), made(['sets', '', '', -1, 'UP'])]) {
    await refused(t, opened, ['GET', `/sets?cursor=${cursor}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'cursor' }] })
  }
  for (const list of ['parts', 'maps']) await refused(t, opened, ['GET', `/sets/b/${list}?cursor=${ofSets}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'cursor' }] })
  for (const limit of ['0', '-1', '01', '1.0', '1e3', 'x', '9007199254740992', '']) await refused(t, opened, ['GET', `/sets?limit=${limit}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'limit' }] })
  await refused(t, opened, ['GET', '/sets?limit=1&limit=1'], 400, 'PARAMETER_INVALID')
  for (const query of ['id=a', 'addr=0x0', 'Limit=1']) await refused(t, opened, ['GET', `/sets?${query}`], 400, 'PARAMETER_UNKNOWN')

  t.same(await pages(2, async (page) => {
    if (page !== 1) return
    for (const id of ['a', 'b']) await must(t, opened, 'DELETE', `/sets/${id}`)
    for (const id of ['00', 'c']) await makeSet(t, opened, { id, windowSize: 1 })
  }), ['0', 'a', 'a-', 'a.b', 'a0', 'c', 'z'], 'the last one told is gone, and so is one to come; of the new ones that behind is told')
})

t.test('more sets than a page can hold', async (t) => {
  const opened = await open(t, { env: { PMEMSETD_SETS_MAX: '1001' } })
  for (let i = 0; i < 1001; i++) await makeSet(t, opened, { windowSize: 1 })
  for (const [query, items] of [['', 50], ['?limit=1000', 1000], ['?limit=1001', 1000], ['?limit=9007199254740991', 1000]] as const) {
    const page = await must(t, opened, 'GET', `/sets${query}`) as SetPage
    t.equal(page.items.length, items)
    t.ok(page.nextCursor, query)
  }
  t.equal(await call(t, opened, 'POST', '/sets', { requiredGranularity: 'page' }).then(({ json }) => json.code as string), 'LIMIT_EXCEEDED')
})

t.test('changes', async (t) => {
  const opened = await open(t)
  const before = await makeSet(t, opened, { id: 's', labels: { a: '1', b: '2' }, windowSize: 4 * MIB })
  const patch = async (body: object, revision: number, expected: object): Promise<void> => {
    const reply = await call(t, opened, 'PATCH', '/sets/s', body)
    t.equal(reply.headers.etag, `"${before.uid}.${revision}"`)
    t.same(reply.json, { ...before, revision, ...expected })
    t.same(await must(t, opened, 'GET', '/sets/s'), reply.json)
  }
  await patch({ labels: { c: '3' } }, 2, { labels: { c: '3' } })
  await patch({}, 3, { labels: { c: '3' } })
  await patch({ coalescing: 'full' }, 4, { labels: { c: '3' }, coalescing: 'full' })
  await patch({ labels: {}, coalescing: 'none' }, 5, { labels: {} })
  await mapPart(t, opened, 's', 'f')
  t.match(await mapPart(t, opened, 's', 'f'), { coalesced: false })
  await must(t, opened, 'PATCH', '/sets/s', { coalescing: 'full' })
  t.match(await must(t, opened, 'GET', '/sets/s'), { mapCount: 2, coalescing: 'full' }, 'what is mapped stays as it is')
  t.match(await mapPart(t, opened, 's', 'f'), { coalesced: true, map: { size: 2 * PAGE } }, 'from the next part on')
  await must(t, opened, 'PATCH', '/sets/s', { coalescing: 'none' })
  t.match(await mapPart(t, opened, 's', 'f'), { coalesced: false, map: { size: PAGE } })
})

t.test('deletion ends a set for ever, whatever is made under its id', async (t) => {
  const opened = await open(t)
  const first = await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'f', { id: 'p' })
  await must(t, opened, 'PUT', `/sets/s/memory?addr=${addr}&durability=none`, Buffer.from('kept'))
  const { etag } = (await call(t, opened, 'GET', '/sets/s')).headers
  const gone = await call(t, opened, 'DELETE', '/sets/s')
  t.same([gone.status, gone.bytes.length], [204, 0])
  t.equal(readFileSync(join(opened.dir, 'f'), 'latin1').slice(0, 4), 'kept')
  await refused(t, opened, ['DELETE', '/sets/s'], 404, 'SET_NOT_FOUND')
  const second = await makeSet(t, opened, { id: 's' })
  t.not(second.uid, first.uid)
  t.match(second, { revision: 1, partCount: 0, window: first.window }, 'its addresses are free again')
  await mapPart(t, opened, 's', 'f', { id: 'p' })
  t.not((await call(t, opened, 'GET', '/sets/s')).headers.etag, etag)
  const changes: Array<[string, string, Body?]> = [['PATCH', '/sets/s', {}], ['DELETE', '/sets/s'], ['DELETE', '/sets/s/parts/p'], ['DELETE', `/sets/s/maps/${addr}`], ['PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('x')]]
  for (const [method, url, body] of changes) await refused(t, opened, [method, url, body, { 'if-match': String(etag) }], 412, 'PRECONDITION_FAILED', { revision: 2 })
  const twice = await Promise.all(Array.from({ length: 4 }, async () => (await call(t, opened, 'DELETE', '/sets/s')).status))
  t.same(twice.sort(), [204, 404, 404, 404])
})

t.test('granularity', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const never = ['GET', '/sets/s/granularity'] as [string, string]
  await refused(t, opened, never, 404, 'PMEMSET_E_NO_PART_MAPPED', { number: -200012 })
  t.equal((await call(t, opened, 'POST', '/sets/s/parts', { source: { type: 'file', path: 'gone' } })).status, 422)
  await refused(t, opened, never, 404, 'PMEMSET_E_NO_PART_MAPPED')
  await mapPart(t, opened, 's', 'f', { id: 'p' })
  t.same(await must(t, opened, ...never), { granularity: 'page' })
  await must(t, opened, 'DELETE', '/sets/s/parts/p')
  t.same(await must(t, opened, ...never), { granularity: 'page' }, 'it stays when the parts go')
  t.match(await must(t, opened, 'GET', '/sets/s'), { effectiveGranularity: 'page', partCount: 0 })
})

t.test('limits', async (t) => {
  const opened = await open(t, { env: { PMEMSETD_SETS_MAX: '3', PMEMSETD_WINDOW_BYTES_DEFAULT: '2MiB', PMEMSETD_WINDOW_BYTES_MAX: '8MiB', PMEMSETD_WINDOW_BYTES_TOTAL_MAX: '9MiB', PMEMSETD_LABELS_MAX: '2', PMEMSETD_LABEL_NAME_CHARS_MAX: '3', PMEMSETD_LABEL_VALUE_CHARS_MAX: '4' } })
  const { limits } = await must(t, opened, 'GET', '/capabilities') as { limits: Record<string, number> }
  const over = async (method: string, url: string, body: object, limit: string, headers?: Record<string, string>): Promise<void> => {
    await refused(t, opened, [method, url, body, headers], 409, 'LIMIT_EXCEEDED', { limit, max: limits[limit], number: undefined, retryable: false })
  }
  const make = { requiredGranularity: 'page' }
  t.match(limits, { sets: 3, windowBytesDefault: 2 * MIB, windowBytes: 8 * MIB, windowBytesTotal: 9 * MIB, labels: 2, labelNameChars: 3, labelValueChars: 4 })
  await makeSet(t, opened, { id: 's', windowSize: 4 * MIB, labels: { '😀😀😀': '😀😀😀😀', b: '' } })
  for (const [labels, limit] of [[{ a: '', b: '', c: '' }, 'labels'], [{ '😀😀😀😀': '' }, 'labelNameChars'], [{ abcd: '' }, 'labelNameChars'], [{ a: 'abcde' }, 'labelValueChars']] as const) {
    await over('POST', '/sets', { ...make, labels }, limit)
    await over('PATCH', '/sets/s', { coalescing: 'full', labels }, limit)
    await refused(t, opened, ['PATCH', '/sets/s', { labels }, { 'if-match': '"stale"' }], 412, 'PRECONDITION_FAILED', { revision: 1 })
  }
  for (const windowSize of [8 * MIB + 1, Number.MAX_SAFE_INTEGER]) await over('POST', '/sets', { ...make, windowSize }, 'windowBytes')
  await over('POST', '/sets', { ...make, windowSize: 6 * MIB }, 'windowBytesTotal')
  await over('POST', '/sets', { ...make, windowSize: 4 * MIB + 1 }, 'windowBytesTotal')
  await makeSet(t, opened, { id: 'b', windowSize: 4 * MIB })
  await over('POST', '/sets', { ...make, windowSize: 1 }, 'windowBytesTotal')
  await must(t, opened, 'DELETE', '/sets/b')
  const both = await Promise.allSettled([0, 1].map(async () => await opened.service.sets.create({ requiredGranularity: 'page', windowSize: 4 * MIB }, undefined)))
  t.match(both, [{ status: 'fulfilled' }, { status: 'rejected', reason: { code: 'LIMIT_EXCEEDED', extras: { limit: 'windowBytesTotal' } } }], 'one that is being made counts')
  for (const { id } of (await must(t, opened, 'GET', '/sets') as SetPage).items) await must(t, opened, 'DELETE', `/sets/${id}`)
  for (const id of ['x', 'y', 'z']) await makeSet(t, opened, { id })
  await over('POST', '/sets', make, 'sets')
  await refused(t, opened, ['POST', '/sets', { ...make, id: 'x' }], 409, 'SET_EXISTS', { location: '/sets/x' })
  await must(t, opened, 'DELETE', '/sets/y')
  await makeSet(t, opened, { id: 'w' })
})
