// SPDX-License-Identifier: BSD-3-Clause
//
// The bytes of a part, by its id and an offset in it.
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { ServiceError } from '../src/errors.js'
import { ConditionalBytes, count, durabilityParameter, partId, ref, setId, Written, type Durability } from '../src/schemas.js'
import { extent } from '../src/service/parts.js'
import type { Service } from '../src/service/service.js'
import { contentLength, describeBytes, digestsOf, isReceived, refuseHeader, sendBytes } from './bytes.js'
import { expectedBy } from './etag.js'
import { ACCESS_CODES, WRITE_CODES, WRITE_DESCRIPTION } from './memory.js'
import { operation } from './operation.js'

interface PartPath { set: string, part: string }

const path = { set: setId(), part: partId() }
const example = { path: { set: 'accounts', part: 'first' } }

function outOfRange (size: number, circumstance?: 'header'): ServiceError {
  return new ServiceError('PMEMSET_E_LENGTH_OUT_OF_RANGE', `The range is not inside the ${size} bytes of the part.`, { size }, circumstance)
}

interface Slice { from: number, length: number }

/**
 * Of Range (RFC 9110): what is asked of so many bytes; undefined: all of them, as always where it is not one range of bytes. There is no validator that
 * If-Range could name, so with it the range does not count.
 */
function rangeOf ({ headers }: FastifyRequest, size: number): Slice | undefined {
  const [whole, first = '', last = ''] = /^bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*$/i.exec(headers.range ?? '') ?? []
  if (whole === undefined || (first === '' && last === '') || headers['if-range'] !== undefined) return undefined
  if (first === '') {
    const length = Math.min(Number(last), size)
    if (length === 0) throw outOfRange(size, 'header')
    return { from: size - length, length }
  }
  const from = Number(first)
  if (last !== '' && BigInt(last) < BigInt(first)) return undefined
  if (from >= size) throw outOfRange(size, 'header')
  return { from, length: Math.min(last === '' ? size : Number(last) + 1, size) - from }
}

/** Of Content-Range: where the body is to go. */
function placeOf ({ headers }: FastifyRequest): Slice | undefined {
  const header = headers['content-range']
  if (header === undefined) return undefined
  const [, first = '', last = '', total = ''] = /^bytes ([0-9]{1,16})-([0-9]{1,16})\/([0-9]{1,16}|\*)$/i.exec(header) ?? []
  const [from, to] = [Number(first), Number(last)]
  if (first === '' || to < from || !Number.isSafeInteger(to + 1) || (total !== '*' && Number(total) <= to)) throw refuseHeader('content-range', 'must be bytes first-last/length or bytes first-last/*')
  return { from, length: to - from + 1 }
}

/** Where the body goes, and how long it has to be where that is known. */
function target (request: FastifyRequest<{ Querystring: { offset?: number } }>, size: number): { from: number, length: number | undefined, exactly?: number } {
  const place = placeOf(request)
  const { offset } = request.query
  const length = contentLength(request)
  const from = place?.from ?? offset ?? 0
  if (place !== undefined && offset !== undefined && offset !== from) throw refuseHeader('content-range', 'must begin at offset')
  if (place !== undefined && length !== undefined && length !== place.length) throw refuseHeader('content-range', 'must have the length of the body')
  if (from >= size || (place?.length ?? length ?? 0) > size - from) throw outOfRange(size, place === undefined ? undefined : 'header')
  return { from, length: place?.length ?? length, ...(place === undefined ? {} : { exactly: place.length }) }
}

export default async function content (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  const url = '/sets/:set/parts/:part/content'

  app.get<{ Params: PartPath }>(url, {
    ...operation({
      id: 'readContent',
      tag: 'memory',
      summary: 'Read the bytes of a part',
      description: 'One `Range` of bytes is answered with that range; several, or another unit, with everything.',
      path,
      headers: Type.Object({ range: Type.Optional(Type.String({ description: '`bytes=first-last`, `bytes=first-` or `bytes=-length`' })) }),
      bytes: 'out',
      answers: { 200: 'The bytes', 206: 'The bytes of the range' },
      codes: [...ACCESS_CODES.filter((code) => code !== 'PMEMSET_E_LENGTH_OUT_OF_RANGE'), 'PMEMSET_E_LENGTH_OUT_OF_RANGE:header', 'PMEMSET_E_PART_NOT_FOUND'],
      example
    }),
    exposeHeadRoute: false
  }, (request, reply) => {
    const set = service.sets.get(request.params.set)
    const { start, size } = extent(set, request.params.part)
    const range = rangeOf(request, size)
    const { from, length } = range ?? { from: 0, length: size }
    reply.header('accept-ranges', 'bytes')
    if (range !== undefined) reply.code(206).header('content-range', `bytes ${from}-${from + length - 1}/${size}`)
    return sendBytes(reply, service.memory.read(set, start + BigInt(from), length))
  })

  const head = operation({
    id: 'describeContent',
    tag: 'memory',
    summary: 'What a read of a part would be answered, without the bytes: none of them is read',
    path,
    bytes: 'out',
    answers: { 200: 'Its length, in Content-Length' },
    codes: ['SET_NOT_FOUND', 'PMEMSET_E_PART_NOT_FOUND', 'PART_UNAVAILABLE'],
    example
  })
  // The document leaves out those that Fastify makes of a GET; this one is none.
  app.head<{ Params: PartPath }>(url, { ...head, config: { ...head.config, swagger: { exposeHeadRoute: true } } }, (request, reply) => {
    const set = service.sets.get(request.params.set)
    const { start, size } = extent(set, request.params.part)
    return describeBytes(reply, service.memory.describe(set, start, size)).header('accept-ranges', 'bytes').send()
  })

  app.put<{ Params: PartPath, Querystring: { offset?: number, durability: Durability } }>(url, operation({
    id: 'writeContent',
    tag: 'memory',
    summary: 'Write exactly the body at an offset in a part',
    description: WRITE_DESCRIPTION,
    path,
    query: { offset: Type.Optional(count({ description: 'Of the first byte; 0 where absent' })), durability: durabilityParameter() },
    headers: Type.Object({ ...ConditionalBytes.properties, 'content-range': Type.Optional(Type.String({ description: '`bytes first-last/*`, in place of offset' })) }),
    bytes: 'in',
    answers: { 200: ref(Written) },
    codes: [...WRITE_CODES, 'PMEMSET_E_LENGTH_OUT_OF_RANGE:header', 'PMEMSET_E_PART_NOT_FOUND'],
    example: { ...example, query: { offset: 49152, durability: 'persisted' }, answer: { ranges: [{ addr: '0x40000000c000', length: 8 }], bytes: 8, durability: 'persisted', granularity: 'page', persistence: 'persistent' } }
  }), async (request) => {
    const set = service.sets.get(request.params.set)
    const { start, size } = extent(set, request.params.part)
    const { from, ...how } = target(request, size)
    const room = { bytes: size - from, refuse: () => outOfRange(size) }
    const write = service.memory.beginWrite(set, { start: start + BigInt(from), ...how, durability: request.query.durability, digests: digestsOf(request), isReceived: isReceived(request), room }, expectedBy(request))
    request.acceptBody()
    return await write(request.raw)
  })
}
