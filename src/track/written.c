/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that write(2) changed. It clears no mark, so who copies only dirty pages must be told.
 *
 * An inotify watch on the file as the mount shows it: a passthrough write, splice or copy makes
 * IN_MODIFY there, a store through a mapping does not, and a page that comes back on a capped mount
 * does not either, for it goes to the lower file (all measured). IN_ONESHOT: one event is all that
 * an epoch needs, and from then on a write costs what it costs without. A truncate or a punch
 * counts as well, though its pages are dirty anyway: the event does not tell which it was.
 *
 * Not chosen: a watch on the lower file. splice(2) and sendfile(2) into a passthrough file make no
 * event there. It would see what goes through descriptors of a mount whose daemon was killed, which
 * a watch on the new mount does not; while there are such descriptors nothing is known.
 *
 * A write that is not over when an epoch ends counts in the one that begins. While no daemon runs
 * nobody looks: the next one knows only of an ordered end that nothing came in between.
 */
#include "track/written.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/db.h"
#include "db/marks.h"
#include "track/capped_track.h"
#include "track/watcher.h"
#include "uffd/maps.h"

int written_open(struct track *t)
{
	t->written_watch.fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (t->written_watch.fd >= 0 && watcher_start(t->written_watch.fd, &t->watcher) < 0)
		close_fd(&t->written_watch.fd);
	if (t->written_watch.fd < 0) {
		log_warn("track: whether write(2) changes a file will not be known: inotify: %s",
			 log_errstr(errno));
		t->written_watch.fd = -1;
		return 0;
	}
	return track_watch_add(t, &t->written_watch, EPOLLIN);
}

void written_close(struct track *t)
{
	watcher_stop(t->watcher);
	t->watcher = NULL;
	track_watch_remove(t, &t->written_watch);
}

static void written_set(struct track *t, uint64_t ino, enum mm_written written)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		struct mm_file *f = mm_file_find(&tm->mm, ino);

		if (!f || f->written == MM_WRITTEN_YES || f->written == written)
			continue;
		f->written = written;
		t->written_unsaved = true;
	}
}

/* ---- looking for a write ---- */

/* A link to the file in some process that maps it on this mount. False: nobody does. */
static bool written_mapped_path(struct track *t, uint64_t ino, char *path, size_t size)
{
	const uint64_t dev = t->config.dev;
	struct maps_list maps = {0};
	bool found = false;
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		pid_t pid = tmm_pid(tm);

		if (found || pid == 0 || maps_read(pid, &dev, 1, &maps) < 0)
			continue;
		for (size_t i = 0; i < maps.nr && !found; i++) {
			found = maps.vmas[i].ino == ino;
			if (found)
				snprintf(path, size, "/proc/%d/map_files/%llx-%llx", pid,
					 (unsigned long long)maps.vmas[i].start,
					 (unsigned long long)maps.vmas[i].end);
		}
	}
	maps_free(&maps);
	return found;
}

static int written_watch_file(struct track *t, struct track_file *file)
{
	char path[PATH_MAX], inside[WPFS_PATH_MAX];
	int r = -ENOENT;

	if (files_learn(t, file) &&
	    fs_handle_path(t->config.fs, &file->handle, inside, sizeof(inside)) == 0 &&
	    (size_t)snprintf(path, sizeof(path), "%s%s", t->config.mountpoint, inside) <
		    sizeof(path))
		r = watcher_add(t->watcher, path, t->config.dev, file->ino);
	/* No name, or one that is hidden by another mount. */
	if (r < 0 && written_mapped_path(t, file->ino, path, sizeof(path)))
		r = watcher_add(t->watcher, path, t->config.dev, file->ino);
	return r;
}

void written_look_for(struct track *t, uint64_t ino)
{
	struct track_file *file = files_get(t, ino);
	int r = -EBADF;

	if (file && file->written_wd > 0)
		return;
	if (file && t->watcher)
		r = written_watch_file(t, file);
	if (r > 0) {
		file->written_wd = r;
		return;
	}
	written_set(t, ino, MM_WRITTEN_UNKNOWN);
	if (t->watcher)
		log_warn("track: whether write(2) changes file %llu is not known: %s",
			 (unsigned long long)ino, log_errstr(r));
}

/* ---- what was seen ---- */

static struct track_file *written_file_of(struct track *t, int wd)
{
	struct track_file *file;

	for (file = t->files; file; file = file->hh.next) {
		if (file->written_wd == wd)
			return file;
	}
	return NULL;
}

/* Nothing is known of any file any more: an event was lost, or cannot be read. */
static void written_lose_all(struct track *t)
{
	struct track_file *file;

	for (file = t->files; file; file = file->hh.next)
		written_set(t, file->ino, MM_WRITTEN_UNKNOWN);
}

static void written_event(struct track *t, const struct inotify_event *event)
{
	struct track_file *file = event->wd > 0 ? written_file_of(t, event->wd) : NULL;

	if (event->mask & IN_Q_OVERFLOW)
		written_lose_all(t);
	if (!file)
		return;
	file->written_wd = 0; /* ONESHOT, or the inode is gone */
	if (event->mask & IN_MODIFY)
		written_set(t, file->ino, MM_WRITTEN_YES);
	else if (!(event->mask & IN_UNMOUNT)) /* after that nobody can write */
		written_set(t, file->ino, MM_WRITTEN_UNKNOWN);
}

