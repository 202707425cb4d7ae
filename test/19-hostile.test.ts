// SPDX-License-Identifier: BSD-3-Clause
// What one client alone can do to the others: bodies that are dear to read, ranges that multiply, connections that are dropped or left open.
import { once } from 'node:events'
import { connect } from 'node:net'
import t from 'tap'
import { call, listening, makeSet, mapPart, MIB, must, open, PAGE, plus } from './service.js'

const HOST = 'Host: localhost'

t.test('a number of many zeros is read in a moment', async (t) => {
  const opened = await open(t)
  const started = performance.now()
  const reply = await call(t, opened, 'POST', '/sets', `{"windowSize":1.${'0'.repeat(900_000)}1}`)
  t.match([reply.status, reply.json.code], [400, 'REQUEST_INVALID'])
  t.ok(performance.now() - started < 5000, `${performance.now() - started} ms, where it was minutes`)
})

t.test('a JSON body of single bytes costs no more than its bytes', async (t) => {
  const { port } = await listening(t)
  const before = process.memoryUsage().arrayBuffers
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`POST /sets HTTP/1.1\r\n${HOST}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n`)
  const piece = '1\r\n \r\n'.repeat(10_000)
  for (let i = 0; i < 50; i++) if (!socket.write(piece)) await once(socket, 'drain')
  const grown = process.memoryUsage().arrayBuffers - before
  t.ok(grown < 64 * MIB, `${grown} bytes for 500 000`)
  socket.destroy()
})

t.test('a range a thousand times over is flushed once', async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's', coalescing: 'full' })
  let addr = ''
  for (let i = 0; i < 64; i++) addr = (await mapPart(t, opened, 's', 'f', { offset: i * PAGE }, { grow: true })).map.addr
  const whole = { addr, length: 64 * PAGE }
  const ranges = [...Array.from({ length: 1000 }, () => whole), { addr: plus(addr, 5), length: 3 }, { addr, length: 0 }]
  t.match(await must(t, opened, 'POST', '/sets/s/persist', { ranges }), { bytes: 1000 * 64 * PAGE + 3, durability: 'persisted' })
  t.match((await call(t, opened, 'POST', '/sets/s/persist', { ranges: [whole, { addr: plus(addr, 5), length: 64 * PAGE }] })).json, { code: 'PMEMSET_E_LENGTH_OUT_OF_RANGE', errors: [{ pointer: '/ranges/1' }] })
})

t.test('pipelined downloads that are reset leave nothing behind', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'big', { length: 4 * MIB })
  const get = `GET /sets/s/memory?addr=${addr}&length=${4 * MIB} HTTP/1.1\r\n${HOST}\r\n\r\n`
  for (let i = 0; i < 120; i++) {
    const socket = connect(opened.port, '127.0.0.1')
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.write(get + get)
    await new Promise((resolve) => { setTimeout(resolve, i % 4) })
    socket.resetAndDestroy()
  }
  let status = 0
  for (let i = 0; i < 300 && status !== 204; i++) {
    status = (await call(t, opened, 'DELETE', `/sets/s/maps/${addr}`)).status
    await new Promise((resolve) => { setTimeout(resolve, 10) })
  }
  t.equal(status, 204, 'the map can be removed')
})

t.test('a connection that sends nothing does not hold up the end', async (t) => {
  const { app, port } = await listening(t)
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  await once(socket, 'connect')
  await call(t, { app } as Awaited<ReturnType<typeof listening>>, 'GET', '/livez')
  const started = performance.now()
  await app.close()
  t.ok(performance.now() - started < 3000)
})
