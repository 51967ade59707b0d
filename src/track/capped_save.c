/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What becomes of a batch between its lease and its un-fence: its pages are read, written to the
 * store, said to be there, and punched. It goes in chunks: while one is on its way to the disk the
 * next is read, and one that is there is punched. Pages that lie close together are not read: the
 * disk takes them from the lower file itself, by way of a mapping.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fdio.h"
#include "base/sigbus.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_room.h"
#include "track/capped_test.h"

#define PUNCH_PARTS 16 /* parts punched without anybody being served in between */
#define PUNCH_TRIES 16 /* of a page that comes back at once, and cannot be put back */

/*
 * A part of a batch on its way to the store: while one is written the next are read. Each has its
 * part of the engine's buffer.
 */
struct chunk {
	char *buf;
	uint64_t pages;			       /* that have a place in buf */
	uint64_t resident, zeros, stay;	       /* of them */
	struct spill_run runs[CAPPED_CHUNK];   /* to be stored */
	struct capped_run parts[CAPPED_CHUNK]; /* to be punched: in the order of buf */
	size_t nr_runs, nr_parts;
	size_t said;	      /* runs of which the bits say that they are stored */
	struct spill_job job; /* valid if `writing` */
	bool writing;
};

#define NR_CHUNKS (CAPPED_BATCH / CAPPED_CHUNK)

struct saving {
	struct capped *c;
	struct capped_batch *b;
	struct chunk *chunks; /* NR_CHUNKS, filled in turn */
	size_t at;
	uint64_t chunk_pages;
	int fd; /* the file in the store */
	off_t size;
	char *map; /* of the lower file: all of the batch. NULL: pages are copied to the buffers */
	uint64_t map_first, map_pages;
	uint64_t *left; /* out: pages that went */
};

static void save_page(struct chunk *k, uint64_t page, char *at)
{
	struct spill_run *last = k->nr_runs ? &k->runs[k->nr_runs - 1] : NULL;

	k->resident++;
	if (spill_is_zero(at, WPFS_PAGE_SIZE)) {
		k->zeros++;
		return;
	}
	if (last && last->first + last->nr == page &&
	    (char *)last->buf + (last->nr << WPFS_PAGE_SHIFT) == at)
		last->nr++;
	else
		k->runs[k->nr_runs++] = (struct spill_run){page, 1, at};
}

/*
 * Of pages that are all at `at`, in the mapping. Who has the file's descriptor may have cut it
 * since they were looked at, and what is in swap may be unreadable. 0 or -EIO.
 */
static int save_mapped(struct chunk *k, uint64_t first, uint64_t nr, char *at)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 1)) { /* with the mask: SIGBUS is blocked in its handler */
		sigbus_landing = NULL;
		return -EIO;
	}
	sigbus_landing = &here;
	for (uint64_t i = 0; i < nr; i++)
		save_page(k, first + i, at + (i << WPFS_PAGE_SHIFT));
	sigbus_landing = NULL;
	return 0;
}

/*
 * Reads what is resident of [first, first + nr) to `to`, or finds it there, if that is in the
 * mapping: a hole in the file must not be touched. 0 or -errno.
 */
static int save_range(const struct saving *sv, struct chunk *k, uint64_t first, uint64_t nr,
		      char *to)
{
	int fd = sv->b->file->fd, r = 0;
	uint64_t there = capped_in_memory(fd, first, nr);

	if (there == 0)
		return 0;
	/* Some: halves, down to what is all or nothing. */
	if (there < nr) {
		r = save_range(sv, k, first, nr / 2, to);
		return r < 0 ? r
			     : save_range(sv, k, first + nr / 2, nr - nr / 2,
					  to + ((nr / 2) << WPFS_PAGE_SHIFT));
	}
	if (sv->map) {
		capped_test_point("looked");
		return save_mapped(k, first, nr, to);
	}
	/* What is behind the end of the file is zeros. */
	r = fdio_pread_zeros(fd, to, nr << WPFS_PAGE_SHIFT, first << WPFS_PAGE_SHIFT);
	for (uint64_t i = 0; r == 0 && i < nr; i++)
		save_page(k, first + i, to + (i << WPFS_PAGE_SHIFT));
	return r;
}

