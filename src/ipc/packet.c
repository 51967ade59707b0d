/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A packet is received whole with one recvmsg(2), whose control buffer has room for one descriptor
 * more than is allowed: a flood is then seen as a count, not only as MSG_CTRUNC, and every
 * descriptor that did arrive is closed. What an op's packets look like stands in one table.
 */
#include "ipc/packet.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for one more than IPC_FDS_MAX. */
union fd_control {
	struct cmsghdr align;
	char buf[CMSG_SPACE(sizeof(int) * (IPC_FDS_MAX + 1))];
};

struct op_layout {
	bool known;
	size_t body, reply; /* bytes */
	size_t fds;	    /* of a request, at most */
};

#define OP(op, body, reply, fds) [op] = {true, body, reply, fds}
#define SIZE(type)		 sizeof(struct type)

static const struct op_layout op_layouts[] = {
	OP(WPFS_OP_HELLO, SIZE(wpfs_hello), SIZE(wpfs_hello_reply), 0),
	OP(WPFS_OP_ATTACH, SIZE(wpfs_attach), SIZE(wpfs_attach_reply), 2),
	OP(WPFS_OP_FORKED, SIZE(wpfs_forked), SIZE(wpfs_forked_reply), 0),
	OP(WPFS_OP_MAP, SIZE(wpfs_map), SIZE(wpfs_map_reply), 0),
	OP(WPFS_OP_ANNOUNCE, SIZE(wpfs_map), 0, 0),
	OP(WPFS_OP_UNMAP, SIZE(wpfs_range), 0, 0),
	OP(WPFS_OP_REMOVE, SIZE(wpfs_range), 0, 0),
	OP(WPFS_OP_REMOVING, SIZE(wpfs_range), 0, 0),
	OP(WPFS_OP_MSYNC, SIZE(wpfs_range), 0, 0),
	OP(WPFS_OP_UFFD_PRE, SIZE(wpfs_uffd_range), 0, 0),
	OP(WPFS_OP_UFFD_POST, SIZE(wpfs_uffd_range), 0, 1),
	OP(WPFS_OP_UFFD_UNREG, SIZE(wpfs_uffd_range), 0, 0),
	OP(WPFS_OP_UFFD_CLOSE, SIZE(wpfs_uffd_close), 0, 0),
	OP(WPFS_OP_TICKET, SIZE(wpfs_ticket_request), 0, 0),
	OP(WPFS_OP_STATUS, 0, SIZE(wpfs_status), 0),
	OP(WPFS_OP_REPORT, SIZE(wpfs_select), 0, 0),
	OP(WPFS_OP_PROTECT, SIZE(wpfs_select), SIZE(wpfs_protect_reply), 0),
	OP(WPFS_OP_UNPROTECT, SIZE(wpfs_select), SIZE(wpfs_protect_reply), 0),
	OP(WPFS_OP_SYNC, SIZE(wpfs_select), 0, 0),
	OP(WPFS_OP_FORGET, SIZE(wpfs_select), 0, 0),
	OP(WPFS_OP_EVICT, SIZE(wpfs_select), SIZE(wpfs_evict_reply), 0),
	OP(WPFS_OP_LOAD, SIZE(wpfs_select), SIZE(wpfs_evict_reply), 0),
	OP(WPFS_OP_SETTLE, 0, 0, 0),
	OP(WPFS_OP_WATCH, 0, 0, 0),
	OP(WPFS_OP_TOP, 0, SIZE(wpfs_status), 0),
	OP(WPFS_OP_SELF_PROTECT, SIZE(wpfs_self), SIZE(wpfs_protect_reply), 0),
	OP(WPFS_OP_SELF_UNPROTECT, SIZE(wpfs_self), SIZE(wpfs_protect_reply), 0),
	OP(WPFS_OP_SELF_SYNC, 0, 0, 0),
	OP(WPFS_OP_SELF_RUNS, SIZE(wpfs_self), 0, 0),
};

static const struct op_layout *op_layout_of(unsigned op)
{
	if (op >= sizeof(op_layouts) / sizeof(op_layouts[0]) || !op_layouts[op].known)
		return NULL;
	return &op_layouts[op];
}

void ipc_fds_closep(struct ipc_fds *fds)
{
	for (size_t i = 0; i < IPC_FDS_MAX; i++) {
		if (fds->fd[i] >= 0)
			close(fds->fd[i]);
	}
	*fds = IPC_FDS_INIT;
}

