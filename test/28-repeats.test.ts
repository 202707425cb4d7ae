// SPDX-License-Identifier: BSD-3-Clause
// Idempotency-Key: a request that is sent again under its key gets the reply of the first time, and nothing is done twice.
import t, { type Test } from 'tap'
import { LmdbCatalog } from '../src/catalog/lmdb.js'
import { digestOf } from '../src/plugins/tokens.js'
import { brokenDisk, cannotBreak } from './media.js'
import { call, listening, makeSet, mapPart, must, open, PAGE, plus, refused, reopen, type Body, type Opened, type Reply } from './service.js'

type Request = [method: string, url: string, body?: Body]

const source = (path: string, others: object = {}): object => ({ type: 'file', path, create: 'if_needed', ...others })

function keyed (t: Test, opened: Opened, [method, url, body]: Request, key: string, headers: Record<string, string> = {}): Promise<Reply> {
  return call(t, opened, method, url, body, { ...headers, 'idempotency-key': key })
}

/** Sends it twice, and answers what both times gave. */
async function twice (t: Test, opened: Opened, request: Request, key: string): Promise<Reply> {
  const first = await keyed(t, opened, request, key)
  const second = await keyed(t, opened, request, key)
  t.same([second.status, second.bytes.toString()], [first.status, first.bytes.toString()], `${request[0]} ${request[1]}`)
  for (const name of ['content-type', 'etag', 'location']) t.equal(second.headers[name], first.headers[name], `${request[0]} ${request[1]}: ${name}`)
  t.equal(first.headers['idempotency-replayed'], undefined)
  t.equal(second.headers['idempotency-replayed'], 'true', `${request[0]} ${request[1]}`)
  return first
}

t.test('every change is made once', async (t) => {
  const opened = await open(t)
  t.equal((await twice(t, opened, ['POST', '/sets', { requiredGranularity: 'page' }], 'a')).status, 201)
  t.equal((await must(t, opened, 'GET', '/sets') as { items: object[] }).items.length, 1, 'a set whose id the service makes')
  await makeSet(t, opened, { id: 's' })
  const { json: part } = await twice(t, opened, ['POST', '/sets/s/parts', { source: source('x'), length: 4 * PAGE }], 'b')
  await twice(t, opened, ['PATCH', '/sets/s', { labels: { a: 'b' } }], 'c')
  t.match(await must(t, opened, 'GET', '/sets/s'), { partCount: 1, revision: 3 })
  const add: Request = ['POST', '/sets/s/atomic', { op: 'add', addr: part.addr, value: '0x5' }]
  t.match(await twice(t, opened, add, 'd'), { status: 200, json: { current: '0x5' } })
  t.match((await keyed(t, opened, add, 'another')).json, { current: '0xa' }, 'another key is another request')
  await twice(t, opened, ['POST', '/sets/s/batch', { operations: [{ op: 'xor', addr: part.addr, value: '0xf' }] }], 'e')
  await twice(t, opened, ['POST', '/sets/s/persist', { ranges: [{ addr: part.addr, length: 8 }] }], 'f')
  t.match((await call(t, opened, 'POST', '/sets/s/atomic', { op: 'add', addr: part.addr, value: '0x0' })).json, { current: '0x5' })
  t.equal((await twice(t, opened, ['DELETE', `/sets/s/maps?addr=${part.addr}&length=1`], 'g')).status, 200)
  await mapPart(t, opened, 's', 'y', { id: 'y' })
  t.match(await keyed(t, opened, ['DELETE', `/sets/s/maps?addr=${part.addr}&length=1`], 'g'), { json: { removedCount: 1 }, headers: { 'idempotency-replayed': 'true' } })
  t.match(await must(t, opened, 'GET', '/sets/s'), { partCount: 1 }, 'the newcomer in the hole stays')
  t.equal((await twice(t, opened, ['DELETE', '/sets/s/parts/y'], 'h')).status, 204)
  t.equal((await twice(t, opened, ['DELETE', '/sets/s'], 'i')).status, 204)
})

t.test('a key belongs to one request of one token', async (t) => {
  const tokens = new Map(['one', 'two'].map((token) => [digestOf(token), new Set(['read', 'write', 'admin'] as const)]))
  const opened = await open(t, { tokens })
  const one = { authorization: 'Bearer one' }
  const two = { authorization: 'Bearer two' }
  t.equal((await keyed(t, opened, ['POST', '/sets', { id: 'a', requiredGranularity: 'page' }], 'k', one)).status, 201)
  await refused(t, opened, ['POST', '/sets', { id: 'b', requiredGranularity: 'page' }, { ...one, 'idempotency-key': 'k' }], 422, 'IDEMPOTENCY_KEY_REUSED', { retryable: false })
  await refused(t, opened, ['DELETE', '/sets/a', undefined, { ...one, 'idempotency-key': 'k' }], 422, 'IDEMPOTENCY_KEY_REUSED')
  t.equal((await keyed(t, opened, ['POST', '/sets', { id: 'b', requiredGranularity: 'page' }], 'k', two)).status, 201, 'of another token')
  await refused(t, opened, ['POST', '/sets', { id: 'c', requiredGranularity: 'page' }, { ...one, 'idempotency-key': 'a b' }], 400, 'PARAMETER_INVALID')
})

