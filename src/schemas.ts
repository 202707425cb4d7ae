// SPDX-License-Identifier: BSD-3-Clause
//
// The shapes of the contract, once: what is validated, what is serialised, what the OpenAPI document names, and the types of all three. Request enums are
// closed; response enums may grow, so they are plain strings, but for granularity and durability. No member is ever null: what is unknown is absent.
import { Type, type Static, type TSchema } from 'typebox'
import { ATOMICITIES, ATOMIC_OPS, HINTS, OPS, type Op } from './batch.js'
import { COALESCINGS, CREATES, DURABILITIES, GRANULARITIES, PERSISTENCES, RECOVERIES, type Coalescing, type Create, type Durability, type Granularity, type Persistence, type Recovery } from './engine/engine.js'

export type { Durability, Recovery }

const CLOSED = { additionalProperties: false }

export const ADDRESS = '^0x(0|[1-9a-f][0-9a-f]{0,15})$'
export const ID = '^[a-z0-9][a-z0-9._-]{0,62}$'
/** One entity tag or several, or *. */
const CONDITION = '^(\\*|(W/)?"[^"]*"( *, *(W/)?"[^"]*")*)$'

interface Notes {
  description?: string
  example?: unknown
  default?: unknown
}

/** A size, offset, length or count: exact in every language's double. */
export function count (notes: Notes = {}, minimum = 0) {
  return Type.Integer({ format: 'int64', minimum, maximum: Number.MAX_SAFE_INTEGER, ...notes })
}

function choice<T extends string> (values: readonly T[], notes: Notes = {}) {
  return Type.Unsafe<T>({ type: 'string', enum: [...values], ...notes })
}

/** A choice in a response that may get further values. */
function open (values: readonly string[], notes: Notes = {}) {
  return Type.Unsafe<string>({ type: 'string', 'x-extensible-enum': [...values], ...notes })
}

export function address (notes: Notes = {}) {
  return Type.String({ pattern: ADDRESS, ...notes })
}

function id (notes: Notes = {}) {
  return Type.String({ pattern: ID, ...notes })
}

function labels () {
  return Type.Unsafe<Record<string, string>>({ type: 'object', additionalProperties: { type: 'string' }, description: 'Anything that the client wants to remember' })
}

export const setId = () => id({ description: 'Id of a set' })
export const failureId = () => id({ description: 'Id of a failure' })
export const partId = () => id({ description: 'Id of a part' })
export const length = () => count({ description: 'Bytes' })

/** Both or neither. */
export function rangeParameters () {
  return { addr: Type.Optional(address()), length: Type.Optional(length()) }
}

export function pageParameters () {
  return {
    limit: Type.Optional(count({ description: 'Items of a page; 50 where absent; what is above the limit of the service is that limit' }, 1)),
    cursor: Type.Optional(Type.String({ description: 'nextCursor of the page before' }))
  }
}

/** A component by name: the document and the generators then have one type for it. */
export function ref<T extends TSchema> (schema: T) {
  return Type.Unsafe<Static<T>>({ $ref: `${(schema as { $id?: string }).$id ?? ''}#` })
}

const granularity = (notes: Notes = {}) => choice<Granularity>(GRANULARITIES, { description: 'How a store becomes durable', ...notes })
const durability = (notes: Notes = {}) => choice<Durability>(DURABILITIES, notes)
export const durabilityParameter = () => Type.Optional(durability({ description: 'What is to be reached before the reply', default: 'persisted' }))
const persistence = () => open(PERSISTENCES, { description: 'Whether the medium keeps it' })
const state = (values: readonly string[]) => open(values)
const createdAt = () => Type.String({ format: 'date-time' })
const revision = () => count({ description: 'Grows with each change' })

export const ByteRange = Type.Object({ addr: address(), length: count() }, { ...CLOSED, $id: 'ByteRange', description: 'Bytes from an address on' })
export const AddressRange = Type.Object({ addr: address(), size: count() }, { ...CLOSED, $id: 'AddressRange', description: 'The place of a window or of a part map' })

export const Source = Type.Object({
  type: open(['file']),
  volume: Type.Optional(Type.String()),
  path: Type.Optional(Type.String({ description: 'Relative to the volume' })),
  create: Type.Optional(open(CREATES)),
  mode: Type.Optional(Type.String()),
  grow: Type.Optional(Type.Boolean())
}, { ...CLOSED, $id: 'Source', description: 'Where the bytes of a part come from' })

