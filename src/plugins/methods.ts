// SPDX-License-Identifier: BSD-3-Clause
//
// What is answered where the router has found nothing: 404, 405 with Allow, or the methods for OPTIONS. It looks through the whole route table, which only
// such a request pays for; and it answers before a token is asked for or a body is looked at.
import fp from 'fastify-plugin'
import type { FastifyInstance } from 'fastify'
import { ServiceError } from '../errors.js'

/** A route's pattern as an expression over the path as it was sent. */
function toExpression (pattern: string): RegExp {
  const source = pattern.split('/').map((part) => {
    if (part.startsWith(':')) return '[^/]+'
    return part === '*' ? '.*' : part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')
  }).join('/')
  return new RegExp(`^${source}$`)
}

/** As the router reads it. */
function pathOf (url: string): string {
  const path = /^(?:[a-z][a-z0-9+.-]*:\/\/[^/?#]*)?([^?#]*)/i.exec(url)?.[1] ?? ''
  try {
    return path === '' ? '/' : decodeURI(path)
  } catch {
    return path
  }
}

async function methods (app: FastifyInstance): Promise<void> {
  const table = new Map<string, { expression: RegExp, methods: Set<string> }>()
  app.addHook('onRoute', ({ url, method }) => {
    const row = table.get(url) ?? { expression: toExpression(url), methods: new Set(['OPTIONS']) }
    for (const m of Array.isArray(method) ? method : [method]) row.methods.add(m)
    table.set(url, row)
  })
  const methodsAt = (url: string): string | undefined => {
    const path = pathOf(url)
    const found = new Set([...table.values()].filter((row) => row.expression.test(path)).flatMap((row) => [...row.methods]))
    return found.size === 0 ? undefined : [...found].sort().join(', ')
  }
  app.addHook('onRequest', (request, reply, done) => {
    if (!request.is404) { done(); return }
    const allow = methodsAt(request.raw.url ?? '')
    if (allow === undefined) done(new ServiceError('ROUTE_NOT_FOUND', 'There is nothing at that path.'))
    else if (request.method !== 'OPTIONS') done(new ServiceError('METHOD_NOT_ALLOWED', `The resource takes ${allow}.`, { allow }))
    else reply.code(204).header('allow', allow).send()
  })
}

export default fp(methods, { name: 'methods', dependencies: ['problems', 'door'], fastify: '5.x' })
