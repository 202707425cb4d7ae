// SPDX-License-Identifier: BSD-3-Clause
//
// The one place where a code meets an HTTP status. Everything that can be said to a client about a failure starts here: the catalogue of codes, the
// two errors that product code throws, and the step from such an error to a problem document (RFC 9457). Text for clients is ours; messages of
// libraries carry absolute paths and go to the log only.
import { constants } from 'node:os'

export type Library = 'libpmemset' | 'libpmem2' | 'errno' | 'pmemsetd'

/** Where one code has a status for some circumstances only. Who throws names the circumstance, never the status. */
export type Circumstance = 'header' | 'schema' | 'body' | 'granularity' | 'map' | 'impossible' | 'occupied' | 'failed' | 'memory'

export interface CodeEntry {
  library: Library
  /** The number of the C interface; the service's own codes have none. */
  number?: number
  /** The status, unless a circumstance or (INVALID_PMEM2_MAP, CANNOT_GROW_SOURCE_FILE, CANNOT_CREATE_TEMP_FILE) the cause says otherwise. */
  status: number
  when?: Partial<Record<Circumstance, number>>
  title: string
  meaning: string
  advice: string
  /** The identical request may succeed later with nobody changing anything, and doing it twice does no harm. */
  retryable?: boolean
}

const libpmemset = {
  PMEMSET_E_UNKNOWN: { number: -200000, status: 500, title: 'Unclassified failure', meaning: 'The engine failed in a way that it has no code for.', advice: 'Report it with the request id; the log has the details.' },
  PMEMSET_E_NOSUPP: { number: -200001, status: 501, title: 'Not supported', meaning: 'This build or host cannot do the operation at all.', advice: 'See /capabilities for what this service can do.' },
  PMEMSET_E_INVALID_PMEM2_SOURCE: { number: -200002, status: 422, title: 'Unusable source', meaning: 'The source is neither a regular file nor device DAX.', advice: 'Name a regular file.' },
  PMEMSET_E_INVALID_SOURCE_PATH: { number: -200003, status: 422, when: { schema: 400 }, title: 'Path names nothing', meaning: 'The path of the source is missing, or nothing is there.', advice: 'Name a file that exists, or ask for it to be made with "create".' },
  PMEMSET_E_INVALID_SOURCE_TYPE: { number: -200004, status: 422, title: 'Unknown kind of source', meaning: 'No source was given, or one of an unknown type.', advice: 'Give a source of a type that the API documents.' },
  PMEMSET_E_CANNOT_ALLOCATE_INTERNAL_STRUCTURE: { number: -200005, status: 503, retryable: true, title: 'Out of memory', meaning: 'There is no memory for an internal structure.', advice: 'Repeat the request after the time that Retry-After gives.' },
  PMEMSET_E_INVALID_OFFSET_VALUE: { number: -200006, status: 400, title: 'Offset too large', meaning: 'The offset is above the largest that is allowed.', advice: 'Send an offset of at most 9007199254740991.' },
  PMEMSET_E_GRANULARITY_NOT_SUPPORTED: { number: -200007, status: 422, when: { schema: 400 }, title: 'Granularity not supported', meaning: 'The granularity is unknown, or the medium is coarser than the set requires.', advice: 'Use a medium that offers the granularity (see the volume\'s probe), or make a set that requires a coarser one.' },
  PMEMSET_E_INVALID_PMEM2_MAP: { number: -200008, status: 422, when: { occupied: 409, failed: 500, memory: 503 }, title: 'Range cannot be mapped', meaning: 'The range of the source cannot be mapped; the cause says why.', advice: 'Change what the cause names.' },
  PMEMSET_E_PART_EXISTS: { number: -200009, status: 409, title: 'Part exists', meaning: 'A part is at that place already.', advice: 'Remove that part, or map elsewhere.' },
  PMEMSET_E_GRANULARITY_NOT_SET: { number: -200010, status: 400, title: 'Granularity not given', meaning: 'A set needs a required granularity.', advice: 'Send requiredGranularity: byte, cache_line or page.' },
  PMEMSET_E_GRANULARITY_MISMATCH: { number: -200011, status: 409, title: 'Granularity differs from the set\'s', meaning: 'The granularity of the part is not the one that the first part gave the set.', advice: 'Map sources of one granularity into a set, and others into another set.' },
  PMEMSET_E_NO_PART_MAPPED: { number: -200012, status: 409, when: { granularity: 404 }, title: 'No part mapped yet', meaning: 'Nothing was mapped into the set yet.', advice: 'Map a part first.' },
  PMEMSET_E_CANNOT_FIND_PART_MAP: { number: -200013, status: 404, title: 'No part map there', meaning: 'No part map holds the address.', advice: 'List the maps of the set for the addresses that are mapped.' },
  PMEMSET_E_CANNOT_COALESCE_PARTS: { number: -200014, status: 409, title: 'Cannot coalesce', meaning: 'The addresses behind the previous part map are occupied.', advice: 'Set coalescing to opportunistic or none, or remove the part behind.' },
  PMEMSET_E_LENGTH_UNALIGNED: { number: -200015, status: 422, title: 'Length unaligned', meaning: 'The length of the part is not a multiple of the alignment of its source.', advice: 'Send a length that is a multiple of requiredAlignment.' },
  PMEMSET_E_PART_NOT_FOUND: { number: -200016, status: 404, title: 'No such part', meaning: 'The set has no part of that id.', advice: 'List the parts of the set.' },
  PMEMSET_E_INVALID_COALESCING_VALUE: { number: -200017, status: 400, title: 'Unknown coalescing mode', meaning: 'The coalescing mode is none of those that exist.', advice: 'Send none, opportunistic or full.' },
  PMEMSET_E_DEEP_FLUSH_FAIL: { number: -200018, status: 500, title: 'Deep flush failed', meaning: 'The deep flush did not reach the medium.', advice: 'Treat the range as not durable and look at the health of the medium.' },
  PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS: { number: -200019, status: 400, title: 'Bad creation mode', meaning: 'The creation mode or the permission bits are none of those that exist.', advice: 'Send create: never, if_needed, exclusive or always, and mode as four octal digits such as "0640".' },
  PMEMSET_E_CANNOT_CREATE_TEMP_FILE: { number: -200020, status: 500, title: 'Cannot make a temporary file', meaning: 'The temporary file cannot be made on that volume.', advice: 'See errno; another volume may serve.' },
  PMEMSET_E_CANNOT_GROW_SOURCE_FILE: { number: -200021, status: 507, when: { occupied: 409, impossible: 422, failed: 500, memory: 503 }, title: 'Cannot grow the file', meaning: 'The file cannot be extended and allocated to hold the range.', advice: 'Free space on the volume, or map a shorter range.' },
  PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP: { number: -200022, status: 409, retryable: true, title: 'Part map in use', meaning: 'A read, write or flush that is still running holds the part map.', advice: 'Repeat the request when the accesses to the map have ended.' },
  PMEMSET_E_CANNOT_FIT_PART_MAP: { number: -200023, status: 409, title: 'No room in the window', meaning: 'The window of the set has no gap that is large enough.', advice: 'Remove parts, map at most largestGap bytes, or make a set with a bigger window.' },
  PMEMSET_E_OFFSET_OUT_OF_RANGE: { number: -200024, status: 400, title: 'Offset out of range', meaning: 'The offset is above the largest that is allowed.', advice: 'Send a smaller offset.' },
  PMEMSET_E_INVALID_PART_STATES: { number: -200025, status: 400, title: 'Unknown part state', meaning: 'A part state is none of those that exist.', advice: 'Send states that the API documents.' },
  PMEMSET_E_UNDESIRABLE_PART_STATE: { number: -200026, status: 409, title: 'Part state not accepted', meaning: 'The shutdown state of the part is not among those that the set accepts.', advice: 'Check the data, then acknowledge the state.' },
  PMEMSET_E_SDS_ALREADY_SET: { number: -200027, status: 409, title: 'Shutdown state set already', meaning: 'The source has a shutdown state already.', advice: 'Use the one that is there.' },
  PMEMSET_E_SDS_NOSUPP: { number: -200028, status: 422, title: 'No shutdown state here', meaning: 'The device of the source has no usable shutdown counter.', advice: 'Map without a shutdown state, or use another device.' },
  PMEMSET_E_SDS_DEVICE_ID_LEN_TOO_BIG: { number: -200029, status: 500, title: 'Device identifier too long', meaning: 'The identifier of the device is longer than the service can record.', advice: 'Report it with the request id.' },
  PMEMSET_E_MAP_LENGTH_UNSET: { number: -200030, status: 422, title: 'Nothing to map', meaning: 'No length was given, and the source has nothing from the offset on.', advice: 'Send a length, with grow where the file is to be extended.' },
  PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL: { number: -200031, status: 409, title: 'Source too small', meaning: 'The range ends behind the end of the source, which may not grow.', advice: 'Map within sourceSize, or send grow: true.' },
  PMEMSET_E_IO_FAIL: { number: -200032, status: 500, when: { map: 409 }, title: 'The medium failed', meaning: 'The medium refused a load or store.', advice: 'See reason and offset; other maps of the set go on working.' },
  PMEMSET_E_LENGTH_OUT_OF_RANGE: { number: -200033, status: 422, when: { header: 416 }, title: 'Range leaves its part map', meaning: 'The range is not inside one part map.', advice: 'Keep each access inside one part map; the problem names the one where the range starts.' },
  PMEMSET_E_INVALID_ALIGNMENT_VALUE: { number: -200035, status: 500, title: 'Unusable alignment', meaning: 'The alignment of the source cannot be read or is not a power of two.', advice: 'Look at the configuration of the device.' },
  PMEMSET_E_DAX_REGION_NOT_FOUND: { number: -200036, status: 422, title: 'No DAX region', meaning: 'The source is not on a device that has a DAX region.', advice: 'Use a source on persistent memory.' },
  PMEMSET_E_CANNOT_READ_BOUNDS: { number: -200037, status: 500, title: 'Bounds unreadable', meaning: 'The bounds of the region cannot be read.', advice: 'Give the service the right to read them.' },
  PMEMSET_E_BADBLOCK_NOSUPP: { number: -200038, status: 501, title: 'Bad blocks not supported', meaning: 'This build or host cannot tell bad blocks.', advice: 'See /capabilities.' }
} satisfies Record<string, Omit<CodeEntry, 'library'>>

