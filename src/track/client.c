/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Connections: who they are, one request at a time, and which handler it goes to. What a packet
 * says about itself is checked in ipc/packet.c; who may ask what is checked here; what the values
 * mean is each handler's business.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "track/residency.h"

void client_accept(struct track *t)
{
	for (;;) {
		struct ipc_peer peer;
		_cleanup_close_ int fd = ipc_accept(t->listen_watch.fd, &peer);
		struct client *c;

		if (fd < 0) {
			if (fd != -EAGAIN)
				log_warn("track: cannot accept a client: %s", log_errstr(fd));
			return;
		}
		c = calloc(1, sizeof(*c));
		if (!c)
			return;
		c->watch = (struct watch){WATCH_CLIENT, fd};
		c->id_nr = ++t->next_client;
		c->peer = peer;
		if (proc_identify(peer.pid, &c->id) < 0 ||
		    track_watch_add(t, &c->watch, EPOLLIN) < 0) {
			free(c); /* gone already, or of a pid namespace we do not see */
			continue;
		}
		steal_fd(&fd);
		DL_APPEND(t->clients, c);
	}
}

void client_free(struct track *t, struct client *c)
{
	if (c->tmm)
		c->tmm->client = NULL; /* the mm lives until its program ends */
	events_leave(t, c);
	ipc_outq_clear(&c->out);
	track_watch_remove(t, &c->watch);
	DL_DELETE(t->clients, c);
	free(c);
}

void client_reap(struct track *t)
{
	struct client *c, *next;

	DL_FOREACH_SAFE(t->clients, c, next)
	{
		if (!c->closing)
			continue;
		if (c->tmm && c->tmm->state == TMM_FORKED)
			life_end(t, c->tmm); /* or it goes on, and nobody looks */
		client_free(t, c);
	}
}

static void request_sent(struct request *rq, int r)
{
	struct client *c = rq->c;
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &c->watch};

	if (r < 0) {
		c->closing = true;
		return;
	}
	if (!ipc_outq_empty(&c->out)) {
		ev.events = EPOLLOUT; /* no further request before the answer is read */
		epoll_ctl(rq->t->epoll_fd, EPOLL_CTL_MOD, c->watch.fd, &ev);
	}
}

void request_reply_fds(struct request *rq, const void *body, size_t len, const int *fds, size_t n)
{
	request_sent(rq, ipc_reply(&rq->c->out, rq->c->watch.fd, rq->hdr, 0, body, len, fds, n));
}

void request_reply(struct request *rq, int status, const void *body, size_t len)
{
	request_sent(rq,
		     ipc_reply(&rq->c->out, rq->c->watch.fd, rq->hdr, status, body, len, NULL, 0));
}

