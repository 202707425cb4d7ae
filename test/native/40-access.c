/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Loads, stores and flushes: which ranges are let through, what they reach, and what happens when the medium refuses. The program is run
 * at page granularity, and with `cache_line` and `byte` as its argument at those, pretended.
 */
#include "scene.h"

#include "error.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static uint32_t granularity = FFI_GRANULARITY_PAGE;

static bool stores_are_mapped(void)
{
	return granularity != FFI_GRANULARITY_PAGE;
}

static int peek(uint64_t set, uint64_t addr, uint64_t length)
{
	unsigned char buf[256];
	assert_true(length <= sizeof(buf) || length > MIB); /* the latter is refused before a byte is touched */
	return ffi_read(set, addr, buf, length, 0, &err);
}

static int poke(uint64_t set, uint64_t addr, uint64_t length, uint32_t durability)
{
	static const unsigned char bytes[256] = {1, 2, 3};
	struct ffi_written written;
	assert_true(length <= sizeof(bytes) || length > MIB);
	return ffi_write(set, addr, bytes, length, durability, &written, &err);
}

static int persist(uint64_t set, uint64_t addr, uint64_t length, uint32_t durability)
{
	struct ffi_written written;
	return ffi_persist(set, (uint64_t[]){addr, length}, 1, durability, &written, &err);
}

static int pin_and_unpin(uint64_t set, uint64_t addr, uint64_t length)
{
	uint64_t pin;
	int rc = ffi_pin(set, addr, length, &pin, &err);
	assert_int_equal(pin != 0, rc == 0);
	if (rc == 0)
		must(ffi_unpin(pin));
	return rc;
}

/* ---- one map of each shape, [lo, hi), with a gap at either side ---- */

enum shape { PLAIN, COALESCED, TRIMMED, SPLIT, SHAPES };
struct shaped {
	uint64_t set, lo, hi, parts;
};

static uint64_t add(uint64_t set, const struct place *p, const char *name, uint64_t page, uint64_t pages)
{
	return must_map(set, p, name, (struct ffi_part_spec){.offset = page * PAGE, .length = pages * PAGE}).addr;
}

static struct shaped shape_of(const struct place *p, enum shape shape)
{
	static const struct {
		uint64_t parts[5]; /* pages; the first and the last are taken out again */
		uint64_t hole;	   /* page that is taken out, too; 0: none */
		uint64_t first, pages, count;
	} shapes[SHAPES] = {
			[PLAIN] = {{1, 3, 1}, 0, 1, 3, 1},
			[COALESCED] = {{1, 1, 2, 1, 1}, 0, 1, 4, 3},
			[TRIMMED] = {{1, 2, 1, 1, 1}, 0, 1, 4, 3},
			[SPLIT] = {{1, 1, 1, 2, 1}, 2, 3, 2, 1},
	};
	struct shaped s = {.set = new_set(FFI_COALESCING_NONE, 2 * MIB)};
	uint64_t base = info_of(s.set).window_addr;
	uint64_t page = 0;
	for (int i = 0; i < 5 && shapes[shape].parts[i] != 0; i++) {
		/* Trimmed: all of it is one map at first. Else what is at the ends are maps of their own. */
		bool joined = i > (shape == TRIMMED ? 0 : 1) && (shape == TRIMMED || i < 4) && shape != PLAIN;
		must(ffi_set_coalescing(s.set, joined ? FFI_COALESCING_FULL : FFI_COALESCING_NONE, &err));
		(void)add(s.set, p, i % 2 ? "a" : "b", page, shapes[shape].parts[i]);
		page += shapes[shape].parts[i];
	}
	must(remove_range(s.set, base, 1));
	must(remove_range(s.set, base + page * PAGE - 1, 1));
	if (shapes[shape].hole != 0)
		must(remove_range(s.set, base + shapes[shape].hole * PAGE, 1));
	s.lo = base + shapes[shape].first * PAGE;
	s.hi = s.lo + shapes[shape].pages * PAGE;
	s.parts = shapes[shape].count;
	return s;
}

static void make_two(const struct place *p)
{
	make_file(p, "a", 16 * PAGE, 1);
	make_file(p, "b", 16 * PAGE, 2);
}

static void holds(const struct shaped *s, uint64_t addr, bool held)
{
	struct ffi_span span;
	int code = held ? 0 : PMEMSET_E_CANNOT_FIND_PART_MAP;
	fails(ffi_lookup(s->set, addr, &span), code);
	fails(pin_and_unpin(s->set, addr, 0), code);
	fails(pin_and_unpin(s->set, addr, 1), code);
	fails(peek(s->set, addr, 1), code);
	fails(peek(s->set, addr, 0), code);
	fails(poke(s->set, addr, 1, FFI_DURABILITY_NONE), code);
	fails(poke(s->set, addr, 1, FFI_DURABILITY_PERSISTED), code);
	fails(persist(s->set, addr, 1, FFI_DURABILITY_FLUSHED), code);
	fails(persist(s->set, addr, 0, FFI_DURABILITY_DEEP), code);
	if (!held)
		return;
	assert_int_equal(span.map_addr, s->lo);
	assert_int_equal(span.map_size, s->hi - s->lo);
	assert_int_equal(span.map_parts, s->parts);
	assert_int_equal(span.map_refs, 0);
	assert_true(addr >= span.addr && addr - span.addr < span.length);
}

static void the_bounds_of_a_map(void **state)
{
	struct place *p = here(state);
	make_two(p);
	for (enum shape shape = PLAIN; shape < SHAPES; shape++) {
		struct shaped s = shape_of(p, shape);
		holds(&s, s.lo - 1, false);
		holds(&s, s.lo, true);
		holds(&s, s.lo + PAGE + 1, true);
		holds(&s, s.hi - 1, true);
		holds(&s, s.hi, false);
		holds(&s, 0, false);
		holds(&s, UINT64_MAX, false);
		holds(&s, info_of(s.set).window_addr - 1, false);
		holds(&s, info_of(s.set).window_addr + 2 * MIB, false);
		delete_set(s.set);
	}
}

