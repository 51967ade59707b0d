/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Marks in page tables: setting them atomically under writers, and entries that look like them.
 * Needs root and /dev/userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"
#include "uffd_child.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE  103
#endif
#ifndef UFFDIO_POISON
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#define AT(c, page) ((c)->at + (long)((uint64_t)(page) << WPFS_PAGE_SHIFT))
#define LEN(pages)  ((long)((uint64_t)(pages) << WPFS_PAGE_SHIFT))

static struct child *tracked(void **state)
{
	if (!*state) {
		print_message("skipped: %s\n", child_unfit());
		skip();
	}
	return *state;
}

static int protect(struct child *c, int pagemap, uint64_t first, uint64_t nr,
		   struct mm_set *written)
{
	return pagemap_protect(pagemap, (uint64_t)AT(c, first), (uint64_t)AT(c, first + nr),
			       written);
}

/* ---- protect ---- */

static void test_protect_marks_what_is_there_and_what_is_not(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL}, written = {NULL};
	_cleanup_close_ int pagemap = pagemap_open(c->pid);

	child_register(c, false);
	/* page tables of one half only, every 3rd page present in them */
	assert_int_equal(child_call(c, do_store, c->at, 3, PAGES / 6, 0, 0, 0), 0);
	assert_int_equal(protect(c, pagemap, 10, PAGES - 20, &written), 0);
	assert_int_equal(mm_set_count(&written), PAGES - 20);
	assert_int_equal(mm_set_add_range(&marks, 10, PAGES - 20), 0);
	child_expect(c, &marks);
	mm_set_clear(&written);
	assert_int_equal(child_call(c, do_store, AT(c, 100), 7, 50, 0, 0, 0), 0);
	assert_int_equal(protect(c, pagemap, 10, PAGES - 20, &written), 0);
	assert_int_equal(mm_set_count(&written), 50);
	for (uint64_t i = 0; i < 50; i++) /* relative to the start of the range */
		assert_true(mm_set_contains(&written, 90 + 7 * i));
	child_expect(c, &marks);
	/* dropped pages are marked still, and so are their stores seen */
	mm_set_clear(&written);
	assert_int_equal(child_call(c, do_madvise, c->at, BYTES, MADV_REMOVE, 0, 0, 0), 0);
	assert_int_equal(child_call(c, do_store, AT(c, 300), 1, 5, 0, 0, 0), 0);
	assert_int_equal(protect(c, pagemap, 10, PAGES - 20, &written), 0);
	assert_int_equal(mm_set_count(&written), 5);
	assert_int_equal(mm_set_count_range(&written, 290, 5), 5);
	child_expect(c, &marks);
}

static void test_protect_needs_an_async_registration(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int pagemap = pagemap_open(c->pid);
	_cleanup_set_ struct mm_set written = {NULL};

	assert_int_equal(protect(c, pagemap, 0, PAGES, &written), -EPERM);
	assert_int_equal(pagemap_is_async(pagemap, (uint64_t)c->at), 0);
	child_register(c, false);
	assert_int_equal(pagemap_is_async(pagemap, (uint64_t)c->at), 1);
	assert_int_equal(uffd_unregister(c->uffd, (uint64_t)AT(c, 50), (uint64_t)AT(c, 60)), 0);
	assert_int_equal(protect(c, pagemap, 0, PAGES, &written), -EPERM);
	assert_int_equal(pagemap_is_async(pagemap, (uint64_t)AT(c, 50)), 0);
	assert_int_equal(pagemap_is_async(pagemap, (uint64_t)AT(c, 60)), 1);
}

