/* SPDX-License-Identifier: BSD-3-Clause */
#include "error.h"

#include <errno.h>
#include <libpmem2.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct row {
	int32_t code;
	const char *name;
	const char *text;
};

#define PMEMSET_X(name, text) {PMEMSET_E_##name, "PMEMSET_E_" #name, text},
#define PMEM2_X(name) {name, #name, ""},
static const struct row rows[] = {PMEMSET_CODES(PMEMSET_X) PMEM2_CAUSES(PMEM2_X)};
#undef PMEMSET_X
#undef PMEM2_X

static void begin(struct pmemset_error *e, int code, int sys_errno)
{
	memset(e, 0, sizeof(*e));
	e->code = code;
	e->sys_errno = sys_errno;
	e->granularity = PMEMSET_GRANULARITY_UNSET;
}

int error_set(struct pmemset_error *e, int code, const char *format, ...)
{
	va_list args;
	begin(e, code, code > -4096 ? -code : 0);
	va_start(args, format);
	(void)vsnprintf(e->message, sizeof(e->message), format, args);
	va_end(args);
	return code;
}

int error_stale(struct pmemset_error *e)
{
	error_set(e, -EBADF, "the handle was closed, or is of another kind, or its set is being deleted");
	e->reason = PMEMSET_REASON_STALE;
	return e->code;
}

int error_sys(struct pmemset_error *e, int code, int sys_errno, const char *format, ...)
{
	va_list args;
	begin(e, code ? code : -sys_errno, sys_errno);
	va_start(args, format);
	(void)vsnprintf(e->message, sizeof(e->message), format, args);
	va_end(args);
	return e->code;
}

void error_add(struct pmemset_error *e, const char *format, ...)
{
	va_list args;
	size_t used = strlen(e->message);
	va_start(args, format);
	(void)vsnprintf(e->message + used, sizeof(e->message) - used, format, args);
	va_end(args);
}

/* ---- for the functions of libpmemset.h ---- */

static _Thread_local char kept[PMEMSET_MESSAGE_SIZE + 64];

static const char *name_of(int code)
{
	for (uint32_t i = 0; i < error_rows(); i++)
		if (rows[i].code == code)
			return rows[i].name;
	return "?";
}

int error_keep(const struct pmemset_error *e)
{
	if (e->cause != 0)
		(void)snprintf(kept, sizeof(kept), "%s (%s)", e->message, name_of(e->cause));
	else
		(void)snprintf(kept, sizeof(kept), "%s", e->message);
	return e->code;
}

const char *pmemset_errormsg(void)
{
	return kept;
}

void pmemset_perror(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)vfprintf(stderr, format, args);
	va_end(args);
	(void)fprintf(stderr, ": %s\n", kept);
}

int pmemset_err_to_errno(int err)
{
	if (err == 0)
		return 0;
	if (err == PMEMSET_E_NOSUPP || err == PMEM2_E_NOSUPP)
		return ENOTSUP;
	return err < 0 && err > -4096 ? -err : EINVAL;
}

int error_row(uint32_t i, int32_t *code, const char **name, const char **text)
{
	if (i >= error_rows())
		return -ERANGE;
	*code = rows[i].code;
	*name = rows[i].name;
	*text = rows[i].text;
	return 0;
}

uint32_t error_rows(void)
{
	return (uint32_t)(sizeof(rows) / sizeof(rows[0]));
}
