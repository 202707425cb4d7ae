/* SPDX-License-Identifier: BSD-3-Clause */
#include "batch.h"

#include "part.h"
#include "redo.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(struct batch_header) == 16 && sizeof(struct batch_operation) == 40 && sizeof(struct batch_reply) == 32,
		"what openapi/batch.md says");

/* A batch that touches more than this is not run where nobody may wait. */
#define NOWAIT_BYTES_MAX (UINT64_C(1) << 20)

static bool is_atomic(uint8_t op)
{
	return op >= BATCH_COMPARE_EXCHANGE && op <= BATCH_XOR;
}

static bool is_copy(uint8_t op)
{
	return op == BATCH_MEMCPY || op == BATCH_MEMMOVE;
}

static bool is_store(uint8_t op)
{
	return op == BATCH_WRITE || op == BATCH_MEMSET || is_copy(op);
}

/* The body may begin at any address. */
static struct batch_operation operation_at(const struct batch *batch, uint32_t i)
{
	struct batch_operation op;
	memcpy(&op, batch->operations + i * sizeof(op), sizeof(op));
	return op;
}

/* ---- parse ---- */

static int malformed(uint64_t i, enum batch_field field, struct pmemset_error *e)
{
	error_set(e, -EINVAL, "malformed batch");
	e->reason = PMEMSET_REASON_MALFORMED;
	e->value = i;
	e->size = field;
	return e->code;
}

/* BATCH_FIELD_HEADER where nothing is wrong: that is no member of an operation. */
static enum batch_field wrong_field(const struct batch_operation *op, bool all)
{
	if (op->op < BATCH_READ || op->op > BATCH_XOR || (all && op->op != BATCH_READ && !is_store(op->op)))
		return BATCH_FIELD_OP;
	if (op->hint > (is_store(op->op) ? 4 : 0))
		return BATCH_FIELD_HINT;
	if (op->flags > (op->op == BATCH_MEMSET && !all ? BATCH_PUNCH : 0))
		return BATCH_FIELD_FLAGS;
	if (op->reserved != 0)
		return BATCH_FIELD_RESERVED;
	if (is_atomic(op->op) && op->addr % sizeof(uint64_t) != 0)
		return BATCH_FIELD_ADDR;
	if (is_atomic(op->op) ? op->length != sizeof(uint64_t) : op->length > INT64_MAX)
		return BATCH_FIELD_LENGTH;
	uint64_t argument_max = is_atomic(op->op) || is_copy(op->op)	   ? UINT64_MAX
				: op->op == BATCH_MEMSET && op->flags == 0 ? UINT8_MAX
									   : 0;
	if (op->argument > argument_max)
		return BATCH_FIELD_ARGUMENT;
	if (op->op != BATCH_COMPARE_EXCHANGE && op->expected != 0)
		return BATCH_FIELD_EXPECTED;
	return BATCH_FIELD_HEADER;
}

int batch_parse(struct batch *batch, const void *body, uint64_t size, struct pmemset_error *e)
{
	struct batch_header head;
	if (size < sizeof(head))
		return malformed(UINT32_MAX, BATCH_FIELD_HEADER, e);
	memcpy(&head, body, sizeof(head));
	uint64_t operations_size = head.count * (uint64_t)sizeof(struct batch_operation);
	if (head.magic != BATCH_MAGIC || head.version != BATCH_VERSION || head.durability > DURABILITY_DEEP || head.atomicity > BATCH_ALL ||
			(head.atomicity == BATCH_ALL && head.durability == DURABILITY_NONE) || head.reserved != 0 || head.count == 0 ||
			operations_size > size - sizeof(head))
		return malformed(UINT32_MAX, BATCH_FIELD_HEADER, e);
	*batch = (struct batch){.durability = head.durability,
			.all = head.atomicity == BATCH_ALL,
			.count = head.count,
			.operations = (const char *)body + sizeof(head),
			.data = (const char *)body + sizeof(head) + operations_size,
			.reply_size = sizeof(struct batch_reply)};
	uint64_t data = size - sizeof(head) - operations_size;
	for (uint32_t i = 0; i < head.count; i++) {
		struct batch_operation op = operation_at(batch, i);
		enum batch_field wrong = wrong_field(&op, batch->all);
		uint64_t result = op.op == BATCH_READ ? op.length : is_atomic(op.op) ? sizeof(struct atomic_result) : 0;
		if (wrong == BATCH_FIELD_HEADER && (op.op == BATCH_WRITE && op.length > data))
			wrong = BATCH_FIELD_LENGTH;
		if (wrong == BATCH_FIELD_HEADER && __builtin_add_overflow(batch->reply_size, result, &batch->reply_size))
			wrong = BATCH_FIELD_LENGTH;
		if (wrong != BATCH_FIELD_HEADER)
			return malformed(i, wrong, e);
		data -= op.op == BATCH_WRITE ? op.length : 0;
	}
	return data == 0 ? 0 : malformed(UINT32_MAX, BATCH_FIELD_HEADER, e);
}

