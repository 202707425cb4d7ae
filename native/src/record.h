/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * record.h -- what a batch that is all or nothing is going to store, as its log keeps it: native/redo-log.md has it byte by byte.
 *
 * A record names its files by their identity (identity.h), so that it finds them again in another life of the process.
 */
#ifndef PMEMSET_RECORD_H
#define PMEMSET_RECORD_H 1

#include "file.h"

#include <stddef.h>

#define RECORD_MAGIC UINT64_C(0x4843544142534d50) /* "PMSBATCH" */

struct record_head {
	uint64_t magic;
	uint64_t epoch;	   /* the log's */
	uint64_t position; /* in the log */
	uint64_t size;	   /* of the whole record */
	uint32_t files, entries;
	uint64_t reserved;
	uint64_t payload_sum; /* of all that is behind the head */
	uint64_t head_sum;    /* of the members above */
};

struct record_entry {
	uint32_t file; /* its row among the files */
	uint32_t reserved;
	uint64_t offset, length; /* in the file; the bytes follow, and zeros up to a multiple of 8 */
};

/* A record in memory; `bytes` is its owner's to free. */
struct record {
	char *bytes;
	uint64_t size;	   /* used so far */
	uint64_t capacity; /* of the bytes */
};

/* CRC-64, reflected, of polynomial 0x42f0e1eba9ea3693, begun and ended with all bits inverted (as xz has it). */
uint64_t record_sum(const void *bytes, uint64_t size);

/* How much an entry of so many bytes adds, and a record of so many files without any has. */
uint64_t record_entry_size(uint64_t length);
uint64_t record_base_size(uint64_t files);

/* Begin one of at most that size. -ENOMEM */
int record_begin(struct record *record, uint64_t files, uint64_t capacity, struct pmemset_error *e);
void record_set_file(struct record *record, uint32_t row, const char *identity);
/* Where the bytes of a new entry go. */
char *record_add(struct record *record, uint32_t file, uint64_t offset, uint64_t length);
/* Nothing is added any more; then it gets its place, which may change. */
void record_seal(struct record *record);
void record_place(struct record *record, uint64_t epoch, uint64_t position);

const struct record_head *record_head(const struct record *record);
const char *record_file(const struct record *record, uint32_t row);
/* The entry at *at, which is 0 at first, and its bytes; false behind the last one. */
bool record_next(const struct record *record, uint64_t *at, struct record_entry *entry, const char **bytes);

/* Whether a head is one of this log at this place, whatever may follow it. */
bool record_is_here(const struct record_head *head, uint64_t epoch, uint64_t position, uint64_t size_max);
/* Whether all of it is as it was sealed, and is a record. */
bool record_is_whole(const struct record *record);

#endif
