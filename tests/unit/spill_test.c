/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The page store on both of its ways, the spilled bits, and every row of the fault table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compat.h"
#include "base/units.h"
#include "spill/bits.h"
#include "spill/fault.h"
#include "spill/store.h"

#define PAGES	  512
#define PUT_PAGES 64

static char dir_path[64];
static int dir_fd = -1;

static int dir_setup(void **state)
{
	strcpy(dir_path, "/var/tmp/wpfs-spill-XXXXXX");
	if (!mkdtemp(dir_path))
		return -1;
	dir_fd = open(dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir_fd < 0 ? -1 : 0;
}

static int dir_teardown(void **state)
{
	char cmd[128];

	spill_io_test_fail = NULL;
	close(dir_fd);
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir_path);
	return system(cmd) == 0 ? 0 : -1;
}

static char *pages_new(unsigned seed)
{
	char *pages = mmap(NULL, PAGES * WPFS_PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(pages, MAP_FAILED);
	for (size_t i = 0; seed && i < PAGES * WPFS_PAGE_SIZE; i++)
		pages[i] = (char)((seed = seed * 1103515245 + 12345) >> 16);
	return pages;
}

/* The store and an engine of it. */
struct fixture {
	struct spill_store *store;
	struct spill_io *io;
};

static struct fixture fixture_new(enum spill_path want)
{
	struct fixture f;

	assert_int_equal(spill_store_open(dir_fd, want, &f.store), 0);
	assert_int_equal(spill_store_engine(f.store, PAGES * WPFS_PAGE_SIZE, &f.io), 0);
	assert_int_equal(spill_io_path(f.io), want);
	return f;
}

static void fixture_free(struct fixture *f)
{
	spill_io_free(f->io);
	spill_store_close(f->store);
}

static int pages_write(struct fixture *f, uint64_t id, const struct spill_run *runs, size_t nr)
{
	int fd = spill_store_file(f->store, id, true), r;

	assert_true(fd >= 0);
	r = spill_store_write(f->io, fd, runs, nr);
	close(fd);
	return r;
}

static int pages_read(struct fixture *f, uint64_t id, const struct spill_run *runs, size_t nr)
{
	int fd = spill_store_file(f->store, id, false), r;

	if (fd < 0)
		return fd;
	r = spill_store_read(f->io, fd, runs, nr);
	close(fd);
	return r;
}

/* Writes scattered runs, reads them back in another order, and sees which way it went. */
static void store_round(enum spill_path want)
{
	const struct spill_run out[] = {{3, 200, NULL}, {1000, 1, NULL}, {70000, 65, NULL}};
	struct spill_run runs[3];
	struct fixture f = fixture_new(want);
	struct spill_stats *stats = spill_store_stats(f.store);
	char *wrote = pages_new(7), *got = pages_new(0);
	struct stat st;

	memcpy(runs, out, sizeof(runs));
	runs[0].buf = wrote;
	runs[1].buf = wrote + 200 * WPFS_PAGE_SIZE;
	runs[2].buf = wrote + 201 * WPFS_PAGE_SIZE;
	assert_int_equal(pages_write(&f, 0x1234, runs, 3), 0);
	runs[2] = (struct spill_run){3, 200, got};
	runs[1].buf = got + 200 * WPFS_PAGE_SIZE;
	runs[0] = (struct spill_run){70000, 65, got + 201 * WPFS_PAGE_SIZE};
	assert_int_equal(pages_read(&f, 0x1234, runs, 3), 0);
	assert_memory_equal(wrote, got, 266 * WPFS_PAGE_SIZE);

	if (want == SPILL_PATH_URING) {
		assert_int_equal(stats->uring, 3 + 3);
		assert_int_equal(stats->sync, 0);
		assert_int_equal(stats->fixed, 0);
		/* The same from the registered buffer. */
		memcpy(spill_io_buf(f.io), wrote, 200 * WPFS_PAGE_SIZE);
		runs[2].buf = spill_io_buf(f.io);
		assert_int_equal(pages_write(&f, 0x1234, &runs[2], 1), 0);
		assert_int_equal(stats->fixed, 1);
		assert_true(stats->depth_max > 1);
	} else {
		assert_int_equal(stats->sync, 3 + 3);
		assert_int_equal(stats->uring, 0);
		assert_int_equal(stats->depth_max, 1);
	}
	assert_int_equal(stats->depth, 0);
	assert_int_equal(fstatat(dir_fd, "34/4660", &st, 0), 0);
	assert_true(st.st_blocks * 512 <= 300 * (long)WPFS_PAGE_SIZE); /* sparse */
	assert_int_equal(spill_store_remove(f.store, 0x1234), 0);
	assert_int_equal(spill_store_remove(f.store, 0x1234), 0);
	assert_int_equal(fstatat(dir_fd, "34/4660", &st, 0), -1);
	assert_int_equal(pages_read(&f, 0x1234, runs, 3), -ENOENT);
	fixture_free(&f);
	munmap(wrote, PAGES * WPFS_PAGE_SIZE);
	munmap(got, PAGES * WPFS_PAGE_SIZE);
}

static void test_store_uring(void **state)
{
	store_round(SPILL_PATH_URING);
}

static void test_store_sync(void **state)
{
	store_round(SPILL_PATH_SYNC);
}

/* Several writes under way at once, more pieces than fit; one that fails does no harm to others. */
static void jobs_round(enum spill_path want)
{
	struct fixture f = fixture_new(want);
	char *wrote = pages_new(11), *got = pages_new(0);
	int fd = spill_store_file(f.store, 77, true), ro = openat(dir_fd, ".", O_RDONLY);
	struct spill_run runs[3][100], bad = {0, 1, wrote};
	struct spill_job jobs[4];
	struct stat st;

	spill_store_reserve(fd, 4096);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 4096 * WPFS_PAGE_SIZE);
	assert_int_equal(st.st_blocks, 0);
	for (size_t j = 0; j < 3; j++) {
		for (size_t i = 0; i < 100; i++) /* every other page: each a piece of its own */
			runs[j][i] = (struct spill_run){j * 200 + i * 2, 1,
							wrote + (j * 100 + i) * WPFS_PAGE_SIZE};
		assert_int_equal(spill_store_begin(f.io, &jobs[j], fd, true, runs[j], 100), 0);
		if (j == 0)
			assert_int_equal(spill_store_begin(f.io, &jobs[3], ro, true, &bad, 1), 0);
	}
	assert_int_equal(spill_store_end(f.io, &jobs[2], runs[2], 100), 0);
	assert_true(spill_store_end(f.io, &jobs[3], &bad, 1) < 0);
	assert_int_equal(spill_store_end(f.io, &jobs[0], runs[0], 100), 0);
	assert_int_equal(spill_store_end(f.io, &jobs[1], runs[1], 100), 0);
	assert_int_equal(spill_store_stats(f.store)->depth, 0);
	for (size_t j = 0; j < 3; j++) {
		for (size_t i = 0; i < 100; i++)
			runs[j][i].buf = got + (j * 100 + i) * WPFS_PAGE_SIZE;
		assert_int_equal(spill_store_read(f.io, fd, runs[j], 100), 0);
	}
	assert_memory_equal(wrote, got, 300 * WPFS_PAGE_SIZE);
	close(ro);
	close(fd);
	assert_int_equal(spill_store_remove(f.store, 77), 0);
	fixture_free(&f);
	munmap(wrote, PAGES * WPFS_PAGE_SIZE);
	munmap(got, PAGES * WPFS_PAGE_SIZE);
}

