/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Any calls of ffi.h in any order, as bytes say: live, stale, foreign and made-up handles, any numbers, paths of every kind, files that are
 * changed behind the engine's back. Only what the face asks of its callers is kept: buffers and rows are as large as told.
 *
 * After each call its result has to be one that exists, its outputs in range and the sets whole; after all of them every handle is refused
 * and there is no mapping, no descriptor and no file of the engine's own left. What is not so ends the process with abort().
 *
 * libFuzzer makes up the bytes, or replay.c takes them from files.
 */
#include "ffi.h"
#include "redo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(what) ((what) ? (void)0 : broken(#what, __LINE__))
#define MIB (UINT64_C(1) << 20)
/* No file grows beyond this: RLIMIT_FSIZE, whose answer the engine has to live with as well. */
#define FILE_SIZE_MAX (4 * MIB)
#define BUFFER_MAX (4 * MIB)
#define CALLS_MAX 200
#define MAPPINGS_MAX 64 /* of the engine's, so that inputs come to that limit */
#define ROWS 256
#define SKIPPED 77

static const char *call = "none"; /* the latest */
static struct pmemset_error err;

#define UNTOUCHED 0xA5 /* every byte of err, before a call */

static bool is_untouched(void)
{
	for (size_t i = 0; i < sizeof(err); i++)
		if (((const unsigned char *)&err)[i] != UNTOUCHED)
			return false;
	return true;
}

static void broken(const char *what, int line)
{
	(void)fprintf(stderr, "face.c:%d: not so, in %s: %s\n", line, call, what);
	if (!is_untouched())
		(void)fprintf(stderr, "error: %d, reason %u, errno %d, %.*s\n", err.code, err.reason, err.sys_errno,
				(int)sizeof(err.message), err.message);
	abort();
}

static void *exactly(uint64_t size)
{
	void *memory = malloc(size ? size : 1);
	REQUIRE(memory != NULL);
	return memory;
}

/* ---- the bytes ---- */

static const uint8_t *next_byte;
static size_t bytes_left;

static uint64_t take(size_t bytes)
{
	uint64_t value = 0;
	size_t n = bytes < bytes_left ? bytes : bytes_left;
	memcpy(&value, next_byte, n);
	next_byte += n;
	bytes_left -= n;
	return value;
}

static uint64_t page;
static uint64_t last_addr, last_length; /* of a part that was mapped */
static char last_identity[FFI_IDENTITY_SIZE];

static uint64_t number(void)
{
	switch (take(1) % 9) {
	case 0:
		return take(1);
	case 1:
		return take(1) * page;
	case 2:
		return take(2);
	case 3:
		return (UINT64_C(1) << take(1) % 64) + (uint64_t)(int8_t)take(1);
	case 4:
		return 0 - take(1);
	case 5:
		return take(8);
	case 6:
		return last_addr + (uint64_t)(int16_t)take(2);
	case 7:
		return last_addr + last_length + (uint64_t)(int8_t)take(1);
	default:
		return last_addr + (uint64_t)(int8_t)take(1) * page;
	}
}

/* Where something is likely to be. */
static uint64_t address(void)
{
	switch (take(1) % 4) {
	case 0:
		return last_addr;
	case 1:
		return last_addr + take(2) % (last_length + 1);
	case 2:
		return last_addr + (uint64_t)(int8_t)take(1) * page;
	default:
		return number();
	}
}

static uint64_t length(void)
{
	switch (take(1) % 4) {
	case 0:
		return take(1);
	case 1:
		return take(2);
	case 2:
		return take(1) % 16 * page;
	default:
		return number();
	}
}

/* ---- handles ---- */

enum kind { VOLUME, SET, PIN };

#define KNOWN_MAX 64u
static struct known {
	uint64_t handle;
	enum kind kind;
	bool live;
	uint64_t set; /* of a pin */
} known[KNOWN_MAX];
static unsigned known_count;

static struct known *live(uint64_t handle, enum kind kind)
{
	for (unsigned i = 0; i < known_count; i++)
		if (known[i].live && known[i].handle == handle && known[i].kind == kind)
			return &known[i];
	return NULL;
}

static uint64_t some_handle(enum kind kind)
{
	uint64_t choice = take(1);
	unsigned fitting = 0;
	for (unsigned i = 0; i < known_count; i++)
		fitting += known[i].live && known[i].kind == kind;
	if (choice < 224 && fitting > 0) {
		unsigned nth = (unsigned)choice % fitting;
		for (unsigned i = 0;; i++)
			if (known[i].live && known[i].kind == kind && nth-- == 0)
				return known[i].handle;
	}
	if (choice >= 248 || known_count == 0)
		return take(8);
	uint64_t other = known[choice % known_count].handle;
	return choice % 2 ? other : other ^ UINT64_C(1) << take(1) % 64;
}

static void opened(uint64_t handle, enum kind kind, uint64_t set)
{
	REQUIRE(handle != 0);
	for (unsigned i = 0; i < known_count; i++)
		REQUIRE(known[i].handle != handle);
	known[known_count++] = (struct known){handle, kind, true, set};
}

static bool is_pinned(uint64_t set)
{
	for (unsigned i = 0; i < known_count; i++)
		if (known[i].live && known[i].kind == PIN && known[i].set == set)
			return true;
	return false;
}

/* ---- results ---- */

static bool is_code(int32_t code)
{
	int32_t row;
	char name[FFI_NAME_SIZE];
	char text[FFI_TEXT_SIZE];
	for (uint32_t i = 0; ffi_code(i, &row, name, text) == 0; i++)
		if (row == code)
			return true;
	return false;
}

static struct pmemset_error *begin(const char *name)
{
	call = name;
	memset(&err, UNTOUCHED, sizeof(err));
	return &err;
}

/* 0 where `handle_is_good`, or an error that says which. */
static void result(int rc, bool handle_is_good)
{
	if (rc == 0) {
		REQUIRE(is_untouched() && handle_is_good);
		return;
	}
	REQUIRE(rc < 0 && err.code == rc);
	REQUIRE(rc > -200 ? strerrorname_np(-rc) != NULL : is_code(rc));
	REQUIRE(rc != PMEMSET_E_UNKNOWN && rc != -EFAULT);
	REQUIRE(err.cause == 0 || is_code(err.cause));
	REQUIRE(err.reason <= PMEMSET_REASON_RECOVERY_PENDING);
	/* A file system in memory loses nothing. */
	REQUIRE(err.reason != PMEMSET_REASON_PERSIST_FAILED && err.reason != PMEMSET_REASON_DEGRADED &&
			err.reason != PMEMSET_REASON_RANGE_LOST && err.reason != PMEMSET_REASON_MEDIA);
	REQUIRE((err.reason == PMEMSET_REASON_STALE) == (rc == -EBADF));
	REQUIRE(err.granularity <= FFI_GRANULARITY_UNSET);
	REQUIRE(err.sys_errno >= 0 && memchr(err.message, 0, sizeof(err.message)) != NULL);
	REQUIRE((rc == -EBADF) == !handle_is_good || rc == -EINVAL);
}

