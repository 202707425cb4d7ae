// SPDX-License-Identifier: BSD-3-Clause
// Part maps: look-up at every boundary, lists, removal by start and by range, and what If-Match guards.
import t, { type Test } from 'tap'
import type { PartMap, Removal } from '../src/schemas.js'
import { call, makeSet, mapPart, mapsOf, must, open, PAGE, plus, refused, type Opened } from './service.js'

const SPACE_END = 0xffffffffffffffffn
const NOT_FOUND = [404, 'PMEMSET_E_CANNOT_FIND_PART_MAP'] as const

/** A set whose parts of one page each, of one file, lie side by side in one map. */
async function row (t: Test, opened: Opened, id: string, parts: number): Promise<string[]> {
  await makeSet(t, opened, { id, coalescing: 'full' })
  const addrs: string[] = []
  for (let i = 0; i < parts; i++) addrs.push((await mapPart(t, opened, id, `${id}.bin`, { id: `p${i}`, offset: i * PAGE }, { grow: true })).addr)
  return addrs
}

/** Look-up of every boundary of these maps, which are all that the set has. */
async function boundaries (t: Test, opened: Opened, set: string, maps: Array<[addr: string, size: number]>): Promise<void> {
  const holds = (at: bigint): boolean => maps.some(([addr, size]) => at >= BigInt(addr) && at < BigInt(addr) + BigInt(size))
  const addresses = new Set<bigint>([0n, 1n, SPACE_END, SPACE_END - 1n])
  for (const [addr, size] of maps) for (const edge of [-1, 0, 1, size - 1, size, size + PAGE - 1]) addresses.add(BigInt(addr) + BigInt(edge))
  for (const at of addresses) {
    const url = `/sets/${set}/maps?addr=0x${at.toString(16)}`
    if (holds(at)) {
      const { items } = await must(t, opened, 'GET', url) as { items: PartMap[] }
      const [map] = items
      t.equal(items.length, 1)
      t.ok(map !== undefined && maps.some(([addr, size]) => addr === map.addr && size === map.size), `${url}: ${JSON.stringify(map)}`)
      t.ok(map?.part !== undefined && at >= BigInt(map.part.addr) && at < BigInt(map.part.addr) + BigInt(map.part.length), `${url}: its part holds it`)
    } else {
      await refused(t, opened, ['GET', url], ...NOT_FOUND, { number: -200013 })
    }
  }
}

t.test('look-up at every boundary: plain, coalesced, trimmed, split', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 'plain' })
  const { addr: first } = await mapPart(t, opened, 'plain', 'a.bin')
  const { addr: second } = await mapPart(t, opened, 'plain', 'b.bin', { length: 3 * PAGE })
  t.equal(second, plus(first, PAGE), 'side by side, and two maps all the same')
  await boundaries(t, opened, 'plain', [[first, PAGE], [second, 3 * PAGE]])
  await must(t, opened, 'DELETE', `/sets/plain/maps/${first}`)
  await boundaries(t, opened, 'plain', [[second, 3 * PAGE]])

  const [p0, p1, , p3] = await row(t, opened, 'c', 6) as [string, string, string, string]
  await boundaries(t, opened, 'c', [[p0, 6 * PAGE]])
  await must(t, opened, 'DELETE', '/sets/c/parts/p0')
  await boundaries(t, opened, 'c', [[p1, 5 * PAGE]])
  await must(t, opened, 'DELETE', '/sets/c/parts/p2')
  await boundaries(t, opened, 'c', [[p1, PAGE], [p3, 3 * PAGE]])
  await must(t, opened, 'DELETE', '/sets/c/parts/p5')
  await boundaries(t, opened, 'c', [[p1, PAGE], [p3, 2 * PAGE]])
})

