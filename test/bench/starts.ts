// SPDX-License-Identifier: BSD-3-Clause
//
// S1: npm start when all is built, up to the first answer; and memory at rest. S2: what a catalog of many parts adds to a start.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Change } from '../../src/catalog/catalog.js'
import { LmdbCatalog } from '../../src/catalog/lmdb.js'
import { freePort } from '../shell.js'
import { keeping, line, spread, type Bench, type Line, type Row } from './measure.js'
import { bare } from './peers.js'
import { program, ROOT, SERVER_CORE, service } from './server.js'

const START_SECONDS_MAX = 60
const IDLE_SECONDS = 2

/** Seconds from the command to the first answer. */
async function startSeconds (volume: string): Promise<number> {
  const port = await freePort()
  const began = performance.now()
  const child = spawn('npm', ['start'], {
    cwd: ROOT,
    // A group of its own: npm's end is not that of what it has started.
    detached: true,
    stdio: 'ignore',
    env: { ...process.env, PMEMSETD_SETUP: 'off', PMEMSETD_PORT: String(port), PMEMSETD_VOLUMES: `default=${volume}` }
  })
  const gone = once(child, 'exit')
  try {
    while (performance.now() - began < START_SECONDS_MAX * 1000) {
      try {
        if ((await fetch(`http://127.0.0.1:${port}/livez`)).ok) return (performance.now() - began) / 1000
      } catch { await sleep(5) }
    }
    throw new Error(`npm start did not answer in ${START_SECONDS_MAX} s`)
  } finally {
    process.kill(-(child.pid as number), 'SIGTERM')
    await gone
  }
}

/** Memory at rest, ours over that of a bare Fastify service. */
async function idle (bench: Bench): Promise<number> {
  return await keeping(async (keep) => {
    const ours = keep.server(await service(keep.directory(bench.disk)))
    const peer = await bare(keep, '/sets/any/maps', '{}')
    await sleep(bench.isSmoke ? 0 : IDLE_SECONDS * 1000)
    return ours.memory('VmRSS') / peer.memory('VmRSS')
  })
}

async function measure (bench: Bench): Promise<Line[]> {
  const starts: number[] = []
  const rest: number[] = []
  for (let p = 0; p < (bench.isSmoke ? 1 : Math.max(bench.processes, 5)); p++) {
    starts.push(await keeping(async (keep) => await startSeconds(keep.directory(bench.disk))))
    rest.push(await idle(bench))
  }
  return [
    line('S1', 'second npm start to the first answer', spread(starts), { atMost: 2, unit: 's' }),
    line('S1', 'RSS at rest / bare Fastify', spread(rest), { atMost: 1.3 })
  ]
}

export const S1: Row = { name: 'S1', what: 'start, and memory at rest', measure }

/* ---- S2 ---- */

const PARTS = 30_000
const FILES = 100
const PART_BYTES = 8192
const ARENA_BASE = 0x400000000000

/** A catalog of one set that has all of the files mapped, part beside part, in a volume of its own. */
async function manyParts (dir: string, count: number): Promise<void> {
  const perFile = count / FILES
  for (let f = 0; f < FILES; f++) {
    writeFileSync(join(dir, String(f)), '')
    truncateSync(join(dir, String(f)), perFile * PART_BYTES)
  }
  const addr = (p: number): string => `0x${(ARENA_BASE + p * PART_BYTES).toString(16)}`
  const createdAt = new Date(0).toISOString()
  const catalog = await LmdbCatalog.open({ dir: join(dir, '.pmemset'), allocate: async () => {} })
  const set: Change[] = [
    { kind: 'put-service', service: { uid: 'bench', arenaBase: addr(0), pageSize: 4096 } },
    { kind: 'put-set', set: { id: 'bench', uid: 'bench', revision: count + 1, requiredGranularity: 'page', effectiveGranularity: 'page', coalescing: 'full', windowAddr: addr(0), windowSize: 2 ** 30, partsMade: count, labels: {}, createdAt } }
  ]
  const parts = Array.from({ length: count }, (_, p): Change => ({
    kind: 'put-part',
    part: {
      id: `part-${p + 1}`,
      cookie: p + 1,
      set: 'bench',
      source: { type: 'file', volume: 'default', path: String(Math.floor(p / perFile)), create: 'never', grow: false },
      identity: '',
      offset: (p % perFile) * PART_BYTES,
      length: PART_BYTES,
      addr: addr(p),
      coalesced: true,
      granularity: 'page',
      persistence: 'volatile',
      mapSync: false,
      createdAt
    }
  }))
  await catalog.commit([...set, ...parts])
  await catalog.close()
}

interface Restored { liveSeconds: number, readySeconds: number, cpuSeconds: number }

/** One start: to the first answer, to the last part, and the CPU between the two. */
async function restored (dir: string, count: number): Promise<Restored> {
  return await keeping(async (keep) => {
    const began = performance.now()
    const ours = keep.server(await service(dir, { PMEMSETD_EPHEMERAL: 'true' }))
    const liveSeconds = (performance.now() - began) / 1000
    for (;;) {
      const reply = await fetch(`${ours.url}/readyz`)
      const told = await reply.json() as { parts: number }
      if (reply.ok && told.parts !== count) throw new Error(`${told.parts} parts are back, of ${count}`)
      if (reply.ok) break
      await sleep(5)
    }
    return { liveSeconds, readySeconds: (performance.now() - began) / 1000, cpuSeconds: ours.cpu() }
  })
}

async function measureRestore (bench: Bench): Promise<Line[]> {
  const count = bench.isSmoke ? 10 * FILES : PARTS
  const ratios: number[] = []
  const live: number[] = []
  const ready: number[] = []
  for (let p = 0; p < (bench.isSmoke ? 1 : Math.max(bench.processes, 5)); p++) {
    await keeping(async (keep) => {
      const [dir, empty] = [keep.directory(bench.memory), keep.directory(bench.memory)]
      await manyParts(dir, count)
      const many = await restored(dir, count)
      const none = await restored(empty, 0)
      const bareSeconds = Number(execFileSync('taskset', ['-c', String(SERVER_CORE), program('maps'), dir, String(FILES), String(count), String(PART_BYTES)], { encoding: 'utf8' }))
      // A start itself differs by more than a few parts take.
      ratios.push(Math.max(0, many.cpuSeconds - none.cpuSeconds) / bareSeconds)
      live.push(many.liveSeconds)
      ready.push(many.readySeconds)
    })
  }
  return [
    line('S2', `restoring ${count} parts of ${FILES} files / the bare mmaps, CPU`, spread(ratios), { atMost: 2 }),
    line('S2', 'to the first answer, beside that', spread(live), {}, undefined, 's'),
    line('S2', 'to the last part', spread(ready), {}, undefined, 's')
  ]
}

export const S2: Row = { name: 'S2', what: 'what a catalog of many parts adds to a start', measure: measureRestore }
