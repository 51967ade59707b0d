/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * uffd.h, proc.h and maps.h against the kernel, with their errors. Needs root and
 * /dev/userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
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

/* A second uffd of the child, not initialised. */
static int another_uffd(struct child *c)
{
	long number = child_call(c, do_uffd, O_CLOEXEC, 0, 0, 0, 0, 0);
	int fd = proc_borrow_fd(c->pidfd, (int)number);

	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	return fd;
}

static long do_open_again(long fd, long flags, long c, long d, long e, long f)
{
	char path[64];
	int r;

	snprintf(path, sizeof(path), "/proc/self/fd/%ld", fd);
	r = open(path, (int)flags | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

/* ---- uffd ---- */

static void test_only_a_uffd_is_one(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int uffd = another_uffd(c);
	int pipes[2];

	assert_true(uffd_is_uffd(uffd));
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_false(uffd_is_uffd(pipes[0]));
	assert_false(uffd_is_uffd(c->file));
	assert_false(uffd_is_uffd(c->pidfd));
	assert_false(uffd_is_uffd(-1));
	close(pipes[0]);
	close(pipes[1]);
	assert_false(uffd_is_uffd(pipes[0]));
}

static void test_init_is_done_once(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int uffd = another_uffd(c);

	assert_int_equal(uffd_init_async(uffd, true), 0);
	assert_true(uffd_init_async(uffd, true) < 0);
	assert_int_equal(uffd_register_wp(uffd, (uint64_t)c->at, (uint64_t)AT(c, 1)), 0);
}

static void test_register_errors(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int raw = another_uffd(c), other = another_uffd(c);
	uint64_t at = (uint64_t)c->at;
	long hole, sealed, fd;

	child_register(c, false);
	assert_int_equal(uffd_register_wp(raw, at, at + 4096), -EINVAL); /* no API call yet */
	assert_int_equal(uffd_init_async(other, false), 0);
	assert_int_equal(uffd_register_wp(other, at, at + 4096), -EBUSY);
	assert_int_equal(uffd_register_wp(c->uffd, at, at + BYTES), 0); /* again */
	hole = child_call(c, do_mmap, 0, LEN(4), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(child_call(c, do_munmap, hole, LEN(4), 0, 0, 0, 0), 0);
	assert_int_equal(uffd_register_wp(other, (uint64_t)hole, (uint64_t)hole + 4096), -EINVAL);
	assert_int_equal(uffd_register_wp(other, at + 1, at + 4097), -EINVAL);
	/* writable never: only such a mapping gives EPERM */
	fd = child_call(c, do_open_again, c->file, O_RDONLY, 0, 0, 0, 0);
	assert_true(fd >= 0);
	sealed = child_call(c, do_mmap, 0, LEN(4), PROT_READ, MAP_SHARED, fd, 0);
	assert_true(sealed > 0);
	assert_int_equal(uffd_register_wp(other, (uint64_t)sealed, (uint64_t)sealed + 4096),
			 -EPERM);
	assert_int_equal(child_call(c, do_mprotect, sealed, 4096, PROT_READ | PROT_WRITE, 0, 0, 0),
			 -EACCES);
	/* read-only now, but it could become writable */
	sealed = child_call(c, do_mmap, 0, LEN(4), PROT_READ, MAP_SHARED, c->file, 0);
	assert_int_equal(uffd_register_wp(other, (uint64_t)sealed, (uint64_t)sealed + 4096), 0);
}

static void test_writeprotect_and_unregister(void **state)
{
	struct child *c = tracked(state);
	_cleanup_set_ struct mm_set marks = {NULL};
	uint64_t at = (uint64_t)c->at;

	child_register(c, false);
	child_mark(c, 10, 30);
	assert_int_equal(mm_set_add_range(&marks, 10, 30), 0);
	child_expect(c, &marks);
	assert_int_equal(uffd_writeprotect(c->uffd, at + 4096 * 15, at + 4096 * 20, false), 0);
	mm_set_remove_range(&marks, 15, 5);
	child_expect(c, &marks);
	assert_int_equal(uffd_unregister(c->uffd, at + 4096 * 30, at + BYTES), 0);
	mm_set_remove_range(&marks, 30, PAGES);
	child_expect(c, &marks);
	assert_int_equal(uffd_writeprotect(c->uffd, at + 4096 * 30, at + 4096 * 31, true), -ENOENT);
	/* registered anew: what was unregistered is not marked again by that */
	assert_int_equal(uffd_register_wp(c->uffd, at, at + BYTES), 0);
	child_expect(c, &marks);
}

static void test_the_mm_is_gone(void **state)
{
	struct child *c = tracked(state);
	uint64_t at = (uint64_t)c->at;
	_cleanup_close_ int pagemap = pagemap_open(c->pid);
	_cleanup_set_ struct mm_set set = {NULL};
	struct maps_list maps = {0};

	child_register(c, false);
	assert_int_equal(kill(c->pid, SIGKILL), 0);
	/* a zombie has no mm */
	assert_int_equal(waitid(P_PID, (id_t)c->pid, NULL, WEXITED | WNOWAIT), 0);
	assert_int_equal(uffd_writeprotect(c->uffd, at, at + 4096, true), -ESRCH);
	assert_int_equal(uffd_unregister(c->uffd, at, at + 4096), -ENOMEM);
	assert_int_equal(pagemap_marked(pagemap, at, at + BYTES, true, &set), -ESRCH);
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &maps), -ESRCH);
	assert_int_equal(pagemap_open(c->pid), -ESRCH);
	waitpid(c->pid, NULL, 0);
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &maps), -ESRCH);
	assert_int_equal(pagemap_open(c->pid), -ESRCH);
	maps_free(&maps);
}

