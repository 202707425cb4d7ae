// SPDX-License-Identifier: BSD-3-Clause
// Every code that this version can answer with is provoked here, through HTTP; of every other one this file says why it cannot be.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, closeSync, copyFileSync, mkdirSync, mkdtempSync, openSync, renameSync, rmSync, truncateSync, writeSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { CATALOGUE, statusesOf, type AnyCode, type ProblemDocument } from '../src/errors.js'
import { digestOf } from '../src/plugins/tokens.js'
import type { Failure } from '../src/schemas.js'
import { brokenDisk, cannotBreak, cannotMount, mapElsewhere, mounted, tmpfs } from './media.js'
import { call, cannot, listening, makeFile, makeSet, mapPart, MIB, must, open, PAGE, refused, type Body, type Opened } from './service.js'
import { raw } from './shell.js'

const LATER = 'its function of libpmemset comes later'
const CAUSE = 'a cause only, which no medium and no request here brings about'

/** Codes that are not provoked, and why. */
const NOT_HERE: Partial<Record<AnyCode, string>> = {
  PMEMSET_E_UNKNOWN: 'the engine has a code for everything',
  PMEMSET_E_NOSUPP: LATER,
  PMEMSET_E_INVALID_SOURCE_TYPE: 'an unknown type is refused by the schema',
  PMEMSET_E_CANNOT_ALLOCATE_INTERNAL_STRUCTURE: 'the engine says ENOMEM',
  PMEMSET_E_PART_EXISTS: 'the engine chooses addresses itself',
  PMEMSET_E_GRANULARITY_MISMATCH: 'it needs two media of different granularity; a simulated one is the same for all (test/native)',
  PMEMSET_E_CANNOT_CREATE_TEMP_FILE: LATER,
  PMEMSET_E_OFFSET_OUT_OF_RANGE: LATER,
  PMEMSET_E_INVALID_PART_STATES: LATER,
  PMEMSET_E_UNDESIRABLE_PART_STATE: LATER,
  PMEMSET_E_SDS_ALREADY_SET: LATER,
  PMEMSET_E_SDS_NOSUPP: LATER,
  PMEMSET_E_SDS_DEVICE_ID_LEN_TOO_BIG: LATER,
  PMEMSET_E_INVALID_ALIGNMENT_VALUE: 'of device DAX, which comes later',
  PMEMSET_E_DAX_REGION_NOT_FOUND: LATER,
  PMEMSET_E_CANNOT_READ_BOUNDS: LATER,
  PMEMSET_E_BADBLOCK_NOSUPP: LATER,
  ENOMEM: 'a process without memory is no process for a test; test/native lets allocations fail',
  EAGAIN: 'what cannot be read at once is read later, and not told',
  ENFILE: 'the whole host would be out of descriptors',
  ELOOP: 'it becomes PATH_NOT_ALLOWED',
  EISDIR: 'a directory is PMEMSET_E_INVALID_PMEM2_SOURCE',
  EINVAL: 'what the kernel would refuse so is refused before',
  EOVERFLOW: 'offsets end at 2^53',
  ENOTSUP: 'of media that cannot be mapped, which no volume here is',
  ENODEV: 'a device would have to go away',
  ENXIO: 'a device would have to go away',
  EIO: 'a medium would have to fail a write itself, and not its flush',
  INTERNAL: 'it is a mistake of ours; test/12 has a route that makes one'
}

type Members = Record<string, unknown>
type Request = [method: string, url: string, body?: Body, headers?: Record<string, string>]

const provoked = new Set<string>()

/** What is true of every problem, whoever answered it. */
function checkProblem (t: Test, problem: ProblemDocument): void {
  const { code, cause } = problem
  const row = CATALOGUE[code]
  t.match(problem, { type: `/errors/${code}`, title: row.title, number: row.number, retryable: row.retryable === true || problem.status === 503 }, code)
  t.ok(statusesOf(code).includes(problem.status), `${code}: ${problem.status}`)
  if (row.library === 'errno') t.equal(problem.errno, code)
  if (cause !== undefined) t.match(CATALOGUE[cause.code as AnyCode], { library: 'libpmem2', number: cause.number })
  t.notMatch(JSON.stringify(problem), tmpdir(), 'it tells no path of the host')
  provoked.add(code)
  if (cause !== undefined) provoked.add(cause.code)
}

