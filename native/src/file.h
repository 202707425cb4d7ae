/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file.h -- a file that parts are mapped from: once per identity, however many sets and paths lead to it.
 *
 * The kernel keeps flush errors per open file description and reports each once. So there is one description per file, opened before
 * the first store and kept until the last part goes, and one flusher that every flush of it passes through: a failure answers everybody
 * whose bytes were in question, and marks the file until somebody has dealt with it. (A second msync would answer success: the kernel
 * has dropped the dirty pages.)
 */
#ifndef PMEMSET_FILE_H
#define PMEMSET_FILE_H 1

#include "dirt.h"
#include "error.h"
#include "identity.h"
#include "medium.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct flush;
struct redo_log;

/* Where a part of it is mapped. */
struct file_use {
	uint64_t addr, length, offset;
	bool direct; /* somebody stores there through pointers */
	struct file_use *next, **link;
};

struct file {
	/* Set when the file is opened. */
	dev_t dev;
	ino_t ino;
	int fd; /* O_RDWR */
	struct medium medium;
	char identity[IDENTITY_SIZE];

	_Atomic(struct redo_log *) log; /* of the volume that it is beneath; NULL: of none */
	_Atomic uint64_t storing;	/* stores under way that saw no batch to wait for (order.h) */

	/* Its size is being changed, or relied upon by a map under way; taken after the set's structure lock. */
	pthread_mutex_t size_lock;
	_Atomic uint64_t reach; /* to where any part of it ever was */
	bool settled;		/* its first flush was made, or it is new; under size_lock */

	/* Written under the flusher's lock. */
	_Atomic int failed;	 /* errno of the flush that failed; stays until it is dealt with */
	_Atomic uint64_t losses; /* flushes that failed, counted: what was stored before one may be gone */

	/* The flusher. */
	pthread_mutex_t lock;
	pthread_cond_t done;
	struct flush *waiting; /* for the next round */
	bool running;
	uint64_t stores;      /* that were made without being flushed, counted */
	uint64_t clean;	      /* the count of them that a flush of the whole file has covered */
	struct dirt dirt;     /* what was stored since a flush began that covered it */
	struct dirt in_round; /* what a flush under way is about to vouch for */
	uint64_t failure;     /* the failure's number */
	uint64_t failed_at;   /* ms since 1970 */
	int why;	      /* errno of the last flush that failed */
	bool late;	      /* a store was told of that a flush failed in the middle of */

	pthread_mutex_t uses_lock; /* taken after the flusher's */
	struct file_use *uses;

	/* The registry's (guarded by its lock). Memory of a file is never given back: a look-up may read `failed` a moment late. */
	unsigned references;
	struct file *next;
};

/* The one struct file for what fd (O_RDWR, a regular file) leads to; takes fd over, also on failure. -ENOMEM, -errno. */
int file_open(int fd, struct file **out, struct pmemset_error *e);
/*
 * Before the first store: a first flush, so that an error of somebody else's earlier stores is not blamed on ours. Once, for a later one
 * would take the error of ours. Waits for the disk, so no lock of more than this file is to be held.
 */
void file_settle(struct file *file);
/* Cut it to nothing, unless somebody else has it: -EBUSY, -errno. */
int file_empty(struct file *file, struct pmemset_error *e);
void file_hold(struct file *file);
void file_release(struct file *file);
/* Whether any part is mapped from it. */
bool file_is_open(dev_t dev, ino_t ino);

/* Bytes of the file where they are mapped: page-aligned or not, within one part. */
struct flush_range {
	uint64_t addr, length;
	uint64_t offset; /* in the file */
	uint64_t since;	 /* the file's losses before its bytes were stored */
};

/*
 * Flush these ranges (count 0: the whole file) and wait. One flush is in flight per file; whoever arrives meanwhile shares the next.
 * The caller keeps the ranges mapped. -EIO: PERSIST_FAILED with sys_errno, and the ranges are in doubt; or DEGRADED, and nothing is known
 * of them: a flush has failed before, or since they were stored.
 */
int file_flush(struct file *file, const struct flush_range *ranges, size_t count, struct pmemset_error *e);
/* The same of the whole file, on behalf of these ranges. */
int file_flush_whole(struct file *file, const struct flush_range *ranges, size_t count, struct pmemset_error *e);

