/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * After the program's death its page tables of wpfs mappings are all that is wanted: everything
 * else (its memory, its executable, attached SysV segments, files of other mounts) would be pinned
 * until the daemon is done, if that takes long. /proc/self/maps is read to its end while what it
 * names goes away; the kernel continues by address.
 */
#include "preload/witness.h"

#include <errno.h>

#include "preload/discover.h"
#include "preload/raw.h"

extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

struct span {
	uint64_t start, end;
};

/* Unmaps the span but for the kept ones, which may overlap it in any way. */
static void unmap_around(struct span span, const struct span *keep, unsigned nr_keep)
{
	if (nr_keep == 0) {
		if (span.start < span.end)
			raw(munmap, span.start, span.end - span.start);
		return;
	}
	if (keep->end <= span.start || keep->start >= span.end) {
		unmap_around(span, keep + 1, nr_keep - 1);
		return;
	}
	if (span.start < keep->start)
		unmap_around((struct span){span.start, keep->start}, keep + 1, nr_keep - 1);
	if (keep->end < span.end)
		unmap_around((struct span){keep->end, span.end}, keep + 1, nr_keep - 1);
}

/* start-end perms offset major:minor inode path */
enum field {
	FIELD_START,
	FIELD_END,
	FIELD_PERMS,
	FIELD_OFFSET,
	FIELD_MAJOR,
	FIELD_MINOR,
	FIELD_PATH
};

struct line {
	enum field field;
	uint64_t number;
	struct span span;
	uint64_t major, minor;
	bool kernels; /* [vdso], [vvar], [vsyscall] */
	bool shared;
	char before; /* the character before this one */
};

static void number_done(struct line *line)
{
	switch (line->field) {
	case FIELD_START:
		line->span.start = line->number;
		break;
	case FIELD_END:
		line->span.end = line->number;
		break;
	case FIELD_MAJOR:
		line->major = line->number;
		break;
	case FIELD_MINOR:
		line->minor = line->number;
		break;
	default:
		break;
	}
	line->number = 0;
	if (line->field < FIELD_PATH)
		line->field++;
}

static void line_char(struct line *line, char c)
{
	if (line->field == FIELD_PATH) {
		if (line->before == '[' && c == 'v')
			line->kernels = true;
	} else if (c == 's' && line->field == FIELD_PERMS) {
		line->shared = true;
	} else if (c == '-' && line->field == FIELD_START) {
		number_done(line);
	} else if (c == ':' || c == ' ') {
		number_done(line);
	} else if (c >= '0' && c <= '9') {
		line->number = line->number << 4 | (uint64_t)(c - '0');
	} else if (c >= 'a' && c <= 'f') {
		line->number = line->number << 4 | (uint64_t)(c - 'a' + 10);
	}
	line->before = c;
}

/*
 * Is it one of wpfs's, or may it be one that nobody asked about: mapped by a raw system call, or
 * while there was no daemon to ask? 0:1 is the kernel's own tmpfs: SysV segments, shared memory
 * without a name.
 */
static bool may_be_wpfs(const struct line *line)
{
	uint64_t dev = shim_makedev(line->major, line->minor);
	int what = discover_cached(dev);

	if (what == DISCOVER_UNKNOWN)
		return line->shared && (line->major != 0 || line->minor != 1);
	return what >= 0;
}

void witness_unmap_rest(const struct witness_boot *boot)
{
	struct span keep[1 + WITNESS_MAX];
	unsigned nr_keep = 0;
	struct line line = {0};
	char buf[2048];

	keep[nr_keep++] = (struct span){(uint64_t)__ehdr_start & ~4095ull,
					((uint64_t)_end + 4095) & ~4095ull};
	for (int i = 0; i < WITNESS_MAX; i++) {
		uint64_t stack = atomic_load(&witness_stacks[i]);

		if (stack)
			keep[nr_keep++] = (struct span){stack, stack + WITNESS_STACK_BYTES};
	}
	for (;;) {
		long n = raw(read, boot->maps, buf, sizeof(buf));

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return;
		for (long i = 0; i < n; i++) {
			if (buf[i] != '\n') {
				line_char(&line, buf[i]);
				continue;
			}
			if (!line.kernels && !may_be_wpfs(&line))
				unmap_around(line.span, keep, nr_keep);
			line = (struct line){0};
		}
	}
}
