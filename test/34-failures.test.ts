// SPDX-License-Identifier: BSD-3-Clause
// Flushes that fail, on a disk that does: who is told, what is listed, and that what is acknowledged is so. What the disk has is asked of the disk itself.
import t, { type Test } from 'tap'
import { digestOf, type Scope } from '../src/plugins/tokens.js'
import type { Failure, Part, PmemSet } from '../src/schemas.js'
import { brokenDisk, cannotBreak } from './media.js'
import { call, makeSet, mapPart, must, open, PAGE, plus, refused, type Opened } from './service.js'

async function failuresOf (t: Test, opened: Opened, set: string): Promise<Failure[]> {
  return (await must(t, opened, 'GET', `/sets/${set}/failures`) as { items: Failure[] }).items
}

async function theFailure (t: Test, opened: Opened, set: string): Promise<Failure> {
  const [failure, ...more] = await failuresOf(t, opened, set)
  t.same(more, [], 'one failure')
  if (failure === undefined) throw new Error('no failure')
  return failure
}

async function stateOf (t: Test, opened: Opened, set: string): Promise<PmemSet> {
  return await must(t, opened, 'GET', `/sets/${set}`) as PmemSet
}

/** Two sets of one file, four pages; `twin` has its last two. */
async function twoSets (t: Test, opened: Opened, path: string): Promise<{ addr: string, twin: string }> {
  await makeSet(t, opened, { id: 's' })
  await makeSet(t, opened, { id: 'twin' })
  const { addr } = await mapPart(t, opened, 's', path, { id: 'p', length: 4 * PAGE }, { create: 'never' })
  const other = await mapPart(t, opened, 'twin', path, { id: 'p', offset: 2 * PAGE, length: 2 * PAGE }, { create: 'never' })
  return { addr, twin: other.addr }
}

async function isWell (t: Test, opened: Opened, set: string, addr: string): Promise<void> {
  t.same(await failuresOf(t, opened, set), [])
  t.match(await stateOf(t, opened, set), { state: 'ready' })
  t.match(await must(t, opened, 'GET', `/sets/${set}/parts/p`) as Part, { state: 'mapped', problem: undefined })
  t.match(await must(t, opened, 'PUT', `/sets/${set}/memory?addr=${addr}`, Buffer.from('well')), { durability: 'persisted' })
  t.match(await must(t, opened, 'POST', `/sets/${set}/persist`, { ranges: [{ addr, length: PAGE }] }), { durability: 'persisted' })
}

t.test('a set without failures', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const reply = await call(t, opened, 'GET', '/sets/s/failures')
  t.match([reply.status, reply.json, reply.headers.etag], [200, { items: [] }, /^".*\.1"$/])
  for (const id of ['failure-0', 'failure-1', 'x', 'failure-9007199254740993']) await refused(t, opened, ['POST', `/sets/s/failures/${id}/acknowledge`, { action: 'rewrite' }], 404, 'FAILURE_NOT_FOUND')
  // There is none, which is told before the version is looked at.
  await refused(t, opened, ['POST', '/sets/s/failures/failure-1/acknowledge', { action: 'rewrite' }, { 'if-match': '"other.1"' }], 404, 'FAILURE_NOT_FOUND')
  for (const body of [{}, { action: 'ignore' }, { action: 'rewrite', force: true }, { action: 1 }, undefined]) await refused(t, opened, ['POST', '/sets/s/failures/failure-1/acknowledge', body], 400, 'REQUEST_INVALID')
  await refused(t, opened, ['POST', '/sets/s/failures/UPPER/acknowledge', { action: 'rewrite' }], 400, 'PARAMETER_INVALID')
  await refused(t, opened, ['GET', '/sets/none/failures'], 404, 'SET_NOT_FOUND')
  await refused(t, opened, ['POST', '/sets/none/failures/failure-1/acknowledge', { action: 'rewrite' }], 404, 'SET_NOT_FOUND')
})

t.test('to read failures takes read, to acknowledge one takes admin', async (t) => {
  const tokens = new Map([[digestOf('writer'), new Set<Scope>(['read', 'write'])], [digestOf('admin'), new Set<Scope>(['admin'])]])
  const opened = await open(t, { tokens })
  const as = (token: string): Record<string, string> => ({ authorization: `Bearer ${token}` })
  const url = '/sets/s/failures/failure-1/acknowledge'
  t.match((await call(t, opened, 'POST', url, { action: 'discard' }, as('writer'))).json, { status: 403, code: 'SCOPE_MISSING', requiredScope: 'admin' })
  t.match((await call(t, opened, 'POST', url, { action: 'discard' }, as('admin'))).json, { status: 404, code: 'SET_NOT_FOUND' })
  t.match((await call(t, opened, 'GET', '/sets/s/failures', undefined, as('admin'))).json, { status: 403, code: 'SCOPE_MISSING', requiredScope: 'read' })
  t.match((await call(t, opened, 'GET', '/sets/s/failures', undefined, as('writer'))).json, { status: 404, code: 'SET_NOT_FOUND' })
})

