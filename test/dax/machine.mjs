// SPDX-License-Identifier: BSD-3-Clause
/*
 * A virtual machine that has what this one lacks: persistent memory, in the shape of files that QEMU shows as NVDIMMs, and a kernel whose
 * file systems map it (DAX). It sees this machine's root read-only over 9p, so the service that runs in it is the one that was built
 * here, with the native library, the packages and Node as they are.
 *
 * QEMU emulates (TCG): /dev/kvm may be there and yet start no kernel, which only shows by waiting. Its network reaches nothing: two ports
 * of this machine's loopback are led into it. What it needs is kept in build/dax; the kernel comes from Debian's package, unpacked there
 * and not installed.
 */
import { strict as assert } from 'node:assert'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { Agent, request } from 'node:http'
import { createServer } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { PACKAGES, ROOT, SetupError, setUp, systemPackages } from '../../src/setup.mjs'

export const WORK = join(ROOT, 'build', 'dax')
const KERNEL = join(WORK, 'kernel')
const VMLINUX = join(KERNEL, 'vmlinux')
export const BUNDLE = join(WORK, 'service.mjs')
const TOKENS = join(WORK, 'tokens.json')
const GUEST_ADDRESS = '10.0.2.15'
const BOOT_SECONDS_MAX = 180
const COMMAND_SECONDS_MAX = 120
const START_SECONDS_MAX = 180
const TRY_MS_MAX = 5000
const REQUEST_MS_MAX = 120_000
// What has to be there before the 9p root is.
const FIRST_MODULES = ['virtio_pci', 'virtio_net', '9p', '9pnet_virtio', 'overlay']

export const MIB = 1024 * 1024
export const PAGE = 4096

/** An address some bytes further, or back. */
export const plus = (addr, bytes) => `0x${(BigInt(addr) + BigInt(bytes)).toString(16)}`

let token = ''

function must (command, args, options = {}) {
  const done = spawnSync(command, args, { cwd: ROOT, maxBuffer: 256 * 1024 * 1024, ...options })
  if (done.error) throw done.error
  if (done.status !== 0) throw new SetupError(`${[command, ...args].join(' ')} ended with ${done.status}:\n${done.stdout}${done.stderr}`)
  return done.stdout
}

/* ---- what it is made of ---- */

/** The name of the package of the newest kernel, which Debian's `linux-image-amd64` stands for. */
function kernelPackage () {
  const find = () => /Depends: (linux-image-\S+)/.exec(spawnSync('apt-cache', ['depends', 'linux-image-amd64'], { encoding: 'utf8' }).stdout ?? '')?.[1]
  const known = find()
  if (known !== undefined) return known
  must(...(process.getuid() === 0 ? ['apt-get', ['update']] : ['sudo', ['-n', 'apt-get', 'update']]))
  const found = find()
  if (found === undefined) throw new SetupError('this system\'s package lists know no linux-image-amd64')
  return found
}

/** The kernel proper out of its self-extracting image, which would take five seconds to unpack itself under emulation. */
function vmlinuxOf (image) {
  const bytes = fs.readFileSync(image)
  const codeAt = (bytes[0x1f1] + 1) * 512 // behind the sectors of the real-mode part
  const payload = bytes.subarray(codeAt + bytes.readUInt32LE(0x248)).subarray(0, bytes.readUInt32LE(0x24c))
  return must('xz', ['--decompress', '--stdout', '--single-stream'], { input: payload })
}

const kernelVersion = () => fs.readdirSync(join(KERNEL, 'lib', 'modules'))[0]

/** The files of a module and of what it stands on, in the order to load them. /dev/null: ndctl's own configuration hides libnvdimm. */
function moduleFiles (name) {
  const listed = must('/sbin/modprobe', ['-C', '/dev/null', '-d', KERNEL, '-S', kernelVersion(), '--show-depends', name]).toString()
  return [...listed.matchAll(/^insmod (\S+)/gm)].map(([, file]) => file)
}

