// SPDX-License-Identifier: BSD-3-Clause
//
// S1: npm start when all is built, up to the first answer; and memory at rest.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../shell.js'
import { keeping, line, spread, type Bench, type Line, type Row } from './measure.js'
import { bare } from './peers.js'
import { ROOT, service } from './server.js'

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
