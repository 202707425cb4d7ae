/* SPDX-License-Identifier: BSD-3-Clause */
#include "access.h"

#include "part.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>

#define SMALL_STORE_MAX 4096u

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

int access_check(struct set *set, uint64_t addr, uint64_t length, enum check what, struct pmemset_error *e)
{
	struct part_map *map = NULL;
	int rc = access_pin(set, addr, length, &map, e);
	if (rc != 0)
		return rc;
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(set, from, addr + length);
		rc = segment_check(set, &s, what, e);
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

struct storing storing_begin(struct set *set, enum durability durability)
{
	return (struct storing){.set = set,
			.durability = durability,
			.written = {.durability = reached(durability), .persistence = PERSISTENCE_PERSISTENT}};
}

/* Whether what was stored waits for a flush of its file; libpmem2's copies have flushed the lines already. */
static bool waits_for_flush(const struct storing *st)
{
	return stores_of(st->set) == NULL ? st->durability != DURABILITY_NONE : st->durability == DURABILITY_DEEP;
}

/* A long store is over too late for an answer to be of use to the next one. */
static int check_store(struct storing *st, const struct segment *s, struct pmemset_error *e)
{
	if (s->length > SMALL_STORE_MAX)
		st->sized.left = 0;
	int rc = segment_check_sized(st->set, s, &st->sized, e);
	if (s->length > SMALL_STORE_MAX)
		st->sized.left = 0;
	return rc;
}

/* buf NULL: filled with the byte. */
static int store_segment(struct storing *st, const struct segment *s, const char *buf, unsigned char byte, unsigned flags,
		struct pmemset_error *e)
{
	if (segments_push(&st->made, s) != 0)
		return error_set(e, -ENOMEM, "no memory for a write");
	witness(&st->written, s->file);
	uint64_t done = 0;
	int rc = check_store(st, s, e);
	if (rc == 0)
		rc = buf ? segment_write(st->set, s, buf, flags, &st->row, &done, e)
			 : segment_fill(st->set, s, byte, flags, &st->row, &done, e);
	/* Whoever waits for it has waited long enough. */
	if (s->length > SMALL_STORE_MAX)
		order_end(&st->row);
	st->written.bytes += done;
	if (rc != 0 || st->durability == DURABILITY_NONE)
		segment_soil(s);
	/* The rest of it is not stored, may not be there, and is nothing that a flush of the others should stumble over. */
	if (done == 0)
		st->made.count--;
	else
		st->made.at[st->made.count - 1].length = done;
	return rc;
}

static int store_range(struct storing *st, uint64_t addr, uint64_t length, const char *buf, unsigned char byte, unsigned flags,
		struct pmemset_error *e)
{
	witness(&st->written, segment_at(st->set, addr, addr + length).file); /* also where nothing is stored */
	int rc = st->durability == DURABILITY_NONE ? 0 : access_check_flushes(st->set, addr, addr + length, e);
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(st->set, from, addr + length);
		rc = store_segment(st, &s, buf ? buf + (from - addr) : NULL, byte, flags, e);
		from += s.length;
	}
	return rc;
}

int storing_write(struct storing *st, uint64_t addr, const void *buf, uint64_t length, unsigned flags, struct pmemset_error *e)
{
	return store_range(st, addr, length, length > 0 ? buf : NULL, 0, flags, e);
}

int storing_fill(struct storing *st, uint64_t addr, unsigned char byte, uint64_t length, unsigned flags, struct pmemset_error *e)
{
	return store_range(st, addr, length, NULL, byte, flags, e);
}

int storing_punch(struct storing *st, uint64_t addr, uint64_t length, struct pmemset_error *e)
{
	int rc = 0;
	storing_pause(st);
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(st->set, from, addr + length);
		witness(&st->written, s.file);
		rc = segment_punch(st->set, &s, e);
		/* Space is no dirt of the file's that its ranges would show: the whole of it is flushed, at any granularity. */
		bool flushes = rc == 0 && st->durability != DURABILITY_NONE;
		struct flush_range range = segment_range(&s);
		if (flushes)
			rc = file_flush_whole(s.file, &range, 1, e);
		if (!flushes || (rc != 0 && e->reason != PMEMSET_REASON_PERSIST_FAILED))
			segment_soil(&s);
		st->written.bytes += rc ? 0 : s.length;
		from += s.length;
	}
	return rc;
}

void storing_witness(struct storing *st, const struct segment *s)
{
	witness(&st->written, s->file);
}

void storing_pause(struct storing *st)
{
	order_end(&st->row);
}

int storing_end(struct storing *st, bool flush, struct pmemset_error *e)
{
	int rc = 0;
	storing_pause(st);
	if (stores_of(st->set) != NULL)
		stores_drain(stores_of(st->set));
	if (flush && waits_for_flush(st))
		rc = segments_flush(st->set, &st->made, st->durability, e);
	/* Whatever of it was written, no flush vouches for it. */
	for (size_t i = 0; (rc != 0 || !flush) && i < st->made.count; i++)
		segment_soil(&st->made.at[i]);
	free(st->made.at);
	st->made = (struct segments){0};
	return rc;
}

