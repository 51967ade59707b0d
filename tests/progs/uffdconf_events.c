/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mm changes: forks, moves, mappings that go. With and without messages about it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffdconf.h"

#define EVENTS                                                                                     \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |          \
	 UFFD_FEATURE_EVENT_UNMAP)

static struct area *shown;

static int show_marks(void *arg)
{
	return mark_bits(shown);
}

/* ---- fork ---- */

static void fork_common(uint64_t features)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | features);
	struct area *a = shown = area_new(8, 8);
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	store(a, 0, 1);
	wp_all(fd, a);
	noted("off", wp(fd, a, 4, 1, 0));
	noted("dontneed", madvise(a->map + PAGE, PAGE, MADV_DONTNEED));
	h = handler_start(fd, a, ANSWER);
	child_do(show_marks, NULL, features ? h : NULL);
	note_marks(a, 0, 6);
	store(a, 3, 1);
	if (h->child_uffd >= 0)
		close(h->child_uffd);
	handler_stop(h);
	close(fd);
}

static void fork_plain(void)
{
	fork_common(0);
}

static void fork_event(void)
{
	fork_common(UFFD_FEATURE_EVENT_FORK);
}

static int fork_store(void *arg)
{
	((volatile char *)shown->map)[2 * PAGE + 1] = 42;
	return mark_bits(shown);
}

/* The child's faults come by the descriptor of the event, and what it clears is its own. */
static void fork_child_faults(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_FORK), status;
	struct area *a = shown = area_new(8, 8);
	struct uffd_msg msg;
	struct handler *h;
	pid_t pid;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	pid = fork();
	if (pid == 0)
		_exit(fork_store(NULL));
	handler_saw(h, 1, 0);
	if (next_message(h->child_uffd, a, &msg, PATIENCE) < 0)
		die("message");
	note("child's");
	note_message(&msg, a);
	answer_message(h->child_uffd, a, &msg, ANSWER);
	waitpid(pid, &status, 0);
	note("child: %d", WEXITSTATUS(status));
	note_marks(a, 0, 6);
	load(a, 2);
	close(h->child_uffd);
	handler_stop(h);
	close(fd);
}

/* A child whose uffd is closed unused goes on without protection. */
static void fork_child_let_go(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_FORK), status;
	struct area *a = shown = area_new(8, 8);
	struct handler *h;
	pid_t pid;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	pid = fork();
	if (pid == 0)
		_exit(fork_store(NULL));
	handler_saw(h, 1, 0);
	close(h->child_uffd);
	waitpid(pid, &status, 0);
	note("child: %d", WEXITSTATUS(status));
	note_marks(a, 0, 6);
	handler_stop(h);
	close(fd);
}

/* ---- mremap ---- */

static void remap_common(uint64_t features)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | features);
	struct area *a = area_still(8, 8);
	char *to = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *moved;
	struct handler *h;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	moved = mremap(a->map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	noted("mremap", handler_saw(h, features != 0, moved == to ? 0 : -1));
	a->map = moved;
	note_marks(a, 0, 8);
	store(a, 3, 1);
	handler_stop(h);
	noted("protect", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	close(fd);
}

static void remap_plain(void)
{
	remap_common(0);
}

static void remap_event(void)
{
	remap_common(UFFD_FEATURE_EVENT_REMAP);
}

static void remap_part(uint64_t features)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | features);
	struct area *a = area_still(8, 8);
	struct handler *h;
	char *to;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	to = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	h = handler_start(fd, a, ANSWER);
	noted("mremap",
	      mremap(a->map + 4 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to
		      ? 0
		      : -1);
	note("marks %d%d", has_mark(to), has_mark(to + PAGE));
	to[1] = 1;
	store(a, 1, 1);
	handler_stop(h);
	munmap(to, 2 * PAGE);
	close(fd);
}

static void remap_part_plain(void)
{
	remap_part(0);
}

/* Pages that were sent to swap, if there is any. */
static void remap_after(bool private)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_still(8, 8);
	char *to = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *moved;

	if (private && mmap(a->map, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
			    a->file, 0) != a->map)
		die("mmap");
	memset(a->map, 7, 8 * PAGE);
	if (noted("register", reg(fd, a->map, 8 * PAGE, MODE_WP, NULL)) == 0)
		wp_all(fd, a);
	noted("pageout", madvise(a->map, 8 * PAGE, MADV_PAGEOUT));
	note_marks(a, 0, 8);
	moved = mremap(a->map, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	noted("mremap", moved == to ? 0 : -1);
	a->map = to;
	note_marks(a, 0, 8);
	load(a, 3);
	store(a, 3, 1);
	close(fd);
}

static void remap_paged_out(void)
{
	remap_after(false);
}

static void remap_private(void)
{
	remap_after(true);
}

