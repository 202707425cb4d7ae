// SPDX-License-Identifier: BSD-3-Clause
//
// The catalog, in lmdb. Three things of lmdb's are handled here. A commit has to be flushed when it answers, so the overlapping of commit and flush, which
// tells nobody of a flush that failed, is off. A commit that failed may leave the environment in a state where the next one never answers, so it is opened
// anew. And it takes space as it writes, so space is allocated ahead, as much again as there is: then a removal, which copies every page that it touches,
// has what it needs on a volume that is full.
import { open as openEnvironment, type RootDatabase } from 'lmdb'
import { constants } from 'node:os'
import { chmod, mkdir, open as openFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ServiceError } from '../errors.js'
import type { Catalog, Change, FailuresRecord, IntentRecord, PartRecord, RepeatRecord, ServiceRecord, SetRecord } from './catalog.js'

/** Of the keys and records below. */
const SCHEMA = 1
const FILE = 'catalog.mdb'
/** Addresses, not space, to begin with: for more than a million parts. lmdb takes more when it has to. */
const MAP_BYTES = 1024 ** 3
const ALLOCATION_UNIT = 1024 ** 2
// Of lmdb's first page.
const MAGIC_AT = 24
const MAGIC = Buffer.from([0xde, 0xc0, 0xef, 0xbe])
const GROUP_CHANGES_MAX = 10_000
const DIRECTORY_MODE = 0o700
const FILE_MODE = 0o600

/** The catalog cannot be used, which is the operator's to mend. */
export class CatalogError extends Error {
  override readonly name = 'CatalogError'
}

export interface LmdbOptions {
  /** Which is made where it is not there. */
  dir: string
  /** Allocates so many bytes of a file without changing its size; fails with an error whose `code` is an errno, of either sign. */
  allocate: (path: string, bytes: number) => Promise<void>
}

type Key = [string, ...Array<string | number>]

interface Row {
  key: Key
  /** As JSON; absent: it is removed. */
  text?: string
}

interface Waiting {
  changes: readonly Change[]
  resolve: () => void
  reject: (error: unknown) => void
}

function rowOf (change: Change): Row {
  switch (change.kind) {
    case 'put-service': return { key: ['service'], text: JSON.stringify(change.service) }
    case 'put-set': return { key: ['set', change.set.uid], text: JSON.stringify(change.set) }
    case 'delete-set': return { key: ['set', change.uid] }
    case 'put-part': return { key: ['part', change.part.set, change.part.cookie], text: JSON.stringify(change.part) }
    case 'delete-part': return { key: ['part', change.set, change.cookie] }
    case 'put-failures': return { key: ['failures', change.failures.set], text: JSON.stringify(change.failures) }
    case 'delete-failures': return { key: ['failures', change.set] }
    case 'put-intent': return { key: ['intent', change.intent.token], text: JSON.stringify(change.intent) }
    case 'delete-intent': return { key: ['intent', change.token] }
    case 'put-repeat': return { key: ['repeat', change.repeat.name], text: JSON.stringify(change.repeat) }
    case 'delete-repeat': return { key: ['repeat', change.name] }
  }
}

/** What takes away, and what must not be forgotten, for which the space is there. */
function isRelief ({ kind }: Change): boolean {
  return kind === 'delete-part' || kind === 'delete-set' || kind === 'put-failures' || kind === 'delete-failures' || kind === 'delete-repeat'
}

function isErrno (error: unknown, ...names: Array<keyof typeof constants.errno>): boolean {
  const code = (error as { code?: unknown } | undefined)?.code
  return typeof code === 'number' && names.some((name) => constants.errno[name] === Math.abs(code))
}

function noSpace (): ServiceError {
  return new ServiceError('NO_SPACE', 'The volume of the catalog has no space for a further record.')
}

