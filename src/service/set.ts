// SPDX-License-Identifier: BSD-3-Clause
//
// One set: its record, its handle in the engine, the names of its parts, and the one order in which it changes. Where parts lie is the engine's to say,
// at every look-up afresh; this file adds what only the service knows (ids, revisions, labels).
import type { Catalog, Change, PartRecord, SetRecord } from '../catalog/catalog.js'
import type { Limits } from '../config.js'
import type { Durability, Engine, Granularity, Handle, Written as EngineWritten } from '../engine/engine.js'
import { EngineError, hex, ServiceError, toldCode, type Extras } from '../errors.js'
import type { PartMap, PmemSet, SetPatch } from '../schemas.js'
import type { Volumes } from './volumes.js'
import { GroupedWrites } from './writes.js'

/** A write up to this is not worth a call of its own. */
export const SMALL_WRITE_BYTES_MAX = 64 * 1024

/** What all sets share. */
export interface Context {
  engine: Engine
  catalog: Catalog
  /** Of the catalog; under the key of the request that it is for. */
  commit: Catalog['commit']
  volumes: Volumes
  limits: Limits
  /** Every set. */
  all: () => Iterable<LiveSet>
}

/** The answer to a look-up in a part, good as long as revision and map are these. */
export interface Told {
  readonly revision: number
  readonly mapAddr: number
  readonly mapSize: number
  readonly mapParts: number
  readonly answer: { readonly items: PartMap[] }
}

export interface LivePart {
  readonly id: string
  readonly cookie: number
  told?: Told
  /** Absent while the part is being mapped: look-ups can find it by then, lists do not tell of it yet. */
  record?: PartRecord
}

/** A part that could not be mapped again: its addresses are kept for it. */
export interface MissingPart {
  readonly part: LivePart
  readonly record: PartRecord
  readonly addr: bigint
  readonly length: number
  /** What is in the way. */
  readonly problem: ServiceError | EngineError
}

/** The versions of a set that a change is meant for; undefined: any. */
export type Expected = ReadonlySet<string> | undefined

export function exceeded (limit: keyof Limits, max: number): ServiceError {
  return new ServiceError('LIMIT_EXCEEDED', `The limit of ${limit} is ${max}.`, { limit, max })
}

export function setNotFound (id: string): ServiceError {
  return new ServiceError('SET_NOT_FOUND', `There is no set ${id}.`)
}

export function checkLabels (labels: Readonly<Record<string, string>>, limits: Limits): void {
  const entries = Object.entries(labels)
  if (entries.length > limits.labels) throw exceeded('labels', limits.labels)
  for (const [name, value] of entries) {
    // Characters are code points, as a person would count them.
    if (Array.from(name).length > limits.labelNameChars) throw exceeded('labelNameChars', limits.labelNameChars)
    if (Array.from(value).length > limits.labelValueChars) throw exceeded('labelValueChars', limits.labelValueChars)
  }
}

// In the quotes of an entity tag, which is all that it is told as: each look-up tells it.
function versionOf ({ uid, revision }: SetRecord): string {
  return `"${uid}.${revision}"`
}

function unavailable ({ part, problem }: MissingPart): Extras {
  return { part: part.id, problem: toldCode(problem) }
}

export class LiveSet {
  readonly context: Context
  readonly handle: Handle
  #record: SetRecord
  #version: string
  #granularity: Granularity | undefined
  #isEnded = false
  #lastChange: Promise<unknown> = Promise.resolve()
  readonly #writes: GroupedWrites
  readonly #byId = new Map<string, LivePart>()
  readonly #byCookie = new Map<number, LivePart>()
  readonly #missing = new Map<LivePart, MissingPart>()
  /** The same in the order of their addresses; undefined: to be sorted. */
  #missingSorted: readonly MissingPart[] | undefined = []

  constructor (context: Context, record: SetRecord, handle: Handle) {
    this.context = context
    this.#record = record
    this.#version = versionOf(record)
    this.handle = handle
    this.#writes = new GroupedWrites(context.engine, handle)
  }

  get record (): SetRecord {
    return this.#record
  }

  get revision (): number {
    return this.#record.revision
  }

  /** Names this state of the set among all states of all sets. */
  get version (): string {
    return this.#version
  }

  get partCount (): number {
    return this.#byCookie.size
  }

  parts (): Iterable<LivePart> {
    return this.#byCookie.values()
  }

  part (id: string): LivePart | undefined {
    return this.#byId.get(id)
  }

  partOf (cookie: number): LivePart | undefined {
    return this.#byCookie.get(cookie)
  }

  /** Parts that are not mapped though they are the set's, in the order of their addresses. */
  get missing (): readonly MissingPart[] {
    this.#missingSorted ??= [...this.#missing.values()].sort((a, b) => (a.addr < b.addr ? -1 : 1))
    return this.#missingSorted
  }

  missingPart (part: LivePart): MissingPart | undefined {
    return this.#missing.get(part)
  }

  /** Those that the addresses touch. */
  missingIn (from: bigint, to: bigint): readonly MissingPart[] {
    return this.#missing.size === 0 ? [] : this.missing.filter(({ addr, length }) => addr < to && addr + BigInt(length) > from)
  }

  /** Refuses an address of a part that is not mapped. */
  checkMapped (addr: bigint): void {
    const [one] = this.missingIn(addr, addr + 1n)
    if (one !== undefined) throw new ServiceError('PART_UNAVAILABLE', `The part ${one.part.id}, which has the address, is not mapped.`, unavailable(one))
  }

