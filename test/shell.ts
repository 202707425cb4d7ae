// SPDX-License-Identifier: BSD-3-Clause
//
// What the tests of the HTTP shell share: the shell with a few routes of its own, and a client that says to a socket exactly what it is told.
import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import type { Test } from 'tap'
import type { FastifyInstance } from 'fastify'
import { buildShell, type ShellOptions } from '../src/app.js'
import { loadConfig } from '../src/config.js'
import { ServiceError } from '../src/errors.js'
import { silent } from '../src/log.js'

const integer = { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER }
const closed = { additionalProperties: false } as const

/** Counts what handlers did, so that a test can say that a refused request did nothing. */
export interface Calls {
  count: number
  bytes: number
}

function addRoutes (app: FastifyInstance, calls: Calls): void {
  app.addSchema({ $id: 'Named', type: 'object', ...closed, properties: { name: { type: 'string', maxLength: 8 } } })
  app.get('/things', {
    schema: {
      querystring: { type: 'object', ...closed, properties: { addr: { type: 'string', pattern: '^0x(0|[1-9a-f][0-9a-f]{0,15})$' }, length: { ...integer, minimum: 1 }, dryRun: { type: 'boolean' }, limit: { ...integer, minimum: 1, default: 50 } } }
    }
  }, (request) => {
    calls.count++
    return request.query
  })
  app.get('/things/:id', { schema: { params: { type: 'object', ...closed, properties: { id: { type: 'string', pattern: '^[a-z]+$' } } } } }, (request) => request.params)
  app.post('/things', {
    schema: {
      body: {
        type: 'object',
        ...closed,
        required: ['requiredGranularity'],
        properties: {
          requiredGranularity: { type: 'string', enum: ['byte', 'page'] },
          coalescing: { type: 'string', enum: ['none', 'full'] },
          offset: integer,
          count: integer,
          flag: { type: 'boolean' },
          labels: { type: 'object', additionalProperties: { type: 'string' } },
          named: { $ref: 'Named#' },
          source: { type: 'object', ...closed, required: ['path'], properties: { path: { type: 'string' }, mode: { type: 'string', pattern: '^0[0-7]{3}$' }, create: { type: 'string', enum: ['never', 'always'] } } }
        }
      }
    }
  }, (request) => {
    calls.count++
    return request.body
  })
  app.post('/drain', (request) => {
    calls.count++
    return { body: request.body === undefined ? 'absent' : request.body }
  })
  app.put('/bytes', { config: { body: 'bytes' } }, async (request) => {
    calls.count++
    request.acceptBody()
    for await (const chunk of request.raw) calls.bytes += (chunk as Buffer).length
    return { bytes: calls.bytes }
  })
  app.put('/refused', { config: { body: 'bytes' } }, () => {
    throw new ServiceError('PMEMSET_E_CANNOT_FIND_PART_MAP', 'No part map holds the address.')
  })
  app.get('/large', () => 'x'.repeat(64 * 1024 * 1024))
  app.get('/broken', () => { throw new Error('the path is /secret/place') })
}

export interface Shell {
  app: FastifyInstance
  calls: Calls
  lines: string[]
  port: number
}

/** The shell, not listening. */
export async function shell (t: Test, options: Partial<ShellOptions> & { env?: NodeJS.ProcessEnv } = {}): Promise<Shell> {
  const lines: string[] = []
  const { env = {}, ...others } = options
  const app = await buildShell({ config: loadConfig(env), log: others.log ?? silent, version: '0.0.0', ...others })
  const calls = { count: 0, bytes: 0 }
  addRoutes(app, calls)
  t.teardown(() => app.close())
  await app.ready()
  return { app, calls, lines, port: 0 }
}

/** The shell, on a free port of loopback. */
export async function listening (t: Test, options: Parameters<typeof shell>[1] = {}): Promise<Shell> {
  const made = await shell(t, options)
  await made.app.listen({ host: '127.0.0.1', port: 0 })
  return { ...made, port: (made.app.server.address() as AddressInfo).port }
}

/** For a process of its own that has to be told one. */
export async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

export interface Answer {
  status: number
  head: string
  body: string
  /** Everything that came. */
  text: string
  /** How the connection came to its end. */
  end: 'closed' | 'reset' | 'open'
}

export interface RawOptions {
  /** Stop waiting for the connection's end after this long. */
  ms?: number
  /** Called with everything that came so far; may send more. */
  onText?: (text: string, send: (more: string | Buffer) => void) => void
}

/** Sends text to a port and gathers what comes back until the connection ends, or the time is over. */
export function raw (port: number, request: string | Buffer, { ms = 1500, onText }: RawOptions = {}): Promise<Answer> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    let text = ''
    const finish = (end: Answer['end']): void => {
      clearTimeout(timer)
      socket.destroy()
      const [head = '', body = ''] = text.split('\r\n\r\n', 2)
      resolve({ status: Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? 0), head: head.toLowerCase(), body, text, end })
    }
    const timer = setTimeout(() => { finish('open') }, ms)
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1')
      onText?.(text, (more) => socket.write(more))
    })
    socket.on('end', () => { finish('closed') })
    socket.on('error', () => { finish('reset') })
    socket.write(request)
  })
}
