/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fork children. With EVENT_FORK the kernel copies the marks and hands a uffd of the child's mm to
 * whoever reads the event: the parent's witness. The child comes and claims it before its fork()
 * returns, and then attaches. Until it has, its row says that it is live and has no witness: should
 * it not come to that, or this daemon not live to see it, what it was born with counts as dirty.
 * One that does not come at all is strays.c's.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ipc/witness_cmd.h"
#include "track/internal.h"
#include "track/residency.h"
#include "uffd/maps.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

/*
 * Who has that cookie; a parent that has spoken with another daemon since, or with none, has only
 * its pid. The child may be of another user by now, but then it must be its child still.
 */
static struct tmm *fork_parent(struct track *t, uint64_t cookie, const struct client *child)
{
	struct proc_id parent = {0};
	struct client *c;
	struct tmm *tm;
	bool known = proc_parent(child->id.pid, &parent) == 0;

	DL_FOREACH (t->clients, c) {
		if (c->cookie == cookie && c->attached && c->tmm &&
		    (c->tmm->uid == child->peer.uid || (known && c->id.pid == parent.pid)))
			return c->tmm;
	}
	if (!known)
		return NULL;
	DL_FOREACH (t->tmms, tm) {
		if (tm->state == TMM_LIVE && tm->program.pid == parent.pid &&
		    tm->program.start_time == parent.start_time)
			return tm;
	}
	return NULL;
}

/*
 * Is this uffd the one of the mm of `pagemap`? A uffd does not say whose it is; but only the right
 * one can make that mm's page at `scratch` a WP_ASYNC one.
 */
static bool fork_uffd_is_of(int uffd, int pagemap, uint64_t scratch)
{
	bool is = false;

	if (pagemap_is_async(pagemap, scratch) != 0)
		return false;
	if (uffd_register_wp(uffd, scratch, scratch + WPFS_PAGE_SIZE) < 0)
		return false;
	is = pagemap_is_async(pagemap, scratch) == 1;
	uffd_unregister(uffd, scratch, scratch + WPFS_PAGE_SIZE);
	return is;
}

void fork_witness_tell(struct tmm *tm, const struct wpfs_witness_cmd *cmd, int fd)
{
	_cleanup_close_ int chan = proc_borrow_fd(tm->witness_pidfd, tm->chan_fd);
	int r = chan < 0 ? chan : witness_cmd_send(chan, cmd, fd);

	tm->told++;
	if (r < 0)
		log_warn("track: witness %d cannot be told anything: %s", tm->witness.pid,
			 log_errstr(r));
}

void fork_new_life(struct track *t, struct tmm *tm)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_LIFE, .fd = -1};

	fork_witness_tell(tm, &cmd, t->life_pipe[0]);
}

/*
 * The child's uffd, which the kernel handed to whoever read the parent's fork event: the parent's
 * witness, under *number. Gives our copy, or -errno; -ENOENT: there is none (nothing was
 * registered).
 */
