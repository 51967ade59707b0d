/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The files that marks refer to, by id. A handle finds such a file after the kernel has forgotten
 * the inode and whatever it is called by now; the database keeps handle and path for the next
 * daemon and for people.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/marks.h"
#include "track/internal.h"
#include "uffd/maps.h"

static struct track_file *files_find(struct track *t, uint64_t ino)
{
	struct track_file *file;

	HASH_FIND(hh, t->files, &ino, sizeof(ino), file);
	return file;
}

struct track_file *files_get(struct track *t, uint64_t ino)
{
	struct track_file *file = files_find(t, ino);

	if (file)
		return file;
	file = calloc(1, sizeof(*file));
	if (!file)
		return NULL;
	file->ino = ino;
	HASH_ADD(hh, t->files, ino, sizeof(file->ino), file);
	return file;
}

static void files_drop(struct track *t, struct track_file *file)
{
	HASH_DEL(t->files, file);
	if (file->written_wd > 0)
		inotify_rm_watch(t->written_watch.fd, file->written_wd);
	free(file->path);
	free(file);
}

void files_free(struct track *t)
{
	struct track_file *file, *next;

	HASH_ITER (hh, t->files, file, next)
		files_drop(t, file);
}

bool files_learn(struct track *t, struct track_file *file)
{
	struct fs_file found;

	if (file->handle.len)
		return true;
	if (fs_file_by_ino(t->config.fs, file->ino, &found) < 0 &&
	    (!file->path || fs_file_by_path(t->config.fs, file->path, &found) < 0 ||
	     found.ino != file->ino))
		return false;
	file->handle = found.handle;
	return true;
}

int files_ctime(struct track *t, struct track_file *file, struct timespec *ctime)
{
	_cleanup_close_ int fd = files_learn(t, file)
					 ? fs_handle_open(t->config.fs, &file->handle, O_PATH)
					 : -ESTALE;
	struct stat st;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	*ctime = st.st_ctim;
	return 0;
}

int files_load(struct track *t, const struct db_file *row, bool same_lower)
{
	struct track_file *file = files_get(t, row->id);

	if (!file)
		return -ENOMEM;
	if (row->path[0]) {
		free(file->path);
		file->path = strdup(row->path);
		if (!file->path)
			return -ENOMEM;
	}
	if (same_lower && row->handle_len == sizeof(file->handle))
		memcpy(&file->handle, row->handle, sizeof(file->handle));
	else
		files_learn(t, file);
	return 0;
}

/* A file of several names keeps the one it is known by, for as long as it has that. */
static bool files_has_path(struct track *t, const struct track_file *file)
{
	struct fs_file found;

	return file->path && fs_file_by_path(t->config.fs, file->path, &found) == 0 &&
	       found.ino == file->ino;
}

int files_put(struct track *t, struct db_tx *tx, uint64_t ino)
{
	struct track_file *file = files_get(t, ino);
	char path[WPFS_PATH_MAX];

	if (!file)
		return -ENOMEM;
	if (!files_learn(t, file))
		return db_file_put(tx, ino, NULL, 0, file->path);
	if (fs_handle_path(t->config.fs, &file->handle, path, sizeof(path)) == 0 &&
	    (!file->path || strcmp(file->path, path) != 0) && !files_has_path(t, file)) {
		char *copy = strdup(path);

		if (!copy)
			return -ENOMEM;
		free(file->path);
		file->path = copy;
	}
	return db_file_put(tx, ino, &file->handle, sizeof(file->handle), file->path);
}

bool files_is_mapped(struct track *t, uint64_t ino)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		if (tm->state == TMM_NEW || tm->state == TMM_DETACHED)
			continue;
		for (size_t i = 0; i < tm->mm.nr_vmas; i++) {
			if (tm->mm.vmas[i].file == ino)
				return true;
		}
	}
	return false;
}

/*
 * A file that was opened on a mount whose daemon was killed: the new mount was never asked for it,
 * but who maps it has a link with its name, from the root of the old mount on.
 */
static void files_learn_by_mapping(struct track *t, struct track_file *file)
{
	struct maps_list maps = {0};
	struct fs_file found;
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		const pid_t pid = tmm_pid(tm);

		if (file->handle.len || pid == 0 || !mm_file_find(&tm->mm, file->ino) ||
		    maps_read(pid, t->devs, t->nr_devs, &maps) < 0)
			continue;
		for (size_t i = 0; i < maps.nr && !file->handle.len; i++) {
			char link[96], path[WPFS_PATH_MAX];
			ssize_t n;

			if (maps.vmas[i].ino != file->ino)
				continue;
			snprintf(link, sizeof(link), "/proc/%d/map_files/%llx-%llx", pid,
				 (unsigned long long)maps.vmas[i].start,
				 (unsigned long long)maps.vmas[i].end);
			n = readlink(link, path, sizeof(path) - 1);
			path[n > 0 ? n : 0] = '\0';
			if (n > 0 && fs_file_by_path(t->config.fs, path, &found) == 0 &&
			    found.ino == file->ino)
				file->handle = found.handle;
		}
	}
	maps_free(&maps);
}

void files_learn_mapped(struct track *t, uint64_t ino)
{
	struct track_file *file = files_get(t, ino);

	if (file && !files_learn(t, file))
		files_learn_by_mapping(t, file);
}

/* Is there a link or a mapping of it left? When the mount is gone nobody's mapping counts. */
static bool files_is_gone(struct track *t, const struct track_file *file)
{
	struct fs_file found;
	int r = fs_file_by_handle(t->config.fs, &file->handle, &found);

	return r == -ESTALE || (r == 0 && t->unmounted && found.nlink == 0);
}

/*
 * A file is gone from an mm. Of one that has ended the database may know mappings of it still;
 * their marks go by address, not with the file.
 */
static int files_leave(struct track *t, struct db_tx *tx, struct tmm *tm, uint64_t ino)
{
	struct mm_file *f = mm_file_find(&tm->mm, ino);

	if (!f)
		return 0;
	mm_file_remove(&tm->mm, f);
	if (tm->state != TMM_DETACHED || tm->unsaved)
		return 0;
	return persist_mm_in(t, tx, tm);
}

static int files_refresh_job(struct db_tx *tx, void *arg)
{
	struct track *t = arg;
	struct track_file *file, *next;
	struct tmm *tm;
	int r = 0;

	HASH_ITER (hh, t->files, file, next) {
		if (r < 0)
			break;
		if (!files_learn(t, file))
			files_learn_by_mapping(t, file);
		if (t->db_error || !file->handle.len || !files_is_gone(t, file) ||
		    files_is_mapped(t, file->ino)) {
			r = files_put(t, tx, file->ino);
			continue;
		}
		/* The last link and the last mapping are gone: so are its marks. */
		DL_FOREACH (t->tmms, tm) {
			if (r == 0)
				r = files_leave(t, tx, tm, file->ino);
		}
		if (r == 0)
			r = db_file_delete(tx, file->ino);
		files_drop(t, file);
	}
	return r;
}

int files_refresh(struct track *t)
{
	int r = t->db_error ?: db_call(t->config.db, files_refresh_job, t);

	if (!aside_is_for(r))
		return r;
	/* Only names then; what is gone is seen later. */
	aside_begin(t, r);
	return t->aside ? db_call(t->aside, files_refresh_job, t) : t->db_error;
}
