// SPDX-License-Identifier: BSD-3-Clause
//
// Kills the service while clients change everything, at random moments and at named points, starts it again, and compares with what it had acknowledged.
// (A kill proves the order of steps, not flushes: the page cache survives it.)
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../shell.js'
import { Client, type Chance } from './client.js'

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'main.js')
const CRASH = join(import.meta.dirname, 'crash.js')
const CLIENTS = 6
const READY_MS_MAX = 60_000
/** A point that is not reached by then. */
const POINT_MS_MAX = 1500
const RANDOM_MS_MAX = 400

/** Steps after which something is different for good, and how often each comes in a round. */
const POINTS: Readonly<Record<string, number>> = {
  'catalog.commit': 60,
  'engine.mapPart': 15,
  'engine.remove': 8,
  'engine.deleteSet': 1,
  'engine.writeMany': 30,
  'engine.batch': 15,
  'engine.restore': 6
}

export interface Torture {
  rounds: number
  seed: number
  progress?: (text: string) => void
}

export interface Outcome {
  rounds: number
  /** Of each kind of end. */
  ends: Record<string, number>
  /** Acknowledged changes, of each kind. */
  changes: Record<string, number>
  /** Changes of a set that were open when the service was killed: how many were done, and how many not. */
  done: number
  undone: number
}

/** The same numbers for the same seed. */
function chanceOf (seed: number): Chance {
  let state = (seed * 2654435761 + 1) >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

class Service {
  #output = ''
  readonly gone: Promise<unknown>

  constructor (readonly child: ChildProcess, readonly port: number) {
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (data: Buffer) => { this.#output = (this.#output + data.toString()).slice(-8000) })
    this.gone = once(child, 'exit')
  }

  static async start (volume: string, crash: string): Promise<Service> {
    const port = await freePort()
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_')))
    return new Service(spawn(process.execPath, ['--import', CRASH, MAIN], {
      env: { ...env, NODE_ENV: 'production', PMEMSETD_PORT: String(port), PMEMSETD_VOLUMES: `default=${volume}`, TORTURE_CRASH: crash },
      stdio: ['ignore', 'pipe', 'pipe']
    }), port)
  }

  get hasEnded (): boolean { return this.child.exitCode !== null || this.child.signalCode !== null }
  get output (): string { return this.#output }

  /** False: it is gone before. */
  async isReady (): Promise<boolean> {
    const until = performance.now() + READY_MS_MAX
    while (performance.now() < until && !this.hasEnded) {
      const reply = await fetch(`http://127.0.0.1:${this.port}/readyz`, { signal: AbortSignal.timeout(2000) }).catch(() => undefined)
      if (reply?.status === 200) return true
      await sleep(20)
    }
    if (!this.hasEnded) throw new Error(`the service is not ready after ${READY_MS_MAX} ms:\n${this.#output}`)
    return false
  }

  async kill (signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): Promise<void> {
    if (!this.hasEnded) this.child.kill(signal)
    await this.gone
  }
}

export async function torture ({ rounds, seed, progress = () => {} }: Torture): Promise<Outcome> {
  const volume = mkdtempSync(join(tmpdir(), 'pmemsetd-torture-'))
  const chance = chanceOf(seed)
  const clients = Array.from({ length: CLIENTS }, (_, i) => new Client(i, volume, chanceOf(seed + 7919 * (i + 1))))
  for (const { id } of clients) mkdirSync(join(volume, `c${id}`))
  const outcome: Outcome = { rounds: 0, ends: {}, changes: {}, done: 0, undone: 0 }
  let service: Service | undefined
  const told = (end: string): void => {
    outcome.ends[end] = (outcome.ends[end] ?? 0) + 1
  }

  const point = (): string => {
    if (chance(2) === 0) return ''
    const name = Object.keys(POINTS)[chance(Object.keys(POINTS).length)] ?? ''
    return `${name}:${chance(2) === 0 ? 'before' : 'after'}:${chance(POINTS[name] ?? 1) + 1}`
  }

  /** A service that is ready; some are killed on the way there, at any moment or at a point of the restore. */
  const ready = async (crash: string): Promise<Service> => {
    for (;;) {
      service = await Service.start(volume, crash)
      if (chance(8) === 0) {
        await sleep(chance(1000))
        await service.kill()
        told('kill while it starts')
      } else if (await service.isReady()) {
        return service
      } else if (service.child.signalCode === 'SIGKILL' && crash !== '') {
        told(`${crash.split(':').slice(0, 2).join(' ')}, while it starts`)
      } else {
        throw new Error(`the service did not start:\n${service.output}`)
      }
      crash = ''
    }
  }

  const compare = async (): Promise<void> => {
    for (const client of clients) {
      const wasDone = await client.compare()
      if (wasDone === true) outcome.done++
      if (wasDone === false) outcome.undone++
    }
  }

  /** Whether it is there after the comparison: a point of the catalog or the engine may lie in it. */
  const round = async (): Promise<void> => {
    const crash = point()
    const running = await ready(crash)
    for (const client of clients) client.connect(running.port)
    await compare()
    const all = Promise.all(clients.map((client) => client.run()))
    const isGraceful = crash === '' && chance(5) === 0
    // Clients end when the process has, which it may not have told yet; a failure of one ends the round.
    await Promise.race([sleep(crash === '' ? chance(RANDOM_MS_MAX) : POINT_MS_MAX), running.gone, all.then(() => running.gone)])
    const isPoint = running.hasEnded
    await running.kill(isGraceful ? 'SIGTERM' : 'SIGKILL')
    await all
    if (isGraceful && running.child.exitCode !== 0) throw new Error(`it ended with ${running.child.exitCode}:\n${running.output}`)
    told(isPoint ? crash.split(':').slice(0, 2).join(' ') : isGraceful ? 'SIGTERM' : 'kill')
  }

  try {
    for (; outcome.rounds < rounds; outcome.rounds++) {
      await round()
      if ((outcome.rounds + 1) % 20 === 0) progress(`${outcome.rounds + 1} rounds`)
    }
    const last = await ready('')
    for (const client of clients) client.connect(last.port)
    await compare()
  } catch (error) {
    throw new Error(`seed ${seed}, round ${outcome.rounds + 1} (files stay in ${volume}): ${error instanceof Error ? error.stack ?? error.message : String(error)}`)
  } finally {
    await service?.kill()
  }
  for (const { counts } of clients) for (const [kind, count] of counts) outcome.changes[kind] = (outcome.changes[kind] ?? 0) + count
  rmSync(volume, { recursive: true, force: true })
  return outcome
}
