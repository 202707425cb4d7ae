/* SPDX-License-Identifier: BSD-3-Clause */
#include "set.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* window: its size, and its address where it is another's. */
static int set_make(struct set **set_out, uint32_t required, uint32_t coalescing, struct window window, struct pmemset_error *e)
{
	*set_out = NULL;
	if (required > PMEM2_GRANULARITY_PAGE)
		return error_set(e, PMEMSET_E_GRANULARITY_NOT_SUPPORTED, "unknown granularity %u", required);
	if (coalescing > COALESCING_FULL)
		return error_set(e, PMEMSET_E_INVALID_COALESCING_VALUE, "unknown coalescing mode %u", coalescing);
	struct set *set = calloc(1, sizeof(*set));
	if (set == NULL || index_start(&set->index) != 0) {
		free(set);
		return error_set(e, -ENOMEM, "no memory for a set");
	}
	int rc = window.addr ? window_adopt(&set->window, window.addr, window.size, e) : window_open(&set->window, window.size, e);
	if (rc != 0) {
		index_end(&set->index);
		free(set);
		return rc;
	}
	set->required = (enum pmem2_granularity)required;
	set->adopted = window.addr != 0;
	atomic_init(&set->coalescing, coalescing);
	atomic_init(&set->granularity, PMEMSET_GRANULARITY_UNSET);
	pthread_mutex_init(&set->lock, NULL);
	pool_start(&set->maps, sizeof(struct part_map), 64);
	pool_start(&set->parts, sizeof(struct part), 64);
	*set_out = set;
	return 0;
}

int set_new(struct set **set_out, uint32_t required, uint32_t coalescing, uint64_t window_size, uint64_t parts_max, struct pmemset_error *e)
{
	int rc = set_make(set_out, required, coalescing, (struct window){.size = window_size}, e);
	if (*set_out != NULL)
		(*set_out)->parts_max = parts_max;
	return rc;
}

int set_new_within(struct set **set_out, uint32_t required, uint64_t addr, uint64_t size, struct pmemset_error *e)
{
	return set_make(set_out, required, COALESCING_NONE, (struct window){.addr = addr, .size = size}, e);
}

int set_coalescing(struct set *set, uint32_t coalescing, struct pmemset_error *e)
{
	if (coalescing > COALESCING_FULL)
		return error_set(e, PMEMSET_E_INVALID_COALESCING_VALUE, "unknown coalescing mode %u", coalescing);
	atomic_store(&set->coalescing, coalescing);
	return 0;
}

bool set_is_degraded(struct set *set)
{
	if (file_failures() == 0)
		return false;
	bool degraded = false;
	struct range r;
	for (uint64_t at = 0; !degraded && index_next(&set->index, INDEX_PARTS, at, &r); at = r.hi)
		degraded = atomic_load(&atomic_load(&((struct part *)r.object)->file)->failed) != 0;
	return degraded;
}

void set_free(struct set *set)
{
	assert(set->ended);
	if (!set->lost)
		window_close(&set->window);
	index_end(&set->index);
	pool_end(&set->maps);
	pool_end(&set->parts);
	pthread_mutex_destroy(&set->lock);
	/* What is mapped in a lost range may be anybody's, so the window is never carved again: the arena's list goes on through it. */
	if (!set->lost)
		free(set);
}
