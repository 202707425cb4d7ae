// SPDX-License-Identifier: BSD-3-Clause
/*
 * load.c -- the generator: prepared requests over keep-alive connections, in HTTP or in Redis' protocol
 *
 *   load http|resp PORT CONNECTIONS DEPTH MILLISECONDS FILE [sleeps]
 *
 * FILE: uint32 n, n lengths of uint32, then the n requests one behind the other. A connection sends DEPTH requests that follow each other,
 * from a random one on, and the next when all are answered. No request starts after the time is over; those on their way are waited for.
 * One line of JSON says what came. A reply that is no success is an error of the whole.
 *
 * It must be cheaper than any server: bodies that come are dropped by the kernel (MSG_TRUNC), large ones go out by sendfile. And it never sleeps: to
 * wake it on its core is work for whoever sends, dear in a virtual machine, and the slower a server is the more often it would have it to do. Where several
 * share the core and it is their delays that count, it does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEAD_MAX (16 << 10)
#define SENDFILE_MIN (64 << 10)
#define DROP_MAX (16 << 20)
#define SILENCE_MS_MAX 60000
#define BUCKETS 1000000 /* of a microsecond each; the last one for all that took longer */

struct connection {
	int fd;
	int waits_to_send;
	size_t at, left; /* of the file, still to be sent */
	unsigned unanswered;
	uint64_t since;
	uint64_t body; /* still to be dropped */
	size_t have;
	char head[HEAD_MAX];
};

static struct connection *all;
static int is_http, poller, file;
static unsigned depth;
static uint32_t count;
static const uint32_t *lengths;
static size_t *starts;
static const char *bytes;
static size_t first_byte;
static void *drop;
static uint64_t until, random_state = 88172645463325252U;
static uint64_t requests, bytes_in, bytes_out;
static uint32_t latencies[BUCKETS];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void refuse(const char *why, const char *text, size_t length)
{
	fprintf(stderr, "load: %s: %.*s\n", why, length < 500 ? (int)length : 500, text);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static uint32_t random_below(uint32_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)((random_state >> 11) % limit);
}

static void poll_for(struct connection *c, int operation, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = c};
	if (epoll_ctl(poller, operation, c->fd, &event) != 0)
		fail("epoll_ctl");
}

static void send_more(struct connection *c)
{
	while (c->left > 0) {
		ssize_t sent;
		if (c->left >= SENDFILE_MIN) {
			off_t offset = (off_t)(first_byte + c->at);
			sent = sendfile(c->fd, file, &offset, c->left);
		} else {
			sent = send(c->fd, bytes + c->at, c->left, MSG_NOSIGNAL);
		}
		if (sent < 0 && errno != EAGAIN)
			fail("send");
		if (sent < 0)
			break;
		c->at += (size_t)sent;
		c->left -= (size_t)sent;
		bytes_out += (uint64_t)sent;
	}
	int waits = c->left > 0;
	if (waits != c->waits_to_send)
		poll_for(c, EPOLL_CTL_MOD, waits ? EPOLLIN | EPOLLOUT : EPOLLIN);
	c->waits_to_send = waits;
}

/* Whether there was still time. */
static int start_next(struct connection *c)
{
	c->since = now_ns();
	if (c->since >= until)
		return 0;
	uint32_t from = random_below(count - depth + 1);
	c->at = starts[from];
	c->left = starts[from + depth] - starts[from];
	c->unanswered = depth;
	send_more(c);
	return 1;
}

/* Both: size of the head of a reply, or 0 where it is not whole; c->body is what follows it. */
static size_t http_head(struct connection *c, const char *head, size_t have)
{
	const char *end = memmem(head, have, "\r\n\r\n", 4);
	if (end == NULL)
		return 0;
	if (head[9] != '2')
		refuse("no success", head, have);
	c->body = 0;
	if (memcmp(head + 9, "204", 3) != 0) {
		const char *line = memmem(head, have, "\r\n", 2);
		while (line < end && strncasecmp(line + 2, "content-length:", 15) != 0)
			line = memmem(line + 2, (size_t)(end - line), "\r\n", 2);
		if (line >= end)
			refuse("no Content-Length", head, have);
		c->body = strtoull(line + 17, NULL, 10);
	}
	return (size_t)(end - head) + 4;
}

static size_t resp_head(struct connection *c, const char *head, size_t have)
{
	const char *end = memmem(head, have, "\r\n", 2);
	if (end == NULL)
		return 0;
	if (head[0] != '+' && head[0] != ':' && (head[0] != '$' || head[1] == '-'))
		refuse("no success", head, have);
	c->body = head[0] == '$' ? strtoull(head + 1, NULL, 10) + 2 : 0;
	return (size_t)(end - head) + 2;
}

static void answered(struct connection *c)
{
	uint64_t took = (now_ns() - c->since) / 1000;
	latencies[took < BUCKETS ? took : BUCKETS - 1]++;
	requests++;
	c->unanswered--;
}

