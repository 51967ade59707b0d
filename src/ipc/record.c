/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Records are packed one after the other so that a report of many short runs costs few packets. The
 * two with a path or text are cut after its NUL: 4 KiB of path for every map would cost more.
 */
#include "ipc/record.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

void ipc_records_init(struct ipc_records *records, ipc_record_sink sink, void *arg)
{
	records->sink = sink;
	records->arg = arg;
	records->used = 0;
}

int ipc_records_flush(struct ipc_records *records)
{
	size_t used = records->used;

	records->used = 0;
	return used ? records->sink(records->arg, records->buf, used) : 0;
}

/* Where the string at the end of a record starts; len: it has none. */
static size_t text_offset(enum wpfs_rec_type type, size_t len)
{
	size_t text = len;

	if (type == WPFS_REC_MAP || type == WPFS_REC_UNION)
		text = offsetof(struct wpfs_rec_map, path);
	else if (type == WPFS_REC_NOTE)
		text = offsetof(struct wpfs_rec_note, text);
	return text < len ? text : len;
}

/* Bytes of the body that count, with the NUL of its string. */
static size_t cut_size(size_t text, const void *body, size_t len)
{
	if (text == len)
		return len;
	return text + strnlen((const char *)body + text, len - text - 1) + 1;
}

int ipc_records_add(struct ipc_records *records, enum wpfs_rec_type type, const void *body,
		    size_t len)
{
	size_t text = text_offset(type, len);
	size_t cut = cut_size(text, body, len);
	size_t whole = (sizeof(struct wpfs_rec) + cut + 7) & ~(size_t)7;
	struct wpfs_rec rec = {.len = (uint32_t)whole, .type = type};
	char *to;
	int err;

	if (whole > sizeof(records->buf))
		return -EMSGSIZE;
	if (records->used + whole > sizeof(records->buf)) {
		err = ipc_records_flush(records);
		if (err)
			return err;
	}
	to = records->buf + records->used;
	memset(to, 0, whole);
	memcpy(to, &rec, sizeof(rec));
	memcpy(to + sizeof(rec), body, cut);
	if (text < len)
		to[sizeof(rec) + cut - 1] = '\0';
	records->used += whole;
	return 0;
}

static bool text_ends(const char *body, size_t len, size_t offset)
{
	return len > offset && memchr(body + offset, '\0', len - offset) != NULL;
}

static bool mm_ok(const struct wpfs_rec_mm *mm)
{
	return memchr(mm->name, '\0', sizeof(mm->name)) && memchr(mm->comm, '\0', sizeof(mm->comm));
}

static bool event_ok(const struct wpfs_rec_event *event)
{
	return memchr(event->name, '\0', sizeof(event->name)) &&
	       memchr(event->comm, '\0', sizeof(event->comm));
}

static bool record_ok(enum wpfs_rec_type type, const char *body, size_t len)
{
	switch (type) {
	case WPFS_REC_MM:
		return len == sizeof(struct wpfs_rec_mm) && mm_ok((const void *)body);
	case WPFS_REC_TOP:
		return len == sizeof(struct wpfs_rec_top) &&
		       mm_ok(&((const struct wpfs_rec_top *)(const void *)body)->mm);
	case WPFS_REC_PROGRESS:
		return len == sizeof(struct wpfs_rec_progress);
	case WPFS_REC_PART:
		return len == sizeof(struct wpfs_rec_part);
	case WPFS_REC_EVENT:
		return len == sizeof(struct wpfs_rec_event) && event_ok((const void *)body);
	case WPFS_REC_MAP:
	case WPFS_REC_UNION:
		return text_ends(body, len, offsetof(struct wpfs_rec_map, path));
	case WPFS_REC_RUN:
		return len == sizeof(struct wpfs_rec_run);
	case WPFS_REC_NOTE:
		return text_ends(body, len, offsetof(struct wpfs_rec_note, text));
	}
	return false;
}

int ipc_records_walk(const void *body, size_t len, ipc_record_fn fn, void *arg)
{
	const char *at = body;

	while (len > 0) {
		struct wpfs_rec rec;
		int err;

		if (len < sizeof(rec))
			return -EPROTO;
		memcpy(&rec, at, sizeof(rec));
		if (rec.len < sizeof(rec) || rec.len > len || rec.len % 8 != 0 ||
		    !record_ok(rec.type, at + sizeof(rec), rec.len - sizeof(rec)))
			return -EPROTO;
		err = fn(arg, rec.type, at + sizeof(rec));
		if (err)
			return err;
		at += rec.len;
		len -= rec.len;
	}
	return 0;
}
