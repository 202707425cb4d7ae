// SPDX-License-Identifier: BSD-3-Clause
// A flush that failed is not forgotten: it is on record before anybody is told of it, and what was degraded is so after a restart, until it is dealt with.
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { LmdbCatalog } from '../src/catalog/lmdb.js'
import type { FailuresRecord } from '../src/catalog/catalog.js'
import type { Failure } from '../src/schemas.js'
import { brokenDisk, cannotBreak, Refusing } from './media.js'
import { folder, kill, must, send, serving, type Served } from './process.js'
import { call, makeSet, mapPart, open, openCatalog, PAGE, plus } from './service.js'

/** What is on record of a set, once nobody has the catalog open. */
async function recordOf (dir: string, uid: string): Promise<FailuresRecord | undefined> {
  const catalog = await LmdbCatalog.open({ dir: join(dir, 'state'), allocate: async () => {} })
  const record = catalog.failures(uid)
  await catalog.close()
  return record
}

/** A service over a disk that is about to fail, with two sets of one file; `twin` has its last two pages. */
async function scene (t: Test): Promise<{ dir: string, again: () => Promise<Served>, first: Served, addr: string, twin: string, uids: string[], disk: ReturnType<typeof brokenDisk> }> {
  const disk = brokenDisk(t, ['f', 'well'])
  const dir = folder(t, 'state')
  const again = (): Promise<Served> => serving(t, dir, { PMEMSETD_VOLUMES: `default=${disk.dir}`, PMEMSETD_STATE_DIR: './state' })
  const first = await again()
  const uids: string[] = []
  for (const id of ['s', 'twin', 'other']) uids.push(((await must(first, 'POST', '/sets', { id, requiredGranularity: 'page' })) as { uid: string }).uid)
  const map = async (set: string, path: string, offset: number): Promise<string> => ((await must(first, 'POST', `/sets/${set}/parts`, { id: 'p', source: { type: 'file', path }, offset })) as { addr: string }).addr
  const addr = await map('s', 'f', 0)
  const twin = await map('twin', 'f', 2 * PAGE)
  await map('other', 'well', 0)
  return { dir, again, first, addr, twin, uids, disk }
}

const fill = (addr: string, pages: number, value: string, durability: string): object => ({ addr, length: pages * PAGE, value, durability })

for (const action of ['rewrite', 'discard']) {
  t.test(`degraded is degraded after a restart, until ${action}`, { skip: cannotBreak }, async (t) => {
    const { dir, again, first, addr, twin, uids, disk } = await scene(t)
    const failed = await send(first, 'POST', '/sets/s/memset', fill(addr, 3, '0x6e', 'persisted'))
    t.match(failed, { status: 500, json: { code: 'PERSIST_FAILED' } })
    // As soon as it was told.
    await kill(first)
    t.match(await recordOf(dir, uids[0] ?? ''), { failures: [{ at: Number, errno: Number, ranges: [{ addr, length: 3 * PAGE }] }] })
    t.match(await recordOf(dir, uids[1] ?? ''), { failures: [{ ranges: [{ addr: twin, length: PAGE }] }] })
    t.equal(await recordOf(dir, uids[2] ?? ''), undefined)

    const second = await again()
    for (const [set, at, length] of [['s', addr, 3 * PAGE], ['twin', twin, PAGE]] as const) {
      t.match(await must(second, 'GET', `/sets/${set}`), { state: 'degraded' })
      t.match(await must(second, 'GET', `/sets/${set}/parts/p`), { state: 'degraded', problem: 'PERSIST_FAILED' })
      t.match(await must(second, 'GET', `/sets/${set}/failures`), { items: [{ kind: 'persist_failed', ranges: [{ addr: at, length }], errno: /^(ENOSPC|EIO)$/, acknowledged: false }] })
      t.match(await send(second, 'POST', `/sets/${set}/persist`, { ranges: [{ addr: at, length: 1 }] }), { status: 409, json: { code: 'SET_DEGRADED' } })
      t.match(await send(second, 'DELETE', `/sets/${set}`), { status: 409, json: { code: 'SET_DEGRADED' } })
    }
    t.match(await must(second, 'GET', '/sets/other'), { state: 'ready' })
    const [failure] = ((await must(second, 'GET', '/sets/s/failures')) as { items: Failure[] }).items
    const [same] = ((await must(second, 'GET', '/sets/twin/failures')) as { items: Failure[] }).items
    t.equal(failure?.id, same?.id, 'it is one failure, of one file')

    disk.mend()
    t.match(await must(second, 'POST', `/sets/twin/failures/${failure?.id ?? ''}/acknowledge`, { action }), { acknowledged: true })
    for (const set of ['s', 'twin']) t.match(await must(second, 'GET', `/sets/${set}`), { state: 'ready' })
    t.match(await must(second, 'POST', '/sets/s/persist', { ranges: [{ addr, length: 4 * PAGE }] }), { durability: 'persisted' })
    await kill(second)
    for (const uid of uids) t.equal(await recordOf(dir, uid), undefined)
    const third = await again()
    for (const set of ['s', 'twin']) t.match(await must(third, 'GET', `/sets/${set}`), { state: 'ready' })
    const { results } = await must(third, 'POST', '/sets/s/batch', { operations: [{ op: 'read', addr: plus(addr, 2 * PAGE), length: 2 }] }) as { results: Array<{ data: string }> }
    const shown = Buffer.from(results[0]?.data ?? '', 'base64')
    if (action === 'rewrite') t.same([shown.toString(), disk.afterPowerCut('f').subarray(2 * PAGE, 2 * PAGE + 2).toString()], ['nn', 'nn'])
    else t.same(shown, disk.afterPowerCut('f').subarray(2 * PAGE, 2 * PAGE + 2))
  })
}

