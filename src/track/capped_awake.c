/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Keeps a processor awake while a program waits for one page and a fault thread looks for the end
 * of the read. The program is woken soon, and on a processor that sleeps that takes half as long as
 * a disk does, in a virtual machine at least. What the kernel has for that (haltpoll) is for the
 * whole machine.
 *
 * The thread runs when there is nothing else to run (SCHED_IDLE), so it takes nobody's time:
 * whoever is woken finds the processor as good as idle. Beside the fault thread itself it would be
 * in the way, and stops.
 */
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "track/capped_internal.h"
#include "track/capped_mm.h"

#define AWAKE_NS 300000 /* after the last one that waited: until the next, if it comes at once */
#define LOOKS	 64	/* at the stop, between two looks at the clock */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* It goes to sleep, unless it is wanted just now. */
static void rest(struct capped_awake *a)
{
	atomic_store(&a->sleeps, true);
	if (!atomic_load(&a->stop) && now_ns() >= atomic_load(&a->until))
		sem_wait(&a->wanted);
	atomic_store(&a->sleeps, false);
}

static void *awake_main(void *arg)
{
	struct capped_awake *a = arg;

	while (!atomic_load(&a->stop)) {
		if (now_ns() >= atomic_load(&a->until) || sched_getcpu() == atomic_load(&a->cpu)) {
			atomic_store(&a->until, 0);
			rest(a);
		}
		for (int i = 0; i < LOOKS; i++)
			pause_cpu();
	}
	return NULL;
}

void capped_awake_start(struct capped_awake *a)
{
	const struct sched_param none = {.sched_priority = 0};

	sem_init(&a->wanted, 0, 0);
	/* Of more than two it is not known which one is going to be needed. */
	if (sysconf(_SC_NPROCESSORS_ONLN) != 2)
		return;
	a->runs = pthread_create(&a->thread, NULL, awake_main, a) == 0;
	if (!a->runs)
		return;
	pthread_setname_np(a->thread, "wpfs-awake");
	pthread_setschedparam(a->thread, SCHED_IDLE, &none);
}

void capped_awake_stop(struct capped_awake *a)
{
	if (a->runs) {
		atomic_store(&a->stop, true);
		sem_post(&a->wanted);
		pthread_join(a->thread, NULL);
	}
	sem_destroy(&a->wanted);
}

void capped_stay_awake(struct capped_awake *a)
{
	if (!a->runs)
		return;
	atomic_store(&a->cpu, sched_getcpu());
	atomic_store(&a->until, now_ns() + AWAKE_NS);
	if (atomic_exchange(&a->sleeps, false))
		sem_post(&a->wanted);
}
