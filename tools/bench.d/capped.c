/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * The work of `tools/bench capped`: an ordinary program that maps a file, or reads and writes one
 * past the cache. Orders on stdin, one line each, answered with figures or "err WHAT":
 *
 *   map PATH PAGES        made and sized if need be
 *   touch                 stores to every page, none of it zeros
 *   fill SEED             the same with random contents
 *   check SEED            -> pages that are not what fill made
 *   writes                one store to each page -> ns each
 *   sequential            reads all of it -> ns
 *   random N SEED THREADS N reads of a page at random, none twice -> ns
 *   load zipf|uniform N SEED  N accesses, half of them stores -> ns
 *   uffd                  registers the mapping, served by a process of its own
 *   protect               write-protects it with that
 *   direct PATH read|write PAGES        1 MiB at a time, writes to a new file -> ns
 *   direct PATH random PAGES N SEED     N reads of a page -> ns
 */
/* clang-format on */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

#define PAGE	    4096ul
#define WORDS	    (PAGE / 8)
#define CHUNK	    (1ul << 20)
#define THREADS_MAX 8

static uint64_t *map;
static size_t nr_pages;
static int uffd = -1;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static const char *do_map(const char *path, size_t pages)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
		return strerror(errno);
	map = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	nr_pages = pages;
	return map == MAP_FAILED ? strerror(errno) : NULL;
}

static void fill(uint64_t seed)
{
	for (size_t i = 0; i < nr_pages * WORDS; i++)
		map[i] = next_random(&seed);
}

static size_t check(uint64_t seed)
{
	size_t wrong = 0;

	for (size_t page = 0; page < nr_pages; page++) {
		int bad = 0;

		for (size_t i = 0; i < WORDS; i++)
			bad |= map[page * WORDS + i] != next_random(&seed);
		wrong += (size_t)bad;
	}
	return wrong;
}

static uint64_t sequential(void)
{
	volatile uint64_t sum = 0;
	uint64_t begin = now_ns(), s = 0;

	for (size_t i = 0; i < nr_pages * WORDS; i += 8)
		s += map[i];
	sum += s;
	return now_ns() - begin;
}

struct job {
	pthread_t thread;
	size_t first, nr;
	const uint32_t *order;
	uint64_t sum;
};

static void *random_main(void *arg)
{
	struct job *job = arg;

	for (size_t i = job->first; i < job->first + job->nr; i++)
		job->sum += ((volatile uint64_t *)map)[job->order[i] * WORDS];
	return NULL;
}

static uint64_t random_reads(size_t nr, uint64_t seed, unsigned threads)
{
	uint32_t *order = malloc(nr_pages * sizeof(*order));
	struct job jobs[THREADS_MAX];
	uint64_t begin;

	for (size_t i = 0; i < nr_pages; i++) {
		size_t j = next_random(&seed) % (i + 1);

		order[i] = order[j];
		order[j] = (uint32_t)i;
	}
	if (threads > THREADS_MAX)
		threads = THREADS_MAX;
	begin = now_ns();
	for (unsigned t = 0; t < threads; t++) {
		jobs[t] =
			(struct job){.first = nr / threads * t, .nr = nr / threads, .order = order};
		pthread_create(&jobs[t].thread, NULL, random_main, &jobs[t]);
	}
	for (unsigned t = 0; t < threads; t++)
		pthread_join(jobs[t].thread, NULL);
	begin = now_ns() - begin;
	free(order);
	return begin;
}

/* Which pages are the frequent ones is as random as all else. */
static uint64_t load(int zipf, size_t nr, uint64_t seed)
{
	double *cdf = malloc(nr_pages * sizeof(*cdf)), sum = 0;
	uint32_t *rank = malloc(nr_pages * sizeof(*rank));
	uint32_t *at = malloc(nr * sizeof(*at));
	uint64_t fixed = 7, begin, got = 0;

	for (size_t i = 0; i < nr_pages; i++) {
		size_t j = next_random(&fixed) % (i + 1);

		sum += zipf ? 1 / pow((double)(i + 1), 0.99) : 1;
		cdf[i] = sum;
		rank[i] = rank[j];
		rank[j] = (uint32_t)i;
	}
	for (size_t i = 0; i < nr; i++) {
		double x = (double)(next_random(&seed) >> 11) / 9007199254740992.0 * sum;
		size_t low = 0, high = nr_pages - 1;

		while (low < high) {
			size_t mid = (low + high) / 2;

			if (cdf[mid] < x)
				low = mid + 1;
			else
				high = mid;
		}
		at[i] = rank[low];
	}
	begin = now_ns();
	for (size_t i = 0; i < nr; i++) {
		volatile uint64_t *word = &map[at[i] * WORDS + i % WORDS];

		if (i & 1)
			*word = i;
		else
			got += *word;
	}
	begin = now_ns() - begin;
	free(cdf);
	free(rank);
	free(at);
	return got == 1 ? begin + 1 : begin;
}

