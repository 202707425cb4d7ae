/* SPDX-License-Identifier: BSD-3-Clause */
/* Mapping a part: every refusal, in its order, and nothing changed by it; then where parts go, and what happens to the file. */
#include "scene.h"

#include "medium.h"
#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <libpmem2.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#define OFFSET_MAX ((uint64_t)INT64_MAX)

static uint64_t limited_set(uint32_t required, uint32_t coalescing, uint64_t window_size, uint64_t parts_max)
{
	const struct ffi_set_spec spec = {.window_size = window_size,
			.parts_max = parts_max,
			.required_granularity = required,
			.granularity = FFI_GRANULARITY_UNSET,
			.coalescing = coalescing};
	uint64_t set;
	must(ffi_set_new(&spec, &set, &err));
	return set;
}

/* The refusal, with the world as it was. */
static void refused(uint64_t set, const struct place *p, const char *name, struct ffi_part_spec spec, int code)
{
	struct ffi_part part;
	char *before = world(set, p);
	memset(&err, 0xff, sizeof(err));
	fails(map(set, p, name, spec, &part), code);
	assert_int_equal(err.code, code);
	same_world(before, set, p);
	struct ffi_set_info info = info_of(set);
	covered(info.window_addr, info.window_size, NULL);
}

/* ---- refusals ---- */

static void ranges_that_are_none(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 3);
	make_file(p, "odd", 2 * PAGE + 100, 3);
	make_file(p, "empty", 0, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	const uint64_t last_page = OFFSET_MAX + 1 - PAGE;
	const struct {
		const char *name;
		struct ffi_part_spec spec;
		int code, cause;
		uint64_t value;
	} rows[] = {
			{"a", {.offset = OFFSET_MAX + 1, .length = PAGE}, PMEMSET_E_INVALID_OFFSET_VALUE, 0, 0},
			{"a", {.offset = UINT64_MAX, .length = PAGE, .grow = 1}, PMEMSET_E_INVALID_OFFSET_VALUE, 0, 0},
			{"a", {.offset = 100, .length = PAGE}, PMEMSET_E_INVALID_PMEM2_MAP, PMEM2_E_OFFSET_UNALIGNED, PAGE},
			{"a", {.offset = OFFSET_MAX, .length = PAGE, .grow = 1}, PMEMSET_E_INVALID_PMEM2_MAP, PMEM2_E_OFFSET_UNALIGNED,
					PAGE},
			{"a", {.offset = 4 * PAGE}, PMEMSET_E_MAP_LENGTH_UNSET, 0, 0},
			{"a", {.offset = last_page, .grow = 1}, PMEMSET_E_MAP_LENGTH_UNSET, 0, 0},
			{"empty", {.grow = 1}, PMEMSET_E_MAP_LENGTH_UNSET, 0, 0},
			{"new", {.create = FFI_CREATE_IF_NEEDED}, PMEMSET_E_MAP_LENGTH_UNSET, 0, 0},
			{"odd", {.length = 0}, PMEMSET_E_LENGTH_UNALIGNED, 0, PAGE},
			{"odd", {.offset = 2 * PAGE}, PMEMSET_E_LENGTH_UNALIGNED, 0, PAGE},
			{"a", {.length = 100}, PMEMSET_E_LENGTH_UNALIGNED, 0, PAGE},
			{"a", {.length = PAGE + 1, .grow = 1}, PMEMSET_E_LENGTH_UNALIGNED, 0, PAGE},
			{"a", {.length = UINT64_MAX, .grow = 1}, PMEMSET_E_LENGTH_UNALIGNED, 0, PAGE},
			{"a", {.length = 5 * PAGE}, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, 4 * PAGE},
			{"a", {.offset = 4 * PAGE, .length = PAGE}, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, 4 * PAGE},
			{"odd", {.length = 3 * PAGE}, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, 2 * PAGE + 100},
			/* No file can be that large, so growing is no way out. */
			{"a", {.offset = last_page, .length = PAGE, .grow = 1}, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, 4 * PAGE},
			{"a", {.length = UINT64_MAX - PAGE + 1, .grow = 1}, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0, 4 * PAGE},
			{"a", {.offset = PAGE, .length = UINT64_MAX - PAGE + 1, .grow = 1}, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL, 0,
					4 * PAGE},
			{"a", {.length = OFFSET_MAX + 1 - PAGE, .grow = 1}, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, 64 * MIB},
			{"new", {.length = 65 * MIB, .create = FFI_CREATE_IF_NEEDED}, PMEMSET_E_CANNOT_FIT_PART_MAP, 0, 64 * MIB},
			{"gone", {.length = PAGE, .grow = 1}, PMEMSET_E_INVALID_SOURCE_PATH, 0, 0},
			{"no/dir", {.length = PAGE, .create = FFI_CREATE_ALWAYS}, PMEMSET_E_INVALID_SOURCE_PATH, 0, 0},
			{"a", {.length = PAGE, .create = FFI_CREATE_ALWAYS + 1}, -EINVAL, 0, 0},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		refused(set, p, rows[i].name, rows[i].spec, rows[i].code);
		assert_int_equal(err.cause, rows[i].cause);
		assert_int_equal(err.value, rows[i].value);
	}
	const struct ffi_part_spec no_cookie = {.volume = p->volume, .length = PAGE};
	struct ffi_part part;
	fails(ffi_part_map(set, &no_cookie, "a", 1, &part, NULL), -EINVAL);
	delete_set(set);
}

