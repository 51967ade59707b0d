/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd/maps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/units.h"
#include "uffd/proc.h"

/* A number of the given base that ends with `end`, which is stepped over. False: it is none. */
static bool maps_number(const char **line, int base, char end, uint64_t *value)
{
	char *after;

	errno = 0;
	*value = strtoull(*line, &after, base);
	if (after == *line || *after != end || errno)
		return false;
	*line = after + 1;
	return true;
}

/*
 * Parses the head of a maps line: "start-end rwxs offset major:minor inode". By hand: sscanf(3)
 * costs more than the kernel takes to write the line, and there are ten thousands of them.
 */
static bool maps_parse_line(const char *line, struct maps_vma *vma)
{
	uint64_t start, end, offset, major, minor, ino;
	char perms[4];

	if (!maps_number(&line, 16, '-', &start) || !maps_number(&line, 16, ' ', &end) ||
	    strnlen(line, 5) < 5 || line[4] != ' ')
		return false;
	memcpy(perms, line, sizeof(perms));
	line += 5;
	if (!maps_number(&line, 16, ' ', &offset) || !maps_number(&line, 16, ':', &major) ||
	    !maps_number(&line, 16, ' ', &minor))
		return false;
	/* A blank and a name follow, or nothing. */
	if (!maps_number(&line, 10, ' ', &ino) && !maps_number(&line, 10, '\n', &ino))
		return false;
	*vma = (struct maps_vma){
		.start = start,
		.end = end,
		.pgoff = offset >> WPFS_PAGE_SHIFT,
		.dev = makedev((unsigned)major, (unsigned)minor),
		.ino = ino,
		.prot = (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) |
			(perms[2] == 'x' ? PROT_EXEC : 0),
		.shared = perms[3] == 's',
	};
	return true;
}

static int maps_append(struct maps_list *list, const struct maps_vma *vma)
{
	if (list->nr == list->room) {
		size_t room = list->room ? list->room * 2 : 16;
		struct maps_vma *bigger = reallocarray(list->vmas, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		list->vmas = bigger;
		list->room = room;
	}
	list->vmas[list->nr++] = *vma;
	return 0;
}

int maps_open_fd(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	return fd;
}

/*
 * Without PROCMAP_QUERY. Of the descriptor itself: opened anew it would show what the process that
 * it names has now, which may have ended or executed another program. Its file offset is not used:
 * two threads may ask at once.
 */
int maps_at_by_reading(int maps_fd, uint64_t addr, struct maps_vma *vma)
{
	char buf[8192];
	size_t have = 0;
	off_t off = 0;

	for (;;) {
		ssize_t n = pread(maps_fd, buf + have, sizeof(buf) - 1 - have, off);
		char *line = buf, *end;

		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOENT;
		off += n;
		have += (size_t)n;
		buf[have] = '\0';
		for (; (end = strchr(line, '\n')); line = end + 1) {
			if (maps_parse_line(line, vma) && vma->start <= addr && addr < vma->end)
				return 0;
		}
		/* A line is shorter than the buffer: a path has 4096 bytes at most. */
		have -= (size_t)(line - buf);
		memmove(buf, line, have);
	}
}

/* The mapping at `addr`, or with that flag the next one. */
static int maps_query(int maps_fd, uint64_t addr, uint64_t flags, struct maps_vma *vma)
{
	struct procmap_query q = {.size = sizeof(q), .query_addr = addr, .query_flags = flags};

	if (ioctl(maps_fd, PROCMAP_QUERY, &q) < 0)
		return -errno;
	*vma = (struct maps_vma){
		.start = q.vma_start,
		.end = q.vma_end,
		.pgoff = q.vma_offset >> WPFS_PAGE_SHIFT,
		.dev = makedev(q.dev_major, q.dev_minor),
		.ino = q.inode,
		.prot = (q.vma_flags & PROCMAP_QUERY_VMA_READABLE ? PROT_READ : 0) |
			(q.vma_flags & PROCMAP_QUERY_VMA_WRITABLE ? PROT_WRITE : 0) |
			(q.vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE ? PROT_EXEC : 0),
		.shared = q.vma_flags & PROCMAP_QUERY_VMA_SHARED,
	};
	return 0;
}

int maps_at(int maps_fd, uint64_t addr, struct maps_vma *vma)
{
	int r = maps_query(maps_fd, addr, 0, vma);

	return r == -ENOTTY ? maps_at_by_reading(maps_fd, addr, vma) : r;
}

int maps_list(int maps_fd, const uint64_t *devs, size_t nr_devs, struct maps_list *list)
{
	struct maps_vma vma = {.end = 0};
	int r = 0;

	list->nr = 0;
	while (r == 0) {
		r = maps_query(maps_fd, vma.end, COMPAT_PROCMAP_QUERY_COVERING_OR_NEXT_VMA, &vma);
		for (size_t i = 0; r == 0 && i < nr_devs; i++) {
			if (devs[i] != vma.dev)
				continue;
			r = maps_append(list, &vma);
			break;
		}
	}
	return r == -ENOENT ? 0 : r;
}

/* The stream of a /proc/PID file, or NULL with *err set; gone processes are always -ESRCH. */
static FILE *maps_open(pid_t pid, const char *name, int *err)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	f = fopen(path, "re");
	if (!f)
		*err = errno == ENOENT ? -ESRCH : -errno;
	return f;
}

