/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * An ordinary program that maps files, taking orders one line at a time on stdin and answering each
 * with one line: "ok [VALUE]" or "err ENAME". It knows nothing of wpfs. F and M are numbers of its
 * own for open files and mappings; offsets and lengths in bytes, PAGE and COUNT in pages of M.
 *
 *   open F PATH [ro]       O_RDWR|O_CREAT         map M F OFF LEN [ro] [private] [at=ADDR] [anon]
 *   size F BYTES           ftruncate                  [raw] [populate] [locked] -> ADDR
 *   punch F OFF LEN        fallocate              unmap M [PAGE COUNT]
 *   pwrite F OFF LEN BYTE                         rawunmap M [PAGE COUNT]    syscall(2)
 *   fsync F                                       move M         mremap elsewhere -> ADDR
 *   close F                                       grow M LEN     mremap -> ADDR
 *                                                 maps F LEN N   N times map and unmap
 *   fork IN OUT [raw]      the child takes        store M PAGE BYTE [COUNT]
 *        -> PID            orders from fifo IN,   load M PAGE -> BYTE
 *                          answers in OUT         advise M PAGE COUNT WHAT
 *   exec PATH [ARG...]     exit STATUS                [process|within|
 *                                                  beside|each|
 *                                                  each_within]
 *                                                 msync M [thread]    msync join
 *                                                 prot M PAGE COUNT r|rw|none
 *   setenv NAME VALUE      for exec
 *   seccomp                no new processes, sockets or userfaultfds from now on
 *
 * More of them: mapper_life.c, mapper_child.c.
 */
/* clang-format on */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "mapper.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef PIDFD_SELF_THREAD
#define PIDFD_SELF_THREAD (-10000)
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct map maps[SLOTS];
int files[SLOTS];

static long do_open(const struct order *o)
{
	int how = o->words > 3 && strcmp(o->word[3], "ro") == 0 ? O_RDONLY : O_RDWR | O_CREAT;

	return result(*file_at(o, 1) = open(o->word[2], how | O_CLOEXEC, 0666));
}

static long do_size(const struct order *o)
{
	return result(ftruncate(*file_at(o, 1), (off_t)number(o, 2)));
}

static long do_punch(const struct order *o)
{
	return result(fallocate(*file_at(o, 1), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)number(o, 2), (off_t)number(o, 3)));
}

static long do_pwrite(const struct order *o)
{
	size_t len = number(o, 3);
	char *buf = malloc(len);
	long ret;

	if (!buf)
		return -ENOMEM;
	memset(buf, (int)number(o, 4), len);
	ret = result(pwrite(*file_at(o, 1), buf, len, (off_t)number(o, 2)));
	free(buf);
	return ret;
}

static long do_fsync(const struct order *o)
{
	return result(fsync(*file_at(o, 1)));
}

static long do_close(const struct order *o)
{
	return result(close(*file_at(o, 1)));
}

static long do_map(const struct order *o)
{
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED;
	size_t len = number(o, 4), slot = number(o, 1) % SLOTS;
	void *want = NULL, *got;
	bool raw = false; /* as a program does that makes its system calls itself */
	int fd = *file_at(o, 2);

	for (int i = 5; i < o->words; i++) {
		if (strcmp(o->word[i], "ro") == 0) {
			prot = PROT_READ;
		} else if (strcmp(o->word[i], "private") == 0) {
			flags = (flags & ~MAP_SHARED) | MAP_PRIVATE;
		} else if (strcmp(o->word[i], "anon") == 0) {
			flags = (flags & ~MAP_SHARED) | MAP_PRIVATE | MAP_ANONYMOUS;
		} else if (strcmp(o->word[i], "raw") == 0) {
			raw = true;
		} else if (strcmp(o->word[i], "populate") == 0) {
			flags |= MAP_POPULATE;
		} else if (strcmp(o->word[i], "locked") == 0) {
			flags |= MAP_LOCKED;
		} else if (strncmp(o->word[i], "at=", 3) == 0) {
			want = (void *)strtoul(o->word[i] + 3, NULL, 0);
			flags |= MAP_FIXED;
		} else {
			return -EINVAL;
		}
	}
	if (flags & MAP_ANONYMOUS)
		fd = -1;
	if (raw)
		got = (void *)syscall(SYS_mmap, want, len, prot, flags, fd, number(o, 3));
	else
		got = mmap(want, len, prot, flags, fd, (off_t)number(o, 3));
	if (got == MAP_FAILED)
		return -errno;
	maps[slot].addr = got;
	maps[slot].len = len;
	return (long)got;
}

