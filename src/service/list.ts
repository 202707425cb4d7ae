// SPDX-License-Identifier: BSD-3-Clause
//
// Pages of lists. A page goes on behind the last item of the one before it (keyset), so that nothing is skipped or told twice when the list changes
// meanwhile. The cursor is opaque to clients; it holds what the list is of, so that it cannot be used on another one.
import { ServiceError } from '../errors.js'
import { ADDRESS, ID, type Page } from '../schemas.js'

const LIMIT_DEFAULT = 50

/** Rows of a report that is no list. */
export const REPORTED_MAX = 1000

/** What the items of each list are in the order of. */
const KEYS = { sets: new RegExp(ID), parts: new RegExp(ADDRESS), maps: new RegExp(ADDRESS) } as const

export interface PageRequest {
  limit?: number | undefined
  cursor?: string | undefined
}

/** What a list is of: a set by its uid, and the range that was asked for. */
export interface Listed {
  list: keyof typeof KEYS
  uid?: string
  addr?: string | undefined
  length?: number | undefined
}

function toCursor (of: Listed, after: string): string {
  return Buffer.from(JSON.stringify([of.list, of.uid ?? '', of.addr ?? '', of.length ?? -1, after])).toString('base64url')
}

function fromCursor (cursor: string, of: Listed): string {
  let parts: unknown
  try {
    parts = JSON.parse(Buffer.from(cursor, 'base64url').toString())
  } catch { /* not one of ours */ }
  const after: unknown = Array.isArray(parts) ? parts[4] : undefined
  // Made again from what it says it must be itself: nothing else is a cursor, and not one of another list. Its key may still be made up.
  if (typeof after === 'string' && KEYS[of.list].test(after) && toCursor(of, after) === cursor) return after
  throw new ServiceError('PARAMETER_INVALID', 'The cursor is not one that this list gave.', { errors: [{ in: 'query', name: 'cursor', reason: 'is not of this list' }] })
}

/**
 * One page. `fetch` gives up to `count` rows behind the key `after`, in the order of their keys; `keyOf` tells a row's key; `describe` makes the item, or
 * none of a row that is not for clients (any more, or yet).
 */
export function pageOf<R, T> (of: Listed, { limit = LIMIT_DEFAULT, cursor }: PageRequest, max: number, fetch: (after: string | undefined, count: number) => R[],
  keyOf: (row: R) => string, describe: (row: R) => T | undefined): Page<T> {
  const size = Math.min(limit, max)
  const after = cursor === undefined ? undefined : fromCursor(cursor, of)
  const rows = fetch(after, size + 1)
  const last = rows[size - 1]
  const items = rows.slice(0, size).map(describe).filter((item) => item !== undefined)
  return rows.length <= size || last === undefined ? { items } : { items, nextCursor: toCursor(of, keyOf(last)) }
}