/** lmdb tells the errno of a commit by a promise beside the error. */
async function toServiceError (error: unknown): Promise<ServiceError> {
  const cause: unknown = await Promise.resolve((error as { commitError?: Promise<unknown> }).commitError).catch((reason: unknown) => reason)
  return isErrno(cause, 'ENOSPC', 'EDQUOT') ? noSpace() : new ServiceError('EIO', 'The catalog could not be written.')
}

/** A name is durable once its directory is. */
async function syncDirectory (path: string): Promise<void> {
  const handle = await openFile(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** lmdb opens what is no file of its own only to crash. */
async function checkMagic (path: string): Promise<void> {
  const handle = await openFile(path, 'r')
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(MAGIC_AT + MAGIC.length), 0)
    if (bytesRead > 0 && !buffer.subarray(MAGIC_AT).equals(MAGIC)) throw new CatalogError(`${path} is no catalog`)
  } finally {
    await handle.close()
  }
}

export class LmdbCatalog implements Catalog {
  readonly #path: string
  readonly #allocate: LmdbOptions['allocate']
  #db: RootDatabase<string, Key>
  #isBroken = false
  /** Bytes from the start of the file that are allocated. */
  #allocated = 0
  readonly #waiting: Waiting[] = []
  #running: Promise<void> | undefined

  private constructor (path: string, allocate: LmdbOptions['allocate']) {
    this.#path = path
    this.#allocate = allocate
    this.#db = this.#open()
  }

  /** Refuses, with a CatalogError, one that another version wrote. */
  static async open ({ dir, allocate }: LmdbOptions): Promise<LmdbCatalog> {
    await mkdir(dir, { recursive: true, mode: DIRECTORY_MODE })
    const path = join(dir, FILE)
    const isNew = await stat(path).then(() => false, () => true)
    if (isNew) await (await openFile(path, 'a', FILE_MODE)).close()
    else await checkMagic(path)
    const catalog = new LmdbCatalog(path, allocate)
    try {
      await catalog.#begin(isNew)
    } catch (error) {
      await catalog.close()
      throw error
    }
    return catalog
  }

  async #begin (isNew: boolean): Promise<void> {
    if (!isNew) {
      const schema: unknown = JSON.parse(this.#db.get(['schema']) ?? 'null')
      if (schema !== SCHEMA && (schema !== null || this.#db.getKeysCount() > 0)) {
        throw new CatalogError(`the catalog ${this.#path} has schema ${String(schema)}, which this version does not know; it knows ${SCHEMA}`)
      }
    }
    await this.#reserve(0).catch((error: unknown) => {
      // Of one that is there already, removals still work.
      if (isNew) throw error
    })
    if (this.#db.get(['schema']) !== undefined) return
    await this.#write([{ key: ['schema'], text: JSON.stringify(SCHEMA) }])
    await chmod(`${this.#path}-lock`, FILE_MODE)
    const dir = dirname(this.#path)
    for (const path of [dir, dirname(dir)]) await syncDirectory(path)
  }

  #open (): RootDatabase<string, Key> {
    return openEnvironment<string, Key>({
      path: this.#path,
      encoding: 'string',
      mapSize: MAP_BYTES,
      maxDbs: 1,
      maxReaders: 8,
      overlappingSync: false,
      // Of a batch by event turn there would be a promise that nobody holds, and that its failure rejects.
      eventTurnBatching: false
    })
  }

  service (): ServiceRecord | undefined {
    const text = this.#db.get(['service'])
    return text === undefined ? undefined : JSON.parse(text) as ServiceRecord
  }

  sets (): Iterable<SetRecord> {
    return this.#all<SetRecord>(['set'])
  }

  parts (uid: string): Iterable<PartRecord> {
    return this.#all<PartRecord>(['part', uid])
  }

  partCount (uid: string): number {
    return this.#db.getKeysCount(beneath(['part', uid]))
  }

  failures (uid: string): FailuresRecord | undefined {
    const text = this.#db.get(['failures', uid])
    return text === undefined ? undefined : JSON.parse(text) as FailuresRecord
  }

