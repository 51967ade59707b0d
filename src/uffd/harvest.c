/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd/harvest.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "uffd/maps.h"
#include "uffd/pagemap.h"

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

static int harvest_scan(const struct harvest_request *req, const struct maps_list *maps,
			struct harvest *out)
{
	_cleanup_free_ bool *wp = calloc(maps->nr + 1, sizeof(*wp));
	_cleanup_close_ int pagemap = -1;
	int r = 0;

	out->nr = 0;
	out->private_maps = false;
	out->vmas = calloc(maps->nr + 1, sizeof(*out->vmas));
	if (!wp || !out->vmas)
		return -ENOMEM;
	pagemap = pagemap_open(req->pid);
	if (pagemap < 0)
		return pagemap;
	if (req->own_uffds) {
		r = maps_read_wp(req->pid, maps, wp);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; r == 0 && i < maps->nr; i++) {
		const struct maps_vma *m = &maps->vmas[i];
		struct mm_vma *vma;

		if (!m->shared) {
			out->private_maps = true;
			continue;
		}
		if (m->pgoff + ((m->end - m->start) >> 12) > MM_PGOFF_MAX)
			continue; /* nothing can be armed there */
		vma = &out->vmas[out->nr++];
		*vma = (struct mm_vma){
			.start = m->start,
			.end = m->end,
			.file = m->ino,
			.pgoff = m->pgoff,
			.dev = m->dev,
			.prot = m->prot,
		};
		mm_set_init(&vma->marked);
		r = harvest_vma(pagemap, wp[i], vma);
	}
	return r;
}

static void harvest_drop(struct harvest *h)
{
	mm_vmas_free(h->vmas, h->nr);
	*h = (struct harvest){0};
}

/* Is this mapping in the list, unchanged? */
static bool harvest_still(const struct mm_vma *vma, const struct maps_list *maps)
{
	for (size_t i = 0; i < maps->nr; i++) {
		const struct maps_vma *m = &maps->vmas[i];

		if (m->start == vma->start)
			return m->end == vma->end && m->pgoff == vma->pgoff && m->dev == vma->dev &&
			       m->ino == vma->file && m->shared;
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
