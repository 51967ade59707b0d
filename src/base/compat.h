/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kernel interfaces newer than the headers of the oldest supported distribution (Debian 12: 6.1).
 * The only place that names kernel constants by number; each is guarded by its own #ifndef so that
 * newer headers win. Source: include/uapi/linux/{userfaultfd,fs,fuse}.h of Linux 6.18.
 */
#ifndef WPFS_BASE_COMPAT_H
#define WPFS_BASE_COMPAT_H

#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <sys/syscall.h>

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20 /* Linux 6.9 */
#endif

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC	    0xAA
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif

/* PAGEMAP_SCAN: Linux 6.7, Documentation/admin-guide/mm/pagemap.rst */
#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN	      _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_WPALLOWED     (1 << 0)
#define PAGE_IS_WRITTEN	      (1 << 1)
#define PAGE_IS_FILE	      (1 << 2)
#define PAGE_IS_PRESENT	      (1 << 3)
#define PAGE_IS_SWAPPED	      (1 << 4)
#define PAGE_IS_PFNZERO	      (1 << 5)
#define PAGE_IS_HUGE	      (1 << 6)
#define PAGE_IS_SOFT_DIRTY    (1 << 7)
#define PM_SCAN_WP_MATCHING   (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)

struct page_region {
	__u64 start; /* address of the first byte */
	__u64 end;   /* address after the last byte */
	__u64 categories;
};

struct pm_scan_arg {
	__u64 size; /* of this struct */
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end; /* out: where the walk stopped */
	__u64 vec;	/* struct page_region[] */
	__u64 vec_len;	/* entries */
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#endif
#ifndef PAGE_IS_GUARD
#define PAGE_IS_GUARD (1 << 8) /* Linux 6.15 */
#endif

_Static_assert(sizeof(struct pm_scan_arg) == 96, "PAGEMAP_SCAN ABI");
_Static_assert(sizeof(struct page_region) == 24, "PAGEMAP_SCAN ABI");

/* PROCMAP_QUERY: Linux 6.11 */
#ifndef PROCMAP_QUERY
#define PROCMAP_QUERY		     _IOWR('f', 17, struct procmap_query)
#define PROCMAP_QUERY_VMA_READABLE   0x01
#define PROCMAP_QUERY_VMA_WRITABLE   0x02
#define PROCMAP_QUERY_VMA_EXECUTABLE 0x04
#define PROCMAP_QUERY_VMA_SHARED     0x08

struct procmap_query {
	__u64 size; /* of this struct */
	__u64 query_flags;
	__u64 query_addr;
	__u64 vma_start; /* out, up to inode and dev */
	__u64 vma_end;
	__u64 vma_flags;
	__u64 vma_page_size;
	__u64 vma_offset; /* bytes */
	__u64 inode;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 vma_name_size; /* in: 0 = no name wanted */
	__u32 build_id_size;
	__u64 vma_name_addr;
	__u64 build_id_addr;
};
#endif

#define COMPAT_PROCMAP_QUERY_COVERING_OR_NEXT_VMA 0x10

_Static_assert(sizeof(struct procmap_query) == 104, "PROCMAP_QUERY ABI");

/* FUSE passthrough: Linux 6.9 */
#ifndef FUSE_DEV_IOC_BACKING_OPEN
#define FUSE_DEV_IOC_BACKING_OPEN  _IOW(229, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, __u32)

struct fuse_backing_map {
	__s32 fd;
	__u32 flags;
	__u64 padding;
};
#endif

#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH (1ULL << 37)
#endif
#ifndef FUSE_OVER_IO_URING
#define FUSE_OVER_IO_URING (1ULL << 41) /* Linux 6.14 */
#endif

/* statx(2) gives the mount id that is never used again: Linux 6.8 */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U
#endif

/* How much of a part of a file is in memory: Linux 6.5, cachestat(2) */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#ifndef __NR_cachestat
struct cachestat_range {
	__u64 off;
	__u64 len;
};

struct cachestat {
	__u64 nr_cache;
	__u64 nr_dirty;
	__u64 nr_writeback;
	__u64 nr_evicted; /* of a tmpfs file: in swap */
	__u64 nr_recently_evicted;
};
#endif

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* statmount(2): Linux 6.8; the subtype 6.13. Of what it fills only what is asked for here. */
#ifndef SYS_statmount
#define SYS_statmount 457
#endif

struct compat_mnt_id_req {
	__u32 size; /* of this struct */
	__u32 spare;
	__u64 mnt_id; /* STATX_MNT_ID_UNIQUE */
	__u64 param;  /* COMPAT_STATMOUNT_* */
};

#define COMPAT_STATMOUNT_FS_TYPE    0x20U
#define COMPAT_STATMOUNT_FS_SUBTYPE 0x100U

struct compat_statmount {
	__u32 size;
	__u32 other1;
	__u64 mask; /* what was filled in */
	__u64 other2[2];
	__u32 other3;
	__u32 fs_type; /* in str */
	__u64 other4[10];
	__u32 fs_subtype; /* in str */
	__u32 other5[97];
	char str[64];
};

_Static_assert(sizeof(struct compat_mnt_id_req) == 24, "statmount ABI");
_Static_assert(offsetof(struct compat_statmount, fs_type) == 36, "statmount ABI");
_Static_assert(offsetof(struct compat_statmount, fs_subtype) == 120, "statmount ABI");
_Static_assert(offsetof(struct compat_statmount, str) == 512, "statmount ABI");

#endif