/* One request with every fault there is; fault after fault is taken away, and the next one answers. */
static void in_their_order(void **state)
{
	struct place *p = here(state);
	make_file(p, "first", PAGE, 1);
	make_file(p, "a", 2 * PAGE, 1);
	uint64_t full = limited_set(FFI_GRANULARITY_PAGE, FFI_COALESCING_FULL, 2 * MIB, 1);
	uint64_t set = limited_set(FFI_GRANULARITY_PAGE, FFI_COALESCING_FULL, 2 * MIB, 2);
	must_map(full, p, "first", (struct ffi_part_spec){.length = PAGE});
	must_map(set, p, "first", (struct ffi_part_spec){.length = PAGE});
	struct ffi_part_spec spec = {.offset = OFFSET_MAX + 1, .length = 1, .keep_free = UINT64_MAX};

	refused(full, p, "gone", spec, PMEMSET_E_INVALID_OFFSET_VALUE);
	spec.offset = 1;
	refused(full, p, "gone", spec, PMEMSET_E_INVALID_SOURCE_PATH);
	refused(full, p, "a", spec, PMEMSET_E_INVALID_PMEM2_MAP);
	spec.offset = 0;
	refused(full, p, "a", spec, PMEMSET_E_LENGTH_UNALIGNED);
	spec.length = 16 * MIB;
	refused(full, p, "a", spec, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL);
	spec.grow = 1;
	refused(full, p, "a", spec, -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_PARTS);
	assert_int_equal(err.value, 1);
	refused(set, p, "a", spec, PMEMSET_E_CANNOT_COALESCE_PARTS);
	must(ffi_set_coalescing(set, FFI_COALESCING_NONE, &err));
	refused(set, p, "a", spec, PMEMSET_E_CANNOT_FIT_PART_MAP);
	assert_int_equal(err.value, 2 * MIB - PAGE);
	spec.length = 4 * PAGE;
	medium_simulate(PMEM2_GRANULARITY_CACHE_LINE); /* for the file, when it is opened the next time */
	refused(set, p, "a", spec, PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_int_equal(err.reason, PMEMSET_REASON_KEEP_FREE);
	assert_int_equal(err.sys_errno, ENOSPC);
	spec.keep_free = 0;
	refused(set, p, "a", spec, PMEMSET_E_GRANULARITY_MISMATCH);
	assert_int_equal(err.granularity, FFI_GRANULARITY_CACHE_LINE);
	medium_simulate(PMEM2_GRANULARITY_PAGE);
	struct ffi_part part = must_map(set, p, "a", spec);
	assert_int_equal(part.length, 4 * PAGE);
	assert_int_equal(file_size(p, "a"), 4 * PAGE);
	delete_set(full);
	delete_set(set);
}

static void granularity_that_is_too_coarse(void **state)
{
	struct place *p = here(state);
	make_file(p, "fine", PAGE, 1);
	make_file(p, "coarse", PAGE, 1);
	uint64_t set = limited_set(FFI_GRANULARITY_CACHE_LINE, FFI_COALESCING_NONE, 2 * MIB, 0);
	const struct ffi_part_spec spec = {.length = 3 * PAGE, .grow = 1};
	refused(set, p, "coarse", spec, PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	assert_int_equal(err.cause, PMEM2_E_GRANULARITY_NOT_SUPPORTED);
	assert_int_equal(err.granularity, FFI_GRANULARITY_PAGE);
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_UNSET);
	/* Of a file that is to be made, too, which then is not there. */
	refused(set, p, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_EXCLUSIVE}, PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	medium_simulate(PMEM2_GRANULARITY_BYTE);
	struct ffi_part part = must_map(set, p, "fine", spec);
	medium_simulate(PMEM2_GRANULARITY_PAGE);
	assert_int_equal(part.granularity, FFI_GRANULARITY_BYTE);
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_BYTE);
	/* Too coarse for what the set requires comes before not what the set has. */
	refused(set, p, "coarse", spec, PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	medium_simulate(PMEM2_GRANULARITY_CACHE_LINE);
	refused(set, p, "coarse", spec, PMEMSET_E_GRANULARITY_MISMATCH);
	medium_simulate(PMEM2_GRANULARITY_PAGE);
	/* What the set has stays, also when nothing is in it any more. */
	must(remove_range(set, part.addr, 1));
	assert_int_equal(info_of(set).granularity, FFI_GRANULARITY_BYTE);
	delete_set(set);
}

static void sets_that_are_none(void **state)
{
	(void)state;
	struct ffi_set_spec spec = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_UNSET,
			.granularity = FFI_GRANULARITY_UNSET};
	uint64_t set = 7;
	fails(ffi_set_new(&spec, &set, &err), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	spec.required_granularity = FFI_GRANULARITY_PAGE;
	spec.coalescing = FFI_COALESCING_FULL + 1;
	fails(ffi_set_new(&spec, &set, &err), PMEMSET_E_INVALID_COALESCING_VALUE);
	assert_int_equal(set, 0);
	spec.coalescing = FFI_COALESCING_NONE;
	must(ffi_set_new(&spec, &set, &err));
	fails(ffi_set_coalescing(set, FFI_COALESCING_FULL + 1, &err), PMEMSET_E_INVALID_COALESCING_VALUE);
	assert_int_equal(info_of(set).coalescing, FFI_COALESCING_NONE);
	delete_set(set);
}

/* A file that the kernel maps for nobody: its mmap fails late, when the fence is torn down already. */
static void mmap_that_fails(void **state)
{
	(void)state;
	no_valgrind("does not know that a mmap that fails may tear a fence down, and refuses another one in its place");
	struct place sys = {.dir = "/sys/kernel/mm/transparent_hugepage"};
	struct ffi_part part;
	if (access(path_in(&sys, "enabled"), W_OK) != 0) {
		print_message("no file of sysfs can be written to here\n");
		skip();
	}
	must(ffi_volume_open(sys.dir, &sys.volume, &err));
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	int rc = map(set, &sys, "enabled", (struct ffi_part_spec){.length = PAGE}, &part);
	if (rc == -EROFS || rc == -EACCES) {
		print_message("sysfs is read-only here\n");
		delete_set(set);
		must(ffi_volume_close(sys.volume));
		skip();
	}
	assert_int_equal(rc, PMEMSET_E_INVALID_PMEM2_MAP);
	assert_int_equal(err.sys_errno, ENODEV);
	assert_int_equal(err.reason, PMEMSET_REASON_NONE);
	refused(set, &sys, "enabled", (struct ffi_part_spec){.length = PAGE}, PMEMSET_E_INVALID_PMEM2_MAP);
	struct ffi_set_info info = info_of(set);
	covered(info.window_addr, info.window_size, "---p");
	delete_set(set);
	must(ffi_volume_close(sys.volume));
}

static void limits(void **state)
{
	struct place *p = here(state);
	struct pmemset_error ignored;
	make_file(p, "a", 8 * PAGE, 1);
	uint64_t set = limited_set(FFI_GRANULARITY_PAGE, FFI_COALESCING_OPPORTUNISTIC, 2 * MIB, 3);
	struct ffi_part parts[3];
	for (uint64_t i = 0; i < 3; i++)
		parts[i] = must_map(set, p, "a", (struct ffi_part_spec){.offset = i * PAGE, .length = PAGE});
	refused(set, p, "a", (struct ffi_part_spec){.length = PAGE}, -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_PARTS);
	assert_int_equal(err.value, 3);
	must(remove_range(set, parts[1].addr, 1));
	must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	must(remove_range(set, info_of(set).window_addr, 2 * MIB));
	assert_int_equal(mappings_used(), 0);

	int64_t taken = (int64_t)mappings_max() - 2;
	must(mappings_take(taken, &err));
	must_map(set, p, "a", (struct ffi_part_spec){.offset = PAGE, .length = PAGE});
	assert_int_equal(mappings_used(), mappings_max());
	refused(set, p, "a", (struct ffi_part_spec){.length = PAGE}, -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_MAPPINGS);
	assert_int_equal(err.value, mappings_max());
	must(mappings_take(-taken, &ignored));
	delete_set(set);
	assert_int_equal(mappings_used(), 0);
}

/* ---- the file ---- */

static mode_t mode_of(const struct place *p, const char *name)
{
	struct stat st;
	assert_int_equal(stat(path_in(p, name), &st), 0);
	return st.st_mode & 07777;
}

static ino_t inode_of(const struct place *p, const char *name)
{
	struct stat st;
	assert_int_equal(stat(path_in(p, name), &st), 0);
	return st.st_ino;
}

static void allocated(const struct place *p, const char *name)
{
	struct stat st;
	assert_int_equal(stat(path_in(p, name), &st), 0);
	assert_true((uint64_t)st.st_blocks * 512 >= (uint64_t)st.st_size);
}

static void what_a_part_is_told(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	struct ffi_part part = must_map(set, p, "a", (struct ffi_part_spec){.offset = PAGE, .cookie = UINT64_MAX});
	struct stat st;
	assert_int_equal(stat(path_in(p, "a"), &st), 0);
	struct ffi_part wanted = {.addr = info_of(set).window_addr,
			.length = 3 * PAGE, /* the rest of the file */
			.offset = PAGE,
			.cookie = UINT64_MAX,
			.map_addr = info_of(set).window_addr,
			.map_size = 3 * PAGE,
			.dev = st.st_dev,
			.ino = st.st_ino,
			.granularity = FFI_GRANULARITY_PAGE,
			.persistence = p == &places[0] ? FFI_PERSISTENCE_VOLATILE : part.persistence};
	memcpy(wanted.identity, part.identity, sizeof(wanted.identity)); /* 55-restore looks at it */
	assert_memory_equal(&part, &wanted, sizeof(part));
	assert_memory_equal(at(part.addr), ((unsigned char[]){byte_of(1, PAGE), byte_of(1, PAGE + 1)}), 2);
	delete_set(set);
}

static void made_if_needed(void **state)
{
	struct place *p = here(state);
	static const char zeros[65536];
	char buf[sizeof(zeros)];
	mode_t umask_before = umask(027);
	uint64_t set = new_set(FFI_COALESCING_NONE, 16 * MIB);
	/* A made file needs no leave to grow; of the mode, permissions are taken and nothing else. */
	struct ffi_part_spec spec = {.offset = 4 * PAGE, .length = 12 * PAGE, .create = FFI_CREATE_IF_NEEDED, .mode = 06666};
	refused(set, p, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_NEVER, .grow = 1},
			PMEMSET_E_INVALID_SOURCE_PATH);
	struct ffi_part part = must_map(set, p, "new", spec);
	(void)umask(umask_before);
	assert_int_equal(part.created, 1);
	assert_int_equal(mode_of(p, "new"), 0640);
	assert_int_equal(file_size(p, "new"), 16 * PAGE);
	assert_int_equal(part.ino, inode_of(p, "new"));
	allocated(p, "new");
	read_file(p, "new", 0, buf, 16 * PAGE);
	assert_memory_equal(buf, zeros, 16 * PAGE);
	part = must_map(set, p, "new", spec);
	assert_int_equal(part.created, 0);
	/* One that is there is as small as it is. */
	spec.length = 13 * PAGE;
	refused(set, p, "new", spec, PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL);
	delete_set(set);
}