static long do_fork(long a, long b, long c, long d, long e, long f)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
	return pid;
}

/* An event that nobody reads: the call ends by itself, and works as soon as one does. */
static void test_unread_event_is_eagain(void **state)
{
	struct child *c = tracked(state);
	uint64_t at = (uint64_t)c->at;
	struct timespec start, end;
	struct uffd_msg msg;
	long ms;

	child_register(c, true);
	child_start(c, do_fork, 0, 0);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (uffd_writeprotect(c->uffd, at, at + 4096, true) == 0)
		; /* it has not forked yet */
	clock_gettime(CLOCK_MONOTONIC, &end);
	ms = (end.tv_sec - start.tv_sec) * 1000 + (end.tv_nsec - start.tv_nsec) / 1000000;
	assert_in_range(ms, UFFD_RETRY_MS - 1, 10 * UFFD_RETRY_MS);
	assert_int_equal(uffd_writeprotect(c->uffd, at, at + 4096, true), -EAGAIN);
	assert_int_equal(read(c->uffd, &msg, sizeof(msg)), sizeof(msg));
	assert_int_equal(msg.event, UFFD_EVENT_FORK);
	close((int)msg.arg.fork.ufd);
	assert_true(child_wait(c) > 0);
	assert_int_equal(uffd_writeprotect(c->uffd, at, at + 4096, true), 0);
}

/* ---- proc ---- */

static void test_identity_outlives_the_process(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int pidfd = -1;
	struct proc_id id, me, wrong;

	assert_int_equal(proc_identify(c->pid, &id), 0);
	assert_int_equal(proc_identify(getpid(), &me), 0);
	assert_int_equal(id.pid, c->pid);
	assert_true(id.start_time >= me.start_time && me.start_time > 0);
	pidfd = proc_open(&id);
	assert_true(pidfd >= 0);
	assert_int_equal(proc_of_pidfd(pidfd), c->pid);
	assert_false(proc_is_dead(pidfd));
	wrong = id;
	wrong.start_time++;
	assert_int_equal(proc_open(&wrong), -ESRCH);
	wrong.pid = 0;
	assert_int_equal(proc_open(&wrong), -ESRCH);
	assert_int_equal(kill(c->pid, SIGKILL), 0);
	assert_int_equal(waitid(P_PID, (id_t)c->pid, NULL, WEXITED | WNOWAIT), 0);
	assert_true(proc_is_dead(pidfd)); /* a zombie is dead, and still has its number */
	assert_int_equal(proc_identify(c->pid, &wrong), 0);
	assert_int_equal(wrong.start_time, id.start_time);
	waitpid(c->pid, NULL, 0);
	assert_true(proc_is_dead(pidfd));
	assert_int_equal(proc_of_pidfd(pidfd), -ESRCH);
	assert_int_equal(proc_identify(id.pid, &wrong), -ESRCH);
	assert_int_equal(proc_open(&id), -ESRCH);
	assert_int_equal(proc_of_pidfd(c->file), -EBADF);
}

