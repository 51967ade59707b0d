/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writers against watches (wpfs_watch of libwpfs). Prints one line "wrong N ..." and exits 0 if
 * nothing was wrong.
 *
 *	libwatch once FILE	each round all threads store to all pages: one call for each page,
 *and in the callback no store of that round is to be seen libwatch again FILE	threads store
 *without end while all pages are watched again and again: no store after a wpfs_watch without a
 *callback after its beginning
 *	libwatch end FILE	a callback ends its own watch; detach while stores wait, and
 *				while a callback runs that has ended its watch
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "wpfs.h"

#define PAGE	4096ul
#define PAGES	64ul
#define THREADS 8ul
#define ROUNDS	100ul
#define AGAIN	1000ul
#define FEW	6ul /* pages, so that each is stored to many times between two wpfs_watch */

static struct wpfs *handle;
static const char *path;
static char *map;
static _Atomic unsigned long wrong, calls;
static _Atomic unsigned long round_now;		 /* once */
static _Atomic unsigned long called[PAGES];	 /* once: times; again: `began` at the last one */
static _Atomic unsigned long began, done_rounds; /* again: wpfs_watch calls */
static _Atomic bool stop;

static void must(int err, const char *what)
{
	if (err == 0)
		return;
	fprintf(stderr, "%s: %s\n", what, wpfs_error());
	exit(2);
}

/* A thread's word in a page. */
static _Atomic unsigned long *word(unsigned long page, unsigned long thread)
{
	return (_Atomic unsigned long *)(map + page * PAGE) + thread;
}

static unsigned long page_of(const void *at)
{
	return (unsigned long)((const char *)at - map) / PAGE;
}

/* ---- once ---- */

static void on_once(void *page, void *arg)
{
	for (unsigned long t = 0; t < THREADS; t++)
		wrong += *word(page_of(page), t) != round_now - 1;
	called[page_of(page)]++;
	calls++;
}

static void *store_all(void *arg)
{
	unsigned long thread = (unsigned long)arg;

	/* All in one order, so that they meet at the same pages. */
	for (unsigned long p = 0; p < PAGES; p++)
		*word(p, thread) = round_now;
	return NULL;
}

static void once(void)
{
	pthread_t threads[THREADS];

	for (unsigned long r = 1; r <= ROUNDS; r++) {
		round_now = r;
		memset(called, 0, sizeof(called));
		must(wpfs_watch(handle, map, PAGES * PAGE, 0, on_once, NULL), "watch");
		for (unsigned long t = 0; t < THREADS; t++)
			pthread_create(&threads[t], NULL, store_all, (void *)t);
		for (unsigned long t = 0; t < THREADS; t++)
			pthread_join(threads[t], NULL);
		for (unsigned long p = 0; p < PAGES; p++) {
			wrong += called[p] != 1;
			for (unsigned long t = 0; t < THREADS; t++)
				wrong += *word(p, t) != r;
		}
	}
}

/* ---- again ---- */

static void on_again(void *page, void *arg)
{
	called[page_of(page)] = began;
	calls++;
	for (int i = 0; i < 10; i++) /* the next wpfs_watch falls into a callback now and then */
		sched_yield();
}

static void *store_on(void *arg)
{
	unsigned long thread = (unsigned long)arg;

	for (unsigned long i = 0; !stop; i++) {
		unsigned long page = (i + thread) % FEW, watched = done_rounds;

		*word(page, thread) = i;
		if (called[page] < watched)
			wrong++;
	}
	return NULL;
}

static void again(void)
{
	pthread_t threads[THREADS];

	for (unsigned long t = 0; t < THREADS; t++)
		pthread_create(&threads[t], NULL, store_on, (void *)t);
	for (unsigned long r = 1; r <= AGAIN; r++) {
		const struct timespec pace = {.tv_nsec = 100000};

		began = r;
		must(wpfs_watch(handle, map, FEW * PAGE, 0, on_again, NULL), "watch");
		done_rounds = r;
		nanosleep(&pace, NULL);
	}
	stop = true;
	for (unsigned long t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
}

/* ---- end ---- */

static void on_end(void *page, void *arg)
{
	calls++;
	must(wpfs_unwatch(handle, map, PAGES / 2 * PAGE), "unwatch in the callback");
}

static _Atomic bool inside, last_entered, last_left;

static void on_slow(void *page, void *arg)
{
	calls++;
	inside = true;
	for (int i = 0; i < 100; i++)
		sched_yield();
	inside = false;
}

/* As on_end, and what it does after that is not over at once. */
static void on_last(void *page, void *arg)
{
	must(wpfs_unwatch(handle, map, PAGES * PAGE), "unwatch in the callback");
	last_entered = true;
	on_slow(page, arg);
	last_left = true;
}

static void *store_last(void *arg)
{
	*word(0, 0) = 2;
	return NULL;
}

static void end(void)
{
	pthread_t threads[THREADS];
	struct wpfs *second;

	must(wpfs_watch(handle, map, PAGES * PAGE, 0, on_end, NULL), "watch");
	for (unsigned long p = 0; p < PAGES / 2; p++)
		*word(p, 0) = 1;
	wrong += calls != 1;
	must(wpfs_unwatch(handle, map, PAGES * PAGE), "unwatch");
	*word(PAGES - 1, 0) = 1;
	wrong += calls != 1;
	must(wpfs_watch(handle, map, PAGES * PAGE, 0, on_slow, NULL), "watch");
	round_now = 1;
	for (unsigned long t = 0; t < THREADS; t++)
		pthread_create(&threads[t], NULL, store_all, (void *)t);
	while (!inside)
		sched_yield();
	second = handle;
	must(wpfs_attach(path, "w", &handle), "attach");
	wpfs_detach(second);
	wrong += inside;
	for (unsigned long t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
	wrong += calls == 0;
	must(wpfs_watch(handle, map, PAGES * PAGE, 0, on_last, NULL), "watch");
	pthread_create(&threads[0], NULL, store_last, NULL);
	while (!last_entered)
		sched_yield();
	wpfs_detach(handle);
	wrong += !last_left;
	pthread_join(threads[0], NULL);
}

int main(int argc, char **argv)
{
	void *at = NULL;
	int fd;

	if (argc != 3)
		return 2;
	path = argv[2];
	must(wpfs_attach(path, "w", &handle), "attach");
	fd = open(path, O_RDWR | O_CLOEXEC);
	must(wpfs_map(handle, &at, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "map");
	map = at;
	if (!strcmp(argv[1], "once"))
		once();
	else if (!strcmp(argv[1], "again"))
		again();
	else
		end();
	printf("wrong %lu, calls %lu\n", wrong, calls);
	return wrong != 0;
}
