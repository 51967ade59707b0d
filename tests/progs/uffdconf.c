/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What userfaultfd(2) promises, one line per behaviour: docs/UFFD-CONFORMANCE.md lists them.
 *
 *	uffdconf [-w] FILE [CASE...]	all cases, or these, each on FILE.NUMBER; -w: while other
 *					threads write to more pages of the same mappings
 *
 * A case runs in the one process of all, so what the last one left behind would show.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "uffdconf.h"

#define AREAS 8

static const char *path;
static bool with_writers;
static unsigned files;
static char line[4096];
static pthread_mutex_t line_lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
	struct area *area;
	pthread_t writer[WRITERS];
	_Atomic bool stop;
	bool run;
} areas[AREAS];

void note(const char *fmt, ...)
{
	size_t len;
	va_list ap;

	pthread_mutex_lock(&line_lock);
	len = strlen(line);
	if (len)
		len += (size_t)snprintf(line + len, sizeof(line) - len, "; ");
	va_start(ap, fmt);
	vsnprintf(line + len, sizeof(line) - len, fmt, ap);
	va_end(ap);
	pthread_mutex_unlock(&line_lock);
}

const char *name_of(int err)
{
	const char *name = err ? strerrorname_np(err) : "0";

	return name ? name : "?";
}

long noted(const char *what, long ret)
{
	note("%s: %s", what, name_of(ret < 0 ? errno : 0));
	return ret;
}

_Noreturn void die(const char *what)
{
	printf("%s -- %s: %s\n", line, what, name_of(errno));
	fflush(stdout);
	_exit(1);
}

unsigned long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

/* ---- areas and their writers ---- */

/* Each page is one thread's, which sees its own count in it again or something was lost. */
static void *write_extra(void *arg)
{
	size_t i = (size_t)arg / WRITERS, me = (size_t)arg % WRITERS;
	const struct area *a = areas[i].area;
	uint32_t count[EXTRA] = {0};

	/* Stores first: reading one page in would bring the ones around it in too. */
	for (unsigned long page = me; page < EXTRA; page += WRITERS)
		*(volatile uint32_t *)(a->map + (a->pages + page) * PAGE + 64) = 0;
	while (!areas[i].stop) {
		for (unsigned long page = me; page < EXTRA; page += WRITERS) {
			volatile uint32_t *p = (void *)(a->map + (a->pages + page) * PAGE + 64);

			if (*p != count[page])
				die("a store is lost");
			*p = ++count[page];
		}
		usleep(50);
	}
	return NULL;
}

static struct area *make_area(unsigned long pages, unsigned long filled, bool still)
{
	struct area *a = calloc(1, sizeof(*a));
	char name[4096], page[PAGE];
	size_t slot = 0;

	while (slot < AREAS && areas[slot].area)
		slot++;
	if (!a || slot == AREAS)
		die("areas");
	a->pages = pages;
	a->all = pages + (with_writers && !still ? EXTRA : 0);
	snprintf(name, sizeof(name), "%s.%u", path, files++);
	a->file = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (a->file < 0 || ftruncate(a->file, (off_t)(a->all * PAGE)) < 0 || unlink(name) < 0)
		die("file");
	for (unsigned long n = 0; n < a->all; n++) {
		memset(page, n < pages ? (int)n + 1 : 0, PAGE);
		if ((n < filled || n >= pages) &&
		    pwrite(a->file, page, PAGE, (off_t)(n * PAGE)) != (ssize_t)PAGE)
			die("fill");
	}
	a->map = mmap(NULL, a->all * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a->file, 0);
	if (a->map == MAP_FAILED)
		die("mmap");
	areas[slot].area = a;
	areas[slot].stop = false;
	areas[slot].run = a->all > a->pages;
	for (size_t i = 0; areas[slot].run && i < WRITERS; i++)
		if (pthread_create(&areas[slot].writer[i], NULL, write_extra,
				   (void *)(slot * WRITERS + i)))
			die("writer");
	return a;
}

