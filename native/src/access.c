/* SPDX-License-Identifier: BSD-3-Clause */
#include "access.h"

#include "event.h"
#include "part.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* A copy that faults leaves a whole chunk undefined, so chunks are small; large enough for libpmem2's non-temporal stores. */
#define CHUNK_SIZE (UINT64_C(1) << 20)
/* mincore tells of so many pages in one call, on the stack. */
#define RESIDENT_PAGES_MAX 257

static void *at(uint64_t addr)
{
	return (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers on the wire and in the index */
}

/* ---- libpmem2's functions, by granularity; those for pages do nothing on memory that libpmem2 did not map ---- */

struct functions {
	struct pmem2_map *map; /* kept: what libpmem2 allocates for a map of existing memory, its deletion does not free */
	pmem2_memmove_fn copy;
	pmem2_memset_fn fill;
	pmem2_flush_fn flush;
	pmem2_drain_fn drain;
};
static struct functions functions[PMEM2_GRANULARITY_PAGE];

static int take_functions(enum pmem2_granularity granularity, void *page, size_t size)
{
	struct functions *f = &functions[granularity];
	struct pmem2_source *source = NULL;
	int rc = pmem2_source_from_anon(&source, size);
	if (rc == 0)
		rc = pmem2_map_from_existing(&f->map, source, page, size, granularity);
	if (rc == 0)
		*f = (struct functions){f->map, pmem2_get_memmove_fn(f->map), pmem2_get_memset_fn(f->map), pmem2_get_flush_fn(f->map),
				pmem2_get_drain_fn(f->map)};
	(void)pmem2_source_delete(&source);
	return rc;
}

/* ---- faults ---- */

/* Where a fault inside of a guarded copy leads to. Initial-exec storage: the handler must not be the first to touch it and allocate. */
static _Thread_local sigjmp_buf *recovery __attribute__((tls_model("initial-exec")));
static _Thread_local uint64_t guarded_addr __attribute__((tls_model("initial-exec"))); /* of the copy: its mapped side, */
static _Thread_local uint64_t guarded_length __attribute__((tls_model("initial-exec")));
static _Thread_local uint64_t fault_addr __attribute__((tls_model("initial-exec")));
static _Thread_local int fault_code __attribute__((tls_model("initial-exec")));
static struct sigaction previous_action;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	uint64_t addr = (uint64_t)(uintptr_t)info->si_addr;
	/*
	 * The kernel found bad memory that nobody touches yet (early kill): whoever touches it will be told. A copy that happens to be under
	 * way on this thread goes on, for it is not the one that failed.
	 */
	if (info->si_code == BUS_MCEERR_AO && arena_holds(addr))
		return;
	if (info->si_code > 0 && recovery != NULL && (arena_holds(addr) || addr - guarded_addr < guarded_length)) {
		fault_addr = addr;
		fault_code = info->si_code;
		siglongjmp(*recovery, 1);
	}
	if (previous_action.sa_flags & SA_SIGINFO) {
		previous_action.sa_sigaction(number, info, context);
	} else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
		previous_action.sa_handler(number);
	} else {
		/* What is sent, or told of memory that nobody touches, comes once; a fault comes again, and nothing can ignore one. */
		bool once = info->si_code <= 0 || info->si_code == BUS_MCEERR_AO;
		if (once && previous_action.sa_handler == SIG_IGN)
			return;
		/* A real crash, with its core. */
		(void)sigaction(SIGBUS, &previous_action, NULL);
		if (once)
			(void)raise(number);
	}
}

static int start_rc;
static pthread_once_t started = PTHREAD_ONCE_INIT;

static void start(void)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	for (int g = PMEM2_GRANULARITY_BYTE; g < PMEM2_GRANULARITY_PAGE && start_rc == 0; g++) {
		void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		start_rc = page == MAP_FAILED ? -ENOMEM : take_functions((enum pmem2_granularity)g, page, size);
	}
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};
	(void)sigemptyset(&action.sa_mask);
	if (start_rc == 0 && sigaction(SIGBUS, &action, &previous_action) != 0)
		start_rc = -errno;
	/* Beyond `ulimit -f`, EFBIG is the answer, and death is not. */
	struct sigaction on_limit;
	if (start_rc == 0 && sigaction(SIGXFSZ, NULL, &on_limit) == 0 && on_limit.sa_handler == SIG_DFL)
		(void)signal(SIGXFSZ, SIG_IGN);
}

