// SPDX-License-Identifier: BSD-3-Clause
/*
 * From a fresh clone to something that can run: system packages, node_modules, the native library, the compiled TypeScript.
 *
 * It runs before node_modules exists, so it imports nothing but Node itself. Each step is skipped when what it depends on has not
 * changed (a content hash beside the product, written last, so that a build that was killed leaves none); when nothing has
 * changed, it costs some milliseconds and prints nothing.
 *
 *   node src/setup.mjs            everything that the service needs
 *   node src/setup.mjs bench      and what npm run bench needs
 *   node src/setup.mjs native     the native library only
 *
 * PMEMSETD_SETUP says whether it may install: auto (do it), ask (ask first), off (say what is missing and end). Unset, it is off
 * with NODE_ENV=production, ask on a terminal and auto else.
 */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { availableParallelism } from 'node:os'
import { delimiter, dirname, join, relative } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { fileURLToPath } from 'node:url'

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)))
const BUILD = join(ROOT, 'build')
const STAMPS = join(BUILD, '.stamps')
const LOCK_WAIT_SECONDS = 1800
const NODE_OLDEST = [20, 20]

/** Something that the user has to know and that needs no stack. */
export class SetupError extends Error {}

const say = (text) => { console.error(`pmemsetd: ${text}`) }

/* ---- system packages ---- */

const inPath = (command) => (process.env.PATH ?? '').split(delimiter).some((dir) => dir !== '' && fs.existsSync(join(dir, command)))
const administrators = (command) => ['/usr/sbin', '/sbin'].some((dir) => fs.existsSync(join(dir, command)))
const header = (name) => ['/usr/include', '/usr/local/include'].some((dir) => fs.existsSync(join(dir, name)))
const clangRuntime = () => filesBelow('/usr/lib/llvm-14/lib/clang', (name) => /^libclang_rt\.fuzzer(-\w+)?\.a$/.test(name)).length > 0

/** Debian's name of each package, why it is wanted, and how to see that it, or the same from elsewhere, is there. */
export const PACKAGES = {
  build: [
    { name: 'gcc', why: 'compiles the engine', there: () => inPath('gcc') },
    { name: 'libc6-dev', why: 'headers of the C library', there: () => header('stdio.h') },
    { name: 'make', why: 'runs the build', there: () => inPath('make') },
    { name: 'cmake', why: 'describes the build', there: () => inPath('cmake') },
    { name: 'pkg-config', why: 'finds libpmem2', there: () => inPath('pkg-config') },
    { name: 'libpmem2-dev', why: 'the flush instructions and the media that the engine stands on', there: () => header('libpmem2.h') }
  ],
  test: [
    { name: 'libcmocka-dev', why: 'native tests', there: () => header('cmocka.h') },
    { name: 'clang-format', why: 'layout of C', there: () => inPath('clang-format') },
    { name: 'clang-tidy', why: 'analysis of C', there: () => inPath('clang-tidy') },
    { name: 'cppcheck', why: 'analysis of C', there: () => inPath('cppcheck') },
    { name: 'curl', why: 'the session of the README', there: () => inPath('curl') }
  ],
  valgrind: [
    { name: 'valgrind', why: 'native tests under memcheck and helgrind', there: () => inPath('valgrind') }
  ],
  dax: [
    { name: 'qemu-system-x86', why: 'a virtual machine with persistent memory', there: () => inPath('qemu-system-x86_64') },
    { name: 'busybox-static', why: 'the first commands in it', there: () => inPath('busybox') },
    { name: 'ndctl', why: 'makes its persistent memory a block device', there: () => inPath('ndctl') },
    { name: 'e2fsprogs', why: 'ext4 on that', there: () => administrators('mkfs.ext4') },
    { name: 'xfsprogs', why: 'xfs on that', there: () => administrators('mkfs.xfs') },
    { name: 'dmsetup', why: 'disks that fail, and that keep a log', there: () => administrators('dmsetup') },
    { name: 'kmod', why: 'finds the modules of its kernel', there: () => administrators('depmod') },
    { name: 'cpio', why: 'packs what it boots from', there: () => inPath('cpio') },
    { name: 'xz-utils', why: 'unpacks its kernel', there: () => inPath('xz') }
  ],
  bench: [
    { name: 'nginx', why: 'a peer: files by sendfile, WebDAV', there: () => inPath('nginx'), service: ['nginx'] },
    { name: 'redis-server', why: 'a peer: strings, appended to a log', there: () => inPath('redis-server'), service: ['redis-server'] },
    { name: 'redis-tools', why: 'redis-benchmark', there: () => inPath('redis-benchmark') },
    { name: 'webdis', why: 'a peer: Redis over HTTP', there: () => inPath('webdis'), service: ['webdis'] },
    { name: 'etcd-server', why: 'a peer: durable values', there: () => inPath('etcd'), service: ['etcd'] }
  ],
  fuzz: [
    { name: 'clang-14', why: 'compiles what libFuzzer drives', there: () => inPath('clang-14') },
    { name: 'libclang-rt-14-dev', why: 'libFuzzer, and the sanitizers of clang', there: clangRuntime }
  ]
}

