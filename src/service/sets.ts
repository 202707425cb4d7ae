// SPDX-License-Identifier: BSD-3-Clause
//
// All sets, by id.
import { randomBytes, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Change, SetRecord } from '../catalog/catalog.js'
import { isStale } from '../engine/engine.js'
import { EngineError, hex, ServiceError, toldCode } from '../errors.js'
import type { Census } from '../metrics.js'
import type { NewSet, Page, PmemSet } from '../schemas.js'
import { changesOf, mark as markFailures } from './failures.js'
import { pageOf, type PageRequest } from './list.js'
import { removeParts } from './maps.js'
import { PARTS_AT_A_TIME, restoreParts } from './restore.js'
import { checkLabels, exceeded, LiveSet, setNotFound, type Context, type Expected, type LivePart } from './set.js'

/** The engine rounds windows up to this. */
const WINDOW_UNIT = 2 * 1024 * 1024

/** At the end of the process. */
const IN_USE_MS_MAX = 8000
const IN_USE_POLL_MS = 50

function * inPieces<T> (items: Iterable<T>, size: number): Iterable<T[]> {
  let piece: T[] = []
  for (const item of items) {
    if (piece.push(item) < size) continue
    yield piece
    piece = []
  }
  if (piece.length > 0) yield piece
}

export class Sets {
  readonly #context: Context
  readonly #byId = new Map<string, LiveSet>()
  /** Ids of sets that are being made, and the sizes of their windows. */
  readonly #pending = new Map<string, number>()
  #recording: Promise<void> = Promise.resolve()
  #nextRecording: Promise<void> | undefined

  constructor (context: Omit<Context, 'all'>) {
    this.#context = { ...context, all: () => this.#byId.values() }
  }

  get count (): number {
    return this.#byId.size
  }