export const PmemSet = Type.Object({
  id: id(),
  uid: Type.String({ description: 'Never used again, unlike the id' }),
  revision: revision(),
  requiredGranularity: granularity({ description: 'The coarsest granularity that the set accepts' }),
  effectiveGranularity: Type.Optional(granularity({ description: 'What the first part gave; absent before it' })),
  coalescing: open(COALESCINGS),
  window: ref(AddressRange),
  partCount: count(),
  mapCount: count(),
  mappedBytes: count(),
  state: state(['ready', 'degraded']),
  labels: labels(),
  createdAt: createdAt()
}, { ...CLOSED, $id: 'PmemSet', description: 'Parts of files in one window of addresses' })

export const Part = Type.Object({
  id: Type.String(),
  set: id(),
  revision: revision(),
  source: ref(Source),
  offset: count(),
  length: count(),
  addr: address(),
  map: ref(AddressRange),
  coalesced: Type.Boolean({ description: 'Appended to a part map that was there' }),
  granularity: granularity(),
  mapSync: Type.Boolean({ description: 'Whether the mapping took MAP_SYNC' }),
  persistence: persistence(),
  state: state(['mapped', 'degraded', 'unavailable']),
  problem: Type.Optional(Type.String({ description: 'The code of what is wrong with it' })),
  createdAt: createdAt()
}, { ...CLOSED, $id: 'Part', description: 'One mapped range of one source' })

export const MapPart = Type.Object({ id: Type.String(), addr: address(), length: count(), offset: count() }, { ...CLOSED, $id: 'MapPart', description: 'The part that holds the address that was asked for' })

export const PartMap = Type.Object({
  addr: address(),
  size: count(),
  granularity: granularity(),
  partCount: count(),
  leaseCount: count(),
  revision: revision(),
  part: Type.Optional(ref(MapPart))
}, { ...CLOSED, $id: 'PartMap', description: 'A contiguous address range: one part, or several coalesced ones' })

export const Written = Type.Object({
  ranges: Type.Array(ref(ByteRange)),
  bytes: count(),
  durability: durability({ description: 'What was reached' }),
  granularity: granularity(),
  persistence: persistence(),
  simulated: Type.Optional(Type.Boolean({ description: 'The granularity is pretended, for tests' }))
}, { ...CLOSED, $id: 'Written', description: 'What was written or flushed, and how durable it is' })

export const RemovedPart = Type.Object({ id: Type.String(), addr: address(), length: count() }, { ...CLOSED, $id: 'RemovedPart' })
export const TrimmedMap = Type.Object({ before: ref(AddressRange), after: ref(AddressRange) }, { ...CLOSED, $id: 'TrimmedMap' })
export const SplitMap = Type.Object({ before: ref(AddressRange), after: Type.Array(ref(AddressRange)) }, { ...CLOSED, $id: 'SplitMap' })

export const Removal = Type.Object({
  dryRun: Type.Boolean(),
  removed: Type.Array(ref(RemovedPart)),
  removedCount: count(),
  trimmed: Type.Array(ref(TrimmedMap)),
  split: Type.Array(ref(SplitMap)),
  truncated: Type.Optional(Type.Boolean({ description: 'removed does not hold all of them' }))
}, { ...CLOSED, $id: 'Removal', description: 'What a removal took away, and what it left' })

export const Volume = Type.Object({
  name: Type.String(),
  fileSystem: Type.String(),
  dax: Type.Boolean(),
  granularity: granularity({ description: 'What a new file there would get' }),
  mapSync: Type.Boolean(),
  persistence: persistence(),
  persistenceReason: Type.String(),
  alignment: count(),
  capacityBytes: count(),
  freeBytes: count(),
  numaNode: Type.Optional(count())
}, { ...CLOSED, $id: 'Volume', description: 'A directory that the operator allows' })

export const Probe = Type.Object({
  exists: Type.Boolean(),
  size: Type.Optional(count()),
  alignment: count(),
  mapSync: Type.Boolean(),
  granularity: granularity(),
  persistence: persistence(),
  reason: Type.Optional(Type.String({ description: 'Why the granularity is not finer' }))
}, { ...CLOSED, $id: 'Probe', description: 'What a part of a file would get' })