/* Takes the replies that are whole out of the buffer. */
static void take(struct connection *c)
{
	const char *at = c->head;
	const char *end = c->head + c->have;
	while (at < end) {
		size_t have = (size_t)(end - at);
		if (c->unanswered == 0)
			refuse("more than was asked for", at, have);
		size_t head = is_http ? http_head(c, at, have) : resp_head(c, at, have);
		if (head == 0)
			break;
		size_t here = have - head < c->body ? have - head : (size_t)c->body;
		bytes_in += c->body;
		c->body -= here;
		at += head + here;
		if (c->body == 0)
			answered(c);
	}
	c->have = (size_t)(end - at);
	if (c->have == HEAD_MAX)
		refuse("too long a head", at, c->have);
	memmove(c->head, at, c->have);
}

static void receive(struct connection *c)
{
	ssize_t got;
	if (c->body > 0)
		got = recv(c->fd, drop, c->body < DROP_MAX ? (size_t)c->body : DROP_MAX, MSG_TRUNC);
	else
		got = recv(c->fd, c->head + c->have, HEAD_MAX - c->have, 0);
	if (got < 0 && errno == EAGAIN)
		return;
	if (got < 0)
		fail("recv");
	if (got == 0)
		refuse("the server closed the connection", c->head, c->have);
	if (c->body > 0) {
		c->body -= (uint64_t)got;
		if (c->body == 0)
			answered(c);
	} else {
		c->have += (size_t)got;
		take(c);
	}
}

static void open_connection(struct connection *c, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int on = 1;
	c->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof(to)) != 0)
		fail("connect");
	if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0 || setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0)
		fail("socket");
	poll_for(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void read_requests(const char *path)
{
	struct stat st;
	file = open(path, O_RDONLY);
	if (file < 0 || fstat(file, &st) != 0)
		fail(path);
	const char *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, file, 0);
	if (map == MAP_FAILED)
		fail("mmap");
	memcpy(&count, map, sizeof(count));
	lengths = (const uint32_t *)(const void *)(map + sizeof(count));
	first_byte = (count + 1) * sizeof(uint32_t);
	bytes = map + first_byte;
	starts = calloc((size_t)count + 1, sizeof(*starts));
	if (starts == NULL)
		fail("calloc");
	for (uint32_t i = 0; i < count; i++)
		starts[i + 1] = starts[i] + lengths[i];
	if (count < depth || starts[count] + first_byte != (size_t)st.st_size) {
		fprintf(stderr, "load: %s holds no %u requests\n", path, depth);
		exit(1);
	}
}

static double percentile(double part)
{
	uint64_t wanted = (uint64_t)((double)requests * part), seen = 0;
	for (int i = 0; i < BUCKETS; i++) {
		seen += latencies[i];
		if (seen > wanted)
			return i / 1000.0;
	}
	return BUCKETS / 1000.0;
}

int main(int argc, char **argv)
{
	if (argc != 7 && argc != 8) {
		fprintf(stderr, "load http|resp PORT CONNECTIONS DEPTH MILLISECONDS FILE [sleeps]\n");
		return 2;
	}
	is_http = strcmp(argv[1], "http") == 0;
	int port = (int)strtol(argv[2], NULL, 10);
	unsigned connections = (unsigned)strtoul(argv[3], NULL, 10);
	depth = (unsigned)strtoul(argv[4], NULL, 10);
	read_requests(argv[6]);
	drop = mmap(NULL, DROP_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	poller = epoll_create1(0);
	all = calloc(connections, sizeof(*all));
	if (drop == MAP_FAILED || poller < 0 || all == NULL)
		fail("start");
	for (unsigned i = 0; i < connections; i++)
		open_connection(&all[i], port);

	uint64_t begin = now_ns();
	unsigned busy = 0;
	random_state ^= begin;
	until = begin + strtoull(argv[5], NULL, 10) * 1000000U;
	for (unsigned i = 0; i < connections; i++)
		busy += (unsigned)start_next(&all[i]);
	uint64_t heard = begin;
	const int patience = argc == 8 ? SILENCE_MS_MAX : 0;
	while (busy > 0) {
		struct epoll_event events[64];
		int n = epoll_wait(poller, events, 64, patience);
		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		if (n > 0) {
			heard = now_ns();
		} else if (now_ns() - heard > SILENCE_MS_MAX * UINT64_C(1000000)) {
			fprintf(stderr, "load: no answer for %d ms\n", SILENCE_MS_MAX);
			return 1;
		} else {
			(void)sched_yield();
		}
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			if (events[i].events & EPOLLOUT)
				send_more(c);
			if (events[i].events & ~(uint32_t)EPOLLOUT) {
				receive(c);
				if (c->unanswered == 0 && !start_next(c))
					busy--;
			}
		}
	}
	printf("{\"requests\":%" PRIu64 ",\"seconds\":%.6f,\"bytesIn\":%" PRIu64 ",\"bytesOut\":%" PRIu64
	       ",\"p50Ms\":%.3f,\"p99Ms\":%.3f}\n",
			requests, (double)(now_ns() - begin) / 1e9, bytes_in, bytes_out, percentile(0.5), percentile(0.99));
	return 0;
}
