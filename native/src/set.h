/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * set.h -- a set of parts in one window of addresses.
 *
 * Structure (which parts, where) changes under the set's lock, one change at a time: mapped by part.c, removed by remove.c. Everybody
 * else reads the index, without a lock, and holds a part map by its state word (access.c):
 *
 *   0             nobody uses it
 *   n             n users: it may grow at its end, and neither shrinks nor goes
 *   MAP_FROZEN    a removal is deciding, for a moment; wait
 *   MAP_GONE      removed, or not published yet
 */
#ifndef PMEMSET_SET_H
#define PMEMSET_SET_H 1

#include "error.h"
#include "file.h"
#include "index.h"
#include "window.h"

#include <libpmemset.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum coalescing { COALESCING_NONE, COALESCING_OPPORTUNISTIC, COALESCING_FULL };

#define MAP_FROZEN (UINT64_C(1) << 62)
#define MAP_GONE (UINT64_C(1) << 63)

/* Both live in pools: a stale reader may load their members when they are somebody else's, so members are atomic. */
struct part_map {
	_Atomic uint64_t addr; /* first: the pool's chain goes through this word */
	_Atomic uint64_t size;
	_Atomic uint64_t state;
	_Atomic uint64_t parts;
};

struct part {
	_Atomic uint64_t addr;
	_Atomic uint64_t length;
	_Atomic uint64_t offset; /* in the file */
	_Atomic uint64_t cookie; /* the caller's number for it */
	_Atomic(struct file *) file;
	_Atomic uint64_t soiled; /* its last store that no flush followed, by the file's count; 0: none */
	struct file_use use;	 /* the file's, from its commit to its removal */
};

struct set {
	struct window window;
	enum pmem2_granularity required;
	uint64_t parts_max; /* 0: none but the kernel's */

	_Atomic uint32_t coalescing;
	_Atomic uint32_t granularity; /* effective: the first map's, for ever; PMEMSET_GRANULARITY_UNSET before */
	_Atomic uint64_t part_count, map_count, mapped_bytes;
	_Atomic bool waits; /* a part was mapped whose loads and stores may wait for a disk */

	pthread_mutex_t lock; /* structure */
	struct index index;
	struct pool maps, parts;
	struct part_map *previous; /* the map created last, which coalescing appends to; NULL: none */
	uint64_t newest;	   /* the cookie of its part that was created last, though that may be gone */
	bool direct;		   /* its user loads and stores through pointers, so every part may be dirty at any time */
	bool adopted;		   /* the window is somebody else's reservation */
	bool ended;
	bool lost; /* a range of the window: something is mapped there that nobody could take away */
};

struct set_spec {
	uint64_t window_addr; /* 0: where there is room */
	uint64_t window_size;
	uint64_t parts_max;
	uint32_t required, coalescing;
	uint32_t granularity; /* that it has already; PMEMSET_GRANULARITY_UNSET: its first map's */
};

/* GRANULARITY_NOT_SUPPORTED, INVALID_COALESCING_VALUE, -ENOMEM (LIMIT_WINDOWS), -EBUSY (WINDOW_TAKEN). */
int set_new(struct set **set_out, const struct set_spec *spec, struct pmemset_error *e);
/* The same in a range that the caller has reserved, and keeps. -EBUSY. */
int set_new_within(struct set **set_out, uint32_t required, uint64_t addr, uint64_t size, struct pmemset_error *e);
/* From the next map on. INVALID_COALESCING_VALUE. */
int set_coalescing(struct set *set, uint32_t coalescing, struct pmemset_error *e);
/* Whether a flush of one of its files failed. */
bool set_is_degraded(struct set *set);
/* Free a set that set_end (remove.h) emptied and nobody uses any more. */
void set_free(struct set *set);

/* A set as libpmemset.h shows it. */
struct pmemset {
	struct set *set;
	pmemset_event_callback *callback; /* NULL: none */
	void *callback_arg;
	struct pmemset *next; /* the list of all of them */
};

/*
 * The set whose window holds the address, and keeps it from being deleted until pmemsets_unlock; NULL, and nothing to unlock, where there
 * is none. For the functions that are given no set.
 */
struct pmemset *pmemsets_lock(uint64_t addr);
void pmemsets_unlock(void);

#endif