static void made_only_by_us(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	const struct ffi_part_spec spec = {.length = PAGE, .create = FFI_CREATE_EXCLUSIVE, .mode = 0600};
	assert_int_equal(must_map(set, p, "new", spec).created, 1);
	refused(set, p, "new", spec, -EEXIST);
	assert_int_equal(err.reason, PMEMSET_REASON_SOURCE_EXISTS);
	assert_int_equal(mkdir(path_in(p, "dir"), 0700), 0);
	refused(set, p, "dir", spec, PMEMSET_E_INVALID_PMEM2_SOURCE);
	assert_int_equal(must_map(set, p, "dir/new", spec).created, 1);
	delete_set(set);
}

static void made_anew(void **state)
{
	struct place *p = here(state);
	unsigned char buf[16];
	make_file(p, "old", 4 * PAGE, 5);
	assert_int_equal(chmod(path_in(p, "old"), 06604), 0); /* the new content is not the program that was trusted */
	uint64_t set = limited_set(FFI_GRANULARITY_PAGE, FFI_COALESCING_NONE, 2 * MIB, 0);
	struct ffi_part_spec spec = {.length = 2 * PAGE, .create = FFI_CREATE_ALWAYS, .mode = 0666};

	/* The old one stays until the new one is complete, whatever fails, and how late. */
	refused(set, p, "old", (struct ffi_part_spec){.length = 1, .create = FFI_CREATE_ALWAYS}, PMEMSET_E_LENGTH_UNALIGNED);
	refused(set, p, "old", (struct ffi_part_spec){.length = 3 * MIB, .create = FFI_CREATE_ALWAYS}, PMEMSET_E_CANNOT_FIT_PART_MAP);
	refused(set, p, "old", (struct ffi_part_spec){.length = PAGE, .keep_free = UINT64_MAX, .create = FFI_CREATE_ALWAYS},
			PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	uint64_t demanding = limited_set(FFI_GRANULARITY_BYTE, FFI_COALESCING_NONE, 2 * MIB, 0);
	refused(demanding, p, "old", spec, PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	delete_set(demanding);

	struct ffi_part reader = must_map(set, p, "old", (struct ffi_part_spec){.length = PAGE});
	refused(set, p, "old", spec, -EBUSY);
	assert_int_equal(err.reason, PMEMSET_REASON_SOURCE_IN_USE);
	must(remove_range(set, reader.addr, 1));

	ino_t old = inode_of(p, "old");
	struct ffi_part part = must_map(set, p, "old", spec);
	assert_int_equal(part.created, 1);
	assert_int_not_equal(inode_of(p, "old"), old);
	assert_int_equal(part.ino, inode_of(p, "old"));
	assert_int_equal(mode_of(p, "old"), 0604);
	assert_int_equal(file_size(p, "old"), 2 * PAGE);
	allocated(p, "old");
	read_file(p, "old", 0, buf, sizeof(buf));
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 0);
	refused(set, p, "old", spec, -EBUSY);
	delete_set(set);
}

static void grown(void **state)
{
	struct place *p = here(state);
	unsigned char buf[100];
	make_file(p, "a", PAGE + 100, 9);
	uint64_t set = new_set(FFI_COALESCING_NONE, 16 * MIB);
	must_map(set, p, "a", (struct ffi_part_spec){.offset = PAGE, .length = 2 * MIB, .grow = 1});
	assert_int_equal(file_size(p, "a"), PAGE + 2 * MIB);
	allocated(p, "a");
	read_file(p, "a", PAGE, buf, sizeof(buf));
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], byte_of(9, PAGE + i));
	/* Large enough is left as it is. */
	must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE, .grow = 1, .keep_free = UINT64_MAX});
	assert_int_equal(file_size(p, "a"), PAGE + 2 * MIB);
	/* A disk that could never hold it. */
	refused(set, p, "a", (struct ffi_part_spec){.offset = 1024 * GIB, .length = PAGE, .grow = 1}, PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_int_equal(err.sys_errno, ENOSPC);
	assert_int_equal(err.reason, PMEMSET_REASON_NONE);
	delete_set(set);
}