/* ---- run ---- */

struct run {
	struct set *set;
	const struct batch *batch;
	struct storing storing;
	struct segments asked;	/* to be made durable whatever the batch's durability: ranges of persist and flush, words of atomics */
	struct part_map **pins; /* two for each operation; NULL: none */
	const char *data;	/* of the next write */
	char *results;		/* where the next one goes */
};

static unsigned store_flags(const struct batch_operation *op)
{
	static const unsigned flags[] = {0, PMEMSET_F_MEM_TEMPORAL, PMEMSET_F_MEM_NONTEMPORAL, PMEMSET_F_MEM_WC, PMEMSET_F_MEM_WB};
	return flags[op->hint];
}

/* Each range is inside of a map, and its file can be flushed where that is wanted. */
static int check(struct run *run, uint32_t i, struct pmemset_error *e)
{
	struct batch_operation op = operation_at(run->batch, i);
	int rc = access_pin(run->set, op.addr, op.length, &run->pins[2 * i], e);
	if (rc == 0 && is_copy(op.op))
		rc = access_pin(run->set, op.argument, op.length, &run->pins[2 * i + 1], e);
	bool flushed = is_store(op.op) ? run->batch->durability != DURABILITY_NONE : op.op != BATCH_READ;
	if (rc == 0 && flushed)
		rc = access_check_flushes(run->set, op.addr, op.addr + op.length, e);
	return rc;
}

static bool may_wait(const struct run *run)
{
	if (run->batch->all || order_is_held())
		return true;
	uint64_t bytes = 0;
	bool reads_only = true;
	for (uint32_t i = 0; i < run->batch->count; i++) {
		struct batch_operation op = operation_at(run->batch, i);
		reads_only &= op.op == BATCH_READ;
		if (op.flags & BATCH_PUNCH || __builtin_add_overflow(bytes, op.length, &bytes))
			return true;
	}
	if (bytes > NOWAIT_BYTES_MAX)
		return true;
	if (reads_only || run->batch->durability == DURABILITY_DEEP)
		return !reads_only;
	/* At page granularity a file system that is memory waits for nothing either, and its fdatasync has nothing to do. */
	return stores_of(run->set) == NULL && atomic_load(&run->set->waits);
}

/* Reads alone say where they would wait, for nothing was done by then. */
static int read_range(struct run *run, uint64_t addr, uint64_t length, char *to, bool nowait, struct pmemset_error *e)
{
	int rc = 0;
	for (uint64_t from = addr; rc == 0 && from < addr + length;) {
		struct segment s = segment_at(run->set, from, addr + length);
		storing_witness(&run->storing, &s);
		rc = segment_read(run->set, &s, to + (from - addr), nowait, e);
		from += s.length;
	}
	return rc;
}

