/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A thread that without end writes to a shared mapping, moves it with mremap and forks children
 * that write too, and measures the longest time between two steps of it. As hammer.c it keeps a
 * reference of its own stores: per page 0 = never, 1 = begun, 2 = done.
 *
 *	churn FILE REFERENCE PAGES
 *
 * It stores to the first half of the pages, a child to one of the second half. Orders on stdin,
 * one line each for an answer: go, count (-> "WRITES MOVES FORKS"), stop (-> "WRITES MOVES FORKS
 * GAP STALL" in ms), exec (it is the same program anew, in the midst of its work).
 *
 * STALL is how long a thread had to wait at most that does nothing but sleep for a millisecond
 *again and again: what a busy machine did to all of them. A fork takes several turns of its
 *processors.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "progs.h"

#define PAGE	    4096ul
#define MOVE_EVERY  50
#define FORK_EVERY  400
#define PAUSE_EVERY 16 /* or all pages would be written in a moment */
#define PAUSE_NS    200000

static char *map;
static _Atomic unsigned char *reference;
static size_t pages;

static _Atomic bool stop;
static _Atomic uint64_t writes, moves, forks, gap_ns, stall_ns;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void move(void)
{
	size_t len = pages * PAGE;
	void *place = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (place == MAP_FAILED)
		die("mmap");
	map = mremap(map, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (map == MAP_FAILED)
		die("mremap");
	moves++;
}

static void have_child(uint64_t random)
{
	size_t page = pages / 2 + random % (pages / 2);
	int status;
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0) {
		((volatile char *)map)[page * PAGE]++;
		_exit(0);
	}
	if (waitpid(pid, &status, 0) < 0 || status != 0)
		die("child");
	forks++;
}

static void store(uint64_t random)
{
	size_t page = random % (pages / 2);

	if (reference[page] == 0)
		reference[page] = 1;
	((volatile char *)map)[page * PAGE + random / pages % PAGE]++;
	reference[page] = 2;
	writes++;
}

static void *sleep_and_wake(void *arg)
{
	const struct timespec pause = {.tv_nsec = 1000000};

	for (uint64_t last = now_ns(), now; !stop; last = now) {
		nanosleep(&pause, NULL);
		now = now_ns();
		if (now - last > stall_ns)
			stall_ns = now - last;
	}
	return NULL;
}

static void *work(void *arg)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	uint64_t random = 88172645463325252u, last = now_ns();

	for (uint64_t i = 1; !stop; i++) {
		uint64_t now;

		store(next_random(&random));
		if (i % MOVE_EVERY == 0)
			move();
		if (i % FORK_EVERY == 0)
			have_child(next_random(&random));
		if (i % PAUSE_EVERY == 0)
			nanosleep(&pause, NULL);
		now = now_ns();
		if (now - last > gap_ns)
			gap_ns = now - last;
		last = now;
	}
	return NULL;
}

static void count(const char *order)
{
	printf("%llu %llu %llu", (unsigned long long)writes, (unsigned long long)moves,
	       (unsigned long long)forks);
	if (strcmp(order, "stop\n") == 0)
		printf(" %llu %llu", (unsigned long long)gap_ns / 1000000,
		       (unsigned long long)stall_ns / 1000000);
	puts("");
}

int main(int argc, char **argv)
{
	pthread_t thread, sleeper;
	char line[16];

	if (argc != 4)
		return 2;
	pages = strtoul(argv[3], NULL, 10);
	reference = map_path(argv[2], pages);
	map = map_path(argv[1], pages * PAGE);
	puts("ok");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (strcmp(line, "go\n") == 0) {
			if (pthread_create(&thread, NULL, work, NULL) ||
			    pthread_create(&sleeper, NULL, sleep_and_wake, NULL))
				die("pthread_create");
			puts("ok");
		} else {
			if (strcmp(line, "stop\n") == 0) {
				stop = true;
				pthread_join(thread, NULL);
				pthread_join(sleeper, NULL);
			}
			if (strcmp(line, "exec\n") == 0) {
				execv("/proc/self/exe", argv);
				die("exec");
			}
			count(line);
		}
		fflush(stdout);
	}
	return 0;
}
