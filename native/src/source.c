/* SPDX-License-Identifier: BSD-3-Clause */
#include "source.h"

#include "config.h"
#include "redo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PATH_BYTES_MAX 4095

/* ---- one thread at a time opens a file of a directory, or puts a new one in its place: so that an emptied file is nobody's ---- */

/* By directory, since any of it may wait: for the disk, for a server, for whoever holds a lease on the file. */
struct held {
	dev_t dev;
	ino_t ino;
	struct held *next;
};
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER; /* of the list, for a moment */
static pthread_cond_t let_go = PTHREAD_COND_INITIALIZER;
static struct held *held;

static bool is_held(const struct held *directory)
{
	const struct held *h = held;
	while (h != NULL && (h->dev != directory->dev || h->ino != directory->ino))
		h = h->next;
	return h != NULL;
}

static void hold_names(struct held *directory)
{
	pthread_mutex_lock(&names_lock);
	while (is_held(directory))
		pthread_cond_wait(&let_go, &names_lock);
	directory->next = held;
	/* cppcheck-suppress autoVariables; whoever holds it takes it out again before it returns */
	held = directory;
	pthread_mutex_unlock(&names_lock);
}

static void release_names(struct held *directory)
{
	pthread_mutex_lock(&names_lock);
	struct held **link = &held;
	while (*link != directory)
		link = &(*link)->next;
	*link = directory->next;
	pthread_cond_broadcast(&let_go);
	pthread_mutex_unlock(&names_lock);
}

/* ---- descriptors and names ---- */

