/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What wpfs needs of the kernel and the system: each thing is tried, not guessed from a version. */
#ifndef WPFS_WPFS_NEEDS_H
#define WPFS_WPFS_NEEDS_H

/* For --probe: prints one line for each to stdout. The number of needed things that are missing. */
int needs_print(void);

/* Before a mount: 0, or -errno after one logged line about the first that is missing. */
int needs_check(void);

#endif
