/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs with userfaultfds of their own. wpfs steps aside where they register, keeps a copy of
 * each so that its marks outlive the process, and never reads or polls it: that would steal
 * messages. A copy is dropped before the program closes its last descriptor, so that no writer
 * ever waits on a uffd that nobody reads.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/residency.h"
#include "uffd/uffd.h"

#define OWN_LOOK_MS  100
#define OWN_THOROUGH 10 /* looks; at those every process is looked at where nobody waits */

static bool own_range_ok(uint64_t addr, uint64_t len)
{
	return !((addr | len) & (WPFS_PAGE_SIZE - 1)) && len && addr + len > addr;
}

static void own_drop(struct tmm *tm, struct own_uffd *own)
{
	DL_DELETE(tm->uffds, own);
	close(own->copy);
	free(own);
}

void own_free_all(struct tmm *tm)
{
	while (tm->uffds)
		own_drop(tm, tm->uffds);
}

/* Where wpfs has registered. */
struct own_ranges {
	struct own_range {
		uint64_t start, end;
	} * p;
	size_t nr, room;
};

static int own_ranges_add(struct own_ranges *ranges, uint64_t start, uint64_t end)
{
	if (ranges->nr == ranges->room) {
		size_t room = ranges->room ? ranges->room * 2 : 16;
		struct own_range *bigger = reallocarray(ranges->p, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		ranges->p = bigger;
		ranges->room = room;
	}
	ranges->p[ranges->nr++] = (struct own_range){start, end};
	return 0;
}

/*
 * The model of [start, end) becomes what it is without wpfs's registrations, which are added to
 * *ranges; what was armed there can be proven no longer. If asked again, also where the mapping is
 * taken for the program's: of an asynchronous one that a fork or a moment between two messages made
 * unknown nothing tells but that ours can be registered anew.
 */
static int own_plan_aside(struct track *t, struct tmm *tm, int uffd,
			  const struct wpfs_uffd_range *range, struct own_ranges *ranges)
{
	const uint64_t start = range->addr, end = start + range->len;
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t from = vma->start > start ? vma->start : start;
		uint64_t to = vma->end < end ? vma->end : end;
		struct mm_file *f = mm_file_find(&tm->mm, vma->file);

		if (from >= to || !vma->registered ||
		    (vma->owner != MM_WPFS && !(range->again && vma->async)))
			continue;
		if (uffd < 0)
			return uffd;
		if (vma->owner != MM_WPFS && residency_register(t, uffd, from, to, vma->file) < 0)
			continue;
		if (f)
			r = mm_doubt_armed(&tm->mm, f,
					   vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT),
					   (to - from) >> WPFS_PAGE_SHIFT);
		if (r == 0)
			r = residency_bring_back(t, vma->file);
		if (r == 0)
			r = carried_note(tm, vma, from, to);
		if (r == 0)
			r = own_ranges_add(ranges, from, to);
		if (r == 0)
			r = mm_set_registered(&tm->mm, from, to, false, MM_WPFS, false);
	}
	return r;
}

/*
 * Takes wpfs's registrations off what a REGISTER is about. A daemon after this one must have read
 * that before anything is let go, or it would take what the program's uffd has marked for wpfs's
 * marks; nor does it know which of the marks there are the program's, until the REGISTER is over.
 * Gives how many there were, or -errno.
 */
static int own_step_aside(struct track *t, struct tmm *tm, const struct wpfs_uffd_range *range)
{
	const bool marks = range->mode & UFFDIO_REGISTER_MODE_WP;
	_cleanup_close_ int uffd = tmm_uffd(tm);
	struct own_ranges ranges = {NULL};
	int r = own_plan_aside(t, tm, uffd, range, &ranges);
	const bool news = ranges.nr > 0 || !tm->mm.own_uffds || (marks && tm->own_carries);

	tm->mm.own_uffds = true;
	tm->own_unsure = ranges.nr > 0 || (marks && tm->own_carries);
	if (news) {
		int stored = persist_mm_lazy(t, tm);

		r = r < 0 ? r : stored;
	}
	for (size_t i = 0; i < ranges.nr; i++) {
		const struct own_range *at = &ranges.p[i];
		int failed = uffd_unregister(uffd, at->start, at->end);

		if (failed < 0) {
			r = failed;
			mm_set_registered(&tm->mm, at->start, at->end, true, MM_WPFS, true);
		}
	}
	if (!marks && tm->own_unsure) { /* of such a REGISTER no other word comes */
		tm->own_unsure = false;
		if (r == 0)
			r = persist_mm_lazy(t, tm);
	}
	free(ranges.p);
	return r < 0 ? r : (int)ranges.nr;
}