/*
 * Read or write bytes of the file past any mapping; it is never extended. LENGTH_OUT_OF_RANGE (value = its size); IO_FAIL where the medium
 * refuses; -errno.
 */
int file_read(struct file *file, char *buf, uint64_t length, uint64_t offset, struct pmemset_error *e);
int file_write(struct file *file, const char *buf, uint64_t length, uint64_t offset, struct pmemset_error *e);

/*
 * Some of the bytes, of which there are some, from the first on: how many, at least one, or -errno. The kernel keeps what comes in one
 * write in one folio of the page cache, and each small write to it walks all its blocks, and so does its flush: of 64 bytes in a folio of
 * 1 MiB the two took 22 us of the CPU, of 32 KiB 6 (ext4, Linux 6.18). So no more is written at once than up to the next multiple of
 * that, which tears no word.
 */
int64_t file_put(int fd, const void *bytes, uint64_t length, uint64_t offset);

/* fsync of a directory, or of a file that nobody else has, whatever signals come; errno. */
int file_sync(int fd);

/* Files in use whose flush failed: 0 in a healthy process. */
unsigned file_failures(void);

/* Rounds of file_flush since the start: by msync of ranges, by fdatasync; how many of them failed, and for how many calls they were. */
struct flush_counts {
	uint64_t ranges, files, failed, callers;
};
struct flush_counts file_flush_counts(void);

/*
 * A store was made there that no flush follows; the number that it gets. since: file_losses() before the first byte. To be told when it is
 * done and not before, else a flush in between would vouch for it; and if one has failed in between, what was stored is in doubt as well,
 * even if somebody has dealt with that failure by now.
 */
uint64_t file_soil(struct file *file, uint64_t offset, uint64_t length, uint64_t since);
uint64_t file_losses(const struct file *file);
/* Whether the stores up to that number are durable. */
bool file_has_flushed(struct file *file, uint64_t store);

/* ---- where it is mapped ---- */

void file_add_use(struct file *file, struct file_use *use);
void file_end_use(struct file *file, struct file_use *use);
/* Takes its pages out of the page tables of this process; they stay in the page cache. */
void file_unmap_pages(struct file *file);

/* ---- a flush that failed, until it is dealt with ---- */

struct failure {
	uint64_t id; /* never used again in this process */
	uint64_t at; /* ms since 1970 */
	int why;     /* errno */
};
/* What it is, and what is in doubt by it. False: there is none. */
bool file_failure(struct file *file, struct failure *failure, struct dirt *doubt);
/* As if a flush had failed then, and these bytes were in doubt by it; where one has, only that they are, too. */
void file_fail(struct file *file, uint64_t at, int why, uint64_t offset, uint64_t length);
/*
 * Deal with the failure of that id: with what is in doubt, and a flush behind it. Meanwhile nobody else flushes the file. `deal` answers
 * 0 or an error; until it all succeeds, the failure stays. -ENOENT: there is none of that id; PERSIST_FAILED; and the errors of `deal`.
 */
int file_recover(struct file *file, uint64_t id, int (*deal)(struct file *, const struct dirt *, struct pmemset_error *),
		struct pmemset_error *e);

/* ---- size: under size_lock ---- */

struct growth {
	uint64_t from; /* the size before; UINT64_MAX: it did not grow */
};

/*
 * Extend to `size` and allocate what is new, so that a full disk is an error now and not a SIGBUS later; on DAX write it too, so that
 * a first store costs no journal commit. keep_free: bytes to leave on the file system. What fails is undone: -errno; -ENOSPC with
 * KEEP_FREE (value = bytes available); file_flush's errors.
 */
int file_grow(struct file *file, uint64_t size, uint64_t keep_free, struct growth *growth, struct pmemset_error *e);
/*
 * Unless a part reaches beyond the size before, as can be where somebody else had shortened the file: then what it was given back is
 * its own, and may have been written to by now. What goes wrong is added to the message.
 */
void file_ungrow(struct file *file, const struct growth *growth, struct pmemset_error *e);
/* Deallocate bytes that are within it, and allocate them again: zeros. errno. */
int file_punch(struct file *file, uint64_t offset, uint64_t length);
/* Allocate what of it is a hole; the size stays. errno. */
int file_fill_holes(struct file *file, uint64_t offset, uint64_t length);
/* A part of it was mapped, up to there. */
void file_reach(struct file *file, uint64_t end);

#endif
