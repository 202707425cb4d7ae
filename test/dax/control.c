/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the service must not do, done on purpose: new space of a DAX file is stored to and flushed from the CPU caches, through a mapping that
 * did not take MAP_SYNC ("plain"), so the file system may not know of it yet when the power fails. With "sync", the same in the right way.
 *
 *   control sync|plain FILE LETTER
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (64 * 1024)
#define CACHE_LINE 64

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int fd = open(argv[2], O_CREAT | O_EXCL | O_RDWR, 0600);
	if (fd < 0 || fallocate(fd, 0, 0, SIZE) != 0 || fsync(fd) != 0) {
		perror(argv[2]);
		return 1;
	}
	int flags = strcmp(argv[1], "sync") == 0 ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
	char *mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (mapped == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	memset(mapped, argv[3][0], SIZE);
	for (size_t i = 0; i < SIZE; i += CACHE_LINE)
		__builtin_ia32_clflush(mapped + i);
	__builtin_ia32_sfence();
	return 0;
}
