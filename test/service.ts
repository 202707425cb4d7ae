// SPDX-License-Identifier: BSD-3-Clause
//
// What the tests of the routes share: the whole application over the real engine and real directories, and a client that checks of every refusal that the
// OpenAPI document tells of it. There is one engine in a process, so what concerns the engine (PMEMSETD_SIMULATE, _MAPPINGS_MAX, _ARENA_*) is settled by
// the first call in a file.
import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import { buildApp, type ShellOptions } from '../src/app.js'
import type { Catalog } from '../src/catalog/catalog.js'
import { LmdbCatalog } from '../src/catalog/lmdb.js'
import { loadConfig } from '../src/config.js'
import { Engine } from '../src/engine/engine.js'
import { hex, type ProblemDocument } from '../src/errors.js'
import { createLog } from '../src/log.js'
import type { Part, PartMap, PmemSet } from '../src/schemas.js'
import { list as listMaps } from '../src/service/maps.js'
import { list as listParts } from '../src/service/parts.js'
import { Service } from '../src/service/service.js'

export const PAGE = 4096
export const MIB = 1024 * 1024

let engine: Engine | undefined

/** After the first open(). */
export function theEngine (): Engine {
  if (engine === undefined) throw new Error('nothing was opened yet')
  return engine
}

export async function openCatalog (dir: string): Promise<LmdbCatalog> {
  return await LmdbCatalog.open({ dir, allocate: (path, bytes) => theEngine().allocate(path, bytes) })
}

export interface Opened {
  app: FastifyInstance
  service: Service
  /** Of the first volume, `default`. */
  dir: string
  /** Of the catalog. */
  state: string
  /** What was logged. */
  lines: string[]
  /** After listen(). */
  port: number
  /** Before the end of the test; the second time it does nothing. */
  close: () => Promise<void>
}

export interface OpenOptions extends Partial<Pick<ShellOptions, 'tokens' | 'progress'>> {
  env?: NodeJS.ProcessEnv
  /** The volume's directory; else a new one, on the disk. */
  dir?: string
  /** The catalog's; else a new one, on the disk. */
  state?: string
  /** Opened already; else the one in `state`. */
  catalog?: Catalog
  /** Else it has started, and what the catalog names is not back yet. */
  restore?: boolean
}

/** A service with one volume, `default`, and sets of its own. */
export async function open (t: Test, { env = {}, dir, state, restore = true, catalog: given, ...others }: OpenOptions = {}): Promise<Opened> {
  const made: string[] = []
  const folder = (): string => made[made.push(mkdtempSync(join(tmpdir(), 'pmemsetd-test-'))) - 1] ?? ''
  const volume = dir ?? folder()
  const config = loadConfig({ PMEMSETD_VOLUMES: `default=${volume}`, PMEMSETD_STATE_DIR: state ?? folder(), ...env })
  engine ??= Engine.start({ arenaBase: config.arenaBase, arenaSize: config.arenaSize, mappingsMax: config.limits.mappings, logSize: config.limits.atomicBatchBytes, logKeepFree: config.limits.keepFreePercent, simulate: config.simulate })
  const catalog = given ?? await openCatalog(config.stateDir)
  const { arenaBase, pageSize } = engine.info()
  if (catalog.service() === undefined) await catalog.commit([{ kind: 'put-service', service: { uid: randomUUID(), arenaBase: hex(arenaBase), pageSize } }])
  const service = new Service({ engine, catalog, config, version: '0.0.0' })
  const lines: string[] = []
  const app = await buildApp({ config, log: createLog((line) => lines.push(line)), version: '0.0.0', service, ...others })
  let isOpen = true
  const close = async (): Promise<void> => {
    if (!isOpen) return
    isOpen = false
    await app.close()
    await service.close()
  }
  t.teardown(async () => {
    await close()
    for (const path of made) rmSync(path, { recursive: true, force: true })
  })
  await app.ready()
  if (restore) await service.restore(() => {})
  return { app, service, dir: volume, state: config.stateDir, lines, port: 0, close }
}

/** The same again, as after a restart: what is left of it is what the catalog and the files have. `meanwhile` is what happens to them. */
export async function reopen (t: Test, before: Opened, meanwhile: () => unknown = () => {}, options: OpenOptions = {}): Promise<Opened> {
  await before.close()
  await meanwhile()
  return await open(t, { ...options, dir: before.dir, state: before.state })
}

/** The same on a free port of loopback, for what needs a socket. */
export async function listening (t: Test, options: OpenOptions = {}): Promise<Opened> {
  const opened = await open(t, options)
  await opened.app.listen({ host: '127.0.0.1', port: 0 })
  return { ...opened, port: (opened.app.server.address() as AddressInfo).port }
}

/** A file of that size, sparse, or of these bytes. */
export function makeFile (dir: string, name: string, content: number | Buffer | string): string {
  const path = join(dir, name)
  mkdirSync(join(path, '..'), { recursive: true })
  if (typeof content === 'number') {
    writeFileSync(path, '')
    truncateSync(path, content)
  } else {
    writeFileSync(path, content)
  }
  return path
}

