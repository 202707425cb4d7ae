/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * source.h -- where a part's bytes come from: a file beneath a volume, that may have to be made.
 *
 * Paths come from clients, so they are never trusted: checked as text, opened with openat2 beneath the volume's directory without
 * following anything, looked at through the descriptor before the file is really opened, and only that descriptor is used from then on.
 *
 * A file that is to be created gets its name last. It is made without one, grown, synced and mapped, and then linked: a failure or a crash
 * leaves either nothing or a whole file. `always` over a file that is there works the same way, so the old content stays until the new one
 * is complete; there, the two change names by way of one of our own (.pmemset-...), so a crash in this moment can leave the old file, or
 * the new one, under that name beside the other. Where the file system knows no files without a name, the new one has such a name of our
 * own from the beginning, and a crash can leave it.
 *
 * A caller that means to write down what it has made gives the file a number before that, its intent. The file carries it, in an extended
 * attribute that it has before its name, and our own name is made of it: so what a crash has left can be told from everybody else's files.
 */
#ifndef PMEMSET_SOURCE_H
#define PMEMSET_SOURCE_H 1

#include "file.h"

#include <libpmemset.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

struct volume {
	int fd; /* O_PATH, a directory */
	dev_t dev;
	ino_t ino;
	struct redo_log *log; /* of the files beneath it */
};

/* -ENOENT, -ENOTDIR, -EACCES; -ENOMEM; -ENOSYS where the kernel, or a container's filter, has no openat2. */
int volume_open(struct volume *v, const char *path, struct pmemset_error *e);
void volume_close(struct volume *v);
/* What a new file in the volume's directory gets; found out with an unnamed temporary file. */
void volume_medium(const struct volume *v, struct medium *m);

enum create { CREATE_NEVER, CREATE_IF_NEEDED, CREATE_EXCLUSIVE, CREATE_ALWAYS };

#define SOURCE_NAME_SIZE 256

struct source {
	struct file *file;    /* NULL: not made yet */
	uint64_t size;	      /* bytes that a part may lie in without growth; 0 for a file that is to be made */
	bool makes;	      /* a file is to be made */
	bool replaces;	      /* ... in place of one that is there */
	struct redo_log *log; /* the volume's */
	uint64_t intent;      /* the caller's to set before the file is made; 0: none */
	mode_t mode;
	uid_t uid; /* replaces: as the old one's */
	gid_t gid;
	dev_t old_dev; /* replaces: the old one */
	ino_t old_ino;
	int dir;			/* makes: the directory, open for reading */
	char name[SOURCE_NAME_SIZE];	/* the last component */
	char working[SOURCE_NAME_SIZE]; /* a name of our own, to be removed at the end: its, or the old one's; "" where there is none */
};

/*
 * Open path (length bytes) beneath a volume, or find out that it is to be made; nothing is created yet. -EACCES with PATH_NOT_ALLOWED;
 * INVALID_SOURCE_PATH where it does not exist; INVALID_PMEM2_SOURCE (cause PMEM2_E_INVALID_FILE_TYPE; PMEM2_E_NOSUPP: hugetlbfs); -EEXIST
 * with SOURCE_EXISTS; -EBUSY with SOURCE_IN_USE; -errno.
 */
int source_open(struct source *s, const struct volume *v, const char *path, size_t length, enum create create, mode_t mode,
		struct pmemset_error *e);
/* Where makes: what the new file gets. */
void source_medium_of_new(const struct source *s, struct medium *m);
/* Where makes: make the file, empty. -errno. */
int source_make(struct source *s, struct pmemset_error *e);
/*
 * Where makes: give it its name, durably. -EEXIST with SOURCE_EXISTS: what is at the path is not what source_open saw; -EBUSY with
 * SOURCE_IN_USE; -errno. On failure nothing is left of it, but in one case: it took the place of an old one on a file system that cannot
 * exchange names, and the directory cannot be synced. Then it stays, whole, for the old one is gone.
 */
int source_publish(struct source *s, struct pmemset_error *e);
/*
 * Take back what was made of the path with that intent: see ffi_intent_undo. -EACCES with PATH_NOT_ALLOWED; -EBUSY with SOURCE_IN_USE; -errno.
 */
int source_undo(const struct volume *v, const char *path, size_t length, uint64_t intent, struct pmemset_error *e);
/* End it; what was made and not published is removed. The file stays open as long as somebody holds it. */
void source_close(struct source *s);

/*
 * A source as libpmemset.h shows it. Its path is the program's own, so nothing of the above applies: it is opened, or created, at once and
 * as it stands.
 */
struct pmemset_source {
	struct file *file;
	struct pmem2_source *pmem2; /* the caller's; NULL: it came from elsewhere */
	char *path;		    /* of a file that a part is checked against; NULL: none */
	bool grows;
	bool fixed;		   /* of a kind that never grew */
	_Atomic unsigned referred; /* by the caller, and parts */
};

void source_hold(struct pmemset_source *src);
void source_let_go(struct pmemset_source *src);

#endif
