/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random operations on several sets and files, through both faces of the engine, against a model of plain arrays: a file is its bytes and
 * its size, a set is a list of parts in address order, a part map is a run of parts with one number. Each result has to be the model's, and
 * so have, time and again, every map, part and byte, by mapping and by file.
 *
 * PMEMSET_TEST_SEED and PMEMSET_TEST_STEPS (else it goes by time) repeat a run; both are printed where it failed, with the latest
 * operations.
 */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libpmem2.h>
#include <libpmemset.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SECONDS_EACH 2.5
#define FILES 5
#define SMALL_PAGES 24
#define BIG_PAGES 640 /* of the last file, whose parts fill windows and are large enough for huge pages */
#define SETS 5
#define REFUSING 2 /* of them: it asks for more than the medium is */
#define PARTS_MAX 1100
#define HELD_MAX 6
#define BUFFER_PAGES 64
#define ROWS 1100
#define MAPPINGS_MAX 20000

/* ---- the model ---- */

struct file {
	char name[8];
	bool exists;
	uint64_t size, capacity;
	uint64_t reach;	      /* to where any part was mapped since it is open: it is not cut shorter than that by whoever fails to map */
	unsigned char *bytes; /* behind size they are 0 */
};

struct part {
	uint64_t addr, length, offset, cookie;
	struct file *file;
	uint64_t map;
};

/* A reference that keeps a map from being removed: a pin of ffi.h, or a part map of libpmemset.h. */
struct held {
	uint64_t map, pin;
	struct pmemset_part_map *pmap;
};

struct set {
	struct part parts[PARTS_MAX];
	struct held held[HELD_MAX];
	uint64_t handle;       /* of ffi.h, or 0: it is one of libpmemset.h */
	struct pmemset *other; /* then this is it */
	struct pmem2_vm_reservation *reservation;
	uint64_t base, size, parts_max;
	uint64_t previous; /* the map that is appended to; 0: there is none */
	unsigned count, held_count;
	uint32_t required, mode;
	bool ever; /* something was mapped once */
};

static struct file files[FILES];
static struct set sets[SETS];
static uint64_t next_map, next_cookie;
static uint32_t granularity; /* of every file here */
static const struct place *place;
static unsigned char *buffer;
static uint64_t buffer_size;

/* ---- what happened ---- */

#define HISTORY 30
static char history[HISTORY][200];
static uint64_t steps, seed;
static bool finished;

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
	va_list args;
	char *line = history[steps % HISTORY];
	size_t used = strlen(line);
	va_start(args, format);
	(void)vsnprintf(line + used, sizeof(history[0]) - used, format, args);
	va_end(args);
}

/* NOLINTBEGIN(bugprone-signal-handler,cert-sig30-c): as a handler it is called by abort(), of an assertion, and the process ends */
static void tell_history(void)
{
	print_error("PMEMSET_TEST_SEED=%" PRIu64 " PMEMSET_TEST_STEPS=%" PRIu64 ", on %s; the latest operations:\n", seed, steps + 1,
			place->name);
	for (uint64_t i = steps >= HISTORY ? steps - HISTORY + 1 : 0; i <= steps; i++)
		print_error("  %" PRIu64 ": %s\n", i, history[i % HISTORY]);
}

static void on_abort(int number)
{
	(void)number;
	tell_history();
}
/* NOLINTEND(bugprone-signal-handler,cert-sig30-c) */

static int leave(void **state)
{
	(void)signal(SIGABRT, SIG_DFL);
	if (!finished && place != NULL)
		tell_history();
	return scene_leave(state);
}

/* A result, of either face. */
static void is(int64_t got, int64_t wanted, const char *what)
{
	note(" = %" PRId64, got);
	if (got == wanted)
		return;
	print_error("%s: %" PRId64 ", and the model says %" PRId64 " (%s)\n", what, got, wanted,
			got == 0	  ? "it succeeded"
			: got == err.code ? err.message
					  : pmemset_errormsg());
	fail();
}

#define EQUAL(got, wanted) equal((uint64_t)(got), (uint64_t)(wanted), #got, __LINE__)
static void equal(uint64_t got, uint64_t wanted, const char *what, int line)
{
	if (got == wanted)
		return;
	print_error("line %d: %s: %#" PRIx64 ", and the model says %#" PRIx64 "\n", line, what, got, wanted);
	fail();
}

/* ---- looking into the model ---- */

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t end_of(const struct part *p)
{
	return p->addr + p->length;
}

static struct part *part_at(struct set *s, uint64_t addr)
{
	for (unsigned i = 0; i < s->count; i++)
		if (addr - s->parts[i].addr < s->parts[i].length)
			return &s->parts[i];
	return NULL;
}

/* Where there is one. */
static struct part *the_part_at(struct set *s, uint64_t addr)
{
	struct part *p = part_at(s, addr);
	if (p == NULL)
		abort();
	return p;
}

/* The run of parts that part i is in. */
static void run_of(const struct set *s, unsigned i, unsigned *from, unsigned *to)
{
	for (*from = i; *from > 0 && s->parts[*from - 1].map == s->parts[i].map; --*from)
		;
	for (*to = i; *to < s->count && s->parts[*to].map == s->parts[i].map; ++*to)
		;
}

struct span {
	uint64_t addr, size;
};

static struct span map_of(const struct set *s, const struct part *p)
{
	unsigned from;
	unsigned to;
	run_of(s, (unsigned)(p - s->parts), &from, &to);
	return (struct span){s->parts[from].addr, end_of(&s->parts[to - 1]) - s->parts[from].addr};
}

static bool is_mapped(const struct file *f)
{
	for (unsigned i = 0; i < SETS; i++)
		for (unsigned k = 0; k < sets[i].count; k++)
			if (sets[i].parts[k].file == f)
				return true;
	return false;
}

static unsigned users_of(const struct set *s, uint64_t map)
{
	unsigned users = 0;
	for (unsigned i = 0; i < s->held_count; i++)
		users += s->held[i].map == map;
	return users;
}

/* The code for a range that is to lie inside one map. */
static int check_range(struct set *s, uint64_t addr, uint64_t length)
{
	const struct part *p = part_at(s, addr);
	if (p == NULL)
		return s->ever ? PMEMSET_E_CANNOT_FIND_PART_MAP : PMEMSET_E_NO_PART_MAPPED;
	struct span map = map_of(s, p);
	return length > map.addr + map.size - addr ? PMEMSET_E_LENGTH_OUT_OF_RANGE : 0;
}

/* Calls visit for what of [addr, addr + length) lies in each part, in order, as long as it says 0. */
static int each_piece(struct set *s, uint64_t addr, uint64_t length, int (*visit)(struct file *f, uint64_t offset, uint64_t n, void *arg),
		void *arg)
{
	int rc = 0;
	for (uint64_t at = addr; rc == 0 && at < addr + length;) {
		struct part *p = the_part_at(s, at);
		uint64_t n = least(end_of(p), addr + length) - at;
		rc = visit(p->file, at - p->addr + p->offset, n, arg);
		at += n;
	}
	return rc;
}

static int is_backed(struct file *f, uint64_t offset, uint64_t n, void *arg)
{
	(void)arg;
	return f->size >= offset + n ? 0 : PMEMSET_E_IO_FAIL;
}

