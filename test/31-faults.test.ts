// SPDX-License-Identifier: BSD-3-Clause
// What the medium does to the service: files that shrink under their maps, file systems that are full, flushes that fail. Each is an answer; the process
// lives, and whatever is on other files goes on.
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Part, PmemSet } from '../src/schemas.js'
import { brokenDisk, cannotBreak, cannotMount, empty, files, fill, mounted, tmpfs } from './media.js'
import { call, listening, makeFile, makeSet, mapPart, MIB, must, open, PAGE, plus, refused, type Opened } from './service.js'
import { raw } from './shell.js'

const KIB64 = 64 * 1024

async function expectGood (t: Test, opened: Opened, set: string, addr: string): Promise<void> {
  const bytes = Buffer.from(`alive ${addr}`)
  t.match(await must(t, opened, 'PUT', `/sets/${set}/memory?addr=${addr}`, bytes), { bytes: bytes.length })
  t.same(await must(t, opened, 'GET', `/sets/${set}/memory?addr=${addr}&length=${bytes.length}`), bytes)
  t.match(await must(t, opened, 'POST', `/sets/${set}/persist`, { ranges: [{ addr, length: PAGE }] }), { bytes: PAGE })
}

/* ---- files that shrink ---- */

t.test('a file that is truncated under its map', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const path = makeFile(opened.dir, 'f', Buffer.alloc(32 * PAGE, 'f'))
  const { addr } = await mapPart(t, opened, 's', 'f', { length: 31 * PAGE, offset: PAGE }, { create: 'never' })
  const other = await mapPart(t, opened, 's', 'other')
  // The first page of the part is good, and a hundred bytes of the second.
  const size = 2 * PAGE + 100
  truncateSync(path, size)
  const good = size - PAGE
  const cases: Array<[from: number, length: number, first: number]> = [
    [good, 1, good], [good + 5, 10, good + 5], [good - 1, 2, good], [2 * PAGE, PAGE, 2 * PAGE], [30 * PAGE, PAGE, 30 * PAGE], [0, 31 * PAGE, good], [PAGE, KIB64 + 1, good]
  ]
  for (const [from, length, first] of cases) {
    const at = plus(addr, from)
    const members = { number: -200032, reason: 'truncated', addr: /^0x/, offset: Number, sourceSize: size, retryable: false }
    const place = { addr: plus(addr, first), offset: first + PAGE }
    const read = await refused(t, opened, ['GET', `/sets/s/memory?addr=${at}&length=${length}`], 500, 'PMEMSET_E_IO_FAIL', members)
    const lost = Number(BigInt(read.addr as string) - BigInt(addr))
    t.ok(lost >= first && lost < from + length && read.offset === lost + PAGE, `${from}, ${length}: the address is one that is lost: ${JSON.stringify(read)}`)
    await refused(t, opened, ['PUT', `/sets/s/memory?addr=${at}`, Buffer.alloc(length, 'x')], 500, 'PMEMSET_E_IO_FAIL', { ...members, ...place, sourceSize: undefined, durability: 'none', written: 0 })
    for (const flush of ['persist', 'flush', 'deep-flush']) await refused(t, opened, ['POST', `/sets/s/${flush}`, { ranges: [{ addr: at, length }] }], 500, 'PMEMSET_E_IO_FAIL', { ...members, ...place })
    t.equal(statSync(path).size, size, 'the file is not extended')
  }
  t.same(readFileSync(path), Buffer.alloc(size, 'f'), 'nor written to')
  await expectGood(t, opened, 's', addr)
  await expectGood(t, opened, 's', other.addr)
  t.match(await must(t, opened, 'GET', `/sets/s/maps?addr=${plus(addr, 30 * PAGE)}`), { items: [{ addr }] }, 'the map is what it was')
  truncateSync(path, 32 * PAGE)
  t.same(await must(t, opened, 'GET', `/sets/s/memory?addr=${plus(addr, 30 * PAGE)}&length=4`), Buffer.alloc(4), 'once it is extended again, its holes are read')
  await expectGood(t, opened, 's', plus(addr, 30 * PAGE))
})

