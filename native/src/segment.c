/* SPDX-License-Identifier: BSD-3-Clause */
#include "segment.h"

#include "part.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* mincore tells of so many pages in one call, on the stack. */
#define RESIDENT_PAGES_MAX 1024u

/* Small stores behind one question for the file's size: some microseconds, in which it is taken to hold. */
#define SIZE_HOLDS_FOR 16

static void *at(uint64_t addr)
{
	return (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers on the wire and in the index */
}

static struct part *part_at(struct set *set, uint64_t addr)
{
	struct range r;
	return index_next(&set->index, INDEX_PARTS, addr, &r) && r.lo <= addr ? r.object : NULL;
}

/* A hole at this offset, on a file system with nothing left to fill it. */
static bool is_unfillable(int fd, uint64_t offset)
{
	struct statvfs fs;
	return fstatvfs(fd, &fs) == 0 && fs.f_bavail == 0 && lseek(fd, (off_t)offset, SEEK_DATA) != (off_t)offset;
}

/* errno. A file system of another host is asked only by who may wait; else it is the size that this one knows of. */
static int size_of(const struct file *file, bool wait, uint64_t *size)
{
	struct statx sx;
	if (statx(file->fd, "", AT_EMPTY_PATH | (wait ? 0 : AT_STATX_DONT_SYNC), STATX_SIZE, &sx) != 0)
		return errno;
	*size = sx.stx_size;
	return 0;
}

/* The map is pinned, so the part is there. */
int segment_refused(struct set *set, uint64_t addr, int code, struct pmemset_error *e)
{
	error_set(e, PMEMSET_E_IO_FAIL, "the medium refused an access at %#" PRIx64, addr);
	e->reason = PMEMSET_REASON_UNKNOWN_FAULT;
	e->addr = addr;
	struct part *part = part_at(set, addr);
	if (part == NULL)
		return e->code;
	struct file *file = atomic_load(&part->file);
	uint64_t size = 0;
	e->offset = addr - atomic_load(&part->addr) + atomic_load(&part->offset);
	if (code == BUS_MCEERR_AR) {
		e->reason = PMEMSET_REASON_MEDIA;
	} else if (size_of(file, false, &size) == 0 && e->offset >= size) { /* the size that the fault went by */
		e->reason = PMEMSET_REASON_TRUNCATED;
		e->value = size;
	} else if (is_unfillable(file->fd, e->offset)) {
		e->reason = PMEMSET_REASON_NO_SPACE;
	}
	return e->code;
}

int segment_faulted(struct set *set, struct pmemset_error *e)
{
	struct fault fault = guard_fault();
	return segment_refused(set, fault.addr, fault.code, e);
}

struct segment segment_at(struct set *set, uint64_t addr, uint64_t end)
{
	struct part *part = part_at(set, addr);
	assert(part != NULL);
	uint64_t start = atomic_load(&part->addr);
	uint64_t stop = start + atomic_load(&part->length);
	return (struct segment){.addr = addr,
			.length = (end < stop ? end : stop) - addr,
			.part = part,
			.file = atomic_load(&part->file),
			.offset = addr - start + atomic_load(&part->offset),
			.since = file_losses(atomic_load(&part->file))};
}

static int check_sized(struct set *set, const struct segment *s, struct sized *sized, bool nowait, struct pmemset_error *e)
{
	int why = size_of(s->file, !nowait, &sized->size);
	if (why != 0)
		return error_sys(e, 0, why, "statx");
	sized->file = s->file;
	sized->left = SIZE_HOLDS_FOR;
	if (sized->size >= s->offset + s->length)
		return 0;
	sized->left = 0;
	return segment_refused(set, s->addr + (sized->size > s->offset ? sized->size - s->offset : 0), 0, e);
}

int segment_check_size(struct set *set, const struct segment *s, bool nowait, struct pmemset_error *e)
{
	struct sized sized = {0};
	return check_sized(set, s, &sized, nowait, e);
}

int segment_check_sized(struct set *set, const struct segment *s, struct sized *sized, struct pmemset_error *e)
{
	if (sized->file == s->file && sized->left > 0 && sized->size >= s->offset + s->length) {
		sized->left--;
		return 0;
	}
	return check_sized(set, s, sized, false, e);
}

static bool is_resident(uint64_t addr, uint64_t length)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	unsigned char in_memory[RESIDENT_PAGES_MAX];
	for (uint64_t from = addr & ~(page - 1); from < addr + length;) {
		uint64_t pages = (addr + length - from + page - 1) / page;
		pages = pages < RESIDENT_PAGES_MAX ? pages : RESIDENT_PAGES_MAX;
		if (mincore(at(from), pages * page, in_memory) != 0)
			return false;
		for (uint64_t i = 0; i < pages; i++)
			if (!(in_memory[i] & 1))
				return false;
		from += pages * page;
	}
	return true;
}

