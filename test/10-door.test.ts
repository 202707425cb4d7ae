// SPDX-License-Identifier: BSD-3-Clause
import { request } from 'node:http'
import { join } from 'node:path'
import t from 'tap'
import { listening, raw, shell } from './shell.js'

interface Problem { type: string, title: string, status: number, code: string, instance: string, retryable: boolean, detail: string, errors?: unknown[] }

t.test('a Host that is not allowed is refused before the path is looked at', async (t) => {
  const { app, calls } = await shell(t)
  for (const host of ['evil.example', 'localhost.evil.example', '127.0.0.1.evil', 'a@localhost', 'localhost:80:80', '[::2]', '10.0.0.1:8080', 'localhost/']) {
    for (const url of ['/things', '/nowhere']) {
      const reply = await app.inject({ url, headers: { host } })
      t.equal(reply.statusCode, 421, `${host} ${url}`)
      t.match(reply.json(), { code: 'HOST_NOT_ALLOWED', type: '/errors/HOST_NOT_ALLOWED', status: 421 })
    }
  }
  for (const host of ['localhost', 'LOCALHOST:1', '127.0.0.1:8080', '[::1]:8080', '[::1]']) {
    t.equal((await app.inject({ url: '/things', headers: { host } })).statusCode, 200, host)
  }
  t.equal(calls.count, 5, 'no refused request reached a handler')
})

t.test('names of the configuration are allowed', async (t) => {
  const { app } = await shell(t, { env: { PMEMSETD_ALLOWED_HOSTS: 'pmem.example,[fd00::1]' } })
  t.equal((await app.inject({ url: '/things', headers: { host: 'pmem.example:9' } })).statusCode, 200)
  t.equal((await app.inject({ url: '/things', headers: { host: '[fd00::1]' } })).statusCode, 200)
  t.equal((await app.inject({ url: '/things', headers: { host: '127.0.0.1' } })).statusCode, 200, 'the configured host as well')
  t.equal((await app.inject({ url: '/things', headers: { host: 'localhost' } })).statusCode, 421)
})

t.test('marks of browsers', async (t) => {
  const { app, calls } = await shell(t)
  const bad: Array<Record<string, string>> = [{ origin: 'http://evil.example' }, { origin: 'null' }, { origin: 'http://localhost:81' }, { origin: '' }, { 'sec-fetch-site': 'cross-site' }, { 'sec-fetch-site': 'same-site' }]
  for (const headers of bad) {
    const reply = await app.inject({ method: 'POST', url: '/drain', headers: { host: 'localhost:80', ...headers } })
    t.equal(reply.statusCode, 403, JSON.stringify(headers))
    t.equal(reply.json<Problem>().code, 'ORIGIN_NOT_ALLOWED')
    t.equal(reply.headers['access-control-allow-origin'], undefined)
  }
  const good: Array<Record<string, string>> = [{ origin: 'http://localhost:80' }, { 'sec-fetch-site': 'same-origin' }, { 'sec-fetch-site': 'none' }]
  for (const headers of good) {
    t.equal((await app.inject({ method: 'POST', url: '/drain', headers: { host: 'localhost:80', ...headers } })).statusCode, 200)
  }
  t.equal(calls.count, good.length)
})

t.test('on the wire: two Hosts, none, absolute form', async (t) => {
  const { port, calls } = await listening(t)
  const send = (head: string): ReturnType<typeof raw> => raw(port, `${head}\r\nConnection: close\r\n\r\n`)
  for (const head of [
    'GET /things HTTP/1.1\r\nHost: localhost\r\nHost: evil.example',
    'GET /things HTTP/1.1\r\nHost: localhost\r\nhOST: localhost',
    'GET /things HTTP/1.1',
    'GET /things HTTP/1.1\r\nHost:',
    'GET /things HTTP/1.0',
    'GET http://evil.example/things HTTP/1.1\r\nHost: localhost',
    'GET /%zz HTTP/1.1\r\nHost: evil.example'
  ]) {
    const answer = await send(head)
    t.match([answer.status, answer.head], [421, 'content-type: application/problem+json'], head)
  }
  t.equal((await send('GET http://localhost/things HTTP/1.1\r\nHost: localhost')).status, 200, 'absolute form of an allowed name is legal')
  t.equal((await send('OPTIONS * HTTP/1.1\r\nHost: localhost')).status, 404)
  t.equal(calls.count, 1)
})

t.test('a Unix socket has no door', async (t) => {
  const path = join(t.testdir(), 'socket')
  const { app } = await shell(t, { env: { PMEMSETD_SOCKET: path } })
  await app.listen({ path })
  const status = await new Promise((resolve, reject) => {
    request({ socketPath: path, path: '/things', headers: { host: 'whatever' } }, (res) => {
      res.resume()
      resolve(res.statusCode)
    }).on('error', reject).end()
  })
  t.equal(status, 200)
})
