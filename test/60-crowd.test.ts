// SPDX-License-Identifier: BSD-3-Clause
// Five hundred clients at the same time, doing everything at random, for 20 seconds; npm run soak does the same for an hour.
import t from 'tap'
import { crowd } from './soak/crowd.js'

const GROWTH_BYTES_MAX = 96 * 1024 * 1024
/** What the runtime opens when it likes. */
const DESCRIPTORS_SPARE = 8
const MAPPINGS_SPARE = 200

t.test('nobody in a crowd gets an error that he did not ask for, and nothing is left when it is gone', { timeout: 120_000 }, async (t) => {
  const seed = Date.now() % 1e9
  t.comment(`seed ${seed}`)
  const { requests, failures, failureCount, before, after } = await crowd({ clients: 500, seconds: 20, seed })
  t.comment(`${requests} requests`)
  t.same(failures, [], `${failureCount} of ${requests}`)
  t.ok(requests > 2000, `${requests} requests`)
  t.ok(after.anonymousBytes - before.anonymousBytes < GROWTH_BYTES_MAX, `private memory: ${before.anonymousBytes}, then ${after.anonymousBytes}`)
  // The idle connections of the crowd are still there, both times.
  t.ok(after.descriptors - before.descriptors <= DESCRIPTORS_SPARE, `descriptors: ${before.descriptors}, then ${after.descriptors}`)
  t.ok(after.mappings - before.mappings <= MAPPINGS_SPARE, `mappings: ${before.mappings}, then ${after.mappings}`)
})
