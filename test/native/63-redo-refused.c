/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Batches that are all or nothing where something is refused: flushes and renames that fail, a log that is gone, a full disk, a volume that
 * is read-only; and memory that runs out.
 */
#include "redo-stage.h"

#include "order.h"
#include "redo.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mount.h>
#include <sys/stat.h>

/* ---- a medium that refuses ---- */

static int fail_log_syncs, fail_a_syncs, fail_renames; /* so many of them */

static int fail_some(enum call call, int fd)
{
	int *left = call == RENAMEAT ? &fail_renames : call == FDATASYNC && is_file(fd, path_of_log) ? &fail_log_syncs : NULL;
	if ((call == MSYNC && (const char *)msync_at >= (char *)at(base_of_a) &&
			    (const char *)msync_at < (char *)at(base_of_a) + FILE_SIZE) ||
			(call == FDATASYNC && is_file(fd, path_of_a)))
		left = &fail_a_syncs;
	if (left == NULL || *left == 0)
		return 0;
	--*left;
	return EIO;
}

static void a_commit_that_fails_is_no_commit(void **state)
{
	struct place *p = here(state);
	for (int again = 0; again < 2; again++) {
		struct stage s = stage_in(p->dir, again ? "y" : "x");
		struct ffi_written w;
		must(run_mark(&s, 1));
		know_paths(&s);
		uint64_t old = epoch(&s);
		before_call = fail_some;
		fail_log_syncs = 1;
		fail_renames = again ? 2 : 0;
		fails(run_mark(&s, 2), -EIO);
		assert_int_equal(batch_err.reason, PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(batch_failed, 2);
		assert_int_equal(batch_head.done, 0);
		assert_int_equal(batch_head.durability, DURABILITY_NONE);
		assert_int_equal(mark_of(&s), 1);
		assert_int_equal(info_of(s.set).degraded, 0);
		if (again) {
			/* The old log is still there, and may have it: so nobody stores where it would be replayed. */
			assert_int_equal(epoch(&s), old);
			fails(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err), -EBUSY);
			assert_int_equal(err.reason, PMEMSET_REASON_RECOVERY_PENDING);
			begin_body();
			push_write(s.a, "elsewhere", 9);
			fails(run(s.set), -EIO);
			must(ffi_redo_recover(s.v.volume, NULL, &err)); /* which makes it anew as well */
		}
		assert_false(order_is_held());
		assert_int_not_equal(epoch(&s), old);
		assert_int_equal(file_size(&s.v, LOG), RING_AT + RING_SIZE);
		must(ffi_write(s.set, s.b + AT_B, (char[]){1}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
		restart(&s);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), 1);
		must(run_mark(&s, 3));
		assert_int_equal(mark_of(&s), 3);
		before_call = NULL;
		leave(&s);
	}
}

static int log_syncs_met;

static int fail_second_log_sync(enum call call, int fd)
{
	if (call == FDATASYNC && is_file(fd, path_of_log) && ++log_syncs_met == 2)
		return EIO;
	return call == RENAMEAT ? fail_some(call, fd) : 0;
}

/* The batch is whole and durable all the same; what must not be is a replay of it, after somebody else has stored there. */
static void a_retirement_that_fails_fails_nobody_and_nothing_is_replayed(void **state)
{
	struct place *p = here(state);
	for (int again = 0; again < 2; again++) {
		struct stage s = stage_in(p->dir, again ? "y" : "x");
		struct ffi_written w;
		must(run_mark(&s, 1));
		know_paths(&s);
		uint64_t old = epoch(&s);
		before_call = fail_second_log_sync;
		log_syncs_met = 0;
		fail_renames = again;
		must(run_mark(&s, 2));
		assert_int_equal(batch_head.durability, DURABILITY_PERSISTED);
		assert_int_equal(mark_of(&s), 2);
		assert_int_equal(order_is_held(), again);
		assert_int_equal(epoch(&s) == old, again);
		if (again) {
			fails(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err), -EBUSY);
			must(run_mark(&s, 2));
		}
		before_call = NULL;
		assert_false(order_is_held());
		must(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_PERSISTED, &w, &err));
		restart(&s);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), -1);
		leave(&s);
	}
}

