/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd/proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/fdio.h"

/* Field `number` (from 4 on) of /proc/PID/stat. */
static int proc_stat(pid_t pid, int number, uint64_t *value)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *p;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	r = fdio_read_file(AT_FDCWD, path, &text, NULL);
	if (r < 0)
		return r == -ENOENT ? -ESRCH : r;
	/* The name in field 2 may hold blanks and parentheses: fields are counted from the last. */
	p = strrchr(text, ')');
	if (!p)
		return -EIO;
	p += 2; /* field 3 */
	for (int field = 3; field < number; field++) {
		p = strchr(p, ' ');
		if (!p)
			return -EIO;
		p++;
	}
	*value = strtoull(p, NULL, 10);
	return 0;
}

int proc_identify(pid_t pid, struct proc_id *id)
{
	id->pid = pid;
	return proc_stat(pid, 22, &id->start_time);
}

int proc_faults(pid_t pid, uint64_t *faults)
{
	uint64_t minor, major;
	int r = proc_stat(pid, 10, &minor);

	if (r == 0)
		r = proc_stat(pid, 12, &major);
	if (r == 0)
		*faults = minor + major;
	return r;
}

int proc_parent(pid_t pid, struct proc_id *parent)
{
	uint64_t ppid;
	int r = proc_stat(pid, 4, &ppid);

	if (r == 0 && ppid == 0)
		r = -ESRCH;
	return r < 0 ? r : proc_identify((pid_t)ppid, parent);
}

/* Of a process or of any thread: 1 or 0, or why that cannot be told. */
static int proc_has_ended(pid_t tid)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *p;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	r = fdio_read_file(AT_FDCWD, path, &text, NULL);
	if (r < 0)
		return r == -ENOENT || r == -ESRCH ? 1 : r;
	p = strrchr(text, ')');
	return !p || p[1] == '\0' || strchr("ZX", p[2]);
}

pid_t proc_thread(pid_t pid)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	char path[64];
	int ended = proc_has_ended(pid);

	if (ended <= 0)
		return ended < 0 ? ended : pid;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((errno = 0, de = readdir(dir))) {
		const pid_t tid = (pid_t)atoi(de->d_name);

		ended = tid > 0 && tid != pid ? proc_has_ended(tid) : 1;
		if (ended <= 0)
			return ended < 0 ? ended : tid;
	}
	return errno && errno != ENOENT ? -errno : -ESRCH;
}

DIR *proc_open_fds(pid_t pid, pid_t *tid)
{
	struct dirent *de = NULL;
	char path[64];
	DIR *dir;

	*tid = pid;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir)) && de->d_name[0] == '.')
		;
	if (dir && de) {
		rewinddir(dir);
		return dir;
	}
	/* Nothing open at all, or a first thread that has ended. */
	*tid = proc_thread(pid);
	if (*tid == pid)
		return dir;
	if (dir)
		closedir(dir);
	snprintf(path, sizeof(path), "/proc/%d/fd", *tid);
	return *tid > 0 ? opendir(path) : NULL;
}

int proc_open(const struct proc_id *id)
{
	_cleanup_close_ int pidfd = -1;
	struct proc_id now;
	int r;

	if (id->pid <= 0)
		return -ESRCH;
	pidfd = (int)syscall(SYS_pidfd_open, id->pid, 0);
	if (pidfd < 0)
		return -errno;
	r = proc_identify(id->pid, &now);
	if (r < 0)
		return r;
	if (now.start_time != id->start_time)
		return -ESRCH;
	return steal_fd(&pidfd);
}

pid_t proc_of_pidfd(int pidfd)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *p;
	int r;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	r = fdio_read_file(AT_FDCWD, path, &text, NULL);
	if (r < 0)
		return r;
	p = strstr(text, "\nPid:");
	if (!p)
		return -EBADF;
	r = atoi(p + 5);
	return r > 0 ? r : -ESRCH;
}

bool proc_is_dead(int pidfd)
{
	struct pollfd pfd = {.fd = pidfd, .events = POLLIN};

	return poll(&pfd, 1, 0) == 1 && (pfd.revents & (POLLIN | POLLHUP));
}

/* A kernel thread has no mm, nor has a process that is ending. */
static bool proc_has_mm(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	return fdio_read_file(AT_FDCWD, path, &text, NULL) == 0 && strtoull(text, NULL, 10) > 0;
}

static int proc_compare_mm(pid_t a, pid_t b)
{
	long r = syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0);

	if (r < 0)
		return -errno;
	/* Two that have none are the same to kcmp. Who has one now had it when it was asked. */
	if (r == 0 && !proc_has_mm(a))
		return -ESRCH;
	return r == 0;
}

int proc_same_mm(pid_t a, pid_t b)
{
	int same = proc_compare_mm(a, b);
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	char path[64];

	if (same)
		return same;
	/* A first thread that has ended has no mm any more; the others go on with theirs. */
	snprintf(path, sizeof(path), "/proc/%d/task", a);
	dir = opendir(path);
	while (same != 1 && dir && (de = readdir(dir))) {
		const pid_t thread = (pid_t)atoi(de->d_name);

		if (thread > 0 && thread != a)
			same = proc_compare_mm(thread, b);
	}
	return same == 1;
}

int proc_comm(pid_t pid, char comm[16])
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	int r;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	r = fdio_read_file(AT_FDCWD, path, &text, NULL);
	if (r < 0)
		return r;
	text[strcspn(text, "\n")] = '\0';
	snprintf(comm, 16, "%s", text);
	return 0;
}

int proc_uid(pid_t pid, uid_t *uid)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *p;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	r = fdio_read_file(AT_FDCWD, path, &text, NULL);
	if (r < 0)
		return r == -ENOENT ? -ESRCH : r;
	p = strstr(text, "\nUid:");
	if (!p)
		return -EIO;
	*uid = (uid_t)strtoul(p + 5, NULL, 10);
	return 0;
}

int proc_borrow_fd(int pidfd, int fd)
{
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : copy;
}

int proc_boot_id(char id[40])
{
	_cleanup_free_ char *text = NULL;
	int r = fdio_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", &text, NULL);

	if (r < 0)
		return r;
	text[strcspn(text, "\n")] = '\0';
	snprintf(id, 40, "%s", text);
	return 0;
}
