// SPDX-License-Identifier: BSD-3-Clause
//
// Flushes that failed: what a set has of them, and how they are dealt with. They are the engine's, and the catalog remembers them, so that a part that was
// degraded is so after a restart; one that was acknowledged is no more.
import { randomBytes } from 'node:crypto'
import { constants } from 'node:os'
import type { Change, FailuresRecord } from '../catalog/catalog.js'
import type { FailedFlush, Recovery } from '../engine/engine.js'
import { isStale } from '../engine/engine.js'
import { EngineError, errnoName, hex, ServiceError } from '../errors.js'
import type { Failure } from '../schemas.js'
import { REPORTED_MAX } from './list.js'
import type { Expected, LiveSet, MissingPart } from './set.js'

// The engine counts from 1 in each process, and one that is remembered gets a number anew: a client that was told of it before must not mean another by it.
const PREFIX = `failure-${randomBytes(4).toString('hex')}-`
const RECORDED_RANGES_MAX = 1000

function notFound (id: string): ServiceError {
  return new ServiceError('FAILURE_NOT_FOUND', `The set has no failure ${id}.`)
}

async function describe (set: LiveSet, { id, at, errno }: FailedFlush): Promise<Failure | undefined> {
  const ranges = await set.context.engine.failureRanges(set.handle, id, REPORTED_MAX + 1)
  const name = errnoName(errno)
  return ranges && {
    id: `${PREFIX}${id}`,
    kind: 'persist_failed',
    at: new Date(at).toISOString(),
    ranges: ranges.slice(0, REPORTED_MAX).map(({ addr, length }) => ({ addr: hex(addr), length })),
    ...(ranges.length > REPORTED_MAX ? { truncated: true } : {}),
    code: 'PERSIST_FAILED',
    ...(name === undefined ? {} : { errno: name }),
    acknowledged: false
  }
}

async function rows (set: LiveSet): Promise<FailedFlush[]> {
  return (await set.context.engine.failures(set.handle, REPORTED_MAX)).sort((a, b) => a.id - b.id)
}

/** Oldest first. */
export async function list (set: LiveSet): Promise<Failure[]> {
  const all = await Promise.all((await rows(set)).map((row) => describe(set, row)))
  return all.filter((failure) => failure !== undefined)
}

async function find (set: LiveSet, id: string): Promise<FailedFlush> {
  const row = (await rows(set)).find((one) => `${PREFIX}${one.id}` === id)
  if (row === undefined) throw notFound(id)
  return row
}

/* ---- on record ---- */

/** As the engine has them now, but for those whose bytes only other sets have mapped: there they are on record. */
async function recordOf (set: LiveSet): Promise<FailuresRecord['failures']> {
  const { engine } = set.context
  const failures = await Promise.all((await rows(set)).map(async ({ id, at, errno }) => {
    const ranges = await engine.failureRanges(set.handle, id, RECORDED_RANGES_MAX + 1) ?? []
    return { at, errno, ranges: withinBounds(ranges).map(({ addr, length }) => ({ addr: hex(addr), length })) }
  }))
  return failures.filter(({ ranges }) => ranges.length > 0)
}

/** So many ranges at the most: of more, one that holds all of them, since bytes that are well may be in doubt, but not the other way round. */
function withinBounds (ranges: Array<{ addr: bigint, length: number }>): Array<{ addr: bigint, length: number }> {
  const [first] = ranges
  const last = ranges.at(-1)
  if (ranges.length <= RECORDED_RANGES_MAX || first === undefined || last === undefined) return ranges
  return [{ addr: first.addr, length: Number(last.addr - first.addr) + last.length }]
}

/** Of parts that are not mapped the engine knows nothing: what is on record of their bytes stays there. */
function ofMissing (set: LiveSet, missing: readonly MissingPart[]): FailuresRecord['failures'] {
  const known = missing.length === 0 ? undefined : set.context.catalog.failures(set.record.uid)
  const isMissing = ({ addr, length }: { addr: string, length: number }): boolean => {
    const from = BigInt(addr)
    return missing.some((one) => one.addr < from + BigInt(length) && one.addr + BigInt(one.length) > from)
  }
  return (known?.failures ?? []).map((failure) => ({ ...failure, ranges: failure.ranges.filter(isMissing) })).filter(({ ranges }) => ranges.length > 0)
}

/** What the catalog has to be told so that it knows of the set's failures what the engine does; `missing` are the parts that are not mapped, and still the set's. */
export async function changeOf (set: LiveSet, missing = set.missing): Promise<Change[]> {
  try {
    const failures = [...await recordOf(set), ...ofMissing(set, missing)]
    if (failures.length > 0) return [{ kind: 'put-failures', failures: { set: set.record.uid, failures } }]
    return set.context.catalog.failures(set.record.uid) === undefined ? [] : [{ kind: 'delete-failures', set: set.record.uid }]
  } catch (error) {
    if (isStale(error)) return [] // its deletion is under way
    throw error
  }
}

/** The same of several. */
export async function changesOf (sets: Iterable<LiveSet>): Promise<Change[]> {
  return (await Promise.all([...sets].map((set) => changeOf(set)))).flat()
}

/** Tells the engine of the failures that the catalog remembers, where they are of parts that are mapped. */
export async function mark (set: LiveSet): Promise<void> {
  for (const { at, errno, ranges } of set.context.catalog.failures(set.record.uid)?.failures ?? []) {
    try {
      await set.context.engine.fail(set.handle, { at, errno }, ranges.map(({ addr, length }) => ({ addr: BigInt(addr), length })))
    } catch (error) {
      if (!(error instanceof EngineError) || error.codeName !== 'PMEMSET_E_CANNOT_FIND_PART_MAP') throw error
    }
  }
}

/* ---- acknowledging ---- */

/** Deals with it for every set of the file; the others are told nothing but that they are ready. */
export function acknowledge (set: LiveSet, id: string, action: Recovery, expected: Expected): Promise<Failure> {
  const { engine, all } = set.context
  return set.change(expected, async () => {
    const row = await find(set, id)
    const failure = await describe(set, row)
    if (failure === undefined) throw notFound(id)
    try {
      await engine.acknowledge(set.handle, row.id, action)
    } catch (error) {
      // In another set, meanwhile.
      throw error instanceof EngineError && error.code === -constants.errno.ENOENT ? notFound(id) : error
    }
    try {
      await set.commit(await changesOf(all()))
    } catch (error) {
      await Promise.all([...all()].map(mark))
      throw error
    }
    return { ...failure, acknowledged: true }
  }, () => find(set, id))
}
