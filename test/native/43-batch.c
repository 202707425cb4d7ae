/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many operations in one call, and many writes that share their flushes. The program is run at page granularity, and with `cache_line`
 * as its argument at that, pretended.
 */
#include "scene.h"

#include "batch.h"
#include "error.h"
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static uint32_t granularity = FFI_GRANULARITY_PAGE;

/* ---- batches, written down ---- */

#define BODY_MAX (4 * MIB)

struct body {
	char *bytes;
	uint64_t size, data_size;
	char *data;
	uint32_t count;
};

static struct body new_body(void)
{
	struct body b = {.bytes = malloc(BODY_MAX), .data = malloc(BODY_MAX), .size = sizeof(struct batch_header)};
	assert_non_null(b.bytes);
	assert_non_null(b.data);
	return b;
}

static void push(struct body *b, struct batch_operation op)
{
	assert_true(b->size + sizeof(op) <= BODY_MAX);
	memcpy(b->bytes + b->size, &op, sizeof(op));
	b->size += sizeof(op);
	b->count++;
}

static void push_write(struct body *b, uint64_t addr, const void *bytes, uint64_t length)
{
	push(b, (struct batch_operation){.op = BATCH_WRITE, .addr = addr, .length = length});
	memcpy(b->data + b->data_size, bytes, length);
	b->data_size += length;
}

static void seal(struct body *b, uint32_t durability)
{
	const struct batch_header head = {.magic = BATCH_MAGIC,
			.version = BATCH_VERSION,
			.durability = (uint8_t)durability,
			.count = b->count};
	memcpy(b->bytes, &head, sizeof(head));
	assert_true(b->size + b->data_size <= BODY_MAX);
	memcpy(b->bytes + b->size, b->data, b->data_size);
	b->size += b->data_size;
}

static void drop(struct body *b)
{
	free(b->bytes);
	free(b->data);
}

struct outcome {
	int rc;
	uint64_t failed;
	struct batch_reply head;
	char *results;
};

/* Off its alignment, as a client's body may be; the reply is exactly as large as it has to be, which AddressSanitizer watches. */
static struct outcome run(uint64_t set, const struct body *b, bool nowait)
{
	char *off = malloc(b->size + 1);
	assert_non_null(off);
	memcpy(off + 1, b->bytes, b->size);
	int64_t size = ffi_batch_check(off + 1, b->size, &err);
	assert_true(size >= (int64_t)sizeof(struct batch_reply));
	char *reply = calloc(1, (size_t)size);
	assert_non_null(reply);
	struct outcome o = {0};
	o.rc = ffi_batch(set, off + 1, b->size, reply, (uint64_t)size, nowait, &o.failed, &err);
	memcpy(&o.head, reply, sizeof(o.head));
	o.results = malloc((size_t)size);
	assert_non_null(o.results);
	memcpy(o.results, reply + sizeof(o.head), (size_t)size - sizeof(o.head));
	free(reply);
	free(off);
	return o;
}

/* One operation, and what an atomic gave. */
static int run_one(uint64_t set, struct batch_operation op, uint32_t durability, struct atomic_result *result)
{
	struct body b = new_body();
	push(&b, op);
	seal(&b, durability);
	struct outcome o = run(set, &b, false);
	if (result != NULL)
		memcpy(result, o.results, sizeof(*result));
	assert_int_equal(o.head.done, o.rc == 0);
	free(o.results);
	drop(&b);
	return o.rc;
}

/* Three parts of two files in one map, on whole pages; the last one has the bytes of the first. */
#define PARTS 3
#define PART_PAGES 2

static uint64_t map_parts(uint64_t set, const struct place *p)
{
	uint64_t addr = 0;
	make_file(p, "a", PART_PAGES * PAGE, 0);
	make_file(p, "b", PART_PAGES * PAGE, 0);
	for (int i = 0; i < PARTS; i++) {
		struct ffi_part part = must_map(set, p, i == 1 ? "b" : "a", (struct ffi_part_spec){.length = PART_PAGES * PAGE});
		addr = i == 0 ? part.addr : addr;
		assert_int_equal(part.map_addr, addr);
	}
	return addr;
}

/* ---- against a model ---- */

#define MODEL_SIZE (PARTS * PART_PAGES * PAGE)

/* A store through one alias shows in the other. */
static void store(unsigned char *model, uint64_t at, const unsigned char *bytes, uint64_t length)
{
	uint64_t part = PART_PAGES * PAGE;
	for (uint64_t i = 0; i < length; i++) {
		model[at + i] = bytes[i];
		if (at + i < part)
			model[at + i + 2 * part] = bytes[i];
		else if (at + i >= 2 * part)
			model[at + i - 2 * part] = bytes[i];
	}
}

