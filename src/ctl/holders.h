/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which processes keep a file system busy: mappings, descriptors, working and root directories.
 * Only those this process may look at: all of its pid namespace, for root.
 */
#ifndef WPFS_CTL_HOLDERS_H
#define WPFS_CTL_HOLDERS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define HOLDER_MAPS (1u << 0)
#define HOLDER_OPEN (1u << 1)
#define HOLDER_CWD  (1u << 2)
#define HOLDER_ROOT (1u << 3)

struct holder {
	pid_t pid;
	int pidfd;    /* owned; the process was there when it was looked at */
	unsigned how; /* HOLDER_* */
	bool ending;  /* killed or exiting: it will let go by itself */
	bool witness; /* a task of wpfs, in the place of a program that has ended or will */
	char comm[16];
};

struct holder_list {
	struct holder *holders;
	size_t nr, room;
};

/* Whom to look for. */
struct holders_of {
	dev_t dev;    /* the file system's device */
	dev_t lower;  /* capped mounts: the device that mappings of its files have; else 0 */
	pid_t daemon; /* capped mounts: keeps it busy for those who map; else 0 */
};

/*
 * Looks at all processes but the calling one. Asks the file system nothing. 0 or -errno; to be
 * freed in either case.
 */
int holders_find(const struct holders_of *of, struct holder_list *list);
void holders_free(struct holder_list *list);

/* "maps files, has files open, works in it": returns buf. */
const char *holder_how(unsigned how, char *buf, size_t size);

#endif
