/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * Orders of `mapper` about what can happen to a mark, and threads that write all the while:
 *
 *   remap M PAGE COUNT NEW [at=ADDR] [as=M2] [keep] [raw]
 *                                             mremap of a part to NEW pages, MREMAP_FIXED,
 *                                             MREMAP_DONTUNMAP -> ADDR; M2, or M if it is all of M,
 *                                             is there from now on
 *   lock M PAGE COUNT      unlock M PAGE COUNT
 *   kstore M PAGE          the kernel stores: read(2) into the page
 *   uffd M PAGE COUNT [remap] [fork] [async]  a userfaultfd of its own and a thread that serves it:
 *                                             registers and write-protects the range -> U
 *   wp U M PAGE COUNT on|off                  UFFDIO_WRITEPROTECT
 *   reg U M PAGE COUNT  unreg U M PAGE COUNT  UFFDIO_REGISTER, UFFDIO_UNREGISTER
 *                                             (reg: `missing` instead of WP)
 *   beside M PAGE          a thread stores to the page and drops it, at SIGUSR1
 *   uclose U                                  the last close
 *   writers M FIRST COUNT N FILE [fast]   N threads store to random pages of a part of M and note in FILE,
 *                                  per page of M: 0 = never, 1 = begun, 3 = done; once more: go on
 *   busy N                         returns when N more stores are done
 *   rest -> STORES                 the threads end
 *   storm M F N TURNS              N threads at once map random parts of file F, of which M shows
 *                                  all, store to a page as the writers do, and unmap them
 */
/* clang-format on */
#include "mapper.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/compat.h"

#define WRITERS_MAX 8
#define WATCHED_MAX 128 /* a uffd, its stop and its children's */

/* ---- mappings ---- */

static bool has(const struct order *o, int from, const char *word)
{
	for (int i = from; i < o->words; i++)
		if (strcmp(o->word[i], word) == 0)
			return true;
	return false;
}

static long do_remap(const struct order *o)
{
	size_t len = number(o, 3) * PAGE, len_new = number(o, 4) * PAGE;
	char *from = page_at(o, 1, 2), *got, *want = NULL;
	struct map *to = map_at(o, 1);
	int flags = MREMAP_MAYMOVE;

	if (from != to->addr || len != to->len)
		to = NULL;
	if (has(o, 5, "keep"))
		flags |= MREMAP_DONTUNMAP;
	for (int i = 5; i < o->words; i++) {
		if (strncmp(o->word[i], "at=", 3) == 0) {
			want = (char *)strtoul(o->word[i] + 3, NULL, 0);
			flags |= MREMAP_FIXED;
		}
		if (strncmp(o->word[i], "as=", 3) == 0)
			to = &maps[strtoul(o->word[i] + 3, NULL, 0) % SLOTS];
	}
	if (has(o, 5, "raw"))
		got = (char *)syscall(SYS_mremap, from, len, len_new, flags, want);
	else
		got = mremap(from, len, len_new, flags, want);
	if (got == MAP_FAILED)
		return -errno;
	if (to)
		*to = (struct map){got, len_new};
	return (long)got;
}

static long do_lock(const struct order *o)
{
	return result(mlock(page_at(o, 1, 2), number(o, 3) * PAGE));
}

static long do_unlock(const struct order *o)
{
	return result(munlock(page_at(o, 1, 2), number(o, 3) * PAGE));
}

static long do_kstore(const struct order *o)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	long ret = result(read(zero, page_at(o, 1, 2), PAGE));

	close(zero);
	return ret;
}

/* ---- a userfaultfd of its own ---- */

static struct served {
	int fd, stop;
	pthread_t thread;
	sem_t serves; /* it has begun to */
	bool on;
} served[SLOTS];

void served_close(void)
{
	for (size_t i = 0; i < SLOTS; i++) {
		if (!served[i].on)
			continue;
		close(served[i].stop);
		close(served[i].fd);
		served[i].on = false;
	}
}

/*
 * Lets the thread go on that wrote. If the page cannot be changed (an event is still to be read, or
 * the mapping has gone from there) it tries again, and says so again if it must.
 */
static void unprotect(int fd, uint64_t addr)
{
	struct uffdio_writeprotect wp = {.range = {addr & ~(PAGE - 1), PAGE}};

	if (ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0)
		ioctl(fd, UFFDIO_WAKE, &wp.range);
}

