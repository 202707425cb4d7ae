// SPDX-License-Identifier: BSD-3-Clause
// Bytes in bulk, on the wire: parts of gibibytes, clients that are slow or go away, and files that are cut while their bytes are under way. No byte of a
// mapping is read here or in the service, so private memory is what it was before.
import { createReadStream, openSync, readSync, closeSync, readFileSync, truncateSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { call, listening, makeFile, makeSet, mapPart, MIB, must, PAGE, plus, refused, type Opened, type OpenOptions } from './service.js'

const GIB = 1024 * MIB
const HOST = 'Host: localhost'
const IN_USE = 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP'

function pattern (length: number, seed: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff))
}

/** Memory that belongs to nobody else: pages of mapped files are not of it. */
function privateBytes (): number {
  return Number(/^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? NaN) * 1024
}

interface Big extends Opened {
  addr: string
  size: number
  path: string
}

async function big (t: Test, size: number, progress: OpenOptions['progress'] = {}): Promise<Big> {
  const opened = await listening(t, { progress })
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  const path = makeFile(opened.dir, 'big', size)
  const { addr } = await mapPart(t, opened, 's', 'big', { id: 'p', length: size })
  return { ...opened, addr, size, path }
}

const get = ({ addr }: Big, length: number, from = 0): string => `GET /sets/s/memory?addr=${plus(addr, from)}&length=${length} HTTP/1.1\r\n${HOST}\r\n\r\n`

interface Taken { head: string, body: number, last: Buffer, end: 'whole' | 'short' }

/** Takes a reply as fast as it comes, and looks at nothing but its length and its last bytes. `on` is told how much has come. */
function take (socket: Socket, on: (body: number) => void = () => {}): Promise<Taken> {
  return new Promise((resolve) => {
    let head = ''
    let expected = Infinity
    let body = 0
    let last: Buffer = Buffer.alloc(0)
    const finish = (end: Taken['end']): void => {
      socket.destroy()
      resolve({ head, body, last, end })
    }
    socket.on('data', (chunk: Buffer) => {
      let bytes = chunk
      if (expected === Infinity) {
        head += chunk.toString('latin1')
        const at = head.indexOf('\r\n\r\n')
        if (at < 0) return
        bytes = chunk.subarray(chunk.length - (head.length - at - 4))
        head = head.slice(0, at)
        expected = Number(/content-length: (\d+)/i.exec(head)?.[1])
      }
      body += bytes.length
      last = bytes.length < 16 ? Buffer.concat([last, bytes]).subarray(-16) : bytes.subarray(-16)
      on(body)
      if (body >= expected) finish('whole')
    })
    socket.on('close', () => { finish('short') })
    socket.on('error', () => { finish('short') })
  })
}

function client (port: number, text: string | Buffer): Socket {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(text)
  return socket
}

async function until (t: Test, opened: Opened, method: string, url: string, status: number): Promise<void> {
  for (let i = 0; i < 500; i++) {
    if ((await call(t, opened, method, url)).status === status) { t.pass(`${method} ${url}: ${status}`); return }
    await sleep(10)
  }
  t.fail(`${method} ${url} is never answered ${status}`)
}

/** Nothing is held any more: the set can go. */
async function letGo (t: Test, opened: Big): Promise<void> {
  await until(t, opened, 'DELETE', '/sets/s/parts/p', 204)
  await mapPart(t, opened, 's', 'big', { id: 'p', length: opened.size })
}

t.test('8 GiB out, and private memory stays what it was', async (t) => {
  const opened = await big(t, 8 * GIB)
  const { port } = opened
  await must(t, opened, 'PUT', `/sets/s/parts/p/content?offset=${8 * GIB - 16}`, Buffer.from('the very last 16'))
  let most = 0
  const before = privateBytes()
  const watch = setInterval(() => { most = Math.max(most, privateBytes()) }, 20)
  const taken = await take(client(port, `GET /sets/s/parts/p/content HTTP/1.1\r\n${HOST}\r\n\r\n`))
  clearInterval(watch)
  t.match(taken, { head: /^HTTP\/1\.1 200 /, body: 8 * GIB, end: 'whole' })
  t.equal(taken.last.toString(), 'the very last 16')
  t.ok(most - before < 128 * MIB, `private memory grew by ${Math.round((most - before) / MIB)} MiB of 8192`)
  await letGo(t, opened)
})

