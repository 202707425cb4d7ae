// SPDX-License-Identifier: BSD-3-Clause
//
// memset, memcpy, memmove, atomics, and batches of them: each is a batch to the engine, of one operation or of many, in the layout of batch.ts.
import { countOf, decodeBatch, decodeReply, encodeBatch, FIELDS, isAtomic, type BatchOperation as Layout, type BatchReply, type BatchResult } from '../batch.js'
import type { Limits } from '../config.js'
import type { Durability } from '../engine/engine.js'
import { EngineError, ServiceError } from '../errors.js'
import type { Atomic, AtomicOutcome, Batch, BatchOperation, BatchOutcome, ByteRange, Copy, Fill, OperationResult, Written } from '../schemas.js'
import { exceeded, type Expected, type LiveSet } from './set.js'

type Member = Exclude<keyof BatchOperation, 'op'>

/** What each operation of a batch has to have, and may have. */
const MEMBERS: Record<BatchOperation['op'], { needs: readonly Member[], may: readonly Member[] }> = {
  read: { needs: ['addr', 'length'], may: [] },
  write: { needs: ['addr', 'data'], may: ['hint'] },
  memset: { needs: ['addr', 'length', 'value'], may: ['hint', 'punch'] },
  memcpy: { needs: ['dest', 'src', 'length'], may: ['hint'] },
  memmove: { needs: ['dest', 'src', 'length'], may: ['hint'] },
  persist: { needs: ['ranges'], may: [] },
  flush: { needs: ['ranges'], may: [] },
  compare_exchange: { needs: ['addr', 'value', 'expected'], may: [] },
  exchange: { needs: ['addr', 'value'], may: [] },
  add: { needs: ['addr', 'value'], may: [] },
  and: { needs: ['addr', 'value'], may: [] },
  or: { needs: ['addr', 'value'], may: [] },
  xor: { needs: ['addr', 'value'], may: [] }
}

const BYTE_MAX = 0xffn
const WORD_SIZE = 8n
/** What a batch of atomicity `all` may have. */
const WHOLE_OPS = new Set<BatchOperation['op']>(['read', 'write', 'memset', 'memcpy', 'memmove'])
const RANGE_CODES = new Set(['PMEMSET_E_CANNOT_FIND_PART_MAP', 'PMEMSET_E_LENGTH_OUT_OF_RANGE'])

function refuse (pointer: string, reason: string): ServiceError {
  return new ServiceError('REQUEST_INVALID', `${pointer} ${reason}`, { errors: [{ in: 'body', pointer, reason }] })
}

/** The rules that the flat shape cannot say. */
function check (operation: BatchOperation, at: string): void {
  const { op, addr = '', value = '', punch } = operation
  const { needs, may } = MEMBERS[op]
  for (const name of needs) if (operation[name] === undefined) throw refuse(`${at}/${name}`, 'is missing')
  for (const name of Object.keys(operation) as Array<keyof BatchOperation>) {
    if (name !== 'op' && !needs.includes(name) && !may.includes(name)) throw refuse(`${at}/${name}`, `is not known to ${op}`)
  }
  if (op === 'memset' && BigInt(value) > BYTE_MAX) throw refuse(`${at}/value`, 'must be a byte, from 0x0 to 0xff')
  if (op === 'memset' && punch === true && value !== '0x0') throw refuse(`${at}/value`, 'must be 0x0 where punch is true')
  if (isAtomic(op) && BigInt(addr) % WORD_SIZE !== 0n) throw refuse(`${at}/addr`, 'must be a multiple of 8')
}

/** The rules of a batch that is all or nothing. */
function checkWhole ({ op, punch }: BatchOperation, at: string): void {
  if (!WHOLE_OPS.has(op)) throw refuse(`${at}/op`, 'is none that a batch of atomicity all may have')
  if (punch === true) throw refuse(`${at}/punch`, 'must not be true in a batch of atomicity all')
}

/**
 * Decoded, where it is base64 of the common alphabet with its padding. Node's decoder takes the other alphabet as well, drops what is of neither and stops at
 * padding, so the length tells; to look at every character first costs more than to decode them.
 */
