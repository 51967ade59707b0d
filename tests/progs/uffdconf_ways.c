/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Ways to read one, to hand it on, to let go of it; several at once. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffdconf.h"

#define WP UFFDIO_WRITEPROTECT_MODE_WP

/* ---- readers ---- */

static void answer_read(int fd, struct area *a, const struct uffd_msg *msg)
{
	note_message(msg, a);
	answer_message(fd, a, msg, ANSWER);
}

static void read_blocking(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	struct uffd_msg msg;
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	poll(&pfd, 1, 0);
	note("poll %x", pfd.revents);
	s = storer_start(a, 1, 1);
	if (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
		die("read");
	answer_read(fd, a, &msg);
	storer_join(s);
	uffd_end(fd);
}

static void read_poll(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct pollfd pfd = {.fd = fd, .events = POLLIN | POLLOUT};
	struct uffd_msg msg[4];
	struct storer *s[2];

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	poll(&pfd, 1, 0);
	note("poll %x", pfd.revents);
	s[0] = storer_start(a, 1, 1);
	s[1] = storer_start(a, 1, 2);
	poll(&pfd, 1, PATIENCE);
	note("poll %x", pfd.revents);
	for (size_t got = 0; got < 2;) {
		ssize_t n = read(fd, msg, sizeof(msg));

		if (n < 0 && errno != EAGAIN)
			die("read");
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msg[0]); i++, got++)
			note_message(&msg[i], a);
	}
	poll(&pfd, 1, 0);
	note("poll %x", pfd.revents);
	noted("off", wp(fd, a, 1, 1, 0));
	storer_join(s[0]);
	storer_join(s[1]);
	uffd_end(fd);
}

static void read_epoll(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL), ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u32 = 7};
	struct uffd_msg msg;
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	noted("add", epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
	note("wait %d", epoll_wait(ep, &ev, 1, 0));
	for (unsigned long page = 0; page < 2; page++) {
		s = storer_start(a, page, 1);
		note("wait %d", epoll_wait(ep, &ev, 1, PATIENCE));
		while (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
			usleep(100);
		answer_read(fd, a, &msg);
		storer_join(s);
	}
	close(ep);
	uffd_end(fd);
}

static int ring_do(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	int res;

	if (io_uring_submit(ring) < 0 || io_uring_wait_cqe(ring, &cqe) < 0)
		die("io_uring");
	res = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return res;
}

static void read_uring(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL), res;
	struct io_uring ring;
	struct uffd_msg msg;
	struct storer *s;

	if (io_uring_queue_init(8, &ring, 0) < 0)
		die("io_uring");
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	s = storer_start(a, 1, 1);
	io_uring_prep_poll_add(io_uring_get_sqe(&ring), fd, POLLIN);
	note("poll %x", ring_do(&ring));
	io_uring_prep_read(io_uring_get_sqe(&ring), fd, &msg, sizeof(msg), 0);
	note("read %d", ring_do(&ring));
	answer_read(fd, a, &msg);
	storer_join(s);
	/* Now the read is there before the fault. */
	io_uring_prep_read(io_uring_get_sqe(&ring), fd, &msg, sizeof(msg), 0);
	io_uring_submit(&ring);
	s = storer_start(a, 2, 1);
	res = ring_do(&ring);
	if (res == -EAGAIN) { /* as a descriptor that does not block may say */
		io_uring_prep_poll_add(io_uring_get_sqe(&ring), fd, POLLIN);
		ring_do(&ring);
		io_uring_prep_read(io_uring_get_sqe(&ring), fd, &msg, sizeof(msg), 0);
		res = ring_do(&ring);
	}
	note("read %d", res);
	answer_read(fd, a, &msg);
	storer_join(s);
	io_uring_queue_exit(&ring);
	uffd_end(fd);
}

