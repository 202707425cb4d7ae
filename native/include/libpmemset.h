/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libpmemset.h -- sets of parts of files, mapped into one range of addresses and made durable with the right instruction for the medium.
 *
 *   config  what a set is made from; copied into it
 *   set     has parts; owns their mappings, a window of addresses, and nothing else
 *   source  where bytes come from: a file, a temporary file, a descriptor
 *   part    a range of a source that is to be mapped; consumed by its map
 *   part map  what look-up sees: one contiguous range of addresses, of one part or of several that were coalesced
 *
 * Caveats:
 *   - Shutdown state (pmemset_sds, part states), bad blocks, layouts and the headers of parts are declared, so that programs compile, and
 *     answer PMEMSET_E_NOSUPP. A device DAX is no source yet: PMEMSET_E_INVALID_PMEM2_SOURCE.
 *   - The first set of a process reserves 21 TiB of addresses (no memory, and nothing of the commit charge). Where `ulimit -v` forbids
 *     it, pmemset_new fails with -ENOMEM, and pmemset_errormsg says so.
 *   - It also installs a handler for SIGBUS, which hands on whatever is not this library's, and ignores SIGXFSZ where its action is the
 *     default one. A handler that a program installs later has to hand on to it in turn.
 *   - A store through a pointer to memory that its file no longer backs (truncated, disk full) raises SIGBUS in the program. The functions
 *     below answer PMEMSET_E_IO_FAIL instead.
 *   - A child of fork(2) may load from and store to the mappings, and calls no function of the library.
 *
 * Results. A function that returns int returns 0, or a negative code and changes nothing: PMEMSET_E_*, or a negated errno where the
 * operating system refused (each function lists the codes it adds a meaning to; -ENOMEM and what open(2), fstat(2) and the like answer may
 * come from any that says "-errno"). pmemset_errormsg() tells the rest to a person. Out pointers are set to NULL on failure. Pointers
 * that are not said to be optional must be valid.
 *
 * Threads. Every function may be called from any thread, also on one set; look-ups and accesses take no lock of the set. Two exceptions:
 * a config and a map config belong to one thread at a time; and pmemset_delete, as any delete, is the last call with its object.
 *
 * A function name ending in _delete takes the address of the caller's pointer and sets it to NULL; deleting NULL is 0.
 */
#ifndef LIBPMEMSET_H
#define LIBPMEMSET_H 1

#include <libpmem2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* ---- codes; -200034 was never assigned ---- */

