/* SPDX-License-Identifier: BSD-3-Clause */
/* The arena, the windows carved from it, and what is mapped into them. */
#include "scene.h"

#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

static int file_in(const struct place *p, const char *name, int flags)
{
	int fd = open(path_in(p, name), flags | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static struct window *open_window(struct window *w, uint64_t size)
{
	must(window_open(w, size, &err));
	return w;
}

/* ---- the arena ---- */

static void reserved_once(void **state)
{
	(void)state;
	struct arena before = *arena();
	char *then = world(0, NULL);
	fails(arena_start(0, 0, 0, &err), -EALREADY);
	struct ffi_engine_spec spec = {.simulate = FFI_GRANULARITY_UNSET, .arena_base = before.base + before.size};
	fails(ffi_engine_start(&spec, &err), -EALREADY);
	spec.simulate = FFI_GRANULARITY_UNSET + 1;
	fails(ffi_engine_start(&spec, &err), -EINVAL);
	assert_memory_equal(&before, arena(), sizeof(before));
	same_world(then, 0, NULL);
}

static void told_by_info(void **state)
{
	(void)state;
	struct ffi_engine_info info;
	ffi_engine_info(&info);
	assert_int_equal(info.arena_base, arena()->base);
	assert_int_equal(info.arena_size, arena()->size);
	assert_int_equal(info.page_size, PAGE);
	assert_int_equal(info.mappings, 0);
	assert_true(info.mappings_max > 0);
	assert_int_equal(info.mappings_max, mappings_max());
	assert_int_equal(info.addresses_stable, arena()->as_asked);
	assert_int_equal(info.simulate, FFI_GRANULARITY_UNSET);
	assert_true(strlen(info.libpmem2) > 0);
}

static void fenced_whole(void **state)
{
	(void)state;
	covered(arena()->base, arena()->size, "---p");
	assert_int_equal(arena_mappings(), 1);
	assert_false(arena_holds(arena()->base - 1));
	assert_true(arena_holds(arena()->base));
	assert_true(arena_holds(arena()->base + arena()->size - 1));
	assert_false(arena_holds(arena()->base + arena()->size));
	assert_false(arena_holds(0));
	assert_false(arena_holds(UINT64_MAX));
}

/* Runs in a child, which has an engine that was not started: the parent's arena is not in a fork. */
static int in_child(int (*what)(void))
{
	(void)fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(what());
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int arena_is_not_inherited(void)
{
	unsigned char resident;
	errno = 0;
	return mincore(at(arena()->base), 1, &resident) != 0 && errno == ENOMEM ? 0 : 1;
}

static void kept_out_of_forks(void **state)
{
	(void)state;
	assert_int_equal(in_child(arena_is_not_inherited), 0);
}

/* ---- windows ---- */

static void lowest_first(void **state)
{
	(void)state;
	struct window w[4];
	uint64_t base = arena()->base;
	assert_int_equal(open_window(&w[0], 1)->addr, base);
	assert_int_equal(w[0].size, WINDOW_ALIGNMENT);
	assert_int_equal(open_window(&w[1], 3 * WINDOW_ALIGNMENT)->addr, base + WINDOW_ALIGNMENT);
	assert_int_equal(open_window(&w[2], WINDOW_ALIGNMENT + 1)->addr, base + 4 * WINDOW_ALIGNMENT);
	assert_int_equal(w[2].size, 2 * WINDOW_ALIGNMENT);
	window_close(&w[1]);
	/* Too large for the hole, then just as large, then what is left of it. */
	assert_int_equal(open_window(&w[3], 4 * WINDOW_ALIGNMENT)->addr, base + 6 * WINDOW_ALIGNMENT);
	window_close(&w[3]);
	assert_int_equal(open_window(&w[1], 2 * WINDOW_ALIGNMENT)->addr, base + WINDOW_ALIGNMENT);
	assert_int_equal(open_window(&w[3], WINDOW_ALIGNMENT)->addr, base + 3 * WINDOW_ALIGNMENT);
	for (int i = 0; i < 4; i++)
		window_close(&w[i]);
	assert_int_equal(open_window(&w[0], WINDOW_ALIGNMENT)->addr, base);
	window_close(&w[0]);
}

static void no_room(uint64_t size, uint64_t largest)
{
	struct window w;
	memset(&err, 0, sizeof(err));
	fails(window_open(&w, size, &err), -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_WINDOWS);
	assert_int_equal(err.value, largest);
	/* The same through the face, where the set is not made. */
	const struct ffi_set_spec spec = {.window_size = size,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET};
	uint64_t set = 1;
	fails(ffi_set_new(&spec, &set, &err), -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_WINDOWS);
	assert_int_equal(err.value, largest);
	assert_int_equal(set, 0);
}

static void full(void **state)
{
	(void)state;
	struct window all, rest;
	uint64_t size = arena()->size;
	no_room(size + 1, size);
	no_room(UINT64_MAX, size);
	no_room(0, size);
	open_window(&all, size - 3 * WINDOW_ALIGNMENT);
	no_room(4 * WINDOW_ALIGNMENT, 3 * WINDOW_ALIGNMENT);
	no_room(size, 3 * WINDOW_ALIGNMENT);
	no_room(UINT64_MAX, 3 * WINDOW_ALIGNMENT);
	open_window(&rest, 3 * WINDOW_ALIGNMENT);
	no_room(1, 0);
	window_close(&all);
	no_room(size, size - 3 * WINDOW_ALIGNMENT);
	window_close(&rest);
	open_window(&all, size);
	window_close(&all);
}

/* ---- mapping into a window ---- */

static void mapped_and_fenced_again(void **state)
{
	struct place *p = here(state);
	struct window w;
	make_file(p, "a", 3 * PAGE, 7);
	int fd = file_in(p, "a", O_RDWR);
	open_window(&w, WINDOW_ALIGNMENT);
	uint64_t addr = w.addr + 4 * PAGE;
	assert_int_equal(window_map(addr, 2 * PAGE, fd, PAGE, MAP_SHARED), 0);
	const unsigned char *bytes = at(addr);
	assert_int_equal(bytes[0], byte_of(7, PAGE));
	assert_int_equal(bytes[2 * PAGE - 1], byte_of(7, 3 * PAGE - 1));
	assert_int_equal(arena_mappings(), 3);
	covered(addr, 2 * PAGE, "rw-s");
	assert_int_equal(in_child(arena_is_not_inherited), 0);
	assert_int_equal(window_unmap(addr, 2 * PAGE), 0);
	covered(w.addr, w.size, "---p");
	assert_int_equal(arena_mappings(), 1); /* the fences are alike, so they have merged */
	window_close(&w);
	assert_int_equal(close(fd), 0);
}

/* Between two parts, so that a hole would have two edges. */
static void refused_map(const struct place *p, int flags, int fd, int why)
{
	struct window w;
	int good = file_in(p, "a", O_RDWR);
	open_window(&w, WINDOW_ALIGNMENT);
	assert_int_equal(window_map(w.addr, PAGE, good, 0, MAP_SHARED), 0);
	assert_int_equal(window_map(w.addr + 3 * PAGE, PAGE, good, 0, MAP_SHARED), 0);
	char *before = world(0, p);
	assert_int_equal(window_map(w.addr + PAGE, 2 * PAGE, fd, 0, flags), why);
	same_world(before, 0, p);
	covered(w.addr, w.size, NULL);
	covered(w.addr + PAGE, 2 * PAGE, "---p");
	assert_int_equal(window_unmap(w.addr, 4 * PAGE), 0);
	window_close(&w);
	assert_int_equal(close(good), 0);
}

static void refused_maps_leave_no_gap(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 1);
	int reader = file_in(p, "a", O_RDONLY);
	int writer = file_in(p, "a", O_RDWR);
	refused_map(p, MAP_SHARED, reader, EACCES);
	refused_map(p, MAP_SHARED, -1, EBADF);
	/* valgrind does not know that a fence can be torn down so, and refuses another one in its place. */
	if (!under_valgrind() && mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, writer, 0) == MAP_FAILED)
		refused_map(p, MAP_SHARED_VALIDATE | MAP_SYNC, writer, errno); /* where this is no DAX; ext4 tears the fence down first */
	assert_int_equal(close(reader), 0);
	assert_int_equal(close(writer), 0);
}

/* What is in a range can be looked at also when the process has no descriptor left: nothing is lost for that. */
static void refused_without_a_descriptor(void **state)
{
	struct place *p = here(state);
	struct window w;
	struct rlimit before;
	make_file(p, "a", 4 * PAGE, 1);
	int reader = file_in(p, "a", O_RDONLY);
	open_window(&w, WINDOW_ALIGNMENT);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	const struct rlimit none = {.rlim_cur = 0, .rlim_max = before.rlim_max};
	for (int i = 0; i < 2; i++) {
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
		int rc = window_map(w.addr, PAGE, i ? reader : -1, 0, MAP_SHARED);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
		assert_int_equal(rc, i ? EACCES : EBADF);
	}
	covered(w.addr, w.size, "---p");
	window_close(&w);
	assert_int_equal(close(reader), 0);
}

/* ---- the count of kernel mappings ---- */

static void counted(void **state)
{
	(void)state;
	int64_t limit = (int64_t)mappings_max();
	assert_true(limit > 1000);
	must(mappings_take(limit - 1, &err));
	assert_int_equal(mappings_used(), limit - 1);
	fails(mappings_take(2, &err), -ENOMEM);
	assert_int_equal(err.reason, PMEMSET_REASON_LIMIT_MAPPINGS);
	assert_int_equal(err.value, limit);
	assert_int_equal(mappings_used(), limit - 1);
	must(mappings_take(1, &err));
	fails(mappings_take(1, &err), -ENOMEM);
	must(mappings_take(0, &err));
	must(mappings_take(-limit, &err));
	assert_int_equal(mappings_used(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ONCE(reserved_once),
			ONCE(told_by_info),
			ONCE(fenced_whole),
			ONCE(kept_out_of_forks),
			ONCE(lowest_first),
			ONCE(full),
			ON_EACH(mapped_and_fenced_again),
			ON_EACH(refused_maps_leave_no_gap),
			ON_EACH(refused_without_a_descriptor),
			ONCE(counted),
	};
	return RUN("window", tests, FFI_GRANULARITY_UNSET);
}
