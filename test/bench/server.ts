// SPDX-License-Identifier: BSD-3-Clause
//
// A server under measurement: a process of its own, held on one core, whose CPU time the kernel tells.
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const START_SECONDS_MAX = 30

export interface Server {
  url: string
  /** Seconds of CPU that all of its threads have used. */
  cpu: () => number
  stop: () => Promise<void>
}

function cpuOf (pid: number): number {
  let nanoseconds = 0
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      nanoseconds += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')[0])
    } catch { /* the thread ended meanwhile */ }
  }
  return nanoseconds / 1e9
}

async function answers (url: string, child: ChildProcess): Promise<void> {
  const until = performance.now() + START_SECONDS_MAX * 1000
  while (performance.now() < until && child.exitCode === null) {
    try {
      if ((await fetch(url)).ok) return
    } catch { await sleep(50) }
  }
  child.kill('SIGKILL')
  throw new Error(`no answer from ${url}`)
}

/** Starts `node args` on a core; it is ready when it answers 2xx at `path`. */
export async function start (core: number, port: number, args: string[], env: Record<string, string>, path: string): Promise<Server> {
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_')))
  const child = spawn('taskset', ['-c', String(core), process.execPath, ...args], {
    env: { ...clean, NODE_ENV: 'production', UV_THREADPOOL_SIZE: '16', ...env },
    stdio: ['ignore', 'ignore', 'inherit']
  })
  const url = `http://127.0.0.1:${port}`
  await answers(url + path, child)
  const pid = child.pid as number
  return {
    url,
    cpu: () => cpuOf(pid),
    stop: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return
      const gone = once(child, 'exit')
      child.kill('SIGTERM')
      await gone
    }
  }
}