/* glibc has no wrapper. */
static int open_beneath(int dir, const char *path, uint64_t flags)
{
	struct open_how how = {.flags = flags | O_CLOEXEC,
			.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
	return (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
}

/* A descriptor that was only looked through, opened for use. */
static int reopen(int fd, int flags)
{
	char path[40];
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* intent 0: at random. */
static void own_name(char name[SOURCE_NAME_SIZE], uint64_t intent)
{
	uint64_t number = intent;
	if (intent == 0 && getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
		number = (uint64_t)(uintptr_t)name ^ (uint64_t)getpid(); /* O_EXCL still decides */
	(void)snprintf(name, SOURCE_NAME_SIZE, ".pmemset-%016" PRIx64, number);
}

/* ---- paths as text ---- */

/* Bytes of the UTF-8 sequence at text, 0 where it is none (overlong, surrogate, above U+10FFFF, cut short). */
static size_t utf8_sequence(const unsigned char *text, size_t left)
{
	unsigned char first = text[0];
	if (first < 0x80)
		return 1;
	size_t n = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
	if (first < 0xC2 || first > 0xF4 || left < n)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((text[i] & 0xC0) != 0x80)
			return 0;
	if ((first == 0xE0 && text[1] < 0xA0) || (first == 0xED && text[1] > 0x9F) || (first == 0xF0 && text[1] < 0x90) ||
			(first == 0xF4 && text[1] > 0x8F))
		return 0;
	return n;
}

static const char *refuse_component(const char *name, size_t length)
{
	if (length == 0)
		return "an empty component";
	if ((length == 1 && name[0] == '.') || (length == 2 && memcmp(name, "..", 2) == 0))
		return "a component that is . or ..";
	if (length >= 8 && memcmp(name, ".pmemset", 8) == 0 && (length == 8 || name[8] == '-'))
		return "a component that is the service's own";
	return NULL;
}

/* Why the path is not to be opened, or NULL. */
static const char *refuse_text(const char *path, size_t length)
{
	if (length == 0)
		return "empty";
	if (length > PATH_BYTES_MAX)
		return "longer than 4095 bytes";
	const unsigned char *text = (const unsigned char *)path;
	for (size_t i = 0; i < length;) {
		size_t n = utf8_sequence(text + i, length - i);
		if (n == 0)
			return "not UTF-8";
		if (text[i] < 0x20 || text[i] == 0x7F || (text[i] == 0xC2 && text[i + 1] < 0xA0))
			return "a control character";
		i += n;
	}
	for (const char *from = path;;) {
		size_t left = length - (size_t)(from - path);
		const char *slash = memchr(from, '/', left);
		size_t n = slash ? (size_t)(slash - from) : left;
		const char *why = refuse_component(from, n);
		if (why != NULL || slash == NULL)
			return why;
		from = slash + 1;
	}
}

static int not_allowed(struct pmemset_error *e, int why, const char *what)
{
	error_sys(e, -EACCES, why ? why : EACCES, "path not allowed: %s", what);
	e->reason = PMEMSET_REASON_PATH_NOT_ALLOWED;
	return -EACCES;
}

/* ---- volumes ---- */

int volume_open(struct volume *v, const char *path, struct pmemset_error *e)
{
	v->fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	v->log = NULL;
	struct stat st;
	if (v->fd < 0)
		return error_sys(e, 0, errno, "cannot open the volume %s: %s", path, strerror(errno));
	int rc = fstat(v->fd, &st) != 0 ? errno : 0;
	int probe = rc == 0 ? open_beneath(v->fd, ".", O_PATH | O_DIRECTORY) : -1;
	if (probe < 0) {
		rc = rc ? rc : errno;
		volume_close(v);
		if (rc == ENOSYS || rc == EPERM)
			return error_sys(e, -ENOSYS, rc,
					"openat2 is not to be had: Linux 5.6 or later, and a seccomp filter that allows it, is needed");
		return error_sys(e, 0, rc, "cannot open the volume %s: %s", path, strerror(rc));
	}
	(void)close(probe);
	v->dev = st.st_dev;
	v->ino = st.st_ino;
	rc = redo_open(&v->log, v->fd, v->dev, v->ino, e);
	if (rc != 0)
		volume_close(v);
	return rc;
}

void volume_close(struct volume *v)
{
	if (v->log != NULL)
		redo_close(v->log);
	v->log = NULL;
	if (v->fd >= 0)
		(void)close(v->fd);
	v->fd = -1;
}

/* A new file without a name; where the file system knows no such thing, with one of our own, and else "". */
static int open_new(int dir, mode_t mode, uint64_t intent, char working[SOURCE_NAME_SIZE])
{
	working[0] = '\0';
	int fd = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode);
	/* EPERM: also in a directory that is gone, of which the other way says so. */
	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EPERM))
		return fd;
	own_name(working, intent);
	fd = openat(dir, working, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, mode);
	if (fd < 0)
		working[0] = '\0';
	return fd;
}

static void medium_of_new(int dir, struct medium *m)
{
	char name[SOURCE_NAME_SIZE];
	int fd = open_new(dir, 0600, 0, name);
	if (name[0] != '\0')
		(void)unlinkat(dir, name, 0);
	medium_of(fd >= 0 ? fd : dir, m);
	if (fd >= 0)
		(void)close(fd);
}

void volume_medium(const struct volume *v, struct medium *m)
{
	medium_of_new(v->fd, m);
}

/* ---- opening ---- */

/* The kernel rounds a mapping up to huge pages there, over whatever part is the neighbour. */
static int refuse_huge_pages(int fd, struct pmemset_error *e)
{
	struct statfs fs;
	if (fstatfs(fd, &fs) != 0 || (unsigned long)fs.f_type != HUGETLBFS_MAGIC)
		return 0;
	error_set(e, PMEMSET_E_INVALID_PMEM2_SOURCE, "hugetlbfs is not supported");
	e->cause = PMEM2_E_NOSUPP;
	return e->code;
}

/* The path is there: fd leads to it and may only be looked through. */
static int open_existing(struct source *s, int fd, enum create create, struct pmemset_error *e)
{
	struct stat st;
	if (fstat(fd, &st) != 0)
		return error_sys(e, 0, errno, "fstat");
	if (!S_ISREG(st.st_mode)) {
		error_set(e, PMEMSET_E_INVALID_PMEM2_SOURCE, "not a regular file");
		e->cause = PMEM2_E_INVALID_FILE_TYPE;
		return e->code;
	}
	if (refuse_huge_pages(fd, e) != 0)
		return e->code;
	if (st.st_nlink != 1)
		return not_allowed(e, EMLINK, "a file of several names");
	if (create == CREATE_EXCLUSIVE) {
		error_set(e, -EEXIST, "the file exists");
		e->reason = PMEMSET_REASON_SOURCE_EXISTS;
		return -EEXIST;
	}
	if (create == CREATE_ALWAYS) {
		if (file_is_open(st.st_dev, st.st_ino)) {
			error_set(e, -EBUSY, "the file is mapped");
			e->reason = PMEMSET_REASON_SOURCE_IN_USE;
			return -EBUSY;
		}
		s->makes = true;
		s->replaces = true;
		s->old_dev = st.st_dev;
		s->old_ino = st.st_ino;
		s->mode = st.st_mode & 0777;
		s->uid = st.st_uid;
		s->gid = st.st_gid;
		return 0;
	}
	int use = reopen(fd, O_RDWR);
	if (use < 0)
		return error_sys(e, 0, errno, "cannot open the file for reading and writing: %s", strerror(errno));
	s->size = (uint64_t)st.st_size;
	int rc = file_open(use, &s->file, e);
	return rc ? rc : redo_attach(s->log, s->file, e);
}

static int cannot_open(struct pmemset_error *e, int why, const char *what)
{
	if (why == ELOOP || why == EXDEV)
		return not_allowed(e, why, "it leads out of the volume, or through a link or another mount");
	return error_sys(e, why == ENOENT ? PMEMSET_E_INVALID_SOURCE_PATH : 0, why, "cannot open the %s: %s", what, strerror(why));
}

/* The file is of this directory, which may only be looked through. */
static int open_in(struct source *s, int dir, enum create create, struct pmemset_error *e)
{
	int rc = 0;
	int fd = open_beneath(dir, s->name, O_PATH);
	if (fd >= 0) {
		rc = open_existing(s, fd, create, e);
		(void)close(fd);
	} else if (errno == ENOENT && create != CREATE_NEVER) {
		s->makes = true;
		rc = refuse_huge_pages(dir, e);
	} else {
		return cannot_open(e, errno, "file");
	}
	if (rc == 0 && s->makes && (s->dir = reopen(dir, O_RDONLY | O_DIRECTORY)) < 0)
		rc = error_sys(e, 0, errno, "cannot open the directory for reading: %s", strerror(errno));
	return rc;
}

/* Where a path leads: the directory, that may only be looked through, and the name in it. */
struct place {
	int dir; /* the volume's own, or one to be closed */
	struct held names;
	char name[SOURCE_NAME_SIZE];
};

static int find_place(struct place *place, const struct volume *v, const char *path, size_t length, struct pmemset_error *e)
{
	const char *why = refuse_text(path, length);
	if (why != NULL)
		return not_allowed(e, 0, why);
	char text[PATH_BYTES_MAX + 1];
	memcpy(text, path, length);
	text[length] = '\0';
	char *slash = strrchr(text, '/');
	const char *name = slash ? slash + 1 : text;
	if (strlen(name) >= sizeof(place->name))
		return error_sys(e, 0, ENAMETOOLONG, "the file's name is longer than 255 bytes");
	memcpy(place->name, name, strlen(name) + 1);
	place->dir = v->fd;
	place->names = (struct held){.dev = v->dev, .ino = v->ino};
	if (slash == NULL)
		return 0;
	struct stat st;
	*slash = '\0';
	place->dir = open_beneath(v->fd, text, O_PATH | O_DIRECTORY);
	if (place->dir < 0)
		return cannot_open(e, errno, "directory");
	if (fstat(place->dir, &st) != 0) {
		int rc = errno;
		(void)close(place->dir);
		return error_sys(e, 0, rc, "fstat");
	}
	place->names = (struct held){.dev = st.st_dev, .ino = st.st_ino};
	return 0;
}

static void leave_place(const struct place *place, const struct volume *v)
{
	if (place->dir != v->fd)
		(void)close(place->dir);
}

int source_open(struct source *s, const struct volume *v, const char *path, size_t length, enum create create, mode_t mode,
		struct pmemset_error *e)
{
	*s = (struct source){.dir = -1, .mode = mode & 0777, .log = v->log};
	struct place place = {.dir = -1};
	int rc = find_place(&place, v, path, length, e);
	if (rc != 0)
		return rc;
	memcpy(s->name, place.name, strlen(place.name) + 1);
	hold_names(&place.names);
	rc = open_in(s, place.dir, create, e);
	release_names(&place.names);
	leave_place(&place, v);
	if (rc != 0)
		source_close(s);
	return rc;
}

void source_medium_of_new(const struct source *s, struct medium *m)
{
	medium_of_new(s->dir, m);
}

#define INTENT_ATTRIBUTE "user.pmemset.intent"
#define INTENT_CREATED "%016" PRIx64
#define INTENT_REPLACES INTENT_CREATED " replaces"
#define INTENT_TEXT_SIZE 32

/* Where the file system keeps no such attributes, or none of a file that may not be written to, it stays without. errno. */
static int mark(const struct source *s, int fd)
{
	char text[INTENT_TEXT_SIZE];
	(void)(s->replaces ? snprintf(text, sizeof(text), INTENT_REPLACES, s->intent)
			   : snprintf(text, sizeof(text), INTENT_CREATED, s->intent));
	if (s->intent == 0 || fsetxattr(fd, INTENT_ATTRIBUTE, text, strlen(text), 0) == 0)
		return 0;
	return errno == EOPNOTSUPP || errno == ENOSYS || errno == EPERM || errno == EACCES ? 0 : errno;
}

int source_make(struct source *s, struct pmemset_error *e)
{
	int fd = open_new(s->dir, s->mode, s->intent, s->working);
	if (fd < 0)
		return error_sys(e, 0, errno, "cannot create the file: %s", strerror(errno));
	int why = mark(s, fd);
	if (why == 0 && s->replaces && (fchown(fd, s->uid, s->gid) != 0 || fchmod(fd, s->mode) != 0))
		why = errno;
	if (why != 0) {
		(void)close(fd);
		return error_sys(e, 0, why, "cannot give the file its owner, mode and intent: %s", strerror(why));
	}
	int rc = file_open(fd, &s->file, e);
	if (rc != 0)
		return rc;
	s->file->settled = true; /* nobody has written to it */
	return redo_attach(s->log, s->file, e);
}

/* A name for the file that has none. */
static int link_as(const struct source *s, const char *name)
{
	char path[40];
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", s->file->fd);
	return linkat(AT_FDCWD, path, s->dir, name, AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
}

static bool is_at(const struct source *s, const char *name, dev_t dev, ino_t ino)
{
	struct stat st;
	return fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) && st.st_dev == dev && st.st_ino == ino;
}

/* A name for the file, and none taken from another. */
static int name_new(struct source *s)
{
	if (s->working[0] == '\0')
		return link_as(s, s->name);
	if (renameat2(s->dir, s->working, s->dir, s->name, RENAME_NOREPLACE) != 0) {
		if (errno != EINVAL) /* EINVAL: a file system without that flag */
			return errno;
		if (linkat(s->dir, s->working, s->dir, s->name, 0) != 0)
			return errno;
		(void)unlinkat(s->dir, s->working, 0);
	}
	s->working[0] = '\0';
	return 0;
}

static int exchange(const struct source *s)
{
	return renameat2(s->dir, s->working, s->dir, s->name, RENAME_EXCHANGE) == 0 ? 0 : errno;
}

/* After an exchange: the old file has its name again. If it has not, it keeps ours: better a stray name than no old file. */
static void exchange_back(struct source *s)
{
	if (exchange(s) != 0)
		s->working[0] = '\0';
}

/*
 * The old file's name for the new one; *kept: the old one has ours now, and can be had back. EEXIST: what is there is not the file that
 * was looked at.
 */
static int name_instead(struct source *s, bool *kept)
{
	int rc;
	if (!is_at(s, s->name, s->old_dev, s->old_ino))
		return EEXIST;
	if (file_is_open(s->old_dev, s->old_ino))
		return EBUSY;
	if (s->working[0] == '\0') {
		char name[SOURCE_NAME_SIZE];
		own_name(name, s->intent);
		if ((rc = link_as(s, name)) != 0)
			return rc;
		memcpy(s->working, name, sizeof(name));
	}
	rc = exchange(s);
	if (rc == EINVAL) { /* a file system without that: then there is no way back */
		rc = renameat(s->dir, s->working, s->dir, s->name) == 0 ? 0 : errno;
		if (rc == 0)
			s->working[0] = '\0';
		return rc;
	}
	if (rc == 0 && !is_at(s, s->working, s->old_dev, s->old_ino)) {
		exchange_back(s);
		rc = EEXIST;
	}
	*kept = rc == 0;
	return rc;
}

static int publish(struct source *s)
{
	bool kept = false;
	int rc = s->replaces ? name_instead(s, &kept) : name_new(s);
	if (rc != 0 || (rc = file_sync(s->dir)) == 0)
		return rc;
	if (kept)
		exchange_back(s);
	else if (!s->replaces && is_at(s, s->name, s->file->dev, s->file->ino))
		(void)unlinkat(s->dir, s->name, 0);
	return rc;
}

int source_publish(struct source *s, struct pmemset_error *e)
{
	struct stat st;
	/* Its owner and mode, which no flush of its bytes needs. */
	int rc = file_sync(s->file->fd);
	if (rc == 0)
		rc = fstat(s->dir, &st) == 0 ? 0 : errno;
	if (rc == 0) {
		struct held names = {.dev = st.st_dev, .ino = st.st_ino};
		hold_names(&names);
		rc = publish(s);
		release_names(&names);
	}
	if (rc == 0)
		return 0;
	error_sys(e, 0, rc, "cannot give the file its name: %s", strerror(rc));
	if (rc == EEXIST)
		e->reason = PMEMSET_REASON_SOURCE_EXISTS;
	else if (rc == EBUSY)
		e->reason = PMEMSET_REASON_SOURCE_IN_USE;
	return e->code;
}

/* ---- what was made, and not written down ---- */

/* What a name of the directory leads to. */
struct found {
	bool there; /* a regular file */
	bool empty;
	bool created;  /* with that intent */
	bool replaces; /* the same, in the place of another */
	dev_t dev;
	ino_t ino;
};

static int look_at(int dir, const char *name, uint64_t intent, struct found *found)
{
	char path[40];
	char text[INTENT_TEXT_SIZE];
	char wanted[INTENT_TEXT_SIZE];
	struct stat st;
	*found = (struct found){0};
	int fd = open_beneath(dir, name, O_PATH);
	if (fd < 0)
		return errno == ENOENT || errno == ELOOP || errno == EXDEV ? 0 : errno; /* a link, or a mount, is none of ours */
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
		/* What may only be looked through has no attributes of its own to ask for. */
		(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ssize_t n = getxattr(path, INTENT_ATTRIBUTE, text, sizeof(text) - 1);
		text[n > 0 ? n : 0] = '\0';
		*found = (struct found){.there = true, .empty = st.st_size == 0, .dev = st.st_dev, .ino = st.st_ino};
		(void)snprintf(wanted, sizeof(wanted), INTENT_CREATED, intent);
		found->created = strcmp(text, wanted) == 0;
		(void)snprintf(wanted, sizeof(wanted), INTENT_REPLACES, intent);
		found->replaces = strcmp(text, wanted) == 0;
	}
	(void)close(fd);
	return 0;
}

/* dir: open for reading. errno. */
static int undo_in(int dir, const char *name, uint64_t intent)
{
	char own[SOURCE_NAME_SIZE];
	struct found file;
	struct found beside;
	own_name(own, intent);
	int rc = look_at(dir, name, intent, &file);
	if (rc == 0)
		rc = look_at(dir, own, intent, &beside);
	if (rc != 0)
		return rc;
	bool has_file = file.created || file.replaces;
	bool has_beside = beside.created || beside.replaces;
	if ((has_file && file_is_open(file.dev, file.ino)) || (has_beside && file_is_open(beside.dev, beside.ino)))
		return EBUSY;
	/* Not exchanged yet: the old one, or none, has the name. Empty, it was just made, and had no time to be marked. */
	bool was_made = beside.there && beside.empty && !file.replaces;
	if ((has_beside || was_made) && unlinkat(dir, own, 0) != 0)
		return errno;
	/* Exchanged: the old one has ours. Where it is gone, the new one stays, for there is nothing else. */
	if (file.replaces && beside.there && !has_beside)
		rc = renameat(dir, own, dir, name) == 0 ? 0 : errno;
	else if (file.created)
		rc = unlinkat(dir, name, 0) == 0 ? 0 : errno;
	return rc ? rc : file_sync(dir);
}

int source_undo(const struct volume *v, const char *path, size_t length, uint64_t intent, struct pmemset_error *e)
{
	struct place place = {.dir = -1};
	int rc = find_place(&place, v, path, length, e);
	if (rc == PMEMSET_E_INVALID_SOURCE_PATH) /* no directory */
		return 0;
	if (rc != 0)
		return rc;
	int dir = reopen(place.dir, O_RDONLY | O_DIRECTORY);
	int why = dir < 0 ? errno : 0;
	leave_place(&place, v);
	if (dir >= 0) {
		hold_names(&place.names);
		why = undo_in(dir, place.name, intent);
		release_names(&place.names);
		(void)close(dir);
	}
	if (why == 0)
		return 0;
	error_sys(e, 0, why, "cannot take back what was made: %s", strerror(why));
	if (why == EBUSY)
		e->reason = PMEMSET_REASON_SOURCE_IN_USE;
	return e->code;
}

void source_close(struct source *s)
{
	if (s->working[0] != '\0')
		(void)unlinkat(s->dir, s->working, 0);
	if (s->file != NULL)
		file_release(s->file);
	if (s->dir >= 0)
		(void)close(s->dir);
	*s = (struct source){.dir = -1};
}

/* ---- as libpmemset.h has it ---- */

void source_hold(struct pmemset_source *src)
{
	atomic_fetch_add(&src->referred, 1);
}

void source_let_go(struct pmemset_source *src)
{
	if (atomic_fetch_sub(&src->referred, 1) != 1)
		return;
	file_release(src->file);
	free(src->path);
	free(src);
}

static int wrong_kind(int32_t cause, const char *what, struct pmemset_error *e)
{
	error_set(e, PMEMSET_E_INVALID_PMEM2_SOURCE, "%s", what);
	e->cause = cause;
	return e->code;
}

/* Takes fd (O_RDWR) over, also on failure; what: members that the source is to have. */
static int new_source(struct pmemset_source **out, int fd, struct pmemset_source what, struct pmemset_error *e)
{
	struct stat st;
	int rc = 0;
	if (fstat(fd, &st) != 0)
		rc = error_sys(e, 0, errno, "fstat");
	else if (!S_ISREG(st.st_mode))
		rc = wrong_kind(PMEM2_E_INVALID_FILE_TYPE, "not a regular file", e);
	else
		rc = refuse_huge_pages(fd, e);
	struct pmemset_source *src = rc == 0 ? malloc(sizeof(*src)) : NULL;
	if (src == NULL) {
		(void)close(fd);
		return rc ? rc : error_set(e, -ENOMEM, "no memory for a source");
	}
	*src = what;
	atomic_init(&src->referred, 1);
	rc = file_open(fd, &src->file, e);
	if (rc == 0)
		*out = src;
	else
		free(src);
	return rc;
}

static int no_path(const char *path, int why, struct pmemset_error *e)
{
	if (path == NULL)
		return error_set(e, PMEMSET_E_INVALID_SOURCE_PATH, "no path");
	return error_sys(e, why == ENOENT ? PMEMSET_E_INVALID_SOURCE_PATH : 0, why, "%s: %s", path, strerror(why));
}

/* Opening a FIFO or a device may wait, or do something: only what it is tells whether to. */
static int open_file(const char *path, int flags, mode_t mode, int *fd, struct pmemset_error *e)
{
	struct stat st;
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
		return wrong_kind(PMEM2_E_INVALID_FILE_TYPE, "not a regular file", e);
	*fd = open(path, flags | O_RDWR | O_CLOEXEC | O_NONBLOCK, mode);
	return *fd >= 0 ? 0 : no_path(path, errno, e);
}

/* The name of a file that is new, durably. */
static int sync_directory_of(const char *path, struct pmemset_error *e)
{
	char *copy = strdup(path);
	if (copy == NULL)
		return error_set(e, -ENOMEM, "no memory for a path");
	int dir = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(copy);
	if (dir < 0) /* one that may be searched and not read */
		return 0;
	int why = file_sync(dir);
	(void)close(dir);
	return why ? error_sys(e, 0, why, "the directory of %s: %s", path, strerror(why)) : 0;
}

int pmemset_source_from_file(struct pmemset_source **src, const char *file)
{
	struct pmemset_error e;
	int fd = -1;
	*src = NULL;
	if (file == NULL)
		return no_path(file, 0, &e), error_keep(&e);
	char *path = strdup(file);
	int rc = path ? open_file(file, 0, 0, &fd, &e) : error_set(&e, -ENOMEM, "no memory for a path");
	if (rc == 0)
		rc = new_source(src, fd, (struct pmemset_source){.path = path, .fixed = true}, &e);
	if (rc == 0)
		return 0; /* cppcheck-suppress memleak; the source has it */
	free(path);
	return error_keep(&e);
}

/* *mode: of a file that is to be made. */
static int check_create_flags(uint64_t flags, mode_t *mode, struct pmemset_error *e)
{
	const uint64_t mode_bits = flags >> 32;
	if ((flags & UINT32_MAX & ~(uint64_t)PMEMSET_SOURCE_FILE_CREATE_VALID_FLAGS) != 0 || (mode_bits & ~UINT64_C(0777)) != 0)
		return error_set(e, PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS, "unknown flags or mode bits in %#" PRIx64, flags);
	*mode = mode_bits ? (mode_t)mode_bits : 0644;
	return 0;
}

/* *made: it is new. */
static int open_to_create(const char *path, uint64_t flags, mode_t mode, int *fd, bool *made, struct pmemset_error *e)
{
	const uint64_t creates =
			PMEMSET_SOURCE_FILE_CREATE_ALWAYS | PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED | PMEMSET_SOURCE_FILE_CREATE_EXCLUSIVE;
	if ((flags & creates) == 0)
		return open_file(path, 0, 0, fd, e);
	int rc = open_file(path, O_CREAT | O_EXCL, mode, fd, e);
	*made = rc == 0;
	if (rc != -EEXIST || (flags & PMEMSET_SOURCE_FILE_CREATE_EXCLUSIVE))
		return rc;
	return open_file(path, O_CREAT, mode, fd, e); /* or a link to where there is nothing yet */
}

int pmemset_xsource_from_file(struct pmemset_source **src, const char *file, uint64_t flags)
{
	struct pmemset_error e;
	mode_t mode = 0;
	int fd = -1;
	bool made = false;
	*src = NULL;
	if (file == NULL)
		return no_path(file, 0, &e), error_keep(&e);
	int rc = check_create_flags(flags, &mode, &e);
	if (rc == 0)
		rc = open_to_create(file, flags, mode, &fd, &made, &e);
	if (rc == 0)
		rc = new_source(src, fd, (struct pmemset_source){.grows = !(flags & PMEMSET_SOURCE_FILE_DO_NOT_GROW)}, &e);
	if (rc == 0 && made)
		rc = sync_directory_of(file, &e);
	else if (*src != NULL && (flags & PMEMSET_SOURCE_FILE_CREATE_ALWAYS))
		rc = file_empty((*src)->file, &e);
	if (rc == 0)
		return 0;
	(void)pmemset_source_delete(src);
	if (made)
		(void)unlink(file);
	return error_keep(&e);
}

/*
 * A description of our own, for the errors of flushes are kept by description. It may do no more than the caller's: so that one decides,
 * and not the file's mode.
 */
static int own_descriptor(int fd, int *own, struct pmemset_error *e)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fstat(fd, &st) != 0)
		return wrong_kind(PMEM2_E_INVALID_FILE_HANDLE, "not a descriptor", e);
	if (!S_ISREG(st.st_mode))
		return wrong_kind(PMEM2_E_INVALID_FILE_TYPE, "not a regular file", e);
	if ((flags & O_ACCMODE) != O_RDWR || (flags & O_PATH))
		return wrong_kind(PMEM2_E_INVALID_FILE_HANDLE, "not open for reading and writing", e);
	*own = reopen(fd, O_RDWR);
	if (*own < 0) /* no /proc, or the file's mode has changed since */
		*own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return *own >= 0 ? 0 : error_sys(e, 0, errno, "cannot have a descriptor of our own: %s", strerror(errno));
}