/* ---- the sets are whole ---- */

static bool info_of(uint64_t set, struct ffi_set_info *info)
{
	memset(info, 0, sizeof(*info));
	int rc = ffi_set_info(set, info);
	REQUIRE(rc == (live(set, SET) ? 0 : -EBADF));
	return rc == 0;
}

static void check_rows(const struct ffi_set_info *info, const struct ffi_span *rows, uint64_t count, bool maps)
{
	uint64_t bytes = 0;
	uint64_t end = info->window_addr;
	for (uint64_t i = 0; i < count; i++) {
		const struct ffi_span *r = &rows[i];
		uint64_t addr = maps ? r->map_addr : r->addr;
		uint64_t size = maps ? r->map_size : r->length;
		REQUIRE(addr >= end && size > 0 && addr % page == 0 && size % page == 0);
		end = addr + size;
		bytes += size;
		REQUIRE(r->addr >= r->map_addr && r->addr + r->length <= r->map_addr + r->map_size);
		REQUIRE(r->map_parts > 0 && r->cookie != 0 && r->flags == 0 && r->offset % page == 0);
		if (maps)
			REQUIRE(r->addr == r->map_addr);
	}
	REQUIRE(end <= info->window_addr + info->window_size);
	REQUIRE(bytes == info->mapped_bytes);
}

static void check_set(uint64_t set)
{
	static struct ffi_span rows[ROWS];
	struct ffi_set_info info;
	if (!info_of(set, &info))
		return;
	REQUIRE(info.window_addr % (2 * MIB) == 0 && info.window_size % (2 * MIB) == 0);
	REQUIRE(info.granularity <= FFI_GRANULARITY_UNSET && info.coalescing <= FFI_COALESCING_FULL && info.degraded == 0);
	REQUIRE(info.part_count >= info.map_count && (info.part_count > 0) == (info.map_count > 0));
	REQUIRE(info.part_count == 0 || info.granularity != FFI_GRANULARITY_UNSET);
	if (info.part_count > ROWS)
		return;
	uint64_t all_parts = 0;
	REQUIRE(ffi_maps(set, 0, 0, rows, ROWS) == (int64_t)info.map_count);
	check_rows(&info, rows, info.map_count, true);
	for (uint64_t i = 0; i < info.map_count; i++)
		all_parts += rows[i].map_parts;
	REQUIRE(all_parts == info.part_count);
	REQUIRE(ffi_parts(set, 0, 0, rows, ROWS) == (int64_t)info.part_count);
	check_rows(&info, rows, info.part_count, false);
	for (uint64_t i = 0; i < info.part_count; i++) {
		struct ffi_span first;
		struct ffi_span last;
		REQUIRE(ffi_lookup(set, rows[i].addr, &first) == 0);
		REQUIRE(ffi_lookup(set, rows[i].addr + rows[i].length - 1, &last) == 0);
		REQUIRE(memcmp(&first, &rows[i], sizeof(first)) == 0 && memcmp(&last, &rows[i], sizeof(last)) == 0);
	}
}

/* ---- files ---- */

static char dir[64];

static const char *below(const char *name)
{
	static char paths[2][sizeof(dir) + 5000];
	static unsigned which;
	char *path = paths[which++ % 2];
	(void)snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	return path;
}

static bool own_file_left;

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	own_file_left |= strncmp(path + ftw->base, ".pmemset-", 9) == 0;
	return ftw->level > 0 ? remove(path) : 0;
}

