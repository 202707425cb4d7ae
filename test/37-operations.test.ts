// SPDX-License-Identifier: BSD-3-Clause
// memset, memcpy, memmove, atomics and batches: what they do, what they refuse, how far they came; and small writes, which go in groups.
import { statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { ATOMIC_OPS, decodeBatch, decodeReply, encodeBatch, type BatchOperation } from '../src/batch.js'
import { call, listening, makeFile, makeSet, mapPart, must, open, PAGE, plus, refused, type Opened } from './service.js'

const SIZE = 4 * PAGE

/** A set `s` with two files of two pages in one map. */
async function map (t: Test, opened: Opened): Promise<string> {
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  const { map: { addr } } = await mapPart(t, opened, 's', 'a', { length: SIZE / 2 })
  await mapPart(t, opened, 's', 'b', { length: SIZE / 2 })
  return addr
}

const read = async (t: Test, opened: Opened, addr: string, length: number): Promise<Buffer> => await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${length}`) as Buffer
const binary = (operations: readonly BatchOperation[], durability: 'none' | 'persisted' = 'persisted'): Buffer => Buffer.from(encodeBatch(operations, durability))

t.test('memset, memcpy and memmove, across the seam', async (t) => {
  const opened = await open(t)
  const addr = await map(t, opened)
  const model = Buffer.alloc(SIZE)
  t.match(await must(t, opened, 'POST', '/sets/s/memset', { addr: plus(addr, 100), length: 2 * PAGE, value: '0xab' }),
    { ranges: [{ addr: plus(addr, 100), length: 2 * PAGE }], bytes: 2 * PAGE, durability: 'persisted', granularity: 'page' })
  model.fill(0xab, 100, 100 + 2 * PAGE)
  t.match(await must(t, opened, 'POST', '/sets/s/memcpy', { dest: plus(addr, 3 * PAGE), src: addr, length: PAGE, durability: 'none', hint: 'nontemporal' }), { durability: 'none', bytes: PAGE })
  model.copy(model, 3 * PAGE, 0, PAGE)
  t.match(await must(t, opened, 'POST', '/sets/s/memmove', { dest: plus(addr, 7), src: addr, length: 3 * PAGE, durability: 'deep' }), { durability: 'deep' })
  model.copy(model, 7, 0, 3 * PAGE)
  t.ok((await read(t, opened, addr, SIZE)).equals(model))
})

t.test('a punched range is zeros and keeps its space', async (t) => {
  const opened = await open(t)
  const addr = await map(t, opened)
  await must(t, opened, 'POST', '/sets/s/memset', { addr, length: SIZE / 2, value: '0xff' })
  const { blocks } = statSync(join(opened.dir, 'a'))
  await must(t, opened, 'POST', '/sets/s/memset', { addr, length: PAGE, value: '0x0', punch: true })
  t.ok((await read(t, opened, addr, PAGE)).equals(Buffer.alloc(PAGE)))
  t.ok((await read(t, opened, plus(addr, PAGE), PAGE)).equals(Buffer.alloc(PAGE, 0xff)))
  t.equal(statSync(join(opened.dir, 'a')).blocks, blocks)
})

t.test('atomics answer the word before and the word now', async (t) => {
  const opened = await open(t)
  const addr = await map(t, opened)
  const steps = [
    [{ op: 'add', value: '0x5' }, { previous: '0x0', current: '0x5', swapped: undefined }],
    [{ op: 'add', value: '0xffffffffffffffff' }, { previous: '0x5', current: '0x4' }],
    [{ op: 'or', value: '0x3' }, { previous: '0x4', current: '0x7' }],
    [{ op: 'and', value: '0x6' }, { previous: '0x7', current: '0x6' }],
    [{ op: 'xor', value: '0x3' }, { previous: '0x6', current: '0x5' }],
    [{ op: 'exchange', value: '0x10' }, { previous: '0x5', current: '0x10' }],
    [{ op: 'compare_exchange', value: '0x11', expected: '0xf' }, { previous: '0x10', current: '0x10', swapped: false }],
    [{ op: 'compare_exchange', value: '0x11', expected: '0x10' }, { previous: '0x10', current: '0x11', swapped: true }]
  ] as const
  for (const [request, outcome] of steps) t.match(await must(t, opened, 'POST', '/sets/s/atomic', { addr, ...request }), outcome)
  t.equal((await read(t, opened, addr, 8)).readBigUInt64LE(), 0x11n)
})

t.test('what is refused, and changes nothing', async (t) => {
  const opened = await open(t, { env: { PMEMSETD_BATCH_OPERATIONS_MAX: '3', PMEMSETD_BATCH_BYTES_MAX: '8KiB', PMEMSETD_BATCH_RESULT_BYTES_MAX: '2KiB' } })
  const addr = await map(t, opened)
  const pointer = (at: string): object => ({ errors: [{ in: 'body', pointer: at }] })
  await refused(t, opened, ['POST', '/sets/s/memset', { addr, length: 1, value: '0x100' }], 400, 'REQUEST_INVALID', pointer('/value'))
  await refused(t, opened, ['POST', '/sets/s/memset', { addr, length: 1, value: 7 }], 400, 'REQUEST_INVALID', pointer('/value'))
  await refused(t, opened, ['POST', '/sets/s/memset', { addr, length: 1, value: '0x1', punch: true }], 400, 'REQUEST_INVALID', pointer('/value'))
  await refused(t, opened, ['POST', '/sets/s/memset', { addr, length: SIZE + 1, value: '0x1' }], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { map: { addr, size: SIZE } })
  await refused(t, opened, ['POST', '/sets/s/memcpy', { dest: addr, src: plus(addr, SIZE), length: 1 }], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')
  await refused(t, opened, ['POST', '/sets/s/memcpy', { dest: addr, src: addr, length: 1, hint: 'hot' }], 400, 'REQUEST_INVALID', pointer('/hint'))
  await refused(t, opened, ['POST', '/sets/s/atomic', { op: 'add', addr: plus(addr, 4), value: '0x1' }], 400, 'REQUEST_INVALID', pointer('/addr'))
  await refused(t, opened, ['POST', '/sets/s/atomic', { op: 'compare_exchange', addr, value: '0x1' }], 400, 'REQUEST_INVALID', pointer('/expected'))
  await refused(t, opened, ['POST', '/sets/s/atomic', { op: 'add', addr, value: '0x1', expected: '0x1' }], 400, 'REQUEST_INVALID', pointer('/expected'))
  await refused(t, opened, ['POST', '/sets/s/atomic', { op: 'add', addr, value: '0x1' }, { 'if-match': '"other"' }], 412, 'PRECONDITION_FAILED')

  const batch = (...operations: object[]): ['POST', string, object] => ['POST', '/sets/s/batch', { operations }]
  const fill = { op: 'memset', addr, length: 8, value: '0x1' }
  await refused(t, opened, batch(), 400, 'REQUEST_INVALID', pointer('/operations'))
  // Of the other alphabet, with space in it, without its padding, padding in the middle, nothing else, one character too many.
  for (const data of ['-_-_', 'AA\nAA==', 'AAA', 'AA==AAAA', '====', 'AAAAA===', 'é===']) {
    await refused(t, opened, batch(fill, { op: 'write', addr, data }), 400, 'REQUEST_INVALID', pointer('/operations/1/data'))
  }
  await refused(t, opened, batch(fill, { op: 'read', addr }), 400, 'REQUEST_INVALID', pointer('/operations/1/length'))
  await refused(t, opened, batch(fill, { op: 'read', addr, length: 1, value: '0x1' }), 400, 'REQUEST_INVALID', pointer('/operations/1/value'))
  await refused(t, opened, batch(fill, { op: 'write', addr, data: 'a===' }), 400, 'REQUEST_INVALID', pointer('/operations/1/data'))
  await refused(t, opened, batch(fill, { op: 'swap', addr }), 400, 'REQUEST_INVALID', pointer('/operations/1/op'))
  await refused(t, opened, batch(fill, fill, fill, fill), 409, 'LIMIT_EXCEEDED', { limit: 'batchOperations', max: 3 })
  await refused(t, opened, batch(fill, { op: 'read', addr, length: 2048 }), 409, 'LIMIT_EXCEEDED', { limit: 'batchResultBytes', max: 2048 })
  await refused(t, opened, batch(fill, { op: 'read', addr: plus(addr, SIZE - 1), length: 2 }), 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { failedOperation: 1, results: [], written: 0, ...pointer('/operations/1') })
  await refused(t, opened, batch(fill, { op: 'persist', ranges: [{ addr, length: 1 }, { addr: plus(addr, SIZE), length: 1 }] }, fill), 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP', { failedOperation: 1 })
  await refused(t, opened, ['POST', '/sets/s/batch', { operations: [fill], atomicity: 'some' }], 400, 'REQUEST_INVALID', pointer('/atomicity'))
  await refused(t, opened, ['POST', '/sets/s/batch', { operations: [{ op: 'write', addr, data: 'A'.repeat(8192) }] }], 413, 'BODY_TOO_LARGE', { max: 8192 })

  const raw = (body: Buffer, headers = {}): ['POST', string, Buffer, Record<string, string>] => ['POST', '/sets/s/batch/binary', body, headers]
  await refused(t, opened, raw(Buffer.alloc(0)), 400, 'REQUEST_INVALID', pointer(''))
  await refused(t, opened, raw(Buffer.from('PMSB')), 400, 'REQUEST_INVALID', pointer(''))
  await refused(t, opened, raw(Buffer.concat([binary([{ op: 'read', addr, length: 8 }]), Buffer.alloc(1)])), 400, 'REQUEST_INVALID', pointer(''))
  await refused(t, opened, raw(binary([{ op: 'memset', addr, length: 1, argument: 1 }, { op: 'add', addr: plus(addr, 1) }])), 400, 'REQUEST_INVALID', pointer('/operations/1/addr'))
  await refused(t, opened, raw(binary([{ op: 'memset', addr, length: 1, argument: 1 }, { op: 'read', addr: plus(addr, SIZE), length: 1 }])), 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP', { failedOperation: 1, results: [] })
  await refused(t, opened, raw(Buffer.alloc(8193)), 413, 'BODY_TOO_LARGE')
  await refused(t, opened, ['POST', '/sets/s/batch/binary', { operations: [] }], 415, 'MEDIA_TYPE_UNSUPPORTED')
  t.ok((await read(t, opened, addr, SIZE)).equals(Buffer.alloc(SIZE)), 'not a byte was stored')
})

t.test('a batch stops at its first failure, and tells what came before it', async (t) => {
  const opened = await open(t)
  const addr = await map(t, opened)
  truncateSync(join(opened.dir, 'b'), PAGE / 2)
  const gone = plus(addr, SIZE / 2 + PAGE)
  const operations = [
    { op: 'write', addr, data: Buffer.from('before').toString('base64') },
    { op: 'read', addr, length: 6 },
    { op: 'add', addr: plus(addr, 8), value: '0x2' },
    { op: 'memset', addr: gone, length: 8, value: '0x1' },
    { op: 'memset', addr: plus(addr, 64), length: 8, value: '0x1' }
  ]
  const reply = await call(t, opened, 'POST', '/sets/s/batch', { operations })
  const results = [{}, { data: Buffer.from('before').toString('base64') }, { previous: '0x0', current: '0x2' }]
  t.match(reply.json, { status: 500, code: 'PMEMSET_E_IO_FAIL', reason: 'truncated', sourceSize: PAGE / 2, failedOperation: 3, results, written: 6 + 8, durability: 'persisted' })
  t.same(reply.json.results, results)
  const same = await call(t, opened, 'POST', '/sets/s/batch/binary', binary([{ op: 'read', addr, length: 6 }, { op: 'memset', addr: gone, length: 8, argument: 1 }]))
  t.match(same.json, { code: 'PMEMSET_E_IO_FAIL', failedOperation: 1, results: [{ data: results[1]?.data }] })
  t.equal((await read(t, opened, plus(addr, 64), 1))[0], 0)
  truncateSync(join(opened.dir, 'b'), SIZE / 2)
})

t.test('batches do what their operations say, in JSON and in binary', async (t) => {
  const opened = await open(t)
  const addr = await map(t, opened)
  const model = Buffer.alloc(SIZE)
  const range = fc.tuple(fc.nat(SIZE - 1), fc.nat(80)).map(([at, length]) => ({ at, length: Math.min(length, SIZE - at) }))
  const operation = fc.oneof(
    range.map(({ at, length }) => ({ op: 'read' as const, at, length })),
    fc.tuple(fc.nat(SIZE - 80), fc.uint8Array({ maxLength: 80 })).map(([at, data]) => ({ op: 'write' as const, at, data })),
    fc.tuple(range, fc.nat(255)).map(([r, value]) => ({ op: 'memset' as const, ...r, value })),
    fc.tuple(fc.nat(SIZE - 80), fc.nat(SIZE - 80), fc.nat(80)).map(([at, from, length]) => ({ op: 'memmove' as const, at, from, length })),
    fc.tuple(fc.nat(SIZE / 8 - 1), fc.constantFrom(...ATOMIC_OPS), fc.bigInt(0n, 2n ** 64n - 1n)).map(([n, op, value]) => ({ op, at: n * 8, value })),
    range.map(({ at, length }) => ({ op: 'persist' as const, at, length }))
  )
  const apply: Record<string, (word: bigint, value: bigint) => bigint> = { exchange: (_, v) => v, add: (w, v) => BigInt.asUintN(64, w + v), and: (w, v) => w & v, or: (w, v) => w | v, xor: (w, v) => w ^ v, compare_exchange: (w, v) => (w === v ? v : w) }
  await fc.assert(fc.asyncProperty(fc.array(operation, { minLength: 1, maxLength: 30 }), fc.boolean(), async (operations, asJson) => {
    const json: object[] = []
    const layout: BatchOperation[] = []
    const wanted: object[] = []
    for (const o of operations) {
      const at = plus(addr, o.at)
      if (o.op === 'read') {
        json.push({ op: o.op, addr: at, length: o.length })
        layout.push({ op: o.op, addr: at, length: o.length })
        wanted.push({ data: model.subarray(o.at, o.at + o.length).toString('base64') })
        continue
      }
      if (o.op === 'write') {
        json.push({ op: o.op, addr: at, data: Buffer.from(o.data).toString('base64') })
        layout.push({ op: o.op, addr: at, data: o.data })
        model.set(o.data, o.at)
      } else if (o.op === 'memset') {
        json.push({ op: o.op, addr: at, length: o.length, value: `0x${o.value.toString(16)}` })
        layout.push({ op: o.op, addr: at, length: o.length, argument: o.value })
        model.fill(o.value, o.at, o.at + o.length)
      } else if (o.op === 'memmove') {
        json.push({ op: o.op, dest: at, src: plus(addr, o.from), length: o.length })
        layout.push({ op: o.op, addr: at, argument: plus(addr, o.from), length: o.length })
        model.copy(model, o.at, o.from, o.from + o.length)
      } else if (o.op === 'persist') {
        json.push({ op: o.op, ranges: [{ addr: at, length: o.length }] })
        layout.push({ op: o.op, addr: at, length: o.length })
      } else {
        const before = model.readBigUInt64LE(o.at)
        const expected = o.op === 'compare_exchange' ? { expected: `0x${o.value.toString(16)}` } : {}
        json.push({ op: o.op, addr: at, value: `0x${o.value.toString(16)}`, ...expected })
        layout.push({ op: o.op, addr: at, argument: o.value, ...(o.op === 'compare_exchange' ? { expected: o.value } : {}) })
        const now = apply[o.op]?.(before, o.value) ?? before
        model.writeBigUInt64LE(now, o.at)
        wanted.push({ previous: `0x${before.toString(16)}`, current: `0x${now.toString(16)}`, ...(o.op === 'compare_exchange' ? { swapped: before === o.value } : {}) })
        continue
      }
      wanted.push({})
    }
    let got: object[]
    if (asJson) {
      got = (await must(t, opened, 'POST', '/sets/s/batch', { operations: json, durability: 'none' })).results as object[]
    } else {
      const reply = await must(t, opened, 'POST', '/sets/s/batch/binary', binary(layout, 'none')) as Buffer
      got = decodeReply(reply, layout).results.map(({ data, previous, current }, i) => {
        if (data !== undefined) return { data: Buffer.from(data).toString('base64') }
        if (previous === undefined || current === undefined) return {}
        return { previous: `0x${previous.toString(16)}`, current: `0x${current.toString(16)}`, ...(layout[i]?.op === 'compare_exchange' ? { swapped: previous === BigInt(layout[i].expected ?? 0) } : {}) }
      })
    }
    if (JSON.stringify(got) !== JSON.stringify(wanted)) throw new Error(`${JSON.stringify(got)} for ${JSON.stringify(wanted)}`)
    if (!(await read(t, opened, addr, SIZE)).equals(model)) throw new Error('the bytes differ')
  }), { numRuns: 60 })
  t.ok((await read(t, opened, addr, SIZE)).equals(model))
})

t.test('the reference decoder reads what the encoder writes', async (t) => {
  fc.assert(fc.property(fc.array(fc.tuple(fc.bigInt(0n, 2n ** 64n - 1n), fc.uint8Array({ maxLength: 20 })), { minLength: 1, maxLength: 20 }), (writes) => {
    const operations = writes.map(([addr, data]): BatchOperation => ({ op: 'write', addr, data }))
    const back = decodeBatch(encodeBatch(operations))
    const told = back.map(({ addr, data = new Uint8Array() }) => [addr, Buffer.from(data).toString('hex')].join())
    if (told.join(' ') !== writes.map(([addr, data]) => [addr, Buffer.from(data).toString('hex')].join()).join(' ')) throw new Error('not the same')
  }))
  t.throws(() => decodeReply(new Uint8Array(40), []), { message: 'not the reply to a batch' })
})

t.test('many small writes at the same time: each is written, and each has its own answer', async (t) => {
  const opened = await listening(t)
  const addr = await map(t, opened)
  const put = async (at: number, bytes: Buffer, durability: string): Promise<{ status: number, json: Record<string, unknown> }> => {
    const reply = await fetch(`http://127.0.0.1:${opened.port}/sets/s/memory?addr=${plus(addr, at)}&durability=${durability}`, { method: 'PUT', body: bytes })
    return { status: reply.status, json: await reply.json() as Record<string, unknown> }
  }
  const model = Buffer.alloc(SIZE)
  const replies = await Promise.all(Array.from({ length: SIZE / 64 }, async (_, i) => {
    const bytes = Buffer.alloc(64, i % 251 + 1)
    bytes.copy(model, i * 64)
    const durability = i % 3 === 0 ? 'none' : 'persisted'
    const { status, json } = await put(i * 64, bytes, durability)
    return status === 200 && json.bytes === 64 && json.durability === durability
  }))
  t.ok(replies.every((one) => one), 'all of them answered as they should')
  const wrong = await Promise.all([put(0, Buffer.alloc(8), 'none'), put(SIZE - 4, Buffer.alloc(8), 'persisted'), put(SIZE, Buffer.alloc(8), 'persisted'), put(8, Buffer.alloc(8), 'persisted')])
  t.same(wrong.map(({ status }) => status), [200, 422, 404, 200])
  model.fill(0, 0, 16)
  t.ok((await read(t, opened, addr, SIZE)).equals(model))
})