int pmemset_source_from_pmem2(struct pmemset_source **src, struct pmem2_source *pmem2_src)
{
	struct pmemset_error e;
	int fd = -1;
	*src = NULL;
	if (pmem2_src == NULL)
		return wrong_kind(0, "no source", &e), error_keep(&e);
	int rc = pmem2_source_get_fd(pmem2_src, &fd);
	if (rc != 0)
		return error_set(&e, rc, "%s", pmem2_errormsg()), error_keep(&e);
	int own = -1;
	rc = own_descriptor(fd, &own, &e);
	if (rc == 0)
		rc = new_source(src, own, (struct pmemset_source){.pmem2 = pmem2_src, .fixed = true}, &e);
	return rc ? error_keep(&e) : 0;
}

int pmemset_source_from_fd(struct pmemset_source **src, int fd, uint64_t flags)
{
	struct pmemset_error e;
	int own = -1;
	int rc = 0;
	*src = NULL;
	if ((flags & ~(uint64_t)PMEMSET_SOURCE_FILE_DO_NOT_GROW) != 0)
		rc = error_set(&e, PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS, "unknown flags in %#" PRIx64, flags);
	if (rc == 0)
		rc = own_descriptor(fd, &own, &e);
	if (rc == 0)
		rc = new_source(src, own, (struct pmemset_source){.grows = flags == 0}, &e);
	return rc ? error_keep(&e) : 0;
}