struct copy {
	unsigned char *bytes;
	uint64_t done;
};

static int load_piece(struct file *f, uint64_t offset, uint64_t n, void *arg)
{
	struct copy *c = arg;
	int rc = is_backed(f, offset, n, NULL);
	if (rc == 0)
		memcpy(c->bytes + c->done, f->bytes + offset, n);
	c->done += rc ? 0 : n;
	return rc;
}

static int store_piece(struct file *f, uint64_t offset, uint64_t n, void *arg)
{
	struct copy *c = arg;
	int rc = is_backed(f, offset, n, NULL);
	if (rc == 0)
		memcpy(f->bytes + offset, c->bytes + c->done, n);
	c->done += rc ? 0 : n;
	return rc;
}

static void resize(struct file *f, uint64_t size)
{
	assert_true(size <= f->capacity);
	if (size < f->size)
		memset(f->bytes + size, 0, f->size - size);
	f->size = size;
}

/* ---- choices ---- */

/* The one that can have no part is asked for less often. */
static struct set *some_set(void)
{
	uint64_t i = chance(SETS);
	return &sets[i == REFUSING && chance(4) ? 0 : i];
}

/* Windows fill up for a while, and empty again. */
static bool is_filling(void)
{
	return steps / 500 % 2 == 0;
}

static uint64_t address_near(const struct set *s, const struct part *p)
{
	switch (chance(8)) {
	case 0:
		return p->addr;
	case 1:
		return end_of(p);
	case 2:
		return p->addr - 1;
	case 3:
		return end_of(p) - 1;
	case 4:
		return map_of(s, p).addr;
	default:
		return p->addr + chance(p->length);
	}
}

static uint64_t some_address(const struct set *s)
{
	if (s->count > 0 && chance(3))
		return address_near(s, &s->parts[chance(s->count)]);
	switch (chance(4)) {
	case 0:
		return s->base + chance(s->size);
	case 1:
		return s->base + least(chance(64) * PAGE, s->size);
	case 2:
		return s->base + s->size;
	default:
		return chance(2) ? 0 : UINT64_MAX - chance(2);
	}
}

static uint64_t some_length(struct set *s, uint64_t addr)
{
	const struct part *p = part_at(s, addr);
	struct span map = p ? map_of(s, p) : (struct span){addr, PAGE};
	uint64_t to_end = map.addr + map.size - addr;
	switch (chance(12)) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return to_end;
	case 3:
		return to_end + 1;
	case 4:
		return p ? end_of(p) - addr + chance(9) : chance(9);
	case 5:
		return chance(8) ? chance(4 * PAGE) : 0 - addr + chance(2);
	case 6:
		return chance(8) ? PAGE * (1 + chance(4)) : UINT64_MAX;
	case 7: /* to the end of the file, or a byte more */
		if (p != NULL && p->file->size > addr - p->addr + p->offset)
			return p->file->size - (addr - p->addr + p->offset) + chance(2);
		return 2;
	default:
		return 1 + chance(least(to_end, 3 * PAGE));
	}
}

/* A range that is to be accessed, no longer than the buffer where it is one. */
static int some_range(struct set *s, uint64_t *addr, uint64_t *length)
{
	*addr = some_address(s);
	*length = some_length(s, *addr);
	int rc = check_range(s, *addr, *length);
	if (rc == 0)
		*length = least(*length, buffer_size);
	note("%td: %#" PRIx64 "+%#" PRIx64, s - sets, *addr, *length);
	return rc;
}

static void fill_buffer(uint64_t length)
{
	unsigned char byte = (unsigned char)chance(256);
	for (uint64_t i = 0; i < length && i < buffer_size; i++)
		buffer[i] = (unsigned char)(byte + i % 253 + i / 4096);
}

/* ---- map ---- */

/* What is asked for, and what the model makes of it. */
struct wish {
	struct set *set;
	struct file *file;
	uint64_t offset, length, keep_free;
	uint32_t create; /* of ffi.h */
	bool grow;
	bool fixed; /* a source of libpmemset.h that never grows */
	/* Found. */
	bool makes, appends;
	uint64_t size, addr, gap;
};

static uint64_t place_of_gap(const struct set *s, uint64_t lo, uint64_t hi, uint64_t length, uint64_t unit, uint64_t rest)
{
	(void)s;
	uint64_t addr = lo + (rest + unit - lo % unit) % unit;
	return addr <= hi && hi - addr >= length ? addr : UINT64_MAX;
}

static uint64_t lowest_place(struct wish *w, uint64_t unit, uint64_t rest)
{
	const struct set *s = w->set;
	uint64_t from = s->base;
	uint64_t found = UINT64_MAX;
	w->gap = 0;
	for (unsigned i = 0; i <= s->count; i++) {
		uint64_t to = i < s->count ? s->parts[i].addr : s->base + s->size;
		if (found == UINT64_MAX)
			found = place_of_gap(s, from, to, w->length, unit, rest);
		w->gap = to - from > w->gap ? to - from : w->gap;
		from = i < s->count ? end_of(&s->parts[i]) : from;
	}
	return found;
}

static int find_place(struct wish *w)
{
	struct set *s = w->set;
	if (s->mode != FFI_COALESCING_NONE && s->previous != 0) {
		unsigned last = s->count;
		for (unsigned i = 0; i < s->count; i++)
			if (s->parts[i].map == s->previous)
				last = i;
		assert_true(last < s->count);
		uint64_t limit = last + 1 < s->count ? s->parts[last + 1].addr : s->base + s->size;
		w->addr = end_of(&s->parts[last]);
		w->appends = limit - w->addr >= w->length;
		if (w->appends)
			return 0;
		if (s->mode == FFI_COALESCING_FULL)
			return PMEMSET_E_CANNOT_COALESCE_PARTS;
	}
	w->addr = UINT64_MAX;
	if (w->length >= 2 * MIB && s->reservation == NULL)
		w->addr = lowest_place(w, 2 * MIB, w->offset % (2 * MIB));
	if (w->addr == UINT64_MAX)
		w->addr = lowest_place(w, PAGE, 0);
	return w->addr == UINT64_MAX ? PMEMSET_E_CANNOT_FIT_PART_MAP : 0;
}

/* The range, in the order of SEMANTICS: the map's own checks, once there is a source. */
static int judge_range(struct wish *w)
{
	if (w->offset > INT64_MAX)
		return PMEMSET_E_INVALID_OFFSET_VALUE;
	if (w->offset % PAGE != 0)
		return PMEMSET_E_INVALID_PMEM2_MAP;
	if (w->length == 0 && w->offset >= w->size)
		return PMEMSET_E_MAP_LENGTH_UNSET;
	w->length = w->length ? w->length : w->size - w->offset;
	if (w->length % PAGE != 0)
		return PMEMSET_E_LENGTH_UNALIGNED;
	bool too_far = w->length > INT64_MAX - w->offset;
	if (too_far || (w->offset + w->length > w->size && !w->grow && !w->makes))
		return w->fixed ? PMEMSET_E_INVALID_PMEM2_MAP : PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL;
	if (w->set->parts_max != 0 && w->set->count >= w->set->parts_max)
		return -ENOMEM;
	return find_place(w);
}

