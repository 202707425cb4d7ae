/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Everything at once on shared sets, for a bounded time. Each byte of a file is the file's own, so that whoever reads another one has
 * read a wrong file; cookies say which file a part is of.
 */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILES 4
#define FILE_PAGES 8
#define WINDOW_PAGES 512 /* of 2 MiB */
#define SETS 2

struct crew {
	const struct place *place;
	_Atomic uint64_t sets[SETS];
	_Atomic bool stop;
};

struct worker {
	struct crew *crew;
	pthread_t thread;
	uint64_t random;
	char *buf;
	uint64_t done, mapped, removed, pinned, found;
	char wrong[200];
};

static uint64_t draw(struct worker *w, uint64_t below)
{
	w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (w->random >> 33) % below;
}

/* cmocka's assertions are its own thread's; a worker says what was wrong, once. */
static void wrong(struct worker *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void wrong(struct worker *w, const char *format, ...)
{
	va_list args;
	if (w->wrong[0] != '\0')
		return;
	va_start(args, format);
	(void)vsnprintf(w->wrong, sizeof(w->wrong), format, args);
	va_end(args);
}

static char own_byte(uint64_t cookie)
{
	return (char)('A' + cookie % FILES);
}

static void one_of(struct worker *w, int rc, const int *codes, const char *what, const struct pmemset_error *e)
{
	for (; *codes != 0; codes++)
		if (rc == *codes)
			return;
	if (rc != 0)
		wrong(w, "%s: %d: %s", what, rc, e->message);
}
#define ONE_OF(rc, what, ...) one_of(w, rc, (const int[]){__VA_ARGS__, 0}, what, &e)

static uint64_t some_addr(struct worker *w, uint64_t set)
{
	struct ffi_set_info info;
	if (ffi_set_info(set, &info) != 0)
		return 0;
	return info.window_addr + draw(w, WINDOW_PAGES) * PAGE + draw(w, PAGE);
}

/* ---- what a worker does ---- */

static void do_map(struct worker *w, uint64_t set)
{
	struct pmemset_error e;
	struct ffi_part part;
	uint64_t file = draw(w, FILES);
	uint64_t pages = 1 + draw(w, 4);
	char name[] = {'f', (char)('0' + file), '\0'};
	const struct ffi_part_spec spec = {.volume = w->crew->place->volume,
			.offset = draw(w, FILE_PAGES - pages + 1) * PAGE,
			.length = pages * PAGE,
			.cookie = FILES * (1 + draw(w, 1000)) + file};
	(void)ffi_set_coalescing(set, (uint32_t)draw(w, 3), NULL);
	int rc = ffi_part_map(set, &spec, name, 2, &part, &e);
	ONE_OF(rc, "map", PMEMSET_E_CANNOT_COALESCE_PARTS, PMEMSET_E_CANNOT_FIT_PART_MAP, -EBADF);
	w->mapped += rc == 0;
	if (rc == 0 && (part.addr < part.map_addr || part.addr + part.length > part.map_addr + part.map_size))
		wrong(w, "a part that is not in its map");
}

static void do_remove(struct worker *w, uint64_t set)
{
	struct pmemset_error e;
	struct ffi_removal counts = {0};
	uint64_t length = 1 + draw(w, draw(w, 8) ? 4 * PAGE : 64 * PAGE);
	int rc = ffi_remove(set, some_addr(w, set), length, draw(w, 4) == 0, draw(w, 4) == 0, &counts, NULL, NULL, NULL, &e);
	ONE_OF(rc, "remove", PMEMSET_E_CANNOT_FIND_PART_MAP, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP, -EBADF);
	w->removed += rc == 0;
}

static void check_span(struct worker *w, const struct ffi_span *s, uint64_t addr)
{
	w->found++;
	if (addr < s->addr || addr >= s->addr + s->length)
		wrong(w, "a part that does not hold the address");
	if (s->addr < s->map_addr || s->addr + s->length > s->map_addr + s->map_size)
		wrong(w, "a part that is not in its map");
	if (s->map_parts == 0 || s->cookie < FILES || s->offset % PAGE != 0 || s->offset + s->length > FILE_PAGES * PAGE)
		wrong(w, "a part that nobody mapped");
}

static void do_look_up(struct worker *w, uint64_t set)
{
	struct pmemset_error e = {0};
	struct ffi_span spans[16];
	uint64_t addr = some_addr(w, set);
	int rc = ffi_lookup(set, addr, &spans[0]);
	ONE_OF(rc, "look-up", PMEMSET_E_CANNOT_FIND_PART_MAP, -EBADF);
	if (rc == 0)
		check_span(w, &spans[0], addr);
	int64_t n = draw(w, 2) ? ffi_maps(set, addr, 0, spans, 16) : ffi_parts(set, addr, 0, spans, 16);
	for (int64_t i = 0; i < n; i++) {
		check_span(w, &spans[i], spans[i].addr);
		if (i > 0 && spans[i].addr < spans[i - 1].addr + spans[i - 1].length)
			wrong(w, "a list that is not in order");
	}
}

/* A range within one part, which may be another one by the time that it is used. */
static uint64_t some_range(struct worker *w, uint64_t set, uint64_t *length, struct ffi_span *span)
{
	uint64_t addr = some_addr(w, set);
	if (ffi_lookup(set, addr, span) != 0)
		return 0;
	*length = 1 + draw(w, span->addr + span->length - addr);
	return addr;
}

static void do_read(struct worker *w, uint64_t set)
{
	struct pmemset_error e;
	struct ffi_span span;
	uint64_t length;
	uint64_t addr = some_range(w, set, &length, &span);
	if (addr == 0)
		return;
	if (draw(w, 4) == 0)
		length = span.map_addr + span.map_size - addr + PAGE; /* more than there was: unless it grew, refused */
	int rc = ffi_read(set, addr, w->buf, length, (uint32_t)draw(w, 2), &e);
	ONE_OF(rc, "read", PMEMSET_E_CANNOT_FIND_PART_MAP, PMEMSET_E_LENGTH_OUT_OF_RANGE, PMEMSET_E_NO_PART_MAPPED, -EAGAIN, -EBADF);
	for (uint64_t i = 0; rc == 0 && i < length; i++)
		if (w->buf[i] < 'A' || w->buf[i] >= 'A' + FILES)
			wrong(w, "a byte that is in no file");
}

static void do_persist(struct worker *w, uint64_t set)
{
	struct pmemset_error e;
	struct ffi_written written;
	struct ffi_span span;
	uint64_t ranges[4];
	if ((ranges[0] = some_range(w, set, &ranges[1], &span)) == 0 || (ranges[2] = some_range(w, set, &ranges[3], &span)) == 0)
		return;
	int rc = ffi_persist(set, ranges, 1 + draw(w, 2), FFI_DURABILITY_FLUSHED + (uint32_t)draw(w, 3), &written, &e);
	ONE_OF(rc, "persist", PMEMSET_E_CANNOT_FIND_PART_MAP, PMEMSET_E_LENGTH_OUT_OF_RANGE, -EBADF);
	rc = ffi_drain(set, &written, &e);
	ONE_OF(rc, "drain", PMEMSET_E_NO_PART_MAPPED, -EBADF);
}

/* With the map held: it is where it was, nobody can remove it, and all its bytes are those of its files. */
static void look_around(struct worker *w, uint64_t set, uint64_t addr)
{
	struct pmemset_error e;
	struct ffi_written written;
	struct ffi_removal counts = {0};
	struct ffi_span parts[WINDOW_PAGES];
	struct ffi_span first;
	if (ffi_lookup(set, addr, &first) != 0) {
		wrong(w, "a held map that is not found");
		return;
	}
	check_span(w, &first, addr);
	if (first.map_refs == 0)
		wrong(w, "a held map that nobody holds");
	int rc = ffi_remove(set, addr, 1, 0, 0, &counts, NULL, NULL, NULL, &e);
	if (rc != PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP)
		wrong(w, "removal of a held map: %d", rc);
	int64_t n = ffi_parts(set, first.map_addr, first.map_addr + first.map_size, parts, WINDOW_PAGES);
	uint64_t reached = first.map_addr;
	for (int64_t i = 0; i < n; i++) {
		const char *bytes = at(parts[i].addr);
		char own = own_byte(parts[i].cookie);
		if (parts[i].addr != reached || parts[i].map_addr != first.map_addr)
			wrong(w, "a held map with a hole in it");
		reached += parts[i].length;
		memset(w->buf, own, parts[i].length);
		for (uint64_t k = 0; k < parts[i].length; k += 61)
			if (*(const volatile char *)(bytes + k) != own)
				wrong(w, "a byte of another file in a held map");
		uint64_t from = draw(w, parts[i].length);
		rc = ffi_write(set, parts[i].addr + from, w->buf, 1 + draw(w, parts[i].length - from), draw(w, 8) ? 0 : 2, &written, &e);
		if (rc != 0)
			wrong(w, "write to a held map: %d: %s", rc, e.message);
	}
	if (reached < first.map_addr + first.map_size)
		wrong(w, "a held map that shrank");
}

static void do_pin(struct worker *w, uint64_t set)
{
	struct pmemset_error e;
	uint64_t pin;
	uint64_t addr = some_addr(w, set);
	int rc = ffi_pin(set, addr, draw(w, 2), &pin, &e);
	ONE_OF(rc, "pin", PMEMSET_E_CANNOT_FIND_PART_MAP, PMEMSET_E_NO_PART_MAPPED, -EBADF);
	if (rc != 0)
		return;
	w->pinned++;
	look_around(w, set, addr);
	if (ffi_unpin(pin) != 0)
		wrong(w, "unpin");
}

static void *work(void *arg)
{
	static void (*const jobs[])(struct worker *, uint64_t) = {do_map, do_map, do_remove, do_look_up, do_read, do_persist, do_pin};
	struct worker *w = arg;
	while (!atomic_load(&w->crew->stop) && w->wrong[0] == '\0') {
		uint64_t set = atomic_load(&w->crew->sets[draw(w, SETS)]);
		jobs[draw(w, sizeof(jobs) / sizeof(jobs[0]))](w, set);
		w->done++;
	}
	return NULL;
}

/* ---- crews ---- */

static void make_files(const struct place *p)
{
	static char bytes[FILE_PAGES * 65536];
	assert_true(PAGE <= 65536);
	for (uint64_t i = 0; i < FILES; i++) {
		char name[] = {'f', (char)('0' + i), '\0'};
		memset(bytes, own_byte(i), sizeof(bytes));
		FILE *file = fopen(path_in(p, name), "we");
		assert_non_null(file);
		assert_int_equal(fwrite(bytes, PAGE, FILE_PAGES, file), FILE_PAGES);
		assert_int_equal(fclose(file), 0);
	}
}

static void start_all(struct crew *crew, struct worker *workers, int count, void *(*what)(void *))
{
	for (int i = 0; i < count; i++) {
		workers[i] = (struct worker){.crew = crew, .random = chance(UINT64_MAX), .buf = malloc((WINDOW_PAGES + 1) * PAGE)};
		assert_non_null(workers[i].buf);
	}
	for (int i = 0; i < count; i++)
		assert_int_equal(pthread_create(&workers[i].thread, NULL, what, &workers[i]), 0);
}

static void join_all(struct crew *crew, struct worker *workers, int count)
{
	struct worker sum = {0};
	atomic_store(&crew->stop, true);
	for (int i = 0; i < count; i++) {
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
		free(workers[i].buf);
		sum.done += workers[i].done;
		sum.mapped += workers[i].mapped;
		sum.removed += workers[i].removed;
		sum.pinned += workers[i].pinned;
		sum.found += workers[i].found;
	}
	print_message("%" PRIu64 " calls; %" PRIu64 " mapped, %" PRIu64 " removed, %" PRIu64 " pinned, %" PRIu64 " found\n", sum.done,
			sum.mapped, sum.removed, sum.pinned, sum.found);
	for (int i = 0; i < count; i++)
		if (workers[i].wrong[0] != '\0')
			fail_msg("worker %d: %s", i, workers[i].wrong);
	assert_true(sum.mapped > 0 && sum.removed > 0 && sum.pinned > 0 && sum.found > 0);
}

static void wait_for(double how_long)
{
	for (double end = seconds() + how_long; seconds() < end;)
		(void)usleep(20000);
}

static void everything_at_once(void **state)
{
	enum { WORKERS = 6 };
	struct worker workers[WORKERS];
	struct crew crew = {.place = here(state)};
	make_files(crew.place);
	(void)seed_chance();
	for (int i = 0; i < SETS; i++)
		atomic_store(&crew.sets[i], new_set(FFI_COALESCING_OPPORTUNISTIC, WINDOW_PAGES * PAGE));
	start_all(&crew, workers, WORKERS, work);
	wait_for(1.5);
	join_all(&crew, workers, WORKERS);
	for (int i = 0; i < SETS; i++) {
		struct ffi_set_info info = info_of(crew.sets[i]);
		static struct ffi_span parts[WINDOW_PAGES];
		assert_int_equal(ffi_parts(crew.sets[i], 0, 0, parts, WINDOW_PAGES), info.part_count);
		assert_int_equal(ffi_maps(crew.sets[i], 0, 0, parts, WINDOW_PAGES), info.map_count);
		covered(info.window_addr, info.window_size, NULL);
		delete_set(crew.sets[i]);
		covered(info.window_addr, info.window_size, "---p");
	}
}

/* Sets come and go beneath the workers, who are told so and nothing worse. */
static void sets_that_end(void **state)
{
	enum { WORKERS = 5 };
	struct worker workers[WORKERS];
	struct crew crew = {.place = here(state)};
	make_files(crew.place);
	(void)seed_chance();
	for (int i = 0; i < SETS; i++)
		atomic_store(&crew.sets[i], new_set(FFI_COALESCING_OPPORTUNISTIC, WINDOW_PAGES * PAGE));
	start_all(&crew, workers, WORKERS, work);
	uint64_t deleted = 0;
	uint64_t refused = 0;
	for (double end = seconds() + 1.0; seconds() < end;) {
		int i = (int)chance(SETS);
		(void)usleep((unsigned)chance(2000));
		int rc = ffi_set_delete(crew.sets[i], &err);
		if (rc == 0) {
			deleted++;
			atomic_store(&crew.sets[i], new_set(FFI_COALESCING_NONE, WINDOW_PAGES * PAGE));
		} else {
			refused++;
			must_be(rc, PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP, "set delete", __FILE__, __LINE__);
		}
	}
	join_all(&crew, workers, WORKERS);
	print_message("%" PRIu64 " sets deleted, %" PRIu64 " times refused\n", deleted, refused);
	assert_true(deleted > 0);
	for (int i = 0; i < SETS; i++)
		delete_set(crew.sets[i]);
}

/* ---- look-ups by more threads than there are lines to say so in ---- */

static void *look_up_only(void *arg)
{
	struct worker *w = arg;
	while (!atomic_load(&w->crew->stop)) {
		struct ffi_span span;
		uint64_t set = atomic_load(&w->crew->sets[0]);
		int rc = ffi_lookup(set, atomic_load(&w->crew->sets[1]), &span);
		if (rc == 0 && span.cookie != 7)
			wrong(w, "a part that nobody mapped");
		if (rc != 0 && rc != -EBADF && rc != PMEMSET_E_CANNOT_FIND_PART_MAP)
			wrong(w, "an error that no look-up has: %d", rc);
		if (ffi_parts(set, 0, 0, &span, 1) < -EBADF)
			wrong(w, "an error that no list has");
		w->found += rc == 0;
		if (!measures()) /* under a checker so many that never rest leave nothing to the one whom they race */
			(void)usleep(1000);
	}
	return NULL;
}

/* sets[0] is the set, sets[1] an address in it; it ends again and again, and its memory with it. */
static void look_ups_by_many(void **state)
{
	enum { WORKERS = 80 };
	static struct worker workers[WORKERS];
	struct crew crew = {.place = here(state)};
	make_file(crew.place, "x", PAGE, 1);
	uint64_t set = new_set(FFI_COALESCING_NONE, PAGE);
	atomic_store(&crew.sets[0], set);
	atomic_store(&crew.sets[1], must_map(set, crew.place, "x", (struct ffi_part_spec){.cookie = 7}).addr);
	memset(workers, 0, sizeof(workers));
	for (int i = 0; i < WORKERS; i++) {
		workers[i].crew = &crew;
		assert_int_equal(pthread_create(&workers[i].thread, NULL, look_up_only, &workers[i]), 0);
	}
	for (double end = seconds() + 1.0; seconds() < end;) {
		delete_set(set);
		set = new_set(FFI_COALESCING_NONE, PAGE);
		atomic_store(&crew.sets[1], must_map(set, crew.place, "x", (struct ffi_part_spec){.cookie = 7}).addr);
		atomic_store(&crew.sets[0], set);
		(void)usleep(1000);
	}
	atomic_store(&crew.stop, true);
	uint64_t found = 0;
	for (int i = 0; i < WORKERS; i++) {
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
		assert_string_equal(workers[i].wrong, "");
		found += workers[i].found;
	}
	assert_true(found > 0);
	delete_set(set);
}

/* ---- a map that grows ---- */

/* Reads one page more than there is, until it is there. */
static void *read_what_grows(void *arg)
{
	struct worker *w = arg;
	struct pmemset_error e;
	struct ffi_set_info info;
	uint64_t set = w->crew->sets[0];
	(void)ffi_set_info(set, &info);
	uint64_t pages = 1;
	while (!atomic_load(&w->crew->stop) && w->wrong[0] == '\0') {
		int rc = ffi_read(set, info.window_addr, w->buf, pages * PAGE, 0, &e);
		ONE_OF(rc, "read", PMEMSET_E_LENGTH_OUT_OF_RANGE, PMEMSET_E_CANNOT_FIND_PART_MAP, PMEMSET_E_NO_PART_MAPPED);
		pages = rc == 0 ? pages + 1 : rc == PMEMSET_E_LENGTH_OUT_OF_RANGE ? pages : 1;
		w->found += rc == 0;
		w->done++;
	}
	return NULL;
}

static void a_map_that_grows(void **state)
{
	enum { WORKERS = 2 };
	struct worker workers[WORKERS];
	struct crew crew = {.place = here(state)};
	make_files(crew.place);
	uint64_t set = new_set(FFI_COALESCING_FULL, WINDOW_PAGES * PAGE);
	atomic_store(&crew.sets[0], set);
	struct ffi_part keeps_it_open;
	uint64_t other = new_set(FFI_COALESCING_FULL, WINDOW_PAGES * PAGE);
	must(map(other, crew.place, "f0", (struct ffi_part_spec){.length = PAGE}, &keeps_it_open));
	start_all(&crew, workers, WORKERS, read_what_grows);
	workers[0].removed = workers[0].pinned = 1; /* which is not what this is about */
	for (double end = seconds() + 1.0; seconds() < end;) {
		for (int i = 0; i < 100; i++)
			must_map(set, crew.place, "f0", (struct ffi_part_spec){.length = PAGE});
		workers[0].mapped += 100;
		while (remove_range(set, keeps_it_open.addr - 2 * MIB, 2 * MIB) == PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP)
			;
	}
	join_all(&crew, workers, WORKERS);
	delete_set(set);
	delete_set(other);
}

/* ---- growth ---- */

/* In the first set; in the second the file always grew in vain, which is found out late, and has to shrink again. */
static void *grow_all_the_time(void *arg)
{
	struct worker *w = arg;
	struct pmemset_error e;
	struct ffi_part part;
	for (int i = 0; i < 300 && w->wrong[0] == '\0'; i++) {
		const struct ffi_part_spec spec = {.volume = w->crew->place->volume,
				.length = (1 + draw(w, 40)) * PAGE,
				.cookie = 1,
				.grow = 1};
		uint64_t set = w->crew->sets[draw(w, SETS)];
		w->done++;
		int rc = ffi_part_map(set, &spec, "grows", 5, &part, &e);
		ONE_OF(rc, "map", PMEMSET_E_GRANULARITY_NOT_SUPPORTED, PMEMSET_E_CANNOT_FIT_PART_MAP);
		if (rc != 0)
			continue;
		w->mapped++;
		/* Whoever was given the range has it. */
		rc = ffi_read(set, part.addr + part.length - 1, w->buf, 1, 0, &e);
		if (rc != 0)
			wrong(w, "the end of a new part: %d: %s", rc, e.message);
		struct ffi_removal counts = {0};
		if (draw(w, 8) != 0)
			(void)ffi_remove(set, part.addr, 1, 0, 0, &counts, NULL, NULL, NULL, &e);
		w->removed++;
	}
	return NULL;
}

static void growth_beside_its_undoing(void **state)
{
	enum { WORKERS = 4 };
	struct worker workers[WORKERS];
	struct crew crew = {.place = here(state)};
	static struct ffi_span parts[WINDOW_PAGES];
	const struct ffi_set_spec in_vain = {.window_size = WINDOW_PAGES * PAGE,
			.required_granularity = FFI_GRANULARITY_BYTE,
			.granularity = FFI_GRANULARITY_UNSET};
	(void)seed_chance();
	make_file(crew.place, "grows", PAGE, 1);
	uint64_t sets[SETS] = {new_set(FFI_COALESCING_NONE, WINDOW_PAGES * PAGE)};
	must(ffi_set_new(&in_vain, &sets[1], &err));
	for (int i = 0; i < SETS; i++)
		atomic_store(&crew.sets[i], sets[i]);
	start_all(&crew, workers, WORKERS, grow_all_the_time);
	for (int i = 0; i < WORKERS; i++)
		workers[i].pinned = workers[i].found = 1; /* which is not what this is about */
	join_all(&crew, workers, WORKERS);
	uint64_t size = file_size(crew.place, "grows");
	int64_t n = ffi_parts(sets[0], 0, 0, parts, WINDOW_PAGES);
	for (int64_t i = 0; i < n; i++)
		assert_true(parts[i].offset + parts[i].length <= size);
	assert_int_equal(info_of(sets[1]).part_count, 0);
	for (int i = 0; i < SETS; i++)
		delete_set(sets[i]);
}

/* ---- a file that cannot be opened for a while ---- */

static void *map_the_leased(void *arg)
{
	struct worker *w = arg;
	struct pmemset_error e;
	struct ffi_part part;
	const struct ffi_part_spec spec = {.volume = w->crew->place->volume, .length = PAGE, .cookie = 1};
	w->found = 1;
	int rc = ffi_part_map(w->crew->sets[0], &spec, "dir/leased", 10, &part, &e);
	if (rc != 0)
		wrong(w, "map: %d: %s", rc, e.message);
	atomic_store(&w->crew->stop, true);
	return NULL;
}

/* Whoever holds a lease holds up who opens that file, and nobody who opens or makes one in another directory. */
static void a_lease_holds_up_no_other(void **state)
{
	struct worker worker;
	struct crew crew = {.place = here(state)};
	void (*on_break)(int) = signal(SIGIO, SIG_IGN);
	make_file(crew.place, "other", PAGE, 1);
	assert_int_equal(mkdir(path_in(crew.place, "dir"), 0700), 0);
	make_file(crew.place, "dir/leased", PAGE, 1);
	int fd = open(path_in(crew.place, "dir/leased"), O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0) {
		assert_int_equal(close(fd), 0);
		print_message("no lease can be had here\n");
		skip();
	}
	for (int i = 0; i < SETS; i++)
		atomic_store(&crew.sets[i], new_set(FFI_COALESCING_NONE, WINDOW_PAGES * PAGE));
	start_all(&crew, &worker, 1, map_the_leased);
	(void)usleep(50000);
	double started = seconds();
	must_map(crew.sets[1], crew.place, "other", (struct ffi_part_spec){.length = PAGE});
	must_map(crew.sets[1], crew.place, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_IF_NEEDED});
	bool held_up = atomic_load(&crew.stop);
	assert_true(seconds() - started < 20); /* the kernel ends a lease after 45 s */
	assert_int_equal(fcntl(fd, F_SETLEASE, F_UNLCK), 0);
	assert_int_equal(pthread_join(worker.thread, NULL), 0);
	free(worker.buf);
	assert_false(held_up);
	assert_string_equal(worker.wrong, "");
	assert_int_equal(close(fd), 0);
	(void)signal(SIGIO, on_break);
	for (int i = 0; i < SETS; i++)
		delete_set(crew.sets[i]);
}

