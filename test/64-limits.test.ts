// SPDX-License-Identifier: BSD-3-Clause
// What the host sets limits to, of the whole process: who may have a volume, clocks that jump, descriptors and mappings that run out. Each is an answer that
// says so, and what was there before is there after.
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readdirSync, writeFileSync, writeSync } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Failure, Part, PmemSet } from '../src/schemas.js'
import { brokenDisk, cannotBreak } from './media.js'
import { folder, held, kill, must, run, send, serving, type Served } from './process.js'
import { cannot, makeFile, MIB, PAGE, plus } from './service.js'

const file = (path: string): object => ({ type: 'file', path, create: 'if_needed' })

async function newSet (served: Served, id: string, fields: object = {}): Promise<PmemSet> {
  return await must(served, 'POST', '/sets', { id, requiredGranularity: 'page', ...fields }) as PmemSet
}

async function newPart (served: Served, set: string, path: string, fields: object = {}): Promise<Part> {
  return await must(served, 'POST', `/sets/${set}/parts`, { source: file(path), length: PAGE, ...fields }) as Part
}

async function partsOf (served: Served, set: string): Promise<Part[]> {
  return (await must(served, 'GET', `/sets/${set}/parts?limit=1000`) as { items: Part[] }).items
}

/* ---- two services ---- */

t.test('of services that start at once, one serves, and each of the others says which', async (t) => {
  const dir = folder(t, 'data')
  for (const round of ['first', 'after a kill']) {
    const all = Array.from({ length: 3 }, () => run(dir, { PMEMSETD_VOLUMES: 'default=./data' }))
    t.teardown(async () => { await Promise.all(all.map(kill)) })
    // Two of them end; the one that does not is the one that serves.
    let ended = 0
    await new Promise<void>((resolve) => { for (const one of all) one.ended.then(() => { if (++ended === all.length - 1) resolve() }, () => {}) })
    const [server, ...more] = all.filter(({ child }) => child.exitCode === null)
    t.same(more, [], round)
    if (server === undefined) return
    for (const one of all.filter((one) => one !== server)) {
      t.equal(await one.ended, 1)
      t.match(one.said().trim(), new RegExp(`^pmemsetd: ${join(dir, 'data/.pmemset')} is in use by another pmemsetd, process ${server.child.pid ?? 0}; .*$`))
    }
    while (!server.said().includes('"ready"')) await once(server.child.stdout!, 'data')
    await kill(server)
  }
})

/* ---- clocks ---- */

const cannotShift = cannot('cc --version')
const HOUR = 3600
const YEAR = 365 * 24 * HOUR

/** Clocks for one process at a time: what its environment needs, and how they are moved. `off`: the time of day jumps; `passed`: time goes by. */
function clocks (t: Test, dir: string): { env: NodeJS.ProcessEnv, move: (shifts: { off?: number, passed?: number }) => void } {
  const library = join(dir, 'clock.so')
  execFileSync('cc', ['-std=c11', '-D_GNU_SOURCE', '-shared', '-fPIC', '-o', library, join(import.meta.dirname, '..', '..', 'test', 'native', 'clock.c')])
  const path = join(dir, 'shifts')
  writeFileSync(path, Buffer.alloc(16))
  // In place: the process has it mapped.
  const fd = openSync(path, 'r+')
  t.teardown(() => { closeSync(fd) })
  const all = { off: 0, passed: 0 }
  return {
    env: { LD_PRELOAD: library, CLOCK_SHIFTS: path },
    move: (shifts) => {
      Object.assign(all, shifts)
      writeSync(fd, Buffer.from(BigInt64Array.of(BigInt(all.off), BigInt(all.passed)).buffer), 0, 16, 0)
    }
  }
}

/** How far that is from the time of day, in seconds. */
function offBy (at: string): number {
  return Math.round((Date.parse(at) - Date.now()) / 1000)
}

