// SPDX-License-Identifier: BSD-3-Clause
/*
 * What a disk has at each flush. The service works on a disk whose writes dm-log-writes keeps in their order, with a mark behind each answer.
 * Then the log is replayed to every flush, and to every mark, by which only what had been flushed is on the disk: what each answer promised
 * has to be there, in the files and, once the service has started on them, in its sets and parts. kill -9 cannot find a flush that is
 * missing, since the page cache survives it; nor can a cut of the emulator, since what it has written to its disk stays.
 *
 * The replayed disks are mounted on this machine, which takes root and a loop device, and the service runs on each.
 */
import { strict as assert } from 'node:assert'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { blank, BUNDLE, freePort, Machine, MIB, WORK } from './machine.mjs'

const DISK = 64 * MIB
const LOG = 512 * MIB
const KIB64 = 65_536
const WORD = 8
const WHOLE_AT = [8000, 20_000, 40_956] // the last one is in two pages
const START_SECONDS_MAX = 60

// The log as the kernel has it (drivers/md/dm-log-writes.c): a sector for itself, then an entry of a sector and the data that it is about.
const MAGIC = 0x6a736677736872n
const FLAGS = { flush: 1n, fua: 2n, discard: 4n, mark: 8n }

/* ---- what is done, and what it leaves ---- */

/** `do` is answered when what `then` says of the files and parts is durable; a `loose` one promises nothing, a `whole` one that files have all of it or nothing once the service has started. */
const set = '/sets/s'
const part = (id, path, fields = {}, source = {}) => ({ json: { id, source: { type: 'file', path, ...source }, ...fields } })
const content = (id, offset, durability = 'persisted') => `${set}/parts/${id}/content?offset=${offset}&durability=${durability}`
const base64 = (text) => Buffer.from(text).toString('base64')
const whole = (text) => ({
  name: `batch of atomicity all, ${text}`,
  whole: true,
  do: async (m) => {
    const addresses = await Promise.all(['a', 'c'].map(async (id) => (await m.ok('GET', `${set}/parts/${id}`)).addr))
    const operations = addresses.flatMap((addr) => WHOLE_AT.map((at) => ({ op: 'write', addr: `0x${(BigInt(addr) + BigInt(at)).toString(16)}`, data: base64(text) })))
    await m.ok('POST', `${set}/batch`, { json: { operations, atomicity: 'all' } })
  },
  then: ({ files }) => { for (const path of ['a', 'c']) for (const at of WHOLE_AT) files.get(path).write(text, at) }
})
const STEPS = [
  { name: 'make a set', do: (m) => m.ok('POST', '/sets', { json: { id: 's', requiredGranularity: 'page', coalescing: 'full' } }) },
  ...['a', 'b'].map((id) => (
    { name: `create ${id}`, do: (m) => m.ok('POST', `${set}/parts`, part(id, id, { length: KIB64 }, { create: 'exclusive' })), then: ({ files, parts }) => { files.set(id, Buffer.alloc(KIB64)); parts.push(id) } }
  )),
  { name: 'write', do: (m) => m.ok('PUT', content('a', 100), { bytes: Buffer.alloc(3000, 'w') }), then: ({ files }) => { files.get('a').fill('w', 100, 3100) } },
  {
    name: 'grow a',
    do: (m) => m.ok('POST', `${set}/parts`, part('a2', 'a', { offset: KIB64, length: KIB64 }, { grow: true })),
    then: ({ files, parts }) => { files.set('a', Buffer.concat([files.get('a'), Buffer.alloc(KIB64)])); parts.push('a2') }
  },
  { name: 'write to what has grown', do: (m) => m.ok('PUT', content('a2', KIB64 - 70), { bytes: Buffer.alloc(70, 'g') }), then: ({ files }) => { files.get('a').fill('g', 2 * KIB64 - 70) } },
  { name: 'write to b, with durability none', loose: true, do: (m) => m.ok('PUT', content('b', 0, 'none'), { bytes: Buffer.alloc(KIB64, 'n') }), then: ({ files }) => { files.get('b').fill('n') } },
  {
    name: 'persist b',
    do: async (m) => {
      const { addr, length } = await m.ok('GET', `${set}/parts/b`)
      await m.ok('POST', `${set}/persist`, { json: { ranges: [{ addr, length }] } })
    }
  },
  {
    name: 'batch',
    do: async (m) => {
      const { addr } = await m.ok('GET', `${set}/parts/a`)
      await m.ok('POST', `${set}/batch`, { json: { operations: [{ op: 'write', addr, data: base64('batched!') }, { op: 'add', addr, value: '0x1' }] } })
    },
    then: ({ files }) => { files.get('a').write('catched!') } // the first letter, and one
  },
  { name: 'remove b', do: (m) => m.ok('DELETE', `${set}/parts/b`), then: ({ parts }) => { parts.splice(parts.indexOf('b'), 1) } },
  { name: 'create c where b was', do: (m) => m.ok('POST', `${set}/parts`, part('c', 'c', { length: KIB64 }, { create: 'exclusive' })), then: ({ files, parts }) => { files.set('c', Buffer.alloc(KIB64)); parts.push('c') } },
  // The first one makes the log. The last write is to bytes that the batches had, which must not come back.
  whole('at first'), whole('then this'), whole('and that'),
  { name: 'write where the batches were', do: (m) => m.ok('PUT', content('c', 8000), { bytes: Buffer.alloc(2 * WORD, 'p') }), then: ({ files }) => { files.get('c').fill('p', 8000, 8000 + 2 * WORD) } },
  { name: 'delete the set', do: (m) => m.ok('DELETE', set), then: ({ parts }) => { parts.splice(0) } }
]

