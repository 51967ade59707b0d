/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program can ask a wpfs mount directly: one ioctl on any open file or directory of it.
 */
#ifndef WPFS_H
#define WPFS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WPFS_ID_MAX   40 /* bytes of a mount id with its NUL: [0-9a-f-] only */
#define WPFS_NAME_MAX 64 /* bytes of a name without its NUL: [A-Za-z0-9._-], at least one */

enum wpfs_kind {
	WPFS_KIND_NATIVE = 0, /* every open is passthrough; the kernel evicts */
	WPFS_KIND_CAPPED = 1, /* -o resident=SIZE: wpfs evicts; mappings go through a ticket */
};

struct wpfs_mount_info {
	__u32 version; /* of this struct: 1 */
	__u32 kind;    /* enum wpfs_kind */
	char id[WPFS_ID_MAX];
};

/* Fills *arg. ENOTTY: not a file of a wpfs mount. */
#define WPFS_IOC_MOUNT_INFO _IOR('W', 0x70, struct wpfs_mount_info)

/*
 * Capped mounts: a one-time ticket for the open file it is asked on, bound to its inode and its
 * access mode; exchanged on the daemon's socket for a descriptor that can be mapped.
 */
struct wpfs_ticket {
	__u64 token[2];
};

#define WPFS_IOC_TICKET _IOR('W', 0x71, struct wpfs_ticket)

#ifdef __cplusplus
}
#endif

#endif