/** Why commands that a test needs (as root: mounts, devices) cannot be had here, or false: for tap's `skip`. They are tried once, in a directory of their own. */
export function cannot (script: string): string | false {
  const dir = mkdtempSync(join(tmpdir(), 'pmemsetd-try-'))
  const done = spawnSync('sh', ['-e', '-c', script], { cwd: dir, encoding: 'utf8' })
  rmSync(dir, { recursive: true, force: true })
  return done.status === 0 ? false : `not allowed here: ${done.stderr.trim()}`
}

/* ---- the client ---- */

export interface Reply {
  status: number
  headers: LightMyRequestResponse['headers']
  /** The body, as JSON; undefined where it is none. */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- what came over the wire is compared, not trusted
  json: any
  bytes: Buffer
}

export type Body = object | Buffer | string | undefined

type Documented = Record<string, Record<string, { responses: Record<string, { content?: Record<string, { 'x-problem-codes'?: string[] }> }> }>>

/** Fails where the document does not tell that the operation can be refused so. */
function checkDocumented (t: Test, app: FastifyInstance, method: string, url: string, problem: ProblemDocument): void {
  const path = url.split('?')[0] ?? ''
  const paths = app.swagger().paths as Documented
  const found = Object.entries(paths).find(([pattern, operations]) => (
    method.toLowerCase() in operations && new RegExp(`^${pattern.replace(/\{[^}]+\}/g, '[^/]+')}$`).test(path)
  ))
  if (found === undefined) return // no operation of ours
  const codes = found[1][method.toLowerCase()]?.responses[problem.status]?.content?.['application/problem+json']?.['x-problem-codes'] ?? []
  t.ok(codes.includes(problem.code), `the document tells of ${problem.status} ${problem.code} at ${method} ${found[0]}`)
}

/** One request. An object is sent as JSON, bytes as octets, a string as the JSON text that it is. */
export async function call (t: Test, { app }: Opened, method: string, url: string, body?: Body, headers: Record<string, string> = {}): Promise<Reply> {
  const type = Buffer.isBuffer(body) ? 'application/octet-stream' : 'application/json'
  const payload = typeof body === 'object' && !Buffer.isBuffer(body) ? JSON.stringify(body) : body
  const reply = await app.inject({ method, url, headers: { ...(body === undefined ? {} : { 'content-type': type }), ...headers }, ...(payload === undefined ? {} : { payload }) })
  const isJson = /json/.test(String(reply.headers['content-type'] ?? '')) && reply.rawPayload.length > 0
  const json: unknown = isJson ? reply.json() : undefined
  if (isJson && /problem/.test(String(reply.headers['content-type']))) checkDocumented(t, app, method, url, json as ProblemDocument)
  return { status: reply.statusCode, headers: reply.headers, json, bytes: reply.rawPayload }
}

/** One that has to succeed. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- as above
export async function must (t: Test, opened: Opened, method: string, url: string, body?: Body, headers: Record<string, string> = {}): Promise<any> {
  const reply = await call(t, opened, method, url, body, headers)
  if (reply.status >= 300) throw new Error(`${method} ${url}: ${reply.status} ${JSON.stringify(reply.json)}`)
  return reply.json ?? reply.bytes
}

/** One that has to be refused with that status and code; further members are compared as t.match does. What was refused has changed nothing. */
export async function refused (t: Test, opened: Opened, request: [method: string, url: string, body?: Body, headers?: Record<string, string>], status: number, code: string, members: object = {}): Promise<ProblemDocument> {
  const before = world(opened)
  const reply = await call(t, opened, ...request)
  const problem = reply.json as ProblemDocument
  const label = `${request[0]} ${request[1].slice(0, 100)} ${JSON.stringify(request[2] ?? '').slice(0, 100)}`
  t.match({ httpStatus: reply.status, ...problem }, { httpStatus: status, status, code, type: `/errors/${code}`, instance: String, title: String, detail: String, retryable: Boolean, ...members }, label)
  t.equal(reply.headers['content-type'], 'application/problem+json', label)
  t.same(world(opened), before, `nothing changed: ${label}`)
  return problem
}

/** Everything that a client can see of all sets, to be compared. */
export function world ({ service }: Opened): unknown {
  return service.sets.list({ limit: 1000 }).items.map((one) => {
    const set = service.sets.get(one.id)
    return { one, parts: listParts(set, {}, { limit: 1000 }).items, maps: listMaps(set, {}, { limit: 1000 }).items }
  })
}

export async function makeSet (t: Test, opened: Opened, fields: object = {}): Promise<PmemSet> {
  return await must(t, opened, 'POST', '/sets', { requiredGranularity: 'page', ...fields }) as PmemSet
}

/** Maps a part of a file, which is made where it is not there. */
export async function mapPart (t: Test, opened: Opened, set: string, path: string, fields: object = {}, source: object = {}): Promise<Part> {
  return await must(t, opened, 'POST', `/sets/${set}/parts`, { source: { type: 'file', path, create: 'if_needed', ...source }, length: PAGE, ...fields }) as Part
}

export async function mapsOf (t: Test, opened: Opened, set: string): Promise<PartMap[]> {
  return (await must(t, opened, 'GET', `/sets/${set}/maps`) as { items: PartMap[] }).items
}

/** An address some bytes further (or back). */
export function plus (addr: string, bytes: number | bigint): string {
  return `0x${(BigInt(addr) + BigInt(bytes)).toString(16)}`
}
