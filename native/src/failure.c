/* SPDX-License-Identifier: BSD-3-Clause */
#include "failure.h"

#include "redo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* mincore tells of so many pages in one call, on the stack; so much is mapped at a time. */
#define STEP_PAGES 256u

/* A page in use for the moment, by a read or its being written out, is asked for again. */
#define DROPS_MAX 100
#define DROP_MS 10

/* ---- the pages in doubt that are in memory ---- */

/* at: the bytes of the file from `offset` on, mapped for the visit alone. 0, or an error that ends it. */
typedef int visit(void *arg, void *at, uint64_t offset, uint64_t length, struct pmemset_error *e);

static int visit_step(const struct file *file, uint64_t from, uint64_t to, visit *each, void *arg, struct pmemset_error *e)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t pages = (to - from) / page;
	unsigned char in_memory[STEP_PAGES];
	char *at = mmap(NULL, to - from, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd, (off_t)from);
	if (at == MAP_FAILED)
		return error_sys(e, 0, errno, "mmap: %s", strerror(errno));
	int rc = 0;
	if (file->medium.dax) /* there is no cache: every page is where it is */
		memset(in_memory, 1, pages);
	else if (mincore(at, to - from, in_memory) != 0)
		rc = error_sys(e, 0, errno, "mincore: %s", strerror(errno));
	for (uint64_t i = 0, next; rc == 0 && i < pages; i = next) {
		for (next = i + 1; next < pages && (in_memory[next] & 1) == (in_memory[i] & 1); next++)
			;
		if (in_memory[i] & 1)
			rc = each(arg, at + i * page, from + i * page, (next - i) * page, e);
	}
	(void)munmap(at, to - from);
	return rc;
}

/* What is behind the end of the file by now is in nobody's doubt. */
static int visit_resident(const struct file *file, const struct dirt *dirt, visit *each, void *arg, struct pmemset_error *e)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct stat st;
	if (fstat(file->fd, &st) != 0)
		return error_sys(e, 0, errno, "fstat");
	uint64_t size = ((uint64_t)st.st_size + page - 1) & ~(page - 1);
	int rc = 0;
	for (uint32_t i = 0; i < dirt->count; i++) {
		uint64_t to = dirt->at[i].to < size ? dirt->at[i].to : size;
		for (uint64_t from = dirt->at[i].from, end; rc == 0 && from < to; from = end) {
			end = to - from < STEP_PAGES * page ? to : from + STEP_PAGES * page;
			rc = visit_step(file, from, end, each, arg, e);
		}
	}
	return rc;
}

/* ---- rewrite ---- */

/*
 * A write fault on each page, and no byte changed: nothing that others store meanwhile is undone, as it would be by reading bytes and
 * writing them back.
 */
