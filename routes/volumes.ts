// SPDX-License-Identifier: BSD-3-Clause
import type { FastifyInstance } from 'fastify'
import { Type } from 'typebox'
import { Probe, ref, Volume, VolumeList } from '../src/schemas.js'
import type { Service } from '../src/service/service.js'
import { operation } from './operation.js'

const path = { volume: Type.String({ pattern: '^[a-z0-9][a-z0-9._-]{0,62}$' }) }
const example = { name: 'default', fileSystem: 'ext4', dax: false, granularity: 'page', mapSync: false, persistence: 'persistent', persistenceReason: 'ext4 on a block device', alignment: 4096, capacityBytes: 107374182400, freeBytes: 53687091200 }

export default async function volumes (app: FastifyInstance, { service }: { service: Service }): Promise<void> {
  app.get('/volumes', operation({
    id: 'listVolumes',
    tag: 'volumes',
    summary: 'List the volumes',
    answers: { 200: ref(VolumeList) },
    codes: ['BUSY'],
    example: { answer: { items: [example] } }
  }), async () => ({ items: await service.volumes.list() }))

  app.get<{ Params: { volume: string } }>('/volumes/:volume', operation({
    id: 'getVolume',
    tag: 'volumes',
    summary: 'Read one volume',
    path,
    answers: { 200: ref(Volume) },
    codes: ['VOLUME_NOT_FOUND', 'BUSY'],
    example: { path: { volume: 'default' }, answer: example }
  }), (request) => service.volumes.get(request.params.volume))

  app.get<{ Params: { volume: string }, Querystring: { path: string } }>('/volumes/:volume/probe', operation({
    id: 'probeFile',
    tag: 'volumes',
    summary: 'Tell what a part of a file would get, and why not better',
    description: 'The file need not exist. Nothing is created.',
    path,
    query: { path: Type.String({ description: 'Relative to the volume' }) },
    answers: { 200: ref(Probe) },
    codes: ['VOLUME_NOT_FOUND', 'BUSY', 'PATH_NOT_ALLOWED', 'PMEMSET_E_INVALID_PMEM2_SOURCE', 'EACCES', 'EPERM', 'EROFS', 'ENOTDIR', 'ENAMETOOLONG', 'ENOMEM', 'EMFILE', 'ENFILE', 'EIO'],
    example: { path: { volume: 'default' }, query: { path: 'accounts.dat' }, answer: { exists: true, size: 65536, alignment: 4096, mapSync: false, granularity: 'page', persistence: 'persistent', reason: 'the file system is not DAX' } }
  }), (request) => service.volumes.probe(request.params.volume, request.query.path))
}
