// SPDX-License-Identifier: BSD-3-Clause
// The bytes of a part by offset: ranges asked for and given, digests, and all ways in and out against a model of plain buffers.
import { createHash } from 'node:crypto'
import { readFileSync, truncateSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { call, listening, makeFile, makeSet, mapPart, MIB, must, open, PAGE, plus, refused, type Opened } from './service.js'
import { raw } from './shell.js'

const SIZE = 16 * PAGE
const URL = '/sets/s/parts/p/content'

function pattern (length: number, seed: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff))
}

function digest (algorithm: string, bytes: Buffer): string {
  return `${algorithm}=:${createHash(algorithm.replace('-', '')).update(bytes).digest('base64')}:`
}

/** The part `p` in the middle of a map, so that what is before and behind it can be seen to be left alone. */
async function middle (t: Parameters<typeof open>[0], how: typeof open = open): Promise<Opened & { bytes: Buffer, addr: string }> {
  const opened = await how(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  const bytes = pattern(SIZE, 1)
  makeFile(opened.dir, 'f', bytes)
  await mapPart(t, opened, 's', 'before', { length: PAGE })
  const { addr } = await mapPart(t, opened, 's', 'f', { id: 'p', length: SIZE })
  await mapPart(t, opened, 's', 'behind', { length: PAGE })
  return { ...opened, bytes, addr }
}

t.test('one range of bytes', async (t) => {
  const opened = await middle(t)
  const { bytes } = opened
  const given: Array<[range: string, from: number, to: number]> = [
    ['bytes=0-0', 0, 0], ['bytes=0-', 0, SIZE - 1], ['bytes=5-9', 5, 9], [`bytes=${SIZE - 1}-`, SIZE - 1, SIZE - 1], [`bytes=0-${SIZE}`, 0, SIZE - 1], ['bytes=7-99999999999999999999', 7, SIZE - 1],
    ['bytes=-1', SIZE - 1, SIZE - 1], ['bytes=-100', SIZE - 100, SIZE - 1], [`bytes=-${SIZE}`, 0, SIZE - 1], ['bytes=-99999999999999999999', 0, SIZE - 1], ['BYTES=1-2', 1, 2], ['bytes= 1-2 ', 1, 2], ['bytes=00001-0002', 1, 2]
  ]
  for (const [range, from, to] of given) {
    const reply = await call(t, opened, 'GET', URL, undefined, { range })
    t.match([reply.status, reply.headers], [206, { 'content-range': `bytes ${from}-${to}/${SIZE}`, 'content-length': String(to - from + 1), 'accept-ranges': 'bytes', 'content-type': 'application/octet-stream', 'pmemset-granularity': 'page', 'pmemset-persistence': String }], range)
    t.ok(reply.bytes.equals(bytes.subarray(from, to + 1)), range)
  }
  for (const range of ['bytes=0-1,4-5', 'bytes=', 'bytes=-', 'bytes=5-4', 'bytes=a-b', 'bytes=1', 'bytes=1-2-3', 'bytes=-1-', 'items=0-1', 'bytes 0-1', 'bytes=0x1-2', 'bytes=1-,']) {
    const reply = await call(t, opened, 'GET', URL, undefined, { range })
    t.match([reply.status, reply.headers['content-length'], reply.headers['content-range']], [200, String(SIZE), undefined], `${range} is not one range of bytes`)
    t.ok(reply.bytes.equals(bytes))
  }
  for (const range of [`bytes=${SIZE}-`, `bytes=${SIZE}-${SIZE}`, 'bytes=99999999999999999999-', 'bytes=-0']) {
    await refused(t, opened, ['GET', URL, undefined, { range }], 416, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { size: SIZE, number: -200033 })
    t.equal((await call(t, opened, 'GET', URL, undefined, { range })).headers['content-range'], `bytes */${SIZE}`, range)
  }
  for (const validator of ['"x"', 'Wed, 21 Oct 2026 07:28:00 GMT']) t.equal((await call(t, opened, 'GET', URL, undefined, { range: 'bytes=0-0', 'if-range': validator })).status, 200, 'no validator is ours')
})

t.test('HEAD tells, and reads nothing', async (t) => {
  const opened = await middle(t)
  truncateSync(join(opened.dir, 'f'), 0)
  await refused(t, opened, ['GET', URL], 500, 'PMEMSET_E_IO_FAIL', { reason: 'truncated' })
  for (const headers of [{}, { range: 'bytes=0-0' }, { range: `bytes=${SIZE}-` }]) {
    const reply = await call(t, opened, 'HEAD', URL, undefined, headers as Record<string, string>)
    t.match([reply.status, reply.bytes.length, reply.headers], [200, 0, { 'content-length': String(SIZE), 'accept-ranges': 'bytes', 'content-type': 'application/octet-stream', 'pmemset-granularity': 'page', 'cache-control': 'no-store' }])
  }
  await refused(t, opened, ['GET', '/sets/s/parts/q/content'], 404, 'PMEMSET_E_PART_NOT_FOUND')
})

t.test('a write goes where offset or Content-Range says, and nowhere else', async (t) => {
  const opened = await middle(t)
  const { bytes, addr } = opened
  const put = async (from: number, query: string, content: Buffer, headers: Record<string, string> = {}): Promise<void> => {
    t.match(await must(t, opened, 'PUT', `${URL}${query}`, content, headers), { ranges: [{ addr: plus(addr, from), length: content.length }], bytes: content.length, durability: 'persisted' })
    content.copy(bytes, from)
  }
  await put(0, '', pattern(10, 3))
  await put(PAGE - 3, `?offset=${PAGE - 3}`, pattern(PAGE, 4))
  await put(SIZE - 1, `?offset=${SIZE - 1}&durability=persisted`, Buffer.from('!'))
  await put(5, '', pattern(100, 5), { 'content-range': 'bytes 5-104/*' })
  await put(9, '?offset=9', pattern(3, 6), { 'content-range': 'bytes 9-11/12' })
  await put(0, '', pattern(SIZE, 7), { 'content-range': `bytes 0-${SIZE - 1}/${SIZE}` })
  await put(8, '?offset=8', Buffer.alloc(0))
  const x = Buffer.from('xyz')
  for (const value of ['bytes 0-1/*', 'bytes 2-1/*', 'bytes 0-2', 'bytes 0-2/2', 'bytes */3', 'bytes=0-2/*', 'items 0-2/3', 'bytes 0-2/x', '0-2/3', 'bytes 9007199254740990-9007199254740992/*']) {
    await refused(t, opened, ['PUT', URL, x, { 'content-range': value }], 400, 'PARAMETER_INVALID', { errors: [{ in: 'header', name: 'content-range' }] })
  }
  await refused(t, opened, ['PUT', `${URL}?offset=1`, x, { 'content-range': 'bytes 0-2/*' }], 400, 'PARAMETER_INVALID', { errors: [{ in: 'header', name: 'content-range' }] })
  await refused(t, opened, ['PUT', URL, x, { 'content-range': `bytes ${SIZE - 2}-${SIZE}/*` }], 416, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { size: SIZE })
  for (const [offset, content] of [[SIZE - 2, x], [SIZE, x], [SIZE, Buffer.alloc(0)], [Number.MAX_SAFE_INTEGER, x]] as const) await refused(t, opened, ['PUT', `${URL}?offset=${offset}`, content], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { size: SIZE })
  await refused(t, opened, ['PUT', `${URL}?addr=${addr}`, x], 400, 'PARAMETER_UNKNOWN')
  await refused(t, opened, ['PUT', URL, x, { 'if-match': '"x"' }], 412, 'PRECONDITION_FAILED')
  t.ok(readFileSync(join(opened.dir, 'f')).equals(bytes))
  for (const name of ['before', 'behind']) t.ok(readFileSync(join(opened.dir, name)).equals(Buffer.alloc(PAGE)), name)
})

t.test('Content-Digest', async (t) => {
  const opened = await middle(t)
  const { addr, bytes } = opened
  const small = pattern(100, 8)
  const right = [digest('sha-256', small), digest('sha-512', small), `${digest('sha-512', small)}, ${digest('sha-256', small)}`, `md5=:AAAA:, ${digest('sha-256', small)};x=1`, 'unknown=::', `sha-256=:${'A'.repeat(43)}=:,${digest('sha-256', small)}`]
  for (const value of right) {
    for (const url of [URL, `/sets/s/memory?addr=${addr}`]) t.match(await must(t, opened, 'PUT', url, small, { 'content-digest': value }), { bytes: 100 }, value)
  }
  for (const value of ['', 'sha-256', 'sha-256=', 'sha-256=abc', 'sha-256=:abc', `sha-256=:${'A'.repeat(44)}:`, 'sha-256=:AAAA:', 'sha-512=:!:', `${digest('sha-256', small)},`, `SHA-256${digest('sha-256', small).slice(7)}`, 'sha-256=5']) {
    await refused(t, opened, ['PUT', URL, small, { 'content-digest': value }], 400, 'PARAMETER_INVALID', { errors: [{ in: 'header', name: 'content-digest' }] })
  }
  const wrong = { 'content-digest': digest('sha-256', pattern(100, 9)) }
  await refused(t, opened, ['PUT', `${URL}?offset=200`, pattern(100, 10), wrong], 400, 'DIGEST_MISMATCH', { written: 0, durability: 'none', algorithm: 'sha-256' })
  small.copy(bytes)
  t.ok(readFileSync(join(opened.dir, 'f')).equals(bytes), 'a body that is all there is looked at before it is written')
  const large = await mapPart(t, opened, 's', 'large', { id: 'large', length: 4 * MIB })
  const body = pattern(3 * MIB + 5, 11)
  await must(t, opened, 'PUT', '/sets/s/parts/large/content', body, { 'content-digest': `${digest('sha-256', body)}, ${digest('sha-512', body)}` })
  for (const durability of ['none', 'persisted']) {
    await refused(t, opened, ['PUT', `/sets/s/memory?addr=${plus(large.addr, 7)}&durability=${durability}`, body, { 'content-digest': digest('sha-512', small) }], 400, 'DIGEST_MISMATCH', { written: body.length, durability: 'none', algorithm: 'sha-512', retryable: false })
  }
  t.ok(readFileSync(join(opened.dir, 'large')).subarray(7, 7 + body.length).equals(body), 'of one that is not, the old bytes are gone')
})

t.test('bodies that are not as long as they were to be', async (t) => {
  const opened = await middle(t, listening)
  const { port, dir } = opened
  const send = async (query: string, head: string, chunks: Buffer[]): Promise<{ status: number, problem: Record<string, unknown> }> => {
    const body = Buffer.concat([...chunks.flatMap((one) => [Buffer.from(`${one.length.toString(16)}\r\n`), one, Buffer.from('\r\n')]), Buffer.from('0\r\n\r\n')])
    const answer = await raw(port, Buffer.concat([Buffer.from(`PUT ${URL}${query} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n${head}\r\n`), body]), { ms: 4000 })
    return { status: answer.status, problem: JSON.parse(answer.body) as Record<string, unknown> }
  }
  t.match(await send('', 'Content-Range: bytes 10-14/*\r\n', [Buffer.from('abc')]), { status: 400, problem: { code: 'REQUEST_INVALID', written: 0, durability: 'none' } }, 'too few')
  t.match(await send('', 'Content-Range: bytes 10-14/*\r\n', [Buffer.from('abcde'), Buffer.from('f')]), { status: 400, problem: { code: 'REQUEST_INVALID', written: Number, durability: 'none' } }, 'too many')
  t.match(await send(`?offset=${SIZE - 3}`, '', [Buffer.from('ab'), Buffer.from('cd')]), { status: 422, problem: { code: 'PMEMSET_E_LENGTH_OUT_OF_RANGE', size: SIZE, written: Number, durability: 'none' } }, 'over the end of the part, into the next of its map')
  t.match(await send('', 'Content-Range: bytes 10-14/*\r\nConnection: close\r\n', [Buffer.from('abc'), Buffer.from('de')]), { status: 200, problem: { bytes: 5 } })
  t.same(readFileSync(join(dir, 'behind')), Buffer.alloc(PAGE))
  t.equal(readFileSync(join(dir, 'f')).subarray(10, 15).toString(), 'abcde')
})

t.test('a client that closes its side in the middle of a body still hears how much was written', async (t) => {
  const opened = await middle(t, listening)
  const { port, dir } = opened
  await mapPart(t, opened, 's', 'large', { id: 'large', length: 8 * MIB })
  for (const [url, head, sent] of [[URL, 'Content-Length: 100', 5], ['/sets/s/parts/large/content', `Content-Length: ${6 * MIB}`, 5 * MIB], ['/sets/s/parts/large/content', 'Transfer-Encoding: chunked', 3 * MIB]] as const) {
    const body = pattern(sent, 12)
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    let text = ''
    socket.on('data', (chunk: Buffer) => { text += chunk.toString() })
    const closed = new Promise((resolve) => { socket.once('end', resolve) })
    socket.write(`PUT ${url} HTTP/1.1\r\nHost: localhost\r\n${head}\r\n\r\n`)
    if (head.startsWith('Transfer')) socket.write(`${(2 * sent).toString(16)}\r\n`)
    socket.end(body)
    const started = performance.now()
    await closed
    socket.destroy()
    t.ok(performance.now() - started < 1500, 'at once')
    const problem = JSON.parse(text.slice(text.indexOf('\r\n\r\n') + 4)) as { written: number }
    t.match([text, problem], [/^HTTP\/1\.1 400 [^]*connection: close/i, { code: 'REQUEST_INVALID', written: Number, durability: 'none' }], head)
    t.ok(problem.written <= sent && (sent < MIB || problem.written > 0), `${problem.written} of ${sent}`)
    if (sent > MIB) t.ok(readFileSync(join(dir, 'large')).subarray(0, problem.written).equals(body.subarray(0, problem.written)), 'so many are there')
  }
  await must(t, opened, 'DELETE', '/sets/s/parts/large')
})

t.test('any bytes in and out, as plain buffers would have them', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  // Two files, one of them with holes; three maps. Two parts are of the same bytes, and one begins in the middle of another.
  const files = new Map([['a', pattern(6 * MIB, 1)], ['b', Buffer.alloc(3 * MIB)]])
  makeFile(opened.dir, 'a', files.get('a') as Buffer)
  makeFile(opened.dir, 'b', 3 * MIB)
  const plan = [['a', 0, 5 * MIB], ['b', 0, MIB], ['a', MIB, 2 * MIB], 'gap', ['b', MIB, 2 * MIB], ['a', 0, 6 * MIB], 'gap', ['b', 2 * MIB - PAGE, 2 * PAGE]] as const
  const maps: Array<{ addr: string, parts: Array<{ id: string, bytes: Buffer, at: number }>, size: number }> = []
  let isApart = true
  for (const [i, one] of plan.entries()) {
    if (one === 'gap') {
      // A part behind the map, which goes again: the next would have been joined to it.
      await mapPart(t, opened, 's', 'gap', { id: `gap${i}`, length: PAGE })
      await must(t, opened, 'PATCH', '/sets/s', { coalescing: 'none' })
      isApart = true
      continue
    }
    const [path, offset, length] = one
    const { addr } = await mapPart(t, opened, 's', path, { id: `p${i}`, offset, length })
    if (isApart) {
      await must(t, opened, 'PATCH', '/sets/s', { coalescing: 'full' })
      maps.push({ addr, parts: [], size: 0 })
    }
    isApart = false
    const map = maps[maps.length - 1] as typeof maps[number]
    map.parts.push({ id: `p${i}`, bytes: (files.get(path) as Buffer).subarray(offset, offset + length), at: map.size })
    map.size += length
  }
  t.equal(maps.length, 3)
  const model = (map: typeof maps[number], from: number, length: number): Buffer => (
    Buffer.concat(map.parts.map(({ bytes, at }) => bytes.subarray(Math.max(from - at, 0), Math.max(from + length - at, 0))))
  )
  const store = (map: typeof maps[number], from: number, content: Buffer): void => {
    for (const { bytes, at } of map.parts) content.subarray(Math.max(at - from, 0)).copy(bytes, Math.max(from - at, 0))
  }
  const fraction = fc.double({ min: 0, max: 1, noNaN: true })
  const lengths = fc.oneof(fc.nat(300), fc.constantFrom(0, PAGE, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, MIB, 4 * MIB + 1), fc.nat(7 * MIB))
  const edges = fc.constantFrom(-4097, -4096, -1, 0, 1, 100)
  const step = fc.record({ write: fc.boolean(), content: fc.boolean(), map: fc.nat(2), part: fc.nat(9), at: fraction, edge: edges, length: lengths, seed: fc.nat(255), durability: fc.constantFrom('none', 'none', 'flushed', 'persisted') })
  let steps = 0
  await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (all) => {
    for (const one of all) {
      const map = maps[one.map] as typeof maps[number]
      const part = map.parts[one.part % map.parts.length] as typeof map.parts[number]
      const size = one.content ? part.bytes.length : map.size
      // Near a seam, or anywhere.
      const near = one.seed % 2 === 0 ? (map.parts[one.seed % map.parts.length] as typeof part).at + one.edge : Math.floor(one.at * size)
      const from = Math.min(Math.max(near, 0), size - 1)
      const length = Math.min(one.length, size - from)
      const start = one.content ? part.at + from : from
      if (one.write) {
        const content = pattern(length, one.seed)
        const url = one.content ? `/sets/s/parts/${part.id}/content?offset=${from}` : `/sets/s/memory?addr=${plus(map.addr, from)}`
        const written = await must(t, opened, 'PUT', `${url}&durability=${one.durability}`, content) as { bytes: number }
        if (written.bytes !== length) throw new Error(`${written.bytes} of ${length} bytes`)
        store(map, start, content)
      } else if (one.content && length > 0) {
        const reply = await call(t, opened, 'GET', `/sets/s/parts/${part.id}/content`, undefined, { range: `bytes=${from}-${from + length - 1}` })
        if (reply.status !== 206 || !reply.bytes.equals(model(map, start, length))) throw new Error(`content of ${part.id} from ${from}, ${length} bytes: ${reply.status}`)
      } else {
        const bytes = await must(t, opened, 'GET', `/sets/s/memory?addr=${plus(map.addr, start)}&length=${length}`) as Buffer
        if (!bytes.equals(model(map, start, length))) throw new Error(`memory of map ${one.map} from ${start}, ${length} bytes`)
      }
      steps++
    }
  }), { numRuns: 60, seed: Number(process.env.SEED ?? Date.now() % 2 ** 31) })
  for (const [name, bytes] of files) t.ok(readFileSync(join(opened.dir, name)).equals(bytes), name)
  t.comment(`${steps} steps`)
})
