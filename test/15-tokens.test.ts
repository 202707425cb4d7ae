// SPDX-License-Identifier: BSD-3-Clause
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { InjectOptions } from 'fastify'
import t, { type Test } from 'tap'
import { digestOf, loadTokens, type TokenRecord } from '../src/plugins/tokens.js'
import { raw, listening, shell } from './shell.js'

function tokenFile (t: Test, content: unknown, mode = 0o600): string {
  const path = join(t.testdir(), 'tokens.json')
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content))
  chmodSync(path, mode)
  return path
}

const records: TokenRecord[] = [
  { sha256: digestOf('reader'), scopes: ['read'] },
  { sha256: digestOf('writer'), scopes: ['write'], note: 'backup' },
  { sha256: digestOf('all'), scopes: ['read', 'write', 'admin'] }
]

t.test('without a token, with an unknown one, without the scope', async (t) => {
  const { app, calls } = await shell(t, { tokens: loadTokens(tokenFile(t, { tokens: records })) })
  const get = async (authorization?: string): Promise<{ status: number, code?: string, scope?: string, challenge?: unknown }> => {
    const reply = await app.inject({ url: '/things', headers: authorization === undefined ? {} : { authorization } })
    const body = reply.json<{ code?: string, requiredScope?: string }>()
    return { status: reply.statusCode, code: body.code ?? '', scope: body.requiredScope ?? '', challenge: reply.headers['www-authenticate'] }
  }
  for (const wrong of [undefined, '', 'Bearer', 'Bearer ', 'Bearer nobody', 'Basic reader', 'reader', 'Bearer reader x', `Bearer ${'x'.repeat(600)}`, `Bearer ${digestOf('reader')}`]) {
    t.match(await get(wrong), { status: 401, code: 'TOKEN_REQUIRED', challenge: 'Bearer' }, wrong ?? 'none')
  }
  t.match(await get('Bearer writer'), { status: 403, code: 'SCOPE_MISSING', scope: 'read' })
  t.equal(calls.count, 0)
  t.equal((await get('Bearer reader')).status, 200)
  t.equal((await get('bearer all')).status, 200)
  t.match((await app.inject({ method: 'POST', url: '/drain', headers: { authorization: 'Bearer reader' } })).json(), { code: 'SCOPE_MISSING', requiredScope: 'write' })
  t.equal((await app.inject({ method: 'POST', url: '/drain', headers: { authorization: 'Bearer writer' } })).statusCode, 200)
})

t.test('the order of refusals: door, route, token, media type', async (t) => {
  const { app } = await shell(t, { tokens: loadTokens(tokenFile(t, { tokens: records })) })
  const code = async (options: InjectOptions): Promise<string> => (await app.inject(options)).json<{ code: string }>().code
  t.equal(await code({ url: '/nowhere', headers: { host: 'evil.example' } }), 'HOST_NOT_ALLOWED')
  t.equal(await code({ url: '/nowhere' }), 'ROUTE_NOT_FOUND')
  t.equal(await code({ method: 'DELETE', url: '/things' }), 'METHOD_NOT_ALLOWED')
  t.equal(await code({ method: 'POST', url: '/drain', headers: { 'content-type': 'text/plain' }, payload: 'x' }), 'TOKEN_REQUIRED')
  t.equal(await code({ method: 'POST', url: '/drain', headers: { 'content-type': 'text/plain', authorization: 'Bearer writer' }, payload: 'x' }), 'MEDIA_TYPE_UNSUPPORTED')
  t.equal(await code({ method: 'POST', url: '/things?x=1', headers: { 'content-type': 'application/json', authorization: 'Bearer writer' }, payload: '{' }), 'REQUEST_INVALID')
})

t.test('open without a token', async (t) => {
  const { app } = await shell(t, { tokens: loadTokens(tokenFile(t, { tokens: records })) })
  t.equal((await app.inject({ url: '/openapi.json' })).statusCode, 200)
  t.equal((await app.inject({ url: '/docs' })).statusCode, 200)
  t.equal((await app.inject({ url: '/docs/json' })).statusCode, 200)
})

t.test('an upload without a token is refused before its body', async (t) => {
  const { port, calls } = await listening(t, { tokens: loadTokens(tokenFile(t, { tokens: records })) })
  const answer = await raw(port, 'PUT /bytes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n', { ms: 4000 })
  t.match([answer.status, answer.head], [401, 'connection: close'])
  t.notMatch(answer.text, /100 Continue/)
  t.equal(calls.count, 0)
})

t.test('token files that are refused', async (t) => {
  t.throws(() => loadTokens('/nowhere/tokens'), { name: 'ConfigError', message: /PMEMSETD_TOKENS is "\/nowhere\/tokens".*ENOENT.*allowed is/ })
  t.throws(() => loadTokens('/'), { name: 'ConfigError' })
  for (const mode of [0o644, 0o640, 0o660, 0o604, 0o400]) t.throws(() => loadTokens(tokenFile(t, { tokens: records }, mode)), /mode is/, mode.toString(8))
  for (const content of ['', '{', '[]', '{}', 'null', { tokens: [] }, { tokens: [{}] }, { tokens: [{ sha256: 'x', scopes: ['read'] }] }, { tokens: [{ sha256: digestOf('a'), scopes: [] }] },
    { tokens: [{ sha256: digestOf('a'), scopes: ['root'] }] }, { tokens: [{ sha256: digestOf('a'), scopes: ['read'], token: 'a' }] }]) {
    t.throws(() => loadTokens(tokenFile(t, content)), { name: 'ConfigError' }, JSON.stringify(content))
  }
})
