// SPDX-License-Identifier: BSD-3-Clause
//
// Strictness: what is not known is refused, never dropped, and nothing is coerced. Query and path parameters are text, so they are checked as text, by
// the rules that the contract gives for integers and booleans; bodies go through ajv with every kindness turned off.
import fp from 'fastify-plugin'
import type {} from '@fastify/swagger'
import { Ajv, type ErrorObject } from 'ajv'
import type { FastifyInstance, FastifyRequest, FastifySchemaCompiler, RouteOptions } from 'fastify'
import { codeOfViolations, ServiceError, type Violation } from '../errors.js'
import { lazy } from '../lazy.js'
import { pointerPart } from './json.js'

const REPORTED_MAX = 20
/** Values in a body that is looked through for all that is wrong with it. */
const TOLD_IN_FULL_MAX = 10_000

/** A parameter that cannot even be read; kept in the place of its value until the route says what it knows. */
class Unreadable {
  constructor (readonly reason: string) {}
}

type RawQuery = Record<string, string | string[] | Unreadable>

const NO_QUERY: RawQuery = Object.freeze(Object.create(null) as RawQuery)

function decode (text: string): string | Unreadable {
  if (!text.includes('%') && !text.includes('+')) return text
  try {
    return decodeURIComponent(text.replaceAll('+', ' '))
  } catch {
    return new Unreadable('is not percent-encoded UTF-8')
  }
}

// Members like those of an object without a prototype, at the price of an ordinary one: V8 keeps Object.create(null) as a dictionary.
function Query (this: RawQuery): void {}
Query.prototype = Object.create(null) as object
const NewQuery = Query as unknown as new () => RawQuery

/** Fastify's querystringParser. Repeated parameters become arrays, which no route takes. */
export function parseQuery (text: string): RawQuery {
  if (text === '') return NO_QUERY
  const query = new NewQuery()
  for (const pair of text.split('&')) {
    const at = pair.indexOf('=')
    const name = decode(at < 0 ? pair : pair.slice(0, at))
    const value = at < 0 ? '' : decode(pair.slice(at + 1))
    const key = typeof name === 'string' ? name : pair
    if (key in query) query[key] = []
    else query[key] = typeof name === 'string' ? value : name
  }
  return query
}

/** The part of a JSON schema that a parameter may use. */
interface ParameterSchema {
  type?: string
  enum?: unknown[]
  pattern?: string
  minimum?: number
  maximum?: number
  minLength?: number
  maxLength?: number
  default?: unknown
}

interface ParametersSchema {
  properties?: Record<string, ParameterSchema>
  required?: string[]
}

/** What a text is that a parameter does not take; made once, since most are right. */
class Wrong {
  constructor (readonly reason: string) {}
}

/** The value of a text, or what is wrong with it. */
type Parameter = (text: string) => unknown

const INTEGER = /^(0|[1-9][0-9]{0,15})$/

function integerParameter (schema: ParameterSchema): Parameter {
  const minimum = schema.minimum ?? 0
  const maximum = schema.maximum ?? Number.MAX_SAFE_INTEGER
  const wrong = new Wrong(`must be a decimal integer from ${minimum} to ${maximum}`)
  return (text) => {
    const value = INTEGER.test(text) ? Number(text) : NaN
    return value >= minimum && value <= maximum ? value : wrong
  }
}

function booleanParameter (): Parameter {
  const wrong = new Wrong('must be true or false')
  return (text) => (text === 'true' || text === 'false' ? text === 'true' : wrong)
}

function stringParameter (schema: ParameterSchema): Parameter {
  const pattern = schema.pattern === undefined ? undefined : new RegExp(schema.pattern, 'u')
  const { minLength = 0, maxLength = Infinity } = schema
  const values = schema.enum
  const noValue = new Wrong(`must be one of ${values?.join(', ') ?? ''}`)
  const noMatch = new Wrong(`must match ${pattern?.source ?? ''}`)
  const noLength = new Wrong(`must have ${minLength} to ${maxLength} characters`)
  return (text) => {
    if (values !== undefined && !values.includes(text)) return noValue
    if (pattern !== undefined && !pattern.test(text)) return noMatch
    if (text.length < minLength || text.length > maxLength) return noLength
    return text
  }
}