// Only ever the cause of another code, so their advice is about the value that the cause complains of.
const libpmem2 = {
  PMEM2_E_UNKNOWN: { number: -100000, status: 500, title: 'Unclassified failure', meaning: 'The mapping failed in a way that has no code.', advice: 'Report it with the request id.' },
  PMEM2_E_NOSUPP: { number: -100001, status: 501, when: { map: 422 }, title: 'Not supported', meaning: 'The source or the host does not support the operation.', advice: 'Use another source.' },
  PMEM2_E_FILE_HANDLE_NOT_SET: { number: -100003, status: 500, title: 'No file handle', meaning: 'The engine lost the handle of the file.', advice: 'Report it with the request id.' },
  PMEM2_E_INVALID_FILE_HANDLE: { number: -100004, status: 500, title: 'Bad file handle', meaning: 'The handle of the file is closed or not readable.', advice: 'Report it with the request id.' },
  PMEM2_E_INVALID_FILE_TYPE: { number: -100005, status: 422, title: 'Wrong kind of file', meaning: 'The path leads to a directory, FIFO, socket or device.', advice: 'Name a regular file.' },
  PMEM2_E_MAP_RANGE: { number: -100006, status: 422, title: 'Range behind the source', meaning: 'The range ends behind the source, or it wraps.', advice: 'Stay within sourceSize.' },
  PMEM2_E_MAPPING_EXISTS: { number: -100007, status: 409, title: 'Addresses occupied', meaning: 'Something is mapped at the addresses already.', advice: 'Repeat the request; report it if it stays.' },
  PMEM2_E_GRANULARITY_NOT_SET: { number: -100008, status: 500, title: 'Granularity not given', meaning: 'The engine asked for a mapping without a granularity.', advice: 'Report it with the request id.' },
  PMEM2_E_GRANULARITY_NOT_SUPPORTED: { number: -100009, status: 422, title: 'Medium too coarse', meaning: 'The medium is coarser than the granularity that is required.', advice: 'Compare requiredGranularity and availableGranularity.' },
  PMEM2_E_OFFSET_OUT_OF_RANGE: { number: -100010, status: 400, title: 'Offset out of range', meaning: 'The offset is above the largest that is allowed.', advice: 'Send a smaller offset.' },
  PMEM2_E_OFFSET_UNALIGNED: { number: -100011, status: 422, title: 'Offset unaligned', meaning: 'The offset is not a multiple of the alignment of its source.', advice: 'Send an offset that is a multiple of requiredAlignment.' },
  PMEM2_E_INVALID_ALIGNMENT_FORMAT: { number: -100012, status: 500, title: 'Alignment unreadable', meaning: 'The device does not tell its alignment.', advice: 'Look at the configuration of the device.' },
  PMEM2_E_INVALID_ALIGNMENT_VALUE: { number: -100013, status: 500, title: 'Unusable alignment', meaning: 'The alignment of the device is not a power of two.', advice: 'Look at the configuration of the device.' },
  PMEM2_E_INVALID_SIZE_FORMAT: { number: -100014, status: 500, title: 'Size unreadable', meaning: 'The device does not tell its size.', advice: 'Look at the configuration of the device.' },
  PMEM2_E_LENGTH_UNALIGNED: { number: -100015, status: 422, title: 'Length unaligned', meaning: 'The length is not a multiple of the alignment of its source.', advice: 'Send a length that is a multiple of requiredAlignment.' },
  PMEM2_E_MAPPING_NOT_FOUND: { number: -100016, status: 404, title: 'No mapping there', meaning: 'Nothing is mapped at the address.', advice: 'List the maps of the set.' },
  PMEM2_E_BUFFER_TOO_SMALL: { number: -100017, status: 500, title: 'Buffer too small', meaning: 'The identifier of the device does not fit.', advice: 'Report it with the request id.' },
  PMEM2_E_SOURCE_EMPTY: { number: -100018, status: 422, title: 'Source empty', meaning: 'The source has no bytes.', advice: 'Send a length with grow: true, or use another file.' },
  PMEM2_E_INVALID_SHARING_VALUE: { number: -100019, status: 400, title: 'Unknown sharing', meaning: 'The sharing mode is none of those that exist.', advice: 'Report it with the request id.' },
  PMEM2_E_SRC_DEVDAX_PRIVATE: { number: -100020, status: 422, title: 'Device DAX is shared only', meaning: 'Device DAX cannot be mapped privately.', advice: 'Map it shared.' },
  PMEM2_E_INVALID_ADDRESS_REQUEST_TYPE: { number: -100021, status: 400, title: 'Unknown address request', meaning: 'The kind of address request is none of those that exist.', advice: 'Report it with the request id.' },
  PMEM2_E_ADDRESS_UNALIGNED: { number: -100022, status: 422, title: 'Address unaligned', meaning: 'The address does not fit the alignment of the source.', advice: 'Compare with requiredAlignment.' },
  PMEM2_E_ADDRESS_NULL: { number: -100023, status: 400, title: 'No address', meaning: 'An address is needed.', advice: 'Report it with the request id.' },
  PMEM2_E_DEEP_FLUSH_RANGE: { number: -100024, status: 422, title: 'Range outside the mapping', meaning: 'The range to flush deeply is not inside one mapping.', advice: 'Keep the range inside one part map.' },
  PMEM2_E_INVALID_REGION_FORMAT: { number: -100025, status: 500, title: 'Region unreadable', meaning: 'The region of the device cannot be read.', advice: 'Look at the configuration of the device.' },
  PMEM2_E_DAX_REGION_NOT_FOUND: { number: -100026, status: 422, title: 'No DAX region', meaning: 'The source is not on a device that has a DAX region.', advice: 'Use a source on persistent memory.' },
  PMEM2_E_INVALID_DEV_FORMAT: { number: -100027, status: 500, title: 'Device number unreadable', meaning: 'The number of the device cannot be read.', advice: 'Look at the configuration of the device.' },
  PMEM2_E_CANNOT_READ_BOUNDS: { number: -100028, status: 500, title: 'Bounds unreadable', meaning: 'The bounds of the namespace cannot be read.', advice: 'Give the service the right to read them.' },
  PMEM2_E_NO_BAD_BLOCK_FOUND: { number: -100029, status: 200, title: 'No bad block', meaning: 'There is no further bad block; this is not an error.', advice: 'Nothing is to be done.' },
  PMEM2_E_LENGTH_OUT_OF_RANGE: { number: -100030, status: 409, when: { body: 422 }, title: 'Does not fit', meaning: 'The range does not fit the reservation or the source.', advice: 'Map a shorter range.' },
  PMEM2_E_INVALID_PROT_FLAG: { number: -100031, status: 400, title: 'Unknown protection', meaning: 'The protection is none of those that exist.', advice: 'Report it with the request id.' },
  PMEM2_E_NO_ACCESS: { number: -100032, status: 422, title: 'No access', meaning: 'The file does not allow the access that a mapping needs.', advice: 'Give the service the right to read and write the file.' },
  PMEM2_E_VM_RESERVATION_NOT_EMPTY: { number: -100033, status: 409, title: 'Addresses in use', meaning: 'The addresses still hold mappings.', advice: 'Remove the parts first.' },
  PMEM2_E_MAP_EXISTS: { number: -100034, status: 409, title: 'Mapping exists', meaning: 'The range is registered already.', advice: 'Remove the part that is there.' },
  PMEM2_E_FILE_DESCRIPTOR_NOT_SET: { number: -100035, status: 422, title: 'Source has no file', meaning: 'The source has no file behind it.', advice: 'Use a file.' },
  PMEM2_E_SOURCE_TYPE_NOT_SUPPORTED: { number: -100036, status: 422, title: 'Kind of source not supported', meaning: 'The operation does not work with this kind of source.', advice: 'Use another source.' },
  PMEM2_E_IO_FAIL: { number: -100037, status: 500, title: 'The medium failed', meaning: 'The medium refused an access.', advice: 'Look at the health of the medium.' }
} satisfies Record<string, Omit<CodeEntry, 'library'>>

