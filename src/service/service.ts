// SPDX-License-Identifier: BSD-3-Clause
//
// The product, put together: what the routes may ask.
import type { Catalog, Change } from '../catalog/catalog.js'
import type { Config } from '../config.js'
import type { Engine } from '../engine/engine.js'
import { CATALOGUE, ServiceError, statusesOf, type AnyCode } from '../errors.js'
import type { Census } from '../metrics.js'
import type { CatalogDocument, Capabilities, ErrorCode, Health } from '../schemas.js'
import { changesTo, checkDocument, checkExpected, tell, type Told } from './document.js'
import { Memory, Streams } from './memory.js'
import { Operations } from './operations.js'
import type { Expected } from './set.js'
import { Repeats } from './repeats.js'
import { Sets } from './sets.js'
import { Volumes } from './volumes.js'

/** Parts that are on record, and how many of them are dealt with. */
export interface Progress {
  parts: number
  restored: number
}

/** A part that could not be mapped again, for the log. */
export interface Unavailable {
  set: string
  part: string
  problem: string
  detail: string
}

/** A file that a step may have made which did not come to its end, and that could not be taken away. */
export interface Unfinished {
  volume: string
  path: string
  detail: string
}

/** What a start could not do, for the log. */
export interface Restored {
  unavailable: Unavailable[]
  unfinished: Unfinished[]
}

export class Service {
  readonly sets: Sets
  readonly repeats: Repeats
  readonly volumes: Volumes
  readonly memory: Memory
  readonly operations: Operations
  readonly #engine: Engine
  readonly #catalog: Catalog
  readonly #config: Config
  readonly #version: string
  readonly #forgetEngine: () => void
  #progress: Progress | undefined
  #restoration: Promise<unknown> = Promise.resolve()
  readonly #ended = new AbortController()

  constructor ({ engine, catalog, config, version }: { engine: Engine, catalog: Catalog, config: Config, version: string }) {
    const { limits } = config
    this.#engine = engine
    this.#catalog = catalog
    this.#config = config
    this.#version = version
    // With nothing to bring back, there is nothing to wait for.
    const isNew = [...catalog.sets()].length === 0 && [...catalog.intents()].length === 0
    this.#progress = isNew ? undefined : { parts: 0, restored: 0 }
    this.volumes = new Volumes(engine, config.volumes, limits)
    this.repeats = new Repeats(catalog, limits.idempotencyKeys)
    this.sets = new Sets({ engine, catalog, commit: this.repeats.commit, volumes: this.volumes, limits })
    this.operations = new Operations(limits)
    this.#forgetEngine = engine.onFlushFailed(() => this.sets.recordFailures())
    this.memory = new Memory(new Streams(limits.streams))
  }

