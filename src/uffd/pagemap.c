/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/compat.h"
#include "base/units.h"

/* Regions fetched by one call: alternating marks of 2048 pages. */
#define PAGEMAP_BATCH 1024

int pagemap_open(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	return fd;
}

bool pagemap_is_gone(int pagemap)
{
	uint64_t entry;

	return pread(pagemap, &entry, sizeof(entry), 0) == 0;
}

/* Runs one scan over [start, end) in batches and adds what it returns to the builder. */
static int pagemap_walk(int pagemap, uint64_t start, uint64_t end, struct pm_scan_arg arg,
			struct mm_builder *found)
{
	struct page_region regions[PAGEMAP_BATCH];
	uint64_t at = start;

	arg.size = sizeof(arg);
	arg.end = end;
	arg.vec = (uintptr_t)regions;
	arg.vec_len = PAGEMAP_BATCH;
	while (at < end) {
		int nr;

		arg.start = at;
		nr = ioctl(pagemap, PAGEMAP_SCAN, &arg);
		if (nr < 0 && errno == EINTR)
			continue;
		if (nr < 0)
			return -errno;
		for (int i = 0; i < nr; i++)
			mm_builder_add(found, (regions[i].start - start) >> WPFS_PAGE_SHIFT,
				       (regions[i].end - regions[i].start) >> WPFS_PAGE_SHIFT);
		if (arg.walk_end <= at)
			return -EIO; /* no progress: never loop on a kernel that stopped answering
				      */
		at = arg.walk_end;
	}
	return 0;
}

static int pagemap_scan(int pagemap, uint64_t start, uint64_t end, const struct pm_scan_arg *arg,
			struct mm_set *set)
{
	struct mm_builder found;
	int r, ended;

	mm_builder_begin(&found);
	r = pagemap_walk(pagemap, start, end, *arg, &found);
	ended = mm_builder_end(&found, set);
	return r < 0 ? r : ended;
}

int pagemap_marked(int pagemap, uint64_t start, uint64_t end, bool async, struct mm_set *marked)
{
	struct pm_scan_arg arg = {
		.category_inverted = PAGE_IS_WRITTEN,
		.category_mask = PAGE_IS_WRITTEN | (async ? PAGE_IS_WPALLOWED : 0),
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		/* One constant category, so that neighbouring regions come as one. */
		.return_mask = PAGE_IS_WRITTEN,
	};

	return pagemap_scan(pagemap, start, end, &arg, marked);
}

int pagemap_present(int pagemap, uint64_t start, uint64_t end, struct mm_set *present)
{
	struct pm_scan_arg arg = {
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};

	return pagemap_scan(pagemap, start, end, &arg, present);
}

int pagemap_protect(int pagemap, uint64_t start, uint64_t end, struct mm_set *written)
{
	struct pm_scan_arg arg = {
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};

	return pagemap_scan(pagemap, start, end, &arg, written);
}

int pagemap_huge_unmarked(int pagemap, uint64_t start, uint64_t end, struct mm_set *pages)
{
	struct pm_scan_arg arg = {
		.category_mask = PAGE_IS_HUGE | PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_HUGE,
	};

	return pagemap_scan(pagemap, start, end, &arg, pages);
}

int pagemap_is_async(int pagemap, uint64_t addr)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = addr,
		.end = addr + WPFS_PAGE_SIZE,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_WPALLOWED,
		.return_mask = PAGE_IS_WPALLOWED,
	};
	int nr = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	return nr < 0 ? -errno : nr > 0;
}
