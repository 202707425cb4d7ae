// SPDX-License-Identifier: BSD-3-Clause
//
// The process: settings, engine, application, a listener, and an end in order.
import closeWithGrace from 'close-with-grace'
import { mkdirSync, rmSync, statSync } from 'node:fs'
import { connect } from 'node:net'
import type { FastifyInstance } from 'fastify'
import { buildApp } from './app.js'
import { MemoryCatalog } from './catalog/memory.js'
import { checkPlaces, ConfigError, loadConfig, type Config } from './config.js'
import { AbiError } from './engine/abi.js'
import { Engine } from './engine/engine.js'
import { EngineError } from './errors.js'
import { createLog } from './log.js'
import { loadTokens } from './plugins/tokens.js'
import { Service } from './service/service.js'
import { VERSION } from './version.js'

// Requests under way get this long to end, then their connections are cut; flushes have the rest.
const REQUESTS_MS_MAX = 5000
const END_MS_MAX = 20_000

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
  if (error instanceof ConfigError || error instanceof AbiError || error instanceof EngineError) return `pmemsetd: ${error.message}`
  const { code, syscall, message } = error as NodeJS.ErrnoException
  if (syscall !== 'listen') return error
  return `pmemsetd: cannot listen: ${code === 'EADDRINUSE' ? `${message}; another process has that port, so end it or set PMEMSETD_PORT` : message}`
}

async function start (): Promise<{ app: FastifyInstance, service: Service }> {
  const config = loadConfig(process.env)
  if (process.env.PMEMSETD_VOLUMES === undefined) for (const { path } of config.volumes) mkdirSync(path, { recursive: true })
  checkPlaces(config)
  const tokens = config.tokens === undefined ? undefined : loadTokens(config.tokens)
  const engine = Engine.start({ arenaBase: config.arenaBase, arenaSize: config.arenaSize, mappingsMax: config.limits.mappings, simulate: config.simulate })
  const service = new Service({ engine, catalog: new MemoryCatalog(), config, version: VERSION })
  const app = await buildApp({ config, log, version: VERSION, tokens, service })
  const address = await listen(app, config)
  log('info', 'listening', { address, version: VERSION, volumes: config.volumes.map(({ name }) => name).join(','), ...(config.simulate === undefined ? {} : { simulated: config.simulate }) })
  return { app, service }
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
}

try {
  await run()
} catch (error) {
  console.error(explain(error))
  process.exit(1)
}