/* What /proc says of our copy, after this key; "" if it does not. The caller frees *text. */
static const char *own_info(const struct own_uffd *own, const char *key, char **text)
{
	const char *at;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", own->copy);
	if (fdio_read_file(AT_FDCWD, path, text, NULL) < 0)
		return "";
	at = strstr(*text, key);
	return at ? at + strlen(key) : "";
}

/* Does a fault wait to be resolved, its message read or not? */
static bool own_is_waited_for(const struct own_uffd *own)
{
	_cleanup_free_ char *text = NULL;

	return strtoul(own_info(own, "\ntotal:", &text), NULL, 10) > 0;
}

/* Threads that wait for an event to be read are in no count, so one must always reckon with them.
 */
static bool own_has_events(const struct own_uffd *own)
{
	uint64_t features;

	if (uffd_features(own->copy, &features) < 0)
		return true;
	return features & (UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
			   UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP);
}

/* Looks come often only while there is something to look at. */
static void own_set_timer(struct track *t, bool on)
{
	const long ns = on ? OWN_LOOK_MS * 1000000l : 0;
	const struct itimerspec often = {.it_interval.tv_nsec = ns, .it_value.tv_nsec = ns};

	if (timerfd_settime(t->own_watch.fd, 0, &often, NULL) < 0)
		log_err("track: the program's userfaultfds are not looked at: %s",
			log_errstr(errno));
}

/* Keeps one copy per uffd of the program, whatever numbers it has. */
static int own_keep(struct track *t, struct tmm *tm, int number, int *fd)
{
	struct own_uffd *own;
	pid_t self = getpid();

	DL_FOREACH (tm->uffds, own) {
		if (syscall(SYS_kcmp, self, self, KCMP_FILE, own->copy, *fd) == 0)
			return own->copy;
	}
	own = calloc(1, sizeof(*own));
	if (!own)
		return -ENOMEM;
	own->holder = tm->program.pid;
	own->number = number;
	own->copy = steal_fd(fd);
	own->events = own_has_events(own);
	DL_APPEND(tm->uffds, own);
	own_set_timer(t, true);
	return own->copy;
}

void own_post(struct request *rq)
{
	const struct wpfs_uffd_range *range = rq->body;
	uint64_t end = range->addr + range->len;
	struct tmm *tm = rq->c->tmm;
	int r = -EINVAL;
	int copy;

	if (own_range_ok(range->addr, range->len) && rq->fds->nr == 1 &&
	    uffd_is_uffd(rq->fds->fd[0])) {
		copy = own_keep(rq->t, tm, range->fd, &rq->fds->fd[0]);
		tm->mm.own_uffds = true;
		/* Who has given up waiting goes on, and has perhaps stored there by now. */
		r = copy < 0		       ? copy
		    : client_is_hung_up(rq->c) ? 0
					       : carried_rearm(rq, copy, range->addr, end);
		if (r == 0)
			r = mm_set_registered(&tm->mm, range->addr, end, true, MM_PROGRAM, false);
		if (r == 0)
			r = tmm_harvest(rq->t, tm);
		if (r == 0) {
			tm->own_unsure = false;
			r = persist_mm(rq->t, tm);
		}
	}
	if (r < 0)
		log_warn("track: the uffd of pid %d is not tracked: %s", rq->c->id.pid,
			 log_errstr(r));
	request_reply(rq, r, NULL, 0);
}

/*
 * What of [start, end) was the program's is nobody's, and its marks are gone for good, as in the
 * kernel. What wpfs has there now it took after the UNREGISTER, at a look before this message.
 */
static int own_forget(struct tmm *tm, uint64_t start, uint64_t end)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t from = vma->start > start ? vma->start : start;
		uint64_t to = vma->end < end ? vma->end : end;

		if (from < to && vma->registered && vma->owner == MM_PROGRAM)
			r = mm_set_registered(&tm->mm, from, to, false, MM_WPFS, false);
	}
	return r;
}

