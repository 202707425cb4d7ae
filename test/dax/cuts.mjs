// SPDX-License-Identifier: BSD-3-Clause
/*
 * Power cuts: writers over HTTP are being answered when the virtual machine is killed. It boots again from the same media, and every byte
 * that was acknowledged as persisted has to be in the files, on a DAX file system and on a disk behind a page cache: each cut hits both.
 * Of a write that was under way, each aligned word may be the old or the new one, and nothing beside its range may have changed.
 *
 * Three that have to lose, so that it is known that a cut is one and that the comparison can fail: writes of durability `none` behind the
 * page cache; flushed stores to a DAX mapping without MAP_SYNC (control.c); and a model that has been told one byte too many.
 */
import { strict as assert } from 'node:assert'
import { randomBytes } from 'node:crypto'
import { blank, Machine, MIB, program } from './machine.mjs'

const PART = MIB
const CUTS = 10
const WRITERS = 3 // on each volume
const WRITE_BYTES_MAX = 40_000
const ACKNOWLEDGED_MIN = 10 // on each volume and of each kind, before the cut
const WRITING_MS = [1000, 2500]
const WORD = 8
const NEW_FILE = 65_536

const MODULES = ['nfit', 'nd_pmem', 'virtio_blk', 'ext4']
const VOLUMES = { dax: 'cache_line', disk: 'page' }

/** A generator of 32 bits each (mulberry32): a failure is told with its seed. */
function generator (seed) {
  let state = seed
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let word = Math.imul(state ^ (state >>> 15), 1 | state)
    word = (word + Math.imul(word ^ (word >>> 7), 61 | word)) ^ word
    return (word ^ (word >>> 14)) >>> 0
  }
  return (below) => next() % below
}

/** What is known of one file: the bytes that were acknowledged, and at most one write that is under way. */
class Known {
  bytes
  pending

  constructor (size) { this.bytes = Buffer.alloc(size) }

  acknowledge () {
    this.pending.bytes.copy(this.bytes, this.pending.at)
    this.pending = undefined
  }

  /** Where the file has something that cannot be: undefined if it is as it should be, and then that is what is known of it. */
  wrongAt (found) {
    if (found.length !== this.bytes.length) return Math.min(found.length, this.bytes.length)
    const { at = 0, bytes = Buffer.alloc(0) } = this.pending ?? {}
    const written = Buffer.from(this.bytes)
    bytes.copy(written, at)
    for (let word = 0; word < found.length; word += WORD) {
      const is = (model) => found.compare(model, word, word + WORD, word, word + WORD) === 0
      if (!is(this.bytes) && !is(written)) return word
    }
    found.copy(this.bytes)
    this.pending = undefined
    return undefined
  }
}

/** Everything that was said to the service and what it answered, over all cuts. */
class World {
  random
  volumes = Object.fromEntries(Object.keys(VOLUMES).map((name) => [name, { files: new Map(), writes: 0, created: 0 }]))
  /** Written with durability `none` on the disk. */
  loose = new Known(PART)
  looseWrites = 0
  looseLost = 0
  round = 0

  constructor (seed) { this.random = generator(seed) }

  some (from, to) { return from + this.random(to - from) }
}

/* ---- writing ---- */

const paths = (volume) => Array.from({ length: WRITERS }, (_, i) => `${volume}.${i}`)

async function open (machine, world) {
  for (const [volume, granularity] of Object.entries(VOLUMES)) {
    await machine.ok('POST', '/sets', { json: { id: volume, requiredGranularity: granularity } })
    for (const path of [...paths(volume), ...(volume === 'disk' ? ['loose'] : [])]) {
      const part = await machine.ok('POST', `/sets/${volume}/parts`, { json: { id: path, source: { type: 'file', volume, path, create: 'if_needed' }, length: PART } })
      assert.deepEqual([part.granularity, part.persistence], [granularity, 'persistent'])
      if (path !== 'loose' && !world.volumes[volume].files.has(path)) world.volumes[volume].files.set(path, new Known(PART))
    }
  }
}

/** One write; what is answered is known from then on. */
async function write (machine, world, volume, path, known, durability) {
  const length = world.random(4) === 0 ? world.some(1, WRITE_BYTES_MAX) : world.some(1, 200)
  known.pending = { at: world.random(known.bytes.length - length + 1), bytes: randomBytes(length) }
  const { at, bytes } = known.pending
  const wrote = await machine.ok('PUT', `/sets/${volume}/parts/${path}/content?offset=${at}&durability=${durability}`, { bytes })
  assert.equal(wrote.durability, durability)
  known.acknowledge()
}

/** A file that is made, written to and, as a part, removed again: it stays, with what it has. */
async function create (machine, world, volume) {
  const path = `new-${world.round}-${world.volumes[volume].created}`
  await machine.ok('POST', `/sets/${volume}/parts`, { json: { id: path, source: { type: 'file', volume, path, create: 'exclusive' }, length: NEW_FILE } })
  const known = new Known(NEW_FILE)
  world.volumes[volume].files.set(path, known)
  world.volumes[volume].created++
  await write(machine, world, volume, path, known, 'persisted')
  await machine.ok('DELETE', `/sets/${volume}/parts/${path}`)
}

