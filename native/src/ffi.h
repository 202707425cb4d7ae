/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * ffi.h -- the face of the engine that a foreign-function interface can bind: integer handles, flat structures, fixed widths.
 *
 * It adds two things to the core and nothing else:
 *   - handles {generation:32, index:16} in place of pointers, never 0: a stale or foreign handle is -EBADF, never a crash;
 *   - values that come from outside are checked: an unknown enumerator is an error.
 *
 * Every function that returns int returns 0 or a negative code (PMEMSET_E_*, or -errno), and fills the caller-owned *err (error.h) on failure
 * if err is not NULL (it is left alone on success). Every function may be called from any thread. Structures have no padding; the caller owns all of
 * them and may free them once the call has returned. Lengths, offsets and addresses are bytes.
 *
 * "Blocks" says what a call may wait for: "no" is safe on an event loop.
 */
#ifndef PMEMSET_FFI_H
#define PMEMSET_FFI_H 1

#include "error.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default) /* and libpmemset.map lists them */

#define FFI_VERSION 1

/* Values of the wire, the same in every structure. */
enum { FFI_GRANULARITY_BYTE = 0, FFI_GRANULARITY_CACHE_LINE = 1, FFI_GRANULARITY_PAGE = 2, FFI_GRANULARITY_UNSET = 3 };
enum { FFI_PERSISTENCE_UNKNOWN = 0, FFI_PERSISTENCE_PERSISTENT = 1, FFI_PERSISTENCE_HOST_DEPENDENT = 2, FFI_PERSISTENCE_VOLATILE = 3 };
enum { FFI_COALESCING_NONE = 0, FFI_COALESCING_OPPORTUNISTIC = 1, FFI_COALESCING_FULL = 2 };
enum { FFI_CREATE_NEVER = 0, FFI_CREATE_IF_NEEDED = 1, FFI_CREATE_EXCLUSIVE = 2, FFI_CREATE_ALWAYS = 3 };
enum { FFI_RECOVERY_REWRITE = 0, FFI_RECOVERY_DISCARD = 1 };
enum { FFI_DURABILITY_NONE = 0, FFI_DURABILITY_FLUSHED = 1, FFI_DURABILITY_PERSISTED = 2, FFI_DURABILITY_DEEP = 3 };

#define FFI_TEXT_SIZE 256
#define FFI_NAME_SIZE 64
#define FFI_IDENTITY_SIZE 128

/* What the caller compares before it calls anything else. */
struct ffi_abi {
	uint32_t version; /* FFI_VERSION */
	uint32_t error_size, abi_size, engine_spec_size, engine_info_size, volume_info_size, probe_size;
	uint32_t set_spec_size, set_info_size, part_spec_size, part_size, span_size, removal_size, written_size, write_size, counters_size;
	uint32_t restore_file_size, restore_part_size;
	uint32_t codes; /* how many rows ffi_code() has */
};

/* Fills *out (of the caller's out_size bytes, at most) and returns FFI_VERSION. Blocks: no. */
uint32_t ffi_abi(struct ffi_abi *out, uint32_t out_size);

/*
 * The table of codes: row 0 <= i < ffi_abi.codes. *code gets the number; name and text get at most FFI_NAME_SIZE and FFI_TEXT_SIZE bytes.
 * Rows of libpmemset come first, then those of libpmem2 (its causes). Returns 0, or -ERANGE past the end. Blocks: no.
 */
int ffi_code(uint32_t i, int32_t *code, char *name, char *text);

/* ---- the engine: one per process ---- */

#define FFI_LOG_SIZE_MAX (UINT64_C(1) << 30)

struct ffi_engine_spec {
	uint64_t arena_base;	/* 0: 0x4000_0000_0000 */
	uint64_t arena_size;	/* 0: 21 TiB */
	uint64_t mappings_max;	/* kernel mappings the engine may use; 0: vm.max_map_count - 8192 */
	uint64_t log_size;	/* bytes that a volume's redo log has for batches that are all or nothing, rounded up to pages; 0: 32 MiB */
	uint32_t simulate;	/* FFI_GRANULARITY_BYTE or _CACHE_LINE to pretend that (tests), _UNSET to tell the truth */
	uint32_t log_keep_free; /* of a volume's capacity, in percent, what its first redo log leaves free; at most 100 */
};
struct ffi_engine_info {
	uint64_t arena_base, arena_size, page_size;
	uint64_t mappings, mappings_max; /* kernel mappings in use by parts and the gaps between them */
	uint32_t addresses_stable;	 /* 1: the arena is where it was asked for */
	uint32_t simulate;
	char libpmem2[FFI_NAME_SIZE]; /* version the engine was built against */
};

