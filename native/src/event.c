/* SPDX-License-Identifier: BSD-3-Clause */
#include "event.h"

void event_fire(struct pmemset *set, struct pmemset_event_context *event)
{
	if (set->callback != NULL)
		(void)set->callback(set, event, set->callback_arg);
}

void event_fire_drain(struct pmemset *set)
{
	struct pmemset_event_context event = {.type = PMEMSET_EVENT_DRAIN};
	event_fire(set, &event);
}
