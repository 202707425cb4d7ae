// SPDX-License-Identifier: BSD-3-Clause
/*
 * libFuzzer drives the engine's flat face, test/fuzz/face.c, once for each kind of medium, side by side.
 *
 *   npm run fuzz                    ten minutes
 *   npm run fuzz -- --seconds 3600  longer; it goes on from the inputs that earlier runs have found worth keeping (build/fuzz)
 *   npm run test:fuzz               the bounded one of .ci/run
 *
 * An input that breaks something is left in build/fuzz; in test/fuzz/found/, named for what was wrong, it becomes a case of the native tests.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { ROOT, SetupError, alone, buildNative, setUp } from '../../src/setup.mjs'

const SECONDS = 600
const INPUT_BYTES_MAX = 4096
const CALL_SECONDS_MAX = 30
const MEDIA = ['page', 'cache_line']
const BUILD = join(ROOT, 'build', 'fuzz')
const COMMITTED = ['seeds', 'found'].map((name) => join(ROOT, 'test', 'fuzz', name)).filter((dir) => fs.existsSync(dir))

const totals = { passed: 0, failed: 0 }

function secondsOf (args) {
  if (args.length === 0) return SECONDS
  const seconds = Number(args[1])
  if (args.length !== 2 || args[0] !== '--seconds' || !Number.isInteger(seconds) || seconds < 1) {
    throw new SetupError(`${JSON.stringify(args.join(' '))} is not --seconds and a whole number`)
  }
  return seconds
}

function fuzz (medium, seconds) {
  const corpus = join(BUILD, medium)
  fs.mkdirSync(corpus, { recursive: true })
  const args = [
    // A fault is the engine's to handle, and a file that reaches its limit is an error and no end.
    '-handle_bus=0', '-handle_xfsz=0',
    `-max_total_time=${seconds}`, `-max_len=${INPUT_BYTES_MAX}`, `-timeout=${CALL_SECONDS_MAX}`, '-print_final_stats=1', '-verbosity=1',
    `-artifact_prefix=${BUILD}/${medium}-`, corpus, ...COMMITTED
  ]
  const env = {
    ...process.env,
    PMEMSET_FUZZ_SIMULATE: medium,
    ASAN_OPTIONS: 'handle_sigbus=0:detect_leaks=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1'
  }
  const log = join(BUILD, `${medium}.log`)
  const output = fs.openSync(log, 'w')
  return new Promise((resolve) => {
    const child = spawn(join(ROOT, 'build', 'native-fuzz', 'fuzz', 'fuzz'), args, { env, stdio: ['ignore', output, output] })
    const end = (how, good) => {
      fs.closeSync(output)
      const text = fs.readFileSync(log, 'latin1')
      const runs = Number(/^stat::number_of_executed_units: (\d+)$/m.exec(text)?.[1] ?? 0)
      const ok = good && runs > 0
      totals[ok ? 'passed' : 'failed']++
      console.log(ok
        ? `ok: ${medium}: ${runs} inputs in ${seconds} s`
        : `FAILED: ${medium}: ${how}, after ${runs} inputs\n${text.split('\n').filter((line) => !/^#\d+\t/.test(line)).slice(-60).join('\n')}`)
      resolve()
    }
    child.on('error', (error) => { end(error.message, false) })
    child.on('close', (status, signal) => { end(signal ?? `exit ${status}`, status === 0) })
  })
}

try {
  const seconds = secondsOf(process.argv.slice(2))
  await setUp('native-fuzz')
  await alone(() => buildNative({
    name: 'native-fuzz',
    product: join('fuzz', 'fuzz'),
    options: ['-DCMAKE_C_COMPILER=clang-14', '-DPMEMSET_FUZZ=ON', '-DPMEMSET_SANITIZE=address,undefined']
  }))
  await Promise.all(MEDIA.map((medium) => fuzz(medium, seconds)))
} catch (error) {
  totals.failed++
  console.log(`FAILED: ${error instanceof SetupError ? error.message : error.stack}`)
}
const { passed, failed } = totals
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0
