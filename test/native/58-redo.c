/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Batches that are all or nothing, and what is left of them by crashes: at every system call of theirs, at every byte of their record, and
 * at every order in which a disk may have written what it was not told to have written yet. The engine's calls lead here (--wrap). The program is
 * run at page granularity, and with `cache_line` as its argument at that, pretended.
 */
#include "scene.h"

#include "batch.h"
#include "order.h"
#include "record.h"
#include "redo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static uint32_t granularity = FFI_GRANULARITY_PAGE;
static const char *granularity_name = "page";

#define RING_SIZE (UINT64_C(64) << 10)
#define FILE_PAGES 3
#define RETIRED_AT 4096
#define RING_AT 8192
#define LOG ".pmemset/redo"

/* ---- the engine's calls ---- */

enum call { PWRITE, PWRITEV, FDATASYNC, FSYNC, MSYNC, RENAMEAT, MALLOC };

/* Asked before each call, in any thread; an errno makes it fail. And behind each that was made. */
static int (*before_call)(enum call call, int fd);
static void (*after_call)(enum call call, int fd, uint64_t at, const struct iovec *iov, int count);
static int64_t allocations_left = -1;
static bool allocation_failed;
static const void *msync_at; /* of one that is asked about */

static bool refused(enum call call, int fd)
{
	int why = before_call ? before_call(call, fd) : 0;
	errno = why ? why : errno;
	return why != 0;
}

static void was_made(enum call call, int fd, uint64_t at, const struct iovec *iov, int count)
{
	int keep = errno;
	if (after_call != NULL)
		after_call(call, fd, at, iov, count);
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
ssize_t __real_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_msync(void *addr, size_t size, int flags);
int __real_renameat(int old_dir, const char *old, int dir, const char *name);
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset);
ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
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
	was_made(PWRITE, fd, (uint64_t)offset, &(struct iovec){at((uintptr_t)buf), size}, 1);
	return n;
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
	if (refused(PWRITEV, fd))
		return -1;
	ssize_t n = __real_pwritev(fd, iov, count, offset);
	was_made(PWRITEV, fd, (uint64_t)offset, iov, count);
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
	was_made(MSYNC, -1, (uint64_t)(uintptr_t)addr, &(struct iovec){addr, size}, 1);
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

#define FILE_SIZE (FILE_PAGES * PAGE)

struct stage {
	struct place v; /* the volume */
	uint64_t set, a, b, alias;
};

static void open_volume(struct stage *s)
{
	must(ffi_volume_open(s->v.dir, &s->v.volume, &err));
	s->set = new_set(FFI_COALESCING_NONE, 64 * MIB);
}

