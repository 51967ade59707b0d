/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which touch of a page makes which message, and what the answers do. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "uffdconf.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

#define WP UFFDIO_WRITEPROTECT_MODE_WP

/* ---- write-protection ---- */

static void wp_store(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	store(a, 0, 1);
	wp_all(fd, a);
	note_marks(a, 0, 8);
	h = handler_start(fd, a, ANSWER);
	load(a, 3);
	store(a, 3, 1);
	store(a, 3, 2);
	load(a, 3);
	handler_stop(h);
	note_marks(a, 0, 8);
	close(fd);
	note_marks(a, 0, 8);
}

static void wp_unprotect(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	noted("off", wp(fd, a, 2, 3, 0));
	note_marks(a, 0, 8);
	store(a, 2, 1);
	store(a, 4, 1);
	note_silence(fd, a);
	wp_all(fd, a);
	note_marks(a, 0, 8);
	close(fd);
}

/* Never touched: the protection is there before the page. */
static void wp_unpopulated(void)
{
	struct area *a = area_new(8, 0);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	note_marks(a, 0, 8);
	noted("off", wp(fd, a, 1, 1, 0));
	noted("dontneed", madvise(a->map + 2 * PAGE, PAGE, MADV_DONTNEED));
	note_marks(a, 0, 8);
	h = handler_start(fd, a, ANSWER);
	load(a, 2);
	store(a, 2, 1);
	store(a, 5, 1);
	store(a, 1, 1);
	handler_stop(h);
	note_marks(a, 0, 8);
	close(fd);
}

/* A page that goes and comes keeps its protection. */
static void wp_zapped(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	load(a, 1);
	wp_all(fd, a);
	noted("dontneed", madvise(a->map, 2 * PAGE, MADV_DONTNEED));
	noted("remove", madvise(a->map + 2 * PAGE, PAGE, MADV_REMOVE));
	noted("punch",
	      fallocate(a->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, PAGE));
	noted("pageout", madvise(a->map + 4 * PAGE, PAGE, MADV_PAGEOUT));
	noted("mprotect", mprotect(a->map + 5 * PAGE, PAGE, PROT_READ));
	noted("mprotect", mprotect(a->map + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE));
	note_marks(a, 0, 8);
	h = handler_start(fd, a, ANSWER);
	for (unsigned long page = 0; page < 6; page++)
		load(a, page);
	for (unsigned long page = 0; page < 6; page++)
		store(a, page, 1);
	handler_stop(h);
	note_marks(a, 0, 8);
	close(fd);
}

static void wp_populate(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	noted("populate read", madvise(a->map, PAGE, MADV_POPULATE_READ));
	note_marks(a, 0, 4);
	noted("populate write", madvise(a->map + PAGE, PAGE, MADV_POPULATE_WRITE));
	note_marks(a, 0, 4);
	handler_stop(h);
	close(fd);
}

/* The kernel's own stores to a page: read(2) into it, and another process's. */
static void wp_kernel_store(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL), zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	char byte = 7;
	struct iovec local = {&byte, 1}, remote = {a->map + 4 * PAGE, 1};
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	note("read %zd", read(zeros, a->map + 2 * PAGE, PAGE));
	note("vm_writev %zd", process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	note("pwrite %zd", pwrite(a->file, &byte, 1, 6 * PAGE));
	handler_stop(h);
	note_marks(a, 0, 8);
	close(zeros);
	close(fd);
}

static void user_mode_only(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK | UFFD_USER_MODE_ONLY, SHMEM_ALL);
	int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	noted("read", read(zeros, a->map + 2 * PAGE, PAGE));
	h = handler_start(fd, a, ANSWER);
	store(a, 1, 1);
	handler_stop(h);
	close(zeros);
	close(fd);
}

/* Un-protecting wakes, unless told not to; WAKE does by itself. */
static void dontwake(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct uffdio_range range = {(uintptr_t)a->map, PAGE};
	struct uffd_msg msg;
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	s = storer_start(a, 0, 1);
	if (next_message(fd, a, &msg, PATIENCE) < 0)
		die("message");
	note_message(&msg, a);
	noted("off", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_DONTWAKE));
	noted("wake", ioctl(fd, UFFDIO_WAKE, &range));
	storer_join(s);
	close(fd);
}

