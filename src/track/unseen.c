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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "track/capped_track.h"
#include "track/internal.h"
#include "uffd/maps.h"

static bool unseen_maps(const struct track *t, pid_t pid, bool shared)
{
	struct maps_list maps = {0};
	bool any = false;

	if (devs_maps_read(t, pid, &maps) == 0) {
		for (size_t i = 0; i < maps.nr; i++)
			any |= maps.vmas[i].shared == shared;
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
	pid_t tid;
	_cleanup_dir_ DIR *dir = proc_open_fds(pid, &tid);
	char path[4096];
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), de->d_name, path, sizeof(path) - 1);

		if (n <= (ssize_t)len || strncmp(path, t->config.mountpoint, len) != 0 ||
		    path[len] != '/')
			continue;
		if (unseen_is_writable(tid, de->d_name))
			return true;
	}
	return false;
}

/* ---- of one file ---- */

/* Also who shares the memory of a tracked program: its stores are seen as that one's. */
static bool unseen_is_ours(struct track *t, pid_t pid)
{
	struct client *c;
	struct tmm *tm;

	if (pid == getpid())
		return true;
	DL_FOREACH (t->tmms, tm) {
		if (tm->state == TMM_DETACHED)
			continue;
		if (tm->program.pid == pid || tm->witness.pid == pid)
			return true;
		if (tm->witness_pidfd >= 0 && proc_same_mm(pid, tm->witness.pid) == 1 &&
		    !proc_is_dead(tm->witness_pidfd))
			return true;
	}
	DL_FOREACH (t->clients, c) {
		if (c->attached && c->id.pid == pid)
			return true;
	}
	return false;
}

/* Has it attached and never told of a mapping? What it maps it maps behind the shim's back. */
static bool unseen_is_silent(const struct track *t, pid_t pid)
{
	const struct client *c;

	DL_FOREACH (t->clients, c) {
		if (c->attached && c->id.pid == pid)
			return c->tmm && c->tmm->state == TMM_NEW;
	}
	return false;
}

/* A file of this lower. */
static bool unseen_is_of(const struct track *t, uint64_t dev, uint64_t ino, uint64_t file)
{
	if (t->config.capped && dev == capped_lower_dev(t->config.capped))
		ino = fs_ino_of_lower(t->config.fs, ino);
	return ino == file;
}

/* *stores becomes true when it can through the mapping; the same below, of a descriptor. */
static bool unseen_maps_file(const struct track *t, pid_t pid, uint64_t file, bool *stores)
{
	struct maps_list maps = {0};
	bool found = false;
	int r = devs_maps_read(t, pid, &maps);

	for (size_t i = 0; r == 0 && i < maps.nr; i++) {
		if (!maps.vmas[i].shared ||
		    !unseen_is_of(t, maps.vmas[i].dev, maps.vmas[i].ino, file))
			continue;
		found = true;
		*stores |= maps.vmas[i].prot & PROT_WRITE;
	}
	if (r < 0 && r != -ESRCH && r != -EACCES) /* could not be looked at */
		found = *stores = true;
	maps_free(&maps);
	return found;
}

static bool unseen_has_open(const struct track *t, pid_t pid, uint64_t file, bool *stores)
{
	pid_t tid;
	_cleanup_dir_ DIR *dir = proc_open_fds(pid, &tid);
	struct dirent *de;
	bool found = false;

	while (dir && (de = readdir(dir))) {
		struct statx stx;
		uint64_t dev;

		/* DONT_SYNC: no request to ourselves. */
		if (statx(dirfd(dir), de->d_name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
			  STATX_TYPE | STATX_INO, &stx) < 0)
			continue;
		dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
		if (S_ISREG(stx.stx_mode) && unseen_is_of(t, dev, stx.stx_ino, file) &&
		    devs_file_is_ours(t, dev, dirfd(dir), de->d_name)) {
			found = true;
			*stores |= unseen_is_writable(tid, de->d_name);
		}
	}
	return found;
}