/*
 * Reserve the arena, install the SIGBUS handler, ignore SIGXFSZ where its action is the default, take libpmem2's functions. Call once,
 * before any other call but ffi_abi and ffi_code, from a process whose environment has no PMEM2_* variable. -EALREADY the second time; -ENOMEM (RLIMIT_AS is named in the message)
 * where no arena can be had. Blocks: no.
 */
int ffi_engine_start(const struct ffi_engine_spec *spec, struct pmemset_error *err);
void ffi_engine_info(struct ffi_engine_info *info);

/* ---- volumes: directories that paths are relative to ---- */

struct ffi_volume_info {
	uint64_t capacity, available, alignment; /* bytes; available is what an unprivileged user may still take */
	uint64_t dev, ino;			 /* of the directory */
	uint32_t granularity, persistence;	 /* what a new file there would get */
	uint32_t map_sync, dax;			 /* 0 or 1 */
	int32_t numa_node;			 /* -1: unknown */
	uint32_t allocates;			 /* 0: a copy-on-write file system, where allocation promises nothing */
	char file_system[FFI_NAME_SIZE];	 /* "ext4", "tmpfs" ... as in /proc/self/mountinfo */
	char reason[FFI_TEXT_SIZE];		 /* one sentence: why this persistence; names no path */
};
struct ffi_probe {
	uint64_t size, alignment;
	uint32_t exists, granularity, persistence, map_sync;
	char reason[FFI_TEXT_SIZE]; /* why not finer; empty where it is as fine as can be */
};

/* Opens a directory. *volume = 0 on failure. -ENOENT, -ENOTDIR, -EACCES; -ENOSYS where openat2 is missing. Blocks: briefly. */
int ffi_volume_open(const char *path, uint64_t *volume, struct pmemset_error *err);
/* -EBADF. Blocks: on calls that use the volume now. */
int ffi_volume_close(uint64_t volume);
/* Makes an unnamed temporary file to find out what a new file gets. Blocks: on the disk. */
int ffi_volume_info(uint64_t volume, struct ffi_volume_info *info, struct pmemset_error *err);
/*
 * What a part of that file would get; the file need not exist. path: length bytes of UTF-8, no NUL needed; the rules of ffi_part_map.
 * Blocks: on the disk.
 */
int ffi_probe(uint64_t volume, const char *path, uint32_t length, struct ffi_probe *probe, struct pmemset_error *err);

/* ---- sets ---- */

struct ffi_set_spec {
	uint64_t window_size;	       /* bytes; rounded up to 2 MiB */
	uint64_t parts_max;	       /* 0: no limit but the mappings' */
	uint64_t window_addr;	       /* 0: where there is room; else the window is there and nowhere else */
	uint32_t required_granularity; /* FFI_GRANULARITY_*: the coarsest that the set accepts */
	uint32_t coalescing;	       /* FFI_COALESCING_* */
	uint32_t granularity; /* effective, where the set had its first map in an earlier life; FFI_GRANULARITY_UNSET: it had none */
	uint32_t reserved;
};
struct ffi_set_info {
	uint64_t window_addr, window_size;
	uint64_t part_count, map_count, mapped_bytes;
	uint32_t granularity; /* effective; FFI_GRANULARITY_UNSET before the first map; never reset */
	uint32_t coalescing;
	uint32_t degraded; /* 1: a flush of one of its files failed */
	uint32_t reserved;
};

/*
 * GRANULARITY_NOT_SUPPORTED, INVALID_COALESCING_VALUE (unknown values); -ENOMEM (LIMIT_WINDOWS where the arena is full); -EBUSY (WINDOW_TAKEN
 * where window_addr is not aligned to 2 MiB, or the range is not free in the arena). Blocks: no.
 */
int ffi_set_new(const struct ffi_set_spec *spec, uint64_t *set, struct pmemset_error *err);
int ffi_set_info(uint64_t set, struct ffi_set_info *info);
/* From the next map on. INVALID_COALESCING_VALUE. Blocks: only on a structure change of the same set. */
int ffi_set_coalescing(uint64_t set, uint32_t coalescing, struct pmemset_error *err);
/*
 * Make everything durable, unmap it, give the window back. All or nothing: PART_MAP_POSSIBLE_USE_AFTER_DROP while an access or a pin
 * holds a map, and the flush errors of ffi_remove. The handle is stale afterwards. Blocks: on flushes.
 */
