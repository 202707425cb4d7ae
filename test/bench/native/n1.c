/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * N1: which map and which part hold an address. The peer is a binary search over a sorted array, which nobody ever changes and nothing
 * guards.
 *
 * It returns what the look-up returns: for ffi_lookup the whole row, copied. For pmemset_part_map_by_address, which holds the map until
 * it is dropped, there are two: one that counts its user as well, and one that only returns the pointer, for which nothing is held.
 */
#include "bench.h"

#include <libpmemset.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAPS_MAX 10000u
#define ADDRESSES 65536u /* a power of two */
#define THREADS 2

/* The peer. */
struct held {
	uint64_t addr, size;
	_Atomic uint64_t users;
};
static uint64_t ends[MAPS_MAX];
static struct ffi_span spans[MAPS_MAX];
static struct held maps[MAPS_MAX];
static unsigned maps_count;

static uint64_t addresses[ADDRESSES];
static uint64_t set_handle;
static struct pmemset *c_set;

/* As everybody writes it; the compiler makes a branch of the comparison, and the machine guesses wrong half of the time. */
static unsigned search(uint64_t addr)
{
	unsigned base = 0;
	for (unsigned n = maps_count; n > 0;) {
		unsigned half = n / 2;
		if (ends[base + half] <= addr) {
			base += half + 1;
			n -= half + 1;
		} else {
			n = half;
		}
	}
	return base;
}

/* As fast as it can be. */
static unsigned search_without_branch(uint64_t addr)
{
	unsigned base = 0;
	unsigned n = maps_count;
	for (; n > 1; n -= n / 2)
		base += n / 2 * (ends[base + n / 2 - 1] <= addr);
	return base + (ends[base] <= addr);
}

__attribute__((noinline)) static int peer_lookup(uint64_t addr, struct ffi_span *span)
{
	unsigned i = search(addr);
	if (i == maps_count || spans[i].map_addr > addr)
		return -1;
	*span = spans[i];
	return 0;
}

__attribute__((noinline)) static int peer_lookup_without_branch(uint64_t addr, struct ffi_span *span)
{
	unsigned i = search_without_branch(addr);
	if (i == maps_count || spans[i].map_addr > addr)
		return -1;
	*span = spans[i];
	return 0;
}

__attribute__((noinline)) static struct held *peer_find(uint64_t addr)
{
	unsigned i = search(addr);
	return i < maps_count && maps[i].addr <= addr ? &maps[i] : NULL;
}

/* ---- the sides; arg: where in the addresses to begin ---- */

static _Atomic uint64_t sink; /* so that no result is for nothing */

static double ffi_cost(void *arg, uint64_t times)
{
	const unsigned *start = arg;
	uint64_t sum = 0;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct ffi_span span;
		if (ffi_lookup(set_handle, addresses[(*start + i) % ADDRESSES], &span) == 0)
			sum += span.cookie;
	}
	double took = cpu_time() - began;
	atomic_fetch_add(&sink, sum);
	return took;
}

static double peer_ffi_cost(void *arg, uint64_t times)
{
	const unsigned *start = arg;
	uint64_t sum = 0;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct ffi_span span;
		if (peer_lookup(addresses[(*start + i) % ADDRESSES], &span) == 0)
			sum += span.cookie;
	}
	double took = cpu_time() - began;
	atomic_fetch_add(&sink, sum);
	return took;
}

static double peer_ffi_fast_cost(void *arg, uint64_t times)
{
	const unsigned *start = arg;
	uint64_t sum = 0;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct ffi_span span;
		if (peer_lookup_without_branch(addresses[(*start + i) % ADDRESSES], &span) == 0)
			sum += span.cookie;
	}
	double took = cpu_time() - began;
	atomic_fetch_add(&sink, sum);
	return took;
}

static double c_cost(void *arg, uint64_t times)
{
	const unsigned *start = arg;
	uint64_t sum = 0;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct pmemset_part_map *map;
		if (pmemset_part_map_by_address(c_set, &map, at(addresses[(*start + i) % ADDRESSES])) != 0)
			continue;
		sum += (uint64_t)(uintptr_t)map;
		pmemset_part_map_drop(&map);
	}
	double took = cpu_time() - began;
	atomic_fetch_add(&sink, sum);
	return took;
}

static double peer_find_cost(void *arg, uint64_t times)
{
	const unsigned *start = arg;
	uint64_t sum = 0;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++)
		sum += (uint64_t)(uintptr_t)peer_find(addresses[(*start + i) % ADDRESSES]);
	double took = cpu_time() - began;
	atomic_fetch_add(&sink, sum);
	return took;
}

static double peer_hold_cost(void *arg, uint64_t times)
{
	const unsigned *start = arg;
	uint64_t sum = 0;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct held *map = peer_find(addresses[(*start + i) % ADDRESSES]);
		if (map == NULL)
			continue;
		atomic_fetch_add(&map->users, 1);
		sum += (uint64_t)(uintptr_t)map;
		atomic_fetch_sub(&map->users, 1);
	}
	double took = cpu_time() - began;
	atomic_fetch_add(&sink, sum);
	return took;
}

/* ---- several threads ---- */

struct team {
	cost *cost;
	unsigned threads;
};

struct member {
	cost *cost;
	unsigned core;
	unsigned start;
	uint64_t times;
	pthread_barrier_t *together;
	double took;
};

