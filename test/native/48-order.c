/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is acknowledged as persisted was flushed, and the flush was waited for: a kept log of stores, flushes and fences is checked behind each
 * answer. No machine that loses power can show a flush that is missing as long as the processor writes its cache back by itself, and an
 * emulated one has none. The log is taken where the engine meets libpmem2 and the kernel, by the linker (--wrap): libpmem2's copies, flushes and
 * fences, the engine's own locked instructions, and the calls that write to files and flush them.
 *
 * The rules. Cache line: a byte is durable once it was flushed behind its store and the same thread has fenced behind that; a copy of
 * libpmem2's flushes by itself unless it is told not to. Byte: the fence alone. Page: a flush of the file, or msync of the byte, behind its store.
 * At the finer two, pretended here, a rule that is broken is found all the same, as it is about the order of calls.
 */
#include "scene.h"

#include "batch.h"
#include "guard.h"

#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static uint32_t granularity = FFI_GRANULARITY_PAGE;

/* ---- what is not durable yet ---- */

enum state { DURABLE, STORED, FLUSHED, UNSYNCED };
/* Of the bytes of both parts, which are one map: a, all of its file, and b, from an offset in its own on. */
#define A_SIZE (3 * MIB)
#define B_SIZE MIB
#define B_OFFSET (64 * UINT64_C(1024))
#define SIZE (A_SIZE + B_SIZE)

static unsigned char states[SIZE];
static uint64_t base;
static ino_t inodes[2];
static pthread_t storer; /* at the finer granularities, of each store and its fence */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* What the log leaves out on purpose, to see that it is missed. */
static enum { HEARS, MISSES_FLUSHES, MISSES_FENCES, MISSES_SYNCS } hearing = HEARS;
static uint64_t stores, flushes, fences, syncs;

/* Nothing outside is in that state, so that nobody looks through megabytes for some bytes. */
static struct bounds {
	uint64_t lo, hi;
} bounds[UNSYNCED + 1];

static void store_states(uint64_t from, uint64_t length, enum state is)
{
	pthread_mutex_lock(&lock);
	struct bounds *b = &bounds[is];
	memset(states + from, is, length);
	*b = b->lo == b->hi ? (struct bounds){from, from + length}
			    : (struct bounds){from < b->lo ? from : b->lo, from + length > b->hi ? from + length : b->hi};
	pthread_mutex_unlock(&lock);
}

static void change_states(uint64_t from, uint64_t length, enum state was, enum state is)
{
	pthread_mutex_lock(&lock);
	struct bounds *b = &bounds[was];
	struct bounds *next = &bounds[is];
	uint64_t lo = from > b->lo ? from : b->lo;
	uint64_t hi = from + length < b->hi ? from + length : b->hi;
	for (uint64_t i = lo; i < hi; i++)
		if (states[i] == was)
			states[i] = (unsigned char)is;
	if (lo < hi)
		*next = next->lo == next->hi ? (struct bounds){lo, hi}
					     : (struct bounds){lo < next->lo ? lo : next->lo, hi > next->hi ? hi : next->hi};
	if (lo == b->lo && hi == b->hi)
		*b = (struct bounds){0};
	pthread_mutex_unlock(&lock);
}

/* Other memory than the set's is the scene's business. */
static bool is_ours(const void *addr)
{
	uint64_t offset = (uint64_t)(uintptr_t)addr - base;
	return base != 0 && offset < SIZE;
}

static void stored(const void *addr, uint64_t length, bool flushed)
{
	if (!is_ours(addr))
		return;
	assert_true(pthread_equal(storer, pthread_self()));
	enum state is = flushed && hearing != MISSES_FLUSHES ? FLUSHED : STORED;
	if (granularity == FFI_GRANULARITY_PAGE)
		is = UNSYNCED;
	store_states((uint64_t)(uintptr_t)addr - base, length, is);
	stores++;
	flushes += flushed;
}

static void fenced(void)
{
	if (!pthread_equal(storer, pthread_self()) || hearing == MISSES_FENCES)
		return;
	change_states(0, SIZE, FLUSHED, DURABLE);
	fences++;
}

/* ---- libpmem2, whose functions the engine takes once for each of the finer granularities ---- */

