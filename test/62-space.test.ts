// SPDX-License-Identifier: BSD-3-Clause
// A full disk, at every point of fullness: what is asked for is done, or is refused and has changed nothing; what takes away works and is durable; the service
// starts where there is not one block; and with space again everything is as ever.
import { openSync, closeSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Part } from '../src/schemas.js'
import { cannotLoop, cannotMount, empty, ext4, files, fill, mounted, tmpfs } from './media.js'
import { folder, must, send, serving, worldOf, type Json, type Served } from './process.js'
import { makeFile, MIB, PAGE, plus } from './service.js'

/** Free pages, from plenty to none. */
const FULLNESS = [64, 32, 17, 9, 5, 4, 3, 2, 1, 0]
/** At this the catalog has used up what it had set aside, too; and the service is started again. */
const EXHAUSTED = 0
const HOLES = 16 * PAGE

/** What can fail for want of space, and that in one medium or another it did. */
type Step = 'commit' | 'make' | 'grow' | 'map' | 'write'

interface Asked {
  name: string
  step: Step
  request: [method: string, path: string, body?: object | Buffer]
  /** The codes that it may be refused with. */
  may: string[]
  /** It stores into the file of holes, and some of it may be there. */
  stores?: true
}

interface Medium {
  name: string
  skip: string | false
  /** The volume's directory. */
  make: (t: Test, dir: string) => string
  env: NodeJS.ProcessEnv
  /** It is large enough for a log of batches that are all or nothing, which is made while there is space. */
  keepsLog?: true
  /** Of these, each step fails at some point. */
  fails: Step[]
}

const MEDIA: Medium[] = [
  { name: 'tmpfs, the catalog elsewhere', skip: cannotMount, make: (t) => mounted(t, tmpfs('48m')), keepsLog: true, env: { PMEMSETD_STATE_DIR: './state', PMEMSETD_KEEP_FREE_PERCENT: '0' }, fails: ['grow', 'write'] },
  { name: 'tmpfs, the catalog on it, and some space kept free', skip: cannotMount, make: (t) => mounted(t, tmpfs('12m')), env: { PMEMSETD_EPHEMERAL: 'true', PMEMSETD_KEEP_FREE_PERCENT: '1', PMEMSETD_SETS_MAX: '1000' }, fails: ['commit', 'map', 'grow', 'write'] },
  { name: 'ext4, the catalog on it', skip: cannotLoop, make: (t, dir) => ext4(t, join(dir, 'image'), { size: 32 * MIB, more: ['-m', '0', '-J', 'size=4'] }), env: { PMEMSETD_KEEP_FREE_PERCENT: '0', PMEMSETD_SETS_MAX: '1000' }, fails: ['commit', 'map', 'grow', 'write'] }
]

const labels = Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`${i}`, 'x'.repeat(200)]))
const set = (id: string, fields: object = {}): object => ({ id, requiredGranularity: 'page', windowSize: 2 * MIB, ...fields })
const part = (id: string, path: string, length: number, source: object = {}, fields: object = {}): object => ({ id, length, source: { type: 'file', path, ...source }, ...fields })

