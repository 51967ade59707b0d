/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stores through mappings and passthrough writes leave no trace of which page they changed: what
 * changed is found by looking at all pages. Looking is what is made cheap. A hash of 16 bytes for
 * each page of 4096 stands for what the data file has, and the lower file is hashed where it is,
 * through a mapping that stays: a quarter of the time that two reads and a comparison take.
 *
 * A load from a hole of a shared mapping of tmpfs would fill it. So the mapping is registered with
 * a userfaultfd that turns a missing page into SIGBUS, as the end of the file is one, and whoever
 * scans lands behind it.
 *
 * The hash is 128 bits and has a seed that nobody knows: a page that differs and is not seen does
 * not happen, not even on purpose.
 */
#include "fs/store_image.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "base/sigbus.h"
#include "base/units.h"
#include "fs/priv.h"

struct store_image {
	XXH128_hash_t *pages; /* those behind `nr` are zeros */
	uint64_t nr, room;
	bool known, broken; /* broken: some page could not be noted */
	char *map;	    /* or NULL */
	uint64_t map_len;
	uint64_t asked, data,
		hole; /* in this pass: of pages [asked, hole) those from `data` on are data */
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t seed;	      /* constant after once, as the next two */
static XXH128_hash_t zeros;   /* of a page of zeros */
static int missing_uffd = -1; /* -1: nothing is mapped */

static int open_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_SHMEM};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0)
		close_fd(&fd);
	return fd;
}

static void begin(void)
{
	static const char page[WPFS_PAGE_SIZE];

	if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
		seed = (uintptr_t)&seed;
	zeros = XXH3_128bits_withSeed(page, sizeof(page), seed);
	if (sigbus_begin() == 0)
		missing_uffd = open_uffd();
	if (missing_uffd < 0)
		log_info("files are compared with the store by reading them: %s",
			 log_errstr(errno));
}

struct store_image *store_image_new(void)
{
	pthread_once(&once, begin);
	return calloc(1, sizeof(struct store_image));
}

void store_image_free(struct store_image *image)
{
	if (!image)
		return;
	store_image_unmap(image);
	free(image->pages);
	free(image);
}

bool store_image_known(const struct store_image *image)
{
	return image->known;
}

void store_image_set_known(struct store_image *image)
{
	image->known = !image->broken;
	image->broken = false;
	if (!image->known)
		image->nr = 0;
}

bool store_image_whole(const struct store_image *image)
{
	return !image->broken;
}

void store_image_doubt(struct store_image *image)
{
	image->broken = true;
}

static bool image_grow(struct store_image *image, uint64_t nr)
{
	if (nr > image->room) {
		uint64_t room = nr + nr / 2;
		XXH128_hash_t *pages = reallocarray(image->pages, room, sizeof(*pages));

		if (!pages)
			return false;
		image->pages = pages;
		image->room = room;
	}
	while (image->nr < nr)
		image->pages[image->nr++] = zeros;
	return true;
}

void store_image_put(struct store_image *image, uint64_t page, const char *data)
{
	XXH128_hash_t hash = XXH3_128bits_withSeed(data, WPFS_PAGE_SIZE, seed);

	if (page >= image->nr && XXH128_isEqual(hash, zeros))
		return;
	if (page >= image->nr && !image_grow(image, page + 1))
		image->broken = true;
	else
		image->pages[page] = hash;
}

bool store_image_same(const struct store_image *image, uint64_t page, const char *data)
{
	XXH128_hash_t hash = XXH3_128bits_withSeed(data, WPFS_PAGE_SIZE, seed);

	return XXH128_isEqual(hash, page < image->nr ? image->pages[page] : zeros);
}

uint64_t store_image_next(const struct store_image *image, uint64_t page)
{
	while (page < image->nr && XXH128_isEqual(image->pages[page], zeros))
		page++;
	return page < image->nr ? page : UINT64_MAX;
}

void store_image_cut(struct store_image *image, uint64_t pages)
{
	if (pages < image->nr)
		image->nr = pages;
}

/* ---- the mapping ---- */