static void make_file(const char *name, uint64_t size)
{
	int fd = open(below(name), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
	REQUIRE(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && close(fd) == 0);
}

static void make_files(void)
{
	make_file("a", 16 * page);
	make_file("b", 3 * page + 100);
	make_file("c", 0);
	REQUIRE(mkdir(below("d"), 0755) == 0);
	make_file("d/e", 8 * page);
	make_file("two", page);
	REQUIRE(link(below("two"), below("names")) == 0);
	REQUIRE(symlink("a", below("link")) == 0 && symlink("d", below("dlink")) == 0 && symlink("/", below("out")) == 0);
	REQUIRE(mkfifo(below("fifo"), 0644) == 0);
}

static const char *const names[] = {"a", "b", "c", "d/e", "new", "d/new", "two", "d", "link", "dlink/e", "out/etc/passwd", "fifo", "none/x",
		"../a", "./a", "/a", "a/", "d//e", "a/b", "", ".", ".pmemset", ".pmemset-0123456789abcdef", ".pmemsets", "d/../a",
		"\xc3\xa4", "\xc2\x85", "a\x01", "\xed\xa0\x80", "d/\xf0\x9f\x98\x80"};
#define NAMES (sizeof(names) / sizeof(names[0]))
/* Of those, what is made, cut or removed behind the engine's back. */
#define PLAIN_NAMES 6u

/* malloc'd, of exactly that many bytes. */
static char *some_path(uint32_t *size)
{
	uint64_t choice = take(1);
	if (choice < 240) {
		const char *name = names[choice < 160 ? choice % PLAIN_NAMES : choice % NAMES];
		*size = (uint32_t)strlen(name);
		return memcpy(exactly(*size), name, *size);
	}
	uint64_t kind = take(1);
	*size = (uint32_t)(kind % 4 == 0 ? 254 + take(1) % 4 : kind % 4 == 1 ? 4093 + take(1) % 5 : take(1));
	char *path = exactly(*size);
	memset(path, 'n', *size);
	for (uint32_t i = 0; i < *size && kind % 4 >= 2; i++)
		path[i] = (char)take(1);
	for (uint32_t i = 200; i < *size && kind % 4 == 1; i += 201)
		path[i] = '/';
	return path;
}

static void behind_the_back(void)
{
	const char *name = names[take(1) % PLAIN_NAMES];
	uint64_t size = take(1) % 4 == 0 ? take(3) % FILE_SIZE_MAX : take(1) % 20 * page;
	char path[sizeof(dir) + 16];
	call = "a change behind its back";
	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	switch (take(1) % 6) {
	case 0:
	case 1:
	case 2:
		(void)truncate(path, (off_t)size); /* NOLINT(bugprone-unused-return-value): it need not be there */
		break;
	case 3:
		(void)unlink(path);
		break;
	case 4:
		(void)rename(path, below(names[take(1) % PLAIN_NAMES]));
		break;
	default:
		(void)unlink(path);
		(void)symlink("a", path); /* NOLINT(bugprone-unused-return-value): as above */
		break;
	}
}

/* ---- calls ---- */

static void set_new(void)
{
	struct ffi_set_spec spec = {.window_size = take(1) % 4 ? (take(1) % 3 + 1) * 2 * MIB : number(),
			.parts_max = take(1) % 4 ? 0 : take(1),
			.required_granularity = take(1) % 4 ? FFI_GRANULARITY_PAGE : (uint32_t)take(4),
			.granularity = FFI_GRANULARITY_UNSET,
			.coalescing = take(1) % 8 ? (uint32_t)take(1) % 3 : (uint32_t)take(4)};
	uint64_t set = 1;
	int rc = ffi_set_new(&spec, &set, begin("ffi_set_new"));
	result(rc, true);
	if (rc == 0)
		opened(set, SET, 0);
	else
		REQUIRE(set == 0);
}

static void set_delete(void)
{
	uint64_t set = some_handle(SET);
	struct known *k = live(set, SET);
	int rc = ffi_set_delete(set, begin("ffi_set_delete"));
	result(rc, k != NULL);
	if (k != NULL) {
		REQUIRE(rc == (is_pinned(set) ? PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP : 0));
		k->live = rc != 0;
	}
}

static void set_coalescing(void)
{
	uint64_t set = some_handle(SET);
	uint32_t mode = take(1) % 8 ? (uint32_t)take(1) % 3 : (uint32_t)take(4);
	int rc = ffi_set_coalescing(set, mode, begin("ffi_set_coalescing"));
	result(rc, live(set, SET) != NULL);
	REQUIRE(live(set, SET) == NULL || rc == (mode <= FFI_COALESCING_FULL ? 0 : PMEMSET_E_INVALID_COALESCING_VALUE));
}

static void volume_open(void)
{
	static const char *const paths[] = {"", "d", ".", "a", "dlink", "none", "fifo", "d/.", "a/b"};
	const char *path = below(paths[take(1) % (sizeof(paths) / sizeof(paths[0]))]);
	uint64_t volume = 1;
	int rc = ffi_volume_open(path, &volume, begin("ffi_volume_open"));
	result(rc, true);
	if (rc == 0)
		opened(volume, VOLUME, 0);
	else
		REQUIRE(volume == 0);
}

static void volume_close(void)
{
	uint64_t volume = some_handle(VOLUME);
	struct known *k = live(volume, VOLUME);
	call = "ffi_volume_close";
	REQUIRE(ffi_volume_close(volume) == (k ? 0 : -EBADF));
	if (k != NULL)
		k->live = false;
}

static void recover_redo(void)
{
	uint64_t volume = some_handle(VOLUME);
	uint64_t counts[2] = {0, 0};
	int rc = ffi_redo_recover(volume, counts, begin("ffi_redo_recover"));
	result(rc, live(volume, VOLUME) != NULL);
	REQUIRE(counts[0] == 0); /* nobody has crashed */
}

static void volume_info(void)
{
	uint64_t volume = some_handle(VOLUME);
	struct ffi_volume_info info;
	int rc = ffi_volume_info(volume, &info, begin("ffi_volume_info"));
	result(rc, live(volume, VOLUME) != NULL);
	if (rc != 0)
		return;
	REQUIRE(info.alignment == page && info.granularity < FFI_GRANULARITY_UNSET && info.persistence <= FFI_PERSISTENCE_VOLATILE);
	REQUIRE(memchr(info.reason, 0, sizeof(info.reason)) != NULL && memchr(info.file_system, 0, sizeof(info.file_system)) != NULL);
}

static void probe(void)
{
	uint64_t volume = some_handle(VOLUME);
	uint32_t size;
	char *path = some_path(&size);
	struct ffi_probe out;
	int rc = ffi_probe(volume, path, size, &out, begin("ffi_probe"));
	result(rc, live(volume, VOLUME) != NULL);
	if (rc == 0)
		REQUIRE(out.exists <= 1 && out.granularity < FFI_GRANULARITY_UNSET && memchr(out.reason, 0, sizeof(out.reason)) != NULL);
	free(path);
}

static void check_part(const struct ffi_part *part, const struct ffi_part_spec *spec, const struct ffi_set_info *before)
{
	REQUIRE(part->cookie == spec->cookie && part->offset == spec->offset && part->offset % page == 0);
	REQUIRE(part->length > 0 && (spec->length == 0 || part->length == spec->length));
	REQUIRE(part->addr >= before->window_addr && part->addr + part->length <= before->window_addr + before->window_size);
	REQUIRE(part->map_addr <= part->addr && part->map_addr + part->map_size == part->addr + part->length);
	REQUIRE(part->coalesced == (part->map_addr < part->addr) && part->created <= 1);
	REQUIRE(before->granularity == FFI_GRANULARITY_UNSET || before->granularity == part->granularity);
}

/* Mostly small; now and then one that has huge pages. */
static uint64_t part_length(void)
{
	if (take(1) % 8)
		return take(1) % 6 * page;
	return take(1) % 4 ? length() : 2 * MIB;
}

static void part_map(void)
{
	static uint64_t cookie;
	uint64_t set = some_handle(SET);
	struct ffi_part_spec spec = {.volume = some_handle(VOLUME),
			.offset = take(1) % 8 ? take(1) % 16 * page : number(),
			.length = part_length(),
			.cookie = take(1) % 16 ? ++cookie : take(1),
			.keep_free = take(1) % 16 ? 0 : number(),
			.create = take(1) % 16 ? (uint32_t)take(1) % 4 : (uint32_t)take(4),
			.mode = take(1) % 8 ? 0644 : (uint32_t)take(4),
			.grow = (uint32_t)take(1) % 2};
	spec.intent = spec.cookie % 4; /* some of them the same */
	uint32_t size;
	char *path = some_path(&size);
	struct ffi_part part;
	struct ffi_set_info before;
	struct ffi_set_info after;
	bool known_set = info_of(set, &before);
	int rc = ffi_part_map(set, &spec, path, size, &part, begin("ffi_part_map"));
	result(rc, known_set && live(spec.volume, VOLUME));
	(void)info_of(set, &after);
	if (rc == 0) {
		check_part(&part, &spec, &before);
		REQUIRE(after.part_count == before.part_count + 1 && after.map_count == before.map_count + 1 - part.coalesced);
		last_addr = part.addr;
		last_length = part.length;
		memcpy(last_identity, part.identity, sizeof(last_identity));
	} else {
		REQUIRE(memcmp(&before, &after, sizeof(before)) == 0);
	}
	free(path);
	check_set(set);
}

static void lookup(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	struct ffi_span span;
	call = "ffi_lookup";
	int rc = ffi_lookup(set, addr, &span);
	if (live(set, SET) == NULL)
		REQUIRE(rc == -EBADF);
	else if (rc == 0)
		REQUIRE(span.addr <= addr && addr - span.addr < span.length && span.map_addr <= span.addr);
	else
		REQUIRE(rc == PMEMSET_E_CANNOT_FIND_PART_MAP);
}

static void list(bool maps)
{
	uint64_t set = some_handle(SET);
	uint64_t from = address();
	uint64_t to = take(1) % 4 ? number() : 0;
	uint64_t max = take(1) % 32;
	struct ffi_span *rows = exactly(max * sizeof(*rows));
	call = "ffi_maps or ffi_parts";
	int64_t n = maps ? ffi_maps(set, from, to, rows, max) : ffi_parts(set, from, to, rows, max);
	REQUIRE(live(set, SET) ? n >= 0 && n <= (int64_t)max : n == -EBADF);
	for (int64_t i = 0; i < n; i++) {
		uint64_t start = maps ? rows[i].map_addr : rows[i].addr;
		uint64_t end = start + (maps ? rows[i].map_size : rows[i].length);
		REQUIRE(end > from && (to == 0 || start < to));
	}
	free(rows);
}

static void removal(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t size = length();
	uint32_t whole_map = take(1) % 4 == 0;
	uint32_t dry_run = take(1) % 4 == 0;
	struct ffi_removal r = {.removed_max = take(1) % 8, .trimmed_max = take(1) % 4, .split_max = take(1) % 4};
	const struct ffi_removal asked = r;
	uint64_t *removed = r.removed_max ? exactly(r.removed_max * 24) : NULL;
	uint64_t *trimmed = r.trimmed_max ? exactly(r.trimmed_max * 32) : NULL;
	uint64_t *split = r.split_max ? exactly(r.split_max * 48) : NULL;
	struct ffi_set_info before;
	struct ffi_set_info after;
	bool known_set = info_of(set, &before);
	int rc = ffi_remove(set, addr, size, whole_map, dry_run, &r, removed, trimmed, split, begin("ffi_remove"));
	result(rc, known_set);
	(void)info_of(set, &after);
	REQUIRE(r.removed_max == asked.removed_max && r.trimmed_max == asked.trimmed_max && r.split_max == asked.split_max);
	if (rc != 0 || dry_run)
		REQUIRE(memcmp(&before, &after, sizeof(before)) == 0);
	else
		REQUIRE(r.removed > 0 && after.part_count == before.part_count - r.removed && r.split <= 1 && r.trimmed <= 2);
	free(removed);
	free(trimmed);
	free(split);
	check_set(set);
}

static void pin(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t size = length();
	uint64_t made = 1;
	int rc = ffi_pin(set, addr, size, &made, begin("ffi_pin"));
	result(rc, live(set, SET) != NULL);
	if (rc == 0)
		opened(made, PIN, set);
	else
		REQUIRE(made == 0);
}

static void unpin(void)
{
	uint64_t handle = some_handle(PIN);
	struct known *k = live(handle, PIN);
	call = "ffi_unpin";
	REQUIRE(ffi_unpin(handle) == (k ? 0 : -EBADF));
	if (k != NULL)
		k->live = false;
}

/*
 * How large a buffer is for an access of `size` bytes. One that no map can be as large as is refused before a byte is touched, so that a
 * byte will do; UINT64_MAX: what is between that and what can be had.
 */
static uint64_t buffer_for(uint64_t set, uint64_t size)
{
	struct ffi_set_info info;
	if (size <= BUFFER_MAX)
		return size;
	return !info_of(set, &info) || size > info.mapped_bytes ? 1 : UINT64_MAX;
}

static void read_bytes(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t size = length();
	uint32_t nowait = take(1) % 4 == 0;
	uint64_t room = buffer_for(set, size);
	if (room == UINT64_MAX)
		return;
	void *buf = exactly(room);
	int rc = ffi_read(set, addr, buf, size, nowait, begin("ffi_read"));
	result(rc, live(set, SET) != NULL);
	REQUIRE(rc != -EAGAIN || nowait);
	free(buf);
}

static void check_written(const struct ffi_written *w, uint64_t bytes)
{
	REQUIRE(w->bytes == bytes && w->durability <= FFI_DURABILITY_DEEP && w->durability != FFI_DURABILITY_FLUSHED);
	REQUIRE(w->granularity < FFI_GRANULARITY_UNSET && w->persistence <= FFI_PERSISTENCE_VOLATILE && w->simulated <= 1);
}

/* What a part was given is what it has: in more than one part, one could be the other's bytes. */
static void read_back(uint64_t set, uint64_t addr, const void *bytes, uint64_t size)
{
	struct ffi_span span;
	REQUIRE(size == 0 || ffi_lookup(set, addr, &span) == 0);
	if (size == 0 || addr - span.addr + size > span.length)
		return;
	void *got = exactly(size);
	REQUIRE(ffi_read(set, addr, got, size, 0, begin("ffi_read, of what was written")) == 0);
	REQUIRE(memcmp(got, bytes, size) == 0);
	free(got);
}

static void write_bytes(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t size = length();
	uint32_t durability = take(1) % 8 ? (uint32_t)take(1) % 4 : (uint32_t)take(4);
	uint64_t room = buffer_for(set, size);
	if (room == UINT64_MAX)
		return;
	void *buf = exactly(room);
	memset(buf, (int)take(1), room);
	struct ffi_written w;
	int rc = ffi_write(set, addr, buf, size, durability, &w, begin("ffi_write"));
	result(rc, live(set, SET) != NULL);
	if (rc == 0) {
		check_written(&w, size);
		read_back(set, addr, buf, size);
	} else if (live(set, SET) && err.code != -EINVAL && err.code != PMEMSET_E_LENGTH_OUT_OF_RANGE &&
			err.code != PMEMSET_E_CANNOT_FIND_PART_MAP && err.code != PMEMSET_E_NO_PART_MAPPED) {
		REQUIRE(err.value <= size);
	}
	free(buf);
}

static void persist(void)
{
	uint64_t set = some_handle(SET);
	uint64_t count = take(1) % 8 ? take(1) % 4 : take(1) % 40;
	uint32_t durability = take(1) % 8 ? (uint32_t)take(1) % 3 + 1 : (uint32_t)take(4);
	uint64_t *ranges = exactly(count * 16);
	uint64_t bytes = 0;
	for (uint64_t i = 0; i < count; i++) {
		ranges[2 * i] = address();
		ranges[2 * i + 1] = length();
		bytes += ranges[2 * i + 1];
	}
	struct ffi_written w;
	int rc = ffi_persist(set, ranges, count, durability, &w, begin("ffi_persist"));
	result(rc, live(set, SET) != NULL);
	if (rc == 0)
		check_written(&w, bytes);
	else if (rc == PMEMSET_E_CANNOT_FIND_PART_MAP || rc == PMEMSET_E_LENGTH_OUT_OF_RANGE)
		REQUIRE(err.value < count);
	free(ranges);
}

static void drain(void)
{
	uint64_t set = some_handle(SET);
	struct ffi_written w;
	int rc = ffi_drain(set, &w, begin("ffi_drain"));
	result(rc, live(set, SET) != NULL);
	if (rc == 0)
		check_written(&w, 0);
}

static void check_memory(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t size = length();
	uint32_t what = take(1) % 8 ? (uint32_t)take(1) % 3 : (uint32_t)take(4);
	int rc = ffi_check(set, addr, size, what, begin("ffi_check"));
	result(rc, live(set, SET) != NULL);
	REQUIRE(rc != -EAGAIN || what == FFI_CHECK_RESIDENT);
}

#define PIECES_MAX 8

static void write_pieces(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t count = take(1) % (PIECES_MAX + 1);
	uint32_t durability = take(1) % 8 ? (uint32_t)take(1) % 4 : (uint32_t)take(4);
	uint64_t *pieces = exactly(count * 16);
	uint64_t size = 0;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t n = take(1) % 4 ? take(1) : take(2);
		void *bytes = exactly(n);
		memset(bytes, (int)take(1), n);
		pieces[2 * i] = (uint64_t)(uintptr_t)bytes;
		pieces[2 * i + 1] = n;
		size += n;
	}
	struct ffi_written w;
	int rc = ffi_write_pieces(set, addr, pieces, count, durability, &w, begin("ffi_write_pieces"));
	result(rc, live(set, SET) != NULL);
	if (rc == 0)
		check_written(&w, size);
	for (uint64_t i = 0; i < count; i++)
		free((void *)(uintptr_t)pieces[2 * i]); /* NOLINT(performance-no-int-to-ptr): rows of the face hold pointers as numbers */
	free(pieces);
}