static uint64_t word_at(const unsigned char *model, uint64_t at)
{
	uint64_t word;
	memcpy(&word, model + at, sizeof(word));
	return word;
}

static uint64_t model_atomic(uint8_t op, uint64_t word, uint64_t value, uint64_t expected)
{
	switch (op) {
	case BATCH_COMPARE_EXCHANGE:
		return word == expected ? value : word;
	case BATCH_EXCHANGE:
		return value;
	case BATCH_ADD:
		return word + value;
	case BATCH_AND:
		return word & value;
	case BATCH_OR:
		return word | value;
	default:
		return word ^ value;
	}
}

/* Adds a random operation, does it to the model, and appends what it is to answer. */
static void push_random(struct body *b, uint64_t addr, unsigned char *model, char *results, uint64_t *results_size)
{
	static unsigned char bytes[64 * 1024];
	uint64_t at = chance(MODEL_SIZE);
	uint64_t length = chance(4) == 0 ? chance(MODEL_SIZE - at + 1) : chance(MODEL_SIZE - at < 64 ? MODEL_SIZE - at + 1 : 65);
	struct batch_operation op = {.op = (uint8_t)(1 + chance(BATCH_XOR)), .addr = addr + at, .length = length};
	assert_true(MODEL_SIZE <= sizeof(bytes));
	if (op.op == BATCH_READ) {
		memcpy(results + *results_size, model + at, length);
		*results_size += length;
	} else if (op.op == BATCH_WRITE) {
		for (uint64_t i = 0; i < length; i++)
			bytes[i] = (unsigned char)chance(256);
		store(model, at, bytes, length);
		push_write(b, op.addr, bytes, length);
		return;
	} else if (op.op == BATCH_MEMSET) {
		op.argument = chance(256);
		op.hint = (uint8_t)chance(5);
		memset(bytes, (int)op.argument, length);
		store(model, at, bytes, length);
	} else if (op.op == BATCH_MEMCPY || op.op == BATCH_MEMMOVE) {
		/* Within the aliases bytes would be changed before they are read, as memmove cannot know: from the other file. */
		uint64_t part = PART_PAGES * PAGE;
		op.length = length = chance(part + 1);
		bool within = chance(2) == 0;
		at = within ? part + chance(part - length + 1) : chance(part - length + 1);
		uint64_t from = part + chance(part - length + 1);
		op.addr = addr + at;
		op.argument = addr + from;
		memcpy(bytes, model + from, length);
		store(model, at, bytes, length);
	} else if (op.op >= BATCH_COMPARE_EXCHANGE) {
		at -= at % 8;
		uint64_t before = word_at(model, at);
		op.addr = addr + at;
		op.length = 8;
		op.argument = chance(UINT64_MAX);
		op.expected = op.op == BATCH_COMPARE_EXCHANGE ? (chance(2) == 0 ? before : chance(UINT64_MAX)) : 0;
		uint64_t after = model_atomic(op.op, before, op.argument, op.expected);
		store(model, at, (const unsigned char *)&after, 8);
		memcpy(results + *results_size, (uint64_t[]){before, after}, 16);
		*results_size += 16;
	}
	push(b, op);
}

static void a_batch_does_what_its_operations_say_one_after_the_other(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_FULL, 64 * MIB);
	uint64_t addr = map_parts(set, p);
	unsigned char *model = calloc(1, MODEL_SIZE);
	unsigned char *seen = malloc(MODEL_SIZE);
	char *results = malloc(BODY_MAX);
	assert_true(model && seen && results);
	print_message("seed %llu\n", (unsigned long long)seed_chance());
	for (int round = 0; round < 150; round++) {
		struct body b = new_body();
		uint64_t results_size = 0;
		for (uint64_t n = 1 + chance(40); n > 0; n--)
			push_random(&b, addr, model, results, &results_size);
		uint32_t durability = (uint32_t)chance(4);
		seal(&b, durability);
		struct outcome o = run(set, &b, false);
		assert_int_equal(o.rc, 0);
		assert_int_equal(o.head.done, b.count);
		assert_int_equal(o.head.durability, durability == FFI_DURABILITY_FLUSHED ? FFI_DURABILITY_PERSISTED : durability);
		assert_memory_equal(o.results, results, results_size);
		must(ffi_read(set, addr, seen, MODEL_SIZE, 0, &err));
		assert_memory_equal(seen, model, MODEL_SIZE);
		free(o.results);
		drop(&b);
	}
	free(results);
	free(seen);
	free(model);
	delete_set(set);
}

/* ---- what is refused ---- */

