/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How an mm ends, and how a new daemon finds the living ones of the last.
 *
 * An mm ends when its program is dead or, after an exec, has another mm. The witness still holds
 * it then: last harvest, commit, and only then the witness is let go, so that whoever sees the
 * witness gone finds the marks in the database, or aside while that cannot be written.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "db/db.h"
#include "track/residency.h"
#include "uffd/maps.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

#define LIFE_WITNESS_MS 5000 /* a killed task that has not gone by then is stuck in the kernel */

/* Kills the witness and waits until its mappings are gone: an umount may come next. */
static void life_release_witness(struct tmm *tm)
{
	struct pollfd pfd = {.fd = tm->witness_pidfd, .events = POLLIN};

	if (tm->witness_pidfd < 0)
		return;
	if (syscall(SYS_pidfd_send_signal, tm->witness_pidfd, SIGKILL, NULL, 0) == 0 &&
	    poll(&pfd, 1, LIFE_WITNESS_MS) == 0)
		log_warn("track: witness %d of pid %d does not die", tm->witness.pid,
			 tm->program.pid);
	close_fd(&tm->witness_pidfd);
	tm->witness.pid = 0;
}

/* Is there anything of this mm to remember after its end? */
static bool life_worth_keeping(const struct track *t, const struct tmm *tm)
{
	if (!tm->name[0])
		return false;
	/* What it was born with is its parent's as well, until that one begins another epoch. */
	return !tm->fork_child || tm->epoch_turned || tmm_dirty(tm) != tm->fork_dirty ||
	       (tm->fork_dirty && protect_last_epoch(t) != tm->fork_epoch);
}

static bool life_is_within(const struct mm *mm, const struct mm *parent)
{
	const struct mm_file *f;

	for (f = mm->files; f; f = f->hh.next) {
		const struct mm_file *theirs = mm_file_find(parent, f->id);

		if (!mm_set_is_empty(&f->own[MM_WPFS].dirty) &&
		    (!theirs ||
		     !mm_set_is_subset(&f->own[MM_WPFS].dirty, &theirs->own[MM_WPFS].dirty)))
			return false;
	}
	return true;
}

/*
 * Is all that is dirty in a fork child dirty in its parent too? It was at its birth; but an epoch
 * of the parent may have begun between that and its first message, and what it stored since to a
 * page that was dirty then shows in no number of pages.
 */
static bool life_is_parents(struct track *t, const struct tmm *tm)
{
	struct tmm *parent;

	DL_FOREACH (t->tmms, parent) {
		if (parent->mm.id == tm->parent)
			break;
	}
	if (!parent || !tm->parent || parent->mm.epoch != tm->mm.epoch)
		return false;
	if (life_is_within(&tm->mm, &parent->mm))
		return true;
	return parent->state == TMM_LIVE && tmm_harvest(t, parent) == 0 &&
	       life_is_within(&tm->mm, &parent->mm);
}

/* Has the program, which lives, gone from this mm? */
static bool life_has_left(const struct tmm *tm)
{
	if (tm->widowed)
		return uffd_writeprotect_once(tm->uffd_copy, 0, WPFS_PAGE_SIZE, false) == -ESRCH;
	if (tm->witness_pidfd < 0)
		return tm->client == NULL || tmm_is_gone(tm);
	/* The number of a witness that is dead may be another's. */
	if (proc_same_mm(tm->program.pid, tm->witness.pid) == 0 && !proc_is_dead(tm->witness_pidfd))
		return true;
	return proc_is_dead(tm->witness_pidfd) && tmm_is_gone(tm);
}

static bool life_has_ended(const struct tmm *tm)
{
	return proc_is_dead(tm->program_watch.fd) || life_has_left(tm);
}

#define LIFE_OTHERS_MS 50 /* whoever reads /proc/PID/maps has the mm too, for a moment */

/*
 * The witness is gone. Has another task this mm still, though nobody was found (shared.c)? Its
 * stores are seen by nobody. `uffd` is ours; holding it for long would let such a task wait in
 * fork(2).
 */
