/* SPDX-License-Identifier: BSD-3-Clause */
#include "remove.h"

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

/* ---- durable first ---- */

/* By its own stores: the file may be dirty all the time, by other parts that are written to. */
static bool is_in_question(struct part *part)
{
	struct file *file = atomic_load(&part->file);
	return atomic_load(&file->failed) != 0 || !file_has_flushed(file, atomic_load(&part->soiled));
}

/* Calls visit for each part that goes, until one does not return 0. */
static int each_part(struct set *set, uint64_t lo, uint64_t hi, int (*visit)(struct part *, struct pmemset_error *),
		struct pmemset_error *e)
{
	struct cut cut;
	struct range r;
	int rc = 0;
	for (uint64_t from = lo; rc == 0 && next_cut(set, from, lo, hi, &cut); from = cut.map.hi)
		for (uint64_t at = cut.lo; rc == 0 && at < cut.hi && index_peek(&set->index, INDEX_PARTS, at, &r); at = r.hi)
			rc = visit(r.object, e);
	return rc;
}

static int flush_part(struct part *part, struct pmemset_error *e)
{
	return is_in_question(part) ? file_flush(atomic_load(&part->file), NULL, 0, e) : 0;
}

static int is_clean(struct part *part, struct pmemset_error *e)
{
	(void)e;
	return is_in_question(part) ? -EAGAIN : 0;
}

/* ---- freezing: for the moment of the change, nobody begins to use these maps ---- */

static void unfreeze(struct set *set, uint64_t lo, uint64_t hi, uint64_t up_to)
{
	struct cut cut;
	for (uint64_t from = lo; from < up_to && next_cut(set, from, lo, hi, &cut); from = cut.map.hi)
		if (cut.map.lo < up_to)
			atomic_store(&((struct part_map *)cut.map.object)->state, 0);
}

static int freeze(struct set *set, uint64_t lo, uint64_t hi, struct pmemset_error *e)
{
	struct cut cut;
	for (uint64_t from = lo; next_cut(set, from, lo, hi, &cut); from = cut.map.hi) {
		struct part_map *map = cut.map.object;
		uint64_t idle = 0;
		if (!atomic_compare_exchange_strong(&map->state, &idle, MAP_FROZEN)) {
			unfreeze(set, lo, hi, cut.map.lo);
			error_set(e, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP, "the part map at %#" PRIx64 " has %" PRIu64 " users",
					cut.map.lo, idle);
			e->addr = cut.map.lo;
			e->size = cut.map.hi - cut.map.lo;
			e->value = idle;
			return e->code;
		}
	}
	return 0;
}

static int flush_and_freeze(struct set *set, uint64_t lo, uint64_t hi, struct pmemset_error *e)
{
	for (int i = 0; i < FLUSHES_MAX; i++) {
		int rc = each_part(set, lo, hi, flush_part, e);
		if (rc == 0)
			rc = freeze(set, lo, hi, e);
		if (rc != 0)
			return rc;
		/* A store may have come in between; nobody can begin one now. */
		if (each_part(set, lo, hi, is_clean, e) == 0)
			return 0;
		unfreeze(set, lo, hi, UINT64_MAX);
	}
	return error_set(e, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP, "stores kept coming in between flush and removal");
}

/* ---- the change ---- */

/* A map of its own for what is behind a hole; readers find it with the commit, and may use it once its state says so. */
static struct part_map *map_behind(struct set *set, uint64_t lo, uint64_t hi)
{
	struct part_map *map = pool_take(&set->maps);
	if (map == NULL)
		return NULL;
	atomic_store(&map->state, MAP_GONE);
	atomic_store(&map->addr, lo);
	atomic_store(&map->size, hi - lo);
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
static int cut_map(struct set *set, const struct cut *cut, struct part_map **behind)
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
	return rc;
}

/* One cut as it was before the change, for what follows the commit. */
struct done {
	struct cut cut;
	struct part_map *behind;
	struct file **files;
	int64_t mappings; /* kernel mappings that it frees */
};

static uint64_t parts_in(struct set *set, uint64_t lo, uint64_t hi)
{
	struct range part;
	uint64_t n = 0;
	for (uint64_t at = lo; at < hi && index_peek(&set->index, INDEX_PARTS, at, &part); at = part.hi)
		n++;
	return n;
}

/* After the commit: the surviving map objects say what the index says, and may be used again. */
static void settle_map(struct set *set, struct done *done)
{
	const struct cut *cut = &done->cut;
	struct part_map *map = cut->map.object;
	bool before = cut->lo > cut->map.lo;
	bool after = cut->hi < cut->map.hi;
	if (!before && !after) {
		atomic_store(&map->state, MAP_GONE);
		atomic_fetch_sub(&set->map_count, 1);
		if (set->previous == map) {
			struct range r;
			bool found = index_before(&set->index, INDEX_MAPS, cut->lo, &r) && r.object != NULL;
			if (!found)
				found = index_peek(&set->index, INDEX_MAPS, cut->hi, &r) && r.object != NULL;
			set->previous = found ? r.object : NULL;
		}
		return;
	}
	uint64_t left = atomic_load(&map->parts) - cut->parts;
	if (done->behind != NULL) {
		uint64_t behind = parts_in(set, cut->hi, cut->map.hi);
		atomic_store(&done->behind->parts, behind);
		atomic_fetch_add(&set->map_count, 1);
		left -= behind;
	}
	atomic_store(&map->parts, left);
	atomic_store(&map->addr, before ? cut->map.lo : cut->hi);
	atomic_store(&map->size, before ? cut->lo - cut->map.lo : cut->map.hi - cut->hi);
	atomic_store(&map->state, 0);
	if (done->behind != NULL)
		atomic_store(&done->behind->state, 0);
}