// ENOSPC and EDQUOT never appear bare: see ERRNO_BECOMES.
const errnos = {
  ENOMEM: { status: 503, retryable: true, title: 'Out of memory', meaning: 'The host has no memory for the request.', advice: 'Repeat the request after the time that Retry-After gives.' },
  EAGAIN: { status: 503, retryable: true, title: 'Not now', meaning: 'The kernel could not do it at once.', advice: 'Repeat the request after the time that Retry-After gives.' },
  EMFILE: { status: 503, retryable: true, title: 'Out of descriptors', meaning: 'The service has as many files open as it may.', advice: 'Repeat later; the operator may raise the limit of open files.' },
  ENFILE: { status: 503, retryable: true, title: 'Out of descriptors', meaning: 'The host has as many files open as it may.', advice: 'Repeat later; the operator may raise the limit of open files.' },
  EACCES: { status: 422, title: 'No permission', meaning: 'The service has no permission for that file.', advice: 'Give the user that the service runs as the right to read and write it.' },
  EPERM: { status: 422, title: 'Not permitted', meaning: 'The file or its file system does not permit the operation.', advice: 'Look at the attributes of the file and the mount.' },
  EROFS: { status: 422, title: 'Read-only', meaning: 'The file system of the source is mounted read-only.', advice: 'Use a volume that can be written.' },
  ENOENT: { status: 422, title: 'Nothing there', meaning: 'A directory on the way, or the file, does not exist.', advice: 'Make it first.' },
  ENOTDIR: { status: 422, title: 'Not a directory', meaning: 'Something on the way to the file is not a directory.', advice: 'Correct the path.' },
  ELOOP: { status: 422, title: 'Symbolic link', meaning: 'A symbolic link is on the way to the file.', advice: 'Name the file itself.' },
  ENAMETOOLONG: { status: 422, title: 'Name too long', meaning: 'A component of the path is longer than the file system allows.', advice: 'Use shorter names.' },
  EISDIR: { status: 422, title: 'Is a directory', meaning: 'The path leads to a directory.', advice: 'Name a regular file.' },
  EINVAL: { status: 422, title: 'Not possible with this source', meaning: 'The kernel refused the request for this source.', advice: 'Use another source or range.' },
  EFBIG: { status: 422, title: 'Too large', meaning: 'The file would be larger than its file system allows.', advice: 'Map a shorter range.' },
  EOVERFLOW: { status: 422, title: 'Too large', meaning: 'A value does not fit what the kernel can handle.', advice: 'Map a shorter range.' },
  EEXIST: { status: 409, title: 'File exists', meaning: 'A file that was to be made is there already.', advice: 'Use another path, or create: if_needed.' },
  EBUSY: { status: 409, title: 'Busy', meaning: 'The source is in use.', advice: 'Repeat when it is free.' },
  ETXTBSY: { status: 409, title: 'Being executed', meaning: 'The file is a program that is running.', advice: 'Use another file.' },
  ENOTSUP: { status: 501, title: 'Not supported', meaning: 'The host or file system cannot do it at all.', advice: 'Use another volume.' },
  ENODEV: { status: 500, title: 'No device', meaning: 'The device behind the source is gone or cannot be mapped.', advice: 'Look at the health of the device.' },
  ENXIO: { status: 500, title: 'No device', meaning: 'The device behind the source is gone.', advice: 'Look at the health of the device.' },
  EIO: { status: 500, title: 'Input/output error', meaning: 'The medium failed.', advice: 'Look at the health of the medium; the state of the bytes is unknown.' }
} satisfies Record<string, Omit<CodeEntry, 'library' | 'number'>>

