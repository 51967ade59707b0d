/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-fs DIR WORK COUNT [MIB]: does one kind of work in a directory, COUNT times, and prints the
 * nanoseconds that one took. What has to be there before is made first and not measured.
 * "flat": COUNT files are there, and nine lines are printed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#define MIB	   (1u << 20)

#define FLAT_STEPS 1000

static size_t size = 64 * MIB; /* of the file that is read and written */
static char *buffer;
static uint64_t started, spent;
static uint64_t seed = 88172645463325252ull;

static void must(long r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "bench-fs: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void start(void)
{
	started = now();
}

static void stop(void)
{
	spent += now() - started;
}

static unsigned long random_below(unsigned long n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % n;
}

static unsigned long random_page(void)
{
	return random_below(size / 4096);
}

static int full_file(void)
{
	int fd = open("file", O_RDWR | O_CREAT, 0644);

	must(fd, "open");
	for (off_t at = 0; (size_t)at < size; at += MIB)
		must(pwrite(fd, buffer, MIB, at), "write");
	return fd;
}

static void work_read(long n)
{
	int fd = full_file();

	start();
	for (long i = 0; i < n; i++)
		must(pread(fd, buffer, MIB, (off_t)(i % (size / MIB)) * MIB), "read");
	stop();
}

static void work_write(long n)
{
	int fd = full_file();

	start();
	for (long i = 0; i < n; i++)
		must(pwrite(fd, buffer, MIB, (off_t)(i % (size / MIB)) * MIB), "write");
	stop();
}

static void work_pread(long n)
{
	int fd = full_file();

	start();
	for (long i = 0; i < n; i++)
		must(pread(fd, buffer, 4096, (off_t)random_page() * 4096), "read");
	stop();
}

static void work_pwrite(long n)
{
	int fd = full_file();

	start();
	for (long i = 0; i < n; i++)
		must(pwrite(fd, buffer, 4096, (off_t)random_page() * 4096), "write");
	stop();
}

static volatile char *mapped(void)
{
	char *map =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, full_file(), 0);

	must(map == MAP_FAILED ? -1 : 0, "mmap");
	for (size_t at = 0; at < size; at += 4096)
		map[at] = 1;
	return map;
}

static void work_load(long n)
{
	volatile char *map = mapped();

	start();
	for (long i = 0; i < n; i++)
		for (size_t at = 0; at < size; at += 4096)
			(void)map[at];
	stop();
}

static void work_store(long n)
{
	volatile char *map = mapped();

	start();
	for (long i = 0; i < n; i++)
		for (size_t at = 0; at < size; at += 4096)
			map[at] = (char)i;
	stop();
}

static void work_stat(long n)
{
	struct stat st;

	must(close(open("name", O_CREAT | O_RDWR, 0644)), "create");
	must(stat("name", &st), "stat");
	must(stat("name", &st), "stat");
	start();
	for (long i = 0; i < n; i++)
		must(stat("name", &st), "stat");
	stop();
}

static void work_lookup(long n)
{
	(void)mkdir("a", 0755);
	(void)mkdir("a/b", 0755);
	must(close(open("a/b/name", O_CREAT | O_RDWR, 0644)), "create");
	must(access("a/b/name", R_OK), "access");
	start();
	for (long i = 0; i < n; i++)
		must(access("a/b/name", R_OK), "access");
	stop();
}

static void work_negative(long n)
{
	struct stat st;

	(void)stat("none", &st);
	start();
	for (long i = 0; i < n; i++)
		if (stat("none", &st) == 0)
			exit(1);
	stop();
}

static void work_statfs(long n)
{
	struct statfs st;

	start();
	for (long i = 0; i < n; i++)
		must(statfs(".", &st), "statfs");
	stop();
}

static void work_open(long n)
{
	must(close(open("name", O_CREAT | O_RDWR, 0644)), "create");
	start();
	for (long i = 0; i < n; i++)
		must(close(open("name", O_RDONLY)), "open");
	stop();
}

static void work_create(long n)
{
	char name[32];

	start();
	for (long i = 0; i < n; i++) {
		int fd;

		snprintf(name, sizeof(name), "new%ld", i % 100);
		fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		must(fd, "create");
		must(write(fd, buffer, 100), "write");
		must(close(fd), "close");
		must(unlink(name), "unlink");
	}
	stop();
}