  intents (): Iterable<IntentRecord> {
    return this.#all<IntentRecord>(['intent'])
  }

  repeats (): Iterable<RepeatRecord> {
    return this.#all<RepeatRecord>(['repeat'])
  }

  #keys (prefix: Key): Key[] {
    return [...this.#db.getKeys(beneath(prefix))]
  }

  /** As they are asked for, so that whoever has many to read can let others have their turn. */
  #all<T> (prefix: Key): Iterable<T> {
    return this.#db.getRange(beneath(prefix)).map(({ value }) => JSON.parse(value) as T)
  }

  commit (changes: readonly Change[]): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ changes, resolve, reject })
      this.#running ??= this.#run()
    })
  }

  /** One transaction at a time; whoever comes while it is under way is in the next one, and they share its flush. */
  async #run (): Promise<void> {
    while (this.#waiting.length > 0) {
      const group = this.#take()
      try {
        await this.#commitAll(group.flatMap(({ changes }) => changes))
        for (const { resolve } of group) resolve()
      } catch (error) {
        // Of several, each has an outcome of its own.
        for (const one of group) await (group.length === 1 ? Promise.reject(error as Error) : this.#commitAll(one.changes)).then(one.resolve, one.reject)
      }
    }
    // At once: whoever comes next has to begin anew.
    this.#running = undefined
  }

  #take (): Waiting[] {
    let count = 0
    let members = 0
    for (const { changes } of this.#waiting) {
      if (members > 0 && count + changes.length > GROUP_CHANGES_MAX) break
      count += changes.length
      members++
    }
    return this.#waiting.splice(0, members)
  }

  async #commitAll (changes: readonly Change[]): Promise<void> {
    const rows = changes.flatMap((change) => (change.kind === 'delete-set' ? this.#wholeSet(change.uid) : [rowOf(change)]))
    const bytes = rows.reduce((sum, { text = '' }) => sum + text.length, 0)
    if (bytes > 0 && !changes.some(isRelief)) await this.#reserve(bytes)
    await this.#write(rows)
  }

  #wholeSet (uid: string): Row[] {
    return [{ key: ['set', uid] }, { key: ['failures', uid] }, ...this.#keys(['part', uid]).map((key) => ({ key }))]
  }

  /** Has space allocated for so many bytes more, and for as much again. */
  async #reserve (bytes: number): Promise<void> {
    const { size } = await stat(this.#path)
    // A record may take a page more than its bytes, at each level of the tree.
    const needed = 2 * (size + 2 * bytes) + ALLOCATION_UNIT
    if (needed <= this.#allocated) return
    const wanted = Math.ceil(needed / ALLOCATION_UNIT) * ALLOCATION_UNIT
    try {
      await this.#allocate(this.#path, wanted)
    } catch (error) {
      if (isErrno(error, 'ENOSPC', 'EDQUOT')) throw noSpace()
      // A file system that sets no space aside: there a removal has what the volume has.
      if (!isErrno(error, 'EOPNOTSUPP')) throw error
    }
    this.#allocated = wanted
  }

  async #write (rows: readonly Row[]): Promise<void> {
    if (this.#isBroken) {
      await this.#db.close()
      this.#db = this.#open()
      this.#isBroken = false
    }
    try {
      await this.#db.batch(() => {
        // Of all of them, the batch tells the outcome.
        for (const { key, text } of rows) (text === undefined ? this.#db.remove(key) : this.#db.put(key, text)).catch(() => {})
      })
    } catch (error) {
      this.#isBroken = true
      throw await toServiceError(error)
    }
  }

  async close (): Promise<void> {
    await this.#running
    await this.#db.close()
  }
}

/** Behind every number and every uid, in the order of keys. */
const END = '\uffff'

/** All keys that begin so. */
function beneath (prefix: Key): { start: Key, end: Key } {
  return { start: prefix, end: [...prefix, END] }
}