static void leaves(const struct shaped *s, const struct place *p, uint64_t addr, uint64_t length, int code)
{
	char *before = world(s->set, p);
	for (int what = 0; what < 6; what++) {
		memset(&err, 0xff, sizeof(err));
		int rc = what == 0   ? pin_and_unpin(s->set, addr, length)
			 : what == 1 ? peek(s->set, addr, length)
			 : what == 2 ? poke(s->set, addr, length, FFI_DURABILITY_NONE)
			 : what == 3 ? poke(s->set, addr, length, FFI_DURABILITY_PERSISTED)
			 : what == 4 ? persist(s->set, addr, length, FFI_DURABILITY_PERSISTED)
				     : persist(s->set, addr, length, FFI_DURABILITY_DEEP);
		fails(rc, code);
		assert_int_equal(err.code, code);
		assert_int_equal(err.value, 0);
		assert_int_equal(err.addr, code == PMEMSET_E_LENGTH_OUT_OF_RANGE ? s->lo : 0);
		assert_int_equal(err.size, code == PMEMSET_E_LENGTH_OUT_OF_RANGE ? s->hi - s->lo : 0);
	}
	same_world(before, s->set, p);
}

static void ranges_that_leave_the_map(void **state)
{
	struct place *p = here(state);
	make_two(p);
	for (enum shape shape = PLAIN; shape < SHAPES; shape++) {
		struct shaped s = shape_of(p, shape);
		uint64_t size = s.hi - s.lo;
		const int out = PMEMSET_E_LENGTH_OUT_OF_RANGE;
		leaves(&s, p, s.hi - 1, 2, out);
		leaves(&s, p, s.hi - 1, 256, out);
		leaves(&s, p, s.lo, 3 * MIB, out);
		leaves(&s, p, s.lo, UINT64_MAX, out);
		leaves(&s, p, s.hi - 1, UINT64_MAX, out);
		leaves(&s, p, s.lo, UINT64_MAX - s.lo + 1, out); /* to 0, and to the address itself */
		leaves(&s, p, s.lo + 1, UINT64_MAX - s.lo, out);
		leaves(&s, p, s.hi, 0, PMEMSET_E_CANNOT_FIND_PART_MAP);
		leaves(&s, p, s.lo - 1, 2, PMEMSET_E_CANNOT_FIND_PART_MAP);
		leaves(&s, p, 0, UINT64_MAX, PMEMSET_E_CANNOT_FIND_PART_MAP);
		leaves(&s, p, UINT64_MAX, UINT64_MAX, PMEMSET_E_CANNOT_FIND_PART_MAP);
		must(pin_and_unpin(s.set, s.lo, size));
		fails(pin_and_unpin(s.set, s.lo, size + 1), out);
		must(persist(s.set, s.lo, size, FFI_DURABILITY_PERSISTED));
		fails(persist(s.set, s.lo, size + 1, FFI_DURABILITY_PERSISTED), out);
		delete_set(s.set);
	}
}

/* Three maps of 2, 1 and 1 pages with gaps; the first has two parts. */
static void lists(void **state)
{
	struct place *p = here(state);
	struct ffi_span rows[8];
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t base = add(set, p, "a", 0, 1);
	must(ffi_set_coalescing(set, FFI_COALESCING_FULL, &err));
	(void)add(set, p, "b", 3, 1);
	must(ffi_set_coalescing(set, FFI_COALESCING_NONE, &err));
	for (uint64_t i = 0; i < 4; i++)
		(void)add(set, p, "a", i, 1);
	must(remove_range(set, base + 2 * PAGE, 1));
	must(remove_range(set, base + 4 * PAGE, 1));
	const struct {
		uint64_t from, to, max;
		int64_t maps, parts;
	} calls[] = {
			{0, 0, 8, 3, 4},
			{0, 0, 0, 0, 0},
			{0, 0, 2, 2, 2},
			{0, UINT64_MAX, 8, 3, 4},
			{UINT64_MAX, 0, 8, 0, 0},
			{base, base + 1, 8, 1, 1},
			{base, base, 8, 0, 0},
			{base + 2 * PAGE, base, 8, 0, 0},
			{0, base, 8, 0, 0},
			{base + PAGE, 0, 8, 3, 3},
			{base + PAGE - 1, base + PAGE + 1, 8, 1, 2},
			{base + 2 * PAGE - 1, base + 3 * PAGE, 8, 1, 1},
			{base + 2 * PAGE, base + 3 * PAGE, 8, 0, 0},
			{base + 2 * PAGE, base + 3 * PAGE + 1, 8, 1, 1},
			{base + 5 * PAGE, 0, 8, 1, 1},
			{base + 6 * PAGE, 0, 8, 0, 0},
	};
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		memset(rows, 0xff, sizeof(rows));
		must_be(ffi_maps(set, calls[i].from, calls[i].to, rows, calls[i].max), calls[i].maps, "maps", __FILE__, (int)i);
		assert_int_equal(rows[calls[i].maps].map_addr, UINT64_MAX); /* nothing behind the last */
		must_be(ffi_parts(set, calls[i].from, calls[i].to, rows, calls[i].max), calls[i].parts, "parts", __FILE__, (int)i);
		assert_int_equal(rows[calls[i].parts].map_addr, UINT64_MAX);
	}
	must_be(ffi_maps(set, base + PAGE, 0, rows, 8), 3, "maps", __FILE__, __LINE__);
	assert_int_equal(rows[0].addr, base); /* a map tells of its first part, wherever the list begins */
	assert_int_equal(rows[0].map_size, 2 * PAGE);
	assert_int_equal(rows[1].map_addr, base + 3 * PAGE);
	must_be(ffi_parts(set, base + PAGE, 0, rows, 8), 3, "parts", __FILE__, __LINE__);
	assert_int_equal(rows[0].addr, base + PAGE);
	assert_int_equal(rows[0].offset, 3 * PAGE);
	assert_int_equal(rows[0].map_addr, base);
	assert_int_equal(rows[0].map_parts, 2);
	delete_set(set);
}

/* ---- what arrives ---- */

static void told(const struct ffi_written *w, const struct place *p, uint64_t bytes, uint32_t durability)
{
	assert_int_equal(w->bytes, bytes);
	assert_int_equal(w->durability, durability);
	assert_int_equal(w->granularity, granularity);
	assert_int_equal(w->simulated, stores_are_mapped());
	if (p == &places[0])
		assert_int_equal(w->persistence, FFI_PERSISTENCE_VOLATILE);
}

