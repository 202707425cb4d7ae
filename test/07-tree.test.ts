// SPDX-License-Identifier: BSD-3-Clause
// The shape of the tree, where it can be checked: who may import whom, the two narrow waists, a licence in each source.
import t from 'tap'
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { dirname, join, normalize } from 'node:path'

const root = join(import.meta.dirname, '..', '..')
const read = (file: string): string => fs.readFileSync(join(root, file), 'utf8')

function below (dir: string, pattern: RegExp): string[] {
  return fs.readdirSync(join(root, dir), { recursive: true, encoding: 'utf8' }).map((name) => join(dir, name)).filter((name) => pattern.test(name)).sort()
}

interface Import { from: string, to: string, typeOnly: boolean }

const typescript = [...below('src', /\.ts$/), ...below('routes', /\.ts$/)]
const target = (from: string, to: string): string => to.startsWith('.') ? normalize(join(dirname(from), to)).replace(/\.js$/, '.ts') : to
const imports: Import[] = typescript.flatMap((from) => (
  [...read(from).matchAll(/^(?:import|export)( type)?\b[^'\n]*'([^']+)'|\bimport\('([^']+)'\)|^} from '([^']+)'/gm)].map(([, type, ...to]: Array<string | undefined>) => (
    { from, to: target(from, to.find((one) => one !== undefined) ?? ''), typeOnly: type !== undefined }
  ))
))

const told = (list: Import[]): string[] => list.map(({ from, to }) => `${from} imports ${to}`)
const crossing = (from: RegExp, to: RegExp): string[] => told(imports.filter((one) => from.test(one.from) && to.test(one.to)))

t.test('there is something to check', async (t) => {
  t.ok(typescript.length > 15, `${typescript.length} files`)
  t.ok(imports.length > 50, `${imports.length} imports`)
})

t.test('one file knows the foreign-function interface', async (t) => {
  t.same(told(imports.filter(({ to }) => to === 'koffi')), ['src/engine/abi.ts imports koffi'])
})

t.test('one file knows which status a code has', async (t) => {
  const setters = typescript.filter((file) => file !== 'src/errors.ts' && /\b(?:status|statusCode|code)\s*[(:=]\s*[45]\d\d\b/.test(read(file)))
  t.same(setters, [])
})

t.test('calls go one way', async (t) => {
  t.same(crossing(/^src\/(?:service|catalog|engine)\//, /^(?:routes|src\/plugins)\//), [], 'the product knows no route and no plugin')
  t.same(crossing(/^src\/(?:service|catalog|engine)\//, /^(?:@?fastify|node:http|src\/app\.ts|src\/main\.ts)/), [], 'the product knows no HTTP')
  // The words of the product (granularity, coalescing) are types that the engine declares; a type is no call.
  const calls = imports.filter((one) => !one.typeOnly)
  t.same(told(calls.filter((one) => one.from.startsWith('src/catalog/') && /^src\/(?:engine|service)\//.test(one.to))), [], 'the catalog knows neither engine nor service')
  t.same(crossing(/^src\/engine\//, /^src\/(?:catalog|service)\//), [], 'the engine knows neither catalog nor service')
  t.same(crossing(/^routes\//, /^src\/(?:catalog|engine)\//), [], 'routes reach the engine through the service')
  t.same(crossing(/^src\/(?!app\.ts|main\.ts|openapi\.ts)/, /^routes\//), [], 'only the application registers routes')
})

t.test('the fuzz target makes every call of the flat face', async (t) => {
  const calls = [...read('native/src/ffi.h').matchAll(/^\w[\w ]* (ffi_\w+)\(/gm)].map(([, name = '']) => name)
  const made = read('test/fuzz/face.c')
  t.ok(calls.length > 20, `${calls.length} calls`)
  t.same(calls.filter((name) => !new RegExp(`[^"\\w]${name}\\(`).test(made)), [])
})

t.test('each source carries its licence', async (t) => {
  const sources = [...typescript, ...below('test', /\.(?:ts|mjs|c|h)$/), ...below('native', /(?:\.[ch]|CMakeLists\.txt|\.map)$/), ...below('src', /\.mjs$/)]
  t.same(sources.filter((file) => !read(file).slice(0, 200).includes('SPDX-License-Identifier: BSD-3-Clause')), [])
})

t.test('nothing is called after what it is not about', async (t) => {
  t.same(spawnSync('git', ['ls-files'], { cwd: root, encoding: 'utf8' }).stdout.split('\n').filter((file) => /(?:^|\/)(?:utils?|helpers?|common|misc)\b/i.test(file)), [])
})
