// SPDX-License-Identifier: BSD-3-Clause
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { ServiceError } from '../src/errors.js'
import { address, Conditional, durabilityParameter, length, Ranges, ref, setId, Written, type ByteRange, type Durability } from '../src/schemas.js'
import type { Reading } from '../src/service/memory.js'
import type { Service } from '../src/service/service.js'
import { expectedBy } from './etag.js'
import { operation } from './operation.js'

interface SetPath { set: string }

const path = { set: setId() }
const example = { ranges: [{ addr: '0x400000000000', length: 4096 }], bytes: 4096, durability: 'persisted', granularity: 'page', persistence: 'persistent' }
export const ACCESS_CODES = ['SET_NOT_FOUND', 'PMEMSET_E_NO_PART_MAPPED', 'PMEMSET_E_CANNOT_FIND_PART_MAP', 'PMEMSET_E_LENGTH_OUT_OF_RANGE', 'PMEMSET_E_IO_FAIL', 'BUSY', 'ENOMEM'] as const
const CHANGE_CODES = [...ACCESS_CODES, 'PRECONDITION_FAILED', 'PERSIST_FAILED', 'SET_DEGRADED'] as const

/** Octets in pieces. The map is let go at the first of the two ends: a reply that is queued behind another one gets no `close` when the socket goes. */
function stream (request: FastifyRequest, reply: FastifyReply, pieces: AsyncIterable<Buffer>, release: () => void): Readable {
  const octets = Readable.from(pieces, { objectMode: false, highWaterMark: 1 })
  const { socket } = request.raw
  const end = (): void => { octets.destroy() }
  socket.once('close', end)
  octets.once('close', () => {
    socket.off('close', end)
    release()
  })
  // Fastify breaks the connection off; what it was is for the log.
  octets.once('error', (error) => { reply.sendProblem(error) })
  return octets
}

function sendBytes (request: FastifyRequest, reply: FastifyReply, { granularity, persistence, length, bytes }: Reading): FastifyReply {
  if (!Buffer.isBuffer(bytes) && request.raw.socket.destroyed) {
    // The client went while the first piece was read: nothing will tell of its end any more.
    bytes.release()
    return reply.hijack()
  }
  reply.headers({ 'content-type': 'application/octet-stream', 'content-length': length, 'pmemset-granularity': granularity, 'pmemset-persistence': persistence })
  return reply.send(Buffer.isBuffer(bytes) ? bytes : stream(request, reply, bytes.pieces, bytes.release))
}

function refuseContentRange (request: FastifyRequest, _reply: FastifyReply, done: (error?: Error) => void): void {
  if (request.headers['content-range'] === undefined) { done(); return }
  done(new ServiceError('PARAMETER_INVALID', 'The place of the bytes is told by addr alone.', { errors: [{ in: 'header', name: 'content-range', reason: 'must be absent' }] }))
}

function contentLength (request: FastifyRequest): number | undefined {
  const header = request.headers['content-length']
  // Node has refused what is no number. What is no exact one is longer than any map all the same. Without one and without chunks, the body is empty.
  if (header !== undefined) return Math.min(Number(header), Number.MAX_SAFE_INTEGER)
  return request.headers['transfer-encoding'] === undefined ? 0 : undefined
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
  }, async (request, reply) => sendBytes(request, reply, await service.memory.read(service.sets.get(request.params.set), request.query)))

  app.put<{ Params: SetPath, Querystring: { addr: string, durability: Durability } }>('/sets/:set/memory', {
    ...operation({
      id: 'writeMemory',
      tag: 'memory',
      summary: 'Write exactly the body at an address',
      description: 'A write that fails half-way tells how much was `written`. Only an aligned word of 8 bytes is never torn.',
      path,
      query: { addr: address(), durability: durabilityParameter() },
      headers: Conditional,
      bytes: 'in',
      answers: { 200: ref(Written) },
      codes: [...CHANGE_CODES, 'NO_SPACE', 'EIO', 'EROFS', 'EFBIG', 'PMEMSET_E_DEEP_FLUSH_FAIL'],
      example: { path: { set: 'accounts' }, query: { addr: '0x400000000000', durability: 'persisted' }, answer: { ...example, ranges: [{ addr: '0x400000000000', length: 8 }], bytes: 8 } }
    }),
    preValidation: refuseContentRange
  }, async (request) => {
    const { addr, durability } = request.query
    const write = service.memory.beginWrite(service.sets.get(request.params.set), addr, contentLength(request), durability, expectedBy(request))
    request.acceptBody()
    // A refusal in the middle is still to be answered, so the socket stays.
    return await write(request.raw.iterator({ destroyOnReturn: false }))
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