static void map_all(struct stage *s)
{
	s->a = must_map(s->set, &s->v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	s->b = must_map(s->set, &s->v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	s->alias = must_map(s->set, &s->v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
}

static struct stage stage_in(const char *above, const char *name)
{
	struct stage s = {.v = {.name = "volume"}};
	assert_true(snprintf(s.v.dir, sizeof(s.v.dir), "%s/%s", above, name) < (int)sizeof(s.v.dir));
	assert_int_equal(mkdir(s.v.dir, 0700), 0);
	make_file(&s.v, "a", FILE_SIZE, 1);
	make_file(&s.v, "b", FILE_SIZE, 2);
	open_volume(&s);
	map_all(&s);
	return s;
}

static struct stage stage_on(const struct place *p)
{
	return stage_in(p->dir, "volume");
}

static void leave(struct stage *s)
{
	delete_set(s->set);
	must(ffi_volume_close(s->v.volume));
}

/* As the next process finds it. */
static void restart(struct stage *s)
{
	leave(s);
	open_volume(s);
	map_all(s);
}

static void recover(const struct stage *s, uint64_t applied, uint64_t kept)
{
	uint64_t counts[2] = {99, 99};
	must(ffi_redo_recover(s->v.volume, counts, &err));
	assert_int_equal(counts[0], applied);
	assert_int_equal(counts[1], kept);
}

/* ---- batches ---- */

struct body {
	char bytes[4 * RING_SIZE];
	char data[2 * RING_SIZE];
	uint64_t size, data_size;
	uint32_t count;
};
static _Thread_local struct body body; /* of one at a time */

static void begin_body(void)
{
	body.size = sizeof(struct batch_header);
	body.data_size = body.count = 0;
}

static void push(struct batch_operation op)
{
	memcpy(body.bytes + body.size, &op, sizeof(op));
	body.size += sizeof(op);
	body.count++;
}

static void push_write(uint64_t addr, const void *bytes, uint64_t length)
{
	push((struct batch_operation){.op = BATCH_WRITE, .addr = addr, .length = length});
	assert_true(body.data_size + length <= sizeof(body.data));
	memcpy(body.data + body.data_size, bytes, length);
	body.data_size += length;
}

static void seal(uint8_t durability)
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

static _Thread_local struct pmemset_error batch_err;
static _Thread_local uint64_t batch_failed;
static _Thread_local struct batch_reply batch_head;

/* results: of reads; NULL: there is none. */
static int run_sealed(uint64_t set, void *results)
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

static int run(uint64_t set)
{
	seal(DURABILITY_PERSISTED);
	return run_sealed(set, NULL);
}

/* Some bytes of both files, over a page's end and out of line: each byte becomes `mark`. */
#define AT_A 4090
#define IN_A 13
#define AT_B 8
#define IN_B 40

static int run_mark(const struct stage *s, unsigned char mark)
{
	unsigned char bytes[IN_A];
	memset(bytes, mark, sizeof(bytes));
	begin_body();
	push_write(s->a + AT_A, bytes, IN_A);
	push((struct batch_operation){.op = BATCH_MEMSET, .addr = s->b + AT_B, .length = IN_B, .argument = mark});
	return run(s->set);
}

static unsigned char old_a[IN_A], old_b[IN_B];

/* 0: as it was made; the mark; -1: neither, or the one here and the other there. */
static int mark_of(const struct stage *s)
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

static void read_log(const struct stage *s, uint64_t offset, void *buf, size_t size)
{
	read_file(&s->v, LOG, offset, buf, size);
}

static void write_raw(const struct stage *s, const char *name, uint64_t offset, const void *buf, size_t size)
{
	int fd = open(path_in(&s->v, name), O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(__real_pwrite(fd, buf, size, (off_t)offset), size);
	assert_int_equal(close(fd), 0);
}

static void write_log(const struct stage *s, uint64_t offset, const void *buf, size_t size)
{
	write_raw(s, LOG, offset, buf, size);
}

static uint64_t retired(const struct stage *s)
{
	uint64_t word;
	read_log(s, RETIRED_AT, &word, sizeof(word));
	return word;
}

static uint64_t epoch(const struct stage *s)
{
	uint64_t word;
	read_log(s, 16, &word, sizeof(word));
	return word;
}

/* Everything as in the moment behind the commit of the batch that began there. */
static void crash_behind_commit(struct stage *s, uint64_t position)
{
	delete_set(s->set);
	must(ffi_volume_close(s->v.volume));
	write_log(s, RETIRED_AT, &position, sizeof(position));
	write_raw(s, "a", AT_A, old_a, IN_A);
	write_raw(s, "b", AT_B, old_b, IN_B);
}

static void come_back(struct stage *s)
{
	open_volume(s);
	map_all(s);
}

/* ---- what it does ---- */

static void it_does_what_its_operations_say_one_after_the_other(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	static unsigned char model[2][16384 * FILE_PAGES];
	static unsigned char seen[16384 * FILE_PAGES];
	static char results[4 * RING_SIZE];
	static char expected[4 * RING_SIZE];
	static unsigned char bytes[300];
	const uint64_t base[] = {s.a, s.b, s.alias};
	assert_true(FILE_SIZE <= sizeof(seen));
	read_file(&s.v, "a", 0, model[0], FILE_SIZE);
	read_file(&s.v, "b", 0, model[1], FILE_SIZE);
	(void)seed_chance();
	for (uint64_t round = 0; round < scaled(300); round++) {
		uint64_t results_size = 0;
		begin_body();
		for (uint64_t n = 1 + chance(30); n > 0; n--) {
			uint64_t part = chance(3);
			uint64_t length = chance(sizeof(bytes));
			uint64_t at = chance(FILE_SIZE - length);
			unsigned char *to = &model[part % 2][at];
			switch (chance(4)) {
			case 0:
				push((struct batch_operation){.op = BATCH_READ, .addr = base[part] + at, .length = length});
				memcpy(expected + results_size, to, length);
				results_size += length;
				break;
			case 1:
				for (uint64_t i = 0; i < length; i++)
					bytes[i] = (unsigned char)chance(256);
				push_write(base[part] + at, bytes, length);
				memcpy(to, bytes, length);
				break;
			case 2:
				bytes[0] = (unsigned char)chance(256);
				push((struct batch_operation){.op = BATCH_MEMSET,
						.hint = (uint8_t)chance(5),
						.addr = base[part] + at,
						.length = length,
						.argument = bytes[0]});
				memset(to, bytes[0], length);
				break;
			default: { /* also between aliases, where bytes overlap that addresses do not */
				uint64_t other = chance(3);
				uint64_t from = chance(FILE_SIZE - length);
				push((struct batch_operation){.op = chance(2) ? BATCH_MEMCPY : BATCH_MEMMOVE,
						.addr = base[part] + at,
						.argument = base[other] + from,
						.length = length});
				memmove(to, &model[other % 2][from], length);
			}
			}
		}
		uint8_t durability = (uint8_t)(1 + chance(3));
		seal(durability);
		must(run_sealed(s.set, results));
		assert_int_equal(batch_head.done, body.count);
		assert_int_equal(batch_head.durability, durability == DURABILITY_FLUSHED ? DURABILITY_PERSISTED : durability);
		assert_memory_equal(results, expected, results_size);
		for (int i = 0; i < 3; i++) {
			must(ffi_read(s.set, base[i], seen, FILE_SIZE, 0, &err));
			assert_memory_equal(seen, model[i % 2], FILE_SIZE);
		}
	}
	assert_false(order_is_held());
	leave(&s);
}

static void what_it_cannot_be_is_refused(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	const struct {
		struct batch_operation op;
		enum batch_field field;
	} wrong[] = {
			{{.op = BATCH_PERSIST, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_FLUSH, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_COMPARE_EXCHANGE, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_ADD, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_MEMSET, .flags = BATCH_PUNCH, .addr = s.a, .length = PAGE}, BATCH_FIELD_FLAGS},
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		begin_body();
		push_write(s.a, "first", 5);
		push(wrong[i].op);
		fails(run(s.set), -EINVAL);
		assert_int_equal(batch_err.value, 1);
		assert_int_equal(batch_err.size, wrong[i].field);
	}
	begin_body();
	push_write(s.a, "first", 5);
	seal(DURABILITY_NONE);
	fails(run_sealed(s.set, NULL), -EINVAL);
	assert_int_equal(batch_err.size, BATCH_FIELD_HEADER);

	/* More than a log takes; the last of it only. */
	begin_body();
	for (int i = 0; i < 40; i++)
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = s.a, .length = FILE_SIZE, .argument = 1});
	fails(run(s.set), -ENOMEM);
	assert_int_equal(batch_err.reason, PMEMSET_REASON_LIMIT_RECORD);
	assert_int_equal(batch_err.value, RING_SIZE);
	assert_int_equal(batch_head.done, 0);

	struct stage t = stage_in(p->dir, "other");
	struct ffi_part c = must_map(s.set, &t.v, "b", (struct ffi_part_spec){.length = PAGE});
	begin_body();
	push_write(s.a, "first", 5);
	push((struct batch_operation){.op = BATCH_MEMCPY, .addr = c.addr, .argument = s.a, .length = 8});
	fails(run(s.set), -EXDEV);
	assert_int_equal(batch_err.reason, PMEMSET_REASON_VOLUMES);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(batch_head.done, 0);
	/* A log is made when one is needed, and a refusal needs none. */
	assert_int_equal(access(path_in(&s.v, LOG), F_OK), -1);
	assert_int_equal(mark_of(&s), 0);
	/* It may read there. */
	begin_body();
	push((struct batch_operation){.op = BATCH_MEMCPY, .addr = s.a, .argument = c.addr, .length = 8});
	must(run(s.set));
	must(remove_range(s.set, c.addr, c.length));
	leave(&t);
	leave(&s);
}

static void a_range_or_a_file_that_is_not_there_leaves_everything_as_it_was(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	begin_body();
	push_write(s.a + AT_A, "first", 5);
	push_write(s.b + FILE_SIZE - 2, "beyond", 6);
	fails(run(s.set), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(truncate(path_in(&s.v, "b"), (off_t)PAGE), 0);
	begin_body();
	push_write(s.a + AT_A, "first", 5);
	push_write(s.b + 2 * PAGE, "gone", 4);
	fails(run(s.set), PMEMSET_E_IO_FAIL);
	assert_int_equal(batch_err.reason, PMEMSET_REASON_TRUNCATED);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(batch_head.done, 0);
	assert_int_equal(batch_head.durability, DURABILITY_NONE);
	assert_int_equal(file_size(&s.v, "b"), PAGE);
	assert_int_equal(mark_of(&s), 0);
	assert_false(order_is_held());
	assert_int_equal(truncate(path_in(&s.v, "b"), (off_t)FILE_SIZE), 0);
	leave(&s);
}

/* ---- records, whole and torn ---- */

/* The log has one record, committed and not retired; its size. */
static uint64_t commit_one(struct stage *s, unsigned char mark)
{
	assert_int_equal(mark_of(s), 0);
	must(run_mark(s, mark));
	assert_int_equal(mark_of(s), mark);
	uint64_t size = retired(s);
	assert_int_equal(size, record_base_size(2) + record_entry_size(IN_A) + record_entry_size(IN_B));
	crash_behind_commit(s, 0);
	return size;
}

static void a_whole_record_is_applied_and_once_is_as_good_as_twice(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	uint64_t size = commit_one(&s, 7);
	for (int i = 0; i < 3; i++) {
		come_back(&s);
		assert_int_equal(mark_of(&s), i == 2 ? 7 : 0);
		assert_true(order_is_held());
		/* Until then its bytes are nobody's; the others are. */
		struct ffi_written w;
		fails(ffi_write(s.set, s.a + AT_A + IN_A - 1, "x", 1, FFI_DURABILITY_NONE, &w, &err), -EBUSY);
		assert_int_equal(err.reason, PMEMSET_REASON_RECOVERY_PENDING);
		fails(ffi_write(s.set, s.alias + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err), -EBUSY);
		must(ffi_write(s.set, s.a + AT_A + IN_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err));
		recover(&s, 1, 0);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), 7);
		assert_int_equal(retired(&s), size);
		assert_false(order_is_held());
		must(ffi_write(s.set, s.a + AT_A, (char[]){7}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
		if (i == 0) {
			crash_behind_commit(&s, 0);
		} else if (i == 1) { /* it was all done but for the word */
			leave(&s);
			write_log(&s, RETIRED_AT, &(uint64_t){0}, 8);
		}
	}
	restart(&s);
	recover(&s, 0, 0);
	must(run_mark(&s, 9));
	assert_int_equal(mark_of(&s), 9);
	leave(&s);
}

/* What was there before, or another byte: a write that stopped there, or went wrong there. */
static void a_record_torn_at_any_byte_is_none(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	char whole[1024];
	uint64_t size = commit_one(&s, 7);
	assert_true(size < sizeof(whole));
	read_log(&s, RING_AT, whole, size);
	for (uint64_t i = 0; i < size; i += scaled(100) == 100 ? 1 : 41)
		for (int cut = 0; cut < 2; cut++) {
			char torn[sizeof(whole)];
			memcpy(torn, whole, size);
			if (cut)
				memset(torn + i, 0, size - i);
			else
				torn[i] ^= (char)(1 << i % 8);
			/* Cut behind the last byte that is not 0 anyway, it is whole. */
			bool is_whole = memcmp(torn, whole, size) == 0;
			write_log(&s, RING_AT, torn, size);
			open_volume(&s);
			map_all(&s);
			assert_int_equal(order_is_held(), is_whole);
			recover(&s, is_whole ? 1 : 0, 0);
			assert_int_equal(mark_of(&s), is_whole ? 7 : 0);
			crash_behind_commit(&s, 0);
		}
	write_log(&s, RING_AT, whole, size);
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

static void sums_are_those_of_the_document(void **state)
{
	(void)state;
	assert_true(record_sum("123456789", 9) == UINT64_C(0x995dc9bbdf1939fa));
	assert_true(record_sum("", 0) == 0);
}

static void a_record_of_another_log_is_none(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	char whole[1024];
	uint64_t size = commit_one(&s, 7);
	read_log(&s, RING_AT, whole, size);
	assert_int_equal(unlink(path_in(&s.v, LOG)), 0);
	come_back(&s);
	recover(&s, 0, 0);
	must(run_mark(&s, 8));
	crash_behind_commit(&s, 0);
	write_log(&s, RING_AT, whole, size);
	come_back(&s);
	recover(&s, 0, 0);
	assert_int_equal(mark_of(&s), 0);
	leave(&s);
}

static void a_log_that_is_damaged_or_unknown_is_left_alone(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	(void)commit_one(&s, 7);
	for (uint64_t i = 0; i < 64; i++) {
		char byte;
		read_log(&s, i, &byte, 1);
		write_log(&s, i, (char[]){(char)(byte ^ 1)}, 1);
		come_back(&s);
		fails(ffi_redo_recover(s.v.volume, NULL, &err), -EUCLEAN);
		fails(run_mark(&s, 8), -EUCLEAN);
		assert_int_equal(mark_of(&s), 0);
		assert_false(order_is_held());
		leave(&s);
		write_log(&s, i, &byte, 1);
	}
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

/* Each of many batches is found again, wherever in the ring it lies; and more than one at a time. */
static void records_go_around_the_end_of_the_log(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	static unsigned char before[16384 * FILE_PAGES];
	static unsigned char after[16384 * FILE_PAGES];
	must(run_mark(&s, 1));
	(void)seed_chance();
	for (uint64_t round = 0; round < scaled(100); round++) {
		uint64_t position = retired(&s);
		uint64_t batches = 1 + chance(3);
		read_file(&s.v, "a", 0, before, FILE_SIZE);
		for (uint64_t i = 0; i < batches; i++) {
			begin_body();
			for (uint64_t n = 1 + chance(4); n > 0; n--) {
				uint64_t length = 1 + chance(4000);
				push((struct batch_operation){.op = BATCH_MEMSET,
						.addr = s.a + chance(FILE_SIZE - length),
						.length = length,
						.argument = chance(256)});
			}
			must(run(s.set));
		}
		read_file(&s.v, "a", 0, after, FILE_SIZE);
		uint64_t end = retired(&s);
		assert_true(end > position && end - position <= RING_SIZE);
		leave(&s);
		write_log(&s, RETIRED_AT, &position, 8);
		write_raw(&s, "a", 0, before, FILE_SIZE);
		come_back(&s);
		recover(&s, batches, 0);
		read_file(&s.v, "a", 0, before, FILE_SIZE);
		assert_memory_equal(before, after, FILE_SIZE);
		assert_int_equal(retired(&s), end);
	}
	assert_true(under_valgrind() || retired(&s) > 3 * RING_SIZE);
	leave(&s);
}

/* ---- files that are not there ---- */

static void what_is_for_a_file_that_is_not_there_waits_for_it(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	(void)commit_one(&s, 7);
	unsigned char seen[IN_A];
	struct ffi_written w;
	for (int i = 0; i < 2; i++) {
		open_volume(&s);
		s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
		recover(&s, 0, 1);
		read_file(&s.v, "a", AT_A, seen, IN_A);
		for (int k = 0; k < IN_A; k++)
			assert_int_equal(seen[k], i == 0 ? 7 : 9);
		/* This file has got its bytes, and is free; they stay whatever they become. */
		must(ffi_write(s.set, s.a + AT_A, "\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9", IN_A, FFI_DURABILITY_PERSISTED, &w, &err));
		leave(&s);
	}
	/* Others come and go meanwhile. */
	open_volume(&s);
	s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	for (int i = 0; i < 40; i++) {
		begin_body();
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = s.a + PAGE, .length = 3000, .argument = 3});
		must(run(s.set));
	}
	s.b = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	fails(ffi_write(s.set, s.b + AT_B + IN_B - 1, "x", 1, FFI_DURABILITY_NONE, &w, &err), -EBUSY);
	must(ffi_write(s.set, s.b + AT_B + IN_B, "x", 1, FFI_DURABILITY_NONE, &w, &err));
	recover(&s, 1, 0);
	must(ffi_write(s.set, s.b + PAGE, "x", 1, FFI_DURABILITY_NONE, &w, &err));
	unsigned char got[IN_B];
	read_file(&s.v, "b", AT_B, got, IN_B);
	for (int k = 0; k < IN_B; k++)
		assert_int_equal(got[k], 7);
	leave(&s);
	open_volume(&s);
	recover(&s, 0, 0);
	leave(&s);
}

static void what_is_for_a_file_that_is_too_short_waits_for_it(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	(void)commit_one(&s, 7);
	assert_int_equal(truncate(path_in(&s.v, "a"), AT_A + IN_A - 1), 0);
	open_volume(&s);
	s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = PAGE}).addr;
	s.b = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	recover(&s, 0, 1);
	assert_int_equal(file_size(&s.v, "a"), AT_A + IN_A - 1);
	assert_int_equal(truncate(path_in(&s.v, "a"), (off_t)FILE_SIZE), 0);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

static void another_file_gets_it_where_it_is_adopted(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	struct ffi_span span;
	char old_identity[FFI_IDENTITY_SIZE];
	must(remove_range(s.set, s.b, FILE_SIZE));
	struct ffi_part part = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE});
	s.b = part.addr;
	memcpy(old_identity, part.identity, sizeof(old_identity));
	(void)commit_one(&s, 7);
	make_file(&s.v, "copy", FILE_SIZE, 2);
	assert_int_equal(rename(path_in(&s.v, "copy"), path_in(&s.v, "b")), 0);
	open_volume(&s);
	s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	struct ffi_restore_file file = {.volume = s.v.volume, .path_length = 1};
	memcpy(file.identity, old_identity, sizeof(old_identity));
	struct ffi_restore_part row = {.length = FILE_SIZE, .cookie = 77, .addr = info_of(s.set).window_addr + 32 * MIB};
	must(ffi_restore(s.set, &file, 1, "b", 1, &row, 1, &err));
	assert_int_equal(row.code, -ESTALE);
	recover(&s, 0, 1);
	memcpy(file.identity, old_identity, sizeof(old_identity));
	file.adopt = 1;
	must(ffi_restore(s.set, &file, 1, "b", 1, &row, 1, &err));
	assert_int_equal(row.code, 0);
	must(ffi_lookup(s.set, row.addr, &span));
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

/* ---- who waits for whom ---- */

static sem_t arrived, go_on;
static _Atomic int syncs_until_halt;
static _Atomic bool finished[3];

static bool is_file(int fd, const char *path)
{
	struct stat is;
	struct stat wanted;
	return fstat(fd, &is) == 0 && stat(path, &wanted) == 0 && is.st_ino == wanted.st_ino && is.st_dev == wanted.st_dev;
}

static char path_of_log[512], path_of_a[512];
static uint64_t base_of_a;

static void know_paths(const struct stage *s)
{
	(void)snprintf(path_of_log, sizeof(path_of_log), "%s", path_in(&s->v, LOG));
	base_of_a = s->a;
	(void)snprintf(path_of_a, sizeof(path_of_a), "%s", path_in(&s->v, "a"));
}

static bool log_was_flushed, applied_too_early;

static int note_order(enum call call, int fd)
{
	log_was_flushed |= call == FDATASYNC && is_file(fd, path_of_log);
	applied_too_early |= call == PWRITE && is_file(fd, path_of_a) && !log_was_flushed;
	return 0;
}

/* Whoever died has written it, and perhaps not flushed: a record that is read whole may be gone when the power goes in the middle of its files. */
static void a_log_is_durable_before_it_is_applied(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	uint64_t before = 0;
	must(run_mark(&s, 1));
	before = retired(&s);
	must(run_mark(&s, 2));
	leave(&s);
	write_log(&s, RETIRED_AT, &before, sizeof(before));
	come_back(&s);
	know_paths(&s);
	log_was_flushed = applied_too_early = false;
	before_call = note_order;
	recover(&s, 1, 0);
	before_call = NULL;
	assert_true(log_was_flushed);
	assert_false(applied_too_early);
	leave(&s);
}

/* The log's word is about to be made durable: everything is applied, and nothing is retired. */
static int halt_at_retirement(enum call call, int fd)
{
	if (call == FDATASYNC && is_file(fd, path_of_log) && atomic_fetch_sub(&syncs_until_halt, 1) == 1) {
		(void)sem_post(&arrived);
		while (sem_wait(&go_on) != 0)
			;
	}
	return 0;
}

static struct stage *stage_of_threads;

static void *run_mark_there(void *arg)
{
	(void)arg;
	return at((uint64_t)run_mark(stage_of_threads, 7));
}

struct writer {
	uint64_t addr;
	int i;
};

static void *write_there(void *arg)
{
	const struct writer *w = arg;
	struct ffi_written written;
	struct pmemset_error e;
	int rc = ffi_write(stage_of_threads->set, w->addr, "\x63", 1, FFI_DURABILITY_NONE, &written, &e);
	atomic_store(&finished[w->i], true);
	return at((uint64_t)rc);
}

static void nap(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

static void stores_to_its_bytes_wait_and_others_do_not(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	know_paths(&s);
	stage_of_threads = &s;
	assert_int_equal(sem_init(&arrived, 0, 0) | sem_init(&go_on, 0, 0), 0);
	atomic_store(&syncs_until_halt, 2);
	memset((void *)finished, 0, sizeof(finished));
	before_call = halt_at_retirement;
	pthread_t batch;
	pthread_t threads[3];
	const struct writer writers[] = {{s.a + AT_A, 0}, {s.alias + AT_A + 1, 1}, {s.a + AT_A + IN_A, 2}};
	void *rc;
	assert_int_equal(pthread_create(&batch, NULL, run_mark_there, NULL), 0);
	while (sem_wait(&arrived) != 0)
		;
	assert_int_equal(mark_of(&s), 7);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, write_there, at((uintptr_t)&writers[i])), 0);
	/* A load waits for nobody. */
	unsigned char byte;
	must(ffi_read(s.set, s.a + AT_A, &byte, 1, 0, &err));
	assert_int_equal(byte, 7);
	assert_int_equal(pthread_join(threads[2], &rc), 0);
	assert_int_equal((intptr_t)rc, 0);
	nap();
	assert_false(atomic_load(&finished[0]) || atomic_load(&finished[1]));
	/* Plain batches of small things are tried where nobody may wait. */
	begin_body();
	push_write(s.a + AT_A + 2, "x", 1);
	seal(DURABILITY_NONE + 1);
	((struct batch_header *)(void *)body.bytes)->atomicity = BATCH_EACH;
	char reply[64];
	fails(ffi_batch(s.set, body.bytes, body.size + body.data_size, reply, sizeof(reply), 1, &batch_failed, &batch_err), -EAGAIN);
	assert_int_equal(sem_post(&go_on), 0);
	assert_int_equal(pthread_join(batch, &rc), 0);
	assert_int_equal((intptr_t)rc, 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pthread_join(threads[i], &rc), 0);
		assert_int_equal((intptr_t)rc, 0);
	}
	before_call = NULL;
	must(ffi_read(s.set, s.a + AT_A + 1, &byte, 1, 0, &err));
	assert_int_equal(byte, 0x63);
	leave(&s);
}