static void what_a_write_is_told(void **state)
{
	struct place *p = here(state);
	static const uint32_t reached[] = {[FFI_DURABILITY_NONE] = FFI_DURABILITY_NONE,
			[FFI_DURABILITY_FLUSHED] = FFI_DURABILITY_PERSISTED, /* every call waits for what it flushes */
			[FFI_DURABILITY_PERSISTED] = FFI_DURABILITY_PERSISTED,
			[FFI_DURABILITY_DEEP] = FFI_DURABILITY_DEEP};
	struct ffi_written w;
	char buf[300] = {0};
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, 2);
	for (uint32_t d = FFI_DURABILITY_NONE; d <= FFI_DURABILITY_DEEP; d++) {
		must(ffi_write(set, addr + 7, buf, sizeof(buf), d, &w, &err));
		told(&w, p, sizeof(buf), reached[d]);
		must(ffi_write(set, addr + 7, buf, 0, d, &w, &err));
		told(&w, p, 0, reached[d]);
		if (d == FFI_DURABILITY_NONE)
			continue;
		must(ffi_persist(set, (uint64_t[]){addr + 5, 100, addr, 2 * PAGE, addr + 1, 0}, 3, d, &w, &err));
		told(&w, p, 100 + 2 * PAGE, reached[d]);
		must(ffi_persist(set, (uint64_t[]){addr + 5, 0}, 1, d, &w, &err));
		told(&w, p, 0, reached[d]);
	}
	must(ffi_drain(set, &w, &err));
	assert_int_equal(w.granularity, granularity);
	fails(ffi_write(set, addr, buf, 1, FFI_DURABILITY_DEEP + 1, &w, &err), -EINVAL);
	fails(ffi_persist(set, (uint64_t[]){addr, 1}, 1, FFI_DURABILITY_NONE, &w, &err), -EINVAL);
	fails(ffi_persist(set, (uint64_t[]){addr, 1}, 1, FFI_DURABILITY_DEEP + 1, &w, &err), -EINVAL);
	delete_set(set);
}

/* Random writes and reads over parts of two files, beside an array; at the end the files say the same. */
static void bytes_arrive(void **state)
{
	struct place *p = here(state);
	enum { PAGES = 9 };
	static const struct {
		const char *name;
		uint64_t page, pages;
	} parts[] = {{"a", 3, 1}, {"b", 0, 4}, {"a", 0, 2}, {"b", 7, 2}};
	make_two(p);
	(void)seed_chance();
	uint64_t size = PAGES * PAGE;
	unsigned char *wanted = malloc(size);
	unsigned char *buf = malloc(size);
	assert_true(wanted != NULL && buf != NULL);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t base = info_of(set).window_addr;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		(void)add(set, p, parts[i].name, parts[i].page, parts[i].pages);
	must(ffi_read(set, base, wanted, size, 0, &err));
	assert_int_equal(wanted[0], byte_of(1, 3 * PAGE));
	assert_int_equal(wanted[PAGE], byte_of(2, 0));
	struct ffi_written together;
	/* In pieces, from anywhere to across the parts. */
	for (uint64_t i = 0; i < 5 * PAGE; i++)
		buf[i] = wanted[PAGE / 2 + i] = (unsigned char)(i * 7);
	const uint64_t pieces[] = {(uintptr_t)buf, 1, (uintptr_t)buf + 1, 3 * PAGE, (uintptr_t)buf + 1 + 3 * PAGE, 2 * PAGE - 1};
	must(ffi_write_pieces(set, base + PAGE / 2, pieces, 3, FFI_DURABILITY_PERSISTED, &together, &err));
	assert_int_equal(together.bytes, 5 * PAGE);
	assert_int_equal(together.durability, FFI_DURABILITY_PERSISTED);
	/* The third leaves the map; what was written before it is told. */
	fails(ffi_write_pieces(set, base + size - 3 * PAGE - 1,
			      (uint64_t[]){(uintptr_t)wanted + size - 3 * PAGE - 1, 3 * PAGE, (uintptr_t)wanted + size - 1, 1,
					      (uintptr_t)buf, 1},
			      3, FFI_DURABILITY_NONE, &together, &err),
			PMEMSET_E_CANNOT_FIND_PART_MAP);
	assert_int_equal(err.value, 3 * PAGE + 1);
	fails(ffi_write_pieces(set, base, pieces, 0, FFI_DURABILITY_NONE, &together, &err), -EINVAL);
	fails(ffi_write_pieces(set, base, pieces, 3, FFI_DURABILITY_DEEP + 1, &together, &err), -EINVAL);
	for (int i = 0; i < 400; i++) {
		uint64_t at_byte = chance(size);
		uint64_t n = 1 + chance(chance(4) ? 200 : size - at_byte);
		n = n > size - at_byte ? size - at_byte : n;
		struct ffi_written w;
		for (uint64_t k = 0; k < n; k++)
			buf[k] = wanted[at_byte + k] = (unsigned char)chance(256);
		must(ffi_write(set, base + at_byte, buf, n, i % 16 ? FFI_DURABILITY_NONE : (uint32_t)chance(4), &w, &err));
		assert_int_equal(w.bytes, n);
		at_byte = chance(size);
		n = 1 + chance(size - at_byte);
		must(ffi_read(set, base + at_byte, buf, n, 0, &err));
		assert_memory_equal(buf, wanted + at_byte, n);
	}
	uint64_t from = 0;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		read_file(p, parts[i].name, parts[i].page * PAGE, buf, parts[i].pages * PAGE);
		assert_memory_equal(buf, wanted + from, parts[i].pages * PAGE);
		from += parts[i].pages * PAGE;
	}
	must(persist(set, base, size, FFI_DURABILITY_DEEP));
	delete_set(set);
	free(wanted);
	free(buf);
}

/* Copies are made in pieces of 1 MiB: a length that is no multiple, at an address that is none. */
static void many_pieces(void **state)
{
	struct place *p = here(state);
	const uint64_t length = 3 * MIB + 12345;
	make_file(p, "a", 4 * MIB, 0);
	unsigned char *wanted = malloc(length);
	unsigned char *buf = calloc(1, length);
	assert_true(wanted != NULL && buf != NULL);
	for (uint64_t i = 0; i < length; i++)
		wanted[i] = byte_of(3, i);
	uint64_t set = new_set(FFI_COALESCING_NONE, 4 * MIB);
	uint64_t addr = add(set, p, "a", 0, 4 * MIB / PAGE);
	struct ffi_written w;
	must(ffi_write(set, addr + 777, wanted, length, FFI_DURABILITY_PERSISTED, &w, &err));
	told(&w, p, length, FFI_DURABILITY_PERSISTED);
	must(ffi_read(set, addr + 777, buf, length, 0, &err));
	assert_memory_equal(buf, wanted, length);
	memset(buf, 0, length);
	read_file(p, "a", 777, buf, length);
	assert_memory_equal(buf, wanted, length);
	read_file(p, "a", 776, buf, 1);
	assert_int_equal(buf[0], 0);
	read_file(p, "a", 777 + length, buf, 1);
	assert_int_equal(buf[0], 0);
	delete_set(set);
	free(wanted);
	free(buf);
}

