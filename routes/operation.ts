// SPDX-License-Identifier: BSD-3-Clause
//
// What a route says of itself, once: from it come its validation, its serialisers, and its part of the OpenAPI document.
import type { FastifyContextConfig, FastifySchema } from 'fastify'
import { Type, type TProperties, type TSchema } from 'typebox'
import type { ToldCode } from '../src/plugins/openapi.js'

export interface Operation {
  id: string
  tag: 'volumes' | 'sets' | 'parts' | 'maps' | 'memory' | 'failures' | 'service'
  summary: string
  description?: string
  /** What a token needs; else it follows from method and path. */
  scope?: 'admin'
  /** Path parameters. */
  path?: TProperties
  query?: TProperties
  headers?: TSchema
  /** A JSON body, by its component. */
  body?: TSchema
  /** Octets come in, go out of a range, or both, in a layout of their own. */
  bytes?: 'in' | 'out' | 'both'
  /** Its body is as large as a batch's may be, and needed whole. */
  batch?: boolean
  /** What success has where it is neither JSON nor octets. */
  type?: 'text/plain'
  /** Statuses of success. */
  answers: Partial<Record<200 | 201 | 204 | 206, TSchema | string>>
  /** Whether success carries the ETag of the set. */
  etag?: boolean
  /** What this operation can be refused with, beside what every operation can. */
  codes?: readonly ToldCode[]
  /** Of one exchange with a set `accounts` that has a part `first`; the body's example is its component's. */
  example?: { path?: Record<string, string>, query?: Record<string, string | number | boolean>, answer?: unknown }
}

function isSchema (answer: TSchema | string): answer is TSchema {
  return typeof answer !== 'string'
}

export function operation (o: Operation): { schema: FastifySchema, config: FastifyContextConfig } {
  const closed = { additionalProperties: false }
  const answers = Object.entries(o.answers).filter((entry): entry is [string, TSchema] => isSchema(entry[1]))
  return {
    schema: {
      operationId: o.id,
      tags: [o.tag],
      summary: o.summary,
      ...(o.description === undefined ? {} : { description: o.description }),
      ...(o.path === undefined ? {} : { params: Type.Object(o.path, closed) }),
      ...(o.query === undefined ? {} : { querystring: Type.Object(o.query, closed) }),
      ...(o.headers === undefined ? {} : { headers: o.headers }),
      ...(o.body === undefined ? {} : { body: o.body }),
      response: Object.fromEntries(answers)
    },
    config: {
      ...(o.bytes === 'in' || o.bytes === 'both' ? { body: 'bytes' as const } : {}),
      ...(o.batch === true ? { batch: true } : {}),
      ...(o.scope === undefined ? {} : { scope: o.scope }),
      told: { answers: o.answers, codes: o.codes ?? [], bytes: o.bytes, type: o.type, etag: o.etag === true, example: o.example ?? {} }
    }
  }
}
