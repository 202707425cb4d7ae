/* SPDX-License-Identifier: BSD-3-Clause */
#include "file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 1024u

/*
 * Each range that is flushed on its own makes the disk flush its cache, which is what takes the time, so all go in one where nobody else's dirt
 * would have to be written for it, and where there are more than this.
 */
#define RANGES_APART 64u

#define FOLIO_SIZE (UINT64_C(32) << 10) /* of one write; file.h says why */
#define ZEROS_SIZE (1u << 20)

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *buckets[BUCKETS];
static struct file *retired; /* closed files, to be used again */
static _Atomic unsigned failures;
static _Atomic uint64_t last_failure;
static _Atomic uint64_t flushes_of_ranges, flushes_of_files, flushes_failed, flush_callers;

static struct file **bucket_of(dev_t dev, ino_t ino)
{
	return &buckets[(ino * UINT64_C(0x9E3779B97F4A7C15) ^ dev) % BUCKETS];
}

static struct file *find(dev_t dev, ino_t ino)
{
	struct file *file = *bucket_of(dev, ino);
	while (file != NULL && (file->dev != dev || file->ino != ino))
		file = file->next;
	return file;
}

static struct file *take_memory(void)
{
	struct file *file = retired;
	if (file != NULL) {
		retired = file->next;
		return file;
	}
	file = calloc(1, sizeof(*file));
	if (file == NULL)
		return NULL;
	pthread_mutex_init(&file->size_lock, NULL);
	pthread_mutex_init(&file->lock, NULL);
	pthread_mutex_init(&file->uses_lock, NULL);
	pthread_cond_init(&file->done, NULL);
	return file;
}

/* A signal that interrupts (on FUSE and NFS) is no loss: what there is to report will be, when asked again. */
static int uninterrupted(int (*sync)(int), int fd)
{
	int rc;
	do
		rc = sync(fd) == 0 ? 0 : errno;
	while (rc == EINTR);
	return rc;
}

int file_sync(int fd)
{
	return uninterrupted(fsync, fd);
}

int file_open(int fd, struct file **out, struct pmemset_error *e)
{
	*out = NULL;
	struct stat st;
	if (fstat(fd, &st) != 0) {
		int why = errno;
		(void)close(fd);
		return error_sys(e, 0, why, "fstat");
	}
	pthread_mutex_lock(&registry_lock);
	struct file *file = find(st.st_dev, st.st_ino);
	if (file != NULL) {
		file->references++;
		pthread_mutex_unlock(&registry_lock);
		(void)close(fd);
		*out = file;
		return 0;
	}
	pthread_mutex_unlock(&registry_lock);

	/* Asks sysfs, so without the lock; another thread may register the same file meanwhile. */
	struct medium medium;
	char identity[IDENTITY_SIZE];
	medium_of(fd, &medium);
	identity_of(fd, identity);

	pthread_mutex_lock(&registry_lock);
	file = find(st.st_dev, st.st_ino);
	if (file != NULL) {
		file->references++;
		(void)close(fd);
	} else if ((file = take_memory()) == NULL) {
		pthread_mutex_unlock(&registry_lock);
		(void)close(fd);
		return error_set(e, -ENOMEM, "no memory for a file");
	} else {
		file->dev = st.st_dev;
		file->ino = st.st_ino;
		file->fd = fd;
		file->medium = medium;
		memcpy(file->identity, identity, sizeof(identity));
		atomic_store(&file->failed, 0);
		atomic_store(&file->losses, 0);
		atomic_store(&file->reach, 0);
		atomic_store(&file->log, NULL);
		file->stores = file->clean = 0;
		file->dirt.count = file->in_round.count = 0;
		file->settled = false;
		file->references = 1;
		struct file **bucket = bucket_of(st.st_dev, st.st_ino);
		file->next = *bucket;
		*bucket = file;
	}
	pthread_mutex_unlock(&registry_lock);
	*out = file;
	return 0;
}

