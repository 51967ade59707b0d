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
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/residency.h"
#include "uffd/uffd.h"

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

/* Takes wpfs's registration off [start, end); what was armed there can be proven no longer. */
static int own_step_aside(struct track *t, struct tmm *tm, uint64_t start, uint64_t end)
{
	_cleanup_close_ int uffd = -1;
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t from = vma->start > start ? vma->start : start;
		uint64_t to = vma->end < end ? vma->end : end;
		struct mm_file *f = mm_file_find(&tm->mm, vma->file);

		if (from >= to || !vma->registered || vma->owner != MM_WPFS)
			continue;
		if (uffd < 0)
			uffd = tmm_uffd(tm);
		if (uffd < 0)
			return uffd;
		if (f)
			r = mm_doubt(&tm->mm, f,
				     vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT),
				     (to - from) >> WPFS_PAGE_SHIFT);
		if (r == 0)
			r = residency_bring_back(t, vma->file);
		if (r == 0)
			r = uffd_unregister(uffd, from, to);
		if (r == 0)
			r = mm_set_registered(&tm->mm, from, to, false, MM_WPFS, false);
	}
	return r;
}

void own_pre(struct request *rq)
{
	const struct wpfs_uffd_range *range = rq->body;
	struct tmm *tm = rq->c->tmm;
	int r = -EINVAL;

	if (own_range_ok(range->addr, range->len)) {
		r = tmm_harvest(rq->t, tm);
		if (r == 0)
			r = own_step_aside(rq->t, tm, range->addr, range->addr + range->len);
		tm->mm.own_uffds = true;
		tm->announced.aside_start = range->addr;
		tm->announced.aside_end = range->addr + range->len;
		tmm_announce(tm);
	}
	request_reply(rq, r, NULL, 0);
}

/* Keeps one copy per uffd of the program, whatever numbers it has. */
static int own_keep(struct tmm *tm, int number, int *fd)
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
	own->fd = number;
	own->copy = steal_fd(fd);
	DL_APPEND(tm->uffds, own);
	return own->copy;
}

/* Marks of an earlier run go into the program's uffd before its REGISTER returns. */
static int own_rearm(struct tmm *tm, int uffd, uint64_t start, uint64_t end)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t from = vma->start > start ? vma->start : start;
		uint64_t to = vma->end < end ? vma->end : end;
		uint64_t pgoff = vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT);
		struct mm_set set;

		/* Registered before: its marks are in the page tables, and what the program has
		 * un-protected since the last look must not be protected again. */
		if (from >= to || (vma->registered && vma->owner == MM_PROGRAM))
			continue;
		mm_set_init(&set);
		r = mm_plan_arm(&tm->mm, vma->file, MM_PROGRAM, false, pgoff,
				(to - from) >> WPFS_PAGE_SHIFT, &set);
		if (r == 0)
			r = arm_runs(uffd, from, to, pgoff, &set);
		mm_set_free(&set);
	}
	return r;
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
		copy = own_keep(tm, range->fd, &rq->fds->fd[0]);
		tm->mm.own_uffds = true;
		r = copy < 0 ? copy : own_rearm(tm, copy, range->addr, end);
		if (r == 0)
			r = mm_set_registered(&tm->mm, range->addr, end, true, MM_PROGRAM, false);
		if (r == 0)
			r = tmm_harvest(rq->t, tm);
		if (r == 0)
			r = persist_mm(rq->t, tm);
	}
	if (r < 0)
		log_warn("track: the uffd of pid %d is not tracked: %s", rq->c->id.pid,
			 log_errstr(r));
	request_reply(rq, r, NULL, 0);
}

void own_unreg(struct request *rq)
{
	const struct wpfs_uffd_range *range = rq->body;
	struct tmm *tm = rq->c->tmm;
	int r = -EINVAL;

	if (own_range_ok(range->addr, range->len)) {
		/* Gone for good, as in the kernel: as if the mappings had been unmapped. */
		r = mm_unmap(&tm->mm, range->addr, range->addr + range->len, ZAP_UNMAP);
		if (r == 0)
			r = tmm_harvest(rq->t, tm);
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

/* Has this process a descriptor of the uffd, other than `closing`? */
static bool own_held_by(pid_t pid, const struct own_uffd *own, int closing)
{
	_cleanup_dir_ DIR *dir = NULL;
	char path[64];
	struct dirent *de;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		int fd = atoi(de->d_name);

		if (fd != closing && own_entry_is_uffd(dir, de->d_name) && own_is(pid, fd, own))
			return true;
	}
	return false;
}

/* It may have been inherited, or handed to another process to serve. */
static bool own_held_by_any(const struct own_uffd *own)
{
	_cleanup_dir_ DIR *dir = opendir("/proc");
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		pid_t pid = atoi(de->d_name);

		if (pid > 0 && pid != getpid() && own_held_by(pid, own, -1))
			return true;
	}
	return dir == NULL;
}

/* Does a fault or event of the uffd wait, read or not? */
static bool own_is_waited_for(const struct own_uffd *own)
{
	_cleanup_free_ char *text = NULL;
	unsigned long total = 0;
	const char *line;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", own->copy);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return false;
	line = strstr(text, "\ntotal:");
	return line && sscanf(line, " total: %lu", &total) == 1 && total > 0;
}

void own_resume(struct tmm *tm)
{
	_cleanup_dir_ DIR *dir = NULL;
	char path[64];
	struct dirent *de;

	if (!tm->mm.own_uffds)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fd", tm->program.pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		int number = atoi(de->d_name);
		_cleanup_close_ int fd = -1;

		if (!own_entry_is_uffd(dir, de->d_name))
			continue;
		fd = proc_borrow_fd(tm->program_watch.fd, number);
		if (fd < 0 || own_keep(tm, number, &fd) < 0)
			log_warn(
				"track: a userfaultfd of pid %d is not kept: its marks end with it",
				tm->program.pid);
	}
}

/*
 * A close() that the shim did not see (a dup(2) of the uffd, a raw system call) leaves our copy as
 * the last one: a writer would wait for ever. That somebody waits at two looks is the sign.
 */
void own_look(struct track *t)
{
	struct own_uffd *own, *next;
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		DL_FOREACH_SAFE(tm->uffds, own, next)
		{
			own->looks = own_is_waited_for(own) ? own->looks + 1 : 0;
			if (own->looks >= 2 && !own_held_by(tm->program.pid, own, -1) &&
			    !own_held_by_any(own))
				own_drop(tm, own);
		}
	}
}

void own_close(struct request *rq)
{
	const struct wpfs_uffd_close *msg = rq->body;
	struct tmm *tm = rq->c->tmm;
	struct own_uffd *own, *next;

	DL_FOREACH_SAFE(tm->uffds, own, next)
	{
		if (own_is(tm->program.pid, msg->fd, own) &&
		    !own_held_by(tm->program.pid, own, msg->fd))
			own_drop(tm, own);
	}
	request_reply(rq, 0, NULL, 0);
}
