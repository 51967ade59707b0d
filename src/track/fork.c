/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fork children. With EVENT_FORK the kernel copies the marks and hands a uffd of the child's mm to
 * whoever reads the event: the parent's witness. The child comes and claims it before its fork()
 * returns. One that does not come (a raw clone, or a fork while no daemon was there) has stores
 * that nobody watches: they are in doubt, in a row of their own.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/internal.h"
#include "track/residency.h"
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

void fork_witness_tell(const struct tmm *tm, const struct wpfs_witness_cmd *cmd, int fd)
{
	_cleanup_close_ int chan = proc_borrow_fd(tm->witness_pidfd, tm->chan_fd);
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {.iov_base = (void *)cmd, .iov_len = sizeof(*cmd)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		struct cmsghdr *c = (struct cmsghdr *)control;

		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	if (chan < 0 || sendmsg(chan, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_warn("track: witness %d cannot be told anything: %s", tm->witness.pid,
			 log_errstr(chan < 0 ? chan : errno));
}

static uint64_t fork_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct stray *fork_stray(struct tmm *tm, int fd)
{
	for (size_t i = 0; i < tm->nr_strays; i++) {
		if (tm->strays[i].fd == fd)
			return &tm->strays[i];
	}
	if (tm->nr_strays == WPFS_WITNESS_FDS)
		return NULL;
	tm->strays[tm->nr_strays] = (struct stray){.fd = fd, .since_ms = fork_now_ms()};
	return &tm->strays[tm->nr_strays++];
}

/* The witness closes it when it reads the command: until then it is no stray. */
static void fork_witness_close(struct tmm *tm, int fd)
{
	struct stray *stray = fork_stray(tm, fd);

	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_CLOSE, .fd = fd};

	if (stray)
		*stray = (struct stray){fd, true, fork_now_ms()};
	fork_witness_tell(tm, &cmd, -1);
}

void fork_new_life(struct track *t, const struct tmm *tm)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_LIFE, .fd = -1};

	fork_witness_tell(tm, &cmd, t->life_pipe[0]);
}

/*
 * The child's uffd, which the kernel handed to whoever read the parent's fork event: the parent's
 * witness. Gives our copy, or -errno; -ENOENT: there is none (nothing was registered).
 */
static int fork_find_uffd(struct tmm *parent, pid_t child, uint64_t scratch)
{
	_cleanup_close_ int pagemap = pagemap_open(child);
	_cleanup_dir_ DIR *dir = NULL;
	char path[64];
	struct dirent *de;

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
			fork_witness_close(parent, fd);
			return steal_fd(&uffd);
		}
		/* Of a child that never came (a raw clone) and is gone: it takes up a place. */
		if (uffd_writeprotect(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH)
			fork_witness_close(parent, fd);
	}
	return -ENOENT;
}

