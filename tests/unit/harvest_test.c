/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* harvest_mm() on real page tables of another process. Needs root and /dev/userfaultfd. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compat.h"
#include "uffd/maps.h"
#include "uffd/pagemap.h"
#include "uffd/proc.h"
#include "uffd/uffd.h"
#include "uffd_child.h"

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

/* Marks random runs of pages; *marks is what is marked. */
static void mark_some(struct child *c, uint64_t seed, struct mm_set *marks)
{
	for (uint64_t page = 0; page < PAGES;) {
		uint64_t nr = 1 + test_rng(&seed, 20);

		if (nr > PAGES - page)
			nr = PAGES - page;
		if (test_rng(&seed, 3)) {
			child_mark(c, page, nr);
			assert_int_equal(mm_set_add_range(marks, page, nr), 0);
		}
		page += nr;
	}
}

/* ---- stores ---- */

#define THREADS 4

static void *store_thread(void *arg)
{
	uint64_t seed = ((uint64_t *)arg)[0];

	for (int i = 0; i < 200; i++)
		do_store((long)((uint64_t *)arg)[1] + LEN(test_rng(&seed, PAGES)), 1, 1, 0, 0, 0);
	return NULL;
}

static uint64_t thread_seed(uint64_t seed, int i)
{
	return seed * 1000 + (uint64_t)i + 1;
}

static long do_store_threads(long at, long seed, long c, long d, long e, long f)
{
	uint64_t arg[THREADS][2];
	pthread_t thread[THREADS];

	for (int i = 0; i < THREADS; i++) {
		arg[i][0] = thread_seed((uint64_t)seed, i);
		arg[i][1] = (uint64_t)at;
		if (pthread_create(&thread[i], NULL, store_thread, arg[i]))
			return -EAGAIN;
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	return 0;
}

static void test_marks_are_exact_after_random_stores(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};

	child_register(c, false);
	for (uint64_t seed = 1; seed <= 20; seed++) {
		mark_some(c, seed * 77, &marks);
		child_expect(c, &marks);
		assert_int_equal(child_call(c, do_store_threads, c->at, (long)seed, 0, 0, 0, 0), 0);
		for (int i = 0; i < THREADS; i++) {
			uint64_t rng = thread_seed(seed, i);

			for (int n = 0; n < 200; n++)
				mm_set_remove_range(&marks, test_rng(&rng, PAGES), 1);
		}
		child_expect(c, &marks);
	}
}

/* ---- what happens to pages under their marks ---- */

static void test_marks_survive_zaps_and_protection(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};

	child_register(c, false);
	assert_int_equal(child_call(c, do_store, c->at, 2, PAGES / 2, 0, 0, 0), 0);
	mark_some(c, 4711, &marks);
	child_expect(c, &marks);
	assert_int_equal(child_call(c, do_madvise, AT(c, 0), LEN(300), MADV_DONTNEED, 0, 0, 0), 0);
	child_expect(c, &marks);
	assert_int_equal(child_call(c, do_madvise, AT(c, 200), LEN(99), MADV_REMOVE, 0, 0, 0), 0);
	child_expect(c, &marks);
	assert_int_equal(
		fallocate(c->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, LEN(250), LEN(300)),
		0);
	child_expect(c, &marks);
	assert_int_equal(ftruncate(c->file, LEN(700)), 0);
	assert_int_equal(ftruncate(c->file, BYTES), 0);
	child_expect(c, &marks);
	for (int page = 100; page < 900; page += 100)
		assert_int_equal(
			child_call(c, do_mprotect, AT(c, page), LEN(37), PROT_READ, 0, 0, 0), 0);
	child_expect(c, &marks);
	assert_int_equal(child_call(c, do_mprotect, c->at, BYTES, PROT_READ | PROT_WRITE, 0, 0, 0),
			 0);
	child_expect(c, &marks);
	/* and none of this made a mark that a store would not clear */
	child_call(c, do_load, c->at, BYTES, 0, 0, 0, 0);
	child_expect(c, &marks);
	assert_int_equal(child_call(c, do_store, c->at, 1, PAGES, 0, 0, 0), 0);
	mm_set_clear(&marks);
	child_expect(c, &marks);
}

