/* SPDX-License-Identifier: BSD-3-Clause */
#include "part.h"

#include "config.h"
#include "event.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* On DAX new pages are mapped at once up to this much; further ones when they are touched. */
#define POPULATE_MAX (256 * MIB)

/* One map under way; what of it has been done is what undo() takes back. */
struct mapping {
	struct set *set;
	struct source *source;
	const struct part_spec *spec;
	uint64_t length;
	uint64_t addr;
	struct part_map *append_to; /* NULL: a map of its own */
	int64_t mappings;
	struct growth growth;
	bool kept; /* the range was kept for it */
	bool mapped;
	struct part_map *map; /* new, or append_to */
	struct part *part;
};

/* What was entered into the index, and is not committed. */
struct placed {
	uint64_t addr, length;
	struct part *part; /* NULL: the range was lost */
	struct part_map *map;
	int64_t mappings;
	bool appended;
};

static uint64_t page_size(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

int64_t part_mappings(struct set *set, uint64_t lo, uint64_t hi, uint64_t parts)
{
	struct range r;
	bool fence_before = !(index_before(&set->index, INDEX_PARTS, lo, &r) && r.hi == lo);
	bool fence_behind = !(index_peek(&set->index, INDEX_PARTS, hi, &r) && r.lo == hi);
	/* `parts` mappings, where one fence was there are now as many as there are gaps left. */
	return (int64_t)parts - 1 + fence_before + fence_behind;
}

void part_soil(struct part *part)
{
	part_soil_range(part, atomic_load(&part->offset), atomic_load(&part->length), UINT64_MAX);
}

void part_soil_range(struct part *part, uint64_t offset, uint64_t length, uint64_t since)
{
	uint64_t store = file_soil(atomic_load(&part->file), offset, length, since);
	uint64_t last = atomic_load(&part->soiled);
	while (last < store && !atomic_compare_exchange_weak(&part->soiled, &last, store))
		;
}

void part_lose_range(struct set *set, uint64_t lo, uint64_t hi)
{
	set->lost = true;
	if (index_put(&set->index, INDEX_MAPS, lo, hi, NULL) == 0 && index_prepare(&set->index) == 0)
		index_commit(&set->index);
	else
		index_drop(&set->index);
}

/* ---- checks that change nothing ---- */

static int check_range(struct mapping *m, struct pmemset_error *e)
{
	const struct part_spec *spec = m->spec;
	uint64_t size = m->source->size;
	uint64_t page = page_size();
	if (spec->offset > INT64_MAX)
		return error_set(e, PMEMSET_E_INVALID_OFFSET_VALUE, "offset %" PRIu64 " is above INT64_MAX", spec->offset);
	if (spec->offset % page != 0) {
		error_set(e, PMEMSET_E_INVALID_PMEM2_MAP, "offset %" PRIu64 " is not a multiple of %" PRIu64, spec->offset, page);
		e->cause = PMEM2_E_OFFSET_UNALIGNED;
		e->value = page;
		return e->code;
	}
	m->length = spec->length;
	if (m->length == 0) {
		if (spec->offset >= size)
			return error_set(e, PMEMSET_E_MAP_LENGTH_UNSET, "no length, and the source ends at %" PRIu64, size);
		m->length = size - spec->offset;
	}
	if (m->length % page != 0) {
		error_set(e, PMEMSET_E_LENGTH_UNALIGNED, "length %" PRIu64 " is not a multiple of %" PRIu64, m->length, page);
		e->value = page;
		return e->code;
	}
	bool beyond = m->length > INT64_MAX - spec->offset || spec->offset + m->length > size;
	if (beyond && (!(spec->grow || m->source->makes) || m->length > INT64_MAX - spec->offset)) {
		error_set(e, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, "the source has %" PRIu64 " bytes and may not grow to hold the range",
				size);
		e->value = size;
		return e->code;
	}
	return 0;
}

static int check_limits(struct mapping *m, struct pmemset_error *e)
{
	struct set *set = m->set;
	/* The limit is for new ones. */
	if (m->spec->at == 0 && set->parts_max != 0 && atomic_load(&set->part_count) >= set->parts_max) {
		error_set(e, -ENOMEM, "the set has %" PRIu64 " parts, its limit", set->parts_max);
		e->reason = PMEMSET_REASON_LIMIT_PARTS;
		e->value = set->parts_max;
		return -ENOMEM;
	}
	/* As many as a place can cost; what it does not cost is given back when the place is known. */
	m->mappings = 2;
	int rc = mappings_take(m->mappings, e);
	if (rc != 0)
		m->mappings = 0;
	return rc;
}

/* ---- placement ---- */

static bool place_behind_previous(struct mapping *m)
{
	struct set *set = m->set;
	uint64_t end = atomic_load(&set->previous->addr) + atomic_load(&set->previous->size);
	uint64_t limit = set->window.addr + set->window.size;
	struct range next;
	if (index_peek(&set->index, INDEX_MAPS, end, &next))
		limit = next.lo;
	if (limit < end || limit - end < m->length)
		return false;
	m->addr = end;
	m->append_to = set->previous;
	return true;
}

/* Congruent with the offset in units of huge pages where the part has any: a condition for the kernel to use them. */
static bool place_anywhere(struct mapping *m)
{
	static const uint64_t units[] = {GIB, 2 * MIB};
	struct set *set = m->set;
	uint64_t from = set->window.addr;
	uint64_t to = from + set->window.size;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		if (m->length < units[i] || set->adopted) /* whoever reserved the range counts on the whole of it */
			continue;
		m->addr = index_fit(&set->index, from, to, m->length, units[i], m->spec->offset % units[i]);
		if (m->addr != UINT64_MAX)
			return true;
	}
	m->addr = index_fit(&set->index, from, to, m->length, page_size(), 0);
	return m->addr != UINT64_MAX;
}

