/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * N3: copy bytes to a mapping and make them durable with cache-line flushes. The peer is libpmem2's own function, called with a pointer:
 * it knows no map, checks no range, and a fault ends the program.
 *
 * The medium is tmpfs, and the granularity is simulated on both sides: the same instructions, on the same pages of the same file, mapped
 * twice. Both copy from the same source to the same places in the file, in the same order.
 */
#include "bench.h"

#include <libpmemset.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>

#define MAPS_MAX 10000u
#define MAP_SIZE (16 * PAGE)
#define BIG_MAX (256 * MIB)
#define PLACES 4096u

static pmem2_memcpy_fn bare_copy;
static pmem2_persist_fn bare_persist;
static char *source;
static uint64_t set_handle;
static struct pmemset *c_set;

/* A file, where each side has it mapped. */
struct mapped {
	int fd;
	uint64_t size;
	uint64_t ffi, c, peer;
};

/* What is copied to where: offsets from the mappings' begin. */
struct copies {
	const struct mapped *to;
	uint64_t length;
	uint64_t places[PLACES];
};

static uint64_t place(const struct copies *c, uint64_t i)
{
	return c->places[i % PLACES];
}

static const char *bytes(const struct copies *c, uint64_t i)
{
	return source + (c->length < MIB ? i % 16 * 64 : 0);
}

/* ---- the sides ---- */

static double ffi_cost(void *arg, uint64_t times)
{
	const struct copies *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct ffi_written written;
		must(ffi_write(set_handle, c->to->ffi + place(c, i), bytes(c, i), c->length, FFI_DURABILITY_PERSISTED, &written, &err));
	}
	return cpu_time() - began;
}

static double c_cost(void *arg, uint64_t times)
{
	const struct copies *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++)
		must(pmemset_memcpy(c_set, at(c->to->c + place(c, i)), bytes(c, i), c->length, 0));
	return cpu_time() - began;
}

static double bare_cost(void *arg, uint64_t times)
{
	const struct copies *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++)
		(void)bare_copy(at(c->to->peer + place(c, i)), bytes(c, i), c->length, 0);
	return cpu_time() - began;
}

/* As the engine does, for the last page of a file that was truncated swallows what is stored behind the end. */
static double bare_asking_cost(void *arg, uint64_t times)
{
	const struct copies *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct statx sx;
		must(statx(c->to->fd, "", AT_EMPTY_PATH, STATX_SIZE, &sx));
		(void)bare_copy(at(c->to->peer + place(c, i)), bytes(c, i), c->length, 0);
	}
	return cpu_time() - began;
}

static double c_persist_cost(void *arg, uint64_t times)
{
	const struct copies *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		volatile uint64_t *word = at(c->to->c + place(c, i));
		*word = i;
		must(pmemset_persist(c_set, at(c->to->c + place(c, i)), c->length));
	}
	return cpu_time() - began;
}

static double bare_persist_cost(void *arg, uint64_t times)
{
	const struct copies *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		volatile uint64_t *word = at(c->to->peer + place(c, i));
		*word = i;
		bare_persist(at(c->to->peer + place(c, i)), c->length);
	}
	return cpu_time() - began;
}

/* ---- the scene ---- */

static void take_bare(void)
{
	struct pmem2_source *page_source;
	struct pmem2_map *map;
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(page != MAP_FAILED, "mmap");
	must(pmem2_source_from_anon(&page_source, PAGE));
	must(pmem2_map_from_existing(&map, page_source, page, PAGE, PMEM2_GRANULARITY_CACHE_LINE));
	bare_copy = pmem2_get_memcpy_fn(map);
	bare_persist = pmem2_get_persist_fn(map);
}

static void open_sets(uint64_t size)
{
	struct pmemset_config *config;
	set_handle = new_set(size, FFI_COALESCING_NONE);
	must(pmemset_config_new(&config));
	must(pmemset_config_set_required_store_granularity(config, PMEM2_GRANULARITY_CACHE_LINE));
	must(pmemset_new(&c_set, config));
	must(pmemset_config_delete(&config));
}

