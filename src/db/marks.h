/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The tracked address spaces in the database: who they are, what they map, which pages are armed,
 * marked and dirty, and the dirty sets of closed epochs. Everything but the loaders runs inside a
 * job (db_call, db_post) and gives 0 or -errno of db.h.
 */
#ifndef WPFS_DB_MARKS_H
#define WPFS_DB_MARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "db/db.h"
#include "ipc/wire.h"
#include "mm/model.h"

#define DB_ID_SIZE	    40 /* boot id, lower id, with NUL */
#define DB_NAME_SIZE	    (WPFS_NAME_MAX + 16)
#define DB_HANDLE_SIZE	    64 /* bytes of the longest file handle */

/* struct db_mm.flags: what reports say about the mm. */
#define DB_MM_PRIVATE_MAPS  (1u << 0) /* has mapped files of the mount MAP_PRIVATE */
#define DB_MM_MAPPED_SHARED (1u << 1) /* has mapped a file of the mount shared at some time */
#define DB_MM_OWN_UFFDS	    (1u << 2) /* has registered userfaultfds of its own */
#define DB_MM_FORK_CHILD    (1u << 3) /* made by fork of a tracked program */
#define DB_MM_NO_WITNESS    (1u << 4) /* its last marks will count as dirty */
#define DB_MM_MAYBE_SHARED  (1u << 5) /* another process may have its memory still */
#define DB_MM_OWN_DOUBTED   (1u << 6) /* marks of its own userfaultfds are not believed */
#define DB_MM_FLAGS_ALL	    ((1u << 7) - 1)

/* A row of mm. */
struct db_mm {
	uint64_t id;
	uint32_t uid;
	char name[DB_NAME_SIZE]; /* "" = unnamed */
	enum wpfs_mm_state state;
	pid_t pid;		  /* 0 exactly when detached */
	uint64_t start_time;	  /* of pid: clock ticks since boot */
	char boot_id[DB_ID_SIZE]; /* of the boot pid and start_time belong to */
	pid_t witness_pid;	  /* 0 = none */
	uint64_t witness_start;
	int uffd_fd, chan_fd;	   /* in the witness's table; -1 = none */
	char lower_id[DB_ID_SIZE]; /* the lower tmpfs it maps or mapped */
	uint64_t epoch;		   /* number of the open epoch, 0 = none yet */
	bool protect;		   /* arms new mappings as they are made */
	uint32_t flags;		   /* DB_MM_* */
	uint64_t conservative;	   /* pages called dirty without proof, so far */
	char comm[16];
	uint64_t untold;      /* address of its struct wpfs_untold; 0 = none */
	uint64_t untold_seen; /* how much of that is accounted for */
};

/* Makes or replaces the row. -EEXIST: another row has this uid and name. */
int db_mm_put(struct db_tx *tx, const struct db_mm *mm);

/* Removes the mm with all that belongs to it (mappings, sets, epochs). No number of an epoch is
 * given again: see db_last_epoch. */
int db_mm_delete(struct db_tx *tx, uint64_t id);

/*
 * Replaces the mappings of an mm, and its mark sets by those in vmas[].marked (of the registered
 * ones; vmas[].owner says whose). Only chunks that differ from the stored ones are written.
 */
#define DB_ADDR_MAX ((uint64_t)1 << 57) /* no address is above */

int db_vmas_replace(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr);

enum db_set_kind { DB_SET_ARMED, DB_SET_DIRTY };

/* Makes the stored set equal to *set. Only chunks that differ from the stored ones are written. */
int db_set_put(struct db_tx *tx, enum db_set_kind kind, uint64_t mm, enum mm_owner owner,
	       uint64_t file, const struct mm_set *set);

/* What a struct mm_file says of the file in that mm but for its sets. */
int db_mm_file_put(struct db_tx *tx, uint64_t mm, const struct mm_file *file);

/* The contents of that file, or of all files, are in the store as they were when pages were armed.
 */
int db_mm_file_settle(struct db_tx *tx, uint64_t mm, uint64_t file);
int db_settle_all(struct db *db);

/* Only that, in a row that is there. */
int db_mm_file_written(struct db_tx *tx, uint64_t mm, uint64_t file, enum mm_written written);

/* All sets of the file in that mm go, and its epochs. */
int db_mm_file_delete(struct db_tx *tx, uint64_t mm, uint64_t file);

/*
 * Stores a whole model: mappings, marks, and per file armed, dirty and protect; files that the
 * model does not have any more lose their sets. The row of the mm must be there (db_mm_put), and a
 * row (db_file_put) for each file.
 */
int db_model_put(struct db_tx *tx, const struct mm *mm);