int access_write(struct set *set, uint64_t addr, const void *buf, uint64_t length, enum durability durability, struct written *written,
		struct pmemset_error *e)
{
	struct part_map *map = NULL;
	int rc = access_pin(set, addr, length, &map, e);
	if (rc != 0)
		return rc;
	struct storing st = storing_begin(set, durability);
	rc = storing_write(&st, addr, buf, length, 0, e);
	int end = storing_end(&st, rc == 0, e);
	rc = rc ? rc : end;
	if (rc != 0)
		e->value = st.written.bytes;
	*written = st.written;
	access_unpin(map);
	return rc;
}

/* ---- many writes that share their flushes ---- */

struct waiting {
	struct segment *segment; /* of the write */
	struct access_request *write;
};

static int by_waiting_file(const void *a, const void *b)
{
	uintptr_t x = (uintptr_t)((const struct waiting *)a)->segment->file;
	uintptr_t y = (uintptr_t)((const struct waiting *)b)->segment->file;
	return (x > y) - (x < y);
}

/* What is in question is told to each whose bytes are among it. */
static void refuse_waiting(struct waiting *all, size_t count, const struct pmemset_error *e)
{
	/* The file knows that these are in doubt, so they are not told of late. */
	for (size_t i = 0; i < count; i++)
		if (all[i].write->rc == 0 && e->reason == PMEMSET_REASON_PERSIST_FAILED)
			all[i].segment->since = UINT64_MAX;
	for (size_t i = 0; i < count; i++)
		if (all[i].write->rc == 0) {
			all[i].write->rc = e->code;
			all[i].write->error = *e;
		}
}

static void flush_waiting(struct waiting *all, size_t count, struct flush_range *ranges)
{
	qsort(all, count, sizeof(*all), by_waiting_file);
	for (size_t i = 0; i < count;) {
		struct file *file = all[i].segment->file;
		size_t first = i;
		size_t n = 0;
		for (; i < count && all[i].segment->file == file; i++)
			if (all[i].write->rc == 0)
				ranges[n++] = segment_range(all[i].segment);
		struct pmemset_error e;
		if (n > 0 && file_flush(file, ranges, n, &e) != 0)
			refuse_waiting(&all[first], i - first, &e);
	}
}

/* Writes, and leaves what is to be flushed in `storing`. */
static void begin_write(struct access_request *w)
{
	w->rc = access_pin(w->set, w->addr, w->length, &w->map, &w->error);
	w->storing = storing_begin(w->set, w->durability);
	if (w->rc == 0)
		w->rc = storing_write(&w->storing, w->addr, w->buf, w->length, 0, &w->error);
	storing_pause(&w->storing);
	/* As segments_flush would: where the file has not got the bytes any more, no flush makes them durable. */
	for (size_t i = 0; w->rc == 0 && w->durability != DURABILITY_NONE && i < w->storing.made.count; i++)
		w->rc = segment_check_size(w->set, &w->storing.made.at[i], false, &w->error);
}

/* Other than of pages, or deep, it is flushed on its own. */
static void end_write(struct access_request *w, bool flushed)
{
	bool pages = stores_of(w->set) == NULL && w->durability != DURABILITY_DEEP;
	if (w->rc == 0 && flushed && pages)
		w->storing.durability = DURABILITY_NONE; /* nothing is left to do */
	struct pmemset_error e;
	int rc = storing_end(&w->storing, w->rc == 0, &e);
	if (w->rc == 0 && rc != 0) {
		w->rc = rc;
		w->error = e;
	}
	if (w->rc != 0)
		w->error.value = w->storing.written.bytes;
	if (w->map != NULL)
		access_unpin(w->map);
}

void access_write_many(struct access_request *writes, size_t count)
{
	size_t segments = 0;
	for (size_t i = 0; i < count; i++) {
		begin_write(&writes[i]);
		segments += writes[i].storing.made.count;
	}
	struct waiting *all = malloc((segments + 1) * sizeof(*all));
	struct flush_range *ranges = malloc((segments + 1) * sizeof(*ranges));
	bool grouped = all != NULL && ranges != NULL; /* else each is flushed on its own */
	size_t n = 0;
	for (size_t i = 0; grouped && i < count; i++) {
		struct access_request *w = &writes[i];
		bool waits = w->rc == 0 && stores_of(w->set) == NULL && w->durability != DURABILITY_NONE &&
			     w->durability != DURABILITY_DEEP;
		for (size_t s = 0; waits && s < w->storing.made.count; s++)
			all[n++] = (struct waiting){&w->storing.made.at[s], w};
	}
	if (grouped)
		flush_waiting(all, n, ranges);
	for (size_t i = 0; i < count; i++)
		end_write(&writes[i], grouped);
	free(ranges);
	free(all);
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
