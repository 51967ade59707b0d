/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who maps a file of a capped mount maps the one struct file there is of it, and only with that one
 * it can be seen that nobody else has the file (a lease). It would go with the daemon, and the next
 * one could evict nothing of what is mapped. So the witness of each program that maps a file holds
 * a descriptor of it, and a new daemon takes that.
 */
#include "track/keep.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "track/capped_track.h"

static bool keep_has(const struct tmm *tm, uint64_t file)
{
	for (size_t i = 0; i < tm->nr_kept; i++) {
		if (tm->kept[i] == file)
			return true;
	}
	return false;
}

void keep_file(struct track *t, struct tmm *tm, uint64_t file)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_KEEP, .fd = -1};
	_cleanup_close_ int fd = -1;

	/* One too many: after a kill of the daemon it stays in memory as long as it is mapped. */
	if (tm->witness_pidfd < 0 || keep_has(tm, file) || tm->nr_kept == WPFS_WITNESS_FILES)
		return;
	fd = capped_file_dup(t->config.capped, file);
	if (fd < 0)
		return;
	fork_witness_tell(tm, &cmd, fd);
	tm->kept[tm->nr_kept++] = file;
}

/*
 * Calls fn for each lower file that the witness holds: with its id, its number there and a
 * descriptor that is closed afterwards.
 */
static void keep_for_each(struct track *t, struct tmm *tm,
			  void (*fn)(struct track *t, struct tmm *tm, uint64_t file, int number,
				     int fd))
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", tm->witness.pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		_cleanup_close_ int fd = -1;
		struct stat st;

		if (de->d_name[0] == '.')
			continue;
		fd = proc_borrow_fd(tm->witness_pidfd, atoi(de->d_name));
		if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
		    st.st_dev == capped_lower_dev(t->config.capped))
			fn(t, tm, fs_ino_of_lower(t->config.fs, st.st_ino), atoi(de->d_name), fd);
	}
}

static void keep_take(struct track *t, struct tmm *tm, uint64_t file, int number, int fd)
{
	if (keep_has(tm, file) || tm->nr_kept == WPFS_WITNESS_FILES)
		return;
	tm->kept[tm->nr_kept++] = file;
	capped_file_take(t->config.capped, file, fd);
}

void keep_take_back(struct track *t, struct tmm *tm)
{
	if (tm->witness_pidfd >= 0)
		keep_for_each(t, tm, keep_take);
}

static bool keep_is_mapped(const struct tmm *tm, uint64_t file)
{
	for (size_t i = 0; i < tm->mm.nr_vmas; i++) {
		if (tm->mm.vmas[i].file == file)
			return true;
	}
	return false;
}

static void keep_drop_unmapped(struct track *t, struct tmm *tm, uint64_t file, int number, int fd)
{
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_CLOSE, .fd = number};

	if (keep_is_mapped(tm, file))
		return;
	fork_witness_tell(tm, &cmd, -1);
	for (size_t i = 0; i < tm->nr_kept; i++) {
		if (tm->kept[i] == file)
			tm->kept[i--] = tm->kept[--tm->nr_kept];
	}
}

void keep_sweep(struct track *t)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		bool unmapped = false;

		if (tm->state == TMM_DETACHED || !tm->capped)
			continue;
		/* A fork child has mappings that it never told of. */
		for (size_t i = 0; i < tm->mm.nr_vmas; i++)
			keep_file(t, tm, tm->mm.vmas[i].file);
		for (size_t i = 0; i < tm->nr_kept; i++)
			unmapped |= !keep_is_mapped(tm, tm->kept[i]);
		/* A number that it is yet to close can be another's then. */
		if (tm->witness_pidfd < 0 || strays_has_unread(tm))
			continue;
		if (unmapped)
			keep_for_each(t, tm, keep_drop_unmapped);
		keep_children_sweep(t, tm);
	}
}
