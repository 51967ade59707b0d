/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The address spaces whose faults are served: those of tracked programs, and of their children from
 * their birth.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ipc/witness_cmd.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_mm.h"
#include "track/capped_test.h"
#include "track/capped_track.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

struct capped_mm *capped_mm_find(struct capped *c, uint64_t id)
{
	struct capped_mm *mm;

	DL_FOREACH (c->mms, mm) {
		if (mm->id == id)
			return mm;
	}
	return NULL;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* A fork child that has not come to us. */
static bool mm_is_stray(const struct capped_mm *mm)
{
	return mm->root && mm->maps_fd < 0 && !mm->pid;
}

static void mm_free(struct capped *c, struct capped_mm *mm)
{
	struct capped_mm *root = mm_is_stray(mm) ? capped_mm_find(c, mm->root) : NULL;
	struct capped_wait *w, *next;

	if (root)
		root->lost++;
	DL_FOREACH_SAFE(c->waits, w, next)
	{
		if (w->mm == mm->id) {
			DL_DELETE(c->waits, w);
			free(w);
		}
	}
	capped_batch_gone(c, mm);
	DL_DELETE(c->mms, mm);
	epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, mm->uffd, NULL);
	close_fd(&mm->uffd);
	close_fd(&mm->maps_fd);
	close_fd(&mm->pagemap_fd);
	close_fd(&mm->keeper);
	maps_free(&mm->inherited);
	free(mm);
}

/* Takes uffd over. */
static struct capped_mm *mm_new(struct capped *c, int uffd)
{
	struct capped_mm *mm = calloc(1, sizeof(*mm));

	if (!mm) {
		close(uffd);
		return NULL;
	}
	mm->id = mm->since = c->next_mm++;
	mm->uffd = uffd;
	mm->maps_fd = mm->pagemap_fd = mm->keeper = -1;
	DL_APPEND(c->mms, mm);
	/* A blocking uffd always polls as an error. */
	if (fcntl(uffd, F_SETFL, O_NONBLOCK) < 0 || capped_mm_watch(c, mm) < 0) {
		mm_free(c, mm);
		return NULL;
	}
	return mm;
}

int capped_mm_add(struct capped *c, pid_t pid, pid_t task, int uffd, struct capped_mm **out)
{
	_cleanup_close_ int maps_fd = maps_open_fd(task);
	_cleanup_close_ int pagemap_fd = pagemap_open(task);
	struct capped_mm *mm = NULL, *old;
	int own = fcntl(uffd, F_DUPFD_CLOEXEC, 0);

	if (maps_fd < 0 || pagemap_fd < 0 || own < 0) {
		close_fd(&own);
		return maps_fd < 0 ? maps_fd : pagemap_fd < 0 ? pagemap_fd : -EMFILE;
	}
	pthread_mutex_lock(&c->lock);
	/* A fork child that was served since its birth goes on as the mm it is; one that has ended
	 * is not taken for who has its pid now. */
	capped_mm_orphan(c);
	DL_FOREACH (c->mms, old) {
		if (old->maps_fd < 0 && old->pid == pid)
			mm = old;
	}
	if (mm)
		close_fd(&own);
	else
		mm = mm_new(c, own);
	if (mm) {
		mm->pid = pid;
		mm->maps_fd = steal_fd(&maps_fd);
		mm->pagemap_fd = steal_fd(&pagemap_fd);
		maps_free(&mm->inherited);
		/* What the last daemon read and did not answer is asked again. */
		uffd_wake_all(mm->uffd);
	}
	pthread_mutex_unlock(&c->lock);
	*out = mm;
	return mm ? 0 : -ENOMEM;
}

void capped_mm_remove(struct capped *c, struct capped_mm *mm)
{
	pthread_mutex_lock(&c->lock);
	mm_free(c, mm);
	pthread_mutex_unlock(&c->lock);
}

