/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The witness alone, without a daemon: the test plays it. Each test forks a program, which maps a
 * tmpfs file, arms it with WP_ASYNC and starts a witness; the test then does to it what life does.
 * Needs root, as the daemon does.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/fdio.h"
#include "ipc/packet.h"
#include "preload/discover.h"
#include "preload/raw.h"
#include "preload/witness.h"

#define PAGES	256
#define BALLAST (64ul << 20) /* bytes of ordinary memory that must not stay */
#define WAIT_MS 20000

/* What the program tells the test; the packet carries a pidfd of the witness. */
struct started {
	int witness;
	int uffd, chan; /* in the witness's table */
	uint64_t addr;
};

/* Written by what runs in the witness in the attack; shared with the test. */
struct attack {
	_Atomic int ran, setuid_ret, open_ret;
};

struct scene {
	int program;	/* pid */
	int program_fd; /* pidfd, like the next */
	int witness_fd;
	int talk; /* seqpacket with the program */
	int life; /* write end: ours, the daemon's */
	struct started started;
	struct attack *attack;
	_Alignas(8) char buf[256];
};

static int arm(void *addr)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_EVENT_FORK |
			    UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_WP_UNPOPULATED |
			    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	struct uffdio_register reg = {.range = {(uint64_t)addr, PAGES * 4096},
				      .mode = UFFDIO_REGISTER_MODE_WP};
	struct uffdio_writeprotect wp = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg) ||
	    ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
		_exit(40);
	return fd;
}

/* In the program: everything up to a witness that runs. */
static struct started program_start(const struct scene *s, int life)
{
	struct witness_args args = {.life = life, .started = true, .reads_events = true};
	struct started started;
	struct wpfs_hdr hdr = {0};
	uint64_t all = ~0ull, mask;
	struct stat st;
	int fd = (int)syscall(SYS_memfd_create, "pages", 0), pidfd;
	char *addr;

	ftruncate(fd, PAGES * 4096);
	fstat(fd, &st);
	discover_add(st.st_dev, 0);
	addr = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	args.uffd = arm(addr);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, args.chan) < 0)
		_exit(41);
	raw(rt_sigprocmask, SIG_SETMASK, &all, &mask, RAW_SIGSET_BYTES);
	started.witness = witness_start(&args, &pidfd);
	raw(rt_sigprocmask, SIG_SETMASK, &mask, NULL, RAW_SIGSET_BYTES);
	if (started.witness < 0)
		_exit(42);
	started.uffd = args.uffd;
	started.chan = args.chan[1];
	started.addr = (uint64_t)addr;
	close(args.uffd);
	close(args.chan[0]);
	close(args.chan[1]);
	close(life);
	ipc_send(s->talk, &hdr, &started, sizeof(started), &pidfd, 1);
	close(pidfd);
	return started;
}

/* The program waits for the test's word, or for its end. */
static void program_wait(const struct scene *s)
{
	_Alignas(8) char buf[64];

	if (ipc_recv(s->talk, buf, sizeof(buf), NULL) <= 0)
		_exit(0);
}

static void program_tell(const struct scene *s)
{
	struct wpfs_hdr hdr = {0};

	ipc_send(s->talk, &hdr, NULL, 0, NULL, 0);
}

static void tell(const struct scene *s)
{
	struct wpfs_hdr hdr = {0};

	assert_int_equal(ipc_send(s->talk, &hdr, NULL, 0, NULL, 0), 0);
}

static void hear(struct scene *s)
{
	assert_true(ipc_recv(s->talk, s->buf, sizeof(s->buf), NULL) > 0);
}

