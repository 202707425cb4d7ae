/* SPDX-License-Identifier: BSD-3-Clause */
#include "pool.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

/* Chunks are chained through their first cache line, so that objects keep the line's alignment. */
#define CHUNK_HEADER 64

void pool_start(struct pool *pool, size_t object_size, size_t objects_per_chunk)
{
	assert(object_size >= sizeof(void *) && object_size % sizeof(void *) == 0);
	*pool = (struct pool){.object_size = object_size, .objects_per_chunk = objects_per_chunk};
}

void pool_end(struct pool *pool)
{
	for (void *chunk = pool->chunks; chunk != NULL;) {
		void *next = *(void **)chunk;
		free(chunk);
		chunk = next;
	}
	*pool = (struct pool){0};
}

void *pool_take(struct pool *pool)
{
	if (pool->free != NULL) {
		void *object = pool->free;
		_Atomic(void *) *chain = object;
		pool->free = atomic_load_explicit(chain, memory_order_relaxed);
		return object;
	}
	if (pool->unused == 0) {
		size_t size = CHUNK_HEADER + pool->objects_per_chunk * pool->object_size;
		void *chunk = aligned_alloc(CHUNK_HEADER, (size + CHUNK_HEADER - 1) / CHUNK_HEADER * CHUNK_HEADER);
		if (chunk == NULL)
			return NULL;
		*(void **)chunk = pool->chunks;
		pool->chunks = chunk;
		pool->unused = pool->objects_per_chunk;
	}
	pool->unused--;
	return (char *)pool->chunks + CHUNK_HEADER + pool->unused * pool->object_size;
}

void pool_give(struct pool *pool, void *object)
{
	_Atomic(void *) *chain = object;
	atomic_store_explicit(chain, pool->free, memory_order_release);
	pool->free = object;
}