/* select(2), and one message in two pieces of memory. */
static void read_select(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct timeval wait = {.tv_sec = PATIENCE / 1000};
	struct uffd_msg msg;
	struct iovec halves[2] = {{&msg, 16}, {(char *)&msg + 16, sizeof(msg) - 16}};
	struct storer *s;
	fd_set fds;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	s = storer_start(a, 1, 1);
	FD_ZERO(&fds);
	FD_SET(fd, &fds);
	note("select %d", select(fd + 1, &fds, NULL, NULL, &wait));
	noted("readv", readv(fd, halves, 2));
	noted("pread", pread(fd, &msg, sizeof(msg), 0));
	noted("off", wp(fd, a, 1, 1, 0));
	storer_join(s);
	uffd_end(fd);
}

static void *read_for_ever(void *arg)
{
	struct uffd_msg msg;

	while (read(*(int *)arg, &msg, sizeof(msg)) == (ssize_t)sizeof(msg)) {
		struct uffdio_writeprotect w = {
			.range = {msg.arg.pagefault.address & ~(PAGE - 1), PAGE}};

		ioctl(*(int *)arg, UFFDIO_WRITEPROTECT, &w);
	}
	return NULL;
}

/* A thread that reads without end is cancelled, another one goes on. */
static void read_cancel(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	pthread_t reader;
	void *result;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	for (unsigned long page = 0; page < 2; page++) {
		if (pthread_create(&reader, NULL, read_for_ever, &fd))
			die("thread");
		store(a, page, 1);
		pthread_cancel(reader);
		pthread_join(reader, &result);
		note(result == PTHREAD_CANCELED ? "cancelled" : "ended");
	}
	uffd_end(fd);
}

static void flags_change(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(0, SHMEM_ALL), flags = fcntl(fd, F_GETFL);
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	struct uffd_msg msg;
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	noted("nonblock", fcntl(fd, F_SETFL, flags | O_NONBLOCK));
	noted("read", read(fd, &msg, sizeof(msg)));
	poll(&pfd, 1, 0);
	note("poll %x", pfd.revents);
	noted("block", fcntl(fd, F_SETFL, flags & ~O_NONBLOCK));
	s = storer_start(a, 1, 1);
	if (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
		die("read");
	answer_read(fd, a, &msg);
	storer_join(s);
	uffd_end(fd);
}

/* ---- several ---- */

static void several(void)
{
	struct area *a = area_still(8, 8);
	int fd[3];
	struct handler *h[2];

	for (int i = 0; i < 3; i++)
		fd[i] = uffd_new(O_NONBLOCK, SHMEM_ALL);
	noted("first", reg(fd[0], a->map, 4 * PAGE, MODE_WP, NULL));
	noted("second", reg(fd[1], a->map + 4 * PAGE, 4 * PAGE, MODE_WP, NULL));
	noted("third over both", reg(fd[2], a->map + 2 * PAGE, 4 * PAGE, MODE_WP, NULL));
	noted("protect", wp(fd[0], a, 0, 4, WP));
	noted("protect", wp(fd[1], a, 4, 4, WP));
	h[0] = handler_start(fd[0], a, ANSWER);
	h[1] = handler_start(fd[1], a, ANSWER);
	store(a, 1, 1);
	store(a, 5, 1);
	store(a, 6, 1);
	note("%u and %u", handler_stop(h[0]), handler_stop(h[1]));
	uffd_end(fd[0]);
	note_marks(a, 0, 8);
	store(a, 2, 1);
	noted("third", reg(fd[2], a->map, 4 * PAGE, MODE_WP, NULL));
	noted("protect", wp(fd[2], a, 0, 4, WP));
	h[0] = handler_start(fd[2], a, ANSWER);
	h[1] = handler_start(fd[1], a, ANSWER);
	store(a, 3, 1);
	store(a, 7, 1);
	note("%u and %u", handler_stop(h[0]), handler_stop(h[1]));
	uffd_end(fd[1]);
	uffd_end(fd[2]);
	note_marks(a, 0, 8);
}

/* Of the two mappings of a file one is protected. */
static void two_mappings(void)
{
	struct area *a = area_still(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	area_alias(a);
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	a->alias[PAGE + 1] = 77;
	load(a, 1);
	note_marks(a, 0, 4);
	store(a, 1, 1);
	note("alias %d", a->alias[PAGE + 1]);
	handler_stop(h);
	uffd_end(fd);
}

static void register_again(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct handler *h;

	for (int i = 0; i < 3; i++) {
		reg_all(fd, a, MODE_WP);
		note_marks(a, 0, 8);
		store(a, 0, 1);
		wp_all(fd, a);
		reg_all(fd, a, MODE_WP);
		note_marks(a, 0, 8);
		h = handler_start(fd, a, ANSWER);
		store(a, 2, 1);
		handler_stop(h);
		noted("unregister", unreg(fd, a->map, a->all * PAGE));
		note_marks(a, 0, 8);
		store(a, 3, 1);
	}
	uffd_end(fd);
}

/* ---- whose close lets the writers go ---- */

/* A uffd with page 0 protected and a thread that waits there, its message unread. */
static int with_waiting(struct area *a, struct storer **s)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);

	if (reg(fd, a->map, a->all * PAGE, MODE_WP, NULL) < 0 || wp(fd, a, 0, 1, WP) < 0)
		die("register");
	*s = storer_start(a, 0, 1);
	storer_waits(fd);
	return fd;
}

