/* SPDX-License-Identifier: BSD-3-Clause */
/* config.h -- what a set of libpmemset.h is made from, and which range a map is to take. */
#ifndef PMEMSET_CONFIG_H
#define PMEMSET_CONFIG_H 1

#include "error.h"

struct pmemset_config {
	uint32_t required; /* PMEMSET_GRANULARITY_UNSET: not given */
	struct pmem2_vm_reservation *reservation;
	pmemset_event_callback *callback;
	void *callback_arg;
};

struct pmemset_map_config {
	size_t offset, length;
};

/* What a declared function that is not implemented answers. */
int config_no_support(const char *what);

#endif
