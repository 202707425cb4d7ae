// SPDX-License-Identifier: BSD-3-Clause
// The process: how it refuses to start, where it listens, what it takes from its environment, and how it ends.
import { execFile, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { createServer, type AddressInfo, type Server } from 'node:net'
import { dirname, join } from 'node:path'
import { once } from 'node:events'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { ask, folder, listening, MAIN, run, type Json } from './process.js'
import { shell } from './shell.js'

async function occupied (t: Test, path?: string): Promise<Server> {
  const server = createServer()
  if (path === undefined) server.listen(0, '127.0.0.1')
  else server.listen(path)
  await once(server, 'listening')
  t.teardown(() => server.close())
  return server
}

t.test('what is wrong at the start is one sentence, and the end', async (t) => {
  const dir = folder(t, 'data', 'bound')
  writeFileSync(join(dir, 'tokens'), '{}')
  const { port } = (await occupied(t)).address() as AddressInfo
  await occupied(t, join(dir, 'bound', 'socket'))
  const cases: Array<[env: NodeJS.ProcessEnv, said: RegExp, wrap?: string[]]> = [
    [{ PMEMSETD_PORT: '80000' }, /^pmemsetd: PMEMSETD_PORT is "80000"; allowed is an integer from 0 to 65535$/],
    [{ PMEMSETD_PROT: '80' }, /^pmemsetd: PMEMSETD_PROT is not a setting; did you mean PMEMSETD_PORT\?$/],
    [{ PMEMSETD_HOST: '0.0.0.0' }, /^pmemsetd: PMEMSETD_HOST is "0\.0\.0\.0", which others can reach; allowed is/],
    [{ PMEMSETD_VOLUMES: 'default=./none' }, /^pmemsetd: PMEMSETD_VOLUMES: .*none cannot be used \(ENOENT\)$/],
    [{ PMEMSETD_VOLUMES: 'a=./data,b=./data' }, /lies in/],
    [{ PMEMSETD_TOKENS: './none' }, /^pmemsetd: PMEMSETD_TOKENS.*ENOENT/],
    [{ PMEMSETD_TOKENS: './tokens' }, /^pmemsetd: PMEMSETD_TOKENS is .*allowed is a file of mode 0600/],
    [{ PMEMSETD_PORT: String(port) }, /^pmemsetd: cannot listen: .*EADDRINUSE.*set PMEMSETD_PORT$/],
    [{ PMEMSETD_SOCKET: './bound/socket' }, /^pmemsetd: PMEMSETD_SOCKET is .*where something listens already/],
    [{}, /^pmemsetd: .*RLIMIT_AS/, ['bash', '-c', 'ulimit -v 4000000; exec "$0" "$@"']]
  ]
  await Promise.all(cases.map(async ([env, said, wrap], i) => {
    // Each its own volume: two services would not share one.
    mkdirSync(join(dir, `data-${i}`))
    const started = run(dir, { PMEMSETD_VOLUMES: `default=./data-${i}`, ...env }, wrap)
    t.equal(await started.ended, 1, JSON.stringify(env))
    t.match(started.said().trim(), said)
  }))
  t.ok(existsSync(join(dir, 'bound', 'socket')), 'the socket of the other is still there')
})

t.test('./data is made, and is the volume', async (t) => {
  const dir = folder(t)
  const { address, child, ended, said } = await listening(t, dir)
  t.match(address, /^http:\/\/127\.0\.0\.1:\d+$/)
  t.ok(statSync(join(dir, 'data')).isDirectory())
  t.match((await ask({ url: `${address}/volumes` })).json, { items: [{ name: 'default' }] })
  child.kill('SIGTERM')
  t.equal(await ended, 0)
  t.match(said(), /"stopping","signal":"SIGTERM"[^]*"stopped"/)
})

t.test('a Unix socket: for its owner alone, without a door, and gone at the end', async (t) => {
  const dir = folder(t, 'data', 'run')
  const socketPath = join(dir, 'run', 's')
  const { child, ended } = await listening(t, dir, { PMEMSETD_SOCKET: './run/s' })
  t.equal(statSync(socketPath).mode & 0o777, 0o600)
  t.match(await ask({ socketPath, path: '/livez' }, { headers: { host: 'anything' } }), { status: 200, json: { status: 'live' } })
  child.kill('SIGKILL')
  await ended
  t.ok(existsSync(socketPath), 'a kill leaves it')
  const next = await listening(t, dir, { PMEMSETD_SOCKET: './run/s' })
  t.equal((await ask({ socketPath, path: '/livez' })).status, 200, 'and the next one takes its place')
  next.child.kill('SIGTERM')
  t.equal(await next.ended, 0)
  t.notOk(existsSync(socketPath))
})

t.test('tokens, once set, are demanded on loopback and on a socket too', async (t) => {
  const dir = folder(t, 'data', 'other')
  const made = spawn(process.execPath, [join(MAIN, '..', 'token.js'), join(dir, 'tokens'), 'read'], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [[token]] = await Promise.all([once(made.stdout, 'data'), once(made, 'close')]) as [[Buffer], unknown]
  const bearer = { headers: { authorization: `Bearer ${token.toString().trim()}` } }
  const tcp = await listening(t, dir, { PMEMSETD_TOKENS: './tokens' })
  t.match(await ask({ url: `${tcp.address}/sets` }), { status: 401, json: { code: 'TOKEN_REQUIRED' } })
  t.equal((await ask({ url: `${tcp.address}/sets` }, bearer)).status, 200)
  t.match(await ask({ url: `${tcp.address}/sets` }, { ...bearer, method: 'POST', body: {} }), { status: 403, json: { code: 'SCOPE_MISSING', requiredScope: 'admin' } })
  t.equal((await ask({ url: `${tcp.address}/readyz` })).status, 200)
  await listening(t, dir, { PMEMSETD_TOKENS: './tokens', PMEMSETD_SOCKET: './s', PMEMSETD_VOLUMES: 'default=./other' })
  t.equal((await ask({ socketPath: join(dir, 's'), path: '/sets' })).status, 401)
})

t.test('a granularity is pretended by its own setting only, and every reply says so', async (t) => {
  const use = async (env: NodeJS.ProcessEnv): Promise<Record<'capabilities' | 'part' | 'written', Json>> => {
    const { address, child, ended } = await listening(t, folder(t, 'data'), env)
    const post = async (path: string, body: object): Promise<Json> => (await ask({ url: address + path }, { method: 'POST', body })).json
    const capabilities = (await ask({ url: `${address}/capabilities` })).json
    await post('/sets', { id: 's', requiredGranularity: 'page' })
    const part = await post('/sets/s/parts', { source: { type: 'file', path: 'f', create: 'if_needed' }, length: 4096 })
    const written = await post('/sets/s/persist', { ranges: [{ addr: part.addr, length: 1 }] })
    child.kill('SIGTERM')
    await ended
    return { capabilities, part, written }
  }
  const forced = await use({ PMEM2_FORCE_GRANULARITY: 'byte' })
  t.match(forced, { capabilities: { simulated: undefined, granularities: ['page'] }, part: { granularity: 'page' }, written: { simulated: undefined, granularity: 'page' } })
  for (const granularity of ['byte', 'cache_line']) {
    t.match(await use({ PMEMSETD_SIMULATE: granularity }), { capabilities: { simulated: granularity, granularities: [granularity] }, part: { granularity, mapSync: false }, written: { simulated: true, granularity } })
  }
})

t.test('SIGTERM lets what is under way end', async (t) => {
  const dir = folder(t, 'data')
  const { address, child, ended, said } = await listening(t, dir)
  const post = async (path: string, body: object): Promise<Json> => (await ask({ url: address + path }, { method: 'POST', body })).json
  await post('/sets', { id: 's', requiredGranularity: 'page' })
  const { addr } = await post('/sets/s/parts', { source: { type: 'file', path: 'f', create: 'if_needed' }, length: 4096 }) as { addr: string }
  const upload = request(`${address}/sets/s/memory?addr=${addr}&durability=none`, { method: 'PUT', agent: false, headers: { expect: '100-continue', 'content-length': 5 } })
  upload.flushHeaders()
  await once(upload, 'continue')
  upload.write('under')
  child.kill('SIGTERM')
  upload.end()
  const [reply] = await once(upload, 'response') as [IncomingMessage]
  t.equal(reply.statusCode, 200)
  reply.resume()
  t.equal(await ended, 0, said())
  t.equal(readFileSync(join(dir, 'data', 'f')).subarray(0, 5).toString(), 'under')
})

t.test('a start is not given up because it takes its time', async (t) => {
  const { app } = await shell(t)
  t.equal(app.initialConfig.pluginTimeout, 0)
})

t.test('what Node makes for each tick has the shape of what is kept of it', async (t) => {
  const script = `
    const { executionAsyncResource } = require('node:async_hooks')
    const same = (a) => new Promise((resolve) => { process.nextTick(() => { resolve(%HaveSameMap(a, executionAsyncResource())) }) })
    import(process.argv[1]).then(async ({ kept }) => {
      for (let i = 0; i < 20000; i++) await new Promise((resolve) => { process.nextTick(resolve) })
      const answers = [kept.length, await same(kept[0])]
      setImmediate(async () => { gc(); console.log(JSON.stringify([...answers, await same(kept[0]), await same({})])) })
    })`
  const { stdout } = await promisify(execFile)(process.execPath, ['--expose-gc', '--allow-natives-syntax', '-e', script, join(dirname(MAIN), 'ticks.js')])
  t.same(JSON.parse(stdout), [1, true, true, false])
})
