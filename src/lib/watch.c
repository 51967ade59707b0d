/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A callback before the first store to a page: a userfaultfd of this process, with synchronous
 * write-protection, and one thread that reads it for all handles. The registration goes through the
 * shim, so that the daemon steps aside, keeps a copy of the userfaultfd (the marks then outlive the
 * process) and protects what an earlier run left.
 *
 * The kernel may send a second message about a page that was un-protected between a thread's fault
 * and its message. So each watch has a bit for every page that was called for since it was last
 * protected; a message about such a page is only answered. A callback runs without any lock; if the
 * page is watched anew meanwhile, its bit is clear afterwards and it is called for again, before
 * the mark goes: the store that waits will come after that wpfs_watch.
 *
 * Locks: setup, then watch_table, then the shim's (under setup only). UFFDIO_WRITEPROTECT is done
 * under watch_table, where "protected" and "bit clear" must be one step; it waits for no page
 * fault, since those drop the kernel's locks before they wait for us. Both are taken over a fork.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/compat.h"
#include "base/units.h"
#include "lib/watch.h"

static pthread_mutex_t setup = PTHREAD_MUTEX_INITIALIZER; /* one change of watches at a time */

/* A userfaultfd, and what tells whether the number is it still. */
struct reader {
	int fd;
	dev_t dev;
	ino_t ino;
	uintptr_t number; /* of the thread that reads it */
};

static struct reader current = {
	.fd = -1};		     /* changed under setup and table: either is enough to read */
static bool running;		     /* guarded by setup: the thread is there */
static _Atomic uintptr_t thread_now; /* number of the thread that is to read it */
static __thread bool in_reader;

static uint64_t calling; /* guarded by table: the page of the callback that runs; 0: none */
static const struct wpfs *calling_for; /* guarded by table: whose watch it was called for */
static uint64_t calls;		       /* guarded by table: so far */
static pthread_cond_t called_back = PTHREAD_COND_INITIALIZER; /* with table: a callback is over */

/* ---- the thread ---- */

static int write_protect(int fd, uint64_t start, uint64_t len, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = start, .len = len},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	int ret;

	do {
		ret = ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
	} while (ret < 0 && errno == EAGAIN);
	return ret < 0 ? -errno : 0;
}

/* The page stays as it is; who waits tries again. */
static void wake(int fd, uint64_t page)
{
	struct uffdio_range range = {.start = page, .len = WPFS_PAGE};

	ioctl(fd, UFFDIO_WAKE, &range);
}

/* A store to the page waits. Under the table's lock, but for the callback. */
static void serve(int fd, uint64_t page)
{
	bool called = false;
	struct watch *w;

	while ((w = watch_at(page)) && !watch_test_called(w, page)) {
		wpfs_write_fn fn = w->fn;
		void *arg = w->arg;

		watch_set_called(w, page);
		calling = page;
		calling_for = w->handle;
		calls++;
		pthread_mutex_unlock(&watch_table);
		fn((void *)page, arg);
		pthread_mutex_lock(&watch_table);
		calling = 0;
		pthread_cond_broadcast(&called_back);
		called = true;
	}
	if (!called || write_protect(fd, page, WPFS_PAGE, false) != 0)
		wake(fd, page);
}

/* The program may have closed the number and opened something else. */
static bool is_ours(const struct reader *reader)
{
	struct stat st;

	return fstat(reader->fd, &st) == 0 && st.st_dev == reader->dev && st.st_ino == reader->ino;
}

/*
 * Before a read, so that nobody else's file is read; after it, because a thread that waits in
 * read(2) keeps a closed userfaultfd until its next message.
 */
static bool is_to_go_on(const struct reader *me)
{
	return thread_now == me->number && is_ours(me);
}