static pmem2_memmove_fn real_move[PMEM2_GRANULARITY_PAGE];
static pmem2_memset_fn real_set[PMEM2_GRANULARITY_PAGE];
static pmem2_flush_fn real_flush[PMEM2_GRANULARITY_PAGE];
static pmem2_drain_fn real_drain[PMEM2_GRANULARITY_PAGE];

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
pmem2_memmove_fn __real_pmem2_get_memmove_fn(struct pmem2_map *map);
pmem2_memset_fn __real_pmem2_get_memset_fn(struct pmem2_map *map);
pmem2_flush_fn __real_pmem2_get_flush_fn(struct pmem2_map *map);
pmem2_drain_fn __real_pmem2_get_drain_fn(struct pmem2_map *map);
pmem2_memmove_fn __wrap_pmem2_get_memmove_fn(struct pmem2_map *map);
pmem2_memset_fn __wrap_pmem2_get_memset_fn(struct pmem2_map *map);
pmem2_flush_fn __wrap_pmem2_get_flush_fn(struct pmem2_map *map);
pmem2_drain_fn __wrap_pmem2_get_drain_fn(struct pmem2_map *map);

static void copied(enum pmem2_granularity g, const void *to, size_t length, unsigned flags)
{
	assert_int_equal(g, granularity);
	stored(to, length, g == PMEM2_GRANULARITY_BYTE || !(flags & PMEM2_F_MEM_NOFLUSH));
	if (!(flags & (PMEM2_F_MEM_NODRAIN | PMEM2_F_MEM_NOFLUSH)))
		fenced();
}

static void flushed(enum pmem2_granularity g, const void *addr, size_t length)
{
	assert_int_equal(g, granularity);
	if (!is_ours(addr) || hearing == MISSES_FLUSHES)
		return;
	assert_true(pthread_equal(storer, pthread_self()));
	change_states((uint64_t)(uintptr_t)addr - base, length, STORED, FLUSHED);
	flushes++;
}

#define LOGGED(name, g) \
	static void *move_##name(void *to, const void *from, size_t length, unsigned flags) \
	{ \
		copied(g, to, length, flags); \
		return real_move[g](to, from, length, flags); \
	} \
	static void *set_##name(void *to, int byte, size_t length, unsigned flags) \
	{ \
		copied(g, to, length, flags); \
		return real_set[g](to, byte, length, flags); \
	} \
	static void flush_##name(const void *addr, size_t length) \
	{ \
		flushed(g, addr, length); \
		real_flush[g](addr, length); \
	} \
	static void drain_##name(void) \
	{ \
		fenced(); \
		real_drain[g](); \
	}
LOGGED(byte, PMEM2_GRANULARITY_BYTE)
LOGGED(line, PMEM2_GRANULARITY_CACHE_LINE)

static enum pmem2_granularity of(struct pmem2_map *map)
{
	enum pmem2_granularity g = pmem2_map_get_store_granularity(map);
	assert(g < PMEM2_GRANULARITY_PAGE);
	return g;
}

pmem2_memmove_fn __wrap_pmem2_get_memmove_fn(struct pmem2_map *map)
{
	real_move[of(map)] = __real_pmem2_get_memmove_fn(map);
	return of(map) == PMEM2_GRANULARITY_BYTE ? move_byte : move_line;
}

pmem2_memset_fn __wrap_pmem2_get_memset_fn(struct pmem2_map *map)
{
	real_set[of(map)] = __real_pmem2_get_memset_fn(map);
	return of(map) == PMEM2_GRANULARITY_BYTE ? set_byte : set_line;
}

pmem2_flush_fn __wrap_pmem2_get_flush_fn(struct pmem2_map *map)
{
	real_flush[of(map)] = __real_pmem2_get_flush_fn(map);
	return of(map) == PMEM2_GRANULARITY_BYTE ? flush_byte : flush_line;
}

pmem2_drain_fn __wrap_pmem2_get_drain_fn(struct pmem2_map *map)
{
	real_drain[of(map)] = __real_pmem2_get_drain_fn(map);
	return of(map) == PMEM2_GRANULARITY_BYTE ? drain_byte : drain_line;
}

bool __real_guarded_atomic(void *word, const struct atomic *a);
bool __wrap_guarded_atomic(void *word, const struct atomic *a);
bool __wrap_guarded_atomic(void *word, const struct atomic *a)
{
	stored(word, sizeof(uint64_t), granularity == FFI_GRANULARITY_BYTE);
	return __real_guarded_atomic(word, a);
}

/* ---- the kernel ---- */

