// SPDX-License-Identifier: BSD-3-Clause
//
// What tests of the whole process share: to start it in a folder of its own, to hear what it says, to ask it.
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import type { PmemSet } from '../src/schemas.js'

export const MAIN = join(import.meta.dirname, '..', 'src', 'main.js')

export interface Running {
  child: ChildProcess
  said: () => string
  ended: Promise<number | string>
}

// eslint-disable-next-line @typescript-eslint/no-explicit-any -- what came over the wire is compared, not trusted
export type Json = any

/** `node main.js` in a folder of the test; `wrap` is a command that starts it. */
export function run (dir: string, env: NodeJS.ProcessEnv, wrap: string[] = []): Running {
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_') && name !== 'NODE_OPTIONS'))
  const [command, ...args] = [...wrap, process.execPath, MAIN]
  const child = spawn(command, args, { cwd: dir, env: { ...clean, PMEMSETD_PORT: '0', ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data: Buffer) => { text += data.toString() })
  return { child, said: () => text, ended: once(child, 'close').then(([status, signal]) => (status ?? signal) as number | string) }
}

/** The same, as soon as it listens. */
export async function listening (t: Test, dir: string, env: NodeJS.ProcessEnv = {}, wrap: string[] = []): Promise<Served> {
  const running = run(dir, env, wrap)
  t.teardown(async () => {
    running.child.kill('SIGKILL')
    await running.ended
  })
  while (!running.said().includes('"listening"')) {
    await Promise.race([once(running.child.stdout!, 'data'), running.ended.then(() => { throw new Error(running.said()) })])
  }
  const { address } = JSON.parse(running.said().split('\n').find((line) => line.includes('"listening"')) ?? '{}') as { address: string }
  return { ...running, address }
}

export interface Reply { status: number, json: Json }

export function ask (target: { url: string } | { socketPath: string, path: string }, { method = 'GET', headers = {}, body }: { method?: string, headers?: Record<string, string>, body?: object | Buffer } = {}): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const options = { method, agent: false as const, headers: { ...(body === undefined ? {} : { 'content-type': Buffer.isBuffer(body) ? 'application/octet-stream' : 'application/json' }), ...headers } }
    const asked = 'url' in target ? request(target.url, options) : request({ ...target, ...options })
    asked.on('error', reject)
    asked.on('response', (reply) => {
      let text = ''
      reply.on('data', (data: Buffer) => { text += data.toString() })
      reply.on('end', () => { resolve({ status: reply.statusCode ?? 0, json: text === '' ? undefined : JSON.parse(text) as unknown }) })
    })
    asked.end(body === undefined || Buffer.isBuffer(body) ? body : JSON.stringify(body))
  })
}

/** A folder whose path is short enough for a socket in it. */
export function folder (t: Test, ...names: string[]): string {
  const dir = mkdtempSync(join(tmpdir(), 'pmemsetd-'))
  t.teardown(() => { rmSync(dir, { recursive: true, force: true }) })
  for (const name of names) mkdirSync(join(dir, name))
  return dir
}

export type Served = Running & { address: string }

/** Listening, and with everything back that its catalog names. */
export async function serving (t: Test, dir: string, env: NodeJS.ProcessEnv = {}, wrap: string[] = []): Promise<Served> {
  const running = await listening(t, dir, env, wrap)
  for (;;) {
    const { status, json } = await ask({ url: `${running.address}/readyz` })
    if (status === 200) return running
    if (json?.code !== 'RESTORING') throw new Error(JSON.stringify(json))
    await sleep(10)
  }
}

export async function send ({ address }: Served, method: string, path: string, body?: object | Buffer, headers: Record<string, string> = {}): Promise<Reply> {
  return await ask({ url: address + path }, { method, headers, ...(body === undefined ? {} : { body }) })
}

/** As `send`, of what has to succeed. */
export async function must (served: Served, method: string, path: string, body?: object | Buffer, headers: Record<string, string> = {}): Promise<Json> {
  const { status, json } = await send(served, method, path, body, headers)
  if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(json)}`)
  return json
}

/** Everything that a client can see of all sets, to be compared. */
export async function worldOf (address: string): Promise<Json[]> {
  const { items } = (await ask({ url: `${address}/sets?limit=1000` })).json as { items: PmemSet[] }
  return [...items, ...await Promise.all(items.filter(({ partCount }) => partCount > 0).flatMap(({ id }) => ['parts', 'maps'].map((what) => ask({ url: `${address}/sets/${id}/${what}?limit=1000` }))))]
}

/** How many files the process has open, and how many mappings that others may share. Not connections: of those, the host tells when it likes that they are gone. */
export function held ({ child }: Running): { files: number, mappings: number } {
  const at = `/proc/${child.pid ?? 0}`
  const isFile = (fd: string): boolean => { try { return !readlinkSync(join(at, 'fd', fd)).startsWith('socket:') } catch { return false } }
  return {
    files: readdirSync(join(at, 'fd')).filter(isFile).length,
    mappings: readFileSync(join(at, 'maps'), 'utf8').split('\n').filter((line) => /^\S+ ...s /.test(line)).length
  }
}

/** Without a last word. */
export async function kill ({ child, ended }: Running): Promise<void> {
  child.kill('SIGKILL')
  await ended
}
