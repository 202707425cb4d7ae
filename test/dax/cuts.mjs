// SPDX-License-Identifier: BSD-3-Clause
/*
 * Power cuts: writers over HTTP are being answered when the virtual machine is killed. It boots again from the same media, and every byte
 * that was acknowledged as persisted has to be in the files, on a DAX file system and on a disk behind a page cache: each cut hits both.
 * Of a write that was under way, each aligned word may be the old or the new one, and nothing beside its range may have changed. Then the
 * service starts again: every part that was acknowledged is there, at its address, and none that was removed; of a step that was under way
 * there is all or nothing. Batches of atomicity `all` put their number at many places of two files: every place has the same one, that of the last batch
 * that was acknowledged or of the one that was under way. The catalog is on the one medium for half of the cuts, on the other for the rest.
 *
 * Three that have to lose, so that it is known that a cut is one and that the comparison can fail: writes of durability `none` behind the
 * page cache; flushed stores to a DAX mapping without MAP_SYNC (control.c); and a model that has been told one byte too many.
 */
import { strict as assert } from 'node:assert'
import { randomBytes } from 'node:crypto'
import { blank, Machine, MIB, program } from './machine.mjs'

const PART = MIB
const CUTS = 5 // with the catalog on each medium
const WRITERS = 3 // on each volume
const WRITE_BYTES_MAX = 40_000
const ACKNOWLEDGED_MIN = 10 // on each volume and of each kind, before the cut
const WRITING_MS = [1000, 2500]
const WORD = 8
const NEW_FILE = 65_536
const PAIR = ['first', 'second'] // that batches write to
const PLACES = [4, 4092, 8188, 20_000, 40_956, NEW_FILE - WORD] // some of them across pages

const MODULES = ['nfit', 'nd_pmem', 'virtio_blk', 'ext4']
const GRANULARITIES = { dax: 'cache_line', disk: 'page' }
const ORDERS = [['dax', 'disk'], ['disk', 'dax']] // the catalog is on the first volume

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

/** What was said to the service of one volume, and what it answered. */
class Volume {
  files = new Map() // path → Known; of those that nobody writes to any more until they were compared
  parts = new Map() // id → where and how long
  adding // the id of a part for which there is no answer yet
  removing
  batch = 0 // the number of the last one that was acknowledged
  writes = 0
  created = 0
  constructor (name) { this.name = name }
}

/** The same of all volumes, over all cuts. */
class World {
  loose = new Known(PART) // written with durability `none` on the disk
  looseWrites = 0
  looseLost = 0
  round = 0

  constructor (seed, order) {
    this.random = generator(seed)
    this.volumes = order.map((name) => new Volume(name))
  }

  some (from, to) { return from + this.random(to - from) }
}

/* ---- writing ---- */

const paths = ({ name }) => Array.from({ length: WRITERS }, (_, i) => `${name}.${i}`)

async function map (machine, volume, path, create, length) {
  volume.adding = path
  const part = await machine.ok('POST', `/sets/${volume.name}/parts`, { json: { id: path, source: { type: 'file', volume: volume.name, path, create }, length } })
  assert.deepEqual([part.granularity, part.persistence], [GRANULARITIES[volume.name], 'persistent'])
  volume.adding = undefined
  volume.parts.set(path, { addr: part.addr, length })
}

async function open (machine, { volumes }) {
  for (const volume of volumes) {
    await machine.ok('POST', '/sets', { json: { id: volume.name, requiredGranularity: GRANULARITIES[volume.name] } })
    for (const path of paths(volume)) {
      await map(machine, volume, path, 'exclusive', PART)
      volume.files.set(path, new Known(PART))
    }
    for (const path of PAIR) await map(machine, volume, path, 'exclusive', NEW_FILE)
    if (volume.name === 'disk') await map(machine, volume, 'loose', 'exclusive', PART)
  }
}

/** One write; what is answered is known from then on. */
async function write (machine, world, volume, path, known, durability) {
  const length = world.random(4) === 0 ? world.some(1, WRITE_BYTES_MAX) : world.some(1, 200)
  known.pending = { at: world.random(known.bytes.length - length + 1), bytes: randomBytes(length) }
  const { at, bytes } = known.pending
  const wrote = await machine.ok('PUT', `/sets/${volume.name}/parts/${path}/content?offset=${at}&durability=${durability}`, { bytes })
  assert.equal(wrote.durability, durability)
  known.acknowledge()
}

