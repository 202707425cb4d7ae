/* SPDX-License-Identifier: BSD-3-Clause */
/* Removing parts, by range and by map: what goes, what is left, what is reported, and nothing at all where one thing fails. */
#include "scene.h"

#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 64

struct report {
	struct ffi_removal counts;
	uint64_t removed[ROWS][3], trimmed[ROWS][4], split[ROWS][6];
};

static int remove_into(struct report *r, uint64_t set, uint64_t addr, uint64_t length, uint32_t whole_map, uint32_t dry_run)
{
	memset(r, 0xff, sizeof(*r));
	r->counts = (struct ffi_removal){.removed_max = ROWS, .trimmed_max = ROWS, .split_max = ROWS};
	return ffi_remove(set, addr, length, whole_map, dry_run, &r->counts, r->removed[0], r->trimmed[0], r->split[0], &err);
}

/* Dry first, which must change nothing and report the same. */
static void removed(struct report *r, uint64_t set, uint64_t addr, uint64_t length, uint32_t whole_map)
{
	struct report dry;
	char *before = world(set, NULL);
	must(remove_into(&dry, set, addr, length, whole_map, 1));
	same_world(before, set, NULL);
	must(remove_into(r, set, addr, length, whole_map, 0));
	assert_memory_equal(r, &dry, sizeof(dry));
}

static void not_removed(uint64_t set, uint64_t addr, uint64_t length, uint32_t whole_map, int code)
{
	struct report r;
	char *before = world(set, NULL);
	fails(remove_into(&r, set, addr, length, whole_map, 0), code);
	assert_int_equal(err.code, code);
	same_world(before, set, NULL);
}

static uint64_t add(uint64_t set, const struct place *p, const char *name, uint64_t page, uint64_t pages)
{
	return must_map(set, p, name, (struct ffi_part_spec){.offset = page * PAGE, .length = pages * PAGE}).addr;
}

static void coalescing(uint64_t set, uint32_t mode)
{
	must(ffi_set_coalescing(set, mode, &err));
}

/* ---- against a model: a page of the window has a part, and that a map; both are numbers, 0 is none ---- */

#define WINDOW_PAGES 48
#define WINDOW ((uint64_t)WINDOW_PAGES * PAGE)

struct model {
	uint64_t part[WINDOW_PAGES];
	uint64_t map[WINDOW_PAGES];
};

static uint64_t end_of(const uint64_t *pages, uint64_t from)
{
	uint64_t to = from;
	while (to < WINDOW_PAGES && pages[to] == pages[from])
		to++;
	return to;
}

/* What the maps [from, to) of the model's pages becomes without the parts in [lo, hi), which it has some of. */
static void expect_cut(struct model *m, uint64_t base, uint64_t from, uint64_t to, uint64_t lo, uint64_t hi, struct report *r)
{
	static uint64_t next_map = 1000000;
	while (lo > from && m->part[lo - 1] == m->part[lo])
		lo--;
	while (hi < to && m->part[hi] == m->part[hi - 1])
		hi++;
	for (uint64_t i = lo; i < hi; i = end_of(m->part, i)) {
		uint64_t n = end_of(m->part, i) - i;
		memcpy(r->removed[r->counts.removed++], (uint64_t[]){base + i * PAGE, n * PAGE, m->part[i]}, sizeof(r->removed[0]));
	}
	uint64_t start = base + from * PAGE;
	uint64_t size = (to - from) * PAGE;
	if (lo > from && hi < to)
		memcpy(r->split[r->counts.split++],
				(uint64_t[]){start, size, start, (lo - from) * PAGE, base + hi * PAGE, (to - hi) * PAGE},
				sizeof(r->split[0]));
	else if (lo > from)
		memcpy(r->trimmed[r->counts.trimmed++], (uint64_t[]){start, size, start, (lo - from) * PAGE}, sizeof(r->trimmed[0]));
	else if (hi < to)
		memcpy(r->trimmed[r->counts.trimmed++], (uint64_t[]){start, size, base + hi * PAGE, (to - hi) * PAGE},
				sizeof(r->trimmed[0]));
	next_map++;
	for (uint64_t i = hi; i < to; i++)
		m->map[i] = next_map;
	for (uint64_t i = lo; i < hi; i++)
		m->part[i] = m->map[i] = 0;
}