static int halt_at_write_to_a(enum call call, int fd)
{
	if (call == PWRITE && is_file(fd, path_of_a) && atomic_fetch_sub(&syncs_until_halt, 1) == 1) {
		(void)sem_post(&arrived);
		while (sem_wait(&go_on) != 0)
			;
	}
	return 0;
}

static void it_waits_for_a_store_that_has_begun(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	know_paths(&s);
	stage_of_threads = &s;
	assert_int_equal(sem_init(&arrived, 0, 0) | sem_init(&go_on, 0, 0), 0);
	atomic_store(&syncs_until_halt, 1);
	before_call = halt_at_write_to_a;
	pthread_t batch;
	pthread_t thread;
	const struct writer writer = {s.a + AT_A, 0};
	void *rc;
	assert_int_equal(pthread_create(&thread, NULL, write_there, at((uintptr_t)&writer)), 0);
	while (sem_wait(&arrived) != 0)
		;
	uint64_t position = retired(&s);
	assert_int_equal(pthread_create(&batch, NULL, run_mark_there, NULL), 0);
	nap();
	assert_int_equal(mark_of(&s), 1);
	assert_int_equal(retired(&s), position);
	assert_int_equal(sem_post(&go_on), 0);
	assert_int_equal(pthread_join(batch, &rc), 0);
	assert_int_equal((intptr_t)rc, 0);
	assert_int_equal(pthread_join(thread, &rc), 0);
	before_call = NULL;
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

#define THREADS 4

/* Records of more than half the log, so that they wait for room as well; and small ones, which share their flushes. */
static void *run_many(void *arg)
{
	const struct stage *s = stage_of_threads;
	uint64_t mine = (uint64_t)(uintptr_t)arg;
	for (uint64_t i = 0; i < scaled(40); i++) {
		begin_body();
		unsigned char mark = (unsigned char)(1 + (mine * 40 + i) % 200);
		for (int k = 0; k < (mine % 2 ? 3 : 1); k++)
			push((struct batch_operation){.op = BATCH_MEMSET,
					.addr = s->a,
					.length = mine % 2 ? FILE_SIZE : 64,
					.argument = mark});
		push((struct batch_operation){.op = BATCH_MEMCPY, .addr = s->b, .argument = s->alias, .length = 64});
		if (run(s->set) != 0)
			return at(1);
	}
	return NULL;
}

static void *write_many_times(void *arg)
{
	struct ffi_written w;
	struct pmemset_error e;
	for (uint64_t i = 0; i < scaled(400); i++)
		if (ffi_write(stage_of_threads->set, stage_of_threads->a + (i * 8) % FILE_SIZE, &i, 8, FFI_DURABILITY_NONE, &w, &e) != 0)
			return arg;
	return NULL;
}

static void many_at_once_are_each_whole(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	stage_of_threads = &s;
	pthread_t threads[THREADS + 1];
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, run_many, at(i)), 0);
	assert_int_equal(pthread_create(&threads[THREADS], NULL, write_many_times, &s), 0);
	for (int i = 0; i <= THREADS; i++) {
		void *rc;
		assert_int_equal(pthread_join(threads[i], &rc), 0);
		assert_null(rc);
	}
	/* What each has copied was whole. */
	unsigned char seen[64];
	must(ffi_read(s.set, s.b, seen, sizeof(seen), 0, &err));
	begin_body();
	push((struct batch_operation){.op = BATCH_READ, .addr = s.b, .length = 64});
	must(run(s.set));
	assert_false(order_is_held());
	restart(&s);
	recover(&s, 0, 0);
	leave(&s);
}