int access_start(struct pmemset_error *e)
{
	(void)pthread_once(&started, start);
	return start_rc ? error_set(e, start_rc, "cannot set up access to memory: %s", pmem2_errormsg()) : 0;
}

enum step { STEP_LOAD, STEP_STORE, STEP_FILL, STEP_FLUSH };

/*
 * One chunk, guarded: nothing but the copy, or the flush, is inside. False where it faulted; then the chunk is undefined, and
 * fault_addr and fault_code say where and how. STEP_FILL: with the byte at from.
 */
static bool guarded(enum step step, void *to, const void *from, size_t length, const struct functions *f, unsigned flags)
{
	const void *mapped = step == STEP_STORE || step == STEP_FILL ? to : from;
	guarded_addr = (uint64_t)(uintptr_t)mapped;
	guarded_length = length;
	sigjmp_buf here;
	sigjmp_buf *outer = recovery;
	if (sigsetjmp(here, 0) != 0) {
		recovery = outer;
		return false;
	}
	recovery = &here;
	atomic_signal_fence(memory_order_seq_cst);
	if (step == STEP_LOAD)
		memcpy(to, from, length);
	else if (step == STEP_STORE)
		(void)f->copy(to, from, length, flags | PMEM2_F_MEM_NODRAIN);
	else if (step == STEP_FILL)
		(void)f->fill(to, *(const unsigned char *)from, length, flags | PMEM2_F_MEM_NODRAIN);
	else
		f->flush(from, length);
	atomic_signal_fence(memory_order_seq_cst);
	recovery = outer;
	return true;
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
static int io_fail(struct set *set, uint64_t addr, int how, struct pmemset_error *e)
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
	if (how == BUS_MCEERR_AR) {
		e->reason = PMEMSET_REASON_MEDIA;
	} else if (size_of(file, false, &size) == 0 && e->offset >= size) { /* the size that the fault went by */
		e->reason = PMEMSET_REASON_TRUNCATED;
		e->value = size;
	} else if (is_unfillable(file->fd, e->offset)) {
		e->reason = PMEMSET_REASON_NO_SPACE;
	}
	return e->code;
}

/* ---- pins ---- */

static int check_mapped(struct set *set, struct pmemset_error *e)
{
	bool ever = atomic_load(&set->granularity) != PMEMSET_GRANULARITY_UNSET;
	return ever ? 0 : error_set(e, PMEMSET_E_NO_PART_MAPPED, "nothing was mapped yet");
}

static int not_found(struct set *set, uint64_t addr, struct pmemset_error *e)
{
	int rc = check_mapped(set, e);
	if (rc != 0)
		return rc;
	return error_set(e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no part map holds %#" PRIx64, addr);
}

int access_pin(struct set *set, uint64_t addr, uint64_t length, struct part_map **pinned, struct pmemset_error *e)
{
	for (;;) {
		struct range r;
		uint64_t commits = index_commits(&set->index);
		if (!index_next(&set->index, INDEX_MAPS, addr, &r) || r.lo > addr || r.object == NULL)
			return not_found(set, addr, e);
		struct part_map *map = r.object;
		uint64_t state = atomic_load(&map->state);
		if (state & (MAP_FROZEN | MAP_GONE)) { /* for the moment of a removal, or of a commit */
			sched_yield();
			continue;
		}
		if (!atomic_compare_exchange_weak(&map->state, &state, state + 1))
			continue;
		/*
		 * From here on the object stays what it is; but before, it may have become another map's, or have lost a part. Where the
		 * structure did not change since the look-up, the range that this gave is the map's. (Its members are no witness: while
		 * it grows they say so before the index knows the part.)
		 */
		if (index_commits(&set->index) != commits) {
			access_unpin(map);
			continue;
		}
		if (length > r.hi - addr) {
			access_unpin(map);
			error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "%" PRIu64 " bytes at %#" PRIx64 " leave the map at %#" PRIx64, length,
					addr, r.lo);
			e->addr = r.lo;
			e->size = r.hi - r.lo;
			return e->code;
		}
		*pinned = map;
		return 0;
	}
}