static void several_ranges(void **state)
{
	struct place *p = here(state);
	const uint64_t many = scaled(5000);
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t a = add(set, p, "a", 0, 4);
	uint64_t b = add(set, p, "b", 0, 4);
	struct ffi_written w;
	uint64_t *ranges = malloc(many * 2 * sizeof(*ranges));
	assert_non_null(ranges);
	/* Others' dirt is on the file, and there is none; few ranges, and more than are flushed one by one. */
	for (uint64_t count = 1; count <= many; count = count * 5 + 3) {
		must(poke(set, a + 9, 3, FFI_DURABILITY_NONE));
		for (uint64_t i = 0; i < count; i++) {
			ranges[2 * i] = (i % 3 ? a : b) + i * 37 % (4 * PAGE - 100);
			ranges[2 * i + 1] = i % 100;
		}
		must(ffi_persist(set, ranges, count, FFI_DURABILITY_PERSISTED, &w, &err));
		must(ffi_persist(set, ranges, count, FFI_DURABILITY_DEEP, &w, &err));
		char *before = world(set, p);
		memset(&err, 0, sizeof(err));
		ranges[2 * (count - 1) + 1] = 5 * PAGE;
		fails(ffi_persist(set, ranges, count, FFI_DURABILITY_PERSISTED, &w, &err), PMEMSET_E_LENGTH_OUT_OF_RANGE);
		assert_int_equal(err.value, count - 1);
		ranges[2 * (count / 2)] = b + 4 * PAGE;
		fails(ffi_persist(set, ranges, count, FFI_DURABILITY_PERSISTED, &w, &err), PMEMSET_E_CANNOT_FIND_PART_MAP);
		assert_int_equal(err.value, count / 2);
		same_world(before, set, p);
	}
	/* No pin is left of all that. */
	must(remove_range(set, a, 8 * PAGE));
	free(ranges);
	delete_set(set);
}

/* ---- pins ---- */

static uint64_t refs_of(uint64_t set, uint64_t addr)
{
	struct ffi_span span;
	must(ffi_lookup(set, addr, &span));
	return span.map_refs;
}

static void *unpin_elsewhere(void *pin)
{
	must(ffi_unpin(*(uint64_t *)pin));
	return NULL;
}

static uint64_t open_pins(void)
{
	struct ffi_counters counters;
	ffi_counters(&counters);
	return counters.pins;
}

