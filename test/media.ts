// SPDX-License-Identifier: BSD-3-Clause
//
// What tests of faults share: file systems that are small, full, or lose what is written to them. They need root; the tests skip with the reason elsewhere.
import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, readFileSync, readSync, rmSync, statSync, truncateSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import type { Test } from 'tap'
import type { Catalog, Change, FailuresRecord, IntentRecord, PartRecord, ServiceRecord, SetRecord } from '../src/catalog/catalog.js'
import { ServiceError } from '../src/errors.js'
import { cannot, makeFile, MIB, PAGE } from './service.js'

/** For tap's `skip`: why there can be no mounts. */
export const cannotMount = cannot('mkdir m && mount -t tmpfs -o size=1m none m && umount m')
/** For tap's `skip`: why ext4 cannot be had. */
export const cannotLoop = cannotMount !== false ? cannotMount : cannot('truncate -s 16M image && mkfs.ext4 -q image && mkdir m && mount -o loop image m && umount m')
/** For tap's `skip`: why brokenDisk cannot be had. */
export const cannotBreak = cannotLoop !== false ? cannotLoop : cannot('truncate -s 16M image && mkfs.ext4 -q image && filefrag -v image && debugfs -R "blocks <8>" image && fallocate -p -o 0 -l 4096 image')

/** A file system at a directory of its own, until the end of the test; lazily, since a file whose flush failed stays open in the engine. */
export function mounted (t: Test, command: (dir: string) => string[], dir = mkdtempSync(join(tmpdir(), 'pmemsetd-mount-'))): string {
  const [program = '', ...args] = command(dir)
  execFileSync(program, args)
  t.teardown(() => {
    execFileSync('umount', ['-l', dir])
    rmSync(dir, { recursive: true, force: true })
  })
  return dir
}

export const tmpfs = (size: string) => (dir: string): string[] => ['mount', '-t', 'tmpfs', '-o', `size=${size}`, 'none', dir]

/** An ext4 in an image that is made for it. */
export function ext4 (t: Test, image: string, { size, more = [], onMade = () => {} }: { size: number, more?: string[], onMade?: (image: string) => void }): string {
  makeFile(dirname(image), basename(image), size)
  execFileSync('mkfs.ext4', ['-q', '-b', '4096', ...more, image])
  onMade(image)
  const dir = mounted(t, (dir) => ['mount', '-o', 'loop,noatime', image, dir])
  rmSync(join(dir, 'lost+found'), { recursive: true })
  return dir
}

/** Every file beneath it, to be compared: how large it is, what space it takes, which bytes it has; but for the catalog, and for what takes the space. */
export function files (dir: string): string[] {
  const names = readdirSync(dir, { recursive: true, encoding: 'utf8' }).filter((name) => name !== FILLER && !name.startsWith('.pmemset'))
  return names.map((name) => {
    const path = join(dir, name)
    const found = statSync(path)
    const bytes = found.isFile() ? createHash('sha256').update(readFileSync(path)).digest('base64url') : 'a directory'
    return `${name}: ${found.size} bytes, ${found.blocks} blocks, ${bytes}`
  }).sort()
}

const FILLER = 'filler'

/** Takes all space but so many bytes. */
export function fill (dir: string, spare = 0): void {
  const fd = openSync(join(dir, FILLER), 'w')
  let size = 0
  for (const piece of [MIB, PAGE]) {
    const bytes = Buffer.alloc(piece, 1)
    for (let wrote = piece; wrote > 0;) {
      try {
        wrote = writeSync(fd, bytes)
      } catch {
        wrote = 0
      }
      size += wrote
    }
  }
  ftruncateSync(fd, size - spare)
  closeSync(fd)
}

/** Gives all that space back. */
export function empty (dir: string): void {
  truncateSync(join(dir, FILLER), 0)
}

export interface BrokenDisk {
  dir: string
  mend: () => void
  /** What the disk itself has of a file, as it would be found after a power cut; whatever is in memory is not among it. */
  afterPowerCut: (name: string) => Buffer
  /** Writes to where the disk has the file, behind everybody's back. */
  overwrite: (name: string, bytes: Buffer) => void
}