static _Atomic bool batches_are_done;

/* Not whole, and with stores in a row: to the one file, to the other, and to words in between. */
static void *run_in_rows(void *arg)
{
	const struct stage *s = stage_of_threads;
	for (uint64_t i = 0; !atomic_load(&batches_are_done); i++) {
		begin_body();
		for (uint64_t k = 0; k < 8; k++) {
			push_write(s->a + AT_A + 8 * k, &i, sizeof(i));
			push_write(k % 3 ? s->alias + AT_A + 8 * k : s->b + AT_B + 8 * k, &i, sizeof(i));
			push((struct batch_operation){.op = BATCH_ADD,
					.addr = s->a + ((AT_A + 7) & ~7) + 8 * k,
					.length = 8,
					.argument = 1});
		}
		seal(FFI_DURABILITY_PERSISTED);
		body.bytes[offsetof(struct batch_header, atomicity)] = 0;
		if (run_sealed(s->set, NULL) != 0)
			return arg;
	}
	return NULL;
}

/* Batches come while nobody holds anything, so that the stores in a row have not seen them. */
static void who_is_waited_for_does_not_wait(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	stage_of_threads = &s;
	pthread_t thread;
	void *rc;
	atomic_store(&batches_are_done, false);
	assert_int_equal(pthread_create(&thread, NULL, run_in_rows, &s), 0);
	for (uint64_t i = 0; i < scaled(300); i++) {
		must(run_mark(&s, (unsigned char)(1 + i % 9)));
		(void)nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
	}
	atomic_store(&batches_are_done, true);
	assert_int_equal(pthread_join(thread, &rc), 0);
	assert_null(rc);
	leave(&s);
}