t.test('512 MiB in, and private memory stays what it was', async (t) => {
  const opened = await big(t, 8 * GIB)
  const { port, path } = opened
  const length = 512 * MIB
  const from = 4 * GIB - 100 * MIB
  const before = privateBytes()
  let most = 0
  const watch = setInterval(() => { most = Math.max(most, privateBytes()) }, 20)
  const socket = client(port, `PUT /sets/s/parts/p/content?offset=${from} HTTP/1.1\r\n${HOST}\r\nContent-Length: ${length}\r\n\r\n`)
  const reply = take(socket)
  const piece = pattern(MIB, 5)
  for (let sent = 0; sent < length; sent += MIB) {
    if (!socket.write(piece)) await new Promise((resolve) => { socket.once('drain', resolve) })
  }
  t.match((await reply).head, /^HTTP\/1\.1 200 /)
  clearInterval(watch)
  t.ok(most - before < 200 * MIB, `private memory grew by ${Math.round((most - before) / MIB)} MiB of 512, the client's part of it included`)
  let at = 0
  let wrong = 0
  for await (const chunk of createReadStream(path, { start: from, end: from + length - 1, highWaterMark: MIB }) as AsyncIterable<Buffer>) {
    if (!chunk.equals(piece)) wrong++
    at += chunk.length
  }
  t.same([at, wrong], [length, 0])
  const fd = openSync(path, 'r')
  for (const edge of [from - PAGE, from + length]) {
    const bytes = Buffer.alloc(PAGE, 1)
    readSync(fd, bytes, 0, PAGE, edge)
    t.same(bytes, Buffer.alloc(PAGE), 'nothing else was written')
  }
  closeSync(fd)
})

t.test('the pieces of an upload end where a word does, so that none is torn', async (t) => {
  const opened = await big(t, 8 * MIB)
  const { engine } = opened.service.sets.get('s').context
  const write = engine.writePieces.bind(engine)
  const ends: bigint[] = []
  engine.writePieces = (set, addr, pieces, durability) => {
    ends.push(addr + BigInt(pieces.reduce((sum, { length }) => sum + length, 0)))
    return write(set, addr, pieces, durability)
  }
  t.teardown(() => Reflect.deleteProperty(engine, 'writePieces'))
  const body = pattern(6 * MIB + 2, 3)
  const start = BigInt(opened.addr) + 3n
  const url = `http://127.0.0.1:${opened.port}/sets/s/memory?addr=0x${start.toString(16)}`
  for (const sent of [body, new Blob([body.subarray(0, 5), body.subarray(5)]).stream()]) {
    ends.length = 0
    const reply = await fetch(url, { method: 'PUT', headers: { 'content-type': 'application/octet-stream' }, body: sent, duplex: 'half' })
    t.equal(reply.status, 200)
    t.equal((await reply.json() as { bytes: number }).bytes, body.length)
    t.equal(ends.pop(), start + BigInt(body.length))
    t.ok(ends.length > 3)
    t.ok(ends.every((end) => end % 8n === 0n))
    t.ok(readFileSync(opened.path).subarray(3, 3 + body.length).equals(body))
  }
})