const pmemsetd = {
  REQUEST_INVALID: { status: 400, title: 'Invalid request', meaning: 'The request is malformed, or its body does not have the shape that the operation takes.', advice: 'Correct what errors names.' },
  PARAMETER_UNKNOWN: { status: 400, title: 'Unknown parameter', meaning: 'The operation has no query parameter of that name.', advice: 'Remove or correct what errors names.' },
  PARAMETER_INVALID: { status: 400, title: 'Invalid parameter', meaning: 'A parameter in query, path or header is missing, repeated, empty or not of the form that it must have.', advice: 'Correct what errors names.' },
  DIGEST_MISMATCH: { status: 400, title: 'Digest mismatch', meaning: 'The body is not the one whose digest was sent.', advice: 'Send it again; the first written bytes of the range are those of the wrong body, and what was there before is gone.' },
  TOKEN_REQUIRED: { status: 401, title: 'Token required', meaning: 'The request has no valid bearer token.', advice: 'Send Authorization: Bearer with a token from the operator.' },
  SCOPE_MISSING: { status: 403, title: 'Scope missing', meaning: 'The token does not have the scope that the operation needs.', advice: 'Use a token that has requiredScope.' },
  PATH_NOT_ALLOWED: { status: 403, title: 'Path not allowed', meaning: 'The path, or what it leads to, is not for clients: it climbs out, passes a link or a mount, is reserved, or the file has several links.', advice: 'Name a regular file beneath the volume by its plain path.' },
  ORIGIN_NOT_ALLOWED: { status: 403, title: 'Origin not allowed', meaning: 'The request comes from a web page of another origin.', advice: 'Call the service from a program, not from a foreign web page.' },
  ROUTE_NOT_FOUND: { status: 404, title: 'No such resource', meaning: 'The service has no resource at that path.', advice: 'See /docs or /openapi.json for the paths that exist.' },
  SET_NOT_FOUND: { status: 404, title: 'No such set', meaning: 'There is no set of that id.', advice: 'List the sets, or create it.' },
  VOLUME_NOT_FOUND: { status: 404, when: { body: 422 }, title: 'No such volume', meaning: 'There is no volume of that name.', advice: 'List the volumes for the names that exist.' },
  FAILURE_NOT_FOUND: { status: 404, title: 'No such failure', meaning: 'The set has no failure of that id, or it was acknowledged, here or in another set of the file.', advice: 'List the failures of the set.' },
  METHOD_NOT_ALLOWED: { status: 405, title: 'Method not allowed', meaning: 'The resource is there, but not with that method.', advice: 'Use one of the methods in Allow.' },
  SET_EXISTS: { status: 409, title: 'Set exists', meaning: 'A set of that id exists already.', advice: 'Use it (Location), or choose another id.' },
  PART_ID_EXISTS: { status: 409, title: 'Part id exists', meaning: 'The set has a part of that id already.', advice: 'Use it (Location), or choose another id.' },
  SOURCE_IN_USE: { status: 409, title: 'Source in use', meaning: 'The file that was to be emptied is mapped by a set.', advice: 'Remove the parts of that file first, or map it without create: always.' },
  SOURCE_REPLACED: { status: 409, title: 'Source replaced', meaning: 'The file at the path is not the one that the part was mapped from.', advice: 'Put the file back, or restore the part with adopt: true to take the one that is there.' },
  PART_UNAVAILABLE: { status: 409, title: 'Part unavailable', meaning: 'The part could not be mapped again when the service started; its addresses are kept for it.', advice: 'Mend what the part\'s problem names and restore the part, or remove it.' },
  SET_DEGRADED: { status: 409, title: 'Set degraded', meaning: 'An earlier flush of the file failed, so that another one would answer falsely.', advice: 'Read the failures of the set, and acknowledge each: rewrite what is in memory, or discard it.' },
  RECOVERY_PENDING: { status: 409, title: 'Recovery pending', meaning: 'The bytes belong to a batch of atomicity all that is committed and could not be made whole yet; a store there would be undone.', advice: 'Mend what is in the way: acknowledge the failures of the set, restore its unavailable parts, or give the volume space.' },
  IDEMPOTENCY_IN_PROGRESS: { status: 409, title: 'Request in progress', meaning: 'The request of that Idempotency-Key is being answered.', advice: 'Repeat it when that one has its reply.' },
  OUTCOME_UNKNOWN: { status: 409, title: 'Outcome unknown', meaning: 'A request of that Idempotency-Key was begun before, and its reply was not kept.', advice: 'Read the state that it was to change; the detail says whether it was carried out.' },
  LIMIT_EXCEEDED: { status: 409, title: 'Limit reached', meaning: 'The service has as many of these as it may.', advice: 'Remove what is not needed, or have the operator raise the limit that the problem names.' },
  PRECONDITION_FAILED: { status: 412, title: 'Precondition failed', meaning: 'What If-Match names is not what is there now.', advice: 'Read the resource again and decide anew.' },
  BODY_TOO_LARGE: { status: 413, title: 'Body too large', meaning: 'The body is larger than the operation takes.', advice: 'Send at most max bytes.' },
  URI_TOO_LONG: { status: 414, title: 'URI too long', meaning: 'The request line is longer than the service takes.', advice: 'Send a shorter path and query.' },
  MEDIA_TYPE_UNSUPPORTED: { status: 415, title: 'Media type not supported', meaning: 'The operation does not take a body of that media type.', advice: 'Send the media type that accepted names.' },
  HOST_NOT_ALLOWED: { status: 421, title: 'Host not allowed', meaning: 'The request does not have exactly one Host that the service answers to.', advice: 'Use a name that the operator allows.' },
  ATOMICITY_ACROSS_VOLUMES: { status: 422, title: 'Several volumes', meaning: 'A batch of atomicity all stores to files of several volumes, which have a log each.', advice: 'Send a batch for each volume.' },
  IDEMPOTENCY_KEY_REUSED: { status: 422, title: 'Key reused', meaning: 'The Idempotency-Key belongs to a request of another method, target or body.', advice: 'Use a new key for a new request.' },
  PRECONDITION_REQUIRED: { status: 428, title: 'Precondition required', meaning: 'The change replaces what is there, so it has to say what that is.', advice: 'Read the resource, and send its ETag in If-Match.' },
  HEADERS_TOO_LARGE: { status: 431, title: 'Headers too large', meaning: 'The header fields are larger than the service takes.', advice: 'Send fewer and shorter header fields.' },
  PERSIST_FAILED: { status: 500, title: 'Persist failed', meaning: 'The flush failed: what was written since the last good one may be lost.', advice: 'Treat what was written as not durable, look at the medium, and acknowledge the failure that the set lists.' },
  INTERNAL: { status: 500, title: 'Internal error', meaning: 'The service failed.', advice: 'Report it with the request id; the log has the details.' },
  RESTORING: { status: 503, retryable: true, title: 'Restoring', meaning: 'The service has started and is mapping again what its catalog names.', advice: 'Repeat the request after the time that Retry-After gives.' },
  BUSY: { status: 503, retryable: true, title: 'Busy', meaning: 'The service has as much in flight as it may.', advice: 'Repeat the request after the time that Retry-After gives.' },
  STOPPING: { status: 503, retryable: true, title: 'Stopping', meaning: 'The service is about to stop.', advice: 'Repeat the request after the time that Retry-After gives.' },
  NO_SPACE: { status: 507, title: 'No space', meaning: 'The volume has no space for it, or would be left with less than is kept free.', advice: 'Free space on the volume.' }
} satisfies Record<string, Omit<CodeEntry, 'library' | 'number'>>