/* Calls fn for the pages of the batch that go, as runs. */
static int for_leaving(const struct capped_batch *b,
		       int (*fn)(struct saving *sv, uint64_t first, uint64_t nr), struct saving *sv)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < b->nr_runs; i++) {
		uint64_t page = b->runs[i].first, end = page + b->runs[i].nr;

		while (r == 0 && page < end) {
			uint64_t n = 0;

			if (mm_set_is_empty(&b->used))
				n = end - page;
			while (page + n < end && !mm_set_contains(&b->used, page + n))
				n++;
			if (n)
				r = fn(sv, page, n);
			page += n ? n : 1;
		}
	}
	return r;
}

static int punch(int fd, uint64_t first, uint64_t nr)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)(first << WPFS_PAGE_SHIFT), (off_t)(nr << WPFS_PAGE_SHIFT)) < 0
		       ? -errno
		       : 0;
}

/*
 * A page that did not go although it was punched may be zeros now. `from`: a copy of it, or NULL;
 * then it is in the store, which is waited for: nobody may look at it before.
 */
static int put_back(struct saving *sv, struct chunk *k, uint64_t page, const char *from)
{
	const struct spill_run run = {page, 1, k->buf};
	off_t off = (off_t)(page << WPFS_PAGE_SHIFT);
	off_t left = sv->size > off ? sv->size - off : 0;
	size_t len = (size_t)(left < (off_t)WPFS_PAGE_SIZE ? left : (off_t)WPFS_PAGE_SIZE);
	int r = 0;

	if (!from) {
		from = k->buf;
		if (spill_bits_test(&sv->b->file->bits, page))
			r = spill_store_read(sv->c->evict_io, sv->fd, &run, 1);
		else
			memset(k->buf, 0, WPFS_PAGE_SIZE);
	}
	if (r == 0)
		r = fdio_put_full(sv->b->file->fd, from, len, off);
	if (r == 0)
		capped_forget(sv->c, sv->b->file, page, 1);
	return r;
}

/*
 * Somebody who got past the fence has made a page there again. It goes, or what was saved is put
 * back: it must not be both in memory and in the store. `from`: as for put_back.
 */
static int punch_again(struct saving *sv, struct chunk *k, uint64_t page, const char *from)
{
	int fd = sv->b->file->fd, r = 0;

	for (int tries = 0; tries < PUNCH_TRIES; tries++) {
		r = punch(fd, page, 1);
		if (r == 0 && capped_in_memory(fd, page, 1) == 0)
			return 0;
		r = put_back(sv, k, page, from);
		if (r == 0) {
			k->stay++;
			return 0;
		}
	}
	k->stay++;
	return r;
}

/* `from`: copies of the pages, or NULL. */
static int punch_part(struct saving *sv, struct chunk *k, const struct capped_run *part,
		      const char *from)
{
	int fd = sv->b->file->fd;
	int r = capped_test_fail("punch") ?: punch(fd, part->first, part->nr);
	bool punched = r == 0;

	if (capped_in_memory(fd, part->first, part->nr) == 0)
		return r;
	for (uint64_t i = 0; i < part->nr; i++) {
		uint64_t page = part->first + i;

		if (capped_in_memory(fd, page, 1) == 0)
			continue;
		if (punched) {
			int err = punch_again(sv, k, page,
					      from ? from + (i << WPFS_PAGE_SHIFT) : NULL);

			r = r < 0 ? r : err;
			continue;
		}
		/* It was not touched, so it is whole. */
		capped_forget(sv->c, sv->b->file, page, 1);
		k->stay++;
	}
	return r;
}

