/* SPDX-License-Identifier: BSD-3-Clause */
/* See what a set does: each event with its bytes. */
#include <libpmemset.h>
#include <stdio.h>

static int print(struct pmemset *set, struct pmemset_event_context *ctx, void *arg)
{
	static const char *const names[] = {"copy", "move", "set", "flush", "drain", "persist", "remove range", "part add", "part remove"};
	size_t len = 0;
	(void)set;
	if (ctx->type == PMEMSET_EVENT_SET)
		len = ctx->data.set.len;
	else if (ctx->type == PMEMSET_EVENT_FLUSH)
		len = ctx->data.flush.len;
	else if (ctx->type == PMEMSET_EVENT_PART_ADD)
		len = ctx->data.part_add.len;
	else if (ctx->type == PMEMSET_EVENT_PART_REMOVE)
		len = ctx->data.part_remove.len;
	printf("%u %s %zu\n", ++*(unsigned *)arg, names[ctx->type], len);
	return 0;
}

int main(int argc, char **argv)
{
	struct pmemset_config *cfg = NULL;
	struct pmemset *set = NULL;
	struct pmemset_source *src = NULL;
	struct pmemset_map_config *range = NULL;
	struct pmemset_part_map *map = NULL;
	struct pmemset_part_descriptor desc;
	unsigned count = 0;
	if (argc != 2 || pmemset_config_new(&cfg) != 0 || pmemset_map_config_new(&range) != 0)
		return 2;
	(void)pmemset_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE);
	(void)pmemset_config_set_event_callback(cfg, print, &count);
	pmemset_map_config_set_length(range, 65536);
	int rc = pmemset_new(&set, cfg);
	if (rc == 0 && (rc = pmemset_source_from_temporary(&src, argv[1])) == 0 && (rc = pmemset_map(set, src, range, &desc)) == 0 &&
			(rc = pmemset_memset(set, desc.addr, 'x', 100, PMEMSET_F_MEM_NODRAIN)) == 0 &&
			(rc = pmemset_persist(set, desc.addr, 100)) == 0 && (rc = pmemset_part_map_by_address(set, &map, desc.addr)) == 0)
		rc = pmemset_remove_part_map(set, &map);
	if (rc != 0)
		pmemset_perror("events");
	(void)pmemset_source_delete(&src);
	(void)pmemset_map_config_delete(&range);
	(void)pmemset_config_delete(&cfg);
	return pmemset_delete(&set) != 0 || rc != 0;
}
