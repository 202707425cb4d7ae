/* SPDX-License-Identifier: BSD-3-Clause */
/* Many maps, one after the other and all at once; and the end of the kernel's mappings, which the engine must not reach. */
#include "scene.h"

#include "window.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MANY scaled(28000)
#define SAMPLE scaled(1000)
#define SLACK (4 * MIB)

static struct ffi_part one_page(uint64_t set, const struct place *p, uint64_t page)
{
	return must_map(set, p, "a", (struct ffi_part_spec){.offset = page * PAGE, .length = PAGE});
}

static uint64_t resident_bytes(void)
{
	unsigned long long pages = 0;
	FILE *file = fopen("/proc/self/statm", "re");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%*u %llu", &pages), 1);
	(void)fclose(file);
	return pages * PAGE;
}

/* ---- one after the other ---- */

static void cycles_leave_nothing(void **state)
{
	const uint64_t cycles = scaled(10000);
	struct place *p = here(state);
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_OPPORTUNISTIC, 2 * MIB);
	char *before = NULL;
	uint64_t bytes = 0;
	for (uint64_t i = 0; i < cycles; i++) {
		struct ffi_part first = one_page(set, p, i % 8);
		assert_int_equal(first.addr, info_of(set).window_addr);
		struct ffi_part second = one_page(set, p, 0);
		must(remove_range(set, i % 2 ? first.addr : second.addr, 1));
		must(remove_range(set, i % 2 ? second.addr : first.addr, 1));
		if (i == cycles / 10) {
			before = world(set, p);
			bytes = resident_bytes();
		}
	}
	same_world(before, set, p);
	assert_true(!measures() || resident_bytes() < bytes + SLACK);
	delete_set(set);
}

/* ---- all at once ---- */

struct pace {
	double started, first, last;
	uint64_t bytes;
};

