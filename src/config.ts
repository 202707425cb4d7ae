// SPDX-License-Identifier: BSD-3-Clause
//
// Configuration is by environment. Each setting is one row of a table: what it is called, what it is when unset, what it may be. A wrong value or an
// unknown PMEMSETD_ name is refused before anything starts, with the name, the value and what is allowed.
import { isIP } from 'node:net'
import { existsSync, realpathSync } from 'node:fs'
import { basename, dirname, join, resolve, sep } from 'node:path'

export class ConfigError extends Error {
  override readonly name = 'ConfigError'
}

export interface VolumeConfig {
  name: string
  /** Absolute. */
  path: string
}

export type Simulate = 'byte' | 'cache_line'

/** Every bound on what clients can make the service hold or do. */
export interface Limits {
  sets: number
  partsPerSet: number
  windowBytesDefault: number
  windowBytes: number
  windowBytesTotal: number
  /** Kernel mappings; 0: what the kernel allows less 8 192. */
  mappings: number
  bodyBytes: number
  batchBytes: number
  batchOperations: number
  batchResultBytes: number
  /** What a batch of atomicity `all` takes in its volume's redo log. */
  atomicBatchBytes: number
  ranges: number
  list: number
  labels: number
  labelNameChars: number
  labelValueChars: number
  streams: number
  idempotencyKeys: number
  connections: number
  /** Free space kept on a volume, in percent of its capacity. */
  keepFreePercent: number
}

export interface Config {
  host: string
  port: number
  /** Path of a Unix socket, which takes the place of host and port. */
  socket?: string
  volumes: VolumeConfig[]
  /** Where the catalog is: absolute. */
  stateDir: string
  /** A catalog is accepted on a medium that cannot keep it. */
  ephemeral: boolean
  /** Path of the token file. */
  tokens?: string
  /** Lower-case names, IPv6 in brackets, that a Host header may have. */
  allowedHosts: string[]
  simulate?: Simulate
  arenaBase: bigint
  arenaSize: bigint
  /** A request that takes longer is logged. */
  slowMs: number
  limits: Limits
}

const KIB = 1024
const UNITS: Record<string, number> = { '': 1, KiB: KIB, MiB: KIB ** 2, GiB: KIB ** 3, TiB: KIB ** 4 }
const GIB = KIB ** 3
const TIB = KIB ** 4

interface Setting<T> {
  fallback: T
  allowed: string
  /** Undefined: not allowed. */
  parse: (text: string) => T | undefined
}

function integer (fallback: number, min: number, max: number): Setting<number> {
  return {
    fallback,
    allowed: `an integer from ${min} to ${max}`,
    parse: (text) => {
      const value = /^(0|[1-9][0-9]{0,15})$/.test(text) ? Number(text) : NaN
      return value >= min && value <= max ? value : undefined
    }
  }
}

function bytes (fallback: number, min: number, max: number, step = 1): Setting<number> {
  return {
    fallback,
    allowed: `bytes from ${min} to ${max}${step === 1 ? '' : ` in steps of ${step}`}, with KiB, MiB, GiB or TiB behind the number if you like`,
    parse: (text) => {
      const match = /^(0|[1-9][0-9]{0,15})(KiB|MiB|GiB|TiB|)$/.exec(text)
      const value = match === null ? NaN : Number(match[1]) * (UNITS[match[2] ?? ''] ?? NaN)
      return value >= min && value <= max && value % step === 0 ? value : undefined
    }
  }
}

function hexadecimal (allowed: string): Setting<bigint> {
  return { fallback: 0n, allowed, parse: (text) => (/^0x[0-9a-fA-F]{1,16}$/.test(text) ? BigInt(text) : undefined) }
}

function boolean (fallback: boolean): Setting<boolean> {
  return { fallback, allowed: 'true or false', parse: (text) => (text === 'true' ? true : text === 'false' ? false : undefined) }
}

const HOST_NAME = /^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])$/
const VOLUME_NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/

function parseVolumes (text: string): VolumeConfig[] | undefined {
  const volumes: VolumeConfig[] = []
  for (const item of text.split(',')) {
    const at = item.indexOf('=')
    const name = item.slice(0, Math.max(at, 0))
    const path = item.slice(at + 1)
    if (!VOLUME_NAME.test(name) || path === '' || path.includes('\0') || volumes.some((v) => v.name === name)) return undefined
    volumes.push({ name, path: resolve(path) })
  }
  return volumes
}

