// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance } from 'fastify'
import { Conditional, GranularityAnswer, NewSet, PmemSet, PmemSetPage, ref, setId, SetPatch, pageParameters } from '../src/schemas.js'
import { atLocation } from '../src/errors.js'
import type { PageRequest } from '../src/service/list.js'
import type { Service } from '../src/service/service.js'
import { expectedBy, tag } from './etag.js'
import { operation } from './operation.js'

const path = { set: setId() }
const example = {
  id: 'accounts', uid: '0b8f6f0e-6a3e-4f0c-9a53-2f4d9f3e7c11', revision: 1, requiredGranularity: 'page', coalescing: 'full', window: { addr: '0x400000000000', size: 1073741824 }, partCount: 0, mapCount: 0, mappedBytes: 0, state: 'ready', labels: { team: 'ledger' }, createdAt: '2026-11-24T12:00:00.000Z'
}
const mapped = { ...example, revision: 2, effectiveGranularity: 'page', partCount: 1, mapCount: 1, mappedBytes: 65536 }

export default async function sets (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.post<{ Body: NewSet }>('/sets', operation({
    id: 'createSet',
    tag: 'sets',
    summary: 'Make a set',
    headers: Conditional,
    body: ref(NewSet),
    answers: { 201: ref(PmemSet) },
    etag: true,
    codes: ['SET_EXISTS', 'LIMIT_EXCEEDED', 'PRECONDITION_FAILED', 'PMEMSET_E_GRANULARITY_NOT_SET', 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED:schema', 'PMEMSET_E_INVALID_COALESCING_VALUE', 'NO_SPACE', 'EIO', 'ENOMEM'],
    example: { answer: example }
  }), async (request, reply) => {
    const set = await service.sets.create(request.body, expectedBy(request)).catch(atLocation('SET_EXISTS', `/sets/${request.body.id ?? ''}`))
    tag(reply, set)
    return reply.code(201).header('location', `/sets/${set.record.id}`).send(set.describe())
  })

  app.get<{ Querystring: PageRequest }>('/sets', operation({
    id: 'listSets',
    tag: 'sets',
    summary: 'List the sets, by id',
    query: pageParameters(),
    answers: { 200: ref(PmemSetPage) },
    example: { answer: { items: [mapped] } }
  }), (request) => service.sets.list(request.query))

  app.get<{ Params: { set: string } }>('/sets/:set', operation({
    id: 'getSet',
    tag: 'sets',
    summary: 'Read one set',
    path,
    answers: { 200: ref(PmemSet) },
    etag: true,
    codes: ['SET_NOT_FOUND'],
    example: { path: { set: 'accounts' }, answer: mapped }
  }), (request, reply) => {
    const set = service.sets.get(request.params.set)
    tag(reply, set)
    return set.describe()
  })

  app.patch<{ Params: { set: string }, Body: SetPatch }>('/sets/:set', operation({
    id: 'changeSet',
    tag: 'sets',
    summary: 'Change the coalescing mode or the labels',
    path,
    headers: Conditional,
    body: ref(SetPatch),
    answers: { 200: ref(PmemSet) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'PRECONDITION_FAILED', 'LIMIT_EXCEEDED', 'PMEMSET_E_INVALID_COALESCING_VALUE', 'BUSY', 'NO_SPACE', 'EIO'],
    example: { path: { set: 'accounts' }, answer: { ...mapped, revision: 3, coalescing: 'opportunistic', labels: { team: 'audit' } } }
  }), async (request, reply) => {
    const set = service.sets.get(request.params.set)
    const changed = await set.patch(request.body, expectedBy(request))
    tag(reply, set)
    return changed
  })

  app.delete<{ Params: { set: string } }>('/sets/:set', operation({
    id: 'deleteSet',
    tag: 'sets',
    summary: 'Make a set durable and delete it',
    description: 'The bytes stay in the files. Refused while a read, write or flush is under way.',
    path,
    headers: Conditional,
    answers: { 204: 'Deleted' },
    codes: ['SET_NOT_FOUND', 'PRECONDITION_FAILED', 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP', 'SET_DEGRADED', 'PERSIST_FAILED', 'BUSY', 'NO_SPACE', 'EIO', 'ENOMEM'],
    example: { path: { set: 'accounts' } }
  }), async (request, reply) => {
    await service.sets.delete(request.params.set, expectedBy(request))
    return reply.code(204).send()
  })

  app.get<{ Params: { set: string } }>('/sets/:set/granularity', operation({
    id: 'getGranularity',
    tag: 'sets',
    summary: 'Tell the granularity that the first part gave the set',
    path,
    answers: { 200: ref(GranularityAnswer) },
    codes: ['SET_NOT_FOUND', 'PMEMSET_E_NO_PART_MAPPED:granularity'],
    example: { path: { set: 'accounts' }, answer: { granularity: 'page' } }
  }), (request) => ({ granularity: service.sets.get(request.params.set).granularity() }))
}
