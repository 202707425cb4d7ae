// SPDX-License-Identifier: BSD-3-Clause
//
// The native engine as the rest of the service sees it: typed calls, addresses as BigInt, sizes as numbers, failures as EngineError. What ffi.h says never
// blocks is synchronous here; everything else is a promise. There is one engine in a process.
import { constants } from 'node:os'
import { EngineError, REASONS } from '../errors.js'
import { groups, timed, traffic } from '../metrics.js'
import { addressOf, callAsync, callHolding, loadAbi, RESTORE_PART_WORDS, SPAN_WORDS, STRUCTS, REMOVAL_WORDS, viewAt, WRITE_WORDS, type Abi, type Functions, type U64 } from './abi.js'

export const GRANULARITIES = ['byte', 'cache_line', 'page'] as const
export const PERSISTENCES = ['unknown', 'persistent', 'host_dependent', 'volatile'] as const
export const COALESCINGS = ['none', 'opportunistic', 'full'] as const
export const CREATES = ['never', 'if_needed', 'exclusive', 'always'] as const
export const DURABILITIES = ['none', 'flushed', 'persisted', 'deep'] as const

export const RECOVERIES = ['rewrite', 'discard'] as const

export type Granularity = typeof GRANULARITIES[number]
export type Persistence = typeof PERSISTENCES[number]
export type Coalescing = typeof COALESCINGS[number]
export type Create = typeof CREATES[number]
export type Durability = typeof DURABILITIES[number]
export type Recovery = typeof RECOVERIES[number]

const GRANULARITY_UNSET = 3

/** A handle of the engine: valid until what it names is closed or deleted, and then an EBADF. */
export type Handle = number

export interface EngineOptions {
  /** 0n: the engine's default. */
  arenaBase: bigint
  /** 0n: the engine's default. */
  arenaSize: bigint
  /** Kernel mappings; 0: what the kernel allows, less a reserve. */
  mappingsMax: number
  /** Bytes that a volume's redo log has for batches that are all or nothing; 0: the engine's default. */
  logSize: number
  /** Percent of a volume's capacity that its first redo log leaves free. */
  logKeepFree: number
  simulate?: 'byte' | 'cache_line' | undefined
}

export interface EngineInfo {
  abi: number
  libpmem2: string
  arenaBase: bigint
  arenaSize: bigint
  pageSize: number
  mappings: number
  mappingsMax: number
  addressesStable: boolean
  simulated: Granularity | undefined
}

/** Since the start, but for the pins. */
export interface EngineCounters {
  pins: number
  flushesOfRanges: number
  flushesOfFiles: number
  flushesFailed: number
  flushCallers: number
}

export interface VolumeInfo {
  fileSystem: string
  dax: boolean
  granularity: Granularity
  mapSync: boolean
  persistence: Persistence
  persistenceReason: string
  alignment: number
  capacity: number
  available: number
  numaNode: number | undefined
}

export interface ProbeInfo {
  exists: boolean
  size: number
  alignment: number
  mapSync: boolean
  granularity: Granularity
  persistence: Persistence
  reason: string
}

export interface SetSpec {
  windowSize: number
  partsMax: number
  requiredGranularity: Granularity
  coalescing: Coalescing
  /** Where the window was in an earlier life of the set; undefined: anywhere. */
  windowAddr?: bigint | undefined
  /** Effective, where it had its first map then. */
  granularity?: Granularity | undefined
}

export interface SetInfo {
  windowAddr: bigint
  windowSize: number
  partCount: number
  mapCount: number
  mappedBytes: number
  granularity: Granularity | undefined
  degraded: boolean
}

export interface PartSpec {
  volume: Handle
  path: string
  offset: number
  /** 0: to the end of the source. */
  length: number
  /** The caller's number for the part, which look-ups give back; not 0. */
  cookie: number
  keepFree: number
  create: Create
  mode: number
  grow: boolean
  /** A file that is created carries this number, for `undoIntent`; drawn at random, and never used for anything else. */
  intent?: bigint | undefined
}

export interface MappedPart {
  addr: bigint
  length: number
  mapAddr: bigint
  mapSize: number
  granularity: Granularity
  persistence: Persistence
  mapSync: boolean
  coalesced: boolean
  created: boolean
  degraded: boolean
  /** Of the source, whatever its path: text to keep and give back to `restore`. */
  identity: string
}

/** A file that parts were mapped from in an earlier life. */
export interface FormerFile {
  volume: Handle
  path: string
  /** As MappedPart had it. */
  identity: string
  /** Whichever file is there now is the one. */
  adopt: boolean
}

export interface FormerPart {
  /** Its index among the files. */
  file: number
  offset: number
  length: number
  cookie: number
  addr: bigint
  /** Whether it was one with the map that ended where it starts. */
  joins: boolean
}

/** What became of it: where `error` is set, it is not mapped, and `kept` says whether its range is kept for another try. */
export type RestoredPart =
  | { error: undefined, granularity: Granularity, persistence: Persistence, mapSync: boolean, degraded: boolean }
  | { error: EngineError, kept: boolean }

export interface Restored {
  /** Of what is at each path now; where it could not be opened, as it was given. */
  identities: string[]
  parts: RestoredPart[]
}