t.test('a neighbour set begins where a window ends', async (t) => {
  const opened = await open(t)
  const windowSize = 2 * 1024 * 1024
  const left = await makeSet(t, opened, { id: 'left', windowSize })
  const right = await makeSet(t, opened, { id: 'right', windowSize })
  t.equal(right.window.addr, plus(left.window.addr, windowSize))
  await mapPart(t, opened, 'left', 'l.bin', { length: windowSize })
  await mapPart(t, opened, 'right', 'r.bin', { length: windowSize })
  const { addr } = right.window
  await refused(t, opened, ['GET', `/sets/left/maps?addr=${addr}`], ...NOT_FOUND)
  await refused(t, opened, ['GET', `/sets/left/maps/${addr}`], ...NOT_FOUND)
  await refused(t, opened, ['GET', `/sets/left/memory?addr=${plus(addr, -1)}&length=2`], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { map: { addr: left.window.addr, size: windowSize } })
  await refused(t, opened, ['PUT', `/sets/left/memory?addr=${plus(addr, -1)}`, Buffer.from('xx')], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE')
  await refused(t, opened, ['DELETE', `/sets/left/maps?addr=${addr}&length=1`], ...NOT_FOUND)
  t.same((await must(t, opened, 'GET', `/sets/left/maps?addr=${addr}&length=1`) as { items: PartMap[] }).items, [])
})

t.test('addresses and parameters that are none', async (t) => {
  const opened = await open(t)
  const [p0 = ''] = await row(t, opened, 's', 1)
  const digits = p0.slice(2)
  for (const addr of [digits, `0x0${digits}`, `0x${digits}`.toUpperCase(), `0X${digits}`, '0x', '0x10000000000000000', '0xABC', `-${p0}`, ` ${p0}`, `${p0}.0`, '1e3', '0x1g']) {
    await refused(t, opened, ['GET', `/sets/s/maps?addr=${encodeURIComponent(addr)}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'addr' }] })
    await refused(t, opened, ['DELETE', `/sets/s/maps?addr=${encodeURIComponent(addr)}&length=1`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'addr' }] })
    await refused(t, opened, ['GET', `/sets/s/maps/${encodeURIComponent(addr)}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'path', name: 'addr' }] })
    await refused(t, opened, ['DELETE', `/sets/s/maps/${encodeURIComponent(addr)}`], 400, 'PARAMETER_INVALID', { errors: [{ in: 'path', name: 'addr' }] })
  }
  const cases: Array<[method: string, query: string, code: string, name: string]> = [
    ['GET', `?addr=${p0}&addr=${p0}`, 'PARAMETER_INVALID', 'addr'], ['GET', '?length=1', 'PARAMETER_INVALID', 'addr'], ['GET', '?addr=', 'PARAMETER_INVALID', 'addr'],
    ['GET', `?addr=${p0}&limit=10`, 'PARAMETER_INVALID', 'length'], ['GET', `?addr=${p0}&cursor=x`, 'PARAMETER_INVALID', 'length'],
    ['GET', '?limit=0', 'PARAMETER_INVALID', 'limit'], ['GET', '?cursor=x', 'PARAMETER_INVALID', 'cursor'], ['GET', `?address=${p0}`, 'PARAMETER_UNKNOWN', 'address'],
    ['GET', `?addr=${p0}&length=9007199254740992`, 'PARAMETER_INVALID', 'length'], ['GET', `?addr=${p0}&length=0x10`, 'PARAMETER_INVALID', 'length'],
    ['DELETE', '', 'PARAMETER_INVALID', 'addr'], ['DELETE', `?addr=${p0}`, 'PARAMETER_INVALID', 'length'], ['DELETE', '?length=1', 'PARAMETER_INVALID', 'addr'],
    ['DELETE', `?addr=${p0}&length=1&dryrun=true`, 'PARAMETER_UNKNOWN', 'dryrun'], ['DELETE', `?addr=${p0}&length=1&dryRun=ture`, 'PARAMETER_INVALID', 'dryRun'],
    ['DELETE', `?addr=${p0}&length=1&dryRun=1`, 'PARAMETER_INVALID', 'dryRun'], ['DELETE', `?addr=${p0}&length=1e3`, 'PARAMETER_INVALID', 'length'],
    ['DELETE', `?addr=${p0}&length=-1`, 'PARAMETER_INVALID', 'length'], ['DELETE', `?addr=${p0}&length=1&force=true`, 'PARAMETER_UNKNOWN', 'force']
  ]
  for (const [method, query, code, name] of cases) await refused(t, opened, [method, `/sets/s/maps${query}`], 400, code, { errors: [{ in: 'query', name }] })
  for (const [query, ...verdict] of [[`?addr=${p0}&length=0`, 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE'], ['?addr=0xffffffffffffffff&length=2', 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE'],
    [`?addr=${p0}&length=9007199254740991`, 200, ''], [`?addr=${plus(p0, PAGE)}&length=4096`, ...NOT_FOUND], [`?addr=${plus(p0, -1)}&length=1`, ...NOT_FOUND]] as Array<[string, number, string]>) {
    if (verdict[0] !== 200) await refused(t, opened, ['DELETE', `/sets/s/maps${query}`], ...verdict)
  }
})