/* Woken too early it just waits again. */
static void wake_early(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct uffdio_range range = {(uintptr_t)a->map, PAGE};
	struct uffd_msg msg;
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	s = storer_start(a, 0, 1);
	for (int i = 0; i < 3; i++) {
		if (next_message(fd, a, &msg, PATIENCE) < 0)
			die("message");
		note_message(&msg, a);
		if (i < 2)
			noted("wake", ioctl(fd, UFFDIO_WAKE, &range));
	}
	noted("off", wp(fd, a, 0, 1, 0));
	storer_join(s);
	close(fd);
}

/* Several threads at one page: a message each, one answer for all. */
static void same_page(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct storer *s[3];
	struct uffd_msg msg;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	for (int i = 0; i < 3; i++)
		s[i] = storer_start(a, 2, (char)i);
	for (int i = 0; i < 3; i++) {
		if (next_message(fd, a, &msg, PATIENCE) < 0)
			die("message");
		note_message(&msg, a);
	}
	noted("off", wp(fd, a, 2, 1, 0));
	for (int i = 0; i < 3; i++)
		storer_join(s[i]);
	note_silence(fd, a);
	close(fd);
}

static void wp_async(void)
{
	struct area *a = area_new(8, 6);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_WP_ASYNC);

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	note_marks(a, 0, 8);
	store(a, 1, 1);
	store(a, 7, 1);
	load(a, 2);
	note_silence(fd, a);
	note_marks(a, 0, 8);
	wp_all(fd, a);
	note_marks(a, 0, 8);
	close(fd);
	note_marks(a, 0, 8);
}

/* PAGEMAP_SCAN: what was written, and protected again in one step. */
static void wp_async_scan(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_WP_ASYNC);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct page_region regions[8];
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)a->map,
		.end = (uintptr_t)(a->map + 8 * PAGE),
		.vec = (uintptr_t)regions,
		.vec_len = 8,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	store(a, 2, 1);
	store(a, 3, 1);
	store(a, 6, 1);
	for (int i = 0; i < 2; i++) {
		long n = ioctl(pagemap, PAGEMAP_SCAN, &scan);

		note("scan %ld", n);
		for (long k = 0; k < n; k++)
			note("%llu+%llu", (regions[k].start - (uintptr_t)a->map) / PAGE,
			     (regions[k].end - regions[k].start) / PAGE);
	}
	note_marks(a, 0, 8);
	close(pagemap);
	close(fd);
}

/* ---- missing pages ---- */

static void missing(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_MISS);
	h = handler_start(fd, a, ANSWER);
	load(a, 1);
	load(a, 5);
	store(a, 6, 1);
	load(a, 6);
	load(a, 5);
	handler_stop(h);
	noted("remove", madvise(a->map + PAGE, PAGE, MADV_REMOVE));
	noted("dontneed", madvise(a->map + 2 * PAGE, PAGE, MADV_DONTNEED));
	h = handler_start(fd, a, ANSWER_ZERO);
	load(a, 1);
	load(a, 2);
	store(a, 7, 1);
	handler_stop(h);
	close(fd);
	load(a, 4);
}

static void missing_write(void)
{
	struct area *a = area_new(4, 0);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;
	char byte = 3, got = 0;

	reg_all(fd, a, MODE_MISS);
	h = handler_start(fd, a, ANSWER);
	/* Through the file there is no fault, and then the page is there. */
	note("pwrite %zd", pwrite(a->file, &byte, 1, 2 * PAGE + 1));
	load(a, 2);
	note("pread %zd = %d", pread(a->file, &got, 1, 3 * PAGE), got);
	load(a, 3);
	note("pread %zd = %d", pread(a->file, &got, 1, 3 * PAGE), got);
	handler_stop(h);
	close(fd);
}

static void missing_wp(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_MISS | MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER_PROTECT);
	load(a, 5);
	note_marks(a, 0, 8);
	store(a, 5, 1);
	store(a, 6, 1);
	store(a, 1, 1);
	handler_stop(h);
	note_marks(a, 0, 8);
	close(fd);
}

/* ---- pages that are in the file and not in the table ---- */

static void minor(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	area_alias(a);
	reg_all(fd, a, MODE_MIN);
	a->alias[5 * PAGE + 1] = 55;
	h = handler_start(fd, a, ANSWER);
	load(a, 1);
	store(a, 2, 1);
	load(a, 5);
	load(a, 7);
	load(a, 5);
	handler_stop(h);
	close(fd);
}

