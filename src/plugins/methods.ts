// SPDX-License-Identifier: BSD-3-Clause
//
// Which methods a path takes, from the route table: for 405 with Allow, and for OPTIONS. Asked only when the router has found nothing, so it may be slow.
import fp from 'fastify-plugin'
import type { FastifyInstance } from 'fastify'

declare module 'fastify' {
  interface FastifyInstance {
    /** The value of Allow for the path of a URL, or undefined where no route has that path. */
    methodsAt: (url: string) => string | undefined
  }
}

/** A route's pattern as an expression over the path as it was sent. */
function toExpression (pattern: string): RegExp {
  const source = pattern.split('/').map((part) => {
    if (part.startsWith(':')) return '[^/]+'
    return part === '*' ? '.*' : part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')
  }).join('/')
  return new RegExp(`^${source}$`)
}

function pathOf (url: string): string {
  const path = /^(?:[a-z][a-z0-9+.-]*:\/\/[^/?#]*)?([^?#]*)/i.exec(url)?.[1] ?? ''
  return path === '' ? '/' : path
}

async function methods (app: FastifyInstance): Promise<void> {
  const table = new Map<string, { expression: RegExp, methods: Set<string> }>()
  app.addHook('onRoute', ({ url, method }) => {
    const row = table.get(url) ?? { expression: toExpression(url), methods: new Set(['OPTIONS']) }
    for (const m of Array.isArray(method) ? method : [method]) row.methods.add(m)
    table.set(url, row)
  })
  app.decorate('methodsAt', (url) => {
    const path = pathOf(url)
    const found = new Set([...table.values()].filter((row) => row.expression.test(path)).flatMap((row) => [...row.methods]))
    return found.size === 0 ? undefined : [...found].sort().join(', ')
  })
}

export default fp(methods, { name: 'methods', fastify: '5.x' })
