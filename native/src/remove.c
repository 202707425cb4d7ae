/* SPDX-License-Identifier: BSD-3-Clause */
#include "remove.h"

#include "config.h"
#include "event.h"
#include "part.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* So often are new stores flushed that slip in between flush and freeze, before the removal is refused as "in use". */
#define FLUSHES_MAX 3

/* The parts that go from one map: whole parts, side by side. */
struct cut {
	struct range map;
	uint64_t lo, hi; /* from the first part's start to the last one's end */
	uint64_t parts;
};

/* Visits the maps that [lo, hi) touches, in address order. */
static bool next_cut(struct set *set, uint64_t from, uint64_t lo, uint64_t hi, struct cut *cut)
{
	struct range r;
	do {
		if (!index_peek(&set->index, INDEX_MAPS, from, &r) || r.lo >= hi)
			return false;
		from = r.hi;
	} while (r.object == NULL); /* a range that was lost */
	*cut = (struct cut){.map = r};
	uint64_t end = hi < r.hi ? hi : r.hi;
	for (uint64_t at = lo > r.lo ? lo : r.lo; at < end; at = cut->hi) {
		struct range part;
		if (!index_peek(&set->index, INDEX_PARTS, at, &part))
			break;
		if (cut->parts++ == 0)
			cut->lo = part.lo;
		cut->hi = part.hi;
	}
	assert(cut->parts > 0);
	return true;
}

/* ---- the report ---- */

static void row(uint64_t *rows, uint64_t max, uint64_t i, uint64_t width, const uint64_t *words)
{
	if (i < max && rows != NULL)
		for (uint64_t w = 0; w < width; w++)
			rows[i * width + w] = words[w];
}

static void report(struct set *set, const struct cut *cut, struct removal *removal)
{
	struct range part;
	for (uint64_t at = cut->lo; at < cut->hi && index_peek(&set->index, INDEX_PARTS, at, &part); at = part.hi)
		row(removal->removed_rows, removal->removed_max, removal->removed++, 3,
				(uint64_t[]){part.lo, part.hi - part.lo, atomic_load(&((struct part *)part.object)->cookie)});
	uint64_t lo = cut->map.lo;
	uint64_t hi = cut->map.hi;
	if (cut->lo > lo && cut->hi < hi)
		row(removal->split_rows, removal->split_max, removal->split++, 6,
				(uint64_t[]){lo, hi - lo, lo, cut->lo - lo, cut->hi, hi - cut->hi});
	else if (cut->lo > lo)
		row(removal->trimmed_rows, removal->trimmed_max, removal->trimmed++, 4, (uint64_t[]){lo, hi - lo, lo, cut->lo - lo});
	else if (cut->hi < hi)
		row(removal->trimmed_rows, removal->trimmed_max, removal->trimmed++, 4, (uint64_t[]){lo, hi - lo, cut->hi, hi - cut->hi});
}

/* ---- what is to be done: known before anything is in anybody's way ---- */

/* A part, and its file: the part is not to be asked once it was retired. */
struct goes {
	struct part *part;
	struct file *file;
};

/* One cut, as it is before the change. */
struct done {
	struct cut cut;
	struct goes *parts;
	struct part_map *behind; /* the new map, where the cut splits one */
	int64_t mappings;	 /* kernel mappings that it frees */
	bool stuck;		 /* it cannot be unmapped */
};

struct change {
	struct done *done;
	uint64_t count;
};

static void forget(struct change *change)
{
	for (uint64_t i = 0; i < change->count; i++)
		free(change->done[i].parts);
	free(change->done);
}

/* The index is not touched. */
static int plan(struct set *set, uint64_t lo, uint64_t hi, struct change *change)
{
	struct cut cut;
	uint64_t capacity = 0;
	for (uint64_t from = lo; next_cut(set, from, lo, hi, &cut); from = cut.map.hi)
		capacity++;
	assert(capacity > 0);
	*change = (struct change){.done = calloc(capacity, sizeof(struct done))};
	if (change->done == NULL)
		return -ENOMEM;
	for (uint64_t from = lo; change->count < capacity && next_cut(set, from, lo, hi, &cut); from = cut.map.hi) {
		struct done *done = &change->done[change->count];
		*done = (struct done){.cut = cut, .parts = calloc(cut.parts, sizeof(struct goes))};
		change->count++;
		if (done->parts == NULL)
			return -ENOMEM;
		struct range part;
		uint64_t n = 0;
		for (uint64_t at = cut.lo; n < cut.parts && index_peek(&set->index, INDEX_PARTS, at, &part); at = part.hi)
			done->parts[n++] = (struct goes){part.object, atomic_load(&((struct part *)part.object)->file)};
		/* The cut before this one, where they touch, is a fence by the time that this one goes. */
		bool touches = change->count > 1 && done[-1].cut.hi == cut.lo;
		done->mappings = part_mappings(set, cut.lo, cut.hi, cut.parts) + touches;
	}
	return 0;
}