void capped_mm_moved(struct capped *c, struct capped_mm *mm, pid_t pid, pid_t task)
{
	_cleanup_close_ int maps_fd = maps_open_fd(task);

	pthread_mutex_lock(&c->lock);
	mm->pid = pid;
	/* One of a task that is gone cannot be read; PROCMAP_QUERY does not mind. */
	if (maps_fd >= 0 && mm->maps_fd >= 0) {
		int old = mm->maps_fd;

		mm->maps_fd = maps_fd;
		maps_fd = old;
	}
	pthread_mutex_unlock(&c->lock);
}

void capped_mm_leave(struct capped *c, struct capped_mm *mm)
{
	pthread_mutex_lock(&c->lock);
	mm->left = true;
	mm->since = c->next_mm++;
	pthread_mutex_unlock(&c->lock);
}

int capped_mm_find_child(struct capped *c, pid_t pid, bool (*is_of)(void *ctx, int uffd), void *ctx)
{
	struct capped_mm *mm;
	int fd = -ENOENT;

	pthread_mutex_lock(&c->lock);
	DL_FOREACH (c->mms, mm) {
		if (mm->maps_fd >= 0 || mm->pid || !is_of(ctx, mm->uffd))
			continue;
		mm->pid = pid;
		fd = fcntl(mm->uffd, F_DUPFD_CLOEXEC, 0);
		fd = fd < 0 ? -errno : fd;
		break;
	}
	pthread_mutex_unlock(&c->lock);
	return fd;
}

uint64_t capped_now(struct capped *c)
{
	uint64_t now;

	pthread_mutex_lock(&c->lock);
	now = c->next_mm;
	pthread_mutex_unlock(&c->lock);
	return now;
}

void capped_looked(struct capped *c, struct capped_file *f, uint64_t now)
{
	pthread_mutex_lock(&c->lock);
	f->looked = now;
	pthread_mutex_unlock(&c->lock);
}

uint64_t capped_mm_orphan(struct capped *c)
{
	struct capped_mm *mm, *next;
	uint64_t youngest = 0;

	DL_FOREACH_SAFE(c->mms, mm, next)
	{
		if (mm->maps_fd >= 0 && !mm->left)
			continue;
		/* Nothing tells of the end of its mm but an ioctl; the address does not matter. */
		if (uffd_writeprotect_once(mm->uffd, 1 << 16, (1 << 16) + WPFS_PAGE_SIZE, false) ==
		    -ESRCH)
			mm_free(c, mm);
		else if (mm->since > youngest)
			youngest = mm->since;
	}
	return youngest;
}

bool capped_mm_orphan_since(struct capped *c, uint64_t now)
{
	uint64_t youngest = capped_mm_orphan(c);

	return youngest && youngest >= now;
}

bool capped_has_orphans(struct capped *c)
{
	bool has;

	pthread_mutex_lock(&c->lock);
	has = capped_mm_orphan(c) != 0;
	pthread_mutex_unlock(&c->lock);
	return has;
}

bool capped_mm_strays(struct capped *c, const struct capped_mm *mm, uint64_t age_ms, unsigned *lost)
{
	const struct capped_mm *child;
	uint64_t now;
	bool any;

	pthread_mutex_lock(&c->lock);
	capped_mm_orphan(c);
	now = now_ms();
	*lost = mm->lost;
	any = mm->lost > 0;
	DL_FOREACH (c->mms, child)
		any |= mm_is_stray(child) && child->root == mm->id &&
		       now - child->born_ms >= age_ms;
	pthread_mutex_unlock(&c->lock);
	return any;
}

void capped_mm_strays_noted(struct capped *c, struct capped_mm *mm, unsigned lost)
{
	pthread_mutex_lock(&c->lock);
	mm->lost -= lost;
	pthread_mutex_unlock(&c->lock);
}

/* Its faults are waited for also while no daemon is there. */
static void mm_keep(struct capped_mm *root, int uffd)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_KEEP, .fd = -1};
	int r;

	if (root->keeper < 0 || root->kept >= WPFS_WITNESS_FDS)
		return;
	r = witness_cmd_send(root->keeper, &cmd, uffd);
	if (r == 0)
		root->kept++;
	else
		log_debug("the witness of pid %d takes no userfaultfd: %s", root->pid,
			  log_errstr(r));
}