static int fork_find_uffd(struct track *t, struct tmm *parent, pid_t child, uint64_t scratch,
			  int *number)
{
	_cleanup_close_ int pagemap = pagemap_open(child);
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	char path[64];

	if (pagemap < 0)
		return pagemap;
	snprintf(path, sizeof(path), "/proc/%d/fd", parent->witness.pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while ((de = readdir(dir))) {
		int fd = atoi(de->d_name);
		_cleanup_close_ int uffd = -1;

		if (de->d_name[0] == '.' || fd == parent->uffd_fd)
			continue;
		uffd = proc_borrow_fd(parent->witness_pidfd, fd);
		if (uffd < 0 || !uffd_is_uffd(uffd))
			continue;
		if (fork_uffd_is_of(uffd, pagemap, scratch)) {
			*number = fd;
			return steal_fd(&uffd);
		}
		/* Of a child that never came (a raw clone) and is gone: it takes up a place. */
		if (!strays_has_come(parent, fd) &&
		    uffd_writeprotect_once(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH &&
		    strays_doubt(t, parent) == 0)
			strays_forget(parent, fd);
	}
	return -ENOENT;
}

int fork_copy_model(struct mm *to, const struct mm *from)
{
	struct mm_file *f, *next;

	if (to->epoch < from->epoch)
		to->epoch = from->epoch;
	to->own_uffds = from->own_uffds;
	to->own_doubted = from->own_doubted;
	HASH_ITER (hh, from->files, f, next) {
		const bool had = mm_file_find(to, f->id);
		struct mm_file *copy = mm_file_get(to, f->id);
		int r = copy ? 0 : -ENOMEM;

		if (r == 0)
			r = mm_set_or(&copy->own[MM_WPFS].armed, &f->own[MM_WPFS].armed);
		if (r == 0)
			r = mm_set_or(&copy->own[MM_WPFS].dirty, &f->own[MM_WPFS].dirty);
		if (r < 0)
			return r;
		copy->protect = f->protect;
		if (!had || copy->written == MM_WRITTEN_NO)
			copy->written = f->written;
		copy->settling = f->settling && (!had || !copy->unsettled || copy->settling);
		copy->unsettled |= f->unsettled;
	}
	return 0;
}

/*
 * And with its parent's mappings, as far as they are known: of an asynchronous registration nothing
 * but this tells whether it is wpfs's or the program's own. Their marks are read at the attach.
 */
static int fork_copy_vmas(struct mm *to, const struct mm *from)
{
	to->vmas = calloc(from->nr_vmas + 1, sizeof(*to->vmas));
	if (!to->vmas)
		return -ENOMEM;
	for (size_t i = 0; i < from->nr_vmas; i++) {
		to->vmas[i] = from->vmas[i];
		mm_set_init(&to->vmas[i].marked);
	}
	to->nr_vmas = from->nr_vmas;
	return 0;
}

/* Not only where wpfs's uffd is: the program's own may have taken its place, or nothing. */
static bool fork_is_armed(const struct mm *mm, const struct mm_vma *vma)
{
	const struct mm_file *f = mm_file_find(mm, vma->file);

	return f && !vma->sealed &&
	       ((vma->registered && vma->owner == MM_WPFS) ||
		!mm_set_is_empty(&f->own[MM_WPFS].armed));
}

static bool fork_has_armed_mappings(const struct mm *mm)
{
	for (size_t i = 0; i < mm->nr_vmas; i++) {
		if (fork_is_armed(mm, &mm->vmas[i]))
			return true;
	}
	return false;
}

/*
 * The same of mappings that the parent made without a word, of which it may have had no look yet,
 * or none is left: the child has what there was.
 */
static bool fork_has_unseen(struct track *t, const struct mm *parent, pid_t child)
{
	struct maps_list maps = {0};
	bool found;
	int r;

	/* On a capped mount nobody can map what no daemon has handed out. */
	if (t->config.capped || mm_is_empty(parent))
		return false;
	r = maps_read(child, t->devs, t->nr_devs, &maps);
	found = r < 0 && r != -ESRCH;
	for (size_t i = 0; r == 0 && !found && i < maps.nr; i++) {
		const struct mm_file *f = mm_file_find(parent, maps.vmas[i].ino);

		found = f && maps.vmas[i].shared && !mm_set_is_empty(&f->own[MM_WPFS].armed);
	}
	maps_free(&maps);
	return found;
}

int fork_doubt_mapped(struct mm *child, const struct mm *parent)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < parent->nr_vmas; i++) {
		const struct mm_vma *vma = &parent->vmas[i];

		if (fork_is_armed(parent, vma))
			r = mm_doubt(child, mm_file_find(child, vma->file), vma->pgoff,
				     mm_vma_pages(vma));
	}
	return r;
}

