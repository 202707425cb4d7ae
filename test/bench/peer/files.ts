// SPDX-License-Identifier: BSD-3-Clause
//
// @fastify/static as it comes.
import fastifyStatic from '@fastify/static'
import fastify from 'fastify'

const app = fastify()
app.register(fastifyStatic, { root: process.env.DIR ?? '' })
await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
process.on('SIGTERM', () => process.exit())
