/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bench.h -- what the rows share: two sides that do the same work are measured in turn, and the ratio of what they cost is the result.
 *
 * A row is a function that makes its scene, checks that both sides give the same, and calls `compare` for each figure. It runs in a
 * process of its own, several times; the ratios of all of them make one line. Cost is CPU time of the thread that works: what others do
 * on the machine shows in the spread, not in the median.
 */
#ifndef BENCH_H
#define BENCH_H 1

#include "ffi.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define PAGE UINT64_C(4096)
#define MIB (UINT64_C(1) << 20)
#define NO_GOAL 0.0

/* Nanoseconds of CPU that doing it so many times costs. */
typedef double cost(void *arg, uint64_t times);

struct side {
	cost *cost;
	void *arg;
};

extern bool smoke;	     /* only whether everything works: tiny, and nothing is judged */
extern char memory_dir[256]; /* on tmpfs; empty at first, emptied afterwards */
extern char disk_dir[256];   /* below the working directory */

/* What the calling thread has used so far, in nanoseconds. */
double cpu_time(void);
/* Ours beside itself, ours beside the peer, in turn A B and B A. goal: the ratio is not to be above it. */
void compare(const char *what, double goal, struct side ours, struct side peer);
/* A figure that is counted, not compared. */
void count(const char *what, double goal, double value, const char *unit);

/* Ends the program, and says why, unless it holds. */
#define check(holds, what) \
	do { \
		if (!(holds)) \
			stop(__FILE__, __LINE__, what); \
	} while (0)
_Noreturn void stop(const char *file, int line, const char *what);
#define must(call) must_be_0(call, __FILE__, __LINE__, #call)
void must_be_0(int rc, const char *file, int line, const char *call);

/* ---- scenes ---- */

extern struct pmemset_error err;
/* simulate: FFI_GRANULARITY_CACHE_LINE, or _UNSET for the truth. */
void start_engine(uint32_t simulate);
uint64_t open_volume(const char *dir);
uint64_t new_set(uint64_t window_size, uint32_t coalescing);
uint64_t map_part(uint64_t set, uint64_t volume, const char *name, uint64_t offset, uint64_t length, uint64_t cookie);
void remove_part(uint64_t set, uint64_t addr);
/* A new file of that size, whole of it allocated; its descriptor. */
int make_file(const char *dir, const char *name, uint64_t size);
/* An address range of that size where nothing is, and where nobody else maps anything. */
uint64_t reserve(uint64_t size);
void *at(uint64_t addr);
uint64_t chance(uint64_t below);

void n1(void);
void n2(void);
void n3(void);
void n4(void);
void n5(void);

#endif
