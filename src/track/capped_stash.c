/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The contents of a store that is mounted and does not fit into memory: they are copied to where
 * pages out of memory are, and their pages are spilled from the start.
 *
 * Not chosen: to read them from the data files when they are asked for. It would make the mount as
 * fast as its names; but a flush writes to those files and removes them, so each page would need to
 * know which of the two copies it has, also after a kill -9.
 */
#include "track/capped.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/units.h"
#include "fs/fs.h"
#include "spill/bits.h"
#include "spill/store.h"

#define WINDOW_PAGES 256u

/* Copies one window; sets the bits of its pages that are not zeros. */
static int stash_window(struct spill_io *io, int spill_fd, int data_fd, uint64_t first, uint64_t nr,
			struct spill_bits *bits)
{
	char *buf = spill_io_buf(io);
	struct spill_run run = {.nr = 0};
	int r = fdio_pread_zeros(data_fd, buf, nr << WPFS_PAGE_SHIFT, first << WPFS_PAGE_SHIFT);

	for (uint64_t i = 0; r == 0 && i <= nr; i++) {
		char *page = buf + (i << WPFS_PAGE_SHIFT);

		if (i < nr && !spill_is_zero(page, WPFS_PAGE_SIZE)) {
			if (run.nr == 0)
				run = (struct spill_run){first + i, 0, page};
			run.nr++;
			spill_bits_set(bits, first + i);
			continue;
		}
		if (run.nr)
			r = spill_store_write(io, spill_fd, &run, 1);
		run.nr = 0;
	}
	return r;
}

static int stash_contents(struct spill_store *store, uint64_t ino, int data_fd, uint64_t size,
			  struct spill_bits *bits)
{
	uint64_t end = (size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT, page = 0;
	_cleanup_close_ int spill_fd = spill_store_file(store, ino, true);
	struct spill_io *io = NULL;
	int r = spill_fd < 0 ? spill_fd : spill_bits_reserve(bits, end);

	if (r == 0)
		r = spill_store_engine(store, WINDOW_PAGES * WPFS_PAGE_SIZE, &io);
	while (r == 0 && page < end) {
		off_t at = lseek(data_fd, (off_t)(page << WPFS_PAGE_SHIFT), SEEK_DATA);
		uint64_t nr = WINDOW_PAGES;

		if (at < 0 && errno == ENXIO)
			break;
		if (at >= 0)
			page = (uint64_t)at >> WPFS_PAGE_SHIFT;
		if (page >= end)
			break;
		if (nr > end - page)
			nr = end - page;
		r = stash_window(io, spill_fd, data_fd, page, nr, bits);
		page += nr;
	}
	spill_io_free(io);
	return r;
}

static int stash_begin(struct capped_stash *s, struct spill_store *store)
{
	if (s->begun)
		return 0;
	if (mkdirat(s->private_fd, "spilled", 0700) < 0 && errno != EEXIST)
		return -errno;
	s->begun = true;
	return spill_store_wipe(store);
}

int capped_stash_file(void *stash, uint64_t ino, const struct fs_handle *handle, int data_fd,
		      uint64_t size)
{
	struct capped_stash *s = stash;
	struct spill_bits bits = SPILL_BITS_INIT;
	struct spill_store *store = NULL;
	_cleanup_close_ int dir_fd = -1;
	char name[24];
	struct stat st;
	int r;

	if (fstat(data_fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_blocks * 512 <= s->room) {
		s->room -= (uint64_t)st.st_blocks * 512;
		return 0;
	}
	r = spill_store_open(s->spill_fd, SPILL_PATH_URING, &store);
	if (r == 0)
		r = stash_begin(s, store);
	if (r == 0) {
		dir_fd = openat(s->private_fd, "spilled", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		snprintf(name, sizeof(name), "%" PRIu64, ino);
		r = dir_fd < 0 ? -errno : spill_bits_open(&bits, dir_fd, name, true);
	}
	if (r == 0) {
		memcpy(bits.head, handle, sizeof(*handle));
		r = stash_contents(store, ino, data_fd, size, &bits);
		spill_bits_close(&bits);
	}
	spill_store_close(store);
	return r < 0 ? r : 1;
}