export const EngineVersion = Type.Object({ abi: count(), libpmem2: Type.String() }, { ...CLOSED, $id: 'EngineVersion' })

export const LimitTable = Type.Object({
  sets: count(),
  partsPerSet: count(),
  windowBytesDefault: count(),
  windowBytes: count(),
  windowBytesTotal: count(),
  mappings: count(),
  bodyBytes: count(),
  batchBytes: count(),
  batchOperations: count(),
  batchResultBytes: count(),
  atomicBatchBytes: count(),
  ranges: count(),
  list: count(),
  labels: count(),
  labelNameChars: count(),
  labelValueChars: count(),
  streams: count(),
  idempotencyKeys: count(),
  connections: count(),
  keepFreePercent: count()
}, { ...CLOSED, $id: 'LimitTable', description: 'Every limit of this service' })

export const Capabilities = Type.Object({
  version: Type.String(),
  engine: ref(EngineVersion),
  addressesStable: Type.Boolean(),
  simulated: Type.Optional(granularity({ description: 'The granularity that is pretended, for tests' })),
  pageSize: count(),
  limits: ref(LimitTable),
  granularities: Type.Array(granularity(), { description: 'What the volumes offer, finest first' })
}, { ...CLOSED, $id: 'Capabilities', description: 'What this service can do' })

export const Failure = Type.Object({
  id: id(),
  kind: open(['persist_failed']),
  at: Type.String({ format: 'date-time', description: 'When the last flush of it failed' }),
  ranges: Type.Array(ref(ByteRange), { description: 'What is in doubt, where the set has it mapped: whole pages that were stored to since a flush that covered them. It may be more, and is none where only other sets map it' }),
  truncated: Type.Optional(Type.Boolean({ description: 'ranges does not hold all of them' })),
  code: Type.String(),
  errno: Type.Optional(Type.String({ description: 'What the kernel said' })),
  acknowledged: Type.Boolean()
}, { ...CLOSED, $id: 'Failure', description: 'A flush of a file that failed. Every part of the file is degraded in every set until it is acknowledged in one' })

export const GranularityAnswer = Type.Object({ granularity: granularity() }, { ...CLOSED, $id: 'EffectiveGranularity' })

export const ErrorCode = Type.Object({
  code: Type.String(),
  library: open(['libpmemset', 'libpmem2', 'errno', 'pmemsetd']),
  number: Type.Optional(Type.Integer({ format: 'int32' })),
  status: Type.Integer({ format: 'int32', description: 'The usual HTTP status' }),
  statuses: Type.Array(Type.Integer({ format: 'int32' }), { description: 'Every HTTP status that it can have' }),
  title: Type.String(),
  meaning: Type.String(),
  advice: Type.String(),
  retryable: Type.Boolean()
}, { ...CLOSED, $id: 'ErrorCode', description: 'What a code means and what to do about it' })

export const Health = Type.Object({
  status: open(['live', 'ready']),
  sets: Type.Optional(count()),
  parts: Type.Optional(count()),
  volumes: Type.Optional(count())
}, { ...CLOSED, $id: 'Health', description: 'Counts only' })

export const Problem = Type.Object({
  type: Type.String({ description: 'Answers a GET' }),
  title: Type.String(),
  status: Type.Integer({ format: 'int32' }),
  detail: Type.String(),
  instance: Type.String({ description: 'The request id' }),
  code: Type.String(),
  number: Type.Optional(Type.Integer({ format: 'int32' })),
  errno: Type.Optional(Type.String()),
  cause: Type.Optional(Type.Object({ library: Type.String(), code: Type.String(), number: Type.Integer({ format: 'int32' }), message: Type.String() })),
  retryable: Type.Boolean(),
  errors: Type.Optional(Type.Array(Type.Object({ in: open(['body', 'query', 'path', 'header']), pointer: Type.Optional(Type.String()), name: Type.Optional(Type.String()), reason: Type.String() })))
}, { additionalProperties: true, $id: 'Problem', description: 'RFC 9457; further members are the data that would have helped' })

function page<T extends TSchema> (item: T, $id: string) {
  return Type.Object({ items: Type.Array(ref(item)), nextCursor: Type.Optional(Type.String({ description: 'Absent on the last page' })) }, { ...CLOSED, $id })
}

