/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Other processes as the kernel describes them: identity that survives pid reuse, one-mm checks,
 * borrowed descriptors. All calls are made by the daemon (root with CAP_SYS_PTRACE).
 */
#ifndef WPFS_UFFD_PROC_H
#define WPFS_UFFD_PROC_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A pid with the start time that tells it from a later process of the same number. */
struct proc_id {
	pid_t pid;	     /* 0 = none */
	uint64_t start_time; /* clock ticks since boot: field 22 of /proc/PID/stat */
};

/* Fills *id for a running pid. -ESRCH: gone (a zombie is still there). */
int proc_identify(pid_t pid, struct proc_id *id);

/* The parent of a running pid. -ESRCH: it, or its parent, is gone or not of our pid namespace. */
int proc_parent(pid_t pid, struct proc_id *parent);

/* pidfd_open(2) with the start time checked after it; the caller owns the fd. -ESRCH: another or
 * no process has that pid now. */
int proc_open(const struct proc_id *id);

/*
 * A thread of the process that has not ended: `pid` itself, but for a process whose first thread
 * has and others go on. Of such a first thread /proc/PID shows neither memory nor descriptors, and
 * the calls that take a pid find none. -ESRCH: there is none; or why that cannot be told.
 */
pid_t proc_thread(pid_t pid);

/* The descriptors of a process, an open /proc/TID/fd of the thread *tid; or NULL. */
DIR *proc_open_fds(pid_t pid, pid_t *tid);

/* The pid a pidfd stands for in this pid namespace (fdinfo "Pid:"); -ESRCH: reaped or foreign;
 * -EBADF: not a pidfd. */
pid_t proc_of_pidfd(int pidfd);

/* Has the process of this pidfd exited (zombies included)? */
bool proc_is_dead(int pidfd);

/*
 * Do two processes share one mm (kcmp(2), KCMP_VM)? 1, 0 or -errno; -ESRCH: one of them is gone,
 * or neither has one. Of `a` any thread will do, as its first one may have ended.
 */
int proc_same_mm(pid_t a, pid_t b);

/* The command name (without newline) into comm[16]. 0 or -errno. */
int proc_comm(pid_t pid, char comm[16]);

/* Page faults of a process so far, minor and major, of all its memory. 0 or -errno. */
int proc_faults(pid_t pid, uint64_t *faults);

/* Real uid of a process by /proc/PID/status. 0 or -errno. */
int proc_uid(pid_t pid, uid_t *uid);

/* A copy of descriptor `fd` of another process (pidfd_getfd(2)), close-on-exec, owned by the
 * caller, or -errno. */
int proc_borrow_fd(int pidfd, int fd);

/* /proc/sys/kernel/random/boot_id, NUL-terminated, into id[40]. 0 or -errno. */
int proc_boot_id(char id[40]);

#endif
