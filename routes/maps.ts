// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance, FastifyReply } from 'fastify'
import { Type } from 'typebox'
import { address, Conditional, length, pageParameters, PartMap, PartMapPage, rangeParameters, ref, Removal, setId } from '../src/schemas.js'
import type { PageRequest } from '../src/service/list.js'
import * as maps from '../src/service/maps.js'
import type { Service } from '../src/service/service.js'
import { expectedBy, tag } from './etag.js'
import { operation } from './operation.js'

interface SetPath { set: string }
interface MapPath extends SetPath { addr: string }

const example = { addr: '0x400000000000', size: 65536, granularity: 'page', partCount: 1, leaseCount: 0, revision: 2 }
const REMOVAL_CODES = ['SET_NOT_FOUND', 'PRECONDITION_FAILED', 'PMEMSET_E_CANNOT_FIND_PART_MAP', 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP', 'SET_DEGRADED', 'PERSIST_FAILED', 'BUSY', 'NO_SPACE', 'EIO', 'ENOMEM'] as const

// Most look-ups are told what an earlier one was, and the same object; its text is made once.
const texts = new WeakMap<object, string>()

function sendTold (reply: FastifyReply, answer: object): FastifyReply {
  let text = texts.get(answer)
  if (text === undefined) {
    text = reply.serialize(answer) as string
    texts.set(answer, text)
  }
  return reply.header('content-type', 'application/json; charset=utf-8').send(text)
}

export default async function mapRoutes (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.get<{ Params: SetPath, Querystring: maps.RangeRequest & PageRequest }>('/sets/:set/maps', operation({
    id: 'findMaps',
    tag: 'maps',
    summary: 'Find the part map that holds an address, or list them',
    description: 'With `addr` alone: the one part map that contains the address, with the part that holds it, or 404. With `addr` and `length`: those that the range touches. With neither: all. In the order of addresses.',
    path: { set: setId() },
    query: { ...rangeParameters(), ...pageParameters() },
    answers: { 200: ref(PartMapPage) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'PMEMSET_E_CANNOT_FIND_PART_MAP', 'PART_UNAVAILABLE', 'PMEMSET_E_LENGTH_OUT_OF_RANGE'],
    example: { path: { set: 'accounts' }, query: { addr: '0x400000000010' }, answer: { items: [{ ...example, part: { id: 'first', addr: '0x400000000000', length: 65536, offset: 0 } }] } }
  }), (request, reply) => {
    const set = service.sets.get(request.params.set)
    const { addr, length, limit, cursor } = request.query
    tag(reply, set)
    // Pages are of lists; beside an address alone they are as wrong as half a range.
    const isLookup = addr !== undefined && length === undefined && limit === undefined && cursor === undefined
    return isLookup ? sendTold(reply, maps.at(set, addr)) : maps.list(set, { addr, length }, { limit, cursor })
  })

  app.get<{ Params: MapPath }>('/sets/:set/maps/:addr', operation({
    id: 'getMap',
    tag: 'maps',
    summary: 'Read the part map that starts at an address',
    path: { set: setId(), addr: address() },
    answers: { 200: ref(PartMap) },
    etag: true,
    codes: ['SET_NOT_FOUND', 'PMEMSET_E_CANNOT_FIND_PART_MAP', 'PART_UNAVAILABLE'],
    example: { path: { set: 'accounts', addr: '0x400000000000' }, answer: example }
  }), (request, reply) => {
    const set = service.sets.get(request.params.set)
    tag(reply, set)
    return maps.get(set, request.params.addr)
  })

  app.delete<{ Params: MapPath }>('/sets/:set/maps/:addr', operation({
    id: 'removeMap',
    tag: 'maps',
    summary: 'Remove the part map that starts at an address, with all of its parts',
    path: { set: setId(), addr: address() },
    headers: Conditional,
    answers: { 204: 'Removed' },
    codes: [...REMOVAL_CODES, 'PART_UNAVAILABLE'],
    example: { path: { set: 'accounts', addr: '0x400000000000' } }
  }), async (request, reply) => {
    await maps.removeAt(service.sets.get(request.params.set), request.params.addr, expectedBy(request))
    return reply.code(204).send()
  })

  app.delete<{ Params: SetPath, Querystring: { addr: string, length: number, dryRun?: boolean } }>('/sets/:set/maps', operation({
    id: 'removeRange',
    tag: 'maps',
    summary: 'Remove every part that a range touches, whole',
    description: 'All or nothing, and durable first. Part maps are trimmed or split, or go.',
    path: { set: setId() },
    query: { addr: address(), length: length(), dryRun: Type.Optional(Type.Boolean({ description: 'Only tell what would go' })) },
    headers: Conditional,
    answers: { 200: ref(Removal) },
    etag: true,
    codes: [...REMOVAL_CODES, 'PMEMSET_E_LENGTH_OUT_OF_RANGE'],
    example: {
      path: { set: 'accounts' },
      query: { addr: '0x400000000000', length: 1, dryRun: true },
      answer: { dryRun: true, removed: [{ id: 'first', addr: '0x400000000000', length: 65536 }], removedCount: 1, trimmed: [], split: [] }
    }
  }), async (request, reply) => {
    const set = service.sets.get(request.params.set)
    const { addr, length, dryRun = false } = request.query
    const removal = await maps.remove(set, { addr, length }, dryRun, expectedBy(request))
    tag(reply, set)
    return removal
  })
}