static void *run_small_ones(void *arg)
{
	const struct stage *s = stage_of_threads;
	while (!atomic_load(&batches_are_done)) {
		begin_body();
		push((struct batch_operation){.op = BATCH_MEMSET,
				.addr = s->b + 64 * (uint64_t)(uintptr_t)arg,
				.length = 64,
				.argument = 1});
		if (run(s->set) != 0)
			return at(1);
	}
	return NULL;
}

/* They would have the log in use for ever, each beginning before the other has ended. */
static void who_needs_a_larger_log_gets_it_whoever_else_is_at_it(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	stage_of_threads = &s;
	pthread_t threads[THREADS];
	atomic_store(&batches_are_done, false);
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, run_small_ones, at(i)), 0);
	nap();
	redo_configure(2 * RING_SIZE, 0);
	begin_body();
	for (int i = 0; i < 6; i++)
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = s.a, .length = FILE_SIZE, .argument = 5});
	must(run(s.set));
	atomic_store(&batches_are_done, true);
	for (int i = 0; i < THREADS; i++) {
		void *rc;
		assert_int_equal(pthread_join(threads[i], &rc), 0);
		assert_null(rc);
	}
	redo_configure(RING_SIZE, 0);
	leave(&s);
}

/* Until it is recovered: answers how often it was let in. */
static void *store_where_it_waits(void *arg)
{
	const struct stage *s = stage_of_threads;
	struct ffi_written w;
	struct pmemset_error e;
	uint64_t stored = 0;
	(void)arg;
	while (!atomic_load(&batches_are_done))
		stored += ffi_write(s->set, s->a + AT_A, "x", 1, FFI_DURABILITY_NONE, &w, &e) == 0;
	return at(stored);
}

static void what_waits_for_one_file_is_held_in_the_other_all_the_while(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	stage_of_threads = &s;
	must(run_mark(&s, 1));
	for (uint64_t i = 0; i < scaled(200); i++) {
		uint64_t before = retired(&s);
		must(run_mark(&s, 2));
		leave(&s);
		write_log(&s, RETIRED_AT, &before, sizeof(before));
		open_volume(&s);
		s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
		pthread_t thread;
		void *stored;
		atomic_store(&batches_are_done, false);
		assert_int_equal(pthread_create(&thread, NULL, store_where_it_waits, NULL), 0);
		s.b = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
		atomic_store(&batches_are_done, true);
		assert_int_equal(pthread_join(thread, &stored), 0);
		assert_int_equal((intptr_t)stored, 0);
		recover(&s, 1, 0);
	}
	leave(&s);
}

/* ---- a medium that refuses ---- */

static int fail_log_syncs, fail_a_syncs, fail_renames; /* so many of them */

static int fail_some(enum call call, int fd)
{
	int *left = call == RENAMEAT ? &fail_renames : call == FDATASYNC && is_file(fd, path_of_log) ? &fail_log_syncs : NULL;
	if ((call == MSYNC && (const char *)msync_at >= (char *)at(base_of_a) &&
			    (const char *)msync_at < (char *)at(base_of_a) + FILE_SIZE) ||
			(call == FDATASYNC && is_file(fd, path_of_a)))
		left = &fail_a_syncs;
	if (left == NULL || *left == 0)
		return 0;
	--*left;
	return EIO;
}

