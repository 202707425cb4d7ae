/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * index.h -- which part map and which part hold an address.
 *
 * Two B+ trees of disjoint ranges [lo, hi), one of part maps and one of parts, published together as one snapshot. A change copies the
 * path it touches (three nodes for 30 000 parts), and one pointer store makes all of it visible at once; a change that fails half-way
 * is dropped and was never seen.
 *
 * Readers take no lock and write nothing. What a commit replaces may be used again only INDEX_GRACE commits later, and a reader checks
 * the count of commits before it follows a pointer: in the time of one descent it would have to be overtaken by that many changes, each
 * a thousand times slower than the descent, to start over. Memory never goes back to the heap before the index ends.
 *
 * One thread at a time changes an index (the set's structure lock).
 */
#ifndef PMEMSET_INDEX_H
#define PMEMSET_INDEX_H 1

#include "pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define INDEX_GRACE 64

enum index_tree { INDEX_MAPS, INDEX_PARTS, INDEX_TREES };

struct node;

struct range {
	uint64_t lo, hi; /* [lo, hi) */
	void *object;
};

struct snapshot {
	_Atomic(struct node *) root[INDEX_TREES];
};

/* Something that a commit replaced, and the count of commits at which it did. */
struct retired {
	struct pool *pool;
	void *object;
	uint64_t commit;
};

struct index {
	_Atomic(struct snapshot *) current;
	_Atomic uint64_t commits;

	/* The writer's own. */
	struct node *root[INDEX_TREES]; /* what the open change has made so far */
	struct pool leaves, inners, snapshots;
	struct retired *queue; /* ring: waiting for their grace, then this change's */
	size_t first, waiting, capacity;
	size_t of_this_change; /* how many of the queue's newest are retired by the open change */
	struct snapshot *next; /* taken by prepare */
	void **fresh;	       /* nodes made by the open change */
	size_t fresh_count, fresh_capacity;
};

/* 0 or -ENOMEM. */
int index_start(struct index *ix);
void index_end(struct index *ix);

/* ---- readers: any thread, at any time ---- */

/* The first range of a tree with hi > addr, which is the one that holds addr if lo <= addr. False where there is none. */
bool index_next(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *found);
/* The map and the part that hold addr, from one snapshot. False where none does. */
bool index_find(const struct index *ix, uint64_t addr, struct range *map, struct range *part);
/*
 * As index_next, with what belongs to the range in the same snapshot: a map's first part, a part's map. Its object is NULL where there
 * is none.
 */
bool index_next_with(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *map, struct range *part);
/*
 * The objects that a look-up returns may be used again once INDEX_GRACE commits have passed. A reader that loads their (atomic) members
 * takes the count of commits before its look-up and asks afterwards: if it was overtaken, what it loaded means nothing, and it begins again.
 */
uint64_t index_commits(const struct index *ix);
bool index_overtaken(const struct index *ix, uint64_t commits);

/* ---- the writer: put and del are seen by index_peek at once, by readers after the commit ---- */

/* Insert a range that overlaps none, or give the range that starts at lo another end and object. 0 or -ENOMEM. */
int index_put(struct index *ix, enum index_tree tree, uint64_t lo, uint64_t hi, void *object);
/* Take out the range that starts at lo, which must be there. 0 or -ENOMEM. */
int index_del(struct index *ix, enum index_tree tree, uint64_t lo);
/* As index_next, on the open change. */
bool index_peek(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *found);
/* The last range of the open change with lo < addr. */
bool index_before(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *found);
/*
 * Have `object` given back to `pool` once no reader can hold it, if the change commits; nothing happens if it is dropped. 0 or -ENOMEM.
 */
int index_retire(struct index *ix, struct pool *pool, void *object);
/*
 * Two steps, so that what cannot be undone (a published file name) may come between: after a prepare that returned 0, nothing but commit
 * or drop follows, and the commit cannot fail.
 */
int index_prepare(struct index *ix);
void index_commit(struct index *ix);
void index_drop(struct index *ix);

/*
 * The lowest addr in [from, to) with addr % alignment == residue and [addr, addr + length) free in the tree of maps; UINT64_MAX where
 * there is none.
 */
uint64_t index_fit(const struct index *ix, uint64_t from, uint64_t to, uint64_t length, uint64_t alignment, uint64_t residue);
uint64_t index_largest_gap(const struct index *ix, uint64_t from, uint64_t to);

#endif