/* What is left of the growth where the medium is refused: what others have mapped already. */
static int judge_medium(struct wish *w)
{
	uint64_t end = w->offset + w->length;
	if (end > w->size && w->keep_free != 0)
		return PMEMSET_E_CANNOT_GROW_SOURCE_FILE;
	if (granularity <= w->set->required)
		return 0;
	if (!w->makes && end > w->size && w->file->reach > w->size)
		resize(w->file, end);
	return PMEMSET_E_GRANULARITY_NOT_SUPPORTED;
}

static void add_part(struct wish *w, uint64_t cookie)
{
	struct set *s = w->set;
	uint64_t end = w->offset + w->length;
	unsigned i = s->count++;
	assert_true(i < PARTS_MAX);
	if (w->makes) {
		resize(w->file, 0);
		w->file->exists = true;
	}
	if (end > w->file->size)
		resize(w->file, end);
	if (end > w->file->reach)
		w->file->reach = end;
	for (; i > 0 && s->parts[i - 1].addr > w->addr; i--)
		s->parts[i] = s->parts[i - 1];
	s->previous = w->appends ? s->previous : ++next_map;
	s->parts[i] = (struct part){w->addr, w->length, w->offset, cookie, w->file, s->previous};
	s->ever = true;
}

static int judge_source(struct wish *w)
{
	w->size = w->file->size;
	if (!w->file->exists) {
		w->makes = true;
		w->size = 0;
		return w->create == FFI_CREATE_NEVER ? PMEMSET_E_INVALID_SOURCE_PATH : 0;
	}
	if (w->create == FFI_CREATE_EXCLUSIVE)
		return -EEXIST;
	if (w->create != FFI_CREATE_ALWAYS)
		return 0;
	w->makes = true;
	w->size = 0;
	return is_mapped(w->file) ? -EBUSY : 0;
}

static void map_by_ffi(struct wish w)
{
	struct ffi_part_spec spec = {.offset = w.offset,
			.length = w.length,
			.cookie = ++next_cookie,
			.keep_free = w.keep_free,
			.create = w.create,
			.mode = 0644,
			.grow = w.grow};
	struct ffi_part part;
	int wanted = w.offset > INT64_MAX ? PMEMSET_E_INVALID_OFFSET_VALUE : judge_source(&w);
	if (wanted == 0)
		wanted = judge_range(&w);
	if (wanted == 0)
		wanted = judge_medium(&w);
	is(map(w.set->handle, place, w.file->name, spec, &part), wanted, "ffi_part_map");
	if (wanted == PMEMSET_E_CANNOT_FIT_PART_MAP)
		EQUAL(err.value, w.gap);
	if (wanted == PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL)
		EQUAL(err.value, w.size);
	if (wanted != 0)
		return;
	add_part(&w, spec.cookie);
	struct span whole = map_of(w.set, the_part_at(w.set, w.addr));
	note(" at %#" PRIx64 "+%#" PRIx64 "%s", w.addr, w.length, w.appends ? ", appended" : "");
	EQUAL(part.addr, w.addr);
	EQUAL(part.length, w.length);
	EQUAL(part.offset, w.offset);
	EQUAL(part.cookie, spec.cookie);
	EQUAL(part.map_addr, whole.addr);
	EQUAL(part.map_size, whole.size);
	EQUAL(part.coalesced, w.appends);
	EQUAL(part.created, w.makes);
	EQUAL(part.granularity, granularity);
}

/* What making the source has done to the file stays, whatever becomes of the map. */
static int judge_made_source(struct wish *w)
{
	int wanted = judge_source(w);
	if (wanted == 0 && w->makes) {
		w->file->exists = true;
		resize(w->file, 0);
	}
	w->makes = false;
	return wanted;
}

static void map_by_library(struct wish w)
{
	static const uint64_t flags[] = {0, PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED, PMEMSET_SOURCE_FILE_CREATE_EXCLUSIVE,
			PMEMSET_SOURCE_FILE_CREATE_ALWAYS};
	struct pmemset_source *src;
	struct pmemset_part *part;
	struct pmemset_part_descriptor desc;
	const char *path = path_in(place, w.file->name);
	w.keep_free = 0;
	w.fixed = w.create == FFI_CREATE_NEVER && !w.grow && chance(2);
	int wanted = judge_made_source(&w);
	int rc = w.fixed ? pmemset_source_from_file(&src, path)
			 : pmemset_xsource_from_file(&src, path, flags[w.create] | (w.grow ? 0 : PMEMSET_SOURCE_FILE_DO_NOT_GROW));
	is(rc, wanted, "pmemset_xsource_from_file");
	if (rc != 0)
		return;
	is(pmemset_part_new(&part, w.set->other, src, w.offset, w.length), 0, "pmemset_part_new");
	wanted = judge_range(&w);
	if (wanted == 0)
		wanted = judge_medium(&w);
	is(pmemset_part_map(&part, NULL, &desc), wanted, "pmemset_part_map");
	EQUAL(part == NULL, wanted == 0);
	(void)pmemset_part_delete(&part);
	(void)pmemset_source_delete(&src);
	if (wanted != 0)
		return;
	add_part(&w, 0);
	struct span whole = map_of(w.set, the_part_at(w.set, w.addr));
	note(" at %#" PRIx64 "+%#" PRIx64 "%s", w.addr, w.length, w.appends ? ", appended" : "");
	EQUAL((uintptr_t)desc.addr, whole.addr);
	EQUAL(desc.size, whole.size);
}

static void do_map(void)
{
	struct wish w = {.set = some_set(), .grow = chance(2)};
	bool big = chance(40) == 0;
	w.file = &files[big ? FILES - 1 : chance(FILES - 1)];
	w.create = chance(3) ? FFI_CREATE_IF_NEEDED : (uint32_t)chance(4);
	w.offset = chance(big ? 3 : SMALL_PAGES) * PAGE;
	w.length = (big ? 300 + chance(BIG_PAGES - 303) : chance(SMALL_PAGES - w.offset / PAGE) / (1 + chance(4))) * PAGE;
	if (chance(30) == 0)
		w.offset += chance(2) ? chance(PAGE) : UINT64_MAX - w.offset - chance(2) * PAGE + 1;
	if (chance(30) == 0)
		w.length += chance(2) ? chance(PAGE) : UINT64_MAX - w.length - chance(3) * PAGE + 1;
	w.keep_free = chance(30) ? 0 : UINT64_MAX;
	/* What is too large for the model's file may be asked for, and is never to be had. */
	if (w.length > w.file->capacity || w.offset > w.file->capacity - w.length) {
		w.keep_free = UINT64_MAX;
		w.grow = w.grow && w.set->handle != 0;
	}
	note("map %td: %s, offset %#" PRIx64 ", length %#" PRIx64 ", create %u, grow %d, mode %u", w.set - sets, w.file->name, w.offset,
			w.length, w.create, w.grow, w.set->mode);
	if (w.set->handle != 0)
		map_by_ffi(w);
	else
		map_by_library(w);
}

/* ---- look up ---- */

