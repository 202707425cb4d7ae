// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { ServiceError } from '../src/errors.js'
import { address, Conditional, ConditionalBytes, durabilityParameter, length, Ranges, ref, setId, Written, type ByteRange, type Durability } from '../src/schemas.js'
import type { Service } from '../src/service/service.js'
import { contentLength, digestsOf, isReceived, sendBytes } from './bytes.js'
import { expectedBy } from './etag.js'
import { operation } from './operation.js'

interface SetPath { set: string }

const path = { set: setId() }
const example = { ranges: [{ addr: '0x400000000000', length: 4096 }], bytes: 4096, durability: 'persisted', granularity: 'page', persistence: 'persistent' }
export const ACCESS_CODES = ['SET_NOT_FOUND', 'PMEMSET_E_NO_PART_MAPPED', 'PART_UNAVAILABLE', 'PMEMSET_E_CANNOT_FIND_PART_MAP', 'PMEMSET_E_LENGTH_OUT_OF_RANGE', 'PMEMSET_E_IO_FAIL', 'BUSY', 'ENOMEM'] as const
const CHANGE_CODES = [...ACCESS_CODES, 'PRECONDITION_FAILED', 'PERSIST_FAILED', 'SET_DEGRADED'] as const
export const WRITE_CODES = [...CHANGE_CODES, 'RECOVERY_PENDING', 'DIGEST_MISMATCH', 'NO_SPACE', 'EIO', 'EROFS', 'EFBIG', 'PMEMSET_E_DEEP_FLUSH_FAIL'] as const
export const WRITE_DESCRIPTION = 'A write that fails half-way tells how much was `written`: of the bytes that were there before, at least so many are gone. A `Content-Digest` is looked at when the body has come. Only an aligned word of 8 bytes is never torn.'

function refuseContentRange (request: FastifyRequest, _reply: FastifyReply, done: (error?: Error) => void): void {
  if (request.headers['content-range'] === undefined) { done(); return }
  done(new ServiceError('PARAMETER_INVALID', 'The place of the bytes is told by addr alone.', { errors: [{ in: 'header', name: 'content-range', reason: 'must be absent' }] }))
}

export default async function memory (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.get<{ Params: SetPath, Querystring: ByteRange }>('/sets/:set/memory', {
    ...operation({
      id: 'readMemory',
      tag: 'memory',
      summary: 'Read bytes',
      path,
      query: { addr: address(), length: length() },
      bytes: 'out',
      answers: { 200: 'The bytes' },
      codes: ACCESS_CODES,
      example: { path: { set: 'accounts' }, query: { addr: '0x400000000000', length: 8 } }
    }),
    // It would read all the bytes, to send none of them.
    exposeHeadRoute: false
  }, (request, reply) => {
    const { addr, length } = request.query
    return sendBytes(reply, service.memory.read(service.sets.get(request.params.set), BigInt(addr), length))
  })

  app.put<{ Params: SetPath, Querystring: { addr: string, durability: Durability } }>('/sets/:set/memory', {
    ...operation({
      id: 'writeMemory',
      tag: 'memory',
      summary: 'Write exactly the body at an address',
      description: WRITE_DESCRIPTION,
      path,
      query: { addr: address(), durability: durabilityParameter() },
      headers: ConditionalBytes,
      bytes: 'in',
      answers: { 200: ref(Written) },
      codes: WRITE_CODES,
      example: { path: { set: 'accounts' }, query: { addr: '0x400000000000', durability: 'persisted' }, answer: { ...example, ranges: [{ addr: '0x400000000000', length: 8 }], bytes: 8 } }
    }),
    preValidation: refuseContentRange
  }, async (request) => {
    const { addr, durability } = request.query
    const writing = { start: BigInt(addr), length: contentLength(request), durability, digests: digestsOf(request), isReceived: isReceived(request) }
    const write = service.memory.beginWrite(service.sets.get(request.params.set), writing, expectedBy(request))
    request.acceptBody()
    return await write(request.raw)
  })

  for (const [name, id, summary, durability] of [
    ['persist', 'persistRanges', 'Make ranges durable', 'persisted'],
    ['flush', 'flushRanges', 'Flush ranges; every flush here waits, so it reaches what persist does', 'flushed'],
    ['deep-flush', 'deepFlushRanges', 'Make ranges durable down to the medium itself', 'deep']
  ] as const) {
    app.post<{ Params: SetPath, Body: { ranges: ByteRange[] } }>(`/sets/:set/${name}`, operation({
      id,
      tag: 'memory',
      summary,
      path,
      headers: Conditional,
      body: ref(Ranges),
      answers: { 200: ref(Written) },
      codes: [...CHANGE_CODES, 'LIMIT_EXCEEDED', ...(durability === 'deep' ? ['PMEMSET_E_DEEP_FLUSH_FAIL'] as const : [])],
      example: { path: { set: 'accounts' }, answer: { ...example, durability: durability === 'deep' ? 'deep' : 'persisted' } }
    }), (request) => service.memory.persist(service.sets.get(request.params.set), request.body.ranges, durability, expectedBy(request)))
  }

  app.post<{ Params: SetPath }>('/sets/:set/drain', operation({
    id: 'drain',
    tag: 'memory',
    summary: 'Wait for what was flushed',
    description: 'Every call here that stores or flushes has waited before it answers, so there is nothing left to wait for; programs that were written for libpmemset may go on calling it.',
    path,
    headers: Conditional,
    answers: { 200: ref(Written) },
    codes: ['SET_NOT_FOUND', 'PRECONDITION_FAILED', 'PMEMSET_E_NO_PART_MAPPED'],
    example: { path: { set: 'accounts' }, answer: { ...example, ranges: [], bytes: 0, durability: 'none', persistence: 'unknown' } }
  }), (request) => service.memory.drain(service.sets.get(request.params.set), expectedBy(request)))
}
