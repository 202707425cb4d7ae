/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * openat2 for a checker that does not know it: valgrind 3.19 answers ENOSYS, and without it the engine opens no volume. To be
 * preloaded. It walks a path as the kernel does with the engine's flags (beneath the directory, no symbolic link, no other mount), though
 * not in one step; what is tested under such a checker is the engine's memory and locks, and not whether the walk can be raced.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEPTH_MAX 64

struct walk {
	int fds[DEPTH_MAX]; /* the directories from the root of the walk down to where it is */
	int depth;
};

/* Which mount and what kind of thing a descriptor is. */
static int look_at(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_MNT_ID, sx);
}

/* Opens one component; errno as the kernel's. */
static int step(int dir, const char *name, int flags, const struct statx *root)
{
	struct statx sx;
	int seen = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (seen < 0)
		return -1;
	int why = 0;
	if (look_at(seen, &sx) != 0)
		why = errno;
	else if (sx.stx_mnt_id != root->stx_mnt_id)
		why = EXDEV;
	else if (S_ISLNK(sx.stx_mode) && !((flags & O_PATH) && (flags & O_NOFOLLOW)))
		why = ELOOP;
	(void)close(seen);
	if (why != 0) {
		errno = why;
		return -1;
	}
	return openat(dir, name, flags | O_NOFOLLOW);
}

static int walk_along(struct walk *w, char *path, int flags, const struct statx *root)
{
	char *rest = path;
	for (char *name = strsep(&rest, "/"); name != NULL; name = strsep(&rest, "/")) {
		int last = rest == NULL;
		if (strcmp(name, "..") == 0 && w->depth == 1) {
			errno = EXDEV;
			return -1;
		}
		if (strcmp(name, "..") == 0) {
			(void)close(w->fds[--w->depth]);
			name = ".";
		}
		if (*name == '\0') /* "a//b", "a/" */
			name = ".";
		int dir = w->fds[w->depth - 1];
		if (last)
			return step(dir, name, flags, root);
		int next = w->depth < DEPTH_MAX ? step(dir, name, O_PATH | O_DIRECTORY | O_CLOEXEC, root) : -1;
		if (next < 0)
			return -1;
		w->fds[w->depth++] = next;
	}
	errno = ENOENT;
	return -1;
}

static int open_beneath(int dir, const char *path, const struct open_how *how)
{
	char copy[PATH_MAX];
	struct statx root;
	if (*path == '/' || *path == '\0' || strlen(path) >= sizeof(copy)) {
		errno = *path == '/' ? EXDEV : *path == '\0' ? ENOENT : ENAMETOOLONG;
		return -1;
	}
	if (look_at(dir, &root) != 0)
		return -1;
	memcpy(copy, path, strlen(path) + 1);
	struct walk w = {.fds = {dir}, .depth = 1};
	int fd = walk_along(&w, copy, (int)how->flags, &root);
	int why = errno;
	while (w.depth > 1)
		(void)close(w.fds[--w.depth]);
	errno = why;
	return fd;
}

/* NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name): the header's names are the C library's own */
__attribute__((visibility("default"))) long syscall(long number, ...)
{
	long args[6];
	va_list list;
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		args[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_openat2) /* NOLINTNEXTLINE(performance-no-int-to-ptr): all of a system call's arguments are numbers */
		return open_beneath((int)args[0], (const char *)args[1], (const struct open_how *)args[2]);
	/* Looked up each time: a first time is not known without a lock, and nothing else here is called often. */
	long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	return next(number, args[0], args[1], args[2], args[3], args[4], args[5]);
}
