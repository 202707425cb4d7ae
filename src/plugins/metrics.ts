// SPDX-License-Identifier: BSD-3-Clause
//
// Counts every reply. As in slow.ts the end of a reply comes from Node's diagnostics channels; a hook of the route leaves its tally at the request, which is
// all that Node tells of there.
import fp from 'fastify-plugin'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { FastifyInstance, onRequestHookHandler, RouteOptions } from 'fastify'
import type { Replies, Tally } from '../metrics.js'

const kTally = Symbol('tally of the route')
const kProblem = Symbol('problem')

interface Counted extends IncomingMessage {
  [kTally]?: Tally
  [kProblem]?: { code: string, pattern: string | undefined }
}

/** Says which problem answers the request, and at which route. It may have been refused before the route's own hooks. */
export function markProblem (raw: IncomingMessage, code: string, pattern?: string): void {
  (raw as Counted)[kProblem] = { code, pattern }
}

function createMark (tallies: ReadonlyMap<string, Tally>): onRequestHookHandler {
  const only = tallies.size === 1 ? [...tallies.values()][0] : undefined
  return (request, _reply, done) => {
    const tally = only ?? tallies.get(request.method)
    if (tally !== undefined) (request.raw as Counted)[kTally] = tally
    done()
  }
}

declare module 'fastify' {
  interface FastifyInstance {
    replies: Replies
  }
}

export interface MetricsOptions {
  replies: Replies
}

async function metrics (app: FastifyInstance, { replies }: MetricsOptions): Promise<void> {
  app.decorate('replies', replies)
  app.addHook('onRoute', (route: RouteOptions) => {
    const methods = Array.isArray(route.method) ? route.method : [route.method]
    const mark = createMark(new Map(methods.map((method) => [method, replies.tally(method, route.url)])))
    const others = route.onRequest === undefined ? [] : Array.isArray(route.onRequest) ? route.onRequest : [route.onRequest]
    route.onRequest = [mark, ...others]
  })
  const finish = (message: unknown): void => {
    const { request, response, server } = message as { request: Counted, response: ServerResponse, server: Server }
    if (server !== app.server) return
    const problem = request[kProblem]
    const tally = request[kTally] ?? replies.tally(request.method ?? '', problem?.pattern)
    if (problem === undefined) tally.count(response.statusCode)
    else tally.countProblem(response.statusCode, problem.code)
  }
  subscribe('http.server.response.finish', finish)
  app.addHook('onClose', (_instance, done) => {
    unsubscribe('http.server.response.finish', finish)
    done()
  })
}

export default fp(metrics, { name: 'metrics', fastify: '5.x' })