export const PmemSetPage = page(PmemSet, 'PmemSetPage')
export const PartPage = page(Part, 'PartPage')
export const PartMapPage = page(PartMap, 'PartMapPage')
export const VolumeList = Type.Object({ items: Type.Array(ref(Volume)) }, { ...CLOSED, $id: 'VolumeList' })
export const FailureList = Type.Object({ items: Type.Array(ref(Failure)) }, { ...CLOSED, $id: 'FailureList' })
export const ErrorCodeList = Type.Object({ items: Type.Array(ref(ErrorCode)) }, { ...CLOSED, $id: 'ErrorCodeList' })

// ---- the catalog ----

export const CatalogPart = Type.Object({
  id: id(),
  cookie: count({ description: 'Its number: parts were mapped in the order of these' }, 1),
  source: Type.Object({
    type: choice(['file'] as const),
    volume: Type.String(),
    path: Type.String(),
    create: choice<Create>(CREATES),
    mode: Type.Optional(Type.String({ pattern: '^0[0-7]{3}$' })),
    grow: Type.Boolean()
  }, CLOSED),
  identity: Type.String({ maxLength: 127, description: 'Of the file; another one at its path is a replaced one. Empty: any' }),
  offset: count(),
  length: count({}, 1),
  addr: address(),
  coalesced: Type.Boolean(),
  granularity: granularity(),
  persistence: choice<Persistence>(PERSISTENCES),
  mapSync: Type.Boolean(),
  createdAt: createdAt()
}, { ...CLOSED, $id: 'CatalogPart' })

export const CatalogFailure = Type.Object({
  at: count({ description: 'Milliseconds since 1970' }),
  errno: Type.Integer({ format: 'int32', minimum: 0 }),
  ranges: Type.Array(ref(ByteRange))
}, { ...CLOSED, $id: 'CatalogFailure' })

export const CatalogSet = Type.Object({
  id: id(),
  uid: Type.String({ pattern: '^[0-9a-f-]{36}$' }),
  revision: count({}, 1),
  requiredGranularity: granularity(),
  effectiveGranularity: Type.Optional(granularity()),
  coalescing: choice<Coalescing>(COALESCINGS),
  windowAddr: address(),
  windowSize: count({}, 1),
  partsMade: count(),
  labels: labels(),
  createdAt: createdAt(),
  parts: Type.Array(ref(CatalogPart)),
  failures: Type.Array(ref(CatalogFailure))
}, { ...CLOSED, $id: 'CatalogSet' })

export const CatalogDocument = Type.Object({
  schema: count({ description: 'Of the document: 1' }),
  uid: Type.String({ description: 'Of the catalog that it is of' }),
  arenaBase: address({ description: 'Where the addresses of its sets begin' }),
  pageSize: count(),
  sets: Type.Array(ref(CatalogSet))
}, { ...CLOSED, $id: 'CatalogDocument', description: 'Everything that the service has to remember', example: { schema: 1, uid: '4b6a2f1e-8f0e-4c39-9f57-0a1c6d2b7e55', arenaBase: '0x400000000000', pageSize: 4096, sets: [] } })

// ---- requests ----

export const NewSet = Type.Object({
  id: Type.Optional(id({ description: 'Made by the service where absent' })),
  requiredGranularity: granularity({ description: 'The coarsest granularity that the set is to accept' }),
  coalescing: Type.Optional(choice<Coalescing>(COALESCINGS, { default: 'none' })),
  windowSize: Type.Optional(count({ description: 'Bytes of address space; rounded up to 2 MiB' }, 1)),
  labels: Type.Optional(labels())
}, { ...CLOSED, $id: 'NewSet', example: { id: 'accounts', requiredGranularity: 'page', coalescing: 'full', windowSize: 1073741824, labels: { team: 'ledger' } } })

export const SetPatch = Type.Object({
  coalescing: Type.Optional(choice<Coalescing>(COALESCINGS, { description: 'From the next part on' })),
  labels: Type.Optional(labels())
}, { ...CLOSED, $id: 'SetPatch', description: 'labels replaces all of them', example: { coalescing: 'opportunistic', labels: { team: 'audit' } } })

export const NewSource = Type.Object({
  type: choice(['file'] as const),
  volume: Type.Optional(Type.String({ description: 'The first volume of the service where absent' })),
  path: Type.String({ description: 'Relative to the volume' }),
  create: Type.Optional(choice<Create>(CREATES, { default: 'never' })),
  mode: Type.Optional(Type.String({ pattern: '^0[0-7]{3}$', description: 'Permission bits of a created file, less the umask; 0644 where absent' })),
  grow: Type.Optional(Type.Boolean({ default: false, description: 'Extend and allocate a file that is too small; a created one always is' }))
}, { ...CLOSED, $id: 'NewSource' })

