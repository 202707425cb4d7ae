/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What crashes leave of batches that are all or nothing: whose process is killed, at every system call of theirs; and whose power goes, at
 * every order in which a disk may have written what it was not told to have written yet.
 */
#include "redo-stage.h"

#include "order.h"
#include "redo.h"

#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* ---- killed, at each call ---- */

static long calls_until_death;
static bool dies_before;

static int die_before(enum call call, int fd)
{
	(void)call;
	(void)fd;
	if (dies_before && --calls_until_death == 0)
		(void)raise(SIGKILL);
	return 0;
}

static void die_after(enum call call, int fd, uint64_t at_, const void *bytes, size_t size)
{
	(void)call;
	(void)fd;
	(void)at_;
	(void)bytes;
	(void)size;
	if (!dies_before && --calls_until_death == 0)
		(void)raise(SIGKILL);
}

/* Of another process, which is what it says. Exit code 0: the batch was answered. */
static int be_killed(char **argv)
{
	struct stage s = {.v = {.name = "volume"}};
	const struct ffi_engine_spec spec = {.simulate = strcmp(argv[5], "page") == 0 ? FFI_GRANULARITY_UNSET : FFI_GRANULARITY_CACHE_LINE};
	(void)snprintf(s.v.dir, sizeof(s.v.dir), "%s", argv[2]);
	dies_before = strcmp(argv[3], "before") == 0;
	redo_configure(RING_SIZE, 0);
	if (ffi_engine_start(&spec, &err) != 0)
		return 2;
	open_volume(&s);
	map_all(&s);
	if (ffi_redo_recover(s.v.volume, NULL, &err) != 0)
		return 3;
	calls_until_death = strtol(argv[4], NULL, 10);
	before_call = die_before;
	after_call = die_after;
	int rc = run_mark(&s, 9);
	before_call = NULL;
	after_call = NULL;
	return rc ? 4 : 0;
}