#define PMEMSET_E_UNKNOWN (-200000)				  /* unclassified failure */
#define PMEMSET_E_NOSUPP (-200001)				  /* not implemented */
#define PMEMSET_E_INVALID_PMEM2_SOURCE (-200002)		  /* the source is neither a regular file nor device DAX */
#define PMEMSET_E_INVALID_SOURCE_PATH (-200003)			  /* the path names nothing */
#define PMEMSET_E_INVALID_FILE_PATH PMEMSET_E_INVALID_SOURCE_PATH /* its older name */
#define PMEMSET_E_INVALID_SOURCE_TYPE (-200004)			  /* no source, or one of an unknown type */
#define PMEMSET_E_CANNOT_ALLOCATE_INTERNAL_STRUCTURE (-200005)	  /* no memory for an internal structure */
#define PMEMSET_E_INVALID_OFFSET_VALUE (-200006)		  /* the offset is above INT64_MAX */
#define PMEMSET_E_GRANULARITY_NOT_SUPPORTED (-200007)		  /* unknown granularity, or the medium is coarser than the set requires */
#define PMEMSET_E_INVALID_PMEM2_MAP (-200008)			  /* the range cannot be mapped; the cause says why */
#define PMEMSET_E_PART_EXISTS (-200009)				  /* a part is there already */
#define PMEMSET_E_GRANULARITY_NOT_SET (-200010)			  /* no required granularity given */
#define PMEMSET_E_GRANULARITY_MISMATCH (-200011)		  /* the part's granularity is not the set's */
#define PMEMSET_E_NO_PART_MAPPED (-200012)			  /* no part was mapped yet */
#define PMEMSET_E_CANNOT_FIND_PART_MAP (-200013)		  /* no part map holds the address */
#define PMEMSET_E_CANNOT_COALESCE_PARTS (-200014)		  /* the range behind the previous part map is occupied */
#define PMEMSET_E_LENGTH_UNALIGNED (-200015)			  /* the length is not a multiple of the alignment */
#define PMEMSET_E_PART_NOT_FOUND (-200016)			  /* the set has no such part */
#define PMEMSET_E_INVALID_COALESCING_VALUE (-200017)		  /* unknown coalescing mode */
#define PMEMSET_E_DEEP_FLUSH_FAIL (-200018)			  /* the deep flush failed */
#define PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS (-200019)	  /* unknown creation flag or mode */
#define PMEMSET_E_CANNOT_CREATE_TEMP_FILE (-200020)		  /* the temporary file cannot be made */
#define PMEMSET_E_CANNOT_GROW_SOURCE_FILE (-200021)		  /* the file cannot be extended and allocated */
#define PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP (-200022)	  /* the part map is in use */
#define PMEMSET_E_CANNOT_FIT_PART_MAP (-200023)			  /* the window has no gap that is large enough */
#define PMEMSET_E_OFFSET_OUT_OF_RANGE (-200024)			  /* the offset is above INT64_MAX */
#define PMEMSET_E_INVALID_PART_STATES (-200025)			  /* unknown part state */
#define PMEMSET_E_UNDESIRABLE_PART_STATE (-200026)		  /* the part's state is not among those accepted */
#define PMEMSET_E_SDS_ALREADY_SET (-200027)			  /* the source has a shutdown state already */
#define PMEMSET_E_SDS_NOSUPP (-200028)				  /* the device keeps no shutdown state */
#define PMEMSET_E_SDS_DEVICE_ID_LEN_TOO_BIG (-200029)		  /* the device identifier is too long */
#define PMEMSET_E_MAP_LENGTH_UNSET (-200030)			  /* no length given, and nothing of the source from the offset on */
#define PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL (-200031)		  /* the range ends behind the source, which may not grow */
#define PMEMSET_E_IO_FAIL (-200032)				  /* the medium refused an access */
#define PMEMSET_E_LENGTH_OUT_OF_RANGE (-200033)			  /* the range leaves its part map */
#define PMEMSET_E_INVALID_ALIGNMENT_VALUE (-200035)		  /* the source's alignment is not a power of two */
#define PMEMSET_E_DAX_REGION_NOT_FOUND (-200036)		  /* the source has no DAX region */
#define PMEMSET_E_CANNOT_READ_BOUNDS (-200037)			  /* the region's bounds cannot be read */
#define PMEMSET_E_BADBLOCK_NOSUPP (-200038)			  /* bad blocks are not supported here */

struct pmemset;
struct pmemset_config;
struct pmemset_source;
struct pmemset_part;
struct pmemset_part_map;
struct pmemset_map_config;
struct pmemset_header;			 /* never defined */
struct pmemset_part_shutdown_state_data; /* never defined */

/* An address range. A copy: stale once its part map has grown, shrunk or gone. */
struct pmemset_part_descriptor {
	void *addr;
	size_t size;
};

/* ---- config ---- */

/* A new config, without a granularity. The caller deletes it, any time: sets have copies. -ENOMEM. */
int pmemset_config_new(struct pmemset_config **cfg);
int pmemset_config_delete(struct pmemset_config **cfg);

/*
 * The coarsest granularity that the set accepts; must be given before pmemset_new; the last call counts.
 * PMEMSET_E_GRANULARITY_NOT_SUPPORTED: none of BYTE, CACHE_LINE, PAGE; the config is as it was.
 */
int pmemset_config_set_required_store_granularity(struct pmemset_config *cfg, enum pmem2_granularity g);

