/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

static int no_memory(void)
{
	struct pmemset_error e;
	error_set(&e, -ENOMEM, "no memory for a config");
	return error_keep(&e);
}

int config_no_support(const char *what)
{
	struct pmemset_error e;
	error_set(&e, PMEMSET_E_NOSUPP, "%s is not implemented", what);
	return error_keep(&e);
}

int pmemset_config_new(struct pmemset_config **cfg)
{
	*cfg = malloc(sizeof(**cfg));
	if (*cfg == NULL)
		return no_memory();
	**cfg = (struct pmemset_config){.required = PMEMSET_GRANULARITY_UNSET};
	return 0;
}

int pmemset_config_delete(struct pmemset_config **cfg)
{
	free(*cfg);
	*cfg = NULL;
	return 0;
}

int pmemset_config_set_required_store_granularity(struct pmemset_config *cfg, enum pmem2_granularity g)
{
	struct pmemset_error e;
	if ((unsigned)g > PMEM2_GRANULARITY_PAGE) {
		error_set(&e, PMEMSET_E_GRANULARITY_NOT_SUPPORTED, "unknown granularity %u", (unsigned)g);
		return error_keep(&e);
	}
	cfg->required = g;
	return 0;
}

int pmemset_config_set_reservation(struct pmemset_config *cfg, struct pmem2_vm_reservation *rsv)
{
	cfg->reservation = rsv;
	return 0;
}

int pmemset_config_set_event_callback(struct pmemset_config *cfg, pmemset_event_callback *callback, void *arg)
{
	cfg->callback = callback;
	cfg->callback_arg = arg;
	return 0;
}

int pmemset_config_set_create_if_none(struct pmemset_config *cfg, int value)
{
	(void)cfg;
	(void)value;
	return config_no_support("creation of sets");
}

int pmemset_config_set_create_if_invalid(struct pmemset_config *cfg, int value)
{
	(void)cfg;
	(void)value;
	return config_no_support("creation of sets");
}

int pmemset_config_set_layout_name(struct pmemset_config *cfg, const char *layout)
{
	(void)cfg;
	(void)layout;
	return config_no_support("a layout");
}

int pmemset_config_set_version(struct pmemset_config *cfg, int major, int minor)
{
	(void)cfg;
	(void)major;
	(void)minor;
	return config_no_support("a layout");
}

int pmemset_header_init(struct pmemset_header *header, const char *layout, int major, int minor)
{
	(void)header;
	(void)layout;
	(void)major;
	(void)minor;
	return config_no_support("a layout");
}

int pmemset_config_set_acceptable_states(struct pmemset_config *cfg, uint64_t states)
{
	(void)cfg;
	(void)states;
	return config_no_support("the state of parts");
}

/* ---- of a map ---- */

int pmemset_map_config_new(struct pmemset_map_config **mcfg)
{
	*mcfg = calloc(1, sizeof(**mcfg));
	return *mcfg ? 0 : no_memory();
}

int pmemset_map_config_delete(struct pmemset_map_config **mcfg)
{
	free(*mcfg);
	*mcfg = NULL;
	return 0;
}

int pmemset_map_config_set_offset(struct pmemset_map_config *mcfg, size_t offset)
{
	struct pmemset_error e;
	if (offset > INT64_MAX) {
		error_set(&e, PMEMSET_E_OFFSET_OUT_OF_RANGE, "offset %zu is above INT64_MAX", offset);
		return error_keep(&e);
	}
	mcfg->offset = offset;
	return 0;
}

void pmemset_map_config_set_length(struct pmemset_map_config *mcfg, size_t length)
{
	mcfg->length = length;
}