/* Piece by piece, from the end that is not overwritten first. */
static int copy_range(struct run *run, const struct batch_operation *op, struct pmemset_error *e)
{
	bool backwards = op->addr - op->argument < op->length;
	uint64_t size = op->length < CHUNK_SIZE ? op->length : CHUNK_SIZE;
	char *bounce = malloc(size ? size : 1);
	int rc = bounce ? 0 : error_set(e, -ENOMEM, "no memory for a copy");
	for (uint64_t from = op->addr, to = op->addr + op->length; rc == 0 && from < to;) {
		uint64_t lo = backwards ? chunk_begin(from, to) : from;
		uint64_t hi = backwards ? to : chunk_end(from, to);
		rc = read_range(run, op->argument + (lo - op->addr), hi - lo, bounce, false, e);
		if (rc == 0)
			rc = storing_write(&run->storing, lo, bounce, hi - lo, store_flags(op), e);
		if (backwards)
			to = lo;
		else
			from = hi;
	}
	free(bounce);
	return rc;
}

static int ask(struct run *run, uint64_t addr, uint64_t length, struct pmemset_error *e)
{
	for (uint64_t from = addr; from < addr + length;) {
		struct segment s = segment_at(run->set, from, addr + length);
		int rc = segment_check_size(run->set, &s, false, e);
		if (rc == 0 && segments_push(&run->asked, &s) != 0)
			rc = error_set(e, -ENOMEM, "no memory for a flush");
		if (rc != 0)
			return rc;
		storing_witness(&run->storing, &s);
		from += s.length;
	}
	return 0;
}

static int run_atomic(struct run *run, const struct batch_operation *op, struct pmemset_error *e)
{
	struct atomic_result result;
	const struct atomic atomic = {.op = (enum atomic_op)(op->op - BATCH_COMPARE_EXCHANGE),
			.value = op->argument,
			.expected = op->expected,
			.result = &result};
	/* An aligned word is in one part. Asked for before it is stored: then there is memory for its flush. */
	struct segment s = segment_at(run->set, op->addr, op->addr + op->length);
	int rc = ask(run, op->addr, op->length, e);
	if (rc != 0)
		return rc;
	rc = segment_atomic(run->set, &s, &atomic, e);
	if (rc != 0) {
		run->asked.count--;
		return rc;
	}
	run->storing.written.bytes += sizeof(uint64_t);
	memcpy(run->results, &result, sizeof(result));
	run->results += sizeof(result);
	return 0;
}

static int perform(struct run *run, const struct batch_operation *op, bool nowait, struct pmemset_error *e)
{
	int rc = 0;
	if (!is_store(op->op))
		storing_pause(&run->storing);
	if (is_atomic(op->op))
		return run_atomic(run, op, e);
	if (is_copy(op->op))
		return copy_range(run, op, e);
	switch (op->op) {
	case BATCH_READ:
		rc = read_range(run, op->addr, op->length, run->results, nowait, e);
		run->results += rc ? 0 : op->length;
		return rc;
	case BATCH_WRITE:
		rc = storing_write(&run->storing, op->addr, run->data, op->length, store_flags(op), e);
		run->data += op->length;
		return rc;
	case BATCH_MEMSET:
		if (op->flags & BATCH_PUNCH)
			return storing_punch(&run->storing, op->addr, op->length, e);
		return storing_fill(&run->storing, op->addr, (unsigned char)op->argument, op->length, store_flags(op), e);
	default: /* persist and flush: every flush here waits */
		return ask(run, op->addr, op->length, e);
	}
}

/* Whatever was stored, as durable as asked; an error here is told only where there was none before. */
static int finish(struct run *run, int failed, struct pmemset_error *e)
{
	struct pmemset_error mine;
	int rc = storing_end(&run->storing, true, &mine);
	if (rc == 0 && run->asked.count > 0) {
		rc = segments_flush(run->set, &run->asked, DURABILITY_PERSISTED, &mine);
		for (size_t i = 0; rc != 0 && i < run->asked.count; i++)
			segment_soil(&run->asked.at[i]);
	}
	if (rc != 0)
		run->storing.written.durability = DURABILITY_NONE;
	if (rc != 0 && failed == 0)
		*e = mine;
	return failed ? failed : rc;
}

