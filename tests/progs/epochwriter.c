/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stores at full speed through a shared mapping, each thread to pages of its own, and notes when
 * (epochs.h).
 *
 *	epochwriter FILE NOTES PAGES THREADS
 *
 * Says "ok" when all threads store, and ends when NOTES says stop.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "epochs.h"
#include "progs.h"

#define PAGE 4096ul

static struct epochs_shared *shared;
static char *map;
static _Atomic uint32_t started;

static void store(uint32_t page)
{
	struct epochs_page *p = &shared->page[page];
	const uint32_t count = p->count;
	struct epochs_record *now = &p->log[count % EPOCHS_LOG];
	struct epochs_record *before = &p->log[(count + EPOCHS_LOG - 1) % EPOCHS_LOG];

	now->last = EPOCHS_ONGOING; /* first of all: who reads must not see an old one */
	now->first = shared->phase;
	now->stores = 1;
	p->count = count + 1;
	((volatile char *)map)[page * PAGE]++;
	atomic_thread_fence(memory_order_seq_cst); /* the store is there before time is told */
	now->last = shared->phase;
	if (count && before->first == now->first && before->last == now->last) {
		before->stores++;
		p->count = count;
	}
}

static void *work(void *arg)
{
	const uint32_t thread = (uint32_t)(uintptr_t)arg;
	uint64_t random = 88172645463325252u + thread, stores = 0;

	started++;
	while (!shared->stop) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		store((uint32_t)(random % (shared->pages / shared->threads)) * shared->threads +
		      thread);
		stores++;
	}
	shared->stores += stores;
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[16];
	uint32_t pages, threads;

	if (argc != 5)
		return 2;
	pages = (uint32_t)atoi(argv[3]);
	threads = (uint32_t)atoi(argv[4]);
	if (threads < 1 || threads > 16)
		return 2;
	shared = map_path(argv[2], sizeof(*shared) + pages * sizeof(shared->page[0]));
	shared->pages = pages;
	shared->threads = threads;
	shared->phase = 1;
	map = map_path(argv[1], pages * PAGE);
	for (uint32_t i = 0; i < threads; i++) {
		if (pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)i))
			die("pthread_create");
	}
	while (started < threads)
		usleep(100);
	puts("ok");
	fflush(stdout);
	for (uint32_t i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
