/* SPDX-License-Identifier: BSD-3-Clause */
/* store.c -- copies, fills and flushes as libpmemset.h has them: through pointers, with flags and events. */
#include "access.h"
#include "event.h"
#include "order.h"
#include "part.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static void *at(uint64_t addr)
{
	return (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the index */
}

/* NOLINTBEGIN(misc-redundant-expression): that is what is asserted */
static_assert(PMEMSET_F_MEM_VALID_FLAGS == PMEM2_F_MEM_VALID_FLAGS && PMEMSET_F_MEM_NODRAIN == PMEM2_F_MEM_NODRAIN &&
				PMEMSET_F_MEM_NONTEMPORAL == PMEM2_F_MEM_NONTEMPORAL && PMEMSET_F_MEM_TEMPORAL == PMEM2_F_MEM_TEMPORAL &&
				PMEMSET_F_MEM_WC == PMEM2_F_MEM_WC && PMEMSET_F_MEM_WB == PMEM2_F_MEM_WB &&
				PMEMSET_F_MEM_NOFLUSH == PMEM2_F_MEM_NOFLUSH,
		"the flags are libpmem2's");
/* NOLINTEND(misc-redundant-expression) */

struct store {
	uint64_t dest, length;
	const char *src;    /* NULL: fill */
	unsigned char byte; /* with this */
	unsigned flags;
	char *buffer; /* of a chunk, where the store would change what it still has to read; NULL: none */
};

/* A piece of at most a chunk, of one part. */
static int store_piece(struct set *set, const struct store *st, const struct segment *s, struct pmemset_error *e)
{
	uint64_t ignored = 0;
	struct store_under_way alone = {.file = NULL};
	int rc = segment_check_size(set, s, false, e);
	if (rc != 0)
		return rc;
	const char *src = st->src ? st->src + (s->addr - st->dest) : NULL;
	if (st->src == NULL)
		rc = segment_fill(set, s, st->byte, st->flags, &alone, &ignored, e);
	else if (st->buffer != NULL && !guarded_load(st->buffer, src, s->length))
		rc = segment_faulted(set, e);
	else
		rc = segment_write(set, s, st->buffer ? st->buffer : src, st->flags, &alone, &ignored, e);
	order_end(&alone);
	return rc;
}

/* The piece at the lower end of [from, to), or at its upper one. */
static struct segment piece_at(struct set *set, uint64_t from, uint64_t to, bool backwards)
{
	if (!backwards)
		return segment_at(set, from, chunk_end(from, to));
	uint64_t lo = chunk_begin(from, to);
	uint64_t part = atomic_load(&segment_at(set, to - 1, to).part->addr);
	return segment_at(set, part > lo ? part : lo, to);
}

/* The map is pinned. */
static int store_pieces(struct set *set, struct store *st, struct segments *all, struct pmemset_error *e)
{
	uint64_t from = st->dest;
	uint64_t to = from + st->length;
	uint64_t distance = from - (uint64_t)(uintptr_t)st->src; /* wraps where the source is above */
	bool backwards = st->src != NULL && distance < st->length;
	bool overlaps = backwards || (st->src != NULL && 0 - distance < st->length);
	int rc = st->flags & PMEMSET_F_MEM_NOFLUSH ? 0 : access_check_flushes(set, from, to, e);
	if (rc == 0 && stores_of(set) == NULL && st->length > 0 && overlaps) {
		st->buffer = malloc(st->length < CHUNK_SIZE ? (size_t)st->length : CHUNK_SIZE);
		if (st->buffer == NULL)
			return error_set(e, -ENOMEM, "no memory for a copy");
	}
	while (rc == 0 && from < to) {
		struct segment s = piece_at(set, from, to, backwards);
		if (segments_push(all, &s) != 0)
			rc = error_set(e, -ENOMEM, "no memory for a copy");
		else
			rc = store_piece(set, st, &s, e);
		if (backwards)
			to = s.addr;
		else
			from = s.addr + s.length;
	}
	free(st->buffer);
	return rc;
}

static int store_range(struct set *set, struct store *st, struct pmemset_error *e)
{
	struct part_map *map = NULL;
	struct segments all = {0};
	int rc = access_pin(set, st->dest, st->length, &map, e);
	if (rc != 0)
		return rc;
	rc = store_pieces(set, st, &all, e);
	const struct stores *stores = stores_of(set);
	if (stores != NULL && !(st->flags & PMEMSET_F_MEM_NODRAIN))
		stores_drain(stores);
	if (rc == 0 && stores == NULL && !(st->flags & PMEMSET_F_MEM_NOFLUSH))
		rc = segments_flush(set, &all, DURABILITY_PERSISTED, e);
	free(all.at);
	access_unpin(map);
	return rc;
}

static uint64_t number(const void *pointer)
{
	return (uint64_t)(uintptr_t)pointer;
}

static int check_flags(unsigned flags, struct pmemset_error *e)
{
	const unsigned both = PMEMSET_F_MEM_NONTEMPORAL | PMEMSET_F_MEM_TEMPORAL;
	if ((flags & ~PMEMSET_F_MEM_VALID_FLAGS) != 0 || (flags & both) == both)
		return error_set(e, -EINVAL, "flags %#x are unknown, or exclude each other", flags);
	return 0;
}

/* Told before it is done, and only where it can be done; drained: told of afterwards. */
static int store_and_tell(struct pmemset *set, struct store *st, struct pmemset_event_context *event)
{
	struct pmemset_error e;
	struct part_map *map = NULL;
	int rc = check_flags(st->flags, &e);
	if (rc == 0 && set->callback != NULL) {
		rc = access_pin(set->set, st->dest, st->length, &map, &e);
		if (rc == 0) {
			access_unpin(map);
			event_fire(set, event);
		}
	}
	if (rc == 0)
		rc = store_range(set->set, st, &e);
	if (rc != 0)
		return error_keep(&e);
	if (!(st->flags & PMEMSET_F_MEM_NODRAIN))
		event_fire_drain(set);
	return 0;
}

int pmemset_memmove(struct pmemset *set, void *dest, const void *src, size_t len, unsigned flags)
{
	struct store st = {.dest = number(dest), .length = len, .src = src, .flags = flags};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_MOVE, .data.move = {at(number(src)), dest, len, flags}};
	return store_and_tell(set, &st, &event);
}

