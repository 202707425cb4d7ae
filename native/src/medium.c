/* SPDX-License-Identifier: BSD-3-Clause */
#include "medium.h"

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

/* Loop devices on files on loop devices, overlays on overlays: this deep and no deeper. */
#define LAYERS_MAX 4

static _Atomic int simulated = PMEM2_GRANULARITY_PAGE;

void medium_simulate(enum pmem2_granularity granularity)
{
	atomic_store(&simulated, (int)granularity);
}

/* ---- sysfs ---- */

/* First line of dir/name, without its newline. */
static bool read_line(const char *dir, const char *name, char *line, int size)
{
	char path[PATH_MAX];
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

static bool device_dir(dev_t dev, char dir[PATH_MAX])
{
	char link[64];
	(void)snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	return realpath(link, dir) != NULL;
}

/* ---- the mount table ---- */

struct mount {
	char type[MEDIUM_NAME_SIZE];
	char source[256];
	char upper[PATH_MAX]; /* overlay: upperdir */
};

static bool mount_of(int fd, struct mount *mount)
{
	struct statx sx;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &sx) != 0 || !(sx.stx_mask & STATX_MNT_ID))
		return false;
	FILE *file = fopen("/proc/self/mountinfo", "re");
	if (file == NULL)
		return false;
	char *line = NULL;
	size_t capacity = 0;
	bool found = false;
	while (!found && getline(&line, &capacity, file) > 0) {
		unsigned long long id = strtoull(line, NULL, 10);
		char *behind = strstr(line, " - ");
		if (id != sx.stx_mnt_id || behind == NULL)
			continue;
		char options[PATH_MAX * 2];
		options[0] = '\0';
		mount->upper[0] = '\0';
		found = sscanf(behind, " - %63s %255s %8191s", mount->type, mount->source, options) >= 2;
		const char *upper = strstr(options, "upperdir=");
		if (upper != NULL)
			(void)sscanf(upper, "upperdir=%4095[^,]", mount->upper);
	}
	free(line);
	(void)fclose(file);
	return found;
}

/* ---- persistence ---- */

static void settle(struct medium *m, enum persistence persistence, const char *why)
{
	m->persistence = persistence;
	m->why_persistence = why;
}

static void persistence_of(int fd, struct medium *m, int layer);

static void beneath(const char *path, struct medium *m, int layer)
{
	int fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0) {
		settle(m, PERSISTENCE_UNKNOWN, "the layer beneath the file system cannot be seen from here");
		return;
	}
	persistence_of(fd, m, layer + 1);
	(void)close(fd);
}

static void persistence_of_device(dev_t dev, struct medium *m, int layer)
{
	char dir[PATH_MAX];
	char line[PATH_MAX];
	if (!device_dir(dev, dir)) {
		settle(m, PERSISTENCE_UNKNOWN, "sysfs does not show the device of the file system");
		return;
	}
	if (read_line(dir, "loop/backing_file", line, sizeof(line))) {
		beneath(line, m, layer);
		return;
	}
	bool pmem = strstr(dir, "/ndbus") != NULL;
	if (strstr(dir, "/virtio") != NULL && pmem) {
		settle(m, PERSISTENCE_HOST_DEPENDENT, "virtio-pmem: the host decides what a flush reaches");
		return;
	}
	if (pmem) {
		char up[PATH_MAX];
		memcpy(up, dir, sizeof(up));
		if (read_upwards(up, "provider", line, sizeof(line)) && strcmp(line, "e820") == 0)
			settle(m, PERSISTENCE_VOLATILE, "memory set aside by memmap=: a power cut empties it");
		else
			settle(m, PERSISTENCE_PERSISTENT, "a libnvdimm region");
		return;
	}
	if (strstr(dir, "/virtual/block/ram") != NULL || strstr(dir, "/zram") != NULL) {
		settle(m, PERSISTENCE_VOLATILE, "a RAM disk");
		return;
	}
	settle(m, PERSISTENCE_PERSISTENT, "a file system on a block device");
}

static void persistence_of(int fd, struct medium *m, int layer)
{
	struct statfs fs;
	struct stat st;
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
	case OVERLAYFS_SUPER_MAGIC: {
		struct mount mount;
		if (mount_of(fd, &mount) && mount.upper[0] != '\0')
			beneath(mount.upper, m, layer);
		else
			settle(m, PERSISTENCE_UNKNOWN, "an overlay whose upper layer cannot be seen from here");
		return;
	}
	case BTRFS_SUPER_MAGIC: /* its st_dev names no device */
		settle(m, PERSISTENCE_PERSISTENT, "a file system on a block device");
		return;
	default:
		persistence_of_device(st.st_dev, m, layer);
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
	char dir[PATH_MAX];
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
	struct mount mount;
	if (mount_of(fd, &mount))
		memcpy(m->file_system, mount.type, sizeof(m->file_system));

	struct statx sx;
	dev_t dev = 0;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx) == 0) {
		m->dax = (sx.stx_attributes & STATX_ATTR_DAX) != 0;
		dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
	}
	persistence_of(fd, m, 0);
	granularity_of(fd, dev, m);
	m->allocates = strcmp(m->file_system, "btrfs") != 0 && strcmp(m->file_system, "zfs") != 0;

	char dir[PATH_MAX];
	char line[16];
	if (device_dir(dev, dir) && read_upwards(dir, "numa_node", line, sizeof(line)))
		m->numa_node = atoi(line); /* NOLINT(cert-err34-c): the kernel wrote it; -1 means none */
}