void own_unreg(struct request *rq)
{
	const struct wpfs_uffd_range *range = rq->body;
	struct tmm *tm = rq->c->tmm;
	int r = -EINVAL;

	if (own_range_ok(range->addr, range->len)) {
		/* A REGISTER that failed changed nothing but that wpfs had stepped aside. */
		if (range->mode)
			r = 0;
		else
			r = own_forget(tm, range->addr, range->addr + range->len);
		if (r == 0)
			r = tmm_harvest(rq->t, tm);
		if (r == 0 && tm->own_unsure) {
			tm->own_unsure = false;
			r = persist_mm_lazy(rq->t, tm);
		}
	}
	request_reply(rq, r, NULL, 0);
}

static bool own_is(pid_t pid, int fd, const struct own_uffd *own)
{
	return syscall(SYS_kcmp, pid, getpid(), KCMP_FILE, fd, own->copy) == 0;
}

/* Is entry `name` of a /proc/PID/fd a userfaultfd? */
static bool own_entry_is_uffd(DIR *dir, const char *name)
{
	char target[32];
	ssize_t n = readlinkat(dirfd(dir), name, target, sizeof(target) - 1);

	if (n <= 0)
		return false;
	target[n] = '\0';
	return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

/*
 * A number outside [first, last] that this process has the uffd under; -1: none. *pid becomes the
 * thread whose table that is.
 */
static int own_number_in(pid_t *pid, const struct own_uffd *own, unsigned first, unsigned last)
{
	_cleanup_dir_ DIR *dir = proc_open_fds(*pid, pid);
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		unsigned fd = (unsigned)atoi(de->d_name);

		if ((fd < first || fd > last) && own_entry_is_uffd(dir, de->d_name) &&
		    own_is(*pid, (int)fd, own))
			return (int)fd;
	}
	return -1;
}

/*
 * Has anybody the uffd but us? It may have been inherited, or handed to another process to serve.
 * Remembers who, so that the next look is one system call.
 */
static bool own_find_holder(const struct tmm *tm, struct own_uffd *own)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;

	if (own_is(own->holder, own->number, own))
		return true;
	own->holder = tm->program.pid;
	own->number = own_number_in(&own->holder, own, 1, 0);
	if (own->number >= 0)
		return true;
	dir = opendir("/proc");
	while (dir && (de = readdir(dir))) {
		pid_t pid = atoi(de->d_name);

		if (pid <= 0 || pid == getpid())
			continue;
		own->holder = pid;
		own->number = own_number_in(&own->holder, own, 1, 0);
		if (own->number >= 0)
			return true;
	}
	return dir == NULL;
}

/*
 * A descriptor that was closed unseen while nobody waited is known by our copy alone: what is
 * registered with it is in nobody's way but for us. 1: there was one.
 */
static int own_let_go_of_closed(struct tmm *tm)
{
	struct own_uffd *own, *next;
	int dropped = 0;

	DL_FOREACH_SAFE(tm->uffds, own, next)
	{
		if (own_find_holder(tm, own))
			continue;
		own_drop(tm, own);
		dropped = 1;
	}
	return dropped;
}

/*
 * The last look at what a REGISTER is about, and what wpfs keeps in mind until it is over. One that
 * is asked for again has had its last look before; one without WP gets no marks, and no other word
 * comes of it: what is carried there is not watched any more, and counts as written.
 */
static int own_look_last(struct track *t, struct tmm *tm, const struct wpfs_uffd_range *range)
{
	const uint64_t start = range->addr, end = start + range->len;
	const bool marks = range->mode & UFFDIO_REGISTER_MODE_WP;
	int r = 0;

	if (!marks || !range->again || tm->mm.aside_start != start || tm->mm.aside_end != end) {
		carried_forget(tm);
		tm->own_carries = false;
		if (marks)
			r = carried_open(t, tm, start, end);
	}
	if (r == 0)
		r = tmm_harvest(t, tm);
	if (r == 0)
		carried_aside(tm, start, end);
	return r;
}

