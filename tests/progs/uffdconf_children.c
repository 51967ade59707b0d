/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes that are forked off: their faults and events, and the descriptor that they inherit. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffdconf.h"

#define WP UFFDIO_WRITEPROTECT_MODE_WP

static struct area *shown;
static char *place; /* as large as the area: where a child moves its mapping */

static void make_place(const struct area *a)
{
	place = mmap(NULL, a->all * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (place == MAP_FAILED)
		die("mmap");
}

static int wait_for(pid_t pid)
{
	int status = -1;

	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* ---- a child that faults, moves its mapping, faults there, and drops its pages ---- */

/* In the child. How many pages had not what they should: 'm' by the monitor, in the end zeros. */
static int wrong_pages(void)
{
	char *map = shown->map;
	int wrong = 0;

	for (unsigned long page = 0; page < 4; page++) {
		volatile char *at = map + page * PAGE + 1;

		wrong += *at != 'm';
		*at = 'm';
	}
	map = mremap(map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (map == MAP_FAILED)
		return 100;
	for (unsigned long page = 4; page < 8; page++) {
		volatile char *at = map + page * PAGE + 1;

		wrong += *at != 'm';
		*at = 'm';
	}
	if (madvise(map, 8 * PAGE, MADV_REMOVE) < 0)
		return 101;
	for (unsigned long page = 0; page < 8; page++)
		wrong += map[page * PAGE + 1] != 0;
	return wrong;
}

/* Follows the child: lets its parent's descriptor go, unregisters what it drops. */
static void follow(int fd, enum answer answer, const _Atomic pid_t *child)
{
	struct uffdio_range range;
	struct area here = *shown;
	struct uffd_msg msg;

	for (bool over = false; !over;) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};

		if (poll(&pfd, 1, PATIENCE) <= 0)
			die("poll");
		if (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
			continue;
		note_message(&msg, &here);
		answer_message(fd, &here, &msg, answer);
		switch (msg.event) {
		case UFFD_EVENT_FORK:
			close(fd);
			fd = (int)msg.arg.fork.ufd;
			break;
		case UFFD_EVENT_REMAP:
			here.map = (char *)(uintptr_t)msg.arg.remap.to;
			break;
		case UFFD_EVENT_REMOVE:
			range = (struct uffdio_range){msg.arg.remove.start,
						      msg.arg.remove.end - msg.arg.remove.start};
			noted("unregister", ioctl(fd, UFFDIO_UNREGISTER, &range));
			over = true;
			break;
		default:
			break;
		}
	}
	while (*child == 0)
		usleep(100);
	note("child: %d", wait_for(*child));
	close(fd);
}

struct follower {
	int fd;
	enum answer answer;
	_Atomic pid_t child;
};

static void *do_fork(void *arg)
{
	struct follower *f = arg;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(60);
		_exit(wrong_pages());
	}
	f->child = pid;
	return NULL;
}

static void events_of(uint64_t mode, enum answer answer)
{
	struct follower f = {.answer = answer,
			     .fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_FORK |
								UFFD_FEATURE_EVENT_REMAP |
								UFFD_FEATURE_EVENT_REMOVE)};
	struct area *a = shown = area_still(8, 0);
	pthread_t thread;

	make_place(a);
	reg_all(f.fd, a, mode);
	/* The one that forks waits until its event is read. */
	if (pthread_create(&thread, NULL, do_fork, &f))
		die("thread");
	follow(f.fd, answer, &f.child);
	pthread_join(thread, NULL);
	munmap(place, a->all * PAGE);
}

static void events_in_child(void)
{
	events_of(MODE_MISS, ANSWER);
}

static void events_in_child_wp(void)
{
	events_of(MODE_MISS | MODE_WP, ANSWER_PROTECT);
}

/* ---- signals in place of messages ---- */

static sigjmp_buf child_bus;

static void on_child_bus(int sig)
{
	siglongjmp(child_bus, 1);
}

/* In the child: how many of its pages are SIGBUS, read and written. */
static int count_bus(void *arg)
{
	static int count;
	static unsigned long page;

	signal(SIGBUS, on_child_bus);
	for (page = 0; page < 4; page++) {
		volatile char *at = shown->map + page * PAGE + 1;

		if (sigsetjmp(child_bus, 1) == 0)
			*at = *at;
		else
			count++;
	}
	return count;
}

static void sigbus_in_child(uint64_t mode)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_SIGBUS | UFFD_FEATURE_EVENT_FORK);
	struct area *a = shown = area_still(4, 2);
	struct handler *h;

	reg_all(fd, a, mode);
	if (mode & MODE_WP)
		wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	child_do(count_bus, NULL, h);
	if (h->child_uffd >= 0)
		close(h->child_uffd);
	note("faults %u", handler_stop(h));
	close(fd);
}