struct part_map *access_pin_next(struct set *set, uint64_t from)
{
	struct range r;
	struct part_map *map;
	struct pmemset_error ignored;
	while (index_next(&set->index, INDEX_MAPS, from, &r)) {
		if (r.object == NULL || r.lo < from) { /* a range that was lost, or is leaving; a map that has grown meanwhile */
			from = r.hi;
		} else if (access_pin(set, r.lo, 0, &map, &ignored) == 0) {
			if (atomic_load(&map->addr) >= from)
				return map;
			access_unpin(map); /* one that came in its place */
		}
	}
	return NULL;
}

void access_unpin(struct part_map *map)
{
	uint64_t before = atomic_fetch_sub(&map->state, 1);
	assert((before & ~(MAP_FROZEN | MAP_GONE)) > 0);
	(void)before;
}

/* ---- segments: what of a range lies in one part ---- */

struct segment {
	uint64_t addr, length;
	struct part *part;
	struct file *file;
	uint64_t offset; /* in the file */
};

static struct segment segment_at(struct set *set, uint64_t addr, uint64_t end)
{
	struct part *part = part_at(set, addr);
	assert(part != NULL);
	uint64_t start = atomic_load(&part->addr);
	uint64_t stop = start + atomic_load(&part->length);
	return (struct segment){.addr = addr,
			.length = (end < stop ? end : stop) - addr,
			.part = part,
			.file = atomic_load(&part->file),
			.offset = addr - start + atomic_load(&part->offset)};
}

/*
 * Behind the end of a truncated file its last page has zeros: a load would read them, a store or a flush would succeed and its bytes be
 * nowhere. Nothing faults there, so the size is asked for.
 */
static int check_size(struct set *set, const struct segment *s, bool nowait, struct pmemset_error *e)
{
	uint64_t size = 0;
	int why = size_of(s->file, !nowait, &size);
	if (why != 0)
		return error_sys(e, 0, why, "statx");
	if (size >= s->offset + s->length)
		return 0;
	return io_fail(set, s->addr + (size > s->offset ? size - s->offset : 0), 0, e);
}

/* ---- read ---- */

static bool is_resident(uint64_t addr, uint64_t length)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t start = addr & ~(page - 1);
	uint64_t pages = (addr + length - start + page - 1) / page;
	unsigned char in_memory[RESIDENT_PAGES_MAX];
	if (pages > RESIDENT_PAGES_MAX || mincore(at(start), pages * page, in_memory) != 0)
		return false;
	for (uint64_t i = 0; i < pages; i++)
		if (!(in_memory[i] & 1))
			return false;
	return true;
}

static int read_segment(struct set *set, const struct segment *s, char *buf, bool nowait, struct pmemset_error *e)
{
	bool cached = !s->file->medium.dax;
	if (nowait && cached && !is_resident(s->addr, s->length)) {
		/* Missing behind the end of the file too, and nobody needs to wait to learn that. */
		int rc = check_size(set, s, nowait, e);
		return rc ? rc : error_set(e, -EAGAIN, "a page is not in memory");
	}
	for (uint64_t done = 0; done < s->length;) {
		size_t n = s->length - done < CHUNK_SIZE ? (size_t)(s->length - done) : CHUNK_SIZE;
		if (!guarded(STEP_LOAD, buf + done, at(s->addr + done), n, NULL, 0))
			return io_fail(set, fault_addr, fault_code, e);
		done += n;
	}
	return check_size(set, s, nowait, e);
}

int access_read(struct set *set, uint64_t addr, void *buf, uint64_t length, bool nowait, struct pmemset_error *e)
{
	struct part_map *map = NULL;
	int rc = access_pin(set, addr, length, &map, e);
	if (rc != 0)
		return rc;
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(set, from, addr + length);
		rc = read_segment(set, &s, (char *)buf + (from - addr), nowait, e);
		from += s.length;
	}
	access_unpin(map);
	return rc;
}

/* ---- what a write reached ---- */

static const struct functions *stores_of(struct set *set)
{
	uint32_t granularity = atomic_load(&set->granularity);
	return granularity < PMEM2_GRANULARITY_PAGE ? &functions[granularity] : NULL;
}

/* Every call here ends with a fence or a flush that waits, so what was flushed is persisted. */
static enum durability reached(enum durability asked)
{
	return asked == DURABILITY_FLUSHED ? DURABILITY_PERSISTED : asked;
}

