// SPDX-License-Identifier: BSD-3-Clause
// GET /metrics: that it is the text format and nothing else, that each number is the number of what was done, and that no label tells what is a client's.
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { groups } from '../src/metrics.js'
import { digestOf, type Scope } from '../src/plugins/tokens.js'
import { brokenDisk, cannotBreak } from './media.js'
import { listening, makeFile, makeSet, mapPart, MIB, PAGE, plus, type Opened } from './service.js'
import { raw } from './shell.js'

/* ---- the text format, strictly ---- */

interface Family { help: string, type: string, samples: Map<string, number> }

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\"n])*",?)*)\})? (NaN|[+-]Inf|-?[0-9][0-9.e+-]*)$/
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"/g
const SUFFIXES: Partial<Record<string, string[]>> = { histogram: ['_bucket', '_sum', '_count'], summary: ['', '_sum', '_count'] }

function keyOf (name: string, labels: Record<string, string>): string {
  return `${name}{${Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)).map(([label, value]) => `${label}="${value}"`).join(',')}}`
}

/** By family; throws at whatever a reader of Prometheus' would refuse, and at what its conventions forbid. */
function parse (text: string): Map<string, Family> {
  const families = new Map<string, Family>()
  let current: [name: string, family: Family] | undefined
  if (!text.endsWith('\n')) throw new Error('the last line does not end')
  for (const line of text.split('\n').slice(0, -1)) {
    if (line === '') continue
    const comment = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line)
    if (comment !== null) {
      const [, kind, name = '', rest = ''] = comment
      if (kind === 'HELP') {
        if (families.has(name)) throw new Error(`${name} is told twice`)
        current = [name, { help: rest, type: '', samples: new Map() }]
        families.set(...current)
      } else {
        if (current?.[0] !== name || current[1].type !== '') throw new Error(`misplaced: ${line}`)
        if (!['counter', 'gauge', 'histogram', 'summary'].includes(rest)) throw new Error(line)
        current[1].type = rest
      }
      continue
    }
    const [, name = '', labelText = '', value = ''] = SAMPLE.exec(line) ?? []
    if (name === '' || current === undefined) throw new Error(`not a sample: ${line}`)
    const [family, { type, samples }] = current
    if (!(SUFFIXES[type] ?? ['']).some((suffix) => name === family + suffix)) throw new Error(`${name} among those of ${family}`)
    const pairs = [...labelText.matchAll(LABEL)].map(([, label = '', told = '']): [string, string] => [label, told])
    const key = keyOf(name, Object.fromEntries(pairs))
    if (new Set(pairs.map(([label]) => label)).size !== pairs.length || samples.has(key)) throw new Error(`twice: ${line}`)
    samples.set(key, Number(value.replace('Inf', 'Infinity')))
  }
  for (const [name, family] of families) check(name, family)
  return families
}

function check (name: string, { type, samples }: Family): void {
  // prom-client has gauges that end so.
  if (type === 'counter' ? !name.endsWith('_total') : name.startsWith('pmemsetd_') && name.endsWith('_total')) throw new Error(`${name} is a ${type}`)
  const values = [...samples]
  if (type !== 'gauge' && values.some(([, value]) => !(value >= 0))) throw new Error(`${name} is below nothing`)
  if (type !== 'histogram') return
  const series = new Map<string, number[]>()
  for (const [key, value] of values) {
    if (!key.startsWith(`${name}_bucket`)) continue
    const rest = key.replace(/le="[^"]*",?/, '').replace(',}', '}').replace('_bucket', '_count')
    series.set(rest, [...series.get(rest) ?? [], value])
  }
  for (const [key, buckets] of series) {
    if (buckets.some((value, i) => value < (buckets[i - 1] ?? 0))) throw new Error(`${key}: the buckets do not add up`)
    if (buckets.at(-1) !== samples.get(key)) throw new Error(`${key}: the last bucket is not the count`)
    if (!samples.has(key.replace('_count', '_sum'))) throw new Error(`${key}: no sum`)
  }
}

/* ---- the service ---- */

interface Scrape { text: string, families: Map<string, Family>, value: (name: string, labels?: Record<string, string>) => number }