export type CodeName = keyof typeof libpmemset | keyof typeof errnos | keyof typeof pmemsetd
export type CauseName = keyof typeof libpmem2
export type AnyCode = CodeName | CauseName

function rows (): Record<AnyCode, Readonly<CodeEntry>> {
  const all: Record<string, CodeEntry> = {}
  for (const [name, row] of Object.entries(libpmemset)) all[name] = { library: 'libpmemset', ...row }
  for (const [name, row] of Object.entries(libpmem2)) all[name] = { library: 'libpmem2', ...row }
  for (const [name, row] of Object.entries(errnos)) {
    all[name] = { library: 'errno', number: -constants.errno[name as keyof typeof constants.errno], ...row }
  }
  for (const [name, row] of Object.entries(pmemsetd)) all[name] = { library: 'pmemsetd', ...row }
  return all
}

/** Every code, keyed by its name on the wire: libpmemset's, libpmem2's (which appear as causes only), errnos, the service's own. */
export const CATALOGUE: Readonly<Record<AnyCode, Readonly<CodeEntry>>> = Object.freeze(rows())

const nameByNumber = new Map<number, AnyCode>()
for (const [name, row] of Object.entries(CATALOGUE)) {
  if (row.number !== undefined) nameByNumber.set(row.number, name as AnyCode)
}