static long do_maps(const struct order *o)
{
	size_t len = number(o, 2);

	for (uint64_t i = number(o, 3); i; i--) {
		void *got = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, *file_at(o, 1), 0);

		if (got == MAP_FAILED || munmap(got, len) < 0)
			return -errno;
	}
	return 0;
}

static long do_unmap(const struct order *o)
{
	size_t slot = number(o, 1) % SLOTS;

	if (o->words > 2)
		return result(munmap(page_at(o, 1, 2), number(o, 3) * PAGE));
	return result(munmap(maps[slot].addr, maps[slot].len));
}

/* As a program does that makes its system calls itself: no function of libc is called. */
static long do_rawunmap(const struct order *o)
{
	size_t slot = number(o, 1) % SLOTS;

	if (o->words > 2)
		return result(syscall(SYS_munmap, page_at(o, 1, 2), number(o, 3) * PAGE));
	return result(syscall(SYS_munmap, maps[slot].addr, maps[slot].len));
}

static long do_move(const struct order *o)
{
	size_t slot = number(o, 1) % SLOTS, len = maps[slot].len;
	void *place = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *got;

	if (place == MAP_FAILED)
		return -errno;
	got = mremap(maps[slot].addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (got == MAP_FAILED)
		return -errno;
	maps[slot].addr = got;
	return (long)got;
}

static long do_grow(const struct order *o)
{
	size_t slot = number(o, 1) % SLOTS, len = number(o, 2);
	void *got = mremap(maps[slot].addr, maps[slot].len, len, MREMAP_MAYMOVE);

	if (got == MAP_FAILED)
		return -errno;
	maps[slot].addr = got;
	maps[slot].len = len;
	return (long)got;
}

static long do_store(const struct order *o)
{
	unsigned long count = o->words > 4 ? number(o, 4) : 1;
	volatile char *p = page_at(o, 1, 2);

	for (unsigned long i = 0; i < count; i++)
		p[i * PAGE] = (char)number(o, 3);
	return 0;
}

static long do_load(const struct order *o)
{
	return *(volatile unsigned char *)page_at(o, 1, 2);
}

/*
 * By process_madvise(2), of two halves, or each page for itself; within: which are told in the
 * memory itself; beside: of memory that is of no file, and then all.
 */
static long advise_process(char *at, size_t len, int advice, const char *how)
{
	static char anonymous[PAGE] __attribute__((aligned(PAGE)));
	static struct iovec list[2 * IOV_MAX];
	bool within = strstr(how, "within") != NULL;
	size_t nr = 2, half = len / PAGE / 2 * PAGE;
	long self, ret;

	list[0] = (struct iovec){at, half};
	list[1] = (struct iovec){at + half, len - half};
	if (strcmp(how, "beside") == 0) {
		list[0] = (struct iovec){anonymous, sizeof(anonymous)};
		list[1] = (struct iovec){at, len};
	}
	if (strncmp(how, "each", 4) == 0) {
		nr = len / PAGE < 2 * IOV_MAX ? len / PAGE : 2 * IOV_MAX;
		for (size_t i = 0; i < nr; i++)
			list[i] = (struct iovec){at + i * PAGE, PAGE};
	}

	self = syscall(SYS_pidfd_open, getpid(), 0);
	if (self < 0)
		self = PIDFD_SELF_THREAD; /* under a filter */
	if (within)
		memcpy(at, list, nr * sizeof(*list));
	ret = process_madvise((int)self, within ? (void *)at : list, nr, advice, 0);
	if (self >= 0)
		close((int)self);
	return ret;
}

static long do_advise(const struct order *o)
{
	static const struct {
		const char *name;
		int advice;
	} known[] = {
		{"dontneed", MADV_DONTNEED},
		{"remove", MADV_REMOVE},
		{"pageout", MADV_PAGEOUT},
		{"cold", MADV_COLD},
		{"willneed", MADV_WILLNEED},
		{"hugepage", MADV_HUGEPAGE},
		{"collapse", MADV_COLLAPSE},
		{"populate_read", MADV_POPULATE_READ},
		{"populate_write", MADV_POPULATE_WRITE},
	};

	char *at = page_at(o, 1, 2);
	size_t len = number(o, 3) * PAGE;

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (o->words <= 4 || strcmp(o->word[4], known[i].name) != 0)
			continue;
		if (o->words == 5)
			return result(madvise(at, len, known[i].advice));
		return result(advise_process(at, len, known[i].advice, o->word[5]));
	}
	return -EINVAL;
}

