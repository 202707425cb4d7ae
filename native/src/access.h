/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * access.h -- ranges of a set: held while they are used, loaded, stored and made durable. Each is checked before a byte is touched.
 */
#ifndef PMEMSET_ACCESS_H
#define PMEMSET_ACCESS_H 1

#include "segment.h"

/*
 * Check that [addr, addr + length) lies inside one part map, and hold that map: until access_unpin it may grow, and neither shrinks nor
 * goes. length 0 asks for the map that holds addr. NO_PART_MAPPED; CANNOT_FIND_PART_MAP; LENGTH_OUT_OF_RANGE (addr, size of the map).
 */
int access_pin(struct set *set, uint64_t addr, uint64_t length, struct part_map **pinned, struct pmemset_error *e);
/* The map that begins at `from`, or else the next higher one; NULL where there is none. */
struct part_map *access_pin_next(struct set *set, uint64_t from);
void access_unpin(struct part_map *map);

struct written {
	uint64_t bytes;
	enum durability durability; /* reached */
	enum persistence persistence;
	bool simulated;
};

/* As segment_check, for all of the range. */
int access_check(struct set *set, uint64_t addr, uint64_t length, enum check what, struct pmemset_error *e);
/* nowait: -EAGAIN where a page would have to be read from the disk first. */
int access_read(struct set *set, uint64_t addr, void *buf, uint64_t length, bool nowait, struct pmemset_error *e);
/* -EIO with DEGRADED where a flush of the range, which is pinned, would answer falsely. */
int access_check_flushes(struct set *set, uint64_t addr, uint64_t end, struct pmemset_error *e);

/*
 * Stores that share their flush. Each range is pinned by the caller until storing_end, and refused before its first byte where its flush
 * would answer falsely. written.bytes counts what was stored, also of a store that failed.
 */
struct storing {
	struct set *set;
	enum durability durability;
	struct written written;
	struct segments made;
	struct sized sized;
	struct store_under_way row; /* of its stores */
};
struct storing storing_begin(struct set *set, enum durability durability);
/* flags: PMEM2_F_MEM_*, a hint of how to store. */
int storing_write(struct storing *st, uint64_t addr, const void *buf, uint64_t length, unsigned flags, struct pmemset_error *e);
int storing_fill(struct storing *st, uint64_t addr, unsigned char byte, uint64_t length, unsigned flags, struct pmemset_error *e);
/* Zeros in new space (segment_punch), made durable at once where that is wanted. */
int storing_punch(struct storing *st, uint64_t addr, uint64_t length, struct pmemset_error *e);
/* The medium of a segment has to do with it too. */
void storing_witness(struct storing *st, const struct segment *s);
/* Before the thread waits for anything that a batch may hold up: another store of its own, a flush. */
void storing_pause(struct storing *st);
/* flush false: what was stored may be lost, and is flushed before its part goes. */
int storing_end(struct storing *st, bool flush, struct pmemset_error *e);

/* On failure e->value is how many bytes were written, whatever the reason would have there. */
int access_write(struct set *set, uint64_t addr, const void *buf, uint64_t length, enum durability durability, struct written *written,
		struct pmemset_error *e);
/*
 * Writes of different callers, each with an outcome of its own as from access_write; at page granularity they share one flush of each file. In: set
 * to durability. Out: rc, error, storing.written.
 */
struct access_request {
	struct set *set;
	uint64_t addr, length;
	const void *buf;
	enum durability durability;
	int rc;
	struct pmemset_error error;
	struct storing storing;
	struct part_map *map;
};
void access_write_many(struct access_request *writes, size_t count);
/*
 * ranges: pairs of addr and length. All are checked before the first is flushed; CANNOT_FIND_PART_MAP and LENGTH_OUT_OF_RANGE are of one of
 * them, and e->value is its index. Of other failures it is what their reason says.
 */
int access_persist(struct set *set, const uint64_t *ranges, uint64_t count, enum durability durability, struct written *written,
		struct pmemset_error *e);
int access_drain(struct set *set, struct written *written, struct pmemset_error *e);

#endif
