/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What `wpctl run` can know about a program before it runs it: will the loader take a preload? */
#ifndef WPFS_CTL_EXE_H
#define WPFS_CTL_EXE_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Finds a program as execvp(3) does: as it is with a '/' in it, else in $PATH. Writes its path to
 * buf. 0; -ENOENT: there is none; -EACCES: found, but none of them can be executed.
 */
int exe_find(const char *name, char *buf, size_t size);

/*
 * Looks at the program that executing `path` would start; scripts are followed to their
 * interpreter, and `#!/usr/bin/env PROG` to PROG. Gives true when its loader will take a library
 * made for the loader of the running program, or when nothing speaks against it; else false and a
 * reason in `why` ("/bin/x is statically linked").
 */
bool exe_takes_preload(const char *path, char *why, size_t size);

#endif