/* Runs `fn` as a program with a witness; returns when the witness is there. */
static void scene_start(struct scene *s, void (*fn)(struct scene *, struct started))
{
	struct ipc_fds fds = IPC_FDS_INIT;
	int sv[2], life[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(pipe2(life, O_CLOEXEC), 0);
	s->program = fork();
	if (s->program == 0) {
		close(sv[0]);
		close(life[1]);
		s->talk = sv[1];
		setpgid(0, 0);
		fn(s, program_start(s, life[0]));
		_exit(0);
	}
	close(sv[1]);
	close(life[0]);
	s->talk = sv[0];
	s->life = life[1];
	s->program_fd = (int)syscall(SYS_pidfd_open, s->program, 0);
	assert_int_equal(ipc_recv(s->talk, s->buf, sizeof(s->buf), &fds),
			 sizeof(struct wpfs_hdr) + sizeof(s->started));
	memcpy(&s->started, s->buf + sizeof(struct wpfs_hdr), sizeof(s->started));
	s->witness_fd = fds.fd[0];
}

static bool ends(int pidfd)
{
	struct pollfd polled = {.fd = pidfd, .events = POLLIN};

	return poll(&polled, 1, WAIT_MS) == 1;
}

static void kill_program(struct scene *s)
{
	assert_int_equal(kill(s->program, SIGKILL), 0);
	assert_int_equal(waitpid(s->program, NULL, 0), s->program);
	s->program = 0;
}

static int scene_setup(void **state)
{
	struct scene *s = calloc(1, sizeof(*s));

	if (!s || geteuid() != 0)
		return -1;
	s->attack = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	s->witness_fd = s->talk = s->life = s->program_fd = -1;
	*state = s;
	return 0;
}

static int scene_teardown(void **state)
{
	struct scene *s = *state;

	if (s->program > 0) {
		kill(s->program, SIGKILL);
		waitpid(s->program, NULL, 0);
	}
	if (s->witness_fd >= 0) {
		syscall(SYS_pidfd_send_signal, s->witness_fd, SIGKILL, NULL, 0);
		ends(s->witness_fd);
		close(s->witness_fd);
	}
	close_fd(&s->talk);
	close_fd(&s->life);
	close_fd(&s->program_fd);
	munmap(s->attack, 4096);
	free(s);
	return 0;
}

/* Marked pages of [addr, addr + PAGES) in the mm of pid, one byte each. */
static void read_marks(int pid, uint64_t addr, char *marked)
{
	struct page_region regions[PAGES];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = addr,
		.end = addr + PAGES * 4096,
		.vec = (uint64_t)regions,
		.vec_len = PAGES,
		.category_inverted = PAGE_IS_WRITTEN,
		.category_mask = PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_WPALLOWED,
	};
	_cleanup_close_ int fd = -1;
	char path[64];
	int nr;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	nr = ioctl(fd, PAGEMAP_SCAN, &arg);
	assert_true(nr >= 0);
	memset(marked, 0, PAGES);
	for (int i = 0; i < nr; i++) {
		for (uint64_t at = regions[i].start; at < regions[i].end; at += 4096)
			marked[(at - addr) / 4096] = 1;
	}
}

/* A field of /proc/PID/status as a number, in the base it has. */
static unsigned long long status_field(int pid, const char *field, int base)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *at;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	assert_int_equal(fdio_read_file(AT_FDCWD, path, &text, NULL), 0);
	at = strstr(text, field);
	assert_non_null(at);
	return strtoull(at + strlen(field), NULL, base);
}

/* Waits until the kernel or a task has done what takes no message: looks again, bounded. */
static void wait_for(bool (*fn)(const struct scene *), const struct scene *s)
{
	for (int i = 0; i < WAIT_MS / 2; i++) {
		if (fn(s))
			return;
		poll(NULL, 0, 2);
	}
	fail_msg("waited in vain");
}

static char *read_maps(const struct scene *s)
{
	char path[64], *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", s->started.witness);
	assert_int_equal(fdio_read_file(AT_FDCWD, path, &maps, NULL), 0);
	return maps;
}

/* The stack is the last of the program's mappings: it has unmapped everything. */
static bool unmapped(const struct scene *s)
{
	_cleanup_free_ char *maps = read_maps(s);

	return !strstr(maps, "[stack]");
}

/* ---- */

static void program_writes(struct scene *s, struct started started)
{
	char *addr = (char *)started.addr;

	memset(malloc(BALLAST), 1, BALLAST);
	for (int i = 0; i < PAGES; i += 3)
		addr[i * 4096] = 1;
	program_tell(s);
	program_wait(s);
	for (;;) {
		for (int i = 1; i < PAGES; i += 3)
			addr[i * 4096]++;
	}
}

