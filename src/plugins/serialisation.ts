// SPDX-License-Identifier: BSD-3-Clause
//
// Replies as text: by Fastify's own compiler, which makes the program for a route here when the route first replies.
import { SerializerSelector } from '@fastify/fast-json-stringify-compiler'
import fp from 'fastify-plugin'
import type { FastifyInstance } from 'fastify'
import { lazy } from '../lazy.js'

async function serialisation (app: FastifyInstance): Promise<void> {
  const compiler = lazy(() => SerializerSelector()(app.getSchemas(), {}))
  app.setSerializerCompiler(({ schema, method, url, httpStatus = '' }) => {
    const serialiser = lazy(() => compiler()({ schema, method, url, httpStatus }))
    return (reply) => serialiser()(reply)
  })
}

export default fp(serialisation, { name: 'serialisation', fastify: '5.x' })
