// SPDX-License-Identifier: BSD-3-Clause
//
// What one client of the torture knows: its set, the parts of it, and the bytes of its files, as the replies that it got told them; and the one thing that it
// had asked for and got no reply to, which is there whole or not at all, but for plain stores, of which each aligned word is.
import { isDeepStrictEqual } from 'node:util'

export const PAGE = 4096
const WORD = 8

export interface PartState {
  id: string
  path: string
  offset: number
  length: number
  /** Undefined: the reply that would have told it was lost. */
  addr: bigint | undefined
  coalesced: boolean | undefined
  /** Of its creation. */
  order: number
}

export interface SetState {
  coalescing: string
  labels: Record<string, string>
  revision: number
  parts: PartState[]
}

/** Bytes that a request stores in a file. */
export interface Store {
  path: string
  offset: number
  bytes: Buffer
}

export interface Change {
  /** For who reads of a failure. */
  what: string
  /** The set after it; absent: it does not change the set. */
  set?: (before: SetState | undefined) => SetState | undefined
  stores?: Store[]
  /** All of the stores or none. */
  isAtomic?: boolean
  /** A file that it makes, of that size, or makes longer. */
  file?: { path: string, size: number }
}

/** A part map as the service lists it, in numbers. */
export interface MapRow { addr: bigint, size: bigint, parts: number }

/** Which maps there are: a part belongs to the map before it where it was appended, which only ever happens to a part that is older. */
export function mapsOf (parts: readonly PartState[]): MapRow[] {
  const rows: MapRow[] = []
  let before: PartState | undefined
  for (const part of [...parts].sort((a, b) => Number((a.addr ?? 0n) - (b.addr ?? 0n)))) {
    const addr = part.addr ?? 0n
    const last = rows.at(-1)
    if (last !== undefined && before !== undefined && part.coalesced === true && last.addr + last.size === addr && before.order < part.order) {
      last.size += BigInt(part.length)
      last.parts++
    } else {
      rows.push({ addr, size: BigInt(part.length), parts: 1 })
    }
    before = part
  }
  return rows
}

/** What the service says of a set, in the terms of the model. */
export interface Seen {
  coalescing: string
  labels: Record<string, string>
  revision: number
  parts: Array<Omit<PartState, 'order'>>
}

function isSame (expected: SetState | undefined, seen: Seen | undefined): boolean {
  if (expected === undefined || seen === undefined) return expected === undefined && seen === undefined
  const told = new Map(seen.parts.map((part) => [part.id, part]))
  return expected.coalescing === seen.coalescing && isDeepStrictEqual(expected.labels, seen.labels) && expected.revision <= seen.revision &&
    told.size === expected.parts.length && expected.parts.every(({ id, path, offset, length, addr, coalesced }) => {
    const part = told.get(id)
    return part?.path === path && part.offset === offset && part.length === length && (addr === undefined || part.addr === addr) && (coalesced === undefined || part.coalesced === coalesced)
  })
}

function show (value: unknown): string {
  return JSON.stringify(value, (_, one: unknown) => (typeof one === 'bigint' ? `0x${one.toString(16)}` : one))
}

export class Model {
  set: SetState | undefined
  readonly files = new Map<string, Buffer>()
  /** Asked for, without a reply. */
  pending: Change | undefined
  #made = 0

  nextOrder (): number {
    return ++this.#made
  }

  /** It was acknowledged. */
  apply ({ set, stores = [], file }: Change): void {
    if (set !== undefined) this.set = set(this.set)
    if (file !== undefined) this.#extend(file.path, file.size)
    for (const { path, offset, bytes } of stores) bytes.copy(this.files.get(path) ?? Buffer.alloc(0), offset)
    this.pending = undefined
  }

