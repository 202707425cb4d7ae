/* SPDX-License-Identifier: BSD-3-Clause */
#include "state.h"

#include "medium.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int cannot(const char *what, const char *path, int why, struct pmemset_error *e)
{
	return error_sys(e, 0, why, "cannot %s %s: %s", what, path, strerror(why));
}

/* ---- can it be kept there ---- */

static bool is_among(const char *name, const char *const *names)
{
	while (*names != NULL && strcmp(name, *names) != 0)
		names++;
	return *names != NULL;
}

int state_check(const char *directory, struct pmemset_error *e)
{
	static const char *const in_memory[] = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", NULL};
	static const char *const elsewhere[] = {"9p", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "virtiofs", "fuse", "fuseblk", "famfs",
			NULL};
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return cannot("open", directory, errno, e);
	struct medium m;
	medium_of(fd, &m);
	(void)close(fd);
	const char *type = m.file_system;
	/* A file system on another is what that is. */
	bool stacked_on_memory = strcmp(type, "overlay") == 0 && m.persistence == PERSISTENCE_VOLATILE;
	if (is_among(type, in_memory) || stacked_on_memory)
		return error_set(e, -ENOTSUP, "%s is on %s, which is memory: a power cut empties it", directory, type);
	/* "fuse.sshfs" and the like as well. */
	if (is_among(type, elsewhere) || strncmp(type, "fuse.", 5) == 0)
		return error_set(e, -ENOTSUP, "%s is on %s, whose fsync and locks another host or process decides about", directory, type);
	return 0;
}

/* ---- who keeps it ---- */

/* 0: it does not say. */
static uint64_t holder(int fd)
{
	char text[24] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	return n > 0 ? strtoull(text, NULL, 10) : 0;
}

/* Only for whoever is refused: a volume that takes no number, being full or read-only, is locked all the same. */
static void tell_holder(int fd)
{
	char text[24];
	int length = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
	/* In this order: on a full volume the space of a former holder's number is all that there is. */
	if (pwrite(fd, text, (size_t)length, 0) == length)
		(void)ftruncate(fd, length); /* NOLINT(bugprone-unused-return-value): what is behind the number is not read */
}

/* Of the open file, not of the process, which would lose it with any close of the file. */
static int lock(int fd, short type)
{
	struct flock whole = {.l_type = type, .l_whence = SEEK_SET};
	return fcntl(fd, F_OFD_SETLK, &whole) == 0 ? 0 : errno;
}

int state_lock(const char *path, int *fd, struct pmemset_error *e)
{
	*fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (*fd < 0)
		return cannot("open", path, errno, e);
	struct stat st;
	if (fstat(*fd, &st) != 0) {
		(void)cannot("read the type of", path, errno, e);
	} else if (!S_ISREG(st.st_mode)) {
		/* A pipe or a device takes a lock, but keeps no number. */
		error_set(e, -ENOTSUP, "%s is not a regular file", path);
	} else {
		int why = lock(*fd, F_WRLCK);
		if (why == 0) {
			tell_holder(*fd);
			return 0;
		}
		if (why == EAGAIN || why == EACCES) {
			uint64_t pid = holder(*fd);
			error_set(e, -EAGAIN, "%s is locked by process %" PRIu64, path, pid);
			e->value = pid;
		} else {
			(void)cannot("lock", path, why, e);
		}
	}
	(void)close(*fd);
	*fd = -1;
	return e->code;
}

void state_unlock(int fd)
{
	/* The number stays, since its space may be had no more: it misleads nobody who gets the lock. */
	(void)lock(fd, F_UNLCK); /* a child may have the open file as well */
	(void)close(fd);
}

/* ---- room ---- */

int state_allocate(const char *path, uint64_t size, struct pmemset_error *e)
{
	if (size == 0 || size > INT64_MAX)
		return error_set(e, -EINVAL, "%" PRIu64 " bytes are no size", size);
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return cannot("open", path, errno, e);
	int why;
	do
		why = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)size) == 0 ? 0 : errno;
	while (why == EINTR);
	(void)close(fd);
	return why ? cannot("allocate space for", path, why, e) : 0;
}
