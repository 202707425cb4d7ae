// SPDX-License-Identifier: BSD-3-Clause
//
// Every failure leaves as a problem document (RFC 9457), whoever raised it: a handler, the engine, a hook, Fastify's router, Node's parser. Fastify's and
// Node's own errors get one of our codes here; what the code means to HTTP is for src/errors.ts to say.
import fp from 'fastify-plugin'
import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { EngineError, problemOf, ServiceError, type CodeName, type ProblemDocument } from '../errors.js'
import type { Log } from '../log.js'
import type { Replies } from '../metrics.js'
import { markProblem } from './metrics.js'
import { isUnread, refuseUpload } from './uploads.js'

// A path of 4 095 bytes, percent-encoded threefold, and the header fields beside it.
export const HEADERS_BYTES_MAX = 24 * 1024

const CONTENT_TYPE = 'application/problem+json'
const RETRY_AFTER_S = 1

const REQUEST_ID = /^[A-Za-z0-9._-]{1,64}$/
const idPrefix = randomBytes(6).toString('hex')
let idCount = 0

/** The client's request id where it is one, else our own: unlike any other of this process, and of others as good as certainly. */
export function requestId (raw: { headers: IncomingMessage['headers'] }): string {
  const given = raw.headers['x-request-id']
  return typeof given === 'string' && REQUEST_ID.test(given) ? given : `${idPrefix}-${(++idCount).toString(36)}`
}

// Errors of Fastify that a request can cause; anything else of its is our own fault and INTERNAL.
const FASTIFY_CODES: Partial<Record<string, CodeName>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'MEDIA_TYPE_UNSUPPORTED',
  FST_ERR_CTP_BODY_TOO_LARGE: 'BODY_TOO_LARGE',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'REQUEST_INVALID',
  FST_ERR_MAX_PARAM_LENGTH: 'URI_TOO_LONG'
}

function toOurs (error: Error): Error {
  if (error instanceof ServiceError || error instanceof EngineError) return error
  const fastifyCode = (error as Partial<FastifyError>).code ?? ''
  if (fastifyCode === 'FST_ERR_BAD_URL') {
    return new ServiceError('PARAMETER_INVALID', 'The path is not percent-encoded UTF-8.', { errors: [{ in: 'path', name: 'path', reason: 'is not percent-encoded UTF-8' }] })
  }
  const code = FASTIFY_CODES[fastifyCode]
  return code === undefined ? error : new ServiceError(code, code === 'MEDIA_TYPE_UNSUPPORTED' ? 'The Content-Type is not one.' : 'The request is not acceptable.')
}

type Headers = Record<string, string | number>

function headersOf (problem: ProblemDocument): Headers {
  const headers: Headers = { 'content-type': CONTENT_TYPE, 'cache-control': 'no-store', 'x-request-id': problem.instance }
  if (problem.status === 401) headers['www-authenticate'] = 'Bearer'
  if (problem.retryable) headers['retry-after'] = RETRY_AFTER_S
  if (typeof problem.location === 'string') headers.location = problem.location
  if (typeof problem.allow === 'string') headers.allow = problem.allow
  if (problem.status === 416 && typeof problem.size === 'number') headers['content-range'] = `bytes */${problem.size}`
  return headers
}

// Failures of ours and of the medium; a client's mistakes are the client's to see, not the log's.
function record (log: Log, problem: ProblemDocument, error: Error, request: FastifyRequest): void {
  if (problem.status < 500 && !(error instanceof EngineError && error.reason === 'RANGE_LOST')) return
  // The log tells how far that is, and who asks all the time is told as often.
  if (problem.code === 'RESTORING') return
  const native = error instanceof EngineError ? { codeName: error.codeName, cause: error.cause, sysErrno: error.errno, reason: error.reason } : {}
  log(problem.retryable ? 'warn' : 'error', error.message, {
    requestId: problem.instance,
    code: problem.code,
    status: problem.status,
    method: request.method,
    route: request.routeOptions.url ?? '',
    ...native,
    ...(problem.code === 'INTERNAL' && error.stack !== undefined ? { stack: error.stack.split('\n').slice(1, 8).map((line) => line.trim()) } : {})
  })
}

declare module 'fastify' {
  interface FastifyReply {
    /** Ends the exchange with the problem that the error is. */
    sendProblem: (error: Error) => void
  }
}

function createSendProblem (log: Log): (this: FastifyReply, error: Error) => void {
  return function sendProblem (error) {
    const ours = toOurs(error)
    const problem = problemOf(ours, this.request.id)
    record(log, problem, ours, this.request)
    markProblem(this.request.raw, problem.code, this.request.routeOptions.url)
    const text = JSON.stringify(problem)
    const { raw } = this.request
    if (this.raw.headersSent) {
      // The head of another reply is out already: only a broken connection can still say that it is not whole.
      raw.socket.destroy()
      return
    }
    if (isUnread(raw)) {
      this.hijack()
      refuseUpload(raw, this.raw, problem.status, headersOf(problem), text)
      return
    }
    // A handler may have set headers of the reply that it did not get to send.
    for (const name of Object.keys(this.getHeaders())) {
      if (name !== 'connection') this.removeHeader(name)
    }
    this.code(problem.status).headers(headersOf(problem)).serializer(asIs).send(text)
  }
}

