// SPDX-License-Identifier: BSD-3-Clause
/*
 * Every medium that there is in a virtual machine, side by side: what the service says of each, and that the main job and the data plane
 * do on it what they do elsewhere.
 */
import { strict as assert } from 'node:assert'
import { blank, Machine, MIB, PAGE, plus } from './machine.mjs'

const PART = 2 * MIB

const NOT_DAX = /page cache/
// What each volume of the machine is, as the service has to tell it.
const VOLUMES = {
  dax: { granularity: 'cache_line', persistence: 'persistent', dax: true, fileSystem: 'ext4' },
  xfs: { granularity: 'cache_line', persistence: 'persistent', dax: true, fileSystem: 'xfs' },
  nodax: { granularity: 'page', persistence: 'persistent', dax: false, fileSystem: 'ext4', why: NOT_DAX },
  virtio: { granularity: 'page', persistence: 'host_dependent', dax: true, fileSystem: 'ext4', why: /does not take MAP_SYNC/ },
  disk: { granularity: 'page', persistence: 'persistent', dax: false, fileSystem: 'ext4', why: NOT_DAX }
}
const FINE = Object.keys(VOLUMES).filter((name) => VOLUMES[name].granularity !== 'page')

const octets = (text) => Buffer.from(text)
const file = (volume, path, fields = {}) => ({ type: 'file', volume, path, create: 'if_needed', ...fields })

/* ---- what it says of a volume ---- */

async function tells (machine, name, { granularity, persistence, dax, fileSystem }) {
  const volume = await machine.ok('GET', `/volumes/${name}`)
  const { granularity: g, persistence: p, dax: d, fileSystem: f, mapSync } = volume
  assert.deepEqual({ g, p, d, f, mapSync }, { g: granularity, p: persistence, d: dax, f: fileSystem, mapSync: granularity !== 'page' })
}

