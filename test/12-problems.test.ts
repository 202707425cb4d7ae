// SPDX-License-Identifier: BSD-3-Clause
import t from 'tap'
import { CATALOGUE, EngineError, problemOf, ServiceError, statusesOf, type EngineFailure } from '../src/errors.js'
import { createLog } from '../src/log.js'
import { listening, raw, shell } from './shell.js'

interface Problem { type: string, title: string, status: number, detail: string, code: string, instance: string, retryable: boolean }

t.test('a problem has every member, and its type can be looked up', async (t) => {
  const { app } = await shell(t)
  const reply = await app.inject({ url: '/nowhere', headers: { 'x-request-id': 'mine-1' } })
  t.equal(reply.statusCode, 404)
  t.equal(reply.headers['content-type'], 'application/problem+json')
  t.equal(reply.headers['cache-control'], 'no-store')
  t.same(reply.json(), { type: '/errors/ROUTE_NOT_FOUND', title: 'No such resource', status: 404, detail: 'There is nothing at that path.', instance: 'mine-1', code: 'ROUTE_NOT_FOUND', retryable: false })
})

t.test('request ids: the client\'s where it is one, else our own', async (t) => {
  const { app } = await shell(t)
  const idOf = async (id?: string): Promise<string> => (await app.inject({ url: '/nowhere', headers: id === undefined ? {} : { 'x-request-id': id } })).json<Problem>().instance
  t.equal(await idOf('A.b_c-9'), 'A.b_c-9')
  for (const id of ['a b', 'a\u0001', 'é', 'x'.repeat(65), '<script>', '']) t.not(await idOf(id), id, JSON.stringify(id))
  t.not(await idOf(), await idOf(), 'our own differ')
  t.match(await idOf(), /^[A-Za-z0-9._-]{1,64}$/)
})

t.test('a wrong method is 405 with Allow, whatever the method', async (t) => {
  const { app, calls } = await shell(t)
  const { port } = await listening(t)
  for (const method of ['PUT', 'PATCH', 'DELETE', 'TRACE'] as const) {
    const reply = await app.inject({ method: method as 'PUT', url: '/things?x=1' })
    t.match([reply.statusCode, reply.headers.allow, reply.json<Problem>().code], [405, 'GET, HEAD, OPTIONS, POST', 'METHOD_NOT_ALLOWED'], method)
  }
  t.equal((await app.inject({ method: 'PUT', url: '/%74hings' })).statusCode, 405, 'the path is read as the router does')
  t.equal((await app.inject({ method: 'PUT', url: '/%ff' })).statusCode, 400)
  t.equal((await app.inject({ method: 'POST', url: '/things/abc' })).headers.allow, 'GET, HEAD, OPTIONS')
  for (const method of ['PROPFIND', 'LOCK', 'MKCOL', 'PURGE']) {
    const answer = await raw(port, `${method} /things HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`)
    t.match([answer.status, answer.head], [405, 'allow: get, head, options, post'], method)
  }
  t.equal((await app.inject({ method: 'PUT', url: '/things/' })).statusCode, 404, 'a path that is not there has no methods')
  const options = await app.inject({ method: 'OPTIONS', url: '/things' })
  t.match([options.statusCode, options.headers.allow, options.body], [204, 'GET, HEAD, OPTIONS, POST', ''])
  t.equal((await app.inject({ method: 'OPTIONS', url: '/nowhere' })).statusCode, 404)
  const head = await app.inject({ method: 'HEAD', url: '/things' })
  t.match([head.statusCode, head.body], [200, ''])
  t.equal(calls.count, 1, 'only HEAD reached a handler')
})

t.test('an error of ours says nothing about itself, except to the log', async (t) => {
  const lines: string[] = []
  const { app } = await shell(t, { log: createLog((line) => lines.push(line)) })
  const reply = await app.inject({ url: '/broken', headers: { 'x-request-id': 'find-me' } })
  t.match([reply.statusCode, reply.json<Problem>().code], [500, 'INTERNAL'])
  t.notMatch(reply.body, /secret/)
  t.match(JSON.parse(lines[0] ?? '{}'), { level: 'error', message: 'the path is /secret/place', requestId: 'find-me', code: 'INTERNAL', route: '/broken' })
  await app.inject({ url: '/nowhere' })
  t.equal(lines.length, 1, 'a client\'s mistake is not logged')
})

