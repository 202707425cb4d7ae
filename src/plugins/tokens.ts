// SPDX-License-Identifier: BSD-3-Clause
//
// Bearer tokens. The file holds SHA-256 digests, so that it does not give the tokens away, and a token is looked up by its digest, so that no comparison
// tells how much of a guess was right. Each route gets the check of its own scope when it is registered; without a token file no route has any.
import fp from 'fastify-plugin'
import { createHash } from 'node:crypto'
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import type { FastifyInstance, onRequestHookHandler, RouteOptions } from 'fastify'
import { ConfigError } from '../config.js'
import { ServiceError } from '../errors.js'

export const SCOPES = ['read', 'write', 'admin'] as const
export type Scope = typeof SCOPES[number]

/** SHA-256 in lower-case hexadecimal → what its token may do. */
export type Tokens = ReadonlyMap<string, ReadonlySet<Scope>>

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a token needs for this route; else it follows from method and path. */
    scope?: Scope
  }
}

export function digestOf (token: string): string {
  return createHash('sha256').update(token, 'utf8').digest('hex')
}

export interface TokenRecord {
  sha256: string
  scopes: Scope[]
  /** For people. */
  note?: string
}

function isRecord (value: unknown): value is TokenRecord {
  const record = value as Partial<TokenRecord> | null
  return typeof record === 'object' && record !== null && typeof record.sha256 === 'string' && /^[0-9a-f]{64}$/.test(record.sha256) &&
    Array.isArray(record.scopes) && record.scopes.length > 0 && record.scopes.every((scope) => SCOPES.includes(scope)) &&
    Object.keys(record).every((key) => ['sha256', 'scopes', 'note'].includes(key))
}

function wrongFile (path: string, why: string): ConfigError {
  return new ConfigError(`PMEMSETD_TOKENS is ${JSON.stringify(path)}, ${why}; allowed is a file of mode 0600 as "npm run token" makes it`)
}

/** The text of the token file, read through the descriptor whose owner and mode were checked. */
function readGuarded (path: string): string {
  let fd: number
  try {
    fd = openSync(path, 'r')
  } catch (error) {
    throw wrongFile(path, `which cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`)
  }
  try {
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw wrongFile(path, 'which is not a file')
    if ((stat.mode & 0o777) !== 0o600) throw wrongFile(path, `whose mode is 0${(stat.mode & 0o777).toString(8)}`)
    return readFileSync(fd, 'utf8')
  } finally {
    closeSync(fd)
  }
}

/** Reads a token file: `{"tokens":[{"sha256","scopes","note"?}]}`. */
export function loadTokens (path: string): Map<string, ReadonlySet<Scope>> {
  let document: unknown
  const text = readGuarded(path)
  try {
    document = JSON.parse(text)
  } catch {
    throw wrongFile(path, 'which is not JSON')
  }
  const records = (document as { tokens?: unknown } | null)?.tokens
  if (!Array.isArray(records) || records.length === 0 || !records.every(isRecord)) throw wrongFile(path, 'which does not hold a list of tokens')
  return new Map(records.map((record) => [record.sha256, new Set(record.scopes)]))
}

const OPEN = /^\/(?:livez|readyz|openapi\.json|errors(?:\/.*)?|docs(?:\/.*)?)$/

/** Whether a route is for everybody, tokens or not. */
export function isOpen (url: string): boolean {
  return OPEN.test(url)
}

function scopeOf (method: string, url: string): Scope {
  if (method === 'GET' || method === 'HEAD') return 'read'
  const isSet = (method === 'POST' && url === '/sets') || (method === 'DELETE' && /^\/sets\/:[a-zA-Z]+$/.test(url))
  return isSet || url.endsWith('/acknowledge') ? 'admin' : 'write'
}

// Browsers are not among the clients, so there is no realm to show and no other place for a token than the header.
const BEARER = /^Bearer +([\x21-\x7e]{1,512})$/i

function createCheck (tokens: Tokens, scope: Scope): onRequestHookHandler {
  return (request, _reply, done) => {
    const token = BEARER.exec(request.headers.authorization ?? '')?.[1]
    const scopes = token === undefined ? undefined : tokens.get(digestOf(token))
    if (scopes === undefined) {
      done(new ServiceError('TOKEN_REQUIRED', token === undefined ? 'The request has no bearer token.' : 'The token is not known.'))
    } else if (!scopes.has(scope)) {
      done(new ServiceError('SCOPE_MISSING', `The operation needs a token with the scope ${scope}.`, { requiredScope: scope }))
    } else {
      done()
    }
  }
}

export interface TokensOptions {
  tokens: Tokens | undefined
}

async function tokens (app: FastifyInstance, options: TokensOptions): Promise<void> {
  const known = options.tokens
  if (known === undefined) return
  app.addHook('onRoute', (route: RouteOptions) => {
    if (isOpen(route.url)) return
    const method = Array.isArray(route.method) ? route.method[0] ?? 'GET' : route.method
    const check = createCheck(known, route.config?.scope ?? scopeOf(method, route.url))
    const others = route.onRequest === undefined ? [] : Array.isArray(route.onRequest) ? route.onRequest : [route.onRequest]
    route.onRequest = [check, ...others]
  })
}

export default fp(tokens, { name: 'tokens', dependencies: ['problems', 'door'], fastify: '5.x' })