t.test('rewrite: what the mapping shows becomes durable', { skip: cannotBreak }, async (t) => {
  const { dir, mend, afterPowerCut } = brokenDisk(t, ['f'])
  const opened = await open(t, { dir })
  const { addr, twin } = await twoSets(t, opened, 'f')
  const letters = ['a', 'b', 'c']
  const before = Date.now()
  // A group: they share a flush, and nobody of them is told that it went well.
  const replies = await Promise.all(letters.map((letter, i) => call(t, opened, 'PUT', `/sets/s/memory?addr=${plus(addr, i * PAGE)}`, Buffer.alloc(PAGE, letter))))
  for (const { status, json } of replies) {
    if (status === 500) t.match(json, { code: 'PERSIST_FAILED', errno: /^(ENOSPC|EIO)$/, written: PAGE, durability: 'none', retryable: false })
    else t.match({ status, json }, { status: 409, json: { code: 'SET_DEGRADED', durability: 'none', retryable: false } })
  }
  t.ok(replies.some(({ status }) => status === 500))
  // Who came when it had failed already has written nothing. Now it has, and the page is in doubt as well.
  for (const [i, letter] of letters.entries()) await must(t, opened, 'PUT', `/sets/s/memory?addr=${plus(addr, i * PAGE)}&durability=none`, Buffer.alloc(PAGE, letter))

  const failure = await theFailure(t, opened, 's')
  t.match(failure, { id: /^failure-[0-9a-f]{8}-[1-9]\d*$/, kind: 'persist_failed', ranges: [{ addr, length: 3 * PAGE }], code: 'PERSIST_FAILED', errno: /^(ENOSPC|EIO)$/, acknowledged: false, truncated: undefined })
  t.ok(Date.parse(failure.at) >= before - 10 && Date.parse(failure.at) <= Date.now(), failure.at)
  t.match(await theFailure(t, opened, 'twin'), { id: failure.id, ranges: [{ addr: twin, length: PAGE }] }, 'the same one, where that set has it mapped')
  const url = `/sets/s/failures/${failure.id}/acknowledge`
  await refused(t, opened, ['POST', `/sets/s/failures/${failure.id}0/acknowledge`, { action: 'rewrite' }], 404, 'FAILURE_NOT_FOUND')
  await refused(t, opened, ['POST', url, { action: 'rewrite' }, { 'if-match': '"other.1"' }], 412, 'PRECONDITION_FAILED', { revision: 2 })
  await refused(t, opened, ['POST', url, { action: 'rewrite' }], 500, 'PERSIST_FAILED', { errno: /^(ENOSPC|EIO)$/, retryable: false })
  t.match(await theFailure(t, opened, 's'), { id: failure.id, ranges: failure.ranges, acknowledged: false }, 'as long as the disk refuses, it stays')

  mend()
  for (const [set, at] of [['s', addr], ['twin', plus(twin, PAGE)]] as const) {
    for (const flush of ['persist', 'flush', 'deep-flush']) await refused(t, opened, ['POST', `/sets/${set}/${flush}`, { ranges: [{ addr: at, length: PAGE }] }], 409, 'SET_DEGRADED')
    for (const gone of ['/parts/p', '']) await refused(t, opened, ['DELETE', `/sets/${set}${gone}`], 409, 'SET_DEGRADED')
  }
  t.same(afterPowerCut('f').subarray(0, 3 * PAGE), Buffer.alloc(3 * PAGE), 'its blocks were taken away, and nothing came')
  // A store meanwhile promises nothing, and is in doubt with the rest.
  await must(t, opened, 'PUT', `/sets/twin/memory?addr=${plus(twin, PAGE)}&durability=none`, Buffer.alloc(PAGE, 'd'))
  t.match(await theFailure(t, opened, 's'), { ranges: [{ addr, length: 4 * PAGE }] })

  const { uid, revision } = await stateOf(t, opened, 's')
  const done = await call(t, opened, 'POST', url, { action: 'rewrite' }, { 'if-match': `"${uid}.${revision}"` })
  t.match([done.status, done.json, done.headers.etag], [200, { id: failure.id, kind: 'persist_failed', at: String, ranges: [{ addr, length: 4 * PAGE }], acknowledged: true }, `"${uid}.${revision + 1}"`])
  const example = (opened.app.swagger().paths?.['/sets/{set}/failures/{failure}/acknowledge'] as { post: { responses: Record<string, { content: Record<string, { example: object }> }> } }).post.responses['200']?.content['application/json']?.example
  t.same(Object.keys(done.json as object).sort(), Object.keys(example ?? {}).sort(), 'the document shows such a reply')
  t.same(afterPowerCut('f'), Buffer.concat([...letters, 'd'].map((letter) => Buffer.alloc(PAGE, letter))))
  for (const set of ['s', 'twin']) await refused(t, opened, ['POST', `/sets/${set}/failures/${failure.id}/acknowledge`, { action: 'rewrite' }], 404, 'FAILURE_NOT_FOUND')
  await isWell(t, opened, 's', addr)
  await isWell(t, opened, 'twin', twin)
  t.equal(afterPowerCut('f').subarray(0, 4).toString(), 'well')
  t.equal((await call(t, opened, 'DELETE', '/sets/s/parts/p')).status, 204)
  for (const set of ['s', 'twin']) t.equal((await call(t, opened, 'DELETE', `/sets/${set}`)).status, 204)
})

