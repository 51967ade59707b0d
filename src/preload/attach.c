/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * HELLO, userfaultfd, witness, ATTACH; then only the witness holds the uffd, and the program only
 * its socket. What happens when the daemon goes away: the next request finds the socket closed,
 * connects again, and says ATTACH without descriptors (the witness still has them). A daemon that
 * hangs is waited for once; then this mm is its own again, and its marks are conservative.
 */
#include "preload/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/compat.h"
#include "preload/client.h"
#include "preload/fds.h"
#include "preload/untold.h"
#include "preload/witness.h"

/* Descriptors of an attach in progress; all closed at its end, whoever has them by then. */
struct attach_fds {
	int devuffd, life, uffd, chan[2], witness;
};

bool mount_id_valid(const char *id)
{
	size_t len = 0;

	for (; id[len]; len++) {
		char c = id[len];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || c == '-'))
			return false;
	}
	return len > 0 && len < WPFS_ID_MAX;
}

int mount_find(const char *id)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		struct mount *mount = &shim.mounts[i];

		if (mount->state == MOUNT_NONE) {
			text_copy(mount->id, id, sizeof(mount->id));
			mount->state = MOUNT_KNOWN;
			return i;
		}
		if (text_equal(mount->id, id))
			return i;
	}
	return -ENOSPC;
}

static void close_if(int fd)
{
	if (fd >= 0)
		raw(close, fd);
}

static void mount_disconnect(struct mount *mount)
{
	int sock = atomic_load(&mount->sock);

	if (client_sock_ours(mount, sock))
		raw(close, sock);
	atomic_store(&mount->sock, -1);
	fds_changed();
}

/* After a time-out or nonsense: nothing more is asked. Closing tells the daemon, should it wake. */
static void mount_give_up(struct mount *mount)
{
	mount_disconnect(mount);
	mount->state = MOUNT_UNTRACKED;
	shim_say_mount(mount, ": its daemon does not answer: this program is not tracked any more, "
			      "its marks may count as dirty");
}

static int mount_connect(struct mount *mount)
{
	int sock = client_connect(mount->id);
	struct stat st;

	if (sock < 0)
		return sock;
	if (raw(fstat, sock, &st) != 0) {
		raw(close, sock);
		return -EBADF;
	}
	mount->sock_dev = st.st_dev;
	mount->sock_ino = st.st_ino;
	atomic_store(&mount->sock, sock);
	fds_changed();
	return 0;
}

static int mount_request(struct mount *mount, struct client_call *call)
{
	int sock = atomic_load(&mount->sock);

	for (int i = 0; i < CLIENT_FDS; i++)
		call->fds[i] = -1;
	if (!client_sock_ours(mount, sock)) {
		atomic_store(&mount->sock, -1);
		return -EPIPE;
	}
	return client_call(sock, ++mount->seq, call);
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

	text_copy(hello.name, shim.name, sizeof(hello.name));
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
		close_if(call.fds[i]);
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
		raw(pidfd_send_signal, fds->witness, SIGKILL, NULL, 0);
		mount->witness_pid = 0;
	}
	return err;
}