/** At that point of fullness; `at` is where the set `s` has an allocated page, and `holes` where it has holes. */
function requests (i: number, at: string, holes: string): Asked[] {
  const hole = plus(holes, 8 * PAGE)
  const space = ['NO_SPACE']
  const growth = [...space, 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE']
  const ask = (name: string, step: Step, request: Asked['request'], may: string[], stores?: true): Asked => ({ name, step, request, may, ...(stores === undefined ? {} : { stores }) })
  return [
    ask('a set', 'commit', ['POST', '/sets', set(`n${i}`)], space),
    ask('a large set', 'commit', ['POST', '/sets', set(`large-${i}`, { labels })], space),
    ask('labels', 'commit', ['PATCH', '/sets/s', { labels: { ...labels, at: String(i) } }], space),
    ask('a part of what is there', 'map', ['POST', '/sets/s/parts', part(`there-${i}`, 'old', PAGE)], space),
    ask('a part of a new file', 'grow', ['POST', '/sets/s/parts', part(`new-${i}`, `new-${i}`, 4 * PAGE, { create: 'if_needed' })], growth),
    ask('a part of a new file, from afar', 'grow', ['POST', '/sets/s/parts', part(`far-${i}`, `dir/far-${i}`, 4 * PAGE, { create: 'exclusive' }, { offset: 4 * PAGE })], [...growth, 'ENOENT']),
    ask('growth', 'grow', ['POST', '/sets/s/parts', part(`grown-${i}`, `grows-${i}`, 16 * PAGE, { grow: true })], growth),
    ask('growth by a page', 'grow', ['POST', '/sets/s/parts', part(`page-${i}`, `grows-${i}-less`, 3 * PAGE, { grow: true })], growth),
    ask('memset where there is space', 'write', ['POST', '/sets/s/memset', { addr: at, length: PAGE, value: '0x61' }], []),
    ask('a write where there is space', 'write', ['PUT', `/sets/s/memory?addr=${plus(at, 100)}`, Buffer.from('bytes')], []),
    ask('atomic where there is space', 'write', ['POST', '/sets/s/atomic', { op: 'add', addr: at, value: '0x1' }], []),
    ask('persist', 'write', ['POST', '/sets/s/persist', { ranges: [{ addr: at, length: PAGE }] }], []),
    ask('deep-flush', 'write', ['POST', '/sets/s/deep-flush', { ranges: [{ addr: at, length: PAGE }] }], []),
    ask('a write into a hole', 'write', ['PUT', `/sets/s/memory?addr=${holes}`, Buffer.alloc(3 * PAGE, 'h')], space, true),
    ask('memset in a hole', 'write', ['POST', '/sets/s/memset', { addr: hole, length: 2 * PAGE, value: '0x62' }], space, true),
    ask('memcpy into a hole', 'write', ['POST', '/sets/s/memcpy', { dest: plus(hole, 3 * PAGE), src: at, length: PAGE }], space, true),
    ask('a batch into a hole', 'write', ['POST', '/sets/s/batch', { operations: [{ op: 'write', addr: plus(hole, 5 * PAGE), data: 'YWJj' }, { op: 'write', addr: at, data: 'YWJj' }] }], space, true),
    ask('a batch into a hole, all or nothing', 'write', ['POST', '/sets/s/batch', { atomicity: 'all', operations: [{ op: 'write', addr: plus(at, PAGE), data: Buffer.from(`${i}`).toString('base64') }, { op: 'write', addr: plus(hole, 7 * PAGE), data: 'YWJj' }] }], [...space, 'PMEMSET_E_IO_FAIL'], true),
    ask('atomic in a hole', 'write', ['POST', '/sets/s/atomic', { op: 'add', addr: plus(hole, 6 * PAGE), value: '0x1' }], [...space, 'PMEMSET_E_IO_FAIL'], true)
  ]
}

/** A set to be asked, with a part of which every page has its space. */
async function prepare (served: Served, dir: string): Promise<string> {
  await must(served, 'POST', '/sets', set('s', { windowSize: 16 * MIB }))
  makeFile(dir, 'old', Buffer.alloc(4 * PAGE, 'o'))
  makeFile(dir, 'dir/in', 'a directory')
  return (await must(served, 'POST', '/sets/s/parts', part('old', 'old', 4 * PAGE)) as Part).addr
}

/** As long as there is space: files, a part that has holes, whose address it answers, and a set that is to be taken away. */
async function prepareFor (served: Served, dir: string, i: number): Promise<string> {
  for (const name of [`grows-${i}`, `grows-${i}-less`]) makeFile(dir, name, Buffer.alloc(2 * PAGE, 'g'))
  makeFile(dir, `holes-${i}`, HOLES)
  await must(served, 'POST', '/sets', set(`v${i}`, { coalescing: 'full' }))
  for (const k of [0, 1, 2]) await must(served, 'POST', `/sets/v${i}/parts`, part(`p${k}`, 'old', PAGE, {}, { offset: k * PAGE }))
  return (await must(served, 'POST', '/sets/s/parts', part(`holes-${i}`, `holes-${i}`, HOLES)) as Part).addr
}

/** Takes away one in each of the ways that there are; each works. */
async function takeAway (t: Test, served: Served, i: number, ids: readonly string[]): Promise<void> {
  const { items: [first, second] } = await must(served, 'GET', `/sets/v${i}/parts`) as { items: Part[] }
  const all = [`/sets/v${i}/maps?addr=${second?.addr ?? ''}&length=1`, `/sets/v${i}/parts/p0`, `/sets/v${i}/maps/${plus(first?.addr ?? '', 2 * PAGE)}`, `/sets/v${i}`, ...ids]
  for (const path of all) {
    const { status, json } = await send(served, 'DELETE', path)
    if (status >= 300) t.fail(`${path}: ${status} ${JSON.stringify(json)}`)
  }
}

for (const medium of MEDIA) {
  t.test(medium.name, { skip: medium.skip }, async (t) => {
    const place = folder(t, 'state')
    const dir = medium.make(t, place)
    const env = { PMEMSETD_VOLUMES: `default=${dir}`, ...medium.env }
    let served = await serving(t, place, env)
    const at = await prepare(served, dir)
    if (medium.keepsLog) await must(served, 'POST', '/sets/s/batch', { atomicity: 'all', operations: [{ op: 'write', addr: at, data: 'YWJj' }] })
    const failed = new Map<Step, Set<string>>()
    const again = async (end: 'SIGTERM' | 'SIGKILL', meanwhile = (): void => {}): Promise<void> => {
      const before = await worldOf(served.address)
      served.child.kill(end)
      t.equal(await served.ended, end === 'SIGTERM' ? 0 : end, served.said())
      meanwhile()
      served = await serving(t, place, env)
      t.same(await worldOf(served.address), before, 'after a restart everything is as it was')
    }

    /** Has the catalog use up what it has set aside. */
    const exhaust = async (i: number): Promise<string[]> => {
      const made: string[] = []
      for (const fields of [{ labels }, {}]) {
        for (let isRefused = false; !isRefused;) {
          const { status, json } = await send(served, 'POST', '/sets', set(`more-${i}-${made.length}`, fields))
          isRefused = status !== 201
          if (isRefused) t.match({ status, json }, { status: 507, json: { code: 'NO_SPACE', retryable: false } })
          else made.push(`/sets/${json.id}`)
        }
      }
      return made
    }

    /** Answers what has to be taken away again. */
    const askAll = async (i: number, holes: string, isFull: boolean): Promise<string[]> => {
      const made: string[] = []
      const look = async (): Promise<[Json, string[]]> => [await worldOf(served.address), files(dir)]
      let before = await look()
      for (const { name, step, request, may, stores } of requests(i, at, holes)) {
        const what = `${FULLNESS[i] ?? 'plenty of'} pages: ${name}`
        const { status, json } = await send(served, ...request)
        const after = await look()
        if (status >= 300) {
          const hasNoLog = !medium.keepsLog && name.endsWith('all or nothing')
          if ((!isFull && !hasNoLog) || !may.includes(String(json?.code))) t.fail(`${what}: ${status} ${JSON.stringify(json)}`)
          failed.set(step, (failed.get(step) ?? new Set()).add(`${name}: ${json?.code}`))
          const others = ([world, all]: typeof after): typeof after => [world, all.filter((line) => stores !== true || !line.startsWith('holes-'))]
          t.same(others(after), others(before), `${what}: nothing has changed`)
        } else if (status === 201) {
          made.push(`${request[1]}/${json.id}`)
        }
        before = after
      }
      return made
    }

    for (const [i, pages] of FULLNESS.entries()) {
      const holes = await prepareFor(served, dir, i)
      fill(dir, pages * PAGE)
      const isExhausted = pages === EXHAUSTED && medium.fails.includes('commit')
      const made = isExhausted ? await exhaust(i) : []
      made.push(...await askAll(i, holes, true))
      if (pages === EXHAUSTED) await again('SIGKILL')
      await takeAway(t, served, i, [...made, `/sets/s/parts/holes-${i}`])
      // To the brim, and whatever it let go of is taken.
      if (pages === EXHAUSTED) await again('SIGTERM', () => { fill(dir, 0) })
      empty(dir)
    }
    t.comment([...failed].map(([step, ways]) => `${step}: ${[...ways].join(', ')}`).join('\n'))
    t.same([...failed.keys()].sort(), [...medium.fails].sort(), 'each of these has failed')

    const last = FULLNESS.length
    const made = await askAll(last, await prepareFor(served, dir, last), false)
    await takeAway(t, served, last, made)
    await again('SIGTERM')
  })
}

t.test('no file can be made', { skip: cannotMount }, async (t) => {
  const place = folder(t, 'state')
  const dir = mounted(t, (dir) => ['mount', '-t', 'tmpfs', '-o', 'size=8m,nr_inodes=20', 'none', dir])
  const served = await serving(t, place, { PMEMSETD_VOLUMES: `default=${dir}`, PMEMSETD_STATE_DIR: './state' })
  await must(served, 'POST', '/sets', set('s'))
  await must(served, 'POST', '/sets/s/parts', part('old', 'old', PAGE, { create: 'if_needed' }))
  const taken: string[] = []
  try {
    for (;;) {
      const path = join(dir, `taken-${taken.length}`)
      closeSync(openSync(path, 'wx'))
      taken.push(path)
    }
  } catch { /* that was the last one */ }
  const before = [await worldOf(served.address), files(dir)]
  for (const create of ['if_needed', 'exclusive', 'always']) {
    t.match(await send(served, 'POST', '/sets/s/parts', part('new', 'new', PAGE, { create })), { status: 507, json: { code: 'NO_SPACE', errno: 'ENOSPC', retryable: false } }, create)
    t.same([await worldOf(served.address), files(dir)], before, `${create}: nothing has changed`)
  }
  await must(served, 'POST', '/sets/s/parts', part('more', 'old', PAGE))
  await must(served, 'DELETE', '/sets/s/parts/old')
  rmSync(taken[0] ?? '')
  await must(served, 'POST', '/sets/s/parts', part('new', 'new', PAGE, { create: 'exclusive' }))
})