static void unmap(struct set *set, struct done *done)
{
	struct pmemset_error ignored;
	const struct cut *cut = &done->cut;
	if (window_unmap(cut->lo, cut->hi - cut->lo) == 0)
		(void)mappings_take(-done->mappings, &ignored);
	else
		part_lose_range(set, cut->lo, cut->hi);
	atomic_fetch_sub(&set->part_count, cut->parts);
	atomic_fetch_sub(&set->mapped_bytes, cut->hi - cut->lo);
	for (uint64_t i = 0; i < cut->parts; i++)
		file_release(done->files[i]);
}

static void free_done(struct done *done, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		free(done[i].files);
	free(done);
}

/* What the change needs to remember; the index is not touched. */
static struct done *plan(struct set *set, uint64_t lo, uint64_t hi, uint64_t count)
{
	struct done *done = calloc(count, sizeof(*done));
	uint64_t i = 0;
	for (uint64_t from = lo; done != NULL && i < count && next_cut(set, from, lo, hi, &done[i].cut); i++) {
		struct cut *cut = &done[i].cut;
		from = cut->map.hi;
		done[i].files = calloc(cut->parts, sizeof(struct file *));
		if (done[i].files == NULL) {
			free_done(done, count);
			return NULL;
		}
		struct range part;
		uint64_t n = 0;
		for (uint64_t at = cut->lo; n < cut->parts && index_peek(&set->index, INDEX_PARTS, at, &part); at = part.hi)
			done[i].files[n++] = atomic_load(&((struct part *)part.object)->file);
		/* The cut before this one, where they touch, is a fence by the time that this one goes. */
		bool touches = i > 0 && done[i - 1].cut.hi == cut->lo;
		done[i].mappings = part_mappings(set, cut->lo, cut->hi, cut->parts) + touches;
	}
	return done;
}

static int remove_frozen(struct set *set, uint64_t lo, uint64_t hi, uint64_t count, struct pmemset_error *e)
{
	struct done *done = plan(set, lo, hi, count);
	int rc = done ? 0 : -ENOMEM;
	for (uint64_t i = 0; rc == 0 && i < count; i++)
		rc = cut_map(set, &done[i].cut, &done[i].behind);
	if (rc == 0)
		rc = index_prepare(&set->index);
	if (rc != 0) {
		index_drop(&set->index);
		for (uint64_t i = 0; done != NULL && i < count; i++)
			if (done[i].behind != NULL)
				pool_give(&set->maps, done[i].behind);
		if (done != NULL)
			free_done(done, count);
		unfreeze(set, lo, hi, UINT64_MAX);
		return error_set(e, rc, "no memory for a removal");
	}
	index_commit(&set->index);
	for (uint64_t i = 0; i < count; i++)
		settle_map(set, &done[i]);
	for (uint64_t i = 0; i < count; i++)
		unmap(set, &done[i]);
	free_done(done, count);
	return 0;
}

static int remove_locked(struct set *set, uint64_t lo, uint64_t hi, bool dry_run, struct removal *removal, struct pmemset_error *e)
{
	removal->removed = removal->trimmed = removal->split = 0;
	struct cut cut;
	uint64_t count = 0;
	for (uint64_t from = lo; next_cut(set, from, lo, hi, &cut); from = cut.map.hi) {
		report(set, &cut, removal);
		count++;
	}
	if (count == 0)
		return error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "the range touches no part map");
	if (dry_run)
		return 0;
	int rc = flush_and_freeze(set, lo, hi, e);
	return rc ? rc : remove_frozen(set, lo, hi, count, e);
}

static int ended(struct pmemset_error *e)
{
	return error_set(e, -EBADF, "the set is being deleted");
}

int set_remove(struct set *set, uint64_t addr, uint64_t length, bool dry_run, struct removal *removal, struct pmemset_error *e)
{
	if (length == 0 || addr + length < addr)
		return error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "a range of length 0, or one that wraps");
	pthread_mutex_lock(&set->lock);
	int rc = set->ended ? ended(e) : remove_locked(set, addr, addr + length, dry_run, removal, e);
	pthread_mutex_unlock(&set->lock);
	return rc;
}

int set_remove_map(struct set *set, uint64_t addr, bool dry_run, struct removal *removal, struct pmemset_error *e)
{
	struct range r;
	int rc;
	pthread_mutex_lock(&set->lock);
	if (set->ended)
		rc = ended(e);
	else if (!index_peek(&set->index, INDEX_MAPS, addr, &r) || r.lo != addr || r.object == NULL)
		rc = error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no part map starts at %#" PRIx64, addr);
	else
		rc = remove_locked(set, r.lo, r.hi, dry_run, removal, e);
	pthread_mutex_unlock(&set->lock);
	return rc;
}

int set_end(struct set *set, struct pmemset_error *e)
{
	struct removal removal = {0};
	int rc = 0;
	pthread_mutex_lock(&set->lock);
	if (set->ended)
		rc = ended(e);
	else if (atomic_load(&set->map_count) > 0)
		rc = remove_locked(set, set->window.addr, set->window.addr + set->window.size, false, &removal, e);
	if (rc == 0)
		set->ended = true;
	pthread_mutex_unlock(&set->lock);
	return rc;
}
