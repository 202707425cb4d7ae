// SPDX-License-Identifier: BSD-3-Clause
//
// npm run bench [-- ROW ...] [--pairs N] [--seconds S] [--processes P]
//
// A row compares the service with a peer that does the same work, in one run: ratios of adjacent slices, of CPU per request, and of CPU
// per request while both share a core. First the service is compared with itself; where that median is outside of 0.93 to 1.07 the
// machine is too noisy for the row, and it says so. No absolute number is a result.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { coRun, machineLoad, noRatios, pairs, spread, type Ratios, type Spread } from './load.js'
import { freePort } from '../shell.js'
import { start, type Server } from './server.js'

const SERVER_CORE = 0
const HERE = dirname(fileURLToPath(import.meta.url))
const MAIN = join(HERE, '..', '..', 'src', 'main.js')
const AA_MIN = 0.93
const AA_MAX = 1.07

const { values, positionals } = parseArgs({
  args: process.argv.slice(2),
  allowPositionals: true,
  options: { pairs: { type: 'string', default: '20' }, seconds: { type: 'string', default: '1' }, processes: { type: 'string', default: '3' } }
})
const PAIRS = Number(values.pairs)
const SECONDS = Number(values.seconds)
const PROCESSES = Number(values.processes)

const volume = mkdtempSync(join(tmpdir(), 'pmemsetd-bench-'))

async function service (): Promise<Server> {
  const port = await freePort()
  return await start(SERVER_CORE, port, [MAIN], { PMEMSETD_PORT: String(port), PMEMSETD_VOLUMES: `default=${volume}` }, '/livez')
}

async function call (server: Server, method: string, path: string, body?: object): Promise<Record<string, unknown>> {
  const headers: Record<string, string> = body === undefined ? {} : { 'content-type': 'application/json' }
  const response = await fetch(server.url + path, { method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) })
  const answer = await response.json() as Record<string, unknown>
  if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`)
  return answer
}

const MAPS = 1000
const PAGE = 4096

/** A set of many maps, and the path that looks one of them up by an address inside. */
async function withMaps (server: Server): Promise<string> {
  await call(server, 'POST', '/sets', { id: 'bench', requiredGranularity: 'page' })
  let addr = ''
  for (let i = 0; i < MAPS; i++) {
    const part = await call(server, 'POST', '/sets/bench/parts',
      { source: { type: 'file', path: 'bench.bin', create: 'if_needed' }, offset: 0, length: PAGE })
    if (i === MAPS >> 1) addr = part.addr as string
  }
  return `/sets/bench/maps?addr=0x${(BigInt(addr) + 5n).toString(16)}`
}

interface Row { name: string, what: string, goal: string, measure: () => Promise<{ aa: Spread, ratios: Ratios, shared: number[] }> }

async function h1 (): Promise<{ aa: Spread, ratios: Ratios, shared: number[] }> {
  const aa = noRatios()
  const ratios = noRatios()
  const shared: number[] = []
  for (let p = 0; p < PROCESSES; p++) {
    const servers: Server[] = []
    try {
      const ours = await service()
      servers.push(ours)
      const path = await withMaps(ours)
      const port = await freePort()
      const answer = JSON.stringify(await call(ours, 'GET', path))
      const peer = await start(SERVER_CORE, port, [join(HERE, 'bare.js')], { PORT: String(port), ANSWER: answer }, path)
      servers.push(peer)
      const same = JSON.stringify(await call(peer, 'GET', path))
      if (same !== answer) throw new Error(`the peer answers something else: ${same} for ${answer}`)
      const count = Math.ceil(PAIRS / PROCESSES)
      await pairs(ours, peer, path, 1, 2, noRatios()) // both warm
      await pairs(ours, ours, path, count, SECONDS, aa)
      await pairs(ours, peer, path, count, SECONDS, ratios)
      shared.push(...await coRun(ours, peer, path, count, SECONDS))
    } finally {
      for (const server of servers) await server.stop()
    }
  }
  return { aa: spread(aa.rate), ratios, shared }
}

const ROWS: Row[] = [
  { name: 'H1', what: 'GET /sets/{id}/maps?addr= beside a bare Fastify route that returns the same object', goal: '>= 0.9', measure: h1 }
]

const show = ({ median, min, max }: Spread): string => `${median.toFixed(3)} (${min.toFixed(3)} to ${max.toFixed(3)})`

try {
  const wanted = positionals.length > 0 ? positionals : ROWS.map((row) => row.name)
  for (const name of wanted) {
    const row = ROWS.find((r) => r.name === name)
    if (row === undefined) throw new Error(`no row ${name}; there are ${ROWS.map((r) => r.name).join(', ')}`)
    console.log(`${row.name}: ${row.what}; goal ${row.goal}; load ${machineLoad()}`)
    const { aa, ratios, shared } = await row.measure()
    const isVoid = aa.median < AA_MIN || aa.median > AA_MAX
    console.log(`  A/A, the service beside itself   ${show(aa)}${isVoid ? '  VOID: the machine is too noisy' : ''}`)
    console.log(`  requests per second, ratio       ${show(spread(ratios.rate))}`)
    console.log(`  CPU per request, ratio           ${show(spread(ratios.cpu))}`)
    console.log(`  CPU per request, sharing a core  ${show(spread(shared))}`)
    console.log(`  p99 ms, service and peer         ${show(spread(ratios.p99Ms.a))}, ${show(spread(ratios.p99Ms.b))}`)
    console.log(`  requests per second, both        ${show(spread(ratios.rates.a))}, ${show(spread(ratios.rates.b))}; load ${machineLoad()}`)
  }
} finally {
  rmSync(volume, { recursive: true, force: true })
}
