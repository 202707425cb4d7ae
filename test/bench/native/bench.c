/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bench.c -- bench [ROW ...] [--pairs N] [--processes P] [--milliseconds M] [--smoke]
 *
 * The table of rows N1 to N5. --smoke runs each row once with tiny sizes, and says only whether it works.
 */
#include "bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#define AA_MIN 0.93
#define AA_MAX 1.07
#define PAIRS_MAX 128
#define FIGURES_MAX 24

/* What one figure has given so far; in memory that the processes of a row share. */
struct figure {
	char what[112];
	char unit[24]; /* empty: a ratio */
	double goal;
	unsigned pairs;
	double aa[PAIRS_MAX], ratio[PAIRS_MAX];
	double ours[PAIRS_MAX], peer[PAIRS_MAX]; /* nanoseconds for each time */
};
static struct figure *figures;
static unsigned next_figure; /* of this process */

bool smoke;
char memory_dir[256];
char disk_dir[256];
struct pmemset_error err;
static unsigned pairs = 20;
static unsigned processes = 3;
static double slice_ms = 40;

static const struct row {
	const char *name;
	const char *what;
	void (*run)(void);
} rows[] = {
		{"N1", "look-up by address among 10 000 maps", n1},
		{"N2", "map and remove a part of 2 MiB", n2},
		{"N3", "durable copy at cache-line granularity", n3},
		{"N4", "what a part costs in memory", n4},
		{"N5", "parts restored at start (S2)", n5},
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

_Noreturn void stop(const char *file, int line, const char *what)
{
	(void)fprintf(stderr, "%s:%d: %s (errno %d; last error %d, %s)\n", file, line, what, errno, err.code, err.message);
	exit(1);
}

void must_be_0(int rc, const char *file, int line, const char *call)
{
	if (rc != 0)
		stop(file, line, call);
}

double cpu_time(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* ---- figures ---- */

static struct figure *take_figure(const char *what, double goal, const char *unit)
{
	check(next_figure < FIGURES_MAX, "too many figures");
	struct figure *f = &figures[next_figure++];
	(void)snprintf(f->what, sizeof(f->what), "%s", what);
	(void)snprintf(f->unit, sizeof(f->unit), "%s", unit);
	f->goal = goal;
	return f;
}

/* How often it is to be done, so that a slice is long enough for the clock and short enough for the machine to stay as it is. */
static uint64_t times_of(struct side s)
{
	uint64_t times = 1;
	while (s.cost(s.arg, times) < slice_ms * 1e6 / 2 && times < UINT64_C(1) << 40)
		times *= 2;
	return times;
}

/* *a and *b: of one time. */
static double pair(struct side first, struct side second, bool swapped, uint64_t times, double *a, double *b)
{
	double one = swapped ? second.cost(second.arg, times) : first.cost(first.arg, times);
	double other = swapped ? first.cost(first.arg, times) : second.cost(second.arg, times);
	*a = (swapped ? other : one) / (double)times;
	*b = (swapped ? one : other) / (double)times;
	return *a / *b;
}

void compare(const char *what, double goal, struct side ours, struct side peer)
{
	struct figure *f = take_figure(what, goal, "");
	uint64_t times = smoke ? 1 : times_of(ours);
	double one;
	double same;
	(void)peer.cost(peer.arg, smoke ? 1 : times); /* both warm */
	for (unsigned i = 0; i < (pairs + processes - 1) / processes && f->pairs < PAIRS_MAX; i++) {
		unsigned n = f->pairs++;
		f->aa[n] = pair(ours, ours, i % 2, times, &one, &same);
		f->ratio[n] = pair(ours, peer, i % 2, times, &f->ours[n], &f->peer[n]);
	}
}

void count(const char *what, double goal, double value, const char *unit)
{
	struct figure *f = take_figure(what, goal, unit);
	if (f->pairs < PAIRS_MAX)
		f->ratio[f->pairs++] = value;
}

struct spread {
	double median, min, max;
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;
	return (x > y) - (x < y);
}

static struct spread spread(double *values, unsigned n)
{
	qsort(values, n, sizeof(*values), by_value);
	return (struct spread){(values[(n - 1) / 2] + values[n / 2]) / 2, values[0], values[n - 1]};
}

static const char *load(void)
{
	static char text[64];
	double one[1] = {0};
	(void)getloadavg(one, 1);
	(void)snprintf(text, sizeof(text), "%.2f", one[0]);
	return text;
}

static const char *goal_of(const struct figure *f)
{
	static char text[16];
	(void)snprintf(text, sizeof(text), "<= %g", f->goal);
	return f->goal == NO_GOAL ? "" : text;
}

static void show(const char *row, struct figure *f)
{
	struct spread r = spread(f->ratio, f->pairs);
	const char *verdict = f->goal == NO_GOAL ? "" : r.median <= f->goal ? "met" : "MISSED";
	if (f->unit[0] != '\0') {
		(void)printf("%-3s %-78s %-8s %8.3f %s  %s\n", row, f->what, goal_of(f), r.median, f->unit, verdict);
		return;
	}
	struct spread aa = spread(f->aa, f->pairs);
	if (aa.median < AA_MIN || aa.median > AA_MAX)
		verdict = "VOID: the machine is too noisy";
	char range[32];
	(void)snprintf(range, sizeof(range), "(%.3f to %.3f)", r.min, r.max);
	(void)printf("%-3s %-78s %-8s %8.3f %-20s %10.1f %10.1f  %.3f (%.3f to %.3f)  %s\n", row, f->what, goal_of(f), r.median, range,
			spread(f->ours, f->pairs).median, spread(f->peer, f->pairs).median, aa.median, aa.min, aa.max, verdict);
}

/* ---- scenes ---- */

void *at(uint64_t addr)
{
	return (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the whole interface */
}

uint64_t chance(uint64_t below)
{
	static uint64_t state = UINT64_C(88172645463325252); /* xorshift: the same numbers in every run */
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

void start_engine(uint32_t simulate)
{
	const struct ffi_engine_spec spec = {.simulate = simulate};
	must(ffi_engine_start(&spec, &err));
}

uint64_t open_volume(const char *dir)
{
	uint64_t volume;
	must(ffi_volume_open(dir, &volume, &err));
	return volume;
}

uint64_t new_set(uint64_t window_size, uint32_t coalescing)
{
	const struct ffi_set_spec spec = {.window_size = window_size,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET,
			.coalescing = coalescing};
	uint64_t set;
	must(ffi_set_new(&spec, &set, &err));
	return set;
}

uint64_t map_part(uint64_t set, uint64_t volume, const char *name, uint64_t offset, uint64_t length, uint64_t cookie)
{
	const struct ffi_part_spec spec = {.volume = volume, .offset = offset, .length = length, .cookie = cookie};
	struct ffi_part part;
	must(ffi_part_map(set, &spec, name, (uint32_t)strlen(name), &part, &err));
	return part.addr;
}

void remove_part(uint64_t set, uint64_t addr)
{
	struct ffi_removal removal = {0};
	must(ffi_remove(set, addr, 1, 0, 0, &removal, NULL, NULL, NULL, &err));
}

int make_file(const char *dir, const char *name, uint64_t size)
{
	char path[sizeof(memory_dir) + 32];
	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	check(fd >= 0, path);
	must(posix_fallocate(fd, 0, (off_t)size));
	return fd;
}

uint64_t reserve(uint64_t size)
{
	void *base = mmap(NULL, size + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(base != MAP_FAILED, "reserve");
	return ((uint64_t)(uintptr_t)base + 2 * MIB - 1) & ~(2 * MIB - 1);
}

/* ---- the program ---- */

static void make_dirs(void)
{
	char here[sizeof(disk_dir) - 32];
	(void)snprintf(memory_dir, sizeof(memory_dir), "/dev/shm/pmemset-bench-XXXXXX");
	check(getcwd(here, sizeof(here)) != NULL, "getcwd");
	(void)snprintf(disk_dir, sizeof(disk_dir), "%s/pmemset-bench-XXXXXX", here);
	check(mkdtemp(memory_dir) != NULL && mkdtemp(disk_dir) != NULL, "mkdtemp");
}

static void remove_files(void)
{
	for (int i = 0; i < 2; i++) {
		DIR *dir = opendir(i ? disk_dir : memory_dir);
		check(dir != NULL, "opendir");
		for (const struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir))
			if (entry->d_name[0] != '.')
				(void)unlinkat(dirfd(dir), entry->d_name, 0);
		(void)closedir(dir);
	}
}

static bool run(const struct row *row)
{
	memset(figures, 0, FIGURES_MAX * sizeof(*figures));
	if (!smoke)
		(void)printf("\n%s: %s; load %s\n", row->name, row->what, load());
	(void)fflush(stdout);
	bool works = true;
	for (unsigned p = 0; p < processes && works; p++) {
		int status = 1;
		pid_t child = fork();
		if (child == 0) {
			row->run();
			_exit(0);
		}
		works = child > 0 && waitpid(child, &status, 0) == child && status == 0;
		remove_files();
	}
	for (unsigned i = 0; i < FIGURES_MAX && figures[i].pairs > 0 && works && !smoke; i++)
		show(row->name, &figures[i]);
	if (smoke || !works)
		(void)printf("%s %s\n", row->name, works ? "works" : "FAILED");
	return works;
}

static void options(int argc, char **argv)
{
	static const struct option known[] = {{"pairs", required_argument, NULL, 'p'}, {"processes", required_argument, NULL, 'r'},
			{"milliseconds", required_argument, NULL, 'm'}, {"smoke", no_argument, NULL, 's'}, {0}};
	for (int o = getopt_long(argc, argv, "", known, NULL); o != -1; o = getopt_long(argc, argv, "", known, NULL)) {
		if (o == 'p')
			pairs = (unsigned)strtoul(optarg, NULL, 10);
		else if (o == 'r')
			processes = (unsigned)strtoul(optarg, NULL, 10);
		else if (o == 'm')
			slice_ms = strtod(optarg, NULL);
		else if (o == 's')
			smoke = true;
		else
			exit(2);
	}
	if (smoke)
		pairs = processes = 1;
	check(pairs > 0 && pairs <= PAIRS_MAX / 2 && processes > 0 && processes <= pairs, "that many pairs, or processes, cannot be");
}

static bool wanted(const struct row *row, int argc, char **argv)
{
	bool any = optind == argc;
	for (int i = optind; i < argc; i++)
		any |= strcmp(argv[i], row->name) == 0;
	return any;
}

int main(int argc, char **argv)
{
	bool works = true;
	options(argc, argv);
	figures = mmap(NULL, FIGURES_MAX * sizeof(*figures), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(figures != MAP_FAILED, "mmap");
	make_dirs();
	if (!smoke)
		(void)printf("%-3s %-78s %-8s %8s %-20s %10s %10s  %s\n", "row", "what, beside its peer", "goal", "ratio", "(min to max)",
				"ours, ns", "peer, ns", "A/A (min to max)");
	for (size_t i = 0; i < ROWS; i++)
		if (wanted(&rows[i], argc, argv))
			works &= run(&rows[i]);
	if (!smoke)
		(void)printf("\n%u pairs over %u processes, slices of %g ms, CPU time of the thread; load %s\n", pairs, processes, slice_ms,
				load());
	(void)rmdir(memory_dir);
	(void)rmdir(disk_dir);
	return works ? 0 : 1;
}