/* ---- durable first ---- */

/* By its own stores: the file may be dirty all the time, by other parts that are written to. */
static bool is_in_question(struct part *part)
{
	struct file *file = atomic_load(&part->file);
	return atomic_load(&file->failed) != 0 || !file_has_flushed(file, atomic_load(&part->soiled));
}

static int flush_part(struct part *part, struct pmemset_error *e)
{
	return is_in_question(part) ? file_flush(atomic_load(&part->file), NULL, 0, e) : 0;
}

static int flush_parts(const struct change *change, struct pmemset_error *e)
{
	int rc = 0;
	for (uint64_t i = 0; rc == 0 && i < change->count; i++)
		for (uint64_t n = 0; rc == 0 && n < change->done[i].cut.parts; n++)
			rc = flush_part(change->done[i].parts[n].part, e);
	return rc;
}

/* What may have been stored through a pointer is as if it were stored now. */
static void soil_parts(const struct change *change)
{
	for (uint64_t i = 0; i < change->count; i++)
		for (uint64_t n = 0; n < change->done[i].cut.parts; n++)
			part_soil(change->done[i].parts[n].part);
}

/* The first map with a part that is not; NULL where there is none. */
static const struct cut *not_clean(const struct change *change)
{
	for (uint64_t i = 0; i < change->count; i++)
		for (uint64_t n = 0; n < change->done[i].cut.parts; n++)
			if (is_in_question(change->done[i].parts[n].part))
				return &change->done[i].cut;
	return NULL;
}

/* ---- freezing: for the moment of the change, nobody begins to use these maps ---- */

static struct part_map *map_of(const struct cut *cut)
{
	return cut->map.object;
}

static void unfreeze(const struct change *change, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		atomic_fetch_and(&map_of(&change->done[i].cut)->state, ~MAP_FROZEN);
}

static int in_use(const struct cut *cut, uint64_t users, struct pmemset_error *e, const char *why)
{
	error_set(e, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP, "the part map at %#" PRIx64 " has %" PRIu64 " users%s", cut->map.lo, users,
			why);
	e->addr = cut->map.lo;
	e->size = cut->map.hi - cut->map.lo;
	e->value = users;
	return e->code;
}

/* held: a map that the caller uses itself, once. */
static int freeze(const struct change *change, const struct part_map *held, struct pmemset_error *e)
{
	for (uint64_t i = 0; i < change->count; i++) {
		const struct cut *cut = &change->done[i].cut;
		uint64_t idle = map_of(cut) == held;
		if (!atomic_compare_exchange_strong(&map_of(cut)->state, &idle, idle | MAP_FROZEN)) {
			unfreeze(change, i);
			return in_use(cut, idle, e, "");
		}
	}
	return 0;
}

/* All of them frozen, and clean. */
static int freeze_clean(const struct change *change, const struct part_map *held, struct pmemset_error *e)
{
	const struct cut *dirty = NULL;
	for (int i = 0; i < FLUSHES_MAX; i++) {
		int rc = i > 0 ? flush_parts(change, e) : 0;
		if (rc == 0)
			rc = freeze(change, held, e);
		if (rc != 0)
			return rc;
		/* A store may have come since the flush; nobody can begin one now. */
		dirty = not_clean(change);
		if (dirty == NULL)
			return 0;
		unfreeze(change, change->count);
	}
	return in_use(dirty, 0, e, " now, but stores kept coming in between flush and removal");
}

/* ---- the change ---- */

static uint64_t parts_in(struct set *set, uint64_t lo, uint64_t hi)
{
	struct range part;
	uint64_t n = 0;
	for (uint64_t at = lo; at < hi && index_peek(&set->index, INDEX_PARTS, at, &part); at = part.hi)
		n++;
	return n;
}

/* A map of its own for what is behind a hole; readers find it with the commit, and may use it once its state says so. */
static struct part_map *map_behind(struct set *set, uint64_t lo, uint64_t hi)
{
	struct part_map *map = pool_take(&set->maps);
	if (map == NULL)
		return NULL;
	atomic_store(&map->state, MAP_GONE);
	atomic_store(&map->addr, lo);
	atomic_store(&map->size, hi - lo);
	atomic_store(&map->parts, parts_in(set, lo, hi));
	return map;
}