static void *reader_main(void *arg)
{
	const struct reader me = *(struct reader *)arg;
	struct uffd_msg msg;

	free(arg);
	in_reader = true;
	pthread_setname_np(pthread_self(), "wpfs-watch");
	while (is_to_go_on(&me)) {
		ssize_t n = read(me.fd, &msg, sizeof(msg));

		if (n != (ssize_t)sizeof(msg)) {
			if (n < 0 && (errno == EINTR || errno == EAGAIN))
				continue;
			break;
		}
		if (!is_to_go_on(&me))
			break;
		if (msg.event != UFFD_EVENT_PAGEFAULT)
			continue;
		pthread_mutex_lock(&watch_table);
		serve(me.fd, msg.arg.pagefault.address & ~(uint64_t)(WPFS_PAGE - 1));
		pthread_mutex_unlock(&watch_table);
	}
	return NULL;
}

static int start_thread(struct reader *reader)
{
	struct reader *its = malloc(sizeof(*its));
	sigset_t all, before;
	pthread_t thread;
	int err;

	if (!its)
		return -ENOMEM;
	reader->number = ++thread_now;
	*its = *reader;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&thread, NULL, reader_main, its);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!err)
		pthread_detach(thread);
	else
		free(its);
	return -err;
}

/* ---- fork: the child has no watches, and no thread ---- */

static void fork_before(void)
{
	pthread_mutex_lock(&setup);
	pthread_mutex_lock(&watch_table);
}

static void fork_in_parent(void)
{
	pthread_mutex_unlock(&watch_table);
	pthread_mutex_unlock(&setup);
}

static void fork_in_child(void)
{
	watch_table_empty();
	/* It is of the parent's memory: held here, it would outlive the parent. */
	if (current.fd >= 0 && is_ours(&current))
		close(current.fd);
	current.fd = -1;
	running = false;
	calling = 0;
	pthread_cond_init(&called_back, NULL);
	pthread_mutex_unlock(&watch_table);
	pthread_mutex_unlock(&setup);
}

/* ---- start ---- */

/* The userfaultfd and its thread, at the first watch. Under setup. 0 or -errno. */
static int start(struct wpfs *handle)
{
	static bool forks_seen;
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	struct reader reader;
	struct stat st;
	int fd, err = 0;

	if (running && is_ours(&current))
		return 0;
	/* It was closed behind our back: its thread ends with the next message, and no watch is
	 * one any more. */
	running = false;
	watch_table_forget();
	/* After the shim's own: it is then called inside of ours. */
	if (!forks_seen && pthread_atfork(fork_before, fork_in_parent, fork_in_child) != 0)
		return -ENOMEM;
	forks_seen = true;
	fd = handle->core->new_uffd(handle->mount);
	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api) < 0 || fstat(fd, &st) < 0 || fcntl(fd, F_SETFL, 0) < 0)
		err = -errno;
	if (!err) {
		reader = (struct reader){fd, st.st_dev, st.st_ino, 0};
		err = start_thread(&reader);
	}
	if (err) {
		close(fd);
		return err;
	}
	pthread_mutex_lock(&watch_table);
	current = reader;
	pthread_mutex_unlock(&watch_table);
	running = true;
	return 0;
}

/* ---- calls ---- */

static bool pages_valid(uint64_t addr, uint64_t len)
{
	return len > 0 && !((addr | len) & (WPFS_PAGE - 1)) && addr + len > addr;
}

/* In one step for the thread: these pages are protected, and none was called for. */
static int insert_and_protect(struct watch *w, bool resume)
{
	int err;

	pthread_mutex_lock(&watch_table);
	if (resume) /* nothing is protected anew: a late message must find what it was */
		watch_keep_called(w);
	err = watch_cut(w->start, w->end);
	if (!err) {
		watch_append(w);
		if (!resume)
			err = write_protect(current.fd, w->start, w->end - w->start, true);
	}
	pthread_mutex_unlock(&watch_table);
	return err;
}

/* Takes the range from the thread and from the userfaultfd; who waits there goes on. Under setup.
 */
