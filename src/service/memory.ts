// SPDX-License-Identifier: BSD-3-Clause
//
// Bytes of a set: read, write, make durable. Mapped memory is touched by the engine alone, under its guard; here bytes are copies.
import type { Durability, Granularity, Persistence, Written as EngineWritten } from '../engine/engine.js'
import { EngineError, hex, ServiceError } from '../errors.js'
import type { ByteRange, Written } from '../schemas.js'
import { exceeded, type Expected, type LiveSet } from './set.js'

/** As the engine copies: a piece that faults is lost whole, and a larger one keeps the event loop's thread pool from others. */
const PIECE_BYTES = 1024 * 1024
/** Up to this a read is answered on the event loop where its pages are in memory: 64 KiB are copied in a few microseconds. */
const AT_ONCE_BYTES = 64 * 1024
const PARTS_AT_A_TIME = 1000

/** Weakest first: it speaks for a range. */
const WEAKEST: readonly Persistence[] = ['volatile', 'unknown', 'host_dependent', 'persistent']

export interface Reading {
  granularity: Granularity
  persistence: Persistence
  length: number
  /** All bytes, or pieces in order. */
  bytes: Buffer | Pieces
}

export interface Pieces {
  pieces: AsyncGenerator<Buffer, undefined>
  /** To be called when the pieces were taken or are not wanted any more: until then the map cannot be removed. More than once does no harm. */
  release: () => void
}

function persistenceOf (set: LiveSet, addr: bigint, length: number): Persistence {
  const { engine } = set.context
  const end = addr + BigInt(Math.max(length, 1))
  let weakest = WEAKEST.length - 1
  for (let from = addr; from < end;) {
    const rows = engine.parts(set.handle, from, end, PARTS_AT_A_TIME)
    for (const { cookie } of rows) weakest = Math.min(weakest, WEAKEST.indexOf(set.partOf(cookie)?.mapped?.persistence ?? 'unknown'))
    const last = rows.at(-1)
    if (last === undefined) break
    from = last.addr + BigInt(last.length)
  }
  return WEAKEST[weakest] ?? 'unknown'
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

  async read (set: LiveSet, { addr, length }: ByteRange): Promise<Reading> {
    const start = BigInt(addr)
    const bytes = length <= AT_ONCE_BYTES ? await this.#readAll(set, start, length) : await this.#readPieces(set, start, length)
    return { granularity: set.granularity(), persistence: persistenceOf(set, start, length), length, bytes }
  }

  async #readAll (set: LiveSet, start: bigint, length: number): Promise<Buffer> {
    const { engine } = set.context
    const buffer = Buffer.allocUnsafe(length)
    if (!engine.readNow(set.handle, start, buffer)) await engine.read(set.handle, start, buffer)
    return buffer
  }

  /** The first piece is read before anything is answered, so that a range that cannot be read is refused as any other. */
  async #readPieces (set: LiveSet, start: bigint, length: number): Promise<Pieces> {
    const release = this.#hold(set, start, length)
    try {
      const first = await this.#readPiece(set, start, length)
      return { pieces: this.#pieces(set, start, length, first), release }
    } catch (error) {
      release()
      throw error
    }
  }

  async #readPiece (set: LiveSet, start: bigint, length: number): Promise<Buffer> {
    const buffer = Buffer.allocUnsafeSlow(Math.min(length, PIECE_BYTES))
    await set.context.engine.read(set.handle, start, buffer)
    return buffer
  }

  async * #pieces (set: LiveSet, start: bigint, length: number, first: Buffer): AsyncGenerator<Buffer, undefined> {
    yield first
    for (let done = first.length; done < length;) {
      const piece = await this.#readPiece(set, start + BigInt(done), length - done)
      done += piece.length
      yield piece
    }
  }

  /** Checks the range and keeps its map from removal, as one of the streams. */
  #hold (set: LiveSet, start: bigint, length: number): () => void {
    const { engine } = set.context
    const close = this.#streams.open()
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
      throw error
    }
  }

  /**
   * Begins a write of `length` bytes at `addr` (undefined: as many as come): every check that can be made before the first byte. What it returns takes
   * the bytes, and has to be called.
   */
  beginWrite (set: LiveSet, addr: string, length: number | undefined, durability: Durability, expected: Expected): (body: AsyncIterable<Buffer>) => Promise<Written> {
    set.check(expected)
    const start = BigInt(addr)
    const release = this.#hold(set, start, length ?? 0)
    return async (body) => {
      const upload = new Upload(set, start, durability)
      try {
        for await (const chunk of body) await upload.take(chunk)
        return await upload.finish()
      } catch (error) {
        throw upload.explain(error)
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
        throw error
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

const RANGE_CODES = new Set(['PMEMSET_E_CANNOT_FIND_PART_MAP', 'PMEMSET_E_LENGTH_OUT_OF_RANGE'])

function toWritten (set: LiveSet, ranges: readonly ByteRange[], { bytes, durability, granularity = set.granularity(), persistence, simulated }: EngineWritten): Written {
  return { ranges: [...ranges], bytes, durability, granularity, persistence, ...(simulated ? { simulated } : {}) }
}

/** A body on its way into memory: gathered into pieces, so that the engine is called for each mebibyte and not for each packet. */
class Upload {
  readonly #set: LiveSet
  readonly #start: bigint
  readonly #durability: Durability
  #chunks: Buffer[] = []
  #gathered = 0
  #written = 0

  constructor (set: LiveSet, start: bigint, durability: Durability) {
    this.#set = set
    this.#start = start
    this.#durability = durability
  }

  async take (chunk: Buffer): Promise<void> {
    this.#chunks.push(chunk)
    this.#gathered += chunk.length
    if (this.#gathered >= PIECE_BYTES) await this.#write('none')
  }

  async finish (): Promise<Written> {
    const { engine } = this.#set.context
    const isWhole = this.#written === 0
    const last = await this.#write(isWhole ? this.#durability : 'none')
    const range = { addr: this.#start, length: this.#written }
    const reached = isWhole || this.#durability === 'none' ? last : await engine.persist(this.#set.handle, [range], this.#durability)
    return toWritten(this.#set, [{ addr: hex(this.#start), length: this.#written }], { ...reached, bytes: this.#written })
  }

  async #write (durability: Durability): Promise<EngineWritten> {
    const bytes = this.#chunks.length === 1 && this.#chunks[0] !== undefined ? this.#chunks[0] : Buffer.concat(this.#chunks, this.#gathered)
    this.#chunks = []
    this.#gathered = 0
    try {
      const done = await this.#set.context.engine.write(this.#set.handle, this.#start + BigInt(this.#written), bytes, durability)
      this.#written += done.bytes
      return done
    } catch (error) {
      if (error instanceof EngineError && !RANGE_CODES.has(error.codeName)) {
        this.#written += Number(error.value)
        // Of a write, the one value is what was written, so the size of a file that was truncated is not known.
        error.extras.sourceSize = undefined
      }
      throw error
    }
  }

  /** Tells how much was written; none of it is known to be durable. */
  explain (error: unknown): unknown {
    const reached = { written: this.#written, durability: 'none' }
    if (error instanceof EngineError || error instanceof ServiceError) {
      Object.assign(error.extras, reached)
      return error
    }
    return (error as NodeJS.ErrnoException).code === 'ECONNRESET' ? new ServiceError('REQUEST_INVALID', 'The body ended early.', reached) : error
  }
}
