/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * remove.h -- take parts out of a set.
 *
 * All or nothing, and durable first: what was stored without a flush is flushed, then the maps are frozen (which fails while anybody
 * uses one), then the index changes, and only then are pages unmapped, when nobody can reach them any more.
 */
#ifndef PMEMSET_REMOVE_H
#define PMEMSET_REMOVE_H 1

#include "set.h"

/* What a removal did, or would do. Counts are whole; rows are filled as far as there is room. */
struct removal {
	uint64_t removed, trimmed, split;
	uint64_t removed_max, trimmed_max, split_max;
	uint64_t *removed_rows; /* 3 words each: addr, length, cookie */
	uint64_t *trimmed_rows; /* 4: addr and size before, addr and size after */
	uint64_t *split_rows;	/* 6: addr and size before, and of the two after */

	struct part_map *held; /* in: the caller itself uses this map, once, and its use ends with the map; NULL: none */
	/*
	 * In: told of each map that goes whole, without a lock, when nobody can reach it any more and before it is unmapped; NULL: nobody is.
	 * Meanwhile its addresses stay taken.
	 */
	void (*leaving)(void *arg, uint64_t addr, uint64_t size);
	void *leaving_arg;
};

/*
 * Remove every part that [addr, addr + length) touches, whole. CANNOT_FIND_PART_MAP where it touches none; LENGTH_OUT_OF_RANGE for
 * length 0 or a range that wraps; PART_MAP_POSSIBLE_USE_AFTER_DROP; file_flush's errors; -EBADF once the set has ended.
 */
int set_remove(struct set *set, uint64_t addr, uint64_t length, bool dry_run, struct removal *removal, struct pmemset_error *e);
/* The same for the part map that starts at addr. */
int set_remove_map(struct set *set, uint64_t addr, bool dry_run, struct removal *removal, struct pmemset_error *e);
/* The same for the part map removal->held. PART_NOT_FOUND where it is none of the set's. */
int set_remove_held(struct set *set, struct removal *removal, struct pmemset_error *e);
/* Remove everything; from then on maps and removals answer -EBADF. */
int set_end(struct set *set, struct pmemset_error *e);
/* The same, whoever holds a map and whatever cannot be flushed: the error, of a set that has ended. Needs no memory. */
int set_end_by_force(struct set *set, struct pmemset_error *e);

#endif