function unpackKernel () {
  const name = kernelPackage()
  console.log(`pmemsetd: fetching ${name}, a kernel for the virtual machine, into build/dax`)
  fs.rmSync(KERNEL, { recursive: true, force: true })
  const unpacked = `${KERNEL}.new`
  fs.rmSync(unpacked, { recursive: true, force: true })
  fs.mkdirSync(unpacked, { recursive: true })
  must('apt-get', ['download', name], { cwd: unpacked })
  const deb = fs.readdirSync(unpacked)[0]
  must('dpkg-deb', ['--extract', deb, '.'], { cwd: unpacked })
  fs.rmSync(join(unpacked, deb))
  const [version] = fs.readdirSync(join(unpacked, 'lib', 'modules'))
  must('/sbin/depmod', ['-b', unpacked, version])
  fs.writeFileSync(join(unpacked, 'vmlinux'), vmlinuxOf(join(unpacked, 'boot', `vmlinuz-${version}`)))
  fs.renameSync(unpacked, KERNEL)
}

/** With the modules that this machine needs. Not compressed: what the disk saves, the emulated processor would pay for. */
function makeInitrd (name, further) {
  const dir = join(WORK, `${name}.initrd`)
  fs.rmSync(dir, { recursive: true, force: true })
  for (const name of ['bin', 'modules']) fs.mkdirSync(join(dir, name), { recursive: true })
  const modules = [...new Set([...FIRST_MODULES, ...further].flatMap(moduleFiles))]
  for (const file of modules) fs.copyFileSync(file, join(dir, 'modules', basename(file)))
  fs.writeFileSync(join(dir, 'modules', 'order'), modules.map((file) => `${basename(file)}\n`).join(''))
  fs.copyFileSync(must('sh', ['-c', 'command -v busybox']).toString().trim(), join(dir, 'bin', 'busybox'))
  fs.copyFileSync(join(ROOT, 'test', 'dax', 'init.sh'), join(dir, 'init'))
  for (const file of ['bin/busybox', 'init']) fs.chmodSync(join(dir, file), 0o755)
  fs.writeFileSync(`${dir}.cpio`, must('sh', ['-c', 'find . | cpio --quiet -o -H newc'], { cwd: dir }))
  return `${dir}.cpio`
}

/**
 * The compiled service and its packages as one file, which the emulated machine reads in a third of the time of their hundreds. What each
 * module says of its own place stays true.
 */
async function makeBundle () {
  const { build } = await import('esbuild')
  const keepPlaces = (args) => {
    const place = { 'import.meta.url': pathToFileURL(args.path).href, 'import.meta.dirname': dirname(args.path), __dirname: dirname(args.path), __filename: args.path }
    const text = fs.readFileSync(args.path, 'utf8')
    return { contents: text.replaceAll(/import\.meta\.url|import\.meta\.dirname|\b__dirname\b|\b__filename\b/g, (name) => JSON.stringify(place[name])) }
  }
  await build({
    entryPoints: [join(ROOT, 'build', 'src', 'main.js')],
    outfile: BUNDLE,
    bundle: true,
    platform: 'node',
    format: 'esm',
    external: ['koffi', 'lmdb'], // they look for their binaries themselves
    banner: { js: 'import { createRequire } from \'node:module\'\nconst require = createRequire(import.meta.url)' },
    plugins: [{ name: 'places', setup: (bundler) => { bundler.onLoad({ filter: /\.[cm]?js$/ }, keepPlaces) } }]
  })
}

/** A program for the guest, of one file of this folder. */
export function program (name) {
  const path = join(WORK, name)
  must('gcc', ['-std=c11', '-D_GNU_SOURCE', '-O2', '-Wall', '-Wextra', '-Werror', '-o', path, join(ROOT, 'test', 'dax', `${name}.c`)])
  return path
}

/** Everything that a machine needs to boot, and a token for the service in it. */
export async function prepare () {
  await setUp('start')
  await systemPackages(PACKAGES.dax)
  fs.mkdirSync(WORK, { recursive: true })
  if (!fs.existsSync(VMLINUX)) unpackKernel()
  await makeBundle()
  fs.rmSync(TOKENS, { force: true })
  token = must(process.execPath, ['build/src/token.js', TOKENS, 'read,write,admin']).toString().trim()
}

