/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Maps a file before main, in a library's constructor, and in a thread. usage: earlymap FILE */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>

extern int earlymap_done;

static void *map_in_thread(void *path)
{
	int fd = open(path, O_RDWR);
	char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);

	if (p == MAP_FAILED)
		return NULL;
	p[0] = 1;
	return p;
}

int main(int argc, char **argv)
{
	void *done = NULL;
	pthread_t thread;

	if (argc != 2)
		return 2;
	printf("before main: %s\n", earlymap_done ? "ok" : "failed");
	if (pthread_create(&thread, NULL, map_in_thread, argv[1]) == 0)
		pthread_join(thread, &done);
	printf("in a thread: %s\n", done ? "ok" : "failed");
	return 0;
}