/* The weakest medium of a range speaks for it. */
static void witness(struct written *w, const struct file *file)
{
	w->persistence = persistence_weaker(w->persistence, file->medium.persistence);
	w->simulated |= file->medium.simulated;
}

static int refuse_degraded(const struct segment *s, struct pmemset_error *e)
{
	int failed = atomic_load(&s->file->failed);
	if (failed == 0)
		return 0;
	error_sys(e, -EIO, failed, "an earlier flush of the file failed");
	e->reason = PMEMSET_REASON_DEGRADED;
	return -EIO;
}

/* ---- persist ---- */

struct ranges {
	struct segment *segments;
	size_t count, capacity;
};

static int push(struct ranges *all, const struct segment *s)
{
	if (all->count == all->capacity) {
		size_t capacity = all->capacity ? all->capacity * 2 : 16;
		struct segment *more = realloc(all->segments, capacity * sizeof(*more));
		if (more == NULL)
			return -ENOMEM;
		all->segments = more;
		all->capacity = capacity;
	}
	all->segments[all->count++] = *s;
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
static int flush_files(struct ranges *all, bool whole, struct pmemset_error *e)
{
	if (all->count == 0)
		return 0;
	qsort(all->segments, all->count, sizeof(*all->segments), by_file);
	struct flush_range *ranges = malloc(all->count * sizeof(*ranges));
	if (ranges == NULL)
		return error_set(e, -ENOMEM, "no memory for a flush");
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < all->count;) {
		struct file *file = all->segments[i].file;
		size_t n = 0;
		for (; i < all->count && all->segments[i].file == file; i++)
			ranges[n++] = (struct flush_range){all->segments[i].addr, all->segments[i].length};
		rc = file_flush(file, ranges, whole ? 0 : n, e);
	}
	free(ranges);
	return rc;
}

static int flush_lines(struct set *set, const struct functions *f, const struct ranges *all, struct pmemset_error *e)
{
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < all->count; i++) {
		const struct segment *s = &all->segments[i];
		if (!guarded(STEP_FLUSH, NULL, at(s->addr), s->length, f, 0))
			rc = io_fail(set, fault_addr, fault_code, e);
	}
	f->drain();
	return rc;
}

static int flush_segments(struct set *set, struct ranges *all, enum durability durability, struct pmemset_error *e)
{
	const struct functions *f = stores_of(set);
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < all->count; i++)
		if ((rc = refuse_degraded(&all->segments[i], e)) == 0)
			rc = check_size(set, &all->segments[i], false, e);
	if (rc == 0 && f != NULL)
		rc = flush_lines(set, f, all, e);
	if (rc == 0 && (f == NULL || durability == DURABILITY_DEEP))
		rc = flush_files(all, f != NULL, e);
	if (rc != 0 && durability == DURABILITY_DEEP && e->reason == PMEMSET_REASON_PERSIST_FAILED)
		rc = e->code = PMEMSET_E_DEEP_FLUSH_FAIL;
	return rc;
}

int access_persist(struct set *set, const uint64_t *ranges, uint64_t count, enum durability durability, struct written *written,
		struct pmemset_error *e)
{
	*written = (struct written){.durability = reached(durability), .persistence = PERSISTENCE_PERSISTENT};
	if (count == 0) { /* of no medium */
		written->persistence = PERSISTENCE_UNKNOWN;
		return check_mapped(set, e);
	}
	struct part_map **pins = calloc(count, sizeof(struct part_map *));
	struct ranges all = {0};
	uint64_t held = 0;
	int rc = 0;
	if (pins == NULL)
		return error_set(e, -ENOMEM, "no memory for a flush");
	for (; rc == 0 && held < count; held++) {
		rc = access_pin(set, ranges[2 * held], ranges[2 * held + 1], &pins[held], e);
		if (rc != 0) {
			e->value = held;
			break;
		}
	}
	for (uint64_t i = 0; rc == 0 && i < count; i++) {
		uint64_t end = ranges[2 * i] + ranges[2 * i + 1];
		witness(written, segment_at(set, ranges[2 * i], end).file); /* also where the range is empty */
		for (uint64_t from = ranges[2 * i]; rc == 0 && from < end;) {
			struct segment s = segment_at(set, from, end);
			if (push(&all, &s) != 0)
				rc = error_set(e, -ENOMEM, "no memory for a flush");
			witness(written, s.file);
			from += s.length;
		}
		written->bytes += ranges[2 * i + 1];
	}
	if (rc == 0)
		rc = flush_segments(set, &all, durability, e);
	while (held > 0)
		access_unpin(pins[--held]);
	free(all.segments);
	free(pins);
	return rc;
}

