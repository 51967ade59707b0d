/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How many columns of a terminal text takes: letters may take none, one or two. Text is escaped as
 * say_text does, so that a name cannot hurt a terminal. One thread.
 */
#ifndef WPFS_CTL_WIDTH_H
#define WPFS_CTL_WIDTH_H

#include <stddef.h>

/* Makes the C library know what letters there are, whatever the user's locale; called by itself. */
void width_init(void);

/* Columns of UTF-8 text that is escaped already; what is no letter counts as one for each byte. */
size_t width_of(const char *text);

/*
 * Writes text, escaped, into buf: cut to `columns` if it is longer, with '~' for its last one, and
 * filled up with blanks on the right. A wide letter is never halved. buf has room for 4 bytes a
 * column and a NUL, or less is shown.
 */
void width_fit(char *buf, size_t size, const char *text, size_t columns);

#endif
