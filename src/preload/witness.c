/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Starting the witness, seen from the program. It begins with a shared descriptor table, so that it
 * finds the descriptors it is to keep, and leaves that table itself.
 *
 * Not CLONE_VFORK (the program would wait without bound), not CLONE_FS (its working directory would
 * be the program's), not CLONE_SIGHAND (a handler of the program would run in it), and no exit
 * signal: wait(2) without __WCLONE does not see it.
 */
#include "preload/witness.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <linux/time_types.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "preload/raw.h"

#define GUARD_BYTES  4096
#define START_WAIT_S 5
#define END_WAIT_MS  2000

_Atomic uint64_t witness_stacks[WITNESS_MAX];
static int witness_pids[WITNESS_MAX]; /* of each stack; guarded by the shim's lock */

void witness_forget(void)
{
	for (int i = 0; i < WITNESS_MAX; i++)
		atomic_store(&witness_stacks[i], 0);
}

/* A slot for a stack; NULL: too many. */
static _Atomic uint64_t *stack_slot(void)
{
	for (int i = 0; i < WITNESS_MAX; i++) {
		if (atomic_load(&witness_stacks[i]) == 0)
			return &witness_stacks[i];
	}
	return NULL;
}

static void witness_main(void *arg)
{
	struct witness_boot *boot = arg;
	uint32_t starting = WITNESS_STARTING;
	int err = witness_give_up_power(boot);

	if (atomic_compare_exchange_strong(&boot->state, &starting,
					   err ? WITNESS_FAILED : WITNESS_READY))
		raw(futex, &boot->state, FUTEX_WAKE_PRIVATE, 1);
	else
		err = -ECANCELED;
	if (!err)
		witness_loop(boot);
	raw(exit_group, 0);
	__builtin_trap();
}

/* Gives the stack's mapping, guard page lowest, not copied by fork. */
static long stack_map(void)
{
	long stack = raw(mmap, NULL, WITNESS_STACK_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	long err;

	if (raw_failed(stack))
		return stack;
	err = raw(mprotect, stack, GUARD_BYTES, PROT_NONE);
	if (!err)
		err = raw(madvise, stack, WITNESS_STACK_BYTES, MADV_DONTFORK);
	if (err) {
		raw(munmap, stack, WITNESS_STACK_BYTES);
		return err;
	}
	return stack;
}

/* True when the witness is ready; a witness that takes too long is told so and must go. */
static bool wait_ready(struct witness_boot *boot)
{
	struct __kernel_timespec wait = {.tv_sec = START_WAIT_S};
	uint32_t starting = WITNESS_STARTING;

	while (atomic_load(&boot->state) == WITNESS_STARTING) {
		/* A witness that dies here (a tight RLIMIT, the OOM killer) wakes nobody. */
		if (raw(futex, &boot->state, FUTEX_WAIT_PRIVATE, WITNESS_STARTING, &wait) ==
		    -ETIMEDOUT)
			break;
	}
	atomic_compare_exchange_strong(&boot->state, &starting, WITNESS_ABANDONED);
	return atomic_load(&boot->state) == WITNESS_READY;
}

int witness_start(const struct witness_args *args, int *pidfd)
{
	unsigned long flags = CLONE_VM | CLONE_FILES | CLONE_UNTRACED | CLONE_PIDFD;
	_Atomic uint64_t *slot = stack_slot();
	struct witness_boot *boot;
	int program, pid;
	long stack;

	if (!slot)
		return -EMFILE;
	stack = stack_map();
	if (raw_failed(stack))
		return (int)stack;
	program = (int)raw(getpid);
	program = (int)raw(pidfd_open, program, 0);
	if (program < 0) {
		raw(munmap, stack, WITNESS_STACK_BYTES);
		return program;
	}
	boot = (struct witness_boot *)(stack + WITNESS_STACK_BYTES - 256);
	_Static_assert(sizeof(struct witness_boot) <= 256, "fits the top of the stack");
	*boot = (struct witness_boot){
		.uffd = args->uffd,
		.chan = args->chan[0],
		.chan_peer = args->chan[1],
		.life = args->life,
		.program = program,
		.maps = -1,
		.untold = args->untold,
		.started = args->started,
		.reads_events = args->reads_events,
	};
	*pidfd = -1;
	atomic_store(slot, (uint64_t)stack);
	pid = (int)raw_clone(flags, boot, pidfd, witness_main, boot);
	if (pid < 0) {
		atomic_store(slot, 0);
		raw(close, program);
		raw(munmap, stack, WITNESS_STACK_BYTES);
		return pid;
	}
	if (!wait_ready(boot)) {
		/* Its stack stays mapped: it may not be dead yet. */
		raw(pidfd_send_signal, *pidfd, SIGKILL, NULL, 0);
		raw(wait4, pid, NULL, WNOHANG | __WCLONE, NULL);
		raw(close, *pidfd);
		*pidfd = -1;
		pid = -ECHILD;
	}
	witness_pids[slot - witness_stacks] = pid;
	raw(close, program);
	return pid;
}

/* True when it is dead; the program may have reaped it itself. */
static bool end_task(int pid)
{
	int pidfd = (int)raw(pidfd_open, pid, 0);
	struct pollfd polled = {.fd = pidfd, .events = POLLIN};
	struct __kernel_timespec wait = {.tv_sec = END_WAIT_MS / 1000};
	bool dead;

	if (pidfd < 0)
		return pidfd == -ESRCH;
	/* The number may be somebody else's by now: a child without an exit signal is ours. */
	if (raw(waitid, P_PIDFD, pidfd, NULL, WEXITED | WNOHANG | WNOWAIT | __WCLONE, NULL) != 0) {
		raw(close, pidfd);
		return true;
	}
	raw(pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	dead = raw(ppoll, &polled, 1, &wait, NULL, RAW_SIGSET_BYTES) == 1;
	raw(waitid, P_PIDFD, pidfd, NULL, WEXITED | WNOHANG | __WCLONE, NULL);
	raw(close, pidfd);
	return dead;
}

void witness_end(int pid)
{
	for (int i = 0; i < WITNESS_MAX; i++) {
		uint64_t stack = atomic_load(&witness_stacks[i]);

		if (!stack || witness_pids[i] != pid)
			continue;
		if (!end_task(pid))
			return; /* it may still run on it */
		atomic_store(&witness_stacks[i], 0);
		raw(munmap, stack, WITNESS_STACK_BYTES);
		return;
	}
}