struct area *area_new(unsigned long pages, unsigned long filled)
{
	return make_area(pages, filled, false);
}

struct area *area_still(unsigned long pages, unsigned long filled)
{
	return make_area(pages, filled, true);
}

void area_alias(struct area *a)
{
	a->alias = mmap(NULL, a->all * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a->file, 0);
	if (a->alias == MAP_FAILED)
		die("alias");
}

void area_stop_writers(struct area *a)
{
	for (size_t i = 0; i < AREAS; i++) {
		if (areas[i].area != a || !areas[i].run)
			continue;
		areas[i].stop = true;
		for (size_t n = 0; n < WRITERS; n++)
			pthread_join(areas[i].writer[n], NULL);
		areas[i].run = false;
	}
}

void area_free(struct area *a)
{
	area_stop_writers(a);
	for (size_t i = 0; i < AREAS; i++)
		if (areas[i].area == a)
			areas[i].area = NULL;
	munmap(a->map, a->all * PAGE);
	if (a->alias)
		munmap(a->alias, a->all * PAGE);
	close(a->file);
	free(a);
}

/* ---- the calls ---- */

int uffd_new(int flags, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		die("userfaultfd");
	return fd;
}

void uffd_end(int fd)
{
	if (close(fd) < 0)
		noted("close", -1);
}

long reg(int fd, const void *at, unsigned long len, uint64_t mode, uint64_t *ioctls)
{
	struct uffdio_register r = {.range = {(uintptr_t)at, len}, .mode = mode};
	long ret = ioctl(fd, UFFDIO_REGISTER, &r);

	if (ioctls)
		*ioctls = r.ioctls;
	return ret;
}

void reg_all(int fd, const struct area *a, uint64_t mode)
{
	if (reg(fd, a->map, a->all * PAGE, mode, NULL) < 0)
		die("register");
}

long unreg(int fd, const void *at, unsigned long len)
{
	struct uffdio_range range = {(uintptr_t)at, len};

	return ioctl(fd, UFFDIO_UNREGISTER, &range);
}

long wp(int fd, const struct area *a, unsigned long page, unsigned long pages, uint64_t mode)
{
	struct uffdio_writeprotect w = {.range = {(uintptr_t)(a->map + page * PAGE), pages * PAGE},
					.mode = mode};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &w);
}

void wp_all(int fd, const struct area *a)
{
	if (wp(fd, a, 0, a->all, UFFDIO_WRITEPROTECT_MODE_WP) < 0)
		die("protect");
}

long copy(int fd, void *to, char value, uint64_t mode, int64_t *done)
{
	char page[PAGE] __attribute__((aligned(4096)));
	struct uffdio_copy c = {
		.dst = (uintptr_t)to, .src = (uintptr_t)page, .len = PAGE, .mode = mode};
	long ret;

	memset(page, value, PAGE);
	ret = ioctl(fd, UFFDIO_COPY, &c);
	if (done)
		*done = c.copy;
	return ret;
}

long zero(int fd, void *to, uint64_t mode, int64_t *done)
{
	struct uffdio_zeropage z = {.range = {(uintptr_t)to, PAGE}, .mode = mode};
	long ret = ioctl(fd, UFFDIO_ZEROPAGE, &z);

	if (done)
		*done = z.zeropage;
	return ret;
}

long cont(int fd, void *to, uint64_t mode, int64_t *done)
{
	struct uffdio_continue c = {.range = {(uintptr_t)to, PAGE}, .mode = mode};
	long ret = ioctl(fd, UFFDIO_CONTINUE, &c);

	if (done)
		*done = c.mapped;
	return ret;
}

long poison(int fd, void *to, uint64_t mode, int64_t *done)
{
	struct uffdio_poison p = {.range = {(uintptr_t)to, PAGE}, .mode = mode};
	long ret = ioctl(fd, UFFDIO_POISON, &p);

	if (done)
		*done = p.updated;
	return ret;
}

