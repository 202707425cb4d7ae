// SPDX-License-Identifier: BSD-3-Clause
/*
 * Media that fail: a disk whose writes end with EIO for as long as its device mapper says so (dm-flakey), and persistent memory with a bad
 * block. Each is a typed answer, the service lives, and what else it holds goes on.
 */
import { strict as assert } from 'node:assert'
import { blank, Machine, MIB, PAGE, plus } from './machine.mjs'

const PART = 16 * PAGE
const SECTOR = 512
const DISK = 64 * MIB

/* ---- a disk that fails ---- */

// Up or down for an hour: which one, is said.
const good = 'flakey /dev/vda 0 3600 0'
const failing = 'flakey /dev/vda 0 0 3600 1 error_writes'

async function turn (machine, table) {
  await machine.must(`dmsetup suspend --noudevsync --nolockfs flakey; dmsetup reload flakey --table '0 ${DISK / SECTOR} ${table}'; dmsetup resume --noudevsync flakey`)
}

const at = (set, part) => `/sets/${set}/parts/${part}/content?offset=0`
const failuresOf = async (machine, set) => (await machine.ok('GET', `/sets/${set}/failures`)).items
const persist = (addr) => ({ json: { ranges: [{ addr, length: PAGE }] } })

/** The first page of a file as the disk has it. */
async function onDisk (machine, path) {
  await machine.must('sync; echo 3 >/proc/sys/vm/drop_caches')
  return (await machine.file(`flakey/${path}`)).subarray(0, PAGE)
}

async function flakey (machine, action) {
  const set = `flakey-${action}`
  const old = Buffer.alloc(PAGE, 'o')
  const bytes = Buffer.alloc(PAGE, 'n')
  await machine.ok('POST', '/sets', { json: { id: set, requiredGranularity: 'page' } })
  for (const id of ['p', 'q']) await machine.ok('POST', `/sets/${set}/parts`, { json: { id, source: { type: 'file', volume: 'flakey', path: `${action}.${id}`, create: 'exclusive' }, length: PART } })
  const { addr } = await machine.ok('GET', `/sets/${set}/parts/p`)
  for (const id of ['p', 'q']) await machine.ok('PUT', at(set, id), { bytes: Buffer.alloc(PART, 'o') })
  await machine.must('sync') // the journal has nothing left to write: it is the data that fails

  await turn(machine, failing)
  try {
    await machine.refused('PUT', at(set, 'p'), { bytes }, 500, 'PERSIST_FAILED', { errno: 'EIO', retryable: false })
    const [failure, ...more] = await failuresOf(machine, set)
    assert.deepEqual([failure.kind, failure.code, more], ['persist_failed', 'PERSIST_FAILED', []])
    assert.equal(failure.ranges[0].addr, addr)
    // Another flush would answer success for bytes that are lost; a good disk changes nothing of that.
    await machine.refused('POST', `/sets/${set}/persist`, persist(addr), 409, 'SET_DEGRADED')
    await turn(machine, good)
    await machine.refused('POST', `/sets/${set}/persist`, persist(addr), 409, 'SET_DEGRADED')
    await machine.refused('PUT', at(set, 'p'), { bytes }, 409, 'SET_DEGRADED')
    await machine.refused('DELETE', `/sets/${set}`, {}, 409, 'SET_DEGRADED')
    assert.equal((await machine.ok('GET', `/sets/${set}`)).state, 'degraded')
    assert.equal((await machine.ok('GET', `/sets/${set}/parts/p`)).state, 'degraded')
    assert.equal((await machine.ok('GET', `/sets/${set}/parts/q`)).state, 'mapped', 'the file that did not fail')
    assert.deepEqual(await machine.ok('GET', `/sets/${set}/memory?addr=${addr}&length=${PAGE}`), bytes, 'the mapping shows the new bytes')
    await machine.ok('POST', `/sets/${set}/failures/${failure.id}/acknowledge`, { json: { action } })
  } finally {
    await turn(machine, good)
  }
  const kept = action === 'rewrite' ? bytes : old
  assert.deepEqual(await failuresOf(machine, set), [])
  assert.equal((await machine.ok('GET', `/sets/${set}`)).state, 'ready')
  assert.deepEqual(await machine.ok('GET', `/sets/${set}/memory?addr=${addr}&length=${PAGE}`), kept)
  assert.deepEqual(await onDisk(machine, `${action}.p`), kept)
  assert.equal((await machine.ok('PUT', at(set, 'p'), { bytes: Buffer.alloc(PAGE, 'w') })).durability, 'persisted')
  assert.deepEqual(await onDisk(machine, `${action}.p`), Buffer.alloc(PAGE, 'w'))
  await machine.ok('DELETE', `/sets/${set}`)
}

