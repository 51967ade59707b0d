/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writes at random through a shared mapping from several threads and keeps a page-by-page
 * reference in another file: per page 0 = never written, 1 = a write has begun, 2 = one is done.
 * A page with 2 must be dirty whatever happened; one with 0 must not be.
 *
 *	hammer FILE REFERENCE PAGES THREADS SEED
 *
 * Orders on stdin, answers "ok" on stdout: write TARGETS TOTAL (TOTAL writes to TARGETS chosen
 * pages), flood TARGETS (writes for ever; answers when some are done), unmap, map, exec (becomes a
 * program that only waits), exit.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "progs.h"

#define PAGE 4096ul

static char *map;
static _Atomic unsigned char *reference;
static size_t pages;
static const char *path;

static uint32_t *targets;
static size_t nr_targets;
static _Atomic uint64_t done_writes;

struct worker {
	pthread_t thread;
	uint64_t random; /* xorshift64 state */
	uint64_t writes;
};

static void *work(void *arg)
{
	struct worker *w = arg;

	for (uint64_t i = 0; i < w->writes; i++) {
		uint32_t page = targets[next_random(&w->random) % nr_targets];
		size_t byte = next_random(&w->random) % PAGE;

		if (reference[page] == 0)
			reference[page] = 1;
		((volatile char *)map)[page * PAGE + byte]++;
		reference[page] = 2;
		done_writes++;
	}
	return NULL;
}

static void choose_targets(size_t nr, uint64_t *random)
{
	free(targets);
	targets = calloc(nr, sizeof(*targets));
	if (!targets)
		die("calloc");
	nr_targets = nr;
	for (size_t i = 0; i < nr; i++)
		targets[i] = (uint32_t)(next_random(random) % pages);
}

int main(int argc, char **argv)
{
	struct worker worker[16] = {0};
	size_t threads;
	uint64_t random;
	char line[128];

	if (argc == 2 && strcmp(argv[1], "wait") == 0) {
		puts("ok");
		fflush(stdout);
		return getchar() == EOF ? 0 : 1;
	}
	if (argc != 6)
		return 2;
	path = argv[1];
	pages = strtoul(argv[3], NULL, 10);
	threads = strtoul(argv[4], NULL, 10);
	random = strtoull(argv[5], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
	reference = map_path(argv[2], pages);
	map = map_path(path, pages * PAGE);
	puts("ok");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		unsigned long long a = 0, b = 0;
		char order[16] = "";

		sscanf(line, "%15s %llu %llu", order, &a, &b);
		if (strcmp(order, "write") == 0 || strcmp(order, "flood") == 0) {
			int flood = order[0] == 'f';

			choose_targets(a, &random);
			done_writes = 0;
			for (size_t i = 0; i < threads; i++) {
				worker[i].random = next_random(&random);
				worker[i].writes = flood ? UINT64_MAX : b / threads;
				if (pthread_create(&worker[i].thread, NULL, work, &worker[i]))
					die("pthread_create");
			}
			for (size_t i = 0; !flood && i < threads; i++)
				pthread_join(worker[i].thread, NULL);
			while (done_writes < a / 4)
				continue;
		} else if (strcmp(order, "unmap") == 0) {
			if (munmap(map, pages * PAGE) < 0)
				die("munmap");
		} else if (strcmp(order, "map") == 0) {
			map = map_path(path, pages * PAGE);
		} else if (strcmp(order, "exec") == 0) {
			execl("/proc/self/exe", "hammer", "wait", NULL);
			die("exec");
		} else if (strcmp(order, "exit") == 0) {
			return 0;
		}
		puts("ok");
		fflush(stdout);
	}
	return 0;
}