static void is_row(struct set *s, const struct ffi_span *row, const struct part *p)
{
	unsigned from;
	unsigned to;
	run_of(s, (unsigned)(p - s->parts), &from, &to);
	EQUAL(row->addr, p->addr);
	EQUAL(row->length, p->length);
	EQUAL(row->offset, p->offset);
	EQUAL(row->cookie, p->cookie);
	EQUAL(row->map_addr, s->parts[from].addr);
	EQUAL(row->map_size, end_of(&s->parts[to - 1]) - s->parts[from].addr);
	EQUAL(row->map_parts, to - from);
	EQUAL(row->map_refs, users_of(s, p->map));
	EQUAL(row->flags, 0);
}

static void is_list(struct set *s, bool maps, uint64_t from, uint64_t to, uint64_t max)
{
	static struct ffi_span rows[ROWS];
	uint64_t n = 0;
	int64_t got = maps ? ffi_maps(s->handle, from, to, rows, max) : ffi_parts(s->handle, from, to, rows, max);
	for (unsigned i = 0; i < s->count && n < max; i++) {
		const struct part *p = &s->parts[i];
		struct span whole = maps ? map_of(s, p) : (struct span){p->addr, p->length};
		if (p->addr != whole.addr || whole.addr + whole.size <= from || (to != 0 && whole.addr >= to))
			continue;
		assert_true((int64_t)n < got);
		is_row(s, &rows[n++], p);
	}
	is(got, (int64_t)n, maps ? "ffi_maps" : "ffi_parts");
}

static void look_up_by_library(struct set *s, uint64_t addr)
{
	struct pmemset_part_map *pmap;
	const struct part *p = part_at(s, addr);
	is(pmemset_part_map_by_address(s->other, &pmap, at(addr)), p ? 0 : PMEMSET_E_CANNOT_FIND_PART_MAP, "pmemset_part_map_by_address");
	if (p != NULL) {
		struct pmemset_part_descriptor desc = pmemset_descriptor_part_map(pmap);
		EQUAL((uintptr_t)desc.addr, map_of(s, p).addr);
		EQUAL(desc.size, map_of(s, p).size);
	}
	pmemset_part_map_drop(&pmap);
}

static void look_up(struct set *s, uint64_t addr)
{
	struct ffi_span row;
	const struct part *p = part_at(s, addr);
	if (s->handle == 0) {
		look_up_by_library(s, addr);
		return;
	}
	is(ffi_lookup(s->handle, addr, &row), p ? 0 : PMEMSET_E_CANNOT_FIND_PART_MAP, "ffi_lookup");
	if (p != NULL)
		is_row(s, &row, p);
}

static void do_look_up(void)
{
	struct set *s = some_set();
	uint64_t addr = some_address(s);
	note("look up %td: %#" PRIx64, s - sets, addr);
	look_up(s, addr);
	if (s->handle != 0 && chance(2)) {
		uint64_t to = chance(2) ? 0 : some_address(s);
		note(" to %#" PRIx64, to);
		is_list(s, chance(2), addr, to, chance(2) ? ROWS : chance(8));
	}
}

/* ---- hold, and let go ---- */

static void do_hold(void)
{
	struct set *s = some_set();
	uint64_t addr;
	uint64_t length;
	struct held h = {0};
	if (s->held_count == HELD_MAX)
		return;
	note("hold ");
	int wanted = some_range(s, &addr, &length);
	if (s->handle != 0) {
		is(ffi_pin(s->handle, addr, length, &h.pin, &err), wanted, "ffi_pin");
	} else {
		wanted = part_at(s, addr) ? 0 : PMEMSET_E_CANNOT_FIND_PART_MAP;
		is(pmemset_part_map_by_address(s->other, &h.pmap, at(addr)), wanted, "pmemset_part_map_by_address");
	}
	if (wanted != 0)
		return;
	h.map = part_at(s, addr)->map;
	s->held[s->held_count++] = h;
}

static void let_go(struct set *s, unsigned i)
{
	if (s->handle != 0) {
		is(ffi_unpin(s->held[i].pin), 0, "ffi_unpin");
		is(ffi_unpin(s->held[i].pin), -EBADF, "ffi_unpin again");
	} else {
		pmemset_part_map_drop(&s->held[i].pmap);
	}
	s->held[i] = s->held[--s->held_count];
}

static void do_let_go(void)
{
	struct set *s = some_set();
	note("let go %td", s - sets);
	for (unsigned n = (unsigned)chance(3) + 1; n > 0 && s->held_count > 0; n--)
		let_go(s, (unsigned)chance(s->held_count));
}

/* ---- remove ---- */

struct report {
	struct ffi_removal counts;
	uint64_t removed[ROWS][3], trimmed[4][4], split[4][6];
};

static bool touches(const struct part *p, uint64_t lo, uint64_t last)
{
	return p->addr <= last && end_of(p) > lo;
}

/* 0, or the code of a removal that changes nothing. held: the caller's own reference is none. */
static int judge_removal(struct set *s, uint64_t lo, uint64_t last, uint64_t own)
{
	bool any = false;
	bool used = false;
	for (unsigned i = 0; i < s->count; i++) {
		if (!touches(&s->parts[i], lo, last))
			continue;
		any = true;
		used |= users_of(s, s->parts[i].map) > (s->parts[i].map == own);
	}
	if (!any)
		return PMEMSET_E_CANNOT_FIND_PART_MAP;
	return used ? PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP : 0;
}

/* The parts [lo, hi) of the map [from, to), all of them numbers of parts, go. */
static void report_cut(const struct set *s, unsigned from, unsigned to, unsigned lo, unsigned hi, struct report *r)
{
	uint64_t start = s->parts[from].addr;
	uint64_t size = end_of(&s->parts[to - 1]) - start;
	uint64_t before = s->parts[lo].addr - start;
	uint64_t behind = end_of(&s->parts[hi - 1]);
	for (unsigned i = lo; i < hi; i++)
		memcpy(r->removed[r->counts.removed++], (uint64_t[]){s->parts[i].addr, s->parts[i].length, s->parts[i].cookie},
				sizeof(r->removed[0]));
	if (lo > from && hi < to)
		memcpy(r->split[r->counts.split++], (uint64_t[]){start, size, start, before, behind, start + size - behind},
				sizeof(r->split[0]));
	else if (lo > from)
		memcpy(r->trimmed[r->counts.trimmed++], (uint64_t[]){start, size, start, before}, sizeof(r->trimmed[0]));
	else if (hi < to)
		memcpy(r->trimmed[r->counts.trimmed++], (uint64_t[]){start, size, behind, start + size - behind}, sizeof(r->trimmed[0]));
}

static void empty_report(struct report *r)
{
	memset(r, 0xff, sizeof(*r));
	r->counts = (struct ffi_removal){.removed_max = ROWS, .trimmed_max = 4, .split_max = 4};
}

