/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RECORD packets of a report: written by the server, read by wpctl. */
#ifndef WPFS_IPC_RECORD_H
#define WPFS_IPC_RECORD_H

#include <stddef.h>

#include "ipc/wire.h"

/* Takes a full RECORD packet's body. 0 to go on, else what ends the report. */
typedef int (*ipc_record_sink)(void *arg, const void *body, size_t len);

/* Collects records into packets. Start with ipc_records_init; no clean-up needed. */
struct ipc_records {
	ipc_record_sink sink;
	void *arg;
	size_t used; /* bytes of buf */
	_Alignas(8) char buf[WPFS_WIRE_MAX - sizeof(struct wpfs_hdr)];
};

void ipc_records_init(struct ipc_records *records, ipc_record_sink sink, void *arg);

/*
 * Adds one record. `len` is its body's length in bytes: sizeof the struct of its type, or less for
 * wpfs_rec_map and wpfs_rec_note, which are cut after their string's NUL by this function itself.
 * 0, what the sink gave, or -EMSGSIZE.
 */
int ipc_records_add(struct ipc_records *records, enum wpfs_rec_type type, const void *body,
		    size_t len);

/* Gives the sink what is left. */
int ipc_records_flush(struct ipc_records *records);

/*
 * Is called for each record with a body that has passed these checks: type is known, all fixed
 * fields are there, strings end inside it, it is aligned to 8. A map or note is shorter than its
 * struct: do not copy it as a whole. Not 0 ends the walk.
 */
typedef int (*ipc_record_fn)(void *arg, enum wpfs_rec_type type, const void *body);

/* Walks one RECORD packet's body. 0, -EPROTO, or what fn gave. */
int ipc_records_walk(const void *body, size_t len, ipc_record_fn fn, void *arg);

#endif
