/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/holders.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "uffd/maps.h"
#include "uffd/proc.h"

/* DONT_SYNC: the answer of a daemon that may be on its way out is not waited for. */
static bool is_on(int dirfd, const char *path, dev_t dev)
{
	struct statx stx;

	return statx(dirfd, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE, &stx) == 0 &&
	       makedev(stx.stx_dev_major, stx.stx_dev_minor) == dev;
}

static bool has_open(int proc_fd, dev_t dev)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *entry;
	int fd = openat(proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return false;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return false;
	}
	while ((entry = readdir(dir))) {
		if (isdigit((unsigned char)entry->d_name[0]) && is_on(fd, entry->d_name, dev))
			return true;
	}
	return false;
}

static bool has_mapped(pid_t pid, const struct holders_of *of)
{
	const uint64_t devs[] = {of->dev, of->lower};
	struct maps_list maps = {0};
	bool found;

	found = maps_read(pid, devs, of->lower ? 2 : 1, &maps) == 0 && maps.nr > 0;
	maps_free(&maps);
	return found;
}

/*
 * A process that was killed is still there for a while, and `kill -9; umount` should not fail for
 * it: SIGKILL pending (SigPnd or ShdPnd). That its first thread has ended tells nothing: one that
 * is not about to end may go on without it.
 */
static bool is_ending(int proc_fd)
{
	_cleanup_free_ char *text = NULL;
	const char *line;

	if (fdio_read_file(proc_fd, "status", &text, NULL))
		return true;
	line = strstr(text, "\nState:\t");
	if (line && strchr("ZX", line[8]))
		return true;
	for (const char *const *key = (const char *const[]){"\nSigPnd:\t", "\nShdPnd:\t", NULL};
	     *key; key++) {
		line = strstr(text, *key);
		if (line && strtoull(line + strlen(*key), NULL, 16) & 1ULL << (SIGKILL - 1))
			return true;
	}
	return false;
}

/* PF_EXITING in the flags of /proc/PID/stat: past the point of no return. */
static bool is_exiting(int proc_fd)
{
	_cleanup_free_ char *text = NULL;
	const char *end;
	unsigned flags;

	if (fdio_read_file(proc_fd, "stat", &text, NULL))
		return true;
	end = strrchr(text, ')');
	return end && sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & 0x4);
}

/* /proc/PID, or that of a thread that is there still if the first one is not. */
static int open_process(int proc, pid_t pid)
{
	const pid_t tid = proc_thread(pid);
	char path[64];

	if (tid > 0 && tid != pid)
		snprintf(path, sizeof(path), "%d/task/%d", pid, tid);
	else
		snprintf(path, sizeof(path), "%d", pid);
	return openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int holders_look(struct holder_list *list, int proc, const char *name,
			const struct holders_of *of)
{
	const dev_t dev = of->dev;
	_cleanup_close_ int pidfd = -1, proc_fd = -1;
	struct holder holder = {.pid = (pid_t)atoi(name)};

	pidfd = pidfd_open(holder.pid, 0);
	proc_fd = open_process(proc, holder.pid);
	if (pidfd < 0 || proc_fd < 0)
		return 0; /* it has ended */
	if (has_mapped(holder.pid, of))
		holder.how |= HOLDER_MAPS;
	if (has_open(proc_fd, dev))
		holder.how |= HOLDER_OPEN;
	if (is_on(proc_fd, "cwd", dev))
		holder.how |= HOLDER_CWD;
	if (is_on(proc_fd, "root", dev))
		holder.how |= HOLDER_ROOT;
	holder.ending = is_ending(proc_fd) || is_exiting(proc_fd);
	/* of one that is past letting go of its mm one sees only that it is not dead yet */
	if (proc_is_dead(pidfd) || (!holder.how && !holder.ending))
		return 0;
	if (proc_comm(holder.pid, holder.comm))
		holder.comm[0] = '\0';
	holder.witness = !strcmp(holder.comm, "wpfs-witness");
	if (list->nr == list->room) {
		size_t room = list->room ? list->room * 2 : 16;
		struct holder *more = realloc(list->holders, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		list->holders = more;
		list->room = room;
	}
	holder.pidfd = steal_fd(&pidfd);
	list->holders[list->nr++] = holder;
	return 0;
}

int holders_find(const struct holders_of *of, struct holder_list *list)
{
	_cleanup_dir_ DIR *proc = opendir("/proc");
	struct dirent *entry;
	int r;

	*list = (struct holder_list){0};
	if (!proc)
		return -errno;
	while ((entry = readdir(proc))) {
		pid_t pid = (pid_t)atoi(entry->d_name);

		if (pid <= 0 || pid == getpid() || pid == of->daemon)
			continue;
		r = holders_look(list, dirfd(proc), entry->d_name, of);
		if (r)
			return r;
	}
	return 0;
}

void holders_free(struct holder_list *list)
{
	for (size_t i = 0; i < list->nr; i++)
		close_fd(&list->holders[i].pidfd);
	free(list->holders);
	*list = (struct holder_list){0};
}

const char *holder_how(unsigned how, char *buf, size_t size)
{
	static const struct {
		unsigned bit;
		const char *text;
	} words[] = {
		{HOLDER_MAPS, "maps its files"},
		{HOLDER_OPEN, "has its files open"},
		{HOLDER_CWD, "works in it"},
		{HOLDER_ROOT, "has its root in it"},
	};
	size_t used = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]) && used < size; i++) {
		if (how & words[i].bit)
			used += (size_t)snprintf(buf + used, size - used, "%s%s", used ? ", " : "",
						 words[i].text);
	}
	return buf;
}