static void close_wakes(void)
{
	struct area *a = area_new(2, 2);
	struct storer *s;
	int fd = with_waiting(a, &s);

	noted("close", close(fd));
	storer_join(s);
	note_marks(a, 0, 2);
}

/* The kernel wakes who waits for a missing page, and not who waits for a protected one. */
static void unregister_wakes(void)
{
	struct area *a = area_still(2, 1);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct uffdio_range range = {(uintptr_t)a->map, PAGE};
	struct storer *s;

	reg_all(fd, a, MODE_MISS);
	s = storer_start(a, 1, 1);
	storer_waits(fd);
	noted("unregister", unreg(fd, a->map, a->all * PAGE));
	storer_join(s);
	uffd_end(fd);
	fd = with_waiting(a, &s);
	noted("unregister", unreg(fd, a->map, a->all * PAGE));
	note_marks(a, 0, 2);
	note(storer_is_done(s) ? "stored" : "waits");
	noted("wake", ioctl(fd, UFFDIO_WAKE, &range));
	storer_join(s);
	uffd_end(fd);
}

/* Each lets the last descriptor go in another way. */
static void close_by_number(void)
{
	struct area *a = area_new(2, 2);
	struct storer *s;
	int fd = with_waiting(a, &s), null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	noted("dup2", dup2(null, fd));
	storer_join(s);
	close(fd);
	fd = with_waiting(a, &s);
	noted("dup3", dup3(null, fd, O_CLOEXEC));
	storer_join(s);
	close(fd);
	close(null);
	fd = with_waiting(a, &s);
	noted("close_range", close_range((unsigned)fd, (unsigned)fd, 0));
	storer_join(s);
	fd = with_waiting(a, &s);
	close(dup2(fd, 700));
	noted("dup2", dup2(fd, 700));
	close(fd);
	closefrom(700);
	note("closefrom");
	storer_join(s);
}

static void close_duplicates(void)
{
	struct area *a = area_new(4, 4);
	struct uffd_msg msg;
	struct storer *s;
	int fd = with_waiting(a, &s), second = dup(fd), third = fcntl(fd, F_DUPFD_CLOEXEC, 100);

	noted("close", close(fd));
	if (next_message(third, a, &msg, PATIENCE) < 0)
		die("message");
	note_message(&msg, a);
	noted("close", close(third));
	noted("off", wp(second, a, 0, 1, 0));
	storer_join(s);
	noted("protect", wp(second, a, 1, 1, WP));
	s = storer_start(a, 1, 1);
	storer_waits(second);
	noted("close", close(second));
	storer_join(s);
}

