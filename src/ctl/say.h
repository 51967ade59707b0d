/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lines for people on stderr, and text that cannot hurt a terminal. Needs no initialisation. */
#ifndef WPFS_CTL_SAY_H
#define WPFS_CTL_SAY_H

#include <stdio.h>

/*
 * Writes "PROGRAM: text" and a newline to stderr with one write(2). Control characters, which can
 * come with a path or from a daemon, are shown as '?'. Over 8 KiB it is cut.
 */
void ctl_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * Bytes of the UTF-8 sequence at s, 1 to 4, or 0 when there is no valid one (RFC 3629: no
 * overlong forms, no surrogates). Never looks past a NUL.
 */
unsigned say_utf8_len(const char *s);

/*
 * Writes a path or a name: control characters and bytes that are no UTF-8 as \xNN, a backslash as
 * \\, everything else as it is.
 */
void say_text(FILE *f, const char *s);

#endif