t.test('over the boundaries of 2, 4 and 6 GiB', async (t) => {
  const opened = await big(t, 8 * GIB)
  for (const [i, edge] of [GIB, 2 * GIB, 4 * GIB, 6 * GIB].entries()) {
    for (const length of [2, 70_000, 9 * MIB + 1]) {
      const from = edge - Math.floor(length / 2)
      const bytes = pattern(length, i + length)
      await must(t, opened, 'PUT', `/sets/s/parts/p/content?offset=${from}&durability=none`, bytes)
      const ranged = await call(t, opened, 'GET', '/sets/s/parts/p/content', undefined, { range: `bytes=${from}-${from + length - 1}` })
      t.match([ranged.status, ranged.headers['content-range']], [206, `bytes ${from}-${from + length - 1}/${8 * GIB}`])
      t.ok(ranged.bytes.equals(bytes), `${length} bytes over ${edge / GIB} GiB`)
      t.ok((await must(t, opened, 'GET', `/sets/s/memory?addr=${plus(opened.addr, from)}&length=${length}`) as Buffer).equals(bytes))
    }
  }
  const suffix = await call(t, opened, 'GET', '/sets/s/parts/p/content', undefined, { range: 'bytes=-100000' })
  t.match(suffix.headers, { 'content-range': `bytes ${8 * GIB - 100_000}-${8 * GIB - 1}/${8 * GIB}` })
})

t.test('a client that stalls in the middle of 4 GiB holds the map, until the rule of progress cuts it off', async (t) => {
  const opened = await big(t, 4 * GIB, { progressBytes: 64 * 1024, progressMs: 1500 })
  const socket = client(opened.port, get(opened, 4 * GIB))
  await new Promise((resolve) => { socket.once('readable', resolve) })
  socket.pause()
  await refused(t, opened, ['DELETE', '/sets/s/parts/p'], 409, IN_USE)
  await refused(t, opened, ['DELETE', '/sets/s'], 409, IN_USE)
  await until(t, opened, 'DELETE', '/sets/s', 204)
  t.ok(opened.lines.some((line) => line.includes('stands still')), 'and the log says so')
  socket.destroy()
})

t.test('a client that is slow, but goes on, is not cut off', async (t) => {
  const opened = await big(t, 64 * MIB, { progressBytes: 64 * 1024, progressMs: 2000 })
  const bytes = pattern(24 * MIB, 3)
  await must(t, opened, 'PUT', '/sets/s/parts/p/content', bytes)
  const socket = client(opened.port, get(opened, bytes.length))
  socket.pause()
  const chunks: Buffer[] = []
  let size = 0
  // Some 1.5 MiB a second: a slice of 4 MiB takes longer than the rule's time.
  while (size < bytes.length && !socket.destroyed) {
    await sleep(40)
    const chunk = socket.read() as Buffer | null
    if (chunk === null) continue
    chunks.push(chunk)
    size += chunk.length
    if (size > 12 * MIB) break
  }
  t.notOk(socket.destroyed, 'slow reader')
  const whole = (chunks[0]?.indexOf('\r\n\r\n') ?? 0) + 4 + bytes.length
  await new Promise<void>((resolve) => {
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      size += chunk.length
      if (size === whole) resolve()
    })
    socket.on('close', () => { resolve() })
    socket.resume()
  })
  const rest = Buffer.concat(chunks)
  t.ok(rest.subarray(rest.indexOf('\r\n\r\n') + 4).equals(bytes), 'it gets everything')
  socket.destroy()

  const writer = client(opened.port, `PUT /sets/s/parts/p/content?offset=1 HTTP/1.1\r\n${HOST}\r\nContent-Length: ${4 * MIB}\r\nConnection: close\r\n\r\n`)
  const answer = take(writer)
  for (let sent = 0; sent < 4 * MIB; sent += 256 * 1024) {
    writer.write(bytes.subarray(sent, sent + 256 * 1024))
    await sleep(100)
  }
  t.match((await answer).head, /^HTTP\/1\.1 200 /, 'slow writer')
  const fd = openSync(opened.path, 'r')
  const written = Buffer.alloc(4 * MIB)
  readSync(fd, written, 0, written.length, 1)
  closeSync(fd)
  t.ok(written.equals(bytes.subarray(0, 4 * MIB)))
})

