/* SPDX-License-Identifier: BSD-3-Clause */
/* Every operation in every state of a set, and the exact answer. */
#include "scene.h"

#include <errno.h>
#include <stdlib.h>

enum state { EMPTY, MAPPED, REMOVED, DELETED, STATES };
static const char *const names[] = {"empty", "mapped", "removed", "deleted"};

/* Where the part is, was or would be. */
struct stage {
	const struct place *place;
	uint64_t set, addr;
};

static struct stage stage_in(const struct place *p, enum state state)
{
	struct stage s = {.place = p, .set = new_set(FFI_COALESCING_NONE, 2 * MIB)};
	s.addr = info_of(s.set).window_addr;
	if (state == MAPPED || state == REMOVED)
		(void)must_map(s.set, p, "a", (struct ffi_part_spec){.length = 2 * PAGE});
	if (state == REMOVED)
		must(remove_range(s.set, s.addr, 1));
	if (state == DELETED)
		delete_set(s.set);
	return s;
}

/* ---- the operations ---- */

static int64_t set_info(const struct stage *s)
{
	struct ffi_set_info info;
	return ffi_set_info(s->set, &info);
}

static int64_t set_coalescing(const struct stage *s)
{
	return ffi_set_coalescing(s->set, FFI_COALESCING_FULL, &err);
}

static int64_t set_coalescing_unknown(const struct stage *s)
{
	return ffi_set_coalescing(s->set, FFI_COALESCING_FULL + 1, &err);
}

static int64_t set_delete(const struct stage *s)
{
	return ffi_set_delete(s->set, &err);
}

static int64_t part_map(const struct stage *s)
{
	struct ffi_part part;
	return map(s->set, s->place, "a", (struct ffi_part_spec){.offset = 2 * PAGE, .length = PAGE}, &part);
}

static int64_t part_map_refused(const struct stage *s)
{
	struct ffi_part part;
	return map(s->set, s->place, "none", (struct ffi_part_spec){.length = PAGE}, &part);
}

static int64_t lookup(const struct stage *s)
{
	struct ffi_span span;
	return ffi_lookup(s->set, s->addr, &span);
}

static int64_t lookup_behind(const struct stage *s)
{
	struct ffi_span span;
	return ffi_lookup(s->set, s->addr + 2 * PAGE, &span);
}

static int64_t maps(const struct stage *s)
{
	struct ffi_span spans[4];
	return ffi_maps(s->set, 0, 0, spans, 4);
}

static int64_t parts(const struct stage *s)
{
	struct ffi_span spans[4];
	return ffi_parts(s->set, 0, 0, spans, 4);
}

static int64_t removal(const struct stage *s, uint64_t length, uint32_t whole_map, uint32_t dry_run)
{
	struct ffi_removal counts = {0};
	return ffi_remove(s->set, s->addr, length, whole_map, dry_run, &counts, NULL, NULL, NULL, &err);
}

static int64_t remove_of_range(const struct stage *s)
{
	return removal(s, 1, 0, 0);
}

static int64_t remove_of_no_length(const struct stage *s)
{
	return removal(s, 0, 0, 0);
}

static int64_t remove_of_map(const struct stage *s)
{
	return removal(s, 0, 1, 0);
}

static int64_t remove_dry(const struct stage *s)
{
	return removal(s, 1, 0, 1);
}

static int64_t pin(const struct stage *s)
{
	uint64_t handle;
	int rc = ffi_pin(s->set, s->addr, 0, &handle, &err);
	return rc ? rc : ffi_unpin(handle);
}

static int64_t read_in(const struct stage *s)
{
	char byte;
	return ffi_read(s->set, s->addr, &byte, 1, 0, &err);
}

static int64_t read_behind(const struct stage *s)
{
	char byte;
	return ffi_read(s->set, s->addr + 2 * PAGE, &byte, 1, 0, &err);
}

static int64_t read_too_much(const struct stage *s)
{
	return ffi_read(s->set, s->addr, NULL, 2 * PAGE + 1, 0, &err);
}

static int64_t write_in(const struct stage *s)
{
	struct ffi_written w;
	return ffi_write(s->set, s->addr, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err);
}

static int64_t persist_in(const struct stage *s)
{
	struct ffi_written w;
	return ffi_persist(s->set, (uint64_t[]){s->addr, PAGE}, 1, FFI_DURABILITY_DEEP, &w, &err);
}

static int64_t persist_nothing(const struct stage *s)
{
	struct ffi_written w;
	return ffi_persist(s->set, NULL, 0, FFI_DURABILITY_FLUSHED, &w, &err);
}

static int64_t drain(const struct stage *s)
{
	struct ffi_written w;
	return ffi_drain(s->set, &w, &err);
}

static int64_t restore(const struct stage *s)
{
	struct ffi_restore_file file = {.volume = s->place->volume, .path_length = 1};
	struct ffi_restore_part part = {.length = PAGE, .cookie = 1, .addr = s->addr + 16 * PAGE};
	int rc = ffi_restore(s->set, &file, 1, "a", 1, &part, 1, &err);
	return rc ? rc : part.code;
}