/* fallocate itself refuses, where statvfs had promised the room. */
static void growth_that_fails_late(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", PAGE + 100, 9);
	uint64_t set = new_set(FFI_COALESCING_NONE, 16 * MIB);
	struct rlimit before;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	const struct rlimit low = {.rlim_cur = MIB, .rlim_max = before.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
	const struct ffi_part_spec spec = {.length = 2 * MIB, .grow = 1, .create = FFI_CREATE_IF_NEEDED};
	refused(set, p, "a", spec, PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_int_equal(err.sys_errno, EFBIG);
	refused(set, p, "new", spec, PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	must_map(set, p, "a", spec);
	delete_set(set);
}

/* With `ulimit -f` the kernel would end the process of whoever reaches it; here a child, so that this one could tell. */
static void the_limit_of_file_sizes(void **state)
{
	struct place *p = here(state);
	const struct rlimit low = {.rlim_cur = MIB, .rlim_max = MIB};
	struct ffi_part part;
	struct ffi_written w;
	make_file(p, "a", 2 * MIB, 0);
	make_file(p, "b", PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 4 * MIB);
	uint64_t addr = must_map(set, p, "a", (struct ffi_part_spec){.length = 2 * MIB}).addr;
	(void)fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		(void)setrlimit(RLIMIT_FSIZE, &low);
		int grown = map(set, p, "b", (struct ffi_part_spec){.length = 2 * MIB, .grow = 1}, &part);
		int why = err.sys_errno;
		int wrote = ffi_write(set, addr + MIB, "x", 1, FFI_DURABILITY_NONE, &w, &err);
		_exit(grown == PMEMSET_E_CANNOT_GROW_SOURCE_FILE && why == EFBIG && wrote == -EFBIG ? 0 : 1);
	}
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(file_size(p, "b"), PAGE);
	delete_set(set);
}

static void full_file_system(void **state)
{
	struct place *p = here(state);
	struct place small = {.name = "small"};
	mounting();
	(void)snprintf(small.dir, sizeof(small.dir), "%s", path_in(p, "mnt"));
	assert_int_equal(mkdir(small.dir, 0700), 0);
	assert_int_equal(mount("none", small.dir, "tmpfs", 0, "size=4m"), 0);
	must(ffi_volume_open(small.dir, &small.volume, &err));
	make_file(&small, "a", PAGE, 3);
	make_file(&small, "filler", 2 * MIB, 3);
	uint64_t set = new_set(FFI_COALESCING_NONE, 16 * MIB);
	refused(set, &small, "a", (struct ffi_part_spec){.length = 3 * MIB, .grow = 1}, PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_int_equal(err.sys_errno, ENOSPC);
	assert_int_equal(err.reason, PMEMSET_REASON_NONE);
	refused(set, &small, "new", (struct ffi_part_spec){.length = 3 * MIB, .create = FFI_CREATE_ALWAYS},
			PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	/* Room for it, but not for what is to be kept free; value is what would have been possible. */
	refused(set, &small, "a", (struct ffi_part_spec){.length = PAGE + MIB, .grow = 1, .keep_free = MIB + PAGE},
			PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_int_equal(err.reason, PMEMSET_REASON_KEEP_FREE);
	assert_true(err.value < MIB);
	must_map(set, &small, "a", (struct ffi_part_spec){.length = PAGE + err.value, .grow = 1, .keep_free = MIB + PAGE});
	delete_set(set);
	must(ffi_volume_close(small.volume));
	assert_int_equal(umount(small.dir), 0);
}

/* The kernel maps whole huge pages there, over whatever is beside a small part. */
static void huge_pages(void **state)
{
	struct place *p = here(state);
	struct place huge = {.name = "huge"};
	mounting();
	(void)snprintf(huge.dir, sizeof(huge.dir), "%s", path_in(p, "mnt"));
	assert_int_equal(mkdir(huge.dir, 0700), 0);
	if (mount("none", huge.dir, "hugetlbfs", 0, NULL) != 0) {
		print_message("no hugetlbfs here: %s\n", strerror(errno));
		skip();
	}
	must(ffi_volume_open(huge.dir, &huge.volume, &err));
	make_file(&huge, "a", 2 * MIB, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	refused(set, &huge, "a", (struct ffi_part_spec){.length = PAGE}, PMEMSET_E_INVALID_PMEM2_SOURCE);
	assert_int_equal(err.cause, PMEM2_E_NOSUPP);
	refused(set, &huge, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_IF_NEEDED}, PMEMSET_E_INVALID_PMEM2_SOURCE);
	assert_int_equal(err.cause, PMEM2_E_NOSUPP);
	delete_set(set);
	must(ffi_volume_close(huge.volume));
	assert_int_equal(umount(huge.dir), 0);
}

/* ---- where parts go ---- */

static uint64_t addr_of(uint64_t set, const struct place *p, uint64_t offset, uint64_t length)
{
	return must_map(set, p, "a", (struct ffi_part_spec){.offset = offset, .length = length}).addr;
}

static void back_to_back(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 16 * PAGE, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (uint64_t i = 0; i < 8; i++)
		assert_int_equal(addr_of(set, p, i * PAGE, 2 * PAGE), base + 2 * i * PAGE);
	/* Side by side, and each a map of its own. */
	assert_int_equal(info_of(set).map_count, 8);
	/* A hole takes what fits, from its lower end. */
	must(remove_range(set, base + 4 * PAGE, 4 * PAGE));
	assert_int_equal(addr_of(set, p, 0, 5 * PAGE), base + 16 * PAGE);
	assert_int_equal(addr_of(set, p, 0, 3 * PAGE), base + 4 * PAGE);
	assert_int_equal(addr_of(set, p, 0, PAGE), base + 7 * PAGE);
	assert_int_equal(addr_of(set, p, 0, PAGE), base + 21 * PAGE);
	delete_set(set);
}

static void congruent_with_huge_pages(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 3 * GIB, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 8 * GIB);
	uint64_t base = info_of(set).window_addr;
	assert_int_equal(addr_of(set, p, 0, PAGE), base);
	assert_int_equal(addr_of(set, p, MIB, 4 * MIB), base + MIB);
	assert_int_equal(addr_of(set, p, 3 * PAGE, 2 * MIB), base + 6 * MIB + 3 * PAGE);
	/* Too small for a huge page: the lowest hole. */
	assert_int_equal(addr_of(set, p, MIB, 2 * MIB - PAGE) % PAGE, 0);
	uint64_t big = addr_of(set, p, GIB + 5 * MIB, GIB);
	assert_int_equal(big % GIB, 5 * MIB);
	delete_set(set);

	/* Where congruence does not fit, the part does all the same. */
	uint64_t narrow = new_set(FFI_COALESCING_NONE, 4 * MIB);
	base = info_of(narrow).window_addr;
	assert_int_equal(addr_of(narrow, p, MIB, 4 * MIB), base);
	delete_set(narrow);
}

static void to_the_last_byte(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * MIB, 0);
	uint64_t left = new_set(FFI_COALESCING_OPPORTUNISTIC, 2 * MIB);
	uint64_t right = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = info_of(left).window_addr;
	assert_int_equal(info_of(right).window_addr, base + 2 * MIB);
	assert_int_equal(addr_of(left, p, PAGE, 2 * MIB - PAGE), base);
	assert_int_equal(addr_of(left, p, 0, PAGE), base + 2 * MIB - PAGE);
	refused(left, p, "a", (struct ffi_part_spec){.length = PAGE}, PMEMSET_E_CANNOT_FIT_PART_MAP);
	assert_int_equal(err.value, 0);
	must(ffi_set_coalescing(left, FFI_COALESCING_FULL, &err));
	refused(left, p, "a", (struct ffi_part_spec){.length = PAGE}, PMEMSET_E_CANNOT_COALESCE_PARTS);
	/* The neighbour's window is its own. */
	assert_int_equal(addr_of(right, p, 0, 2 * MIB), base + 2 * MIB);
	delete_set(left);
	delete_set(right);
}

/* ---- coalescing ---- */

static void coalesced_behind_the_previous(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 16 * PAGE, 1);
	make_file(p, "b", 16 * PAGE, 2);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	/* The first has no previous, and needs none. */
	struct ffi_part first = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(first.coalesced, 0);
	struct ffi_part second = must_map(set, p, "b", (struct ffi_part_spec){.offset = 3 * PAGE, .length = 2 * PAGE});
	assert_int_equal(second.coalesced, 1);
	assert_int_equal(second.addr, first.addr + PAGE);
	assert_int_equal(second.map_addr, first.addr);
	assert_int_equal(second.map_size, 3 * PAGE);
	assert_int_equal(info_of(set).map_count, 1);
	assert_int_equal(info_of(set).part_count, 2);
	assert_int_equal(*(unsigned char *)at(second.addr), byte_of(2, 3 * PAGE));
	/* Each map decides anew. */
	must(ffi_set_coalescing(set, FFI_COALESCING_NONE, &err));
	struct ffi_part apart = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(apart.coalesced, 0);
	assert_int_equal(apart.map_addr, apart.addr);
	assert_int_equal(apart.addr, second.addr + second.length);
	must(ffi_set_coalescing(set, FFI_COALESCING_OPPORTUNISTIC, &err));
	struct ffi_part behind = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(behind.map_addr, apart.addr);
	assert_int_equal(info_of(set).map_count, 2);
	delete_set(set);
}

/* Maps of 2, 2 and 2 pages; the middle one is taken out and a page put there, which is the previous one, with a page behind it. */
static uint64_t hemmed_in(const struct place *p, uint64_t *previous)
{
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = addr_of(set, p, 0, 2 * PAGE);
	(void)addr_of(set, p, 0, 2 * PAGE);
	(void)addr_of(set, p, 0, 2 * PAGE);
	must(remove_range(set, base + 2 * PAGE, 1));
	*previous = addr_of(set, p, 0, PAGE);
	assert_int_equal(*previous, base + 2 * PAGE);
	return set;
}

static void no_room_behind_the_previous(void **state)
{
	struct place *p = here(state);
	uint64_t previous;
	make_file(p, "a", 16 * PAGE, 1);
	uint64_t set = hemmed_in(p, &previous);
	must(ffi_set_coalescing(set, FFI_COALESCING_FULL, &err));
	refused(set, p, "a", (struct ffi_part_spec){.length = 2 * PAGE}, PMEMSET_E_CANNOT_COALESCE_PARTS);
	refused(set, p, "a", (struct ffi_part_spec){.length = 4 * MIB, .grow = 1}, PMEMSET_E_CANNOT_COALESCE_PARTS);
	struct ffi_part fits = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(fits.map_addr, previous);
	assert_int_equal(fits.map_size, 2 * PAGE);
	refused(set, p, "a", (struct ffi_part_spec){.length = PAGE}, PMEMSET_E_CANNOT_COALESCE_PARTS);
	delete_set(set);

	set = hemmed_in(p, &previous);
	must(ffi_set_coalescing(set, FFI_COALESCING_OPPORTUNISTIC, &err));
	struct ffi_part elsewhere = must_map(set, p, "a", (struct ffi_part_spec){.length = 2 * PAGE});
	assert_int_equal(elsewhere.coalesced, 0);
	assert_int_equal(elsewhere.addr, previous + 4 * PAGE);
	/* That one is the previous one now. */
	struct ffi_part behind = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(behind.map_addr, elsewhere.addr);
	delete_set(set);
}

static void previous_after_a_removal(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 16 * PAGE, 1);
	const struct ffi_part_spec page = {.length = PAGE};
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t low = addr_of(set, p, 0, PAGE);
	uint64_t middle = addr_of(set, p, 0, PAGE);
	uint64_t high = addr_of(set, p, 0, PAGE);
	must(ffi_set_coalescing(set, FFI_COALESCING_FULL, &err));
	/* The neighbour below. */
	must(remove_range(set, high, 1));
	struct ffi_part part = must_map(set, p, "a", page);
	assert_int_equal(part.map_addr, middle);
	/* Below it is gone too: the one above. */
	must(remove_range(set, low, 1));
	must(ffi_set_coalescing(set, FFI_COALESCING_NONE, &err));
	assert_int_equal(addr_of(set, p, 0, PAGE), low);
	must(ffi_set_coalescing(set, FFI_COALESCING_FULL, &err));
	must(remove_range(set, low, 1));
	part = must_map(set, p, "a", page);
	assert_int_equal(part.map_addr, middle);
	assert_int_equal(part.map_size, 3 * PAGE);
	/* Not the previous one: nothing changes. */
	must(remove_range(set, part.addr, 1));
	part = must_map(set, p, "a", page);
	assert_int_equal(part.map_addr, middle);
	/* None: as in a new set. */
	must(remove_range(set, middle, 3 * PAGE));
	assert_int_equal(info_of(set).map_count, 0);
	part = must_map(set, p, "a", page);
	assert_int_equal(part.coalesced, 0);
	assert_int_equal(part.addr, low);
	delete_set(set);
}

/* ---- about volumes and files that are not mapped yet ---- */

static void probed(void **state)
{
	struct place *p = here(state);
	struct ffi_volume_info info;
	struct ffi_probe probe;
	make_file(p, "a", 3 * PAGE, 1);
	char *before = world(0, p);
	must(ffi_volume_info(p->volume, &info, &err));
	assert_true(info.capacity >= info.available && info.available > 0);
	assert_int_equal(info.alignment, PAGE);
	assert_int_equal(info.granularity, FFI_GRANULARITY_PAGE);
	assert_true(strlen(info.reason) > 0);
	if (p == &places[0]) {
		assert_string_equal(info.file_system, "tmpfs");
		assert_int_equal(info.persistence, FFI_PERSISTENCE_VOLATILE);
	}
	must(ffi_probe(p->volume, "a", 1, &probe, &err));
	assert_int_equal(probe.exists, 1);
	assert_int_equal(probe.size, 3 * PAGE);
	assert_int_equal(probe.persistence, info.persistence);
	must(ffi_probe(p->volume, "b", 1, &probe, &err));
	assert_int_equal(probe.exists, 0);
	assert_int_equal(probe.size, 0);
	assert_int_equal(probe.granularity, FFI_GRANULARITY_PAGE);
	assert_true(strlen(probe.reason) > 0);
	fails(ffi_probe(p->volume, "../b", 4, &probe, &err), -EACCES);
	fails(ffi_probe(p->volume, "c/b", 3, &probe, &err), PMEMSET_E_INVALID_SOURCE_PATH);
	same_world(before, 0, p);
	uint64_t volume = 1;
	fails(ffi_volume_open(path_in(p, "gone"), &volume, &err), -ENOENT);
	fails(ffi_volume_open(path_in(p, "a"), &volume, &err), -ENOTDIR);
	assert_int_equal(volume, 0);
}

/* ---- what is beneath: a sysfs of our own, in which the device of the disk is one after the other ---- */

static void sys_file(const char *path, const char *text)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	assert_int_equal(close(fd), 0);
}

