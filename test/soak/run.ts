// SPDX-License-Identifier: BSD-3-Clause
//
// npm run soak [-- --minutes M --clients C --seed S]: a crowd for an hour, or as long as you like.
import { parseArgs } from 'node:util'
import { crowd } from './crowd.js'

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '60' }, clients: { type: 'string', default: '500' }, seed: { type: 'string', default: String(Date.now() % 1e9) } }
})
const seed = Number(values.seed)
console.log(`seed ${seed}`)
const { requests, failures, failureCount, before, after } = await crowd({ clients: Number(values.clients), seconds: Number(values.minutes) * 60, seed, progress: (text) => { console.log(text) } })
for (const failure of failures) console.log(`FAILED: ${failure}`)
console.log(`${requests} requests; private memory ${before.anonymousBytes >> 20} MiB, then ${after.anonymousBytes >> 20}; descriptors ${before.descriptors}, then ${after.descriptors}; mappings ${before.mappings}, then ${after.mappings}`)
console.log(`${requests - failureCount} passed, ${failureCount} failed`)
process.exitCode = failureCount > 0 ? 1 : 0
