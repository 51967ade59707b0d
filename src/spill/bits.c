/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "spill/bits.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/units.h"

#define WORD_PAGES 64
#define GRAIN	   (8 * WPFS_PAGE_SIZE) /* pages whose bits fill a page of the file */

/* `bytes` is the length of the file: its head and whole pages of bits. */
static int bits_map(struct spill_bits *bits, uint64_t bytes)
{
	uint64_t mapped = SPILL_BITS_HEAD + bits->pages / 8;
	void *head;

	if (bits->head)
		head = mremap(bits->head, mapped, bytes, MREMAP_MAYMOVE);
	else
		head = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bits->fd, 0);
	if (head == MAP_FAILED)
		return -errno;
	bits->head = head;
	bits->words = (uint64_t *)((char *)head + SPILL_BITS_HEAD);
	bits->pages = (bytes - SPILL_BITS_HEAD) * 8;
	return 0;
}

int spill_bits_open(struct spill_bits *bits, int dir_fd, const char *name, bool create)
{
	struct stat st;
	int r;

	*bits = (struct spill_bits)SPILL_BITS_INIT;
	bits->fd = openat(dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0),
			  0600);
	if (bits->fd < 0)
		return -errno;
	r = fstat(bits->fd, &st) < 0 ? -errno : 0;
	if (r == 0 && st.st_size < SPILL_BITS_HEAD) {
		st.st_size = SPILL_BITS_HEAD;
		r = fallocate(bits->fd, 0, 0, SPILL_BITS_HEAD) < 0 ? -errno : 0;
	}
	if (r == 0)
		r = bits_map(bits, (uint64_t)st.st_size & ~(WPFS_PAGE_SIZE - 1));
	if (r < 0) {
		spill_bits_close(bits);
		return r;
	}
	for (uint64_t i = 0; i < bits->pages / WORD_PAGES; i++)
		bits->count += (uint64_t)__builtin_popcountll(bits->words[i]);
	return 0;
}

void spill_bits_close(struct spill_bits *bits)
{
	if (bits->head)
		munmap(bits->head, SPILL_BITS_HEAD + bits->pages / 8);
	close_fd(&bits->fd);
	*bits = (struct spill_bits)SPILL_BITS_INIT;
}

int spill_bits_reserve(struct spill_bits *bits, uint64_t pages)
{
	uint64_t bytes = SPILL_BITS_HEAD + (pages + GRAIN - 1) / GRAIN * WPFS_PAGE_SIZE;

	if (pages <= bits->pages)
		return 0;
	/* Allocated, not sparse: a full /run must be an error here and not SIGBUS at a store. */
	if (fallocate(bits->fd, 0, 0, (off_t)bytes) < 0)
		return -errno;
	return bits_map(bits, bytes);
}

bool spill_bits_test(const struct spill_bits *bits, uint64_t page)
{
	return page < bits->pages && (bits->words[page / WORD_PAGES] >> page % WORD_PAGES & 1);
}

void spill_bits_set(struct spill_bits *bits, uint64_t page)
{
	assert(page < bits->pages);
	if (!spill_bits_test(bits, page))
		bits->count++;
	bits->words[page / WORD_PAGES] |= (uint64_t)1 << page % WORD_PAGES;
}

void spill_bits_clear(struct spill_bits *bits, uint64_t page)
{
	if (!spill_bits_test(bits, page))
		return;
	bits->count--;
	bits->words[page / WORD_PAGES] &= ~((uint64_t)1 << page % WORD_PAGES);
}

void spill_bits_clear_range(struct spill_bits *bits, uint64_t first, uint64_t nr)
{
	uint64_t page = spill_bits_next(bits, first);

	while (page != UINT64_MAX && page - first < nr) {
		spill_bits_clear(bits, page);
		page = spill_bits_next(bits, page + 1);
	}
}

uint64_t spill_bits_next(const struct spill_bits *bits, uint64_t from)
{
	uint64_t word;

	if (from >= bits->pages || bits->count == 0)
		return UINT64_MAX;
	word = bits->words[from / WORD_PAGES] >> from % WORD_PAGES;
	if (word)
		return from + (uint64_t)__builtin_ctzll(word);
	for (uint64_t i = from / WORD_PAGES + 1; i < bits->pages / WORD_PAGES; i++) {
		if (bits->words[i])
			return i * WORD_PAGES + (uint64_t)__builtin_ctzll(bits->words[i]);
	}
	return UINT64_MAX;
}
