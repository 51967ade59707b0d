/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Attached programs that use the mount in ways that leave no marks. Nobody would find out why
 * their changes are nowhere, so a report says it. What they do is looked up when it is asked for,
 * without a request to the mount: the daemon would wait for itself.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "track/internal.h"
#include "uffd/maps.h"

static bool unseen_maps(const struct track *t, pid_t pid)
{
	struct maps_list maps = {0};
	bool any = false;

	if (maps_read(pid, t->devs, t->nr_devs, &maps) == 0) {
		for (size_t i = 0; i < maps.nr; i++)
			any |= !maps.vmas[i].shared;
	}
	maps_free(&maps);
	return any;
}

/* Is descriptor `name` of /proc/PID/fd open for writing? */
static bool unseen_is_writable(pid_t pid, const char *name)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	const char *flags;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", pid, name);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return false;
	flags = strstr(text, "flags:");
	return flags && (strtoul(flags + strlen("flags:"), NULL, 8) & O_ACCMODE) != O_RDONLY;
}

/* Has it a file of the mount open for writing? */
static bool unseen_writes(const struct track *t, pid_t pid)
{
	const size_t len = strlen(t->config.mountpoint);
	_cleanup_dir_ DIR *dir = NULL;
	char path[4096];
	struct dirent *de;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), de->d_name, path, sizeof(path) - 1);

		if (n <= (ssize_t)len || strncmp(path, t->config.mountpoint, len) != 0 ||
		    path[len] != '/')
			continue;
		if (unseen_is_writable(pid, de->d_name))
			return true;
	}
	return false;
}

int unseen_report(struct track *t, uid_t uid, const char *name,
		  int (*emit)(void *ctx, uint32_t type, const void *body, size_t len), void *ctx)
{
	struct client *c;
	int told = 0;

	DL_FOREACH (t->clients, c) {
		struct wpfs_rec_note note = {.text = ""};
		const char *what = NULL;
		char comm[16] = "";
		int r;

		if (!c->tmm || c->tmm->state != TMM_NEW || (uid != 0 && uid != c->peer.uid) ||
		    (name && strcmp(name, c->name) != 0))
			continue;
		if (unseen_maps(t, c->id.pid))
			what = "maps files MAP_PRIVATE only: its stores stay its own and are not "
			       "tracked";
		else if (unseen_writes(t, c->id.pid))
			what = "maps no file shared, but has some open for writing: what it writes "
			       "with write(2) is not tracked";
		if (!what)
			continue;
		proc_comm(c->id.pid, comm);
		snprintf(note.text, sizeof(note.text), "%s (%s, pid %d): %s",
			 c->name[0] ? c->name : "(unnamed)", comm, c->id.pid, what);
		r = emit(ctx, WPFS_REC_NOTE, &note, sizeof(note));
		if (r < 0)
			return r;
		told++;
	}
	return told;
}
