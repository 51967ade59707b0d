/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One tracked address space: what of the mount it maps and which pages are armed, marked, dirty.
 * Pure bookkeeping without I/O; the caller observes the kernel and stores the result. No locks:
 * one thread owns an mm.
 *
 * Marks belong to addresses and live in mm_vma; armed and dirty belong to (file, page offset) and
 * live in mm_file, once per owner. For marks of owner wpfs `dirty` is sticky: within an epoch a
 * page never becomes clean again, so a mapping may go and its history stays. For owner program
 * `dirty` is what is armed and not marked now, because the program may re-protect at any time: a
 * lower bound.
 *
 * What the program had marked when its last run ended is *carried* until it registers in this one:
 * where that run has it mapped wpfs's uffd watches it, so that no store comes unseen before the
 * program's REGISTER, and what is stored to is dirty for owner program as well.
 *
 * When unsure, a page is dirty. Every place that decides so without having seen the write adds to
 * mm->conservative.
 *
 * Addresses are in bytes, everything else in pages. Page offsets are below MM_PGOFF_MAX.
 */
#ifndef WPFS_MM_MODEL_H
#define WPFS_MM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uthash.h>

#include "mm/set.h"

/* Page offsets are 32 bits (16 TiB): the width of a CRoaring bitmap. */
#define MM_PGOFF_MAX ((uint64_t)1 << 32)

enum mm_owner { MM_WPFS, MM_PROGRAM, MM_NR_OWNERS };

/*
 * Why entries of a page table go, or what is in their pages. The kernel keeps the mark of an entry
 * that goes, in a marker, unless its mapping goes: only unmapping clears one. What goes while
 * mapping and contents stay (reclaim, swap, MADV_DONTNEED, mprotect, an eviction) changes nothing
 * here either, and needs no reason.
 */
enum zap_reason {
	ZAP_DROP,   /* punch hole, truncate, MADV_REMOVE: the mark stays, with other contents */
	ZAP_UNMAP,  /* the mapping goes, harvested after its last store */
	ZAP_UNSEEN, /* the mapping went or was replaced: its last stores are unknown */
	ZAP_LOST,   /* the whole mm went so */
};

struct mm_vma {
	uint64_t start, end;  /* bytes */
	uint64_t file;	      /* file id */
	uint64_t pgoff;	      /* pages */
	uint64_t dev;	      /* st_dev it was mapped through */
	uint32_t prot;	      /* PROT_* */
	enum mm_owner owner;  /* of the uffd it is registered with; valid if registered */
	bool registered;      /* write-protect mode of some uffd */
	bool async;	      /* that uffd is of the kind wpfs makes there: WP_ASYNC if native */
	bool sealed;	      /* can never become writable: not registered and no danger */
	struct mm_set marked; /* page indices relative to start */
};

struct mm_owned {
	struct mm_set armed; /* page offsets in the file */
	struct mm_set dirty; /* subset of armed */
};

/* Did write(2), or a call like it, change the file since its epoch in this mm began? */
enum mm_written { MM_WRITTEN_NO, MM_WRITTEN_YES, MM_WRITTEN_UNKNOWN };

struct mm_file {
	uint64_t id;
	bool protect;  /* all of it is protected: what is mapped or grows later is armed too */
	bool unopened; /* armed by mm_observe as the first of it: the caller is to open its epoch */
	enum mm_written written; /* nothing here changes it; UNKNOWN until its first epoch */
	/*
	 * The contents that the armed pages had when they were armed may not be in the store yet;
	 * `settling`: somebody who began after the last arming is about to see to that.
	 */
	bool unsettled, settling;
	struct mm_owned own[MM_NR_OWNERS];
	UT_hash_handle hh;
};

struct mm {
	uint64_t id;	  /* row id */
	uint64_t epoch;	  /* number of the open epoch, 0 = nothing was ever protected */
	bool protect_new; /* --protect: every shared mapping is armed as it is made */
	bool own_uffds;	  /* the program is known to have registered uffds of its own */
	bool own_doubted; /* and their marks are not believed: some came when it had gone on */
	/* The program is about to register this: what it carries is looked at when it has. */
	uint64_t aside_start, aside_end;
	struct mm_vma *vmas; /* ascending by start, disjoint */
	size_t nr_vmas;
	struct mm_file *files; /* uthash by id */
	uint64_t conservative; /* pages called dirty without proof, since the mm began */
};

static inline uint64_t mm_vma_pages(const struct mm_vma *vma)
{
	return (vma->end - vma->start) >> 12;
}

void mm_init(struct mm *mm);
void mm_free(struct mm *mm);

/* Pages of the file are about to be armed, or were found to be. */
static inline void mm_file_unsettle(struct mm_file *file)
{
	file->unsettled = true;
	file->settling = false;
}

/* Frees an array of VMAs with their sets. */
void mm_vmas_free(struct mm_vma *vmas, size_t nr);

/* The file's entry, or NULL. */
struct mm_file *mm_file_find(const struct mm *mm, uint64_t file);