function mode () {
  const asked = process.env.PMEMSETD_SETUP
  if (asked === undefined || asked === '') {
    if (process.env.NODE_ENV === 'production') return 'off'
    return process.stdin.isTTY && process.stderr.isTTY ? 'ask' : 'auto'
  }
  if (!['auto', 'ask', 'off'].includes(asked)) throw new SetupError(`PMEMSETD_SETUP is ${JSON.stringify(asked)}; it must be auto, ask or off`)
  return asked
}

/** Whether to run these commands, which are shown first in any case. */
async function allowed (reason, commands) {
  const how = mode()
  const list = commands.map((command) => `    ${command}`).join('\n')
  if (how === 'off') throw new SetupError(`${reason}; nothing is installed with PMEMSETD_SETUP=off or NODE_ENV=production. Run:\n${list}`)
  say(`${reason}; to be run:\n${list}`)
  if (how === 'auto') return
  if (!process.stdin.isTTY) throw new SetupError('PMEMSETD_SETUP=ask, but there is no terminal to ask on: run the lines above, or set PMEMSETD_SETUP=auto')
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  const answer = (await terminal.question('pmemsetd: run that now? [Y/n] ')).trim().toLowerCase()
  terminal.close()
  if (!['', 'y', 'yes'].includes(answer)) throw new SetupError('not installed, as you said: run the lines above yourself, then again')
}

/** An installation that starts no server, now or with the machine: the bench starts its own, on loopback. A policy that is there already is left alone. */
const WITHOUT_STARTING = `policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then trap 'rm -f $policy' EXIT; printf '#!/bin/sh\\nexit 101\\n' >$policy && chmod 755 $policy; fi
services=$1; shift; "$@"; status=$?
if command -v systemctl >/dev/null; then systemctl --quiet disable $services; fi
exit $status`

/** Installs from the distribution what is not there yet. */
export async function systemPackages (wanted) {
  const missing = wanted.filter((one) => !one.there())
  if (missing.length === 0) return
  const names = missing.map((one) => one.name)
  const reason = `missing: ${missing.map((one) => `${one.name} (${one.why})`).join(', ')}`
  if (!inPath('apt-get')) throw new SetupError(`${reason}; this system has no apt-get: install what carries these names on Debian, then again`)

  const root = process.getuid?.() === 0
  const prefix = root ? ['env', 'DEBIAN_FRONTEND=noninteractive'] : ['sudo', '-n', 'env', 'DEBIAN_FRONTEND=noninteractive']
  const update = [...prefix, 'apt-get', 'update']
  const services = missing.flatMap(({ service }) => service ?? [])
  const calmly = services.length > 0 ? ['sh', '-c', WITHOUT_STARTING, 'sh', services.join(' ')] : []
  const apt = ['apt-get', 'install', '-y', '--no-install-recommends', '-o', 'DPkg::Lock::Timeout=300', ...names]
  const install = [...prefix, ...calmly, ...apt]
  const shown = [...prefix, ...apt, ...(services.length > 0 ? [`   # and ${services.join(', ')} neither started nor enabled`] : [])]
  await allowed(reason, [update.join(' '), shown.join(' ')])

  const byHand = `run as root:\n    apt-get update && apt-get install -y --no-install-recommends ${names.join(' ')}`
  if (!root && (!inPath('sudo') || spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status !== 0)) {
    throw new SetupError(`cannot become root without a password: ${byHand}`)
  }
  // A source that does not answer is no reason to stop while the lists that are there may be enough: the install decides.
  if (loud(update) !== 0) say('apt-get update failed; trying with the lists that are there')
  if (loud(install) !== 0) throw new SetupError(`the packages could not be installed: ${byHand}`)
  const still = missing.filter((one) => !one.there()).map((one) => one.name)
  if (still.length > 0) throw new SetupError(`installed, but still not to be found: ${still.join(' ')}`)
}

