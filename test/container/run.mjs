// SPDX-License-Identifier: BSD-3-Clause
/*
 * Builds docker/Dockerfile and runs the image as docker/compose.yaml would, without a Docker engine: buildah, podman and runc from the
 * distribution. The base image that FROM names is stood in for by a local one (the same Debian release, the same Node), so what is proven
 * is the Dockerfile's steps and what they leave, not the official image's content.
 *
 * The container gets a network of its own with nothing but its loopback, and every request is made from inside of it: it listens on all
 * addresses, as the image says, and none of them is this machine's.
 */
import { spawnSync } from 'node:child_process'
import { strict as assert } from 'node:assert'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PACKAGES, ROOT, SetupError, setUp, systemPackages } from '../../src/setup.mjs'

const TOOLS = ['buildah', 'podman', 'runc', 'mmdebstrap'].map((name) => (
  { name, why: 'builds and runs the image', there: () => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0 }
))
const NODE_UID = 1000
const START_SECONDS_MAX = 30
const STOP_SECONDS_MAX = 10
const IMAGE = 'localhost/pmemsetd:test'
const NAME = `pmemsetd-test-${process.pid}`
const CACHE = join(ROOT, 'build', 'container')

const totals = { passed: 0, failed: 0, skipped: 0 }

async function check (name, work) {
  const started = performance.now()
  try {
    await work()
    totals.passed++
    console.log(`ok: ${name} (${((performance.now() - started) / 1000).toFixed(1)} s)`)
    return true
  } catch (error) {
    totals.failed++
    console.log(`FAILED: ${name}: ${error.message}`)
    return false
  }
}

function run (command, args, { cwd = ROOT, input, env = {} } = {}) {
  const done = spawnSync(command, args, { cwd, input, env: { ...process.env, ...env }, maxBuffer: 64 * 1024 * 1024 })
  if (done.error) throw done.error
  return { status: done.status, stdout: done.stdout, text: `${done.stdout}${done.stderr}` }
}

function must (command, args, options) {
  const done = run(command, args, options)
  if (done.status !== 0) throw new Error(`${[command, ...args].join(' ')} ended with ${done.status}:\n${done.text.split('\n').slice(-40).join('\n')}`)
  return done.stdout.toString().trim()
}

/* ---- the image ---- */

const dockerfile = fs.readFileSync(join(ROOT, 'docker', 'Dockerfile'), 'utf8')
const work = fs.mkdtempSync(join(tmpdir(), 'pmemsetd-container-'))
const store = ['--root', join(work, 'store'), '--runroot', join(work, 'run'), '--storage-driver', 'overlay']
const buildah = (...args) => must('buildah', [...store, ...args])
const podmanArgs = [...store, '--runtime', 'runc', '--cgroup-manager', 'cgroupfs', '--events-backend', 'file']
const podman = (...args) => must('podman', [...podmanArgs, ...args])

function base () {
  const found = [...dockerfile.matchAll(/^FROM (node:([\d.]+)-(\w+)-slim)\b/gm)]
  assert.equal(found.length, 2, 'two stages from node:<version>-<release>-slim')
  assert.equal(found[0][1], found[1][1], 'both stages from the same image')
  const [, name, node, release] = found[0]
  return { name: `docker.io/library/${name}`, node, release }
}

function debian (release) {
  const tar = join(CACHE, `${release}.tar`)
  if (fs.existsSync(tar)) return tar
  fs.mkdirSync(CACHE, { recursive: true })
  const sources = '/etc/apt/sources.list.d/debian.sources'
  must('mmdebstrap', ['--quiet', '--variant=minbase', '--include=ca-certificates,libstdc++6', release, `${tar}.new.tar`,
    ...(fs.existsSync(sources) ? [sources] : [])])
  fs.renameSync(`${tar}.new.tar`, tar)
  return tar
}

/** The files of one npm package, unpacked. */
function unpacked (spec) {
  const into = fs.mkdtempSync(join(work, 'pack-'))
  const file = must('npm', ['pack', '--silent', '--pack-destination', into, spec])
  must('tar', ['-xzf', join(into, file), '-C', into])
  return join(into, 'package')
}