static void serve_message(struct pollfd *watched, nfds_t *nr, int fd)
{
	struct uffd_msg msg;

	if (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
		return;
	if (msg.event == UFFD_EVENT_PAGEFAULT)
		unprotect(fd, msg.arg.pagefault.address);
	else if (msg.event == UFFD_EVENT_FORK && *nr < WATCHED_MAX)
		watched[(*nr)++] = (struct pollfd){(int)msg.arg.fork.ufd, POLLIN, 0};
}

static void *serve(void *arg)
{
	struct served *s = arg;
	struct pollfd watched[WATCHED_MAX] = {{s->stop, POLLIN, 0}, {s->fd, POLLIN, 0}};
	nfds_t nr = 2;

	sigset_t usr1;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1); /* which is another thread's */
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	poll(watched, nr, 0);
	sem_post(&s->serves);
	while (!(watched[0].revents & POLLIN)) {
		if (poll(watched, nr, -1) < 0)
			continue;
		for (nfds_t i = 1, n = nr; i < n; i++) {
			if (watched[i].revents & POLLIN)
				serve_message(watched, &nr, watched[i].fd);
			else if (watched[i].revents) /* the child is gone */
				watched[i].fd = ~watched[i].fd;
		}
	}
	for (nfds_t i = 2; i < nr; i++) /* nor may a child wait */
		close(watched[i].fd < 0 ? ~watched[i].fd : watched[i].fd);
	return NULL;
}

static long protect_range(int fd, char *at, size_t len, bool on)
{
	struct uffdio_writeprotect wp = {.range = {(uintptr_t)at, len},
					 .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

	return result(ioctl(fd, UFFDIO_WRITEPROTECT, &wp));
}

static long register_range(int fd, char *at, size_t len, bool missing)
{
	struct uffdio_register reg = {.range = {(uintptr_t)at, len},
				      .mode = missing ? UFFDIO_REGISTER_MODE_MISSING
						      : UFFDIO_REGISTER_MODE_WP};

	return result(ioctl(fd, UFFDIO_REGISTER, &reg));
}

static long do_uffd(const struct order *o)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct served *s;
	long ret;

	if (fd < 0 || fd >= SLOTS)
		return fd < 0 ? -errno : -EMFILE;
	if (has(o, 4, "remap"))
		api.features |= UFFD_FEATURE_EVENT_REMAP;
	if (has(o, 4, "fork"))
		api.features |= UFFD_FEATURE_EVENT_FORK;
	if (has(o, 4, "async"))
		api.features |= UFFD_FEATURE_WP_ASYNC;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	s = &served[fd];
	*s = (struct served){.fd = fd, .stop = eventfd(0, EFD_CLOEXEC)};
	sem_init(&s->serves, 0, 0);
	if (s->stop < 0 || pthread_create(&s->thread, NULL, serve, s))
		return -EAGAIN;
	s->on = true;
	while (sem_wait(&s->serves) <
	       0) /* its start is no page fault while the next one registers */
		;
	ret = register_range(fd, page_at(o, 1, 2), number(o, 3) * PAGE, false);
	if (ret == 0)
		ret = protect_range(fd, page_at(o, 1, 2), number(o, 3) * PAGE, true);
	return ret < 0 ? ret : fd;
}

static long do_wp(const struct order *o)
{
	return protect_range((int)number(o, 1), page_at(o, 2, 3), number(o, 4) * PAGE,
			     has(o, 5, "on"));
}

static long do_reg(const struct order *o)
{
	return register_range((int)number(o, 1), page_at(o, 2, 3), number(o, 4) * PAGE,
			      has(o, 5, "missing"));
}

/* ---- a thread that stores to a page, and drops it, at SIGUSR1 ---- */

static char *beside;

static void *store_beside(void *arg)
{
	static const char said[] = "beside\n";
	sigset_t usr1;
	int got;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigwait(&usr1, &got);
	*(volatile char *)beside = 1;
	madvise(beside, PAGE, MADV_DONTNEED);
	return write(2, said, sizeof(said) - 1) < 0 ? arg : NULL;
}

static long do_beside(const struct order *o)
{
	sigset_t usr1;
	pthread_t thread;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	beside = page_at(o, 1, 2);
	return -pthread_create(&thread, NULL, store_beside, NULL);
}

static long do_unreg(const struct order *o)
{
	struct uffdio_range range = {(uintptr_t)page_at(o, 2, 3), number(o, 4) * PAGE};

	return result(ioctl((int)number(o, 1), UFFDIO_UNREGISTER, &range));
}

static long do_uclose(const struct order *o)
{
	struct served *s = &served[number(o, 1) % SLOTS];
	uint64_t one = 1;

	/* Nobody may be left waiting for the thread that ends. */
	if (write(s->stop, &one, sizeof(one)) != (ssize_t)sizeof(one) ||
	    pthread_join(s->thread, NULL))
		return -EIO;
	s->on = false;
	close(s->stop);
	return result(close(s->fd));
}

/* ---- threads that write ---- */

static struct {
	struct map *map;
	size_t first, count;
	_Atomic unsigned char *reference;
	_Atomic bool stop;
	bool fast; /* without a pause */
	_Atomic unsigned long stores;
	pthread_t thread[WRITERS_MAX];
	int nr;
} writers;

static __thread sigjmp_buf again;
static __thread volatile sig_atomic_t storing;

/* The mapping has moved away between the look at its address and the store. */
static void on_fault(int sig)
{
	if (storing)
		siglongjmp(again, 1);
	signal(sig, SIG_DFL);
}

