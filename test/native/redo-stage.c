/* SPDX-License-Identifier: BSD-3-Clause */
#include "redo-stage.h"

#include "record.h"
#include "redo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- a program ---- */

uint32_t granularity = FFI_GRANULARITY_PAGE;
const char *granularity_name = "page";

int stage_run(int argc, char **argv, const char *group, struct test_list tests, struct test_list of_pages)
{
	bool lines = argc > 1 && strcmp(argv[1], "cache_line") == 0;
	if (lines) {
		granularity = FFI_GRANULARITY_CACHE_LINE;
		granularity_name = "cache_line";
	}
	redo_configure(RING_SIZE, 0);
	struct CMUnitTest *all = calloc(tests.count + of_pages.count, sizeof(*all));
	if (all == NULL)
		return 1;
	size_t count = 0;
	for (size_t i = 0; i < tests.count; i++)
		all[count++] = tests.tests[i];
	for (size_t i = 0; i < of_pages.count && !lines; i++)
		all[count++] = of_pages.tests[i];
	char name[64];
	(void)snprintf(name, sizeof(name), "%s, %s", group, granularity_name);
	int status = scene_run(name, all, count, lines ? FFI_GRANULARITY_CACHE_LINE : FFI_GRANULARITY_UNSET);
	free(all);
	return status;
}

/* ---- the engine's calls ---- */

int (*before_call)(enum call call, int fd);
void (*after_call)(enum call call, int fd, uint64_t at, const void *bytes, size_t size);
const void *msync_at;
int64_t allocations_left = -1;
bool allocation_failed;

static bool refused(enum call call, int fd)
{
	int why = before_call ? before_call(call, fd) : 0;
	errno = why ? why : errno;
	return why != 0;
}

static void was_made(enum call call, int fd, uint64_t at, const void *bytes, size_t size)
{
	int keep = errno;
	if (after_call != NULL)
		after_call(call, fd, at, bytes, size);
	errno = keep;
}

static bool allocation_fails(void)
{
	if (allocations_left < 0 || allocations_left-- > 0)
		return false;
	allocation_failed = true;
	return true;
}

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
ssize_t __real_pwrite(int fd, const void *buf, size_t size, off_t offset);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_msync(void *addr, size_t size, int flags);
int __real_renameat(int old_dir, const char *old, int dir, const char *name);
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __wrap_msync(void *addr, size_t size, int flags);
int __wrap_renameat(int old_dir, const char *old, int dir, const char *name);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset)
{
	if (refused(PWRITE, fd))
		return -1;
	ssize_t n = __real_pwrite(fd, buf, size, offset);
	was_made(PWRITE, fd, (uint64_t)offset, buf, size);
	return n;
}

int __wrap_fdatasync(int fd)
{
	if (refused(FDATASYNC, fd))
		return -1;
	int rc = __real_fdatasync(fd);
	was_made(FDATASYNC, fd, 0, NULL, 0);
	return rc;
}

int __wrap_fsync(int fd)
{
	if (refused(FSYNC, fd))
		return -1;
	int rc = __real_fsync(fd);
	was_made(FSYNC, fd, 0, NULL, 0);
	return rc;
}

int __wrap_msync(void *addr, size_t size, int flags)
{
	msync_at = before_call ? addr : NULL;
	if (refused(MSYNC, -1))
		return -1;
	int rc = __real_msync(addr, size, flags);
	was_made(MSYNC, -1, (uint64_t)(uintptr_t)addr, addr, size);
	return rc;
}

int __wrap_renameat(int old_dir, const char *old, int dir, const char *name)
{
	if (refused(RENAMEAT, dir))
		return -1;
	int rc = __real_renameat(old_dir, old, dir, name);
	was_made(RENAMEAT, dir, 0, NULL, 0);
	return rc;
}

