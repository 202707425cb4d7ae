// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance } from 'fastify'
import { Conditional, NewPart, pageParameters, Part, partId, PartPage, rangeParameters, ref, Restoration, setId } from '../src/schemas.js'
import { atLocation } from '../src/errors.js'
import type { PageRequest } from '../src/service/list.js'
import type { RangeRequest } from '../src/service/maps.js'
import * as parts from '../src/service/parts.js'
import type { Service } from '../src/service/service.js'
import { expectedBy, tag } from './etag.js'
import { operation } from './operation.js'

interface SetPath { set: string }
interface PartPath extends SetPath { part: string }

const example = {
  id: 'first', set: 'accounts', revision: 2, source: { type: 'file', volume: 'default', path: 'accounts.dat', create: 'if_needed', grow: false }, offset: 0, length: 65536, addr: '0x400000000000', map: { addr: '0x400000000000', size: 65536 }, coalesced: false, granularity: 'page', mapSync: false, persistence: 'persistent', state: 'mapped', createdAt: '2026-11-24T12:00:00.000Z'
}

export default async function partRoutes (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.post<{ Params: SetPath, Body: NewPart }>('/sets/:set/parts', operation({
    id: 'mapPart',
    tag: 'parts',
    summary: 'Map a part of a source into the set',
    description: 'pmemset_part_map(3): all or nothing, the file included. With coalescing, the part goes right behind the part map that was made last.',
    path: { set: setId() },
    headers: Conditional,
    body: ref(NewPart),
    answers: { 201: ref(Part) },
    etag: true,
    codes: [
      'SET_NOT_FOUND', 'PRECONDITION_FAILED', 'PART_ID_EXISTS', 'VOLUME_NOT_FOUND:body', 'PATH_NOT_ALLOWED', 'SOURCE_IN_USE', 'LIMIT_EXCEEDED', 'SET_DEGRADED', 'PERSIST_FAILED', 'BUSY', 'NO_SPACE',
      'PMEMSET_E_INVALID_SOURCE_PATH', 'PMEMSET_E_INVALID_SOURCE_PATH:schema', 'PMEMSET_E_INVALID_PMEM2_SOURCE', 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS', 'PMEMSET_E_INVALID_OFFSET_VALUE',
      'PMEMSET_E_INVALID_PMEM2_MAP', 'PMEMSET_E_INVALID_PMEM2_MAP:occupied', 'PMEMSET_E_INVALID_PMEM2_MAP:failed', 'PMEMSET_E_INVALID_PMEM2_MAP:memory',
      'PMEMSET_E_CANNOT_GROW_SOURCE_FILE', 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE:occupied', 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE:impossible', 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE:failed',
      'PMEMSET_E_CANNOT_GROW_SOURCE_FILE:memory', 'PMEMSET_E_LENGTH_UNALIGNED', 'PMEMSET_E_MAP_LENGTH_UNSET', 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL',
      'PMEMSET_E_CANNOT_COALESCE_PARTS', 'PMEMSET_E_CANNOT_FIT_PART_MAP', 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', 'PMEMSET_E_GRANULARITY_MISMATCH',
      'EACCES', 'EPERM', 'EROFS', 'ENOENT', 'ENOTDIR', 'ENAMETOOLONG', 'EEXIST', 'ETXTBSY', 'ENOMEM', 'EMFILE', 'ENFILE', 'EIO'
    ],
    example: { path: { set: 'accounts' }, answer: example }
  }), async (request, reply) => {
    const set = service.sets.get(request.params.set)
    const part = await parts.map(set, request.body, expectedBy(request)).catch(atLocation('PART_ID_EXISTS', `/sets/${set.record.id}/parts/${request.body.id ?? ''}`))
    tag(reply, set)
    return reply.code(201).header('location', `/sets/${set.record.id}/parts/${part.id}`).send(part)
  })

  app.get<{ Params: SetPath, Querystring: RangeRequest & PageRequest }>('/sets/:set/parts', operation({
    id: 'listParts',
    tag: 'parts',
    summary: 'List the parts, or those that a range touches, in the order of their addresses',
    path: { set: setId() },
    query: { ...rangeParameters(), ...pageParameters() },
    answers: { 200: ref(PartPage) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'PMEMSET_E_LENGTH_OUT_OF_RANGE'],
    example: { path: { set: 'accounts' }, query: { addr: '0x400000000000', length: 4096, limit: 10 }, answer: { items: [example] } }
  }), (request, reply) => {
    const set = service.sets.get(request.params.set)
    const { addr, length, ...page } = request.query
    tag(reply, set)
    return parts.list(set, { addr, length }, page)
  })

  app.get<{ Params: PartPath }>('/sets/:set/parts/:part', operation({
    id: 'getPart',
    tag: 'parts',
    summary: 'Read one part',
    path: { set: setId(), part: partId() },
    answers: { 200: ref(Part) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'PMEMSET_E_PART_NOT_FOUND'],
    example: { path: { set: 'accounts', part: 'first' }, answer: example }
  }), (request, reply) => {
    const set = service.sets.get(request.params.set)
    tag(reply, set)
    return parts.get(set, request.params.part)
  })

  app.delete<{ Params: PartPath }>('/sets/:set/parts/:part', operation({
    id: 'removePart',
    tag: 'parts',
    summary: 'Remove one part; its part map is trimmed or split, or goes with it',
    path: { set: setId(), part: partId() },
    headers: Conditional,
    answers: { 204: 'Removed' },
    codes: ['SET_NOT_FOUND', 'PRECONDITION_FAILED', 'PMEMSET_E_PART_NOT_FOUND', 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP', 'SET_DEGRADED', 'PERSIST_FAILED', 'BUSY', 'NO_SPACE', 'EIO', 'ENOMEM'],
    example: { path: { set: 'accounts', part: 'first' } }
  }), async (request, reply) => {
    await parts.remove(service.sets.get(request.params.set), request.params.part, expectedBy(request))
    return reply.code(204).send()
  })

  app.post<{ Params: PartPath, Body: Restoration | undefined }>('/sets/:set/parts/:part/restore', operation({
    id: 'restorePart',
    tag: 'parts',
    summary: 'Map a part that is unavailable again, where it was',
    description: 'For when what was in the way at the start of the service is mended. A part that is mapped stays as it is.',
    path: { set: setId(), part: partId() },
    headers: Conditional,
    body: ref(Restoration),
    answers: { 200: ref(Part) },
    etag: true,
    codes: [
      'SET_NOT_FOUND', 'PRECONDITION_FAILED', 'PMEMSET_E_PART_NOT_FOUND', 'SOURCE_REPLACED', 'VOLUME_NOT_FOUND:body', 'PATH_NOT_ALLOWED', 'LIMIT_EXCEEDED', 'SET_DEGRADED', 'PERSIST_FAILED', 'BUSY', 'NO_SPACE',
      'PMEMSET_E_INVALID_SOURCE_PATH', 'PMEMSET_E_INVALID_PMEM2_SOURCE', 'PMEMSET_E_INVALID_PMEM2_MAP', 'PMEMSET_E_INVALID_PMEM2_MAP:occupied', 'PMEMSET_E_INVALID_PMEM2_MAP:failed', 'PMEMSET_E_INVALID_PMEM2_MAP:memory',
      'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', 'PMEMSET_E_CANNOT_FIT_PART_MAP', 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', 'PMEMSET_E_GRANULARITY_MISMATCH',
      'EACCES', 'EPERM', 'EROFS', 'ENOENT', 'ENOTDIR', 'ENAMETOOLONG', 'ETXTBSY', 'ENOMEM', 'EMFILE', 'ENFILE', 'EIO'
    ],
    example: { path: { set: 'accounts', part: 'first' }, answer: example }
  }), async (request, reply) => {
    const set = service.sets.get(request.params.set)
    const part = await parts.restore(set, request.params.part, request.body?.adopt ?? false, expectedBy(request))
    tag(reply, set)
    return part
  })
}