/* In so many parts, side by side, which are maps of their own; every page is touched on every side. */
static void map_everywhere(struct mapped *m, uint64_t volume, const char *name, uint64_t part, unsigned parts)
{
	struct pmemset_source *c_source;
	struct pmemset_map_config *range;
	char path[sizeof(memory_dir) + 4];
	(void)snprintf(path, sizeof(path), "%s/%s", memory_dir, name);
	m->size = part * parts;
	m->fd = make_file(memory_dir, name, m->size);
	must(pmemset_source_from_file(&c_source, path));
	must(pmemset_map_config_new(&range));
	for (unsigned i = 0; i < parts; i++) {
		struct pmemset_part_descriptor at_c;
		uint64_t at_ffi = map_part(set_handle, volume, name, i * part, part, i + 1);
		must(pmemset_map_config_set_offset(range, i * part));
		pmemset_map_config_set_length(range, part);
		must(pmemset_map(c_set, c_source, range, &at_c));
		m->ffi = i ? m->ffi : at_ffi;
		m->c = i ? m->c : (uint64_t)(uintptr_t)at_c.addr;
		check(at_ffi == m->ffi + i * part && (uint64_t)(uintptr_t)at_c.addr == m->c + i * part, "parts side by side");
	}
	must(pmemset_map_config_delete(&range));
	void *peer = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	check(peer != MAP_FAILED, "mmap");
	m->peer = (uint64_t)(uintptr_t)peer;
	must(madvise(at(m->ffi), m->size, MADV_POPULATE_WRITE));
	must(madvise(at(m->c), m->size, MADV_POPULATE_WRITE));
	must(madvise(peer, m->size, MADV_POPULATE_WRITE));
}

/* Random places for copies of that length, aligned to a cache line, each within one piece. */
static struct copies *copies(const struct mapped *to, uint64_t length, uint64_t piece)
{
	static struct copies c;
	c.to = to;
	c.length = length;
	for (unsigned i = 0; i < PLACES; i++)
		c.places[i] = chance(to->size / piece) * piece + (piece > length ? chance((piece - length) / 64) * 64 : 0);
	return &c;
}

/* Each side copies what is not there yet; the file has it, whole. */
static void check_copies(struct copies *c)
{
	cost *const sides[] = {ffi_cost, c_cost, bare_cost};
	char *got = malloc(c->length);
	check(got != NULL, "malloc");
	for (unsigned i = 0; i < 3; i++) {
		for (uint64_t n = 0; n < c->length; n++)
			source[n] = (char)(n * 7 + n / 251 + i);
		(void)sides[i](c, 1);
		check(pread(c->to->fd, got, c->length, (off_t)c->places[0]) == (ssize_t)c->length, "pread");
		check(memcmp(got, source, c->length) == 0, "what was copied is not in the file");
	}
	free(got);
}

static void compare_copies(struct copies *c, const char *size, double goal)
{
	char what[96];
	const struct side bare = {bare_cost, c};
	check_copies(c);
	(void)snprintf(what, sizeof(what), "%s, pmemset_memcpy beside libpmem2's function", size);
	compare(what, goal, (struct side){c_cost, c}, bare);
	(void)snprintf(what, sizeof(what), "%s, ffi_write beside libpmem2's function", size);
	compare(what, goal, (struct side){ffi_cost, c}, bare);
}

void n3(void)
{
	static const struct {
		const char *name;
		uint64_t length;
	} sizes[] = {{"4 KiB", 4096}, {"64 KiB", 65536}, {"1 MiB", MIB}, {"16 MiB", 16 * MIB}, {"256 MiB", BIG_MAX}};
	struct mapped many;
	struct mapped big;
	unsigned maps = smoke ? 10 : MAPS_MAX;
	uint64_t big_size = smoke ? MIB : BIG_MAX;
	start_engine(FFI_GRANULARITY_CACHE_LINE);
	take_bare();
	uint64_t volume = open_volume(memory_dir);
	open_sets((maps + 1) * MAP_SIZE + 2 * BIG_MAX);
	source = aligned_alloc(PAGE, big_size);
	check(source != NULL, "aligned_alloc");
	memset(source, 1, big_size);

	map_everywhere(&many, volume, "a", MAP_SIZE, maps);
	struct copies *c = copies(&many, 64, MAP_SIZE);
	compare_copies(c, "64 B, to any of 10 000 maps", 1.3);
	compare("the same in C, the peer asks for the size of the file too", NO_GOAL, (struct side){c_cost, c},
			(struct side){bare_asking_cost, c});
	compare("pmemset_persist of a line beside libpmem2's function", NO_GOAL, (struct side){c_persist_cost, c},
			(struct side){bare_persist_cost, c});

	map_everywhere(&big, volume, "b", big_size, 1);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]) && sizes[i].length <= big_size; i++)
		compare_copies(copies(&big, sizes[i].length, sizes[i].length), sizes[i].name, 1.05);
}
