/* SPDX-License-Identifier: BSD-3-Clause */
#include "access.h"

#include "part.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>

/* ---- pins ---- */

static int check_mapped(struct set *set, struct pmemset_error *e)
{
	bool ever = atomic_load(&set->granularity) != PMEMSET_GRANULARITY_UNSET;
	return ever ? 0 : error_set(e, PMEMSET_E_NO_PART_MAPPED, "nothing was mapped yet");
}

static int not_found(struct set *set, uint64_t addr, struct pmemset_error *e)
{
	int rc = check_mapped(set, e);
	if (rc != 0)
		return rc;
	return error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no part map holds %#" PRIx64, addr);
}

int access_pin(struct set *set, uint64_t addr, uint64_t length, struct part_map **pinned, struct pmemset_error *e)
{
	for (;;) {
		struct range r;
		uint64_t commits = index_commits(&set->index);
		if (!index_next(&set->index, INDEX_MAPS, addr, &r) || r.lo > addr || r.object == NULL)
			return not_found(set, addr, e);
		struct part_map *map = r.object;
		uint64_t state = atomic_load(&map->state);
		if (state & (MAP_FROZEN | MAP_GONE)) { /* for the moment of a removal, or of a commit */
			sched_yield();
			continue;
		}
		if (!atomic_compare_exchange_weak(&map->state, &state, state + 1))
			continue;
		/*
		 * From here on the object stays what it is; but before, it may have become another map's, or have lost a part. Where the
		 * structure did not change since the look-up, the range that this gave is the map's. (Its members are no witness: while
		 * it grows they say so before the index knows the part.)
		 */
		if (index_commits(&set->index) != commits) {
			access_unpin(map);
			continue;
		}
		if (length > r.hi - addr) {
			access_unpin(map);
			error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "%" PRIu64 " bytes at %#" PRIx64 " leave the map at %#" PRIx64, length,
					addr, r.lo);
			e->addr = r.lo;
			e->size = r.hi - r.lo;
			return e->code;
		}
		*pinned = map;
		return 0;
	}
}

struct part_map *access_pin_next(struct set *set, uint64_t from)
{
	struct range r;
	struct part_map *map;
	struct pmemset_error ignored;
	while (index_next(&set->index, INDEX_MAPS, from, &r)) {
		if (r.object == NULL || r.lo < from) { /* a range that was lost, or is leaving; a map that has grown meanwhile */
			from = r.hi;
		} else if (access_pin(set, r.lo, 0, &map, &ignored) == 0) {
			if (atomic_load(&map->addr) >= from)
				return map;
			access_unpin(map); /* one that came in its place */
		}
	}
	return NULL;
}

void access_unpin(struct part_map *map)
{
	uint64_t before = atomic_fetch_sub(&map->state, 1);
	assert((before & ~(MAP_FROZEN | MAP_GONE)) > 0);
	(void)before;
}

/* ---- read ---- */

int access_read(struct set *set, uint64_t addr, void *buf, uint64_t length, bool nowait, struct pmemset_error *e)
{
	struct part_map *map = NULL;
	int rc = access_pin(set, addr, length, &map, e);
	if (rc != 0)
		return rc;
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(set, from, addr + length);
		rc = segment_read(set, &s, (char *)buf + (from - addr), nowait, e);
		from += s.length;
	}
	access_unpin(map);
	return rc;
}

/* ---- what a write reached ---- */

/* Every call here ends with a fence or a flush that waits, so what was flushed is persisted. */
static enum durability reached(enum durability asked)
{
	return asked == DURABILITY_FLUSHED ? DURABILITY_PERSISTED : asked;
}

/* The weakest medium of a range speaks for it. */
static void witness(struct written *w, const struct file *file)
{
	w->persistence = persistence_weaker(w->persistence, file->medium.persistence);
	w->simulated |= file->medium.simulated;
}

/* ---- persist ---- */

