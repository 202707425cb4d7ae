// SPDX-License-Identifier: BSD-3-Clause
// Batches that are all or nothing: what they take, what a crash leaves of them, and what becomes of those that wait for a file. test/native/58 has every
// byte, and 65 every system call; here it is the service.
import { closeSync, existsSync, openSync, readFileSync, renameSync, statSync, truncateSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { decodeReply, encodeBatch, type BatchOperation } from '../src/batch.js'
import { ask, folder, must as mustSend, send, serving, type Json, type Reply, type Served } from './process.js'
import { call, makeFile, makeSet, mapPart, MIB, must, open, PAGE, plus, refused, reopen, type Opened } from './service.js'

const RETIRED_AT = 4096
const EVERYTHING = { atomicity: 'all' }

const logOf = (dir: string): string => join(dir, '.pmemset', 'redo')
const base64 = (text: string): string => Buffer.from(text).toString('base64')
const read = async (t: Test, opened: Opened, addr: string, length: number): Promise<string> => (await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${length}`) as Buffer).toString()

function retired (dir: string): bigint {
  return readFileSync(logOf(dir)).readBigUInt64LE(RETIRED_AT)
}

function writeAt (path: string, position: number, bytes: Buffer): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, bytes, 0, bytes.length, position)
  closeSync(fd)
}

/** What the log says again of the batch that began there: committed, and not struck off. */
function unretire (dir: string, position: bigint): void {
  const word = Buffer.alloc(8)
  word.writeBigUInt64LE(position)
  writeAt(logOf(dir), RETIRED_AT, word)
}

/** A set `s` with a file `a` of two pages, each a part of its own, and a file `b`. */
async function map (t: Test, opened: Opened): Promise<{ a: string, second: string, b: string }> {
  await makeSet(t, opened, { id: 's' })
  makeFile(opened.dir, 'a', Buffer.alloc(2 * PAGE, 'a'))
  makeFile(opened.dir, 'b', Buffer.alloc(PAGE, 'b'))
  const { addr: a } = await mapPart(t, opened, 's', 'a', { id: 'a0' })
  const { addr: second } = await mapPart(t, opened, 's', 'a', { id: 'a1', offset: PAGE })
  const { addr: b } = await mapPart(t, opened, 's', 'b', { id: 'b' })
  return { a, second, b }
}

t.test('in order, each of what the earlier ones would have stored', async (t) => {
  const opened = await open(t)
  const { a, b } = await map(t, opened)
  t.notOk(existsSync(logOf(opened.dir)), 'there is no log before one is needed')
  const outcome = await must(t, opened, 'POST', '/sets/s/batch', {
    ...EVERYTHING,
    durability: 'flushed',
    operations: [
      { op: 'write', addr: a, data: base64('first') }, { op: 'read', addr: a, length: 6 }, { op: 'memcpy', dest: b, src: a, length: 6 },
      { op: 'memset', addr: a, length: 1, value: '0x46', hint: 'nontemporal' }, { op: 'memmove', dest: plus(b, 1), src: b, length: 6 }, { op: 'read', addr: b, length: 8 }
    ]
  })
  t.same(outcome, { results: [{}, { data: base64('firsta') }, {}, {}, {}, { data: base64('ffirstab') }], bytes: 18, durability: 'persisted', granularity: 'page', persistence: outcome.persistence })
  t.equal(await read(t, opened, a, 6), 'Firsta')
  const operations: BatchOperation[] = [{ op: 'write', addr: b, data: Buffer.from('binary') }, { op: 'read', addr: b, length: 6 }]
  const reply = decodeReply(await must(t, opened, 'POST', '/sets/s/batch/binary', Buffer.from(encodeBatch(operations, 'deep', 'all'))) as Buffer, operations)
  t.match(reply, { durability: 'deep', done: 2, bytes: 6 })
  t.equal(Buffer.from(reply.results[1]?.data ?? []).toString(), 'binary')
  t.equal(statSync(logOf(opened.dir)).mode & 0o777, 0o600)
})

t.test('what it cannot be is refused, and nothing is done', async (t) => {
  const other = folder(t, 'volume')
  const opened = await open(t, { env: { PMEMSETD_VOLUMES: `default=${folder(t)},other=${join(other, 'volume')}` } })
  const dir = opened.service.volumes.find('default')?.path ?? ''
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'a', { length: 48 * MIB })
  const { addr: elsewhere } = await mapPart(t, opened, 's', 'b', {}, { volume: 'other' })
  const first = { op: 'write', addr, data: base64('first') }
  const batch = (operations: object[], more: object = {}): ['POST', string, object] => ['POST', '/sets/s/batch', { ...EVERYTHING, operations: [first, ...operations], ...more }]
  const pointer = (pointer: string): object => ({ errors: [{ in: 'body', pointer }] })
  await refused(t, opened, batch([{ op: 'persist', ranges: [{ addr, length: 1 }] }]), 400, 'REQUEST_INVALID', pointer('/operations/1/op'))
  await refused(t, opened, batch([{ op: 'add', addr, value: '0x1' }]), 400, 'REQUEST_INVALID', pointer('/operations/1/op'))
  await refused(t, opened, batch([{ op: 'memset', addr, length: PAGE, value: '0x0', punch: true }]), 400, 'REQUEST_INVALID', pointer('/operations/1/punch'))
  await refused(t, opened, batch([], { durability: 'none' }), 400, 'REQUEST_INVALID', pointer('/durability'))
  await refused(t, opened, batch([{ op: 'write', addr: elsewhere, data: base64('x') }]), 422, 'ATOMICITY_ACROSS_VOLUMES', { failedOperation: 1, results: [], written: 0 })
  await refused(t, opened, batch([{ op: 'memset', addr, length: 48 * MIB, value: '0x1' }]), 409, 'LIMIT_EXCEEDED', { limit: 'atomicBatchBytes', max: 32 * MIB, failedOperation: 1 })
  await refused(t, opened, batch([{ op: 'write', addr: plus(addr, 48 * MIB - 1), data: base64('xx') }]), 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { failedOperation: 1 })
  const raw = (operations: BatchOperation[], durability: 'none' | 'persisted' = 'persisted'): ['POST', string, Buffer] => ['POST', '/sets/s/batch/binary', Buffer.from(encodeBatch(operations, durability, 'all'))]
  await refused(t, opened, raw([{ op: 'read', addr, length: 1 }, { op: 'flush', addr, length: 1 }]), 400, 'REQUEST_INVALID', pointer('/operations/1/op'))
  await refused(t, opened, raw([{ op: 'memset', addr, length: 1, punch: true }]), 400, 'REQUEST_INVALID', pointer('/operations/0/flags'))
  await refused(t, opened, raw([{ op: 'read', addr, length: 1 }], 'none'), 400, 'REQUEST_INVALID')
  t.equal(await read(t, opened, addr, 5), '\0\0\0\0\0')
  t.notOk(existsSync(logOf(dir)), 'there is still no log')
  await must(t, opened, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [first, { op: 'read', addr: elsewhere, length: 1 }] })
  t.equal(await read(t, opened, addr, 5), 'first', 'it may read elsewhere')
})

t.test('a batch that was committed is made whole before anything is served', async (t) => {
  const opened = await open(t)
  const { a, b } = await map(t, opened)
  await must(t, opened, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'write', addr: a, data: base64('zero') }] })
  const position = retired(opened.dir)
  await must(t, opened, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'write', addr: a, data: base64('one') }, { op: 'write', addr: b, data: base64('two') }] })
  t.ok(retired(opened.dir) > position)
  const again = await reopen(t, opened, () => {
    unretire(opened.dir, position)
    writeAt(join(opened.dir, 'a'), 0, Buffer.from('on?')) // as far as it had come
  }, { restore: false })
  await refused(t, again, ['GET', `/sets/s/memory?addr=${a}&length=3`], 503, 'RESTORING')
  t.equal(readFileSync(join(opened.dir, 'a'), 'latin1').slice(0, 3), 'on?')
  await again.service.restore(() => {})
  t.equal(await read(t, again, a, 4), 'oneo')
  t.equal(await read(t, again, b, 4), 'twob')
  await must(t, again, 'PUT', `/sets/s/memory?addr=${a}`, Buffer.from('new'))
  const third = await reopen(t, again)
  t.equal(await read(t, third, a, 4), 'newo', 'and once only')
})

t.test('a batch waits for the file that it has bytes for', async (t) => {
  const opened = await open(t)
  const { a, second, b } = await map(t, opened)
  const path = join(opened.dir, 'a')
  const operations = [{ op: 'write', addr: a, data: base64('one') }, { op: 'write', addr: plus(second, 8), data: base64('two') }, { op: 'write', addr: b, data: base64('three') }]
  await must(t, opened, 'POST', '/sets/s/batch', { ...EVERYTHING, operations })
  const crash = (): void => {
    unretire(opened.dir, 0n)
    writeAt(path, 0, Buffer.from('aaa'))
    truncateSync(path, PAGE)
  }
  const again = await reopen(t, opened, crash)
  t.equal(await read(t, again, b, 6), 'threeb', 'another file has its bytes')
  await must(t, again, 'PUT', `/sets/s/memory?addr=${b}`, Buffer.from('free'))
  t.equal(await read(t, again, a, 3), 'aaa')
  await refused(t, again, ['PUT', `/sets/s/memory?addr=${a}&durability=none`, Buffer.from('x')], 409, 'RECOVERY_PENDING')
  await refused(t, again, ['POST', '/sets/s/memset', { addr: a, length: 1, value: '0x1' }], 409, 'RECOVERY_PENDING')
  await refused(t, again, ['POST', '/sets/s/atomic', { op: 'add', addr: a, value: '0x1' }], 409, 'RECOVERY_PENDING')
  await refused(t, again, ['POST', '/sets/s/batch', { operations: [{ op: 'write', addr: a, data: base64('x') }] }], 409, 'RECOVERY_PENDING', { failedOperation: 0 })
  await refused(t, again, ['POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'write', addr: a, data: base64('x') }] }], 409, 'RECOVERY_PENDING')
  await must(t, again, 'PUT', `/sets/s/memory?addr=${plus(a, 3)}`, Buffer.from('beside it'))
  await must(t, again, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'write', addr: plus(b, 100), data: base64('another') }] })
  // A restart does not forget it, and the bytes that are there already are not stored again.
  const third = await reopen(t, again)
  t.equal(await read(t, third, b, 5), 'freee')
  await refused(t, third, ['PUT', `/sets/s/memory?addr=${a}`, Buffer.from('x')], 409, 'RECOVERY_PENDING')
  truncateSync(path, 2 * PAGE)
  await must(t, third, 'POST', '/sets/s/parts/a1/restore', {})
  t.equal(await read(t, third, a, 12), 'onebeside it')
  t.equal(await read(t, third, plus(second, 8), 3), 'two')
  await must(t, third, 'PUT', `/sets/s/memory?addr=${a}`, Buffer.from('free'))
})

t.test('a file that was away is given its bytes when a new part is made of it', async (t) => {
  const opened = await open(t)
  const { b } = await map(t, opened)
  await must(t, opened, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'write', addr: b, data: base64('three') }] })
  const path = join(opened.dir, 'b')
  const again = await reopen(t, opened, () => {
    unretire(opened.dir, 0n)
    writeAt(path, 0, Buffer.from('bbbbb'))
    renameSync(path, join(opened.dir, 'away'))
  })
  await must(t, again, 'DELETE', '/sets/s/parts/b')
  const { addr } = await mapPart(t, again, 's', 'away', { id: 'new' }, { create: 'never' })
  t.equal(await read(t, again, addr, 6), 'threeb')
})

t.test('a log that cannot be read stops the start', async (t) => {
  const opened = await open(t)
  const { a } = await map(t, opened)
  await must(t, opened, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'write', addr: a, data: base64('one') }] })
  const again = await reopen(t, opened, () => { writeAt(logOf(opened.dir), 8, Buffer.from([2])) }, { restore: false })
  await t.rejects(again.service.restore(() => {}), { message: /redo log.*version/ })
  t.equal((await call(t, again, 'GET', '/readyz')).status, 503)
})

t.test('killed in the middle of batches, and started again', async (t) => {
  const dir = folder(t, 'volume', 'state')
  const env = { PMEMSETD_VOLUMES: `default=${join(dir, 'volume')}`, PMEMSETD_STATE_DIR: './state' }
  const post = async (address: string, path: string, body: object): Promise<Json> => {
    const { status, json } = await ask({ url: `${address}${path}` }, { method: 'POST', body })
    if (status >= 300) throw new Error(JSON.stringify(json))
    return json
  }
  let running = await serving(t, dir, env)
  await post(running.address, '/sets', { id: 's', requiredGranularity: 'page' })
  const bases: string[] = []
  for (const path of ['a', 'b']) bases.push((await post(running.address, '/sets/s/parts', { length: 64 * PAGE, source: { type: 'file', path, create: 'if_needed' } }) as { addr: string }).addr)
  // Each batch writes its number to so many pages of both files, and to the last bytes of one and the first of the next.
  const places = bases.flatMap((base) => Array.from({ length: 20 }, (_, i) => plus(base, (3 * i + 1) * PAGE - 4)))
  const seen = async (): Promise<Set<string>> => {
    const { results } = await post(running.address, '/sets/s/batch', { operations: places.map((addr) => ({ op: 'read', addr, length: 8 })) }) as { results: Array<{ data: string }> }
    return new Set(results.map(({ data }) => Buffer.from(data, 'base64').readBigUInt64LE().toString()))
  }
  let answered = 0
  for (let round = 0; round < 6; round++) {
    let sent = answered
    const writer = (async () => {
      for (;;) {
        const data = Buffer.alloc(8)
        data.writeBigUInt64LE(BigInt(++sent))
        await post(running.address, '/sets/s/batch', { ...EVERYTHING, operations: places.map((addr) => ({ op: 'write', addr, data: data.toString('base64') })) })
        answered = sent
      }
    })().catch(() => {})
    await sleep(100 + Math.random() * 150)
    running.child.kill('SIGKILL')
    await running.ended
    await writer
    running = await serving(t, dir, env)
    const [number, ...others] = await seen()
    t.same(others, [], `round ${round}: it is whole`)
    t.ok(Number(number) === answered || Number(number) === sent, `round ${round}: ${number} of ${sent}, ${answered} were answered`)
    answered = Number(number)
  }
  t.ok(answered > 6, `${answered} batches`)
})

t.test('how large it may be, and how much of the volume stays free, is configured', async (t) => {
  const dir = folder(t, 'volume', 'state')
  const serve = async (bytes: string, percent: string): Promise<Served> => await serving(t, dir, {
    PMEMSETD_VOLUMES: `default=${join(dir, 'volume')}`, PMEMSETD_STATE_DIR: './state', PMEMSETD_ATOMIC_BATCH_BYTES_MAX: bytes, PMEMSETD_KEEP_FREE_PERCENT: percent
  })
  const end = async ({ child, ended }: Served): Promise<void> => {
    child.kill('SIGTERM')
    t.equal(await ended, 0)
  }
  makeFile(join(dir, 'volume'), 'a', MIB)
  const batch = async (running: Served, length: number): Promise<Reply> => await send(running, 'POST', '/sets/s/batch', { ...EVERYTHING, operations: [{ op: 'memset', addr, length, value: '0x1' }] })
  // A record is its head of 64 bytes, 128 for the file, 24 for what is stored, and that.
  const fits = (bytes: number): number => bytes - 64 - 128 - 24

  let running = await serve('64KiB', '99')
  await mustSend(running, 'POST', '/sets', { id: 's', requiredGranularity: 'page' })
  const { addr } = await mustSend(running, 'POST', '/sets/s/parts', { source: { type: 'file', path: 'a' }, length: MIB }) as { addr: string }
  t.match(await batch(running, PAGE), { status: 507, json: { code: 'NO_SPACE', availableBytes: Number } })
  t.notOk(existsSync(logOf(join(dir, 'volume'))), 'no log is made of what is to stay free')
  await end(running)

  for (const [size, bytes] of [['64KiB', 64 * 1024], ['192KiB', 192 * 1024]] as const) {
    running = await serve(size, '0')
    t.match(await mustSend(running, 'GET', '/capabilities'), { limits: { atomicBatchBytes: bytes } })
    t.match(await batch(running, fits(bytes) + 1), { status: 409, json: { code: 'LIMIT_EXCEEDED', limit: 'atomicBatchBytes', max: bytes } })
    t.equal((await batch(running, fits(bytes))).status, 200)
    t.equal(statSync(logOf(join(dir, 'volume'))).size, 8192 + bytes)
    await end(running)
  }
})
