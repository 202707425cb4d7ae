/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * state.h -- the directory where the service keeps its own: whether it can be kept there, who keeps it, and that there is room.
 *
 * Paths are the operator's, so they are taken as they stand.
 */
#ifndef PMEMSET_STATE_H
#define PMEMSET_STATE_H 1

#include "error.h"

#include <stdint.h>

/*
 * Whether what is flushed there stays, and locks hold: not in memory, nor where another host or process decides about either. -ENOTSUP, and
 * the message names the file system; -errno.
 */
int state_check(const char *directory, struct pmemset_error *e);

/*
 * The file, made where there is none, is the caller's until it is unlocked or the process ends. -EAGAIN: it is another's, value = the
 * process that has it (0: it does not say). -ENOTSUP: it is no regular file. -errno.
 */
int state_lock(const char *path, int *fd, struct pmemset_error *e);
void state_unlock(int fd);

/* The file's bytes up to there have their space, whatever its size, which stays. -errno. */
int state_allocate(const char *path, uint64_t size, struct pmemset_error *e);

#endif
