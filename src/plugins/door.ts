// SPDX-License-Identifier: BSD-3-Clause
//
// The door: a web page that a browser has open must not reach a service on loopback, by a foreign Origin or by a name that it makes resolve to
// 127.0.0.1. So the Host must be one that the operator allows, and browsers' own marks must say that the page is ours. It comes before everything else,
// 404 included. A Unix socket has no door, since no browser can open one.
import fp from 'fastify-plugin'
import type { IncomingMessage } from 'node:http'
import type { FastifyInstance } from 'fastify'
import { ServiceError } from '../errors.js'

export interface DoorOptions {
  /** Lower-case, without port. */
  allowedHosts: readonly string[]
  isUnixSocket: boolean
}

function hostRefused (): ServiceError {
  return new ServiceError('HOST_NOT_ALLOWED', 'The request needs exactly one Host, and one that this service answers to.')
}

function originRefused (): ServiceError {
  return new ServiceError('ORIGIN_NOT_ALLOWED', 'The request comes from a web page of another origin.')
}

/** Counts on the raw fields: `headers.host` keeps only the first, and `headersDistinct` builds an object of all of them. */
function hasOneHost (rawHeaders: readonly string[]): boolean {
  let hosts = 0
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]
    if (name?.length === 4 && name.toLowerCase() === 'host') hosts++
  }
  return hosts === 1
}

const AUTHORITY = /^(\[[0-9a-f:.]+\]|[^:/?#@[\]]+)(?::[0-9]{0,5})?$/i
const ABSOLUTE = /^[a-z][a-z0-9+.-]*:\/\/([^/?#]*)/i

function createDoor (allowedHosts: readonly string[]): (raw: IncomingMessage) => ServiceError | undefined {
  const names = new Set(allowedHosts)
  const isAllowed = (authority: string): boolean => names.has(AUTHORITY.exec(authority)?.[1]?.toLowerCase() ?? '')
  // Clients keep to one spelling, so the last one that passed spares the parsing.
  let lastAllowed: string | undefined
  return (raw) => {
    const { host, origin, 'sec-fetch-site': site } = raw.headers
    if (host === undefined || !hasOneHost(raw.rawHeaders)) return hostRefused()
    if (host !== lastAllowed) {
      if (!isAllowed(host)) return hostRefused()
      lastAllowed = host
    }
    const url = raw.url ?? ''
    if (url.charCodeAt(0) !== 0x2f && url !== '*' && !isAllowed(ABSOLUTE.exec(url)?.[1] ?? '')) return hostRefused()
    if (origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`) return originRefused()
    if (site !== undefined && site !== 'same-origin' && site !== 'none') return originRefused()
    return undefined
  }
}

declare module 'fastify' {
  interface FastifyInstance {
    /** What the door has against a request, for those that never reach a hook. */
    refusedAtDoor: (raw: IncomingMessage) => ServiceError | undefined
  }
}

async function door (app: FastifyInstance, { allowedHosts, isUnixSocket }: DoorOptions): Promise<void> {
  const refused = isUnixSocket ? () => undefined : createDoor(allowedHosts)
  app.decorate('refusedAtDoor', refused)
  if (!isUnixSocket) app.addHook('onRequest', (request, _reply, done) => { done(refused(request.raw)) })
}

export default fp(door, { name: 'door', dependencies: ['problems'], fastify: '5.x' })