/** A new file that reads as zeros and takes space as it is written: a medium for a machine. */
export function blank (name, bytes) {
  const path = join(WORK, name)
  fs.rmSync(path, { force: true })
  fs.writeFileSync(path, '')
  fs.truncateSync(path, bytes)
  return path
}

export async function freePort () {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

/** One request, and the reply with all of its body. */
async function exchange (options, ms, sent) {
  const message = request({ host: '127.0.0.1', signal: AbortSignal.timeout(ms), ...options })
  const replied = once(message, 'response')
  message.on('error', () => {}) // before the reply, `replied` tells of it; behind, the reply does
  message.end(sent)
  const [reply] = await replied
  return { reply, body: await buffer(reply) }
}

/* ---- a machine ---- */

// None of them outlives the tests, however these end.
const running = new Set()
process.on('exit', () => { for (const qemu of running) qemu.kill('SIGKILL') })
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { process.exit(1) })

export class Machine {
  #qemu
  #console
  #answers = []
  #rest = ''
  #port
  #filesPort
  #idle = [] // connections
  #opened = Promise.resolve() // the last of them

  /**
   * Boots one, with these kernel modules and those that they need. `nvdimms`, `virtioPmems` and `disks` are files: /dev/pmem0 and on are the first, then the second; /dev/vda and on the last.
   * `cachesPersist`: what saves the NVDIMMs saves the CPU caches as well.
   */
  static async boot ({ name, modules, nvdimms = [], virtioPmems = [], disks = [], cachesPersist = false }) {
    const machine = new Machine()
    machine.#port = await freePort()
    machine.#filesPort = await freePort()
    machine.#console = join(WORK, `${name}.console`)
    const memory = (id, file) => ['-object', `memory-backend-file,id=${id},share=on,mem-path=${file},size=${fs.statSync(file).size}`]
    const args = [
      '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', '1G,slots=8,maxmem=8G',
      '-machine', `q35,nvdimm=on${cachesPersist ? ',nvdimm-persistence=cpu' : ''}`,
      '-kernel', VMLINUX, '-initrd', makeInitrd(name, modules), '-display', 'none', '-vga', 'none', '-monitor', 'none', '-no-reboot', '-nodefaults',
      '-serial', `file:${machine.#console}`, '-chardev', 'stdio,id=commands,signal=off', '-serial', 'chardev:commands',
      '-append', `console=ttyS0 panic=-1 quiet nokaslr tsc=reliable no_timer_check mitigations=off random.trust_cpu=on 8250.nr_uarts=2 cryptomgr.notests guest=${join(ROOT, 'test', 'dax', 'guest.sh')}`,
      '-virtfs', 'local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap',
      '-netdev', `user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:${machine.#port}-${GUEST_ADDRESS}:8080,hostfwd=tcp:127.0.0.1:${machine.#filesPort}-${GUEST_ADDRESS}:8081`,
      '-device', 'virtio-net-pci,netdev=net,romfile=',
      // QEMU tells of the last one first.
      ...nvdimms.toReversed().flatMap((file, i) => [...memory(`nvdimm${i}`, file), '-device', `nvdimm,memdev=nvdimm${i}`]),
      ...virtioPmems.flatMap((file, i) => [...memory(`pmem${i}`, file), '-device', `virtio-pmem-pci,memdev=pmem${i}`]),
      ...disks.flatMap((file, i) => ['-drive', `if=none,id=disk${i},file=${file},format=raw`, '-device', `virtio-blk-pci,drive=disk${i}`])
    ]
    machine.#qemu = spawn('qemu-system-x86_64', args, { stdio: ['pipe', 'pipe', 'pipe'] })
    running.add(machine.#qemu)
    machine.#qemu.on('exit', () => { running.delete(machine.#qemu) })
    machine.#qemu.stdin.on('error', () => {}) // it may be gone: its end is told elsewhere
    machine.#qemu.stdout.on('data', (data) => { machine.#take(data.toString('latin1')) })
    let said = ''
    machine.#qemu.stderr.on('data', (data) => { said += data })
    machine.#qemu.on('close', (status, signal) => {
      for (const { reject } of machine.#answers.splice(0)) reject(new Error(`the virtual machine ended: ${signal ?? `exit ${status}`} ${said}${machine.#lastLines()}`))
    })
    try {
      const hello = await machine.#answer(BOOT_SECONDS_MAX)
      if (hello !== 'ready') throw new Error(`the virtual machine says ${JSON.stringify(hello)}`)
    } catch (error) {
      await machine.cut()
      throw error
    }
    return machine
  }

