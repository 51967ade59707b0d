/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A blocking client. Whoever made the socket could feed wpctl anything, so only a peer of uid 0 is
 * talked to, and an id is a plain word before it becomes part of a path.
 */
#include "ipc/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

struct ipc_client {
	int fd;
	uint32_t seq;
	char error[sizeof(((struct wpfs_error *)0)->text)];
	_Alignas(8) char packet[WPFS_WIRE_MAX];
};

bool ipc_id_valid(const char *id)
{
	size_t len = strspn(id, "0123456789abcdef-");

	return len > 0 && len < WPFS_ID_MAX && id[len] == '\0';
}

int ipc_mount_info(int fd, struct wpfs_mount_info *info)
{
	memset(info, 0, sizeof(*info));
	if (ioctl(fd, WPFS_IOC_MOUNT_INFO, info) < 0)
		return errno == EINVAL || errno == ENOSYS ? -ENOTTY : -errno;
	if (info->version != 1 || !memchr(info->id, '\0', sizeof(info->id)) ||
	    !ipc_id_valid(info->id))
		return -ENOTTY;
	return 0;
}

static int client_hello(struct ipc_client *client)
{
	struct wpfs_hello hello = {.flags = WPFS_HELLO_CTL};
	struct wpfs_hello_reply reply;
	int status = ipc_client_call(client, WPFS_OP_HELLO, &hello, &reply, NULL, NULL);

	return status < 0 ? status : 0;
}

static int peer_check(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	return cred.uid == 0 ? 0 : -EPERM;
}

int ipc_client_connect_path(const char *path, bool any_uid, unsigned timeout_ms,
			    struct ipc_client **client)
{
	struct timeval tv = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	_cleanup_close_ int fd = -1;
	struct ipc_client *made;
	int err;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* SO_SNDTIMEO bounds connect(2) too, when the backlog is full. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (!any_uid) {
		err = peer_check(fd);
		if (err)
			return err;
	}
	made = malloc(sizeof(*made));
	if (!made)
		return -ENOMEM;
	made->fd = steal_fd(&fd);
	made->seq = 0;
	made->error[0] = '\0';
	err = client_hello(made);
	if (err) {
		ipc_client_close(made);
		return err;
	}
	*client = made;
	return 0;
}

int ipc_client_connect(const char *id, unsigned timeout_ms, struct ipc_client **client)
{
	char path[sizeof(WPFS_RUN_DIR) + WPFS_ID_MAX + sizeof("//sock")];

	if (!ipc_id_valid(id))
		return -EINVAL;
	snprintf(path, sizeof(path), "%s/%s/sock", WPFS_RUN_DIR, id);
	return ipc_client_connect_path(path, false, timeout_ms, client);
}

void ipc_client_close(struct ipc_client *client)
{
	if (!client)
		return;
	close(client->fd);
	free(client);
}

/* The next packet into client->packet; its length or -errno. */
static ssize_t client_recv(struct ipc_client *client)
{
	struct ipc_fds fds = IPC_FDS_INIT;
	ssize_t n = ipc_recv(client->fd, client->packet, sizeof(client->packet), &fds);

	ipc_fds_closep(&fds); /* no reply to a CTL client has one that it needs */
	if (n == 0 || n == -ECONNRESET)
		return -EPIPE;
	return n == -EAGAIN ? -ETIMEDOUT : n;
}

/* The reply in client->packet, already checked. */
static int client_take_reply(struct ipc_client *client, size_t len, void *reply)
{
	const struct wpfs_hdr *hdr = (const void *)client->packet;
	const void *body = ipc_body(client->packet, len);

	if (hdr->status < 0) {
		if (body)
			memcpy(client->error, body, sizeof(client->error));
		return hdr->status;
	}
	if (body && reply)
		memcpy(reply, body, len - sizeof(*hdr));
	return hdr->status;
}

int ipc_client_ask(struct ipc_client *client, enum wpfs_op op, const void *body)
{
	struct wpfs_hdr hdr = {.op = (uint16_t)op, .seq = ++client->seq};
	ssize_t body_len = ipc_op_body_size(op);
	int err;

	client->error[0] = '\0';
	if (body_len < 0)
		return (int)body_len;
	err = ipc_send(client->fd, &hdr, body, (size_t)body_len, NULL, 0);
	return err == -EAGAIN ? -ETIMEDOUT : err;
}

int ipc_client_answer(struct ipc_client *client, enum wpfs_op op, void *reply, ipc_record_fn fn,
		      void *arg)
{
	int err;

	for (;;) {
		const struct wpfs_hdr *got = (const void *)client->packet;
		ssize_t n = client_recv(client);

		if (n < 0)
			return (int)n;
		if ((size_t)n < sizeof(*got) || got->len != (size_t)n ||
		    got->version != WPFS_WIRE_VERSION || got->seq != client->seq)
			return -EPROTO;
		if (got->op != WPFS_OP_RECORD) {
			err = ipc_check_reply(client->packet, (size_t)n, op, client->seq);
			return err ? err : client_take_reply(client, (size_t)n, reply);
		}
		if (!fn)
			continue;
		err = ipc_records_walk(got + 1, (size_t)n - sizeof(*got), fn, arg);
		if (err)
			return err;
	}
}

int ipc_client_call(struct ipc_client *client, enum wpfs_op op, const void *body, void *reply,
		    ipc_record_fn fn, void *arg)
{
	int err = ipc_client_ask(client, op, body);

	return err ? err : ipc_client_answer(client, op, reply, fn, arg);
}

int ipc_client_fd(const struct ipc_client *client)
{
	return client->fd;
}

const char *ipc_client_error(const struct ipc_client *client)
{
	return client->error;
}