t.test('the log has no control characters', async (t) => {
  let line = ''
  createLog((text) => { line = text })('warn', 'a\u0007\nb', { path: '/x\u001b[31m\u009b\u2028', n: 1 })
  t.match(JSON.parse(line), { message: 'a??b', path: '/x?[31m??', n: 1 })
})

t.test('what Node\'s parser refuses is a problem, too', async (t) => {
  const { port } = await listening(t)
  const cases: Array<[string, number, string]> = [
    ['GARBAGE\r\n\r\n', 400, 'REQUEST_INVALID'],
    ['GET / HTTP/9.9\r\n\r\n', 400, 'REQUEST_INVALID'],
    ['GET /things HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n', 400, 'REQUEST_INVALID'],
    ['POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx', 400, 'REQUEST_INVALID'],
    ['POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400, 'REQUEST_INVALID'],
    [`GET /things HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(30_000)}\r\n\r\n`, 431, 'HEADERS_TOO_LARGE'],
    [`GET /${'x'.repeat(30_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 414, 'URI_TOO_LONG'],
    ['GET /things HTTP/1.1\r\nHost: localhost\r\nExpect: magic\r\nConnection: close\r\n\r\n', 400, 'PARAMETER_INVALID']
  ]
  for (const [request, status, code] of cases) {
    const answer = await raw(port, request)
    t.equal(answer.status, status, request.slice(0, 60))
    t.match(answer.head, /content-type: application\/problem\+json/)
    t.match(JSON.parse(answer.body), { code, status, type: `/errors/${code}` })
    t.equal(answer.end, 'closed')
  }
})

t.test('while it stops it says so, with a problem', async (t) => {
  const { app, port } = await listening(t)
  let closing: Promise<unknown> | undefined
  const answer = await raw(port, 'GET /things HTTP/1.1\r\nHost: localhost\r\n\r\nGET /things HTTP/1.1\r\nHost: localhost\r\n', {
    onText: (text, send) => {
      if (closing !== undefined || !text.includes('{"limit":50}')) return
      // The second request's head is still open, so the connection stays while the service closes.
      closing = app.close()
      setTimeout(() => { send('\r\n') }, 50)
    }
  })
  t.match(answer.text, /HTTP\/1\.1 503[^]*retry-after: 1[^]*"code":"STOPPING"[^]*"retryable":true/)
  await closing
})

const failure: EngineFailure = { code: 0, cause: 0, errno: 0, reason: 0, value: 0n, addr: 0n, size: 0n, offset: 0n, granularity: 3, message: 'cannot open /secret/place' }

t.test('errors of the engine become problems', async (t) => {
  const cases: Array<[Partial<EngineFailure>, number, Record<string, unknown>]> = [
    [{ code: -200015, value: 4096n }, 422, { code: 'PMEMSET_E_LENGTH_UNALIGNED', number: -200015, requiredAlignment: 4096 }],
    [{ code: -200008, cause: -100011, value: 4096n }, 422, { code: 'PMEMSET_E_INVALID_PMEM2_MAP', requiredAlignment: 4096, cause: { library: 'libpmem2', code: 'PMEM2_E_OFFSET_UNALIGNED', number: -100011 } }],
    [{ code: -200008, cause: -100006, value: 10n }, 422, { sourceSize: 10 }],
    [{ code: -200008, cause: -100001 }, 422, {}],
    [{ code: -200008, errno: 12 }, 503, { errno: 'ENOMEM' }],
    [{ code: -200008 }, 422, {}],
    [{ code: -200031, value: 100n }, 409, { sourceSize: 100 }],
    [{ code: -200023, value: 4096n }, 409, { largestGap: 4096 }],
    [{ code: -200021, errno: 28 }, 507, { errno: 'ENOSPC' }],
    [{ code: -200021, errno: 27 }, 422, { errno: 'EFBIG' }],
    [{ code: -200007, cause: -100009, granularity: 2 }, 422, { availableGranularity: 'page' }],
    [{ code: -200011, granularity: 1 }, 409, { availableGranularity: 'cache_line' }],
    [{ code: -200033, addr: 0x4000n, size: 8192n }, 422, { map: { addr: '0x4000', size: 8192 } }],
    [{ code: -200012 }, 409, {}],
    [{ code: -200013 }, 404, {}],
    [{ code: -200022 }, 409, { retryable: true }],
    [{ code: -200032, reason: 1, addr: 0x4000n, offset: 4096n, value: 100n }, 500, { reason: 'truncated', addr: '0x4000', offset: 4096, sourceSize: 100 }],
    [{ code: -200032, reason: 3, addr: 0xfffffffffffff000n }, 500, { reason: 'media', addr: '0xfffffffffffff000' }],
    [{ code: -5, errno: 28, reason: 5 }, 500, { code: 'PERSIST_FAILED', errno: 'ENOSPC', retryable: false }],
    [{ code: -5, reason: 6 }, 409, { code: 'SET_DEGRADED' }],
    [{ code: -12, reason: 7, value: 30000n }, 409, { code: 'LIMIT_EXCEEDED', limit: 'parts', max: 30000 }],
    [{ code: -12, reason: 8, value: 57338n }, 409, { code: 'LIMIT_EXCEEDED', limit: 'mappings' }],
    [{ code: -12, reason: 9, value: 4096n }, 409, { code: 'LIMIT_EXCEEDED', limit: 'windowBytes' }],
    [{ code: -13, errno: 40, reason: 10 }, 403, { code: 'PATH_NOT_ALLOWED' }],
    [{ code: -16, reason: 11 }, 409, { code: 'SOURCE_IN_USE' }],
    [{ code: -28, reason: 12, value: 5n }, 507, { code: 'NO_SPACE', availableBytes: 5 }],
    [{ code: -17, reason: 13 }, 409, { code: 'EEXIST', number: -17, errno: 'EEXIST' }],
    [{ code: -28 }, 507, { code: 'NO_SPACE' }],
    [{ code: -12 }, 503, { code: 'ENOMEM', number: -12, retryable: true }],
    [{ code: -95 }, 501, { code: 'ENOTSUP' }],
    [{ code: -9, reason: 16 }, 404, { code: 'SET_NOT_FOUND' }],
    [{ code: -9, errno: 9 }, 500, { code: 'INTERNAL' }],
    [{ code: -12345 }, 500, { code: 'INTERNAL' }]
  ]
  for (const [given, status, members] of cases) {
    const problem = problemOf(new EngineError({ ...failure, ...given }), 'id')
    t.match(problem, { status, ...members }, JSON.stringify(members))
    t.notMatch(JSON.stringify(problem), /secret/, 'the engine\'s message stays in the log')
    t.ok(Object.hasOwn(CATALOGUE, problem.code))
  }
  const error = new EngineError({ ...failure, code: -200007, cause: -100009, granularity: 2 })
  error.extras.requiredGranularity = 'byte'
  t.match(problemOf(error, 'id'), { requiredGranularity: 'byte', availableGranularity: 'page' })
})

t.test('extras cannot take the place of a problem\'s own members', async (t) => {
  t.match(problemOf(new ServiceError('SET_NOT_FOUND', 'No.', { status: 200, type: 'x', code: 'y' }), 'id'), { status: 404, type: '/errors/SET_NOT_FOUND', code: 'SET_NOT_FOUND' })
})

t.test('circumstances', async (t) => {
  t.equal(problemOf(new ServiceError('VOLUME_NOT_FOUND', 'No.', {}, 'body'), 'id').status, 422)
  t.equal(problemOf(new ServiceError('VOLUME_NOT_FOUND', 'No.'), 'id').status, 404)
  t.equal(problemOf(new ServiceError('PMEMSET_E_NO_PART_MAPPED', 'No.', {}, 'granularity'), 'id').status, 404)
  t.same(statusesOf('PMEMSET_E_NO_PART_MAPPED'), [409, 404])
})

t.test('the catalogue has numbers and names once, and a sentence for everything', async (t) => {
  const numbers = Object.values(CATALOGUE).flatMap((row) => row.number ?? [])
  t.equal(new Set(numbers).size, numbers.length)
  for (const [name, row] of Object.entries(CATALOGUE)) {
    t.ok(row.title !== '' && row.meaning.endsWith('.') && row.advice.endsWith('.'), name)
    t.ok(row.status === 200 || row.status >= 400, name)
    if (row.retryable === true) t.ok([409, 503].includes(row.status), name)
  }
})
