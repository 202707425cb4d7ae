/* SPDX-License-Identifier: BSD-3-Clause */
#include "index.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FANOUT 32u
/* A node with fewer entries is merged with a neighbour if both fit into three quarters of one. */
#define SPARSE (FANOUT / 4)
#define MERGED (FANOUT * 3 / 4)

/*
 * Every word that a reader loads is atomic: a node may be under rewriting while a reader that was overtaken still looks at it. Such a
 * reader sees some mix of words, then sees the count of commits and starts over. Release and acquire on each word give that order, and
 * cost nothing on x86.
 */
struct node {
	_Atomic uint64_t hi[FANOUT]; /* searched, so first; an inner node's is the end of the child's last range */
	_Atomic uint64_t lo[FANOUT];
	_Atomic(void *) to[FANOUT]; /* leaf: the object; inner: the child */
	_Atomic uint32_t n;
	_Atomic uint32_t level; /* 0 is a leaf */
	uint64_t change;	/* the change that made it, and may write it in place */
};

struct inner {
	struct node node;
	uint64_t gap[FANOUT]; /* largest gap between two ranges beneath the child; the writer's own */
};

static uint64_t get(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

static void set(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

static void *get_to(const struct node *node, unsigned i)
{
	return atomic_load_explicit(&node->to[i], memory_order_acquire);
}

static unsigned count(const struct node *node)
{
	return atomic_load_explicit(&node->n, memory_order_acquire);
}

static unsigned level(const struct node *node)
{
	return atomic_load_explicit(&node->level, memory_order_acquire);
}

static void set_count(struct node *node, unsigned n)
{
	atomic_store_explicit(&node->n, n, memory_order_release);
}

static void set_entry(struct node *node, unsigned i, uint64_t lo, uint64_t hi, void *to)
{
	set(&node->lo[i], lo);
	set(&node->hi[i], hi);
	atomic_store_explicit(&node->to[i], to, memory_order_release);
}

static void copy_entry(struct node *dst, unsigned to, const struct node *src, unsigned from)
{
	set_entry(dst, to, get(&src->lo[from]), get(&src->hi[from]), get_to(src, from));
	if (level(dst) > 0)
		((struct inner *)dst)->gap[to] = ((const struct inner *)src)->gap[from];
}

/* How many of the node's ranges end at or before addr: the place of the first that ends behind it. */
static unsigned search(const struct node *node, unsigned n, uint64_t addr)
{
	/* Without a branch on what is compared: which way it goes is chance, and a wrong guess costs more than the comparison. */
	unsigned base = 0;
	for (; n > 1; n -= n / 2)
		base += get(&node->hi[base + n / 2 - 1]) <= addr ? n / 2 : 0;
	return base + (n == 1 && get(&node->hi[base]) <= addr);
}

int index_start(struct index *ix)
{
	memset(ix, 0, sizeof(*ix));
	pool_start(&ix->leaves, sizeof(struct node), 16);
	pool_start(&ix->inners, sizeof(struct inner), 8);
	pool_start(&ix->snapshots, sizeof(struct snapshot), 32);
	struct snapshot *empty = pool_take(&ix->snapshots);
	if (empty == NULL)
		return -ENOMEM;
	for (int t = 0; t < INDEX_TREES; t++)
		atomic_init(&empty->root[t], NULL);
	atomic_init(&ix->current, empty);
	atomic_init(&ix->commits, 1);
	return 0;
}

void index_end(struct index *ix)
{
	pool_end(&ix->leaves);
	pool_end(&ix->inners);
	pool_end(&ix->snapshots);
	free(ix->queue);
	free(ix->fresh);
	memset(ix, 0, sizeof(*ix));
}

/* ---- readers ---- */

enum outcome { FOUND, NONE, OVERTAKEN };

uint64_t index_commits(const struct index *ix)
{
	return atomic_load_explicit(&ix->commits, memory_order_acquire);
}

bool index_overtaken(const struct index *ix, uint64_t commits)
{
	return atomic_load_explicit(&ix->commits, memory_order_acquire) - commits >= INDEX_GRACE;
}

/* Nothing that was read from a node is used before the check that the node was still what it had been. */
static enum outcome descend(const struct index *ix, uint64_t commits, const struct node *node, uint64_t addr, struct range *found)
{
	if (node == NULL)
		return NONE;
	for (;;) {
		unsigned n = count(node);
		if (n > FANOUT)
			return OVERTAKEN;
		unsigned i = search(node, n, addr);
		unsigned depth = level(node);
		if (i == n)
			return index_overtaken(ix, commits) ? OVERTAKEN : NONE;
		void *to = get_to(node, i);
		if (depth == 0) {
			*found = (struct range){get(&node->lo[i]), get(&node->hi[i]), to};
			return index_overtaken(ix, commits) ? OVERTAKEN : FOUND;
		}
		if (index_overtaken(ix, commits))
			return OVERTAKEN;
		node = to;
	}
}

static const struct node *published(const struct index *ix, enum index_tree tree)
{
	struct snapshot *now = atomic_load_explicit(&ix->current, memory_order_acquire);
	return atomic_load_explicit(&now->root[tree], memory_order_acquire);
}

bool index_next(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *found)
{
	for (;;) {
		uint64_t commits = index_commits(ix);
		const struct node *root = published(ix, tree);
		if (index_overtaken(ix, commits))
			continue;
		enum outcome outcome = descend(ix, commits, root, addr, found);
		if (outcome != OVERTAKEN)
			return outcome == FOUND;
	}
}

bool index_find(const struct index *ix, uint64_t addr, struct range *map, struct range *part)
{
	for (;;) {
		uint64_t commits = index_commits(ix);
		struct snapshot *now = atomic_load_explicit(&ix->current, memory_order_acquire);
		const struct node *maps = atomic_load_explicit(&now->root[INDEX_MAPS], memory_order_acquire);
		const struct node *parts = atomic_load_explicit(&now->root[INDEX_PARTS], memory_order_acquire);
		if (index_overtaken(ix, commits))
			continue;
		enum outcome outcome = descend(ix, commits, maps, addr, map);
		if (outcome == FOUND && map->lo <= addr)
			outcome = descend(ix, commits, parts, addr, part);
		if (outcome == FOUND && (map->lo > addr || part->lo > addr))
			outcome = NONE;
		if (outcome != OVERTAKEN)
			return outcome == FOUND;
	}
}

bool index_next_with(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *map, struct range *part)
{
	struct range *found = tree == INDEX_MAPS ? map : part;
	struct range *with = tree == INDEX_MAPS ? part : map;
	for (;;) {
		uint64_t commits = index_commits(ix);
		struct snapshot *now = atomic_load_explicit(&ix->current, memory_order_acquire);
		const struct node *root = atomic_load_explicit(&now->root[tree], memory_order_acquire);
		const struct node *other = atomic_load_explicit(&now->root[1 - tree], memory_order_acquire);
		if (index_overtaken(ix, commits))
			continue;
		enum outcome outcome = descend(ix, commits, root, addr, found);
		if (outcome == NONE)
			return false;
		enum outcome beside = outcome == FOUND ? descend(ix, commits, other, found->lo, with) : OVERTAKEN;
		if (beside == OVERTAKEN)
			continue;
		if (beside == NONE || with->lo > found->lo)
			with->object = NULL;
		return true;
	}
}

/* ---- the writer ---- */

/* Only the writer moves the count. */
static uint64_t own_commits(const struct index *ix)
{
	return atomic_load_explicit(&ix->commits, memory_order_relaxed);
}

static int queue_push(struct index *ix, struct pool *pool, void *object)
{
	if (ix->waiting == ix->capacity) {
		size_t capacity = ix->capacity ? ix->capacity * 2 : 256;
		struct retired *queue = malloc(capacity * sizeof(*queue));
		if (queue == NULL)
			return -ENOMEM;
		for (size_t i = 0; i < ix->waiting; i++)
			queue[i] = ix->queue[(ix->first + i) % ix->capacity];
		free(ix->queue);
		ix->queue = queue;
		ix->first = 0;
		ix->capacity = capacity;
	}
	ix->queue[(ix->first + ix->waiting) % ix->capacity] = (struct retired){pool, object, 0};
	ix->waiting++;
	ix->of_this_change++;
	return 0;
}

int index_retire(struct index *ix, struct pool *pool, void *object)
{
	return queue_push(ix, pool, object);
}

static struct node *make(struct index *ix, unsigned depth)
{
	if (ix->fresh_count == ix->fresh_capacity) {
		size_t capacity = ix->fresh_capacity ? ix->fresh_capacity * 2 : 64;
		void **fresh = realloc(ix->fresh, capacity * sizeof(*fresh));
		if (fresh == NULL)
			return NULL;
		ix->fresh = fresh;
		ix->fresh_capacity = capacity;
	}
	struct node *node = pool_take(depth ? &ix->inners : &ix->leaves);
	if (node == NULL)
		return NULL;
	atomic_store_explicit(&node->level, depth, memory_order_release);
	set_count(node, 0);
	node->change = own_commits(ix);
	ix->fresh[ix->fresh_count++] = node;
	return node;
}

/* The node itself where the open change made it, else its copy; NULL where memory is out. */
static struct node *own(struct index *ix, struct node *node)
{
	if (node->change == own_commits(ix))
		return node;
	struct node *copy = make(ix, level(node));
	if (copy == NULL || queue_push(ix, level(node) ? &ix->inners : &ix->leaves, node) != 0)
		return NULL;
	unsigned n = count(node);
	for (unsigned i = 0; i < n; i++)
		copy_entry(copy, i, node, i);
	set_count(copy, n);
	return copy;
}

static uint64_t largest_gap(const struct node *node)
{
	uint64_t largest = 0;
	unsigned n = count(node);
	for (unsigned i = 0; i < n; i++) {
		uint64_t before = i ? get(&node->lo[i]) - get(&node->hi[i - 1]) : 0;
		uint64_t beneath = level(node) ? ((const struct inner *)node)->gap[i] : 0;
		largest = before > largest ? before : largest;
		largest = beneath > largest ? beneath : largest;
	}
	return largest;
}

/* Entry i of an inner node says again what its child holds. */
static void refer(struct node *node, unsigned i, struct node *child)
{
	set_entry(node, i, get(&child->lo[0]), get(&child->hi[count(child) - 1]), child);
	((struct inner *)node)->gap[i] = largest_gap(child);
}

static void open_entry(struct node *node, unsigned i)
{
	for (unsigned j = count(node); j > i; j--)
		copy_entry(node, j, node, j - 1);
	set_count(node, count(node) + 1);
}

static void close_entry(struct node *node, unsigned i)
{
	unsigned n = count(node) - 1;
	for (unsigned j = i; j < n; j++)
		copy_entry(node, j, node, j + 1);
	set_count(node, n);
}

/* Split a full node; parts that are added in address order, the common case, leave full nodes behind. */
static struct node *split(struct index *ix, struct node *node, unsigned at)
{
	struct node *right = make(ix, level(node));
	if (right == NULL)
		return NULL;
	unsigned keep = at == FANOUT ? FANOUT - 1 : FANOUT / 2;
	for (unsigned i = keep; i < FANOUT; i++)
		copy_entry(right, i - keep, node, i);
	set_count(right, FANOUT - keep);
	set_count(node, keep);
	return right;
}

/* *self: the node that stands for `node` now; *right: its new right neighbour, or NULL. */
static int put(struct index *ix, struct node *node, uint64_t lo, uint64_t hi, void *object, struct node **self, struct node **right)
{
	*right = NULL;
	node = own(ix, node);
	if (node == NULL)
		return -ENOMEM;
	*self = node;
	unsigned at = search(node, count(node), lo);
	struct node *child = NULL;
	struct node *child_right = NULL;
	if (level(node) > 0) {
		if (at == count(node))
			at--;
		int rc = put(ix, get_to(node, at), lo, hi, object, &child, &child_right);
		if (rc != 0)
			return rc;
		refer(node, at, child);
		if (child_right == NULL)
			return 0;
		at++;
	} else if (at < count(node) && get(&node->lo[at]) == lo) {
		set_entry(node, at, lo, hi, object);
		return 0;
	}
	if (count(node) == FANOUT) {
		*right = split(ix, node, at);
		if (*right == NULL)
			return -ENOMEM;
		if (at > count(node)) {
			at -= count(node);
			node = *right;
		}
	}
	open_entry(node, at);
	if (child_right != NULL)
		refer(node, at, child_right);
	else
		set_entry(node, at, lo, hi, object);
	return 0;
}

int index_put(struct index *ix, enum index_tree tree, uint64_t lo, uint64_t hi, void *object)
{
	assert(lo < hi);
	struct node *root = ix->root[tree];
	if (root == NULL) {
		root = make(ix, 0);
		if (root == NULL)
			return -ENOMEM;
		set_entry(root, 0, lo, hi, object);
		set_count(root, 1);
		ix->root[tree] = root;
		return 0;
	}
	struct node *self;
	struct node *right;
	int rc = put(ix, root, lo, hi, object, &self, &right);
	if (rc != 0)
		return rc;
	if (right != NULL) {
		struct node *top = make(ix, level(self) + 1);
		if (top == NULL)
			return -ENOMEM;
		refer(top, 0, self);
		refer(top, 1, right);
		set_count(top, 2);
		self = top;
	}
	ix->root[tree] = self;
	return 0;
}

/* Pour the right one of two neighbours into the left one where both are small. */
static int merge(struct index *ix, struct node *node, unsigned left)
{
	struct node *into = get_to(node, left);
	struct node *from = get_to(node, left + 1);
	unsigned n = count(into);
	unsigned m = count(from);
	if (n + m > MERGED)
		return 0;
	into = own(ix, into);
	if (into == NULL || queue_push(ix, level(from) ? &ix->inners : &ix->leaves, from) != 0)
		return -ENOMEM;
	for (unsigned i = 0; i < m; i++)
		copy_entry(into, n + i, from, i);
	set_count(into, n + m);
	refer(node, left, into);
	close_entry(node, left + 1);
	return 0;
}

/* *self: the node that stands for `node` now, NULL where nothing is left of it. */
static int del(struct index *ix, struct node *node, uint64_t lo, struct node **self)
{
	node = own(ix, node);
	if (node == NULL)
		return -ENOMEM;
	*self = node;
	unsigned at = search(node, count(node), lo);
	assert(at < count(node));
	if (level(node) == 0) {
		assert(get(&node->lo[at]) == lo);
		close_entry(node, at);
	} else {
		struct node *child;
		int rc = del(ix, get_to(node, at), lo, &child);
		if (rc != 0)
			return rc;
		if (child == NULL) {
			close_entry(node, at);
		} else {
			refer(node, at, child);
			if (count(child) < SPARSE && count(node) > 1)
				rc = merge(ix, node, at > 0 ? at - 1 : 0);
			if (rc != 0)
				return rc;
		}
	}
	if (count(node) > 0)
		return 0;
	*self = NULL;
	return queue_push(ix, level(node) ? &ix->inners : &ix->leaves, node);
}

int index_del(struct index *ix, enum index_tree tree, uint64_t lo)
{
	struct node *self;
	int rc = del(ix, ix->root[tree], lo, &self);
	if (rc != 0)
		return rc;
	while (self != NULL && level(self) > 0 && count(self) == 1) {
		if ((rc = queue_push(ix, &ix->inners, self)) != 0)
			return rc;
		self = get_to(self, 0);
	}
	ix->root[tree] = self;
	return 0;
}

bool index_peek(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *found)
{
	/* The writer cannot overtake itself. */
	return descend(ix, own_commits(ix), ix->root[tree], addr, found) == FOUND;
}

bool index_before(const struct index *ix, enum index_tree tree, uint64_t addr, struct range *found)
{
	const struct node *node = ix->root[tree];
	while (node != NULL) {
		unsigned i = 0;
		while (i < count(node) && get(&node->lo[i]) < addr)
			i++;
		if (i == 0)
			return false;
		if (level(node) == 0) {
			*found = (struct range){get(&node->lo[i - 1]), get(&node->hi[i - 1]), get_to(node, i - 1)};
			return true;
		}
		node = get_to(node, i - 1);
	}
	return false;
}

int index_prepare(struct index *ix)
{
	assert(ix->next == NULL);
	struct snapshot *next = pool_take(&ix->snapshots);
	if (next == NULL)
		return -ENOMEM;
	if (queue_push(ix, &ix->snapshots, atomic_load_explicit(&ix->current, memory_order_relaxed)) != 0) {
		pool_give(&ix->snapshots, next);
		return -ENOMEM;
	}
	for (int t = 0; t < INDEX_TREES; t++)
		atomic_store_explicit(&next->root[t], ix->root[t], memory_order_release);
	ix->next = next;
	return 0;
}

void index_commit(struct index *ix)
{
	assert(ix->next != NULL);
	uint64_t commit = own_commits(ix);
	for (size_t i = ix->waiting - ix->of_this_change; i < ix->waiting; i++)
		ix->queue[(ix->first + i) % ix->capacity].commit = commit;
	ix->of_this_change = 0;
	ix->fresh_count = 0;
	atomic_store_explicit(&ix->current, ix->next, memory_order_release);
	ix->next = NULL;
	/* Readers compare this count with the one they began with; it grows before anything of an old commit is written again. */
	atomic_store_explicit(&ix->commits, commit + 1, memory_order_release);

	while (ix->waiting > 0) {
		struct retired *oldest = &ix->queue[ix->first];
		if (commit + 1 - oldest->commit <= INDEX_GRACE)
			break;
		pool_give(oldest->pool, oldest->object);
		ix->first = (ix->first + 1) % ix->capacity;
		ix->waiting--;
	}
}

void index_drop(struct index *ix)
{
	struct snapshot *now = atomic_load_explicit(&ix->current, memory_order_relaxed);
	for (int t = 0; t < INDEX_TREES; t++)
		ix->root[t] = atomic_load_explicit(&now->root[t], memory_order_relaxed);
	ix->waiting -= ix->of_this_change;
	ix->of_this_change = 0;
	if (ix->next != NULL)
		pool_give(&ix->snapshots, ix->next);
	ix->next = NULL;
	/* No reader ever saw these, so they need no grace. */
	while (ix->fresh_count > 0) {
		struct node *node = ix->fresh[--ix->fresh_count];
		node->change = 0;
		pool_give(level(node) ? &ix->inners : &ix->leaves, node);
	}
}

/* ---- free ranges ---- */

static uint64_t fit_gap(uint64_t from, uint64_t to, uint64_t length, uint64_t alignment, uint64_t residue)
{
	uint64_t up = (residue - from % alignment + alignment) % alignment;
	return to > from && up <= to - from && length <= to - from - up ? from + up : UINT64_MAX;
}

static uint64_t fit_beneath(const struct node *node, uint64_t length, uint64_t alignment, uint64_t residue)
{
	unsigned n = count(node);
	for (unsigned i = 0; i < n; i++) {
		if (i > 0) {
			uint64_t at = fit_gap(get(&node->hi[i - 1]), get(&node->lo[i]), length, alignment, residue);
			if (at != UINT64_MAX)
				return at;
		}
		if (level(node) > 0 && ((const struct inner *)node)->gap[i] >= length) {
			uint64_t at = fit_beneath(get_to(node, i), length, alignment, residue);
			if (at != UINT64_MAX)
				return at;
		}
	}
	return UINT64_MAX;
}

uint64_t index_fit(const struct index *ix, uint64_t from, uint64_t to, uint64_t length, uint64_t alignment, uint64_t residue)
{
	const struct node *root = ix->root[INDEX_MAPS];
	if (root == NULL)
		return fit_gap(from, to, length, alignment, residue);
	uint64_t at = fit_gap(from, get(&root->lo[0]), length, alignment, residue);
	if (at == UINT64_MAX)
		at = fit_beneath(root, length, alignment, residue);
	if (at == UINT64_MAX)
		at = fit_gap(get(&root->hi[count(root) - 1]), to, length, alignment, residue);
	return at;
}

uint64_t index_largest_gap(const struct index *ix, uint64_t from, uint64_t to)
{
	const struct node *root = ix->root[INDEX_MAPS];
	if (root == NULL)
		return to - from;
	uint64_t inside = largest_gap(root);
	uint64_t before = get(&root->lo[0]) - from;
	uint64_t behind = to - get(&root->hi[count(root) - 1]);
	uint64_t outside = before > behind ? before : behind;
	return inside > outside ? inside : outside;
}
