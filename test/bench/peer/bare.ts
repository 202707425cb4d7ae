// SPDX-License-Identifier: BSD-3-Clause
//
// H1's peer, a process: a Fastify route with nothing around it that returns the object which the service finds.
import fastify from 'fastify'

const answer = JSON.parse(process.env.ANSWER ?? '') as object
const app = fastify()
app.get('/sets/:id/maps', () => answer)
await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
process.on('SIGTERM', () => { app.close().catch(console.error) })
