/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory that runs out: each operation is tried with its first allocation failing, with its second, and so on, until it needs no more.
 * A failure changes nothing, and the same call right after it succeeds. The engine's calls of malloc and the like lead here (--wrap).
 */
#include "scene.h"

#include "batch.h"

#include <errno.h>
#include <inttypes.h>
#include <libpmemset.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int64_t left = -1; /* allocations until the one that fails; negative: none does */
static bool did_fail;

static bool fails_now(void)
{
	if (left < 0 || left-- > 0)
		return false;
	did_fail = true;
	return true;
}

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
	return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	return fails_now() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
	return fails_now() ? NULL : __real_aligned_alloc(alignment, size);
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* ---- what is tried, each in a set of its own ---- */

struct stage {
	const struct place *place;
	uint64_t set, base, handle;
};

static void add_pages(const struct stage *s, const char *name, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		(void)must_map(s->set, s->place, name, (struct ffi_part_spec){.length = PAGE});
}

static void nothing(struct stage *s)
{
	(void)s;
}

/* As many as fill a chunk of each pool, and the nodes of the index. */
static void many_parts(struct stage *s)
{
	add_pages(s, "a", 64);
}

static void one_long_map(struct stage *s)
{
	must(ffi_set_coalescing(s->set, FFI_COALESCING_FULL, &err));
	add_pages(s, "a", 64);
	add_pages(s, "b", 100);
}

static void two_files(struct stage *s)
{
	must(ffi_set_coalescing(s->set, FFI_COALESCING_FULL, &err));
	for (int i = 0; i < 20; i++)
		add_pages(s, i % 2 ? "a" : "b", 1);
}

static void two_dirty_files(struct stage *s)
{
	struct ffi_written w;
	two_files(s);
	must(ffi_write(s->set, s->base, "dirt", 4, FFI_DURABILITY_NONE, &w, &err));
	must(ffi_write(s->set, s->base + PAGE, "dirt", 4, FFI_DURABILITY_NONE, &w, &err));
}

static int map_one(struct stage *s)
{
	struct ffi_part part;
	return map(s->set, s->place, "b", (struct ffi_part_spec){.length = PAGE}, &part);
}

static int map_and_grow(struct stage *s)
{
	struct ffi_part part;
	return map(s->set, s->place, "b", (struct ffi_part_spec){.length = 64 * PAGE, .grow = 1}, &part);
}

static int map_and_create(struct stage *s)
{
	struct ffi_part part;
	return map(s->set, s->place, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_IF_NEEDED, .mode = 0600}, &part);
}

static int map_and_replace(struct stage *s)
{
	struct ffi_part part;
	return map(s->set, s->place, "b", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_ALWAYS}, &part);
}

static int remove_pages(const struct stage *s, uint64_t page, uint64_t pages)
{
	return remove_range(s->set, s->base + page * PAGE, pages * PAGE);
}

static int remove_several(struct stage *s)
{
	return remove_pages(s, 3, 40);
}

static int remove_from_the_middle(struct stage *s)
{
	return remove_pages(s, 30, 90);
}

static int remove_all(struct stage *s)
{
	return remove_pages(s, 0, 512);
}

static int make_set(struct stage *s)
{
	const struct ffi_set_spec spec = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET};
	int rc = ffi_set_new(&spec, &s->handle, &err);
	assert_int_equal(s->handle != 0, rc == 0);
	return rc;
}

static void end_set(struct stage *s)
{
	delete_set(s->handle);
}

static int open_volume(struct stage *s)
{
	int rc = ffi_volume_open(s->place->dir, &s->handle, &err);
	assert_int_equal(s->handle != 0, rc == 0);
	return rc;
}

static void close_volume(struct stage *s)
{
	must(ffi_volume_close(s->handle));
}

static int hold(struct stage *s)
{
	int rc = ffi_pin(s->set, s->base, 1, &s->handle, &err);
	assert_int_equal(s->handle != 0, rc == 0);
	return rc;
}

static void let_go(struct stage *s)
{
	must(ffi_unpin(s->handle));
}

static int write_over_all(struct stage *s)
{
	static const char bytes[20 * 65536];
	struct ffi_written w;
	return ffi_write(s->set, s->base, bytes, 20 * PAGE, FFI_DURABILITY_PERSISTED, &w, &err);
}

static int persist_some(struct stage *s)
{
	uint64_t ranges[2 * 20];
	struct ffi_written w;
	for (uint64_t i = 0; i < 20; i++) {
		ranges[2 * i] = s->base + i * PAGE;
		ranges[2 * i + 1] = 10;
	}
	return ffi_persist(s->set, ranges, 20, FFI_DURABILITY_PERSISTED, &w, &err);
}

static int read_some(struct stage *s)
{
	char buf[100];
	return ffi_read(s->set, s->base + PAGE - 50, buf, sizeof(buf), 0, &err);
}