/* ---- all or nothing ---- */

/* A store that was evaluated: where it goes, and its bytes in the record. */
struct evaluated {
	struct segment to;
	const char *bytes;
	unsigned flags;
};

struct all {
	struct run *run;
	struct pending *pending;
	struct redo_log *log; /* of every file that is stored to; NULL: none so far */
	struct evaluated *stores;
	size_t count, capacity;
	uint64_t record_size;
	struct sized sized;
};

static int no_memory(struct pmemset_error *e)
{
	return error_set(e, -ENOMEM, "no memory for a batch");
}

/* Its row among the files of the pending; new ones are put there, and kept open. UINT32_MAX: no memory. */
static uint32_t row_of(struct pending *p, struct file *file)
{
	for (uint32_t i = p->held_count; i > 0; i--) /* the last one was asked for last */
		if (p->files[i - 1] == file)
			return i - 1;
	if ((p->held_count & (p->held_count - 1)) == 0) {
		struct file **more = realloc(p->files, (p->held_count ? p->held_count * 2 : 1) * sizeof(struct file *));
		if (more == NULL)
			return UINT32_MAX;
		p->files = more;
	}
	file_hold(file);
	p->files[p->held_count] = file;
	return p->held_count++;
}

/* Each part's piece of a range; stored to, or only read. */
static int gather_range(struct all *all, uint64_t addr, uint64_t length, bool stored, unsigned flags, struct pmemset_error *e)
{
	for (uint64_t from = addr; from < addr + length;) {
		struct segment s = segment_at(all->run->set, from, addr + length);
		if (row_of(all->pending, s.file) == UINT32_MAX || hold_add(&all->pending->hold, s.file, s.offset, s.length) != 0)
			return no_memory(e);
		from += s.length;
		if (!stored)
			continue;
		struct redo_log *log = atomic_load(&s.file->log);
		if (log == NULL || s.file->identity[0] == '\0')
			return error_set(e, -EOPNOTSUPP, "no redo log for a file that cannot be known again");
		if (all->log != NULL && all->log != log) {
			error_set(e, -EXDEV, "files of several volumes");
			e->reason = PMEMSET_REASON_VOLUMES;
			return e->code;
		}
		all->log = log;
		if (all->count == all->capacity) {
			size_t capacity = all->capacity ? all->capacity * 2 : 16;
			struct evaluated *more = realloc(all->stores, capacity * sizeof(*more));
			if (more == NULL)
				return no_memory(e);
			all->stores = more;
			all->capacity = capacity;
		}
		all->stores[all->count++] = (struct evaluated){.to = s, .flags = flags};
		all->record_size += record_entry_size(s.length);
	}
	return 0;
}

/* Files that are stored to come first, for they are the record's. */
static int gather(struct all *all, uint32_t *failed, struct pmemset_error *e)
{
	const struct batch *batch = all->run->batch;
	int rc = 0;
	for (uint32_t i = 0; rc == 0 && i < batch->count; i++) {
		struct batch_operation op = operation_at(batch, i);
		*failed = i;
		if (is_store(op.op))
			rc = gather_range(all, op.addr, op.length, true, store_flags(&op), e);
		if (rc == 0 && all->record_size > redo_record_max()) {
			rc = error_set(e, -ENOMEM, "the batch stores more than its log takes");
			e->reason = PMEMSET_REASON_LIMIT_RECORD;
			e->value = redo_record_max();
		}
	}
	all->pending->file_count = all->pending->held_count;
	all->record_size += record_base_size(all->pending->file_count);
	for (uint32_t i = 0; rc == 0 && i < batch->count; i++) {
		struct batch_operation op = operation_at(batch, i);
		*failed = i;
		if (op.op == BATCH_READ || is_copy(op.op))
			rc = gather_range(all, is_copy(op.op) ? op.argument : op.addr, op.length, false, 0, e);
	}
	return rc;
}

