/* SPDX-License-Identifier: BSD-3-Clause */
#include "record.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(struct record_head) == 64 && sizeof(struct record_entry) == 24 && IDENTITY_SIZE == 128, "what redo-log.md says");

#define POLYNOMIAL UINT64_C(0xc96c5795d7870f42) /* of the sum, its bits in reverse */
#define WORD sizeof(uint64_t)

/* ---- sums ---- */

/* Row n: what a byte does to the sum of n bytes behind it. */
static uint64_t table[WORD][256];
static pthread_once_t table_made = PTHREAD_ONCE_INIT;

static void make_table(void)
{
	for (unsigned byte = 0; byte < 256; byte++) {
		uint64_t sum = byte;
		for (int bit = 0; bit < 8; bit++)
			sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
		table[0][byte] = sum;
	}
	for (unsigned row = 1; row < WORD; row++)
		for (unsigned byte = 0; byte < 256; byte++)
			table[row][byte] = table[row - 1][byte] >> 8 ^ table[0][table[row - 1][byte] & 0xff];
}

uint64_t record_sum(const void *bytes, uint64_t size)
{
	(void)pthread_once(&table_made, make_table);
	const unsigned char *at = bytes;
	uint64_t sum = UINT64_MAX;
	for (; size >= WORD; size -= WORD, at += WORD) { /* a word at a time */
		uint64_t word;
		memcpy(&word, at, WORD);
		word ^= sum;
		sum = 0;
		for (unsigned i = 0; i < WORD; i++)
			sum ^= table[WORD - 1 - i][word >> (8 * i) & 0xff];
	}
	for (; size > 0; size--, at++)
		sum = sum >> 8 ^ table[0][(sum ^ *at) & 0xff];
	return ~sum;
}

/* ---- sizes ---- */

static uint64_t padded(uint64_t length)
{
	return (length + WORD - 1) & ~(uint64_t)(WORD - 1);
}

uint64_t record_entry_size(uint64_t length)
{
	return sizeof(struct record_entry) + padded(length);
}

uint64_t record_base_size(uint64_t files)
{
	return sizeof(struct record_head) + files * IDENTITY_SIZE;
}

/* ---- to write one ---- */

/* malloc's memory, and the records in it, are aligned for it. */
static struct record_head *head_of(const struct record *record)
{
	return (struct record_head *)(void *)record->bytes;
}

int record_begin(struct record *record, uint64_t files, uint64_t capacity, struct pmemset_error *e)
{
	*record = (struct record){.bytes = malloc(capacity), .size = record_base_size(files), .capacity = capacity};
	if (record->bytes == NULL)
		return error_set(e, -ENOMEM, "no memory for a record");
	memset(record->bytes, 0, record->size);
	*head_of(record) = (struct record_head){.magic = RECORD_MAGIC, .files = (uint32_t)files};
	return 0;
}

void record_set_file(struct record *record, uint32_t row, const char *identity)
{
	char *to = record->bytes + record_base_size(row);
	memset(to, 0, IDENTITY_SIZE);
	memcpy(to, identity, strnlen(identity, IDENTITY_SIZE - 1));
}

char *record_add(struct record *record, uint32_t file, uint64_t offset, uint64_t length)
{
	const struct record_entry entry = {.file = file, .offset = offset, .length = length};
	uint64_t size = record_entry_size(length);
	char *to = record->bytes + record->size;
	assert(record->capacity - record->size >= size);
	memcpy(to, &entry, sizeof(entry));
	memset(to + sizeof(entry) + length, 0, size - sizeof(entry) - length);
	record->size += size;
	head_of(record)->entries++;
	return to + sizeof(entry);
}

void record_seal(struct record *record)
{
	struct record_head *head = head_of(record);
	head->size = record->size;
	head->payload_sum = record_sum(record->bytes + sizeof(*head), record->size - sizeof(*head));
}

void record_place(struct record *record, uint64_t epoch, uint64_t position)
{
	struct record_head *head = head_of(record);
	head->epoch = epoch;
	head->position = position;
	head->head_sum = record_sum(head, offsetof(struct record_head, head_sum));
}

/* ---- to read one ---- */

const struct record_head *record_head(const struct record *record)
{
	return head_of(record);
}

const char *record_file(const struct record *record, uint32_t row)
{
	return record->bytes + record_base_size(row);
}

bool record_next(const struct record *record, uint64_t *at, struct record_entry *entry, const char **bytes)
{
	if (*at == 0)
		*at = record_base_size(record_head(record)->files);
	if (*at >= record->size)
		return false;
	memcpy(entry, record->bytes + *at, sizeof(*entry));
	*bytes = record->bytes + *at + sizeof(*entry);
	*at += record_entry_size(entry->length);
	return true;
}

bool record_is_here(const struct record_head *head, uint64_t epoch, uint64_t position, uint64_t size_max)
{
	return head->magic == RECORD_MAGIC && head->epoch == epoch && head->position == position && head->size % WORD == 0 &&
	       head->size >= sizeof(*head) && head->size <= size_max &&
	       head->head_sum == record_sum(head, offsetof(struct record_head, head_sum));
}

/* The sums are no proof against who writes logs: what they name is looked at as well. */
static bool is_well_formed(const struct record *record)
{
	const struct record_head *head = record_head(record);
	if (head->files > (record->size - sizeof(*head)) / IDENTITY_SIZE)
		return false;
	for (uint32_t i = 0; i < head->files; i++)
		if (record_file(record, i)[0] == '\0' || memchr(record_file(record, i), '\0', IDENTITY_SIZE) == NULL)
			return false;
	uint64_t at = record_base_size(head->files);
	uint32_t n = 0;
	for (; at < record->size; n++) {
		struct record_entry entry;
		uint64_t left = record->size - at;
		if (left < sizeof(entry))
			return false;
		memcpy(&entry, record->bytes + at, sizeof(entry));
		if (entry.file >= head->files || entry.length == 0 || entry.length > left || record_entry_size(entry.length) > left ||
				entry.offset > (uint64_t)INT64_MAX - entry.length)
			return false;
		at += record_entry_size(entry.length);
	}
	return n == head->entries;
}

bool record_is_whole(const struct record *record)
{
	const struct record_head *head = record_head(record);
	return head->size == record->size && head->payload_sum == record_sum(record->bytes + sizeof(*head), record->size - sizeof(*head)) &&
	       is_well_formed(record);
}
