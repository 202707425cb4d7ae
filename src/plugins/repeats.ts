// SPDX-License-Identifier: BSD-3-Clause
//
// Idempotency-Key: on a route that takes it, a repeat of a request gets the reply of the first one. A key belongs to a token; the request is its method,
// target and body. Requests without one pay for one look at the headers.
import fp from 'fastify-plugin'
import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest, onSendHookHandler, FastifySchema, preHandlerHookHandler } from 'fastify'
import { CATALOGUE, type AnyCode } from '../errors.js'
import type { KeptReply, Repeats, Running } from '../service/repeats.js'

const HEADERS_KEPT = ['content-type', 'etag', 'location']

declare module 'fastify' {
  interface FastifyRequest {
    /** Of a request under a key. */
    running: Running | undefined
  }
}

function digest (...parts: Array<string | Buffer>): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${part.length}:`).update(part)
  return hash.digest('hex')
}

function bodyOf ({ body }: FastifyRequest): string | Buffer {
  if (body === undefined) return ''
  return Buffer.isBuffer(body) ? body : JSON.stringify(body)
}

function replay (reply: FastifyReply, { status, headers, body }: KeptReply): void {
  reply.code(status).headers({ ...headers, 'idempotency-replayed': 'true' }).send(status === 204 ? undefined : Buffer.from(body, 'base64'))
}

/** What a repeat is to get: this reply; none, for nothing was done; or, of a failure in the middle, that nobody knows. */
function endOf (status: number, payload: unknown): 'kept' | 'forgotten' | 'unknown' {
  if (status >= 200 && status < 300) return 'kept'
  const { code } = JSON.parse(String(payload)) as { code: AnyCode }
  if (CATALOGUE[code].retryable === true) return 'forgotten'
  return status < 500 ? 'kept' : 'unknown'
}

/** Whether a route takes a key: its schema says so. */
export function takesKey (schema: FastifySchema | undefined): boolean {
  const headers = schema?.headers as { properties?: object } | undefined
  return headers?.properties !== undefined && 'idempotency-key' in headers.properties
}

export interface RepeatsOptions {
  repeats: Repeats
}

async function repeats (app: FastifyInstance, { repeats }: RepeatsOptions): Promise<void> {
  app.decorateRequest('running', undefined)

  const begin = (storesBytes: boolean): preHandlerHookHandler => (request, reply, done) => {
    const key = request.headers['idempotency-key']
    if (typeof key !== 'string') { done(); return }
    const found = repeats.find(digest(request.headers.authorization ?? '', key), digest(request.method, request.raw.url ?? '', bodyOf(request)))
    if ('reply' in found) { replay(reply, found.reply); return }
    const { running } = found
    request.running = running
    if (!storesBytes) { repeats.run(running, done); return }
    repeats.begin(running).then(() => { repeats.run(running, done) }, done)
  }

  const end: onSendHookHandler = (request, reply, payload, done) => {
    const { running } = request
    if (running === undefined) { done(); return }
    request.running = undefined
    const outcome = endOf(reply.statusCode, payload)
    const kept = outcome === 'kept'
      ? {
          status: reply.statusCode,
          headers: Object.fromEntries(HEADERS_KEPT.flatMap((name) => { const value = reply.getHeader(name); return value === undefined ? [] : [[name, String(value)]] })),
          body: Buffer.from((payload ?? '') as string | Buffer).toString('base64')
        }
      : outcome
    // Kept or not, the reply is true.
    const send = (): void => { done() }
    repeats.end(running, kept).then(send, send)
  }

  app.addHook('onRoute', (route) => {
    if (!takesKey(route.schema)) return
    const others = <T>(hooks: T | T[] | undefined): T[] => (hooks === undefined ? [] : Array.isArray(hooks) ? hooks : [hooks])
    route.preHandler = [begin(route.schema?.tags?.includes('memory') === true), ...others(route.preHandler)]
    route.onSend = [...others(route.onSend), end]
  })
}

export default fp(repeats, { name: 'repeats', dependencies: ['tokens', 'validation'], fastify: '5.x' })
