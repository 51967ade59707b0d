/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The server never waits for a client: what its socket does not take at once is kept, in order, up
 * to a bound. A client that does not read costs IPC_OUTQ_MAX bytes and is then dropped.
 */
#include "ipc/server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

struct ipc_out {
	struct ipc_out *next;
	struct wpfs_hdr hdr;
	struct ipc_fds fds; /* own duplicates */
	size_t len;	    /* bytes of body */
	char body[];
};

int ipc_listen(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -errno;
	/* Nobody can connect before listen(2): there is no moment of a wrong mode. */
	if (chmod(path, 0666) < 0 || listen(fd, SOMAXCONN) < 0) {
		int err = -errno;

		unlink(path);
		return err;
	}
	return steal_fd(&fd);
}

int ipc_accept(int listen_fd, struct ipc_peer *peer)
{
	_cleanup_close_ int fd = -1;
	struct ucred cred;
	socklen_t len = sizeof(cred);

	do {
		fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	} while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0)
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	*peer = (struct ipc_peer){.pid = cred.pid, .uid = cred.uid, .gid = cred.gid};
	return steal_fd(&fd);
}

static void out_free(struct ipc_out *out)
{
	ipc_fds_closep(&out->fds);
	free(out);
}

static int outq_keep(struct ipc_outq *q, const struct wpfs_hdr *hdr, const void *body, size_t len,
		     const int *fds, size_t nr_fds)
{
	struct ipc_out *out;

	if (len > WPFS_WIRE_MAX - sizeof(*hdr))
		return -EMSGSIZE;
	if (nr_fds > IPC_FDS_MAX)
		return -EINVAL;
	if (q->bytes + sizeof(*out) + len > IPC_OUTQ_MAX)
		return -ENOBUFS;
	out = malloc(sizeof(*out) + len);
	if (!out)
		return -ENOMEM;
	*out = (struct ipc_out){.hdr = *hdr, .fds = IPC_FDS_INIT, .len = len};
	if (len > 0)
		memcpy(out->body, body, len);
	for (; out->fds.nr < nr_fds; out->fds.nr++) {
		int dup_fd = fcntl(fds[out->fds.nr], F_DUPFD_CLOEXEC, 3);

		if (dup_fd < 0) {
			int err = -errno;

			out_free(out);
			return err;
		}
		out->fds.fd[out->fds.nr] = dup_fd;
	}
	if (q->tail)
		q->tail->next = out;
	else
		q->head = out;
	q->tail = out;
	q->bytes += sizeof(*out) + len;
	return 0;
}

int ipc_outq_send(struct ipc_outq *q, int fd, const struct wpfs_hdr *hdr, const void *body,
		  size_t len, const int *fds, size_t nr_fds)
{
	int err = -EAGAIN;

	if (ipc_outq_empty(q))
		err = ipc_send(fd, hdr, body, len, fds, nr_fds);
	return err == -EAGAIN ? outq_keep(q, hdr, body, len, fds, nr_fds) : err;
}

int ipc_outq_flush(struct ipc_outq *q, int fd)
{
	while (q->head) {
		struct ipc_out *out = q->head;
		int err = ipc_send(fd, &out->hdr, out->body, out->len, out->fds.fd, out->fds.nr);

		if (err)
			return err;
		q->head = out->next;
		if (!q->head)
			q->tail = NULL;
		q->bytes -= sizeof(*out) + out->len;
		out_free(out);
	}
	return 0;
}

bool ipc_outq_empty(const struct ipc_outq *q)
{
	return q->head == NULL;
}

void ipc_outq_clear(struct ipc_outq *q)
{
	while (q->head) {
		struct ipc_out *out = q->head;

		q->head = out->next;
		out_free(out);
	}
	*q = (struct ipc_outq){0};
}

int ipc_reply(struct ipc_outq *q, int fd, const struct wpfs_hdr *req, int status, const void *body,
	      size_t len, const int *fds, size_t nr_fds)
{
	struct wpfs_hdr hdr = {.op = WPFS_OP_REPLY, .seq = req->seq, .status = status};

	return ipc_outq_send(q, fd, &hdr, body, len, fds, nr_fds);
}

int ipc_reply_error(struct ipc_outq *q, int fd, const struct wpfs_hdr *req, int status,
		    const char *fmt, ...)
{
	struct wpfs_error error = {.text = ""};
	va_list ap;

	if (!fmt)
		return ipc_reply(q, fd, req, status, NULL, 0, NULL, 0);
	va_start(ap, fmt);
	vsnprintf(error.text, sizeof(error.text), fmt, ap);
	va_end(ap);
	return ipc_reply(q, fd, req, status, &error, sizeof(error), NULL, 0);
}
