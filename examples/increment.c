/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Incremental backup of a file that is being written: only pages that changed since the last backup
 * are copied, however the program ended meanwhile.
 *
 *	cc increment.c $(pkg-config --cflags --libs wpfs)
 *	increment FILE COPY [STORES]	FILE on a wpfs mount; COPY and COPY.epoch anywhere
 *
 * It makes a backup, stores to STORES places (default 3), and makes another one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wpfs.h>

static void check(int bad, const char *what, const char *why)
{
	if (!bad)
		return;
	fprintf(stderr, "increment: %s: %s\n", what, why);
	exit(1);
}

static int open_copy(const char *path, const char *suffix)
{
	char full[4096];
	int fd;

	snprintf(full, sizeof(full), "%s%s", path, suffix);
	fd = open(full, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	check(fd < 0, full, strerror(errno));
	return fd;
}

static void backup(struct wpfs *w, int fd, const char *map, size_t size, const char *path)
{
	int copy = open_copy(path, ""), note = open_copy(path, ".epoch"), err = -ENOENT;
	struct wpfs_run all = {0, size}, *run = &all;
	uint64_t last = 0, epoch, pages = 0;
	struct wpfs_runs runs = {0};
	size_t nr = 1;

	/* What is stored from here on is of the new epoch, and will be in the next backup. */
	check(wpfs_protect(w, fd, 0, 0, &epoch), "cannot protect", wpfs_error());
	if (pread(note, &last, sizeof(last), 0) == sizeof(last))
		err = wpfs_dirty(w, fd, 0, 0, last, epoch - 1, &runs);
	check(err && err != -ENOENT, "cannot ask", wpfs_error());
	if (!err) { /* else: no backup yet, or one of too many epochs ago */
		run = runs.run;
		nr = runs.nr;
	}
	for (size_t i = 0; i < nr; i++) {
		size_t len = run[i].offset + run[i].len > size ? size - run[i].offset : run[i].len;
		ssize_t n = pwrite(copy, map + run[i].offset, len, (off_t)run[i].offset);

		check(n != (ssize_t)len, path, "cannot be written");
		pages += (len + WPFS_PAGE - 1) / WPFS_PAGE;
	}
	wpfs_runs_free(&runs);
	/* The number last: a crash before leaves the old one, and then the next backup has more. */
	check(fsync(copy) || pwrite(note, &epoch, sizeof(epoch), 0) < 0 || fsync(note), path,
	      strerror(errno));
	close(copy);
	close(note);
	printf("%llu pages\n", (unsigned long long)pages);
}

int main(int argc, char **argv)
{
	int stores = argc > 3 ? atoi(argv[3]) : 3, fd;
	void *map = NULL;
	struct wpfs *w;
	struct stat st;

	check(argc < 3, "usage", "increment FILE COPY [STORES]");
	check(wpfs_attach(argv[1], "increment", &w), "cannot attach", wpfs_error());
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	check(fd < 0 || fstat(fd, &st) < 0, argv[1], strerror(errno));
	check(wpfs_map(w, &map, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
	      "cannot map", wpfs_error());

	backup(w, fd, map, (size_t)st.st_size, argv[2]);
	for (int i = 0; i < stores; i++)
		((char *)map)[(size_t)rand() * 4099 % (size_t)st.st_size]++;
	backup(w, fd, map, (size_t)st.st_size, argv[2]);
	return 0;
}
