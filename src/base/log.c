/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A line is formatted into one buffer and written with one write(2), so that lines of several
 * threads and processes never interleave.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
	const char *ident; /* constant after log_init */
	int max_level;	   /* constant after log_init */
	bool to_syslog;	   /* constant after log_init */
	bool to_journal;   /* constant after log_init */
} log_cfg = {.ident = "wpfs", .max_level = LOG_INFO};

/* Is stderr what the service manager connected to the journal? JOURNAL_STREAM is its "dev:ino". */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *ident, int max_level, bool to_syslog)
{
	log_cfg.ident = ident;
	log_cfg.max_level = max_level;
	log_cfg.to_syslog = to_syslog;
	log_cfg.to_journal = !to_syslog && stderr_is_journal();
	if (to_syslog)
		openlog(ident, LOG_PID | LOG_NDELAY, LOG_DAEMON);
}

void log_line(int level, const char *fmt, ...)
{
	char buf[2048];
	size_t used = 0;
	va_list ap;
	int n;

	if (level > log_cfg.max_level)
		return;
	va_start(ap, fmt);
	if (log_cfg.to_syslog) {
		vsyslog(level, fmt, ap);
		va_end(ap);
		return;
	}
	if (log_cfg.to_journal)
		n = snprintf(buf, sizeof(buf), "<%d>%s: ", level, log_cfg.ident);
	else
		n = snprintf(buf, sizeof(buf), "%s: ", log_cfg.ident);
	if (n > 0)
		used = (size_t)n;
	n = vsnprintf(buf + used, sizeof(buf) - used - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	used += (size_t)n;
	if (used > sizeof(buf) - 2)
		used = sizeof(buf) - 2;
	buf[used++] = '\n';
	if (write(STDERR_FILENO, buf, used) < 0)
		return; /* nowhere left to say it */
}

const char *log_errstr(int err)
{
	return strerrordesc_np(abs(err)) ?: "unknown error";
}
