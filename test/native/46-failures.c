/* SPDX-License-Identifier: BSD-3-Clause */
/* Flushes that fail on a real disk: who is told, what is in doubt, and how it is dealt with. */
#include "scene.h"

#include "batch.h"
#include "dirt.h"
#include "failure.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libpmemset.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static uint64_t add(uint64_t set, const struct place *p, const char *name, uint64_t first, uint64_t pages)
{
	return must_map(set, p, name, (struct ffi_part_spec){.offset = first * PAGE, .length = pages * PAGE}).addr;
}

static int store(uint64_t set, uint64_t addr, char byte, uint64_t length, uint32_t durability)
{
	struct ffi_written w;
	char *buf = malloc(length);
	assert_non_null(buf);
	memset(buf, byte, length);
	int rc = ffi_write(set, addr, buf, length, durability, &w, &err);
	free(buf);
	return rc;
}

static int persist(uint64_t set, uint64_t addr, uint64_t length)
{
	struct ffi_written w;
	return ffi_persist(set, (uint64_t[]){addr, length}, 1, FFI_DURABILITY_PERSISTED, &w, &err);
}

static void fails_with(int rc, uint32_t reason)
{
	must_be(rc, -EIO, "it", __FILE__, __LINE__);
	assert_int_equal(err.reason, reason);
	assert_true(err.sys_errno == ENOSPC || err.sys_errno == EIO);
}

/* The one failure of the set. */
static uint64_t failure_of(uint64_t set)
{
	uint64_t rows[6];
	must_be(ffi_failures(set, rows, 2), 1, "failures", __FILE__, __LINE__);
	assert_true(rows[0] > 0);
	assert_true(rows[2] == ENOSPC || rows[2] == EIO);
	struct timespec now;
	(void)clock_gettime(CLOCK_REALTIME, &now);
	uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
	assert_true(rows[1] <= ms && rows[1] + 60000 > ms);
	return rows[0];
}

/* Pages in doubt from `addr` on, as text: one letter a page. */
static void in_doubt(uint64_t set, uint64_t failure, uint64_t addr, const char *pages)
{
	uint64_t ranges[2 * 64];
	char text[64] = {0};
	memset(text, '.', strlen(pages));
	int64_t count = ffi_failure_ranges(set, failure, ranges, 64);
	assert_true(count >= 0);
	for (int64_t i = 0; i < count; i++) {
		assert_true(ranges[2 * i] % PAGE == 0 && ranges[2 * i + 1] % PAGE == 0 && ranges[2 * i + 1] > 0);
		for (uint64_t at = ranges[2 * i]; at < ranges[2 * i] + ranges[2 * i + 1]; at += PAGE) {
			assert_true(at >= addr && (at - addr) / PAGE < strlen(pages));
			text[(at - addr) / PAGE] = 'x';
		}
	}
	assert_string_equal(text, pages);
}

static void shows(uint64_t set, uint64_t addr, char byte)
{
	char got;
	must(ffi_read(set, addr, &got, 1, 0, &err));
	assert_int_equal(got, byte);
}

static void has(const struct disk *d, uint64_t offset, char byte)
{
	char got;
	read_disk(d, offset, &got, 1);
	assert_int_equal(got, byte);
}

static void is_well(uint64_t set, uint64_t addr, const struct disk *d)
{
	uint64_t row[3];
	assert_int_equal(info_of(set).degraded, 0);
	must_be(ffi_failures(set, row, 1), 0, "failures", __FILE__, __LINE__);
	must(store(set, addr, 'w', 1, FFI_DURABILITY_PERSISTED));
	has(d, 0, 'w');
}

/* ---- what is written down ---- */

#define MODEL_PAGES 512u

static void covers(const struct dirt *dirt, const bool *model, bool exactly)
{
	bool said[MODEL_PAGES] = {false};
	for (uint32_t i = 0; i < dirt->count; i++) {
		assert_true(dirt->at[i].from < dirt->at[i].to && (i == 0 || dirt->at[i - 1].to < dirt->at[i].from));
		for (uint64_t at = dirt->at[i].from / PAGE; at < dirt->at[i].to / PAGE; at++)
			said[at] = true;
	}
	assert_true(dirt->count <= DIRT_MAX);
	for (unsigned i = 0; i < MODEL_PAGES; i++)
		assert_true(exactly ? said[i] == model[i] : said[i] || !model[i]);
}

