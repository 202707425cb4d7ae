/* SPDX-License-Identifier: BSD-3-Clause */
#include "ffi.h"

#include "access.h"
#include "batch.h"
#include "failure.h"
#include "medium.h"
#include "part.h"
#include "redo.h"
#include "remove.h"
#include "set.h"
#include "source.h"
#include "state.h"
#include "window.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <libpmem2.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* The numbers of this face are the core's own. */
#define SAME(ours, the_cores) static_assert((int)(ours) == (int)(the_cores), #ours)
SAME(FFI_GRANULARITY_BYTE, PMEM2_GRANULARITY_BYTE);
SAME(FFI_GRANULARITY_CACHE_LINE, PMEM2_GRANULARITY_CACHE_LINE);
SAME(FFI_GRANULARITY_PAGE, PMEM2_GRANULARITY_PAGE);
SAME(FFI_GRANULARITY_UNSET, PMEMSET_GRANULARITY_UNSET);
SAME(FFI_PERSISTENCE_UNKNOWN, PERSISTENCE_UNKNOWN);
SAME(FFI_PERSISTENCE_PERSISTENT, PERSISTENCE_PERSISTENT);
SAME(FFI_PERSISTENCE_HOST_DEPENDENT, PERSISTENCE_HOST_DEPENDENT);
SAME(FFI_PERSISTENCE_VOLATILE, PERSISTENCE_VOLATILE);
SAME(FFI_COALESCING_NONE, COALESCING_NONE);
SAME(FFI_COALESCING_OPPORTUNISTIC, COALESCING_OPPORTUNISTIC);
SAME(FFI_COALESCING_FULL, COALESCING_FULL);
SAME(FFI_CREATE_NEVER, CREATE_NEVER);
SAME(FFI_CREATE_IF_NEEDED, CREATE_IF_NEEDED);
SAME(FFI_CREATE_EXCLUSIVE, CREATE_EXCLUSIVE);
SAME(FFI_CREATE_ALWAYS, CREATE_ALWAYS);
SAME(FFI_RECOVERY_REWRITE, RECOVERY_REWRITE);
SAME(FFI_RECOVERY_DISCARD, RECOVERY_DISCARD);
SAME(FFI_DURABILITY_NONE, DURABILITY_NONE);
SAME(FFI_DURABILITY_FLUSHED, DURABILITY_FLUSHED);
SAME(FFI_DURABILITY_PERSISTED, DURABILITY_PERSISTED);
SAME(FFI_DURABILITY_DEEP, DURABILITY_DEEP);

/* ---- handles ---- */

enum handle_type { HANDLE_VOLUME = 1, HANDLE_SET, HANDLE_PIN, HANDLE_LOCK };

#define HANDLES_MAX 65536u
#define INDEX_BITS 16u

/*
 * A slot's word: generation in the upper half, type and "live" and the count of calls that use it now in the lower. A handle carries
 * generation and index, so one that was closed matches no slot for the next 2^32 uses of it.
 */
#define SLOT_LIVE (UINT64_C(1) << 31)
#define SLOT_TYPE_SHIFT 28u
#define SLOT_USES (UINT64_C(1) << 28)

struct slot {
	_Atomic uint64_t word;
	_Atomic(void *) object;
	uint32_t next_free;
};

static struct slot slots[HANDLES_MAX];
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t first_free, last_free; /* a queue: the longest free slot is used next; 0 is never a slot */
static uint32_t never_used = 1;

static int give(struct pmemset_error *to, const struct pmemset_error *e)
{
	if (to != NULL)
		*to = *e;
	return e->code;
}

static int stale(struct pmemset_error *to)
{
	struct pmemset_error e;
	(void)error_stale(&e);
	return give(to, &e);
}

static int bad_value(struct pmemset_error *to, const char *what)
{
	struct pmemset_error e;
	error_set(&e, -EINVAL, "%s", what);
	return give(to, &e);
}

static uint64_t handle_open(enum handle_type type, void *object)
{
	pthread_mutex_lock(&slots_lock);
	uint32_t i = first_free;
	if (i != 0) {
		first_free = slots[i].next_free;
	} else if (never_used < HANDLES_MAX) {
		i = never_used++;
	}
	pthread_mutex_unlock(&slots_lock);
	if (i == 0)
		return 0;
	struct slot *slot = &slots[i];
	uint64_t generation = (atomic_load(&slot->word) >> 32) + 1;
	generation = generation > UINT32_MAX ? 1 : generation;
	atomic_store(&slot->object, object);
	atomic_store(&slot->word, generation << 32 | SLOT_LIVE | (uint64_t)type << SLOT_TYPE_SHIFT);
	return generation << INDEX_BITS | i;
}

static struct slot *slot_of(uint64_t handle)
{
	return &slots[handle % HANDLES_MAX];
}

/* The word, less its uses, of the slot that the handle leads to; 1, which no such word is, where no handle looks like that. */
static uint64_t live_word(uint64_t handle, enum handle_type type)
{
	uint64_t generation = handle >> INDEX_BITS;
	return generation > UINT32_MAX ? 1 : generation << 32 | SLOT_LIVE | (uint64_t)type << SLOT_TYPE_SHIFT;
}

/* The object, for the length of a call: it is not freed before handle_put. NULL where the handle is stale. */
static void *handle_get(uint64_t handle, enum handle_type type)
{
	struct slot *slot = slot_of(handle);
	uint64_t word = atomic_load(&slot->word);
	uint64_t want = live_word(handle, type);
	do
		if ((word & ~(SLOT_USES - 1)) != want)
			return NULL;
	while (!atomic_compare_exchange_weak(&slot->word, &word, word + 1));
	return atomic_load(&slot->object);
}