t.test('a refusal that is final is kept, another is not', async (t) => {
  const opened = await open(t)
  const request: Request = ['POST', '/sets/s/parts', { source: source('x', { create: 'never' }) }]
  t.equal((await keyed(t, opened, request, 'k')).json.code, 'SET_NOT_FOUND')
  await makeSet(t, opened, { id: 's' })
  t.match(await keyed(t, opened, request, 'k'), { json: { code: 'SET_NOT_FOUND' }, headers: { 'idempotency-replayed': 'true', 'content-type': /problem/ } })
  t.equal((await keyed(t, opened, request, 'l')).json.code, 'PMEMSET_E_INVALID_SOURCE_PATH')
})

t.test('after a restart as before', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const request: Request = ['POST', '/sets/s/parts', { source: source('x'), length: PAGE }]
  const first = await keyed(t, opened, request, 'k')
  const again = await reopen(t, opened)
  const second = await keyed(t, again, request, 'k')
  t.same([second.status, second.json, second.headers['idempotency-replayed']], [201, first.json, 'true'])
  t.match(await must(t, again, 'GET', '/sets/s'), { partCount: 1 })
})

t.test('while the first is being answered, the second is told so', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'x')
  const answers = await Promise.all(Array.from({ length: 8 }, () => keyed(t, opened, ['POST', '/sets/s/atomic', { op: 'add', addr, value: '0x1' }], 'k')))
  for (const { status, json } of answers) t.ok(status === 200 ? json.current === '0x1' : status === 409 && json.code === 'IDEMPOTENCY_IN_PROGRESS', JSON.stringify(json))
  t.ok(answers.some(({ status }) => status === 409), 'they were at the same time')
  t.match((await call(t, opened, 'POST', '/sets/s/atomic', { op: 'add', addr, value: '0x0' })).json, { current: '0x1' })
})

t.test('where the reply was not kept, nobody says that it was', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'x', { length: 64 * PAGE })
  const large: Request = ['POST', '/sets/s/batch', { operations: [{ op: 'read', addr, length: 60 * PAGE }] }]
  t.equal((await keyed(t, opened, large, 'large')).status, 200)
  await refused(t, opened, [large[0], large[1], large[2], { 'idempotency-key': 'large' }], 409, 'OUTCOME_UNKNOWN', { detail: /carried out/ })

  // The process ends behind the change: what the catalog has by then is what it has when the last commit, of the reply, does not come about.
  // eslint-disable-next-line @typescript-eslint/unbound-method -- it is put back as it was
  const { commit } = LmdbCatalog.prototype
  LmdbCatalog.prototype.commit = async function (changes) {
    if (changes.some((change) => change.kind === 'put-repeat' && change.repeat.reply !== undefined)) throw new Error('not kept')
    await commit.call(this, changes)
  }
  t.teardown(() => { LmdbCatalog.prototype.commit = commit })
  const map: Request = ['POST', '/sets/s/parts', { source: source('y'), length: PAGE }]
  t.equal((await keyed(t, opened, map, 'map')).status, 201, 'the reply is true all the same')
  const add: Request = ['POST', '/sets/s/atomic', { op: 'add', addr: plus(addr, 8), value: '0x1' }]
  t.match(await keyed(t, opened, add, 'add'), { status: 200, json: { current: '0x1' } })
  const again = await reopen(t, opened)
  t.match((await keyed(t, again, map, 'map')).json, { code: 'OUTCOME_UNKNOWN', detail: /carried out/ })
  t.match((await keyed(t, again, add, 'add')).json, { code: 'OUTCOME_UNKNOWN', detail: /begun/ })
  t.match(await must(t, again, 'GET', '/sets/s'), { partCount: 2 })
})

t.test('what failed behind a store is not done again', { skip: cannotBreak }, async (t) => {
  const { dir } = brokenDisk(t, ['a'])
  const opened = await open(t, { dir })
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'a', {}, { create: 'never' })
  const add: Request = ['POST', '/sets/s/atomic', { op: 'add', addr, value: '0x1' }]
  t.match(await keyed(t, opened, add, 'k'), { status: 500, json: { code: 'PERSIST_FAILED' } })
  t.match(await keyed(t, opened, add, 'k'), { status: 409, json: { code: 'OUTCOME_UNKNOWN', detail: /begun/ } })
})

t.test('a change that fails is no change, and its key is free', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  // eslint-disable-next-line @typescript-eslint/unbound-method -- it is put back as it was
  const { commit } = LmdbCatalog.prototype
  LmdbCatalog.prototype.commit = () => Promise.reject(new Error('no medium'))
  const map: Request = ['POST', '/sets/s/parts', { source: source('y', { create: 'never' }), length: PAGE }]
  try {
    t.not((await keyed(t, opened, map, 'k')).status, 201)
  } finally {
    LmdbCatalog.prototype.commit = commit
  }
  t.match((await keyed(t, opened, map, 'k')).json, { code: 'PMEMSET_E_INVALID_SOURCE_PATH' })
})

t.test('no more keys than the limit, and the oldest goes first', async (t) => {
  const opened = await open(t, { env: { PMEMSETD_IDEMPOTENCY_KEYS_MAX: '3' } })
  for (const id of ['a', 'b', 'c', 'd']) t.equal((await keyed(t, opened, ['POST', '/sets', { id, requiredGranularity: 'page' }], id)).status, 201)
  t.equal((await keyed(t, opened, ['POST', '/sets', { id: 'd', requiredGranularity: 'page' }], 'd')).headers['idempotency-replayed'], 'true')
  t.equal((await keyed(t, opened, ['POST', '/sets', { id: 'a', requiredGranularity: 'page' }], 'a')).json.code, 'SET_EXISTS')
})
