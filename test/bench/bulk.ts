// SPDX-License-Identifier: BSD-3-Clause
//
// H4 and H5: bulk bytes over one connection, down and up.
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { get } from 'node:http'
import { join } from 'node:path'
import { brings, compare, exchange, http, keeping, line, slice, spread, type Bench, type Contestant, type Keep, type Line, type Row, type Scene, type Workload } from './measure.js'
import { floor, heap, nginx } from './peers.js'
import { mapFile, service, type Server } from './server.js'

const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB
const SMOKE_BYTES = 2 * MIB
/** What the allocator may keep without that memory grows with the bytes. */
const GROWTH_MIB_MAX = 64

function fill (path: string, bytes: number): void {
  const fd = openSync(path, 'w')
  for (let at = 0; at < bytes; at += 16 * MIB) writeSync(fd, randomBytes(Math.min(16 * MIB, bytes - at)))
  closeSync(fd)
}

async function digestOfReply (url: string): Promise<string> {
  const hash = createHash('sha256')
  await new Promise<void>((resolve, reject) => {
    get(url, (response) => {
      response.on('data', (chunk: Buffer) => { hash.update(chunk) })
      response.on('end', resolve)
      response.on('error', reject)
    }).on('error', reject)
  })
  return hash.digest('hex')
}

function digestOfFile (path: string): string {
  const hash = createHash('sha256')
  const piece = Buffer.alloc(16 * MIB)
  const fd = openSync(path, 'r')
  for (let got = readSync(fd, piece); got > 0; got = readSync(fd, piece)) hash.update(piece.subarray(0, got))
  closeSync(fd)
  return hash.digest('hex')
}

const one = (server: Server, request: Buffer): Contestant => ({ servers: [server], port: server.port, protocol: 'http', requests: [request], connections: 1 })

/* ---- H4 ---- */

async function openDownload (bytes: number, bench: Bench, keep: Keep): Promise<Scene> {
  const dir = keep.directory(bench.memory)
  const path = join(dir, 'bulk.bin')
  fill(path, bytes)
  const ours = keep.server(await service(dir))
  const addr = await mapFile(ours, 'bulk.bin')
  const expected = digestOfFile(path)
  const contestant = async (server: Server, place: string): Promise<Contestant> => {
    if (await digestOfReply(server.url + place) !== expected) throw new Error(`${server.url}${place} brings other bytes`)
    return one(server, http('GET', place))
  }
  const web = await nginx(bench, keep, dir)
  return {
    ours: await contestant(ours, `/sets/bench/memory?addr=0x${addr.toString(16)}&length=${bytes}`),
    peers: {
      'node:http': await contestant(await heap(keep, path), `/0/${bytes}`),
      'C send()': await contestant(await floor(keep, path), '/'),
      nginx: typeof web === 'string' ? web : await contestant(web, '/bulk.bin')
    }
  }
}

/** How much memory of its own the service takes while it sends. */
async function growth (bench: Bench, name: string, bytes: number): Promise<Line> {
  const grown: number[] = []
  for (let p = 0; p < bench.processes; p++) {
    await keeping(async (keep) => {
      const dir = keep.directory(bench.memory)
      fill(join(dir, 'bulk.bin'), bytes)
      const ours = keep.server(await service(dir))
      const addr = await mapFile(ours, 'bulk.bin')
      const contestant = one(ours, http('GET', `/sets/bench/memory?addr=0x${addr.toString(16)}&length=${bytes}`))
      const before = ours.memory('RssAnon')
      let most = before
      const watch = setInterval(() => { most = Math.max(most, ours.memory('RssAnon')) }, 20)
      await slice(bench, contestant)
      clearInterval(watch)
      grown.push((most - before) / MIB)
    })
  }
  return line('H4', `download ${name}: RssAnon while sending, less that before`, spread(grown), { atMost: GROWTH_MIB_MAX, unit: 'MiB' })
}

const downloads: Workload['goals'] = [
  { peer: 'node:http', by: 'rate', atLeast: 0.95 },
  { peer: 'C send()', by: 'rate', atLeast: 0.9 },
  { peer: 'nginx', by: 'rate', atLeast: 1.1 }
]

export const H4: Row = {
  name: 'H4',
  what: 'bulk download from a tmpfs',
  measure: async (bench) => {
    const lines: Line[] = []
    for (const [name, full] of [['256 MiB', 256 * MIB], ['4 GiB', 4 * GIB]] as const) {
      const bytes = bench.isSmoke ? SMOKE_BYTES : full
      lines.push(...await compare(bench, 'H4', { what: `download ${name}`, open: (b, keep) => openDownload(bytes, b, keep), goals: downloads }))
      lines.push(await growth(bench, name, bytes))
    }
    return lines
  }
}

/* ---- H5 ---- */

/** The contestant, once its bytes were seen to be where they belong. */
async function uploads (server: Server, path: string, body: Buffer): Promise<Contestant> {
  const contestant = one(server, http('PUT', path, body))
  await exchange(contestant, contestant.requests[0] as Buffer)
  return contestant
}

async function openUpload (bytes: number, parent: string, bench: Bench, keep: Keep): Promise<Scene> {
  const dir = keep.directory(parent)
  const path = join(dir, 'upload.bin')
  const other = join(dir, 'floor.bin')
  for (const file of [path, other]) fill(file, bytes)
  const body = randomBytes(bytes)
  const expected = createHash('sha256').update(body).digest('hex')
  const ours = keep.server(await service(dir))
  const place = `/sets/bench/memory?addr=0x${(await mapFile(ours, 'upload.bin')).toString(16)}`
  const none = await uploads(ours, `${place}&durability=none`, body)
  if (await digestOfReply(`${ours.url}${place}&length=${bytes}`) !== expected) throw new Error('what was put is not what is read')
  if (parent === bench.disk) {
    return { ours: await uploads(ours, `${place}&durability=persisted`, body), peers: { 'durability=none': none } }
  }
  const below = await floor(keep, other)
  const peers: Scene['peers'] = {
    'node:http': await uploads(await heap(keep, path), '/', body),
    'C recv()': await uploads(below, '/', body)
  }
  if (digestOfFile(other) !== expected) throw new Error('the loop in C has put other bytes')
  await brings({ port: below.port, protocol: 'http' }, http('GET', '/'), body)
  return { ours: none, peers }
}

export const H5: Row = {
  name: 'H5',
  what: 'bulk upload into a map',
  measure: async (bench) => {
    const bytes = bench.isSmoke ? SMOKE_BYTES : 256 * MIB
    return [
      ...await compare(bench, 'H5', {
        what: 'upload 256 MiB, tmpfs',
        open: (b, keep) => openUpload(bytes, b.memory, b, keep),
        goals: [
          { peer: 'node:http', by: 'rate', atLeast: 0.95, note: 'which discards the body' },
          { peer: 'C recv()', by: 'rate', atLeast: 0.9, stretch: true }
        ]
      }),
      ...await compare(bench, 'H5', {
        what: 'upload 256 MiB, disk, durability=persisted',
        open: (b, keep) => openUpload(bytes, b.disk, b, keep),
        goals: [{ peer: 'durability=none', by: 'rate', atLeast: 0.4 }]
      })
    ]
  }
}
