// SPDX-License-Identifier: BSD-3-Clause
//
// The record of what there is: which sets, and which parts of them. It knows ids and what clients asked for; where the bytes are right now is the engine's
// to say. The service reads it once, when it starts, and then only writes: every reply that tells of a change is sent after `commit` has answered.
import type { Coalescing, Create, Granularity } from '../engine/engine.js'

export interface SetRecord {
  id: string
  /** Never used again, so that what refers to a deleted set cannot mean its successor of the same id. */
  uid: string
  /** Counts the changes of the set and of what is mapped into it. */
  revision: number
  requiredGranularity: Granularity
  coalescing: Coalescing
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
  offset: number
  length: number
  addr: bigint
  createdAt: string
}

export type Change =
  | { kind: 'put-set', set: SetRecord }
  | { kind: 'delete-set', uid: string }
  | { kind: 'put-part', part: PartRecord }
  | { kind: 'delete-part', set: string, cookie: number }

export interface Catalog {
  /** In no order. */
  sets: () => Iterable<SetRecord>
  /** The parts of one set, in no order. */
  parts: (uid: string) => Iterable<PartRecord>
  /** One transaction: all of the changes, in this order, or none; it answers when they are as durable as the catalog can make them. Deleting a set deletes its parts. */
  commit: (changes: readonly Change[]) => Promise<void>
  close: () => Promise<void>
}
