// SPDX-License-Identifier: BSD-3-Clause
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { checkPlaces, loadConfig } from '../src/config.js'

t.test('what holds when nothing is set', async (t) => {
  const config = loadConfig({ PATH: '/bin' })
  t.match(config, { host: '127.0.0.1', port: 8080, volumes: [{ name: 'default', path: resolve('data') }], allowedHosts: ['localhost', '127.0.0.1', '[::1]'] })
  t.match(config.limits, { sets: 256, partsPerSet: 30_000, windowBytesDefault: 2 ** 36, windowBytes: 2 ** 42, windowBytesTotal: 2 ** 44, bodyBytes: 2 ** 20, ranges: 1024, list: 1000, labels: 64, streams: 256, connections: 4096, keepFreePercent: 1 })
})

t.test('a wrong value is refused with name, value and what is allowed', async (t) => {
  const cases: Array<[string, string]> = [
    ['PMEMSETD_PORT', '0x50'], ['PMEMSETD_PORT', '80 '], ['PMEMSETD_PORT', ''], ['PMEMSETD_PORT', '65536'], ['PMEMSETD_PORT', '-1'], ['PMEMSETD_PORT', '1e3'],
    ['PMEMSETD_HOST', 'example.com'], ['PMEMSETD_HOST', ''], ['PMEMSETD_HOST', '0.0.0.0'], ['PMEMSETD_HOST', '::'],
    ['PMEMSETD_VOLUMES', ''], ['PMEMSETD_VOLUMES', 'data'], ['PMEMSETD_VOLUMES', 'a='], ['PMEMSETD_VOLUMES', '=b'], ['PMEMSETD_VOLUMES', 'A=b'], ['PMEMSETD_VOLUMES', 'a=b,a=c'], ['PMEMSETD_VOLUMES', 'a=b,'],
    ['PMEMSETD_ALLOWED_HOSTS', ''], ['PMEMSETD_ALLOWED_HOSTS', '*'], ['PMEMSETD_ALLOWED_HOSTS', 'a:80'], ['PMEMSETD_ALLOWED_HOSTS', 'a,,b'],
    ['PMEMSETD_SIMULATE', 'page'], ['PMEMSETD_ARENA_BASE', '64'], ['PMEMSETD_SOCKET', ''], ['PMEMSETD_SOCKET', `/${'s'.repeat(107)}`], ['PMEMSETD_TOKENS', ''],
    ['PMEMSETD_SETS_MAX', '0'], ['PMEMSETD_WINDOW_BYTES_MAX', '5GB'], ['PMEMSETD_WINDOW_BYTES_MAX', '1KiB'], ['PMEMSETD_KEEP_FREE_PERCENT', '100'], ['PMEMSETD_ATOMIC_BATCH_BYTES_MAX', '65537']
  ]
  for (const [name, value] of cases) {
    t.throws(() => loadConfig({ [name]: value }), { name: 'ConfigError', message: new RegExp(`^${name} is .*; allowed is|^${name} is .*allowed is`) }, `${name}=${value}`)
    t.throws(() => loadConfig({ [name]: value }), { message: JSON.stringify(value) }, `${name}=${value} is quoted`)
  }
  t.throws(() => loadConfig({ PMEMSETD_WINDOW_BYTES_DEFAULT: '2TiB', PMEMSETD_WINDOW_BYTES_MAX: '1TiB' }), /allowed is at most/)
})

t.test('a misspelt name is refused with the nearest', async (t) => {
  t.throws(() => loadConfig({ PMEMSETD_VOLUME: 'a=b' }), /^PMEMSETD_VOLUME is not a setting; did you mean PMEMSETD_VOLUMES\?/)
  t.throws(() => loadConfig({ PMEMSETD_TOKEN: 'a' }), /PMEMSETD_TOKENS/)
  t.doesNotThrow(() => loadConfig({ PMEMSETD_SETUP: 'off' }), 'the set-up has its own')
})

t.test('right values', async (t) => {
  t.equal(loadConfig({ PMEMSETD_HOST: 'localhost' }).host, '127.0.0.1')
  t.same(loadConfig({ PMEMSETD_HOST: '0.0.0.0', PMEMSETD_TOKENS: '/t' }).tokens, '/t')
  t.equal(loadConfig({ PMEMSETD_HOST: '0.0.0.0', PMEMSETD_SOCKET: '/s' }).socket, '/s', 'nobody listens on the host then')
  t.equal(loadConfig({ PMEMSETD_SOCKET: `/${'s'.repeat(106)}` }).socket?.length, 107)
  t.same(loadConfig({ PMEMSETD_VOLUMES: 'a=/x,b=/y=z' }).volumes, [{ name: 'a', path: '/x' }, { name: 'b', path: '/y=z' }])
  t.equal(loadConfig({ PMEMSETD_WINDOW_BYTES_DEFAULT: '1GiB' }).limits.windowBytesDefault, 2 ** 30)
  t.equal(loadConfig({ PMEMSETD_ARENA_BASE: '0x500000000000' }).arenaBase, 0x500000000000n)
  t.ok(loadConfig({ PMEMSETD_HOST: '::1' }).allowedHosts.includes('[::1]'))
})

t.test('places', async (t) => {
  const root = t.testdir()
  const make = (name: string): string => {
    const path = join(root, name)
    mkdirSync(path, { recursive: true })
    return path
  }
  const [a, b, ab] = [make('a'), make('b'), make('a/b')]
  symlinkSync(a, join(root, 'link'))
  writeFileSync(join(a, 'tokens'), '')
  writeFileSync(join(root, 'tokens'), '')
  const check = (env: Record<string, string>): void => { checkPlaces(loadConfig(env)) }
  t.doesNotThrow(() => { check({ PMEMSETD_VOLUMES: `x=${a},y=${b}`, PMEMSETD_TOKENS: join(root, 'tokens'), PMEMSETD_SOCKET: join(root, 's') }) })
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${a},y=${ab}` }) }, /y lies in x/)
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${ab},y=${a}` }) }, /x lies in y/)
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${a},y=${join(root, 'link')}` }) }, /lies in/)
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${a},y=/` }) }, /x lies in y/)
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${join(root, 'none')}` }) }, /ENOENT/)
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${a}`, PMEMSETD_TOKENS: join(a, 'tokens') }) }, /PMEMSETD_TOKENS lies in the volume x/)
  t.throws(() => { check({ PMEMSETD_VOLUMES: `x=${a}`, PMEMSETD_SOCKET: join(a, 's') }) }, /PMEMSETD_SOCKET lies in the volume x/)
})
