/* SPDX-License-Identifier: BSD-3-Clause */
/* libpmemset.h, function by function, with each error that it names. */
#include "scene.h"

#include "error.h"

#include <errno.h>
#include <fcntl.h>
#include <libpmem2.h>
#include <libpmemset.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- with less to write ---- */

struct seen {
	struct pmemset_event_context events[64];
	unsigned count;
	void (*then)(struct pmemset *set, struct pmemset_event_context *event);
};

static int see(struct pmemset *set, struct pmemset_event_context *event, void *arg)
{
	struct seen *seen = arg;
	assert_true(seen->count < 64);
	seen->events[seen->count++] = *event;
	if (seen->then != NULL)
		seen->then(set, event);
	return -1; /* of no effect */
}

static struct pmemset *set_of(enum pmem2_granularity required, struct pmem2_vm_reservation *rsv, struct seen *seen)
{
	struct pmemset_config *cfg;
	struct pmemset *set;
	must(pmemset_config_new(&cfg));
	must(pmemset_config_set_required_store_granularity(cfg, required));
	must(pmemset_config_set_reservation(cfg, rsv));
	if (seen != NULL)
		must(pmemset_config_set_event_callback(cfg, see, seen));
	must(pmemset_new(&set, cfg));
	must(pmemset_config_delete(&cfg));
	assert_null(cfg);
	return set;
}

static struct pmemset *a_set(void)
{
	return set_of(PMEM2_GRANULARITY_PAGE, NULL, NULL);
}

static struct pmemset_source *source_of(const struct place *p, const char *name)
{
	struct pmemset_source *src;
	must(pmemset_source_from_file(&src, path_in(p, name)));
	return src;
}

static int map_range(struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length, struct pmemset_part_descriptor *desc)
{
	struct pmemset_map_config *mcfg;
	must(pmemset_map_config_new(&mcfg));
	must(pmemset_map_config_set_offset(mcfg, offset));
	pmemset_map_config_set_length(mcfg, length);
	int rc = pmemset_map(set, src, mcfg, desc);
	must(pmemset_map_config_delete(&mcfg));
	return rc;
}

static struct pmemset_part_descriptor mapped(struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length)
{
	struct pmemset_part_descriptor desc;
	must(map_range(set, src, offset, length, &desc));
	return desc;
}