static void pins_are_counted(void **state)
{
	struct place *p = here(state);
	uint64_t pins[3];
	pthread_t thread;
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, 2);
	for (uint64_t i = 0; i < 3; i++) {
		must(ffi_pin(set, addr + i * PAGE / 2, PAGE, &pins[i], &err));
		assert_int_equal(refs_of(set, addr), i + 1);
		assert_int_equal(open_pins(), i + 1);
	}
	fails(ffi_pin(set, addr, 4 * PAGE, &(uint64_t){0}, &err), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	assert_int_equal(open_pins(), 3);
	/* It may grow meanwhile, and be read, written and flushed. */
	struct ffi_part more = must_map(set, p, "b", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(more.map_addr, addr);
	must(poke(set, more.addr - 1, 2, FFI_DURABILITY_PERSISTED));
	assert_int_equal(refs_of(set, more.addr), 3);
	for (uint64_t i = 0; i < 3; i++) {
		char *before = world(set, p);
		memset(&err, 0, sizeof(err));
		fails(remove_range(set, more.addr, 1), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
		assert_int_equal(err.addr, addr);
		assert_int_equal(err.size, 3 * PAGE);
		assert_int_equal(err.value, 3 - i);
		fails(ffi_set_delete(set, &err), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
		same_world(before, set, p);
		assert_int_equal(pthread_create(&thread, NULL, unpin_elsewhere, &pins[i]), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
		fails(ffi_unpin(pins[i]), -EBADF);
		assert_int_equal(open_pins(), 2 - i);
	}
	assert_int_equal(refs_of(set, addr), 0);
	must(remove_range(set, more.addr, 1));
	delete_set(set);
}

static void handles_run_out(void **state)
{
	struct place *p = here(state);
	enum { MANY = 65536 };
	static uint64_t pins[MANY];
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, 1);
	uint64_t n = 0;
	while (n < MANY && ffi_pin(set, addr, 1, &pins[n], &err) == 0)
		n++;
	assert_true(n > 60000 && n < MANY);
	assert_int_equal(err.code, -EMFILE);
	assert_int_equal(pins[n], 0);
	assert_int_equal(refs_of(set, addr), n);
	uint64_t other = 7;
	const struct ffi_set_spec spec = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET};
	fails(ffi_set_new(&spec, &other, &err), -EMFILE);
	assert_int_equal(other, 0);
	fails(ffi_volume_open(p->dir, &other, &err), -EMFILE);
	must(poke(set, addr, 1, FFI_DURABILITY_PERSISTED));
	while (n > 0)
		must(ffi_unpin(pins[--n]));
	assert_int_equal(refs_of(set, addr), 0);
	delete_set(set);
}

/* ---- handles ---- */

static void refuses_handle(uint64_t handle)
{
	struct ffi_set_info info;
	struct ffi_span span;
	struct ffi_removal removal = {0};
	struct ffi_written w;
	uint64_t pin = 7;
	char byte;
	fails(ffi_set_info(handle, &info), -EBADF);
	fails(ffi_set_coalescing(handle, FFI_COALESCING_NONE, &err), -EBADF);
	fails(ffi_lookup(handle, 0, &span), -EBADF);
	fails(ffi_maps(handle, 0, 0, &span, 1), -EBADF);
	fails(ffi_parts(handle, 0, 0, &span, 1), -EBADF);
	fails(ffi_remove(handle, 0, 1, 0, 0, &removal, NULL, NULL, NULL, &err), -EBADF);
	fails(ffi_pin(handle, 0, 0, &pin, &err), -EBADF);
	assert_int_equal(pin, 0);
	fails(ffi_read(handle, 0, &byte, 1, 0, &err), -EBADF);
	fails(ffi_check(handle, 0, 1, FFI_CHECK_SIZE, &err), -EBADF);
	fails(ffi_write(handle, 0, &byte, 1, FFI_DURABILITY_NONE, &w, &err), -EBADF);
	fails(ffi_write_pieces(handle, 0, (uint64_t[]){(uintptr_t)&byte, 1}, 1, FFI_DURABILITY_NONE, &w, &err), -EBADF);
	fails(ffi_persist(handle, (uint64_t[]){0, 1}, 1, FFI_DURABILITY_FLUSHED, &w, &err), -EBADF);
	fails(ffi_drain(handle, &w, NULL), -EBADF);
	fails(ffi_set_delete(handle, &err), -EBADF);
	assert_int_equal(err.code, -EBADF);
}

static void refuses_volume(uint64_t set, uint64_t handle)
{
	struct ffi_volume_info info;
	struct ffi_probe probe;
	struct ffi_part part;
	const struct ffi_part_spec spec = {.volume = handle, .length = PAGE, .cookie = 1};
	fails(ffi_part_map(set, &spec, "a", 1, &part, &err), -EBADF);
	fails(ffi_volume_info(handle, &info, &err), -EBADF);
	fails(ffi_probe(handle, "a", 1, &probe, &err), -EBADF);
	fails(ffi_volume_close(handle), -EBADF);
}

static void stale_and_foreign_handles(void **state)
{
	struct place *p = here(state);
	struct ffi_part part;
	uint64_t volume, pin;
	make_two(p);
	uint64_t gone = new_set(FFI_COALESCING_NONE, 2 * MIB);
	delete_set(gone);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, 1);
	must(ffi_pin(set, addr, 0, &pin, &err));
	must(ffi_volume_open(p->dir, &volume, &err));
	/* Stale, none, of another kind, and the very handle with a bit that no handle has. */
	const uint64_t no_sets[] = {gone, 0, UINT64_MAX, set + 1, set + (1 << 16), pin, volume, set | UINT64_C(1) << 48,
			set | UINT64_C(1) << 63};
	for (size_t i = 0; i < sizeof(no_sets) / sizeof(no_sets[0]); i++) {
		refuses_handle(no_sets[i]);
		fails(map(no_sets[i], p, "a", (struct ffi_part_spec){.length = PAGE}, &part), -EBADF);
	}
	const uint64_t no_volumes[] = {gone, 0, UINT64_MAX, set, pin, volume | UINT64_C(1) << 48};
	for (size_t i = 0; i < sizeof(no_volumes) / sizeof(no_volumes[0]); i++)
		refuses_volume(set, no_volumes[i]);
	const uint64_t no_pins[] = {gone, 0, UINT64_MAX, set, volume, pin | UINT64_C(1) << 48};
	for (size_t i = 0; i < sizeof(no_pins) / sizeof(no_pins[0]); i++)
		fails(ffi_unpin(no_pins[i]), -EBADF);
	must(ffi_volume_close(volume));
	refuses_volume(set, volume);
	must(ffi_unpin(pin));
	delete_set(set);
	refuses_handle(set);
}

/* ---- the medium refuses ---- */

static void io_failed(int rc, uint32_t reason, uint64_t addr, uint64_t offset, uint64_t value)
{
	must_be(rc, PMEMSET_E_IO_FAIL, "an access", __FILE__, __LINE__);
	assert_int_equal(err.reason, reason);
	assert_int_equal(err.addr, addr);
	assert_int_equal(err.offset, offset);
	assert_int_equal(err.value, value);
}

static void truncated(void **state)
{
	struct place *p = here(state);
	unsigned char buf[64];
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t b = add(set, p, "b", 0, 2);
	uint64_t addr = add(set, p, "a", 2, 4); /* in one map with the other file's */
	must(poke(set, addr, 4 * 64, FFI_DURABILITY_NONE));
	assert_int_equal(truncate(path_in(p, "a"), (off_t)(4 * PAGE)), 0);

	/* Pages 4 and 5 of the file, the last two of the part, are gone. */
	uint64_t gone = addr + 2 * PAGE;
	io_failed(peek(set, gone, 1), PMEMSET_REASON_TRUNCATED, gone, 4 * PAGE, 4 * PAGE);
	io_failed(peek(set, gone + 2 * PAGE - 1, 1), PMEMSET_REASON_TRUNCATED, gone + 2 * PAGE - 1, 6 * PAGE - 1, 4 * PAGE);
	io_failed(poke(set, gone, 8, FFI_DURABILITY_NONE), PMEMSET_REASON_TRUNCATED, gone, 4 * PAGE, 0);
	io_failed(poke(set, gone + 2 * PAGE - 1, 1, FFI_DURABILITY_PERSISTED), PMEMSET_REASON_TRUNCATED, gone + 2 * PAGE - 1, 6 * PAGE - 1,
			0);
	/* A range that begins in what is there. */
	must_be(peek(set, gone - 10, 20), PMEMSET_E_IO_FAIL, "a read over the end", __FILE__, __LINE__);
	assert_int_equal(err.reason, PMEMSET_REASON_TRUNCATED);
	io_failed(poke(set, gone - 10, 20, FFI_DURABILITY_NONE), PMEMSET_REASON_TRUNCATED, gone, 4 * PAGE, 0);
	io_failed(persist(set, gone - 10, 20, FFI_DURABILITY_PERSISTED), PMEMSET_REASON_TRUNCATED, gone, 4 * PAGE, 4 * PAGE);
	assert_int_equal(file_size(p, "a"), 4 * PAGE);

	/* For who copies from the mapping: nothing faults in the last page of a file, so the size is told. */
	for (uint32_t what = FFI_CHECK_SIZE; what <= FFI_CHECK_LOAD; what++) {
		must(ffi_check(set, addr, 2 * PAGE, what, &err));
		must(ffi_check(set, addr, 0, what, &err));
		io_failed(ffi_check(set, addr, 2 * PAGE + 1, what, &err), PMEMSET_REASON_TRUNCATED, gone, 4 * PAGE, 4 * PAGE);
		assert_int_equal(truncate(path_in(p, "a"), (off_t)(4 * PAGE - 1)), 0);
		io_failed(ffi_check(set, addr, 2 * PAGE, what, &err), PMEMSET_REASON_TRUNCATED, gone - 1, 4 * PAGE - 1, 4 * PAGE - 1);
		assert_int_equal(truncate(path_in(p, "a"), (off_t)(4 * PAGE)), 0);
	}
	fails(ffi_check(set, addr, 1, FFI_CHECK_LOAD + 1, &err), -EINVAL);

	/* What is there goes on, in this map and elsewhere. */
	must(poke(set, gone - 10, 10, FFI_DURABILITY_PERSISTED));
	must(ffi_read(set, b + 2 * PAGE - 1, buf, 2, 0, &err));
	assert_int_equal(buf[0], byte_of(2, 2 * PAGE - 1));
	must(poke(set, b, 64, FFI_DURABILITY_PERSISTED));
	uint64_t other = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t again = add(other, p, "a", 3, 1);
	must(peek(other, again, 64));
	delete_set(other);

	/* It grows again, and is whole again; then it can be removed, and could have been before. */
	assert_int_equal(truncate(path_in(p, "a"), (off_t)(5 * PAGE)), 0);
	must(peek(set, gone, 64));
	io_failed(peek(set, gone + PAGE, 1), PMEMSET_REASON_TRUNCATED, gone + PAGE, 5 * PAGE, 5 * PAGE);
	assert_int_equal(truncate(path_in(p, "a"), 0), 0);
	io_failed(peek(set, addr, 1), PMEMSET_REASON_TRUNCATED, addr, 2 * PAGE, 0);
	delete_set(set);
	assert_int_equal(file_size(p, "a"), 0);
}

/* The page is there, with zeros behind the end: a load would read them, and a store be lost, and neither would fault. */
static void truncated_within_a_page(void **state)
{
	struct place *p = here(state);
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, 2);
	const uint64_t end = PAGE + 100;
	assert_int_equal(truncate(path_in(p, "a"), (off_t)end), 0);
	must(peek(set, addr + PAGE, 100));
	must(poke(set, addr + PAGE, 100, FFI_DURABILITY_PERSISTED));
	must(persist(set, addr + PAGE, 100, FFI_DURABILITY_PERSISTED));
	io_failed(peek(set, addr + PAGE, 101), PMEMSET_REASON_TRUNCATED, addr + end, end, end);
	io_failed(peek(set, addr + PAGE + 200, 1), PMEMSET_REASON_TRUNCATED, addr + PAGE + 200, PAGE + 200, end);
	for (uint32_t d = FFI_DURABILITY_NONE; d <= FFI_DURABILITY_DEEP; d++) {
		io_failed(poke(set, addr + PAGE, 101, d), PMEMSET_REASON_TRUNCATED, addr + end, end, 0);
		io_failed(poke(set, addr + PAGE + 200, 1, d), PMEMSET_REASON_TRUNCATED, addr + PAGE + 200, PAGE + 200, 0);
	}
	assert_int_equal(file_size(p, "a"), end);
	delete_set(set);
}