static int not_there(uint64_t addr, int32_t cause, const char *why, struct pmemset_error *e)
{
	error_set(e, PMEMSET_E_INVALID_PMEM2_MAP, "no part can be restored at %#" PRIx64 ": %s", addr, why);
	e->cause = cause;
	return e->code;
}

/* A kept range, whole. */
static bool is_kept(struct set *set, uint64_t lo, uint64_t length)
{
	struct range r;
	return index_peek(&set->index, INDEX_MAPS, lo, &r) && r.object == NULL && r.lo == lo && r.hi - r.lo == length &&
	       (!set->lost || window_is_fenced(lo, length));
}

/* Whether a part can be there; *kept: in a range that was kept for it. */
static int check_there(struct set *set, uint64_t addr, uint64_t length, bool *kept, struct pmemset_error *e)
{
	const struct window *w = &set->window;
	uint64_t page = page_size();
	struct range r;
	*kept = false;
	if (addr % page != 0 || length % page != 0 || length == 0) {
		not_there(addr, PMEM2_E_ADDRESS_UNALIGNED, "it is not of whole pages", e);
		e->value = page;
		return e->code;
	}
	if (addr < w->addr || length > w->size || addr - w->addr > w->size - length)
		return error_set(e, PMEMSET_E_CANNOT_FIT_PART_MAP, "%" PRIu64 " bytes at %#" PRIx64 " are not in the window", length, addr);
	if (!index_peek(&set->index, INDEX_MAPS, addr, &r) || r.lo >= addr + length)
		return 0;
	*kept = is_kept(set, addr, length);
	return *kept ? 0 : not_there(addr, PMEM2_E_MAPPING_EXISTS, "something else is there", e);
}

/* An older one, for a younger one that ends there came to its place when this part was there already. */
static struct part_map *map_to_join(struct set *set, const struct part_spec *spec)
{
	struct range part;
	struct range map;
	if (!spec->joins || !index_before(&set->index, INDEX_PARTS, spec->at, &part) || part.hi != spec->at ||
			atomic_load(&((struct part *)part.object)->cookie) >= spec->cookie)
		return NULL;
	return index_before(&set->index, INDEX_MAPS, spec->at, &map) ? map.object : NULL;
}

