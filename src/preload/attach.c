/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * HELLO, userfaultfd, witness, ATTACH; then only the witness holds the uffd, and the program only
 * its socket. To a daemon that was started again it says ATTACH without descriptors (the witness
 * still has them). A fork child whose daemon is away says that it is one when that is back.
 */
#include "preload/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/compat.h"
#include "preload/ranges.h"
#include "preload/untold.h"
#include "preload/witness.h"

/* Descriptors of an attach in progress; all closed at its end, whoever has them by then. */
struct attach_fds {
	int devuffd, life, uffd, chan[2], witness;
};

#define ATTACH_NO_FDS                                                                              \
	{                                                                                          \
		-1, -1, -1, {-1, -1}, -1                                                           \
	}

/* fds->devuffd stays -1 when the daemon gives none to this user: 0 or -errno. */
static int say_hello(struct mount *mount, struct attach_fds *fds)
{
	struct wpfs_hello hello = {.flags = shim.protect ? WPFS_HELLO_PROTECT : 0};
	struct wpfs_hello_reply reply = {0};
	struct client_call call = {
		.op = WPFS_OP_HELLO,
		.body = &hello,
		.body_len = sizeof(hello),
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	int err;

	text_copy(hello.name, mount->name, sizeof(hello.name));
	err = mount_request(mount, &call);
	if (!err && call.status < 0)
		err = call.status;
	fds->devuffd = call.fds[0];
	fds->life = call.fds[1];
	if (err)
		return err;
	mount->cookie = reply.cookie;
	mount->kind = reply.kind;
	return 0;
}

static int send_attach(struct mount *mount, const int *fds, unsigned nr_fds)
{
	struct wpfs_attach attach = {
		.nr_fds = nr_fds,
		.uffd_fd = mount->witness_uffd,
		.chan_fd = mount->witness_chan,
		.again = mount->state == MOUNT_ATTACHED,
		.untold = (uint64_t)&mount->untold,
	};
	struct wpfs_attach_reply reply;
	struct client_call call = {
		.op = WPFS_OP_ATTACH,
		.body = &attach,
		.body_len = sizeof(attach),
		.send_fds = fds,
		.nr_send_fds = nr_fds,
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	int err = mount_request(mount, &call);

	for (int i = 0; i < CLIENT_FDS; i++)
		client_close_if(call.fds[i]);
	return err ? err : call.status < 0 ? call.status : 0;
}

static void witness_begin(const int chan[2])
{
	struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_START, .fd = -1};
	struct iovec iov = {.iov_base = &cmd, .iov_len = sizeof(cmd)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	raw(sendmsg, chan[1], &msg, MSG_NOSIGNAL);
}

/* The uffd is there, new or (`inherited`) of a fork: makes the witness and tells the daemon. */
static int attach_with(struct mount *mount, struct attach_fds *fds, bool inherited)
{
	struct witness_args args = {
		.uffd = fds->uffd,
		.life = fds->life,
		.untold = &mount->untold,
		.started = inherited,
		.reads_events = mount->kind == WPFS_KIND_NATIVE,
	};
	int pid = -1, err;

	mount->witness_pid = 0;
	mount->witness_uffd = mount->witness_chan = -1;
	if (raw(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds->chan) == 0) {
		args.chan[0] = fds->chan[0];
		args.chan[1] = fds->chan[1];
		pid = witness_start(&args, &fds->witness);
	} else {
		fds->chan[0] = fds->chan[1] = -1;
	}
	if (pid > 0) {
		int both[2] = {fds->uffd, fds->witness};

		mount->witness_pid = pid;
		mount->witness_uffd = fds->uffd;
		mount->witness_chan = fds->chan[1];
		err = send_attach(mount, both, 2);
		if (!err)
			witness_begin(fds->chan);
	} else {
		err = send_attach(mount, &fds->uffd, 1);
	}
	if (err && pid > 0) {
		witness_end(pid);
		mount->witness_pid = 0;
	}
	if (!err && pid > 0)
		mount_keep(mount, &fds->uffd);
	return err;
}

/* Connects for an attach that needs a userfaultfd. */
static int attach_connect(struct mount *mount, struct attach_fds *fds)
{
	int err = mount_connect(mount);

	if (!err)
		err = say_hello(mount, fds);
	if (!err && (fds->devuffd < 0 || fds->life < 0)) {
		mount_give_up(mount, ": this user gets no userfaultfd from it (-o uffd=): this "
				     "program is not tracked");
		err = -EPERM;
	}
	return err;
}

static int attach_new(struct mount *mount, struct attach_fds *fds)
{
	int err = attach_connect(mount, fds);

	if (err)
		return err;
	fds->uffd = (int)raw(ioctl, fds->devuffd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fds->uffd < 0 ? fds->uffd : attach_with(mount, fds, false);
}

static void attach_close(struct attach_fds *fds)
{
	client_close_if(fds->devuffd);
	client_close_if(fds->life);
	client_close_if(fds->uffd);
	client_close_if(fds->chan[0]);
	client_close_if(fds->chan[1]);
	client_close_if(fds->witness);
}

/*
 * The child's marks are in a uffd that the parent's witness got from the fork event. Only this
 * process can say which one it is: the daemon tries them on a page of its own. fds->uffd is -1 if
 * there is none.
 */
static int fork_say(struct mount *mount, struct attach_fds *fds)
{
	struct wpfs_forked forked = {.cookie = mount->parent_cookie};
	struct wpfs_forked_reply reply = {0};
	struct client_call call = {
		.op = WPFS_OP_FORKED,
		.body = &forked,
		.body_len = sizeof(forked),
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	long scratch;
	int err = attach_connect(mount, fds);

	if (err)
		return err;
	scratch = raw(mmap, NULL, SHIM_PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (raw_failed(scratch))
		return (int)scratch;
	forked.scratch = (uint64_t)scratch;
	err = mount_request(mount, &call);
	raw(munmap, scratch, SHIM_PAGE_SIZE);
	client_close_if(call.fds[1]);
	if (err || call.status < 0) {
		client_close_if(call.fds[0]);
		return err ? err : call.status;
	}
	fds->uffd = call.fds[0];
	return 0;
}

static int attach_forked(struct mount *mount, struct attach_fds *fds)
{
	int err = fork_say(mount, fds);
	bool inherited = fds->uffd >= 0;

	if (err)
		return err;
	if (!inherited)
		fds->uffd =
			(int)raw(ioctl, fds->devuffd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	err = fds->uffd < 0 ? fds->uffd : attach_with(mount, fds, inherited);
	/* The daemon takes it for attached: it cannot say so a second time. */
	return mount_err_passes(mount, err) ? -ECHILD : err;
}

/*
 * The daemon was started again; the witness, if any, is as it was. A program that had mapped
 * nothing is not in the daemon's database, and becomes a new one: its witness has nothing to
 * witness.
 */
static int attach_again(struct mount *mount, struct attach_fds *fds)
{
	int err = mount_connect(mount);

	if (!err)
		err = say_hello(mount, fds);
	if (!err)
		err = send_attach(mount, NULL, 0);
	if (err != -ESRCH || ranges_of_mount((uint32_t)(mount - shim.mounts), true))
		return err;
	mount_disconnect(mount);
	attach_close(fds);
	*fds = (struct attach_fds)ATTACH_NO_FDS;
	witness_end(mount->witness_pid);
	mount_unkeep(mount);
	mount->state = MOUNT_KNOWN;
	return attach_new(mount, fds);
}

/* A filter may kill for any call that attaching needs; one from before main is no exception. */
static bool filter_forbids(struct mount *mount)
{
	if (raw(prctl, PR_GET_SECCOMP, 0, 0, 0, 0) == 0)
		return false;
	mount_give_up(mount, ": a seccomp filter is installed already: this program is not tracked "
			     "(use wpctl run, which attaches at start)");
	return true;
}

int mount_ready(struct mount *mount)
{
	struct attach_fds fds = ATTACH_NO_FDS;
	int err;

	if (mount->state == MOUNT_UNTRACKED) {
		shim_say_mount(mount, mount->why); /* at start nothing was said */
		return -EACCES;
	}
	if (mount->state == MOUNT_ATTACHED && client_sock_ours(mount, atomic_load(&mount->sock)))
		return 0;
	atomic_store(&mount->sock, -1);
	if (mount->state != MOUNT_ATTACHED && filter_forbids(mount))
		return -EACCES;
	if (mount->state == MOUNT_ATTACHED)
		err = attach_again(mount, &fds);
	else if (mount->state == MOUNT_FORKED)
		err = attach_forked(mount, &fds);
	else
		err = attach_new(mount, &fds);
	attach_close(&fds);
	if (err) {
		mount_failed(mount, err);
		mount_disconnect(mount);
		return err;
	}
	mount->state = MOUNT_ATTACHED;
	atomic_store(&mount->was_attached, true);
	mount->said = false;
	return 0;
}

/*
 * On a capped mount the uffd is there still, and with it the marks; on a native one it went with
 * the witness, and this is a new one. Whatever fails: the program is what it was, without a
 * witness.
 */
void mount_renew(struct mount *mount)
{
	struct attach_fds fds = ATTACH_NO_FDS;
	int keep = atomic_load(&mount->keep), err;

	if (mount->state != MOUNT_ATTACHED || raw(prctl, PR_GET_SECCOMP, 0, 0, 0, 0) != 0 ||
	    (mount->kind == WPFS_KIND_CAPPED && !client_keep_ours(mount, keep)))
		return;
	mount_disconnect(mount);
	witness_end(mount->witness_pid);
	mount->witness_pid = 0;
	err = attach_connect(mount, &fds);
	if (!err && mount->kind == WPFS_KIND_CAPPED)
		fds.uffd = (int)raw(fcntl, keep, F_DUPFD_CLOEXEC, 0);
	else if (!err)
		fds.uffd =
			(int)raw(ioctl, fds.devuffd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (!err && fds.uffd < 0)
		err = fds.uffd;
	if (!err && mount->kind == WPFS_KIND_CAPPED)
		mount_unkeep(mount); /* it comes back as the one that is kept */
	if (!err)
		err = attach_with(mount, &fds, mount->kind == WPFS_KIND_CAPPED);
	if (err) {
		mount_keep(mount, &fds.uffd);
		mount_disconnect(mount);
	}
	attach_close(&fds);
}

void mount_forked(struct mount *mount, bool tracked)
{
	mount_disconnect(mount); /* the child's copy of the parent's socket */
	mount_unkeep(mount);
	mount->witness_pid = 0;
	untold_reset(mount);
	if (!tracked)
		atomic_store(&mount->was_attached, false);
	if (mount->state == MOUNT_NONE || mount->state == MOUNT_UNTRACKED)
		return;
	mount->said = false;
	if (mount->state == MOUNT_ATTACHED)
		mount->parent_cookie = mount->cookie;
	if (mount->state == MOUNT_KNOWN || !tracked) {
		mount->state = MOUNT_KNOWN;
		return;
	}
	mount->state = MOUNT_FORKED;
	mount_ready(mount);
}