t.test('a client may go at any point, and nothing stays held', async (t) => {
  const opened = await big(t, 64 * MIB)
  const { port } = opened
  for (const bytes of [0, 1, 100, 70_000, MIB, 5 * MIB, 9 * MIB, 30 * MIB, 64 * MIB - 1]) {
    for (const how of ['destroy', 'resetAndDestroy'] as const) {
      const reader = client(port, get(opened, 64 * MIB))
      if (bytes === 0) await sleep(1)
      else await Promise.race([take(reader, (body) => { if (body >= bytes) reader[how]() }), sleep(2000)])
      reader[how]()
    }
    const writer = client(port, `PUT /sets/s/parts/p/content HTTP/1.1\r\n${HOST}\r\nContent-Length: ${64 * MIB}\r\n\r\n`)
    writer.write(Buffer.alloc(Math.min(bytes, 20 * MIB), 1))
    await sleep(10)
    writer.resetAndDestroy()
  }
  await letGo(t, opened)
})

t.test('replies that wait behind another one, and a reset', async (t) => {
  const opened = await big(t, 64 * MIB)
  const one = get(opened, 32 * MIB)
  const put = `PUT /sets/s/parts/p/content HTTP/1.1\r\n${HOST}\r\nContent-Length: ${2 * MIB}\r\n\r\n`
  for (const text of [one + one + one, one + get(opened, 70_000) + one, Buffer.concat([Buffer.from(one + one + put), Buffer.alloc(MIB)]), one + get(opened, 100) + one]) {
    const socket = client(opened.port, text)
    await new Promise((resolve) => { socket.once('readable', resolve) })
    await sleep(50)
    await refused(t, opened, ['DELETE', '/sets/s/parts/p'], 409, IN_USE)
    socket.resetAndDestroy()
    await letGo(t, opened)
  }
  const bytes = pattern(32 * MIB, 9)
  await must(t, opened, 'PUT', '/sets/s/parts/p/content', bytes)
  const socket = client(opened.port, one + get(opened, 70_000, 5) + get(opened, 10, 7) + one)
  const chunks: Buffer[] = []
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    chunks.push(chunk)
    if (chunks.reduce((sum, { length }) => sum + length, 0) > 64 * MIB + 70_010 + 4 * 100) break
  }
  let text = Buffer.concat(chunks)
  for (const [from, length] of [[0, 32 * MIB], [5, 70_000], [7, 10], [0, 32 * MIB]] as const) {
    const at = text.indexOf('\r\n\r\n') + 4
    t.match(text.subarray(0, at).toString(), new RegExp(`^HTTP/1\\.1 200 [^]*content-length: ${length}\r\n`))
    t.ok(text.subarray(at, at + Math.min(length, text.length - at)).equals(bytes.subarray(from, from + Math.min(length, text.length - at))), `${length} bytes, in their turn`)
    text = text.subarray(at + length)
  }
})

t.test('a body in chunks of any size, after 100 Continue or not', async (t) => {
  const opened = await big(t, 16 * MIB)
  for (const [head, sizes] of [['', [1, 3, 70_000, 2, MIB - 1, 1, 2 * MIB + 7, 65_536, 1]], ['Expect: 100-continue\r\n', [MIB, MIB, MIB]], ['Expect: 100-continue\r\n', Array.from({ length: 3000 }, (_, i) => i % 700 + 1)]] as const) {
    const bytes = pattern(sizes.reduce((sum, size) => sum + size, 0), sizes.length)
    const socket = client(opened.port, `PUT /sets/s/parts/p/content?offset=3 HTTP/1.1\r\n${HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n${head}\r\n`)
    let text = ''
    socket.on('data', (chunk: Buffer) => { text += chunk.toString() })
    const closed = new Promise((resolve) => { socket.once('close', resolve) })
    if (head !== '') await new Promise((resolve) => { socket.once('data', resolve) })
    let at = 0
    for (const size of sizes) {
      // The length of a chunk, the chunk and what follows it each in a packet of its own now and then.
      socket.write(`${size.toString(16)}\r\n`)
      if (at % 5 === 0) await sleep(0)
      socket.write(bytes.subarray(at, at + size))
      socket.write('\r\n')
      at += size
    }
    socket.write('0\r\n\r\n')
    await closed
    t.match(text, head === '' ? /^HTTP\/1\.1 200 / : /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 /)
    t.ok(readFileSync(opened.path).subarray(3, 3 + bytes.length).equals(bytes), `${sizes.length} chunks`)
  }
})