static int cut_parts(struct set *set, const struct cut *cut)
{
	struct range part;
	int rc = 0;
	for (uint64_t at = cut->lo; rc == 0 && at < cut->hi && index_peek(&set->index, INDEX_PARTS, at, &part); at = part.hi) {
		rc = index_del(&set->index, INDEX_PARTS, part.lo);
		if (rc == 0)
			rc = index_retire(&set->index, &set->parts, part.object);
	}
	return rc;
}

/* behind: the new map, where the cut splits one. */
static int cut_map(struct set *set, const struct cut *cut, bool leaves, struct part_map **behind)
{
	struct index *ix = &set->index;
	struct part_map *map = cut->map.object;
	bool before = cut->lo > cut->map.lo;
	bool after = cut->hi < cut->map.hi;
	int rc = cut_parts(set, cut);
	if (rc == 0 && before)
		rc = index_put(ix, INDEX_MAPS, cut->map.lo, cut->lo, map);
	else if (rc == 0)
		rc = index_del(ix, INDEX_MAPS, cut->map.lo);
	if (rc == 0 && !before && !after)
		rc = index_retire(ix, &set->maps, map);
	if (rc == 0 && after) {
		struct part_map *rest = map;
		if (before)
			rest = *behind = map_behind(set, cut->hi, cut->map.hi);
		rc = rest ? index_put(ix, INDEX_MAPS, cut->hi, cut->map.hi, rest) : -ENOMEM;
	}
	if (rc == 0 && leaves) /* as a lost range is: nobody finds it, and nothing is placed there */
		rc = index_put(ix, INDEX_MAPS, cut->lo, cut->hi, NULL);
	return rc;
}

/* The map below, else above; past ranges that are lost, or leaving. */
static struct part_map *neighbour(struct set *set, const struct cut *cut)
{
	struct range r;
	for (uint64_t at = cut->lo; index_before(&set->index, INDEX_MAPS, at, &r); at = r.lo)
		if (r.object != NULL)
			return r.object;
	for (uint64_t at = cut->hi; index_peek(&set->index, INDEX_MAPS, at, &r); at = r.hi)
		if (r.object != NULL)
			return r.object;
	return NULL;
}

/* After the commit: the surviving map objects say what the index says, and may be used again. */
static void settle_map(struct set *set, struct done *done)
{
	const struct cut *cut = &done->cut;
	struct part_map *map = map_of(cut);
	bool before = cut->lo > cut->map.lo;
	bool after = cut->hi < cut->map.hi;
	if (!before && !after) {
		atomic_store(&map->state, MAP_GONE);
		atomic_fetch_sub(&set->map_count, 1);
		if (set->previous == map) {
			set->previous = neighbour(set, cut);
		}
		return;
	}
	uint64_t left = atomic_load(&map->parts) - cut->parts;
	if (done->behind != NULL) {
		atomic_fetch_add(&set->map_count, 1);
		left -= atomic_load(&done->behind->parts);
	}
	atomic_store(&map->parts, left);
	atomic_store(&map->addr, before ? cut->map.lo : cut->hi);
	atomic_store(&map->size, before ? cut->lo - cut->map.lo : cut->map.hi - cut->hi);
	atomic_store(&map->state, 0);
	if (done->behind != NULL)
		atomic_store(&done->behind->state, 0);
}

static void unmap(struct set *set, struct done *done, bool leaving)
{
	struct pmemset_error ignored;
	const struct cut *cut = &done->cut;
	if (window_unmap(cut->lo, cut->hi - cut->lo) == 0)
		(void)mappings_take(-done->mappings, &ignored);
	else if (leaving)
		set->lost = done->stuck = true;
	else
		part_lose_range(set, cut->lo, cut->hi);
	atomic_fetch_sub(&set->part_count, cut->parts);
	atomic_fetch_sub(&set->mapped_bytes, cut->hi - cut->lo);
	for (uint64_t i = 0; i < cut->parts; i++)
		file_release(done->parts[i].file);
}

/* In the index, unseen until the commit. */
static int prepare(struct set *set, const struct change *change, bool leaves, struct pmemset_error *e)
{
	int rc = 0;
	for (uint64_t i = 0; rc == 0 && i < change->count; i++)
		rc = cut_map(set, &change->done[i].cut, leaves, &change->done[i].behind);
	if (rc == 0)
		rc = index_prepare(&set->index);
	return rc ? error_set(e, rc, "no memory for a removal") : 0;
}

