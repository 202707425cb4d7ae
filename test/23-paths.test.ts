// SPDX-License-Identifier: BSD-3-Clause
// Paths are never trusted: what climbs out, passes a link or a mount, or is reserved, is refused; nothing is made by it, and no reply tells where the volume is.
import { spawnSync } from 'node:child_process'
import { existsSync, linkSync, mkdirSync, readdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { call, cannot, makeFile, makeSet, must, open, PAGE, refused, type Opened } from './service.js'

const CREATES = ['never', 'if_needed', 'exclusive', 'always']

/** Neither mapped, made nor looked at. */
async function notAllowed (t: Test, opened: Opened, path: string): Promise<void> {
  const before = entries(opened.dir)
  const members = { retryable: false, number: undefined }
  const requests: Array<[string, string, object?]> = CREATES.map((create) => ['POST', '/sets/s/parts', { source: { type: 'file', path, create }, length: PAGE }])
  if (path !== '') requests.push(['GET', `/volumes/default/probe?path=${encodeURIComponent(path)}`])
  for (const request of requests) {
    const problem = await refused(t, opened, request, 403, 'PATH_NOT_ALLOWED', members)
    for (const text of [JSON.stringify(problem), ...opened.lines]) t.notOk(text.includes(opened.dir) || text.includes('secret'), 'neither reply nor log tells where the volume is')
  }
  t.same(entries(opened.dir), before)
}

/** All that is beneath it, links as such: one leads to the open files of this process, and from there back. */
function entries (dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true }).map(({ parentPath, name }) => join(parentPath, name)).sort()
}

async function scene (t: Test): Promise<Opened> {
  const opened = await open(t)
  await makeSet(t, opened, { id: 's' })
  mkdirSync(join(opened.dir, 'sub'))
  makeFile(opened.dir, 'a', PAGE)
  makeFile(opened.dir, 'sub/b', PAGE)
  return opened
}

t.test('paths that are wrong as text', async (t) => {
  const opened = await scene(t)
  const wrong = [
    '', '/', '/a', '//a', `${opened.dir}/a`, '.', './a', 'a/.', 'sub/./b', '..', '../a', 'sub/../a', 'sub/..', 'sub/../../x', 'sub//b', 'sub/', 'a/',
    '.pmemset', '.pmemset/data.mdb', 'sub/.pmemset', 'sub/.pmemset/x', '.pmemset-0123', 'sub/.pmemset-x',
    'a\0', '\0', 'a\0b', 'a\nb', 'a\tb', 'a\u007f', '\u001b[31m', 'a\u0085b', '\u009b', 'x'.repeat(5000), `${'d/'.repeat(2500)}x`
  ]
  for (const path of wrong) await notAllowed(t, opened, path)
  t.same((await call(t, opened, 'GET', '/volumes/default/probe?path=')).json.code, 'PARAMETER_INVALID', 'an empty parameter is none')
  for (const query of ['path=%ff', 'path=%', 'path=a&path=b', '', 'path=a&x=1']) t.equal((await call(t, opened, 'GET', `/volumes/default/probe?${query}`)).status, 400, query)
})

t.test('names that no file can have, and what is no file', async (t) => {
  const opened = await scene(t)
  const before = entries(opened.dir)
  for (const [path, code] of [['x'.repeat(300), 'ENAMETOOLONG'], [`sub/${'x'.repeat(256)}`, 'ENAMETOOLONG'], ['ä'.repeat(128), 'ENAMETOOLONG'], ['a/b', 'ENOTDIR'], ['sub', 'PMEMSET_E_INVALID_PMEM2_SOURCE']] as const) {
    for (const create of CREATES) await refused(t, opened, ['POST', '/sets/s/parts', { source: { type: 'file', path, create }, length: PAGE }], 422, code)
    await refused(t, opened, ['GET', `/volumes/default/probe?path=${encodeURIComponent(path)}`], 422, code)
  }
  t.same(entries(opened.dir), before)
  for (const log of opened.lines) t.notOk(log.includes(opened.dir), log)
})

t.test('names that only look wrong are allowed', async (t) => {
  const opened = await scene(t)
  for (const path of ['...', '..a', 'a..', '.hidden', 'pmemset', '.pmemsetd', 'ä ö', '😀', '-', 'a%2fb', 'x'.repeat(255), '~', '$HOME']) {
    t.match(await must(t, opened, 'GET', `/volumes/default/probe?path=${encodeURIComponent(path)}`), { exists: false, granularity: 'page' }, path)
    const part = await must(t, opened, 'POST', '/sets/s/parts', { source: { type: 'file', path, create: 'exclusive' }, length: PAGE }) as { source: { path: string } }
    t.equal(part.source.path, path)
    t.ok(existsSync(join(opened.dir, path)), path)
  }
})

t.test('links', async (t) => {
  const opened = await scene(t)
  const outside = makeFile(t.testdir({}), 'secret', PAGE)
  symlinkSync('a', join(opened.dir, 'to-file'))
  symlinkSync('sub', join(opened.dir, 'to-dir'))
  symlinkSync(outside, join(opened.dir, 'to-outside'))
  symlinkSync(join(outside, '..'), join(opened.dir, 'to-outside-dir'))
  symlinkSync('/proc/self/fd', join(opened.dir, 'magic'))
  symlinkSync('gone', join(opened.dir, 'dangling'))
  linkSync(join(opened.dir, 'a'), join(opened.dir, 'hard'))
  for (const path of ['to-file', 'to-dir/b', 'to-outside', 'to-outside-dir/secret', 'magic/0', 'dangling', 'hard', 'a']) await notAllowed(t, opened, path)
  t.ok(existsSync(outside))
})

t.test('another mount inside of the volume', { skip: cannot('mkdir a; mount --bind a a; umount a') }, async (t) => {
  const opened = await scene(t)
  const inside = join(opened.dir, 'mounted')
  mkdirSync(inside)
  const outside = t.testdir({ secret: 'x'.repeat(PAGE) })
  t.equal(spawnSync('mount', ['--bind', outside, inside]).status, 0)
  try {
    await notAllowed(t, opened, 'mounted/secret')
    await notAllowed(t, opened, 'mounted/new')
    const over = spawnSync('mount', ['--bind', join(outside, 'secret'), join(opened.dir, 'sub', 'b')], { encoding: 'utf8' })
    t.equal(over.status, 0, over.stderr)
    await notAllowed(t, opened, 'sub/b')
  } finally {
    spawnSync('umount', [join(opened.dir, 'sub', 'b')])
    t.equal(spawnSync('umount', [inside]).status, 0)
  }
})

t.test('devices', { skip: cannot('mknod null c 1 3') }, async (t) => {
  const opened = await scene(t)
  t.equal(spawnSync('sh', ['-e', '-c', 'mknod null c 1 3; mknod loop b 7 0'], { cwd: opened.dir }).status, 0)
  for (const path of ['null', 'loop']) {
    for (const create of CREATES) {
      await refused(t, opened, ['POST', '/sets/s/parts', { source: { type: 'file', path, create }, length: PAGE }], 422, 'PMEMSET_E_INVALID_PMEM2_SOURCE')
    }
    await refused(t, opened, ['GET', `/volumes/default/probe?path=${path}`], 422, 'PMEMSET_E_INVALID_PMEM2_SOURCE', { cause: { code: 'PMEM2_E_INVALID_FILE_TYPE' } })
  }
})
