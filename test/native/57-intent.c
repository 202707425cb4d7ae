/* SPDX-License-Identifier: BSD-3-Clause */
/* A file that was made, and never written down: whoever starts the next time takes it back, and nothing else. */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#define INTENT UINT64_C(0x0123456789abcdef)
#define OWN_NAME ".pmemset-0123456789abcdef"
#define CREATED "0123456789abcdef"
#define REPLACES CREATED " replaces"
#define ATTRIBUTE "user.pmemset.intent"

static bool knows_attributes(const struct place *p)
{
	make_file(p, "probe", 0, 0);
	bool knows = setxattr(path_in(p, "probe"), ATTRIBUTE, "x", 1, 0) == 0;
	assert_int_equal(unlink(path_in(p, "probe")), 0);
	if (!knows)
		print_message("%s keeps no attributes of users, so nothing is undone there\n", p->name);
	return knows;
}

static int undo(const struct place *p, const char *path, uint64_t intent)
{
	return ffi_intent_undo(p->volume, path, (uint32_t)strlen(path), intent, &err);
}

static bool is_there(const struct place *p, const char *name)
{
	return access(path_in(p, name), F_OK) == 0;
}

static void carries(const struct place *p, const char *name, const char *wanted)
{
	char text[64] = "";
	ssize_t n = getxattr(path_in(p, name), ATTRIBUTE, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	assert_string_equal(text, wanted);
}

static void give(const struct place *p, const char *name, const char *text)
{
	assert_int_equal(setxattr(path_in(p, name), ATTRIBUTE, text, strlen(text), 0), 0);
}

/* As one that died right behind it would have left it: nobody has it open any more. */
static void make(const struct place *p, const char *path, uint32_t create, uint64_t intent)
{
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	(void)must_map(set, p, path, (struct ffi_part_spec){.length = 2 * PAGE, .create = create, .mode = 0600, .intent = intent});
	delete_set(set);
}

static void created_and_undone(void **state)
{
	struct place *p = here(state);
	bool knows = knows_attributes(p);
	assert_int_equal(mkdir(path_in(p, "d"), 0700), 0);
	const char *const paths[] = {"new", "d/new"};
	for (size_t i = 0; i < 2; i++) {
		make(p, paths[i], FFI_CREATE_IF_NEEDED, INTENT);
		carries(p, paths[i], knows ? CREATED : "");
		must(undo(p, paths[i], INTENT + 1));
		must(undo(p, paths[i], INTENT ^ UINT64_C(0xf00000000000000)));
		assert_true(is_there(p, paths[i]));
		must(undo(p, paths[i], INTENT));
		assert_int_equal(is_there(p, paths[i]), !knows);
		must(undo(p, paths[i], INTENT)); /* again: there is nothing to do */
		(void)unlink(path_in(p, paths[i]));
	}
	/* Without an intent it carries none. */
	make(p, "plain", FFI_CREATE_EXCLUSIVE, 0);
	carries(p, "plain", "");
	/* Nor does one that was there. */
	make_file(p, "old", 2 * PAGE, 1);
	make(p, "old", FFI_CREATE_IF_NEEDED, INTENT);
	carries(p, "old", "");
	char *before = world(0, p);
	must(undo(p, "old", INTENT));
	must(undo(p, "plain", INTENT));
	must(undo(p, "none", INTENT));
	must(undo(p, "none/none", INTENT));
	must(undo(p, "d", INTENT));
	same_world(before, 0, p);
}

static void refusals(void **state)
{
	struct place *p = here(state);
	bool knows = knows_attributes(p);
	make_file(p, "a", PAGE, 1);
	assert_int_equal(symlink("a", path_in(p, "link")), 0);
	if (knows)
		give(p, "a", CREATED);
	char *before = world(0, p);
	const char *const not_allowed[] = {"", "/a", "../a", "./a", OWN_NAME, ".pmemset/a", "a/", "a\x01"};
	for (size_t i = 0; i < sizeof(not_allowed) / sizeof(not_allowed[0]); i++) {
		fails(undo(p, not_allowed[i], INTENT), -EACCES);
		assert_int_equal(err.reason, PMEMSET_REASON_PATH_NOT_ALLOWED);
	}
	fails(undo(p, "a", 0), -EINVAL);
	fails(ffi_intent_undo(~p->volume, "a", 1, INTENT, &err), -EBADF);
	fails(undo(p, "a/b", INTENT), -ENOTDIR);
	must(undo(p, "link", INTENT)); /* what it leads to is not what it names */
	same_world(before, 0, p);
	/* Text that begins like it, or ends like it, is another's. */
	const char *const others[] = {"", "0123456789abcde", CREATED "0", " " CREATED, "0123456789ABCDEF", REPLACES " ",
			CREATED " replace"};
	for (size_t i = 0; knows && i < sizeof(others) / sizeof(others[0]); i++) {
		give(p, "a", others[i]);
		must(undo(p, "a", INTENT));
		assert_true(is_there(p, "a"));
	}
}

/* It is mapped: then somebody has written it down after all. */
static void mapped_it_stays(void **state)
{
	struct place *p = here(state);
	bool knows = knows_attributes(p);
	uint64_t set = new_set(FFI_COALESCING_NONE, 2 * MIB);
	(void)must_map(set, p, "new",
			(struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_EXCLUSIVE, .mode = 0600, .intent = INTENT});
	must_be(undo(p, "new", INTENT), knows ? -EBUSY : 0, "undo", __FILE__, __LINE__);
	assert_true(!knows || err.reason == PMEMSET_REASON_SOURCE_IN_USE);
	assert_true(is_there(p, "new"));
	delete_set(set);
}

static void has_bytes_of(const struct place *p, const char *name, unsigned seed)
{
	unsigned char got;
	read_file(p, name, 5, &got, 1);
	assert_int_equal(got, seed == 0 ? 0 : byte_of(seed, 5));
}

/* In the place of another: over and done, the other is gone, and the new one is all there is. */
static void replaced_and_done(void **state)
{
	struct place *p = here(state);
	bool knows = knows_attributes(p);
	make_file(p, "a", 2 * PAGE, 1);
	make(p, "a", FFI_CREATE_ALWAYS, INTENT);
	carries(p, "a", knows ? REPLACES : "");
	char *before = world(0, p);
	must(undo(p, "a", INTENT));
	same_world(before, 0, p);
	has_bytes_of(p, "a", 0);
}

/* The states that a crash in the middle can leave, made by hand. */
static void replaced_half_way(void **state)
{
	struct place *p = here(state);
	if (!knows_attributes(p))
		skip();
	/* Before the exchange: ours is the new one. */
	make_file(p, "a", 2 * PAGE, 1);
	char *before = world(0, p);
	make_file(p, OWN_NAME, 2 * PAGE, 2);
	give(p, OWN_NAME, REPLACES);
	must(undo(p, "a", INTENT));
	same_world(before, 0, p);
	/* Behind it: ours is the old one. */
	before = world(0, p);
	assert_int_equal(rename(path_in(p, "a"), path_in(p, OWN_NAME)), 0);
	make_file(p, "a", 2 * PAGE, 2);
	give(p, "a", REPLACES);
	must(undo(p, "a", INTENT));
	same_world(before, 0, p);
	/* One that was made with a name from the beginning, and has two for a moment. */
	assert_int_equal(unlink(path_in(p, "a")), 0);
	make_file(p, OWN_NAME, PAGE, 2);
	give(p, OWN_NAME, CREATED);
	assert_int_equal(link(path_in(p, OWN_NAME), path_in(p, "a")), 0);
	must(undo(p, "a", INTENT));
	assert_false(is_there(p, "a") || is_there(p, OWN_NAME));
	/* Of another number, or of nobody: left alone. */
	make_file(p, "a", PAGE, 1);
	make_file(p, OWN_NAME, PAGE, 2);
	make_file(p, ".pmemset-0123456789abcdee", PAGE, 3);
	give(p, ".pmemset-0123456789abcdee", "0123456789abcdee");
	before = world(0, p);
	must(undo(p, "a", INTENT));
	same_world(before, 0, p);
	assert_int_equal(unlink(path_in(p, OWN_NAME)) | unlink(path_in(p, ".pmemset-0123456789abcdee")), 0);
}

/* What fails leaves nothing that could be undone. */
static void failures_leave_nothing(void **state)
{
	struct place *p = here(state);
	const struct ffi_set_spec finer = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_CACHE_LINE,
			.granularity = FFI_GRANULARITY_UNSET};
	uint64_t set;
	struct ffi_part part;
	make_file(p, "a", PAGE, 1);
	must(ffi_set_new(&finer, &set, &err));
	char *before = world(set, p);
	fails(map(set, p, "new", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_EXCLUSIVE, .intent = INTENT}, &part),
			PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	fails(map(set, p, "a", (struct ffi_part_spec){.length = PAGE, .create = FFI_CREATE_ALWAYS, .intent = INTENT}, &part),
			PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	same_world(before, set, p);
	delete_set(set);
}

/* ---- a process that dies at each of its calls in turn ---- */

/* How it is to be: of a file system that knows no files without a name, and none that exchanges names. */
enum { NO_UNNAMED = 1, NO_EXCHANGE = 2, WAYS = 4 };
#define DIED 42

static int64_t calls_left = -1; /* until it dies; negative: it does not */
static unsigned way;

static void count_call(void)
{
	if (calls_left >= 0 && calls_left-- == 0)
		_exit(DIED);
}

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
#define WRAP(name, parameters, arguments) \
	int __real_##name parameters; \
	int __wrap_##name parameters; \
	int __wrap_##name parameters \
	{ \
		count_call(); \
		return __real_##name arguments; \
	}
WRAP(fsync, (int fd), (fd))
WRAP(fdatasync, (int fd), (fd))
WRAP(fallocate, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size))
WRAP(renameat, (int from, const char *old, int to, const char *name), (from, old, to, name))
WRAP(linkat, (int from, const char *old, int to, const char *name, int flags), (from, old, to, name, flags))
WRAP(unlinkat, (int dir, const char *name, int flags), (dir, name, flags))
WRAP(fsetxattr, (int fd, const char *name, const void *value, size_t size, int flags), (fd, name, value, size, flags))
WRAP(fchown, (int fd, uid_t uid, gid_t gid), (fd, uid, gid))