/* What this thread has worked, whoever else is busy on the machine. */
static double worked(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void pace(struct pace *pace, uint64_t i)
{
	double now = worked();
	if (i == 0)
		*pace = (struct pace){.bytes = resident_bytes()};
	if (i == 0 || i == MANY - SAMPLE)
		pace->started = now;
	if (i == SAMPLE)
		pace->first = now - pace->started;
	if (i == MANY)
		pace->last = now - pace->started;
}

static void kept_its_pace(const struct pace *pace, const char *what)
{
	uint64_t each = (resident_bytes() - pace->bytes) / MANY;
	print_message("%s: the first %" PRIu64 " in %.1f ms, the last in %.1f ms, %" PRIu64 " bytes each\n", what, SAMPLE,
			pace->first * 1e3, pace->last * 1e3, each);
	assert_true(!measures() || pace->last < 3 * pace->first + 0.02);
	assert_true(!measures() || each < 4096);
}

static void finds_all(uint64_t set, uint64_t base, uint64_t count, uint64_t apart)
{
	for (uint64_t i = 0; i < count; i += 1 + i % 7) {
		struct ffi_span span;
		must(ffi_lookup(set, base + i * apart * PAGE + PAGE - 1, &span));
		assert_int_equal(span.addr, base + i * apart * PAGE);
		if (apart > 1)
			fails(ffi_lookup(set, base + (i * apart + 1) * PAGE, &span), PMEMSET_E_CANNOT_FIND_PART_MAP);
	}
}

static void side_by_side(void **state)
{
	struct place *p = here(state);
	struct pace of_map, of_removal;
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 256 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (uint64_t i = 0; i <= MANY; i++) {
		pace(&of_map, i);
		assert_int_equal(one_page(set, p, 0).addr, base + i * PAGE);
	}
	kept_its_pace(&of_map, "maps side by side");
	assert_int_equal(mappings_used(), MANY + 2);
	finds_all(set, base, MANY, 1);
	for (uint64_t i = 0; i <= MANY; i++) {
		pace(&of_removal, i);
		must(remove_range(set, base + (i * 7919 % (MANY + 1)) * PAGE, 1)); /* a prime, so all of them */
	}
	kept_its_pace(&of_removal, "removals here and there");
	assert_int_equal(info_of(set).part_count, 0);
	delete_set(set);
}

struct reader {
	uint64_t set, addr;
	_Atomic bool stop;
	double longest;
};

/* As an event loop does, which has other things to do than to wait. */
static void *read_at_once(void *arg)
{
	struct reader *r = arg;
	struct pmemset_error ignored;
	char byte;
	while (!atomic_load(&r->stop)) {
		double started = seconds();
		(void)ffi_read(r->set, r->addr, &byte, 1, 1, &ignored);
		double took = seconds() - started;
		r->longest = took > r->longest ? took : r->longest;
		(void)usleep(200);
	}
	return NULL;
}

/* The removal of many maps is prepared while they can be used; only the moment of the change is in the way of reads. */
static void a_large_removal_holds_nobody_up(void **state)
{
	struct place *p = here(state);
	double longest = 1;
	make_file(p, "a", 8 * PAGE, 1);
	/* What else runs on this machine may hold a thread up as well, so the best of a few counts. */
	for (int i = 0; i < (measures() ? 3 : 1); i++) {
		pthread_t thread;
		uint64_t set = new_set(FFI_COALESCING_NONE, 256 * MIB);
		for (uint64_t k = 0; k < MANY; k++)
			(void)one_page(set, p, 0);
		struct reader r = {.set = set, .addr = info_of(set).window_addr + (MANY / 2) * PAGE};
		assert_int_equal(pthread_create(&thread, NULL, read_at_once, &r), 0);
		(void)usleep(20000);
		double started = seconds();
		int rc;
		while ((rc = remove_range(set, info_of(set).window_addr, MANY * PAGE)) == PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP)
			;
		double took = seconds() - started;
		atomic_store(&r.stop, true);
		assert_int_equal(pthread_join(thread, NULL), 0);
		must(rc);
		print_message("%" PRIu64 " maps removed in %.1f ms; the longest read took %.1f ms\n", MANY, took * 1e3, r.longest * 1e3);
		longest = r.longest < longest ? r.longest : longest;
		delete_set(set);
	}
	assert_true(!measures() || longest < 0.01);
}

/* The whole file at once, as one map of many parts. */
static void coalesced(void **state)
{
	struct place *p = here(state);
	struct pace of_map;
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 256 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (uint64_t i = 0; i <= MANY; i++) {
		pace(&of_map, i);
		(void)one_page(set, p, i % 8);
	}
	kept_its_pace(&of_map, "one map that grows");
	assert_int_equal(info_of(set).map_count, 1);
	struct ffi_written w;
	double started = seconds();
	must(ffi_persist(set, (uint64_t[]){base, MANY * PAGE}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
	must(remove_range(set, base, MANY * PAGE));
	print_message("flushed and removed at once in %.1f ms\n", (seconds() - started) * 1e3);
	assert_int_equal(info_of(set).part_count, 1);
	delete_set(set);
}

/* ---- the limit ---- */

/* Parts with a gap behind each, which are mappings, too: every second of those side by side is taken out again. */
static void with_gaps(uint64_t set, const struct place *p, uint64_t base, uint64_t count)
{
	for (uint64_t i = 0; i < 2 * count; i++)
		assert_int_equal(one_page(set, p, i % 8).addr, base + i * PAGE);
	for (uint64_t i = 0; i < count; i++)
		must(remove_range(set, base + (2 * i + 1) * PAGE, 1));
}

static void everything_goes_on(uint64_t set, uint64_t base)
{
	struct ffi_written w;
	struct ffi_span spans[100];
	char bytes[64];
	uint64_t pin;
	must(ffi_read(set, base, bytes, sizeof(bytes), 0, &err));
	must(ffi_write(set, base, bytes, sizeof(bytes), FFI_DURABILITY_PERSISTED, &w, &err));
	must(ffi_pin(set, base, 1, &pin, &err));
	must(ffi_unpin(pin));
	assert_true(ffi_maps(set, base, 0, spans, 100) == 100);
	void *elsewhere = mmap(NULL, MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(elsewhere, MAP_FAILED);
	assert_int_equal(munmap(elsewhere, MIB), 0);
}

static void the_limit_is_the_engines(void **state)
{
	struct place *p = here(state);
	struct ffi_part part;
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "b", PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 512 * MIB);
	uint64_t base = info_of(set).window_addr;
	/* Where the kernel allows a lot, some of that is taken away, for time's sake. */
	int64_t few = (int64_t)scaled(60000);
	int64_t taken = (int64_t)mappings_max() > few ? (int64_t)mappings_max() - few : 0;
	must(mappings_take(taken, &err));
	uint64_t count = (mappings_max() - (uint64_t)taken - 100) / 2;
	with_gaps(set, p, base, count);
	assert_int_equal(mappings_used() - (uint64_t)taken, 2 * count);
	finds_all(set, base, count, 2);
	uint64_t more = 0;
	int rc;
	while ((rc = map(set, p, "a", (struct ffi_part_spec){.length = 2 * PAGE}, &part)) == 0)
		more++;
	must_be(rc, -ENOMEM, "the map at the limit", __FILE__, __LINE__);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_MAPPINGS);
	assert_int_equal(err.value, mappings_max());
	assert_true(more > 50 && mappings_used() <= mappings_max() && mappings_used() + 2 >= mappings_max());
	/* The kernel agrees, and has room for the others in the process. */
	assert_true(arena_mappings() <= mappings_used() + 1 && arena_mappings() + (uint64_t)taken + 200 > mappings_used());

	char *before = world(0, p);
	for (int i = 0; i < 3; i++) {
		memset(&err, 0, sizeof(err));
		fails(map(set, p, "b", (struct ffi_part_spec){.length = 2 * PAGE, .grow = 1}, &part), -ENOMEM);
		assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_MAPPINGS);
		fails(map(set, p, "c", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_ALWAYS}, &part), -ENOMEM);
	}
	same_world(before, 0, p);
	everything_goes_on(set, base);
	/* What goes makes room for what comes. */
	must(remove_range(set, base, 10 * PAGE));
	for (int i = 0; i < 5; i++)
		(void)one_page(set, p, 3);
	everything_goes_on(set, base);
	double started = seconds();
	delete_set(set);
	print_message("%" PRIu64 " parts with gaps removed at once in %.1f ms\n", count + more, (seconds() - started) * 1e3);
	must(mappings_take(-taken, &err));
}

