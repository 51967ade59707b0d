/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a program becomes tracked. Nothing it says about itself is believed: its identity is the
 * socket's, its witness must share its mm and be of its uid, a uffd must be one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/residency.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

/* Is `gid` the process's effective or a supplementary group? */
static bool attach_in_group(const struct ipc_peer *peer, gid_t gid)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *p, *end;

	if (peer->gid == gid)
		return true;
	snprintf(path, sizeof(path), "/proc/%d/status", peer->pid);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return false;
	p = strstr(text, "\nGroups:");
	if (!p)
		return false;
	for (p += 8; *p && *p != '\n'; p = end) {
		unsigned long g = strtoul(p, &end, 10);

		if (end == p)
			break;
		if (g == gid)
			return true;
	}
	return false;
}

/* Whom -o uffd= lets have a userfaultfd that sees kernel faults too. */
static bool attach_may_have_uffd(struct track *t, const struct ipc_peer *peer)
{
	struct fs_file root;

	if (peer->uid == 0)
		return true;
	switch (t->config.uffd_policy) {
	case TRACK_UFFD_ALL:
		return true;
	case TRACK_UFFD_ROOT:
		return false;
	case TRACK_UFFD_GID:
		return attach_in_group(peer, t->config.uffd_gid);
	case TRACK_UFFD_WRITERS:
		if (fs_file_by_path(t->config.fs, "/", &root) < 0)
			return false;
		if (root.uid == peer->uid)
			return root.mode & S_IWUSR;
		if (attach_in_group(peer, root.gid))
			return root.mode & S_IWGRP;
		return root.mode & S_IWOTH;
	}
	return false;
}

static bool attach_name_valid(const char *name)
{
	return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") ==
		       strlen(name) &&
	       strlen(name) <= WPFS_NAME_MAX;
}

void attach_hello(struct request *rq)
{
	const struct wpfs_hello *hello = rq->body;
	struct client *c = rq->c;
	struct wpfs_hello_reply reply = {.kind = rq->t->config.kind};
	const int fds[] = {rq->t->devuffd, rq->t->life_pipe[0]};

	if (!attach_name_valid(hello->name)) {
		request_error(rq, -EINVAL, "the name '%s' is not 1 to %d of [A-Za-z0-9._-]",
			      hello->name, WPFS_NAME_MAX);
		return;
	}
	do {
		if (getrandom(&c->cookie, sizeof(c->cookie), 0) != sizeof(c->cookie))
			c->cookie = 0;
	} while (c->cookie == 0);
	c->hello_flags = hello->flags;
	c->ctl = hello->flags & WPFS_HELLO_CTL;
	snprintf(c->name, sizeof(c->name), "%s", hello->name);
	reply.cookie = c->cookie;
	if (!c->ctl && attach_may_have_uffd(rq->t, &c->peer))
		reply.nr_fds = 2;
	request_reply_fds(rq, &reply, sizeof(reply), fds, reply.nr_fds);
}

/* A connection that was lost, or a new daemon: the mm is known by its process and its witness. */
static void attach_again(struct request *rq)
{
	struct wpfs_attach_reply reply = {0};
	struct client *c = rq->c;
	struct tmm *tm;

	life_sweep(rq->t);
	DL_FOREACH (rq->t->tmms, tm) {
		if (tm->state == TMM_DETACHED || tm->program.pid != c->id.pid ||
		    tm->program.start_time != c->id.start_time)
			continue;
		if (tm->client) {
			tm->client->tmm = NULL;
			tm->client->closing = true;
		}
		tm->client = c;
		c->tmm = tm;
		c->attached = true;
		reply.mm = tm->mm.id;
		request_reply(rq, 0, &reply, sizeof(reply));
		return;
	}
	request_error(rq, -ESRCH, "pid %d is not attached", c->id.pid);
}

