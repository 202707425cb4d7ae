/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scene.h -- what the programs share: an engine, two places for files (in memory and on the disk), and a world in words, to be compared
 * before and after what must not change it.
 *
 * A test is listed with ONCE or ON_EACH. Whatever it does, it has to leave no descriptor, no mapping in the arena and no file of the
 * engine's own behind: that is checked after each.
 */
#ifndef SCENE_H
#define SCENE_H 1

#include "ffi.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE ((uint64_t)sysconf(_SC_PAGESIZE))
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define SKIPPED 77

struct place {
	const char *name;
	char dir[256];
	uint64_t volume;
	const char *missing; /* why it is not there, or NULL */
};
extern struct place places[2];

int scene_enter(void **state);
int scene_leave(void **state);

#define ONCE(test) \
	{ \
#test, test, scene_enter, scene_leave, NULL \
	}
#define ON_EACH(test) \
	{#test ", tmpfs", test, scene_enter, scene_leave, &places[0]}, \
	{ \
#test ", disk", test, scene_enter, scene_leave, &places[1] \
	}

/*
 * Start the engine and run them. For valgrind, which wants other addresses, PMEMSET_TEST_ARENA=base:size (0x..., bytes) moves the arena.
 * What main returns.
 */
int scene_run(const char *group, const struct CMUnitTest *tests, size_t count, uint32_t simulate);
#define RUN(group, tests, simulate) scene_run(group, tests, sizeof(tests) / sizeof((tests)[0]), simulate)

/* Whether time and memory are the engine's own, and not those of the checker that it runs under. */
bool measures(void);
/* Whether it runs under valgrind: test/valgrind/run.mjs sets PMEMSET_TEST_SCALE. */
bool under_valgrind(void);
/* A count for a loop: under valgrind, which is slow and knows few mappings, divided by PMEMSET_TEST_SCALE. */
uint64_t scaled(uint64_t count);
/* Skips the test, with the reason, where valgrind is the one that cannot do it. */
void no_valgrind(const char *why);

/* The place of a test of ON_EACH; skips it where there is none. */
struct place *here(void **state);
/* Every program has a mount namespace of its own, whose mounts end with it. Skips the test, with the reason, where that is not allowed. */
void mounting(void);

/* ---- files; names are relative to the place ---- */

const char *path_in(const struct place *p, const char *name); /* static, the last four stay */
/* A file of that size, its bytes made from `seed`, on the disk; seed 0 leaves a hole. */
void make_file(const struct place *p, const char *name, uint64_t size, unsigned seed);
unsigned char byte_of(unsigned seed, uint64_t offset);
void read_file(const struct place *p, const char *name, uint64_t offset, void *buf, size_t size);
uint64_t file_size(const struct place *p, const char *name);

/* Fills the place's file system to the last page with a file of that name. */
void fill_up(const struct place *p, const char *name);

/* ---- a disk that fails: ext4 on an image whose blocks can be taken away; needs root and loop devices, else the test is skipped ---- */

struct disk {
	struct place place;   /* on it */
	struct place beneath; /* where the image is, on a tmpfs of its own */
};
/* In directories of p; the disk has a file "x" of `size` bytes, which nothing of is in memory only. */
void open_disk(struct disk *d, const struct place *p, uint64_t size);
/* From now on a flush of what was written to "x" fails. */
void break_disk(struct disk *d);
void mend_disk(struct disk *d);
void close_disk(struct disk *d);
/* What the medium itself has of "x", within a page, whatever is in memory; and to change it behind everybody's back. */
void read_disk(const struct disk *d, uint64_t offset, void *buf, size_t size);
void write_disk(const struct disk *d, uint64_t offset, const void *buf, size_t size);
/* As if whoever runs the engine had dealt with the failed flush of the file: it may be flushed again. */
void forget_failure(const struct place *p, const char *name);

/* ---- the engine's face, with less to write ---- */

extern struct pmemset_error err; /* of the last call below, or whoever was given it */

uint64_t new_set(uint32_t coalescing, uint64_t window_size);
void delete_set(uint64_t set);
/* cookie 0: the next number. */
int map(uint64_t set, const struct place *p, const char *name, struct ffi_part_spec spec, struct ffi_part *part);
struct ffi_part must_map(uint64_t set, const struct place *p, const char *name, struct ffi_part_spec spec);
struct ffi_set_info info_of(uint64_t set);
/* 0 or the error; no rows asked for. */
int remove_range(uint64_t set, uint64_t addr, uint64_t length);
#define must(call) must_be(call, 0, #call, __FILE__, __LINE__)
#define fails(call, code) must_be(call, code, #call, __FILE__, __LINE__)
void must_be(int64_t got, int64_t wanted, const char *what, const char *file, int line);

/* ---- the world in words ---- */

/* Counts and lists: the set (0: none), files of the place (NULL: none), the arena in /proc/self/maps, descriptors. malloc'd. */
char *world(uint64_t set, const struct place *p);
/* Fails unless the world is as `before`, which it frees. */
void same_world(char *before, uint64_t set, const struct place *p);
/* How many mappings the kernel sees in the arena. */
uint64_t arena_mappings(void);
/* Fails unless [addr, addr + size) is covered by mappings without a gap; `permissions`, if not NULL, is what each must have. */
void covered(uint64_t addr, uint64_t size, const char *permissions);
unsigned descriptors(void);
void *at(uint64_t addr);

/* ---- chance: the same numbers for the same seed, which PMEMSET_TEST_SEED sets and every run prints ---- */

uint64_t chance(uint64_t below);
uint64_t seed_chance(void);
double seconds(void);

#endif