/* ---- write ---- */

static int write_pages(struct set *set, const struct segment *s, const char *buf, uint64_t *done, struct pmemset_error *e)
{
	int rc = check_size(set, s, false, e); /* behind the end of a truncated file, pwrite would extend it */
	for (uint64_t n = 0; rc == 0 && n < s->length;) {
		ssize_t wrote = pwrite(s->file->fd, buf + n, s->length - n, (off_t)(s->offset + n));
		if (wrote > 0) {
			n += (uint64_t)wrote;
			*done += (uint64_t)wrote;
		} else if (wrote == 0 || errno != EINTR) {
			int why = wrote == 0 ? ENOSPC : errno;
			rc = error_sys(e, 0, why, "write: %s", strerror(why));
		}
	}
	return rc;
}

static int write_lines(struct set *set, const struct segment *s, const char *buf, const struct functions *f, uint64_t *done,
		struct pmemset_error *e)
{
	int rc = check_size(set, s, false, e);
	for (uint64_t n = 0; rc == 0 && n < s->length;) {
		size_t chunk = s->length - n < CHUNK_SIZE ? (size_t)(s->length - n) : CHUNK_SIZE;
		if (!guarded(STEP_STORE, at(s->addr + n), buf + n, chunk, f, 0))
			return io_fail(set, fault_addr, fault_code, e);
		n += chunk;
		*done += chunk;
	}
	return rc;
}

/* Checked before the first byte: a flush of a degraded file would answer falsely. */
static int check_flushable(struct set *set, uint64_t addr, uint64_t end, struct pmemset_error *e)
{
	int rc = 0;
	for (uint64_t from = addr; rc == 0 && from < end;) {
		struct segment s = segment_at(set, from, end);
		rc = refuse_degraded(&s, e);
		from += s.length;
	}
	return rc;
}

static int write_range(struct set *set, uint64_t addr, const char *buf, uint64_t length, enum durability durability, struct written *w,
		struct ranges *all, struct pmemset_error *e)
{
	const struct functions *f = stores_of(set);
	int rc = 0;
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(set, from, addr + length);
		if (push(all, &s) != 0)
			return error_set(e, -ENOMEM, "no memory for a write");
		witness(w, s.file);
		const char *part = buf + (from - addr);
		rc = f ? write_lines(set, &s, part, f, &w->bytes, e) : write_pages(set, &s, part, &w->bytes, e);
		if (durability == DURABILITY_NONE)
			part_soil(s.part);
		from += s.length;
	}
	if (f != NULL)
		f->drain();
	return rc;
}

int access_write(struct set *set, uint64_t addr, const void *buf, uint64_t length, enum durability durability, struct written *written,
		struct pmemset_error *e)
{
	*written = (struct written){.durability = reached(durability), .persistence = PERSISTENCE_PERSISTENT};
	struct part_map *map = NULL;
	int rc = access_pin(set, addr, length, &map, e);
	if (rc != 0)
		return rc;
	struct ranges all = {0};
	witness(written, segment_at(set, addr, addr + length).file); /* also where nothing is written */
	if (durability != DURABILITY_NONE)
		rc = check_flushable(set, addr, addr + length, e);
	if (rc == 0)
		rc = write_range(set, addr, buf, length, durability, written, &all, e);
	/* libpmem2's copy has flushed the lines already; what is left is the file's own flush. */
	if (rc == 0 && (stores_of(set) == NULL ? durability != DURABILITY_NONE : durability == DURABILITY_DEEP))
		rc = flush_segments(set, &all, durability, e);
	if (rc != 0) {
		e->value = written->bytes;
		/* Whatever of it was written, no flush vouches for it. */
		for (size_t i = 0; i < all.count; i++)
			part_soil(all.segments[i].part);
	}
	free(all.segments);
	access_unpin(map);
	return rc;
}