int pmemset_source_from_temporary(struct pmemset_source **src, const char *dir)
{
	struct pmemset_error e;
	*src = NULL;
	int above = dir ? open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	int rc = above >= 0 ? 0 : no_path(dir, errno, &e);
	int fd = -1;
	if (rc == 0) {
		char name[SOURCE_NAME_SIZE];
		fd = open_new(above, 0600, 0, name);
		int why = errno;
		if (fd >= 0 && name[0] != '\0')
			(void)unlinkat(above, name, 0);
		(void)close(above);
		if (fd < 0)
			rc = error_sys(&e, PMEMSET_E_CANNOT_CREATE_TEMP_FILE, why, "a temporary file in %s: %s", dir, strerror(why));
	}
	if (rc == 0)
		rc = new_source(src, fd, (struct pmemset_source){.grows = true}, &e);
	return rc ? error_keep(&e) : 0;
}

int pmemset_source_delete(struct pmemset_source **src)
{
	if (*src != NULL)
		source_let_go(*src);
	*src = NULL;
	return 0;
}

int pmemset_source_alignment(struct pmemset_source *src, size_t *alignment)
{
	(void)src; /* a file, always */
	*alignment = (size_t)sysconf(_SC_PAGESIZE);
	return 0;
}

int pmemset_source_pread_mcsafe(struct pmemset_source *src, void *buf, size_t size, size_t offset)
{
	struct pmemset_error e;
	return file_read(src->file, buf, size, offset, &e) ? error_keep(&e) : 0;
}

int pmemset_source_pwrite_mcsafe(struct pmemset_source *src, void *buf, size_t size, size_t offset)
{
	struct pmemset_error e;
	struct store_under_way store;
	int rc = order_begin(&store, src->file, offset, size, &e);
	if (rc == 0)
		rc = file_write(src->file, buf, size, offset, &e);
	order_end(&store);
	return rc ? error_keep(&e) : 0;
}

/* NOLINTNEXTLINE(readability-non-const-parameter): the seed's signature, for what it will write */
int pmemset_source_set_sds(struct pmemset_source *src, struct pmemset_sds *sds, enum pmemset_part_state *state)
{
	(void)src;
	(void)sds;
	(void)state;
	return config_no_support("shutdown state");
}

void pmemset_source_set_badblock_detection(struct pmemset_source *src, bool value)
{
	(void)src;
	(void)value;
}

int pmemset_badblock_clear(struct pmemset_badblock *bb, struct pmemset_source *src)
{
	(void)bb;
	(void)src;
	return config_no_support("clearing of bad blocks");
}