static void expect(struct model *m, uint64_t base, uint64_t addr, uint64_t length, struct report *r)
{
	memset(r, 0xff, sizeof(*r));
	r->counts = (struct ffi_removal){.removed_max = ROWS, .trimmed_max = ROWS, .split_max = ROWS};
	uint64_t first = addr > base ? (addr - base) / PAGE : 0;
	uint64_t last = addr + length > base ? (addr + length - 1 - base) / PAGE + 1 : 0;
	last = last < WINDOW_PAGES ? last : WINDOW_PAGES;
	for (uint64_t i = first; i < last;) {
		uint64_t from = i;
		while (from > 0 && m->map[from - 1] == m->map[i])
			from--;
		uint64_t to = end_of(m->map, i);
		if (m->map[i] != 0)
			expect_cut(m, base, from, to, i, last < to ? last : to, r);
		i = to;
	}
}

static void is_like(const struct model *m, uint64_t set, uint64_t base)
{
	struct ffi_span rows[WINDOW_PAGES];
	uint64_t parts = 0;
	uint64_t maps = 0;
	uint64_t pages = 0;
	for (uint64_t i = 0; i < WINDOW_PAGES; i = end_of(m->map, i)) {
		uint64_t n = end_of(m->map, i) - i;
		if (m->map[i] == 0) {
			covered(base + i * PAGE, n * PAGE, "---p");
			continue;
		}
		uint64_t parts_before = parts;
		for (uint64_t k = i; k < i + n; k = end_of(m->part, k))
			parts++;
		assert_true(ffi_maps(set, base + i * PAGE, 0, rows, 1) == 1);
		assert_int_equal(rows[0].map_addr, base + i * PAGE);
		assert_int_equal(rows[0].map_size, n * PAGE);
		assert_int_equal(rows[0].map_parts, parts - parts_before);
		assert_int_equal(rows[0].cookie, m->part[i]);
		covered(base + i * PAGE, n * PAGE, "rw-s");
		maps++;
		pages += n;
	}
	assert_true(ffi_parts(set, 0, 0, rows, WINDOW_PAGES) == (int64_t)parts);
	for (uint64_t i = 0, k = 0; i < WINDOW_PAGES; i = end_of(m->part, i)) {
		if (m->part[i] == 0)
			continue;
		assert_int_equal(rows[k].addr, base + i * PAGE);
		assert_int_equal(rows[k].length, (end_of(m->part, i) - i) * PAGE);
		assert_int_equal(rows[k++].cookie, m->part[i]);
	}
	struct ffi_set_info info = info_of(set);
	assert_int_equal(info.part_count, parts);
	assert_int_equal(info.map_count, maps);
	assert_int_equal(info.mapped_bytes, pages * PAGE);
	covered(info.window_addr, info.window_size, NULL);
}

/* Where the engine puts it is 30-part's matter; here the model takes that over. */
static void add_at_random(struct model *m, uint64_t set, uint64_t base, const struct place *p)
{
	static uint64_t cookie = 1;
	uint64_t pages = 1 + chance(4);
	struct ffi_part part;
	coalescing(set, (uint32_t)chance(3));
	int rc = map(set, p, chance(2) ? "a" : "b",
			(struct ffi_part_spec){.offset = chance(4) * PAGE, .length = pages * PAGE, .cookie = ++cookie}, &part);
	uint64_t first = (part.addr - base) / PAGE;
	if (rc != 0 || first + pages > WINDOW_PAGES) {
		if (rc == 0)
			must(remove_range(set, part.addr, 1)); /* behind the model's end */
		return;
	}
	for (uint64_t i = first; i < first + pages; i++) {
		assert_int_equal(m->part[i], 0);
		m->part[i] = cookie;
		m->map[i] = part.coalesced ? m->map[first - 1] : cookie;
	}
}