/* ---- messages ---- */

static long page_of(const struct area *a, uint64_t address)
{
	return ((long)address - (long)(uintptr_t)a->map) / (long)PAGE;
}

static bool is_extra(const struct area *a, const struct uffd_msg *msg)
{
	long page = page_of(a, msg->arg.pagefault.address);

	return msg->event == UFFD_EVENT_PAGEFAULT && page >= (long)a->pages && page < (long)a->all;
}

void note_message(const struct uffd_msg *msg, const struct area *a)
{
	uint64_t flags = msg->arg.pagefault.flags;

	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		note("%s fault %ld%s",
		     flags & UFFD_PAGEFAULT_FLAG_WP	 ? "wp"
		     : flags & UFFD_PAGEFAULT_FLAG_MINOR ? "minor"
							 : "missing",
		     page_of(a, msg->arg.pagefault.address),
		     flags & UFFD_PAGEFAULT_FLAG_WRITE ? " write" : "");
		break;
	case UFFD_EVENT_FORK:
		note("event fork");
		break;
	case UFFD_EVENT_REMAP:
		note("event remap %ld+%llu%s", page_of(a, msg->arg.remap.from),
		     msg->arg.remap.len / PAGE,
		     msg->arg.remap.from == msg->arg.remap.to ? " in place" : "");
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		note("event %s %ld+%llu", msg->event == UFFD_EVENT_UNMAP ? "unmap" : "remove",
		     page_of(a, msg->arg.remove.start),
		     (msg->arg.remove.end - msg->arg.remove.start) / PAGE);
		break;
	default:
		note("event %x", msg->event);
	}
}

void answer_message(int fd, const struct area *a, const struct uffd_msg *msg, enum answer answer)
{
	uint64_t flags = msg->arg.pagefault.flags;
	char *at = (char *)(uintptr_t)(msg->arg.pagefault.address & ~(PAGE - 1));
	struct uffdio_writeprotect w = {.range = {(uintptr_t)at, PAGE}};
	bool protect = answer == ANSWER_PROTECT;
	long ret;

	if (msg->event != UFFD_EVENT_PAGEFAULT || answer == ANSWER_NOT)
		return;
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		ret = ioctl(fd, UFFDIO_WRITEPROTECT, &w);
	else if (flags & UFFD_PAGEFAULT_FLAG_MINOR)
		ret = cont(fd, at, protect ? UFFDIO_CONTINUE_MODE_WP : 0, NULL);
	else if (answer == ANSWER_ZERO || is_extra(a, msg))
		ret = zero(fd, at, 0, NULL);
	else if (answer == ANSWER_POISON)
		ret = poison(fd, at, 0, NULL);
	else
		ret = copy(fd, at, 'm', protect ? UFFDIO_COPY_MODE_WP : 0, NULL);
	/* The mm is about to change, of which we have not read yet: let the thread ask again. */
	if (ret < 0 && errno == EAGAIN)
		ret = ioctl(fd, UFFDIO_WAKE, &w.range);
	if (ret < 0 && !(errno == EEXIST && is_extra(a, msg)))
		noted("answer", ret);
}

int next_message(int fd, struct area *a, struct uffd_msg *msg, int timeout_ms)
{
	unsigned long end = now_ms() + (unsigned long)timeout_ms;

	for (;;) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		long left = (long)(end - now_ms());

		if (poll(&pfd, 1, left > 0 ? (int)left : 0) <= 0)
			return -1;
		if (read(fd, msg, sizeof(*msg)) != (ssize_t)sizeof(*msg)) {
			if (errno == EAGAIN)
				continue;
			return -1;
		}
		if (!is_extra(a, msg))
			return 0;
		answer_message(fd, a, msg, ANSWER);
	}
}