int __real_openat(int dir, const char *path, int flags, mode_t mode);
int __wrap_openat(int dir, const char *path, int flags, mode_t mode);
int __real_renameat2(int from, const char *old, int to, const char *name, unsigned flags);
int __wrap_renameat2(int from, const char *old, int to, const char *name, unsigned flags);

int __wrap_openat(int dir, const char *path, int flags, mode_t mode)
{
	count_call();
	if ((way & NO_UNNAMED) && (flags & O_TMPFILE) == O_TMPFILE) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return __real_openat(dir, path, flags, mode);
}

int __wrap_renameat2(int from, const char *old, int to, const char *name, unsigned flags)
{
	count_call();
	if ((way & NO_EXCHANGE) && flags != 0) {
		errno = EINVAL;
		return -1;
	}
	return __real_renameat2(from, old, to, name, flags);
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* arguments: directory, mode of creation, way, calls until it dies. The engine is this process's own. */
static int die(char **arguments)
{
	struct ffi_engine_spec engine = {.simulate = FFI_GRANULARITY_UNSET};
	const struct ffi_set_spec empty = {.window_size = 2 * MIB,
			.required_granularity = FFI_GRANULARITY_PAGE,
			.granularity = FFI_GRANULARITY_UNSET};
	struct ffi_part_spec spec = {.length = 2 * PAGE, .cookie = 1, .mode = 0600, .intent = INTENT};
	struct ffi_part part;
	uint64_t set;
	const char *arena_text = getenv("PMEMSET_TEST_ARENA");
	if (arena_text != NULL) {
		char *end;
		engine.arena_base = strtoull(arena_text, &end, 0);
		engine.arena_size = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
	}
	if (ffi_engine_start(&engine, &err) != 0 || ffi_volume_open(arguments[0], &spec.volume, &err) != 0 ||
			ffi_set_new(&empty, &set, &err) != 0)
		return 1;
	spec.create = (uint32_t)strtoul(arguments[1], NULL, 10);
	way = (unsigned)strtoul(arguments[2], NULL, 10);
	calls_left = strtoll(arguments[3], NULL, 10);
	int rc = ffi_part_map(set, &spec, "a", 1, &part, &err);
	/* It lives on, but is killed before it could write down what it has made. */
	_exit(rc == 0 ? 0 : 2);
}

/* How it ended. */
static int run(const struct place *p, uint32_t create, unsigned in_which_way, unsigned calls)
{
	char texts[3][16];
	(void)snprintf(texts[0], sizeof(texts[0]), "%u", create);
	(void)snprintf(texts[1], sizeof(texts[1]), "%u", in_which_way);
	(void)snprintf(texts[2], sizeof(texts[2]), "%u", calls);
	char *const argv[] = {"/proc/self/exe", "die", (char *)p->dir, texts[0], texts[1], texts[2], NULL};
	pid_t child;
	int status = -1;
	assert_int_equal(posix_spawn(&child, argv[0], NULL, NULL, argv, environ), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == DIED));
	return WEXITSTATUS(status);
}

