/* SPDX-License-Identifier: BSD-3-Clause */
/* Parts of an earlier life: a set is deleted, another is made at its window, and what was in the first is restored into it. */
#include "scene.h"

#include "identity.h"
#include "medium.h"
#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define WINDOW (64 * MIB)
#define PARTS_MAX 64

/* ---- what a catalog would have of a set ---- */

struct record {
	const struct place *place;
	struct ffi_set_info info;
	uint64_t count;
	struct ffi_part part[PARTS_MAX];
	const char *name[PARTS_MAX];
	bool adopt;
	/* Of the last restoration. */
	struct ffi_restore_part row[PARTS_MAX];
	struct ffi_restore_file file[PARTS_MAX]; /* one for each part */
};

static const struct ffi_part *note(struct record *r, uint64_t set, const struct place *p, const char *name, struct ffi_part_spec spec)
{
	r->place = p;
	r->name[r->count] = name;
	r->part[r->count] = must_map(set, p, name, spec);
	r->info = info_of(set);
	return &r->part[r->count++];
}

static const struct ffi_part *page_of(struct record *r, uint64_t set, const struct place *p, const char *name, uint64_t page)
{
	return note(r, set, p, name, (struct ffi_part_spec){.offset = page * PAGE, .length = PAGE});
}

static void forget(struct record *r, uint64_t i)
{
	r->count--;
	memmove(&r->part[i], &r->part[i + 1], (r->count - i) * sizeof(r->part[0]));
	memmove(&r->name[i], &r->name[i + 1], (r->count - i) * sizeof(r->name[0]));
}

static int new_set_at(const struct record *r, uint32_t coalescing, uint64_t *set)
{
	const struct ffi_set_spec spec = {.window_addr = r->info.window_addr,
			.window_size = r->info.window_size,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.coalescing = coalescing,
			.granularity = r->info.granularity};
	return ffi_set_new(&spec, set, &err);
}

/* Parts [from, to) of the record, in one call. */
static int restore_some(struct record *r, uint64_t set, uint64_t from, uint64_t to)
{
	char names[PARTS_MAX * 16];
	uint64_t used = 0;
	memset(r->row, 0xee, sizeof(r->row));
	for (uint64_t i = 0; i < r->count; i++) {
		const struct ffi_part *part = &r->part[i];
		uint32_t length = (uint32_t)strlen(r->name[i]);
		memcpy(names + used, r->name[i], length);
		r->file[i] = (struct ffi_restore_file){.volume = r->place->volume,
				.path_at = used,
				.path_length = length,
				.adopt = r->adopt};
		memcpy(r->file[i].identity, part->identity, sizeof(part->identity));
		used += length;
		r->row[i].file = i;
		r->row[i].offset = part->offset;
		r->row[i].length = part->length;
		r->row[i].cookie = part->cookie;
		r->row[i].addr = part->addr;
		r->row[i].joins = part->coalesced;
	}
	return ffi_restore(set, r->file, r->count, names, used, &r->row[from], to - from, &err);
}

static uint64_t restored(struct record *r, uint32_t coalescing)
{
	uint64_t set;
	must(new_set_at(r, coalescing, &set));
	must(restore_some(r, set, 0, r->count));
	return set;
}

static void is_mapped(const struct record *r, uint64_t i)
{
	must_be(r->row[i].code, 0, r->name[i], __FILE__, __LINE__);
	assert_int_equal(r->row[i].kept, 0);
	assert_int_equal(r->row[i].granularity, r->part[i].granularity);
	assert_int_equal(r->row[i].persistence, r->part[i].persistence);
	assert_int_equal(r->row[i].map_sync, r->part[i].map_sync);
	assert_int_equal(r->row[i].degraded, 0);
	assert_string_equal(r->file[i].identity, r->part[i].identity);
}

static void is_kept(const struct record *r, uint64_t i, int code, uint32_t reason)
{
	must_be(r->row[i].code, code, r->name[i], __FILE__, __LINE__);
	assert_int_equal(r->row[i].reason, reason);
	assert_int_equal(r->row[i].kept, 1);
}

static void has_bytes(uint64_t set, const struct ffi_part *part, unsigned seed)
{
	unsigned char got[16];
	must(ffi_read(set, part->addr, got, sizeof(got), 0, &err));
	for (uint64_t i = 0; i < sizeof(got); i++)
		assert_int_equal(got[i], byte_of(seed, part->offset + i));
}