static void what_cannot_be_made_durable_where_it_belongs_is_applied_again(void **state)
{
	struct place *p = here(state);
	/* What is in memory only cannot be discarded; and valgrind reads the beginning of each file that is mapped again. */
	uint32_t last = p == &places[0] || under_valgrind() ? FFI_RECOVERY_REWRITE : FFI_RECOVERY_DISCARD;
	for (uint32_t recovery = FFI_RECOVERY_REWRITE; recovery <= last; recovery++) {
		struct stage s = stage_in(p->dir, recovery ? "y" : "x");
		struct ffi_written w;
		uint64_t rows[3];
		must(run_mark(&s, 1));
		know_paths(&s);
		before_call = fail_some;
		fail_a_syncs = 1;
		fails(run_mark(&s, 2), -EIO);
		before_call = NULL;
		assert_int_equal(batch_err.reason, PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(batch_head.done, 2);
		assert_int_equal(batch_head.bytes, IN_A + IN_B);
		assert_int_equal(info_of(s.set).degraded, 1);
		fails(ffi_write(s.set, s.a + AT_A, "x", 1, FFI_DURABILITY_NONE, &w, &err), -EBUSY);
		/* A batch of something else goes on. */
		begin_body();
		push_write(s.b + PAGE, "else", 4);
		must(run(s.set));
		assert_int_equal(ffi_failures(s.set, rows, 1), 1);
		must(ffi_acknowledge(s.set, rows[0], recovery, &err));
		assert_int_equal(info_of(s.set).degraded, 0);
		assert_int_equal(mark_of(&s), 2);
		assert_false(order_is_held());
		must(ffi_write(s.set, s.a + AT_A, (char[]){2}, 1, FFI_DURABILITY_PERSISTED, &w, &err));
		restart(&s);
		recover(&s, 0, 0);
		assert_int_equal(mark_of(&s), 2);
		leave(&s);
	}
}

static void a_log_that_somebody_removes_is_made_anew(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	assert_int_equal(unlink(path_in(&s.v, LOG)), 0);
	must(run_mark(&s, 2));
	assert_int_equal(file_size(&s.v, LOG), RING_AT + RING_SIZE);
	crash_behind_commit(&s, 0);
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 2);
	leave(&s);
}

static void a_full_disk_is_said_before_anything_is_done(void **state)
{
	struct place *p = here(state);
	mounting();
	assert_int_equal(mkdir(path_in(p, "full"), 0700), 0);
	char options[64];
	(void)snprintf(options, sizeof(options), "size=%" PRIu64, 2 * FILE_SIZE + RING_SIZE);
	assert_int_equal(mount("none", path_in(p, "full"), "tmpfs", 0, options), 0);
	struct stage s = stage_in(path_in(p, "full"), "v");
	fails(run_mark(&s, 1), -ENOSPC);
	assert_int_equal(batch_head.done, 0);
	assert_int_equal(mark_of(&s), 0);
	assert_int_equal(access(path_in(&s.v, LOG), F_OK), -1);
	assert_int_equal(access(path_in(&s.v, LOG ".new"), F_OK), -1);
	redo_configure(PAGE, 0);
	must(run_mark(&s, 1));
	redo_configure(RING_SIZE, 0);
	/* A hole that cannot be filled is found before the commit. */
	make_file(&s.v, "hole", 4 * PAGE, 0);
	uint64_t hole = must_map(s.set, &s.v, "hole", (struct ffi_part_spec){.length = 4 * PAGE}).addr;
	fill_up(&s.v, "filler");
	begin_body();
	push_write(s.a + AT_A, "first", 5);
	push_write(hole + 9, "hole", 4);
	fails(run(s.set), -ENOSPC);
	assert_int_equal(batch_failed, 1);
	assert_int_equal(mark_of(&s), 1);
	assert_int_equal(unlink(path_in(&s.v, "filler")), 0);
	must(run(s.set));
	leave(&s);
	assert_int_equal(umount(path_in(p, "full")), 0);
}