function bytesOf (data: string, at: string): Buffer {
  const bytes = Buffer.from(data, 'base64')
  const padding = data.endsWith('==') ? 2 : data.endsWith('=') ? 1 : 0
  if (data.length % 4 !== 0 || bytes.length !== data.length / 4 * 3 - padding || data.includes('-') || data.includes('_')) throw refuse(`${at}/data`, 'must be base64')
  return bytes
}

/** An operation of JSON, once it was checked, as the layout has it: one for each range of persist and flush, else one. */
function toLayout ({ op, addr, length, data, value, expected, dest, src, ranges = [], hint, punch }: BatchOperation, at: string): Layout[] {
  if (op === 'persist' || op === 'flush') return ranges.map((range) => ({ op, ...range }))
  return [{
    op,
    addr: addr ?? dest ?? '',
    argument: src ?? value ?? 0,
    ...(length === undefined ? {} : { length }),
    ...(data === undefined ? {} : { data: bytesOf(data, at) }),
    ...(expected === undefined ? {} : { expected }),
    ...(hint === undefined ? {} : { hint }),
    ...(punch === undefined ? {} : { punch })
  }]
}

function word (value: bigint): string {
  return `0x${value.toString(16)}`
}

function toResult ({ op, expected }: BatchOperation, { data, previous, current }: BatchResult): OperationResult {
  if (data !== undefined) return { data: Buffer.from(data.buffer, data.byteOffset, data.length).toString('base64') }
  if (previous === undefined || current === undefined) return {}
  return { previous: word(previous), current: word(current), ...(op === 'compare_exchange' ? { swapped: previous === BigInt(expected ?? '') } : {}) }
}

interface Ran {
  reply: Buffer
  /** The operation of the layout that failed, the count of them where it was the flush. */
  failed?: { operation: number, error: EngineError }
}

export class Operations {
  readonly #limits: Limits

  constructor (limits: Limits) {
    this.#limits = limits
  }

  async memset (set: LiveSet, { durability = 'persisted', ...operation }: Fill, expected: Expected): Promise<Written> {
    return await this.#store(set, { op: 'memset', ...operation }, durability, { addr: operation.addr, length: operation.length }, expected)
  }

  async copy (set: LiveSet, op: 'memcpy' | 'memmove', { durability = 'persisted', ...operation }: Copy, expected: Expected): Promise<Written> {
    return await this.#store(set, { op, ...operation }, durability, { addr: operation.dest, length: operation.length }, expected)
  }