/* The child begins with its parent's armed pages and what is known to be dirty of them. */
static int fork_copy_model(struct mm *to, const struct mm *from)
{
	struct mm_file *f, *next;

	to->epoch = from->epoch;
	to->own_uffds = from->own_uffds;
	HASH_ITER (hh, from->files, f, next) {
		struct mm_file *copy = mm_file_get(to, f->id);
		int r = copy ? 0 : -ENOMEM;

		if (r == 0)
			r = mm_set_or(&copy->own[MM_WPFS].armed, &f->own[MM_WPFS].armed);
		if (r == 0)
			r = mm_set_or(&copy->own[MM_WPFS].dirty, &f->own[MM_WPFS].dirty);
		if (r < 0)
			return r;
		copy->protect = f->protect;
		copy->written = f->written;
		copy->unsettled = f->unsettled;
		copy->settling = f->settling;
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
 * A child whose uffd is lost (its parent has no witness, or a witness with more children than it
 * keeps uffds of): nothing watches the mappings it was born with, so what is armed there is dirty.
 */
static int fork_doubt_mapped(struct mm *child, const struct mm *parent)
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

void fork_forked(struct request *rq)
{
	const struct wpfs_forked *forked = rq->body;
	struct wpfs_forked_reply reply = {0};
	struct client *c = rq->c;
	struct tmm *parent = fork_parent(rq->t, forked->cookie, c), *tm;
	_cleanup_close_ int uffd = -1;

	if (!parent) {
		request_error(rq, -ESRCH, "no attached process has that cookie");
		return;
	}
	if (parent->state == TMM_NEW || c->forked) {
		request_reply(rq, 0, &reply, sizeof(reply));
		return;
	}
	if (rq->t->config.capped)
		uffd = residency_find_child(rq->t, c->id.pid, forked->scratch);
	else if (parent->witness_pidfd >= 0)
		uffd = fork_find_uffd(parent, c->id.pid, forked->scratch);
	if (uffd < 0 && !fork_has_armed_mappings(&parent->mm)) {
		request_reply(rq, 0, &reply, sizeof(reply)); /* a mm like any new one */
		return;
	}
	/* What the parent could not tell of before the fork is the child's too. */
	if (tmm_pid(parent) && tmm_untold(rq->t, parent, tmm_pid(parent)) == -ENOMEM) {
		request_error(rq, -ENOMEM, "out of memory");
		return;
	}
	tm = tmm_new(rq->t);
	if (!tm || fork_copy_model(&tm->mm, &parent->mm) < 0 ||
	    (uffd < 0 ? fork_doubt_mapped(&tm->mm, &parent->mm)
		      : fork_copy_vmas(&tm->mm, &parent->mm)) < 0) {
		if (tm)
			tmm_free(rq->t, tm);
		request_error(rq, -ENOMEM, "out of memory");
		return;
	}
	tm->mm.id = rq->t->next_mm++;
	tm->uid = parent->uid;
	tm->fork_child = true;
	if (parent->name[0])
		fork_name(rq->t, tm, parent->name, c->id.pid);
	proc_comm(c->id.pid, tm->comm);
	tm->client = c;
	c->tmm = tm;
	c->forked = uffd >= 0;
	reply.nr_fds = uffd >= 0;
	request_reply_fds(rq, &reply, sizeof(reply), &uffd, reply.nr_fds);
}

/* ---- children that did not come ---- */

/* Notes the uffds in the witness's table that are not its own; forgets those that have gone. */
static int fork_note_strays(struct tmm *tm)
{
	bool seen[WPFS_WITNESS_FDS] = {false};
	_cleanup_dir_ DIR *dir = NULL;
	char path[64], target[64];
	struct dirent *de;
	size_t kept = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", tm->witness.pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((de = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), de->d_name, target, sizeof(target) - 1);
		int fd = atoi(de->d_name);
		struct stray *stray;

		if (n < 0 || fd == tm->uffd_fd)
			continue;
		target[n] = '\0';
		stray = strcmp(target, "anon_inode:[userfaultfd]") == 0 ? fork_stray(tm, fd) : NULL;
		if (stray)
			seen[stray - tm->strays] = true;
	}
	for (size_t i = 0; i < tm->nr_strays; i++) {
		if (seen[i])
			tm->strays[kept++] = tm->strays[i];
	}
	tm->nr_strays = kept;
	return 0;
}

/* Is the mm of this uffd gone? */
static bool fork_is_gone(const struct tmm *tm, int fd)
{
	_cleanup_close_ int uffd = proc_borrow_fd(tm->witness_pidfd, fd);

	return uffd >= 0 && uffd_is_uffd(uffd) &&
	       uffd_writeprotect(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH;
}

void fork_resume_strays(struct tmm *tm)
{
	if (fork_note_strays(tm) < 0)
		return; /* the next harvest finds the witness gone */
	for (size_t i = 0; i < tm->nr_strays; i++)
		tm->strays[i].since_ms = 0;
}

/*
 * The row that stands for the children of a program that nobody tracks: "db/untracked". What is
 * armed in the mappings they were born with is dirty in it; the parent's own marks stay exact.
 */
static int fork_doubt_children(struct track *t, struct tmm *tm)
{
	char name[TRACK_NAME_SIZE];
	struct tmm *row;
	uint64_t before;
	int r;

	if (!tm->name[0])
		return mm_lost(&tm->mm); /* its marks have no name to be kept under */
	snprintf(name, sizeof(name), "%.*s" FORK_UNTRACKED, (int)strcspn(tm->name, "/"), tm->name);
	row = tmm_by_name(t, tm->uid, name);
	if (!row) {
		row = tmm_new(t);
		if (!row)
			return -ENOMEM;
		row->mm.id = t->next_mm++;
		row->uid = tm->uid;
		row->state = TMM_DETACHED;
		row->fork_child = true;
		snprintf(row->name, sizeof(row->name), "%s", name);
		memcpy(row->comm, tm->comm, sizeof(row->comm));
	}
	before = tmm_dirty(row);
	r = fork_copy_model(&row->mm, &tm->mm);
	if (r == 0)
		r = fork_doubt_mapped(&row->mm, &tm->mm);
	return r < 0 || tmm_dirty(row) == before ? r : protect_store_born(t, row);
}

int fork_lose_strays(struct track *t, struct tmm *tm)
{
	bool doubt = false;

	for (size_t i = 0; i < tm->nr_strays; i++)
		doubt |= !tm->strays[i].claimed;
	tm->nr_strays = 0;
	return doubt ? fork_doubt_children(t, tm) : 0;
}

int fork_look_for_strays(struct track *t, struct tmm *tm)
{
	int dead[WPFS_WITNESS_FDS];
	size_t nr_dead = 0;
	bool doubt = false;
	int r = fork_note_strays(tm);

	for (size_t i = 0; r == 0 && i < tm->nr_strays; i++) {
		struct stray *stray = &tm->strays[i];
		uint64_t age = fork_now_ms() - stray->since_ms;

		if (age > FORK_CLAIM_MS)
			stray->claimed = false; /* the number is another child's by now */
		if (stray->claimed)
			continue;
		if (fork_is_gone(tm, stray->fd))
			dead[nr_dead++] = stray->fd;
		else if (age > FORK_CLAIM_MS || tm->ending)
			doubt = true; /* its uffd goes with the witness, if it does not come first
				       */
	}
	if (r == 0 && (doubt || nr_dead))
		r = fork_doubt_children(t, tm);
	/* Only now: a daemon after this one must see them, if it was not committed. */
	for (size_t i = 0; r == 0 && i < nr_dead; i++)
		fork_witness_close(tm, dead[i]);
	return r;
}