void file_settle(struct file *file)
{
	pthread_mutex_lock(&file->size_lock);
	if (!file->settled)
		(void)uninterrupted(fdatasync, file->fd);
	file->settled = true;
	pthread_mutex_unlock(&file->size_lock);
}

int file_empty(struct file *file, struct pmemset_error *e)
{
	/* Whoever comes to have it meanwhile maps nothing before this is done, and finds it empty then. */
	pthread_mutex_lock(&file->size_lock);
	pthread_mutex_lock(&registry_lock);
	bool shared = file->references > 1;
	pthread_mutex_unlock(&registry_lock);
	int rc = shared ? EBUSY : ftruncate(file->fd, 0) == 0 ? 0 : errno;
	pthread_mutex_unlock(&file->size_lock);
	return rc ? error_sys(e, 0, rc, "the file is not emptied: %s", strerror(rc)) : 0;
}

void file_hold(struct file *file)
{
	pthread_mutex_lock(&registry_lock);
	assert(file->references > 0);
	file->references++;
	pthread_mutex_unlock(&registry_lock);
}

void file_release(struct file *file)
{
	int fd = -1;
	pthread_mutex_lock(&registry_lock);
	assert(file->references > 0);
	if (--file->references == 0) {
		struct file **link = bucket_of(file->dev, file->ino);
		while (*link != file)
			link = &(*link)->next;
		*link = file->next;
		fd = file->fd;
		if (atomic_load(&file->failed) != 0)
			atomic_fetch_sub(&failures, 1);
		file->next = retired;
		retired = file;
	}
	pthread_mutex_unlock(&registry_lock);
	/* Without the lock: the last close of a file that has no name any more frees its blocks, which takes a while for a large one. */
	if (fd >= 0)
		(void)close(fd);
}

bool file_is_open(dev_t dev, ino_t ino)
{
	pthread_mutex_lock(&registry_lock);
	bool open = find(dev, ino) != NULL;
	pthread_mutex_unlock(&registry_lock);
	return open;
}

/* ---- the flusher ---- */

struct flush {
	const struct flush_range *ranges;
	size_t count;
	bool whole; /* not only these ranges, but the file */
	struct flush *next;
	int result; /* errno, once answered */
	bool answered;
};

static int by_address(const void *a, const void *b)
{
	const struct flush_range *x = a;
	const struct flush_range *y = b;
	return (x->addr > y->addr) - (x->addr < y->addr);
}

/* Whole pages, clipped to nothing: a part begins on a page, so rounding down stays inside of it. */
static int sync_range(uint64_t addr, uint64_t end)
{
	uint64_t start = addr & ~((uint64_t)sysconf(_SC_PAGESIZE) - 1);
	void *from = (void *)(uintptr_t)start; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in every range */
	int rc;
	do
		rc = msync(from, end - start, MS_SYNC) == 0 ? 0 : errno;
	while (rc == EINTR);
	return rc;
}

static int sync_ranges(struct flush_range *ranges, size_t count)
{
	/* cppcheck-suppress uninitvar; a round that is not whole has a range, at the least */
	qsort(ranges, count, sizeof(*ranges), by_address);
	int rc = 0;
	for (size_t i = 0; i < count && rc == 0;) {
		uint64_t start = ranges[i].addr;
		uint64_t end = start + ranges[i].length;
		for (i++; i < count && ranges[i].addr <= end; i++) {
			uint64_t further = ranges[i].addr + ranges[i].length;
			end = further > end ? further : end;
		}
		rc = sync_range(start, end);
	}
	return rc;
}

static int count_flush(_Atomic uint64_t *kind, uint64_t callers, int rc)
{
	atomic_fetch_add_explicit(kind, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&flush_callers, callers, memory_order_relaxed);
	if (rc != 0)
		atomic_fetch_add_explicit(&flushes_failed, 1, memory_order_relaxed);
	return rc;
}

