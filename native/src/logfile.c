/* SPDX-License-Identifier: BSD-3-Clause */
#include "logfile.h"

#include "guard.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define DIRECTORY ".pmemset"
#define NAME "redo"
#define NAME_OF_NEW "redo.new"

#define LOG_MAGIC UINT64_C(0x004f444552534d50) /* "PMSREDO" and a NUL */
#define LOG_VERSION 1

struct log_head {
	uint64_t magic;
	uint32_t version;
	uint32_t reserved;
	uint64_t epoch; /* random: no record of another log is taken for one of this */
	uint64_t kept_size;
	uint64_t ring_at, ring_size;
	uint64_t reserved2;
	uint64_t sum; /* of the members above */
};
static_assert(sizeof(struct log_head) == 64, "what redo-log.md says");

#define RETIRED_AT 4096u /* the word: up to which position all is retired. A page of its own */
#define KEPT_AT 8192u
#define PAGE_SIZE_MIN 4096u

/* ---- its bytes ---- */

static int persist_failed(int why, struct pmemset_error *e)
{
	error_sys(e, -EIO, why, "the redo log cannot be written: %s", strerror(why));
	e->reason = PMEMSET_REASON_PERSIST_FAILED;
	return e->code;
}

static int write_at(const struct logfile *f, uint64_t offset, const char *bytes, uint64_t size, struct pmemset_error *e)
{
	while (size > 0) {
		uint64_t n = size < CHUNK_SIZE ? size : CHUNK_SIZE;
		if (f->map != NULL) {
			const struct stores *stores = stores_at(f->file->medium.granularity);
			if (!guarded_store(stores, f->map + offset, bytes, n, PMEM2_F_MEM_NONTEMPORAL))
				return persist_failed(EIO, e);
		} else {
			int64_t wrote = file_put(f->file->fd, bytes, n, offset);
			if (wrote < 0)
				return persist_failed((int)-wrote, e);
			n = (uint64_t)wrote;
		}
		offset += n;
		bytes += n;
		size -= n;
	}
	return 0;
}

