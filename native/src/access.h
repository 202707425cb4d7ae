/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * access.h -- load, store and make durable, in ranges that are checked before a byte is touched.
 *
 * A medium may refuse any load or store: the file was truncated, a hole cannot be filled, a block is bad. The kernel says so with
 * SIGBUS. One handler for the process catches it inside of the copies of access.c, and the access becomes an error with the address.
 *
 * How bytes get to the medium depends on the set's granularity. At page granularity the page cache is in between: bytes are written with
 * pwrite (whose errors are return values) and flushed by the file's flusher; they are the same pages that loads see. At cache-line and
 * byte granularity they are stored and flushed by libpmem2's functions.
 */
#ifndef PMEMSET_ACCESS_H
#define PMEMSET_ACCESS_H 1

#include "set.h"

enum durability { DURABILITY_NONE, DURABILITY_FLUSHED, DURABILITY_PERSISTED, DURABILITY_DEEP };

/*
 * Install the handler, ignore SIGXFSZ (where nobody else has a use for it) and take libpmem2's functions; once per process. -ENOMEM, or
 * a libpmem2 code.
 */
int access_start(struct pmemset_error *e);

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

/* nowait: -EAGAIN where a page would have to be read from the disk first. */
int access_read(struct set *set, uint64_t addr, void *buf, uint64_t length, bool nowait, struct pmemset_error *e);
/* On failure e->value is how many bytes were written, whatever the reason would have there. */
int access_write(struct set *set, uint64_t addr, const void *buf, uint64_t length, enum durability durability, struct written *written,
		struct pmemset_error *e);
/*
 * ranges: pairs of addr and length. All are checked before the first is flushed; CANNOT_FIND_PART_MAP and LENGTH_OUT_OF_RANGE are of one of
 * them, and e->value is its index. Of other failures it is what their reason says.
 */
int access_persist(struct set *set, const uint64_t *ranges, uint64_t count, enum durability durability, struct written *written,
		struct pmemset_error *e);
int access_drain(struct set *set, struct written *written, struct pmemset_error *e);

#endif