  #lastLines () {
    return fs.existsSync(this.#console) ? `\n${fs.readFileSync(this.#console, 'latin1').split('\n').slice(-20).join('\n')}` : ''
  }

  #take (text) {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()
    for (const line of lines) this.#answers.shift()?.resolve(line)
  }

  #answer (seconds) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => { reject(new Error(`no answer from the virtual machine in ${seconds} s${this.#lastLines()}`)) }, seconds * 1000)
      const settle = (how) => (value) => { clearTimeout(late); how(value) }
      this.#answers.push({ resolve: settle(resolve), reject: settle(reject) })
    })
  }

  /** What a script for bash printed in the guest, as root. */
  async run (script, seconds = COMMAND_SECONDS_MAX) {
    const answer = this.#answer(seconds)
    this.#qemu.stdin.write(`${Buffer.from(script).toString('base64')}\n`)
    const [status, said = ''] = (await answer).split(' ')
    return { status: Number(status), text: Buffer.from(said, 'base64').toString().trimEnd() }
  }

  async must (script, seconds) {
    const { status, text } = await this.run(`set -e\n${script}`, seconds)
    if (status !== 0) throw new Error(`in the virtual machine, status ${status}:\n${script}\n${text}`)
    return text
  }

  /** Makes the first so many NVDIMMs block devices that can be DAX, with which new ones begin as none; once in the life of each. */
  async namespaces (count) {
    for (let i = 0; i < count; i++) await this.must(`ndctl create-namespace -f -e namespace${i}.0 -m fsdax -M mem`)
  }

  /** Mounts a device at /mnt/NAME, which the options of `mkfs` have made a file system of before, where there are any. */
  async mount (device, name, { type = 'ext4', options = '', mkfs } = {}) {
    const make = { ext4: 'mkfs.ext4 -q -F -b 4096', xfs: 'mkfs.xfs -q -f' }[type] // ext4's own choice for a small device are smaller blocks, which cannot be DAX
    if (mkfs !== undefined) await this.must(`PATH=$PATH:/usr/sbin:/sbin; ${make} ${mkfs} ${device}`)
    const dir = `/mnt/${name}`
    await this.must(`mkdir -p ${dir}; mount -t ${type} ${options === '' ? '' : `-o ${options}`} ${device} ${dir}; rm -rf ${dir}/lost+found`)
    // A file system that cannot be DAX may be mounted all the same.
    const dax = /dax=always/.test(await this.must(`grep ' ${dir} ' /proc/mounts`))
    if (dax !== /\bdax/.test(options)) throw new Error(`${dir} is${dax ? '' : ' not'} DAX`)
  }

  /* ---- the service in it ---- */

  /** Starts it over directories of /mnt and waits until it is ready: as it was compiled, or, which is quicker, `bundled`. */
  async serve (volumes, { bundled = true, env = {} } = {}) {
    const settings = {
      PMEMSETD_HOST: GUEST_ADDRESS,
      PMEMSETD_PORT: '8080',
      PMEMSETD_TOKENS: TOKENS,
      PMEMSETD_VOLUMES: volumes.map((name) => `${name}=/mnt/${name}`).join(','),
      UV_THREADPOOL_SIZE: '8',
      ...env
    }
    const set = Object.entries(settings).map(([name, value]) => `${name}='${value}'`).join(' ')
    this.#idle = []
    await this.must(`cd ${ROOT}; ${set} setsid ${process.execPath} ${bundled ? BUNDLE : 'build/src/main.js'} >/run/service.log 2>&1 </dev/null & echo $! >/run/service.pid`)
    const until = Date.now() + START_SECONDS_MAX * 1000
    for (;;) {
      // The port takes connections before anyone listens in the guest: only an answer tells.
      const answered = await this.request('GET', '/readyz', { ms: TRY_MS_MAX }).then(({ status }) => status === 200, () => false)
      if (answered) return
      if (!await this.lives()) throw new Error(`the service ended: ${await this.log()}`)
      if (Date.now() > until) throw new Error(`the service was not ready in ${START_SECONDS_MAX} s: ${await this.log()}`)
      await sleep(100)
    }
  }

  async lives () { return (await this.run('kill -0 $(cat /run/service.pid)')).status === 0 }

  async log () { return (await this.run('tail -c 4000 /run/service.log')).text }

  /** Ends it in order; its exit status is not to be had, as it is nobody's child, so its last line has to say it. */
  async stop () {
    await this.must('pid=$(cat /run/service.pid); kill $pid; for i in $(seq 300); do kill -0 $pid 2>/dev/null || exit 0; sleep 0.1; done; exit 1')
    const log = await this.log()
    if (!/stopped/.test(log.split('\n').at(-1))) throw new Error(`the service did not end in order: ${log}`)
  }

  /**
   * A connection that nobody uses, and that was answered on. They are opened one after another: QEMU lets one wait at its port, and of a rush the
   * kernel resets some, a second later.
   */
  #connection (ms) {
    if (this.#idle.length > 0) return this.#idle.pop()
    const opening = this.#opened.then(async () => {
      const connection = new Agent({ keepAlive: true, maxSockets: 1 })
      await exchange({ agent: connection, port: this.#port, path: '/livez' }, ms)
      return connection
    })
    this.#opened = opening.catch(() => {})
    return opening
  }

  async request (method, path, { json, bytes, headers = {}, ms = REQUEST_MS_MAX } = {}) {
    const type = json !== undefined ? { 'content-type': 'application/json' } : bytes !== undefined ? { 'content-type': 'application/octet-stream' } : {}
    const began = performance.now()
    try {
      const agent = await this.#connection(ms)
      const { reply, body } = await exchange({ agent, port: this.#port, path, method, headers: { authorization: `Bearer ${token}`, ...type, ...headers } }, ms, json === undefined ? bytes : JSON.stringify(json))
      this.#idle.push(agent)
      return { status: reply.statusCode, headers: reply.headers, body, json: /json/.test(reply.headers['content-type'] ?? '') ? JSON.parse(body.toString()) : undefined }
    } catch (error) {
      throw new Error(`${method} ${path}: no answer after ${Math.round(performance.now() - began)} ms`, { cause: error })
    }
  }

  /** One request that has to succeed: its JSON, or its bytes. */
  async ok (method, path, options) {
    const { status, json, body } = await this.request(method, path, options)
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${body}`)
    return json ?? body
  }

  /** One that has to be refused so; members are compared, or matched by an expression. */
  async refused (method, path, options, status, code, members = {}) {
    const reply = await this.request(method, path, options)
    assert.deepEqual({ status: reply.status, code: reply.json?.code }, { status, code }, `${method} ${path}: ${reply.body}`)
    for (const [name, value] of Object.entries(members)) {
      if (value instanceof RegExp) assert.match(String(reply.json[name]), value, `${name}: ${reply.body}`)
      else assert.deepEqual(reply.json[name], value, `${name}: ${reply.body}`)
    }
    return reply.json
  }

  /** The bytes of a file below /mnt as the guest's kernel gives them, past the service. Its server is started when it is first wanted. */
  async file (path) {
    await this.run(`[ -e /run/httpd ] || { busybox httpd -p ${GUEST_ADDRESS}:8081 -h /mnt && touch /run/httpd; }`)
    const reply = await fetch(`http://127.0.0.1:${this.#filesPort}/${path}`, { signal: AbortSignal.timeout(REQUEST_MS_MAX) })
    if (reply.status !== 200) throw new Error(`the guest has no file ${path}`)
    return Buffer.from(await reply.arrayBuffer())
  }

  /* ---- its end ---- */

  /** The power fails: whatever the guest holds in its memory is gone. */
  async cut () {
    if (this.#qemu.exitCode !== null || this.#qemu.signalCode !== null) return
    const ended = once(this.#qemu, 'exit')
    this.#qemu.kill('SIGKILL')
    await ended
  }
}
