/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * window.h -- address space: one arena for the process, a window of it for each set, kernel mappings inside.
 *
 * The arena is reserved whole, before anything else wants its addresses, and never given back: a range without a part in it is fenced
 * (PROT_NONE), so nothing else is ever mapped there and a stray access faults. It costs neither memory nor commit charge.
 *
 *   0x4000_0000_0000                                                     0x5500_0000_0000
 *   |-- window of set A --|-- window of set B --|------ not carved yet ------|
 *   [part][part]...fence..[fence.[part]....fence]............fence...........]
 */
#ifndef PMEMSET_WINDOW_H
#define PMEMSET_WINDOW_H 1

#include "error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WINDOW_ALIGNMENT (UINT64_C(2) << 20)

struct arena {
	uint64_t base, size;
	bool as_asked; /* the base is the one that was asked for: addresses are stable across restarts */
};

/*
 * Reserve size bytes at base (0: the defaults), or at a lower base where that one is not to be had. Once per process.
 * limit: kernel mappings that parts and the gaps between them may take (0: vm.max_map_count - 8192).
 * -EALREADY; -ENOMEM, with RLIMIT_AS in the message where that is the reason.
 */
int arena_start(uint64_t base, uint64_t size, uint64_t limit, struct pmemset_error *e);
const struct arena *arena(void);
bool arena_holds(uint64_t addr);

/* ---- windows; any thread ---- */

struct window {
	uint64_t addr, size;
	struct window *next; /* the arena's list, in address order; or that of adopted ones */
};

/* Carve size bytes (rounded up to WINDOW_ALIGNMENT), at the lowest address that fits. -ENOMEM: LIMIT_WINDOWS, value = largest gap. */
int window_open(struct window *w, uint64_t size, struct pmemset_error *e);
/* Carve exactly these bytes. -EBUSY: WINDOW_TAKEN, where they are not the arena's, not aligned, or another window's. */
int window_open_at(struct window *w, uint64_t addr, uint64_t size, struct pmemset_error *e);
/* Take a range that somebody else has reserved, and keeps. -EBUSY where a window is in it already. */
int window_adopt(struct window *w, uint64_t addr, uint64_t size, struct pmemset_error *e);
/* The window holds no part any more. */
void window_close(struct window *w);

/* ---- mappings inside of a window; the caller owns the range (the set's structure lock) ---- */

/*
 * Map [offset, offset + size) of fd at addr, which must be fenced now. Returns 0 or the errno of mmap, and then the range is fenced again;
 * -1: it could not be, and is lost (nothing is mapped over what the kernel may have put there).
 */
int window_map(uint64_t addr, uint64_t size, int fd, uint64_t offset, int flags);
/* What is mapped there, one or more: no core dump has it, and no child unless it forks. */
void window_hide(uint64_t addr, uint64_t size, bool forks);
/* Whether nothing but a fence is in the range. Slow: it reads what the kernel has mapped. */
bool window_is_fenced(uint64_t addr, uint64_t size);
/* Fence a mapped range again, in place: it is never unmapped, so no other mapping can slip in. Returns 0 or the errno of mmap. */
int window_unmap(uint64_t addr, uint64_t size);

/*
 * Account for `delta` more kernel mappings. -ENOMEM: LIMIT_MAPPINGS, value = the limit; never fails for delta <= 0. The kernel's own
 * limit must not be reached: there removal fails, and malloc, and Node aborts.
 */
int mappings_take(int64_t delta, struct pmemset_error *e);
uint64_t mappings_used(void);
uint64_t mappings_max(void);

#endif
