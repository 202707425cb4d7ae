/* SPDX-License-Identifier: BSD-3-Clause */
/* N4: what a part costs: bytes of the heap, all of the engine's, and kernel mappings. */
#include "bench.h"

#include <malloc.h>
#include <string.h>

#define PARTS_MAX 10000u

static uint64_t volume;

static double heap(void)
{
	struct mallinfo2 m = mallinfo2();
	return (double)(m.uordblks + m.hblkhd);
}

static double mappings(void)
{
	double n = 0;
	FILE *file = fopen("/proc/self/maps", "re");
	check(file != NULL, "maps");
	for (int c = fgetc(file); c != EOF; c = fgetc(file))
		n += c == '\n';
	(void)fclose(file);
	return n;
}

/* In a set of their own, which stays. */
static void measure(const char *how, uint64_t length, uint32_t coalescing, double mappings_goal)
{
	const unsigned parts = smoke ? 10 : PARTS_MAX;
	char what[96];
	uint64_t set = new_set((uint64_t)parts * 2 * length, coalescing);
	double heap_before = heap();
	double mappings_before = mappings();
	for (unsigned i = 0; i < parts; i++)
		(void)map_part(set, volume, "a", 0, length, i + 1);
	double heap_each = (heap() - heap_before) / parts;
	double mappings_each = (mappings() - mappings_before) / parts;
	(void)snprintf(what, sizeof(what), "heap, %s", how);
	count(what, 256, heap_each, "bytes for each part");
	(void)snprintf(what, sizeof(what), "kernel mappings, %s", how);
	count(what, mappings_goal, mappings_each, "for each part");
}

/* Without a goal: a file in use has a description, a flusher and a medium of its own. */
static void measure_files(void)
{
	const unsigned parts = smoke ? 3 : 500; /* each has a descriptor */
	uint64_t set = new_set(parts * 2 * PAGE, FFI_COALESCING_NONE);
	for (unsigned i = 0; i < parts; i++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "%u", i);
		(void)close(make_file(memory_dir, name, PAGE));
	}
	double before = heap();
	for (unsigned i = 0; i < parts; i++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "%u", i);
		(void)map_part(set, volume, name, 0, PAGE, i + 1);
	}
	count("heap, each of a file of its own", NO_GOAL, (heap() - before) / parts, "bytes for each part");
}

void n4(void)
{
	start_engine(FFI_GRANULARITY_UNSET);
	volume = open_volume(memory_dir);
	(void)close(make_file(memory_dir, "a", 3 * MIB));
	/* A small one first, so that what is allocated once is there. */
	(void)map_part(new_set(PAGE, FFI_COALESCING_NONE), volume, "a", 0, PAGE, 1);
	measure("10 000 parts of 2 MiB, maps of their own", 2 * MIB, FFI_COALESCING_NONE, 1.01);
	measure("10 000 parts of 2 MiB, one map", 2 * MIB, FFI_COALESCING_FULL, 1.01);
	measure("10 000 parts of 3 MiB, alignment leaves gaps", 3 * MIB, FFI_COALESCING_NONE, 2.01);
	measure_files();
}