static void a_hole_on_a_full_tmpfs(void **state)
{
	struct place *p = here(state);
	struct place small = {.name = "small"};
	char *buf = malloc(2 * MIB);
	struct ffi_written w;
	mounting();
	assert_non_null(buf);
	memset(buf, 5, 2 * MIB);
	(void)snprintf(small.dir, sizeof(small.dir), "%s", path_in(p, "mnt"));
	assert_int_equal(mkdir(small.dir, 0700), 0);
	assert_int_equal(mount("none", small.dir, "tmpfs", 0, "size=4m"), 0);
	must(ffi_volume_open(small.dir, &small.volume, &err));
	make_file(&small, "a", 8 * MIB, 0);
	make_file(&small, "b", 2 * PAGE, 3);
	uint64_t set = new_set(FFI_COALESCING_NONE, 16 * MIB);
	uint64_t b = add(set, &small, "b", 0, 2);
	uint64_t a = add(set, &small, "a", 0, 8 * MIB / PAGE);
	must(ffi_write(set, a, buf, PAGE, FFI_DURABILITY_PERSISTED, &w, &err));
	fill_up(&small, "filler");

	uint64_t hole = a + MIB;
	io_failed(peek(set, hole, 8), PMEMSET_REASON_NO_SPACE, hole, MIB, 0);
	memset(&err, 0, sizeof(err));
	int rc = ffi_write(set, hole, buf, 2 * MIB, FFI_DURABILITY_NONE, &w, &err);
	if (stores_are_mapped()) {
		must_be(rc, PMEMSET_E_IO_FAIL, "a store", __FILE__, __LINE__);
		assert_int_equal(err.reason, PMEMSET_REASON_NO_SPACE);
		assert_true(err.addr >= hole && err.addr < hole + MIB);
		assert_int_equal(err.offset, err.addr - a);
	} else {
		must_be(rc, -ENOSPC, "a write", __FILE__, __LINE__);
	}
	assert_int_equal(err.value, 0);
	/* What has its pages goes on; so does the hole, with room. */
	must(ffi_write(set, a, buf, PAGE, FFI_DURABILITY_DEEP, &w, &err));
	must(poke(set, b, 64, FFI_DURABILITY_PERSISTED));
	assert_int_equal(truncate(path_in(&small, "filler"), 0), 0);
	must(ffi_write(set, hole, buf, 2 * MIB, FFI_DURABILITY_PERSISTED, &w, &err));
	assert_int_equal(w.bytes, 2 * MIB);

	/* Room for a part of it: the count says how much was written. */
	fill_up(&small, "filler");
	memset(&err, 0, sizeof(err));
	rc = ffi_write(set, hole + MIB, buf, 2 * MIB, FFI_DURABILITY_PERSISTED, &w, &err);
	must_be(rc, stores_are_mapped() ? PMEMSET_E_IO_FAIL : -ENOSPC, "a write", __FILE__, __LINE__);
	assert_int_equal(err.value, MIB);
	delete_set(set);
	must(ffi_volume_close(small.volume));
	assert_int_equal(umount(small.dir), 0);
	free(buf);
}

static void without_waiting(void **state)
{
	struct place *p = here(state);
	enum { PAGES = 64 };
	unsigned char buf[3];
	make_file(p, "a", PAGES * PAGE, 4);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 0, PAGES);
	uint64_t last = addr + PAGES * PAGE - sizeof(buf);
	if (p != &places[0]) {
		int fd = open(path_in(p, "a"), O_RDONLY | O_CLOEXEC);
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		assert_int_equal(close(fd), 0);
		fails(ffi_read(set, last, buf, sizeof(buf), 1, &err), -EAGAIN);
		fails(ffi_read(set, last, buf, sizeof(buf), 1, &err), -EAGAIN); /* asking does not read it in */
		fails(ffi_check(set, last, sizeof(buf), FFI_CHECK_RESIDENT, &err), -EAGAIN);
		must(ffi_check(set, last, sizeof(buf), FFI_CHECK_SIZE, &err));
		must(ffi_read(set, last, buf, sizeof(buf), 0, &err));
		fd = open(path_in(p, "a"), O_RDONLY | O_CLOEXEC);
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		assert_int_equal(close(fd), 0);
		must(ffi_check(set, addr, PAGES * PAGE, FFI_CHECK_LOAD, &err));
	}
	must(ffi_check(set, addr, PAGES * PAGE, FFI_CHECK_RESIDENT, &err));
	must(ffi_read(set, last, buf, sizeof(buf), 1, &err));
	assert_int_equal(buf[2], byte_of(4, PAGES * PAGE - 1));
	/* Nobody waits to learn that it is not there. */
	assert_int_equal(truncate(path_in(p, "a"), (off_t)PAGE), 0);
	io_failed(ffi_read(set, last, buf, sizeof(buf), 1, &err), PMEMSET_REASON_TRUNCATED, last, PAGES * PAGE - sizeof(buf), PAGE);
	delete_set(set);
}

