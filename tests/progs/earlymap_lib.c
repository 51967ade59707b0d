/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A library whose constructor maps page 0 of the file that is the program's first argument and
 * writes to it, before main and before the constructors of most preloaded libraries.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

extern int earlymap_done;
int earlymap_done;

__attribute__((constructor)) static void earlymap(int argc, char **argv)
{
	int fd = argc > 1 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;
	char *p;

	if (fd < 0 || ftruncate(fd, 8192) < 0)
		return;
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return;
	p[0] = 1;
	earlymap_done = 1;
}
