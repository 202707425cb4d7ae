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

#include "error.h"
#include "medium.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct flush;

struct file {
	/* Set when the file is opened. */
	dev_t dev;
	ino_t ino;
	int fd; /* O_RDWR */
	struct medium medium;

	/* Its size is being changed, or relied upon by a map under way; taken after the set's structure lock. */
	pthread_mutex_t size_lock;
	_Atomic uint64_t reach; /* to where any part of it ever was */
	bool settled;		/* its first flush was made, or it is new; under size_lock */

	_Atomic int failed;    /* errno of the flush that failed; stays until it is dealt with */
	_Atomic uint64_t dirt; /* stores that were made without being flushed, counted */

	/* The flusher. */
	pthread_mutex_t lock;
	pthread_cond_t done;
	struct flush *waiting; /* for the next round */
	bool running;
	uint64_t clean; /* the count of dirt that a flush of the whole file has covered */

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

/* A stretch of the file where it is mapped: page-aligned or not, within one part. */
struct flush_range {
	uint64_t addr, length;
};

/*
 * Flush these ranges (count 0: the whole file) and wait. One flush is in flight per file; whoever arrives meanwhile shares the next.
 * The caller keeps the ranges mapped. -EIO: PERSIST_FAILED with sys_errno, or DEGRADED.
 */
int file_flush(struct file *file, const struct flush_range *ranges, size_t count, struct pmemset_error *e);

/*
 * Read or write bytes of the file past any mapping; it is never extended. LENGTH_OUT_OF_RANGE (value = its size); IO_FAIL where the medium
 * refuses; -errno.
 */
int file_read(struct file *file, char *buf, uint64_t length, uint64_t offset, struct pmemset_error *e);
int file_write(struct file *file, const char *buf, uint64_t length, uint64_t offset, struct pmemset_error *e);

/* fsync of a directory, or of a file that nobody else has, whatever signals come; errno. */
int file_sync(int fd);

/* Files in use whose flush failed: 0 in a healthy process. */
unsigned file_failures(void);

/* A store was made that no flush follows; the number that it gets. */
uint64_t file_soil(struct file *file);
/* Whether the stores up to that number are durable. */
bool file_has_flushed(struct file *file, uint64_t store);

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
/* A part of it was mapped, up to there. */
void file_reach(struct file *file, uint64_t end);

#endif