static void handle_put(uint64_t handle)
{
	atomic_fetch_sub(&slot_of(handle)->word, 1);
}

/*
 * What reads and does not wait says so in a line of the thread's own: counting in the slot's word, which all threads share, would cost
 * more than the look-up does. A thread that finds no line free counts.
 */
#define READERS_MAX 64u

struct reader {
	_Alignas(64) _Atomic uint64_t handle; /* what it reads now; 0: nothing */
	atomic_bool taken;
};

static struct reader readers[READERS_MAX];
static pthread_key_t reader_key; /* gives the line back when the thread ends */
static pthread_once_t reader_key_made = PTHREAD_ONCE_INIT;
static int reader_key_error;
static struct reader none_free; /* stands for: none was to be had */
static _Thread_local struct reader *own_reader __attribute__((tls_model("initial-exec")));

static void give_reader_back(void *reader)
{
	own_reader = NULL;
	atomic_store(&((struct reader *)reader)->taken, false);
}

static void make_reader_key(void)
{
	reader_key_error = pthread_key_create(&reader_key, give_reader_back);
}

static struct reader *take_reader(void)
{
	(void)pthread_once(&reader_key_made, make_reader_key);
	own_reader = &none_free;
	for (unsigned i = 0; i < READERS_MAX && reader_key_error == 0 && own_reader == &none_free; i++)
		if (!atomic_exchange(&readers[i].taken, true))
			own_reader = &readers[i];
	if (own_reader != &none_free && pthread_setspecific(reader_key, own_reader) != 0) {
		atomic_store(&own_reader->taken, false);
		own_reader = &none_free;
	}
	return own_reader;
}

/* As handle_get, for a call that waits for nothing and begins no other; read_end follows unless it was NULL. */
static void *read_begin(uint64_t handle, enum handle_type type)
{
	struct reader *reader = own_reader ? own_reader : take_reader();
	if (reader == &none_free)
		return handle_get(handle, type);
	/* Said first and looked afterwards; who closes does it the other way round, so one of the two sees the other. */
	atomic_store(&reader->handle, handle);
	struct slot *slot = slot_of(handle);
	if ((atomic_load(&slot->word) & ~(SLOT_USES - 1)) == live_word(handle, type))
		return atomic_load(&slot->object);
	atomic_store_explicit(&reader->handle, 0, memory_order_release);
	return NULL;
}

static void read_end(uint64_t handle)
{
	if (own_reader == &none_free)
		handle_put(handle);
	else
		atomic_store_explicit(&own_reader->handle, 0, memory_order_release);
}

