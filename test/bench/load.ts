// SPDX-License-Identifier: BSD-3-Clause
//
// Load: wrk on the other core, in bounded slices, and the ratios that two servers' slices give.
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import type { Server } from './server.js'

const CONNECTIONS = 32
const LOAD_CORE = 1

export interface Slice {
  perSecond: number
  /** Of the server's CPU, all threads, for one request. */
  cpuSeconds: number
  p99Ms: number
}

function milliseconds (text: string): number {
  const [, number, unit] = /^([\d.]+)(us|ms|s)$/.exec(text) ?? ['', 'NaN', 'ms']
  return Number(number) * { us: 1e-3, ms: 1, s: 1e3 }[unit as 'us' | 'ms' | 's']
}

/** One slice of keep-alive requests to one path. Anything but 2xx is an error of the bench. */
export async function slice (server: Server, path: string, seconds: number): Promise<Slice> {
  const before = server.cpu()
  const { stdout } = await promisify(execFile)('taskset',
    ['-c', String(LOAD_CORE), 'wrk', '-t1', `-c${CONNECTIONS}`, `-d${seconds}s`, '--latency', server.url + path])
  const used = server.cpu() - before
  const requests = Number(/(\d+) requests in/.exec(stdout)?.[1])
  const perSecond = Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)?.[1])
  if (/Non-2xx|Socket errors/.test(stdout) || !(requests > 0)) throw new Error(`wrk ${server.url}${path}:\n${stdout}`)
  return { perSecond, cpuSeconds: used / requests, p99Ms: milliseconds(/99%\s+(\S+)/.exec(stdout)?.[1] ?? '') }
}

export interface Spread { median: number, min: number, max: number }

export function spread (values: number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle] as number : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2
  return { median, min: sorted[0] as number, max: sorted.at(-1) as number }
}

export interface Ratios {
  /** Requests per second of a over b, and CPU per request of b over a: above 1, a is the better one. */
  rate: number[]
  cpu: number[]
  p99Ms: { a: number[], b: number[] }
  rates: { a: number[], b: number[] }
}

export function noRatios (): Ratios {
  return { rate: [], cpu: [], p99Ms: { a: [], b: [] }, rates: { a: [], b: [] } }
}

/** Adjacent slices, A B and B A in turn, so that a drift of the machine hits both. */
export async function pairs (a: Server, b: Server, path: string, count: number, seconds: number, into: Ratios): Promise<void> {
  for (let i = 0; i < count; i++) {
    const first = await slice(i % 2 === 0 ? a : b, path, seconds)
    const second = await slice(i % 2 === 0 ? b : a, path, seconds)
    const [ofA, ofB] = i % 2 === 0 ? [first, second] : [second, first]
    into.rate.push(ofA.perSecond / ofB.perSecond)
    into.cpu.push(ofB.cpuSeconds / ofA.cpuSeconds)
    into.p99Ms.a.push(ofA.p99Ms)
    into.p99Ms.b.push(ofB.p99Ms)
    into.rates.a.push(ofA.perSecond)
    into.rates.b.push(ofB.perSecond)
  }
}

/** Both at the same time on the same core: noise hits both. CPU per request of b over a. */
export async function coRun (a: Server, b: Server, path: string, count: number, seconds: number): Promise<number[]> {
  const ratios: number[] = []
  for (let i = 0; i < count; i++) {
    const [ofA, ofB] = await Promise.all([slice(a, path, seconds), slice(b, path, seconds)])
    ratios.push(ofB.cpuSeconds / ofA.cpuSeconds)
  }
  return ratios
}

export function machineLoad (): string {
  return readFileSync('/proc/loadavg', 'latin1').split(' ').slice(0, 3).join(' ')
}
