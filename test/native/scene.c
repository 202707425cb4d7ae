/* SPDX-License-Identifier: BSD-3-Clause */
#include "scene.h"

#include "file.h"
#include "window.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

struct place places[2] = {{.name = "tmpfs"}, {.name = "disk"}};
struct pmemset_error err;

void *at(uint64_t addr)
{
	return (void *)(uintptr_t)addr; /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the whole interface */
}

/* ---- what a test leaves behind ---- */

struct traces {
	unsigned descriptors;
	uint64_t arena_mappings, mappings;
};
static struct traces before_test;

static struct traces traces(void)
{
	return (struct traces){descriptors(), arena_mappings(), mappings_used()};
}

/* Removes what is in a directory, and counts what the engine should have removed itself. */
static unsigned empty(const char *dir)
{
	unsigned own = 0;
	DIR *d = opendir(dir);
	if (d == NULL)
		return 0;
	for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d)) {
		char path[sizeof(places[0].dir) + sizeof(entry->d_name) + 1];
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		own += strncmp(entry->d_name, ".pmemset-", 9) == 0;
		(void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (unlink(path) != 0 && (errno == EISDIR || errno == EPERM)) {
			own += empty(path);
			(void)rmdir(path);
		}
	}
	(void)closedir(d);
	return own;
}

int scene_enter(void **state)
{
	(void)state;
	memset(&err, 0, sizeof(err));
	before_test = traces();
	return 0;
}

int scene_leave(void **state)
{
	const struct place *p = *state;
	unsigned own = p != NULL && p->missing == NULL ? empty(p->dir) : 0;
	struct traces now = traces();
	if (own == 0 && now.descriptors == before_test.descriptors && now.arena_mappings == before_test.arena_mappings &&
			now.mappings == before_test.mappings)
		return 0;
	print_error("left behind: %u files of the engine's own; descriptors %u -> %u, mappings in the arena %" PRIu64 " -> %" PRIu64
		    ", counted %" PRIu64 " -> %" PRIu64 "\n",
			own, before_test.descriptors, now.descriptors, before_test.arena_mappings, now.arena_mappings, before_test.mappings,
			now.mappings);
	return -1;
}

/* ---- places ---- */

static void open_place(struct place *p, const char *above)
{
	(void)snprintf(p->dir, sizeof(p->dir), "%s/pmemset-test-XXXXXX", above);
	if (mkdtemp(p->dir) == NULL)
		p->missing = "no directory can be made there";
	else if (ffi_volume_open(p->dir, &p->volume, &err) != 0)
		p->missing = "it cannot be opened as a volume";
}

static void close_place(struct place *p)
{
	if (p->volume != 0)
		(void)ffi_volume_close(p->volume);
	(void)empty(p->dir);
	(void)rmdir(p->dir);
}

static struct sigaction on_sigbus; /* the engine's */

struct place *here(void **state)
{
	struct place *p = *state;
	/* cmocka puts a handler of its own in place before each test, and takes it away again behind it. */
	assert_int_equal(sigaction(SIGBUS, &on_sigbus, NULL), 0);
	if (p->missing != NULL) {
		print_message("no %s here: %s\n", p->name, p->missing);
		skip();
	}
	return p;
}

static int mounts_refused; /* errno */

/* Before any volume is opened: a volume of another namespace is in no mount table that can be read here. */
static void own_mounts(void)
{
	if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) != 0)
		mounts_refused = errno;
}

void mounting(void)
{
	if (mounts_refused == 0)
		return;
	print_message("mounting is not allowed here: %s\n", strerror(mounts_refused));
	skip();
}

bool under_valgrind(void)
{
	return getenv("PMEMSET_TEST_SCALE") != NULL;
}

uint64_t scaled(uint64_t count)
{
	const char *scale = getenv("PMEMSET_TEST_SCALE");
	return scale != NULL ? count / strtoull(scale, NULL, 10) : count;
}

bool measures(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return false;
#else
	return !under_valgrind();
#endif
}

void no_valgrind(const char *why)
{
	if (!under_valgrind())
		return;
	print_message("valgrind %s\n", why);
	skip();
}

