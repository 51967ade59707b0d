/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is moved between the lower file and the store changes the lower file's times, and nobody may
 * see that. While such work is under way the times are those that the file had when it began, or
 * that somebody gave it since; each piece of work puts them back at its end.
 *
 * Who reads or writes meanwhile, through the mount, changes the times too: while that is under way
 * the lower file's own are not put back, for both are "now".
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <utlist.h>

#include "track/capped_internal.h"

/* Who is reading or writing? */
static void look_at_uses(const struct capped *c, struct capped_file *f)
{
	const struct capped_use *use;

	f->times.read = f->times.written = false;
	DL_FOREACH (c->uses, use) {
		if (use->ino == f->ino) {
			f->times.read |= use->reads;
			f->times.written |= use->writes;
		}
	}
}

void capped_times_begin(struct capped *c, struct capped_file *f)
{
	struct stat st;

	if (f->times.inside++)
		return;
	look_at_uses(c, f);
	if (fstat(f->fd, &st) < 0) {
		st.st_atim.tv_nsec = UTIME_OMIT;
		st.st_mtim.tv_nsec = UTIME_OMIT;
	}
	f->times.atim = st.st_atim;
	f->times.mtim = st.st_mtim;
}

void capped_times_restore(struct capped_file *f)
{
	struct timespec times[2] = {f->times.atim, f->times.mtim};

	if (f->times.read)
		times[0].tv_nsec = UTIME_OMIT;
	if (f->times.written)
		times[1].tv_nsec = UTIME_OMIT;
	futimens(f->fd, times);
}

void capped_times_end(struct capped_file *f)
{
	capped_times_restore(f);
	f->times.inside--;
}

void capped_times_used(struct capped *c, struct capped_file *f, const struct capped_use *use)
{
	struct stat st;

	if (!f || !f->times.inside || !(use->reads || use->writes))
		return;
	if (fstat(f->fd, &st) == 0) {
		if (use->reads)
			f->times.atim = st.st_atim;
		if (use->writes)
			f->times.mtim = st.st_mtim;
	}
	look_at_uses(c, f);
}

int capped_set_times(struct capped *c, uint64_t ino, int fd, const struct timespec times[2])
{
	struct capped_file *f;
	struct stat st;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (utimensat(fd, "", times, AT_EMPTY_PATH) < 0 || fstat(fd, &st) < 0)
		r = -errno;
	if (r == 0 && f && times[0].tv_nsec != UTIME_OMIT)
		f->times.atim = times[0].tv_nsec == UTIME_NOW ? st.st_atim : times[0];
	if (r == 0 && f && times[1].tv_nsec != UTIME_OMIT)
		f->times.mtim = times[1].tv_nsec == UTIME_NOW ? st.st_mtim : times[1];
	pthread_mutex_unlock(&c->lock);
	return r;
}

int capped_stat(struct capped *c, uint64_t ino, int fd, const char *name, struct stat *st)
{
	const struct capped_file *f;
	int r;

	pthread_mutex_lock(&c->lock);
	r = fstatat(fd, name, st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	f = capped_file_find(c, ino);
	if (f && f->times.inside && !f->times.read)
		st->st_atim = f->times.atim;
	if (f && f->times.inside && !f->times.written)
		st->st_mtim = f->times.mtim;
	pthread_mutex_unlock(&c->lock);
	return r;
}