/* As text: the parts, and the maps that hold them. */
static char *shape(uint64_t set)
{
	char *text;
	size_t size;
	struct ffi_span spans[PARTS_MAX];
	struct ffi_set_info info = info_of(set);
	FILE *out = open_memstream(&text, &size);
	assert_non_null(out);
	(void)fprintf(out, "%" PRIu64 " maps, %" PRIu64 " parts, %" PRIu64 " bytes, granularity %u\n", info.map_count, info.part_count,
			info.mapped_bytes, info.granularity);
	int64_t n = ffi_parts(set, 0, 0, spans, PARTS_MAX);
	for (int64_t i = 0; i < n; i++)
		(void)fprintf(out, "%" PRIx64 "+%" PRIx64 " of %" PRIx64 "+%" PRIx64 " (%" PRIu64 "), %" PRIx64 " cookie %" PRIu64 "\n",
				spans[i].addr, spans[i].length, spans[i].map_addr, spans[i].map_size, spans[i].map_parts, spans[i].offset,
				spans[i].cookie);
	(void)fclose(out);
	return text;
}

static void same_shape(char *before, uint64_t set)
{
	char *now = shape(set);
	if (strcmp(before, now) != 0)
		print_error("the set was\n%sand is\n%s", before, now);
	assert_string_equal(before, now);
	free(now);
	free(before);
}

/* ---- as it was ---- */

static void everything_is_where_it_was(void **state)
{
	struct place *p = here(state);
	struct record r = {0};
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "b", 4 * MIB, 2);
	uint64_t set = new_set(FFI_COALESCING_NONE, WINDOW);
	(void)page_of(&r, set, p, "a", 3);
	(void)note(&r, set, p, "b", (struct ffi_part_spec){.offset = 2 * MIB, .length = 2 * MIB});
	must(ffi_set_coalescing(set, FFI_COALESCING_FULL, &err));
	(void)page_of(&r, set, p, "a", 0);
	(void)page_of(&r, set, p, "a", 1);
	(void)page_of(&r, set, p, "b", 1);
	must(ffi_set_coalescing(set, FFI_COALESCING_NONE, &err));
	(void)page_of(&r, set, p, "a", 7);
	char *before = shape(set);
	struct ffi_engine_info engine;
	ffi_engine_info(&engine);
	uint64_t mappings = engine.mappings;
	delete_set(set);

	set = restored(&r, FFI_COALESCING_FULL);
	for (uint64_t i = 0; i < r.count; i++) {
		is_mapped(&r, i);
		has_bytes(set, &r.part[i], r.name[i][0] == 'a' ? 1 : 2);
	}
	same_shape(before, set);
	ffi_engine_info(&engine);
	assert_int_equal(engine.mappings, mappings);
	covered(r.info.window_addr, r.info.window_size, NULL);
	/* The part created last is the one that coalescing goes on behind. */
	struct ffi_part next = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE, .cookie = UINT64_MAX});
	assert_int_equal(next.addr, r.part[r.count - 1].addr + PAGE);
	struct ffi_written w;
	must(ffi_write(set, r.part[0].addr, "changed", 7, FFI_DURABILITY_PERSISTED, &w, &err));
	char got[7];
	read_file(p, "a", 3 * PAGE, got, sizeof(got));
	assert_memory_equal(got, "changed", 7);
	delete_set(set);
}

static void one_row_for_many_parts(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 300 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, WINDOW);
	struct ffi_restore_part rows[300] = {0};
	struct ffi_restore_file file = {.volume = p->volume, .path_length = 1};
	for (uint64_t i = 0; i < 300; i++) {
		struct ffi_part part = must_map(set, p, "a", (struct ffi_part_spec){.offset = i * PAGE, .length = PAGE, .cookie = i + 1});
		rows[i] = (struct ffi_restore_part){.offset = part.offset,
				.length = PAGE,
				.cookie = i + 1,
				.addr = part.addr,
				.joins = i > 0};
		memcpy(file.identity, part.identity, sizeof(file.identity));
	}
	struct record r = {.info = info_of(set)};
	delete_set(set);
	unsigned open_before = descriptors();
	must(new_set_at(&r, FFI_COALESCING_FULL, &set));
	must(ffi_restore(set, &file, 1, "a", 1, rows, 300, &err));
	assert_int_equal(descriptors(), open_before + 1);
	assert_int_equal(info_of(set).part_count, 300);
	assert_int_equal(info_of(set).map_count, 1);
	for (uint64_t i = 0; i < 300; i++)
		assert_int_equal(rows[i].code, 0);
	unsigned char got[300];
	for (uint64_t i = 0; i < 300; i++)
		must(ffi_read(set, rows[i].addr, &got[i], 1, 0, &err));
	for (uint64_t i = 0; i < 300; i++)
		assert_int_equal(got[i], byte_of(1, i * PAGE));
	covered(r.info.window_addr, r.info.window_size, NULL);
	delete_set(set);
}

/* ---- joins ---- */