static void sigbus_fork(void)
{
	sigbus_in_child(MODE_MISS);
}

static void sigbus_fork_wp(void)
{
	sigbus_in_child(MODE_MISS | MODE_WP);
}

/* ---- what a child may do ---- */

/* A child of the child: its event comes by the child's descriptor. */
static int fork_once_more(void *arg)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(mark_bits(shown));
	return wait_for(pid);
}

static void fork_twice(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_FORK);
	struct area *a = shown = area_new(8, 8);
	struct handler *h, *of_child;
	pid_t pid;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	noted("off", wp(fd, a, 2, 1, 0));
	h = handler_start(fd, a, ANSWER);
	pid = fork();
	if (pid == 0)
		_exit(fork_once_more(NULL));
	handler_saw(h, 1, 0);
	of_child = handler_start(h->child_uffd, a, ANSWER);
	note("grandchild: %ld", handler_saw(of_child, 1, wait_for(pid)));
	if (of_child->child_uffd >= 0)
		close(of_child->child_uffd);
	handler_stop(of_child);
	close(h->child_uffd);
	note_marks(a, 0, 6);
	handler_stop(h);
	close(fd);
}

/* What the event's descriptor has, no uffd of the child can have. */
static int child_registers(void *arg)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL), err;

	err = reg(fd, shown->map, PAGE, MODE_WP, NULL) < 0 ? errno : 0;
	close(fd);
	return err;
}

static void fork_child_registers(void)
{
	struct area *a = shown = area_new(8, 8);

	for (int event = 0; event < 2; event++) {
		int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | (event ? UFFD_FEATURE_EVENT_FORK : 0));
		struct handler *h;
		int status;
		pid_t pid;

		reg_all(fd, a, MODE_WP);
		wp_all(fd, a);
		h = handler_start(fd, a, ANSWER);
		pid = fork();
		if (pid == 0)
			_exit(child_registers(NULL));
		status = wait_for(pid);
		if (event)
			handler_saw(h, 1, 0);
		note("child: %s", name_of(status));
		if (h->child_uffd >= 0)
			close(h->child_uffd);
		handler_stop(h);
		close(fd);
	}
}

/* What it inherits is of its parent's memory. */
static int use_inherited(void *arg)
{
	int fd = *(int *)arg;

	if (wp(fd, shown, 1, 1, 0) < 0 || wp(fd, shown, 4, 1, WP) < 0)
		return 200;
	return mark_bits(shown);
}

static void fork_inherited(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = shown = area_new(8, 8);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	if (wp(fd, a, 0, 3, WP) < 0)
		die("protect");
	h = handler_start(fd, a, ANSWER);
	child_do(use_inherited, &fd, NULL);
	note_marks(a, 0, 6);
	store(a, 1, 1);
	store(a, 4, 1);
	handler_stop(h);
	close(fd);
}

/* Its parent works on it by the descriptor of the event: the parent's own pages are left alone. */
static void fork_child_by_parent(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_FORK), go[2];
	struct area *a = shown = area_new(8, 8);
	struct handler *h;
	char byte;
	pid_t pid;

	if (pipe2(go, O_CLOEXEC) < 0)
		die("pipe");
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	pid = fork();
	if (pid == 0)
		_exit(read(go[0], &byte, 1) == 1 ? mark_bits(shown) : 200);
	handler_saw(h, 1, 0);
	noted("unregister", unreg(h->child_uffd, a->map, 4 * PAGE));
	noted("register", reg(h->child_uffd, a->map, 2 * PAGE, MODE_WP, NULL));
	noted("protect", wp(h->child_uffd, a, 1, 1, WP));
	if (write(go[1], "", 1) != 1)
		die("write");
	note("child: %d", wait_for(pid));
	note_marks(a, 0, 6);
	store(a, 1, 1);
	store(a, 5, 1);
	noted("protect", wp(fd, a, 0, 8, WP));
	close(h->child_uffd);
	handler_stop(h);
	close(fd);
	close(go[0]);
	close(go[1]);
}

const struct conf_case conf_children[] = {
	{"events-in-child", events_in_child},
	{"events-in-child-wp", events_in_child_wp},
	{"sigbus-fork", sigbus_fork},
	{"sigbus-fork-wp", sigbus_fork_wp},
	{"fork-twice", fork_twice},
	{"fork-child-registers", fork_child_registers},
	{"fork-inherited", fork_inherited},
	{"fork-child-by-parent", fork_child_by_parent},
	{NULL, NULL},
};