static void a_commit_that_fails_is_no_commit(void **state)
{
	struct place *p = here(state);
	for (int again = 0; again < 2; again++) {
		struct stage s = stage_in(p->dir, again ? "y" : "x");
		struct ffi_written w;
		must(run_mark(&s, 1));
		know_paths(&s);
		uint64_t old = epoch(&s);
		before_call = fail_some;
		fail_log_syncs = 1;
		fail_renames = again ? 2 : 0;
		fails(run_mark(&s, 2), -EIO);
		assert_int_equal(batch_err.reason, PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(batch_failed, 2);
		assert_int_equal(batch_head.done, 0);
		assert_int_equal(batch_head.durability, DURABILITY_NONE);
		assert_int_equal(mark_of(&s), 1);
		assert_int_equal(info_of(s.set).degraded, 0);
		if (again) {
			/* The old log is still there, and may have it: so nobody stores where it would be replayed. */
			assert_int_equal(epoch(&s), old);
			fails(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err), -EBUSY);
			assert_int_equal(err.reason, PMEMSET_REASON_RECOVERY_PENDING);
			begin_body();
			push_write(s.a, "elsewhere", 9);
			fails(run(s.set), -EIO);
			must(ffi_redo_recover(s.v.volume, NULL, &err)); /* which makes it anew as well */
		}
		assert_false(order_is_held());
		assert_int_not_equal(epoch(&s), old);
		assert_int_equal(file_size(&s.v, LOG), RING_AT + RING_SIZE);
		must(ffi_write(s.set, s.b + AT_B, (char[]){1}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
		restart(&s);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), 1);
		must(run_mark(&s, 3));
		assert_int_equal(mark_of(&s), 3);
		before_call = NULL;
		leave(&s);
	}
}

static int log_syncs_met;

static int fail_second_log_sync(enum call call, int fd)
{
	if (call == FDATASYNC && is_file(fd, path_of_log) && ++log_syncs_met == 2)
		return EIO;
	return call == RENAMEAT ? fail_some(call, fd) : 0;
}

/* The batch is whole and durable all the same; what must not be is a replay of it, after somebody else has stored there. */
static void a_retirement_that_fails_fails_nobody_and_nothing_is_replayed(void **state)
{
	struct place *p = here(state);
	for (int again = 0; again < 2; again++) {
		struct stage s = stage_in(p->dir, again ? "y" : "x");
		struct ffi_written w;
		must(run_mark(&s, 1));
		know_paths(&s);
		uint64_t old = epoch(&s);
		before_call = fail_second_log_sync;
		log_syncs_met = 0;
		fail_renames = again;
		must(run_mark(&s, 2));
		assert_int_equal(batch_head.durability, DURABILITY_PERSISTED);
		assert_int_equal(mark_of(&s), 2);
		assert_int_equal(order_is_held(), again);
		assert_int_equal(epoch(&s) == old, again);
		if (again) {
			fails(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err), -EBUSY);
			must(run_mark(&s, 2));
		}
		before_call = NULL;
		assert_false(order_is_held());
		must(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err));
		restart(&s);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), -1);
		leave(&s);
	}
}

static void what_cannot_be_made_durable_where_it_belongs_is_applied_again(void **state)
{
	struct place *p = here(state);
	/* What is in memory only cannot be discarded; and valgrind reads the beginning of each file that is mapped again. */
	uint32_t last = p == &places[0] || under_valgrind() ? FFI_RECOVERY_REWRITE : FFI_RECOVERY_DISCARD;
	for (uint32_t recovery = FFI_RECOVERY_REWRITE; recovery <= last; recovery++) {
		struct stage s = stage_in(p->dir, recovery ? "y" : "x");
		struct ffi_written w;
		uint64_t rows[3];
		must(run_mark(&s, 1));
		know_paths(&s);
		before_call = fail_some;
		fail_a_syncs = 1;
		fails(run_mark(&s, 2), -EIO);
		before_call = NULL;
		assert_int_equal(batch_err.reason, PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(batch_head.done, 2);
		assert_int_equal(batch_head.bytes, IN_A + IN_B);
		assert_int_equal(info_of(s.set).degraded, 1);
		fails(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_NONE, &w, &err), -EBUSY);
		/* A batch of something else goes on. */
		begin_body();
		push_write(s.b + PAGE, "else", 4);
		must(run(s.set));
		assert_int_equal(ffi_failures(s.set, rows, 1), 1);
		must(ffi_acknowledge(s.set, rows[0], recovery, &err));
		assert_int_equal(info_of(s.set).degraded, 0);
		assert_int_equal(mark_of(&s), 2);
		assert_false(order_is_held());
		must(ffi_write(s.set, s.a + AT_A, (char[]){2}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
		restart(&s);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), 2);
		leave(&s);
	}
}

static void a_log_that_somebody_removes_is_made_anew(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	assert_int_equal(unlink(path_in(&s.v, LOG)), 0);
	must(run_mark(&s, 2));
	assert_int_equal(file_size(&s.v, LOG), RING_AT + RING_SIZE);
	crash_behind_commit(&s, 0);
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 2);
	leave(&s);
}

static void a_full_disk_is_said_before_anything_is_done(void **state)
{
	struct place *p = here(state);
	mounting();
	assert_int_equal(mkdir(path_in(p, "full"), 0700), 0);
	char options[64];
	(void)snprintf(options, sizeof(options), "size=%" PRIu64, 2 * FILE_SIZE + RING_SIZE);
	assert_int_equal(mount("none", path_in(p, "full"), "tmpfs", 0, options), 0);
	struct stage s = stage_in(path_in(p, "full"), "v");
	fails(run_mark(&s, 1), -ENOSPC);
	assert_int_equal(batch_head.done, 0);
	assert_int_equal(mark_of(&s), 0);
	assert_int_equal(access(path_in(&s.v, LOG), F_OK), -1);
	assert_int_equal(access(path_in(&s.v, LOG ".new"), F_OK), -1);
	redo_configure(PAGE, 0);
	must(run_mark(&s, 1));
	redo_configure(RING_SIZE, 0);
	/* A hole that cannot be filled is found before the commit. */
	make_file(&s.v, "hole", 4 * PAGE, 0);
	uint64_t hole = must_map(s.set, &s.v, "hole", (struct ffi_part_spec){.length = 4 * PAGE}).addr;
	fill_up(&s.v, "filler");
	begin_body();
	push_write(s.a + AT_A, "first", 5);
	push_write(hole + 9, "hole", 4);
	fails(run(s.set), -ENOSPC);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(mark_of(&s), 1);
	assert_int_equal(unlink(path_in(&s.v, "filler")), 0);
	must(run(s.set));
	leave(&s);
	assert_int_equal(umount(path_in(p, "full")), 0);
}

/* It keeps nobody from starting; what waits there goes on waiting. */
static void a_volume_that_is_read_only_is_left_as_it_is(void **state)
{
	struct place *p = here(state);
	mounting();
	assert_int_equal(mkdir(path_in(p, "ro"), 0700), 0);
	assert_int_equal(mount("none", path_in(p, "ro"), "tmpfs", 0, "size=4m"), 0);
	struct stage s = stage_in(path_in(p, "ro"), "v");
	(void)commit_one(&s, 7);
	assert_int_equal(mount("none", path_in(p, "ro"), "none", MS_REMOUNT | MS_RDONLY, NULL), 0);
	open_volume(&s);
	recover(&s, 0, 1);
	leave(&s);
	assert_int_equal(mark_of(&s), 0);
	assert_int_equal(mount("none", path_in(p, "ro"), "none", MS_REMOUNT, NULL), 0);
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
	assert_int_equal(umount(path_in(p, "ro")), 0);
}

/* ---- memory that runs out ---- */

