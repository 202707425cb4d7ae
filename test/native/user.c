/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A program of somebody else's: it knows the installed header and nothing of this project, was written for the libpmemset of January 2021,
 * and is C and C++. It starts no engine. Argument: a directory.
 */
#include <fcntl.h>
#include <libpmemset.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SIZE 65536u

static int failed;

static void check(int line, int rc)
{
	if (rc != 0) {
		fprintf(stderr, "line %d: %d, ", line, rc);
		pmemset_perror("%s", "user");
		failed = 1;
	}
}
#define CHECK(call) check(__LINE__, call)

static void map(struct pmemset *set, struct pmemset_source *src, size_t offset, struct pmemset_part_descriptor *desc)
{
	struct pmemset_part *part = NULL;
	struct pmemset_extras extras = {NULL, NULL, NULL, NULL, NULL};
	CHECK(pmemset_part_new(&part, set, src, offset, SIZE));
	CHECK(pmemset_part_map(&part, &extras, desc));
	if (part != NULL)
		CHECK(-1);
}

int main(int argc, char **argv)
{
	char path[4096];
	struct pmemset_config *cfg;
	struct pmemset *set;
	struct pmemset_source *src;
	struct pmem2_source *pmem2;
	struct pmemset_part_descriptor desc;
	struct pmemset_part_map *cur;
	struct pmemset_part_map *next;
	if (argc != 2)
		return 2;
	(void)snprintf(path, sizeof(path), "%s/file", argv[1]);
	int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 4 * SIZE) != 0)
		return 2;

	CHECK(pmemset_config_new(&cfg));
	CHECK(pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE));
	CHECK(pmemset_new(&set, cfg));
	CHECK(pmemset_config_delete(&cfg));
	CHECK(pmemset_source_from_file(&src, path));
	map(set, src, 0, &desc);
	CHECK(pmemset_set_contiguous_part_coalescing(set, true));
	map(set, src, SIZE, &desc);
	CHECK(desc.size == 2 * SIZE ? 0 : -1);
	CHECK(pmemset_source_delete(&src));
	CHECK(pmem2_source_from_fd(&pmem2, fd));
	CHECK(pmemset_source_from_pmem2(&src, pmem2));
	CHECK(pmemset_set_contiguous_part_coalescing(set, false));
	map(set, src, 2 * SIZE, NULL);

	memset(desc.addr, 'x', desc.size); /* of two parts, with one operation */
	CHECK(pmemset_persist(set, desc.addr, desc.size));
	pmemset_first_part_map(set, &cur);
	unsigned maps = 0;
	for (; cur != NULL; cur = next, maps++) {
		pmemset_next_part_map(set, cur, &next);
		pmemset_part_map_drop(&cur);
	}
	CHECK(maps == 2 ? 0 : -1);
	CHECK(pmemset_part_map_by_address(set, &cur, (char *)desc.addr + SIZE));
	CHECK(pmemset_descriptor_part_map(cur).addr == desc.addr ? 0 : -1);
	pmemset_part_map_drop(&cur);
	CHECK(pmemset_delete(&set));
	CHECK(pmemset_source_delete(&src));
	CHECK(pmem2_source_delete(&pmem2));
	char byte = 0;
	CHECK(pread(fd, &byte, 1, 2 * SIZE - 1) == 1 && byte == 'x' ? 0 : -1);
	(void)close(fd);
	if (!failed)
		puts("all is well");
	return failed;
}
