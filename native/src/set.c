/* SPDX-License-Identifier: BSD-3-Clause */
#include "set.h"

#include "guard.h"
#include "config.h"
#include "remove.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static int check_spec(const struct set_spec *spec, struct pmemset_error *e)
{
	if (spec->required > PMEM2_GRANULARITY_PAGE)
		return error_set(e, PMEMSET_E_GRANULARITY_NOT_SUPPORTED, "unknown granularity %u", spec->required);
	if (spec->granularity != PMEMSET_GRANULARITY_UNSET && spec->granularity > spec->required)
		return error_set(e, PMEMSET_E_GRANULARITY_NOT_SUPPORTED, "granularity %u, where %u is required", spec->granularity,
				spec->required);
	if (spec->coalescing > COALESCING_FULL)
		return error_set(e, PMEMSET_E_INVALID_COALESCING_VALUE, "unknown coalescing mode %u", spec->coalescing);
	return 0;
}

static int take_window(struct set *set, const struct set_spec *spec, struct pmemset_error *e)
{
	if (set->adopted)
		return window_adopt(&set->window, spec->window_addr, spec->window_size, e);
	if (spec->window_addr != 0)
		return window_open_at(&set->window, spec->window_addr, spec->window_size, e);
	return window_open(&set->window, spec->window_size, e);
}

/* adopted: the window is another's reservation. */
static int set_make(struct set **set_out, const struct set_spec *spec, bool adopted, struct pmemset_error *e)
{
	*set_out = NULL;
	int rc = check_spec(spec, e);
	if (rc != 0)
		return rc;
	struct set *set = calloc(1, sizeof(*set));
	if (set == NULL || index_start(&set->index) != 0) {
		free(set);
		return error_set(e, -ENOMEM, "no memory for a set");
	}
	set->adopted = adopted;
	rc = take_window(set, spec, e);
	if (rc != 0) {
		index_end(&set->index);
		free(set);
		return rc;
	}
	set->required = (enum pmem2_granularity)spec->required;
	set->parts_max = spec->parts_max;
	atomic_init(&set->coalescing, spec->coalescing);
	atomic_init(&set->granularity, spec->granularity);
	pthread_mutex_init(&set->lock, NULL);
	pool_start(&set->maps, sizeof(struct part_map), 64);
	pool_start(&set->parts, sizeof(struct part), 64);
	*set_out = set;
	return 0;
}

int set_new(struct set **set_out, const struct set_spec *spec, struct pmemset_error *e)
{
	return set_make(set_out, spec, false, e);
}

int set_new_within(struct set **set_out, uint32_t required, uint64_t addr, uint64_t size, struct pmemset_error *e)
{
	const struct set_spec spec = {.window_addr = addr,
			.window_size = size,
			.required = required,
			.coalescing = COALESCING_NONE,
			.granularity = PMEMSET_GRANULARITY_UNSET};
	return set_make(set_out, &spec, true, e);
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
	struct set_spec spec = {.required = required, .coalescing = COALESCING_NONE, .granularity = PMEMSET_GRANULARITY_UNSET};
	/* No window is that large; the refusal tells the largest that there can be. */
	spec.window_size = UINT64_MAX;
	int rc = set_new(set, &spec, e);
	if (e->reason != PMEMSET_REASON_LIMIT_WINDOWS)
		return rc;
	uint64_t share = e->value / WINDOW_SHARE;
	spec.window_size = share > WINDOW_ALIGNMENT ? share : WINDOW_ALIGNMENT;
	return set_new(set, &spec, e);
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
