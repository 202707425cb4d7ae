// SPDX-License-Identifier: BSD-3-Clause
//
// Entity tags (RFC 9110): the state of a set, `"<uid>.<revision>"`, for everything that is a view of the set.
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Expected, LiveSet } from '../src/service/set.js'

export function tag (reply: FastifyReply, set: LiveSet): void {
  reply.header('etag', set.version)
}

/** What If-Match asks for. A weak tag matches nothing; `*` matches whatever is there, and the set is there. */
export function expectedBy (request: FastifyRequest): Expected {
  const header = request.headers['if-match']
  if (header === undefined || header === '*') return undefined
  return new Set([...header.matchAll(/(W\/)?("[^"]*")/g)].flatMap(([, weak, version]) => (weak === undefined && version !== undefined ? [version] : [])))
}