/* Of a part's file: where in the map its first byte would be; which part is in *part. */
static bool find_file(int fd, int *part)
{
	struct stat st;
	if (fstat(fd, &st) != 0)
		return false;
	for (*part = 0; *part < 2; (*part)++)
		if (inodes[*part] == st.st_ino)
			return true;
	return false;
}

static void wrote(int fd, uint64_t offset, uint64_t length)
{
	int part;
	if (!find_file(fd, &part) || length == 0)
		return;
	uint64_t lo = part == 0 ? 0 : B_OFFSET;
	uint64_t hi = part == 0 ? A_SIZE : B_OFFSET + B_SIZE;
	uint64_t from = offset < lo ? lo : offset;
	uint64_t end = offset + length > hi ? hi : offset + length;
	if (from < end)
		store_states((part == 0 ? 0 : A_SIZE) + from - lo, end - from, UNSYNCED);
	stores++;
}

static void synced(int fd)
{
	int part;
	if (!find_file(fd, &part) || hearing == MISSES_SYNCS)
		return;
	change_states(part == 0 ? 0 : A_SIZE, part == 0 ? A_SIZE : B_SIZE, UNSYNCED, DURABLE);
	syncs++;
}

ssize_t __real_pwrite(int fd, const void *buf, size_t size, off_t offset);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_msync(void *addr, size_t size, int flags);
int __real_fallocate(int fd, int mode, off_t offset, off_t size);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __wrap_msync(void *addr, size_t size, int flags);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t size);

ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset)
{
	ssize_t done = __real_pwrite(fd, buf, size, offset);
	wrote(fd, (uint64_t)offset, done > 0 ? (uint64_t)done : 0);
	return done;
}

/* A hole is news of the file, too: until it is flushed the old bytes may come back. */
int __wrap_fallocate(int fd, int mode, off_t offset, off_t size)
{
	int rc = __real_fallocate(fd, mode, offset, size);
	if (rc == 0 && (mode & FALLOC_FL_PUNCH_HOLE))
		wrote(fd, (uint64_t)offset, (uint64_t)size);
	return rc;
}

int __wrap_fdatasync(int fd)
{
	int rc = __real_fdatasync(fd);
	if (rc == 0)
		synced(fd);
	return rc;
}

int __wrap_fsync(int fd)
{
	int rc = __real_fsync(fd);
	if (rc == 0)
		synced(fd);
	return rc;
}

int __wrap_msync(void *addr, size_t size, int flags)
{
	int rc = __real_msync(addr, size, flags);
	if (rc == 0 && (flags & MS_SYNC) && is_ours(addr) && hearing != MISSES_SYNCS) {
		change_states((uint64_t)(uintptr_t)addr - base, size, UNSYNCED, DURABLE);
		syncs++;
	}
	return rc;
}

/* NOLINTEND(bugprone-reserved-identifier) */

/* ---- the checker ---- */

/* The first byte of the range that was acknowledged too early, or its end. */
static uint64_t early(uint64_t addr, uint64_t length)
{
	pthread_mutex_lock(&lock);
	uint64_t i = addr - base;
	while (i < addr - base + length && states[i] == DURABLE)
		i++;
	pthread_mutex_unlock(&lock);
	return base + i;
}

static void is_durable(uint64_t addr, uint64_t length, const char *after)
{
	uint64_t found = early(addr, length);
	if (found != addr + length)
		fail_msg("after %s of %#lx, %lu bytes: the one at %#lx was %s", after, (unsigned long)addr, (unsigned long)length,
				(unsigned long)found,
				states[found - base] == FLUSHED ? "flushed and not fenced" : "stored and not flushed");
}

/* ---- the calls ---- */

static unsigned char bytes[2 * MIB + 100];

static uint64_t open_set(const struct place *p)
{
	base = 0;
	make_file(p, "a", A_SIZE, 1);
	make_file(p, "b", B_OFFSET + B_SIZE, 2);
	for (int i = 0; i < 2; i++) {
		struct stat st;
		assert_int_equal(stat(path_in(p, i == 0 ? "a" : "b"), &st), 0);
		inodes[i] = st.st_ino;
	}
	uint64_t set = new_set(FFI_COALESCING_FULL, 8 * MIB);
	uint64_t addr = must_map(set, p, "a", (struct ffi_part_spec){.length = A_SIZE}).addr;
	assert_int_equal(must_map(set, p, "b", (struct ffi_part_spec){.offset = B_OFFSET, .length = B_SIZE}).addr, addr + A_SIZE);
	memset(states, DURABLE, sizeof(states));
	storer = pthread_self();
	base = addr;
	return set;
}