/* Fills the report, and takes the parts out. */
static void take_out(struct set *s, uint64_t lo, uint64_t last, struct report *r)
{
	static bool goes[PARTS_MAX];
	uint64_t previous_was = UINT64_MAX;
	unsigned to;
	for (unsigned from = 0; from < s->count; from = to) {
		unsigned start;
		run_of(s, from, &start, &to);
		unsigned first = from;
		while (first < to && !touches(&s->parts[first], lo, last))
			first++;
		unsigned end = first;
		while (end < to && touches(&s->parts[end], lo, last))
			end++;
		for (unsigned i = from; i < to; i++)
			goes[i] = i >= first && i < end;
		if (first == to)
			continue;
		report_cut(s, from, to, first, end, r);
		uint64_t map = s->parts[from].map;
		if (first == from && end == to && s->previous == map)
			previous_was = s->parts[from].addr;
		if (first > from && end < to)
			for (unsigned i = end; i < to; i++)
				s->parts[i].map = next_map + 1;
		next_map++;
	}
	unsigned left = 0;
	for (unsigned i = 0; i < s->count; i++)
		if (!goes[i])
			s->parts[left++] = s->parts[i];
	s->count = left;
	if (previous_was == UINT64_MAX)
		return;
	s->previous = 0;
	for (unsigned i = 0; i < s->count && (s->previous == 0 || s->parts[i].addr < previous_was); i++)
		s->previous = s->parts[i].map;
}

static void close_files(void)
{
	for (unsigned i = 0; i < FILES; i++)
		if (!is_mapped(&files[i]))
			files[i].reach = 0;
}

static void remove_by_ffi(struct set *s, uint64_t addr, uint64_t length, bool whole_map, uint64_t last, int wanted)
{
	static struct report got;
	static struct report model;
	empty_report(&model);
	/* Only asked: that changes nothing and is refused by nobody's use. */
	bool dry = chance(4) == 0;
	empty_report(&got);
	if (dry && wanted == PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP)
		wanted = 0;
	is(ffi_remove(s->handle, addr, length, whole_map, dry, &got.counts, got.removed[0], got.trimmed[0], got.split[0], &err), wanted,
			"ffi_remove");
	if (wanted != 0)
		return;
	if (dry) {
		note(", asked only");
		static struct set as_it_is;
		as_it_is = *s;
		take_out(&as_it_is, addr, last, &model);
	} else {
		take_out(s, addr, last, &model);
	}
	EQUAL(memcmp(&got, &model, sizeof(got)), 0);
}

static void do_remove(void)
{
	static struct report ignored;
	struct set *s = some_set();
	uint64_t addr = some_address(s);
	uint64_t length = some_length(s, addr);
	if (chance(24) == 0) {
		addr = s->base;
		length = s->size;
	}
	if (is_filling() && length > 4 * PAGE && chance(10)) {
		do_map();
		return;
	}
	note("remove %td: %#" PRIx64 "+%#" PRIx64, s - sets, addr, length);
	bool wraps = length == 0 || addr + (length - 1) < addr;
	int wanted = wraps ? PMEMSET_E_LENGTH_OUT_OF_RANGE : judge_removal(s, addr, addr + (length - 1), 0);
	if (s->handle != 0) {
		remove_by_ffi(s, addr, length, false, addr + (length - 1), wanted);
	} else {
		is(pmemset_remove_range(s->other, at(addr), length), wanted, "pmemset_remove_range");
		empty_report(&ignored);
		if (wanted == 0)
			take_out(s, addr, addr + (length - 1), &ignored);
	}
	close_files();
}

static void remove_map_by_library(struct set *s, const struct part *p)
{
	static struct report ignored;
	struct pmemset_part_map *pmap = NULL;
	struct span map = p ? map_of(s, p) : (struct span){0, 1};
	int wanted = PMEMSET_E_PART_NOT_FOUND;
	if (p != NULL) {
		is(pmemset_part_map_by_address(s->other, &pmap, at(map.addr)), 0, "pmemset_part_map_by_address");
		wanted = users_of(s, p->map) > 0 ? PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP : 0;
	}
	is(pmemset_remove_part_map(s->other, &pmap), wanted, "pmemset_remove_part_map");
	EQUAL(pmap == NULL, p == NULL || wanted == 0);
	pmemset_part_map_drop(&pmap);
	empty_report(&ignored);
	if (wanted == 0)
		take_out(s, map.addr, map.addr + map.size - 1, &ignored);
}

static void do_remove_map(void)
{
	struct set *s = some_set();
	uint64_t addr = some_address(s);
	const struct part *p = part_at(s, addr);
	if (p != NULL && chance(4))
		addr = map_of(s, p).addr;
	if (is_filling() && chance(10)) {
		do_map();
		return;
	}
	note("remove map %td: %#" PRIx64, s - sets, addr);
	if (s->handle == 0) {
		remove_map_by_library(s, p);
	} else {
		bool starts = p != NULL && map_of(s, p).addr == addr;
		uint64_t last = starts ? addr + map_of(s, p).size - 1 : addr;
		remove_by_ffi(s, addr, chance(PAGE), true, last, starts ? judge_removal(s, addr, last, 0) : PMEMSET_E_CANNOT_FIND_PART_MAP);
	}
	close_files();
}

/* ---- read and store ---- */

static void truncated(struct set *s, uint64_t addr, uint64_t length)
{
	EQUAL(err.reason, PMEMSET_REASON_TRUNCATED);
	assert_true(err.addr >= addr && err.addr < addr + length);
	const struct part *p = the_part_at(s, err.addr);
	EQUAL(err.offset, err.addr - p->addr + p->offset);
	assert_true(err.offset >= p->file->size);
}

static void do_read(void)
{
	unsigned char *model = test_malloc(buffer_size);
	struct set *s = some_set();
	uint64_t addr;
	uint64_t length;
	note("read ");
	int wanted = some_range(s, &addr, &length);
	struct copy c = {.bytes = model};
	if (wanted == 0)
		wanted = each_piece(s, addr, length, load_piece, &c);
	if (s->handle == 0) {
		is(pmemset_read(s->other, at(addr), buffer, length), wanted, "pmemset_read");
	} else {
		bool nowait = chance(4) == 0;
		int rc = ffi_read(s->handle, addr, buffer, length, nowait, &err);
		if (rc == -EAGAIN && nowait && (wanted == 0 || wanted == PMEMSET_E_IO_FAIL))
			wanted = rc; /* only the kernel knows what is in memory */
		is(rc, wanted, "ffi_read");
		if (wanted == PMEMSET_E_IO_FAIL)
			truncated(s, addr, length);
	}
	if (wanted == 0)
		EQUAL(memcmp(buffer, model, length), 0);
	test_free(model);
}

static void do_write(struct set *s)
{
	uint64_t addr;
	uint64_t length;
	struct ffi_written w;
	uint32_t durability = (uint32_t)chance(5);
	note("write ");
	int wanted = some_range(s, &addr, &length);
	fill_buffer(length);
	note(", durability %u", durability);
	struct copy c = {.bytes = buffer};
	if (durability > FFI_DURABILITY_DEEP)
		wanted = -EINVAL;
	if (wanted == 0)
		wanted = each_piece(s, addr, length, store_piece, &c);
	is(ffi_write(s->handle, addr, buffer, length, durability, &w, &err), wanted, "ffi_write");
	if (wanted == PMEMSET_E_IO_FAIL) {
		EQUAL(err.value, c.done);
		truncated(s, addr, length);
	}
	if (wanted != 0)
		return;
	EQUAL(w.bytes, length);
	EQUAL(w.durability, durability == FFI_DURABILITY_FLUSHED ? FFI_DURABILITY_PERSISTED : durability);
	EQUAL(w.granularity, granularity);
}