/* One round, for everybody in it; errno. */
static int flush_round(struct file *file, const struct flush *round, bool whole)
{
	struct flush_range all[RANGES_APART];
	size_t n = 0;
	uint64_t callers = 0;
	for (const struct flush *f = round; f != NULL; f = f->next, callers++)
		for (size_t i = 0; !whole && i < f->count; i++)
			all[n++] = f->ranges[i];
	return whole ? count_flush(&flushes_of_files, callers, uninterrupted(fdatasync, file->fd))
		     : count_flush(&flushes_of_ranges, callers, sync_ranges(all, n));
}

/* ---- what is known of its stores; under the lock ---- */

/* Its bytes, and all that anybody may have stored through pointers. */
static void doubt_round(struct file *file, const struct flush *round)
{
	dirt_join(&file->dirt, &file->in_round);
	file->in_round.count = 0;
	for (const struct flush *f = round; f != NULL; f = f->next)
		for (size_t i = 0; i < f->count; i++)
			dirt_add(&file->dirt, f->ranges[i].offset, f->ranges[i].offset + f->ranges[i].length);
	pthread_mutex_lock(&file->uses_lock);
	for (const struct file_use *use = file->uses; use != NULL; use = use->next)
		if (use->direct)
			dirt_add(&file->dirt, use->offset, use->offset + use->length);
	pthread_mutex_unlock(&file->uses_lock);
}

