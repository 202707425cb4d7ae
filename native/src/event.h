/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * event.h -- tell the callback of a set of libpmemset.h. Never under a lock, for it may call anything; without a callback it costs a load.
 */
#ifndef PMEMSET_EVENT_H
#define PMEMSET_EVENT_H 1

#include "set.h"

/* What the callback answers is ignored. */
void event_fire(struct pmemset *set, struct pmemset_event_context *event);
/* The one event without a payload. */
void event_fire_drain(struct pmemset *set);

#endif
