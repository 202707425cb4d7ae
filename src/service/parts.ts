// SPDX-License-Identifier: BSD-3-Clause
//
// Parts of a set: map one, tell of them, remove one.
import { randomBytes } from 'node:crypto'
import type { PartRecord } from '../catalog/catalog.js'
import type { MappedPart, Span } from '../engine/engine.js'
import { EngineError, hex, ServiceError, toldCode } from '../errors.js'
import type { NewPart, Page, Part } from '../schemas.js'
import { pageOf, type PageRequest } from './list.js'
import { firstBehind, removeRange, toWindow, type RangeRequest } from './maps.js'
import { mark as markFailures } from './failures.js'
import { bringBack } from './restore.js'
import type { Expected, LivePart, LiveSet, MissingPart } from './set.js'
import type { OpenVolume } from './volumes.js'

const MODE_DEFAULT = 0o644

function partNotFound (id: string): ServiceError {
  return new ServiceError('PMEMSET_E_PART_NOT_FOUND', `The set has no part ${id}.`)
}

/** A token as its record has it. */
function textOf (token: bigint): string {
  return token.toString(16).padStart(16, '0')
}

/** A part's id where the client gave none: by its number, past those that clients took. */
function freeId (set: LiveSet, cookie: number): string {
  for (let i = 0; ; i++) {
    const id = `part-${cookie}${i === 0 ? '' : `-${i}`}`
    if (set.part(id) === undefined) return id
  }
}

/** Where the part would be. */
function spanOf ({ part, record, addr, length }: MissingPart): Span {
  return { mapAddr: addr, mapSize: length, mapParts: 0, addr, length, offset: record.offset, cookie: part.cookie, degraded: false }
}

function stateOf (set: LiveSet, part: LivePart, span: Span): Pick<Part, 'state' | 'problem'> {
  const missing = set.missingPart(part)
  if (missing !== undefined) return { state: 'unavailable', problem: toldCode(missing.problem) }
  return span.degraded ? { state: 'degraded', problem: 'PERSIST_FAILED' } : { state: 'mapped' }
}

function describe (set: LiveSet, part: LivePart, span: Span): Part | undefined {
  const { record } = part
  if (record === undefined) return undefined
  const { source, offset, length, addr, coalesced, granularity, mapSync, persistence, createdAt } = record
  return {
    id: part.id,
    set: set.record.id,
    revision: set.revision,
    source,
    offset,
    length,
    addr,
    map: { addr: hex(span.mapAddr), size: span.mapSize },
    coalesced,
    granularity,
    mapSync,
    persistence,
    ...stateOf(set, part, span),
    createdAt
  }
}

/** The part of that id, with where it lies now. */
function find (set: LiveSet, id: string): { part: LivePart, span: Span } {
  const part = set.part(id)
  if (part?.record === undefined) throw partNotFound(id)
  const missing = set.missingPart(part)
  if (missing !== undefined) return { part, span: spanOf(missing) }
  const span = set.context.engine.lookup(set.handle, BigInt(part.record.addr))
  if (span?.cookie !== part.cookie) throw partNotFound(id)
  return { part, span }
}

export function get (set: LiveSet, id: string): Part {
  const { part, span } = find(set, id)
  const told = describe(set, part, span)
  if (told === undefined) throw partNotFound(id)
  return told
}

/** Where the bytes of the part are. */
export function extent (set: LiveSet, id: string): { start: bigint, size: number } {
  const { span } = find(set, id)
  set.checkMapped(span.addr)
  return { start: span.addr, size: span.length }
}

/** Mapped or not, in address order; as the engine lists them, to 0n is no end. */
function rows (set: LiveSet, from: bigint, to: bigint, max: number): Span[] {
  const mapped = set.context.engine.parts(set.handle, from, to, max)
  const missing = set.missingIn(from, to === 0n ? 1n << 64n : to)
  if (missing.length === 0) return mapped
  return [...mapped, ...missing.slice(0, max).map(spanOf)].sort((a, b) => (a.addr < b.addr ? -1 : 1)).slice(0, max)
}

export function list (set: LiveSet, range: RangeRequest, page: PageRequest): Page<Part> {
  const window = toWindow(range)
  return pageOf({ list: 'parts', uid: set.record.uid, ...range }, page, set.context.limits.list,
    (after, count) => firstBehind(after, count, window, (from, to, max) => rows(set, from, to, max), (row) => row.addr),
    (row) => hex(row.addr),
    (row) => {
      const part = set.partOf(row.cookie)
      return part === undefined ? undefined : describe(set, part, row)
    })
}

/** What only the service can add to a refusal of the engine's. */
async function explain (error: unknown, set: LiveSet, volume: string, path: string): Promise<never> {
  if (error instanceof EngineError && error.codeName === 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED') {
    error.extras.requiredGranularity = set.record.requiredGranularity
    const probe = await set.context.volumes.probe(volume, path).catch(() => undefined)
    if (probe?.reason !== undefined) error.extras.reason = probe.reason
  } else if (error instanceof EngineError && error.codeName === 'PMEMSET_E_GRANULARITY_MISMATCH') {
    error.extras.effectiveGranularity = set.context.engine.setInfo(set.handle).granularity
  }
  throw error
}

