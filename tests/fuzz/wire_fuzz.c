/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packets as a peer of either end could send them (ipc/wire.h). Byte 0: how many descriptors come
 * with it; bytes 1, 2: what a reply is checked against; the rest: the packet.
 */
#include <errno.h>

#include "ipc/packet.h"
#include "ipc/record.h"
#include "tests/fuzz/fuzz.h"

static void check_request(const void *packet, size_t len, size_t nr_fds)
{
	const struct wpfs_hdr *hdr = packet;
	const struct wpfs_hello *hello;
	const struct wpfs_select *select;
	struct ipc_fds fds = IPC_FDS_INIT;
	int r;

	fds.nr = nr_fds;
	r = ipc_check_request(packet, len, &fds);
	MUST(r == 0 || r == -EPROTO);
	if (r < 0)
		return;
	/* What every handler takes for granted. */
	MUST(hdr->len == len && hdr->version == WPFS_WIRE_VERSION);
	MUST(len == sizeof(*hdr) + (size_t)ipc_op_body_size(hdr->op));
	MUST((ipc_body(packet, len) != NULL) == (ipc_op_body_size(hdr->op) > 0));
	MUST(nr_fds <= ipc_op_max_fds(hdr->op));
	if (hdr->op == WPFS_OP_HELLO) {
		hello = ipc_body(packet, len);
		MUST(memchr(hello->name, '\0', sizeof(hello->name)));
	}
	if (ipc_op_body_size(hdr->op) == (ssize_t)sizeof(*select)) {
		select = ipc_body(packet, len);
		MUST(memchr(select->name, '\0', sizeof(select->name)));
		MUST(memchr(select->file, '\0', sizeof(select->file)));
	}
}

static void check_reply(const void *packet, size_t len, unsigned op, unsigned seq)
{
	const struct wpfs_hdr *hdr = packet;
	const struct wpfs_error *error;
	int r = ipc_check_reply(packet, len, op, seq);

	MUST(r == 0 || r == -EPROTO);
	if (r < 0)
		return;
	MUST(hdr->len == len && hdr->seq == seq && hdr->op == WPFS_OP_REPLY);
	if (hdr->status >= 0) {
		MUST(len == sizeof(*hdr) + (size_t)ipc_op_reply_size(op));
	} else if (len > sizeof(*hdr)) {
		error = ipc_body(packet, len);
		MUST(memchr(error->text, '\0', sizeof(error->text)));
	}
}

struct walk {
	struct ipc_records again;
	const char *expect; /* body of the packet that was walked */
	size_t len;
};

/* Reads all that a record of its type has; ASan sees what is not there. */
static int on_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	struct walk *walk = arg;
	static volatile uint64_t sum;

	switch (type) {
	case WPFS_REC_MM:
		sum += ((const struct wpfs_rec_mm *)body)->dirty +
		       strlen(((const struct wpfs_rec_mm *)body)->name) +
		       strlen(((const struct wpfs_rec_mm *)body)->comm);
		return ipc_records_add(&walk->again, type, body, sizeof(struct wpfs_rec_mm));
	case WPFS_REC_MAP:
	case WPFS_REC_UNION:
		sum += strlen(((const struct wpfs_rec_map *)body)->path);
		return ipc_records_add(&walk->again, type, body,
				       offsetof(struct wpfs_rec_map, path) + 1 +
					       strlen(((const struct wpfs_rec_map *)body)->path));
	case WPFS_REC_RUN:
		sum += ((const struct wpfs_rec_run *)body)->vaddr;
		return ipc_records_add(&walk->again, type, body, sizeof(struct wpfs_rec_run));
	case WPFS_REC_PROGRESS:
		sum += ((const struct wpfs_rec_progress *)body)->done;
		return ipc_records_add(&walk->again, type, body, sizeof(struct wpfs_rec_progress));
	case WPFS_REC_PART:
		sum += ((const struct wpfs_rec_part *)body)->kind;
		return ipc_records_add(&walk->again, type, body, sizeof(struct wpfs_rec_part));
	case WPFS_REC_EVENT:
		sum += strlen(((const struct wpfs_rec_event *)body)->name) +
		       strlen(((const struct wpfs_rec_event *)body)->comm);
		return ipc_records_add(&walk->again, type, body, sizeof(struct wpfs_rec_event));
	case WPFS_REC_TOP:
		sum += strlen(((const struct wpfs_rec_top *)body)->mm.name) +
		       strlen(((const struct wpfs_rec_top *)body)->mm.comm);
		return ipc_records_add(&walk->again, type, body, sizeof(struct wpfs_rec_top));
	case WPFS_REC_NOTE:
		sum += strlen(((const struct wpfs_rec_note *)body)->text);
		return ipc_records_add(&walk->again, type, body,
				       offsetof(struct wpfs_rec_note, text) + 1 +
					       strlen(((const struct wpfs_rec_note *)body)->text));
	}
	MUST(!"a type that is none");
}

static int on_again(void *arg, enum wpfs_rec_type type, const void *body)
{
	(*(unsigned *)arg)++;
	return 0;
}

static int sink(void *arg, const void *body, size_t len)
{
	unsigned records = 0;

	/* What was read and written again is as valid as it was. */
	MUST(ipc_records_walk(body, len, on_again, &records) == 0 && records > 0);
	return 0;
}

static void check_records(const void *body, size_t len)
{
	static struct walk walk;
	int r;

	ipc_records_init(&walk.again, sink, NULL);
	r = ipc_records_walk(body, len, on_record, &walk);
	MUST(r == 0 || r == -EPROTO);
	MUST(ipc_records_flush(&walk.again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned nr_fds = input_u8(&in) % (IPC_FDS_MAX + 1);
	unsigned op = input_u8(&in), seq = input_u8(&in);
	size_t len = in.left;
	void *packet;

	if (len > WPFS_WIRE_MAX)
		return 0;
	/* Of just its length, and aligned as the receiver's buffer is. */
	packet = malloc(len ? len : 1);
	MUST(packet);
	input_bytes(&in, packet, len);
	check_request(packet, len, nr_fds);
	check_reply(packet, len, op, seq);
	check_records(packet, len);
	free(packet);
	return 0;
}
