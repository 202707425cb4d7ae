// SPDX-License-Identifier: BSD-3-Clause
/*
 * npm run bench:native [-- N1 ...] [--pairs N] [--processes P] [--milliseconds M]
 *
 * Builds the engine as it is shipped, with its benchmark, and runs that: rows N1 to N5, each figure beside a peer that does the same
 * work in the same process.
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { ROOT, SetupError, alone, buildNative, setUp } from '../../src/setup.mjs'

try {
  await setUp('native')
  await alone(() => buildNative({ name: 'native-bench', product: 'bench/bench', options: ['-DPMEMSET_BENCH=ON'] }))
  const done = spawnSync(join(ROOT, 'build', 'native-bench', 'bench', 'bench'), process.argv.slice(2), { cwd: join(ROOT, 'build'), stdio: 'inherit' })
  process.exitCode = done.status ?? 1
} catch (error) {
  if (!(error instanceof SetupError)) throw error
  console.error(`pmemsetd: ${error.message}`)
  process.exitCode = 1
}
