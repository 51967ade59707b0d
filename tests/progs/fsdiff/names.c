/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations on names: making, opening, moving and removing them, and reading directories. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fsdiff.h"

#define PICK(list, number) ((list)[(number) % (sizeof(list) / sizeof((list)[0]))])

static const mode_t modes[] = {0644, 0600, 0666, 0777, 0755, 04755, 02755, 06777, 02644, 01777,
			       0,    0400, 0070, 0007, 0660, 02770, 0666,  0777,  0777,	 04711};

static void slot_take(struct side *s, unsigned slot, int fd, int flags)
{
	struct stat st;

	if (s->fd[slot] >= 0)
		close(s->fd[slot]);
	s->fd[slot] = fd;
	s->flags[slot] = flags;
	s->through_us[slot] =
		fstat(fd, &st) == 0 && (flags & O_ACCMODE) != O_RDONLY &&
		((st.st_mode & (S_ISUID | S_ISGID)) || (flags & O_DSYNC)); /* with a store */
}

static void op_open(struct side *s, const struct params *p, struct answer *a)
{
	static const int access[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR, O_PATH};
	static const int creation[] = {0, O_CREAT, O_CREAT, O_CREAT | O_EXCL, 0};
	static const int more[] = {
		0,	    0,	       O_TRUNC,	    O_APPEND, O_DIRECT,
		O_NOFOLLOW, O_NOATIME, O_DIRECTORY, O_SYNC,   O_TRUNC | O_APPEND};
	int flags = PICK(access, p->n[0]) | PICK(creation, p->n[1]) | PICK(more, p->n[2]);
	char full[PATH_MAX];
	int fd;

	if (flags & O_PATH)
		flags &= O_PATH | O_NOFOLLOW | O_DIRECTORY;
	fd = open(path_of(s, p->a, full), flags | O_CLOEXEC | O_NONBLOCK, PICK(modes, p->n[3]));
	say_result(a, fd < 0 ? fd : 0, false);
	if (fd >= 0)
		slot_take(s, p->slot, fd, flags);
}

static void op_tmpfile(struct side *s, const struct params *p, struct answer *a)
{
	int flags = O_TMPFILE | (p->n[0] % 4 ? O_RDWR : O_WRONLY) | (p->n[1] % 4 ? 0 : O_EXCL);
	char full[PATH_MAX];
	int fd = open(path_of(s, p->a, full), flags | O_CLOEXEC, PICK(modes, p->n[3]));

	say_result(a, fd < 0 ? fd : 0, false);
	if (fd >= 0)
		slot_take(s, p->slot, fd, O_RDWR);
}

static void op_link_fd(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX], self[64];

	snprintf(self, sizeof(self), "/proc/thread-self/fd/%d", s->fd[p->slot]);
	say_result(a, linkat(AT_FDCWD, self, AT_FDCWD, path_of(s, p->a, full), AT_SYMLINK_FOLLOW),
		   false);
}

/* Another open of what a slot holds, which may have no name any more. */
static void op_reopen(struct side *s, const struct params *p, struct answer *a)
{
	static const int access[] = {O_RDONLY, O_RDWR, O_WRONLY, O_RDWR | O_TRUNC};
	int flags = PICK(access, p->n[0]), fd;
	char self[64];

	snprintf(self, sizeof(self), "/proc/thread-self/fd/%d", s->fd[p->slot]);
	fd = open(self, flags | O_CLOEXEC | O_NONBLOCK);
	say_result(a, fd < 0 ? fd : 0, false);
	if (fd >= 0)
		slot_take(s, p->slot2, fd, flags);
}

static void op_close(struct side *s, const struct params *p, struct answer *a)
{
	say_result(a, s->fd[p->slot] < 0 ? 0 : close(s->fd[p->slot]), false);
	s->fd[p->slot] = -1;
}