static void a_batch_that_is_not_well_formed_is_refused_with_its_place(void **state)
{
	(void)state;
	const struct batch_operation read = {.op = BATCH_READ, .addr = 8, .length = 8};
	const struct {
		struct batch_operation op;
		enum batch_field field;
	} wrong[] = {
			{{.op = 0, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_XOR + 1, .length = 8}, BATCH_FIELD_OP},
			{{.op = BATCH_READ, .hint = 1}, BATCH_FIELD_HINT},
			{{.op = BATCH_MEMSET, .hint = 5}, BATCH_FIELD_HINT},
			{{.op = BATCH_MEMCPY, .flags = BATCH_PUNCH}, BATCH_FIELD_FLAGS},
			{{.op = BATCH_MEMSET, .flags = 2}, BATCH_FIELD_FLAGS},
			{{.op = BATCH_READ, .reserved = 1}, BATCH_FIELD_RESERVED},
			{{.op = BATCH_ADD, .addr = 4, .length = 8}, BATCH_FIELD_ADDR},
			{{.op = BATCH_ADD, .addr = 8, .length = 4}, BATCH_FIELD_LENGTH},
			{{.op = BATCH_READ, .length = UINT64_MAX}, BATCH_FIELD_LENGTH},
			{{.op = BATCH_READ, .length = INT64_MAX}, BATCH_FIELD_LENGTH}, /* the third of these is one too many */
			{{.op = BATCH_WRITE, .length = 1}, BATCH_FIELD_LENGTH},	       /* and there is no data */
			{{.op = BATCH_MEMSET, .argument = 256}, BATCH_FIELD_ARGUMENT},
			{{.op = BATCH_MEMSET, .flags = BATCH_PUNCH, .argument = 1}, BATCH_FIELD_ARGUMENT},
			{{.op = BATCH_PERSIST, .argument = 1}, BATCH_FIELD_ARGUMENT},
			{{.op = BATCH_EXCHANGE, .length = 8, .expected = 1}, BATCH_FIELD_EXPECTED},
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct body b = new_body();
		push(&b, read);
		push(&b, wrong[i].op);
		if (wrong[i].op.length == INT64_MAX)
			push(&b, wrong[i].op);
		seal(&b, FFI_DURABILITY_PERSISTED);
		assert_int_equal(ffi_batch_check(b.bytes, b.size, &err), -EINVAL);
		assert_int_equal(err.reason, PMEMSET_REASON_MALFORMED);
		assert_int_equal(err.value, wrong[i].op.length == INT64_MAX ? 2 : 1);
		assert_int_equal(err.size, wrong[i].field);
		drop(&b);
	}
}

static void a_header_that_is_not_a_batchs_is_refused(void **state)
{
	(void)state;
	const struct batch_header good = {.magic = BATCH_MAGIC, .version = BATCH_VERSION, .durability = 2, .count = 1};
	struct batch_header wrong[] = {good, good, good, good, good, good, good};
	wrong[0].magic++;
	wrong[1].version++;
	wrong[2].durability = 4;
	wrong[3].atomicity = 2;
	wrong[4].count = 0;
	wrong[5].count = UINT32_MAX;
	wrong[6].reserved = 1;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct body b = new_body();
		push(&b, (struct batch_operation){.op = BATCH_READ});
		seal(&b, 0);
		memcpy(b.bytes, &wrong[i], sizeof(good));
		assert_int_equal(ffi_batch_check(b.bytes, b.size, &err), -EINVAL);
		assert_int_equal(err.value, UINT32_MAX);
		assert_int_equal(err.size, BATCH_FIELD_HEADER);
		drop(&b);
	}
}

static void a_batch_cut_anywhere_is_refused(void **state)
{
	(void)state;
	struct body b = new_body();
	push(&b, (struct batch_operation){.op = BATCH_READ, .length = 5});
	push_write(&b, 0, "twelve bytes", 12);
	seal(&b, FFI_DURABILITY_NONE);
	assert_int_equal(ffi_batch_check(b.bytes, b.size, &err), sizeof(struct batch_reply) + 5);
	for (uint64_t size = 0; size < b.size; size++) {
		char *cut = malloc(size + 1); /* of that size, so that a read behind it is seen */
		assert_non_null(cut);
		char *exact = realloc(cut, size ? size : 1);
		assert_non_null(exact);
		memcpy(exact, b.bytes, size);
		assert_int_equal(ffi_batch_check(exact, size, &err), -EINVAL);
		free(exact);
	}
	drop(&b);
}

