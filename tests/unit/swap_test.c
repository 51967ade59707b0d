/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Marks of pages that were swapped out for real: to a zram device, else a swap file, that the test
 * makes and removes. Needs root and /dev/userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "uffd_child.h"

#define AT(c, page) ((c)->at + (long)((uint64_t)(page) << WPFS_PAGE_SHIFT))
#define LEN(pages)  ((long)((uint64_t)(pages) << WPFS_PAGE_SHIFT))

#define SWAP_PAGES  16384

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static struct {
	char path[64];
	int zram; /* number of the device, -1: a file */
	bool on;
} swap = {.zram = -1};

static int write_text(const char *path, const char *text)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* What mkswap(8) writes: version and last page at 1024, the magic at the end of the page. */
static int swap_format(const char *path)
{
	static char page[4096];
	const uint32_t head[] = {1, SWAP_PAGES - 1, 0};
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	memcpy(page + 1024, head, sizeof(head));
	memcpy(page + 4086, "SWAPSPACE2", 10);
	if (fd < 0 || pwrite(fd, page, sizeof(page), 0) != sizeof(page))
		return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

static int swap_on(void)
{
	int r = swap_format(swap.path);

	if (r == 0 && swapon(swap.path, 0) < 0)
		r = -errno;
	swap.on = r == 0;
	return r;
}

static int swap_make_zram(void)
{
	_cleanup_free_ char *text = NULL;
	char path[64], size[32];
	int r = fdio_read_file(AT_FDCWD, "/sys/class/zram-control/hot_add", &text, NULL);

	if (r < 0)
		return r;
	swap.zram = atoi(text);
	snprintf(swap.path, sizeof(swap.path), "/dev/zram%d", swap.zram);
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", swap.zram);
	snprintf(size, sizeof(size), "%d", SWAP_PAGES * 4096);
	r = write_text(path, size);
	return r < 0 ? r : swap_on();
}

static int swap_make_file(void)
{
	_cleanup_close_ int fd = -1;

	snprintf(swap.path, sizeof(swap.path), "/var/tmp/wpfs-swap-XXXXXX");
	fd = mkostemp(swap.path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (posix_fallocate(fd, 0, (off_t)SWAP_PAGES * 4096) != 0)
		return -ENOSPC;
	return swap_on();
}

static void swap_remove(void)
{
	char number[16];

	if (swap.on)
		swapoff(swap.path);
	if (swap.zram >= 0) {
		snprintf(number, sizeof(number), "%d", swap.zram);
		write_text("/sys/class/zram-control/hot_remove", number);
	} else if (swap.path[0]) {
		unlink(swap.path);
	}
	swap.on = false;
	swap.zram = -1;
	swap.path[0] = '\0';
}

static int setup(void **state)
{
	int r;

	if (child_setup(state) < 0 || !*state)
		return 0;
	r = swap_make_zram();
	if (r < 0) {
		print_message("no zram (%s), a swap file instead\n", strerror(-r));
		swap_remove();
		r = swap_make_file();
	}
	if (r < 0)
		print_message("no swap file either: %s\n", strerror(-r));
	return 0;
}

static int teardown(void **state)
{
	int r = child_teardown(state);

	swap_remove();
	return r;
}

static struct child *tracked(void **state)
{
	if (!*state)
		print_message("skipped: %s\n", child_unfit());
	else if (!swap.on)
		print_message("skipped: this machine lets nobody make swap\n");
	if (!*state || !swap.on)
		skip();
	return *state;
}

/* Pages of the child's mapping that are in swap, by smaps. */
static long swapped(const struct child *c)
{
	char path[64], *p, head[32];
	_cleanup_free_ char *text = NULL;

	snprintf(path, sizeof(path), "/proc/%d/smaps", c->pid);
	assert_int_equal(fdio_read_file(AT_FDCWD, path, &text, NULL), 0);
	snprintf(head, sizeof(head), "%lx-", (unsigned long)c->at);
	p = strstr(text, head);
	assert_non_null(p);
	p = strstr(p, "\nSwap:");
	assert_non_null(p);
	return atol(p + 6) / 4;
}

/* Reclaim takes pages on its own time (they may be on a per-cpu list): it is asked again. */
static void page_out(struct child *c)
{
	for (int i = 0; i < 200 && swapped(c) < PAGES / 2; i++)
		assert_int_equal(child_call(c, do_madvise, c->at, BYTES, MADV_PAGEOUT, 0, 0, 0), 0);
	assert_in_range(swapped(c), PAGES / 2, PAGES);
}

static void test_marks_of_swapped_pages(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};
	uint64_t seed = 3;

	munmap((void *)c->seen, BYTES); /* other mappings would keep the pages */
	child_register(c, false);
	assert_int_equal(child_call(c, do_store, c->at, 1, PAGES, 0, 0, 0), 0);
	for (uint64_t page = 0; page < PAGES; page++) {
		if (test_rng(&seed, 2))
			continue;
		child_mark(c, page, 1);
		assert_int_equal(mm_set_add_range(&marks, page, 1), 0);
	}
	page_out(c);
	child_expect(c, &marks); /* out */
	child_call(c, do_load, c->at, BYTES / 2, 0, 0, 0, 0);
	child_expect(c, &marks); /* half of them in by a read */
	assert_int_equal(child_call(c, do_store, AT(c, 100), 1, 300, 0, 0, 0), 0);
	assert_int_equal(child_call(c, do_store, AT(c, 700), 1, 200, 0, 0, 0), 0);
	mm_set_remove_range(&marks, 100, 300);
	mm_set_remove_range(&marks, 700, 200);
	child_expect(c, &marks); /* stores to pages in memory and to pages in swap */
	page_out(c);
	child_expect(c, &marks);
	/* marked while it is out */
	child_mark(c, 0, PAGES);
	assert_int_equal(mm_set_add_range(&marks, 0, PAGES), 0);
	child_expect(c, &marks);
	assert_int_equal(child_call(c, do_store, AT(c, 5), 1, 3, 0, 0, 0), 0);
	mm_set_remove_range(&marks, 5, 3);
	child_expect(c, &marks);
	assert_int_equal(swapoff(swap.path), 0); /* all in, without the program */
	swap.on = false;
	child_expect(c, &marks);
	c->seen = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, c->file, 0);
	assert_true(c->seen != MAP_FAILED);
	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t stores = 1 + (page >= 100 && page < 400) + (page >= 700 && page < 900) +
				  (page >= 5 && page < 8);

		assert_int_equal(*(volatile uint64_t *)(c->seen + LEN(page)), stores);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_marks_of_swapped_pages, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