void *__wrap_malloc(size_t size)
{
	return allocation_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return allocation_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	return allocation_fails() ? NULL : __real_realloc(old, size);
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* ---- a volume of its own, with a set of two files; "a" is mapped twice ---- */

void open_volume(struct stage *s)
{
	must(ffi_volume_open(s->v.dir, &s->v.volume, &err));
	s->set = new_set(FFI_COALESCING_NONE, 64 * MIB);
}

void map_all(struct stage *s)
{
	s->a = must_map(s->set, &s->v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	s->b = must_map(s->set, &s->v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	s->alias = must_map(s->set, &s->v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
}

void come_back(struct stage *s)
{
	open_volume(s);
	map_all(s);
}

struct stage stage_in(const char *above, const char *name)
{
	struct stage s = {.v = {.name = "volume"}};
	assert_true(snprintf(s.v.dir, sizeof(s.v.dir), "%s/%s", above, name) < (int)sizeof(s.v.dir));
	assert_int_equal(mkdir(s.v.dir, 0700), 0);
	make_file(&s.v, "a", FILE_SIZE, 1);
	make_file(&s.v, "b", FILE_SIZE, 2);
	come_back(&s);
	return s;
}

struct stage stage_on(const struct place *p)
{
	return stage_in(p->dir, "volume");
}

void leave(struct stage *s)
{
	delete_set(s->set);
	must(ffi_volume_close(s->v.volume));
}

void restart(struct stage *s)
{
	leave(s);
	come_back(s);
}

void recover(const struct stage *s, uint64_t applied, uint64_t kept)
{
	uint64_t counts[2] = {99, 99};
	must(ffi_redo_recover(s->v.volume, counts, &err));
	assert_int_equal(counts[0], applied);
	assert_int_equal(counts[1], kept);
}

char path_of_log[512], path_of_a[512];
uint64_t base_of_a;

bool is_file(int fd, const char *path)
{
	struct stat is;
	struct stat wanted;
	return fstat(fd, &is) == 0 && stat(path, &wanted) == 0 && is.st_ino == wanted.st_ino && is.st_dev == wanted.st_dev;
}

void know_paths(const struct stage *s)
{
	(void)snprintf(path_of_log, sizeof(path_of_log), "%s", path_in(&s->v, LOG));
	base_of_a = s->a;
	(void)snprintf(path_of_a, sizeof(path_of_a), "%s", path_in(&s->v, "a"));
}

/* ---- batches ---- */

_Thread_local struct body body;

void begin_body(void)
{
	body.size = sizeof(struct batch_header);
	body.data_size = body.count = 0;
}

void push(struct batch_operation op)
{
	memcpy(body.bytes + body.size, &op, sizeof(op));
	body.size += sizeof(op);
	body.count++;
}

void push_write(uint64_t addr, const void *bytes, uint64_t length)
{
	push((struct batch_operation){.op = BATCH_WRITE, .addr = addr, .length = length});
	assert_true(body.data_size + length <= sizeof(body.data));
	memcpy(body.data + body.data_size, bytes, length);
	body.data_size += length;
}

void seal(uint8_t durability)
{
	const struct batch_header head = {.magic = BATCH_MAGIC,
			.version = BATCH_VERSION,
			.durability = durability,
			.atomicity = BATCH_ALL,
			.count = body.count};
	memcpy(body.bytes, &head, sizeof(head));
	assert_true(body.size + body.data_size <= sizeof(body.bytes));
	memcpy(body.bytes + body.size, body.data, body.data_size);
}

_Thread_local struct pmemset_error batch_err;
_Thread_local uint64_t batch_failed;
_Thread_local struct batch_reply batch_head;

int run_sealed(uint64_t set, void *results)
{
	int64_t size = ffi_batch_check(body.bytes, body.size + body.data_size, &batch_err);
	if (size < 0)
		return (int)size;
	char *reply = malloc((size_t)size);
	if (reply == NULL) {
		error_set(&batch_err, -ENOMEM, "the test's own");
		return -ENOMEM;
	}
	int rc = ffi_batch(set, body.bytes, body.size + body.data_size, reply, (uint64_t)size, 0, &batch_failed, &batch_err);
	memcpy(&batch_head, reply, sizeof(batch_head));
	if (results != NULL)
		memcpy(results, reply + sizeof(batch_head), (size_t)size - sizeof(batch_head));
	free(reply);
	return rc;
}

int run(uint64_t set)
{
	seal(DURABILITY_PERSISTED);
	return run_sealed(set, NULL);
}

int run_mark(const struct stage *s, unsigned char mark)
{
	unsigned char bytes[IN_A];
	memset(bytes, mark, sizeof(bytes));
	begin_body();
	push_write(s->a + AT_A, bytes, IN_A);
	push((struct batch_operation){.op = BATCH_MEMSET, .addr = s->b + AT_B, .length = IN_B, .argument = mark});
	return run(s->set);
}

static unsigned char old_a[IN_A], old_b[IN_B];

int mark_of(const struct stage *s)
{
	unsigned char a[IN_A];
	unsigned char b[IN_B];
	read_file(&s->v, "a", AT_A, a, IN_A);
	read_file(&s->v, "b", AT_B, b, IN_B);
	for (int i = 0; i < IN_A; i++)
		old_a[i] = byte_of(1, AT_A + (uint64_t)i);
	for (int i = 0; i < IN_B; i++)
		old_b[i] = byte_of(2, AT_B + (uint64_t)i);
	if (memcmp(a, old_a, IN_A) == 0 && memcmp(b, old_b, IN_B) == 0)
		return 0;
	for (int i = 0; i < IN_A + IN_B; i++)
		if ((i < IN_A ? a[i] : b[i - IN_A]) != a[0])
			return -1;
	return a[0];
}

/* ---- the log, as a file ---- */

void read_log(const struct stage *s, uint64_t offset, void *buf, size_t size)
{
	read_file(&s->v, LOG, offset, buf, size);
}

void write_raw(const struct stage *s, const char *name, uint64_t offset, const void *buf, size_t size)
{
	int fd = open(path_in(&s->v, name), O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(__real_pwrite(fd, buf, size, (off_t)offset), size);
	assert_int_equal(close(fd), 0);
}

void write_log(const struct stage *s, uint64_t offset, const void *buf, size_t size)
{
	write_raw(s, LOG, offset, buf, size);
}

uint64_t retired(const struct stage *s)
{
	uint64_t word;
	read_log(s, RETIRED_AT, &word, sizeof(word));
	return word;
}

uint64_t epoch(const struct stage *s)
{
	uint64_t word;
	read_log(s, 16, &word, sizeof(word));
	return word;
}

void crash_behind_commit(struct stage *s, uint64_t position)
{
	leave(s);
	write_log(s, RETIRED_AT, &position, sizeof(position));
	write_raw(s, "a", AT_A, old_a, IN_A);
	write_raw(s, "b", AT_B, old_b, IN_B);
}

uint64_t commit_one(struct stage *s, unsigned char mark)
{
	assert_int_equal(mark_of(s), 0);
	must(run_mark(s, mark));
	assert_int_equal(mark_of(s), mark);
	uint64_t size = retired(s);
	assert_int_equal(size, record_base_size(2) + record_entry_size(IN_A) + record_entry_size(IN_B));
	crash_behind_commit(s, 0);
	return size;
}
