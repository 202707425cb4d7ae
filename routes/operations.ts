// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance } from 'fastify'
import { Atomic, AtomicOutcome, Batch, BatchOutcome, Conditional, Copy, Fill, ref, setId, Written } from '../src/schemas.js'
import type { Service } from '../src/service/service.js'
import { expectedBy } from './etag.js'
import { ACCESS_CODES } from './memory.js'
import { operation } from './operation.js'

interface SetPath { set: string }

const NO_BYTES = Buffer.alloc(0)
const path = { set: setId() }
const STORE_CODES = [...ACCESS_CODES, 'PRECONDITION_FAILED', 'PERSIST_FAILED', 'SET_DEGRADED', 'RECOVERY_PENDING', 'NO_SPACE', 'EIO', 'EROFS'] as const
const BATCH_CODES = [...STORE_CODES, 'LIMIT_EXCEEDED', 'ATOMICITY_ACROSS_VOLUMES', 'ENOTSUP', 'EACCES', 'PMEMSET_E_DEEP_FLUSH_FAIL'] as const
const written = { ranges: [{ addr: '0x400000000000', length: 4096 }], bytes: 4096, durability: 'persisted', granularity: 'page', persistence: 'persistent' }

export default async function operations (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.post<{ Params: SetPath, Body: Fill }>('/sets/:set/memset', operation({
    id: 'fillMemory',
    tag: 'memory',
    summary: 'Store one byte all over a range',
    path,
    headers: Conditional,
    body: ref(Fill),
    answers: { 200: ref(Written) },
    codes: [...STORE_CODES, 'PMEMSET_E_DEEP_FLUSH_FAIL'],
    example: { path: { set: 'accounts' }, answer: written }
  }), (request) => service.operations.memset(service.sets.get(request.params.set), request.body, expectedBy(request)))

  for (const [op, id, summary] of [
    ['memcpy', 'copyMemory', 'Copy bytes within the set'],
    ['memmove', 'moveMemory', 'Copy bytes within the set, from and to ranges that may overlap']
  ] as const) {
    app.post<{ Params: SetPath, Body: Copy }>(`/sets/:set/${op}`, operation({
      id,
      tag: 'memory',
      summary,
      description: 'Overlap is seen by address: ranges of two parts that have the same bytes of a file do not count as overlapping.',
      path,
      headers: Conditional,
      body: ref(Copy),
      answers: { 200: ref(Written) },
      codes: [...STORE_CODES, 'PMEMSET_E_DEEP_FLUSH_FAIL'],
      example: { path: { set: 'accounts' }, answer: written }
    }), (request) => service.operations.copy(service.sets.get(request.params.set), op, request.body, expectedBy(request)))
  }

  app.post<{ Params: SetPath, Body: Atomic }>('/sets/:set/atomic', operation({
    id: 'atomic',
    tag: 'memory',
    summary: 'Change one aligned word, and make it durable',
    description: 'One locked instruction on the mapped word, so that everybody who has these bytes of the file mapped agrees on the order. A reply that is lost leaves it open whether it was done: repeat compare_exchange, not add.',
    path,
    headers: Conditional,
    body: ref(Atomic),
    answers: { 200: ref(AtomicOutcome) },
    codes: STORE_CODES,
    example: { path: { set: 'accounts' }, answer: { previous: '0x0', current: '0x1' } }
  }), (request) => service.operations.atomic(service.sets.get(request.params.set), request.body, expectedBy(request)))

  app.post<{ Params: SetPath, Body: Batch }>('/sets/:set/batch', operation({
    id: 'runBatch',
    tag: 'memory',
    summary: 'Many operations in order, made durable together',
    description: 'Everything that can be checked is checked before the first operation. The first that fails ends the batch: the problem has `failedOperation`, the `results` before it, and the `durability` that they reached. Ranges of persist and flush, and the words of atomics, become durable whatever `durability` says. With `atomicity: all` the batch happens whole or not at all, whatever fails and whenever the process or the power ends: no operation of it is made before all of them are written down in the log of the volume, which all files that it stores to have to be of. Meanwhile stores of others to the same bytes wait; reads do not, and may see it half made. One that fails has done nothing, unless the problem has all of its `results`: then it is committed, a flush of a file has failed behind that, and it becomes whole when this failure is acknowledged, or with the next start.',
    path,
    headers: Conditional,
    body: ref(Batch),
    batch: true,
    answers: { 200: ref(BatchOutcome) },
    codes: BATCH_CODES,
    example: { path: { set: 'accounts' }, answer: { results: [{}, { data: 'OCBieXRlcy4=' }], bytes: 8, durability: 'persisted', granularity: 'page', persistence: 'persistent' } }
  }), (request) => service.operations.batch(service.sets.get(request.params.set), request.body, expectedBy(request)))

  app.post<{ Params: SetPath, Body: Buffer | undefined }>('/sets/:set/batch/binary', operation({
    id: 'runBinaryBatch',
    tag: 'memory',
    summary: 'The same, without JSON',
    description: 'Body and reply have the layout of `openapi/batch.md`; `src/batch.ts` encodes and decodes it.',
    path,
    headers: Conditional,
    bytes: 'both',
    batch: true,
    answers: { 200: 'The results, in the layout' },
    codes: BATCH_CODES,
    example: { path: { set: 'accounts' } }
  }), async (request, reply) => {
    const results = await service.operations.batchBinary(service.sets.get(request.params.set), request.body ?? NO_BYTES, expectedBy(request))
    return reply.type('application/octet-stream').send(results)
  })
}