function parameter (schema: ParameterSchema): Parameter {
  if (schema.type === 'integer') return integerParameter(schema)
  if (schema.type === 'boolean') return booleanParameter()
  if (schema.type === 'string') return stringParameter(schema)
  throw new Error(`a parameter has type ${String(schema.type)}; integer, boolean and string are possible`)
}

function refuseParameters (violations: Violation[], unknown: boolean): { error: Error } {
  const detail = unknown ? 'The operation does not have that parameter.' : 'A parameter does not have the form that it must have.'
  return { error: new ServiceError(unknown ? 'PARAMETER_UNKNOWN' : 'PARAMETER_INVALID', detail, { errors: violations.slice(0, REPORTED_MAX) }) }
}

interface Rules {
  place: 'query' | 'path' | 'header'
  known: Map<string, Parameter>
  required: readonly string[]
  defaults: Array<[string, unknown]>
}

function checkOne ({ known, place }: Rules, name: string, raw: unknown, values: Record<string, unknown>): Violation | undefined {
  const check = known.get(name)
  if (check === undefined) return { in: place, name, reason: 'is not known' }
  if (raw instanceof Unreadable) return { in: place, name, reason: raw.reason }
  if (typeof raw !== 'string') return { in: place, name, reason: 'must not be repeated' }
  if (raw === '') return { in: place, name, reason: 'must not be empty' }
  const value = check(raw)
  if (value instanceof Wrong) return { in: place, name, reason: value.reason }
  if (value !== raw) values[name] = value
  return undefined
}

function compileParameters (schema: ParametersSchema, place: Rules['place']): (values: Record<string, unknown>) => true | { error: Error } | { value: Record<string, unknown> } {
  const properties = Object.entries(schema.properties ?? {})
  const rules: Rules = {
    place,
    known: new Map(properties.map(([name, s]) => [name, parameter(s)])),
    required: schema.required ?? [],
    defaults: properties.filter(([, s]) => s.default !== undefined).map(([name, s]) => [name, s.default])
  }
  return (values) => {
    // Headers that no route knows are anybody's; query and path parameters are ours alone.
    const names = place === 'header' ? rules.known.keys() : Object.keys(values)
    let violations: Violation[] | undefined
    for (const name of names) {
      const value = values[name]
      if (value === undefined) continue
      const violation = checkOne(rules, name, value, values)
      if (violation !== undefined) (violations ??= []).push(violation)
    }
    for (const name of rules.required) {
      if (values[name] === undefined) (violations ??= []).push({ in: place, name, reason: 'is missing' })
    }
    if (violations !== undefined) return refuseParameters(violations, violations.some((v) => place === 'query' && v.name !== undefined && !rules.known.has(v.name)))
    if (rules.defaults.every(([name]) => values[name] !== undefined)) return true
    return { value: { ...Object.fromEntries(rules.defaults), ...values } }
  }
}

function pointerOf (error: ErrorObject): string {
  const params = error.params as { missingProperty?: string, additionalProperty?: string, propertyName?: string }
  const name = params.missingProperty ?? params.additionalProperty ?? params.propertyName
  return name === undefined ? error.instancePath : `${error.instancePath}/${pointerPart(name)}`
}

const REASON: Partial<Record<string, string>> = { required: 'is missing', additionalProperties: 'is not known', propertyNames: 'is not a name that may be used' }

function reasonOf (error: ErrorObject): string {
  if (error.keyword === 'enum') return `must be one of ${(error.params as { allowedValues: unknown[] }).allowedValues.join(', ')}`
  return REASON[error.keyword] ?? error.message ?? 'is not allowed'
}

function refuseBody (errors: readonly ErrorObject[], body: unknown): { error: Error } {
  if (body === null || body === undefined) {
    return { error: new ServiceError('REQUEST_INVALID', 'The operation needs a JSON body.', { errors: [{ in: 'body', pointer: '', reason: 'is missing' }] }) }
  }
  // A key that propertyNames refuses is reported twice, by the name's own rule and by propertyNames; the second says which key.
  const told = errors.filter((e) => !e.schemaPath.includes('/propertyNames/'))
  const violations = told.map((e): Violation => ({ in: 'body', pointer: pointerOf(e), reason: reasonOf(e) }))
  const code = codeOfViolations(told.map((e) => ({ pointer: pointerOf(e), keyword: e.keyword })))
  const detail = code === 'REQUEST_INVALID' ? 'The body does not have the shape that the operation takes.' : `${violations[0]?.pointer ?? ''} ${violations[0]?.reason ?? ''}`
  return { error: new ServiceError(code, detail, { errors: violations.slice(0, REPORTED_MAX) }, 'schema') }
}

