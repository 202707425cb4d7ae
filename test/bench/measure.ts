// SPDX-License-Identifier: BSD-3-Clause
//
// How anything is measured here: contestants take slices of load in turn, and what counts is the ratio of two slices that are neighbours.
import { execFile, execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { LOAD_CORE, program, ROOT, type Server } from './server.js'

const CONNECTIONS = 32
const AA_MIN = 0.93
const AA_MAX = 1.07
const TMPFS_MAGIC = 0x01021994

/* ---- what is to be measured ---- */

export interface Contestant {
  /** Whose CPU counts. */
  servers: readonly Server[]
  port: number
  protocol: 'http' | 'resp'
  requests: readonly Buffer[]
  connections?: number
  /** Requests that a connection has on their way. */
  depth?: number
  /** The generator leaves its core to others while it waits. */
  sleeps?: boolean
  /** Operations in a request: what is counted. */
  operations?: number
  /** Takes the place of the generator: operations in a second. */
  run?: (seconds: number) => Promise<number>
}

/** All processes of one workload, for a part of its pairs. A peer that cannot be had is a sentence that says why. */
export interface Scene {
  ours: Contestant
  peers: Record<string, Contestant | string>
}

export type Estimator = 'rate' | 'cpu' | 'co-run'

/** What a peer's figures are compared by, and what the ratio is to reach. */
export interface Goal {
  peer: string
  by: Estimator
  /** Absent: there is no goal, and the figure is for comparison. */
  atLeast?: number
  /** A goal that is wished for, and no failure when it is missed. */
  stretch?: boolean
  /** What is not equal. */
  note?: string
}

export interface Workload {
  what: string
  open: (bench: Bench, keep: Keep) => Promise<Scene>
  goals: Goal[]
}

export interface Spread { median: number, min: number, max: number, count: number }

/** One line of the table. */
export interface Line {
  row: string
  what: string
  goal: string
  /** Absent: not measured, and why is in the note. */
  figures?: Spread
  aa?: Spread
  verdict: 'met' | 'missed' | 'void' | 'no goal' | 'no peer'
  load: string
  note?: string
}

export interface Row {
  name: string
  what: string
  measure: (bench: Bench) => Promise<Line[]>
}

/* ---- the run ---- */

/** What ends with a part of the measurement: processes and directories, last first. */
export class Keep {
  static readonly #all = new Set<Keep>()
  readonly #ends: Array<() => Promise<void> | void> = []

  constructor () {
    Keep.#all.add(this)
  }

  server<T extends Server> (server: T): T {
    this.#ends.push(() => server.stop())
    return server
  }

  directory (parent: string): string {
    const dir = mkdtempSync(join(parent, 'pmemsetd-bench-'))
    this.#ends.push(() => { rmSync(dir, { recursive: true, force: true }) })
    return dir
  }

  /** For a run that is broken off. */
  static async endAll (): Promise<void> {
    for (const keep of Keep.#all) await keep.end()
  }

  async end (): Promise<void> {
    Keep.#all.delete(this)
    for (let end = this.#ends.pop(); end !== undefined; end = this.#ends.pop()) await end()
  }
}

/** Does some work, and ends what it started, whatever comes. */
export async function keeping<T> (work: (keep: Keep) => Promise<T>): Promise<T> {
  const keep = new Keep()
  try {
    return await work(keep)
  } finally {
    await keep.end()
  }
}

const isTmpfs = (dir: string): boolean => statfsSync(dir).type === TMPFS_MAGIC

export interface Bench {
  pairs: number
  seconds: number
  processes: number
  /** To see that everything runs: small files, no figures. */
  isSmoke: boolean
  /** Directories on a disk's file system and on a tmpfs. */
  disk: string
  memory: string
}

/** Where the files go: the system's directory for them may itself be a tmpfs. */
export function newBench (options: Pick<Bench, 'pairs' | 'seconds' | 'processes' | 'isSmoke'>): Bench {
  const bench = { ...options, disk: isTmpfs(tmpdir()) ? join(ROOT, 'build') : tmpdir(), memory: '/dev/shm' }
  if (!isTmpfs(bench.memory)) throw new Error(`${bench.memory} is no tmpfs`)
  return bench
}

export function machineLoad (): string {
  return readFileSync('/proc/loadavg', 'latin1').split(' ')[0] ?? ''
}

/* ---- requests and replies ---- */

export function http (method: string, path: string, body?: Buffer, headers: Record<string, string> = {}): Buffer {
  const lines = { host: '127.0.0.1', ...(body === undefined ? {} : { 'content-length': String(body.length) }), ...headers }
  const head = `${method} ${path} HTTP/1.1\r\n${Object.entries(lines).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`
  return Buffer.concat([Buffer.from(head), body ?? Buffer.alloc(0)])
}

export function resp (...words: Array<string | Buffer>): Buffer {
  return Buffer.concat([Buffer.from(`*${words.length}\r\n`), ...words.flatMap((word) => [Buffer.from(`$${Buffer.byteLength(word)}\r\n`), Buffer.from(word), Buffer.from('\r\n')])])
}

/** Where the body of a reply begins and how long it is, once its head is there. */
function bodyOf (protocol: 'http' | 'resp', reply: Buffer): { from: number, length: number } | undefined {
  const mark = protocol === 'http' ? '\r\n\r\n' : '\r\n'
  const end = reply.indexOf(mark)
  if (end < 0) return undefined
  const head = reply.toString('latin1', 0, end)
  if (!/^(HTTP\/1\.1 2|[+:]|\$\d)/.test(head)) throw new Error(`refused: ${reply.toString('latin1', 0, 300)}`)
  const length = /^\$(\d+)/.exec(head)?.[1] ?? /\r\ncontent-length: *(\d+)/i.exec(head)?.[1] ?? 0
  return { from: end + mark.length, length: Number(length) }
}

/** One request; the bytes that it brings. */
export async function exchange ({ port, protocol }: Pick<Contestant, 'port' | 'protocol'>, request: Buffer): Promise<Buffer> {
  const socket = connect(port, '127.0.0.1')
  socket.write(request)
  const chunks: Buffer[] = []
  let head: { from: number, length: number } | undefined
  let have = 0
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    chunks.push(chunk)
    have += chunk.length
    head ??= bodyOf(protocol, Buffer.concat(chunks))
    if (head !== undefined && have >= head.from + head.length) return Buffer.concat(chunks).subarray(head.from, head.from + head.length)
  }
  throw new Error('the reply was cut short')
}

/** Fails where a server brings other bytes than it should. */
export async function brings (of: Pick<Contestant, 'port' | 'protocol'>, request: Buffer, expected: Buffer): Promise<void> {
  const got = await exchange(of, request)
  if (!got.equals(expected)) throw new Error(`${request.toString('latin1', 0, 100)}: ${got.length} bytes that are not the ${expected.length} expected`)
}

/* ---- slices ---- */

export interface Slice {
  /** Operations. */
  perSecond: number
  /** Of the servers' CPU, all threads, for one operation. */
  cpuSeconds: number
  p99Ms: number
}

const files = new WeakMap<readonly Buffer[], string>()
let fileCount = 0
let filesDir: string | undefined

/** The requests as the generator reads them, in memory until the process ends. */
function fileOf (requests: readonly Buffer[], { memory }: Bench): string {
  const known = files.get(requests)
  if (known !== undefined) return known
  if (filesDir === undefined) {
    const dir = filesDir = mkdtempSync(join(memory, 'pmemsetd-bench-'))
    process.once('exit', () => { rmSync(dir, { recursive: true, force: true }) })
  }
  const path = join(filesDir, String(fileCount++))
  const head = new Uint32Array([requests.length, ...requests.map((request) => request.length)])
  writeFileSync(path, Buffer.from(head.buffer))
  for (const request of requests) writeFileSync(path, request, { flag: 'a' })
  files.set(requests, path)
  return path
}

/** Requests of a workload that come from the generator for so long. Anything but success is an error of the bench. */
export async function slice (bench: Bench, one: Contestant): Promise<Slice> {
  const cpu = (): number => one.servers.reduce((sum, server) => sum + server.cpu(), 0)
  const before = cpu()
  const began = performance.now()
  if (one.run !== undefined) {
    const perSecond = await one.run(bench.seconds)
    return { perSecond, cpuSeconds: (cpu() - before) / (perSecond * (performance.now() - began) / 1000), p99Ms: NaN }
  }
  const { stdout } = await promisify(execFile)('taskset', ['-c', String(LOAD_CORE), program('load'), one.protocol, String(one.port),
    String(one.connections ?? CONNECTIONS), String(one.depth ?? 1), String(Math.round(bench.seconds * 1000)), fileOf(one.requests, bench), ...(one.sleeps === true ? ['sleeps'] : [])])
  const used = cpu() - before
  const said = JSON.parse(stdout) as { requests: number, seconds: number, p99Ms: number }
  const operations = said.requests * (one.operations ?? 1)
  return { perSecond: operations / said.seconds, cpuSeconds: used / operations, p99Ms: said.p99Ms }
}

export function spread (values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? NaN
  const median = sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2
  return { median, min: sorted[0] ?? NaN, max: sorted.at(-1) ?? NaN, count: sorted.length }
}

interface Ratios { rate: number[], cpu: number[] }

/** Adjacent slices, A B and B A in turn, so that a drift of the machine hits both; or both at the same time. Above 1, a is the better one. */
async function ratios (bench: Bench, a: Contestant, b: Contestant, atOnce: boolean, count: number): Promise<Ratios> {
  const found: Ratios = { rate: [], cpu: [] }
  for (let i = 0; i < count; i++) {
    let slices: Slice[]
    if (atOnce) slices = await Promise.all([slice(bench, a), slice(bench, b)])
    else if (i % 2 === 0) slices = [await slice(bench, a), await slice(bench, b)]
    else slices = [await slice(bench, b), await slice(bench, a)].reverse()
    const [ofA, ofB] = slices as [Slice, Slice]
    found.rate.push(ofA.perSecond / ofB.perSecond)
    found.cpu.push(ofB.cpuSeconds / ofA.cpuSeconds)
  }
  return found
}

/* ---- rows ---- */

/** A line that holds a figure to its goal. */
export function line (row: string, what: string, figures: Spread, { atLeast, stretch, atMost, unit }: Partial<Goal & { atMost: number, unit: string }>, aa?: Spread, note?: string): Line {
  const isMet = atLeast !== undefined ? figures.median >= atLeast : atMost !== undefined ? figures.median <= atMost : undefined
  const isVoid = aa !== undefined && !(aa.median >= AA_MIN && aa.median <= AA_MAX)
  return {
    row,
    what,
    figures,
    goal: atLeast !== undefined ? `>= ${atLeast}${stretch === true ? ' (stretch)' : ''}` : atMost !== undefined ? `<= ${atMost} ${unit ?? ''}`.trim() : '',
    ...(aa === undefined ? {} : { aa }),
    verdict: isVoid ? 'void' : isMet === undefined ? 'no goal' : isMet ? 'met' : 'missed',
    load: machineLoad(),
    ...(note === undefined ? {} : { note })
  }
}

const estimated = (by: Estimator): keyof Ratios => (by === 'rate' ? 'rate' : 'cpu')

/** The whole method for one workload: fresh processes, the service beside itself, then beside each peer. */
export async function compare (bench: Bench, row: string, { what, open, goals }: Workload): Promise<Line[]> {
  const aa: Ratios = { rate: [], cpu: [] }
  const found = goals.map((): number[] => [])
  const missing = new Map<string, string>()
  for (let p = 0; p < bench.processes; p++) {
    await keeping(async (keep) => {
      const { ours, peers } = await open(bench, keep)
      const count = Math.ceil(bench.pairs / bench.processes)
      const warm = [ours, ...Object.values(peers).filter((one) => typeof one !== 'string')]
      for (const one of bench.isSmoke ? [] : warm) await slice(bench, one)
      const beside = await ratios(bench, ours, ours, false, count)
      aa.rate.push(...beside.rate)
      aa.cpu.push(...beside.cpu)
      for (const [i, goal] of goals.entries()) {
        const peer = peers[goal.peer] ?? `there is no ${goal.peer}`
        if (typeof peer === 'string') missing.set(goal.peer, peer)
        else found[i]?.push(...(await ratios(bench, ours, peer, goal.by === 'co-run', count))[estimated(goal.by)])
      }
    })
  }
  return goals.map(({ peer, by, note, ...goal }, i) => {
    const name = `${what} / ${peer}${by === 'rate' ? '' : `, ${by === 'cpu' ? 'CPU' : 'CPU, sharing a core'}`}`
    const why = missing.get(peer)
    const made = line(row, name, spread(found[i] ?? []), goal, spread(aa[estimated(by)]), why ?? note)
    if (why === undefined) return made
    const { figures: _figures, aa: _aa, ...rest } = made
    return { ...rest, verdict: 'no peer' }
  })
}

/** Which of Debian's commands for the peers are not there. */
export function installed (command: string): boolean {
  try {
    execFileSync('sh', ['-c', 'command -v "$0"', command], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