int access_drain(struct set *set, struct written *written, struct pmemset_error *e)
{
	int rc = check_mapped(set, e);
	if (rc != 0)
		return rc;
	const struct functions *f = stores_of(set);
	if (f != NULL)
		f->drain();
	*written = (struct written){.durability = DURABILITY_NONE, .persistence = PERSISTENCE_UNKNOWN};
	return 0;
}

/* ---- copies and fills of libpmemset.h ---- */

/* NOLINTBEGIN(misc-redundant-expression): that is what is asserted */
static_assert(PMEMSET_F_MEM_VALID_FLAGS == PMEM2_F_MEM_VALID_FLAGS && PMEMSET_F_MEM_NODRAIN == PMEM2_F_MEM_NODRAIN &&
				PMEMSET_F_MEM_NONTEMPORAL == PMEM2_F_MEM_NONTEMPORAL && PMEMSET_F_MEM_TEMPORAL == PMEM2_F_MEM_TEMPORAL &&
				PMEMSET_F_MEM_WC == PMEM2_F_MEM_WC && PMEMSET_F_MEM_WB == PMEM2_F_MEM_WB &&
				PMEMSET_F_MEM_NOFLUSH == PMEM2_F_MEM_NOFLUSH,
		"the flags are libpmem2's");
/* NOLINTEND(misc-redundant-expression) */

struct store {
	uint64_t dest, length;
	const char *src;    /* NULL: fill */
	unsigned char byte; /* with this */
	unsigned flags;
	char *buffer; /* what goes to the page cache from here: a fill, or a source that the store itself would change; NULL: none */
};

/* A piece of at most a chunk, of one part. */
static int store_piece(struct set *set, const struct store *st, const struct segment *s, struct pmemset_error *e)
{
	const struct functions *f = stores_of(set);
	const char *src = st->src ? st->src + (s->addr - st->dest) : NULL;
	uint64_t done = 0;
	if (f == NULL) {
		if (src != NULL && st->buffer != NULL && !guarded(STEP_LOAD, st->buffer, src, s->length, NULL, 0))
			return io_fail(set, fault_addr, fault_code, e);
		return write_pages(set, s, st->buffer ? st->buffer : src, &done, e);
	}
	int rc = check_size(set, s, false, e);
	bool stored = rc != 0 ||
		      guarded(src ? STEP_STORE : STEP_FILL, at(s->addr), src ? src : (const char *)&st->byte, s->length, f, st->flags);
	return stored ? rc : io_fail(set, fault_addr, fault_code, e);
}

/* The piece at the lower end of [from, to), or at its upper one. */
static struct segment piece_at(struct set *set, uint64_t from, uint64_t to, bool backwards)
{
	if (!backwards)
		return segment_at(set, from, to - from < CHUNK_SIZE ? to : from + CHUNK_SIZE);
	uint64_t lo = to - from < CHUNK_SIZE ? from : to - CHUNK_SIZE;
	uint64_t part = atomic_load(&part_at(set, to - 1)->addr);
	return segment_at(set, part > lo ? part : lo, to);
}

/* The map is pinned. */
static int store_pieces(struct set *set, struct store *st, struct ranges *all, struct pmemset_error *e)
{
	uint64_t from = st->dest;
	uint64_t to = from + st->length;
	uint64_t distance = from - (uint64_t)(uintptr_t)st->src; /* wraps where the source is above */
	bool backwards = st->src != NULL && distance < st->length;
	bool overlaps = backwards || (st->src != NULL && 0 - distance < st->length);
	int rc = st->flags & PMEMSET_F_MEM_NOFLUSH ? 0 : check_flushable(set, from, to, e);
	if (rc == 0 && stores_of(set) == NULL && st->length > 0 && (overlaps || st->src == NULL)) {
		size_t size = st->length < CHUNK_SIZE ? (size_t)st->length : CHUNK_SIZE;
		st->buffer = malloc(size);
		if (st->buffer == NULL)
			return error_set(e, -ENOMEM, "no memory for a copy");
		if (st->src == NULL)
			memset(st->buffer, st->byte, size);
	}
	while (rc == 0 && from < to) {
		struct segment s = piece_at(set, from, to, backwards);
		if (push(all, &s) != 0)
			rc = error_set(e, -ENOMEM, "no memory for a copy");
		else
			rc = store_piece(set, st, &s, e);
		if (backwards)
			to = s.addr;
		else
			from = s.addr + s.length;
	}
	free(st->buffer);
	return rc;
}