/* Checks the witness and takes it over. 0 or -errno. */
static int attach_witness(struct request *rq, struct tmm *tm, int *pidfd)
{
	pid_t pid = proc_of_pidfd(*pidfd);
	uid_t uid;
	int r;

	if (pid < 0)
		return pid;
	r = proc_same_mm(rq->c->id.pid, pid);
	if (r <= 0)
		return r < 0 ? r : -EXDEV;
	r = proc_uid(pid, &uid);
	if (r < 0)
		return r;
	if (uid != rq->c->peer.uid && uid != WPFS_WITNESS_UID)
		return -EPERM;
	r = proc_identify(pid, &tm->witness);
	if (r < 0)
		return r;
	tm->witness_pidfd = steal_fd(pidfd);
	return 0;
}

static int attach_take(struct request *rq, struct tmm *tm)
{
	const struct wpfs_attach *attach = rq->body;
	struct ipc_fds *fds = rq->fds;
	bool witness = attach->nr_fds == 2;
	int r;

	if (fds->nr != attach->nr_fds)
		return -EPROTO;
	if (!uffd_is_uffd(fds->fd[0]))
		return -EBADF;
	if (!rq->c->forked) {
		r = rq->t->config.capped ? uffd_init_sync(fds->fd[0])
					 : uffd_init_async(fds->fd[0], witness);
		if (r < 0)
			return r;
	}
	if (witness) {
		r = attach_witness(rq, tm, &fds->fd[1]);
		if (r < 0)
			return r;
		tm->uffd_fd = attach->uffd_fd;
		tm->chan_fd = attach->chan_fd;
	} else {
		tm->uffd_copy = steal_fd(&fds->fd[0]);
	}
	tm->program = rq->c->id;
	tm->program_watch.fd = proc_open(&tm->program);
	if (tm->program_watch.fd < 0)
		return tm->program_watch.fd;
	r = residency_attach(rq->t, tm, witness ? fds->fd[0] : tm->uffd_copy);
	return r < 0 ? r : track_watch_add(rq->t, &tm->program_watch, EPOLLIN);
}

void attach_attach(struct request *rq)
{
	const struct wpfs_attach *attach = rq->body;
	struct wpfs_attach_reply reply = {0};
	struct client *c = rq->c;
	struct tmm *tm;
	int r;

	if (attach->nr_fds == 0) {
		attach_again(rq);
		return;
	}
	life_sweep(rq->t); /* the same process before exec */
	tm = c->tmm ?: tmm_new(rq->t);
	if (!tm) {
		request_error(rq, -ENOMEM, "out of memory");
		return;
	}
	tm->uid = c->peer.uid;
	tm->client = c;
	c->tmm = tm;
	tm->mm.protect_new = c->hello_flags & WPFS_HELLO_PROTECT;
	r = attach_take(rq, tm);
	if (r == 0 && tm->fork_child) {
		/* It is in fork() still. What its parent wrote before is dirty in it too. */
		tm->state = TMM_LIVE;
		r = tmm_harvest(rq->t, tm);
		tm->fork_dirty = tmm_dirty(tm);
		if (r == 0)
			r = persist_mm(rq->t, tm);
	}
	if (r < 0) {
		log_warn("track: pid %d cannot attach: %s", c->id.pid, log_errstr(r));
		tmm_free(rq->t, tm);
		request_error(rq, r, "cannot attach pid %d: %s", c->id.pid, log_errstr(r));
		return;
	}
	c->attached = true;
	reply.mm = tm->mm.id;
	log_debug("track: pid %d attached%s", c->id.pid,
		  tm->witness_pidfd < 0 ? " without a witness" : "");
	request_reply(rq, 0, &reply, sizeof(reply));
}

/* ---- fork ---- */

/* Who has that cookie; a parent that has not spoken with this daemon yet has only its pid. */
static struct tmm *attach_parent(struct track *t, uint64_t cookie, pid_t child)
{
	struct proc_id parent;
	struct client *c;
	struct tmm *tm;

	DL_FOREACH (t->clients, c) {
		if (c->cookie == cookie && c->attached && c->tmm)
			return c->tmm;
	}
	if (proc_parent(child, &parent) < 0)
		return NULL;
	DL_FOREACH (t->tmms, tm) {
		if (tm->state == TMM_LIVE && !tm->client && tm->program.pid == parent.pid &&
		    tm->program.start_time == parent.start_time)
			return tm;
	}
	return NULL;
}