function asIs (text: unknown): string {
  return text as string
}

export interface ProblemsOptions {
  log: Log
}

async function problems (app: FastifyInstance, { log }: ProblemsOptions): Promise<void> {
  let isStopping = false
  app.decorateReply('sendProblem', createSendProblem(log))
  app.setErrorHandler((error: Error, _request, reply) => { reply.sendProblem(error) })
  app.addHook('preClose', (done) => {
    isStopping = true
    done()
  })
  app.addHook('onRequest', (_request, reply, done) => {
    if (isStopping) { done(new ServiceError('STOPPING', 'The service is about to stop.')); return }
    reply.header('cache-control', 'no-store')
    done()
  })
  // Expectations other than 100-continue; Node would answer 417 in plain text.
  app.server.on('checkExpectation', (raw: IncomingMessage, res) => {
    const error = new ServiceError('PARAMETER_INVALID', 'The only expectation that can be met is 100-continue.', { errors: [{ in: 'header', name: 'expect', reason: 'must be 100-continue' }] })
    const problem = problemOf(app.refusedAtDoor(raw) ?? error, requestId(raw))
    markProblem(raw, problem.code)
    refuseUpload(raw, res, problem.status, headersOf(problem), JSON.stringify(problem))
  })
}

/**
 * Fastify's frameworkErrors: a path that the router cannot decode, or with a parameter that is too long. No hook has run and no decorator of the reply is
 * there, so the door is asked here and the reply is written by hand.
 */
export function createRouterErrorHandler (log: Log): (error: FastifyError, request: FastifyRequest, reply: FastifyReply) => void {
  return (error, request, reply) => {
    const ours = request.server.refusedAtDoor(request.raw) ?? toOurs(error)
    const problem = problemOf(ours, request.id)
    record(log, problem, ours, request)
    markProblem(request.raw, problem.code)
    refuseUpload(request.raw, reply.raw, problem.status, headersOf(problem), JSON.stringify(problem))
  }
}

const PARSER_ERRORS: Partial<Record<string, [CodeName, string]>> = {
  HPE_HEADER_OVERFLOW: ['HEADERS_TOO_LARGE', 'The header fields are too large.'],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: ['BODY_TOO_LARGE', 'The chunk extensions are too large.'],
  ERR_HTTP_REQUEST_TIMEOUT: ['REQUEST_INVALID', 'The request did not arrive in time.']
}

/** Fastify's clientErrorHandler: what Node's parser refuses. There is no request, only a socket, so the reply is written by hand. */
export function createParserErrorHandler (log: Log, replies: Replies): (error: Error & { code?: string, rawPacket?: unknown }, socket: Socket) => void {
  return (error, socket) => {
    if (error.code === 'ECONNRESET' || socket.destroyed) return
    const current = (socket as Socket & { _httpMessage?: { headersSent: boolean, req: IncomingMessage } | null })._httpMessage
    // The client has closed its side in the middle of a request. Whoever takes the body refuses it then, which may still be heard; else there is nobody to answer.
    if (error.code === 'HPE_INVALID_EOF_STATE') {
      const isHeard = current?.headersSent === false && !current.req.complete && current.req.emit('aborted')
      if (!isHeard) socket.destroy()
      return
    }
    // A reply may be under way for an earlier request of this connection: text in its middle would be taken for a part of it, and before it, for the reply.
    if (!socket.writable || current?.headersSent === true || current?.req.complete === true) {
      socket.destroy()
      return
    }
    const isUri = error.code === 'HPE_HEADER_OVERFLOW' && isLongRequestLine(error.rawPacket)
    const [code, detail] = isUri ? ['URI_TOO_LONG', 'The request line is too long.'] as const : PARSER_ERRORS[error.code ?? ''] ?? ['REQUEST_INVALID', 'The request is not HTTP/1.1.']
    const problem = problemOf(new ServiceError(code, detail), requestId({ headers: {} }))
    const text = JSON.stringify(problem)
    replies.tally('none', undefined).countProblem(problem.status, code)
    log('info', 'refused what is not a request', { requestId: problem.instance, code, parser: error.code ?? '' })
    const head = Object.entries({ ...headersOf(problem), connection: 'close', 'content-length': Buffer.byteLength(text) })
    socket.end(`HTTP/1.1 ${problem.status} ${STATUS_TEXT[problem.status] ?? 'Bad Request'}\r\n${head.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${text}`)
  }
}

const STATUS_TEXT: Partial<Record<number, string>> = { 400: 'Bad Request', 413: 'Content Too Large', 414: 'URI Too Long', 431: 'Request Header Fields Too Large' }

/** Node counts the request line among the headers; where that line makes up most of what it allows, the line is what is too long. */
function isLongRequestLine (packet: unknown): boolean {
  if (!Buffer.isBuffer(packet)) return false
  const line = /^[A-Z]+ [^\r\n]*/.exec(packet.toString('latin1'))?.[0] ?? ''
  return line.length > HEADERS_BYTES_MAX / 2
}

export default fp(problems, { name: 'problems', fastify: '5.x' })