t.test('atomics of many clients on one word lose nothing', async (t) => {
  const opened = await listening(t)
  const addr = await map(t, opened)
  await Promise.all(Array.from({ length: 16 }, async () => {
    for (let i = 0; i < 10; i++) {
      const reply = await fetch(`http://127.0.0.1:${opened.port}/sets/s/atomic`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ op: 'add', addr, value: '0x1' }) })
      t.equal(reply.status, 200)
    }
  }))
  t.equal((await read(t, opened, addr, 8)).readBigUInt64LE(), 160n)
})

t.test('a set that is deleted meanwhile is told as one that is not there', async (t) => {
  const opened = await open(t)
  const addr = await map(t, opened)
  const deletion = call(t, opened, 'DELETE', '/sets/s')
  const replies = await Promise.all([call(t, opened, 'POST', '/sets/s/memset', { addr, length: 8, value: '0x1' }), call(t, opened, 'POST', '/sets/s/atomic', { op: 'add', addr, value: '0x1' })])
  t.ok([204, 409].includes((await deletion).status))
  for (const { status, json } of replies) t.ok([200, 404].includes(status), `${status} ${JSON.stringify(json)}`)
})

t.test('a file behind a batch can be anything that could be mapped', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  makeFile(opened.dir, 'sparse', 8 * PAGE)
  const { addr } = await mapPart(t, opened, 's', 'sparse', { length: 8 * PAGE })
  await must(t, opened, 'POST', '/sets/s/memcpy', { dest: plus(addr, 4 * PAGE), src: addr, length: 4 * PAGE })
  t.ok((await read(t, opened, addr, 8 * PAGE)).equals(Buffer.alloc(8 * PAGE)))
})