int ffi_set_delete(uint64_t set, struct pmemset_error *err);

/* ---- parts ---- */

struct ffi_part_spec {
	uint64_t volume;    /* handle */
	uint64_t offset;    /* in the source */
	uint64_t length;    /* 0: from offset to the end of the source, which is not grown for it */
	uint64_t cookie;    /* the caller's number for the part; look-ups give it back; not 0 */
	uint64_t keep_free; /* bytes that growth must leave on the volume */
	uint32_t create;    /* FFI_CREATE_* */
	uint32_t mode;	    /* permission bits of a created file, less the umask */
	uint32_t grow;	    /* 1: extend and allocate an existing file that is too small (a created one always is) */
	uint32_t reserved;
	uint64_t intent; /* not 0: a file that is created carries this number, for ffi_intent_undo */
};
struct ffi_part {
	uint64_t addr, length, offset, cookie;
	uint64_t map_addr, map_size; /* the part map that holds it */
	uint64_t dev, ino;	     /* of the source */
	uint32_t granularity, persistence, map_sync;
	uint32_t coalesced; /* 1: appended to a map that was there */
	uint32_t created;   /* 1: this call created the file */
	uint32_t degraded;
	/* Which file the source is, in text ended by a NUL, to be compared by ffi_restore; "" where its file system tells too little for that. */
	char identity[FFI_IDENTITY_SIZE];
};

/*
 * Map a part of the file `path` (path_length bytes, no NUL needed) beneath a volume.
 *
 * INVALID_OFFSET_VALUE, before anything is asked of the source.
 *
 * Path: UTF-8, 1 to 4 095 bytes, no control character, no empty, ".", ".." or ".pmemset" component and none that begins with
 * ".pmemset-", no symlink, magic link or other mount on the way, a regular file with one link; anything else of that kind is -EACCES
 * with PATH_NOT_ALLOWED. A missing file is INVALID_SOURCE_PATH; a directory, FIFO, socket or device INVALID_PMEM2_SOURCE (cause
 * PMEM2_E_INVALID_FILE_TYPE); so is a file on hugetlbfs, which is not supported yet (cause PMEM2_E_NOSUPP).
 *
 * Then, in this order: INVALID_PMEM2_MAP (offset unaligned: cause PMEM2_E_OFFSET_UNALIGNED, value = alignment);
 * MAP_LENGTH_UNSET; LENGTH_UNALIGNED (value = alignment); SOURCE_FILE_IS_TOO_SMALL (value = source size); -ENOMEM with LIMIT_PARTS or
 * LIMIT_MAPPINGS; CANNOT_COALESCE_PARTS; CANNOT_FIT_PART_MAP (value = largest gap); CANNOT_GROW_SOURCE_FILE (sys_errno; -ENOSPC with
 * KEEP_FREE; with PERSIST_FAILED or DEGRADED where the file cannot be flushed); INVALID_PMEM2_MAP (cause by errno);
 * GRANULARITY_NOT_SUPPORTED (cause, granularity); GRANULARITY_MISMATCH (granularity).
 * -EBUSY with SOURCE_IN_USE and -EEXIST with SOURCE_EXISTS are the create modes' own; making the file, and giving it its name, fail with
 * the -errno of the call that did (-ENOSPC, -EDQUOT, -EACCES, -EROFS, -EIO ...). Every failure leaves file, directory and set as
 * they were; but growth stays where it gave bytes back to a part that is mapped already (of a file that somebody else had shortened).
 *
 * Blocks: on the disk (allocation, fsync of file and directory).
 */
int ffi_part_map(uint64_t set, const struct ffi_part_spec *spec, const char *path, uint32_t path_length, struct ffi_part *part,
		struct pmemset_error *err);

/*
 * Take back what an ffi_part_map of that intent has made of the path, whose caller did not live to write it down: a file that it created is
 * removed; where it put one in the place of another, the other has its name again, unless that was done and over. Only what carries the number (the extended
 * attribute user.pmemset.intent, that a created file has before its name) is touched, so a number must never be used twice, by no catalog: draw it at
 * random. On a file system without such attributes nothing is known, and nothing done. 0 also where there is nothing to do; -EINVAL: intent 0;
 * -EACCES with PATH_NOT_ALLOWED; -EBUSY with SOURCE_IN_USE: the file is mapped; -EBADF; -errno. Blocks: on the disk.
 */
