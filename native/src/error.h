/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * error.h -- the codes, in one table, and the caller-owned record of a failure.
 *
 * A failing function fills a struct pmemset_error that its caller owns, on the caller's thread, and returns its code. There is no text to
 * parse: what a program needs is in the members, what a person needs is in the message. Only the functions of libpmemset.h, which
 * return no more than a code, keep the message for the thread (error_keep).
 */
#ifndef PMEMSET_ERROR_H
#define PMEMSET_ERROR_H 1

#include <libpmemset.h>
#include <stdint.h>

/* The numbers are in libpmemset.h; a code that is missing here has no text, and 95-libpmemset says so. */
#define PMEMSET_CODES(X) \
	X(UNKNOWN, "unclassified failure") \
	X(NOSUPP, "not implemented") \
	X(INVALID_PMEM2_SOURCE, "the source is neither a regular file nor device DAX") \
	X(INVALID_SOURCE_PATH, "the path names nothing") \
	X(INVALID_SOURCE_TYPE, "no source, or one of an unknown type") \
	X(CANNOT_ALLOCATE_INTERNAL_STRUCTURE, "no memory for an internal structure") \
	X(INVALID_OFFSET_VALUE, "the offset is above INT64_MAX") \
	X(GRANULARITY_NOT_SUPPORTED, "unknown granularity, or the medium is coarser than the set requires") \
	X(INVALID_PMEM2_MAP, "the range cannot be mapped; the cause says why") \
	X(PART_EXISTS, "a part is there already") \
	X(GRANULARITY_NOT_SET, "no required granularity given") \
	X(GRANULARITY_MISMATCH, "the part's granularity is not the set's") \
	X(NO_PART_MAPPED, "no part was mapped yet") \
	X(CANNOT_FIND_PART_MAP, "no part map holds the address") \
	X(CANNOT_COALESCE_PARTS, "the range behind the previous part map is occupied") \
	X(LENGTH_UNALIGNED, "the length is not a multiple of the alignment") \
	X(PART_NOT_FOUND, "the set has no such part") \
	X(INVALID_COALESCING_VALUE, "unknown coalescing mode") \
	X(DEEP_FLUSH_FAIL, "the deep flush failed") \
	X(INVALID_SOURCE_FILE_CREATE_FLAGS, "unknown creation flag or mode") \
	X(CANNOT_CREATE_TEMP_FILE, "the temporary file cannot be made") \
	X(CANNOT_GROW_SOURCE_FILE, "the file cannot be extended and allocated") \
	X(PART_MAP_POSSIBLE_USE_AFTER_DROP, "the part map is in use") \
	X(CANNOT_FIT_PART_MAP, "the window has no gap that is large enough") \
	X(OFFSET_OUT_OF_RANGE, "the offset is above INT64_MAX") \
	X(INVALID_PART_STATES, "unknown part state") \
	X(UNDESIRABLE_PART_STATE, "the part's state is not among those accepted") \
	X(SDS_ALREADY_SET, "the source has a shutdown state already") \
	X(SDS_NOSUPP, "the device keeps no shutdown state") \
	X(SDS_DEVICE_ID_LEN_TOO_BIG, "the device identifier is too long") \
	X(MAP_LENGTH_UNSET, "no length given, and nothing of the source from the offset on") \
	X(SOURCE_FILE_IS_TOO_SMALL, "the range ends behind the source, which may not grow") \
	X(IO_FAIL, "the medium refused an access") \
	X(LENGTH_OUT_OF_RANGE, "the range leaves its part map") \
	X(INVALID_ALIGNMENT_VALUE, "the source's alignment is not a power of two") \
	X(DAX_REGION_NOT_FOUND, "the source has no DAX region") \
	X(CANNOT_READ_BOUNDS, "the region's bounds cannot be read") \
	X(BADBLOCK_NOSUPP, "bad blocks are not supported here")

/* libpmem2's, which appear as the cause of one of ours; numbers from its header. */
#define PMEM2_CAUSES(X) \
	X(PMEM2_E_UNKNOWN) \
	X(PMEM2_E_NOSUPP) \
	X(PMEM2_E_FILE_HANDLE_NOT_SET) \
	X(PMEM2_E_INVALID_FILE_HANDLE) \
	X(PMEM2_E_INVALID_FILE_TYPE) \
	X(PMEM2_E_MAP_RANGE) \
	X(PMEM2_E_MAPPING_EXISTS) \
	X(PMEM2_E_GRANULARITY_NOT_SET) \
	X(PMEM2_E_GRANULARITY_NOT_SUPPORTED) \
	X(PMEM2_E_OFFSET_OUT_OF_RANGE) \
	X(PMEM2_E_OFFSET_UNALIGNED) \
	X(PMEM2_E_INVALID_ALIGNMENT_FORMAT) \
	X(PMEM2_E_INVALID_ALIGNMENT_VALUE) \
	X(PMEM2_E_INVALID_SIZE_FORMAT) \
	X(PMEM2_E_LENGTH_UNALIGNED) \
	X(PMEM2_E_MAPPING_NOT_FOUND) \
	X(PMEM2_E_BUFFER_TOO_SMALL) \
	X(PMEM2_E_SOURCE_EMPTY) \
	X(PMEM2_E_INVALID_SHARING_VALUE) \
	X(PMEM2_E_SRC_DEVDAX_PRIVATE) \
	X(PMEM2_E_INVALID_ADDRESS_REQUEST_TYPE) \
	X(PMEM2_E_ADDRESS_UNALIGNED) \
	X(PMEM2_E_ADDRESS_NULL) \
	X(PMEM2_E_DEEP_FLUSH_RANGE) \
	X(PMEM2_E_INVALID_REGION_FORMAT) \
	X(PMEM2_E_DAX_REGION_NOT_FOUND) \
	X(PMEM2_E_INVALID_DEV_FORMAT) \
	X(PMEM2_E_CANNOT_READ_BOUNDS) \
	X(PMEM2_E_NO_BAD_BLOCK_FOUND) \
	X(PMEM2_E_LENGTH_OUT_OF_RANGE) \
	X(PMEM2_E_INVALID_PROT_FLAG) \
	X(PMEM2_E_NO_ACCESS) \
	X(PMEM2_E_VM_RESERVATION_NOT_EMPTY) \
	X(PMEM2_E_MAP_EXISTS) \
	X(PMEM2_E_FILE_DESCRIPTOR_NOT_SET) \
	X(PMEM2_E_SOURCE_TYPE_NOT_SUPPORTED) \
	X(PMEM2_E_IO_FAIL)

