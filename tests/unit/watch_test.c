/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of wpfs_watch against threads that store, watch, stop watching and close its
 * descriptor. The library itself cannot be sanitized, as a witness runs in it; here its source
 * stands alone, over the kernel's userfaultfd without a shim.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compat.h"
#include "lib/watch.h"
#include "wpfs.h"

#define PAGE   4096
#define PAGES  32
#define ROUNDS 300

static _Atomic int last_uffd = -1;
static _Atomic unsigned called[PAGES];
static _Atomic bool stop;
static char *mapping;

int lib_fail(int err, const char *what, const char *fmt, ...)
{
	return err;
}

int lib_fail_errno(int err, const char *what)
{
	return err;
}

static int new_uffd(int mount)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	close(dev);
	last_uffd = fd;
	return fd < 0 ? -EPERM : fd;
}

static long uffd_register_plain(int fd, void *arg)
{
	return ioctl(fd, UFFDIO_REGISTER, arg) < 0 ? -errno : 0;
}

static long uffd_unregister_plain(int fd, void *arg)
{
	return ioctl(fd, UFFDIO_UNREGISTER, arg) < 0 ? -errno : 0;
}

static bool covers(int mount, uint64_t addr, uint64_t len)
{
	return true;
}

static const struct core plain = {
	.covers = covers,
	.new_uffd = new_uffd,
	.uffd_register = uffd_register_plain,
	.uffd_unregister = uffd_unregister_plain,
};

static void before_write(void *page, void *arg)
{
	called[((char *)page - mapping) / PAGE]++;
}

static void *writer(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!stop) {
		seed = seed * 1103515245 + 12345;
		__atomic_fetch_add(&mapping[(seed >> 16) % PAGES * PAGE], 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void fork_once(void)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_against_threads(void **state)
{
	struct wpfs handle = {.core = &plain};
	int fd = memfd_create("watch", MFD_CLOEXEC);
	pthread_t threads[2];

	assert_true(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0);
	mapping = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(mapping, MAP_FAILED);
	for (uintptr_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, writer, (void *)(i + 1)), 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		unsigned page = i % PAGES, before;

		/* Whoever stores first after this, it is called for. */
		before = called[page];
		assert_int_equal(wpfs_watch(&handle, mapping, PAGES * PAGE, 0, before_write, NULL),
				 0);
		__atomic_fetch_add(&mapping[page * PAGE], 1, __ATOMIC_RELAXED);
		assert_true(called[page] > before);
		if (i % 5 == 0)
			assert_int_equal(wpfs_unwatch(&handle, mapping, PAGES / 2 * PAGE), 0);
		if (i % 50 == 7) { /* behind its back, TSan's too */
			assert_int_equal(wpfs_unwatch(&handle, mapping, PAGES * PAGE), 0);
			syscall(SYS_close, last_uffd);
		}
		if (i % 100 == 9)
			fork_once();
	}
	watch_end_all(&handle);
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	munmap(mapping, PAGES * PAGE);
	close(fd);
}

/* Watched again to go on where it was: what was called for stays so, the rest is as new. */
static void test_called_is_kept(void **state)
{
	const struct watch like = {0};
	struct watch *old = watch_new(2 * PAGE, 8 * PAGE, &like),
		     *w = watch_new(0, 6 * PAGE, &like);

	watch_set_called(old, 3 * PAGE);
	watch_set_called(old, 7 * PAGE);
	watch_append(old);
	watch_keep_called(w);
	for (uint64_t page = 0; page < 6; page++)
		assert_int_equal(watch_test_called(w, page * PAGE), page == 3);
	assert_int_equal(watch_cut(w->start, w->end), 0);
	watch_append(w);
	assert_true(watch_test_called(watch_at(7 * PAGE), 7 * PAGE));
	assert_false(watch_test_called(watch_at(6 * PAGE), 6 * PAGE));
	watch_table_forget();
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_called_is_kept),
					   cmocka_unit_test(test_against_threads)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
