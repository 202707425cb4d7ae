// SPDX-License-Identifier: BSD-3-Clause
//
// One client of the torture: asks for changes of a set of its own at random, one after the other, and keeps account of them; and compares, after the service
// was killed, what there is with what it was told.
import { readdirSync, readFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { mapsOf, Model, PAGE, type Change, type PartState, type Seen, type SetState, type Store } from './model.js'

const FILES = 4
const FILE_PAGES = 16
const PARTS_MAX = 8
const WINDOW = 4 * 1024 * 1024

export type Chance = (below: number) => number

interface Reply {
  status: number
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- what came over the wire is compared, not trusted
  json: any
  bytes: Buffer
  isReplayed: boolean
}

/** No reply came: the process is gone. */
export class Gone extends Error {}

export class Client {
  readonly model = new Model()
  readonly counts = new Map<string, number>()
  readonly #chance: Chance
  readonly #dir: string
  readonly #set: string
  #agent = new Agent({ keepAlive: true })
  #port = 0
  #asked = 0
  /** Sends what was asked for last once more. */
  #again: () => Promise<Reply> = () => Promise.reject(new Error('nothing was asked for'))
  #partsNamed = 0
  #filesNamed = 0

  constructor (readonly id: number, volume: string, chance: Chance) {
    this.#chance = chance
    this.#set = `c${id}`
    this.#dir = join(volume, this.#set)
  }

  connect (port: number): void {
    this.#agent.destroy()
    this.#agent = new Agent({ keepAlive: true })
    this.#port = port
  }

  #call (method: string, path: string, body?: object | Buffer, key?: string): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const bytes = body === undefined || Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body))
      const headers = { ...(key === undefined ? {} : { 'idempotency-key': key }), ...(bytes === undefined ? {} : { 'content-length': String(bytes.length), 'content-type': Buffer.isBuffer(body) ? 'application/octet-stream' : 'application/json' }) }
      const gone = (error: Error): void => { reject(new Gone(`${method} ${path}: ${error.message}`)) }
      const sent = request({ host: '127.0.0.1', port: this.#port, agent: this.#agent, method, path, headers }, (reply) => {
        const chunks: Buffer[] = []
        reply.on('data', (chunk: Buffer) => chunks.push(chunk))
        reply.on('error', gone)
        reply.on('aborted', () => { gone(new Error('cut off')) })
        reply.on('end', () => {
          const all = Buffer.concat(chunks)
          const isJson = /json/.test(reply.headers['content-type'] ?? '')
          resolve({ status: reply.statusCode ?? 0, isReplayed: reply.headers['idempotency-replayed'] === 'true', bytes: all, json: isJson ? JSON.parse(all.toString()) as unknown : undefined })
        })
      })
      sent.on('error', gone)
      sent.end(bytes)
    })
  }

  /** Asks for a change. Acknowledged, the model has it; refused, nothing has changed; without a reply it stays open. `learn` takes from the reply what only the service knows. */
  async #ask (change: Change, method: string, path: string, body?: object | Buffer, learn: (json: Reply['json']) => Partial<PartState> & { revision?: number } = () => ({})): Promise<void> {
    this.model.pending = change
    // A PUT of bytes takes none.
    const key = Buffer.isBuffer(body) ? undefined : `${this.id}-${++this.#asked}`
    this.#again = () => this.#call(method, path, body, key)
    const { status, json } = await this.#call(method, path, body, key)
    const kind = change.what.split(' ')[0] ?? ''
    if (status >= 200 && status < 300) {
      this.model.apply(change)
      const learnt = learn(json)
      const part = this.model.set?.parts.find(({ addr }) => addr === undefined)
      if (part !== undefined) Object.assign(part, { addr: learnt.addr, coalesced: learnt.coalesced })
      if (this.model.set !== undefined && learnt.revision !== undefined) this.model.set.revision = learnt.revision
      this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1)
    } else if ((status >= 400 && status < 500) || status === 503) {
      this.model.pending = undefined
      const code = String(json?.code)
      if (!['PMEMSET_E_CANNOT_COALESCE_PARTS', 'PMEMSET_E_CANNOT_FIT_PART_MAP', 'STOPPING', 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP'].includes(code)) throw new Error(`${change.what}: ${status} ${JSON.stringify(json)}`)
      if (code === 'STOPPING') throw new Gone(code)
      this.counts.set('refused', (this.counts.get('refused') ?? 0) + 1)
    } else {
      throw new Error(`${change.what}: ${status} ${JSON.stringify(json)}`)
    }
  }

  /* ---- what it asks for ---- */

  async #create (): Promise<void> {
    const coalescing = this.#pick(['none', 'opportunistic', 'full'])
    const labels = { round: String(this.#chance(1000)) }
    await this.#ask({ what: 'create', set: () => ({ coalescing, labels, revision: 1, parts: [] }) }, 'POST', '/sets', { id: this.#set, requiredGranularity: 'page', coalescing, windowSize: WINDOW, labels })
  }

  async #patch (set: SetState): Promise<void> {
    const coalescing = this.#pick(['none', 'opportunistic', 'full'])
    const labels = { round: String(this.#chance(1000)) }
    await this.#ask({ what: 'patch', set: () => ({ ...set, coalescing, labels }) }, 'PATCH', `/sets/${this.#set}`, { coalescing, labels }, (json) => ({ revision: Number(json.revision) }))
  }

  async #map (): Promise<void> {
    const known = [...this.model.files.keys()]
    const isNew = known.length < FILES || this.#chance(4) === 0
    const path = isNew ? `f${++this.#filesNamed}` : this.#pick(known)
    const size = this.model.files.get(path)?.length ?? 0
    const pages = this.#chance(4) + 1
    const offset = this.#chance(isNew ? 2 : FILE_PAGES - pages + 1) * PAGE
    const length = pages * PAGE
    const id = `p${++this.#partsNamed}`
    const order = this.model.nextOrder()
    const part: PartState = { id, path, offset, length, addr: undefined, coalesced: undefined, order }
    const grows = offset + length > size
    await this.#ask({
      what: `map ${id} of ${path}`,
      set: (before) => (before === undefined ? undefined : { ...before, parts: [...before.parts, { ...part }] }),
      ...(grows ? { file: { path, size: offset + length } } : {})
    }, 'POST', `/sets/${this.#set}/parts`, {
      id, offset, length, source: { type: 'file', path: `${this.#set}/${path}`, create: isNew ? this.#pick(['exclusive', 'if_needed']) : this.#pick(['never', 'if_needed']), grow: true }
    }, (json) => ({ addr: BigInt(json.addr), coalesced: Boolean(json.coalesced), revision: Number(json.revision) }))
  }

  #without (gone: readonly PartState[]): Change['set'] {
    return (before) => (before === undefined ? undefined : { ...before, parts: before.parts.filter(({ id }) => !gone.some((one) => one.id === id)) })
  }

  async #removePart (part: PartState): Promise<void> {
    await this.#ask({ what: `remove ${part.id}`, set: this.#without([part]) }, 'DELETE', `/sets/${this.#set}/parts/${part.id}`)
  }

  async #removeRange (set: SetState): Promise<void> {
    const first = this.#pick(set.parts).addr ?? 0n
    const end = first + BigInt((this.#chance(6) + 1) * PAGE)
    const gone = set.parts.filter(({ addr = 0n, length }) => addr < end && addr + BigInt(length) > first)
    await this.#ask({ what: `removeRange ${gone.map(({ id }) => id).join(' ')}`, set: this.#without(gone) }, 'DELETE', `/sets/${this.#set}/maps?addr=0x${first.toString(16)}&length=${end - first}`)
  }

  async #removeMap (set: SetState): Promise<void> {
    const { addr, size } = this.#pick(mapsOf(set.parts))
    const gone = set.parts.filter((part) => part.addr !== undefined && part.addr >= addr && part.addr < addr + size)
    await this.#ask({ what: `removeMap ${gone.map(({ id }) => id).join(' ')}`, set: this.#without(gone) }, 'DELETE', `/sets/${this.#set}/maps/0x${addr.toString(16)}`)
  }

  async #delete (): Promise<void> {
    await this.#ask({ what: 'delete', set: () => undefined }, 'DELETE', `/sets/${this.#set}`)
  }

  /** Where the bytes of a range of one map lie in the files; across the seams of its parts. */
  #storesAt (set: SetState, addr: bigint, bytes: Buffer): Store[] {
    const end = addr + BigInt(bytes.length)
    return set.parts.flatMap((part) => {
      const start = part.addr ?? 0n
      const from = start > addr ? start : addr
      const to = start + BigInt(part.length) < end ? start + BigInt(part.length) : end
      return from >= to ? [] : [{ path: part.path, offset: part.offset + Number(from - start), bytes: bytes.subarray(Number(from - addr), Number(to - addr)) }]
    })
  }

  #somewhere (set: SetState, max: number): { addr: bigint, bytes: Buffer } {
    const { addr, size } = this.#pick(mapsOf(set.parts))
    const length = this.#chance(Math.min(max, Number(size))) + 1
    const bytes = Buffer.alloc(length, this.#chance(256))
    for (let i = 0; i < length; i += 8) bytes[i] = this.#chance(256)
    return { addr: addr + BigInt(this.#chance(Number(size) - length + 1)), bytes }
  }

  /** Parts may show the same bytes of a file: what a request stores there twice has no one outcome to compare with. */
  #overlaps (stores: readonly Store[]): boolean {
    return stores.some((a, i) => stores.some((b, k) => i < k && a.path === b.path && a.offset < b.offset + b.bytes.length && b.offset < a.offset + a.bytes.length))
  }

  async #write (set: SetState): Promise<void> {
    const { addr, bytes } = this.#somewhere(set, this.#chance(5) === 0 ? 3 * PAGE : 200)
    const stores = this.#storesAt(set, addr, bytes)
    if (this.#overlaps(stores)) return
    const durability = this.#pick(['none', 'flushed', 'persisted', 'deep'])
    await this.#ask({ what: `write ${bytes.length} at ${addr.toString(16)}`, stores }, 'PUT', `/sets/${this.#set}/memory?addr=0x${addr.toString(16)}&durability=${durability}`, bytes)
  }

  async #fill (set: SetState): Promise<void> {
    const { addr, bytes } = this.#somewhere(set, 2 * PAGE)
    const stores = this.#storesAt(set, addr, bytes.fill(bytes[0] ?? 0))
    if (this.#overlaps(stores)) return
    await this.#ask({ what: `memset ${bytes.length} at ${addr.toString(16)}`, stores }, 'POST', `/sets/${this.#set}/memset`, { addr: `0x${addr.toString(16)}`, length: bytes.length, value: `0x${(bytes[0] ?? 0).toString(16)}` })
  }

  async #batch (set: SetState): Promise<void> {
    const writes = Array.from({ length: this.#chance(8) + 2 }, () => this.#somewhere(set, 64))
    const stores = writes.flatMap(({ addr, bytes }) => this.#storesAt(set, addr, bytes))
    if (this.#overlaps(stores)) return
    const operations = writes.map(({ addr, bytes }) => ({ op: 'write', addr: `0x${addr.toString(16)}`, data: bytes.toString('base64') }))
    const isAtomic = this.#chance(2) === 0
    await this.#ask({ what: `${isAtomic ? 'atomic' : 'batch'} of ${operations.length}`, stores, isAtomic }, 'POST', `/sets/${this.#set}/batch`, { operations, ...(isAtomic ? { atomicity: 'all' } : {}) })
  }

  #step (): Promise<void> {
    const { set } = this.model
    if (set === undefined) return this.#create()
    const dice = this.#chance(100)
    if (dice < 2) return this.#delete()
    if (dice < 6) return this.#patch(set)
    if (set.parts.length === 0 || (dice < 30 && set.parts.length < PARTS_MAX)) return this.#map()
    if (dice < 38) return this.#removePart(this.#pick(set.parts))
    if (dice < 42) return this.#removeRange(set)
    if (dice < 45) return this.#removeMap(set)
    if (dice < 55) return this.#fill(set)
    if (dice < 70) return this.#batch(set)
    return this.#write(set)
  }

  /** Goes on until the service is gone. */
  async run (): Promise<void> {
    try {
      for (;;) await this.#step()
    } catch (error) {
      if (!(error instanceof Gone)) throw error
    }
  }

  #pick<T> (of: readonly T[]): T {
    return of[this.#chance(of.length)] as T
  }

  /* ---- what there is ---- */

  async #see (): Promise<Seen | undefined> {
    const { status, json: set } = await this.#call('GET', `/sets/${this.#set}`)
    if (status === 404) return undefined
    const { json: parts } = await this.#call('GET', `/sets/${this.#set}/parts?limit=1000`)
    const prefix = `${this.#set}/`
    const seen: Seen = { coalescing: set.coalescing, labels: set.labels, revision: set.revision, parts: [] }
    for (const part of parts.items) {
      if (part.state !== 'mapped') throw new Error(`${part.id} is ${part.state}: ${part.problem}`)
      seen.parts.push({ id: part.id, path: String(part.source.path).slice(prefix.length), offset: part.offset, length: part.length, addr: BigInt(part.addr), coalesced: part.coalesced })
    }
    return seen
  }

  /** After the service was started again. True: what had no reply was done all the same; undefined: nothing of the kind was open. */
  async compare (): Promise<boolean | undefined> {
    const { pending } = this.model
    const wasDone = this.model.settleSet(await this.#see())
    this.model.settleFiles(readdirSync(this.#dir), (path) => readFileSync(join(this.#dir, path)), wasDone)
    const { set } = this.model
    if (set !== undefined) await this.#compareMaps(set)
    if (pending?.set === undefined) return undefined
    if (wasDone) await this.#repeat(pending)
    return wasDone
  }

  /** What was done without a reply: sent again it gets that reply, or hears that it was done, and is not done twice. */
  async #repeat ({ what }: Change): Promise<void> {
    const before = await this.#see()
    const { status, json, isReplayed } = await this.#again()
    const isReply = status >= 200 && status < 300 && isReplayed
    if (!isReply && !(status === 409 && json?.code === 'OUTCOME_UNKNOWN' && /carried out/.test(json.detail))) throw new Error(`${what}, repeated: ${status} ${JSON.stringify(json)}`)
    if (!isDeepStrictEqual(await this.#see(), before)) throw new Error(`${what}, repeated, was done twice`)
    this.counts.set('repeated', (this.counts.get('repeated') ?? 0) + 1)
  }

  async #compareMaps (set: SetState): Promise<void> {
    const { json } = await this.#call('GET', `/sets/${this.#set}/maps?limit=1000`)
    const found = (json.items as Array<{ addr: string, size: number, partCount: number }>).map(({ addr, size, partCount }) => ({ addr: BigInt(addr), size: BigInt(size), parts: partCount }))
    const wanted = mapsOf(set.parts)
    const show = (rows: typeof wanted): string => rows.map(({ addr, size, parts }) => `${addr.toString(16)}+${size.toString(16)}/${parts}`).join(' ')
    if (show(found) !== show(wanted)) throw new Error(`the maps are ${show(found)}, not ${show(wanted)}`)
    for (const { id, path, offset, length } of set.parts) {
      const { status, bytes } = await this.#call('GET', `/sets/${this.#set}/parts/${id}/content`)
      if (status !== 200 || !bytes.equals(this.model.files.get(path)?.subarray(offset, offset + length) ?? Buffer.alloc(0))) throw new Error(`${id} brings other bytes than ${path} has: ${status}`)
    }
  }
}