  #extend (path: string, size: number): void {
    const before = this.files.get(path) ?? Buffer.alloc(0)
    if (before.length < size) this.files.set(path, Buffer.concat([before, Buffer.alloc(size - before.length)]))
  }

  /** The service has been killed and started again, and says this of the set: it is what was, or, of what had no reply, what would have been. True: the latter. */
  settleSet (seen: Seen | undefined): boolean {
    const { pending, set: before } = this
    const after = pending?.set === undefined ? before : pending.set(before)
    const isOld = isSame(before, seen)
    const isNew = pending?.set !== undefined && isSame(after, seen)
    if (!isOld && !isNew) throw new Error(`the set is neither as it was nor as it would have been\n  was:  ${show(before)}\n  then: ${show(after)} (${pending?.what ?? 'nothing was under way'})\n  is:   ${show(seen)}`)
    // Where both fit, what was asked for makes no difference.
    const was = isNew ? after : before
    this.set = was === undefined || seen === undefined ? undefined : { ...was, revision: seen.revision, parts: was.parts.map((part) => ({ ...part, ...seen.parts.find(({ id }) => id === part.id) })) }
    return isNew
  }

  /** What the files have: all that was acknowledged, and of what was not, aligned words. `wasMade`: what would have made a file was. */
  settleFiles (names: readonly string[], read: (path: string) => Buffer, wasMade: boolean): void {
    const { pending } = this
    const made = pending?.file
    for (const name of names) {
      if (this.files.has(name) || (name === made?.path && wasMade)) continue
      throw new Error(`${name} is there, which no acknowledged request has made (${pending?.what ?? 'nothing was under way'}${pending?.set === undefined ? '' : wasMade ? ', done' : ', not done'})`)
    }
    if (made !== undefined && wasMade) this.#extend(made.path, made.size)
    const stores = pending?.stores ?? []
    const changed = new Set<boolean>()
    for (const [path, known] of this.files) {
      const now = read(path)
      // What was to grow for something that was not done may have done so.
      const before = path === made?.path && now.length > known.length ? Buffer.concat([known, Buffer.alloc(now.length - known.length)]) : known
      if (now.length !== before.length) throw new Error(`${path} has ${now.length} bytes, not ${before.length}`)
      const here = stores.filter((one) => one.path === path)
      for (const isNew of here.flatMap((store) => this.#outcomes(store, now, before))) changed.add(isNew)
      if (pending?.isAtomic === true && changed.size > 1) throw new Error(`${path} has some stores of an atomic batch, and others not`)
      this.#checkBytes(path, now, before, here)
      this.files.set(path, now)
    }
    this.pending = undefined
  }

  /** Whether a store that is made whole or not at all was made; neither where it makes no difference. */
  #outcomes ({ path, offset, bytes }: Store, now: Buffer, before: Buffer): boolean[] {
    const end = offset + bytes.length
    const isNew = now.subarray(offset, end).equals(bytes)
    const isOld = now.subarray(offset, end).equals(before.subarray(offset, end))
    if (!isNew && !isOld && this.pending?.isAtomic === true) throw new Error(`${path} has a part of an atomic batch at ${offset}`)
    return isNew === isOld ? [] : [isNew]
  }

  #checkBytes (path: string, now: Buffer, before: Buffer, stores: readonly Store[]): void {
    if (now.equals(before)) return
    for (let at = 0; at < now.length; at += WORD) {
      if (now.compare(before, at, at + WORD, at, at + WORD) === 0) continue
      const touching = stores.filter(({ offset, bytes }) => offset < at + WORD && offset + bytes.length > at)
      const isWhole = touching.some(({ offset, bytes }) => offset <= at && offset + bytes.length >= at + WORD)
      // An aligned word is old or new; of one that is stored to in part, by one request in several pieces maybe, each byte is.
      const stored = (i: number): number | undefined => touching.map(({ offset, bytes }) => bytes[at + i - offset]).find((byte) => byte !== undefined)
      const isAllowed = Array.from({ length: WORD }, (_, i) => now[at + i] === stored(i) || (!isWhole && now[at + i] === before[at + i])).every(Boolean)
      if (!isAllowed) throw new Error(`${path} has other bytes at ${at}: ${now.toString('hex', at, at + WORD)}, not ${before.toString('hex', at, at + WORD)}${touching.length > 0 ? ', and not as they were being written' : ''}`)
    }
  }
}