/* ---- commands ---- */

function loud ([command, ...args]) {
  // Its output is on stderr, so that the service's own stdout stays its own.
  const done = spawnSync(command, args, { cwd: ROOT, stdio: ['ignore', 2, 2] })
  return done.status ?? 1
}

/** Runs quietly; what it printed is shown when it fails. Asynchronous, so that two builds can run side by side. */
function quiet (command, args, env = process.env) {
  return new Promise((resolve, reject) => {
    // A tool holds the folder's lock as well: it may outlive a set-up that is killed, and would write beside the next one.
    const child = spawn(command, args, { cwd: ROOT, env, stdio: ['ignore', 'pipe', 'pipe', lock ?? 'ignore'] })
    const output = []
    child.stdout.on('data', (data) => output.push(data))
    child.stderr.on('data', (data) => output.push(data))
    child.on('error', (error) => { reject(new SetupError(`${command}: ${error.message}`)) })
    child.on('close', (status) => {
      if (status === 0) { resolve(); return }
      const text = Buffer.concat(output).toString().trimEnd()
      reject(new SetupError(`${text}\nfailed: ${[command, ...args].join(' ')}`))
    })
  })
}

/* ---- what has changed ---- */

function filesBelow (dir, wanted) {
  const found = []
  for (const entry of fs.existsSync(dir) ? fs.readdirSync(dir, { withFileTypes: true }) : []) {
    const path = join(dir, entry.name)
    if (entry.isDirectory()) found.push(...filesBelow(path, wanted))
    else if (wanted(entry.name)) found.push(path)
  }
  return found.sort()
}

function hashOf (files, ...rest) {
  const hash = createHash('sha256')
  for (const text of rest) hash.update(`${text}\0`)
  for (const file of files) hash.update(`${relative(ROOT, file)}\0`).update(fs.readFileSync(file)).update('\0')
  return hash.digest('hex')
}

const stampOf = (name) => join(STAMPS, name)
const readStamp = (name) => fs.existsSync(stampOf(name)) ? fs.readFileSync(stampOf(name), 'utf8').split('\n') : []

function writeStamp (name, text) {
  const whole = `${stampOf(name)}.${process.pid}`
  fs.writeFileSync(whole, text)
  fs.renameSync(whole, stampOf(name))
}

/**
 * One step of the build. `inputs` hashes what it depends on; `product` is a file that must be there, and as it was left; `clean`
 * removes all that the step has made.
 */
async function step ({ name, inputs, product, clean, build }) {
  const before = inputs()
  const [madeFrom, made] = readStamp(name)
  const changed = madeFrom !== before
  const damaged = !changed && made !== (fs.existsSync(product) ? hashOf([product]) : '')
  if (!changed && !damaged) return
  const underway = stampOf(`${name}.underway`)
  fs.mkdirSync(STAMPS, { recursive: true })
  const killed = fs.existsSync(underway)
  if (killed) say(`an earlier build of ${name} did not finish: once more from the start`)
  // Both make and the compiler believe in what lies there: damage has to go first.
  if (killed || damaged) clean()
  fs.rmSync(stampOf(name), { force: true })
  fs.writeFileSync(underway, `${process.pid}\n`)
  const started = performance.now()
  say(`building ${name}`)
  try {
    await build()
  } catch (error) {
    // The tools ended by themselves: what they left is what they would leave at any mistake in a source, and they can go on from it.
    fs.rmSync(underway, { force: true })
    throw error
  }
  if (!fs.existsSync(product)) throw new SetupError(`${relative(ROOT, product)} was not made`)
  // Inputs that changed meanwhile are not in the product: the next run has to see a difference.
  writeStamp(name, `${before}\n${hashOf([product])}`)
  fs.rmSync(underway, { force: true })
  say(`built ${name} in ${((performance.now() - started) / 1000).toFixed(1)} s`)
}

