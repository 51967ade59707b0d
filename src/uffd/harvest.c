/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd/harvest.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "uffd/maps.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

void (*harvest_test_hook)(pid_t pid);

/* Marks and registration of one mapping. */
static int harvest_vma(int pagemap, bool wp, struct mm_vma *vma)
{
	int async = pagemap_is_async(pagemap, vma->start);

	if (async < 0)
		return async;
	vma->async = async;
	vma->registered = async || wp;
	if (!vma->registered)
		return 0;
	/* A synchronous registration was read from VmFlags: bits left behind in a mapping that is
	 * not registered any more are no marks. */
	return pagemap_marked(pagemap, vma->start, vma->end, async, &vma->marked);
}

/* Adds the part [start, end) of a mapping with its marks. */
static int harvest_part(int pagemap, const struct maps_vma *m, uint64_t start, uint64_t end,
			bool wp, struct harvest *out)
{
	uint64_t pgoff = m->pgoff + ((start - m->start) >> WPFS_PAGE_SHIFT);
	struct mm_vma *vma;

	if (start >= end || pgoff + ((end - start) >> WPFS_PAGE_SHIFT) > MM_PGOFF_MAX)
		return 0; /* nothing, or where nothing can be armed */
	vma = &out->vmas[out->nr++];
	*vma = (struct mm_vma){
		.start = start,
		.end = end,
		.file = m->ino,
		.pgoff = pgoff,
		.dev = m->dev,
		.prot = m->prot,
	};
	mm_set_init(&vma->marked);
	return harvest_vma(pagemap, wp, vma);
}

static uint64_t clamp_u64(uint64_t value, uint64_t low, uint64_t high)
{
	return value < low ? low : value > high ? high : value;
}

/* Which mappings are registered. False: smaps has to be read. */
static bool harvest_ask(const struct harvest_request *req, const struct maps_list *maps,
			uint8_t *modes)
{
	for (size_t i = 0; req->uffd && i < maps->nr; i++) {
		int r = maps->vmas[i].shared
				? uffd_is_registered_wp(*req->uffd, maps->vmas[i].start)
				: 0;

		if (r < 0)
			return false;
		modes[i] = r ? MAPS_UFFD_WP : 0;
	}
	return req->uffd;
}

static int harvest_scan(const struct harvest_request *req, const struct maps_list *maps,
			struct harvest *out)
{
	_cleanup_free_ uint8_t *modes = calloc(maps->nr + 1, sizeof(*modes));
	_cleanup_close_ int pagemap = -1;
	int r = 0;

	out->nr = 0;
	out->private_maps = false;
	out->vmas = calloc(2 * maps->nr + 1, sizeof(*out->vmas)); /* one may be cut in two */
	if (!modes || !out->vmas)
		return -ENOMEM;
	pagemap = pagemap_open(req->pid);
	if (pagemap < 0)
		return pagemap;
	if (req->own_uffds && !harvest_ask(req, maps, modes)) {
		r = maps_read_uffd(req->pid, maps, modes);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; r == 0 && i < maps->nr; i++) {
		const struct maps_vma *m = &maps->vmas[i];
		uint64_t cut = clamp_u64(req->skip_start, m->start, m->end);
		uint64_t on = clamp_u64(req->skip_end, m->start, m->end);
		bool wp = modes[i] & MAPS_UFFD_WP;

		if (!m->shared) {
			out->private_maps = true;
			continue;
		}
		if (req->skip_start >= req->skip_end)
			cut = on = m->end;
		r = harvest_part(pagemap, m, m->start, cut, wp, out);
		if (r == 0)
			r = harvest_part(pagemap, m, on, m->end, wp, out);
	}
	return r;
}

static void harvest_drop(struct harvest *h)
{
	mm_vmas_free(h->vmas, h->nr);
	*h = (struct harvest){0};
}

/* Is this mapping, or the part of one, still what it was? */
static bool harvest_still(const struct mm_vma *vma, const struct maps_list *maps)
{
	for (size_t i = 0; i < maps->nr; i++) {
		const struct maps_vma *m = &maps->vmas[i];

		if (m->start <= vma->start && vma->end <= m->end)
			return m->pgoff + ((vma->start - m->start) >> WPFS_PAGE_SHIFT) ==
				       vma->pgoff &&
			       m->dev == vma->dev && m->ino == vma->file && m->shared;
	}
	return false;
}

int harvest_mm(const struct harvest_request *req, struct harvest *harvest)
{
	struct maps_list maps[2] = {0};
	int r;

	*harvest = (struct harvest){0};
	r = maps_read(req->pid, req->devs, req->nr_devs, &maps[0]);
	for (int tries = 1; r == 0; tries++) {
		r = harvest_scan(req, &maps[0], harvest);
		if (harvest_test_hook)
			harvest_test_hook(req->pid);
		if (r == 0)
			r = maps_read(req->pid, req->devs, req->nr_devs, &maps[1]);
		if (r < 0)
			break;
		if (maps_equal(&maps[0], &maps[1]))
			break;
		if (tries == HARVEST_TRIES) {
			for (size_t i = 0; i < harvest->nr; i++) {
				struct mm_vma *vma = &harvest->vmas[i];

				if (!harvest_still(vma, &maps[1])) {
					vma->registered = false;
					mm_set_clear(&vma->marked);
				}
			}
			break;
		}
		harvest_drop(harvest);
		struct maps_list swap = maps[0];

		maps[0] = maps[1];
		maps[1] = swap;
	}
	if (r < 0)
		harvest_drop(harvest);
	maps_free(&maps[0]);
	maps_free(&maps[1]);
	return r;
}