static int batch_some(struct stage *s)
{
	const struct {
		struct batch_header head;
		struct batch_operation ops[4];
		char data[8];
	} body = {{.magic = BATCH_MAGIC, .version = BATCH_VERSION, .durability = FFI_DURABILITY_PERSISTED, .count = 4},
			{{.op = BATCH_WRITE, .addr = s->base, .length = 8},
					{.op = BATCH_MEMCPY, .addr = s->base, .argument = s->base + PAGE, .length = 16 * PAGE},
					{.op = BATCH_ADD, .addr = s->base + 8, .length = 8, .argument = 1},
					{.op = BATCH_PERSIST, .addr = s->base, .length = 20 * PAGE}},
			"8 bytes"};
	char reply[sizeof(struct batch_reply) + sizeof(struct atomic_result)];
	uint64_t failed;
	return ffi_batch(s->set, &body, sizeof(body), reply, sizeof(reply), 0, &failed, &err);
}

static int write_many(struct stage *s)
{
	struct ffi_write rows[20];
	struct pmemset_error errs[20];
	for (uint64_t i = 0; i < 20; i++)
		rows[i] = (struct ffi_write){.set = s->set,
				.addr = s->base + i * PAGE,
				.length = 4,
				.durability = FFI_DURABILITY_PERSISTED};
	int64_t failed = ffi_write_many(rows, 20, "four", 4, errs);
	for (uint64_t i = 0; failed > 0 && i < 20; i++)
		if (rows[i].rc != 0)
			return (int)rows[i].rc;
	return 0;
}

/* As many as fill pools and nodes, each of a map of its own; every tenth of a file that is not there. */
#define RESTORED 200u

static int restore(struct stage *s)
{
	struct ffi_restore_file files[3];
	struct ffi_restore_part rows[RESTORED];
	const char names[] = "abz";
	for (uint64_t i = 0; i < 3; i++)
		files[i] = (struct ffi_restore_file){.volume = s->place->volume, .path_at = i, .path_length = 1};
	for (uint64_t i = 0; i < RESTORED; i++)
		rows[i] = (struct ffi_restore_part){.file = i % 10 == 9 ? 2 : i % 2,
				.length = PAGE,
				.cookie = i + 1,
				.addr = s->base + (256 + i) * PAGE,
				.joins = i % 3 == 0};
	int rc = ffi_restore(s->set, files, 3, names, 3, rows, RESTORED, &err);
	for (uint64_t i = 0; rc == 0 && i < RESTORED; i++)
		assert_int_equal(rows[i].code, i % 10 == 9 ? PMEMSET_E_INVALID_SOURCE_PATH : 0);
	return rc;
}

/* Into the ranges that were kept. */
static void restored_in_part(struct stage *s)
{
	must(restore(s));
	make_file(s->place, "z", PAGE, 3);
}

static int restore_the_rest(struct stage *s)
{
	struct ffi_restore_file file = {.volume = s->place->volume, .path_length = 1};
	struct ffi_restore_part rows[RESTORED / 10];
	for (uint64_t i = 0; i < RESTORED / 10; i++)
		rows[i] = (struct ffi_restore_part){.length = PAGE,
				.cookie = 10 * i + 10,
				.addr = s->base + (256 + 10 * i + 9) * PAGE,
				.joins = i % 2 == 0};
	int rc = ffi_restore(s->set, &file, 1, "z", 1, rows, RESTORED / 10, &err);
	for (uint64_t i = 0; rc == 0 && i < RESTORED / 10; i++)
		assert_int_equal(rows[i].code, 0);
	return rc;
}

static int let_a_range_go(struct stage *s)
{
	return ffi_release(s->set, s->base + (256 + 109) * PAGE, PAGE, &err);
}

static int lock(struct stage *s)
{
	int rc = ffi_lock(path_in(s->place, "lock"), &s->handle, &err);
	assert_int_equal(s->handle != 0, rc == 0);
	return rc;
}

static void unlock(struct stage *s)
{
	must(ffi_unlock(s->handle));
}

static const struct {
	const char *name;
	void (*arrange)(struct stage *);
	int (*call)(struct stage *);
	void (*end)(struct stage *);
	int64_t allocations_min; /* else the test would not test it */
} operations[] = {
		{"map the first", nothing, map_one, nothing, 3},
		{"map one more", many_parts, map_one, nothing, 2},
		{"append", one_long_map, map_one, nothing, 0},
		{"grow", nothing, map_and_grow, nothing, 3},
		{"create", nothing, map_and_create, nothing, 3},
		{"replace", nothing, map_and_replace, nothing, 3},
		{"remove several", many_parts, remove_several, nothing, 5},
		{"split", one_long_map, remove_from_the_middle, nothing, 2},
		{"remove all", one_long_map, remove_all, nothing, 2},
		{"make a set", nothing, make_set, end_set, 2},
		{"open a volume", nothing, open_volume, close_volume, 1},
		{"pin", many_parts, hold, let_go, 1},
		{"write", two_files, write_over_all, nothing, 2},
		{"persist", two_dirty_files, persist_some, nothing, 3},
		{"read", two_files, read_some, nothing, 0},
		{"batch", two_files, batch_some, nothing, 5},
		{"write many", two_files, write_many, nothing, 20},
		{"restore", nothing, restore, nothing, 8},
		{"restore beside others", many_parts, restore, nothing, 8},
		{"restore late", restored_in_part, restore_the_rest, nothing, 3},
		{"let a range go", restored_in_part, let_a_range_go, nothing, 0},
		{"lock", nothing, lock, unlock, 1},
};