function parseHosts (text: string): string[] | undefined {
  const names = text.split(',').map((name) => name.trim().toLowerCase())
  return names.every((name) => HOST_NAME.test(name)) ? names : undefined
}

function path (): Setting<string | undefined> {
  return { fallback: undefined, allowed: 'a path', parse: (text) => (text === '' || text.includes('\0') ? undefined : resolve(text)) }
}

// What the kernel has room for in an address of a Unix socket; Node binds a longer path cut short.
const SOCKET_PATH_BYTES_MAX = 107

function socketPath (): Setting<string | undefined> {
  const any = path()
  return {
    fallback: undefined,
    allowed: `a path that is absolute in at most ${SOCKET_PATH_BYTES_MAX} bytes`,
    parse: (text) => {
      const absolute = any.parse(text)
      return absolute !== undefined && Buffer.byteLength(absolute) <= SOCKET_PATH_BYTES_MAX ? absolute : undefined
    }
  }
}

const SETTINGS = {
  PMEMSETD_HOST: {
    fallback: '127.0.0.1',
    allowed: 'an IP address, or localhost for 127.0.0.1; other than loopback only with PMEMSETD_TOKENS',
    parse: (text: string) => (text === 'localhost' ? '127.0.0.1' : isIP(text) !== 0 ? text : undefined)
  },
  PMEMSETD_PORT: integer(8080, 0, 65535),
  PMEMSETD_SOCKET: socketPath(),
  PMEMSETD_VOLUMES: {
    fallback: [{ name: 'default', path: resolve('data') }],
    allowed: 'name=path, more after commas; names are lower-case letters, digits, ".", "_" and "-", and differ',
    parse: parseVolumes
  },
  PMEMSETD_STATE_DIR: path(),
  PMEMSETD_EPHEMERAL: boolean(false),
  PMEMSETD_TOKENS: path(),
  PMEMSETD_ALLOWED_HOSTS: { fallback: ['localhost', '127.0.0.1', '[::1]'], allowed: 'host names without port, separated by commas, IPv6 in brackets', parse: parseHosts },
  PMEMSETD_SIMULATE: {
    fallback: undefined as Simulate | undefined,
    allowed: 'byte or cache_line (for tests)',
    parse: (text: string): Simulate | undefined => (text === 'byte' || text === 'cache_line' ? text : undefined)
  },
  PMEMSETD_ARENA_BASE: hexadecimal('an address in hexadecimal with 0x in front'),
  PMEMSETD_ARENA_SIZE: hexadecimal('bytes in hexadecimal with 0x in front'),
  PMEMSETD_SLOW_MS: integer(1000, 1, 3_600_000),
  PMEMSETD_SETS_MAX: integer(256, 1, 4096),
  PMEMSETD_PARTS_PER_SET_MAX: integer(30_000, 1, 1_000_000),
  PMEMSETD_WINDOW_BYTES_DEFAULT: bytes(64 * GIB, 2 * KIB ** 2, 4 * TIB),
  PMEMSETD_WINDOW_BYTES_MAX: bytes(4 * TIB, 2 * KIB ** 2, 64 * TIB),
  PMEMSETD_WINDOW_BYTES_TOTAL_MAX: bytes(16 * TIB, 2 * KIB ** 2, 64 * TIB),
  PMEMSETD_MAPPINGS_MAX: integer(0, 0, 2 ** 31 - 1),
  PMEMSETD_BODY_BYTES_MAX: bytes(KIB ** 2, KIB, 64 * KIB ** 2),
  PMEMSETD_BATCH_BYTES_MAX: bytes(16 * KIB ** 2, KIB, 64 * KIB ** 2),
  PMEMSETD_BATCH_OPERATIONS_MAX: integer(10_000, 1, 100_000),
  PMEMSETD_BATCH_RESULT_BYTES_MAX: bytes(16 * KIB ** 2, KIB, 64 * KIB ** 2),
  PMEMSETD_ATOMIC_BATCH_BYTES_MAX: bytes(32 * KIB ** 2, 64 * KIB, GIB, 64 * KIB),
  PMEMSETD_RANGES_MAX: integer(1024, 1, 65_536),
  PMEMSETD_LIST_MAX: integer(1000, 1, 10_000),
  PMEMSETD_LABELS_MAX: integer(64, 0, 1024),
  PMEMSETD_LABEL_NAME_CHARS_MAX: integer(63, 1, 253),
  PMEMSETD_LABEL_VALUE_CHARS_MAX: integer(256, 0, 4096),
  PMEMSETD_STREAMS_MAX: integer(256, 1, 4096),
  PMEMSETD_IDEMPOTENCY_KEYS_MAX: integer(10_000, 1, 1_000_000),
  PMEMSETD_CONNECTIONS_MAX: integer(4096, 1, 65_536),
  PMEMSETD_KEEP_FREE_PERCENT: integer(1, 0, 99)
} satisfies Record<string, Setting<unknown>>