static int store_range(struct set *set, struct store *st, struct pmemset_error *e)
{
	struct part_map *map = NULL;
	struct ranges all = {0};
	int rc = access_pin(set, st->dest, st->length, &map, e);
	if (rc != 0)
		return rc;
	rc = store_pieces(set, st, &all, e);
	const struct functions *f = stores_of(set);
	if (f != NULL && !(st->flags & PMEMSET_F_MEM_NODRAIN))
		f->drain();
	if (rc == 0 && f == NULL && !(st->flags & PMEMSET_F_MEM_NOFLUSH))
		rc = flush_segments(set, &all, DURABILITY_PERSISTED, e);
	free(all.segments);
	access_unpin(map);
	return rc;
}

static uint64_t number(const void *pointer)
{
	return (uint64_t)(uintptr_t)pointer;
}

static int check_flags(unsigned flags, struct pmemset_error *e)
{
	const unsigned both = PMEMSET_F_MEM_NONTEMPORAL | PMEMSET_F_MEM_TEMPORAL;
	if ((flags & ~PMEMSET_F_MEM_VALID_FLAGS) != 0 || (flags & both) == both)
		return error_set(e, -EINVAL, "flags %#x are unknown, or exclude each other", flags);
	return 0;
}

/* Told before it is done, and only where it can be done; drained: told of afterwards. */
static int store_and_tell(struct pmemset *set, struct store *st, struct pmemset_event_context *event)
{
	struct pmemset_error e;
	struct part_map *map = NULL;
	int rc = check_flags(st->flags, &e);
	if (rc == 0 && set->callback != NULL) {
		rc = access_pin(set->set, st->dest, st->length, &map, &e);
		if (rc == 0) {
			access_unpin(map);
			event_fire(set, event);
		}
	}
	if (rc == 0)
		rc = store_range(set->set, st, &e);
	if (rc != 0)
		return error_keep(&e);
	if (!(st->flags & PMEMSET_F_MEM_NODRAIN))
		event_fire_drain(set);
	return 0;
}

int pmemset_memmove(struct pmemset *set, void *dest, const void *src, size_t len, unsigned flags)
{
	struct store st = {.dest = number(dest), .length = len, .src = src, .flags = flags};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_MOVE, .data.move = {at(number(src)), dest, len, flags}};
	return store_and_tell(set, &st, &event);
}

int pmemset_memcpy(struct pmemset *set, void *dest, const void *src, size_t len, unsigned flags)
{
	struct store st = {.dest = number(dest), .length = len, .src = src, .flags = flags};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_COPY, .data.copy = {at(number(src)), dest, len, flags}};
	return store_and_tell(set, &st, &event);
}

int pmemset_memset(struct pmemset *set, void *dest, int c, size_t len, unsigned flags)
{
	struct store st = {.dest = number(dest), .length = len, .byte = (unsigned char)c, .flags = flags};
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_SET, .data.set = {dest, c, len, flags}};
	return store_and_tell(set, &st, &event);
}

int pmemset_read(struct pmemset *set, const void *addr, void *buf, size_t len)
{
	struct pmemset_error e;
	int rc = access_read(set->set, number(addr), buf, len, false, &e);
	return rc ? error_keep(&e) : 0;
}

/* ---- flushes of libpmemset.h, whose range may span part maps ---- */

/* The range, map by map, as pairs of addr and length (NULL: they are only counted); what lies in no map is the last pair. */
static uint64_t split_by_map(struct set *set, uint64_t addr, uint64_t length, uint64_t *pairs, uint64_t max)
{
	uint64_t n = 0;
	for (uint64_t from = addr, end = addr + length; from < end || n == 0; n++) {
		struct range r;
		bool found = index_next(&set->index, INDEX_MAPS, from, &r) && r.lo <= from && r.object != NULL && n + 1 < max;
		uint64_t to = found && r.hi < end ? r.hi : end;
		if (pairs != NULL) {
			pairs[2 * n] = from;
			pairs[2 * n + 1] = to - from;
		}
		from = to;
	}
	return n;
}

