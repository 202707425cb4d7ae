// SPDX-License-Identifier: BSD-3-Clause
//
// npm run torture [-- --rounds N --seed S]: kills the service N times, and looks whether it kept its word.
import { parseArgs } from 'node:util'
import { torture } from './torture.js'

const { values } = parseArgs({ options: { rounds: { type: 'string', default: '500' }, seed: { type: 'string', default: String(Date.now() % 1e9) } } })
const seed = Number(values.seed)
const rounds = Number(values.rounds)
const list = (counts: Record<string, number>): string => Object.entries(counts).sort().map(([name, count]) => `${count} ${name}`).join(', ')
console.log(`seed ${seed}`)
try {
  const { ends, changes, done, undone } = await torture({ rounds, seed, progress: (text) => { console.log(text) } })
  console.log(`ends: ${list(ends)}\nacknowledged: ${list(changes)}\nopen when it was killed: ${done} done, ${undone} not`)
  console.log(`${rounds} passed, 0 failed`)
} catch (error) {
  console.log(`FAILED: ${error instanceof Error ? error.message : String(error)}`)
  console.log('0 passed, 1 failed')
  process.exitCode = 1
}