/* ---- many writes in one call ---- */

#define WRITES_MAX 8

static void write_many(void)
{
	uint64_t count = take(1) % (WRITES_MAX + 1);
	uint64_t size = take(1) % 4 ? take(2) : 0;
	struct ffi_write *rows = exactly(count * sizeof(*rows));
	struct pmemset_error *errs = exactly(count * sizeof(*errs));
	void *data = exactly(size);
	int64_t refused = 0;
	memset(data, (int)take(1), size);
	memset(rows, 0, count * sizeof(*rows));
	for (uint64_t i = 0; i < count; i++)
		rows[i] = (struct ffi_write){.set = some_handle(SET),
				.addr = address(),
				.length = take(1) % 8 ? take(2) % (size + 1) : length(),
				.data_offset = take(1) % 8 ? take(1) % (size + 1) : number(),
				.durability = take(1) % 8 ? take(1) % 4 : take(8)};
	call = "ffi_write_many";
	int64_t failed = ffi_write_many(rows, count, data, size, errs);
	for (uint64_t i = 0; i < count; i++) {
		bool whole = rows[i].data_offset <= size && rows[i].length <= size - rows[i].data_offset &&
			     rows[i].durability <= FFI_DURABILITY_DEEP;
		refused += rows[i].rc != 0;
		(void)begin("ffi_write_many, one of them");
		if (rows[i].rc != 0)
			err = errs[i];
		result((int)rows[i].rc, live(rows[i].set, SET) != NULL);
		REQUIRE(whole || rows[i].rc == -EINVAL);
		REQUIRE(rows[i].bytes <= rows[i].length && (rows[i].rc != 0 || rows[i].bytes == rows[i].length));
	}
	REQUIRE(failed == refused);
	free(rows);
	free(errs);
	free(data);
}

