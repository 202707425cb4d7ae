// SPDX-License-Identifier: BSD-3-Clause
//
// H6 and H7: durable writes of 64 bytes, at page granularity on a disk and at cache-line granularity on a tmpfs.
import { createHash } from 'node:crypto'
import { brings, compare, exchange, http, resp, type Bench, type Contestant, type Goal, type Keep, type Row, type Scene } from './measure.js'
import { etcd, nginx, redis, store } from './peers.js'
import { fillFile, service, type Server } from './server.js'

const KIB = 1024
const MIB = 1024 * KIB
export const WRITE_BYTES = 64
const CHECKED = 8

/** What is written at the place of a number: the same each time, so that it can be known again. */
export function record (index: number): Buffer {
  return createHash('sha512').update(String(index)).digest()
}

interface Places {
  count: number
  /** Bytes from one place to the next. */
  stride: number
}

/** The contestant, once some places were written and each brought what was written there. */
async function seen ({ count }: Pick<Places, 'count'>, contestant: Contestant, read: (index: number) => Buffer): Promise<Contestant> {
  for (let i = 0; i < CHECKED; i++) {
    const index = Math.floor(i * count / CHECKED)
    await exchange(contestant, contestant.requests[index] as Buffer)
    await brings(contestant, read(index), record(index))
  }
  return contestant
}

const base64 = (bytes: Buffer | string): string => Buffer.from(bytes).toString('base64')

async function open (places: Places, wanted: readonly string[], bench: Bench, keep: Keep): Promise<Scene> {
  const indices = Array.from({ length: places.count }, (_, i) => i)
  const web = (server: Server, request: (index: number) => Buffer): Contestant => ({ servers: [server], port: server.port, protocol: 'http', requests: indices.map(request) })
  const peers: Scene['peers'] = {}

  const dir = keep.directory(bench.disk)
  const ours = keep.server(await service(dir))
  const addr = await fillFile(ours, 'writes.bin', Math.max(places.count * places.stride, MIB))
  const place = (index: number): string => `/sets/bench/memory?addr=0x${(addr + BigInt(index * places.stride)).toString(16)}`

  if (wanted.includes('Redis')) {
    const server = await redis(bench, keep, true)
    peers.Redis = typeof server === 'string'
      ? server
      : await seen(places, { ...web(server, (i) => resp('SET', `key:${i}`, record(i))), protocol: 'resp' }, (i) => resp('GET', `key:${i}`))
  }
  if (wanted.includes('etcd')) {
    const server = await etcd(bench, keep)
    const body = (members: object): Buffer => Buffer.from(JSON.stringify(members))
    if (typeof server === 'string') peers.etcd = server
    else {
      const contestant = web(server, (i) => http('POST', '/v3/kv/put', body({ key: base64(`key:${i}`), value: base64(record(i)) }), { 'content-type': 'application/json' }))
      await exchange(contestant, contestant.requests[0] as Buffer)
      const found = await fetch(`${server.url}/v3/kv/range`, { method: 'POST', body: body({ key: base64('key:0') }) })
      const { kvs } = await found.json() as { kvs?: Array<{ value: string }> }
      if (kvs?.[0]?.value !== base64(record(0))) throw new Error('etcd brings another value')
      peers.etcd = contestant
    }
  }
  if (wanted.includes('lmdb')) {
    const server = await store(keep, keep.directory(bench.disk))
    peers.lmdb = await seen(places, web(server, (i) => http('PUT', `/keys/${i}`, record(i), { 'content-type': 'application/octet-stream' })),
      (i) => http('GET', `/keys/${i}`))
  }
  return {
    ours: await seen(places, web(ours, (i) => http('PUT', place(i), record(i))), (i) => http('GET', `${place(i)}&length=${WRITE_BYTES}`)),
    peers
  }
}

const RESP = 'RESP is not HTTP; both are on the disk when they answer'
const random: Goal[] = [
  { peer: 'Redis', by: 'rate', atLeast: 0.65, note: RESP },
  { peer: 'Redis', by: 'rate', atLeast: 1, stretch: true, note: RESP },
  { peer: 'etcd', by: 'rate', atLeast: 3, note: 'etcd keeps a log and the history of each key; through its JSON gateway' },
  { peer: 'lmdb', by: 'rate', atLeast: 1.2, note: 'lmdb keeps a tree' }
]

export const H6: Row = {
  name: 'H6',
  what: 'durable writes of 64 B on a disk',
  measure: async (bench) => [
    ...await compare(bench, 'H6', {
      what: 'durable 64 B, random pages of 256 MiB',
      open: (b, keep) => open({ count: b.isSmoke ? 64 : 65_536, stride: 4 * KIB }, ['Redis', 'etcd', 'lmdb'], b, keep),
      goals: random
    }),
    ...await compare(bench, 'H6', {
      what: 'durable 64 B, anywhere in 1 MiB',
      open: (b, keep) => open({ count: MIB / WRITE_BYTES, stride: WRITE_BYTES }, ['Redis'], b, keep),
      goals: [{ peer: 'Redis', by: 'rate', atLeast: 1, note: RESP }]
    })
  ]
}

async function openCacheLine (bench: Bench, keep: Keep): Promise<Scene> {
  const places = { count: bench.isSmoke ? 64 : MIB / WRITE_BYTES, stride: WRITE_BYTES }
  const indices = Array.from({ length: places.count }, (_, i) => i)
  const dir = keep.directory(bench.memory)
  const ours = keep.server(await service(dir, { PMEMSETD_SIMULATE: 'cache_line' }))
  const addr = await fillFile(ours, 'writes.bin', MIB, 'cache_line')
  const place = (index: number): string => `/sets/bench/memory?addr=0x${(addr + BigInt(index * places.stride)).toString(16)}`
  const putting = async (durability: string): Promise<Contestant> => await seen(places,
    { servers: [ours], port: ours.port, protocol: 'http', requests: indices.map((i) => http('PUT', `${place(i)}&durability=${durability}`, record(i))) },
    (i) => http('GET', `${place(i)}&length=${WRITE_BYTES}`))

  const web = await nginx(bench, keep, keep.directory(bench.memory))
  const files = { count: Math.min(places.count, 1024) }
  return {
    ours: await putting('persisted'),
    peers: {
      'durability=none': await putting('none'),
      'nginx PUT': typeof web === 'string'
        ? web
        : await seen(files, { servers: [web], port: web.port, protocol: 'http', requests: indices.slice(0, files.count).map((i) => http('PUT', `/${i}`, record(i))) },
          (i) => http('GET', `/${i}`))
    }
  }
}

export const H7: Row = {
  name: 'H7',
  what: 'durable writes of 64 B at cache-line granularity',
  measure: (bench) => compare(bench, 'H7', {
    what: 'flushed 64 B, tmpfs, cache lines simulated',
    open: openCacheLine,
    goals: [
      { peer: 'durability=none', by: 'rate', atLeast: 0.95 },
      { peer: 'durability=none', by: 'co-run', atLeast: 0.95 },
      { peer: 'nginx PUT', by: 'rate', atLeast: 1.5, note: 'a file of its own for each' }
    ]
  })
}