/* ---- files that are cut behind the service's back ---- */

t.test('a file that is cut in the middle of a reply breaks it off', async (t) => {
  const opened = await big(t, 256 * MIB)
  const other = await mapPart(t, opened, 's', 'other', { id: 'other', length: 2 * MIB })
  // To a page, to the middle of the last page (whose rest reads as zeros and faults nobody), and of the last part of the reply that is not the file's last.
  for (const [size, length] of [[100 * MIB, 256 * MIB], [0, 256 * MIB], [256 * MIB - 100, 256 * MIB], [256 * MIB - 1, 256 * MIB], [128 * MIB - 5000, 128 * MIB], [128 * MIB - 1, 128 * MIB], [256 * MIB - 1, 256 * MIB + MIB]] as const) {
    truncateSync(opened.path, 256 * MIB)
    opened.lines.length = 0
    const socket = client(opened.port, get(opened, length))
    await new Promise((resolve) => { socket.once('readable', resolve) })
    await sleep(20)
    truncateSync(opened.path, size)
    const taken = await take(socket)
    t.match(taken, { end: 'short', head: /^HTTP\/1\.1 200 / }, `cut to ${size}: ${taken.body} bytes of ${length}`)
    t.ok(taken.body < length)
    for (let i = 0; i < 100 && opened.lines.length === 0; i++) await sleep(10)
    t.ok(opened.lines.some((line) => line.includes('PMEMSET_E_IO_FAIL') && line.includes('TRUNCATED')), 'and the log says why')
    t.equal((await call(t, opened, 'GET', `/sets/s/memory?addr=${other.addr}&length=${MIB}`)).status, 200, 'everything else goes on')
  }
  // Here it is known before the head goes out, also of a byte far behind the first slice.
  await refused(t, opened, ['GET', `/sets/s/memory?addr=${opened.addr}&length=${256 * MIB}`], 500, 'PMEMSET_E_IO_FAIL', { reason: 'truncated' })
  truncateSync(opened.path, 256 * MIB)
  t.equal((await call(t, opened, 'GET', `/sets/s/memory?addr=${opened.addr}&length=${MIB}`)).status, 200)
  await letGo(t, opened)
})

t.test('a file that is cut in the middle of an upload ends it with what was written', async (t) => {
  const opened = await big(t, 64 * MIB)
  for (const durability of ['none', 'persisted']) {
    truncateSync(opened.path, 64 * MIB)
    const socket = client(opened.port, `PUT /sets/s/parts/p/content?durability=${durability} HTTP/1.1\r\n${HOST}\r\nContent-Length: ${40 * MIB}\r\n\r\n`)
    const answer = new Promise<string>((resolve) => {
      let text = ''
      socket.on('data', (chunk: Buffer) => { text += chunk.toString() })
      socket.on('close', () => { resolve(text) })
    })
    socket.write(pattern(20 * MIB, 1))
    await sleep(300)
    truncateSync(opened.path, 10 * MIB)
    socket.write(pattern(20 * MIB, 1))
    const text = await answer
    const problem = JSON.parse(text.slice(text.indexOf('\r\n\r\n') + 4)) as { written: number }
    t.match([text, problem], [/^HTTP\/1\.1 500 /, { code: 'PMEMSET_E_IO_FAIL', reason: 'truncated', written: Number, durability: 'none' }])
    t.ok(problem.written <= 21 * MIB, `${problem.written} bytes`)
    t.equal(readFileSync(opened.path).length, 10 * MIB, 'it is not made longer again')
  }
  truncateSync(opened.path, 64 * MIB)
  await letGo(t, opened)
})