/** A file that is made, written to and, every other time, as a part removed again: the file stays, with what it has. */
async function create (machine, world, volume) {
  const path = `new-${world.round}-${volume.created}`
  await map(machine, volume, path, 'exclusive', NEW_FILE)
  const known = new Known(NEW_FILE)
  volume.files.set(path, known)
  volume.created++
  await write(machine, world, volume, path, known, 'persisted')
  if (world.random(2) === 0) return
  volume.removing = path
  await machine.ok('DELETE', `/sets/${volume.name}/parts/${path}`)
  volume.removing = undefined
  volume.parts.delete(path)
}

const places = ({ parts }) => PAIR.flatMap((path) => PLACES.map((at) => `0x${(BigInt(parts.get(path).addr) + BigInt(at)).toString(16)}`))

async function batch (machine, volume) {
  const data = Buffer.alloc(WORD)
  data.writeBigUInt64LE(BigInt(volume.batch + 1))
  const operations = places(volume).map((addr) => ({ op: 'write', addr, data: data.toString('base64') }))
  await machine.ok('POST', `/sets/${volume.name}/batch`, { json: { operations, atomicity: 'all' } })
  volume.batch++
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
  const counts = world.volumes.map(({ writes, created, batch }) => ({ writes, created, batch }))
  const everybody = world.volumes.flatMap((volume) => [
    ...paths(volume).map((path) => again(async () => { await write(machine, world, volume, path, volume.files.get(path), 'persisted'); volume.writes++ })),
    again(() => create(machine, world, volume)),
    again(() => batch(machine, volume))
  ])
  const disk = world.volumes.find(({ name }) => name === 'disk')
  everybody.push(again(async () => { await write(machine, world, disk, 'loose', world.loose, 'none'); now.loose++ }))
  const enough = () => now.loose >= ACKNOWLEDGED_MIN &&
    world.volumes.every(({ writes, created, batch }, i) => writes >= counts[i].writes + ACKNOWLEDGED_MIN && created > counts[i].created && batch >= counts[i].batch + ACKNOWLEDGED_MIN)
  const until = Date.now() + world.some(...WRITING_MS)
  while (failures.length === 0 && (Date.now() < until || !enough())) {
    await new Promise((resolve) => setTimeout(resolve, world.some(1, 30)))
  }
  if (failures.length === 0) await last()
  now.writing = false
  const log = failures.length === 0 ? '' : await machine.log().catch(String)
  await machine.cut()
  await Promise.all(everybody)
  if (failures.length > 0) throw new Error(`${failures.length} of the writers failed; the service's log: ${log}`, { cause: failures[0] })
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

function same (found, known, what) {
  const at = known.wrongAt(found)
  assert.equal(at, undefined, `${what}: lost at ${at} of ${known.bytes.length}; has ${found.subarray(at, at + 32).toString('hex')}, acknowledged is ${known.bytes.subarray(at, at + 32).toString('hex')}`)
}

/** The files as they are on the media, past the service, which does not run yet. */
async function compareFiles (machine, world) {
  for (const volume of world.volumes) {
    for (const [path, known] of volume.files) {
      const found = await machine.file(`${volume.name}/${path}`)
      same(found, known, `${volume.name}/${path}`)
      // Told of a byte that was not written, it would say so.
      known.bytes[0] ^= 1
      assert.equal(known.wrongAt(found), 0)
      known.bytes[0] ^= 1
      if (!paths(volume).includes(path)) volume.files.delete(path)
    }
  }
  const loose = await machine.file('disk/loose')
  if (world.loose.wrongAt(loose) !== undefined) {
    world.looseLost++
    world.loose = new Known(PART)
    loose.copy(world.loose.bytes)
  }
}

/** What the service has of sets and parts after its start, and what it reads there. */
async function compareParts (machine, volume) {
  const { items, nextCursor } = await machine.ok('GET', `/sets/${volume.name}/parts?limit=1000`)
  assert.equal(nextCursor, undefined)
  assert.ok(items.every(({ state, granularity }) => state === 'mapped' && granularity === GRANULARITIES[volume.name]), JSON.stringify(items.find(({ state }) => state !== 'mapped')))
  const found = new Map(items.map(({ id, addr, length }) => [id, { addr, length }]))
  const { adding, removing } = volume
  if (adding !== undefined && found.has(adding)) {
    volume.parts.set(adding, found.get(adding))
    assert.deepEqual(await machine.file(`${volume.name}/${adding}`), Buffer.alloc(NEW_FILE))
  } else if (adding !== undefined) {
    assert.equal(await machine.must(`ls /mnt/${volume.name}/${adding} 2>/dev/null || echo none`), 'none', 'what an unfinished step has made is taken away')
  }
  if (removing !== undefined && !found.has(removing)) volume.parts.delete(removing)
  volume.adding = undefined
  volume.removing = undefined
  assert.deepEqual(found, new Map([...volume.parts].sort(([, a], [, b]) => Number(BigInt(a.addr) - BigInt(b.addr)))))
  for (const [path, known] of volume.files) {
    const { addr, length } = found.get(path)
    same(await machine.ok('GET', `/sets/${volume.name}/memory?addr=${addr}&length=${length}`), known, `${volume.name}/${path}, through the service`)
  }
}

async function compareBatches (machine, volume) {
  const { results } = await machine.ok('POST', `/sets/${volume.name}/batch`, { json: { operations: places(volume).map((addr) => ({ op: 'read', addr, length: WORD })) } })
  const found = results.map(({ data }) => Number(Buffer.from(data, 'base64').readBigUInt64LE()))
  assert.ok(found.every((number) => number === found[0]) && [volume.batch, volume.batch + 1].includes(found[0]), `${volume.name}: batch ${volume.batch} was acknowledged; found ${found.join(' ')}`)
  volume.batch = found[0]
}

/* ---- all ---- */

async function chain ({ check }, seed, order, control) {
  const world = new World(seed, order)
  const media = { nvdimms: [blank('cuts-dax.img', 128 * MIB), blank('cuts-control.img', 64 * MIB)], disks: [blank('cuts-disk.img', 128 * MIB)] }
  const where = `cuts, catalog on ${order[0]}`
  let machine
  try {
    for (; world.round <= CUTS; world.round++) {
      const good = await check(`${where}: ${world.round === 0 ? 'the first boot' : `after cut ${world.round} of ${CUTS}, every acknowledged byte, part and address`} (SEED=${seed})`, async () => {
        machine = await boot(world, media)
        if (world.round > 0) await compareFiles(machine, world)
        if (world.round === 1) {
          await check(`${where}: control: flushed through MAP_SYNC is there`, async () => { assert.deepEqual(await machine.file('control/sync'), Buffer.alloc(NEW_FILE, 's')) })
          await check(`${where}: control: flushed, but without MAP_SYNC, is lost`, async () => { assert.deepEqual(await machine.file('control/plain'), Buffer.alloc(NEW_FILE)) })
        }
        await machine.serve(order)
        if (world.round === 0) await open(machine, world)
        for (const volume of world.round === 0 ? [] : world.volumes) {
          await compareParts(machine, volume)
          await compareBatches(machine, volume)
        }
        if (world.round === CUTS) return
        await writeAndCut(machine, world, async () => {
          if (world.round === 0) await machine.must(`${control} sync /mnt/control/sync s; ${control} plain /mnt/control/plain p`)
        })
      })
      if (!good) return
    }
    await check(`${where}: control: durability none behind a page cache is lost`, async () => { assert.ok(world.looseLost > 0, `${world.looseWrites} writes, nothing lost in ${CUTS} cuts`) })
    for (const { name, writes, created, batch } of world.volumes) console.log(`${name}: ${CUTS} cuts, ${writes} writes, ${batch} batches and ${created} new parts were acknowledged, nothing of them was lost`)
    console.log(`disk: ${world.looseWrites} writes of durability none, lost by ${world.looseLost} of ${CUTS} cuts`)
  } finally {
    await machine?.cut()
  }
}

export async function cuts (report) {
  const seed = Number(process.env.SEED ?? randomBytes(4).readUInt32LE())
  const control = program('control')
  for (const order of ORDERS) await chain(report, seed, order, control)
}