  /** An error of the engine's, which knows of addresses where nothing is mapped only that: what it is where their part could not be mapped. */
  explain (error: unknown, ...addrs: bigint[]): unknown {
    const [one] = addrs.flatMap((addr) => this.missingIn(addr, addr + 1n))
    if (one !== undefined && error instanceof EngineError && error.codeName === 'PMEMSET_E_CANNOT_FIND_PART_MAP') {
      error.known = 'PART_UNAVAILABLE'
      Object.assign(error.extras, unavailable(one))
    }
    return error
  }

  /** What is in the way of the part's being mapped; undefined: it is mapped. */
  setProblem (part: LivePart, problem: MissingPart['problem'] | undefined): void {
    const { record } = part
    if (problem === undefined || record === undefined) this.#missing.delete(part)
    else this.#missing.set(part, { part, record, addr: BigInt(record.addr), length: record.length, problem })
    this.#missingSorted = undefined
  }

  addPart (part: LivePart): void {
    this.#byId.set(part.id, part)
    this.#byCookie.set(part.cookie, part)
  }

  dropPart (part: LivePart): void {
    this.#byId.delete(part.id)
    this.#byCookie.delete(part.cookie)
    this.setProblem(part, undefined)
  }

  describe (): PmemSet {
    const { id, uid, revision, requiredGranularity, coalescing, labels, createdAt } = this.#record
    const info = this.context.engine.setInfo(this.handle)
    return {
      id,
      uid,
      revision,
      requiredGranularity,
      ...(info.granularity === undefined ? {} : { effectiveGranularity: info.granularity }),
      coalescing,
      window: { addr: hex(info.windowAddr), size: info.windowSize },
      partCount: info.partCount + this.#missing.size,
      mapCount: info.mapCount,
      mappedBytes: info.mappedBytes,
      state: info.degraded || this.#missing.size > 0 ? 'degraded' : 'ready',
      labels,
      createdAt
    }
  }

  granularity (): Granularity {
    // The first part settles it for ever.
    const granularity = this.#granularity ??= this.context.engine.setInfo(this.handle).granularity
    if (granularity === undefined) throw new ServiceError('PMEMSET_E_NO_PART_MAPPED', 'Nothing was mapped into the set yet.', {}, 'granularity')
    return granularity
  }

  /** Writes bytes that are all there, on the way that suits them. */
  async write (addr: bigint, bytes: Buffer, durability: Durability): Promise<EngineWritten> {
    const { engine } = this.context
    if (bytes.length > SMALL_WRITE_BYTES_MAX || durability === 'deep') return await engine.write(this.handle, addr, bytes, durability)
    return this.granularity() === 'page' ? await this.#writes.write(addr, bytes, durability) : engine.writeNow(this.handle, addr, bytes, durability)
  }

  patch ({ coalescing, labels }: SetPatch, expected: Expected): Promise<PmemSet> {
    return this.change(expected, async () => {
      if (labels !== undefined) checkLabels(labels, this.context.limits)
      const { engine } = this.context
      if (coalescing !== undefined) await engine.setCoalescing(this.handle, coalescing)
      try {
        await this.commit([], { ...(coalescing === undefined ? {} : { coalescing }), ...(labels === undefined ? {} : { labels }) })
      } catch (error) {
        if (coalescing !== undefined) await engine.setCoalescing(this.handle, this.#record.coalescing)
        throw error
      }
      return this.describe()
    })
  }

  /**
   * For a caller that forgets the set then. Its parts go first, the record next, the window last: what can fail does so while `restore` can bring the
   * parts back to where they were.
   */
  delete (expected: Expected, remove: () => Promise<LivePart[]>, restore: (parts: LivePart[]) => Promise<void>): Promise<void> {
    return this.change(expected, async () => {
      const parts = await remove()
      try {
        await this.context.commit([{ kind: 'delete-set', uid: this.#record.uid }])
      } catch (error) {
        await restore(parts)
        throw error
      }
      await this.end()
    })
  }

  /** Within a change, of a set without parts, that is not on record any more. */
  async end (): Promise<void> {
    this.#isEnded = true
    // What is left of it where this fails is a range of addresses, until the next start.
    await this.context.engine.deleteSet(this.handle).catch(() => {})
  }

  /** Refuses where the set is at none of the versions that are expected. */
  check (expected: Expected): void {
    if (expected === undefined || expected.has(this.version)) return
    throw new ServiceError('PRECONDITION_FAILED', 'The set has changed since.', { revision: this.revision })
  }

  /**
   * Runs changes of this set one after the other, each on the state that the one before it left. `find` throws where that state lacks what the change is
   * of, which is told before its version is.
   */
  change<T> (expected: Expected, work: () => Promise<T>, find: () => unknown = () => {}): Promise<T> {
    const turn = this.#lastChange.then(async () => {
      if (this.#isEnded) throw setNotFound(this.#record.id)
      await find()
      this.check(expected)
      return await work()
    })
    this.#lastChange = turn.catch(() => {})
    return turn
  }

  /** Within a change: records it, under a new revision. */
  async commit (changes: readonly Change[], fields: Partial<Pick<SetRecord, 'coalescing' | 'labels' | 'partsMade' | 'effectiveGranularity'>> = {}): Promise<void> {
    const set: SetRecord = { ...this.#record, ...fields, revision: this.#record.revision + 1 }
    await this.context.commit([{ kind: 'put-set', set }, ...changes])
    this.#record = set
    this.#version = versionOf(set)
  }
}
