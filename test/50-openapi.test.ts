// SPDX-License-Identifier: BSD-3-Clause
// The OpenAPI document: that it is what the routes say, that generators can read it, and that its examples are true: each is sent, and what comes back is compared.
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import { encodeBatch } from '../src/batch.js'
import t from 'tap'
import { call, must, open, type Body, type Opened } from './service.js'

const COMMITTED = readFileSync(join(import.meta.dirname, '..', '..', 'openapi', 'openapi.yaml'), 'utf8')
const METHODS = ['get', 'head', 'put', 'post', 'patch', 'delete']
const JSON_TYPE = 'application/json'
const PROBLEM = 'application/problem+json'

/** What differs from run to run or from machine to machine, and cannot be shown as it will be. */
const VOLATILE = new Set(['uid', 'createdAt', 'capacityBytes', 'freeBytes', 'fileSystem', 'persistence', 'persistenceReason', 'reason', 'identity'])

interface Schema { $ref?: string, type?: string, format?: string, example?: unknown, properties?: Record<string, Schema>, [more: string]: unknown }
interface Media { schema?: Schema, example?: unknown, 'x-problem-codes'?: string[] }
interface Response { description?: string, content?: Record<string, Media> }
interface Operation { operationId?: string, tags?: string[], summary?: string, parameters?: Array<{ name: string, in: string, schema: Schema, required?: boolean }>, requestBody?: { content: Record<string, Media> }, responses: Record<string, Response> }
interface Document { openapi: string, info: { version: string }, paths: Record<string, Record<string, Operation>>, components: { schemas: Record<string, Schema> } }

function documentOf ({ app }: Opened): Document {
  return app.swagger() as unknown as Document
}

function operations (document: Document): Array<{ path: string, method: string, operation: Operation }> {
  return Object.entries(document.paths).flatMap(([path, item]) => Object.entries(item).map(([method, operation]) => ({ path, method, operation })))
}

function walk (value: unknown, visit: (node: Record<string, unknown>, pointer: string) => void, pointer = ''): void {
  if (typeof value !== 'object' || value === null) return
  if (!Array.isArray(value)) visit(value as Record<string, unknown>, pointer)
  for (const [key, child] of Object.entries(value)) if (key !== 'example') walk(child, visit, `${pointer}/${key}`)
}

t.test('the committed document is what the routes say', async (t) => {
  const { app } = await open(t)
  // The version is the package's there, and the tests' here.
  t.equal(app.swagger({ yaml: true }).replace(/^ {2}version: .*$/m, ''), COMMITTED.replace(/^ {2}version: .*$/m, ''))
})

t.test('what generators need', async (t) => {
  const document = documentOf(await open(t))
  t.equal(document.openapi, '3.0.3')
  const names = Object.keys(document.components.schemas)
  for (const name of ['PmemSet', 'PartMap', 'Part', 'Source', 'Written', 'Removal', 'Volume', 'Problem', 'ByteRange', 'Probe', 'Capabilities']) t.ok(names.includes(name), name)
  t.same(names.filter((name) => ['Set', 'Map', 'Object', 'Error'].includes(name) || name.startsWith('def-')), [], 'names that some language takes for its own')
  walk(document, (node, pointer) => {
    for (const word of ['oneOf', 'anyOf', 'allOf', 'nullable', 'const']) t.notOk(word in node && !pointer.endsWith('/properties'), `${pointer} has no ${word}`)
    if (node.type === 'integer') t.ok(node.format === 'int64' || node.format === 'int32', `${pointer} has a width`)
    t.not(node.type, 'null', pointer)
    t.notOk(Array.isArray(node.type), pointer)
  })
})

t.test('each operation is described whole', async (t) => {
  const document = documentOf(await open(t))
  const all = operations(document)
  t.ok(all.length >= 25, `${all.length} operations`)
  t.equal(new Set(all.map(({ operation }) => operation.operationId)).size, all.length, 'each has an id of its own')
  for (const { path, method, operation } of all) {
    const at = `${method.toUpperCase()} ${path}`
    t.ok(METHODS.includes(method), at)
    t.match(operation.operationId, /^[a-z][a-zA-Z]+$/, at)
    t.equal(operation.tags?.length, 1, at)
    t.ok((operation.summary ?? '').length > 5, at)
    for (const [status, { description, content = {} }] of Object.entries(operation.responses)) {
      t.ok((description ?? '') !== '' && description !== 'Default Response', `${at} ${status} is described`)
      if (Number(status) >= 400) t.match(content[PROBLEM], { schema: { $ref: '#/components/schemas/Problem' }, 'x-problem-codes': [/^[A-Z0-9_]+$/] }, `${at} ${status}`)
      else t.ok(status === '204' || Object.values(content).some(({ schema }) => schema !== undefined), `${at} ${status} has a schema`)
    }
    for (const { name, in: place, schema, required } of operation.parameters ?? []) {
      t.ok(schema.type !== undefined, `${at} ${name}`)
      if (place === 'path') t.equal(required, true, `${at} ${name}`)
    }
  }
})

