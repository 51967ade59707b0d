/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Protect, unprotect, and what the marks say. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/units.h"
#include "lib/handle.h"

/* The pages that a call means. 0 or -errno, said. */
static int select_pages(struct wpfs *handle, const char *what, int fd, uint64_t offset,
			uint64_t len, struct wpfs_self *self)
{
	self->offset = offset;
	self->len = len;
	if ((offset | len) & (WPFS_PAGE - 1))
		return lib_fail(-EINVAL, what, "not whole pages of %d bytes", WPFS_PAGE);
	return lib_file(handle, what, fd, &self->file);
}

/* The same for calls that can be about all files. */
static int select_any(struct wpfs *handle, const char *what, int fd, uint64_t offset, uint64_t len,
		      struct wpfs_self *self)
{
	if (fd != -1)
		return select_pages(handle, what, fd, offset, len, self);
	return offset || len ? lib_fail(-EINVAL, what, "a range needs a file") : 0;
}

int wpfs_protect(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, uint64_t *epoch)
{
	struct wpfs_protect_reply reply = {0};
	struct wpfs_self self = {0};
	int err = select_any(handle, "wpfs_protect", fd, offset, len, &self);

	if (!err)
		err = lib_ask(handle, "wpfs_protect", WPFS_OP_SELF_PROTECT, &self, &reply, NULL,
			      NULL);
	if (!err && epoch)
		*epoch = reply.epoch;
	return err;
}

int wpfs_unprotect(struct wpfs *handle, int fd, uint64_t offset, uint64_t len)
{
	struct wpfs_protect_reply reply;
	struct wpfs_self self = {0};
	int err = select_any(handle, "wpfs_unprotect", fd, offset, len, &self);

	if (err)
		return err;
	return lib_ask(handle, "wpfs_unprotect", WPFS_OP_SELF_UNPROTECT, &self, &reply, NULL, NULL);
}

/* ---- runs ---- */

struct collect {
	struct wpfs_runs *runs;
	size_t room;	/* in runs->run */
	size_t settled; /* of earlier answers */
	uint64_t settled_len;
};

static int collect_run(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_run *rec = body;
	struct collect *c = arg;
	struct wpfs_runs *runs = c->runs;
	uint64_t offset, len;

	if (!body) { /* asked, perhaps again */
		runs->nr = c->settled;
		if (runs->nr)
			runs->run[runs->nr - 1].len = c->settled_len;
		return 0;
	}
	if (type != WPFS_REC_RUN || rec->pages == 0)
		return -EPROTO;
	offset = rec->pgoff << WPFS_PAGE_SHIFT;
	len = rec->pages << WPFS_PAGE_SHIFT;
	if (runs->nr > 0) {
		struct wpfs_run *last = &runs->run[runs->nr - 1];

		if (offset < last->offset + last->len)
			return -EPROTO;
		if (offset == last->offset + last->len) { /* cut between two answers */
			last->len += len;
			return 0;
		}
	}
	if (runs->nr == c->room) {
		size_t room = c->room ? c->room * 2 : 64;
		void *more = reallocarray(runs->run, room, sizeof(*runs->run));

		if (!more)
			return -ENOMEM;
		runs->run = more;
		c->room = room;
	}
	runs->run[runs->nr++] = (struct wpfs_run){offset, len};
	return 0;
}

void wpfs_runs_free(struct wpfs_runs *runs)
{
	free(runs->run);
	*runs = (struct wpfs_runs){0};
}

static int ask_runs(struct wpfs *handle, const char *what, struct wpfs_self *self,
		    struct wpfs_runs *runs)
{
	uint64_t end = self->len ? self->offset + self->len : UINT64_MAX;
	struct collect c = {.runs = runs};
	int status;

	for (;;) {
		status = lib_ask(handle, what, WPFS_OP_SELF_RUNS, self, NULL, collect_run, &c);
		if (status <= 0 || runs->nr == c.settled)
			break;
		/* Cut: go on after the last one. */
		c.settled = runs->nr;
		c.settled_len = runs->run[runs->nr - 1].len;
		self->offset = runs->run[runs->nr - 1].offset + c.settled_len;
		if (self->offset >= end)
			break;
		if (self->len)
			self->len = end - self->offset;
	}
	if (status < 0)
		wpfs_runs_free(runs);
	return status < 0 ? status : 0;
}

/* *self says which runs, of which epochs. */
static int ask_pages(struct wpfs *handle, const char *what, struct wpfs_self *self, int fd,
		     uint64_t offset, uint64_t len, struct wpfs_runs *runs)
{
	int err;

	*runs = (struct wpfs_runs){0};
	err = select_pages(handle, what, fd, offset, len, self);
	return err ? err : ask_runs(handle, what, self, runs);
}

int wpfs_dirty(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, uint64_t from,
	       uint64_t to, struct wpfs_runs *runs)
{
	struct wpfs_self self = {.runs = WPFS_SELF_DIRTY, .from = from, .to = to};

	return ask_pages(handle, "wpfs_dirty", &self, fd, offset, len, runs);
}

int wpfs_clean(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, struct wpfs_runs *runs)
{
	struct wpfs_self self = {.runs = WPFS_SELF_CLEAN};

	return ask_pages(handle, "wpfs_clean", &self, fd, offset, len, runs);
}

int wpfs_watched(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, struct wpfs_runs *runs)
{
	struct wpfs_self self = {.runs = WPFS_SELF_WATCHED};

	return ask_pages(handle, "wpfs_watched", &self, fd, offset, len, runs);
}

int wpfs_sync(struct wpfs *handle, int fd)
{
	uint64_t ino;
	int err;

	if (fd == -1)
		return lib_ask(handle, "wpfs_sync", WPFS_OP_SELF_SYNC, NULL, NULL, NULL, NULL);
	err = lib_file(handle, "wpfs_sync", fd, &ino);
	if (err)
		return err;
	/* The daemon stores the marks of all that map the file before its contents. */
	return fsync(fd) < 0 ? lib_fail_errno(-errno, "wpfs_sync") : 0;
}
