/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mounts that this process knows of, and the connection to each one's daemon. What happens when
 * that goes away: the next request finds the socket closed and connects again. A daemon that hangs
 * is waited for once; then this mm and its fork children are their own again, and their marks are
 * conservative.
 */
#include "preload/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "preload/attach.h"
#include "preload/client.h"
#include "preload/fds.h"

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

bool mount_any(void)
{
	bool any = false;

	for (int i = 0; i < SHIM_MOUNTS; i++)
		any |= atomic_load_explicit(&shim.mounts[i].was_attached, memory_order_relaxed);
	return any;
}

int mount_find(const char *id)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		struct mount *mount = &shim.mounts[i];

		if (mount->state == MOUNT_NONE) {
			text_copy(mount->id, id, sizeof(mount->id));
			text_copy(mount->name, shim.name, sizeof(mount->name));
			mount->state = MOUNT_KNOWN;
			return i;
		}
		if (text_equal(mount->id, id))
			return i;
	}
	return -ENOSPC;
}

void mount_disconnect(struct mount *mount)
{
	int sock = atomic_load(&mount->sock);

	if (client_sock_ours(mount, sock))
		raw(close, sock);
	atomic_store(&mount->sock, -1);
	fds_changed();
}

void mount_give_up(struct mount *mount, const char *why)
{
	int sock = atomic_load(&mount->sock);

	/* A child may have a copy of it, and still this has to be seen. */
	if (client_sock_ours(mount, sock))
		raw(shutdown, sock, SHUT_RDWR);
	mount_disconnect(mount);
	mount->state = MOUNT_UNTRACKED;
	mount->why = why;
	shim_say_mount(mount, why);
}

bool mount_err_passes(const struct mount *mount, int err)
{
	switch (err) {
	case -ENOENT:
		return atomic_load(&mount->sock) < 0;
	case -ECONNREFUSED:
	case -EPIPE:
	case -EMFILE:
	case -ENFILE:
	case -ENOMEM:
	case -ENOBUFS:
		return true;
	default:
		return false;
	}
}

static const char *reason(int err)
{
	switch (err) {
	case -ENOENT:
	case -ECONNREFUSED:
	case -EPIPE:
		return ": its daemon is not running: this program is not tracked";
	case -EMFILE:
	case -ENFILE:
		return ": no descriptor is free to reach its daemon with: this program is not "
		       "tracked";
	case -ENOMEM:
	case -ENOBUFS:
		return ": no memory is free to reach its daemon with: this program is not tracked";
	case -EPERM:
		return ": its socket is not root's: this program is not tracked";
	case -ETIMEDOUT:
	case -EPROTO:
		return ": its daemon does not answer: this program is not tracked any more, its "
		       "marks may count as dirty";
	case -EPROTONOSUPPORT:
		return ": its daemon is of another version of wpfs: this program is not tracked; "
		       "unmount and mount it again, or run the program with its own wpfs";
	case -ESRCH:
		return ": its daemon does not know this program: it is not tracked any more, its "
		       "marks may count as dirty";
	default:
		return ": cannot attach: this program is not tracked";
	}
}

void mount_unkeep(struct mount *mount)
{
	int keep = atomic_load(&mount->keep);

	if (client_keep_ours(mount, keep))
		raw(close, keep);
	atomic_store(&mount->keep, -1);
	fds_changed();
}

void mount_failed(struct mount *mount, int err)
{
	bool unknown = mount->state == MOUNT_KNOWN; /* nothing is lost by asking again */

	if (mount->state == MOUNT_UNTRACKED)
		return;
	if (err == -ETIMEDOUT || err == -EPROTO || err == -EPROTONOSUPPORT ||
	    !(unknown || mount_err_passes(mount, err))) {
		if (err == -ESRCH)
			mount_unkeep(mount); /* nobody reads it any more */
		mount_give_up(mount, reason(err));
		return;
	}
	shim_say_mount(mount, reason(err));
}

int mount_connect(struct mount *mount)
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

void mount_keep(struct mount *mount, int *uffd)
{
	struct stat st;

	if (mount->kind != WPFS_KIND_CAPPED || *uffd < 0 || raw(fstat, *uffd, &st) != 0)
		return;
	mount->keep_dev = st.st_dev;
	mount->keep_ino = st.st_ino;
	atomic_store(&mount->keep, client_move_high(*uffd));
	*uffd = -1;
	fds_changed();
}

int mount_request(struct mount *mount, struct client_call *call)
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

int mount_call(struct mount *mount, enum wpfs_op op, const void *body, size_t body_len,
	       const int *send_fd, int *status, void *reply, size_t reply_len, int *fd)
{
	struct client_call call = {
		.op = op,
		.body = body,
		.body_len = body_len,
		.send_fds = send_fd,
		.nr_send_fds = send_fd ? 1 : 0,
		.patient = op == WPFS_OP_MSYNC || client_is_patient(),
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
		mount_failed(mount, err);
		return err;
	}
	for (int i = fd ? 1 : 0; i < CLIENT_FDS; i++)
		client_close_if(call.fds[i]);
	if (fd)
		*fd = call.fds[0];
	*status = call.status;
	return 0;
}

void mount_tell(struct mount *mount, enum wpfs_op op, const void *body, size_t body_len)
{
	struct client_call call = {.op = op, .body = body, .body_len = body_len};
	int err = -EPIPE;

	for (int i = 0; i < 2 && err == -EPIPE && mount_ready(mount) == 0; i++) {
		err = client_tell(atomic_load(&mount->sock), ++mount->seq, &call);
		if (err == -EPIPE)
			mount_disconnect(mount);
	}
	if (err && err != -EPIPE)
		mount_failed(mount, err);
}
