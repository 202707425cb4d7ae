/* SPDX-License-Identifier: BSD-3-Clause */
#include "window.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>

#ifdef __SANITIZE_THREAD__
/* It ends the process at an address that is not below 512 GiB, or where executables and libraries are. */
#define ARENA_BASE UINT64_C(0x800000000)
#define ARENA_SIZE UINT64_C(0x7000000000)
#else
#define ARENA_BASE UINT64_C(0x400000000000)
#define ARENA_SIZE UINT64_C(0x150000000000)
#endif
#define GIB (UINT64_C(1) << 30)

/* Left to the rest of the process: heap, stacks, libraries, V8. */
#define MAPPINGS_HEADROOM 8192
#define MAX_MAP_COUNT_DEFAULT 65530

static struct arena the_arena;
static pthread_mutex_t windows_lock = PTHREAD_MUTEX_INITIALIZER;
static struct window *windows;
static struct window *adopted;
static _Atomic int64_t mappings;
static int64_t mappings_limit;
static FILE *maps; /* /proc/self/maps, from the start on: when it is needed, there may be no descriptor left */

static const int fence_flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

static void *at(uint64_t addr)
{
	return (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers on the wire and in the catalog */
}

/* Neither core dumps nor forks take a fence along; the same on every one, or neighbours would not merge. */
static void keep_out(uint64_t addr, uint64_t size)
{
	(void)madvise(at(addr), size, MADV_DONTDUMP);
	(void)madvise(at(addr), size, MADV_DONTFORK);
}

static bool reserve(uint64_t base, uint64_t size)
{
	void *got = mmap(at(base), size, PROT_NONE, fence_flags | MAP_FIXED_NOREPLACE, -1, 0);
	if (got == MAP_FAILED)
		return false;
	if (got != at(base)) { /* a kernel before 4.17 took the address as a hint */
		(void)munmap(got, size);
		errno = EEXIST;
		return false;
	}
	return true;
}

static int64_t kernel_limit(void)
{
	int64_t limit = MAX_MAP_COUNT_DEFAULT;
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	if (file != NULL) {
		if (fscanf(file, "%" SCNd64, &limit) != 1)
			limit = MAX_MAP_COUNT_DEFAULT;
		(void)fclose(file);
	}
	return limit > 2 * MAPPINGS_HEADROOM ? limit - MAPPINGS_HEADROOM : limit / 2;
}

int arena_start(uint64_t base, uint64_t size, uint64_t limit, struct pmemset_error *e)
{
	static atomic_flag started = ATOMIC_FLAG_INIT;
	if (atomic_flag_test_and_set(&started))
		return error_set(e, -EALREADY, "the arena is reserved already");

	base = base ? base : ARENA_BASE;
	size = size ? size : ARENA_SIZE;
	int64_t kernels = kernel_limit();
	mappings_limit = limit > 0 && limit < (uint64_t)kernels ? (int64_t)limit : kernels;

	uint64_t asked = base;
	uint64_t asked_size = size;
	while (!reserve(base, size)) {
		int why = errno;
		struct rlimit as;
		if (getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY && as.rlim_cur < asked_size + (UINT64_C(1) << 32)) {
			atomic_flag_clear(&started);
			return error_sys(e, -ENOMEM, why,
					"an arena of %" PRIu64 " bytes does not fit into RLIMIT_AS (ulimit -v), which is %" PRIu64,
					asked_size, (uint64_t)as.rlim_cur);
		}
		/* A narrower address space (39 or 42 bits) or a neighbour: lower, and smaller. */
		base = base / 2 / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
		size = size / 2 / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
		if (size < 4 * GIB) {
			atomic_flag_clear(&started);
			return error_sys(e, -ENOMEM, why, "no arena of 4 GiB or more at or below %#" PRIx64, asked);
		}
	}
	keep_out(base, size);
	maps = fopen("/proc/self/maps", "re");
	the_arena = (struct arena){.base = base, .size = size, .as_asked = base == asked && size == asked_size};
	return 0;
}

const struct arena *arena(void)
{
	return &the_arena;
}

bool arena_holds(uint64_t addr)
{
	return addr - the_arena.base < the_arena.size;
}

int window_open(struct window *w, uint64_t size, struct pmemset_error *e)
{
	uint64_t largest = 0;
	/* A size that is no size, or that would wrap when it is rounded up, fits into no gap; the gap is found out all the same. */
	bool possible = size > 0 && size <= the_arena.size;
	uint64_t rounded = possible ? (size + WINDOW_ALIGNMENT - 1) / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT : 0;
	pthread_mutex_lock(&windows_lock);
	uint64_t from = the_arena.base;
	for (struct window **link = &windows;; link = &(*link)->next) {
		uint64_t to = *link ? (*link)->addr : the_arena.base + the_arena.size;
		if (possible && to - from >= rounded) {
			*w = (struct window){.addr = from, .size = rounded, .next = *link};
			*link = w;
			pthread_mutex_unlock(&windows_lock);
			return 0;
		}
		largest = to - from > largest ? to - from : largest;
		if (*link == NULL)
			break;
		from = (*link)->addr + (*link)->size;
	}
	pthread_mutex_unlock(&windows_lock);
	error_set(e, -ENOMEM, "no room for a window of %" PRIu64 " bytes", size);
	e->reason = PMEMSET_REASON_LIMIT_WINDOWS;
	e->value = largest;
	return -ENOMEM;
}

static int taken(uint64_t addr, const char *why, struct pmemset_error *e)
{
	error_set(e, -EBUSY, "no window can be at %#" PRIx64 ": %s", addr, why);
	e->reason = PMEMSET_REASON_WINDOW_TAKEN;
	return -EBUSY;
}

int window_open_at(struct window *w, uint64_t addr, uint64_t size, struct pmemset_error *e)
{
	uint64_t base = the_arena.base;
	if (addr < base || size == 0 || size > the_arena.size || addr - base > the_arena.size - size)
		return taken(addr, "it would not lie in the arena", e);
	uint64_t rounded = (size + WINDOW_ALIGNMENT - 1) / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
	if (addr % WINDOW_ALIGNMENT != 0 || rounded > the_arena.size - (addr - base))
		return taken(addr, "windows are aligned", e);
	pthread_mutex_lock(&windows_lock);
	struct window **link = &windows;
	while (*link != NULL && (*link)->addr + (*link)->size <= addr)
		link = &(*link)->next;
	bool is_free = *link == NULL || addr + rounded <= (*link)->addr;
	if (is_free) {
		*w = (struct window){.addr = addr, .size = rounded, .next = *link};
		*link = w;
	}
	pthread_mutex_unlock(&windows_lock);
	return is_free ? 0 : taken(addr, "another set has some of it", e);
}

int window_adopt(struct window *w, uint64_t addr, uint64_t size, struct pmemset_error *e)
{
	int rc = 0;
	pthread_mutex_lock(&windows_lock);
	for (const struct window *other = adopted; other != NULL && rc == 0; other = other->next)
		if (addr < other->addr + other->size && other->addr < addr + size)
			rc = error_set(e, -EBUSY, "a set has the reservation at %#" PRIx64 " already", other->addr);
	if (rc == 0) {
		*w = (struct window){.addr = addr, .size = size, .next = adopted};
		adopted = w;
	}
	pthread_mutex_unlock(&windows_lock);
	return rc;
}

static void unlink_window(struct window **link, const struct window *w)
{
	for (; *link != NULL; link = &(*link)->next) {
		if (*link == w) {
			*link = w->next;
			break;
		}
	}
}

void window_close(struct window *w)
{
	pthread_mutex_lock(&windows_lock);
	unlink_window(&windows, w);
	unlink_window(&adopted, w);
	pthread_mutex_unlock(&windows_lock);
}

/* Whether the range is in the arena, or in a window that was adopted. */
static bool is_ours(uint64_t addr, uint64_t size)
{
	if (arena_holds(addr) && arena_holds(addr + size - 1))
		return true;
	bool found = false;
	pthread_mutex_lock(&windows_lock);
	for (const struct window *w = adopted; w != NULL && !found; w = w->next)
		found = addr - w->addr < w->size && size <= w->size - (addr - w->addr);
	pthread_mutex_unlock(&windows_lock);
	return found;
}

bool window_is_fenced(uint64_t addr, uint64_t size)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	if (maps == NULL)
		return false;
	pthread_mutex_lock(&lock);
	(void)fflush(maps); /* what was read the last time */
	rewind(maps);
	uint64_t from, to;
	uint64_t reached = addr;
	char permissions[5];
	unsigned long inode;
	while (reached < addr + size &&
			fscanf(maps, "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %lu%*[^\n]", &from, &to, permissions, &inode) == 4) {
		if (to <= reached)
			continue;
		if (from > reached || permissions[0] != '-' || permissions[1] != '-' || inode != 0)
			break;
		reached = to;
	}
	pthread_mutex_unlock(&lock);
	return reached >= addr + size;
}

