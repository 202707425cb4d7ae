// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance } from 'fastify'
import { CatalogDocument, Conditional, ref } from '../src/schemas.js'
import type { Service } from '../src/service/service.js'
import { expectedBy } from './etag.js'
import { operation } from './operation.js'

const example = {
  schema: 1,
  uid: '4b6a2f1e-8f0e-4c39-9f57-0a1c6d2b7e55',
  arenaBase: '0x400000000000',
  pageSize: 4096,
  sets: [{
    id: 'accounts',
    uid: '0b8f6f0e-6a3e-4f0c-9a53-2f4d9f3e7c11',
    revision: 2,
    requiredGranularity: 'page',
    effectiveGranularity: 'page',
    coalescing: 'full',
    windowAddr: '0x400000000000',
    windowSize: 1073741824,
    partsMade: 1,
    labels: { team: 'ledger' },
    createdAt: '2026-11-24T12:00:00.000Z',
    parts: [{
      id: 'first', cookie: 1, source: { type: 'file', volume: 'default', path: 'accounts.dat', create: 'if_needed', grow: false }, identity: 'as the engine tells it', offset: 0, length: 65536, addr: '0x400000000000', coalesced: false, granularity: 'page', persistence: 'persistent', mapSync: false, createdAt: '2026-11-24T12:00:00.000Z'
    }],
    failures: []
  }]
}

export default async function catalogRoutes (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.get('/catalog', operation({
    id: 'getCatalog',
    tag: 'service',
    scope: 'admin',
    summary: 'Read everything that the service remembers, as one document',
    answers: { 200: ref(CatalogDocument) },
    etag: true,
    example: { answer: example }
  }), (_request, reply) => {
    const { document, version } = service.document()
    return reply.header('etag', version).send(document)
  })

  app.put<{ Body: CatalogDocument }>('/catalog', operation({
    id: 'replaceCatalog',
    tag: 'service',
    scope: 'admin',
    summary: 'Replace everything that the service remembers, and map what the document names',
    description: 'All or nothing. It needs an If-Match where there are sets, which go. What cannot be mapped is unavailable then, as after a start. `uid` and `arenaBase` tell where the document is from, and stay what they are here.',
    headers: Conditional,
    body: ref(CatalogDocument),
    batch: true,
    answers: { 200: ref(CatalogDocument) },
    etag: true,
    codes: ['PRECONDITION_REQUIRED', 'PRECONDITION_FAILED', 'LIMIT_EXCEEDED', 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP', 'SET_DEGRADED', 'PERSIST_FAILED', 'BUSY', 'NO_SPACE', 'EIO', 'ENOMEM'],
    example: { answer: { ...example, sets: [] } }
  }), async (request, reply) => {
    const { document, version } = await service.replace(request.body, request.headers['if-match'], expectedBy(request))
    return reply.header('etag', version).send(document)
  })
}
