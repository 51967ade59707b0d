/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Under load: many threads at the same pages, or registrations that come and go under them. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "uffdconf.h"

/*
 * Pages are filled by whoever comes first, some protected; counters in them stay right whoever
 * touches them when.
 */
#define STRESS_PAGES 64
#define STRESS_TURNS 3000

static struct {
	struct area *area;
	pthread_mutex_t lock[STRESS_PAGES];
	uint32_t count[STRESS_PAGES];
	_Atomic unsigned wrong;
	_Atomic bool stop;
} stress;

static void *stress_count(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	for (int i = 0; i < STRESS_TURNS; i++) {
		unsigned page = (unsigned)rand_r(&seed) % STRESS_PAGES;
		volatile uint32_t *p = (void *)(stress.area->map + page * PAGE + 128);

		pthread_mutex_lock(&stress.lock[page]);
		stress.wrong += *p != stress.count[page];
		*p = ++stress.count[page];
		pthread_mutex_unlock(&stress.lock[page]);
	}
	return NULL;
}

static void *stress_handle(void *arg)
{
	int fd = *(int *)arg;
	struct uffd_msg msg;

	while (!stress.stop) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		char *at;

		if (poll(&pfd, 1, 20) <= 0 || read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
			continue;
		at = (char *)(uintptr_t)msg.arg.pagefault.address;
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			struct uffdio_writeprotect w = {.range = {(uintptr_t)at, PAGE}};

			ioctl(fd, UFFDIO_WRITEPROTECT, &w);
		} else if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) {
			cont(fd, at, 0, NULL);
		} else if (zero(fd, at, 0, NULL) < 0) {
			/* Another thread was first; its own wake may have been before we waited. */
			struct uffdio_range range = {(uintptr_t)at, PAGE};

			ioctl(fd, UFFDIO_WAKE, &range);
		}
	}
	return NULL;
}

static void stress_start(struct area *a, pthread_t thread[2])
{
	memset(&stress, 0, sizeof(stress));
	stress.area = a;
	for (int i = 0; i < STRESS_PAGES; i++)
		pthread_mutex_init(&stress.lock[i], NULL);
	for (size_t i = 0; i < 2; i++)
		if (pthread_create(&thread[i], NULL, stress_count, (void *)(i + 1)))
			die("thread");
}

static void stress_end(pthread_t thread[2])
{
	unsigned differ = 0;

	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	for (unsigned page = 0; page < STRESS_PAGES; page++)
		differ += *(uint32_t *)(stress.area->map + page * PAGE + 128) != stress.count[page];
	note("wrong %u, differ %u", (unsigned)stress.wrong, differ);
}

/* As the kernel's stress test: missing pages filled, and protected again and again. */
static void stress_faults(void)
{
	for (int mode = 0; mode < 3; mode++) {
		const uint64_t modes[] = {MODE_MISS, MODE_MISS | MODE_WP,
					  MODE_MISS | MODE_WP | MODE_MIN};
		int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
		struct area *a = area_still(STRESS_PAGES, 0);
		pthread_t counter[2], handler[2];

		reg_all(fd, a, modes[mode]);
		stress_start(a, counter);
		for (int i = 0; i < 2; i++)
			if (pthread_create(&handler[i], NULL, stress_handle, &fd))
				die("thread");
		for (unsigned i = 0; i < 200; i++) {
			if (modes[mode] & MODE_WP)
				wp_all(fd, a);
			zero(fd, a->map + i % STRESS_PAGES * PAGE, 0, NULL);
			usleep(50);
		}
		for (int i = 0; i < 2; i++)
			pthread_join(counter[i], NULL);
		stress.stop = true;
		for (int i = 0; i < 2; i++)
			pthread_join(handler[i], NULL);
		uffd_end(fd);
		for (unsigned page = 0; page < STRESS_PAGES; page++)
			stress.wrong +=
				*(uint32_t *)(a->map + page * PAGE + 128) != stress.count[page];
		note("mode %llu: wrong %u", (unsigned long long)modes[mode],
		     (unsigned)stress.wrong);
		area_free(a);
	}
}

/* Registered, protected, unregistered, closed while threads write: none waits, nothing is lost. */
static void stress_registrations(void)
{
	struct area *a = area_still(STRESS_PAGES, STRESS_PAGES);
	pthread_t counter[2], handler;
	unsigned failed = 0;

	for (unsigned long page = 0; page < STRESS_PAGES; page++)
		*(uint32_t *)(a->map + page * PAGE + 128) = 0;
	stress_start(a, counter);
	for (unsigned i = 0; i < 30; i++) {
		int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);

		reg_all(fd, a, i % 2 ? MODE_WP : MODE_WP | MODE_MISS);
		stress.stop = false;
		if (pthread_create(&handler, NULL, stress_handle, &fd))
			die("thread");
		wp_all(fd, a);
		usleep(200);
		wp_all(fd, a);
		if (i % 3 == 0)
			failed += unreg(fd, a->map + 8 * PAGE, 8 * PAGE) < 0;
		if (i % 3 == 1)
			failed += unreg(fd, a->map, a->all * PAGE) < 0;
		stress.stop = true;
		pthread_join(handler, NULL);
		if (i % 4 == 3)
			failed += dup2(a->file, fd) < 0;
		failed += close(fd) < 0;
	}
	stress_end(counter);
	note("failed %u", failed);
}

/*
 * As the kernel's stress test: what is in one half of a file is carried to the other and back, page
 * by page as it is touched or by a thread in the background, protected, while other threads count.
 * Readers block and are cancelled, or poll.
 */