#define BLOCK "/sys/devices/virtual/block/"

static void devices_on_devices(void **state)
{
	struct place *p = here(state);
	char link[64], disk[PATH_MAX], backing[512];
	struct stat st;
	static const char *const devices[] = {"zram0", "ram3", "nbd0", "loop7", "loop7/loop7p1", "loop7/loop", "loop8", "dm-0",
			"dm-0/slaves", "dm-1", "dm-1/slaves", "dm-2", "dm-2/slaves", "dm-3", "md0", "md0/slaves"};
	static const char *const slaves[][2] = {{"dm-0/slaves/a", NULL}, {"dm-1/slaves/a", NULL}, {"dm-1/slaves/b", BLOCK "zram0"},
			{"dm-2/slaves/a", BLOCK "dm-2"}, {"md0/slaves/a", BLOCK "dm-0"}, {"md0/slaves/b", BLOCK "nbd0"}};
	static const struct {
		const char *device;
		enum persistence persistence;
	} rows[] = {{NULL, PERSISTENCE_PERSISTENT}, {"zram0", PERSISTENCE_VOLATILE}, {"ram3", PERSISTENCE_VOLATILE},
			{"nbd0", PERSISTENCE_UNKNOWN}, {"loop7", PERSISTENCE_VOLATILE}, {"loop7/loop7p1", PERSISTENCE_VOLATILE},
			{"loop8", PERSISTENCE_UNKNOWN}, {"dm-0", PERSISTENCE_PERSISTENT}, {"dm-1", PERSISTENCE_VOLATILE},
			{"dm-2", PERSISTENCE_UNKNOWN}, {"dm-3", PERSISTENCE_UNKNOWN}, {"md0", PERSISTENCE_UNKNOWN}};
	make_file(p, "a", PAGE, 1);
	make_file(&places[0], "image", PAGE, 1);
	assert_int_equal(stat(path_in(p, "a"), &st), 0);
	(void)snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
	mounting();
	if (realpath(link, disk) == NULL || strncmp(disk, BLOCK, strlen(BLOCK)) == 0 || access(BLOCK, X_OK) != 0) {
		print_message("the disk here is no device of its own\n");
		skip();
	}
	assert_int_equal(mount("none", "/sys/dev/block", "tmpfs", 0, NULL), 0);
	assert_int_equal(mount("none", BLOCK, "tmpfs", 0, NULL), 0);
	assert_int_equal(chdir(BLOCK), 0);
	for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
		assert_int_equal(mkdir(devices[i], 0700), 0);
	for (size_t i = 0; i < sizeof(slaves) / sizeof(slaves[0]); i++)
		assert_int_equal(symlink(slaves[i][1] ? slaves[i][1] : disk, slaves[i][0]), 0);
	sys_file("loop7/loop7p1/partition", "1\n");
	(void)snprintf(backing, sizeof(backing), "%s\n", path_in(&places[0], "image"));
	sys_file("loop7/loop/backing_file", backing);
	assert_int_equal(chdir("/"), 0);

	int fd = open(path_in(p, "a"), O_RDWR | O_CLOEXEC);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char device[64];
		struct medium m;
		(void)snprintf(device, sizeof(device), BLOCK "%s", rows[i].device ? rows[i].device : "");
		assert_int_equal(symlink(rows[i].device ? device : disk, link), 0);
		medium_of(fd, &m);
		must_be(m.persistence, rows[i].persistence, rows[i].device ? rows[i].device : "disk", __FILE__, __LINE__);
		assert_true(strlen(m.why_persistence) > 0);
		assert_int_equal(unlink(link), 0);
	}
	assert_int_equal(close(fd), 0);
	assert_int_equal(umount(BLOCK), 0);
	assert_int_equal(umount("/sys/dev/block"), 0);
	assert_int_equal(unlink(path_in(&places[0], "image")), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(ranges_that_are_none),
			ON_EACH(in_their_order),
			ON_EACH(granularity_that_is_too_coarse),
			ONCE(sets_that_are_none),
			ONCE(mmap_that_fails),
			ON_EACH(limits),
			ON_EACH(what_a_part_is_told),
			ON_EACH(made_if_needed),
			ON_EACH(made_only_by_us),
			ON_EACH(made_anew),
			ON_EACH(grown),
			ON_EACH(growth_that_fails_late),
			ON_EACH(the_limit_of_file_sizes),
			ON_EACH(full_file_system),
			{"huge_pages", huge_pages, scene_enter, scene_leave, &places[0]},
			ON_EACH(back_to_back),
			ON_EACH(congruent_with_huge_pages),
			ON_EACH(to_the_last_byte),
			ON_EACH(coalesced_behind_the_previous),
			ON_EACH(no_room_behind_the_previous),
			ON_EACH(previous_after_a_removal),
			ON_EACH(probed),
			{"devices_on_devices", devices_on_devices, scene_enter, scene_leave, &places[1]},
	};
	return RUN("part", tests, FFI_GRANULARITY_UNSET);
}
