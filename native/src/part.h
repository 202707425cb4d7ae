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

/* Kernel mappings that `parts` adjacent parts at [lo, hi) add, or free, given what is beside them in the open change. */
int64_t part_mappings(struct set *set, uint64_t lo, uint64_t hi, uint64_t parts);

/* A store was made through the part, or may have been, that no flush follows: there will be one before the part goes. */
void part_soil(struct part *part);
/* The same of bytes of its file; since: as file_soil has it. */
void part_soil_range(struct part *part, uint64_t offset, uint64_t length, uint64_t since);

/* A range whose mapping could not be undone: kept out of all use for good. */
void part_lose_range(struct set *set, uint64_t lo, uint64_t hi);

#endif
