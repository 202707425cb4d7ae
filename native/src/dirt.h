/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * dirt.h -- which bytes of a file no good flush vouches for: a few stretches of whole pages, in order and apart.
 *
 * It has to be written down with every store, so it takes no memory and little time. Where there would be more stretches than it holds,
 * the two nearest become one: it may name more than was stored, and never less.
 */
#ifndef PMEMSET_DIRT_H
#define PMEMSET_DIRT_H 1

#include <stdint.h>

#define DIRT_MAX 64u

struct stretch {
	uint64_t from, to; /* offsets in the file; pages are what the kernel writes, so it is of whole ones */
};

struct dirt {
	uint32_t count;
	struct stretch at[DIRT_MAX + 1]; /* one more for the moment of an addition */
};

void dirt_add(struct dirt *dirt, uint64_t from, uint64_t to);
/* No more than there is of it, which is little as a rule. */
void dirt_copy(struct dirt *to, const struct dirt *from);
void dirt_join(struct dirt *dirt, const struct dirt *more);
/* These pages are clean. Where there is no room for what is left on both sides, it stays one. */
void dirt_cut(struct dirt *dirt, uint64_t from, uint64_t to);

#endif
