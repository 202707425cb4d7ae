// SPDX-License-Identifier: BSD-3-Clause
//
// All sets, by id.
import { randomBytes, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isStale } from '../engine/engine.js'
import { EngineError, ServiceError } from '../errors.js'
import type { NewSet, Page, PmemSet } from '../schemas.js'
import { pageOf, type PageRequest } from './list.js'
import { checkLabels, exceeded, LiveSet, setNotFound, type Context, type Expected } from './set.js'

/** The engine rounds windows up to this. */
const WINDOW_UNIT = 2 * 1024 * 1024

/** At the end of the process. */
const IN_USE_MS_MAX = 8000
const IN_USE_POLL_MS = 50

export class Sets {
  readonly #context: Context
  readonly #byId = new Map<string, LiveSet>()
  /** Ids of sets that are being made, and the sizes of their windows. */
  readonly #pending = new Map<string, number>()

  constructor (context: Context) {
    this.#context = context
  }

  get count (): number {
    return this.#byId.size
  }

  get partCount (): number {
    return [...this.#byId.values()].reduce((sum, set) => sum + set.partCount, 0)
  }

  census (): { sets: number, setsDegraded: number, parts: number, mappedBytes: number } {
    const told = [...this.#byId.keys()].flatMap((id) => this.#tell(id) ?? [])
    return {
      sets: this.count,
      setsDegraded: told.filter(({ state }) => state === 'degraded').length,
      parts: this.partCount,
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
    const { engine, catalog, limits } = this.#context
    const window = windowSize ?? limits.windowBytesDefault
    this.#checkFree(id)
    checkLabels(labels, limits)
    this.#checkLimits(window)
    const handle = engine.newSet({ windowSize: window, partsMax: limits.partsPerSet, requiredGranularity, coalescing })
    const set = new LiveSet(this.#context, {
      id, uid: randomUUID(), revision: 1, requiredGranularity, coalescing, windowSize: engine.setInfo(handle).windowSize, partsMade: 0, labels, createdAt: new Date().toISOString()
    }, handle)
    this.#pending.set(id, set.record.windowSize)
    try {
      await catalog.commit([{ kind: 'put-set', set: set.record }])
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
    await set.delete(expected)
    this.#byId.delete(id)
  }

  /** Makes what was written durable, and unmaps everything; for the end of the process. */
  async close (): Promise<PromiseSettledResult<void>[]> {
    const sets = [...this.#byId.values()]
    this.#byId.clear()
    return await Promise.allSettled(sets.map((set) => this.#end(set)))
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
