// SPDX-License-Identifier: BSD-3-Clause
//
// Parts that are on record, mapped where they were: when the service starts, when a removal cannot be recorded, and when somebody has mended what was in the
// way. What cannot be mapped keeps its addresses, and the set tells what is in the way.
import type { PartRecord } from '../catalog/catalog.js'
import type { FormerFile, FormerPart, RestoredPart } from '../engine/engine.js'
import { ServiceError } from '../errors.js'
import type { LivePart, LiveSet, MissingPart } from './set.js'

/** In one call of the engine, during which the set can do nothing else. */
export const PARTS_AT_A_TIME = 2000

/** No volume has it. */
const NO_HANDLE = 0

const VOLUME_GONE = 'The volume of the part is none of those that the service has.'

type Recorded = LivePart & { record: PartRecord }

/** Each file once, however many parts it has; and with each part the index of its file. */
function filesOf (set: LiveSet, parts: readonly Recorded[], adopt: boolean): { files: FormerFile[], indexes: number[] } {
  const known = new Map<string, number>()
  const files: FormerFile[] = []
  const indexes = parts.map(({ record: { source, identity } }) => {
    // The lengths tell where each ends, whatever is in it.
    const key = `${source.volume.length} ${source.path.length} ${source.volume}${source.path}${identity}`
    let index = known.get(key)
    if (index === undefined) {
      index = files.push({ volume: set.context.volumes.find(source.volume)?.handle ?? NO_HANDLE, path: source.path, identity, adopt }) - 1
      known.set(key, index)
    }
    return index
  })
  return { files, indexes }
}

function problemOf (set: LiveSet, { record }: Recorded, outcome: RestoredPart): MissingPart['problem'] | undefined {
  if (outcome.error === undefined) return undefined
  if (set.context.volumes.find(record.source.volume) !== undefined) return outcome.error
  return new ServiceError('VOLUME_NOT_FOUND', VOLUME_GONE, { volume: record.source.volume }, 'body')
}

async function restoreSome (set: LiveSet, parts: readonly Recorded[], adopt: boolean): Promise<void> {
  const { files, indexes } = filesOf(set, parts, adopt)
  const former = parts.map(({ record: { offset, length, cookie, addr, coalesced } }, i): FormerPart => ({ file: indexes[i] ?? 0, offset, length, cookie, addr: BigInt(addr), joins: coalesced }))
  const restored = await set.context.engine.restore(set.handle, files, former)
  parts.forEach((part, i) => {
    const outcome = restored.parts[i]
    if (outcome === undefined) throw new Error('the engine has left a part out')
    if (outcome.error === undefined) {
      const { granularity, persistence, mapSync } = outcome
      const { record } = part
      const identity = adopt ? restored.identities[indexes[i] ?? 0] ?? '' : record.identity
      // Most are as they were: a copy of each would be half of what a start puts into memory.
      const isSame = identity === record.identity && granularity === record.granularity && persistence === record.persistence && mapSync === record.mapSync
      if (!isSame) part.record = { ...record, identity, granularity, persistence, mapSync }
    }
    set.setProblem(part, problemOf(set, part, outcome))
  })
}

function isRecorded (part: LivePart | undefined): part is Recorded {
  return part?.record !== undefined
}

/** Maps right behind the parts that were one with theirs: taken out, to be mapped again as such. One that is in use stays a map of its own, until the next start. */
async function takeFollowers (set: LiveSet, parts: readonly Recorded[]): Promise<Recorded[]> {
  const { engine } = set.context
  const taken: Recorded[] = []
  for (const { cookie, record } of parts) {
    const end = BigInt(record.addr) + BigInt(record.length)
    const map = engine.lookup(set.handle, end)
    const first = map === undefined ? undefined : set.partOf(map.cookie)
    if (map?.mapAddr !== end || first?.record?.coalesced !== true || first.cookie < cookie) continue
    const { removed } = await engine.removeMap(set.handle, end, map.mapParts).catch(() => ({ removed: [] }))
    taken.push(...removed.map((one) => set.partOf(one.cookie)).filter(isRecorded))
  }
  return taken
}

/** Maps parts again that were mapped until now, or could not be; `adopt` takes whatever file is at the path of each. */
export async function bringBack (set: LiveSet, parts: Iterable<LivePart>, { adopt = false } = {}): Promise<void> {
  const recorded = [...parts].filter(isRecorded)
  const followers = await takeFollowers(set, recorded)
  if (followers.length === 0 || !adopt) {
    await restoreParts(set, [...recorded, ...followers], { adopt })
  } else {
    await restoreParts(set, recorded, { adopt })
    await restoreParts(set, followers)
  }
  await set.context.volumes.recoverWaiting()
}

/** Maps parts that are on record, of a set where nothing is mapped behind them. What came of each, the set tells. */
export async function restoreParts (set: LiveSet, parts: Iterable<LivePart>, { adopt = false } = {}): Promise<void> {
  const recorded = [...parts].filter(isRecorded)
  // As they were made: which map a part belongs to depends on the parts before it.
  recorded.sort((a, b) => a.cookie - b.cookie)
  for (let i = 0; i < recorded.length; i += PARTS_AT_A_TIME) {
    await restoreSome(set, recorded.slice(i, i + PARTS_AT_A_TIME), adopt)
  }
}