/* ---- a bad block ---- */

/** The kernel is told that a page of a file is bad before anybody has it mapped. */
async function badBlock (machine) {
  const set = 'bad'
  const bad = 5 * PAGE
  await machine.must(`head -c ${PART} /dev/zero | tr '\\0' z >/mnt/dax/bad; sync
    block=$(filefrag -v -b4096 /mnt/dax/bad | awk '$1=="0:" { print $4 + 0 }')
    echo "$(((block + 5) * 8)) 8" >/sys/block/pmem0/badblocks`)
  await machine.ok('POST', '/sets', { json: { id: set, requiredGranularity: 'cache_line' } })
  const { addr } = await machine.ok('POST', `/sets/${set}/parts`, { json: { id: 'p', source: { type: 'file', volume: 'dax', path: 'bad' } } })
  const members = { addr: /^0x/, offset: /^\d+$/, retryable: false, reason: /^(media|unknown)$/ }
  for (const [method, path, options] of [
    ['GET', `/sets/${set}/memory?addr=${plus(addr, bad)}&length=64`],
    ['GET', `/sets/${set}/memory?addr=${addr}&length=${PART}`],
    ['GET', `/sets/${set}/memory?addr=${plus(addr, bad + 100)}&length=8`],
    ['PUT', `/sets/${set}/memory?addr=${plus(addr, bad)}`, { bytes: Buffer.alloc(64, 'w') }],
    ['PUT', `/sets/${set}/parts/p/content?offset=${bad - PAGE}`, { bytes: Buffer.alloc(3 * PAGE, 'w') }],
    ['POST', `/sets/${set}/memset`, { json: { addr: plus(addr, bad), length: 64, value: '0x1' } }],
    ['POST', `/sets/${set}/memcpy`, { json: { dest: addr, src: plus(addr, bad), length: 64 } }],
    ['POST', `/sets/${set}/atomic`, { json: { op: 'add', addr: plus(addr, bad), value: '0x1' } }]
  ]) {
    const told = await machine.refused(method, path, options, 500, 'PMEMSET_E_IO_FAIL', members)
    assert.equal(told.addr, plus(addr, told.offset))
    assert.ok(told.offset >= bad && told.offset < bad + PAGE, `${method} ${path}: ${told.offset}`)
  }
  for (const place of [0, bad - 64, bad + PAGE]) {
    const bytes = Buffer.alloc(64, 'g')
    assert.equal((await machine.ok('PUT', `/sets/${set}/memory?addr=${plus(addr, place)}`, { bytes })).durability, 'persisted')
    assert.deepEqual(await machine.ok('GET', `/sets/${set}/memory?addr=${plus(addr, place)}&length=64`), bytes)
  }
  await machine.ok('DELETE', `/sets/${set}`)
}

/* ---- all ---- */

export async function faults ({ check }) {
  let machine
  try {
    const served = await check('faults: boots, with a disk under dm-flakey', async () => {
      machine = await Machine.boot({ name: 'faults', modules: ['nfit', 'nd_pmem', 'virtio_blk', 'ext4', 'dm-flakey'], nvdimms: [blank('faults-dax.img', 64 * MIB)], disks: [blank('faults-disk.img', DISK)] })
      await machine.namespaces(1)
      await machine.mount('/dev/pmem0', 'dax', { options: 'dax', mkfs: '' })
      await machine.must(`dmsetup create --noudevsync flakey --table '0 ${DISK / SECTOR} ${good}'; [ -e /dev/mapper/flakey ] || dmsetup mknodes`)
      await machine.mount('/dev/mapper/flakey', 'flakey', { options: 'noatime,commit=300', mkfs: '' })
      await machine.serve(['dax', 'flakey'])
    })
    if (!served) return
    for (const action of ['rewrite', 'discard']) await check(`faults: a flush that fails, then ${action}`, () => flakey(machine, action))
    await check('faults: a bad block of persistent memory', () => badBlock(machine))
    await check('faults: the service ends in order', () => machine.stop())
  } finally {
    await machine?.cut()
  }
}