/* What the handler changes before it continues is what the thread sees. */
static void minor_changed(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct uffd_msg msg;
	struct storer *s;

	area_alias(a);
	reg_all(fd, a, MODE_MIN);
	s = storer_start(a, 1, 77);
	if (next_message(fd, a, &msg, PATIENCE) < 0)
		die("message");
	note_message(&msg, a);
	memset(a->alias + PAGE, 0x5a, PAGE);
	noted("continue", cont(fd, a->map + PAGE, 0, NULL));
	storer_join(s);
	note("%d %d %d", a->map[PAGE], a->map[PAGE + 1], a->map[PAGE + 2]);
	close(fd);
}

static void minor_wp(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_MIN | MODE_WP);
	h = handler_start(fd, a, ANSWER_PROTECT);
	load(a, 1);
	note_marks(a, 0, 4);
	store(a, 1, 1);
	store(a, 2, 1);
	handler_stop(h);
	note_marks(a, 0, 4);
	close(fd);
}

static void all_modes(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_MISS | MODE_MIN | MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	load(a, 1);
	store(a, 1, 1);
	load(a, 5);
	store(a, 5, 1);
	store(a, 2, 1);
	store(a, 6, 1);
	handler_stop(h);
	note_marks(a, 0, 8);
	close(fd);
}

static void minor_missing(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	reg_all(fd, a, MODE_MISS | MODE_MIN);
	h = handler_start(fd, a, ANSWER);
	load(a, 1);
	load(a, 5);
	store(a, 2, 1);
	store(a, 6, 1);
	handler_stop(h);
	close(fd);
}

/* The kernel may refuse it, have no huge page to spare, or be at the pages itself. */
static int collapse(void *at, unsigned long len)
{
	const int may[] = {EINVAL, ENOMEM, EBUSY, EAGAIN};

	for (int tries = 0; tries < 100; tries++) {
		if (madvise(at, len, MADV_COLLAPSE) == 0)
			return 0;
		if (errno != EAGAIN)
			break;
		usleep(1000);
	}
	for (size_t i = 0; i < sizeof(may) / sizeof(may[0]); i++)
		if (errno == may[i])
			return 0;
	return -1;
}

/* 2 MiB of minor faults, then made one huge page: contents stay. */
static void minor_collapse(void)
{
	struct area *a = area_still(1024, 1024);
	char *at = (char *)(((uintptr_t)a->map + (2ul << 20) - 1) & ~((2ul << 20) - 1));
	unsigned long first = (unsigned long)(at - a->map) / PAGE, wrong = 0;
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);

	if (reg(fd, at, 512 * PAGE, MODE_MIN, NULL) < 0)
		die("register");
	for (unsigned long page = 0; page < 512; page++)
		/* EAGAIN: the kernel is at the page table itself (huge pages). */
		while (cont(fd, at + page * PAGE, 0, NULL) < 0)
			if (errno != EAGAIN)
				die("continue");
	noted("collapse", collapse(at, 512 * PAGE));
	for (unsigned long page = 0; page < 512; page++)
		wrong += at[page * PAGE + 9] != (char)(first + page + 1);
	note("wrong %lu", wrong);
	note_silence(fd, a);
	close(fd);
}

/* ---- features ---- */

static void thread_id(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_THREAD_ID);
	struct uffd_msg msg;
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	s = storer_start(a, 1, 1);
	if (next_message(fd, a, &msg, PATIENCE) < 0)
		die("message");
	note_message(&msg, a);
	note("ptid %s",
	     msg.arg.pagefault.feat.ptid != 0 && (pid_t)msg.arg.pagefault.feat.ptid != getpid()
		     ? "the thread's"
		     : "wrong");
	noted("off", wp(fd, a, 1, 1, 0));
	storer_join(s);
	close(fd);
}

static void exact_address(void)
{
	for (int exact = 0; exact < 2; exact++) {
		struct area *a = area_new(4, 4);
		int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | (exact ? UFFD_FEATURE_EXACT_ADDRESS : 0));
		struct uffd_msg msg;
		struct storer *s;

		reg_all(fd, a, MODE_WP);
		wp_all(fd, a);
		s = storer_start(a, 1, 1);
		if (next_message(fd, a, &msg, PATIENCE) < 0)
			die("message");
		note("offset %llu", (unsigned long long)msg.arg.pagefault.address % PAGE);
		noted("off", wp(fd, a, 1, 1, 0));
		storer_join(s);
		close(fd);
	}
}

static void sigbus(void)
{
	struct area *a = area_still(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_SIGBUS);

	reg_all(fd, a, MODE_MISS);
	load_or_bus(a, 1);
	load_or_bus(a, 5);
	store_or_bus(a, 6, 1);
	noted("copy", copy(fd, a->map + 5 * PAGE, 'm', 0, NULL));
	load_or_bus(a, 5);
	note_silence(fd, a);
	close(fd);
	load_or_bus(a, 6);
}