/* Against one that has a flag for each page: exact as long as there is room, and never less. */
static void dirt_is_never_less(void **state)
{
	(void)state;
	(void)seed_chance();
	for (unsigned round = 0; round < 200; round++) {
		struct dirt dirt = {.count = 0};
		bool model[MODEL_PAGES] = {false};
		bool exact = true;
		uint64_t pages = 1 + chance(round % 2 ? 64 : MODEL_PAGES);
		for (unsigned step = 0; step < 300; step++) {
			uint64_t from = chance(pages * PAGE);
			uint64_t to = from + chance(4 * PAGE) + 1;
			to = to < pages * PAGE ? to : pages * PAGE;
			bool adds = chance(3) != 0;
			uint64_t first = from / PAGE;
			uint64_t end = (to + PAGE - 1) / PAGE;
			exact &= dirt.count + 2 <= DIRT_MAX;
			for (uint64_t i = first; i < end; i++)
				model[i] = adds;
			if (adds)
				dirt_add(&dirt, from, to);
			else
				dirt_cut(&dirt, first * PAGE, end * PAGE);
			covers(&dirt, model, exact);
		}
	}
	struct dirt none = {.count = 0};
	dirt_add(&none, PAGE, PAGE);
	assert_int_equal(none.count, 0);
}

/* The gaps that are given up are the smallest. */
static void the_nearest_become_one(void **state)
{
	(void)state;
	struct dirt dirt = {.count = 0};
	for (uint64_t i = 0; i < DIRT_MAX; i++)
		dirt_add(&dirt, 100 * i * PAGE, 100 * i * PAGE + 1);
	dirt_add(&dirt, 710 * PAGE, 711 * PAGE);
	assert_int_equal(dirt.count, DIRT_MAX);
	assert_int_equal(dirt.at[7].from, 700 * PAGE);
	assert_int_equal(dirt.at[7].to, 711 * PAGE);
	dirt_cut(&dirt, 705 * PAGE, 706 * PAGE); /* no room for two */
	assert_int_equal(dirt.count, DIRT_MAX);
	assert_int_equal(dirt.at[7].to, 711 * PAGE);
}

/* ---- who is told ---- */

#define GROUP 8

struct waiter {
	uint64_t set, addr;
	pthread_barrier_t *start;
	int rc;
	struct pmemset_error e;
};

static void *write_durably(void *arg)
{
	struct waiter *w = arg;
	struct ffi_written written;
	pthread_barrier_wait(w->start);
	w->rc = ffi_write(w->set, w->addr, "group", 5, FFI_DURABILITY_PERSISTED, &written, &w->e);
	return NULL;
}

static void everybody_is_told(void **state)
{
	struct disk d;
	pthread_t threads[GROUP];
	struct waiter waiters[GROUP];
	pthread_barrier_t start;
	open_disk(&d, here(state), (GROUP + 4) * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t twin = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, GROUP + 2);
	uint64_t other = add(twin, &d.place, "x", GROUP, 4); /* of which two pages are in both */
	uint64_t row[3];
	must_be(ffi_failures(set, row, 1), 0, "failures", __FILE__, __LINE__);
	fails(ffi_failure_ranges(set, 1, NULL, 0), -ENOENT);
	fails(ffi_acknowledge(set, 1, FFI_RECOVERY_REWRITE, &err), -ENOENT);
	fails(ffi_acknowledge(set, 1, 2, &err), -EINVAL);
	break_disk(&d);
	must(store(set, addr + (GROUP + 1) * PAGE, 'n', 1, FFI_DURABILITY_NONE));
	must(store(twin, other + 3 * PAGE, 'n', 1, FFI_DURABILITY_NONE));
	must_be(pthread_barrier_init(&start, NULL, GROUP), 0, "barrier", __FILE__, __LINE__);
	for (uint64_t i = 0; i < GROUP; i++) {
		waiters[i] = (struct waiter){.set = set, .addr = addr + i * PAGE, .start = &start};
		assert_int_equal(pthread_create(&threads[i], NULL, write_durably, &waiters[i]), 0);
	}
	unsigned first = 0;
	for (unsigned i = 0; i < GROUP; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_int_equal(waiters[i].rc, -EIO);
		assert_true(waiters[i].e.reason == PMEMSET_REASON_PERSIST_FAILED || waiters[i].e.reason == PMEMSET_REASON_DEGRADED);
		first += waiters[i].e.reason == PMEMSET_REASON_PERSIST_FAILED;
	}
	assert_true(first > 0);
	(void)pthread_barrier_destroy(&start);

	uint64_t failure = failure_of(set);
	assert_int_equal(failure_of(twin), failure);
	char pages[GROUP + 3] = {0};
	uint64_t ranges[2 * GROUP];
	int64_t count = ffi_failure_ranges(set, failure, ranges, GROUP);
	assert_true(count > 0);
	/* Who came when all was over has not stored. */
	for (unsigned i = 0; i < GROUP + 2; i++)
		pages[i] = (i < GROUP && waiters[i].e.value > 0) || i == GROUP + 1 ? 'x' : '.';
	in_doubt(set, failure, addr, pages);
	in_doubt(twin, failure, other, ".x.x");
	must_be(ffi_failure_ranges(set, failure, ranges, 1), 1, "as many as there is room for", __FILE__, __LINE__);
	fails(ffi_failure_ranges(set, failure + 1, ranges, 1), -ENOENT);
	assert_int_equal(info_of(twin).degraded, 1);
	fails_with(persist(set, addr, PAGE), PMEMSET_REASON_DEGRADED);
	fails_with(persist(twin, other, PAGE), PMEMSET_REASON_DEGRADED);

	/* Dealt with in one, it is in the other. */
	mend_disk(&d);
	fails(ffi_acknowledge(set, failure + 1, FFI_RECOVERY_REWRITE, &err), -ENOENT);
	must(ffi_acknowledge(twin, failure, FFI_RECOVERY_REWRITE, &err));
	fails(ffi_acknowledge(set, failure, FFI_RECOVERY_REWRITE, &err), -ENOENT);
	has(&d, (GROUP + 1) * PAGE, 'n');
	has(&d, (GROUP + 3) * PAGE, 'n');
	for (unsigned i = 0; i < GROUP; i++)
		has(&d, i * PAGE, waiters[i].e.value > 0 ? 'g' : 0); /* what was on it is gone with the block */
	is_well(set, addr, &d);
	is_well(twin, other, &d);
	delete_set(twin);
	delete_set(set);
	close_disk(&d);
}