static bool place_somewhere(struct mapping *m, struct pmemset_error *e)
{
	struct set *set = m->set;
	uint32_t mode = atomic_load(&set->coalescing);
	if (mode != COALESCING_NONE && set->previous != NULL && place_behind_previous(m))
		return true;
	if (mode == COALESCING_FULL && set->previous != NULL) {
		error_set(e, PMEMSET_E_CANNOT_COALESCE_PARTS, "no room for %" PRIu64 " bytes behind the previous part map", m->length);
		return false;
	}
	if (place_anywhere(m))
		return true;
	error_set(e, PMEMSET_E_CANNOT_FIT_PART_MAP, "no gap of %" PRIu64 " bytes in the window", m->length);
	e->value = index_largest_gap(&set->index, set->window.addr, set->window.addr + set->window.size);
	return false;
}

static int place(struct mapping *m, struct pmemset_error *e)
{
	struct set *set = m->set;
	if (m->spec->at != 0) {
		m->addr = m->spec->at;
		m->append_to = map_to_join(set, m->spec);
	} else if (!place_somewhere(m, e)) {
		return e->code;
	}
	int64_t cost = part_mappings(set, m->addr, m->addr + m->length, 1);
	assert(cost <= m->mappings);
	(void)mappings_take(cost - m->mappings, e);
	m->mappings = cost;
	return 0;
}

/* ---- changes, each undone if a later one fails ---- */

static int grow(struct mapping *m, struct pmemset_error *e)
{
	struct source *source = m->source;
	if (source->makes) {
		int rc = source_make(source, e);
		if (rc != 0)
			return rc;
	}
	assert(source->file != NULL);
	if (!source->makes && m->spec->offset + m->length <= source->size) /* asked for since the file's size was locked */
		return 0;
	int rc = file_grow(source->file, m->spec->offset + m->length, m->spec->keep_free, &m->growth, e);
	if (rc != 0)
		rc = e->code = PMEMSET_E_CANNOT_GROW_SOURCE_FILE;
	return rc;
}

static int32_t cause_of_mmap(int why)
{
	switch (why) {
	case EACCES:
		return PMEM2_E_NO_ACCESS;
	case ENOTSUP:
		return PMEM2_E_NOSUPP;
	case EEXIST:
		return PMEM2_E_MAPPING_EXISTS;
	default:
		return 0;
	}
}

static int map_pages(struct mapping *m, struct pmemset_error *e)
{
	const struct file *file = m->source->file;
	/* MAP_SYNC is known to work here: a refusal with MAP_FIXED would tear a hole into the window. */
	int flags = file->medium.map_sync ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
	int why = window_map(m->addr, m->length, file->fd, m->spec->offset, flags);
	if (why == 0) {
		void *addr = (void *)(uintptr_t)m->addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the core */
		m->mapped = true;
		uint64_t populate = m->length < POPULATE_MAX ? m->length : POPULATE_MAX;
		if (file->medium.map_sync && m->growth.from != UINT64_MAX)
			(void)madvise(addr, populate, MADV_POPULATE_WRITE);
		return 0;
	}
	error_sys(e, PMEMSET_E_INVALID_PMEM2_MAP, why > 0 ? why : EEXIST, "mmap: %s", strerror(why > 0 ? why : EEXIST));
	e->cause = cause_of_mmap(why);
	if (why < 0) {
		e->reason = PMEMSET_REASON_RANGE_LOST;
		e->addr = m->addr;
		e->size = m->length;
	}
	return e->code;
}

static uint32_t available_granularity(const struct mapping *m)
{
	return m->spec->forced ? *m->spec->forced : m->source->file->medium.granularity;
}