/*
 * Map into the caller's reservation instead of a window of the library's own: each part at the lowest address that is free, or behind the
 * previous one if coalescing. Its size is the limit of what the set can hold (PMEMSET_E_CANNOT_FIT_PART_MAP).
 *
 * The reservation stays the caller's. libpmem2 does not know what is mapped into it: while a set uses it, the caller neither resizes nor
 * deletes it nor maps anything into it, and deletes the set first. One set at a time: pmemset_new answers -EBUSY to a second.
 * NULL: a window of the library's own again. Always 0.
 */
int pmemset_config_set_reservation(struct pmemset_config *cfg, struct pmem2_vm_reservation *rsv);

struct pmemset_event_context;

/*
 * Called synchronously, on the thread whose call it tells of, with no lock held: it may call any function on the set but pmemset_delete.
 * What it returns is ignored. `ctx` and what it points to are valid until it returns.
 */
typedef int pmemset_event_callback(struct pmemset *set, struct pmemset_event_context *ctx, void *arg);

/* NULL: no callback. Always 0. `arg` is handed to the callback and never touched. */
int pmemset_config_set_event_callback(struct pmemset_config *cfg, pmemset_event_callback *callback, void *arg);

/* Not implemented, as they never were: PMEMSET_E_NOSUPP. */
int pmemset_config_set_create_if_none(struct pmemset_config *cfg, int value);
int pmemset_config_set_create_if_invalid(struct pmemset_config *cfg, int value);
int pmemset_config_set_layout_name(struct pmemset_config *cfg, const char *layout);
int pmemset_config_set_version(struct pmemset_config *cfg, int major, int minor);
int pmemset_header_init(struct pmemset_header *header, const char *layout, int major, int minor);
/* Not implemented yet: PMEMSET_E_NOSUPP. */
int pmemset_config_set_acceptable_states(struct pmemset_config *cfg, uint64_t states);

/* ---- set ---- */

/*
 * A new, empty set; the caller deletes it. The config may be deleted or changed at once.
 * PMEMSET_E_GRANULARITY_NOT_SET; -EBUSY: another set uses the reservation, or a libpmem2 mapping is in it; -ENOMEM, also where no range of
 * addresses is to be had.
 */
int pmemset_new(struct pmemset **set, struct pmemset_config *cfg);

/*
 * End the set: flush what was stored, unmap everything, free it. References that were not dropped, and addresses, are dangling afterwards;
 * nobody may be using them. No event is fired.
 *
 * The set is gone in any case. -EIO: a flush failed, so that what was stored since the last good one may be lost.
 */
int pmemset_delete(struct pmemset **set);

enum pmemset_coalescing {
	PMEMSET_COALESCING_NONE,	  /* each part gets a part map of its own */
	PMEMSET_COALESCING_OPPORTUNISTIC, /* it is appended to the previous part map where there is room, else gets one of its own */
	PMEMSET_COALESCING_FULL		  /* it is appended, or the map fails with PMEMSET_E_CANNOT_COALESCE_PARTS */
};

/*
 * How parts are mapped from now on: true is PMEMSET_COALESCING_FULL, false (as in a new set) PMEMSET_COALESCING_NONE. Always 0.
 *
 * The previous part map is the one created last; when that is removed, its lower neighbour, else the upper one, else there is none and
 * the next part starts afresh. "No room" means another part of the set, or the end of the window.
 */
int pmemset_set_contiguous_part_coalescing(struct pmemset *set, bool value);
/* The same with all three modes. A name of its own: later versions gave the one above another parameter. INVALID_COALESCING_VALUE. */
int pmemset_set_part_coalescing(struct pmemset *set, enum pmemset_coalescing value);

/*
 * The granularity of the set, which its first part decides, for good. PMEMSET_E_NO_PART_MAPPED before that.
 * PMEM2_FORCE_GRANULARITY=byte|cache_line|page in the environment is believed, at each map, as libpmem2 believes it.
 */
int pmemset_get_store_granularity(struct pmemset *set, enum pmem2_granularity *g);

/* ---- source ---- */

/*
 * A regular file, opened for reading and writing now; it is never grown. The path is copied. The caller deletes the source, any time:
 * parts and mappings keep the file.
 *
 * PMEMSET_E_INVALID_FILE_PATH: NULL, or nothing is there; PMEMSET_E_INVALID_PMEM2_SOURCE: a FIFO, a socket, a device; -errno: -EISDIR,
 * -EACCES ...
 */
