// SPDX-License-Identifier: BSD-3-Clause
import { connect } from 'node:net'
import t from 'tap'
import { listening, raw } from './shell.js'

const host = 'Host: localhost'
const bytes = 'Content-Type: application/octet-stream'

t.test('100 Continue goes out only once the request is accepted', async (t) => {
  const { port, calls } = await listening(t)
  const accepted = await raw(port, `PUT /bytes HTTP/1.1\r\n${host}\r\n${bytes}\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n`, {
    onText: (text, send) => {
      if (text.endsWith('100 Continue\r\n\r\n')) send('abc')
    }
  })
  t.match(accepted.text, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 [^]*\{"bytes":3\}/)
  const json = await raw(port, `POST /drain HTTP/1.1\r\n${host}\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n`, {
    onText: (text, send) => {
      if (text.endsWith('100 Continue\r\n\r\n')) send('{}')
    }
  })
  t.match(json.text, /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 /, 'JSON routes accept it by themselves')
  const before = calls.count
  for (const [head, status] of [
    [`PUT /refused HTTP/1.1\r\n${host}\r\n${bytes}`, 404],
    [`PUT /nowhere HTTP/1.1\r\n${host}\r\n${bytes}`, 404],
    [`DELETE /bytes HTTP/1.1\r\n${host}\r\n${bytes}`, 405],
    [`PUT /bytes HTTP/1.1\r\nHost: evil.example\r\n${bytes}`, 421],
    [`PUT /bytes?x=1 HTTP/1.1\r\n${host}\r\n${bytes}`, 400],
    [`PUT /bytes HTTP/1.1\r\n${host}\r\nContent-Type: text/plain`, 415],
    [`POST /drain HTTP/1.1\r\n${host}\r\n${bytes}`, 415]
  ] as const) {
    const answer = await raw(port, `${head}\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n`, { ms: 4000 })
    t.notMatch(answer.text, /100 Continue/, head)
    t.match([answer.status, answer.head], [status, 'connection: close'], head)
  }
  t.equal(calls.count, before)
})

t.test('a refused upload gets its reply whole, and then the connection ends', async (t) => {
  const { port, calls } = await listening(t)
  const head = `PUT /refused HTTP/1.1\r\n${host}\r\n${bytes}\r\nContent-Length: 107374182400\r\n\r\n`
  const result = await new Promise<{ text: string, sent: number, ms: number }>((resolve) => {
    const socket = connect(port, '127.0.0.1')
    const started = performance.now()
    let text = ''
    let sent = 0
    const piece = Buffer.alloc(256 * 1024)
    const pump = (): void => {
      while (!socket.destroyed && socket.write(piece)) sent += piece.length
    }
    socket.on('drain', pump)
    socket.on('data', (chunk) => { text += chunk.toString('latin1') })
    socket.on('error', () => {})
    socket.on('close', () => { resolve({ text, sent, ms: performance.now() - started }) })
    socket.write(head)
    pump()
  })
  t.match(result.text, /^HTTP\/1\.1 404 [^]*connection: close[^]*PMEMSET_E_CANNOT_FIND_PART_MAP[^]*\}$/, 'the reply was there to be read')
  t.ok(result.sent < 64 * 1024 * 1024, `${result.sent} bytes of 100 GiB were sent`)
  t.ok(result.ms < 5000, `${Math.round(result.ms)} ms`)
  t.equal(calls.count, 0)
})

t.test('a client that sends nothing of its refused body is let go after two seconds', async (t) => {
  const { port } = await listening(t)
  const started = performance.now()
  const answer = await raw(port, `PUT /refused HTTP/1.1\r\n${host}\r\n${bytes}\r\nContent-Length: 1000\r\n\r\n`, { ms: 5000 })
  t.match([answer.status, answer.end], [404, 'closed'])
  t.ok(performance.now() - started < 4000)
})

t.test('what is pipelined behind a refused upload is not done', async (t) => {
  const { port, calls } = await listening(t)
  const answer = await raw(port, `PUT /refused HTTP/1.1\r\n${host}\r\n${bytes}\r\nContent-Length: 3\r\n\r\nabcPOST /drain HTTP/1.1\r\n${host}\r\n\r\n`, { ms: 4000 })
  t.match([answer.status, answer.end], [404, 'closed'])
  t.equal(calls.count, 0)
})

t.test('requests that are pipelined are answered in order', async (t) => {
  const { port } = await listening(t)
  const answer = await raw(port, `GET /things/a HTTP/1.1\r\n${host}\r\n\r\nGET /nowhere HTTP/1.1\r\n${host}\r\n\r\nGET /things/b HTTP/1.1\r\n${host}\r\nConnection: close\r\n\r\n`)
  t.match(answer.text, /\{"id":"a"\}[^]*ROUTE_NOT_FOUND[^]*\{"id":"b"\}/)
})

t.test('a JSON body that is too large: by its length, and by what comes', async (t) => {
  const { port, calls } = await listening(t)
  const declared = await raw(port, `POST /drain HTTP/1.1\r\n${host}\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n{`, { ms: 5000 })
  t.match([declared.status, JSON.parse(declared.body)], [413, { code: 'BODY_TOO_LARGE', max: 1048576 }])
  t.match(declared.head, /connection: close/)
  const piece = `10000\r\n${' '.repeat(65536)}\r\n`
  const chunked = await raw(port, `POST /drain HTTP/1.1\r\n${host}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n${piece.repeat(40)}`, { ms: 5000 })
  t.match([chunked.status, JSON.parse(chunked.body)], [413, { code: 'BODY_TOO_LARGE' }])
  t.equal(calls.count, 0)
  const exact = `${' '.repeat(1048574)}{}`
  const right = await raw(port, `POST /drain HTTP/1.1\r\n${host}\r\nContent-Type: application/json\r\nContent-Length: ${exact.length}\r\nConnection: close\r\n\r\n${exact}`, { ms: 5000 })
  t.equal(right.status, 200)
})

t.test('a body with a GET', async (t) => {
  const { port, calls } = await listening(t)
  const answer = await raw(port, `GET /things HTTP/1.1\r\n${host}\r\nContent-Length: 2\r\n\r\n{}`, { ms: 4000 })
  t.match([answer.status, JSON.parse(answer.body)], [400, { code: 'REQUEST_INVALID', errors: [{ in: 'body', pointer: '' }] }])
  t.equal(calls.count, 0)
  const empty = await raw(port, `GET /things HTTP/1.1\r\n${host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`)
  t.equal(empty.status, 200)
})

t.test('curl -T: no Content-Type', async (t) => {
  const { port } = await listening(t)
  const answer = await raw(port, `PUT /bytes HTTP/1.1\r\n${host}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc`)
  t.match([answer.status, answer.body], [200, '{"bytes":3}'])
})
