// SPDX-License-Identifier: BSD-3-Clause
//
// npm run bench [-- ROW ...] [--pairs N] [--seconds S] [--processes P]
//
// A row compares the service with peers that do the same work, in one run: ratios of adjacent slices, of CPU per operation, and of CPU per operation while
// both share a core. First the service is compared with itself; where that median is outside of 0.93 to 1.07 the machine is too noisy for the line, and
// it says so. No absolute number is a result, but for the start. At the end there is one table.
import { parseArgs } from 'node:util'
import { Keep, machineLoad, newBench, type Line, type Spread } from './measure.js'
import { ROWS } from './rows.js'

const { values, positionals } = parseArgs({
  args: process.argv.slice(2),
  allowPositionals: true,
  options: { pairs: { type: 'string', default: '20' }, seconds: { type: 'string', default: '1' }, processes: { type: 'string', default: '3' } }
})

function positive (name: 'pairs' | 'seconds' | 'processes'): number {
  const value = Number(values[name])
  if (!(value > 0)) throw new Error(`--${name} is ${JSON.stringify(values[name])}; it must be a number above 0`)
  return value
}

const show = (figures: Spread | undefined): string => (figures === undefined ? '-' : `${figures.median.toFixed(2)} (${figures.min.toFixed(2)}-${figures.max.toFixed(2)})`)

const COLUMNS = ['row', 'what', 'goal', 'median (min-max)', 'A/A', 'verdict', 'load', 'note']
const cells = (one: Line): string[] => [one.row, one.what, one.goal, show(one.figures), show(one.aa), one.verdict, one.load, one.note ?? '']

function table (rows: string[][]): string {
  const widths = COLUMNS.map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)))
  return rows.map((row) => row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ').trimEnd()).join('\n')
}

const bench = newBench({ pairs: positive('pairs'), seconds: positive('seconds'), processes: positive('processes'), isSmoke: false })
const unknown = positionals.find((name) => !ROWS.some((row) => row.name === name))
if (unknown !== undefined) throw new Error(`no row ${unknown}; there are ${ROWS.map(({ name }) => name).join(', ')}`)
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  // Servers and gigabytes of a tmpfs would stay behind.
  process.once(signal, () => { Keep.endAll().catch(console.error).finally(() => process.exit(1)) })
}
console.log(`${bench.pairs} pairs of ${bench.seconds} s over ${bench.processes} processes; disk ${bench.disk}, tmpfs ${bench.memory}`)
const lines: Line[] = []
let failed = 0
for (const row of ROWS.filter(({ name }) => positionals.length === 0 || positionals.includes(name))) {
  console.log(`${row.name}: ${row.what}; load ${machineLoad()}`)
  try {
    for (const one of await row.measure(bench)) {
      console.log(`  ${cells(one).slice(1).filter((cell) => cell !== '').join('; ')}`)
      lines.push(one)
    }
  } catch (error) {
    // One row that cannot be measured takes no figures from the others.
    failed++
    console.log(`  FAILED: ${error instanceof Error ? error.message : String(error)}`)
  }
}
console.log(`\n${table([COLUMNS, ...lines.map(cells)])}`)
const peers = [...new Set(lines.filter(({ verdict }) => verdict === 'no peer').map(({ note }) => note))]
if (peers.length > 0) console.log(`\nleft out: ${peers.join(', ')}`)
process.exitCode = failed > 0 ? 1 : 0
