// SPDX-License-Identifier: BSD-3-Clause
//
// lmdb behind Fastify. A put is answered when it is on the disk.
import fastify from 'fastify'
import { open } from 'lmdb'

// Without this a put is committed before it is synced, and the two promises differ.
const db = open<Buffer, number>({ path: process.env.DIR ?? '', encoding: 'binary', keyEncoding: 'uint32', overlappingSync: false })
const app = fastify({ bodyLimit: 64 * 1024 * 1024 })
app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) => { done(null, body) })
app.get<{ Params: { key: string } }>('/keys/:key', (request, reply) => reply.type('application/octet-stream').send(db.getBinary(Number(request.params.key))))
app.put<{ Params: { key: string }, Body: Buffer }>('/keys/:key', async (request, reply) => {
  await db.put(Number(request.params.key), request.body)
  return reply.code(204).send()
})
await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
process.on('SIGTERM', () => process.exit())