static long do_prot(const struct order *o)
{
	int prot = PROT_NONE;

	if (o->words > 4 && o->word[4][0] == 'r')
		prot = o->word[4][1] == 'w' ? PROT_READ | PROT_WRITE : PROT_READ;
	return result(mprotect(page_at(o, 1, 2), number(o, 3) * PAGE, prot));
}

static void *sync_map(void *arg)
{
	const struct map *map = arg;

	return (void *)result(msync(map->addr, map->len, MS_SYNC));
}

static long do_msync(const struct order *o)
{
	static pthread_t thread;

	if (o->words > 2)
		return -pthread_create(&thread, NULL, sync_map, map_at(o, 1));
	if (strcmp(o->word[1], "join") == 0) {
		void *ret;

		return pthread_join(thread, &ret) ? -EINVAL : (long)ret;
	}
	return (long)sync_map(map_at(o, 1));
}

static long do_fork(const struct order *o)
{
	bool raw = o->words > 3; /* without libc's handlers */
	pid_t pid = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();

	if (pid == 0) {
		served_close();
		if (!freopen(o->word[1], "r", stdin) || !freopen(o->word[2], "w", stdout))
			_exit(127);
	}
	return result(pid);
}

#define DENY(nr)                                                                                   \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1),                                           \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

static long do_seccomp(const struct order *o)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		DENY(SYS_clone),
		DENY(SYS_clone3),
		DENY(SYS_socket),
		DENY(SYS_connect),
		DENY(SYS_userfaultfd),
		DENY(SYS_pidfd_open),
		DENY(SYS_prctl),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return result(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static long do_exec(const struct order *o)
{
	execv(o->word[1], &((struct order *)o)->word[1]);
	return -errno;
}

static long do_setenv(const struct order *o)
{
	return result(setenv(o->word[1], o->word[2], 1));
}

static long do_exit(const struct order *o)
{
	exit((int)number(o, 1));
}

static const struct verb verbs[] = {
	{"open", 3, do_open},
	{"size", 3, do_size},
	{"punch", 4, do_punch},
	{"close", 2, do_close},
	{"pwrite", 5, do_pwrite},
	{"fsync", 2, do_fsync},
	{"map", 5, do_map},
	{"unmap", 2, do_unmap},
	{"move", 2, do_move},
	{"store", 4, do_store},
	{"load", 3, do_load},
	{"advise", 5, do_advise},
	{"prot", 5, do_prot},
	{"msync", 2, do_msync},
	{"fork", 3, do_fork},
	{"exec", 2, do_exec},
	{"exit", 2, do_exit},
	{"rawunmap", 2, do_rawunmap},
	{"seccomp", 1, do_seccomp},
	{"grow", 3, do_grow},
	{"maps", 4, do_maps},
	{"setenv", 3, do_setenv},
	{0},
};

static long obey(const struct order *o)
{
	const struct verb *const tables[] = {verbs, life_verbs, child_verbs};

	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct verb *v = tables[t]; v->name; v++)
			if (strcmp(o->word[0], v->name) == 0)
				return o->words >= v->words ? v->run(o) : -EINVAL;
	return -ENOSYS;
}

int main(void)
{
	char line[8192];

	/* Unbuffered: a fork child must not find its parent's orders in a buffer. */
	setvbuf(stdin, NULL, _IONBF, 0);
	memset(files, -1, sizeof(files));
	while (fgets(line, sizeof(line), stdin)) {
		struct order o = {.words = 0};
		long value;

		for (char *w = strtok(line, " \n"); w && o.words < WORDS_MAX;
		     w = strtok(NULL, " \n"))
			o.word[o.words++] = w;
		if (!o.words)
			continue;
		value = obey(&o);
		if (value < 0 && value > -4096)
			printf("err %s\n", strerrorname_np((int)-value));
		else
			printf("ok %ld\n", value);
		fflush(stdout);
	}
	return 0;
}