static void test_parent(void **state)
{
	struct child *c = tracked(state);
	struct proc_id me, parent;

	assert_int_equal(proc_identify(getpid(), &me), 0);
	assert_int_equal(proc_parent(c->pid, &parent), 0);
	assert_int_equal(parent.pid, me.pid);
	assert_int_equal(parent.start_time, me.start_time);
	assert_int_equal(proc_parent(INT32_MAX, &parent), -ESRCH);
	assert_int_equal(proc_parent(1, &parent), -ESRCH); /* it has none */
}

static long do_name(long a, long b, long c, long d, long e, long f)
{
	return prctl(PR_SET_NAME, "a) R 1 (\tb");
}

static void test_strange_names(void **state)
{
	struct child *c = tracked(state);
	struct proc_id before, after;
	char comm[16];
	uid_t uid = 77;

	assert_int_equal(proc_identify(c->pid, &before), 0);
	assert_int_equal(child_call(c, do_name, 0, 0, 0, 0, 0, 0), 0);
	assert_int_equal(proc_identify(c->pid, &after), 0);
	assert_int_equal(before.start_time, after.start_time);
	assert_int_equal(proc_comm(c->pid, comm), 0);
	assert_string_equal(comm, "a) R 1 (\tb");
	assert_int_equal(proc_uid(c->pid, &uid), 0);
	assert_int_equal(uid, 0);
	assert_int_equal(proc_uid(INT32_MAX, &uid), -ESRCH);
	assert_true(proc_comm(INT32_MAX, comm) < 0);
}

static long do_become(long uid, long b, long c, long d, long e, long f)
{
	return setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0 ? -errno : 0;
}

static void test_uid(void **state)
{
	struct child *c = tracked(state);
	uid_t uid = 0;

	assert_int_equal(child_call(c, do_become, 12345, 0, 0, 0, 0, 0), 0);
	assert_int_equal(proc_uid(c->pid, &uid), 0);
	assert_int_equal(uid, 12345);
}

static int sharer(void *arg)
{
	for (;;)
		pause();
	return 0;
}