t.test('clocks that jump', { skip: cannotShift }, async (t) => {
  const dir = folder(t, 'data')
  const { env, move } = clocks(t, dir)
  makeFile(join(dir, 'data'), 'large', 16 * MIB)
  const first = await serving(t, dir, env)
  const keyed = (served: Served, key: string): ReturnType<typeof send> => send(served, 'POST', '/sets', { id: key, requiredGranularity: 'page' }, { 'idempotency-key': key })
  const near = (seconds: number, wanted: number, what: string): void => { t.ok(Math.abs(seconds - wanted) < 60, `${what}: ${seconds}, ${wanted}`) }
  const now = (await keyed(first, 'now')).json as PmemSet
  near(offBy(now.createdAt), 0, 'as it is')
  const { addr } = await newPart(first, 'now', 'large', { length: 16 * MIB })

  // A body that is under way from now on, and a reply that is not taken.
  const upload = request(`${first.address}/sets/now/memory?addr=${addr}`, { method: 'PUT', agent: false, headers: { 'content-length': 10 } })
  upload.write('12345')
  const download = request(`${first.address}/sets/now/memory?addr=${addr}&length=${16 * MIB}`, { agent: false })
  download.end()
  const [reply] = await once(download, 'response') as [IncomingMessage]
  let asked = 0
  for (const off of [YEAR, -YEAR, 10 * YEAR, -10 * YEAR, 0]) {
    move({ off })
    const key = `at-${++asked}`
    const made = await keyed(first, key)
    near(offBy((made.json as PmemSet).createdAt), off, 'the time of day is the host\'s')
    for (const one of ['now', key]) {
      t.match(await keyed(first, one), { status: 201, json: { id: one } }, `a key is not forgotten by a jump of ${off}`)
    }
    t.equal((await newPart(first, key, `file-${asked}`)).revision, 2)
    // The rule of progress looks every five seconds, and would have seen one of the jumps.
    await sleep(1200)
  }
  upload.end('67890')
  const [answer] = await once(upload, 'response') as [IncomingMessage]
  t.equal(answer.statusCode, 200, 'an upload goes on')
  answer.resume()
  let bytes = 0
  for await (const chunk of reply) bytes += (chunk as Buffer).length
  t.equal(bytes, 16 * MIB, 'and so does a download')

  // What was asked for under a clock that was ahead is neither forgotten, nor kept for as long as it was ahead.
  move({ off: YEAR })
  t.equal((await keyed(first, 'ahead')).status, 201)
  await kill(first)
  move({ off: 0 })
  const second = await serving(t, dir, env)
  for (const key of ['ahead', 'now']) t.match(await keyed(second, key), { status: 201, json: { id: key } }, `${key}, after a restart`)
  move({ passed: 23 * HOUR })
  t.match(await keyed(second, 'ahead'), { status: 201 }, 'a day is not over')
  move({ passed: 25 * HOUR })
  for (const key of ['ahead', 'now', 'at-1']) t.match(await keyed(second, key), { status: 409, json: { code: 'SET_EXISTS' } }, `${key}, a day later`)
  t.match(await must(second, 'GET', '/sets/now'), { createdAt: now.createdAt, state: 'ready' })
  second.child.kill('SIGTERM')
  t.equal(await second.ended, 0, second.said())
})

t.test('a failure tells the time of day of its own moment', { skip: cannotShift === false ? cannotBreak : cannotShift }, async (t) => {
  const disk = brokenDisk(t, ['f', 'g'])
  const dir = folder(t, 'state')
  const { env, move } = clocks(t, dir)
  const all = { ...env, PMEMSETD_VOLUMES: `default=${disk.dir}`, PMEMSETD_STATE_DIR: './state' }
  const first = await serving(t, dir, all)
  await newSet(first, 's')
  for (const [path, off] of [['f', YEAR], ['g', -YEAR]] as const) {
    const { addr } = await newPart(first, 's', path)
    move({ off })
    t.match(await send(first, 'POST', '/sets/s/memset', { addr, length: PAGE, value: '0x6e' }), { status: 500, json: { code: 'PERSIST_FAILED' } })
  }
  const failures = async (served: Served): Promise<Failure[]> => (await must(served, 'GET', '/sets/s/failures') as { items: Failure[] }).items
  const before = await failures(first)
  t.same(before.map(({ at }) => Math.round(offBy(at) / YEAR)), [1, -1], 'in the order in which they came, not of the clock')
  await kill(first)
  const second = await serving(t, dir, all)
  t.same((await failures(second)).map(({ at, ranges }) => ({ at, ranges })), before.map(({ at, ranges }) => ({ at, ranges })))
  disk.mend()
  for (const { id } of await failures(second)) await must(second, 'POST', `/sets/s/failures/${id}/acknowledge`, { action: 'rewrite' })
  t.match(await must(second, 'GET', '/sets/s'), { state: 'ready' })
})