void note_silence(int fd, struct area *a)
{
	struct uffd_msg msg;

	if (next_message(fd, a, &msg, 0) < 0)
		note("no message");
	else
		note_message(&msg, a);
}

static void *handle(void *arg)
{
	struct handler *h = arg;
	struct uffd_msg msg;
	ssize_t n;

	for (;;) {
		struct pollfd pfd[2] = {{.fd = h->uffd, .events = POLLIN},
					{.fd = h->stop[0], .events = POLLIN}};

		if (poll(pfd, 2, -1) < 0)
			continue;
		if (pfd[1].revents)
			return NULL;
		n = read(h->uffd, &msg, sizeof(msg));
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n != (ssize_t)sizeof(msg))
			die("read");
		if (!is_extra(h->area, &msg)) {
			h->faults += msg.event == UFFD_EVENT_PAGEFAULT;
			note_message(&msg, h->area);
		}
		if (msg.event == UFFD_EVENT_FORK)
			h->child_uffd = (int)msg.arg.fork.ufd;
		h->events += msg.event != UFFD_EVENT_PAGEFAULT;
		answer_message(h->uffd, h->area, &msg, h->answer);
	}
}

long handler_saw(struct handler *h, unsigned events, long ret)
{
	int err = errno;

	while (h->events < events)
		usleep(100);
	errno = err;
	return ret;
}

struct handler *handler_start(int fd, struct area *a, enum answer answer)
{
	struct handler *h = calloc(1, sizeof(*h));

	if (!h)
		die("handler");
	h->uffd = fd;
	h->area = a;
	h->answer = answer;
	h->child_uffd = -1;
	if (pipe2(h->stop, O_CLOEXEC) < 0 || pthread_create(&h->thread, NULL, handle, h))
		die("handler");
	return h;
}

unsigned handler_stop(struct handler *h)
{
	unsigned faults;

	if (write(h->stop[1], "", 1) != 1)
		die("stop");
	pthread_join(h->thread, NULL);
	close(h->stop[0]);
	close(h->stop[1]);
	faults = h->faults;
	free(h);
	return faults;
}

/* ---- stores and loads ---- */

static sigjmp_buf bus;
static void on_bus(int sig, siginfo_t *info, void *context)
{
	siglongjmp(bus, info->si_code == BUS_MCEERR_AR ? 2 : 1);
}

void store(struct area *a, unsigned long page, char value)
{
	volatile char *at = a->map + page * PAGE + 1;

	*at = value;
	note("stored %lu", page);
}

void load(struct area *a, unsigned long page)
{
	volatile char *at = a->map + page * PAGE + 1;
	int value = *at;

	note("loaded %lu = %d", page, value);
}

void store_or_bus(struct area *a, unsigned long page, char value)
{
	int how = sigsetjmp(bus, 1);

	if (how)
		note("SIGBUS%s at %lu", how == 2 ? " (poison)" : "", page);
	else
		store(a, page, value);
}

void load_or_bus(struct area *a, unsigned long page)
{
	int how = sigsetjmp(bus, 1);

	if (how)
		note("SIGBUS%s at %lu", how == 2 ? " (poison)" : "", page);
	else
		load(a, page);
}

bool has_mark(const void *at)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (pread(fd, &entry, 8, (off_t)((uintptr_t)at / PAGE * 8)) != 8)
		die("pagemap");
	close(fd);
	return entry >> 57 & 1;
}

int mark_bits(const struct area *a)
{
	int bits = 0;

	for (unsigned long page = 0; page < 6; page++)
		bits |= has_mark(a->map + page * PAGE) << page;
	return bits;
}

void note_marks(const struct area *a, unsigned long first, unsigned long nr)
{
	char bits[128] = "";

	for (unsigned long page = 0; page < nr; page++)
		strcat(bits, has_mark(a->map + (first + page) * PAGE) ? "1" : "0");
	note("marks %s", bits);
}