/* ---- a raw synchronous userfaultfd, served by another process ---- */

static void serve(void)
{
	struct pollfd p = {.fd = uffd, .events = POLLIN};
	struct uffd_msg msg;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		struct uffdio_writeprotect wp = {.mode = 0};

		if (poll(&p, 1, -1) < 0 || read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		wp.range.start = msg.arg.pagefault.address & ~(PAGE - 1);
		wp.range.len = PAGE;
		ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
	}
}

static const char *uffd_start(void)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					     UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					     UFFD_FEATURE_WP_UNPOPULATED};
	struct uffdio_register reg = {.range = {.start = (uintptr_t)map, .len = nr_pages * PAGE},
				      .mode = UFFDIO_REGISTER_MODE_WP};

	uffd = (int)syscall(SYS_userfaultfd, O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		return strerror(errno);
	if (fork() == 0)
		serve();
	return NULL;
}

static const char *uffd_protect(void)
{
	struct uffdio_writeprotect wp = {.range = {.start = (uintptr_t)map, .len = nr_pages * PAGE},
					 .mode = UFFDIO_WRITEPROTECT_MODE_WP};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? strerror(errno) : NULL;
}

/* ---- past the cache ---- */

static const char *direct(const char *path, const char *how, size_t pages, size_t nr, uint64_t seed,
			  uint64_t *ns)
{
	/* A new file, as what is evicted goes to one. */
	int fresh = strcmp(how, "write") == 0 ? O_TRUNC : 0;
	int fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC | fresh, 0600);
	char *buf = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const char *wrong = NULL;
	uint64_t begin;

	if (fd < 0)
		return strerror(errno);
	for (size_t i = 0; i < CHUNK / 8; i++)
		((uint64_t *)buf)[i] = next_random(&seed);
	begin = now_ns();
	if (strcmp(how, "random") == 0) {
		for (size_t i = 0; i < nr && !wrong; i++) {
			off_t off = (off_t)(next_random(&seed) % pages * PAGE);

			if (pread(fd, buf, PAGE, off) != (ssize_t)PAGE)
				wrong = strerror(errno);
		}
	} else {
		for (size_t off = 0; off < pages * PAGE && !wrong; off += CHUNK) {
			ssize_t n = strcmp(how, "read") == 0 ? pread(fd, buf, CHUNK, (off_t)off)
							     : pwrite(fd, buf, CHUNK, (off_t)off);

			if (n != (ssize_t)CHUNK)
				wrong = strerror(errno);
		}
	}
	*ns = now_ns() - begin;
	close(fd);
	munmap(buf, CHUNK);
	return wrong;
}

static uint64_t writes(void)
{
	uint64_t begin = now_ns();

	for (size_t page = 0; page < nr_pages; page++)
		((volatile uint64_t *)map)[page * WORDS] = page;
	return (now_ns() - begin) / nr_pages;
}

static const char *obey(char *line, uint64_t *value)
{
	char verb[16] = "", word[512] = "", how[16] = "";
	unsigned long a = 0, b = 0, c = 0;

	sscanf(line, "%15s %511s %15s", verb, word, how);
	sscanf(line, "%*s %lu %lu %lu", &a, &b, &c);
	if (strcmp(verb, "map") == 0)
		return do_map(word, strtoul(how, NULL, 0));
	if (strcmp(verb, "direct") == 0) {
		sscanf(line, "%*s %*s %*s %lu %lu %lu", &a, &b, &c);
		return direct(word, how, a, b, c, value);
	}
	if (strcmp(verb, "touch") == 0)
		writes();
	else if (strcmp(verb, "fill") == 0)
		fill(a);
	else if (strcmp(verb, "check") == 0)
		*value = check(a);
	else if (strcmp(verb, "writes") == 0)
		*value = writes();
	else if (strcmp(verb, "sequential") == 0)
		*value = sequential();
	else if (strcmp(verb, "random") == 0)
		*value = random_reads(a, b, c ? (unsigned)c : 1);
	else if (strcmp(verb, "load") == 0) {
		sscanf(line, "%*s %*s %lu %lu", &a, &b);
		*value = load(strcmp(word, "zipf") == 0, a, b);
	} else if (strcmp(verb, "uffd") == 0)
		return uffd_start();
	else if (strcmp(verb, "protect") == 0)
		return uffd_protect();
	else
		return "unknown order";
	return NULL;
}

int main(void)
{
	char line[1024];

	setlinebuf(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t value = 0;
		const char *wrong = obey(line, &value);

		if (wrong)
			printf("err %s\n", wrong);
		else
			printf("%llu\n", (unsigned long long)value);
	}
	return 0;
}