static long do_clone_vm(long a, long b, long c, long d, long e, long f)
{
	static char stack[65536];

	return clone(sharer, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
}

static void test_one_mm_or_two(void **state)
{
	struct child *c = tracked(state);
	long other = child_call(c, do_clone_vm, 0, 0, 0, 0, 0, 0);

	assert_true(other > 0);
	assert_int_equal(proc_same_mm(c->pid, (pid_t)other), 1);
	assert_int_equal(proc_same_mm(c->pid, getpid()), 0);
	assert_int_equal(kill((pid_t)other, SIGKILL), 0);
	assert_int_equal(proc_same_mm(c->pid, INT32_MAX), -ESRCH);
}

/* A child that has ended and is not reaped. */
static pid_t ended_child(void)
{
	pid_t pid = fork();
	siginfo_t info;

	if (pid == 0)
		_exit(0);
	assert_true(pid > 0);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	return pid;
}

static void test_none_is_not_one_mm(void **state)
{
	pid_t a = ended_child(), b = ended_child();

	assert_int_equal(proc_same_mm(a, b), -ESRCH);
	assert_int_equal(proc_same_mm(a, getpid()), 0);
	assert_int_equal(waitpid(a, NULL, 0), a);
	assert_int_equal(waitpid(b, NULL, 0), b);
}

static void test_borrowed_descriptors(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int file = proc_borrow_fd(c->pidfd, c->file);

	assert_true(file >= 0);
	assert_int_equal(lseek(file, 0, SEEK_END), BYTES);
	assert_int_equal(proc_borrow_fd(c->pidfd, 1000), -EBADF);
	assert_int_equal(kill(c->pid, SIGKILL), 0);
	assert_int_equal(waitid(P_PID, (id_t)c->pid, NULL, WEXITED | WNOWAIT), 0);
	assert_int_equal(proc_borrow_fd(c->pidfd, c->file), -ESRCH);
}

static void test_boot_id(void **state)
{
	char a[40], b[40];

	assert_int_equal(proc_boot_id(a), 0);
	assert_int_equal(proc_boot_id(b), 0);
	assert_string_equal(a, b);
	assert_int_equal(strlen(a), 36);
}

/* ---- maps ---- */

static void test_maps_show_what_was_mapped(void **state)
{
	struct child *c = tracked(state);
	struct maps_list maps = {0}, again = {0};
	uint8_t modes[2];
	long at;

	at = child_call(c, do_mmap, 0, LEN(3), PROT_READ | PROT_EXEC, MAP_PRIVATE, c->file, 5);
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &maps), 0);
	assert_int_equal(maps.nr, 2);
	for (size_t i = 0; i < 2; i++) {
		const struct maps_vma *v = &maps.vmas[i];

		assert_int_equal(v->dev, c->dev);
		assert_int_equal(v->ino, c->ino);
		assert_int_equal(v->shared, v->start != (uint64_t)at);
		assert_int_equal(v->pgoff, v->shared ? 0 : 5);
		assert_int_equal(v->end - v->start, v->shared ? BYTES : (uint64_t)LEN(3));
		assert_int_equal(v->prot,
				 v->shared ? PROT_READ | PROT_WRITE : PROT_READ | PROT_EXEC);
	}
	assert_true(maps.vmas[0].start < maps.vmas[1].start);
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &again), 0);
	assert_true(maps_equal(&maps, &again));
	assert_int_equal(child_call(c, do_mprotect, at, LEN(3), PROT_READ, 0, 0, 0), 0);
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &again), 0);
	assert_false(maps_equal(&maps, &again));
	/* of a list that is out of date nothing is claimed */
	child_register(c, false);
	assert_int_equal(maps_read_uffd(c->pid, &maps, modes), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(modes[i],
				 MAPS_MAY_WRITE | (maps.vmas[i].shared ? MAPS_UFFD_WP : 0));
	assert_int_equal(uffd_unregister(c->uffd, (uint64_t)AT(c, 8), (uint64_t)AT(c, PAGES)), 0);
	assert_int_equal(maps_read_uffd(c->pid, &maps, modes), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(modes[i], maps.vmas[i].shared ? 0 : MAPS_MAY_WRITE);
	maps_free(&maps);
	maps_free(&again);
}

/* An address of a process: where its first mapping begins. */
static uint64_t first_address(pid_t pid)
{
	_cleanup_close_ int fd = maps_open_fd(pid);
	char text[32] = "";

	assert_true(fd >= 0);
	assert_true(read(fd, text, sizeof(text) - 1) > 0);
	return strtoull(text, NULL, 16);
}

/* A descriptor of maps stays that of one mm, on kernels that have to be read line by line too. */
static void test_one_mapping(void **state)
{
	struct child *c = tracked(state);
	_cleanup_close_ int fd = maps_open_fd(c->pid), old = -1;
	struct maps_vma asked, found;
	int out[2], done[2];
	uint64_t at;
	pid_t pid;
	char byte;

	for (uint64_t addr = (uint64_t)c->at - LEN(1); addr < (uint64_t)AT(c, 3); addr += 2048) {
		int r = maps_at(fd, addr, &asked);

		assert_int_equal(maps_at_by_reading(fd, addr, &found), r);
		if (r == 0)
			assert_memory_equal(&asked, &found, sizeof(found));
	}
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(done, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(out[0], 0);
		(void)!read(0, &byte, 1);
		execlp("cat", "cat", (char *)NULL);
		_exit(1);
	}
	old = maps_open_fd(pid);
	assert_true(old >= 0);
	assert_int_equal(write(out[1], "x", 1), 1);
	close(out[0]);
	close(done[1]);
	assert_int_equal(read(done[0], &byte, 1), 0); /* it has executed cat */
	at = first_address(pid);
	assert_true(maps_at_by_reading(old, at, &found) < 0);
	close(out[1]);
	close(done[0]);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Processes that end while they are looked at are gone, never an input error. */
static void test_ending_processes_are_gone(void **state)
{
	struct child *c = tracked(state);
	struct maps_list maps = {0};
	int alive = 0, gone = 0;
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		pid_t pid = fork();
		uint8_t modes[8];
		int r = 0;

		if (pid == 0)
			_exit(0);
		signal(SIGCHLD, SIG_IGN); /* reaped by itself, under our eyes */
		while (r == 0) {
			r = maps_read(pid, &c->dev, 1, &maps);
			if (r == 0 && maps.nr <= 8)
				r = maps_read_uffd(pid, &maps, modes);
			alive += r == 0;
		}
		assert_int_equal(r, -ESRCH);
		gone++;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (gone < 50 || now.tv_sec - start.tv_sec < 2);
	signal(SIGCHLD, SIG_DFL);
	assert_true(alive > 0);
	maps_free(&maps);
}

/* Lines until the reader is out of something; -1: never. (getline(3) may be inline.) */
static int lines_left = -1;
static int line_err;

ssize_t __real_getline(char **line, size_t *room, FILE *f);
ssize_t __wrap_getline(char **line, size_t *room, FILE *f);
ssize_t __real___getdelim(char **line, size_t *room, int end, FILE *f);
ssize_t __wrap___getdelim(char **line, size_t *room, int end, FILE *f);

static bool line_fails(void)
{
	if (lines_left != 0) {
		lines_left -= lines_left > 0;
		return false;
	}
	errno = line_err;
	return true;
}

ssize_t __wrap_getline(char **line, size_t *room, FILE *f)
{
	return line_fails() ? -1 : __real_getline(line, room, f);
}

ssize_t __wrap___getdelim(char **line, size_t *room, int end, FILE *f)
{
	return line_fails() ? -1 : __real___getdelim(line, room, end, f);
}

/* Mappings that could not be read are never taken for none, nor for all there are. */
static void test_maps_that_cannot_be_read(void **state)
{
	struct child *c = tracked(state);
	struct maps_list maps = {0};

	for (int lines = 0; lines < 3; lines++) {
		for (line_err = EACCES; line_err == EACCES || line_err == ENOMEM;
		     line_err = line_err == EACCES ? ENOMEM : 0) {
			lines_left = lines;
			assert_int_equal(maps_read(c->pid, &c->dev, 1, &maps), -line_err);
			assert_int_equal(lines_left, 0);
		}
	}
	lines_left = -1;
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &maps), 0);
	maps_free(&maps);
}