/* A duplicate made before anything was registered. */
static void close_early_duplicate(void)
{
	struct area *a = area_new(4, 4);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL), second = dup(fd);
	struct storer *s;

	reg_all(fd, a, MODE_WP);
	noted("protect", wp(fd, a, 0, 2, WP));
	noted("close", close(fd));
	note_marks(a, 0, 2);
	s = storer_start(a, 0, 1);
	storer_waits(second);
	noted("close", close(second));
	storer_join(s);
	note_marks(a, 0, 2);
}

#if defined(__x86_64__)
/* The instruction itself: nothing stands in front of it. */
static long raw_close(int fd)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "0"((long)SYS_close), "D"((long)fd)
			 : "rcx", "r11", "memory");
	return ret;
}
#else
static long raw_close(int fd)
{
	return syscall(SYS_close, fd);
}
#endif

static void close_raw(void)
{
	struct area *a = area_new(2, 2);
	struct storer *s;
	int fd = with_waiting(a, &s);

	note("close %ld", raw_close(fd));
	storer_join(s);
	fd = with_waiting(a, &s);
	noted("syscall", syscall(SYS_close, fd));
	storer_join(s);
}

static void close_uring(void)
{
	struct area *a = area_new(2, 2);
	struct io_uring ring;
	struct storer *s;
	int fd = with_waiting(a, &s);

	if (io_uring_queue_init(8, &ring, 0) < 0)
		die("io_uring");
	io_uring_prep_close(io_uring_get_sqe(&ring), fd);
	note("close %d", ring_do(&ring));
	storer_join(s);
	io_uring_queue_exit(&ring);
}

/* The same of a thread that was already told of: its message is read, and never answered. */
static void close_read(void)
{
	struct area *a = area_new(2, 2);
	struct uffd_msg msg;
	struct storer *s;
	int fd = with_waiting(a, &s);

	if (next_message(fd, a, &msg, PATIENCE) < 0)
		die("message");
	note_message(&msg, a);
	note("close %ld", raw_close(fd));
	storer_join(s);
}

/*
 * A descriptor that is closed, in whatever way, with nobody waiting: the next one has its place.
 * The mark is looked at then, since nothing tells when another process's close is done.
 */
static void close_and_replace(void)
{
	struct area *a = area_new(2, 2);
	struct io_uring ring;

	if (io_uring_queue_init(8, &ring, 0) < 0)
		die("io_uring");
	for (int how = 0; how < 4; how++) {
		int fd = uffd_new(O_NONBLOCK, SHMEM_ALL), next = uffd_new(O_NONBLOCK, SHMEM_ALL);

		reg_all(fd, a, MODE_WP);
		if (wp(fd, a, 0, 1, WP) < 0)
			die("protect");
		if (how == 3) {
			io_uring_prep_close(io_uring_get_sqe(&ring), fd);
			ring_do(&ring);
		} else if (how) {
			how == 1 ? raw_close(fd) : syscall(SYS_close, fd);
		} else {
			close(fd);
		}
		if (how % 2)
			noted("register", reg(next, a->map, a->all * PAGE, MODE_WP, NULL));
		noted("unregister", unreg(next, a->map, a->all * PAGE));
		noted("register", reg(next, a->map, a->all * PAGE, MODE_MISS | MODE_WP, NULL));
		note_marks(a, 0, 2);
		uffd_end(next);
	}
	io_uring_queue_exit(&ring);
}

/* ---- other processes ---- */

static struct {
	int sock, fd;
	struct area *area;
	pid_t pid;
} server;

/* In the server: answers `faults` messages, then ends. */
static int serve(int fd, struct area *a, int faults)
{
	struct uffd_msg msg;

	while (faults--) {
		if (next_message(fd, a, &msg, PATIENCE) < 0)
			return 1;
		/* ioctls of another process work on the mm that the descriptor is of */
		answer_message(fd, a, &msg, ANSWER);
	}
	return 0;
}