int ffi_intent_undo(uint64_t volume, const char *path, uint32_t path_length, uint64_t intent, struct pmemset_error *err);

/* ---- parts of an earlier life, each at the address that it had ---- */

/* A file that parts were mapped from; it is opened once for all of them. */
struct ffi_restore_file {
	uint64_t volume;		  /* handle */
	uint64_t path_at;		  /* where its path begins in the names */
	uint32_t path_length;		  /* bytes; the rules of ffi_part_map */
	uint32_t adopt;			  /* 1: whichever file is there now is the one */
	char identity[FFI_IDENTITY_SIZE]; /* in: as ffi_part had it, "" for any; out: of what is there now, where it could be opened */
};
struct ffi_restore_part {
	uint64_t file; /* its row */
	uint64_t offset, length, cookie, addr;
	uint64_t value;			/* out, as the next five: of its failure, as in struct pmemset_error */
	int32_t code, cause, sys_errno; /* code 0: it is mapped */
	uint32_t reason;
	uint32_t granularity;			  /* out; what the medium gives, where that is why it failed */
	uint32_t persistence, map_sync, degraded; /* out, where it is mapped */
	uint32_t joins; /* in: 1: one with the map that ends where it starts, if that ends with a part of a lower cookie */
	uint32_t kept;	/* out: 1: it is not mapped, and its range is kept for it */
};

/*
 * Map parts again that were mapped before, in the order of their cookies, which is that of their creation. Each has an outcome of its own.
 * Files are neither created nor grown, and the set's limit of parts is not asked about. A part that cannot be mapped leaves nothing but its range,
 * which is kept out of use: look-ups find nothing there, and nothing is placed there; a later call may map the same part there, or
 * ffi_release may let it go.
 *
 * A part's code: as of ffi_part_map, among them INVALID_SOURCE_PATH, SOURCE_FILE_IS_TOO_SMALL (value = source size), GRANULARITY_NOT_SUPPORTED and
 * GRANULARITY_MISMATCH, -ENOMEM with LIMIT_MAPPINGS; -EBADF with STALE (the volume's handle); -ESTALE with SOURCE_REPLACED: the file is not the one
 * that it was; and, where no range is kept either, INVALID_PMEM2_MAP (cause PMEM2_E_ADDRESS_UNALIGNED: address or length, value = alignment;
 * PMEM2_E_MAPPING_EXISTS: another part, or another's kept range, has some of it) and CANNOT_FIT_PART_MAP (it leaves the window).
 *
 * The call itself fails, and nothing has changed, with -EBADF; -EINVAL: a row names no file, or a file's path is not within the names, or
 * a cookie is 0; -ENOMEM. Blocks: on the disk; and whoever changes the structure of this set waits for it.
 */
int ffi_restore(uint64_t set, struct ffi_restore_file *files, uint64_t file_count, const char *names, uint64_t names_size,
		struct ffi_restore_part *parts, uint64_t count, struct pmemset_error *err);
/* Give a range back that ffi_restore has kept. -ENOENT: none is kept there that has this length; -ENOMEM. Blocks: on a structure change of the same set. */
int ffi_release(uint64_t set, uint64_t addr, uint64_t length, struct pmemset_error *err);

/* ---- look-up: no lock, no allocation, no waiting ---- */

/* What look-ups fill: one flat row. */
struct ffi_span {
	uint64_t map_addr, map_size, map_parts, map_refs; /* refs: accesses and pins that hold the map now */
	uint64_t addr, length, offset, cookie;		  /* the part that holds the address */
	uint64_t flags;					  /* FFI_SPAN_* */
};
#define FFI_SPAN_DEGRADED 1u

/* The map and part that hold addr. CANNOT_FIND_PART_MAP, -EBADF. No error structure: this is the hot path. Blocks: no. */
int ffi_lookup(uint64_t set, uint64_t addr, struct ffi_span *span);
/*
 * Up to max rows, in address order, of the maps (ffi_maps: the part's members describe the map's first part) or parts (ffi_parts) that
 * touch [from, to); to == 0 means no end. Returns how many rows were filled, or -EBADF. Blocks: no.
 */