int pmemset_memcpy(struct pmemset *set, void *dest, const void *src, size_t len, unsigned flags)
{
	struct store st = {.dest = number(dest), .length = len, .src = src, .flags = flags};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_COPY, .data.copy = {at(number(src)), dest, len, flags}};
	return store_and_tell(set, &st, &event);
}

int pmemset_memset(struct pmemset *set, void *dest, int c, size_t len, unsigned flags)
{
	struct store st = {.dest = number(dest), .length = len, .byte = (unsigned char)c, .flags = flags};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_SET, .data.set = {dest, c, len, flags}};
	return store_and_tell(set, &st, &event);
}

int pmemset_read(struct pmemset *set, const void *addr, void *buf, size_t len)
{
	struct pmemset_error e;
	int rc = access_read(set->set, number(addr), buf, len, false, &e);
	return rc ? error_keep(&e) : 0;
}

/* ---- flushes of libpmemset.h, whose range may span part maps ---- */

/* The range, map by map, as pairs of addr and length (NULL: they are only counted); what lies in no map is the last pair. */
static uint64_t split_by_map(struct set *set, uint64_t addr, uint64_t length, uint64_t *pairs, uint64_t max)
{
	uint64_t n = 0;
	for (uint64_t from = addr, end = addr + length; from < end || n == 0; n++) {
		struct range r;
		bool found = index_next(&set->index, INDEX_MAPS, from, &r) && r.lo <= from && r.object != NULL && n + 1 < max;
		uint64_t to = found && r.hi < end ? r.hi : end;
		if (pairs != NULL) {
			pairs[2 * n] = from;
			pairs[2 * n + 1] = to - from;
		}
		from = to;
	}
	return n;
}

