/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Only a daemon of root is talked to, and only at its own place: whatever a file system in a mount
 * says about itself picks no more than which directory of /run/wpfs is looked into.
 */
#include "preload/client.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "preload/calls.h"

#define SOCK_NUMBER 512 /* wanted: out of the way of programs that count from 3 */

static int set_timeout(int sock, int which, unsigned seconds)
{
	struct timeval tv = {.tv_sec = seconds};

	return (int)raw(setsockopt, sock, SOL_SOCKET, which, &tv, sizeof(tv));
}

/* Moves a descriptor to SOCK_NUMBER or as high as the limit allows. Takes fd over. */
int client_move_high(int fd)
{
	for (int want = SOCK_NUMBER; want > 8; want /= 2) {
		long high = raw(fcntl, fd, F_DUPFD_CLOEXEC, want);

		if (high >= 0) {
			raw(close, fd);
			return (int)high;
		}
	}
	return fd;
}

int client_socket(void)
{
	int sock = (int)raw(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	return sock < 0 ? sock : client_move_high(sock);
}

int client_join(int sock, const char *id, unsigned seconds)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t peer_len = sizeof(peer);
	size_t at;
	long err;

	at = text_copy(addr.sun_path, WPFS_RUN_DIR "/", sizeof(addr.sun_path));
	at += text_copy(addr.sun_path + at, id, sizeof(addr.sun_path) - at);
	text_copy(addr.sun_path + at, "/sock", sizeof(addr.sun_path) - at);

	err = set_timeout(sock, SO_SNDTIMEO, seconds);
	if (!err)
		err = set_timeout(sock, SO_RCVTIMEO, CLIENT_TIMEOUT_S);
	if (!err)
		err = raw(connect, sock, &addr, sizeof(addr));
	if (!err)
		err = raw(getsockopt, sock, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len);
	if (!err && peer.uid != 0)
		err = -EPERM;
	return err == -EAGAIN ? -ETIMEDOUT : (int)err;
}

int client_connect(const char *id)
{
	int sock = client_socket(), err;

	if (sock < 0)
		return sock;
	err = client_join(sock, id, CLIENT_TIMEOUT_S);
	if (!err)
		return sock;
	raw(close, sock);
	return err;
}

static int call_send(int sock, uint32_t seq, const struct client_call *call)
{
	struct wpfs_hdr hdr = {
		.len = (uint32_t)(sizeof(hdr) + call->body_len),
		.version = WPFS_WIRE_VERSION,
		.op = (uint16_t)call->op,
		.seq = seq,
	};
	struct iovec iov[2] = {
		{.iov_base = &hdr, .iov_len = sizeof(hdr)},
		{.iov_base = (void *)call->body, .iov_len = call->body_len},
	};
	union {
		struct cmsghdr hdr;
		char buf[CMSG_SPACE(sizeof(int) * CLIENT_FDS)];
	} control = {
		.hdr = {.cmsg_len = CMSG_LEN(sizeof(int) * call->nr_send_fds),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS},
	};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
	long n;

	for (size_t i = 0; i < call->nr_send_fds; i++)
		((int *)CMSG_DATA(&control.hdr))[i] = call->send_fds[i];
	if (call->nr_send_fds > 0) {
		msg.msg_control = &control;
		msg.msg_controllen = control.hdr.cmsg_len;
	}
	do {
		n = raw(sendmsg, sock, &msg, MSG_NOSIGNAL);
	} while (n == -EINTR);
	if (n == -EAGAIN)
		return -ETIMEDOUT;
	return n < 0 ? -EPIPE : 0;
}

/*
 * Moves what came as SCM_RIGHTS into call->fds. -EPROTO if it was more than that, -EMFILE if the
 * program has no numbers left for them: the kernel then drops some, and says so the same way.
 */
