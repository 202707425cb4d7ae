// SPDX-License-Identifier: BSD-3-Clause
//
// A body on its way into memory. Its chunks are gathered by reference into pieces, and each piece is one call of the engine's on another thread, while the
// next is received. Behind the writer finished windows are flushed already, so that little is left to do when the body ends.
import { createHash, type Hash } from 'node:crypto'
import type { Readable } from 'node:stream'
import { MessageChannel } from 'node:worker_threads'
import type { Durability, Persistence, Written as EngineWritten } from '../engine/engine.js'
import { EngineError, hex, ServiceError } from '../errors.js'
import type { ByteRange, Written } from '../schemas.js'
import type { LiveSet } from './set.js'

/** Large enough that the call costs nothing beside its bytes. */
const PIECE_BYTES = 1024 * 1024
const PIECES_AT_A_TIME = 2
/** Never torn where it is aligned: no call ends within one before the last. */
const WORD_BYTES = 8n
/** What is flushed at a time behind the writer. */
const WINDOW_BYTES = 16 * 1024 * 1024

/** Weakest first: it speaks for a range. */
export const WEAKEST: readonly Persistence[] = ['volatile', 'unknown', 'host_dependent', 'persistent']

export const RANGE_CODES = new Set(['PMEMSET_E_CANNOT_FIND_PART_MAP', 'PMEMSET_E_LENGTH_OUT_OF_RANGE'])

export interface Digest {
  algorithm: 'sha256' | 'sha512'
  value: Buffer
}

/** What a write is to do. */
export interface Writing {
  start: bigint
  /** Undefined: as many bytes as come. */
  length: number | undefined
  durability: Durability
  /** Of the body. */
  digests?: readonly Digest[]
  /** For so many bytes, and what is to be said of more; where it is absent, to the end of the map. */
  room?: { bytes: number, refuse: () => ServiceError } | undefined
  /** So many bytes have to come. */
  exactly?: number
  /** Its chunks were made for it by a socket, and are nobody else's. */
  isReceived?: boolean
}

interface Piece {
  length: number
  /** Absent: it is being written. */
  written?: number
}

export function toWritten (set: LiveSet, ranges: readonly ByteRange[], { bytes, durability, granularity = set.granularity(), persistence, simulated }: EngineWritten): Written {
  return { ranges: [...ranges], bytes, durability, granularity, persistence, ...(simulated ? { simulated } : {}) }
}

function together (a: EngineWritten | undefined, b: EngineWritten): EngineWritten {
  if (a === undefined) return b
  const weaker = WEAKEST[Math.min(WEAKEST.indexOf(a.persistence), WEAKEST.indexOf(b.persistence))]
  return { ...b, persistence: weaker ?? 'unknown', simulated: a.simulated || b.simulated }
}

const { port1: nowhere } = new MessageChannel()
nowhere.close()

/**
 * Frees what was written. Node gives each chunk memory of its own, which V8 would keep until a full collection, and for some dozens of MiB of it makes one: that took
 * as long as all the rest of an upload. What is transferred to a port that is closed is free at once.
 */
function free (chunks: readonly Buffer[]): void {
  nowhere.postMessage(undefined, chunks.filter(({ buffer, byteLength }) => buffer.byteLength === byteLength).map(({ buffer }) => buffer as ArrayBuffer))
}

/** The last bytes, which are fewer than there are, copied: of what they were in, nothing is kept. */
function splitEnd (received: readonly Buffer[], left: number): { chunks: Buffer[], rest: Buffer[] } {
  const chunks = [...received]
  const rest: Buffer[] = []
  while (left > 0) {
    const last = chunks.pop()
    if (last === undefined) break
    const kept = Math.max(last.length - left, 0)
    if (kept > 0) chunks.push(last.subarray(0, kept))
    rest.unshift(Buffer.from(last.subarray(kept)))
    left -= last.length - kept
  }
  return { chunks, rest }
}

/** How much of it a write had done; of one call, of which the engine does not tell where its range is refused: nothing. */
function writtenAt (error: unknown, isOneCall: boolean): number {
  if (!(error instanceof EngineError) || (isOneCall && RANGE_CODES.has(error.codeName))) return 0
  // That is the one value that the engine tells, so the size of a file that was truncated is not known.
  error.extras.sourceSize = undefined
  return Number(error.value)
}

