// SPDX-License-Identifier: BSD-3-Clause
//
// Flushes that failed: what a set has of them, and how they are dealt with. They are the engine's, and known as long as the process lives; one that was
// acknowledged is no more.
import { constants } from 'node:os'
import type { FailedFlush, Recovery } from '../engine/engine.js'
import { EngineError, errnoName, hex, ServiceError } from '../errors.js'
import type { Failure } from '../schemas.js'
import { REPORTED_MAX } from './maps.js'
import type { Expected, LiveSet } from './set.js'

const PREFIX = 'failure-'

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

/** Deals with it for every set of the file; the others are told nothing but that they are ready. */
export function acknowledge (set: LiveSet, id: string, action: Recovery, expected: Expected): Promise<Failure> {
  return set.change(expected, async () => {
    const row = await find(set, id)
    const failure = await describe(set, row)
    if (failure === undefined) throw notFound(id)
    try {
      await set.context.engine.acknowledge(set.handle, row.id, action)
    } catch (error) {
      // In another set, meanwhile.
      throw error instanceof EngineError && error.code === -constants.errno.ENOENT ? notFound(id) : error
    }
    await set.commit([])
    return { ...failure, acknowledged: true }
  }, () => find(set, id))
}