/* ---- creation ---- */

static pthread_barrier_t together;
enum { MADE = 40 };

/* All at once, one makes the file; the others find it. */
static void *make_the_same(void *arg)
{
	struct worker *w = arg;
	struct pmemset_error e;
	struct ffi_part part;
	for (uint32_t i = 0; i < MADE; i++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "made%u", i / 2);
		const struct ffi_part_spec spec = {.volume = w->crew->place->volume,
				.length = PAGE,
				.cookie = 1,
				.create = i % 2 ? FFI_CREATE_ALWAYS : FFI_CREATE_IF_NEEDED,
				.mode = 0600};
		if (i % 2)
			name[0] = 'M';
		(void)pthread_barrier_wait(&together);
		int rc = ffi_part_map(w->crew->sets[draw(w, SETS)], &spec, name, (uint32_t)strlen(name), &part, &e);
		w->done++;
		if (rc == 0)
			w->mapped++;
		w->found += rc == 0 && part.created;
		/* To make it anew is refused where another has mapped it already. */
		if (rc != 0 && (spec.create == FFI_CREATE_IF_NEEDED || rc != -EBUSY))
			wrong(w, "%s: %d: %s", name, rc, e.message);
	}
	return NULL;
}

static void made_at_once(void **state)
{
	enum { WORKERS = 4 };
	struct worker workers[WORKERS];
	struct crew crew = {.place = here(state)};
	(void)seed_chance();
	for (int i = 0; i < SETS; i++)
		atomic_store(&crew.sets[i], new_set(FFI_COALESCING_NONE, WINDOW_PAGES * PAGE));
	assert_int_equal(pthread_barrier_init(&together, NULL, WORKERS), 0);
	start_all(&crew, workers, WORKERS, make_the_same);
	uint64_t made = 0;
	for (int i = 0; i < WORKERS; i++) {
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
		free(workers[i].buf);
		if (workers[i].wrong[0] != '\0')
			fail_msg("worker %d: %s", i, workers[i].wrong);
		made += workers[i].found;
	}
	assert_int_equal(made, MADE);
	(void)pthread_barrier_destroy(&together);
	for (int i = 0; i < SETS; i++)
		delete_set(crew.sets[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(everything_at_once),
			ON_EACH(sets_that_end),
			ON_EACH(look_ups_by_many),
			ON_EACH(a_map_that_grows),
			ON_EACH(growth_beside_its_undoing),
			ON_EACH(made_at_once),
			ON_EACH(a_lease_holds_up_no_other),
	};
	return RUN("threads", tests, FFI_GRANULARITY_UNSET);
}
