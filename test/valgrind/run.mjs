// SPDX-License-Identifier: BSD-3-Clause
/*
 * The native tests, plain as they are built, under valgrind: all of them under memcheck (what is read before it is written, what is
 * touched outside of its block, what is leaked, and a descriptor that is still open at the end), and those that have threads under
 * helgrind, for the order and the use of their locks (test/native/helgrind.supp says why for these only). Two at a time.
 *
 * Counted are the programs' test cases, and one more for each program: that valgrind found nothing. A skip is shown with its reason.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { countProgram, readCmocka } from '../count.mjs'
import { PACKAGES, ROOT, SetupError, alone, buildNative, setUp, systemPackages } from '../../src/setup.mjs'

const BUILD = join(ROOT, 'build', 'native-test')
const LOGS = join(ROOT, 'build', 'valgrind')
const JOBS = 2
const PROGRAM_SECONDS_MAX = 300
const FOUND = 99 // the exit status that says so

// 48 GiB from 8 GiB up: valgrind has its own from 64 GiB on.
const ENVIRONMENT = {
  CMOCKA_MESSAGE_OUTPUT: 'TAP',
  LD_PRELOAD: join(BUILD, 'test', 'libopenat2.so'),
  PMEMSET_TEST_ARENA: '0x200000000:0xc00000000',
  PMEMSET_TEST_SCALE: '10'
}
// Fair: a thread that spins until another one is done would else be given the processor again and again.
const SHARED = ['--quiet', '--fair-sched=yes', `--error-exitcode=${FOUND}`, '--child-silent-after-fork=yes']
const TOOLS = {
  memcheck: ['--leak-check=full', '--show-leak-kinds=definite,possible', '--errors-for-leak-kinds=definite,possible', '--track-fds=yes'],
  helgrind: ['--tool=helgrind', '--track-lockorders=yes', `--suppressions=${join(ROOT, 'test', 'native', 'helgrind.supp')}`]
}
const THREADED = ['10-index', '40-access', '43-batch', '46-failures', '50-remove', '55-restore', '60-many', '61-redo-waits', '70-threads', '95-libpmemset']
// memcheck writes tables for all of the arena that the engine takes by itself, for minutes, and is then out of memory.
const OWN_ARENA = 'it begins with the engine\'s own arena, which is too large for memcheck\'s tables'
const LEFT_OUT = { '96-installed': OWN_ARENA, '97-replay': OWN_ARENA, '98-replay-cache-line': OWN_ARENA, '99-bench': OWN_ARENA }

const totals = { passed: 0, failed: 0, skipped: 0 }

function count (stage, { passed = 0, failed = 0, skips = [] }) {
  totals.passed += passed
  totals.failed += failed
  totals.skipped += skips.length
  for (const skip of skips) console.log(`skipped: ${stage}: ${skip}`)
}

/** Ends when the command does. */
function run (command, args, { env = {}, cwd = ROOT, seconds } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'], timeout: (seconds ?? 0) * 1000, killSignal: 'SIGKILL' })
    const chunks = []
    child.stdout.on('data', (chunk) => chunks.push(chunk))
    child.stderr.on('data', (chunk) => chunks.push(chunk))
    child.on('error', reject)
    child.on('close', (status, signal) => { resolve({ status, how: signal ?? `exit ${status}`, text: Buffer.concat(chunks).toString() }) })
  })
}

/** What is open at the end, but for what was when it began and the one that the engine keeps (window.c says why). */
function leftOpen (log) {
  const open = [...log.matchAll(/^==\d+== Open (?:file descriptor|AF_\w+ socket) \d+:? ?(.*)\n==\d+== +(.*)$/gm)]
  return open.filter(([, name, how]) => how !== '<inherited from parent>' && name !== '/proc/self/maps').map(([whole]) => whole)
}

/** Its own errors: all that it says but the list of descriptors, and the calls that it only warns of. */
async function check (tool, { name, command }) {
  const started = performance.now()
  const stage = `${tool}, ${name}`
  const log = join(LOGS, `${name}.${tool}`)
  const done = await run('valgrind', [...SHARED, ...TOOLS[tool], `--log-file=${log}`, ...command],
    { cwd: join(BUILD, 'test'), env: ENVIRONMENT, seconds: PROGRAM_SECONDS_MAX })
  const said = fs.existsSync(log) ? fs.readFileSync(log, 'utf8') : ''
  const open = tool === 'memcheck' ? leftOpen(said) : []
  const found = done.status === FOUND || open.length > 0 || (tool === 'memcheck' && !said.includes('FILE DESCRIPTORS:'))
  // Where valgrind found something, its status stands before the program's own, which its cases then speak for.
  const result = countProgram({ ...readCmocka(done.text), verdict: [0, FOUND].includes(done.status) ? 'Passed' : done.how })
  result[found ? 'failed' : 'passed']++
  count(stage, result)
  const verdict = result.failed > 0 ? `FAILED: ${stage}: ${done.how}\n${done.text}${said}` : `ok: ${stage}`
  console.log(`${verdict} (${((performance.now() - started) / 1000).toFixed(1)} s)`)
}

async function programs () {
  const listed = await run('ctest', ['--test-dir', BUILD, '--show-only=json-v1'])
  if (listed.status !== 0) throw new SetupError(`ctest: ${listed.how}\n${listed.text}`)
  return JSON.parse(listed.text.slice(listed.text.indexOf('{'))).tests
}

async function all () {
  await setUp('native-test')
  await systemPackages(PACKAGES.valgrind)
  await alone(() => buildNative({ name: 'native-test', options: ['-DPMEMSET_TESTS=ON', '-DCMAKE_EXPORT_COMPILE_COMMANDS=ON'] }))
  fs.rmSync(LOGS, { recursive: true, force: true })
  fs.mkdirSync(LOGS, { recursive: true })
  const work = []
  for (const program of await programs()) {
    if (LEFT_OUT[program.name] !== undefined) count('valgrind', { skips: [`${program.name}: ${LEFT_OUT[program.name]}`] })
    else for (const tool of Object.keys(TOOLS)) if (tool === 'memcheck' || THREADED.includes(program.name)) work.push([tool, program])
  }
  if (work.length < THREADED.length * 2) throw new SetupError(`only ${work.length} programs to run`)
  const next = async () => { for (let one = work.shift(); one !== undefined; one = work.shift()) await check(...one) }
  await Promise.all(Array.from({ length: JOBS }, next))
}

try {
  await all()
} catch (error) {
  totals.failed++
  console.log(`FAILED: ${error instanceof SetupError ? error.message : error.stack}`)
}
const { passed, failed, skipped } = totals
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0