static void *work(void *arg)
{
	struct member *m = arg;
	/* Two that take turns, on one core or because others want theirs, never meet. Where it is not allowed, they meet less often. */
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(m->core, &one);
	(void)pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
	(void)pthread_setschedparam(pthread_self(), SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	(void)pthread_barrier_wait(m->together);
	m->took = m->cost(&m->start, m->times);
	return NULL;
}

/* Of one of them, on average. */
static double team_cost(void *arg, uint64_t times)
{
	const struct team *team = arg;
	struct member members[THREADS];
	pthread_t threads[THREADS];
	pthread_barrier_t together;
	double took = 0;
	(void)pthread_barrier_init(&together, NULL, team->threads);
	for (unsigned i = 0; i < team->threads; i++) {
		members[i] = (struct member){team->cost, i, i * (ADDRESSES / THREADS), times, &together, 0};
		must(pthread_create(&threads[i], NULL, work, &members[i]));
	}
	for (unsigned i = 0; i < team->threads; i++) {
		must(pthread_join(threads[i], NULL));
		took += members[i].took;
	}
	(void)pthread_barrier_destroy(&together);
	return took / team->threads;
}

static void compare_threads(const char *what, double goal, cost *one)
{
	struct team two = {one, THREADS};
	struct team alone = {one, 1};
	compare(what, goal, (struct side){team_cost, &two}, (struct side){team_cost, &alone});
}

/* ---- the scene: maps of one page each, of one file; the C face has its own set of as many ---- */

static void map_all(uint64_t volume)
{
	set_handle = new_set(maps_count * PAGE, FFI_COALESCING_NONE);
	for (unsigned i = 0; i < maps_count; i++)
		(void)map_part(set_handle, volume, "a", 0, PAGE, i + 1);
	check(ffi_maps(set_handle, 0, 0, spans, maps_count) == maps_count, "maps");
	for (unsigned i = 0; i < maps_count; i++)
		ends[i] = spans[i].map_addr + spans[i].map_size;
}

static void check_same(void)
{
	for (unsigned i = 0; i < ADDRESSES; i += smoke ? 1024 : 1) {
		struct ffi_span a;
		struct ffi_span b;
		must(ffi_lookup(set_handle, addresses[i], &a));
		must(peer_lookup(addresses[i], &b));
		check(memcmp(&a, &b, sizeof(a)) == 0, "the peer finds something else");
		must(peer_lookup_without_branch(addresses[i], &b));
		check(memcmp(&a, &b, sizeof(a)) == 0, "the peer without branches finds something else");
	}
}

static void map_all_in_c(void)
{
	struct pmemset_config *config;
	struct pmemset_source *source;
	struct pmemset_map_config *range;
	char path[sizeof(memory_dir) + 4];
	(void)snprintf(path, sizeof(path), "%s/a", memory_dir);
	must(pmemset_config_new(&config));
	must(pmemset_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE));
	must(pmemset_new(&c_set, config));
	must(pmemset_config_delete(&config));
	must(pmemset_source_from_file(&source, path));
	must(pmemset_map_config_new(&range));
	pmemset_map_config_set_length(range, PAGE);
	for (unsigned i = 0; i < maps_count; i++) {
		struct pmemset_part_descriptor part;
		must(pmemset_map(c_set, source, range, &part));
		maps[i].addr = (uint64_t)(uintptr_t)part.addr;
		maps[i].size = part.size;
		ends[i] = maps[i].addr + maps[i].size;
		check(i == 0 || ends[i - 1] <= maps[i].addr, "maps in order of address");
	}
	must(pmemset_map_config_delete(&range));
}

static void check_same_in_c(void)
{
	for (unsigned i = 0; i < ADDRESSES; i += smoke ? 1024 : 1) {
		struct pmemset_part_map *map;
		const struct held *same = peer_find(addresses[i]);
		must(pmemset_part_map_by_address(c_set, &map, at(addresses[i])));
		struct pmemset_part_descriptor part = pmemset_descriptor_part_map(map);
		check(same != NULL && (uint64_t)(uintptr_t)part.addr == same->addr && part.size == same->size,
				"the peer finds something else");
		pmemset_part_map_drop(&map);
	}
}

void n1(void)
{
	unsigned start = 0;
	maps_count = smoke ? 100 : MAPS_MAX;
	start_engine(FFI_GRANULARITY_UNSET);
	(void)close(make_file(memory_dir, "a", PAGE));
	map_all(open_volume(memory_dir));
	for (unsigned i = 0; i < ADDRESSES; i++)
		addresses[i] = spans[chance(maps_count)].map_addr + chance(PAGE);
	check_same();
	compare("ffi_lookup beside a search that copies the same row", 1.5, (struct side){ffi_cost, &start},
			(struct side){peer_ffi_cost, &start});
	compare("the same beside a search without branches", NO_GOAL, (struct side){ffi_cost, &start},
			(struct side){peer_ffi_fast_cost, &start});
	compare_threads("ffi_lookup, two threads beside one", 1.1, ffi_cost);
	compare_threads("(the machine: that search, two threads beside one)", NO_GOAL, peer_ffi_cost);

	map_all_in_c();
	for (unsigned i = 0; i < ADDRESSES; i++)
		addresses[i] = maps[chance(maps_count)].addr + chance(PAGE);
	check_same_in_c();
	compare("pmemset_part_map_by_address and drop, beside a search that counts the user too", 1.5, (struct side){c_cost, &start},
			(struct side){peer_hold_cost, &start});
	compare("the same beside a search that holds nothing", 1.5, (struct side){c_cost, &start}, (struct side){peer_find_cost, &start});
	compare_threads("pmemset_part_map_by_address and drop, two threads beside one", 1.1, c_cost);
	compare_threads("(the machine: the search that counts, two threads beside one)", NO_GOAL, peer_hold_cost);
}
