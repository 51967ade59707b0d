/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * Orders of `mapper` about children, and about the process itself:
 *
 *   child HOW M PAGE [COUNT] -> PID   COUNT children at once; child i stores to page PAGE + i of M
 *                                     and ends. HOW: fork, double (a grandchild stores), thread (a
 *                                     thread forks), raw (clone(2) without libc's handlers), vfork,
 *                                     vm (CLONE_VM), spawn (posix_spawn of `true`, no store)
 *   setsid    uid UID    chroot PATH    closefrom N    rawclosefrom N    closeall N (one by one)
 *   dup FD NEW   dup2 of numbers    fill FD   dup until there is no number left
 *   reap -> PID  wait(2) for any child, also one without an exit signal
 */
/* clang-format on */
#include "mapper.h"

#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN_MAX 64

extern char **environ;

struct child {
	const char *how;
	volatile char *at;
	pid_t pid; /* or -errno */
};

static int store_and_end(void *arg)
{
	*((struct child *)arg)->at = 7;
	_exit(0);
}

static pid_t grandchild(struct child *c)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		pid = fork();
		if (pid == 0)
			store_and_end(c);
		waitpid(pid, &status, 0);
		_exit(pid < 0 || status != 0);
	}
	return pid;
}

static void *fork_in_thread(void *arg)
{
	struct child *c = arg;

	c->pid = fork();
	if (c->pid == 0)
		store_and_end(c);
	return NULL;
}

static pid_t make_in_thread(struct child *c)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, fork_in_thread, c) || pthread_join(thread, NULL))
		return -1;
	return c->pid;
}

static pid_t make_vm(struct child *c)
{
	static char stack[CHILDREN_MAX][16384] __attribute__((aligned(16)));
	static unsigned used;
	char *top = stack[used++ % CHILDREN_MAX] + sizeof(stack[0]);

	return clone(store_and_end, top, CLONE_VM | SIGCHLD, c);
}

static pid_t make_spawned(void)
{
	char name[] = "true", *const argv[] = {name, NULL};
	pid_t pid;

	errno = posix_spawnp(&pid, name, NULL, NULL, argv, environ);
	return errno ? -1 : pid;
}

static pid_t make(struct child *c)
{
	pid_t pid;

	if (strcmp(c->how, "double") == 0)
		return grandchild(c);
	if (strcmp(c->how, "thread") == 0)
		return make_in_thread(c);
	if (strcmp(c->how, "vm") == 0)
		return make_vm(c);
	if (strcmp(c->how, "spawn") == 0)
		return make_spawned();
	if (strcmp(c->how, "raw") == 0)
		pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	else if (strcmp(c->how, "vfork") == 0)
		pid = vfork();
	else
		pid = fork();
	if (pid == 0)
		store_and_end(c);
	return pid;
}

static long do_child(const struct order *o)
{
	size_t count = o->words > 4 ? number(o, 4) : 1;
	static struct child children[CHILDREN_MAX];
	long ret = 0;

	if (count > CHILDREN_MAX)
		return -EINVAL;
	for (size_t i = 0; i < count; i++) {
		struct child *c = &children[i];

		*c = (struct child){o->word[1], page_at(o, 2, 3) + i * PAGE, 0};
		c->pid = make(c);
		if (c->pid < 0)
			return -errno;
	}
	for (size_t i = 0; i < count; i++) {
		int status;

		if (waitpid(children[i].pid, &status, 0) < 0 || status != 0)
			return -ECHILD;
		ret = children[i].pid;
	}
	return ret;
}

/* ---- the process itself ---- */

static long do_setsid(const struct order *o)
{
	return result(setsid());
}

static long do_uid(const struct order *o)
{
	uid_t uid = (uid_t)number(o, 1);

	if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0)
		return -errno;
	return result(setresuid(uid, uid, uid));
}

static long do_chroot(const struct order *o)
{
	return chroot(o->word[1]) < 0 ? -errno : result(chdir("/"));
}

static long do_closefrom(const struct order *o)
{
	closefrom((int)number(o, 1));
	return 0;
}

static long do_rawclosefrom(const struct order *o)
{
	return result(syscall(SYS_close_range, number(o, 1), ~0u, 0));
}

static long do_closeall(const struct order *o)
{
	long max = sysconf(_SC_OPEN_MAX);

	for (int fd = (int)number(o, 1); fd < max; fd++)
		close(fd);
	return 0;
}

static long do_dup(const struct order *o)
{
	return result(dup2((int)number(o, 1), (int)number(o, 2)));
}

static long do_reap(const struct order *o)
{
	return result(waitpid(-1, NULL, __WALL));
}

static long do_fill(const struct order *o)
{
	while (dup((int)number(o, 1)) >= 0)
		;
	return errno == EMFILE ? 0 : -errno;
}

const struct verb child_verbs[] = {
	{"child", 4, do_child},
	{"setsid", 1, do_setsid},
	{"uid", 2, do_uid},
	{"chroot", 2, do_chroot},
	{"closefrom", 2, do_closefrom},
	{"rawclosefrom", 2, do_rawclosefrom},
	{"closeall", 2, do_closeall},
	{"dup", 3, do_dup},
	{"fill", 2, do_fill},
	{"reap", 1, do_reap},
	{0},
};