t.test('discard: the mapping shows what the medium has', { skip: cannotBreak }, async (t) => {
  const { dir, mend, overwrite, afterPowerCut } = brokenDisk(t, ['f'])
  const opened = await open(t, { dir })
  const { addr, twin } = await twoSets(t, opened, 'f')
  await must(t, opened, 'PUT', `/sets/s/memory?addr=${addr}&durability=none`, Buffer.alloc(3 * PAGE, 'n'))
  t.match((await call(t, opened, 'POST', '/sets/s/persist', { ranges: [{ addr, length: 1 }] })).json, { code: 'PERSIST_FAILED' })
  mend()
  // Its blocks were taken away; so that it has old bytes, they are put there.
  overwrite('f', Buffer.alloc(4 * PAGE, 'o'))
  const read = async (set: string, at: string): Promise<string> => (await must(t, opened, 'GET', `/sets/${set}/memory?addr=${at}&length=1`) as Buffer).toString()
  t.same([await read('s', addr), await read('twin', twin)], ['n', 'n'])
  const { id, ranges } = await theFailure(t, opened, 'twin')
  t.same(ranges, [{ addr: twin, length: PAGE }])
  const { revision } = await stateOf(t, opened, 'twin')
  t.match(await must(t, opened, 'POST', `/sets/twin/failures/${id}/acknowledge`, { action: 'discard' }), { id, acknowledged: true })
  t.equal((await stateOf(t, opened, 'twin')).revision, revision + 1)
  t.same(await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${4 * PAGE}`), Buffer.alloc(4 * PAGE, 'o'))
  t.equal(await read('twin', twin), 'o')
  await isWell(t, opened, 's', addr)
  await isWell(t, opened, 'twin', twin)
  t.same(afterPowerCut('f').subarray(0, 6).toString(), 'welloo')
})

t.test('each file has a failure of its own', { skip: cannotBreak }, async (t) => {
  const { dir, mend, afterPowerCut } = brokenDisk(t, ['f', 'g'])
  const opened = await open(t, { dir })
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  const addrs = new Map<string, string>()
  for (const name of ['g', 'f', 'g']) addrs.set(name, (await mapPart(t, opened, 's', name, { length: 2 * PAGE, ...(addrs.has(name) ? { offset: 2 * PAGE } : {}) }, { create: 'never' })).addr)
  for (const name of ['f', 'g']) t.equal((await call(t, opened, 'PUT', `/sets/s/memory?addr=${addrs.get(name) ?? ''}`, Buffer.from(name))).status, 500)
  const [first, second, ...more] = await failuresOf(t, opened, 's')
  t.match([first, second, more], [{ ranges: [{ addr: addrs.get('f'), length: PAGE }] }, { ranges: [{ addr: addrs.get('g'), length: PAGE }] }, []], 'the older one first')
  mend()
  await must(t, opened, 'POST', `/sets/s/failures/${first?.id ?? ''}/acknowledge`, { action: 'rewrite' })
  t.match(await failuresOf(t, opened, 's'), [{ id: second?.id }])
  t.match(await stateOf(t, opened, 's'), { state: 'degraded' })
  await must(t, opened, 'POST', '/sets/s/persist', { ranges: [{ addr: addrs.get('f'), length: 1 }] })
  await refused(t, opened, ['POST', '/sets/s/persist', { ranges: [{ addr: addrs.get('g'), length: 1 }] }], 409, 'SET_DEGRADED')
  await must(t, opened, 'POST', `/sets/s/failures/${second?.id ?? ''}/acknowledge`, { action: 'rewrite' })
  t.match(await stateOf(t, opened, 's'), { state: 'ready' })
  t.same([afterPowerCut('f').subarray(0, 1).toString(), afterPowerCut('g').subarray(2 * PAGE, 2 * PAGE + 1).toString()], ['f', 'g'])
})