/* ---- bad memory, as the kernel tells of it: from inside of a copy, whose buffer faults, and whose handler here sends the signal ---- */

static struct {
	char *page;
	int code;
	uint64_t addr;
	volatile int sent;
} trap;

static void send_sigbus(int code, uint64_t addr)
{
	siginfo_t info = {.si_signo = SIGBUS, .si_code = code};
	info.si_addr = at(addr);
	(void)syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGBUS, &info);
}

static void on_segv(int number, siginfo_t *info, void *context)
{
	(void)context;
	(void)number;
	if ((char *)info->si_addr < trap.page || (char *)info->si_addr >= trap.page + PAGE)
		abort();
	(void)mprotect(trap.page, PAGE, PROT_READ | PROT_WRITE);
	trap.sent++;
	send_sigbus(trap.code, trap.addr);
}

static int read_into_trap(uint64_t set, uint64_t addr, int code, uint64_t bad)
{
	trap.code = code;
	trap.addr = bad;
	trap.sent = 0;
	assert_int_equal(mprotect(trap.page, PAGE, PROT_NONE), 0);
	memset(&err, 0, sizeof(err));
	int rc = ffi_read(set, addr, trap.page, 64, 0, &err);
	assert_int_equal(trap.sent, 1);
	return rc;
}

static void bad_memory(void **state)
{
	struct place *p = here(state);
	struct sigaction before;
	struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER};
	no_valgrind("takes a fault that is sent for one of its own");
	make_two(p);
	trap.page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(trap.page, MAP_FAILED);
	assert_int_equal(sigaction(SIGSEGV, &action, &before), 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, p, "a", 3, 1);
	uint64_t b = add(set, p, "b", 0, 1);
	/* The copy itself met it. */
	io_failed(read_into_trap(set, addr + 10, BUS_MCEERR_AR, addr + 20), PMEMSET_REASON_MEDIA, addr + 20, 3 * PAGE + 20, 0);
	/* A fault that nothing explains. */
	io_failed(read_into_trap(set, addr + 10, BUS_OBJERR, addr + 20), PMEMSET_REASON_UNKNOWN_FAULT, addr + 20, 3 * PAGE + 20, 0);
	/* Somebody else's bad memory, which the kernel found early, is not this copy's failure. */
	must(read_into_trap(set, addr + 10, BUS_MCEERR_AO, b));
	assert_int_equal((unsigned char)trap.page[0], byte_of(1, 3 * PAGE + 10));
	/* Nor that of a process that is idle. */
	send_sigbus(BUS_MCEERR_AO, b);
	must(peek(set, b, 64));
	assert_int_equal(sigaction(SIGSEGV, &before, NULL), 0);
	assert_int_equal(munmap(trap.page, PAGE), 0);
	delete_set(set);
}

/* The status of a child that is sent a SIGBUS which is not ours. */
static int sent_one(int code)
{
	(void)fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		char here_it_is = 0;
		(void)setrlimit(RLIMIT_CORE, &(struct rlimit){0});
		(void)close(STDERR_FILENO); /* AddressSanitizer, whose handler was there before, has much to say */
		send_sigbus(code, (uint64_t)(uintptr_t)&here_it_is);
		_exit(0);
	}
	int status = 0;
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

/* Whoever would die of it without the engine dies with it, at once: nobody lives on whose next fault is not caught. */
static void bad_memory_of_others(void **state)
{
	(void)here(state);
	no_valgrind("does not hand on a SIGBUS that was sent with a code of the kernel's");
	static const int codes[] = {BUS_MCEERR_AO, SI_QUEUE, SI_TKILL};
	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		int status = sent_one(codes[i]);
		assert_int_not_equal(status, 0);
		if (WIFSIGNALED(status))
			assert_int_equal(WTERMSIG(status), SIGBUS);
	}
}

/* ---- a flush that fails ---- */

static void persist_failed(int rc, int code, uint32_t reason)
{
	must_be(rc, code, "a flush", __FILE__, __LINE__);
	assert_int_equal(err.code, code);
	assert_int_equal(err.reason, reason);
	assert_true(err.sys_errno == ENOSPC || err.sys_errno == EIO);
}

/* What each later call is told of a file whose flush failed. */
static void is_degraded(uint64_t set, uint64_t addr, const struct disk *d)
{
	struct ffi_span span;
	struct ffi_part part;
	char *before = world(set, &d->place);
	assert_int_equal(info_of(set).degraded, 1);
	must(ffi_lookup(set, addr, &span));
	assert_int_equal(span.flags, FFI_SPAN_DEGRADED);
	for (uint32_t durability = FFI_DURABILITY_FLUSHED; durability <= FFI_DURABILITY_DEEP; durability++) {
		persist_failed(persist(set, addr + PAGE, 1, durability), -EIO, PMEMSET_REASON_DEGRADED);
		persist_failed(poke(set, addr, 1, durability), -EIO, PMEMSET_REASON_DEGRADED);
		assert_int_equal(err.value, 0);
	}
	persist_failed(remove_range(set, addr, 1), -EIO, PMEMSET_REASON_DEGRADED);
	persist_failed(ffi_set_delete(set, &err), -EIO, PMEMSET_REASON_DEGRADED);
	same_world(before, set, &d->place);
	uint64_t other = new_set(FFI_COALESCING_NONE, 2 * MIB);
	must(map(other, &d->place, "x", (struct ffi_part_spec){.length = PAGE}, &part));
	assert_int_equal(part.degraded, 1);
	assert_int_equal(info_of(other).degraded, 1);
	persist_failed(persist(other, part.addr, 1, FFI_DURABILITY_PERSISTED), -EIO, PMEMSET_REASON_DEGRADED);
	persist_failed(ffi_set_delete(other, &err), -EIO, PMEMSET_REASON_DEGRADED);
	forget_failure(&d->place, "x");
	delete_set(other);
	assert_int_equal(info_of(set).degraded, 0);
}