static int check_granularity(struct mapping *m, struct pmemset_error *e)
{
	uint32_t available = available_granularity(m);
	uint32_t effective = atomic_load(&m->set->granularity);
	int code = 0;
	if (available > (uint32_t)m->set->required) {
		code = PMEMSET_E_GRANULARITY_NOT_SUPPORTED;
		error_set(e, code, "%s", m->source->file->medium.why_granularity);
		e->cause = PMEM2_E_GRANULARITY_NOT_SUPPORTED;
	} else if (effective != PMEMSET_GRANULARITY_UNSET && available != effective) {
		code = PMEMSET_E_GRANULARITY_MISMATCH;
		error_set(e, code, "the set's granularity is %u, this part's %u", effective, available);
	}
	if (code != 0)
		e->granularity = available;
	return code;
}

/* Into the index, unseen until the commit. -ENOMEM: the open change is to be dropped. */
static int enter(struct mapping *m, struct pmemset_error *e)
{
	struct set *set = m->set;
	uint64_t end = m->addr + m->length;
	m->part = pool_take(&set->parts);
	m->map = m->append_to ? m->append_to : pool_take(&set->maps);
	if (m->part == NULL || m->map == NULL)
		return error_set(e, -ENOMEM, "no memory for a part");
	atomic_store(&m->part->addr, m->addr);
	atomic_store(&m->part->length, m->length);
	atomic_store(&m->part->offset, m->spec->offset);
	atomic_store(&m->part->cookie, m->spec->cookie);
	atomic_store(&m->part->file, m->source->file);
	atomic_store(&m->part->soiled, 0);
	uint64_t start = m->addr;
	if (m->append_to != NULL) {
		start = atomic_load(&m->map->addr);
	} else {
		atomic_store(&m->map->state, MAP_GONE);
		atomic_store(&m->map->addr, m->addr);
		atomic_store(&m->map->size, 0);
		atomic_store(&m->map->parts, 0);
	}
	if ((m->kept && index_del(&set->index, INDEX_MAPS, m->addr) != 0) ||
			index_put(&set->index, INDEX_PARTS, m->addr, end, m->part) != 0 ||
			index_put(&set->index, INDEX_MAPS, start, end, m->map) != 0)
		return error_set(e, -ENOMEM, "no memory for the index");
	return 0;
}

static struct placed placed_by(const struct mapping *m)
{
	return (struct placed){.addr = m->addr,
			.length = m->length,
			.part = m->part,
			.map = m->map,
			.mappings = m->mappings,
			.appended = m->append_to != NULL};
}

/* Before the commit, and nothing fails any more. */
static void settle(struct set *set, const struct placed *p)
{
	struct part *part = p->part;
	struct file *file = atomic_load(&part->file);
	uint64_t offset = atomic_load(&part->offset);
	file_hold(file);
	part->use = (struct file_use){.addr = p->addr, .length = p->length, .offset = offset, .direct = set->direct};
	file_add_use(file, &part->use);
	file_reach(file, offset + p->length);
	if (!p->appended)
		atomic_fetch_add(&set->map_count, 1);
	atomic_fetch_add(&p->map->size, p->length);
	atomic_fetch_add(&p->map->parts, 1);
	atomic_fetch_add(&set->part_count, 1);
	atomic_fetch_add(&set->mapped_bytes, p->length);
	if (!file->medium.resident)
		atomic_store(&set->waits, true);
}

/* Behind it. restored: it may be older than what the set has by now. */
static void open_up(struct set *set, const struct placed *p, bool restored)
{
	uint64_t cookie = atomic_load(&p->part->cookie);
	if (!p->appended)
		atomic_store(&p->map->state, 0);
	if (restored && set->previous != NULL && cookie < set->newest)
		return;
	set->previous = p->map;
	set->newest = cookie;
}

static void give_back(struct set *set, const struct placed *p)
{
	struct pmemset_error ignored;
	if (p->part != NULL)
		pool_give(&set->parts, p->part);
	if (p->map != NULL && !p->appended)
		pool_give(&set->maps, p->map);
	(void)mappings_take(-p->mappings, &ignored);
}