int64_t ffi_maps(uint64_t set, uint64_t from, uint64_t to, struct ffi_span *rows, uint64_t max);
int64_t ffi_parts(uint64_t set, uint64_t from, uint64_t to, struct ffi_span *rows, uint64_t max);

/* ---- removal ---- */

struct ffi_removal {
	uint64_t removed, trimmed, split;	      /* how many there are; the rows hold as many as fit */
	uint64_t removed_max, trimmed_max, split_max; /* in: room in the caller's rows */
};

/*
 * Remove every part that [addr, addr + length) touches, whole; maps shrink, split or go. All or nothing.
 * whole_map != 0: remove the map that starts at addr; length is ignored (CANNOT_FIND_PART_MAP where none starts).
 * dry_run != 0: only report.
 * removed: rows of 3 {addr, length, cookie}; trimmed: rows of 4 {addr, size before, addr, size after}; split: rows of 6 {addr, size
 * before, addr, size, addr, size after}; each may be NULL where its _max is 0. The counts are whole even where rows did not fit.
 * CANNOT_FIND_PART_MAP where nothing is touched; LENGTH_OUT_OF_RANGE for length 0 or a range that wraps (to end at 2^64 is no wrap);
 * PART_MAP_POSSIBLE_USE_AFTER_DROP (addr and size of the map, value = its users) while an access or pin holds one of the maps; -EIO with PERSIST_FAILED or DEGRADED where what was
 * written cannot be made durable first. Blocks: on flushes.
 */
int ffi_remove(uint64_t set, uint64_t addr, uint64_t length, uint32_t whole_map, uint32_t dry_run, struct ffi_removal *removal,
		uint64_t *removed, uint64_t *trimmed, uint64_t *split, struct pmemset_error *err);

/* ---- access: every range lies inside one map ---- */

/* The rule's errors, for all of these: NO_PART_MAPPED; CANNOT_FIND_PART_MAP; LENGTH_OUT_OF_RANGE with addr and size of the map. */

/*
 * Check a range, and keep its map from being removed until ffi_unpin(*pin), which may come from any thread; pins are counted.
 * A length of 0 checks and pins the map that holds addr. Blocks: no.
 */
int ffi_pin(uint64_t set, uint64_t addr, uint64_t length, uint64_t *pin, struct pmemset_error *err);
int ffi_unpin(uint64_t pin);

/*
 * For who has somebody else copy from the mapping (a socket write of the kernel's), under a pin. FFI_CHECK_SIZE: that the files have all of the
 * range; FFI_CHECK_RESIDENT: and that it is in memory, so that the copy waits for no disk, else -EAGAIN; FFI_CHECK_LOAD: brings it there.
 * What is behind the end of a file, within its last page, reads as zeros and faults nobody: so the size is checked again after the copy.
 * IO_FAIL as ffi_read. Blocks: LOAD on the disk, the others not.
 */
enum { FFI_CHECK_SIZE = 0, FFI_CHECK_RESIDENT = 1, FFI_CHECK_LOAD = 2 };
int ffi_check(uint64_t set, uint64_t addr, uint64_t length, uint32_t what, struct pmemset_error *err);

/* What an operator watches. Each is exact; together they are of about the same moment. */
struct ffi_counters {
	uint64_t pins;		    /* open now; an access holds its map without one */
	uint64_t flushes_of_ranges; /* since the start: one or more msync, in one round */
	uint64_t flushes_of_files;  /* fdatasync */
	uint64_t flushes_failed;    /* of both */
	uint64_t flush_callers;	    /* whom those flushes were for */
};
/* Blocks: no. */
void ffi_counters(struct ffi_counters *counters);

struct ffi_written {
	uint64_t bytes;
	uint32_t durability; /* reached, FFI_DURABILITY_* */
	uint32_t granularity, persistence, simulated;
};

/*
 * Copy length bytes at addr to buf. nowait != 0: -EAGAIN instead of waiting for a page that is not in memory.
 * PMEMSET_E_IO_FAIL with a fault's reason; buf is undefined then. Blocks: on the disk, unless nowait.
 */