static void joins_only_what_it_was_appended_to(void **state)
{
	struct place *p = here(state);
	struct record r = {0};
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, WINDOW);
	for (uint64_t i = 0; i < 5; i++)
		(void)page_of(&r, set, p, "a", i);
	assert_int_equal(info_of(set).map_count, 1);
	/* The second goes, and a younger one comes to its place: the third was appended to what was there before. */
	must(remove_range(set, r.part[1].addr, PAGE));
	forget(&r, 1);
	must(ffi_set_coalescing(set, FFI_COALESCING_NONE, &err));
	const struct ffi_part *in_the_gap = page_of(&r, set, p, "a", 7);
	assert_int_equal(in_the_gap->addr, r.part[0].addr + PAGE);
	assert_int_equal(info_of(set).map_count, 3);
	char *before = shape(set);
	delete_set(set);
	set = restored(&r, FFI_COALESCING_NONE);
	same_shape(before, set);
	delete_set(set);
	/* It is no other where the youngest comes first. */
	must(new_set_at(&r, FFI_COALESCING_NONE, &set));
	must(restore_some(&r, set, r.count - 1, r.count));
	must(restore_some(&r, set, 0, r.count - 1));
	assert_int_equal(info_of(set).map_count, 3);
	delete_set(set);
}

/* ---- what cannot be restored ---- */

/* Three parts side by side in one map; something happens to the file of the one in the middle. */
static struct record three_parts(const struct place *p)
{
	struct record r = {0};
	make_file(p, "a", 4 * PAGE, 1);
	make_file(p, "b", 4 * PAGE, 2);
	make_file(p, "c", 4 * PAGE, 3);
	uint64_t set = new_set(FFI_COALESCING_FULL, WINDOW);
	(void)note(&r, set, p, "a", (struct ffi_part_spec){.length = 2 * PAGE});
	(void)note(&r, set, p, "b", (struct ffi_part_spec){.length = 4 * PAGE});
	(void)note(&r, set, p, "c", (struct ffi_part_spec){.length = 2 * PAGE});
	delete_set(set);
	return r;
}