async function work (machine) {
  const states = [{ files: new Map(), parts: [], addresses: {} }]
  const mark = (i) => machine.must(`dmsetup message logged 0 mark step-${i}`)
  await mark(0)
  for (const [i, step] of STEPS.entries()) {
    await step.do(machine)
    await mark(i + 1)
    const last = states.at(-1)
    const state = { files: new Map([...last.files].map(([path, bytes]) => [path, Buffer.from(bytes)])), parts: [...last.parts], addresses: { ...last.addresses } }
    step.then?.(state)
    if (state.parts.length > 0) for (const { id, addr } of (await machine.ok('GET', `${set}/parts`)).items) state.addresses[id] = addr
    states.push(state)
  }
  return states
}

/* ---- the log ---- */

/** What was written, in order: `flushed` where the disk had been told to keep all that comes before. */
function * entries (file) {
  const fd = fs.openSync(file, 'r')
  const read = (at, length) => { const bytes = Buffer.alloc(length); fs.readSync(fd, bytes, 0, length, at); return bytes }
  const head = read(0, 32)
  assert.equal(head.readBigUInt64LE(0), MAGIC)
  const count = Number(head.readBigUInt64LE(16))
  const sector = head.readUInt32LE(24)
  let at = sector
  for (let i = 0; i < count; i++) {
    const entry = read(at, sector)
    const [where, sectors, flags, length] = [0, 8, 16, 24].map((offset) => entry.readBigUInt64LE(offset))
    at += sector
    if ((flags & FLAGS.mark) !== 0n) { yield { mark: entry.subarray(32, 32 + Number(length)).toString().replace(/\0+$/, '') }; continue }
    const isDiscard = (flags & FLAGS.discard) !== 0n
    const size = Number(sectors) * sector
    yield { at: Number(where) * sector, bytes: isDiscard ? Buffer.alloc(size) : read(at, size), flushed: (flags & (FLAGS.flush | FLAGS.fua)) !== 0n }
    if (!isDiscard) at += size
  }
  fs.closeSync(fd)
}

/* ---- one disk ---- */

/** What a file has is of the one state or, word by word, of the next; one that grows may have either length. */
function isBetween (found, before, after) {
  if (found.length !== before.length && found.length !== after.length) return false
  for (let word = 0; word < found.length; word += WORD) {
    const is = (model) => found.compare(model, word, Math.min(word + WORD, model.length), word, word + WORD) === 0
    if (!is(before) && !is(after) && !(word >= before.length && found.subarray(word, word + WORD).every((byte) => byte === 0))) return false
  }
  return true
}

function compareFiles (dir, before, after) {
  for (const [path, bytes] of before.files) {
    const found = fs.readFileSync(join(dir, path))
    assert.ok(isBetween(found, bytes, after.files.get(path)), `${path}: ${found.length} bytes, ${found.subarray(0, 16).toString('hex')} ...`)
  }
}

const has = (dir, { files }) => [...files].every(([path, bytes]) => fs.readFileSync(join(dir, path)).equals(bytes))

/**
 * Sets and parts as a service finds them that starts there: of the one state or of the next. And what a batch under way has become by then. Answers
 * whether the start has made it whole.
 */
