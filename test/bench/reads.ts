// SPDX-License-Identifier: BSD-3-Clause
//
// H2 and H3: reads of some bytes at random places of a file of 16 MiB, which all servers have in memory.
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { brings, compare, exchange, http, resp, type Bench, type Contestant, type Goal, type Keep, type Row, type Scene } from './measure.js'
import { files, heap, nginx, redis, store, webdis } from './peers.js'
import { mapFile, service, type Server } from './server.js'

const KIB = 1024
const MIB = 1024 * KIB
const FILE_BYTES = 16 * MIB
const PLACES_MAX = 1024
const CHECKED = 8

interface Place { at: number, index: number }

/** Contestants of one size of read, each of which was seen to bring the very bytes of the file. */
async function open (size: number, wanted: readonly string[], bench: Bench, keep: Keep): Promise<Scene> {
  const dir = keep.directory(bench.memory)
  const path = join(dir, 'reads.bin')
  const content = randomBytes(FILE_BYTES)
  writeFileSync(path, content)
  const count = Math.min(bench.isSmoke ? CHECKED : PLACES_MAX, FILE_BYTES / size)
  const places = Array.from({ length: count }, (_, index): Place => ({ at: index * (FILE_BYTES / count), index }))
  const range = ({ at }: Place): Record<string, string> => ({ range: `bytes=${at}-${at + size - 1}` })

  async function contestant (servers: Server[], protocol: 'http' | 'resp', request: (place: Place) => Buffer): Promise<Contestant> {
    const port = (servers[0] as Server).port
    const made = { servers, port, protocol, requests: places.map(request) }
    for (let i = 0; i < Math.min(CHECKED, count); i++) {
      const place = places[Math.floor(i * count / CHECKED) % count] as Place
      await brings(made, request(place), content.subarray(place.at, place.at + size))
    }
    return made
  }

  const ours = keep.server(await service(dir))
  const addr = await mapFile(ours, 'reads.bin')
  const peers: Scene['peers'] = {}
  const isWanted = (name: string): boolean => wanted.includes(name)

  if (isWanted('node:http')) peers['node:http'] = await contestant([await heap(keep, path)], 'http', ({ at }) => http('GET', `/${at}/${size}`))
  if (isWanted('@fastify/static')) peers['@fastify/static'] = await contestant([await files(keep, dir)], 'http', (place) => http('GET', '/reads.bin', undefined, range(place)))
  if (isWanted('nginx')) {
    const server = await nginx(bench, keep, dir)
    peers.nginx = typeof server === 'string' ? server : await contestant([server], 'http', (place) => http('GET', '/reads.bin', undefined, range(place)))
  }
  if (isWanted('lmdb')) {
    const server = await store(keep, keep.directory(bench.disk))
    for (const { at, index } of places) {
      await exchange({ port: server.port, protocol: 'http' }, http('PUT', `/keys/${index}`, content.subarray(at, at + size), { 'content-type': 'application/octet-stream' }))
    }
    peers.lmdb = await contestant([server], 'http', ({ index }) => http('GET', `/keys/${index}`))
  }
  if (isWanted('webdis') || isWanted('Redis')) {
    const server = await redis(bench, keep, false)
    if (typeof server !== 'string') await exchange({ port: server.port, protocol: 'resp' }, resp('SET', 'reads', content))
    if (isWanted('Redis')) peers.Redis = typeof server === 'string' ? server : await contestant([server], 'resp', ({ at }) => resp('GETRANGE', 'reads', String(at), String(at + size - 1)))
    if (isWanted('webdis')) {
      const front = typeof server === 'string' ? server : await webdis(bench, keep, server)
      if (typeof front === 'string' || typeof server === 'string') peers.webdis = front as string
      else peers.webdis = await contestant([front, server], 'http', ({ at }) => http('GET', `/GETRANGE/reads/${at}/${at + size - 1}.txt`))
    }
  }
  return { ours: await contestant([ours], 'http', ({ at }) => http('GET', `/sets/bench/memory?addr=0x${(addr + BigInt(at)).toString(16)}&length=${size}`)), peers }
}

function row (name: string, what: string, sizes: Array<[name: string, bytes: number, goals: Goal[]]>): Row {
  return {
    name,
    what,
    measure: async (bench) => {
      const lines = []
      for (const [sizeName, size, goals] of sizes) {
        const wanted = goals.map(({ peer }) => peer)
        lines.push(...await compare(bench, name, { what: `read ${sizeName}`, open: (b, keep) => open(size, wanted, b, keep), goals }))
      }
      return lines
    }
  }
}

const small: Goal[] = [
  { peer: 'node:http', by: 'rate', atLeast: 0.9, note: 'the same bytes, out of one Buffer in the heap' },
  { peer: 'webdis', by: 'rate', atLeast: 1, note: 'two processes on the core: webdis and Redis' },
  { peer: '@fastify/static', by: 'rate', atLeast: 8 },
  { peer: 'lmdb', by: 'rate', atLeast: 2 },
  { peer: 'nginx', by: 'cpu', atLeast: 0.65, note: 'one Node process cannot reach 1 without batches' },
  { peer: 'nginx', by: 'co-run', atLeast: 0.65, note: 'one Node process cannot reach 1 without batches' }
]
const large: Goal[] = [{ peer: 'node:http', by: 'rate', atLeast: 0.9 }, { peer: 'nginx', by: 'rate', atLeast: 1 }]

export const H2 = row('H2', 'reads of 64 B and 4 KiB', [['64 B', 64, small], ['4 KiB', 4 * KIB, small]])
export const H3 = row('H3', 'reads of 64 KiB and 1 MiB', [
  ['64 KiB', 64 * KIB, large],
  ['1 MiB', MIB, [...large, { peer: 'Redis', by: 'rate', atLeast: 1, note: 'RESP is not HTTP' }]]
])
