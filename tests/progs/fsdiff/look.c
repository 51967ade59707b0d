/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What can be seen of a file system from outside, in words that two of them can share. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fsdiff.h"

/* Times that an operation has set are before this; those that a clock has set are after it. */
#define EARLIEST_NOW 1600000000

static struct seen *seen_find(struct side *s, uint64_t ino)
{
	for (size_t i = s->nr_seen; i > 0; i--)
		if (s->seen[i - 1].ino == ino)
			return &s->seen[i - 1];
	if (s->nr_seen == s->room_seen) {
		s->room_seen = s->room_seen ? s->room_seen * 2 : 64;
		s->seen = reallocarray(s->seen, s->room_seen, sizeof(*s->seen));
		if (!s->seen)
			abort();
	}
	s->seen[s->nr_seen] = (struct seen){.ino = ino, .number = (unsigned)s->nr_seen};
	return &s->seen[s->nr_seen++];
}

static void say_time(struct side *s, struct answer *a, const char *what,
		     const struct statx_timestamp *t, struct timespec *before)
{
	if (t->tv_sec < EARLIEST_NOW)
		say(a, " %s=%lld.%09u", what, (long long)t->tv_sec, t->tv_nsec);
	else
		say(a, " %s=now", what);
	if (!before)
		return;
	if (s->ticked && (before->tv_sec != t->tv_sec || before->tv_nsec != t->tv_nsec))
		say(a, "!");
	before->tv_sec = t->tv_sec;
	before->tv_nsec = t->tv_nsec;
}

static void say_stat(struct side *s, const struct statx *st, struct answer *a)
{
	struct seen *seen = seen_find(s, st->stx_ino);

	say(a,
	    "#%u %o %u:%u nlink=%u size=%llu blocks=%llu blksize=%u rdev=%u:%u mask=%x attr=%llx",
	    seen->number, st->stx_mode, st->stx_uid, st->stx_gid, st->stx_nlink,
	    (unsigned long long)st->stx_size, (unsigned long long)st->stx_blocks, st->stx_blksize,
	    st->stx_rdev_major, st->stx_rdev_minor,
	    st->stx_mask & (STATX_BASIC_STATS | STATX_BTIME),
	    (unsigned long long)(st->stx_attributes &
				 (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND | STATX_ATTR_NODUMP)));
	/* FUSE: what is not in the file system's hands moves no times. */
	if (!S_ISREG(st->stx_mode) && !S_ISDIR(st->stx_mode) && !S_ISLNK(st->stx_mode))
		return;
	say_time(s, a, "a", &st->stx_atime, NULL);
	say_time(s, a, "m", &st->stx_mtime, &seen->mtime);
	say_time(s, a, "c", &st->stx_ctime, &seen->ctime);
	say_time(s, a, "b", &st->stx_btime, NULL);
}

void look_path(struct side *s, const char *path, struct answer *a)
{
	char full[PATH_MAX];
	struct statx st;

	if (statx(AT_FDCWD, path_of(s, path, full), AT_SYMLINK_NOFOLLOW,
		  STATX_BASIC_STATS | STATX_BTIME, &st) < 0)
		say(a, "%s", strerrorname_np(errno));
	else
		say_stat(s, &st, a);
}

void look_fd(struct side *s, int fd, struct answer *a)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &st) < 0)
		say(a, "%s", strerrorname_np(errno));
	else
		say_stat(s, &st, a);
}

void look_statfs(const char *path, struct answer *a)
{
	struct statfs st;

	if (statfs(path, &st) < 0)
		say(a, "%s", strerrorname_np(errno));
	else
		say(a,
		    "bsize=%ld frsize=%ld namelen=%ld blocks=%lu free=%lu avail=%lu files=%lu "
		    "ffree=%lu",
		    (long)st.f_bsize, (long)st.f_frsize, (long)st.f_namelen,
		    (unsigned long)st.f_blocks, (unsigned long)st.f_bfree,
		    (unsigned long)st.f_bavail, (unsigned long)st.f_files,
		    (unsigned long)st.f_ffree);
}

static bool is_mapped(const struct side *s)
{
	for (unsigned i = 0; i < MAPS; i++) {
		if (s->map[i])
			return true;
	}
	return false;
}

void forget_events(struct side *s)
{
	char buf[16384];

	while (read(s->inotify, buf, sizeof(buf)) > 0)
		;
}

/* FUSE: a write that clears a suid bit says that it was a write, and not the other. */
static uint32_t attributes_changed_by_write(const char *buf, ssize_t len)
{
	for (ssize_t at = 0; at < len;) {
		const struct inotify_event *e = (const void *)(buf + at);

		if (e->mask & IN_MODIFY)
			return IN_ATTRIB;
		at += (ssize_t)(sizeof(*e) + e->len);
	}
	return 0;
}