export class Upload {
  readonly #set: LiveSet
  readonly #writing: Writing
  readonly #hashes: Hash[]
  /** At page granularity: flushed later, all of it. Else a store flushes its lines itself. */
  readonly #isFlushedLater: boolean
  #chunks: Buffer[] = []
  #gathered = 0
  #received = 0
  /** In order, from the first that is not done. */
  readonly #pieces: Piece[] = []
  #running = 0
  /** Up to where everything was written. */
  #written = 0
  #isBroken = false
  #reached: EngineWritten | undefined
  #flushed = 0
  #flushing: Promise<void> | undefined
  #failure: unknown
  #wake = (): void => {}

  constructor (set: LiveSet, writing: Writing) {
    this.#set = set
    this.#writing = writing
    this.#hashes = (writing.digests ?? []).map(({ algorithm }) => createHash(algorithm))
    this.#isFlushedLater = set.granularity() === 'page' || writing.durability === 'deep'
  }

  async take (body: Readable): Promise<Written> {
    try {
      await this.#receive(body)
      return await this.#finish()
    } catch (error) {
      this.#failure ??= error
      // What still runs belongs to what was written.
      await this.#settle()
      throw this.#explain(this.#failure)
    }
  }

  /** To the end of the body or the first failure. */
  #receive (body: Readable): Promise<void> {
    return new Promise((resolve, reject) => {
      const stop = (): void => {
        body.off('data', take)
        body.off('end', end)
        body.off('error', cut)
        body.off('aborted', cut)
        body.off('close', cut)
        this.#wake = () => {}
      }
      const fail = (error: unknown): void => {
        stop()
        body.pause()
        body.on('error', () => {}) // of a client that goes now: nobody is interested any more
        reject(error instanceof Error ? error : new Error(String(error)))
      }
      const take = (chunk: Buffer): void => {
        try {
          this.#take(chunk)
        } catch (error) {
          fail(error)
          return
        }
        if (this.#isFull()) body.pause()
      }
      const end = (): void => {
        stop()
        resolve()
      }
      const cut = (): void => { fail(new ServiceError('REQUEST_INVALID', 'The body ended early.')) }
      this.#wake = () => {
        if (this.#failure !== undefined) fail(this.#failure)
        else if (!this.#isFull() && body.isPaused()) body.resume()
      }
      if (body.destroyed) {
        cut()
        return
      }
      body.on('data', take)
      body.once('end', end)
      body.once('error', cut)
      body.once('aborted', cut)
      body.once('close', cut)
    })
  }

  #isFull (): boolean {
    return this.#gathered >= PIECE_BYTES
  }

