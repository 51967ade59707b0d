/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How the witness leaves everything of the program but its memory, and gives up all power, before
 * the program goes on. The order matters:
 *  - what needs privilege or a system call that the filter forbids comes first, the filter last;
 *  - descriptors go before the credentials: /proc/self/maps must be opened as the program;
 *  - a change of uid makes the *shared* memory undumpable, for the program too: put it back.
 *
 * A program with privilege: its witness must be nobody that any other process can be. A process of
 * the same uid could trace the witness, and through it write the memory of the program; so not the
 * uid `nobody`, which many services are, but one outside every allocated range. The same goes for a
 * program of an ordinary uid with capabilities: a witness of that uid without them could be traced
 * by the user's other processes, which may not trace the program.
 */
#include "preload/witness.h"

#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "preload/raw.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

#define KEPT_FDS 5

/* Closes all but the kept ones in a table of its own; the program's is never changed. */
static int leave_descriptors(const struct witness_boot *boot)
{
	unsigned keep[KEPT_FDS] = {(unsigned)boot->uffd, (unsigned)boot->chan,
				   (unsigned)boot->chan_peer, (unsigned)boot->life,
				   (unsigned)boot->program};
	unsigned flags = CLOSE_RANGE_UNSHARE, from;
	long err;

	for (int i = 1; i < KEPT_FDS; i++) { /* sort: gaps between them are closed */
		unsigned fd = keep[i];
		int at = i;

		for (; at > 0 && keep[at - 1] > fd; at--)
			keep[at] = keep[at - 1];
		keep[at] = fd;
	}
	/* From the top: with UNSHARE the kernel then does not even copy what is there. */
	err = raw(close_range, keep[KEPT_FDS - 1] + 1, ~0U, flags);
	if (err)
		return (int)err;
	from = 0;
	for (int i = 0; i < KEPT_FDS; i++) {
		if (keep[i] > from)
			err = raw(close_range, from, keep[i] - 1, 0);
		if (err)
			return (int)err;
		from = keep[i] + 1;
	}
	return 0;
}

/* Only SIGTERM is ever let in, late: it must not run a handler of the program. */
static int default_sigterm(void)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void (*restorer)(void);
		uint64_t mask;
	} dfl = {.handler = SIG_DFL};

	return (int)raw(rt_sigaction, SIGTERM, &dfl, NULL, RAW_SIGSET_BYTES);
}

struct cap_sets {
	struct __user_cap_header_struct hdr;
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

static int caps_read(struct cap_sets *caps)
{
	*caps = (struct cap_sets){.hdr = {.version = _LINUX_CAPABILITY_VERSION_3}};
	return (int)raw(capget, &caps->hdr, caps->data);
}

/* 1, 0 or -errno. */
static int program_has_power(void)
{
	uint32_t r, e, s;
	struct cap_sets caps;
	int err = (int)raw(getresuid, &r, &e, &s);

	if (!err)
		err = caps_read(&caps);
	if (err)
		return err;
	return r == 0 || e == 0 || s == 0 || caps.data[0].permitted || caps.data[1].permitted;
}

static int become_nobody_else(void)
{
	long err = raw(setgroups, 0, NULL);

	if (!err)
		err = raw(setresgid, WPFS_WITNESS_UID, WPFS_WITNESS_UID, WPFS_WITNESS_UID);
	if (!err)
		err = raw(setresuid, WPFS_WITNESS_UID, WPFS_WITNESS_UID, WPFS_WITNESS_UID);
	return (int)err;
}

static int drop_capabilities(void)
{
	struct cap_sets caps = {.hdr = {.version = _LINUX_CAPABILITY_VERSION_3}};
	int err;

	raw(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	err = (int)raw(capset, &caps.hdr, caps.data);
	if (!err)
		err = caps_read(&caps);
	if (err)
		return err;
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		if (caps.data[i].effective || caps.data[i].permitted || caps.data[i].inheritable)
			return -EPERM;
	}
	return 0;
}

static int drop_credentials(void)
{
	long dumpable = raw(prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
	int power = program_has_power(), err;

	if (power < 0)
		return power;
	err = power ? become_nobody_else() : 0;
	if (!err)
		err = drop_capabilities();
	/* Even after a failure: the program must not be left undumpable. */
	if (dumpable == 1)
		raw(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
	return err;
}

#define ALLOW(nr)                                                                                  \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1),                                           \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Of unshare(2) only the question whether somebody shares the memory: with CLONE_VM it does
 * nothing. */
#define ALLOW_UNSHARE_VM                                                                           \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_unshare, 0, 4),                                   \
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),        \
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLONE_VM, 0, 1),                               \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),                                      \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

static const struct sock_filter filter[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RAW_AUDIT_ARCH, 1, 0),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	ALLOW(__NR_ppoll),
	ALLOW(__NR_read),
	ALLOW(__NR_sendmsg),
	ALLOW(__NR_recvmsg),
	ALLOW(__NR_close),
	ALLOW(__NR_munmap),
	ALLOW(__NR_futex),
	ALLOW(__NR_exit),
	ALLOW_UNSHARE_VM,
	ALLOW(__NR_exit_group),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
};

static int install_filter(void)
{
	struct sock_fprog program = {
		.len = sizeof(filter) / sizeof(filter[0]),
		.filter = (struct sock_filter *)filter,
	};
	long err = raw(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);

	if (!err)
		err = raw(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
			  &program);
	return (int)err;
}

int witness_give_up_power(struct witness_boot *boot)
{
	const struct rlimit no_core = {0, 0};
	long err;

	/* A session of its own: no signal to the program's group or terminal means the witness. */
	err = raw(setsid);
	if (err < 0)
		return (int)err;
	raw(prctl, PR_SET_NAME, "wpfs-witness", 0, 0, 0);
	err = raw(chdir, "/");
	if (!err)
		err = leave_descriptors(boot);
	if (err)
		return (int)err;
	boot->maps = (int)raw(openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (boot->maps < 0)
		return boot->maps;
	err = raw(prlimit64, 0, RLIMIT_CORE, &no_core, NULL);
	if (!err)
		err = default_sigterm();
	if (!err)
		err = drop_credentials();
	if (!err)
		err = install_filter();
	return (int)err;
}