static uint64_t now(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void degrade(struct file *file, uint64_t at, int why)
{
	file->failed_at = at;
	file->why = why;
	if (atomic_exchange(&file->failed, why) == 0) {
		file->failure = atomic_fetch_add(&last_failure, 1) + 1;
		atomic_fetch_add(&failures, 1);
	}
}

static void cut_round(struct dirt *dirt, const struct flush *round)
{
	for (const struct flush *f = round; dirt->count > 0 && f != NULL; f = f->next)
		for (size_t i = 0; i < f->count; i++)
			dirt_cut(dirt, f->ranges[i].offset, f->ranges[i].offset + f->ranges[i].length);
}

static bool has_other_dirt(const struct file *file, const struct flush *round)
{
	struct dirt left;
	dirt_copy(&left, &file->dirt);
	cut_round(&left, round);
	return left.count > 0;
}

/*
 * fdatasync writes all dirt of the file first, everybody's; ranges cost a flush of the disk each. So: one range, or a few beside dirt that
 * nobody asked to have flushed: by range; else the file.
 */
static bool is_of_file(const struct file *file, const struct flush *round)
{
	size_t count = 0;
	bool whole = false;
	for (const struct flush *f = round; f != NULL; f = f->next) {
		whole |= f->whole;
		count += f->count;
	}
	return whole || count > RANGES_APART || (count > 1 && !has_other_dirt(file, round));
}

/* What the round vouches for is no dirt any more. */
static void vouch(struct file *file, const struct flush *round, bool whole)
{
	if (!whole) {
		cut_round(&file->in_round, round);
		dirt_join(&file->dirt, &file->in_round);
	}
	file->in_round.count = 0;
}

static void begin_round(struct file *file)
{
	file->running = true;
	dirt_copy(&file->in_round, &file->dirt);
	file->dirt.count = 0;
}

/* ---- flush ---- */

static int refuse_degraded(const struct file *file, struct pmemset_error *e)
{
	error_sys(e, -EIO, file->why, "an earlier flush of the file failed");
	e->reason = PMEMSET_REASON_DEGRADED;
	return -EIO;
}

static bool has_lost(const struct file *file, const struct flush_range *ranges, size_t count)
{
	uint64_t losses = file_losses(file);
	bool lost = atomic_load(&file->failed) != 0;
	for (size_t i = 0; !lost && i < count; i++)
		lost = ranges[i].since < losses;
	return lost;
}

static struct flush *join_rounds(struct flush *round, struct flush *more)
{
	struct flush **end = &round;
	while (*end != NULL)
		end = &(*end)->next;
	*end = more;
	return round;
}

/* Under the lock, which it lets go of while it flushes: for all who wait. */
static void run_round(struct file *file)
{
	struct flush *round = file->waiting;
	file->waiting = NULL;
	int rc = atomic_load(&file->failed); /* as can be where a store was told of late */
	uint64_t stores = file->stores;
	bool whole = false;
	if (rc == 0) {
		whole = is_of_file(file, round);
		begin_round(file);
		pthread_mutex_unlock(&file->lock);
		rc = flush_round(file, round, whole);
		pthread_mutex_lock(&file->lock);
		file->running = false;
		if (rc != 0) {
			atomic_fetch_add(&file->losses, 1);
			degrade(file, now(), rc);
		}
	}
	if (rc == 0) {
		vouch(file, round, whole);
		file->clean = whole ? stores : file->clean;
	} else {
		/* Those who have come meanwhile have stored before it failed. */
		round = join_rounds(round, file->waiting);
		file->waiting = NULL;
		doubt_round(file, round);
	}
	while (round != NULL) {
		struct flush *next = round->next;
		round->result = rc;
		round->answered = true;
		round = next;
	}
	pthread_cond_broadcast(&file->done);
}

static int flush(struct file *file, struct flush *mine, struct pmemset_error *e)
{
	pthread_mutex_lock(&file->lock);
	if (has_lost(file, mine->ranges, mine->count)) {
		refuse_degraded(file, e);
		pthread_mutex_unlock(&file->lock);
		return e->code;
	}
	mine->next = file->waiting;
	file->waiting = mine; /* this call does not return before a round has answered it and let it go */
	while (!mine->answered) {
		if (file->running)
			pthread_cond_wait(&file->done, &file->lock);
		else
			run_round(file);
	}
	pthread_mutex_unlock(&file->lock);
	if (mine->result == 0)
		return 0;
	error_sys(e, -EIO, mine->result, "flush failed: %s", strerror(mine->result));
	e->reason = PMEMSET_REASON_PERSIST_FAILED;
	return -EIO;
}

int file_flush(struct file *file, const struct flush_range *ranges, size_t count, struct pmemset_error *e)
{
	struct flush mine = {.ranges = ranges, .count = count, .whole = count == 0};
	return flush(file, &mine, e);
}

int file_flush_whole(struct file *file, const struct flush_range *ranges, size_t count, struct pmemset_error *e)
{
	struct flush mine = {.ranges = ranges, .count = count, .whole = true};
	return flush(file, &mine, e);
}

unsigned file_failures(void)
{
	return atomic_load(&failures);
}

struct flush_counts file_flush_counts(void)
{
	return (struct flush_counts){.ranges = atomic_load_explicit(&flushes_of_ranges, memory_order_relaxed),
			.files = atomic_load_explicit(&flushes_of_files, memory_order_relaxed),
			.failed = atomic_load_explicit(&flushes_failed, memory_order_relaxed),
			.callers = atomic_load_explicit(&flush_callers, memory_order_relaxed)};
}

uint64_t file_losses(const struct file *file)
{
	return atomic_load(&file->losses);
}

uint64_t file_soil(struct file *file, uint64_t offset, uint64_t length, uint64_t since)
{
	pthread_mutex_lock(&file->lock);
	uint64_t store = ++file->stores;
	dirt_add(&file->dirt, offset, offset + length);
	if (since < file_losses(file)) {
		file->late = true;
		if (atomic_load(&file->failed) == 0) /* it was dealt with, without these bytes */
			degrade(file, now(), file->why);
	}
	pthread_mutex_unlock(&file->lock);
	return store;
}

bool file_has_flushed(struct file *file, uint64_t store)
{
	pthread_mutex_lock(&file->lock);
	bool flushed = store <= file->clean;
	pthread_mutex_unlock(&file->lock);
	return flushed;
}

/* ---- where it is mapped ---- */

void file_add_use(struct file *file, struct file_use *use)
{
	pthread_mutex_lock(&file->uses_lock);
	use->next = file->uses;
	use->link = &file->uses;
	if (use->next != NULL)
		use->next->link = &use->next;
	file->uses = use;
	pthread_mutex_unlock(&file->uses_lock);
}

void file_end_use(struct file *file, struct file_use *use)
{
	pthread_mutex_lock(&file->uses_lock);
	*use->link = use->next;
	if (use->next != NULL)
		use->next->link = use->link;
	pthread_mutex_unlock(&file->uses_lock);
}

void file_unmap_pages(struct file *file)
{
	pthread_mutex_lock(&file->uses_lock);
	for (const struct file_use *use = file->uses; use != NULL; use = use->next) {
		void *at = (void *)(uintptr_t)use->addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in every range */
		(void)madvise(at, use->length, MADV_DONTNEED);
	}
	pthread_mutex_unlock(&file->uses_lock);
}

/* ---- a flush that failed ---- */

bool file_failure(struct file *file, struct failure *failure, struct dirt *doubt)
{
	pthread_mutex_lock(&file->lock);
	bool failed = atomic_load(&file->failed) != 0;
	if (failed) {
		*failure = (struct failure){.id = file->failure, .at = file->failed_at, .why = file->why};
		dirt_copy(doubt, &file->dirt);
		dirt_join(doubt, &file->in_round);
	}
	pthread_mutex_unlock(&file->lock);
	return failed;
}

void file_fail(struct file *file, uint64_t at, int why, uint64_t offset, uint64_t length)
{
	pthread_mutex_lock(&file->lock);
	dirt_add(&file->dirt, offset, offset + length);
	if (atomic_load(&file->failed) != 0) {
		file->late = true; /* who deals with the failure just now does not know of these */
	} else {
		atomic_fetch_add(&file->losses, 1);
		degrade(file, at, why);
	}
	pthread_mutex_unlock(&file->lock);
}

/* Under the lock, which it lets go of meanwhile. *late: there are bytes that it did not know of. */
static int try_to_recover(struct file *file, int (*deal)(struct file *, const struct dirt *, struct pmemset_error *), bool *late,
		struct pmemset_error *e)
{
	/* Whatever was stored since the failure is written out. If that fails as well, it is in doubt as well. */
	pthread_mutex_unlock(&file->lock);
	int rc = uninterrupted(fdatasync, file->fd);
	pthread_mutex_lock(&file->lock);
	if (rc != 0)
		atomic_fetch_add(&file->losses, 1);

	doubt_round(file, NULL);
	uint64_t stores = file->stores;
	file->late = false;
	begin_round(file);
	pthread_mutex_unlock(&file->lock);
	rc = deal(file, &file->in_round, e);
	int why = rc == 0 ? uninterrupted(fdatasync, file->fd) : 0;
	pthread_mutex_lock(&file->lock);
	*late = file->late;
	if (why != 0) {
		rc = error_sys(e, -EIO, why, "flush failed: %s", strerror(why));
		e->reason = PMEMSET_REASON_PERSIST_FAILED;
	}
	vouch(file, NULL, rc == 0 && !*late);
	if (rc == 0)
		file->clean = stores;
	return rc;
}

int file_recover(struct file *file, uint64_t id, int (*deal)(struct file *, const struct dirt *, struct pmemset_error *),
		struct pmemset_error *e)
{
	pthread_mutex_lock(&file->lock);
	while (file->running)
		pthread_cond_wait(&file->done, &file->lock);
	if (atomic_load(&file->failed) == 0 || file->failure != id) {
		pthread_mutex_unlock(&file->lock);
		return error_set(e, -ENOENT, "there is no failure %" PRIu64 " any more", id);
	}
	int rc;
	bool late;
	file->running = true;
	do
		rc = try_to_recover(file, deal, &late, e);
	while (rc == 0 && late);
	file->running = false;
	if (rc == 0) {
		atomic_store(&file->failed, 0);
		atomic_fetch_sub(&failures, 1);
	} else if (e->reason == PMEMSET_REASON_PERSIST_FAILED) {
		atomic_fetch_add(&file->losses, 1);
		degrade(file, now(), e->sys_errno);
	}
	pthread_cond_broadcast(&file->done);
	pthread_mutex_unlock(&file->lock);
	return rc;
}

/* ---- bytes past any mapping ---- */

static int check_within(struct file *file, uint64_t length, uint64_t offset, struct pmemset_error *e)
{
	struct stat st;
	if (fstat(file->fd, &st) != 0)
		return error_sys(e, 0, errno, "fstat");
	uint64_t size = (uint64_t)st.st_size;
	if (offset <= size && length <= size - offset)
		return 0;
	error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "%" PRIu64 " bytes at %" PRIu64 " leave the file's %" PRIu64, length, offset, size);
	e->value = size;
	return e->code;
}