  #take (chunk: Buffer): void {
    const { room, exactly = Infinity } = this.#writing
    this.#received += chunk.length
    if (this.#received > exactly) throw new ServiceError('REQUEST_INVALID', 'The body has more bytes than its Content-Range.')
    if (room !== undefined && this.#received > room.bytes) throw room.refuse()
    this.#gathered += chunk.length
    this.#chunks.push(chunk)
    for (const hash of this.#hashes) hash.update(chunk)
    if (this.#isFull() && this.#running < PIECES_AT_A_TIME) this.#writePiece()
  }

  /** The end of a word is left for the next piece, unless there is none. */
  #writePiece (isLast = false): void {
    if (this.#gathered === 0) return
    const { start, isReceived } = this.#writing
    const addr = start + BigInt(this.#received - this.#gathered)
    const received = this.#chunks
    const left = isLast ? 0 : Number((start + BigInt(this.#received)) % WORD_BYTES)
    const { chunks, rest } = left === 0 ? { chunks: received, rest: [] } : splitEnd(received, left)
    const piece: Piece = { length: this.#gathered - left }
    this.#chunks = rest
    this.#gathered = left
    this.#pieces.push(piece)
    this.#running++
    const durability = this.#isFlushedLater ? 'none' : this.#writing.durability
    this.#set.context.engine.writePieces(this.#set.handle, addr, chunks, durability).then((reached) => {
      this.#reached = together(this.#reached, reached)
      this.#pieceDone(piece, piece.length)
      if (isReceived === true) free(received)
    }, (error: unknown) => {
      this.#fail(error)
      this.#pieceDone(piece, writtenAt(error, false))
    })
  }

  #pieceDone (piece: Piece, written: number): void {
    piece.written = written
    this.#running--
    for (let first = this.#pieces[0]; first?.written !== undefined; first = this.#pieces[0]) {
      // Behind a gap nothing counts.
      if (!this.#isBroken) this.#written += first.written
      this.#isBroken ||= first.written < first.length
      this.#pieces.shift()
    }
    if (this.#isFull() && this.#failure === undefined) this.#writePiece()
    this.#flushWindow()
    this.#wake()
  }

  #fail (error: unknown): void {
    this.#failure ??= error
  }

  /** One at a time: what is finished meanwhile is the next. */
  #flushWindow (): void {
    const { start, durability } = this.#writing
    if (durability === 'none' || !this.#isFlushedLater || this.#flushing !== undefined || this.#failure !== undefined) return
    const from = this.#flushed
    if (this.#written - from < WINDOW_BYTES) return
    this.#flushed = this.#written
    this.#flushing = this.#set.context.engine.persist(this.#set.handle, [{ addr: start + BigInt(from), length: this.#flushed - from }], 'persisted')
      .then(() => {}, (error: unknown) => { this.#fail(error) })
      .finally(() => {
        this.#flushing = undefined
        this.#flushWindow()
        this.#wake()
      })
  }

  /** Until nothing runs any more. */
  async #settle (): Promise<void> {
    while (this.#running > 0) {
      await new Promise<void>((resolve) => { this.#wake = resolve })
    }
    while (this.#flushing !== undefined) await this.#flushing
  }

  async #finish (): Promise<Written> {
    const { exactly, start, durability } = this.#writing
    if (exactly !== undefined && this.#received < exactly) throw new ServiceError('REQUEST_INVALID', 'The body has fewer bytes than its Content-Range.')
    const isWhole = this.#received === this.#gathered
    const reached = isWhole ? await this.#writeWhole() : await this.#writeRest()
    return toWritten(this.#set, [{ addr: hex(start), length: this.#received }], { ...reached, durability: durability === 'flushed' ? 'persisted' : durability, bytes: this.#received })
  }

  /** What is small enough is one call, its flush included; and a digest is checked before it. */
  async #writeWhole (): Promise<EngineWritten> {
    this.#checkDigests()
    const bytes = this.#chunks.length === 1 && this.#chunks[0] !== undefined ? this.#chunks[0] : Buffer.concat(this.#chunks, this.#gathered)
    this.#chunks = []
    this.#gathered = 0
    try {
      return await this.#set.write(this.#writing.start, bytes, this.#writing.durability)
    } catch (error) {
      this.#written = writtenAt(error, true)
      throw error
    }
  }

  async #writeRest (): Promise<EngineWritten> {
    const { start, durability } = this.#writing
    this.#writePiece(true)
    await this.#settle()
    if (this.#failure !== undefined) throw this.#failure as Error
    this.#checkDigests()
    const reached = this.#reached
    if (reached === undefined) throw new Error('nothing was written')
    if (durability === 'none' || !this.#isFlushedLater) return reached
    // All of it: what the windows have flushed is clean, and costs nothing again.
    return together(reached, await this.#set.context.engine.persist(this.#set.handle, [{ addr: start, length: this.#received }], durability))
  }

  #checkDigests (): void {
    this.#writing.digests?.forEach(({ algorithm, value }, i) => {
      if (this.#hashes[i]?.digest().equals(value) === false) throw new ServiceError('DIGEST_MISMATCH', 'The body is not the one that Content-Digest tells of.', { algorithm: algorithm.replace('sha', 'sha-') })
    })
  }

  /** Tells how much was written; none of it is known to be durable. */
  #explain (error: unknown): unknown {
    if (!(error instanceof EngineError || error instanceof ServiceError)) return error
    Object.assign(error.extras, { written: this.#written, durability: 'none' })
    return error
  }
}