static void a_refused_range_leaves_everything_as_it_was(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_FULL, 64 * MIB);
	uint64_t addr = map_parts(set, p);
	const struct {
		struct batch_operation op;
		int code;
	} wrong[] = {
			{{.op = BATCH_READ, .addr = addr + MODEL_SIZE - 1, .length = 2}, PMEMSET_E_LENGTH_OUT_OF_RANGE},
			{{.op = BATCH_MEMSET, .addr = addr - 1, .length = 1}, PMEMSET_E_CANNOT_FIND_PART_MAP},
			{{.op = BATCH_MEMCPY, .addr = addr, .argument = addr + MODEL_SIZE, .length = 1}, PMEMSET_E_CANNOT_FIND_PART_MAP},
			{{.op = BATCH_ADD, .addr = addr + MODEL_SIZE, .length = 8, .argument = 1}, PMEMSET_E_CANNOT_FIND_PART_MAP},
			{{.op = BATCH_PERSIST, .addr = addr, .length = MODEL_SIZE + 1}, PMEMSET_E_LENGTH_OUT_OF_RANGE},
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct body b = new_body();
		push(&b, (struct batch_operation){.op = BATCH_MEMSET, .addr = addr, .length = 64, .argument = 7});
		push(&b, wrong[i].op);
		push(&b, (struct batch_operation){.op = BATCH_MEMSET, .addr = addr, .length = 64, .argument = 8});
		seal(&b, FFI_DURABILITY_PERSISTED);
		struct outcome o = run(set, &b, false);
		assert_int_equal(o.rc, wrong[i].code);
		assert_int_equal(o.failed, 1);
		assert_int_equal(o.head.done, 0);
		assert_int_equal(o.head.bytes, 0);
		unsigned char first = 1;
		must(ffi_read(set, addr, &first, 1, 0, &err));
		assert_int_equal(first, 0);
		free(o.results);
		drop(&b);
	}
	delete_set(set);
}

static void it_stops_at_the_first_failure_and_says_how_far_it_came(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_FULL, 64 * MIB);
	uint64_t addr = map_parts(set, p);
	assert_int_equal(truncate(path_in(p, "b"), (off_t)(PAGE / 2)), 0);
	struct body b = new_body();
	push(&b, (struct batch_operation){.op = BATCH_ADD, .addr = addr + 8, .length = 8, .argument = 5});
	push_write(&b, addr, "before", 6);
	push_write(&b, addr + PART_PAGES * PAGE + PAGE, "gone", 4);
	push_write(&b, addr + 64, "after", 5);
	seal(&b, FFI_DURABILITY_PERSISTED);
	struct outcome o = run(set, &b, false);
	assert_int_equal(o.rc, PMEMSET_E_IO_FAIL);
	assert_int_equal(err.reason, PMEMSET_REASON_TRUNCATED);
	assert_int_equal(o.failed, 2);
	assert_int_equal(o.head.done, 2);
	assert_int_equal(o.head.bytes, 8 + 6);
	assert_int_equal(o.head.durability, FFI_DURABILITY_PERSISTED);
	assert_memory_equal(o.results, ((uint64_t[]){0, 5}), 16);
	char seen[80];
	must(ffi_read(set, addr, seen, sizeof(seen), 0, &err));
	assert_memory_equal(seen, "before", 6);
	assert_int_equal(seen[64], 0);
	assert_int_equal(file_size(p, "b"), PAGE / 2);
	free(o.results);
	drop(&b);
	/* Each of the operations that touch what is gone. */
	uint64_t gone = addr + PART_PAGES * PAGE + PAGE;
	fails(run_one(set, (struct batch_operation){.op = BATCH_ADD, .addr = gone, .length = 8, .argument = 1}, 0, NULL),
			PMEMSET_E_IO_FAIL);
	fails(run_one(set, (struct batch_operation){.op = BATCH_READ, .addr = gone, .length = 8}, 0, NULL), PMEMSET_E_IO_FAIL);
	fails(run_one(set, (struct batch_operation){.op = BATCH_MEMSET, .addr = gone, .length = PAGE}, 0, NULL), PMEMSET_E_IO_FAIL);
	fails(run_one(set, (struct batch_operation){.op = BATCH_MEMSET, .flags = BATCH_PUNCH, .addr = gone, .length = PAGE}, 0, NULL),
			PMEMSET_E_IO_FAIL);
	fails(run_one(set, (struct batch_operation){.op = BATCH_MEMCPY, .addr = addr, .argument = gone, .length = 8}, 0, NULL),
			PMEMSET_E_IO_FAIL);
	fails(run_one(set, (struct batch_operation){.op = BATCH_PERSIST, .addr = gone, .length = 8}, 0, NULL), PMEMSET_E_IO_FAIL);
	assert_int_equal(file_size(p, "b"), PAGE / 2);
	assert_int_equal(truncate(path_in(p, "b"), (off_t)(PART_PAGES * PAGE)), 0);
	delete_set(set);
}

