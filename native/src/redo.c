/* SPDX-License-Identifier: BSD-3-Clause */
#include "redo.h"

#include "guard.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
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
#define RING_SIZE (UINT64_C(32) << 20)
#define ZEROS_SIZE (1u << 20)
#define PAGE_SIZE_MIN 4096u

static _Atomic uint64_t ring_size = RING_SIZE;

enum state {
	COMMITS, /* is being written to the log */
	APPLIES,
	DONE,	 /* applied, and the log may still have it */
	REFUSED, /* its commit failed, and the log may still have it */
	KEPT,
};

struct redo_log {
	dev_t dev;
	ino_t ino;
	unsigned users; /* under the registry's lock */
	struct redo_log *next_log;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	int dir;	   /* the volume's; -1: closed */
	struct file *file; /* NULL: none was made yet */
	char *map;	   /* NULL: it is written and flushed by page */
	uint64_t map_size;
	bool read_only;		/* the volume is: what is there is seen, and stays */
	const char *unreadable; /* why, where it cannot be read; a sentence */
	int why;		/* errno */
	uint64_t epoch, kept_size, ring_at, ring_size;
	uint64_t head, tail; /* positions: retired up to there, durably; where the next record goes */
	bool stale;	     /* it has to be written anew before it takes anything */
	bool loaded;	     /* what is kept was read from its ring, and is all that is there */
	bool retiring;
	unsigned busy;		 /* records that commit or apply */
	struct pending *records; /* of the ring, in order */
	struct pending *kept;	 /* in order */
};

static pthread_mutex_t logs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct redo_log *logs; /* never freed: a file that outlives its volume leads here */

void redo_set_ring_size(uint64_t size)
{
	atomic_store(&ring_size, size);
}

uint64_t redo_record_max(void)
{
	return atomic_load(&ring_size);
}

/* ---- pending records ---- */

void redo_drop(struct pending *p)
{
	if (p->hold.state != HOLD_WAITS)
		order_release(&p->hold);
	for (uint32_t i = 0; i < p->held_count; i++)
		if (p->files[i] != NULL)
			file_release(p->files[i]);
	free(p->hold.at);
	free(p->record.bytes);
	free(p->files);
	free(p);
}

static void append(struct pending **list, struct pending *p)
{
	while (*list != NULL)
		list = &(*list)->next;
	p->next = NULL;
	*list = p;
}

static void take_out(struct pending **list, const struct pending *p)
{
	while (*list != p)
		list = &(*list)->next;
	*list = p->next;
}

/* The record's entries of one file are held too. */
static int hold_row(struct pending *p, uint32_t row)
{
	struct record_entry entry;
	const char *ignored;
	int rc = 0;
	for (uint64_t at = 0; rc == 0 && record_next(&p->record, &at, &entry, &ignored);)
		if (entry.file == row)
			rc = hold_add(&p->hold, p->files[row], entry.offset, entry.length);
	return rc;
}

static int bind(struct pending *p, uint32_t row, struct file *file, struct pmemset_error *e)
{
	if (p->hold.state != HOLD_WAITS)
		order_release(&p->hold);
	p->files[row] = file;
	file_hold(file);
	int rc = hold_row(p, row);
	if (rc != 0) {
		p->files[row] = NULL;
		file_release(file);
		p->hold.count = 0; /* and again, what there was memory for before */
		for (uint32_t i = 0; i < p->file_count; i++)
			if (p->files[i] != NULL)
				(void)hold_row(p, i);
		error_set(e, rc, "no memory for a record");
	}
	order_keep(&p->hold);
	return rc;
}

/* ---- the log's bytes ---- */

static int persist_failed(int why, struct pmemset_error *e)
{
	error_sys(e, -EIO, why, "the redo log cannot be written: %s", strerror(why));
	e->reason = PMEMSET_REASON_PERSIST_FAILED;
	return e->code;
}