/* All but the index. False: the range is lost. */
static bool undo(struct mapping *m, struct pmemset_error *why)
{
	const struct placed placed = placed_by(m);
	bool fenced = (!m->mapped || window_unmap(m->addr, m->length) == 0) && why->reason != PMEMSET_REASON_RANGE_LOST;
	give_back(m->set, &placed);
	if (m->source->file != NULL && !m->source->makes) /* one that was made goes whole, or stays whole */
		file_ungrow(m->source->file, &m->growth, why);
	return fenced;
}

static int map_locked(struct mapping *m, struct pmemset_error *e)
{
	int rc;
	if ((rc = check_range(m, e)) != 0 || (rc = check_limits(m, e)) != 0)
		return rc;
	if ((rc = place(m, e)) != 0 || (rc = grow(m, e)) != 0 || (rc = map_pages(m, e)) != 0 || (rc = check_granularity(m, e)) != 0)
		return rc;
	return enter(m, e);
}

/* For good, but for the commit. */
static int prepare(struct mapping *m, struct pmemset_error *e)
{
	/* A program that forks has had its mappings in the child, ever. */
	window_hide(m->addr, m->length, m->set->direct);
	if (index_prepare(&m->set->index) != 0)
		return error_set(e, -ENOMEM, "no memory for the index");
	return m->source->makes ? source_publish(m->source, e) : 0;
}

/* The size that the checks see holds until the map stands, or its growth is taken back: the caller unlocks what this locks. */
static void lock_size(struct source *source)
{
	struct stat st;
	pthread_mutex_lock(&source->file->size_lock);
	if (fstat(source->file->fd, &st) == 0)
		source->size = (uint64_t)st.st_size;
}

int part_map(struct set *set, struct source *source, const struct part_spec *spec, struct part_result *result, struct pmemset_error *e)
{
	struct mapping m = {.set = set, .source = source, .spec = spec, .growth = {.from = UINT64_MAX}};
	pthread_mutex_lock(&set->lock);
	if (set->ended) {
		pthread_mutex_unlock(&set->lock);
		return error_stale(e);
	}
	struct file *sized = source->file;
	if (sized != NULL)
		lock_size(source);
	int rc = map_locked(&m, e);
	if (rc == 0)
		rc = prepare(&m, e);
	if (rc == 0) {
		const struct placed placed = placed_by(&m);
		settle(set, &placed);
		atomic_store(&set->granularity, available_granularity(&m));
		index_commit(&set->index);
		open_up(set, &placed, false);
		*result = (struct part_result){.addr = m.addr,
				.length = m.length,
				.map_addr = atomic_load(&m.map->addr),
				.map_size = atomic_load(&m.map->size),
				.coalesced = m.append_to != NULL,
				.file = source->file};
	} else {
		index_drop(&set->index);
		if (!undo(&m, e))
			part_lose_range(set, m.addr, m.addr + m.length);
	}
	if (sized != NULL)
		pthread_mutex_unlock(&sized->size_lock);
	pthread_mutex_unlock(&set->lock);
	return rc;
}

/* ---- parts that were mapped before ---- */

int parts_restore(struct restoration *r, struct set *set, uint64_t count, struct pmemset_error *e)
{
	*r = (struct restoration){.set = set, .placed = calloc(count, sizeof(*r->placed))};
	if (r->placed == NULL && count > 0)
		return error_set(e, -ENOMEM, "no memory for %" PRIu64 " parts", count);
	pthread_mutex_lock(&set->lock);
	r->granularity = atomic_load(&set->granularity);
	if (!set->ended)
		return 0;
	pthread_mutex_unlock(&set->lock);
	free(r->placed);
	return error_stale(e);
}

static int keep(struct restoration *r, uint64_t addr, uint64_t length, struct pmemset_error *e)
{
	if (index_put(&r->set->index, INDEX_MAPS, addr, addr + length, NULL) == 0)
		return 0;
	r->failed = true;
	return error_set(e, -ENOMEM, "no memory for the index");
}

int part_keep(struct restoration *r, uint64_t addr, uint64_t length, struct pmemset_error *e)
{
	bool kept;
	int rc = check_there(r->set, addr, length, &kept, e);
	return rc || kept ? rc : keep(r, addr, length, e);
}