static int end_watches(struct wpfs *handle, uint64_t start, uint64_t end)
{
	struct uffdio_range range = {.start = start, .len = end - start};
	int err;

	pthread_mutex_lock(&watch_table);
	err = watch_cut(start, end);
	pthread_mutex_unlock(&watch_table);
	if (!err)
		handle->core->uffd_unregister(current.fd, &range);
	return err;
}

static int watch_locked(struct wpfs *handle, uint64_t addr, uint64_t len, bool resume,
			const struct watch *like)
{
	struct uffdio_register reg = {
		.range = {.start = addr, .len = len},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct watch *w;
	long err = start(handle);

	if (err)
		return (int)err;
	if (watch_by_others(addr, addr + len, like)) /* nobody changes them but under setup */
		return -EEXIST;
	w = watch_new(addr, addr + len, like);
	if (!w)
		return -ENOMEM;
	if (!watch_covers(addr, addr + len))
		err = handle->core->uffd_register(current.fd, &reg);
	if (err) {
		free(w);
		return (int)err;
	}
	err = insert_and_protect(w, resume);
	if (err) {
		if (watch_at(addr) != w)
			free(w);
		end_watches(handle, addr, addr + len);
	}
	return (int)err;
}

int wpfs_watch(struct wpfs *handle, void *addr, size_t len, unsigned flags, wpfs_write_fn fn,
	       void *arg)
{
	struct watch like = {.handle = handle, .fn = fn, .arg = arg};
	uint64_t start = (uint64_t)addr;
	int err;

	if (!pages_valid(start, len) || !fn || (flags & ~WPFS_WATCH_RESUME))
		return lib_fail(-EINVAL, "wpfs_watch",
				"not whole pages, no callback or unknown flags");
	if (!handle->core->covers(handle->mount, start, len))
		return lib_fail(-EINVAL, "wpfs_watch",
				"not all of it is mapped from this mount with wpfs_map");
	pthread_mutex_lock(&setup);
	err = watch_locked(handle, start, len, flags & WPFS_WATCH_RESUME, &like);
	pthread_mutex_unlock(&setup);
	if (err == -EEXIST)
		return lib_fail(err, "wpfs_watch", "part of it is watched for somebody else");
	return err ? lib_fail_errno(err, "wpfs_watch") : 0;
}

/* Waits for a callback of a page in the range that began before; not in the thread itself. */
static void wait_for_call(uint64_t start, uint64_t end)
{
	uint64_t seen;

	if (in_reader)
		return;
	pthread_mutex_lock(&watch_table);
	seen = calls;
	while (calling >= start && calling < end && calls == seen)
		pthread_cond_wait(&called_back, &watch_table);
	pthread_mutex_unlock(&watch_table);
}

int wpfs_unwatch(struct wpfs *handle, void *addr, size_t len)
{
	uint64_t start = (uint64_t)addr;
	int err = 0;

	if (!pages_valid(start, len))
		return lib_fail(-EINVAL, "wpfs_unwatch", "not whole pages");
	pthread_mutex_lock(&setup);
	if (watch_overlaps(start, len))
		err = end_watches(handle, start, start + len);
	pthread_mutex_unlock(&setup);
	if (err)
		return lib_fail_errno(err, "wpfs_unwatch");
	wait_for_call(start, start + len);
	return 0;
}

/* The same of one that has ended its watch itself: that is in no table any more. */
static void wait_for_call_of(const struct wpfs *handle)
{
	uint64_t seen;

	if (in_reader)
		return;
	pthread_mutex_lock(&watch_table);
	seen = calls;
	while (calling && calling_for == handle && calls == seen)
		pthread_cond_wait(&called_back, &watch_table);
	pthread_mutex_unlock(&watch_table);
}

void watch_end_all(struct wpfs *handle)
{
	uint64_t start, len;

	while (watch_any_of(handle, &start, &len)) {
		if (wpfs_unwatch(handle, (void *)start, len) != 0)
			return; /* whole watches need no memory to end */
	}
	wait_for_call_of(handle);
}
