/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is moved between the lower file and the store changes the lower file's times, and nobody may
 * see that: to save a page is a read, which moves the atime; to punch one and to write one are
 * changes, which move the mtime. From just before to just after, that time is the one that the file
 * had before, or that somebody gave it since, and then it is put back.
 *
 * Who reads or writes meanwhile, through the mount, changes the time too: while that is under way
 * the lower file's own is not put back, for both are "now". A store through a mapping in just that
 * moment is not known of.
 *
 * File capabilities go with every change, whoever makes it, and are put back likewise. Who looks at
 * them or changes them does so while nothing of the file is moved (capped_still), and what somebody
 * else's write takes away is not put back.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/xattr.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <utlist.h>

#include "track/capped_internal.h"
#include "track/capped_load.h"

static struct timespec time_of(const struct stat *st, enum capped_time which)
{
	return which == CAPPED_ATIME ? st->st_atim : st->st_mtim;
}

static bool changes(const struct capped_use *use, enum capped_time which)
{
	return which == CAPPED_ATIME ? use->reads : use->writes;
}

/* Is somebody reading, or writing? */
static bool is_changing(const struct capped *c, const struct capped_file *f, enum capped_time which)
{
	const struct capped_use *use;

	DL_FOREACH (c->uses, use) {
		if (use->ino == f->ino && changes(use, which))
			return true;
	}
	return false;
}

void capped_time_begin_at(struct capped *c, struct capped_file *f, enum capped_time which,
			  const struct stat *st)
{
	struct capped_moving *time = &f->times[which];

	if (time->inside++)
		return;
	if (which == CAPPED_MTIME)
		f->caps_size = fgetxattr(f->fd, XATTR_NAME_CAPS, f->caps, sizeof(f->caps));
	time->changing = is_changing(c, f, which);
	if (st)
		time->was = time_of(st, which);
	else
		time->was.tv_nsec = UTIME_OMIT;
}

void capped_time_begin(struct capped *c, struct capped_file *f, enum capped_time which)
{
	struct stat st;

	capped_time_begin_at(c, f, which,
			     f->times[which].inside == 0 && fstat(f->fd, &st) == 0 ? &st : NULL);
}

void capped_time_end(struct capped_file *f, enum capped_time which)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
	struct capped_moving *time = &f->times[which];

	if (!time->changing) {
		times[which] = time->was;
		/* Only if there are none: somebody may have given it others. */
		if (which == CAPPED_MTIME && f->caps_size > 0)
			fsetxattr(f->fd, XATTR_NAME_CAPS, f->caps, (size_t)f->caps_size,
				  XATTR_CREATE);
		futimens(f->fd, times);
	}
	time->inside--;
}

void capped_times_used(struct capped *c, struct capped_file *f, const struct capped_use *use,
		       bool done)
{
	struct stat st;

	for (enum capped_time which = 0; f && which < CAPPED_TIMES; which++) {
		struct capped_moving *time = &f->times[which];

		if (!time->inside || !changes(use, which))
			continue;
		if (fstat(f->fd, &st) == 0)
			time->was = time_of(&st, which);
		time->changing = is_changing(c, f, which);
		/* It took them away. One that failed did not. */
		if (which == CAPPED_MTIME && done)
			f->caps_size = 0;
	}
}

void capped_time_wait(struct capped *c, const struct capped_file *f)
{
	while (f->changers)
		pthread_cond_wait(&c->cond, &c->lock);
}

int capped_still(struct capped *c, uint64_t ino, int (*fn)(void *arg), void *arg)
{
	struct capped_file *f;
	int r;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (f) {
		f->changers++;
		while (f->times[CAPPED_MTIME].inside)
			pthread_cond_wait(&c->cond, &c->lock);
		f->changers--;
		pthread_cond_broadcast(&c->cond);
	}
	r = fn(arg);
	pthread_mutex_unlock(&c->lock);
	return r;
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
	for (enum capped_time which = 0; r == 0 && f && which < CAPPED_TIMES; which++) {
		if (times[which].tv_nsec == UTIME_NOW)
			f->times[which].was = time_of(&st, which);
		else if (times[which].tv_nsec != UTIME_OMIT)
			f->times[which].was = times[which];
	}
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
	if (f && f->times[CAPPED_ATIME].inside && !f->times[CAPPED_ATIME].changing)
		st->st_atim = f->times[CAPPED_ATIME].was;
	if (f && f->times[CAPPED_MTIME].inside && !f->times[CAPPED_MTIME].changing)
		st->st_mtim = f->times[CAPPED_MTIME].was;
	pthread_mutex_unlock(&c->lock);
	return r;
}