static bool life_is_shared(int uffd)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	for (int i = 0; i < LIFE_OTHERS_MS; i++) {
		if (uffd_writeprotect_once(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH)
			return false;
		nanosleep(&ms, NULL);
	}
	return true;
}

/* The witness goes; what others may store from now on is in doubt. */
static void life_leave(struct track *t, struct tmm *tm, bool ended)
{
	_cleanup_close_ int uffd = ended && tm->mm.nr_vmas ? tmm_uffd(tm) : -1;
	uint64_t before = tm->mm.conservative;
	int r;

	life_release_witness(tm);
	if (uffd < 0 || !life_is_shared(uffd))
		return;
	tm->maybe_shared = true;
	log_info("track: another process has the memory of %s still: what was armed counts as "
		 "dirty",
		 tm->name[0] ? tm->name : tm->comm);
	r = mm_lost(&tm->mm);
	t->conservative += tm->mm.conservative - before;
	if (r == 0 && life_worth_keeping(t, tm))
		r = persist_mm(t, tm);
	if (r < 0)
		log_err("track: the marks of %s may miss stores of that process: %s", tm->name,
			log_errstr(r));
}

static void life_forget(struct track *t, struct tmm *tm)
{
	const uint64_t id = tm->mm.id;
	struct tmm *child;

	/* What was its, is its parent's. */
	DL_FOREACH (t->tmms, child) {
		if (child->parent == id)
			child->parent = tm->parent;
	}
	if (persist_forget_lazy(t, tm) == 0) {
		tmm_free(t, tm);
		return;
	}
	/* Its row goes when the database can be written. */
	mm_free(&tm->mm);
	mm_init(&tm->mm);
	tm->mm.id = id;
	tm->name[0] = '\0';
	tm->state = TMM_DETACHED;
	tm->doomed = true;
}

/* Does an mm that never said so map a file that it wants protected? */
static bool life_has_mapped(struct track *t, const struct tmm *tm)
{
	struct maps_list maps = {0};
	bool found = false;
	pid_t pid = tmm_pid(tm);

	/* On a capped mount nobody can map what the daemon did not hand out. */
	if (tm->state != TMM_NEW || !tm->mm.protect_new || !tm->client || t->config.capped || !pid)
		return false;
	if (maps_read(pid, t->devs, t->nr_devs, &maps) == 0) {
		for (size_t i = 0; i < maps.nr; i++)
			found |= maps.vmas[i].shared;
	}
	maps_free(&maps);
	return found && tmm_pid(tm) == pid;
}

int life_look(struct track *t)
{
	struct tmm *tm;
	int result = 0;

	DL_FOREACH (t->tmms, tm) {
		int r = life_has_mapped(t, tm) ? tmm_take_name(t, tm) : 0;

		if (r < 0 && result == 0)
			result = r;
	}
	return result;
}

static void life_disconnect(struct track *t, struct tmm *tm)
{
	if (tm->client) {
		tm->client->tmm = NULL;
		tm->client->attached = false;
		tm->client->closing = true;
		tm->client = NULL;
	}
	tm->announced = (struct announced){0};
	drops_removed(t, tm);
}

