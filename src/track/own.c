/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs with userfaultfds of their own. wpfs steps aside where they register, keeps a copy of
 * each so that its marks outlive the process, and never reads or polls it: that would steal
 * messages. A copy is dropped before the program closes its last descriptor, so that no writer
 * ever waits on a uffd that nobody reads.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "base/units.h"
#include "track/internal.h"
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
static int own_step_aside(struct tmm *tm, uint64_t start, uint64_t end)
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
			r = own_step_aside(tm, range->addr, range->addr + range->len);
		tm->mm.own_uffds = true;
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

		if (from >= to)
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
		r = copy < 0
			    ? copy
			    : mm_set_registered(&tm->mm, range->addr, end, true, MM_PROGRAM, false);
		if (r == 0)
			r = own_rearm(tm, copy, range->addr, end);
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
		r = mm_unmap(&tm->mm, range->addr, range->addr + range->len);
		if (r == 0)
			r = tmm_harvest(rq->t, tm);
	}
	request_reply(rq, r, NULL, 0);
}

/* Has the program another descriptor of this uffd than `closing`? */
static bool own_held_elsewhere(const struct tmm *tm, const struct own_uffd *own, int closing)
{
	_cleanup_dir_ DIR *dir = NULL;
	char path[64];
	struct dirent *de;

	snprintf(path, sizeof(path), "/proc/%d/fd", tm->program.pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		int fd = atoi(de->d_name);

		if (de->d_name[0] != '.' && fd != closing &&
		    syscall(SYS_kcmp, tm->program.pid, getpid(), KCMP_FILE, fd, own->copy) == 0)
			return true;
	}
	return false;
}

void own_close(struct request *rq)
{
	const struct wpfs_uffd_close *msg = rq->body;
	struct tmm *tm = rq->c->tmm;
	struct own_uffd *own, *next;

	DL_FOREACH_SAFE(tm->uffds, own, next)
	{
		if (syscall(SYS_kcmp, tm->program.pid, getpid(), KCMP_FILE, msg->fd, own->copy) !=
		    0)
			continue;
		if (!own_held_elsewhere(tm, own, msg->fd))
			own_drop(tm, own);
	}
	request_reply(rq, 0, NULL, 0);
}