/* ---- batches: the layout of openapi/batch.md ---- */

#define OPERATIONS_MAX 8
#define OPERATION_SIZE 40
#define HEADER_SIZE 16
#define REPLY_SIZE 32
enum { OP_READ = 1, OP_WRITE, OP_MEMSET, OP_MEMCPY, OP_MEMMOVE, OP_COMPARE_EXCHANGE = 8, OP_XOR = 13 };

static uint8_t *put(uint8_t *to, size_t bytes, uint64_t value)
{
	memcpy(to, &value, bytes);
	return to + bytes;
}

/* One that is well-formed, more often than not. Returns how many bytes of data it takes. */
static uint64_t put_operation(uint8_t *to)
{
	uint64_t op = take(1) % 16 ? 1 + take(1) % OP_XOR : take(1);
	bool atomic = op >= OP_COMPARE_EXCHANGE && op <= OP_XOR;
	bool copy = op == OP_MEMCPY || op == OP_MEMMOVE;
	bool odd = take(1) % 32 == 0;
	uint64_t addr = address();
	uint64_t size = atomic && !odd ? 8 : take(1) % 8 ? take(2) % 5000 : length();
	to = put(to, 1, op);
	to = put(to, 1, op >= OP_WRITE && op <= OP_MEMMOVE ? take(1) % 5 : odd ? take(1) : 0);
	to = put(to, 2, op == OP_MEMSET && take(1) % 4 == 0);
	to = put(to, 4, odd ? take(4) : 0);
	to = put(to, 8, atomic && !odd ? addr & ~UINT64_C(7) : addr);
	to = put(to, 8, size);
	to = put(to, 8, copy ? address() : op == OP_MEMSET ? (to[-22] ? 0 : take(1)) : atomic || odd ? take(8) : 0);
	(void)put(to, 8, op == OP_COMPARE_EXCHANGE ? take(1) : odd ? take(1) : 0);
	return op == OP_WRITE ? size : 0;
}