/* Whether two pages of [addr, addr + length) are one of the file's: then a copy within it overlaps in ways that addresses do not show. */
static bool has_aliases(struct set *s, uint64_t addr, uint64_t length)
{
	uint64_t end = addr + length;
	for (uint64_t a = addr - addr % PAGE; a < end; a += PAGE) {
		const struct part *p = the_part_at(s, a);
		for (uint64_t b = a + PAGE; b < end; b += PAGE) {
			const struct part *q = the_part_at(s, b);
			if (p->file == q->file && a - p->addr + p->offset == b - q->addr + q->offset)
				return true;
		}
	}
	return false;
}

/* A copy from one place of a map to another. */
static bool do_move_within(struct set *s, unsigned flags)
{
	uint64_t dest = some_address(s);
	const struct part *p = part_at(s, dest);
	if (p == NULL)
		return false;
	struct span map = map_of(s, p);
	uint64_t src = map.addr + chance(least(map.size, 16 * PAGE));
	uint64_t lo = least(src, dest);
	uint64_t hi = src > dest ? src : dest;
	uint64_t room = map.addr + map.size - hi;
	uint64_t length = 1 + chance(least(room, chance(2) ? 4 * PAGE : 100));
	if (hi - lo > 32 * PAGE || each_piece(s, src, length, is_backed, NULL) != 0 || each_piece(s, dest, length, is_backed, NULL) != 0 ||
			has_aliases(s, lo, hi + length - lo))
		return false;
	note("move %td: %#" PRIx64 "+%#" PRIx64 " to %#" PRIx64 ", flags %#x", s - sets, src, length, dest, flags);
	struct copy c = {.bytes = buffer};
	(void)each_piece(s, src, length, load_piece, &c);
	c.done = 0;
	(void)each_piece(s, dest, length, store_piece, &c);
	is(chance(2) ? pmemset_memmove(s->other, at(dest), at(src), length, flags)
		     : pmemset_memcpy(s->other, at(dest), at(src), length, flags),
			0, "pmemset_memmove");
	return true;
}

static void do_copy(struct set *s)
{
	static const unsigned flags[] = {0, PMEMSET_F_MEM_NODRAIN, PMEMSET_F_MEM_NONTEMPORAL, PMEMSET_F_MEM_TEMPORAL, PMEMSET_F_MEM_WC,
			PMEMSET_F_MEM_WB, PMEMSET_F_MEM_NOFLUSH, PMEMSET_F_MEM_NODRAIN | PMEMSET_F_MEM_NONTEMPORAL, 1u << 9,
			PMEMSET_F_MEM_NONTEMPORAL | PMEMSET_F_MEM_TEMPORAL};
	unsigned how = (unsigned)chance(10);
	uint64_t addr;
	uint64_t length;
	if (how < 8 && chance(3) == 0 && do_move_within(s, flags[how]))
		return;
	uint64_t kind = chance(3);
	note("%s ", kind == 0 ? "memset" : kind == 1 ? "memcpy" : "memmove");
	int wanted = some_range(s, &addr, &length);
	fill_buffer(length);
	if (kind == 0)
		memset(buffer, buffer[0], least(length, buffer_size));
	note(", flags %#x", flags[how]);
	struct copy c = {.bytes = buffer};
	if (how >= 8)
		wanted = -EINVAL;
	if (wanted == 0)
		wanted = each_piece(s, addr, length, store_piece, &c);
	if (kind == 0)
		is(pmemset_memset(s->other, at(addr), buffer[0], length, flags[how]), wanted, "pmemset_memset");
	else if (kind == 1)
		is(pmemset_memcpy(s->other, at(addr), buffer, length, flags[how]), wanted, "pmemset_memcpy");
	else
		is(pmemset_memmove(s->other, at(addr), buffer, length, flags[how]), wanted, "pmemset_memmove");
}

static int store_past_mapping(struct file *f, uint64_t offset, uint64_t n, void *arg)
{
	return store_piece(f, offset, n, arg) == 0 ? 0 : PMEMSET_E_LENGTH_OUT_OF_RANGE;
}

/* Past the mapping, at an offset into a map. */
static void do_store_past_mapping(struct set *s)
{
	const struct part *p = s->count > 0 ? &s->parts[chance(s->count)] : NULL;
	if (p == NULL)
		return;
	struct span map = map_of(s, p);
	struct pmemset_part_descriptor desc = {at(map.addr), map.size};
	uint64_t offset = chance(map.size + 2);
	uint64_t length = chance(2 * PAGE);
	int wanted = offset + length > map.size ? PMEMSET_E_LENGTH_OUT_OF_RANGE : 0;
	struct copy c = {.bytes = buffer};
	fill_buffer(length);
	note("store past the mapping %td: %#" PRIx64 "+%#" PRIx64, s - sets, map.addr + offset, length);
	if (wanted == 0)
		wanted = each_piece(s, map.addr + offset, length, store_past_mapping, &c);
	is(pmemset_part_pwrite_mcsafe(&desc, buffer, length, offset), wanted, "pmemset_part_pwrite_mcsafe");
	if (wanted == 0)
		is(pmemset_part_pread_mcsafe(&desc, buffer, length, offset), 0, "pmemset_part_pread_mcsafe");
}

static void do_store(void)
{
	struct set *s = some_set();
	if (s->handle != 0)
		do_write(s);
	else if (chance(5) == 0)
		do_store_past_mapping(s);
	else
		do_copy(s);
}

/* ---- persist ---- */

static void persist_by_ffi(struct set *s)
{
	uint64_t ranges[12][2];
	uint64_t count = chance(3) ? chance(3) : chance(12);
	uint64_t bytes = 0;
	uint64_t refused = UINT64_MAX;
	struct ffi_written w;
	uint32_t durability = (uint32_t)chance(5);
	int wanted = count == 0 && !s->ever ? PMEMSET_E_NO_PART_MAPPED : 0;
	note("persist %td: %" PRIu64 " ranges, durability %u", s - sets, count, durability);
	for (uint64_t i = 0; i < count; i++) {
		ranges[i][0] = some_address(s);
		ranges[i][1] = some_length(s, ranges[i][0]);
		if (check_range(s, ranges[i][0], ranges[i][1]) != 0 && chance(3)) /* else hardly a list would be good */
			memcpy(ranges[i], ranges[0], sizeof(ranges[0]));
		if (wanted == 0 && (wanted = check_range(s, ranges[i][0], ranges[i][1])) != 0)
			refused = i;
		bytes += ranges[i][1];
	}
	for (uint64_t i = 0; wanted == 0 && i < count; i++)
		wanted = each_piece(s, ranges[i][0], ranges[i][1], is_backed, NULL);
	if (durability < FFI_DURABILITY_FLUSHED || durability > FFI_DURABILITY_DEEP)
		wanted = -EINVAL;
	is(ffi_persist(s->handle, ranges[0], count, durability, &w, &err), wanted, "ffi_persist");
	if (wanted == PMEMSET_E_IO_FAIL)
		EQUAL(err.reason, PMEMSET_REASON_TRUNCATED);
	if (wanted == PMEMSET_E_CANNOT_FIND_PART_MAP || wanted == PMEMSET_E_LENGTH_OUT_OF_RANGE)
		EQUAL(err.value, refused);
	if (wanted == 0)
		EQUAL(w.bytes, bytes);
}