static void memory_that_runs_out_changes_nothing(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	for (int64_t n = 0;; n++) {
		allocations_left = n;
		allocation_failed = false;
		int rc = run_mark(&s, 2);
		allocations_left = -1;
		if (!allocation_failed) {
			must(rc);
			assert_true(n > 5);
			break;
		}
		/* A reply of the test's own, too; and what retires needs none. */
		assert_int_equal(rc, rc == 0 ? 0 : -ENOMEM);
		assert_int_equal(mark_of(&s), rc == 0 ? 2 : 1);
		assert_false(order_is_held());
		must(run_mark(&s, 1));
	}
	/* The same of a start with something to be recovered. */
	for (int64_t n = 0;; n++) {
		uint64_t before = retired(&s);
		must(run_mark(&s, 3));
		leave(&s);
		write_log(&s, RETIRED_AT, &before, 8);
		write_raw(&s, "a", AT_A, old_a, IN_A);
		write_raw(&s, "b", AT_B, old_b, IN_B);
		allocations_left = n;
		allocation_failed = false;
		uint64_t counts[2] = {0, 0};
		uint64_t volume = 0;
		int rc = ffi_volume_open(s.v.dir, &volume, &err);
		if (rc == 0) {
			s.v.volume = volume;
			allocations_left = allocation_failed ? -1 : allocations_left;
			int64_t left = allocations_left;
			allocations_left = -1;
			s.set = new_set(FFI_COALESCING_NONE, 64 * MIB);
			map_all(&s);
			allocations_left = left;
			rc = ffi_redo_recover(volume, counts, &err);
			allocations_left = -1;
			assert_int_equal(rc, 0);
			assert_int_equal(counts[0] + counts[1], 1);
			recover(&s, counts[1], 0);
		} else {
			allocations_left = -1;
			assert_int_equal(rc, -ENOMEM);
			come_back(&s);
			recover(&s, 1, 0);
		}
		assert_int_equal(mark_of(&s), 3);
		if (!allocation_failed)
			break;
		assert_true(n < 100);
	}
	leave(&s);
}

/* ---- killed, at each call ---- */

static long calls_until_death;
static bool dies_before;

static int die_before(enum call call, int fd)
{
	(void)call;
	(void)fd;
	if (dies_before && --calls_until_death == 0)
		(void)raise(SIGKILL);
	return 0;
}

static void die_after(enum call call, int fd, uint64_t at_, const struct iovec *iov, int count)
{
	(void)call;
	(void)fd;
	(void)at_;
	(void)iov;
	(void)count;
	if (!dies_before && --calls_until_death == 0)
		(void)raise(SIGKILL);
}

/* Of another process, which is what it says. Exit code 0: the batch was answered. */
static int be_killed(char **argv)
{
	struct stage s = {.v = {.name = "volume"}};
	const struct ffi_engine_spec spec = {.simulate = strcmp(argv[5], "page") == 0 ? FFI_GRANULARITY_UNSET : FFI_GRANULARITY_CACHE_LINE};
	(void)snprintf(s.v.dir, sizeof(s.v.dir), "%s", argv[2]);
	dies_before = strcmp(argv[3], "before") == 0;
	redo_configure(RING_SIZE, 0);
	if (ffi_engine_start(&spec, &err) != 0)
		return 2;
	open_volume(&s);
	map_all(&s);
	if (ffi_redo_recover(s.v.volume, NULL, &err) != 0)
		return 3;
	calls_until_death = strtol(argv[4], NULL, 10);
	before_call = die_before;
	after_call = die_after;
	int rc = run_mark(&s, 9);
	before_call = NULL;
	after_call = NULL;
	return rc ? 4 : 0;
}