static void test_marks_outlive_kill(void **state)
{
	struct scene *s = *state;
	_cleanup_free_ char *maps = NULL;
	char marked[PAGES];

	scene_start(s, program_writes);
	hear(s);
	read_marks(s->started.witness, s->started.addr, marked);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(marked[i], i % 3 != 0);
	tell(s); /* from here on it writes others too, until it is killed in the middle of that */
	kill_program(s);
	wait_for(unmapped, s);
	read_marks(s->started.witness, s->started.addr, marked);
	for (int i = 0; i < PAGES; i++) {
		if (i % 3 != 1)
			assert_int_equal(marked[i], i % 3 == 2);
	}
	/* No program text, heap or library is left; the mapping is. */
	maps = read_maps(s);
	assert_null(strstr(maps, "libc.so"));
	assert_null(strstr(maps, "[heap]"));
	assert_non_null(strstr(maps, "memfd:pages"));
	assert_true(status_field(s->started.witness, "RssAnon:", 10) < 1024); /* KiB */
}

static void program_holds(struct scene *s, struct started started)
{
	program_wait(s);
}

/* Pipe, socket, flock and OFD lock of a killed program are free when its death is known. */
static void test_descriptors_are_free_at_once(void **state)
{
	struct scene *s = *state;
	char file[] = "/tmp/wpfs-witness-XXXXXX";
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int held = mkostemp(file, O_CLOEXEC), ofd, mine, pipes[2], socks[2];
	char c;

	assert_true(held >= 0);
	ofd = open(file, O_RDWR);
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, socks), 0);
	assert_int_equal(flock(held, LOCK_EX), 0);
	assert_int_equal(fcntl(ofd, F_OFD_SETLK, &lock), 0);
	scene_start(s, program_holds);
	/* From here on only the program has them. */
	close(held);
	close(ofd);
	close(pipes[1]);
	close(socks[1]);
	mine = open(file, O_RDWR | O_CLOEXEC);
	assert_int_equal(flock(mine, LOCK_EX | LOCK_NB), -1);
	assert_int_equal(fcntl(mine, F_OFD_SETLK, &other), -1);
	kill_program(s);
	assert_int_equal(flock(mine, LOCK_EX | LOCK_NB), 0);
	assert_int_equal(fcntl(mine, F_OFD_SETLK, &other), 0);
	fcntl(pipes[0], F_SETFL, O_NONBLOCK);
	assert_int_equal(read(pipes[0], &c, 1), 0);
	assert_int_equal(recv(socks[0], &c, 1, MSG_DONTWAIT), 0);
	close(mine);
	close(pipes[0]);
	close(socks[0]);
	unlink(file);
}

static void program_forks(struct scene *s, struct started started)
{
	char *addr = (char *)started.addr;
	pid_t child;

	addr[0] = 1;
	child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (child == 0) {
		addr[4096] = 1;
		program_tell(s);
		for (;;)
			pause();
	}
	addr[2 * 4096] = 1;
	program_tell(s);
	program_wait(s);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* The uffd of a fork child is kept by the parent's witness, is listed, and is closed when told so.
 */
static void test_fork_event(void **state)
{
	struct scene *s = *state;
	struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_LIST};
	struct wpfs_witness_fds list;
	_cleanup_close_ int chan = -1, uffd = -1;
	char marked[PAGES];

	scene_start(s, program_forks);
	hear(s);
	hear(s);
	chan = (int)syscall(SYS_pidfd_getfd, s->witness_fd, s->started.chan, 0);
	assert_true(chan >= 0);
	assert_int_equal(send(chan, &cmd, sizeof(cmd), 0), sizeof(cmd));
	assert_int_equal(recv(chan, &list, sizeof(list), 0), 8);
	assert_int_equal(list.nr, 1);
	uffd = (int)syscall(SYS_pidfd_getfd, s->witness_fd, list.fd[0], 0);
	assert_true(uffd >= 0);
	read_marks(s->started.witness, s->started.addr, marked);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(marked[i], i != 0 && i != 2);
	cmd.op = WPFS_WITNESS_CLOSE;
	cmd.fd = s->started.uffd; /* not a child's: stays */
	assert_int_equal(send(chan, &cmd, sizeof(cmd), 0), sizeof(cmd));
	cmd.fd = list.fd[0];
	assert_int_equal(send(chan, &cmd, sizeof(cmd), 0), sizeof(cmd));
	cmd.op = WPFS_WITNESS_LIST;
	assert_int_equal(send(chan, &cmd, sizeof(cmd), 0), sizeof(cmd));
	assert_int_equal(recv(chan, &list, sizeof(list), 0), 4);
	assert_int_equal(list.nr, 0);
	read_marks(s->started.witness, s->started.addr, marked);
	assert_int_equal(marked[1], 1);
	tell(s);
	assert_int_equal(waitpid(s->program, NULL, 0), s->program);
	s->program = 0;
}