static void take_a_nap(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

/* The handle is stale by now. Whoever is seen not to read it once will not begin any more, though it may look again, in vain. */
static void wait_for_readers(uint64_t handle)
{
	for (unsigned i = 0; i < READERS_MAX; i++)
		while (atomic_load(&readers[i].handle) == handle)
			take_a_nap();
}

/* Ends the handle for everybody else and waits until no call uses it. The object; NULL where the handle was stale. */
static void *handle_close(uint64_t handle, enum handle_type type)
{
	struct slot *slot = slot_of(handle);
	uint64_t word = atomic_load(&slot->word);
	uint64_t want = live_word(handle, type);
	do
		if ((word & ~(SLOT_USES - 1)) != want)
			return NULL;
	while (!atomic_compare_exchange_weak(&slot->word, &word, word & ~SLOT_LIVE));
	while (atomic_load(&slot->word) & (SLOT_USES - 1))
		take_a_nap();
	wait_for_readers(handle);
	void *object = atomic_load(&slot->object);
	uint32_t i = (uint32_t)(handle % HANDLES_MAX);
	pthread_mutex_lock(&slots_lock);
	slot->next_free = 0;
	if (first_free == 0)
		first_free = i;
	else
		slots[last_free].next_free = i;
	last_free = i;
	pthread_mutex_unlock(&slots_lock);
	return object;
}

/* ---- about the library ---- */

uint32_t ffi_abi(struct ffi_abi *out, uint32_t out_size)
{
	const struct ffi_abi abi = {.version = FFI_VERSION,
			.error_size = sizeof(struct pmemset_error),
			.abi_size = sizeof(struct ffi_abi),
			.engine_spec_size = sizeof(struct ffi_engine_spec),
			.engine_info_size = sizeof(struct ffi_engine_info),
			.volume_info_size = sizeof(struct ffi_volume_info),
			.probe_size = sizeof(struct ffi_probe),
			.set_spec_size = sizeof(struct ffi_set_spec),
			.set_info_size = sizeof(struct ffi_set_info),
			.part_spec_size = sizeof(struct ffi_part_spec),
			.part_size = sizeof(struct ffi_part),
			.span_size = sizeof(struct ffi_span),
			.removal_size = sizeof(struct ffi_removal),
			.written_size = sizeof(struct ffi_written),
			.write_size = sizeof(struct ffi_write),
			.counters_size = sizeof(struct ffi_counters),
			.restore_file_size = sizeof(struct ffi_restore_file),
			.restore_part_size = sizeof(struct ffi_restore_part),
			.codes = error_rows()};
	memcpy(out, &abi, out_size < sizeof(abi) ? out_size : sizeof(abi));
	return FFI_VERSION;
}

static void copy_text(char *to, size_t size, const char *text)
{
	size_t n = strlen(text);
	n = n < size ? n : size - 1;
	memcpy(to, text, n);
	to[n] = '\0';
}

int ffi_code(uint32_t i, int32_t *code, char *name, char *text)
{
	const char *row_name;
	const char *row_text;
	int rc = error_row(i, code, &row_name, &row_text);
	if (rc != 0)
		return rc;
	copy_text(name, FFI_NAME_SIZE, row_name);
	copy_text(text, FFI_TEXT_SIZE, row_text);
	return 0;
}

/* ---- the engine ---- */

static uint32_t simulated = FFI_GRANULARITY_UNSET;

int ffi_engine_start(const struct ffi_engine_spec *spec, struct pmemset_error *err)
{
	struct pmemset_error e;
	if (spec->simulate > FFI_GRANULARITY_UNSET)
		return bad_value(err, "unknown granularity to simulate");
	if (spec->log_size > FFI_LOG_SIZE_MAX || spec->log_keep_free > 100)
		return bad_value(err, "no such redo log");
	if (arena_start(spec->arena_base, spec->arena_size, spec->mappings_max, &e) != 0 || guard_start(&e) != 0)
		return give(err, &e);
	if (spec->simulate < FFI_GRANULARITY_PAGE) {
		simulated = spec->simulate;
		medium_simulate((enum pmem2_granularity)spec->simulate);
	}
	redo_configure(spec->log_size ? spec->log_size : redo_record_max(), spec->log_keep_free);
	return 0;
}

void ffi_engine_info(struct ffi_engine_info *info)
{
	*info = (struct ffi_engine_info){.arena_base = arena()->base,
			.arena_size = arena()->size,
			.page_size = (uint64_t)sysconf(_SC_PAGESIZE),
			.mappings = mappings_used(),
			.mappings_max = mappings_max(),
			.addresses_stable = arena()->as_asked,
			.simulate = simulated};
	copy_text(info->libpmem2, sizeof(info->libpmem2), PMEMSET_LIBPMEM2_VERSION);
}

/* ---- volumes ---- */

int ffi_volume_open(const char *path, uint64_t *volume, struct pmemset_error *err)
{
	struct pmemset_error e;
	*volume = 0;
	struct volume *v = malloc(sizeof(*v));
	int rc = v ? volume_open(v, path, &e) : error_set(&e, -ENOMEM, "no memory for a volume");
	if (rc == 0) {
		*volume = handle_open(HANDLE_VOLUME, v);
		if (*volume != 0)
			return 0;
		volume_close(v);
		error_set(&e, -EMFILE, "no free handle");
	}
	free(v);
	return give(err, &e);
}

int ffi_volume_close(uint64_t volume)
{
	struct volume *v = handle_close(volume, HANDLE_VOLUME);
	if (v == NULL)
		return -EBADF;
	volume_close(v);
	free(v);
	return 0;
}

int ffi_volume_info(uint64_t volume, struct ffi_volume_info *info, struct pmemset_error *err)
{
	struct volume *v = handle_get(volume, HANDLE_VOLUME);
	if (v == NULL)
		return stale(err);
	struct pmemset_error e;
	struct statvfs fs;
	int rc = fstatvfs(v->fd, &fs) == 0 ? 0 : error_sys(&e, 0, errno, "statvfs");
	if (rc == 0) {
		struct medium m;
		volume_medium(v, &m);
		*info = (struct ffi_volume_info){.capacity = (uint64_t)fs.f_blocks * fs.f_frsize,
				.available = (uint64_t)fs.f_bavail * fs.f_frsize,
				.alignment = (uint64_t)sysconf(_SC_PAGESIZE),
				.dev = v->dev,
				.ino = v->ino,
				.granularity = m.granularity,
				.persistence = m.persistence,
				.map_sync = m.map_sync,
				.dax = m.dax,
				.numa_node = m.numa_node,
				.allocates = m.allocates};
		copy_text(info->file_system, sizeof(info->file_system), m.file_system);
		copy_text(info->reason, sizeof(info->reason), m.why_persistence);
	}
	handle_put(volume);
	return rc ? give(err, &e) : 0;
}

static int probe_path(const struct volume *v, const char *path, uint32_t length, struct ffi_probe *out, struct pmemset_error *e)
{
	struct source source;
	struct medium m;
	int rc = source_open(&source, v, path, length, CREATE_IF_NEEDED, 0, e);
	if (rc != 0)
		return rc;
	if (source.file != NULL)
		m = source.file->medium;
	else
		source_medium_of_new(&source, &m);
	*out = (struct ffi_probe){.size = source.size,
			.alignment = (uint64_t)sysconf(_SC_PAGESIZE),
			.exists = source.file != NULL,
			.granularity = m.granularity,
			.persistence = m.persistence,
			.map_sync = m.map_sync};
	copy_text(out->reason, sizeof(out->reason), m.why_granularity);
	source_close(&source);
	return 0;
}

int ffi_probe(uint64_t volume, const char *path, uint32_t length, struct ffi_probe *probe, struct pmemset_error *err)
{
	struct volume *v = handle_get(volume, HANDLE_VOLUME);
	if (v == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = probe_path(v, path, length, probe, &e);
	handle_put(volume);
	return rc ? give(err, &e) : 0;
}

/* ---- sets ---- */

int ffi_set_new(const struct ffi_set_spec *spec, uint64_t *set, struct pmemset_error *err)
{
	struct pmemset_error e;
	struct set *s;
	*set = 0;
	const struct set_spec what = {.window_addr = spec->window_addr,
			.window_size = spec->window_size,
			.parts_max = spec->parts_max,
			.required = spec->required_granularity,
			.coalescing = spec->coalescing,
			.granularity = spec->granularity};
	int rc = set_new(&s, &what, &e);
	if (rc != 0)
		return give(err, &e);
	*set = handle_open(HANDLE_SET, s);
	if (*set != 0)
		return 0;
	(void)set_end(s, &e);
	set_free(s);
	error_set(&e, -EMFILE, "no free handle");
	return give(err, &e);
}

int ffi_set_info(uint64_t set, struct ffi_set_info *info)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return -EBADF;
	*info = (struct ffi_set_info){.window_addr = s->window.addr,
			.window_size = s->window.size,
			.part_count = atomic_load(&s->part_count),
			.map_count = atomic_load(&s->map_count),
			.mapped_bytes = atomic_load(&s->mapped_bytes),
			.granularity = atomic_load(&s->granularity),
			.coalescing = atomic_load(&s->coalescing),
			.degraded = set_is_degraded(s)};
	handle_put(set);
	return 0;
}

int ffi_set_coalescing(uint64_t set, uint32_t coalescing, struct pmemset_error *err)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = set_coalescing(s, coalescing, &e);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_set_delete(uint64_t set, struct pmemset_error *err)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = set_end(s, &e);
	handle_put(set);
	if (rc != 0)
		return give(err, &e);
	/* Only one caller has ended it, and only that one comes here. */
	(void)handle_close(set, HANDLE_SET);
	set_free(s);
	return 0;
}

