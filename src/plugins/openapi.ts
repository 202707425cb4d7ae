// SPDX-License-Identifier: BSD-3-Clause
//
// The OpenAPI document, made from the routes, and the pages that show it. Shared schemas keep the names of their $id, for generators.
import fp from 'fastify-plugin'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance } from 'fastify'

export interface OpenapiOptions {
  version: string
}

const DESCRIPTION = `Maps parts of files into sets: contiguous address ranges that are found by address, written, and made durable.

Addresses are strings in hexadecimal; sizes, offsets and lengths are bytes. Every failure is a problem document (RFC 9457) whose \`code\` is described at \`/errors/{code}\`.`

const TAGS = [
  { name: 'volumes', description: 'Directories that the operator allows, and what their media promise' },
  { name: 'sets', description: 'Sets and their windows of addresses' },
  { name: 'parts', description: 'Mapped ranges of files' },
  { name: 'maps', description: 'Contiguous address ranges: look-up by address, and removal' },
  { name: 'memory', description: 'Bytes, and making them durable' },
  { name: 'service', description: 'Health, abilities, codes' }
]

async function openapi (app: FastifyInstance, { version }: OpenapiOptions): Promise<void> {
  app.addHook('onRoute', (route) => {
    if (!/^\/(?:docs|errors)(?:\/|$)/.test(route.url)) return
    const others = route.onRequest === undefined ? [] : Array.isArray(route.onRequest) ? route.onRequest : [route.onRequest]
    // The same for everybody until the next version is installed, so they may be kept.
    route.onRequest = [...others, (_request, reply, done) => {
      reply.header('cache-control', 'public, max-age=3600')
      done()
    }]
  })
  await app.register(swagger, {
    openapi: {
      openapi: '3.0.3',
      info: { title: 'pmemsetd', version, description: DESCRIPTION, license: { name: 'BSD-3-Clause', url: 'https://spdx.org/licenses/BSD-3-Clause.html' } },
      servers: [{ url: '/' }],
      tags: TAGS,
      components: { securitySchemes: { token: { type: 'http', scheme: 'bearer', description: 'Needed where the operator has set tokens.' } } },
      // Either: a service on loopback has no tokens.
      security: [{}, { token: [] }]
    },
    refResolver: { buildLocalReference: (json, _baseUri, _fragment, i) => (typeof json.$id === 'string' ? json.$id : `def-${i}`) }
  })
  await app.register(swaggerUi, { routePrefix: '/docs', staticCSP: true, uiConfig: { deepLinking: true, validatorUrl: null } })
  let text: string | undefined
  app.get('/openapi.json', { schema: { hide: true } }, (_request, reply) => {
    text ??= JSON.stringify(app.swagger())
    return reply.type('application/json').send(text)
  })
}

export default fp(openapi, { name: 'openapi', dependencies: ['validation'], fastify: '5.x' })
