// SPDX-License-Identifier: BSD-3-Clause
// The main job from end to end: two files in one map, found by address, written across the seam, persisted, read back, one part removed.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { MIB, makeFile, makeSet, mapPart, mapsOf, must, open, plus, refused } from './service.js'

t.test('two files, one map', async (t) => {
  const opened = await open(t)
  makeFile(opened.dir, 'a.bin', 2 * MIB)
  makeFile(opened.dir, 'b.bin', 2 * MIB)
  await makeSet(t, opened, { id: 'demo', coalescing: 'full' })
  const a = await mapPart(t, opened, 'demo', 'a.bin', { id: 'a', length: 2 * MIB })
  const b = await mapPart(t, opened, 'demo', 'b.bin', { id: 'b', length: 2 * MIB })
  t.match(b, { addr: plus(a.addr, 2 * MIB), coalesced: true, map: { addr: a.addr, size: 4 * MIB }, offset: 0, length: 2 * MIB, granularity: 'page', state: 'mapped' })
  t.match(await mapsOf(t, opened, 'demo'), [{ addr: a.addr, size: 4 * MIB, partCount: 2, leaseCount: 0, granularity: 'page' }])

  const seam = plus(b.addr, -6)
  t.match(await must(t, opened, 'GET', `/sets/demo/maps?addr=${seam}`), { items: [{ addr: a.addr, part: { id: 'a', addr: a.addr, length: 2 * MIB, offset: 0 } }] })
  t.match(await must(t, opened, 'PUT', `/sets/demo/memory?addr=${seam}`, Buffer.from('hello, world')), { ranges: [{ addr: seam, length: 12 }], bytes: 12, durability: 'persisted', granularity: 'page' })
  t.equal(String(await must(t, opened, 'GET', `/sets/demo/memory?addr=${seam}&length=12`)), 'hello, world')
  t.match(await must(t, opened, 'POST', '/sets/demo/persist', { ranges: [{ addr: seam, length: 12 }] }), { bytes: 12, durability: 'persisted' })
  t.equal(readFileSync(join(opened.dir, 'a.bin')).subarray(-6).toString(), 'hello,')
  t.equal(readFileSync(join(opened.dir, 'b.bin')).subarray(0, 6).toString(), ' world')

  t.match(await must(t, opened, 'DELETE', `/sets/demo/maps?addr=${b.addr}&length=1`), { dryRun: false, removed: [{ id: 'b', addr: b.addr, length: 2 * MIB }], removedCount: 1, trimmed: [{ before: { addr: a.addr, size: 4 * MIB }, after: { addr: a.addr, size: 2 * MIB } }], split: [] })
  await refused(t, opened, ['GET', `/sets/demo/memory?addr=${seam}&length=12`], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { map: { addr: a.addr, size: 2 * MIB }, number: -200033 })
  await refused(t, opened, ['GET', `/sets/demo/maps?addr=${b.addr}`], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')
  await must(t, opened, 'DELETE', '/sets/demo')
  t.same(await must(t, opened, 'GET', '/sets'), { items: [] })
})
