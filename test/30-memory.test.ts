// SPDX-License-Identifier: BSD-3-Clause
// Bytes in and out: every size and seam, every refusal before and in the middle of a body, clients that stall or go away, and what holds a map meanwhile.
import { readFileSync } from 'node:fs'
import { Agent, request as httpRequest } from 'node:http'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { once } from 'node:events'
import { call, listening, makeFile, makeSet, mapPart, MIB, must, open, PAGE, plus, refused, type Opened, type OpenOptions } from './service.js'
import { raw } from './shell.js'

const KIB64 = 64 * 1024
const HOST = 'Host: localhost'

function pattern (length: number, seed: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff))
}

/** A set of three files side by side, 3 MiB each, and all of their bytes. */
async function seams (t: Test, opened: Opened): Promise<{ addr: string, bytes: Buffer }> {
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  const bytes = [1, 2, 3].map((seed) => pattern(3 * MIB, seed))
  let addr = ''
  for (const [i, content] of bytes.entries()) {
    makeFile(opened.dir, `f${i}`, content)
    addr = (await mapPart(t, opened, 's', `f${i}`, { id: `p${i}`, length: 3 * MIB })).map.addr
  }
  return { addr, bytes: Buffer.concat(bytes) }
}

t.test('reads of every size, across seams', async (t) => {
  const opened = await open(t)
  const { addr, bytes } = await seams(t, opened)
  const lengths = [0, 1, 7, PAGE, KIB64 - 1, KIB64, KIB64 + 1, MIB - 1, MIB, MIB + 1, 3 * MIB, 5 * MIB]
  for (const from of [0, 1, 3 * MIB - 5, 3 * MIB - KIB64, 3 * MIB, 4 * MIB - 1]) {
    for (const length of lengths) {
      const reply = await call(t, opened, 'GET', `/sets/s/memory?addr=${plus(addr, from)}&length=${length}`)
      t.ok(reply.bytes.equals(bytes.subarray(from, from + length)), `${length} bytes from ${from}`)
      t.match(reply.headers, { 'content-length': String(length), 'content-type': 'application/octet-stream', 'pmemset-granularity': 'page', 'pmemset-persistence': String, 'cache-control': 'no-store' })
    }
  }
  const whole = await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${9 * MIB}`) as Buffer
  t.ok(whole.equals(bytes))
})

t.test('writes of every size and durability, across seams', async (t) => {
  const opened = await open(t)
  const { addr, bytes } = await seams(t, opened)
  let seed = 10
  for (const durability of ['none', 'flushed', 'persisted', 'deep']) {
    for (const [from, length] of [[0, 1], [3 * MIB - 1, 2], [3 * MIB - KIB64, 2 * KIB64 + 1], [MIB, MIB], [2 * MIB + 3, 4 * MIB], [9 * MIB - 1, 1], [5, 0]] as const) {
      const content = pattern(length, seed++)
      const reply = await must(t, opened, 'PUT', `/sets/s/memory?addr=${plus(addr, from)}&durability=${durability}`, content) as object
      t.match(reply, { ranges: [{ addr: plus(addr, from), length }], bytes: length, durability: durability === 'flushed' ? 'persisted' : durability, granularity: 'page', persistence: String, simulated: undefined })
      content.copy(bytes, from)
    }
  }
  const files = Buffer.concat([0, 1, 2].map((i) => readFileSync(join(opened.dir, `f${i}`))))
  t.ok(files.equals(bytes), 'all of it is in the files, and nothing else has changed')
})

t.test('persist, flush, deep flush and drain', async (t) => {
  const opened = await open(t)
  const { addr } = await seams(t, opened)
  const ranges = [{ addr, length: 10 }, { addr: plus(addr, 3 * MIB - 1), length: 2 }, { addr, length: 9 * MIB }, { addr, length: 0 }]
  for (const [operation, durability] of [['persist', 'persisted'], ['flush', 'persisted'], ['deep-flush', 'deep']]) {
    t.match(await must(t, opened, 'POST', `/sets/s/${operation ?? ''}`, { ranges }), { ranges, bytes: 12 + 9 * MIB, durability, granularity: 'page' })
    const bad = [{ addr, length: 1 }, { addr: plus(addr, 9 * MIB - 1), length: 2 }]
    await refused(t, opened, ['POST', `/sets/s/${operation ?? ''}`, { ranges: bad }], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { errors: [{ in: 'body', pointer: '/ranges/1' }], map: { addr, size: 9 * MIB } })
    await refused(t, opened, ['POST', `/sets/s/${operation ?? ''}`, { ranges: [{ addr: plus(addr, -1), length: 1 }] }], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP', { errors: [{ pointer: '/ranges/0' }] })
    const many = { ranges: Array.from({ length: 1025 }, () => ({ addr, length: 1 })) }
    await refused(t, opened, ['POST', `/sets/s/${operation ?? ''}`, many], 409, 'LIMIT_EXCEEDED', { limit: 'ranges', max: 1024 })
    await refused(t, opened, ['POST', `/sets/s/${operation ?? ''}`, many, { 'if-match': '"x"' }], 412, 'PRECONDITION_FAILED')
    for (const body of [{}, { ranges: [] }, { ranges: [{ addr }] }, { ranges: [{ addr, length: '1' }] }, { ranges: [{ addr: '4000', length: 1 }] }, { ranges: [{ addr, length: 1, x: 1 }] }, { ranges: [{ addr, length: 2 ** 53 }] }]) {
      await refused(t, opened, ['POST', `/sets/s/${operation ?? ''}`, body], 400, 'REQUEST_INVALID')
    }
  }
  t.match(await must(t, opened, 'POST', '/sets/s/drain'), { ranges: [], bytes: 0, durability: 'none', granularity: 'page' })
})

t.test('ranges that leave their map, and requests that are none', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'a', { length: 4 * PAGE })
  await mapPart(t, opened, 's', 'b')
  await must(t, opened, 'DELETE', `/sets/s/maps/${plus(addr, 4 * PAGE)}`)
  const end = plus(addr, 4 * PAGE)
  const map = { addr, size: 4 * PAGE }
  for (const [at, length, code] of [[plus(end, -1), 2, 422], [addr, 4 * PAGE + 1, 422], [addr, Number.MAX_SAFE_INTEGER, 422], [end, 1, 404], [plus(addr, -1), 2, 404], ['0x0', 1, 404], ['0xffffffffffffffff', 1, 404], ['0xffffffffffffffff', 2, 404]] as const) {
    const verdict: [number, string, object] = code === 422 ? [422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { map }] : [404, 'PMEMSET_E_CANNOT_FIND_PART_MAP', {}]
    await refused(t, opened, ['GET', `/sets/s/memory?addr=${at}&length=${length}`], ...verdict)
    if (length < MIB) await refused(t, opened, ['PUT', `/sets/s/memory?addr=${at}`, Buffer.alloc(length)], ...verdict)
  }
  for (const query of ['', `addr=${addr}`, 'length=1', `addr=${addr}&length=0x10`, `addr=${addr}&length=1e3`, `addr=${addr}&length=9007199254740992`, `addr=${addr}&length=9223372036854775808`, `addr=${addr.slice(2)}&length=1`, `addr=${addr}&length=1&addr=${addr}`]) {
    await refused(t, opened, ['GET', `/sets/s/memory?${query}`], 400, 'PARAMETER_INVALID')
  }
  await refused(t, opened, ['GET', `/sets/s/memory?addr=${addr}&length=1&offset=0`], 400, 'PARAMETER_UNKNOWN')
  await refused(t, opened, ['PUT', `/sets/s/memory?addr=${addr}&durability=sure`, Buffer.from('x')], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'durability' }] })
  await refused(t, opened, ['PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('x'), { 'content-range': 'bytes 0-0/*' }], 400, 'PARAMETER_INVALID', { errors: [{ in: 'header', name: 'content-range' }] })
  for (const type of ['application/json', 'text/plain', 'application/x-www-form-urlencoded']) await refused(t, opened, ['PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('{}'), { 'content-type': type }], 415, 'MEDIA_TYPE_UNSUPPORTED', { accepted: 'application/octet-stream' })
  t.match(await call(t, opened, 'HEAD', `/sets/s/memory?addr=${addr}&length=1`), { status: 405, headers: { allow: 'GET, OPTIONS, PUT' } })
})

/* ---- on the wire ---- */

async function wire (t: Test, env: NodeJS.ProcessEnv = {}, progress: OpenOptions['progress'] = {}): Promise<Opened & { addr: string, size: number }> {
  const opened = await listening(t, { env, progress })
  await makeSet(t, opened, { id: 's' })
  const size = 64 * MIB
  const { addr } = await mapPart(t, opened, 's', 'big', { length: size })
  return { ...opened, addr, size }
}

/** A client that asks for a lot and takes nothing of it; resolves when the reply has begun. */
async function stalled (port: number, request: string): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(request)
  await once(socket, 'readable')
  return socket
}

/** Asks again until it is answered so, since a socket's end reaches the service a moment later. */
async function until (t: Test, opened: Opened, method: string, url: string, status: number): Promise<void> {
  for (let i = 0; i < 200; i++) {
    if ((await call(t, opened, method, url)).status === status) { t.pass(`${method} ${url}: ${status}`); return }
    await new Promise((resolve) => { setTimeout(resolve, 10) })
  }
  t.fail(`${method} ${url} is never answered ${status}`)
}

t.test('a refusal comes before 100 Continue and before the body', async (t) => {
  const { port, addr, size, dir } = await wire(t)
  const put = (at: string, head: string): string => `PUT /sets/s/memory?addr=${at} HTTP/1.1\r\n${HOST}\r\n${head}\r\nExpect: 100-continue\r\n\r\n`
  const refusals = [[plus(addr, size - 1), 'Content-Length: 2', 422], [plus(addr, size), 'Content-Length: 1', 404], [addr, 'Content-Length: 107374182400', 422], [addr, 'Content-Length: 1\r\nIf-Match: "x"', 412], ['0x1', 'Transfer-Encoding: chunked', 404]] as const
  await Promise.all(refusals.map(async ([at, head, status]) => {
    const answer = await raw(port, put(at, head), { ms: 4000 })
    t.match([answer.status, answer.head], [status, 'connection: close'], head)
    t.notMatch(answer.text, '100 Continue')
  }))
  const accepted = await raw(port, put(addr, 'Content-Length: 3\r\nConnection: close'), { onText: (text, send) => { if (text.endsWith('Continue\r\n\r\n')) send('abc') } })
  t.match(accepted.text, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 /)
  t.equal(readFileSync(join(dir, 'big')).subarray(0, 3).toString(), 'abc')
})

t.test('bodies that are longer than any map, and bodies that are none', async (t) => {
  const { port, addr, size, dir } = await wire(t)
  const put = async (head: string, status: number, members: object, body = ''): Promise<void> => {
    const answer = await raw(port, `PUT /sets/s/memory?addr=${plus(addr, size - 4)} HTTP/1.1\r\n${HOST}\r\n${head}\r\n\r\n${body}`, { ms: 4000 })
    t.match([answer.status, JSON.parse(answer.body)], [status, members], head)
  }
  await Promise.all([
    ...['8', '9007199254740991', '9007199254740992', '9007199254740993', '9223372036854775808', '18446744073709551615'].map((length) => (
      put(`Content-Length: ${length}`, 422, { code: 'PMEMSET_E_LENGTH_OUT_OF_RANGE', map: { addr, size } }, 'abcdefgh')
    )),
    ...['18446744073709551616', '-1', '1e3', '0x10', ''].map((length) => put(`Content-Length: ${length}`, 400, { code: 'REQUEST_INVALID' }, 'abcdefgh')),
    ...['', '\r\nContent-Length: 0', '\r\nContent-Type: application/octet-stream'].map((more) => put(`Connection: close${more}`, 200, { bytes: 0 }))
  ])
  t.same(readFileSync(join(dir, 'big')).subarray(-8), Buffer.alloc(8), 'none of it was written')
  const behind = await raw(port, `PUT /sets/s/memory?addr=${addr} HTTP/1.1\r\n${HOST}\r\nContent-Length: 3\r\n\r\nabcGARBAGE\r\n\r\n`)
  t.match([behind.text, behind.end], [/^(HTTP\/1\.1 200 |$)/, /closed|reset/], 'what follows a write is never the answer to it')
})

t.test('a body of unknown length that runs over is told how much was written', async (t) => {
  const { port, addr, size, dir } = await wire(t)
  const head = `PUT /sets/s/memory?addr=${plus(addr, size - MIB - 3)} HTTP/1.1\r\n${HOST}\r\nTransfer-Encoding: chunked\r\n\r\n`
  const chunk = (bytes: Buffer): Buffer => Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`), bytes, Buffer.from('\r\n')])
  const answer = await raw(port, Buffer.concat([Buffer.from(head), chunk(Buffer.alloc(MIB, 'a')), chunk(Buffer.from('bcd')), chunk(Buffer.from('e')), Buffer.from('0\r\n\r\n')]), { ms: 4000 })
  t.match([answer.status, JSON.parse(answer.body)], [422, { code: 'PMEMSET_E_LENGTH_OUT_OF_RANGE', written: Number, durability: 'none' }])
  const { written } = JSON.parse(answer.body) as { written: number }
  t.ok(readFileSync(join(dir, 'big')).subarray(size - MIB - 3, size - MIB - 3 + written).equals(Buffer.alloc(MIB + 3, 'a').fill('bcd', MIB).subarray(0, written)), `${written} bytes`)
  const whole = await raw(port, Buffer.concat([Buffer.from(head.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n')), chunk(Buffer.alloc(MIB, 'x')), chunk(Buffer.from('yz!')), Buffer.from('0\r\n\r\n')]), { ms: 4000 })
  t.match([whole.status, JSON.parse(whole.body)], [200, { bytes: MIB + 3, durability: 'persisted' }])
  t.equal(readFileSync(join(dir, 'big')).subarray(-4).toString(), 'xyz!')
})

t.test('a download that stalls holds its map, and a client that goes lets it go', async (t) => {
  const opened = await wire(t)
  const { port, addr, size } = opened
  const get = `GET /sets/s/memory?addr=${addr}&length=${size} HTTP/1.1\r\n${HOST}\r\n\r\n`
  const inUse = ['DELETE', `/sets/s/maps/${addr}`] as const
  const socket = await stalled(port, get)
  await refused(t, opened, [...inUse], 409, 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP', { number: -200022, retryable: true })
  await refused(t, opened, ['DELETE', '/sets/s'], 409, 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP')
  socket.destroy()
  await until(t, opened, 'GET', '/readyz', 200)
  const half = `PUT /sets/s/memory?addr=${addr} HTTP/1.1\r\n${HOST}\r\nContent-Length: 100\r\n\r\nhalf`
  for (const queued of [get + get, half, get + half]) {
    const pipelined = await stalled(port, get + queued)
    await refused(t, opened, [...inUse], 409, 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP')
    pipelined.resetAndDestroy()
    await until(t, opened, 'DELETE', `/sets/s/maps/${addr}`, 204)
    t.equal((await mapPart(t, opened, 's', 'big', { length: size })).addr, addr)
  }
})

t.test('an upload that stalls holds its map, and a client that goes lets it go', async (t) => {
  const opened = await wire(t)
  const { port, addr } = opened
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`PUT /sets/s/memory?addr=${addr} HTTP/1.1\r\n${HOST}\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n`)
  await once(socket, 'readable') // 100 Continue: it is under way
  await refused(t, opened, ['DELETE', `/sets/s/maps/${addr}`], 409, 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP')
  socket.write('half')
  socket.destroy()
  await until(t, opened, 'DELETE', `/sets/s/maps/${addr}`, 204)
})

t.test('a client that stalls is cut off, and lets its map go', async (t) => {
  const opened = await wire(t, {}, { progressBytes: KIB64, progressMs: 300 })
  const { port, addr, size } = opened
  const download = await stalled(port, `GET /sets/s/memory?addr=${addr}&length=${size} HTTP/1.1\r\n${HOST}\r\n\r\n`)
  const upload = await stalled(port, `PUT /sets/s/memory?addr=${addr} HTTP/1.1\r\n${HOST}\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n`)
  await refused(t, opened, ['DELETE', '/sets/s'], 409, 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP')
  await until(t, opened, 'DELETE', '/sets/s', 204)
  download.destroy()
  upload.destroy()
})

t.test('no more streams than the limit', async (t) => {
  const opened = await wire(t, { PMEMSETD_STREAMS_MAX: '1' })
  const { port, addr, size } = opened
  const url = `/sets/s/memory?addr=${addr}&length=${size}`
  const socket = await stalled(port, `GET ${url} HTTP/1.1\r\n${HOST}\r\n\r\n`)
  const problem = await refused(t, opened, ['GET', url], 503, 'BUSY', { limit: 'streams', max: 1, retryable: true })
  t.ok(problem.retryable)
  t.match((await call(t, opened, 'PUT', `/sets/s/memory?addr=${addr}`, Buffer.alloc(KIB64 + 1))).headers, { 'retry-after': '1' })
  t.equal((await call(t, opened, 'PUT', `/sets/s/memory?addr=${addr}`, Buffer.alloc(KIB64))).status, 200, 'nor is what is written at once')
  t.equal((await call(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=64`)).status, 200, 'what is read at once is no stream')
  socket.destroy()
  await until(t, opened, 'GET', url, 200)
})

t.test('many clients at once: an aligned word is never torn', async (t) => {
  const opened = await wire(t)
  const { addr } = opened
  const words = ['AAAAAAAA', 'BBBBBBBB', 'CCCCCCCC', 'DDDDDDDD'].map((word) => Buffer.from(word.repeat(512)))
  const torn: string[] = []
  await Promise.all(Array.from({ length: 50 }, async (_, client) => {
    for (let i = 0; i < 20; i++) {
      if (client % 2 === 0) {
        await must(t, opened, 'PUT', `/sets/s/memory?addr=${addr}&durability=${i % 5 === 0 ? 'persisted' : 'none'}`, words[(client + i) % words.length])
      } else {
        const bytes = await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${PAGE}`) as Buffer
        for (let at = 0; at < PAGE; at += 8) {
          const word = bytes.subarray(at, at + 8).toString('latin1')
          if (!/^(.)\1{7}$/s.test(word)) torn.push(word)
        }
      }
    }
  }))
  t.same(torn, [])
})

t.test('fifty clients on sockets of their own, each with its own bytes', async (t) => {
  const { port, addr, dir } = await wire(t)
  const agent = new Agent({ keepAlive: true, maxSockets: 50 })
  t.teardown(() => { agent.destroy() })
  const send = (method: string, url: string, body?: Buffer): Promise<Buffer> => new Promise((resolve, reject) => {
    const request = httpRequest({ port, host: '127.0.0.1', agent, method, path: url, headers: { host: 'localhost' } }, (reply) => {
      const chunks: Buffer[] = []
      reply.on('data', (chunk: Buffer) => chunks.push(chunk))
      reply.on('end', () => { if (reply.statusCode === 200) resolve(Buffer.concat(chunks)); else reject(new Error(Buffer.concat(chunks).toString())) })
    })
    request.on('error', reject)
    request.end(body)
  })
  const share = 300 * 1024 + 7
  await Promise.all(Array.from({ length: 50 }, async (_, client) => {
    const at = plus(addr, client * share)
    for (let round = 0; round < 4; round++) {
      const bytes = pattern(share, client * 4 + round)
      await send('PUT', `/sets/s/memory?addr=${at}&durability=${round % 2 === 0 ? 'none' : 'persisted'}`, bytes)
      if (!(await send('GET', `/sets/s/memory?addr=${at}&length=${share}`)).equals(bytes)) t.fail(`client ${client}, round ${round}`)
    }
  }))
  const bytes = readFileSync(join(dir, 'big'))
  for (let client = 0; client < 50; client++) t.ok(bytes.subarray(client * share, (client + 1) * share).equals(pattern(share, client * 4 + 3)), `client ${client}`)
  t.same(bytes.subarray(50 * share, 50 * share + PAGE), Buffer.alloc(PAGE))
})

// The end of the body fell together with the end of a piece and of the part: one more write, of nothing, was refused behind the part's end.
for (const durability of ['none', 'persisted']) {
  t.test(`a body of whole pieces up to the very end of the part, ${durability}`, async (t) => {
    const opened = await open(t)
    await makeSet(t, opened, { id: 's' })
    const { addr } = await mapPart(t, opened, 's', 'f', { length: 3 * MIB })
    const bytes = pattern(3 * MIB, 9)
    t.match(await must(t, opened, 'PUT', `/sets/s/memory?addr=${addr}&durability=${durability}`, bytes), { bytes: bytes.length, durability })
    t.ok(bytes.equals(await must(t, opened, 'GET', `/sets/s/memory?addr=${addr}&length=${bytes.length}`)))
  })
}