  async capabilities (): Promise<Capabilities> {
    const { abi, libpmem2, addressesStable, simulated, pageSize, mappingsMax } = this.#engine.info()
    return {
      version: this.#version,
      engine: { abi, libpmem2 },
      addressesStable,
      ...(simulated === undefined ? {} : { simulated }),
      pageSize,
      limits: { ...this.#config.limits, mappings: mappingsMax },
      granularities: await this.volumes.granularities()
    }
  }

  /** Whether what the catalog names is still to be brought back. */
  get isRestoring (): boolean {
    return this.#progress !== undefined
  }

  /** Whether it was closed. */
  get isEnded (): boolean {
    return this.#ended.signal.aborted
  }

  /** Refuses while it is. */
  checkRestored (): void {
    if (this.#progress !== undefined) throw new ServiceError('RESTORING', 'The service is mapping again what its catalog names.', { ...this.#progress })
  }

  readiness (): Health {
    this.checkRestored()
    return { status: 'ready', sets: this.sets.count, parts: this.sets.partCount, volumes: this.volumes.count }
  }

  /** Brings back what the catalog names; until then requests are refused. `onProgress` is told how far it is. Rejects where the service is closed meanwhile. */
  async restore (onProgress: (progress: Progress) => void): Promise<Restored> {
    const restoration = this.#restore(onProgress)
    this.#restoration = restoration
    return await restoration
  }

  async #restore (onProgress: (progress: Progress) => void): Promise<Restored> {
    const isNew = this.#progress === undefined
    const unfinished = await this.#undoIntents()
    await this.#restoreSets(onProgress)
    // Of a new one, somebody may be replacing the catalog by now.
    if (!isNew) this.#progress = undefined
    return { unavailable: this.sets.unavailable(), unfinished }
  }

  async #restoreSets (onProgress: (progress: Progress) => void): Promise<void> {
    const total = this.sets.recordedCount
    let restored = 0
    // A new service has refused nobody so far, and does not begin to.
    if (this.#progress !== undefined) this.#progress = { parts: total, restored }
    await this.sets.restore((count) => {
      restored += count
      this.#progress = { parts: total, restored }
      onProgress(this.#progress)
    }, this.#ended.signal)
    await this.volumes.recover()
  }

  /** The catalog as one document. */
  document (): Told {
    return tell({ catalog: this.#catalog })
  }

  /** Makes the catalog that document, and brings back what it names. `condition` is what the client said of the one that is there, `expected` the versions in it. */
  async replace (document: CatalogDocument, condition: string | undefined, expected: Expected): Promise<Told> {
    this.checkRestored()
    checkExpected(this.document(), condition, expected)
    const { arenaBase, arenaSize, pageSize } = this.#engine.info()
    checkDocument(document, { arenaBase, arenaEnd: arenaBase + arenaSize, pageSize, ...this.#config.limits })
    this.#progress = { parts: 0, restored: 0 }
    try {
      await this.sets.replace(() => {
        // By now nobody changes anything.
        checkExpected(this.document(), condition, expected)
        return changesTo(document, [...this.#catalog.sets()].map(({ uid }) => uid))
      }, () => this.#restoreSets(() => {}))
    } finally {
      this.#progress = undefined
    }
    return this.document()
  }

  /** Takes away the files that steps which were never finished have made. */
  async #undoIntents (): Promise<Unfinished[]> {
    const intents = [...this.#catalog.intents()]
    const unfinished: Unfinished[] = []
    const done = await Promise.all(intents.map(async ({ token, volume, path }): Promise<Change[]> => {
      const place = this.volumes.find(volume)
      // A volume that is not there now may be at the next start.
      if (place === undefined) return []
      try {
        await this.#engine.undoIntent(place.handle, path, BigInt(`0x${token}`))
      } catch (error) {
        // It stays, so that the next start tries again.
        unfinished.push({ volume, path, detail: error instanceof Error ? error.message : String(error) })
        return []
      }
      return [{ kind: 'delete-intent', token }]
    }))
    const changes = done.flat()
    // They do no harm where they stay; a full volume, say, is no reason not to start.
    if (changes.length > 0) await this.#catalog.commit(changes).catch(() => {})
    return unfinished
  }

  /** What there is, in numbers, for who watches. */
  census (): Census {
    const { mappings, mappingsMax } = this.#engine.info()
    return { ...this.sets.census(), mappings, mappingsMax, ...this.#engine.counters() }
  }

  /** Makes what was written durable, and lets everything go. Answers what failed. */
  async close (): Promise<unknown[]> {
    this.#ended.abort()
    await this.#restoration.catch(() => {})
    const ended = await this.sets.close()
    this.#forgetEngine()
    this.volumes.close()
    await this.#catalog.close()
    return ended.filter((one) => one.status === 'rejected').map((one): unknown => one.reason)
  }
}

function describeCode (code: AnyCode): ErrorCode {
  const { library, number, status, title, meaning, advice, retryable = false } = CATALOGUE[code]
  return { code, library, ...(number === undefined ? {} : { number }), status, statuses: statusesOf(code), title, meaning, advice, retryable }
}

export function listCodes (): ErrorCode[] {
  return (Object.keys(CATALOGUE) as AnyCode[]).map(describeCode)
}

export function getCode (code: string): ErrorCode {
  if (!Object.hasOwn(CATALOGUE, code)) throw new ServiceError('ROUTE_NOT_FOUND', 'There is no such code.')
  return describeCode(code as AnyCode)
}
