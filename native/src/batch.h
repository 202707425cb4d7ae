/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * batch.h -- many operations on one set in one call: checked whole before the first, made in order, flushed together at the end.
 *
 * A batch is text from a client, in the layout that openapi/batch.md describes byte by byte: a header, operations of one size, and the
 * bytes of the writes. The reply is a header and the results of reads and atomics, in order. Numbers are little-endian, as the
 * processors that libpmem2 knows have them.
 */
#ifndef PMEMSET_BATCH_H
#define PMEMSET_BATCH_H 1

#include "access.h"

#define BATCH_MAGIC 0x42534d50u	      /* "PMSB" */
#define BATCH_REPLY_MAGIC 0x52534d50u /* "PMSR" */
#define BATCH_VERSION 1

enum batch_op {
	BATCH_READ = 1,
	BATCH_WRITE,
	BATCH_MEMSET,
	BATCH_MEMCPY,
	BATCH_MEMMOVE,
	BATCH_PERSIST,
	BATCH_FLUSH,
	BATCH_COMPARE_EXCHANGE, /* from here on in the order of enum atomic_op */
	BATCH_EXCHANGE,
	BATCH_ADD,
	BATCH_AND,
	BATCH_OR,
	BATCH_XOR,
};

#define BATCH_PUNCH 1u /* flags of BATCH_MEMSET */

enum batch_atomicity {
	BATCH_EACH, /* whatever was made stays, though a later one fails */
	BATCH_ALL   /* all of it or nothing, whatever happens: of reads and plain stores only, and of a durability */
};

struct batch_header {
	uint32_t magic;
	uint16_t version;
	uint8_t durability; /* enum durability */
	uint8_t atomicity;  /* enum batch_atomicity */
	uint32_t count;
	uint32_t reserved; /* 0, as what is reserved elsewhere */
};

struct batch_operation {
	uint8_t op;
	uint8_t hint; /* of stores: 0 none, 1 temporal, 2 nontemporal, 3 wc, 4 wb */
	uint16_t flags;
	uint32_t reserved;
	uint64_t addr;	   /* of a copy: where to */
	uint64_t length;   /* of an atomic: 8 */
	uint64_t argument; /* a copy's source, a memset's byte, an atomic's value; else 0 */
	uint64_t expected; /* of compare_exchange; else 0 */
};

struct batch_reply {
	uint32_t magic;
	uint16_t version;
	uint8_t durability; /* reached by every store that was made */
	uint8_t granularity;
	uint8_t persistence;
	uint8_t simulated;
	uint16_t reserved;
	uint32_t done;	/* operations, from the first on */
	uint64_t bytes; /* stored */
	uint64_t reserved2;
};

/* Which member of an operation is wrong; its index is told beside it. */
enum batch_field {
	BATCH_FIELD_HEADER, /* or the body is shorter or longer than it says */
	BATCH_FIELD_OP,
	BATCH_FIELD_HINT,
	BATCH_FIELD_FLAGS,
	BATCH_FIELD_RESERVED,
	BATCH_FIELD_ADDR,
	BATCH_FIELD_LENGTH,
	BATCH_FIELD_ARGUMENT,
	BATCH_FIELD_EXPECTED,
};

/* A body that was found to be well-formed; it stays the caller's. */
struct batch {
	enum durability durability;
	bool all; /* or nothing */
	uint32_t count;
	const char *operations;
	const char *data;
	uint64_t reply_size;
};

/* -EINVAL with MALFORMED: value = index of the operation, size = enum batch_field. */
int batch_parse(struct batch *batch, const void *body, uint64_t size, struct pmemset_error *e);

/*
 * reply: batch->reply_size bytes; filled as far as it came, also on failure. *failed: the operation that was refused or failed; count where
 * none of them did, but their flush. Nothing was done where a range or a file's state was refused (done is 0 then). nowait: -EAGAIN, and
 * nothing was done, where it might wait for the disk.
 *
 * Of one that is all or nothing, nothing was done on any failure but one: -EIO of what is committed already and could not be made durable where
 * it belongs (done is the count then). It is whole, or will be, when that failure was dealt with, or after the next start. -EXDEV with VOLUMES;
 * -ENOMEM with LIMIT_RECORD; -EBUSY with RECOVERY_PENDING; -EOPNOTSUPP: a file system tells too little to know its files again; redo_commit's.
 */
int batch_run(struct set *set, const struct batch *batch, bool nowait, void *reply, uint32_t *failed, struct pmemset_error *e);

#endif