/* Why a call failed, where the code alone does not tell; what else the record then holds follows each. */
#define PMEMSET_REASONS(X) \
	X(0, NONE) \
	X(1, TRUNCATED)		/* a fault: the file ends before the byte; addr, offset; value = file size (of a write: see there) */ \
	X(2, NO_SPACE)		/* a fault: a hole that a full file system cannot fill; addr, offset */ \
	X(3, MEDIA)		/* a fault: the medium reported the byte as damaged; addr, offset */ \
	X(4, UNKNOWN_FAULT)	/* a fault that none of the above explains; addr, offset */ \
	X(5, PERSIST_FAILED)	/* this flush failed: what was written may be lost; sys_errno */ \
	X(6, DEGRADED)		/* an earlier flush of the file failed: flushing again would answer falsely */ \
	X(7, LIMIT_PARTS)	/* value = the limit of parts in a set */ \
	X(8, LIMIT_MAPPINGS)	/* value = the limit of kernel mappings of the process */ \
	X(9, LIMIT_WINDOWS)	/* the arena has no room for the window; value = largest gap */ \
	X(10, PATH_NOT_ALLOWED) /* the path, or what it leads to, is not the client's to name */ \
	X(11, SOURCE_IN_USE)	/* emptying a file that a set has mapped */ \
	X(12, KEEP_FREE)	/* growth would leave less than the space kept free; value = bytes that are available */ \
	X(13, SOURCE_EXISTS)	/* exclusive creation, and the file is there */ \
	X(14, RANGE_LOST)	/* the kernel would not fence a range again: it is lost to the set; addr, size */ \
	X(15, MALFORMED)	/* a batch; value = index of the operation, size = enum batch_field */ \
	X(16, STALE)		/* the handle was closed, or its set is being deleted */ \
	X(17, WINDOW_TAKEN)	/* the window that was asked for is not in the arena, or another set has some of it */ \
	X(18, SOURCE_REPLACED)	/* the path leads to another file than the one that was mapped */ \
	X(19, VOLUMES) /* a batch that is all or nothing stores to files of several volumes; value = the first operation of another */ \
	X(20, LIMIT_RECORD)	/* ... stores more than the redo log takes at once; value = bytes that it takes */ \
	X(21, RECOVERY_PENDING) /* the bytes belong to one that is committed and cannot be made whole for now */

enum pmemset_reason {
#define PMEMSET_X(number, name) PMEMSET_REASON_##name = number,
	PMEMSET_REASONS(PMEMSET_X)
#undef PMEMSET_X
};

#define PMEMSET_MESSAGE_SIZE 256

struct pmemset_error {
	int32_t code;	      /* PMEMSET_E_* or -errno */
	int32_t cause;	      /* PMEM2_E_* that explains the code, or 0 */
	int32_t sys_errno;    /* errno of the system call that failed, or 0 */
	uint32_t reason;      /* PMEMSET_REASON_* */
	uint64_t value;	      /* the number that helps: required alignment, source size, largest gap, limit; a write's is always its own */
	uint64_t addr;	      /* LENGTH_OUT_OF_RANGE: the map's start; a fault: the faulting address */
	uint64_t size;	      /* LENGTH_OUT_OF_RANGE: the map's size */
	uint64_t offset;      /* a fault: the offset in the source */
	uint32_t granularity; /* GRANULARITY_NOT_SUPPORTED, _MISMATCH: what the medium gives; else PMEMSET_GRANULARITY_UNSET */
	uint32_t reserved;
	char message[PMEMSET_MESSAGE_SIZE]; /* for the log, NUL-terminated; may hold absolute paths, so never for clients */
};

#define PMEMSET_GRANULARITY_UNSET 3u

/* Fill *e with a code and a message and everything else unset; returns the code, so that a failure is one statement. */
int error_set(struct pmemset_error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same, with the errno that caused it; code 0 means -sys_errno. */
int error_sys(struct pmemset_error *e, int code, int sys_errno, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* -EBADF with STALE. */
int error_stale(struct pmemset_error *e);

/* More for the log, behind the message that is there. */
void error_add(struct pmemset_error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What pmemset_errormsg answers this thread from now on. Returns the code. */
int error_keep(const struct pmemset_error *e);

/* Row i of the table of codes, ours first, then libpmem2's. Returns 0, or -ERANGE past the end. */
int error_row(uint32_t i, int32_t *code, const char **name, const char **text);
uint32_t error_rows(void);

#endif
