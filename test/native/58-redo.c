/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Batches that are all or nothing: what they do and what they refuse to be; their records, whole, torn at every byte, and around the end of
 * the log; and files that are not there when a record is to be applied.
 *
 * More of them: 61-redo-waits.c, 63-redo-refused.c, 65-redo-crashes.c. redo-stage.h has what these share, and how they are run.
 */
#include "redo-stage.h"

#include "order.h"
#include "record.h"

#include <errno.h>
#include <string.h>

/* ---- what it does ---- */

static void it_does_what_its_operations_say_one_after_the_other(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	static unsigned char model[2][16384 * FILE_PAGES];
	static unsigned char seen[16384 * FILE_PAGES];
	static char results[4 * RING_SIZE];
	static char expected[4 * RING_SIZE];
	static unsigned char bytes[300];
	const uint64_t base[] = {s.a, s.b, s.alias};
	assert_true(FILE_SIZE <= sizeof(seen));
	read_file(&s.v, "a", 0, model[0], FILE_SIZE);
	read_file(&s.v, "b", 0, model[1], FILE_SIZE);
	(void)seed_chance();
	for (uint64_t round = 0; round < scaled(300); round++) {
		uint64_t results_size = 0;
		begin_body();
		for (uint64_t n = 1 + chance(30); n > 0; n--) {
			uint64_t part = chance(3);
			uint64_t length = chance(sizeof(bytes));
			uint64_t at = chance(FILE_SIZE - length);
			unsigned char *to = &model[part % 2][at];
			switch (chance(4)) {
			case 0:
				push((struct batch_operation){.op = BATCH_READ, .addr = base[part] + at, .length = length});
				memcpy(expected + results_size, to, length);
				results_size += length;
				break;
			case 1:
				for (uint64_t i = 0; i < length; i++)
					bytes[i] = (unsigned char)chance(256);
				push_write(base[part] + at, bytes, length);
				memcpy(to, bytes, length);
				break;
			case 2:
				bytes[0] = (unsigned char)chance(256);
				push((struct batch_operation){.op = BATCH_MEMSET,
						.hint = (uint8_t)chance(5),
						.addr = base[part] + at,
						.length = length,
						.argument = bytes[0]});
				memset(to, bytes[0], length);
				break;
			default: { /* also between aliases, where bytes overlap that addresses do not */
				uint64_t other = chance(3);
				uint64_t from = chance(FILE_SIZE - length);
				push((struct batch_operation){.op = chance(2) ? BATCH_MEMCPY : BATCH_MEMMOVE,
						.addr = base[part] + at,
						.argument = base[other] + from,
						.length = length});
				memmove(to, &model[other % 2][from], length);
			}
			}
		}
		uint8_t durability = (uint8_t)(1 + chance(3));
		seal(durability);
		must(run_sealed(s.set, results));
		assert_int_equal(batch_head.done, body.count);
		assert_int_equal(batch_head.durability, durability == DURABILITY_FLUSHED ? DURABILITY_PERSISTED : durability);
		assert_memory_equal(results, expected, results_size);
		for (int i = 0; i < 3; i++) {
			must(ffi_read(s.set, base[i], seen, FILE_SIZE, 0, &err));
			assert_memory_equal(seen, model[i % 2], FILE_SIZE);
		}
	}
	assert_false(order_is_held());
	leave(&s);
}

static void what_it_cannot_be_is_refused(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	const struct {
		struct batch_operation op;
		enum batch_field field;
	} wrong[] = {
			{{.op = BATCH_PERSIST, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_FLUSH, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_COMPARE_EXCHANGE, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_ADD, .addr = s.a, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_MEMSET, .flags = BATCH_PUNCH, .addr = s.a, .length = PAGE}, BATCH_FIELD_FLAGS},
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		begin_body();
		push_write(s.a, "first", 5);
		push(wrong[i].op);
		fails(run(s.set), -EINVAL);
		assert_int_equal(batch_err.value, 1);
		assert_int_equal(batch_err.size, wrong[i].field);
	}
	begin_body();
	push_write(s.a, "first", 5);
	seal(DURABILITY_NONE);
	fails(run_sealed(s.set, NULL), -EINVAL);
	assert_int_equal(batch_err.size, BATCH_FIELD_HEADER);

	/* More than a log takes; the last of it only. */
	begin_body();
	for (int i = 0; i < 40; i++)
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = s.a, .length = FILE_SIZE, .argument = 1});
	fails(run(s.set), -ENOMEM);
	assert_int_equal(batch_err.reason, PMEMSET_REASON_LIMIT_RECORD);
	assert_int_equal(batch_err.value, RING_SIZE);
	assert_int_equal(batch_head.done, 0);

	struct stage t = stage_in(p->dir, "other");
	struct ffi_part c = must_map(s.set, &t.v, "b", (struct ffi_part_spec){.length = PAGE});
	begin_body();
	push_write(s.a, "first", 5);
	push((struct batch_operation){.op = BATCH_MEMCPY, .addr = c.addr, .argument = s.a, .length = 8});
	fails(run(s.set), -EXDEV);
	assert_int_equal(batch_err.reason, PMEMSET_REASON_VOLUMES);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(batch_head.done, 0);
	/* A log is made when one is needed, and a refusal needs none. */
	assert_int_equal(access(path_in(&s.v, LOG), F_OK), -1);
	assert_int_equal(mark_of(&s), 0);
	/* It may read there. */
	begin_body();
	push((struct batch_operation){.op = BATCH_MEMCPY, .addr = s.a, .argument = c.addr, .length = 8});
	must(run(s.set));
	must(remove_range(s.set, c.addr, c.length));
	leave(&t);
	leave(&s);
}