/* ---- descriptors ---- */

const cannotLimit = cannot('prlimit --nofile=100:100 true')

t.test('descriptors that run out', { skip: cannotLimit }, async (t) => {
  const dir = folder(t, 'data')
  const first = await serving(t, dir)
  // Node itself needs more, to start.
  execFileSync('prlimit', ['--pid', String(first.child.pid ?? 0), '--nofile=100:'])
  await newSet(first, 's')
  const well = await newPart(first, 's', 'well')
  const before = held(first)

  // By files: each that is mapped has one.
  const mapped: string[] = []
  let refusal = await send(first, 'GET', '/livez')
  while (refusal.status < 300 && mapped.length < 200) {
    const id = `p${mapped.length}`
    refusal = await send(first, 'POST', '/sets/s/parts', { id, source: file(id), length: PAGE })
    if (refusal.status === 201) mapped.push(id)
  }
  t.match(refusal, { status: 503, json: { code: 'EMFILE', errno: 'EMFILE', retryable: true } })
  t.ok(mapped.length > 30, `${mapped.length} files`)
  t.same((await partsOf(first, 's')).map(({ id }) => id), [well.id, ...mapped], 'what was refused is not there')
  t.notOk(readdirSync(join(dir, 'data')).includes(`p${mapped.length}`), 'nor the file that it would have made')
  t.match(await must(first, 'POST', '/sets/s/memset', { addr: well.addr, length: PAGE, value: '0x61' }), { durability: 'persisted' })
  for (const id of mapped.splice(mapped.length / 2)) await must(first, 'DELETE', `/sets/s/parts/${id}`)

  // By connections: those beyond are not served, and do no harm.
  const sockets: Socket[] = []
  for (let i = 0; i < 200; i++) {
    const socket = connect(Number(new URL(first.address).port), '127.0.0.1')
    socket.on('error', () => {})
    sockets.push(socket)
  }
  await sleep(300)
  t.equal(first.child.exitCode, null, 'it lives')
  for (const socket of sockets) socket.destroy()
  // Whoever comes before it knows that they are gone is turned away, too.
  for (let i = 0; i < 50 && await send(first, 'GET', '/livez').then(() => false, () => true); i++) await sleep(20)
  t.match(await must(first, 'GET', '/sets/s'), { state: 'ready', partCount: mapped.length + 1 })
  await newPart(first, 's', 'after', { id: 'after' })
  for (const id of mapped) await must(first, 'DELETE', `/sets/s/parts/${id}`)
  await must(first, 'DELETE', '/sets/s/parts/after')
  t.same(held(first), before, 'nothing is left behind')

  // A start with fewer than the catalog needs.
  execFileSync('prlimit', ['--pid', String(first.child.pid ?? 0), '--nofile=1024:'])
  const more = 200
  for (let i = 0; i < more; i++) {
    makeFile(join(dir, 'data'), `q${i}`, PAGE)
    await must(first, 'POST', '/sets/s/parts', { id: `q${i}`, source: { type: 'file', path: `q${i}` } })
  }
  await kill(first)
  const second = await serving(t, dir, {}, ['prlimit', `--nofile=${more - 40}:${more - 40}`])
  const parts = await partsOf(second, 's')
  const missing = parts.filter(({ state }) => state === 'unavailable')
  t.ok(missing.length > 5 && missing.length < more, `${missing.length} of ${parts.length}`)
  t.same(new Set(missing.map(({ problem }) => problem)), new Set(['EMFILE']))
  const [one] = missing
  t.match(await send(second, 'GET', `/sets/s/maps?addr=${one?.addr ?? ''}`), { status: 409, json: { code: 'PART_UNAVAILABLE', problem: 'EMFILE' } })
  t.match(await send(second, 'POST', `/sets/s/parts/${one?.id ?? ''}/restore`, {}), { status: 503, json: { code: 'EMFILE' } })
  for (const { id } of parts.filter(({ state }) => state === 'mapped').slice(0, 10)) await must(second, 'DELETE', `/sets/s/parts/${id}`)
  t.match(await must(second, 'POST', `/sets/s/parts/${one?.id ?? ''}/restore`, {}), { state: 'mapped', addr: one?.addr })
  await kill(second)
  const third = await serving(t, dir)
  t.match(await must(third, 'GET', '/sets/s'), { state: 'ready', partCount: parts.length - 10 })
})

