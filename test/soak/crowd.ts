// SPDX-License-Identifier: BSD-3-Clause
//
// A crowd: many clients of one real process, each doing at random whatever can be done, for a while. Each has bytes of its own in a set that all share, so it
// knows what a read has to give; parts come and go beside them. Any answer that was not asked for is a failure.
import { spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeReply, encodeBatch, type BatchOperation } from '../../src/batch.js'

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'main.js')
const PAGE = 4096
/** Of each client. */
const REGION = 16 * PAGE
const WARM_MS = 3000
const CALM_MS = 2000

export interface Crowd {
  clients: number
  seconds: number
  seed: number
  /** Told every ten seconds. */
  progress?: (text: string) => void
}

export interface Outcome {
  requests: number
  /** At most the first twenty. */
  failures: string[]
  failureCount: number
  /** After warming up, and after the crowd has gone. */
  before: Footprint
  after: Footprint
}

export interface Footprint {
  /** Private memory. */
  anonymousBytes: number
  descriptors: number
  mappings: number
}

/** The same numbers for the same seed. */
function chanceOf (seed: number): (below: number) => number {
  let state = (seed * 2654435761 + 1) >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

function footprint (pid: number): Footprint {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1')
  return {
    anonymousBytes: Number(/RssAnon:\s+(\d+)/.exec(status)?.[1]) * 1024,
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    mappings: readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n').length
  }
}

interface Answer { status: number, bytes: Buffer }

class Client {
  readonly #chance: (below: number) => number
  readonly #model = Buffer.alloc(REGION)

  constructor (readonly id: number, readonly crowd: Session, seed: number) {
    this.#chance = chanceOf(seed + id * 7919)
  }

  get #base (): bigint { return this.crowd.base + BigInt(this.id * REGION) }

  #range (max = REGION): { at: number, length: number } {
    const length = this.#chance(max) + 1
    return { at: this.#chance(REGION - length + 1), length }
  }

  #addr (at: number): string { return `0x${(this.#base + BigInt(at)).toString(16)}` }

  async #read (): Promise<void> {
    const { at, length } = this.#range(this.#chance(4) === 0 ? REGION : 256)
    const bytes = await this.crowd.expect(200, 'GET', `/sets/shared/memory?addr=${this.#addr(at)}&length=${length}`)
    if (!bytes.equals(this.#model.subarray(at, at + length))) throw new Error(`client ${this.id} reads other bytes at ${at}, ${length}`)
  }

  async #write (): Promise<void> {
    const { at, length } = this.#range(this.#chance(8) === 0 ? REGION : 128)
    const bytes = Buffer.alloc(length, this.#chance(256))
    const durability = ['none', 'flushed', 'persisted'][this.#chance(3)] ?? 'none'
    await this.crowd.expect(200, 'PUT', `/sets/shared/memory?addr=${this.#addr(at)}&durability=${durability}`, bytes)
    bytes.copy(this.#model, at)
  }

  async #lookUp (): Promise<void> {
    await this.crowd.expect(200, 'GET', `/sets/shared/maps?addr=${this.#addr(this.#chance(REGION))}`)
  }

  async #fill (): Promise<void> {
    const { at, length } = this.#range(1024)
    const value = this.#chance(256)
    await this.crowd.expect(200, 'POST', '/sets/shared/memset', { addr: this.#addr(at), length, value: `0x${value.toString(16)}`, durability: 'none' })
    this.#model.fill(value, at, at + length)
  }

  async #move (): Promise<void> {
    const { at, length } = this.#range(1024)
    const from = this.#chance(REGION - length + 1)
    await this.crowd.expect(200, 'POST', '/sets/shared/memmove', { dest: this.#addr(at), src: this.#addr(from), length })
    this.#model.copy(this.#model, at, from, from + length)
  }

  async #add (): Promise<void> {
    const at = this.#chance(REGION / 8) * 8
    const before = this.#model.readBigUInt64LE(at)
    const answer = JSON.parse((await this.crowd.expect(200, 'POST', '/sets/shared/atomic', { op: 'add', addr: this.#addr(at), value: '0x3' })).toString()) as { previous: string }
    if (BigInt(answer.previous) !== before) throw new Error(`client ${this.id}: an atomic found ${answer.previous}, not ${before}`)
    this.#model.writeBigUInt64LE(BigInt.asUintN(64, before + 3n), at)
  }

  async #batch (): Promise<void> {
    const operations = Array.from({ length: 1 + this.#chance(20) }, (): BatchOperation => {
      const { at, length } = this.#range(64)
      const data = Buffer.alloc(length, this.#chance(256))
      data.copy(this.#model, at)
      return { op: 'write', addr: this.#addr(at), data }
    })
    const { at, length } = this.#range(64)
    operations.push({ op: 'read', addr: this.#addr(at), length })
    const reply = decodeReply(await this.crowd.expect(200, 'POST', '/sets/shared/batch/binary', Buffer.from(encodeBatch(operations))), operations)
    if (!this.#model.subarray(at, at + length).equals(reply.results.at(-1)?.data ?? Buffer.alloc(0))) throw new Error(`client ${this.id}: a batch read other bytes`)
  }

  async #persist (): Promise<void> {
    await this.crowd.expect(200, 'POST', '/sets/shared/persist', { ranges: [{ addr: this.#addr(0), length: REGION }] })
  }

  /** A part that nobody else has, there and gone again. */
  async #comeAndGo (): Promise<void> {
    await this.crowd.expect(201, 'POST', '/sets/churn/parts', { id: `c${this.id}`, source: { type: 'file', path: `churn-${this.id % 50}`, create: 'if_needed' }, length: PAGE })
    await this.crowd.expect(204, 'DELETE', `/sets/churn/parts/c${this.id}`)
  }

  async #goAway (): Promise<void> {
    await this.crowd.abort(`/sets/shared/memory?addr=0x${this.crowd.base.toString(16)}&length=${this.crowd.size}`)
  }

  async #beWrong (): Promise<void> {
    await this.crowd.expect(422, 'GET', `/sets/shared/memory?addr=0x${this.crowd.base.toString(16)}&length=${this.crowd.size + 1}`)
    await this.crowd.expect(404, 'GET', '/sets/shared/maps?addr=0x8')
  }

  async live (until: number): Promise<void> {
    const work: Array<[weight: number, step: () => Promise<void>]> = [
      [30, () => this.#read()], [25, () => this.#write()], [20, () => this.#lookUp()], [5, () => this.#fill()], [5, () => this.#move()], [3, () => this.#add()],
      [5, () => this.#batch()], [1, () => this.#persist()], [3, () => this.#comeAndGo()], [1, () => this.#goAway()], [2, () => this.#beWrong()]
    ]
    const sum = work.reduce((all, [weight]) => all + weight, 0)
    while (performance.now() < until && !this.crowd.isOver) {
      let left = this.#chance(sum)
      for (const [weight, step] of work) {
        left -= weight
        if (left >= 0) continue
        try {
          await step()
        } catch (error) {
          this.crowd.fail(error)
          return // its model may be wrong from here on
        }
        break
      }
    }
  }
}

class Session {
  base = 0n
  size = 0
  requests = 0
  isOver = false
  readonly failures: string[] = []
  failureCount = 0
  readonly agent: Agent

  constructor (readonly port: number, clients: number) {
    this.agent = new Agent({ keepAlive: true, maxSockets: clients })
  }

  fail (error: unknown): void {
    if (this.isOver) return
    this.failureCount++
    if (this.failures.length < 20) this.failures.push(error instanceof Error ? error.message : String(error))
  }

  ask (method: string, path: string, body?: object | Buffer): Promise<Answer> {
    this.requests++
    return new Promise((resolve, reject) => {
      const bytes = body === undefined ? undefined : Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body))
      const type = Buffer.isBuffer(body) ? 'application/octet-stream' : 'application/json'
      const headers = bytes === undefined ? {} : { 'content-type': type, 'content-length': bytes.length }
      const asked = request({ host: '127.0.0.1', port: this.port, method, path, headers, agent: this.agent }, (reply) => {
        const chunks: Buffer[] = []
        reply.on('data', (chunk: Buffer) => { chunks.push(chunk) })
        reply.on('end', () => { resolve({ status: reply.statusCode ?? 0, bytes: Buffer.concat(chunks) }) })
        reply.on('error', reject)
      })
      asked.on('error', reject)
      asked.end(bytes)
    })
  }

  async expect (status: number, method: string, path: string, body?: object | Buffer): Promise<Buffer> {
    const answer = await this.ask(method, path, body)
    if (answer.status !== status) throw new Error(`${method} ${path}: ${answer.status} ${answer.bytes.toString('utf8', 0, 500)}`)
    return answer.bytes
  }

  /** Begins to read, and is gone. */
  async abort (path: string): Promise<void> {
    this.requests++
    await new Promise<void>((resolve) => {
      const asked = request({ host: '127.0.0.1', port: this.port, path, agent: false }, (reply) => {
        reply.once('data', () => { asked.destroy() })
        reply.on('error', () => {})
      })
      asked.on('error', () => {})
      asked.once('close', resolve)
      asked.end()
    })
  }
}

async function start (volume: string): Promise<{ child: ChildProcess, port: number }> {
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_') && name !== 'NODE_OPTIONS'))
  const child = spawn(process.execPath, [MAIN], { env: { ...clean, UV_THREADPOOL_SIZE: '16', PMEMSETD_PORT: '0', PMEMSETD_VOLUMES: `default=${volume}` }, stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.on('data', (data: Buffer) => { said = (said + data.toString()).slice(-4096) })
  while (!said.includes('"listening"')) {
    if (child.exitCode !== null) throw new Error(said)
    await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
  }
  return { child, port: Number(/127\.0\.0\.1:(\d+)/.exec(said)?.[1]) }
}

/** All of them at the same time, for so long; then they go, and what is left of them is measured. */
export async function crowd ({ clients, seconds, seed, progress }: Crowd): Promise<Outcome> {
  const volume = mkdtempSync(join(tmpdir(), 'pmemsetd-crowd-'))
  const { child, port } = await start(volume)
  const session = new Session(port, clients)
  const pid = child.pid as number
  const ended = once(child, 'exit').then(() => {
    session.fail(new Error('the service ended'))
    session.isOver = true
  })
  try {
    session.size = clients * REGION
    await session.expect(201, 'POST', '/sets', { id: 'shared', requiredGranularity: 'page' })
    await session.expect(201, 'POST', '/sets', { id: 'churn', requiredGranularity: 'page' })
    const part = await session.expect(201, 'POST', '/sets/shared/parts', { source: { type: 'file', path: 'shared', create: 'if_needed' }, length: session.size })
    session.base = BigInt((JSON.parse(part.toString()) as { addr: string }).addr)
    const all = Array.from({ length: clients }, (_, i) => new Client(i, session, seed))
    const began = performance.now()
    // As large as it gets: heap, buffers and threads are there.
    await Promise.all(all.map((client) => client.live(began + Math.min(WARM_MS, seconds * 250))))
    await sleep(CALM_MS)
    const before = footprint(pid)
    const timer = setInterval(() => { progress?.(`${Math.round((performance.now() - began) / 1000)} s, ${session.requests} requests, ${session.failureCount} failures`) }, 10_000)
    await Promise.all(all.map((client) => client.live(began + seconds * 1000)))
    clearInterval(timer)
    await sleep(CALM_MS)
    const after = footprint(pid)
    session.isOver = true
    return { requests: session.requests, failures: session.failures, failureCount: session.failureCount, before, after }
  } finally {
    session.isOver = true
    session.agent.destroy()
    child.kill('SIGTERM')
    await ended
    rmSync(volume, { recursive: true, force: true })
  }
}
