/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pending.h -- a batch that is all or nothing, from its first look at the bytes until no log has it any more: its record, the files that it names, and
 * the hold on their bytes.
 *
 * Of the batches of another life of the process, only the records are left; their files are found again one after the other.
 */
#ifndef PMEMSET_PENDING_H
#define PMEMSET_PENDING_H 1

#include "order.h"
#include "record.h"

struct pending {
	struct hold hold;
	struct record record;
	struct file **files; /* each held, by row of the record (NULL: not open); then those that it only reads */
	uint32_t file_count; /* in the record */
	uint32_t held_count; /* in all */

	/* The log's, from the commit on. */
	int state;
	uint64_t end; /* the position behind it */
	struct pending *next;
};

/* Of a record that was read, whose bytes it takes over, also on failure; NULL: no memory. */
struct pending *pending_of(struct record *record);
/* Its bytes are let go, and its files. */
void pending_free(struct pending *p);

/* If it names the file, that is held, and so are its bytes: whoever stores there is refused (order_keep). -ENOMEM */
int pending_attach(struct pending *p, struct file *file, struct pmemset_error *e);
/* Where a file that is not open had this identity, it is this one from now on. Whether the record has changed. */
bool pending_adopt(struct pending *p, const char *was, const struct file *file);

/*
 * Store what it has for each file that is open and can be flushed, and flush that. True: each file has got it. Otherwise *rest is what is left, held
 * as above, where some have got theirs; NULL: none has, or there was no memory for it.
 */
bool pending_apply(const struct pending *p, struct pending **rest);

#endif