/* Says of the pages before `end` that they are in the store. Lock held. */
static void chunk_say(struct saving *sv, struct chunk *k, uint64_t end)
{
	struct spill_bits *bits = &sv->b->file->bits;
	uint64_t before = bits->count;

	for (; k->said < k->nr_runs && k->runs[k->said].first < end; k->said++) {
		for (uint64_t p = 0; p < k->runs[k->said].nr; p++)
			spill_bits_set(bits, k->runs[k->said].first + p);
	}
	sv->c->counts.spilled += bits->count - before;
}

/*
 * What is in the store now may leave memory. Some parts at a time, with the lock held: what is
 * counted twice meanwhile must not be seen, and faults wait no longer than for a few.
 */
static int chunk_punch(struct saving *sv, struct chunk *k)
{
	struct capped *c = sv->c;
	struct capped_file *f = sv->b->file;
	const char *from = sv->map ? NULL : k->buf;
	int r = 0;

	/* All of them, whatever fails: a page that stays is not spilled, though the bits say so
	 * then. */
	for (size_t i = 0; i < k->nr_parts;) {
		size_t end = k->nr_parts - i < PUNCH_PARTS ? k->nr_parts : i + PUNCH_PARTS;

		pthread_mutex_lock(&c->lock);
		chunk_say(sv, k, k->parts[end - 1].first + k->parts[end - 1].nr);
		capped_test_point("spilled"); /* nobody is served */
		capped_time_begin(c, f, CAPPED_MTIME);
		for (; i < end; i++) {
			int err = punch_part(sv, k, &k->parts[i], from);

			r = r < 0 ? r : err;
			if (from)
				from += k->parts[i].nr << WPFS_PAGE_SHIFT;
		}
		capped_time_end(f, CAPPED_MTIME);
		pthread_mutex_unlock(&c->lock);
	}
	pthread_mutex_lock(&c->lock);
	*sv->left += k->resident - k->stay;
	c->counts.evictions += k->resident - k->stay;
	c->counts.zeros += k->zeros;
	capped_limit_set(c, true);
	pthread_mutex_unlock(&c->lock);
	return r;
}

/* Waits for its pages to be in the store. */
static int chunk_wait(struct saving *sv, struct chunk *k)
{
	int r = spill_store_end(sv->c->evict_io, &k->job, k->runs, k->nr_runs);

	return r == 0 ? capped_test_fail("spill-write") : r;
}

/* `r` is what came of that: punches them, and empties it. */
static int chunk_done(struct saving *sv, struct chunk *k, int r)
{
	if (r == 0) {
		capped_test_point("saved");
		r = chunk_punch(sv, k);
		capped_test_point("punched");
	} else {
		/* A full store must not stay so for pages that are not in it. */
		spill_store_discard(sv->fd, k->runs, k->nr_runs);
	}
	*k = (struct chunk){.buf = k->buf};
	return r;
}

static int chunk_end(struct saving *sv, struct chunk *k)
{
	return k->writing ? chunk_done(sv, k, chunk_wait(sv, k)) : 0;
}

/*
 * Begins to write the one that was filled, and makes the next one empty, if it was written. In this
 * order: a disk may say of all it was given that it is done at once, and has nothing to do then.
 */
static int chunk_write(struct saving *sv)
{
	struct chunk *k = &sv->chunks[sv->at], *oldest;
	size_t next = (sv->at + 1) % NR_CHUNKS;
	bool waited;
	int r, written;

	if (k->nr_parts == 0)
		return 0;
	oldest = &sv->chunks[next];
	waited = oldest->writing;
	r = written = waited ? chunk_wait(sv, oldest) : 0;
	if (r == 0)
		r = spill_store_begin(sv->c->evict_io, &k->job, sv->fd, true, k->runs, k->nr_runs);
	if (r == 0) {
		k->writing = true;
		sv->at = next;
	}
	if (waited) {
		int err = chunk_done(sv, oldest, written);

		r = r < 0 ? r : err;
	}
	return r;
}

