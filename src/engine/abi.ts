// SPDX-License-Identifier: BSD-3-Clause
//
// The binding: native/src/ffi.h for koffi, and the only place that knows koffi. Everything that is not a number crosses as `void *` to a Buffer or typed
// array that JavaScript owns, so that a call on the hot path decodes nothing. Three things of koffi's are handled here and nowhere else: a Buffer is not
// kept alive by an asynchronous call; only so many of those may run at once; and integers that do not fit are truncated without a word, which is why the
// functions below are typed and their callers check what they pass.
import koffi, { type KoffiFunc, type TypeObject } from 'koffi'
import { fileURLToPath } from 'node:url'
import { ServiceError } from '../errors.js'

const LIBRARY = fileURLToPath(new URL('../../native/libpmemset.so.1', import.meta.url))
const VERSION = 1

/** An unsigned 64-bit value as koffi gives it: a BigInt only where a number would not be exact. */
export type U64 = number | bigint
/** What a function may be handed for a pointer. */
export type Memory = Buffer | BigUint64Array | Int32Array

const u64 = 'uint64_t'
const u32 = 'uint32_t'
const i32 = 'int32_t'

function text (size: number): TypeObject {
  return koffi.array('char', size, 'String')
}

/** A C structure that is written or read field by field, away from the hot path. */
export class Struct<T extends object> {
  readonly #type: TypeObject
  readonly size: number