int pmemset_source_from_file(struct pmemset_source **src, const char *file);

#define PMEMSET_SOURCE_FILE_CREATE_ALWAYS (1U << 0) /* create it, or empty it now; wins over the next */
#define PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED (1U << 1)
#define PMEMSET_SOURCE_FILE_DO_NOT_GROW (1U << 2)      /* a part that reaches beyond its end is an error */
#define PMEMSET_SOURCE_FILE_CREATE_EXCLUSIVE (1U << 3) /* create it, or fail with -EEXIST (an addition of this library) */
#define PMEMSET_SOURCE_FILE_CREATE_VALID_FLAGS (0xFU)

/* Mode bits, as in <sys/stat.h>, for PMEMSET_SOURCE_FILE_CREATE_MODE. */
#define PMEMSET_SOURCE_FILE_RWXU_MODE 00700
#define PMEMSET_SOURCE_FILE_RWU_MODE 00600
#define PMEMSET_SOURCE_FILE_RUSR_MODE 00400
#define PMEMSET_SOURCE_FILE_WUSR_MODE 00200
#define PMEMSET_SOURCE_FILE_XUSR_MODE 00100
#define PMEMSET_SOURCE_FILE_RWXG_MODE 00070
#define PMEMSET_SOURCE_FILE_RWG_MODE 00060
#define PMEMSET_SOURCE_FILE_RGRP_MODE 00040
#define PMEMSET_SOURCE_FILE_WGRP_MODE 00020
#define PMEMSET_SOURCE_FILE_XGRP_MODE 00010
#define PMEMSET_SOURCE_FILE_RWXO_MODE 00007
#define PMEMSET_SOURCE_FILE_RWO_MODE 00006
#define PMEMSET_SOURCE_FILE_ROTH_MODE 00004
#define PMEMSET_SOURCE_FILE_WOTH_MODE 00002
#define PMEMSET_SOURCE_FILE_XOTH_MODE 00001
/* Permission bits of a created file, in the flags; less the umask; without any, 0644. */
#define PMEMSET_SOURCE_FILE_CREATE_MODE(mode) ((uint64_t)(mode) << 32)
#define PMEMSET_SOURCE_FILE_CREATE_ALWAYS_MODE(mode) (PMEMSET_SOURCE_FILE_CREATE_ALWAYS | PMEMSET_SOURCE_FILE_CREATE_MODE(mode))

/*
 * As pmemset_source_from_file, with a choice: the file may be created (empty), and a part that reaches beyond its end grows it, unless
 * DO_NOT_GROW. Growth allocates, so that a full disk is an error of the map and no SIGBUS later.
 *
 * PMEMSET_E_INVALID_SOURCE_PATH: NULL; it, or the directory to create it in, does not exist; then
 * PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS: unknown flags or mode bits; -EEXIST; -EBUSY: CREATE_ALWAYS, and the file is mapped, or a
 * source, in this process; and those of pmemset_source_from_file.
 */
int pmemset_xsource_from_file(struct pmemset_source **src, const char *file, uint64_t flags);

/*
 * The file of a libpmem2 source; never grown. The pmem2 source stays the caller's, and outlives this one (PART_ADD hands it to the
 * callback).
 * PMEMSET_E_INVALID_PMEM2_SOURCE: NULL, or its file is not a regular one open for reading and writing;
 * PMEM2_E_FILE_DESCRIPTOR_NOT_SET: it is anonymous; -errno.
 */
int pmemset_source_from_pmem2(struct pmemset_source **src, struct pmem2_source *pmem2_src);

/*
 * The file of a descriptor, which stays the caller's and may be closed at once. flags: 0, or PMEMSET_SOURCE_FILE_DO_NOT_GROW.
 * An addition of this library. PMEMSET_E_INVALID_PMEM2_SOURCE: no regular file open for reading and writing;
 * PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS: other flags; -errno.
 */
