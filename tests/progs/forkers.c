/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two threads fork at once, in a program with a userfaultfd of its own: one stands still in its
 * fork() until the other one's has returned. Each must have the signal mask that it had.
 * usage: forkers FILE
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

/* Forks; says which of two signals are blocked after it that were not, or the other way round. */
static void fork_as(const char *name, int blocked)
{
	sigset_t mask, after;
	int status;
	pid_t pid;

	sigemptyset(&mask);
	sigaddset(&mask, blocked);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pid = fork();
	if (pid == 0)
		_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		die("fork");
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int sig = SIGUSR1; sig; sig = sig == SIGUSR1 ? SIGUSR2 : 0) {
		if (sigismember(&after, sig) != (sig == blocked))
			printf("%s: its signal mask has changed\n", name);
	}
}

static void *forks_first(void *arg)
{
	fork_as("first", SIGUSR1);
	return NULL;
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
	if (pthread_create(&first, NULL, forks_first, NULL))
		die("thread");
	while (sem_wait(&in_fork) < 0)
		;
	fork_as("second", SIGUSR2);
	sem_post(&go_on);
	pthread_join(first, NULL);
	/* The lock is free, and nobody has it who thinks so. */
	fork_as("third", SIGUSR2);
	munmap(map, PAGE);
	puts("done");
	return 0;
}