/* ---- parts ---- */

/* So often is a file that somebody else has made meanwhile looked at again; it would have to go again each time to be missed. */
#define OPENS_MAX 8

static int map_once(struct set *s, const struct volume *v, const struct ffi_part_spec *spec, const char *path, uint32_t path_length,
		struct ffi_part *out, struct pmemset_error *e)
{
	struct source source;
	int rc = source_open(&source, v, path, path_length, (enum create)spec->create, spec->mode, e);
	if (rc != 0)
		return rc;
	source.intent = spec->intent;
	if (source.file != NULL)
		file_settle(source.file);
	const struct part_spec what = {.offset = spec->offset,
			.length = spec->length,
			.cookie = spec->cookie,
			.keep_free = spec->keep_free,
			.grow = spec->grow != 0};
	struct part_result got;
	rc = part_map(s, &source, &what, &got, e);
	if (rc == 0) {
		*out = (struct ffi_part){.addr = got.addr,
				.length = got.length,
				.offset = spec->offset,
				.cookie = spec->cookie,
				.map_addr = got.map_addr,
				.map_size = got.map_size,
				.dev = source.file->dev,
				.ino = source.file->ino,
				.granularity = source.file->medium.granularity,
				.persistence = source.file->medium.persistence,
				.map_sync = source.file->medium.map_sync,
				.coalesced = got.coalesced,
				.created = source.makes,
				.degraded = atomic_load(&source.file->failed) != 0};
		copy_text(out->identity, sizeof(out->identity), source.file->identity);
	}
	source_close(&source);
	return rc;
}

static int map_from(struct set *s, const struct volume *v, const struct ffi_part_spec *spec, const char *path, uint32_t path_length,
		struct ffi_part *out, struct pmemset_error *e)
{
	if (spec->offset > INT64_MAX) /* needs no source to be known as wrong, so it is said before anything of the source */
		return error_set(e, PMEMSET_E_INVALID_OFFSET_VALUE, "offset %" PRIu64 " is above INT64_MAX", spec->offset);
	int rc = map_once(s, v, spec, path, path_length, out, e);
	/* Only who asked to be the one that makes it is told that another did. */
	for (int i = 1; i < OPENS_MAX && rc == -EEXIST && e->reason == PMEMSET_REASON_SOURCE_EXISTS && spec->create != FFI_CREATE_EXCLUSIVE;
			i++)
		rc = map_once(s, v, spec, path, path_length, out, e);
	return rc;
}