int pmemset_source_from_fd(struct pmemset_source **src, int fd, uint64_t flags);

/*
 * A file without a name in that directory, which grows with its parts and goes with the last of them.
 * PMEMSET_E_INVALID_SOURCE_PATH: NULL, or nothing is there; -errno: it is no directory that can be opened;
 * PMEMSET_E_CANNOT_CREATE_TEMP_FILE: anything else.
 */
int pmemset_source_from_temporary(struct pmemset_source **src, const char *dir);

/* Always 0. */
int pmemset_source_delete(struct pmemset_source **src);

/* What offsets and lengths of its parts are multiples of: the page size. Always 0 for files. */
int pmemset_source_alignment(struct pmemset_source *src, size_t *alignment);

/*
 * Read or write bytes of the file without a mapping, so that a damaged block is an error and no signal. A write makes nothing durable and
 * does not grow the file.
 * PMEMSET_E_LENGTH_OUT_OF_RANGE: the range is not within the file; PMEMSET_E_IO_FAIL: the medium refused; -errno.
 */
int pmemset_source_pread_mcsafe(struct pmemset_source *src, void *buf, size_t size, size_t offset);
int pmemset_source_pwrite_mcsafe(struct pmemset_source *src, void *buf, size_t size, size_t offset);

/* ---- part ---- */

/*
 * A range of a source that is to be mapped into a set. length 0: from offset to the end of the source. Neither is checked before
 * the map. The part keeps the source's file; the caller deletes the part unless a map consumed it.
 * PMEMSET_E_INVALID_SOURCE_TYPE: src is NULL; PMEMSET_E_INVALID_FILE_PATH: a source from a file whose path leads nowhere any more; -ENOMEM.
 */
int pmemset_part_new(struct pmemset_part **part, struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length);
int pmemset_part_delete(struct pmemset_part **part);

/* Part states are not implemented; all members are ignored. */
enum pmemset_part_state {
	PMEMSET_PART_STATE_INDETERMINATE = 1 << 0,
	PMEMSET_PART_STATE_OK = 1 << 1,
	PMEMSET_PART_STATE_OK_BUT_ALREADY_OPEN = 1 << 2,
	PMEMSET_PART_STATE_OK_BUT_INTERRUPTED = 1 << 3,
	PMEMSET_PART_STATE_CORRUPTED = 1 << 4
};
struct pmemset_extras {
	const struct pmemset_header *header_in;
	struct pmemset_header *header_out;
	const struct pmemset_part_shutdown_state_data *sds_in;
	struct pmemset_part_shutdown_state_data *sds_out;
	enum pmemset_part_state *state;
};

/*
 * Map the part. On success the part is consumed: deleted, and *part is NULL; *desc, if desc is not NULL, is the whole part map that
 * holds it, which is more than the part where it was coalesced. On failure the part is as it was and can be mapped again; set and file
 * are unchanged.
 * `extra` may be NULL and is ignored.
 *
 * In this order:
 *   PMEMSET_E_INVALID_OFFSET_VALUE		offset above INT64_MAX
 *   PMEMSET_E_INVALID_PMEM2_MAP		offset unaligned
 *   PMEMSET_E_MAP_LENGTH_UNSET			length 0, and nothing of the source behind the offset
 *   PMEMSET_E_LENGTH_UNALIGNED			the length, given or found, is no multiple of pmemset_source_alignment
 *   PMEMSET_E_INVALID_PMEM2_MAP		beyond the end of a source that is never grown
 *   PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL		the same, where DO_NOT_GROW was asked for
 *   -ENOMEM					too many kernel mappings (vm.max_map_count)
 *   PMEMSET_E_CANNOT_COALESCE_PARTS		no room behind the previous part map
 *   PMEMSET_E_CANNOT_FIT_PART_MAP		no room in the window or reservation
 *   PMEMSET_E_CANNOT_GROW_SOURCE_FILE		no space, too large; its size is what it was
 *   PMEMSET_E_INVALID_PMEM2_MAP		mmap(2) refuses
 *   PMEMSET_E_GRANULARITY_NOT_SUPPORTED	the medium is coarser than the set requires
 *   PMEMSET_E_GRANULARITY_MISMATCH		it is not that of the parts that are there
 *   -ENOMEM					no memory (PMEMSET_E_CANNOT_ALLOCATE_INTERNAL_STRUCTURE is not told apart)
 * After INVALID_PMEM2_MAP and GRANULARITY_NOT_SUPPORTED, pmemset_errormsg() names the code that libpmem2 has for it.
 */
