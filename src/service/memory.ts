// SPDX-License-Identifier: BSD-3-Clause
//
// Bytes of a set: read, write, make durable. Mapped memory is touched by the engine alone, under its guard, or by the kernel for it; JavaScript never reads it.
import type { Readable } from 'node:stream'
import type { Durability, Granularity, Persistence } from '../engine/engine.js'
import { EngineError, hex, ServiceError } from '../errors.js'
import type { ByteRange, Written } from '../schemas.js'
import { Download } from './download.js'
import { exceeded, SMALL_WRITE_BYTES_MAX, type Expected, type LiveSet } from './set.js'
import { RANGE_CODES, toWritten, Upload, WEAKEST, type Writing } from './upload.js'

/**
 * Below this a read is copied, on the event loop where its pages are in memory; from it on the kernel copies, from the mapping to the socket. That takes two
 * writes to the socket in place of one: at 64 KiB a copy is cheaper by a fifth, at 128 KiB they are equal, at 256 KiB the mapping is cheaper by a quarter.
 */
const MAPPED_BYTES_MIN = 128 * 1024

export interface Reading {
  granularity: Granularity
  persistence: Persistence
  length: number
  bytes: Buffer | Download
}

function persistenceOf (set: LiveSet, addr: bigint, length: number): Persistence {
  const { engine } = set.context
  let weakest = WEAKEST.length - 1
  // Addresses of user space are exact as numbers, and most ranges are in one part.
  for (let from = Number(addr), end = from + Math.max(length, 1); from < end;) {
    const found = engine.find(set.handle, BigInt(from))
    if (found === undefined) break
    weakest = Math.min(weakest, WEAKEST.indexOf(set.partOf(found.cookie)?.record?.persistence ?? 'unknown'))
    from = found.addr + found.length
  }
  return WEAKEST[weakest] ?? 'unknown'
}

function toReading (set: LiveSet, start: bigint, bytes: Reading['bytes'], length: number): Reading {
  return { granularity: set.granularity(), persistence: persistenceOf(set, start, length), length, bytes }
}

/** From the address to the end of its map, which is held. */
function roomAt (set: LiveSet, start: bigint): Writing['room'] {
  const map = set.context.engine.lookup(set.handle, start)
  if (map === undefined) return undefined
  const { mapAddr, mapSize } = map
  return {
    bytes: Number(mapAddr - start) + mapSize,
    refuse: () => new ServiceError('PMEMSET_E_LENGTH_OUT_OF_RANGE', 'The body leaves the part map where it starts.', { map: { addr: hex(mapAddr), size: mapSize } })
  }
}

/** Reads and uploads that hold a map over many pieces: as many as the limit at a time. */
export class Streams {
  readonly #max: number
  #count = 0

  constructor (max: number) {
    this.#max = max
  }

  /** Takes one; the function gives it back, once however often it is called. */
  open (): () => void {
    if (this.#count >= this.#max) throw new ServiceError('BUSY', `There are ${this.#max} streams of bytes, as many as there may be.`, { limit: 'streams', max: this.#max })
    this.#count++
    let isOpen = true
    return () => {
      if (isOpen) this.#count--
      isOpen = false
    }
  }
}

export class Memory {
  readonly #streams: Streams

  constructor (streams: Streams) {
    this.#streams = streams
  }

  /** The reply to a read, of which nothing is read. */
  describe (set: LiveSet, start: bigint, length: number): Reading {
    return toReading(set, start, Buffer.alloc(0), length)
  }

  /** What can refuse it does so here, so that nothing is answered before it is known that there is an answer. At once where nothing has to be waited for. */
  read (set: LiveSet, start: bigint, length: number): Reading | Promise<Reading> {
    if (length >= MAPPED_BYTES_MIN) return this.#download(set, start, length)
    const { engine } = set.context
    const bytes = Buffer.allocUnsafe(length)
    try {
      if (engine.readNow(set.handle, start, bytes)) return toReading(set, start, bytes, length)
    } catch (error) {
      throw set.explain(error, start)
    }
    return engine.read(set.handle, start, bytes).then(() => toReading(set, start, bytes, length))
  }

  #download (set: LiveSet, start: bigint, length: number): Reading | Promise<Reading> {
    const download = new Download(set, start, length, this.#hold(set, start, length))
    const fail = (error: unknown): never => {
      download.release()
      throw error
    }
    try {
      const reading = toReading(set, start, download, length)
      return download.begin()?.then(() => reading, fail) ?? reading
    } catch (error) {
      return fail(error)
    }
  }

  /** Checks the range and keeps its map from removal; as one of the streams, unless it is over in a moment. */
  #hold (set: LiveSet, start: bigint, length: number, isStream = true): () => void {
    const { engine } = set.context
    const close = isStream ? this.#streams.open() : () => {}
    try {
      const pin = engine.pin(set.handle, start, length)
      let isHeld = true
      return () => {
        if (isHeld) engine.unpin(pin)
        isHeld = false
        close()
      }
    } catch (error) {
      close()
      throw set.explain(error, start)
    }
  }

  /** Begins a write: every check that can be made before the first byte. What it returns takes the bytes, and has to be called. */
  beginWrite (set: LiveSet, writing: Writing, expected: Expected): (body: Readable) => Promise<Written> {
    set.check(expected)
    const { start, length } = writing
    const release = this.#hold(set, start, length ?? 0, length === undefined || length > SMALL_WRITE_BYTES_MAX)
    return async (body) => {
      try {
        return await new Upload(set, { room: roomAt(set, writing.start), ...writing }).take(body)
      } finally {
        release()
      }
    }
  }

  async persist (set: LiveSet, ranges: readonly ByteRange[], durability: Exclude<Durability, 'none'>, expected: Expected): Promise<Written> {
    const { engine, limits } = set.context
    set.check(expected)
    if (ranges.length > limits.ranges) throw exceeded('ranges', limits.ranges)
    ranges.forEach(({ addr, length }, i) => {
      try {
        engine.unpin(engine.pin(set.handle, BigInt(addr), length))
      } catch (error) {
        if (error instanceof EngineError && RANGE_CODES.has(error.codeName)) error.extras.errors = [{ in: 'body', pointer: `/ranges/${i}`, reason: 'is not inside one part map' }]
        throw set.explain(error, BigInt(addr))
      }
    })
    const bytes = ranges.reduce((sum, { length }) => sum + length, 0)
    return toWritten(set, ranges, { ...await engine.persist(set.handle, disjoint(ranges), durability), bytes })
  }

  drain (set: LiveSet, expected: Expected): Written {
    set.check(expected)
    return toWritten(set, [], set.context.engine.drain(set.handle))
  }
}

/** The same bytes, each once: a thousand times the same large range must not cost a thousand flushes of it. */
function disjoint (ranges: readonly ByteRange[]): Array<{ addr: bigint, length: number }> {
  const sorted = ranges.map(({ addr, length }) => ({ addr: BigInt(addr), length })).sort((a, b) => (a.addr < b.addr ? -1 : a.addr > b.addr ? 1 : 0))
  let end = 0n
  return sorted.flatMap(({ addr, length }, i) => {
    const from = addr > end ? addr : end
    const to = addr + BigInt(length)
    // One range at the least, of no bytes if need be: it tells the medium.
    if (from >= to && i > 0) return []
    end = to > end ? to : end
    return [{ addr: from, length: Number(to > from ? to - from : 0n) }]
  })
}