/* Over part maps that touch each other. */
static int judge_span(struct set *s, uint64_t addr, uint64_t length)
{
	int rc = check_range(s, addr, length);
	if (rc == PMEMSET_E_LENGTH_OUT_OF_RANGE && addr + length >= addr) {
		const struct part *p = NULL;
		for (uint64_t from = addr; from < addr + length; from = end_of(p))
			if ((p = part_at(s, from)) == NULL)
				return rc;
		rc = 0;
	}
	return rc ? rc : each_piece(s, addr, length, is_backed, NULL);
}

static void do_persist(void)
{
	struct set *s = some_set();
	struct ffi_written w;
	if (chance(10) == 0) {
		note("drain %td", s - sets);
		is(s->handle != 0 ? ffi_drain(s->handle, &w, &err) : pmemset_drain(s->other), s->ever ? 0 : PMEMSET_E_NO_PART_MAPPED,
				"drain");
		return;
	}
	if (s->handle != 0) {
		persist_by_ffi(s);
		return;
	}
	uint64_t addr = some_address(s);
	uint64_t length = some_length(s, addr);
	int wanted = judge_span(s, addr, length);
	note("persist %td: %#" PRIx64 "+%#" PRIx64, s - sets, addr, length);
	uint64_t how = chance(3);
	is(how == 0		   ? pmemset_persist(s->other, at(addr), length)
			: how == 1 ? pmemset_flush(s->other, at(addr), length)
				   : pmemset_deep_flush(s->other, at(addr), length),
			wanted, "pmemset_persist");
}

/* ---- behind the engine's back ---- */

static void do_behind(void)
{
	struct file *f = &files[chance(4) ? chance(FILES - 1) : FILES - 1];
	int fd = open(path_in(place, f->name), O_RDWR | O_CLOEXEC);
	EQUAL(fd >= 0, f->exists);
	if (fd < 0)
		return;
	uint64_t size = chance(3) ? chance(f->size + PAGE) : f->size / PAGE * chance(PAGE);
	size = least(chance(2) ? size - size % PAGE : size, f->capacity);
	switch (chance(4)) {
	case 0:
		fill_buffer(64);
		note("write to %s at %#" PRIx64 " behind its back", f->name, size);
		if (size + 64 > f->capacity)
			break;
		if (size + 64 > f->size)
			resize(f, size + 64);
		memcpy(f->bytes + size, buffer, 64);
		assert_int_equal(pwrite(fd, buffer, 64, (off_t)size), 64);
		break;
	case 1:
		if (!is_mapped(f)) {
			note("unlink %s", f->name);
			assert_int_equal(unlink(path_in(place, f->name)), 0);
			resize(f, 0);
			f->exists = false;
			break;
		}
		/* fall through */
	default:
		note("truncate %s to %#" PRIx64, f->name, size);
		resize(f, size);
		assert_int_equal(ftruncate(fd, (off_t)size), 0);
	}
	assert_int_equal(close(fd), 0);
}

/* ---- sets ---- */

static void open_by_library(struct set *s, bool reserved)
{
	struct pmemset_config *cfg;
	struct pmemset_map_config *first;
	must(pmemset_config_new(&cfg));
	must(pmemset_config_set_required_store_granularity(cfg, (enum pmem2_granularity)s->required));
	s->reservation = NULL;
	if (reserved) {
		must(pmem2_vm_reservation_new(&s->reservation, NULL, 48 * PAGE));
		must(pmemset_config_set_reservation(cfg, s->reservation));
		s->base = (uint64_t)(uintptr_t)pmem2_vm_reservation_get_address(s->reservation);
		s->size = pmem2_vm_reservation_get_size(s->reservation);
	}
	must(pmemset_new(&s->other, cfg));
	must(pmemset_config_delete(&cfg));
	s->mode = (uint32_t)chance(3);
	must(pmemset_set_part_coalescing(s->other, (enum pmemset_coalescing)s->mode));
	if (!reserved) {
		/* Where its own window begins, nobody says; the first part does. Of so large a window, this much is looked at. */
		struct pmemset_source *src;
		struct pmemset_part_descriptor desc;
		must(pmemset_source_from_temporary(&src, place->dir));
		must(pmemset_map_config_new(&first));
		pmemset_map_config_set_length(first, PAGE);
		must(pmemset_map(s->other, src, first, &desc));
		must(pmemset_map_config_delete(&first));
		must(pmemset_source_delete(&src));
		must(pmemset_remove_range(s->other, desc.addr, desc.size));
		s->base = (uint64_t)(uintptr_t)desc.addr;
		s->size = GIB;
		s->ever = true;
	}
}

/* Four that take what there is, one that asks for more. */
static void open_set(unsigned i)
{
	struct set *s = &sets[i];
	memset(s, 0, sizeof(*s));
	s->required = i == REFUSING ? FFI_GRANULARITY_BYTE : FFI_GRANULARITY_PAGE;
	if (i >= 3) {
		open_by_library(s, i == 3);
		return;
	}
	const struct ffi_set_spec spec = {.window_size = (i == 0 ? 4 : 2) * MIB,
			.parts_max = i == 1 ? 12 : 0,
			.required_granularity = s->required,
			.granularity = FFI_GRANULARITY_UNSET,
			.coalescing = (uint32_t)chance(3)};
	must(ffi_set_new(&spec, &s->handle, &err));
	struct ffi_set_info info = info_of(s->handle);
	s->base = info.window_addr;
	s->size = info.window_size;
	s->mode = spec.coalescing;
	s->parts_max = spec.parts_max;
}

static void close_set(struct set *s)
{
	while (s->held_count > 0)
		let_go(s, 0);
	if (s->handle != 0) {
		is(ffi_set_delete(s->handle, &err), 0, "ffi_set_delete");
		is(ffi_set_delete(s->handle, &err), -EBADF, "ffi_set_delete again");
	} else {
		is(pmemset_delete(&s->other), 0, "pmemset_delete");
		if (s->reservation != NULL)
			must(pmem2_vm_reservation_delete(&s->reservation));
	}
	s->count = 0;
	close_files();
}

static void do_set(void)
{
	struct set *s = some_set();
	if (chance(12) == 0) {
		note("delete %td", s - sets);
		if (s->handle != 0 && s->held_count > 0)
			is(ffi_set_delete(s->handle, &err), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP, "ffi_set_delete");
		close_set(s);
		open_set((unsigned)(s - sets));
		return;
	}
	uint32_t mode = (uint32_t)chance(4);
	int wanted = mode > FFI_COALESCING_FULL ? PMEMSET_E_INVALID_COALESCING_VALUE : 0;
	note("coalescing %td: %u", s - sets, mode);
	is(s->handle != 0 ? ffi_set_coalescing(s->handle, mode, &err)
			  : pmemset_set_part_coalescing(s->other, (enum pmemset_coalescing)mode),
			wanted, "coalescing");
	s->mode = wanted == 0 ? mode : s->mode;
}

/* ---- all of it ---- */

