/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Batches that are all or nothing, and other threads: who waits for them and whom they wait for, be it for bytes, for room in the log or
 * for a larger log; and who must not wait.
 */
#include "redo-stage.h"

#include "order.h"
#include "redo.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

/* ---- who waits for whom ---- */

static struct stage *stage_of_threads;
static _Atomic bool finished[3];

/* One thread is halted in a call, until it is let go on. */
static sem_t arrived, go_on;
static _Atomic int calls_until_halt;

static void halt_in_turn(bool is_such_a_call)
{
	if (!is_such_a_call || atomic_fetch_sub(&calls_until_halt, 1) != 1)
		return;
	(void)sem_post(&arrived);
	while (sem_wait(&go_on) != 0)
		;
}

/* The second time, the log's word is about to be made durable: everything is applied, and nothing is retired. */
static int halt_at_flush_of_log(enum call call, int fd)
{
	halt_in_turn(call == FDATASYNC && is_file(fd, path_of_log));
	return 0;
}

static int halt_at_write_to_a(enum call call, int fd)
{
	halt_in_turn(call == PWRITE && is_file(fd, path_of_a));
	return 0;
}

/* Of its nth such call. */
static void begin_halting(struct stage *s, int (*at_call)(enum call call, int fd), int nth)
{
	must(run_mark(s, 1));
	know_paths(s);
	stage_of_threads = s;
	memset((void *)finished, 0, sizeof(finished));
	assert_int_equal(sem_init(&arrived, 0, 0) | sem_init(&go_on, 0, 0), 0);
	atomic_store(&calls_until_halt, nth);
	before_call = at_call;
}

static void wait_until_halted(void)
{
	while (sem_wait(&arrived) != 0)
		;
}

static void join_all(const pthread_t *threads, int count)
{
	for (int i = 0; i < count; i++) {
		void *rc;
		assert_int_equal(pthread_join(threads[i], &rc), 0);
		assert_int_equal((intptr_t)rc, 0);
	}
}

static void *run_mark_there(void *arg)
{
	(void)arg;
	return at((uint64_t)run_mark(stage_of_threads, 7));
}

struct writer {
	uint64_t addr;
	int i;
};

static void *write_there(void *arg)
{
	const struct writer *w = arg;
	struct ffi_written written;
	struct pmemset_error e;
	int rc = ffi_write(stage_of_threads->set, w->addr, "\x63", 1, FFI_DURABILITY_NONE, &written, &e);
	atomic_store(&finished[w->i], true);
	return at((uint64_t)rc);
}

static void nap(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

static void stores_to_its_bytes_wait_and_others_do_not(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	begin_halting(&s, halt_at_flush_of_log, 2);
	pthread_t batch;
	pthread_t threads[3];
	const struct writer writers[] = {{s.a + AT_A, 0}, {s.alias + AT_A + 1, 1}, {s.a + AT_A + IN_A, 2}};
	assert_int_equal(pthread_create(&batch, NULL, run_mark_there, NULL), 0);
	wait_until_halted();
	assert_int_equal(mark_of(&s), 7);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, write_there, at((uintptr_t)&writers[i])), 0);
	/* A load waits for nobody. */
	unsigned char byte;
	must(ffi_read(s.set, s.a + AT_A, &byte, 1, 0, &err));
	assert_int_equal(byte, 7);
	join_all(&threads[2], 1);
	nap();
	assert_false(atomic_load(&finished[0]) || atomic_load(&finished[1]));
	/* Plain batches of small things are tried where nobody may wait. */
	begin_body();
	push_write(s.a + AT_A + 2, "x", 1);
	seal(DURABILITY_NONE + 1);
	((struct batch_header *)(void *)body.bytes)->atomicity = BATCH_EACH;
	char reply[64];
	fails(ffi_batch(s.set, body.bytes, body.size + body.data_size, reply, sizeof(reply), 1, &batch_failed, &batch_err), -EAGAIN);
	assert_int_equal(sem_post(&go_on), 0);
	join_all(&batch, 1);
	join_all(threads, 2);
	before_call = NULL;
	must(ffi_read(s.set, s.a + AT_A + 1, &byte, 1, 0, &err));
	assert_int_equal(byte, 0x63);
	leave(&s);
}

static void it_waits_for_a_store_that_has_begun(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	begin_halting(&s, halt_at_write_to_a, 1);
	pthread_t batch;
	pthread_t thread;
	const struct writer writer = {s.a + AT_A, 0};
	assert_int_equal(pthread_create(&thread, NULL, write_there, at((uintptr_t)&writer)), 0);
	wait_until_halted();
	uint64_t position = retired(&s);
	assert_int_equal(pthread_create(&batch, NULL, run_mark_there, NULL), 0);
	nap();
	assert_int_equal(mark_of(&s), 1);
	assert_int_equal(retired(&s), position);
	assert_int_equal(sem_post(&go_on), 0);
	join_all(&batch, 1);
	join_all(&thread, 1);
	before_call = NULL;
	assert_int_equal(mark_of(&s), 7);
	leave(&s);
}

