/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line of wpfs, checked once and here. */
#ifndef WPFS_WPFS_OPTIONS_H
#define WPFS_WPFS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "track/track.h"

#define OPTIONS_ERROR_SIZE 512

enum options_action {
	OPTIONS_MOUNT,
	OPTIONS_REMOUNT,
	OPTIONS_PROBE,
	OPTIONS_HELP,
	OPTIONS_VERSION
};

struct options {
	enum options_action action;
	const char *store;  /* as given, "none" included; borrowed from argv, like the next */
	const char *source; /* what the mount table shows: the store, or a tag of mount(8) */
	const char *mountpoint;
	bool foreground; /* -f */
	bool debug;	 /* -d: every request and event is logged */

	char lower[256];     /* size= nr_inodes= huge= mode= uid= gid=, for mount(2) of tmpfs */
	bool has_root_attrs; /* mode=, uid= or gid= was given */
	unsigned long mount_flags; /* MS_* of the FUSE mount */

	uint64_t resident; /* bytes; 0 = native */
	uint64_t size;	   /* bytes of size=; 0 = not given, or no limit */
	unsigned settle_ms;
	bool sigbus;	    /* onerror=sigbus */
	unsigned flush_s;   /* 0 = only at unmount */
	unsigned harvest_s; /* 0 = only when asked */
	bool uring;
	enum track_uffd_policy uffd_policy;
	gid_t uffd_gid;
};

/*
 * Parses argv, options and arguments in any order. 0, or -EINVAL with a line in `error` that names
 * the word that is wrong and what would be right.
 */
int options_parse(int argc, char **argv, struct options *options, char error[OPTIONS_ERROR_SIZE]);

/* What --help prints. */
extern const char options_help[];

#endif
