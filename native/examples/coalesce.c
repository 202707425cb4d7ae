/* SPDX-License-Identifier: BSD-3-Clause */
/* Map two files side by side, store across the seam as if they were one, and find the part map by an address in it. */
#include <libpmemset.h>
#include <stdio.h>
#include <string.h>

#define SIZE (1u << 20)

int main(int argc, char **argv)
{
	struct pmemset_config *cfg;
	struct pmemset *set = NULL;
	struct pmemset_part_descriptor all = {NULL, 0};
	struct pmemset_part_map *map;
	if (argc != 3 || pmemset_config_new(&cfg) != 0)
		return 2;
	int rc = pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE);
	if (rc == 0 && (rc = pmemset_new(&set, cfg)) == 0)
		rc = pmemset_set_contiguous_part_coalescing(set, true);
	for (int i = 1; i < argc && rc == 0; i++) {
		struct pmemset_source *src = NULL;
		struct pmemset_part *part = NULL;
		rc = pmemset_xsource_from_file(&src, argv[i], PMEMSET_SOURCE_FILE_CREATE_IF_NEEDED);
		if (rc == 0 && (rc = pmemset_part_new(&part, set, src, 0, SIZE)) == 0)
			rc = pmemset_part_map(&part, NULL, &all);
		(void)pmemset_part_delete(&part); /* there only where its map failed */
		(void)pmemset_source_delete(&src);
	}
	char *seam = (char *)all.addr + SIZE;
	if (rc == 0 && (rc = pmemset_memcpy(set, seam - 8, "one text, two files", 19, 0)) == 0 &&
			(rc = pmemset_part_map_by_address(set, &map, seam)) == 0) {
		printf("%zu bytes, the second file begins with \"%.*s\"\n", pmemset_descriptor_part_map(map).size, 11, seam);
		pmemset_part_map_drop(&map);
	}
	if (rc != 0)
		pmemset_perror("coalesce");
	(void)pmemset_config_delete(&cfg);
	return pmemset_delete(&set) != 0 || rc != 0;
}
