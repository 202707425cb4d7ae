// SPDX-License-Identifier: BSD-3-Clause
/*
 * maps.c -- the peer of a restore: files of a directory mapped piece by piece, side by side, and nothing else
 *
 *   maps DIRECTORY FILES PARTS LENGTH
 *
 * Files are named by their numbers; part p is of file p / (PARTS / FILES). Prints the seconds of CPU that it took to open and to map them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double cpu_time(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc != 5 || chdir(argv[1]) != 0)
		return 2;
	unsigned long files = strtoul(argv[2], NULL, 10);
	unsigned long parts = strtoul(argv[3], NULL, 10);
	size_t length = strtoul(argv[4], NULL, 10);
	char *window = mmap(NULL, parts * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (window == MAP_FAILED)
		return 1;
	double before = cpu_time();
	for (unsigned long f = 0; f < files; f++) {
		char name[24];
		(void)snprintf(name, sizeof(name), "%lu", f);
		int fd = open(name, O_RDWR | O_CLOEXEC);
		for (unsigned long p = 0; p < parts / files; p++) {
			char *at = window + (f * (parts / files) + p) * length;
			if (mmap(at, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)(p * length)) != at)
				return 1;
		}
		(void)close(fd);
	}
	printf("%.9f\n", cpu_time() - before);
	return 0;
}