/* Those that are side by side all at once. */
static void hide_run(struct restoration *r)
{
	if (r->hi > r->lo)
		window_hide(r->lo, r->hi - r->lo, r->set->direct);
	r->lo = r->hi = 0;
}

static void add_to_run(struct restoration *r, uint64_t lo, uint64_t hi)
{
	if (lo != r->hi) {
		hide_run(r);
		r->lo = lo;
	}
	r->hi = hi;
}

int part_restore(struct restoration *r, struct file *file, const struct part_spec *spec, bool *kept, struct pmemset_error *e)
{
	struct source source = {.file = file, .dir = -1};
	struct mapping m = {.set = r->set, .source = &source, .spec = spec, .growth = {.from = UINT64_MAX}};
	*kept = false;
	int rc = check_there(r->set, spec->at, spec->length, &m.kept, e);
	if (rc != 0)
		return rc;
	lock_size(&source);
	rc = map_locked(&m, e);
	if (rc == 0)
		file_reach(file, spec->offset + spec->length); /* so that nobody takes growth back that it relies upon */
	pthread_mutex_unlock(&file->size_lock);
	if (rc == 0) {
		r->placed[r->count++] = placed_by(&m);
		atomic_store(&r->set->granularity, available_granularity(&m));
		add_to_run(r, m.addr, m.addr + m.length);
		return 0;
	}
	r->failed |= rc == -ENOMEM && e->reason == PMEMSET_REASON_NONE;
	if (!undo(&m, e)) {
		r->set->lost = true;
		r->placed[r->count++] = (struct placed){.addr = m.addr, .length = m.length};
	}
	*kept = e->reason != PMEMSET_REASON_RANGE_LOST;
	struct pmemset_error out_of_memory;
	if (!m.kept && !r->failed && keep(r, spec->at, spec->length, &out_of_memory) != 0)
		*e = out_of_memory;
	return e->code;
}

static void commit_all(struct restoration *r)
{
	struct set *set = r->set;
	for (uint64_t i = 0; i < r->count; i++)
		if (r->placed[i].part != NULL)
			settle(set, &r->placed[i]);
	index_commit(&set->index);
	for (uint64_t i = 0; i < r->count; i++)
		if (r->placed[i].part != NULL)
			open_up(set, &r->placed[i], true);
}

static void drop_all(struct restoration *r)
{
	struct set *set = r->set;
	index_drop(&set->index);
	atomic_store(&set->granularity, r->granularity);
	for (uint64_t i = 0; i < r->count; i++) {
		const struct placed *p = &r->placed[i];
		if (p->part == NULL || window_unmap(p->addr, p->length) != 0)
			part_lose_range(set, p->addr, p->addr + p->length);
		give_back(set, p);
	}
}

int parts_restored(struct restoration *r, struct pmemset_error *e)
{
	int rc = 0;
	hide_run(r);
	if (r->failed || index_prepare(&r->set->index) != 0)
		rc = error_set(e, -ENOMEM, "no memory to restore parts");
	if (rc == 0)
		commit_all(r);
	else
		drop_all(r);
	pthread_mutex_unlock(&r->set->lock);
	free(r->placed);
	return rc;
}

int part_let_go(struct set *set, uint64_t addr, uint64_t length, struct pmemset_error *e)
{
	int rc = 0;
	pthread_mutex_lock(&set->lock);
	if (set->ended) {
		rc = error_stale(e);
	} else if (!is_kept(set, addr, length)) {
		rc = error_set(e, -ENOENT, "no range of %" PRIu64 " bytes is kept at %#" PRIx64, length, addr);
	} else if (index_del(&set->index, INDEX_MAPS, addr) != 0 || index_prepare(&set->index) != 0) {
		index_drop(&set->index);
		rc = error_set(e, -ENOMEM, "no memory for the index");
	} else {
		index_commit(&set->index);
	}
	pthread_mutex_unlock(&set->lock);
	return rc;
}

/* ---- as libpmemset.h has it ---- */

struct pmemset_part {
	struct pmemset *set;
	struct pmemset_source *source; /* held */
	size_t offset, length;
};