static int start_engine(uint32_t simulate)
{
	struct ffi_engine_spec spec = {.simulate = simulate};
	const char *arena_text = getenv("PMEMSET_TEST_ARENA");
	if (arena_text != NULL) {
		char *end;
		spec.arena_base = strtoull(arena_text, &end, 0);
		spec.arena_size = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
	}
	int rc = ffi_engine_start(&spec, &err);
	if (rc != 0)
		print_error("the engine does not start: %s\n", err.message);
	(void)sigaction(SIGBUS, NULL, &on_sigbus);
	return rc;
}

int scene_run(const char *group, const struct CMUnitTest *tests, size_t count, uint32_t simulate)
{
	char above[sizeof(places[1].dir) - 32];
	if (start_engine(simulate) != 0 || getcwd(above, sizeof(above)) == NULL)
		return 1;
	own_mounts();
	open_place(&places[0], "/dev/shm");
	open_place(&places[1], above);
	int failed = _cmocka_run_group_tests(group, tests, count, NULL, NULL);
	close_place(&places[0]);
	close_place(&places[1]);
	return failed == 0 ? 0 : 1;
}

/* ---- files ---- */

const char *path_in(const struct place *p, const char *name)
{
	static char paths[4][8192];
	static unsigned next;
	char *path = paths[next++ % 4];
	(void)snprintf(path, sizeof(paths[0]), "%s/%s", p->dir, name);
	return path;
}

unsigned char byte_of(unsigned seed, uint64_t offset)
{
	return (unsigned char)(seed + offset % 251 + offset / 4096);
}

void make_file(const struct place *p, const char *name, uint64_t size, unsigned seed)
{
	int fd = open(path_in(p, name), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	unsigned char buf[4096];
	for (uint64_t at = 0; seed != 0 && at < size; at += sizeof(buf)) {
		size_t n = size - at < sizeof(buf) ? (size_t)(size - at) : sizeof(buf);
		for (size_t i = 0; i < n; i++)
			buf[i] = byte_of(seed, at + i);
		assert_int_equal(pwrite(fd, buf, n, (off_t)at), n);
	}
	assert_int_equal(fsync(fd), 0); /* so that its blocks are what they stay */
	assert_int_equal(close(fd), 0);
}

void read_file(const struct place *p, const char *name, uint64_t offset, void *buf, size_t size)
{
	int fd = open(path_in(p, name), O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, buf, size, (off_t)offset), size);
	assert_int_equal(close(fd), 0);
}

uint64_t file_size(const struct place *p, const char *name)
{
	struct stat st;
	assert_int_equal(stat(path_in(p, name), &st), 0);
	return (uint64_t)st.st_size;
}

void fill_up(const struct place *p, const char *name)
{
	static const char bytes[65536];
	int fd = open(path_in(p, name), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	while (write(fd, bytes, sizeof(bytes)) > 0 || write(fd, bytes, PAGE) > 0)
		;
	assert_int_equal(errno, ENOSPC);
	assert_int_equal(close(fd), 0);
}

/* ---- a disk that fails ---- */

static void no_disk(const char *why)
{
	print_message("no disk can be made here: %s: %s\n", why, strerror(errno));
	skip();
}

static bool runs(char *const *argv)
{
	pid_t child;
	int status = -1;
	errno = posix_spawnp(&child, argv[0], NULL, NULL, argv, environ);
	return errno == 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* A loop device for the file, which it lets go of when nobody uses it any more; -1: errno. */
static int loop_on(const char *image, char device[32])
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int file = open(image, O_RDWR | O_CLOEXEC);
	struct loop_config config = {.fd = (uint32_t)file, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
	int loop = -1;
	/* Another may take the free one before us. */
	for (int tries = 0; control >= 0 && file >= 0 && loop < 0 && tries < 16; tries++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE);
		(void)snprintf(device, 32, "/dev/loop%d", number);
		loop = number >= 0 ? open(device, O_RDWR | O_CLOEXEC) : -1;
		if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) != 0) {
			(void)close(loop);
			loop = -1;
		}
	}
	int why = errno;
	if (control >= 0)
		(void)close(control);
	if (file >= 0)
		(void)close(file);
	errno = why;
	return loop;
}