static void op_dup(struct side *s, const struct params *p, struct answer *a)
{
	bool through_us;
	int fd = fcntl(s->fd[p->slot], F_DUPFD_CLOEXEC, 0);

	say_result(a, fd < 0 ? fd : 0, false);
	if (fd < 0)
		return;
	through_us = s->through_us[p->slot]; /* the two may be one */
	slot_take(s, p->slot2, fd, s->flags[p->slot]);
	s->through_us[p->slot2] = through_us;
}

static void op_mkdir(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];

	say_result(a, mkdir(path_of(s, p->a, full), PICK(modes, p->n[0])), false);
}

static void op_rmdir(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];

	say_result(a, rmdir(path_of(s, p->a, full)), false);
}

static void op_unlink(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];

	say_result(a, unlink(path_of(s, p->a, full)), false);
}

static void op_rename(struct side *s, const struct params *p, struct answer *a)
{
	static const unsigned flags[] = {0,
					 0,
					 0,
					 RENAME_NOREPLACE,
					 RENAME_EXCHANGE,
					 RENAME_WHITEOUT,
					 RENAME_WHITEOUT | RENAME_NOREPLACE,
					 RENAME_EXCHANGE | RENAME_NOREPLACE,
					 16};
	char from[PATH_MAX], to[PATH_MAX];

	say_result(a,
		   renameat2(AT_FDCWD, path_of(s, p->a, from), AT_FDCWD, path_of(s, p->b, to),
			     PICK(flags, p->n[0])),
		   false);
}

static void op_link(struct side *s, const struct params *p, struct answer *a)
{
	char from[PATH_MAX], to[PATH_MAX];

	say_result(a,
		   linkat(AT_FDCWD, path_of(s, p->a, from), AT_FDCWD, path_of(s, p->b, to),
			  p->n[0] % 2 ? AT_SYMLINK_FOLLOW : 0),
		   false);
}

static void op_symlink(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX], target[PATH_MAX];

	/* Some lead to a file beside it, some far, some nowhere. */
	if (p->n[0] % 4 == 0)
		memset(target, 'x', p->n[1] % 4000 + 1), target[p->n[1] % 4000 + 1] = '\0';
	else
		snprintf(target, sizeof(target), "%.200s", p->b);
	say_result(a, symlink(target, path_of(s, p->a, full)), false);
}

static void op_readlink(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX], target[PATH_MAX];
	ssize_t n = readlink(path_of(s, p->a, full), target, p->n[0] % 4 ? sizeof(target) : 5);

	say_result(a, n, true);
	if (n > 0)
		say(a, " %llx", (unsigned long long)hash_bytes(target, (size_t)n));
}

static void op_mknod(struct side *s, const struct params *p, struct answer *a)
{
	static const mode_t types[] = {S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK, S_IFREG, S_IFDIR};
	mode_t type = PICK(types, p->n[0]);
	char full[PATH_MAX];
	dev_t dev = type == S_IFCHR ? makedev(1, 3) : makedev(7, 200);

	say_result(a, mknod(path_of(s, p->a, full), type | PICK(modes, p->n[1]), dev), false);
}

static void op_socket(struct side *s, const struct params *p, struct answer *a)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char full[PATH_MAX];

	path_of(s, p->a, full);
	if (strlen(full) + 16 < sizeof(address.sun_path)) { /* the tops differ in length */
		memcpy(address.sun_path, full, strlen(full) + 1);
		say_result(a, bind(server, (void *)&address, sizeof(address)), false);
		listen(server, 1);
		say_result(a, connect(client, (void *)&address, sizeof(address)), false);
	}
	close(client);
	close(server);
}

static void op_exec(struct side *s, const struct params *p, struct answer *a)
{
	static char *const argv[] = {(char *)"x", NULL}, *const env[] = {NULL};
	volatile int problem = 0;
	char full[PATH_MAX];
	struct stat st;
	int status = 0;
	pid_t pid;

	path_of(s, p->a, full);
	/* FUSE: a mapping is of the lower file, and does not make this one busy. */
	for (unsigned i = 0; i < MAPS; i++) {
		if (s->map[i] && stat(full, &st) == 0 && st.st_ino == s->map_ino[i])
			return;
	}
	if (p->n[0] % 2) { /* something that runs */
		int fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0755);

		if (fd >= 0) {
			say_result(a, write(fd, "#!/bin/true\n", 12), true);
			close(fd);
		}
	}
	pid = vfork();
	if (pid == 0) {
		execve(full, argv, env);
		problem = errno;
		_exit(127);
	}
	waitpid(pid, &status, 0);
	say(a, " exec %s", problem ? strerrorname_np(problem) : "done");
}