/* As libpmem2 has it: in any case of letters; what is none of them is not there. */
static bool forced_granularity(enum pmem2_granularity *forced)
{
	static const struct {
		const char *name;
		enum pmem2_granularity granularity;
	} names[] = {{"byte", PMEM2_GRANULARITY_BYTE}, {"cache_line", PMEM2_GRANULARITY_CACHE_LINE},
			{"cacheline", PMEM2_GRANULARITY_CACHE_LINE}, {"page", PMEM2_GRANULARITY_PAGE}};
	const char *text = getenv("PMEM2_FORCE_GRANULARITY");
	for (size_t i = 0; text != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
		*forced = names[i].granularity;
		if (strcasecmp(text, names[i].name) == 0)
			return true;
	}
	return false;
}

static int map_source(struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length, struct part_result *result,
		struct pmemset_error *e)
{
	static _Atomic uint64_t cookies = 1;
	enum pmem2_granularity forced;
	struct source source = {.file = src->file, .dir = -1};
	const struct part_spec spec = {.offset = offset,
			.length = length,
			.cookie = atomic_fetch_add(&cookies, 1),
			.forced = forced_granularity(&forced) ? &forced : NULL,
			.grow = src->grows};
	file_settle(src->file);
	int rc = part_map(set->set, &source, &spec, result, e);
	if (rc == PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL && src->fixed) {
		/* The answer of old, where growth was unheard of. */
		rc = e->code = PMEMSET_E_INVALID_PMEM2_MAP;
		e->cause = PMEM2_E_MAP_RANGE;
	}
	return rc;
}

static int map_and_tell(struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length, struct pmemset_part_descriptor *desc)
{
	struct pmemset_error e;
	struct part_result result = {0};
	int rc = map_source(set, src, offset, length, &result, &e);
	if (rc != 0)
		return error_keep(&e);
	void *addr = (void *)(uintptr_t)result.map_addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the core */
	if (desc != NULL)
		*desc = (struct pmemset_part_descriptor){addr, result.map_size};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_PART_ADD, .data.part_add = {addr, result.map_size, src->pmem2}};
	event_fire(set, &event);
	return 0;
}

static int no_source(void)
{
	struct pmemset_error e;
	error_set(&e, PMEMSET_E_INVALID_SOURCE_TYPE, "no source");
	return error_keep(&e);
}

int pmemset_part_new(struct pmemset_part **part, struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length)
{
	struct pmemset_error e;
	struct stat st;
	*part = NULL;
	if (src == NULL)
		return no_source();
	if (src->path != NULL && stat(src->path, &st) != 0) {
		int why = errno;
		error_sys(&e, why == ENOENT ? PMEMSET_E_INVALID_FILE_PATH : 0, why, "%s: %s", src->path, strerror(why));
		return error_keep(&e);
	}
	*part = malloc(sizeof(**part));
	if (*part == NULL) {
		error_set(&e, -ENOMEM, "no memory for a part");
		return error_keep(&e);
	}
	source_hold(src);
	**part = (struct pmemset_part){.set = set, .source = src, .offset = offset, .length = length};
	return 0;
}

int pmemset_part_delete(struct pmemset_part **part)
{
	if (*part != NULL)
		source_let_go((*part)->source);
	free(*part);
	*part = NULL;
	return 0;
}

int pmemset_part_map(struct pmemset_part **part, struct pmemset_extras *extra, struct pmemset_part_descriptor *desc)
{
	(void)extra;
	struct pmemset_part *p = *part;
	int rc = map_and_tell(p->set, p->source, p->offset, p->length, desc);
	return rc ? rc : pmemset_part_delete(part);
}

int pmemset_map(struct pmemset *set, struct pmemset_source *src, struct pmemset_map_config *mcfg, struct pmemset_part_descriptor *desc)
{
	if (src == NULL)
		return no_source();
	return map_and_tell(set, src, mcfg ? mcfg->offset : 0, mcfg ? mcfg->length : 0, desc);
}