static int refused(int why, struct pmemset_error *e)
{
	return error_sys(e, why == EIO ? PMEMSET_E_IO_FAIL : 0, why, "the file: %s", strerror(why));
}

int file_read(struct file *file, char *buf, uint64_t length, uint64_t offset, struct pmemset_error *e)
{
	int rc = check_within(file, length, offset, e);
	for (uint64_t n = 0; rc == 0 && n < length;) {
		ssize_t got = pread(file->fd, buf + n, length - n, (off_t)(offset + n));
		if (got > 0)
			n += (uint64_t)got;
		else if (got == 0) /* it was cut short meanwhile */
			rc = check_within(file, length, offset, e);
		else if (errno != EINTR)
			rc = refused(errno, e);
	}
	return rc;
}

int64_t file_put(int fd, const void *bytes, uint64_t length, uint64_t offset)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t folio = page > FOLIO_SIZE ? page : FOLIO_SIZE;
	uint64_t room = folio - offset % folio;
	ssize_t wrote;
	do
		wrote = pwrite(fd, bytes, length < room ? length : room, (off_t)offset);
	while (wrote < 0 && errno == EINTR);
	return wrote > 0 ? wrote : wrote == 0 ? -ENOSPC : -errno;
}

int file_write(struct file *file, const char *buf, uint64_t length, uint64_t offset, struct pmemset_error *e)
{
	uint64_t since = file_losses(file);
	int rc = check_within(file, length, offset, e);
	uint64_t n = 0;
	while (rc == 0 && n < length) {
		int64_t wrote = file_put(file->fd, buf + n, length - n, offset + n);
		if (wrote < 0)
			rc = refused((int)-wrote, e);
		else
			n += (uint64_t)wrote;
	}
	if (n > 0)
		(void)file_soil(file, offset, n, since);
	return rc;
}

