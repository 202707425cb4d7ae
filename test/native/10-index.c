/* SPDX-License-Identifier: BSD-3-Clause */
/* The address index against a plain sorted array, alone and with readers beside the writer. */
#include "scene.h"

#include "index.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SPACE (UINT64_C(1) << 20)
#define MODEL_MAX 4096

/* ---- the model: one sorted array a tree ---- */

struct model {
	struct range rows[INDEX_TREES][MODEL_MAX];
	size_t n[INDEX_TREES];
};

static struct model *committed, *open_change;
static char objects[64];

/* How many rows end at or before addr. */
static size_t place_in(const struct model *m, enum index_tree tree, uint64_t addr)
{
	size_t lo = 0;
	size_t hi = m->n[tree];
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (m->rows[tree][mid].hi <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void model_put(struct model *m, enum index_tree tree, struct range r)
{
	size_t at = place_in(m, tree, r.lo);
	struct range *rows = m->rows[tree];
	if (at == m->n[tree] || rows[at].lo != r.lo) {
		memmove(rows + at + 1, rows + at, (m->n[tree] - at) * sizeof(*rows));
		m->n[tree]++;
	}
	rows[at] = r;
}

static void model_del(struct model *m, enum index_tree tree, size_t at)
{
	struct range *rows = m->rows[tree];
	m->n[tree]--;
	memmove(rows + at, rows + at + 1, (m->n[tree] - at) * sizeof(*rows));
}

static uint64_t model_fit(const struct model *m, uint64_t length, uint64_t alignment, uint64_t residue)
{
	uint64_t from = 0;
	for (size_t i = 0; i <= m->n[INDEX_MAPS]; i++) {
		uint64_t to = i < m->n[INDEX_MAPS] ? m->rows[INDEX_MAPS][i].lo : SPACE;
		uint64_t at = from;
		while (at % alignment != residue)
			at++;
		if (at + length <= to)
			return at;
		from = i < m->n[INDEX_MAPS] ? m->rows[INDEX_MAPS][i].hi : to;
	}
	return UINT64_MAX;
}

static uint64_t model_gap(const struct model *m)
{
	uint64_t largest = 0;
	uint64_t from = 0;
	for (size_t i = 0; i <= m->n[INDEX_MAPS]; i++) {
		uint64_t to = i < m->n[INDEX_MAPS] ? m->rows[INDEX_MAPS][i].lo : SPACE;
		largest = to - from > largest ? to - from : largest;
		from = i < m->n[INDEX_MAPS] ? m->rows[INDEX_MAPS][i].hi : to;
	}
	return largest;
}

/* ---- comparing ---- */

static void same_range(const struct range *got, const struct range *wanted)
{
	assert_int_equal(got->lo, wanted->lo);
	assert_int_equal(got->hi, wanted->hi);
	assert_ptr_equal(got->object, wanted->object);
}

/* Readers see what was committed, the writer sees its open change. */
static void compare_at(const struct index *ix, enum index_tree tree, uint64_t addr)
{
	struct range r;
	size_t at = place_in(committed, tree, addr);
	assert_int_equal(index_next(ix, tree, addr, &r), at < committed->n[tree]);
	if (at < committed->n[tree])
		same_range(&r, &committed->rows[tree][at]);
	at = place_in(open_change, tree, addr);
	assert_int_equal(index_peek(ix, tree, addr, &r), at < open_change->n[tree]);
	if (at < open_change->n[tree])
		same_range(&r, &open_change->rows[tree][at]);
	/* The last with lo < addr: the one before `at`, or that one itself. */
	if (at < open_change->n[tree] && open_change->rows[tree][at].lo < addr)
		at++;
	assert_int_equal(index_before(ix, tree, addr, &r), at > 0);
	if (at > 0)
		same_range(&r, &open_change->rows[tree][at - 1]);
}

static void compare_find(const struct index *ix, uint64_t addr)
{
	struct range map, part;
	size_t m = place_in(committed, INDEX_MAPS, addr);
	size_t p = place_in(committed, INDEX_PARTS, addr);
	bool held = m < committed->n[INDEX_MAPS] && committed->rows[INDEX_MAPS][m].lo <= addr && p < committed->n[INDEX_PARTS] &&
		    committed->rows[INDEX_PARTS][p].lo <= addr;
	assert_int_equal(index_find(ix, addr, &map, &part), held);
	if (held) {
		same_range(&map, &committed->rows[INDEX_MAPS][m]);
		same_range(&part, &committed->rows[INDEX_PARTS][p]);
	}
}

static void compare_all(const struct index *ix)
{
	struct range r;
	for (enum index_tree tree = 0; tree < INDEX_TREES; tree++) {
		uint64_t at = 0;
		for (size_t i = 0; i < committed->n[tree]; i++, at = r.hi) {
			assert_true(index_next(ix, tree, at, &r));
			same_range(&r, &committed->rows[tree][i]);
		}
		assert_false(index_next(ix, tree, at, &r));
	}
}

static void compare_free(const struct index *ix)
{
	static const uint64_t alignments[] = {1, 2, 16, 64, 4096};
	uint64_t alignment = alignments[chance(5)];
	uint64_t residue = chance(alignment);
	uint64_t length = 1 + chance(UINT64_C(1) << (1 + chance(14)));
	assert_int_equal(index_fit(ix, 0, SPACE, length, alignment, residue), model_fit(open_change, length, alignment, residue));
	uint64_t largest = model_gap(open_change);
	assert_int_equal(index_largest_gap(ix, 0, SPACE), largest);
	if (largest > 0)
		assert_true(index_fit(ix, 0, SPACE, largest, 1, 0) != UINT64_MAX);
	assert_int_equal(index_fit(ix, 0, SPACE, largest + 1, 1, 0), UINT64_MAX);
}

/* ---- one random step ---- */

static void step_put(struct index *ix, enum index_tree tree)
{
	struct model *m = open_change;
	uint64_t lo = chance(SPACE);
	size_t at = place_in(m, tree, lo);
	uint64_t limit = SPACE;
	if (at < m->n[tree]) {
		struct range *r = &m->rows[tree][at];
		lo = r->lo <= lo ? r->lo : lo; /* inside of one: that one gets another end and object */
		limit = r->lo == lo ? (at + 1 < m->n[tree] ? r[1].lo : SPACE) : r->lo;
	}
	if (m->n[tree] == MODEL_MAX)
		return;
	uint64_t room = limit - lo < 256 ? limit - lo : 256;
	struct range r = {lo, lo + 1 + chance(room), &objects[chance(sizeof(objects))]};
	assert_int_equal(index_put(ix, tree, r.lo, r.hi, r.object), 0);
	model_put(m, tree, r);
}

static void step_del(struct index *ix, enum index_tree tree)
{
	struct model *m = open_change;
	if (m->n[tree] == 0)
		return;
	size_t at = chance(m->n[tree]);
	assert_int_equal(index_del(ix, tree, m->rows[tree][at].lo), 0);
	model_del(m, tree, at);
}

static void end_change(struct index *ix, bool keep)
{
	if (keep) {
		assert_int_equal(index_prepare(ix), 0);
		index_commit(ix);
		memcpy(committed, open_change, sizeof(*committed));
	} else {
		if (chance(2) == 0)
			assert_int_equal(index_prepare(ix), 0);
		index_drop(ix);
		memcpy(open_change, committed, sizeof(*committed));
	}
}

static void random_changes(void **state)
{
	(void)state;
	struct index ix;
	(void)seed_chance();
	committed = calloc(1, sizeof(*committed));
	open_change = calloc(1, sizeof(*open_change));
	assert_int_equal(index_start(&ix), 0);
	for (int i = 0; i < 60000; i++) {
		/* Now it grows, now it shrinks, several times down to nothing. */
		bool grows = (i / 7500) % 2 == 0;
		enum index_tree tree = chance(2) ? INDEX_MAPS : INDEX_PARTS;
		if (chance(8) < (grows ? 6 : 1))
			step_put(&ix, tree);
		else
			step_del(&ix, tree);
		compare_at(&ix, tree, chance(SPACE));
		compare_find(&ix, chance(SPACE));
		if (chance(16) == 0)
			compare_free(&ix);
		if (chance(6) == 0)
			end_change(&ix, chance(4) != 0);
		if (i % 500 == 0)
			compare_all(&ix);
	}
	while (open_change->n[INDEX_MAPS] + open_change->n[INDEX_PARTS] > 0) {
		step_del(&ix, open_change->n[INDEX_MAPS] > 0 ? INDEX_MAPS : INDEX_PARTS);
		if (chance(4) == 0)
			end_change(&ix, true);
	}
	end_change(&ix, true);
	compare_all(&ix);
	compare_free(&ix);
	assert_null(ix.root[INDEX_MAPS]);
	assert_null(ix.root[INDEX_PARTS]);
	index_end(&ix);
	free(committed);
	free(open_change);
}

/* ---- many ---- */

static void commit(struct index *ix)
{
	assert_int_equal(index_prepare(ix), 0);
	index_commit(ix);
}

static size_t chunks_of(const struct pool *pool)
{
	size_t n = 0;
	for (void *chunk = pool->chunks; chunk != NULL; chunk = *(void **)chunk)
		n++;
	return n;
}

static void thirty_thousand_one_by_one(void **state)
{
	(void)state;
	enum { MANY = 30000 };
	struct index ix;
	struct range r;
	double started = seconds();
	assert_int_equal(index_start(&ix), 0);
	for (uint64_t i = 0; i < MANY; i++) {
		assert_int_equal(index_put(&ix, INDEX_MAPS, i * 4096, i * 4096 + 4096, &objects[i % sizeof(objects)]), 0);
		commit(&ix);
	}
	/* Added in order, nodes are left full. */
	assert_true(chunks_of(&ix.leaves) * ix.leaves.objects_per_chunk < MANY / 31 + 200);
	for (uint64_t i = 1; i < MANY; i += 2) {
		assert_int_equal(index_del(&ix, INDEX_MAPS, i * 4096), 0);
		commit(&ix);
	}
	for (uint64_t i = 0; i < MANY; i++) {
		bool there = i % 2 == 0;
		bool found = index_next(&ix, INDEX_MAPS, i * 4096 + 4095, &r);
		assert_int_equal(found && r.lo == i * 4096, there);
		if (there)
			assert_ptr_equal(r.object, &objects[i % sizeof(objects)]);
	}
	assert_int_equal(index_fit(&ix, 0, MANY * UINT64_C(4096), 4096, 4096, 0), 4096);
	assert_int_equal(index_largest_gap(&ix, 0, MANY * UINT64_C(4096)), 4096);
	index_end(&ix);
	double took = seconds() - started;
	print_message("30 000 put, 15 000 deleted, each committed: %.2f s\n", took);
	assert_true(!measures() || took < 3);
}

static void memory_is_used_again(void **state)
{
	(void)state;
	struct index ix;
	assert_int_equal(index_start(&ix), 0);
	for (uint64_t i = 0; i < 1000; i++)
		assert_int_equal(index_put(&ix, INDEX_PARTS, i * 16, i * 16 + 8, objects), 0);
	commit(&ix);
	for (uint64_t i = 0; i < 2000; i++) {
		assert_int_equal(index_put(&ix, INDEX_PARTS, i * 7 % 1000 * 16, i * 7 % 1000 * 16 + 9, objects), 0);
		commit(&ix);
	}
	size_t leaves = chunks_of(&ix.leaves);
	size_t inners = chunks_of(&ix.inners);
	size_t snapshots = chunks_of(&ix.snapshots);
	for (uint64_t i = 0; i < 20000; i++) {
		assert_int_equal(index_put(&ix, INDEX_PARTS, i * 7 % 1000 * 16, i * 7 % 1000 * 16 + 10, objects), 0);
		if (i % 3 == 0)
			index_drop(&ix);
		else
			commit(&ix);
	}
	assert_int_equal(chunks_of(&ix.leaves), leaves);
	assert_int_equal(chunks_of(&ix.inners), inners);
	assert_int_equal(chunks_of(&ix.snapshots), snapshots);
	index_end(&ix);
}

static void retired_after_grace(void **state)
{
	(void)state;
	struct index ix;
	struct pool pool;
	uint64_t seen;
	assert_int_equal(index_start(&ix), 0);
	pool_start(&pool, 64, 2);
	void *dropped = pool_take(&pool);
	void *kept = pool_take(&pool);
	assert_non_null(dropped);
	assert_int_equal(index_retire(&ix, &pool, dropped), 0);
	index_drop(&ix);
	assert_int_equal(index_retire(&ix, &pool, kept), 0);
	seen = index_commits(&ix);
	commit(&ix);
	for (int i = 1; i < INDEX_GRACE; i++) {
		assert_null(pool.free);
		assert_false(index_overtaken(&ix, seen));
		commit(&ix);
	}
	assert_null(pool.free);
	assert_true(index_overtaken(&ix, seen));
	commit(&ix);
	commit(&ix);
	assert_ptr_equal(pool.free, kept);
	assert_ptr_equal(pool_take(&pool), kept);
	assert_null(pool.free); /* the dropped change gave nothing back */
	pool_end(&pool);
	index_end(&ix);
}

/* ---- readers beside the writer ---- */

#define SLOTS 512
#define CELLS 2000000

/* What a range leads to says what the range must be. */
struct cell {
	uint32_t slot, width;
	uint64_t generation;
};
static struct cell *cells;

struct reader {
	struct index *ix;
	_Atomic bool *stop;
	uint64_t seed, looked, found;
	const char *wrong;
};

static const char *check_answer(const struct range *map, const struct range *part, uint64_t addr, uint64_t *newest)
{
	const struct cell *cell = map->object;
	if (cell != part->object)
		return "map and part of two commits";
	if (cell < cells || cell >= cells + CELLS)
		return "an object that never was one";
	if (map->lo != cell->slot * UINT64_C(64) || map->hi != map->lo + cell->width)
		return "a map's range that its object never had";
	if (part->lo != map->lo || part->hi != map->hi)
		return "a part's range that its object never had";
	if (addr < map->lo || addr >= map->hi)
		return "a range that does not hold the address";
	if (cell->generation < newest[cell->slot])
		return "an older answer after a newer one";
	newest[cell->slot] = cell->generation;
	return NULL;
}

static void *look_up_all_the_time(void *arg)
{
	struct reader *me = arg;
	uint64_t *newest = calloc(SLOTS, sizeof(*newest));
	uint64_t random = me->seed;
	while (newest != NULL && !atomic_load(me->stop) && me->wrong == NULL) {
		struct range map, part;
		random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		uint64_t addr = (random >> 33) % (SLOTS * 64);
		me->looked++;
		if (index_find(me->ix, addr, &map, &part)) {
			me->found++;
			me->wrong = check_answer(&map, &part, addr, newest);
		}
		if (index_next(me->ix, INDEX_PARTS, addr, &part) && part.hi <= addr)
			me->wrong = "a next range that ends before the address";
	}
	free(newest);
	return NULL;
}

/* Each commit gives a few slots, far apart, a new cell in both trees, or takes them out of both. */
static uint64_t change_for(struct index *ix, double how_long)
{
	static bool there[SLOTS];
	uint64_t used = 0;
	memset(there, 0, sizeof(there));
	for (double end = seconds() + how_long; seconds() < end && used + 4 < CELLS;) {
		for (int i = 0; i < 3; i++) {
			uint32_t slot = (uint32_t)chance(SLOTS);
			uint64_t lo = slot * UINT64_C(64);
			struct cell *cell = &cells[used++];
			*cell = (struct cell){slot, (uint32_t)(1 + chance(64)), used};
			bool goes = there[slot] && chance(3) == 0;
			for (enum index_tree tree = 0; tree < INDEX_TREES; tree++)
				assert_int_equal(goes ? index_del(ix, tree, lo) : index_put(ix, tree, lo, lo + cell->width, cell), 0);
			there[slot] = !goes;
		}
		commit(ix);
	}
	return used;
}

static void readers_beside_the_writer(void **state)
{
	(void)state;
	enum { READERS = 3 };
	struct index ix;
	pthread_t threads[READERS];
	struct reader readers[READERS];
	_Atomic bool stop = false;
	(void)seed_chance();
	cells = calloc(CELLS, sizeof(*cells));
	assert_non_null(cells);
	assert_int_equal(index_start(&ix), 0);
	for (int i = 0; i < READERS; i++) {
		readers[i] = (struct reader){.ix = &ix, .stop = &stop, .seed = chance(UINT64_MAX)};
		assert_int_equal(pthread_create(&threads[i], NULL, look_up_all_the_time, &readers[i]), 0);
	}
	uint64_t changes = change_for(&ix, 1.5);
	atomic_store(&stop, true);
	uint64_t found = 0;
	for (int i = 0; i < READERS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		if (readers[i].wrong != NULL)
			fail_msg("reader %d: %s", i, readers[i].wrong);
		assert_true(readers[i].looked > 0);
		found += readers[i].found;
	}
	print_message("%" PRIu64 " changed ranges beside %" PRIu64 " that were found\n", changes, found);
	assert_true(found > 0);
	index_end(&ix);
	free(cells);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
			ONCE(random_changes),
			ONCE(thirty_thousand_one_by_one),
			ONCE(memory_is_used_again),
			ONCE(retired_after_grace),
			ONCE(readers_beside_the_writer),
	};
	return RUN("index", tests, FFI_GRANULARITY_UNSET);
}