int pmemset_part_map(struct pmemset_part **part, struct pmemset_extras *extra, struct pmemset_part_descriptor *desc);

/*
 * As pmemset_source_pread_mcsafe and its twin, at an offset into a mapped range. PMEMSET_E_CANNOT_FIND_PART_MAP: no set has such a part map
 * any more; PMEMSET_E_LENGTH_OUT_OF_RANGE: beyond the descriptor's size or the part map.
 */
int pmemset_part_pread_mcsafe(struct pmemset_part_descriptor *desc, void *dst, size_t size, size_t offset);
int pmemset_part_pwrite_mcsafe(struct pmemset_part_descriptor *desc, void *src, size_t size, size_t offset);

/* Which range pmemset_map is to map; offset 0 and length 0 at first. May be used many times. -ENOMEM. */
int pmemset_map_config_new(struct pmemset_map_config **mcfg);
int pmemset_map_config_delete(struct pmemset_map_config **mcfg);
/* PMEMSET_E_OFFSET_OUT_OF_RANGE: above INT64_MAX; the config is as it was. */
int pmemset_map_config_set_offset(struct pmemset_map_config *mcfg, size_t offset);
void pmemset_map_config_set_length(struct pmemset_map_config *mcfg, size_t length);

/*
 * pmemset_part_new and pmemset_part_map in one. mcfg NULL: all of the source; desc may be NULL. PMEMSET_E_INVALID_SOURCE_TYPE: src is NULL;
 * else as pmemset_part_map.
 */
int pmemset_map(struct pmemset *set, struct pmemset_source *src, struct pmemset_map_config *mcfg, struct pmemset_part_descriptor *desc);

/* ---- look-up: no lock, no allocation ---- */

/*
 * A part map that these return is referred to until pmemset_part_map_drop: it may grow, and is neither removed nor made smaller by
 * anybody. Every one that was returned has to be dropped, by any thread, before its set is deleted.
 */

/* The part map that holds addr. PMEMSET_E_CANNOT_FIND_PART_MAP. */
int pmemset_part_map_by_address(struct pmemset *set, struct pmemset_part_map **pmap, void *addr);
/* The one at the lowest address; NULL where there is none. */
void pmemset_first_part_map(struct pmemset *set, struct pmemset_part_map **pmap);
/* The next higher one; NULL where there is none. `cur` stays referred to. */
void pmemset_next_part_map(struct pmemset *set, struct pmemset_part_map *cur, struct pmemset_part_map **next);
struct pmemset_part_descriptor pmemset_descriptor_part_map(struct pmemset_part_map *pmap);
/* Gives the reference back and sets *pmap to NULL. */
void pmemset_part_map_drop(struct pmemset_part_map **pmap);

/* ---- removal ---- */

/*
 * Remove the part map that the caller refers to, all of it; the reference is used up and *pmap is NULL. What was stored is made durable
 * first. All or nothing; on failure the reference is kept.
 * PMEMSET_E_PART_NOT_FOUND: NULL, or a part map of another set; PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP: others refer to it or
 * access it; -EIO: it cannot be made durable (pmemset_delete is the way to be rid of it); -ENOMEM.
 */
int pmemset_remove_part_map(struct pmemset *set, struct pmemset_part_map **pmap);

/*
 * Remove every part that [addr, addr + len) touches, each whole, whatever lies in between; part maps shrink, split in two or go. What was
 * stored in them is made durable first. All or nothing.
 * PMEMSET_E_LENGTH_OUT_OF_RANGE: len is 0, or the range wraps; PMEMSET_E_CANNOT_FIND_PART_MAP: it touches nothing;
 * PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP: somebody refers to, or accesses, one of the part maps; -EIO, -ENOMEM as above.
 */