/* malloc'd, of exactly *size bytes. */
static uint8_t *some_batch(uint64_t *size, uint32_t *count)
{
	uint8_t head[HEADER_SIZE + OPERATIONS_MAX * OPERATION_SIZE];
	uint64_t data = 0;
	*count = 1 + (uint32_t)take(1) % OPERATIONS_MAX;
	bool odd = take(1) % 32 == 0;
	uint8_t *to = put(head, 4, odd ? take(4) : 0x42534d50);
	to = put(to, 2, odd ? take(2) : 1);
	uint64_t how = take(1);
	to = put(to, 1, odd ? how : how % 4);
	to = put(to, 1, odd ? take(1) : how >> 6 == 3); /* all or nothing */
	to = put(to, 4, odd ? take(4) : *count);
	(void)put(to, 4, odd ? take(4) : 0);
	for (uint32_t i = 0; i < *count; i++) {
		uint64_t more = put_operation(head + HEADER_SIZE + i * OPERATION_SIZE);
		data += more < MIB ? more : 0; /* one that is longer is not all there, so malformed */
	}
	uint64_t operations = HEADER_SIZE + *count * (uint64_t)OPERATION_SIZE;
	*size = take(1) % 32 ? operations + data : take(2) % (operations + 64);
	uint8_t *body = exactly(*size);
	memset(body, (int)take(1), *size);
	memcpy(body, head, *size < operations ? *size : operations);
	return body;
}

static void check_reply(const uint8_t *reply, uint32_t count, int rc)
{
	uint32_t magic;
	uint32_t done;
	memcpy(&magic, reply, sizeof(magic));
	memcpy(&done, reply + 12, sizeof(done));
	REQUIRE(magic == 0x52534d50 && reply[6] <= FFI_DURABILITY_DEEP && reply[7] <= FFI_GRANULARITY_UNSET &&
			reply[8] <= FFI_PERSISTENCE_VOLATILE && reply[9] <= 1);
	REQUIRE(rc == 0 ? done == count : done <= count);
}

static void batch(void)
{
	uint64_t set = some_handle(SET);
	uint64_t size;
	uint32_t count;
	uint8_t *body = some_batch(&size, &count);
	bool known_set = live(set, SET) != NULL;
	uint64_t failed = UINT64_MAX;
	int64_t needed = ffi_batch_check(body, size, begin("ffi_batch_check"));
	result(needed < 0 ? (int)needed : 0, true);
	REQUIRE(needed < 0 ? needed == -EINVAL || needed == -EOVERFLOW : needed >= REPLY_SIZE);
	uint32_t nowait = take(1) % 4 == 0;
	uint64_t room = needed > 0 && take(1) % 16 ? (uint64_t)needed : take(1);
	if (room <= BUFFER_MAX) {
		uint8_t *reply = exactly(room);
		int rc = ffi_batch(set, body, size, reply, room, nowait, &failed, begin("ffi_batch"));
		result(rc, known_set);
		REQUIRE(rc != -EAGAIN || nowait);
		REQUIRE(failed <= count);
		if (needed < 0 || room < (uint64_t)needed)
			REQUIRE(rc == -EINVAL);
		else if (known_set)
			check_reply(reply, count, rc);
		free(reply);
	}
	free(body);
}

/* ---- an earlier life ---- */

static void set_new_again(void)
{
	struct ffi_engine_info engine;
	ffi_engine_info(&engine);
	const uint64_t near = take(1) % 2 ? last_addr - last_addr % (2 * MIB) : engine.arena_base;
	struct ffi_set_spec spec = {.window_size = take(1) % 4 ? (take(1) % 3 + 1) * 2 * MIB : number(),
			.window_addr = take(1) % 4 ? near + take(1) % 8 * 2 * MIB : number(),
			.required_granularity = take(1) % 4 ? FFI_GRANULARITY_PAGE : (uint32_t)take(4),
			.coalescing = (uint32_t)take(1) % 3,
			.granularity = take(1) % 4 ? FFI_GRANULARITY_UNSET : (uint32_t)take(1) % 5};
	uint64_t set = 1;
	int rc = ffi_set_new(&spec, &set, begin("ffi_set_new, at an address"));
	result(rc, true);
	if (rc != 0) {
		REQUIRE(set == 0);
		return;
	}
	struct ffi_set_info info;
	opened(set, SET, 0);
	REQUIRE(info_of(set, &info) && (spec.window_addr == 0 || info.window_addr == spec.window_addr));
	REQUIRE(info.granularity == spec.granularity);
	check_set(set);
}

static struct ffi_restore_part some_former_part(const struct ffi_set_info *info, uint64_t files)
{
	uint64_t behind = last_addr + last_length;
	return (struct ffi_restore_part){.file = take(1) % 32 ? take(1) % files : number(),
			.offset = take(1) % 8 ? take(1) % 8 * page : number(),
			.length = take(1) % 8 ? (take(1) % 6 + 1) * page : length(),
			.cookie = take(1) % 16 ? 1 + take(2) : take(1),
			.addr = take(1) % 4   ? info->window_addr + take(1) % 64 * page
				: take(1) % 2 ? behind
					      : address(),
			.joins = (uint32_t)take(1) % 2,
			.code = 1,
			.kept = 2};
}

static void check_outcome(const struct ffi_restore_part *row)
{
	if (row->code == 0) {
		REQUIRE(row->kept == 0 && row->reason == 0 && row->granularity < FFI_GRANULARITY_UNSET);
		last_addr = row->addr;
		last_length = row->length;
		return;
	}
	REQUIRE(row->code < 0 && row->kept <= 1 && row->granularity <= FFI_GRANULARITY_UNSET);
	REQUIRE(row->code > -200 ? strerrorname_np(-row->code) != NULL : is_code(row->code));
	REQUIRE(row->reason <= PMEMSET_REASON_SOURCE_REPLACED && row->reason != PMEMSET_REASON_RANGE_LOST);
	REQUIRE(row->kept == 0 || (row->length > 0 && row->length % page == 0 && row->addr % page == 0));
}

static void restoration(void)
{
	uint64_t set = some_handle(SET);
	struct ffi_set_info before;
	struct ffi_set_info after;
	bool known_set = info_of(set, &before);
	uint64_t files = take(1) % 3 + 1;
	uint64_t count = take(1) % 5;
	struct ffi_restore_file *file = exactly(files * sizeof(*file));
	struct ffi_restore_part *rows = exactly(count * sizeof(*rows));
	char *paths = exactly(4096 * files);
	uint64_t used = 0;
	for (uint64_t i = 0; i < files; i++) {
		uint32_t size;
		char *path = some_path(&size);
		size = size < 4096 ? size : 4096;
		memcpy(paths + used, path, size);
		free(path);
		file[i] = (struct ffi_restore_file){.volume = some_handle(VOLUME),
				.path_at = used,
				.path_length = size,
				.adopt = take(1) % 2};
		memcpy(file[i].identity, last_identity, sizeof(last_identity));
		if (take(1) % 4 == 0)
			file[i].identity[take(1) % sizeof(file[i].identity)] = (char)take(1);
		if (take(1) % 32 == 0)
			file[i].path_at = number();
		used += size;
	}
	for (uint64_t i = 0; i < count; i++)
		rows[i] = some_former_part(&before, files);
	int rc = ffi_restore(set, file, files, paths, used, rows, count, begin("ffi_restore"));
	result(rc, known_set);
	(void)info_of(set, &after);
	uint64_t restored = 0;
	for (uint64_t i = 0; rc == 0 && i < count; i++) {
		check_outcome(&rows[i]);
		restored += rows[i].code == 0;
	}
	REQUIRE(after.part_count == before.part_count + restored);
	REQUIRE(rc == 0 || memcmp(&before, &after, sizeof(before)) == 0);
	/* Most of what is kept is let go again, or there would be nothing but that. */
	for (uint64_t i = 0; rc == 0 && i < count; i++)
		if (rows[i].code != 0 && rows[i].kept && take(1) % 4) {
			rc = ffi_release(set, rows[i].addr, rows[i].length, begin("ffi_release, of what was kept"));
			REQUIRE(rc == 0 || rc == -ENOENT); /* the second of two that were kept for the same */
			rc = 0;
		}
	free(file);
	free(rows);
	free(paths);
	check_set(set);
}