static void *event_thread(void *arg)
{
	struct uffd_msg msg;

	while (read((int)(long)arg, &msg, sizeof(msg)) > 0)
		;
	return NULL;
}

static long do_event_thread(long uffd, long b, long c, long d, long e, long f)
{
	pthread_t thread;

	return -pthread_create(&thread, NULL, event_thread, (void *)uffd);
}

static void test_marks_move_with_mremap(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};
	struct harvest h;
	long to, all;

	child_register(c, true);
	assert_int_equal(child_call(c, do_event_thread, c->uffd_in_child, 0, 0, 0, 0, 0), 0);
	mark_some(c, 99, &marks);
	/* a place to move to that stays free */
	all = child_call(c, do_mmap, 0, 2 * BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	to = all + LEN(16);
	assert_true(child_call(c, do_mremap, AT(c, 100), LEN(200), LEN(200),
			       MREMAP_MAYMOVE | MREMAP_FIXED, to, 0) == to);
	child_expect(c, &marks);
	child_harvest(c, false, &h);
	assert_int_equal(h.nr, 3);
	assert_int_equal(harvest_find(&h, to)->pgoff, 100);
	assert_true(harvest_find(&h, to)->registered && harvest_find(&h, to)->async);
	mm_vmas_free(h.vmas, h.nr);
	assert_int_equal(child_call(c, do_store, to, 1, 200, 0, 0, 0), 0);
	mm_set_remove_range(&marks, 100, 200);
	child_expect(c, &marks);
	/* grown: registered too, its new pages are not marked */
	assert_true(child_call(c, do_mremap, to, LEN(200), LEN(220), 0, 0, 0) == -ENOMEM);
	assert_int_equal(child_call(c, do_munmap, to + LEN(200), LEN(40), 0, 0, 0, 0), 0);
	assert_true(child_call(c, do_mremap, to, LEN(200), LEN(220), 0, 0, 0) == to);
	child_harvest(c, false, &h);
	assert_int_equal(harvest_find(&h, to)->end - (uint64_t)to, LEN(220));
	assert_true(harvest_find(&h, to)->registered);
	assert_true(mm_set_is_empty(&harvest_find(&h, to)->marked));
	mm_vmas_free(h.vmas, h.nr);
}