static void remap_shrink_grow(void)
{
	int fd = uffd_new(O_NONBLOCK,
			  SHMEM_ALL | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP);
	struct area *a = area_still(8, 8);
	struct handler *h;
	char *moved;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	moved = mremap(a->map, 8 * PAGE, 4 * PAGE, 0);
	noted("shrink", handler_saw(h, 1, moved == a->map ? 0 : -1));
	note_marks(a, 0, 4);
	moved = mremap(a->map, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
	noted("grow", moved == MAP_FAILED ? -1 : 0);
	handler_stop(h);
	a->map = moved;
	h = handler_start(fd, a, ANSWER);
	note_marks(a, 0, 8);
	store(a, 1, 1);
	store(a, 6, 1);
	handler_stop(h);
	close(fd);
}

static void remap_dontunmap(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_REMAP);
	struct area *a = area_still(4, 4);
	struct handler *h;
	char *to;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	to = mremap(a->map, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	noted("mremap", handler_saw(h, 1, to == MAP_FAILED ? -1 : 0));
	note_marks(a, 0, 4);
	note("marks %d%d%d%d", has_mark(to), has_mark(to + PAGE), has_mark(to + 2 * PAGE),
	     has_mark(to + 3 * PAGE));
	handler_stop(h);
	munmap(to, 4 * PAGE);
	close(fd);
}

/* ---- pages and mappings that go ---- */

static void remove_event(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_REMOVE);
	struct area *a = area_new(8, 8);
	struct handler *h;

	reg_all(fd, a, MODE_MISS | MODE_WP);
	h = handler_start(fd, a, ANSWER);
	noted("dontneed", handler_saw(h, 1, madvise(a->map + PAGE, 2 * PAGE, MADV_DONTNEED)));
	noted("remove", handler_saw(h, 2, madvise(a->map + 4 * PAGE, PAGE, MADV_REMOVE)));
	noted("punch",
	      fallocate(a->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 6 * PAGE, PAGE));
	load(a, 1);
	load(a, 4);
	load(a, 6);
	handler_stop(h);
	close(fd);
}

