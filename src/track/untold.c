/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program could not tell (struct wpfs_untold): it counts that in its own memory, which is
 * read at every harvest.
 */
#include <errno.h>
#include <sys/uio.h>

#include "ipc/untold.h"
#include "track/internal.h"

/* All that is armed of one file (0: of any) is dirty. */
static int untold_doubt_file(struct track *t, struct tmm *tm, uint64_t file)
{
	struct mm_file *f = file ? mm_file_find(&tm->mm, file) : NULL;

	if (file & WPFS_UNTOLD_DROPPED) /* for everybody; nobody can say any more which pages */
		return drops_tell(t, file & ~WPFS_UNTOLD_DROPPED, 0, 0);
	if (!file)
		return mm_lost(&tm->mm);
	return f ? mm_doubt(&tm->mm, f, 0, MM_PGOFF_MAX) : 0;
}

/*
 * What was untold is not known any more. If contents may have been removed that is so for everybody
 * who has the files.
 */
static int untold_doubt_all(struct track *t, struct tmm *tm, bool dropped)
{
	struct mm_file *f, *next;
	int r = 0;

	HASH_ITER (hh, tm->mm.files, f, next) {
		if (r == 0 && dropped)
			r = drops_tell(t, f->id, 0, 0);
	}
	for (size_t i = 0; r == 0 && dropped && i < tm->mm.nr_vmas; i++) {
		uint64_t file = tm->mm.vmas[i].file;

		/* Only what is armed here is among the files. */
		if (!mm_file_find(&tm->mm, file) && (i == 0 || file != tm->mm.vmas[i - 1].file))
			r = drops_tell(t, file, 0, 0);
	}
	return r < 0 ? r : mm_lost(&tm->mm);
}

int tmm_untold(struct track *t, struct tmm *tm, pid_t pid)
{
	struct wpfs_untold untold;
	const struct iovec here = {&untold, sizeof(untold)};
	const struct iovec there = {(void *)(uintptr_t)tm->untold, sizeof(untold)};
	const struct iovec again = {(void *)(uintptr_t)tm->untold, sizeof(untold.count)};
	const uint64_t from = tm->untold_seen & WPFS_UNTOLD_COUNT;
	uint64_t last = 0, count;
	const struct iovec here_again = {&last, sizeof(last)};
	int r = 0;

	if (!tm->untold)
		return 0;
	errno = EFAULT; /* of a part that could be read */
	/* The count once more: a slot of the first may have been written anew meanwhile. */
	if (process_vm_readv(pid, &here, 1, &there, 1, 0) != (ssize_t)sizeof(untold) ||
	    process_vm_readv(pid, &here_again, 1, &again, 1, 0) != (ssize_t)sizeof(last)) {
		if (errno == ESRCH)
			return -ESRCH;
		if (errno == EFAULT)
			tm->untold = 0; /* it is not there, nor what would count in it */
		return untold_doubt_all(t, tm, true);
	}
	count = untold.count & WPFS_UNTOLD_COUNT;
	if (untold_is_whole(count, last & WPFS_UNTOLD_COUNT, from)) {
		for (uint64_t n = from; r == 0 && n < count; n++)
			r = untold_doubt_file(t, tm, untold.file[n % WPFS_UNTOLD_FILES]);
	} else {
		r = untold_doubt_all(t, tm, last & WPFS_UNTOLD_DROPPED);
	}
	if (r == 0 && (untold.count ^ tm->untold_seen) & WPFS_UNTOLD_CHILDREN)
		r = strays_lost(t, tm);
	if (r == 0)
		tm->untold_seen = untold.count & ~WPFS_UNTOLD_DROPPED;
	return r;
}