bool unseen_is_mapped(struct track *t, uint64_t ino)
{
	_cleanup_dir_ DIR *proc = opendir("/proc");
	bool stores = false;
	struct dirent *de;

	while (proc && (de = readdir(proc))) {
		const pid_t pid = (pid_t)atoi(de->d_name);

		if (pid > 0 && unseen_maps_file(t, pid, ino, &stores) && !unseen_is_ours(t, pid))
			return true;
	}
	return !proc;
}

bool unseen_has_armed(struct track *t, const struct mm *mm)
{
	const struct mm_file *f;

	for (f = mm->files; f; f = f->hh.next) {
		if (!mm_set_is_empty(&f->own[MM_WPFS].armed) && unseen_is_mapped(t, f->id))
			return true;
	}
	return false;
}

/* What an earlier run of some name had armed of the file is in doubt now, and as long as it maps
 * it. */
static int unseen_doubt_detached(struct track *t, uint64_t ino)
{
	struct tmm *tm;
	int r = 0;

	DL_FOREACH (t->tmms, tm) {
		struct mm_file *f = tm->state == TMM_DETACHED ? mm_file_find(&tm->mm, ino) : NULL;
		const uint64_t before = tm->mm.conservative;

		if (r < 0 || !f || mm_set_is_empty(&f->own[MM_WPFS].armed))
			continue;
		r = mm_doubt(&tm->mm, f, 0, MM_PGOFF_MAX);
		t->conservative += tm->mm.conservative - before;
		tm->maybe_shared = true;
		if (r == 0)
			r = persist_mm(t, tm);
	}
	return r;
}

int unseen_resume(struct track *t)
{
	_cleanup_dir_ DIR *proc = opendir("/proc");
	struct dirent *de;
	int r = 0;

	/* On a capped mount nobody can map what no daemon has handed out. */
	while (r == 0 && proc && !t->config.capped && (de = readdir(proc))) {
		const pid_t pid = (pid_t)atoi(de->d_name);
		struct maps_list maps = {0};
		char comm[16];

		if (pid <= 0 || proc_comm(pid, comm) < 0 || strcmp(comm, "wpfs-witness") != 0)
			continue;
		r = devs_maps_read(t, pid, &maps);
		if (r == -ESRCH || r == -EACCES)
			r = 0;
		for (size_t i = 0; r == 0 && i < maps.nr; i++) {
			if (maps.vmas[i].shared && !unseen_is_ours(t, pid))
				r = unseen_doubt_detached(t, maps.vmas[i].ino);
		}
		maps_free(&maps);
	}
	return proc ? r : -errno;
}

bool unseen_holders(struct track *t, uint64_t ino, const char *path, char *line, size_t size)
{
	_cleanup_dir_ DIR *proc = opendir("/proc");
	const size_t room = size - 64; /* the end of the line comes after that */
	unsigned more = 0;
	struct dirent *de;
	size_t used = 0;
	bool any = false;

	line[0] = '\0';
	while (proc && (de = readdir(proc))) {
		const pid_t pid = (pid_t)atoi(de->d_name);
		bool stores = false;
		bool maps = pid > 0 && unseen_maps_file(t, pid, ino, &stores);
		bool opens = pid > 0 && unseen_has_open(t, pid, ino, &stores);
		char comm[16] = "?";

		if ((!maps && !opens) ||
		    (unseen_is_ours(t, pid) && !(maps && unseen_is_silent(t, pid))))
			continue;
		any |= stores;
		if (used + 64 > room) {
			more++;
			continue;
		}
		proc_comm(pid, comm);
		if (used == 0)
			used = (size_t)snprintf(line, room, "%.200s: not tracked: ", path);
		else
			used += (size_t)snprintf(line + used, room - used, ", ");
		used += (size_t)snprintf(line + used, room - used, "%s (pid %d, %s)", comm, pid,
					 maps ? "maps it" : "has it open");
	}
	if (used && more)
		used += (size_t)snprintf(line + used, size - used, " and %u more", more);
	if (used)
		snprintf(line + used, size - used, ": stores through its mappings are not seen");
	return any;
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
		if (unseen_maps(t, c->id.pid, true))
			what = "maps files by raw system calls that nobody told of: its stores are "
			       "not tracked";
		else if (unseen_maps(t, c->id.pid, false))
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