static bool is_killed(const struct stage *s, const char *when, long call)
{
	char number[24];
	pid_t pid;
	int status = 0;
	(void)snprintf(number, sizeof(number), "%ld", call);
	char *argv[] = {"58-redo", "be-killed", at((uintptr_t)s->v.dir), at((uintptr_t)when), number, at((uintptr_t)granularity_name),
			NULL};
	assert_int_equal(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGKILL);
		return true;
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

/* The first batch of a volume makes its log; the second does not. */
static void killed_at_any_call_it_is_whole_or_not_at_all(void **state)
{
	struct place *p = here(state);
	no_valgrind("it does not follow the process that is killed");
	unsigned whole = 0;
	unsigned none = 0;
	for (int first = 0; first < 2; first++)
		for (int after = 0; after < 2; after++)
			for (long call = 1;; call++) {
				char name[32];
				(void)snprintf(name, sizeof(name), "v%d%d-%ld", first, after, call);
				struct stage s = stage_in(p->dir, name);
				if (!first)
					must(run_mark(&s, 1));
				leave(&s);
				bool killed = is_killed(&s, after ? "after" : "before", call);
				open_volume(&s);
				map_all(&s);
				must(ffi_redo_recover(s.v.volume, NULL, &err));
				int mark = mark_of(&s);
				assert_true(mark == 9 || (killed && mark == (first ? 0 : 1)));
				whole += killed && mark == 9;
				none += killed && mark != 9;
				assert_false(order_is_held());
				must(run_mark(&s, 10));
				assert_int_equal(mark_of(&s), 10);
				leave(&s);
				if (!killed)
					break;
			}
	print_message("killed: %u whole, %u not at all\n", whole, none);
	assert_true(none > 0 && (whole > 0 || granularity != FFI_GRANULARITY_PAGE));
}

/* ---- the power goes: whatever was not flushed may be on the disk, or not, by sectors ---- */

#define SECTOR 512
#define EVENTS_MAX 64
#define IMAGES 3

struct event {
	int file;
	bool sync; /* of [from, to); else a write */
	uint64_t from, to;
	char *bytes;
};
static struct event events[EVENTS_MAX];
static int event_count;
static struct stage *recorded;
static const char *const image_names[IMAGES] = {"a", "b", LOG};

static int image_of(int fd)
{
	for (int i = 0; i < IMAGES; i++)
		if (is_file(fd, path_in(&recorded->v, image_names[i])))
			return i;
	fail();
	return 0;
}

static void record_event(enum call call, int fd, uint64_t at_, const struct iovec *iov, int count)
{
	struct event ev = {.from = at_};
	if (call == RENAMEAT || call == MALLOC)
		fail(); /* the log is there before */
	assert_true(event_count < EVENTS_MAX);
	if (call == MSYNC) {
		ev.sync = true;
		ev.file = at_ >= recorded->b && at_ < recorded->b + FILE_SIZE ? 1 : 0;
		uint64_t base = ev.file							      ? recorded->b
				: at_ >= recorded->alias && at_ < recorded->alias + FILE_SIZE ? recorded->alias
											      : recorded->a;
		ev.from = (at_ - base) & ~(PAGE - 1);
		ev.to = (at_ - base + iov->iov_len + PAGE - 1) & ~(PAGE - 1);
	} else if (call == FDATASYNC || call == FSYNC) {
		ev.sync = true;
		ev.file = image_of(fd);
		ev.to = UINT64_MAX;
	} else {
		ev.file = image_of(fd);
		ev.to = at_;
		for (int i = 0; i < count; i++)
			ev.to += iov[i].iov_len;
		ev.bytes = malloc(ev.to - ev.from + 1);
		assert_non_null(ev.bytes);
		uint64_t n = 0;
		for (int i = 0; i < count; i++) {
			memcpy(ev.bytes + n, iov[i].iov_base, iov[i].iov_len);
			n += iov[i].iov_len;
		}
	}
	events[event_count++] = ev;
}

/* Whether bytes [from, to) of a write are on the disk for sure when the power goes before event `cut`. */
static bool is_synced(int write, int cut, uint64_t from, uint64_t to)
{
	for (int i = write + 1; i < cut; i++)
		if (events[i].sync && events[i].file == events[write].file && events[i].from <= from && events[i].to >= to)
			return true;
	return false;
}

#define STATES 4

/* What was there before, what is made of it, and what there was after each step. */
static struct {
	char *before[IMAGES], *images[IMAGES], *states[STATES][2];
	uint64_t sizes[IMAGES];
	int answered[STATES]; /* behind so many events */
} film;

static char *copy_of(const struct stage *s, int image)
{
	char *copy = malloc(film.sizes[image]);
	assert_non_null(copy);
	read_file(&s->v, image_names[image], 0, copy, film.sizes[image]);
	return copy;
}

static void make_step(const struct stage *s, int step)
{
	struct ffi_written w;
	if (step == 1)
		must(run_mark(s, 0x41));
	else if (step == 2)
		must(ffi_write(s->set, s->b + AT_B, "PLAIN...", 8, FFI_DURABILITY_PERSISTED, &w, &err));
	else if (step == 3)
		must(run_mark(s, 0x42));
}

static void take_film(struct stage *s)
{
	must(run_mark(s, 1)); /* the log is there */
	for (int i = 0; i < IMAGES; i++) {
		film.sizes[i] = file_size(&s->v, image_names[i]);
		film.before[i] = copy_of(s, i);
		film.images[i] = copy_of(s, i);
	}
	recorded = s;
	event_count = 0;
	for (int i = 0; i < STATES; i++) {
		after_call = record_event;
		make_step(s, i);
		after_call = NULL;
		film.answered[i] = event_count;
		for (int f = 0; f < 2; f++)
			film.states[i][f] = copy_of(s, f);
	}
}

static void drop_film(void)
{
	for (int i = 0; i < event_count; i++)
		free(events[i].bytes);
	for (int i = 0; i < IMAGES; i++) {
		free(film.before[i]);
		free(film.images[i]);
	}
	for (int i = 0; i < STATES; i++) {
		free(film.states[i][0]);
		free(film.states[i][1]);
	}
}

/* bias: of 4, how many sectors that need not be there are. */
static void make_images(const struct stage *s, int cut, uint64_t bias)
{
	for (int i = 0; i < IMAGES; i++)
		memcpy(film.images[i], film.before[i], film.sizes[i]);
	for (int i = 0; i < cut; i++) {
		const struct event *ev = &events[i];
		for (uint64_t from = ev->from, to; !ev->sync && from < ev->to; from = to) {
			to = (from / SECTOR + 1) * SECTOR < ev->to ? (from / SECTOR + 1) * SECTOR : ev->to;
			if (is_synced(i, cut, from, to) || chance(4) < bias)
				memcpy(film.images[ev->file] + from, ev->bytes + (from - ev->from), to - from);
		}
	}
	for (int i = 0; i < IMAGES; i++)
		write_raw(s, image_names[i], 0, film.images[i], film.sizes[i]);
}

/* -1: none of them. */
static int state_of(const struct stage *s)
{
	int is = -1;
	char *seen[2] = {copy_of(s, 0), copy_of(s, 1)};
	for (int i = 0; i < STATES; i++)
		if (memcmp(seen[0], film.states[i][0], film.sizes[0]) == 0 && memcmp(seen[1], film.states[i][1], film.sizes[1]) == 0)
			is = i;
	free(seen[0]);
	free(seen[1]);
	return is;
}

/* A batch, a plain store to one of its bytes, and a batch over that again: the disk has as many of them as were answered, or one more. */
static void whatever_a_disk_has_written_when_the_power_goes(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	unsigned met[STATES] = {0};
	take_film(&s);
	leave(&s);
	(void)seed_chance();
	for (int cut = 0; cut <= event_count; cut++)
		for (uint64_t round = 0; round < scaled(30); round++) {
			make_images(&s, cut, round % 5);
			come_back(&s);
			must(ffi_redo_recover(s.v.volume, NULL, &err));
			int is = state_of(&s);
			int least = 0;
			for (int i = 1; i < STATES; i++)
				least = cut >= film.answered[i] ? i : least;
			if (is < least || is > least + 1)
				print_error("cut before event %d of %d, bias %" PRIu64 ": state %d, and %d was answered\n", cut,
						event_count, round % 5, is, least);
			assert_true(is >= least && is <= least + 1);
			met[is]++;
			leave(&s);
		}
	for (int i = 0; i < STATES; i++)
		assert_true(under_valgrind() || met[i] > 0);
	print_message("%d events; the states were met %u, %u, %u and %u times\n", event_count, met[0], met[1], met[2], met[3]);
	drop_film();
}

int main(int argc, char **argv)
{
	if (argc == 6 && strcmp(argv[1], "be-killed") == 0)
		return be_killed(argv);
	if (argc > 1 && strcmp(argv[1], "cache_line") == 0) {
		granularity = FFI_GRANULARITY_CACHE_LINE;
		granularity_name = "cache_line";
	}
	redo_configure(RING_SIZE, 0);
	const struct CMUnitTest tests[] = {
			ON_EACH(it_does_what_its_operations_say_one_after_the_other),
			ON_EACH(what_it_cannot_be_is_refused),
			ON_EACH(a_range_or_a_file_that_is_not_there_leaves_everything_as_it_was),
			ON_EACH(a_whole_record_is_applied_and_once_is_as_good_as_twice),
			ON_EACH(a_log_is_durable_before_it_is_applied),
			ON_EACH(a_record_torn_at_any_byte_is_none),
			ONCE(sums_are_those_of_the_document),
			ON_EACH(a_record_of_another_log_is_none),
			ON_EACH(a_log_that_is_damaged_or_unknown_is_left_alone),
			ON_EACH(records_go_around_the_end_of_the_log),
			ON_EACH(what_is_for_a_file_that_is_not_there_waits_for_it),
			ON_EACH(what_is_for_a_file_that_is_too_short_waits_for_it),
			ON_EACH(another_file_gets_it_where_it_is_adopted),
			ON_EACH(many_at_once_are_each_whole),
			ON_EACH(who_is_waited_for_does_not_wait),
			ON_EACH(who_needs_a_larger_log_gets_it_whoever_else_is_at_it),
			ON_EACH(what_waits_for_one_file_is_held_in_the_other_all_the_while),
			ON_EACH(a_log_that_somebody_removes_is_made_anew),
			ON_EACH(a_full_disk_is_said_before_anything_is_done),
			ON_EACH(a_volume_that_is_read_only_is_left_as_it_is),
			ON_EACH(memory_that_runs_out_changes_nothing),
			ON_EACH(killed_at_any_call_it_is_whole_or_not_at_all),
	};
	/* Where stores are calls, which can be halted, refused and written down. */
	const struct CMUnitTest tests_of_pages[] = {
			ON_EACH(stores_to_its_bytes_wait_and_others_do_not),
			ON_EACH(it_waits_for_a_store_that_has_begun),
			ON_EACH(a_commit_that_fails_is_no_commit),
			ON_EACH(a_retirement_that_fails_fails_nobody_and_nothing_is_replayed),
			ON_EACH(what_cannot_be_made_durable_where_it_belongs_is_applied_again),
			ON_EACH(whatever_a_disk_has_written_when_the_power_goes),
	};
	if (granularity == FFI_GRANULARITY_CACHE_LINE)
		return RUN("redo, cache_line", tests, FFI_GRANULARITY_CACHE_LINE);
	struct CMUnitTest all[sizeof(tests) / sizeof(tests[0]) + sizeof(tests_of_pages) / sizeof(tests_of_pages[0])];
	memcpy(all, tests, sizeof(tests));
	memcpy((char *)all + sizeof(tests), tests_of_pages, sizeof(tests_of_pages));
	return RUN("redo", all, FFI_GRANULARITY_UNSET);
}