int pmemset_remove_range(struct pmemset *set, void *addr, size_t len);

/* PMEMSET_E_NOSUPP: a part is consumed by its map, so there is none to remove. */
int pmemset_remove_part(struct pmemset *set, struct pmemset_part **part);

/* ---- access ---- */

/*
 * Errors of all of these:
 *   PMEMSET_E_NO_PART_MAPPED		the set never had a part
 *   PMEMSET_E_CANNOT_FIND_PART_MAP	the range starts in no part map
 *   PMEMSET_E_LENGTH_OUT_OF_RANGE	it leaves the part map, or, where it may span several, there is a hole
 *   PMEMSET_E_IO_FAIL			the medium refused: the file was truncated, a hole cannot be filled, a block is damaged
 *   -EIO				a flush failed, now or earlier: what was stored since the last good one may be lost, and every
 *					later flush of that file answers the same, for the kernel would answer it falsely
 *   -ENOMEM
 */

/* Make [ptr, ptr + size), of one part map or several that touch each other, durable. */
int pmemset_persist(struct pmemset *set, const void *ptr, size_t size);
/* The same; durable at the latest after pmemset_drain by the same thread. */
int pmemset_flush(struct pmemset *set, const void *ptr, size_t size);
/* Wait for what this thread has flushed. Only PMEMSET_E_NO_PART_MAPPED. */
int pmemset_drain(struct pmemset *set);
/* As pmemset_persist, and through the medium's own buffers. PMEMSET_E_DEEP_FLUSH_FAIL in place of -EIO where this very flush failed. */
int pmemset_deep_flush(struct pmemset *set, void *ptr, size_t size);

#define PMEMSET_F_MEM_NODRAIN (1U << 0) /* durable after pmemset_drain; of no effect at page granularity */
#define PMEMSET_F_MEM_NONTEMPORAL (1U << 1)
#define PMEMSET_F_MEM_TEMPORAL (1U << 2)
#define PMEMSET_F_MEM_WC (1U << 3)
#define PMEMSET_F_MEM_WB (1U << 4)
#define PMEMSET_F_MEM_NOFLUSH (1U << 5) /* nothing is made durable */
#define PMEMSET_F_MEM_VALID_FLAGS \
	(PMEMSET_F_MEM_NODRAIN | PMEMSET_F_MEM_NONTEMPORAL | PMEMSET_F_MEM_TEMPORAL | PMEMSET_F_MEM_WC | PMEMSET_F_MEM_WB | \
			PMEMSET_F_MEM_NOFLUSH)

/*
 * Copy to, or fill, [dest, dest + len), within one part map, and make it durable, unless a flag says less. The other flags are hints.
 * Source and destination may overlap, in both copies. An aligned word of 8 bytes is never torn. -EINVAL: unknown flags, or
 * NONTEMPORAL with TEMPORAL; -EFAULT: src is no memory; -errno of a write, such as -ENOSPC. After a failure an unknown part of the range
 * was written.
 */
int pmemset_memmove(struct pmemset *set, void *dest, const void *src, size_t len, unsigned flags);
int pmemset_memcpy(struct pmemset *set, void *dest, const void *src, size_t len, unsigned flags);
int pmemset_memset(struct pmemset *set, void *dest, int c, size_t len, unsigned flags);

/* Copy [addr, addr + len), within one part map, to buf: a load that cannot kill. An addition of this library. */
int pmemset_read(struct pmemset *set, const void *addr, void *buf, size_t len);

/* ---- shutdown state and bad blocks: not implemented yet ---- */

#define PMEMSET_SDS_DEVICE_ID_LEN 512
struct pmemset_sds {
	char id[PMEMSET_SDS_DEVICE_ID_LEN + 1];
	uint64_t usc;
	int refcount;
};
#define PMEMSET_SDS_INITIALIZE() ((struct pmemset_sds){{0}, 0, 0})

struct pmemset_badblock {
	size_t offset, length;
};