#define THREADS 4

/* Records of more than half the log, so that they wait for room as well; and small ones, which share their flushes. */
static void *run_many(void *arg)
{
	const struct stage *s = stage_of_threads;
	uint64_t mine = (uint64_t)(uintptr_t)arg;
	for (uint64_t i = 0; i < scaled(40); i++) {
		begin_body();
		unsigned char mark = (unsigned char)(1 + (mine * 40 + i) % 200);
		for (int k = 0; k < (mine % 2 ? 3 : 1); k++)
			push((struct batch_operation){.op = BATCH_MEMSET,
					.addr = s->a,
					.length = mine % 2 ? FILE_SIZE : 64,
					.argument = mark});
		push((struct batch_operation){.op = BATCH_MEMCPY, .addr = s->b, .argument = s->alias, .length = 64});
		if (run(s->set) != 0)
			return at(1);
	}
	return NULL;
}

static void *write_many_times(void *arg)
{
	struct ffi_written w;
	struct pmemset_error e;
	for (uint64_t i = 0; i < scaled(400); i++)
		if (ffi_write(stage_of_threads->set, stage_of_threads->a + (i * 8) % FILE_SIZE, &i, 8, FFI_DURABILITY_NONE, &w, &e) != 0)
			return arg;
	return NULL;
}

static void many_at_once_are_each_whole(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	stage_of_threads = &s;
	pthread_t threads[THREADS + 1];
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, run_many, at(i)), 0);
	assert_int_equal(pthread_create(&threads[THREADS], NULL, write_many_times, &s), 0);
	join_all(threads, THREADS + 1);
	/* What each has copied was whole. */
	unsigned char seen[64];
	must(ffi_read(s.set, s.b, seen, sizeof(seen), 0, &err));
	begin_body();
	push((struct batch_operation){.op = BATCH_READ, .addr = s.b, .length = 64});
	must(run(s.set));
	assert_false(order_is_held());
	restart(&s);
	recover(&s, 0, 0);
	leave(&s);
}

static _Atomic bool batches_are_done;

/* Not whole, and with stores in a row: to the one file, to the other, and to words in between. */
static void *run_in_rows(void *arg)
{
	const struct stage *s = stage_of_threads;
	for (uint64_t i = 0; !atomic_load(&batches_are_done); i++) {
		begin_body();
		for (uint64_t k = 0; k < 8; k++) {
			push_write(s->a + AT_A + 8 * k, &i, sizeof(i));
			push_write(k % 3 ? s->alias + AT_A + 8 * k : s->b + AT_B + 8 * k, &i, sizeof(i));
			push((struct batch_operation){.op = BATCH_ADD,
					.addr = s->a + ((AT_A + 7) & ~7) + 8 * k,
					.length = 8,
					.argument = 1});
		}
		seal(FFI_DURABILITY_PERSISTED);
		body.bytes[offsetof(struct batch_header, atomicity)] = 0;
		if (run_sealed(s->set, NULL) != 0)
			return arg;
	}
	return NULL;
}

/* Batches come while nobody holds anything, so that the stores in a row have not seen them. */
static void who_is_waited_for_does_not_wait(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	stage_of_threads = &s;
	pthread_t thread;
	void *rc;
	atomic_store(&batches_are_done, false);
	assert_int_equal(pthread_create(&thread, NULL, run_in_rows, &s), 0);
	for (uint64_t i = 0; i < scaled(300); i++) {
		must(run_mark(&s, (unsigned char)(1 + i % 9)));
		(void)nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
	}
	atomic_store(&batches_are_done, true);
	assert_int_equal(pthread_join(thread, &rc), 0);
	assert_null(rc);
	leave(&s);
}

static void *run_small_ones(void *arg)
{
	const struct stage *s = stage_of_threads;
	while (!atomic_load(&batches_are_done)) {
		begin_body();
		push((struct batch_operation){.op = BATCH_MEMSET,
				.addr = s->b + 64 * (uint64_t)(uintptr_t)arg,
				.length = 64,
				.argument = 1});
		if (run(s->set) != 0)
			return at(1);
	}
	return NULL;
}

struct fill {
	uint64_t addr, length;
	int times, i;
	_Atomic pid_t thread;
};

static void *fill_there(void *arg)
{
	struct fill *f = arg;
	atomic_store(&f->thread, gettid());
	begin_body();
	for (int i = 0; i < f->times; i++)
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = f->addr, .length = f->length, .argument = 9});
	int rc = run(stage_of_threads->set);
	atomic_store(&finished[f->i], true);
	return at((uint64_t)rc);
}