#define BOUNCES 4

static struct {
	char *from, *to, *to_alias;
	int fd;
	_Atomic bool done;
	_Atomic unsigned wrong;
	pthread_mutex_t lock[STRESS_PAGES];
	uint32_t count[STRESS_PAGES];
} bounce;

static uint32_t *bounce_word(char *half, unsigned long page)
{
	return (uint32_t *)(half + page * PAGE + 128);
}

/* Puts one page where it goes, protected; who was second wakes those who wait. */
static void bounce_carry(unsigned long page, bool again)
{
	struct uffdio_copy c = {.dst = (uintptr_t)(bounce.to + page * PAGE),
				.src = (uintptr_t)(bounce.from + page * PAGE),
				.len = PAGE,
				.mode = UFFDIO_COPY_MODE_WP};
	struct uffdio_range range = {c.dst, PAGE};

	if (ioctl(bounce.fd, UFFDIO_COPY, &c) < 0) {
		bounce.wrong += errno != EEXIST || c.copy != -EEXIST;
		ioctl(bounce.fd, UFFDIO_WAKE, &range);
	} else if (again) {
		c.dst = (uintptr_t)(bounce.to_alias + page * PAGE);
		bounce.wrong += ioctl(bounce.fd, UFFDIO_COPY, &c) == 0 || c.copy != -EEXIST;
	}
}

static void bounce_message(const struct uffd_msg *msg)
{
	char *at = (char *)(uintptr_t)(msg->arg.pagefault.address & ~(PAGE - 1));
	struct uffdio_writeprotect w = {.range = {(uintptr_t)at, PAGE}};

	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		bounce.wrong += ioctl(bounce.fd, UFFDIO_WRITEPROTECT, &w) < 0;
	else
		bounce_carry((unsigned long)(at - bounce.to) / PAGE, false);
}

static void *bounce_read(void *arg)
{
	struct uffd_msg msg;
	int state;

	for (;;) {
		struct pollfd pfd = {.fd = bounce.fd, .events = POLLIN};

		if (arg && poll(&pfd, 1, -1) <= 0)
			continue;
		if (read(bounce.fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
			continue;
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
		bounce_message(&msg);
		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
	}
	return NULL;
}

static void *bounce_count(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!bounce.done) {
		unsigned page = (unsigned)rand_r(&seed) % STRESS_PAGES;
		volatile uint32_t *p = bounce_word(bounce.to, page);

		pthread_mutex_lock(&bounce.lock[page]);
		bounce.wrong += *p != bounce.count[page];
		*p = ++bounce.count[page];
		pthread_mutex_unlock(&bounce.lock[page]);
	}
	return NULL;
}

static void bounce_once(bool polls)
{
	const unsigned long len = STRESS_PAGES * PAGE;
	pthread_t reader[2], counter[2];

	bounce.done = false;
	if (fcntl(bounce.fd, F_SETFL, polls ? O_NONBLOCK : 0) < 0 ||
	    reg(bounce.fd, bounce.to, len, MODE_MISS | MODE_WP, NULL) < 0 ||
	    reg(bounce.fd, bounce.to_alias, len, MODE_MISS | MODE_WP, NULL) < 0 ||
	    madvise(bounce.to, len, MADV_REMOVE) < 0)
		die("bounce");
	for (size_t i = 0; i < 2; i++)
		if (pthread_create(&reader[i], NULL, bounce_read, polls ? &bounce : NULL) ||
		    pthread_create(&counter[i], NULL, bounce_count, (void *)(i + 1)))
			die("thread");
	for (unsigned long page = 0; page < STRESS_PAGES; page++)
		bounce_carry(page, page % 8 == 0);
	bounce.done = true;
	for (size_t i = 0; i < 2; i++)
		pthread_join(counter[i], NULL);
	for (size_t i = 0; i < 2; i++) {
		pthread_cancel(reader[i]);
		pthread_join(reader[i], NULL);
	}
	if (unreg(bounce.fd, bounce.to, len) < 0 || unreg(bounce.fd, bounce.to_alias, len) < 0)
		die("unregister");
	for (unsigned long page = 0; page < STRESS_PAGES; page++)
		bounce.wrong += *bounce_word(bounce.to, page) != bounce.count[page];
}

static void stress_bounce(void)
{
	struct area *a = area_still(2 * STRESS_PAGES, 2 * STRESS_PAGES);
	const unsigned long half = STRESS_PAGES * PAGE;

	area_alias(a);
	memset(&bounce, 0, sizeof(bounce));
	for (int i = 0; i < STRESS_PAGES; i++)
		pthread_mutex_init(&bounce.lock[i], NULL);
	bounce.fd = uffd_new(0, SHMEM_ALL);
	for (unsigned long page = 0; page < STRESS_PAGES; page++)
		*bounce_word(a->map, page) = 0;
	for (int i = 0; i < BOUNCES; i++) {
		bounce.from = a->map + (i % 2 ? half : 0);
		bounce.to = a->map + (i % 2 ? 0 : half);
		bounce.to_alias = a->alias + (bounce.to - a->map);
		bounce_once(i / 2);
	}
	note("wrong %u", (unsigned)bounce.wrong);
	uffd_end(bounce.fd);
}

const struct conf_case conf_load[] = {
	{"stress-faults", stress_faults},
	{"stress-registrations", stress_registrations},
	{"stress-bounce", stress_bounce},
	{NULL, NULL},
};
