/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * medium.h -- what is beneath a file: how a store to it becomes durable (granularity), and whether the medium keeps it (persistence).
 *
 * The two are asked of different places and never derived from each other. Granularity is what the kernel grants: a one-page mapping
 * with MAP_SYNC, at an address of the kernel's choice, succeeds or does not. Persistence is what sysfs and the mount table say of the
 * device behind this very file. (hugetlbfs is told of here, but source.c refuses its files: they are not supported yet.)
 */
#ifndef PMEMSET_MEDIUM_H
#define PMEMSET_MEDIUM_H 1

#include <libpmem2.h>
#include <stdbool.h>
#include <stdint.h>

enum persistence { PERSISTENCE_UNKNOWN, PERSISTENCE_PERSISTENT, PERSISTENCE_HOST_DEPENDENT, PERSISTENCE_VOLATILE };

/* Of two media, what both together are. */
enum persistence persistence_weaker(enum persistence a, enum persistence b);

#define MEDIUM_NAME_SIZE 64

struct medium {
	enum pmem2_granularity granularity;
	enum persistence persistence;
	bool map_sync;			    /* a mapping of the file takes MAP_SYNC */
	bool dax;			    /* the file's pages are the medium's (STATX_ATTR_DAX) */
	bool resident;			    /* a load waits for no disk: DAX, or a file system that is memory */
	bool allocates;			    /* fallocate promises that a later write finds its space */
	bool simulated;			    /* the granularity is the operator's pretence (tests) */
	int numa_node;			    /* -1: unknown */
	char file_system[MEDIUM_NAME_SIZE]; /* as in the mount table; "unknown" where that cannot be read */
	const char *why_persistence;	    /* a sentence; static */
	const char *why_granularity;	    /* a sentence, why not finer; static; "" at the finest */
};

/* Pretend a granularity, for every file, from now on; PMEM2_GRANULARITY_PAGE ends it. */
void medium_simulate(enum pmem2_granularity granularity);

/* fd: a regular file, open for reading and writing, of any size. Never fails: what cannot be found out is unknown, and coarse. */
void medium_of(int fd, struct medium *m);

#endif