/** Every status that a code may get, the usual one first. */
export function statusesOf (code: AnyCode): number[] {
  const row = CATALOGUE[code]
  return [...new Set([row.status, ...Object.values(row.when ?? {})])]
}

/** The status of a code in a circumstance. */
export function statusOf (code: AnyCode, circumstance?: Circumstance): number {
  const row = CATALOGUE[code]
  return (circumstance !== undefined ? row.when?.[circumstance] : undefined) ?? row.status
}

/** Further members of a problem: the data that would have helped. `location` becomes the header as well. */
export type Extras = Record<string, unknown>

/** One place where a request is wrong. */
export interface Violation {
  in: 'body' | 'query' | 'path' | 'header'
  /** JSON pointer, in a body. */
  pointer?: string
  /** Name of the parameter or header, elsewhere. */
  name?: string
  reason: string
}

/** A refusal by the product: it names a code and knows no HTTP. `detail` is one sentence for the client. */
export class ServiceError extends Error {
  override readonly name = 'ServiceError'
  constructor (readonly code: CodeName, readonly detail: string, readonly extras: Extras = {}, readonly circumstance?: Circumstance) {
    super(detail)
  }
}

/** For a catch: adds where the thing is that stands in the way, and lets the error pass. */
export function atLocation (code: CodeName, location: string): (error: unknown) => never {
  return (error) => {
    if (error instanceof ServiceError && error.code === code) error.extras.location = location
    throw error
  }
}

/** `enum pmemset_reason` of native/src/error.h, by number. */
export const REASONS = ['NONE', 'TRUNCATED', 'NO_SPACE', 'MEDIA', 'UNKNOWN_FAULT', 'PERSIST_FAILED', 'DEGRADED', 'LIMIT_PARTS', 'LIMIT_MAPPINGS',
  'LIMIT_WINDOWS', 'PATH_NOT_ALLOWED', 'SOURCE_IN_USE', 'KEEP_FREE', 'SOURCE_EXISTS', 'RANGE_LOST', 'MALFORMED', 'STALE', 'WINDOW_TAKEN', 'SOURCE_REPLACED',
  'VOLUMES', 'LIMIT_RECORD', 'RECOVERY_PENDING'] as const
export type Reason = typeof REASONS[number]

const GRANULARITIES = ['byte', 'cache_line', 'page'] as const

/** `struct pmemset_error`, as the engine filled it. */
export interface EngineFailure {
  code: number
  cause: number
  errno: number
  reason: number
  value: bigint
  addr: bigint
  size: bigint
  offset: bigint
  granularity: number
  /** For the log: may hold absolute paths. */
  message: string
}

/**
 * A failure that the native engine reported. The engine throws it; the service may add to `extras` what only it knows (requiredGranularity, written)
 * and let it pass.
 */
export class EngineError extends Error {
  override readonly name = 'EngineError'
  readonly extras: Extras = {}
  /** What the service knows it to be, where that says more than the engine could. */
  known?: CodeName
  readonly code: number
  readonly codeName: string
  override readonly cause: number
  readonly errno: number
  readonly reason: Reason
  readonly value: bigint
  readonly addr: bigint
  readonly size: bigint
  readonly offset: bigint
  readonly granularity: number

  constructor (f: EngineFailure) {
    super(f.message)
    this.code = f.code
    this.codeName = nameByNumber.get(f.code) ?? errnoName(-f.code) ?? String(f.code)
    this.cause = f.cause
    this.errno = f.errno
    this.reason = REASONS[f.reason] ?? 'NONE'
    this.value = f.value
    this.addr = f.addr
    this.size = f.size
    this.offset = f.offset
    this.granularity = f.granularity
  }
}

const errnoNames = new Map<number, string>()
for (const [name, number] of Object.entries(constants.errno)) {
  if (!errnoNames.has(number)) errnoNames.set(number, name)
}
// Linux has two names for one number; the table above uses this one.
errnoNames.set(constants.errno.ENOTSUP, 'ENOTSUP')