/* As it would be with the first `stored` of the stores made. */
static int look(struct all *all, size_t stored, uint64_t addr, uint64_t length, char *to, struct pmemset_error *e)
{
	int rc = read_range(all->run, addr, length, to, false, e);
	for (uint64_t from = addr; rc == 0 && from < addr + length && stored > 0;) {
		struct segment s = segment_at(all->run->set, from, addr + length);
		for (size_t i = 0; i < stored; i++) {
			const struct segment *over = &all->stores[i].to;
			uint64_t lo = over->offset > s.offset ? over->offset : s.offset;
			uint64_t hi = over->offset + over->length < s.offset + s.length ? over->offset + over->length : s.offset + s.length;
			if (over->file == s.file && lo < hi)
				memcpy(to + (from - addr) + (lo - s.offset), all->stores[i].bytes + (lo - over->offset), hi - lo);
		}
		from += s.length;
	}
	return rc;
}

/* The next of the stores is of this operation; *next: how many were evaluated. */
static int evaluate_store(struct all *all, const struct batch_operation *op, size_t *next, struct pmemset_error *e)
{
	const size_t before = *next;
	int rc = 0;
	for (uint64_t done = 0; rc == 0 && done < op->length;) {
		assert(all->stores != NULL && *next < all->count); /* as it was gathered */
		struct evaluated *store = &all->stores[*next];
		const struct segment *s = &store->to;
		char *to = record_add(&all->pending->record, row_of(all->pending, s->file), s->offset, s->length);
		rc = segment_check_sized(all->run->set, s, &all->sized, e);
		int why = rc == 0 ? file_fill_holes(s->file, s->offset, s->length) : 0;
		if (why != 0)
			rc = error_sys(e, 0, why, "allocate: %s", strerror(why));
		if (rc == 0 && is_copy(op->op))
			rc = look(all, before, op->argument + done, s->length, to, e);
		else if (rc == 0 && op->op == BATCH_WRITE)
			memcpy(to, all->run->data + done, s->length);
		else if (rc == 0)
			memset(to, (int)op->argument, s->length);
		store->bytes = to;
		done += s->length;
		++*next;
	}
	all->run->data += op->op == BATCH_WRITE ? op->length : 0;
	return rc;
}

/* Results, and what is to be stored; nothing is stored yet. */
static int evaluate(struct all *all, uint32_t *failed, struct pmemset_error *e)
{
	const struct batch *batch = all->run->batch;
	struct pending *p = all->pending;
	size_t next = 0;
	assert(p != NULL);
	int rc = record_begin(&p->record, p->file_count, all->record_size, e);
	for (uint32_t i = 0; rc == 0 && i < p->file_count; i++)
		record_set_file(&p->record, i, p->files[i]->identity);
	for (uint32_t i = 0; rc == 0 && i < batch->count; i++) {
		struct batch_operation op = operation_at(batch, i);
		*failed = i;
		if (op.op != BATCH_READ) {
			rc = evaluate_store(all, &op, &next, e);
		} else {
			rc = look(all, next, op.addr, op.length, all->run->results, e);
			all->run->results += rc ? 0 : op.length;
		}
	}
	if (rc == 0)
		record_seal(&p->record);
	return rc;
}

/* Where it belongs, each file at its own granularity, and durable. */
static int apply(struct all *all, struct pmemset_error *e)
{
	struct storing *storing = &all->run->storing;
	uint64_t bytes = 0;
	int rc = 0;
	for (size_t i = 0; i < all->count; i++) {
		const struct evaluated *store = &all->stores[i];
		bytes += store->to.length;
		if (rc == 0)
			rc = storing_write(storing, store->to.addr, store->bytes, store->to.length, store->flags, e);
	}
	storing->written.bytes = bytes; /* whatever comes, for it is committed */
	struct pmemset_error mine;
	int end = storing_end(storing, true, &mine);
	if (rc == 0 && end != 0)
		*e = mine;
	return rc ? rc : end;
}

