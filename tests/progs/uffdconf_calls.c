/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Each call's results, and how it refuses each wrong argument. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffdconf.h"

/* ---- making one ---- */

static void note_api(int fd, uint64_t version, uint64_t features)
{
	struct uffdio_api api = {.api = version, .features = features};
	long ret = ioctl(fd, UFFDIO_API, &api);

	if (ret < 0)
		note("%s, answer %llx", name_of(errno), api.features);
	else
		note("0, ioctls %llx", api.ioctls);
}

static void api(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	note_api(fd, 0xab, 0);
	note_api(fd, UFFD_API, 1ull << 63);
	noted("null", ioctl(fd, UFFDIO_API, NULL));
	note_api(fd, UFFD_API, 0);
	note_api(fd, UFFD_API, UFFD_FEATURE_THREAD_ID);
	close(fd);
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		die("api");
	note("features %llx", api.features);
	close(fd);
}

static void before_api(void)
{
	struct area *a = area_new(2, 2);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	struct uffd_msg msg;

	noted("register", reg(fd, a->map, PAGE, MODE_WP, NULL));
	noted("unregister", unreg(fd, a->map, PAGE));
	noted("protect", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("read", read(fd, &msg, sizeof(msg)));
	poll(&pfd, 1, 0);
	note("poll %x", pfd.revents);
	close(fd);
}

static int unprivileged(void *arg)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
	int fd;

	if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
		return 1;
	if (syscall(SYS_userfaultfd, O_CLOEXEC) >= 0 || errno != EPERM)
		return 2;
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return 3;
	/* Tracking children needs a capability. */
	return ioctl(fd, UFFDIO_API, &api) < 0 && errno == EPERM ? 0 : 4;
}