/** The name of an errno, or undefined where the host has none for it. */
export function errnoName (number: number): string | undefined {
  return errnoNames.get(number)
}

export interface Cause {
  library: 'libpmem2'
  code: string
  number: number
  message: string
}

/** The body of a problem document; members in the order in which they are sent. */
export interface ProblemDocument {
  type: string
  title: string
  status: number
  detail: string
  instance: string
  code: CodeName
  number?: number
  errno?: string
  cause?: Cause
  retryable: boolean
  errors?: Violation[]
  [extra: string]: unknown
}

interface Verdict {
  code: CodeName
  status: number
  detail: string
  errno?: string
  cause?: Cause
  extras: Extras
}

/** What a client is told about an error. Anything that is neither a ServiceError nor an EngineError is INTERNAL. */
export function problemOf (error: unknown, instance: string): ProblemDocument {
  const verdict = error instanceof ServiceError ? ofService(error) : error instanceof EngineError ? ofEngine(error) : ofUnknown(error)
  const row = CATALOGUE[verdict.code]
  const base = {
    type: `/errors/${verdict.code}`,
    title: row.title,
    status: verdict.status,
    detail: verdict.detail,
    instance,
    code: verdict.code,
    ...(row.number === undefined ? {} : { number: row.number }),
    ...(verdict.errno === undefined ? {} : { errno: verdict.errno }),
    ...(verdict.cause === undefined ? {} : { cause: verdict.cause }),
    // The status may be the cause's: out of memory is for a while, whatever ran into it.
    retryable: row.retryable === true || verdict.status === 503
  }
  // The first spread settles the order, the second one that no extra takes a place of ours.
  return { ...base, ...verdict.extras, ...base }
}

function ofService (error: ServiceError): Verdict {
  return { code: error.code, status: statusOf(error.code, error.circumstance), detail: error.detail, extras: error.extras }
}

function ofUnknown (error: unknown): Verdict {
  const code = error instanceof Error && 'code' in error && (error.code === 'EMFILE' || error.code === 'ENFILE') ? error.code : 'INTERNAL'
  return { code, status: statusOf(code), detail: CATALOGUE[code].meaning, extras: {} }
}

// Some errnos say less than a code of ours does, or would blame the client for what is ours.
const ERRNO_BECOMES: Partial<Record<string, CodeName>> = { ENOSPC: 'NO_SPACE', EDQUOT: 'NO_SPACE', EXDEV: 'PATH_NOT_ALLOWED' }

function isCode (name: string | undefined): name is CodeName {
  return name !== undefined && Object.hasOwn(CATALOGUE, name) && CATALOGUE[name as AnyCode].library !== 'libpmem2'
}

/** The client's code: the reason first, since it is more exact than the number that the engine could give. */
function codeOf (e: EngineError): CodeName {
  if (e.known !== undefined) return e.known
  switch (e.reason) {
    // What a deep flush that failed is, libpmemset has a code for.
    case 'PERSIST_FAILED': return e.codeName === 'PMEMSET_E_DEEP_FLUSH_FAIL' ? e.codeName : 'PERSIST_FAILED'
    case 'DEGRADED': return 'SET_DEGRADED'
    case 'LIMIT_PARTS':
    case 'LIMIT_MAPPINGS':
    case 'LIMIT_WINDOWS':
    case 'LIMIT_RECORD': return 'LIMIT_EXCEEDED'
    case 'PATH_NOT_ALLOWED': return 'PATH_NOT_ALLOWED'
    case 'SOURCE_IN_USE': return 'SOURCE_IN_USE'
    case 'KEEP_FREE': return 'NO_SPACE'
    case 'SOURCE_EXISTS': return 'EEXIST'
    case 'SOURCE_REPLACED': return 'SOURCE_REPLACED'
    case 'VOLUMES': return 'ATOMICITY_ACROSS_VOLUMES'
    case 'RECOVERY_PENDING': return 'RECOVERY_PENDING'
    // The set was deleted while the request was under way.
    case 'STALE': return 'SET_NOT_FOUND'
    default:
      return ERRNO_BECOMES[e.codeName] ?? (isCode(e.codeName) ? e.codeName : 'INTERNAL')
  }
}

/** The code that a client is told of the error. */
export function toldCode (error: ServiceError | EngineError): CodeName {
  return error instanceof ServiceError ? error.code : codeOf(error)
}

function statusOfEngine (code: CodeName, e: EngineError): number {
  const errno = errnoName(e.errno)
  switch (code) {
    case 'PMEMSET_E_INVALID_PMEM2_MAP': {
      const cause = nameByNumber.get(e.cause)
      if (cause !== undefined) return statusOf(cause, 'map')
      return isCode(errno) ? statusOf(errno) : 422
    }
    case 'PMEMSET_E_CANNOT_GROW_SOURCE_FILE':
      if (errno === undefined || errno === 'ENOSPC' || errno === 'EDQUOT') return 507
      return isCode(errno) ? statusOf(errno) : statusOf(code, 'impossible')
    case 'PMEMSET_E_CANNOT_CREATE_TEMP_FILE':
      if (errno === 'ENOSPC' || errno === 'EDQUOT') return 507
      return isCode(errno) ? statusOf(errno) : 500
    default:
      return statusOf(code)
  }
}

const LIMITS: Partial<Record<Reason, string>> = { LIMIT_PARTS: 'partsPerSet', LIMIT_MAPPINGS: 'mappings', LIMIT_WINDOWS: 'windowBytes', LIMIT_RECORD: 'atomicBatchBytes' }
const FAULTS: Partial<Record<Reason, string>> = { TRUNCATED: 'truncated', NO_SPACE: 'no_space', MEDIA: 'media', UNKNOWN_FAULT: 'unknown' }

