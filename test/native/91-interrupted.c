/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * System calls that a signal interrupts are made again; a directory that cannot be synced takes the file's name away again; what others
 * do in the middle of a call is theirs. The engine's calls lead here (--wrap).
 */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum call { FSYNC, FDATASYNC, MSYNC, FALLOCATE, FTRUNCATE, PWRITE, CALLS };
static struct {
	unsigned left, met;
} interruptions[CALLS];
static int directory_error; /* of an fsync of one */
static int truncate_error;
static bool no_unnamed, no_exchange; /* a file system without O_TMPFILE, without RENAME_EXCHANGE */
static void (*before_fallocate)(void);
static void (*after_fallocate)(void);

static bool is_interrupted(enum call call)
{
	if (interruptions[call].left == 0)
		return false;
	interruptions[call].left--;
	interruptions[call].met++;
	errno = EINTR;
	return true;
}

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
int __real_fsync(int fd);
int __real_fdatasync(int fd);
int __real_msync(void *addr, size_t size, int flags);
int __real_fallocate(int fd, int mode, off_t offset, off_t size);
int __real_ftruncate(int fd, off_t size);
ssize_t __real_pwrite(int fd, const void *buf, size_t size, off_t offset);
int __real_openat(int dir, const char *path, int flags, mode_t mode);
int __real_renameat2(int old_dir, const char *old, int dir, const char *name, unsigned flags);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_msync(void *addr, size_t size, int flags);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t size);
int __wrap_ftruncate(int fd, off_t size);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset);
int __wrap_openat(int dir, const char *path, int flags, mode_t mode);
int __wrap_renameat2(int old_dir, const char *old, int dir, const char *name, unsigned flags);

int __wrap_fsync(int fd)
{
	struct stat st;
	if (directory_error != 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
		errno = directory_error;
		return -1;
	}
	return is_interrupted(FSYNC) ? -1 : __real_fsync(fd);
}

int __wrap_fdatasync(int fd)
{
	return is_interrupted(FDATASYNC) ? -1 : __real_fdatasync(fd);
}

int __wrap_msync(void *addr, size_t size, int flags)
{
	return is_interrupted(MSYNC) ? -1 : __real_msync(addr, size, flags);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t size)
{
	if (before_fallocate != NULL)
		before_fallocate();
	int rc = is_interrupted(FALLOCATE) ? -1 : __real_fallocate(fd, mode, offset, size);
	if (rc == 0 && after_fallocate != NULL)
		after_fallocate();
	return rc;
}

int __wrap_ftruncate(int fd, off_t size)
{
	if (truncate_error != 0) {
		errno = truncate_error;
		return -1;
	}
	return is_interrupted(FTRUNCATE) ? -1 : __real_ftruncate(fd, size);
}

ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset)
{
	return is_interrupted(PWRITE) ? -1 : __real_pwrite(fd, buf, size, offset);
}

int __wrap_openat(int dir, const char *path, int flags, mode_t mode)
{
	if (no_unnamed && (flags & O_TMPFILE) == O_TMPFILE) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return __real_openat(dir, path, flags, mode);
}

