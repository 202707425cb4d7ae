// SPDX-License-Identifier: BSD-3-Clause
//
// The process: settings, engine, application, a listener, and an end in order.
import closeWithGrace from 'close-with-grace'
import { existsSync, mkdirSync, rmSync, statSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { buildApp } from './app.js'
import { randomUUID } from 'node:crypto'
import { CatalogError, LmdbCatalog } from './catalog/lmdb.js'
import { checkPlaces, ConfigError, loadConfig, STATE_NAME, type Config } from './config.js'
import { AbiError } from './engine/abi.js'
import { Engine } from './engine/engine.js'
import { EngineError, hex } from './errors.js'
import { createLog } from './log.js'
import { loadTokens } from './plugins/tokens.js'
import { Service, type Progress } from './service/service.js'
import './ticks.js'
import { VERSION } from './version.js'

// Requests under way get this long to end, then their connections are cut; flushes have the rest.
const REQUESTS_MS_MAX = 5000
const END_MS_MAX = 20_000
// Of the restoration, in the log.
const PROGRESS_MS = 1000

// Whoever read the log may go; the service goes on.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})

const log = createLog((line) => process.stdout.write(line))

/** A socket that nobody listens on any more is in the way; one that answers is another service's. */
async function clearSocket (path: string): Promise<void> {
  if (statSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return
  const isInUse = await new Promise<boolean>((resolve) => {
    const socket = connect(path, () => { resolve(true); socket.destroy() })
    // Anything else (a full backlog, another user's socket) is a sign of life.
    socket.on('error', ({ code }: NodeJS.ErrnoException) => { resolve(code !== 'ECONNREFUSED' && code !== 'ENOENT') })
  })
  if (isInUse) throw new ConfigError(`PMEMSETD_SOCKET is ${JSON.stringify(path)}, where something listens already; allowed is a free path`)
  rmSync(path)
}

async function listen (app: FastifyInstance, { host, port, socket }: Config): Promise<string> {
  if (socket === undefined) return await app.listen({ host, port })
  await clearSocket(socket)
  // From its first moment it is for nobody else.
  const mask = process.umask(0o177)
  try {
    return await app.listen({ path: socket })
  } finally {
    process.umask(mask)
  }
}

/** What the operator can mend is a sentence; of anything else, a mistake of ours, the place is told. */
function explain (error: unknown): unknown {
  if (error instanceof ConfigError || error instanceof CatalogError || error instanceof AbiError || error instanceof EngineError) return `pmemsetd: ${error.message}`
  const { code, syscall, message } = error as NodeJS.ErrnoException
  if (syscall !== 'listen') return error
  return `pmemsetd: cannot listen: ${code === 'EADDRINUSE' ? `${message}; another process has that port, so end it or set PMEMSETD_PORT` : message}`
}

/** Takes the catalog's directory and every volume for this process. */
function lockPlaces (engine: Engine, config: Config): void {
  for (const dir of new Set([config.stateDir, ...config.volumes.map(({ path }) => join(path, STATE_NAME))])) {
    try {
      // Of a volume, only the last of its names may be missing; and Node tells EROFS as ENOENT where it would make more.
      if (dir === config.stateDir) mkdirSync(dir, { recursive: true, mode: 0o700 })
      else if (!existsSync(dir)) mkdirSync(dir, { mode: 0o700 })
      engine.lock(join(dir, 'lock'))
    } catch (error) {
      const code = error instanceof EngineError ? error.codeName : (error as NodeJS.ErrnoException).code
      if (code === 'EROFS' && dir !== config.stateDir) {
        // Nobody writes there, so nobody has to be kept from it. Its parts are not available, and tell why.
        log('warn', 'a volume is read-only', { volume: config.volumes.find(({ path }) => join(path, STATE_NAME) === dir)?.name ?? '' })
        continue
      }
      if (!(error instanceof EngineError) || code !== 'EAGAIN') throw error
      throw new ConfigError(`${dir} is in use by another pmemsetd${error.value > 0n ? `, process ${error.value}` : ''}; end that one, or set PMEMSETD_VOLUMES and PMEMSETD_STATE_DIR to other places`)
    }
  }
}

async function openCatalog (engine: Engine, { stateDir, ephemeral }: Config): Promise<LmdbCatalog> {
  try {
    if (!ephemeral) engine.checkState(stateDir)
  } catch (error) {
    if (!(error instanceof EngineError) || error.codeName !== 'ENOTSUP') throw error
    throw new ConfigError(`the catalog would be in ${stateDir}, which may not keep it: ${error.message}; set PMEMSETD_STATE_DIR to a directory of a local disk, or PMEMSETD_EPHEMERAL=true where the catalog may be lost`)
  }
  return await LmdbCatalog.open({ dir: stateDir, allocate: (path, bytes) => engine.allocate(path, bytes) })
}

/** Starts the engine where the addresses of the catalog are. */
async function startEngine (engine: Engine, { arenaBase, arenaSize, limits, simulate }: Config, catalog: LmdbCatalog): Promise<void> {
  const known = catalog.service()
  const isEmpty = [...catalog.sets()].length === 0
  if (known !== undefined && !isEmpty && arenaBase !== 0n && hex(arenaBase) !== known.arenaBase) {
    throw new ConfigError(`PMEMSETD_ARENA_BASE is ${hex(arenaBase)}, but the sets of the catalog are at ${known.arenaBase}; allowed is that, or leave it unset`)
  }
  engine.begin({ arenaBase: arenaBase !== 0n || known === undefined ? arenaBase : BigInt(known.arenaBase), arenaSize, mappingsMax: limits.mappings, logSize: limits.atomicBatchBytes, logKeepFree: limits.keepFreePercent, simulate })
  const info = engine.info()
  const base = hex(info.arenaBase)
  if (known !== undefined && !isEmpty) {
    if (known.arenaBase !== base) throw new CatalogError(`the addresses of the catalog's sets begin at ${known.arenaBase}, which cannot be had in this process; ${base} can`)
    if (known.pageSize !== info.pageSize) throw new CatalogError(`the catalog is of a host with pages of ${known.pageSize} bytes, and this one has pages of ${info.pageSize}`)
  }
  if (known?.arenaBase !== base || known.pageSize !== info.pageSize) {
    await catalog.commit([{ kind: 'put-service', service: { uid: known?.uid ?? randomUUID(), arenaBase: base, pageSize: info.pageSize } }])
  }
}

async function start (): Promise<{ app: FastifyInstance, service: Service }> {
  const config = loadConfig(process.env)
  if (process.env.PMEMSETD_VOLUMES === undefined) for (const { path } of config.volumes) mkdirSync(path, { recursive: true })
  checkPlaces(config)
  const tokens = config.tokens === undefined ? undefined : loadTokens(config.tokens)
  const engine = Engine.load()
  lockPlaces(engine, config)
  const catalog = await openCatalog(engine, config)
  await startEngine(engine, config, catalog)
  const service = new Service({ engine, catalog, config, version: VERSION })
  const app = await buildApp({ config, log, version: VERSION, tokens, service })
  const address = await listen(app, config)
  log('info', 'listening', { address, version: VERSION, volumes: config.volumes.map(({ name }) => name).join(','), ...(config.simulate === undefined ? {} : { simulated: config.simulate }) })
  return { app, service }
}

/** Brings back what the catalog names, while requests are refused. */
async function restore (service: Service): Promise<void> {
  let told = performance.now()
  const tell = ({ parts, restored }: Progress): void => {
    if (performance.now() - told < PROGRESS_MS) return
    told = performance.now()
    log('info', 'restoring', { parts, restored })
  }
  const { unavailable, unfinished } = await service.restore(tell)
  for (const { volume, path, detail } of unfinished) log('warn', 'what an unfinished step has made could not be taken away', { volume, path, detail })
  for (const { set, part, problem, detail } of unavailable) log('warn', 'part unavailable', { set, part, problem, detail })
  log('info', 'ready', { sets: service.sets.count, parts: service.sets.partCount, unavailable: unavailable.length })
}

async function run (): Promise<void> {
  const { app, service } = await start()
  // Faults of the hardware are the engine's: a listener in JavaScript would hang the process at a real one.
  closeWithGrace({ delay: END_MS_MAX, logger: { error: (text: unknown) => { log('error', String(text)) } }, skip: ['SIGBUS', 'SIGSEGV', 'SIGILL', 'SIGFPE', 'SIGTRAP', 'SIGABRT'] }, async ({ signal, err }) => {
    if (err !== undefined) log('error', err.message, { stack: err.stack ?? '' })
    log('info', 'stopping', { signal: signal ?? '' })
    const cut = setTimeout(() => { app.server.closeAllConnections() }, REQUESTS_MS_MAX)
    await app.close()
    clearTimeout(cut)
    const failures = await service.close()
    for (const failure of failures) log('error', failure instanceof Error ? failure.message : String(failure))
    if (failures.length > 0) throw new Error('not everything that was written is durable')
    log('info', 'stopped')
  })
  await restore(service).catch((error: unknown) => {
    if (!service.isEnded) throw error
  })
}

try {
  await run()
} catch (error) {
  console.error(explain(error))
  process.exit(1)
}