static void work_rename(long n)
{
	must(close(open("one", O_CREAT | O_RDWR, 0644)), "create");
	start();
	for (long i = 0; i < n; i++)
		must(i % 2 ? rename("two", "one") : rename("one", "two"), "rename");
	stop();
}

static void fill(const char *top, long n)
{
	char name[64];

	(void)mkdir(top, 0755);
	for (long i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "%s/%ld", top, i);
		must(close(open(name, O_CREAT | O_WRONLY, 0644)), "create");
	}
}

/* One is one name of 10000, or of as many as are asked for. */
static void work_readdir(long n)
{
	const struct dirent *entry;
	struct stat st;
	long seen = 0;

	fill("many", n < 10000 ? n : 10000);
	start();
	while (seen < n) {
		DIR *dir = opendir("many");

		must(dir ? 0 : -1, "opendir");
		while ((entry = readdir(dir))) {
			must(fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW), "stat");
			seen++;
		}
		closedir(dir);
	}
	stop();
	spent = spent * (uint64_t)n / (uint64_t)seen; /* whole passes */
}

/* One more file, one of those that are there, and the new one under another name. */
static void flat_step(long among, long i)
{
	char name[64], other[64], new_name[64];
	struct stat st;

	snprintf(name, sizeof(name), "flat/more%ld", i);
	snprintf(other, sizeof(other), "flat/%lu", random_below((unsigned long)among));
	snprintf(new_name, sizeof(new_name), "flat/else%ld", i);
	must(close(open(name, O_CREAT | O_WRONLY, 0644)), "create");
	must(stat(other, &st), "stat");
	must(close(open(other, O_RDONLY)), "open");
	must(rename(name, new_name), "rename");
	must(unlink(new_name), "unlink");
}

/* Nine times in a directory of COUNT files, a line each. */
static void work_flat(long n)
{
	fill("flat", n);
	for (int round = 0; round < 9; round++) {
		spent = 0;
		start();
		for (long i = 0; i < FLAT_STEPS; i++)
			flat_step(n, i);
		stop();
		if (round < 8)
			printf("%.1f\n", (double)spent / FLAT_STEPS);
	}
}

/* COUNT files of 10 GiB by 100000, in directories of a thousand: some bytes each, and a hole. */
static void work_names(long n)
{
	char name[64];

	start();
	for (long i = 0; i < n; i++) {
		int fd;

		snprintf(name, sizeof(name), "d%ld", i / 1000);
		if (i % 1000 == 0)
			must(mkdir(name, 0755), "mkdir");
		snprintf(name, sizeof(name), "d%ld/name of a file %ld", i / 1000, i);
		fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		must(fd, "create");
		must(pwrite(fd, buffer, 100, (i % 20) * 4096), "write");
		must(ftruncate(fd, 107374), "truncate");
		must(close(fd), "close");
	}
	stop();
}

static const struct {
	const char *name;
	void (*run)(long n);
} works[] = {
	{"read", work_read},	 {"write", work_write},	    {"pread", work_pread},
	{"pwrite", work_pwrite}, {"load", work_load},	    {"store", work_store},
	{"stat", work_stat},	 {"lookup", work_lookup},   {"negative", work_negative},
	{"statfs", work_statfs}, {"open", work_open},	    {"create", work_create},
	{"rename", work_rename}, {"readdir", work_readdir}, {"flat", work_flat},
	{"names", work_names},
};

int main(int argc, char **argv)
{
	long n = argc >= 4 ? atol(argv[3]) : 0;

	buffer = aligned_alloc(4096, MIB);
	if (n <= 0 || !buffer) {
		fputs("usage: bench-fs DIR WORK COUNT [MIB]\n", stderr);
		return 2;
	}
	if (argc == 5)
		size = (size_t)atol(argv[4]) * MIB;
	memset(buffer, 'x', MIB);
	must(chdir(argv[1]), argv[1]);
	for (size_t i = 0; i < sizeof(works) / sizeof(works[0]); i++) {
		if (strcmp(argv[2], works[i].name) != 0)
			continue;
		works[i].run(n);
		printf("%.1f\n",
		       (double)spent / (double)(works[i].run == work_flat ? FLAT_STEPS : n));
		return 0;
	}
	fprintf(stderr, "bench-fs: no such work: %s\n", argv[2]);
	return 2;
}