t.test('an upload that runs into the end of a truncated file tells what was written', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'f', { length: 8 * MIB })
  const path = join(opened.dir, 'f')
  const size = 2 * MIB + MIB / 2
  truncateSync(path, size)
  const head = `PUT /sets/s/memory?addr=${addr} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${8 * MIB}\r\n\r\n`
  const answer = await raw(opened.port, Buffer.concat([Buffer.from(head), Buffer.alloc(8 * MIB, 'u')]), { ms: 5000 })
  t.match([answer.status, answer.head, JSON.parse(answer.body)], [500, /connection: close/, { code: 'PMEMSET_E_IO_FAIL', reason: 'truncated', addr: /^0x/, offset: Number, written: Number, durability: 'none' }])
  const { written, offset } = JSON.parse(answer.body) as { written: number, offset: number }
  t.ok(written >= MIB && written <= size && offset >= size, `${written} bytes, and the one at ${offset} is lost`)
  t.ok(readFileSync(path).equals(Buffer.concat([Buffer.alloc(written, 'u'), Buffer.alloc(size - written)])), 'what it says was written is there')
  t.equal(statSync(path).size, size)
  t.equal((await call(t, opened, 'DELETE', '/sets/s')).status, 204, 'nothing holds the set')
})

t.test('a file that is truncated in the middle of a download', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const bytes = Buffer.from(Uint32Array.from({ length: 16 * MIB }, (_, i) => i).buffer)
  const path = makeFile(opened.dir, 'long', bytes)
  const { addr } = await mapPart(t, opened, 's', 'long', { length: bytes.length }, { create: 'never' })
  const other = await mapPart(t, opened, 's', 'other')
  const socket = connect(opened.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`GET /sets/s/memory?addr=${addr}&length=${bytes.length} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: cut-short\r\n\r\n`)
  await once(socket, 'readable')
  const cut = 40 * MIB
  truncateSync(path, cut)
  const chunks: Buffer[] = []
  socket.on('data', (chunk) => { chunks.push(chunk) })
  await once(socket, 'close')
  const text = Buffer.concat(chunks)
  const bodyAt = text.indexOf('\r\n\r\n') + 4
  t.match(text.subarray(0, bodyAt).toString(), new RegExp(`^HTTP/1.1 200 [^]*content-length: ${bytes.length}`, 'i'))
  const body = text.subarray(bodyAt)
  t.ok(body.length > 0 && body.length <= cut, `${body.length} bytes came`)
  t.ok(body.equals(bytes.subarray(0, body.length)), 'and are those of the file')
  const line = opened.lines.map((one) => JSON.parse(one) as object).find((one) => 'requestId' in one && one.requestId === 'cut-short')
  t.match(line, { level: 'error', code: 'PMEMSET_E_IO_FAIL', reason: 'TRUNCATED', route: '/sets/:set/memory' }, 'the log says why')
  t.same((await call(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${KIB64}`)).bytes, bytes.subarray(0, KIB64))
  await expectGood(t, opened, 's', other.addr)
  await must(t, opened, 'DELETE', `/sets/s/maps/${addr}`)
})

/* ---- file systems that are full ---- */

t.test('mapping on a full file system changes nothing', { skip: cannotMount }, async (t) => {
  const dir = mounted(t, tmpfs('8m'))
  const opened = await open(t, { dir, env: { PMEMSETD_KEEP_FREE_PERCENT: '0' } })
  await makeSet(t, opened, { id: 's' })
  makeFile(dir, 'old', Buffer.alloc(PAGE, 'o'))
  fill(dir, MIB)
  const before = files(dir)
  for (const [source, length, offset] of [
    [{ path: 'new', create: 'if_needed' }, 2 * MIB, 0], [{ path: 'new', create: 'exclusive' }, MIB, MIB], [{ path: 'new', create: 'always' }, 2 * MIB, 0],
    [{ path: 'old', grow: true }, 2 * MIB, 0], [{ path: 'old', grow: true }, PAGE, 4 * MIB]
  ] as const) {
    await refused(t, opened, ['POST', '/sets/s/parts', { source: { type: 'file', ...source }, length, offset }], 507, 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE', { number: -200021, errno: 'ENOSPC', retryable: false })
    t.same(files(dir), before, `${JSON.stringify(source)}: the files are what they were`)
  }
  t.equal(readFileSync(join(dir, 'old'), 'utf8'), 'o'.repeat(PAGE))
  const { addr } = await mapPart(t, opened, 's', 'new', { length: MIB / 2 })
  await expectGood(t, opened, 's', addr)
})

t.test('a hole that a full file system cannot fill', { skip: cannotMount }, async (t) => {
  const dir = mounted(t, tmpfs('8m'))
  const opened = await open(t, { dir, env: { PMEMSETD_KEEP_FREE_PERCENT: '0' } })
  await makeSet(t, opened, { id: 's' })
  const path = makeFile(dir, 'holes', 4 * MIB)
  const { addr } = await mapPart(t, opened, 's', 'holes', { length: 4 * MIB }, { create: 'never' })
  await expectGood(t, opened, 's', addr)
  fill(dir, 4 * PAGE)
  const hole = plus(addr, MIB)
  await refused(t, opened, ['PUT', `/sets/s/memory?addr=${hole}`, Buffer.alloc(KIB64, 'h')], 507, 'NO_SPACE', { errno: 'ENOSPC', written: 4 * PAGE, durability: 'none', retryable: false })
  t.ok(readFileSync(path).subarray(MIB, MIB + KIB64).equals(Buffer.alloc(KIB64).fill('h', 0, 4 * PAGE)), 'what it says was written is there')
  const lost = plus(hole, 4 * PAGE)
  for (const length of [1, KIB64, 2 * MIB]) {
    const problem = await refused(t, opened, ['GET', `/sets/s/memory?addr=${lost}&length=${length}`], 500, 'PMEMSET_E_IO_FAIL', { reason: 'no_space', addr: /^0x/, offset: Number })
    t.equal(BigInt(problem.addr as string) - BigInt(addr), BigInt(problem.offset as number), `${length} bytes`)
  }
  await expectGood(t, opened, 's', addr)
  await expectGood(t, opened, 's', hole)
  empty(dir)
  await expectGood(t, opened, 's', lost)
})

/* ---- flushes that fail ---- */

t.test('a flush that fails is told once, and never made good by another', { skip: cannotBreak }, async (t) => {
  const { dir, mend } = brokenDisk(t, ['lost', 'deep'])
  const sound = mkdtempSync(join(tmpdir(), 'pmemsetd-test-'))
  t.teardown(() => { rmSync(sound, { recursive: true, force: true }) })
  const opened = await open(t, { dir, env: { PMEMSETD_VOLUMES: `default=${dir},sound=${sound}` } })
  await makeSet(t, opened, { id: 's' })
  await makeSet(t, opened, { id: 'twin' })
  const map = async (set: string, path: string, source: object = { create: 'never' }): Promise<Part> => await mapPart(t, opened, set, path, { id: path, length: 4 * PAGE }, source)
  const lost = await map('s', 'lost')
  const deep = await map('s', 'deep')
  const good = await map('s', 'good', { volume: 'sound' })
  const twin = await map('twin', 'lost')
  const ranges = [{ addr: lost.addr, length: PAGE }]
  t.match(await must(t, opened, 'GET', '/sets/s'), { state: 'ready' })

  t.match(await must(t, opened, 'PUT', `/sets/s/memory?addr=${lost.addr}&durability=none`, Buffer.alloc(PAGE, 'L')), { durability: 'none' })
  const failed = await call(t, opened, 'POST', '/sets/s/persist', { ranges })
  t.match([failed.status, failed.json], [500, { code: 'PERSIST_FAILED', status: 500, errno: /^(ENOSPC|EIO)$/, retryable: false, type: '/errors/PERSIST_FAILED' }])
  t.notOk('retry-after' in failed.headers)

  const afterwards = async (): Promise<void> => {
    for (const flush of ['persist', 'flush', 'deep-flush']) {
      await refused(t, opened, ['POST', `/sets/s/${flush}`, { ranges }], 409, 'SET_DEGRADED', { retryable: false })
      await refused(t, opened, ['POST', `/sets/twin/${flush}`, { ranges: [{ addr: plus(twin.addr, 3 * PAGE), length: 1 }] }], 409, 'SET_DEGRADED')
    }
    for (const durability of ['flushed', 'persisted', 'deep']) await refused(t, opened, ['PUT', `/sets/s/memory?addr=${lost.addr}&durability=${durability}`, Buffer.from('x')], 409, 'SET_DEGRADED', { written: 0, durability: 'none' })
    for (const url of ['/sets/s/parts/lost', `/sets/s/maps/${lost.addr}`, `/sets/s/maps?addr=${lost.addr}&length=${PAGE}`, '/sets/s']) await refused(t, opened, ['DELETE', url], 409, 'SET_DEGRADED')
    await refused(t, opened, ['POST', '/sets/s/parts', { source: { type: 'file', path: 'lost', grow: true }, length: 8 * PAGE }], 409, 'SET_DEGRADED')
    t.match([await must(t, opened, 'GET', '/sets/s') as PmemSet, await must(t, opened, 'GET', '/sets/twin') as PmemSet], [{ state: 'degraded' }, { state: 'degraded' }])
    for (const [set, part, members] of [['s', 'lost', { state: 'degraded', problem: 'PERSIST_FAILED' }], ['twin', 'lost', { state: 'degraded', problem: 'PERSIST_FAILED' }], ['s', 'good', { state: 'mapped', problem: undefined }]] as const) {
      t.match(await must(t, opened, 'GET', `/sets/${set}/parts/${part}`), members)
    }
    t.same(await must(t, opened, 'GET', `/sets/s/memory?addr=${lost.addr}&length=8`), Buffer.alloc(8, 'L'), 'it can be read')
    await expectGood(t, opened, 's', good.addr)
  }
  await afterwards()
  t.match(await must(t, opened, 'GET', '/sets/s/parts/deep'), { state: 'mapped' })
  const further = await call(t, opened, 'PUT', `/sets/s/memory?addr=${deep.addr}&durability=deep`, Buffer.alloc(PAGE, 'D'))
  t.match([further.status, further.json], [500, { code: 'PMEMSET_E_DEEP_FLUSH_FAIL', number: -200018, errno: /^(ENOSPC|EIO)$/, retryable: false, written: PAGE, durability: 'none' }])
  mend()
  await afterwards()
  t.match(await must(t, opened, 'GET', '/sets/s/parts/deep'), { state: 'degraded' })
})

/* ---- a long life ---- */

t.test('mapping and removing leaves nothing behind', async (t) => {
  const opened = await open(t)
  const { window } = await makeSet(t, opened, { id: 's', windowSize: 64 * MIB })
  makeFile(opened.dir, 'f', 4 * MIB)
  const count = (): object => {
    const from = BigInt(window.addr)
    const lines = readFileSync('/proc/self/maps', 'utf8').split('\n').filter((line) => {
      const [lo = 0n, hi = 0n] = (/^([0-9a-f]+)-([0-9a-f]+)/.exec(line) ?? []).slice(1).map((end) => BigInt(`0x${end}`))
      return lo < from + BigInt(window.size) && hi > from
    })
    return { mappings: lines.length, descriptors: readdirSync('/proc/self/fd').length }
  }
  const cycle = async (i: number): Promise<void> => {
    const { id, addr, length, map } = await mapPart(t, opened, 's', i % 3 === 0 ? 'f' : `made-${i % 7}`, { length: (i % 5 + 1) * PAGE }, { grow: true })
    const [method, url] = [['DELETE', `parts/${id}`], ['DELETE', `maps/${map.addr}`], ['DELETE', `maps?addr=${addr}&length=${length}`]][i % 3]!
    await must(t, opened, method!, `/sets/s/${url ?? ''}`)
  }
  for (let i = 0; i < 50; i++) await cycle(i)
  const before = count()
  const started = performance.now()
  let cycles = 0
  while (cycles < 1000 || (cycles < 10_000 && performance.now() - started < 8000)) await cycle(cycles++)
  t.comment(`${cycles} cycles`)
  t.same(count(), before)
  t.match(await must(t, opened, 'GET', '/sets/s'), { partCount: 0, mapCount: 0, mappedBytes: 0 })
  mkdirSync(join(opened.dir, 'still'), { recursive: true })
  await expectGood(t, opened, 's', (await mapPart(t, opened, 's', 'still/here')).addr)
})