/* The neighbours work; nothing is found in the range, nothing is placed there, and a removal passes over it. */
static void range_is_kept(const struct record *r, uint64_t set, uint64_t i)
{
	const struct ffi_part *part = &r->part[i];
	struct ffi_span spans[8];
	uint64_t pin;
	char byte;
	assert_int_equal(ffi_lookup(set, part->addr, spans), PMEMSET_E_CANNOT_FIND_PART_MAP);
	assert_int_equal(ffi_lookup(set, part->addr + part->length - 1, spans), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(ffi_read(set, part->addr, &byte, 1, 0, &err), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(ffi_pin(set, part->addr, 0, &pin, &err), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(remove_range(set, part->addr, part->length), PMEMSET_E_CANNOT_FIND_PART_MAP);
	assert_int_equal(ffi_parts(set, part->addr, part->addr + part->length, spans, 8), 0);
	assert_int_equal(ffi_maps(set, part->addr, part->addr + part->length, spans, 8), 0);
	covered(part->addr, part->length, "---p");
	covered(r->info.window_addr, r->info.window_size, NULL);
}

static void vanish(const struct record *r)
{
	assert_int_equal(unlink(path_in(r->place, "b")), 0);
}

static void appear(const struct record *r)
{
	assert_int_equal(rename(path_in(r->place, "kept"), path_in(r->place, "b")), 0);
}

static void move_away(const struct record *r)
{
	assert_int_equal(rename(path_in(r->place, "b"), path_in(r->place, "kept")), 0);
}

static void replace(const struct record *r)
{
	move_away(r);
	make_file(r->place, "b", 4 * PAGE, 2);
}

static void shorten(const struct record *r)
{
	assert_int_equal(truncate(path_in(r->place, "b"), (off_t)(3 * PAGE)), 0);
}

static void lengthen(const struct record *r)
{
	assert_int_equal(truncate(path_in(r->place, "b"), (off_t)(4 * PAGE)), 0);
}

static void link_it(const struct record *r)
{
	assert_int_equal(link(path_in(r->place, "b"), path_in(r->place, "other")), 0);
}

static void unlink_it(const struct record *r)
{
	assert_int_equal(unlink(path_in(r->place, "other")), 0);
}

static void make_directory(const struct record *r)
{
	move_away(r);
	assert_int_equal(mkdir(path_in(r->place, "b"), 0700), 0);
}

static void remove_directory(const struct record *r)
{
	assert_int_equal(rmdir(path_in(r->place, "b")), 0);
	appear(r);
}

static void each_thing_that_can_happen(void **state)
{
	struct place *p = here(state);
	const struct {
		void (*happens)(const struct record *);
		void (*is_mended)(const struct record *);
		int code;
		uint32_t reason;
		uint64_t value;
	} rows[] = {
			{move_away, appear, PMEMSET_E_INVALID_SOURCE_PATH, 0, 0},
			{replace, appear, -ESTALE, PMEMSET_REASON_SOURCE_REPLACED, 0},
			{shorten, lengthen, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, 3 * PAGE},
			{link_it, unlink_it, -EACCES, PMEMSET_REASON_PATH_NOT_ALLOWED, 0},
			{make_directory, remove_directory, PMEMSET_E_INVALID_PMEM2_SOURCE, 0, 0},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct record r = three_parts(p);
		rows[i].happens(&r);
		uint64_t set = restored(&r, FFI_COALESCING_FULL);
		is_mapped(&r, 0);
		is_kept(&r, 1, rows[i].code, rows[i].reason);
		assert_int_equal(r.row[1].value, rows[i].value);
		is_mapped(&r, 2);
		assert_int_equal(info_of(set).part_count, 2);
		range_is_kept(&r, set, 1);
		has_bytes(set, &r.part[0], 1);
		has_bytes(set, &r.part[2], 3);
		/* Again, to no avail; then it is as it was. */
		char *before = world(set, p);
		must(restore_some(&r, set, 1, 2));
		is_kept(&r, 1, rows[i].code, rows[i].reason);
		same_world(before, set, p);
		rows[i].is_mended(&r);
		must(restore_some(&r, set, 1, 2));
		is_mapped(&r, 1);
		has_bytes(set, &r.part[1], 2);
		assert_int_equal(info_of(set).part_count, 3);
		delete_set(set);
	}
}

/* The inode's number is given to the next file, as ext4 does: the same path, number and size, and another file. */
static void another_file_of_the_same_inode(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	struct stat was;
	struct stat is = {0};
	assert_int_equal(stat(path_in(p, "b"), &was), 0);
	for (int i = 0; i < 100 && is.st_ino != was.st_ino; i++) {
		vanish(&r);
		make_file(p, "b", 4 * PAGE, 9);
		assert_int_equal(stat(path_in(p, "b"), &is), 0);
	}
	if (is.st_ino != was.st_ino)
		print_message("%s gives no inode's number again\n", p->name);
	uint64_t set = restored(&r, FFI_COALESCING_FULL);
	is_kept(&r, 1, -ESTALE, PMEMSET_REASON_SOURCE_REPLACED);
	range_is_kept(&r, set, 1);
	assert_string_not_equal(r.file[1].identity, r.part[1].identity);
	/* Whoever says that this is the one gets it, and its identity. */
	r.adopt = true;
	must(restore_some(&r, set, 1, 2));
	assert_int_equal(r.row[1].code, 0);
	has_bytes(set, &r.part[1], 9);
	memcpy(r.part[1].identity, r.file[1].identity, sizeof(r.part[1].identity));
	delete_set(set);
	r.adopt = false;
	set = restored(&r, FFI_COALESCING_FULL);
	is_mapped(&r, 1);
	delete_set(set);
}

static void another_granularity(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	r.info.granularity = FFI_GRANULARITY_CACHE_LINE;
	uint64_t set;
	must(new_set_at(&r, FFI_COALESCING_FULL, &set));
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_CACHE_LINE);
	must(restore_some(&r, set, 0, r.count));
	for (uint64_t i = 0; i < r.count; i++) {
		is_kept(&r, i, PMEMSET_E_GRANULARITY_MISMATCH, 0);
		assert_int_equal(r.row[i].granularity, FFI_GRANULARITY_PAGE);
		range_is_kept(&r, set, i);
	}
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_CACHE_LINE);
	delete_set(set);
	const struct ffi_set_spec finer = {.window_addr = r.info.window_addr,
			.window_size = WINDOW,
			.required_granularity = FFI_GRANULARITY_CACHE_LINE,
			.granularity = FFI_GRANULARITY_UNSET};
	must(ffi_set_new(&finer, &set, &err));
	must(restore_some(&r, set, 0, r.count));
	for (uint64_t i = 0; i < r.count; i++)
		is_kept(&r, i, PMEMSET_E_GRANULARITY_NOT_SUPPORTED, 0);
	assert_int_equal(r.row[0].cause, PMEM2_E_GRANULARITY_NOT_SUPPORTED);
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_UNSET);
	delete_set(set);
}