/* What keeps us from looking at a process is not its end. */
static void test_no_descriptor_to_look_with(void **state)
{
	struct child *c = tracked(state);
	struct maps_list maps = {0};
	struct rlimit old, none;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = (struct rlimit){.rlim_cur = 0, .rlim_max = old.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(maps_read(c->pid, &c->dev, 1, &maps), -EMFILE);
	assert_int_equal(proc_thread(c->pid), -EMFILE);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(proc_thread(c->pid), c->pid);
	maps_free(&maps);
}

#define T(name) cmocka_unit_test_setup_teardown(name, child_setup, child_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_only_a_uffd_is_one),
		T(test_init_is_done_once),
		T(test_register_errors),
		T(test_writeprotect_and_unregister),
		T(test_the_mm_is_gone),
		T(test_unread_event_is_eagain),
		T(test_identity_outlives_the_process),
		T(test_parent),
		T(test_strange_names),
		T(test_uid),
		T(test_one_mm_or_two),
		T(test_none_is_not_one_mm),
		T(test_borrowed_descriptors),
		T(test_boot_id),
		T(test_maps_show_what_was_mapped),
		T(test_one_mapping),
		T(test_ending_processes_are_gone),
		T(test_maps_that_cannot_be_read),
		T(test_no_descriptor_to_look_with),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