static void mount_point(const struct place *p, const char *name, struct place *at_it)
{
	*at_it = (struct place){.name = name};
	(void)snprintf(at_it->dir, sizeof(at_it->dir), "%s", path_in(p, name));
	assert_int_equal(mkdir(at_it->dir, 0700), 0);
}

void open_disk(struct disk *d, const struct place *p, uint64_t size)
{
	char device[32];
	mounting();
	mount_point(p, "beneath", &d->beneath);
	mount_point(p, "on", &d->place);
	assert_int_equal(mount("none", d->beneath.dir, "tmpfs", 0, "size=40m"), 0);
	make_file(&d->beneath, "image", 128 * MIB, 0);
	char image[sizeof(d->beneath.dir) + 8];
	(void)snprintf(image, sizeof(image), "%s/image", d->beneath.dir);
	char *const mkfs[] = {"mkfs.ext4", "-q", "-b", "4096", "-J", "size=8", image, NULL};
	int loop = runs(mkfs) ? loop_on(image, device) : -1;
	int rc = loop >= 0 ? mount(device, d->place.dir, "ext4", MS_NOATIME, "commit=300") : -1;
	int why = errno;
	if (loop >= 0)
		(void)close(loop);
	if (rc != 0) {
		(void)umount(d->beneath.dir);
		errno = why;
		no_disk(loop >= 0 ? "ext4" : "mkfs.ext4 or a loop device");
	}
	must(ffi_volume_open(d->place.dir, &d->place.volume, &err));
	make_file(&d->place, "x", size, 1);
}

/* Where the image has that byte of "x". The kernel writes the file out before it tells, and where that fails, it tells nothing, once. */
static off_t place_of(int file, uint64_t offset)
{
	int block = 0;
	for (int i = 0; block == 0 && i < 100; i++) {
		block = (int)(offset / 4096);
		assert_int_equal(ioctl(file, FIBMAP, &block), 0);
	}
	assert_true(block > 0);
	return block * (off_t)4096 + (off_t)(offset % 4096);
}

void break_disk(struct disk *d)
{
	int image = open(path_in(&d->beneath, "image"), O_RDWR | O_CLOEXEC);
	int file = open(path_in(&d->place, "x"), O_RDONLY | O_CLOEXEC);
	assert_true(image >= 0 && file >= 0);
	uint64_t blocks = file_size(&d->place, "x") / 4096;
	off_t *block = calloc(blocks, sizeof(*block));
	assert_non_null(block);
	for (uint64_t i = 0; i < blocks; i++)
		block[i] = place_of(file, i * 4096);
	/* The long part first: whoever flushes meanwhile gets the blocks back as long as there is space. */
	fill_up(&d->beneath, "filler");
	for (uint64_t i = 0; i < blocks; i++)
		assert_int_equal(fallocate(image, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block[i], 4096), 0);
	fill_up(&d->beneath, "filler");
	free(block);
	assert_int_equal(close(image), 0);
	assert_int_equal(close(file), 0);
}

void mend_disk(struct disk *d)
{
	assert_int_equal(unlink(path_in(&d->beneath, "filler")), 0);
}

void close_disk(struct disk *d)
{
	must(ffi_volume_close(d->place.volume));
	assert_int_equal(umount(d->place.dir), 0);
	assert_int_equal(umount(d->beneath.dir), 0);
	assert_int_equal(rmdir(d->place.dir) | rmdir(d->beneath.dir), 0);
}

static int as_it_is(struct file *file, const struct dirt *doubt, struct pmemset_error *e)
{
	(void)file;
	(void)doubt;
	(void)e;
	return 0;
}

void forget_failure(const struct place *p, const char *name)
{
	struct file *file;
	struct failure failure;
	struct dirt doubt;
	must(file_open(open(path_in(p, name), O_RDWR | O_CLOEXEC), &file, &err));
	assert_true(file_failure(file, &failure, &doubt));
	must(file_recover(file, failure.id, as_it_is, &err));
	file_release(file);
}

static off_t place_on(const struct disk *d, uint64_t offset)
{
	int file = open(path_in(&d->place, "x"), O_RDONLY | O_CLOEXEC);
	assert_true(file >= 0);
	off_t place = place_of(file, offset);
	assert_int_equal(close(file), 0);
	return place;
}

