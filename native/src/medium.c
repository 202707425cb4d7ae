/* SPDX-License-Identifier: BSD-3-Clause */
#include "medium.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Loop devices on files on loop devices, mirrors of mirrors, overlays on overlays: this deep and no deeper. */
#define LAYERS_MAX 4
/* Of a directory of sysfs. Stacks are small here: these calls are made on those of a foreign-function interface (128 KiB). */
#define SYS_PATH_SIZE 512

static _Atomic int simulated = PMEM2_GRANULARITY_PAGE;

void medium_simulate(enum pmem2_granularity granularity)
{
	atomic_store(&simulated, (int)granularity);
}

/* ---- sysfs ---- */

/* First line of dir/name, without its newline. */
static bool read_line(const char *dir, const char *name, char *line, int size)
{
	char path[SYS_PATH_SIZE];
	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return false;
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return false;
	bool got = fgets(line, size, file) != NULL;
	(void)fclose(file);
	if (got)
		line[strcspn(line, "\n")] = '\0';
	return got;
}

/* The same for the nearest directory, from a device up to its bus, that has such an attribute; *dir is left there. */
static bool read_upwards(char *dir, const char *name, char *line, int size)
{
	while (strncmp(dir, "/sys/devices/", 13) == 0) {
		if (read_line(dir, name, line, size))
			return true;
		*strrchr(dir, '/') = '\0';
	}
	return false;
}

static bool resolve(const char *link, char dir[SYS_PATH_SIZE])
{
	char *real = realpath(link, NULL);
	bool fits = real != NULL && strlen(real) < SYS_PATH_SIZE;
	if (fits)
		memcpy(dir, real, strlen(real) + 1);
	free(real);
	return fits;
}

static bool device_dir(dev_t dev, char dir[SYS_PATH_SIZE])
{
	char link[64];
	(void)snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	return resolve(link, dir);
}

/* ---- the mount table ---- */

/*
 * The line of the mount that fd is on, malloc'd, from its type on: "ext4 /dev/vda rw,..."; NULL where it cannot be found. *line is what
 * to free.
 */
static char *mount_of(int fd, char **line)
{
	struct statx sx;
	*line = NULL;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &sx) != 0 || !(sx.stx_mask & STATX_MNT_ID))
		return NULL;
	FILE *file = fopen("/proc/self/mountinfo", "re");
	if (file == NULL)
		return NULL;
	char *mount = NULL;
	size_t capacity = 0;
	while (mount == NULL && getline(line, &capacity, file) > 0) {
		char *behind = strstr(*line, " - ");
		if (strtoull(*line, NULL, 10) == sx.stx_mnt_id && behind != NULL)
			mount = behind + 3;
	}
	(void)fclose(file);
	return mount;
}

/* ---- persistence ---- */

static void settle(struct medium *m, enum persistence persistence, const char *why)
{
	m->persistence = persistence;
	m->why_persistence = why;
}

enum persistence persistence_weaker(enum persistence a, enum persistence b)
{
	static const int strength[] = {[PERSISTENCE_VOLATILE] = 0,
			[PERSISTENCE_UNKNOWN] = 1,
			[PERSISTENCE_HOST_DEPENDENT] = 2,
			[PERSISTENCE_PERSISTENT] = 3};
	return strength[a] < strength[b] ? a : b;
}

static void persistence_of(int fd, struct medium *m, int layer);

/* Takes fd; -1: it cannot be opened. */
static void beneath(int fd, struct medium *m, int layer)
{
	if (fd < 0) {
		settle(m, PERSISTENCE_UNKNOWN, "the layer beneath the file system cannot be seen from here");
		return;
	}
	persistence_of(fd, m, layer + 1);
	(void)close(fd);
}

/* Frames of their own, so that a path's length of stack is not taken for each layer. */
static int __attribute__((noinline)) open_backing_file(const char *dir)
{
	char path[PATH_MAX];
	return read_line(dir, "loop/backing_file", path, sizeof(path)) ? open(path, O_PATH | O_CLOEXEC) : -1;
}

