/* SPDX-License-Identifier: BSD-3-Clause */
#include "order.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct hold *first, **last = &first; /* in the order of their coming; those that wait as well */
static struct store_under_way *stores;	    /* of whoever saw a hold and had nothing to do with it */
static _Atomic unsigned holds;

/* What this thread holds. */
static _Thread_local const struct hold *own __attribute__((tls_model("initial-exec")));

static int pending(struct pmemset_error *e)
{
	error_set(e, -EBUSY, "the bytes belong to a batch that is committed and not whole yet");
	e->reason = PMEMSET_REASON_RECOVERY_PENDING;
	return e->code;
}

/* ---- extents, in order and apart ---- */

static int by_place(const void *a, const void *b)
{
	const struct extent *x = a;
	const struct extent *y = b;
	if (x->file != y->file)
		return (uintptr_t)x->file < (uintptr_t)y->file ? -1 : 1;
	return (x->from > y->from) - (x->from < y->from);
}

static void put_in_order(struct hold *hold)
{
	size_t n = 0;
	if (hold->count > 1)
		qsort(hold->at, hold->count, sizeof(*hold->at), by_place);
	for (size_t i = 1; i < hold->count; i++) {
		struct extent *before = &hold->at[n];
		if (hold->at[i].file == before->file && hold->at[i].from <= before->to)
			before->to = hold->at[i].to > before->to ? hold->at[i].to : before->to;
		else
			hold->at[++n] = hold->at[i];
	}
	hold->count = hold->count > 0 ? n + 1 : 0;
}

int hold_add(struct hold *hold, struct file *file, uint64_t offset, uint64_t length)
{
	if (length == 0)
		return 0;
	if (hold->count == hold->capacity) {
		size_t capacity = hold->capacity ? hold->capacity * 2 : 16;
		struct extent *more = realloc(hold->at, capacity * sizeof(*more));
		if (more == NULL)
			return -ENOMEM;
		hold->at = more;
		hold->capacity = capacity;
	}
	hold->at[hold->count++] = (struct extent){file, offset, offset + length};
	return 0;
}

static bool has(const struct hold *hold, const struct file *file, uint64_t from, uint64_t to)
{
	size_t lo = 0;
	size_t hi = hold->count;
	while (lo < hi) { /* the first that ends behind `from` */
		size_t mid = lo + (hi - lo) / 2;
		const struct extent *x = &hold->at[mid];
		bool before = x->file != file ? (uintptr_t)x->file < (uintptr_t)file : x->to <= from;
		lo = before ? mid + 1 : lo;
		hi = before ? hi : mid;
	}
	return lo < hold->count && hold->at[lo].file == file && hold->at[lo].from < to;
}

static bool share(const struct hold *a, const struct hold *b)
{
	const struct hold *few = a->count < b->count ? a : b;
	const struct hold *many = few == a ? b : a;
	for (size_t i = 0; i < few->count; i++)
		if (has(many, few->at[i].file, few->at[i].from, few->at[i].to))
			return true;
	return false;
}

/* ---- whoever stores ---- */

/* Under the lock: 0 once nobody has any of it. */
static int wait_for_holds(const struct store_under_way *store, struct pmemset_error *e)
{
	for (const struct hold *h = first; h != NULL;) {
		if (!has(h, store->file, store->from, store->to)) {
			h = h->next;
		} else if (h->state == HOLD_KEPT) {
			return pending(e);
		} else {
			pthread_cond_wait(&changed, &lock);
			h = first;
		}
	}
	return 0;
}

