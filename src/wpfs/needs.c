/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/needs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "base/units.h"

static int need_root(void)
{
	static const int caps[] = {CAP_SYS_ADMIN,    CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH,
				   CAP_DAC_OVERRIDE, CAP_CHOWN,	     CAP_FOWNER,
				   CAP_SETUID,	     CAP_SETGID,     CAP_MKNOD};
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (geteuid() != 0)
		return -EPERM;
	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	for (size_t i = 0; i < sizeof(caps) / sizeof(caps[0]); i++) {
		if (!(data[CAP_TO_INDEX(caps[i])].effective & CAP_TO_MASK(caps[i])))
			return -EPERM;
	}
	return 0;
}

static int need_page_size(void)
{
	return sysconf(_SC_PAGESIZE) == (long)WPFS_PAGE_SIZE ? 0 : -EINVAL;
}

static int need_dev_fuse(void)
{
	_cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : 0;
}

static int set_string(int context, const char *key, const char *value)
{
	return fsconfig(context, FSCONFIG_SET_STRING, key, value, 0) < 0 ? -errno : 0;
}

/*
 * What the kernel offers a FUSE server: the flags of the INIT request, which comes as soon as the
 * file system exists. It is never mounted anywhere and goes with its descriptors.
 */
static int fuse_offers(uint64_t *flags)
{
	struct {
		struct fuse_in_header header;
		struct fuse_init_in init;
		char more[16384];
	} request;
	_cleanup_close_ int dev = -1, context = -1;
	char number[16];
	ssize_t n;
	int r;

	dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -errno;
	context = fsopen("fuse", FSOPEN_CLOEXEC);
	if (context < 0)
		return -errno;
	snprintf(number, sizeof(number), "%d", dev);
	r = set_string(context, "fd", number);
	if (!r)
		r = set_string(context, "rootmode", "40000");
	if (!r)
		r = set_string(context, "user_id", "0");
	if (!r)
		r = set_string(context, "group_id", "0");
	if (!r && fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		r = -errno;
	if (r)
		return r;
	n = read(dev, &request, sizeof(request));
	if (n < (ssize_t)(sizeof(request.header) + offsetof(struct fuse_init_in, unused)))
		return n < 0 ? -errno : -EPROTO;
	*flags = request.init.flags | (uint64_t)request.init.flags2 << 32;
	return 0;
}

static int fuse_offers_flag(uint64_t flag)
{
	uint64_t flags;
	int r = fuse_offers(&flags);

	return r ? r : flags & flag ? 0 : -EOPNOTSUPP;
}

static int need_passthrough(void)
{
	return fuse_offers_flag(FUSE_PASSTHROUGH);
}

static int need_fuse_uring(void)
{
	return fuse_offers_flag(FUSE_OVER_IO_URING);
}

/* A new uffd made through the device, as clients get theirs. */
static int uffd_open(void)
{
	_cleanup_close_ int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd;

	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static int need_uffd(void)
{
	_cleanup_close_ int fd = uffd_open();

	return fd < 0 ? fd : 0;
}

/* Registers one page of shared memory write-protect with a uffd of these features. */
static int uffd_wp_on_shmem(uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	struct uffdio_register reg = {.range.len = WPFS_PAGE_SIZE, .mode = UFFDIO_REGISTER_MODE_WP};
	_cleanup_close_ int fd = uffd_open();
	void *page;
	int r = 0;

	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	page = mmap(NULL, WPFS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		    0);
	if (page == MAP_FAILED)
		return -errno;
	reg.range.start = (uintptr_t)page;
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		r = -errno;
	munmap(page, WPFS_PAGE_SIZE);
	return r;
}

static int need_wp_shmem(void)
{
	return uffd_wp_on_shmem(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
}

static int need_wp_async(void)
{
	return uffd_wp_on_shmem(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
				UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
}

static int need_pagemap_scan(void)
{
	_cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};

	if (fd < 0)
		return -errno;
	arg.start = (uintptr_t)&region & ~(WPFS_PAGE_SIZE - 1);
	arg.end = arg.start + WPFS_PAGE_SIZE;
	return ioctl(fd, PAGEMAP_SCAN, &arg) < 0 ? -errno : 0;
}

static int need_kcmp(void)
{
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0) < 0 ? -errno : 0;
}

static int need_pidfd_getfd(void)
{
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	_cleanup_close_ int fd = -1;

	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, pidfd, 0);
	return fd < 0 ? -errno : 0;
}

/* A detached tmpfs: file handles are what inodes are found by. */
static int need_tmpfs(void)
{
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.handle.handle_bytes = MAX_HANDLE_SZ};
	_cleanup_close_ int context = fsopen("tmpfs", FSOPEN_CLOEXEC), root = -1;
	int mount_id, r;

	if (context < 0)
		return -errno;
	r = fsconfig(context, FSCONFIG_SET_FLAG, "inode64", NULL, 0) < 0 ? -errno : 0;
	if (!r && fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		r = -errno;
	if (r)
		return r;
	root = fsmount(context, FSMOUNT_CLOEXEC, 0);
	if (root < 0 || name_to_handle_at(root, "", &u.handle, &mount_id, AT_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

static int need_io_uring(void)
{
	struct io_uring_params params = {.flags = 0};
	_cleanup_close_ int fd = (int)syscall(SYS_io_uring_setup, 2, &params);

	return fd < 0 ? -errno : 0;
}

static const struct need {
	const char *name;
	int (*check)(void);
	bool optional;
	const char *fix;
} needs[] = {
	{"root privilege", need_root, false,
	 "run wpfs as root, with CAP_SYS_ADMIN, CAP_SYS_PTRACE and the file capabilities"},
	{"4 KiB pages", need_page_size, false, "use a kernel with a base page size of 4096 bytes"},
	{"/dev/fuse", need_dev_fuse, false, "run `modprobe fuse` (kernel option CONFIG_FUSE_FS)"},
	{"FUSE passthrough", need_passthrough, false,
	 "use Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH"},
	{"tmpfs file handles", need_tmpfs, false, "use Linux 5.9 or newer with CONFIG_TMPFS"},
	{"/dev/userfaultfd", need_uffd, false, "use Linux 6.1 or newer with CONFIG_USERFAULTFD"},
	{"write-protection of shared memory", need_wp_shmem, false,
	 "use Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP"},
	{"asynchronous write-protection", need_wp_async, false,
	 "use Linux 6.7 or newer (UFFD_FEATURE_WP_ASYNC)"},
	{"PAGEMAP_SCAN", need_pagemap_scan, false,
	 "use Linux 6.7 or newer with CONFIG_PROC_PAGE_MONITOR"},
	{"kcmp", need_kcmp, false, "use a kernel with CONFIG_KCMP, and let seccomp allow kcmp(2)"},
	{"pidfd_getfd", need_pidfd_getfd, false,
	 "use Linux 5.6 or newer, and let seccomp allow pidfd_getfd(2)"},
	{"io_uring", need_io_uring, true,
	 "set the sysctl kernel.io_uring_disabled to 0; only -o resident= uses it"},
	{"FUSE over io_uring", need_fuse_uring, true,
	 "use Linux 6.14 or newer and set /sys/module/fuse/parameters/enable_uring to Y; only "
	 "-o io_uring uses it"},
};

#define NR_NEEDS (sizeof(needs) / sizeof(needs[0]))

int needs_print(void)
{
	const bool root = geteuid() == 0;
	int missing = 0;

	for (size_t i = 0; i < NR_NEEDS; i++) {
		int r = needs[i].check();

		if (r == 0) {
			printf("%-34s ok\n", needs[i].name);
			continue;
		}
		missing += !needs[i].optional;
		if (!root && (r == -EPERM || r == -EACCES) && needs[i].check != need_root) {
			printf("%-34s not known (%s): ask as root\n", needs[i].name, log_errstr(r));
			continue;
		}
		printf("%-34s %s (%s): %s\n", needs[i].name,
		       needs[i].optional ? "missing, optional" : "missing", log_errstr(r),
		       needs[i].fix);
	}
	return missing;
}

int needs_check(void)
{
	for (size_t i = 0; i < NR_NEEDS; i++) {
		int r = needs[i].optional ? 0 : needs[i].check();

		if (r) {
			log_err("cannot mount: %s is missing (%s): %s", needs[i].name,
				log_errstr(r), needs[i].fix);
			return r;
		}
	}
	return 0;
}
