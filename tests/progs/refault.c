/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * Maps a file and knows what should be in it: a copy of all contents is kept in private memory, and
 * which pages were written. Orders on stdin, one line each, answered "ok [VALUE]" or "err WHAT":
 *
 *   fill SEED          random contents; every eighth page is zeros
 *   expect SEED        what "fill SEED" wrote should be there
 *   verify THREADS     all threads compare all pages in the same order -> pages that differ
 *   write SEED N THREADS   N writes of 8 bytes at random places
 *   read PAGE N        reads a byte of each of N pages
 *   later PAGE         a thread reads a byte of it, and says "read VALUE" then
 *   range PAGE N       writes go to these pages only
 *   hammer THREADS     writes go on until "stop"
 *   stop               -> number of writes
 *   written PATH       one byte per page: written since the last "clear"?
 *   clear
 *   forks N            N children one after the other, each compares all pages and writes some of
 *                      them -> how many saw a wrong page
 *   moves N            the mapping moves N times and is compared in between -> wrong pages
 *   fork               a child goes on here with the orders; the parent waits for its end
 *
 * usage: refault FILE PAGES [COPY INDEX NR]
 *
 * Given a COPY, the expected contents are in that file, shared with NR programs of which this is
 * number INDEX; each writes words of its own.
 */
/* clang-format on */
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
#include <unistd.h>

#define PAGE	       4096ul
#define WORDS	       (PAGE / 8)
#define THREADS_MAX    16
#define THREADS_SHARED 4 /* at most, with a COPY */

static uint64_t *file, *copy; /* both nr_pages long */
static _Atomic uint8_t *written;
static size_t nr_pages;
static size_t range_first, range_nr; /* 0: all */
static size_t prog_index, nr_progs = 1;

struct job {
	pthread_t thread;
	unsigned index, nr; /* this thread, all */
	uint64_t seed, count, result;
};

static struct job jobs[THREADS_MAX];
static atomic_bool hammering;

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static void fill(uint64_t seed, int store)
{
	for (size_t page = 0; page < nr_pages; page++) {
		for (size_t i = 0; i < WORDS && page % 8 != 3; i++)
			copy[page * WORDS + i] = next_random(&seed);
		if (store)
			memcpy(file + page * WORDS, copy + page * WORDS, PAGE);
	}
}

/* A word belongs to one thread of one program, so that the copy needs no lock. */
static void write_one(struct job *job)
{
	size_t page = range_first + next_random(&job->seed) % (range_nr ? range_nr : nr_pages);
	/* However many threads another program writes with, its words are not ours. */
	size_t share = nr_progs > 1 ? THREADS_SHARED : job->nr, writers = share * nr_progs;
	size_t word = next_random(&job->seed) % (WORDS / writers) * writers + job->nr * prog_index +
		      job->index;
	uint64_t value = next_random(&job->seed);

	copy[page * WORDS + word] = value;
	/* Before the store: a page counts as written if its store may have been done. */
	written[page] = 1;
	((volatile uint64_t *)file)[page * WORDS + word] = value;
}

static void *write_main(void *arg)
{
	struct job *job = arg;

	for (; job->count; job->count--)
		write_one(job);
	return NULL;
}

static void *hammer_main(void *arg)
{
	struct job *job = arg;

	while (hammering) {
		write_one(job);
		job->result++;
	}
	return NULL;
}

static void *verify_main(void *arg)
{
	struct job *job = arg;

	for (size_t page = 0; page < nr_pages; page++) {
		if (memcmp(file + page * WORDS, copy + page * WORDS, PAGE) != 0) {
			if (job->result++ == 0)
				fprintf(stderr, "page %zu differs\n", page);
		}
	}
	return NULL;
}

static void *later_main(void *arg)
{
	printf("read %u\n", *(volatile uint8_t *)arg);
	return NULL;
}

static void start(unsigned nr, void *(*main_fn)(void *), uint64_t seed, uint64_t count)
{
	for (unsigned i = 0; i < nr; i++) {
		jobs[i] = (struct job){.index = i, .nr = nr, .seed = seed + i, .count = count};
		if (pthread_create(&jobs[i].thread, NULL, main_fn, &jobs[i]) != 0)
			abort();
	}
}

static uint64_t finish(unsigned nr)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < nr; i++) {
		pthread_join(jobs[i].thread, NULL);
		sum += jobs[i].result;
	}
	return sum;
}

/* All threads go through the pages in the same order: several fault on one page at once. */
static uint64_t verify(unsigned nr)
{
	start(nr, verify_main, 0, 0);
	return finish(nr);
}

static int dump(const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f || fwrite((void *)written, 1, nr_pages, f) != nr_pages)
		return -1;
	return fclose(f);
}

