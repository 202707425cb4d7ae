// SPDX-License-Identifier: BSD-3-Clause
//
// H9: what the event loop does for others while 8 GiB stream, half of them each way, and 32 clients make writes durable.
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { manyMaps } from './lookups.js'
import { http, keeping, line, slice, spread, type Bench, type Contestant, type Line, type Row } from './measure.js'
import { call, fillPart, service, type Server } from './server.js'
import { record } from './writes.js'

const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB
const STREAM_BYTES = 4 * GIB
const BODY_BYTES = 256 * MIB
const WRITERS = 32
const WRITE_PAGES = 16_384
const PAGE = 4 * KIB

async function part (server: Server, volume: string, path: string): Promise<string> {
  const made = await call(server, 'POST', '/sets/bench/parts', { source: { type: 'file', volume, path } })
  return made.addr as string
}

/** Repeats slices of one contestant until it has done so many requests. */
async function atLeast (bench: Bench, requests: number, one: Contestant): Promise<void> {
  for (let done = 0; done < requests;) {
    const began = performance.now()
    const { perSecond } = await slice(bench, one)
    done += perSecond * (performance.now() - began) / 1000
  }
}

interface Delays { quietMs: number, busyMs: number, pollMs: number }

/** One process: p99 of a look-up at rest, then p99 of a look-up and of /livez, one client each, beside the streams and writers. */
async function delays (bench: Bench): Promise<Delays> {
  return await keeping(async (keep) => {
    const memory = keep.directory(bench.memory)
    const disk = keep.directory(bench.disk)
    const bodyBytes = bench.isSmoke ? MIB : BODY_BYTES
    const pages = bench.isSmoke ? 64 : WRITE_PAGES
    const streams = (bench.isSmoke ? 4 * MIB : STREAM_BYTES) / bodyBytes
    const body = randomBytes(bodyBytes)
    for (const name of ['down.bin', 'up.bin']) writeFileSync(join(memory, name), body)
    const ours = keep.server(await service(disk, { PMEMSETD_VOLUMES: `default=${disk},memory=${memory}` }))
    const lookup = await manyMaps(ours, bench.isSmoke ? 10 : 1000)
    await call(ours, 'POST', '/sets', { id: 'bench', requiredGranularity: 'page' })
    const [down, up, small] = [await part(ours, 'memory', 'down.bin'), await part(ours, 'memory', 'up.bin'), await fillPart(ours, 'writes.bin', pages * PAGE)]
    const contestant = (requests: Buffer[], connections: number): Contestant => ({ servers: [ours], port: ours.port, protocol: 'http', requests, connections, sleeps: true })

    const lookups = contestant([http('GET', lookup)], 1)
    const polls = contestant([http('GET', '/livez')], 1)
    const writers = contestant(Array.from({ length: pages }, (_, i) => http('PUT', `/sets/bench/memory?addr=0x${(small + BigInt(i * PAGE)).toString(16)}`, record(i))), WRITERS)
    const quiet = await slice({ ...bench, seconds: bench.isSmoke ? 0.2 : 5 }, lookups)

    const streaming = new AbortController()
    const load = Promise.all([
      atLeast(bench, streams, contestant([http('GET', `/sets/bench/memory?addr=${down}&length=${bodyBytes}`)], 1)),
      atLeast(bench, streams, contestant([http('PUT', `/sets/bench/memory?addr=${up}&durability=none`, body)], 1))
    ]).finally(() => { streaming.abort() })
    const busy: number[] = []
    const polled: number[] = []
    const beside = async (one: Contestant, into?: number[]): Promise<void> => {
      do {
        const { p99Ms } = await slice(bench, one)
        into?.push(p99Ms)
      } while (!streaming.signal.aborted)
    }
    await Promise.all([load, beside(writers), beside(lookups, busy), beside(polls, polled)])
    return { quietMs: quiet.p99Ms, busyMs: spread(busy).median, pollMs: spread(polled).median }
  })
}

async function measure (bench: Bench): Promise<Line[]> {
  const all: Delays[] = []
  for (let p = 0; p < bench.processes; p++) all.push(await delays(bench))
  const note = 'seen by one client, so the generators\' own waits for their core are in it'
  return [
    line('H9', 'p99 of /livez beside streams and writers', spread(all.map(({ pollMs }) => pollMs)), { atMost: 10, unit: 'ms' }, undefined, note),
    line('H9', 'p99 of a look-up beside them / at rest', spread(all.map(({ busyMs, quietMs }) => busyMs / quietMs)), { atMost: 3 }, undefined, note)
  ]
}

export const H9: Row = { name: 'H9', what: 'delay of the event loop beside bulk streams and durable writers', measure }