static bool is_killed(const struct stage *s, const char *when, long call)
{
	char number[24];
	pid_t pid;
	int status = 0;
	(void)snprintf(number, sizeof(number), "%ld", call);
	char *argv[] = {"65-redo-crashes", "be-killed", at((uintptr_t)s->v.dir), at((uintptr_t)when), number,
			at((uintptr_t)granularity_name), NULL};
	assert_int_equal(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGKILL);
		return true;
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

/* The first batch of a volume makes its log; the second does not. */
static void killed_at_any_call_it_is_whole_or_not_at_all(void **state)
{
	struct place *p = here(state);
	no_valgrind("it does not follow the process that is killed");
	unsigned whole = 0;
	unsigned none = 0;
	for (int first = 0; first < 2; first++)
		for (int after = 0; after < 2; after++)
			for (long call = 1;; call++) {
				char name[32];
				(void)snprintf(name, sizeof(name), "v%d%d-%ld", first, after, call);
				struct stage s = stage_in(p->dir, name);
				if (!first)
					must(run_mark(&s, 1));
				leave(&s);
				bool killed = is_killed(&s, after ? "after" : "before", call);
				open_volume(&s);
				map_all(&s);
				must(ffi_redo_recover(s.v.volume, NULL, &err));
				int mark = mark_of(&s);
				assert_true(mark == 9 || (killed && mark == (first ? 0 : 1)));
				whole += killed && mark == 9;
				none += killed && mark != 9;
				assert_false(order_is_held());
				must(run_mark(&s, 10));
				assert_int_equal(mark_of(&s), 10);
				leave(&s);
				if (!killed)
					break;
			}
	print_message("killed: %u whole, %u not at all\n", whole, none);
	assert_true(none > 0 && (whole > 0 || granularity != FFI_GRANULARITY_PAGE));
}

/* ---- the power goes: whatever was not flushed may be on the disk, or not, by sectors ---- */

#define SECTOR 512
#define EVENTS_MAX 64
#define IMAGES 3

struct event {
	int file;
	bool sync; /* of [from, to); else a write */
	uint64_t from, to;
	char *bytes;
};
static struct event events[EVENTS_MAX];
static int event_count;
static struct stage *recorded;
static const char *const image_names[IMAGES] = {"a", "b", LOG};

static int image_of(int fd)
{
	for (int i = 0; i < IMAGES; i++)
		if (is_file(fd, path_in(&recorded->v, image_names[i])))
			return i;
	fail();
	return 0;
}

static void record_event(enum call call, int fd, uint64_t at_, const void *bytes, size_t size)
{
	struct event ev = {.from = at_};
	if (call == RENAMEAT)
		fail(); /* the log is there before */
	assert_true(event_count < EVENTS_MAX);
	if (call == MSYNC) {
		ev.sync = true;
		ev.file = at_ >= recorded->b && at_ < recorded->b + FILE_SIZE ? 1 : 0;
		uint64_t base = ev.file							      ? recorded->b
				: at_ >= recorded->alias && at_ < recorded->alias + FILE_SIZE ? recorded->alias
											      : recorded->a;
		ev.from = (at_ - base) & ~(PAGE - 1);
		ev.to = (at_ - base + size + PAGE - 1) & ~(PAGE - 1);
	} else if (call == FDATASYNC || call == FSYNC) {
		ev.sync = true;
		ev.file = image_of(fd);
		ev.to = UINT64_MAX;
	} else {
		ev.file = image_of(fd);
		ev.to = at_ + size;
		ev.bytes = malloc(size + 1);
		assert_non_null(ev.bytes);
		memcpy(ev.bytes, bytes, size);
	}
	events[event_count++] = ev;
}

/* Whether bytes [from, to) of a write are on the disk for sure when the power goes before event `cut`. */
static bool is_synced(int write, int cut, uint64_t from, uint64_t to)
{
	for (int i = write + 1; i < cut; i++)
		if (events[i].sync && events[i].file == events[write].file && events[i].from <= from && events[i].to >= to)
			return true;
	return false;
}

#define STATES 4

/* What was there before, what is made of it, and what there was after each step. */
static struct {
	char *before[IMAGES], *images[IMAGES], *states[STATES][2];
	uint64_t sizes[IMAGES];
	int answered[STATES]; /* behind so many events */
} film;

static char *copy_of(const struct stage *s, int image)
{
	char *copy = malloc(film.sizes[image]);
	assert_non_null(copy);
	read_file(&s->v, image_names[image], 0, copy, film.sizes[image]);
	return copy;
}

static void make_step(const struct stage *s, int step)
{
	struct ffi_written w;
	if (step == 1)
		must(run_mark(s, 0x41));
	else if (step == 2)
		must(ffi_write(s->set, s->b + AT_B, "PLAIN...", 8, FFI_DURABILITY_PERSISTED, &w, &err));
	else if (step == 3)
		must(run_mark(s, 0x42));
}

static void take_film(struct stage *s)
{
	must(run_mark(s, 1)); /* the log is there */
	for (int i = 0; i < IMAGES; i++) {
		film.sizes[i] = file_size(&s->v, image_names[i]);
		film.before[i] = copy_of(s, i);
		film.images[i] = copy_of(s, i);
	}
	recorded = s;
	event_count = 0;
	for (int i = 0; i < STATES; i++) {
		after_call = record_event;
		make_step(s, i);
		after_call = NULL;
		film.answered[i] = event_count;
		for (int f = 0; f < 2; f++)
			film.states[i][f] = copy_of(s, f);
	}
}

static void drop_film(void)
{
	for (int i = 0; i < event_count; i++)
		free(events[i].bytes);
	for (int i = 0; i < IMAGES; i++) {
		free(film.before[i]);
		free(film.images[i]);
	}
	for (int i = 0; i < STATES; i++) {
		free(film.states[i][0]);
		free(film.states[i][1]);
	}
}

/* bias: of 4, how many sectors that need not be there are. */
static void make_images(const struct stage *s, int cut, uint64_t bias)
{
	for (int i = 0; i < IMAGES; i++)
		memcpy(film.images[i], film.before[i], film.sizes[i]);
	for (int i = 0; i < cut; i++) {
		const struct event *ev = &events[i];
		for (uint64_t from = ev->from, to; !ev->sync && from < ev->to; from = to) {
			to = (from / SECTOR + 1) * SECTOR < ev->to ? (from / SECTOR + 1) * SECTOR : ev->to;
			if (is_synced(i, cut, from, to) || chance(4) < bias)
				memcpy(film.images[ev->file] + from, ev->bytes + (from - ev->from), to - from);
		}
	}
	for (int i = 0; i < IMAGES; i++)
		write_raw(s, image_names[i], 0, film.images[i], film.sizes[i]);
}

/* -1: none of them. */
static int state_of(const struct stage *s)
{
	int is = -1;
	char *seen[2] = {copy_of(s, 0), copy_of(s, 1)};
	for (int i = 0; i < STATES; i++)
		if (memcmp(seen[0], film.states[i][0], film.sizes[0]) == 0 && memcmp(seen[1], film.states[i][1], film.sizes[1]) == 0)
			is = i;
	free(seen[0]);
	free(seen[1]);
	return is;
}

/* A batch, a plain store to one of its bytes, and a batch over that again: the disk has as many of them as were answered, or one more. */
static void whatever_a_disk_has_written_when_the_power_goes(void **state)
{
	struct place *p = here(state);
	struct stage s = stage_on(p);
	unsigned met[STATES] = {0};
	take_film(&s);
	leave(&s);
	(void)seed_chance();
	for (int cut = 0; cut <= event_count; cut++)
		for (uint64_t round = 0; round < scaled(30); round++) {
			make_images(&s, cut, round % 5);
			come_back(&s);
			must(ffi_redo_recover(s.v.volume, NULL, &err));
			int is = state_of(&s);
			int least = 0;
			for (int i = 1; i < STATES; i++)
				least = cut >= film.answered[i] ? i : least;
			if (is < least || is > least + 1)
				print_error("cut before event %d of %d, bias %" PRIu64 ": state %d, and %d was answered\n", cut,
						event_count, round % 5, is, least);
			assert_true(is >= least && is <= least + 1);
			met[is]++;
			leave(&s);
		}
	for (int i = 0; i < STATES; i++)
		assert_true(under_valgrind() || met[i] > 0);
	print_message("%d events; the states were met %u, %u, %u and %u times\n", event_count, met[0], met[1], met[2], met[3]);
	drop_film();
}

int main(int argc, char **argv)
{
	if (argc == 6 && strcmp(argv[1], "be-killed") == 0)
		return be_killed(argv);
	const struct CMUnitTest tests[] = {
			ON_EACH(killed_at_any_call_it_is_whole_or_not_at_all),
	};
	const struct CMUnitTest of_pages[] = {
			ON_EACH(whatever_a_disk_has_written_when_the_power_goes),
	};
	return stage_run(argc, argv, "redo, crashes", TESTS(tests), TESTS(of_pages));
}