export const NewPart = Type.Object({
  id: Type.Optional(id({ description: 'Unique in its set; made by the service where absent' })),
  source: ref(NewSource),
  offset: Type.Optional(count({ default: 0 })),
  length: Type.Optional(count({ description: 'To the end of the source where absent' }, 1))
}, { ...CLOSED, $id: 'NewPart', example: { id: 'first', source: { type: 'file', volume: 'default', path: 'accounts.dat', create: 'if_needed' }, offset: 0, length: 65536 } })

export const Restoration = Type.Object({
  adopt: Type.Optional(Type.Boolean({ default: false, description: 'Take the file that is at the path now, whichever it is' }))
}, { ...CLOSED, $id: 'Restoration', example: { adopt: true } })

export const Ranges = Type.Object({
  ranges: Type.Array(ref(ByteRange), { minItems: 1 })
}, { ...CLOSED, $id: 'Ranges', description: 'Each lies inside one part map', example: { ranges: [{ addr: '0x400000000000', length: 4096 }] } })

export const Acknowledgement = Type.Object({
  action: choice<Recovery>(RECOVERIES, { description: 'rewrite: what the mapping shows now becomes durable; discard: the mapping shows what the medium has' })
}, { ...CLOSED, $id: 'Acknowledgement', example: { action: 'rewrite' } })

const word = (notes: Notes = {}) => address(notes)
const hint = () => Type.Optional(choice<Hint>(HINTS.filter((one) => one !== 'none'), { description: 'How to store: a hint' }))
const punch = () => Type.Optional(Type.Boolean({ description: 'Give the space back and allocate it anew: for the byte 0x0' }))
export type Hint = Exclude<typeof HINTS[number], 'none'>
export type AtomicOp = typeof ATOMIC_OPS[number]

export const Fill = Type.Object({
  addr: address(),
  length: length(),
  value: word({ description: 'A byte: from 0x0 to 0xff' }),
  durability: durabilityParameter(),
  hint: hint(),
  punch: punch()
}, { ...CLOSED, $id: 'Fill', example: { addr: '0x400000000000', length: 4096, value: '0x0' } })

export const Copy = Type.Object({
  dest: address(),
  src: address(),
  length: length(),
  durability: durabilityParameter(),
  hint: hint()
}, { ...CLOSED, $id: 'Copy', example: { dest: '0x400000000000', src: '0x400000001000', length: 4096 } })

export const Atomic = Type.Object({
  op: choice<AtomicOp>(ATOMIC_OPS),
  addr: address({ description: 'Of a word: a multiple of 8' }),
  value: word(),
  expected: Type.Optional(word({ description: 'Of compare_exchange, and needed there' }))
}, { ...CLOSED, $id: 'Atomic', description: 'On an aligned word of 8 bytes, little-endian', example: { op: 'add', addr: '0x400000000000', value: '0x1' } })

export const AtomicOutcome = Type.Object({
  previous: word({ description: 'The word before' }),
  current: word({ description: 'The word now' }),
  swapped: Type.Optional(Type.Boolean({ description: 'Of compare_exchange: whether the word was the expected one' }))
}, { ...CLOSED, $id: 'AtomicOutcome' })

export const BatchOperation = Type.Object({
  op: choice<Op>(OPS),
  addr: Type.Optional(address({ description: 'Of read, write, memset and the atomics' })),
  length: Type.Optional(count({ description: 'Of read, memset and the copies' })),
  data: Type.Optional(Type.String({ format: 'byte', description: 'Of write: base64' })),
  value: Type.Optional(word({ description: 'Of memset, a byte; of the atomics, a word' })),
  expected: Type.Optional(word({ description: 'Of compare_exchange' })),
  dest: Type.Optional(address({ description: 'Of memcpy and memmove' })),
  src: Type.Optional(address({ description: 'Of memcpy and memmove' })),
  ranges: Type.Optional(Type.Array(ref(ByteRange), { minItems: 1, description: 'Of persist and flush' })),
  hint: hint(),
  punch: punch()
}, { ...CLOSED, $id: 'BatchOperation', description: 'The members that the operation of that name has' })