type Settings = typeof SETTINGS
type SettingName = keyof Settings
type Values = { [K in SettingName]: Settings[K]['fallback'] }

/** What a volume holds of the service's own: no client gets there. */
export const STATE_NAME = '.pmemset'

// Read by other parts of the product: the set-up that runs before this.
const ELSEWHERE = ['PMEMSETD_SETUP']

/** What the README's and the /docs tables are checked against. */
export const SETTING_NAMES: readonly string[] = Object.keys(SETTINGS)

function distance (a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}

function nearest (name: string, known: readonly string[]): string {
  return known.reduce((best, candidate) => (distance(name, candidate) < distance(name, best) ? candidate : best))
}

function readValues (env: NodeJS.ProcessEnv): Values {
  const known = [...SETTING_NAMES, ...ELSEWHERE]
  for (const name of Object.keys(env)) {
    if (!name.startsWith('PMEMSETD_') || known.includes(name)) continue
    throw new ConfigError(`${name} is not a setting; did you mean ${nearest(name, known)}?`)
  }
  const values: Record<string, unknown> = {}
  for (const [name, setting] of Object.entries(SETTINGS) as Array<[string, Setting<unknown>]>) {
    const text = env[name]
    if (text === undefined) {
      values[name] = setting.fallback
      continue
    }
    const value = setting.parse(text)
    if (value === undefined) throw new ConfigError(`${name} is ${JSON.stringify(text)}; allowed is ${setting.allowed}`)
    values[name] = value
  }
  return values as Values
}