static void program_forks_much(struct scene *s, struct started started)
{
	for (int i = 0; i < 200; i++) {
		pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

		if (child == 0)
			_exit(0);
		waitpid(child, NULL, 0);
	}
	program_tell(s);
	program_wait(s);
}

/* More children than the table holds, and a daemon that takes none: the program never waits. */
static void test_many_forks(void **state)
{
	struct scene *s = *state;

	scene_start(s, program_forks_much);
	hear(s);
}

static void program_moves(struct scene *s, struct started started)
{
	char *addr = (char *)started.addr;
	uint64_t to;
	struct wpfs_hdr hdr = {0};

	addr[5 * 4096] = 1;
	to = (uint64_t)mmap(NULL, PAGES * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	to = (uint64_t)mremap(addr, PAGES * 4096, PAGES * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	ipc_send(s->talk, &hdr, &to, sizeof(to), NULL, 0);
	program_wait(s);
}

static void test_mremap_event(void **state)
{
	struct scene *s = *state;
	char marked[PAGES];
	uint64_t to;

	scene_start(s, program_moves);
	hear(s);
	memcpy(&to, s->buf + sizeof(struct wpfs_hdr), sizeof(to));
	read_marks(s->started.witness, to, marked);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(marked[i], i != 5);
}

static void program_has_no_children(struct scene *s, struct started started)
{
	struct wpfs_hdr hdr = {0};
	int err;

	err = waitpid(-1, NULL, 0) < 0 ? errno : 0;
	ipc_send(s->talk, &hdr, &err, sizeof(err), NULL, 0);
	program_wait(s);
}

/* wait() does not see it, signals to the program's group do not reach it, nor does SIGTERM, yet. */
static void test_out_of_the_way(void **state)
{
	struct scene *s = *state;
	int err;

	scene_start(s, program_has_no_children);
	hear(s);
	memcpy(&err, s->buf + sizeof(struct wpfs_hdr), sizeof(err));
	assert_int_equal(err, ECHILD);
	assert_int_equal(kill(s->started.witness, SIGTERM), 0);
	assert_int_equal(kill(-s->program, SIGKILL), 0);
	assert_int_equal(waitpid(s->program, NULL, 0), s->program);
	s->program = 0;
	/* The pending SIGTERM is let in once the program is dead. */
	assert_true(ends(s->witness_fd));
}

static void test_no_power(void **state)
{
	struct scene *s = *state;
	int w;

	scene_start(s, program_holds);
	w = s->started.witness;
	assert_int_equal(status_field(w, "Uid:", 10), WPFS_WITNESS_UID);
	assert_int_equal(status_field(w, "Gid:", 10), WPFS_WITNESS_UID);
	assert_int_equal(status_field(w, "CapInh:", 16), 0);
	assert_int_equal(status_field(w, "CapPrm:", 16), 0);
	assert_int_equal(status_field(w, "CapEff:", 16), 0);
	assert_int_equal(status_field(w, "CapAmb:", 16), 0);
	assert_int_equal(status_field(w, "NoNewPrivs:", 10), 1);
	assert_int_equal(status_field(w, "Seccomp:", 10), 2);
	assert_int_equal(status_field(w, "SigBlk:", 16), 0xfffffffffffbfeff); /* all that can be */
	assert_int_equal(status_field(w, "NSsid:", 10), w);
}

/* A process of another uid, the common `nobody` first of all, cannot get at the witness. */
static void test_cannot_be_traced(void **state)
{
	static const uid_t uids[] = {65534, 1, 1000};
	struct scene *s = *state;

	scene_start(s, program_holds);
	/* The program is as dumpable as before: its own processes may look at it. */
	assert_int_equal(status_field(s->program, "Uid:", 10), 0);
	for (size_t i = 0; i < sizeof(uids) / sizeof(uids[0]); i++) {
		pid_t tracer = fork();
		int status;

		if (tracer == 0) {
			if (setgroups(0, NULL) || setresgid(uids[i], uids[i], uids[i]) ||
			    setresuid(uids[i], uids[i], uids[i]))
				_exit(255);
			_exit(ptrace(PTRACE_SEIZE, s->started.witness, 0, 0) < 0 ? errno : 0);
		}
		assert_int_equal(waitpid(tracer, &status, 0), tracer);
		assert_int_equal(WEXITSTATUS(status), EPERM);
	}
}

/* ---- a program that was root, is not any more, and tries to be it through the witness ---- */

#if defined(__x86_64__) /* the attack is written in its machine code */

static struct attack *attack_page;

/* Runs as the witness, with what it may do. */
static void attack_payload(void)
{
	attack_page->ran = 1;
	attack_page->setuid_ret = (int)raw(setresuid, 0, 0, 0) + 1000;
	attack_page->open_ret = (int)raw(openat, AT_FDCWD, "/etc/shadow", O_RDONLY) + 1000;
	for (;;)
		raw(sched_yield);
}

static void program_attacks(struct scene *s, struct started started)
{
	/* Wherever in its loop the witness wakes up, it slides into the payload. */
	static const unsigned char jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0};
	unsigned char *code = (unsigned char *)witness_loop;
	uint64_t page = (uint64_t)code & ~4095ull, target = (uint64_t)attack_payload;
	size_t len = 1500;

	attack_page = s->attack;
	if (setgroups(0, NULL) || setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000) ||
	    setresuid(0, 0, 0) == 0)
		_exit(43);
	if (mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC))
		_exit(44);
	memset(code, 0x90, len);
	memcpy(code + len, jump, sizeof(jump));
	memcpy(code + len + 2, &target, sizeof(target));
	/* Wakes it: an event to read. */
	mremap((void *)started.addr, PAGES * 4096, PAGES * 4096, MREMAP_MAYMOVE | MREMAP_FIXED,
	       mmap(NULL, PAGES * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	program_wait(s);
}

static void test_power_cannot_be_taken_back(void **state)
{
	struct scene *s = *state;

	scene_start(s, program_attacks);
	assert_true(ends(s->witness_fd)); /* the filter killed it */
	assert_int_equal(s->attack->ran, 1);
	assert_int_equal(s->attack->setuid_ret, 0); /* never returned */
	assert_int_equal(s->attack->open_ret, 0);
	assert_int_equal(waitpid(s->program, NULL, WNOHANG), 0); /* the program lives */
}

#endif

/* ---- */

/* The daemon goes, comes again, and gives the witness a new life pipe. */
static void test_life_is_replaced(void **state)
{
	struct scene *s = *state;
	struct {
		struct cmsghdr hdr;
		int fd;
	} control = {.hdr = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_LIFE};
	struct iovec iov = {&cmd, sizeof(cmd)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = control.hdr.cmsg_len};
	struct wpfs_witness_fds list;
	_cleanup_close_ int chan = -1;
	int life[2];

	scene_start(s, program_holds);
	close_fd(&s->life);
	chan = (int)syscall(SYS_pidfd_getfd, s->witness_fd, s->started.chan, 0);
	assert_int_equal(pipe2(life, O_CLOEXEC), 0);
	control.fd = life[0];
	assert_int_equal(sendmsg(chan, &msg, 0), sizeof(cmd));
	close(life[0]);
	cmd.op = WPFS_WITNESS_LIST;
	assert_int_equal(send(chan, &cmd, sizeof(cmd), 0), sizeof(cmd));
	assert_int_equal(recv(chan, &list, sizeof(list), 0), 4);
	/* The only reader of the new pipe is the witness. */
	assert_int_equal(write(life[1], "", 1), 1);
	close(life[1]);
}

int main(void)
{
#define SCENE_TEST(fn) cmocka_unit_test_setup_teardown(fn, scene_setup, scene_teardown)
	const struct CMUnitTest tests[] = {
		SCENE_TEST(test_marks_outlive_kill),
		SCENE_TEST(test_descriptors_are_free_at_once),
		SCENE_TEST(test_fork_event),
		SCENE_TEST(test_many_forks),
		SCENE_TEST(test_mremap_event),
		SCENE_TEST(test_out_of_the_way),
		SCENE_TEST(test_no_power),
		SCENE_TEST(test_cannot_be_traced),
#if defined(__x86_64__)
		SCENE_TEST(test_power_cannot_be_taken_back),
#endif
		SCENE_TEST(test_life_is_replaced),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