export const Batch = Type.Object({
  operations: Type.Array(ref(BatchOperation), { minItems: 1 }),
  durability: durabilityParameter(),
  atomicity: Type.Optional(choice(ATOMICITIES, { default: 'none', description: 'none: a crash in the middle leaves any of what was not durable yet; all: all of it or nothing. Then there are read, write, memset (without punch), memcpy and memmove only, and a durability' }))
}, { ...CLOSED, $id: 'Batch', example: { operations: [{ op: 'write', addr: '0x400000000000', data: 'OCBieXRlcy4=' }, { op: 'read', addr: '0x400000000000', length: 8 }], durability: 'persisted' } })

export const OperationResult = Type.Object({
  data: Type.Optional(Type.String({ format: 'byte', description: 'Of read: base64' })),
  previous: Type.Optional(word()),
  current: Type.Optional(word()),
  swapped: Type.Optional(Type.Boolean())
}, { ...CLOSED, $id: 'OperationResult', description: 'Empty for what gives no result' })

export const BatchOutcome = Type.Object({
  results: Type.Array(ref(OperationResult)),
  bytes: count({ description: 'That were stored' }),
  durability: durability({ description: 'What was reached' }),
  granularity: granularity(),
  persistence: persistence(),
  simulated: Type.Optional(Type.Boolean({ description: 'The granularity is pretended, for tests' }))
}, { ...CLOSED, $id: 'BatchOutcome' })

/** Headers of a change. */
const ifMatch = Type.Optional(Type.String({ pattern: CONDITION, description: 'The ETag that the change is meant for' }))
export const Conditional = Type.Object({
  'if-match': ifMatch,
  'idempotency-key': Type.Optional(Type.String({ pattern: '^[\\x21-\\x7e]{1,255}$', description: 'The same request sent again under it gets the same reply, and is not done twice; kept for 24 hours' }))
})

/** Of a change by a body of octets. */
export const ConditionalBytes = Type.Object({
  'if-match': ifMatch,
  'content-digest': Type.Optional(Type.String({ description: 'RFC 9530: sha-256 and sha-512 are checked, others are passed over' }))
})

/** Every component of the document. */
export const COMPONENTS: readonly TSchema[] = [
  Acknowledgement, AddressRange, Atomic, AtomicOutcome, Batch, BatchOperation, BatchOutcome, ByteRange, Capabilities, CatalogDocument, CatalogFailure, CatalogPart, CatalogSet, Copy, EngineVersion, ErrorCode, ErrorCodeList, Failure,
  FailureList, Fill, GranularityAnswer, Health, LimitTable, MapPart, NewPart, NewSet, NewSource, OperationResult, Part,
  PartMap, PartMapPage, PartPage, PmemSet, PmemSetPage, Probe, Problem, Ranges, Removal, RemovedPart, Restoration, SetPatch, Source, SplitMap, TrimmedMap, Volume, VolumeList, Written
]

export type ByteRange = Static<typeof ByteRange>
export type AddressRange = Static<typeof AddressRange>
export type Source = Static<typeof Source>
export type PmemSet = Static<typeof PmemSet>
export type Part = Static<typeof Part>
export type PartMap = Static<typeof PartMap>
export type Written = Static<typeof Written>
export type Removal = Static<typeof Removal>
export type Failure = Static<typeof Failure>
export type Fill = Static<typeof Fill>
export type Copy = Static<typeof Copy>
export type Atomic = Static<typeof Atomic>
export type AtomicOutcome = Static<typeof AtomicOutcome>
export type BatchOperation = Static<typeof BatchOperation>
export type Batch = Static<typeof Batch>
export type OperationResult = Static<typeof OperationResult>
export type BatchOutcome = Static<typeof BatchOutcome>
export type Volume = Static<typeof Volume>
export type Probe = Static<typeof Probe>
export type Capabilities = Static<typeof Capabilities>
export type ErrorCode = Static<typeof ErrorCode>
export type Health = Static<typeof Health>
export type CatalogDocument = Static<typeof CatalogDocument>
export type NewSet = Static<typeof NewSet>
export type SetPatch = Static<typeof SetPatch>
export type NewPart = Static<typeof NewPart>
export type Restoration = Static<typeof Restoration>
export interface Page<T> {
  items: T[]
  nextCursor?: string
}