void capped_mm_set_keeper(struct capped *c, struct capped_mm *mm, int chan, unsigned kept)
{
	struct capped_mm *child;

	pthread_mutex_lock(&c->lock);
	close_fd(&mm->keeper);
	mm->keeper = chan < 0 ? -1 : chan;
	mm->kept = kept;
	/* One that has any has those that were found with it: others were born since. */
	DL_FOREACH (c->mms, child) {
		if (!(kept && child->found) && mm_is_stray(child) && child->root == mm->id)
			mm_keep(mm, child->uffd);
	}
	pthread_mutex_unlock(&c->lock);
}

unsigned capped_mm_kept(struct capped *c, const struct capped_mm *mm)
{
	unsigned kept;

	pthread_mutex_lock(&c->lock);
	kept = mm->kept;
	pthread_mutex_unlock(&c->lock);
	return kept;
}

void capped_mm_unkeep(struct capped *c, struct capped_mm *mm, unsigned nr)
{
	pthread_mutex_lock(&c->lock);
	mm->kept -= nr < mm->kept ? nr : mm->kept;
	pthread_mutex_unlock(&c->lock);
}

int capped_mm_adopt(struct capped *c, const struct capped_mm *parent, int uffd,
		    const struct maps_list *maps)
{
	int own = fcntl(uffd, F_DUPFD_CLOEXEC, 0), r = -ENOMEM;
	struct capped_mm *child;

	if (own < 0)
		return -EMFILE;
	pthread_mutex_lock(&c->lock);
	child = mm_new(c, own);
	if (child) {
		child->root = parent ? parent->id : child->id;
		child->found = true;
		r = maps_copy(&child->inherited, maps);
		/* What the last daemon read and did not answer is asked again. */
		uffd_wake_all(child->uffd);
	}
	pthread_mutex_unlock(&c->lock);
	return r;
}

void capped_mm_forked(struct capped *c, struct capped_mm *parent, int uffd)
{
	struct capped_mm *root = mm_is_stray(parent) ? capped_mm_find(c, parent->root) : parent;
	struct capped_mm *child;
	int r;

	capped_test_point("born");
	/* Before all else: until then the child reads zeros if this daemon is killed. */
	if (root)
		mm_keep(root, uffd);
	child = mm_new(c, uffd);
	if (!child) {
		log_err("cannot serve a fork child of pid %d: out of memory", parent->pid);
		return;
	}
	child->root = mm_is_stray(parent) ? parent->root : parent->id;
	child->born_ms = now_ms();
	/* Until the child says who it is, its mappings are its parent's as they are now. By the
	 * descriptor if the parent was killed just then: its witness has them still. */
	if (parent->maps_fd >= 0)
		r = maps_read(parent->pid, &c->lower_dev, 1, &child->inherited);
	else
		r = maps_copy(&child->inherited, &parent->inherited);
	if (r < 0 && parent->maps_fd >= 0)
		r = maps_list(parent->maps_fd, &c->lower_dev, 1, &child->inherited);
	if (r < 0)
		log_warn("the mappings of a fork child of pid %d are not known: %s: until it says "
			 "who it is it waits for what is not in memory",
			 parent->pid, log_errstr(r));
	capped_batch_forked(c, parent, child);
}

int capped_protect(struct capped *c, struct capped_mm *mm, uint64_t start, uint64_t end,
		   struct mm_set *written)
{
	int r = -EAGAIN;

	for (int tries = 0; r == -EAGAIN && tries < CAPPED_TRIES; tries++) {
		_cleanup_set_ struct mm_set marked = {0};

		if (tries)
			capped_nap();
		/* Without the lock a fault could un-mark a page between the look and the mark. */
		pthread_mutex_lock(&c->lock);
		r = pagemap_marked(mm->pagemap_fd, start, end, false, &marked);
		if (r == 0)
			r = uffd_writeprotect_once(mm->uffd, start, end, true);
		pthread_mutex_unlock(&c->lock);
		if (r == 0)
			r = mm_set_add_range(written, 0, (end - start) >> WPFS_PAGE_SHIFT);
		if (r == 0)
			r = mm_set_andnot(written, &marked);
	}
	return r;
}