static void written_read_events(struct track *t)
{
	_Alignas(struct inotify_event) char buf[16384];

	while (t->written_watch.fd >= 0) {
		const ssize_t n = read(t->written_watch.fd, buf, sizeof(buf));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			log_err("track: inotify: %s", log_errstr(errno));
			written_lose_all(t);
		}
		if (n <= 0)
			return;
		for (ssize_t at = 0; at < n;) {
			const struct inotify_event *event = (const void *)(buf + at);

			written_event(t, event);
			at += (ssize_t)(sizeof(*event) + event->len);
		}
	}
}

static int written_save_job(struct db_tx *tx, void *arg)
{
	struct track *t = arg;
	struct tmm *tm;
	int r = 0;

	DL_FOREACH (t->tmms, tm) {
		struct mm_file *f, *next;

		HASH_ITER (hh, tm->mm.files, f, next) {
			if (r == 0 && tm->state != TMM_NEW)
				r = db_mm_file_written(tx, tm->mm.id, f->id, f->written);
		}
	}
	return r;
}

int written_update(struct track *t)
{
	int r = t->db_error;

	written_read_events(t);
	if (!t->written_unsaved)
		return 0;
	if (r == 0)
		r = db_call(t->config.db, written_save_job, t);
	if (r == 0)
		t->written_unsaved = false;
	if (!aside_is_for(r))
		return r;
	/* What is aside has it meanwhile; the database gets it when it can be written. */
	aside_begin(t, r);
	return t->aside ? db_call(t->aside, written_save_job, t) : t->db_error;
}

/* ---- epochs ---- */

static bool written_has_old_fd(const struct track *t, pid_t pid, const uint64_t *old, size_t nr)
{
	pid_t tid;
	_cleanup_dir_ DIR *dir = proc_open_fds(pid, &tid);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		struct statx stx;
		uint64_t dev;

		if (statx(dirfd(dir), entry->d_name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
			  STATX_TYPE, &stx) < 0 ||
		    !S_ISREG(stx.stx_mode))
			continue;
		dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
		for (size_t i = 0; i < nr; i++) {
			if (dev == old[i] && devs_file_is_ours(t, dev, dirfd(dir), entry->d_name))
				return true;
		}
	}
	return false;
}

/* Has anybody a descriptor on a mount of this lower whose daemon was killed? */
static bool written_has_old_fds(const struct track *t)
{
	const uint64_t lower = t->config.capped ? capped_lower_dev(t->config.capped) : 0;
	uint64_t old[TRACK_MAX_DEVS];
	_cleanup_dir_ DIR *proc = NULL;
	struct dirent *entry;
	size_t nr = 0;

	for (size_t i = 0; i < t->nr_devs; i++) {
		if (t->devs[i] != t->config.dev && t->devs[i] != lower)
			old[nr++] = t->devs[i];
	}
	proc = nr ? opendir("/proc") : NULL;
	while (proc && (entry = readdir(proc))) {
		if (atoi(entry->d_name) > 0 && written_has_old_fd(t, atoi(entry->d_name), old, nr))
			return true;
	}
	return nr && !proc;
}

enum mm_written written_turn(struct track *t, struct mm_file *f, bool whole)
{
	enum mm_written was;

	written_update(t);
	was = f->written;
	if (whole)
		f->written = written_has_old_fds(t) ? MM_WRITTEN_UNKNOWN : MM_WRITTEN_NO;
	if (f->written != MM_WRITTEN_YES)
		written_look_for(t, f->id);
	return was;
}

/* ---- the life of a daemon ---- */

/* Calls fn for each file that an epoch is open for. */
static void written_for_each(struct track *t,
			     void (*fn)(struct track *t, struct mm_file *f, void *arg), void *arg)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		struct mm_file *f, *next;

		HASH_ITER (hh, tm->mm.files, f, next) {
			if (!mm_set_is_empty(&f->own[MM_WPFS].armed))
				fn(t, f, arg);
		}
	}
}

static void written_begin_file(struct track *t, struct mm_file *f, void *arg)
{
	struct track_file *file = files_get(t, f->id);
	const uint64_t *known = arg;

	if (f->written != MM_WRITTEN_NO ||
	    (*known == 1 && file && files_ctime(t, file, &file->written_ctime) == 0))
		return;
	f->written = MM_WRITTEN_UNKNOWN;
	t->written_unsaved = true;
}

int written_begin(struct track *t)
{
	uint64_t known = 0;
	int r = db_meta_get_u64(t->config.db, DB_META_WRITTEN_KNOWN, &known);

	if (r < 0 && r != -ENODATA)
		return r;
	r = db_meta_set_u64(t->config.db, DB_META_WRITTEN_KNOWN, 0);
	if (r == 0)
		written_for_each(t, written_begin_file, &known);
	return r;
}

static void written_serve_file(struct track *t, struct mm_file *f, void *arg)
{
	struct track_file *file = files_get(t, f->id);
	struct timespec now;

	if (f->written == MM_WRITTEN_YES)
		return;
	written_look_for(t, f->id);
	if (f->written == MM_WRITTEN_NO &&
	    (!file || files_ctime(t, file, &now) < 0 || now.tv_sec != file->written_ctime.tv_sec ||
	     now.tv_nsec != file->written_ctime.tv_nsec))
		written_set(t, f->id, MM_WRITTEN_UNKNOWN);
}

void written_serve(struct track *t)
{
	written_for_each(t, written_serve_file, NULL);
}

void written_end(struct track *t)
{
	int r = written_update(t);

	if (r == 0)
		r = db_meta_set_u64(t->config.db, DB_META_WRITTEN_KNOWN, 1);
	if (r < 0)
		log_warn("track: whether write(2) changed a file will not be known: %s",
			 log_errstr(r));
}
