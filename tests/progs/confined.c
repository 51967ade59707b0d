/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Installs a seccomp filter that kills for everything a program does not need that maps and writes
 * a file, and does that. usage: confined FILE [ROOT] (then past libc, so that nobody notices; FILE
 * is in ROOT, which is the root from then on)
 */
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/compat.h"
#include "preload/raw.h"

#define KILL(nr)                                                                                   \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1),                                           \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* What attaching takes. */
static struct sock_filter filter[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	KILL(SYS_socket),
	KILL(SYS_connect),
	KILL(SYS_socketpair),
	KILL(SYS_setsockopt),
	KILL(SYS_getsockopt),
	KILL(SYS_clone),
	KILL(SYS_clone3),
	KILL(SYS_pidfd_open),
	KILL(SYS_userfaultfd),
	KILL(SYS_fcntl),
	KILL(SYS_seccomp),
	KILL(SYS_setresuid),
	KILL(SYS_madvise),
	KILL(SYS_statmount),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

static long install(const struct sock_fprog *prog, bool unnoticed)
{
	if (unnoticed)
		return raw(seccomp, SECCOMP_SET_MODE_FILTER, 0, prog);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prog);
}

int main(int argc, char **argv)
{
	struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};
	char *p;
	int fd;

	if (argc > 2 && chroot(argv[2]) < 0)
		return 1;
	fd = argc > 1 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;
	if (fd < 0 || ftruncate(fd, 4096) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    install(&prog, argc > 2) < 0)
		return 1;
	p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return 1;
	p[0] = 1;
	if (munmap(p, 4096) < 0)
		return 1;
	return write(STDOUT_FILENO, "ok\n", 3) == 3 ? 0 : 1;
}