static void a_kept_range_is_let_go(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	const struct ffi_part *b = &r.part[1];
	vanish(&r);
	uint64_t set = restored(&r, FFI_COALESCING_NONE);
	is_kept(&r, 1, PMEMSET_E_INVALID_SOURCE_PATH, 0);
	/* Nothing fits there: not even what would fit nowhere else. */
	must_map(set, p, "c", (struct ffi_part_spec){.length = PAGE});
	struct ffi_span span;
	assert_int_equal(ffi_lookup(set, b->addr, &span), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(ffi_release(set, b->addr, PAGE, &err), -ENOENT);
	fails(ffi_release(set, b->addr + PAGE, b->length - PAGE, &err), -ENOENT);
	fails(ffi_release(set, r.part[0].addr, r.part[0].length, &err), -ENOENT);
	fails(ffi_release(set, r.info.window_addr + WINDOW / 2, PAGE, &err), -ENOENT);
	must(ffi_release(set, b->addr, b->length, &err));
	fails(ffi_release(set, b->addr, b->length, &err), -ENOENT);
	/* It is the lowest gap now. */
	struct ffi_part part = must_map(set, p, "c", (struct ffi_part_spec){.length = 4 * PAGE});
	assert_int_equal(part.addr, b->addr);
	delete_set(set);
	fails(ffi_release(set, b->addr, b->length, &err), -EBADF);
}

static void a_set_of_kept_ranges_ends(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	assert_int_equal(unlink(path_in(p, "a")) | unlink(path_in(p, "b")) | unlink(path_in(p, "c")), 0);
	uint64_t set = restored(&r, FFI_COALESCING_NONE);
	for (uint64_t i = 0; i < r.count; i++)
		is_kept(&r, i, PMEMSET_E_INVALID_SOURCE_PATH, 0);
	assert_int_equal(info_of(set).part_count, 0);
	assert_int_equal(info_of(set).map_count, 0);
	delete_set(set);
	/* The window is free, and so is the whole of it. */
	must(new_set_at(&r, FFI_COALESCING_NONE, &set));
	make_file(p, "w", WINDOW, 0);
	must_map(set, p, "w", (struct ffi_part_spec){.length = WINDOW});
	delete_set(set);
}

/* A removal of a range with kept ones in it takes the parts around them, and they stay. */
static void removals_pass_over(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	vanish(&r);
	uint64_t set = restored(&r, FFI_COALESCING_FULL);
	must(remove_range(set, r.info.window_addr, WINDOW));
	assert_int_equal(info_of(set).part_count, 0);
	range_is_kept(&r, set, 1);
	make_file(p, "b", 4 * PAGE, 2);
	r.adopt = true;
	must(restore_some(&r, set, 1, 2));
	assert_int_equal(r.row[1].code, 0);
	has_bytes(set, &r.part[1], 2);
	covered(r.info.window_addr, r.info.window_size, NULL);
	delete_set(set);
}

/* ---- limits, and a kernel that refuses ---- */

static void limits(void **state)
{
	struct place *p = here(state);
	struct record r = {0};
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "w", 8 * MIB, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, WINDOW);
	for (uint64_t i = 0; i < 3; i++) /* apart, so that each costs two mappings but for the first */
		(void)note(&r, set, p, "w", (struct ffi_part_spec){.offset = i * 2 * MIB + PAGE, .length = 2 * MIB});
	delete_set(set);
	/* A set's limit of parts is for new ones. */
	const struct ffi_set_spec one = {.window_addr = r.info.window_addr,
			.window_size = WINDOW,
			.parts_max = 1,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET};
	struct pmemset_error ignored;
	struct ffi_part part;
	must(ffi_set_new(&one, &set, &err));
	must(restore_some(&r, set, 0, 2));
	is_mapped(&r, 0);
	is_mapped(&r, 1);
	fails(map(set, p, "a", (struct ffi_part_spec){.length = PAGE}, &part), -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_PARTS);
	/* That of the kernel's mappings is for all. */
	int64_t taken = (int64_t)(mappings_max() - mappings_used());
	must(mappings_take(taken, &err));
	must(restore_some(&r, set, 2, 3));
	is_kept(&r, 2, -ENOMEM, PMEMSET_REASON_LIMIT_MAPPINGS);
	assert_int_equal(r.row[2].value, mappings_max());
	must(mappings_take(-taken, &ignored));
	must(restore_some(&r, set, 2, 3));
	is_mapped(&r, 2);
	delete_set(set);
	assert_int_equal(mappings_used(), 0);
}

/* A mmap that fails late has torn the fence down; it stands again, and the parts beside it are mapped. */
static void mmap_that_fails(void **state)
{
	struct place *p = here(state);
	no_valgrind("does not know that a mmap that fails may tear a fence down, and refuses another one in its place");
	struct record r = three_parts(p);
	struct place sys = {.dir = "/sys/kernel/mm/transparent_hugepage"};
	if (access(path_in(&sys, "enabled"), W_OK) != 0 || ffi_volume_open(sys.dir, &sys.volume, &err) != 0) {
		print_message("no file of sysfs can be written to here\n");
		skip();
	}
	uint64_t set;
	must(new_set_at(&r, FFI_COALESCING_NONE, &set));
	struct ffi_restore_file files[2] = {{.volume = p->volume, .path_length = 1},
			{.volume = sys.volume, .path_at = 1, .path_length = 7}};
	struct ffi_restore_part rows[3];
	for (uint64_t i = 0; i < 3; i++)
		rows[i] = (struct ffi_restore_part){.file = i % 2,
				.length = PAGE,
				.cookie = i + 1,
				.addr = r.info.window_addr + i * PAGE,
				.joins = 1};
	must(ffi_restore(set, files, 2, "aenabled", 8, rows, 3, &err));
	if (rows[1].code != -EROFS && rows[1].code != -EACCES) {
		assert_int_equal(rows[1].code, PMEMSET_E_INVALID_PMEM2_MAP);
		assert_int_equal(rows[1].sys_errno, ENODEV);
	}
	assert_int_equal(rows[1].kept, 1);
	assert_int_equal(rows[0].code | rows[2].code, 0);
	assert_int_equal(info_of(set).map_count, 2);
	covered(rows[1].addr, PAGE, "---p");
	covered(r.info.window_addr, r.info.window_size, NULL);
	delete_set(set);
	must(ffi_volume_close(sys.volume));
}

