/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * guard.h -- loads, stores and flushes that the medium may refuse.
 *
 * The kernel tells of a refusal with SIGBUS: the file was truncated, a hole cannot be filled, a block is bad. One handler for the process
 * catches it inside of the copies of guard.c, and the copy becomes a failure with the address. What stores and flushes is libpmem2's,
 * by granularity.
 */
#ifndef PMEMSET_GUARD_H
#define PMEMSET_GUARD_H 1

#include "error.h"

#include <libpmem2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A copy that faults leaves a whole chunk undefined, so chunks are small; large enough for libpmem2's non-temporal stores. */
#define CHUNK_SIZE (UINT64_C(1) << 20)
#define WORD_SIZE UINT64_C(8) /* never torn where it is aligned, so no copy ends within one before its time */

/* To where the first chunk of [from, to) goes, or from where the last one. */
static inline uint64_t chunk_end(uint64_t from, uint64_t to)
{
	return to - from <= CHUNK_SIZE ? to : (from + CHUNK_SIZE) & ~(WORD_SIZE - 1);
}

static inline uint64_t chunk_begin(uint64_t from, uint64_t to)
{
	return to - from <= CHUNK_SIZE ? from : (to - CHUNK_SIZE + WORD_SIZE - 1) & ~(WORD_SIZE - 1);
}

/*
 * Install the handler, ignore SIGXFSZ (where nobody else has a use for it) and take libpmem2's functions; once per process. -ENOMEM, or
 * a libpmem2 code.
 */
int guard_start(struct pmemset_error *e);

/* libpmem2's functions of one granularity. */
struct stores;
/* NULL at page granularity: libpmem2's functions for pages do nothing on memory that it did not map. */
const struct stores *stores_at(uint32_t granularity);
/* Wait for this thread's stores and flushes. */
void stores_drain(const struct stores *stores);

/*
 * At most a chunk. False where it faulted: then the chunk is undefined, and guard_fault says where and how. Stores are flushed but not drained;
 * flags: PMEM2_F_MEM_*.
 */
bool guarded_load(void *to, const void *from, size_t length);
bool guarded_store(const struct stores *stores, void *to, const void *from, size_t length, unsigned flags);
bool guarded_fill(const struct stores *stores, void *to, unsigned char byte, size_t length, unsigned flags);
bool guarded_flush(const struct stores *stores, const void *from, size_t length);
/* Each page is loaded from, and nothing is kept. */
bool guarded_touch(const void *from, size_t length);

enum atomic_op { ATOMIC_COMPARE_EXCHANGE, ATOMIC_EXCHANGE, ATOMIC_ADD, ATOMIC_AND, ATOMIC_OR, ATOMIC_XOR };
struct atomic_result {
	uint64_t previous, current; /* equal, and not the value, where a compare_exchange found something else than expected */
};
struct atomic {
	enum atomic_op op;
	uint64_t value, expected;
	struct atomic_result *result;
};
/* On an aligned word, so that whoever has the same bytes of the file mapped elsewhere agrees on the order. Not flushed. */
bool guarded_atomic(void *word, const struct atomic *a);

struct fault {
	uint64_t addr;
	int code; /* BUS_* */
};
/* This thread's last. */
struct fault guard_fault(void);

#endif
