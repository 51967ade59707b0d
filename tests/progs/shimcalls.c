/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls the functions that the shim stands in front of, right and wrong, and prints what came of
 * it, without addresses or descriptor numbers: a tracked run on wpfs must print what a bare run on
 * tmpfs prints. usage: shimcalls FILE
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE  4096ul
#define PAGES 16ul
#define LEN   (PAGES * PAGE)
#define RW    (PROT_READ | PROT_WRITE)

extern char **environ;

static int file, file_ro;

/* What a call gave: "ok" (and an untouched errno), or the name of its error. */
static void say(const char *what, bool ok)
{
	if (ok)
		printf("%s: ok%s\n", what, errno == 12345 ? "" : ", errno changed");
	else
		printf("%s: %s\n", what, strerrorname_np(errno));
}

#define TRY(what, call)                                                                            \
	({                                                                                         \
		__typeof__(call) try_;                                                             \
		errno = 12345;                                                                     \
		try_ = (call);                                                                     \
		say(what, (long)try_ != -1);                                                       \
		try_;                                                                              \
	})

static char *map_file(void)
{
	char *p = mmap(NULL, LEN, RW, MAP_SHARED, file, 0);

	if (p == MAP_FAILED)
		abort();
	return p;
}

/* A place where nothing is mapped. */
static char *free_place(void)
{
	char *p = mmap(NULL, 4 * LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(p, 4 * LEN);
	return p;
}

static void wrong_maps(void)
{
	char *p = map_file();

	puts("-- wrong mmap");
	TRY("length 0", mmap(NULL, 0, RW, MAP_SHARED, file, 0));
	TRY("odd offset", mmap(NULL, LEN, RW, MAP_SHARED, file, 100));
	TRY("bad fd", mmap(NULL, LEN, RW, MAP_SHARED, 9999, 0));
	TRY("fd -1", mmap(NULL, LEN, RW, MAP_SHARED, -1, 0));
	TRY("writable, read-only fd", mmap(NULL, LEN, RW, MAP_SHARED, file_ro, 0));
	TRY("odd fixed address", mmap(p + 1, LEN, RW, MAP_SHARED | MAP_FIXED, file, 0));
	TRY("fixed over it, bad fd", mmap(p, LEN, RW, MAP_SHARED | MAP_FIXED, 9999, 0));
	TRY("fixed over it, read-only fd", mmap(p, LEN, RW, MAP_SHARED | MAP_FIXED, file_ro, 0));
	TRY("fixed over it, length 0", mmap(p, 0, RW, MAP_SHARED | MAP_FIXED, file, 0));
	TRY("fixed over it, private, bad fd", mmap(p, LEN, RW, MAP_PRIVATE | MAP_FIXED, 9999, 0));
	TRY("no replace", mmap(p, LEN, RW, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0));
	TRY("no replace, anonymous",
	    mmap(p, LEN, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	TRY("unknown flag, validated",
	    mmap(NULL, LEN, RW, MAP_SHARED_VALIDATE | 0x4000000, file, 0));
	TRY("too long", mmap(NULL, SIZE_MAX / 2, RW, MAP_SHARED, file, 0));
	TRY("no type", mmap(NULL, LEN, RW, 0, file, 0));
	/* None of this has harmed what was there. */
	memset(p, 'a', LEN);
	printf("still writable: %c\n", p[LEN - 1]);
	TRY("munmap", munmap(p, LEN));
}

static void wrong_unmaps(void)
{
	char *p = map_file();

	puts("-- wrong munmap, mremap, madvise, msync");
	TRY("munmap odd address", munmap(p + 1, LEN));
	TRY("munmap length 0", munmap(p, 0));
	TRY("munmap too long", munmap(p, SIZE_MAX - 10));
	TRY("mremap length 0", mremap(p, LEN, 0, 0));
	TRY("mremap odd", mremap(p + 1, LEN, LEN, 0));
	TRY("mremap unknown flag", mremap(p, LEN, LEN, 64));
	TRY("mremap fixed without maymove", mremap(p, LEN, LEN, MREMAP_FIXED, free_place()));
	TRY("mremap fixed over itself",
	    mremap(p, LEN, LEN, MREMAP_FIXED | MREMAP_MAYMOVE, p + PAGE));
	TRY("msync both", msync(p, LEN, MS_SYNC | MS_ASYNC));
	TRY("msync odd", msync(p + 1, LEN, MS_SYNC));
	TRY("msync nothing there", msync(free_place(), LEN, MS_SYNC));
	TRY("madvise remove odd", madvise(p + 1, PAGE, MADV_REMOVE));
	TRY("madvise nonsense", madvise(p, PAGE, 12345));
	memset(p, 'b', LEN);
	printf("still writable: %c\n", p[LEN - 1]);
	TRY("munmap", munmap(p, LEN));
}

static void right_maps(void)
{
	char *place = free_place(), *p, *q;

	puts("-- right mmap");
	memset(p = map_file(), 'c', LEN);
	q = TRY("second mapping", mmap(NULL, LEN, RW, MAP_SHARED, file, 0));
	q[5] = 'd';
	printf("seen through the first: %c\n", p[5]);
	munmap(q, LEN);
	q = TRY("fixed", mmap(place, LEN, RW, MAP_SHARED | MAP_FIXED, file, 0));
	printf("there: %d, reads %c\n", q == place, q[0]);
	q[0] = 'e';
	q = TRY("fixed over part",
		mmap(place + 2 * PAGE, PAGE, RW, MAP_SHARED | MAP_FIXED, file, 0));
	printf("there: %d, reads %c\n", q == place + 2 * PAGE, q[0]);
	q = TRY("anonymous over part",
		mmap(place + 3 * PAGE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	printf("there: %d, reads %d\n", q == place + 3 * PAGE, q[0]);
	munmap(place, LEN);
	q = TRY("no replace",
		mmap(place, LEN, RW, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, file, 0));
	printf("there: %d, reads %c\n", q == place, q[0]);
	munmap(place, LEN);
	q = TRY("fixed, populate, locked",
		mmap(place, LEN, RW, MAP_SHARED | MAP_FIXED | MAP_POPULATE | MAP_LOCKED, file, 0));
	q[LEN - 1] = 'f';
	munmap(place, LEN);
	q = TRY("read-only, read-only fd", mmap(NULL, LEN, PROT_READ, MAP_SHARED, file_ro, 0));
	printf("reads %c\n", q[LEN - 1]);
	munmap(q, LEN);
	q = TRY("private", mmap(NULL, LEN, RW, MAP_PRIVATE, file, 0));
	q[0] = 'x';
	printf("file has %c\n", p[0]);
	munmap(q, LEN);
	q = TRY("last page only", mmap(NULL, 100, RW, MAP_SHARED, file, (PAGES - 1) * PAGE));
	printf("reads %c\n", q[PAGE - 1]);
	munmap(q, 100);
	TRY("munmap the middle", munmap(p + PAGE, PAGE));
	p[0] = p[2 * PAGE] = 'g';
	TRY("munmap with a hole", munmap(p, LEN));
}

static void remaps(void)
{
	char *p = map_file(), *place = free_place(), *q;

	puts("-- mremap");
	p[0] = 'h';
	p[LEN - 1] = 'i';
	p = TRY("shrink", mremap(p, LEN, LEN / 2, 0));
	p = TRY("grow", mremap(p, LEN / 2, LEN, MREMAP_MAYMOVE));
	printf("reads %c %c\n", p[0], p[LEN - 1]);
	p[LEN - 1] = 'j';
	q = TRY("move", mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, place));
	printf("there: %d, reads %c %c\n", q == place, q[0], q[LEN - 1]);
	p = TRY("duplicate", mremap(q, 0, LEN, MREMAP_MAYMOVE));
	p[7] = 'k';
	printf("seen through the first: %c\n", q[7]);
	q = TRY("keep the old", mremap(q, LEN, LEN, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
	printf("reads %c %c\n", q[7], place[7]);
	q[8] = 'l';
	printf("seen through the old: %c\n", place[8]);
	TRY("onto another", mremap(q, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, p));
	p[9] = 'm';
	printf("seen through the old: %c\n", place[9]);
	TRY("munmap", munmap(p, LEN));
	TRY("munmap", munmap(place, LEN));
}

/* A call that fails leaves what it would have replaced as it was, and not as it was mapped. */
static void rights(void)
{
	char *p = mmap(NULL, LEN, PROT_READ, MAP_SHARED, file, 0), *place = free_place();

	puts("-- rights");
	TRY("mprotect", mprotect(p, LEN / 2, RW));
	p[0] = 'o';
	TRY("mprotect nothing there", mprotect(place, LEN, RW));
	/* What is to move and grow is two mappings. */
	mmap(place, LEN, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	mprotect(place + LEN / 2, LEN / 2, PROT_READ);
	TRY("grow two mappings",
	    mremap(place, LEN / 2 + PAGE, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, p));
	p[1] = 'p';
	printf("still writable: %c %c\n", p[0], p[1]);
	TRY("munmap", munmap(place, LEN));
	TRY("munmap", munmap(p, LEN));
}

static void advice(void)
{
	char *p = map_file();
	struct stat st;

	puts("-- madvise, msync");
	memset(p, 'n', LEN);
	TRY("msync sync", msync(p, LEN, MS_SYNC));
	TRY("msync async", msync(p, LEN, MS_ASYNC));
	TRY("remove", madvise(p + PAGE, PAGE, MADV_REMOVE));
	printf("reads %d %c\n", p[PAGE], p[2 * PAGE]);
	TRY("dontneed", madvise(p, LEN, MADV_DONTNEED));
	printf("reads %c\n", p[0]);
	fstat(file, &st);
	printf("size %ld\n", (long)st.st_size);
	munmap(p, LEN);
}

/* Closes everything it did not open, by every way there is, and still maps afterwards. */
static void descriptors(void)
{
	int null = open("/dev/null", O_RDWR);
	char *p = map_file();

	puts("-- descriptors");
	for (int fd = 3; fd < 2000; fd++) {
		if (fd != file && fd != file_ro && fd != null)
			close(fd);
	}
	for (int fd = 100; fd < 1010; fd++) {
		if (dup2(null, fd) != fd)
			printf("dup2: %s\n", strerrorname_np(errno));
	}
	p[0] = 'o';
	munmap(p, LEN);
	TRY("dup2 of itself", dup2(null, null) == null ? 0 : -1);
	TRY("dup2 of nothing", dup2(3999, 500));
	TRY("dup3 of itself", dup3(null, null, 0));
	TRY("dup3 bad flags", dup3(null, 600, 1));
	TRY("close nothing", close(3999));
	TRY("close -1", close(-1));
	TRY("close_range backwards", close_range(10, 5, 0));
	TRY("close_range bad flags", close_range(900, 910, 64));
	TRY("close_range", close_range(100, 899, 0));
	p = map_file();
	p[0] = 'p';
	TRY("munmap", munmap(p, LEN));
	closefrom(100);
	printf("700 is open: %d\n", fcntl(700, F_GETFD) >= 0);
	p = map_file();
	p[0] = 'q';
	TRY("munmap", munmap(p, LEN));
	close(null);
}

static void *thread_maps(void *arg)
{
	for (int i = 0; i < 50; i++) {
		char *p = map_file();

		p[(uintptr_t)arg * PAGE]++;
		munmap(p, LEN);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t ids[4];
	char *p = map_file();

	puts("-- threads");
	memset(p, 0, LEN);
	for (uintptr_t i = 0; i < 4; i++)
		pthread_create(&ids[i], NULL, thread_maps, (void *)i);
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(ids[i], NULL);
	printf("counted %d %d %d %d\n", p[0], p[PAGE], p[2 * PAGE], p[3 * PAGE]);
	munmap(p, LEN);
}

static int ended(pid_t pid)
{
	int status = 0;

	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

static volatile sig_atomic_t in_handler;

static void handler(int sig)
{
	char *p = map_file();

	p[11]++;
	munmap(p, LEN);
	in_handler++;
}

static void processes(void)
{
	char *p = map_file(), *q, name[] = "true", *true_argv[] = {name, NULL};
	struct sigaction action = {.sa_handler = handler};
	int status;
	pid_t pid;

	puts("-- processes");
	p[0] = 'r';
	pid = fork();
	if (pid == 0) {
		q = map_file();
		q[1] = 's';
		p[2] = 't';
		_exit(munmap(q, LEN) == 0 && munmap(p, LEN) == 0 ? 7 : 8);
	}
	status = ended(pid);
	printf("fork: %d, wrote %c%c\n", status, p[1], p[2]);
	pid = vfork();
	if (pid == 0) {
		close(2);
		close_range(3, ~0U, 0);
		_exit(9);
	}
	printf("vfork: %d\n", ended(pid));
	printf("posix_spawn: %d\n", posix_spawnp(&pid, "true", NULL, NULL, true_argv, environ));
	printf("spawned: %d\n", ended(pid));
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0) {
		p[3] = 'u';
		q = map_file();
		q[4] = 'v';
		_exit(munmap(q, LEN) == 0 ? 10 : 11);
	}
	status = ended(pid);
	printf("raw clone: %d, wrote %c%c\n", status, p[3], p[4]);
	p[11] = 0;
	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < 10; i++)
		raise(SIGUSR1);
	printf("handler: %d %d\n", (int)in_handler, p[11]);
	TRY("wait without children", wait(NULL));
	munmap(p, LEN);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	file = open(argv[1], O_RDWR | O_CREAT, 0600);
	file_ro = open(argv[1], O_RDONLY);
	if (file < 0 || file_ro < 0 || ftruncate(file, LEN) < 0)
		return 1;
	wrong_maps();
	wrong_unmaps();
	right_maps();
	remaps();
	rights();
	advice();
	descriptors();
	threads();
	processes();
	return 0;
}
