/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The watchdog has a thread of its own: the main thread is away for as long as a flush takes, and
 * that is no hang. A thread that waits for an answer that never comes says nothing, and that is all
 * it has to do then. At the end there is nothing to ask any more: then the thread asks for time.
 */
#include "wpfs/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "track/track.h"

#define TICK_S	   2
#define EXTEND_S   60
#define PATIENCE_S 1800

static struct {
	int fd;		      /* -1: nobody is told; constant after notify_open, as the next */
	uint64_t watchdog_us; /* 0: none */
	struct sockaddr_un addr;
	socklen_t addr_len;
	const char *mountpoint; /* constant while the thread runs, as the next */
	uint64_t dev;
	struct track *track;
	pthread_t thread; /* the watchdog, or at the end the one that asks for time */
	bool running;	  /* main thread */
	_Atomic uint64_t alive_s;
	pthread_mutex_t lock;
	pthread_cond_t wake; /* on CLOCK_MONOTONIC */
	bool over;	     /* lock */
} notify = {.fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

/* A path, or '@' and a name in the abstract namespace. Others (vsock) are of virtual machines. */
static int parse_address(const char *text)
{
	size_t len = strlen(text);

	if ((text[0] != '/' && text[0] != '@') || len < 2)
		return -EAFNOSUPPORT;
	if (len > sizeof(notify.addr.sun_path) - (text[0] == '/'))
		return -ENAMETOOLONG;
	notify.addr.sun_family = AF_UNIX;
	memcpy(notify.addr.sun_path, text, len);
	if (text[0] == '@')
		notify.addr.sun_path[0] = '\0';
	/* An abstract name ends where its length says. */
	notify.addr_len =
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (text[0] == '/'));
	return 0;
}

/* Of this process, or of whoever reads it when no pid is given. 0: none. */
static uint64_t watchdog_us(const char *usec, const char *pid)
{
	unsigned long long us;
	char *end;

	if (!usec || (pid && strtoll(pid, NULL, 10) != getpid()))
		return 0;
	errno = 0;
	us = strtoull(usec, &end, 10);
	if (errno || *end || end == usec || us == 0) {
		log_warn("WATCHDOG_USEC=%s is no time: there is no watchdog", usec);
		return 0;
	}
	return us;
}

void notify_open(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	int r = path ? parse_address(path) : -ENOENT;

	notify.watchdog_us = watchdog_us(getenv("WATCHDOG_USEC"), getenv("WATCHDOG_PID"));
	if (r == 0) {
		notify.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		r = notify.fd < 0 ? -errno : 0;
	}
	if (r < 0 && path)
		log_warn("cannot tell the service manager at NOTIFY_SOCKET=%s: %s", path,
			 log_errstr(r));
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
}

void notify_send(const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	int n;

	if (notify.fd < 0)
		return;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof(text))
		n = sizeof(text) - 1;
	if (sendto(notify.fd, text, (size_t)n, MSG_NOSIGNAL, (struct sockaddr *)&notify.addr,
		   notify.addr_len) < 0)
		log_debug("the service manager does not take '%s': %s", text, log_errstr(errno));
}

/* ---- the watchdog ---- */

/* True: it is to end. */
static bool wait_us(uint64_t us)
{
	struct timespec until;
	bool over;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)(us / 1000000);
	until.tv_nsec += (long)(us % 1000000) * 1000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&notify.lock);
	while (!notify.over &&
	       pthread_cond_timedwait(&notify.wake, &notify.lock, &until) != ETIMEDOUT)
		;
	over = notify.over;
	pthread_mutex_unlock(&notify.lock);
	return over;
}

/*
 * A request of our own, through the kernel to a FUSE thread: the attributes of the root, from no
 * cache. Not of the mount itself but of a detached copy of it, made for this one call: an umount(2)
 * meanwhile must not find the mount in use. Something else may be mounted over it, or it is moved;
 * then nothing is asked.
 */
static void ask_mount(void)
{
	_cleanup_close_ int fd =
		open_tree(AT_FDCWD, notify.mountpoint,
			  OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW);
	struct statx stx;

	if (fd < 0 || statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) < 0 ||
	    makedev(stx.stx_dev_major, stx.stx_dev_minor) != notify.dev)
		return;
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx) < 0)
		log_debug("watchdog: no attributes of %s: %s", notify.mountpoint,
			  log_errstr(errno));
}

static void *watchdog_thread(void *arg)
{
	/* Thrice in the time that is given: a slow answer or two are no reason to be killed. */
	do {
		track_ping(notify.track);
		ask_mount();
		notify_send("WATCHDOG=1");
	} while (!wait_us(notify.watchdog_us / 3));
	return NULL;
}

static int start_thread(void *(*main)(void *), const char *name)
{
	pthread_condattr_t attr;
	int r;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&notify.wake, &attr);
	pthread_condattr_destroy(&attr);
	notify.over = false;
	r = -pthread_create(&notify.thread, NULL, main, NULL);
	notify.running = r == 0;
	if (r == 0)
		pthread_setname_np(notify.thread, name);
	else
		pthread_cond_destroy(&notify.wake);
	return r;
}

int notify_watch(const char *mountpoint, uint64_t dev, struct track *track)
{
	if (notify.fd < 0 || !notify.watchdog_us)
		return 0;
	notify.mountpoint = mountpoint;
	notify.dev = dev;
	notify.track = track;
	return start_thread(watchdog_thread, "wpfs-watchdog");
}

void notify_unwatch(void)
{
	if (!notify.running)
		return;
	pthread_mutex_lock(&notify.lock);
	notify.over = true;
	pthread_cond_broadcast(&notify.wake);
	pthread_mutex_unlock(&notify.lock);
	pthread_join(notify.thread, NULL);
	pthread_cond_destroy(&notify.wake);
	notify.running = false;
}

/* ---- the end ---- */

static uint64_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec;
}

void notify_alive(void)
{
	atomic_store(&notify.alive_s, now_s());
}

static void *ending_thread(void *arg)
{
	do {
		notify_send("EXTEND_TIMEOUT_USEC=%u", EXTEND_S * 1000000u);
	} while (!wait_us(TICK_S * 1000000) && now_s() - atomic_load(&notify.alive_s) < PATIENCE_S);
	return NULL;
}

void notify_ending(void)
{
	int r;

	if (notify.fd < 0 || notify.running)
		return;
	notify_alive();
	r = start_thread(ending_thread, "wpfs-ending");
	if (r)
		log_warn("the service manager is not asked for time to write the store: %s",
			 log_errstr(r));
}

void notify_close(void)
{
	notify_unwatch();
	close_fd(&notify.fd);
}