/* `ended`: not at an unmount, when the program itself lives on. */
static void life_end_mm(struct track *t, struct tmm *tm, bool ended)
{
	int r, lost = 0;

	if (tm->state == TMM_NEW) {
		life_release_witness(tm);
		tmm_free(t, tm);
		return;
	}
	tm->ending = true;
	r = tm->witness_pidfd < 0 || proc_is_dead(tm->witness_pidfd) ? -ESRCH : tmm_harvest(t, tm);
	if (r < 0) {
		uint64_t before = tm->mm.conservative;

		log_info("track: the last marks of %s (pid %d) are not known (%s): what was armed "
			 "counts as dirty",
			 tm->name[0] ? tm->name : tm->comm, tm->program.pid, log_errstr(r));
		lost = mm_lost(&tm->mm);
		tm->maybe_shared = true;
		mm_forget_vmas(&tm->mm);
		t->conservative += tm->mm.conservative - before;
	}
	if (!ended)
		residency_let_alone(t, tm);
	if (tm->fork_child && tmm_dirty(tm) && !life_is_parents(t, tm))
		tm->epoch_turned = true;
	tm->state = TMM_DETACHED;
	log_debug("track: pid %d ended", tm->program.pid);
	if (lost < 0) {
		/* Its row stays a live one: the next daemon finds nobody there and counts all. */
		log_err("track: cannot count what %s had armed as dirty: %s", tm->name,
			log_errstr(lost));
	} else if (life_worth_keeping(t, tm)) {
		const int program = tm->program.pid;

		tm->program.pid = 0;
		r = persist_mm(t, tm);
		if (r < 0)
			log_err("track: cannot store the marks of %s: %s", tm->name, log_errstr(r));
		tm->program.pid = program;
	}
	residency_end(t, tm);
	residency_busy(t, false);
	life_leave(t, tm, ended);
	track_watch_remove(t, &tm->program_watch); /* until here track_settle() waits for it */
	own_free_all(tm);
	close_fd(&tm->uffd_copy);
	close_fd(&tm->born_uffd);
	close_fd(&tm->mm_fd);
	events_mm(t, tm, WPFS_EVENT_DETACH, lost < 0 || life_worth_keeping(t, tm));
	tm->program.pid = 0;
	if (lost == 0 && !life_worth_keeping(t, tm))
		life_forget(t, tm);
}

void life_end(struct track *t, struct tmm *tm)
{
	const bool ended = tm->program_watch.fd < 0 || life_has_ended(tm);

	life_disconnect(t, tm);
	if (!ended || tm->state != TMM_LIVE || !shared_go_on(t, tm))
		life_end_mm(t, tm, ended);
}

void life_reap(struct track *t)
{
	struct epoll_event ev[64];
	int n;

	while ((n = epoll_wait(t->deaths_watch.fd, ev, 64, 0)) > 0) {
		for (int i = 0; i < n; i++)
			life_end(t, (struct tmm *)ev[i].data.ptr); /* and its watch */
	}
}

void life_sweep(struct track *t)
{
	struct tmm *tm, *next;

	life_reap(t);
	DL_FOREACH_SAFE(t->tmms, tm, next)
	{
		if (tm->program_watch.fd >= 0 && life_has_left(tm))
			life_end(t, tm);
	}
}

void life_sweep_pid(struct track *t, pid_t pid)
{
	struct tmm *tm, *next;

	DL_FOREACH_SAFE(t->tmms, tm, next)
	{
		if (tm->program_watch.fd >= 0 && tm->program.pid == pid && life_has_ended(tm))
			life_end(t, tm);
	}
}

void life_sweep_name(struct track *t, uid_t uid, const char *name)
{
	struct tmm *tm, *next;

	DL_FOREACH_SAFE(t->tmms, tm, next)
	{
		if (tm->program_watch.fd >= 0 && tmm_selected(tm, uid, name) && life_has_ended(tm))
			life_end(t, tm);
	}
}

/*
 * As tmm_harvest, of one that is live. It may have none to look at any more, and not have ended: it
 * is about to, and nothing was its witness, or a witness that was killed too. What is known of it
 * is then what will be known at its end.
 */
int life_harvest(struct track *t, struct tmm *tm)
{
	uint64_t before = tm->mm.conservative;
	int r = tmm_harvest(t, tm);

	if (r != -ESRCH)
		return r;
	r = mm_lost(&tm->mm);
	t->conservative += tm->mm.conservative - before;
	return r;
}

int life_sync_all(struct track *t)
{
	_cleanup_free_ struct tmm **harvested = NULL;
	size_t nr = 0, room = 0;
	struct tmm *tm;
	int result, r;

	life_sweep(t);
	result = life_look(t);
	DL_COUNT(t->tmms, tm, room);
	harvested = calloc(room + 1, sizeof(*harvested));
	if (!harvested)
		return -ENOMEM;
	DL_FOREACH (t->tmms, tm) {
		if (tm->state != TMM_LIVE)
			continue;
		r = life_harvest(t, tm);
		if (r == 0)
			harvested[nr++] = tm;
		if (r < 0 && result == 0)
			result = r;
	}
	r = persist_all(t, harvested, nr);
	if (r == 0 && !t->db_error)
		r = db_sync(t->config.db);
	return result < 0 ? result : r;
}

