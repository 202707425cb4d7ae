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
	bool mapped;
	struct part_map *map; /* new, or append_to */
	struct part *part;
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
	if (set->parts_max != 0 && atomic_load(&set->part_count) >= set->parts_max) {
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

static int place(struct mapping *m, struct pmemset_error *e)
{
	struct set *set = m->set;
	uint32_t mode = atomic_load(&set->coalescing);
	bool placed = mode != COALESCING_NONE && set->previous != NULL && place_behind_previous(m);
	if (!placed && mode == COALESCING_FULL && set->previous != NULL)
		return error_set(e, PMEMSET_E_CANNOT_COALESCE_PARTS, "no room for %" PRIu64 " bytes behind the previous part map",
				m->length);
	if (!placed && !place_anywhere(m)) {
		error_set(e, PMEMSET_E_CANNOT_FIT_PART_MAP, "no gap of %" PRIu64 " bytes in the window", m->length);
		e->value = index_largest_gap(&set->index, set->window.addr, set->window.addr + set->window.size);
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
	/* A program that forks has had its mappings in the child, ever. */
	int why = window_map(m->addr, m->length, file->fd, m->spec->offset, flags, m->set->direct);
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

/* Into the index, unseen until the commit. */
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
		atomic_store(&m->map->size, m->length);
		atomic_store(&m->map->parts, 0);
	}
	if (index_put(&set->index, INDEX_PARTS, m->addr, end, m->part) != 0 ||
			index_put(&set->index, INDEX_MAPS, start, end, m->map) != 0 || index_prepare(&set->index) != 0)
		return error_set(e, -ENOMEM, "no memory for the index");
	return 0;
}

static void commit(struct mapping *m)
{
	struct set *set = m->set;
	file_hold(m->source->file);
	m->part->use = (struct file_use){.addr = m->addr, .length = m->length, .offset = m->spec->offset, .direct = set->direct};
	file_add_use(m->source->file, &m->part->use);
	file_reach(m->source->file, m->spec->offset + m->length);
	if (m->append_to != NULL)
		atomic_fetch_add(&m->map->size, m->length);
	else
		atomic_fetch_add(&set->map_count, 1);
	atomic_fetch_add(&m->map->parts, 1);
	atomic_fetch_add(&set->part_count, 1);
	atomic_fetch_add(&set->mapped_bytes, m->length);
	atomic_store(&set->granularity, available_granularity(m));
	if (!m->source->file->medium.resident)
		atomic_store(&set->waits, true);
	index_commit(&set->index);
	if (m->append_to == NULL)
		atomic_store(&m->map->state, 0);
	set->previous = m->map;
}

static void undo(struct mapping *m, struct pmemset_error *why)
{
	struct set *set = m->set;
	struct pmemset_error ignored;
	index_drop(&set->index);
	if (m->part != NULL)
		pool_give(&set->parts, m->part);
	if (m->map != NULL && m->append_to == NULL)
		pool_give(&set->maps, m->map);
	if ((m->mapped && window_unmap(m->addr, m->length) != 0) || why->reason == PMEMSET_REASON_RANGE_LOST)
		part_lose_range(set, m->addr, m->addr + m->length);
	if (m->source->file != NULL && !m->source->makes) /* one that was made goes whole, or stays whole */
		file_ungrow(m->source->file, &m->growth, why);
	(void)mappings_take(-m->mappings, &ignored);
}

static int map_locked(struct mapping *m, struct pmemset_error *e)
{
	int rc;
	if ((rc = check_range(m, e)) != 0 || (rc = check_limits(m, e)) != 0)
		return rc;
	if ((rc = place(m, e)) != 0 || (rc = grow(m, e)) != 0 || (rc = map_pages(m, e)) != 0 || (rc = check_granularity(m, e)) != 0 ||
			(rc = enter(m, e)) != 0)
		return rc;
	return m->source->makes ? source_publish(m->source, e) : 0;
}

int part_map(struct set *set, struct source *source, const struct part_spec *spec, struct part_result *result, struct pmemset_error *e)
{
	struct mapping m = {.set = set, .source = source, .spec = spec, .growth = {.from = UINT64_MAX}};
	pthread_mutex_lock(&set->lock);
	if (set->ended) {
		pthread_mutex_unlock(&set->lock);
		return error_stale(e);
	}
	/* The size that the checks see holds until the map stands, or its growth is taken back. */
	struct file *sized = source->file;
	if (sized != NULL) {
		struct stat st;
		pthread_mutex_lock(&sized->size_lock);
		if (fstat(sized->fd, &st) == 0)
			source->size = (uint64_t)st.st_size;
	}
	int rc = map_locked(&m, e);
	if (rc == 0) {
		commit(&m);
		*result = (struct part_result){.addr = m.addr,
				.length = m.length,
				.map_addr = atomic_load(&m.map->addr),
				.map_size = atomic_load(&m.map->size),
				.coalesced = m.append_to != NULL,
				.file = source->file};
	} else {
		undo(&m, e);
	}
	if (sized != NULL)
		pthread_mutex_unlock(&sized->size_lock);
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
