// SPDX-License-Identifier: BSD-3-Clause
import t from 'tap'
import { shell } from './shell.js'

interface Problem { code: string, status: number, number?: number, errors?: Array<{ in: string, pointer?: string, name?: string, reason: string }> }

const json = { 'content-type': 'application/json' }

t.test('query parameters: unknown, repeated, empty, not of their form', async (t) => {
  const { app, calls } = await shell(t)
  const cases: Array<[string, string]> = [
    ['dryrun=true', 'PARAMETER_UNKNOWN'], ['DRYRUN=true', 'PARAMETER_UNKNOWN'], ['=1', 'PARAMETER_UNKNOWN'], ['&', 'PARAMETER_UNKNOWN'], ['%00=1', 'PARAMETER_UNKNOWN'],
    ['__proto__=1', 'PARAMETER_UNKNOWN'], ['constructor=1', 'PARAMETER_UNKNOWN'], ['length[]=1', 'PARAMETER_UNKNOWN'],
    ['length=1&length=1', 'PARAMETER_INVALID'], ['length=1&%6cength=1', 'PARAMETER_INVALID'], ['length=', 'PARAMETER_INVALID'], ['length', 'PARAMETER_INVALID'],
    ['length=0x10', 'PARAMETER_INVALID'], ['length=1e3', 'PARAMETER_INVALID'], ['length=%2012', 'PARAMETER_INVALID'], ['length=+12', 'PARAMETER_INVALID'], ['length=12+', 'PARAMETER_INVALID'],
    ['length=-1', 'PARAMETER_INVALID'], ['length=1.0', 'PARAMETER_INVALID'], ['length=01', 'PARAMETER_INVALID'], ['length=0', 'PARAMETER_INVALID'],
    ['length=9007199254740992', 'PARAMETER_INVALID'], ['length=9223372036854775808', 'PARAMETER_INVALID'], ['length=18446744073709551616', 'PARAMETER_INVALID'],
    ['length=NaN', 'PARAMETER_INVALID'], ['length=Infinity', 'PARAMETER_INVALID'], ['length=%D9%A1', 'PARAMETER_INVALID'],
    ['dryRun=1', 'PARAMETER_INVALID'], ['dryRun=TRUE', 'PARAMETER_INVALID'], ['dryRun=yes', 'PARAMETER_INVALID'], ['dryRun', 'PARAMETER_INVALID'], ['dryRun=', 'PARAMETER_INVALID'],
    ['addr=1', 'PARAMETER_INVALID'], ['addr=0x00', 'PARAMETER_INVALID'], ['addr=0X1', 'PARAMETER_INVALID'], ['addr=0xA', 'PARAMETER_INVALID'], ['addr=0x10000000000000000', 'PARAMETER_INVALID'],
    ['addr=0x1%0A', 'PARAMETER_INVALID'], ['addr=%ff', 'PARAMETER_INVALID'], ['addr=%', 'PARAMETER_INVALID'], ['addr=%zz', 'PARAMETER_INVALID']
  ]
  for (const [query, code] of cases) {
    const reply = await app.inject({ url: `/things?${query}` })
    const problem = reply.json<Problem>()
    t.equal(reply.statusCode, 400, query)
    t.equal(problem.code, code, query)
    t.equal(problem.errors?.[0]?.in, 'query', query)
  }
  t.equal(calls.count, 0, 'nothing reached the handler')
})

t.test('query parameters that are right arrive as what they are', async (t) => {
  const { app } = await shell(t)
  const ask = async (query: string): Promise<unknown> => (await app.inject({ url: `/things${query}` })).json()
  t.same(await ask(''), { limit: 50 })
  t.same(await ask('?'), { limit: 50 })
  t.same(await ask('?addr=0x0&length=9007199254740991&dryRun=false&limit=1'), { addr: '0x0', length: 9007199254740991, dryRun: false, limit: 1 })
  t.same(await ask('?addr=0xffffffffffffffff'), { addr: '0xffffffffffffffff', limit: 50 })
})

t.test('routes that declare no parameters take none', async (t) => {
  const { app } = await shell(t)
  t.equal((await app.inject({ method: 'POST', url: '/drain?x=1' })).json<Problem>().code, 'PARAMETER_UNKNOWN')
  t.equal((await app.inject({ url: '/things/abc?x=1' })).json<Problem>().code, 'PARAMETER_UNKNOWN')
})

t.test('path parameters', async (t) => {
  const { app } = await shell(t)
  t.same((await app.inject({ url: '/things/abc' })).json(), { id: 'abc' })
  for (const id of ['ABC', 'a%2Fb', 'a%00', 'a%0d%0a', '%20']) {
    const reply = await app.inject({ url: `/things/${id}` })
    t.match(reply.json(), { code: 'PARAMETER_INVALID', status: 400, errors: [{ in: 'path', name: 'id' }] }, id)
  }
  t.match((await app.inject({ url: '/things/%ff' })).json(), { code: 'PARAMETER_INVALID', errors: [{ in: 'path' }] })
  t.match((await app.inject({ url: `/things/${'a'.repeat(300)}` })).json(), { code: 'URI_TOO_LONG', status: 414 })
})

