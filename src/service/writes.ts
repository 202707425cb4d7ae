// SPDX-License-Identifier: BSD-3-Clause
//
// Small writes of one set at page granularity: whoever comes while a group is under way is in the next one, which is one call of the engine and one flush of
// each file. Nobody waits for more than the group before his own.
import type { Durability, Engine, Handle, Write, Written } from '../engine/engine.js'
import { EngineError } from '../errors.js'

const GROUP_WRITES_MAX = 1024
const GROUP_BYTES_MAX = 1024 * 1024

interface Waiting extends Write {
  resolve: (written: Written) => void
  reject: (error: unknown) => void
}

class Queue {
  readonly #engine: Engine
  readonly #waiting: Waiting[] = []
  #isRunning = false

  constructor (engine: Engine) {
    this.#engine = engine
  }

  add (write: Write): Promise<Written> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ ...write, resolve, reject })
      // By the end of this turn of the loop, whatever the sockets had ready is here.
      if (!this.#isRunning) {
        this.#isRunning = true
        setImmediate(() => { this.#run().catch(() => {}) }) // it catches what there is to catch
      }
    })
  }

  async #run (): Promise<void> {
    while (this.#waiting.length > 0) {
      const group = this.#take()
      try {
        const outcomes = await this.#engine.writeMany(group)
        group.forEach(({ resolve, reject }, i) => {
          const outcome = outcomes[i]
          if (outcome === undefined || outcome instanceof EngineError) reject(outcome)
          else resolve(outcome)
        })
      } catch (error) {
        for (const { reject } of group) reject(error)
      }
    }
    this.#isRunning = false
  }

  #take (): Waiting[] {
    let bytes = 0
    let count = 0
    for (const one of this.#waiting) {
      if (count === GROUP_WRITES_MAX || (count > 0 && bytes + one.bytes.length > GROUP_BYTES_MAX)) break
      bytes += one.bytes.length
      count++
    }
    return this.#waiting.splice(0, count)
  }
}

export class GroupedWrites {
  readonly #handle: Handle
  readonly #durable: Queue
  readonly #others: Queue

  constructor (engine: Engine, handle: Handle) {
    this.#handle = handle
    this.#durable = new Queue(engine)
    this.#others = new Queue(engine)
  }

  write (addr: bigint, bytes: Buffer, durability: Durability): Promise<Written> {
    // Those that want no flush do not wait for one.
    return (durability === 'none' ? this.#others : this.#durable).add({ set: this.#handle, addr, bytes, durability })
  }
}