/* ---- at the same time ---- */

struct reader {
	uint64_t set;
	const struct record *record;
	atomic_bool stop;
	_Atomic unsigned reads;
};

/* The first part is always there; the others come and go, and whoever finds one finds its bytes. */
static void *read_all(void *arg)
{
	struct reader *r = arg;
	while (!atomic_load(&r->stop)) {
		for (uint64_t i = 0; i < r->record->count; i++) {
			const struct ffi_part *part = &r->record->part[i];
			unsigned char byte;
			struct ffi_span span;
			int rc = ffi_read(r->set, part->addr, &byte, 1, 0, NULL);
			if (rc == 0 ? byte != byte_of(1, part->offset) : i == 0 || rc != PMEMSET_E_CANNOT_FIND_PART_MAP)
				return (void *)1;
			rc = ffi_lookup(r->set, part->addr, &span);
			if (rc == 0 && (span.addr != part->addr || span.cookie != part->cookie))
				return (void *)2;
			atomic_fetch_add(&r->reads, 1);
		}
	}
	return NULL;
}

static void read_meanwhile(void **state)
{
	struct place *p = here(state);
	struct record r = {0};
	make_file(p, "a", 40 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, WINDOW);
	for (uint64_t i = 0; i < 40; i++)
		(void)page_of(&r, set, p, "a", i);
	delete_set(set);
	must(new_set_at(&r, FFI_COALESCING_FULL, &set));
	must(restore_some(&r, set, 0, 1));
	struct reader reader = {.set = set, .record = &r};
	pthread_t threads[2];
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_all, &reader), 0);
	for (uint64_t round = 0; round < scaled(300) || atomic_load(&reader.reads) < 100; round++) {
		must(restore_some(&r, set, 1, r.count));
		for (uint64_t i = 1; i < r.count; i++)
			assert_int_equal(r.row[i].code, 0);
		assert_int_equal(info_of(set).part_count, r.count);
		int rc;
		do
			rc = remove_range(set, r.part[1].addr, (r.count - 1) * PAGE);
		while (rc == PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
		must(rc);
	}
	atomic_store(&reader.stop, true);
	for (int i = 0; i < 2; i++) {
		void *result;
		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_null(result);
	}
	delete_set(set);
}

/* ---- windows ---- */

static void windows_that_are_taken(void **state)
{
	(void)state;
	uint64_t first = new_set(FFI_COALESCING_NONE, 4 * MIB);
	struct record r = {.info = info_of(first)};
	char *before = world(0, NULL);
	uint64_t set = 7;
	const struct {
		uint64_t addr, size;
	} rows[] = {{r.info.window_addr, 4 * MIB}, {r.info.window_addr, 2 * MIB}, {r.info.window_addr + 2 * MIB, 8 * MIB},
			{arena()->base - 2 * MIB, 2 * MIB}, {arena()->base - 2 * MIB, 4 * MIB}, {arena()->base + arena()->size, 2 * MIB},
			{arena()->base + arena()->size - 2 * MIB, 2 * MIB + 1}, {arena()->base + 64 * MIB + 1, 2 * MIB}, {PAGE, 2 * MIB},
			{UINT64_MAX - 2 * MIB + 1, 2 * MIB}, {arena()->base + 64 * MIB, UINT64_MAX}, {arena()->base + 64 * MIB, 0}};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct ffi_set_spec spec = {.window_addr = rows[i].addr,
				.window_size = rows[i].size,
				.required_granularity = FFI_GRANULARITY_PAGE,
				.granularity = FFI_GRANULARITY_UNSET};
		fails(ffi_set_new(&spec, &set, &err), -EBUSY);
		assert_int_equal(err.reason, PMEMSET_REASON_WINDOW_TAKEN);
		assert_int_equal(set, 0);
	}
	same_world(before, 0, NULL);
	/* Between two, exactly; and the next that may be anywhere goes around it. */
	struct record high = {.info = {.window_addr = r.info.window_addr + 8 * MIB,
					      .window_size = 2 * MIB,
					      .granularity = FFI_GRANULARITY_UNSET}};
	struct record between = high;
	between.info.window_addr = r.info.window_addr + 4 * MIB;
	between.info.window_size = 4 * MIB;
	uint64_t sets[3];
	must(new_set_at(&high, FFI_COALESCING_NONE, &sets[0]));
	between.info.window_size += 1;
	fails(new_set_at(&between, FFI_COALESCING_NONE, &set), -EBUSY);
	between.info.window_size -= 1;
	must(new_set_at(&between, FFI_COALESCING_NONE, &sets[1]));
	assert_int_equal(info_of(sets[1]).window_addr, between.info.window_addr);
	sets[2] = new_set(FFI_COALESCING_NONE, 2 * MIB);
	assert_int_equal(info_of(sets[2]).window_addr, r.info.window_addr + 10 * MIB);
	for (int i = 0; i < 3; i++)
		delete_set(sets[i]);
	delete_set(first);
	const struct ffi_set_spec finer = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_CACHE_LINE,
			.granularity = FFI_GRANULARITY_PAGE};
	fails(ffi_set_new(&finer, &set, &err), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
}

