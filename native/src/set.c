/* SPDX-License-Identifier: BSD-3-Clause */
#include "set.h"

#include "guard.h"
#include "config.h"
#include "remove.h"

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

/* ---- as libpmemset.h has it ---- */

static pthread_rwlock_t pmemsets_lock_of_all = PTHREAD_RWLOCK_INITIALIZER;
static struct pmemset *pmemsets;

/* A window is this part of the largest range that is left, so that there is one for the next set as well. */
#define WINDOW_SHARE 16

struct pmemset *pmemsets_lock(uint64_t addr)
{
	pthread_rwlock_rdlock(&pmemsets_lock_of_all);
	for (struct pmemset *set = pmemsets; set != NULL; set = set->next)
		if (addr - set->set->window.addr < set->set->window.size)
			return set;
	pthread_rwlock_unlock(&pmemsets_lock_of_all);
	return NULL;
}

void pmemsets_unlock(void)
{
	pthread_rwlock_unlock(&pmemsets_lock_of_all);
}

/* What a service has started itself, with its own arena, stays as it is. */
static int start_engine(struct pmemset_error *e)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_mutex_lock(&lock);
	int rc = arena()->size == 0 ? arena_start(0, 0, 0, e) : 0;
	if (rc == 0)
		rc = guard_start(e);
	pthread_mutex_unlock(&lock);
	return rc;
}

static int new_in_arena(struct set **set, uint32_t required, struct pmemset_error *e)
{
	/* No window is that large; the refusal tells the largest that there can be. */
	int rc = set_new(set, required, COALESCING_NONE, UINT64_MAX, 0, e);
	if (e->reason != PMEMSET_REASON_LIMIT_WINDOWS)
		return rc;
	uint64_t share = e->value / WINDOW_SHARE;
	share = share > WINDOW_ALIGNMENT ? share : WINDOW_ALIGNMENT;
	return set_new(set, required, COALESCING_NONE, share, 0, e);
}

static int new_in_reservation(struct set **set, uint32_t required, struct pmem2_vm_reservation *rsv, struct pmemset_error *e)
{
	struct pmem2_map *map;
	uint64_t addr = (uint64_t)(uintptr_t)pmem2_vm_reservation_get_address(rsv);
	if (pmem2_vm_reservation_map_find_first(rsv, &map) == 0)
		return error_set(e, -EBUSY, "libpmem2 has mapped something into the reservation");
	return set_new_within(set, required, addr, pmem2_vm_reservation_get_size(rsv), e);
}

int pmemset_new(struct pmemset **set, struct pmemset_config *cfg)
{
	struct pmemset_error e;
	*set = NULL;
	if (cfg->required == PMEMSET_GRANULARITY_UNSET) {
		error_set(&e, PMEMSET_E_GRANULARITY_NOT_SET, "the config has no required granularity");
		return error_keep(&e);
	}
	struct pmemset *made = malloc(sizeof(*made));
	if (made == NULL)
		return error_set(&e, -ENOMEM, "no memory for a set"), error_keep(&e);
	struct set *core = NULL;
	if (start_engine(&e) == 0)
		(void)(cfg->reservation ? new_in_reservation(&core, cfg->required, cfg->reservation, &e)
					: new_in_arena(&core, cfg->required, &e));
	if (core == NULL) {
		free(made);
		return error_keep(&e);
	}
	core->direct = true;
	*made = (struct pmemset){.set = core, .callback = cfg->callback, .callback_arg = cfg->callback_arg};
	pthread_rwlock_wrlock(&pmemsets_lock_of_all);
	made->next = pmemsets;
	pmemsets = made;
	pthread_rwlock_unlock(&pmemsets_lock_of_all);
	*set = made;
	return 0;
}

int pmemset_delete(struct pmemset **set)
{
	struct pmemset_error e;
	struct pmemset *old = *set;
	if (old == NULL)
		return 0;
	pthread_rwlock_wrlock(&pmemsets_lock_of_all);
	struct pmemset **link = &pmemsets;
	while (*link != old)
		link = &(*link)->next;
	*link = old->next;
	pthread_rwlock_unlock(&pmemsets_lock_of_all);
	int rc = set_end_by_force(old->set, &e);
	set_free(old->set);
	free(old);
	*set = NULL;
	return rc ? error_keep(&e) : 0;
}

int pmemset_set_contiguous_part_coalescing(struct pmemset *set, bool value)
{
	atomic_store(&set->set->coalescing, value ? COALESCING_FULL : COALESCING_NONE);
	return 0;
}

static_assert((int)PMEMSET_COALESCING_NONE == (int)COALESCING_NONE &&
				(int)PMEMSET_COALESCING_OPPORTUNISTIC == (int)COALESCING_OPPORTUNISTIC &&
				(int)PMEMSET_COALESCING_FULL == (int)COALESCING_FULL,
		"one numbering");

int pmemset_set_part_coalescing(struct pmemset *set, enum pmemset_coalescing value)
{
	struct pmemset_error e;
	return set_coalescing(set->set, value, &e) ? error_keep(&e) : 0;
}

int pmemset_get_store_granularity(struct pmemset *set, enum pmem2_granularity *g)
{
	struct pmemset_error e;
	uint32_t granularity = atomic_load(&set->set->granularity);
	if (granularity == PMEMSET_GRANULARITY_UNSET) {
		error_set(&e, PMEMSET_E_NO_PART_MAPPED, "nothing was mapped yet");
		return error_keep(&e);
	}
	*g = (enum pmem2_granularity)granularity;
	return 0;
}