static int64_t restore_there(const struct stage *s)
{
	struct ffi_restore_file file = {.volume = s->place->volume, .path_length = 1};
	struct ffi_restore_part part = {.length = PAGE, .cookie = 1, .addr = s->addr};
	int rc = ffi_restore(s->set, &file, 1, "a", 1, &part, 1, &err);
	return rc ? rc : part.code;
}

static int64_t release(const struct stage *s)
{
	return ffi_release(s->set, s->addr, 2 * PAGE, &err);
}

static int64_t fail_of_old(const struct stage *s)
{
	uint64_t row[3];
	int rc = ffi_fail(s->set, 1, EIO, (uint64_t[]){s->addr, PAGE}, 1, &err);
	if (rc != 0)
		return rc;
	return ffi_failures(s->set, row, 1) == 1 ? ffi_acknowledge(s->set, row[0], FFI_RECOVERY_REWRITE, &err) : -1;
}

/* ---- the matrix ---- */

#define NO_PART PMEMSET_E_NO_PART_MAPPED
#define NOT_THERE PMEMSET_E_CANNOT_FIND_PART_MAP
#define TOO_LONG PMEMSET_E_LENGTH_OUT_OF_RANGE
#define BAD_MODE PMEMSET_E_INVALID_COALESCING_VALUE
#define NO_FILE PMEMSET_E_INVALID_SOURCE_PATH
#define TAKEN PMEMSET_E_INVALID_PMEM2_MAP

/* clang-format off */
static const struct {
	const char *name;
	int64_t (*call)(const struct stage *);
	int64_t answer[STATES];
} rows[] = {
		/*                                             empty      mapped     removed    deleted */
		{"set_info", set_info,                         {0,         0,         0,         -EBADF}},
		{"set_coalescing", set_coalescing,             {0,         0,         0,         -EBADF}},
		{"set_coalescing, unknown", set_coalescing_unknown, {BAD_MODE, BAD_MODE, BAD_MODE, -EBADF}},
		{"set_delete", set_delete,                     {0,         0,         0,         -EBADF}},
		{"part_map", part_map,                         {0,         0,         0,         -EBADF}},
		{"part_map, refused", part_map_refused,        {NO_FILE,   NO_FILE,   NO_FILE,   -EBADF}},
		{"lookup", lookup,                             {NOT_THERE, 0,         NOT_THERE, -EBADF}},
		{"lookup, behind", lookup_behind,              {NOT_THERE, NOT_THERE, NOT_THERE, -EBADF}},
		{"maps", maps,                                 {0,         1,         0,         -EBADF}},
		{"parts", parts,                               {0,         1,         0,         -EBADF}},
		{"remove, range", remove_of_range,             {NOT_THERE, 0,         NOT_THERE, -EBADF}},
		{"remove, no length", remove_of_no_length,     {TOO_LONG,  TOO_LONG,  TOO_LONG,  -EBADF}},
		{"remove, map", remove_of_map,                 {NOT_THERE, 0,         NOT_THERE, -EBADF}},
		{"remove, dry", remove_dry,                    {NOT_THERE, 0,         NOT_THERE, -EBADF}},
		{"pin", pin,                                   {NO_PART,   0,         NOT_THERE, -EBADF}},
		{"read", read_in,                              {NO_PART,   0,         NOT_THERE, -EBADF}},
		{"read, behind", read_behind,                  {NO_PART,   NOT_THERE, NOT_THERE, -EBADF}},
		{"read, too much", read_too_much,              {NO_PART,   TOO_LONG,  NOT_THERE, -EBADF}},
		{"write", write_in,                            {NO_PART,   0,         NOT_THERE, -EBADF}},
		{"persist", persist_in,                        {NO_PART,   0,         NOT_THERE, -EBADF}},
		{"persist, nothing", persist_nothing,          {NO_PART,   0,         0,         -EBADF}},
		{"drain", drain,                               {NO_PART,   0,         0,         -EBADF}},
		{"restore", restore,                           {0,         0,         0,         -EBADF}},
		{"restore, there", restore_there,              {0,         TAKEN,     0,         -EBADF}},
		{"release", release,                           {-ENOENT,   -ENOENT,   -ENOENT,   -EBADF}},
		{"fail", fail_of_old,                          {NOT_THERE, 0,         NOT_THERE, -EBADF}},
};
/* clang-format on */

static void every_operation_in_every_state(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 1);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		for (enum state st = EMPTY; st < STATES; st++) {
			struct stage s = stage_in(p, st);
			char *before = st == DELETED ? world(0, p) : world(s.set, p);
			int64_t got = rows[i].call(&s);
			if (got != rows[i].answer[st])
				print_error("%s, %s:\n", rows[i].name, names[st]);
			must_be(got, rows[i].answer[st], rows[i].name, __FILE__, __LINE__);
			/* What is refused changes nothing. */
			if (got < 0)
				same_world(before, st == DELETED ? 0 : s.set, p);
			else
				free(before);
			if (st != DELETED && rows[i].call != set_delete)
				delete_set(s.set);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(every_operation_in_every_state),
	};
	return RUN("states", tests, FFI_GRANULARITY_UNSET);
}
