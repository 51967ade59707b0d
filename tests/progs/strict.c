/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Installs a seccomp filter that kills for every system call it does not make itself, then maps,
 * writes and unmaps. usage: strict prctl|syscall|failed FILE (failed: none gets installed)
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define LEN  (64 * PAGE)

#define ALLOW(nr)                                                                                  \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1),                                           \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static struct sock_filter filter[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	ALLOW(SYS_mmap),
	ALLOW(SYS_munmap),
	ALLOW(SYS_write),
	ALLOW(SYS_close),
	ALLOW(SYS_exit_group),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
};

static int confine(const char *how)
{
	struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	if (strcmp(how, "failed") == 0)
		return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL) < 0 &&
				       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL) < 0
			       ? 0
			       : -1;
	if (strcmp(how, "syscall") == 0)
		return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

int main(int argc, char **argv)
{
	int fd = argc > 2 ? open(argv[2], O_RDWR | O_CREAT, 0600) : -1;
	char *before, *after;

	if (fd < 0 || ftruncate(fd, LEN) < 0)
		return 1;
	before = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (before == MAP_FAILED)
		return 1;
	before[PAGE] = 1;
	if (confine(argv[1]) < 0)
		return 1;
	after = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (after == MAP_FAILED)
		return 1;
	after[2 * PAGE] = 1;
	if (write(STDOUT_FILENO, "mapped\n", 7) != 7 || munmap(after, LEN) < 0 ||
	    munmap(before, LEN) < 0 || close(fd) < 0)
		return 1;
	_exit(write(STDOUT_FILENO, "done\n", 5) == 5 ? 0 : 1);
}