static uint64_t number(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* How many part maps there are; each is visited in order. */
static unsigned maps_of(struct pmemset *set)
{
	struct pmemset_part_map *cur;
	unsigned n = 0;
	uint64_t end = 0;
	pmemset_first_part_map(set, &cur);
	while (cur != NULL) {
		struct pmemset_part_map *next;
		struct pmemset_part_descriptor d = pmemset_descriptor_part_map(cur);
		assert_true(number(d.addr) >= end);
		end = number(d.addr) + d.size;
		pmemset_next_part_map(set, cur, &next);
		pmemset_part_map_drop(&cur);
		assert_null(cur);
		cur = next;
		n++;
	}
	return n;
}

static bool says(const char *text)
{
	if (strstr(pmemset_errormsg(), text) != NULL)
		return true;
	print_error("pmemset_errormsg says: %s\n", pmemset_errormsg());
	return false;
}

/* ---- codes and errors ---- */

/* The header says of each code what the table says, and both have the same ones. */
static void codes(void **state)
{
	(void)state;
	FILE *header = fopen(PMEMSET_HEADER, "re");
	char line[512];
	unsigned found = 0;
	assert_non_null(header);
	while (fgets(line, sizeof(line), header) != NULL) {
		char name[80];
		char text[200];
		int number_of;
		if (sscanf(line, "#define PMEMSET_E_%79s (%d) /* %199[^*]", name, &number_of, text) != 3)
			continue;
		int32_t code;
		const char *row_name;
		const char *row_text;
		must(error_row(found++, &code, &row_name, &row_text));
		text[strlen(text) - 1] = '\0'; /* the blank before the end of the comment */
		assert_string_equal(name, row_name + strlen("PMEMSET_E_"));
		assert_string_equal(text, row_text);
		assert_int_equal(number_of, code);
	}
	(void)fclose(header);
	assert_int_equal(found, 38);
	int32_t next;
	const char *name;
	const char *text;
	must(error_row(found, &next, &name, &text));
	assert_int_equal(next, PMEM2_E_UNKNOWN);
	assert_int_equal(PMEMSET_E_INVALID_FILE_PATH, -200003);
	assert_int_equal(sizeof(((struct pmemset_event_context *)0)->data), PMEMSET_EVENT_CONTEXT_SIZE);
}

static void *other_thread(void *arg)
{
	struct pmemset_source *src;
	assert_string_equal(pmemset_errormsg(), "");
	fails(pmemset_source_from_file(&src, NULL), PMEMSET_E_INVALID_FILE_PATH);
	assert_true(says("no path"));
	return arg;
}

static void messages(void **state)
{
	struct place *p = here(state);
	struct pmemset_source *src;
	pthread_t thread;
	fails(pmemset_source_from_file(&src, path_in(p, "missing")), PMEMSET_E_INVALID_FILE_PATH);
	assert_true(says("/missing"));
	must(pthread_create(&thread, NULL, other_thread, NULL));
	must(pthread_join(thread, NULL));
	assert_true(says("/missing"));

	int before = dup(2);
	int file = open(path_in(p, "stderr"), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	assert_true(before >= 0 && file >= 0 && dup2(file, 2) == 2);
	pmemset_perror("source %d", 7);
	assert_int_equal(dup2(before, 2), 2);
	must(close(before) | close(file));
	char text[512] = {0};
	read_file(p, "stderr", 0, text, file_size(p, "stderr"));
	assert_int_equal(strncmp(text, "source 7: ", 10), 0);
	assert_int_equal(text[strlen(text) - 1], '\n');
	assert_non_null(strstr(text, pmemset_errormsg()));

	assert_int_equal(pmemset_err_to_errno(0), 0);
	assert_int_equal(pmemset_err_to_errno(-ENOSPC), ENOSPC);
	assert_int_equal(pmemset_err_to_errno(PMEMSET_E_NOSUPP), ENOTSUP);
	assert_int_equal(pmemset_err_to_errno(PMEM2_E_NOSUPP), ENOTSUP);
	assert_int_equal(pmemset_err_to_errno(PMEMSET_E_IO_FAIL), EINVAL);
	assert_int_equal(pmemset_err_to_errno(PMEM2_E_MAP_RANGE), EINVAL);
	assert_int_equal(pmemset_err_to_errno(INT32_MIN), EINVAL);
	assert_int_equal(pmemset_err_to_errno(7), EINVAL);
}

/* Declared, and honest about it. */
static void what_is_not_there(void **state)
{
	struct place *p = here(state);
	struct pmemset_config *cfg;
	make_file(p, "a", PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset_sds sds = PMEMSET_SDS_INITIALIZE();
	enum pmemset_part_state part_state;
	struct pmemset_badblock bb = {0, PAGE};
	struct pmemset_part *part;
	struct pmemset *set = a_set();
	must(pmemset_config_new(&cfg));
	fails(pmemset_config_set_create_if_none(cfg, 1), PMEMSET_E_NOSUPP);
	fails(pmemset_config_set_create_if_invalid(cfg, 1), PMEMSET_E_NOSUPP);
	fails(pmemset_config_set_layout_name(cfg, "x"), PMEMSET_E_NOSUPP);
	fails(pmemset_config_set_version(cfg, 1, 0), PMEMSET_E_NOSUPP);
	fails(pmemset_config_set_acceptable_states(cfg, PMEMSET_PART_STATE_OK), PMEMSET_E_NOSUPP);
	fails(pmemset_header_init(NULL, "x", 1, 0), PMEMSET_E_NOSUPP);
	fails(pmemset_source_set_sds(src, &sds, &part_state), PMEMSET_E_NOSUPP);
	fails(pmemset_badblock_clear(&bb, src), PMEMSET_E_NOSUPP);
	pmemset_source_set_badblock_detection(src, true);
	must(pmemset_part_new(&part, set, src, 0, 0));
	fails(pmemset_remove_part(set, &part), PMEMSET_E_NOSUPP);
	assert_true(says("not implemented"));
	assert_non_null(part);
	must(pmemset_part_delete(&part));
	must(pmemset_config_delete(&cfg));
	must(pmemset_source_delete(&src));
	must(pmemset_delete(&set));
}

/* ---- configs and sets ---- */

static void configs_and_sets(void **state)
{
	(void)state;
	struct pmemset_config *cfg;
	struct pmemset_map_config *mcfg;
	struct pmemset *set = (struct pmemset *)state;
	enum pmem2_granularity g;
	must(pmemset_config_new(&cfg));
	fails(pmemset_new(&set, cfg), PMEMSET_E_GRANULARITY_NOT_SET);
	assert_null(set);
	fails(pmemset_config_set_required_store_granularity(cfg, (enum pmem2_granularity)3), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	fails(pmemset_new(&set, cfg), PMEMSET_E_GRANULARITY_NOT_SET);
	must(pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_BYTE));
	must(pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE));
	must(pmemset_new(&set, cfg));
	must(pmemset_config_delete(&cfg));
	must(pmemset_config_delete(&cfg)); /* of nothing */
	fails(pmemset_get_store_granularity(set, &g), PMEMSET_E_NO_PART_MAPPED);
	fails(pmemset_set_part_coalescing(set, (enum pmemset_coalescing)3), PMEMSET_E_INVALID_COALESCING_VALUE);
	must(pmemset_set_part_coalescing(set, PMEMSET_COALESCING_OPPORTUNISTIC));
	must(pmemset_set_contiguous_part_coalescing(set, true));
	must(pmemset_delete(&set));
	assert_null(set);
	must(pmemset_delete(&set));

	must(pmemset_map_config_new(&mcfg));
	fails(pmemset_map_config_set_offset(mcfg, (size_t)INT64_MAX + 1), PMEMSET_E_OFFSET_OUT_OF_RANGE);
	must(pmemset_map_config_delete(&mcfg));
	assert_null(mcfg);
	must(pmemset_map_config_delete(&mcfg));

	/* There is a window for one more, whoever has how many. */
	struct pmemset *many[100];
	for (int i = 0; i < 100; i++)
		many[i] = a_set();
	for (int i = 0; i < 100; i++)
		must(pmemset_delete(&many[i]));
}

/* ---- sources ---- */

static void sources_from_files(void **state)
{
	struct place *p = here(state);
	struct pmemset_source *src;
	size_t alignment = 0;
	make_file(p, "a", PAGE, 1);
	fails(pmemset_source_from_file(&src, NULL), PMEMSET_E_INVALID_FILE_PATH);
	assert_null(src);
	fails(pmemset_source_from_file(&src, path_in(p, "missing")), PMEMSET_E_INVALID_FILE_PATH);
	fails(pmemset_source_from_file(&src, path_in(p, "a/b")), -ENOTDIR);
	fails(pmemset_source_from_file(&src, p->dir), -EISDIR);
	must(mkfifo(path_in(p, "fifo"), 0600));
	fails(pmemset_source_from_file(&src, path_in(p, "fifo")), PMEMSET_E_INVALID_PMEM2_SOURCE);
	assert_true(says("PMEM2_E_INVALID_FILE_TYPE"));
	fails(pmemset_source_from_file(&src, "/dev/null"), PMEMSET_E_INVALID_PMEM2_SOURCE);
	must(pmemset_source_from_file(&src, path_in(p, "a")));
	must(pmemset_source_alignment(src, &alignment));
	assert_int_equal(alignment, PAGE);
	must(pmemset_source_delete(&src));
	assert_null(src);
	must(pmemset_source_delete(&src));

	fails(pmemset_source_from_temporary(&src, NULL), PMEMSET_E_INVALID_SOURCE_PATH);
	fails(pmemset_source_from_temporary(&src, path_in(p, "missing")), PMEMSET_E_INVALID_SOURCE_PATH);
	fails(pmemset_source_from_temporary(&src, path_in(p, "a")), -ENOTDIR);
	fails(pmemset_source_from_temporary(&src, "/proc"), PMEMSET_E_CANNOT_CREATE_TEMP_FILE);
	must(pmemset_source_from_temporary(&src, p->dir));
	must(pmemset_source_delete(&src));
}

static mode_t mode_of(const struct place *p, const char *name)
{
	struct stat st;
	must(stat(path_in(p, name), &st));
	return st.st_mode & 07777;
}

static void sources_that_are_created(void **state)
{
	struct place *p = here(state);
	struct pmemset_source *src;
	struct pmemset_source *second;
	const char *path = path_in(p, "new");
	mode_t mask = umask(022);
	fails(pmemset_xsource_from_file(&src, NULL, UINT64_MAX), PMEMSET_E_INVALID_SOURCE_PATH);
	fails(pmemset_xsource_from_file(&src, path, 16), PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS);
	fails(pmemset_xsource_from_file(&src, path, PMEMSET_SOURCE_FILE_CREATE_MODE(01000)), PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS);
	fails(pmemset_xsource_from_file(&src, path, 0), PMEMSET_E_INVALID_SOURCE_PATH);
	fails(pmemset_xsource_from_file(&src, path, PMEMSET_SOURCE_FILE_DO_NOT_GROW), PMEMSET_E_INVALID_SOURCE_PATH);
	fails(pmemset_xsource_from_file(&src, path_in(p, "no/new"), PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED), PMEMSET_E_INVALID_SOURCE_PATH);
	fails(pmemset_xsource_from_file(&src, p->dir, PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED), -EISDIR);

	must(pmemset_xsource_from_file(&src, path, PMEMSET_SOURCE_FILE_CREATE_EXCLUSIVE));
	assert_int_equal(mode_of(p, "new"), 0644);
	assert_int_equal(file_size(p, "new"), 0);
	fails(pmemset_xsource_from_file(&second, path, PMEMSET_SOURCE_FILE_CREATE_EXCLUSIVE), -EEXIST);
	must(pmemset_xsource_from_file(&second, path, PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED));
	must(pmemset_source_delete(&second));
	fails(pmemset_xsource_from_file(&second, path, PMEMSET_SOURCE_FILE_CREATE_ALWAYS), -EBUSY);
	assert_null(second);
	must(pmemset_source_delete(&src));

	make_file(p, "old", 3 * PAGE, 1);
	must(pmemset_xsource_from_file(&src, path_in(p, "old"),
			PMEMSET_SOURCE_FILE_CREATE_ALWAYS_MODE(PMEMSET_SOURCE_FILE_RWU_MODE) | PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED));
	assert_int_equal(file_size(p, "old"), 0);
	assert_int_equal(mode_of(p, "old"), 0644); /* of the file that was there */
	must(pmemset_source_delete(&src));
	must(pmemset_xsource_from_file(&src, path_in(p, "mine"),
			PMEMSET_SOURCE_FILE_CREATE_ALWAYS_MODE(PMEMSET_SOURCE_FILE_RWU_MODE | PMEMSET_SOURCE_FILE_RWG_MODE)));
	assert_int_equal(mode_of(p, "mine"), 0640); /* less the umask */
	must(pmemset_source_delete(&src));
	(void)umask(mask);
}

static void sources_from_descriptors(void **state)
{
	struct place *p = here(state);
	struct pmemset_source *src;
	struct pmem2_source *pmem2;
	make_file(p, "a", 2 * PAGE, 1);
	fails(pmemset_source_from_fd(&src, -1, 0), PMEMSET_E_INVALID_PMEM2_SOURCE);
	assert_true(says("PMEM2_E_INVALID_FILE_HANDLE"));
	int reads = open(path_in(p, "a"), O_RDONLY | O_CLOEXEC);
	int dir = open(p->dir, O_RDONLY | O_CLOEXEC);
	int fd = open(path_in(p, "a"), O_RDWR | O_CLOEXEC);
	fails(pmemset_source_from_fd(&src, reads, 0), PMEMSET_E_INVALID_PMEM2_SOURCE); /* it is no way to be allowed more */
	fails(pmemset_source_from_fd(&src, dir, 0), PMEMSET_E_INVALID_PMEM2_SOURCE);
	fails(pmemset_source_from_fd(&src, fd, PMEMSET_SOURCE_FILE_CREATE_ALWAYS), PMEMSET_E_INVALID_SOURCE_FILE_CREATE_FLAGS);
	assert_null(src);
	must(pmemset_source_from_fd(&src, fd, 0));
	struct pmemset *set = a_set();
	assert_int_equal(mapped(set, src, 0, 4 * PAGE).size, 4 * PAGE);
	assert_int_equal(file_size(p, "a"), 4 * PAGE);
	must(pmemset_source_delete(&src));
	must(pmemset_source_from_fd(&src, fd, PMEMSET_SOURCE_FILE_DO_NOT_GROW));
	fails(map_range(set, src, 0, 5 * PAGE, NULL), PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL);
	must(pmemset_source_delete(&src));

	fails(pmemset_source_from_pmem2(&src, NULL), PMEMSET_E_INVALID_PMEM2_SOURCE);
	must(pmem2_source_from_anon(&pmem2, PAGE));
	fails(pmemset_source_from_pmem2(&src, pmem2), PMEM2_E_FILE_DESCRIPTOR_NOT_SET);
	assert_true(pmemset_errormsg()[0] != '\0');
	must(pmem2_source_delete(&pmem2));
	must(pmem2_source_from_fd(&pmem2, fd));
	must(pmemset_source_from_pmem2(&src, pmem2));
	fails(map_range(set, src, 0, 5 * PAGE, NULL), PMEMSET_E_INVALID_PMEM2_MAP);
	assert_true(says("PMEM2_E_MAP_RANGE"));
	struct pmemset_part_descriptor d = mapped(set, src, PAGE, PAGE);
	must(pmemset_source_delete(&src));
	must(pmem2_source_delete(&pmem2));
	must(close(reads) | close(dir) | close(fd));
	assert_int_equal(*(unsigned char *)d.addr, byte_of(1, PAGE)); /* what is mapped needs none of them */
	must(pmemset_delete(&set));
}

static void bytes_without_a_mapping(void **state)
{
	struct place *p = here(state);
	char bytes[8] = "abcdefgh";
	make_file(p, "a", 3 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	must(pmemset_set_contiguous_part_coalescing(set, true));
	(void)mapped(set, src, 0, PAGE);
	struct pmemset_part_descriptor d = mapped(set, src, 2 * PAGE, PAGE);
	assert_int_equal(d.size, 2 * PAGE);

	must(pmemset_source_pwrite_mcsafe(src, bytes, 8, 3 * PAGE - 8));
	must(pmemset_source_pread_mcsafe(src, bytes, 0, 3 * PAGE));
	fails(pmemset_source_pwrite_mcsafe(src, bytes, 8, 3 * PAGE - 7), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_source_pread_mcsafe(src, bytes, 8, 3 * PAGE + 1), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_source_pread_mcsafe(src, bytes, SIZE_MAX, 1), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	assert_int_equal(file_size(p, "a"), 3 * PAGE);
	memset(bytes, 0, 8);
	must(pmemset_part_pread_mcsafe(&d, bytes, 8, 2 * PAGE - 8));
	assert_memory_equal(bytes, "abcdefgh", 8);
	/* Over the seam: the last bytes of one part, the first of the other, which are not neighbours in the file. */
	must(pmemset_part_pwrite_mcsafe(&d, "ABCDEFGH", 8, PAGE - 4));
	assert_memory_equal((char *)d.addr + PAGE - 4, "ABCDEFGH", 8);
	read_file(p, "a", 2 * PAGE, bytes, 4);
	assert_memory_equal(bytes, "EFGH", 4);
	must(pmemset_part_pread_mcsafe(&d, bytes, 0, 2 * PAGE));
	fails(pmemset_part_pread_mcsafe(&d, bytes, 1, 2 * PAGE), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_part_pwrite_mcsafe(&d, bytes, SIZE_MAX, 1), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	/* What is described may have changed since. */
	must(pmemset_remove_range(set, (char *)d.addr + PAGE, 1));
	fails(pmemset_part_pread_mcsafe(&d, bytes, 8, PAGE), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	must(pmemset_delete(&set));
	fails(pmemset_part_pread_mcsafe(&d, bytes, 8, 0), PMEMSET_E_CANNOT_FIND_PART_MAP);
	must(truncate(path_in(p, "a"), (off_t)PAGE));
	fails(pmemset_source_pread_mcsafe(src, bytes, 8, 2 * PAGE), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	must(pmemset_source_delete(&src));
}

/* ---- parts ---- */

static void parts(void **state)
{
	struct place *p = here(state);
	struct pmemset_part *part = (struct pmemset_part *)p;
	struct pmemset_part_descriptor desc = {0};
	struct pmemset_extras extra = {0};
	enum pmem2_granularity g;
	make_file(p, "a", 4 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	fails(pmemset_part_new(&part, set, NULL, 0, 0), PMEMSET_E_INVALID_SOURCE_TYPE);
	assert_null(part);
	must(pmemset_part_new(&part, set, src, SIZE_MAX, SIZE_MAX)); /* nothing is checked before the map */
	fails(pmemset_part_map(&part, NULL, &desc), PMEMSET_E_INVALID_OFFSET_VALUE);
	assert_non_null(part); /* it survives, for another try */
	fails(pmemset_part_map(&part, NULL, &desc), PMEMSET_E_INVALID_OFFSET_VALUE);
	must(pmemset_part_delete(&part));
	assert_null(part);
	must(pmemset_part_delete(&part));

	must(pmemset_part_new(&part, set, src, PAGE, 2 * PAGE));
	must(pmemset_part_map(&part, &extra, &desc));
	assert_null(part);
	assert_int_equal(desc.size, 2 * PAGE);
	assert_int_equal(*(unsigned char *)desc.addr, byte_of(1, PAGE));
	must(pmemset_get_store_granularity(set, &g));
	assert_int_equal(g, PMEM2_GRANULARITY_PAGE);
	must(pmemset_part_new(&part, set, src, 2 * PAGE, 0));
	must(pmemset_part_map(&part, NULL, NULL));
	assert_int_equal(maps_of(set), 2);

	/* The source is deleted, and its file's name is gone: the part that was made keeps the file, and there is no other. */
	must(pmemset_part_new(&part, set, src, 0, 0));
	must(unlink(path_in(p, "a")));
	struct pmemset_part *late;
	fails(pmemset_part_new(&late, set, src, 0, 0), PMEMSET_E_INVALID_FILE_PATH);
	must(pmemset_source_delete(&src));
	must(pmemset_part_map(&part, NULL, &desc));
	assert_int_equal(desc.size, 4 * PAGE);
	must(pmemset_delete(&set));
}

static int map_part(struct pmemset *set, struct pmemset_source *src, size_t offset, size_t length)
{
	struct pmemset_part *part;
	struct pmemset_part_descriptor desc = {set, 7};
	must(pmemset_part_new(&part, set, src, offset, length));
	int rc = pmemset_part_map(&part, NULL, &desc);
	if (rc != 0) {
		assert_non_null(part);
		assert_int_equal(desc.size, 7);
		assert_int_equal(map_range(set, src, offset, length, &desc), rc); /* the other way says the same */
	}
	must(pmemset_part_delete(&part));
	return rc;
}

static void parts_that_fail(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 4 * PAGE, 1);
	make_file(p, "odd", PAGE + 1, 1);
	make_file(p, "empty", 0, 0);
	struct pmemset_source *a = source_of(p, "a");
	struct pmemset_source *odd = source_of(p, "odd");
	struct pmemset_source *empty = source_of(p, "empty");
	struct pmemset_source *still;
	struct pmemset_source *grows;
	must(pmemset_xsource_from_file(&still, path_in(p, "a"), PMEMSET_SOURCE_FILE_DO_NOT_GROW));
	must(pmemset_xsource_from_file(&grows, path_in(p, "a"), 0));
	struct pmemset *set = a_set();
	char *before = world(0, p);
	fails(map_part(set, a, 1, PAGE), PMEMSET_E_INVALID_PMEM2_MAP);
	assert_true(says("PMEM2_E_OFFSET_UNALIGNED"));
	fails(map_part(set, a, 0, PAGE + 1), PMEMSET_E_LENGTH_UNALIGNED);
	fails(map_part(set, odd, 0, 0), PMEMSET_E_LENGTH_UNALIGNED);
	fails(map_part(set, empty, 0, 0), PMEMSET_E_MAP_LENGTH_UNSET);
	fails(map_part(set, a, 4 * PAGE, 0), PMEMSET_E_MAP_LENGTH_UNSET);
	fails(map_part(set, a, PAGE, 4 * PAGE), PMEMSET_E_INVALID_PMEM2_MAP);
	assert_true(says("PMEM2_E_MAP_RANGE"));
	fails(map_part(set, still, PAGE, 4 * PAGE), PMEMSET_E_SOURCE_FILE_IS_TOO_SMALL);
	fails(map_part(set, grows, 0, (size_t)1 << 62), PMEMSET_E_CANNOT_FIT_PART_MAP);
	fails(map_part(set, grows, ((size_t)1 << 62), PAGE), PMEMSET_E_CANNOT_GROW_SOURCE_FILE);
	fails(pmemset_map(set, NULL, NULL, NULL), PMEMSET_E_INVALID_SOURCE_TYPE);
	same_world(before, 0, p);
	enum pmem2_granularity g;
	fails(pmemset_get_store_granularity(set, &g), PMEMSET_E_NO_PART_MAPPED);

	/* A length of 0 is the rest, and grows nothing. */
	struct pmemset_part_descriptor desc;
	must(map_range(set, grows, 3 * PAGE, 0, &desc));
	assert_int_equal(desc.size, PAGE);
	must(pmemset_map(set, grows, NULL, &desc));
	assert_int_equal(desc.size, 4 * PAGE);
	must(map_range(set, grows, 4 * PAGE, 2 * PAGE, &desc));
	assert_int_equal(file_size(p, "a"), 6 * PAGE);
	must(pmemset_delete(&set));

	/* A file on these places is not that fine. */
	set = set_of(PMEM2_GRANULARITY_CACHE_LINE, NULL, NULL);
	fails(map_part(set, a, 0, PAGE), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	assert_true(says("PMEM2_E_GRANULARITY_NOT_SUPPORTED"));
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&a) | pmemset_source_delete(&odd) | pmemset_source_delete(&empty));
	must(pmemset_source_delete(&still) | pmemset_source_delete(&grows));
}

static void forced_granularity(void **state)
{
	struct place *p = here(state);
	enum pmem2_granularity g;
	make_file(p, "a", 4 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = set_of(PMEM2_GRANULARITY_CACHE_LINE, NULL, NULL);
	must(setenv("PMEM2_FORCE_GRANULARITY", "Cache_Line", 1));
	struct pmemset_part_descriptor d = mapped(set, src, 0, 2 * PAGE);
	must(pmemset_get_store_granularity(set, &g));
	assert_int_equal(g, PMEM2_GRANULARITY_CACHE_LINE);
	/* Copies are stores now, in chunks, also where they overlap. */
	must(pmemset_memcpy(set, d.addr, "0123456789", 10, PMEMSET_F_MEM_NONTEMPORAL));
	must(pmemset_memmove(set, (char *)d.addr + 2, d.addr, 10, PMEMSET_F_MEM_NODRAIN));
	must(pmemset_memset(set, (char *)d.addr + 12, '-', 3, 0));
	assert_memory_equal(d.addr, "010123456789---", 15);
	must(pmemset_drain(set));
	must(pmemset_persist(set, d.addr, 15));
	must(pmemset_deep_flush(set, d.addr, 15));
	must(setenv("PMEM2_FORCE_GRANULARITY", "PAGE", 1));
	fails(map_part(set, src, 0, PAGE), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	must(setenv("PMEM2_FORCE_GRANULARITY", "BYTE", 1));
	fails(map_part(set, src, 0, PAGE), PMEMSET_E_GRANULARITY_MISMATCH);
	must(setenv("PMEM2_FORCE_GRANULARITY", "nonsense", 1));
	fails(map_part(set, src, 0, PAGE), PMEMSET_E_GRANULARITY_NOT_SUPPORTED);
	must(unsetenv("PMEM2_FORCE_GRANULARITY"));
	must(truncate(path_in(p, "a"), 0));
	fails(pmemset_memset(set, d.addr, 1, 1, 0), PMEMSET_E_IO_FAIL);
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&src));
}

static void coalescing(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 8 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	must(pmemset_set_contiguous_part_coalescing(set, true));
	struct pmemset_part_descriptor first = mapped(set, src, 0, PAGE);
	struct pmemset_part_descriptor whole = mapped(set, src, 4 * PAGE, 2 * PAGE);
	assert_ptr_equal(whole.addr, first.addr);
	assert_int_equal(whole.size, 3 * PAGE);
	must(pmemset_set_contiguous_part_coalescing(set, false));
	struct pmemset_part_descriptor other = mapped(set, src, 0, PAGE);
	assert_int_equal(other.size, PAGE);
	assert_int_equal(maps_of(set), 2);

	/* A hole that is exactly large enough, and then nothing. */
	must(pmemset_remove_range(set, (char *)whole.addr + PAGE, 2 * PAGE));
	struct pmemset_part_descriptor behind = mapped(set, src, 0, 3 * PAGE);
	must(pmemset_remove_range(set, behind.addr, 1));
	must(pmemset_set_part_coalescing(set, PMEMSET_COALESCING_OPPORTUNISTIC));
	must(pmemset_delete(&set));

	set = a_set();
	must(pmemset_set_part_coalescing(set, PMEMSET_COALESCING_NONE));
	first = mapped(set, src, 0, PAGE);
	struct pmemset_part_descriptor second = mapped(set, src, 0, PAGE);
	assert_ptr_equal(second.addr, (char *)first.addr + PAGE);
	must(pmemset_remove_range(set, second.addr, 1)); /* the first is the previous one again */
	must(pmemset_set_part_coalescing(set, PMEMSET_COALESCING_OPPORTUNISTIC));
	assert_int_equal(mapped(set, src, 0, PAGE).size, 2 * PAGE);
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&src));
}

/* ---- a reservation of the user's ---- */

static void reservations(void **state)
{
	struct place *p = here(state);
	struct pmem2_vm_reservation *rsv;
	make_file(p, "a", 8 * PAGE, 1);
	make_file(p, "big", 4 * MIB, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset_source *big = source_of(p, "big");
	must(pmem2_vm_reservation_new(&rsv, NULL, 6 * PAGE));
	char *base = pmem2_vm_reservation_get_address(rsv);
	struct pmemset *set = set_of(PMEM2_GRANULARITY_PAGE, rsv, NULL);
	struct pmemset_config *cfg;
	struct pmemset *second;
	must(pmemset_config_new(&cfg));
	must(pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE));
	must(pmemset_config_set_reservation(cfg, rsv));
	fails(pmemset_new(&second, cfg), -EBUSY);

	/* First fit, from its start; a hole is filled again. */
	assert_ptr_equal(mapped(set, src, 0, 2 * PAGE).addr, base);
	assert_ptr_equal(mapped(set, src, 2 * PAGE, 2 * PAGE).addr, base + 2 * PAGE);
	assert_ptr_equal(mapped(set, src, 4 * PAGE, 2 * PAGE).addr, base + 4 * PAGE);
	fails(map_range(set, src, 0, PAGE, NULL), PMEMSET_E_CANNOT_FIT_PART_MAP);
	must(pmemset_remove_range(set, base + 2 * PAGE, 1));
	fails(map_range(set, src, 0, 3 * PAGE, NULL), PMEMSET_E_CANNOT_FIT_PART_MAP);
	assert_ptr_equal(mapped(set, src, 6 * PAGE, PAGE).addr, base + 2 * PAGE);
	assert_int_equal(*(unsigned char *)(base + 2 * PAGE), byte_of(1, 6 * PAGE));
	must(pmemset_persist(set, base, 3 * PAGE));
	must(pmemset_set_contiguous_part_coalescing(set, true));
	assert_int_equal(mapped(set, src, 7 * PAGE, PAGE).size, 2 * PAGE);
	fails(map_range(set, src, 0, PAGE, NULL), PMEMSET_E_CANNOT_COALESCE_PARTS);
	must(pmemset_set_part_coalescing(set, PMEMSET_COALESCING_OPPORTUNISTIC));
	fails(map_range(set, src, 0, PAGE, NULL), PMEMSET_E_CANNOT_FIT_PART_MAP);

	/* What faults in there is told of as elsewhere. */
	char byte;
	must(truncate(path_in(p, "a"), 0));
	fails(pmemset_read(set, base + 4 * PAGE, &byte, 1), PMEMSET_E_IO_FAIL);
	must(pmemset_delete(&set));
	covered(number(base), 6 * PAGE, "---p");
	must(pmemset_new(&second, cfg));
	must(pmemset_delete(&second));
	must(pmem2_vm_reservation_delete(&rsv));

	/* All of it is there for large parts, too. */
	must(pmem2_vm_reservation_new(&rsv, NULL, 8 * MIB));
	set = set_of(PMEM2_GRANULARITY_PAGE, rsv, NULL);
	(void)mapped(set, big, PAGE, 4 * MIB - PAGE);
	(void)mapped(set, big, PAGE, 4 * MIB - PAGE);
	(void)mapped(set, big, 0, 2 * PAGE);
	must(pmemset_delete(&set));

	struct pmem2_source *pmem2;
	struct pmem2_config *config;
	struct pmem2_map *map2;
	int fd = open(path_in(p, "big"), O_RDWR | O_CLOEXEC);
	must(pmem2_source_from_fd(&pmem2, fd));
	must(pmem2_config_new(&config));
	must(pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE));
	must(pmem2_config_set_length(config, 2 * MIB));
	must(pmem2_config_set_vm_reservation(config, rsv, 0));
	must(pmem2_map_new(&map2, config, pmem2));
	must(pmemset_config_set_reservation(cfg, rsv));
	fails(pmemset_new(&second, cfg), -EBUSY);
	must(pmem2_map_delete(&map2) | pmem2_config_delete(&config) | pmem2_source_delete(&pmem2) | close(fd));
	must(pmem2_vm_reservation_delete(&rsv));
	must(pmemset_config_delete(&cfg));
	must(pmemset_source_delete(&src) | pmemset_source_delete(&big));
}

/* ---- look-up and removal ---- */

static void look_ups(void **state)
{
	struct place *p = here(state);
	struct pmemset_part_map *map = (struct pmemset_part_map *)p;
	struct pmemset_part_map *next;
	make_file(p, "a", 8 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	pmemset_first_part_map(set, &map);
	assert_null(map);
	pmemset_part_map_drop(&map); /* of nothing */
	map = (struct pmemset_part_map *)p;
	fails(pmemset_part_map_by_address(set, &map, p), PMEMSET_E_CANNOT_FIND_PART_MAP);
	assert_null(map);
	struct pmemset_part_descriptor a = mapped(set, src, 0, PAGE);
	struct pmemset_part_descriptor b = mapped(set, src, 0, 2 * PAGE);
	must(pmemset_part_map_by_address(set, &map, (char *)a.addr + PAGE - 1));
	assert_ptr_equal(pmemset_descriptor_part_map(map).addr, a.addr);
	pmemset_next_part_map(set, map, &next);
	assert_ptr_equal(pmemset_descriptor_part_map(next).addr, b.addr);
	assert_int_equal(pmemset_descriptor_part_map(next).size, 2 * PAGE);
	pmemset_part_map_drop(&map);
	pmemset_next_part_map(set, next, &map);
	assert_null(map);
	pmemset_part_map_drop(&next);
	fails(pmemset_part_map_by_address(set, &map, (char *)b.addr + 2 * PAGE), PMEMSET_E_CANNOT_FIND_PART_MAP);

	/* One that is referred to may grow. */
	must(pmemset_part_map_by_address(set, &map, b.addr));
	must(pmemset_set_contiguous_part_coalescing(set, true));
	(void)mapped(set, src, 0, PAGE);
	assert_int_equal(pmemset_descriptor_part_map(map).size, 3 * PAGE);
	must(pmemset_delete(&set)); /* who refers to it is not asked */
	must(pmemset_source_delete(&src));
}

static void removals(void **state)
{
	struct place *p = here(state);
	struct pmemset_part_map *map = NULL;
	struct pmemset_part_map *again;
	make_file(p, "a", 8 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	struct pmemset *other = a_set();
	struct pmemset_part_descriptor a = mapped(set, src, 0, PAGE);
	struct pmemset_part_descriptor b = mapped(set, src, PAGE, PAGE);
	(void)mapped(other, src, 0, PAGE);
	fails(pmemset_remove_part_map(set, &map), PMEMSET_E_PART_NOT_FOUND);
	must(pmemset_part_map_by_address(set, &map, a.addr));
	fails(pmemset_remove_part_map(other, &map), PMEMSET_E_PART_NOT_FOUND);
	assert_non_null(map);
	must(pmemset_part_map_by_address(set, &again, a.addr));
	fails(pmemset_remove_part_map(set, &map), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
	fails(pmemset_remove_range(set, a.addr, 1), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
	pmemset_part_map_drop(&again);
	fails(pmemset_remove_range(set, a.addr, 2 * PAGE), PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP);
	assert_int_equal(maps_of(set), 2); /* nothing of it was removed */
	memcpy(a.addr, "stored", 6);
	must(pmemset_remove_part_map(set, &map));
	assert_null(map);
	char bytes[6];
	read_file(p, "a", 0, bytes, 6);
	assert_memory_equal(bytes, "stored", 6);
	assert_int_equal(maps_of(set), 1);
	covered(number(a.addr), PAGE, "---p");

	fails(pmemset_remove_range(set, b.addr, 0), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_remove_range(set, b.addr, SIZE_MAX), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_remove_range(set, a.addr, PAGE), PMEMSET_E_CANNOT_FIND_PART_MAP);
	must(pmemset_remove_range(set, a.addr, PAGE + 1));
	assert_int_equal(maps_of(set), 0);

	/* A byte of the middle one of three splits the map in two. */
	must(pmemset_set_contiguous_part_coalescing(set, true));
	for (size_t i = 0; i < 3; i++)
		b = mapped(set, src, i * 2 * PAGE, 2 * PAGE);
	must(pmemset_remove_range(set, (char *)b.addr + 3 * PAGE, 1));
	assert_int_equal(maps_of(set), 2);
	must(pmemset_part_map_by_address(set, &map, (char *)b.addr + 4 * PAGE));
	assert_int_equal(pmemset_descriptor_part_map(map).size, 2 * PAGE);
	must(pmemset_remove_part_map(set, &map));
	must(pmemset_delete(&set));
	must(pmemset_delete(&other));
	must(pmemset_source_delete(&src));
}

/* ---- access ---- */

static void flushes(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", 8 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	fails(pmemset_persist(set, p, 1), PMEMSET_E_NO_PART_MAPPED);
	fails(pmemset_flush(set, p, 1), PMEMSET_E_NO_PART_MAPPED);
	fails(pmemset_drain(set), PMEMSET_E_NO_PART_MAPPED);
	fails(pmemset_deep_flush(set, p, 1), PMEMSET_E_NO_PART_MAPPED);
	fails(pmemset_memset(set, p, 1, 1, 0), PMEMSET_E_NO_PART_MAPPED);
	char *base = mapped(set, src, 0, PAGE).addr;
	for (size_t i = 1; i < 4; i++)
		assert_ptr_equal(mapped(set, src, i * PAGE, PAGE).addr, base + i * PAGE);
	memset(base, 7, 4 * PAGE);
	must(pmemset_persist(set, base + 1, 4 * PAGE - 1)); /* of four maps */
	must(pmemset_flush(set, base + PAGE, PAGE + 1));
	must(pmemset_deep_flush(set, base, 4 * PAGE));
	must(pmemset_persist(set, base, 0));
	must(pmemset_drain(set));
	fails(pmemset_persist(set, base, 4 * PAGE + 1), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_persist(set, base, SIZE_MAX), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	must(pmemset_remove_range(set, base + PAGE, 1));
	fails(pmemset_persist(set, base, 3 * PAGE), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	assert_true(says("hole"));
	fails(pmemset_flush(set, base, PAGE + 1), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_deep_flush(set, base + PAGE, 2), PMEMSET_E_CANNOT_FIND_PART_MAP);
	must(truncate(path_in(p, "a"), (off_t)PAGE));
	fails(pmemset_persist(set, base + 2 * PAGE, 1), PMEMSET_E_IO_FAIL);
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&src));
}

static void copies(void **state)
{
	struct place *p = here(state);
	const size_t size = 3 * MIB;
	make_file(p, "a", 8 * MIB, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	must(pmemset_set_contiguous_part_coalescing(set, true));
	(void)mapped(set, src, 0, MIB + PAGE);
	(void)mapped(set, src, 4 * MIB, MIB);
	struct pmemset_part_descriptor d = mapped(set, src, 6 * MIB, 2 * MIB);
	char *base = d.addr;
	char *model = malloc(d.size);
	assert_non_null(model);
	memcpy(model, base, d.size);
	const struct {
		size_t to, from;
	} moves[] = {{5, 0}, {0, 5}, {MIB, 0}, {0, MIB}, {MIB + 1, 1}, {0, 0}, {MIB - 3, MIB + 9}};
	for (size_t i = 0; i < sizeof(moves) / sizeof(moves[0]); i++) {
		memmove(model + moves[i].to, model + moves[i].from, size);
		if (i % 2)
			must(pmemset_memmove(set, base + moves[i].to, base + moves[i].from, size, 0));
		else
			must(pmemset_memcpy(set, base + moves[i].to, base + moves[i].from, size, PMEMSET_F_MEM_NOFLUSH));
		assert_memory_equal(base, model, d.size);
	}
	memset(model + 100, 0x5A, size);
	must(pmemset_memset(set, base + 100, 0x15A, size, PMEMSET_F_MEM_TEMPORAL | PMEMSET_F_MEM_WB | PMEMSET_F_MEM_WC));
	assert_memory_equal(base, model, d.size);
	must(pmemset_read(set, base + PAGE, model, size));
	assert_memory_equal(base + PAGE, model, size);
	must(pmemset_memcpy(set, base, model, 0, 0));

	fails(pmemset_memcpy(set, base, model, 1, 64), -EINVAL);
	fails(pmemset_memset(set, base, 0, 1, PMEMSET_F_MEM_TEMPORAL | PMEMSET_F_MEM_NONTEMPORAL), -EINVAL);
	fails(pmemset_memmove(set, base + d.size - 1, model, 2, 0), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_memmove(set, base + d.size, model, 1, 0), PMEMSET_E_CANNOT_FIND_PART_MAP);
	if (!under_valgrind()) /* which would tell of it as a mistake */
		fails(pmemset_memcpy(set, base, at(PAGE), 1, 0), -EFAULT);
	fails(pmemset_read(set, base + d.size, model, 1), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(pmemset_read(set, base, model, d.size + 1), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	must(truncate(path_in(p, "a"), (off_t)PAGE));
	fails(pmemset_memcpy(set, base + PAGE, model, 1, 0), PMEMSET_E_IO_FAIL);
	fails(pmemset_memset(set, base + PAGE, 0, 1, 0), PMEMSET_E_IO_FAIL);
	fails(pmemset_read(set, base + MIB, model, 1), PMEMSET_E_IO_FAIL);
	assert_int_equal(file_size(p, "a"), PAGE);
	free(model);
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&src));
}

static void flushes_that_fail(void **state)
{
	struct disk d;
	struct pmemset_part_map *map;
	open_disk(&d, here(state), 16 * PAGE);
	struct pmemset_source *src = source_of(&d.place, "x");
	struct pmemset *set = a_set();
	char *base = mapped(set, src, 0, 4 * PAGE).addr;
	must(pmemset_persist(set, base, PAGE));
	break_disk(&d);
	memset(base, 3, PAGE);
	fails(pmemset_persist(set, base, PAGE), -EIO);
	fails(pmemset_persist(set, base, PAGE), -EIO); /* and not 0, though the kernel would say so */
	fails(pmemset_memset(set, base, 1, 1, 0), -EIO);
	must(pmemset_part_map_by_address(set, &map, base));
	fails(pmemset_remove_part_map(set, &map), -EIO);
	pmemset_part_map_drop(&map); /* it was kept */
	fails(pmemset_remove_range(set, base, 1), -EIO);
	mend_disk(&d);
	fails(pmemset_delete(&set), -EIO);
	assert_null(set);
	must(pmemset_source_delete(&src));
	close_disk(&d);
}

static void deep_flushes_that_fail(void **state)
{
	struct disk d;
	open_disk(&d, here(state), 16 * PAGE);
	struct pmemset_source *src = source_of(&d.place, "x");
	struct pmemset *set = a_set();
	char *base = mapped(set, src, 0, 4 * PAGE).addr;
	break_disk(&d);
	memset(base, 3, PAGE);
	fails(pmemset_deep_flush(set, base, PAGE), PMEMSET_E_DEEP_FLUSH_FAIL);
	mend_disk(&d);
	fails(pmemset_delete(&set), -EIO);
	must(pmemset_source_delete(&src));
	close_disk(&d);
}

/* ---- events ---- */

static struct pmemset_event_context *nth(struct seen *seen, unsigned i, enum pmemset_event type)
{
	assert_true(i < seen->count);
	assert_int_equal(seen->events[i].type, type);
	return &seen->events[i];
}

static void events(void **state)
{
	struct place *p = here(state);
	struct seen seen = {.count = 0};
	make_file(p, "a", 8 * PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = set_of(PMEM2_GRANULARITY_PAGE, NULL, &seen);
	must(pmemset_set_contiguous_part_coalescing(set, true));
	(void)mapped(set, src, 0, PAGE);
	char *base = mapped(set, src, PAGE, PAGE).addr;
	assert_ptr_equal(nth(&seen, 1, PMEMSET_EVENT_PART_ADD)->data.part_add.addr, base);
	assert_int_equal(seen.events[1].data.part_add.len, 2 * PAGE);
	assert_null(seen.events[1].data.part_add.src);

	seen.count = 0;
	must(pmemset_persist(set, base, 9));
	must(pmemset_flush(set, base + 1, 8));
	must(pmemset_drain(set));
	assert_int_equal(nth(&seen, 0, PMEMSET_EVENT_FLUSH)->data.flush.len, 9);
	(void)nth(&seen, 1, PMEMSET_EVENT_DRAIN);
	assert_ptr_equal(nth(&seen, 2, PMEMSET_EVENT_FLUSH)->data.flush.addr, base + 1);
	(void)nth(&seen, 3, PMEMSET_EVENT_DRAIN);
	assert_int_equal(seen.count, 4);

	seen.count = 0;
	must(pmemset_memcpy(set, base, "abc", 3, PMEMSET_F_MEM_NODRAIN));
	must(pmemset_memmove(set, base + 1, base, 3, PMEMSET_F_MEM_NOFLUSH));
	must(pmemset_memset(set, base, 7, 2, 0));
	assert_int_equal(nth(&seen, 0, PMEMSET_EVENT_COPY)->data.copy.flags, PMEMSET_F_MEM_NODRAIN);
	struct pmemset_event_move move = nth(&seen, 1, PMEMSET_EVENT_MOVE)->data.move;
	assert_ptr_equal(move.src, base);
	assert_ptr_equal(move.dest, base + 1);
	assert_int_equal(move.len, 3);
	(void)nth(&seen, 2, PMEMSET_EVENT_DRAIN); /* also where nothing was flushed */
	assert_int_equal(nth(&seen, 3, PMEMSET_EVENT_SET)->data.set.value, 7);
	(void)nth(&seen, 4, PMEMSET_EVENT_DRAIN);
	assert_int_equal(seen.count, 5);

	/* What cannot be is not told of; a removal is, as it was asked for. */
	seen.count = 0;
	fails(pmemset_memset(set, base, 0, 3 * PAGE, 0), PMEMSET_E_LENGTH_OUT_OF_RANGE);
	fails(pmemset_persist(set, base + 2 * PAGE, 1), PMEMSET_E_CANNOT_FIND_PART_MAP);
	assert_int_equal(seen.count, 0);
	must(pmemset_remove_range(set, base, 1)); /* of a map that stays in part */
	assert_int_equal(nth(&seen, 0, PMEMSET_EVENT_REMOVE_RANGE)->data.remove_range.len, 1);
	assert_int_equal(seen.count, 1);
	must(pmemset_remove_range(set, base, 2 * PAGE));
	assert_ptr_equal(nth(&seen, 2, PMEMSET_EVENT_PART_REMOVE)->data.part_remove.addr, base + PAGE);
	assert_int_equal(seen.events[2].data.part_remove.len, PAGE);
	(void)mapped(set, src, 0, PAGE);
	seen.count = 0;
	must(pmemset_delete(&set)); /* silently */
	assert_int_equal(seen.count, 0);

	struct pmem2_source *pmem2;
	int fd = open(path_in(p, "a"), O_RDWR | O_CLOEXEC);
	must(pmem2_source_from_fd(&pmem2, fd));
	must(pmemset_source_delete(&src));
	must(pmemset_source_from_pmem2(&src, pmem2));
	set = set_of(PMEM2_GRANULARITY_PAGE, NULL, &seen);
	(void)mapped(set, src, 0, 0);
	assert_ptr_equal(nth(&seen, 0, PMEMSET_EVENT_PART_ADD)->data.part_add.src, pmem2);
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&src) | pmem2_source_delete(&pmem2) | close(fd));
}

static struct pmemset_source *source_of_callback;

/* In the middle of a removal: the map cannot be found, its bytes are there, its addresses are taken, and everything can be called. */
static void look_around(struct pmemset *set, struct pmemset_event_context *event)
{
	struct pmemset_part_map *map;
	if (event->type != PMEMSET_EVENT_PART_REMOVE)
		return;
	char *leaving = event->data.part_remove.addr;
	fails(pmemset_part_map_by_address(set, &map, leaving), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(pmemset_persist(set, leaving, 1), PMEMSET_E_CANNOT_FIND_PART_MAP);
	fails(pmemset_remove_range(set, leaving, 1), PMEMSET_E_CANNOT_FIND_PART_MAP);
	assert_int_equal(*leaving, 'x');
	struct pmemset_part_descriptor d = mapped(set, source_of_callback, 0, PAGE);
	assert_true((char *)d.addr >= leaving + event->data.part_remove.len || (char *)d.addr < leaving);
	assert_int_equal(*(unsigned char *)d.addr, 'x'); /* the same page of the file */
	must(pmemset_remove_range(set, d.addr, 1));
}

static unsigned depth;

static void look_around_once(struct pmemset *set, struct pmemset_event_context *event)
{
	if (depth++ == 0)
		look_around(set, event);
	depth--;
}

static void in_the_middle_of_a_removal(void **state)
{
	struct place *p = here(state);
	struct seen seen = {.then = NULL};
	struct pmemset_part_map *map;
	make_file(p, "a", 8 * PAGE, 'x');
	source_of_callback = source_of(p, "a");
	struct pmemset *set = set_of(PMEM2_GRANULARITY_PAGE, NULL, &seen);
	char *base = mapped(set, source_of_callback, 0, PAGE).addr;
	(void)mapped(set, source_of_callback, 0, PAGE);
	seen.then = look_around_once;
	must(pmemset_remove_range(set, base, 1));
	pmemset_first_part_map(set, &map);
	must(pmemset_remove_part_map(set, &map));
	seen.then = NULL;
	assert_int_equal(maps_of(set), 0);
	assert_ptr_equal(mapped(set, source_of_callback, 0, PAGE).addr, base);
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&source_of_callback));
}

/* ---- processes and threads ---- */

static void children(void **state)
{
	struct place *p = here(state);
	make_file(p, "a", PAGE, 1);
	struct pmemset_source *src = source_of(p, "a");
	struct pmemset *set = a_set();
	char *base = mapped(set, src, 0, PAGE).addr;
	pid_t child = fork();
	if (child == 0) {
		base[0] = 'c';
		_exit(base[1] == (char)byte_of(1, 1) ? 0 : 1);
	}
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(base[0], 'c');
	must(pmemset_delete(&set));
	must(pmemset_source_delete(&src));
}

#define ROUNDS (under_valgrind() ? 20 : 2000) /* where threads run one at a time, and each waits for the others */

struct shared {
	struct pmemset *set;
	struct pmemset_source *src;
	char *steady;
	_Atomic bool stop;
	_Atomic unsigned found;
};

static void *look_up_all_the_time(void *arg)
{
	struct shared *s = arg;
	while (!atomic_load(&s->stop)) {
		struct pmemset_part_map *map;
		must(pmemset_part_map_by_address(s->set, &map, s->steady));
		pmemset_part_map_drop(&map);
		/* Whatever is held is mapped. */
		pmemset_first_part_map(s->set, &map);
		while (map != NULL) {
			struct pmemset_part_map *next;
			struct pmemset_part_descriptor d = pmemset_descriptor_part_map(map);
			assert_int_equal(((unsigned char *)d.addr)[d.size - 1], byte_of(1, PAGE - 1));
			pmemset_next_part_map(s->set, map, &next);
			pmemset_part_map_drop(&map);
			map = next;
			atomic_fetch_add(&s->found, 1);
		}
	}
	return NULL;
}

static void references_of_threads(void **state)
{
	struct place *p = here(state);
	struct shared s = {.set = a_set()};
	pthread_t threads[2];
	unsigned refused = 0;
	make_file(p, "a", PAGE, 1);
	s.src = source_of(p, "a");
	s.steady = mapped(s.set, s.src, 0, PAGE).addr;
	for (int i = 0; i < 2; i++)
		must(pthread_create(&threads[i], NULL, look_up_all_the_time, &s));
	for (int i = 0; i < ROUNDS; i++) {
		char *addr = mapped(s.set, s.src, 0, PAGE).addr;
		int rc;
		while ((rc = pmemset_remove_range(s.set, addr, 1)) == PMEMSET_E_PART_MAP_POSSIBLE_USE_AFTER_DROP)
			refused++;
		must(rc);
	}
	atomic_store(&s.stop, true);
	for (int i = 0; i < 2; i++)
		must(pthread_join(threads[i], NULL));
	print_message("%u part maps found, %u removals refused\n", atomic_load(&s.found), refused);
	assert_true(atomic_load(&s.found) > 0);
	must(pmemset_remove_range(s.set, s.steady, 1)); /* no reference was lost or gained */
	must(pmemset_delete(&s.set));
	must(pmemset_source_delete(&s.src));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ONCE(codes),
			ON_EACH(messages),
			ON_EACH(what_is_not_there),
			ONCE(configs_and_sets),
			ON_EACH(sources_from_files),
			ON_EACH(sources_that_are_created),
			ON_EACH(sources_from_descriptors),
			ON_EACH(bytes_without_a_mapping),
			ON_EACH(parts),
			ON_EACH(parts_that_fail),
			ON_EACH(forced_granularity),
			ON_EACH(coalescing),
			ON_EACH(reservations),
			ON_EACH(look_ups),
			ON_EACH(removals),
			ON_EACH(flushes),
			ON_EACH(copies),
			{"flushes_that_fail, disk", flushes_that_fail, scene_enter, scene_leave, &places[1]},
			{"deep_flushes_that_fail, disk", deep_flushes_that_fail, scene_enter, scene_leave, &places[1]},
			ON_EACH(events),
			ON_EACH(in_the_middle_of_a_removal),
			ON_EACH(children),
			ON_EACH(references_of_threads),
	};
	return RUN("libpmemset", tests, FFI_GRANULARITY_UNSET);
}