/* What a child writes is the parent's too: the same bytes, so that the copy stays right. */
static int child_main(unsigned long number)
{
	if (verify(2) != 0)
		return 1;
	for (size_t page = number % 7; page < nr_pages; page += 7)
		((volatile uint64_t *)file)[page * WORDS] = copy[page * WORDS];
	return verify(1) != 0;
}

static uint64_t forks(unsigned long nr)
{
	uint64_t wrong = 0;
	int status;

	for (unsigned long i = 0; i < nr; i++) {
		pid_t pid = fork();

		if (pid < 0)
			return nr;
		if (pid == 0)
			_exit(child_main(i));
		waitpid(pid, &status, 0);
		wrong += status != 0;
	}
	return wrong;
}

static uint64_t moves(unsigned long nr)
{
	uint64_t wrong = 0;
	void *to;

	for (unsigned long i = 0; i < nr; i++) {
		to = mmap(NULL, nr_pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (to == MAP_FAILED || mremap(file, nr_pages * PAGE, nr_pages * PAGE,
					       MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
			return nr_pages;
		file = to;
		wrong += verify(1);
	}
	return wrong;
}

static unsigned threads(unsigned long nr)
{
	return nr < 1 ? 1 : nr > THREADS_MAX ? THREADS_MAX : (unsigned)nr;
}

/* 0, or what is wrong. */
static const char *obey(char *line, unsigned *hammers)
{
	char verb[16] = "", path[512] = "";
	unsigned long a = 0, b = 0, c = 0;
	uint64_t value = 0;
	int status;

	sscanf(line, "%15s %511s", verb, path);
	sscanf(line, "%*s %lu %lu %lu", &a, &b, &c);
	if (strcmp(verb, "fill") == 0) {
		fill(a, 1);
	} else if (strcmp(verb, "expect") == 0) {
		fill(a, 0);
	} else if (strcmp(verb, "verify") == 0) {
		value = verify(threads(a));
	} else if (strcmp(verb, "write") == 0) {
		start(threads(c), write_main, a, b / threads(c));
		finish(threads(c));
	} else if (strcmp(verb, "read") == 0 && a + b <= nr_pages) {
		for (size_t page = a; page < a + b; page++)
			value += *(volatile uint8_t *)(file + page * WORDS);
	} else if (strcmp(verb, "later") == 0 && a < nr_pages) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, later_main, file + a * WORDS) != 0)
			return "no thread";
		pthread_detach(thread);
	} else if (strcmp(verb, "range") == 0 && a + b <= nr_pages) {
		range_first = a;
		range_nr = b;
	} else if (strcmp(verb, "hammer") == 0) {
		hammering = true;
		*hammers = threads(a);
		start(*hammers, hammer_main, 1234, 0);
	} else if (strcmp(verb, "stop") == 0) {
		hammering = false;
		value = finish(*hammers);
	} else if (strcmp(verb, "written") == 0) {
		if (dump(path) != 0)
			return strerror(errno);
	} else if (strcmp(verb, "clear") == 0) {
		memset((void *)written, 0, nr_pages);
	} else if (strcmp(verb, "forks") == 0) {
		value = forks(a);
	} else if (strcmp(verb, "moves") == 0) {
		value = moves(a);
	} else if (strcmp(verb, "fork") == 0) {
		pid_t pid = fork();

		if (pid < 0)
			return strerror(errno);
		if (pid > 0) {
			waitpid(pid, &status, 0);
			_exit(status != 0);
		}
		value = (uint64_t)getpid();
	} else {
		return "unknown order";
	}
	printf("ok %llu\n", (unsigned long long)value);
	return NULL;
}

static void *private_memory(size_t len)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		abort();
	return at;
}

static void *shared_memory(const char *path, size_t len)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	void *at;

	if (fd < 0 || ftruncate(fd, (off_t)len) < 0)
		abort();
	at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		abort();
	close(fd);
	return at;
}

int main(int argc, char **argv)
{
	char line[1024];
	unsigned hammers = 0;
	int fd;

	if (argc != 3 && argc != 6)
		return 2;
	nr_pages = strtoul(argv[2], NULL, 0);
	fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (fd < 0 || ftruncate(fd, (off_t)(nr_pages * PAGE)) < 0) {
		perror(argv[1]);
		return 1;
	}
	file = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (file == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	close(fd);
	if (argc == 6) {
		prog_index = strtoul(argv[4], NULL, 0);
		nr_progs = strtoul(argv[5], NULL, 0);
		copy = shared_memory(argv[3], nr_pages * PAGE);
	} else {
		copy = private_memory(nr_pages * PAGE);
	}
	written = private_memory(nr_pages);
	setlinebuf(stdout);
	printf("ok ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		const char *wrong = obey(line, &hammers);

		if (wrong)
			printf("err %s\n", wrong);
	}
	return 0;
}
