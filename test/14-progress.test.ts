// SPDX-License-Identifier: BSD-3-Clause
import { connect, type Socket } from 'node:net'
import t from 'tap'
import { listening } from './shell.js'

const host = 'Host: localhost'
const progress = { progressBytes: 64 * 1024, progressMs: 600 }

function closed (socket: Socket): Promise<number> {
  const started = performance.now()
  return new Promise((resolve) => {
    socket.on('error', () => {})
    socket.on('close', () => { resolve(performance.now() - started) })
  })
}

t.test('an upload that stands still is cut, one that moves is not', async (t) => {
  const { port, calls } = await listening(t, { progress })
  const still = connect(port, '127.0.0.1')
  still.write(`PUT /bytes HTTP/1.1\r\n${host}\r\nContent-Length: 1000\r\n\r\nabc`)
  const trickle = connect(port, '127.0.0.1')
  trickle.write(`PUT /bytes HTTP/1.1\r\n${host}\r\nContent-Length: 1000000\r\n\r\n`)
  const drip = setInterval(() => trickle.write('x'.repeat(1000)), 50)
  const json = connect(port, '127.0.0.1')
  json.write(`POST /drain HTTP/1.1\r\n${host}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{`)
  const steady = connect(port, '127.0.0.1')
  let answer = ''
  steady.on('data', (chunk) => { answer += chunk.toString() })
  steady.write(`PUT /bytes HTTP/1.1\r\n${host}\r\nContent-Length: ${40 * 100_000}\r\nConnection: close\r\n\r\n`)
  let pieces = 0
  const flow = setInterval(() => {
    if (++pieces <= 40) steady.write(Buffer.alloc(100_000))
    else clearInterval(flow)
  }, 50)
  const cut = await Promise.all([closed(still), closed(trickle), closed(json)])
  clearInterval(drip)
  for (const ms of cut) t.ok(ms > 400 && ms < 2500, `cut after ${Math.round(ms)} ms`)
  await closed(steady)
  t.match(answer, /^HTTP\/1\.1 200 /, 'two seconds of a steady upload')
  t.ok(calls.bytes >= 4_000_000)
})

t.test('a reply that is not taken is cut; an idle connection is not', async (t) => {
  const { app, port } = await listening(t, { progress })
  const idle = connect(port, '127.0.0.1')
  idle.write(`GET /things HTTP/1.1\r\n${host}\r\n\r\n`)
  idle.resume()
  idle.on('error', () => {})
  let isIdleClosed = false
  idle.on('close', () => { isIdleClosed = true })
  const deaf = connect(port, '127.0.0.1')
  deaf.pause()
  deaf.on('error', () => {})
  deaf.write(`GET /large HTTP/1.1\r\n${host}\r\n\r\n`)
  const connections = (): Promise<number> => new Promise((resolve, reject) => {
    app.server.getConnections((error, count) => {
      if (error === null) resolve(count)
      else reject(error)
    })
  })
  await new Promise((resolve) => { setTimeout(resolve, 200) })
  t.equal(await connections(), 2)
  await new Promise((resolve) => { setTimeout(resolve, 1500) })
  t.equal(await connections(), 1, 'the one that does not read is gone')
  t.equal(isIdleClosed, false)
  idle.destroy()
  deaf.destroy()
})

t.test('no more connections than the limit', async (t) => {
  const { port } = await listening(t, { env: { PMEMSETD_CONNECTIONS_MAX: '2' } })
  const sockets = [1, 2, 3].map(() => connect(port, '127.0.0.1'))
  const ends = sockets.map(closed)
  await ends[2]
  t.pass('the third one is dropped')
  for (const socket of sockets) socket.destroy()
  await Promise.all(ends)
})