void read_disk(const struct disk *d, uint64_t offset, void *buf, size_t size)
{
	int image = open(path_in(&d->beneath, "image"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(pread(image, buf, size, place_on(d, offset)), size);
	assert_int_equal(close(image), 0);
}

void write_disk(const struct disk *d, uint64_t offset, const void *buf, size_t size)
{
	int image = open(path_in(&d->beneath, "image"), O_WRONLY | O_CLOEXEC);
	assert_int_equal(pwrite(image, buf, size, place_on(d, offset)), size);
	assert_int_equal(close(image), 0);
}

/* ---- the engine's face ---- */

void must_be(int64_t got, int64_t wanted, const char *what, const char *file, int line)
{
	if (got == wanted)
		return;
	print_error("%s:%d: %s: %" PRId64 ", not %" PRId64 " (last error: %d, reason %u, %s)\n", file, line, what, got, wanted, err.code,
			err.reason, err.message);
	fail();
}

uint64_t new_set(uint32_t coalescing, uint64_t window_size)
{
	const struct ffi_set_spec spec = {.window_size = window_size,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET,
			.coalescing = coalescing};
	uint64_t set;
	must(ffi_set_new(&spec, &set, &err));
	assert_true(set != 0);
	return set;
}

void delete_set(uint64_t set)
{
	must(ffi_set_delete(set, &err));
}

int map(uint64_t set, const struct place *p, const char *name, struct ffi_part_spec spec, struct ffi_part *part)
{
	static uint64_t cookie = 1000;
	spec.volume = p->volume;
	if (spec.cookie == 0)
		spec.cookie = ++cookie;
	return ffi_part_map(set, &spec, name, (uint32_t)strlen(name), part, &err);
}

struct ffi_part must_map(uint64_t set, const struct place *p, const char *name, struct ffi_part_spec spec)
{
	struct ffi_part part = {0};
	must(map(set, p, name, spec, &part));
	return part;
}

struct ffi_set_info info_of(uint64_t set)
{
	struct ffi_set_info info;
	must(ffi_set_info(set, &info));
	return info;
}

int remove_range(uint64_t set, uint64_t addr, uint64_t length)
{
	struct ffi_removal removal = {0};
	return ffi_remove(set, addr, length, 0, 0, &removal, NULL, NULL, NULL, &err);
}

/* ---- the world in words ---- */

/* Calls visit for each mapping that touches [lo, hi), in address order. */
static void each_mapping(uint64_t lo, uint64_t hi, void (*visit)(uint64_t from, uint64_t to, const char *line, void *arg), void *arg)
{
	FILE *file = fopen("/proc/self/maps", "re");
	char line[1024];
	assert_non_null(file);
	while (fgets(line, sizeof(line), file) != NULL) {
		char *end;
		uint64_t from = strtoull(line, &end, 16);
		uint64_t to = strtoull(end + 1, &end, 16);
		if (to > lo && from < hi)
			visit(from, to, line, arg);
	}
	(void)fclose(file);
}

static void count_mapping(uint64_t from, uint64_t to, const char *line, void *arg)
{
	(void)from;
	(void)to;
	(void)line;
	++*(uint64_t *)arg;
}

uint64_t arena_mappings(void)
{
	uint64_t n = 0;
	each_mapping(arena()->base, arena()->base + arena()->size, count_mapping, &n);
	return n;
}

struct cover {
	uint64_t reached;
	const char *permissions;
};

static void cover_mapping(uint64_t from, uint64_t to, const char *line, void *arg)
{
	struct cover *cover = arg;
	if (from > cover->reached) {
		print_error("a gap at %#" PRIx64 "; then %s", cover->reached, line);
		fail();
	}
	if (cover->permissions != NULL && strstr(line, cover->permissions) == NULL) {
		print_error("not %s: %s", cover->permissions, line);
		fail();
	}
	cover->reached = to;
}

void covered(uint64_t addr, uint64_t size, const char *permissions)
{
	struct cover cover = {addr, permissions};
	each_mapping(addr, addr + size, cover_mapping, &cover);
	assert_true(cover.reached >= addr + size);
}

unsigned descriptors(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");
	assert_non_null(d);
	for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

static void tell_mapping(uint64_t from, uint64_t to, const char *line, void *arg)
{
	(void)fprintf(arg, "%" PRIx64 "-%" PRIx64 "%.21s\n", from, to, strchr(line, ' '));
}

static void tell_file(FILE *out, const char *dir, const char *name)
{
	char path[sizeof(places[0].dir) + 257];
	struct stat st;
	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (lstat(path, &st) != 0)
		return;
	(void)fprintf(out, "%s: inode %ju, mode %o, links %ju, owner %u:%u", name, (uintmax_t)st.st_ino, st.st_mode, (uintmax_t)st.st_nlink,
			st.st_uid, st.st_gid);
	if (S_ISREG(st.st_mode)) {
		uint64_t sum = UINT64_C(14695981039346656037);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		unsigned char buf[65536];
		ssize_t n;
		for (int chunks = 0; chunks < 64 && fd >= 0 && (n = read(fd, buf, sizeof(buf))) > 0; chunks++)
			for (ssize_t i = 0; i < n; i++)
				sum = (sum ^ buf[i]) * UINT64_C(1099511628211);
		if (fd >= 0)
			(void)close(fd);
		(void)fprintf(out, ", size %jd, blocks %jd, sum %" PRIx64, (intmax_t)st.st_size, (intmax_t)st.st_blocks, sum);
	}
	(void)fputc('\n', out);
}

static void tell_files(FILE *out, const char *dir)
{
	struct dirent **entries;
	int n = scandir(dir, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		if (strcmp(entries[i]->d_name, ".") != 0 && strcmp(entries[i]->d_name, "..") != 0)
			tell_file(out, dir, entries[i]->d_name);
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

static void tell_set(FILE *out, uint64_t set)
{
	struct ffi_set_info s = info_of(set);
	(void)fprintf(out,
			"set: %" PRIu64 " maps, %" PRIu64 " parts, %" PRIu64
			" bytes, granularity %u, coalescing %u, degraded %u, at %" PRIx64 ", %" PRIu64 " bytes\n",
			s.map_count, s.part_count, s.mapped_bytes, s.granularity, s.coalescing, s.degraded, s.window_addr, s.window_size);
	struct ffi_span spans[64];
	int64_t n = ffi_parts(set, 0, 0, spans, 64);
	for (int64_t i = 0; i < n; i++)
		(void)fprintf(out, "part %" PRIx64 "+%" PRIx64 " of map %" PRIx64 "+%" PRIx64 " (%" PRIu64 " parts), cookie %" PRIu64 "\n",
				spans[i].addr, spans[i].length, spans[i].map_addr, spans[i].map_size, spans[i].map_parts, spans[i].cookie);
}

char *world(uint64_t set, const struct place *p)
{
	char *text;
	size_t size;
	unsigned open_now = descriptors();
	FILE *out = open_memstream(&text, &size);
	assert_non_null(out);
	(void)fprintf(out, "%u descriptors; %" PRIu64 " mappings counted\n", open_now, mappings_used());
	if (set != 0)
		tell_set(out, set);
	if (p != NULL)
		tell_files(out, p->dir);
	each_mapping(arena()->base, arena()->base + arena()->size, tell_mapping, out);
	(void)fclose(out);
	return text;
}

void same_world(char *before, uint64_t set, const struct place *p)
{
	char *now = world(set, p);
	bool same = strcmp(before, now) == 0;
	if (!same)
		print_error("the world was\n%sand is\n%s", before, now);
	free(now);
	free(before);
	assert_true(same);
}

/* ---- chance ---- */

static uint64_t chance_state;

uint64_t seed_chance(void)
{
	const char *text = getenv("PMEMSET_TEST_SEED");
	struct timespec now;
	(void)clock_gettime(CLOCK_REALTIME, &now);
	chance_state = text ? strtoull(text, NULL, 0) : (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 20;
	print_message("PMEMSET_TEST_SEED=%" PRIu64 "\n", chance_state);
	return chance_state;
}

/* splitmix64: every seed is a good one. */
uint64_t chance(uint64_t below)
{
	uint64_t z = chance_state += UINT64_C(0x9E3779B97F4A7C15);
	z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
	return (z ^ z >> 31) % below;
}

double seconds(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}