/* ---- what is in doubt ---- */

static void what_was_flushed_is_not_in_doubt(void **state)
{
	struct disk d;
	open_disk(&d, here(state), 16 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	/* The file in two parts, the other way round; what is behind the seam of the file is in front in the set. */
	uint64_t addr = add(set, &d.place, "x", 4, 4);
	assert_int_equal(add(set, &d.place, "x", 0, 4), addr + 4 * PAGE);
	must(store(set, addr, 'a', PAGE, FFI_DURABILITY_NONE));
	must(store(set, addr + PAGE, 'a', 3 * PAGE + 1, FFI_DURABILITY_NONE)); /* across the seam */
	must(persist(set, addr + 2 * PAGE, 1));
	must(store(set, addr + 6 * PAGE, 'a', 1, FFI_DURABILITY_PERSISTED));
	break_disk(&d);
	fails_with(store(set, addr + 7 * PAGE, 'a', 1, FFI_DURABILITY_PERSISTED), PMEMSET_REASON_PERSIST_FAILED);
	in_doubt(set, failure_of(set), addr, "xx.xx..x");
	/* Stores that promise nothing go on, and join them. */
	must(store(set, addr + 5 * PAGE + 1, 'a', 1, FFI_DURABILITY_NONE));
	fails_with(store(set, addr + 6 * PAGE, 'a', 1, FFI_DURABILITY_FLUSHED), PMEMSET_REASON_DEGRADED);
	in_doubt(set, failure_of(set), addr, "xx.xxx.x");
	mend_disk(&d);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	/* A flush of the whole file leaves nothing. */
	uint64_t other = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t passing = add(other, &d.place, "x", 0, 1);
	must(store(set, addr, 'b', 2 * PAGE, FFI_DURABILITY_NONE));
	must(store(other, passing, 'b', 1, FFI_DURABILITY_NONE));
	must(remove_range(other, passing, 1));
	uint64_t high = add(other, &d.place, "x", 8, 8);
	break_disk(&d);
	must(store(other, high + PAGE, 'b', 1, FFI_DURABILITY_NONE));
	fails_with(persist(other, high + PAGE, 1), PMEMSET_REASON_PERSIST_FAILED);
	in_doubt(other, failure_of(other), high, ".x......");
	in_doubt(set, failure_of(set), addr, "........"); /* nothing of it, and degraded all the same */
	fails_with(persist(set, addr, 1), PMEMSET_REASON_DEGRADED);
	mend_disk(&d);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	delete_set(other);
	delete_set(set);
	close_disk(&d);
}

/* Scattered over more places than can be written down. */
static void what_is_in_doubt_is_bounded(void **state)
{
	struct disk d;
	uint64_t ranges[2 * 128];
	open_disk(&d, here(state), 1024 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 8 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 1024);
	break_disk(&d);
	for (uint64_t i = 0; i < 512; i++)
		must(store(set, addr + 2 * i * PAGE, 's', 1, FFI_DURABILITY_NONE));
	fails_with(persist(set, addr, PAGE), PMEMSET_REASON_PERSIST_FAILED);
	int64_t count = ffi_failure_ranges(set, failure_of(set), ranges, 128);
	assert_true(count > 0 && count <= DIRT_MAX);
	for (uint64_t i = 0; i < 512; i++) {
		bool found = false;
		for (int64_t r = 0; r < count; r++)
			found |= addr + 2 * i * PAGE - ranges[2 * r] < ranges[2 * r + 1];
		assert_true(found);
	}
	mend_disk(&d);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	for (uint64_t i = 0; i < 512; i++)
		has(&d, 2 * i * PAGE, 's');
	is_well(set, addr, &d);
	delete_set(set);
	close_disk(&d);
}

/* Writes that share their flushes, one of them over two parts and two files, and an atomic of a batch. */
static void grouped_stores(void **state)
{
	struct place *p = here(state);
	struct disk d;
	struct pmemset_error errs[3];
	char data[3];
	open_disk(&d, p, 8 * PAGE);
	make_file(p, "well", PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 4, 2);
	(void)add(set, &d.place, "x", 0, 2);
	uint64_t well = add(set, p, "well", 0, 1);
	break_disk(&d);
	memset(data, 'g', sizeof(data));
	struct ffi_write rows[3] = {{.addr = addr + 2 * PAGE - 1, .length = 2}, {.addr = well, .length = 1},
			{.addr = well - 1, .length = 2}};
	for (unsigned i = 0; i < 3; i++) {
		rows[i].set = set;
		rows[i].durability = FFI_DURABILITY_PERSISTED;
	}
	must_be(ffi_write_many(rows, 3, data, sizeof(data), errs), 2, "writes", __FILE__, __LINE__);
	assert_int_equal(rows[1].rc, 0);
	for (unsigned i = 0; i < 3; i += 2) {
		assert_int_equal(rows[i].rc, -EIO);
		assert_int_equal(errs[i].reason, PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(errs[i].value, 2);
	}
	uint64_t failure = failure_of(set);
	in_doubt(set, failure, addr, ".xxx.");
	mend_disk(&d);
	must(ffi_acknowledge(set, failure, FFI_RECOVERY_REWRITE, &err));
	assert_int_equal(info_of(set).degraded, 0);
	has(&d, 6 * PAGE - 1, 'g');
	has(&d, 0, 'g');
	has(&d, 2 * PAGE - 1, 'g');

	struct {
		struct batch_header head;
		struct batch_operation op;
	} batch = {{.magic = BATCH_MAGIC, .version = BATCH_VERSION, .count = 1},
			{.op = BATCH_ADD, .addr = addr + PAGE, .length = 8, .argument = 'a'}};
	char reply[64];
	uint64_t failed;
	break_disk(&d);
	assert_int_equal(ffi_batch_check(&batch, sizeof(batch), &err), sizeof(struct batch_reply) + sizeof(struct atomic_result));
	fails_with(ffi_batch(set, &batch, sizeof(batch), reply, sizeof(reply), 0, &failed, &err), PMEMSET_REASON_PERSIST_FAILED);
	in_doubt(set, failure_of(set), addr, ".x...");
	mend_disk(&d);
	has(&d, 5 * PAGE, 0);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	has(&d, 5 * PAGE, (char)(byte_of(1, 5 * PAGE) + 'a'));
	delete_set(set);
	close_disk(&d);
}

/* Of stores through pointers nobody knows where they went. */
static void stores_through_pointers(void **state)
{
	struct disk d;
	struct pmemset_config *config;
	struct pmemset *direct;
	struct pmemset_source *source;
	struct pmemset_part_descriptor desc;
	struct pmemset_map_config *map_config;
	open_disk(&d, here(state), 8 * PAGE);
	must(pmemset_config_new(&config));
	must(pmemset_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE));
	must(pmemset_new(&direct, config));
	must(pmemset_config_delete(&config));
	must(pmemset_source_from_file(&source, path_in(&d.place, "x")));
	must(pmemset_map_config_new(&map_config));
	pmemset_map_config_set_offset(map_config, 2 * PAGE);
	pmemset_map_config_set_length(map_config, 3 * PAGE);
	must(pmemset_map(direct, source, map_config, &desc));
	must(pmemset_map_config_delete(&map_config));
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 8);
	break_disk(&d);
	*((char *)desc.addr + PAGE) = 'p';
	must(store(set, addr, 'n', 1, FFI_DURABILITY_NONE));
	fails(pmemset_persist(direct, (char *)desc.addr + PAGE, 1), -EIO);
	in_doubt(set, failure_of(set), addr, "x.xxx...");
	*((char *)desc.addr + 2 * PAGE) = 'q';
	mend_disk(&d);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	has(&d, 3 * PAGE, 'p');
	has(&d, 4 * PAGE, 'q');
	must(pmemset_persist(direct, desc.addr, desc.size));
	must(pmemset_source_delete(&source));
	must(pmemset_delete(&direct));
	delete_set(set);
	close_disk(&d);
}