static void drop(struct set *set, const struct change *change)
{
	index_drop(&set->index);
	for (uint64_t i = 0; i < change->count; i++)
		if (change->done[i].behind != NULL)
			pool_give(&set->maps, change->done[i].behind);
}

/* Tell of the maps that go whole. Only what cannot be found any more is in question, so the lock is not needed, and not held. */
static void tell(struct set *set, const struct change *change, const struct removal *removal)
{
	pthread_mutex_unlock(&set->lock);
	for (uint64_t i = 0; i < change->count; i++) {
		const struct cut *cut = &change->done[i].cut;
		if (cut->lo == cut->map.lo && cut->hi == cut->map.hi)
			removal->leaving(removal->leaving_arg, cut->lo, cut->hi - cut->lo);
	}
	pthread_mutex_lock(&set->lock);
}

/* Their addresses are free again. Where memory is out, they stay taken: they are fenced by now, so that costs room and no more. */
static void free_addresses(struct set *set, const struct change *change)
{
	struct index *ix = &set->index;
	int rc = 0;
	for (uint64_t i = 0; rc == 0 && i < change->count; i++)
		if (!change->done[i].stuck)
			rc = index_del(ix, INDEX_MAPS, change->done[i].cut.lo);
	if (rc == 0)
		rc = index_prepare(ix);
	if (rc == 0)
		index_commit(ix);
	else
		index_drop(ix);
}

static void end_uses(const struct change *change)
{
	for (uint64_t i = 0; i < change->count; i++)
		for (uint64_t n = 0; n < change->done[i].cut.parts; n++)
			file_end_use(change->done[i].parts[n].file, &change->done[i].parts[n].part->use);
}

static int remove_all(struct set *set, const struct change *change, const struct removal *removal, struct pmemset_error *e)
{
	bool leaves = removal->leaving != NULL;
	if (set->direct)
		soil_parts(change);
	int rc = flush_parts(change, e);
	if (rc != 0)
		return rc;
	rc = prepare(set, change, leaves, e);
	if (rc == 0)
		rc = freeze_clean(change, removal->held, e);
	if (rc != 0) {
		drop(set, change);
		return rc;
	}
	end_uses(change); /* before the parts are somebody else's memory */
	index_commit(&set->index);
	for (uint64_t i = 0; i < change->count; i++)
		settle_map(set, &change->done[i]);
	if (leaves)
		tell(set, change, removal);
	for (uint64_t i = 0; i < change->count; i++)
		unmap(set, &change->done[i], leaves);
	if (leaves)
		free_addresses(set, change);
	return 0;
}

static int remove_locked(struct set *set, uint64_t lo, uint64_t hi, bool dry_run, struct removal *removal, struct pmemset_error *e)
{
	removal->removed = removal->trimmed = removal->split = 0;
	struct cut cut;
	bool any = false;
	for (uint64_t from = lo; next_cut(set, from, lo, hi, &cut); from = cut.map.hi) {
		report(set, &cut, removal);
		any = true;
	}
	if (!any)
		return error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "the range touches no part map");
	if (dry_run)
		return 0;
	struct change change;
	int rc = plan(set, lo, hi, &change);
	rc = rc ? error_set(e, rc, "no memory for a removal") : remove_all(set, &change, removal, e);
	forget(&change);
	return rc;
}

int set_remove(struct set *set, uint64_t addr, uint64_t length, bool dry_run, struct removal *removal, struct pmemset_error *e)
{
	/* One that ends at 2^64 does not wrap; no part is so high up. */
	if (length == 0 || addr + (length - 1) < addr)
		return error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "a range of length 0, or one that wraps");
	uint64_t end = addr + length ? addr + length : UINT64_MAX;
	pthread_mutex_lock(&set->lock);
	int rc = set->ended ? error_stale(e) : remove_locked(set, addr, end, dry_run, removal, e);
	pthread_mutex_unlock(&set->lock);
	return rc;
}

int set_remove_map(struct set *set, uint64_t addr, bool dry_run, struct removal *removal, struct pmemset_error *e)
{
	struct range r;
	int rc;
	pthread_mutex_lock(&set->lock);
	if (set->ended)
		rc = error_stale(e);
	else if (!index_peek(&set->index, INDEX_MAPS, addr, &r) || r.lo != addr || r.object == NULL)
		rc = error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no part map starts at %#" PRIx64, addr);
	else
		rc = remove_locked(set, r.lo, r.hi, dry_run, removal, e);
	pthread_mutex_unlock(&set->lock);
	return rc;
}

