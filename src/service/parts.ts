// SPDX-License-Identifier: BSD-3-Clause
//
// Parts of a set: map one, tell of them, remove one.
import type { PartRecord } from '../catalog/catalog.js'
import type { MappedPart, Span } from '../engine/engine.js'
import { EngineError, hex, ServiceError } from '../errors.js'
import type { NewPart, Page, Part } from '../schemas.js'
import { pageOf, type PageRequest } from './list.js'
import { firstBehind, removeRange, toWindow, type RangeRequest } from './maps.js'
import type { Expected, LivePart, LiveSet } from './set.js'

const MODE_DEFAULT = 0o644

function partNotFound (id: string): ServiceError {
  return new ServiceError('PMEMSET_E_PART_NOT_FOUND', `The set has no part ${id}.`)
}

/** A part's id where the client gave none: by its number, past those that clients took. */
function freeId (set: LiveSet, cookie: number): string {
  for (let i = 0; ; i++) {
    const id = `part-${cookie}${i === 0 ? '' : `-${i}`}`
    if (set.part(id) === undefined) return id
  }
}

function describe (set: LiveSet, part: LivePart, span: Span): Part | undefined {
  const { mapped } = part
  if (mapped === undefined) return undefined
  const { addr, coalesced, granularity, mapSync, persistence, record: { source, offset, length, createdAt } } = mapped
  return {
    id: part.id,
    set: set.record.id,
    revision: set.revision,
    source,
    offset,
    length,
    addr: hex(addr),
    map: { addr: hex(span.mapAddr), size: span.mapSize },
    coalesced,
    granularity,
    mapSync,
    persistence,
    ...(span.degraded ? { state: 'degraded', problem: 'PERSIST_FAILED' } : { state: 'mapped' }),
    createdAt
  }
}

/** The part of that id, with where it lies now. */
function find (set: LiveSet, id: string): { part: LivePart, span: Span } {
  const part = set.part(id)
  const addr = part?.mapped?.addr
  const span = addr === undefined ? undefined : set.context.engine.lookup(set.handle, addr)
  if (part === undefined || span?.cookie !== part.cookie) throw partNotFound(id)
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
  return { start: span.addr, size: span.length }
}

export function list (set: LiveSet, range: RangeRequest, page: PageRequest): Page<Part> {
  const { engine, limits } = set.context
  const window = toWindow(range)
  return pageOf({ list: 'parts', uid: set.record.uid, ...range }, page, limits.list,
    (after, count) => firstBehind(after, count, window, (from, to, max) => engine.parts(set.handle, from, to, max), (row) => row.addr),
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

async function mapInEngine (set: LiveSet, cookie: number, { source, offset = 0, length }: NewPart): Promise<{ mapped: MappedPart, volume: string }> {
  const { engine, volumes } = set.context
  const { create = 'never', grow = false, mode, path } = source
  const volume = volumes.ofSource(source.volume)
  const mayGrow = grow || create !== 'never'
  try {
    const mapped = await engine.mapPart(set.handle, {
      volume: volume.handle,
      path,
      offset,
      length: length ?? 0,
      cookie,
      keepFree: mayGrow ? await volumes.keepFree(volume.name) : 0,
      create,
      mode: mode === undefined ? MODE_DEFAULT : parseInt(mode, 8),
      grow
    })
    return { mapped, volume: volume.name }
  } catch (error) {
    return await explain(error, set, volume.name, path)
  }
}

/** The manual page pmemset_part_map(3). All or nothing, the record included. */
export function map (set: LiveSet, request: NewPart, expected: Expected): Promise<Part> {
  return set.change(expected, async () => {
    const taken = request.id === undefined ? undefined : set.part(request.id)
    if (taken !== undefined) throw new ServiceError('PART_ID_EXISTS', `The set has a part ${taken.id} already.`, { revision: set.revision })
    const cookie = set.record.partsMade + 1
    const part: LivePart = { id: request.id ?? freeId(set, cookie), cookie }
    // Before the engine maps it, since from then on look-ups give its number.
    set.addPart(part)
    try {
      const { mapped, volume } = await mapInEngine(set, cookie, request)
      await record(set, part, mapped, request, volume)
    } catch (error) {
      set.dropPart(part)
      throw error
    }
    return get(set, part.id)
  })
}

async function record (set: LiveSet, part: LivePart, mapped: MappedPart, { source, offset = 0 }: NewPart, volume: string): Promise<void> {
  const { path, create = 'never', mode, grow = false } = source
  const record: PartRecord = {
    id: part.id,
    cookie: part.cookie,
    set: set.record.uid,
    source: { type: source.type, volume, path, create, ...(mode === undefined ? {} : { mode }), grow },
    offset,
    length: mapped.length,
    addr: mapped.addr,
    createdAt: new Date().toISOString()
  }
  try {
    await set.commit([{ kind: 'put-part', part: record }], { partsMade: part.cookie })
  } catch (error) {
    await set.context.engine.remove(set.handle, mapped.addr, 1, false, 1)
    throw error
  }
  const { addr, granularity, persistence, mapSync, coalesced } = mapped
  part.mapped = { addr, granularity, persistence, mapSync, coalesced, record }
}

export async function remove (set: LiveSet, id: string, expected: Expected): Promise<void> {
  await set.change(expected, async () => {
    const addr = find(set, id).part.mapped?.addr
    if (addr === undefined) throw partNotFound(id)
    await removeRange(set, addr, 1, false)
  }, () => { find(set, id) })
}
