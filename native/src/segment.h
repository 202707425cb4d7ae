/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * segment.h -- what of a range lies in one part: its place in the file, whether the file still has it, and the way of its bytes.
 *
 * How bytes get to the medium depends on the set's granularity. At page granularity the page cache is in between: bytes are written with
 * pwrite (whose errors are return values) and flushed by the file's flusher; they are the same pages that loads see. At cache-line and
 * byte granularity they are stored and flushed by libpmem2's functions, under guard.h.
 *
 * A segment is good for as long as its map is pinned (access.h).
 */
#ifndef PMEMSET_SEGMENT_H
#define PMEMSET_SEGMENT_H 1

#include "guard.h"
#include "order.h"
#include "set.h"

/* What is asked of a range before, or after, somebody else copies from it. */
enum check { CHECK_SIZE, CHECK_RESIDENT, CHECK_LOAD };

enum durability { DURABILITY_NONE, DURABILITY_FLUSHED, DURABILITY_PERSISTED, DURABILITY_DEEP };

struct segment {
	uint64_t addr, length;
	struct part *part;
	struct file *file;
	uint64_t offset; /* in the file */
	uint64_t since;	 /* the file's losses when it was asked for: before anything is stored there */
};

/* Of [addr, end), what lies in the part that holds addr. */
struct segment segment_at(struct set *set, uint64_t addr, uint64_t end);

/* What the set's stores go through; NULL at page granularity. */
const struct stores *stores_of(struct set *set);

/*
 * IO_FAIL with the reason: the file's size, space or medium at this address; code: BUS_* of the fault, 0: there was none. Or, of the thread's last
 * guarded copy.
 */
int segment_refused(struct set *set, uint64_t addr, int code, struct pmemset_error *e);
int segment_faulted(struct set *set, struct pmemset_error *e);

/*
 * Behind the end of a truncated file its last page has zeros: a load would read them, a store or a flush would succeed and its bytes be
 * nowhere. Nothing faults there, so the size is asked for. IO_FAIL with TRUNCATED.
 */
int segment_check_size(struct set *set, const struct segment *s, bool nowait, struct pmemset_error *e);
/*
 * The same for a row of small stores, one behind the other without anything in between that waits: the question costs as much as such a store
 * does, so what the file said a moment ago is taken to hold for the next few. {0} at first.
 */
struct sized {
	const struct file *file;
	uint64_t size;
	unsigned left;
};
int segment_check_sized(struct set *set, const struct segment *s, struct sized *sized, struct pmemset_error *e);
/* -EIO with DEGRADED where an earlier flush of the file failed. */
int segment_check_flushes(const struct segment *s, struct pmemset_error *e);

/*
 * SIZE: that the file has all of it. RESIDENT: and that it is in memory, so that nobody who copies it waits for a disk; else -EAGAIN. LOAD:
 * brings it there, and waits. IO_FAIL as a load would be refused.
 */
int segment_check(struct set *set, const struct segment *s, enum check what, struct pmemset_error *e);
/* nowait: -EAGAIN where a page would have to be read from the disk first. */
int segment_read(struct set *set, const struct segment *s, char *buf, bool nowait, struct pmemset_error *e);
/*
 * From buf, or with one byte all over; behind a check of the size, for past the end of a truncated file pwrite would extend it. Adds to *done
 * what was written, also on failure. It is neither drained nor flushed by the file's flusher. flags: PMEM2_F_MEM_*, a hint of how to store.
 * row: of stores, which goes on and is the caller's to end.
 */
int segment_write(struct set *set, const struct segment *s, const char *buf, unsigned flags, struct store_under_way *row, uint64_t *done,
		struct pmemset_error *e);
int segment_fill(struct set *set, const struct segment *s, unsigned char byte, unsigned flags, struct store_under_way *row, uint64_t *done,
		struct pmemset_error *e);

/* On the aligned word that the segment is; through the mapping, at any granularity, and not flushed. */
int segment_atomic(struct set *set, const struct segment *s, const struct atomic *a, struct pmemset_error *e);
/*
 * Zeros, whose old blocks are given back and new ones allocated, so that a later store finds its space. Where that fails (-ENOSPC) the
 * bytes are zeros and the space is gone.
 */
int segment_punch(struct set *set, const struct segment *s, struct pmemset_error *e);

/* It was stored to, or may have been, and no flush follows; to be told behind the store. */
void segment_soil(const struct segment *s);
/* What its file's flusher is to be told. */
struct flush_range segment_range(const struct segment *s);

struct segments {
	struct segment *at; /* the owner frees it */
	size_t count, capacity;
};

/* -ENOMEM */
int segments_push(struct segments *all, const struct segment *s);
/*
 * Make them durable; they are sorted for it. -EIO with PERSIST_FAILED or DEGRADED, DEEP_FLUSH_FAIL; IO_FAIL. Behind a failure, whoever has
 * stored tells that they are soiled.
 */
int segments_flush(struct set *set, struct segments *all, enum durability durability, struct pmemset_error *e);

#endif