/* ---- rewrite ---- */

static void rewritten(void **state)
{
	struct disk d;
	open_disk(&d, here(state), 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	must(store(set, addr, 'o', 4 * PAGE, FFI_DURABILITY_PERSISTED));
	break_disk(&d);
	must(store(set, addr, 'n', 2 * PAGE, FFI_DURABILITY_NONE));
	fails_with(persist(set, addr, 1), PMEMSET_REASON_PERSIST_FAILED);
	uint64_t failure = failure_of(set);
	/* As long as the disk refuses, it stays, as often as it is tried. */
	for (int i = 0; i < 3; i++) {
		fails_with(ffi_acknowledge(set, failure, FFI_RECOVERY_REWRITE, &err), PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(failure_of(set), failure);
		in_doubt(set, failure, addr, "xx..");
		fails_with(persist(set, addr, 1), PMEMSET_REASON_DEGRADED);
		fails_with(remove_range(set, addr, 1), PMEMSET_REASON_DEGRADED);
	}
	mend_disk(&d);
	has(&d, PAGE, 0);
	fails_with(persist(set, addr, 1), PMEMSET_REASON_DEGRADED); /* which would be a lie: the pages are clean */
	must(ffi_acknowledge(set, failure, FFI_RECOVERY_REWRITE, &err));
	has(&d, 0, 'n');
	has(&d, 2 * PAGE - 1, 'n');
	shows(set, addr + PAGE, 'n');
	is_well(set, addr, &d);

	/* Another one is another. */
	break_disk(&d);
	fails_with(store(set, addr + PAGE, 'm', PAGE, FFI_DURABILITY_PERSISTED), PMEMSET_REASON_PERSIST_FAILED);
	assert_true(failure_of(set) > failure);
	in_doubt(set, failure_of(set), addr, ".x..");
	fails(ffi_acknowledge(set, failure, FFI_RECOVERY_REWRITE, &err), -ENOENT);
	mend_disk(&d);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	has(&d, PAGE, 'm');
	must(remove_range(set, addr, 1));
	delete_set(set);
	close_disk(&d);
}

/* What was cut off is nobody's to rewrite, and no reason to keep the failure. */
static void rewritten_where_the_file_ends(void **state)
{
	struct disk d;
	open_disk(&d, here(state), 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	break_disk(&d);
	must(store(set, addr, 'n', 4 * PAGE, FFI_DURABILITY_NONE));
	fails_with(persist(set, addr, 4 * PAGE), PMEMSET_REASON_PERSIST_FAILED);
	mend_disk(&d);
	assert_int_equal(truncate(path_in(&d.place, "x"), (off_t)PAGE + 100), 0);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	has(&d, PAGE + 99, 'n');
	assert_int_equal(file_size(&d.place, "x"), PAGE + 100);
	is_well(set, addr, &d);
	delete_set(set);
	close_disk(&d);
}

/* A page that left the page cache has the medium's bytes again, and there is nothing to be made durable. */
static void rewritten_after_eviction(void **state)
{
	struct disk d;
	struct file *file;
	open_disk(&d, here(state), 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	break_disk(&d);
	must(store(set, addr, 'n', 2 * PAGE, FFI_DURABILITY_NONE));
	fails_with(persist(set, addr, 1), PMEMSET_REASON_PERSIST_FAILED);
	mend_disk(&d);
	write_disk(&d, 0, "old", 3);
	int fd = open(path_in(&d.place, "x"), O_RDWR | O_CLOEXEC);
	must(file_open(fd, &file, &err));
	file_unmap_pages(file);
	assert_int_equal(posix_fadvise(file->fd, 0, (off_t)PAGE, POSIX_FADV_DONTNEED), 0);
	file_release(file);
	shows(set, addr, 'o');
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	shows(set, addr, 'o');
	has(&d, 0, 'o');
	has(&d, PAGE, 'n');
	is_well(set, addr, &d);
	delete_set(set);
	close_disk(&d);
}

/* ---- discard ---- */

static const char *const reads_again = "reads the beginning of each file that is mapped, so its first page is always in memory";

static void discarded(void **state)
{
	struct disk d;
	no_valgrind(reads_again);
	open_disk(&d, here(state), 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t twin = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	uint64_t other = add(twin, &d.place, "x", 1, 3);
	uint64_t pin;
	break_disk(&d);
	must(store(set, addr, 'n', 3 * PAGE, FFI_DURABILITY_NONE));
	fails_with(persist(set, addr, 1), PMEMSET_REASON_PERSIST_FAILED);
	mend_disk(&d);
	/* Its blocks were taken away; so that there are old bytes, they are put there. */
	for (uint64_t i = 0; i < 4; i++)
		write_disk(&d, i * PAGE, "old", 3);
	shows(set, addr, 'n');
	shows(twin, other, 'n');
	must(ffi_pin(set, addr, PAGE, &pin, &err)); /* which is no obstacle */
	must(store(set, addr + 2 * PAGE, 'z', 1, FFI_DURABILITY_NONE));
	in_doubt(set, failure_of(set), addr, "xxx.");
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_DISCARD, &err));
	must(ffi_unpin(pin));
	shows(set, addr, 'o');
	shows(set, addr + PAGE, 'o');
	shows(twin, other, 'o');
	/* Stored to since, and so on the medium, as the page was. */
	shows(set, addr + 2 * PAGE, 'z');
	shows(set, addr + 2 * PAGE + 1, 'n');
	has(&d, 2 * PAGE, 'z');
	is_well(set, addr, &d);
	is_well(twin, other, &d);
	delete_set(twin);
	delete_set(set);
	close_disk(&d);
}

/* Another process holds a page: then it stays what it is, and that is said. */
static void discard_that_another_process_prevents(void **state)
{
	struct disk d;
	int ready[2];
	char byte;
	no_valgrind(reads_again);
	open_disk(&d, here(state), 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	break_disk(&d);
	must(store(set, addr, 'n', PAGE, FFI_DURABILITY_NONE));
	fails_with(persist(set, addr, 1), PMEMSET_REASON_PERSIST_FAILED);
	mend_disk(&d);
	write_disk(&d, 0, "old", 3);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid_t other = fork();
	if (other == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		int fd = open(path_in(&d.place, "x"), O_RDONLY | O_CLOEXEC);
		const volatile char *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
		byte = page[0];
		(void)!write(ready[1], &byte, 1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(byte, 'n');
	uint64_t failure = failure_of(set);
	fails(ffi_acknowledge(set, failure, FFI_RECOVERY_DISCARD, &err), -EBUSY);
	assert_int_equal(failure_of(set), failure);
	in_doubt(set, failure, addr, "x...");
	shows(set, addr, 'n');
	fails_with(persist(set, addr, 1), PMEMSET_REASON_DEGRADED);
	assert_int_equal(kill(other, SIGKILL), 0);
	assert_int_equal(waitpid(other, NULL, 0), other);
	must(ffi_acknowledge(set, failure, FFI_RECOVERY_DISCARD, &err));
	shows(set, addr, 'o');
	is_well(set, addr, &d);
	assert_int_equal(close(ready[0]) | close(ready[1]), 0);
	delete_set(set);
	close_disk(&d);
}

/* ---- stores and flushes that a failure comes in between ---- */

static void told_of_late(void **state)
{
	struct disk d;
	struct file *file;
	open_disk(&d, here(state), 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	must(file_open(open(path_in(&d.place, "x"), O_RDWR | O_CLOEXEC), &file, &err));
	uint64_t since = file_losses(file);
	/* Begun here: a store of pages 2 and 3, and one that is to be durable, of page 1. */
	break_disk(&d);
	fails_with(store(set, addr, 'n', 1, FFI_DURABILITY_PERSISTED), PMEMSET_REASON_PERSIST_FAILED);
	uint64_t failure = failure_of(set);
	mend_disk(&d);
	must(ffi_acknowledge(set, failure, FFI_RECOVERY_REWRITE, &err));
	assert_int_equal(info_of(set).degraded, 0);
	/* Done here: what the failed flush did with their bytes, nobody knows. */
	struct flush_range range = {.addr = addr + PAGE, .length = 1, .offset = PAGE, .since = since};
	fails_with(file_flush(file, &range, 1, &err), PMEMSET_REASON_DEGRADED);
	assert_int_equal(info_of(set).degraded, 0);
	(void)file_soil(file, PAGE, 1, since);
	assert_true(failure_of(set) > failure);
	in_doubt(set, failure_of(set), addr, ".x..");
	(void)file_soil(file, 2 * PAGE, PAGE, since);
	in_doubt(set, failure_of(set), addr, ".xx.");
	fails_with(persist(set, addr, 1), PMEMSET_REASON_DEGRADED);
	must(ffi_acknowledge(set, failure_of(set), FFI_RECOVERY_REWRITE, &err));
	is_well(set, addr, &d);
	file_release(file);
	delete_set(set);
	close_disk(&d);
}

#define CROWD 4

struct crowd {
	uint64_t set, addr;
	_Atomic bool stop;
	_Atomic unsigned next;
	_Atomic uint64_t failed, acknowledged;
	_Atomic uint64_t succeeded[CROWD];
	pthread_rwlock_t calm; /* written to while the disk is being broken: a flush meanwhile would get the blocks back */
};

/* Pages of its own: a byte that was told to be durable has to be on the medium, whatever else happened. */
static void *in_a_crowd(void *arg)
{
	struct crowd *c = arg;
	uint64_t page = atomic_fetch_add(&c->next, 1);
	struct ffi_written w;
	struct pmemset_error e;
	uint64_t row[3];
	for (unsigned char i = 1; !atomic_load(&c->stop); i = (unsigned char)(i % 250 + 1)) {
		uint64_t at = c->addr + page * PAGE;
		pthread_rwlock_rdlock(&c->calm);
		int rc = ffi_write(c->set, at, &i, 1, i % 3 ? FFI_DURABILITY_PERSISTED : FFI_DURABILITY_NONE, &w, &e);
		if (rc == 0)
			rc = ffi_persist(c->set, (uint64_t[]){at, 1}, 1, FFI_DURABILITY_PERSISTED, &w, &e);
		pthread_rwlock_unlock(&c->calm);
		if (rc == 0) {
			atomic_fetch_add(&c->succeeded[page], 1);
			continue;
		}
		atomic_fetch_add(&c->failed, 1);
		if (rc != -EIO || (e.reason != PMEMSET_REASON_PERSIST_FAILED && e.reason != PMEMSET_REASON_DEGRADED)) {
			print_error("%d: %s\n", rc, e.message);
			abort();
		}
		if (ffi_failures(c->set, row, 1) == 1 &&
				ffi_acknowledge(c->set, row[0], page == 0 && i % 8 == 0 ? FFI_RECOVERY_DISCARD : FFI_RECOVERY_REWRITE,
						&e) == 0)
			atomic_fetch_add(&c->acknowledged, 1);
	}
	return NULL;
}

static void a_crowd(void **state)
{
	struct disk d;
	pthread_t threads[CROWD];
	open_disk(&d, here(state), CROWD * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	struct crowd c = {.set = set, .addr = add(set, &d.place, "x", 0, CROWD), .calm = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP};
	for (unsigned i = 0; i < CROWD; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, in_a_crowd, &c), 0);
	for (int i = 0; i < 3; i++) {
		(void)usleep(50000);
		/* Again and again: an acknowledgement, or the kernel, may get the blocks back before somebody else has the space. */
		for (uint64_t before = atomic_load(&c.failed); atomic_load(&c.failed) < before + 20; (void)usleep(5000)) {
			pthread_rwlock_wrlock(&c.calm);
			break_disk(&d);
			pthread_rwlock_unlock(&c.calm);
		}
		mend_disk(&d);
		/* What was durable before is gone with the blocks that were taken away; so each writes again, one more than what was under way. */
		for (unsigned t = 0; t < CROWD; t++)
			for (uint64_t before = atomic_load(&c.succeeded[t]); atomic_load(&c.succeeded[t]) < before + 2;)
				(void)usleep(1000);
	}
	atomic_store(&c.stop, true);
	for (unsigned i = 0; i < CROWD; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_true(atomic_load(&c.acknowledged) >= 1);
	uint64_t row[3];
	if (ffi_failures(set, row, 1) == 1)
		must(ffi_acknowledge(set, row[0], FFI_RECOVERY_REWRITE, &err));
	must(persist(set, c.addr, CROWD * PAGE));
	for (uint64_t i = 0; i < CROWD; i++) {
		char byte;
		must(ffi_read(set, c.addr + i * PAGE, &byte, 1, 0, &err));
		has(&d, i * PAGE, byte);
	}
	delete_set(set);
	close_disk(&d);
}

/* ---- of an earlier life ---- */

#define LONG_AGO UINT64_C(1500000000000)

static void the_failure_is(uint64_t set, uint64_t at, uint64_t why, uint64_t *id)
{
	uint64_t rows[6];
	must_be(ffi_failures(set, rows, 2), 1, "failures", __FILE__, __LINE__);
	assert_int_equal(rows[1], at);
	assert_int_equal(rows[2], why);
	*id = rows[0];
}

static void remembered(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "b", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t twin = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, 4);
	(void)add(set, p, "b", 0, 4);
	uint64_t beside = add(twin, p, "a", 2, 4);
	uint64_t row[3];
	char *before = world(set, p);
	fails(ffi_fail(set, LONG_AGO, 0, (uint64_t[]){addr, PAGE}, 1, &err), -EINVAL);
	fails(ffi_fail(set, LONG_AGO, -EIO, (uint64_t[]){addr, PAGE}, 1, &err), -EINVAL);
	fails(ffi_fail(set, LONG_AGO, EIO, (uint64_t[]){addr, PAGE, addr, 0}, 2, &err), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(ffi_fail(set, LONG_AGO, EIO, (uint64_t[]){addr, PAGE, UINT64_MAX, 2}, 2, &err), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(ffi_fail(set, LONG_AGO, EIO, (uint64_t[]){addr + MIB, PAGE}, 1, &err), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(ffi_fail(~set, LONG_AGO, EIO, (uint64_t[]){addr, PAGE}, 1, &err), -EBADF);
	same_world(before, set, p);
	must_be(ffi_failures(set, row, 1), 0, "failures", __FILE__, __LINE__);

	/* A byte of the second page, and from the fourth on into the other file's part. */
	must(ffi_fail(set, LONG_AGO, EIO, (uint64_t[]){addr + PAGE + 5, 1, addr + 3 * PAGE, 2 * PAGE}, 2, &err));
	uint64_t rows[6];
	must_be(ffi_failures(set, rows, 2), 2, "failures", __FILE__, __LINE__);
	assert_int_not_equal(rows[0], rows[3]);
	assert_int_equal(info_of(set).degraded, 1);
	assert_int_equal(info_of(twin).degraded, 1);
	in_doubt(set, rows[0], addr, ".x.x....");
	in_doubt(set, rows[3], addr, "....x...");
	uint64_t id;
	the_failure_is(twin, LONG_AGO, EIO, &id);
	assert_int_equal(id, rows[0]);
	in_doubt(twin, id, beside, ".x..");
	fails_with(store(set, addr, 'n', 1, FFI_DURABILITY_PERSISTED), PMEMSET_REASON_DEGRADED);
	fails_with(remove_range(set, addr, PAGE), PMEMSET_REASON_DEGRADED);

	/* It has failed already: more is in doubt, and it is the same failure. */
	must(ffi_fail(twin, LONG_AGO + 1, ENOSPC, (uint64_t[]){beside + 2 * PAGE, PAGE}, 1, &err));
	the_failure_is(twin, LONG_AGO, EIO, &id);
	assert_int_equal(id, rows[0]);
	in_doubt(twin, id, beside, ".xx.");

	must(ffi_acknowledge(twin, id, FFI_RECOVERY_REWRITE, &err));
	/* What is in memory only cannot be dropped; and valgrind reads the beginning of each file that is mapped. */
	must(ffi_acknowledge(set, rows[3], p == &places[0] || under_valgrind() ? FFI_RECOVERY_REWRITE : FFI_RECOVERY_DISCARD, &err));
	assert_int_equal(info_of(set).degraded + info_of(twin).degraded, 0);
	must(store(set, addr, 'w', 1, FFI_DURABILITY_PERSISTED));
	delete_set(set);
	delete_set(twin);
	/* The next life of the file begins without it. */
	set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	(void)add(set, p, "a", 0, 4);
	assert_int_equal(info_of(set).degraded, 0);
	delete_set(set);
}

struct reminder {
	uint64_t set, addr;
	atomic_bool stop;
};

static void *remind(void *arg)
{
	struct reminder *r = arg;
	for (uint64_t i = 0; !atomic_load(&r->stop); i++) {
		if (ffi_fail(r->set, LONG_AGO, EIO, (uint64_t[]){r->addr + i % 4 * PAGE, PAGE}, 1, NULL) != 0)
			return (void *)1;
		/* Locks are not fair: without a pause it would hardly let go of them. */
		(void)usleep(200);
	}
	return NULL;
}

/* While it is dealt with, and while there are flushes: none is forgotten. */
static void remembered_meanwhile(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	struct reminder r = {.set = set, .addr = add(set, p, "a", 0, 4)};
	pthread_t thread;
	void *result;
	uint64_t row[3];
	assert_int_equal(pthread_create(&thread, NULL, remind, &r), 0);
	for (unsigned i = 0; i < 200; i++) {
		(void)store(set, r.addr, 'x', 1, FFI_DURABILITY_PERSISTED);
		if (ffi_failures(set, row, 1) == 1)
			(void)ffi_acknowledge(set, row[0], FFI_RECOVERY_REWRITE, &err);
	}
	atomic_store(&r.stop, true);
	assert_int_equal(pthread_join(thread, &result), 0);
	assert_null(result);
	/* One last, that nobody has dealt with. */
	must(ffi_fail(set, LONG_AGO, EIO, (uint64_t[]){r.addr + 3 * PAGE, 1}, 1, &err));
	assert_int_equal(ffi_failures(set, row, 1), 1);
	must(ffi_acknowledge(set, row[0], FFI_RECOVERY_REWRITE, &err));
	must(persist(set, r.addr, 4 * PAGE));
	delete_set(set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ONCE(dirt_is_never_less),
			ONCE(the_nearest_become_one),
			{"everybody_is_told", everybody_is_told, scene_enter, scene_leave, &places[0]},
			{"what_was_flushed_is_not_in_doubt", what_was_flushed_is_not_in_doubt, scene_enter, scene_leave, &places[0]},
			{"what_is_in_doubt_is_bounded", what_is_in_doubt_is_bounded, scene_enter, scene_leave, &places[0]},
			{"grouped_stores", grouped_stores, scene_enter, scene_leave, &places[0]},
			{"stores_through_pointers", stores_through_pointers, scene_enter, scene_leave, &places[0]},
			{"rewritten", rewritten, scene_enter, scene_leave, &places[0]},
			{"rewritten_where_the_file_ends", rewritten_where_the_file_ends, scene_enter, scene_leave, &places[0]},
			{"rewritten_after_eviction", rewritten_after_eviction, scene_enter, scene_leave, &places[0]},
			{"discarded", discarded, scene_enter, scene_leave, &places[0]},
			{"discard_that_another_process_prevents", discard_that_another_process_prevents, scene_enter, scene_leave,
					&places[0]},
			{"told_of_late", told_of_late, scene_enter, scene_leave, &places[0]},
			ON_EACH(remembered),
			ON_EACH(remembered_meanwhile),
			{"a_crowd", a_crowd, scene_enter, scene_leave, &places[0]},
	};
	return RUN("failures", tests, FFI_GRANULARITY_UNSET);
}
