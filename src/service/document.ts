// SPDX-License-Identifier: BSD-3-Clause
//
// The catalog as one document: what a backup keeps, and what a service on another host is given to carry on with. Replacing it is one change like any other:
// the sets that are there go first, then the record is exchanged in one transaction, then what it names is brought back; where the record cannot be
// exchanged, the sets that were there come back.
import { createHash } from 'node:crypto'
import type { Change, ServiceRecord } from '../catalog/catalog.js'
import { hex, ServiceError } from '../errors.js'
import type { CatalogDocument } from '../schemas.js'
import type { Context, Expected } from './set.js'

export const SCHEMA = 1

export interface Told {
  document: CatalogDocument
  /** Of these contents, in quotes. */
  version: string
}

function byId (a: { id: string }, b: { id: string }): number {
  return a.id < b.id ? -1 : 1
}

export function tell ({ catalog }: Pick<Context, 'catalog'>): Told {
  const { uid, arenaBase, pageSize } = catalog.service() ?? NOBODY
  const sets = [...catalog.sets()].sort(byId).map((set) => ({
    ...set,
    parts: [...catalog.parts(set.uid)].map(({ set: _set, ...part }) => part),
    failures: [...catalog.failures(set.uid)?.failures ?? []].map(({ ranges, ...failure }) => ({ ...failure, ranges: [...ranges] }))
  }))
  const document = { schema: SCHEMA, uid, arenaBase, pageSize, sets }
  return { document, version: `"${createHash('sha256').update(JSON.stringify(document)).digest('hex')}"` }
}

/** A catalog that no process has used. */
const NOBODY: ServiceRecord = { uid: '', arenaBase: '0x0', pageSize: 0 }

/** The changes that make a catalog this document. */
export function changesTo ({ sets }: CatalogDocument, uids: Iterable<string>): Change[] {
  return [
    ...[...uids].map((uid): Change => ({ kind: 'delete-set', uid })),
    ...sets.flatMap(({ parts, failures, ...set }): Change[] => [
      { kind: 'put-set', set },
      ...parts.map((part): Change => ({ kind: 'put-part', part: { ...part, set: set.uid } })),
      ...(failures.length === 0 ? [] : [{ kind: 'put-failures' as const, failures: { set: set.uid, failures } }])
    ])
  ]
}

/** What is there may be replaced by who says what that is; an empty catalog by anybody. */
export function checkExpected (told: Told, condition: string | undefined, expected: Expected): void {
  if (condition === undefined && told.document.sets.length > 0) throw new ServiceError('PRECONDITION_REQUIRED', 'There are sets, which the document would replace.')
  if (expected !== undefined && !expected.has(told.version)) throw new ServiceError('PRECONDITION_FAILED', 'The catalog has changed since.')
}

export interface Bounds {
  arenaBase: bigint
  arenaEnd: bigint
  pageSize: number
  sets: number
  windowBytes: number
  windowBytesTotal: number
  partsPerSet: number
}

interface Extent {
  from: bigint
  to: bigint
  pointer: string
}

function refuse (pointer: string, reason: string): ServiceError {
  return new ServiceError('REQUEST_INVALID', `${pointer} ${reason}`, { errors: [{ in: 'body', pointer, reason }] })
}

function checkApart (extents: Extent[]): void {
  extents.sort((a, b) => (a.from < b.from ? -1 : 1))
  extents.forEach(({ from, pointer }, i) => {
    if (from < (extents[i - 1]?.to ?? 0n)) throw refuse(pointer, 'overlaps another')
  })
}

function checkUnique (values: ReadonlyArray<string | number>, pointer: (i: number) => string): void {
  const known = new Set<string | number>()
  values.forEach((value, i) => {
    if (known.has(value)) throw refuse(pointer(i), 'is there twice')
    known.add(value)
  })
}

const WINDOW_UNIT = 2n * 1024n * 1024n

/** Refuses a document that no catalog could hold: what the engine would refuse later, when what was there before is gone. */
export function checkDocument ({ schema, pageSize, sets }: CatalogDocument, bounds: Bounds): void {
  if (schema !== SCHEMA) throw refuse('/schema', `is not ${SCHEMA}, which this version knows`)
  if (pageSize !== bounds.pageSize) throw refuse('/pageSize', `is not ${bounds.pageSize}, as on this host`)
  const limits: Array<[keyof Bounds, number]> = [['sets', sets.length], ['windowBytesTotal', sets.reduce((sum, { windowSize }) => sum + windowSize, 0)]]
  for (const [limit, count] of limits) if (count > bounds[limit]) throw new ServiceError('LIMIT_EXCEEDED', `The limit of ${limit} is ${bounds[limit]}.`, { limit, max: Number(bounds[limit]) })
  checkUnique(sets.map(({ id }) => id), (i) => `/sets/${i}/id`)
  checkUnique(sets.map(({ uid }) => uid), (i) => `/sets/${i}/uid`)
  const windows = sets.map(({ windowAddr, windowSize }, i): Extent => {
    const [from, pointer] = [BigInt(windowAddr), `/sets/${i}/windowAddr`]
    const to = from + BigInt(windowSize)
    if (from % WINDOW_UNIT !== 0n || BigInt(windowSize) % WINDOW_UNIT !== 0n) throw refuse(pointer, 'is not that of a window: both, address and size, are multiples of 2 MiB')
    if (from < bounds.arenaBase || to > bounds.arenaEnd) throw refuse(pointer, `is not in the arena of this service, from ${hex(bounds.arenaBase)} to ${hex(bounds.arenaEnd)}`)
    return { from, to, pointer }
  })
  checkApart(windows.slice())
  sets.forEach((set, i) => { checkSet(set, windows[i] ?? { from: 0n, to: 0n, pointer: '' }, `/sets/${i}`, bounds) })
}

function checkSet ({ parts, partsMade, effectiveGranularity }: CatalogDocument['sets'][number], window: Extent, at: string, { partsPerSet, pageSize }: Bounds): void {
  if (parts.length > partsPerSet) throw new ServiceError('LIMIT_EXCEEDED', `The limit of partsPerSet is ${partsPerSet}.`, { limit: 'partsPerSet', max: partsPerSet })
  if (parts.length > 0 && effectiveGranularity === undefined) throw refuse(`${at}/effectiveGranularity`, 'is missing')
  checkUnique(parts.map(({ id }) => id), (i) => `${at}/parts/${i}/id`)
  checkUnique(parts.map(({ cookie }) => cookie), (i) => `${at}/parts/${i}/cookie`)
  checkApart(parts.map(({ cookie, addr, offset, length, granularity }, i): Extent => {
    const pointer = `${at}/parts/${i}`
    const from = BigInt(addr)
    const to = from + BigInt(length)
    if (cookie > partsMade) throw refuse(`${pointer}/cookie`, 'is more than partsMade')
    if (granularity !== effectiveGranularity) throw refuse(`${pointer}/granularity`, 'is not that of the set')
    if (Number(from % BigInt(pageSize)) !== 0 || length % pageSize !== 0 || offset % pageSize !== 0) throw refuse(pointer, `is not of whole pages of ${pageSize} bytes`)
    if (from < window.from || to > window.to) throw refuse(`${pointer}/addr`, 'is not in the window of the set')
    return { from, to, pointer: `${pointer}/addr` }
  }))
}
