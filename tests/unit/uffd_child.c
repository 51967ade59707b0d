/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd_child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compat.h"
#include "uffd/proc.h"
#include "uffd/uffd.h"

struct order {
	child_fn fn;
	long arg[6];
};

const char *child_unfit(void)
{
	if (geteuid() != 0)
		return "not root";
	if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
		return "no /dev/userfaultfd (Linux 6.1, CONFIG_USERFAULTFD)";
	return NULL;
}

static void __attribute__((noreturn)) child_main(int sock)
{
	struct order o;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (recv(sock, &o, sizeof(o), 0) == sizeof(o)) {
		long result = o.fn(o.arg[0], o.arg[1], o.arg[2], o.arg[3], o.arg[4], o.arg[5]);

		if (send(sock, &result, sizeof(result), MSG_NOSIGNAL) != sizeof(result))
			break;
	}
	_exit(0);
}

int child_setup(void **state)
{
	struct child *c = calloc(1, sizeof(*c));
	int sock[2];
	struct stat st;

	if (child_unfit()) {
		free(c);
		*state = NULL;
		return 0;
	}
	assert_non_null(c);
	c->uffd = -1;
	c->file = memfd_create("uffd_test", MFD_CLOEXEC);
	assert_true(c->file >= 0);
	assert_int_equal(ftruncate(c->file, BYTES), 0);
	assert_int_equal(fstat(c->file, &st), 0);
	c->dev = st.st_dev;
	c->ino = st.st_ino;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	c->pid = fork();
	assert_true(c->pid >= 0);
	if (c->pid == 0)
		child_main(sock[1]);
	close(sock[1]);
	c->sock = sock[0];
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	assert_true(c->pidfd >= 0);
	/* only now, so that the child does not inherit it */
	c->seen = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, c->file, 0);
	assert_true(c->seen != MAP_FAILED);
	c->at = child_call(c, do_mmap, 0, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, c->file, 0);
	assert_true(c->at > 0);
	*state = c;
	return 0;
}

int child_teardown(void **state)
{
	struct child *c = *state;

	harvest_test_hook = NULL;
	if (!c)
		return 0;
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
	close(c->sock);
	close(c->pidfd);
	close(c->file);
	if (c->uffd >= 0)
		close(c->uffd);
	munmap((void *)c->seen, BYTES);
	free(c);
	return 0;
}

void child_start(struct child *c, child_fn fn, long a, long b)
{
	struct order o = {.fn = fn, .arg = {a, b}};

	assert_int_equal(send(c->sock, &o, sizeof(o), MSG_NOSIGNAL), sizeof(o));
}

long child_wait(struct child *c)
{
	long result;

	assert_int_equal(recv(c->sock, &result, sizeof(result), 0), sizeof(result));
	return result;
}

long child_call(struct child *c, child_fn fn, long a, long b, long d, long e, long f, long g)
{
	struct order o = {.fn = fn, .arg = {a, b, d, e, f, g}};

	assert_int_equal(send(c->sock, &o, sizeof(o), MSG_NOSIGNAL), sizeof(o));
	return child_wait(c);
}

/* ---- functions for the child ---- */

static long result_of(long r)
{
	return r == -1 ? -errno : r;
}

long do_mmap(long at, long len, long prot, long flags, long fd, long pgoff)
{
	return result_of((long)mmap((void *)at, (size_t)len, (int)prot, (int)flags, (int)fd,
				    pgoff << WPFS_PAGE_SHIFT));
}

long do_munmap(long at, long len, long c, long d, long e, long f)
{
	return result_of(munmap((void *)at, (size_t)len));
}

long do_mprotect(long at, long len, long prot, long d, long e, long f)
{
	return result_of(mprotect((void *)at, (size_t)len, (int)prot));
}

long do_madvise(long at, long len, long advice, long d, long e, long f)
{
	return result_of(madvise((void *)at, (size_t)len, (int)advice));
}