static void sigbus_wp(void)
{
	struct area *a = area_still(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_SIGBUS);

	reg_all(fd, a, MODE_WP | MODE_MISS);
	wp_all(fd, a);
	load_or_bus(a, 1);
	store_or_bus(a, 1, 1);
	noted("off", wp(fd, a, 1, 1, 0));
	store_or_bus(a, 1, 1);
	store_or_bus(a, 5, 1);
	noted("copy", copy(fd, a->map + 5 * PAGE, 'm', UFFDIO_COPY_MODE_WP, NULL));
	store_or_bus(a, 5, 1);
	noted("off", wp(fd, a, 5, 1, 0));
	store_or_bus(a, 5, 1);
	note_silence(fd, a);
	close(fd);
}

static void sigbus_minor(void)
{
	struct area *a = area_still(8, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_SIGBUS);

	reg_all(fd, a, MODE_MIN);
	load_or_bus(a, 1);
	noted("continue", cont(fd, a->map + PAGE, 0, NULL));
	load_or_bus(a, 1);
	note_silence(fd, a);
	close(fd);
}

static void poisoned(void)
{
	struct area *a = area_new(8, 0);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_POISON);
	struct handler *h;

	reg_all(fd, a, MODE_MISS);
	h = handler_start(fd, a, ANSWER_POISON);
	load_or_bus(a, 2);
	load_or_bus(a, 2);
	store_or_bus(a, 3, 1);
	handler_stop(h);
	h = handler_start(fd, a, ANSWER);
	load_or_bus(a, 4);
	handler_stop(h);
	noted("dontneed", madvise(a->map + 2 * PAGE, PAGE, MADV_DONTNEED));
	close(fd);
	load_or_bus(a, 2);
}

/* A private mapping of the file: filled, protected, poisoned as its own; the file stays as it is.
 */
static void private_mapping(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_still(8, 4);
	char *shared = a->map;
	struct handler *h;

	a->map = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, a->file, 0);
	if (a->map == MAP_FAILED)
		die("mmap");
	if (noted("register", reg(fd, a->map, 8 * PAGE, MODE_MISS | MODE_WP, NULL)) < 0)
		goto end;
	h = handler_start(fd, a, ANSWER);
	load(a, 1);
	store(a, 1, 77);
	load(a, 5);
	store(a, 6, 1);
	handler_stop(h);
	if (wp(fd, a, 0, 8, UFFDIO_WRITEPROTECT_MODE_WP) < 0)
		die("protect");
	h = handler_start(fd, a, ANSWER);
	note_marks(a, 0, 8);
	store(a, 1, 78);
	store(a, 5, 1);
	noted("zeropage", zero(fd, a->map + 7 * PAGE, 0, NULL));
	load(a, 7);
	note_marks(a, 0, 8);
	handler_stop(h);
	note("shared %d %d %d", shared[PAGE + 1], shared[5 * PAGE + 1], shared[6 * PAGE + 1]);
end:
	uffd_end(fd);
	note_marks(a, 0, 8);
	munmap(a->map, 8 * PAGE);
	a->map = shared;
}

const struct conf_case conf_faults[] = {
	{"wp-store", wp_store},
	{"wp-unprotect", wp_unprotect},
	{"wp-unpopulated", wp_unpopulated},
	{"wp-zapped", wp_zapped},
	{"wp-populate", wp_populate},
	{"wp-kernel-store", wp_kernel_store},
	{"user-mode-only", user_mode_only},
	{"dontwake", dontwake},
	{"wake-early", wake_early},
	{"same-page", same_page},
	{"wp-async", wp_async},
	{"wp-async-scan", wp_async_scan},
	{"missing", missing},
	{"missing-file-io", missing_write},
	{"missing-wp", missing_wp},
	{"minor", minor},
	{"minor-changed", minor_changed},
	{"minor-wp", minor_wp},
	{"minor-missing", minor_missing},
	{"minor-collapse", minor_collapse},
	{"all-modes", all_modes},
	{"thread-id", thread_id},
	{"exact-address", exact_address},
	{"sigbus", sigbus},
	{"sigbus-wp", sigbus_wp},
	{"sigbus-minor", sigbus_minor},
	{"poison", poisoned},
	{"private", private_mapping},
	{NULL, NULL},
};