static void memmove_of_overlapping_ranges_moves_either_way(void **state)
{
	struct place *p = here(state);
	const uint64_t size = 5 * MIB; /* several pieces */
	make_file(p, "big", size, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	uint64_t addr = must_map(set, p, "big", (struct ffi_part_spec){.length = size}).addr;
	unsigned char *bytes = malloc(size);
	unsigned char *seen = malloc(size);
	assert_true(bytes && seen);
	for (int up = 0; up < 2; up++) {
		for (uint64_t i = 0; i < size; i++)
			bytes[i] = byte_of(9 + (unsigned)up, i);
		struct ffi_written w;
		must(ffi_write(set, addr, bytes, size, FFI_DURABILITY_NONE, &w, &err));
		uint64_t from = up ? 0 : 777;
		uint64_t to = 777 - from;
		memmove(bytes + to, bytes + from, size - 777);
		must(run_one(set,
				(struct batch_operation){.op = BATCH_MEMMOVE,
						.addr = addr + to,
						.argument = addr + from,
						.length = size - 777},
				FFI_DURABILITY_PERSISTED, NULL));
		must(ffi_read(set, addr, seen, size, 0, &err));
		assert_memory_equal(seen, bytes, size);
	}
	free(seen);
	free(bytes);
	delete_set(set);
}

static void a_punched_range_is_zeros_and_has_its_space(void **state)
{
	struct place *p = here(state);
	make_file(p, "full", 8 * PAGE, 3);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	uint64_t addr = must_map(set, p, "full", (struct ffi_part_spec){.length = 8 * PAGE}).addr;
	struct stat before, after;
	assert_int_equal(stat(path_in(p, "full"), &before), 0);
	must(run_one(set, (struct batch_operation){.op = BATCH_MEMSET, .flags = BATCH_PUNCH, .addr = addr + PAGE - 3, .length = 4 * PAGE},
			FFI_DURABILITY_PERSISTED, NULL));
	assert_int_equal(stat(path_in(p, "full"), &after), 0);
	assert_int_equal(after.st_blocks, before.st_blocks);
	assert_int_equal(after.st_size, before.st_size);
	unsigned char *seen = malloc(8 * PAGE);
	assert_non_null(seen);
	must(ffi_read(set, addr, seen, 8 * PAGE, 0, &err));
	for (uint64_t i = 0; i < 8 * PAGE; i++)
		assert_int_equal(seen[i], i >= PAGE - 3 && i < 5 * PAGE - 3 ? 0 : byte_of(3, i));
	free(seen);
	delete_set(set);
}

static void where_it_would_wait_nothing_is_done(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_FULL, 64 * MIB);
	uint64_t addr = map_parts(set, p);
	struct body b = new_body();
	push(&b, (struct batch_operation){.op = BATCH_ADD, .addr = addr, .length = 8, .argument = 1});
	seal(&b, FFI_DURABILITY_NONE);
	struct outcome o = run(set, &b, true);
	bool waits = granularity == FFI_GRANULARITY_PAGE && p != &places[0]; /* tmpfs is memory */
	assert_int_equal(o.rc, waits ? -EAGAIN : 0);
	uint64_t word = 9;
	must(ffi_read(set, addr, &word, 8, 0, &err));
	assert_int_equal(word, waits ? 0 : 1);
	free(o.results);
	drop(&b);
	/* Now it is in memory, and can be read by whoever may not wait. */
	b = new_body();
	push(&b, (struct batch_operation){.op = BATCH_READ, .addr = addr, .length = 8});
	seal(&b, FFI_DURABILITY_NONE);
	o = run(set, &b, true);
	assert_int_equal(o.rc, 0);
	free(o.results);
	drop(&b);
	delete_set(set);
}

/* ---- at the same time ---- */

#define THREADS 4
#define ADDS 2000

struct adder {
	uint64_t set, addr;
	int failures;
};

static void *add_often(void *arg)
{
	struct adder *a = arg;
	struct {
		struct batch_header head;
		struct batch_operation op;
	} body = {{.magic = BATCH_MAGIC, .version = BATCH_VERSION, .count = 1},
			{.op = BATCH_ADD, .addr = a->addr, .length = 8, .argument = 1}};
	char reply[sizeof(struct batch_reply) + sizeof(struct atomic_result)];
	struct pmemset_error mine;
	uint64_t failed;
	for (int i = 0; i < ADDS; i++)
		a->failures += ffi_batch(a->set, &body, sizeof(body), reply, sizeof(reply), 0, &failed, &mine) != 0;
	return NULL;
}