/** A part map, and one part of it. */
export interface Span {
  mapAddr: bigint
  mapSize: number
  mapParts: number
  addr: bigint
  length: number
  offset: number
  cookie: number
  degraded: boolean
}

export interface Range {
  addr: bigint
  size: number
}

export interface Removed {
  removed: Array<{ addr: bigint, length: number, cookie: number }>
  trimmed: Array<{ before: Range, after: Range }>
  split: Array<{ before: Range, after: Range[] }>
}

export interface Written {
  bytes: number
  durability: Durability
  granularity: Granularity | undefined
  persistence: Persistence
  simulated: boolean
}

/** A flush that failed, which nobody has dealt with. */
export interface FailedFlush {
  id: number
  /** Milliseconds since 1970. */
  at: number
  errno: number
}

/** One of writeMany. */
export interface Write {
  set: Handle
  addr: bigint
  bytes: Buffer
  durability: Durability
}

/** Which operation of a batch was refused or failed: the count of them where it was their flush. */
export interface BatchFailure {
  operation: number
  error: EngineError
}

/** A code of the engine's own table. */
export interface EngineCode {
  number: number
  name: string
  text: string
}

const CODE_NAME_SIZE = 64
const CODE_TEXT_SIZE = 256
const EAGAIN = -constants.errno.EAGAIN
const ENOENT = -constants.errno.ENOENT
const CANNOT_FIND_PART_MAP = -200013
const DEGRADED = 1n
// A range removal can leave something of the map that holds its start and of the one that holds its end; no other.
const CUT_ROWS = 2
// A batch that is no larger is tried on the event loop first: it takes less time there than it would wait for a thread.
const BATCH_AT_ONCE_BYTES = 256 * 1024
// In the reply to a batch (openapi/batch.md).
const BATCH_STORED_AT = 16
const BATCH_RESULTS_AT = 32
const REMOVED_WORDS = 3
const TRIMMED_WORDS = 4
const SPLIT_WORDS = 6
const FAILURE_WORDS = 3
// In a row of ffi_restore_part: in words, then in halves of words.
const VALUE_AT = 5
const CODE_AT = 12
const JOINS_AT = 20
const WORD_MAX = 2n ** 64n - 1n
const CHECK = { size: 0, resident: 1, load: 2 } as const

function exact (value: U64): number {
  const number = Number(value)
  if (!Number.isSafeInteger(number)) throw new RangeError(`the engine gave ${String(value)}, which is too large to be exact`)
  return number
}

