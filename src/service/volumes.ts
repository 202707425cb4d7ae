// SPDX-License-Identifier: BSD-3-Clause
//
// Volumes: the directories that the operator allows. Every path of a client is relative to one of them, and the engine holds each open, so that what a
// name leads to cannot be exchanged behind the service.
import type { Limits, VolumeConfig } from '../config.js'
import type { Engine, Granularity, Handle } from '../engine/engine.js'
import { GRANULARITIES } from '../engine/engine.js'
import { ServiceError, type Circumstance } from '../errors.js'
import type { Probe, Volume } from '../schemas.js'

export interface OpenVolume extends VolumeConfig {
  handle: Handle
}

export class Volumes {
  readonly #engine: Engine
  readonly #limits: Limits
  readonly #open = new Map<string, OpenVolume>()
  /** Whether there may be any that waits for a file. */
  #waits = true

  constructor (engine: Engine, volumes: readonly VolumeConfig[], limits: Limits) {
    this.#engine = engine
    this.#limits = limits
    for (const volume of volumes) this.#open.set(volume.name, { ...volume, handle: engine.openVolume(volume.path) })
  }

  get count (): number {
    return this.#open.size
  }

  list (): Promise<Volume[]> {
    return Promise.all([...this.#open.values()].map((volume) => this.#describe(volume)))
  }

  get (name: string): Promise<Volume> {
    return this.#describe(this.#named(name))
  }

  async probe (name: string, path: string): Promise<Probe> {
    const { exists, size, reason, ...rest } = await this.#engine.probe(this.#named(name).handle, path)
    return { exists, ...(exists ? { size } : {}), ...rest, ...(reason === '' ? {} : { reason }) }
  }

  /** What a new file of some volume gets, finest first. */
  async granularities (): Promise<Granularity[]> {
    const found = new Set((await this.list()).map((volume) => volume.granularity))
    return GRANULARITIES.filter((granularity) => found.has(granularity))
  }

  /** The volume that a body names; the first one where it names none. */
  ofSource (name: string | undefined): OpenVolume {
    const first = this.#open.values().next().value
    return name === undefined && first !== undefined ? first : this.#named(name ?? '', 'body')
  }

  /** Of a record; undefined: there is none of that name any more. */
  find (name: string): OpenVolume | undefined {
    return this.#open.get(name)
  }

  /** Bytes that growing files must leave on a volume. */
  async keepFree (name: string): Promise<number> {
    const { capacity } = await this.#engine.volumeInfo(this.#named(name).handle)
    return Math.floor(capacity * this.#limits.keepFreePercent / 100)
  }

  /** Makes batches of atomicity `all` whole that were committed and not made: once the parts of their files are back. */
  async recover (): Promise<void> {
    const kept = await Promise.all([...this.#open.values()].map(({ handle }) => this.#engine.recover(handle)))
    this.#waits = kept.some((count) => count > 0)
  }

  /** The same where some of them wait for a file that may have come. Whoever stores to what still waits is told so. */
  async recoverWaiting (): Promise<void> {
    if (this.#waits) await this.recover().catch(() => {})
  }

  close (): void {
    for (const { handle } of this.#open.values()) this.#engine.closeVolume(handle)
    this.#open.clear()
  }

  #named (name: string, circumstance?: Circumstance): OpenVolume {
    const volume = this.#open.get(name)
    if (volume === undefined) throw new ServiceError('VOLUME_NOT_FOUND', 'There is no volume of that name.', { volumes: [...this.#open.keys()] }, circumstance)
    return volume
  }

  async #describe ({ name, handle }: OpenVolume): Promise<Volume> {
    const { capacity, available, numaNode, ...rest } = await this.#engine.volumeInfo(handle)
    return { name, ...rest, capacityBytes: capacity, freeBytes: available, ...(numaNode === undefined ? {} : { numaNode }) }
  }
}