/* All of it is asked for from the disk at once, and then waited for. */
static int load(struct set *set, const struct segment *s, struct pmemset_error *e)
{
	uint64_t start = s->addr & ~((uint64_t)sysconf(_SC_PAGESIZE) - 1);
	(void)madvise(at(start), s->addr + s->length - start, MADV_WILLNEED);
	for (uint64_t done = 0; done < s->length;) {
		size_t n = s->length - done < CHUNK_SIZE ? (size_t)(s->length - done) : CHUNK_SIZE;
		if (!guarded_touch(at(s->addr + done), n))
			return segment_faulted(set, e);
		done += n;
	}
	return 0;
}

int segment_check(struct set *set, const struct segment *s, enum check what, struct pmemset_error *e)
{
	int rc = segment_check_size(set, s, what != CHECK_LOAD, e);
	/* Where the file system is memory, a hole may still find none; no guard tells who copies of it. */
	if (rc != 0 || what == CHECK_SIZE || (s->file->medium.dax && what == CHECK_RESIDENT))
		return rc;
	if (what == CHECK_LOAD)
		return load(set, s, e);
	return is_resident(s->addr, s->length) ? 0 : error_set(e, -EAGAIN, "a page is not in memory");
}

int segment_read(struct set *set, const struct segment *s, char *buf, bool nowait, struct pmemset_error *e)
{
	if (nowait && !s->file->medium.resident && !is_resident(s->addr, s->length)) {
		/* Missing behind the end of the file too, and nobody needs to wait to learn that. */
		int rc = segment_check_size(set, s, nowait, e);
		return rc ? rc : error_set(e, -EAGAIN, "a page is not in memory");
	}
	for (uint64_t done = 0; done < s->length;) {
		size_t n = s->length - done < CHUNK_SIZE ? (size_t)(s->length - done) : CHUNK_SIZE;
		if (!guarded_load(buf + done, at(s->addr + done), n))
			return segment_faulted(set, e);
		done += n;
	}
	return segment_check_size(set, s, nowait, e);
}

const struct stores *stores_of(struct set *set)
{
	return stores_at(atomic_load(&set->granularity));
}

int segment_check_flushes(const struct segment *s, struct pmemset_error *e)
{
	int failed = atomic_load(&s->file->failed);
	if (failed == 0)
		return 0;
	error_sys(e, -EIO, failed, "an earlier flush of the file failed");
	e->reason = PMEMSET_REASON_DEGRADED;
	return -EIO;
}

/* ---- write ---- */

#define FILL_SIZE 16384u

/* From buf, or where that is NULL, from memory that is filled with the byte. */
static int write_pages(const struct segment *s, const char *buf, unsigned char byte, uint64_t *done, struct pmemset_error *e)
{
	char same[FILL_SIZE];
	if (buf == NULL)
		memset(same, byte, s->length < FILL_SIZE ? s->length : FILL_SIZE);
	for (uint64_t n = 0; n < s->length;) {
		uint64_t left = s->length - n;
		uint64_t filled = FILL_SIZE - (s->offset + n) % FILL_SIZE;
		int64_t wrote = buf ? file_put(s->file->fd, buf + n, left, s->offset + n)
				    : file_put(s->file->fd, same, left < filled ? left : filled, s->offset + n);
		if (wrote < 0)
			return error_sys(e, 0, (int)-wrote, "write: %s", strerror((int)-wrote));
		n += (uint64_t)wrote;
		*done += (uint64_t)wrote;
	}
	return 0;
}

static int write_lines(struct set *set, const struct segment *s, const char *buf, unsigned char byte, unsigned flags, uint64_t *done,
		struct pmemset_error *e)
{
	const struct stores *stores = stores_of(set);
	for (uint64_t n = 0; n < s->length;) {
		size_t chunk = (size_t)(chunk_end(s->addr + n, s->addr + s->length) - s->addr - n);
		bool stored = buf ? guarded_store(stores, at(s->addr + n), buf + n, chunk, flags)
				  : guarded_fill(stores, at(s->addr + n), byte, chunk, flags);
		if (!stored)
			return segment_faulted(set, e);
		n += chunk;
		*done += chunk;
	}
	return 0;
}

static int write_either(struct set *set, const struct segment *s, const char *buf, unsigned char byte, unsigned flags,
		struct store_under_way *row, uint64_t *done, struct pmemset_error *e)
{
	int rc = order_go_on(row, s->file, s->offset, s->length, e);
	if (rc != 0)
		return rc;
	return stores_of(set) ? write_lines(set, s, buf, byte, flags, done, e) : write_pages(s, buf, byte, done, e);
}