/*
 * After getline(3) gave none: 0 at the end, or why there was no other. The process can end between
 * open and read; memory can be short, there and here.
 */
static int maps_end(FILE *f)
{
	if (feof(f))
		return 0;
	return errno ? -errno : -EIO;
}

/* Of one task. */
static int maps_read_task(pid_t pid, const uint64_t *devs, size_t nr_devs, struct maps_list *list)
{
	_cleanup_fclose_ FILE *f = NULL;
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	bool any = false;
	int r = 0;

	list->nr = 0;
	f = maps_open(pid, "maps", &r);
	if (!f)
		return r;
	while (getline(&line, &room, f) > 0) {
		struct maps_vma vma;

		any = true;
		if (!maps_parse_line(line, &vma))
			return -EIO;
		for (size_t i = 0; i < nr_devs; i++) {
			if (devs[i] != vma.dev)
				continue;
			r = maps_append(list, &vma);
			if (r < 0)
				return r;
			break;
		}
	}
	r = maps_end(f);
	if (r < 0)
		return r;
	return any ? 0 : -ESRCH; /* a task that has let go of its mm shows an empty file */
}

int maps_read(pid_t pid, const uint64_t *devs, size_t nr_devs, struct maps_list *list)
{
	int r = maps_read_task(pid, devs, nr_devs, list);
	pid_t tid;

	if (r != -ESRCH)
		return r;
	tid = proc_thread(pid);
	if (tid < 0)
		return tid;
	return tid != pid ? maps_read_task(tid, devs, nr_devs, list) : r;
}

bool maps_equal(const struct maps_list *a, const struct maps_list *b)
{
	if (a->nr != b->nr)
		return false;
	for (size_t i = 0; i < a->nr; i++) {
		const struct maps_vma *x = &a->vmas[i], *y = &b->vmas[i];

		if (x->start != y->start || x->end != y->end || x->pgoff != y->pgoff ||
		    x->dev != y->dev || x->ino != y->ino || x->prot != y->prot ||
		    x->shared != y->shared)
			return false;
	}
	return true;
}

void maps_free(struct maps_list *list)
{
	free(list->vmas);
	*list = (struct maps_list){0};
}

int maps_copy(struct maps_list *to, const struct maps_list *from)
{
	to->nr = 0;
	for (size_t i = 0; i < from->nr; i++) {
		int r = maps_append(to, &from->vmas[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

int maps_move(struct maps_list *list, uint64_t from, uint64_t to, uint64_t len)
{
	size_t nr = list->nr;

	for (size_t i = 0; i < nr; i++) {
		struct maps_vma old = list->vmas[i], moved = old;
		uint64_t start = old.start > from ? old.start : from;
		uint64_t end = old.end < from + len ? old.end : from + len;
		int r;

		if (start >= end)
			continue;
		moved.start = start - from + to;
		moved.end = end - from + to;
		moved.pgoff += (start - old.start) >> WPFS_PAGE_SHIFT;
		list->vmas[i] = moved;
		if (old.start < start) {
			struct maps_vma head = old;

			head.end = start;
			r = maps_append(list, &head);
			if (r < 0)
				return r;
		}
		if (end < old.end) {
			struct maps_vma tail = old;

			tail.start = end;
			tail.pgoff += (end - old.start) >> WPFS_PAGE_SHIFT;
			r = maps_append(list, &tail);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

int maps_read_uffd(pid_t pid, const struct maps_list *list, uint8_t *modes)
{
	_cleanup_fclose_ FILE *f = NULL;
	_cleanup_free_ char *line = NULL;
	struct maps_vma vma;
	size_t room = 0, i = 0;
	bool in_vma = false;
	int r = 0;

	memset(modes, 0, list->nr * sizeof(*modes));
	f = maps_open(pid, "smaps", &r);
	if (!f)
		return r;
	while (getline(&line, &room, f) > 0) {
		if (maps_parse_line(line, &vma)) {
			while (i < list->nr && list->vmas[i].start < vma.start)
				i++;
			in_vma = i < list->nr && list->vmas[i].start == vma.start &&
				 list->vmas[i].end == vma.end && list->vmas[i].dev == vma.dev &&
				 list->vmas[i].ino == vma.ino && list->vmas[i].shared == vma.shared;
		} else if (in_vma && strncmp(line, "VmFlags:", 8) == 0) {
			modes[i] = (uint8_t)((strstr(line, " uw") ? MAPS_UFFD_WP : 0) |
					     (strstr(line, " um") ? MAPS_UFFD_MISSING : 0) |
					     (strstr(line, " mw") ? MAPS_MAY_WRITE : 0));
		}
	}
	return maps_end(f);
}