/* ---- size ---- */

/* In large pieces: where this is done, there is mostly no page cache, and each is a step of the journal's. */
static int write_zeros(int fd, uint64_t from, uint64_t to)
{
	void *zeros = calloc(1, ZEROS_SIZE);
	if (zeros == NULL)
		return ENOMEM;
	int rc = 0;
	while (from < to && rc == 0) {
		size_t n = to - from < ZEROS_SIZE ? (size_t)(to - from) : ZEROS_SIZE;
		ssize_t wrote = pwrite(fd, zeros, n, (off_t)from);
		if (wrote > 0)
			from += (uint64_t)wrote;
		else if (wrote == 0)
			rc = ENOSPC;
		else if (errno != EINTR)
			rc = errno;
	}
	free(zeros);
	return rc;
}

/* Not posix_fallocate: glibc's falls back to writing into blocks that others may be writing. */
static int allocate(int fd, const struct medium *medium, uint64_t from, uint64_t to)
{
	int rc;
	do
		rc = fallocate(fd, 0, (off_t)from, (off_t)(to - from)) == 0 ? 0 : errno;
	while (rc == EINTR);
	if (rc == EOPNOTSUPP)
		return write_zeros(fd, from, to);
	if (rc == 0 && medium->map_sync)
		rc = write_zeros(fd, from, to);
	return rc;
}

int file_punch(struct file *file, uint64_t offset, uint64_t length)
{
	int rc;
	do
		rc = fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0 ? 0 : errno;
	while (rc == EINTR);
	if (rc == EOPNOTSUPP)
		return write_zeros(file->fd, offset, offset + length);
	return rc ? rc : allocate(file->fd, &file->medium, offset, offset + length);
}