/* More runs than one call of the kernel gives back. */
static void test_scans_in_batches(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL}, written = {NULL};
	_cleanup_close_ int pagemap = pagemap_open(c->pid);
	const uint64_t pages = 8192;
	long at;

	assert_int_equal(ftruncate(c->file, LEN(pages)), 0);
	at = child_call(c, do_mmap, 0, LEN(pages), PROT_READ | PROT_WRITE, MAP_SHARED, c->file, 0);
	assert_true(at > 0);
	child_register(c, false);
	assert_int_equal(uffd_register_wp(c->uffd, (uint64_t)at, (uint64_t)(at + LEN(pages))), 0);
	assert_int_equal(
		pagemap_protect(pagemap, (uint64_t)at, (uint64_t)(at + LEN(pages)), &written), 0);
	assert_int_equal(mm_set_count(&written), pages);
	assert_int_equal(child_call(c, do_store, at, 2, (long)pages / 2, 0, 0, 0), 0);
	assert_int_equal(
		pagemap_marked(pagemap, (uint64_t)at, (uint64_t)(at + LEN(pages)), true, &marks),
		0);
	assert_int_equal(mm_set_count(&marks), pages / 2);
	for (uint64_t page = 0; page < pages; page++)
		assert_int_equal(mm_set_contains(&marks, page), page % 2);
	mm_set_clear(&written);
	assert_int_equal(
		pagemap_protect(pagemap, (uint64_t)at, (uint64_t)(at + LEN(pages)), &written), 0);
	assert_int_equal(mm_set_count(&written), pages / 2);
}

/* ---- protect under writers ---- */

#define WRITERS 3
#define ROUNDS	1000

static struct {
	long at;
	atomic_bool stop;
	int number;
} writer[WRITERS];

/* Each page has one writer, so its counter counts its stores. */
static void *writer_thread(void *arg)
{
	int me = *(int *)arg;
	uint64_t seed = (uint64_t)me + 5;

	while (!atomic_load(&writer[me].stop)) {
		uint64_t page = (uint64_t)test_rng(&seed, PAGES / WRITERS) * WRITERS + (unsigned)me;

		++*(volatile uint64_t *)(writer[me].at + LEN(page));
	}
	return NULL;
}

static pthread_t writer_threads[WRITERS];

static long do_start_writers(long at, long b, long c, long d, long e, long f)
{
	for (int i = 0; i < WRITERS; i++) {
		writer[i].at = at;
		writer[i].number = i;
		if (pthread_create(&writer_threads[i], NULL, writer_thread, &writer[i].number))
			return -EAGAIN;
	}
	return 0;
}

static long do_stop_writers(long a, long b, long c, long d, long e, long f)
{
	for (int i = 0; i < WRITERS; i++)
		atomic_store(&writer[i].stop, true);
	for (int i = 0; i < WRITERS; i++)
		pthread_join(writer_threads[i], NULL);
	return 0;
}

/* Contents just before and just after one protect, and what it said was written. */
struct round {
	uint64_t before[PAGES], after[PAGES];
	struct mm_set written;
};

static void contents(const struct child *c, uint64_t *counters)
{
	for (uint64_t page = 0; page < PAGES; page++)
		counters[page] = *(volatile uint64_t *)(c->seen + LEN(page));
}

/* `stores`: how many to wait for, so that rounds differ. */
static void round_make(struct child *c, int pagemap, struct round *r, uint64_t stores)
{
	uint64_t sum = 0, from = 0;

	mm_set_clear(&r->written);
	do {
		sched_yield();
		contents(c, r->before);
		sum = 0;
		for (uint64_t page = 0; page < PAGES; page++)
			sum += r->before[page];
		from = from ?: sum;
	} while (sum - from < stores);
	assert_int_equal(protect(c, pagemap, 0, PAGES, &r->written), 0);
	contents(c, r->after);
}

/*
 * Three rounds in a row: `a` and `b` bound one epoch, `b` and `d` the next. A store lies between
 * two readings of a counter if the counter differs in them.
 *
 * A thread that has had its page made writable but not yet stored when the next protect comes
 * faults again, and its one store counts in both epochs: never more pages than there are threads.
 */
static void round_check(const struct round *a, const struct round *b, const struct round *d)
{
	int twice = 0;

	for (uint64_t page = 0; page < PAGES; page++) {
		bool first = mm_set_contains(&b->written, page);
		bool second = mm_set_contains(&d->written, page);

		if (a->after[page] != b->before[page])
			assert_true(first); /* surely after a and before b */
		if (b->before[page] != b->after[page])
			assert_true(first || second); /* around b */
		if ((uint64_t)first + second > d->after[page] - a->before[page])
			twice++;
		if (page >= PAGES - PAGES % WRITERS)
			assert_false(first || second); /* nobody's */
	}
	assert_in_range(twice, 0, 2 * WRITERS);
}