static int dirty_again(void *arg, void *at, uint64_t offset, uint64_t length, struct pmemset_error *e)
{
	(void)arg;
	int rc;
	do
		rc = madvise(at, length, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
	while (rc == EINTR || rc == EAGAIN);
	if (rc == 0 || rc == ENOMEM)
		return rc ? error_sys(e, 0, rc, "no memory to write pages again") : 0;
	/* EFAULT is what would have been SIGBUS. */
	error_sys(e, -EIO, rc == EFAULT ? EIO : rc, "pages at %" PRIu64 " cannot be written again: %s", offset, strerror(rc));
	e->reason = PMEMSET_REASON_PERSIST_FAILED;
	return e->code;
}

static int rewrite(struct file *file, const struct dirt *doubt, struct pmemset_error *e)
{
	return visit_resident(file, doubt, dirty_again, NULL, e);
}

/* ---- discard ---- */

static int note(void *arg, void *at, uint64_t offset, uint64_t length, struct pmemset_error *e)
{
	(void)at;
	(void)e;
	dirt_add(arg, offset, offset + length);
	return 0;
}

/* The pages are clean. Whoever reads one that has gone gets what the medium has; that it is in memory then is no reason to drop it again. */
static int discard(struct file *file, const struct dirt *doubt, struct pmemset_error *e)
{
	struct dirt left = *doubt;
	int rc = 0;
	for (int i = 0; rc == 0 && !file->medium.dax && left.count > 0; i++) {
		struct dirt still = {.count = 0};
		if (i == DROPS_MAX)
			return error_set(e, -EBUSY,
					"pages at %" PRIu64 " stay in memory: another process has mapped them, or they are being stored to",
					left.at[0].from);
		if (i > 0)
			(void)nanosleep(&(struct timespec){.tv_nsec = DROP_MS * 1000000L}, NULL);
		/* The whole of it: a large folio goes whole, or not at all. */
		file_unmap_pages(file);
		(void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
		rc = visit_resident(file, &left, note, &still, e);
		left = still;
	}
	return rc;
}

/* ---- as a set sees them ---- */

/* The set's next part, from an address on, whose file has failed. */
static struct part *next_failed(struct set *set, uint64_t *from, struct failure *failure, struct dirt *doubt)
{
	struct range r;
	while (index_peek(&set->index, INDEX_PARTS, *from, &r)) {
		struct file *file = atomic_load(&((struct part *)r.object)->file);
		*from = r.hi;
		if (atomic_load(&file->failed) != 0 && file_failure(file, failure, doubt))
			return r.object;
	}
	return NULL;
}

#define ROW 3

static bool is_among(const uint64_t *rows, uint64_t count, uint64_t id)
{
	while (count > 0)
		if (rows[ROW * --count] == id)
			return true;
	return false;
}

uint64_t failures_of(struct set *set, uint64_t *rows, uint64_t max)
{
	struct failure failure;
	struct dirt ignored;
	uint64_t count = 0;
	if (file_failures() == 0)
		return 0;
	pthread_mutex_lock(&set->lock);
	for (uint64_t from = 0; count < max && next_failed(set, &from, &failure, &ignored) != NULL;)
		if (!is_among(rows, count, failure.id))
			memcpy(&rows[ROW * count++], (uint64_t[ROW]){failure.id, failure.at, (uint64_t)failure.why}, ROW * sizeof(*rows));
	pthread_mutex_unlock(&set->lock);
	return count;
}

static int no_failure(uint64_t id, struct pmemset_error *e)
{
	return error_set(e, -ENOENT, "the set has no failure %" PRIu64, id);
}

/* A pair for what of the stretch is in the part; one that goes on behind the last is one with it. */
static void add_pair(const struct part *part, const struct stretch *stretch, uint64_t *pairs, uint64_t max, uint64_t *count)
{
	uint64_t offset = part->use.offset;
	uint64_t from = stretch->from > offset ? stretch->from : offset;
	uint64_t to = stretch->to < offset + part->use.length ? stretch->to : offset + part->use.length;
	if (from >= to)
		return;
	uint64_t addr = part->use.addr + (from - offset);
	uint64_t *last = *count > 0 ? &pairs[2 * (*count - 1)] : NULL;
	if (last != NULL && last[0] + last[1] == addr) {
		last[1] += to - from;
	} else if (*count < max) {
		pairs[2 * *count] = addr;
		pairs[2 * *count + 1] = to - from;
		(*count)++;
	}
}

int failure_ranges(struct set *set, uint64_t id, uint64_t *pairs, uint64_t max, uint64_t *count, struct pmemset_error *e)
{
	struct failure failure;
	struct dirt doubt;
	bool found = false;
	*count = 0;
	pthread_mutex_lock(&set->lock);
	const struct part *part;
	for (uint64_t from = 0; (part = next_failed(set, &from, &failure, &doubt)) != NULL;) {
		found |= failure.id == id;
		for (uint32_t i = 0; failure.id == id && i < doubt.count; i++)
			add_pair(part, &doubt.at[i], pairs, max, count);
	}
	pthread_mutex_unlock(&set->lock);
	return found ? 0 : no_failure(id, e);
}

int failure_acknowledge(struct set *set, uint64_t id, enum recovery recovery, struct pmemset_error *e)
{
	struct failure failure;
	struct dirt ignored;
	struct file *file = NULL;
	pthread_mutex_lock(&set->lock);
	for (uint64_t from = 0; file == NULL && !set->ended;) {
		const struct part *part = next_failed(set, &from, &failure, &ignored);
		if (part == NULL)
			break;
		file = failure.id == id ? atomic_load(&part->file) : NULL;
	}
	if (file != NULL)
		file_hold(file); /* it may be dealt with from elsewhere, and go */
	pthread_mutex_unlock(&set->lock);
	if (file == NULL)
		return no_failure(id, e);
	int rc = file_recover(file, id, recovery == RECOVERY_REWRITE ? rewrite : discard, e);
	if (rc == 0)
		redo_recover_file(file); /* a batch that could not be applied for it */
	file_release(file);
	return rc;
}

/* True where a part is there. */
static bool recall_range(struct set *set, uint64_t at, int why, uint64_t lo, uint64_t hi)
{
	struct range r;
	bool any = false;
	for (uint64_t from = lo; from < hi && index_peek(&set->index, INDEX_PARTS, from, &r) && r.lo < hi; from = r.hi) {
		struct part *part = r.object;
		uint64_t begin = r.lo > lo ? r.lo : lo;
		uint64_t end = r.hi < hi ? r.hi : hi;
		file_fail(atomic_load(&part->file), at, why, atomic_load(&part->offset) + (begin - r.lo), end - begin);
		any = true;
	}
	return any;
}

int failure_recall(struct set *set, uint64_t at, int why, const uint64_t *pairs, uint64_t count, struct pmemset_error *e)
{
	for (uint64_t i = 0; i < count; i++)
		if (pairs[2 * i + 1] == 0 || pairs[2 * i] > UINT64_MAX - pairs[2 * i + 1])
			return error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "a range of length 0, or one that wraps");
	bool any = false;
	pthread_mutex_lock(&set->lock);
	bool ended = set->ended;
	for (uint64_t i = 0; i < count && !ended; i++)
		any |= recall_range(set, at, why, pairs[2 * i], pairs[2 * i] + pairs[2 * i + 1]);
	pthread_mutex_unlock(&set->lock);
	if (ended)
		return error_stale(e);
	return any ? 0 : error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no range touches a part");
}
