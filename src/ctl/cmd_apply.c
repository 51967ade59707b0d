/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything is checked before TARGET is touched, and each run once more when it is written, since
 * it is read a second time then. Writing the same pages twice changes nothing, so what was
 * interrupted is done again from the start.
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
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/manifest.h"
#include "ctl/say.h"
#include "ctl/table.h"

struct apply {
	const struct ctl_args *args;
	struct manifest manifest;
	char *buf; /* MANIFEST_RUN_MAX pages */
	int dir_fd, pages_fd, target_fd;
};

static void apply_done(struct apply *ap)
{
	close_fd(&ap->dir_fd);
	close_fd(&ap->pages_fd);
	close_fd(&ap->target_fd);
	manifest_free(&ap->manifest);
	free(ap->buf);
}

static int fail(const char *on, const char *words)
{
	ctl_say("apply: %s: %s", on, words);
	return CTL_FAILED;
}

static int read_manifest(struct apply *ap)
{
	const char *dir = ap->args->target;
	char why[MANIFEST_WHY_SIZE] = "";
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	ap->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (ap->dir_fd < 0)
		return fail(dir, log_errstr(errno));
	r = fdio_read_file(ap->dir_fd, MANIFEST_NAME, &text, &len);
	if (r == -ENOENT)
		return fail(dir, "no whole export: it has no manifest: export again");
	r = r ?: manifest_parse(&ap->manifest, text, len, why);
	if (r == -EPROTONOSUPPORT)
		return fail(dir, "its manifest is of a later wpctl: use that one");
	if (r == -EBADMSG) {
		ctl_say("apply: %s: damaged: %s: nothing was changed", dir, why);
		return CTL_FAILED;
	}
	return r ? fail(dir, log_errstr(r)) : 0;
}

