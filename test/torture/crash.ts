// SPDX-License-Identifier: BSD-3-Clause
//
// Loaded into the service before it starts (node --import): kills the process at a named point, TORTURE_CRASH=<point>:<before|after>:<which call of it>.
// A point is a step that changes something for good; between two of them nothing does.
import { LmdbCatalog } from '../../src/catalog/lmdb.js'
import { Engine } from '../../src/engine/engine.js'

type Method = (this: unknown, ...args: unknown[]) => unknown

const [name = '', when = '', count = ''] = (process.env.TORTURE_CRASH ?? '').split(':')
const [owner = '', method = ''] = name.split('.')
const prototype = ({ catalog: LmdbCatalog, engine: Engine } as Record<string, { prototype: object }>)[owner]?.prototype as Record<string, Method> | undefined
const original = prototype?.[method]
let left = Number(count)

function die (): never {
  process.kill(process.pid, 'SIGKILL')
  for (;;);
}

if (name !== '') {
  if (prototype === undefined || original === undefined) throw new Error(`there is no point ${name}`)
  prototype[method] = function (...args) {
    const isIt = --left === 0
    if (isIt && when === 'before') die()
    const result = original.apply(this, args)
    if (!isIt) return result
    if (!(result instanceof Promise)) die()
    return result.finally(die)
  }
}
