// SPDX-License-Identifier: BSD-3-Clause
//
// A catalog that lives as long as the process.
import type { Catalog, Change, PartRecord, SetRecord } from './catalog.js'

interface Entry {
  set: SetRecord
  parts: Map<number, PartRecord>
}

export class MemoryCatalog implements Catalog {
  readonly #entries = new Map<string, Entry>()

  sets (): Iterable<SetRecord> {
    return [...this.#entries.values()].map((entry) => entry.set)
  }

  parts (uid: string): Iterable<PartRecord> {
    return this.#entries.get(uid)?.parts.values() ?? []
  }

  async commit (changes: readonly Change[]): Promise<void> {
    for (const change of changes) this.#apply(change)
  }

  #apply (change: Change): void {
    switch (change.kind) {
      case 'put-set':
        this.#entries.set(change.set.uid, { set: change.set, parts: this.#entries.get(change.set.uid)?.parts ?? new Map<number, PartRecord>() })
        break
      case 'delete-set':
        this.#entries.delete(change.uid)
        break
      case 'put-part':
        this.#entries.get(change.part.set)?.parts.set(change.part.cookie, change.part)
        break
      case 'delete-part':
        this.#entries.get(change.set)?.parts.delete(change.cookie)
    }
  }

  async close (): Promise<void> {
    this.#entries.clear()
  }
}
