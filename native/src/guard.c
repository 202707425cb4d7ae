/* SPDX-License-Identifier: BSD-3-Clause */
#include "guard.h"

#include "window.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- libpmem2's functions, by granularity; those for pages do nothing on memory that libpmem2 did not map ---- */

struct stores {
	struct pmem2_map *map; /* kept: what libpmem2 allocates for a map of existing memory, its deletion does not free */
	pmem2_memmove_fn copy;
	pmem2_memset_fn fill;
	pmem2_flush_fn flush;
	pmem2_drain_fn drain;
};
static struct stores by_granularity[PMEM2_GRANULARITY_PAGE];

static int take_functions(enum pmem2_granularity granularity, void *page, size_t size)
{
	struct stores *f = &by_granularity[granularity];
	struct pmem2_source *source = NULL;
	int rc = pmem2_source_from_anon(&source, size);
	if (rc == 0)
		rc = pmem2_map_from_existing(&f->map, source, page, size, granularity);
	if (rc == 0)
		*f = (struct stores){f->map, pmem2_get_memmove_fn(f->map), pmem2_get_memset_fn(f->map), pmem2_get_flush_fn(f->map),
				pmem2_get_drain_fn(f->map)};
	(void)pmem2_source_delete(&source);
	return rc;
}

const struct stores *stores_at(uint32_t granularity)
{
	return granularity < PMEM2_GRANULARITY_PAGE ? &by_granularity[granularity] : NULL;
}

void stores_drain(const struct stores *stores)
{
	stores->drain();
}

/* ---- faults ---- */

/* Where a fault inside of a guarded copy leads to. Initial-exec storage: the handler must not be the first to touch it and allocate. */
static _Thread_local sigjmp_buf *recovery __attribute__((tls_model("initial-exec")));
static _Thread_local uint64_t guarded_addr __attribute__((tls_model("initial-exec"))); /* of the copy: its mapped side, */
static _Thread_local uint64_t guarded_length __attribute__((tls_model("initial-exec")));
static _Thread_local struct fault last_fault __attribute__((tls_model("initial-exec")));
static struct sigaction previous_action;

/*
 * Whether a recovery restores the signal mask: the handler blocks nothing, so there is nothing to restore, and saving it would cost each
 * chunk a system call. But ThreadSanitizer puts a handler of its own in its place, and the mask of that has all signals; after the first
 * recovery they would stay blocked, and the second fault would kill.
 */
#ifdef __SANITIZE_THREAD__
#define RESTORE_MASK 1
#else
#define RESTORE_MASK 0
#endif

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	uint64_t addr = (uint64_t)(uintptr_t)info->si_addr;
	/*
	 * The kernel found bad memory that nobody touches yet (early kill): whoever touches it will be told. A copy that happens to be under
	 * way on this thread goes on, for it is not the one that failed.
	 */
	if (info->si_code == BUS_MCEERR_AO && arena_holds(addr))
		return;
	if (info->si_code > 0 && recovery != NULL && (arena_holds(addr) || addr - guarded_addr < guarded_length)) {
		last_fault = (struct fault){addr, info->si_code};
		siglongjmp(*recovery, 1);
	}
	if (previous_action.sa_flags & SA_SIGINFO) {
		previous_action.sa_sigaction(number, info, context);
	} else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
		previous_action.sa_handler(number);
	} else {
		/* What is sent, or told of memory that nobody touches, comes once; a fault comes again, and nothing can ignore one. */
		bool once = info->si_code <= 0 || info->si_code == BUS_MCEERR_AO;
		if (once && previous_action.sa_handler == SIG_IGN)
			return;
		/* A real crash, with its core. */
		(void)sigaction(SIGBUS, &previous_action, NULL);
		if (once)
			(void)raise(number);
	}
}

static int start_rc;
static pthread_once_t started = PTHREAD_ONCE_INIT;

static void start(void)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	for (int g = PMEM2_GRANULARITY_BYTE; g < PMEM2_GRANULARITY_PAGE && start_rc == 0; g++) {
		void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		start_rc = page == MAP_FAILED ? -ENOMEM : take_functions((enum pmem2_granularity)g, page, size);
	}
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};
	(void)sigemptyset(&action.sa_mask);
	if (start_rc == 0 && sigaction(SIGBUS, &action, &previous_action) != 0)
		start_rc = -errno;
	/* Beyond `ulimit -f`, EFBIG is the answer, and death is not. */
	struct sigaction on_limit;
	if (start_rc == 0 && sigaction(SIGXFSZ, NULL, &on_limit) == 0 && on_limit.sa_handler == SIG_DFL)
		(void)signal(SIGXFSZ, SIG_IGN);
}