static int attach_new(struct mount *mount, struct attach_fds *fds)
{
	int err = mount_connect(mount);

	if (!err)
		err = say_hello(mount, fds);
	if (err)
		return err;
	if (fds->devuffd < 0 || fds->life < 0) {
		mount->state = MOUNT_UNTRACKED;
		shim_say_mount(mount, ": this user gets no userfaultfd from it (-o uffd=): this "
				      "program is not tracked");
		return -EPERM;
	}
	fds->uffd = (int)raw(ioctl, fds->devuffd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fds->uffd < 0 ? fds->uffd : attach_with(mount, fds, false);
}

static void attach_close(struct attach_fds *fds)
{
	close_if(fds->devuffd);
	close_if(fds->life);
	close_if(fds->uffd);
	close_if(fds->chan[0]);
	close_if(fds->chan[1]);
	close_if(fds->witness);
}

/* The daemon was started again; the witness, if any, is as it was. */
static int attach_again(struct mount *mount)
{
	struct attach_fds fds = {-1, -1, -1, {-1, -1}, -1};
	int err = mount_connect(mount);

	if (!err)
		err = say_hello(mount, &fds);
	if (!err)
		err = send_attach(mount, NULL, 0);
	attach_close(&fds);
	return err;
}

static void say_why(struct mount *mount, int err)
{
	switch (err) {
	case -ENOENT:
	case -ECONNREFUSED:
	case -EPIPE:
		shim_say_mount(mount, ": its daemon is not running: this program is not tracked");
		break;
	case -EPERM:
		shim_say_mount(mount, ": its socket is not root's: this program is not tracked");
		break;
	case -ETIMEDOUT:
	case -EPROTO:
		mount_give_up(mount);
		break;
	default:
		shim_say_mount(mount, ": cannot attach: this program is not tracked");
		break;
	}
}

static int attach_first(struct mount *mount)
{
	struct attach_fds fds = {-1, -1, -1, {-1, -1}, -1};
	int err;

	/* A filter may kill for any call that attaching needs; one from before main is no
	 * exception. */
	if (raw(prctl, PR_GET_SECCOMP, 0, 0, 0, 0) != 0) {
		mount->state = MOUNT_UNTRACKED;
		shim_say_mount(mount,
			       ": a seccomp filter is installed already: this program is not "
			       "tracked (use wpctl run, which attaches at start)");
		return -EACCES;
	}
	err = attach_new(mount, &fds);
	attach_close(&fds);
	if (!err) {
		mount->state = MOUNT_ATTACHED;
		atomic_store(&mount->was_attached, true);
	}
	return err;
}

int mount_ready(struct mount *mount)
{
	int err;

	if (mount->state == MOUNT_UNTRACKED)
		return -EACCES;
	if (mount->state == MOUNT_ATTACHED && client_sock_ours(mount, atomic_load(&mount->sock)))
		return 0;
	if (mount->state == MOUNT_ATTACHED) {
		atomic_store(&mount->sock, -1);
		err = attach_again(mount);
		/* It is there, but does not know this mm (any more), or says no. */
		if (err && err != -ECONNREFUSED && err != -ENOENT && err != -EPIPE)
			mount_give_up(mount);
		else if (err == -ENOENT && atomic_load(&mount->sock) >= 0)
			mount_give_up(mount);
	} else {
		err = attach_first(mount);
	}
	if (err) {
		say_why(mount, err);
		mount_disconnect(mount);
	} else {
		mount->said = false;
	}
	return err;
}

int mount_call(struct mount *mount, enum wpfs_op op, const void *body, size_t body_len,
	       const int *send_fd, int *status, void *reply, size_t reply_len, int *fd)
{
	struct client_call call = {
		.op = op,
		.body = body,
		.body_len = body_len,
		.send_fds = send_fd,
		.nr_send_fds = send_fd ? 1 : 0,
		.patient = op == WPFS_OP_MSYNC,
		.reply = reply,
		.reply_len = reply_len,
	};
	int err = -EPIPE;

	for (int i = 0; i < 2 && err == -EPIPE; i++) {
		err = mount_ready(mount);
		if (err)
			return err;
		err = mount_request(mount, &call);
		if (err == -EPIPE)
			mount_disconnect(mount);
	}
	if (err) {
		say_why(mount, err);
		return err;
	}
	for (int i = fd ? 1 : 0; i < CLIENT_FDS; i++)
		close_if(call.fds[i]);
	if (fd)
		*fd = call.fds[0];
	*status = call.status;
	return 0;
}

/*
 * The child's marks are in a uffd that the parent's witness got from the fork event. Only this
 * process can say which one it is: the daemon tries them on a page of its own.
 */
static int fork_attach(struct mount *mount, struct attach_fds *fds)
{
	struct wpfs_forked forked = {.cookie = mount->cookie};
	struct wpfs_forked_reply reply = {0};
	struct client_call call = {
		.op = WPFS_OP_FORKED,
		.body = &forked,
		.body_len = sizeof(forked),
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	long scratch;
	int err = mount_connect(mount);

	if (!err)
		err = say_hello(mount, fds);
	if (err)
		return err;
	if (fds->devuffd < 0 || fds->life < 0)
		return -EPERM;
	scratch = raw(mmap, NULL, SHIM_PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (raw_failed(scratch))
		return (int)scratch;
	forked.scratch = (uint64_t)scratch;
	err = mount_request(mount, &call);
	raw(munmap, scratch, SHIM_PAGE_SIZE);
	close_if(call.fds[1]);
	if (err || call.status < 0) {
		close_if(call.fds[0]);
		return err ? err : call.status;
	}
	fds->uffd = call.fds[0];
	if (fds->uffd >= 0)
		return attach_with(mount, fds, true);
	fds->uffd = (int)raw(ioctl, fds->devuffd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fds->uffd < 0 ? fds->uffd : attach_with(mount, fds, false);
}

void mount_forked(struct mount *mount, bool tracked)
{
	struct attach_fds fds = {-1, -1, -1, {-1, -1}, -1};
	int err;

	mount_disconnect(mount); /* the child's copy of the parent's socket */
	mount->witness_pid = 0;
	mount->said = false;
	untold_reset(mount);
	if (mount->state == MOUNT_NONE)
		return;
	if (!tracked)
		atomic_store(&mount->was_attached, false);
	if (mount->state == MOUNT_ATTACHED && tracked) {
		err = fork_attach(mount, &fds);
		attach_close(&fds);
		if (err) {
			mount->state = MOUNT_UNTRACKED;
			say_why(mount, err);
			mount_disconnect(mount);
		}
	} else {
		mount->state = MOUNT_KNOWN;
	}
}
