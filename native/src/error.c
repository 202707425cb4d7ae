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

#define PMEMSET_X(number, name, text) {number, "PMEMSET_E_" #name, text},
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