/** What goes to C must fit, or koffi would cut it off without a word. */
function checkLength (value: number): number {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} is not a length`)
  return value
}

function checkAddress (addr: bigint): bigint {
  if (addr < 0n || addr > WORD_MAX) throw new RangeError(`${addr} is not an address`)
  return addr
}

function checkWord (value: bigint): bigint {
  if (value < 0n || value > WORD_MAX) throw new RangeError(`${value} is not a word`)
  return value
}

function nameAt<T extends string> (names: readonly T[], index: number): T {
  const name = names[index]
  if (name === undefined) throw new RangeError(`the engine gave ${index}, which is none of ${names.join(', ')}`)
  return name
}

function granularityAt (index: number): Granularity | undefined {
  return index === GRANULARITY_UNSET ? undefined : nameAt(GRANULARITIES, index)
}

function textOf (memory: Buffer): string {
  return memory.toString('utf8', 0, memory.indexOf(0))
}

function word (rows: BigUint64Array, index: number): bigint {
  return rows[index] ?? 0n
}

function spanAt (rows: BigUint64Array, row: number): Span {
  const at = row * SPAN_WORDS
  return {
    mapAddr: word(rows, at),
    mapSize: Number(word(rows, at + 1)),
    mapParts: Number(word(rows, at + 2)),
    addr: word(rows, at + 4),
    length: Number(word(rows, at + 5)),
    offset: Number(word(rows, at + 6)),
    cookie: Number(word(rows, at + 7)),
    degraded: (word(rows, at + 8) & DEGRADED) !== 0n
  }
}

function rangeAt (rows: BigUint64Array, index: number): Range {
  return { addr: word(rows, index), size: Number(word(rows, index + 1)) }
}

function rowsOf<T> (count: bigint | undefined, read: (row: number) => T): T[] {
  return Array.from({ length: Number(count ?? 0n) }, (_, row) => read(row))
}

function rangeRows (ranges: ReadonlyArray<{ addr: bigint, length: number }>): BigUint64Array {
  const rows = new BigUint64Array(ranges.length * 2)
  ranges.forEach(({ addr, length }, i) => { rows.set([checkAddress(addr), BigInt(checkLength(length))], i * 2) })
  return rows
}

function errorFrom (err: Buffer): EngineError {
  const e = STRUCTS.error.decode(err)
  return new EngineError({ ...e, errno: e.sys_errno, value: BigInt(e.value), addr: BigInt(e.addr), size: BigInt(e.size), offset: BigInt(e.offset) })
}

function throwFrom (err: Buffer): never {
  throw errorFrom(err)
}

/** For the few functions that give a code and no record. */
function throwCode (code: number, what: string): never {
  const reason = code === -constants.errno.EBADF ? REASONS.indexOf('STALE') : 0
  throw new EngineError({ code, cause: 0, errno: 0, reason, value: 0n, addr: 0n, size: 0n, offset: 0n, granularity: GRANULARITY_UNSET, message: `${what} failed with ${code}` })
}

/** Whether the error says that the set, or what else the handle named, is no more. */
export function isStale (error: unknown): boolean {
  return error instanceof EngineError && error.reason === 'STALE'
}

const HIGH = 2 ** 32

/**
 * What a look-up found, as the engine wrote it; the next look-up overwrites it. It is read in halves of words, since each BigInt would be an object, and
 * look-ups are the hot path: addresses of user space and counts are exact as numbers.
 */
export class Found {
  readonly words = new BigUint64Array(SPAN_WORDS)
  readonly #halves = new Uint32Array(this.words.buffer)

  get mapAddr (): number { return this.#word(0) }
  get mapSize (): number { return this.#word(1) }
  get mapParts (): number { return this.#word(2) }
  /** Of the part, as the cookie is. */
  get addr (): number { return this.#word(4) }
  get length (): number { return this.#word(5) }
  get cookie (): number { return this.#word(7) }

  span (): Span { return spanAt(this.words, 0) }

  // Little-endian, as every processor that libpmem2 knows.
  #word (index: number): number {
    return (this.#halves[index * 2 + 1] as number) * HIGH + (this.#halves[index * 2] as number)
  }
}

/** Rows of ffi_restore_part, by hand: there may be tens of thousands. */
class RestoreRows {
  readonly memory: Buffer
  readonly #words: BigUint64Array
  readonly #halves: Int32Array

  constructor (parts: readonly FormerPart[]) {
    this.#words = new BigUint64Array(parts.length * RESTORE_PART_WORDS)
    this.#halves = new Int32Array(this.#words.buffer)
    this.memory = Buffer.from(this.#words.buffer)
    parts.forEach(({ file, offset, length, cookie, addr, joins }, row) => {
      // Word by word: an array of them to copy would take most of what a part costs here.
      const at = row * RESTORE_PART_WORDS
      this.#words[at] = BigInt(file)
      this.#words[at + 1] = BigInt(checkLength(offset))
      this.#words[at + 2] = BigInt(checkLength(length))
      this.#words[at + 3] = BigInt(checkLength(cookie))
      this.#words[at + 4] = checkAddress(addr)
      this.#halves[at * 2 + JOINS_AT] = joins ? 1 : 0
    })
  }

  outcome (row: number): RestoredPart {
    const [code, cause, errno, reason, granularity, persistence, mapSync, degraded, , kept] = this.#halves.subarray(row * RESTORE_PART_WORDS * 2 + CODE_AT) as unknown as [number, number, number, number, number, number, number, number, number, number]
    if (code === 0) return { error: undefined, granularity: nameAt(GRANULARITIES, granularity), persistence: nameAt(PERSISTENCES, persistence), mapSync: mapSync !== 0, degraded: degraded !== 0 }
    const value = word(this.#words, row * RESTORE_PART_WORDS + VALUE_AT)
    const failure = { code, cause, errno, reason, value, addr: 0n, size: 0n, offset: 0n, granularity, message: `a part cannot be restored: ${code}` }
    return { error: new EngineError(failure), kept: kept !== 0 }
  }
}

export class Engine {
  readonly #abi: Abi
  readonly #call: Functions
  // Synchronous calls share these: they are read before the next call can begin.
  readonly #err = STRUCTS.error.blank()
  readonly #setInfo = STRUCTS.setInfo.blank()
  readonly #written = STRUCTS.written.blank()
  readonly #found = new Found()
  readonly #out = new BigUint64Array(1)
  readonly #onFlushFailed = new Set<() => Promise<void>>()

  private constructor (abi: Abi) {
    this.#abi = abi
    this.#call = abi.call
  }

  /** Loads the library: enough for locks and for the catalog's directory. */
  static load (): Engine {
    return new Engine(loadAbi())
  }

  static start (options: EngineOptions): Engine {
    const engine = Engine.load()
    engine.begin(options)
    return engine
  }

  /** Reserves the arena; the second time in a process fails with EALREADY. */
  begin (options: EngineOptions): void {
    const spec = STRUCTS.engineSpec.encode({
      arena_base: checkAddress(options.arenaBase),
      arena_size: checkAddress(options.arenaSize),
      mappings_max: checkLength(options.mappingsMax),
      log_size: checkLength(options.logSize),
      simulate: options.simulate === undefined ? GRANULARITY_UNSET : GRANULARITIES.indexOf(options.simulate),
      log_keep_free: options.logKeepFree
    })
    if (this.#call.ffi_engine_start(spec, this.#err) !== 0) throwFrom(this.#err)
  }

  /** Has it called, and waited for, before anybody is told of a flush that failed; what this returns ends that. */
  onFlushFailed (listener: () => Promise<void>): () => void {
    this.#onFlushFailed.add(listener)
    return () => { this.#onFlushFailed.delete(listener) }
  }

  /** The error, when it may be told. */
  async #told (error: EngineError): Promise<EngineError> {
    if (error.reason === 'PERSIST_FAILED') await Promise.allSettled([...this.#onFlushFailed].map((listener) => listener()))
    return error
  }

  async #fail (err: Buffer): Promise<never> {
    throw await this.#told(errorFrom(err))
  }

  info (): EngineInfo {
    const memory = STRUCTS.engineInfo.blank()
    this.#call.ffi_engine_info(memory)
    const info = STRUCTS.engineInfo.decode(memory)
    return {
      abi: this.#abi.version,
      libpmem2: info.libpmem2,
      arenaBase: BigInt(info.arena_base),
      arenaSize: BigInt(info.arena_size),
      pageSize: exact(info.page_size),
      mappings: exact(info.mappings),
      mappingsMax: exact(info.mappings_max),
      addressesStable: info.addresses_stable !== 0,
      simulated: granularityAt(info.simulate)
    }
  }

  counters (): EngineCounters {
    const memory = STRUCTS.counters.blank()
    this.#call.ffi_counters(memory)
    const counters = STRUCTS.counters.decode(memory)
    return {
      pins: exact(counters.pins),
      flushesOfRanges: exact(counters.flushes_of_ranges),
      flushesOfFiles: exact(counters.flushes_of_files),
      flushesFailed: exact(counters.flushes_failed),
      flushCallers: exact(counters.flush_callers)
    }
  }

  /** The engine's table of codes: libpmemset's, then libpmem2's. */
  codes (): EngineCode[] {
    return readCodes(this.#abi)
  }

  openVolume (path: string): Handle {
    if (this.#call.ffi_volume_open(path, this.#out, this.#err) !== 0) throwFrom(this.#err)
    return exact(word(this.#out, 0))
  }

  closeVolume (volume: Handle): void {
    const code = this.#call.ffi_volume_close(volume)
    if (code !== 0) throwCode(code, 'closing a volume')
  }

  async volumeInfo (volume: Handle): Promise<VolumeInfo> {
    const memory = STRUCTS.volumeInfo.blank()
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'volume_info' }, callAsync(this.#call.ffi_volume_info, volume, memory, err)) !== 0) throwFrom(err)
    const info = STRUCTS.volumeInfo.decode(memory)
    return {
      fileSystem: info.file_system,
      dax: info.dax !== 0,
      granularity: nameAt(GRANULARITIES, info.granularity),
      mapSync: info.map_sync !== 0,
      persistence: nameAt(PERSISTENCES, info.persistence),
      persistenceReason: info.reason,
      alignment: exact(info.alignment),
      capacity: exact(info.capacity),
      available: exact(info.available),
      numaNode: info.numa_node < 0 ? undefined : info.numa_node
    }
  }

  async probe (volume: Handle, path: string): Promise<ProbeInfo> {
    const memory = STRUCTS.probe.blank()
    const err = STRUCTS.error.blank()
    const { bytes, length } = encodePath(path)
    if (await timed({ operation: 'probe' }, callAsync(this.#call.ffi_probe, volume, bytes, length, memory, err)) !== 0) throwFrom(err)
    const info = STRUCTS.probe.decode(memory)
    return {
      exists: info.exists !== 0,
      size: exact(info.size),
      alignment: exact(info.alignment),
      mapSync: info.map_sync !== 0,
      granularity: nameAt(GRANULARITIES, info.granularity),
      persistence: nameAt(PERSISTENCES, info.persistence),
      reason: info.reason
    }
  }

  newSet (spec: SetSpec): Handle {
    const memory = STRUCTS.setSpec.encode({
      window_size: checkLength(spec.windowSize),
      parts_max: checkLength(spec.partsMax),
      required_granularity: GRANULARITIES.indexOf(spec.requiredGranularity),
      coalescing: COALESCINGS.indexOf(spec.coalescing),
      window_addr: checkAddress(spec.windowAddr ?? 0n),
      granularity: spec.granularity === undefined ? GRANULARITY_UNSET : GRANULARITIES.indexOf(spec.granularity),
      reserved: 0
    })
    if (this.#call.ffi_set_new(memory, this.#out, this.#err) !== 0) throwFrom(this.#err)
    return exact(word(this.#out, 0))
  }

  setInfo (set: Handle): SetInfo {
    const code = this.#call.ffi_set_info(set, this.#setInfo)
    if (code !== 0) throwCode(code, 'describing a set')
    const info = STRUCTS.setInfo.decode(this.#setInfo)
    return {
      windowAddr: BigInt(info.window_addr),
      windowSize: exact(info.window_size),
      partCount: exact(info.part_count),
      mapCount: exact(info.map_count),
      mappedBytes: exact(info.mapped_bytes),
      granularity: granularityAt(info.granularity),
      degraded: info.degraded !== 0
    }
  }

  /** From the next map on. */
  async setCoalescing (set: Handle, coalescing: Coalescing): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'set_coalescing' }, callAsync(this.#call.ffi_set_coalescing, set, COALESCINGS.indexOf(coalescing), err)) !== 0) throwFrom(err)
  }

  /** Makes everything durable, unmaps it, gives the window back; all or nothing. */
  async deleteSet (set: Handle): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'set_delete' }, callAsync(this.#call.ffi_set_delete, set, err)) !== 0) await this.#fail(err)
  }

  async mapPart (set: Handle, spec: PartSpec): Promise<MappedPart> {
    const memory = STRUCTS.part.blank()
    const err = STRUCTS.error.blank()
    const fields = STRUCTS.partSpec.encode({
      volume: spec.volume,
      offset: checkLength(spec.offset),
      length: checkLength(spec.length),
      cookie: checkLength(spec.cookie),
      keep_free: checkLength(spec.keepFree),
      create: CREATES.indexOf(spec.create),
      mode: spec.mode,
      grow: spec.grow ? 1 : 0,
      reserved: 0,
      intent: checkWord(spec.intent ?? 0n)
    })
    const { bytes, length } = encodePath(spec.path)
    if (await timed({ operation: 'part_map' }, callAsync(this.#call.ffi_part_map, set, fields, bytes, length, memory, err)) !== 0) await this.#fail(err)
    const part = STRUCTS.part.decode(memory)
    return {
      addr: BigInt(part.addr),
      length: exact(part.length),
      mapAddr: BigInt(part.map_addr),
      mapSize: exact(part.map_size),
      granularity: nameAt(GRANULARITIES, part.granularity),
      persistence: nameAt(PERSISTENCES, part.persistence),
      mapSync: part.map_sync !== 0,
      coalesced: part.coalesced !== 0,
      created: part.created !== 0,
      degraded: part.degraded !== 0,
      identity: part.identity
    }
  }

  /** Takes back what a mapPart of that intent has made of the path, unless it is nothing: for who died before it could write it down. */
  async undoIntent (volume: Handle, path: string, intent: bigint): Promise<void> {
    const err = STRUCTS.error.blank()
    const { bytes, length } = encodePath(path)
    if (await timed({ operation: 'intent_undo' }, callAsync(this.#call.ffi_intent_undo, volume, bytes, length, checkWord(intent), err)) !== 0) throwFrom(err)
  }

  /** Maps parts of an earlier life again, each where it was, in the order of their cookies. Each has an outcome of its own. */
  async restore (set: Handle, files: readonly FormerFile[], parts: readonly FormerPart[]): Promise<Restored> {
    const paths = files.map(({ path }) => Buffer.from(path, 'utf8'))
    const names = Buffer.concat([...paths, Buffer.alloc(1)])
    let at = 0
    const fileRows = Buffer.concat(files.map((file, i) => {
      const { length } = paths[i] as Buffer
      const row = STRUCTS.restoreFile.encode({ volume: file.volume, path_at: at, path_length: length, adopt: file.adopt ? 1 : 0, identity: file.identity })
      at += length
      return row
    }))
    const partRows = new RestoreRows(parts)
    const err = STRUCTS.error.blank()
    const code = await timed({ operation: 'restore' }, callAsync(this.#call.ffi_restore, set, fileRows, files.length, names, names.length, partRows.memory, parts.length, err))
    if (code !== 0) throwFrom(err)
    const { size } = STRUCTS.restoreFile
    return {
      identities: files.map((_, i) => STRUCTS.restoreFile.decode(fileRows.subarray(i * size, (i + 1) * size)).identity),
      parts: parts.map((_, i) => partRows.outcome(i))
    }
  }

  /** Gives a range back to the window that `restore` has kept for a part. */
  async release (set: Handle, addr: bigint, length: number): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'release' }, callAsync(this.#call.ffi_release, set, checkAddress(addr), checkLength(length), err)) !== 0) throwFrom(err)
  }

  /** The map and the part that hold the address, until the next call. */
  find (set: Handle, addr: bigint): Found | undefined {
    traffic.lookups++
    const code = this.#call.ffi_lookup(set, addr, this.#found.words)
    if (code === 0) return this.#found
    if (code === CANNOT_FIND_PART_MAP) return undefined
    return throwCode(code, 'look-up')
  }

  /** The same, to keep. */
  lookup (set: Handle, addr: bigint): Span | undefined {
    return this.find(set, addr)?.span()
  }

  /** Up to `max` maps, each with its first part, that touch [from, to), in address order; `to` 0n: no end. */
  maps (set: Handle, from: bigint, to: bigint, max: number): Span[] {
    return this.#list(this.#call.ffi_maps, set, from, to, max)
  }

  /** Up to `max` parts that touch [from, to), in address order; `to` 0n: no end. */
  parts (set: Handle, from: bigint, to: bigint, max: number): Span[] {
    return this.#list(this.#call.ffi_parts, set, from, to, max)
  }

  #list (fn: Functions['ffi_maps'], set: Handle, from: bigint, to: bigint, max: number): Span[] {
    const rows = new BigUint64Array(checkLength(max) * SPAN_WORDS)
    const count = fn(set, checkAddress(from), checkAddress(to), rows, max)
    if (count < 0) throwCode(count, 'listing')
    return Array.from({ length: count }, (_, row) => spanAt(rows, row))
  }

  /** Removes every part that the range touches, whole; all or nothing. At most `rowsMax` removed parts are told. */
  remove (set: Handle, addr: bigint, length: number, dryRun: boolean, rowsMax: number): Promise<Removed> {
    return this.#remove(set, addr, checkLength(length), false, dryRun, rowsMax)
  }

  /** Removes the map that starts at the address. */
  removeMap (set: Handle, addr: bigint, rowsMax: number): Promise<Removed> {
    return this.#remove(set, addr, 0, true, false, rowsMax)
  }

  async #remove (set: Handle, addr: bigint, length: number, wholeMap: boolean, dryRun: boolean, rowsMax: number): Promise<Removed> {
    const err = STRUCTS.error.blank()
    const counts = new BigUint64Array(REMOVAL_WORDS)
    counts.set([BigInt(rowsMax), BigInt(CUT_ROWS), BigInt(CUT_ROWS)], 3)
    const removed = new BigUint64Array(rowsMax * REMOVED_WORDS)
    const trimmed = new BigUint64Array(CUT_ROWS * TRIMMED_WORDS)
    const split = new BigUint64Array(CUT_ROWS * SPLIT_WORDS)
    const code = await timed({ operation: 'remove' }, callAsync(this.#call.ffi_remove, set, checkAddress(addr), length, wholeMap ? 1 : 0, dryRun ? 1 : 0, counts, removed, trimmed, split, err))
    if (code !== 0) await this.#fail(err)
    if (word(counts, 0) > BigInt(rowsMax)) throw new RangeError(`${word(counts, 0)} parts were removed where ${rowsMax} could be`)
    return {
      removed: rowsOf(counts[0], (row) => ({ addr: word(removed, row * REMOVED_WORDS), length: Number(word(removed, row * REMOVED_WORDS + 1)), cookie: Number(word(removed, row * REMOVED_WORDS + 2)) })),
      trimmed: rowsOf(counts[1], (row) => ({ before: rangeAt(trimmed, row * TRIMMED_WORDS), after: rangeAt(trimmed, row * TRIMMED_WORDS + 2) })),
      split: rowsOf(counts[2], (row) => ({ before: rangeAt(split, row * SPLIT_WORDS), after: [rangeAt(split, row * SPLIT_WORDS + 2), rangeAt(split, row * SPLIT_WORDS + 4)] }))
    }
  }

  /** Checks that the range lies inside one map and keeps the map from removal until unpin. Length 0: the map that holds the address. */
  pin (set: Handle, addr: bigint, length: number): Handle {
    if (this.#call.ffi_pin(set, checkAddress(addr), checkLength(length), this.#out, this.#err) !== 0) throwFrom(this.#err)
    return exact(word(this.#out, 0))
  }

  unpin (pin: Handle): void {
    const code = this.#call.ffi_unpin(pin)
    if (code !== 0) throwCode(code, 'unpinning')
  }

  /** Fills the buffer from the range, or answers false where that would have to wait for the disk. */
  readNow (set: Handle, addr: bigint, buffer: Buffer): boolean {
    const code = this.#call.ffi_read(set, checkAddress(addr), buffer, buffer.length, 1, this.#err)
    if (code !== 0 && code !== EAGAIN) throwFrom(this.#err)
    if (code === 0) traffic.bytesRead += buffer.length
    return code === 0
  }

  /** Throws where the files have not all of the range any more. */
  checkSize (set: Handle, addr: bigint, length: number): void {
    if (this.#call.ffi_check(set, checkAddress(addr), checkLength(length), CHECK.size, this.#err) !== 0) throwFrom(this.#err)
  }

  /** The same, and whether all of it is in memory, so that who copies it waits for no disk. */
  isResident (set: Handle, addr: bigint, length: number): boolean {
    const code = this.#call.ffi_check(set, checkAddress(addr), checkLength(length), CHECK.resident, this.#err)
    if (code !== 0 && code !== EAGAIN) throwFrom(this.#err)
    return code === 0
  }

  /** Brings it there. */
  async load (set: Handle, addr: bigint, length: number): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'load' }, callAsync(this.#call.ffi_check, set, checkAddress(addr), checkLength(length), CHECK.load, err)) !== 0) throwFrom(err)
  }

  /**
   * The mapped bytes themselves, for the kernel to copy: JavaScript that reads them dies of a fault that the engine would have caught. Good while the range
   * is pinned; it does not cross a multiple of a gibibyte.
   */
  view (addr: bigint, length: number): Buffer {
    const view = viewAt(checkAddress(addr), checkLength(length))
    traffic.bytesRead += length
    return view
  }

  async read (set: Handle, addr: bigint, buffer: Buffer): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'read' }, callAsync(this.#call.ffi_read, set, checkAddress(addr), buffer, buffer.length, 0, err)) !== 0) throwFrom(err)
    traffic.bytesRead += buffer.length
  }

  async write (set: Handle, addr: bigint, bytes: Buffer, durability: Durability): Promise<Written> {
    const memory = STRUCTS.written.blank()
    const err = STRUCTS.error.blank()
    const code = await timed({ operation: 'write', durability }, callAsync(this.#call.ffi_write, set, checkAddress(addr), bytes, bytes.length, DURABILITIES.indexOf(durability), memory, err))
    if (code !== 0) await this.#fail(err)
    traffic.bytesWritten += bytes.length
    return toWritten(memory)
  }

  /** The same at once, on this thread: for granularities finer than the page, where a store waits for nothing. */
  writeNow (set: Handle, addr: bigint, bytes: Buffer, durability: Durability): Written {
    const code = this.#call.ffi_write(set, checkAddress(addr), bytes, bytes.length, DURABILITIES.indexOf(durability), this.#written, this.#err)
    if (code !== 0) throwFrom(this.#err)
    traffic.bytesWritten += bytes.length
    return toWritten(this.#written)
  }

  /** Writes of different callers in one call, which share one flush of each file. Each has an outcome of its own. */
  async writeMany (writes: readonly Write[]): Promise<Array<Written | EngineError>> {
    const rows = new BigUint64Array(writes.length * WRITE_WORDS)
    const data = Buffer.allocUnsafe(writes.reduce((sum, { bytes }) => sum + bytes.length, 1))
    const errs = Buffer.allocUnsafe(writes.length * STRUCTS.error.size)
    let offset = 0
    writes.forEach(({ set, addr, bytes, durability }, i) => {
      rows.set([BigInt(set), checkAddress(addr), BigInt(bytes.length), BigInt(offset), BigInt(DURABILITIES.indexOf(durability))], i * WRITE_WORDS)
      bytes.copy(data, offset)
      offset += bytes.length
    })
    groups.observe(writes.length)
    const strongest = Math.max(...writes.map(({ durability }) => DURABILITIES.indexOf(durability)))
    await timed({ operation: 'write_many', durability: nameAt(DURABILITIES, strongest) }, callAsync(this.#call.ffi_write_many, rows, writes.length, data, offset, errs))
    const errors = writes.map((_, i) => (word(rows, i * WRITE_WORDS + 5) === 0n ? undefined : errorFrom(errs.subarray(i * STRUCTS.error.size, (i + 1) * STRUCTS.error.size))))
    const flush = errors.find((error) => error?.reason === 'PERSIST_FAILED')
    if (flush !== undefined) await this.#told(flush)
    return writes.map((_, i) => {
      const row = i * WRITE_WORDS
      const error = errors[i]
      if (error !== undefined) return error
      const reached = Number(word(rows, row + 7))
      traffic.bytesWritten += Number(word(rows, row + 6))
      return {
        bytes: Number(word(rows, row + 6)),
        durability: nameAt(DURABILITIES, reached & 0xff),
        granularity: granularityAt((reached >> 8) & 0xff),
        persistence: nameAt(PERSISTENCES, (reached >> 16) & 0xff),
        simulated: reached >> 24 !== 0
      }
    })
  }

  /** Makes whole what batches of atomicity `all` had committed when the process ended, as far as their files are mapped; how many are still to be made. */
  async recover (volume: Handle): Promise<number> {
    const counts = new BigUint64Array(2)
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'recover' }, callAsync(this.#call.ffi_redo_recover, volume, counts, err)) !== 0) await this.#fail(err)
    return Number(word(counts, 1))
  }

  /** The bytes that the reply to a batch takes; an EngineError with reason MALFORMED says what is wrong with its layout. */
  checkBatch (body: Buffer): number {
    const size = this.#call.ffi_batch_check(body, body.length, this.#err)
    if (size < 0) throwFrom(this.#err)
    return size
  }

  /** Runs a batch that checkBatch has let through, at once where nothing of it can wait for the disk. */
  async batch (set: Handle, body: Buffer, reply: Buffer): Promise<BatchFailure | undefined> {
    reply[0] = 0
    const success = (): BatchFailure | undefined => {
      traffic.bytesWritten += Number(reply.readBigUInt64LE(BATCH_STORED_AT))
      traffic.bytesRead += reply.length - BATCH_RESULTS_AT
      return undefined
    }
    const failure = async (operation: bigint, error: EngineError): Promise<BatchFailure> => {
      // Without a reply it was not begun: there is no such set.
      if (reply[0] === 0) throw error
      await this.#told(error)
      traffic.bytesWritten += Number(reply.readBigUInt64LE(BATCH_STORED_AT))
      return { operation: Number(operation), error }
    }
    if (body.length + reply.length <= BATCH_AT_ONCE_BYTES) {
      const code = this.#call.ffi_batch(set, body, body.length, reply, reply.length, 1, this.#out, this.#err)
      if (code === 0) return success()
      if (code !== EAGAIN) return failure(word(this.#out, 0), errorFrom(this.#err))
    }
    const failed = new BigUint64Array(1)
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'batch' }, callAsync(this.#call.ffi_batch, set, body, body.length, reply, reply.length, 0, failed, err)) === 0) return success()
    return failure(word(failed, 0), errorFrom(err))
  }

  /** The same of bytes in pieces. On every failure `value` is how many were written. */
  async writePieces (set: Handle, addr: bigint, pieces: readonly Buffer[], durability: Durability): Promise<Written> {
    const rows = new BigUint64Array(pieces.length * 2)
    pieces.forEach((piece, i) => { rows.set([addressOf(piece), BigInt(piece.length)], i * 2) })
    const memory = STRUCTS.written.blank()
    const err = STRUCTS.error.blank()
    const code = await timed({ operation: 'write', durability }, callHolding(pieces, this.#call.ffi_write_pieces, set, checkAddress(addr), rows, pieces.length, DURABILITIES.indexOf(durability), memory, err))
    if (code !== 0) await this.#fail(err)
    const written = toWritten(memory)
    traffic.bytesWritten += written.bytes
    return written
  }

  /** Makes ranges durable; all are checked before the first is flushed. */
  async persist (set: Handle, ranges: ReadonlyArray<{ addr: bigint, length: number }>, durability: Exclude<Durability, 'none'>): Promise<Written> {
    const rows = rangeRows(ranges)
    const memory = STRUCTS.written.blank()
    const err = STRUCTS.error.blank()
    const code = await timed({ operation: 'persist', durability }, callAsync(this.#call.ffi_persist, set, rows, ranges.length, DURABILITIES.indexOf(durability), memory, err))
    if (code !== 0) await this.#fail(err)
    return toWritten(memory)
  }

  drain (set: Handle): Written {
    if (this.#call.ffi_drain(set, this.#written, this.#err) !== 0) throwFrom(this.#err)
    return toWritten(this.#written)
  }

  /** Up to `max` flushes of files of the set that failed. */
  async failures (set: Handle, max: number): Promise<FailedFlush[]> {
    const rows = new BigUint64Array(checkLength(max) * FAILURE_WORDS)
    const count = await timed({ operation: 'failures' }, callAsync(this.#call.ffi_failures, set, rows, max))
    if (count < 0) throwCode(count, 'listing failures')
    return Array.from({ length: count }, (_, row) => {
      const at = row * FAILURE_WORDS
      return { id: Number(word(rows, at)), at: Number(word(rows, at + 1)), errno: Number(word(rows, at + 2)) }
    })
  }

  /** Up to `max` ranges of the set that are in doubt by a failure; undefined: it was dealt with. */
  async failureRanges (set: Handle, failure: number, max: number): Promise<Array<{ addr: bigint, length: number }> | undefined> {
    const rows = new BigUint64Array(checkLength(max) * 2)
    const count = await timed({ operation: 'failure_ranges' }, callAsync(this.#call.ffi_failure_ranges, set, checkLength(failure), rows, max))
    if (count === ENOENT) return undefined
    if (count < 0) throwCode(count, 'listing ranges of a failure')
    return Array.from({ length: count }, (_, row) => ({ addr: word(rows, row * 2), length: Number(word(rows, row * 2 + 1)) }))
  }

  /** A failure that is known of from an earlier life: the files of these ranges are degraded by it, and the ranges are in doubt. */
  async fail (set: Handle, failure: Omit<FailedFlush, 'id'>, ranges: ReadonlyArray<{ addr: bigint, length: number }>): Promise<void> {
    const rows = rangeRows(ranges)
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'fail' }, callAsync(this.#call.ffi_fail, set, checkLength(failure.at), failure.errno, rows, ranges.length, err)) !== 0) throwFrom(err)
  }

  /** Deals with a failure, for every set that maps the file. */
  async acknowledge (set: Handle, failure: number, recovery: Recovery): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'acknowledge' }, callAsync(this.#call.ffi_acknowledge, set, checkLength(failure), RECOVERIES.indexOf(recovery), err)) !== 0) await this.#fail(err)
  }

  /** Throws (ENOTSUP) where what is flushed in the directory may not stay, or locks not hold. */
  checkState (directory: string): void {
    if (this.#call.ffi_state_check(directory, this.#err) !== 0) throwFrom(this.#err)
  }

  /** Takes a file, which is made where there is none, until it is unlocked or the process ends. EAGAIN: `value` is the process that has it. */
  lock (path: string): Handle {
    if (this.#call.ffi_lock(path, this.#out, this.#err) !== 0) throwFrom(this.#err)
    return exact(word(this.#out, 0))
  }

  unlock (lock: Handle): void {
    const code = this.#call.ffi_unlock(lock)
    if (code !== 0) throwCode(code, 'unlocking')
  }

  /** Has space set aside for the first bytes of a file, whose size stays as it is. */
  async allocate (path: string, size: number): Promise<void> {
    const err = STRUCTS.error.blank()
    if (await timed({ operation: 'allocate' }, callAsync(this.#call.ffi_allocate, path, checkLength(size), err)) !== 0) throwFrom(err)
  }
}

/** By hand, as with each small write: koffi would make an object of it first, which takes longer than the store. */
function toWritten (memory: Buffer): Written {
  return {
    bytes: memory.readUInt32LE(4) * HIGH + memory.readUInt32LE(0),
    durability: nameAt(DURABILITIES, memory.readUInt32LE(8)),
    granularity: granularityAt(memory.readUInt32LE(12)),
    persistence: nameAt(PERSISTENCES, memory.readUInt32LE(16)),
    simulated: memory.readUInt32LE(20) !== 0
  }
}

// koffi makes NULL of an empty buffer; a path of length 0 keeps a byte behind it, which the engine does not read.
function encodePath (path: string): { bytes: Buffer, length: number } {
  const bytes = Buffer.from(`${path}\0`, 'utf8')
  return { bytes, length: bytes.length - 1 }
}

function readCodes (abi: Abi): EngineCode[] {
  const number = new Int32Array(1)
  const name = Buffer.alloc(CODE_NAME_SIZE)
  const text = Buffer.alloc(CODE_TEXT_SIZE)
  return Array.from({ length: abi.codes }, (_, i) => {
    const code = abi.call.ffi_code(i, number, name, text)
    if (code !== 0) throwCode(code, 'reading the table of codes')
    return { number: number[0] ?? 0, name: textOf(name), text: textOf(text) }
  })
}