static int persist_span(struct set *set, const void *ptr, size_t size, enum durability durability, struct pmemset_error *e)
{
	struct written ignored;
	uint64_t addr = number(ptr);
	uint64_t first[2] = {addr, size};
	int rc = access_persist(set, first, 1, durability, &ignored, e);
	if (rc != PMEMSET_E_LENGTH_OUT_OF_RANGE || addr + size < addr)
		return rc;
	uint64_t count = split_by_map(set, addr, size, NULL, UINT64_MAX);
	uint64_t *pairs = calloc(count, sizeof(first));
	if (pairs == NULL)
		return error_set(e, -ENOMEM, "no memory for a flush");
	count = split_by_map(set, addr, size, pairs, count);
	rc = access_persist(set, pairs, count, durability, &ignored, e);
	free(pairs);
	if (rc == PMEMSET_E_CANNOT_FIND_PART_MAP)
		rc = error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "there is a hole in the %zu bytes at %p", size, ptr);
	return rc;
}

/* Whether the range begins in a part map: what does not is not told of. */
static bool begins_in_map(struct pmemset *set, uint64_t addr)
{
	struct range r;
	return index_next(&set->set->index, INDEX_MAPS, addr, &r) && r.lo <= addr && r.object != NULL;
}

static int flush_and_tell(struct pmemset *set, const void *ptr, size_t size, enum durability durability)
{
	struct pmemset_error e;
	if (set->callback != NULL && begins_in_map(set, number(ptr))) {
		struct pmemset_event_context event = {.type = PMEMSET_EVENT_FLUSH, .data.flush = {at(number(ptr)), size}};
		event_fire(set, &event);
	}
	int rc = persist_span(set->set, ptr, size, durability, &e);
	return rc ? error_keep(&e) : 0;
}

int pmemset_persist(struct pmemset *set, const void *ptr, size_t size)
{
	int rc = flush_and_tell(set, ptr, size, DURABILITY_PERSISTED);
	if (rc == 0)
		event_fire_drain(set);
	return rc;
}

int pmemset_flush(struct pmemset *set, const void *ptr, size_t size)
{
	return flush_and_tell(set, ptr, size, DURABILITY_FLUSHED);
}

int pmemset_drain(struct pmemset *set)
{
	struct pmemset_error e;
	struct written ignored;
	int rc = access_drain(set->set, &ignored, &e);
	if (rc != 0)
		return error_keep(&e);
	event_fire_drain(set);
	return 0;
}

int pmemset_deep_flush(struct pmemset *set, void *ptr, size_t size)
{
	struct pmemset_error e;
	int rc = persist_span(set->set, ptr, size, DURABILITY_DEEP, &e);
	return rc ? error_keep(&e) : 0;
}

/* ---- the file behind a mapped range ---- */

static int mcsafe(struct pmemset_part_descriptor *desc, char *buf, size_t size, size_t offset, bool writes)
{
	struct pmemset_error e;
	struct part_map *map = NULL;
	uint64_t addr = number(desc->addr) + offset;
	if (offset > desc->size || size > desc->size - offset) {
		error_set(&e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "%zu bytes at %zu leave the part map's %zu", size, offset, desc->size);
		return error_keep(&e);
	}
	struct pmemset *set = pmemsets_lock(number(desc->addr));
	if (set == NULL) {
		error_set(&e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no set has a part map at %p", desc->addr);
		return error_keep(&e);
	}
	/* From where the map begins: the byte behind its end is none that can be asked for. */
	int rc = access_pin(set->set, number(desc->addr), offset + size, &map, &e);
	for (uint64_t from = addr; rc == 0 && from < addr + size;) {
		struct segment s = segment_at(set->set, from, addr + size);
		char *part = buf + (from - addr);
		struct store_under_way store = {.file = NULL};
		rc = writes ? order_begin(&store, s.file, s.offset, s.length, &e) : 0;
		if (rc == 0)
			rc = writes ? file_write(s.file, part, s.length, s.offset, &e) : file_read(s.file, part, s.length, s.offset, &e);
		order_end(&store);
		if (writes)
			segment_soil(&s);
		from += s.length;
	}
	if (map != NULL)
		access_unpin(map);
	pmemsets_unlock();
	return rc ? error_keep(&e) : 0;
}

int pmemset_part_pread_mcsafe(struct pmemset_part_descriptor *desc, void *dst, size_t size, size_t offset)
{
	return mcsafe(desc, dst, size, offset, false);
}

int pmemset_part_pwrite_mcsafe(struct pmemset_part_descriptor *desc, void *src, size_t size, size_t offset)
{
	return mcsafe(desc, src, size, offset, true);
}
