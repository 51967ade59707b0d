/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/rundir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/mountinfo.h"
#include "ipc/wire.h"

static const char *const private_files[] = {
	"wpfs.db",	  "wpfs.db-wal", "wpfs.db-shm", "unsaved.db", "unsaved.db-wal",
	"unsaved.db-shm", "absent",	 "ids",		"ids.new",    "lower_id",
	"lower_id.new",	  "options",	 "flush",
};

const char *rundir_private_path(const struct rundir *rd, const char *name, char *buf, size_t size)
{
	snprintf(buf, size, "%s/private/%s", rd->path, name);
	return buf;
}

static int make_dir(const char *path, mode_t mode)
{
	return mkdir(path, mode) < 0 && errno != EEXIST ? -errno : 0;
}

static int open_dirs(struct rundir *rd)
{
	char private_path[PATH_MAX];
	int r;

	rundir_private_path(rd, "", private_path, sizeof(private_path));
	r = make_dir(WPFS_RUN_DIR, 0755);
	if (!r)
		r = make_dir(rd->path, 0755);
	if (!r)
		r = make_dir(private_path, 0700);
	if (r)
		return r;
	rd->private_fd = open(private_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return rd->private_fd < 0 ? -errno : 0;
}

bool rundir_id_is_valid(const char *id)
{
	return id[0] && strspn(id, "0123456789abcdef-") == strlen(id);
}

int rundir_open(const char *id, const char *mountpoint, struct rundir *rd,
		struct lockfile_holder *holder)
{
	int r, tries = 0;

	snprintf(rd->path, sizeof(rd->path), "%s/%s", WPFS_RUN_DIR, id);
	/* ENOENT: a daemon that is just finishing has removed what we made or opened; again. */
	do {
		close_fd(&rd->private_fd);
		r = open_dirs(rd);
		if (!r)
			r = lockfile_take(rd->private_fd, "lock", mountpoint, holder);
	} while (r == -ENOENT && ++tries < 100);
	if (r < 0) {
		close_fd(&rd->private_fd);
		if (r != -EBUSY)
			log_err("cannot make the run directory %s: %s", rd->path, log_errstr(r));
		return r;
	}
	rd->lock_fd = r;
	return 0;
}

static int lower_id_read(struct rundir *rd)
{
	_cleanup_free_ char *text = NULL;
	int r = fdio_read_file(rd->private_fd, "lower_id", &text, NULL);

	if (r)
		return r;
	text[strcspn(text, "\n")] = '\0';
	if (!text[0] || strlen(text) >= sizeof(rd->lower_id))
		return -EBADMSG;
	snprintf(rd->lower_id, sizeof(rd->lower_id), "%s", text);
	return 0;
}

static int lower_id_make(struct rundir *rd)
{
	_cleanup_close_ int fd = -1;
	uint64_t random[2];

	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return -errno;
	snprintf(rd->lower_id, sizeof(rd->lower_id), "%016" PRIx64 "%016" PRIx64, random[0],
		 random[1]);
	fd = openat(rd->private_fd, "lower_id.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || dprintf(fd, "%s\n", rd->lower_id) < 0 ||
	    renameat(rd->private_fd, "lower_id.new", rd->private_fd, "lower_id") < 0)
		return -errno;
	return 0;
}

static int lower_open_root(struct rundir *rd)
{
	rd->lower_fd = openat(rd->private_fd, "lower", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return rd->lower_fd < 0 ? -errno : 0;
}

/* The options that the lower was mounted with, for a daemon that adopts it. */
static void options_note(struct rundir *rd, const char *options)
{
	_cleanup_close_ int fd =
		openat(rd->private_fd, "options", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || dprintf(fd, "%s\n", options) < 0)
		log_warn("cannot write %s/private/options: %s", rd->path, log_errstr(errno));
}

static bool options_are_those(struct rundir *rd, const char *options)
{
	_cleanup_free_ char *noted = NULL;

	if (fdio_read_file(rd->private_fd, "options", &noted, NULL))
		return false;
	noted[strcspn(noted, "\n")] = '\0';
	return strcmp(noted, options) == 0;
}

/*
 * A daemon that is started again as it was before is not to undo what was remounted since; only
 * other options than those of the last start are put into effect.
 */
static void lower_adopt_options(struct rundir *rd, const char *path, const char *options,
				unsigned long flags)
{
	bool same = options_are_those(rd, options);

	if (mount(NULL, path, NULL, MS_REMOUNT | flags, same ? NULL : options) < 0)
		log_warn("the mount options '%s' are not in effect: %s", options,
			 log_errstr(errno));
	else if (!same)
		options_note(rd, options);
}

static int lower_adopt(struct rundir *rd, const char *path, const char *options,
		       unsigned long flags)
{
	struct mountinfo entry;
	int r;

	r = mountinfo_find(path, &entry);
	if (!r && strcmp(entry.fstype, "tmpfs") != 0)
		r = -ENOENT;
	if (!r)
		r = lower_id_read(rd);
	if (!r)
		r = fs_ids_load(&rd->ids, rd->private_fd, "ids");
	if (!r)
		r = lower_open_root(rd);
	if (r)
		return r;
	lower_adopt_options(rd, path, options, flags);
	rd->adopted = true;
	return 0;
}

/* Which pages of the lower are on disk (capped mounts): meaningless without that lower. */
static void remove_spilled_bits(struct rundir *rd)
{
	_cleanup_close_ int fd = -1;
	_cleanup_dir_ DIR *dir = NULL;
	const struct dirent *entry;

	fd = openat(rd->private_fd, "spilled", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		return;
	steal_fd(&fd);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			unlinkat(dirfd(dir), entry->d_name, 0);
	unlinkat(rd->private_fd, "spilled", AT_REMOVEDIR);
}

static int lower_mount(struct rundir *rd, const char *path, const char *options,
		       unsigned long flags)
{
	char all[512];
	int r;

	/* One that was left half restored goes, and what a /run that outlived a boot still has. */
	while (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		;
	for (size_t i = 0; i < sizeof(private_files) / sizeof(private_files[0]); i++)
		unlinkat(rd->private_fd, private_files[i], 0);
	remove_spilled_bits(rd);
	r = lower_id_make(rd);
	if (r)
		return r;
	if (mkdirat(rd->private_fd, "lower", 0700) < 0 && errno != EEXIST)
		return -errno;
	snprintf(all, sizeof(all), "inode64%s%s", options[0] ? "," : "", options);
	if (mount("wpfs", path, "tmpfs", flags, all) < 0)
		return -errno;
	options_note(rd, options);
	/* What is mounted or unmounted elsewhere must not follow. */
	if (mount(NULL, path, NULL, MS_PRIVATE, NULL) < 0)
		return -errno;
	return lower_open_root(rd);
}

int rundir_lower_open(struct rundir *rd, const char *options, unsigned long flags)
{
	char path[PATH_MAX];
	int r;

	flags &= RUNDIR_LOWER_FLAGS;
	rundir_private_path(rd, "lower", path, sizeof(path));
	r = lower_adopt(rd, path, options, flags);
	if (r == 0)
		return 0;
	if (r != -ENOENT) {
		rd->adopted = true; /* it may hold what nothing else has: it is not to be removed */
		log_err("cannot tell what a daemon that was killed has left in %s: %s: start it "
			"again, or unmount that if it is not needed",
			path, log_errstr(r));
		return r;
	}
	fs_ids_clear(&rd->ids);
	r = lower_mount(rd, path, options, flags);
	if (r)
		log_err("cannot mount a tmpfs with '%s' on %s: %s", options, path, log_errstr(r));
	return r;
}

int rundir_lower_complete(struct rundir *rd)
{
	int r;

	fs_ids_sort(&rd->ids);
	r = fs_ids_save(&rd->ids, rd->private_fd, "ids");
	if (r)
		log_err("cannot write %s/private/ids: %s", rd->path, log_errstr(r));
	return r;
}

static void remove_logged(int dirfd, const char *name, int flags, const char *where)
{
	if (unlinkat(dirfd, name, flags) < 0 && errno != ENOENT && errno != ENOTEMPTY)
		log_warn("cannot remove %s/%s: %s", where, name, log_errstr(errno));
}

void rundir_remove(struct rundir *rd)
{
	_cleanup_close_ int run = -1, dir = -1;
	char path[PATH_MAX];

	close_fd(&rd->lower_fd);
	rundir_private_path(rd, "lower", path, sizeof(path));
	/* Detached, since programs may still map files that no mount shows any more. */
	while (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		;
	dir = openat(rd->private_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	run = openat(dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	remove_logged(dir, "sock", 0, rd->path);
	remove_logged(rd->private_fd, "lower", AT_REMOVEDIR, rd->path);
	for (size_t i = 0; i < sizeof(private_files) / sizeof(private_files[0]); i++)
		remove_logged(rd->private_fd, private_files[i], 0, rd->path);
	remove_spilled_bits(rd);
	remove_logged(rd->private_fd, "lock", 0, rd->path);
	remove_logged(dir, "private", AT_REMOVEDIR, rd->path);
	remove_logged(run, strrchr(rd->path, '/') + 1, AT_REMOVEDIR, WPFS_RUN_DIR);
	rundir_close(rd);
}

void rundir_close(struct rundir *rd)
{
	close_fd(&rd->lower_fd);
	close_fd(&rd->private_fd);
	close_fd(&rd->lock_fd);
	fs_ids_clear(&rd->ids);
}
