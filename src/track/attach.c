/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a program becomes tracked. Nothing it says about itself is believed: its identity is the
 * socket's, its witness must share its mm and be of its uid, a uffd must be one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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

/* The mm speaks through this connection from now on. */
static void attach_take_client(struct tmm *tm, struct client *c)
{
	if (tm->client && tm->client != c) {
		tm->client->tmm = NULL;
		tm->client->closing = true;
	}
	tm->client = c;
	c->tmm = tm;
	c->attached = true;
}

/* A connection that was lost, or a new daemon: the mm is known by its process and its witness. */
static void attach_again(struct request *rq)
{
	struct wpfs_attach_reply reply = {0};
	struct client *c = rq->c;
	struct tmm *tm;

	life_sweep_pid(rq->t, c->id.pid);
	DL_FOREACH (rq->t->tmms, tm) {
		if (tm->state == TMM_DETACHED || tm->state == TMM_FORKED ||
		    tm->program.pid != c->id.pid || tm->program.start_time != c->id.start_time)
			continue;
		attach_take_client(tm, c);
		reply.mm = tm->mm.id;
		request_reply(rq, 0, &reply, sizeof(reply));
		return;
	}
	request_error(rq, -ESRCH, "pid %d is not attached", c->id.pid);
}

/* Tracked twice, each of two witnesses would see what the other one's uffd armed as its own. */
static bool attach_is_attached(const struct track *t, const struct client *c)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		if (tm != c->tmm && tm->state != TMM_DETACHED && tm->program.pid == c->id.pid &&
		    tm->program.start_time == c->id.start_time)
			return true;
	}
	return false;
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
	tm->mm_fd = pagemap_open(witness ? tm->witness.pid : rq->c->id.pid);
	if (tm->mm_fd < 0)
		tm->mm_fd = -1;
	tm->program = rq->c->id;
	tm->program_watch.fd = proc_open(&tm->program);
	if (tm->program_watch.fd < 0)
		return tm->program_watch.fd;
	r = residency_attach(rq->t, tm, witness ? fds->fd[0] : tm->uffd_copy);
	return r < 0 ? r : track_watch_add(rq->t, &tm->program_watch, EPOLLIN);
}

/* The live mm of this process whose witness is dead, or NULL. */
static struct tmm *attach_find_widow(const struct track *t, const struct client *c)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		if (tm->state != TMM_DETACHED && tm->program.pid == c->id.pid &&
		    tm->program.start_time == c->id.start_time && tmm_has_lost_witness(tm))
			return tm;
	}
	return NULL;
}

/*
 * Another witness for an mm that has lost its own. With a uffd that is new nothing is registered
 * any more, so all that was armed is dirty; from the next protect on it is as it ever was.
 */
static int attach_renew(struct request *rq, struct tmm *tm)
{
	const struct wpfs_attach *attach = rq->body;
	struct proc_id witness = tm->witness;
	struct ipc_fds *fds = rq->fds;
	uint64_t before = tm->mm.conservative;
	int r = -EBADF, old = tm->witness_pidfd;

	if (fds->nr != 2 || !uffd_is_uffd(fds->fd[0]))
		return -EPROTO;
	if (rq->t->config.capped)
		r = residency_is_uffd(tm, fds->fd[0]) ? 0 : -EBADF;
	else
		r = uffd_init_async(fds->fd[0], true);
	tm->witness_pidfd = -1;
	if (r == 0)
		r = attach_witness(rq, tm, &fds->fd[1]);
	if (r < 0) {
		tm->witness_pidfd = old;
		tm->witness = witness;
		return r;
	}
	close_fd(&old);
	close_fd(&tm->uffd_copy);
	tm->widowed = false;
	tm->uffd_fd = attach->uffd_fd;
	tm->chan_fd = attach->chan_fd;
	tm->untold = attach->untold;
	tm->nr_kept = 0;
	residency_renewed(rq->t, tm);
	residency_moved(rq->t, tm); /* the old witness shows its mappings no more */
	if (!rq->t->config.capped)
		r = strays_lose(rq->t, tm);
	if (r == 0 && !rq->t->config.capped)
		r = mm_lost_registration(&tm->mm);
	rq->t->conservative += tm->mm.conservative - before;
	return r < 0 || tm->state == TMM_NEW ? r : persist_mm(rq->t, tm);
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
	life_sweep_pid(rq->t, c->id.pid); /* the same process before exec */
	tm = attach_find_widow(rq->t, c);
	if (tm && !attach->again) {
		/* No witness tells an exec any more. */
		if ((!tm->client || client_is_hung_up(tm->client)))
			life_end(rq->t, tm);
		tm = NULL;
	}
	if (tm && attach->nr_fds == 2) {
		r = attach_renew(rq, tm);
		if (r < 0) {
			log_warn("track: pid %d gets no other witness: %s", c->id.pid,
				 log_errstr(r));
			request_error(rq, r, "no other witness for pid %d: %s", c->id.pid,
				      log_errstr(r));
			return;
		}
		log_info("track: pid %d has another witness", c->id.pid);
		attach_take_client(tm, c);
		reply.mm = tm->mm.id;
		request_reply(rq, 0, &reply, sizeof(reply));
		return;
	}
	if (attach_is_attached(rq->t, c)) {
		request_error(rq, -EEXIST, "pid %d is attached already", c->id.pid);
		return;
	}
	tm = c->tmm ?: tmm_new(rq->t);
	if (!tm) {
		request_error(rq, -ENOMEM, "out of memory");
		return;
	}
	if (!tm->fork_child)
		tm->uid = c->peer.uid;
	tm->untold = attach->untold;
	tm->client = c;
	c->tmm = tm;
	tm->mm.protect_new = c->hello_flags & WPFS_HELLO_PROTECT;
	r = attach_take(rq, tm);
	close_fd(&tm->born_uffd); /* from here on nobody but its witness may have it */
	if (r == 0 && tm->fork_child) {
		/* It is in fork() still. What its parent wrote before is dirty in it too. */
		tm->state = TMM_LIVE;
		r = tmm_harvest(rq->t, tm);
		tm->fork_dirty = tmm_dirty(tm);
		if (r == 0)
			r = protect_store_born(rq->t, tm);
	}
	if (r < 0) {
		log_warn("track: pid %d cannot attach: %s", c->id.pid, log_errstr(r));
		request_error(rq, r, "cannot attach pid %d: %s", c->id.pid, log_errstr(r));
		if (tm->fork_child) {
			tm->state = TMM_FORKED; /* has a row, which ends with the connection */
			c->closing = true;
		} else {
			tmm_free(rq->t, tm);
		}
		return;
	}
	c->attached = true;
	if (tm->state == TMM_LIVE)
		events_mm(rq->t, tm, WPFS_EVENT_ATTACH, false);
	reply.mm = tm->mm.id;
	log_debug("track: pid %d attached%s", c->id.pid,
		  tm->witness_pidfd < 0 ? " without a witness" : "");
	request_reply(rq, 0, &reply, sizeof(reply));
}
