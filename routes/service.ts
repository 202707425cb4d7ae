// SPDX-License-Identifier: BSD-3-Clause
//
// The service itself: what it can do, how it is, and what its codes mean.
import type { FastifyInstance } from 'fastify'
import { Type } from 'typebox'
import { CONTENT_TYPE, createMetrics } from '../src/metrics.js'
import { Capabilities, ErrorCode, ErrorCodeList, Health, ref } from '../src/schemas.js'
import { getCode, listCodes, type Service } from '../src/service/service.js'
import { operation } from './operation.js'

export default async function serviceRoutes (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.get('/capabilities', operation({
    id: 'getCapabilities',
    tag: 'service',
    summary: 'Tell versions, abilities and limits',
    answers: { 200: ref(Capabilities) },
    codes: ['EMFILE', 'ENFILE', 'ENOMEM', 'BUSY']
  }), () => service.capabilities())

  app.get('/errors', operation({
    id: 'listErrors',
    tag: 'service',
    summary: 'List every code',
    answers: { 200: ref(ErrorCodeList) }
  }), () => ({ items: listCodes() }))

  app.get<{ Params: { code: string } }>('/errors/:code', operation({
    id: 'getError',
    tag: 'service',
    summary: 'Tell what a code means and what to do about it',
    path: { code: Type.String({ pattern: '^[A-Z][A-Z0-9_]{1,63}$' }) },
    answers: { 200: ref(ErrorCode) },
    codes: ['ROUTE_NOT_FOUND'],
    example: { path: { code: 'PMEMSET_E_CANNOT_FIND_PART_MAP' }, answer: getCode('PMEMSET_E_CANNOT_FIND_PART_MAP') }
  }), (request) => getCode(request.params.code))

  app.get('/livez', operation({
    id: 'getLiveness',
    tag: 'service',
    summary: 'Answer as long as the event loop does',
    answers: { 200: ref(Health) },
    example: { answer: { status: 'live' } }
  }), () => ({ status: 'live' }))

  app.get('/readyz', operation({
    id: 'getReadiness',
    tag: 'service',
    summary: 'Tell whether requests are served, and how much there is',
    description: 'While the service maps again what its catalog names, it is not ready: the problem tells how many parts that are, and how many it has dealt with.',
    answers: { 200: ref(Health) },
    codes: ['RESTORING'],
    example: { answer: { status: 'ready', sets: 1, parts: 1, volumes: 1 } }
  }), () => service.readiness())

  const tellMetrics = createMetrics(app.replies, () => service.census())
  app.get('/metrics', operation({
    id: 'getMetrics',
    tag: 'service',
    summary: 'Tell what an operator watches, for Prometheus',
    description: 'Requests by route, time in the engine, flushes, bytes, and what there is now, in the text format of Prometheus (0.0.4).',
    type: 'text/plain',
    answers: { 200: 'The metrics' }
  }), async (_request, reply) => reply.type(CONTENT_TYPE).send(await tellMetrics()))
}
