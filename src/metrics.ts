// SPDX-License-Identifier: BSD-3-Clause
//
// What an operator can watch. What happens often only adds to a plain number; the text of GET /metrics is made when somebody asks for it. Labels are
// route patterns, methods, statuses, codes and names of operations: never an id, a path or an address, so that there is an end to them.
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'

/* ---- of the process, in which there is one engine and one event loop ---- */

const ofProcess = new Registry()
const registers = [ofProcess]

/** Things that are too cheap to be timed, and bytes. */
export const traffic = { lookups: 0, bytesRead: 0, bytesWritten: 0 }

const nativeSeconds = new Histogram({
  name: 'pmemsetd_native_seconds',
  help: 'Time of native calls off the event loop, from the hand-over to the answer, with the wait for a thread. Calls that failed are counted too.',
  labelNames: ['operation', 'durability'],
  buckets: [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
  registers
})

/** The call itself, timed. What was never handed over (BUSY) is not counted. */
export async function timed<T> (labels: { operation: string, durability?: string }, call: Promise<T>): Promise<T> {
  const start = performance.now()
  const result = await call
  nativeSeconds.observe(labels, (performance.now() - start) / 1000)
  return result
}

/** Of every native call that writes for several callers at once: `groups.observe(n)`, with how many they were. */
export const groups = new Histogram({
  name: 'pmemsetd_group_writes',
  help: 'How many writes shared one native call.',
  buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
  registers
})

/** A counter that is kept elsewhere, as a number. */
function counter (name: string, help: string, registry: Registry, read: () => number): void {
  // eslint-disable-next-line no-new -- it registers itself
  new Counter({
    name,
    help,
    registers: [registry],
    collect () {
      this.reset()
      this.inc(read())
    }
  })
}

function gauge (name: string, help: string, registry: Registry, read: () => number): void {
  // eslint-disable-next-line no-new -- it registers itself
  new Gauge({ name, help, registers: [registry], collect () { this.set(read()) } })
}

counter('pmemsetd_lookups_total', 'Look-ups of an address in the engine.', ofProcess, () => traffic.lookups)
counter('pmemsetd_read_bytes_total', 'Bytes read from parts, and the results of batches.', ofProcess, () => traffic.bytesRead)
counter('pmemsetd_written_bytes_total', 'Bytes written to parts, but for those of a write that failed half-way.', ofProcess, () => traffic.bytesWritten)

let hasDefaults = false

/** Memory, CPU, descriptors, garbage collection and the delay of the event loop. They watch from the first use on. */
function watchProcess (): void {
  if (!hasDefaults) collectDefaultMetrics({ register: ofProcess })
  hasDefaults = true
}

/* ---- HTTP ---- */

/** Replies by route, method, status and code. A route's tally is at hand where its requests are, so that counting one is an addition. */
export class Replies {
  readonly #tallies = new Map<string, Tally>()

  /** Of a route by its pattern (`/sets/:set`); undefined: of what is no route. */
  tally (method: string, pattern: string | undefined): Tally {
    const key = `${method} ${pattern ?? ''}`
    let tally = this.#tallies.get(key)
    if (tally === undefined) this.#tallies.set(key, tally = new Tally(method, pattern?.replace(/:(\w+)/g, '{$1}') ?? 'none'))
    return tally
  }

  register (registry: Registry): void {
    const tallies = this.#tallies
    // eslint-disable-next-line no-new -- it registers itself
    new Counter({
      name: 'pmemsetd_http_requests_total',
      help: 'Requests that were answered, by route pattern (none: no route), method, status, and the code of a problem.',
      labelNames: ['route', 'method', 'status', 'code'],
      registers: [registry],
      collect () {
        this.reset()
        for (const tally of tallies.values()) tally.tell((labels, count) => { this.inc(labels, count) })
      }
    })
  }
}

export class Tally {
  readonly #method: string
  readonly #route: string
  readonly #byStatus = new Map<number, number>()
  readonly #byProblem = new Map<string, { status: number, code: string, count: number }>()

  constructor (method: string, route: string) {
    this.#method = method
    this.#route = route
  }

  count (status: number): void {
    this.#byStatus.set(status, (this.#byStatus.get(status) ?? 0) + 1)
  }

  countProblem (status: number, code: string): void {
    const key = `${status} ${code}`
    const row = this.#byProblem.get(key)
    if (row === undefined) this.#byProblem.set(key, { status, code, count: 1 })
    else row.count++
  }

  tell (row: (labels: Record<string, string | number>, count: number) => void): void {
    const labels = { route: this.#route, method: this.#method }
    for (const [status, count] of this.#byStatus) row({ ...labels, status }, count)
    for (const { status, code, count } of this.#byProblem.values()) row({ ...labels, status, code }, count)
  }
}

/* ---- the whole ---- */

/** What there is now, and what the engine has counted since its start. */
export interface Census {
  sets: number
  setsDegraded: number
  parts: number
  partsUnavailable: number
  mappedBytes: number
  mappings: number
  mappingsMax: number
  pins: number
  flushesOfRanges: number
  flushesOfFiles: number
  flushesFailed: number
  flushCallers: number
}

export const CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE

/** Returns what makes the text. */
export function createMetrics (replies: Replies, take: () => Census): () => Promise<string> {
  const registry = new Registry()
  let census: Census // of the moment when the text is asked for
  replies.register(registry)
  gauge('pmemsetd_sets', 'Sets.', registry, () => census.sets)
  gauge('pmemsetd_sets_degraded', 'Sets with a file whose flush has failed, or with a part that is not available.', registry, () => census.setsDegraded)
  gauge('pmemsetd_parts', 'Parts.', registry, () => census.parts)
  gauge('pmemsetd_parts_unavailable', 'Parts that could not be mapped again.', registry, () => census.partsUnavailable)
  gauge('pmemsetd_mapped_bytes', 'Bytes of all parts.', registry, () => census.mappedBytes)
  gauge('pmemsetd_mappings', 'Kernel mappings in use by parts and the gaps between them.', registry, () => census.mappings)
  gauge('pmemsetd_mappings_max', 'Kernel mappings that may be used.', registry, () => census.mappingsMax)
  gauge('pmemsetd_pins', 'Reads and writes of several pieces that hold a map against its removal; a short one holds it without a pin.', registry, () => census.pins)
  // eslint-disable-next-line no-new -- it registers itself
  new Counter({
    name: 'pmemsetd_flushes_total',
    help: 'Flushes of files, by kind: ranges (msync) or file (fdatasync). Not those that make a new file or directory entry durable.',
    labelNames: ['kind'],
    registers: [registry],
    collect () {
      this.reset()
      this.inc({ kind: 'ranges' }, census.flushesOfRanges)
      this.inc({ kind: 'file' }, census.flushesOfFiles)
    }
  })
  counter('pmemsetd_flushes_failed_total', 'Flushes that failed, of either kind.', registry, () => census.flushesFailed)
  counter('pmemsetd_flush_callers_total', 'Native calls whose bytes those flushes made durable: divided by the flushes, how many shared one.', registry, () => census.flushCallers)
  watchProcess()
  return async () => {
    census = take()
    const text = await Registry.merge([registry, ofProcess]).metrics()
    // prom-client has a spelling of its own; it occurs where there was no delay to tell of since the scrape before.
    return text.replace(/ Nan$/gm, ' NaN')
  }
}