long do_mremap(long at, long len, long new_len, long flags, long to, long f)
{
	return result_of(
		(long)mremap((void *)at, (size_t)len, (size_t)new_len, (int)flags, (void *)to));
}

long do_store(long at, long stride, long n, long d, long e, long f)
{
	for (long i = 0; i < n; i++)
		++*(volatile uint64_t *)(at + i * stride * (long)WPFS_PAGE_SIZE);
	return 0;
}

long do_load(long at, long len, long c, long d, long e, long f)
{
	long sum = 0;

	for (long i = 0; i < len; i += (long)WPFS_PAGE_SIZE)
		sum += *(volatile char *)(at + i);
	return sum;
}

long do_close(long fd, long b, long c, long d, long e, long f)
{
	return result_of(close((int)fd));
}

long do_uffd(long flags, long b, long c, long d, long e, long f)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	long fd = dev < 0 ? -errno : result_of(ioctl(dev, USERFAULTFD_IOC_NEW, flags));

	if (dev >= 0)
		close(dev);
	return fd;
}

/* ---- marks ---- */

void child_register(struct child *c, bool events)
{
	c->uffd_in_child = (int)child_call(c, do_uffd, O_CLOEXEC, 0, 0, 0, 0, 0);
	assert_true(c->uffd_in_child >= 0);
	c->uffd = proc_borrow_fd(c->pidfd, c->uffd_in_child);
	assert_true(c->uffd >= 0);
	assert_true(uffd_is_uffd(c->uffd));
	assert_int_equal(uffd_init_async(c->uffd, events), 0);
	assert_int_equal(uffd_register_wp(c->uffd, (uint64_t)c->at, (uint64_t)c->at + BYTES), 0);
}

void child_mark(struct child *c, uint64_t first, uint64_t nr)
{
	uint64_t start = (uint64_t)c->at + (first << WPFS_PAGE_SHIFT);

	assert_int_equal(uffd_writeprotect(c->uffd, start, start + (nr << WPFS_PAGE_SHIFT), true),
			 0);
}

void child_harvest(struct child *c, bool own_uffds, struct harvest *h)
{
	const struct harvest_request req = {
		.pid = c->pid, .devs = &c->dev, .nr_devs = 1, .own_uffds = own_uffds};

	assert_int_equal(harvest_mm(&req, h), 0);
	for (size_t i = 0; i < h->nr; i++)
		assert_int_equal(h->vmas[i].file, c->ino);
}

struct mm_vma *harvest_find(struct harvest *h, long at)
{
	for (size_t i = 0; i < h->nr; i++) {
		if (h->vmas[i].start <= (uint64_t)at && (uint64_t)at < h->vmas[i].end)
			return &h->vmas[i];
	}
	return NULL;
}

void harvest_marks(struct harvest *h, struct mm_set *marks)
{
	for (size_t i = 0; i < h->nr; i++) {
		_cleanup_set_ struct mm_set shifted = {NULL};

		assert_int_equal(
			mm_set_shift(&shifted, &h->vmas[i].marked, (int64_t)h->vmas[i].pgoff), 0);
		assert_int_equal(mm_set_or(marks, &shifted), 0);
	}
	mm_vmas_free(h->vmas, h->nr);
	*h = (struct harvest){0};
}

void child_expect(struct child *c, const struct mm_set *expected)
{
	_cleanup_set_ struct mm_set marks = {NULL};
	struct harvest h;

	child_harvest(c, false, &h);
	harvest_marks(&h, &marks);
	for (uint64_t page = 0; page < PAGES; page++) {
		bool is = mm_set_contains(&marks, page);

		if (is != mm_set_contains(expected, page))
			fail_msg("page %llu is %smarked", (unsigned long long)page,
				 is ? "" : "not ");
	}
	assert_true(mm_set_is_equal(&marks, expected));
}

uint32_t test_rng(uint64_t *state, uint32_t below)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (uint32_t)(*state >> 24) % below;
}