static int read_at(int fd, uint64_t offset, char *bytes, uint64_t size)
{
	while (size > 0) {
		ssize_t got = pread(fd, bytes, size, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? errno : EIO;
		offset += (uint64_t)got;
		bytes += got;
		size -= (uint64_t)got;
	}
	return 0;
}

int logfile_write(const struct logfile *f, uint64_t position, const struct record *record, struct pmemset_error *e)
{
	uint64_t at = position % f->ring_size;
	uint64_t before_end = f->ring_size - at < record->size ? f->ring_size - at : record->size;
	int rc = write_at(f, f->ring_at + at, record->bytes, before_end, e);
	if (rc == 0)
		rc = write_at(f, f->ring_at, record->bytes + before_end, record->size - before_end, e);
	/* Before anybody else may write a record behind it: else that one could be durable, and this one not. */
	if (f->map != NULL)
		stores_drain(stores_at(f->file->medium.granularity));
	return rc;
}

/* From a position on, around the end of the ring if need be. */
static int read_ring(const struct logfile *f, uint64_t position, char *bytes, uint64_t size)
{
	uint64_t at = position % f->ring_size;
	uint64_t before_end = f->ring_size - at < size ? f->ring_size - at : size;
	int rc = read_at(f->file->fd, f->ring_at + at, bytes, before_end);
	return rc ? rc : read_at(f->file->fd, f->ring_at, bytes + before_end, size - before_end);
}

int logfile_settle(const struct logfile *f, struct pmemset_error *e)
{
	int rc = file_flush(f->file, NULL, 0, e);
	if (rc != 0)
		e->reason = PMEMSET_REASON_PERSIST_FAILED;
	return rc;
}

int logfile_flush(const struct logfile *f, struct pmemset_error *e)
{
	return f->map != NULL ? 0 : logfile_settle(f, e);
}

int logfile_retire(const struct logfile *f, uint64_t position, struct pmemset_error *e)
{
	if (f->map == NULL) {
		int rc = write_at(f, RETIRED_AT, (const char *)&position, sizeof(position), e);
		return rc ? rc : logfile_flush(f, e);
	}
	const struct stores *stores = stores_at(f->file->medium.granularity);
	struct atomic_result ignored;
	const struct atomic exchange = {.op = ATOMIC_EXCHANGE, .value = position, .result = &ignored};
	bool stored = guarded_atomic(f->map + RETIRED_AT, &exchange) && guarded_flush(stores, f->map + RETIRED_AT, sizeof(position));
	stores_drain(stores);
	return stored ? 0 : persist_failed(EIO, e);
}

/* ---- to open it ---- */

static int open_directory(int volume)
{
	return openat(volume, DIRECTORY, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int map_log(struct logfile *f, struct pmemset_error *e)
{
	f->map = NULL;
	if (f->file->medium.granularity == PMEM2_GRANULARITY_PAGE || f->read_only)
		return 0;
	f->map_size = f->ring_at + f->ring_size;
	int flags = f->file->medium.map_sync ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
	char *map = mmap(NULL, f->map_size, PROT_READ | PROT_WRITE, flags, f->file->fd, 0);
	if (map == MAP_FAILED)
		return error_sys(e, 0, errno, "the redo log cannot be mapped: %s", strerror(errno));
	f->map = map;
	return 0;
}

void logfile_close(struct logfile *f)
{
	if (f->map != NULL)
		(void)munmap(f->map, f->map_size);
	if (f->file != NULL)
		file_release(f->file);
	f->map = NULL;
	f->file = NULL;
}

bool logfile_has_its_name(const struct logfile *f)
{
	struct stat st;
	return f->file != NULL && fstat(f->file->fd, &st) == 0 && st.st_nlink > 0;
}

/* ---- what an earlier process has left ---- */

static int unreadable(struct logfile *f, int why, const char *sentence)
{
	f->unreadable = sentence;
	f->why = why;
	return 0;
}

/* What is kept was written before the log had its name. */
static int no_record(struct logfile *f, enum log_place place)
{
	return place == LOG_KEPT ? unreadable(f, EUCLEAN, "what it keeps is damaged") : 0;
}

static int read_place(const struct logfile *f, enum log_place place, uint64_t position, void *bytes, uint64_t size)
{
	return place == LOG_RING ? read_ring(f, position, bytes, size) : read_at(f->file->fd, KEPT_AT + position, bytes, size);
}

int logfile_read(struct logfile *f, enum log_place place, uint64_t position, struct record *record, struct pmemset_error *e)
{
	struct record_head head;
	uint64_t max = place == LOG_RING ? f->ring_size : f->kept_size - position;
	*record = (struct record){0};
	if (max < sizeof(head))
		return no_record(f, place);
	int why = read_place(f, place, position, &head, sizeof(head));
	if (why != 0)
		return unreadable(f, why, "it cannot be read");
	if (!record_is_here(&head, f->epoch, position, max))
		return no_record(f, place);
	struct record read = {.bytes = malloc(head.size), .size = head.size, .capacity = head.size};
	if (read.bytes == NULL)
		return error_set(e, -ENOMEM, "no memory for a record");
	why = read_place(f, place, position, read.bytes, head.size);
	if (why == 0 && record_is_whole(&read)) {
		*record = read;
		return 0;
	}
	free(read.bytes);
	return why ? unreadable(f, why, "it cannot be read") : no_record(f, place);
}

static int load_head(struct logfile *f, uint64_t *retired, struct pmemset_error *e)
{
	struct log_head head;
	struct stat st;
	int fd = f->file->fd;
	if (fstat(fd, &st) != 0)
		return unreadable(f, errno, "it cannot be read");
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)KEPT_AT || read_at(fd, 0, (char *)&head, sizeof(head)) != 0 ||
			head.magic != LOG_MAGIC)
		return unreadable(f, EUCLEAN, "it is none");
	if (head.version != LOG_VERSION)
		return unreadable(f, EUCLEAN, "it is of a version that is not known");
	if (head.sum != record_sum(&head, offsetof(struct log_head, sum)) || head.ring_size == 0 || head.ring_size % PAGE_SIZE_MIN != 0 ||
			head.ring_at < KEPT_AT || head.ring_at - KEPT_AT < head.kept_size || head.ring_size > INT64_MAX - head.ring_at ||
			(uint64_t)st.st_size != head.ring_at + head.ring_size || head.ring_at > INT64_MAX)
		return unreadable(f, EUCLEAN, "its head is damaged");
	f->epoch = head.epoch;
	f->kept_size = head.kept_size;
	f->ring_at = head.ring_at;
	f->ring_size = head.ring_size;
	int why = read_at(fd, RETIRED_AT, (char *)retired, sizeof(*retired));
	if (why != 0)
		return unreadable(f, why, "it cannot be read");
	return map_log(f, e) ? unreadable(f, e->sys_errno, "it cannot be mapped") : 0;
}

int logfile_load(struct logfile *f, int volume, uint64_t *retired, struct pmemset_error *e)
{
	*f = (struct logfile){.dir = -1};
	*retired = 0;
	int dir = open_directory(volume);
	if (dir < 0)
		return errno == ENOENT ? 0 : unreadable(f, errno, "its directory cannot be opened");
	int fd = openat(dir, NAME, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int why = errno;
	f->read_only = fd < 0 && why == EROFS;
	if (f->read_only) {
		fd = openat(dir, NAME, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		why = errno;
	}
	(void)unlinkat(dir, NAME_OF_NEW, 0);
	(void)close(dir);
	if (fd < 0)
		return why == ENOENT ? 0 : unreadable(f, why, "it cannot be opened");
	int rc = file_open(fd, &f->file, e);
	return rc ? rc : load_head(f, retired, e);
}

/* ---- to make one ---- */

static int check_free(const struct logfile *f, uint64_t size, unsigned keep_free, struct pmemset_error *e)
{
	struct statvfs fs;
	if (keep_free == 0)
		return 0;
	if (fstatvfs(f->file->fd, &fs) != 0)
		return error_sys(e, 0, errno, "statvfs");
	uint64_t keep = (uint64_t)fs.f_blocks * fs.f_frsize / 100 * keep_free;
	uint64_t available = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (available >= keep && available - keep >= size)
		return 0;
	error_set(e, -ENOSPC, "a redo log of %" PRIu64 " bytes would leave less than %" PRIu64 " of %" PRIu64, size, keep, available);
	e->reason = PMEMSET_REASON_KEEP_FREE;
	e->value = available > keep ? available - keep : 0;
	return e->code;
}

/* Allocated, so that a full disk says so at once; and written, so that no record changes metadata. */
static int write_zeros(const struct logfile *f, uint64_t size, struct pmemset_error *e)
{
	char *zeros = calloc(1, CHUNK_SIZE);
	int rc = zeros ? 0 : error_set(e, -ENOMEM, "no memory for a redo log");
	if (rc == 0 && fallocate(f->file->fd, 0, 0, (off_t)size) != 0 && errno != EOPNOTSUPP && errno != EINTR)
		rc = error_sys(e, 0, errno, "cannot make a redo log of %" PRIu64 " bytes: %s", size, strerror(errno));
	for (uint64_t at = 0; rc == 0 && at < size; at += CHUNK_SIZE)
		rc = write_at(f, at, zeros, size - at < CHUNK_SIZE ? size - at : CHUNK_SIZE, e);
	free(zeros);
	return rc;
}

static int write_head(struct logfile *f, unsigned keep_free, struct pmemset_error *e)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct log_head head = {.magic = LOG_MAGIC, .version = LOG_VERSION, .kept_size = f->kept_size, .ring_size = f->ring_size};
	if (getrandom(&head.epoch, sizeof(head.epoch), 0) != (ssize_t)sizeof(head.epoch))
		return error_sys(e, 0, errno, "no random number for a redo log");
	head.ring_at = (KEPT_AT + head.kept_size + page - 1) & ~(page - 1);
	head.sum = record_sum(&head, offsetof(struct log_head, sum));
	f->epoch = head.epoch;
	f->ring_at = head.ring_at;
	uint64_t size = head.ring_at + head.ring_size;
	int rc = check_free(f, size, keep_free, e);
	if (rc == 0)
		rc = write_zeros(f, size, e);
	return rc ? rc : write_at(f, 0, (const char *)&head, sizeof(head), e);
}

/* Where it is not there yet, it is made, and its name is durable. */
static int make_directory(int volume, struct pmemset_error *e)
{
	int dir = open_directory(volume);
	if (dir < 0 && errno == ENOENT && (mkdirat(volume, DIRECTORY, 0700) == 0 || errno == EEXIST)) {
		dir = open_directory(volume);
		int above = openat(volume, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		int why = above < 0 ? errno : file_sync(above);
		if (above >= 0)
			(void)close(above);
		if (dir >= 0 && why != 0) {
			(void)close(dir);
			return persist_failed(why, e), -1;
		}
	}
	if (dir < 0)
		error_sys(e, 0, errno, "the redo log's directory: %s", strerror(errno));
	return dir;
}

int logfile_make(struct logfile *f, int volume, struct log_sizes sizes, struct pmemset_error *e)
{
	*f = (struct logfile){.dir = make_directory(volume, e), .kept_size = sizes.kept, .ring_size = sizes.ring};
	if (f->dir < 0)
		return e->code;
	(void)unlinkat(f->dir, NAME_OF_NEW, 0);
	int fd = openat(f->dir, NAME_OF_NEW, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600);
	int rc = fd < 0 ? error_sys(e, 0, errno, "cannot make a redo log: %s", strerror(errno)) : file_open(fd, &f->file, e);
	if (rc == 0)
		rc = write_head(f, sizes.keep_free, e);
	if (rc != 0)
		logfile_discard(f);
	return rc;
}

int logfile_keep(const struct logfile *f, uint64_t at, struct record *record, struct pmemset_error *e)
{
	record_place(record, f->epoch, at);
	return write_at(f, KEPT_AT + at, record->bytes, record->size, e);
}

int logfile_name(struct logfile *f, struct pmemset_error *e)
{
	int why = file_sync(f->file->fd);
	int rc = why ? persist_failed(why, e) : map_log(f, e);
	if (rc == 0 && renameat(f->dir, NAME_OF_NEW, f->dir, NAME) != 0)
		rc = error_sys(e, 0, errno, "cannot give the redo log its name: %s", strerror(errno));
	why = rc == 0 ? file_sync(f->dir) : 0;
	if (why != 0) /* after a crash the old one may be there: it cannot be written to, and this one not yet */
		rc = persist_failed(why, e);
	if (rc == 0) {
		(void)close(f->dir);
		f->dir = -1;
	}
	return rc;
}

void logfile_discard(struct logfile *f)
{
	logfile_close(f);
	(void)unlinkat(f->dir, NAME_OF_NEW, 0); /* where it has its name by now, that one stays */
	(void)close(f->dir);
	f->dir = -1;
}
