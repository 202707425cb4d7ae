// SPDX-License-Identifier: BSD-3-Clause
// npm run token: what it makes is what the service takes.
import { spawnSync } from 'node:child_process'
import { chmodSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { digestOf, loadTokens } from '../src/plugins/tokens.js'

function token (...args: string[]): { status: number | null, stdout: string, stderr: string } {
  return spawnSync(process.execPath, [join(import.meta.dirname, '..', 'src', 'token.js'), ...args], { encoding: 'utf8' })
}

t.test('a token is shown once and kept as its digest', async (t) => {
  const file = join(t.testdir({}), 'tokens.json')
  const first = token(file, 'read')
  const second = token(file, 'write,admin,write', 'for the backup job')
  t.match([first.status, second.status, first.stdout], [0, 0, /^[A-Za-z0-9_-]{43}\n$/])
  t.not(first.stdout, second.stdout)
  t.equal(statSync(file).mode & 0o777, 0o600)
  const text = readFileSync(file, 'utf8')
  t.notMatch(text, first.stdout.trim())
  const known = loadTokens(file)
  t.same([...known.get(digestOf(first.stdout.trim())) ?? []], ['read'], 'the first one is still there')
  t.same([...known.get(digestOf(second.stdout.trim())) ?? []], ['write', 'admin'])
  t.match(text, 'for the backup job')
})

t.test('what is wrong is said and changes nothing', async (t) => {
  const dir = t.testdir({})
  const file = join(dir, 'tokens.json')
  for (const args of [[], [file], [file, ''], [file, 'root'], [file, 'read,'], [file, 'read,root'], [join(dir, 'none', 'tokens.json'), 'read']]) {
    const done = token(...args)
    t.equal(done.status, 1, args.join(' '))
    t.match(done.stderr, /usage: npm run/)
    t.equal(done.stdout, '')
  }
  writeFileSync(file, '{"tokens":[]}')
  chmodSync(file, 0o644)
  t.match(token(file, 'read'), { status: 1, stderr: /mode is 0644/ })
  t.same(readdirSync(dir), ['tokens.json'])
})