/* ---- kernel mappings ---- */

t.test('mappings that run out', async (t) => {
  const dir = folder(t, 'data')
  const first = await serving(t, dir, { PMEMSETD_MAPPINGS_MAX: '40' })
  const { limits: { mappings: max } } = await must(first, 'GET', '/capabilities') as { limits: { mappings: number } }
  t.equal(max, 40)
  await newSet(first, 's')
  makeFile(join(dir, 'data'), 'f', 1000 * PAGE)
  const map = (served: Served, i: number): ReturnType<typeof send> => send(served, 'POST', '/sets/s/parts', { id: `p${i}`, source: { type: 'file', path: 'f' }, offset: 2 * i * PAGE, length: PAGE })
  let made = 0
  let refusal = await map(first, made)
  for (; refusal.status === 201 && made < 100; refusal = await map(first, made)) made++
  t.match(refusal, { status: 409, json: { code: 'LIMIT_EXCEEDED', limit: 'mappings', max } })
  t.ok(made > 5 && made <= max, `${made} parts`)
  const parts = await partsOf(first, 's')
  t.equal(parts.length, made)
  // What is left of one is a hole, which is a mapping as well; of two it is still one.
  for (const id of ['p3', 'p4']) await must(first, 'DELETE', `/sets/s/parts/${id}`)
  t.match(await map(first, made), { status: 201 }, 'there is room for one more')
  const before = await partsOf(first, 's')
  await kill(first)

  const second = await serving(t, dir, { PMEMSETD_MAPPINGS_MAX: '20' })
  const after = await partsOf(second, 's')
  t.same(after.map(({ id, addr, offset, length }) => ({ id, addr, offset, length })), before.map(({ id, addr, offset, length }) => ({ id, addr, offset, length })))
  const there = after.filter(({ state }) => state === 'mapped')
  const missing = after.filter(({ state }) => state === 'unavailable')
  t.ok(there.length > 0 && missing.length > 0 && there.length + missing.length === before.length, `${there.length} there, ${missing.length} not`)
  t.same(new Set(missing.map(({ problem }) => problem)), new Set(['LIMIT_EXCEEDED']))
  const [lost] = missing
  const url = `/sets/s/parts/${lost?.id ?? ''}/restore`
  t.match(await send(second, 'POST', url, {}), { status: 409, json: { code: 'LIMIT_EXCEEDED', limit: 'mappings', max: 20 } })
  t.match(await send(second, 'GET', `/sets/s/maps?addr=${lost?.addr ?? ''}`), { status: 409, json: { code: 'PART_UNAVAILABLE', problem: 'LIMIT_EXCEEDED' } })
  for (const { addr } of there) t.match(await must(second, 'POST', '/sets/s/memset', { addr, length: PAGE, value: '0x62' }), { durability: 'persisted' })
  for (const { id } of there.slice(0, 3)) await must(second, 'DELETE', `/sets/s/parts/${id}`)
  t.match(await must(second, 'POST', url, {}), { state: 'mapped', addr: lost?.addr })
  t.match(await must(second, 'POST', '/sets/s/batch', { operations: [{ op: 'read', addr: plus(lost?.addr ?? '', 8), length: 1 }] }), { results: [{ data: String }] })
  await kill(second)
  const third = await serving(t, dir)
  t.match(await must(third, 'GET', '/sets/s'), { state: 'ready', partCount: before.length - 3 })
})
