/* SPDX-License-Identifier: BSD-3-Clause */
#include "identity.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* Linux 6.9; headers may be older than the kernel. */
struct uuid_of_file_system {
	uint8_t length;
	uint8_t bytes[16];
};
#define GET_UUID _IOR(0x15, 0, struct uuid_of_file_system)

/* What it tells of, a letter each, in this order; behind the letter is text without a space. */
enum { UUID = 'u', FSID = 'f', INODE = 'i', GENERATION = 'g', BIRTH = 'b' };

/* False: the file system has none, or one that nobody gave it. */
static bool get_uuid(int fd, char text[2 * 16 + 1])
{
	struct uuid_of_file_system uuid = {0};
	unsigned any = 0;
	if (ioctl(fd, GET_UUID, &uuid) != 0 || uuid.length == 0 || uuid.length > sizeof(uuid.bytes))
		return false;
	for (unsigned i = 0; i < uuid.length; i++) {
		any |= uuid.bytes[i];
		(void)snprintf(text + 2 * (size_t)i, 3, "%02x", uuid.bytes[i]);
	}
	return any != 0;
}

static void add(char identity[IDENTITY_SIZE], const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(char identity[IDENTITY_SIZE], const char *format, ...)
{
	va_list args;
	size_t used = strlen(identity);
	va_start(args, format);
	(void)vsnprintf(identity + used, IDENTITY_SIZE - used, format, args);
	va_end(args);
}

void identity_of(int fd, char identity[IDENTITY_SIZE])
{
	struct statx sx;
	struct statfs fs;
	char uuid[2 * 16 + 1];
	uint64_t fsid = 0;
	uint64_t generation = 0; /* the kernel writes an int, whatever the name of the request says */
	memset(identity, 0, IDENTITY_SIZE);
	if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &sx) != 0)
		return;
	bool has_generation = ioctl(fd, FS_IOC_GETVERSION, &generation) == 0;
	bool has_birth = (sx.stx_mask & STATX_BTIME) != 0;
	if (!has_generation && !has_birth)
		return;
	if (fstatfs(fd, &fs) == 0)
		memcpy(&fsid, &fs.f_fsid, sizeof(fsid));
	if (get_uuid(fd, uuid))
		add(identity, "%c%s ", UUID, uuid);
	if (fsid != 0)
		add(identity, "%c%" PRIx64 " ", FSID, fsid);
	add(identity, "%c%" PRIu64, INODE, (uint64_t)sx.stx_ino);
	if (has_generation)
		add(identity, " %c%" PRIx32, GENERATION, (uint32_t)generation);
	if (has_birth)
		add(identity, " %c%" PRId64 ".%09" PRIu32, BIRTH, (int64_t)sx.stx_btime.tv_sec, sx.stx_btime.tv_nsec);
}

/* The text behind the letter, and its length; NULL where it is not told of. */
static const char *told(const char *identity, char of, size_t *length)
{
	for (const char *at = identity; at != NULL; at = strchr(at, ' ')) {
		at += *at == ' ';
		if (*at == of) {
			*length = strcspn(at, " ");
			return at;
		}
	}
	return NULL;
}

/* Whether both tell of it; *same: the same. */
static bool both_tell(const char *one, const char *other, char of, bool *same)
{
	size_t n = 0;
	size_t m = 0;
	const char *a = told(one, of, &n);
	const char *b = told(other, of, &m);
	*same = a != NULL && b != NULL && n == m && memcmp(a, b, n) == 0;
	return a != NULL && b != NULL;
}

bool identity_same(const char *was, const char *is)
{
	bool same;
	if (was[0] == '\0')
		return true;
	/* What statfs has may be made of a device's number, so a UUID goes before it. */
	if ((both_tell(was, is, UUID, &same) || both_tell(was, is, FSID, &same)) && !same)
		return false;
	if (!both_tell(was, is, INODE, &same) || !same)
		return false;
	if (both_tell(was, is, GENERATION, &same) && !same)
		return false;
	return !both_tell(was, is, BIRTH, &same) || same;
}
