// SPDX-License-Identifier: BSD-3-Clause
//
// H8: many writes of 64 bytes in one request, beside redis-benchmark with as many SETs on their way. Each batch is made durable; Redis does that on the disk only.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { encodeBatch } from '../../src/batch.js'
import { brings, compare, exchange, http, installed, resp, type Bench, type Contestant, type Keep, type Row, type Scene } from './measure.js'
import { redis } from './peers.js'
import { fillFile, LOAD_CORE, service, type Server } from './server.js'
import { record, WRITE_BYTES } from './writes.js'

const MIB = 1024 * 1024
const PLACES = MIB / WRITE_BYTES
const BODIES = 64
const CONNECTIONS = 32
const OCTETS = { 'content-type': 'application/octet-stream' }
const JSON_TYPE = { 'content-type': 'application/json' }

/** What is written to: a file system that is memory, at the granularity of DAX; or a disk. */
type Medium = 'memory' | 'disk'

/** Which places each batch writes: random ones, so that a batch touches all of the working set. */
function placesOf (count: number): number[][] {
  return Array.from({ length: BODIES }, () => Array.from({ length: count }, () => Math.floor(Math.random() * PLACES)))
}

/** Batches in one of the two forms, of which the first was seen to write what it says. */
async function batches (ours: Server, addr: bigint, count: number, form: 'binary' | 'json'): Promise<Contestant> {
  const place = (index: number): string => `0x${(addr + BigInt(index * WRITE_BYTES)).toString(16)}`
  const bodies = placesOf(count)
  const encode = (places: number[]): Buffer => {
    if (form === 'binary') return http('POST', '/sets/bench/batch/binary', Buffer.from(encodeBatch(places.map((i) => ({ op: 'write', addr: place(i), data: record(i) })), 'persisted')), OCTETS)
    const operations = places.map((i) => ({ op: 'write', addr: place(i), data: record(i).toString('base64') }))
    return http('POST', '/sets/bench/batch', Buffer.from(JSON.stringify({ operations })), JSON_TYPE)
  }
  const made: Contestant = { servers: [ours], port: ours.port, protocol: 'http', requests: bodies.map(encode), operations: count }
  const [first = []] = bodies
  await exchange(made, made.requests[0] as Buffer)
  for (const index of [first[0], first.at(-1)] as number[]) await brings(made, http('GET', `/sets/bench/memory?addr=${place(index)}&length=${WRITE_BYTES}`), record(index))
  return made
}

/** redis-benchmark's SET of 64 bytes at a random key; how many there are to be is known from the slice before. */
async function benchmark (server: Server, depth: number): Promise<Contestant> {
  let perSecond = 20_000
  const run = async (seconds: number): Promise<number> => {
    const { stdout } = await promisify(execFile)('taskset', ['-c', String(LOAD_CORE), 'redis-benchmark', '-p', String(server.port), '-c', String(CONNECTIONS), '-P', String(depth),
      '-n', String(Math.ceil(perSecond * seconds)), '-r', String(PLACES), '-d', String(WRITE_BYTES), '-t', 'set', '--csv'])
    const found = Number(/^"SET","([\d.]+)"/m.exec(stdout)?.[1])
    if (!(found > 0)) throw new Error(`redis-benchmark: ${stdout}`)
    perSecond = found
    return found
  }
  const made: Contestant = { servers: [server], port: server.port, protocol: 'resp', requests: [], run }
  await run(0.1)
  const [key = ''] = /key:\d+/.exec((await exchange(made, resp('EVAL', "return redis.call('RANDOMKEY')", '0'))).toString()) ?? []
  const value = await exchange(made, resp('GET', key))
  if (value.length < WRITE_BYTES) throw new Error(`redis-benchmark has set ${key} to ${value.length} bytes`)
  return made
}

async function open (count: number, form: 'binary' | 'json', medium: Medium, depths: readonly number[], bench: Bench, keep: Keep): Promise<Scene> {
  const dir = keep.directory(bench[medium])
  const ours = keep.server(await service(dir, medium === 'memory' ? { PMEMSETD_SIMULATE: 'cache_line' } : {}))
  const addr = await fillFile(ours, 'batches.bin', MIB, medium === 'memory' ? 'cache_line' : 'page')
  const server = installed('redis-benchmark') ? await redis(bench, keep, medium === 'disk') : 'redis-benchmark is not installed'
  const peers: Scene['peers'] = {}
  for (const depth of depths) peers[`redis-benchmark -P ${depth}`] = typeof server === 'string' ? server : await benchmark(server, depth)
  return { ours: await batches(ours, addr, count, form), peers }
}

const RESP = 'RESP is not HTTP'

export const H8: Row = {
  name: 'H8',
  what: 'batches of writes of 64 B',
  measure: async (bench) => {
    const against = (what: string, count: number, form: 'binary' | 'json', medium: Medium, depths: Record<number, number | undefined>): ReturnType<typeof compare> => compare(bench, 'H8', {
      what,
      open: (b, keep) => open(count, form, medium, Object.keys(depths).map(Number), b, keep),
      goals: Object.entries(depths).map(([depth, atLeast]) => ({ peer: `redis-benchmark -P ${depth}`, by: 'rate', ...(atLeast === undefined ? {} : { atLeast }), note: RESP }))
    })
    return [
      ...await against('100 per request', 100, 'binary', 'memory', { 100: 1.3 }),
      ...await against('1 000 per request', 1000, 'binary', 'memory', { 100: 5, 1000: undefined }),
      ...await against('100 per request, JSON', 100, 'json', 'memory', { 100: undefined }),
      ...await against('1 000 per request, JSON', 1000, 'json', 'memory', { 100: 0.8 }),
      ...await against('100 per request, durable on the disk', 100, 'binary', 'disk', { 100: 3 })
    ]
  }
}