static int save_leaving(struct saving *sv, uint64_t first, uint64_t nr)
{
	int r = 0;

	while (r == 0 && nr) {
		struct chunk *k = &sv->chunks[sv->at];
		uint64_t n = nr < sv->chunk_pages - k->pages ? nr : sv->chunk_pages - k->pages;
		char *to = sv->map ? sv->map + ((first - sv->map_first) << WPFS_PAGE_SHIFT)
				   : k->buf + (k->pages << WPFS_PAGE_SHIFT);

		r = save_range(sv, k, first, n, to);
		k->parts[k->nr_parts++] = (struct capped_run){first, n};
		k->pages += n;
		first += n;
		nr -= n;
		if (r == 0 && k->pages == sv->chunk_pages)
			r = chunk_write(sv);
	}
	return r;
}

/*
 * Maps the batch, if it is most of what lies between its ends and all of it within the file. Nobody
 * truncates that meanwhile. If it cannot be done its pages are copied.
 */
static void saving_map(struct saving *sv)
{
	const struct capped_run *last = &sv->b->runs[sv->b->nr_runs - 1];
	uint64_t first = sv->b->runs[0].first, end = last->first + last->nr;

	if (end - first > 2 * sv->b->pages ||
	    end > ((uint64_t)sv->size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT ||
	    sigbus_begin() < 0)
		return;
	sv->map = mmap(NULL, (end - first) << WPFS_PAGE_SHIFT, PROT_READ, MAP_SHARED,
		       sv->b->file->fd, (off_t)(first << WPFS_PAGE_SHIFT));
	if (sv->map == MAP_FAILED)
		sv->map = NULL;
	sv->map_first = first;
	sv->map_pages = end - first;
}

static int save_and_punch(struct saving *sv)
{
	struct capped *c = sv->c;
	struct capped_file *f = sv->b->file;
	struct stat st;
	int r = capped_test_fail("lower-read");

	if (r == 0 && fstat(f->fd, &st) < 0)
		r = -errno;
	pthread_mutex_lock(&c->lock);
	sv->fd = capped_spill_fd(c, f, true);
	if (r == 0)
		r = sv->fd < 0 ? sv->fd : 0;
	if (r == 0)
		capped_time_begin(c, f, CAPPED_ATIME);
	pthread_mutex_unlock(&c->lock);
	if (r < 0)
		return r;
	sv->size = st.st_size;
	spill_store_reserve(sv->fd, ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT);
	saving_map(sv);
	r = for_leaving(sv->b, save_leaving, sv);
	if (r == 0)
		r = chunk_write(sv);
	/* The oldest first. What was written by then goes, whatever became of the others. */
	for (size_t i = 0; i < NR_CHUNKS; i++) {
		int err = chunk_end(sv, &sv->chunks[(sv->at + i) % NR_CHUNKS]);

		r = r < 0 ? r : err;
	}
	if (sv->map)
		munmap(sv->map, sv->map_pages << WPFS_PAGE_SHIFT);
	pthread_mutex_lock(&c->lock);
	capped_time_end(f, CAPPED_ATIME);
	pthread_mutex_unlock(&c->lock);
	return r;
}

int capped_save(struct capped *c, struct capped_batch *b, uint64_t *pages)
{
	/* A small batch too is written while it is read. */
	struct saving sv = {
		.c = c,
		.b = b,
		.left = pages,
		.chunk_pages = b->pages < CAPPED_BATCH ? CAPPED_CHUNK / 2 : CAPPED_CHUNK,
	};
	int r;

	sv.chunks = calloc(NR_CHUNKS, sizeof(*sv.chunks));
	for (size_t i = 0; sv.chunks && i < NR_CHUNKS; i++)
		sv.chunks[i].buf =
			(char *)spill_io_buf(c->evict_io) + (i * CAPPED_CHUNK << WPFS_PAGE_SHIFT);
	r = sv.chunks ? save_and_punch(&sv) : -ENOMEM;
	free(sv.chunks);
	return r;
}