int order_begin(struct store_under_way *store, struct file *file, uint64_t offset, uint64_t length, struct pmemset_error *e)
{
	*store = (struct store_under_way){.file = file, .from = offset, .to = offset + length};
	if (own != NULL) { /* it stores where it holds, and nowhere else */
		store->file = NULL;
		return 0;
	}
	/* Counted first and looked afterwards; who holds does it the other way round, so one of the two sees the other. */
	atomic_fetch_add(&file->storing, 1);
	if (atomic_load(&holds) == 0)
		return 0;
	atomic_fetch_sub(&file->storing, 1);
	pthread_mutex_lock(&lock);
	int rc = wait_for_holds(store, e);
	if (rc == 0) {
		store->listed = true;
		store->next = stores;
		store->link = &stores;
		if (stores != NULL)
			stores->link = &store->next;
		/* cppcheck-suppress autoVariables; its owner ends it before it goes */
		stores = store;
	} else {
		store->file = NULL;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

int order_go_on(struct store_under_way *store, struct file *file, uint64_t offset, uint64_t length, struct pmemset_error *e)
{
	if (store->file == file && !store->listed)
		return 0;
	order_end(store);
	return order_begin(store, file, offset, length, e);
}

void order_end(struct store_under_way *store)
{
	if (store->file == NULL)
		return;
	if (store->listed) {
		pthread_mutex_lock(&lock);
		*store->link = store->next;
		if (store->next != NULL)
			store->next->link = store->link;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
	} else {
		atomic_fetch_sub_explicit(&store->file->storing, 1, memory_order_release);
	}
	store->file = NULL; /* not before: whoever holds looks at those that are listed */
}

/* ---- whoever holds ---- */

static void append(struct hold *hold)
{
	hold->next = NULL;
	*last = hold;
	last = &hold->next;
	atomic_fetch_add(&holds, 1);
}

static void take_out(struct hold *hold)
{
	struct hold **link = &first;
	while (*link != hold)
		link = &(*link)->next;
	*link = hold->next;
	if (last == &hold->next)
		last = link;
	atomic_fetch_sub(&holds, 1);
	pthread_cond_broadcast(&changed);
}

static bool is_stored_to(const struct hold *hold)
{
	for (const struct store_under_way *s = stores; s != NULL; s = s->next)
		if (has(hold, s->file, s->from, s->to))
			return true;
	return false;
}

/* Under the lock: 0 once all before it have let go, and whoever saw them, and not this one, has stored. */
static int wait_for_turn(const struct hold *hold, struct pmemset_error *e)
{
	for (const struct hold *h = first; h != hold;) {
		if (!share(h, hold)) {
			h = h->next;
		} else if (h->state == HOLD_KEPT) {
			return pending(e);
		} else {
			pthread_cond_wait(&changed, &lock);
			h = first;
		}
	}
	while (is_stored_to(hold))
		pthread_cond_wait(&changed, &lock);
	return 0;
}

/* Stores that saw no hold; there are no more of them from now on. */
static void wait_for_stores(const struct hold *hold)
{
	for (size_t i = 0; i < hold->count; i++)
		while (atomic_load(&hold->at[i].file->storing) != 0)
			(void)nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

int order_hold(struct hold *hold, struct pmemset_error *e)
{
	put_in_order(hold);
	pthread_mutex_lock(&lock);
	hold->state = HOLD_WAITS;
	append(hold);
	int rc = wait_for_turn(hold, e);
	if (rc == 0)
		hold->state = HOLD_ACTIVE;
	else
		take_out(hold);
	pthread_mutex_unlock(&lock);
	if (rc != 0)
		return rc;
	wait_for_stores(hold);
	own = hold;
	return 0;
}

void order_keep(struct hold *hold)
{
	pthread_mutex_lock(&lock);
	if (hold->state == HOLD_WAITS) {
		put_in_order(hold);
		append(hold);
	}
	hold->state = HOLD_KEPT;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

void order_widen(struct hold *hold, struct hold *wider)
{
	put_in_order(wider);
	pthread_mutex_lock(&lock);
	struct extent *before = hold->at;
	hold->at = wider->at;
	hold->count = wider->count;
	hold->capacity = wider->capacity;
	if (hold->state == HOLD_WAITS)
		append(hold);
	hold->state = HOLD_KEPT;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	free(before);
}

void order_release(struct hold *hold)
{
	if (own == hold)
		own = NULL;
	pthread_mutex_lock(&lock);
	take_out(hold);
	hold->state = HOLD_WAITS;
	pthread_mutex_unlock(&lock);
}

void order_disown(void)
{
	own = NULL;
}

bool order_is_held(void)
{
	return atomic_load_explicit(&holds, memory_order_relaxed) != 0;
}