static char *map_missing(int fd, uint64_t len)
{
	char *map = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
	struct uffdio_register reg = {.range = {.start = (uintptr_t)map, .len = len},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};

	if (map == MAP_FAILED)
		return NULL;
	madvise(map, len, MADV_DONTDUMP);
	if (ioctl(missing_uffd, UFFDIO_REGISTER, &reg) < 0) {
		munmap(map, len);
		return NULL;
	}
	return map;
}

void store_image_map(struct store_image *image, int lower_fd, uint64_t size)
{
	_cleanup_close_ int fd = -1;
	uint64_t len = (size + size / 2 + (1 << 20)) & ~(WPFS_PAGE_SIZE - 1); /* it may grow */

	image->asked = image->data = image->hole = 0;
	if (missing_uffd < 0 || (image->map && image->map_len >= size))
		return;
	store_image_unmap(image);
	/* A userfaultfd may be had only for what could be written. */
	fd = open(fs_proc_path(lower_fd).s, O_RDWR | O_NOATIME | O_CLOEXEC);
	if (fd >= 0)
		image->map = map_missing(fd, len);
	image->map_len = image->map ? len : 0;
}

void store_image_unmap(struct store_image *image)
{
	if (image->map)
		munmap(image->map, image->map_len);
	image->map = NULL;
	image->map_len = 0;
}

void store_image_rest(struct store_image *image)
{
	if (image->map)
		madvise(image->map, image->map_len, MADV_DONTNEED);
}

/* Pages [at, end) of `may`, of which the first is page number `first` of the file. */
static bool scan_run(const struct store_image *image, uint64_t first, size_t begin, size_t end,
		     bool *may)
{
	volatile bool any = false;
	volatile size_t at = begin;
	sigjmp_buf here;

	if (sigsetjmp(here, 1)) { /* with the mask: SIGBUS is blocked in its handler */
		may[at++] = true; /* a hole by now, or behind the end */
		any = true;
	}
	sigbus_landing = &here;
	while (at < end) {
		size_t n = at;

		may[n] = !store_image_same(image, first + n,
					   image->map + (first + n) * WPFS_PAGE_SIZE);
		if (may[n])
			any = true;
		at = n + 1;
	}
	sigbus_landing = NULL;
	return any;
}

/* The page where the run of `whence` that begins at or after `page` does; UINT64_MAX: none. */
static uint64_t seek_page(int fd, uint64_t page, int whence)
{
	off_t found = lseek(fd, (off_t)(page * WPFS_PAGE_SIZE), whence);

	return found < 0 ? UINT64_MAX : ((uint64_t)found + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE;
}

/*
 * The next run of data at or after `page`, into image->data and hole. It is asked for once and not
 * for each window: to find where it begins or ends the kernel walks over all pages until there.
 */
static void find_data(struct store_image *image, int fd, uint64_t page)
{
	if (page >= image->asked && page < image->hole)
		return;
	image->asked = page;
	image->data = seek_page(fd, page, SEEK_DATA);
	image->hole = image->data;
	if (image->data != UINT64_MAX)
		image->hole = seek_page(fd, image->data, SEEK_HOLE);
	if (image->hole <= image->data && image->data != UINT64_MAX)
		image->hole = image->data + 1; /* it has just become a hole */
}

bool store_image_scan(struct store_image *image, int lower_fd, uint64_t off, size_t len, bool *may)
{
	size_t nr = (len + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE;
	uint64_t first = off / WPFS_PAGE_SIZE;
	bool any = false;

	if (!image->map || off + len > image->map_len) {
		memset(may, true, nr * sizeof(*may));
		return true;
	}
	/* A load would make data of a page that is only allocated: only data is loaded. */
	for (size_t at = 0; at < nr;) {
		size_t end = at;

		find_data(image, lower_fd, first + at);
		for (; at < nr && first + at < image->data; at++) {
			may[at] = first + at < image->nr &&
				  !XXH128_isEqual(image->pages[first + at], zeros);
			any |= may[at];
		}
		for (end = at; end < nr && first + end < image->hole;)
			end++;
		any |= scan_run(image, first, at, end, may);
		at = end;
	}
	return any;
}
