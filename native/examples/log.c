/* SPDX-License-Identifier: BSD-3-Clause */
/* A log over the growing parts of one file, of which no more than the newest three stay mapped. */
#include <libpmemset.h>
#include <stdio.h>

#define SEGMENT 65536u
#define RECORD 4096u
#define KEPT 3u

/* The next segment of the file, behind those that are mapped, and the oldest one goes. */
static int advance(struct pmemset *set, struct pmemset_source *src, struct pmemset_map_config *range, size_t n, char **base)
{
	struct pmemset_part_descriptor log;
	int rc = pmemset_map_config_set_offset(range, n * SEGMENT);
	pmemset_map_config_set_length(range, SEGMENT);
	if (rc == 0 && (rc = pmemset_map(set, src, range, &log)) == 0) {
		*base = (char *)log.addr + log.size - SEGMENT;
		if (log.size > KEPT * SEGMENT)
			rc = pmemset_remove_range(set, log.addr, SEGMENT);
	}
	return rc;
}

int main(int argc, char **argv)
{
	struct pmemset_config *cfg = NULL;
	struct pmemset *set = NULL;
	struct pmemset_source *src = NULL;
	struct pmemset_map_config *range = NULL;
	struct pmemset_part_map *map = NULL;
	char *base = NULL;
	char text[RECORD];
	if (argc != 2 || pmemset_config_new(&cfg) != 0 || pmemset_map_config_new(&range) != 0)
		return 2;
	(void)pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE);
	int rc = pmemset_new(&set, cfg);
	if (rc == 0 && (rc = pmemset_set_contiguous_part_coalescing(set, true)) == 0)
		rc = pmemset_xsource_from_file(&src, argv[1], PMEMSET_SOURCE_FILE_CREATE_ALWAYS);
	for (unsigned i = 0; i < 100 && rc == 0; i++) {
		size_t at = (size_t)i * RECORD;
		if (at % SEGMENT == 0)
			rc = advance(set, src, range, at / SEGMENT, &base);
		(void)snprintf(text, sizeof(text), "record %u\n", i);
		if (rc == 0)
			rc = pmemset_memcpy(set, base + at % SEGMENT, text, RECORD, 0);
	}
	if (rc != 0)
		pmemset_perror("log");
	else if (pmemset_first_part_map(set, &map), map != NULL)
		printf("%zu bytes are mapped, from %s", pmemset_descriptor_part_map(map).size,
				(char *)pmemset_descriptor_part_map(map).addr);
	pmemset_part_map_drop(&map);
	(void)pmemset_source_delete(&src);
	(void)pmemset_map_config_delete(&range);
	(void)pmemset_config_delete(&cfg);
	return pmemset_delete(&set) != 0 || rc != 0;
}
