/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Both files are written under other names, made durable and renamed, the manifest last: what was
 * killed half-way has no manifest, and is begun anew by the next export to the same directory.
 *
 * Contents are read after the list is made. A page that is stored to in between is in the list of
 * the epoch after, since it was protected all the time.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "ctl/changed.h"
#include "ctl/contents.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/manifest.h"
#include "ctl/say.h"
#include "ctl/table.h"
#include "ctl/target.h"

struct export
{
	const struct ctl_args *args;
	struct contents from;
	struct manifest manifest;
	struct manifest_writer writer;
	struct manifest_run zeros; /* that go on, maybe */
	char *buf;		   /* MANIFEST_RUN_MAX pages */
	int dir_fd, pages_fd;
};

static void export_done(struct export *ex)
{
	close_fd(&ex->from.fd);
	close_fd(&ex->dir_fd);
	close_fd(&ex->pages_fd);
	manifest_writer_drop(&ex->writer);
	manifest_free(&ex->manifest);
	free(ex->buf);
}

static int fail(const char *on, const char *words)
{
	ctl_say("export: %s: %s", on, words);
	return CTL_FAILED;
}

/* ---- pages ---- */

static bool is_zero(const char *page)
{
	return page[0] == 0 && !memcmp(page, page + 1, WPFS_PAGE_SIZE - 1);
}

static void flush_zeros(struct export *ex)
{
	if (ex->zeros.nr)
		manifest_add(&ex->writer, &ex->zeros);
	ex->manifest.zero_pages += ex->zeros.nr;
	ex->zeros.nr = 0;
}

static void put_zeros(struct export *ex, uint64_t first, uint64_t nr)
{
	if (nr == 0)
		return;
	if (ex->zeros.nr && ex->zeros.first + ex->zeros.nr != first)
		flush_zeros(ex);
	if (ex->zeros.nr == 0)
		ex->zeros = (struct manifest_run){.first = first, .zero = true};
	ex->zeros.nr += nr;
}

static int put_data(struct export *ex, uint64_t first, uint64_t nr, const char *data)
{
	const size_t len = nr << WPFS_PAGE_SHIFT;
	struct manifest_run run = {.first = first, .nr = nr, .hash = XXH3_64bits(data, len)};
	int r;

	flush_zeros(ex);
	r = fdio_pwrite_full(ex->pages_fd, data, len,
			     (off_t)(ex->manifest.pages << WPFS_PAGE_SHIFT));
	manifest_add(&ex->writer, &run);
	ex->manifest.pages += nr;
	return r;
}

/* At most MANIFEST_RUN_MAX pages: taken apart into such of zeros and such that have contents. */
static int put_piece(struct export *ex, uint64_t first, uint64_t nr)
{
	uint64_t end = first + nr, at = first;
	const uint64_t off = first << WPFS_PAGE_SHIFT, left = ex->from.size - off;
	const size_t len = nr << WPFS_PAGE_SHIFT;
	int r;

	/* What came behind the size that the manifest tells is not of this export. */
	memset(ex->buf, 0, len);
	r = fdio_pread_zeros(ex->from.fd, ex->buf, left < len ? left : len, off);
	while (r == 0 && at < end) {
		const char *data = ex->buf + ((at - first) << WPFS_PAGE_SHIFT), *page = data;
		const bool zero = is_zero(data);
		uint64_t same = 0;

		for (; at + same < end && is_zero(page) == zero; page += WPFS_PAGE_SIZE)
			same++;
		if (zero)
			put_zeros(ex, at, same);
		else
			r = put_data(ex, at, same, data);
		at += same;
	}
	return r;
}

/* A run may be very long and nearly all of it a hole. */
static int put_run(struct export *ex, uint64_t first, uint64_t nr)
{
	uint64_t end = first + nr;
	int r = 0;

	while (r == 0 && first < end) {
		uint64_t data = contents_next_data(&ex->from, first << WPFS_PAGE_SHIFT);
		uint64_t piece, next = data == ex->from.size ? end : data >> WPFS_PAGE_SHIFT;

		if (next > end)
			next = end;
		put_zeros(ex, first, next - first);
		piece = end - next < MANIFEST_RUN_MAX ? end - next : MANIFEST_RUN_MAX;
		if (piece)
			r = put_piece(ex, next, piece);
		first = next + piece;
	}
	return r;
}

static int put_pages(struct export *ex, const struct mm_set *pages)
{
	const uint64_t all = manifest_pages(ex->from.size);
	uint64_t first, nr;
	struct mm_runs runs;
	int r = 0;

	if (ex->manifest.full) {
		r = put_run(ex, 0, all);
	} else {
		mm_runs_begin(&runs, pages, 0, all);
		while (r == 0 && mm_runs_next(&runs, &first, &nr))
			r = put_run(ex, first, nr);
	}
	flush_zeros(ex);
	return r;
}

/* ---- files ---- */