int file_fill_holes(struct file *file, uint64_t offset, uint64_t length)
{
	off_t hole = lseek(file->fd, (off_t)offset, SEEK_HOLE);
	if (hole < 0 || (uint64_t)hole >= offset + length)
		return 0;
	int rc;
	do
		rc = fallocate(file->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0 ? 0 : errno;
	while (rc == EINTR);
	return rc == EOPNOTSUPP ? 0 : rc;
}

/* Growth that was let through and may not have its space yet: what statvfs says is not all free. */
struct pending {
	dev_t dev;
	uint64_t bytes;
	struct pending *before; /* begun before this one */
};
static pthread_mutex_t pending_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pending *pending;

/* Returns how many bytes of its file system those before it will take. */
static uint64_t begin_growth(struct pending *mine)
{
	uint64_t sum = 0;
	pthread_mutex_lock(&pending_lock);
	mine->before = pending;
	/* cppcheck-suppress autoVariables; whoever begins it ends it before it returns */
	pending = mine;
	for (const struct pending *p = mine->before; p != NULL; p = p->before)
		sum += p->dev == mine->dev ? p->bytes : 0;
	pthread_mutex_unlock(&pending_lock);
	return sum;
}

static void end_growth(struct pending *mine)
{
	pthread_mutex_lock(&pending_lock);
	struct pending **link = &pending;
	while (*link != mine)
		link = &(*link)->before;
	*link = mine->before;
	pthread_mutex_unlock(&pending_lock);
}

static int check_free(const struct file *file, uint64_t bytes, uint64_t keep_free, uint64_t taken, struct pmemset_error *e)
{
	struct statvfs fs;
	if (fstatvfs(file->fd, &fs) != 0)
		return error_sys(e, 0, errno, "statvfs");
	if (fs.f_blocks == 0) /* one that does not say */
		return 0;
	uint64_t available = (uint64_t)fs.f_bavail * fs.f_frsize;
	available = available > taken ? available - taken : 0;
	if (available >= keep_free && available - keep_free >= bytes)
		return 0;
	error_set(e, -ENOSPC, "growing by %" PRIu64 " bytes would leave less than %" PRIu64 " of %" PRIu64, bytes, keep_free, available);
	if (available >= bytes)
		e->reason = PMEMSET_REASON_KEEP_FREE;
	e->value = available > keep_free ? available - keep_free : 0;
	return -ENOSPC;
}

int file_grow(struct file *file, uint64_t size, uint64_t keep_free, struct growth *growth, struct pmemset_error *e)
{
	growth->from = UINT64_MAX;
	struct stat st;
	if (fstat(file->fd, &st) != 0)
		return error_sys(e, 0, errno, "fstat");
	uint64_t from = (uint64_t)st.st_size;
	if (size <= from)
		return 0;
	struct pending mine = {.dev = file->dev, .bytes = size - from};
	uint64_t taken = begin_growth(&mine);
	if (check_free(file, size - from, keep_free, taken, e) != 0) {
		end_growth(&mine);
		return e->code;
	}
	growth->from = from;
	int why = allocate(file->fd, &file->medium, from, size);
	end_growth(&mine);
	int rc = why ? error_sys(e, 0, why, "cannot extend the file from %" PRIu64 " to %" PRIu64 " bytes: %s", from, size, strerror(why))
		     : file_flush(file, NULL, 0, e); /* the one description's errors are the flusher's, whoever asks */
	if (rc != 0) {
		file_ungrow(file, growth, e);
		growth->from = UINT64_MAX;
	}
	return rc;
}

void file_ungrow(struct file *file, const struct growth *growth, struct pmemset_error *e)
{
	if (growth->from == UINT64_MAX || atomic_load(&file->reach) > growth->from)
		return;
	int rc;
	do
		rc = ftruncate(file->fd, (off_t)growth->from) == 0 ? 0 : errno;
	while (rc == EINTR);
	if (rc != 0)
		error_add(e, "; and the file cannot be cut to %" PRIu64 " bytes again: %s", growth->from, strerror(rc));
}

void file_reach(struct file *file, uint64_t end)
{
	uint64_t reach = atomic_load(&file->reach);
	while (reach < end && !atomic_compare_exchange_weak(&file->reach, &reach, end))
		;
}