static int take_fds(struct msghdr *msg, struct client_call *call)
{
	const struct cmsghdr *cmsg = msg->msg_control;
	bool cut = msg->msg_flags & MSG_CTRUNC, fit = !(msg->msg_flags & MSG_TRUNC);
	const int *fds;
	size_t nr;

	if (msg->msg_controllen < sizeof(*cmsg) || cmsg->cmsg_type != SCM_RIGHTS)
		return !fit ? -EPROTO : cut ? -EMFILE : 0;
	fds = (const int *)CMSG_DATA(cmsg);
	nr = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	for (size_t i = 0; i < nr; i++) {
		if (i < CLIENT_FDS) {
			call->fds[i] = fds[i];
		} else {
			raw(close, fds[i]);
			fit = false;
		}
	}
	if (!fit || (cut && nr >= CLIENT_FDS))
		return -EPROTO;
	return cut ? -EMFILE : 0;
}

static void drop_fds(struct client_call *call)
{
	for (int i = 0; i < CLIENT_FDS; i++) {
		if (call->fds[i] >= 0)
			raw(close, call->fds[i]);
		call->fds[i] = -1;
	}
}

static int call_receive(int sock, uint32_t seq, struct client_call *call)
{
	struct {
		struct wpfs_hdr hdr;
		char body[sizeof(struct wpfs_error)];
	} packet;
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * CLIENT_FDS)];
	struct iovec iov = {.iov_base = &packet, .iov_len = sizeof(packet)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};
	bool good;
	long n;
	int err;

	do {
		n = raw(recvmsg, sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n == -EINTR);
	if (n == -EAGAIN)
		return -ETIMEDOUT;
	if (n <= 0)
		return -EPIPE;
	err = take_fds(&msg, call);
	good = (size_t)n >= sizeof(packet.hdr) && packet.hdr.len == (size_t)n &&
	       packet.hdr.op == WPFS_OP_REPLY && packet.hdr.seq == seq;
	if (good && !err && packet.hdr.version != WPFS_WIRE_VERSION)
		err = -EPROTONOSUPPORT;
	if (good && packet.hdr.status >= 0)
		good = (size_t)n == sizeof(packet.hdr) + call->reply_len;
	if (err || !good) {
		drop_fds(call);
		return err ? err : -EPROTO;
	}
	call->status = packet.hdr.status;
	if (call->status >= 0 && call->reply)
		__builtin_memcpy(call->reply, packet.body, call->reply_len);
	return 0;
}

static _Atomic uint32_t patient; /* threads */

bool client_is_patient(void)
{
	return atomic_load(&patient) != 0 || calls_nr() != 0;
}

int client_call(int sock, uint32_t seq, struct client_call *call)
{
	int err;

	for (int i = 0; i < CLIENT_FDS; i++)
		call->fds[i] = -1;
	/* Not at every call: a program's seccomp filter may not know setsockopt(2). */
	if (call->patient) {
		atomic_fetch_add(&patient, 1);
		set_timeout(sock, SO_RCVTIMEO, CLIENT_PATIENCE_S);
	}
	err = call_send(sock, seq, call);
	if (!err)
		err = call_receive(sock, seq, call);
	if (call->patient) {
		set_timeout(sock, SO_RCVTIMEO, CLIENT_TIMEOUT_S);
		atomic_fetch_sub(&patient, 1);
	}
	return err;
}

void client_forked(void)
{
	atomic_store(&patient, 0);
}

int client_tell(int sock, uint32_t seq, const struct client_call *call)
{
	return call_send(sock, seq, call);
}

static bool is_file(int fd, uint64_t dev, uint64_t ino)
{
	struct stat st;

	return fd >= 0 && raw(fstat, fd, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

bool client_sock_ours(const struct mount *mount, int sock)
{
	return is_file(sock, mount->sock_dev, mount->sock_ino);
}

bool client_keep_ours(const struct mount *mount, int keep)
{
	return is_file(keep, mount->keep_dev, mount->keep_ino);
}
