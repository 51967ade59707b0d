/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The uffds of fork children of a capped mount. The kernel hands them to who reads the faults: this
 * daemon. If nobody else had one, a child that has no witness (not come yet, or born past the shim)
 * would go on without when the daemon is killed, and read zeros for what is in the store. So the
 * witness of the program that it descends from has a copy, until the child has its own or is gone;
 * a new daemon takes that.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_mm.h"
#include "track/capped_track.h"
#include "track/keep.h"
#include "track/residency.h"
#include "uffd/maps.h"
#include "uffd/uffd.h"

#define CHILDREN_READ_MS 1000 /* for a witness to take what a killed daemon has sent */

void keep_children(struct track *t, struct tmm *tm)
{
	int chan = tm->witness_pidfd < 0 ? -1 : proc_borrow_fd(tm->witness_pidfd, tm->chan_fd);

	capped_mm_set_keeper(t->config.capped, tm->capped, chan, 0);
}

/* Calls fn for each uffd of a child: with its number in the witness, and one that is closed then.
 */
static int children_for_each(struct tmm *tm, int (*fn)(void *ctx, int number, int uffd), void *ctx)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	char path[64];
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", tm->witness.pid);
	dir = opendir(path);
	while (r == 0 && dir && (de = readdir(dir))) {
		_cleanup_close_ int uffd = -1;
		int number = atoi(de->d_name);

		if (de->d_name[0] == '.' || number == tm->uffd_fd)
			continue;
		uffd = proc_borrow_fd(tm->witness_pidfd, number);
		if (uffd >= 0 && uffd_is_uffd(uffd))
			r = fn(ctx, number, uffd);
	}
	return r;
}

enum child_is { CHILD_ALONE, CHILD_KEPT, CHILD_SERVED };

/* KEPT: it has come, and a witness of its own. SERVED: it has come. */
static enum child_is child_look(const struct track *t, const struct tmm *parent, int uffd)
{
	const pid_t self = getpid();
	const struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		const bool has = tm->witness_pidfd >= 0 && !proc_is_dead(tm->witness_pidfd);

		if (tm == parent || tm->state == TMM_DETACHED)
			continue;
		if (has &&
		    syscall(SYS_kcmp, self, tm->witness.pid, KCMP_FILE, uffd, tm->uffd_fd) == 0)
			return CHILD_KEPT;
		if (residency_is_uffd(tm, uffd) ||
		    (tm->uffd_copy >= 0 &&
		     syscall(SYS_kcmp, self, self, KCMP_FILE, uffd, tm->uffd_copy) == 0))
			return CHILD_SERVED;
	}
	return CHILD_ALONE;
}

static bool child_is_gone(int uffd)
{
	return uffd_writeprotect_once(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH;
}

struct children {
	struct track *t;
	struct tmm *tm;
	struct maps_list maps;
	unsigned kept, closed, adopted;
	int gone[2 * WPFS_WITNESS_FDS]; /* numbers in the witness of those that have ended */
	unsigned nr_gone;
};

static int child_sweep(void *arg, int number, int uffd)
{
	struct children *ch = arg;

	if (child_is_gone(uffd)) {
		if (ch->nr_gone < sizeof(ch->gone) / sizeof(ch->gone[0]))
			ch->gone[ch->nr_gone++] = number;
	} else if (child_look(ch->t, ch->tm, uffd) == CHILD_KEPT) {
		strays_close(ch->tm, number);
		ch->closed++;
	}
	return 0;
}

void keep_children_sweep(struct track *t, struct tmm *tm)
{
	struct children ch = {.t = t, .tm = tm};

	if (!capped_mm_kept(t->config.capped, tm->capped))
		return;
	children_for_each(tm, child_sweep, &ch);
	/* What they have stored is in doubt, and a daemon after this one must know of that. */
	if (ch.nr_gone && residency_strays(t, tm) < 0)
		ch.nr_gone = 0;
	for (unsigned i = 0; i < ch.nr_gone; i++)
		strays_close(tm, ch.gone[i]);
	ch.closed += ch.nr_gone;
	capped_mm_unkeep(t->config.capped, tm->capped, ch.closed);
}

static int child_take_back(void *arg, int number, int uffd)
{
	struct children *ch = arg;
	enum child_is is = child_look(ch->t, ch->tm, uffd);
	int r = 0;

	if (is == CHILD_KEPT) {
		strays_close(ch->tm, number);
		return 0;
	}
	ch->kept++;
	/* Also if it is gone: what it has stored is in doubt. */
	if (is == CHILD_ALONE) {
		r = capped_mm_adopt(ch->t->config.capped, ch->tm->capped, uffd, &ch->maps);
		ch->adopted += r == 0;
	}
	return r;
}

/* What the killed daemon has sent may be on its way. */
static void children_settle(const struct tmm *tm)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	for (int i = 0; i < CHILDREN_READ_MS && strays_has_unread(tm); i++)
		nanosleep(&ms, NULL);
	if (strays_has_unread(tm))
		log_warn("track: witness %d does not read what it is told: of children of %s that "
			 "are not tracked some may wait for ever",
			 tm->witness.pid, tm->name[0] ? tm->name : tm->comm);
}

int keep_children_take_back(struct track *t, struct tmm *tm)
{
	struct children ch = {.t = t, .tm = tm};
	const uint64_t dev = capped_lower_dev(t->config.capped);
	int r, chan;

	if (tm->witness_pidfd < 0 || proc_is_dead(tm->witness_pidfd))
		return 0;
	children_settle(tm);
	/* The witness has the memory also when the program is dead. */
	if (maps_read(tmm_pid(tm), &dev, 1, &ch.maps) < 0)
		ch.maps.nr = 0;
	r = children_for_each(tm, child_take_back, &ch);
	maps_free(&ch.maps);
	if (tm->capped) {
		chan = proc_borrow_fd(tm->witness_pidfd, tm->chan_fd);
		capped_mm_set_keeper(t->config.capped, tm->capped, chan, ch.kept);
	}
	if (r == 0 && ch.adopted) {
		log_info("track: %u children of %s that are not tracked are served again",
			 ch.adopted, tm->name[0] ? tm->name : tm->comm);
		/* Else as soon as its marks are looked at. */
		if (!tm->capped && strays_doubt(t, tm) < 0)
			log_err("track: what they have stored cannot be noted");
	}
	return r;
}