/** A set may ask for less than the medium has, and gets what the medium has; it must not ask for more. */
async function asks (machine, name, { granularity, persistence, why }) {
  await machine.ok('POST', '/sets', { json: { id: 'asks', requiredGranularity: 'cache_line' } })
  const json = { id: 'p', source: file(name, 'asked'), length: PART }
  if (granularity === 'page') {
    await machine.refused('POST', '/sets/asks/parts', { json }, 422, 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', { requiredGranularity: 'cache_line', availableGranularity: 'page' })
    const probe = await machine.ok('GET', `/volumes/${name}/probe?path=asked`)
    assert.equal(probe.exists, false, 'what was refused has made no file')
    assert.equal(probe.granularity, 'page')
    assert.match(probe.reason, why)
    assert.deepEqual((await machine.ok('GET', '/sets/asks/parts')).items, [])
  } else {
    const part = await machine.ok('POST', '/sets/asks/parts', { json })
    assert.deepEqual([part.granularity, part.mapSync, part.persistence], [granularity, true, persistence])
    assert.deepEqual(await machine.ok('GET', '/sets/asks/granularity'), { granularity })
    // "sf": the kernel itself says that a store waits for the file system (synchronous fault).
    const flags = await machine.must(`sed -n '/^${part.addr.slice(2)}-/,/^VmFlags/p' /proc/$(cat /run/service.pid)/smaps | tail -n 1`)
    assert.match(flags, /^VmFlags:.* sf /)
  }
  await machine.ok('DELETE', '/sets/asks')
}

/* ---- the main job ---- */

async function mapTwo (machine, set, volume, length = PART) {
  await machine.ok('POST', '/sets', { json: { id: set, requiredGranularity: 'page', coalescing: 'full' } })
  const first = await machine.ok('POST', `/sets/${set}/parts`, { json: { id: 'a', source: file(volume, `${set}.a`), length } })
  const second = await machine.ok('POST', `/sets/${set}/parts`, { json: { id: 'b', source: file(volume, `${set}.b`), length } })
  assert.equal(second.coalesced, true)
  assert.equal(second.addr, plus(first.addr, length))
  return first.addr
}

async function mainJob (machine, volume, { granularity, persistence }) {
  const set = `job-${volume}`
  const addr = await mapTwo(machine, set, volume)
  const b = plus(addr, PART)
  const seam = plus(b, -6)
  const found = await machine.ok('GET', `/sets/${set}/maps?addr=${seam}`)
  assert.deepEqual([found.items[0].addr, found.items[0].size, found.items[0].granularity, found.items[0].part.id], [addr, 2 * PART, granularity, 'a'])
  for (const durability of ['none', 'flushed', 'persisted', 'deep']) {
    const bytes = octets(`hello, ${durability}`)
    const wrote = await machine.ok('PUT', `/sets/${set}/memory?addr=${seam}&durability=${durability}`, { bytes })
    assert.equal(wrote.durability, durability === 'flushed' ? 'persisted' : durability, 'what is flushed is durable by then')
    assert.deepEqual([wrote.granularity, wrote.persistence, wrote.simulated], [granularity, persistence, undefined])
    assert.deepEqual(await machine.ok('GET', `/sets/${set}/memory?addr=${seam}&length=${bytes.length}`), bytes)
  }
  const ranges = [{ addr: seam, length: 12 }]
  for (const call of ['flush', 'persist', 'deep-flush']) assert.deepEqual((await machine.ok('POST', `/sets/${set}/${call}`, { json: { ranges } })).ranges, ranges)
  await machine.ok('POST', `/sets/${set}/drain`, { json: {} })
  assert.equal((await machine.file(`${volume}/${set}.a`)).subarray(-6).toString(), 'hello,')
  assert.equal((await machine.file(`${volume}/${set}.b`)).subarray(0, 5).toString(), ' deep')

  const removal = await machine.ok('DELETE', `/sets/${set}/maps?addr=${b}&length=1`)
  assert.deepEqual(removal.removed, [{ id: 'b', addr: b, length: PART }])
  await machine.refused('GET', `/sets/${set}/maps?addr=${b}`, {}, 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP')
  await machine.refused('GET', `/sets/${set}/memory?addr=${seam}&length=12`, {}, 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE')
  assert.equal((await machine.file(`${volume}/${set}.b`)).subarray(0, 5).toString(), ' deep', 'the bytes stay')
  const again = await machine.ok('POST', `/sets/${set}/parts`, { json: { id: 'b', source: file(volume, `${set}.b`, { create: 'never' }) } })
  assert.equal(again.addr, b, 'what is mapped next goes where there is room')
  assert.equal((await machine.ok('GET', `/sets/${set}/memory?addr=${b}&length=5`)).toString(), ' deep')
  await machine.ok('DELETE', `/sets/${set}`)
}

/* ---- the data plane ---- */

async function dataPlane (machine, volume, { granularity }) {
  const set = `plane-${volume}`
  const addr = await mapTwo(machine, set, volume)
  const model = Buffer.alloc(2 * PART)
  const bulk = Buffer.from(Uint32Array.from({ length: (PART + PAGE) / 4 }, (_, i) => i * 2654435761).buffer)
  // Across the seam and on no boundary.
  const from = PART / 2 + 5
  await machine.ok('PUT', `/sets/${set}/memory?addr=${plus(addr, from)}`, { bytes: bulk })
  bulk.copy(model, from)
  await machine.ok('PUT', `/sets/${set}/parts/b/content?offset=${PART - 9}`, { bytes: octets('the end: ') })
  model.write('the end: ', 2 * PART - 9)
  await machine.ok('POST', `/sets/${set}/memset`, { json: { addr: plus(addr, 100), length: 2 * PAGE, value: '0xab' } })
  model.fill(0xab, 100, 100 + 2 * PAGE)
  await machine.ok('POST', `/sets/${set}/memcpy`, { json: { dest: plus(addr, PART - 50), src: addr, length: 300, hint: 'nontemporal' } })
  model.copy(model, PART - 50, 0, 300)
  await machine.ok('POST', `/sets/${set}/memmove`, { json: { dest: plus(addr, 7), src: addr, length: 3 * PAGE } })
  model.copy(model, 7, 0, 3 * PAGE)
  await machine.ok('POST', `/sets/${set}/memset`, { json: { addr: plus(addr, PART), length: 2 * PAGE, value: '0x0', punch: true } })
  model.fill(0, PART, PART + 2 * PAGE)
  const word = await machine.ok('POST', `/sets/${set}/atomic`, { json: { op: 'add', addr: plus(addr, PART), value: '0x5' } })
  assert.deepEqual([word.previous, word.current], ['0x0', '0x5'])
  model.writeBigUInt64LE(5n, PART)
  const batch = await machine.ok('POST', `/sets/${set}/batch`, {
    json: {
      operations: [
        { op: 'write', addr: plus(addr, PART - 3), data: octets('batched').toString('base64') },
        { op: 'memset', addr, length: 64, value: '0x11' },
        { op: 'read', addr: plus(addr, PART - 3), length: 7 }
      ]
    }
  })
  model.write('batched', PART - 3)
  model.fill(0x11, 0, 64)
  assert.equal(Buffer.from(batch.results[2].data, 'base64').toString(), 'batched')
  assert.equal(batch.granularity, granularity)

  const ranged = await machine.request('GET', `/sets/${set}/parts/a/content`, { headers: { range: `bytes=${PART - 50}-` } })
  assert.equal(ranged.status, 206)
  assert.equal(ranged.headers['pmemset-granularity'], granularity)
  assert.ok(ranged.body.equals(model.subarray(PART - 50, PART)))
  assert.ok((await machine.ok('GET', `/sets/${set}/memory?addr=${addr}&length=${2 * PART}`)).equals(model), 'through the map')
  const files = Buffer.concat([await machine.file(`${volume}/${set}.a`), await machine.file(`${volume}/${set}.b`)])
  assert.ok(files.equals(model), 'in the files')
  await machine.ok('DELETE', `/sets/${set}`)
}

/* ---- a full file system, and holes ---- */

const parts = async (machine, set) => (await machine.ok('GET', `/sets/${set}/parts`)).items.map(({ id, addr, length }) => ({ id, addr, length }))

/** Leaves nothing of it, as another process may at any time. More than once: xfs gives back what it has set aside when it is asked to. */
async function fill (machine, volume) {
  await machine.must(`for size in 64k 4k 4k; do dd if=/dev/zero of=/mnt/${volume}/filler bs=$size conv=notrunc oflag=append 2>/dev/null || true; sync; done`)
}

async function isFull (machine, volume) {
  const set = `full-${volume}`
  const addr = await mapTwo(machine, set, volume)
  const before = await parts(machine, set)
  await fill(machine, volume)
  const json = { id: 'c', source: file(volume, 'new'), length: PART }
  const made = await machine.request('POST', `/sets/${set}/parts`, { json })
  assert.equal(made.status, 507, String(made.body))
  assert.match(made.json.code, /^(PMEMSET_E_CANNOT_GROW_SOURCE_FILE|NO_SPACE)$/, 'no room for its bytes, or not even for an inode')
  await machine.refused('POST', `/sets/${set}/parts`, { json: { id: 'c', source: file(volume, `${set}.b`, { grow: true }), length: 2 * PART } }, 507, 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE')
  assert.deepEqual(await parts(machine, set), before, 'nothing changed')
  assert.equal(await machine.must(`ls /mnt/${volume}/new 2>/dev/null || echo none; stat -c %s /mnt/${volume}/${set}.b`), `none\n${PART}`)
  // What is mapped has its space: a write finds it, wherever.
  const bytes = Buffer.alloc(2 * PART, 'f')
  assert.equal((await machine.ok('PUT', `/sets/${set}/memory?addr=${addr}`, { bytes })).durability, 'persisted')
  assert.ok((await machine.file(`${volume}/${set}.b`)).equals(bytes.subarray(PART)))
  await machine.ok('DELETE', `/sets/${set}/parts/a`)
  await machine.ok('DELETE', `/sets/${set}`)
  await machine.must(`rm /mnt/${volume}/filler`)
}

/** A part of a file that has no space beneath it, because another process has taken it away, when there is none left. */
async function hasHole (machine, volume) {
  const set = `hole-${volume}`
  const addr = await mapTwo(machine, set, volume)
  const hole = 16 * PAGE
  await machine.must(`fallocate --punch-hole --offset ${hole} --length ${PART / 2} /mnt/${volume}/${set}.a`)
  await fill(machine, volume)
  for (const [method, path, options] of [
    ['PUT', `/sets/${set}/memory?addr=${plus(addr, hole)}`, { bytes: Buffer.alloc(PAGE, 'h') }],
    ['PUT', `/sets/${set}/memory?addr=${plus(addr, hole - 8)}`, { bytes: Buffer.alloc(16, 'h') }],
    ['PUT', `/sets/${set}/parts/a/content?offset=${hole + PAGE}`, { bytes: Buffer.alloc(PART / 4, 'h') }],
    ['POST', `/sets/${set}/memset`, { json: { addr: plus(addr, hole), length: 64, value: '0x1' } }],
    ['POST', `/sets/${set}/atomic`, { json: { op: 'add', addr: plus(addr, hole), value: '0x1' } }]
  ]) await machine.refused(method, path, options, 500, 'PMEMSET_E_IO_FAIL', { addr: /^0x/, offset: /^\d+$/, retryable: false })
  assert.equal((await machine.ok('GET', `/sets/${set}/memory?addr=${plus(addr, hole)}&length=4`)).readUInt32LE(), 0, 'a hole is read')
  // The rest of this part and the other one go on.
  for (const place of [0, 8 * PAGE, PART, 2 * PART - PAGE]) {
    const bytes = Buffer.alloc(PAGE, 'g')
    await machine.ok('PUT', `/sets/${set}/memory?addr=${plus(addr, place)}`, { bytes })
    assert.deepEqual(await machine.ok('GET', `/sets/${set}/memory?addr=${plus(addr, place)}&length=${PAGE}`), bytes)
  }
  await machine.must(`rm /mnt/${volume}/filler`)
  await machine.ok('PUT', `/sets/${set}/memory?addr=${plus(addr, hole)}`, { bytes: Buffer.alloc(PAGE, 'h') }) // there is space again
  await machine.ok('DELETE', `/sets/${set}`)
  await machine.must(`rm /mnt/${volume}/${set}.*`)
}

/* ---- all ---- */

export async function media ({ check }) {
  let machine
  const booted = await check('media: boots, with two NVDIMMs for DAX, one without, virtio-pmem and a disk', async () => {
    machine = await Machine.boot({
      name: 'media',
      modules: ['nfit', 'nd_pmem', 'virtio_pmem', 'virtio_blk', 'ext4', 'xfs'],
      nvdimms: [blank('dax.img', 128 * MIB), blank('xfs.img', 512 * MIB), blank('nodax.img', 128 * MIB)],
      virtioPmems: [blank('virtio.img', 128 * MIB)],
      disks: [blank('disk.img', 128 * MIB)]
    })
  })
  if (!booted) return
  try {
    const served = await check('media: file systems, and the service over them', async () => {
      await machine.namespaces(3)
      await machine.mount('/dev/pmem0', 'dax', { options: 'dax', mkfs: '' })
      await machine.mount('/dev/pmem1', 'xfs', { type: 'xfs', options: 'dax=always', mkfs: '-m reflink=0' })
      await machine.mount('/dev/pmem2', 'nodax', { mkfs: '' })
      await machine.mount('/dev/pmem3', 'virtio', { options: 'dax', mkfs: '' })
      await machine.mount('/dev/vda', 'disk', { mkfs: '' })
      await machine.serve(Object.keys(VOLUMES), { bundled: false })
    })
    if (!served) return
    for (const [name, expected] of Object.entries(VOLUMES)) {
      await check(`${name}: ${expected.fileSystem}, ${expected.granularity}, ${expected.persistence}`, () => tells(machine, name, expected))
      await check(`${name}: a set that requires cache_line`, () => asks(machine, name, expected))
      await check(`${name}: map, coalesce, look up, write, persist, read back, remove`, () => mainJob(machine, name, expected))
      await check(`${name}: content, memset, memcpy, memmove, punch, atomic, batch`, () => dataPlane(machine, name, expected))
    }
    for (const name of FINE) {
      await check(`${name}: full`, () => isFull(machine, name))
      await check(`${name}: a hole behind the service's back, on a full file system`, () => hasHole(machine, name))
    }
    await check('media: the service ends in order', () => machine.stop())
  } finally {
    await machine.cut()
  }
}

/** A machine whose CPU caches are in the persistence domain (eADR). */
export async function byte ({ check }) {
  const expected = { granularity: 'byte', persistence: 'persistent', dax: true, fileSystem: 'ext4' }
  let machine
  try {
    const served = await check('byte: boots with nvdimm-persistence=cpu', async () => {
      machine = await Machine.boot({ name: 'byte', modules: ['nfit', 'nd_pmem', 'ext4'], nvdimms: [blank('dax.img', 128 * MIB)], cachesPersist: true })
      await machine.namespaces(1)
      await machine.mount('/dev/pmem0', 'dax', { options: 'dax', mkfs: '' })
      await machine.serve(['dax'])
    })
    if (!served) return
    await check('byte: ext4, byte, persistent', () => tells(machine, 'dax', expected))
    await check('byte: a set that requires cache_line', () => asks(machine, 'dax', expected))
    await check('byte: map, coalesce, look up, write, persist, read back, remove', () => mainJob(machine, 'dax', expected))
    await check('byte: content, memset, memcpy, memmove, punch, atomic, batch', () => dataPlane(machine, 'dax', expected))
    await check('byte: the service ends in order', () => machine.stop())
  } finally {
    await machine?.cut()
  }
}