/* ---- rows that make no sense ---- */

static void calls_that_are_refused(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	uint64_t set;
	must(new_set_at(&r, FFI_COALESCING_NONE, &set));
	struct ffi_restore_file file = {.volume = p->volume, .path_length = 1};
	const struct ffi_restore_part good = {.length = PAGE, .cookie = 7, .addr = r.info.window_addr};
	struct ffi_restore_part part = good;
	char *before = world(set, p);
	part.file = 1;
	fails(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err), -EINVAL);
	part = good;
	part.cookie = 0;
	fails(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err), -EINVAL);
	part = good;
	file.path_at = 1;
	fails(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err), -EINVAL);
	file.path_at = UINT64_MAX;
	fails(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err), -EINVAL);
	file.path_at = 0;
	memset(file.identity, 'x', sizeof(file.identity));
	fails(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err), -EINVAL);
	file.identity[0] = '\0';
	fails(ffi_restore(~set, &file, 1, "a", 1, &part, 1, &err), -EBADF);
	must(ffi_restore(set, NULL, 0, NULL, 0, NULL, 0, &err));
	same_world(before, set, p);

	/* A volume that is none is the part's trouble. */
	file.volume = ~file.volume;
	must(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err));
	assert_int_equal(part.code, -EBADF);
	assert_int_equal(part.reason, PMEMSET_REASON_STALE);
	assert_int_equal(part.kept, 1);
	must(ffi_release(set, part.addr, part.length, &err));
	delete_set(set);
}

/* Each is alone in its call, and has an outcome of its own. */
static void rows_that_are_refused(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	uint64_t set;
	must(new_set_at(&r, FFI_COALESCING_NONE, &set));
	struct ffi_restore_file file = {.volume = p->volume, .path_length = 1};
	const struct {
		uint64_t addr, offset, length;
		int code, cause;
		bool kept;
	} rows[] = {
			{r.info.window_addr + 1, 0, PAGE, PMEMSET_E_INVALID_PMEM2_MAP, PMEM2_E_ADDRESS_UNALIGNED, false},
			{r.info.window_addr, 0, PAGE + 1, PMEMSET_E_INVALID_PMEM2_MAP, PMEM2_E_ADDRESS_UNALIGNED, false},
			{r.info.window_addr, 0, 0, PMEMSET_E_INVALID_PMEM2_MAP, PMEM2_E_ADDRESS_UNALIGNED, false},
			{r.info.window_addr - PAGE, 0, PAGE, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, false},
			{r.info.window_addr + WINDOW, 0, PAGE, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, false},
			{r.info.window_addr + WINDOW - PAGE, 0, 2 * PAGE, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, false},
			{r.info.window_addr, 0, UINT64_MAX - PAGE + 1, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, false},
			{0, 0, PAGE, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, false},
			{r.info.window_addr, 1, PAGE, PMEMSET_E_INVALID_PMEM2_MAP, PMEM2_E_OFFSET_UNALIGNED, true},
			{r.info.window_addr, UINT64_MAX, PAGE, PMEMSET_E_INVALID_OFFSET_VALUE, 0, true},
			{r.info.window_addr, 4 * PAGE, PAGE, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, true},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ffi_restore_part part = {.offset = rows[i].offset, .length = rows[i].length, .cookie = 7, .addr = rows[i].addr};
		char *before = world(set, p);
		must(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err));
		assert_int_equal(part.code, rows[i].code);
		assert_int_equal(part.cause, rows[i].cause);
		assert_int_equal(part.kept, rows[i].kept);
		must_be(ffi_release(set, part.addr, part.length, &err), rows[i].kept ? 0 : -ENOENT, "ffi_release", __FILE__, __LINE__);
		same_world(before, set, p);
	}
	delete_set(set);
}

