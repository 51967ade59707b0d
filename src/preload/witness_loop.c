/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The life of the witness: it reads the events of wpfs's userfaultfds at once (a fork or mremap of
 * the program waits for that), keeps the uffds of children until the daemon has taken them, and
 * looks at who is still there. Its data are on its own stack; libc is not there any more once the
 * program died.
 */
#include "preload/witness.h"

#include <errno.h>
#include <linux/sched.h>
#include <linux/time_types.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/compat.h"
#include "ipc/untold.h"
#include "preload/discover.h"
#include "preload/raw.h"

#define ALONE_S 60 /* without program and daemon */

enum { AT_CHAN, AT_PROGRAM, AT_LIFE, AT_UFFD, AT_CHILDREN };

struct witness {
	struct witness_boot *boot;
	bool started, program_dead, unmapped;
	unsigned alone_s;
	uint32_t nr_children;
	int32_t children[WPFS_WITNESS_FDS + WPFS_WITNESS_FILES]; /* files too, with KEEP */
};

/* False: there is no room for it. */
static bool child_add(struct witness *w, int fd, uint32_t most)
{
	if (w->nr_children < most) {
		w->children[w->nr_children++] = fd;
		return true;
	}
	raw(close, fd);
	return false;
}

static void child_drop(struct witness *w, int fd)
{
	for (uint32_t i = 0; i < w->nr_children; i++) {
		if (w->children[i] == fd) {
			raw(close, fd);
			w->children[i] = w->children[--w->nr_children];
			return;
		}
	}
}

static void read_events(struct witness *w, int uffd)
{
	struct uffd_msg msgs[8];
	long n;

	do {
		n = raw(read, uffd, msgs, sizeof(msgs));
		for (long i = 0; i < n / (long)sizeof(msgs[0]); i++) {
			/* Without it the child's marks end here, and nothing else would tell of it.
			 */
			if (msgs[i].event == UFFD_EVENT_FORK &&
			    !child_add(w, (int)msgs[i].arg.fork.ufd, WPFS_WITNESS_FDS) &&
			    w->boot->untold)
				untold_count_child(w->boot->untold);
		}
	} while (n == -EINTR || n == (long)sizeof(msgs));
}