int ffi_read(uint64_t set, uint64_t addr, void *buf, uint64_t length, uint32_t nowait, struct pmemset_error *err);
/*
 * Copy length bytes of buf to addr and make them as durable as asked. On failure value = bytes that were written (of unknown
 * durability), whatever the reason: TRUNCATED gives no file size here. IO_FAIL with a fault's reason; -ENOSPC, -EIO, -EROFS of a write; -EIO with PERSIST_FAILED or DEGRADED (DEEP_FLUSH_FAIL
 * with PERSIST_FAILED for DEEP). Blocks: on the disk.
 */
int ffi_write(uint64_t set, uint64_t addr, const void *buf, uint64_t length, uint32_t durability, struct ffi_written *written,
		struct pmemset_error *err);

/* A row of ffi_write_many. */
struct ffi_write {
	uint64_t set, addr, length;
	uint64_t data_offset; /* of its bytes, in data */
	uint64_t durability;  /* FFI_DURABILITY_* */
	int64_t rc;	      /* out: 0, or as from ffi_write */
	uint64_t bytes;	      /* out: written, also where it failed */
	uint64_t reached;     /* out: durability, granularity, persistence and simulated, a byte each from the lowest on */
};
/*
 * Writes of different callers in one call, each with an outcome of its own as from ffi_write, its error in errs[row] (room for count of them); at page
 * granularity they share one flush of each file. Returns how many failed. Blocks: on the disk.
 */
int64_t ffi_write_many(struct ffi_write *rows, uint64_t count, const void *data, uint64_t data_size, struct pmemset_error *errs);

/*
 * A batch, in the layout of batch.h and openapi/batch.md. ffi_batch_check: the bytes that its reply takes; -EINVAL with MALFORMED (value = index of the
 * operation, or UINT32_MAX where the whole is wrong; size = its member); -EOVERFLOW. Blocks: no.
 *
 * ffi_batch checks every operation's range and file before it makes the first; *failed = the operation that was refused or failed. The reply's
 * header and the results so far are filled also on failure. At granularities finer than the page, on a file system that is memory, and for reads
 * of what is in memory, it does not wait; nowait != 0 and it would have to: -EAGAIN, and nothing was done. Errors: the rule's; ffi_read's, ffi_write's and
 * ffi_persist's. One of atomicity `all` waits always, and has some of its own (batch.h). Blocks: on the disk, unless nowait.
 */
int64_t ffi_batch_check(const void *body, uint64_t size, struct pmemset_error *err);
int ffi_batch(uint64_t set, const void *body, uint64_t size, void *reply, uint64_t reply_size, uint32_t nowait, uint64_t *failed,
		struct pmemset_error *err);

/*
 * A volume's redo log is opened with it. What a batch of atomicity `all` had committed before the process ended, and was not struck off, is kept from
 * then on, and the bytes of each file that it is about are held from the moment that the file is mapped again: stores there are -EBUSY with
 * RECOVERY_PENDING. This call applies it, as far as its files are mapped, long enough and not degraded; to be called once parts were
 * restored, before they are served, and again when something that was missing is there. counts, if not NULL, gets two words: records that
 * are applied now, and records that are still kept (for some of their files, at least). Done twice it does nothing. Also done by itself where a
 * failure was dealt with (ffi_acknowledge). ffi_restore with adopt: a record of the file that was replaced is the new one's.
 *
 * -EBADF; -EUCLEAN: the log is damaged, or of another version, and so are batches of that kind refused; -EIO with PERSIST_FAILED: it cannot be
 * flushed, and nothing was applied. Where it cannot be written to say what was applied (a full disk), that is held until it can, and counted as
 * kept. Blocks: on the disk.
 */
int ffi_redo_recover(uint64_t volume, uint64_t *counts, struct pmemset_error *err);

/*
 * The same of bytes that lie in pieces: rows of 2 {pointer, length}, stored one behind the other from addr on. *written is of all of them
 * together. On every failure value = bytes that were written.
 */
int ffi_write_pieces(uint64_t set, uint64_t addr, const uint64_t *pieces, uint64_t count, uint32_t durability, struct ffi_written *written,
		struct pmemset_error *err);
/*
 * Make ranges durable: rows of 2 {addr, length}, durability FLUSHED, PERSISTED or DEEP. All ranges are checked before the first is
 * flushed; CANNOT_FIND_PART_MAP and LENGTH_OUT_OF_RANGE have value = index of the range that was refused. IO_FAIL with TRUNCATED
 * (value = file size, addr and offset of its end) where the file ends before a range does; -EIO with PERSIST_FAILED or DEGRADED (DEEP_FLUSH_FAIL with PERSIST_FAILED for DEEP). Blocks: on the disk.
 */
