// SPDX-License-Identifier: BSD-3-Clause
//
// The layout of batches, as openapi/batch.md describes it byte by byte: the reference encoder and decoder. It imports nothing, so that a client may take
// this file as it is.

/** In the order of their numbers, the first of which is 1. */
export const OPS = ['read', 'write', 'memset', 'memcpy', 'memmove', 'persist', 'flush', 'compare_exchange', 'exchange', 'add', 'and', 'or', 'xor'] as const
export const ATOMIC_OPS = ['compare_exchange', 'exchange', 'add', 'and', 'or', 'xor'] as const
export const HINTS = ['none', 'temporal', 'nontemporal', 'wc', 'wb'] as const
const DURABILITIES = ['none', 'flushed', 'persisted', 'deep'] as const
export const ATOMICITIES = ['none', 'all'] as const
const GRANULARITIES = ['byte', 'cache_line', 'page'] as const
const PERSISTENCES = ['unknown', 'persistent', 'host_dependent', 'volatile'] as const
/** The members of an operation, in the order of the engine's numbers for them; the first stands for the whole body. */
export const FIELDS = ['', 'op', 'hint', 'flags', 'reserved', 'addr', 'length', 'argument', 'expected'] as const

export type Op = typeof OPS[number]

/** Addresses and words: a bigint, a number that is exact, or a string such as "0x10". */
export type Word = bigint | number | string

export interface BatchOperation {
  op: Op
  addr: Word
  /** Of a read, a memset, a copy, a range of persist or flush. */
  length?: number
  /** Of a write. */
  data?: Uint8Array
  /** A copy's source, the byte of a memset, the value of an atomic. */
  argument?: Word
  /** Of compare_exchange. */
  expected?: Word
  hint?: typeof HINTS[number]
  /** Of a memset to 0: its space is given back and allocated anew. */
  punch?: boolean
}

export interface BatchResult {
  /** Of a read: a view of the reply. */
  data?: Uint8Array
  /** Of an atomic. */
  previous?: bigint
  current?: bigint
}

export interface BatchReply {
  durability: typeof DURABILITIES[number]
  granularity: typeof GRANULARITIES[number]
  persistence: typeof PERSISTENCES[number]
  simulated: boolean
  /** Operations that were made. */
  done: number
  /** Bytes that were stored. */
  bytes: number
  results: BatchResult[]
}

const MAGIC = 0x42534d50
const REPLY_MAGIC = 0x52534d50
const VERSION = 1
const HEADER_SIZE = 16
const OPERATION_SIZE = 40
const REPLY_SIZE = 32
const WORD_SIZE = 8
const PUNCH = 1
const FIRST_ATOMIC = OPS.indexOf('compare_exchange')

export const isAtomic = (op: Op): boolean => OPS.indexOf(op) >= FIRST_ATOMIC

function lengthOf ({ op, length = 0, data }: BatchOperation): number {
  return isAtomic(op) ? WORD_SIZE : data?.length ?? length
}

/** The body of POST /sets/{set}/batch/binary. */
export function encodeBatch (operations: readonly BatchOperation[], durability: typeof DURABILITIES[number] = 'persisted', atomicity: typeof ATOMICITIES[number] = 'none'): Uint8Array {
  const data = operations.reduce((sum, one) => sum + (one.data?.length ?? 0), 0)
  const body = new Uint8Array(HEADER_SIZE + operations.length * OPERATION_SIZE + data)
  const view = new DataView(body.buffer)
  view.setUint32(0, MAGIC, true)
  view.setUint16(4, VERSION, true)
  view.setUint8(6, DURABILITIES.indexOf(durability))
  view.setUint8(7, ATOMICITIES.indexOf(atomicity))
  view.setUint32(8, operations.length, true)
  let at = HEADER_SIZE
  let behind = HEADER_SIZE + operations.length * OPERATION_SIZE
  for (const operation of operations) {
    const { op, addr, argument = 0, expected = 0, hint = 'none', punch = false } = operation
    view.setUint8(at, OPS.indexOf(op) + 1)
    view.setUint8(at + 1, HINTS.indexOf(hint))
    view.setUint16(at + 2, punch ? PUNCH : 0, true)
    view.setBigUint64(at + 8, BigInt(addr), true)
    view.setBigUint64(at + 16, BigInt(lengthOf(operation)), true)
    view.setBigUint64(at + 24, BigInt(argument), true)
    view.setBigUint64(at + 32, BigInt(expected), true)
    if (operation.data !== undefined) {
      body.set(operation.data, behind)
      behind += operation.data.length
    }
    at += OPERATION_SIZE
  }
  return body
}

/** The operations of a body that is of this layout; the data of writes are views of it. */
export function decodeBatch (body: Uint8Array): BatchOperation[] {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength)
  const count = countOf(body)
  let behind = HEADER_SIZE + count * OPERATION_SIZE
  return Array.from({ length: count }, (_, i): BatchOperation => {
    const at = HEADER_SIZE + i * OPERATION_SIZE
    const op = OPS[view.getUint8(at) - 1]
    if (op === undefined) throw new Error(`operation ${i} is not one that there is`)
    const length = Number(view.getBigUint64(at + 16, true))
    const data = op === 'write' ? body.subarray(behind, behind += length) : undefined
    return {
      op,
      addr: view.getBigUint64(at + 8, true),
      ...(data === undefined ? { length } : { data }),
      argument: view.getBigUint64(at + 24, true),
      expected: view.getBigUint64(at + 32, true),
      hint: HINTS[view.getUint8(at + 1)] ?? 'none',
      punch: view.getUint16(at + 2, true) === PUNCH
    }
  })
}

/** The reply to a batch; the results are those of the operations that were made. */
export function decodeReply (reply: Uint8Array, operations: readonly BatchOperation[]): BatchReply {
  const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength)
  if (reply.length < REPLY_SIZE || view.getUint32(0, true) !== REPLY_MAGIC || view.getUint16(4, true) !== VERSION) throw new Error('not the reply to a batch')
  const done = view.getUint32(12, true)
  const results: BatchResult[] = []
  let at = REPLY_SIZE
  for (const operation of operations.slice(0, done)) {
    if (operation.op === 'read') {
      const length = lengthOf(operation)
      results.push({ data: reply.subarray(at, at + length) })
      at += length
    } else if (isAtomic(operation.op)) {
      results.push({ previous: view.getBigUint64(at, true), current: view.getBigUint64(at + WORD_SIZE, true) })
      at += 2 * WORD_SIZE
    } else {
      results.push({})
    }
  }
  return {
    durability: DURABILITIES[view.getUint8(6)] ?? 'none',
    granularity: GRANULARITIES[view.getUint8(7)] ?? 'page',
    persistence: PERSISTENCES[view.getUint8(8)] ?? 'unknown',
    simulated: view.getUint8(9) !== 0,
    done,
    bytes: Number(view.getBigUint64(16, true)),
    results
  }
}

/** How many operations the header tells of; 0 where there is no header. */
export function countOf (body: Uint8Array): number {
  return body.length < HEADER_SIZE ? 0 : new DataView(body.buffer, body.byteOffset).getUint32(8, true)
}