static void send_list(const struct witness *w)
{
	struct wpfs_witness_fds fds = {.nr = w->nr_children < WPFS_WITNESS_FDS ? w->nr_children
									       : WPFS_WITNESS_FDS};
	struct iovec iov = {.iov_base = &fds,
			    .iov_len = offsetof(struct wpfs_witness_fds, fd) +
				       fds.nr * sizeof(fds.fd[0])};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	for (uint32_t i = 0; i < fds.nr; i++)
		fds.fd[i] = w->children[i];
	raw(sendmsg, w->boot->chan, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* With CLONE_VM unshare(2) does nothing but to fail where another task has the memory too. */
static bool is_alone(void)
{
	return raw(unshare, CLONE_VM) == 0;
}

static void send_alone(const struct witness *w, int32_t question)
{
	struct wpfs_witness_alone answer = {.question = question, .alone = is_alone()};
	struct iovec iov = {.iov_base = &answer, .iov_len = sizeof(answer)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	raw(sendmsg, w->boot->chan, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* One command; a descriptor that came with anything but LIFE or KEEP is closed. */
static void read_command(struct witness *w)
{
	struct wpfs_witness_cmd cmd = {0};
	union {
		struct cmsghdr hdr;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = &cmd, .iov_len = sizeof(cmd)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = CMSG_LEN(sizeof(int))};
	long n = raw(recvmsg, w->boot->chan, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd = -1;

	if (n >= 0 && msg.msg_controllen >= CMSG_LEN(sizeof(int)) &&
	    control.hdr.cmsg_type == SCM_RIGHTS)
		fd = *(const int *)CMSG_DATA(&control.hdr);
	if (n == (long)sizeof(cmd)) {
		switch (cmd.op) {
		case WPFS_WITNESS_LIST:
			send_list(w);
			break;
		case WPFS_WITNESS_CLOSE:
			child_drop(w, cmd.fd);
			break;
		case WPFS_WITNESS_ALONE:
			send_alone(w, cmd.fd);
			break;
		case WPFS_WITNESS_START:
			w->started = true;
			break;
		case WPFS_WITNESS_LIFE:
			if (fd < 0)
				break;
			if (w->boot->life >= 0)
				raw(close, w->boot->life);
			w->boot->life = fd;
			fd = -1;
			w->alone_s = 0;
			break;
		case WPFS_WITNESS_KEEP:
			/* Not polled: a witness that keeps files reads no events. */
			if (fd >= 0 && !w->boot->reads_events) {
				child_add(w, fd, WPFS_WITNESS_FDS + WPFS_WITNESS_FILES);
				fd = -1;
			}
			break;
		default:
			break;
		}
	}
	if (fd >= 0)
		raw(close, fd);
}

static unsigned fill(const struct witness *w, struct pollfd *polled)
{
	bool reads = w->boot->reads_events;

	polled[AT_CHAN] = (struct pollfd){.fd = w->boot->chan, .events = POLLIN};
	polled[AT_PROGRAM] =
		(struct pollfd){.fd = w->program_dead ? -1 : w->boot->program, .events = POLLIN};
	polled[AT_LIFE] = (struct pollfd){.fd = w->boot->life, .events = 0};
	polled[AT_UFFD] =
		(struct pollfd){.fd = reads && w->started ? w->boot->uffd : -1, .events = POLLIN};
	if (!reads)
		return AT_CHILDREN;
	for (uint32_t i = 0; i < w->nr_children; i++)
		polled[AT_CHILDREN + i] = (struct pollfd){.fd = w->children[i], .events = POLLIN};
	return AT_CHILDREN + w->nr_children;
}

static void program_died(struct witness *w)
{
	w->program_dead = true;
	if (!discover_any_wpfs())
		raw(exit_group, 0); /* it never mapped a file of a mount: nothing to witness */
}

/* Does this memory have a witness of another mount too, or did it? */
static bool has_companions(void)
{
	unsigned nr = 0;

	for (int i = 0; i < WITNESS_MAX; i++)
		nr += atomic_load(&witness_stacks[i]) != 0;
	return nr > 1;
}

/*
 * A second without a word since the program died. At first nothing is unmapped: a daemon that is
 * there needs milliseconds to let the witness go. Another process may have this memory too (of a
 * clone(2) with CLONE_VM, or a vfork(2) that has not come to its exec): it goes on, so nothing is
 * unmapped, and as its marks and its pages are kept by what the witness holds, that stays. Two
 * witnesses must not wait for each other, though.
 */
static void second_over(struct witness *w)
{
	bool alone = is_alone();

	if (!w->unmapped && alone) {
		witness_unmap_rest(w->boot);
		w->unmapped = true;
	}
	if (w->boot->life < 0 && (alone || has_companions()))
		w->alone_s++;
}

static void look_at(struct witness *w, const struct pollfd *polled, unsigned nr)
{
	/* Events first: somebody waits for them. From the end: dropping moves the last one down. */
	for (unsigned i = nr; i-- > AT_CHILDREN;) {
		if (polled[i].revents & POLLIN)
			read_events(w, polled[i].fd);
		else if (polled[i].revents)
			child_drop(w, polled[i].fd);
	}
	if (polled[AT_UFFD].revents & POLLIN)
		read_events(w, polled[AT_UFFD].fd);
	else if (polled[AT_UFFD].revents)
		w->started = false; /* not a uffd that can be read: polling it would spin */
	if (polled[AT_LIFE].revents) {
		raw(close, w->boot->life);
		w->boot->life = -1;
	}
	if (polled[AT_CHAN].revents)
		read_command(w);
	if (polled[AT_PROGRAM].revents)
		program_died(w);
}

void witness_loop(struct witness_boot *boot)
{
	const uint64_t no_signal = ~(uint64_t)0, sigterm_only = ~(1ull << (SIGTERM - 1));
	struct pollfd polled[AT_CHILDREN + WPFS_WITNESS_FDS];
	struct witness w = {.boot = boot, .started = boot->started};

	while (w.alone_s < ALONE_S) {
		struct __kernel_timespec second = {.tv_sec = 1};
		bool alone = w.program_dead && (boot->life < 0 || !w.unmapped);
		unsigned nr = fill(&w, polled);
		long n = raw(ppoll, polled, nr, alone ? &second : NULL,
			     w.program_dead ? &sigterm_only : &no_signal, RAW_SIGSET_BYTES);

		if (n > 0)
			look_at(&w, polled, nr);
		else if (n == 0)
			second_over(&w);
		else if (n != -EINTR)
			break;
	}
	raw(exit_group, 0);
	__builtin_unreachable();
}