async function provoke (t: Test, opened: Opened, request: Request, status: number, code: string, members: Members = {}): Promise<void> {
  checkProblem(t, await refused(t, opened, request, status, code, members))
}

/** As `provoke`, of what comes over a socket. */
function checkAnswer (t: Test, body: string, status: number, code: string, members: Members = {}): void {
  const problem = JSON.parse(body) as ProblemDocument
  t.match(problem, { status, code, ...members })
  checkProblem(t, problem)
}

const file = (path: string, more: object = {}): object => ({ type: 'file', path, ...more })

/* ---- by one request ---- */

t.test('by one request', async (t) => {
  const opened = await open(t)
  makeFile(opened.dir, 'a', 4 * PAGE)
  makeFile(opened.dir, 'shrinks', 2 * PAGE)
  mkdirSync(join(opened.dir, 'dir'))
  for (const [id, fields] of [['s', { windowSize: 2 * MIB }], ['empty', {}], ['fine', { requiredGranularity: 'byte' }], ['full', { coalescing: 'full', windowSize: 2 * MIB }]] as const) await makeSet(t, opened, { id, ...fields })
  const { addr } = await mapPart(t, opened, 's', 'a', { id: 'p', length: 4 * PAGE })
  const { addr: shrinks } = await mapPart(t, opened, 's', 'shrinks', { length: 2 * PAGE })
  truncateSync(join(opened.dir, 'shrinks'), PAGE)
  await mapPart(t, opened, 'full', 'whole', { length: 2 * MIB })
  const parts = (body: object, set = 's'): Request => ['POST', `/sets/${set}/parts`, body]
  const sets = (body: object): Request => ['POST', '/sets', body]
  const cause = (code: AnyCode): object => ({ library: 'libpmem2', code, number: CATALOGUE[code].number, message: String })
  const cases: Array<[request: Request, status: number, code: AnyCode, members?: Members]> = [
    [parts({ source: file('dir') }), 422, 'PMEMSET_E_INVALID_PMEM2_SOURCE', { cause: cause('PMEM2_E_INVALID_FILE_TYPE') }],
    [parts({ source: file('gone') }), 422, 'PMEMSET_E_INVALID_SOURCE_PATH'],
    [parts({ source: { type: 'file' } }), 400, 'PMEMSET_E_INVALID_SOURCE_PATH', { errors: [{ pointer: '/source/path' }] }],
    [parts({ source: file('a'), offset: 2 ** 53 }), 400, 'PMEMSET_E_INVALID_OFFSET_VALUE', { errors: [{ pointer: '/offset' }] }],
    [parts({ source: file('a') }, 'fine'), 422, 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', { cause: cause('PMEM2_E_GRANULARITY_NOT_SUPPORTED'), requiredGranularity: 'byte', availableGranularity: 'page', reason: String }],
    [sets({ requiredGranularity: 'word' }), 400, 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED', { errors: [{ pointer: '/requiredGranularity' }] }],
    [sets({}), 400, 'PMEMSET_E_GRANULARITY_NOT_SET'],
    [parts({ source: file('a'), offset: 1 }), 422, 'PMEMSET_E_INVALID_PMEM2_MAP', { cause: cause('PMEM2_E_OFFSET_UNALIGNED'), requiredAlignment: PAGE }],
    [['GET', '/sets/empty/granularity'], 404, 'PMEMSET_E_NO_PART_MAPPED'],
    [['GET', `/sets/empty/memory?addr=${addr}&length=1`], 409, 'PMEMSET_E_NO_PART_MAPPED'],
    [['GET', '/sets/s/maps?addr=0x0'], 404, 'PMEMSET_E_CANNOT_FIND_PART_MAP'],
    [parts({ source: file('a') }, 'full'), 409, 'PMEMSET_E_CANNOT_COALESCE_PARTS'],
    [parts({ source: file('a'), length: 1 }), 422, 'PMEMSET_E_LENGTH_UNALIGNED', { requiredAlignment: PAGE }],
    [['GET', '/sets/s/parts/none'], 404, 'PMEMSET_E_PART_NOT_FOUND'],
    [['PATCH', '/sets/s', { coalescing: 'some' }], 400, 'PMEMSET_E_INVALID_COALESCING_VALUE'],
    [parts({ source: file('a', { mode: '999' }) }), 400, 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS'],
    [parts({ source: file('a', { grow: true }), offset: 2 ** 52, length: PAGE }), 507, 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE', { errno: 'ENOSPC' }],
    [parts({ source: file('a', { grow: true }), length: 2 * MIB }), 409, 'PMEMSET_E_CANNOT_FIT_PART_MAP', { largestGap: 2 * MIB - 6 * PAGE }],
    [parts({ source: file('a'), offset: 4 * PAGE }), 422, 'PMEMSET_E_MAP_LENGTH_UNSET', { sourceSize: undefined }],
    [parts({ source: file('a'), length: 5 * PAGE }), 409, 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL', { sourceSize: 4 * PAGE }],
    [['GET', `/sets/s/memory?addr=${shrinks}&length=${2 * PAGE}`], 500, 'PMEMSET_E_IO_FAIL', { reason: 'truncated', addr: /^0x/, offset: PAGE, sourceSize: PAGE }],
    [['GET', `/sets/s/memory?addr=${addr}&length=${4 * PAGE + 1}`], 422, 'PMEMSET_E_LENGTH_OUT_OF_RANGE', { map: { addr, size: 4 * PAGE } }],
    [parts({ source: file('a/b') }), 422, 'ENOTDIR'],
    [parts({ source: file('n'.repeat(256)) }), 422, 'ENAMETOOLONG'],
    [parts({ source: file('a', { create: 'exclusive' }), length: PAGE }), 409, 'EEXIST'],
    [['POST', '/sets', '{'], 400, 'REQUEST_INVALID', { errors: [{ in: 'body', pointer: '' }] }],
    [['PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('x'), { 'content-digest': `sha-256=:${'A'.repeat(43)}=:` }], 400, 'DIGEST_MISMATCH', { written: 0, durability: 'none', algorithm: 'sha-256' }],
    [['GET', '/sets?page=1'], 400, 'PARAMETER_UNKNOWN', { errors: [{ in: 'query', name: 'page' }] }],
    [['GET', '/sets?limit=0'], 400, 'PARAMETER_INVALID', { errors: [{ in: 'query', name: 'limit' }] }],
    [parts({ source: file('../a') }), 403, 'PATH_NOT_ALLOWED'],
    [['GET', '/sets', undefined, { origin: 'http://elsewhere.example' }], 403, 'ORIGIN_NOT_ALLOWED'],
    [['GET', '/nowhere'], 404, 'ROUTE_NOT_FOUND'],
    [['GET', '/sets/none'], 404, 'SET_NOT_FOUND'],
    [['GET', '/volumes/none'], 404, 'VOLUME_NOT_FOUND', { volumes: ['default'] }],
    [parts({ source: file('a', { volume: 'none' }) }), 422, 'VOLUME_NOT_FOUND', { volumes: ['default'] }],
    [['PUT', '/sets', {}], 405, 'METHOD_NOT_ALLOWED', { allow: 'GET, HEAD, OPTIONS, POST' }],
    [sets({ id: 's', requiredGranularity: 'page' }), 409, 'SET_EXISTS', { location: '/sets/s', revision: Number }],
    [parts({ id: 'p', source: file('a') }), 409, 'PART_ID_EXISTS', { location: '/sets/s/parts/p', revision: Number }],
    [parts({ source: file('a', { create: 'always' }), length: PAGE }), 409, 'SOURCE_IN_USE'],
    [sets({ requiredGranularity: 'page', windowSize: 2 ** 43 }), 409, 'LIMIT_EXCEEDED', { limit: 'windowBytes', max: 2 ** 42 }],
    [['DELETE', '/sets/s', undefined, { 'if-match': '"x"' }], 412, 'PRECONDITION_FAILED', { revision: Number }],
    [['GET', `/sets/${'x'.repeat(300)}`], 414, 'URI_TOO_LONG'],
    [['POST', '/sets', '{}', { 'content-type': 'text/plain' }], 415, 'MEDIA_TYPE_UNSUPPORTED', { accepted: 'application/json' }],
    [['GET', '/sets', undefined, { host: 'elsewhere.example' }], 421, 'HOST_NOT_ALLOWED']
  ]
  for (const [request, ...verdict] of cases) await provoke(t, opened, request, ...verdict)
})

t.test('by a restart', async (t) => {
  const before = await open(t)
  await makeSet(t, before, { id: 's' })
  const { addr } = await mapPart(t, before, 's', 'f', { id: 'p' })
  await before.close()
  copyFileSync(join(before.dir, 'f'), join(before.dir, 'g'))
  renameSync(join(before.dir, 'g'), join(before.dir, 'f'))
  const opened = await open(t, { dir: before.dir, state: before.state, restore: false })
  checkProblem(t, (await call(t, opened, 'GET', '/sets')).json as ProblemDocument)
  await opened.service.restore(() => {})
  await provoke(t, opened, ['GET', `/sets/s/memory?addr=${addr}&length=1`], 409, 'PART_UNAVAILABLE', { part: 'p', problem: 'SOURCE_REPLACED' })
  await provoke(t, opened, ['POST', '/sets/s/parts/p/restore', {}], 409, 'SOURCE_REPLACED')
  await provoke(t, opened, ['PUT', '/catalog', await must(t, opened, 'GET', '/catalog')], 428, 'PRECONDITION_REQUIRED')
})

t.test('by batches that are all or nothing', async (t) => {
  const volumes = [mkdtempSync(join(tmpdir(), 'pmemsetd-every-')), mkdtempSync(join(tmpdir(), 'pmemsetd-every-'))] as const
  t.teardown(() => { for (const path of volumes) rmSync(path, { recursive: true, force: true }) })
  const env = { PMEMSETD_VOLUMES: `default=${volumes[0]},other=${volumes[1]}` }
  const before = await open(t, { env })
  await makeSet(t, before, { id: 's' })
  makeFile(volumes[0], 'f', 2 * PAGE)
  const { addr } = await mapPart(t, before, 's', 'f')
  const { addr: second } = await mapPart(t, before, 's', 'f', { offset: PAGE })
  const { addr: elsewhere } = await mapPart(t, before, 's', 'g', {}, { volume: 'other' })
  const batch = (...addrs: string[]): Request => ['POST', '/sets/s/batch', { atomicity: 'all', operations: addrs.map((one) => ({ op: 'write', addr: one, data: 'OCBieXRlcy4=' })) }]
  await provoke(t, before, batch(addr, elsewhere), 422, 'ATOMICITY_ACROSS_VOLUMES', { failedOperation: 1 })
  await must(t, before, ...batch(addr, second))
  await before.close()
  // As if the process had ended before the batch was struck off, and somebody had cut the file since.
  const log = openSync(join(volumes[0], '.pmemset', 'redo'), 'r+')
  writeSync(log, Buffer.alloc(8), 0, 8, 4096)
  closeSync(log)
  truncateSync(join(volumes[0], 'f'), PAGE)
  const opened = await open(t, { env, state: before.state })
  await provoke(t, opened, ['PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('x')], 409, 'RECOVERY_PENDING')
})

/* ---- by settings ---- */

t.test('by tokens', async (t) => {
  const opened = await open(t, { tokens: new Map([[digestOf('reader'), new Set(['read'] as const)]]) })
  await provoke(t, opened, ['GET', '/sets'], 401, 'TOKEN_REQUIRED')
  t.equal((await call(t, opened, 'GET', '/sets')).headers['www-authenticate'], 'Bearer')
  await provoke(t, opened, ['POST', '/sets', { requiredGranularity: 'page' }, { authorization: 'Bearer reader' }], 403, 'SCOPE_MISSING', { requiredScope: 'admin' })
})

t.test('by space that is kept free', async (t) => {
  const opened = await open(t, { env: { PMEMSETD_KEEP_FREE_PERCENT: '99' } })
  await makeSet(t, opened, { id: 's' })
  await provoke(t, opened, ['POST', '/sets/s/parts', { source: file('a', { create: 'if_needed' }), length: PAGE }], 507, 'NO_SPACE', { availableBytes: Number })
})

/* ---- on the wire ---- */

t.test('by what Node refuses, and by a body that is too large', async (t) => {
  const { port } = await listening(t)
  const headers = await raw(port, `GET /sets HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(30_000)}\r\n\r\n`)
  checkAnswer(t, headers.body, 431, 'HEADERS_TOO_LARGE')
  const uri = await raw(port, `GET /${'x'.repeat(30_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
  checkAnswer(t, uri.body, 414, 'URI_TOO_LONG')
  const body = await raw(port, 'POST /sets HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n{', { ms: 4000 })
  checkAnswer(t, body.body, 413, 'BODY_TOO_LARGE', { max: MIB })
})

async function stalled (port: number, url: string): Promise<Socket> {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`GET ${url} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
  await once(socket, 'readable')
  return socket
}

t.test('by a download that stalls', async (t) => {
  const opened = await listening(t, { env: { PMEMSETD_STREAMS_MAX: '1' } })
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'big', { length: 64 * MIB })
  const url = `/sets/s/memory?addr=${addr}&length=${64 * MIB}`
  const socket = await stalled(opened.port, url)
  await provoke(t, opened, ['GET', url], 503, 'BUSY', { limit: 'streams', max: 1 })
  t.equal((await call(t, opened, 'GET', url)).headers['retry-after'], '1')
  await provoke(t, opened, ['DELETE', '/sets/s'], 409, 'PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP')
  t.equal((await call(t, opened, 'DELETE', '/sets/s')).headers['retry-after'], '1')
  socket.destroy()
})

t.test('by the end of the service', async (t) => {
  const { app, port } = await listening(t)
  let closing: Promise<unknown> | undefined
  const answer = await raw(port, 'GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /sets HTTP/1.1\r\nHost: localhost\r\n', {
    ms: 4000,
    onText: (text, send) => {
      if (closing !== undefined || !text.includes('"live"')) return
      // The head of the second request is still open, so the connection stays.
      closing = app.close()
      const whenClosed = (): void => { if (app.server.listening) setImmediate(whenClosed); else send('\r\n') }
      whenClosed()
    }
  })
  const last = answer.text.split('\r\n\r\n').at(-1) ?? ''
  t.match(answer.text, /HTTP\/1\.1 503 [^]*retry-after: 1/)
  checkAnswer(t, last, 503, 'STOPPING')
  await closing
})

/* ---- by the host ---- */

/** A service that is asked to map a file, once the host does not let it. */
async function cannotUse (t: Test, opened: Opened, hinder: (path: string) => void, status: number, code: AnyCode, members: Members = {}): Promise<void> {
  const path = makeFile(opened.dir, 'hindered', PAGE)
  await makeSet(t, opened, { id: 's' })
  await must(t, opened, 'GET', '/volumes/default/probe?path=hindered')
  hinder(path)
  await provoke(t, opened, ['POST', '/sets/s/parts', { source: file('hindered') }], status, code, members)
}

t.test('by permissions', async (t) => {
  const opened = await open(t)
  chmodSync(opened.dir, 0o755)
  const isRoot = process.geteuid?.() === 0
  try {
    // To root nothing is forbidden.
    await cannotUse(t, opened, (path) => { chmodSync(path, 0); if (isRoot) process.seteuid?.(65534) }, 422, 'EACCES')
  } finally {
    if (isRoot) process.seteuid?.(0)
  }
})

const cannotSeal = cannot('touch f && chattr +i f && chattr -i f')

t.test('by an attribute', { skip: cannotSeal }, async (t) => {
  const opened = await open(t)
  await cannotUse(t, opened, (path) => {
    execFileSync('chattr', ['+i', path])
    t.teardown(() => { execFileSync('chattr', ['-i', path]) })
  }, 422, 'EPERM')
})

t.test('by a file system that is mounted anew, read-only', { skip: cannotMount }, async (t) => {
  const dir = mounted(t, tmpfs('1m'))
  await cannotUse(t, await open(t, { dir }), () => { execFileSync('mount', ['-o', 'remount,ro', dir]) }, 422, 'EROFS')
})

t.test('by a program that runs', async (t) => {
  const opened = await open(t)
  const path = join(opened.dir, 'program')
  copyFileSync('/bin/sleep', path)
  chmodSync(path, 0o755)
  const child = spawn(path, ['600'])
  await once(child, 'spawn')
  await makeSet(t, opened, { id: 's' })
  await provoke(t, opened, ['POST', '/sets/s/parts', { source: file('program') }], 409, 'ETXTBSY')
  child.kill()
  await once(child, 'close')
})

const cannotLimit = cannot('prlimit --pid $$ --nofile=64:')

/** Of this very process. */
function prlimit (...args: string[]): string {
  return execFileSync('prlimit', ['--pid', String(process.pid), ...args], { encoding: 'utf8' }).trim()
}

t.test('by descriptors that run out', { skip: cannotLimit }, async (t) => {
  const opened = await open(t)
  const before = prlimit('--nofile', '--output=SOFT', '--noheadings')
  const taken: number[] = []
  t.match(before, /^\d+$/)
  try {
    await cannotUse(t, opened, () => {
      prlimit('--nofile=512:')
      try {
        for (;;) taken.push(openSync('/dev/null', 'r'))
      } catch { /* that was the last one */ }
    }, 503, 'EMFILE')
  } finally {
    taken.forEach((fd) => { closeSync(fd) })
    prlimit(`--nofile=${before}:`)
  }
  t.match(await mapPart(t, opened, 's', 'hindered'), { length: PAGE }, 'a moment later it can be mapped')
})

t.test('by the largest size that files may have', { skip: cannotLimit }, async (t) => {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  makeFile(opened.dir, 'large', 2 ** 30 + PAGE)
  const { addr } = await mapPart(t, opened, 's', 'large', { offset: 2 ** 30 }, { create: 'never' })
  // tap ends the process by this signal, which Node and the engine ignore, unless somebody else listens; for good, since Node tells of it later.
  process.on('SIGXFSZ', () => {})
  const before = prlimit('--fsize', '--output=SOFT', '--noheadings')
  prlimit(`--fsize=${2 ** 30}:`)
  try {
    await provoke(t, opened, ['PUT', `/sets/s/memory?addr=${addr}`, Buffer.from('x')], 422, 'EFBIG', { written: 0, durability: 'none' })
    await provoke(t, opened, ['POST', '/sets/s/parts', { source: file('large', { grow: true }), offset: 2 ** 30, length: 2 * PAGE }], 422, 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE', { errno: 'EFBIG' })
  } finally {
    prlimit(`--fsize=${before}:`)
  }
})

t.test('by a directory that is gone', async (t) => {
  const parent = mkdtempSync(join(tmpdir(), 'pmemsetd-test-'))
  t.teardown(() => { rmSync(parent, { recursive: true, force: true }) })
  const dir = join(parent, 'volume')
  mkdirSync(dir)
  const opened = await open(t, { dir })
  await makeSet(t, opened, { id: 's' })
  renameSync(dir, join(parent, 'moved'))
  t.match(await mapPart(t, opened, 's', 'made'), { length: PAGE }, 'a volume is the directory that was opened, whatever its name is now')
  rmSync(join(parent, 'moved'), { recursive: true })
  await provoke(t, opened, ['POST', '/sets/s/parts', { source: file('anew', { create: 'if_needed' }), length: PAGE }], 422, 'ENOENT')
  await provoke(t, opened, ['POST', '/sets/s/parts', { source: file('made') }], 422, 'PMEMSET_E_INVALID_SOURCE_PATH')
})

t.test('by flushes that fail', { skip: cannotBreak }, async (t) => {
  const { dir, mend } = brokenDisk(t, ['a', 'b'])
  const opened = await open(t, { dir })
  await makeSet(t, opened, { id: 's' })
  for (const [name, durability, code] of [['a', 'persisted', 'PERSIST_FAILED'], ['b', 'deep', 'PMEMSET_E_DEEP_FLUSH_FAIL']] as const) {
    const { addr } = await mapPart(t, opened, 's', name, {}, { create: 'never' })
    const url = `/sets/s/memory?addr=${addr}&durability=${durability}`
    const { json } = await call(t, opened, 'PUT', url, Buffer.alloc(PAGE, 'x'))
    checkAnswer(t, JSON.stringify(json), 500, code, { errno: /^(ENOSPC|EIO)$/, written: PAGE, durability: 'none', retryable: false })
    await provoke(t, opened, ['PUT', url, Buffer.from('x')], 409, 'SET_DEGRADED', { retryable: false })
  }
  await provoke(t, opened, ['POST', '/sets/s/failures/failure-0/acknowledge', { action: 'discard' }], 404, 'FAILURE_NOT_FOUND')
  mend()
  const { items: [failure] } = await must(t, opened, 'GET', '/sets/s/failures') as { items: Failure[] }
  const end = await mapElsewhere(t, dir, 'a')
  await provoke(t, opened, ['POST', `/sets/s/failures/${failure?.id ?? ''}/acknowledge`, { action: 'discard' }], 409, 'EBUSY')
  await end()
})

t.test('by a key that was used before', async (t) => {
  const opened = await listening(t)
  await makeSet(t, opened, { id: 's' })
  const { addr } = await mapPart(t, opened, 's', 'x', { length: 64 * PAGE })
  const read = { operations: [{ op: 'read', addr, length: 60 * PAGE }] }
  const key = { 'idempotency-key': 'k' }
  // One of them is the first, and the service has not answered it when the others come.
  const codes = await Promise.all(Array.from({ length: 8 }, async () => (await call(t, opened, 'POST', '/sets/s/batch', read, key)).json.code as string | undefined))
  if (codes.includes('IDEMPOTENCY_IN_PROGRESS')) provoked.add('IDEMPOTENCY_IN_PROGRESS')
  await provoke(t, opened, ['POST', '/sets/s/batch', { operations: [{ op: 'read', addr, length: 1 }] }, key], 422, 'IDEMPOTENCY_KEY_REUSED', { retryable: false })
  await provoke(t, opened, ['POST', '/sets/s/batch', read, key], 409, 'OUTCOME_UNKNOWN', { retryable: false })
})

t.test('every code is provoked, or this file says why it is not', async (t) => {
  const skipped: Array<[reason: string | false, codes: AnyCode[]]> = [[cannotBreak, ['PERSIST_FAILED', 'PMEMSET_E_DEEP_FLUSH_FAIL', 'SET_DEGRADED', 'EBUSY', 'FAILURE_NOT_FOUND']], [cannotMount, ['EROFS']], [cannotLimit, ['EMFILE', 'EFBIG']], [cannotSeal, ['EPERM']]]
  const excused = new Set<string>(skipped.flatMap(([reason, codes]) => (reason === false ? [] : codes)))
  for (const [code, { library }] of Object.entries(CATALOGUE) as Array<[AnyCode, typeof CATALOGUE[AnyCode]]>) {
    const reason = NOT_HERE[code] ?? (library === 'libpmem2' ? CAUSE : undefined)
    if (NOT_HERE[code] !== undefined) t.notOk(provoked.has(code), `${code} is provoked, although: ${NOT_HERE[code] ?? ''}`)
    t.ok(provoked.has(code) || excused.has(code) || reason !== undefined, `${code}: ${provoked.has(code) ? 'provoked' : reason ?? 'skipped'}`)
  }
})
