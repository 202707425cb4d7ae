// SPDX-License-Identifier: BSD-3-Clause
//
// The product, put together: what the routes may ask.
import type { Catalog } from '../catalog/catalog.js'
import type { Config } from '../config.js'
import type { Engine } from '../engine/engine.js'
import { CATALOGUE, ServiceError, statusesOf, type AnyCode } from '../errors.js'
import type { Census } from '../metrics.js'
import type { Capabilities, ErrorCode, Health } from '../schemas.js'
import { Memory, Streams } from './memory.js'
import { Operations } from './operations.js'
import { Sets } from './sets.js'
import { Volumes } from './volumes.js'

export class Service {
  readonly sets: Sets
  readonly volumes: Volumes
  readonly memory: Memory
  readonly operations: Operations
  readonly #engine: Engine
  readonly #catalog: Catalog
  readonly #config: Config
  readonly #version: string

  constructor ({ engine, catalog, config, version }: { engine: Engine, catalog: Catalog, config: Config, version: string }) {
    const { limits } = config
    this.#engine = engine
    this.#catalog = catalog
    this.#config = config
    this.#version = version
    this.volumes = new Volumes(engine, config.volumes, limits)
    this.sets = new Sets({ engine, catalog, volumes: this.volumes, limits })
    this.operations = new Operations(limits)
    this.memory = new Memory(new Streams(limits.streams))
  }

  async capabilities (): Promise<Capabilities> {
    const { abi, libpmem2, addressesStable, simulated, pageSize, mappingsMax } = this.#engine.info()
    return {
      version: this.#version,
      engine: { abi, libpmem2 },
      addressesStable,
      ...(simulated === undefined ? {} : { simulated }),
      pageSize,
      limits: { ...this.#config.limits, mappings: mappingsMax },
      granularities: await this.volumes.granularities()
    }
  }

  readiness (): Health {
    return { status: 'ready', sets: this.sets.count, parts: this.sets.partCount, volumes: this.volumes.count }
  }

  /** What there is, in numbers, for who watches. */
  census (): Census {
    const { mappings, mappingsMax } = this.#engine.info()
    return { ...this.sets.census(), mappings, mappingsMax, ...this.#engine.counters() }
  }

  /** Makes what was written durable, and lets everything go. Answers what failed. */
  async close (): Promise<unknown[]> {
    const ended = await this.sets.close()
    this.volumes.close()
    await this.#catalog.close()
    return ended.filter((one) => one.status === 'rejected').map((one): unknown => one.reason)
  }
}

function describeCode (code: AnyCode): ErrorCode {
  const { library, number, status, title, meaning, advice, retryable = false } = CATALOGUE[code]
  return { code, library, ...(number === undefined ? {} : { number }), status, statuses: statusesOf(code), title, meaning, advice, retryable }
}

export function listCodes (): ErrorCode[] {
  return (Object.keys(CATALOGUE) as AnyCode[]).map(describeCode)
}

export function getCode (code: string): ErrorCode {
  if (!Object.hasOwn(CATALOGUE, code)) throw new ServiceError('ROUTE_NOT_FOUND', 'There is no such code.')
  return describeCode(code as AnyCode)
}