t.test('a failure of a flush that nobody asked for, but a removal needs', { skip: cannotBreak }, async (t) => {
  const { dir, again, first, addr, uids } = await scene(t)
  await must(first, 'POST', '/sets/s/memset', fill(addr, 1, '0x6e', 'none'))
  t.match(await send(first, 'DELETE', '/sets/s/parts/p'), { status: 500, json: { code: 'PERSIST_FAILED' } })
  await kill(first)
  t.match(await recordOf(dir, uids[0] ?? ''), { failures: [{ ranges: [{ addr, length: PAGE }] }] })
  const second = await again()
  t.match(await must(second, 'GET', '/sets/s/parts/p'), { state: 'degraded' })
})

t.test('one that appears as the service ends is remembered, too', { skip: cannotBreak }, async (t) => {
  const { again, first, addr } = await scene(t)
  await must(first, 'POST', '/sets/s/memset', fill(addr, 1, '0x6e', 'none'))
  first.child.kill('SIGTERM')
  t.equal(await first.ended, 1, first.said())
  const second = await again()
  t.match(await must(second, 'GET', '/sets/s'), { state: 'degraded' })
})

t.test('what was dealt with and cannot be recorded is not dealt with', { skip: cannotBreak }, async (t) => {
  const disk = brokenDisk(t, ['f'])
  const state = folder(t)
  const before = await open(t)
  const catalog = new Refusing(await openCatalog(state))
  const opened = await open(t, { dir: disk.dir, state, catalog })
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'f', { id: 'p', length: 4 * PAGE }, { create: 'never' })
  t.equal((await call(t, opened, 'PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('n'))).status, 500)
  const { items: [failure] } = (await call(t, opened, 'GET', '/sets/s/failures')).json as { items: Failure[] }
  disk.mend()
  catalog.refuses = () => true
  t.match((await call(t, opened, 'POST', `/sets/s/failures/${failure?.id ?? ''}/acknowledge`, { action: 'rewrite' })).json, { status: 507, code: 'NO_SPACE' })
  t.match((await call(t, opened, 'GET', '/sets/s')).json, { state: 'degraded', revision: 2 })
  const { items: [still] } = (await call(t, opened, 'GET', '/sets/s/failures')).json as { items: Failure[] }
  t.same(still?.ranges, failure?.ranges)
  catalog.refuses = () => false
  t.equal((await call(t, opened, 'POST', `/sets/s/failures/${still?.id ?? ''}/acknowledge`, { action: 'rewrite' })).status, 200)
  t.match((await call(t, opened, 'GET', '/sets/s')).json, { state: 'ready', revision: 3 })
  await before.close()
})