static void server_start(int fd, struct area *a, int faults, bool inherits)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		die("socketpair");
	server.pid = fork();
	if (server.pid < 0)
		die("fork");
	if (server.pid == 0) {
		int mine, ret;

		close(pair[0]);
		alarm(60);
		mine = inherits ? fd : recv_fd(pair[1]);
		if (write(pair[1], "r", 1) != 1)
			_exit(3);
		ret = serve(mine, a, faults);
		if (read(pair[1], &mine, 1) < 0)
			_exit(4);
		_exit(ret);
	}
	close(pair[1]);
	server.sock = pair[0];
}

static void server_ready(void)
{
	char byte;

	if (read(server.sock, &byte, 1) != 1)
		die("server");
}

static void server_end(void)
{
	int status = -1;

	if (write(server.sock, "e", 1) != 1)
		die("server");
	waitpid(server.pid, &status, 0);
	close(server.sock);
	note("server: %d", status);
}

static void handed_on(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_new(8, 8);
	struct storer *s;

	area_stop_writers(a); /* the server answers for counted faults only */
	server_start(-1, a, 2, false);
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	send_fd(server.sock, fd);
	server_ready();
	noted("close", close(fd));
	store(a, 1, 1);
	store(a, 2, 1);
	note_marks(a, 0, 4);
	s = storer_start(a, 3, 1);
	usleep(20000);
	server_end();
	storer_join(s);
	note_marks(a, 0, 4);
}

static void handed_on_and_killed(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_new(8, 8);
	struct storer *s;

	area_stop_writers(a);
	server_start(-1, a, 1, false);
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	send_fd(server.sock, fd);
	server_ready();
	noted("close", close(fd));
	store(a, 1, 1);
	s = storer_start(a, 3, 1);
	usleep(20000);
	kill(server.pid, SIGKILL);
	waitpid(server.pid, NULL, 0);
	close(server.sock);
	storer_join(s);
}

static void inherited(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_new(8, 8);
	struct storer *s;

	area_stop_writers(a);
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	server_start(fd, a, 2, true);
	server_ready();
	noted("close", close(fd));
	store(a, 1, 1);
	store(a, 2, 1);
	s = storer_start(a, 3, 1);
	usleep(20000);
	server_end();
	storer_join(s);
}

/* In flight: it is held by a message that nobody has received yet. */
static void in_flight(void)
{
	int pair[2], fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_new(8, 8);
	struct uffd_msg msg;
	struct storer *s;

	area_stop_writers(a);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		die("socketpair");
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	send_fd(pair[0], fd);
	noted("close", close(fd));
	s = storer_start(a, 1, 1);
	usleep(300000);
	fd = recv_fd(pair[1]);
	if (next_message(fd, a, &msg, PATIENCE) < 0)
		die("message");
	answer_read(fd, a, &msg);
	storer_join(s);
	note_marks(a, 0, 4);
	noted("close", close(fd));
	store(a, 2, 1);
	close(pair[0]);
	close(pair[1]);
}

const struct conf_case conf_ways[] = {
	{"read-blocking", read_blocking},
	{"read-poll", read_poll},
	{"read-epoll", read_epoll},
	{"read-io_uring", read_uring},
	{"read-select", read_select},
	{"read-cancel", read_cancel},
	{"flags-change", flags_change},
	{"several", several},
	{"two-mappings", two_mappings},
	{"register-again", register_again},
	{"close", close_wakes},
	{"unregister-wakes", unregister_wakes},
	{"close-by-number", close_by_number},
	{"close-duplicates", close_duplicates},
	{"close-early-duplicate", close_early_duplicate},
	{"close-raw", close_raw},
	{"close-io_uring", close_uring},
	{"close-read", close_read},
	{"close-and-replace", close_and_replace},
	{"handed-on", handed_on},
	{"handed-on-and-killed", handed_on_and_killed},
	{"inherited", inherited},
	{"in-flight", in_flight},
	{NULL, NULL},
};