void request_error(struct request *rq, int status, const char *fmt, ...)
{
	char text[sizeof(((struct wpfs_error *)0)->text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	request_sent(rq,
		     ipc_reply_error(&rq->c->out, rq->c->watch.fd, rq->hdr, status, "%s", text));
}

void request_none(struct request *rq, const char *name)
{
	/* That others have some is neither said nor denied. */
	const char *yours = rq->c->peer.uid ? " of yours" : "";
	const char *others = rq->c->peer.uid ? "; only root sees the programs of other users" : "";

	if (name)
		request_error(rq, -ENOENT,
			      "no program%s named '%s' has mapped a file of this mount%s", yours,
			      name, others);
	else
		request_error(
			rq, -ENOENT,
			"no tracked program%s has mapped a file of this mount: start one with "
			"wpctl run%s",
			yours, others);
}

/* Who may ask: anybody, a program that said HELLO as itself, one that is attached, wpctl; either of
 * these two. */
enum request_role { ROLE_ANY, ROLE_SHIM, ROLE_ATTACHED, ROLE_CTL, ROLE_EITHER };

static const struct {
	enum request_role role;
	request_fn fn;
} request_table[] = {
	[WPFS_OP_HELLO] = {ROLE_ANY, attach_hello},
	[WPFS_OP_ATTACH] = {ROLE_SHIM, attach_attach},
	[WPFS_OP_FORKED] = {ROLE_SHIM, fork_forked},
	[WPFS_OP_MAP] = {ROLE_ATTACHED, mapping_map},
	[WPFS_OP_ANNOUNCE] = {ROLE_ATTACHED, mapping_announce},
	[WPFS_OP_UNMAP] = {ROLE_ATTACHED, mapping_unmap},
	[WPFS_OP_REMOVE] = {ROLE_ATTACHED, drops_request},
	[WPFS_OP_REMOVING] = {ROLE_ATTACHED, drops_request},
	[WPFS_OP_MSYNC] = {ROLE_EITHER, durable_msync},
	[WPFS_OP_UFFD_PRE] = {ROLE_ATTACHED, own_pre},
	[WPFS_OP_UFFD_POST] = {ROLE_ATTACHED, own_post},
	[WPFS_OP_UFFD_UNREG] = {ROLE_ATTACHED, own_unreg},
	[WPFS_OP_UFFD_CLOSE] = {ROLE_ATTACHED, own_close},
	[WPFS_OP_TICKET] = {ROLE_ATTACHED, residency_ticket},
	[WPFS_OP_STATUS] = {ROLE_CTL, answer_status},
	[WPFS_OP_REPORT] = {ROLE_CTL, answer_report},
	[WPFS_OP_PROTECT] = {ROLE_CTL, protect_protect},
	[WPFS_OP_UNPROTECT] = {ROLE_CTL, protect_unprotect},
	[WPFS_OP_SYNC] = {ROLE_CTL, answer_sync},
	[WPFS_OP_FORGET] = {ROLE_CTL, protect_forget},
	[WPFS_OP_EVICT] = {ROLE_CTL, residency_evict},
	[WPFS_OP_LOAD] = {ROLE_CTL, residency_load},
	[WPFS_OP_SETTLE] = {ROLE_CTL, answer_settle},
	[WPFS_OP_WATCH] = {ROLE_CTL, events_watch},
	[WPFS_OP_TOP] = {ROLE_CTL, top_answer},
	[WPFS_OP_SELF_PROTECT] = {ROLE_CTL, self_protect},
	[WPFS_OP_SELF_UNPROTECT] = {ROLE_CTL, self_unprotect},
	[WPFS_OP_SELF_SYNC] = {ROLE_CTL, self_sync},
	[WPFS_OP_SELF_RUNS] = {ROLE_CTL, self_runs},
};

static bool request_allowed(const struct client *c, enum request_role role)
{
	switch (role) {
	case ROLE_ANY:
		return c->cookie == 0;
	case ROLE_SHIM:
		return c->cookie && !c->ctl && !c->attached;
	case ROLE_ATTACHED:
		return c->attached && c->tmm;
	case ROLE_CTL:
		return c->ctl;
	case ROLE_EITHER:
		return c->ctl || (c->attached && c->tmm);
	}
	return false;
}

static void client_request(struct track *t, struct client *c, const void *packet, size_t len,
			   struct ipc_fds *fds)
{
	const struct wpfs_hdr *hdr = packet;
	struct request rq = {.t = t, .c = c, .hdr = hdr, .body = ipc_body(packet, len), .fds = fds};

	if (ipc_check_request(packet, len, fds) < 0 ||
	    hdr->op >= sizeof(request_table) / sizeof(request_table[0]) ||
	    !request_table[hdr->op].fn) {
		if (len >= sizeof(*hdr) && hdr->version != WPFS_WIRE_VERSION)
			request_error(&rq, -EPROTO,
				      "the daemon is of another version of wpfs (protocol %d, "
				      "asked in %d)",
				      WPFS_WIRE_VERSION, hdr->version);
		else if (len >= sizeof(*hdr))
			request_error(&rq, -EPROTO, "not a message of the protocol");
		c->closing = true;
		return;
	}
	if (c->events.waiting || !request_allowed(c, request_table[hdr->op].role)) {
		if (hdr->op != WPFS_OP_ANNOUNCE) /* which has no reply: the next one would get it */
			request_error(&rq, -EPROTO, "this message is out of turn");
		c->closing = true;
		return;
	}
	if (c->tmm && hdr->op != WPFS_OP_UNMAP) /* which may be one of several for one munmap */
		c->tmm->announced = (struct announced){0};
	if (c->tmm && hdr->op != WPFS_OP_UFFD_POST && hdr->op != WPFS_OP_UFFD_PRE)
		carried_forget(c->tmm);
	if (c->tmm && hdr->op != WPFS_OP_REMOVE && hdr->op != WPFS_OP_REMOVING)
		drops_removed(t, c->tmm);
	request_table[hdr->op].fn(&rq);
}

const struct wpfs_map *client_peek_map(const struct client *c, void *packet, size_t size)
{
	const struct ipc_fds none = IPC_FDS_INIT;
	const struct wpfs_hdr *hdr = packet;
	ssize_t n = recv(c->watch.fd, packet, size, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);

	const struct wpfs_map *map;

	if (n < 0 || (size_t)n > size || ipc_check_request(packet, (size_t)n, &none) < 0 ||
	    (hdr->op != WPFS_OP_ANNOUNCE && hdr->op != WPFS_OP_MAP))
		return NULL;
	map = ipc_body(packet, (size_t)n);
	return map->query ? NULL : map;
}

bool client_is_hung_up(const struct client *c)
{
	struct pollfd pfd = {.fd = c->watch.fd, .events = POLLRDHUP};

	return c->closing || poll(&pfd, 1, 0) > 0;
}

void client_event(struct track *t, struct client *c, uint32_t events)
{
	_Alignas(8) char packet[WPFS_WIRE_MAX];
	_cleanup_(ipc_fds_closep) struct ipc_fds fds = IPC_FDS_INIT;
	ssize_t n;

	if (c->closing)
		return;
	if (events & EPOLLOUT) {
		struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &c->watch};
		int r = ipc_outq_flush(&c->out, c->watch.fd);

		if (r == -EAGAIN)
			return;
		if (r < 0)
			c->closing = true;
		else
			epoll_ctl(t->epoll_fd, EPOLL_CTL_MOD, c->watch.fd, &ev);
		return;
	}
	n = ipc_recv(c->watch.fd, packet, sizeof(packet), &fds);
	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		c->closing = true;
		return;
	}
	client_request(t, c, packet, (size_t)n, &fds);
}