static void a_flush_fails(const struct place *p, bool with_the_write, uint32_t durability)
{
	struct disk d;
	unsigned char byte;
	open_disk(&d, p, 4 * PAGE);
	make_two(p);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t well = add(set, p, "a", 0, 2); /* another file, in the same map */
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	must(poke(set, addr, 3, FFI_DURABILITY_DEEP));
	break_disk(&d);
	must(poke(set, addr, 3, FFI_DURABILITY_NONE));
	int code = durability == FFI_DURABILITY_DEEP ? PMEMSET_E_DEEP_FLUSH_FAIL : -EIO;
	persist_failed(with_the_write ? poke(set, addr, 200, durability) : persist(set, addr, 3, durability), code,
			PMEMSET_REASON_PERSIST_FAILED);
	assert_int_equal(err.value, with_the_write ? 200 : 0); /* written, and of unknown durability */

	/* Reading and other files go on, and so do stores that promise nothing. */
	must(ffi_read(set, addr, &byte, 1, 0, &err));
	assert_int_equal(byte, 1);
	must(poke(set, addr + PAGE, 1, FFI_DURABILITY_NONE));
	must(poke(set, well, 64, durability));
	must(persist(set, well, PAGE, durability));
	persist_failed(persist(set, addr - 1, 2, durability), -EIO, PMEMSET_REASON_DEGRADED);
	uint64_t alone = new_set(FFI_COALESCING_NONE, 2 * MIB);
	(void)add(alone, p, "a", 0, 1);
	assert_int_equal(info_of(alone).degraded, 0);
	delete_set(alone);

	mend_disk(&d);
	is_degraded(set, addr, &d); /* mended or not, until somebody has dealt with it */
	must(poke(set, addr, 3, durability));
	delete_set(set);
	close_disk(&d);
}

static void flushes_that_fail(void **state)
{
	struct place *p = here(state);
	uint32_t first = stores_are_mapped() ? FFI_DURABILITY_DEEP : FFI_DURABILITY_FLUSHED; /* where the file is flushed at all */
	for (uint32_t durability = first; durability <= FFI_DURABILITY_DEEP; durability++) {
		a_flush_fails(p, false, durability);
		a_flush_fails(p, true, durability);
	}
}

/* As the kernel does by itself after a while: it fails, and tells nobody. */
static void write_out(int fd)
{
	assert_int_equal(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE), 0);
	(void)usleep(100000);
}

/* What others wrote before, and what became of it, is not ours; nor does asking about the file take an error away. */
static void an_error_of_others(void **state)
{
	struct place *p = here(state);
	struct disk d;
	open_disk(&d, p, 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	int fd = open(path_in(&d.place, "x"), O_WRONLY | O_CLOEXEC);
	break_disk(&d); /* which writes out what is dirty, so it comes first */
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	write_out(fd);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	mend_disk(&d);
	for (uint32_t durability = FFI_DURABILITY_FLUSHED; durability <= FFI_DURABILITY_DEEP; durability++)
		must(persist(set, addr, PAGE, durability));
	assert_int_equal(fdatasync(fd), -1); /* so there was one */
	assert_int_equal(close(fd), 0);

	/* Once it is mapped, errors are ours, and a further map does not swallow one. */
	break_disk(&d);
	must(poke(set, addr, 1, FFI_DURABILITY_NONE));
	fd = open(path_in(&d.place, "x"), O_RDONLY | O_CLOEXEC);
	write_out(fd);
	uint64_t other = new_set(FFI_COALESCING_NONE, 2 * MIB);
	(void)add(other, &d.place, "x", 0, 1);
	struct ffi_probe probe;
	must(ffi_probe(d.place.volume, "x", 1, &probe, &err));
	delete_set(other);
	must_be(persist(set, addr + PAGE, 1, FFI_DURABILITY_DEEP), PMEMSET_E_DEEP_FLUSH_FAIL, "a flush of what is clean", __FILE__,
			__LINE__);
	assert_int_equal(close(fd), 0);
	mend_disk(&d);
	forget_failure(&d.place, "x");
	delete_set(set);
	close_disk(&d);
}

/* Growth flushes the file, too, so it is told of a failed flush of others' bytes; they must be told as well. */
static void growth_takes_no_error_away(void **state)
{
	struct place *p = here(state);
	struct disk d;
	struct ffi_part part;
	open_disk(&d, p, 4 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t other = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t addr = add(set, &d.place, "x", 0, 4);
	must(poke(set, addr, 3, FFI_DURABILITY_DEEP));
	int fd = open(path_in(&d.place, "x"), O_RDONLY | O_CLOEXEC);
	break_disk(&d);
	must(poke(set, addr, 3, FFI_DURABILITY_NONE));
	write_out(fd);
	mend_disk(&d);
	persist_failed(map(other, &d.place, "x", (struct ffi_part_spec){.length = 8 * PAGE, .grow = 1}, &part),
			PMEMSET_E_CANNOT_GROW_SOURCE_FILE, PMEMSET_REASON_PERSIST_FAILED);
	assert_int_equal(file_size(&d.place, "x"), 4 * PAGE);
	persist_failed(persist(set, addr, 3, FFI_DURABILITY_DEEP), -EIO, PMEMSET_REASON_DEGRADED);
	assert_int_equal(info_of(set).degraded, 1);
	/* What cannot be flushed cannot grow durably. */
	persist_failed(map(other, &d.place, "x", (struct ffi_part_spec){.length = 8 * PAGE, .grow = 1}, &part),
			PMEMSET_E_CANNOT_GROW_SOURCE_FILE, PMEMSET_REASON_DEGRADED);
	assert_int_equal(file_size(&d.place, "x"), 4 * PAGE);
	forget_failure(&d.place, "x");
	(void)must_map(other, &d.place, "x", (struct ffi_part_spec){.length = 8 * PAGE, .grow = 1});
	must(persist(set, addr, 3, FFI_DURABILITY_DEEP));
	assert_int_equal(close(fd), 0);
	delete_set(other);
	delete_set(set);
	close_disk(&d);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(the_bounds_of_a_map),
			ON_EACH(ranges_that_leave_the_map),
			ON_EACH(lists),
			ON_EACH(what_a_write_is_told),
			ON_EACH(bytes_arrive),
			ON_EACH(many_pieces),
			ON_EACH(several_ranges),
			ON_EACH(pins_are_counted),
			ON_EACH(handles_run_out),
			ON_EACH(stale_and_foreign_handles),
			ON_EACH(truncated),
			ON_EACH(truncated_within_a_page),
			ON_EACH(a_hole_on_a_full_tmpfs),
			ON_EACH(without_waiting),
			ON_EACH(bad_memory),
			{"bad_memory_of_others", bad_memory_of_others, scene_enter, scene_leave, &places[0]},
			ON_EACH(flushes_that_fail),
			ON_EACH(an_error_of_others),
			ON_EACH(growth_takes_no_error_away),
	};
	if (argc > 1)
		granularity = strcmp(argv[1], "byte") == 0 ? FFI_GRANULARITY_BYTE : FFI_GRANULARITY_CACHE_LINE;
	return RUN(argc > 1 ? argv[1] : "page", tests, argc > 1 ? granularity : FFI_GRANULARITY_UNSET);
}