  async #store (set: LiveSet, operation: BatchOperation, durability: Durability, range: ByteRange, expected: Expected): Promise<Written> {
    const { results: _none, ...written } = await this.#one(set, operation, durability, expected)
    return { ranges: [range], ...written }
  }

  async atomic (set: LiveSet, operation: Atomic, expected: Expected): Promise<AtomicOutcome> {
    const { results: [outcome] } = await this.#one(set, operation, 'persisted', expected)
    return outcome as AtomicOutcome
  }

  /** An operation that has a route of its own: its members are the body's own. */
  async #one (set: LiveSet, operation: BatchOperation, durability: Durability, expected: Expected): Promise<BatchOutcome> {
    check(operation, '')
    const layout = toLayout(operation, '')
    const ran = await this.#run(set, Buffer.from(encodeBatch(layout, durability).buffer), expected)
    const reply = decodeReply(ran.reply, layout)
    if (ran.failed !== undefined) throw told(ran.failed.error, reply)
    return toOutcome(reply, [operation], [0, layout.length])
  }

  async batch (set: LiveSet, { operations, durability = 'persisted', atomicity = 'none' }: Batch, expected: Expected): Promise<BatchOutcome> {
    const { batchOperations, ranges } = this.#limits
    if (operations.length > batchOperations) throw exceeded('batchOperations', batchOperations)
    if (operations.some((one) => (one.ranges?.length ?? 0) > ranges)) throw exceeded('ranges', ranges)
    if (atomicity === 'all' && durability === 'none') throw refuse('/durability', 'must not be none where atomicity is all')
    const layout: Layout[] = []
    const firsts: number[] = []
    operations.forEach((operation, i) => {
      firsts.push(layout.length)
      const at = `/operations/${i}`
      check(operation, at)
      if (atomicity === 'all') checkWhole(operation, at)
      layout.push(...toLayout(operation, at))
    })
    firsts.push(layout.length)
    const ran = await this.#run(set, Buffer.from(encodeBatch(layout, durability, atomicity).buffer), expected)
    const reply = decodeReply(ran.reply, layout)
    const outcome = toOutcome(reply, operations, firsts)
    if (ran.failed === undefined) return outcome
    const { operation, error } = ran.failed
    // Behind the last one: it was their flush.
    throw failedAt(told(error, reply, outcome.results), operation === layout.length ? undefined : firsts.findLastIndex((first) => first <= operation))
  }

  /** The same in the layout of openapi/batch.md, as is the reply. */
  async batchBinary (set: LiveSet, body: Buffer, expected: Expected): Promise<Buffer> {
    if (countOf(body) > this.#limits.batchOperations) throw exceeded('batchOperations', this.#limits.batchOperations)
    const ran = await this.#run(set, body, expected)
    if (ran.failed === undefined) return ran.reply
    const { operation, error } = ran.failed
    const layout = decodeBatch(body)
    const reply = decodeReply(ran.reply, layout)
    const operations = layout.map(({ op, expected = 0 }): BatchOperation => ({ op, expected: word(BigInt(expected)) }))
    const { results } = toOutcome(reply, operations, Array.from({ length: layout.length + 1 }, (_, i) => i))
    throw failedAt(told(error, reply, results), operation === layout.length ? undefined : operation)
  }

  async #run (set: LiveSet, body: Buffer, expected: Expected): Promise<Ran> {
    const { engine } = set.context
    const reply = Buffer.allocUnsafeSlow(this.#check(set, body))
    set.check(expected)
    const failed = await engine.batch(set.handle, body, reply)
    if (failed === undefined) return { reply }
    if (set.missing.length > 0) explain(set, body, failed)
    return { reply, failed }
  }

  /** The size of the reply. */
  #check (set: LiveSet, body: Buffer): number {
    const { batchResultBytes } = this.#limits
    let size: number
    try {
      size = set.context.engine.checkBatch(body)
    } catch (error) {
      throw error instanceof EngineError && error.reason === 'MALFORMED' ? malformed(error) : error
    }
    if (size > batchResultBytes) throw exceeded('batchResultBytes', batchResultBytes)
    return size
  }
}

/** What the engine found nothing at may be a part that is not mapped. */
function explain (set: LiveSet, body: Buffer, { operation, error }: NonNullable<Ran['failed']>): void {
  const one = decodeBatch(body)[operation]
  if (one === undefined) return
  const isCopy = one.op === 'memcpy' || one.op === 'memmove'
  set.explain(error, BigInt(one.addr), ...(isCopy ? [BigInt(one.argument ?? 0)] : []))
}

function malformed ({ value, size }: EngineError): ServiceError {
  const field = FIELDS[Number(size)] ?? ''
  if (field === '') return refuse('', 'is not a batch in the layout of openapi/batch.md')
  return refuse(`/operations/${value}/${field}`, 'is not what the operation may have there')
}

/** What was done before it failed. */
function told (error: EngineError, { bytes, durability }: BatchReply, results?: OperationResult[]): EngineError {
  if (results !== undefined || bytes > 0) Object.assign(error.extras, { written: bytes, durability, ...(results === undefined ? {} : { results }) })
  return error
}

function failedAt (error: EngineError, operation: number | undefined): EngineError {
  if (operation === undefined) return error
  error.extras.failedOperation = operation
  if (RANGE_CODES.has(error.codeName)) error.extras.errors = [{ in: 'body', pointer: `/operations/${operation}`, reason: 'is not inside one part map' }]
  return error
}

/** `firsts`: where each operation begins in the layout, and its end. */
function toOutcome ({ results, bytes, durability, granularity, persistence, simulated, done }: BatchReply, operations: readonly BatchOperation[], firsts: readonly number[]): BatchOutcome {
  const made = operations.filter((_, i) => (firsts[i + 1] ?? Infinity) <= done)
  return {
    results: made.map((operation, i) => toResult(operation, results[firsts[i] ?? 0] ?? {})),
    bytes,
    durability,
    granularity,
    persistence,
    ...(simulated ? { simulated } : {})
  }
}