/* The same twice in a row is said once, as the kernel does unless something hidden is between. */
static void say_event(const struct inotify_event *e, struct answer *a)
{
	struct answer event = {.used = 0};

	say(&event, " %d:%x%s", e->wd, e->mask, e->cookie ? "c" : "");
	/* A file without a name has its number for one, or "/". */
	if (e->len)
		say_name(&event, strchr("#/", e->name[0]) ? "#" : e->name);
	if (a->used < event.used || strcmp(a->text + a->used - event.used, event.text) != 0)
		say(a, "%s", event.text);
}

void look_events(struct side *s, struct answer *a)
{
	_Alignas(struct inotify_event) char buf[16384];
	bool mapped = is_mapped(s);
	uint32_t hidden = 0;
	ssize_t n;

	/* FUSE: a mapping is of the lower file, so the one it was made from closes before it. */
	if (mapped || s->was_mapped)
		hidden = IN_CLOSE;
	s->was_mapped = mapped;

	while ((n = read(s->inotify, buf, sizeof(buf))) > 0) {
		hidden |= attributes_changed_by_write(buf, n);
		for (ssize_t at = 0; at < n;) {
			const struct inotify_event *e = (const void *)(buf + at);

			if (!(e->mask & hidden))
				say_event(e, a);
			at += (ssize_t)(sizeof(*e) + e->len);
		}
	}
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void say_xattrs(const char *path, struct answer *a)
{
	char list[8192], value[4096], *names[64];
	ssize_t n = llistxattr(path, list, sizeof(list));
	size_t nr = 0;

	if (n < 0)
		say(a, " xattrs=%s", strerrorname_np(errno));
	for (ssize_t at = 0; at < n && nr < 64; at += (ssize_t)strlen(list + at) + 1)
		names[nr++] = list + at;
	qsort(names, nr, sizeof(names[0]), compare_names);
	for (size_t i = 0; i < nr; i++) {
		ssize_t len = lgetxattr(path, names[i], value, sizeof(value));

		say(a, " %s=%zd:%llx", names[i], len,
		    len < 0 ? 0ull : (unsigned long long)hash_bytes(value, (size_t)len));
	}
}

static void say_contents(const char *path, struct answer *a)
{
	int fd = open(path, O_RDONLY | O_NOATIME | O_NOFOLLOW | O_CLOEXEC);
	char buf[4096];
	ssize_t n;

	if (fd < 0) {
		say(a, " contents=%s", strerrorname_np(errno));
		return;
	}
	say(a, " ");
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		say(a, "%04x", (unsigned)(hash_bytes(buf, (size_t)n) & 0xffff));
	for (off_t at = 0, data; (data = lseek(fd, at, SEEK_DATA)) >= 0 && a->used < ANSWER - 64;) {
		at = lseek(fd, data, SEEK_HOLE);
		say(a, " %lld-%lld", (long long)data, (long long)at);
	}
	close(fd);
}

struct walk {
	struct side *side;
	void (*line)(void *ctx, const char *text);
	void *ctx;
};

static void walk_dir(struct walk *w, const char *path);

static void walk_file(struct walk *w, const char *path, const struct dirent *entry)
{
	struct answer *a = malloc(sizeof(*a));
	char full[PATH_MAX], target[PATH_MAX];
	struct stat st;
	ssize_t n;

	if (!a)
		abort();
	a->used = 0;
	say_name(a, path);
	say(a, " ");
	look_path(w->side, path, a);
	path_of(w->side, path, full);
	if (lstat(full, &st) == 0) {
		say(a, " type=%d ino=%s", entry->d_type, st.st_ino == entry->d_ino ? "same" : "?");
		say_xattrs(full, a);
		n = S_ISLNK(st.st_mode) ? readlink(full, target, sizeof(target) - 1) : -1;
		if (n >= 0)
			say(a, " -> %.*s", (int)n, target);
		if (S_ISREG(st.st_mode))
			say_contents(full, a);
	}
	w->line(w->ctx, a->text);
	free(a);
	if (entry->d_type == DT_DIR)
		walk_dir(w, path);
}

static void walk_dir(struct walk *w, const char *path)
{
	char full[PATH_MAX], below[PATH_MAX];
	DIR *dir = opendir(path_of(w->side, path, full));
	const struct dirent *entry;

	if (!dir) {
		w->line(w->ctx, strerrorname_np(errno));
		return;
	}
	while ((entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		snprintf(below, sizeof(below), "%s/%s", path, entry->d_name);
		walk_file(w, below, entry);
	}
	closedir(dir);
}

void look_tree(struct side *s, void (*line)(void *ctx, const char *text), void *ctx)
{
	struct walk w = {.side = s, .line = line, .ctx = ctx};

	walk_dir(&w, ".");
}