int ipc_send(int fd, const struct wpfs_hdr *hdr, const void *body, size_t len, const int *fds,
	     size_t nr_fds)
{
	struct wpfs_hdr full = *hdr;
	struct iovec iov[2] = {
		{.iov_base = &full, .iov_len = sizeof(full)},
		{.iov_base = (void *)body, .iov_len = len},
	};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = len ? 2 : 1};
	union fd_control control;
	ssize_t n;

	if (len > WPFS_WIRE_MAX - sizeof(full))
		return -EMSGSIZE;
	if (nr_fds > IPC_FDS_MAX)
		return -EINVAL;
	full.len = (uint32_t)(sizeof(full) + len);
	full.version = WPFS_WIRE_VERSION;
	if (nr_fds > 0) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * nr_fds);
	}
	do {
		n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* Moves the message's descriptors to *fds; false if there were more than fit. */
static bool fds_take(struct msghdr *msg, struct ipc_fds *fds)
{
	bool fit = true;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		size_t nr;

		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		nr = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < nr; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(fd));
			if (fds->nr < IPC_FDS_MAX) {
				fds->fd[fds->nr++] = fd;
			} else {
				close(fd);
				fit = false;
			}
		}
	}
	return fit;
}

ssize_t ipc_recv(int fd, void *buf, size_t size, struct ipc_fds *fds)
{
	struct iovec iov = {.iov_base = buf, .iov_len = size};
	union fd_control control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct ipc_fds got = IPC_FDS_INIT;
	bool fit;
	ssize_t n;

	do {
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	fit = fds_take(&msg, &got);
	if (!fit || (msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) || (got.nr > 0 && !fds) || n == 0) {
		bool clean = fit && got.nr == 0 && !(msg.msg_flags & MSG_CTRUNC);

		ipc_fds_closep(&got);
		return n == 0 && clean ? 0 : -EPROTO;
	}
	if (fds)
		*fds = got;
	return n;
}

ssize_t ipc_op_body_size(unsigned op)
{
	const struct op_layout *layout = op_layout_of(op);

	return layout ? (ssize_t)layout->body : -EPROTO;
}

ssize_t ipc_op_reply_size(unsigned op)
{
	const struct op_layout *layout = op_layout_of(op);

	return layout ? (ssize_t)layout->reply : -EPROTO;
}

size_t ipc_op_max_fds(unsigned op)
{
	const struct op_layout *layout = op_layout_of(op);

	return layout ? layout->fds : 0;
}

static bool has_nul(const char *text, size_t size)
{
	return memchr(text, '\0', size) != NULL;
}

static bool strings_end(unsigned op, const void *body)
{
	const struct wpfs_select *select = body;
	const struct wpfs_hello *hello = body;

	switch (op) {
	case WPFS_OP_HELLO:
		return has_nul(hello->name, sizeof(hello->name));
	case WPFS_OP_REPORT:
	case WPFS_OP_PROTECT:
	case WPFS_OP_UNPROTECT:
	case WPFS_OP_SYNC:
	case WPFS_OP_FORGET:
	case WPFS_OP_EVICT:
	case WPFS_OP_LOAD:
		return has_nul(select->name, sizeof(select->name)) &&
		       has_nul(select->file, sizeof(select->file));
	default:
		return true;
	}
}

static bool header_ok(const struct wpfs_hdr *hdr, size_t len)
{
	return len >= sizeof(*hdr) && hdr->len == len && hdr->version == WPFS_WIRE_VERSION;
}

int ipc_check_request(const void *packet, size_t len, const struct ipc_fds *fds)
{
	const struct wpfs_hdr *hdr = packet;
	const struct op_layout *layout;

	if (!header_ok(hdr, len) || hdr->status != 0)
		return -EPROTO;
	layout = op_layout_of(hdr->op);
	if (!layout || len != sizeof(*hdr) + layout->body || (fds && fds->nr > layout->fds))
		return -EPROTO;
	return strings_end(hdr->op, hdr + 1) ? 0 : -EPROTO;
}

int ipc_check_reply(const void *packet, size_t len, unsigned op, unsigned seq)
{
	const struct wpfs_hdr *hdr = packet;
	const struct op_layout *layout = op_layout_of(op);
	size_t body;

	if (!layout || !header_ok(hdr, len) || hdr->op != WPFS_OP_REPLY || hdr->seq != seq)
		return -EPROTO;
	body = len - sizeof(*hdr);
	if (hdr->status >= 0)
		return body == layout->reply ? 0 : -EPROTO;
	if (body == 0)
		return 0;
	return body == sizeof(struct wpfs_error) && has_nul((const char *)(hdr + 1), body)
		       ? 0
		       : -EPROTO;
}