static void store_to(size_t page, char value)
{
	writers.reference[page] |= 1;
	if (sigsetjmp(again, 0) && writers.stop) {
		storing = 0;
		return;
	}
	storing = 1;
	((volatile char *)writers.map->addr)[page * PAGE] = value;
	storing = 0;
	writers.reference[page] |= 2;
	writers.stores++;
}

static void *write_pages(void *arg)
{
	const struct timespec pause = {.tv_nsec = 150000};
	uint64_t random = (uintptr_t)arg * 0x9e3779b97f4a7c15 + 1;

	while (!writers.stop) {
		for (int i = 0; i < 2; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			store_to(writers.first + random % writers.count, (char)random);
		}
		if (!writers.fast)
			nanosleep(&pause, NULL); /* or all would be written in a moment */
	}
	return NULL;
}

static long map_reference(const char *path, size_t pages)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)pages) < 0)
		return -errno;
	writers.reference = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return writers.reference == MAP_FAILED ? -errno : 0;
}

static long do_writers(const struct order *o)
{
	struct sigaction act = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
	long ret = writers.reference ? 0 : map_reference(o->word[5], map_at(o, 1)->len / PAGE);

	if (ret < 0 || sigaction(SIGSEGV, &act, NULL) < 0 || sigaction(SIGBUS, &act, NULL) < 0)
		return ret < 0 ? ret : -errno;
	writers.map = map_at(o, 1);
	writers.first = number(o, 2);
	writers.count = number(o, 3);
	writers.stop = false;
	writers.fast = has(o, 6, "fast");
	writers.nr = (int)number(o, 4);
	if (writers.nr > WRITERS_MAX)
		return -EINVAL;
	for (int i = 0; i < writers.nr; i++)
		if (pthread_create(&writers.thread[i], NULL, write_pages,
				   (void *)(uintptr_t)(i + 1)))
			return -EAGAIN;
	return 0;
}

static long do_busy(const struct order *o)
{
	const struct timespec pause = {.tv_nsec = 100000};
	unsigned long until = writers.stores + number(o, 1);

	while (writers.nr && writers.stores < until)
		nanosleep(&pause, NULL);
	return (long)writers.stores;
}

static long do_rest(const struct order *o)
{
	writers.stop = true;
	for (int i = 0; i < writers.nr; i++)
		pthread_join(writers.thread[i], NULL);
	writers.nr = 0;
	return (long)writers.stores;
}

/* ---- threads that map ---- */

struct mapping_thread {
	pthread_t thread;
	uint64_t random;
	size_t pages;
	unsigned long turns;
	int fd;
	bool failed;
};

static void *map_and_unmap(void *arg)
{
	struct mapping_thread *t = arg;

	for (unsigned long i = 0; i < t->turns; i++) {
		size_t first, count, page;
		char *at;

		t->random ^= t->random << 13;
		t->random ^= t->random >> 7;
		t->random ^= t->random << 17;
		first = t->random % t->pages;
		count = 1 + (t->random >> 32) % (t->pages - first);
		page = (t->random >> 16) % count;
		at = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd,
			  (off_t)(first * PAGE));
		if (at == MAP_FAILED) {
			t->failed = true;
			break;
		}
		writers.reference[first + page] |= 1;
		((volatile char *)at)[page * PAGE] = 1;
		writers.reference[first + page] |= 2;
		t->failed |= munmap(at, count * PAGE) < 0;
	}
	return NULL;
}

static long do_storm(const struct order *o)
{
	struct mapping_thread threads[WRITERS_MAX];
	size_t nr = number(o, 3);
	bool failed = false;

	if (nr > WRITERS_MAX || !writers.reference)
		return -EINVAL;
	for (size_t i = 0; i < nr; i++) {
		threads[i] = (struct mapping_thread){
			.random = (i + 1) * 0x9e3779b97f4a7c15,
			.pages = map_at(o, 1)->len / PAGE,
			.turns = number(o, 4),
			.fd = *file_at(o, 2),
		};
		if (pthread_create(&threads[i].thread, NULL, map_and_unmap, &threads[i]))
			return -EAGAIN;
	}
	for (size_t i = 0; i < nr; i++) {
		pthread_join(threads[i].thread, NULL);
		failed |= threads[i].failed;
	}
	return failed ? -EIO : 0;
}

const struct verb life_verbs[] = {
	{"remap", 5, do_remap},	  {"lock", 4, do_lock},	      {"unlock", 4, do_unlock},
	{"kstore", 3, do_kstore}, {"uffd", 4, do_uffd},	      {"wp", 6, do_wp},
	{"beside", 3, do_beside}, {"reg", 5, do_reg},	      {"unreg", 5, do_unreg},
	{"uclose", 2, do_uclose}, {"writers", 6, do_writers}, {"busy", 2, do_busy},
	{"rest", 1, do_rest},	  {"storm", 5, do_storm},     {0},
};