async function compareParts (dir, before, after, isWhole) {
  const wasThere = isWhole && has(dir, after)
  const port = await freePort()
  // What the caller's shell sets for a server of its own must not reach this one.
  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PMEMSETD_')))
  const child = spawn(process.execPath, [BUNDLE], { env: { ...clean, PMEMSETD_PORT: String(port), PMEMSETD_VOLUMES: `logged=${dir}` }, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => { said += data })
  const ended = once(child, 'exit')
  try {
    const api = `http://127.0.0.1:${port}`
    const until = Date.now() + START_SECONDS_MAX * 1000
    while (!await fetch(`${api}/readyz`).then(({ ok }) => ok, () => false)) {
      if (child.exitCode !== null || Date.now() > until) throw new Error(`the service does not start: ${said}`)
      await sleep(20)
    }
    if (isWhole) assert.ok(has(dir, before) || has(dir, after), `neither all of the batch nor nothing; ${said}`)
    const reply = await fetch(`${api}${set}/parts`)
    const items = reply.status === 404 ? [] : (await reply.json()).items
    const found = items.map(({ id }) => id).sort().join()
    const state = [before, after].find(({ parts }) => [...parts].sort().join() === found)
    assert.ok(state !== undefined, `parts ${found}; ${said}`)
    for (const { id, addr, state: how } of items) assert.deepEqual([id, addr, how], [id, state.addresses[id] ?? after.addresses[id], 'mapped'], said)
    const files = fs.readdirSync(dir).filter((name) => name !== '.pmemset').sort().join()
    assert.ok([before, after].some((one) => [...one.files.keys()].sort().join() === files), `files ${files}; ${said}`)
    return isWhole && !wasThere && has(dir, after)
  } finally {
    child.kill('SIGKILL')
    await ended
  }
}

async function mounted (image, work) {
  const dir = join(WORK, 'replayed')
  const copy = `${image}.copy`
  fs.mkdirSync(dir, { recursive: true })
  assert.equal(spawnSync('cp', ['--sparse=always', image, copy]).status, 0)
  const mount = spawnSync('mount', ['-o', 'loop', copy, dir], { encoding: 'utf8' })
  assert.equal(mount.status, 0, mount.stderr)
  try {
    return await work(dir)
  } finally {
    spawnSync('umount', [dir])
    fs.rmSync(copy)
  }
}

/* ---- all ---- */

async function replay (log, states, check) {
  const image = blank('logged-replayed.img', DISK)
  const fd = fs.openSync(image, 'r+')
  const points = new Array(states.length).fill(0)
  let step = -1 // how many steps were answered
  let lost = false
  let recovered = 0
  const isGood = async (what) => {
    const before = states[step]
    const after = states[Math.min(step + 1, states.length - 1)]
    try {
      await mounted(image, async (dir) => {
        compareFiles(dir, before, after)
        if (await compareParts(dir, before, after, STEPS[step]?.whole === true || STEPS[step - 1]?.whole === true)) recovered++
      })
    } catch (error) {
      throw new Error(`replayed to ${what}, ${step} steps done, ${STEPS[step]?.name ?? 'the end'} under way: ${error.message}`)
    }
    points[step]++
  }
  await check('logged: everything that was answered, at every flush and at every mark', async () => {
    let number = 0
    for (const entry of entries(log)) {
      number++
      if (entry.mark === undefined) fs.writeSync(fd, entry.bytes, 0, entry.bytes.length, entry.at)
      else if (entry.mark.startsWith('step-')) step = Number(entry.mark.slice(5))
      if (step < 0 || (entry.mark === undefined && !entry.flushed)) continue
      // What was promised nothing may be lost until it is persisted: there, what is compared is what came before.
      if (STEPS[step - 1]?.loose) {
        await mounted(image, (dir) => { lost ||= !fs.readFileSync(join(dir, 'b')).equals(states[step].files.get('b')) })
        states[step] = { ...states[step - 1], files: new Map(states[step - 1].files) }
      }
      await isGood(entry.mark ?? `entry ${number}`)
    }
    assert.ok(points.every((count) => count > 0), `points by step: ${points.join()}`)
  })
  fs.closeSync(fd)
  await check('logged: some batches were made whole by the start', async () => { assert.ok(recovered > 0) })
  await check('logged: control: without a flush it is lost', async () => { assert.ok(lost) })
  console.log(`logged: replayed to ${points.reduce((sum, count) => sum + count, 0)} flushes and marks; by step: ${points.join(' ')}`)
}

export async function logged ({ check, skip }) {
  if (process.getuid() !== 0) { skip('logged', 'mounting what was replayed needs root'); return }
  const log = blank('logged-log.img', LOG)
  let machine
  let states
  try {
    const done = await check('logged: a service at work on a disk that keeps a log', async () => {
      machine = await Machine.boot({ name: 'logged', modules: ['virtio_blk', 'ext4', 'dm-log-writes'], disks: [blank('logged-disk.img', DISK), log] })
      await machine.must(`dmsetup create --noudevsync logged --table '0 ${DISK / 512} log-writes /dev/vda /dev/vdb'; [ -e /dev/mapper/logged ] || dmsetup mknodes`)
      await machine.mount('/dev/mapper/logged', 'logged', { mkfs: '' })
      await machine.serve(['logged'], { env: { PMEMSETD_ATOMIC_BATCH_BYTES_MAX: '1MiB' } }) // all that is written is replayed, again and again
      states = await work(machine)
    })
    if (!done) return
  } finally {
    await machine?.cut()
  }
  await replay(log, states, check)
}