/* ---- examples ---- */

function createValidator ({ components }: Document): (schema: Schema, value: unknown) => string {
  const ajv = new Ajv({ strict: false, validateFormats: false })
  ajv.addSchema({ $id: 'openapi', components })
  return (schema, value) => {
    const absolute = JSON.parse(JSON.stringify(schema).replaceAll('"#/components/', '"openapi#/components/')) as Schema
    return ajv.validate(absolute, value) ? '' : ajv.errorsText()
  }
}

/** Both with what is volatile taken out, where both have it. */
function steady (value: unknown, other: unknown): unknown {
  if (Array.isArray(value)) return value.map((item, i) => steady(item, Array.isArray(other) ? other[i] : undefined))
  if (typeof value !== 'object' || value === null) return value
  const twin = (other ?? {}) as Record<string, unknown>
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, VOLATILE.has(key) && key in twin ? typeof one : steady(one, twin[key])]))
}

interface Request { method: string, url: string, body: Body }

function requestOf ({ path, method, operation }: ReturnType<typeof operations>[number], document: Document): Request {
  const given = (operation.parameters ?? []).map((one) => ({ ...one, example: one.schema.example })).filter(({ example }) => example !== undefined)
  const filled = path.replace(/\{([^}]+)\}/g, (_, name) => encodeURIComponent(String(given.find((one) => one.in === 'path' && one.name === name)?.example)))
  const query = given.filter((one) => one.in === 'query').map(({ name, example }) => `${name}=${encodeURIComponent(String(example))}`).join('&')
  const media = operation.requestBody?.content
  const component = media?.[JSON_TYPE]?.schema?.$ref?.split('/').at(-1)
  const octets = operation.operationId === 'runBinaryBatch' ? Buffer.from(encodeBatch([{ op: 'read', addr: '0x400000000000', length: 8 }])) : Buffer.from('8 bytes.')
  const body = media === undefined ? undefined : component === undefined ? octets : document.components.schemas[component]?.example as object
  return { method: method.toUpperCase(), url: query === '' ? filled : `${filled}?${query}`, body }
}

t.test('each example is sent, and answered as it is shown', async (t) => {
  const opened = await open(t)
  const document = documentOf(opened)
  const check = createValidator(document)
  const find = (id: string): Request => requestOf(operations(document).find(({ operation }) => operation.operationId === id)!, document)
  const send = async ({ method, url, body }: Request, headers: Record<string, string> = {}): Promise<Awaited<ReturnType<typeof call>>> => await call(t, opened, method, url, body, headers)
  for (const one of operations(document)) {
    const { operationId: id = '', responses } = one.operation
    const request = requestOf(one, document)
    if (id === 'acknowledgeFailure') continue // it needs a disk that fails: test/34-failures sends it, and compares
    // The set `accounts` with the part `first`, as their own examples make them; fresh each time, so that addresses are those that are shown.
    if (id !== 'createSet') await send(find('createSet'))
    if (id !== 'createSet' && id !== 'mapPart') await send(find('mapPart'))
    // It replaces what is there by nothing, which has to be named.
    const headers: Record<string, string> = id === 'replaceCatalog' ? { 'if-match': '*' } : {}
    const reply = await send(request, headers)
    const status = String(reply.status)
    const at = `${id}: ${request.method} ${request.url}`
    t.match(status, /^2/, `${at}: ${JSON.stringify(reply.json)}`)
    const media = responses[status]?.content?.[JSON_TYPE]
    t.ok(status in responses, at)
    if (media?.schema !== undefined) {
      t.equal(check(media.schema, reply.json), '', `${at}: the reply is of the schema`)
      // Capabilities and the list of codes are long, and theirs to tell.
      if (!['getCapabilities', 'listErrors'].includes(id)) {
        t.equal(check(media.schema, media.example), '', `${at}: the example is of the schema`)
        t.same(steady(reply.json, media.example), steady(media.example, reply.json), `${at}: the reply is the example`)
      }
    }
    const sent = one.operation.requestBody?.content[JSON_TYPE]?.schema
    if (sent !== undefined) t.equal(check(sent, request.body), '', `${at}: the request is of the schema`)
    await call(t, opened, 'DELETE', '/sets/accounts')
    rmSync(join(opened.dir, 'accounts.dat'), { force: true }) // with what the example has stored
  }
  t.same(await must(t, opened, 'GET', '/sets'), { items: [] })
})