/* ---- the kernel's own limit, which others in the process can reach ---- */

struct filler {
	char *pages;
	uint64_t count;
	char *further[8];
	int n;
};

/* Takes all the mappings that there are: every second page with other permissions than its neighbours. */
static void take_all_mappings(struct filler *f)
{
	f->count = mappings_max() + 32768;
	f->n = 0;
	f->pages = mmap(NULL, f->count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(f->pages, MAP_FAILED);
	for (uint64_t i = 1; i < f->count && mprotect(f->pages + i * PAGE, PAGE, PROT_READ) == 0; i += 2)
		;
	while (f->n < 8 && (f->further[f->n] = mmap(NULL, PAGE, f->n % 2 ? PROT_NONE : PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) !=
					   MAP_FAILED)
		f->n++;
}

static void give_all_back(struct filler *f)
{
	while (f->n > 0)
		assert_int_equal(munmap(f->further[--f->n], PAGE), 0);
	assert_int_equal(munmap(f->pages, f->count * PAGE), 0);
}

static void a_range_that_is_lost(void **state)
{
	struct place *p = here(state);
	struct filler filler;
	struct ffi_part part;
	struct ffi_span span;
	char byte;
	make_file(p, "a", 8 * PAGE, 1);
	no_valgrind("ends at 30 000 mappings, before the kernel does");
#ifdef __SANITIZE_THREAD__
	print_message("ThreadSanitizer needs mappings of its own, and ends where there is none\n");
	skip();
#endif
	if (mappings_max() > 200000) {
		print_message("vm.max_map_count is too high to be reached here\n");
		skip();
	}
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (int i = 0; i < 3; i++)
		(void)one_page(set, p, 0);
	take_all_mappings(&filler);
	int mapped = map(set, p, "a", (struct ffi_part_spec){.length = PAGE}, &part);
	int lost = remove_range(set, base + PAGE, 1);
	give_all_back(&filler);
	/* Refused, and fenced as before; the removal is one all the same, though the page could not be fenced. */
	must_be(mapped, PMEMSET_E_INVALID_PMEM2_MAP, "a map without a mapping", __FILE__, __LINE__);
	must(lost);
	covered(base + PAGE, PAGE, "rw-s");
	assert_int_equal(info_of(set).part_count, 2);
	fails(ffi_lookup(set, base + PAGE, &span), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(ffi_read(set, base + PAGE, &byte, 1, 0, &err), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(remove_range(set, base + PAGE, PAGE), PMEMSET_E_CANNOT_FIND_PART_MAP);
	struct ffi_span rows[4];
	assert_int_equal(ffi_maps(set, base, 0, rows, 4), 2);
	assert_int_equal(rows[1].map_addr, base + 2 * PAGE);
	/* It is no range that was kept for a part. */
	fails(ffi_release(set, base + PAGE, PAGE, &err), -ENOENT);
	struct ffi_restore_file file = {.volume = p->volume, .path_length = 1};
	struct ffi_restore_part again = {.length = PAGE, .cookie = 1, .addr = base + PAGE};
	must(ffi_restore(set, &file, 1, "a", 1, &again, 1, &err));
	assert_int_equal(again.cause, PMEM2_E_MAPPING_EXISTS);
	assert_int_equal(again.kept, 0);
	/* Nothing is mapped over it, not by this set and not by one that comes after it. */
	assert_int_equal(one_page(set, p, 0).addr, base + 3 * PAGE);
	delete_set(set);
	uint64_t next = new_set(FFI_COALESCING_NONE, 2 * MIB);
	assert_true(info_of(next).window_addr >= base + 2 * MIB);
	covered(base + PAGE, PAGE, "rw-s");
	delete_set(next);
	/* For the count of what is left behind. */
	assert_int_equal(window_unmap(base + PAGE, PAGE), 0);
	must(mappings_take(-(int64_t)mappings_used(), &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(cycles_leave_nothing),
			{"side_by_side", side_by_side, scene_enter, scene_leave, &places[0]},
			{"a_large_removal_holds_nobody_up", a_large_removal_holds_nobody_up, scene_enter, scene_leave, &places[0]},
			{"coalesced", coalesced, scene_enter, scene_leave, &places[0]},
			{"the_limit_is_the_engines", the_limit_is_the_engines, scene_enter, scene_leave, &places[0]},
			{"a_range_that_is_lost", a_range_that_is_lost, scene_enter, scene_leave, &places[0]},
	};
	return RUN("many", tests, FFI_GRANULARITY_UNSET);
}
