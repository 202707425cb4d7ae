/* SPDX-License-Identifier: BSD-3-Clause */
#include "dirt.h"

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* The first stretch that ends at `from` or behind it. */
static uint32_t find(const struct dirt *dirt, uint64_t from)
{
	uint32_t lo = 0;
	for (uint32_t hi = dirt->count; lo < hi;) {
		uint32_t middle = (lo + hi) / 2;
		if (dirt->at[middle].to < from)
			lo = middle + 1;
		else
			hi = middle;
	}
	return lo;
}

/* In place of `count` stretches from i on. */
static void replace(struct dirt *dirt, uint32_t i, uint32_t count, struct stretch by)
{
	memmove(&dirt->at[i + 1], &dirt->at[i + count], (dirt->count - i - count) * sizeof(by));
	dirt->at[i] = by;
	dirt->count = dirt->count + 1 - count;
}

static void join_nearest(struct dirt *dirt)
{
	uint32_t nearest = 0;
	for (uint32_t i = 1; i + 1 < dirt->count; i++)
		if (dirt->at[i + 1].from - dirt->at[i].to < dirt->at[nearest + 1].from - dirt->at[nearest].to)
			nearest = i;
	replace(dirt, nearest, 2, (struct stretch){dirt->at[nearest].from, dirt->at[nearest + 1].to});
}

static struct stretch pages_of(uint64_t from, uint64_t to)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	return (struct stretch){from & ~(page - 1), (to + page - 1) & ~(page - 1)};
}

void dirt_add(struct dirt *dirt, uint64_t from, uint64_t to)
{
	if (from >= to)
		return;
	struct stretch whole = pages_of(from, to);
	uint32_t first = find(dirt, whole.from);
	uint32_t end = first;
	for (; end < dirt->count && dirt->at[end].from <= whole.to; end++) {
		whole.from = dirt->at[end].from < whole.from ? dirt->at[end].from : whole.from;
		whole.to = dirt->at[end].to > whole.to ? dirt->at[end].to : whole.to;
	}
	replace(dirt, first, end - first, whole);
	if (dirt->count > DIRT_MAX)
		join_nearest(dirt);
}

void dirt_copy(struct dirt *to, const struct dirt *from)
{
	memcpy(to->at, from->at, from->count * sizeof(from->at[0]));
	to->count = from->count;
}

void dirt_join(struct dirt *dirt, const struct dirt *more)
{
	if (dirt->count == 0) {
		dirt_copy(dirt, more);
		return;
	}
	for (uint32_t i = 0; i < more->count; i++)
		dirt_add(dirt, more->at[i].from, more->at[i].to);
}

void dirt_cut(struct dirt *dirt, uint64_t from, uint64_t to)
{
	if (from >= to)
		return;
	struct stretch clean = pages_of(from, to);
	for (uint32_t i = find(dirt, clean.from + 1); i < dirt->count && dirt->at[i].from < clean.to;) {
		struct stretch *s = &dirt->at[i];
		bool before = s->from < clean.from;
		bool behind = s->to > clean.to;
		if (before && behind && dirt->count == DIRT_MAX)
			return;
		if (before && behind) {
			struct stretch rest = {clean.to, s->to};
			s->to = clean.from;
			replace(dirt, i + 1, 0, rest);
		} else if (before) {
			s->to = clean.from;
		} else if (behind) {
			s->from = clean.to;
		} else {
			memmove(s, s + 1, (dirt->count - i - 1) * sizeof(*s));
			dirt->count--;
			continue;
		}
		i++;
	}
}
