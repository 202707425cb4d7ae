// SPDX-License-Identifier: BSD-3-Clause
/*
 * The outermost test command: set-up, then lint, native tests (plain, under sanitizers and under ThreadSanitizer) and tap, all of them
 * even when an earlier one failed, and one closing line that sums up. What is counted is test cases: a lint tool is one; a cmocka program
 * has as many as it plans; of a tap file each direct child is one (a t.test, or an assertion outside of any).
 *
 *   npm test                        everything
 *   npm test -- lint | native | tap [file of tap ...]
 *
 * A skip is shown with its reason and is no pass. Ends with 1 if anything failed or if nothing ran.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { join, relative } from 'node:path'
import { countProgram, readCtest, readTap } from './count.mjs'
import { ROOT, SetupError, alone, buildNative, setUp } from '../src/setup.mjs'

const STAGES = ['lint', 'native', 'tap']
const NATIVE_PROGRAM_SECONDS_MAX = 300
const TAP_FILE_SECONDS_MAX = 300
const TAP_JOBS = 2

const totals = { passed: 0, failed: 0, skipped: 0 }
const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`

function count (stage, { passed = 0, failed = 0, skips = [] }) {
  totals.passed += passed
  totals.failed += failed
  totals.skipped += skips.length
  for (const skip of skips) console.log(`skipped: ${stage}: ${skip}`)
}

/** Ends when the command does; `text` is all that it printed. */
function run (command, args, { env = {}, log } = {}) {
  return new Promise((resolve) => {
    // What the caller's shell sets for a server of its own must not reach the servers of the tests.
    const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_')))
    const child = spawn(command, args, { cwd: ROOT, env: { ...clean, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    const chunks = []
    const keep = (chunk) => { chunks.push(chunk) }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.on('error', (error) => { keep(Buffer.from(`${error.message}\n`)) })
    child.on('close', (status, signal) => {
      const text = Buffer.concat(chunks).toString()
      if (log !== undefined) fs.writeFileSync(join(ROOT, 'build', log), text)
      resolve({ ok: status === 0, how: signal ?? `exit ${status}`, text })
    })
  })
}

const module = (path, ...args) => [process.execPath, [join(ROOT, 'node_modules', path), ...args]]
const compiled = (path, ...args) => [process.execPath, [join(ROOT, 'build', path), ...args]]

function sources (dir, pattern) {
  const path = join(ROOT, dir)
  if (!fs.existsSync(path)) return []
  return fs.readdirSync(path, { recursive: true }).filter((name) => pattern.test(name)).map((name) => join(dir, name)).sort()
}

/* ---- lint ---- */

async function lint () {
  const c = ['native', 'test/native', 'test/dax', 'test/fuzz', 'test/bench'].flatMap((dir) => sources(dir, /\.[ch]$/))
  const translated = c.filter((file) => file.endsWith('.c'))
  // Layout differs from one release of clang-format to the next; the sources are laid out by this one.
  const layout = await run('clang-format', ['--version'])
  const layoutKnown = / 14\./.test(layout.text)
  const tools = [
    ['eslint', ...module('eslint/bin/eslint.js', '--max-warnings=0', '.')],
    ['clang-tidy', 'clang-tidy', ['--quiet', '-p', 'build/native-test', ...translated]],
    ['cppcheck', 'cppcheck', ['--quiet', '--std=c11', '--enable=warning,performance,portability', '--inline-suppr', '--error-exitcode=1',
      '-D_GNU_SOURCE', '-D_Atomic(T)=T', '-Inative/src', '-Inative/include', 'native/src']],
    ['redocly', ...module('@redocly/cli/bin/cli.js', 'lint', 'openapi/openapi.yaml')],
    ['openapi drift', ...compiled('src/openapi.js', '--check')]
  ]
  if (layoutKnown) tools.push(['clang-format', 'clang-format', ['--dry-run', '--Werror', ...c]])
  else count('lint', { skips: [`clang-format: the layout is that of release 14, this is ${layout.text.trim()}`] })

  const env = { REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' }
  const one = async ([name, command, args]) => {
    const started = performance.now()
    const done = await run(command, args, { env })
    console.log(`${done.ok ? 'ok' : 'FAILED'}: ${name} (${seconds(started)})${done.ok ? '' : `, ${done.how}\n${done.text}`}`)
    count('lint', done.ok ? { passed: 1 } : { failed: 1 })
  }
  // Two at a time: the type-aware linter and clang-tidy take about as long as each other.
  const next = async () => { for (let tool = tools.shift(); tool !== undefined; tool = tools.shift()) await one(tool) }
  await Promise.all([next(), next()])
}

/* ---- native ---- */

async function native (flavour, folder, env) {
  const started = performance.now()
  const log = `${folder}.log`
  const done = await run('ctest', ['--test-dir', join('build', folder), '--verbose', '--timeout', String(NATIVE_PROGRAM_SECONDS_MAX)],
    { env: { CMOCKA_MESSAGE_OUTPUT: 'TAP', ...env }, log })
  const programs = readCtest(done.text)
  const before = totals.failed
  for (const program of programs) {
    const { name = '?', verdict = 'without an end', lines } = program
    const stage = `native, ${flavour}, ${name}`
    const result = countProgram(program)
    count(stage, result)
    if (result.failed > 0) console.log(`FAILED: ${stage}: ${verdict}\n${lines.join('\n')}`)
  }
  if (programs.length === 0 || (!done.ok && totals.failed === before)) {
    count(flavour, { failed: 1 })
    console.log(`FAILED: native, ${flavour}: ctest: ${done.how}\n${done.text}`)
  }
  console.log(`${totals.failed === before ? 'ok' : 'FAILED'}: native, ${flavour}: ${programs.length} programs (${seconds(started)}; all of it: build/${log})`)
}

async function nativeBuilds () {
  const shared = ['-DPMEMSET_TESTS=ON', '-DCMAKE_EXPORT_COMPILE_COMMANDS=ON']
  await alone(async () => {
    await buildNative({ name: 'native-test', options: shared })
    await buildNative({ name: 'native-sanitized', type: 'Debug', options: [...shared, '-DPMEMSET_SANITIZE=address,undefined'] })
    await buildNative({ name: 'native-threads', options: [...shared, '-DPMEMSET_SANITIZE=thread'] })
  })
}

/* ---- tap ---- */

async function tap (only) {
  const started = performance.now()
  const done = await run(...module('tap/dist/esm/run.mjs', '--disable-coverage', '--reporter=tap', `--timeout=${TAP_FILE_SECONDS_MAX}`,
    `--jobs=${TAP_JOBS}`, ...only), { log: 'tap.log' })
  const files = readTap(done.text)
  const before = totals.failed
  for (const file of files) {
    count(file.name, file)
    console.log(`${file.failed === 0 ? 'ok' : 'FAILED'}: ${file.name}: ${file.passed} passed, ${file.failed} failed${file.failed === 0 ? '' : `\n${file.text}`}`)
  }
  if (files.length === 0 || (!done.ok && totals.failed === before)) {
    count('tap', { failed: 1 })
    console.log(`FAILED: tap: ${done.how}\n${done.text.split('\n').slice(-60).join('\n')}`)
  }
  console.log(`tap: ${files.length} files (${seconds(started)}; all of it: build/tap.log)`)
}

/* ---- all ---- */

async function attempt (work) {
  try {
    await work()
    return true
  } catch (error) {
    totals.failed++
    console.log(`FAILED: ${error instanceof SetupError ? error.message : error.stack}`)
    return false
  }
}

async function all (first, rest) {
  const stages = first === undefined ? STAGES : STAGES.filter((stage) => stage === first)
  if (stages.length === 0) throw new SetupError(`${JSON.stringify(first)} is none of: ${STAGES.join(', ')}`)
  await setUp(first === 'native' ? 'native-test' : 'test')
  const built = stages.some((stage) => stage !== 'tap') && await attempt(nativeBuilds)
  if (stages.includes('lint')) await attempt(lint)
  if (stages.includes('native') && built) {
    await attempt(() => native('plain', 'native-test', {}))
    await attempt(() => native('under sanitizers', 'native-sanitized', {
      ASAN_OPTIONS: 'abort_on_error=0:detect_leaks=1', UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1'
    }))
    await attempt(() => native('under ThreadSanitizer', 'native-threads', { TSAN_OPTIONS: 'halt_on_error=1:second_deadlock_stack=1' }))
  }
  if (stages.includes('tap')) await attempt(() => tap(rest.map((file) => relative(ROOT, file))))
}

const [first, ...rest] = process.argv.slice(2)
await attempt(() => all(first, rest))
const { passed, failed, skipped } = totals
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0
