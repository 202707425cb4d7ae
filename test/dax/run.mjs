// SPDX-License-Identifier: BSD-3-Clause
/*
 * The service on real DAX: it runs in a virtual machine with persistent memory (machine.mjs) and is driven from here over loopback.
 *
 *   npm run test:dax                  everything
 *   npm run test:dax -- media byte    parts of it
 *
 * A case that fails does not stop the ones behind it, but where its machine is gone.
 */
import fs from 'node:fs'
import { inspect } from 'node:util'
import { cuts } from './cuts.mjs'
import { faults } from './faults.mjs'
import { logged } from './logged.mjs'
import { byte, media } from './media.mjs'
import { prepare } from './machine.mjs'
import { SetupError } from '../../src/setup.mjs'

const PARTS = { media, byte, faults, logged, cuts }

const totals = { passed: 0, failed: 0, skipped: 0 }

async function check (name, work) {
  const started = performance.now()
  const seconds = () => `${((performance.now() - started) / 1000).toFixed(1)} s`
  try {
    await work()
    totals.passed++
    console.log(`ok: ${name} (${seconds()})`)
    return true
  } catch (error) {
    totals.failed++
    console.log(`FAILED: ${name} (${seconds()}): ${error instanceof SetupError ? error.message : inspect(error)}`) // with its causes, of which a stack tells nothing
    return false
  }
}

function skip (name, why) {
  totals.skipped++
  console.log(`skipped: ${name}: ${why}`)
}

async function all (wanted) {
  const unknown = wanted.filter((name) => PARTS[name] === undefined)
  if (unknown.length > 0) throw new SetupError(`${unknown.join(' ')}: there are ${Object.keys(PARTS).join(', ')}`)
  if (process.arch !== 'x64') { skip('all of it', `the emulated machine is an x86-64, and this Node is for ${process.arch}`); return }
  if (!fs.existsSync('/usr/bin/dpkg-deb')) { skip('all of it', 'its kernel is a package of Debian, and this system has no dpkg'); return }
  if (!await check('kernel, initrd and token', prepare)) return
  for (const [name, part] of Object.entries(PARTS)) if (wanted.length === 0 || wanted.includes(name)) await part({ check, skip })
}

try {
  await all(process.argv.slice(2))
} catch (error) {
  totals.failed++
  console.log(`FAILED: ${error instanceof SetupError ? error.message : error.stack}`)
}
const { passed, failed, skipped } = totals
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0