static void a_range_or_a_file_that_is_not_there_leaves_everything_as_it_was(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	begin_body();
	push_write(s.a + AT_A, "first", 5);
	push_write(s.b + FILE_SIZE - 2, "beyond", 6);
	fails(run(s.set), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(truncate(path_in(&s.v, "b"), (off_t)PAGE), 0);
	begin_body();
	push_write(s.a + AT_A, "first", 5);
	push_write(s.b + 2 * PAGE, "gone", 4);
	fails(run(s.set), PMEMSET_E_IO_FAIL);
	assert_int_equal(batch_err.reason, PMEMSET_REASON_TRUNCATED);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(batch_head.done, 0);
	assert_int_equal(batch_head.durability, DURABILITY_NONE);
	assert_int_equal(file_size(&s.v, "b"), PAGE);
	assert_int_equal(mark_of(&s), 0);
	assert_false(order_is_held());
	assert_int_equal(truncate(path_in(&s.v, "b"), (off_t)FILE_SIZE), 0);
	leave(&s);
}

/* ---- records, whole and torn ---- */

static void a_whole_record_is_applied_and_once_is_as_good_as_twice(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	uint64_t size = commit_one(&s, 7);
	for (int i = 0; i < 3; i++) {
		come_back(&s);
		assert_int_equal(mark_of(&s), i == 2 ? 7 : 0);
		assert_true(order_is_held());
		/* Until then its bytes are nobody's; the others are. */
		struct ffi_written w;
		fails(ffi_write(s.set, s.a + AT_A + IN_A - 1, "x", 1, FFI_DURABILITY_NONE, &w, &err), -EBUSY);
		assert_int_equal(err.reason, PMEMSET_REASON_RECOVERY_PENDING);
		fails(ffi_write(s.set, s.alias + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err), -EBUSY);
		must(ffi_write(s.set, s.a + AT_A + IN_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err));
		recover(&s, 1, 0);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), 7);
		assert_int_equal(retired(&s), size);
		assert_false(order_is_held());
		must(ffi_write(s.set, s.a + AT_A, (char[]){7}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
		if (i == 0) {
			crash_behind_commit(&s, 0);
		} else if (i == 1) { /* it was all done but for the word */
			leave(&s);
			write_log(&s, RETIRED_AT, &(uint64_t){0}, 8);
		}
	}
	restart(&s);
	recover(&s, 0, 0);
	must(run_mark(&s, 9));
	assert_int_equal(mark_of(&s), 9);
	leave(&s);
}

static bool log_was_flushed, applied_too_early;

static int note_order(enum call call, int fd)
{
	log_was_flushed |= call == FDATASYNC && is_file(fd, path_of_log);
	applied_too_early |= call == PWRITE && is_file(fd, path_of_a) && !log_was_flushed;
	return 0;
}

/* Whoever died has written it, and perhaps not flushed: a record that is read whole may be gone when the power goes in the middle of its files. */
static void a_log_is_durable_before_it_is_applied(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	uint64_t before = 0;
	must(run_mark(&s, 1));
	before = retired(&s);
	must(run_mark(&s, 2));
	leave(&s);
	write_log(&s, RETIRED_AT, &before, sizeof(before));
	come_back(&s);
	know_paths(&s);
	log_was_flushed = applied_too_early = false;
	before_call = note_order;
	recover(&s, 1, 0);
	before_call = NULL;
	assert_true(log_was_flushed);
	assert_false(applied_too_early);
	leave(&s);
}

/* What was there before, or another byte: a write that stopped there, or went wrong there. */
static void a_record_torn_at_any_byte_is_none(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	char whole[1024];
	uint64_t size = commit_one(&s, 7);
	assert_true(size < sizeof(whole));
	read_log(&s, RING_AT, whole, size);
	for (uint64_t i = 0; i < size; i += scaled(100) == 100 ? 1 : 41)
		for (int cut = 0; cut < 2; cut++) {
			char torn[sizeof(whole)];
			memcpy(torn, whole, size);
			if (cut)
				memset(torn + i, 0, size - i);
			else
				torn[i] ^= (char)(1 << i % 8);
			/* Cut behind the last byte that is not 0 anyway, it is whole. */
			bool is_whole = memcmp(torn, whole, size) == 0;
			write_log(&s, RING_AT, torn, size);
			open_volume(&s);
			map_all(&s);
			assert_int_equal(order_is_held(), is_whole);
			recover(&s, is_whole ? 1 : 0, 0);
			assert_int_equal(mark_of(&s), is_whole ? 7 : 0);
			crash_behind_commit(&s, 0);
		}
	write_log(&s, RING_AT, whole, size);
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

static void sums_are_those_of_the_document(void **state)
{
	(void)state;
	assert_true(record_sum("123456789", 9) == UINT64_C(0x995dc9bbdf1939fa));
	assert_true(record_sum("", 0) == 0);
}

static void a_record_of_another_log_is_none(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	char whole[1024];
	uint64_t size = commit_one(&s, 7);
	read_log(&s, RING_AT, whole, size);
	assert_int_equal(unlink(path_in(&s.v, LOG)), 0);
	come_back(&s);
	recover(&s, 0, 0);
	must(run_mark(&s, 8));
	crash_behind_commit(&s, 0);
	write_log(&s, RING_AT, whole, size);
	come_back(&s);
	recover(&s, 0, 0);
	assert_int_equal(mark_of(&s), 0);
	leave(&s);
}

static void a_log_that_is_damaged_or_unknown_is_left_alone(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	(void)commit_one(&s, 7);
	for (uint64_t i = 0; i < 64; i++) {
		char byte;
		read_log(&s, i, &byte, 1);
		write_log(&s, i, (char[]){(char)(byte ^ 1)}, 1);
		come_back(&s);
		fails(ffi_redo_recover(s.v.volume, NULL, &err), -EUCLEAN);
		fails(run_mark(&s, 8), -EUCLEAN);
		assert_int_equal(mark_of(&s), 0);
		assert_false(order_is_held());
		leave(&s);
		write_log(&s, i, &byte, 1);
	}
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

/* Each of many batches is found again, wherever in the ring it lies; and more than one at a time. */
static void records_go_around_the_end_of_the_log(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	static unsigned char before[16384 * FILE_PAGES];
	static unsigned char after[16384 * FILE_PAGES];
	must(run_mark(&s, 1));
	(void)seed_chance();
	for (uint64_t round = 0; round < scaled(100); round++) {
		uint64_t position = retired(&s);
		uint64_t batches = 1 + chance(3);
		read_file(&s.v, "a", 0, before, FILE_SIZE);
		for (uint64_t i = 0; i < batches; i++) {
			begin_body();
			for (uint64_t n = 1 + chance(4); n > 0; n--) {
				uint64_t length = 1 + chance(4000);
				push((struct batch_operation){.op = BATCH_MEMSET,
						.addr = s.a + chance(FILE_SIZE - length),
						.length = length,
						.argument = chance(256)});
			}
			must(run(s.set));
		}
		read_file(&s.v, "a", 0, after, FILE_SIZE);
		uint64_t end = retired(&s);
		assert_true(end > position && end - position <= RING_SIZE);
		leave(&s);
		write_log(&s, RETIRED_AT, &position, 8);
		write_raw(&s, "a", 0, before, FILE_SIZE);
		come_back(&s);
		recover(&s, batches, 0);
		read_file(&s.v, "a", 0, before, FILE_SIZE);
		assert_memory_equal(before, after, FILE_SIZE);
		assert_int_equal(retired(&s), end);
	}
	assert_true(under_valgrind() || retired(&s) > 3 * RING_SIZE);
	leave(&s);
}

/* ---- files that are not there ---- */

static void what_is_for_a_file_that_is_not_there_waits_for_it(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	(void)commit_one(&s, 7);
	unsigned char seen[IN_A];
	struct ffi_written w;
	for (int i = 0; i < 2; i++) {
		open_volume(&s);
		s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
		recover(&s, 0, 1);
		read_file(&s.v, "a", AT_A, seen, IN_A);
		for (int k = 0; k < IN_A; k++)
			assert_int_equal(seen[k], i == 0 ? 7 : 9);
		/* This file has got its bytes, and is free; they stay whatever they become. */
		must(ffi_write(s.set, s.a + AT_A, "\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9\x9", IN_A, FFI_DURABILITY_PERSISTED, &w, &err));
		leave(&s);
	}
	/* Others come and go meanwhile. */
	open_volume(&s);
	s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	for (int i = 0; i < 40; i++) {
		begin_body();
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = s.a + PAGE, .length = 3000, .argument = 3});
		must(run(s.set));
	}
	s.b = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	fails(ffi_write(s.set, s.b + AT_B + IN_B - 1, "x", 1, FFI_DURABILITY_NONE, &w, &err), -EBUSY);
	must(ffi_write(s.set, s.b + AT_B + IN_B, "x", 1, FFI_DURABILITY_NONE, &w, &err));
	recover(&s, 1, 0);
	must(ffi_write(s.set, s.b + PAGE, "x", 1, FFI_DURABILITY_NONE, &w, &err));
	unsigned char got[IN_B];
	read_file(&s.v, "b", AT_B, got, IN_B);
	for (int k = 0; k < IN_B; k++)
		assert_int_equal(got[k], 7);
	leave(&s);
	open_volume(&s);
	recover(&s, 0, 0);
	leave(&s);
}

static void what_is_for_a_file_that_is_too_short_waits_for_it(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	(void)commit_one(&s, 7);
	assert_int_equal(truncate(path_in(&s.v, "a"), AT_A + IN_A - 1), 0);
	open_volume(&s);
	s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = PAGE}).addr;
	s.b = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	recover(&s, 0, 1);
	assert_int_equal(file_size(&s.v, "a"), AT_A + IN_A - 1);
	assert_int_equal(truncate(path_in(&s.v, "a"), (off_t)FILE_SIZE), 0);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

