/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "track/watcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "uffd/proc.h"

#define READY_MS	10000 /* a new process of a busy machine has not run before */
#define WATCHER_SOCK	3     /* in the other process */
#define WATCHER_INOTIFY 4

struct watcher {
	int inotify_fd;
	int sock;
	pid_t pid;
	uint32_t seq;
};

struct watcher_request {
	uint32_t seq;
	uint64_t dev, ino;
	char path[PATH_MAX];
};

struct watcher_answer {
	uint32_t seq;
	int32_t result;
};

static dev_t watcher_dev(const struct statx *stx)
{
	return makedev(stx->stx_dev_major, stx->stx_dev_minor);
}

/* ---- the other process: no memory is allocated and no lock taken after the fork ---- */

static int watcher_watch(const struct watcher_request *rq)
{
	_cleanup_close_ int fd = open(rq->path, O_PATH | O_CLOEXEC);
	struct statx stx;
	char link[40];
	int wd;

	if (fd < 0 ||
	    statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &stx) < 0)
		return -errno;
	if (watcher_dev(&stx) != rq->dev || stx.stx_ino != rq->ino)
		return -ESTALE;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	wd = inotify_add_watch(WATCHER_INOTIFY, link, IN_MODIFY | IN_ONESHOT);
	return wd < 0 ? -errno : wd;
}

/* Keeps nothing of the daemon's, /dev/fuse least of all; ends when the daemon has. */
static _Noreturn void watcher_main(int sock, int inotify_fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	const struct watcher_answer ready = {0};
	struct watcher_request rq;

	prctl(PR_SET_NAME, "wpfs-watcher");
	/* First out of the way of the numbers they are to have. */
	sock = fcntl(sock, F_DUPFD, WATCHER_INOTIFY + 1);
	inotify_fd = fcntl(inotify_fd, F_DUPFD, WATCHER_INOTIFY + 1);
	/* Who started the daemon may wait for the end of its output. */
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (dup2(null, fd) < 0)
			_exit(1);
	if (sock < 0 || inotify_fd < 0 || dup2(sock, WATCHER_SOCK) < 0 ||
	    dup2(inotify_fd, WATCHER_INOTIFY) < 0 || close_range(WATCHER_INOTIFY + 1, ~0u, 0) < 0 ||
	    chdir("/") < 0 || send(WATCHER_SOCK, &ready, sizeof(ready), MSG_NOSIGNAL) < 0)
		_exit(1);
	while (recv(WATCHER_SOCK, &rq, sizeof(rq), 0) == (ssize_t)sizeof(rq)) {
		struct watcher_answer answer = {.seq = rq.seq};

		rq.path[sizeof(rq.path) - 1] = '\0';
		answer.result = watcher_watch(&rq);
		if (send(WATCHER_SOCK, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
			break;
	}
	_exit(0);
}

/* ---- the daemon ---- */

/*
 * Until it has let go of everything the mount would outlive a daemon that is killed, and the next
 * one would find it in use.
 */
static void watcher_wait_ready(const struct watcher *w)
{
	struct pollfd pfd = {.fd = w->sock, .events = POLLIN};
	struct watcher_answer ready;

	if (poll(&pfd, 1, READY_MS) > 0)
		recv(w->sock, &ready, sizeof(ready), MSG_DONTWAIT);
}

int watcher_start(int inotify_fd, struct watcher **watcher)
{
	struct watcher *w = calloc(1, sizeof(*w));
	int socks[2], r = 0;

	if (!w)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) < 0) {
		free(w);
		return -errno;
	}
	*w = (struct watcher){.inotify_fd = inotify_fd, .sock = socks[0]};
	w->pid = fork();
	if (w->pid == 0)
		watcher_main(socks[1], inotify_fd);
	if (w->pid < 0)
		r = -errno;
	close(socks[1]);
	if (r < 0) {
		close(socks[0]);
		free(w);
		return r;
	}
	watcher_wait_ready(w);
	*watcher = w;
	return 0;
}

void watcher_stop(struct watcher *w)
{
	if (!w)
		return;
	close(w->sock);
	kill(w->pid, SIGKILL); /* it may be in a request that nobody answers yet */
	while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR)
		continue;
	free(w);
}

static int64_t watcher_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int watcher_add(struct watcher *w, const char *path, uint64_t dev, uint64_t ino)
{
	struct watcher_request rq = {.seq = ++w->seq, .dev = dev, .ino = ino};
	const int64_t until = watcher_now_ms() + WATCHER_MS;

	snprintf(rq.path, sizeof(rq.path), "%s", path);
	if (send(w->sock, &rq, sizeof(rq), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	for (;;) {
		struct pollfd pfd = {.fd = w->sock, .events = POLLIN};
		int64_t left = until - watcher_now_ms();
		struct watcher_answer answer;

		if (left <= 0 || poll(&pfd, 1, (int)left) == 0)
			return -ETIMEDOUT;
		if (recv(w->sock, &answer, sizeof(answer), MSG_DONTWAIT) !=
		    (ssize_t)sizeof(answer)) {
			if (errno == EAGAIN || errno == EINTR)
				continue;
			return -EPIPE;
		}
		if (answer.seq == rq.seq)
			return answer.result;
		if (answer.result > 0) /* of one that was given up */
			inotify_rm_watch(w->inotify_fd, answer.result);
	}
}
