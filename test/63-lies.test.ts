// SPDX-License-Identifier: BSD-3-Clause
// A medium that lies: what was mapped is truncated, replaced, unlinked, forbidden, read-only or gone, while it is read and written. Each access is done or
// refused, nothing is left behind, and after a restart each part that is not there any more says so, and can be had again. (Flushes that fail: 38-remembered.)
import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, cpSync, readFileSync, renameSync, rmSync, truncateSync } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { basename, join } from 'node:path'
import t, { type Test } from 'tap'
import type { Part } from '../src/schemas.js'
import { cannotLoop, cannotMount, ext4, mounted, tmpfs } from './media.js'
import { folder, held, kill, must, send, serving, type Json } from './process.js'
import { makeFile, MIB, PAGE, plus } from './service.js'

const LENGTH = 8 * MIB
const CUT = LENGTH / 2

interface Lie {
  name: string
  skip?: string | false
  /** Where the second volume is. */
  volume: (t: Test, place: string) => string
  /** Of the file `f` in it, while it is mapped. */
  tell: (dir: string, path: string) => void
  /** Whether its bytes are still to be had, all of them. */
  whole: boolean
  /** The codes of a store that is to be durable, and of removal; none: it works. */
  stores: Array<string | undefined>
  /** What becomes of its part at the next start; none: it is there. */
  problem?: string
  /** Between two runs of the service. */
  meanwhile?: (dir: string, path: string) => void
  /** Makes it good, while the service runs; and whether what is there then has to be adopted, and what it has in its first byte. */
  mend: (dir: string, path: string) => void
  adopt?: true
  /** A flush has failed meanwhile, which is not forgotten. */
  degraded?: true
}

const inFolder = (_t: Test, place: string): string => join(place, 'second')
const onDisk = (t: Test, place: string): string => ext4(t, join(place, 'image'), { size: 48 * MIB, more: ['-J', 'size=4'] })