static uint32_t write_at(uint64_t set, uint64_t addr, uint64_t length, uint32_t durability)
{
	struct ffi_written written;
	must(ffi_write(set, addr, bytes, length, durability, &written, &err));
	return written.durability;
}

static void persist(uint64_t set, uint64_t addr, uint64_t length, uint32_t durability)
{
	struct ffi_written written;
	must(ffi_persist(set, (uint64_t[]){addr, length}, 1, durability, &written, &err));
	assert_true(written.durability >= FFI_DURABILITY_PERSISTED);
}

/* Small ones as a rule; some cross the seam, some are of several chunks. */
static uint64_t some_range(uint64_t *length)
{
	*length = 1 + chance(chance(20) == 0 ? sizeof(bytes) : 300);
	if (chance(3) == 0) {
		uint64_t before = chance(*length);
		return base + A_SIZE - before - (before + B_SIZE < *length ? *length - B_SIZE - before : 0);
	}
	return base + chance(SIZE - *length + 1);
}

#define OPERATIONS_MAX 6

static void run_batch(uint64_t set, uint32_t durability)
{
	static struct {
		struct batch_header head;
		struct batch_operation operations[OPERATIONS_MAX];
		unsigned char data[OPERATIONS_MAX * 300];
	} body;
	uint32_t count = (uint32_t)(1 + chance(OPERATIONS_MAX));
	uint64_t data = 0;
	body.head = (struct batch_header){.magic = BATCH_MAGIC,
			.version = BATCH_VERSION,
			.durability = (uint8_t)durability,
			.count = count};
	for (uint32_t i = 0; i < count; i++) {
		struct batch_operation *op = &body.operations[i];
		*op = (struct batch_operation){.op = (uint8_t)(BATCH_WRITE + chance(BATCH_XOR - BATCH_WRITE + 1)),
				.length = 1 + chance(300)};
		if (op->op >= BATCH_COMPARE_EXCHANGE) {
			op->addr = base + chance(SIZE / 8) * 8;
			op->length = 8;
			op->argument = chance(1000);
			continue;
		}
		op->addr = base + chance(SIZE - op->length);
		if (op->op == BATCH_WRITE) {
			data += op->length;
		} else if (op->op == BATCH_MEMSET) {
			op->flags = chance(4) == 0 ? BATCH_PUNCH : 0;
			op->argument = op->flags ? 0 : chance(256);
			if (op->flags)
				op->length = 1 + chance(3 * PAGE);
			if (op->addr + op->length > base + SIZE)
				op->addr = base;
		} else if (op->op == BATCH_MEMCPY || op->op == BATCH_MEMMOVE) {
			op->argument = base + chance(SIZE - op->length);
		}
		if (op->op == BATCH_WRITE || op->op == BATCH_MEMSET || op->op == BATCH_MEMCPY || op->op == BATCH_MEMMOVE)
			op->hint = (uint8_t)chance(5);
	}
	uint64_t head = sizeof(body.head) + count * sizeof(body.operations[0]);
	char *whole = malloc(head + data);
	assert_non_null(whole);
	memcpy(whole, &body, head);
	memset(whole + head, 'b', data);
	int64_t size = ffi_batch_check(whole, head + data, &err);
	assert_true(size > 0);
	struct batch_reply *reply = calloc(1, (size_t)size);
	uint64_t failed;
	assert_non_null(reply);
	must(ffi_batch(set, whole, head + data, reply, (uint64_t)size, 0, &failed, &err));
	for (uint32_t i = 0; i < count && reply->durability >= FFI_DURABILITY_PERSISTED; i++)
		is_durable(body.operations[i].addr, body.operations[i].length, "a batch");
	for (uint32_t i = 0; i < count; i++) /* those make their ranges durable whatever the batch asks for the stores */
		if ((body.operations[i].op == BATCH_PERSIST || body.operations[i].op == BATCH_FLUSH) && i + 1 == count)
			is_durable(body.operations[i].addr, body.operations[i].length, "a persist in a batch");
	free(reply);
	free(whole);
}