  constructor (fields: Record<keyof T & string, string | TypeObject>) {
    this.#type = koffi.struct(fields)
    this.size = koffi.sizeof(this.#type)
  }

  blank (): Buffer {
    return Buffer.alloc(this.size)
  }

  encode (value: T): Buffer {
    const memory = this.blank()
    koffi.encode(memory, this.#type, value)
    return memory
  }

  decode (memory: Buffer): T {
    return koffi.decode(memory, this.#type) as T
  }
}

export interface ErrorFields {
  code: number
  cause: number
  sys_errno: number
  reason: number
  value: U64
  addr: U64
  size: U64
  offset: U64
  granularity: number
  reserved: number
  message: string
}

export interface AbiFields {
  version: number
  error_size: number
  abi_size: number
  engine_spec_size: number
  engine_info_size: number
  volume_info_size: number
  probe_size: number
  set_spec_size: number
  set_info_size: number
  part_spec_size: number
  part_size: number
  span_size: number
  removal_size: number
  written_size: number
  write_size: number
  counters_size: number
  restore_file_size: number
  restore_part_size: number
  codes: number
}

export interface EngineSpecFields {
  arena_base: U64
  arena_size: U64
  mappings_max: U64
  log_size: U64
  simulate: number
  log_keep_free: number
}

export interface EngineInfoFields {
  arena_base: U64
  arena_size: U64
  page_size: U64
  mappings: U64
  mappings_max: U64
  addresses_stable: number
  simulate: number
  libpmem2: string
}

export interface VolumeInfoFields {
  capacity: U64
  available: U64
  alignment: U64
  dev: U64
  ino: U64
  granularity: number
  persistence: number
  map_sync: number
  dax: number
  numa_node: number
  allocates: number
  file_system: string
  reason: string
}

export interface ProbeFields {
  size: U64
  alignment: U64
  exists: number
  granularity: number
  persistence: number
  map_sync: number
  reason: string
}

export interface SetSpecFields {
  window_size: U64
  parts_max: U64
  window_addr: U64
  required_granularity: number
  coalescing: number
  granularity: number
  reserved: number
}

export interface SetInfoFields {
  window_addr: U64
  window_size: U64
  part_count: U64
  map_count: U64
  mapped_bytes: U64
  granularity: number
  coalescing: number
  degraded: number
  reserved: number
}

export interface PartSpecFields {
  volume: U64
  offset: U64
  length: U64
  cookie: U64
  keep_free: U64
  create: number
  mode: number
  grow: number
  reserved: number
  intent: U64
}

export interface PartFields {
  addr: U64
  length: U64
  offset: U64
  cookie: U64
  map_addr: U64
  map_size: U64
  dev: U64
  ino: U64
  granularity: number
  persistence: number
  map_sync: number
  coalesced: number
  created: number
  degraded: number
  identity: string
}

export interface RestoreFileFields {
  volume: U64
  path_at: U64
  path_length: number
  adopt: number
  identity: string
}

export interface WrittenFields {
  bytes: U64
  durability: number
  granularity: number
  persistence: number
  simulated: number
}

export interface CountersFields {
  pins: U64
  flushes_of_ranges: U64
  flushes_of_files: U64
  flushes_failed: U64
  flush_callers: U64
}

const NAME_SIZE = 64
const TEXT_SIZE = 256
const IDENTITY_SIZE = 128

export const STRUCTS = {
  error: new Struct<ErrorFields>({ code: i32, cause: i32, sys_errno: i32, reason: u32, value: u64, addr: u64, size: u64, offset: u64, granularity: u32, reserved: u32, message: text(TEXT_SIZE) }),
  abi: new Struct<AbiFields>({ version: u32, error_size: u32, abi_size: u32, engine_spec_size: u32, engine_info_size: u32, volume_info_size: u32, probe_size: u32, set_spec_size: u32, set_info_size: u32, part_spec_size: u32, part_size: u32, span_size: u32, removal_size: u32, written_size: u32, write_size: u32, counters_size: u32, restore_file_size: u32, restore_part_size: u32, codes: u32 }),
  engineSpec: new Struct<EngineSpecFields>({ arena_base: u64, arena_size: u64, mappings_max: u64, log_size: u64, simulate: u32, log_keep_free: u32 }),
  engineInfo: new Struct<EngineInfoFields>({ arena_base: u64, arena_size: u64, page_size: u64, mappings: u64, mappings_max: u64, addresses_stable: u32, simulate: u32, libpmem2: text(NAME_SIZE) }),
  volumeInfo: new Struct<VolumeInfoFields>({ capacity: u64, available: u64, alignment: u64, dev: u64, ino: u64, granularity: u32, persistence: u32, map_sync: u32, dax: u32, numa_node: i32, allocates: u32, file_system: text(NAME_SIZE), reason: text(TEXT_SIZE) }),
  probe: new Struct<ProbeFields>({ size: u64, alignment: u64, exists: u32, granularity: u32, persistence: u32, map_sync: u32, reason: text(TEXT_SIZE) }),
  setSpec: new Struct<SetSpecFields>({ window_size: u64, parts_max: u64, window_addr: u64, required_granularity: u32, coalescing: u32, granularity: u32, reserved: u32 }),
  setInfo: new Struct<SetInfoFields>({ window_addr: u64, window_size: u64, part_count: u64, map_count: u64, mapped_bytes: u64, granularity: u32, coalescing: u32, degraded: u32, reserved: u32 }),
  partSpec: new Struct<PartSpecFields>({ volume: u64, offset: u64, length: u64, cookie: u64, keep_free: u64, create: u32, mode: u32, grow: u32, reserved: u32, intent: u64 }),
  part: new Struct<PartFields>({ addr: u64, length: u64, offset: u64, cookie: u64, map_addr: u64, map_size: u64, dev: u64, ino: u64, granularity: u32, persistence: u32, map_sync: u32, coalesced: u32, created: u32, degraded: u32, identity: text(IDENTITY_SIZE) }),
  restoreFile: new Struct<RestoreFileFields>({ volume: u64, path_at: u64, path_length: u32, adopt: u32, identity: text(IDENTITY_SIZE) }),
  written: new Struct<WrittenFields>({ bytes: u64, durability: u32, granularity: u32, persistence: u32, simulated: u32 }),
  counters: new Struct<CountersFields>({ pins: u64, flushes_of_ranges: u64, flushes_of_files: u64, flushes_failed: u64, flush_callers: u64 })
} as const

/** Rows of 64-bit words, filled and read as BigUint64Array: how many words each has. */
export const SPAN_WORDS = 9
export const REMOVAL_WORDS = 6
export const WRITE_WORDS = 8
export const RESTORE_PART_WORDS = 11

type Native<A extends unknown[], R = number> = KoffiFunc<(...args: A) => R>

export interface Functions {
  ffi_code: Native<[i: number, code: Int32Array, name: Buffer, text: Buffer]>
  ffi_engine_start: Native<[spec: Buffer, err: Buffer]>
  ffi_engine_info: Native<[info: Buffer], undefined>
  ffi_counters: Native<[counters: Buffer], undefined>
  ffi_volume_open: Native<[path: string, volume: BigUint64Array, err: Buffer]>
  ffi_volume_close: Native<[volume: number]>
  ffi_volume_info: Native<[volume: number, info: Buffer, err: Buffer]>
  ffi_probe: Native<[volume: number, path: Buffer, length: number, probe: Buffer, err: Buffer]>
  ffi_set_new: Native<[spec: Buffer, set: BigUint64Array, err: Buffer]>
  ffi_set_info: Native<[set: number, info: Buffer]>
  ffi_set_coalescing: Native<[set: number, coalescing: number, err: Buffer]>
  ffi_set_delete: Native<[set: number, err: Buffer]>
  ffi_part_map: Native<[set: number, spec: Buffer, path: Buffer, pathLength: number, part: Buffer, err: Buffer]>
  ffi_intent_undo: Native<[volume: number, path: Buffer, length: number, intent: bigint, err: Buffer]>
  ffi_restore: Native<[set: number, files: Buffer, fileCount: number, names: Buffer, namesSize: number, parts: Buffer, count: number, err: Buffer]>
  ffi_release: Native<[set: number, addr: bigint, length: number, err: Buffer]>
  ffi_lookup: Native<[set: number, addr: bigint, span: BigUint64Array]>
  ffi_maps: Native<[set: number, from: bigint, to: bigint, rows: BigUint64Array, max: number]>
  ffi_parts: Native<[set: number, from: bigint, to: bigint, rows: BigUint64Array, max: number]>
  ffi_remove: Native<[set: number, addr: bigint, length: number, wholeMap: number, dryRun: number, removal: BigUint64Array, removed: BigUint64Array, trimmed: BigUint64Array, split: BigUint64Array, err: Buffer]>
  ffi_pin: Native<[set: number, addr: bigint, length: number, pin: BigUint64Array, err: Buffer]>
  ffi_unpin: Native<[pin: number]>
  ffi_read: Native<[set: number, addr: bigint, buf: Buffer, length: number, nowait: number, err: Buffer]>
  ffi_check: Native<[set: number, addr: bigint, length: number, what: number, err: Buffer]>
  ffi_write_pieces: Native<[set: number, addr: bigint, pieces: BigUint64Array, count: number, durability: number, written: Buffer, err: Buffer]>
  ffi_write: Native<[set: number, addr: bigint, buf: Buffer, length: number, durability: number, written: Buffer, err: Buffer]>
  ffi_write_many: Native<[rows: BigUint64Array, count: number, data: Buffer, size: number, errs: Buffer]>
  ffi_redo_recover: Native<[volume: number, counts: BigUint64Array, err: Buffer]>
  ffi_batch_check: Native<[body: Buffer, size: number, err: Buffer]>
  ffi_batch: Native<[set: number, body: Buffer, size: number, reply: Buffer, replySize: number, nowait: number, failed: BigUint64Array, err: Buffer]>
  ffi_persist: Native<[set: number, ranges: BigUint64Array, count: number, durability: number, written: Buffer, err: Buffer]>
  ffi_drain: Native<[set: number, written: Buffer, err: Buffer]>
  ffi_failures: Native<[set: number, rows: BigUint64Array, max: number]>
  ffi_failure_ranges: Native<[set: number, failure: number, ranges: BigUint64Array, max: number]>
  ffi_acknowledge: Native<[set: number, failure: number, recovery: number, err: Buffer]>
  ffi_fail: Native<[set: number, at: number, errno: number, ranges: BigUint64Array, count: number, err: Buffer]>
  ffi_state_check: Native<[directory: string, err: Buffer]>
  ffi_lock: Native<[path: string, lock: BigUint64Array, err: Buffer]>
  ffi_unlock: Native<[lock: number]>
  ffi_allocate: Native<[path: string, size: number, err: Buffer]>
}

const PROTOTYPES: Record<keyof Functions, [result: string, ...args: string[]]> = {
  ffi_code: ['int', u32, 'void *', 'void *', 'void *'],
  ffi_engine_start: ['int', 'void *', 'void *'],
  ffi_engine_info: ['void', 'void *'],
  ffi_counters: ['void', 'void *'],
  ffi_volume_open: ['int', 'const char *', 'void *', 'void *'],
  ffi_volume_close: ['int', u64],
  ffi_volume_info: ['int', u64, 'void *', 'void *'],
  ffi_probe: ['int', u64, 'void *', u32, 'void *', 'void *'],
  ffi_set_new: ['int', 'void *', 'void *', 'void *'],
  ffi_set_info: ['int', u64, 'void *'],
  ffi_set_coalescing: ['int', u64, u32, 'void *'],
  ffi_set_delete: ['int', u64, 'void *'],
  ffi_part_map: ['int', u64, 'void *', 'void *', u32, 'void *', 'void *'],
  ffi_intent_undo: ['int', u64, 'void *', u32, u64, 'void *'],
  ffi_restore: ['int', u64, 'void *', u64, 'void *', u64, 'void *', u64, 'void *'],
  ffi_release: ['int', u64, u64, u64, 'void *'],
  ffi_lookup: ['int', u64, u64, 'void *'],
  ffi_maps: ['int64_t', u64, u64, u64, 'void *', u64],
  ffi_parts: ['int64_t', u64, u64, u64, 'void *', u64],
  ffi_remove: ['int', u64, u64, u64, u32, u32, 'void *', 'void *', 'void *', 'void *', 'void *'],
  ffi_pin: ['int', u64, u64, u64, 'void *', 'void *'],
  ffi_unpin: ['int', u64],
  ffi_read: ['int', u64, u64, 'void *', u64, u32, 'void *'],
  ffi_check: ['int', u64, u64, u64, u32, 'void *'],
  ffi_write_pieces: ['int', u64, u64, 'void *', u64, u32, 'void *', 'void *'],
  ffi_write: ['int', u64, u64, 'void *', u64, u32, 'void *', 'void *'],
  ffi_write_many: ['int64_t', 'void *', u64, 'void *', u64, 'void *'],
  ffi_redo_recover: ['int', u64, 'void *', 'void *'],
  ffi_batch_check: ['int64_t', 'void *', u64, 'void *'],
  ffi_batch: ['int', u64, 'void *', u64, 'void *', u64, u32, 'void *', 'void *'],
  ffi_persist: ['int', u64, 'void *', u64, u32, 'void *', 'void *'],
  ffi_drain: ['int', u64, 'void *', 'void *'],
  ffi_failures: ['int64_t', u64, 'void *', u64],
  ffi_failure_ranges: ['int64_t', u64, u64, 'void *', u64],
  ffi_acknowledge: ['int', u64, u64, u32, 'void *'],
  ffi_fail: ['int', u64, u64, i32, 'void *', u64, 'void *'],
  ffi_state_check: ['int', 'const char *', 'void *'],
  ffi_lock: ['int', 'const char *', 'void *', 'void *'],
  ffi_unlock: ['int', u64],
  ffi_allocate: ['int', 'const char *', u64, 'void *']
}

/** The library is another one than this file was written for. */
export class AbiError extends Error {
  override readonly name = 'AbiError'
}

function checkSizes (abi: AbiFields): void {
  const WORD = 8
  const sizes: Array<[what: string, theirs: number, ours: number]> = [
    ['version', abi.version, VERSION],
    ['error', abi.error_size, STRUCTS.error.size],
    ['abi', abi.abi_size, STRUCTS.abi.size],
    ['engine_spec', abi.engine_spec_size, STRUCTS.engineSpec.size],
    ['engine_info', abi.engine_info_size, STRUCTS.engineInfo.size],
    ['volume_info', abi.volume_info_size, STRUCTS.volumeInfo.size],
    ['probe', abi.probe_size, STRUCTS.probe.size],
    ['set_spec', abi.set_spec_size, STRUCTS.setSpec.size],
    ['set_info', abi.set_info_size, STRUCTS.setInfo.size],
    ['part_spec', abi.part_spec_size, STRUCTS.partSpec.size],
    ['part', abi.part_size, STRUCTS.part.size],
    ['span', abi.span_size, SPAN_WORDS * WORD],
    ['removal', abi.removal_size, REMOVAL_WORDS * WORD],
    ['written', abi.written_size, STRUCTS.written.size],
    ['write', abi.write_size, WRITE_WORDS * WORD],
    ['counters', abi.counters_size, STRUCTS.counters.size],
    ['restore_file', abi.restore_file_size, STRUCTS.restoreFile.size],
    ['restore_part', abi.restore_part_size, RESTORE_PART_WORDS * WORD]
  ]
  const wrong = sizes.filter(([, theirs, ours]) => theirs !== ours).map(([what, theirs, ours]) => `${what} is ${theirs}, not ${ours}`)
  if (wrong.length > 0) throw new AbiError(`the native library is of another build (${wrong.join('; ')}); build it again`)
}

// libpmem2 takes orders from these, such as a granularity that the medium does not have. The library must not see them.
function cleanEnvironment (): void {
  for (const name of Object.keys(process.env)) {
    // eslint-disable-next-line @typescript-eslint/no-dynamic-delete -- only a deletion reaches the environment that C sees
    if (name.startsWith('PMEM2_')) delete process.env[name]
  }
}

export interface Abi {
  readonly version: number
  /** Rows of ffi_code. */
  readonly codes: number
  readonly call: Functions
}

let loaded: Abi | undefined

/** Loads the library, once, and refuses one whose structures are not those of this file. */
export function loadAbi (): Abi {
  if (loaded !== undefined) return loaded
  cleanEnvironment()
  const library = koffi.load(LIBRARY)
  const memory = STRUCTS.abi.blank()
  const version = (library.func('ffi_abi', u32, ['void *', u32]) as (out: Buffer, size: number) => number)(memory, memory.length)
  const abi = STRUCTS.abi.decode(memory)
  checkSizes({ ...abi, version })
  const functions = Object.entries(PROTOTYPES).map(([name, [result, ...args]]) => [name, library.func(name, result, args)])
  loaded = { version, codes: abi.codes, call: Object.fromEntries(functions) as Functions }
  return loaded
}

// Below koffi's max_async_calls (256), above which it fails calls. The calls share libuv's few threads, so more at once would gain nothing.
const RUNNING_MAX = 200
const WAITING_MAX = 4096

let running = 0
const waiting: Array<() => void> = []
// What C may touch until its call has returned: koffi itself does not keep it.
const held = new Set<readonly unknown[]>()

function release (memory: readonly unknown[]): void {
  held.delete(memory)
  running--
  waiting.shift()?.()
}

/** Calls a function on another thread. Waits for its turn where too many run; BUSY where too many wait. */
export function callAsync<A extends unknown[]> (fn: Native<A>, ...args: A): Promise<number> {
  return callHolding(args, fn, ...args)
}

/** The same, where C gets to other memory than that of its arguments. */
export function callHolding<A extends unknown[]> (memory: readonly unknown[], fn: Native<A>, ...args: A): Promise<number> {
  const kept = [memory, args]
  return new Promise((resolve, reject) => {
    const start = (): void => {
      running++
      held.add(kept)
      try {
        fn.async(...args, (error: Error | null, result: number) => {
          release(kept)
          if (error === null) resolve(result)
          else reject(error)
        })
      } catch (error) {
        release(kept)
        reject(error instanceof Error ? error : new Error(String(error)))
      }
    }
    if (running < RUNNING_MAX) start()
    else if (waiting.length < WAITING_MAX) waiting.push(start)
    else reject(new ServiceError('BUSY', 'Too many operations wait for the disk.'))
  })
}

const VIEW_BYTES = 2 ** 30
const views = new Map<bigint, Buffer>()

/**
 * Memory at an address, as a Buffer; it does not cross a multiple of a gibibyte. A view costs microseconds and a garbage collection, a part of one
 * nothing, so there is one for each gibibyte of addresses that was asked for, for ever. (V8 counts it as external memory.)
 */
export function viewAt (addr: bigint, length: number): Buffer {
  const offset = Number(addr % BigInt(VIEW_BYTES))
  const base = addr - BigInt(offset)
  if (length <= 0 || offset + length > VIEW_BYTES) throw new RangeError(`there is no view of ${length} bytes at ${addr}`)
  let view = views.get(base)
  if (view === undefined) views.set(base, view = Buffer.from(koffi.view(base, VIEW_BYTES)))
  return view.subarray(offset, offset + length)
}

/** Where a Buffer's bytes are. */
export function addressOf (memory: Buffer): bigint {
  return koffi.address(memory)
}
