// SPDX-License-Identifier: BSD-3-Clause
//
// The OpenAPI document, made from the routes, and the pages that show it. Shared schemas keep the names of their $id, for generators.
import fp from 'fastify-plugin'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance, FastifySchema } from 'fastify'
import type { TSchema } from 'typebox'
import { statusOf, type Circumstance, type CodeName } from '../errors.js'
import { takesKey } from './repeats.js'
import { waitsForRestoration } from './restoring.js'
import { isOpen } from './tokens.js'

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
  { name: 'failures', description: 'Flushes that failed, and what becomes of the bytes in doubt' },
  { name: 'service', description: 'Health, abilities, codes' }
]

/** A code, and where it has a status for a circumstance only, that: `VOLUME_NOT_FOUND:body`. */
export type ToldCode = CodeName | `${CodeName}:${Circumstance}`

/** What a route tells of itself, beside its schemas. */
export interface Told {
  answers: Partial<Record<200 | 201 | 204 | 206, TSchema | string>>
  codes: readonly ToldCode[]
  bytes?: 'in' | 'out' | 'both' | undefined
  type?: 'text/plain' | undefined
  etag: boolean
  example: { path?: Record<string, string>, query?: Record<string, string | number | boolean>, answer?: unknown }
}

declare module 'fastify' {
  interface FastifyContextConfig {
    told?: Told
  }
}

const DESCRIPTIONS: Partial<Record<string, string>> = { 200: 'Done', 201: 'Made' }
const OCTETS = { schema: { type: 'string', format: 'binary' } }

// Whatever is asked, it can be refused with these.
const ALWAYS: readonly ToldCode[] = ['PARAMETER_INVALID', 'PARAMETER_UNKNOWN', 'REQUEST_INVALID', 'ORIGIN_NOT_ALLOWED', 'URI_TOO_LONG', 'HOST_NOT_ALLOWED', 'HEADERS_TOO_LARGE', 'INTERNAL', 'STOPPING']
const WITH_TOKENS: readonly ToldCode[] = ['TOKEN_REQUIRED', 'SCOPE_MISSING']
// Of sets and volumes, while the service restores.
const WITH_SETS: readonly ToldCode[] = ['RESTORING']
const WITH_KEY: readonly ToldCode[] = ['IDEMPOTENCY_IN_PROGRESS', 'IDEMPOTENCY_KEY_REUSED', 'OUTCOME_UNKNOWN', 'NO_SPACE', 'EIO']
const WITH_BODY: readonly ToldCode[] = ['BODY_TOO_LARGE', 'MEDIA_TYPE_UNSUPPORTED']

function refusals (told: readonly ToldCode[]): Record<string, object> {
  const byStatus = new Map<number, Set<string>>()
  for (const one of told) {
    const [code, circumstance] = one.split(':') as [CodeName, Circumstance | undefined]
    const status = statusOf(code, circumstance)
    byStatus.set(status, (byStatus.get(status) ?? new Set()).add(code))
  }
  return Object.fromEntries([...byStatus].map(([status, codes]): [number, object] => {
    const sorted = [...codes].sort()
    return [status, { description: sorted.join(', '), content: { 'application/problem+json': { schema: { $ref: 'Problem#' }, 'x-problem-codes': sorted } } }]
  }))
}

function headersOf (told: Told, status: string, hasKey: boolean): { headers?: object } {
  const headers = {
    ...(hasKey ? { 'Idempotency-Replayed': { type: 'string', description: 'true: the reply of an earlier request under the same key' } } : {}),
    ...(told.etag ? { ETag: { type: 'string', description: 'The state of it, for If-Match' } } : {}),
    ...(status === '201' ? { Location: { type: 'string', description: 'Where it is' } } : {}),
    ...(status === '206' ? { 'Content-Range': { type: 'string', description: 'Which of the bytes they are' } } : {}),
    ...(told.bytes === 'out' ? { 'Pmemset-Granularity': { type: 'string' }, 'Pmemset-Persistence': { type: 'string', description: 'Of the weakest medium of the range' } } : {})
  }
  return Object.keys(headers).length === 0 ? {} : { headers }
}

function answers (told: Told, hasKey: boolean): Record<string, object> {
  return Object.fromEntries(Object.entries(told.answers).map(([status, answer]): [string, object] => {
    const description = typeof answer === 'string' ? answer : DESCRIPTIONS[status]
    const headers = headersOf(told, status, hasKey)
    if (told.bytes === 'out' || told.bytes === 'both') return [status, { description, ...headers, content: { 'application/octet-stream': OCTETS } }]
    if (told.type !== undefined) return [status, { description, ...headers, content: { [told.type]: { schema: { type: 'string' } } } }]
    if (typeof answer === 'string') return [status, { description, ...headers, type: 'null' }]
    const { answer: example } = told.example
    return [status, { description, ...headers, content: { 'application/json': { schema: answer, ...(example === undefined ? {} : { example }) } } }]
  }))
}

function withExamples (schema: unknown, examples: Record<string, unknown> = {}): object | undefined {
  if (schema === undefined) return undefined
  const { properties, ...rest } = schema as { properties: Record<string, object> }
  return { ...rest, properties: Object.fromEntries(Object.entries(properties).map(([name, one]) => [name, name in examples ? { ...one, example: examples[name] } : one])) }
}

/** The schema of a route as the document is to have it. */
function toDocument (schema: FastifySchema, told: Told, { hasBody, isOpen, waits }: { hasBody: boolean, isOpen: boolean, waits: boolean }): FastifySchema {
  const { path, query } = told.example
  const hasKey = takesKey(schema)
  const codes = [...told.codes, ...ALWAYS, ...(isOpen ? [] : WITH_TOKENS), ...(waits ? WITH_SETS : []), ...(hasBody ? WITH_BODY : []), ...(hasKey ? WITH_KEY : [])]
  const params = withExamples(schema.params, path)
  const querystring = withExamples(schema.querystring, query)
  return {
    ...schema,
    ...(params === undefined ? {} : { params }),
    ...(querystring === undefined ? {} : { querystring }),
    ...(told.bytes === 'in' || told.bytes === 'both' ? { body: { content: { 'application/octet-stream': OCTETS } } } : {}),
    ...(isOpen ? { security: [] } : {}),
    response: { ...answers(told, hasKey), ...refusals(codes) }
  }
}

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
    transform: ({ schema, url, route }) => {
      const told = route.config?.told
      // The plugin adds this, in case that it has the id of a GET.
      if (route.method === 'HEAD') schema.operationId = schema.operationId?.replace(/-head$/, '')
      return { url, schema: told === undefined ? schema : toDocument(schema, told, { hasBody: route.method !== 'GET' && route.method !== 'HEAD', isOpen: isOpen(url), waits: waitsForRestoration(url) }) }
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