static void write_many(uint64_t set)
{
	struct ffi_write rows[4] = {{0}};
	static struct pmemset_error errors[4];
	for (int i = 0; i < 4; i++) {
		rows[i] = (struct ffi_write){.set = set, .length = 1 + chance(300), .durability = chance(FFI_DURABILITY_DEEP + 1)};
		rows[i].addr = base + chance(SIZE - rows[i].length);
	}
	assert_int_equal(ffi_write_many(rows, 4, bytes, sizeof(bytes), errors), 0);
	for (int i = 0; i < 4; i++)
		if ((rows[i].reached & 0xff) >= FFI_DURABILITY_PERSISTED)
			is_durable(rows[i].addr, rows[i].length, "one of many writes");
}

static void what_is_acknowledged_was_flushed_and_fenced(void **state)
{
	struct place *p = here(state);
	uint64_t set = open_set(p);
	stores = flushes = fences = syncs = 0;
	for (uint64_t i = scaled(800); i > 0; i--) {
		uint64_t length;
		uint64_t addr = some_range(&length);
		uint32_t durability = (uint32_t)chance(FFI_DURABILITY_DEEP + 1);
		switch (chance(5)) {
		case 0:
			persist(set, addr, length, durability ? durability : FFI_DURABILITY_DEEP);
			is_durable(addr, length, "a persist");
			break;
		case 1:
			run_batch(set, durability);
			break;
		case 2:
			write_many(set);
			break;
		default:
			if (write_at(set, addr, length, durability) >= FFI_DURABILITY_PERSISTED)
				is_durable(addr, length, "a write");
		}
	}
	print_message("%lu stores, %lu flushes and %lu fences of cache lines, %lu flushes of files\n", (unsigned long)stores,
			(unsigned long)flushes, (unsigned long)fences, (unsigned long)syncs);
	assert_true(stores > scaled(800) && (granularity == FFI_GRANULARITY_PAGE ? syncs : fences) > scaled(200));
	/* Whatever was not asked to be durable is, when its part goes. */
	(void)write_at(set, base + A_SIZE + 1, 1000, FFI_DURABILITY_NONE);
	must(remove_range(set, base + A_SIZE, 1));
	is_durable(base + A_SIZE, B_SIZE, "a removal");
	(void)write_at(set, base, 1000, FFI_DURABILITY_NONE);
	delete_set(set);
	is_durable(base, A_SIZE, "a deletion");
	base = 0;
}

/* The checker can fail: it does where nothing was promised, and where it is kept from hearing what it stands on. */
static void a_flush_or_a_fence_that_is_missing_is_found(void **state)
{
	struct place *p = here(state);
	uint64_t set = open_set(p);
	uint64_t addr = base + 1000;
	/* Nobody promises more than the page cache; where there is none, whoever stores fences. */
	(void)write_at(set, addr, 100, FFI_DURABILITY_NONE);
	assert_int_equal(early(addr, 100), granularity == FFI_GRANULARITY_PAGE ? addr : addr + 100);
	persist(set, addr, 100, FFI_DURABILITY_PERSISTED);
	is_durable(addr, 100, "a persist");

	hearing = granularity == FFI_GRANULARITY_PAGE ? MISSES_SYNCS : MISSES_FENCES;
	(void)write_at(set, addr, 100, FFI_DURABILITY_PERSISTED);
	assert_int_equal(early(addr, 100), addr);
	persist(set, addr, 100, FFI_DURABILITY_PERSISTED);
	assert_int_equal(early(addr, 100), addr);
	if (granularity == FFI_GRANULARITY_CACHE_LINE) {
		hearing = MISSES_FLUSHES;
		(void)write_at(set, addr, 100, FFI_DURABILITY_PERSISTED);
		assert_int_equal(early(addr, 100), addr);
		assert_int_equal(states[addr - base], STORED);
	}
	hearing = HEARS;
	persist(set, addr, 100, FFI_DURABILITY_PERSISTED);
	is_durable(addr, 100, "a persist");
	delete_set(set);
	base = 0;
}

#define ON_DISK(test) \
	{ \
#test, test, scene_enter, scene_leave, &places[1] \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
			ON_DISK(what_is_acknowledged_was_flushed_and_fenced),
			ON_DISK(a_flush_or_a_fence_that_is_missing_is_found),
	};
	if (argc > 1)
		granularity = strcmp(argv[1], "byte") == 0 ? FFI_GRANULARITY_BYTE : FFI_GRANULARITY_CACHE_LINE;
	return RUN("order", tests, granularity == FFI_GRANULARITY_PAGE ? FFI_GRANULARITY_UNSET : granularity);
}
