/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tracking on a capped mount, for the files of this room: residency.c. Track thread, as all of it.
 * On a native mount every function does what its last line says.
 */
#ifndef WPFS_TRACK_RESIDENCY_H
#define WPFS_TRACK_RESIDENCY_H

#include "track/internal.h"

/*
 * Has the faults of an mm served from now on; `uffd` (duplicated) has had uffd_init_sync. 0 or
 * -errno. Native: 0.
 */
int residency_attach(struct track *t, struct tmm *tm, int uffd);

/* The mm has another witness than before. Native: nothing. */
void residency_renewed(struct track *t, struct tmm *tm);

/* wpfs's uffd of an mm whose witness is dead; the caller closes it. -ESRCH. Native: -ESRCH. */
int residency_uffd(const struct tmm *tm);

/*
 * A uffd of the mm that may be asked what is registered (harvest_request.uffd), borrowed until the
 * mm is let go of. Native: NULL.
 */
const int *residency_askable(struct track *t, const struct tmm *tm);

/* Is this descriptor of wpfs's uffd of the mm? Native: false. */
bool residency_is_uffd(const struct tmm *tm, int fd);

/*
 * A new daemon finds a live program without its witness: the program itself keeps the uffd, and if
 * it does still the mm goes on, `widowed`. Native: nothing.
 */
void residency_find_kept(struct track *t, struct tmm *tm);

/* Nobody has the mm that could fault. Native: nothing. */
void residency_detach(struct track *t, struct tmm *tm);

/*
 * After the last harvest, before the witness goes: the same, but where somebody may still have the
 * mm its faults are served until nobody has. Native: nothing.
 */
void residency_end(struct track *t, struct tmm *tm);

/*
 * strays_look() of a capped mount, where nobody but the daemon has the uffds of fork children. 0 or
 * -errno. Native: nothing.
 */
int residency_strays(struct track *t, struct tmm *tm);

/* The mm has another program. Native: nothing. */
void residency_moved(struct track *t, struct tmm *tm);

/*
 * A new daemon knows of all mms that were live whether anybody held their faults meanwhile: what is
 * in memory and in the store is decided on. Before any is resumed. Native: nothing.
 */
void residency_found(struct track *t);

/*
 * lost.c, of a capped mount: who is not tracked and maps pages that are in the store, with nobody
 * to hold its faults, has them in memory when this returns.
 */
void lost_find(struct track *t);

/*
 * A new daemon finds an mm that was live. First the doubt: what the last daemon was evicting may
 * look marked and not be. Then, if it lives, its faults are served again. At last, when that is
 * done for all, what was left is dealt with. Native: 0.
 */
int residency_resume_doubt(struct track *t, struct tmm *tm);
int residency_resume(struct track *t, struct tmm *tm);
void residency_resumed(struct track *t);

/* One whose program has ended meanwhile: its children may live. Native: 0. */
int residency_resume_children(struct track *t, struct tmm *tm);

/*
 * A new daemon cannot serve a live program's faults, since nobody has its userfaultfd any more: all
 * that it maps is brought into memory, and stays as the program is not tracked. Native: nothing.
 */
void residency_abandon(struct track *t, const struct tmm *tm);

/*
 * After the last harvest of an mm whose program lives on, untracked: it keeps the userfaultfd,
 * which nobody reads any more, so nothing stays registered with it. Native: nothing.
 */
void residency_let_alone(struct track *t, const struct tmm *tm);

/* From what a harvest saw to what the model knows. Native: as it is. */
void residency_translate(struct track *t, struct mm_vma *vmas, size_t nr);

/* Registers a mapping of a file with wpfs's uffd as it has to be. Native: uffd_register_wp. */
int residency_register(struct track *t, int uffd, uint64_t start, uint64_t end, uint64_t file);

/* Must mappings of this file not be unregistered? Native: false. */
bool residency_must_stay(struct track *t, uint64_t file);

/*
 * Registers a mapping that `tm` knows with wpfs's `uffd`, so that pages of it may leave, and `tm`
 * knows then that it is. 0 or -errno: -EBUSY: another userfaultfd has it.
 */
int residency_watch(struct tmm *tm, int uffd, const struct mm_vma *vma);

/*
 * May pages that this mapping shows be in the store? Not before the first of the file has left, nor
 * where another userfaultfd than wpfs's has it; it is wpfs's when this gives 1. 1, 0, or -errno.
 */
int residency_may_leave(struct track *t, struct tmm *tm, const struct mm_vma *vma);

/* Brings all of a file back before something is mapped that cannot be served. Native: 0. */
int residency_bring_back(struct track *t, uint64_t file);

/* Marks all of a mapping that wpfs registered with `uffd`, as pagemap_protect does. */
int residency_protect(struct track *t, struct tmm *tm, int uffd, int pagemap, uint64_t start,
		      uint64_t end, struct mm_set *written);

/*
 * A mapping is being made: registers it if pages of its file may be in the store, or brings them
 * back if that is not possible. 0 or -errno: it must not be used. Native: 0.
 */
int residency_map(struct track *t, struct tmm *tm, struct mm_vma *vma);

/*
 * Keeps the mount busy exactly while some mm maps a file of it: its mappings are of the lower file,
 * and would not stop an umount. With `look` they are harvested first. Native: nothing.
 */
void residency_busy(struct track *t, bool look);

/*
 * Takes these pages out, for the program of `tm` that waits for it: if that has hung up meanwhile
 * nothing is done. 0 or -errno. Native: 0.
 */
int residency_remove(struct track *t, const struct tmm *tm, uint64_t file, uint64_t pgoff,
		     uint64_t nr);

/* The uffd of a fork child, which the fault thread was given; the caller closes it. -errno. */
int residency_find_child(struct track *t, pid_t child, uint64_t scratch);

/* Requests. */
void residency_ticket(struct request *rq);
void residency_evict(struct request *rq);
void residency_load(struct request *rq);

/* Adds the pages of a file that are not in memory to *set. 0 or -ENOMEM. Native: none. */
int residency_spilled(struct track *t, uint64_t file, struct mm_set *set);

void residency_status(struct track *t, struct wpfs_status *status);

/* Lets go of what is in the store of files that are gone. Native: nothing. */
void residency_let_go(struct track *t);

/* Once a second. */
void residency_sweep(struct track *t);

#endif