static void random_removals(void **state)
{
	struct place *p = here(state);
	struct model m = {0};
	struct report wanted;
	struct report got;
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "b", 8 * PAGE, 2);
	(void)seed_chance();
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (int i = 0; i < 150; i++) {
		for (uint64_t n = chance(6); n > 0; n--)
			add_at_random(&m, set, base, p);
		uint64_t addr = base - PAGE + chance(WINDOW + 2 * PAGE);
		uint64_t length = 1 + chance(chance(3) ? 6 * PAGE : WINDOW);
		addr -= chance(2) ? addr % PAGE : 0;
		expect(&m, base, addr, length, &wanted);
		if (wanted.counts.removed == 0) {
			not_removed(set, addr, length, 0, PMEMSET_E_CANNOT_FIND_PART_MAP);
			continue;
		}
		removed(&got, set, addr, length, 0);
		assert_memory_equal(&got, &wanted, sizeof(got));
		is_like(&m, set, base);
	}
	delete_set(set);
}

/* ---- by hand: what a model could have wrong in the same way ---- */

static void rows_are(const struct report *r, uint64_t removed_rows, uint64_t trimmed_rows, uint64_t split_rows)
{
	assert_int_equal(r->counts.removed, removed_rows);
	assert_int_equal(r->counts.trimmed, trimmed_rows);
	assert_int_equal(r->counts.split, split_rows);
}

static void each_way_to_cut(void **state)
{
	struct place *p = here(state);
	struct report r;
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (uint64_t i = 0; i < 7; i++)
		(void)must_map(set, p, "a", (struct ffi_part_spec){.offset = i * PAGE, .length = PAGE, .cookie = 100 + i});
	/* One byte in the middle: two maps. */
	removed(&r, set, base + 3 * PAGE + 1, 1, 0);
	rows_are(&r, 1, 0, 1);
	assert_memory_equal(r.removed[0], ((uint64_t[]){base + 3 * PAGE, PAGE, 103}), sizeof(r.removed[0]));
	assert_memory_equal(r.split[0], ((uint64_t[]){base, 7 * PAGE, base, 3 * PAGE, base + 4 * PAGE, 3 * PAGE}), sizeof(r.split[0]));
	covered(base + 3 * PAGE, PAGE, "---p");
	/* From the last byte of one to the first of the other, over the hole: both are trimmed. */
	removed(&r, set, base + 3 * PAGE - 1, PAGE + 2, 0);
	rows_are(&r, 2, 2, 0);
	assert_memory_equal(r.trimmed[0], ((uint64_t[]){base, 3 * PAGE, base, 2 * PAGE}), sizeof(r.trimmed[0]));
	assert_memory_equal(r.trimmed[1], ((uint64_t[]){base + 4 * PAGE, 3 * PAGE, base + 5 * PAGE, 2 * PAGE}), sizeof(r.trimmed[1]));
	covered(base + 2 * PAGE, 3 * PAGE, "---p");
	not_removed(set, base + 2 * PAGE, 3 * PAGE, 0, PMEMSET_E_CANNOT_FIND_PART_MAP);
	/* The whole of one, by its start; nothing else is one. */
	not_removed(set, base + PAGE, 0, 1, PMEMSET_E_CANNOT_FIND_PART_MAP);
	not_removed(set, base + 2 * PAGE, 0, 1, PMEMSET_E_CANNOT_FIND_PART_MAP);
	not_removed(set, base + 5 * PAGE - 1, 0, 1, PMEMSET_E_CANNOT_FIND_PART_MAP);
	removed(&r, set, base + 5 * PAGE, 12345, 1);
	rows_are(&r, 2, 0, 0);
	assert_memory_equal(r.removed[1], ((uint64_t[]){base + 6 * PAGE, PAGE, 106}), sizeof(r.removed[1]));
	/* What is left can be read, and says what it said. */
	unsigned char byte;
	must(ffi_read(set, base + PAGE, &byte, 1, 0, &err));
	assert_int_equal(byte, byte_of(1, PAGE));
	removed(&r, set, 1, UINT64_MAX - 1, 0);
	rows_are(&r, 2, 0, 0);
	covered(base, 2 * MIB, "---p");
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_PAGE);
	delete_set(set);
}

