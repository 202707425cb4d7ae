// SPDX-License-Identifier: BSD-3-Clause
/*
 * floor.c -- how cheap a bulk transfer can be: GET sends a mapped file in a send() loop, PUT receives into the mapping in a recv() loop
 *
 *   floor PORT FILE
 *
 * Just as much of HTTP as the generator speaks, on loopback.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD_MAX 8192

static char *map;
static size_t size;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int send_all(int fd, const char *from, size_t left)
{
	while (left > 0) {
		ssize_t sent = send(fd, from, left, MSG_NOSIGNAL);
		if (sent <= 0)
			return -1;
		from += sent;
		left -= (size_t)sent;
	}
	return 0;
}

static size_t content_length(const char *head)
{
	for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line + 2, "\r\n"))
		if (strncasecmp(line + 2, "content-length:", 15) == 0)
			return (size_t)strtoull(line + 17, NULL, 10);
	return 0;
}

/* Into the mapping, behind what of it came with the head. */
static int receive_body(int fd, const char *begun, size_t have, size_t length)
{
	if (length > size || have > length)
		return -1;
	memcpy(map, begun, have);
	while (have < length) {
		ssize_t got = recv(fd, map + have, length - have, 0);
		if (got <= 0)
			return -1;
		have += (size_t)got;
	}
	return 0;
}

/* One request; the client waits for the reply before it sends the next. */
static int serve_one(int fd)
{
	char head[HEAD_MAX + 1], reply[128];
	size_t have = 0;
	char *end;
	do {
		ssize_t got = recv(fd, head + have, HEAD_MAX - have, 0);
		if (got <= 0)
			return -1;
		have += (size_t)got;
		head[have] = '\0';
		end = memmem(head, have, "\r\n\r\n", 4);
	} while (end == NULL);
	int is_get = memcmp(head, "GET", 3) == 0;
	end[2] = '\0';
	if (!is_get && receive_body(fd, end + 4, have - (size_t)(end + 4 - head), content_length(head)) != 0)
		return -1;
	int length = snprintf(reply, sizeof(reply), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", is_get ? size : 0);
	if (send_all(fd, reply, (size_t)length) != 0)
		return -1;
	return is_get ? send_all(fd, map, size) : 0;
}

static void *serve(void *arg)
{
	int fd = (int)(intptr_t)arg;
	while (serve_one(fd) == 0)
		;
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "floor PORT FILE\n");
		return 2;
	}
	struct stat st;
	int on = 1;
	int file = open(argv[2], O_RDWR);
	if (file < 0 || fstat(file, &st) != 0)
		fail(argv[2]);
	size = (size_t)st.st_size;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (map == MAP_FAILED)
		fail("mmap");
	struct sockaddr_in at = {.sin_family = AF_INET,
			.sin_port = htons((uint16_t)strtol(argv[1], NULL, 10)),
			.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
			bind(listener, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(listener, 64) != 0)
		fail("listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		pthread_t thread;
		if (fd < 0)
			fail("accept");
		if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0)
			fail("setsockopt");
		/* A descriptor is all that it takes. NOLINTNEXTLINE(performance-no-int-to-ptr) */
		if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd) != 0)
			fail("pthread_create");
		pthread_detach(thread);
	}
}
