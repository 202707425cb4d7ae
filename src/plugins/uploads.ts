// SPDX-License-Identifier: BSD-3-Clause
//
// Bodies on their way in: who may send one, when `100 Continue` goes out, what is parsed, and how an upload that is refused comes to an end. Requests
// without a body, the look-ups among them, pay one test of two headers.
import fp from 'fastify-plugin'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest, RouteOptions } from 'fastify'
import { ServiceError } from '../errors.js'
import { parseJson } from './json.js'

// A refused upload: this much is read and dropped so that the client gets to see the reply, then the socket goes.
const DROP_BYTES_MAX = 8 * 1024 * 1024
const DROP_MS_MAX = 2000

const BODY_BYTES_MIN = 4096

// Holds the response for as long as the client waits for `100 Continue`.
const kExpects = Symbol('expects 100 Continue')
const kRefused = Symbol('upload refused')

interface Upload extends IncomingMessage {
  [kExpects]?: ServerResponse | undefined
}

interface Refusable extends Socket {
  [kRefused]?: boolean
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Says `100 Continue` to a client that waits for it. Call it after every check that can refuse the request, before the first byte is read. */
    acceptBody: () => void
  }
}

function hasBody (raw: IncomingMessage): boolean {
  const length = raw.headers['content-length']
  return (length !== undefined && length !== '0') || raw.headers['transfer-encoding'] !== undefined
}

/** Whether the client still waits for `100 Continue`, so that nothing of the body can be expected. */
export function waitsForContinue (raw: IncomingMessage): boolean {
  return (raw as Upload)[kExpects] !== undefined
}

/** Whether there is more of a body to come than was read. */
export function isUnread (raw: IncomingMessage): boolean {
  return hasBody(raw) && !raw.complete && !raw.readableEnded
}

/**
 * Sends a reply whose request has a body that nobody will read: the head and text go out at once, with `Connection: close`, the end of the reply when
 * enough of the body was dropped. Ending it at once would reset the connection and lose the reply.
 */
export function refuseUpload (raw: IncomingMessage, res: ServerResponse, status: number, headers: Record<string, string | number>, text: string): void {
  ;(raw.socket as Refusable)[kRefused] = true
  res.writeHead(status, { ...headers, connection: 'close', 'content-length': Buffer.byteLength(text) })
  if (raw.method !== 'HEAD') res.write(text)
  else res.flushHeaders()
  let dropped = 0
  const end = (): void => {
    clearTimeout(timer)
    raw.off('data', drop)
    raw.pause()
    if (!res.writableEnded) res.end()
  }
  const drop = (chunk: Buffer): void => {
    dropped += chunk.length
    if (dropped >= DROP_BYTES_MAX) end()
  }
  const timer = setTimeout(end, DROP_MS_MAX)
  raw.on('data', drop)
  raw.once('end', end)
  raw.once('close', end)
  raw.on('error', end)
  if (!isUnread(raw) || raw.socket.readableEnded) end()
}

/** Whether the request came behind an upload that was refused: the connection is closing, so a reply would go nowhere and nothing must be done. */
export function isBehindRefusal (raw: IncomingMessage): boolean {
  return (raw.socket as Refusable | null)?.[kRefused] === true
}

function refuseBody (request: FastifyRequest, _reply: unknown, done: (error?: Error) => void): void {
  if (!hasBody(request.raw)) { done(); return }
  done(new ServiceError('REQUEST_INVALID', `${request.method} takes no body.`, { errors: [{ in: 'body', pointer: '', reason: 'must be absent' }] }))
}

// A body that nobody would read must not come in. After the token's check, in the order of the contract.
function guardRoute (route: RouteOptions): void {
  const method = Array.isArray(route.method) ? route.method[0] : route.method
  if (method !== 'GET' && method !== 'HEAD') return
  const others = route.onRequest === undefined ? [] : Array.isArray(route.onRequest) ? route.onRequest : [route.onRequest]
  route.onRequest = [...others, refuseBody]
}

function acceptBody (this: FastifyRequest): void {
  const raw = this.raw as Upload
  const res = raw[kExpects]
  if (res === undefined) return
  raw[kExpects] = undefined
  if (!res.headersSent) res.writeContinue()
}

function refuseType (accepted: string): ServiceError {
  return new ServiceError('MEDIA_TYPE_UNSUPPORTED', `The operation takes ${accepted} only.`, { accepted })
}

const BYTES = 'application/octet-stream'
const JSON_TYPE = 'application/json'

function takesBytes (request: FastifyRequest): boolean {
  return request.routeOptions.config.body === 'bytes'
}