static void test_every_store_is_in_an_epoch(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int pagemap = pagemap_open(c->pid);
	struct round *r = calloc(3, sizeof(*r));
	uint64_t pages = 0, clean = 0, seed = 1;

	assert_non_null(r);
	child_register(c, false);
	assert_int_equal(child_call(c, do_start_writers, c->at, 0, 0, 0, 0, 0), 0);
	for (int i = 0; i < ROUNDS; i++) {
		round_make(c, pagemap, &r[i % 3], test_rng(&seed, 4) ? 0 : 200);
		if (i < 2)
			continue;
		round_check(&r[(i + 1) % 3], &r[(i + 2) % 3], &r[i % 3]);
		pages += mm_set_count(&r[i % 3].written);
		clean += PAGES - mm_set_count(&r[i % 3].written);
	}
	assert_int_equal(child_call(c, do_stop_writers, 0, 0, 0, 0, 0, 0), 0);
	print_message("%d epochs, pages written %llu, not written %llu\n", ROUNDS,
		      (unsigned long long)pages, (unsigned long long)clean);
	assert_true(pages > ROUNDS && clean > ROUNDS);
	for (int i = 0; i < 3; i++)
		mm_set_free(&r[i].written);
	free(r);
}

/* ---- entries that are no marks ---- */

static void test_guard_entries_are_no_marks(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};
	long r;

	child_register(c, false);
	assert_int_equal(child_call(c, do_store, c->at, 1, PAGES / 2, 0, 0, 0), 0);
	child_mark(c, 100, 50);
	r = child_call(c, do_madvise, AT(c, 0), LEN(20), MADV_GUARD_INSTALL, 0, 0, 0);
	if (r == -EINVAL) {
		print_message("skipped: no MADV_GUARD_INSTALL on files (Linux 6.15)\n");
		skip();
	}
	assert_int_equal(r, 0);
	r = child_call(c, do_madvise, AT(c, PAGES - 20), LEN(20), MADV_GUARD_INSTALL, 0, 0, 0);
	assert_int_equal(r, 0);
	assert_int_equal(mm_set_add_range(&marks, 100, 50), 0);
	child_expect(c, &marks);
	/* arming over a guard leaves it one, and no mark */
	child_mark(c, 10, 20);
	assert_int_equal(mm_set_add_range(&marks, 20, 10), 0);
	child_expect(c, &marks);
	assert_int_equal(child_call(c, do_madvise, AT(c, 0), LEN(20), MADV_GUARD_REMOVE, 0, 0, 0),
			 0);
	child_expect(c, &marks);
}

static void test_poisoned_entries_are_no_marks(void **state)
{
	struct child *c = tracked(state);
	struct uffdio_poison poison = {.range = {(uint64_t)AT(c, 700), (uint64_t)LEN(10)}};
	_cleanup_set_ struct mm_set marks = {NULL};

	child_register(c, false);
	child_mark(c, 600, 50);
	assert_int_equal(mm_set_add_range(&marks, 600, 50), 0);
	if (ioctl(c->uffd, UFFDIO_POISON, &poison) < 0) {
		print_message("skipped: no UFFDIO_POISON (Linux 6.6): %s\n", strerror(errno));
		skip();
	}
	child_expect(c, &marks);
	child_mark(c, 695, 20);
	assert_int_equal(mm_set_add_range(&marks, 695, 5), 0);
	assert_int_equal(mm_set_add_range(&marks, 710, 5), 0);
	child_expect(c, &marks);
}

#define T(name) cmocka_unit_test_setup_teardown(name, child_setup, child_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_protect_marks_what_is_there_and_what_is_not),
		T(test_protect_needs_an_async_registration),
		T(test_scans_in_batches),
		T(test_every_store_is_in_an_epoch),
		T(test_guard_entries_are_no_marks),
		T(test_poisoned_entries_are_no_marks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
