/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * order.h -- stores, and the batches that are all or nothing: who waits for whom.
 *
 * Such a batch holds the bytes that it has to do with, from before it looks at them until nothing would replay it any more. A store of somebody
 * else's to bytes that are held waits: if it came in between, a replay after a crash would undo it. Whoever stores says so before and
 * after, so that a batch begins behind the stores that did not see it come. Loads wait for nobody.
 *
 * Bytes are those of a file, not addresses, for two parts may have the same ones. Stores through a program's own pointers are seen by nobody.
 */
#ifndef PMEMSET_ORDER_H
#define PMEMSET_ORDER_H 1

#include "file.h"

#include <stddef.h>

/* ---- whoever stores ---- */

/* Its owner's, from order_begin to order_end. */
struct store_under_way {
	struct file *file; /* NULL: there is nothing to be ended */
	uint64_t from, to;
	bool listed;
	struct store_under_way *next, **link;
};

/*
 * Before bytes are stored, and behind it; nothing in between waits for a batch. While nobody holds anything, it costs a count up and one down.
 * -EBUSY with RECOVERY_PENDING: they belong to a batch that is committed and cannot be made whole for now.
 */
int order_begin(struct store_under_way *store, struct file *file, uint64_t offset, uint64_t length, struct pmemset_error *e);
/*
 * The same for stores in a row: one that is under way to the same file, and saw no batch, goes on. (Counting waits for the flushes of the
 * store before, which otherwise go on side by side.) It begins as {.file = NULL}, and is ended before the thread waits for anything that a
 * batch may hold up, since that may be waiting for it.
 */
int order_go_on(struct store_under_way *store, struct file *file, uint64_t offset, uint64_t length, struct pmemset_error *e);
/* Once, or more often. */
void order_end(struct store_under_way *store);

/* ---- whoever holds ---- */

struct extent {
	struct file *file;
	uint64_t from, to;
};

enum hold_state { HOLD_WAITS, HOLD_ACTIVE, HOLD_KEPT };

struct hold {
	struct extent *at; /* the owner frees it */
	size_t count, capacity;
	enum hold_state state;
	struct hold *next;
};

/* -ENOMEM */
int hold_add(struct hold *hold, struct file *file, uint64_t offset, uint64_t length);
/*
 * All of it at once, behind whoever came before and has some of it. From then on the thread may store there itself, until the hold is
 * released or kept, which it does before anything else. -EBUSY with RECOVERY_PENDING, and nothing is held.
 */
int order_hold(struct hold *hold, struct pmemset_error *e);
/* Stores there, and holds, are refused from now on and do not wait. A hold that is new is taken at once, whatever else is held. */
void order_keep(struct hold *hold);
/* The same with what `wider` has in the place of its own, and no moment in between; wider's memory is the hold's from then on. */
void order_widen(struct hold *hold, struct hold *wider);
void order_release(struct hold *hold);
/* The thread's own stores wait for its hold as everybody's do. */
void order_disown(void);
/* Whether anything is held at all: then a store may have to wait. */
bool order_is_held(void);

#endif