/* Every time it is as if nothing had been; but a file that was replaced, for good, by one that is whole. */
static void dies_at_each_call(const struct place *p, uint32_t create, unsigned in_which_way)
{
	bool replaces = create == FFI_CREATE_ALWAYS;
	unsigned stayed = 0;
	unsigned calls = 0;
	int how;
	do {
		(void)unlink(path_in(p, "a"));
		if (replaces)
			make_file(p, "a", 5 * PAGE, 1);
		char *before = world(0, p);
		how = run(p, create, in_which_way, calls++);
		must(undo(p, "a", INTENT));
		assert_false(is_there(p, OWN_NAME));
		if (replaces && file_size(p, "a") == 2 * PAGE) {
			has_bytes_of(p, "a", 0);
			carries(p, "a", REPLACES);
			stayed++;
			free(before);
		} else {
			same_world(before, 0, p);
			/* Once the old one is gone, it does not come back. */
			assert_int_equal(stayed, 0);
		}
	} while (how == DIED);
	print_message("%u calls, after %u of which the new file stays\n", calls - 1, stayed);
	assert_true(calls > 5 && (stayed > 0) == replaces);
}

static void dies_while_it_creates(void **state)
{
	struct place *p = here(state);
	no_valgrind("does not follow the program to its children");
	if (!knows_attributes(p))
		skip();
	for (unsigned w = 0; w < WAYS; w++)
		dies_at_each_call(p, FFI_CREATE_IF_NEEDED, w);
}

static void dies_while_it_replaces(void **state)
{
	struct place *p = here(state);
	no_valgrind("does not follow the program to its children");
	if (!knows_attributes(p))
		skip();
	for (unsigned w = 0; w < WAYS; w++)
		dies_at_each_call(p, FFI_CREATE_ALWAYS, w);
}

int main(int argc, char **argv)
{
	if (argc == 6 && strcmp(argv[1], "die") == 0)
		return die(&argv[2]);
	const struct CMUnitTest tests[] = {
			ON_EACH(created_and_undone),
			ON_EACH(refusals),
			ON_EACH(mapped_it_stays),
			ON_EACH(replaced_and_done),
			ON_EACH(replaced_half_way),
			ON_EACH(failures_leave_nothing),
			ON_EACH(dies_while_it_creates),
			ON_EACH(dies_while_it_replaces),
	};
	return RUN("intent", tests, FFI_GRANULARITY_UNSET);
}
