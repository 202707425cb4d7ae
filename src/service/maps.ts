// SPDX-License-Identifier: BSD-3-Clause
//
// Part maps of a set: look-up by address, lists, removal. Look-ups ask the engine and wait for nobody.
import type { Change } from '../catalog/catalog.js'
import type { Found, Removed, Span } from '../engine/engine.js'
import { EngineError, hex, ServiceError } from '../errors.js'
import type { Page, PartMap, Removal } from '../schemas.js'
import { changeOf as failureChanges } from './failures.js'
import { pageOf, REPORTED_MAX, type PageRequest } from './list.js'
import { bringBack } from './restore.js'
import type { Expected, LivePart, LiveSet, MissingPart } from './set.js'

const SPACE_END = 1n << 64n

function notFound (detail: string): ServiceError {
  return new ServiceError('PMEMSET_E_CANNOT_FIND_PART_MAP', detail)
}

function describe (set: LiveSet, span: Span): PartMap {
  return {
    addr: hex(span.mapAddr),
    size: span.mapSize,
    // A set has one granularity from its first part on.
    granularity: set.granularity(),
    partCount: span.mapParts,
    leaseCount: 0,
    revision: set.revision
  }
}

/** The one map that contains the address, with the part that holds it. */
export function at (set: LiveSet, addr: string): { readonly items: PartMap[] } {
  const found = set.context.engine.find(set.handle, BigInt(addr))
  const part = found === undefined ? undefined : set.partOf(found.cookie)
  if (found === undefined || part === undefined) {
    set.checkMapped(BigInt(addr))
    throw notFound('No part map holds the address.')
  }
  const { told } = part
  // Most look-ups find what an earlier one has found, and telling it costs more than finding it.
  if (told?.revision === set.revision && told.mapAddr === found.mapAddr && told.mapSize === found.mapSize && told.mapParts === found.mapParts) return told.answer
  return tell(set, part, found)
}

function tell (set: LiveSet, part: LivePart, found: Found): { readonly items: PartMap[] } {
  const { mapAddr, mapSize, mapParts } = found
  const span = found.span()
  const answer = { items: [{ ...describe(set, span), part: { id: part.id, addr: hex(span.addr), length: span.length, offset: span.offset } }] }
  part.told = { revision: set.revision, mapAddr, mapSize, mapParts, answer }
  return answer
}

/** The map that starts at the address. */
export function get (set: LiveSet, addr: string): PartMap {
  const start = BigInt(addr)
  const span = set.context.engine.lookup(set.handle, start)
  if (span?.mapAddr !== start) {
    set.checkMapped(start)
    throw notFound('No part map starts at the address.')
  }
  return describe(set, span)
}

export interface RangeRequest {
  addr?: string | undefined
  length?: number | undefined
}

/** Addresses [from, to). */
export interface Window {
  from: bigint
  to: bigint
}

/** The addresses that a list is of: all, or a range that has both its members. */
export function toWindow ({ addr, length }: RangeRequest): Window {
  if (addr === undefined && length === undefined) return { from: 0n, to: SPACE_END }
  if (addr === undefined || length === undefined) {
    throw new ServiceError('PARAMETER_INVALID', 'A range has both, addr and length.', { errors: [{ in: 'query', name: addr === undefined ? 'addr' : 'length', reason: 'is missing' }] })
  }
  const from = BigInt(addr)
  const to = from + BigInt(length)
  if (to > SPACE_END) throw new ServiceError('PMEMSET_E_LENGTH_OUT_OF_RANGE', 'The range wraps around.')
  return { from, to }
}

/**
 * Up to `count` rows of the engine's list whose key lies behind `after`. The engine lists what touches a range, so the first row may be the one that
 * `after` itself names.
 */
export function firstBehind (after: string | undefined, count: number, { from, to }: Window, rows: (from: bigint, to: bigint, max: number) => Span[], keyOf: (row: Span) => bigint): Span[] {
  const key = after === undefined ? undefined : BigInt(after)
  // The first row may start before the range, so its key may lie there.
  const start = key === undefined || key < from ? from : key + 1n
  // To the engine an end of 0 is none.
  if (start >= to) return []
  const found = rows(start, to === SPACE_END ? 0n : to, count + 1)
  return found.filter((row) => key === undefined || keyOf(row) > key).slice(0, count)
}

export function list (set: LiveSet, range: RangeRequest, page: PageRequest): Page<PartMap> {
  const { engine, limits } = set.context
  const window = toWindow(range)
  return pageOf({ list: 'maps', uid: set.record.uid, ...range }, page, limits.list,
    (after, count) => firstBehind(after, count, window, (from, to, max) => engine.maps(set.handle, from, to, max), (row) => row.mapAddr),
    (row) => hex(row.mapAddr),
    (row) => describe(set, row))
}

