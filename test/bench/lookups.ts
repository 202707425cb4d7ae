// SPDX-License-Identifier: BSD-3-Clause
//
// H1: a look-up by address, with all that the service has around a request, beside a bare Fastify route that returns the same object.
import { bare } from './peers.js'
import { brings, compare, http, type Row, type Workload } from './measure.js'
import { call, service, type Server } from './server.js'

const MAPS = 1000
const PAGE = 4096

/** A set of many maps, and the path that looks one of them up by an address inside. */
export async function manyMaps (server: Server, count: number): Promise<string> {
  await call(server, 'POST', '/sets', { id: 'many', requiredGranularity: 'page' })
  let addr = ''
  for (let i = 0; i < count; i++) {
    const part = await call(server, 'POST', '/sets/many/parts', { source: { type: 'file', path: 'many.bin', create: 'if_needed' }, offset: 0, length: PAGE })
    if (i === count >> 1) addr = part.addr as string
  }
  return `/sets/many/maps?addr=0x${(BigInt(addr) + 5n).toString(16)}`
}

const lookups: Workload = {
  what: 'look-up by address',
  open: async (bench, keep) => {
    const ours = keep.server(await service(keep.directory(bench.disk)))
    const path = await manyMaps(ours, bench.isSmoke ? 10 : MAPS)
    const answer = JSON.stringify(await call(ours, 'GET', path))
    const peer = await bare(keep, path, answer)
    const requests = [http('GET', path)]
    await brings({ port: peer.port, protocol: 'http' }, requests[0] as Buffer, Buffer.from(answer))
    return {
      ours: { servers: [ours], port: ours.port, protocol: 'http', requests },
      peers: { 'bare Fastify': { servers: [peer], port: peer.port, protocol: 'http', requests } }
    }
  },
  goals: (['rate', 'cpu', 'co-run'] as const).map((by) => ({ peer: 'bare Fastify', by, atLeast: 0.9 }))
}

export const H1: Row = { name: 'H1', what: 'look-up by address, as shipped', measure: (bench) => compare(bench, 'H1', lookups) }
