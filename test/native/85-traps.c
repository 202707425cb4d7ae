/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The traps of the old library, by their numbers; what has its test elsewhere is only named.
 *
 *  T1  here                                    T11  50-remove: one_of_them_is_in_use, a_flush_fails
 *  T2  50-remove: whole_sets                   T12  50-remove: random_removals
 *  T3  30-part: what_a_part_is_told            T13  40-access: flushes_that_fail
 *  T4  80-states                               T14  cannot be: the engine calls nobody back, under a lock or without
 *  T5  30-part: ranges_that_are_none           T15  cannot be: libpmem2 is never asked about a source; device DAX is no source yet
 *  T6  30-part: in_their_order                 T16  50-remove: whole_sets
 *  T7  30-part: no_room_behind_the_previous    T17  60-many: cycles_leave_nothing; windows are carved from one arena
 *  T8  50-remove: ranges_that_are_none         T18  cannot be seen without DAX; medium.c asks the file's own region, and no other
 *  T9  here                                    T19  here
 *  T10 here                                    T20  60-many: the_limit_is_the_engines
 */
#include "scene.h"

#include "medium.h"

#include <stdlib.h>
#include <string.h>

static int persist(uint64_t set, uint64_t addr, uint64_t length)
{
	struct ffi_written w;
	return ffi_persist(set, (uint64_t[]){addr, length}, 1, FFI_DURABILITY_DEEP, &w, &err);
}

/* T1: a part of another granularity is refused behind the previous map, which must not have grown by it. */
static void mismatch_while_coalescing(void **state)
{
	struct place *p = here(state);
	struct ffi_part part;
	struct ffi_span span;
	make_file(p, "a", 4 * PAGE, 1);
	make_file(p, "b", 4 * PAGE, 2);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t addr = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE}).addr;
	char *before = world(set, p);
	medium_simulate(PMEM2_GRANULARITY_CACHE_LINE);
	fails(map(set, p, "b", (struct ffi_part_spec){.length = PAGE}, &part), PMEMSET_E_GRANULARITY_MISMATCH);
	medium_simulate(PMEM2_GRANULARITY_PAGE);
	same_world(before, set, p);
	fails(ffi_lookup(set, addr + PAGE, &span), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(persist(set, addr, 2 * PAGE), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	/* The previous one is still that, and its end where it was. */
	part = must_map(set, p, "b", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(part.addr, addr + PAGE);
	assert_int_equal(part.map_size, 2 * PAGE);
	delete_set(set);
}

/* T9: a flush, or a removal, of nothing holds no map, not even the next one. */
static void nothing_holds_nothing(void **state)
{
	struct place *p = here(state);
	struct ffi_span span;
	make_file(p, "a", 4 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	uint64_t hole = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE}).addr;
	uint64_t next = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE}).addr;
	must(remove_range(set, hole, 1));
	for (int i = 0; i < 10; i++) {
		fails(persist(set, hole, PAGE), PMEMSET_E_CANNOT_FIND_PART_MAP);
		fails(persist(set, hole, 2 * PAGE), PMEMSET_E_CANNOT_FIND_PART_MAP);
		fails(remove_range(set, hole, PAGE), PMEMSET_E_CANNOT_FIND_PART_MAP);
	}
	must(ffi_lookup(set, next, &span));
	assert_int_equal(span.map_refs, 0);
	must(remove_range(set, next, 1));
	delete_set(set);
}

/* T10: the volume's handle is closed and the file's name is gone before its parts are; they never notice. */
static void parts_outlive_their_source(void **state)
{
	struct place *p = here(state);
	struct place again = *p;
	char bytes[3];
	struct ffi_written w;
	must(ffi_volume_open(p->dir, &again.volume, &err));
	make_file(p, "a", 4 * PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_FULL, 2 * MIB);
	uint64_t addr = must_map(set, &again, "a", (struct ffi_part_spec){.length = 2 * PAGE}).addr;
	(void)must_map(set, &again, "a", (struct ffi_part_spec){.offset = 2 * PAGE});
	must(ffi_volume_close(again.volume));
	assert_int_equal(unlink(path_in(p, "a")), 0);
	must(remove_range(set, addr, 1));
	addr += 2 * PAGE;
	must(ffi_write(set, addr, "abc", 3, FFI_DURABILITY_NONE, &w, &err));
	must(ffi_read(set, addr, bytes, 3, 0, &err));
	assert_memory_equal(bytes, "abc", 3);
	must(persist(set, addr, PAGE));
	/* Another file by that name is another file. */
	make_file(p, "a", 4 * PAGE, 7);
	uint64_t other = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE}).addr;
	assert_int_equal(*(unsigned char *)at(other), byte_of(7, 0));
	must(ffi_read(set, addr, bytes, 3, 0, &err));
	assert_memory_equal(bytes, "abc", 3);
	delete_set(set);
}

/* T19: what the environment says of granularity is not asked. */
static void nothing_is_forced(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 1);
	assert_int_equal(setenv("PMEM2_FORCE_GRANULARITY", "BYTE", 1), 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	struct ffi_part part = must_map(set, p, "a", (struct ffi_part_spec){.length = PAGE});
	assert_int_equal(unsetenv("PMEM2_FORCE_GRANULARITY"), 0);
	assert_int_equal(part.granularity, FFI_GRANULARITY_PAGE);
	must(persist(set, part.addr, PAGE));
	delete_set(set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(mismatch_while_coalescing),
			ON_EACH(nothing_holds_nothing),
			ON_EACH(parts_outlive_their_source),
			ON_EACH(nothing_is_forced),
	};
	return RUN("traps", tests, FFI_GRANULARITY_UNSET);
}