async function scrape ({ port }: Opened): Promise<Scrape> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
  const families = parse(text)
  const all = new Map([...families.values()].flatMap(({ samples }) => [...samples]))
  return { text, families, value: (name, labels = {}) => all.get(keyOf(name, labels)) ?? 0 }
}

async function send ({ port }: Opened, method: string, url: string, body?: object | Buffer): Promise<number> {
  const isBytes = Buffer.isBuffer(body)
  const headers: Record<string, string> = body === undefined ? {} : { 'content-type': isBytes ? 'application/octet-stream' : 'application/json' }
  const reply = await fetch(`http://127.0.0.1:${port}${url}`, { method, headers, ...(body === undefined ? {} : { body: isBytes ? body : JSON.stringify(body) }) })
  await reply.arrayBuffer()
  return reply.status
}

/**
 * By how much each sample of `pmemsetd_` grew that did, but for buckets and sums, and for the scrapes themselves. Whether a write went alone or in a group
 * is the service's to choose.
 */
function growth (before: Scrape, after: Scrape): Record<string, number> {
  const was = new Map([...before.families.values()].flatMap(({ samples }) => [...samples]))
  return Object.fromEntries([...after.families].filter(([name]) => name.startsWith('pmemsetd_')).flatMap(([, { samples }]) => [...samples])
    .filter(([key]) => !/_bucket\{|_sum\{|_group_writes/.test(key) && !key.includes('route="/metrics"'))
    .map(([key, value]): [string, number] => [key.replace('"write_many"', '"write"'), value - (was.get(key) ?? 0)]).filter(([, more]) => more !== 0))
}

const replies = (route: string, method: string, status: number, code?: string): string =>
  keyOf('pmemsetd_http_requests_total', { route, method, status: String(status), ...(code === undefined ? {} : { code }) })

t.test('the text', async (t) => {
  const opened = await listening(t)
  const reply = await fetch(`http://127.0.0.1:${opened.port}/metrics`)
  t.match([reply.status, reply.headers.get('content-type'), reply.headers.get('cache-control')], [200, 'text/plain; version=0.0.4; charset=utf-8', 'no-store'])
  const { families, value } = await scrape(opened)
  for (const name of ['process_cpu_seconds_total', 'process_resident_memory_bytes', 'nodejs_eventloop_lag_p99_seconds', 'nodejs_eventloop_lag_max_seconds']) t.ok(families.has(name), name)
  t.equal(value('pmemsetd_http_requests_total', { route: '/metrics', method: 'GET', status: '200' }), 1, 'the one before this one')
  t.ok(value('pmemsetd_mappings_max') > 1000)
  for (const wrong of ['x 1', '# HELP x y\n# TYPE x counter\nx 1\n', '# HELP x y\n# TYPE x gauge\nx 1\nx 2\n', '# HELP x y\n# TYPE x gauge\nx{a="1" 1\n', '# HELP x y\n# TYPE x gauge\ny 1\n']) t.throws(() => parse(wrong), wrong)
})

t.test('each number grows by what was done', async (t) => {
  const opened = await listening(t)
  const grown = async (work: () => Promise<unknown>): Promise<Record<string, number>> => {
    const before = await scrape(opened)
    await work()
    return growth(before, await scrape(opened))
  }
  const maps = '/sets/{set}/maps'
  const memory = '/sets/{set}/memory'

  t.same(await grown(() => send(opened, 'POST', '/sets', { id: 's', requiredGranularity: 'page' })), { [replies('/sets', 'POST', 201)]: 1, 'pmemsetd_sets{}': 1 })
  makeFile(opened.dir, 'f', 64 * PAGE)
  const mapped = await grown(() => send(opened, 'POST', '/sets/s/parts', { source: { type: 'file', path: 'f' } }))
  t.match(mapped, { 'pmemsetd_parts{}': 1, 'pmemsetd_mapped_bytes{}': 64 * PAGE, 'pmemsetd_native_seconds_count{operation="part_map"}': 1 })
  t.ok((mapped['pmemsetd_mappings{}'] ?? 0) > 0, 'mappings')
  const { addr } = opened.service.sets.list({ limit: 1 }).items[0]!.window
  const at = (offset: number): string => plus(addr, offset)

  t.same(await grown(async () => { for (let i = 0; i < 7; i++) await send(opened, 'GET', `/sets/s/maps?addr=${at(i)}`) }),
    { [replies(maps, 'GET', 200)]: 7, 'pmemsetd_lookups_total{}': 7 }, 'look-ups')
  t.same(await grown(async () => {
    for (let i = 0; i < 3; i++) await send(opened, 'GET', '/sets/s/maps?addr=0x1')
    await send(opened, 'GET', '/sets/nobody/maps?addr=0x1')
    await send(opened, 'GET', '/sets/s/maps?addr=1')
  }), {
    [replies(maps, 'GET', 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')]: 3,
    [replies(maps, 'GET', 404, 'SET_NOT_FOUND')]: 1,
    [replies(maps, 'GET', 400, 'PARAMETER_INVALID')]: 1,
    'pmemsetd_lookups_total{}': 3
  }, 'problems')

  // How many bytes there is room for.
  const room = { 'pmemsetd_lookups_total{}': 1 }
  const flushed = { 'pmemsetd_flushes_total{kind="ranges"}': 1, 'pmemsetd_flush_callers_total{}': 1 }
  t.same(await grown(() => send(opened, 'PUT', `/sets/s/memory?addr=${at(10)}`, Buffer.alloc(100, 1))), {
    [replies(memory, 'PUT', 200)]: 1, ...room, 'pmemsetd_written_bytes_total{}': 100, 'pmemsetd_native_seconds_count{durability="persisted",operation="write"}': 1, ...flushed
  }, 'a durable write')
  t.same(await grown(() => send(opened, 'PUT', `/sets/s/memory?addr=${at(10)}&durability=none`, Buffer.alloc(100, 1))), {
    [replies(memory, 'PUT', 200)]: 1, ...room, 'pmemsetd_written_bytes_total{}': 100, 'pmemsetd_native_seconds_count{durability="none",operation="write"}': 1
  }, 'one that is not')
  t.same(await grown(() => send(opened, 'PUT', `/sets/s/memory?addr=${at(0)}`, Buffer.alloc(32 * PAGE, 2))), {
    [replies(memory, 'PUT', 200)]: 1, ...room, 'pmemsetd_written_bytes_total{}': 32 * PAGE, 'pmemsetd_native_seconds_count{durability="persisted",operation="write"}': 1, ...flushed
  }, 'a large one')
  t.match(await grown(() => send(opened, 'POST', '/sets/s/batch', { operations: [{ op: 'write', addr: at(0), data: Buffer.alloc(24, 3).toString('base64') }, { op: 'read', addr: at(0), length: 40 }] })), {
    [replies('/sets/{set}/batch', 'POST', 200)]: 1, 'pmemsetd_written_bytes_total{}': 24, 'pmemsetd_read_bytes_total{}': 40, 'pmemsetd_native_seconds_count{operation="batch"}': 1, ...flushed
  }, 'a batch')
  t.same(await grown(() => send(opened, 'GET', `/sets/s/memory?addr=${at(0)}&length=64`)), { [replies(memory, 'GET', 200)]: 1, ...room, 'pmemsetd_read_bytes_total{}': 64 }, 'a read')
  t.match(await grown(() => send(opened, 'GET', `/sets/s/memory?addr=${at(0)}&length=${50 * PAGE}`)), { [replies(memory, 'GET', 200)]: 1, 'pmemsetd_read_bytes_total{}': 50 * PAGE }, 'a long read')
  const persist = async (count: number): Promise<number> => await send(opened, 'POST', '/sets/s/persist', { ranges: Array.from({ length: count }, (_, i) => ({ addr: at(64 * i), length: 1 })) })
  const persisted = { [replies('/sets/{set}/persist', 'POST', 200)]: 1, 'pmemsetd_native_seconds_count{durability="persisted",operation="persist"}': 1 }
  t.same(await grown(() => persist(1)), { ...persisted, ...flushed }, 'one range')
  t.same(await grown(() => persist(1000)), { ...persisted, 'pmemsetd_flushes_total{kind="file"}': 1, 'pmemsetd_flush_callers_total{}': 1 }, 'many ranges')

  t.match(await grown(() => send(opened, 'DELETE', '/sets/s')), { [replies('/sets/{set}', 'DELETE', 204)]: 1, 'pmemsetd_sets{}': -1, 'pmemsetd_parts{}': -1, 'pmemsetd_mapped_bytes{}': -64 * PAGE })
})

t.test('a flush of a whole file', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const before = await scrape(opened)
  // A file that grows is flushed whole.
  await mapPart(t, opened, 's', 'grown', { length: 16 * PAGE })
  t.match(growth(before, await scrape(opened)), { 'pmemsetd_flushes_total{kind="file"}': 1, 'pmemsetd_flush_callers_total{}': 1 })
})

t.test('writes that shared a call', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const part = await mapPart(t, opened, 's', 'shared', { length: 64 * PAGE })
  const earlier = await scrape(opened)
  const set = opened.service.sets.get('s')
  await Promise.all(Array.from({ length: 60 }, (_, i) => set.write(BigInt(part.addr) + BigInt(i * PAGE), Buffer.alloc(8, i), 'persisted')))
  const before = await scrape(opened)
  t.equal(before.value('pmemsetd_group_writes_sum') - earlier.value('pmemsetd_group_writes_sum'), 60, 'each is in one group')
  t.ok(before.value('pmemsetd_group_writes_count') - earlier.value('pmemsetd_group_writes_count') < 60, 'and shares it')
  t.equal(before.value('pmemsetd_written_bytes_total') - earlier.value('pmemsetd_written_bytes_total'), 480)
  for (const n of [1, 2, 3, 300]) groups.observe(n)
  const after = await scrape(opened)
  const more = (name: string, labels: Record<string, string> = {}): number => after.value(`pmemsetd_group_writes${name}`, labels) - before.value(`pmemsetd_group_writes${name}`, labels)
  t.same([more('_bucket', { le: '1' }), more('_bucket', { le: '2' }), more('_bucket', { le: '4' }), more('_bucket', { le: '256' }), more('_count'), more('_sum')], [1, 2, 3, 3, 4, 306])
})

t.test('pins, while a long read holds a map', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const part = await mapPart(t, opened, 's', 'long', { length: 64 * MIB })
  const before = (await scrape(opened)).value('pmemsetd_pins')
  const client = request({ port: opened.port, path: `/sets/s/memory?addr=${part.addr}&length=${64 * MIB}`, agent: false }).end()
  client.on('error', () => {})
  await once(client, 'response')
  t.equal((await scrape(opened)).value('pmemsetd_pins'), before + 1)
  client.destroy()
  for (let i = 0; i < 100 && (await scrape(opened)).value('pmemsetd_pins') > before; i++) await sleep(50)
  t.equal((await scrape(opened)).value('pmemsetd_pins'), before)
})

t.test('a flush that fails', { skip: cannotBreak }, async (t) => {
  const { dir } = brokenDisk(t, ['lost'])
  const opened = await listening(t, { dir })
  await makeSet(t, opened, { id: 's' })
  const part = await mapPart(t, opened, 's', 'lost', {}, { create: 'never' })
  const before = await scrape(opened)
  t.equal(before.value('pmemsetd_sets_degraded'), 0)
  t.equal(await send(opened, 'PUT', `/sets/s/memory?addr=${part.addr}`, Buffer.alloc(PAGE, 'L')), 500)
  t.match(growth(before, await scrape(opened)), {
    [replies('/sets/{set}/memory', 'PUT', 500, 'PERSIST_FAILED')]: 1, 'pmemsetd_flushes_failed_total{}': 1, 'pmemsetd_sets_degraded{}': 1
  })
})

t.test('what is no route, and what never reached one', async (t) => {
  const opened = await listening(t)
  const { port } = opened
  const before = await scrape(opened)
  for (const url of ['/nowhere', '/sets/a/nowhere', '/favicon.ico']) await send(opened, 'GET', url)
  await send(opened, 'PUT', '/livez')
  await send(opened, 'OPTIONS', '/livez')
  await send(opened, 'HEAD', '/livez')
  await raw(port, 'GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n')
  await raw(port, 'GET /sets/%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
  await raw(port, 'no request\r\n\r\n')
  await raw(port, 'PUT /sets/s/memory?addr=0x0 HTTP/1.1\r\nHost: localhost\r\nExpect: wonders\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
  await raw(port, 'PUT /sets/s/memory?addr=0x0 HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n')
  t.same(growth(before, await scrape(opened)), {
    [replies('none', 'GET', 404, 'ROUTE_NOT_FOUND')]: 3,
    [replies('none', 'PUT', 405, 'METHOD_NOT_ALLOWED')]: 1,
    [replies('none', 'OPTIONS', 204)]: 1,
    [replies('/livez', 'HEAD', 200)]: 1,
    [replies('/livez', 'GET', 421, 'HOST_NOT_ALLOWED')]: 1,
    [replies('none', 'GET', 400, 'PARAMETER_INVALID')]: 1,
    [replies('none', 'none', 400, 'REQUEST_INVALID')]: 1,
    [replies('none', 'PUT', 400, 'PARAMETER_INVALID')]: 1,
    [replies('/sets/{set}/memory', 'PUT', 404, 'SET_NOT_FOUND')]: 1
  })
})

t.test('no label tells an id, a path or an address', async (t) => {
  const opened = await listening(t)
  const { port } = opened
  await makeSet(t, opened, { id: 'zebra', labels: { zebra: 'zebra' } })
  makeFile(opened.dir, 'zebra/zebra', PAGE)
  const { addr } = await mapPart(t, opened, 'zebra', 'zebra/zebra', { id: 'zebra' }, { create: 'never' })
  for (const [method, url] of [['GET', '/sets/zebra'], ['GET', '/sets/zebra/parts/zebra'], ['GET', `/sets/zebra/maps/${addr}`], ['GET', '/zebra?zebra=zebra'], ['DELETE', '/zebra'], ['GET', '/errors/ZEBRA'], ['GET', '/volumes/default/probe?path=zebra/zebra'], ['GET', '/docs/zebra'], ['GET', '/sets/zebra/maps?zebra=1']] as const) await send(opened, method, url)
  await raw(port, 'ZEBRA /zebra HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await raw(port, `GET /sets/${'zebra'.repeat(100)} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: zebra\r\nConnection: close\r\n\r\n`)
  const { text, families } = await scrape(opened)
  t.notMatch(text, /zebra/i)
  t.notOk(text.includes(addr), addr)
  t.notOk(text.includes(opened.dir), opened.dir)
  const ours = [...families].filter(([name]) => name.startsWith('pmemsetd_'))
  const labels = new Set(ours.flatMap(([, { samples }]) => [...samples.keys()].flatMap((key) => [...key.matchAll(LABEL)].map(([, label]) => label))))
  t.same([...labels].sort(), ['code', 'durability', 'kind', 'le', 'method', 'operation', 'route', 'status'].filter((label) => labels.has(label)), 'labels of a few values each')
})

t.test('a token is needed where there are tokens, of the scope read', async (t: Test) => {
  const opened = await listening(t, { tokens: new Map((['read', 'write'] as const).map((scope): [string, Set<Scope>] => [digestOf(`a-${scope}-token`), new Set([scope])])) })
  const get = async (token?: string): Promise<[number, string]> => {
    const reply = await fetch(`http://127.0.0.1:${opened.port}/metrics`, token === undefined ? {} : { headers: { authorization: `Bearer ${token}` } })
    return [reply.status, await reply.text()]
  }
  t.match([(await get())[0], (await get('nobody'))[0], (await get('a-write-token'))[0]], [401, 401, 403])
  const [status, text] = await get('a-read-token')
  t.equal(status, 200)
  const requests = parse(text).get('pmemsetd_http_requests_total')?.samples
  t.same([requests?.get(replies('/metrics', 'GET', 401, 'TOKEN_REQUIRED')), requests?.get(replies('/metrics', 'GET', 403, 'SCOPE_MISSING'))], [2, 1])
  t.notMatch(text, /-token|nobody/)
})

t.test('the README tells of each, and of none that does not exist', async (t) => {
  const readme = readFileSync(join(import.meta.dirname, '..', '..', 'README.md'), 'utf8')
  const told = [...readme.matchAll(/^\| `(pmemsetd_\w+)`/gm)].map(([, name]) => name)
  const { families } = await scrape(await listening(t))
  t.same(told.sort(), [...families.keys()].filter((name) => name.startsWith('pmemsetd_')).sort())
})