/* For room, as nothing else that it does sleeps so long; or until it is done. */
static void wait_until_it_waits(const struct fill *f)
{
	char path[64];
	char state = 'R';
	for (int asleep = 0; asleep < 5 && !atomic_load(&finished[f->i]); asleep = state == 'S' ? asleep + 1 : 0) {
		nap();
		(void)snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)atomic_load(&f->thread));
		FILE *stat = atomic_load(&f->thread) == 0 ? NULL : fopen(path, "r");
		if (stat == NULL || fscanf(stat, "%*[^)]) %c", &state) != 1)
			state = 'R';
		if (stat != NULL)
			(void)fclose(stat);
	}
}

/* Small ones that take what room there is would leave a large one none for as long as they come. */
static void who_waits_for_room_is_not_overtaken(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	begin_halting(&s, halt_at_write_to_a, 1);
	/* More than half of the log, the same, and little. */
	struct fill fills[] = {{s.a, FILE_SIZE, 3, 0, 0}, {s.b + PAGE, FILE_SIZE - PAGE, 5, 1, 0}, {s.b, 8, 1, 2, 0}};
	pthread_t threads[3];
	assert_int_equal(pthread_create(&threads[0], NULL, fill_there, at((uintptr_t)&fills[0])), 0);
	wait_until_halted();
	for (int i = 1; i < 3; i++) {
		assert_int_equal(pthread_create(&threads[i], NULL, fill_there, at((uintptr_t)&fills[i])), 0);
		wait_until_it_waits(&fills[i]);
	}
	bool overtaken = atomic_load(&finished[2]);
	assert_int_equal(sem_post(&go_on), 0);
	join_all(threads, 3);
	before_call = NULL;
	assert_false(overtaken);
	leave(&s);
}

/* They would have the log in use for ever, each beginning before the other has ended. */
static void who_needs_a_larger_log_gets_it_whoever_else_is_at_it(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	must(run_mark(&s, 1));
	stage_of_threads = &s;
	pthread_t threads[THREADS];
	atomic_store(&batches_are_done, false);
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, run_small_ones, at(i)), 0);
	nap();
	redo_configure(2 * RING_SIZE, 0);
	begin_body();
	for (int i = 0; i < 6; i++)
		push((struct batch_operation){.op = BATCH_MEMSET, .addr = s.a, .length = FILE_SIZE, .argument = 5});
	must(run(s.set));
	atomic_store(&batches_are_done, true);
	join_all(threads, THREADS);
	redo_configure(RING_SIZE, 0);
	leave(&s);
}

/* Until it is recovered: answers how often it was let in. */
static void *store_where_it_waits(void *arg)
{
	const struct stage *s = stage_of_threads;
	struct ffi_written w;
	struct pmemset_error e;
	uint64_t stored = 0;
	(void)arg;
	while (!atomic_load(&batches_are_done))
		stored += ffi_write(s->set, s->a + AT_A, "x", 1, FFI_DURABILITY_NONE, &w, &e) == 0;
	return at(stored);
}

static void what_waits_for_one_file_is_held_in_the_other_all_the_while(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	stage_of_threads = &s;
	must(run_mark(&s, 1));
	for (uint64_t i = 0; i < scaled(200); i++) {
		uint64_t before = retired(&s);
		must(run_mark(&s, 2));
		leave(&s);
		write_log(&s, RETIRED_AT, &before, sizeof(before));
		open_volume(&s);
		s.a = must_map(s.set, &s.v, "a", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
		pthread_t thread;
		void *stored;
		atomic_store(&batches_are_done, false);
		assert_int_equal(pthread_create(&thread, NULL, store_where_it_waits, NULL), 0);
		s.b = must_map(s.set, &s.v, "b", (struct ffi_part_spec){.length = FILE_SIZE}).addr;
		atomic_store(&batches_are_done, true);
		assert_int_equal(pthread_join(thread, &stored), 0);
		assert_int_equal((intptr_t)stored, 0);
		recover(&s, 1, 0);
	}
	leave(&s);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(many_at_once_are_each_whole),
			ON_EACH(who_is_waited_for_does_not_wait),
			ON_EACH(who_needs_a_larger_log_gets_it_whoever_else_is_at_it),
			ON_EACH(what_waits_for_one_file_is_held_in_the_other_all_the_while),
	};
	const struct CMUnitTest of_pages[] = {
			ON_EACH(stores_to_its_bytes_wait_and_others_do_not),
			ON_EACH(it_waits_for_a_store_that_has_begun),
			ON_EACH(who_waits_for_room_is_not_overtaken),
	};
	return stage_run(argc, argv, "redo, waits", TESTS(tests), TESTS(of_pages));
}
