/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Threads store to pages without end while one protects again and again and asks what was dirty in
 * between. A store that began after one protect had returned and was over before the next one was
 * called must be in the answer for the epochs between them; one that began before a protect
 *returned and was over after it was called, in one of the two answers around it.
 *
 *	libstress FILE ROUNDS [away]	ROUNDS: or more, until the other threads have been at it
 *					away: the daemon is killed and started meanwhile; calls are
 *					made again until they are answered
 *
 * More threads ask, map and unmap, and fork. Prints "missing N extra N ...", exits 0 if none is
 * missing. Extra: in the answer, and not known to have been stored to.
 */
#include <errno.h>
#include <fcntl.h>
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

#include "wpfs.h"

#define PAGE	4096ul
#define PAGES	4096ul
#define WRITERS 3ul
#define KEPT	8ul /* intervals that are remembered */

static struct wpfs *handle;
static char *map;
static int file;
static bool away;
static _Atomic unsigned long begun, done; /* protects called, protects that have returned */
static _Atomic bool stop;
/* By page and interval (of its protect) % KEPT: the interval of a store. */
static _Atomic unsigned long inside[PAGES][KEPT], across[PAGES][KEPT], touched[PAGES][KEPT];
static _Atomic unsigned long asked, forks;

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, wpfs_error());
	exit(2);
}

/* May it be asked again? */
static bool again(int err)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	nanosleep(&ms, NULL);
	return away && (err == -ECONNREFUSED || err == -ECONNRESET || err == -ENOTCONN ||
			err == -ETIMEDOUT);
}

static void *writer(void *arg)
{
	unsigned long state = (unsigned long)arg * 77777 + 1;
	const struct timespec pace = {.tv_nsec = 10000};

	while (!stop) {
		unsigned long page, from, to;

		state = state * 6364136223846793005ul + 1442695040888963407ul;
		page = (state >> 33) % PAGES;
		from = done;
		touched[page][from % KEPT] = from;
		((_Atomic unsigned long *)(map + page * PAGE))[(unsigned long)arg]++;
		to = begun;
		if (from == to)
			inside[page][from % KEPT] = from;
		else if (to == from + 1)
			across[page][from % KEPT] = from;
		for (unsigned long i = from; i <= to; i++)
			touched[page][i % KEPT] = i;
		/* Seldom enough for most pages to be stored to once or never in an epoch. */
		if ((state >> 20) % 8 == 0)
			nanosleep(&pace, NULL);
	}
	return NULL;
}

/* Beside the others, from other threads. */
static void *asker(void *arg)
{
	while (!stop) {
		struct wpfs_runs runs;
		void *at = NULL;
		int err = wpfs_clean(handle, file, 0, 0, &runs);

		if (err && !again(err))
			die("clean");
		wpfs_runs_free(&runs);
		err = wpfs_map(handle, &at, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file,
			       8 * PAGE);
		if (err && !again(err))
			die("map");
		if (!err)
			wpfs_unmap(handle, at, 16 * PAGE);
		asked++;
	}
	return NULL;
}

static void *forker(void *arg)
{
	while (!stop) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (pid > 0)
			waitpid(pid, NULL, 0);
		forks++;
		again(0);
		again(0);
	}
	return NULL;
}

static uint64_t protect(void)
{
	uint64_t epoch;
	int err;

	while ((err = wpfs_protect(handle, file, 0, 0, &epoch)) != 0) {
		if (!again(err))
			die("protect");
	}
	return epoch;
}

static void ask(uint64_t from, uint64_t to, bool *dirty)
{
	struct wpfs_runs runs;
	int err;

	while ((err = wpfs_dirty(handle, file, 0, 0, from, to, &runs)) != 0) {
		if (!again(err))
			die("dirty");
	}
	memset(dirty, 0, PAGES * sizeof(*dirty));
	for (size_t i = 0; i < runs.nr; i++) {
		for (uint64_t at = runs.run[i].offset; at < runs.run[i].offset + runs.run[i].len;
		     at += PAGE)
			dirty[at / PAGE] = true;
	}
	wpfs_runs_free(&runs);
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : 0, missing = 0, extra = 0;
	static bool dirty[3][PAGES];
	pthread_t threads[WRITERS + 2];
	uint64_t epoch = 0;
	void *at = NULL;

	away = argc > 3;
	if (argc < 3 || wpfs_attach(argv[1], "stress", &handle) != 0)
		die("attach");
	file = open(argv[1], O_RDWR | O_CLOEXEC);
	if (wpfs_map(handle, &at, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) != 0)
		die("map");
	map = at;
	for (unsigned long i = 0; i < WRITERS; i++)
		pthread_create(&threads[i], NULL, writer, (void *)i);
	pthread_create(&threads[WRITERS], NULL, asker, NULL);
	pthread_create(&threads[WRITERS + 1], NULL, forker, NULL);
	for (unsigned long r = 1; r <= rounds || asked <= 10 || forks <= 10; r++) {
		uint64_t last = epoch;

		begun = r;
		epoch = protect();
		done = r;
		if (away) {
			printf("round %lu\n", r);
			fflush(stdout);
		}
		if (r < 2)
			continue;
		ask(last, epoch - 1, dirty[(r - 1) % 3]);
		/* One round later, so that who was stopped after its store has written it down. */
		for (unsigned long p = 0; r > 2 && p < PAGES; p++) {
			bool is = dirty[(r - 2) % 3][p], was = dirty[(r - 3) % 3][p];

			missing += !is && inside[p][(r - 2) % KEPT] == r - 2;
			missing += r > 3 && !is && !was && across[p][(r - 3) % KEPT] == r - 3;
			extra += is && touched[p][(r - 2) % KEPT] != r - 2;
		}
	}
	stop = true;
	for (unsigned long i = 0; i < WRITERS + 2; i++)
		pthread_join(threads[i], NULL);
	printf("missing %lu extra %lu asked %lu forks %lu\n", missing, extra, asked, forks);
	return missing != 0;
}
