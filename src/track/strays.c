/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Children that nobody tracks. A child's uffd is in the table of its parent's witness until the
 * child claims it (fork.c); whose is not claimed was made by a raw clone, or while no daemon was
 * there. Its stores are in doubt: in a row that stands for all such children of a program.
 *
 * The witness closes what it is told to when it comes to it, and the number may be another child's
 * then: whether what is under it was claimed is asked of the kernel (kcmp).
 */
#include <dirent.h>
#include <errno.h>
#include <linux/kcmp.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "track/internal.h"
#include "uffd/uffd.h"

static uint64_t strays_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct stray *strays_get(struct tmm *tm, int fd)
{
	for (size_t i = 0; i < tm->nr_strays; i++) {
		if (tm->strays[i].fd == fd)
			return &tm->strays[i];
	}
	if (tm->nr_strays == WPFS_WITNESS_FDS)
		return NULL;
	tm->strays[tm->nr_strays] = (struct stray){.fd = fd, .since_ms = strays_now_ms()};
	return &tm->strays[tm->nr_strays++];
}

void strays_close(struct tmm *tm, int fd)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_CLOSE, .fd = fd};

	fork_witness_tell(tm, &cmd, -1);
}

void strays_forget(struct tmm *tm, int fd)
{
	for (size_t i = 0; i < tm->nr_strays; i++) {
		if (tm->strays[i].fd == fd)
			tm->strays[i--] = tm->strays[--tm->nr_strays];
	}
	strays_close(tm, fd);
}

void strays_claim(struct tmm *parent, int fd, const struct tmm *child)
{
	struct stray *stray = strays_get(parent, fd);

	strays_close(parent, fd);
	if (stray)
		*stray = (struct stray){fd, child->mm.id, parent->told, strays_now_ms()};
}

bool strays_has_come(const struct tmm *parent, int fd)
{
	for (size_t i = 0; i < parent->nr_strays; i++) {
		if (parent->strays[i].fd == fd)
			return parent->strays[i].claimer;
	}
	return false;
}

bool strays_has_unread(const struct tmm *tm)
{
	_cleanup_close_ int chan = proc_borrow_fd(tm->witness_pidfd, tm->chan_fd);
	int unread = 0;

	return chan >= 0 && ioctl(chan, SIOCOUTQ, &unread) == 0 && unread > 0;
}

/* Is what the witness has under this number the uffd of a child that has come? */
enum claimed { CLAIMED_NO, CLAIMED_PERHAPS, CLAIMED_YES };

static enum claimed strays_is_claimed(const struct track *t, const struct tmm *tm,
				      const struct stray *stray)
{
	const struct tmm *child;

	if (!stray->claimer)
		return CLAIMED_NO;
	DL_FOREACH (t->tmms, child) {
		if (child->mm.id == stray->claimer)
			break;
	}
	/* Not attached yet. */
	if (child && child->born_uffd >= 0)
		return syscall(SYS_kcmp, tm->witness.pid, getpid(), KCMP_FILE, stray->fd,
			       child->born_uffd) == 0
			       ? CLAIMED_YES
			       : CLAIMED_NO;
	if (child && child->witness_pidfd >= 0 && !proc_is_dead(child->witness_pidfd))
		return syscall(SYS_kcmp, tm->witness.pid, child->witness.pid, KCMP_FILE, stray->fd,
			       child->uffd_fd) == 0
			       ? CLAIMED_YES
			       : CLAIMED_NO;
	/* It has ended. Until the witness has read that it is to close it nothing else is there. */
	if (!strays_has_unread(tm))
		return CLAIMED_NO;
	return stray->told == tm->told ? CLAIMED_YES : CLAIMED_PERHAPS;
}

/*
 * Notes the uffds in the witness's table that are not its own; forgets those that it has closed as
 * it was told to. -ESRCH: the witness is dead, and its table says nothing.
 */
static int strays_note(struct tmm *tm)
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
		stray = strcmp(target, "anon_inode:[userfaultfd]") == 0 ? strays_get(tm, fd) : NULL;
		if (stray)
			seen[stray - tm->strays] = true;
	}
	if (proc_is_dead(tm->witness_pidfd))
		return -ESRCH;
	for (size_t i = 0; i < tm->nr_strays; i++) {
		if (seen[i])
			tm->strays[kept++] = tm->strays[i];
	}
	tm->nr_strays = kept;
	return 0;
}

/* Is the mm of this uffd gone? */
static bool strays_is_gone(const struct tmm *tm, int fd)
{
	_cleanup_close_ int uffd = proc_borrow_fd(tm->witness_pidfd, fd);

	return uffd >= 0 && uffd_is_uffd(uffd) &&
	       uffd_writeprotect_once(uffd, 0, WPFS_PAGE_SIZE, false) == -ESRCH;
}

