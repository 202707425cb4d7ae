/* SPDX-License-Identifier: BSD-3-Clause */
#include "redo.h"

#include "logfile.h"
#include "pending.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RING_SIZE (UINT64_C(32) << 20)

static _Atomic uint64_t ring_size = RING_SIZE;
static _Atomic unsigned keep_free_percent;

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
	int dir; /* the volume's; -1: closed */
	struct logfile file;
	uint64_t head, tail; /* positions: retired up to there, durably; where the next record goes */
	bool stale;	     /* it has to be written anew before it takes anything */
	bool loaded;	     /* what is kept was read from its ring, and is all that is there */
	bool retiring;
	uint64_t came, went; /* of those who want room: whoever came first is the next, as small ones would never leave a large one its room */
	unsigned busy;	     /* records that commit or apply */
	struct pending *records; /* of the ring, in order */
	struct pending *kept;	 /* in order */
};

static pthread_mutex_t logs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct redo_log *logs; /* never freed: a file that outlives its volume leads here */

void redo_configure(uint64_t size, unsigned keep_free)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	atomic_store(&ring_size, (size + page - 1) & ~(page - 1));
	atomic_store(&keep_free_percent, keep_free);
}

uint64_t redo_record_max(void)
{
	return atomic_load(&ring_size);
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

/* Whoever was refused, or is done: the log has no more of it. */
static void drop(struct pending **list)
{
	while (*list != NULL) {
		struct pending *p = *list;
		*list = p->next;
		pending_free(p);
	}
}

/* ---- of a volume ---- */

static int load_record(struct redo_log *log, enum log_place place, uint64_t at, uint64_t *size, struct pmemset_error *e)
{
	struct record record;
	int rc = logfile_read(&log->file, place, at, &record, e);
	*size = record.size;
	if (rc != 0 || record.bytes == NULL)
		return rc;
	struct pending *p = pending_of(&record);
	if (p == NULL)
		return error_set(e, -ENOMEM, "no memory for a record");
	p->state = KEPT;
	append(&log->kept, p);
	return 0;
}

/* What an earlier process has left. */
static int load(struct redo_log *log, struct pmemset_error *e)
{
	struct logfile *file = &log->file;
	int rc = logfile_load(file, log->dir, &log->head, e);
	uint64_t size = 0;
	log->tail = log->head;
	if (file->file == NULL)
		return rc;
	for (uint64_t at = 0; rc == 0 && file->unreadable == NULL && at < file->kept_size; at += size)
		rc = load_record(log, LOG_KEPT, at, &size, e);
	do {
		if (rc == 0 && file->unreadable == NULL)
			rc = load_record(log, LOG_RING, log->tail, &size, e);
		log->tail += size;
		/* Once around it is no record any more: its position would be another. */
	} while (rc == 0 && file->unreadable == NULL && size != 0);
	log->stale = log->kept != NULL;
	log->loaded = file->kept_size == 0;
	return rc;
}

/* All but its place in the list; nothing of it is in use. */
static void empty(struct redo_log *log)
{
	drop(&log->kept);
	drop(&log->records);
	logfile_close(&log->file);
	if (log->dir >= 0)
		(void)close(log->dir);
	log->dir = -1;
}

static int start(struct redo_log *log, int dir, struct pmemset_error *e)
{
	pthread_mutex_lock(&log->lock);
	log->head = log->tail = 0;
	log->stale = log->loaded = false;
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
		rc = pending_attach(p, file, e);
	pthread_mutex_unlock(&log->lock);
	return rc;
}

int redo_adopt(struct redo_log *log, const char *was, struct file *file, struct pmemset_error *e)
{
	bool known = was[0] != '\0' && file->identity[0] != '\0';
	pthread_mutex_lock(&log->lock);
	for (struct pending *p = known ? log->kept : NULL; p != NULL; p = p->next)
		if (pending_adopt(p, was, file)) {
			log->stale = true; /* the name that it has there is of the past */
			log->loaded = false;
		}
	pthread_mutex_unlock(&log->lock);
	return redo_attach(log, file, e);
}

/* ---- to write it anew ---- */

/* Under the lock, and nobody uses it. Until it succeeds, all is held that might be replayed. */
static int write_anew(struct redo_log *log, struct pmemset_error *e)
{
	struct logfile made;
	uint64_t kept_size = 0;
	for (const struct pending *p = log->kept; p != NULL; p = p->next)
		kept_size += p->record.size;
	/* One in the place of another is made also where space is short: batches may wait for it. */
	unsigned keep_free = log->file.file == NULL ? atomic_load(&keep_free_percent) : 0;
	int rc = logfile_make(&made, log->dir, (struct log_sizes){kept_size, atomic_load(&ring_size), keep_free}, e);
	if (rc != 0)
		return rc;
	uint64_t at = 0;
	for (struct pending *p = log->kept; rc == 0 && p != NULL; p = p->next) {
		rc = logfile_keep(&made, at, &p->record, e);
		at += p->record.size;
	}
	if (rc == 0)
		rc = logfile_name(&made, e);
	if (rc != 0) {
		logfile_discard(&made);
		return rc;
	}
	logfile_close(&log->file);
	log->file = made;
	log->head = log->tail = 0;
	log->stale = log->loaded = false;
	drop(&log->records);
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

static int refuse_unreadable(const struct redo_log *log, struct pmemset_error *e)
{
	return error_sys(e, -log->file.why, log->file.why, "the redo log: %s", log->file.unreadable);
}

/* ---- commit ---- */

static int check_usable(const struct redo_log *log, struct pmemset_error *e)
{
	if (log->dir < 0)
		return error_set(e, -EOPNOTSUPP, "the volume was closed");
	if (log->file.unreadable != NULL)
		return refuse_unreadable(log, e);
	return log->file.read_only ? error_sys(e, 0, EROFS, "the volume is read-only, or was when it was opened") : 0;
}

/* Under the lock, which it may let go of: there is a log, and it has room. */
static int get_room(struct redo_log *log, uint64_t size, struct pmemset_error *e)
{
	for (;;) {
		int rc = check_usable(log, e);
		if (rc != 0)
			return rc;
		log->stale |= !logfile_has_its_name(&log->file);
		/* One that was made for less stays as it is where there is no space for more. */
		if ((log->stale || size > log->file.ring_size) && !in_use(log) && (rc = write_anew(log, e)) != 0)
			return rc;
		if (!log->stale && log->tail - log->head + size <= log->file.ring_size)
			return 0;
		pthread_cond_wait(&log->changed, &log->lock);
	}
}

/* The same, once whoever came before has it. */
static int wait_for_room(struct redo_log *log, uint64_t size, struct pmemset_error *e)
{
	if (size > redo_record_max()) {
		error_set(e, -ENOMEM, "a record of %" PRIu64 " bytes does not fit into the redo log", size);
		e->reason = PMEMSET_REASON_LIMIT_RECORD;
		e->value = redo_record_max();
		return e->code;
	}
	uint64_t mine = log->came++;
	while (log->went != mine)
		pthread_cond_wait(&log->changed, &log->lock);
	int rc = get_room(log, size, e);
	if (++log->went != log->came)
		pthread_cond_broadcast(&log->changed);
	return rc;
}

int redo_commit(struct redo_log *log, struct pending *p, struct pmemset_error *e)
{
	pthread_mutex_lock(&log->lock);
	int rc = wait_for_room(log, p->record.size, e);
	if (rc != 0) {
		pthread_mutex_unlock(&log->lock);
		pending_free(p);
		return rc;
	}
	p->state = COMMITS;
	p->end = log->tail + p->record.size;
	append(&log->records, p);
	log->busy++;
	record_place(&p->record, log->file.epoch, log->tail);
	rc = logfile_write(&log->file, log->tail, &p->record, e);
	log->tail = p->end;
	if (rc == 0) {
		/* Others may write theirs behind it, and share the flush. */
		pthread_mutex_unlock(&log->lock);
		rc = logfile_flush(&log->file, e);
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
		int rc = logfile_retire(&log->file, end, &ignored);
		pthread_mutex_lock(&log->lock);
		log->retiring = false;
		if (rc != 0) {
			log->stale = true;
			break;
		}
		log->head = end;
		pthread_cond_broadcast(&log->changed);
		while (log->records != NULL && log->records->end <= end && log->records->state == DONE) {
			struct pending *p = log->records;
			log->records = p->next;
			pending_free(p);
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

/* The rest takes its place, and it is done, once the log has no more of it. */
static void put_rest(struct redo_log *log, struct pending *p, struct pending *rest)
{
	for (struct pending **link = &log->kept;; link = &(*link)->next)
		if (*link == p) {
			rest->next = p->next;
			rest->state = KEPT;
			*link = rest;
			break;
		}
}

static void finish(struct redo_log *log, struct pending *p)
{
	p->state = DONE;
	append(&log->records, p);
}

/* Whether it is applied, whole or in part. */
static void recover_one(struct redo_log *log, struct pending *p, struct redo_counts *counts)
{
	struct pending *rest;
	counts->kept++;
	bool all = pending_apply(p, &rest);
	if (rest != NULL)
		put_rest(log, p, rest);
	else if (all)
		take_out(&log->kept, p);
	if (rest != NULL || all) {
		finish(log, p);
		log->stale = true;
	}
	counts->kept -= all;
	counts->applied += all;
}

static int recover(struct redo_log *log, struct redo_counts *counts, struct pmemset_error *e)
{
	for (const struct pending *p = log->file.read_only ? log->kept : NULL; p != NULL; p = p->next)
		counts->kept++;
	if (log->file.read_only)
		return 0;
	/* A record that is whole in memory only, or in a cache, must not be half applied when the power goes. */
	int rc = log->kept != NULL ? logfile_settle(&log->file, e) : 0;
	for (struct pending *p = log->kept, *next; rc == 0 && p != NULL; p = next) {
		next = p->next;
		recover_one(log, p, counts);
	}
	if (rc != 0 || !log->stale || (log->kept != NULL && log->records == NULL && log->loaded))
		return rc;
	/* Nothing is left: it needs not be written anew for that, which takes space. */
	if (log->kept == NULL && log->loaded && logfile_retire(&log->file, log->tail, e) == 0) {
		log->head = log->tail;
		log->stale = log->loaded = false;
		drop(&log->records);
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
	int rc = log->dir < 0 ? error_stale(e) : log->file.unreadable != NULL ? refuse_unreadable(log, e) : recover(log, counts, e);
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
