/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * redo.h -- the log of a volume, for batches that are all or nothing: native/redo-log.md has its file byte by byte, and why it is right.
 *
 * What such a batch is going to store is written to the log and made durable there (commit), then stored where it belongs and made durable
 * there (apply), and then struck off in the log, durably (retire). After a crash, what was committed and not retired is applied again. All the
 * while nobody else stores to these bytes (order.h).
 *
 * A log whose flush has failed may have the record or not; it is written anew, beside the old one and then in its place, before it takes
 * another. In the same way, and before anything is behind them, records that cannot be applied for now go to a place of their own in it.
 */
#ifndef PMEMSET_REDO_H
#define PMEMSET_REDO_H 1

#include "pending.h"

struct redo_log;

/* ---- of a volume ---- */

/*
 * Of the volume that dir is the directory of; one log, however often it is opened. What an earlier process has committed and not retired is
 * kept from then on. -ENOMEM; -errno. A log that cannot be read is no error here, but of each call that wants it.
 */
int redo_open(struct redo_log **opened, int dir, dev_t dev, ino_t ino, struct pmemset_error *e);
void redo_close(struct redo_log *log);
/* A file was opened that is beneath the volume: what is kept for it is held from now on. -ENOMEM */
int redo_attach(struct redo_log *log, struct file *file, struct pmemset_error *e);
/* The file takes the place of one that had this identity. -ENOMEM */
int redo_adopt(struct redo_log *log, const char *was, struct file *file, struct pmemset_error *e);

/* ---- of a batch ---- */

/* The largest record that fits. */
uint64_t redo_record_max(void);
/*
 * Durable in the log when it answers 0. The hold is active; record and files are filled. On failure nothing of it will be stored, and the log has
 * disposed of the pending: -EIO with PERSIST_FAILED; -ENOMEM with LIMIT_RECORD (value: redo_record_max); -EOPNOTSUPP: the volume was closed; -errno of
 * making the log, -ENOSPC among them (KEEP_FREE; value: what it might take).
 */
int redo_commit(struct redo_log *log, struct pending *p, struct pmemset_error *e);
/* Behind a commit. applied: it is durable where it belongs. Otherwise it is kept, and its bytes are held until redo_recover could apply it. */
void redo_end(struct redo_log *log, struct pending *p, bool applied);

/* ---- after a crash, or a failure ---- */

struct redo_counts {
	uint64_t applied, kept; /* records; of those that are kept, some files may have got theirs */
};
/*
 * Apply what is kept, as far as its files are open and can be flushed; what cannot be applied stays as it is, for the next time, and so do the bytes of
 * what was applied where the log cannot be written to say so. -EIO with PERSIST_FAILED: of the log, and nothing was applied; -EUCLEAN: it is damaged, or
 * of another version; -errno: it cannot be read.
 */
int redo_recover(struct redo_log *log, struct redo_counts *counts, struct pmemset_error *e);
/* The same, where the file's log keeps something at all, and nobody asks how it went: its failed flush was dealt with. */
void redo_recover_file(struct file *file);

/*
 * How much a log has room for at once, rounded up to pages (32 MiB before any call), and how much of the volume's capacity, in percent, it
 * leaves free where there was none. One that was made for less is made anew for a record that needs more.
 */
void redo_configure(uint64_t size, unsigned keep_free);

#endif
