// SPDX-License-Identifier: BSD-3-Clause
//
// Sixty rounds of the torture; test/torture says what a round is, and npm run torture makes as many as you like.
import t from 'tap'
import { torture } from './torture/torture.js'

const ROUNDS = 60

t.test('killed at any moment, the service keeps what it has acknowledged', { timeout: 280_000 }, async (t) => {
  const seed = Number(process.env.PMEMSET_TEST_SEED ?? Date.now() % 1e9)
  const { rounds, ends, changes, done, undone } = await torture({ rounds: ROUNDS, seed })
  t.equal(rounds, ROUNDS, `seed ${seed}`)
  // What is compared has happened.
  t.ok((changes.map ?? 0) > ROUNDS && (changes.write ?? 0) > ROUNDS, JSON.stringify(changes))
  t.ok(Object.keys(ends).length > 5, JSON.stringify(ends))
  t.ok(done + undone > 0, `${done} open changes were done, ${undone} not`)
})
