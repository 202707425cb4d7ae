/* SPDX-License-Identifier: BSD-3-Clause */
/* The service's own directory: who has it, whether it can be kept, and room for it. */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- locks ---- */

static const char *lock_path(const struct place *p)
{
	return path_in(p, "lock");
}

static void is_held_by(const struct place *p, pid_t pid)
{
	uint64_t lock = 7;
	fails(ffi_lock(lock_path(p), &lock, &err), -EAGAIN);
	assert_int_equal(lock, 0);
	assert_int_equal(err.value, pid);
}

static uint64_t must_lock(const struct place *p)
{
	uint64_t lock = 0;
	must(ffi_lock(lock_path(p), &lock, &err));
	assert_true(lock != 0);
	return lock;
}

/* What a child finds: 0 it is free, 1 it is the parent's, 2 something else. */
static int as_a_child(const struct place *p)
{
	(void)fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		uint64_t lock;
		struct pmemset_error e;
		int rc = ffi_lock(lock_path(p), &lock, &e);
		_exit(rc == 0 ? 0 : rc == -EAGAIN && e.value == (uint64_t)getppid() ? 1 : 2);
	}
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void one_has_it(void **state)
{
	struct place *p = here(state);
	struct stat st;
	char text[32] = {0};
	char wanted[32];
	uint64_t lock = must_lock(p);
	is_held_by(p, getpid());
	assert_int_equal(as_a_child(p), 1);
	assert_int_equal(stat(lock_path(p), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	(void)snprintf(wanted, sizeof(wanted), "%ld\n", (long)getpid());
	read_file(p, "lock", 0, text, (size_t)st.st_size);
	assert_string_equal(text, wanted);
	must(ffi_unlock(lock));
	fails(ffi_unlock(lock), -EBADF);
	assert_int_equal(as_a_child(p), 0);
	/* What an old holder left in it, longer than what comes now, is gone. */
	int fd = open(lock_path(p), O_WRONLY | O_CLOEXEC);
	assert_int_equal(write(fd, "123456789012345678901234567890", 30), 30);
	assert_int_equal(close(fd), 0);
	lock = must_lock(p);
	is_held_by(p, getpid());
	must(ffi_unlock(lock));
}

/* Locks of processes are lost when anybody of them closes the file; these are not. */
static void closing_the_file_loses_nothing(void **state)
{
	struct place *p = here(state);
	uint64_t lock = must_lock(p);
	int fd = open(lock_path(p), O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(close(fd), 0);
	is_held_by(p, getpid());
	assert_int_equal(as_a_child(p), 1);
	/* Nor when a child that has inherited it ends, or lets go of what is not its own. */
	pid_t child = fork();
	if (child == 0) {
		for (int i = 3; i < 256; i++)
			(void)close(i);
		_exit(0);
	}
	assert_int_equal(waitpid(child, NULL, 0), child);
	is_held_by(p, getpid());
	assert_int_equal(as_a_child(p), 1);
	must(ffi_unlock(lock));
	assert_int_equal(as_a_child(p), 0);
}

/* Let go of while a child has inherited it, it is free all the same. */
static void a_child_does_not_keep_it(void **state)
{
	struct place *p = here(state);
	uint64_t lock = must_lock(p);
	pid_t child = fork();
	if (child == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			(void)pause();
	}
	must(ffi_unlock(lock));
	assert_int_equal(as_a_child(p), 0);
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

static void a_holder_that_dies(void **state)
{
	struct place *p = here(state);
	int told[2];
	char byte;
	assert_int_equal(pipe2(told, O_CLOEXEC), 0);
	pid_t child = fork();
	if (child == 0) {
		uint64_t lock;
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (ffi_lock(lock_path(p), &lock, NULL) != 0 || write(told[1], "!", 1) != 1)
			_exit(1);
		for (;;)
			(void)pause();
	}
	assert_int_equal(read(told[0], &byte, 1), 1);
	is_held_by(p, child);
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, NULL, 0), child);
	uint64_t lock = must_lock(p);
	is_held_by(p, getpid());
	must(ffi_unlock(lock));
	assert_int_equal(close(told[0]) | close(told[1]), 0);
}

static void what_cannot_be_locked(void **state)
{
	struct place *p = here(state);
	uint64_t lock = 7;
	fails(ffi_lock(path_in(p, "none/lock"), &lock, &err), -ENOENT);
	assert_int_equal(lock, 0);
	assert_int_equal(mkdir(path_in(p, "d"), 0700), 0);
	fails(ffi_lock(path_in(p, "d"), &lock, &err), -EISDIR);
	assert_int_equal(symlink("elsewhere", path_in(p, "link")), 0);
	fails(ffi_lock(path_in(p, "link"), &lock, &err), -ELOOP);
	assert_int_equal(access(path_in(p, "elsewhere"), F_OK), -1);
	assert_int_equal(mkfifo(path_in(p, "fifo"), 0600), 0);
	fails(ffi_lock(path_in(p, "fifo"), &lock, &err), -ENOTSUP);
	assert_int_equal(lock, 0);
	fails(ffi_unlock(0), -EBADF);
}

/* ---- can it be kept ---- */

static void memory_keeps_nothing(void **state)
{
	(void)state;
	if (places[0].missing != NULL)
		skip();
	fails(ffi_state_check(places[0].dir, &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "tmpfs"));
}

static void a_disk_keeps_it(void **state)
{
	struct disk d;
	open_disk(&d, here(state), 4 * PAGE);
	/* Whatever is beneath it. */
	must(ffi_state_check(d.place.dir, &err));
	fails(ffi_state_check(d.beneath.dir, &err), -ENOTSUP);
	fails(ffi_state_check(path_in(&d.place, "x"), &err), -ENOTDIR);
	fails(ffi_state_check(path_in(&d.place, "none"), &err), -ENOENT);
	close_disk(&d);
}

/* One that is laid over memory is memory. */
static void an_overlay_is_what_is_beneath(void **state)
{
	struct place *p = here(state);
	mounting();
	char options[4 * sizeof(p->dir)];
	assert_int_equal(mkdir(path_in(p, "low"), 0700) | mkdir(path_in(p, "up"), 0700) | mkdir(path_in(p, "work"), 0700), 0);
	assert_int_equal(mkdir(path_in(p, "on"), 0700), 0);
	(void)snprintf(options, sizeof(options), "lowerdir=%s/low,upperdir=%s/up,workdir=%s/work", p->dir, p->dir, p->dir);
	if (mount("none", path_in(p, "on"), "overlay", 0, options) != 0) {
		print_message("no overlay here: %s\n", strerror(errno));
		skip();
	}
	fails(ffi_state_check(path_in(p, "on"), &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "overlay"));
	assert_int_equal(umount(path_in(p, "on")), 0);
}

/* ---- room ---- */

static void room_is_set_aside(void **state)
{
	struct place *p = here(state);
	struct stat st;
	make_file(p, "a", 100, 0);
	must(ffi_allocate(path_in(p, "a"), MIB, &err));
	assert_int_equal(stat(path_in(p, "a"), &st), 0);
	assert_int_equal(st.st_size, 100);
	assert_true(st.st_blocks * 512 >= (blkcnt_t)MIB);
	must(ffi_allocate(path_in(p, "a"), PAGE, &err));
	fails(ffi_allocate(path_in(p, "a"), 0, &err), -EINVAL);
	fails(ffi_allocate(path_in(p, "a"), UINT64_MAX, &err), -EINVAL);
	fails(ffi_allocate(path_in(p, "none"), MIB, &err), -ENOENT);
	fails(ffi_allocate(p->dir, MIB, &err), -EISDIR);
}

static void room_that_is_not_there(void **state)
{
	struct place *p = here(state);
	mounting();
	struct place small = {.name = "small"};
	struct stat st;
	(void)snprintf(small.dir, sizeof(small.dir), "%s", path_in(p, "small"));
	assert_int_equal(mkdir(small.dir, 0700), 0);
	assert_int_equal(mount("none", small.dir, "tmpfs", 0, "size=1m"), 0);
	make_file(&small, "a", 100, 0);
	fails(ffi_allocate(path_in(&small, "a"), 2 * MIB, &err), -ENOSPC);
	assert_int_equal(stat(path_in(&small, "a"), &st), 0);
	assert_int_equal(st.st_size, 100);
	must(ffi_allocate(path_in(&small, "a"), MIB / 2, &err));
	fill_up(&small, "rest");
	/* What was set aside is there on a full file system, and so is the lock; only that it does not say whose it is. */
	int fd = open(path_in(&small, "a"), O_WRONLY | O_CLOEXEC);
	static const char bytes[MIB / 2];
	assert_int_equal(pwrite(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
	assert_int_equal(close(fd), 0);
	uint64_t lock = must_lock(&small);
	is_held_by(&small, 0);
	must(ffi_unlock(lock));
	assert_int_equal(umount(small.dir), 0);
	assert_int_equal(rmdir(small.dir), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(one_has_it),
			ON_EACH(closing_the_file_loses_nothing),
			ON_EACH(a_child_does_not_keep_it),
			ON_EACH(a_holder_that_dies),
			ON_EACH(what_cannot_be_locked),
			ONCE(memory_keeps_nothing),
			{"a_disk_keeps_it", a_disk_keeps_it, scene_enter, scene_leave, &places[0]},
			{"an_overlay_is_what_is_beneath", an_overlay_is_what_is_beneath, scene_enter, scene_leave, &places[0]},
			ON_EACH(room_is_set_aside),
			{"room_that_is_not_there", room_that_is_not_there, scene_enter, scene_leave, &places[0]},
	};
	return RUN("state", tests, FFI_GRANULARITY_UNSET);
}