function acceptedBy (request: FastifyRequest): string {
  return takesBytes(request) ? BYTES : JSON_TYPE
}

function isBatch (request: FastifyRequest): boolean {
  return request.routeOptions.config.batch === true
}

type Done = (error: Error | null, body?: unknown) => void

function isUtf8Charset (contentType: string): boolean {
  const charset = /;\s*charset\s*=\s*"?([^\s";]+)/i.exec(contentType)?.[1]
  return charset === undefined || charset.toLowerCase() === 'utf-8'
}

/** All of a body, where it has at most that many bytes. */
function gather (bytesMax: number, request: FastifyRequest, payload: IncomingMessage, done: (error: Error | null, body?: Buffer) => void): void {
  const tooLarge = (): void => {
    done(new ServiceError('BODY_TOO_LARGE', `The body has more than ${bytesMax} bytes.`, { max: bytesMax }))
  }
  if (Number(request.headers['content-length'] ?? 0) > bytesMax) { tooLarge(); return }
  request.acceptBody()
  // One buffer that doubles: a chunk of one byte, kept as it came, would cost hundreds.
  let body = Buffer.alloc(0)
  let received = 0
  const finish = (): void => { done(null, body.subarray(0, received)) }
  const fail = (): void => {
    stop()
    done(new ServiceError('REQUEST_INVALID', 'The body ended early.'))
  }
  const take = (chunk: Buffer): void => {
    received += chunk.length
    if (received > bytesMax) {
      stop()
      tooLarge()
    } else {
      if (received > body.length) {
        const larger = Buffer.allocUnsafe(Math.min(Math.max(2 * body.length, received, BODY_BYTES_MIN), bytesMax))
        body.copy(larger, 0, 0, received - chunk.length)
        body = larger
      }
      chunk.copy(body, received - chunk.length)
    }
  }
  const stop = (): void => {
    payload.off('data', take)
    payload.off('end', finish)
    payload.off('error', fail)
    payload.off('aborted', fail)
  }
  payload.on('data', take)
  payload.once('end', finish)
  payload.once('error', fail)
  payload.once('aborted', fail)
}

function readJson (bytesMax: number, request: FastifyRequest, payload: IncomingMessage, done: Done): void {
  if (takesBytes(request) || !isUtf8Charset(request.headers['content-type'] ?? '')) { done(refuseType(acceptedBy(request))); return }
  gather(bytesMax, request, payload, (error, body) => {
    if (error !== null || body === undefined) { done(error); return }
    try {
      done(null, parseJson(body))
    } catch (wrong) {
      done(wrong as Error)
    }
  })
}

// Content types are looked at by hand in the parsers, since one application has both kinds of routes. A batch is needed whole; else octets are a stream.
function takeBytes (batchBytesMax: number, request: FastifyRequest, payload: IncomingMessage, done: Done): void {
  if (!takesBytes(request)) done(refuseType(JSON_TYPE))
  else if (isBatch(request)) gather(batchBytesMax, request, payload, done)
  else done(null, payload)
}

function takeUntyped (batchBytesMax: number, request: FastifyRequest, payload: IncomingMessage, done: Done): void {
  if (request.headers['content-type'] !== undefined) done(refuseType(acceptedBy(request)))
  else takeBytes(batchBytesMax, request, payload, done)
}

export interface UploadsOptions {
  bodyBytesMax: number
  batchBytesMax: number
}

async function uploads (app: FastifyInstance, { bodyBytesMax, batchBytesMax }: UploadsOptions): Promise<void> {
  app.server.on('checkContinue', (raw: Upload, res: ServerResponse) => {
    raw[kExpects] = res
    app.server.emit('request', raw, res)
  })
  app.decorateRequest('acceptBody', acceptBody)
  app.addHook('onRoute', guardRoute)
  app.removeAllContentTypeParsers()
  app.addContentTypeParser(JSON_TYPE, (request: FastifyRequest, payload: IncomingMessage, done: Done) => { readJson(isBatch(request) ? batchBytesMax : bodyBytesMax, request, payload, done) })
  app.addContentTypeParser(BYTES, (request: FastifyRequest, payload: IncomingMessage, done: Done) => { takeBytes(batchBytesMax, request, payload, done) })
  app.addContentTypeParser('*', (request: FastifyRequest, payload: IncomingMessage, done: Done) => { takeUntyped(batchBytesMax, request, payload, done) })
}

export default fp(uploads, { name: 'uploads', dependencies: ['problems', 'tokens'], fastify: '5.x' })
