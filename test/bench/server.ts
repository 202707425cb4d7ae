// SPDX-License-Identifier: BSD-3-Clause
//
// A server under measurement: a process of its own, held on one core, whose CPU time and memory the kernel tells.
import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync } from 'node:fs'
import { connect } from 'node:net'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../shell.js'

const START_SECONDS_MAX = 30
export const SERVER_CORE = 0
export const LOAD_CORE = Math.min(1, availableParallelism() - 1)

export const HERE = dirname(fileURLToPath(import.meta.url))
export const ROOT = join(HERE, '..', '..', '..')
const MAIN = join(ROOT, 'build', 'src', 'main.js')

export interface Server {
  port: number
  url: string
  /** Seconds of CPU that all of its threads have used. */
  cpu: () => number
  /** A row of /proc/<pid>/status that counts kB, in bytes. */
  memory: (row: 'RssAnon' | 'VmRSS') => number
  stop: () => Promise<void>
}

/** A program of ours in C, compiled when its source is newer. */
export function program (name: string): string {
  const source = join(ROOT, 'test', 'bench', `${name}.c`)
  const product = join(HERE, name)
  if (!existsSync(product) || statSync(product).mtimeMs < statSync(source).mtimeMs) {
    mkdirSync(HERE, { recursive: true })
    const fresh = `${product}.${process.pid}`
    execFileSync('cc', ['-O2', '-std=c11', '-D_GNU_SOURCE', '-Wall', '-Wextra', '-pthread', '-o', fresh, source], { stdio: ['ignore', 'inherit', 'inherit'] })
    renameSync(fresh, product)
  }
  return product
}

function cpuOf (pid: number): number {
  let nanoseconds = 0
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      nanoseconds += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')[0])
    } catch { /* the thread ended meanwhile */ }
  }
  return nanoseconds / 1e9
}

async function listens (port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}

async function answers (port: number, path: string | undefined, child: ChildProcess): Promise<boolean> {
  const until = performance.now() + START_SECONDS_MAX * 1000
  while (performance.now() < until && child.exitCode === null) {
    try {
      if (path === undefined ? await listens(port) : (await fetch(`http://127.0.0.1:${port}${path}`)).ok) return true
    } catch { /* not yet */ }
    await sleep(50)
  }
  return false
}

export interface Start {
  /** The command for a port of loopback that is free. */
  command: (port: number) => string[]
  env?: (port: number) => Record<string, string>
  /** It is ready when this path answers 2xx, or else when it listens. */
  path?: string
}

/** Starts a server on the servers' core, with none of our own settings from outside. */
export async function start ({ command, env = () => ({}), path }: Start): Promise<Server> {
  const port = await freePort()
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_')))
  const child = spawn('taskset', ['-c', String(SERVER_CORE), ...command(port)], {
    env: { ...clean, NODE_ENV: 'production', UV_THREADPOOL_SIZE: '16', ...env(port) },
    stdio: ['ignore', 'ignore', 'pipe']
  })
  let said = ''
  child.stderr.on('data', (data: Buffer) => { said = (said + data.toString()).slice(-4000) })
  const stop = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const gone = once(child, 'exit')
    child.kill('SIGTERM')
    const hard = setTimeout(() => { child.kill('SIGKILL') }, 10_000)
    await gone
    clearTimeout(hard)
  }
  if (!await answers(port, path, child)) {
    await stop()
    throw new Error(`${command(port).join(' ')} does not answer:\n${said}`)
  }
  const pid = child.pid as number
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    cpu: () => cpuOf(pid),
    memory: (row) => Number(new RegExp(`^${row}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]) * 1024,
    stop
  }
}

const FILL_BYTES = 16 * 1024 * 1024

/** The service as it is shipped, over one volume. */
export async function service (volume: string, settings: Record<string, string> = {}): Promise<Server> {
  return await start({
    command: () => [process.execPath, MAIN],
    env: (port) => ({ PMEMSETD_PORT: String(port), PMEMSETD_VOLUMES: `default=${volume}`, PMEMSETD_EPHEMERAL: 'true', ...settings }),
    path: '/livez'
  })
}

/** One call of the service that has to succeed. */
export async function call (server: Server, method: string, path: string, body?: object): Promise<Record<string, unknown>> {
  const headers: Record<string, string> = body === undefined ? {} : { 'content-type': 'application/json' }
  const response = await fetch(server.url + path, { method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) })
  const answer = await response.json() as Record<string, unknown>
  if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`)
  return answer
}

/** A set of one part, all of a file of the volume; its address. */
export async function mapFile (server: Server, path: string): Promise<bigint> {
  await call(server, 'POST', '/sets', { id: 'bench', requiredGranularity: 'page' })
  const part = await call(server, 'POST', '/sets/bench/parts', { source: { type: 'file', path } })
  return BigInt(part.addr as string)
}

/**
 * A part of the set `bench`, all of a new file that the service has filled: its blocks are on the disk, no hole and no unwritten extent among them, so that
 * a write there is a write and nothing else. Its address.
 */
export async function fillPart (server: Server, path: string, length: number): Promise<bigint> {
  const part = await call(server, 'POST', '/sets/bench/parts', { id: path, source: { type: 'file', path, create: 'exclusive' }, length })
  for (let offset = 0; offset < length; offset += FILL_BYTES) {
    const body = Buffer.alloc(Math.min(FILL_BYTES, length - offset), 0xa5)
    const response = await fetch(`${server.url}/sets/bench/parts/${path}/content?offset=${offset}`, { method: 'PUT', headers: { 'content-type': 'application/octet-stream' }, body })
    const answer = await response.text()
    if (!response.ok) throw new Error(`${path} was not filled: ${answer}`)
  }
  return BigInt(part.addr as string)
}

export async function fillFile (server: Server, path: string, length: number, requiredGranularity = 'page'): Promise<bigint> {
  await call(server, 'POST', '/sets', { id: 'bench', requiredGranularity })
  return await fillPart(server, path, length)
}