/** Has everybody write until the power fails. */
async function writeAndCut (machine, world, last) {
  const now = { writing: true, loose: 0 }
  const failures = []
  const again = async (work) => {
    while (now.writing) {
      try {
        await work()
      } catch (error) {
        if (now.writing) { failures.push(error); return } // once the power is gone, no answer is the only one
      }
    }
  }
  const counts = []
  const everybody = Object.entries(world.volumes).flatMap(([volume, state]) => {
    const count = { volume, writes: 0, created: 0 }
    counts.push(count)
    return [
      ...paths(volume).map((path) => again(async () => { await write(machine, world, volume, path, state.files.get(path), 'persisted'); count.writes++ })),
      again(async () => { await create(machine, world, volume); count.created++ })
    ]
  })
  everybody.push(again(async () => { await write(machine, world, 'disk', 'loose', world.loose, 'none'); now.loose++ }))
  const until = Date.now() + world.some(...WRITING_MS)
  while (failures.length === 0 && (Date.now() < until || [now.loose, ...counts.map(({ writes }) => writes)].some((count) => count < ACKNOWLEDGED_MIN) || counts.some(({ created }) => created === 0))) {
    await new Promise((resolve) => setTimeout(resolve, world.some(1, 30)))
  }
  await last()
  now.writing = false
  await machine.cut()
  await Promise.all(everybody)
  if (failures.length > 0) throw failures[0]
  for (const { volume, writes } of counts) world.volumes[volume].writes += writes
  world.looseWrites += now.loose
}

/* ---- comparing ---- */

async function boot (world, { nvdimms, disks }) {
  const machine = await Machine.boot({ name: 'cuts', modules: MODULES, nvdimms, disks })
  try {
    const first = world.round === 0
    if (first) await machine.namespaces(nvdimms.length)
    const mkfs = first ? '' : undefined
    await machine.mount('/dev/pmem0', 'dax', { options: 'dax', mkfs })
    await machine.mount('/dev/pmem1', 'control', { options: 'dax', mkfs })
    await machine.mount('/dev/vda', 'disk', { mkfs })
  } catch (error) {
    await machine.cut()
    throw error
  }
  return machine
}

/** The files as they are on the media, past the service, which does not run yet. */
async function compare (machine, world) {
  for (const [volume, { files }] of Object.entries(world.volumes)) {
    for (const [path, known] of files) {
      const found = await machine.file(`${volume}/${path}`)
      const at = known.wrongAt(found)
      assert.equal(at, undefined, `${volume}/${path}: lost at ${at} of ${known.bytes.length}; has ${found.subarray(at, at + 32).toString('hex')}, acknowledged is ${known.bytes.subarray(at, at + 32).toString('hex')}`)
      // Told of a byte that was not written, it would say so.
      known.bytes[0] ^= 1
      assert.equal(known.wrongAt(found), 0)
      known.bytes[0] ^= 1
      if (!paths(volume).includes(path)) files.delete(path) // once is enough for those that nobody writes to any more
    }
  }
  const loose = await machine.file('disk/loose')
  if (world.loose.wrongAt(loose) !== undefined) {
    world.looseLost++
    world.loose = new Known(PART)
    loose.copy(world.loose.bytes)
  }
}

/* ---- all ---- */

export async function cuts ({ check }) {
  const seed = Number(process.env.SEED ?? randomBytes(4).readUInt32LE())
  const world = new World(seed)
  const control = program('control')
  const media = { nvdimms: [blank('cuts-dax.img', 128 * MIB), blank('cuts-control.img', 64 * MIB)], disks: [blank('cuts-disk.img', 128 * MIB)] }
  let machine
  try {
    for (; world.round <= CUTS; world.round++) {
      const good = await check(`cuts: ${world.round === 0 ? 'the first boot' : `after cut ${world.round} of ${CUTS}, every acknowledged byte`} (seed ${seed})`, async () => {
        machine = await boot(world, media)
        if (world.round > 0) await compare(machine, world)
        if (world.round === 1) {
          await check('cuts: control: flushed through MAP_SYNC is there', async () => { assert.deepEqual(await machine.file('control/sync'), Buffer.alloc(NEW_FILE, 's')) })
          await check('cuts: control: flushed, but without MAP_SYNC, is lost', async () => { assert.deepEqual(await machine.file('control/plain'), Buffer.alloc(NEW_FILE)) })
        }
        if (world.round === CUTS) return
        await machine.serve(Object.keys(VOLUMES))
        await open(machine, world)
        await writeAndCut(machine, world, async () => {
          if (world.round === 0) await machine.must(`${control} sync /mnt/control/sync s; ${control} plain /mnt/control/plain p`)
        })
      })
      if (!good) return
    }
    await check('cuts: control: durability none behind a page cache is lost', async () => { assert.ok(world.looseLost > 0, `${world.looseWrites} writes, nothing lost in ${CUTS} cuts`) })
    for (const [volume, { writes, created }] of Object.entries(world.volumes)) console.log(`${volume}: ${CUTS} cuts, ${writes} writes and ${created} new files were acknowledged, nothing of them was lost`)
    console.log(`disk: ${world.looseWrites} writes of durability none, lost by ${world.looseLost} of ${CUTS} cuts`)
  } finally {
    await machine?.cut()
  }
}
