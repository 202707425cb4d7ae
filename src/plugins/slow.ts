// SPDX-License-Identifier: BSD-3-Clause
//
// Slow requests, in the log. Taken from Node's diagnostics channels: a hook of Fastify's would add listeners to every response.
import fp from 'fastify-plugin'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { IncomingMessage, Server } from 'node:http'
import type { FastifyInstance } from 'fastify'
import type { Log } from '../log.js'

export interface SlowOptions {
  slowMs: number
  log: Log
}

const kStart = Symbol('start')

interface Timed extends IncomingMessage {
  [kStart]?: number
}

interface Exchange {
  request: Timed
  server: Server
}

async function slow (app: FastifyInstance, { slowMs, log }: SlowOptions): Promise<void> {
  const start = (message: unknown): void => {
    const { request, server } = message as Exchange
    if (server === app.server) request[kStart] = performance.now()
  }
  const finish = (message: unknown): void => {
    const { request, server } = message as Exchange
    if (server !== app.server || request[kStart] === undefined) return
    const ms = performance.now() - request[kStart]
    // The query is left out: it may hold paths of files.
    if (ms >= slowMs) log('warn', 'slow request', { method: request.method ?? '', path: (request.url ?? '').split('?')[0] ?? '', ms: Math.round(ms) })
  }
  subscribe('http.server.request.start', start)
  subscribe('http.server.response.finish', finish)
  app.addHook('onClose', (_instance, done) => {
    unsubscribe('http.server.request.start', start)
    unsubscribe('http.server.response.finish', finish)
    done()
  })
}

export default fp(slow, { name: 'slow', fastify: '5.x' })
