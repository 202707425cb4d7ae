/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * redo-stage.h -- what the programs of batches that are all or nothing share: the engine's calls, which lead here first (CMakeLists.txt
 * has them wrapped for whoever links this); a volume of its own with a set of two files; batches, built and run; and the volume's log as a
 * file, which may be read, damaged, and set back to where it was when somebody died.
 *
 * A stage is its test's, which has to leave it; the struct has only the numbers and names of what there is. What hangs at the calls is hung
 * there, and taken away, by the main thread while there is no other, and is asked in whichever makes the call. A body, and what its batch
 * has answered, are each thread's own: any thread may run batches. The rest is for the main thread.
 */
#ifndef REDO_STAGE_H
#define REDO_STAGE_H 1

#include "scene.h"

#include "batch.h"

/* ---- a program ---- */

struct test_list {
	const struct CMUnitTest *tests;
	size_t count;
};
#define TESTS(array) ((struct test_list){array, sizeof(array) / sizeof((array)[0])})
#define NO_TESTS ((struct test_list){NULL, 0})

/*
 * What main returns. The program is run at page granularity, and with `cache_line` as its argument at that, pretended. `of_pages`: where
 * stores are calls, which can be halted, refused and written down.
 */
int stage_run(int argc, char **argv, const char *group, struct test_list tests, struct test_list of_pages);

extern uint32_t granularity;
extern const char *granularity_name;

/* ---- the engine's calls ---- */

enum call { PWRITE, FDATASYNC, FSYNC, MSYNC, RENAMEAT };

/* Asked before each call, in any thread; an errno makes it fail. And behind each that was made. */
extern int (*before_call)(enum call call, int fd);
extern void (*after_call)(enum call call, int fd, uint64_t at, const void *bytes, size_t size);
extern const void *msync_at; /* of one that is asked about */

/* Behind so many that succeed, one fails; -1: none does. */
extern int64_t allocations_left;
extern bool allocation_failed;

/* ---- a volume of its own, with a set of two files; "a" is mapped twice ---- */

#define RING_SIZE (UINT64_C(64) << 10)
#define FILE_PAGES 3
#define FILE_SIZE (FILE_PAGES * PAGE)

struct stage {
	struct place v; /* the volume */
	uint64_t set, a, b, alias;
};

/* Opened in a new directory. */
struct stage stage_in(const char *above, const char *name);
struct stage stage_on(const struct place *p);
void leave(struct stage *s);
/* To one that was left; and the two steps of that. */
void come_back(struct stage *s);
void open_volume(struct stage *s);
void map_all(struct stage *s);
/* As the next process finds it. */
void restart(struct stage *s);
/* Fails unless so many records are applied, and so many kept. */
void recover(const struct stage *s, uint64_t applied, uint64_t kept);

/* For whoever is asked about a call: the paths of this stage's log and of "a", and where "a" is mapped. */
void know_paths(const struct stage *s);
extern char path_of_log[512], path_of_a[512];
extern uint64_t base_of_a;
bool is_file(int fd, const char *path);

/* ---- batches ---- */

struct body {
	char bytes[4 * RING_SIZE];
	char data[2 * RING_SIZE];
	uint64_t size, data_size;
	uint32_t count;
};
extern _Thread_local struct body body; /* of one at a time */

void begin_body(void);
void push(struct batch_operation op);
void push_write(uint64_t addr, const void *bytes, uint64_t length);
/* Nothing is pushed any more. */
void seal(uint8_t durability);

extern _Thread_local struct pmemset_error batch_err;
extern _Thread_local uint64_t batch_failed;
extern _Thread_local struct batch_reply batch_head;

/* results: of reads; NULL: there is none. */
int run_sealed(uint64_t set, void *results);
/* Seals it, to be persisted. */
int run(uint64_t set);

/* Some bytes of both files, over a page's end and out of line: each byte becomes `mark`. */
#define AT_A 4090
#define IN_A 13
#define AT_B 8
#define IN_B 40

int run_mark(const struct stage *s, unsigned char mark);
/* 0: as it was made; the mark; -1: neither, or the one here and the other there. */
int mark_of(const struct stage *s);

/* ---- the log, as a file: native/redo-log.md ---- */

#define LOG ".pmemset/redo"
#define RETIRED_AT 4096
#define RING_AT 8192

void read_log(const struct stage *s, uint64_t offset, void *buf, size_t size);
void write_log(const struct stage *s, uint64_t offset, const void *buf, size_t size);
/* The same of any file; nobody is asked about these. */
void write_raw(const struct stage *s, const char *name, uint64_t offset, const void *buf, size_t size);
uint64_t retired(const struct stage *s);
uint64_t epoch(const struct stage *s);

/* Left, with everything as in the moment behind the commit of the batch that began there. After a mark_of, which knows the bytes. */
void crash_behind_commit(struct stage *s, uint64_t position);
/* So that the log has one record, committed and not retired; its size. */
uint64_t commit_one(struct stage *s, unsigned char mark);

#endif