/* The kernel leaves the bits behind where WP registration ends by another REGISTER. */
static void test_stale_bits_are_no_marks(void **state)
{
	struct child *c = tracked(state);
	struct uffdio_register reg = {.range = {(uint64_t)c->at, BYTES},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	_cleanup_set_ struct mm_set stale = {NULL};
	int pagemap = pagemap_open(c->pid);
	struct harvest h;

	child_register(c, false);
	assert_int_equal(child_call(c, do_store, c->at, 1, PAGES, 0, 0, 0), 0);
	child_mark(c, 0, PAGES);
	assert_int_equal(ioctl(c->uffd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(
		pagemap_marked(pagemap, (uint64_t)c->at, (uint64_t)c->at + BYTES, false, &stale),
		0);
	assert_int_equal(mm_set_count(&stale), PAGES); /* they are there */
	mm_set_clear(&stale);
	assert_int_equal(
		pagemap_marked(pagemap, (uint64_t)c->at, (uint64_t)c->at + BYTES, true, &stale), 0);
	assert_true(mm_set_is_empty(&stale));
	for (int own_uffds = 0; own_uffds < 2; own_uffds++) {
		child_harvest(c, own_uffds, &h);
		assert_int_equal(h.nr, 1);
		assert_false(h.vmas[0].registered);
		assert_true(mm_set_is_empty(&h.vmas[0].marked));
		mm_vmas_free(h.vmas, h.nr);
	}
	close(pagemap);
}

static void test_private_mapping_is_reported_and_not_tracked(void **state)
{
	struct child *c = tracked(state);
	struct harvest h;
	long at;

	child_register(c, false);
	child_harvest(c, false, &h);
	assert_false(h.private_maps);
	assert_int_equal(h.nr, 1);
	mm_vmas_free(h.vmas, h.nr);
	at = child_call(c, do_mmap, 0, LEN(4), PROT_READ | PROT_WRITE, MAP_PRIVATE, c->file, 7);
	assert_true(at > 0);
	child_harvest(c, false, &h);
	assert_true(h.private_maps);
	assert_int_equal(h.nr, 1);
	assert_null(harvest_find(&h, at));
	mm_vmas_free(h.vmas, h.nr);
}

static void test_other_devices_are_not_shown(void **state)
{
	struct child *c = tracked(state);
	uint64_t devs[] = {0xfffff, 0xffffe};
	const struct harvest_request req = {.pid = c->pid, .devs = devs, .nr_devs = 2};
	struct harvest h;

	assert_int_equal(harvest_mm(&req, &h), 0);
	assert_int_equal(h.nr, 0);
	mm_vmas_free(h.vmas, h.nr);
}

/* ---- a program's own synchronous uffd ---- */

static void test_sync_uffd_is_seen_through_vmflags(void **state)
{
	struct child *c = tracked(state);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	_cleanup_set_ struct mm_set marks = {NULL};
	struct harvest h;
	long number = child_call(c, do_uffd, O_CLOEXEC, 0, 0, 0, 0, 0);

	c->uffd = proc_borrow_fd(c->pidfd, (int)number);
	assert_int_equal(ioctl(c->uffd, UFFDIO_API, &api), 0);
	assert_int_equal(uffd_register_wp(c->uffd, (uint64_t)AT(c, 100), (uint64_t)AT(c, 200)), 0);
	child_mark(c, 110, 20);
	child_harvest(c, true, &h);
	assert_int_equal(h.nr, 3);
	assert_false(h.vmas[0].registered || h.vmas[2].registered);
	assert_true(h.vmas[1].registered);
	assert_false(h.vmas[1].async);
	harvest_marks(&h, &marks);
	assert_int_equal(mm_set_count(&marks), 20);
	assert_int_equal(mm_set_count_range(&marks, 110, 20), 20);
	child_harvest(c, false, &h); /* nobody said that it has one: not registered, so dirty */
	assert_false(h.vmas[1].registered);
	mm_vmas_free(h.vmas, h.nr);
	/* un-protected, as its handler would */
	assert_int_equal(
		uffd_writeprotect(c->uffd, (uint64_t)AT(c, 115), (uint64_t)AT(c, 120), false), 0);
	child_harvest(c, true, &h);
	mm_set_clear(&marks);
	harvest_marks(&h, &marks);
	assert_int_equal(mm_set_count(&marks), 15);
}

/* The uffd itself is asked, and says what smaps does; nothing comes into the file by that. */
static void test_sync_uffd_is_asked(void **state)
{
	struct child *c = tracked(state);
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_MISSING_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED,
	};
	struct harvest_request req = {
		.pid = c->pid, .devs = &c->dev, .nr_devs = 1, .own_uffds = true, .uffd = &c->uffd};
	struct uffdio_register missing = {
		.range = {.start = (uint64_t)AT(c, 200), .len = LEN(100)},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct stat before, after;
	struct harvest smaps, asked;

	c->uffd = proc_borrow_fd(c->pidfd, (int)child_call(c, do_uffd, O_CLOEXEC, 0, 0, 0, 0, 0));
	assert_int_equal(ioctl(c->uffd, UFFDIO_API, &api), 0);
	assert_int_equal(uffd_is_registered_wp(c->uffd, (uint64_t)AT(c, 100)), 0);
	assert_int_equal(uffd_register_wp(c->uffd, (uint64_t)AT(c, 100), (uint64_t)AT(c, 200)), 0);
	assert_int_equal(ioctl(c->uffd, UFFDIO_REGISTER, &missing), 0);
	assert_int_equal(uffd_register_missing(c->uffd, (uint64_t)AT(c, 300), (uint64_t)AT(c, 400)),
			 0);
	child_mark(c, 110, 20);
	assert_int_equal(fstat(c->file, &before), 0);
	child_harvest(c, true, &smaps);
	assert_int_equal(harvest_mm(&req, &asked), 0);
	assert_int_equal(fstat(c->file, &after), 0);
	assert_int_equal(before.st_blocks, after.st_blocks);
	assert_int_equal(uffd_is_registered_wp(c->uffd, (uint64_t)AT(c, 199)), 1);
	assert_int_equal(uffd_is_registered_wp(c->uffd, (uint64_t)AT(c, 200)), 0);
	assert_int_equal(uffd_is_registered_wp(c->uffd, (uint64_t)AT(c, 399)), 1);
	assert_true(uffd_is_registered_wp(c->file, (uint64_t)AT(c, 399)) < 0);
	assert_int_equal(asked.nr, 5);
	assert_int_equal(smaps.nr, 5);
	for (size_t i = 0; i < 5; i++) {
		assert_int_equal(asked.vmas[i].start, smaps.vmas[i].start);
		assert_int_equal(asked.vmas[i].registered, smaps.vmas[i].registered);
		assert_int_equal(asked.vmas[i].registered, i == 1 || i == 3);
	}
	assert_int_equal(mm_set_count(&asked.vmas[1].marked), 20);
	mm_vmas_free(smaps.vmas, smaps.nr);
	mm_vmas_free(asked.vmas, asked.nr);
}

/* ---- maps that change under the harvest ---- */

static struct {
	struct child *c;
	int calls, upto; /* act in the first `upto` calls */
	long kind;
} hook;

enum { HOOK_UNMAP = 1, HOOK_REPLACE, HOOK_MPROTECT, HOOK_UNMAP_ALL, HOOK_MOVE };

static void change_maps(pid_t pid)
{
	struct child *c = hook.c;
	long at = AT(c, 500 + 10 * hook.calls), r = 0;

	assert_int_equal(pid, c->pid);
	if (hook.calls++ >= hook.upto)
		return;
	switch (hook.kind) {
	case HOOK_UNMAP:
		r = child_call(c, do_munmap, at, LEN(2), 0, 0, 0, 0);
		break;
	case HOOK_REPLACE: /* the same pages, but nobody watches them */
		r = child_call(c, do_mmap, at, LEN(2), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, c->file, (at - c->at) / LEN(1));
		break;
	case HOOK_MPROTECT:
		r = child_call(c, do_mprotect, at, LEN(2), PROT_READ, 0, 0, 0);
		break;
	case HOOK_UNMAP_ALL:
		r = child_call(c, do_munmap, c->at, BYTES, 0, 0, 0, 0);
		break;
	}
	assert_true(r >= 0);
}

static void hook_set(struct child *c, long kind, int upto)
{
	hook.c = c;
	hook.kind = kind;
	hook.calls = 0;
	hook.upto = upto;
	harvest_test_hook = change_maps;
}

static void test_unmapped_during_a_harvest(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};

	child_register(c, false);
	child_mark(c, 0, PAGES);
	mm_set_add_range(&marks, 0, PAGES);
	hook_set(c, HOOK_UNMAP, 2);
	mm_set_remove_range(&marks, 500, 2);
	mm_set_remove_range(&marks, 510, 2);
	child_expect(c, &marks);
	assert_int_equal(hook.calls, 3);
	hook_set(c, HOOK_UNMAP_ALL, 1);
	mm_set_clear(&marks);
	child_expect(c, &marks);
}

static void test_replaced_during_a_harvest(void **state)
{
	struct child *c = tracked(state);
	struct harvest h;

	child_register(c, false);
	child_mark(c, 0, PAGES);
	hook_set(c, HOOK_REPLACE, 1);
	child_harvest(c, false, &h);
	assert_int_equal(hook.calls, 2);
	assert_int_equal(h.nr, 3);
	assert_false(harvest_find(&h, AT(c, 501))->registered);
	assert_true(mm_set_is_empty(&harvest_find(&h, AT(c, 501))->marked));
	assert_int_equal(mm_set_count(&harvest_find(&h, c->at)->marked), 500);
	mm_vmas_free(h.vmas, h.nr);
}

static void test_split_during_a_harvest(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};

	child_register(c, false);
	mark_some(c, 31, &marks);
	hook_set(c, HOOK_MPROTECT, HARVEST_TRIES - 1);
	child_expect(c, &marks); /* the last try agrees */
	assert_int_equal(hook.calls, HARVEST_TRIES);
}

/* Never two readings that agree: what still differs is given as not registered, the rest exactly.
 */
static void test_maps_that_never_agree(void **state)
{
	struct child *c = tracked(state);
	struct harvest h;
	long other;

	for (long kind = HOOK_UNMAP; kind <= HOOK_MPROTECT; kind++) {
		uint64_t tail = (uint64_t)AT(c, 500 + 10 * (HARVEST_TRIES - 2) + 2);

		if (kind != HOOK_UNMAP) {
			child_teardown(state);
			child_setup(state);
			c = *state;
			tail = (uint64_t)AT(c, 500 + 10 * (HARVEST_TRIES - 2) + 2);
		}
		child_register(c, false);
		child_mark(c, 0, PAGES);
		other = child_call(c, do_mmap, 0, LEN(8), PROT_READ, MAP_SHARED, c->file, 0);
		assert_int_equal(
			uffd_register_wp(c->uffd, (uint64_t)other, (uint64_t)(other + LEN(8))), 0);
		assert_int_equal(uffd_writeprotect(c->uffd, (uint64_t)other,
						   (uint64_t)(other + LEN(8)), true),
				 0);
		hook_set(c, kind, HARVEST_TRIES);
		child_harvest(c, false, &h);
		assert_int_equal(hook.calls, HARVEST_TRIES);
		assert_true(harvest_find(&h, other)->registered);
		assert_int_equal(mm_set_count(&harvest_find(&h, other)->marked), 8);
		assert_int_equal(mm_set_count(&harvest_find(&h, c->at)->marked), 500);
		/* the piece that the last change cut */
		assert_int_equal(harvest_find(&h, (long)tail)->start, tail);
		assert_false(harvest_find(&h, (long)tail)->registered);
		assert_true(mm_set_is_empty(&harvest_find(&h, (long)tail)->marked));
		mm_vmas_free(h.vmas, h.nr);
	}
}

static void kill_it(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	harvest_test_hook = NULL;
}

static void test_gone_during_a_harvest(void **state)
{
	struct child *c = tracked(state);
	const struct harvest_request req = {.pid = c->pid, .devs = &c->dev, .nr_devs = 1};
	struct harvest h;

	child_register(c, false);
	harvest_test_hook = kill_it;
	assert_int_equal(harvest_mm(&req, &h), -ESRCH);
	assert_int_equal(h.nr, 0);
	assert_int_equal(harvest_mm(&req, &h), -ESRCH);
	assert_null(h.vmas);
}

#define T(name) cmocka_unit_test_setup_teardown(name, child_setup, child_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_marks_are_exact_after_random_stores),
		T(test_marks_survive_zaps_and_protection),
		T(test_marks_move_with_mremap),
		T(test_stale_bits_are_no_marks),
		T(test_private_mapping_is_reported_and_not_tracked),
		T(test_other_devices_are_not_shown),
		T(test_sync_uffd_is_seen_through_vmflags),
		T(test_sync_uffd_is_asked),
		T(test_unmapped_during_a_harvest),
		T(test_replaced_during_a_harvest),
		T(test_split_during_a_harvest),
		T(test_maps_that_never_agree),
		T(test_gone_during_a_harvest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