/**
 * Does `work` as the only one in this folder. The lock belongs to the open file, which flock(1) shares with us, so the kernel frees it
 * even after a kill -9.
 */
export async function alone (work) {
  lock = lockFolder()
  try { return await work() } finally { fs.closeSync(lock); lock = undefined }
}

let lock

function lockFolder () {
  fs.mkdirSync(STAMPS, { recursive: true })
  const file = fs.openSync(join(STAMPS, 'lock'), 'a')
  const take = (...how) => spawnSync('flock', ['-x', ...how, '3'], { stdio: ['ignore', 2, 2, file] })
  const first = take('-n')
  if (first.error) throw new SetupError(`flock (package util-linux) is needed: ${first.error.message}`)
  if (first.status === 0) return file
  say('another set-up runs in this folder: waiting for it')
  if (take('-w', String(LOCK_WAIT_SECONDS)).status !== 0) throw new SetupError(`another set-up held this folder for ${LOCK_WAIT_SECONDS} s`)
  return file
}

/* ---- the steps ---- */

/** Whether node_modules holds what the lock file names: npm writes its own list last, so a half-way installation has none. */
function modulesMatch () {
  const installed = join(ROOT, 'node_modules', '.package-lock.json')
  if (!fs.existsSync(installed)) return false
  const have = JSON.parse(fs.readFileSync(installed, 'utf8')).packages
  const want = JSON.parse(fs.readFileSync(join(ROOT, 'package-lock.json'), 'utf8')).packages
  return Object.entries(want).every(([path, { version, optional }]) => path === '' || optional === true || have[path]?.version === version)
}

async function nodeModules () {
  if (modulesMatch()) return
  // No package here needs its install script (koffi carries its binary), so none is run.
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--include=dev', '--include=optional']
  await allowed('node_modules is missing or is not what package-lock.json names', [`npm ${args.join(' ')}`])
  const npm = process.env.npm_execpath?.endsWith('.js') ? [process.execPath, process.env.npm_execpath] : ['npm']
  if (loud([...npm, ...args]) !== 0) throw new SetupError('npm ci failed: see above')
}

/** Makes one build folder of native/; `options` are CMake's. The engine itself is the default. Called under `alone`. */
export async function buildNative ({ name = 'native', product = 'libpmemset.so.1', type = 'RelWithDebInfo', options = [] } = {}) {
  const source = join(ROOT, 'native')
  const folder = join(BUILD, name)
  const tests = [
    ...options.includes('-DPMEMSET_TESTS=ON') ? filesBelow(join(ROOT, 'test', 'native'), () => true) : [],
    ...options.some((option) => /^-DPMEMSET_(TESTS|BENCH)=ON$/.test(option)) ? filesBelow(join(ROOT, 'test', 'bench', 'native'), () => true) : [],
    ...options.some((option) => /^-DPMEMSET_(TESTS|FUZZ)=ON$/.test(option))
      ? filesBelow(join(ROOT, 'test', 'fuzz'), (name) => /^CMakeLists\.txt$|\.c$/.test(name))
      : []
  ]
  const clean = () => { fs.rmSync(folder, { recursive: true, force: true }) }
  await step({
    name,
    product: join(folder, product),
    inputs: () => hashOf([...filesBelow(source, () => true), ...tests], ROOT, process.arch, type, ...options, process.env.CC, process.env.CFLAGS),
    clean,
    build: async () => {
      // CMake refuses a folder that was moved or copied with its cache.
      const cache = join(folder, 'CMakeCache.txt')
      if (fs.existsSync(cache) && !fs.readFileSync(cache, 'utf8').includes(`CMAKE_HOME_DIRECTORY:INTERNAL=${source}\n`)) clean()
      await quiet('cmake', ['-S', source, '-B', folder, '-G', 'Unix Makefiles', `-DCMAKE_BUILD_TYPE=${type}`, ...options])
      await quiet('cmake', ['--build', folder, '--parallel', String(availableParallelism())])
    }
  })
}