static void atomics_through_aliases_of_one_word_lose_nothing(void **state)
{
	(void)state;
	struct place *p = &places[0]; /* on the disk each add would be a flush */
	uint64_t set = new_set(FFI_COALESCING_FULL, 64 * MIB);
	uint64_t addr = map_parts(set, p);
	pthread_t threads[THREADS];
	struct adder adders[THREADS];
	for (int i = 0; i < THREADS; i++) {
		adders[i] = (struct adder){.set = set, .addr = addr + (i % 2 ? 2 * PART_PAGES * PAGE : 0)};
		assert_int_equal(pthread_create(&threads[i], NULL, add_often, &adders[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_int_equal(adders[i].failures, 0);
	}
	uint64_t sum;
	must(ffi_read(set, addr, &sum, 8, 0, &err));
	assert_int_equal(sum, THREADS * ADDS);
	delete_set(set);
}

/* ---- many writes ---- */

static void each_of_many_writes_has_an_outcome_of_its_own(void **state)
{
	struct place *p = here(state);
	uint64_t set = new_set(FFI_COALESCING_FULL, 64 * MIB);
	uint64_t addr = map_parts(set, p);
	struct ffi_write rows[] = {
			{.set = set, .addr = addr, .length = 4, .data_offset = 0, .durability = FFI_DURABILITY_PERSISTED},
			{.set = 0xdead, .addr = addr, .length = 4, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = addr + MODEL_SIZE - 1, .length = 2, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = addr + PAGE, .length = 4, .data_offset = 4, .durability = FFI_DURABILITY_NONE},
			{.set = set, .addr = addr, .length = 5, .data_offset = 4, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = addr, .length = 1, .durability = 4},
			{.set = set,
					.addr = addr + PART_PAGES * PAGE - 2,
					.length = 4,
					.data_offset = 2,
					.durability = FFI_DURABILITY_FLUSHED},
			{.set = set, .addr = addr, .length = 0, .data_offset = 8, .durability = FFI_DURABILITY_DEEP},
	};
	const int64_t codes[] = {0, -EBADF, PMEMSET_E_LENGTH_OUT_OF_RANGE, 0, -EINVAL, -EINVAL, 0, 0};
	const size_t count = sizeof(rows) / sizeof(rows[0]);
	struct pmemset_error errs[sizeof(rows) / sizeof(rows[0])];
	assert_int_equal(ffi_write_many(rows, count, "abcdefgh", 8, errs), 4);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(rows[i].rc, codes[i]);
		assert_int_equal(rows[i].bytes, codes[i] ? 0 : rows[i].length);
		if (codes[i] != 0)
			assert_int_equal(errs[i].code, codes[i]);
		else
			assert_int_equal(rows[i].reached & 0xffff,
					(rows[i].durability == FFI_DURABILITY_FLUSHED ? FFI_DURABILITY_PERSISTED : rows[i].durability) |
							granularity << 8);
	}
	char seen[4];
	must(ffi_read(set, addr, seen, 4, 0, &err));
	assert_memory_equal(seen, "abcd", 4);
	must(ffi_read(set, addr + PART_PAGES * PAGE - 2, seen, 4, 0, &err));
	assert_memory_equal(seen, "cdef", 4);
	assert_int_equal(ffi_write_many(NULL, 0, "", 0, NULL), 0);
	delete_set(set);
}

/* What is stored through the mapping goes by these, and so does what the functions of C copy, from either end. */
static void chunks_end_where_a_word_does(void **state)
{
	(void)state;
	for (int i = 0; i < 2000; i++) {
		uint64_t from = PAGE + chance(64);
		uint64_t to = from + 1 + chance(i % 2 ? 64 : 4 * MIB);
		uint64_t up = from;
		for (uint64_t end; up < to; up = end) {
			end = chunk_end(up, to);
			assert_in_range(end, up + 1, up + CHUNK_SIZE);
			assert_true(end == to || end % 8 == 0);
		}
		assert_int_equal(up, to);
		uint64_t down = to;
		for (uint64_t begin; down > from; down = begin) {
			begin = chunk_begin(from, down);
			assert_in_range(begin, down > CHUNK_SIZE ? down - CHUNK_SIZE : 0, down - 1);
			assert_true(begin == from || begin % 8 == 0);
		}
		assert_int_equal(down, from);
	}
}

/* ---- of the page cache ---- */

/* Two durable writes that share a round. */
static bool are_flushed_by_range(uint64_t set, uint64_t addr)
{
	struct ffi_counters before;
	struct ffi_counters after;
	struct ffi_write rows[] = {
			{.set = set, .addr = addr, .length = 4, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = addr + 2 * PAGE, .length = 4, .durability = FFI_DURABILITY_PERSISTED},
	};
	struct pmemset_error errs[2];
	ffi_counters(&before);
	assert_int_equal(ffi_write_many(rows, 2, "abcd", 4, errs), 0);
	ffi_counters(&after);
	assert_int_equal(after.flushes_of_ranges + after.flushes_of_files, before.flushes_of_ranges + before.flushes_of_files + 1);
	return after.flushes_of_ranges > before.flushes_of_ranges;
}

/* A flush of the file is one, and of ranges one each; but of somebody else's dirt nobody asked to have it flushed. */
static void what_was_flushed_by_range_is_in_nobodys_way(void **state)
{
	struct place *p = here(state);
	struct ffi_written written;
	make_file(p, "flushed", 4 * PAGE, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	uint64_t addr = must_map(set, p, "flushed", (struct ffi_part_spec){.length = 4 * PAGE}).addr;
	assert_false(are_flushed_by_range(set, addr));
	must(ffi_write(set, addr + PAGE, "none", 4, FFI_DURABILITY_NONE, &written, &err));
	assert_true(are_flushed_by_range(set, addr));
	must(ffi_persist(set, (uint64_t[]){addr + PAGE, 4}, 1, FFI_DURABILITY_PERSISTED, &written, &err));
	assert_false(are_flushed_by_range(set, addr));
	delete_set(set);
}

#define UNIT UINT64_C(32768)
static _Atomic unsigned writes_across_units, writes_to_within_a_word;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
ssize_t __real_pwrite(int fd, const void *buf, size_t size, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset);

ssize_t __wrap_pwrite(int fd, const void *buf, size_t size, off_t offset)
{
	uint64_t end = (uint64_t)offset + size;
	writes_across_units += (uint64_t)offset / UNIT != (end - 1) / UNIT;
	writes_to_within_a_word += end % 8 != 0;
	return __real_pwrite(fd, buf, size, offset);
}
/* NOLINTEND(bugprone-reserved-identifier) */

/* As the kernel keeps together what comes in one, and a small write there then costs as much as all of it has blocks. */
static void a_large_store_is_many_writes_and_tears_no_word(void **state)
{
	struct place *p = here(state);
	const uint64_t size = 2 * MIB + 1;
	make_file(p, "large", size + PAGE, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	uint64_t addr = must_map(set, p, "large", (struct ffi_part_spec){.length = (size / PAGE + 1) * PAGE}).addr;
	char *bytes = malloc(size);
	char *seen = malloc(size);
	assert_true(bytes != NULL && seen != NULL);
	for (uint64_t i = 0; i < size; i++)
		bytes[i] = (char)byte_of(7, i);
	for (int how = 0; how < 4; how++) {
		struct ffi_written written;
		struct body b = new_body();
		writes_across_units = writes_to_within_a_word = 0;
		if (how == 0) {
			must(ffi_write(set, addr + 100, bytes, size, FFI_DURABILITY_NONE, &written, &err));
			assert_int_equal(written.bytes, size);
		} else if (how == 1) {
			const uint64_t at[] = {0, 13, 14, 14, 70015, 70016, size};
			uint64_t pieces[12];
			for (int i = 0; i < 6; i++) {
				pieces[2 * i] = (uint64_t)(uintptr_t)bytes + at[i];
				pieces[2 * i + 1] = at[i + 1] - at[i];
			}
			must(ffi_write_pieces(set, addr + 100, pieces, 6, FFI_DURABILITY_NONE, &written, &err));
			assert_int_equal(written.bytes, size);
		} else {
			push(&b, how == 2 ? (struct batch_operation){.op = BATCH_MEMMOVE,
							    .addr = addr + 101,
							    .argument = addr + 100,
							    .length = size}
					  : (struct batch_operation){.op = BATCH_MEMSET,
							    .addr = addr + 101,
							    .length = size,
							    .argument = 0x5a});
			seal(&b, FFI_DURABILITY_NONE);
			struct outcome o = run(set, &b, false);
			assert_int_equal(o.rc, 0);
			free(o.results);
		}
		drop(&b);
		assert_int_equal(writes_across_units, 0);
		assert_in_range(writes_to_within_a_word, 0, 1); /* the last */
		must(ffi_read(set, addr + (how < 2 ? 100 : 101), seen, size, 0, &err));
		if (how == 3)
			memset(bytes, 0x5a, size);
		assert_memory_equal(seen, bytes, size);
	}
	free(bytes);
	free(seen);
	delete_set(set);
}

static void a_flush_that_fails_fails_the_writes_of_its_file_alone(void **state)
{
	(void)state;
	struct disk d;
	struct place *p = &places[0];
	open_disk(&d, p, 8 * PAGE);
	make_file(p, "good", PAGE, 0);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	uint64_t bad = must_map(set, &d.place, "x", (struct ffi_part_spec){.length = 8 * PAGE}).addr;
	uint64_t good = must_map(set, p, "good", (struct ffi_part_spec){.length = PAGE}).addr;
	break_disk(&d);
	struct ffi_write rows[] = {
			{.set = set, .addr = good, .length = 4, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = bad, .length = 4, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = bad + PAGE, .length = 4, .durability = FFI_DURABILITY_PERSISTED},
			{.set = set, .addr = bad + 2 * PAGE, .length = 4, .durability = FFI_DURABILITY_NONE},
	};
	struct pmemset_error errs[4];
	assert_int_equal(ffi_write_many(rows, 4, "abcd", 4, errs), 2);
	assert_int_equal(rows[0].rc, 0);
	assert_int_equal(rows[3].rc, 0);
	for (int i = 1; i < 3; i++) {
		assert_int_equal(rows[i].rc, -EIO);
		assert_int_equal(errs[i].reason, PMEMSET_REASON_PERSIST_FAILED);
		assert_int_equal(errs[i].value, 4);
	}
	/* And a batch: refused before its first operation, since its flush could not be believed. */
	struct body b = new_body();
	push(&b, (struct batch_operation){.op = BATCH_MEMSET, .addr = good, .length = 4, .argument = 1});
	push(&b, (struct batch_operation){.op = BATCH_MEMSET, .addr = bad, .length = 4, .argument = 1});
	seal(&b, FFI_DURABILITY_PERSISTED);
	struct outcome o = run(set, &b, false);
	assert_int_equal(o.rc, -EIO);
	assert_int_equal(err.reason, PMEMSET_REASON_DEGRADED);
	assert_int_equal(o.failed, 1);
	assert_int_equal(o.head.done, 0);
	free(o.results);
	drop(&b);
	mend_disk(&d);
	forget_failure(&d.place, "x");
	delete_set(set);
	close_disk(&d);
}

static void a_batch_whose_flush_fails_says_that_nothing_is_durable(void **state)
{
	(void)state;
	struct disk d;
	open_disk(&d, &places[0], 8 * PAGE);
	uint64_t set = new_set(FFI_COALESCING_NONE, 64 * MIB);
	uint64_t addr = must_map(set, &d.place, "x", (struct ffi_part_spec){.length = 8 * PAGE}).addr;
	break_disk(&d);
	struct body b = new_body();
	push(&b, (struct batch_operation){.op = BATCH_MEMSET, .addr = addr, .length = 4, .argument = 1});
	push(&b, (struct batch_operation){.op = BATCH_ADD, .addr = addr + 8, .length = 8, .argument = 1});
	seal(&b, FFI_DURABILITY_NONE); /* an atomic is durable all the same */
	struct outcome o = run(set, &b, false);
	assert_int_equal(o.rc, -EIO);
	assert_int_equal(err.reason, PMEMSET_REASON_PERSIST_FAILED);
	assert_int_equal(o.failed, 2);
	assert_int_equal(o.head.done, 2);
	assert_int_equal(o.head.durability, FFI_DURABILITY_NONE);
	free(o.results);
	drop(&b);
	mend_disk(&d);
	forget_failure(&d.place, "x");
	delete_set(set);
	close_disk(&d);
}

#define OF_PAGES 6 /* ON_EACH is two */

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
			ON_EACH(a_batch_does_what_its_operations_say_one_after_the_other),
			ONCE(a_batch_that_is_not_well_formed_is_refused_with_its_place),
			ONCE(a_header_that_is_not_a_batchs_is_refused),
			ONCE(a_batch_cut_anywhere_is_refused),
			ON_EACH(a_refused_range_leaves_everything_as_it_was),
			ON_EACH(it_stops_at_the_first_failure_and_says_how_far_it_came),
			ON_EACH(memmove_of_overlapping_ranges_moves_either_way),
			ON_EACH(a_punched_range_is_zeros_and_has_its_space),
			ON_EACH(where_it_would_wait_nothing_is_done),
			ONCE(atomics_through_aliases_of_one_word_lose_nothing),
			ON_EACH(each_of_many_writes_has_an_outcome_of_its_own),
			ONCE(chunks_end_where_a_word_does),
			/* Of the page cache, so these are last and left out elsewhere. */
			ON_EACH(what_was_flushed_by_range_is_in_nobodys_way),
			ON_EACH(a_large_store_is_many_writes_and_tears_no_word),
			ONCE(a_flush_that_fails_fails_the_writes_of_its_file_alone),
			ONCE(a_batch_whose_flush_fails_says_that_nothing_is_durable),
	};
	size_t count = sizeof(tests) / sizeof(tests[0]);
	if (argc > 1 && strcmp(argv[1], "cache_line") == 0) {
		granularity = FFI_GRANULARITY_CACHE_LINE;
		return scene_run("batch", tests, count - OF_PAGES, granularity);
	}
	return scene_run("batch", tests, count, FFI_GRANULARITY_UNSET);
}