int set_remove_held(struct set *set, struct removal *removal, struct pmemset_error *e)
{
	struct range r;
	int rc;
	pthread_mutex_lock(&set->lock);
	/* Held, so its address is its own. */
	uint64_t addr = removal->held ? atomic_load(&removal->held->addr) : 0;
	if (set->ended)
		rc = error_stale(e);
	else if (!index_peek(&set->index, INDEX_MAPS, addr, &r) || removal->held == NULL || r.object != removal->held)
		rc = error_set(e, PMEMSET_E_PART_NOT_FOUND, "the set has no such part map");
	else
		rc = remove_locked(set, r.lo, r.hi, false, removal, e);
	pthread_mutex_unlock(&set->lock);
	return rc;
}

/* Parts side by side, unmapped at once. */
static void end_run(struct set *set, uint64_t lo, uint64_t hi)
{
	struct range part;
	struct pmemset_error ignored;
	bool fenced = window_unmap(lo, hi - lo) == 0;
	int64_t parts = 0;
	for (uint64_t at = lo; index_peek(&set->index, INDEX_PARTS, at, &part) && part.lo < hi; at = part.hi, parts++) {
		struct part *ends = part.object;
		file_end_use(atomic_load(&ends->file), &ends->use);
		file_release(atomic_load(&ends->file));
	}
	if (fenced) /* and one for the fence behind it */
		(void)mappings_take(-parts - 1, &ignored);
	else
		set->lost = true;
}

int set_end_by_force(struct set *set, struct pmemset_error *e)
{
	struct range r;
	struct pmemset_error later;
	int rc = 0;
	pthread_mutex_lock(&set->lock);
	set->ended = true;
	for (uint64_t at = 0; index_peek(&set->index, INDEX_PARTS, at, &r); at = r.hi) {
		if (set->direct)
			part_soil(r.object);
		int one = flush_part(r.object, rc == 0 ? e : &later);
		rc = rc == 0 ? one : rc;
	}
	for (uint64_t at = 0; index_peek(&set->index, INDEX_PARTS, at, &r);) {
		struct range next;
		for (at = r.hi; index_peek(&set->index, INDEX_PARTS, at, &next) && next.lo == at; at = next.hi)
			;
		end_run(set, r.lo, at);
	}
	pthread_mutex_unlock(&set->lock);
	return rc;
}

int set_end(struct set *set, struct pmemset_error *e)
{
	struct removal removal = {0};
	int rc = 0;
	pthread_mutex_lock(&set->lock);
	if (set->ended)
		rc = error_stale(e);
	else if (atomic_load(&set->map_count) > 0)
		rc = remove_locked(set, set->window.addr, set->window.addr + set->window.size, false, &removal, e);
	if (rc == 0)
		set->ended = true;
	pthread_mutex_unlock(&set->lock);
	return rc;
}

/* ---- as libpmemset.h has it ---- */

static void tell_part_remove(void *arg, uint64_t addr, uint64_t size)
{
	void *at = (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the core */
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_PART_REMOVE, .data.part_remove = {at, size}};
	event_fire(arg, &event);
}

static struct removal told_removal(struct pmemset *set)
{
	return (struct removal){.leaving = set->callback ? tell_part_remove : NULL, .leaving_arg = set};
}

int pmemset_remove_part_map(struct pmemset *set, struct pmemset_part_map **pmap)
{
	struct pmemset_error e;
	struct removal removal = told_removal(set);
	removal.held = (struct part_map *)*pmap;
	int rc = set_remove_held(set->set, &removal, &e);
	if (rc != 0)
		return error_keep(&e);
	*pmap = NULL;
	return 0;
}

int pmemset_remove_range(struct pmemset *set, void *addr, size_t len)
{
	struct pmemset_error e;
	struct removal removal = told_removal(set);
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_REMOVE_RANGE, .data.remove_range = {addr, len}};
	event_fire(set, &event);
	int rc = set_remove(set->set, (uint64_t)(uintptr_t)addr, len, false, &removal, &e);
	return rc ? error_keep(&e) : 0;
}

int pmemset_remove_part(struct pmemset *set, struct pmemset_part **part)
{
	(void)set;
	(void)part;
	return config_no_support("removal of a part that is not mapped");
}