static void test_jobs(void **state)
{
	jobs_round(SPILL_PATH_URING);
	jobs_round(SPILL_PATH_SYNC);
}

/* A kernel that refuses io_uring, as a container's seccomp filter does, with the given errno. */
static void refuse_uring(int err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {sizeof(code) / sizeof(code[0]), code};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static void test_io_refused(void **state)
{
	const int errs[] = {ENOSYS, EPERM};

	for (size_t i = 0; i < 2; i++) {
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			struct spill_stats stats = {0};
			struct spill_io *io = NULL;

			refuse_uring(errs[i]);
			if (spill_io_new(SPILL_PATH_URING, 0, &stats, &io) != 0)
				_exit(1);
			_exit(spill_io_path(io) == SPILL_PATH_SYNC ? 0 : 2);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static uint64_t fail_off;
static int fail_with;

static int fail_at(bool write, uint64_t off)
{
	return off == fail_off ? fail_with : 0;
}

/* An error in the middle is reported as it is; the store goes on working. */
static void store_fails(enum spill_path want)
{
	struct fixture f = fixture_new(want);
	char *pages = pages_new(3);
	struct spill_run run = {0, PAGES, pages};

	spill_io_test_fail = fail_at;
	fail_off = 256 * WPFS_PAGE_SIZE;
	fail_with = -ENOSPC;
	assert_int_equal(pages_write(&f, 5, &run, 1), -ENOSPC);
	fail_with = 0;
	assert_int_equal(pages_write(&f, 5, &run, 1), 0);
	fail_with = -EIO;
	assert_int_equal(pages_read(&f, 5, &run, 1), -EIO);
	spill_io_test_fail = NULL;
	/* Behind the end: a page that was never stored is not silently zeros. */
	run.first = 100000;
	assert_int_equal(pages_read(&f, 5, &run, 1), -ENODATA);
	run.first = 0;
	assert_int_equal(pages_read(&f, 5, &run, 1), 0);
	fixture_free(&f);
	munmap(pages, PAGES * WPFS_PAGE_SIZE);
}

static void test_store_fails(void **state)
{
	store_fails(SPILL_PATH_URING);
	store_fails(SPILL_PATH_SYNC);
}

/* A real error of the kernel, not of the seam. */
static void test_io_kernel_error(void **state)
{
	for (int want = SPILL_PATH_URING; want <= SPILL_PATH_SYNC; want++) {
		struct spill_stats stats = {0};
		struct spill_io *io;
		char *pages = pages_new(9);
		int fd = openat(dir_fd, "ro", O_CREAT | O_RDONLY | O_CLOEXEC, 0600);
		struct spill_seg seg = {pages, 0, 4096};

		assert_int_equal(spill_io_new((enum spill_path)want, 0, &stats, &io), 0);
		assert_int_equal(spill_io_write(io, fd, &seg, 1), -EBADF);
		spill_io_free(io);
		close(fd);
		munmap(pages, PAGES * WPFS_PAGE_SIZE);
	}
}

/* What a thread looks at while another one puts pages there. */
struct looking {
	int fd;
	_Atomic unsigned round; /* odd: nothing but puts happens */
	_Atomic bool end;
	_Atomic unsigned looks;
	unsigned zeros;
};

static bool is_there(int fd, uint64_t off)
{
	struct cachestat_range range = {off, WPFS_PAGE_SIZE};
	struct cachestat stat;

	return syscall(SYS_cachestat, fd, &range, &stat, 0) == 0 && stat.nr_cache;
}

static void *look_main(void *arg)
{
	struct looking *l = arg;

	for (uint64_t i = 0; !l->end; i++) {
		uint64_t off = i % PUT_PAGES * WPFS_PAGE_SIZE;
		unsigned round = l->round;
		char byte = 1;

		if (round % 2 == 0 || !is_there(l->fd, off) ||
		    pread(l->fd, &byte, 1, (off_t)off) != 1 || round != l->round)
			continue;
		l->looks++;
		l->zeros += byte == 0;
	}
	return NULL;
}

/* A page is never seen without its contents, though what is put there is not in memory at first. */
static void put_round(enum spill_path want)
{
	const size_t len = PUT_PAGES * WPFS_PAGE_SIZE;
	struct looking l = {.fd = memfd_create("to", MFD_CLOEXEC)};
	int from = memfd_create("from", MFD_CLOEXEC);
	struct fixture f = fixture_new(want);
	char *pages = malloc(len), *got = malloc(len);
	pthread_t thread;

	memset(pages, 0x55, len);
	assert_int_equal(pwrite(from, pages, len, 0), len);
	assert_int_equal(ftruncate(l.fd, (off_t)len), 0);
	assert_int_equal(pthread_create(&thread, NULL, look_main, &l), 0);
	for (unsigned i = 0; i < 500 || !l.looks; i++) {
		char *absent = mmap(NULL, len, PROT_READ, MAP_PRIVATE, from, 0);

		assert_ptr_not_equal(absent, MAP_FAILED);
		l.round++;
		assert_int_equal(spill_io_put(f.io, l.fd, absent, len, 0), 0);
		l.round++;
		assert_int_equal(pread(l.fd, got, len, 0), len);
		assert_memory_equal(got, pages, len);
		assert_int_equal(
			fallocate(l.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)len),
			0);
		munmap(absent, len);
	}
	l.end = true;
	pthread_join(thread, NULL);
	assert_int_equal(l.zeros, 0);
	/* Behind a failure it goes on. */
	assert_int_equal(spill_io_put(f.io, dir_fd, pages, len, 0), -EBADF);
	assert_int_equal(spill_io_put(f.io, l.fd, pages, 10, WPFS_PAGE_SIZE), 0);
	assert_int_equal(pread(l.fd, got, 20, WPFS_PAGE_SIZE), 20);
	assert_memory_equal(got, "\x55\x55\x55\x55\x55\x55\x55\x55\x55\x55\0\0\0\0\0\0\0\0\0\0",
			    20);
	fixture_free(&f);
	free(pages);
	free(got);
	close(from);
	close(l.fd);
}

/* From the ring's own buffer and from elsewhere, in the middle of a file. */
static void test_put_where_it_belongs(void **state)
{
	static const enum spill_path paths[] = {SPILL_PATH_URING, SPILL_PATH_SYNC};

	for (size_t i = 0; i < 4; i++) {
		struct fixture f = fixture_new(paths[i / 2]);
		char elsewhere[] = "elsewhere", got[sizeof(elsewhere)];
		char *from = i % 2 ? elsewhere : spill_io_buf(f.io);
		int fd = memfd_create("to", MFD_CLOEXEC);

		assert_non_null(from);
		memcpy(from, "elsewhere", sizeof(elsewhere));
		assert_int_equal(ftruncate(fd, 2 * WPFS_PAGE_SIZE), 0);
		assert_int_equal(fcntl(fd, F_SETFL, O_APPEND), 0);
		assert_int_equal(spill_io_put(f.io, fd, from, sizeof(elsewhere), 100), 0);
		assert_int_equal(pread(fd, got, sizeof(got), 100), sizeof(got));
		assert_string_equal(got, "elsewhere");
		assert_int_equal(lseek(fd, 0, SEEK_END), 2 * WPFS_PAGE_SIZE);
		close(fd);
		fixture_free(&f);
	}
}

static void test_put(void **state)
{
	put_round(SPILL_PATH_URING);
	put_round(SPILL_PATH_SYNC);
}

static void test_store_wipe(void **state)
{
	struct fixture f = fixture_new(SPILL_PATH_URING);
	char *pages = pages_new(1);
	struct spill_run run = {0, 1, pages};

	for (uint64_t id = 1; id < 600; id += 7)
		assert_int_equal(pages_write(&f, id, &run, 1), 0);
	assert_int_equal(spill_store_wipe(f.store), 0);
	for (uint64_t id = 1; id < 600; id += 7)
		assert_int_equal(pages_read(&f, id, &run, 1), -ENOENT);
	fixture_free(&f);
	munmap(pages, PAGES * WPFS_PAGE_SIZE);
}

static void test_bits(void **state)
{
	struct spill_bits bits;
	uint64_t n = 0;

	assert_int_equal(spill_bits_open(&bits, dir_fd, "b", false), -ENOENT);
	assert_int_equal(spill_bits_open(&bits, dir_fd, "b", true), 0);
	assert_false(spill_bits_test(&bits, 0));
	assert_true(spill_bits_next(&bits, 0) == UINT64_MAX);
	assert_int_equal(spill_bits_reserve(&bits, 100), 0);
	spill_bits_set(&bits, 0);
	spill_bits_set(&bits, 63);
	spill_bits_set(&bits, 64);
	spill_bits_set(&bits, 64);
	/* Growing keeps what is there; the mapping may move. */
	assert_int_equal(spill_bits_reserve(&bits, 5000000), 0);
	spill_bits_set(&bits, 4999999);
	assert_int_equal(bits.count, 4);
	assert_true(spill_bits_next(&bits, 1) == 63);
	assert_true(spill_bits_next(&bits, 65) == 4999999);
	assert_true(spill_bits_next(&bits, 5000000) == UINT64_MAX);
	spill_bits_close(&bits);

	/* What a killed daemon left is what the next one finds. */
	assert_int_equal(spill_bits_open(&bits, dir_fd, "b", false), 0);
	assert_int_equal(bits.count, 4);
	spill_bits_clear_range(&bits, 63, 2);
	assert_int_equal(bits.count, 2);
	for (uint64_t p = spill_bits_next(&bits, 0); p != UINT64_MAX;
	     p = spill_bits_next(&bits, p + 1))
		n++;
	assert_int_equal(n, 2);
	spill_bits_clear_range(&bits, 0, UINT64_MAX);
	assert_int_equal(bits.count, 0);
	spill_bits_close(&bits);
}

static void test_zero(void **state)
{
	char *page = pages_new(0);

	assert_true(spill_is_zero(page, WPFS_PAGE_SIZE));
	for (size_t i = 0; i < WPFS_PAGE_SIZE; i += 61) {
		page[i] = 1;
		assert_false(spill_is_zero(page, WPFS_PAGE_SIZE));
		page[i] = 0;
	}
	page[WPFS_PAGE_SIZE - 1] = (char)0x80;
	assert_false(spill_is_zero(page, WPFS_PAGE_SIZE));
	munmap(page, PAGES * WPFS_PAGE_SIZE);
}

static void test_fault_table(void **state)
{
	static const struct {
		enum fault_kind kind;
		enum fault_residency residency;
		enum fault_action action;
	} rows[] = {
		{FAULT_MISSING, FAULT_RESIDENT, FAULT_WAKE},
		{FAULT_MISSING, FAULT_ABSENT, FAULT_ZERO},
		{FAULT_MISSING, FAULT_SPILLED, FAULT_LOAD},
		{FAULT_WP, FAULT_RESIDENT, FAULT_UNPROTECT},
		{FAULT_WP, FAULT_ABSENT, FAULT_WAKE},
		{FAULT_WP, FAULT_SPILLED, FAULT_WAKE},
	};

	assert_int_equal(sizeof(rows) / sizeof(rows[0]), FAULT_NR_KINDS * FAULT_NR_RESIDENCIES);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_int_equal(fault_decide(rows[i].kind, rows[i].residency, false),
				 rows[i].action);
		/* Nothing at all is done to a page under a fence. */
		assert_int_equal(fault_decide(rows[i].kind, rows[i].residency, true), FAULT_HOLD);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_store_uring), cmocka_unit_test(test_store_sync),
		cmocka_unit_test(test_jobs),	    cmocka_unit_test(test_io_refused),
		cmocka_unit_test(test_store_fails), cmocka_unit_test(test_io_kernel_error),
		cmocka_unit_test(test_store_wipe),  cmocka_unit_test(test_bits),
		cmocka_unit_test(test_zero),	    cmocka_unit_test(test_fault_table),
		cmocka_unit_test(test_put),	    cmocka_unit_test(test_put_where_it_belongs),
	};

	return cmocka_run_group_tests(tests, dir_setup, dir_teardown);
}