static int open_pages(struct apply *ap)
{
	const char *dir = ap->args->target;
	struct stat st;

	ap->pages_fd = openat(ap->dir_fd, MANIFEST_PAGES, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (ap->pages_fd < 0 || fstat(ap->pages_fd, &st))
		return fail(dir, log_errstr(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != ap->manifest.pages << WPFS_PAGE_SHIFT)
		return fail(dir, "damaged: its pages are not as many as its manifest says: nothing "
				 "was changed");
	ap->buf = malloc(MANIFEST_RUN_MAX << WPFS_PAGE_SHIFT);
	return ap->buf ? 0 : fail(dir, log_errstr(ENOMEM));
}

/* A run that is at page `at` of the pages. 0 or -errno; -EBADMSG: its checksum is wrong. */
static int read_run(const struct apply *ap, const struct manifest_run *run, uint64_t at)
{
	const size_t len = run->nr << WPFS_PAGE_SHIFT;
	int r = fdio_pread_full(ap->pages_fd, ap->buf, len, (off_t)(at << WPFS_PAGE_SHIFT));

	if (r == 0 && XXH3_64bits(ap->buf, len) != run->hash)
		r = -EBADMSG;
	return r;
}

static int fail_read(const struct apply *ap, int err, const char *then)
{
	ctl_say("apply: %s: %s: %s", ap->args->target,
		err == -EBADMSG ? "damaged: a checksum of its pages is wrong" : log_errstr(err),
		then);
	return CTL_FAILED;
}

static int check_pages(const struct apply *ap)
{
	uint64_t at = 0;

	for (size_t i = 0; i < ap->manifest.nr; i++) {
		const struct manifest_run *run = &ap->manifest.runs[i];
		int r = run->zero ? 0 : read_run(ap, run, at);

		if (r)
			return fail_read(ap, r, "nothing was changed");
		at += run->zero ? 0 : run->nr;
	}
	return 0;
}

/* Only what holds all of the file can be the first. */
static int open_target(struct apply *ap)
{
	const char *path = ap->args->operand;
	const int make = ap->manifest.full ? O_CREAT : 0;
	struct stat st;

	ap->target_fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | make, 0600);
	if (ap->target_fd < 0 && errno == ENOENT && !make)
		return fail(path, "no such file: the first copy is made of an export with --full");
	if (ap->target_fd < 0 || fstat(ap->target_fd, &st))
		return fail(path, log_errstr(errno));
	return S_ISREG(st.st_mode) ? 0 : fail(path, "not a regular file");
}

static int write_zeros(const struct apply *ap, uint64_t off, uint64_t end)
{
	int r = 0;

	if (fallocate(ap->target_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
		      (off_t)(end - off)) == 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != ENOSYS)
		return -errno;
	memset(ap->buf, 0, MANIFEST_RUN_MAX << WPFS_PAGE_SHIFT);
	for (uint64_t len; r == 0 && off < end; off += len) {
		len = end - off;
		if (len > MANIFEST_RUN_MAX << WPFS_PAGE_SHIFT)
			len = MANIFEST_RUN_MAX << WPFS_PAGE_SHIFT;
		r = fdio_pwrite_full(ap->target_fd, ap->buf, len, (off_t)off);
	}
	return r;
}

static int write_runs(const struct apply *ap)
{
	const struct manifest *m = &ap->manifest;
	uint64_t at = 0;
	int r = ftruncate(ap->target_fd, (off_t)m->size) ? -errno : 0;

	for (size_t i = 0; r == 0 && i < m->nr; i++) {
		const struct manifest_run *run = &m->runs[i];
		uint64_t off = run->first << WPFS_PAGE_SHIFT;
		uint64_t end = off + (run->nr << WPFS_PAGE_SHIFT);

		if (end > m->size)
			end = m->size; /* the last page of the file is a part of one */
		if (run->zero) {
			r = write_zeros(ap, off, end);
			continue;
		}
		r = read_run(ap, run, at);
		if (r)
			return fail_read(ap, r,
					 "the target is half written: apply a whole export "
					 "again");
		r = fdio_pwrite_full(ap->target_fd, ap->buf, end - off, (off_t)off);
		at += run->nr;
	}
	if (r == 0 && fsync(ap->target_fd))
		r = -errno;
	if (r)
		ctl_say("apply: %s: %s: it is half written: apply again", ap->args->operand,
			log_errstr(r));
	return r ? CTL_FAILED : 0;
}

static int show(const struct apply *ap)
{
	const struct manifest *m = &ap->manifest;
	char pages[40], size[16], of[16];
	struct json json;

	if (ap->args->json) {
		json_init(&json, stdout);
		json_object(&json, NULL);
		json_bytes(&json, "target", ap->args->operand);
		json_u64(&json, "epoch", m->epoch);
		json_bool(&json, "complete", m->complete);
		json_u64(&json, "size", m->size);
		json_u64(&json, "pages", m->pages);
		json_u64(&json, "zero_pages", m->zero_pages);
		json_end(&json);
	} else {
		printf("wrote %s (%s) and %" PRIu64 " of zeros, to a file of %s\n",
		       table_count(m->pages, "page", pages, sizeof(pages)),
		       units_format_size(m->pages << WPFS_PAGE_SHIFT, size, sizeof(size)),
		       m->zero_pages, units_format_size(m->size, of, sizeof(of)));
	}
	return ctl_finish();
}

int cmd_apply(const struct ctl_args *args)
{
	_cleanup_(apply_done) struct apply ap = {
		.args = args, .dir_fd = -1, .pages_fd = -1, .target_fd = -1};
	int r;

	r = read_manifest(&ap);
	r = r ?: open_pages(&ap);
	r = r ?: check_pages(&ap);
	r = r ?: open_target(&ap);
	r = r ?: write_runs(&ap);
	if (r)
		return r;
	if (!ap.manifest.complete)
		ctl_say("apply: %s: exported with --force: not all that had changed need be in it",
			args->target);
	return show(&ap);
}
