/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool.h -- objects of one size whose memory stays theirs until the pool ends.
 *
 * A reader that holds a stale pointer into a pool reads an old or a newer object, never freed memory: that is what look-ups without a
 * lock rest on. One thread at a time allocates and frees (the set's structure lock); readers need no call of this file.
 */
#ifndef PMEMSET_POOL_H
#define PMEMSET_POOL_H 1

#include <stddef.h>

struct pool {
	size_t object_size;
	size_t objects_per_chunk;
	void *chunks;  /* chain of chunks, freed by pool_end */
	void *free;    /* chain of free objects, through their first word */
	size_t unused; /* objects of the newest chunk that were never handed out */
};

void pool_start(struct pool *pool, size_t object_size, size_t objects_per_chunk);
void pool_end(struct pool *pool);
/* NULL where memory is out. The object's bytes are what its last owner left. */
void *pool_take(struct pool *pool);
/* Only the first word is written, atomically, so that a stale reader sees some word and no torn one. */
void pool_give(struct pool *pool, void *object);

#endif
