/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What libFuzzer found once, and what it starts from, without libFuzzer: each file in the directories given is one case. A case that is
 * broken ends the process, so that the plan is not fulfilled.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX 65536

static int is_file(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static bool replay(const char *dir, const char *name)
{
	static uint8_t input[INPUT_MAX];
	char path[4096];
	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd >= 0 ? read(fd, input, sizeof(input)) : -1;
	if (fd >= 0)
		(void)close(fd);
	return size >= 0 && LLVMFuzzerTestOneInput(input, (size_t)size) == 0;
}

int main(int argc, char **argv)
{
	int cases = 0;
	bool all_good = true;
	struct dirent ***entries = calloc((size_t)argc, sizeof(*entries));
	int *counts = calloc((size_t)argc, sizeof(*counts));
	int planned = 0;
	for (int i = 1; i < argc && entries != NULL && counts != NULL; i++) {
		counts[i] = scandir(argv[i], &entries[i], is_file, alphasort);
		planned += counts[i] > 0 ? counts[i] : 0;
	}
	printf("1..%d\n", planned);
	for (int i = 1; i < argc && entries != NULL && counts != NULL; i++) {
		for (int n = 0; n < counts[i]; n++) {
			(void)fflush(stdout);
			bool good = replay(argv[i], entries[i][n]->d_name);
			printf("%s %d - %s\n", good ? "ok" : "not ok", ++cases, entries[i][n]->d_name);
			all_good = all_good && good;
			free(entries[i][n]);
		}
		if (counts[i] >= 0)
			free(entries[i]);
	}
	free(entries);
	free(counts);
	return all_good && cases > 0 ? 0 : 1;
}