/* It keeps nobody from starting; what waits there goes on waiting. */
static void a_volume_that_is_read_only_is_left_as_it_is(void **state)
{
	struct place *p = here(state);
	mounting();
	assert_int_equal(mkdir(path_in(p, "ro"), 0700), 0);
	assert_int_equal(mount("none", path_in(p, "ro"), "tmpfs", 0, "size=4m"), 0);
	struct stage s = stage_in(path_in(p, "ro"), "v");
	(void)commit_one(&s, 7);
	assert_int_equal(mount("none", path_in(p, "ro"), "none", MS_REMOUNT | MS_RDONLY, NULL), 0);
	open_volume(&s);
	recover(&s, 0, 1);
	leave(&s);
	assert_int_equal(mark_of(&s), 0);
	assert_int_equal(mount("none", path_in(p, "ro"), "none", MS_REMOUNT, NULL), 0);
	come_back(&s);
	recover(&s, 1, 0);
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
	assert_int_equal(umount(path_in(p, "ro")), 0);
}

/* ---- memory that runs out ---- */

static void memory_that_runs_out_changes_nothing(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	for (int64_t n = 0;; n++) {
		allocations_left = n;
		allocation_failed = false;
		int rc = run_mark(&s, 2);
		allocations_left = -1;
		if (!allocation_failed) {
			must(rc);
			assert_true(n > 5);
			break;
		}
		/* A reply of the test's own, too; and what retires needs none. */
		assert_int_equal(rc, rc == 0 ? 0 : -ENOMEM);
		assert_int_equal(mark_of(&s), rc == 0 ? 2 : 1);
		assert_false(order_is_held());
		must(run_mark(&s, 1));
	}
	/* The same of a start with something to be recovered. */
	for (int64_t n = 0;; n++) {
		uint64_t before = retired(&s);
		must(run_mark(&s, 3));
		crash_behind_commit(&s, before);
		allocations_left = n;
		allocation_failed = false;
		uint64_t counts[2] = {0, 0};
		uint64_t volume = 0;
		int rc = ffi_volume_open(s.v.dir, &volume, &err);
		if (rc == 0) {
			s.v.volume = volume;
			allocations_left = allocation_failed ? -1 : allocations_left;
			int64_t left = allocations_left;
			allocations_left = -1;
			s.set = new_set(FFI_COALESCING_NONE, 64 * MIB);
			map_all(&s);
			allocations_left = left;
			rc = ffi_redo_recover(volume, counts, &err);
			allocations_left = -1;
			assert_int_equal(rc, 0);
			assert_int_equal(counts[0] + counts[1], 1);
			recover(&s, counts[1], 0);
		} else {
			allocations_left = -1;
			assert_int_equal(rc, -ENOMEM);
			come_back(&s);
			recover(&s, 1, 0);
		}
		assert_int_equal(mark_of(&s), 3);
		if (!allocation_failed)
			break;
		assert_true(n < 100);
	}
	leave(&s);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(a_log_that_somebody_removes_is_made_anew),
			ON_EACH(a_full_disk_is_said_before_anything_is_done),
			ON_EACH(a_volume_that_is_read_only_is_left_as_it_is),
			ON_EACH(memory_that_runs_out_changes_nothing),
	};
	const struct CMUnitTest of_pages[] = {
			ON_EACH(a_commit_that_fails_is_no_commit),
			ON_EACH(a_retirement_that_fails_fails_nobody_and_nothing_is_replayed),
			ON_EACH(what_cannot_be_made_durable_where_it_belongs_is_applied_again),
	};
	return stage_run(argc, argv, "redo, refused", TESTS(tests), TESTS(of_pages));
}