static int write_at(const struct redo_log *log, uint64_t offset, const char *bytes, uint64_t size, struct pmemset_error *e)
{
	while (size > 0) {
		uint64_t n = size < CHUNK_SIZE ? size : CHUNK_SIZE;
		if (log->map != NULL) {
			const struct stores *stores = stores_at(log->file->medium.granularity);
			if (!guarded_store(stores, log->map + offset, bytes, n, PMEM2_F_MEM_NONTEMPORAL))
				return persist_failed(EIO, e);
		} else {
			ssize_t wrote = pwrite(log->file->fd, bytes, n, (off_t)offset);
			if (wrote < 0 && errno == EINTR)
				continue;
			if (wrote <= 0)
				return persist_failed(wrote < 0 ? errno : ENOSPC, e);
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

/* From a position on, around the end of the ring if need be. */
static int write_ring(const struct redo_log *log, uint64_t position, const struct record *record, struct pmemset_error *e)
{
	uint64_t at = position % log->ring_size;
	uint64_t before_end = log->ring_size - at < record->size ? log->ring_size - at : record->size;
	int rc = write_at(log, log->ring_at + at, record->bytes, before_end, e);
	if (rc == 0)
		rc = write_at(log, log->ring_at, record->bytes + before_end, record->size - before_end, e);
	/* Before anybody else may write a record behind it: else that one could be durable, and this one not. */
	if (log->map != NULL)
		stores_drain(stores_at(log->file->medium.granularity));
	return rc;
}

static int read_ring(const struct redo_log *log, uint64_t position, char *bytes, uint64_t size)
{
	uint64_t at = position % log->ring_size;
	uint64_t before_end = log->ring_size - at < size ? log->ring_size - at : size;
	int rc = read_at(log->file->fd, log->ring_at + at, bytes, before_end);
	return rc ? rc : read_at(log->file->fd, log->ring_at, bytes + before_end, size - before_end);
}

/* All that was written; at page granularity shared with everybody who waits for the same. */
static int flush_log(const struct redo_log *log, struct pmemset_error *e)
{
	int rc = log->map != NULL ? 0 : file_flush(log->file, NULL, 0, e);
	if (rc != 0)
		e->reason = PMEMSET_REASON_PERSIST_FAILED;
	return rc;
}

static int write_retired(const struct redo_log *log, uint64_t position, struct pmemset_error *e)
{
	if (log->map == NULL) {
		int rc = write_at(log, RETIRED_AT, (const char *)&position, sizeof(position), e);
		return rc ? rc : flush_log(log, e);
	}
	const struct stores *stores = stores_at(log->file->medium.granularity);
	struct atomic_result ignored;
	const struct atomic exchange = {.op = ATOMIC_EXCHANGE, .value = position, .result = &ignored};
	bool stored = guarded_atomic(log->map + RETIRED_AT, &exchange) && guarded_flush(stores, log->map + RETIRED_AT, sizeof(position));
	stores_drain(stores);
	return stored ? 0 : persist_failed(EIO, e);
}

/* ---- to open it ---- */

static int open_directory(const struct redo_log *log)
{
	return openat(log->dir, DIRECTORY, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int map_log(struct redo_log *log, struct pmemset_error *e)
{
	log->map = NULL;
	if (log->file->medium.granularity == PMEM2_GRANULARITY_PAGE || log->read_only)
		return 0;
	log->map_size = log->ring_at + log->ring_size;
	int flags = log->file->medium.map_sync ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
	char *map = mmap(NULL, log->map_size, PROT_READ | PROT_WRITE, flags, log->file->fd, 0);
	if (map == MAP_FAILED)
		return error_sys(e, 0, errno, "the redo log cannot be mapped: %s", strerror(errno));
	log->map = map;
	return 0;
}

static void close_file(struct redo_log *log)
{
	if (log->map != NULL)
		(void)munmap(log->map, log->map_size);
	if (log->file != NULL)
		file_release(log->file);
	log->map = NULL;
	log->file = NULL;
}

static int unreadable(struct redo_log *log, int why, const char *sentence)
{
	log->unreadable = sentence;
	log->why = why;
	return 0;
}

static int keep_loaded(struct redo_log *log, struct record *record, struct pmemset_error *e)
{
	struct pending *p = calloc(1, sizeof(*p));
	uint32_t files = record_head(record)->files;
	if (p != NULL)
		p->files = calloc(files ? files : 1, sizeof(struct file *));
	if (p == NULL || p->files == NULL) {
		free(p);
		return error_set(e, -ENOMEM, "no memory for a record");
	}
	p->record = *record;
	p->file_count = p->held_count = files;
	p->state = KEPT;
	append(&log->kept, p);
	return 0;
}

/* One of the log, at an offset of what is kept or, in_ring, at a position. *size: its size, 0 where there is none. */
static int load_record(struct redo_log *log, bool in_ring, uint64_t position, uint64_t *size, struct pmemset_error *e)
{
	struct record_head head;
	uint64_t max = in_ring ? log->ring_size : log->kept_size - position;
	*size = 0;
	if (max < sizeof(head))
		return 0;
	int why = in_ring ? read_ring(log, position, (char *)&head, sizeof(head))
			  : read_at(log->file->fd, KEPT_AT + position, (char *)&head, sizeof(head));
	if (why != 0)
		return unreadable(log, why, "it cannot be read");
	if (!record_is_here(&head, log->epoch, position, max))
		return 0;
	struct record record = {.bytes = malloc(head.size), .size = head.size, .capacity = head.size};
	if (record.bytes == NULL)
		return error_set(e, -ENOMEM, "no memory for a record");
	why = in_ring ? read_ring(log, position, record.bytes, head.size)
		      : read_at(log->file->fd, KEPT_AT + position, record.bytes, head.size);
	bool whole = why == 0 && record_is_whole(&record);
	int rc = whole ? keep_loaded(log, &record, e) : 0;
	if (!whole || rc != 0)
		free(record.bytes);
	*size = whole ? head.size : 0;
	return why ? unreadable(log, why, "it cannot be read") : rc;
}

static int load_records(struct redo_log *log, struct pmemset_error *e)
{
	uint64_t size = 0;
	int rc = 0;
	for (uint64_t at = 0; rc == 0 && log->unreadable == NULL && at < log->kept_size; at += size) {
		rc = load_record(log, false, at, &size, e);
		if (rc == 0 && size == 0)
			return unreadable(log, EUCLEAN, "what it keeps is damaged");
	}
	log->tail = log->head;
	do {
		if (rc == 0 && log->unreadable == NULL)
			rc = load_record(log, true, log->tail, &size, e);
		log->tail += size;
		/* Once around it is no record any more: its position would be another. */
	} while (rc == 0 && log->unreadable == NULL && size != 0);
	log->stale = log->kept != NULL;
	log->loaded = log->kept_size == 0;
	return rc;
}

static int load_file(struct redo_log *log, struct pmemset_error *e)
{
	struct log_head head;
	struct stat st;
	int fd = log->file->fd;
	if (fstat(fd, &st) != 0)
		return unreadable(log, errno, "it cannot be read");
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)KEPT_AT || read_at(fd, 0, (char *)&head, sizeof(head)) != 0 ||
			head.magic != LOG_MAGIC)
		return unreadable(log, EUCLEAN, "it is none");
	if (head.version != LOG_VERSION)
		return unreadable(log, EUCLEAN, "it is of a version that is not known");
	if (head.sum != record_sum(&head, offsetof(struct log_head, sum)) || head.ring_size == 0 || head.ring_size % PAGE_SIZE_MIN != 0 ||
			head.ring_at < KEPT_AT || head.ring_at - KEPT_AT < head.kept_size || head.ring_size > INT64_MAX - head.ring_at ||
			(uint64_t)st.st_size != head.ring_at + head.ring_size || head.ring_at > INT64_MAX)
		return unreadable(log, EUCLEAN, "its head is damaged");
	log->epoch = head.epoch;
	log->kept_size = head.kept_size;
	log->ring_at = head.ring_at;
	log->ring_size = head.ring_size;
	int why = read_at(fd, RETIRED_AT, (char *)&log->head, sizeof(log->head));
	if (why != 0)
		return unreadable(log, why, "it cannot be read");
	return map_log(log, e) ? unreadable(log, e->sys_errno, "it cannot be mapped") : load_records(log, e);
}

/* What an earlier process has left. */
static int load(struct redo_log *log, struct pmemset_error *e)
{
	int dir = open_directory(log);
	if (dir < 0)
		return errno == ENOENT ? 0 : unreadable(log, errno, "its directory cannot be opened");
	int fd = openat(dir, NAME, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int why = errno;
	log->read_only = fd < 0 && why == EROFS;
	if (log->read_only) {
		fd = openat(dir, NAME, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		why = errno;
	}
	(void)unlinkat(dir, NAME_OF_NEW, 0);
	(void)close(dir);
	if (fd < 0)
		return why == ENOENT ? 0 : unreadable(log, why, "it cannot be opened");
	int rc = file_open(fd, &log->file, e);
	return rc ? rc : load_file(log, e);
}

/* All but its place in the list; nothing of it is in use. */
static void empty(struct redo_log *log)
{
	while (log->kept != NULL) {
		struct pending *p = log->kept;
		log->kept = p->next;
		redo_drop(p);
	}
	while (log->records != NULL) {
		struct pending *p = log->records;
		log->records = p->next;
		redo_drop(p);
	}
	close_file(log);
	if (log->dir >= 0)
		(void)close(log->dir);
	log->dir = -1;
}

static int start(struct redo_log *log, int dir, struct pmemset_error *e)
{
	pthread_mutex_lock(&log->lock);
	log->unreadable = NULL;
	log->head = log->tail = log->kept_size = 0;
	log->stale = log->loaded = log->read_only = false;
	log->dir = fcntl(dir, F_DUPFD_CLOEXEC, 3);
	int rc = log->dir >= 0 ? load(log, e) : error_sys(e, 0, errno, "dup: %s", strerror(errno));
	if (rc != 0)
		empty(log);
	pthread_mutex_unlock(&log->lock);
	return rc;
}

static struct redo_log *find(dev_t dev, ino_t ino)
{
	struct redo_log *log = logs;
	while (log != NULL && (log->dev != dev || log->ino != ino))
		log = log->next_log;
	if (log != NULL || (log = calloc(1, sizeof(*log))) == NULL)
		return log;
	log->dev = dev;
	log->ino = ino;
	log->dir = -1;
	pthread_mutex_init(&log->lock, NULL);
	pthread_cond_init(&log->changed, NULL);
	log->next_log = logs;
	logs = log;
	return log;
}

int redo_open(struct redo_log **opened, int dir, dev_t dev, ino_t ino, struct pmemset_error *e)
{
	pthread_mutex_lock(&logs_lock);
	struct redo_log *log = find(dev, ino);
	int rc = 0;
	if (log == NULL)
		rc = error_set(e, -ENOMEM, "no memory for a redo log");
	else if (log->users == 0)
		rc = start(log, dir, e);
	if (log != NULL && rc == 0)
		log->users++;
	*opened = rc ? NULL : log;
	pthread_mutex_unlock(&logs_lock);
	return rc;
}

static bool in_use(const struct redo_log *log)
{
	return log->busy > 0 || log->retiring;
}

void redo_close(struct redo_log *log)
{
	pthread_mutex_lock(&logs_lock);
	if (--log->users == 0) {
		pthread_mutex_lock(&log->lock);
		while (in_use(log))
			pthread_cond_wait(&log->changed, &log->lock);
		empty(log);
		pthread_cond_broadcast(&log->changed);
		pthread_mutex_unlock(&log->lock);
	}
	pthread_mutex_unlock(&logs_lock);
}

int redo_attach(struct redo_log *log, struct file *file, struct pmemset_error *e)
{
	int rc = 0;
	atomic_store(&file->log, log);
	pthread_mutex_lock(&log->lock);
	for (struct pending *p = log->kept; rc == 0 && p != NULL; p = p->next)
		for (uint32_t i = 0; rc == 0 && i < p->file_count; i++)
			if (p->files[i] == NULL && file->identity[0] != '\0' && identity_same(record_file(&p->record, i), file->identity))
				rc = bind(p, i, file, e);
	pthread_mutex_unlock(&log->lock);
	return rc;
}

int redo_adopt(struct redo_log *log, const char *was, struct file *file, struct pmemset_error *e)
{
	bool known = was[0] != '\0' && file->identity[0] != '\0';
	pthread_mutex_lock(&log->lock);
	for (struct pending *p = known ? log->kept : NULL; p != NULL; p = p->next)
		for (uint32_t i = 0; i < p->file_count; i++)
			if (p->files[i] == NULL && identity_same(record_file(&p->record, i), was)) {
				record_set_file(&p->record, i, file->identity);
				record_seal(&p->record);
				log->stale = true; /* the name that it has there is of the past */
				log->loaded = false;
			}
	pthread_mutex_unlock(&log->lock);
	return redo_attach(log, file, e);
}

/* ---- to write it anew ---- */

static int write_zeros(const struct file *file, uint64_t size)
{
	void *zeros = calloc(1, ZEROS_SIZE);
	int rc = zeros ? 0 : ENOMEM;
	/* First of all, so that a full disk says so at once. */
	if (rc == 0 && fallocate(file->fd, 0, 0, (off_t)size) != 0 && errno != EOPNOTSUPP && errno != EINTR)
		rc = errno;
	for (uint64_t at = 0; rc == 0 && at < size;) {
		ssize_t wrote = pwrite(file->fd, zeros, size - at < ZEROS_SIZE ? size - at : ZEROS_SIZE, (off_t)at);
		if (wrote > 0)
			at += (uint64_t)wrote;
		else if (wrote == 0 || errno != EINTR)
			rc = wrote == 0 ? ENOSPC : errno;
	}
	free(zeros);
	return rc;
}

/* The new one's members are those of `log`, which is not the log yet. */
static int fill_new(struct redo_log *log, struct pending *kept, struct pmemset_error *e)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct log_head head = {.magic = LOG_MAGIC, .version = LOG_VERSION, .ring_size = log->ring_size};
	if (getrandom(&head.epoch, sizeof(head.epoch), 0) != (ssize_t)sizeof(head.epoch))
		return error_sys(e, 0, errno, "no random number for a redo log");
	for (const struct pending *p = kept; p != NULL; p = p->next)
		head.kept_size += p->record.size;
	head.ring_at = (KEPT_AT + head.kept_size + page - 1) & ~(page - 1);
	head.sum = record_sum(&head, offsetof(struct log_head, sum));
	int why = write_zeros(log->file, head.ring_at + head.ring_size);
	int rc = why ? error_sys(e, 0, why, "cannot make a redo log of %" PRIu64 " bytes: %s", head.ring_at + head.ring_size, strerror(why))
		     : write_at(log, 0, (const char *)&head, sizeof(head), e);
	for (uint64_t at = 0; rc == 0 && kept != NULL; kept = kept->next) {
		record_place(&kept->record, head.epoch, at);
		rc = write_at(log, KEPT_AT + at, kept->record.bytes, kept->record.size, e);
		at += kept->record.size;
	}
	log->epoch = head.epoch;
	log->kept_size = head.kept_size;
	log->ring_at = head.ring_at;
	why = rc == 0 ? file_sync(log->file->fd) : 0;
	return why ? persist_failed(why, e) : rc;
}

/* Where it is not there yet, it is made, and its name is durable. */
static int make_directory(const struct redo_log *log, struct pmemset_error *e)
{
	int dir = open_directory(log);
	if (dir < 0 && errno == ENOENT && (mkdirat(log->dir, DIRECTORY, 0700) == 0 || errno == EEXIST)) {
		dir = open_directory(log);
		int above = openat(log->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
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

static int make_new(struct redo_log *log, struct pending *kept, int dir, struct pmemset_error *e)
{
	(void)unlinkat(dir, NAME_OF_NEW, 0);
	int fd = openat(dir, NAME_OF_NEW, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600);
	int rc = fd < 0 ? error_sys(e, 0, errno, "cannot make a redo log: %s", strerror(errno)) : file_open(fd, &log->file, e);
	if (rc == 0)
		rc = fill_new(log, kept, e);
	if (rc == 0)
		rc = map_log(log, e);
	if (rc == 0 && renameat(dir, NAME_OF_NEW, dir, NAME) != 0)
		rc = error_sys(e, 0, errno, "cannot give the redo log its name: %s", strerror(errno));
	int why = rc == 0 ? file_sync(dir) : 0;
	if (why != 0) /* after a crash the old one may be there: it cannot be written to, and this one not yet */
		rc = persist_failed(why, e);
	if (rc == 0)
		return 0;
	close_file(log);
	if (fd >= 0)
		(void)unlinkat(dir, NAME_OF_NEW, 0);
	return rc;
}

/* Whoever waits for the log, not as one that is kept: it is no record any more. */
static void drop_records(struct redo_log *log)
{
	while (log->records != NULL) {
		struct pending *p = log->records;
		log->records = p->next;
		redo_drop(p);
	}
}

/* Under the lock, and nobody uses it. Until it succeeds, all is held that might be replayed. */
static int write_anew(struct redo_log *log, struct pmemset_error *e)
{
	struct redo_log made = {.ring_size = atomic_load(&ring_size), .dir = log->dir};
	int dir = make_directory(log, e);
	int rc = dir < 0 ? e->code : make_new(&made, log->kept, dir, e);
	if (dir >= 0)
		(void)close(dir);
	if (rc != 0)
		return rc;
	close_file(log);
	log->file = made.file;
	log->map = made.map;
	log->map_size = made.map_size;
	log->epoch = made.epoch;
	log->kept_size = made.kept_size;
	log->ring_at = made.ring_at;
	log->ring_size = made.ring_size;
	log->head = log->tail = 0;
	log->stale = log->loaded = false;
	drop_records(log);
	pthread_cond_broadcast(&log->changed);
	return 0;
}

/* Where it must be written anew, that is done by whoever is the last to use it; a failure leaves it to the next who wants it. */
static void settle(struct redo_log *log)
{
	struct pmemset_error ignored;
	pthread_cond_broadcast(&log->changed);
	if (!log->stale || in_use(log))
		return;
	if (write_anew(log, &ignored) != 0)
		for (struct pending *p = log->records; p != NULL; p = p->next)
			order_keep(&p->hold);
}

static bool has_its_name(const struct redo_log *log)
{
	struct stat st;
	return fstat(log->file->fd, &st) == 0 && st.st_nlink > 0;
}

static int refuse_unreadable(const struct redo_log *log, struct pmemset_error *e)
{
	return error_sys(e, -log->why, log->why, "the redo log: %s", log->unreadable);
}

/* ---- commit ---- */

/* Under the lock, which it may let go of: there is a log, and it has room. */
static int wait_for_room(struct redo_log *log, uint64_t size, struct pmemset_error *e)
{
	for (;;) {
		if (log->dir < 0)
			return error_set(e, -EOPNOTSUPP, "the volume was closed");
		if (log->unreadable != NULL)
			return refuse_unreadable(log, e);
		if (log->read_only)
			return error_sys(e, 0, EROFS, "the volume is read-only, or was when it was opened");
		log->stale |= log->file == NULL || !has_its_name(log);
		if (log->stale && !in_use(log)) {
			int rc = write_anew(log, e);
			if (rc != 0)
				return rc;
		}
		if (!log->stale && size > log->ring_size) {
			error_set(e, -ENOMEM, "a record of %" PRIu64 " bytes does not fit into the redo log", size);
			e->reason = PMEMSET_REASON_LIMIT_RECORD;
			e->value = log->ring_size;
			return e->code;
		}
		if (!log->stale && log->tail - log->head + size <= log->ring_size)
			return 0;
		pthread_cond_wait(&log->changed, &log->lock);
	}
}

int redo_commit(struct redo_log *log, struct pending *p, struct pmemset_error *e)
{
	pthread_mutex_lock(&log->lock);
	int rc = wait_for_room(log, p->record.size, e);
	if (rc != 0) {
		pthread_mutex_unlock(&log->lock);
		redo_drop(p);
		return rc;
	}
	p->state = COMMITS;
	p->end = log->tail + p->record.size;
	append(&log->records, p);
	log->busy++;
	record_place(&p->record, log->epoch, log->tail);
	rc = write_ring(log, log->tail, &p->record, e);
	log->tail = p->end;
	if (rc == 0) {
		/* Others may write theirs behind it, and share the flush. */
		pthread_mutex_unlock(&log->lock);
		rc = flush_log(log, e);
		pthread_mutex_lock(&log->lock);
	}
	p->state = rc == 0 ? APPLIES : REFUSED;
	if (rc != 0) {
		order_disown();
		log->stale = true;
		log->busy--;
		settle(log);
	}
	pthread_mutex_unlock(&log->lock);
	return rc;
}

/* ---- retire ---- */

/* The end of those that are done, in order from the first on. */
static uint64_t done_up_to(const struct redo_log *log)
{
	uint64_t end = log->head;
	for (const struct pending *p = log->records; p != NULL && p->state == DONE; p = p->next)
		end = p->end;
	return end;
}

/* By whoever was done while nobody was at it, also for those who are done meanwhile. */
static void retire(struct redo_log *log)
{
	struct pmemset_error ignored;
	while (!log->retiring && !log->stale && done_up_to(log) != log->head) {
		uint64_t end = done_up_to(log);
		log->retiring = true;
		pthread_mutex_unlock(&log->lock);
		int rc = write_retired(log, end, &ignored);
		pthread_mutex_lock(&log->lock);
		log->retiring = false;
		if (rc != 0) {
			log->stale = true;
			break;
		}
		log->head = end;
		while (log->records != NULL && log->records->end <= end && log->records->state == DONE) {
			struct pending *p = log->records;
			log->records = p->next;
			redo_drop(p);
		}
	}
	settle(log);
}

static void keep(struct redo_log *log, struct pending *p)
{
	take_out(&log->records, p);
	p->state = KEPT;
	append(&log->kept, p);
	order_keep(&p->hold);
	log->stale = true;
	log->loaded = false;
}

void redo_end(struct redo_log *log, struct pending *p, bool applied)
{
	order_disown();
	pthread_mutex_lock(&log->lock);
	log->busy--;
	if (applied)
		p->state = DONE;
	else
		keep(log, p);
	retire(log);
	pthread_mutex_unlock(&log->lock);
}

/* ---- recovery ---- */

/* What a record has for one file. */
struct row {
	bool ready;	   /* the file is open, and can be written and flushed */
	uint64_t from, to; /* the bytes that it is about, and what is between them */
	uint64_t since;
};

static void measure(const struct pending *p, struct row *rows)
{
	struct record_entry entry;
	const char *ignored;
	for (uint64_t at = 0; record_next(&p->record, &at, &entry, &ignored);) {
		struct row *row = &rows[entry.file];
		row->from = row->to == 0 || entry.offset < row->from ? entry.offset : row->from;
		row->to = entry.offset + entry.length > row->to ? entry.offset + entry.length : row->to;
	}
	for (uint32_t i = 0; i < p->file_count; i++) {
		struct stat st;
		const struct file *file = p->files[i];
		rows[i].ready = file != NULL && atomic_load(&file->failed) == 0 && fstat(file->fd, &st) == 0 &&
				(uint64_t)st.st_size >= rows[i].to;
		rows[i].since = file != NULL ? file_losses(file) : 0;
	}
}

static bool write_whole(const struct file *file, const char *bytes, uint64_t length, uint64_t offset)
{
	while (length > 0) {
		ssize_t wrote = pwrite(file->fd, bytes, length, (off_t)offset);
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return false;
		bytes += wrote;
		length -= (uint64_t)wrote;
		offset += (uint64_t)wrote;
	}
	return true;
}

static void flush_row(struct file *file, struct row *row)
{
	struct pmemset_error ignored;
	const struct flush_range range = {.offset = row->from, .length = row->to - row->from, .since = row->since};
	if (file_flush_whole(file, &range, 1, &ignored) == 0)
		return;
	row->ready = false;
	if (ignored.reason != PMEMSET_REASON_PERSIST_FAILED)
		(void)file_soil(file, range.offset, range.length, range.since);
}

/* Past any mapping, and through the page cache where there is one: whatever the file's granularity, fdatasync makes that durable. */
static void apply(const struct pending *p, struct row *rows)
{
	struct record_entry entry;
	const char *bytes;
	measure(p, rows);
	for (uint64_t at = 0; record_next(&p->record, &at, &entry, &bytes);) {
		struct row *row = &rows[entry.file];
		if (row->ready && !write_whole(p->files[entry.file], bytes, entry.length, entry.offset)) {
			row->ready = false;
			(void)file_soil(p->files[entry.file], row->from, row->to - row->from, row->since);
		}
	}
	for (uint32_t i = 0; i < p->file_count; i++)
		if (rows[i].ready)
			flush_row(p->files[i], &rows[i]);
}

/* What is left of it, for the files that have not got theirs; NULL where memory is out. */
static struct pending *rest_of(const struct pending *p, const struct row *rows, uint32_t left)
{
	struct pmemset_error ignored;
	struct record_entry entry;
	const char *bytes;
	struct pending *rest = calloc(1, sizeof(*rest));
	uint32_t *new_row = calloc(p->file_count, sizeof(*new_row));
	struct file **files = calloc(left, sizeof(struct file *));
	int rc = rest != NULL && new_row != NULL && files != NULL ? record_begin(&rest->record, left, p->record.size, &ignored) : -ENOMEM;
	for (uint32_t i = 0, n = 0; rc == 0 && i < p->file_count; i++) {
		if (rows[i].ready)
			continue;
		record_set_file(&rest->record, n, record_file(&p->record, i));
		files[n] = p->files[i];
		new_row[i] = n++;
	}
	for (uint64_t at = 0; rc == 0 && record_next(&p->record, &at, &entry, &bytes);) {
		if (rows[entry.file].ready)
			continue;
		memcpy(record_add(&rest->record, new_row[entry.file], entry.offset, entry.length), bytes, entry.length);
		if (files[new_row[entry.file]] != NULL)
			rc = hold_add(&rest->hold, files[new_row[entry.file]], entry.offset, entry.length);
	}
	free(new_row);
	if (rc != 0) {
		free(files);
		if (rest != NULL) {
			free(rest->record.bytes);
			free(rest->hold.at);
		}
		free(rest);
		return NULL;
	}
	record_seal(&rest->record);
	rest->files = files;
	rest->file_count = rest->held_count = left;
	rest->state = KEPT;
	return rest;
}

/* The rest takes its place, and it is done, once the log has no more of it. */
static void put_rest(struct redo_log *log, struct pending *p, struct pending *rest)
{
	for (struct pending **link = &log->kept;; link = &(*link)->next)
		if (*link == p) {
			rest->next = p->next;
			*link = rest;
			break;
		}
	for (uint32_t i = 0; i < rest->file_count; i++)
		if (rest->files[i] != NULL)
			file_hold(rest->files[i]);
	order_keep(&rest->hold);
}

static void finish(struct redo_log *log, struct pending *p)
{
	p->state = DONE;
	append(&log->records, p);
}

/* Whether it is applied, whole or in part. */
static void recover_one(struct redo_log *log, struct pending *p, struct redo_counts *counts)
{
	struct row *rows = calloc(p->file_count ? p->file_count : 1, sizeof(*rows));
	uint32_t left = 0;
	counts->kept++;
	if (rows == NULL)
		return;
	apply(p, rows);
	for (uint32_t i = 0; i < p->file_count; i++)
		left += !rows[i].ready;
	struct pending *rest = left > 0 && left < p->file_count ? rest_of(p, rows, left) : NULL;
	if (rest != NULL)
		put_rest(log, p, rest);
	else if (left == 0)
		take_out(&log->kept, p);
	if (rest != NULL || left == 0) {
		finish(log, p);
		log->stale = true;
	}
	counts->kept -= left == 0;
	counts->applied += left == 0;
	free(rows);
}

static int recover(struct redo_log *log, struct redo_counts *counts, struct pmemset_error *e)
{
	for (const struct pending *p = log->read_only ? log->kept : NULL; p != NULL; p = p->next)
		counts->kept++;
	if (log->read_only)
		return 0;
	/* A record that is whole in memory only must not be half applied when the power goes. */
	int rc = log->kept != NULL ? file_flush(log->file, NULL, 0, e) : 0;
	for (struct pending *p = log->kept, *next; rc == 0 && p != NULL; p = next) {
		next = p->next;
		recover_one(log, p, counts);
	}
	if (rc != 0 || !log->stale || (log->kept != NULL && log->records == NULL && log->loaded))
		return rc;
	/* Nothing is left: it needs not be written anew for that, which takes space. */
	if (log->kept == NULL && log->loaded && write_retired(log, log->tail, e) == 0) {
		log->head = log->tail;
		log->stale = log->loaded = false;
		drop_records(log);
		return 0;
	}
	/* What was applied is held until the log has no more of it: a full disk is no reason not to begin. */
	if (write_anew(log, e) != 0)
		for (const struct pending *p = log->records; p != NULL; p = p->next)
			counts->kept++;
	return 0;
}

int redo_recover(struct redo_log *log, struct redo_counts *counts, struct pmemset_error *e)
{
	*counts = (struct redo_counts){0};
	pthread_mutex_lock(&log->lock);
	while (in_use(log))
		pthread_cond_wait(&log->changed, &log->lock);
	int rc = log->dir < 0 ? error_stale(e) : log->unreadable != NULL ? refuse_unreadable(log, e) : recover(log, counts, e);
	pthread_cond_broadcast(&log->changed);
	pthread_mutex_unlock(&log->lock);
	return rc;
}

void redo_recover_file(struct file *file)
{
	struct redo_log *log = atomic_load(&file->log);
	struct pmemset_error ignored;
	struct redo_counts counts;
	if (log != NULL && order_is_held())
		(void)redo_recover(log, &counts, &ignored);
}
