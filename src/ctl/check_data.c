/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Contents that are shorter or longer than their file, or not there at all, are no findings: what
 * lies behind the end of the file is not read, and what is missing is zeros.
 */
#include "ctl/check_data.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LOST "lost+found"

static int found(struct check_data *check, const char *kind, const char *what, const char *repair,
		 const char *where)
{
	const struct db_finding finding = {
		.kind = kind, .where = where, .what = what, .repair = repair};

	return check->fn(check->ctx, &finding);
}

/* Moves an entry of a directory to STORE/lost+found, under a name that is free there. */
static int move_to_lost(struct check_data *check, int fd, const char *name)
{
	_cleanup_close_ int lost = -1;
	char to[NAME_MAX + 16];
	int n = 0;

	if (mkdirat(check->dir_fd, LOST, 0700) < 0 && errno != EEXIST)
		return -errno;
	lost = openat(check->dir_fd, LOST, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (lost < 0)
		return -errno;
	snprintf(to, sizeof(to), "%s", name);
	while (renameat2(fd, name, lost, to, RENAME_NOREPLACE) < 0) {
		if (errno != EEXIST || ++n > 10000)
			return -errno;
		snprintf(to, sizeof(to), "%.200s.%d", name, n);
	}
	return fsync(lost) < 0 || fsync(fd) < 0 || fsync(check->dir_fd) < 0 ? -errno : 0;
}

static int stray(struct check_data *check, int fd, const char *dir, const char *name,
		 const char *what)
{
	char where[2 * NAME_MAX + 16];
	int r;

	snprintf(where, sizeof(where), "data/%s%s", dir, name);
	r = found(check, "stray", what, "move it to STORE/" LOST, where);
	return r || !check->repair ? r : move_to_lost(check, fd, name);
}

/* A decimal number without leading zeros, below 2^63; 0: it is none. */
static uint64_t parse_id(const char *name)
{
	uint64_t id;
	char *end;

	if (name[0] < '1' || name[0] > '9')
		return 0;
	errno = 0;
	id = strtoull(name, &end, 10);
	return errno || *end || id > INT64_MAX ? 0 : id;
}

/* To where it belongs, if nothing is there. 1: done, 0: taken, -errno. */
static int move_home(int data_fd, int fd, const char *name, uint64_t id)
{
	_cleanup_close_ int home = -1;
	char dir[3];

	snprintf(dir, sizeof(dir), "%02x", (unsigned)(id & 0xff));
	if (mkdirat(data_fd, dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	home = openat(data_fd, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (home < 0)
		return errno == ENOTDIR ? 0 : -errno;
	if (renameat2(fd, name, home, name, RENAME_NOREPLACE) < 0)
		return errno == EEXIST ? 0 : -errno;
	return fsync(home) < 0 || fsync(fd) < 0 || fsync(data_fd) < 0 ? -errno : 1;
}

static int misplaced(struct check_data *check, int data_fd, int fd, const char *dir,
		     const char *name, uint64_t id)
{
	char where[2 * NAME_MAX + 16];
	int r;

	snprintf(where, sizeof(where), "data/%s%s", dir, name);
	r = found(check, "misplaced", "contents in the wrong directory",
		  "move it to the right one, or if there are others to STORE/" LOST, where);
	if (r || !check->repair)
		return r;
	r = move_home(data_fd, fd, name, id);
	return r ? (r < 0 ? r : 0) : move_to_lost(check, fd, name);
}

/* What a crash leaves is no damage: the next mount removes it. A repair keeps it from that. */
static int orphan(struct check_data *check, int fd, const char *dir, const char *name)
{
	char where[2 * NAME_MAX + 16];
	int r;

	if (!check->repair && !db_check_is_clean(check->db)) {
		check->leftovers++;
		return 0;
	}
	snprintf(where, sizeof(where), "data/%s%s", dir, name);
	r = found(check, "orphan", "contents without a file", "move them to STORE/" LOST, where);
	return r || !check->repair ? r : move_to_lost(check, fd, name);
}

static int check_entry(struct check_data *check, int data_fd, int fd, const char *dir,
		       const char *name)
{
	uint64_t id = parse_id(name);
	struct stat st;
	int r;

	progress_update(check->progress, ++check->looked);
	if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (!id)
		return stray(check, fd, dir, name, "not named as contents are");
	if (!S_ISREG(st.st_mode))
		return stray(check, fd, dir, name, "contents that are no regular file");
	r = db_check_is_file(check->db, id);
	if (r < 0)
		return r;
	if (!r)
		return orphan(check, fd, dir, name);
	return strtoul(dir, NULL, 16) == (id & 0xff) ? 0
						     : misplaced(check, data_fd, fd, dir, name, id);
}

/* ---- directories ---- */

/* All names of a directory, first: entries move while they are looked at. */
struct names {
	char **names;
	size_t nr, room;
};

static void names_free(struct names *names)
{
	for (size_t i = 0; i < names->nr; i++)
		free(names->names[i]);
	free(names->names);
}

static int names_add(struct names *names, const char *name)
{
	if (names->nr == names->room) {
		size_t room = names->room ? names->room * 2 : 256;
		char **bigger = reallocarray(names->names, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		names->names = bigger;
		names->room = room;
	}
	names->names[names->nr] = strdup(name);
	return names->names[names->nr++] ? 0 : -ENOMEM;
}

static int names_read(struct names *names, int fd)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;

	dir = copy < 0 ? NULL : fdopendir(copy);
	if (!dir) {
		r = -errno;
		close_fd(&copy);
		return r;
	}
	while (!r && (errno = 0, de = readdir(dir))) {
		if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
			r = names_add(names, de->d_name);
	}
	return r ? r : -errno;
}

static bool is_lower_hex(char c)
{
	return isdigit((unsigned char)c) || (c >= 'a' && c <= 'f');
}

static int check_dir(struct check_data *check, int data_fd, const char *name)
{
	_cleanup_(names_free) struct names names = {NULL};
	_cleanup_close_ int fd = -1;
	char prefix[NAME_MAX + 2];
	int r;

	if (strlen(name) != 2 || !is_lower_hex(name[0]) || !is_lower_hex(name[1]))
		return stray(check, data_fd, "", name, "not named as contents are");
	fd = openat(data_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
		return stray(check, data_fd, "", name, "not a directory, as it should be");
	if (fd < 0)
		return -errno;
	snprintf(prefix, sizeof(prefix), "%s/", name);
	r = names_read(&names, fd);
	for (size_t i = 0; !r && i < names.nr; i++)
		r = check_entry(check, data_fd, fd, prefix, names.names[i]);
	return r;
}

/* Entries below data/, for nobody but who waits. */
static uint64_t count_entries(int data_fd, const struct names *dirs)
{
	uint64_t nr = 0;

	for (size_t i = 0; i < dirs->nr; i++) {
		_cleanup_(names_free) struct names names = {NULL};
		_cleanup_close_ int fd = openat(data_fd, dirs->names[i],
						O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

		if (fd >= 0 && names_read(&names, fd) == 0)
			nr += names.nr;
	}
	return nr;
}

int check_data_run(struct check_data *check)
{
	_cleanup_(names_free) struct names names = {NULL};
	_cleanup_close_ int data_fd =
		openat(check->dir_fd, "data", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	int r;

	check->leftovers = 0;
	if (data_fd < 0)
		return errno == ENOENT ? 0 : -errno;
	r = names_read(&names, data_fd);
	progress_begin(check->progress, "check: files", PROGRESS_THINGS, 0);
	if (!r && check->progress->on)
		check->progress->total = count_entries(data_fd, &names);
	for (size_t i = 0; !r && i < names.nr; i++)
		r = check_dir(check, data_fd, names.names[i]);
	return r;
}