const LIES: Lie[] = [
  { name: 'truncated', volume: inFolder, tell: (_dir, path) => { truncateSync(path, CUT) }, whole: false, stores: [undefined], problem: 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', mend: (_dir, path) => { truncateSync(path, LENGTH) } },
  { name: 'replaced by another', volume: inFolder, tell: (_dir, path) => { cpSync(path, `${path}.new`); renameSync(`${path}.new`, path) }, whole: true, stores: [undefined], problem: 'SOURCE_REPLACED', mend: () => {}, adopt: true },
  { name: 'unlinked', volume: inFolder, tell: (_dir, path) => { cpSync(path, `${path}.copy`); rmSync(path) }, whole: true, stores: [undefined], problem: 'PMEMSET_E_INVALID_SOURCE_PATH', mend: (_dir, path) => { renameSync(`${path}.copy`, path) }, adopt: true },
  { name: 'its mode is read-only', volume: inFolder, tell: (_dir, path) => { chmodSync(path, 0o444) }, whole: true, stores: [undefined], mend: () => {} },
  // That it cannot be written to, root is told by the attribute only.
  { name: 'made immutable', skip: cannotLoop, volume: onDisk, tell: (_dir, path) => { execFileSync('chattr', ['+i', path]) }, whole: true, stores: [undefined, 'EPERM'], problem: 'EPERM', mend: (_dir, path) => { execFileSync('chattr', ['-i', path]) } },
  {
    name: 'its volume becomes read-only, as after an error of the disk',
    skip: cannotLoop,
    volume: onDisk,
    tell: (dir) => { execFileSync('mount', ['-o', 'remount,abort', dir]) },
    whole: true,
    stores: ['PERSIST_FAILED', 'SET_DEGRADED', 'EROFS', 'EIO'],
    meanwhile: mountedAnew,
    problem: 'EROFS',
    degraded: true,
    mend: (dir) => { execFileSync('mount', ['-o', 'remount,rw', dir]) }
  },
  {
    name: 'its volume is unmounted lazily',
    skip: cannotMount,
    volume: (t, place) => {
      const dir = join(place, 'second')
      const [program = '', ...args] = tmpfs('32m')(dir)
      execFileSync(program, args)
      t.teardown(() => { spawnSync('umount', ['-l', dir]) })
      return dir
    },
    tell: (dir) => { cpSync(join(dir, 'f'), join(dir, '..', 'copy')); execFileSync('umount', ['-l', dir]) },
    whole: true,
    stores: [undefined],
    problem: 'PMEMSET_E_INVALID_SOURCE_PATH',
    mend: (dir, path) => { renameSync(join(dir, '..', 'copy'), path) },
    adopt: true
  }
]

/** Mounted anew, and read-only, as by an operator who looks after it. */
function mountedAnew (dir: string): void {
  const device = execFileSync('findmnt', ['-no', 'SOURCE', dir], { encoding: 'utf8' }).trim()
  const image = readFileSync(`/sys/block/${basename(device)}/loop/backing_file`, 'utf8').trim()
  execFileSync('umount', [dir])
  // At once read-only, its device would be so for good.
  execFileSync('mount', ['-o', 'loop,noatime', image, dir])
  execFileSync('mount', ['-o', 'remount,ro', dir])
}

/** The first byte that a batch has read. */
const read = (json: Json): string => Buffer.from(String(json.results[0].data), 'base64').toString()

for (const { name, skip = false, volume, tell, whole, stores, problem, meanwhile = () => {}, mend, adopt, degraded } of LIES) {
  t.test(name, { skip }, async (t) => {
    const place = folder(t, 'data', 'second')
    const dir = volume(t, place)
    const env = { PMEMSETD_VOLUMES: `default=./data,second=${dir}` }
    const path = makeFile(dir, 'f', Buffer.alloc(LENGTH, 'f'))
    let served = await serving(t, place, env)
    await must(served, 'POST', '/sets', { id: 's', requiredGranularity: 'page' })
    const { addr: other } = await must(served, 'POST', '/sets/s/parts', { id: 'other', source: { type: 'file', path: 'other', create: 'if_needed' }, length: PAGE }) as Part
    const map = async (id: string): Promise<string> => (await must(served, 'POST', '/sets/s/parts', { id, source: { type: 'file', volume: 'second', path: 'f' } }) as Part).addr
    const addr = await map('f')
    await must(served, 'POST', '/sets/s/memset', { addr, length: 1, value: '0x66' })
    execFileSync('sync', ['-f', dir])
    const before = held(served)
    await map('removed')
    const end = plus(addr, LENGTH - PAGE)
    /** Does it, or says with one of these codes that it does not. */
    const either = async (method: string, url: string, body: object | undefined, codes: readonly unknown[]): Promise<boolean> => {
      const { status, json } = await send(served, method, url, body)
      t.ok(status < 300 ? codes.includes(undefined) : codes.includes(json.code), `${method} ${url}: ${status} ${json?.code ?? ''}`)
      return status < 300
    }

    // In flight: a download that is not taken, and an upload of which the other half is to come.
    const download = request(`${served.address}/sets/s/memory?addr=${addr}&length=${LENGTH}`, { agent: false })
    download.end()
    const [reply] = await once(download, 'response') as [IncomingMessage]
    const upload = request(`${served.address}/sets/s/memory?addr=${end}`, { method: 'PUT', agent: false, headers: { 'content-length': 8 } })
    upload.write('ffff')
    tell(dir, path)
    upload.end('ffff')
    const [answer] = await once(upload, 'response') as [IncomingMessage]
    const text = await answer.toArray().then((chunks) => Buffer.concat(chunks).toString())
    const told = answer.statusCode === 200 ? undefined : String((JSON.parse(text)).code)
    t.ok((whole ? stores : ['PMEMSET_E_IO_FAIL']).includes(told), `the upload: ${text}`)
    let bytes = 0
    const cut = await reply.forEach((chunk: Buffer) => { bytes += chunk.length }).then(() => false, () => true)
    t.same([cut, bytes === LENGTH], [!whole, whole], `the download: ${bytes} bytes`)

    // And from then on.
    t.match(await must(served, 'GET', `/sets/s/maps?addr=${end}`), { items: [{ addr, part: { id: 'f' } }] })
    const last = await send(served, 'POST', '/sets/s/batch', { operations: [{ op: 'read', addr: end, length: 1 }] })
    t.match(last, whole ? { status: 200 } : { status: 500, json: { code: 'PMEMSET_E_IO_FAIL', reason: 'truncated' } })
    if (whole) t.equal(read(last.json), 'f')
    const fails = whole ? stores : ['PMEMSET_E_IO_FAIL']
    for (const value of ['0x66', '0x66']) await either('POST', '/sets/s/memset', { addr: end, length: PAGE, value }, fails)
    for (const flush of ['persist', 'deep-flush']) await either('POST', `/sets/s/${flush}`, { ranges: [{ addr: end, length: PAGE }] }, fails)
    t.match(await must(served, 'POST', '/sets/s/memset', { addr: other, length: PAGE, value: '0x6f' }), { durability: 'persisted' }, 'what is elsewhere goes on')
    if (await either('DELETE', '/sets/s/parts/removed', undefined, stores)) t.same(held(served), before, 'nothing is left behind')

    await kill(served)
    meanwhile(dir, path)
    served = await serving(t, place, env)
    t.match(await must(served, 'GET', '/sets/s/parts/other'), { state: 'mapped', addr: other })
    t.match(await must(served, 'GET', '/sets/s/parts/f'), { addr, ...(problem === undefined ? { state: 'mapped' } : { state: 'unavailable', problem }) })
    const after = held(served)
    if (problem !== undefined) {
      t.match(await send(served, 'GET', `/sets/s/maps?addr=${end}`), { status: 409, json: { code: 'PART_UNAVAILABLE', problem } })
      t.match(await send(served, 'POST', '/sets/s/memset', { addr, length: 1, value: '0x0' }), { status: 409, json: { code: 'PART_UNAVAILABLE', problem } })
      t.match(await send(served, 'POST', '/sets/s/parts/f/restore', {}), { json: { code: problem } })
      t.same(held(served), after, 'what could not be restored has left nothing behind')
    }
    mend(dir, path)
    t.match(await must(served, 'POST', '/sets/s/parts/f/restore', adopt === undefined ? {} : { adopt }), { state: degraded ? 'degraded' : 'mapped', addr })
    for (const { id } of (await must(served, 'GET', '/sets/s/failures') as { items: Array<{ id: string }> }).items) await must(served, 'POST', `/sets/s/failures/${id}/acknowledge`, { action: 'rewrite' })
    t.match(await must(served, 'POST', '/sets/s/memset', { addr, length: PAGE, value: '0x66' }), { durability: 'persisted' })
    t.equal(read(await must(served, 'POST', '/sets/s/batch', { operations: [{ op: 'read', addr, length: 1 }] })), 'f')
    t.equal((await send(served, 'DELETE', '/sets/s')).status, 204)
    served.child.kill('SIGTERM')
    t.equal(await served.ended, 0, served.said())
  })
}

t.test('a volume that was never anything but read-only', { skip: cannotMount }, async (t) => {
  const place = folder(t, 'data')
  const dir = mounted(t, tmpfs('1m'))
  makeFile(dir, 'f', PAGE)
  execFileSync('mount', ['-o', 'remount,ro', dir])
  const served = await serving(t, place, { PMEMSETD_VOLUMES: `default=./data,second=${dir}` })
  await must(served, 'POST', '/sets', { id: 's', requiredGranularity: 'page' })
  t.match(await send(served, 'POST', '/sets/s/parts', { source: { type: 'file', volume: 'second', path: 'f' } }), { status: 422, json: { code: 'EROFS' } })
  await must(served, 'POST', '/sets/s/parts', { source: { type: 'file', path: 'g', create: 'if_needed' }, length: PAGE })
})