/*
 * Fence a range where nothing is mapped. A MAP_FIXED that fails late has torn down what was there already, and leaves a hole where
 * another thread's mmap may land; so with NOREPLACE, which fills the hole, or fails.
 */
static bool fence_again(uint64_t addr, uint64_t size)
{
	if (mmap(at(addr), size, PROT_NONE, fence_flags | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
		return false;
	keep_out(addr, size);
	return true;
}

int window_map(uint64_t addr, uint64_t size, int fd, uint64_t offset, int flags)
{
	assert(is_ours(addr, size));
	if (mmap(at(addr), size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, (off_t)offset) != MAP_FAILED)
		return 0;
	int why = errno;
	/* Where nothing was torn down, the old fence stands, and a new one finds it in its way. */
	return fence_again(addr, size) || window_is_fenced(addr, size) ? why : -1;
}

void window_hide(uint64_t addr, uint64_t size, bool forks)
{
	(void)madvise(at(addr), size, MADV_DONTDUMP);
	if (!forks)
		(void)madvise(at(addr), size, MADV_DONTFORK);
}

int window_unmap(uint64_t addr, uint64_t size)
{
	assert(is_ours(addr, size));
	if (mmap(at(addr), size, PROT_NONE, fence_flags | MAP_FIXED, -1, 0) == MAP_FAILED) {
		int why = errno;
		return fence_again(addr, size) ? 0 : why;
	}
	keep_out(addr, size);
	return 0;
}

int mappings_take(int64_t delta, struct pmemset_error *e)
{
	int64_t after = atomic_fetch_add(&mappings, delta) + delta;
	if (delta <= 0 || after <= mappings_limit)
		return 0;
	atomic_fetch_sub(&mappings, delta);
	error_set(e, -ENOMEM, "%" PRId64 " kernel mappings are in use, of %" PRId64 "; vm.max_map_count sets the limit", after - delta,
			mappings_limit);
	e->reason = PMEMSET_REASON_LIMIT_MAPPINGS;
	e->value = (uint64_t)mappings_limit;
	return -ENOMEM;
}

uint64_t mappings_used(void)
{
	int64_t now = atomic_load(&mappings);
	return now > 0 ? (uint64_t)now : 0;
}

uint64_t mappings_max(void)
{
	return (uint64_t)mappings_limit;
}
