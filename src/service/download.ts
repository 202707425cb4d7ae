// SPDX-License-Identifier: BSD-3-Clause
//
// Bytes on their way out of a map, not copied: slices of the mapping itself, which only the kernel is to read. A slice is in memory before it is given, so
// that the kernel waits for no disk on the event loop. The last bytes are a copy: a file that was cut within its last page gives zeros and faults nobody, so
// sizes are looked at again once a slice was taken, and the reply must not be whole by then.
import type { Engine } from '../engine/engine.js'
import type { LiveSet } from './set.js'

/** Slices end on a multiple of it: so large that a turn of the loop costs nothing beside one, so small that the others get theirs. */
const SLICE_BYTES = 4 * 1024 * 1024
const TAIL_BYTES = 4096

export class Download {
  readonly #set: LiveSet
  readonly #engine: Engine
  readonly #end: bigint
  readonly #letGo: () => void
  /** Of the slice that was given last. */
  #addr: bigint
  #length = 0
  #ready: Promise<void> | undefined

  /** `letGo` lets the map go, which is held. */
  constructor (set: LiveSet, start: bigint, length: number, letGo: () => void) {
    this.#set = set
    this.#engine = set.context.engine
    this.#addr = start
    this.#end = start + BigInt(length)
    this.#letGo = letGo
  }

  /** Throws what a read of the first slice would, or of a file that is too short for any of the bytes. */
  begin (): Promise<void> | undefined {
    this.#engine.checkSize(this.#set.handle, this.#addr, Number(this.#end - this.#addr))
    return this.#prepare(this.#addr)
  }

  /** Whether what `next` gave was all. */
  get isLast (): boolean {
    return this.#addr + BigInt(this.#length) === this.#end
  }

  /** Gets the slice behind the one that was given last ready, beside whatever goes on; `next` tells how it went. */
  prepare (): void {
    const ready = this.#prepare(this.#addr + BigInt(this.#length))
    ready?.catch(() => {})
    this.#ready = ready
  }

  /** The next bytes. After those before were taken, and `check` was called. */
  async next (): Promise<Buffer> {
    await this.#ready
    this.#addr += BigInt(this.#length)
    this.#length = this.#lengthFrom(this.#addr)
    if (!this.isLast) return this.#engine.view(this.#addr, this.#length)
    const tail = Buffer.allocUnsafe(this.#length)
    if (!this.#engine.readNow(this.#set.handle, this.#addr, tail)) await this.#engine.read(this.#set.handle, this.#addr, tail)
    return tail
  }

  /** Throws where the bytes that were given last are not those of the files any more. */
  check (): void {
    this.#engine.checkSize(this.#set.handle, this.#addr, this.#length)
  }

  /** Lets the map go. More than once does no harm. */
  release (): void {
    this.#letGo()
  }

  #lengthFrom (addr: bigint): number {
    const left = Number(this.#end - addr)
    return left <= TAIL_BYTES ? left : Math.min(left - TAIL_BYTES, SLICE_BYTES - Number(addr % BigInt(SLICE_BYTES)))
  }

  #prepare (addr: bigint): Promise<void> | undefined {
    const length = this.#lengthFrom(addr)
    return this.#engine.isResident(this.#set.handle, addr, length) ? undefined : this.#engine.load(this.#set.handle, addr, length)
  }
}
