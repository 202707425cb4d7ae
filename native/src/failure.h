/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * failure.h -- flushes that failed, as a set sees them, and as they are dealt with.
 *
 * After a failed flush the kernel takes the pages for clean: the mapping shows the new bytes, the medium has the old ones, and another
 * flush would answer success. So the file is degraded (file.h) in every set that maps it, until somebody says what is to become of the
 * bytes in doubt.
 */
#ifndef PMEMSET_FAILURE_H
#define PMEMSET_FAILURE_H 1

#include "set.h"

enum recovery {
	/*
	 * What the mapping shows now becomes durable. Where a page has left the page cache since, that is what the medium gave for it: the
	 * new bytes are gone, and its old ones are durable already.
	 */
	RECOVERY_REWRITE,
	/*
	 * What the medium has is shown again. A page that was stored to since the failure is on the medium by then, whole, with what was in
	 * doubt of it.
	 */
	RECOVERY_DISCARD
};

/* Up to max rows of 3 {id, at, errno} of the set's failures, in the order of their parts; how many were filled. Takes the set's lock. */
uint64_t failures_of(struct set *set, uint64_t *rows, uint64_t max);
/*
 * What is in doubt of that failure's file, where it is mapped in the set: up to max pairs of addr and length, by address. *count: how many
 * were filled. -ENOENT: the set has no such failure. Takes the set's lock.
 */
int failure_ranges(struct set *set, uint64_t id, uint64_t *pairs, uint64_t max, uint64_t *count, struct pmemset_error *e);
/*
 * For every set that maps the file. -ENOENT: the set has no such failure (any more); -EIO with PERSIST_FAILED: the flush failed again;
 * -EBUSY: of a discard, where another process keeps pages in memory, or stores keep coming; -ENOMEM. On each of them the failure stays, and
 * all that was in doubt.
 */
int failure_acknowledge(struct set *set, uint64_t id, enum recovery recovery, struct pmemset_error *e);
/*
 * A failure that is known of from elsewhere: the files of the parts that these pairs of addr and length touch are as if a flush had failed then,
 * with that errno, and those bytes were in doubt. LENGTH_OUT_OF_RANGE; CANNOT_FIND_PART_MAP: they touch none. Takes the set's lock.
 */
int failure_recall(struct set *set, uint64_t at, int why, const uint64_t *pairs, uint64_t count, struct pmemset_error *e);

#endif
