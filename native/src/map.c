/* SPDX-License-Identifier: BSD-3-Clause */
/* map.c -- part maps as a user of libpmemset.h holds them: what a look-up pins, until it is dropped. */
#include "access.h"

static struct pmemset_part_map *shown(struct part_map *map)
{
	return (struct pmemset_part_map *)map;
}

static struct part_map *held(struct pmemset_part_map *map)
{
	return (struct part_map *)map;
}

int pmemset_part_map_by_address(struct pmemset *set, struct pmemset_part_map **pmap, void *addr)
{
	struct pmemset_error e;
	struct part_map *map = NULL;
	int rc = access_pin(set->set, (uint64_t)(uintptr_t)addr, 0, &map, &e);
	*pmap = shown(map);
	if (rc == PMEMSET_E_NO_PART_MAPPED) /* to a look-up, no different */
		rc = error_set(&e, PMEMSET_E_CANNOT_FIND_PART_MAP, "no part map holds %p", addr);
	return rc ? error_keep(&e) : 0;
}

void pmemset_first_part_map(struct pmemset *set, struct pmemset_part_map **pmap)
{
	*pmap = shown(access_pin_next(set->set, 0));
}

void pmemset_next_part_map(struct pmemset *set, struct pmemset_part_map *cur, struct pmemset_part_map **next)
{
	struct pmemset_part_descriptor from = pmemset_descriptor_part_map(cur);
	*next = shown(access_pin_next(set->set, (uint64_t)(uintptr_t)from.addr + from.size));
}

struct pmemset_part_descriptor pmemset_descriptor_part_map(struct pmemset_part_map *pmap)
{
	struct part_map *map = held(pmap);
	void *addr = (void *)(uintptr_t)atomic_load(&map->addr); /* NOLINT(performance-no-int-to-ptr): addresses are numbers in the core */
	return (struct pmemset_part_descriptor){addr, atomic_load(&map->size)};
}

void pmemset_part_map_drop(struct pmemset_part_map **pmap)
{
	if (*pmap != NULL)
		access_unpin(held(*pmap));
	*pmap = NULL;
}