/* False once the operation needs no allocation as late as that. */
static bool fails_without_a_trace(const struct place *p, size_t operation, int64_t at_allocation)
{
	make_file(p, "a", PAGE, 1);
	make_file(p, "b", PAGE, 2);
	(void)unlink(path_in(p, "new"));
	(void)unlink(path_in(p, "z"));
	make_file(p, "lock", 0, 0);
	struct stage s = {.place = p, .set = new_set(FFI_COALESCING_NONE, 2 * MIB)};
	s.base = info_of(s.set).window_addr;
	operations[operation].arrange(&s);
	char *before = world(s.set, p);
	did_fail = false;
	left = at_allocation;
	int rc = operations[operation].call(&s);
	left = -1;
	if (did_fail && rc != 0) {
		must_be(rc, -ENOMEM, operations[operation].name, __FILE__, __LINE__);
		/* Bytes may have been written, which the count of them says. */
		int (*call)(struct stage *) = operations[operation].call;
		if (call == write_over_all || call == batch_some || call == write_many)
			free(before);
		else
			same_world(before, s.set, p);
		rc = operations[operation].call(&s);
	} else {
		free(before); /* it did without, or needed none */
	}
	must_be(rc, 0, operations[operation].name, __FILE__, __LINE__);
	operations[operation].end(&s);
	struct ffi_set_info info = info_of(s.set);
	covered(info.window_addr, info.window_size, NULL);
	delete_set(s.set);
	return did_fail;
}

static void each_allocation(void **state)
{
	struct place *p = here(state);
	for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
		int64_t n = 0;
		while (fails_without_a_trace(p, i, n))
			n++;
		if (n < operations[i].allocations_min)
			fail_msg("%s: only %" PRId64 " allocations", operations[i].name, n);
	}
}

/* ---- the same of libpmemset.h: a session of a program, in which any allocation may be the one that fails ---- */

static int ignore(struct pmemset *set, struct pmemset_event_context *event, void *arg)
{
	(void)set;
	(void)event;
	(void)arg;
	return 0;
}

/* What a program does with a set; the first error. */
static int use(struct pmemset *set, struct pmemset_source *src, struct pmemset_part **part)
{
	struct pmemset_part_descriptor d;
	struct pmemset_part_map *map = NULL;
	int rc = 0;
	for (int i = 0; rc == 0 && i < 2; i++) {
		rc = pmemset_part_new(part, set, src, 0, 2 * PAGE);
		if (rc == 0)
			rc = pmemset_part_map(part, NULL, &d);
	}
	if (rc != 0)
		return rc;
	char *second = d.addr;
	if ((rc = pmemset_memset(set, second, 'x', PAGE, 0)) != 0 || (rc = pmemset_memmove(set, second + 1, second, PAGE, 0)) != 0 ||
			(rc = pmemset_persist(set, second - PAGE, 2 * PAGE)) != 0 ||
			(rc = pmemset_part_map_by_address(set, &map, second)) != 0)
		return rc;
	rc = pmemset_remove_part_map(set, &map);
	pmemset_part_map_drop(&map); /* there only where that failed */
	return rc ? rc : pmemset_remove_range(set, second - 1, 1);
}

static int a_session(const struct place *p)
{
	struct pmemset_config *cfg = NULL;
	struct pmemset *set = NULL;
	struct pmemset_source *src = NULL;
	struct pmemset_source *named = NULL;
	struct pmemset_part *part = NULL;
	int rc = pmemset_config_new(&cfg);
	if (rc == 0) {
		must(pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE));
		must(pmemset_config_set_event_callback(cfg, ignore, NULL));
		rc = pmemset_new(&set, cfg);
	}
	if (rc == 0 && (rc = pmemset_source_from_file(&named, path_in(p, "a"))) == 0 &&
			(rc = pmemset_xsource_from_file(&src, path_in(p, "new"), PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED)) == 0)
		rc = use(set, src, &part);
	must(pmemset_part_delete(&part));
	must(pmemset_source_delete(&src));
	must(pmemset_source_delete(&named));
	must(pmemset_config_delete(&cfg));
	must(pmemset_delete(&set)); /* which needs no memory, even now */
	return rc;
}

static void each_allocation_of_a_session(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", PAGE, 1);
	int64_t n = -1;
	do {
		(void)unlink(path_in(p, "new"));
		n++;
		did_fail = false;
		left = n;
		int rc = a_session(p);
		left = -1;
		if (rc != 0)
			must_be(rc, -ENOMEM, pmemset_errormsg(), __FILE__, __LINE__);
		assert_true(rc == 0 || did_fail);
	} while (did_fail);
	print_message("%" PRId64 " allocations\n", n);
	assert_true(n > 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(each_allocation),
			ON_EACH(each_allocation_of_a_session),
	};
	return RUN("memory", tests, FFI_GRANULARITY_UNSET);
}