function makeBase () {
  const { name, node, release } = base()
  const container = buildah('from', 'scratch')
  buildah('add', '--quiet', container, debian(release), '/')
  buildah('copy', '--quiet', container, join(unpacked(`node-linux-${process.arch}@${node}`), 'bin'), '/usr/local/bin')
  buildah('copy', '--quiet', container, unpacked('npm@11'), '/usr/local/lib/node_modules/npm')
  buildah('run', '--isolation', 'chroot', container, '--', 'sh', '-c', [
    'ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm', `groupadd -g ${NODE_UID} node`, `useradd -u ${NODE_UID} -g node -m node`
  ].join(' && '))
  // A machine behind an authority of its own: the local base trusts what the machine trusts, and the Dockerfile knows nothing of it.
  const trusted = '/etc/ssl/certs/ca-certificates.crt'
  if (fs.existsSync(trusted)) {
    buildah('copy', '--quiet', container, trusted, trusted)
    buildah('config', '--env', `NODE_EXTRA_CA_CERTS=${trusted}`, container)
  }
  buildah('config', '--cmd', 'node', container)
  buildah('commit', '--quiet', '--rm', container, name)
}

const build = () => { buildah('bud', '--isolation', 'chroot', '--pull-never', '--format', 'docker', '-f', 'docker/Dockerfile', '-t', IMAGE, '.') }

/* ---- the container ---- */

const data = join(work, 'data')
const secrets = join(work, 'secrets')
const secret = join(secrets, 'tokens.json')
let token = ''
let pid = 0

function makeToken () {
  // The image carries the command that makes tokens, so nothing else has to be installed to start it.
  fs.mkdirSync(secrets)
  fs.chownSync(secrets, NODE_UID, NODE_UID)
  token = podman('run', '--rm', '--ulimit', 'nofile=16384:16384', '--ulimit', 'nproc=4096:4096', '--no-healthcheck', '--network', 'none', '-v', `${secrets}:/secrets`,
    '--entrypoint', 'node', IMAGE, 'build/src/token.js', '/secrets/tokens.json', 'read,write,admin').trim()
}

/** Detached: its exit status is asked for at the end. */
function start () {
  fs.mkdirSync(data)
  fs.chownSync(data, NODE_UID, NODE_UID)
  podman('run', '--detach', '--name', NAME, '--ulimit', 'nofile=16384:16384', '--ulimit', 'nproc=4096:4096', '--no-healthcheck', '--network', 'none',
    '--read-only', '--tmpfs', '/tmp', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges',
    '-v', `${data}:/data`, '-v', `${secret}:/run/secrets/pmemsetd-tokens:ro`, IMAGE)
  pid = Number(podman('inspect', '--format', '{{.State.Pid}}', NAME))
}

/** One request from within the container's network. */
function request (method, path, { json, bytes, bearer = token } = {}) {
  const args = ['--net', '-t', String(pid), 'curl', '--silent', '--show-error', '--max-time', '5', '-X', method, '-o', '-', '-w', '\n%{http_code}']
  if (bearer !== '') args.push('-H', `Authorization: Bearer ${bearer}`)
  if (json !== undefined) args.push('-H', 'Content-Type: application/json', '--data-binary', '@-')
  if (bytes !== undefined) args.push('-H', 'Content-Type: application/octet-stream', '--data-binary', '@-')
  const done = run('nsenter', [...args, `http://127.0.0.1:8080${path}`], { input: json === undefined ? bytes : JSON.stringify(json) })
  if (done.status !== 0) throw new Error(done.text.trim())
  const cut = done.stdout.lastIndexOf('\n')
  const body = done.stdout.subarray(0, cut)
  return { status: Number(done.stdout.subarray(cut + 1)), body, json: () => JSON.parse(body.toString()) }
}