static void new (void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	char name[64] = "", target[64] = "";

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	noted("syscall", fd);
	if (readlink(name, target, sizeof(target) - 1) < 0)
		die("readlink");
	note("%s, cloexec %d, nonblock %d", target, fcntl(fd, F_GETFD) == FD_CLOEXEC,
	     (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
	close(fd);
	noted("bad flags", syscall(SYS_userfaultfd, O_TRUNC));
	child_do(unprivileged, NULL, NULL);
}

static void device(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	struct area *a = area_new(2, 2);
	struct handler *h;
	int fd;

	noted("open", dev);
	noted("bad flags", ioctl(dev, USERFAULTFD_IOC_NEW, O_TRUNC));
	noted("other request", ioctl(dev, UFFDIO_API, NULL));
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	noted("new", fd);
	note_api(fd, UFFD_API, SHMEM_ALL);
	reg_all(fd, a, MODE_WP);
	wp_all(fd, a);
	h = handler_start(fd, a, ANSWER);
	store(a, 1, 9);
	handler_stop(h);
	close(fd);
	close(dev);
}

/* ---- REGISTER and UNREGISTER ---- */

static void register_modes(void)
{
	int fd = uffd_new(0, SHMEM_ALL);
	struct area *a = area_new(2, 2);

	for (uint64_t mode = 0; mode < 8; mode++) {
		uint64_t ioctls = 0;
		long ret = reg(fd, a->map, PAGE, mode, &ioctls);

		note("mode %llu: %s", (unsigned long long)mode, name_of(ret < 0 ? errno : 0));
		if (ret == 0) {
			note("ioctls %llx", (unsigned long long)ioctls);
			noted("unregister", unreg(fd, a->map, PAGE));
		}
	}
	close(fd);
}

/* From every mode to every other, without UNREGISTER. */
static void register_changes(void)
{
	struct area *a = area_new(2, 2);
	int fd = uffd_new(0, SHMEM_ALL);
	unsigned done = 0;

	for (uint64_t from = 1; from < 8; from++) {
		for (uint64_t to = 1; to < 8; to++) {
			if (reg(fd, a->map, PAGE, from, NULL) < 0 ||
			    reg(fd, a->map, PAGE, to, NULL) < 0)
				noted("register", -1);
			else
				done++;
		}
	}
	note("%u changes", done);
	noted("unregister", unreg(fd, a->map, PAGE));
	close(fd);
}

static void register_refusals(void)
{
	struct area *a = area_still(8, 8), *other = area_still(2, 2);
	int fd = uffd_new(0, SHMEM_ALL), second = uffd_new(0, SHMEM_ALL), ro;
	char name[64];
	void *p;

	noted("unaligned", reg(fd, a->map + 1, PAGE, MODE_WP, NULL));
	noted("odd length", reg(fd, a->map, PAGE + 1, MODE_WP, NULL));
	noted("no length", reg(fd, a->map, 0, MODE_WP, NULL));
	noted("wraps", reg(fd, a->map, -PAGE, MODE_WP, NULL));
	noted("kernel's", reg(fd, (void *)-PAGE, PAGE, MODE_WP, NULL));
	noted("unknown mode", reg(fd, a->map, PAGE, 1 << 7 | MODE_WP, NULL));
	noted("no mode", reg(fd, a->map, PAGE, 0, NULL));
	noted("null", ioctl(fd, UFFDIO_REGISTER, NULL));
	noted("bad pointer", ioctl(fd, UFFDIO_REGISTER, (void *)PAGE));
	noted("taken",
	      reg(second, a->map, PAGE, MODE_WP, NULL) + reg(fd, a->map, 2 * PAGE, MODE_WP, NULL));
	noted("nothing of it done", wp(fd, a, 1, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("its owner again", reg(second, a->map, PAGE, MODE_WP, NULL));
	munmap(other->map, 2 * PAGE);
	noted("nothing there", reg(fd, other->map, PAGE, MODE_WP, NULL));
	munmap(a->map + 4 * PAGE, PAGE);
	noted("over a hole", reg(fd, a->map + 2 * PAGE, 4 * PAGE, MODE_WP, NULL));
	snprintf(name, sizeof(name), "/proc/self/fd/%d", a->file);
	ro = open(name, O_RDONLY | O_CLOEXEC);
	p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
	noted("read-only file", p == MAP_FAILED ? -1 : reg(fd, p, PAGE, MODE_WP, NULL));
	munmap(p, PAGE);
	close(ro);
	p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, a->file, 0);
	noted("read-only mapping", p == MAP_FAILED ? -1 : reg(fd, p, PAGE, MODE_WP, NULL));
	munmap(p, PAGE);
	p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, a->file, 0);
	noted("private mapping", p == MAP_FAILED ? -1 : reg(fd, p, PAGE, MODE_WP, NULL));
	munmap(p, PAGE);
	close(fd);
	close(second);
}

static void unregister_refusals(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(0, SHMEM_ALL), second = uffd_new(0, SHMEM_ALL);

	noted("never registered", unreg(fd, a->map, PAGE));
	reg_all(fd, a, MODE_WP);
	noted("another's", unreg(second, a->map, PAGE));
	noted("and is its owner's still", wp(fd, a, 0, 1, 0));
	noted("unaligned", unreg(fd, a->map + 1, PAGE));
	noted("odd length", unreg(fd, a->map, PAGE + 1));
	noted("no length", unreg(fd, a->map, 0));
	noted("null", ioctl(fd, UFFDIO_UNREGISTER, NULL));
	noted("bad pointer", ioctl(fd, UFFDIO_UNREGISTER, (void *)PAGE));
	noted("nothing there", unreg(fd, (void *)PAGE, PAGE));
	noted("part", unreg(fd, a->map + 2 * PAGE, 2 * PAGE));
	noted("part again", unreg(fd, a->map + 2 * PAGE, 2 * PAGE));
	noted("protect it", wp(fd, a, 2, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("protect the rest", wp(fd, a, 4, 4, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("all", unreg(fd, a->map, a->all * PAGE));
	store(a, 5, 1);
	close(fd);
	close(second);
}

/* ---- the others ---- */

static void writeprotect_refusals(void)
{
	struct area *a = area_new(8, 8);
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct uffdio_writeprotect w = {.mode = UFFDIO_WRITEPROTECT_MODE_WP};

	noted("not registered", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	reg(fd, a->map, PAGE, MODE_MISS, NULL);
	noted("registered for missing", wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP));
	reg(fd, a->map, 2 * PAGE, MODE_WP, NULL);
	noted("more than registered", wp(fd, a, 0, 4, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("unknown mode", wp(fd, a, 0, 1, 1 << 5));
	noted("wp and dontwake",
	      wp(fd, a, 0, 1, UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE));
	w.range = (struct uffdio_range){(uintptr_t)a->map + 8, PAGE};
	noted("unaligned", ioctl(fd, UFFDIO_WRITEPROTECT, &w));
	w.range = (struct uffdio_range){(uintptr_t)a->map, 100};
	noted("odd length", ioctl(fd, UFFDIO_WRITEPROTECT, &w));
	w.range.len = 0;
	noted("no length", ioctl(fd, UFFDIO_WRITEPROTECT, &w));
	w.range = (struct uffdio_range){PAGE, PAGE};
	noted("nothing there", ioctl(fd, UFFDIO_WRITEPROTECT, &w));
	noted("null", ioctl(fd, UFFDIO_WRITEPROTECT, NULL));
	noted("right", wp(fd, a, 0, 2, UFFDIO_WRITEPROTECT_MODE_WP));
	noted("and off", wp(fd, a, 0, 2, 0));
	noted("unknown request", ioctl(fd, _IO(UFFDIO, 0x30), NULL));
	close(fd);
}

static void note_done(const char *what, long ret, int64_t done)
{
	note("%s: %s (%lld)", what, name_of(ret < 0 ? errno : 0), (long long)done);
}

static void copy_refusals(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	struct uffdio_copy c = {.len = PAGE};
	int64_t done = 0;
	long ret;

	ret = copy(fd, a->map + 5 * PAGE, 'c', 0, &done);
	note_done("not registered", ret, done);
	reg_all(fd, a, MODE_MISS);
	ret = copy(fd, a->map + PAGE, 'c', 0, &done);
	note_done("there already", ret, done);
	ret = copy(fd, a->map + 5 * PAGE, 'c', UFFDIO_COPY_MODE_WP, &done);
	note_done("wp, not registered for it", ret, done);
	ret = copy(fd, a->map + 5 * PAGE, 'c', 1 << 6, &done);
	note_done("unknown mode", ret, done);
	ret = copy(fd, a->map + 5 * PAGE + 1, 'c', 0, &done);
	note_done("unaligned", ret, done);
	c.dst = (uintptr_t)(a->map + 5 * PAGE);
	c.src = PAGE;
	ret = ioctl(fd, UFFDIO_COPY, &c);
	note_done("no source", ret, c.copy);
	c.len = 0;
	c.src = c.dst;
	noted("no length", ioctl(fd, UFFDIO_COPY, &c));
	c.len = 77;
	noted("odd length", ioctl(fd, UFFDIO_COPY, &c));
	noted("null", ioctl(fd, UFFDIO_COPY, NULL));
	ret = copy(fd, a->map + 5 * PAGE, 'c', 0, &done);
	note_done("right", ret, done);
	ret = copy(fd, a->map + 5 * PAGE, 'd', 0, &done);
	note_done("again", ret, done);
	load(a, 5);
	close(fd);
}

static void copy_beyond(void)
{
	struct area *a = area_still(8, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	int64_t done = 0;
	long ret;

	reg_all(fd, a, MODE_MISS);
	if (ftruncate(a->file, 6 * PAGE) < 0)
		die("truncate");
	ret = copy(fd, a->map + 7 * PAGE, 'c', 0, &done);
	note_done("copy", ret, done);
	ret = zero(fd, a->map + 7 * PAGE, 0, &done);
	note_done("zeropage", ret, done);
	store_or_bus(a, 7, 1);
	close(fd);
}

static void zeropage_refusals(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	int64_t done = 0;
	long ret;

	ret = zero(fd, a->map + 5 * PAGE, 0, &done);
	note_done("not registered", ret, done);
	reg_all(fd, a, MODE_MISS);
	ret = zero(fd, a->map + PAGE, 0, &done);
	note_done("there already", ret, done);
	ret = zero(fd, a->map + 5 * PAGE, 1 << 6, &done);
	note_done("unknown mode", ret, done);
	ret = zero(fd, a->map + 5 * PAGE + 1, 0, &done);
	note_done("unaligned", ret, done);
	noted("null", ioctl(fd, UFFDIO_ZEROPAGE, NULL));
	ret = zero(fd, a->map + 5 * PAGE, 0, &done);
	note_done("right", ret, done);
	ret = zero(fd, a->map + 5 * PAGE, 0, &done);
	note_done("again", ret, done);
	load(a, 5);
	close(fd);
}

static void continue_refusals(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	int64_t done = 0;
	long ret;

	ret = cont(fd, a->map + PAGE, 0, &done);
	note_done("not registered", ret, done);
	reg_all(fd, a, MODE_MIN);
	ret = cont(fd, a->map + 5 * PAGE, 0, &done);
	note_done("no page", ret, done);
	ret = cont(fd, a->map + PAGE, 1 << 6, &done);
	note_done("unknown mode", ret, done);
	ret = cont(fd, a->map + PAGE, UFFDIO_CONTINUE_MODE_WP, &done);
	note_done("wp, not registered for it", ret, done);
	ret = cont(fd, a->map + PAGE + 1, 0, &done);
	note_done("unaligned", ret, done);
	noted("null", ioctl(fd, UFFDIO_CONTINUE, NULL));
	ret = cont(fd, a->map + PAGE, 0, &done);
	note_done("right", ret, done);
	ret = cont(fd, a->map + PAGE, 0, &done);
	note_done("again", ret, done);
	load(a, 1);
	close(fd);
}

static void poison_refusals(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	int64_t done = 0;
	long ret;

	ret = poison(fd, a->map + 5 * PAGE, 0, &done);
	note_done("not registered", ret, done);
	reg_all(fd, a, MODE_MISS);
	load(a, 1);
	ret = poison(fd, a->map + PAGE, 0, &done);
	note_done("there already", ret, done);
	ret = poison(fd, a->map + 5 * PAGE, 1 << 6, &done);
	note_done("unknown mode", ret, done);
	ret = poison(fd, a->map + 5 * PAGE + 1, 0, &done);
	note_done("unaligned", ret, done);
	noted("null", ioctl(fd, UFFDIO_POISON, NULL));
	ret = poison(fd, a->map + 5 * PAGE, 0, &done);
	note_done("right", ret, done);
	ret = poison(fd, a->map + 5 * PAGE, 0, &done);
	note_done("again", ret, done);
	load_or_bus(a, 5);
	close(fd);
}

static void move_refusals(void)
{
	struct area *a = area_new(8, 4);
	int fd = uffd_new(0, SHMEM_ALL);
	struct uffdio_move m = {
		.dst = (uintptr_t)(a->map + 5 * PAGE), .src = (uintptr_t)a->map, .len = PAGE};
	long ret;

	reg_all(fd, a, MODE_MISS);
	ret = ioctl(fd, UFFDIO_MOVE, &m);
	note_done("of a file", ret, m.move);
	m.mode = 1 << 6;
	noted("unknown mode", ioctl(fd, UFFDIO_MOVE, &m));
	noted("null", ioctl(fd, UFFDIO_MOVE, NULL));
	close(fd);
}

static void wake_refusals(void)
{
	struct area *a = area_new(2, 2);
	struct uffdio_range range = {(uintptr_t)a->map, PAGE};
	int fd = uffd_new(0, SHMEM_ALL);

	noted("nobody waits", ioctl(fd, UFFDIO_WAKE, &range));
	range.start++;
	noted("unaligned", ioctl(fd, UFFDIO_WAKE, &range));
	range = (struct uffdio_range){(uintptr_t)a->map, 0};
	noted("no length", ioctl(fd, UFFDIO_WAKE, &range));
	noted("null", ioctl(fd, UFFDIO_WAKE, NULL));
	close(fd);
}

static void read_refusals(void)
{
	int fd = uffd_new(O_NONBLOCK, SHMEM_ALL);
	struct uffd_msg msg;

	noted("nothing to read", read(fd, &msg, sizeof(msg)));
	noted("too small", read(fd, &msg, sizeof(msg) - 1));
	noted("write", write(fd, &msg, sizeof(msg)));
	noted("mmap", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
	close(fd);
	noted("closed", reg(fd, &msg, PAGE, MODE_WP, NULL));
	noted("no uffd", reg(0, &msg, PAGE, MODE_WP, NULL) < 0 && errno == ENOTTY ? 0 : -1);
}

const struct conf_case conf_calls[] = {
	{"new", new},
	{"device", device},
	{"api", api},
	{"before-api", before_api},
	{"register-modes", register_modes},
	{"register-changes", register_changes},
	{"register-refusals", register_refusals},
	{"unregister-refusals", unregister_refusals},
	{"writeprotect-refusals", writeprotect_refusals},
	{"copy-refusals", copy_refusals},
	{"copy-beyond", copy_beyond},
	{"zeropage-refusals", zeropage_refusals},
	{"continue-refusals", continue_refusals},
	{"poison-refusals", poison_refusals},
	{"move-refusals", move_refusals},
	{"wake-refusals", wake_refusals},
	{"read-refusals", read_refusals},
	{NULL, NULL},
};