export function isLoopback (host: string): boolean {
  return host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

function hostNames (host: string, allowed: readonly string[]): string[] {
  return [...new Set([...allowed, isIP(host) === 6 ? `[${host.toLowerCase()}]` : host])]
}

/** Reads and checks the settings; touches no file. */
export function loadConfig (env: NodeJS.ProcessEnv): Config {
  const v = readValues(env)
  if (v.PMEMSETD_SOCKET === undefined && !isLoopback(v.PMEMSETD_HOST) && v.PMEMSETD_TOKENS === undefined) {
    throw new ConfigError(`PMEMSETD_HOST is "${v.PMEMSETD_HOST}", which others can reach; allowed is a loopback address, or any with PMEMSETD_TOKENS`)
  }
  if (v.PMEMSETD_WINDOW_BYTES_DEFAULT > v.PMEMSETD_WINDOW_BYTES_MAX) {
    throw new ConfigError(`PMEMSETD_WINDOW_BYTES_DEFAULT is ${v.PMEMSETD_WINDOW_BYTES_DEFAULT}; allowed is at most PMEMSETD_WINDOW_BYTES_MAX, ${v.PMEMSETD_WINDOW_BYTES_MAX}`)
  }
  return {
    host: v.PMEMSETD_HOST,
    port: v.PMEMSETD_PORT,
    ...(v.PMEMSETD_SOCKET === undefined ? {} : { socket: v.PMEMSETD_SOCKET }),
    volumes: v.PMEMSETD_VOLUMES,
    stateDir: v.PMEMSETD_STATE_DIR ?? join(v.PMEMSETD_VOLUMES[0]?.path ?? '', STATE_NAME),
    ephemeral: v.PMEMSETD_EPHEMERAL,
    ...(v.PMEMSETD_TOKENS === undefined ? {} : { tokens: v.PMEMSETD_TOKENS }),
    allowedHosts: hostNames(v.PMEMSETD_HOST, v.PMEMSETD_ALLOWED_HOSTS),
    ...(v.PMEMSETD_SIMULATE === undefined ? {} : { simulate: v.PMEMSETD_SIMULATE }),
    arenaBase: v.PMEMSETD_ARENA_BASE,
    arenaSize: v.PMEMSETD_ARENA_SIZE,
    slowMs: v.PMEMSETD_SLOW_MS,
    limits: {
      sets: v.PMEMSETD_SETS_MAX,
      partsPerSet: v.PMEMSETD_PARTS_PER_SET_MAX,
      windowBytesDefault: v.PMEMSETD_WINDOW_BYTES_DEFAULT,
      windowBytes: v.PMEMSETD_WINDOW_BYTES_MAX,
      windowBytesTotal: v.PMEMSETD_WINDOW_BYTES_TOTAL_MAX,
      mappings: v.PMEMSETD_MAPPINGS_MAX,
      bodyBytes: v.PMEMSETD_BODY_BYTES_MAX,
      batchBytes: v.PMEMSETD_BATCH_BYTES_MAX,
      batchOperations: v.PMEMSETD_BATCH_OPERATIONS_MAX,
      batchResultBytes: v.PMEMSETD_BATCH_RESULT_BYTES_MAX,
      atomicBatchBytes: v.PMEMSETD_ATOMIC_BATCH_BYTES_MAX,
      ranges: v.PMEMSETD_RANGES_MAX,
      list: v.PMEMSETD_LIST_MAX,
      labels: v.PMEMSETD_LABELS_MAX,
      labelNameChars: v.PMEMSETD_LABEL_NAME_CHARS_MAX,
      labelValueChars: v.PMEMSETD_LABEL_VALUE_CHARS_MAX,
      streams: v.PMEMSETD_STREAMS_MAX,
      idempotencyKeys: v.PMEMSETD_IDEMPOTENCY_KEYS_MAX,
      connections: v.PMEMSETD_CONNECTIONS_MAX,
      keepFreePercent: v.PMEMSETD_KEEP_FREE_PERCENT
    }
  }
}

function real (setting: string, place: string): string {
  try {
    return realpathSync(place)
  } catch (error) {
    throw new ConfigError(`${setting}: ${place} cannot be used (${(error as NodeJS.ErrnoException).code ?? 'unknown error'})`)
  }
}

function isBeneath (place: string, directory: string): boolean {
  return place === directory || place.startsWith(directory.endsWith(sep) ? directory : directory + sep)
}

/**
 * Refuses volumes that overlap, and a token file, socket or catalog that a client could reach through a volume. Looks at the real paths, so the volumes must
 * exist; a bind mount of one volume inside another is caught by the engine, which crosses no mount.
 */
export function checkPlaces (config: Config): void {
  const volumes = config.volumes.map((v) => ({ name: v.name, path: real('PMEMSETD_VOLUMES', v.path) }))
  for (const a of volumes) {
    const other = volumes.find((b) => b !== a && isBeneath(b.path, a.path))
    if (other !== undefined) throw new ConfigError(`PMEMSETD_VOLUMES: ${other.name} lies in ${a.name}; allowed are volumes that do not overlap`)
  }
  const guarded: Array<[string, string]> = []
  if (config.tokens !== undefined) guarded.push(['PMEMSETD_TOKENS', real('PMEMSETD_TOKENS', config.tokens)])
  if (config.socket !== undefined) guarded.push(['PMEMSETD_SOCKET', real('PMEMSETD_SOCKET', dirname(config.socket))])
  const state = join(real('PMEMSETD_STATE_DIR', dirname(config.stateDir)), basename(config.stateDir))
  if (state !== join(volumes[0]?.path ?? '', STATE_NAME)) guarded.push(['PMEMSETD_STATE_DIR', existsSync(state) ? real('PMEMSETD_STATE_DIR', state) : state])
  for (const [setting, place] of guarded) {
    const volume = volumes.find((v) => isBeneath(place, v.path))
    if (volume !== undefined) throw new ConfigError(`${setting} lies in the volume ${volume.name}, where clients could reach it; allowed is a path outside of all volumes`)
  }
}