struct storer {
	struct area *area;
	unsigned long page, ms;
	char value;
	_Atomic bool done;
	pthread_t thread;
};

static void *storer_run(void *arg)
{
	struct storer *s = arg;

	*(volatile char *)(s->area->map + s->page * PAGE + 1) = s->value;
	s->done = true;
	return NULL;
}

struct storer *storer_start(struct area *a, unsigned long page, char value)
{
	struct storer *s = calloc(1, sizeof(*s));

	if (!s)
		die("storer");
	s->area = a;
	s->page = page;
	s->value = value;
	if (pthread_create(&s->thread, NULL, storer_run, s))
		die("storer");
	return s;
}

bool storer_is_done(const struct storer *s)
{
	return s->done;
}

void storer_join(struct storer *s)
{
	unsigned long since = now_ms(), ms;

	pthread_join(s->thread, NULL);
	ms = now_ms() - since;
	if (ms < AT_ONCE)
		note("stored %lu at once", s->page);
	else
		note("stored %lu after %lu ms", s->page, ms);
	free(s);
}

void storer_waits(int fd)
{
	char name[64], text[512];
	unsigned total = 0;

	snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", fd);
	while (!total) {
		int info = open(name, O_RDONLY | O_CLOEXEC);
		ssize_t n = info < 0 ? -1 : read(info, text, sizeof(text) - 1);
		const char *at;

		if (n <= 0)
			die("fdinfo");
		text[n] = '\0';
		close(info);
		at = strstr(text, "total:");
		if (!at || sscanf(at, "total: %u", &total) != 1)
			die("fdinfo");
		usleep(200);
	}
}

/* ---- processes ---- */

void send_fd(int sock, int fd)
{
	char data = 'f';
	struct iovec iov = {&data, 1};
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};

	control.hdr.cmsg_len = CMSG_LEN(sizeof(int));
	control.hdr.cmsg_level = SOL_SOCKET;
	control.hdr.cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(&control.hdr), &fd, sizeof(fd));
	if (sendmsg(sock, &msg, 0) != 1)
		die("sendmsg");
}

int recv_fd(int sock)
{
	char data;
	struct iovec iov = {&data, 1};
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	int fd = -1;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		die("recvmsg");
	memcpy(&fd, CMSG_DATA(&control.hdr), sizeof(fd));
	return fd;
}

void child_do(int (*fn)(void *), void *arg, struct handler *h)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(60);
		_exit(fn(arg));
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("fork");
	if (h)
		handler_saw(h, 1, 0);
	if (WIFEXITED(status))
		note("child: %d", WEXITSTATUS(status));
	else
		note("child: signal %d", WTERMSIG(status));
}

/* ---- running ---- */

static bool wanted(const char *name, char **names, int nr)
{
	for (int i = 0; i < nr; i++)
		if (strcmp(names[i], name) == 0)
			return true;
	return nr == 0;
}

static void run_cases(const struct conf_case *c, char **names, int nr)
{
	for (; c->name; c++) {
		if (!wanted(c->name, names, nr))
			continue;
		line[0] = '\0';
		c->run();
		for (size_t i = 0; i < AREAS; i++)
			if (areas[i].area)
				area_free(areas[i].area);
		printf("%s: %s\n", c->name, line);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	struct sigaction act = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
	int at = 1;

	with_writers = argc > at && strcmp(argv[at], "-w") == 0;
	at += with_writers;
	if (argc <= at)
		return 2;
	path = argv[at++];
	alarm(250);
	if (sigaction(SIGBUS, &act, NULL) < 0)
		return 1;
	run_cases(conf_calls, argv + at, argc - at);
	run_cases(conf_faults, argv + at, argc - at);
	run_cases(conf_events, argv + at, argc - at);
	run_cases(conf_children, argv + at, argc - at);
	run_cases(conf_ways, argv + at, argc - at);
	run_cases(conf_load, argv + at, argc - at);
	return 0;
}