t.test('lists by range, and their pages', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const addrs: string[] = []
  for (let i = 0; i < 7; i++) addrs.push((await mapPart(t, opened, 's', 's.bin')).addr)
  const at = (i: number): string => addrs[i] ?? ''
  const list = async (query: string): Promise<{ items: PartMap[], nextCursor?: string }> => await must(t, opened, 'GET', `/sets/s/maps${query}`) as { items: PartMap[] }
  const found = async (addr: string, length: number): Promise<string[]> => (await list(`?addr=${addr}&length=${length}`)).items.map((map) => map.addr)
  t.same(await found(at(1), 1), [at(1)])
  t.same(await found(plus(at(2), -1), 1), [at(1)])
  t.same(await found(plus(at(2), -1), 2), [at(1), at(2)], 'one byte of each')
  t.same(await found(at(0), 0), [], 'no byte touches none')
  t.same(await found(plus(at(6), PAGE), 4096), [])
  t.same(await found('0x0', Number.MAX_SAFE_INTEGER), addrs)
  t.same(await found('0xffffffffffffffff', 1), [])
  await refused(t, opened, ['GET', '/sets/s/maps?addr=0xffffffffffffffff&length=2'], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE')

  const pages = async (query: string, between: () => Promise<void> = async () => {}): Promise<string[]> => {
    const seen: string[] = []
    for (let cursor: string | undefined = ''; cursor !== undefined;) {
      const page = await list(`?limit=2${query}${cursor === '' ? '' : `&cursor=${cursor}`}`)
      t.ok(page.items.length <= 2)
      seen.push(...page.items.map((map) => map.addr))
      cursor = page.nextCursor
      await between()
    }
    return seen
  }
  t.same(await pages(''), addrs)
  t.same(await pages(`&addr=${at(1)}&length=${3 * PAGE}`), addrs.slice(1, 4))
  const { nextCursor = '' } = await list('?limit=2')
  t.same((await list('?limit=1000')).items.length, 7)
  for (const [url, why] of [[`/sets/s/parts?limit=2&cursor=${nextCursor}`, 'of parts'], [`/sets/s/maps?addr=${at(0)}&length=1&cursor=${nextCursor}`, 'of another range'], [`/sets/s/maps?cursor=${nextCursor}x`, 'changed']] as const) {
    await refused(t, opened, ['GET', url], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'cursor' }] })
    t.pass(why)
  }
  const { uid } = await must(t, opened, 'GET', '/sets/s') as { uid: string }
  const made = (list: string, key: string, addr = '', length = -1): string => Buffer.from(JSON.stringify([list, uid, addr, length, key])).toString('base64url')
  for (const list of ['maps', 'parts']) {
    for (const key of ['', 'x', '-5', '5', 'ffff', '0x00', '0xA', '0x10000000000000000']) await refused(t, opened, ['GET', `/sets/s/${list}?cursor=${made(list, key)}`], 400, 'PARAMETER_INVALID', { errors: [{ name: 'cursor' }] })
    const { items } = await must(t, opened, 'GET', `/sets/s/${list}?addr=${at(2)}&length=1&cursor=${made(list, '0x0', at(2), 1)}`) as { items: PartMap[] }
    t.same(items.map((item) => item.addr), [at(2)], 'a key in front of the range gives nothing outside of it')
  }
  const inside = `addr=${plus(at(1), 1)}&length=${PAGE}&limit=1`
  const { nextCursor: second = '' } = await list(`?${inside}`)
  t.same((await list(`?${inside}&cursor=${second}`)).items.map((map) => map.addr), [at(2)], 'behind a map that starts in front of the range')
  let gone = 0
  t.same(await pages('', async () => { if (gone++ === 0) await must(t, opened, 'DELETE', `/sets/s/maps/${at(1)}`) }), addrs, 'the last one of a page goes: nothing is skipped')
  t.same(await pages(''), addrs.filter((addr) => addr !== at(1)))
  let come = 0
  const back = async (): Promise<void> => {
    if (come++ !== 0) return
    await must(t, opened, 'DELETE', `/sets/s/maps/${at(0)}`)
    for (let i = 0; i < 3; i++) await mapPart(t, opened, 's', 's.bin')
  }
  t.same(await pages('', back), [...addrs.filter((addr) => addr !== at(1)), plus(at(6), PAGE)], 'of those that come, the ones behind are told, and none twice')
  await must(t, opened, 'DELETE', '/sets/s')
  await makeSet(t, opened, { id: 's' })
  await refused(t, opened, ['GET', `/sets/s/maps?cursor=${nextCursor}`], 400, 'PARAMETER_INVALID', { errors: [{ name: 'cursor' }] })
})