/* The first has them, mapped or kept. */
static void two_that_want_the_same_bytes(void **state)
{
	struct place *p = here(state);
	struct record r = three_parts(p);
	uint64_t set = restored(&r, FFI_COALESCING_NONE);
	struct ffi_restore_file file = {.volume = p->volume, .path_length = 1};
	const struct ffi_restore_part good = {.length = PAGE, .cookie = 7, .addr = r.info.window_addr};
	struct ffi_restore_part part = good;
	must(ffi_restore(set, &file, 1, "a", 1, &part, 1, &err));
	assert_int_equal(part.code, PMEMSET_E_INVALID_PMEM2_MAP);
	assert_int_equal(part.cause, PMEM2_E_MAPPING_EXISTS);
	assert_int_equal(part.kept, 0);
	struct ffi_restore_part two[2] = {good, good};
	two[0].addr = two[1].addr = r.info.window_addr + 16 * PAGE;
	two[0].offset = 4 * PAGE; /* behind the end */
	two[0].length = 2 * PAGE;
	two[1].addr += PAGE;
	must(ffi_restore(set, &file, 1, "a", 1, two, 2, &err));
	assert_int_equal(two[0].code, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL);
	assert_int_equal(two[0].kept, 1);
	assert_int_equal(two[1].cause, PMEM2_E_MAPPING_EXISTS);
	assert_int_equal(two[1].kept, 0);
	delete_set(set);
}

/* ---- identity as text ---- */

static void identities_compared(void **state)
{
	(void)state;
	const struct {
		const char *was, *is;
		bool same;
	} rows[] = {
			{"", "", true},
			{"", "uab f12 i7 g1 b1.5", true},
			{"uab f12 i7 g1 b1.5", "", false},
			{"uab f12 i7 g1 b1.5", "uab f12 i7 g1 b1.5", true},
			{"uab f12 i7 g1 b1.5", "uab f12 i8 g1 b1.5", false},
			{"uab f12 i7 g1 b1.5", "uab f12 i7 g2 b1.5", false},
			{"uab f12 i7 g1 b1.5", "uab f12 i7 g1 b1.6", false},
			{"uab f12 i7 g1 b1.5", "uac f12 i7 g1 b1.5", false},
			/* A UUID says more than what statfs has. */
			{"uab f12 i7 g1 b1.5", "uab f13 i7 g1 b1.5", true},
			{"uab f12 i7 g1 b1.5", "f12 i7 g1 b1.5", true},
			{"f12 i7 g1 b1.5", "uab f12 i7 g1 b1.5", true},
			{"f12 i7 g1 b1.5", "uab f13 i7 g1 b1.5", false},
			/* What only one of them tells of. */
			{"uab i7 g1", "uab i7 g1 b1.5", true},
			{"uab i7 b1.5", "uab i7 g1 b1.5", true},
			{"uab i7 g1", "uab i77 g1", false},
			{"uab i77 g1", "uab i7 g1", false},
			{"text of somebody else", "uab i7 g1", false},
			{"i", "uab i7 g1", false},
			{" ", "uab i7 g1", false},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (identity_same(rows[i].was, rows[i].is) != rows[i].same)
			fail_msg("\"%s\" and \"%s\"", rows[i].was, rows[i].is);
}

/* A file keeps its identity when it is renamed, written to, grown, linked and opened again, and shares it with no other. */
static void identity_of_a_file(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_NONE, WINDOW);
	make_file(p, "a", 2 * PAGE, 1);
	struct ffi_part first = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	print_message("%s\n", first.identity);
	assert_true(strlen(first.identity) > 10);
	must(remove_range(set, first.addr, PAGE));
	assert_int_equal(rename(path_in(p, "a"), path_in(p, "b")), 0);
	struct ffi_part again = must_map(set, p, "b", (struct ffi_part_spec){.length = 4 * PAGE, .grow = 1});
	assert_string_equal(again.identity, first.identity);
	make_file(p, "a", 2 * PAGE, 1);
	struct ffi_part other = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_false(identity_same(first.identity, other.identity));
	/* One that was made here has the identity that it has later. */
	struct ffi_part made =
			must_map(set, p, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_EXCLUSIVE, .mode = 0600});
	must(remove_range(set, made.addr, PAGE));
	struct ffi_part later = must_map(set, p, "new", (struct ffi_part_spec){.length = PAGE});
	assert_string_equal(made.identity, later.identity);
	delete_set(set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(everything_is_where_it_was),
			ON_EACH(one_row_for_many_parts),
			ON_EACH(joins_only_what_it_was_appended_to),
			ON_EACH(each_thing_that_can_happen),
			ON_EACH(another_file_of_the_same_inode),
			ON_EACH(another_granularity),
			ON_EACH(a_kept_range_is_let_go),
			ON_EACH(a_set_of_kept_ranges_ends),
			ON_EACH(removals_pass_over),
			ON_EACH(limits),
			ON_EACH(mmap_that_fails),
			ON_EACH(read_meanwhile),
			ONCE(windows_that_are_taken),
			ON_EACH(calls_that_are_refused),
			ON_EACH(rows_that_are_refused),
			ON_EACH(two_that_want_the_same_bytes),
			ONCE(identities_compared),
			ON_EACH(identity_of_a_file),
	};
	return RUN("restore", tests, FFI_GRANULARITY_UNSET);
}