/** An address as the wire has it. */
export function hex (addr: bigint): string {
  return `0x${addr.toString(16)}`
}

function extrasOf (code: CodeName, e: EngineError, cause: string | undefined): Extras {
  const value = Number(e.value)
  const granularity = GRANULARITIES[e.granularity]
  switch (code) {
    case 'PMEMSET_E_LENGTH_UNALIGNED': return { requiredAlignment: value }
    case 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL': return { sourceSize: value }
    case 'PMEMSET_E_CANNOT_FIT_PART_MAP': return { largestGap: value }
    case 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED':
    case 'PMEMSET_E_GRANULARITY_MISMATCH': return granularity === undefined ? {} : { availableGranularity: granularity }
    case 'PMEMSET_E_LENGTH_OUT_OF_RANGE': return e.size === 0n ? {} : { map: { addr: hex(e.addr), size: Number(e.size) } }
    case 'PMEMSET_E_INVALID_PMEM2_MAP':
      if (cause === 'PMEM2_E_OFFSET_UNALIGNED' || cause === 'PMEM2_E_LENGTH_UNALIGNED' || cause === 'PMEM2_E_ADDRESS_UNALIGNED') return { requiredAlignment: value }
      return cause === 'PMEM2_E_MAP_RANGE' ? { sourceSize: value } : {}
    case 'PMEMSET_E_IO_FAIL': {
      const reason = FAULTS[e.reason]
      if (reason === undefined) return {}
      return { reason, addr: hex(e.addr), offset: Number(e.offset), ...(e.reason === 'TRUNCATED' ? { sourceSize: value } : {}) }
    }
    case 'LIMIT_EXCEEDED':
      return e.reason === 'LIMIT_WINDOWS' ? { limit: LIMITS[e.reason], max: value, largestGap: value } : { limit: LIMITS[e.reason], max: value }
    case 'NO_SPACE': return e.reason === 'KEEP_FREE' ? { availableBytes: value } : {}
    default: return {}
  }
}

// Sentences that carry the number of this occurrence; every other code says its meaning.
function detailOf (code: CodeName, extras: Extras, cause: Cause | undefined): string {
  switch (code) {
    case 'PMEMSET_E_LENGTH_UNALIGNED': return `The length is not a multiple of ${String(extras.requiredAlignment)}.`
    case 'PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL': return `The range ends behind the source, which has ${String(extras.sourceSize)} bytes and may not grow.`
    case 'PMEMSET_E_CANNOT_FIT_PART_MAP': return `The largest gap in the window of the set has ${String(extras.largestGap)} bytes.`
    case 'PMEMSET_E_LENGTH_OUT_OF_RANGE': return extras.map === undefined ? 'The range has no byte, or it wraps around.' : 'The range starts in a part map and leaves it.'
    case 'PMEMSET_E_INVALID_PMEM2_MAP': return cause?.message ?? CATALOGUE[code].meaning
    case 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED':
      return typeof extras.availableGranularity === 'string' ? `The medium offers granularity ${extras.availableGranularity}, which is coarser than the set requires.` : CATALOGUE[code].meaning
    case 'LIMIT_EXCEEDED': return `The limit of ${String(extras.limit)} is reached: ${String(extras.max)}.`
    default: return CATALOGUE[code].meaning
  }
}

function ofEngine (e: EngineError): Verdict {
  const code = codeOf(e)
  const causeName = e.cause === 0 ? undefined : nameByNumber.get(e.cause)
  const cause: Cause | undefined = causeName === undefined ? undefined : { library: 'libpmem2', code: causeName, number: e.cause, message: CATALOGUE[causeName].meaning }
  const extras = { ...extrasOf(code, e, causeName), ...e.extras }
  const errno = errnoName(e.errno) ?? (CATALOGUE[code].library === 'errno' ? code : undefined)
  return {
    code,
    status: statusOfEngine(code, e),
    detail: detailOf(code, extras, cause),
    ...(errno === undefined ? {} : { errno }),
    ...(cause === undefined ? {} : { cause }),
    extras
  }
}

/** A violation of a body's schema, as the validator reports it: `pointer` is that of the member, also of one that is missing. */
export interface SchemaViolation {
  pointer: string
  keyword: string
}

interface ViolationRule {
  pointer: string
  /** Absent: every violation of that member. */
  keyword?: string
  code: CodeName
}

// The members that libpmemset itself would have refused, and under which code; the names are those of the bodies of POST /sets and POST …/parts.
const VIOLATION_RULES: readonly ViolationRule[] = [
  { pointer: '/requiredGranularity', keyword: 'required', code: 'PMEMSET_E_GRANULARITY_NOT_SET' },
  { pointer: '/requiredGranularity', keyword: 'enum', code: 'PMEMSET_E_GRANULARITY_NOT_SUPPORTED' },
  { pointer: '/coalescing', keyword: 'enum', code: 'PMEMSET_E_INVALID_COALESCING_VALUE' },
  { pointer: '/offset', keyword: 'maximum', code: 'PMEMSET_E_INVALID_OFFSET_VALUE' },
  { pointer: '/source/path', keyword: 'required', code: 'PMEMSET_E_INVALID_SOURCE_PATH' },
  { pointer: '/source/create', code: 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS' },
  { pointer: '/source/mode', code: 'PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS' }
]

/** The code for the violations of a body's schema: libpmemset's where one of the members is its business and nothing else is wrong. */
export function codeOfViolations (violations: readonly SchemaViolation[]): CodeName {
  let code: CodeName | undefined
  for (const v of violations) {
    const rule = VIOLATION_RULES.find((r) => r.pointer === v.pointer && (r.keyword === undefined || r.keyword === v.keyword))
    if (rule === undefined || (code !== undefined && code !== rule.code)) return 'REQUEST_INVALID'
    code = rule.code
  }
  return code ?? 'REQUEST_INVALID'
}