  get partCount (): number {
    return [...this.#byId.values()].reduce((sum, set) => sum + set.partCount, 0)
  }

  census (): Pick<Census, 'sets' | 'setsDegraded' | 'parts' | 'partsUnavailable' | 'mappedBytes'> {
    const told = [...this.#byId.keys()].flatMap((id) => this.#tell(id) ?? [])
    return {
      sets: this.count,
      setsDegraded: told.filter(({ state }) => state === 'degraded').length,
      parts: this.partCount,
      partsUnavailable: [...this.#byId.values()].reduce((sum, { missing }) => sum + missing.length, 0),
      mappedBytes: told.reduce((sum, { mappedBytes }) => sum + mappedBytes, 0)
    }
  }

  get (id: string): LiveSet {
    const set = this.#byId.get(id)
    if (set === undefined) throw setNotFound(id)
    return set
  }

  list (page: PageRequest): Page<PmemSet> {
    return pageOf({ list: 'sets' }, page, this.#context.limits.list, (after, count) => (
      [...this.#byId.keys()].filter((id) => after === undefined || id > after).sort().slice(0, count)
    ), (id) => id, (id) => this.#tell(id))
  }

  #tell (id: string): PmemSet | undefined {
    try {
      return this.get(id).describe()
    } catch (error) {
      if (isStale(error)) return undefined // its deletion is under way
      throw error
    }
  }

  async create ({ id = this.#newId(), requiredGranularity, coalescing = 'none', windowSize, labels = {} }: NewSet, expected: Expected): Promise<LiveSet> {
    if (expected !== undefined) throw new ServiceError('PRECONDITION_FAILED', 'A set that is to be made has no state yet.')
    const { engine, commit, limits } = this.#context
    const window = windowSize ?? limits.windowBytesDefault
    this.#checkFree(id)
    checkLabels(labels, limits)
    this.#checkLimits(window)
    const handle = engine.newSet({ windowSize: window, partsMax: limits.partsPerSet, requiredGranularity, coalescing })
    const { windowAddr, windowSize: size } = engine.setInfo(handle)
    const set = new LiveSet(this.#context, {
      id, uid: randomUUID(), revision: 1, requiredGranularity, coalescing, windowAddr: hex(windowAddr), windowSize: size, partsMade: 0, labels, createdAt: new Date().toISOString()
    }, handle)
    this.#pending.set(id, set.record.windowSize)
    try {
      await commit([{ kind: 'put-set', set: set.record }])
      this.#byId.set(id, set)
    } catch (error) {
      await engine.deleteSet(handle)
      throw error
    } finally {
      this.#pending.delete(id)
    }
    return set
  }

  async delete (id: string, expected: Expected): Promise<void> {
    const set = this.get(id)
    await set.delete(expected, () => removeParts(set), (parts) => restoreParts(set, parts))
    this.#byId.delete(id)
  }

  /** Puts on record what the engine knows of flushes that failed. Who asks while that is under way is told of the next time. */
  recordFailures (): Promise<void> {
    this.#nextRecording ??= this.#recording.catch(() => {}).then(() => {
      this.#nextRecording = undefined
      this.#recording = this.#record()
      return this.#recording
    })
    return this.#nextRecording
  }

  async #record (): Promise<void> {
    const changes = await changesOf(this.#byId.values())
    if (changes.length > 0) await this.#context.catalog.commit(changes)
  }

  /** Parts that are on record. */
  get recordedCount (): number {
    const { catalog } = this.#context
    return [...catalog.sets()].reduce((sum, { uid }) => sum + catalog.partCount(uid), 0)
  }

  /** Exchanges all sets for those that the changes put on record, and `restore` brings back; where they cannot be recorded, all stay. */
  replace (changes: () => Change[], restore: () => Promise<void>): Promise<void> {
    if (this.#pending.size > 0) throw new ServiceError('BUSY', 'A set is being made.')
    const { commit } = this.#context
    const sets = [...this.#byId.values()]
    // While nobody changes any of them.
    return this.#within(sets, async () => {
      const removed: Array<{ set: LiveSet, parts: LivePart[] }> = []
      try {
        for (const set of sets) removed.push({ set, parts: await removeParts(set) })
        await commit(changes())
      } catch (error) {
        for (const { set, parts } of removed) await restoreParts(set, parts)
        throw error
      }
      this.#byId.clear()
      for (const set of sets) await set.end()
      await restore()
    })
  }

  #within (sets: readonly LiveSet[], work: () => Promise<void>): Promise<void> {
    const [first, ...others] = sets
    return first === undefined ? work() : first.change(undefined, () => this.#within(others, work))
  }

  unavailable (): Array<{ set: string, part: string, problem: string, detail: string }> {
    return [...this.#byId.values()].flatMap((set) => set.missing.map(({ part, problem }) => ({ set: set.record.id, part: part.id, problem: toldCode(problem), detail: problem.message })))
  }

  /** Brings back what the catalog names, each part where it was. */
  async restore (onDone: (count: number) => void, signal: AbortSignal): Promise<void> {
    const records = [...this.#context.catalog.sets()].sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1))
    for (const record of records) {
      signal.throwIfAborted()
      await this.#restoreSet(record, onDone, signal)
    }
  }

  async #restoreSet (record: SetRecord, onDone: (count: number) => void, signal: AbortSignal): Promise<void> {
    const { engine, catalog, limits } = this.#context
    const { id, uid, windowSize, windowAddr, requiredGranularity, effectiveGranularity, coalescing } = record
    const handle = engine.newSet({ windowSize, windowAddr: BigInt(windowAddr), partsMax: limits.partsPerSet, requiredGranularity, granularity: effectiveGranularity, coalescing })
    const set = new LiveSet(this.#context, record, handle)
    this.#byId.set(id, set)
    // In the order in which they were made, some at a time: others get their turn meanwhile.
    for (const some of inPieces(catalog.parts(uid), PARTS_AT_A_TIME)) {
      signal.throwIfAborted()
      const parts = some.map((part): LivePart => ({ id: part.id, cookie: part.cookie, record: part }))
      for (const part of parts) set.addPart(part)
      await restoreParts(set, parts)
      onDone(parts.length)
    }
    await markFailures(set)
  }

  /** Makes what was written durable, and unmaps everything; for the end of the process. */
  async close (): Promise<PromiseSettledResult<void>[]> {
    const ended = await Promise.allSettled([...this.#byId.values()].map((set) => this.#end(set)))
    this.#byId.clear()
    return ended
  }

  /** What a client began that has gone since may still be at work in the engine for a moment. */
  async #end (set: LiveSet): Promise<void> {
    const until = performance.now() + IN_USE_MS_MAX
    for (;;) {
      try {
        await this.#context.engine.deleteSet(set.handle)
        return
      } catch (error) {
        const isInUse = error instanceof EngineError && error.codeName === 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP'
        if (!isInUse || performance.now() > until) throw error
        await sleep(IN_USE_POLL_MS)
      }
    }
  }

  #newId (): string {
    return `set-${randomBytes(6).toString('hex')}`
  }

  #checkFree (id: string): void {
    const set = this.#byId.get(id)
    if (set === undefined && !this.#pending.has(id)) return
    throw new ServiceError('SET_EXISTS', `There is a set ${id} already.`, { revision: set?.revision ?? 1 })
  }

  #checkLimits (window: number): void {
    const { limits } = this.#context
    if (window > limits.windowBytes) throw exceeded('windowBytes', limits.windowBytes)
    if (this.#byId.size + this.#pending.size >= limits.sets) throw exceeded('sets', limits.sets)
    const taken = [...[...this.#byId.values()].map((set) => set.record.windowSize), ...this.#pending.values()].reduce((sum, size) => sum + size, 0)
    if (taken + Math.ceil(window / WINDOW_UNIT) * WINDOW_UNIT > limits.windowBytesTotal) throw exceeded('windowBytesTotal', limits.windowBytesTotal)
  }
}
