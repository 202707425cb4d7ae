// SPDX-License-Identifier: BSD-3-Clause
// The set-up, on a copy of the native sources in a folder of its own: nothing is built twice, and nothing broken is kept.
import t, { type Test } from 'tap'
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const root = join(import.meta.dirname, '..', '..')

interface Outcome { status: number | null, said: string }

function copyOf (test: Test): string {
  const dir = test.testdir({ src: {}, native: {} })
  fs.copyFileSync(join(root, 'src', 'setup.mjs'), join(dir, 'src', 'setup.mjs'))
  fs.cpSync(join(root, 'native'), join(dir, 'native'), { recursive: true })
  return dir
}

function setUp (dir: string, env: NodeJS.ProcessEnv = {}): Outcome {
  const done = spawnSync(process.execPath, ['src/setup.mjs', 'native'], { cwd: dir, env: { ...process.env, ...env }, encoding: 'utf8' })
  return { status: done.status, said: done.stderr }
}

function setUpLater (dir: string): { pid: number, done: Promise<Outcome> } {
  const child = spawn(process.execPath, ['src/setup.mjs', 'native'], { cwd: dir, stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.on('data', (data: Buffer) => { said += data.toString() })
  const done = new Promise<Outcome>((resolve) => { child.on('close', (status) => { resolve({ status, said }) }) })
  return { pid: child.pid!, done }
}

const library = (dir: string): string => join(dir, 'build', 'native', 'libpmemset.so.1')

t.test('a second run builds nothing, a change of a source does', async (t) => {
  const dir = copyOf(t)
  const first = setUp(dir)
  t.equal(first.status, 0, first.said)
  t.match(first.said, /built native/)
  t.same(setUp(dir), { status: 0, said: '' }, 'the second run is silent')
  fs.appendFileSync(join(dir, 'native', 'src', 'error.c'), '/* changed */\n')
  t.match(setUp(dir).said, /built native/)
})

t.test('a library that was cut short is built again', async (t) => {
  const dir = copyOf(t)
  setUp(dir)
  const whole = fs.statSync(library(dir)).size
  fs.truncateSync(library(dir), 1000)
  t.equal(setUp(dir).status, 0)
  t.equal(fs.statSync(library(dir)).size, whole)
})

t.test('a build that is killed is found out, and its tools do not write beside the next one', async (t) => {
  const dir = copyOf(t)
  const killed = setUpLater(dir)
  const underway = join(dir, 'build', '.stamps', 'native.underway')
  while (!fs.existsSync(underway)) await sleep(5)
  process.kill(killed.pid, 'SIGKILL')
  await killed.done
  t.ok(fs.existsSync(underway), 'it was killed in the middle')
  t.notOk(fs.existsSync(library(dir)))
  const next = setUp(dir)
  t.equal(next.status, 0, next.said)
  t.match(next.said, /did not finish/)
  t.ok(fs.existsSync(library(dir)))
  t.notOk(fs.existsSync(underway))
})

t.test('of several at once in one folder one builds', async (t) => {
  const dir = copyOf(t)
  const all = await Promise.all([setUpLater(dir), setUpLater(dir), setUpLater(dir)].map((one) => one.done))
  t.same(all.map((one) => one.status), [0, 0, 0])
  t.equal(all.filter((one) => one.said.includes('built native')).length, 1)
})

t.test('a source with a mistake is told with the compiler\'s words', async (t) => {
  const dir = copyOf(t)
  fs.appendFileSync(join(dir, 'native', 'src', 'error.c'), 'int mistake(void) { return nothing_such; }\n')
  const outcome = setUp(dir)
  t.equal(outcome.status, 1)
  t.match(outcome.said, /nothing_such/)
})

t.test('a missing package is named with the command that installs it', async (t) => {
  const dir = copyOf(t)
  // A machine without CMake: a path on which everything is but that.
  const bin = join(dir, 'bin')
  fs.mkdirSync(bin)
  for (const from of (process.env.PATH ?? '').split(delimiter).filter((one) => fs.existsSync(one))) {
    for (const name of fs.readdirSync(from)) {
      if (name !== 'cmake' && !fs.existsSync(join(bin, name))) fs.symlinkSync(join(from, name), join(bin, name))
    }
  }
  for (const env of [{ PMEMSETD_SETUP: 'off' }, { PMEMSETD_SETUP: '', NODE_ENV: 'production' }]) {
    const outcome = setUp(dir, { PATH: bin, ...env })
    t.equal(outcome.status, 1)
    t.match(outcome.said, /missing: cmake \(describes the build\)/)
    t.match(outcome.said, /apt-get install -y --no-install-recommends .*cmake\n/)
  }
  const asked = setUp(dir, { PATH: bin, PMEMSETD_SETUP: 'ask' })
  t.equal(asked.status, 1)
  t.match(asked.said, /no terminal to ask on/)
  t.notOk(fs.existsSync(join(dir, 'build', 'native')), 'nothing was built')
})

t.test('a wrong PMEMSETD_SETUP is refused with what is allowed', async (t) => {
  const outcome = setUp(copyOf(t), { PMEMSETD_SETUP: 'yes' })
  t.equal(outcome.status, 1)
  t.match(outcome.said, /PMEMSETD_SETUP is "yes"; it must be auto, ask or off/)
})
