/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * N2: map a part of 2 MiB and remove it again, beside so many others of the same file range, each a kernel mapping. The peer makes the
 * same mapping, at the end of as many of its own in the same process, and puts the fence back.
 *
 * In C the file is open already, and a part that a program has a pointer to may be dirty whenever it is removed, so there the peer
 * flushes with msync. The service begins with a path that may lead nowhere but below the volume, so there the peer opens with openat2
 * and the same restrictions, asks for kind and size, and closes; its part is clean, and neither side flushes.
 *
 * The peer keeps out of core dumps, and by path out of children, what ours does: madvise after each mmap. A peer that does not is
 * measured beside, without a goal, and says what that costs.
 *
 * Not equal: by path, ours looks before it opens, so that a FIFO or a device is never opened, and refuses a file of several names.
 */
#include "bench.h"

#include <fcntl.h>
#include <libpmemset.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define PART (2 * MIB)
#define PARTS_MAX 28000u

static uint64_t volume;
static int dir;		    /* the same, for the peer */
static int fd;		    /* the file's */
static uint64_t neighbours; /* the set of them */
static uint64_t peer_base;  /* the peer's reservation */
static unsigned parts;	    /* how many there are on each side */

static const int fence_flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

static void *peer_map(int from, uint64_t i)
{
	void *addr = at(peer_base + i * PART);
	check(mmap(addr, PART, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, from, 0) == addr, "mmap");
	return addr;
}

static void peer_fence(void *addr)
{
	check(mmap(addr, PART, PROT_NONE, fence_flags, -1, 0) == addr, "mmap of a fence");
}

/* The peer's mapping at its place, of a file that is opened for it. */
static void *peer_open_and_map(int *opened)
{
	struct stat st;
	struct open_how how = {.flags = O_RDWR | O_CLOEXEC | O_NONBLOCK,
			.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
	*opened = (int)syscall(SYS_openat2, dir, "a", &how, sizeof(how));
	check(*opened >= 0 && fstat(*opened, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size >= PART, "open");
	return peer_map(*opened, parts);
}

/* ---- the sides ---- */

static double ffi_cost(void *arg, uint64_t times)
{
	const uint64_t *set = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++)
		remove_part(*set, map_part(*set, volume, "a", 0, PART, 1));
	return cpu_time() - began;
}

static double peer_bare_cost(void *arg, uint64_t times)
{
	double began = cpu_time();
	(void)arg;
	for (uint64_t i = 0; i < times; i++) {
		int opened;
		peer_fence(peer_open_and_map(&opened));
		(void)close(opened);
	}
	return cpu_time() - began;
}

static void keep_out(void *addr)
{
	(void)madvise(addr, PART, MADV_DONTDUMP);
	(void)madvise(addr, PART, MADV_DONTFORK);
}

static double peer_cost(void *arg, uint64_t times)
{
	double began = cpu_time();
	(void)arg;
	for (uint64_t i = 0; i < times; i++) {
		int opened;
		void *addr = peer_open_and_map(&opened);
		keep_out(addr);
		peer_fence(addr);
		keep_out(addr);
		(void)close(opened);
	}
	return cpu_time() - began;
}

/* 64 bytes are stored in between, without being made durable: the removal has to. */
static double ffi_dirty_cost(void *arg, uint64_t times)
{
	static const char bytes[64] = "dirty";
	const uint64_t *set = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct ffi_written written;
		uint64_t addr = map_part(*set, volume, "a", 0, PART, 1);
		must(ffi_write(*set, addr, bytes, sizeof(bytes), FFI_DURABILITY_NONE, &written, &err));
		remove_part(*set, addr);
	}
	return cpu_time() - began;
}

static double peer_dirty_cost(void *arg, uint64_t times)
{
	static const char bytes[64] = "dirty";
	double began = cpu_time();
	(void)arg;
	for (uint64_t i = 0; i < times; i++) {
		int opened;
		void *addr = peer_open_and_map(&opened);
		keep_out(addr);
		check(pwrite(opened, bytes, sizeof(bytes), 0) == sizeof(bytes), "pwrite");
		must(msync(addr, PART, MS_SYNC));
		peer_fence(addr);
		keep_out(addr);
		(void)close(opened);
	}
	return cpu_time() - began;
}

struct c_scene {
	struct pmemset *set;
	struct pmemset_source *source;
};

static double c_cost(void *arg, uint64_t times)
{
	const struct c_scene *c = arg;
	double began = cpu_time();
	for (uint64_t i = 0; i < times; i++) {
		struct pmemset_part_descriptor part;
		must(pmemset_map(c->set, c->source, NULL, &part));
		must(pmemset_remove_range(c->set, part.addr, 1));
	}
	return cpu_time() - began;
}

/* A program that forks has its parts in the child too; the fence it has not. */
static double peer_flush_cost(void *arg, uint64_t times)
{
	double began = cpu_time();
	(void)arg;
	for (uint64_t i = 0; i < times; i++) {
		void *addr = peer_map(fd, parts);
		(void)madvise(addr, PART, MADV_DONTDUMP);
		must(msync(addr, PART, MS_SYNC));
		peer_fence(addr);
		keep_out(addr);
	}
	return cpu_time() - began;
}