static void another_file_gets_it_where_it_is_adopted(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	struct ffi_span span;
	char old_identity[FFI_IDENTITY_SIZE];
	must(remove_range(s.set, s.b, FILE_SIZE));
	struct ffi_part part = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE});
	s.b = part.addr;
	memcpy(old_identity, part.identity, sizeof(old_identity));
	(void)commit_one(&s, 7);
	make_file(&s.v, "copy", FILE_SIZE, 2);
	assert_int_equal(rename(path_in(&s.v, "copy"), path_in(&s.v, "b")), 0);
	open_volume(&s);
	s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
	struct ffi_restore_file file = {.volume = s.v.volume, .path_length = 1};
	memcpy(file.identity, old_identity, sizeof(old_identity));
	struct ffi_restore_part row = {.length = FILE_SIZE, .cookie = 77, .addr = info_of(s.set).window_addr + 32 * MIB};
	must(ffi_restore(s.set, &file, 1, "b", 1, &row, 1, &err));
	assert_int_equal(row.code, -ESTALE);
	recover(&s, 0, 1);
	memcpy(file.identity, old_identity, sizeof(old_identity));
	file.adopt = 1;
	must(ffi_restore(s.set, &file, 1, "b", 1, &row, 1, &err));
	assert_int_equal(row.code, 0);
	must(ffi_lookup(s.set, row.addr, &span));
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(it_does_what_its_operations_say_one_after_the_other),
			ON_EACH(what_it_cannot_be_is_refused),
			ON_EACH(a_range_or_a_file_that_is_not_there_leaves_everything_as_it_was),
			ON_EACH(a_whole_record_is_applied_and_once_is_as_good_as_twice),
			ON_EACH(a_log_is_durable_before_it_is_applied),
			ON_EACH(a_record_torn_at_any_byte_is_none),
			ONCE(sums_are_those_of_the_document),
			ON_EACH(a_record_of_another_log_is_none),
			ON_EACH(a_log_that_is_damaged_or_unknown_is_left_alone),
			ON_EACH(records_go_around_the_end_of_the_log),
			ON_EACH(what_is_for_a_file_that_is_not_there_waits_for_it),
			ON_EACH(what_is_for_a_file_that_is_too_short_waits_for_it),
			ON_EACH(another_file_gets_it_where_it_is_adopted),
	};
	return stage_run(argc, argv, "redo", TESTS(tests), NO_TESTS);
}
