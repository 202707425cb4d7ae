// SPDX-License-Identifier: BSD-3-Clause
// The README is run: its `bash` blocks go, in order, through one shell against a real server, and what a `text` block behind one shows is what came
// out of it (`…` stands for what differs from run to run). Its tables are compared with what they are about.
import t from 'tap'
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from './shell.js'
import { SETTING_NAMES } from '../src/config.js'
import { CATALOGUE, statusesOf, type AnyCode } from '../src/errors.js'

const root = join(import.meta.dirname, '..', '..')
const readme = fs.readFileSync(join(root, 'README.md'), 'utf8')
const ADDRESS = '127.0.0.1:8080'
const END = '@@ end of block'

interface Block { commands: string, shown?: string }

function blocks (): Block[] {
  const found: Block[] = []
  for (const [, language = '', body = ''] of readme.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)) {
    const last = found.at(-1)
    if (language === 'bash') found.push({ commands: body })
    else if (language === 'text' && last !== undefined && last.shown === undefined) last.shown = body
  }
  return found
}

/** The service as `npm start` starts it, with `./data` of a folder of the test as its volume. */
async function serve (dir: string, port: number): Promise<ChildProcess> {
  const server = spawn(process.execPath, [join(root, 'build', 'src', 'main.js')], {
    cwd: dir, env: { ...process.env, PMEMSETD_PORT: String(port), UV_THREADPOOL_SIZE: '16' }, stdio: 'inherit'
  })
  const until = Date.now() + 30_000
  while (!await fetch(`http://127.0.0.1:${port}/livez`).then((reply) => reply.ok, () => false)) {
    if (Date.now() > until || server.exitCode !== null) throw new Error('the service does not answer')
    await sleep(20)
  }
  return server
}

function pattern (shown: string): RegExp {
  const literal = shown.trim().split('…').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
  return new RegExp(`^${literal.join('[\\s\\S]*?')}$`)
}

t.test('the session works as shown', async (t) => {
  const dir = t.testdir({})
  const port = await freePort()
  const server = await serve(dir, port)
  t.teardown(async () => {
    const ended = new Promise((resolve) => { server.on('exit', resolve) })
    server.kill('SIGTERM')
    await ended
  })
  const session = blocks()
  t.ok(session.length > 3, `${session.length} blocks`)
  const script = session.map(({ commands }) => `${commands}\nprintf '\\n%s\\n' '${END}'\n`).join('').replaceAll(ADDRESS, `127.0.0.1:${port}`)
  // -e: a command that fails is a mistake of the README; one that is to be refused answers a problem and ends with 0.
  const done = spawnSync('bash', ['-e', '-u', '-o', 'pipefail', '-c', `exec 2>&1\n${script}`], { cwd: dir, encoding: 'utf8', timeout: 60_000 })
  const outputs = done.stdout.split(`\n${END}\n`)
  t.equal(done.status, 0, `the session ends well: ${outputs.at(-1) ?? ''}`)
  for (const [i, { commands, shown }] of session.entries()) {
    const output = (outputs[i] ?? '').replaceAll(`127.0.0.1:${port}`, ADDRESS).trim()
    if (shown !== undefined) t.match(output, pattern(shown), `shown: ${commands.split('\n')[0] ?? ''}`)
  }
})

t.test('every setting is in the table, and none that does not exist', async (t) => {
  const told = new Set([...readme.matchAll(/\bPMEMSETD_[A-Z_]+\b/g)].map(([name]) => name))
  t.same([...told].filter((name) => name !== 'PMEMSETD_SETUP').sort(), [...SETTING_NAMES].sort())
})

t.test('every code is in the table of problems under each of its statuses, and none that does not exist', async (t) => {
  const told = [...readme.matchAll(/^\| (\d{3}) \|.*\|(.*)\|$/gm)].flatMap(([, status = '', codes = '']) =>
    [...codes.matchAll(/`(\w+)`/g)].map(([, code]) => `${status} ${code ?? ''}`))
  const known = Object.keys(CATALOGUE).filter((code) => CATALOGUE[code as AnyCode].library !== 'libpmem2')
  t.same(told.sort(), known.flatMap((code) => statusesOf(code as AnyCode).map((status) => `${status} ${code}`)).sort())
})

t.test('every operation is in the table, and none that does not exist', async (t) => {
  const document = fs.readFileSync(join(root, 'openapi', 'openapi.yaml'), 'utf8')
  const operations: string[] = []
  let path = ''
  for (const line of document.split('\n')) {
    const atPath = /^ {2}(\/[^:]*):$/.exec(line)
    const atMethod = /^ {4}(get|put|post|patch|delete|head):$/.exec(line)
    if (atPath !== null) path = atPath[1] ?? ''
    else if (atMethod !== null) operations.push(`${(atMethod[1] ?? '').toUpperCase()} ${path}`)
  }
  const told = [...readme.matchAll(/`(GET|PUT|POST|PATCH|DELETE|HEAD) (\/[^`?]*)/g)].map(([, method, of]) => `${method ?? ''} ${of ?? ''}`)
  t.ok(operations.length > 20, `${operations.length} operations`)
  t.same([...new Set(told)].sort(), operations.sort())
})

t.test('every file that it names is there', async (t) => {
  const named = [...readme.matchAll(/`((?:src|routes|native|test|docker|openapi)\/[\w./-]*)`/g)].map(([, name]) => name ?? '')
  t.ok(named.length > 10)
  for (const name of named) t.ok(fs.existsSync(join(root, name)), name)
})
