/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A thread stores to every second page of a range while MAP_FIXED puts a file there: the stores
 * before it land in the anonymous memory that was there, those after it in the file. It is midway
 * when the mapping is begun and not done before it is made.
 *
 *	fixed FILE PAGES
 *
 * Says "ok" when it is set up; at any line it does it and says "ok" again; ends with its input.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "progs.h"

#define PAGE 4096ul

static volatile char *range;
static size_t pages;
static _Atomic size_t progress;
static _Atomic bool mapped;

/* A store may meet the moment in which the range is not writable: it is made again. */
static void again(int sig)
{
}

static void *work(void *arg)
{
	for (size_t i = 0; i < pages; i += 2) {
		do
			range[i * PAGE] = 1;
		while (i == pages * 3 / 4 && !mapped);
		progress = i;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction retry = {.sa_handler = again};
	pthread_t thread;
	char line[16];
	int fd;

	if (argc != 3)
		return 2;
	pages = strtoul(argv[2], NULL, 10) & ~7ul;
	fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
		die(argv[1]);
	range = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	if (range == MAP_FAILED || sigaction(SIGSEGV, &retry, NULL) < 0)
		die("set-up");
	puts("ok");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 0;
	if (pthread_create(&thread, NULL, work, NULL))
		die("pthread_create");
	while (progress < pages / 4)
		continue;
	if (mmap((void *)range, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 0) != (void *)range)
		die("mmap");
	mapped = true;
	pthread_join(thread, NULL);
	puts("ok");
	fflush(stdout);
	return fgets(line, sizeof(line), stdin) ? 1 : 0;
}