static void is_map_list(struct set *s)
{
	struct pmemset_part_map *pmap;
	pmemset_first_part_map(s->other, &pmap);
	for (unsigned i = 0; i < s->count;) {
		unsigned from;
		unsigned to;
		run_of(s, i, &from, &to);
		assert_non_null(pmap);
		struct pmemset_part_descriptor desc = pmemset_descriptor_part_map(pmap);
		EQUAL((uintptr_t)desc.addr, s->parts[i].addr);
		EQUAL(desc.size, end_of(&s->parts[to - 1]) - s->parts[i].addr);
		struct pmemset_part_map *next;
		pmemset_next_part_map(s->other, pmap, &next);
		pmemset_part_map_drop(&pmap);
		pmap = next;
		i = to;
	}
	assert_null(pmap);
}

static void is_info(struct set *s)
{
	struct ffi_set_info info = info_of(s->handle);
	uint64_t maps = 0;
	uint64_t bytes = 0;
	for (unsigned i = 0; i < s->count; i++) {
		maps += i == 0 || s->parts[i].map != s->parts[i - 1].map;
		bytes += s->parts[i].length;
	}
	EQUAL(info.part_count, s->count);
	EQUAL(info.map_count, maps);
	EQUAL(info.mapped_bytes, bytes);
	EQUAL(info.granularity, s->ever ? granularity : FFI_GRANULARITY_UNSET);
	EQUAL(info.coalescing, s->mode);
	EQUAL(info.degraded, 0);
}

/* /proc/self/maps, read once for all sets. */
static struct {
	uint64_t from, to;
	char permissions[5];
} mappings[MAPPINGS_MAX];
static unsigned mapping_count;

static void read_mappings(void)
{
	FILE *file = fopen("/proc/self/maps", "re");
	char line[1024];
	assert_non_null(file);
	for (mapping_count = 0; fgets(line, sizeof(line), file) != NULL; mapping_count++) {
		char *end;
		assert_true(mapping_count < MAPPINGS_MAX);
		mappings[mapping_count].from = strtoull(line, &end, 16);
		mappings[mapping_count].to = strtoull(end + 1, &end, 16);
		memcpy(mappings[mapping_count].permissions, end + 1, 4);
	}
	(void)fclose(file);
}

static void is_covered(uint64_t from, uint64_t to, const char *permissions)
{
	unsigned i = 0;
	for (unsigned n = mapping_count; n > 0; n /= 2) /* the first that ends behind from is at i or up to n behind it */
		while (i + n <= mapping_count && mappings[i + n - 1].to <= from)
			i += n;
	for (; from < to; from = mappings[i++].to) {
		if (i < mapping_count && mappings[i].from <= from && strcmp(mappings[i].permissions, permissions) == 0)
			continue;
		print_error("at %#" PRIx64 " there is not %s, or nothing\n", from, permissions);
		fail();
	}
}

/* Its part maps and parts, and that there is no gap in the window. */
static void is_set(struct set *s)
{
	if (s->handle != 0) {
		is_info(s);
		is_list(s, true, 0, 0, ROWS);
		is_list(s, false, 0, 0, ROWS);
	} else {
		is_map_list(s);
	}
	uint64_t from = s->base;
	for (unsigned i = 0; i < s->count; i++) {
		is_covered(from, s->parts[i].addr, "---p");
		from = end_of(&s->parts[i]);
		is_covered(s->parts[i].addr, from, "rw-s");
	}
	is_covered(from, s->base + s->size, "---p");
}

/* What the mapping shows, as far as the file's last page goes; behind the file's end in that page there are zeros. */
static void are_bytes(struct set *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		const struct part *p = &s->parts[i];
		uint64_t end = (p->file->size + PAGE - 1) / PAGE * PAGE;
		uint64_t n = end > p->offset ? least(end - p->offset, p->length) : 0;
		if (n > 0 && memcmp(at(p->addr), p->file->bytes + p->offset, n) != 0) {
			print_error("the bytes of the part at %#" PRIx64 " of set %td are not the model's\n", p->addr, s - sets);
			fail();
		}
	}
}

static void is_file(const struct file *f)
{
	struct stat st;
	EQUAL(stat(path_in(place, f->name), &st) == 0, f->exists);
	if (!f->exists)
		return;
	EQUAL(st.st_size, f->size);
	unsigned char *all = test_malloc(f->size + 1);
	read_file(place, f->name, 0, all, f->size);
	if (memcmp(all, f->bytes, f->size) != 0) {
		print_error("the bytes of %s are not the model's\n", f->name);
		fail();
	}
	test_free(all);
}

static void is_like_the_model(bool all)
{
	if (all)
		read_mappings();
	for (unsigned i = 0; i < SETS; i++) {
		if (all)
			is_set(&sets[i]);
		are_bytes(&sets[i]);
	}
	for (unsigned i = 0; i < (all ? FILES : FILES - 1); i++)
		is_file(&files[i]);
}

static void step(void)
{
	static void (*const all[])(void) = {do_map, do_map, do_map, do_map, do_look_up, do_hold, do_let_go, do_remove, do_remove,
			do_remove_map, do_read, do_read, do_store, do_store, do_store, do_persist, do_behind, do_set};
	history[steps % HISTORY][0] = '\0';
	all[chance(sizeof(all) / sizeof(all[0]))]();
	if (steps % 8 == 0)
		is_like_the_model(steps % 64 == 0);
}

static void random_operations(void **state)
{
	const struct place *p = here(state);
	const char *limit = getenv("PMEMSET_TEST_STEPS");
	uint64_t steps_max = limit ? strtoull(limit, NULL, 0) : UINT64_MAX;
	(void)signal(SIGABRT, on_abort);
	finished = false;
	place = p;
	steps = 0;
	seed = seed_chance();
	buffer_size = BUFFER_PAGES * PAGE;
	buffer = test_malloc(buffer_size);
	for (unsigned i = 0; i < FILES; i++) {
		uint64_t capacity = (i == FILES - 1 ? BIG_PAGES : SMALL_PAGES) * PAGE;
		files[i] = (struct file){.capacity = capacity, .bytes = test_calloc(1, capacity)};
		(void)snprintf(files[i].name, sizeof(files[i].name), "f%u", i);
	}
	for (unsigned i = 0; i < SETS; i++)
		open_set(i);
	double end = seconds() + SECONDS_EACH;
	for (; steps < steps_max && (limit != NULL || seconds() < end); steps++)
		step();
	is_like_the_model(true);
	for (unsigned i = 0; i < SETS; i++)
		close_set(&sets[i]);
	for (unsigned i = 0; i < FILES; i++)
		test_free(files[i].bytes);
	test_free(buffer);
	finished = true;
	print_message("%" PRIu64 " steps\n", steps);
}

#define RANDOM_ON(number, name) \
	{ \
		"random_operations, " name, random_operations, scene_enter, leave, &places[number] \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {RANDOM_ON(0, "tmpfs"), RANDOM_ON(1, "disk")};
	bool lines = argc > 1 && strcmp(argv[1], "cache_line") == 0;
	granularity = lines ? FFI_GRANULARITY_CACHE_LINE : FFI_GRANULARITY_PAGE;
	return RUN("random", tests, lines ? FFI_GRANULARITY_CACHE_LINE : FFI_GRANULARITY_UNSET);
}