/** Reserves the right to make the file, so that what is left of an unfinished step is known to be its; undefined: the step makes none. */
async function intend (set: LiveSet, { create = 'never', path }: NewPart['source'], volume: string): Promise<bigint | undefined> {
  if (create === 'never') return undefined
  const token = randomBytes(8).readBigUInt64LE() | 1n
  await set.context.catalog.commit([{ kind: 'put-intent', intent: { token: textOf(token), volume, path } }])
  return token
}

/** Within a change: in the engine, not on record yet. */
async function mapInEngine (set: LiveSet, cookie: number, { source, offset = 0, length }: NewPart, volume: OpenVolume, intent: bigint | undefined): Promise<MappedPart> {
  const { engine, volumes } = set.context
  const { create = 'never', grow = false, mode, path } = source
  const mayGrow = grow || create !== 'never'
  try {
    return await engine.mapPart(set.handle, {
      volume: volume.handle,
      path,
      offset,
      length: length ?? 0,
      cookie,
      keepFree: mayGrow ? await volumes.keepFree(volume.name) : 0,
      create,
      mode: mode === undefined ? MODE_DEFAULT : parseInt(mode, 8),
      grow,
      intent: intent ?? 0n
    })
  } catch (error) {
    return await explain(error, set, volume.name, path)
  }
}

/** The manual page pmemset_part_map(3). All or nothing, the record included. */
export function map (set: LiveSet, request: NewPart, expected: Expected): Promise<Part> {
  return set.change(expected, async () => {
    const { catalog, volumes } = set.context
    const taken = request.id === undefined ? undefined : set.part(request.id)
    if (taken !== undefined) throw new ServiceError('PART_ID_EXISTS', `The set has a part ${taken.id} already.`, { revision: set.revision })
    const volume = volumes.ofSource(request.source.volume)
    const cookie = set.record.partsMade + 1
    const part: LivePart = { id: request.id ?? freeId(set, cookie), cookie }
    const intent = await intend(set, request.source, volume.name)
    // Before the engine maps it, since from then on look-ups give its number.
    set.addPart(part)
    try {
      await record(set, part, await mapInEngine(set, cookie, request, volume, intent), request, volume, intent)
    } catch (error) {
      set.dropPart(part)
      // Where this cannot be written either, the next start finds nothing that carries the token.
      if (intent !== undefined) await catalog.commit([{ kind: 'delete-intent', token: textOf(intent) }]).catch(() => {})
      throw error
    }
    await volumes.recoverWaiting()
    return get(set, part.id)
  })
}

async function record (set: LiveSet, part: LivePart, mapped: MappedPart, { source, offset = 0 }: NewPart, volume: OpenVolume, intent: bigint | undefined): Promise<void> {
  const { engine } = set.context
  const { path, create = 'never', mode, grow = false } = source
  const { addr, length, identity, coalesced, granularity, persistence, mapSync, created } = mapped
  const record: PartRecord = {
    id: part.id,
    cookie: part.cookie,
    set: set.record.uid,
    source: { type: source.type, volume: volume.name, path, create, ...(mode === undefined ? {} : { mode }), grow },
    identity,
    offset,
    length,
    addr: hex(addr),
    coalesced,
    granularity,
    persistence,
    mapSync,
    createdAt: new Date().toISOString()
  }
  try {
    await set.commit([
      { kind: 'put-part', part: record },
      ...(intent === undefined ? [] : [{ kind: 'delete-intent' as const, token: textOf(intent) }])
    ], { partsMade: part.cookie, effectiveGranularity: granularity })
  } catch (error) {
    await engine.remove(set.handle, addr, 1, false, 1)
    if (created && intent !== undefined) await engine.undoIntent(volume.handle, path, intent)
    throw error
  }
  part.record = record
}

export async function remove (set: LiveSet, id: string, expected: Expected): Promise<void> {
  await set.change(expected, async () => {
    await removeRange(set, find(set, id).span.addr, 1, false)
  }, () => { find(set, id) })
}

/** Maps a part that was not available again; one that is mapped stays as it is. `adopt` takes the file that is at its path now, whichever it is. */
export function restore (set: LiveSet, id: string, adopt: boolean, expected: Expected): Promise<Part> {
  return set.change(expected, async () => {
    const { part } = find(set, id)
    const before = part.record
    if (before === undefined || set.missingPart(part) === undefined) return get(set, id)
    await bringBack(set, [part], { adopt })
    const problem = set.missingPart(part)?.problem
    if (problem !== undefined) return await explain(problem, set, before.source.volume, before.source.path)
    try {
      await set.commit([{ kind: 'put-part', part: part.record ?? before }])
    } catch (error) {
      await set.context.engine.remove(set.handle, BigInt(before.addr), 1, false, 1)
      part.record = before
      await bringBack(set, [part])
      throw error
    }
    await markFailures(set)
    return get(set, id)
  }, () => { find(set, id) })
}