async function answered () {
  const until = Date.now() + START_SECONDS_MAX * 1000
  for (;;) {
    try {
      const reply = request('GET', '/livez', { bearer: '' })
      assert.equal(reply.status, 200)
      return
    } catch (error) {
      if (Date.now() > until) throw new Error(`${error.message}\n${run('podman', [...podmanArgs, 'logs', NAME]).text}`)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
}

function sessionOfBytes () {
  const made = request('POST', '/sets', { json: { id: 'c', requiredGranularity: 'page', coalescing: 'full' } })
  assert.equal(made.status, 201, made.body.toString())
  const part = (id) => request('POST', '/sets/c/parts', { json: { id, source: { type: 'file', path: `${id}.bin`, create: 'if_needed' }, length: 2 ** 21 } })
  const first = part('a')
  assert.equal(first.status, 201, first.body.toString())
  const second = part('b')
  assert.equal(second.status, 201, second.body.toString())
  assert.equal(second.json().coalesced, true)
  const seam = BigInt(second.json().addr) - 4n
  const wrote = request('PUT', `/sets/c/memory?addr=0x${seam.toString(16)}`, { bytes: 'seamless' })
  assert.equal(wrote.status, 200, wrote.body.toString())
  const read = request('GET', `/sets/c/memory?addr=0x${seam.toString(16)}&length=8`)
  assert.equal(read.body.toString(), 'seamless')
  const onDisk = (file, from, length) => fs.readFileSync(join(data, file)).subarray(from, from + length).toString()
  assert.equal(onDisk('a.bin', 2 ** 21 - 4, 4), 'seam')
  assert.equal(onDisk('b.bin', 0, 4), 'less')
}

const inside = (...command) => run('podman', [...podmanArgs, 'exec', NAME, ...command])

function stops () {
  const started = Date.now()
  must('podman', [...podmanArgs, 'kill', '--signal', 'TERM', NAME])
  const status = must('podman', [...podmanArgs, 'wait', NAME])
  assert.equal(status, '0', `exit status ${status}\n${run('podman', [...podmanArgs, 'logs', NAME]).text}`)
  const took = (Date.now() - started) / 1000
  assert.ok(took < STOP_SECONDS_MAX, `it took ${took} s`)
}

/* ---- all ---- */

async function lint () {
  await check('Dockerfile: dockerfilelint', () => { must(process.execPath, ['node_modules/dockerfilelint/bin/dockerfilelint', 'docker/Dockerfile']) })
  await check('compose.yaml: dclint', () => { must(process.execPath, ['node_modules/dclint/bin/dclint.cjs', 'docker/compose.yaml']) })
  await check('Dockerfile: the packages of the set-up', () => {
    const listed = /--no-install-recommends (.*) \\$/m.exec(dockerfile)?.[1].split(' ').sort()
    assert.deepEqual(listed, PACKAGES.build.map((one) => one.name).sort())
  })
}

async function container () {
  await systemPackages(TOOLS)
  if (!await check('base image', makeBase)) return
  if (!await check('docker/Dockerfile builds', build)) return
  if (!await check('a token, made by the image', makeToken)) return
  if (!await check('starts and answers /livez', async () => { start(); await answered() })) return
  await check('runs as the user node, as process 1', () => {
    const status = fs.readFileSync(`/proc/${pid}/status`, 'utf8')
    assert.match(status, new RegExp(`^Uid:\\t${NODE_UID}\\t${NODE_UID}\\t`, 'm'))
    assert.match(status, /^NSpid:\t\d+\t1$/m)
    assert.match(status, /^CapEff:\t0+$/m)
  })
  await check('demands the token', () => {
    assert.equal(request('GET', '/sets', { bearer: '' }).status, 401)
    assert.equal(request('GET', '/sets', { bearer: 'no-such-token' }).status, 401)
    assert.equal(request('GET', '/sets').status, 200)
  })
  await check('maps two parts, writes across the seam, the bytes are in the volume', sessionOfBytes)
  await check('the root is read-only', () => {
    const touched = inside('touch', '/app/x')
    assert.notEqual(touched.status, 0)
    assert.match(touched.text, /Read-only file system/)
  })
  await check('HEALTHCHECK', () => {
    const command = JSON.parse(podman('inspect', '--type', 'image', '--format', '{{json .HealthCheck.Test}}', IMAGE))
    assert.equal(command[0], 'CMD')
    const done = inside(...command.slice(1))
    assert.equal(done.status, 0, done.text)
  })
  await check('SIGTERM ends it with 0', stops)
}

function cleanUp () {
  run('podman', [...podmanArgs, 'rm', '-f', '-t', '1', NAME])
  run('buildah', [...store, 'rm', '--all'])
  run('buildah', [...store, 'rmi', '--all', '--force'])
  run('umount', ['--lazy', '--quiet', join(work, 'store', 'overlay')])
  fs.rmSync(work, { recursive: true, force: true })
}

for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => { cleanUp(); process.exit(1) })
try {
  await setUp('start')
  await lint()
  if (process.getuid?.() === 0) await container()
  else {
    totals.skipped++
    console.log('skipped: the image: building and running it without an engine needs root')
  }
} catch (error) {
  totals.failed++
  console.log(`FAILED: ${error instanceof SetupError ? error.message : error.stack}`)
} finally {
  cleanUp()
}
const { passed, failed, skipped } = totals
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed > 0 || passed === 0 ? 1 : 0
