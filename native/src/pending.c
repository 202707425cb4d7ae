/* SPDX-License-Identifier: BSD-3-Clause */
#include "pending.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct pending *pending_of(struct record *record)
{
	struct pending *p = calloc(1, sizeof(*p));
	uint32_t files = record_head(record)->files;
	if (p != NULL)
		p->files = calloc(files ? files : 1, sizeof(struct file *));
	if (p == NULL || p->files == NULL) {
		free(p);
		free(record->bytes);
		return NULL;
	}
	p->record = *record;
	p->file_count = p->held_count = files;
	return p;
}

void pending_free(struct pending *p)
{
	if (p->hold.state != HOLD_WAITS)
		order_release(&p->hold);
	for (uint32_t i = 0; i < p->held_count; i++)
		if (p->files[i] != NULL)
			file_release(p->files[i]);
	free(p->hold.at);
	free(p->record.bytes);
	free(p->files);
	free(p);
}

/* ---- the files of a record ---- */

/* What the hold needs for the record's entries of one file. */
static int add_row(const struct pending *p, uint32_t row, struct hold *hold)
{
	struct record_entry entry;
	const char *ignored;
	int rc = 0;
	for (uint64_t at = 0; rc == 0 && record_next(&p->record, &at, &entry, &ignored);)
		if (entry.file == row)
			rc = hold_add(hold, p->files[row], entry.offset, entry.length);
	return rc;
}

static int bind(struct pending *p, uint32_t row, struct file *file, struct pmemset_error *e)
{
	struct hold wider = {0};
	int rc = 0;
	p->files[row] = file;
	for (uint32_t i = 0; rc == 0 && i < p->file_count; i++)
		if (p->files[i] != NULL)
			rc = add_row(p, i, &wider);
	if (rc != 0) {
		p->files[row] = NULL;
		free(wider.at);
		return error_set(e, rc, "no memory for a record");
	}
	file_hold(file);
	order_widen(&p->hold, &wider);
	return 0;
}

int pending_attach(struct pending *p, struct file *file, struct pmemset_error *e)
{
	int rc = 0;
	for (uint32_t i = 0; rc == 0 && i < p->file_count; i++)
		if (p->files[i] == NULL && file->identity[0] != '\0' && identity_same(record_file(&p->record, i), file->identity))
			rc = bind(p, i, file, e);
	return rc;
}

bool pending_adopt(struct pending *p, const char *was, const struct file *file)
{
	bool changed = false;
	for (uint32_t i = 0; i < p->file_count; i++)
		if (p->files[i] == NULL && identity_same(record_file(&p->record, i), was)) {
			record_set_file(&p->record, i, file->identity);
			record_seal(&p->record);
			changed = true;
		}
	return changed;
}

/* ---- to apply it ---- */

/* What a record has for one file. */
struct row {
	bool ready;	   /* the file is open, and can be written and flushed */
	uint64_t from, to; /* the bytes that it is about, and what is between them */
	uint64_t since;
};

static void measure(const struct pending *p, struct row *rows)
{
	struct record_entry entry;
	const char *ignored;
	for (uint64_t at = 0; record_next(&p->record, &at, &entry, &ignored);) {
		struct row *row = &rows[entry.file];
		row->from = row->to == 0 || entry.offset < row->from ? entry.offset : row->from;
		row->to = entry.offset + entry.length > row->to ? entry.offset + entry.length : row->to;
	}
	for (uint32_t i = 0; i < p->file_count; i++) {
		struct stat st;
		const struct file *file = p->files[i];
		rows[i].ready = file != NULL && atomic_load(&file->failed) == 0 && fstat(file->fd, &st) == 0 &&
				(uint64_t)st.st_size >= rows[i].to;
		rows[i].since = file != NULL ? file_losses(file) : 0;
	}
}

static bool write_whole(const struct file *file, const char *bytes, uint64_t length, uint64_t offset)
{
	while (length > 0) {
		int64_t wrote = file_put(file->fd, bytes, length, offset);
		if (wrote < 0)
			return false;
		bytes += wrote;
		length -= (uint64_t)wrote;
		offset += (uint64_t)wrote;
	}
	return true;
}

static void flush_row(struct file *file, struct row *row)
{
	struct pmemset_error ignored;
	const struct flush_range range = {.offset = row->from, .length = row->to - row->from, .since = row->since};
	if (file_flush_whole(file, &range, 1, &ignored) == 0)
		return;
	row->ready = false;
	if (ignored.reason != PMEMSET_REASON_PERSIST_FAILED)
		(void)file_soil(file, range.offset, range.length, range.since);
}

/* Past any mapping, and through the page cache where there is one: whatever the file's granularity, fdatasync makes that durable. */
static void apply(const struct pending *p, struct row *rows)
{
	struct record_entry entry;
	const char *bytes;
	measure(p, rows);
	for (uint64_t at = 0; record_next(&p->record, &at, &entry, &bytes);) {
		struct row *row = &rows[entry.file];
		if (row->ready && !write_whole(p->files[entry.file], bytes, entry.length, entry.offset)) {
			row->ready = false;
			(void)file_soil(p->files[entry.file], row->from, row->to - row->from, row->since);
		}
	}
	for (uint32_t i = 0; i < p->file_count; i++)
		if (rows[i].ready)
			flush_row(p->files[i], &rows[i]);
}

/* What is left of it, for the files that have not got theirs; NULL where memory is out. */
static struct pending *rest_of(const struct pending *p, const struct row *rows, uint32_t left)
{
	struct pmemset_error ignored;
	struct record_entry entry;
	const char *bytes;
	struct pending *rest = calloc(1, sizeof(*rest));
	uint32_t *new_row = calloc(p->file_count, sizeof(*new_row));
	struct file **files = calloc(left, sizeof(struct file *));
	int rc = rest != NULL && new_row != NULL && files != NULL ? record_begin(&rest->record, left, p->record.size, &ignored) : -ENOMEM;
	for (uint32_t i = 0, n = 0; rc == 0 && i < p->file_count; i++) {
		if (rows[i].ready)
			continue;
		record_set_file(&rest->record, n, record_file(&p->record, i));
		files[n] = p->files[i];
		new_row[i] = n++;
	}
	for (uint64_t at = 0; rc == 0 && record_next(&p->record, &at, &entry, &bytes);) {
		if (rows[entry.file].ready)
			continue;
		memcpy(record_add(&rest->record, new_row[entry.file], entry.offset, entry.length), bytes, entry.length);
		if (files[new_row[entry.file]] != NULL)
			rc = hold_add(&rest->hold, files[new_row[entry.file]], entry.offset, entry.length);
	}
	free(new_row);
	if (rc != 0) {
		free(files);
		if (rest != NULL) {
			free(rest->record.bytes);
			free(rest->hold.at);
		}
		free(rest);
		return NULL;
	}
	record_seal(&rest->record);
	rest->files = files;
	rest->file_count = rest->held_count = left;
	for (uint32_t i = 0; i < left; i++)
		if (files[i] != NULL)
			file_hold(files[i]);
	order_keep(&rest->hold);
	return rest;
}

bool pending_apply(const struct pending *p, struct pending **rest)
{
	struct row *rows = calloc(p->file_count ? p->file_count : 1, sizeof(*rows));
	uint32_t left = 0;
	*rest = NULL;
	if (rows == NULL)
		return false;
	apply(p, rows);
	for (uint32_t i = 0; i < p->file_count; i++)
		left += !rows[i].ready;
	if (left > 0 && left < p->file_count)
		*rest = rest_of(p, rows, left);
	free(rows);
	return left == 0;
}