static int persist_span(struct set *set, const void *ptr, size_t size, enum durability durability, struct pmemset_error *e)
{
	struct written ignored;
	uint64_t addr = number(ptr);
	uint64_t first[2] = {addr, size};
	int rc = access_persist(set, first, 1, durability, &ignored, e);
	if (rc != PMEMSET_E_LENGTH_OUT_OF_RANGE || addr + size < addr)
		return rc;
	uint64_t count = split_by_map(set, addr, size, NULL, UINT64_MAX);
	uint64_t *pairs = calloc(count, sizeof(first));
	if (pairs == NULL)
		return error_set(e, -ENOMEM, "no memory for a flush");
	count = split_by_map(set, addr, size, pairs, count);
	rc = access_persist(set, pairs, count, durability, &ignored, e);
	free(pairs);
	if (rc == PMEMSET_E_CANNOT_FIND_PART_MAP)
		rc = error_set(e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "there is a hole in the %zu bytes at %p", size, ptr);
	return rc;
}

/* Whether the range begins in a part map: what does not is not told of. */
static bool begins_in_map(struct pmemset *set, uint64_t addr)
{
	struct range r;
	return index_next(&set->set->index, INDEX_MAPS, addr, &r) && r.lo <= addr && r.object != NULL;
}

static int flush_and_tell(struct pmemset *set, const void *ptr, size_t size, enum durability durability)
{
	struct pmemset_error e;
	if (set->callback != NULL && begins_in_map(set, number(ptr))) {
		struct pmemset_event_context event = {.type = PMEMSET_EVENT_FLUSH, .data.flush = {at(number(ptr)), size}};
		event_fire(set, &event);
	}
	int rc = persist_span(set->set, ptr, size, durability, &e);
	return rc ? error_keep(&e) : 0;
}

int pmemset_persist(struct pmemset *set, const void *ptr, size_t size)
{
	int rc = flush_and_tell(set, ptr, size, DURABILITY_PERSISTED);
	if (rc == 0)
		event_fire_drain(set);
	return rc;
}

int pmemset_flush(struct pmemset *set, const void *ptr, size_t size)
{
	return flush_and_tell(set, ptr, size, DURABILITY_FLUSHED);
}

int pmemset_drain(struct pmemset *set)
{
	struct pmemset_error e;
	struct written ignored;
	int rc = access_drain(set->set, &ignored, &e);
	if (rc != 0)
		return error_keep(&e);
	event_fire_drain(set);
	return 0;
}

int pmemset_deep_flush(struct pmemset *set, void *ptr, size_t size)
{
	struct pmemset_error e;
	int rc = persist_span(set->set, ptr, size, DURABILITY_DEEP, &e);
	return rc ? error_keep(&e) : 0;
}

/* ---- the file behind a mapped range ---- */

static int mcsafe(struct pmemset_part_descriptor *desc, char *buf, size_t size, size_t offset, bool writes)
{
	struct pmemset_error e;
	struct part_map *map = NULL;
	uint64_t addr = number(desc->addr) + offset;
	if (offset > desc->size || size > desc->size - offset) {
		error_set(&e, PMEMSET_E_LENGTH_OUT_OF_RANGE, "%zu bytes at %zu leave the part map's %zu", size, offset, desc->size);
		return error_keep(&e);
	}
	struct pmemset *set = pmemsets_lock(number(desc->addr));
	if (set == NULL) {
		error_set(&e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no set has a part map at %p", desc->addr);
		return error_keep(&e);
	}
	/* From where the map begins: the byte behind its end is none that can be asked for. */
	int rc = access_pin(set->set, number(desc->addr), offset + size, &map, &e);
	for (uint64_t from = addr; rc == 0 && from < addr + size;) {
		struct segment s = segment_at(set->set, from, addr + size);
		char *part = buf + (from - addr);
		rc = writes ? file_write(s.file, part, s.length, s.offset, &e) : file_read(s.file, part, s.length, s.offset, &e);
		if (writes)
			part_soil(s.part);
		from += s.length;
	}
	if (map != NULL)
		access_unpin(map);
	pmemsets_unlock();
	return rc ? error_keep(&e) : 0;
}

int pmemset_part_pread_mcsafe(struct pmemset_part_descriptor *desc, void *dst, size_t size, size_t offset)
{
	return mcsafe(desc, dst, size, offset, false);
}

int pmemset_part_pwrite_mcsafe(struct pmemset_part_descriptor *desc, void *src, size_t size, size_t offset)
{
	return mcsafe(desc, src, size, offset, true);
}