int guard_start(struct pmemset_error *e)
{
	(void)pthread_once(&started, start);
	return start_rc ? error_set(e, start_rc, "cannot set up access to memory: %s", pmem2_errormsg()) : 0;
}

/* One locked instruction; as a sequentially consistent one it also orders this thread's other accesses. */
static void run_atomic(_Atomic uint64_t *word, const struct atomic *a)
{
	uint64_t previous = a->expected;
	uint64_t current = a->value;
	switch (a->op) {
	case ATOMIC_COMPARE_EXCHANGE:
		if (!atomic_compare_exchange_strong(word, &previous, a->value))
			current = previous;
		break;
	case ATOMIC_EXCHANGE:
		previous = atomic_exchange(word, a->value);
		break;
	case ATOMIC_ADD:
		previous = atomic_fetch_add(word, a->value);
		current = previous + a->value;
		break;
	case ATOMIC_AND:
		previous = atomic_fetch_and(word, a->value);
		current = previous & a->value;
		break;
	case ATOMIC_OR:
		previous = atomic_fetch_or(word, a->value);
		current = previous | a->value;
		break;
	case ATOMIC_XOR:
		previous = atomic_fetch_xor(word, a->value);
		current = previous ^ a->value;
		break;
	}
	*a->result = (struct atomic_result){previous, current};
}

enum step { STEP_LOAD, STEP_STORE, STEP_FILL, STEP_FLUSH, STEP_TOUCH, STEP_ATOMIC };

/* The smallest that a page can be. */
#define TOUCH_STRIDE 4096u

static void touch(const volatile unsigned char *from, size_t length)
{
	unsigned char sum = from[length - 1];
	for (size_t i = 0; i < length; i += TOUCH_STRIDE)
		sum ^= from[i];
	(void)sum;
}

/*
 * One chunk, guarded: nothing but the copy, or the flush, is inside. False where it faulted. STEP_FILL: with the byte at from; STEP_ATOMIC: what is at from.
 */
static bool guarded(enum step step, void *to, const void *from, size_t length, const struct stores *f, unsigned flags)
{
	const void *mapped = step == STEP_LOAD || step == STEP_FLUSH || step == STEP_TOUCH ? from : to;
	guarded_addr = (uint64_t)(uintptr_t)mapped;
	guarded_length = length;
	sigjmp_buf here;
	sigjmp_buf *outer = recovery;
	if (sigsetjmp(here, RESTORE_MASK) != 0) {
		recovery = outer;
		return false;
	}
	recovery = &here;
	atomic_signal_fence(memory_order_seq_cst);
	if (step == STEP_LOAD)
		memcpy(to, from, length);
	else if (step == STEP_STORE)
		(void)f->copy(to, from, length, flags | PMEM2_F_MEM_NODRAIN);
	else if (step == STEP_FILL)
		(void)f->fill(to, *(const unsigned char *)from, length, flags | PMEM2_F_MEM_NODRAIN);
	else if (step == STEP_FLUSH)
		f->flush(from, length);
	else if (step == STEP_TOUCH)
		touch(from, length);
	else
		run_atomic(to, from);
	atomic_signal_fence(memory_order_seq_cst);
	recovery = outer;
	return true;
}

bool guarded_load(void *to, const void *from, size_t length)
{
	return guarded(STEP_LOAD, to, from, length, NULL, 0);
}

bool guarded_store(const struct stores *stores, void *to, const void *from, size_t length, unsigned flags)
{
	return guarded(STEP_STORE, to, from, length, stores, flags);
}

bool guarded_fill(const struct stores *stores, void *to, unsigned char byte, size_t length, unsigned flags)
{
	return guarded(STEP_FILL, to, &byte, length, stores, flags);
}

bool guarded_flush(const struct stores *stores, const void *from, size_t length)
{
	return guarded(STEP_FLUSH, NULL, from, length, stores, 0);
}

bool guarded_atomic(void *word, const struct atomic *a)
{
	return guarded(STEP_ATOMIC, word, a, sizeof(uint64_t), NULL, 0);
}

bool guarded_touch(const void *from, size_t length)
{
	return length == 0 || guarded(STEP_TOUCH, NULL, from, length, NULL, 0);
}

struct fault guard_fault(void)
{
	return last_fault;
}
