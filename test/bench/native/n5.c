/* SPDX-License-Identifier: BSD-3-Clause */
/* N5: 30 000 adjacent parts of 100 files restored where they were, beside the bare mmaps of the same files. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PARTS_MAX 30000u
#define FILES_MAX 100u
#define LENGTH (2 * PAGE)

struct scene {
	unsigned parts, files;
	uint64_t volume;
	uint64_t window, peer; /* addresses */
	struct ffi_restore_file *file;
	struct ffi_restore_part *part;
	char names[FILES_MAX * 3];
};

static uint64_t window_size(const struct scene *s)
{
	return (s->parts * LENGTH + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
}

static uint64_t set_at(const struct scene *s)
{
	const struct ffi_set_spec spec = {.window_addr = s->window,
			.window_size = window_size(s),
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_PAGE};
	uint64_t set;
	must(ffi_set_new(&spec, &set, &err));
	return set;
}

static double restore(void *arg, uint64_t times)
{
	struct scene *s = arg;
	double spent = 0;
	for (uint64_t i = 0; i < times; i++) {
		uint64_t set = set_at(s);
		double before = cpu_time();
		must(ffi_restore(set, s->file, s->files, s->names, sizeof(s->names), s->part, s->parts, &err));
		spent += cpu_time() - before;
		for (unsigned p = 0; p < s->parts; p++)
			must(s->part[p].code);
		must(ffi_set_delete(set, &err));
	}
	return spent;
}

static double map_bare(void *arg, uint64_t times)
{
	struct scene *s = arg;
	double spent = 0;
	for (uint64_t i = 0; i < times; i++) {
		int fds[FILES_MAX];
		int dir = open(memory_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
		double before = cpu_time();
		for (unsigned f = 0; f < s->files; f++) {
			char name[4] = {0};
			memcpy(name, s->names + s->file[f].path_at, s->file[f].path_length);
			fds[f] = openat(dir, name, O_RDWR | O_CLOEXEC);
		}
		for (unsigned p = 0; p < s->parts; p++) {
			void *to = at(s->peer + s->part[p].addr - s->window);
			void *got = mmap(to, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fds[s->part[p].file],
					(off_t)s->part[p].offset);
			check(got == to, "mmap");
		}
		spent += cpu_time() - before;
		check(mmap(at(s->peer), window_size(s), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
						MAP_FAILED,
				"fence");
		for (unsigned f = 0; f < s->files; f++)
			(void)close(fds[f]);
		(void)close(dir);
	}
	return spent;
}

/* Both show the same bytes. */
static void check_bytes(struct scene *s)
{
	uint64_t set = set_at(s);
	must(ffi_restore(set, s->file, s->files, s->names, sizeof(s->names), s->part, s->parts, &err));
	for (unsigned p = 0; p < s->parts; p++) {
		uint64_t word[2];
		must(ffi_read(set, s->part[p].addr, word, sizeof(word), 0, &err));
		check(word[0] == s->part[p].file && word[1] == s->part[p].offset, "the bytes of a part");
	}
	struct ffi_set_info info;
	must(ffi_set_info(set, &info));
	check(info.part_count == s->parts && info.map_count == 1, "one map of all of them");
	must(ffi_set_delete(set, &err));
}

/* in_turn: neighbours are of different files; else of one, side by side there too, which the kernel makes one mapping of. */
static void lay_out(struct scene *s, bool in_turn)
{
	unsigned each = s->parts / s->files;
	for (unsigned p = 0; p < s->parts; p++) {
		unsigned file = in_turn ? p % s->files : p / each;
		uint64_t nth = in_turn ? p / s->files : p % each;
		s->part[p] = (struct ffi_restore_part){.file = file,
				.offset = nth * LENGTH,
				.length = LENGTH,
				.cookie = p + 1,
				.addr = s->window + p * LENGTH,
				.joins = 1};
	}
}

static void make_files(struct scene *s)
{
	unsigned each = s->parts / s->files;
	for (unsigned f = 0; f < s->files; f++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "%02u", f);
		memcpy(s->names + 3 * (size_t)f, name, 3);
		int fd = make_file(memory_dir, name, each * LENGTH);
		for (uint64_t nth = 0; nth < each; nth++) {
			const uint64_t word[2] = {f, nth * LENGTH};
			check(pwrite(fd, word, sizeof(word), (off_t)(nth * LENGTH)) == sizeof(word), "pwrite");
		}
		must(close(fd));
		s->file[f] = (struct ffi_restore_file){.volume = s->volume, .path_at = 3 * (uint64_t)f, .path_length = 2};
	}
}

void n5(void)
{
	struct scene s = {.parts = smoke ? 30 : PARTS_MAX, .files = smoke ? 3 : FILES_MAX};
	start_engine(FFI_GRANULARITY_UNSET);
	s.volume = open_volume(memory_dir);
	s.file = calloc(s.files, sizeof(*s.file));
	s.part = calloc(s.parts, sizeof(*s.part));
	check(s.file != NULL && s.part != NULL, "memory");
	make_files(&s);
	struct ffi_engine_info engine;
	ffi_engine_info(&engine);
	s.window = engine.arena_base;
	s.peer = reserve(window_size(&s));
	const struct side ours = {restore, &s};
	const struct side peer = {map_bare, &s};
	for (int in_turn = 1; in_turn >= 0; in_turn--) {
		lay_out(&s, in_turn);
		check_bytes(&s);
		compare(in_turn ? "30 000 parts of 100 files in turn" : "30 000 parts, each of 100 files as a whole", in_turn ? 2 : NO_GOAL,
				ours, peer);
	}
}