void life_end_all(struct track *t)
{
	struct tmm *tm, *next;

	DL_FOREACH_SAFE(t->tmms, tm, next)
	{
		if (tm->state == TMM_DETACHED)
			continue;
		/* Mapped still (a lazy umount): stores that nobody will see may follow. */
		if (tm->state == TMM_LIVE && tmm_harvest(t, tm) == 0 && tm->mm.nr_vmas &&
		    mm_lost(&tm->mm) < 0)
			log_err("track: out of memory: the marks of %s may miss its last stores",
				tm->name);
		life_disconnect(t, tm);
		life_end_mm(t, tm, life_has_ended(tm));
	}
}

/* The last daemon had stored the end of this mm, and did not come to letting the witness go. */
static void life_release_left(struct tmm *tm)
{
	int pidfd = tm->witness.pid ? proc_open(&tm->witness) : -1;

	tm->witness_pidfd = pidfd < 0 ? -1 : pidfd;
	life_release_witness(tm);
	tm->witness.pid = 0;
}

/* Who is there still of an mm that was live when the last daemon went. */
static int life_resume_find(struct track *t, struct tmm *tm)
{
	int r = residency_resume_doubt(t, tm);

	if (r < 0)
		return r;
	tm->witness_pidfd = tm->witness.pid ? proc_open(&tm->witness) : -1;
	if (tm->witness_pidfd < 0)
		tm->witness_pidfd = -1;
	tm->program_watch.fd = proc_open(&tm->program);
	if (tm->program_watch.fd < 0)
		tm->program_watch.fd = -1; /* died meanwhile: the witness knows, or nobody */
	else
		r = track_watch_add(t, &tm->program_watch, EPOLLIN);
	if (r < 0)
		return r;
	if (tm->program_watch.fd >= 0 && (tm->witness_pidfd < 0 || proc_is_dead(tm->witness_pidfd)))
		residency_find_kept(t, tm);
	tm->mm_fd = pagemap_open(tmm_pid(tm));
	if (tm->mm_fd < 0)
		tm->mm_fd = -1;
	return 0;
}

/* Takes it back. */
static int life_resume_one(struct track *t, struct tmm *tm)
{
	int r;

	if ((tm->program_watch.fd < 0 || life_has_ended(tm)) && !shared_go_on(t, tm)) {
		r = residency_resume_children(t, tm);
		if (r < 0)
			log_err("track: children of pid %d cannot be served any more: %s",
				tm->program.pid, log_errstr(r));
		residency_abandon(t, tm);
		life_end_mm(t, tm, true);
		return 0;
	}
	r = residency_resume(t, tm);
	if (r < 0) {
		log_err("track: the faults of pid %d cannot be served any more: %s",
			tm->program.pid, log_errstr(r));
		residency_abandon(t, tm);
		life_end_mm(t, tm, false);
		return 0;
	}
	own_resume(t, tm);
	if (tm->witness_pidfd >= 0)
		fork_new_life(t, tm);
	if (tm->witness_pidfd >= 0 && !t->config.capped)
		strays_resume(tm);
	log_info("track: pid %d (%s) is back", tm->program.pid, tm->comm);
	return 0;
}

int life_resume(struct track *t)
{
	struct tmm *tm, *next;
	int r = 0;

	DL_FOREACH (t->tmms, tm) {
		if (tm->state == TMM_LIVE)
			r = life_resume_find(t, tm);
		if (r < 0)
			return r;
	}
	residency_found(t);
	DL_FOREACH_SAFE(t->tmms, tm, next)
	{
		r = 0;
		if (tm->state == TMM_DETACHED)
			life_release_left(tm);
		if (tm->state == TMM_LIVE)
			r = life_resume_one(t, tm);
		else if (tm->stale_row && tm->name[0])
			r = persist_mm(t, tm);
		else if (tm->stale_row)
			life_forget(t, tm);
		if (r < 0)
			return r;
	}
	residency_resumed(t);
	return unseen_resume(t);
}