/*
 * Of a model that differs from what is stored by a new mapping [start, end) of `file` and (`sets`)
 * by sets of that file only: costs what these do, however many others there are.
 */
int db_mapping_put(struct db_tx *tx, const struct mm *mm, uint64_t file, uint64_t start,
		   uint64_t end, bool sets);

/* ---- files that marks refer to -------------------------------------------------------------- */

/* Makes or replaces a file's row: `handle` finds it in the lower named in meta, `path` is for
 * people. Either may be NULL with length 0: what is stored stays. */
int db_file_put(struct db_tx *tx, uint64_t id, const void *handle, size_t handle_len,
		const char *path);

/* The file is gone for good: all that refers to it goes, in every mm. */
int db_file_delete(struct db_tx *tx, uint64_t id);

/* The same of all files that the tree does not have. Only when that is stored, and nothing is
 * mapped. */
int db_file_delete_gone(struct db_tx *tx);

/* ---- epochs, per mm and file --------------------------------------------------------------- */

#define DB_EPOCHS_KEPT 64 /* closed ones per mm and file; older ones are dropped */

/*
 * Epoch `number` of the file begins in that mm; numbers ascend. Nothing happens if just that one is
 * open; -EEXIST: it was closed, and what it ended with is kept. An epoch that was open is closed
 * with the dirty set `last` (may be NULL: empty) and `written`, kept for `wpctl dirty --epoch`.
 * What it had armed and dirty is left to db_set_put. Times in ns since 1970.
 */
int db_epoch_open(struct db_tx *tx, uint64_t mm, uint64_t file, uint64_t number, int64_t now_ns,
		  const struct mm_set *last, enum mm_written written);

/* The largest number of an epoch of any mm, also of those that are gone. 0: there was none. */
int db_last_epoch(struct db_tx *tx, uint64_t *number);

/* 1: an epoch of the file is open in that mm, 0: none. */
int db_epoch_is_open(struct db_tx *tx, uint64_t mm, uint64_t file);

/* Closes the open epoch, if there is one, and begins none. */
int db_epoch_close(struct db_tx *tx, uint64_t mm, uint64_t file, int64_t now_ns,
		   const struct mm_set *last, enum mm_written written);

/* How the row is called that has what closed epochs of a program's fork children ended with that
 * are gone: "NAME/ended". */
#define DB_ENDED_NAME "/ended"

/* 1: a closed epoch of the mm ended with something dirty or written, 0: none. */
int db_epochs_tell(struct db_tx *tx, uint64_t mm);

/*
 * The epochs of `from`, all closed, become those of `into` too, up to the one of number `end`, when
 * `from` is not there any more: what an epoch of `into` ended with is then all that was dirty at
 * that time in either.
 */
int db_epochs_merge(struct db_tx *tx, uint64_t from, uint64_t into, uint64_t end);

/*
 * Adds the dirty sets of the closed epochs from .. to of a file in an mm to *set; *open says
 * whether the open one is among them. -ENOENT: `from` is not kept. Not inside a job.
 */
int db_epochs_dirty(struct db *db, uint64_t mm, uint64_t file, uint64_t from, uint64_t to,
		    struct mm_set *set, bool *open);

/* ---- loading ----------------------------------------------------------------------------------
 */

/* A file row. `handle` and `path` are valid during the call. */
struct db_file {
	uint64_t id;
	const void *handle; /* handle_len bytes */
	size_t handle_len;  /* 0: none known */
	const char *path;   /* "" = none known */
};

/* A callback that gives a negative value ends the load with it. NULL: not wanted. */
struct db_marks_visitor {
	void *ctx;
	int (*file)(void *ctx, const struct db_file *file);
	/* `model` is complete: mappings with marks, files with sets, id, epoch, protect_new,
	 * own_uffds, conservative. To keep it, copy the struct and leave mm_init()'s in its place.
	 */
	int (*mm)(void *ctx, const struct db_mm *row, struct mm *model);
	/*
	 * Lives the mm of this row? Then its page tables say which pages are marked, and its dirty
	 * set has only what is stored there: stored marks are those of the last harvest, and a
	 * protect may have come since. NULL: none lives.
	 */
	bool (*lives)(void *ctx, const struct db_mm *row);
};

/* First all files, then all mms, ascending by id. -EBADMSG: a stored set is not valid; -EUCLEAN:
 * mappings overlap. */
int db_marks_load(struct db *db, const struct db_marks_visitor *visitor);

/* The largest mm id ever used, 0 = none. */
int db_mm_last_id(struct db *db, uint64_t *id);

/* Reads one mm's row and model inside a job; *model must be mm_init()ed. -ENOENT. */
int db_mm_get(struct db_tx *tx, uint64_t id, struct db_mm *row, struct mm *model);

#endif