const COMPILED = ['src', 'routes', 'test']
const buildInfo = join(BUILD, 'tsconfig.tsbuildinfo')

/** The compiler leaves the output of a source that is gone, and tap would go on running it. */
function dropOrphans () {
  for (const dir of COMPILED) {
    for (const file of filesBelow(join(BUILD, dir), (name) => /\.js(\.map)?$/.test(name))) {
      const source = join(ROOT, relative(BUILD, file)).replace(/\.js(\.map)?$/, '.ts')
      if (!fs.existsSync(source)) fs.rmSync(file)
    }
  }
}

async function typeScript () {
  const sources = () => [
    ...COMPILED.flatMap((dir) => filesBelow(join(ROOT, dir), (name) => name.endsWith('.ts'))),
    join(ROOT, 'tsconfig.json'), join(ROOT, 'package-lock.json')
  ]
  const product = join(BUILD, 'src', 'main.js')
  const clean = () => { for (const dir of COMPILED) fs.rmSync(join(BUILD, dir), { recursive: true, force: true }); fs.rmSync(buildInfo, { force: true }) }
  await step({
    name: 'typescript',
    product,
    inputs: () => hashOf(sources()),
    clean,
    build: async () => {
      // The incremental state believes in its own list, not in what is on the disk.
      const outputs = sources().filter((file) => file.endsWith('.ts')).map((file) => join(BUILD, relative(ROOT, file)).replace(/\.ts$/, '.js'))
      if (outputs.some((file) => !fs.existsSync(file))) fs.rmSync(buildInfo, { force: true })
      dropOrphans()
      await quiet(process.execPath, [join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', ROOT])
    }
  })
}

function checkMachine () {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major < NODE_OLDEST[0] || (major === NODE_OLDEST[0] && minor < NODE_OLDEST[1])) {
    throw new SetupError(`Node ${process.versions.node} is too old: ${NODE_OLDEST.join('.')} or newer is needed`)
  }
  if (process.platform !== 'linux') throw new SetupError(`this is ${process.platform}: the engine needs Linux (mmap at fixed addresses, MAP_SYNC, openat2)`)
}

/** Everything that `what` needs: 'start', 'test', 'bench', 'native' for the library alone, 'native-test' and 'native-fuzz' for what its tests stand on. */
export async function setUp (what) {
  checkMachine()
  mode() // a wrong value is told at once, not when it first matters
  await alone(() => allSteps(what))
}

async function peers () {
  try {
    await systemPackages(PACKAGES.bench)
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    say(`without some peers: ${error.message}`)
  }
}

async function allSteps (what) {
  const withNode = !what.startsWith('native')
  const further = what.endsWith('test') ? PACKAGES.test : what === 'native-fuzz' ? PACKAGES.fuzz : []
  await systemPackages([...PACKAGES.build, ...further])
  if (what === 'bench') await peers()
  if (withNode) await nodeModules()
  const builds = await Promise.allSettled(withNode ? [buildNative(), typeScript()] : [buildNative()])
  const failed = builds.filter((one) => one.status === 'rejected').map((one) => one.reason)
  if (failed.length === 0) return
  if (failed.every((reason) => reason instanceof SetupError)) throw new SetupError(failed.map((reason) => reason.message).join('\n\n'))
  throw new AggregateError(failed, 'set-up failed')
}

/* ---- the command ---- */

if (process.argv[1] !== undefined && fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const what = process.argv[2] ?? 'start'
  try {
    if (!['start', 'test', 'bench', 'native'].includes(what)) throw new SetupError(`${JSON.stringify(what)} is not start, test, bench or native`)
    await setUp(what)
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    say(error.message)
    process.exitCode = 1
  }
}
