// SPDX-License-Identifier: BSD-3-Clause
//
// The record of what there is: which sets, and which parts of them. It knows ids and what clients asked for; where the bytes are right now is the engine's
// to say. The service reads it once, when it starts, and then only writes: every reply that tells of a change is sent after `commit` has answered. Addresses
// are text here as on the wire, so that a record is what the catalog's document says of it.
import type { Coalescing, Create, Granularity, Persistence } from '../engine/engine.js'

/** What all addresses depend on, and who this is. */
export interface ServiceRecord {
  /** Of this catalog, for ever. */
  uid: string
  arenaBase: string
  pageSize: number
}

export interface SetRecord {
  id: string
  /** Never used again, so that what refers to a deleted set cannot mean its successor of the same id. */
  uid: string
  /** Counts the changes of the set and of what is mapped into it. */
  revision: number
  requiredGranularity: Granularity
  /** What the first part gave; absent before it. */
  effectiveGranularity?: Granularity
  coalescing: Coalescing
  windowAddr: string
  windowSize: number
  /** Parts that were ever mapped into it, so that no number is given out twice. */
  partsMade: number
  labels: Readonly<Record<string, string>>
  createdAt: string
}

export interface FileSource {
  type: 'file'
  volume: string
  path: string
  create: Create
  mode?: string
  grow: boolean
}

export interface PartRecord {
  id: string
  /** The part's number in look-ups; greater than that of any part that was mapped into the set before it. */
  cookie: number
  /** The uid of its set. */
  set: string
  source: FileSource
  /** Of the file, as the engine tells it: whatever stands at the path later has to have the same. Empty where it could not be told. */
  identity: string
  offset: number
  length: number
  addr: string
  /** Whether it was appended to the map of a part that was there. */
  coalesced: boolean
  granularity: Granularity
  persistence: Persistence
  mapSync: boolean
  createdAt: string
}

/** Flushes of a set's files that failed, which nobody has dealt with. */
export interface FailuresRecord {
  /** The uid of the set. */
  set: string
  failures: ReadonlyArray<{
    /** Milliseconds since 1970. */
    at: number
    errno: number
    ranges: ReadonlyArray<{ addr: string, length: number }>
  }>
}

/** A file that may be made by a step that is not finished: what is left of it carries the token. */
export interface IntentRecord {
  /** 16 hexadecimal digits. */
  token: string
  volume: string
  path: string
}

/** A request that was sent under a key. */
export interface RepeatRecord {
  /** SHA-256 of the key and whose it is. */
  name: string
  /** SHA-256 of what was asked for. */
  request: string
  /** Milliseconds since 1970. */
  at: number
  /** Else it was only begun. */
  isDone: boolean
  reply?: { status: number, headers: Readonly<Record<string, string>>, body: string }
}

export type Change =
  | { kind: 'put-service', service: ServiceRecord }
  | { kind: 'put-set', set: SetRecord }
  | { kind: 'delete-set', uid: string }
  | { kind: 'put-part', part: PartRecord }
  | { kind: 'delete-part', set: string, cookie: number }
  | { kind: 'put-failures', failures: FailuresRecord }
  | { kind: 'delete-failures', set: string }
  | { kind: 'put-intent', intent: IntentRecord }
  | { kind: 'delete-intent', token: string }
  | { kind: 'put-repeat', repeat: RepeatRecord }
  | { kind: 'delete-repeat', name: string }

export interface Catalog {
  /** Absent in a new one. */
  service: () => ServiceRecord | undefined
  /** In no order. */
  sets: () => Iterable<SetRecord>
  /** The parts of one set, in the order of their numbers. */
  parts: (uid: string) => Iterable<PartRecord>
  partCount: (uid: string) => number
  failures: (uid: string) => FailuresRecord | undefined
  intents: () => Iterable<IntentRecord>
  /** In no order. */
  repeats: () => Iterable<RepeatRecord>
  /**
   * One transaction: all of the changes, in this order, or none; it answers when they are flushed to the medium. Deleting a set deletes its parts and
   * failures. NO_SPACE: there is no space for more; what takes away, or tells of a failure, has its space already.
   */
  commit: (changes: readonly Change[]) => Promise<void>
  close: () => Promise<void>
}