static void release(void)
{
	uint64_t set = some_handle(SET);
	uint64_t addr = address();
	uint64_t size = length();
	struct ffi_set_info before;
	struct ffi_set_info after;
	bool known_set = info_of(set, &before);
	int rc = ffi_release(set, addr, size, begin("ffi_release"));
	result(rc, known_set);
	(void)info_of(set, &after);
	REQUIRE(memcmp(&before, &after, sizeof(before)) == 0);
	check_set(set);
}

static void intent_undo(void)
{
	uint64_t volume = some_handle(VOLUME);
	uint64_t intent = take(1) % 8 ? take(1) % 4 : number();
	uint32_t size;
	char *path = some_path(&size);
	int rc = ffi_intent_undo(volume, path, size, intent, begin("ffi_intent_undo"));
	result(rc, live(volume, VOLUME) != NULL);
	free(path);
}

/* Paths are the operator's, so there is little to try. */
static void state_directory(void)
{
	static const char *const paths[] = {"", "lock", "none/lock", "d", "fifo", "link"};
	uint64_t lock = 1;
	uint64_t again = 1;
	uint64_t size = length();
	const char *path = below(paths[take(1) % (sizeof(paths) / sizeof(paths[0]))]);
	int rc = ffi_lock(path, &lock, begin("ffi_lock"));
	result(rc, true);
	REQUIRE((rc == 0) == (lock != 0));
	if (rc == 0) {
		REQUIRE(ffi_lock(path, &again, begin("ffi_lock, again")) == -EAGAIN && err.value == (uint64_t)getpid() && again == 0);
		rc = ffi_allocate(path, size < FILE_SIZE_MAX ? size : 0, begin("ffi_allocate"));
		result(rc, true);
		REQUIRE(ffi_unpin(lock) == -EBADF && ffi_unlock(lock) == 0);
	}
	REQUIRE(ffi_unlock(lock) == -EBADF);
	rc = ffi_state_check(path, begin("ffi_state_check"));
	result(rc, true);
	REQUIRE(rc != 0); /* it is in memory, if it is there */
}

/* ---- failures: a file system in memory has none ---- */

/* One of an earlier life, and dealt with at once: what it does to the rest is a test's of its own. */
static void remembered_failure(uint64_t set, bool known_set)
{
	uint64_t range[2] = {address(), length()};
	int32_t why = take(1) % 8 ? EIO : (int32_t)take(4);
	uint64_t row[3];
	int rc = ffi_fail(set, 1, why, range, 1, begin("ffi_fail"));
	result(rc, known_set);
	for (int64_t n = rc == 0 ? ffi_failures(set, row, 1) : 0; n > 0; n = ffi_failures(set, row, 1)) {
		REQUIRE(row[1] == 1 && row[2] == (uint64_t)why);
		REQUIRE(ffi_acknowledge(set, row[0], FFI_RECOVERY_REWRITE, begin("ffi_acknowledge, of what was remembered")) == 0);
	}
}

static void failures(void)
{
	uint64_t set = some_handle(SET);
	uint64_t failure = take(1) % 2 ? take(1) : number();
	uint64_t max = take(1) % 4;
	uint32_t recovery = take(1) % 8 ? (uint32_t)take(1) % 2 : (uint32_t)take(4);
	uint64_t *rows = exactly(max * 24);
	bool known_set = live(set, SET) != NULL;
	call = "ffi_failures, ffi_failure_ranges";
	REQUIRE(ffi_failures(set, rows, max) == (known_set ? 0 : -EBADF));
	REQUIRE(ffi_failure_ranges(set, failure, rows, max) == (known_set ? -ENOENT : -EBADF));
	free(rows);
	int rc = ffi_acknowledge(set, failure, recovery, begin("ffi_acknowledge"));
	result(rc, known_set);
	REQUIRE(rc == (recovery > FFI_RECOVERY_DISCARD ? -EINVAL : known_set ? -ENOENT : -EBADF));
	remembered_failure(set, known_set);
}

static void about(void)
{
	struct ffi_abi abi = {0};
	struct ffi_engine_info info;
	struct ffi_counters counters;
	int32_t code;
	char name[FFI_NAME_SIZE];
	char text[FFI_TEXT_SIZE];
	uint32_t i = (uint32_t)(take(1) % 2 ? take(1) : take(4));
	uint32_t size = (uint32_t)take(1) % (sizeof(abi) + 1);
	call = "ffi_abi, ffi_code, ffi_engine_info, ffi_counters";
	struct ffi_abi *part_of_it = exactly(size);
	REQUIRE(ffi_abi(part_of_it, size) == FFI_VERSION && ffi_abi(&abi, sizeof(abi)) == FFI_VERSION);
	free(part_of_it);
	REQUIRE(ffi_code(i, &code, name, text) == (i < abi.codes ? 0 : -ERANGE));
	ffi_engine_info(&info);
	REQUIRE(info.page_size == page && info.mappings <= info.mappings_max);
	ffi_counters(&counters);
	REQUIRE(counters.pins <= known_count && counters.flushes_failed <= counters.flushes_of_ranges + counters.flushes_of_files);
	struct ffi_engine_spec spec = {.arena_base = number(),
			.arena_size = number(),
			.mappings_max = number(),
			.log_size = number(),
			.simulate = (uint32_t)take(4),
			.log_keep_free = (uint32_t)take(4)};
	int rc = ffi_engine_start(&spec, begin("ffi_engine_start"));
	REQUIRE(rc == -EALREADY || rc == -EINVAL);
	result(rc, true);
}

