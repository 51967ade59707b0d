/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two threads fork at once, in a program with a userfaultfd of its own: one stands still in its
 * fork() until the other one's has returned. Each must have the signal mask that it had; and so
 * must a thread of the other one's child that has the place of the one that stands still, and
 * forks. usage: forkers FILE
 */
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/compat.h"
#include "progs.h"

#define PAGE 4096ul

extern void (*earlyfork_before)(void);

static pthread_t first;
static sem_t in_fork, go_on;

static void stand_still(void)
{
	if (!pthread_equal(pthread_self(), first))
		return;
	sem_post(&in_fork);
	while (sem_wait(&go_on) < 0)
		;
}

/* Is just this one of the two signals blocked? */
static bool blocks(int blocked)
{
	sigset_t now;

	pthread_sigmask(SIG_SETMASK, NULL, &now);
	return sigismember(&now, SIGUSR1) == (blocked == SIGUSR1) &&
	       sigismember(&now, SIGUSR2) == (blocked == SIGUSR2);
}

/* Forks with one of two signals blocked, and says when that has changed. */
static void fork_as(const char *name, int blocked, void (*in_child)(void))
{
	sigset_t mask;
	int status;
	pid_t pid;

	sigemptyset(&mask);
	sigaddset(&mask, blocked);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pid = fork();
	if (pid == 0) {
		if (!blocks(blocked))
			_exit(2);
		if (in_child)
			in_child();
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("fork");
	if (status != 0)
		printf("%s: its child: %d\n", name, status >> 8);
	if (!blocks(blocked))
		printf("%s: its signal mask has changed\n", name);
}

static void *forks_first(void *arg)
{
	fork_as("first", SIGUSR1, NULL);
	return NULL;
}

static void *forks_later(void *arg)
{
	fork_as("later", SIGUSR2, NULL);
	fflush(stdout);
	return NULL;
}

/* To pthread_self(3) a thread is where its stack is. */
static int start_first(pthread_t *thread, void *(*fn)(void *))
{
	static char stack[256 * 1024] __attribute__((aligned(4096)));
	pthread_attr_t attr;

	return pthread_attr_init(&attr) || pthread_attr_setstack(&attr, stack, sizeof(stack)) ||
	       pthread_create(thread, &attr, fn, NULL);
}

static void fork_in_its_place(void)
{
	pthread_t thread;

	earlyfork_before = NULL;
	if (start_first(&thread, forks_later) || !pthread_equal(thread, first) ||
	    pthread_join(thread, NULL))
		_exit(3);
}

int main(int argc, char **argv)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	char *map = argc > 1 ? map_path(argv[1], PAGE) : NULL;
	struct uffdio_register reg = {.range = {(uintptr_t)map, PAGE},
				      .mode = UFFDIO_REGISTER_MODE_WP};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	alarm(60);
	if (!map || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		die("userfaultfd");
	sem_init(&in_fork, 0, 0);
	sem_init(&go_on, 0, 0);
	earlyfork_before = stand_still;
	if (start_first(&first, forks_first))
		die("thread");
	while (sem_wait(&in_fork) < 0)
		;
	fork_as("second", SIGUSR2, fork_in_its_place);
	sem_post(&go_on);
	pthread_join(first, NULL);
	/* The lock is free, and nobody has it who thinks so. */
	fork_as("third", SIGUSR2, NULL);
	munmap(map, PAGE);
	puts("done");
	return 0;
}