static int __attribute__((noinline)) open_upper_layer(int overlay)
{
	char *line;
	char *mount = mount_of(overlay, &line);
	char *upper = mount ? strstr(mount, "upperdir=") : NULL;
	int fd = -1;
	if (upper != NULL) {
		upper += strlen("upperdir=");
		upper[strcspn(upper, ",\n")] = '\0';
		fd = open(upper, O_PATH | O_CLOEXEC);
	}
	free(line);
	return fd;
}

static void persistence_of_device(const char *dir, struct medium *m, int layer);

/* dm and md: as weak as the weakest that it is made of. */
static void persistence_of_slaves(const char *dir, struct medium *m, int layer)
{
	char path[SYS_PATH_SIZE];
	settle(m, PERSISTENCE_UNKNOWN, "sysfs does not show what the device is made of");
	DIR *slaves = snprintf(path, sizeof(path), "%s/slaves", dir) < (int)sizeof(path) ? opendir(path) : NULL;
	if (slaves == NULL)
		return;
	bool any = false;
	for (struct dirent *entry = readdir(slaves); entry != NULL; entry = readdir(slaves)) {
		struct medium one = *m;
		if (entry->d_name[0] == '.')
			continue;
		if (snprintf(path, sizeof(path), "%s/slaves/%s", dir, entry->d_name) < (int)sizeof(path) && resolve(path, path))
			persistence_of_device(path, &one, layer + 1);
		else
			settle(&one, PERSISTENCE_UNKNOWN, m->why_persistence);
		if (!any || persistence_weaker(one.persistence, m->persistence) != m->persistence)
			settle(m, one.persistence, one.why_persistence);
		any = true;
	}
	(void)closedir(slaves);
}

static void persistence_of_pmem(const char *dir, struct medium *m)
{
	char up[SYS_PATH_SIZE];
	char provider[32];
	memcpy(up, dir, strlen(dir) + 1);
	if (strstr(dir, "/virtio") != NULL)
		settle(m, PERSISTENCE_HOST_DEPENDENT, "virtio-pmem: the host decides what a flush reaches");
	else if (read_upwards(up, "provider", provider, sizeof(provider)) && strcmp(provider, "e820") == 0)
		settle(m, PERSISTENCE_VOLATILE, "memory set aside by memmap=: a power cut empties it");
	else
		settle(m, PERSISTENCE_PERSISTENT, "a libnvdimm region");
}

/* dir: of a device, or of a partition, in sysfs. */
static void persistence_of_device(const char *dir, struct medium *m, int layer)
{
	static const char virtual_block[] = "/sys/devices/virtual/block/";
	char disk[SYS_PATH_SIZE];
	char line[16];
	if (layer > LAYERS_MAX) {
		settle(m, PERSISTENCE_UNKNOWN, "devices on devices, too many to follow");
		return;
	}
	memcpy(disk, dir, strlen(dir) + 1);
	if (read_line(disk, "partition", line, sizeof(line)))
		*strrchr(disk, '/') = '\0';
	if (strncmp(disk, virtual_block, sizeof(virtual_block) - 1) != 0) {
		if (strstr(disk, "/ndbus") != NULL)
			persistence_of_pmem(disk, m);
		else
			settle(m, PERSISTENCE_PERSISTENT, "a file system on a block device");
		return;
	}
	const char *name = disk + sizeof(virtual_block) - 1;
	if (strncmp(name, "loop", 4) == 0)
		beneath(open_backing_file(disk), m, layer);
	else if (strncmp(name, "dm-", 3) == 0 || strncmp(name, "md", 2) == 0)
		persistence_of_slaves(disk, m, layer);
	else if (strncmp(name, "ram", 3) == 0 || strncmp(name, "zram", 4) == 0)
		settle(m, PERSISTENCE_VOLATILE, "a RAM disk");
	else
		settle(m, PERSISTENCE_UNKNOWN, "a virtual block device of a kind that is not known");
}