/* ---- reading directories ---------------------------------------------------------------- */

static void op_opendir(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];
	DIR *dir = opendir(path_of(s, p->a, full));

	say_result(a, dir ? 0 : -1, false);
	if (!dir)
		return;
	if (s->dir[p->dir])
		closedir(s->dir[p->dir]);
	s->dir[p->dir] = dir;
	s->dir_at[p->dir] = telldir(dir);
}

static void op_readdir(struct side *s, const struct params *p, struct answer *a)
{
	unsigned n = p->n[0] % 20;

	if (!s->dir[p->dir])
		return;
	if (p->n[1] % 8 == 0)
		rewinddir(s->dir[p->dir]);
	else if (p->n[1] % 8 == 1)
		seekdir(s->dir[p->dir], s->dir_at[p->dir]);
	for (unsigned i = 0; i < n; i++) {
		const struct dirent *entry;

		if (i == n / 2)
			s->dir_at[p->dir] = telldir(s->dir[p->dir]);
		errno = 0;
		entry = readdir(s->dir[p->dir]);
		if (!entry) {
			say(a, " end %s", strerrorname_np(errno));
			break;
		}
		say(a, " %d:", entry->d_type);
		say_name(a, entry->d_name);
	}
}

/* A directory on its way to be big: what the reader gets comes in several parts. */
static void op_fill(struct side *s, const struct params *p, struct answer *a)
{
	unsigned from = p->n[0] % 200, nr = p->n[1] % 60;
	char full[PATH_MAX], name[PATH_MAX + 32];
	long made = 0, gone = 0;

	path_of(s, p->a, full);
	for (unsigned i = from; i < from + nr; i++) {
		snprintf(name, sizeof(name), "%s/a name that is number %u", full, i);
		if (p->n[2] % 2)
			made += mknod(name, S_IFREG | 0644, 0) == 0;
		else
			gone += unlink(name) == 0;
	}
	say(a, "made %ld gone %ld", made, gone);
}

static void op_access(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];

	say_result(a,
		   faccessat(AT_FDCWD, path_of(s, p->a, full), p->n[0] % 8,
			     p->n[1] % 2 ? AT_EACCESS : 0),
		   false);
}

const struct operation name_operations[] = {
	{"open", op_open, 20, true, false, true, false},
	{"tmpfile", op_tmpfile, 2, true, false, true, false},
	{"link_fd", op_link_fd, 2, true, false, true, false},
	{"reopen", op_reopen, 2, false, false, true, true},
	{"close", op_close, 4, false, false, false, false},
	{"dup", op_dup, 1, false, false, true, true},
	{"mkdir", op_mkdir, 6, true, false, false, false},
	{"rmdir", op_rmdir, 2, true, false, false, false},
	{"unlink", op_unlink, 5, true, false, true, false},
	{"rename", op_rename, 6, true, true, true, false},
	{"link", op_link, 3, true, true, true, false},
	{"symlink", op_symlink, 3, true, false, false, false},
	{"readlink", op_readlink, 2, true, false, false, false},
	{"mknod", op_mknod, 3, true, false, false, false},
	{"socket", op_socket, 1, true, false, false, false},
	{"exec", op_exec, 2, true, false, false, false},
	{"opendir", op_opendir, 2, true, false, false, false},
	{"readdir", op_readdir, 4, true, false, false, false},
	{"fill", op_fill, 1, true, false, false, false},
	{"access", op_access, 3, true, false, false, false},
	{.name = NULL},
};