int access_persist(struct set *set, const uint64_t *ranges, uint64_t count, enum durability durability, struct written *written,
		struct pmemset_error *e)
{
	*written = (struct written){.durability = reached(durability), .persistence = PERSISTENCE_PERSISTENT};
	if (count == 0) { /* of no medium */
		written->persistence = PERSISTENCE_UNKNOWN;
		return check_mapped(set, e);
	}
	struct part_map **pins = calloc(count, sizeof(struct part_map *));
	struct segments all = {0};
	uint64_t held = 0;
	int rc = 0;
	if (pins == NULL)
		return error_set(e, -ENOMEM, "no memory for a flush");
	for (; rc == 0 && held < count; held++) {
		rc = access_pin(set, ranges[2 * held], ranges[2 * held + 1], &pins[held], e);
		if (rc != 0) {
			e->value = held;
			break;
		}
	}
	for (uint64_t i = 0; rc == 0 && i < count; i++) {
		uint64_t end = ranges[2 * i] + ranges[2 * i + 1];
		witness(written, segment_at(set, ranges[2 * i], end).file); /* also where the range is empty */
		for (uint64_t from = ranges[2 * i]; rc == 0 && from < end;) {
			struct segment s = segment_at(set, from, end);
			if (segments_push(&all, &s) != 0)
				rc = error_set(e, -ENOMEM, "no memory for a flush");
			witness(written, s.file);
			from += s.length;
		}
		written->bytes += ranges[2 * i + 1];
	}
	if (rc == 0)
		rc = segments_flush(set, &all, durability, e);
	while (held > 0)
		access_unpin(pins[--held]);
	free(all.at);
	free(pins);
	return rc;
}

/* ---- write ---- */

/* Checked before the first byte: a flush of a degraded file would answer falsely. */
int access_check_flushes(struct set *set, uint64_t addr, uint64_t end, struct pmemset_error *e)
{
	int rc = 0;
	for (uint64_t from = addr; rc == 0 && from < end;) {
		struct segment s = segment_at(set, from, end);
		rc = segment_check_flushes(&s, e);
		from += s.length;
	}
	return rc;
}

static int write_range(struct set *set, uint64_t addr, const char *buf, uint64_t length, enum durability durability, struct written *w,
		struct segments *all, struct pmemset_error *e)
{
	int rc = 0;
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(set, from, addr + length);
		if (segments_push(all, &s) != 0)
			return error_set(e, -ENOMEM, "no memory for a write");
		witness(w, s.file);
		rc = segment_write(set, &s, buf + (from - addr), 0, &w->bytes, e);
		if (durability == DURABILITY_NONE)
			part_soil(s.part);
		from += s.length;
	}
	if (stores_of(set) != NULL)
		stores_drain(stores_of(set));
	return rc;
}

int access_write(struct set *set, uint64_t addr, const void *buf, uint64_t length, enum durability durability, struct written *written,
		struct pmemset_error *e)
{
	*written = (struct written){.durability = reached(durability), .persistence = PERSISTENCE_PERSISTENT};
	struct part_map *map = NULL;
	int rc = access_pin(set, addr, length, &map, e);
	if (rc != 0)
		return rc;
	struct segments all = {0};
	witness(written, segment_at(set, addr, addr + length).file); /* also where nothing is written */
	if (durability != DURABILITY_NONE)
		rc = access_check_flushes(set, addr, addr + length, e);
	if (rc == 0)
		rc = write_range(set, addr, buf, length, durability, written, &all, e);
	/* libpmem2's copy has flushed the lines already; what is left is the file's own flush. */
	if (rc == 0 && (stores_of(set) == NULL ? durability != DURABILITY_NONE : durability == DURABILITY_DEEP))
		rc = segments_flush(set, &all, durability, e);
	if (rc != 0) {
		e->value = written->bytes;
		/* Whatever of it was written, no flush vouches for it. */
		for (size_t i = 0; i < all.count; i++)
			part_soil(all.at[i].part);
	}
	free(all.at);
	access_unpin(map);
	return rc;
}

int access_drain(struct set *set, struct written *written, struct pmemset_error *e)
{
	int rc = check_mapped(set, e);
	if (rc != 0)
		return rc;
	if (stores_of(set) != NULL)
		stores_drain(stores_of(set));
	*written = (struct written){.durability = DURABILITY_NONE, .persistence = PERSISTENCE_UNKNOWN};
	return 0;
}