void strays_resume(struct tmm *tm)
{
	if (strays_note(tm) < 0)
		return; /* the next harvest finds the witness gone */
	for (size_t i = 0; i < tm->nr_strays; i++)
		tm->strays[i].since_ms = 0;
}

/*
 * What the parent has armed is dirty in the row: also what its program maps no more, for the child
 * may. Not what others of that name have armed.
 */
static int strays_taint(struct mm *row, const struct mm *parent)
{
	const struct mm_file *f;
	int r = 0;

	for (f = parent->files; r == 0 && f; f = f->hh.next) {
		struct mm_owned *own = &mm_file_find(row, f->id)->own[MM_WPFS];
		const uint64_t dirty = mm_set_count(&own->dirty);

		r = mm_set_or(&own->dirty, &f->own[MM_WPFS].armed);
		row->conservative += mm_set_count(&own->dirty) - dirty;
	}
	return r;
}

int strays_doubt(struct track *t, struct tmm *tm)
{
	char name[TRACK_NAME_SIZE];
	struct tmm *row;
	uint64_t before, conservative;
	int r;

	if (!tm->name[0]) /* its marks have no name to be kept under */
		return strays_taint(&tm->mm, &tm->mm);
	snprintf(name, sizeof(name), "%.*s" STRAYS_NAME, (int)strcspn(tm->name, "/"), tm->name);
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
	conservative = row->mm.conservative;
	r = fork_copy_model(&row->mm, &tm->mm);
	if (r == 0)
		r = strays_taint(&row->mm, &tm->mm);
	t->conservative += row->mm.conservative - conservative;
	row->doubt_unstored |= tmm_dirty(row) != before;
	if (r == 0 && row->doubt_unstored)
		r = protect_store_born(t, row);
	if (r == 0)
		row->doubt_unstored = false;
	return r;
}

int strays_lost(struct track *t, struct tmm *tm)
{
	/* In a row of their own they are in each epoch while one has the file. */
	tm->maybe_shared |= !tm->name[0];
	return strays_doubt(t, tm);
}

int strays_lose(struct track *t, struct tmm *tm)
{
	bool doubt = false;

	for (size_t i = 0; i < tm->nr_strays; i++)
		doubt |= !tm->strays[i].claimer;
	tm->nr_strays = 0;
	/* Those that were born meanwhile have it mapped, and are not tracked. */
	return doubt || unseen_has_armed(t, &tm->mm) ? strays_doubt(t, tm) : 0;
}

/*
 * What is gone of those that nobody came for: their numbers to dead[]; *doubt: others are there.
 * One that may come still is none, but for a look after which that would be too late: its uffd goes
 * with the witness then, or an epoch ends, and it may have stored in that.
 */
static size_t strays_sort(struct track *t, struct tmm *tm, int *dead, bool *doubt)
{
	const bool last = tm->ending || tm->turning;
	const uint64_t now = strays_now_ms();
	size_t nr_dead = 0, kept = 0;

	for (size_t i = 0; i < tm->nr_strays; i++) {
		struct stray stray = tm->strays[i];
		enum claimed claimed = strays_is_claimed(t, tm, &stray);
		bool late = now - stray.since_ms > STRAYS_CLAIM_MS;

		/* The witness may have read it, and be about to close it. */
		if (claimed == CLAIMED_YES || (stray.claimer && !last)) {
			if (claimed == CLAIMED_NO)
				stray = (struct stray){.fd = stray.fd, .since_ms = now};
			tm->strays[kept++] = stray;
			continue;
		}
		if (stray.claimer)
			stray = (struct stray){.fd = stray.fd, .since_ms = now};
		if (strays_is_gone(tm, stray.fd)) {
			dead[nr_dead++] = stray.fd;
			continue;
		}
		*doubt |= late || last;
		tm->strays[kept++] = stray;
	}
	tm->nr_strays = kept;
	return nr_dead;
}

int strays_look(struct track *t, struct tmm *tm)
{
	int dead[WPFS_WITNESS_FDS];
	bool doubt = false;
	size_t nr_dead;
	int r = strays_note(tm);

	/* A witness that is dead has taken them along, and its number may be another's. What is
	 * armed is dirty until there is another one, and then they are in doubt. */
	if (r == -ESRCH || proc_is_dead(tm->witness_pidfd))
		return 0;
	if (r < 0)
		return r;
	nr_dead = strays_sort(t, tm, dead, &doubt);
	if (doubt || nr_dead)
		r = strays_doubt(t, tm);
	/* Only now: a daemon after this one must see them, if it was not committed. */
	for (size_t i = 0; r == 0 && i < nr_dead; i++)
		strays_close(tm, dead[i]);
	return r;
}
