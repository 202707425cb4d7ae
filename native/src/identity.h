/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * identity.h -- which file it is, in words that outlive a restart: of file system and inode, and not of its path or its size.
 *
 * A device number changes with a remount, and an inode's number is given away again, so there is more to it: the file system's UUID (or
 * what statfs has for it), the inode, its generation and its time of birth, as far as the file system tells of each.
 */
#ifndef PMEMSET_IDENTITY_H
#define PMEMSET_IDENTITY_H 1

#include <stdbool.h>

#define IDENTITY_SIZE 128

/* In text, ended by a NUL; "" where nothing but the inode's number is to be had, which names no file for long. */
void identity_of(int fd, char identity[IDENTITY_SIZE]);
/*
 * Whether they are of one file: whatever both tell of is the same. (The other may have been written under a kernel that tells less.) Of
 * "" nothing is known, so it is any file's; text that none of this wrote is no file's.
 */
bool identity_same(const char *was, const char *is);

#endif