/* PMEMSET_E_NOSUPP. */
int pmemset_source_set_sds(struct pmemset_source *src, struct pmemset_sds *sds, enum pmemset_part_state *state);
int pmemset_badblock_clear(struct pmemset_badblock *bb, struct pmemset_source *src);
/* Does nothing. */
void pmemset_source_set_badblock_detection(struct pmemset_source *src, bool value);

/* ---- events ---- */

enum pmemset_event {
	PMEMSET_EVENT_COPY,		/* before pmemset_memcpy copies */
	PMEMSET_EVENT_MOVE,		/* before pmemset_memmove copies */
	PMEMSET_EVENT_SET,		/* before pmemset_memset stores */
	PMEMSET_EVENT_FLUSH,		/* before a flush, and before a persist */
	PMEMSET_EVENT_DRAIN,		/* after a drain, a persist, and a copy or fill without NODRAIN; no payload */
	PMEMSET_EVENT_PERSIST,		/* never fired: a persist is FLUSH and DRAIN */
	PMEMSET_EVENT_REMOVE_RANGE,	/* at the start of pmemset_remove_range, with its arguments */
	PMEMSET_EVENT_PART_ADD,		/* after a map: the whole part map that holds the part */
	PMEMSET_EVENT_PART_REMOVE,	/* a whole part map goes: nobody can find it any more, and it is not unmapped yet */
	PMEMSET_EVENT_SDS_UPDATE,	/* not fired yet */
	PMEMSET_EVENT_BADBLOCK,		/* not fired yet */
	PMEMSET_EVENT_BADBLOCKS_CLEARED /* not fired yet */
};

struct pmemset_event_copy {
	void *src;
	void *dest;
	size_t len;
	unsigned flags;
};
struct pmemset_event_move {
	void *src;
	void *dest;
	size_t len;
	unsigned flags;
};
struct pmemset_event_set {
	void *dest;
	int value;
	size_t len;
	unsigned flags;
};
struct pmemset_event_flush {
	void *addr;
	size_t len;
};
struct pmemset_event_persist {
	void *addr;
	size_t len;
};
struct pmemset_event_remove_range {
	void *addr;
	size_t len;
};
struct pmemset_event_part_remove {
	void *addr;
	size_t len;
};
struct pmemset_event_part_add {
	void *addr;
	size_t len;
	struct pmem2_source *src; /* NULL where the part did not come from one */
};
struct pmemset_event_sds_update {
	struct pmemset_sds *sds;
	struct pmemset_source *src;
};
struct pmemset_event_badblock {
	struct pmemset_badblock *bb;
	struct pmemset_source *src;
};
struct pmemset_event_badblocks_cleared {
	struct pmemset_source *src;
};

#define PMEMSET_EVENT_CONTEXT_SIZE 64
struct pmemset_event_context {
	enum pmemset_event type;
	union {
		char _data[PMEMSET_EVENT_CONTEXT_SIZE];
		struct pmemset_event_copy copy;
		struct pmemset_event_move move;
		struct pmemset_event_set set;
		struct pmemset_event_flush flush;
		struct pmemset_event_persist persist;
		struct pmemset_event_remove_range remove_range;
		struct pmemset_event_part_remove part_remove;
		struct pmemset_event_part_add part_add;
		struct pmemset_event_sds_update sds_update;
		struct pmemset_event_badblock badblock;
		struct pmemset_event_badblocks_cleared badblocks_cleared;
	} data;
};

/* ---- errors ---- */

/*
 * The text of this thread's last failure of any function here, "" before the first; valid until its next. It may hold paths, and names
 * the cause in libpmem2's words where there is one.
 */
const char *pmemset_errormsg(void);
/* Prints the formatted text, ": ", pmemset_errormsg() and a newline to stderr. */
void pmemset_perror(const char *format, ...) __attribute__((__format__(__printf__, 1, 2)));
/*
 * The errno (positive) that is closest to a code of this library, of libpmem2 or a negated errno: ENOTSUP for the two NOSUPP, the errno
 * itself, EINVAL for the rest; 0 for 0.
 */
int pmemset_err_to_errno(int err);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