void own_pre(struct request *rq)
{
	const struct wpfs_uffd_range *range = rq->body;
	struct tmm *tm = rq->c->tmm;
	int r = -EINVAL, gone = range->again ? own_let_go_of_closed(tm) : 0;

	if (own_range_ok(range->addr, range->len)) {
		/* A fork child that has mapped nothing itself has no row yet. */
		r = tm->state == TMM_NEW ? tmm_enlist(rq->t, tm) : 0;
		if (r == 0)
			r = own_look_last(rq->t, tm, range);
		if (r == 0)
			r = own_step_aside(rq->t, tm, range);
		tm->mm.own_uffds = true; /* a daemon after this one has to look for them */
		tm->announced.aside_start = range->addr;
		tm->announced.aside_end = range->addr + range->len;
		tmm_announce(&tm->announced);
	}
	if (r >= 0) /* is there something less in the way than when it was refused? */
		r = range->again && (gone || r);
	request_reply(rq, r, NULL, 0);
}

void own_for_each_fd(struct track *t, struct tmm *tm, own_fd_fn fn)
{
	_cleanup_close_ int thread = -1;
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	pid_t tid;

	dir = proc_open_fds(tm->program.pid, &tid);
	if (tid > 0 && tid != tm->program.pid)
		thread = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
	while (dir && (de = readdir(dir))) {
		int number = atoi(de->d_name);
		_cleanup_close_ int fd = -1;

		if (!own_entry_is_uffd(dir, de->d_name))
			continue;
		fd = proc_borrow_fd(thread >= 0 ? thread : tm->program_watch.fd, number);
		fn(t, tm, number, &fd);
	}
}

static void own_take_back(struct track *t, struct tmm *tm, int number, int *fd)
{
	if (*fd >= 0 && residency_is_uffd(tm, *fd))
		return; /* wpfs's own, which the program keeps */
	if (*fd < 0 || own_keep(t, tm, number, fd) < 0)
		log_warn("track: a userfaultfd of pid %d is not kept: its marks end with it",
			 tm->program.pid);
}

void own_resume(struct track *t, struct tmm *tm)
{
	if (tm->mm.own_uffds)
		own_for_each_fd(t, tm, own_take_back);
}

/*
 * A close() that the shim did not see (by another process, a raw system call, an io_uring) leaves
 * our copy as the last one: a writer would wait for ever. Two looks, because a descriptor can move
 * from one process to another while we look. It is let go of only if somebody waits, or may wait
 * unseen: it can be in no process and yet be held, by a message in a socket or an io_uring.
 */
static bool own_is_abandoned(const struct tmm *tm, struct own_uffd *own, bool thorough)
{
	bool waited;

	if (own_is(own->holder, own->number, own)) {
		own->missed = 0;
		return false;
	}
	waited = own->events || own_is_waited_for(own);
	if (!waited && !thorough)
		return false;
	own->missed = own_find_holder(tm, own) ? 0 : own->missed + 1;
	return waited && own->missed >= 2;
}

void own_look(struct track *t)
{
	struct own_uffd *own, *next;
	bool thorough = false, any = false;
	struct tmm *tm;
	uint64_t count;

	if (read(t->own_watch.fd, &count, sizeof(count)) < 0)
		return;
	t->own_looks++;
	thorough = t->own_looks % OWN_THOROUGH == 0;
	DL_FOREACH (t->tmms, tm) {
		DL_FOREACH_SAFE(tm->uffds, own, next)
		{
			if (own_is_abandoned(tm, own, thorough))
				own_drop(tm, own);
		}
		any |= tm->uffds != NULL;
	}
	if (!any)
		own_set_timer(t, false);
}

void own_close(struct request *rq)
{
	const struct wpfs_uffd_close *msg = rq->body;
	struct tmm *tm = rq->c->tmm;
	struct own_uffd *own, *next;
	pid_t tid = proc_thread(tm->program.pid);
	int other = -1;

	DL_FOREACH_SAFE(tm->uffds, own, next)
	{
		if (!own_is(tid, msg->fd, own))
			continue;
		other = own_number_in(&tid, own, msg->first, msg->last);
		if (other < 0)
			own_drop(tm, own);
		else
			own->number = other;
	}
	request_reply(rq, other + 1, NULL, 0);
}