t.test('a dry run tells what the removal then does, and changes nothing', async (t) => {
  const opened = await open(t)
  const p = await row(t, opened, 's', 6) as [string, string, string, string, string, string]
  await must(t, opened, 'PATCH', '/sets/s', { coalescing: 'none' })
  const { addr: other } = await mapPart(t, opened, 's', 'other.bin', { id: 'other' })
  const cases: Array<[addr: string, length: number, expected: Partial<Removal>]> = [
    [plus(p[2], 5), 1, { removed: [{ id: 'p2', addr: p[2], length: PAGE }], split: [{ before: { addr: p[0], size: 6 * PAGE }, after: [{ addr: p[0], size: 2 * PAGE }, { addr: p[3], size: 3 * PAGE }] }], trimmed: [] }],
    [plus(p[1], 1), PAGE, { removed: [{ id: 'p1', addr: p[1], length: PAGE }], trimmed: [{ before: { addr: p[0], size: 2 * PAGE }, after: { addr: p[0], size: PAGE } }], split: [] }],
    [plus(p[3], -1), 2, { removed: [{ id: 'p3', addr: p[3], length: PAGE }], trimmed: [{ before: { addr: p[3], size: 3 * PAGE }, after: { addr: p[4], size: 2 * PAGE } }], split: [] }],
    [p[0], 16 * PAGE, { removedCount: 4, trimmed: [], split: [] }]
  ]
  for (const [addr, length, expected] of cases) {
    const before = await mapsOf(t, opened, 's')
    const etag = (await call(t, opened, 'GET', '/sets/s')).headers.etag
    const dry = await call(t, opened, 'DELETE', `/sets/s/maps?addr=${addr}&length=${length}&dryRun=true`)
    t.match(dry.json, { dryRun: true, removedCount: expected.removed?.length ?? 4, ...expected })
    t.equal(dry.headers.etag, etag)
    t.same(await mapsOf(t, opened, 's'), before)
    const real = await call(t, opened, 'DELETE', `/sets/s/maps?addr=${addr}&length=${length}`, undefined, { 'if-match': String(etag) })
    t.same(real.json, { ...dry.json, dryRun: false })
    t.not(real.headers.etag, etag)
  }
  t.same(await mapsOf(t, opened, 's'), [], `and the one at ${other} went with the last range`)
})

t.test('a report holds at most a thousand parts, and the whole count', async (t) => {
  const opened = await open(t)
  await row(t, opened, 's', 0)
  const size = 1003
  await mapPart(t, opened, 's', 'big.bin', { id: 'seed', length: size * PAGE })
  await must(t, opened, 'DELETE', '/sets/s/parts/seed')
  let last = ''
  for (let i = 0; i < size; i++) last = (await mapPart(t, opened, 's', 'big.bin', { offset: i * PAGE })).map.addr
  const removal = await must(t, opened, 'DELETE', `/sets/s/maps?addr=${last}&length=${size * PAGE}`) as Removal
  t.match({ shown: removal.removed.length, ...removal, removed: [] }, { shown: 1000, removedCount: size, truncated: true, trimmed: [], split: [] })
  t.match(await must(t, opened, 'GET', '/sets/s'), { partCount: 0, mapCount: 0, mappedBytes: 0 })
})

t.test('If-Match guards every change', async (t) => {
  const opened = await open(t)
  const [p0 = '', p1 = ''] = await row(t, opened, 's', 2)
  const etag = String((await call(t, opened, 'GET', '/sets/s')).headers.etag)
  t.match(etag, /^"[0-9a-f-]{36}\.3"$/)
  const stale = etag.replace('.3', '.2')
  const range = { ranges: [{ addr: p0, length: 1 }] }
  const changes: Array<[method: string, path: string, body?: object | Buffer]> = [
    ['PATCH', '', { labels: {} }], ['DELETE', ''], ['POST', '/parts', { source: { type: 'file', path: 's.bin' } }], ['DELETE', '/parts/p0'], ['DELETE', `/maps/${p0}`], ['DELETE', `/maps?addr=${p0}&length=1`],
    ['DELETE', `/maps?addr=${p0}&length=1&dryRun=true`], ['PUT', `/memory?addr=${p0}`, Buffer.from('x')], ['POST', '/persist', range], ['POST', '/flush', range], ['POST', '/deep-flush', range], ['POST', '/drain']
  ]
  for (const [method, path, body] of changes) {
    for (const wrong of [stale, `W/${etag}`, '"x"', `"x", ${stale}`]) await refused(t, opened, [method, `/sets/s${path}`, body, { 'if-match': wrong }], 412, 'PRECONDITION_FAILED', { revision: 3 })
    for (const malformed of ['x', '3', etag.slice(1), `${etag},,`]) await refused(t, opened, [method, `/sets/s${path}`, body, { 'if-match': malformed }], 400, 'PARAMETER_INVALID', { errors: [{ in: 'header', name: 'if-match' }] })
  }
  for (const right of [etag, '*', `"x", ${etag}`]) t.equal((await call(t, opened, 'PUT', `/sets/s/memory?addr=${p1}`, Buffer.from('x'), { 'if-match': right })).status, 200, right)
  await refused(t, opened, ['POST', '/sets', { id: 'new', requiredGranularity: 'page' }, { 'if-match': etag }], 412, 'PRECONDITION_FAILED')
  t.equal((await call(t, opened, 'DELETE', '/sets/s', undefined, { 'if-match': etag })).status, 204)
  await row(t, opened, 's', 2)
  await refused(t, opened, ['DELETE', '/sets/s', undefined, { 'if-match': etag }], 412, 'PRECONDITION_FAILED')
})