int ffi_persist(uint64_t set, const uint64_t *ranges, uint64_t count, uint32_t durability, struct ffi_written *written,
		struct pmemset_error *err);
/* Order stores of this thread before its later ones. NO_PART_MAPPED. Blocks: no. */
int ffi_drain(uint64_t set, struct ffi_written *written, struct pmemset_error *err);

/* ---- flushes that failed ---- */

/*
 * Where a flush of a file failed, every part of it is degraded, in every set, until the failure is dealt with. It has one number, whichever
 * of its sets is asked. Up to max rows of 3 {number, time, errno}, in the order of their parts: the number is not used again in this
 * process; time (ms since 1970) and errno are of the last flush of it that failed. Returns how many were filled, or -EBADF. Blocks: on a
 * structure change of the same set.
 */
int64_t ffi_failures(uint64_t set, uint64_t *rows, uint64_t max);
/*
 * The bytes in doubt of one of them, where the set has them mapped: up to max rows of 2 {addr, length}, whole pages, in address order. They
 * are what was stored since a flush that covered it, and may be more (what is written down is bounded). Returns how many were filled, which
 * may be 0: -EBADF; -ENOENT: the set has no such failure. Blocks: on a structure change of the same set.
 */
int64_t ffi_failure_ranges(uint64_t set, uint64_t failure, uint64_t *ranges, uint64_t max);
/*
 * Deal with a failure, for every set that maps the file. FFI_RECOVERY_REWRITE: the bytes that the mapping shows now become durable; of a
 * page that has left memory since, these are the medium's. FFI_RECOVERY_DISCARD: the mapping shows what the medium has; of a page that was
 * stored to since the failure, that is the page as it was stored to. Readers and writers go on meanwhile; flushes of the file wait or are
 * refused. -ENOENT: the set has no such failure (any more); -EIO with PERSIST_FAILED: the medium still refuses; -EBUSY: pages that
 * are to be discarded stay in memory, since other processes have them mapped or stores keep coming, and some others may show the medium's
 * bytes already; -ENOMEM. On each of them the failure
 * stays. Blocks: on the disk.
 */
int ffi_acknowledge(uint64_t set, uint64_t failure, uint32_t recovery, struct pmemset_error *err);

/*
 * A failure that is known of from an earlier life: each file that has a part in one of the ranges (rows of 2 {addr, length}) is as if a flush of
 * it had failed, at that time (ms since 1970) with that errno, and these bytes are in doubt by it. The failure gets a number of its own; a file that has one
 * already keeps that, with its time and errno, and more bytes are in doubt. -EINVAL: no errno; LENGTH_OUT_OF_RANGE (a range of length 0, or
 * one that wraps), and nothing was marked; CANNOT_FIND_PART_MAP: no range touches a part. Blocks: on a structure change of the same set.
 */
int ffi_fail(uint64_t set, uint64_t at, int32_t sys_errno, const uint64_t *ranges, uint64_t count, struct pmemset_error *err);

/* ---- the service's own directory; paths are taken as they stand ---- */

/*
 * Whether a directory can keep what must not be lost: what is flushed there stays, and locks hold. -ENOTSUP where its file system is in memory
 * or on another host, and the message names it; -ENOENT, -ENOTDIR, -EACCES. Blocks: briefly.
 */
int ffi_state_check(const char *directory, struct pmemset_error *err);
/*
 * Take the file `path`, which is made (mode 0600) where it is not there, until ffi_unlock or until the process ends, however it ends; a
 * child has it too, until it executes another program. *lock = 0 on failure. -EAGAIN: somebody has it, this process or another; value = the
 * process's number, 0 where it is not in the file yet. -ENOTSUP: it is no regular file. -ENOLCK, -ENOSPC, -ELOOP (a symlink) and the
 * like: -errno. Blocks: briefly.
 */
int ffi_lock(const char *path, uint64_t *lock, struct pmemset_error *err);
/* The file stays. -EBADF. Blocks: briefly. */
int ffi_unlock(uint64_t lock);
/*
 * Have the file system set space aside for the first `size` bytes of the file, whose own size stays as it is. -EINVAL, -ENOENT, -ENOSPC, -EOPNOTSUPP
 * where the file system cannot: -errno. Blocks: on the disk.
 */
int ffi_allocate(const char *path, uint64_t size, struct pmemset_error *err);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