static double peer_flush_bare_cost(void *arg, uint64_t times)
{
	double began = cpu_time();
	(void)arg;
	for (uint64_t i = 0; i < times; i++) {
		void *addr = peer_map(fd, parts);
		must(msync(addr, PART, MS_SYNC));
		peer_fence(addr);
	}
	return cpu_time() - began;
}

/* ---- the scene ---- */

static void grow_to(unsigned count_wanted)
{
	for (; parts < count_wanted; parts++) {
		(void)map_part(neighbours, volume, "a", 0, PART, parts + 1);
		(void)peer_map(fd, parts);
	}
}

/* Both map the file: a byte that one stores is what the other loads. */
static void check_same(void)
{
	struct ffi_written written;
	uint64_t addr = map_part(neighbours, volume, "a", 0, PART, 1);
	char *peer = peer_map(fd, parts);
	must(ffi_write(neighbours, addr + PART - 8, "the same", 8, FFI_DURABILITY_PERSISTED, &written, &err));
	check(*(uint64_t *)(peer + PART - 8) == *(const uint64_t *)(const void *)"the same", "the peer maps something else");
	peer_fence(peer);
	remove_part(neighbours, addr);
}

static struct c_scene open_c(void)
{
	struct c_scene c;
	struct pmemset_config *config;
	char path[sizeof(memory_dir) + 4];
	(void)snprintf(path, sizeof(path), "%s/a", memory_dir);
	must(pmemset_config_new(&config));
	must(pmemset_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE));
	must(pmemset_new(&c.set, config));
	must(pmemset_config_delete(&config));
	must(pmemset_source_from_file(&c.source, path));
	return c;
}

static void open_scene(const char *where)
{
	volume = open_volume(where);
	dir = open(where, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	check(dir >= 0, "open a directory");
	fd = make_file(where, "a", PART);
}

static void by_path(void)
{
	static const unsigned counts[] = {0, 1000, 10000};
	char what[96];
	const struct side ours = {ffi_cost, &neighbours};
	const struct side peer = {peer_cost, NULL};
	compare("by path, of a file that nothing else is mapped from", NO_GOAL, ours, peer);
	uint64_t holder = new_set(PART, FFI_COALESCING_NONE);
	(void)map_part(holder, volume, "a", 0, PART, 1);
	check_same();
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]) && !(smoke && counts[i] > 0); i++) {
		grow_to(counts[i]);
		(void)snprintf(what, sizeof(what), "by path, beside %u adjacent parts", parts);
		compare(what, 1.3, ours, peer);
	}
	compare("the same, the peer keeps its range out of nothing", NO_GOAL, ours, (struct side){peer_bare_cost, NULL});
	check_same();
	must(ffi_set_delete(neighbours, &err));

	uint64_t run = new_set(1002 * PART, FFI_COALESCING_FULL);
	for (unsigned i = 0; i < (smoke ? 2 : 1000); i++)
		(void)map_part(run, volume, "a", 0, PART, i + 1);
	compare("by path, coalesced behind 1000 others", 1.3, (struct side){ffi_cost, &run}, peer);
	must(ffi_set_delete(run, &err));
	must(ffi_set_delete(holder, &err));
}

static void in_c(void)
{
	static const unsigned counts[] = {0, 1000, 10000, PARTS_MAX};
	char what[96];
	struct c_scene c = open_c();
	check(mmap(at(peer_base), parts * PART + PART, PROT_NONE, fence_flags, -1, 0) != MAP_FAILED, "mmap of a fence");
	parts = 0;
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]) && !(smoke && counts[i] > 0); i++) {
		for (; parts < counts[i]; parts++) {
			must(pmemset_map(c.set, c.source, NULL, NULL));
			(void)peer_map(fd, parts);
		}
		(void)snprintf(what, sizeof(what), "in C, of an open source, flushed before removal, beside %u adjacent parts", parts);
		compare(what, 1.3, (struct side){c_cost, &c}, (struct side){peer_flush_cost, NULL});
	}
	compare("the same, the peer keeps its range out of nothing", NO_GOAL, (struct side){c_cost, &c},
			(struct side){peer_flush_bare_cost, NULL});
	must(pmemset_delete(&c.set));
}

static void on_disk(void)
{
	open_scene(disk_dir);
	uint64_t set = new_set(3 * PART, FFI_COALESCING_NONE);
	(void)map_part(set, volume, "a", 0, PART, 1);
	compare("by path, dirty, on the disk", 1.3, (struct side){ffi_dirty_cost, &set}, (struct side){peer_dirty_cost, NULL});
}

void n2(void)
{
	start_engine(FFI_GRANULARITY_UNSET);
	open_scene(memory_dir);
	neighbours = new_set((PARTS_MAX + 1) * PART, FFI_COALESCING_NONE);
	peer_base = reserve((PARTS_MAX + 2) * PART);
	by_path();
	in_c();
	on_disk();
}