/*
 * Is this uffd the one of the mm of `pagemap`? A uffd does not say whose it is; but only the right
 * one can make that mm's page at `scratch` a WP_ASYNC one.
 */
static bool attach_uffd_is_of(int uffd, int pagemap, uint64_t scratch)
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

/* Sends the witness a command, with a descriptor unless `fd` is -1. */
static void attach_witness_tell(const struct tmm *tm, const struct wpfs_witness_cmd *cmd, int fd)
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

static void attach_witness_close(const struct tmm *tm, int fd)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_CLOSE, .fd = fd};

	attach_witness_tell(tm, &cmd, -1);
}

void attach_new_life(struct track *t, const struct tmm *tm)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_LIFE, .fd = -1};

	attach_witness_tell(tm, &cmd, t->life_pipe[0]);
}

/*
 * The child's uffd, which the kernel handed to whoever read the parent's fork event: the parent's
 * witness. Gives our copy, or -errno; -ENOENT: there is none (nothing was registered).
 */
static int attach_find_child_uffd(const struct tmm *parent, pid_t child, uint64_t scratch)
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
		if (attach_uffd_is_of(uffd, pagemap, scratch)) {
			attach_witness_close(parent, fd);
			return steal_fd(&uffd);
		}
		/* Of a child that never came (a raw clone) and is gone: it takes up a place. */
		if (uffd_writeprotect(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH)
			attach_witness_close(parent, fd);
	}
	return -ENOENT;
}

/* The child begins with its parent's armed pages and what is known to be dirty of them. */
static int attach_copy_model(struct mm *to, const struct mm *from)
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
	}
	return 0;
}

static bool attach_is_armed(const struct mm *mm, const struct mm_vma *vma)
{
	return vma->registered && vma->owner == MM_WPFS && mm_file_find(mm, vma->file);
}

static bool attach_has_armed_mappings(const struct mm *mm)
{
	for (size_t i = 0; i < mm->nr_vmas; i++) {
		if (attach_is_armed(mm, &mm->vmas[i]))
			return true;
	}
	return false;
}

/*
 * A child whose uffd is lost (its parent has no witness, or a witness with more children than it
 * keeps uffds of): nothing watches the mappings it was born with, so what is armed there is dirty.
 */
static int attach_doubt_mapped(struct mm *child, const struct mm *parent)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < parent->nr_vmas; i++) {
		const struct mm_vma *vma = &parent->vmas[i];

		if (attach_is_armed(parent, vma))
			r = mm_doubt(child, mm_file_find(child, vma->file), vma->pgoff,
				     mm_vma_pages(vma));
	}
	return r;
}

void attach_forked(struct request *rq)
{
	const struct wpfs_forked *forked = rq->body;
	struct wpfs_forked_reply reply = {0};
	struct client *c = rq->c;
	struct tmm *parent = attach_parent(rq->t, forked->cookie, c->id.pid), *tm;
	_cleanup_close_ int uffd = -1;

	if (!parent || parent->uid != c->peer.uid) {
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
		uffd = attach_find_child_uffd(parent, c->id.pid, forked->scratch);
	if (uffd < 0 && !attach_has_armed_mappings(&parent->mm)) {
		request_reply(rq, 0, &reply, sizeof(reply)); /* a mm like any new one */
		return;
	}
	tm = tmm_new(rq->t);
	if (!tm || attach_copy_model(&tm->mm, &parent->mm) < 0 ||
	    (uffd < 0 && attach_doubt_mapped(&tm->mm, &parent->mm) < 0)) {
		if (tm)
			tmm_free(rq->t, tm);
		request_error(rq, -ENOMEM, "out of memory");
		return;
	}
	tm->mm.id = rq->t->next_mm++;
	tm->uid = parent->uid;
	tm->fork_child = true;
	if (parent->name[0])
		snprintf(tm->name, sizeof(tm->name), "%.*s/%d", (int)strcspn(parent->name, "/"),
			 parent->name, c->id.pid);
	proc_comm(c->id.pid, tm->comm);
	tm->client = c;
	c->tmm = tm;
	c->forked = uffd >= 0;
	reply.nr_fds = uffd >= 0;
	request_reply_fds(rq, &reply, sizeof(reply), &uffd, reply.nr_fds);
}