static void unmap_event(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_UNMAP);
	struct area *a = area_new(8, 8);
	struct handler *h;
	char *p;

	reg_all(fd, a, MODE_WP);
	h = handler_start(fd, a, ANSWER);
	noted("munmap", handler_saw(h, 1, munmap(a->map + PAGE, 2 * PAGE)));
	p = mmap(a->map + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	noted("fixed over it", handler_saw(h, 2, p == a->map + 4 * PAGE ? 0 : -1));
	p = mmap(a->map + 6 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a->file,
		 6 * PAGE);
	noted("the file over it", handler_saw(h, 3, p == a->map + 6 * PAGE ? 0 : -1));
	noted("protect what is new", wp(fd, a, 6, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("protect what is left", wp(fd, a, 7, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	handler_stop(h);
	close(fd);
}

/* No descriptor of the mappings that come: unmapped without events, mapped again unprotected. */
static void unmap_plain(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct area *a = area_new(8, 8);
	char *p;

	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	noted("munmap", munmap(a->map + 2 * PAGE, 2 * PAGE));
	p = mmap(a->map + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 a->file, 2 * PAGE);
	noted("again", p == a->map + 2 * PAGE ? 0 : -1);
	note_marks(a, 0, 6);
	store(a, 2, 1);
	note_silence(fd, a);
	noted("register", reg(fd, p, 2 * PAGE, MODE_WP, NULL));
	note_marks(a, 0, 6);
	store(a, 3, 1);
	note_silence(fd, a);
	p = mmap(a->map + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	note_marks(a, 4, 2);
	store(a, 4, 1);
	note_silence(fd, a);
	p = mmap(a->map + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, a->file,
		 5 * PAGE);
	note_marks(a, 4, 2);
	store(a, 5, 1);
	note_silence(fd, a);
	close(fd);
}

static void *do_dontneed(void *arg)
{
	struct area *a = arg;

	if (madvise(a->map, PAGE, MADV_DONTNEED) < 0)
		noted("dontneed", -1);
	return NULL;
}

/* EAGAIN, and where the call tells how much it did. */
static void note_again(const char *what, long ret, int64_t done)
{
	note("%s: %s (%lld)", what, ret ? name_of(errno) : "0", (long long)done);
}

/* While a change is unread, the calls that depend on it say so. */
static void changing(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | UFFD_FEATURE_EVENT_REMOVE);
	struct area *a = area_still(8, 4);
	struct uffdio_move move = {
		.dst = (uintptr_t)(a->map + 7 * PAGE), .src = (uintptr_t)a->map, .len = PAGE};
	struct uffd_msg msg;
	pthread_t thread;
	int64_t done = 0;
	long ret;

	reg_all(fd, a, MODE_MISS | MODE_MIN | MODE_WP);
	if (pthread_create(&thread, NULL, do_dontneed, a))
		die("thread");
	while (!(copy(fd, a->map + 5 * PAGE, 'c', 0, &done) < 0 && errno == EAGAIN))
		usleep(100);
	note_again("copy", -1, done);
	noted("protect", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	ret = zero(fd, a->map + 6 * PAGE, 0, &done);
	note_again("zeropage", ret, done);
	ret = cont(fd, a->map + PAGE, 0, &done);
	note_again("continue", ret, done);
	ret = poison(fd, a->map + 7 * PAGE, 0, &done);
	note_again("poison", ret, done);
	ret = ioctl(fd, UFFDIO_MOVE, &move);
	note_again("move", ret, move.move);
	if (next_message(fd, a, &msg, PATIENCE) < 0)
		die("message");
	note_message(&msg, a);
	pthread_join(thread, NULL);
	noted("protect", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	close(fd);
}

/* A change that nobody reads ends with the descriptor. */
static void change_closed(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | EVENTS);
	struct area *a = area_still(8, 4);
	unsigned long since;
	pthread_t thread;
	int64_t done = 0;

	reg_all(fd, a, MODE_MISS | MODE_WP);
	if (pthread_create(&thread, NULL, do_dontneed, a))
		die("thread");
	while (!(copy(fd, a->map + 5 * PAGE, 'c', 0, &done) < 0 && errno == EAGAIN))
		usleep(100);
	since = now_ms();
	close(fd);
	pthread_join(thread, NULL);
	note(now_ms() - since < AT_ONCE ? "at once" : "late");
}

/* What a handler may do while another thread's munmap or fork waits for it. */
static _Atomic int changes; /* that are over */

static void *do_change(void *arg)
{
	struct area *a = arg;
	pid_t pid;

	munmap(a->map + 6 * PAGE, PAGE);
	changes = 1;
	pid = fork();
	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
	return NULL;
}

static void handler_is_busy(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL | EVENTS);
	struct area *a = area_still(8, 8);
	struct uffd_msg msg;
	pthread_t thread;

	reg_all(fd, a, MODE_WP);
	changes = 0;
	if (pthread_create(&thread, NULL, do_change, a))
		die("thread");
	for (int i = 0; i < 2; i++) {
		char *p;
		int other;

		while (changes < i || wp(fd, a, 0, 1, 0) == 0)
			usleep(100);
		/* The other thread is in the middle of its call. */
		p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a->file, 0);
		noted("mmap", p == MAP_FAILED ? -1 : 0);
		other = uffd_new(O_NONBLOCK, SHMEM_ALL);
		noted("register", reg(other, p, PAGE, MODE_WP, NULL));
		noted("unregister", unreg(other, p, PAGE));
		noted("munmap", munmap(p, PAGE));
		noted("close", close(other));
		if (next_message(fd, a, &msg, PATIENCE) < 0)
			die("message");
		note_message(&msg, a);
		if (msg.event == UFFD_EVENT_FORK)
			close((int)msg.arg.fork.ufd);
	}
	pthread_join(thread, NULL);
	close(fd);
}

/* A stranger to all of it: its mm is gone. */
static int make_and_send(void *arg)
{
	int sock = *(int *)arg, fd = uffd_new(0, SHMEM_ALL);

	if (reg(fd, shown->map, PAGE, MODE_WP, NULL) < 0)
		return errno;
	send_fd(sock, fd);
	return 0;
}

static void mm_gone(void)
{
	int pair[2], fd;
	unsigned long since;
	long ret = 0;

	shown = area_new(4, 4);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		die("socketpair");
	child_do(make_and_send, &pair[0], NULL);
	close(pair[0]);
	fd = recv_fd(pair[1]);
	since = now_ms();
	/* The kernel frees an mm a little after its last process has ended. */
	while (now_ms() - since < AT_ONCE && ret == 0)
		ret = wp(fd, shown, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP);
	noted("protect", ret);
	noted("copy", copy(fd, shown->map, 'c', 0, NULL));
	noted("register", reg(fd, shown->map, PAGE, MODE_WP, NULL));
	noted("unregister", unreg(fd, shown->map, PAGE));
	close(fd);
	close(pair[1]);
}

const struct conf_case conf_events[] = {
	{"fork", fork_plain},
	{"fork-event", fork_event},
	{"fork-child-faults", fork_child_faults},
	{"fork-child-let-go", fork_child_let_go},
	{"remap", remap_plain},
	{"remap-event", remap_event},
	{"remap-part", remap_part_plain},
	{"remap-paged-out", remap_paged_out},
	{"remap-private", remap_private},
	{"remap-shrink-grow", remap_shrink_grow},
	{"remap-dontunmap", remap_dontunmap},
	{"remove-event", remove_event},
	{"unmap-event", unmap_event},
	{"unmap", unmap_plain},
	{"changing", changing},
	{"change-closed", change_closed},
	{"handler-is-busy", handler_is_busy},
	{"mm-gone", mm_gone},
	{NULL, NULL},
};
