/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One line per event, on stderr or to syslog. Levels are those of syslog(3). Any thread may call.
 *
 * A message says what failed, on what, why, and what to do: "cannot open STORE/lock: in use by
 * wpfs pid 12: unmount it first".
 */
#ifndef WPFS_BASE_LOG_H
#define WPFS_BASE_LOG_H

#include <stdbool.h>
#include <syslog.h>

/*
 * Chooses where lines go and which are kept (constant after the first thread is created).
 * `ident` is borrowed for ever. To stderr each line starts with "ident: ", and before it with the
 * level as "<N>" when stderr is the journal's (sd-daemon(3)); to syslog it goes with facility
 * LOG_DAEMON.
 */
void log_init(const char *ident, int max_level, bool to_syslog);

void log_line(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The usual text of an errno value, thread-safe; `err` may have either sign. */
const char *log_errstr(int err);

#define log_err(...)   log_line(LOG_ERR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARNING, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

#endif
