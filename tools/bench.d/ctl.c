/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 *	bench-ctl MOUNTPOINT
 *
 * What is asked of the daemon, over one connection so that no start of a program is measured, and
 * the kernel's own answer beside it. Orders (raw.h):
 *
 *   sync                              harvest and commit -> NS
 *   protect NAME                      -> NS
 *   scan PID ADDR LEN                 PAGEMAP_SCAN for the marks of another process -> NS PAGES
 *   clear PID FD ADDR LEN SEED        takes the mark off half of the pages at random, through that
 *                                     uffd, as stores would; but nothing is written, so that a
 *                                     mapping may be larger than memory. LEN of one page: that page
 */
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/compat.h"
#include "ipc/client.h"

#define SCAN_BATCH 1024 /* as large as wpfs's; more does not make it faster */

static struct ipc_client *client;

static void ask(enum wpfs_op op, const char *name, void *reply)
{
	struct wpfs_select select = {.set = name[0] ? WPFS_SELECT_NAME : 0};
	uint64_t start;
	int r;

	snprintf(select.name, sizeof(select.name), "%s", name);
	start = now_ns();
	r = ipc_client_call(client, op, &select, reply, NULL, NULL);
	if (r < 0) {
		errno = -r;
		die(ipc_client_error(client));
	}
	printf("%lu", now_ns() - start);
}

static void do_sync(void)
{
	ask(WPFS_OP_SYNC, "", NULL);
}

static void do_protect(const struct order *o)
{
	struct wpfs_protect_reply reply;

	ask(WPFS_OP_PROTECT, o->word[1], &reply);
}

/* The walk and nothing else: what it finds is counted, not kept. */
static uint64_t scan(int pagemap, uint64_t at, uint64_t end)
{
	static struct page_region regions[SCAN_BATCH];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.end = end,
		.vec = (uintptr_t)regions,
		.vec_len = SCAN_BATCH,
		.category_inverted = PAGE_IS_WRITTEN,
		.category_mask = PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_WRITTEN,
	};
	uint64_t pages = 0;

	for (; at < end; at = arg.walk_end) {
		int nr;

		arg.start = at;
		nr = ioctl(pagemap, PAGEMAP_SCAN, &arg);
		if (nr < 0 || arg.walk_end <= at)
			die("PAGEMAP_SCAN");
		for (int i = 0; i < nr; i++)
			pages += (regions[i].end - regions[i].start) / PAGE;
	}
	return pages;
}

static void do_scan(const struct order *o)
{
	uint64_t start, addr = number(o, 2), pages;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/pagemap", o->word[1]);
	start = now_ns();
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	pages = scan(fd, addr, addr + number(o, 3));
	printf("%lu %lu", now_ns() - start, pages);
	close(fd);
}

static void do_clear(const struct order *o)
{
	int pidfd = (int)syscall(SYS_pidfd_open, (int)number(o, 1), 0);
	int uffd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, (int)number(o, 2), 0);
	uint64_t addr = number(o, 3), len = number(o, 4), run = 0;
	struct dice dice = {number(o, 5)};

	if (uffd < 0)
		die("the witness's userfaultfd");
	if (len == PAGE)
		raw_protect(uffd, (const char *)addr, len, false);
	for (uint64_t at = 0; len > PAGE && at <= len; at += PAGE) {
		if (at < len && dice_half(&dice)) {
			run += PAGE;
			continue;
		}
		if (run)
			raw_protect(uffd, (const char *)(addr + at - run), run, false);
		run = 0;
	}
	close(uffd);
	close(pidfd);
}

static void obey(const struct order *o)
{
	if (strcmp(o->word[0], "sync") == 0) {
		do_sync();
	} else if (strcmp(o->word[0], "protect") == 0) {
		do_protect(o);
	} else if (strcmp(o->word[0], "scan") == 0) {
		do_scan(o);
	} else if (strcmp(o->word[0], "clear") == 0) {
		do_clear(o);
	} else {
		errno = EINVAL;
		die(o->word[0]);
	}
}

int main(int argc, char **argv)
{
	struct wpfs_mount_info info;
	int fd, r;

	if (argc != 2) {
		fprintf(stderr, "usage: bench-ctl MOUNTPOINT\n");
		return 2;
	}
	fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		die(argv[1]);
	r = ipc_mount_info(fd, &info);
	if (r == 0)
		r = ipc_client_connect(info.id, 0, &client);
	if (r < 0) {
		errno = -r;
		die(argv[1]);
	}
	close(fd);
	orders_serve(obey);
	ipc_client_close(client);
	return 0;
}