/* ---- removal ---- */

type RemovedParts = Removal['removed']

const NOTHING: Removed = { removed: [], trimmed: [], split: [] }

function tellRemoved (set: LiveSet, { removed }: Removed, missing: readonly MissingPart[]): RemovedParts {
  const mapped = removed.map(({ addr, length, cookie }) => ({ id: set.partOf(cookie)?.id ?? '', addr, length }))
  const others = missing.map(({ part, addr, length }) => ({ id: part.id, addr, length }))
  const all = others.length === 0 ? mapped : [...mapped, ...others].sort((a, b) => (a.addr < b.addr ? -1 : 1))
  return all.map(({ id, addr, length }) => ({ id, addr: hex(addr), length }))
}

/** Within a change: what the engine took out is recorded and forgotten, or mapped again where it cannot be recorded; and with it parts that were not mapped. */
async function forget (set: LiveSet, { removed }: Removed, missing: readonly MissingPart[] = []): Promise<void> {
  const mapped = removed.map(({ cookie }) => set.partOf(cookie)).filter((part) => part !== undefined)
  const parts = [...mapped, ...missing.map(({ part }) => part)]
  try {
    await set.commit([
      ...parts.map(({ cookie }): Change => ({ kind: 'delete-part', set: set.record.uid, cookie })),
      // What was in doubt of those that were not mapped is nobody's any more.
      ...(missing.length === 0 ? [] : await failureChanges(set, set.missing.filter((one) => !missing.includes(one))))
    ])
  } catch (error) {
    await bringBack(set, mapped)
    throw error
  }
  for (const part of parts) set.dropPart(part)
  // Where another part of the record had the addresses, none were kept for it.
  for (const { addr, length } of missing) await set.context.engine.release(set.handle, addr, length).catch(() => {})
}

function report (dryRun: boolean, removed: RemovedParts, { trimmed, split }: Removed): Removal {
  const range = ({ addr, size }: { addr: bigint, size: number }): { addr: string, size: number } => ({ addr: hex(addr), size })
  return {
    dryRun,
    removed: removed.slice(0, REPORTED_MAX),
    removedCount: removed.length,
    trimmed: trimmed.map(({ before, after }) => ({ before: range(before), after: range(after) })),
    split: split.map(({ before, after }) => ({ before: range(before), after: after.map(range) })),
    ...(removed.length > REPORTED_MAX ? { truncated: true } : {})
  }
}

/** Within a change: removes every part that the range touches, whole. */
export async function removeRange (set: LiveSet, addr: bigint, length: number, dryRun: boolean): Promise<Removal> {
  const { engine } = set.context
  const missing = set.missingIn(addr, addr + BigInt(length))
  // At most all of them: nobody else changes the set meanwhile.
  const removed = await engine.remove(set.handle, addr, length, dryRun, engine.setInfo(set.handle).partCount).catch((error: unknown) => {
    if (missing.length > 0 && error instanceof EngineError && error.codeName === 'PMEMSET_E_CANNOT_FIND_PART_MAP') return NOTHING
    throw error
  })
  const told = tellRemoved(set, removed, missing)
  if (!dryRun) await forget(set, removed, missing)
  return report(dryRun, told, removed)
}

export function remove (set: LiveSet, range: { addr: string, length: number }, dryRun: boolean, expected: Expected): Promise<Removal> {
  return set.change(expected, () => removeRange(set, BigInt(range.addr), range.length, dryRun))
}

/** Removes the map that starts at the address. */
export function removeAt (set: LiveSet, addr: string, expected: Expected): Promise<void> {
  return set.change(expected, async () => {
    const { engine } = set.context
    const start = BigInt(addr)
    await forget(set, await engine.removeMap(set.handle, start, engine.setInfo(set.handle).partCount).catch((error: unknown) => { throw set.explain(error, start) }))
  })
}

/** Within a change: takes every part out of the engine, and leaves the record to the caller. */
export async function removeParts (set: LiveSet): Promise<LivePart[]> {
  const { engine } = set.context
  const { windowAddr, windowSize, partCount } = engine.setInfo(set.handle)
  if (partCount === 0) return []
  const { removed } = await engine.remove(set.handle, windowAddr, windowSize, false, partCount)
  return removed.map(({ cookie }) => set.partOf(cookie)).filter((part) => part !== undefined)
}