/** Whether there are at most so many values in it, itself and those in its values included. */
function hasAtMost (count: number, body: unknown): boolean {
  const open = [body]
  for (let left = count; open.length > 0; left--) {
    const value = open.pop()
    const members: unknown[] = typeof value === 'object' && value !== null ? Object.values(value) : []
    if (members.length + open.length >= left) return false
    open.push(...members)
  }
  return true
}

function createAjv (schemas: Record<string, unknown>, allErrors: boolean): Ajv {
  const ajv = new Ajv({ strict: true, strictRequired: false, allErrors, coerceTypes: false, removeAdditional: false, useDefaults: true, validateFormats: false, allowUnionTypes: false })
  // Words of OpenAPI that ajv need not know.
  ajv.addVocabulary(['example', 'x-extensible-enum', 'x-problem-codes'])
  for (const schema of Object.values(schemas)) ajv.addSchema(schema as object)
  return ajv
}

const PLACES: Partial<Record<string, Rules['place']>> = { querystring: 'query', params: 'path', headers: 'header' }

function isEmptyObject (value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).length === 0
}

/** For JSON routes that take no body: an absent one or `{}`. */
function refuseAnyBody (request: FastifyRequest, _reply: unknown, done: (error?: Error) => void): void {
  if (request.body === undefined || request.body === null || isEmptyObject(request.body)) { done(); return }
  done(new ServiceError('REQUEST_INVALID', 'The operation takes no body.', { errors: [{ in: 'body', pointer: '', reason: 'must be absent or {}' }] }))
}

const TAKES_BODY = new Set(['POST', 'PUT', 'PATCH', 'DELETE'])

// A route that declares no query takes none, and one that declares no body takes none: silence must not mean "anything".
function closeRoute (route: RouteOptions): void {
  if (route.schema?.hide === true) return
  const schema = route.schema ??= {}
  schema.querystring ??= { type: 'object', properties: {}, additionalProperties: false }
  const methods = Array.isArray(route.method) ? route.method : [route.method]
  if (schema.body !== undefined || route.config?.body === 'bytes' || !methods.some((m) => TAKES_BODY.has(m))) return
  const before = route.preValidation === undefined ? [] : Array.isArray(route.preValidation) ? route.preValidation : [route.preValidation]
  route.preValidation = [...before, refuseAnyBody]
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** `bytes`: the body is a stream of octets that the handler reads from `request.raw`; else it is JSON. */
    body?: 'bytes'
    /** Its body is as large as a batch's may be, and needed whole. */
    batch?: true
  }
}

async function validation (app: FastifyInstance): Promise<void> {
  // Shared schemas are complete once all plugins have run, which is before the first request.
  const quick = lazy(() => createAjv(app.getSchemas(), false))
  const thorough = lazy(() => createAjv(app.getSchemas(), true))
  const compile: FastifySchemaCompiler<unknown> = ({ schema, httpPart }) => {
    const place = PLACES[httpPart ?? '']
    if (place !== undefined) return compileParameters(schema as ParametersSchema, place)
    if (isEmptyObject(schema)) return () => true
    const first = lazy(() => quick().compile(schema as object))
    const all = lazy(() => thorough().compile(schema as object))
    return (body: unknown) => {
      if (first()(body)) return true
      // Of a body with a million mistakes, the first is told: to gather all of them would hold up everybody else.
      if (!hasAtMost(TOLD_IN_FULL_MAX, body)) return refuseBody(first().errors ?? [], body)
      all()(body)
      return refuseBody(all().errors ?? [], body)
    }
  }
  app.setValidatorCompiler(compile)
  app.addHook('onRoute', closeRoute)
}

export default fp(validation, { name: 'validation', fastify: '5.x' })
