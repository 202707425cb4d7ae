// SPDX-License-Identifier: BSD-3-Clause
//
// Requests that were sent under a key, so that one whose reply was lost can be sent again and is not done twice. That a change of the catalog was made is
// recorded in the transaction that makes it; of what stores bytes it is recorded before, for there is no such transaction; and of both the reply, when it is known.
import { AsyncLocalStorage } from 'node:async_hooks'
import type { Catalog, Change, RepeatRecord } from '../catalog/catalog.js'
import { ServiceError } from '../errors.js'

const KEPT_MS = 24 * 60 * 60 * 1000
/** A larger reply is not kept; a repeat is told that it is lost. */
const REPLY_BYTES_MAX = 64 * 1024

export type KeptReply = NonNullable<RepeatRecord['reply']>

/** A request under a key that is being answered. */
export interface Running {
  readonly name: string
  readonly request: string
  /** The catalog knows that it was begun or done. */
  isRecorded: boolean
}

interface Known {
  record: RepeatRecord
  /** On the clock that does not jump, so that a key is kept for its time whatever becomes of the time of day. */
  since: number
}

export class Repeats {
  /** Of the catalog, the oldest first. */
  readonly #known = new Map<string, Known>()
  readonly #running = new Map<string, Running>()
  readonly #storage = new AsyncLocalStorage<Running>()
  readonly #catalog: Catalog
  readonly #max: number

  /** max: how many are kept. */
  constructor (catalog: Catalog, max: number) {
    this.#catalog = catalog
    this.#max = max
    // One that seems to be of the future was made before the time of day was set back: how long ago, nobody knows.
    for (const record of [...catalog.repeats()].sort((a, b) => a.at - b.at)) this.#know(record, Math.max(Date.now() - record.at, 0))
  }

  #know (record: RepeatRecord, age = 0): void {
    this.#known.set(record.name, { record, since: performance.now() - age })
  }

  /** Commits changes of the catalog; with one that is made under a key, that it was. */
  readonly commit = async (changes: readonly Change[]): Promise<void> => {
    const running = this.#storage.getStore()
    // What prepares a change, or tells of a failure, is not the change.
    if (running === undefined || !changes.some(({ kind }) => kind === 'put-set' || kind === 'delete-set')) { await this.#catalog.commit(changes); return }
    const record: RepeatRecord = { ...this.#begun(running), isDone: true }
    await this.#catalog.commit([...changes, { kind: 'put-repeat', repeat: record }])
    running.isRecorded = true
    this.#know(record)
  }

  #begun ({ name, request }: Running): RepeatRecord {
    return { name, request, at: Date.now(), isDone: false }
  }

  /**
   * What was answered to the request that had this name; undefined where it is a new one, which is `running` from then on, until `end`. `name` stands for the
   * key and whose it is, `request` for what was asked.
   */
  find (name: string, request: string): { reply: KeptReply } | { running: Running } {
    const known = this.#known.get(name)
    const asked = this.#running.get(name) ?? known?.record
    if (asked !== undefined && asked.request !== request) throw new ServiceError('IDEMPOTENCY_KEY_REUSED', 'The key belongs to another request.')
    if (this.#running.has(name)) throw new ServiceError('IDEMPOTENCY_IN_PROGRESS', 'The request of that key is being answered.')
    if (known !== undefined && performance.now() - known.since < KEPT_MS) {
      const { reply, isDone } = known.record
      if (reply === undefined) throw new ServiceError('OUTCOME_UNKNOWN', isDone ? 'The request of that key was carried out, and its reply was not kept.' : 'The request of that key was begun, and how it ended is not known.')
      return { reply }
    }
    const running: Running = { name, request, isRecorded: false }
    this.#running.set(name, running)
    return { running }
  }

  /** Runs what answers the request, whose changes of the catalog are recorded under its key. */
  run (running: Running, work: () => void): void {
    this.#storage.run(running, work)
  }

  /** Before bytes are stored: if the process ends meanwhile, a repeat is told that nobody knows. */
  async begin (running: Running): Promise<void> {
    const record = this.#begun(running)
    await this.#catalog.commit([...this.#tooMany(), { kind: 'put-repeat', repeat: record }])
    running.isRecorded = true
    this.#know(record)
  }

  /**
   * With the reply, which is kept. 'forgotten': a repeat is a new request. 'unknown': it failed, maybe behind what it has done; a repeat is told so, and
   * where nothing was recorded, nothing was done.
   */
  async end (running: Running, reply: KeptReply | 'forgotten' | 'unknown'): Promise<void> {
    try {
      if (typeof reply === 'object') {
        const record: RepeatRecord = { ...this.#begun(running), isDone: true, ...(reply.body.length > REPLY_BYTES_MAX ? {} : { reply }) }
        await this.#catalog.commit([...this.#tooMany(), { kind: 'put-repeat', repeat: record }])
        // At the end, as the newest.
        this.#known.delete(record.name)
        this.#know(record)
      } else if (reply === 'forgotten' && running.isRecorded) {
        await this.#catalog.commit([{ kind: 'delete-repeat', name: running.name }])
        this.#known.delete(running.name)
      }
    } finally {
      this.#running.delete(running.name)
      // While it is on, every promise of the process costs more.
      if (this.#running.size === 0) this.#storage.disable()
    }
  }

  /** What makes room for one more, and what is too old. */
  #tooMany (): Change[] {
    const gone: Change[] = []
    const now = performance.now()
    for (const [name, { since }] of this.#known) {
      if (this.#known.size < this.#max && now - since < KEPT_MS) break
      this.#known.delete(name)
      gone.push({ kind: 'delete-repeat', name })
    }
    return gone
  }
}
