// SPDX-License-Identifier: BSD-3-Clause
//
// Until what the catalog names is back, there is nothing that a request could be told of it. What is of no set is answered all the same.
import fp from 'fastify-plugin'
import type { FastifyInstance } from 'fastify'
import { isOpen } from './tokens.js'

export interface RestoringOptions {
  /** Throws while the service restores. */
  check: () => void
}

const OF_NO_SET = new Set(['/capabilities', '/metrics'])

/** Whether a route is refused until then; one that is not there is told as ever. */
export function waitsForRestoration (url: string | undefined): boolean {
  return url !== undefined && !isOpen(url) && !OF_NO_SET.has(url)
}

async function restoring (app: FastifyInstance, { check }: RestoringOptions): Promise<void> {
  app.addHook('onRequest', (request, _reply, done) => {
    if (waitsForRestoration(request.routeOptions.url)) check()
    done()
  })
}

export default fp(restoring, { name: 'restoring', dependencies: ['problems', 'door', 'methods'], fastify: '5.x' })