int segment_write(struct set *set, const struct segment *s, const char *buf, unsigned flags, struct store_under_way *row, uint64_t *done,
		struct pmemset_error *e)
{
	return write_either(set, s, buf, 0, flags, row, done, e);
}

int segment_fill(struct set *set, const struct segment *s, unsigned char byte, unsigned flags, struct store_under_way *row, uint64_t *done,
		struct pmemset_error *e)
{
	return write_either(set, s, NULL, byte, flags, row, done, e);
}

int segment_atomic(struct set *set, const struct segment *s, const struct atomic *a, struct pmemset_error *e)
{
	struct store_under_way store;
	int rc = segment_check_size(set, s, false, e);
	if (rc == 0)
		rc = order_begin(&store, s->file, s->offset, s->length, e);
	if (rc != 0)
		return rc;
	rc = guarded_atomic(at(s->addr), a) ? 0 : segment_faulted(set, e);
	order_end(&store);
	return rc;
}

/* ---- space ---- */

int segment_punch(struct set *set, const struct segment *s, struct pmemset_error *e)
{
	struct store_under_way store;
	int rc = segment_check_size(set, s, false, e);
	if (rc == 0)
		rc = order_begin(&store, s->file, s->offset, s->length, e);
	if (rc != 0)
		return rc;
	/* Nobody changes the size between the check and the allocation, which would not be seen to extend the file. */
	pthread_mutex_lock(&s->file->size_lock);
	int why = file_punch(s->file, s->offset, s->length);
	pthread_mutex_unlock(&s->file->size_lock);
	order_end(&store);
	return why ? error_sys(e, 0, why, "punch: %s", strerror(why)) : 0;
}

/* ---- flush ---- */

void segment_soil(const struct segment *s)
{
	part_soil_range(s->part, s->offset, s->length, s->since);
}

struct flush_range segment_range(const struct segment *s)
{
	return (struct flush_range){.addr = s->addr, .length = s->length, .offset = s->offset, .since = s->since};
}

int segments_push(struct segments *all, const struct segment *s)
{
	if (all->count == all->capacity) {
		size_t capacity = all->capacity ? all->capacity * 2 : 16;
		struct segment *more = realloc(all->at, capacity * sizeof(*more));
		if (more == NULL)
			return -ENOMEM;
		all->at = more;
		all->capacity = capacity;
	}
	all->at[all->count++] = *s;
	return 0;
}

static int by_file(const void *a, const void *b)
{
	const struct segment *x = a;
	const struct segment *y = b;
	if (x->file != y->file)
		return (uintptr_t)x->file < (uintptr_t)y->file ? -1 : 1;
	return (x->addr > y->addr) - (x->addr < y->addr);
}

/* One call of its flusher for each file, with all of its ranges; whole: everything that is dirty of it. */
static int flush_files(struct segments *all, bool whole, struct pmemset_error *e)
{
	if (all->count == 0)
		return 0;
	qsort(all->at, all->count, sizeof(*all->at), by_file);
	struct flush_range *ranges = malloc(all->count * sizeof(*ranges));
	if (ranges == NULL)
		return error_set(e, -ENOMEM, "no memory for a flush");
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < all->count;) {
		struct file *file = all->at[i].file;
		size_t first = i;
		size_t n = 0;
		for (; i < all->count && all->at[i].file == file; i++)
			ranges[n++] = segment_range(&all->at[i]);
		rc = whole ? file_flush_whole(file, ranges, n, e) : file_flush(file, ranges, n, e);
		/* The file knows that these are in doubt, so they are not told of late. */
		for (size_t k = first; rc != 0 && e->reason == PMEMSET_REASON_PERSIST_FAILED && k < i; k++)
			all->at[k].since = UINT64_MAX;
	}
	free(ranges);
	return rc;
}

static int flush_lines(struct set *set, const struct stores *stores, const struct segments *all, struct pmemset_error *e)
{
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < all->count; i++) {
		const struct segment *s = &all->at[i];
		if (!guarded_flush(stores, at(s->addr), s->length))
			rc = segment_faulted(set, e);
	}
	stores_drain(stores);
	return rc;
}

int segments_flush(struct set *set, struct segments *all, enum durability durability, struct pmemset_error *e)
{
	const struct stores *stores = stores_of(set);
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < all->count; i++)
		if ((rc = segment_check_flushes(&all->at[i], e)) == 0)
			rc = segment_check_size(set, &all->at[i], false, e);
	if (rc == 0 && stores != NULL)
		rc = flush_lines(set, stores, all, e);
	if (rc == 0 && (stores == NULL || durability == DURABILITY_DEEP))
		rc = flush_files(all, stores != NULL, e);
	if (rc != 0 && durability == DURABILITY_DEEP && e->reason == PMEMSET_REASON_PERSIST_FAILED)
		rc = e->code = PMEMSET_E_DEEP_FLUSH_FAIL;
	return rc;
}