/* The file's entry, made when there is none. NULL: out of memory. */
struct mm_file *mm_file_get(struct mm *mm, uint64_t file);

/* Forgets a file whose last link and last mapping are gone, and what mappings it had. */
void mm_file_remove(struct mm *mm, struct mm_file *file);

/*
 * A harvest: `now` is what the kernel says, ascending by start, with `marked` filled and `owner`
 * not; it is taken over and freed by the mm. Registered ranges that went from their address and
 * turn up nowhere else in the mm were unmapped unseen: what was armed there is dirty. With
 * protect_new a mapping that nobody told of is armed now, and dirty. 0 or -ENOMEM, and then `now`
 * is freed and nothing became cleaner.
 */
int mm_observe(struct mm *mm, struct mm_vma *now, size_t nr);

/*
 * A new mapping that the kernel shows at vma->start; `marked` must be initialised and is taken
 * over. Whatever the mm knew at those addresses was replaced unseen. If it is neither registered
 * nor sealed, what is armed of its pages is dirty from now on. 0 or -ENOMEM.
 */
int mm_map(struct mm *mm, struct mm_vma *vma);

/*
 * The mappings of [start, end) go: ZAP_UNMAP, the mm was observed after the last store to them, or
 * ZAP_UNSEEN, and then what wpfs had armed there is dirty. 0 or -ENOMEM.
 */
int mm_unmap(struct mm *mm, uint64_t start, uint64_t end, enum zap_reason why);

/*
 * Marks VMAs of [start, end) as registered by `owner` (or by nobody). Splits at the borders. What
 * the program had registered and has no more has none of its marks either. 0 or -ENOMEM.
 */
int mm_set_registered(struct mm *mm, uint64_t start, uint64_t end, bool registered,
		      enum mm_owner owner, bool async);

/*
 * Which pages of [pgoff, pgoff + nr) wpfs is to arm in a new mapping: adds them to *set. With
 * `fresh` (the file is protected as a whole): all but the dirty ones; else those armed and not
 * dirty. 0 or -ENOMEM.
 */
int mm_plan_arm(const struct mm *mm, uint64_t file, bool fresh, uint64_t pgoff, uint64_t nr,
		struct mm_set *set);

/*
 * Adds to *set what of [pgoff, pgoff + nr) is carried and not known to have been stored to: armed
 * by the program, and shown by no mapping that it has registered. 0 or -ENOMEM.
 */
int mm_carried(const struct mm *mm, const struct mm_file *file, uint64_t pgoff, uint64_t nr,
	       struct mm_set *set);

/* What is carried in [pgoff, pgoff + nr) is dirty. 0 or -ENOMEM. */
int mm_doubt_carried(struct mm *mm, struct mm_file *file, uint64_t pgoff, uint64_t nr);

/* The same of those pages of *set. */
int mm_carried_written(struct mm *mm, struct mm_file *file, const struct mm_set *set);

/*
 * Adds to *set which pages of the file the mappings in [start, end) say are dirty: armed, shown by
 * one that `owner` has registered, and not marked there. 0 or -ENOMEM.
 */
int mm_shown_dirty(const struct mm *mm, const struct mm_file *file, enum mm_owner owner,
		   uint64_t start, uint64_t end, struct mm_set *set);

/* Adds those of all mappings to the dirty sets of all files: of a model that comes from where they
 * are not kept twice. 0 or -ENOMEM. */
int mm_fold_shown(struct mm *mm);

/* ZAP_DROP: contents of [pgoff, pgoff + nr) were dropped: armed pages there are dirty. */
int mm_drop(struct mm *mm, uint64_t file, uint64_t pgoff, uint64_t nr);

/* Everything that owner wpfs armed in [pgoff, pgoff + nr) of the file is dirty, and all that is
 * carried. */
int mm_doubt(struct mm *mm, struct mm_file *file, uint64_t pgoff, uint64_t nr);

/* The first of these alone. */
int mm_doubt_armed(struct mm *mm, struct mm_file *file, uint64_t pgoff, uint64_t nr);

/* ZAP_LOST: the address space is gone without a last harvest: all that is armed is dirty. */
int mm_lost(struct mm *mm);

/* The same of one file. */
int mm_file_lost(struct mm *mm, struct mm_file *file);

/*
 * wpfs's registration has gone while the mm lives: what owner wpfs armed is dirty, and no mapping
 * is registered with it any more. What the program registered itself is as it was.
 */
int mm_lost_registration(struct mm *mm);

/* Forgets all mappings (the mm is gone and harvested; a next run will map anew). */
void mm_forget_vmas(struct mm *mm);

/* Nothing is armed in it: there is nothing to remember. */
bool mm_is_empty(const struct mm *mm);

/*
 * Debug check of the invariants (VMAs ascending and disjoint, dirty within armed, marks within
 * their VMA). Returns NULL or what is broken.
 */
const char *mm_check(const struct mm *mm);

#endif