static void set_info(void)
{
	struct ffi_set_info ignored;
	call = "ffi_set_info";
	(void)info_of(some_handle(SET), &ignored);
}

static void list_maps(void)
{
	list(true);
}

static void list_parts(void)
{
	list(false);
}

/* A byte chooses; what changes structure, and what moves bytes, more often. New ones go to the end, or inputs mean something else. */
static void (*const calls[])(void) = {set_new, set_new, set_delete, set_info, set_coalescing, volume_open, volume_close, recover_redo,
		volume_info, probe, lookup, list_maps, list_maps, list_parts, removal, removal, removal, pin, unpin, read_bytes, read_bytes,
		write_bytes, write_bytes, write_bytes, persist, persist, drain, about, behind_the_back, part_map, part_map, part_map,
		part_map, write_many, batch, batch, batch, failures, check_memory, write_pieces, set_new_again, restoration, restoration,
		release, intent_undo, state_directory};

/* ---- before and after ---- */

static uint64_t arena_mappings(void)
{
	struct ffi_engine_info info;
	ffi_engine_info(&info);
	uint64_t n = 0;
	FILE *file = fopen("/proc/self/maps", "re");
	char line[1024];
	REQUIRE(file != NULL);
	while (fgets(line, sizeof(line), file) != NULL) {
		char *end;
		uint64_t from = strtoull(line, &end, 16);
		uint64_t to = strtoull(end + 1, &end, 16);
		n += to > info.arena_base && from < info.arena_base + info.arena_size;
	}
	(void)fclose(file);
	return n;
}

static unsigned descriptors(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");
	REQUIRE(d != NULL);
	for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

static void refused(uint64_t handle)
{
	struct ffi_set_info info;
	struct ffi_volume_info volume;
	REQUIRE(ffi_set_info(handle, &info) == -EBADF && ffi_unpin(handle) == -EBADF && ffi_volume_close(handle) == -EBADF);
	REQUIRE(ffi_set_delete(handle, NULL) == -EBADF && ffi_volume_info(handle, &volume, NULL) == -EBADF);
}

static void close_everything(void)
{
	call = "the end";
	for (unsigned i = 0; i < known_count; i++)
		if (known[i].live && known[i].kind == SET)
			check_set(known[i].handle);
	for (unsigned i = 0; i < known_count; i++)
		if (known[i].live && known[i].kind == PIN)
			REQUIRE(ffi_unpin(known[i].handle) == 0);
	for (unsigned i = 0; i < known_count; i++)
		if (known[i].live && known[i].kind == SET)
			REQUIRE(ffi_set_delete(known[i].handle, begin("ffi_set_delete, at the end")) == 0);
	for (unsigned i = 0; i < known_count; i++)
		if (known[i].live && known[i].kind == VOLUME)
			REQUIRE(ffi_volume_close(known[i].handle) == 0);
	for (unsigned i = 0; i < known_count; i++)
		refused(known[i].handle);
	known_count = 0;
}

static void leave(void)
{
	(void)nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
	(void)rmdir(dir);
}

/* A fault is an error: nobody else's handler of SIGBUS is in the engine's place. */
static void check_fault(void)
{
	uint64_t volume;
	uint64_t set;
	struct ffi_part part;
	char byte;
	const struct ffi_set_spec spec = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET};
	make_file("a", page);
	REQUIRE(ffi_volume_open(dir, &volume, begin("ffi_volume_open, at the start")) == 0);
	REQUIRE(ffi_set_new(&spec, &set, begin("ffi_set_new, at the start")) == 0);
	const struct ffi_part_spec a = {.volume = volume, .length = page, .cookie = 1};
	REQUIRE(ffi_part_map(set, &a, "a", 1, &part, begin("ffi_part_map, at the start")) == 0);
	REQUIRE(truncate(below("a"), 0) == 0);
	REQUIRE(ffi_read(set, part.addr, &byte, 1, 0, begin("ffi_read, of nothing")) == PMEMSET_E_IO_FAIL);
	REQUIRE(err.reason == PMEMSET_REASON_TRUNCATED);
	REQUIRE(ffi_set_delete(set, NULL) == 0 && ffi_volume_close(volume) == 0 && unlink(below("a")) == 0);
}

/* PMEMSET_FUZZ_SIMULATE: byte or cache_line, to pretend that. */
static void start(void)
{
	const char *simulate = getenv("PMEMSET_FUZZ_SIMULATE");
	struct ffi_engine_spec spec = {.mappings_max = MAPPINGS_MAX, .simulate = FFI_GRANULARITY_UNSET};
	if (simulate != NULL && strcmp(simulate, "byte") == 0)
		spec.simulate = FFI_GRANULARITY_BYTE;
	else if (simulate != NULL && strcmp(simulate, "cache_line") == 0)
		spec.simulate = FFI_GRANULARITY_CACHE_LINE;
	page = (uint64_t)sysconf(_SC_PAGESIZE);
	(void)snprintf(dir, sizeof(dir), "/dev/shm/pmemset-fuzz-XXXXXX");
	if (mkdtemp(dir) == NULL) {
		(void)fprintf(stderr, "no directory in memory can be had: %s: %s\n", dir, strerror(errno));
		exit(SKIPPED);
	}
	REQUIRE(atexit(leave) == 0);
	REQUIRE(ffi_engine_start(&spec, begin("ffi_engine_start")) == 0);
	redo_configure(UINT64_C(64) << 10, 0); /* a log is made by many inputs */
	const struct rlimit small = {FILE_SIZE_MAX, FILE_SIZE_MAX};
	REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
	check_fault();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool started;
	static uint64_t mappings_before;
	struct ffi_engine_info info;
	if (!started) {
		start();
		mappings_before = arena_mappings();
		started = true;
	}
	unsigned descriptors_before = descriptors(); /* each time: libFuzzer opens some of its own */
	next_byte = data;
	bytes_left = size;
	last_addr = last_length = 0;
	last_identity[0] = 0;
	make_files();
	/* Something to begin with, so that not every input has to find it. */
	volume_open();
	set_new();
	for (unsigned n = 0; bytes_left > 0 && n < CALLS_MAX && known_count < KNOWN_MAX; n++)
		calls[take(1) % (sizeof(calls) / sizeof(calls[0]))]();
	close_everything();
	call = "what is left at the end";
	own_file_left = false;
	REQUIRE(nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS) == 0);
	REQUIRE(!own_file_left);
	ffi_engine_info(&info);
	struct ffi_counters counters;
	ffi_counters(&counters);
	REQUIRE(info.mappings == 0 && counters.pins == 0);
	REQUIRE(arena_mappings() == mappings_before);
	REQUIRE(descriptors() == descriptors_before);
	return 0;
}
