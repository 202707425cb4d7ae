/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * logfile.h -- the file of a redo log: native/redo-log.md has it byte by byte.
 *
 * Nothing here takes a lock: redo.c knows who may use it, and when.
 */
#ifndef PMEMSET_LOGFILE_H
#define PMEMSET_LOGFILE_H 1

#include "file.h"
#include "record.h"

struct logfile {
	struct file *file; /* NULL: there is none */
	char *map;	   /* NULL: it is written and flushed by page */
	uint64_t map_size;
	uint64_t epoch, kept_size, ring_at, ring_size;
	bool read_only;		/* the volume is: what is there is seen, and stays */
	const char *unreadable; /* why, where it cannot be read; a sentence */
	int why;		/* errno */
	int dir;		/* where it is being made; -1: it is made */
};

/* ---- one that is there ---- */

/*
 * What an earlier process has left in the volume with that directory, and up to which position it was retired. None, or one that cannot be
 * read, is no error: the members say so. -ENOMEM
 */
int logfile_load(struct logfile *f, int volume, uint64_t *retired, struct pmemset_error *e);

enum log_place { LOG_KEPT, LOG_RING };

/*
 * The record at a position of the ring, or at an offset of what is kept; the caller frees its bytes, which are NULL where no whole record
 * is there. -ENOMEM. That it cannot be read is no error, as above.
 */
int logfile_read(struct logfile *f, enum log_place place, uint64_t position, struct record *record, struct pmemset_error *e);

/* From a position on, around the end of the ring if need be. -EIO with PERSIST_FAILED */
int logfile_write(const struct logfile *f, uint64_t position, const struct record *record, struct pmemset_error *e);
/* All that was written; at page granularity shared with everybody who waits for the same. -EIO with PERSIST_FAILED */
int logfile_flush(const struct logfile *f, struct pmemset_error *e);
/* Whatever another process has written, through a mapping or not; what it stored may be in a cache. -EIO with PERSIST_FAILED */
int logfile_settle(const struct logfile *f, struct pmemset_error *e);
/* Strike off everything before a position, durably. -EIO with PERSIST_FAILED */
int logfile_retire(const struct logfile *f, uint64_t position, struct pmemset_error *e);

/* Whether anybody would find it again. */
bool logfile_has_its_name(const struct logfile *f);
void logfile_close(struct logfile *f);

/* ---- a new one: made, filled with what has to be kept, and put in the old one's place by its name; or discarded ---- */

struct log_sizes {
	uint64_t kept, ring;
	unsigned keep_free; /* of the volume's capacity, in percent */
};
/* -ENOSPC, perhaps with KEEP_FREE (value: what it might take); -EIO with PERSIST_FAILED; -errno. Then there is nothing to discard. */
int logfile_make(struct logfile *f, int volume, struct log_sizes sizes, struct pmemset_error *e);
/* At an offset of what is kept. -EIO with PERSIST_FAILED */
int logfile_keep(const struct logfile *f, uint64_t at, struct record *record, struct pmemset_error *e);
/* Durable under its name when it answers 0. -EIO with PERSIST_FAILED: a crash may leave this one or the one before; -errno. */
int logfile_name(struct logfile *f, struct pmemset_error *e);
void logfile_discard(struct logfile *f);

#endif
