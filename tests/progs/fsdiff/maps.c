/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations on mappings, with SIGBUS where there is nothing to map, and on watches. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fsdiff.h"

#define PICK(list, number) ((list)[(number) % (sizeof(list) / sizeof((list)[0]))])

static _Thread_local sigjmp_buf landing;
static _Thread_local volatile sig_atomic_t may_fault;

static void on_fault(int number)
{
	if (!may_fault)
		_exit(3);
	siglongjmp(landing, number);
}

__attribute__((constructor)) static void catch_faults(void)
{
	struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

/*
 * Which pages a fault maps beside its own depends on the address, and with that whether the next
 * store faults and moves a time. So either side has its mappings at the same addresses of an arena.
 */
void arena_open(struct side *s)
{
	size_t size = (MAPS + 1) * (size_t)ARENA_EACH;
	char *all = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (all == MAP_FAILED)
		abort();
	s->arena = all + (ARENA_EACH - (uintptr_t)all % ARENA_EACH);
}

static void op_munmap(struct side *s, const struct params *p, struct answer *a)
{
	if (s->map[p->map])
		mmap(s->map[p->map], ARENA_EACH, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	s->map[p->map] = NULL;
}

static void op_mmap(struct side *s, const struct params *p, struct answer *a)
{
	static const int rights[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
				     PROT_READ | PROT_EXEC};
	static const int kinds[] = {MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE};
	static const off_t offsets[] = {0, 0, 4096, 16384, 100};
	size_t len = 4096 * (1 + p->n[0] % 16);
	char *at = s->arena + p->map * (size_t)ARENA_EACH;
	struct stat st;
	char *map;

	/*
	 * FUSE: a mapping that meets what is left of another one of the file is merged with it on
	 * tmpfs, which then is not told of an access.
	 */
	if (s->map[p->map] && fstat(s->fd[p->slot], &st) == 0 && st.st_ino == s->map_ino[p->map])
		op_munmap(s, p, a);
	map = mmap(at, len, PICK(rights, p->n[1]), PICK(kinds, p->n[2]) | MAP_FIXED, s->fd[p->slot],
		   PICK(offsets, p->n[3]));
	say_result(a, map == MAP_FAILED ? -1 : 0, false);
	if (map == MAP_FAILED)
		return;
	if (len < ARENA_EACH) /* what is left of the one before */
		mmap(at + len, ARENA_EACH - len, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	s->map[p->map] = map;
	s->map_len[p->map] = len;
	s->map_ino[p->map] = fstat(s->fd[p->slot], &st) == 0 ? st.st_ino : 0;
}

static void op_load(struct side *s, const struct params *p, struct answer *a)
{
	char *map = s->map[p->map];
	int signal;

	if (!map)
		return;
	may_fault = 1;
	signal = sigsetjmp(landing, 1);
	if (signal)
		say(a, "signal %d", signal);
	else
		say(a, "%d", ((volatile char *)map)[p->n[0] % s->map_len[p->map]]);
	may_fault = 0;
}

static void op_store(struct side *s, const struct params *p, struct answer *a)
{
	char *map = s->map[p->map];
	int signal;

	if (!map)
		return;
	may_fault = 1;
	signal = sigsetjmp(landing, 1);
	if (signal)
		say(a, "signal %d", signal);
	else
		((volatile char *)map)[p->n[0] % s->map_len[p->map]] = (char)p->n[1];
	may_fault = 0;
}

static void op_madvise(struct side *s, const struct params *p, struct answer *a)
{
	static const int advice[] = {MADV_DONTNEED,	 MADV_REMOVE,	      MADV_WILLNEED,
				     MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_SEQUENTIAL};

	if (s->map[p->map])
		say_result(a,
			   madvise(s->map[p->map], 4096 + p->n[1] % (s->map_len[p->map] - 4095),
				   PICK(advice, p->n[0])),
			   false);
	/* FUSE: the event of MADV_REMOVE is one of the lower file. */
	if (PICK(advice, p->n[0]) == MADV_REMOVE)
		forget_events(s);
}

static void op_msync(struct side *s, const struct params *p, struct answer *a)
{
	if (s->map[p->map])
		say_result(
			a,
			msync(s->map[p->map], s->map_len[p->map], p->n[0] % 2 ? MS_SYNC : MS_ASYNC),
			false);
}

static void op_mprotect(struct side *s, const struct params *p, struct answer *a)
{
	static const int rights[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE, PROT_EXEC};

	if (s->map[p->map])
		say_result(a, mprotect(s->map[p->map], s->map_len[p->map], PICK(rights, p->n[0])),
			   false);
}

static void op_watch(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];
	int wd = inotify_add_watch(s->inotify, path_of(s, p->a, full),
				   IN_ALL_EVENTS | (p->n[0] % 4 ? 0 : IN_DONT_FOLLOW));

	say_result(a, wd, true);
}

static void op_umask(struct side *s, const struct params *p, struct answer *a)
{
	static const mode_t masks[] = {022, 0, 077, 027, 002};

	umask(PICK(masks, p->n[0]));
}

const struct operation map_operations[] = {
	{"mmap", op_mmap, 5, false, false, true, false},
	{"load", op_load, 4, false, false, true, false},
	{"store", op_store, 6, false, false, true, false},
	{"munmap", op_munmap, 2, false, false, true, false},
	{"madvise", op_madvise, 2, false, false, true, false},
	{"msync", op_msync, 1, false, false, true, false},
	{"mprotect", op_mprotect, 1, false, false, false, false},
	{"watch", op_watch, 1, true, false, false, false},
	{"umask", op_umask, 1, false, false, false, false},
	{.name = NULL},
};
