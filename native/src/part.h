/* SPDX-License-Identifier: BSD-3-Clause */
/* part.h -- map a part of a source into a set. */
#ifndef PMEMSET_PART_H
#define PMEMSET_PART_H 1

#include "set.h"
#include "source.h"

struct part_spec {
	uint64_t offset;		      /* in the source */
	uint64_t length;		      /* 0: from offset to the end of the source, which is not grown for it */
	uint64_t cookie;		      /* look-ups give it back; not 0 */
	uint64_t keep_free;		      /* bytes that growth leaves on the file system */
	const enum pmem2_granularity *forced; /* taken for the medium's; NULL: the medium's own */
	bool grow;			      /* extend and allocate a file that is too small; one that is made always is */
	uint64_t at;			      /* where it is to be; 0: where there is room. Otherwise length is not 0, and nothing grows */
	bool joins; /* at: one with the map that ends there, if that ends with an older part (of a lower cookie) */
};

struct part_result {
	uint64_t addr, length;
	uint64_t map_addr, map_size;
	bool coalesced;
	struct file *file; /* held by the part; valid as long as the part is */
};

/*
 * The manual page pmemset_part_map(3), with the checks in the order that ffi.h lists. All or nothing: on failure the set, the file and
 * its directory are as they were. The source stays the caller's.
 */
int part_map(struct set *set, struct source *source, const struct part_spec *spec, struct part_result *result, struct pmemset_error *e);

/*
 * Parts that were mapped before, each where it was. They come into the set together, with parts_restored: so that many cost one change of
 * the index. The set's structure is locked from parts_restore on until then.
 */
struct restoration {
	struct set *set;
	struct placed *placed; /* so far */
	uint64_t count;
	uint64_t lo, hi;      /* of the last ones, those side by side that are not hidden yet */
	uint32_t granularity; /* the set's, before */
	bool failed;	      /* memory is out */
};

/* Begin, with room for so many. -ENOMEM; -EBADF. */
int parts_restore(struct restoration *r, struct set *set, uint64_t count, struct pmemset_error *e);
/*
 * One of them, of a file that was settled. A failure is this one's own, and it is as if it had not been asked for; but where its range is free,
 * *kept, the range is kept for it, as parts_keep does. The errors of part_map; INVALID_PMEM2_MAP (cause PMEM2_E_ADDRESS_UNALIGNED, or
 * PMEM2_E_MAPPING_EXISTS: something else has some of the range); CANNOT_FIT_PART_MAP: it is not in the window.
 */
int part_restore(struct restoration *r, struct file *file, const struct part_spec *spec, bool *kept, struct pmemset_error *e);
/* Nothing else is to come there until it is restored, or let go. The last two errors above. */
int part_keep(struct restoration *r, uint64_t addr, uint64_t length, struct pmemset_error *e);
/* The end. -ENOMEM: then nothing was restored, and nothing is kept that was not before. */
int parts_restored(struct restoration *r, struct pmemset_error *e);
/* A range that was kept is free again. -ENOENT: it is none; -ENOMEM; -EBADF. */
int part_let_go(struct set *set, uint64_t addr, uint64_t length, struct pmemset_error *e);

/* Kernel mappings that `parts` adjacent parts at [lo, hi) add, or free, given what is beside them in the open change. */
int64_t part_mappings(struct set *set, uint64_t lo, uint64_t hi, uint64_t parts);

/* A store was made through the part, or may have been, that no flush follows: there will be one before the part goes. */
void part_soil(struct part *part);
/* The same of bytes of its file; since: as file_soil has it. */
void part_soil_range(struct part *part, uint64_t offset, uint64_t length, uint64_t since);

/* A range whose mapping could not be undone: kept out of all use for good. */
void part_lose_range(struct set *set, uint64_t lo, uint64_t hi);

#endif
