// SPDX-License-Identifier: BSD-3-Clause
//
// What is to be done about flushes that failed.
import type { FastifyInstance } from 'fastify'
import { Acknowledgement, Conditional, Failure, failureId, FailureList, ref, setId, type Recovery } from '../src/schemas.js'
import * as failures from '../src/service/failures.js'
import type { Service } from '../src/service/service.js'
import { expectedBy, tag } from './etag.js'
import { operation } from './operation.js'

interface SetPath { set: string }
interface FailurePath extends SetPath { failure: string }

const example = { id: 'failure-5f1c09aa-1', kind: 'persist_failed', at: '2026-11-24T12:00:00.000Z', ranges: [{ addr: '0x400000000000', length: 4096 }], code: 'PERSIST_FAILED', errno: 'ENOSPC', acknowledged: true }

export default async function failureRoutes (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.get<{ Params: SetPath }>('/sets/:set/failures', operation({
    id: 'listFailures',
    tag: 'failures',
    summary: 'Tell why a set is degraded: flushes that failed and were not acknowledged',
    path: { set: setId() },
    answers: { 200: ref(FailureList) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'BUSY'],
    example: { path: { set: 'accounts' }, answer: { items: [] } }
  }), async (request, reply) => {
    const set = service.sets.get(request.params.set)
    tag(reply, set)
    return { items: await failures.list(set) }
  })

  app.post<{ Params: FailurePath, Body: { action: Recovery } }>('/sets/:set/failures/:failure/acknowledge', operation({
    id: 'acknowledgeFailure',
    tag: 'failures',
    summary: 'Deal with a flush that failed, for every set that maps the file',
    description: 'rewrite: the bytes that the mapping shows now become durable; of a page that has left memory since the failure, these are what the medium gave for it. ' +
      'discard: the mapping shows what the medium has; a page that was stored to since the failure is on the medium as it is. ' +
      'Readers and writers go on meanwhile, and may see the bytes change. Where it fails the set stays degraded and everything stays in doubt: ' +
      'PERSIST_FAILED where the medium still refuses, EBUSY where another process keeps pages in memory that were to be discarded, or stores keep coming to them.',
    path: { set: setId(), failure: failureId() },
    headers: Conditional,
    body: ref(Acknowledgement),
    answers: { 200: ref(Failure) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'FAILURE_NOT_FOUND', 'PRECONDITION_FAILED', 'PERSIST_FAILED', 'EBUSY', 'BUSY', 'NO_SPACE', 'EIO', 'ENOMEM'],
    example: { path: { set: 'accounts', failure: 'failure-5f1c09aa-1' }, answer: example }
  }), async (request, reply) => {
    const set = service.sets.get(request.params.set)
    const failure = await failures.acknowledge(set, request.params.failure, request.body.action, expectedBy(request))
    tag(reply, set)
    return failure
  })
}