static int open_dir(struct export *ex)
{
	const char *dir = ex->args->operand;

	if (mkdir(dir, 0700) && errno != EEXIST)
		return fail(dir, log_errstr(errno));
	ex->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (ex->dir_fd < 0)
		return fail(dir, log_errstr(errno));
	if (faccessat(ex->dir_fd, MANIFEST_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		return fail(dir, "holds an export already: give another directory");
	return 0;
}

static int open_part(const struct export *ex, const char *name)
{
	int fd = openat(ex->dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
			0600);

	return fd < 0 ? -errno : fd;
}

static int write_files(struct export *ex, const struct mm_set *pages)
{
	int fd, r;
	FILE *f;

	ex->pages_fd = open_part(ex, MANIFEST_PAGES MANIFEST_PART);
	fd = ex->pages_fd < 0 ? ex->pages_fd : open_part(ex, MANIFEST_NAME MANIFEST_PART);
	if (fd < 0)
		return fd;
	f = fdopen(fd, "w");
	if (!f) {
		close(fd);
		return -ENOMEM;
	}
	r = manifest_begin(&ex->writer, f, &ex->manifest);
	if (r == 0)
		r = put_pages(ex, pages);
	if (r == 0 && fsync(ex->pages_fd))
		r = -errno;
	return r ?: manifest_end(&ex->writer, &ex->manifest);
}

static int name_files(const struct export *ex)
{
	const int fd = ex->dir_fd;

	if (renameat(fd, MANIFEST_PAGES MANIFEST_PART, fd, MANIFEST_PAGES) || fsync(fd) ||
	    renameat(fd, MANIFEST_NAME MANIFEST_PART, fd, MANIFEST_NAME) || fsync(fd))
		return -errno;
	return 0;
}

/* ---- the command ---- */

static int fill_manifest(struct export *ex, const struct target *target,
			 const struct changed *changed)
{
	struct manifest *m = &ex->manifest;
	size_t len;
	FILE *f = open_memstream(&m->file, &len);

	if (!f)
		return -ENOMEM;
	say_text(f, ex->args->select.file);
	if (fclose(f))
		return -ENOMEM;
	snprintf(m->store, sizeof(m->store), "%s", target->id);
	snprintf(m->name, sizeof(m->name), "%s", ex->args->select.name);
	m->full = ex->args->full;
	m->epoch = changed->epoch;
	m->complete = !changed->gap[0];
	m->size = ex->from.size;
	ex->buf = malloc(MANIFEST_RUN_MAX << WPFS_PAGE_SHIFT);
	return ex->buf ? 0 : -ENOMEM;
}

static int show(const struct export *ex)
{
	const struct manifest *m = &ex->manifest;
	char pages[40], size[16], of[16];
	struct json json;

	if (ex->args->json) {
		json_init(&json, stdout);
		json_object(&json, NULL);
		json_bytes(&json, "file", ex->args->select.file);
		json_bytes(&json, "directory", ex->args->operand);
		json_string(&json, "kind", m->full ? "full" : "dirty");
		json_u64(&json, "epoch", m->epoch);
		json_bool(&json, "complete", m->complete);
		json_u64(&json, "size", m->size);
		json_u64(&json, "pages", m->pages);
		json_u64(&json, "zero_pages", m->zero_pages);
		json_end(&json);
		return ctl_finish();
	}
	printf("exported %s (%s) and %" PRIu64 " of zeros, of a file of %s",
	       table_count(m->pages, "page", pages, sizeof(pages)),
	       units_format_size(m->pages << WPFS_PAGE_SHIFT, size, sizeof(size)), m->zero_pages,
	       units_format_size(m->size, of, sizeof(of)));
	if (m->full)
		printf(": all of it\n");
	else
		printf(", epoch %" PRIu64 "\n", m->epoch);
	return ctl_finish();
}

/* Which pages, and are they all? */
static int find_pages(const struct export *ex, struct target *target, struct changed *changed)
{
	const struct ctl_args *args = ex->args;
	int r;

	if (args->full)
		return 0;
	r = changed_find(changed, target, args);
	if (r || !changed->gap[0])
		return r;
	if (!args->force) {
		ctl_say("export: %s: %s: pages may be missing: %s: export it with --full, or with "
			"--force what is known",
			target->arg, args->select.file, changed->gap);
		return CTL_FAILED;
	}
	ctl_say("export: %s: %s: pages may be missing: %s", target->arg, args->select.file,
		changed->gap);
	return 0;
}

int cmd_export(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	_cleanup_(changed_free) struct changed changed = {.gap = ""};
	_cleanup_(export_done) struct export ex = {
		.args = args, .from.fd = -1, .dir_fd = -1, .pages_fd = -1};
	int r;

	r = target_open(&target, "export", args->target, TARGET_STORE_OK);
	r = r ?: open_dir(&ex);
	r = r ?: find_pages(&ex, &target, &changed);
	r = r ?: contents_open(&ex.from, &target, args->select.file);
	if (r)
		return r;
	if (changed.file && changed.file != ex.from.id)
		return fail(args->select.file, "another file has its name now: export again");
	r = fill_manifest(&ex, &target, &changed);
	r = r ?: write_files(&ex, &changed.pages);
	r = r ?: name_files(&ex);
	return r ? fail(args->operand, log_errstr(r)) : show(&ex);
}
