// SPDX-License-Identifier: BSD-3-Clause
//
// What tests of faults share: file systems that are small, full, or lose what is written to them. They need root; the tests skip with the reason elsewhere.
import { execFileSync } from 'node:child_process'
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, truncateSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { cannot, makeFile, MIB, PAGE } from './service.js'

/** For tap's `skip`: why there can be no mounts. */
export const cannotMount = cannot('mkdir m && mount -t tmpfs -o size=1m none m && umount m')
/** For tap's `skip`: why brokenDisk cannot be had. */
export const cannotBreak = cannotMount !== false ? cannotMount : cannot('truncate -s 16M image && mkfs.ext4 -q image && mkdir m && mount -o loop image m && umount m && filefrag -v image && fallocate -p -o 0 -l 4096 image')

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

/** Takes all space but so many bytes. */
export function fill (dir: string, spare = 0): void {
  const fd = openSync(join(dir, 'filler'), 'w')
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

/** An ext4 on a loop device on a small tmpfs, and a file on it for which the tmpfs has no space left. */
export function brokenDisk (t: Test, names: readonly string[]): { dir: string, mend: () => void } {
  const beneath = mounted(t, tmpfs('40m'))
  const image = join(beneath, 'image')
  makeFile(beneath, 'image', 128 * MIB)
  execFileSync('mkfs.ext4', ['-q', '-b', '4096', '-J', 'size=8', image])
  const dir = mounted(t, (dir) => ['mount', '-o', 'loop,noatime', image, dir])
  rmSync(join(dir, 'lost+found'), { recursive: true })
  for (const name of names) makeFile(dir, name, Buffer.alloc(4 * PAGE, 'd'))
  execFileSync('sync', ['-f', dir])
  for (const name of names) {
    const extents = execFileSync('filefrag', ['-v', '-b4096', join(dir, name)], { encoding: 'utf8' })
    const found = [...extents.matchAll(/^ *\d+: +\d+\.\. +\d+: +(\d+)\.\. +\d+: +(\d+):/gm)]
    if (found.length === 0) throw new Error(extents)
    for (const [, first, count] of found) execFileSync('fallocate', ['-p', '-o', String(Number(first) * 4096), '-l', String(Number(count) * 4096), image])
  }
  fill(beneath)
  return { dir, mend: () => { truncateSync(join(beneath, 'filler'), 0) } }
}