static int commit_and_apply(struct all *all, uint32_t *done, struct pmemset_error *e)
{
	const uint32_t count = all->run->batch->count;
	struct pending *p = all->pending;
	if (all->count == 0) { /* it only looked */
		*done = count;
		return 0;
	}
	all->pending = NULL; /* the log's from here on */
	int rc = redo_commit(all->log, p, e);
	if (rc != 0)
		return rc;
	*done = count;
	struct redo_counts counts;
	struct pmemset_error ignored;
	rc = apply(all, e);
	redo_end(all->log, p, rc == 0);
	/* Memory that ran out is none of the medium's, and the log's own way needs less of it. */
	if (rc == -ENOMEM && redo_recover(all->log, &counts, &ignored) == 0 && counts.kept == 0)
		rc = 0;
	return rc;
}

/* What it could store is checked, held and evaluated; then it is written down, and from there on it happens. */
static int run_all(struct run *run, uint32_t *done, uint32_t *failed, struct pmemset_error *e)
{
	struct all all = {.run = run, .pending = calloc(1, sizeof(*all.pending))};
	int rc = all.pending ? gather(&all, failed, e) : no_memory(e);
	if (rc == 0) {
		struct redo_counts ignored;
		rc = order_hold(&all.pending->hold, e);
		/* What was in the way of an earlier one may be gone. */
		if (rc == -EBUSY && all.log != NULL && redo_recover(all.log, &ignored, e) == 0)
			rc = order_hold(&all.pending->hold, e);
		if (rc == 0)
			rc = evaluate(&all, failed, e);
		if (rc == 0) {
			*failed = run->batch->count;
			rc = commit_and_apply(&all, done, e);
		}
	}
	if (all.pending != NULL)
		pending_free(all.pending);
	free(all.stores);
	/* Nobody looks at what was not made. */
	if (*done == 0)
		run->storing.written.durability = DURABILITY_NONE;
	struct pmemset_error none;
	(void)storing_end(&run->storing, false, &none);
	return rc;
}

int batch_run(struct set *set, const struct batch *batch, bool nowait, void *reply, uint32_t *failed, struct pmemset_error *e)
{
	struct run run = {.set = set,
			.batch = batch,
			.storing = storing_begin(set, batch->durability),
			.pins = calloc(batch->count * (size_t)2, sizeof(struct part_map *)),
			.data = batch->data,
			.results = (char *)reply + sizeof(struct batch_reply)};
	uint32_t done = 0;
	int rc = run.pins ? 0 : error_set(e, -ENOMEM, "no memory for a batch");
	*failed = 0;
	for (uint32_t i = 0; rc == 0 && i < batch->count; i++) {
		rc = check(&run, i, e);
		*failed = i;
	}
	if (rc == 0 && nowait && may_wait(&run))
		rc = error_set(e, -EAGAIN, "it may wait for the disk");
	if (rc == 0 && batch->all) {
		rc = run_all(&run, &done, failed, e);
	} else if (rc == 0) {
		for (; rc == 0 && done < batch->count; done += rc == 0) {
			struct batch_operation op = operation_at(batch, done);
			rc = perform(&run, &op, nowait && stores_of(set) == NULL, e);
		}
		*failed = done;
		rc = finish(&run, rc, e);
	} else {
		run.storing.written.durability = DURABILITY_NONE;
		(void)storing_end(&run.storing, false, e);
	}
	for (uint32_t i = 0; run.pins != NULL && i < 2 * batch->count; i++)
		if (run.pins[i] != NULL)
			access_unpin(run.pins[i]);
	const struct written *w = &run.storing.written;
	const struct batch_reply head = {.magic = BATCH_REPLY_MAGIC,
			.version = BATCH_VERSION,
			.durability = (uint8_t)w->durability,
			.granularity = (uint8_t)atomic_load(&set->granularity),
			.persistence = (uint8_t)w->persistence,
			.simulated = w->simulated,
			.done = done,
			.bytes = w->bytes};
	memcpy(reply, &head, sizeof(head));
	free(run.asked.at);
	free(run.pins);
	return rc;
}