static void persistence_of(int fd, struct medium *m, int layer)
{
	struct statfs fs;
	struct stat st;
	char dir[SYS_PATH_SIZE];
	if (layer > LAYERS_MAX || fstatfs(fd, &fs) != 0 || fstat(fd, &st) != 0) {
		settle(m, PERSISTENCE_UNKNOWN, "the file system does not say");
		return;
	}
	switch ((unsigned long)fs.f_type) {
	case TMPFS_MAGIC:
	case RAMFS_MAGIC:
	case HUGETLBFS_MAGIC:
		settle(m, PERSISTENCE_VOLATILE, "a file system in memory: a power cut empties it");
		return;
	case V9FS_MAGIC:
	case NFS_SUPER_MAGIC:
	case FUSE_SUPER_MAGIC: /* virtiofs as well */
	case SMB2_SUPER_MAGIC:
	case CEPH_SUPER_MAGIC:
		settle(m, PERSISTENCE_HOST_DEPENDENT, "a file system of another host or process, which decides what a flush reaches");
		return;
	case OVERLAYFS_SUPER_MAGIC:
		beneath(open_upper_layer(fd), m, layer);
		return;
	case BTRFS_SUPER_MAGIC: /* its st_dev names no device */
		settle(m, PERSISTENCE_PERSISTENT, "a file system on a block device");
		return;
	default:
		if (device_dir(st.st_dev, dir))
			persistence_of_device(dir, m, layer);
		else
			settle(m, PERSISTENCE_UNKNOWN, "sysfs does not show the device of the file system");
	}
}

/* ---- granularity ---- */

static bool takes_map_sync(int fd)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *probe = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
	if (probe == MAP_FAILED)
		return false;
	(void)munmap(probe, page);
	return true;
}

/* Whether the CPU caches of this file's own region are in the persistence domain (eADR); other regions of the host do not count. */
static bool caches_persist(dev_t dev)
{
	char dir[SYS_PATH_SIZE];
	char domain[32];
	return device_dir(dev, dir) && read_upwards(dir, "persistence_domain", domain, sizeof(domain)) && strcmp(domain, "cpu_cache") == 0;
}

static void granularity_of(int fd, dev_t dev, struct medium *m)
{
	m->map_sync = takes_map_sync(fd);
	m->why_granularity = "";
	int pretend = atomic_load(&simulated);
	if (pretend != PMEM2_GRANULARITY_PAGE) {
		m->granularity = (enum pmem2_granularity)pretend;
		m->simulated = true;
		m->why_granularity = "simulated: the operator asked to pretend";
	} else if (!m->map_sync) {
		m->granularity = PMEM2_GRANULARITY_PAGE;
		m->why_granularity = m->dax ? "the file system is DAX, but its device does not take MAP_SYNC"
					    : "the file is not on a DAX file system, so the page cache is in between";
	} else if (caches_persist(dev)) {
		m->granularity = PMEM2_GRANULARITY_BYTE;
	} else {
		m->granularity = PMEM2_GRANULARITY_CACHE_LINE;
		m->why_granularity = "the region's persistence domain does not include the CPU caches";
	}
}

void medium_of(int fd, struct medium *m)
{
	*m = (struct medium){.granularity = PMEM2_GRANULARITY_PAGE, .numa_node = -1, .file_system = "unknown"};
	char *line_of_mount;
	const char *mount = mount_of(fd, &line_of_mount);
	if (mount != NULL)
		(void)snprintf(m->file_system, sizeof(m->file_system), "%.*s", (int)strcspn(mount, " "), mount);
	free(line_of_mount);

	struct statx sx;
	dev_t dev = 0;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx) == 0) {
		m->dax = (sx.stx_attributes & STATX_ATTR_DAX) != 0;
		dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
	}
	persistence_of(fd, m, 0);
	granularity_of(fd, dev, m);
	m->resident = m->dax || strcmp(m->file_system, "tmpfs") == 0 || strcmp(m->file_system, "ramfs") == 0;
	m->allocates = strcmp(m->file_system, "btrfs") != 0 && strcmp(m->file_system, "zfs") != 0;

	char dir[SYS_PATH_SIZE];
	char line[16];
	if (device_dir(dev, dir) && read_upwards(dir, "numa_node", line, sizeof(line)))
		m->numa_node = atoi(line); /* NOLINT(cert-err34-c): the kernel wrote it; -1 means none */
}