t.test('bodies: members, types, no coercion', async (t) => {
  const { app, calls } = await shell(t)
  const cases: Array<[unknown, string, string]> = [
    [{ requiredGranularity: 'page', x: 1 }, 'REQUEST_INVALID', '/x'],
    [{ requiredGranularity: 'page', 'a/b~': 1 }, 'REQUEST_INVALID', '/a~1b~0'],
    [{ requiredGranularity: 'page', named: { nam: 'x' } }, 'REQUEST_INVALID', '/named/nam'],
    [{ requiredGranularity: 'page', count: '12' }, 'REQUEST_INVALID', '/count'],
    [{ requiredGranularity: 'page', count: 1.5 }, 'REQUEST_INVALID', '/count'],
    [{ requiredGranularity: 'page', count: -1 }, 'REQUEST_INVALID', '/count'],
    [{ requiredGranularity: 'page', count: null }, 'REQUEST_INVALID', '/count'],
    [{ requiredGranularity: 'page', count: true }, 'REQUEST_INVALID', '/count'],
    [{ requiredGranularity: 'page', flag: 'true' }, 'REQUEST_INVALID', '/flag'],
    [{ requiredGranularity: 'page', flag: 1 }, 'REQUEST_INVALID', '/flag'],
    [{ requiredGranularity: ['page'] }, 'REQUEST_INVALID', '/requiredGranularity'],
    [[], 'REQUEST_INVALID', ''], ['x', 'REQUEST_INVALID', ''], [5, 'REQUEST_INVALID', ''], [null, 'REQUEST_INVALID', ''],
    [{}, 'PMEMSET_E_GRANULARITY_NOT_SET', '/requiredGranularity'],
    [{ requiredGranularity: 'word' }, 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', '/requiredGranularity'],
    [{ requiredGranularity: 'page', coalescing: 'some' }, 'PMEMSET_E_INVALID_COALESCING_VALUE', '/coalescing'],
    [{ requiredGranularity: 'page', source: {} }, 'PMEMSET_E_INVALID_SOURCE_PATH', '/source/path'],
    [{ requiredGranularity: 'page', source: { path: 'a', mode: '640' } }, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS', '/source/mode'],
    [{ requiredGranularity: 'page', source: { path: 'a', mode: 640 } }, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS', '/source/mode'],
    [{ requiredGranularity: 'page', source: { path: 'a', create: 'maybe' } }, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS', '/source/create'],
    [{ coalescing: 'some' }, 'REQUEST_INVALID', '/requiredGranularity']
  ]
  for (const [payload, code, pointer] of cases) {
    const text = JSON.stringify(payload)
    const reply = await app.inject({ method: 'POST', url: '/things', headers: json, payload: text })
    const problem = reply.json<Problem>()
    t.match([reply.statusCode, problem.code], [400, code], text)
    t.ok(problem.errors?.some((e) => e.in === 'body' && e.pointer === pointer), `${text}: ${JSON.stringify(problem.errors)}`)
  }
  t.equal(calls.count, 0)
  const right = await app.inject({ method: 'POST', url: '/things', headers: json, payload: '{"requiredGranularity":"page","count":9007199254740991,"named":{"name":"é"}}' })
  t.same(right.json(), { requiredGranularity: 'page', count: 9007199254740991, named: { name: 'é' } })
})

t.test('of many mistakes as many are told as help, and of a great many the first', async (t) => {
  const { app, calls } = await shell(t)
  for (const [count, told] of [[15, 15], [30, 20], [20_000, 1]] as const) {
    const payload = { requiredGranularity: 'page', ...Object.fromEntries(Array.from({ length: count }, (_, i) => [`x${i}`, i])) }
    const problem = (await app.inject({ method: 'POST', url: '/things', headers: json, payload: JSON.stringify(payload) })).json<Problem>()
    t.match(problem, { code: 'REQUEST_INVALID', errors: [{ in: 'body', pointer: /^\/x\d+$/ }] }, `${count}`)
    t.equal(problem.errors?.length, told, `${count}`)
  }
  t.equal(calls.count, 0)
})

t.test('JSON that means two things', async (t) => {
  const { app, calls } = await shell(t)
  const before = '{"requiredGranularity":"page",'
  const cases: Array<[string | Buffer, string, string?]> = [
    [`${before}"count":1,"count":2}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":1,"\\u0063ount":2}`, 'REQUEST_INVALID', '/count'],
    [`${before}"labels":{"a":"1","b":"2","a":"3"}}`, 'REQUEST_INVALID', '/labels/a'],
    [`${before}"labels":{"a":"\\ud800"}}`, 'REQUEST_INVALID', '/labels/a'],
    [`${before}"labels":{"\\udc00":"a"}}`, 'REQUEST_INVALID', '/labels'],
    [`${before}"labels":{"__proto__":"a"}}`, 'REQUEST_INVALID', '/labels/__proto__'],
    [`${before}"constructor" : {"prototype":{}}}`, 'REQUEST_INVALID', '/constructor'],
    [Buffer.concat([Buffer.from(`${before}"labels":{"a":"`), Buffer.from([0xff]), Buffer.from('"}}')]), 'REQUEST_INVALID', ''],
    [Buffer.from([0xef, 0xbb, 0xbf, 0x7b, 0x7d]), 'REQUEST_INVALID', ''],
    [`${before}"count":9007199254740991.4}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":4.00000000000000000001}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":1e400}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":1e-400}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":9007199254740992}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":9007199254740993}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":9223372036854775808}`, 'REQUEST_INVALID', '/count'],
    [`${before}"count":18446744073709551616}`, 'REQUEST_INVALID', '/count'],
    [`${before}"offset":9007199254740992}`, 'PMEMSET_E_INVALID_OFFSET_VALUE', '/offset'],
    [`${before}"offset":9223372036854775808}`, 'PMEMSET_E_INVALID_OFFSET_VALUE', '/offset'],
    [`${before}"offset":18446744073709551616}`, 'PMEMSET_E_INVALID_OFFSET_VALUE', '/offset'],
    [`${'['.repeat(40)}${']'.repeat(40)}`, 'REQUEST_INVALID'],
    ['{', 'REQUEST_INVALID', ''], ['{}x', 'REQUEST_INVALID', ''], ["{'a':1}", 'REQUEST_INVALID', ''], ['NaN', 'REQUEST_INVALID', ''], [' ', 'REQUEST_INVALID', '']
  ]
  for (const [payload, code, pointer] of cases) {
    const reply = await app.inject({ method: 'POST', url: '/things', headers: json, payload })
    const problem = reply.json<Problem>()
    t.match([reply.statusCode, problem.code], [400, code], payload.toString())
    if (pointer !== undefined) t.equal(problem.errors?.[0]?.pointer, pointer, `${payload.toString()}: ${JSON.stringify(problem.errors)}`)
  }
  t.equal(calls.count, 0)
  const right = `${before}"count":1.0e2,"labels":{"a":"😀","b":"\\ud83d\\ude00","constructor":"x","c":"{\\"a\\":[1,1]}"}}`
  const reply = await app.inject({ method: 'POST', url: '/things', headers: json, payload: right })
  t.same(reply.json(), { requiredGranularity: 'page', count: 100, labels: { a: '😀', b: '😀', constructor: 'x', c: '{"a":[1,1]}' } })
})

t.test('an empty JSON body counts as absent, and routes without a body take none', async (t) => {
  const { app } = await shell(t)
  const send = async (payload: string | undefined, headers = json): Promise<unknown> => (await app.inject({ method: 'POST', url: '/drain', headers, ...(payload === undefined ? {} : { payload }) })).json()
  t.same(await send(undefined), { body: 'absent' })
  t.same(await send(''), { body: 'absent' })
  t.same(await send('{}'), { body: {} })
  t.match(await send('{"a":1}'), { code: 'REQUEST_INVALID', status: 400 })
  t.match(await send('[]'), { code: 'REQUEST_INVALID' })
  const missing = await app.inject({ method: 'POST', url: '/things', headers: json })
  t.match(missing.json(), { code: 'REQUEST_INVALID', errors: [{ in: 'body', pointer: '', reason: 'is missing' }] })
})

t.test('media types', async (t) => {
  const { app, calls } = await shell(t)
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/octet-stream', 'application/jsonp', 'application/problem+json', 'garbage', 'application/json; charset=latin1']) {
    for (const payload of ['{}', undefined]) {
      const reply = await app.inject({ method: 'POST', url: '/drain', headers: { 'content-type': type }, ...(payload === undefined ? {} : { payload }) })
      t.match([reply.statusCode, reply.json<Problem>().code], [415, 'MEDIA_TYPE_UNSUPPORTED'], `${type} ${payload ?? 'without a body'}`)
    }
  }
  t.equal((await app.inject({ method: 'POST', url: '/drain', payload: Buffer.from('{}'), headers: { 'content-type': '' } })).statusCode, 415)
  for (const type of ['application/json', 'text/plain']) {
    const reply = await app.inject({ method: 'PUT', url: '/bytes', headers: { 'content-type': type }, payload: '{}' })
    t.match([reply.statusCode, reply.json<Problem>().code], [415, 'MEDIA_TYPE_UNSUPPORTED'], `bytes as ${type}`)
  }
  t.equal(calls.count, 0)
  t.equal((await app.inject({ method: 'POST', url: '/drain', headers: { 'content-type': 'Application/JSON; Charset="UTF-8"' }, payload: '{}' })).statusCode, 200)
  t.same((await app.inject({ method: 'PUT', url: '/bytes', headers: { 'content-type': 'application/octet-stream' }, payload: 'abc' })).json(), { bytes: 3 })
})
