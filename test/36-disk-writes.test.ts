// SPDX-License-Identifier: BSD-3-Clause
//
// What a small durable write costs the disk. The device counts its sectors, whatever else the machine does. With large folios in the page cache a store
// of 64 bytes through a mapping would write megabytes.
import t, { type Test } from 'tap'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { tmpfs, mounted, cannotMount } from './media.js'
import { call, cannot, makeFile, makeSet, mapPart, MIB, must, open, PAGE, plus } from './service.js'

const DISK_MIB = 128
const FILE_BYTES = 64 * MIB
const WRITES = 512
const WRITE_BYTES = 64
const DISK_BYTES_PER_WRITE_MAX = 8 * 1024
const SECTOR = 512
/** Of /sys/block/…/stat. */
const SECTORS_WRITTEN = 6

const without = cannotMount !== false ? cannotMount : cannot('truncate -s 16M image && mkfs.ext4 -q image && mkdir m && mount -o loop image m && cat /sys/block/$(basename $(findmnt -no SOURCE m))/stat; s=$?; umount m; exit $s')

/** An ext4 on a loop device, on which nothing is left to be done in the background; and how many bytes its device has written. */
function disk (t: Test): { dir: string, written: () => number } {
  const beneath = mounted(t, tmpfs(`${DISK_MIB + 32}m`))
  const image = makeFile(beneath, 'image', DISK_MIB * MIB)
  execFileSync('mkfs.ext4', ['-q', '-b', '4096', '-J', 'size=8', '-E', 'lazy_itable_init=0,lazy_journal_init=0', image])
  const dir = mounted(t, (dir) => ['mount', '-o', 'loop,noatime', image, dir])
  const device = basename(execFileSync('findmnt', ['-no', 'SOURCE', dir], { encoding: 'utf8' }).trim())
  return { dir, written: () => Number(readFileSync(join('/sys/block', device, 'stat'), 'latin1').trim().split(/\s+/)[SECTORS_WRITTEN]) * SECTOR }
}

/** Pages all over the file, each once. */
function randomPages (): number[] {
  const pages = Array.from({ length: FILE_BYTES / PAGE }, (_, i) => i)
  for (let i = 0; i < WRITES; i++) {
    const j = i + Math.floor(Math.random() * (pages.length - i));
    [pages[i], pages[j]] = [pages[j]!, pages[i]!]
  }
  return pages.slice(0, WRITES)
}

for (const [name, clients] of [['one after the other', 1], ['by 32 clients', 32]] as const) {
  t.test(`durable writes of 64 bytes at random pages, ${name}`, { skip: without }, async (t) => {
    const { dir, written } = disk(t)
    // Whole and on the disk: what is written is the pages, not the file's making.
    makeFile(dir, 'f.bin', Buffer.alloc(FILE_BYTES, 1))
    execFileSync('sync', ['-f', dir])
    const opened = await open(t, { dir })
    const set = await makeSet(t, opened)
    const { addr } = await mapPart(t, opened, set.id, 'f.bin', { length: FILE_BYTES }, { create: 'never' })
    // The engine's first flush of a file is no client's.
    await must(t, opened, 'PUT', `/sets/${set.id}/memory?addr=${addr}`, Buffer.alloc(WRITE_BYTES, 2))

    const pages = randomPages()
    const before = written()
    await Promise.all(Array.from({ length: clients }, async (_, client) => {
      for (let i = client; i < pages.length; i += clients) {
        const { status, json } = await call(t, opened, 'PUT', `/sets/${set.id}/memory?addr=${plus(addr, pages[i]! * PAGE)}`, Buffer.alloc(WRITE_BYTES, 3))
        if (status !== 200 || json.durability !== 'persisted') t.fail(`a write: ${status} ${JSON.stringify(json)}`)
      }
    }))
    const each = (written() - before) / WRITES
    t.ok(each >= PAGE * 0.99, `the pages are on the disk when it is said: ${each} bytes for each write`)
    t.ok(each <= DISK_BYTES_PER_WRITE_MAX, `at most ${DISK_BYTES_PER_WRITE_MAX}: ${each}`)
  })
}