/* "db/123"; what an earlier process of that pid wrote is kept under its own name: "db/123.2". */
static void fork_name(struct track *t, struct tmm *tm, const char *parent, pid_t pid)
{
	char name[TRACK_NAME_SIZE];

	snprintf(name, sizeof(name), "%.*s/%d", (int)strcspn(parent, "/"), parent, pid);
	for (unsigned n = 2; tmm_by_name(t, tm->uid, name); n++)
		snprintf(name, sizeof(name), "%.*s/%d.%u", (int)strcspn(parent, "/"), parent, pid,
			 n);
	snprintf(tm->name, sizeof(tm->name), "%s", name);
}

/* What the child is, before it knows of it itself. 0 or -errno. */
static int fork_fill(struct track *t, struct tmm *tm, struct tmm *parent, const struct client *c,
		     bool watched)
{
	int r = fork_copy_model(&tm->mm, &parent->mm);

	if (r == 0)
		r = watched ? fork_copy_vmas(&tm->mm, &parent->mm)
			    : fork_doubt_mapped(&tm->mm, &parent->mm);
	if (r < 0)
		return r;
	tm->mm.id = t->next_mm++;
	tm->uid = parent->uid;
	tm->program = c->id;
	tm->state = TMM_FORKED;
	tm->fork_child = true;
	tm->parent = parent->mm.id;
	tm->fork_epoch = protect_last_epoch(t);
	if (parent->name[0])
		fork_name(t, tm, parent->name, c->id.pid);
	proc_comm(c->id.pid, tm->comm);
	return protect_store_born(t, tm);
}

/* *uffd is its own, under `number` in the parent's witness; -1: it has none. */
static int fork_make(struct request *rq, struct tmm *parent, int *uffd, int number)
{
	struct wpfs_forked_reply reply = {.nr_fds = *uffd >= 0};
	struct client *c = rq->c;
	struct tmm *tm = tmm_new(rq->t);
	int r = tm ? fork_fill(rq->t, tm, parent, c, *uffd >= 0) : -ENOMEM;

	if (tm)
		rq->t->conservative += tm->mm.conservative;
	if (r < 0) {
		if (tm)
			tmm_free(rq->t, tm);
		return r;
	}
	if (number >= 0) {
		/* Nobody reads this one: no child can be born of a child that is in fork() still.
		 */
		tm->born_uffd = fcntl(*uffd, F_DUPFD_CLOEXEC, 0);
		strays_claim(parent, number, tm);
	}
	tm->client = c;
	c->tmm = tm;
	c->forked = reply.nr_fds;
	request_reply_fds(rq, &reply, sizeof(reply), uffd, reply.nr_fds);
	return 0;
}

void fork_forked(struct request *rq)
{
	const struct wpfs_forked *forked = rq->body;
	struct wpfs_forked_reply reply = {0};
	struct client *c = rq->c;
	struct tmm *parent = fork_parent(rq->t, forked->cookie, c);
	_cleanup_close_ int uffd = -1;
	int number = -1, r = 0;

	if (!parent || c->tmm) {
		request_error(rq, -ESRCH, "no attached process has that cookie");
		return;
	}
	if (parent->state == TMM_NEW) {
		request_reply(rq, 0, &reply, sizeof(reply));
		return;
	}
	if (rq->t->config.capped)
		uffd = residency_find_child(rq->t, c->id.pid, forked->scratch);
	else if (parent->witness_pidfd >= 0)
		uffd = fork_find_uffd(rq->t, parent, c->id.pid, forked->scratch, &number);
	if (uffd < 0 && !fork_has_armed_mappings(&parent->mm) &&
	    !fork_has_unseen(rq->t, &parent->mm, c->id.pid)) {
		request_reply(rq, 0, &reply, sizeof(reply)); /* a mm like any new one */
		return;
	}
	/* What the parent could not tell of before the fork is the child's too. */
	if (tmm_pid(parent) && tmm_untold(rq->t, parent, tmm_pid(parent)) == -ENOMEM)
		r = -ENOMEM;
	if (r == 0)
		r = fork_make(rq, parent, &uffd, number);
	if (r < 0)
		request_error(rq, r, "pid %d cannot be tracked: %s", c->id.pid, log_errstr(r));
}