int __wrap_renameat2(int old_dir, const char *old, int dir, const char *name, unsigned flags)
{
	if (no_exchange && (flags & RENAME_EXCHANGE)) {
		errno = EINVAL;
		return -1;
	}
	return __real_renameat2(old_dir, old, dir, name, flags);
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* From now on each of them, twice. */
static void interrupt(void)
{
	for (enum call call = 0; call < CALLS; call++)
		interruptions[call].left = 2;
}

/* It was, and nobody took it for an answer. */
static void met(enum call call)
{
	assert_int_equal(interruptions[call].met, 2);
	memset(interruptions, 0, sizeof(interruptions));
}

static void calls_are_made_again(void **state)
{
	struct place *p = here(state);
	struct ffi_written w;
	uint64_t ranges[2 * 16];
	char bytes[64] = "bytes";
	make_file(p, "a", 4 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	const struct ffi_part_spec spec = {.length = 16 * PAGE, .grow = 1, .create = FFI_CREATE_IF_NEEDED, .mode = 0600};
	interrupt();
	uint64_t addr = must_map(set, p, "a", spec).addr;
	assert_int_equal(file_size(p, "a"), 16 * PAGE);
	met(FALLOCATE);
	interrupt();
	(void)must_map(set, p, "new", spec);
	met(FSYNC);
	for (uint64_t i = 0; i < 16; i++)
		memcpy(&ranges[2 * i], (uint64_t[]){addr + i * PAGE, 10}, 2 * sizeof(*ranges));
	interrupt();
	must(ffi_write(set, addr + 3, bytes, sizeof(bytes), FFI_DURABILITY_NONE, &w, &err));
	assert_int_equal(w.bytes, sizeof(bytes));
	met(PWRITE);
	interrupt();
	must(ffi_persist(set, ranges, 1, FFI_DURABILITY_PERSISTED, &w, &err));
	met(MSYNC);
	interrupt();
	must(remove_range(set, addr, 1));
	met(FDATASYNC);
	delete_set(set);
}

/* Growth that is taken back: the granularity is not to be had, which is found out late. */
static void undoing_is_made_again(void **state)
{
	struct place *p = here(state);
	struct ffi_part part;
	const struct ffi_set_spec spec = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_BYTE,
			.granularity = FFI_GRANULARITY_UNSET};
	uint64_t set;
	make_file(p, "a", PAGE, 1);
	must(ffi_set_new(&spec, &set, &err));
	char *before = world(set, p);
	interrupt();
	fails(map(set, p, "a", (struct ffi_part_spec){.length = 16 * PAGE, .grow = 1}, &part), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	met(FTRUNCATE);
	same_world(before, set, p);

	/* It cannot be undone: that is for whoever reads the log. */
	truncate_error = EIO;
	fails(map(set, p, "a", (struct ffi_part_spec){.length = 16 * PAGE, .grow = 1}, &part), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	truncate_error = 0;
	assert_non_null(strstr(err.message, "cannot be cut"));
	assert_int_equal(file_size(p, "a"), 16 * PAGE);
	delete_set(set);
}

static struct place small; /* of 4 MiB */
static uint64_t beside;	   /* a set */

static void grow_another(void)
{
	struct ffi_part part;
	const struct ffi_part_spec spec = {.length = 2 * MIB, .grow = 1, .keep_free = MIB, .create = FFI_CREATE_IF_NEEDED};
	before_fallocate = NULL;
	fails(map(beside, &small, "b", spec, &part), PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	assert_true(err.value <= MIB);
	/* There is room for this one beside the other. */
	(void)must_map(beside, &small, "c", (struct ffi_part_spec){.length = MIB / 2, .keep_free = MIB, .create = FFI_CREATE_IF_NEEDED});
}

/* Each alone would leave enough free, and both together not; the first is let through and has no space yet when the second asks. */
static void growth_beside_growth(void **state)
{
	struct place *p = here(state);
	mounting();
	small = (struct place){.name = "small"};
	(void)snprintf(small.dir, sizeof(small.dir), "%s", path_in(p, "mnt"));
	assert_int_equal(mkdir(small.dir, 0700), 0);
	assert_int_equal(mount("none", small.dir, "tmpfs", 0, "size=4m"), 0);
	must(ffi_volume_open(small.dir, &small.volume, &err));
	uint64_t set = new_set(FFI_COALESCING_NONE, 4 * MIB);
	beside = new_set(FFI_COALESCING_NONE, 4 * MIB);
	before_fallocate = grow_another;
	(void)must_map(set, &small, "a", (struct ffi_part_spec){.length = 2 * MIB, .keep_free = MIB, .create = FFI_CREATE_IF_NEEDED});
	assert_null(before_fallocate);
	delete_set(set);
	delete_set(beside);
	must(ffi_volume_close(small.volume));
	assert_int_equal(umount(small.dir), 0);
}

static uint64_t shortened, end_of_it; /* a set, and the end of its part */

static void write_at_the_end(void)
{
	struct ffi_written w;
	must(ffi_write(shortened, end_of_it - 5, "bytes", 5, FFI_DURABILITY_PERSISTED, &w, &err));
}

/*
 * Somebody shortens a file beneath a part, and growth for another one gives the part its bytes back. What it writes there, and is told to
 * be durable, stays, though the other one's map fails.
 */
static void growth_that_another_part_relies_on(void **state)
{
	struct place *p = here(state);
	struct ffi_part part;
	char bytes[5];
	const struct ffi_set_spec spec = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_BYTE,
			.granularity = FFI_GRANULARITY_UNSET};
	uint64_t set;
	make_file(p, "a", 8 * PAGE, 1);
	must(ffi_set_new(&spec, &set, &err));
	shortened = new_set(FFI_COALESCING_NONE, 2 * MIB);
	end_of_it = must_map(shortened, p, "a", (struct ffi_part_spec){.length = 8 * PAGE}).addr + 8 * PAGE;
	assert_int_equal(truncate(path_in(p, "a"), (off_t)(4 * PAGE)), 0);
	after_fallocate = write_at_the_end;
	int rc = map(set, p, "a", (struct ffi_part_spec){.length = 12 * PAGE, .grow = 1}, &part);
	after_fallocate = NULL;
	must_be(rc, PMEMSET_E_GRANULARITY_NOT_SUPPORTED, "the map", __FILE__, __LINE__);
	must(ffi_read(shortened, end_of_it - sizeof(bytes), bytes, sizeof(bytes), 0, &err));
	assert_memory_equal(bytes, "bytes", sizeof(bytes));
	/* Nobody relies on what is behind that: it is taken back as ever. */
	uint64_t size = file_size(p, "a");
	fails(map(set, p, "a", (struct ffi_part_spec){.length = size + PAGE, .grow = 1}, &part), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	assert_int_equal(file_size(p, "a"), size);
	delete_set(shortened);
	delete_set(set);
}

static void a_name_that_does_not_last(void **state)
{
	struct place *p = here(state);
	struct ffi_part part;
	make_file(p, "old", 2 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	for (uint32_t i = 0; i < 6; i++) {
		uint32_t create = FFI_CREATE_IF_NEEDED + i % 3;
		no_unnamed = i >= 3;
		char *before = world(set, p);
		directory_error = EIO;
		fails(map(set, p, create == FFI_CREATE_ALWAYS ? "old" : "new",
				      (struct ffi_part_spec){.length = PAGE, .create = create, .mode = 0600}, &part),
				-EIO);
		directory_error = 0;
		same_world(before, set, p);
	}
	/* Where there is no way back to the old file, the new one stays as it was to be. */
	no_exchange = true;
	for (int i = 0; i < 2; i++) {
		no_unnamed = i == 0;
		directory_error = EIO;
		fails(map(set, p, "old", (struct ffi_part_spec){.length = (3 + (uint64_t)i) * PAGE, .create = FFI_CREATE_ALWAYS}, &part),
				-EIO);
		directory_error = 0;
		assert_int_equal(file_size(p, "old"), (3 + (uint64_t)i) * PAGE);
	}
	no_unnamed = no_exchange = false;
	delete_set(set);
}

/* On every kind of file system a file is made, made anew, and found, and nothing stays beside it. */
static void names_where_calls_are_missing(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	for (int i = 0; i < 4; i++) {
		no_unnamed = i % 2;
		no_exchange = i / 2;
		must(remove_range(set, must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_ALWAYS}).addr, 1));
		must_map(set, p, "b", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_EXCLUSIVE, .mode = 0600});
		must(remove_range(set, info_of(set).window_addr, 2 * MIB));
		assert_int_equal(unlink(path_in(p, "b")), 0);
	}
	no_unnamed = no_exchange = false;
	delete_set(set);
}

static void die(void)
{
	(void)kill(getpid(), SIGKILL);
}

/* Killed with the file made and its space taken. */
static void a_crash_leaves_nothing(void **state)
{
	struct place *p = here(state);
	make_file(p, "old", PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	char *before = world(set, p);
	for (uint32_t create = FFI_CREATE_IF_NEEDED; create <= FFI_CREATE_ALWAYS; create++) {
		(void)fflush(NULL);
		pid_t child = fork();
		if (child == 0) {
			struct ffi_part part;
			after_fallocate = die;
			(void)map(set, p, create == FFI_CREATE_ALWAYS ? "old" : "new",
					(struct ffi_part_spec){.length = 4 * PAGE, .create = create}, &part);
			_exit(0);
		}
		int status = 0;
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
	same_world(before, set, p);
	delete_set(set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(calls_are_made_again),
			ON_EACH(undoing_is_made_again),
			ON_EACH(growth_that_another_part_relies_on),
			{"growth_beside_growth", growth_beside_growth, scene_enter, scene_leave, &places[0]},
			ON_EACH(a_name_that_does_not_last),
			ON_EACH(names_where_calls_are_missing),
			ON_EACH(a_crash_leaves_nothing),
	};
	return RUN("interrupted", tests, FFI_GRANULARITY_UNSET);
}