/** Gives the journal of an ext4 its space: one that cannot be written makes the file system read-only, which is another fault than that of a file. */
function backJournal (image: string): void {
  const blocks = execFileSync('debugfs', ['-R', 'blocks <8>', image], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim().split(/\s+/).map(Number)
  const fd = openSync(image, 'r+')
  const bytes = Buffer.alloc(PAGE)
  for (const block of blocks) {
    readSync(fd, bytes, 0, PAGE, block * PAGE)
    writeSync(fd, bytes, 0, PAGE, block * PAGE)
  }
  closeSync(fd)
}

/** An ext4 on a loop device on a small tmpfs, and files on it, of four pages, for which the tmpfs has no space left. */
export function brokenDisk (t: Test, names: readonly string[]): BrokenDisk {
  const beneath = mounted(t, tmpfs('40m'))
  const image = join(beneath, 'image')
  const dir = ext4(t, image, { size: 128 * MIB, more: ['-J', 'size=8'], onMade: backJournal })
  // What a service writes there itself, so that its blocks are there later.
  makeFile(dir, '.pmemset/lock', '0000000\n')
  for (const name of names) makeFile(dir, name, Buffer.alloc(4 * PAGE, 'd'))
  execFileSync('sync', ['-f', dir])
  const places = new Map<string, number>()
  for (const name of names) {
    const extents = execFileSync('filefrag', ['-v', '-b4096', join(dir, name)], { encoding: 'utf8' })
    const found = [...extents.matchAll(/^ *\d+: +\d+\.\. +\d+: +(\d+)\.\. +\d+: +(\d+):/gm)]
    if (found.length !== 1) throw new Error(extents)
    places.set(name, Number(found[0]?.[1]) * PAGE)
    for (const [, first, count] of found) execFileSync('fallocate', ['-p', '-o', String(Number(first) * 4096), '-l', String(Number(count) * 4096), image])
  }
  fill(beneath)
  return {
    dir,
    mend: () => { empty(beneath) },
    afterPowerCut: (name) => {
      const copy = join(mkdtempSync(join(tmpdir(), 'pmemsetd-copy-')), 'image')
      t.teardown(() => { rmSync(dirname(copy), { recursive: true, force: true }) })
      execFileSync('cp', ['--sparse=always', image, copy])
      return readFileSync(join(mounted(t, (at) => ['mount', '-o', 'loop,ro,noload', copy, at]), name))
    },
    overwrite: (name, bytes) => {
      const fd = openSync(image, 'r+')
      writeSync(fd, bytes, 0, bytes.length, places.get(name))
      closeSync(fd)
    }
  }
}

// What another service would be: this engine, in another process.
const MAPS_IT = `
import { Engine } from '${new URL('../src/engine/engine.js', import.meta.url).href}'
const engine = Engine.start({ arenaBase: 0n, arenaSize: 0n, mappingsMax: 0, logSize: 0, logKeepFree: 0 })
const set = engine.newSet({ windowSize: 2 ** 21, partsMax: 0, requiredGranularity: 'page', coalescing: 'none' })
const [dir, path] = process.argv.slice(-2)
const part = await engine.mapPart(set, { volume: engine.openVolume(dir), path, offset: 0, length: 0, cookie: 1, keepFree: 0, create: 'never', mode: 0, grow: false })
await engine.read(set, part.addr, Buffer.alloc(part.length))
process.stdout.write('mapped')
setInterval(() => {}, 1000)
`

/** Another process that has mapped all of a file and holds its pages, until the function that it answers is called. */
export async function mapElsewhere (t: Test, dir: string, name: string): Promise<() => Promise<void>> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', MAPS_IT, dir, name], { stdio: ['ignore', 'pipe', 'inherit'] })
  const end = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGKILL')
    await once(child, 'exit')
  }
  t.teardown(end)
  await once(child.stdout, 'data')
  return end
}

/** A catalog whose commits fail as they would for want of space, as long as `refuses` says so. */
export class Refusing implements Catalog {
  refuses: (changes: readonly Change[]) => boolean = () => false
  readonly #catalog: Catalog

  constructor (catalog: Catalog) {
    this.#catalog = catalog
  }

  service = (): ServiceRecord | undefined => this.#catalog.service()
  sets = (): Iterable<SetRecord> => this.#catalog.sets()
  parts = (uid: string): Iterable<PartRecord> => this.#catalog.parts(uid)
  partCount = (uid: string): number => this.#catalog.partCount(uid)
  failures = (uid: string): FailuresRecord | undefined => this.#catalog.failures(uid)
  intents = (): Iterable<IntentRecord> => this.#catalog.intents()
  repeats = (): ReturnType<Catalog['repeats']> => this.#catalog.repeats()
  close = (): Promise<void> => this.#catalog.close()
  commit = (changes: readonly Change[]): Promise<void> => (this.refuses(changes) ? Promise.reject(new ServiceError('NO_SPACE', 'No.')) : this.#catalog.commit(changes))
}