int ffi_part_map(uint64_t set, const struct ffi_part_spec *spec, const char *path, uint32_t path_length, struct ffi_part *part,
		struct pmemset_error *err)
{
	if (spec->create > FFI_CREATE_ALWAYS || spec->cookie == 0)
		return bad_value(err, "an unknown create mode, or cookie 0");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct volume *v = handle_get(spec->volume, HANDLE_VOLUME);
	if (v == NULL) {
		handle_put(set);
		return stale(err);
	}
	struct pmemset_error e;
	int rc = map_from(s, v, spec, path, path_length, part, &e);
	handle_put(spec->volume);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_intent_undo(uint64_t volume, const char *path, uint32_t path_length, uint64_t intent, struct pmemset_error *err)
{
	if (intent == 0)
		return bad_value(err, "intent 0");
	struct volume *v = handle_get(volume, HANDLE_VOLUME);
	if (v == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = source_undo(v, path, path_length, intent, &e);
	handle_put(volume);
	return rc ? give(err, &e) : 0;
}

/* ---- parts of an earlier life ---- */

SAME(FFI_IDENTITY_SIZE, IDENTITY_SIZE);

/* What became of a file of a restoration: with the file, or with why not. */
struct opened {
	struct file *file;
	uint64_t value;
	int32_t code, cause, sys_errno;
	uint32_t reason;
};

static int open_again(struct ffi_restore_file *row, const char *path, struct file **file, struct pmemset_error *e)
{
	struct source source;
	struct volume *v = handle_get(row->volume, HANDLE_VOLUME);
	if (v == NULL)
		return error_stale(e);
	int rc = source_open(&source, v, path, row->path_length, CREATE_NEVER, 0, e);
	handle_put(row->volume);
	if (rc != 0)
		return rc;
	bool same = identity_same(row->identity, source.file->identity);
	if (!same && row->adopt)
		rc = redo_adopt(source.log, row->identity, source.file, e);
	copy_text(row->identity, sizeof(row->identity), source.file->identity);
	if (rc == 0 && (same || row->adopt)) {
		file_settle(source.file);
		file_hold(source.file);
		*file = source.file;
	} else if (rc == 0) {
		error_set(e, -ESTALE, "another file is there than the one that was mapped");
		e->reason = PMEMSET_REASON_SOURCE_REPLACED;
		rc = e->code;
	}
	source_close(&source);
	return rc;
}

/* -ENOMEM, and whoever is behind it is not opened. */
static int open_all_again(struct ffi_restore_file *rows, uint64_t count, const char *names, struct opened *opened, struct pmemset_error *e)
{
	for (uint64_t i = 0; i < count; i++) {
		struct opened *o = &opened[i];
		if (open_again(&rows[i], names + rows[i].path_at, &o->file, e) == 0)
			continue;
		if (e->code == -ENOMEM)
			return -ENOMEM;
		*o = (struct opened){.value = e->value, .code = e->code, .cause = e->cause, .sys_errno = e->sys_errno, .reason = e->reason};
	}
	return 0;
}

static void tell_failure(struct ffi_restore_part *row, const struct pmemset_error *e)
{
	row->value = e->value;
	row->code = e->code;
	row->cause = e->cause;
	row->sys_errno = e->sys_errno;
	row->reason = e->reason;
	row->granularity = e->granularity;
	row->persistence = row->map_sync = row->degraded = 0;
}

static void tell_restored(struct ffi_restore_part *row, const struct file *file)
{
	row->value = 0;
	row->code = row->cause = row->sys_errno = 0;
	row->reason = PMEMSET_REASON_NONE;
	row->granularity = file->medium.granularity;
	row->persistence = file->medium.persistence;
	row->map_sync = file->medium.map_sync;
	row->degraded = atomic_load(&file->failed) != 0;
	row->kept = 0;
}

/* Its outcome is in the row. */
static void restore_one(struct restoration *r, struct ffi_restore_part *row, const struct opened *opened)
{
	struct pmemset_error e;
	bool kept = false;
	if (opened->file == NULL) {
		kept = part_keep(r, row->addr, row->length, &e) == 0;
		if (kept) {
			error_set(&e, opened->code, "see its file");
			e.value = opened->value;
			e.cause = opened->cause;
			e.sys_errno = opened->sys_errno;
			e.reason = opened->reason;
		}
	} else {
		const struct part_spec spec = {.offset = row->offset,
				.length = row->length,
				.cookie = row->cookie,
				.at = row->addr,
				.joins = row->joins != 0};
		if (part_restore(r, opened->file, &spec, &kept, &e) == 0) {
			tell_restored(row, opened->file);
			return;
		}
	}
	tell_failure(row, &e);
	row->kept = kept;
}

static int restore_all(struct set *s, struct ffi_restore_part *rows, uint64_t count, const struct opened *opened, struct pmemset_error *e)
{
	struct restoration r;
	int rc = parts_restore(&r, s, count, e);
	if (rc != 0)
		return rc;
	for (uint64_t i = 0; i < count && !r.failed; i++)
		restore_one(&r, &rows[i], &opened[rows[i].file]);
	return parts_restored(&r, e);
}

static const char *refuse_restore(const struct ffi_restore_file *files, uint64_t file_count, uint64_t names_size,
		const struct ffi_restore_part *parts, uint64_t count)
{
	for (uint64_t i = 0; i < file_count; i++)
		if (files[i].path_at > names_size || files[i].path_length > names_size - files[i].path_at ||
				memchr(files[i].identity, '\0', FFI_IDENTITY_SIZE) == NULL)
			return "a file's path is not within the names, or its identity has no end";
	for (uint64_t i = 0; i < count; i++)
		if (parts[i].file >= file_count || parts[i].cookie == 0)
			return "a part of no file, or with cookie 0";
	return NULL;
}

int ffi_restore(uint64_t set, struct ffi_restore_file *files, uint64_t file_count, const char *names, uint64_t names_size,
		struct ffi_restore_part *parts, uint64_t count, struct pmemset_error *err)
{
	const char *why = refuse_restore(files, file_count, names_size, parts, count);
	if (why != NULL)
		return bad_value(err, why);
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct opened *opened = calloc(file_count + 1, sizeof(*opened));
	if (opened == NULL) {
		handle_put(set);
		error_set(&e, -ENOMEM, "no memory for %" PRIu64 " files", file_count);
		return give(err, &e);
	}
	int rc = open_all_again(files, file_count, names, opened, &e);
	if (rc == 0)
		rc = restore_all(s, parts, count, opened, &e);
	for (uint64_t i = 0; i < file_count; i++)
		if (opened[i].file != NULL)
			file_release(opened[i].file);
	free(opened);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_release(uint64_t set, uint64_t addr, uint64_t length, struct pmemset_error *err)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = part_let_go(s, addr, length, &e);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

/* ---- look-up ---- */

/* What was loaded counts only if the objects were still theirs; the caller asks index_overtaken. */
static void fill_span(struct ffi_span *span, const struct range *map, const struct range *part)
{
	struct part_map *m = map->object;
	struct part *p = part->object;
	uint64_t users = atomic_load_explicit(&m->state, memory_order_acquire) & ~(MAP_FROZEN | MAP_GONE);
	struct file *file = atomic_load_explicit(&p->file, memory_order_acquire);
	*span = (struct ffi_span){.map_addr = map->lo,
			.map_size = map->hi - map->lo,
			.map_parts = atomic_load_explicit(&m->parts, memory_order_acquire),
			.map_refs = users,
			.addr = part->lo,
			.length = part->hi - part->lo,
			.offset = atomic_load_explicit(&p->offset, memory_order_acquire),
			.cookie = atomic_load_explicit(&p->cookie, memory_order_acquire),
			.flags = atomic_load_explicit(&file->failed, memory_order_relaxed) ? FFI_SPAN_DEGRADED : 0};
}

static bool look_up(const struct index *ix, uint64_t addr, struct ffi_span *span)
{
	struct range map;
	struct range part;
	uint64_t commits;
	do {
		commits = index_commits(ix);
		if (!index_find(ix, addr, &map, &part))
			return false;
		fill_span(span, &map, &part);
	} while (index_overtaken(ix, commits));
	return true;
}

int ffi_lookup(uint64_t set, uint64_t addr, struct ffi_span *span)
{
	struct set *s = read_begin(set, HANDLE_SET);
	if (s == NULL)
		return -EBADF;
	bool found = look_up(&s->index, addr, span);
	read_end(set);
	return found ? 0 : PMEMSET_E_CANNOT_FIND_PART_MAP;
}

/* *r: the next range of the tree; *whole: it has map and part (else it was lost), and the row is filled. */
static bool next_row(const struct index *ix, enum index_tree tree, uint64_t from, struct ffi_span *row, struct range *r, bool *whole)
{
	struct range map;
	struct range part;
	uint64_t commits;
	do {
		commits = index_commits(ix);
		if (!index_next_with(ix, tree, from, &map, &part))
			return false;
		*whole = map.object != NULL && part.object != NULL;
		if (*whole)
			fill_span(row, &map, &part);
	} while (index_overtaken(ix, commits));
	*r = tree == INDEX_MAPS ? map : part;
	return true;
}

static int64_t list(uint64_t set, enum index_tree tree, uint64_t from, uint64_t to, struct ffi_span *rows, uint64_t max)
{
	struct set *s = read_begin(set, HANDLE_SET);
	if (s == NULL)
		return -EBADF;
	uint64_t n = 0;
	while (n < max) {
		struct ffi_span row;
		struct range r;
		bool whole;
		if (!next_row(&s->index, tree, from, &row, &r, &whole) || (to != 0 && r.lo >= to))
			break;
		/* Each row is of its own moment. What begins before the last one's end came to be in between, and would overlap it. */
		if (whole && (n == 0 || r.lo >= from))
			rows[n++] = row;
		from = r.hi;
	}
	read_end(set);
	return (int64_t)n;
}

int64_t ffi_maps(uint64_t set, uint64_t from, uint64_t to, struct ffi_span *rows, uint64_t max)
{
	return list(set, INDEX_MAPS, from, to, rows, max);
}

int64_t ffi_parts(uint64_t set, uint64_t from, uint64_t to, struct ffi_span *rows, uint64_t max)
{
	return list(set, INDEX_PARTS, from, to, rows, max);
}

/* ---- removal ---- */

/* NOLINTBEGIN(readability-non-const-parameter): rows are written through the removal's members */
int ffi_remove(uint64_t set, uint64_t addr, uint64_t length, uint32_t whole_map, uint32_t dry_run, struct ffi_removal *removal,
		uint64_t *removed, uint64_t *trimmed, uint64_t *split, struct pmemset_error *err)
/* NOLINTEND(readability-non-const-parameter) */
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct removal r = {.removed_max = removal->removed_max,
			.trimmed_max = removal->trimmed_max,
			.split_max = removal->split_max,
			.removed_rows = removed,
			.trimmed_rows = trimmed,
			.split_rows = split};
	int rc = whole_map ? set_remove_map(s, addr, dry_run != 0, &r, &e) : set_remove(s, addr, length, dry_run != 0, &r, &e);
	handle_put(set);
	removal->removed = r.removed;
	removal->trimmed = r.trimmed;
	removal->split = r.split;
	return rc ? give(err, &e) : 0;
}

/* ---- access ---- */

/* A pin outlives the call that made it, and its use of the set's handle with it: the set stays. */
struct pin {
	uint64_t set;
	struct part_map *map;
};
static _Atomic uint64_t pins; /* open */

int ffi_pin(uint64_t set, uint64_t addr, uint64_t length, uint64_t *pin, struct pmemset_error *err)
{
	*pin = 0;
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct part_map *map = NULL;
	int rc = access_pin(s, addr, length, &map, &e);
	if (rc == 0) {
		struct pin *p = malloc(sizeof(*p));
		if (p != NULL) {
			*p = (struct pin){.set = set, .map = map};
			*pin = handle_open(HANDLE_PIN, p);
			if (*pin != 0) {
				atomic_fetch_add_explicit(&pins, 1, memory_order_relaxed);
				return 0;
			}
		}
		error_set(&e, p ? -EMFILE : -ENOMEM, "no memory, or no handle, for a pin");
		free(p);
		access_unpin(map);
	}
	handle_put(set);
	return give(err, &e);
}

int ffi_unpin(uint64_t pin)
{
	struct pin *p = handle_close(pin, HANDLE_PIN);
	if (p == NULL)
		return -EBADF;
	atomic_fetch_sub_explicit(&pins, 1, memory_order_relaxed);
	access_unpin(p->map);
	handle_put(p->set);
	free(p);
	return 0;
}

void ffi_counters(struct ffi_counters *counters)
{
	struct flush_counts flushes = file_flush_counts();
	*counters = (struct ffi_counters){.pins = atomic_load_explicit(&pins, memory_order_relaxed),
			.flushes_of_ranges = flushes.ranges,
			.flushes_of_files = flushes.files,
			.flushes_failed = flushes.failed,
			.flush_callers = flushes.callers};
}

int ffi_read(uint64_t set, uint64_t addr, void *buf, uint64_t length, uint32_t nowait, struct pmemset_error *err)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = access_read(s, addr, buf, length, nowait != 0, &e);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_check(uint64_t set, uint64_t addr, uint64_t length, uint32_t what, struct pmemset_error *err)
{
	if (what > FFI_CHECK_LOAD)
		return bad_value(err, "unknown check");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = access_check(s, addr, length, (enum check)what, &e);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

static void tell(struct set *s, const struct written *w, struct ffi_written *out)
{
	*out = (struct ffi_written){.bytes = w->bytes,
			.durability = w->durability,
			.granularity = atomic_load(&s->granularity),
			.persistence = w->persistence,
			.simulated = w->simulated};
}

int ffi_write(uint64_t set, uint64_t addr, const void *buf, uint64_t length, uint32_t durability, struct ffi_written *written,
		struct pmemset_error *err)
{
	if (durability > FFI_DURABILITY_DEEP)
		return bad_value(err, "unknown durability");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct written w;
	int rc = access_write(s, addr, buf, length, (enum durability)durability, &w, &e);
	if (rc == 0)
		tell(s, &w, written);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

/* Where a walk through pieces is. */
struct walk {
	const uint64_t *pieces; /* address and length of each */
	uint64_t count, i, at;
};

static uint64_t left_of(const struct walk *w)
{
	return w->pieces[2 * w->i + 1] - w->at;
}

static const char *bytes_of(const struct walk *w)
{
	return (const char *)(uintptr_t)w->pieces[2 * w->i] + w->at; /* NOLINT(performance-no-int-to-ptr): that is how rows have them */
}

static void skip_empty(struct walk *w)
{
	for (; w->i + 1 < w->count && left_of(w) == 0; w->i++)
		w->at = 0;
}

/* The next bytes, which go to addr: of one piece, or where that ends within an aligned word, the word. */
static const char *next_bytes(struct walk *w, uint64_t addr, char *word, uint64_t *length)
{
	skip_empty(w);
	const char *bytes = bytes_of(w);
	uint64_t n = left_of(w);
	uint64_t rest = w->i + 1 < w->count ? (addr + n) % WORD_SIZE : 0;
	if (rest < n || rest == 0) {
		*length = n - rest;
		w->at += *length;
		return bytes;
	}
	for (n = 0; n < WORD_SIZE - addr % WORD_SIZE && left_of(w) > 0; n++, skip_empty(w)) {
		word[n] = *bytes_of(w);
		w->at++;
	}
	*length = n;
	return word;
}

static int write_pieces(struct set *s, uint64_t addr, const uint64_t *pieces, uint64_t count, enum durability durability,
		struct written *all, struct pmemset_error *e)
{
	struct walk walk = {.pieces = pieces, .count = count};
	uint64_t done = 0;
	int rc;
	do {
		struct written w;
		char word[WORD_SIZE];
		uint64_t length;
		const char *bytes = next_bytes(&walk, addr + done, word, &length);
		rc = access_write(s, addr + done, bytes, length, durability, &w, e);
		if (rc != 0)
			break;
		*all = (struct written){.bytes = done + w.bytes,
				.durability = w.durability,
				.persistence = done == 0 ? w.persistence : persistence_weaker(all->persistence, w.persistence),
				.simulated = w.simulated || (done > 0 && all->simulated)};
		done += w.bytes;
		skip_empty(&walk);
	} while (left_of(&walk) > 0);
	if (rc != 0) {
		bool refused = rc == PMEMSET_E_NO_PART_MAPPED || rc == PMEMSET_E_CANNOT_FIND_PART_MAP ||
			       rc == PMEMSET_E_LENGTH_OUT_OF_RANGE;
		e->value = done + (refused ? 0 : e->value);
	}
	return rc;
}

int ffi_write_pieces(uint64_t set, uint64_t addr, const uint64_t *pieces, uint64_t count, uint32_t durability, struct ffi_written *written,
		struct pmemset_error *err)
{
	if (durability > FFI_DURABILITY_DEEP || count == 0)
		return bad_value(err, "unknown durability, or no piece");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct written w = {0};
	int rc = write_pieces(s, addr, pieces, count, (enum durability)durability, &w, &e);
	if (rc == 0)
		tell(s, &w, written);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

/* In one word of 64 bits: durability, granularity, persistence and simulated, a byte each from the lowest on. */
static uint64_t packed(struct set *s, const struct written *w)
{
	return (uint64_t)w->durability | (uint64_t)atomic_load(&s->granularity) << 8 | (uint64_t)w->persistence << 16 |
	       (uint64_t)w->simulated << 24;
}

int64_t ffi_write_many(struct ffi_write *rows, uint64_t count, const void *data, uint64_t data_size, struct pmemset_error *errs)
{
	struct access_request *writes = calloc(count ? count : 1, sizeof(*writes));
	size_t n = 0;
	int64_t failed = 0;
	for (uint64_t i = 0; i < count; i++) {
		struct ffi_write *row = &rows[i];
		bool whole = row->data_offset <= data_size && row->length <= data_size - row->data_offset &&
			     row->durability <= FFI_DURABILITY_DEEP;
		struct set *s = whole && writes ? handle_get(row->set, HANDLE_SET) : NULL;
		if (s != NULL)
			writes[n++] = (struct access_request){.set = s,
					.addr = row->addr,
					.length = row->length,
					.buf = (const char *)data + row->data_offset,
					.durability = (enum durability)row->durability};
		else if (writes == NULL)
			error_set(&errs[i], -ENOMEM, "no memory for writes");
		else if (!whole)
			error_set(&errs[i], -EINVAL, "unknown durability, or bytes that are not there");
		else
			(void)error_stale(&errs[i]);
		row->rc = s ? 0 : errs[i].code;
	}
	if (writes == NULL)
		return (int64_t)count;
	access_write_many(writes, n);
	n = 0;
	for (uint64_t i = 0; i < count; i++) {
		struct ffi_write *row = &rows[i];
		if (writes != NULL && row->rc == 0) {
			const struct access_request *w = &writes[n++];
			row->rc = w->rc;
			row->bytes = w->storing.written.bytes;
			row->reached = packed(w->set, &w->storing.written);
			if (w->rc != 0)
				errs[i] = w->error;
			handle_put(row->set);
		}
		failed += row->rc != 0;
	}
	free(writes);
	return failed;
}

/* ---- batches ---- */

int64_t ffi_batch_check(const void *body, uint64_t size, struct pmemset_error *err)
{
	struct pmemset_error e;
	struct batch batch;
	int rc = batch_parse(&batch, body, size, &e);
	if (rc == 0 && batch.reply_size > INT64_MAX)
		rc = error_set(&e, -EOVERFLOW, "results beyond counting");
	return rc ? give(err, &e) : (int64_t)batch.reply_size;
}

int ffi_batch(uint64_t set, const void *body, uint64_t size, void *reply, uint64_t reply_size, uint32_t nowait, uint64_t *failed,
		struct pmemset_error *err)
{
	struct pmemset_error e;
	struct batch batch;
	*failed = 0;
	int rc = batch_parse(&batch, body, size, &e);
	if (rc != 0)
		return give(err, &e);
	if (reply_size < batch.reply_size)
		return bad_value(err, "the reply does not fit");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	uint32_t which = 0;
	rc = batch_run(s, &batch, nowait != 0, reply, &which, &e);
	*failed = which;
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_redo_recover(uint64_t volume, uint64_t *counts, struct pmemset_error *err)
{
	struct volume *v = handle_get(volume, HANDLE_VOLUME);
	if (v == NULL)
		return stale(err);
	struct pmemset_error e;
	struct redo_counts got;
	int rc = redo_recover(v->log, &got, &e);
	handle_put(volume);
	if (counts != NULL)
		memcpy(counts, (uint64_t[]){got.applied, got.kept}, 2 * sizeof(*counts));
	return rc ? give(err, &e) : 0;
}

int ffi_persist(uint64_t set, const uint64_t *ranges, uint64_t count, uint32_t durability, struct ffi_written *written,
		struct pmemset_error *err)
{
	if (durability > FFI_DURABILITY_DEEP || durability == FFI_DURABILITY_NONE)
		return bad_value(err, "unknown durability");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct written w;
	int rc = access_persist(s, ranges, count, (enum durability)durability, &w, &e);
	if (rc == 0)
		tell(s, &w, written);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_drain(uint64_t set, struct ffi_written *written, struct pmemset_error *err)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	struct written w;
	int rc = access_drain(s, &w, &e);
	if (rc == 0)
		tell(s, &w, written);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

/* ---- flushes that failed ---- */

int64_t ffi_failures(uint64_t set, uint64_t *rows, uint64_t max)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return -EBADF;
	uint64_t count = failures_of(s, rows, max);
	handle_put(set);
	return (int64_t)count;
}

int64_t ffi_failure_ranges(uint64_t set, uint64_t failure, uint64_t *ranges, uint64_t max)
{
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return -EBADF;
	struct pmemset_error ignored;
	uint64_t count;
	int rc = failure_ranges(s, failure, ranges, max, &count, &ignored);
	handle_put(set);
	return rc ? rc : (int64_t)count;
}

int ffi_acknowledge(uint64_t set, uint64_t failure, uint32_t recovery, struct pmemset_error *err)
{
	if (recovery > FFI_RECOVERY_DISCARD)
		return bad_value(err, "unknown recovery");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = failure_acknowledge(s, failure, (enum recovery)recovery, &e);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

int ffi_fail(uint64_t set, uint64_t at, int32_t sys_errno, const uint64_t *ranges, uint64_t count, struct pmemset_error *err)
{
	if (sys_errno <= 0 || sys_errno >= 4096)
		return bad_value(err, "no errno");
	struct set *s = handle_get(set, HANDLE_SET);
	if (s == NULL)
		return stale(err);
	struct pmemset_error e;
	int rc = failure_recall(s, at, sys_errno, ranges, count, &e);
	handle_put(set);
	return rc ? give(err, &e) : 0;
}

/* ---- the service's own directory ---- */

int ffi_state_check(const char *directory, struct pmemset_error *err)
{
	struct pmemset_error e;
	int rc = state_check(directory, &e);
	return rc ? give(err, &e) : 0;
}

int ffi_lock(const char *path, uint64_t *lock, struct pmemset_error *err)
{
	struct pmemset_error e;
	*lock = 0;
	int *fd = malloc(sizeof(*fd));
	if (fd == NULL) {
		error_set(&e, -ENOMEM, "no memory for a lock");
	} else if (state_lock(path, fd, &e) == 0) {
		*lock = handle_open(HANDLE_LOCK, fd);
		if (*lock != 0)
			return 0;
		state_unlock(*fd);
		error_set(&e, -EMFILE, "no free handle");
	}
	free(fd);
	return give(err, &e);
}

int ffi_unlock(uint64_t lock)
{
	int *fd = handle_close(lock, HANDLE_LOCK);
	if (fd == NULL)
		return -EBADF;
	state_unlock(*fd);
	free(fd);
	return 0;
}

int ffi_allocate(const char *path, uint64_t size, struct pmemset_error *err)
{
	struct pmemset_error e;
	int rc = state_allocate(path, size, &e);
	return rc ? give(err, &e) : 0;
}