static void ranges_that_are_none(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	not_removed(set, 0, UINT64_MAX, 0, PMEMSET_E_CANNOT_FIND_PART_MAP);
	uint64_t addr = add(set, p, "a", 0, 2);
	const struct {
		uint64_t addr, length;
		int code;
	} rows[] = {
			{addr, 0, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{addr + 1, 0, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{0, 0, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{addr, UINT64_MAX - addr + 2, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{addr, UINT64_MAX, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{UINT64_MAX, 2, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{UINT64_MAX, 1, PMEMSET_E_CANNOT_FIND_PART_MAP}, /* the last byte that there is */
			{UINT64_MAX, UINT64_MAX, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{addr + 2 * PAGE, 1, PMEMSET_E_CANNOT_FIND_PART_MAP},
			{addr + 2 * PAGE, UINT64_MAX - addr - 2 * PAGE, PMEMSET_E_CANNOT_FIND_PART_MAP},
			{0, addr, PMEMSET_E_CANNOT_FIND_PART_MAP},
			{0, 1, PMEMSET_E_CANNOT_FIND_PART_MAP},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		not_removed(set, rows[i].addr, rows[i].length, 0, rows[i].code);
	not_removed(set, 0, 0, 1, PMEMSET_E_CANNOT_FIND_PART_MAP);
	not_removed(set, UINT64_MAX, 0, 1, PMEMSET_E_CANNOT_FIND_PART_MAP);
	/* To the end of all addresses. */
	must(remove_range(set, addr, UINT64_MAX - addr + 1));
	assert_int_equal(info_of(set).part_count, 0);
	delete_set(set);
}

static void rows_that_do_not_fit(void **state)
{
	struct place *p = here(state);
	enum { N = 20, MAX = 3 };
	uint64_t rows[3][ROWS * 6];
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (uint64_t i = 0; i < N; i++)
		(void)add(set, p, "a", 0, 1);
	for (uint32_t dry_run = 0; dry_run < 2; dry_run++) {
		/* Room for three, then for none. */
		memset(rows, 0xff, sizeof(rows));
		struct ffi_removal counts = {.removed_max = MAX, .trimmed_max = MAX, .split_max = MAX};
		must(ffi_remove(set, base, N * PAGE, 0, 1, &counts, rows[0], rows[1], rows[2], &err));
		assert_int_equal(counts.removed, N);
		assert_int_equal(rows[0][3 * (MAX - 1)], base + (MAX - 1) * PAGE);
		assert_int_equal(rows[0][3 * MAX], UINT64_MAX);
		counts = (struct ffi_removal){0};
		must(ffi_remove(set, base, N * PAGE, 0, 1 - dry_run, &counts, NULL, NULL, NULL, &err));
		assert_int_equal(counts.removed, N);
	}
	assert_int_equal(info_of(set).part_count, 0);
	delete_set(set);
}

/* ---- what is previous then ---- */

static void previous_that_was_cut(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (uint64_t i = 0; i < 6; i++)
		(void)add(set, p, "a", i, 1);
	/* Trimmed at its end, it grows from there. */
	must(remove_range(set, base + 5 * PAGE, 1));
	assert_int_equal(add(set, p, "a", 0, 1), base + 5 * PAGE);
	/* Trimmed at its start, from its end. */
	must(remove_range(set, base, 1));
	assert_int_equal(add(set, p, "a", 0, 1), base + 6 * PAGE);
	/* Split, the lower half: its hole is filled again, if exactly that fits. */
	must(remove_range(set, base + 3 * PAGE, 1));
	struct ffi_part part;
	fails(map(set, p, "a", (struct ffi_part_spec){.length = 2 * PAGE}, &part), PMEMSET_E_CANNOT_COALESCE_PARTS);
	part = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(part.addr, base + 3 * PAGE);
	assert_int_equal(part.map_addr, base + PAGE);
	assert_int_equal(part.map_size, 3 * PAGE);
	assert_int_equal(info_of(set).map_count, 2); /* side by side, and two */
	fails(map(set, p, "a", (struct ffi_part_spec){.length = PAGE}, &part), PMEMSET_E_CANNOT_COALESCE_PARTS);
	delete_set(set);
}

/* ---- nothing, where one thing fails ---- */

static void one_of_them_is_in_use(void **state)
{
	struct place *p = here(state);
	uint64_t pin;
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = add(set, p, "a", 0, 1);
	for (int i = 0; i < 4; i++)
		(void)add(set, p, "a", 0, 1);
	for (uint64_t i = 0; i < 5; i++) {
		must(ffi_pin(set, base + i * PAGE, 1, &pin, &err));
		not_removed(set, base, 5 * PAGE, 0, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
		assert_int_equal(err.addr, base + i * PAGE);
		assert_int_equal(err.size, PAGE);
		assert_int_equal(err.value, 1);
		not_removed(set, base + i * PAGE, 0, 1, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
		fails(ffi_set_delete(set, &err), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
		/* A dry run only asks what would go. */
		struct report r;
		must(remove_into(&r, set, base, 5 * PAGE, 0, 1));
		assert_int_equal(r.counts.removed, 5);
		/* The others can be used as before: no map was left frozen. */
		char byte;
		for (uint64_t k = 0; k < 5; k++)
			must(ffi_read(set, base + k * PAGE, &byte, 1, 0, &err));
		must(ffi_unpin(pin));
	}
	must(remove_range(set, base, 5 * PAGE));
	delete_set(set);
}

static void write_to(uint64_t set, uint64_t addr, uint32_t durability)
{
	struct ffi_written w;
	must(ffi_write(set, addr, "bytes", 5, durability, &w, &err));
}

static void a_flush_fails(void **state)
{
	struct place *p = here(state);
	struct disk d;
	char bytes[5];
	open_disk(&d, p, 4 * PAGE);
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t base = add(set, p, "a", 0, 1);
	(void)add(set, &d.place, "x", 0, 2);
	(void)add(set, p, "a", 0, 1);
	write_to(set, base + PAGE, FFI_DURABILITY_PERSISTED);
	break_disk(&d);
	write_to(set, base, FFI_DURABILITY_NONE);
	write_to(set, base + PAGE, FFI_DURABILITY_NONE);
	struct report r;
	fails(remove_into(&r, set, base, 4 * PAGE, 0, 0), -EIO);
	assert_int_equal(err.reason, PMEMSET_REASON_PERSIST_FAILED);
	assert_int_equal(info_of(set).part_count, 3);
	assert_int_equal(info_of(set).degraded, 1);
	not_removed(set, base, 0, 1, -EIO);
	assert_int_equal(err.reason, PMEMSET_REASON_DEGRADED);
	/* What is not of that file can go; and when the loss is dealt with, the rest, and no byte is lost. */
	must(remove_range(set, base + 3 * PAGE, 1));
	must(remove_range(set, base, 1));
	mend_disk(&d);
	not_removed(set, base + PAGE, 1, 0, -EIO);
	forget_failure(&d.place, "x");
	write_to(set, base + PAGE, FFI_DURABILITY_NONE);
	must(remove_range(set, base + PAGE, 1));
	read_file(&d.place, "x", 0, bytes, sizeof(bytes));
	assert_memory_equal(bytes, "bytes", sizeof(bytes));
	delete_set(set);
	close_disk(&d);
}

/* ---- durable first, and no more than that ---- */

/* On a disk that fails every flush of it, a removal that succeeds did not flush. */
static void clean_parts_cost_no_flush(void **state)
{
	struct place *p = here(state);
	struct disk d;
	char byte;
	open_disk(&d, p, 8 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t only_read = add(set, &d.place, "x", 0, 1);
	uint64_t persisted = add(set, &d.place, "x", 1, 1);
	uint64_t written = add(set, &d.place, "x", 2, 1);
	write_to(set, persisted, FFI_DURABILITY_PERSISTED);
	break_disk(&d);
	write_to(set, written, FFI_DURABILITY_NONE); /* the file is dirty now, by this part alone */
	must(ffi_read(set, only_read, &byte, 1, 0, &err));
	must(remove_range(set, only_read, 1));
	must(remove_range(set, persisted, 1));
	struct report r;
	fails(remove_into(&r, set, written, 1, 0, 0), -EIO);
	mend_disk(&d);
	forget_failure(&d.place, "x");
	delete_set(set);
	close_disk(&d);
}

struct writer {
	uint64_t set, addr;
	_Atomic bool stop;
	_Atomic uint64_t writes;
};

static void *write_all_the_time(void *arg)
{
	struct writer *w = arg;
	struct ffi_written written;
	struct pmemset_error ignored;
	while (!atomic_load(&w->stop)) {
		must(ffi_write(w->set, w->addr, "x", 1, FFI_DURABILITY_NONE, &written, &ignored));
		atomic_fetch_add(&w->writes, 1);
	}
	return NULL;
}

/* Another part of the same file is being written to, without a pause: that is no use of this one. */
static void beside_a_busy_part(void **state)
{
	struct place *p = here(state);
	pthread_t thread;
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	struct writer w = {.set = set, .addr = add(set, p, "a", 0, 1)};
	assert_int_equal(pthread_create(&thread, NULL, write_all_the_time, &w), 0);
	while (atomic_load(&w.writes) < 1000)
		;
	for (int i = 0; i < 50; i++) {
		uint64_t addr = add(set, p, "a", 1, 1);
		write_to(set, addr, i % 2 ? FFI_DURABILITY_NONE : FFI_DURABILITY_PERSISTED);
		must(remove_range(set, addr, 1));
	}
	atomic_store(&w.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	delete_set(set);
}

/* ---- sets ---- */

static void whole_sets(void **state)
{
	struct place *p = here(state);
	char byte;
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "b", 8 * PAGE, 2);
	char *nothing = world(0, p);
	uint64_t other = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t kept = add(other, p, "a", 0, 8);
	char *before = world(other, p);
	/* Twice the same window, since it was given back. */
	for (int i = 0; i < 2; i++) {
		uint64_t set = new_set(FFI_COALESCING_OPPORTUNISTIC, 2 * MIB);
		assert_int_equal(info_of(set).window_addr, info_of(other).window_addr + 2 * MIB);
		for (uint64_t k = 0; k < 6; k++)
			(void)add(set, p, k % 2 ? "a" : "b", k, 1);
		must(remove_range(set, info_of(set).window_addr + 2 * PAGE, 1));
		write_to(set, info_of(set).window_addr, FFI_DURABILITY_NONE);
		write_to(set, info_of(set).window_addr + PAGE, FFI_DURABILITY_NONE);
		delete_set(set);
		must(ffi_read(other, kept, &byte, 1, 0, &err));
	}
	struct file *file;
	must(file_open(open(path_in(p, "a"), O_RDWR | O_CLOEXEC), &file, &err));
	assert_int_equal(file->stores, 2);
	assert_true(file_has_flushed(file, 2)); /* durable first */
	file_release(file);
	/* They were written to, so their sums are others. */
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "b", 8 * PAGE, 2);
	same_world(before, other, p);
	delete_set(other);
	same_world(nothing, 0, p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(random_removals),
			ON_EACH(each_way_to_cut),
			ON_EACH(ranges_that_are_none),
			ON_EACH(rows_that_do_not_fit),
			ON_EACH(previous_that_was_cut),
			ON_EACH(one_of_them_is_in_use),
			ON_EACH(a_flush_fails),
			ON_EACH(clean_parts_cost_no_flush),
			ON_EACH(beside_a_busy_part),
			ON_EACH(whole_sets),
	};
	return RUN("remove", tests, FFI_GRANULARITY_UNSET);
}
