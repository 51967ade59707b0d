/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "ipc/client.h"
#include "ipc/packet.h"
#include "ipc/record.h"
#include "ipc/server.h"
#include "ipc/untold.h"

struct pair {
	int a, b;
	_Alignas(8) char buf[WPFS_WIRE_MAX];
};

static int pair_open(void **state)
{
	struct pair *pair = malloc(sizeof(*pair));
	int sv[2];

	if (!pair || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return -1;
	pair->a = sv[0];
	pair->b = sv[1];
	*state = pair;
	return 0;
}

static int pair_close(void **state)
{
	struct pair *pair = *state;

	close_fd(&pair->a);
	close_fd(&pair->b);
	free(pair);
	return 0;
}

static unsigned count_fds(void)
{
	_cleanup_dir_ DIR *dir = opendir("/proc/self/fd");
	unsigned nr = 0;

	assert_non_null(dir);
	while (readdir(dir))
		nr++;
	return nr;
}

static void test_round_trip(void **state)
{
	struct pair *pair = *state;
	struct wpfs_hello hello = {.flags = WPFS_HELLO_PROTECT, .name = "db"};
	struct wpfs_hdr hdr = {.op = WPFS_OP_HELLO, .seq = 7};
	struct ipc_fds fds = IPC_FDS_INIT;
	const struct wpfs_hdr *got = (const void *)pair->buf;
	const struct wpfs_hello *body;
	ssize_t n;

	assert_int_equal(ipc_send(pair->a, &hdr, &hello, sizeof(hello), NULL, 0), 0);
	n = ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds);
	assert_int_equal(n, sizeof(hdr) + sizeof(hello));
	assert_int_equal(ipc_check_request(pair->buf, (size_t)n, &fds), 0);
	assert_int_equal(got->seq, 7);
	body = ipc_body(pair->buf, (size_t)n);
	assert_string_equal(body->name, "db");
	assert_int_equal(fds.nr, 0);
}

/* Every request op has exactly one length; one byte more or less is refused. */
static void test_lengths(void **state)
{
	struct pair *pair = *state;
	struct wpfs_hdr *hdr = (void *)pair->buf;
	unsigned known = 0;

	for (unsigned op = 0; op < 300; op++) {
		ssize_t body = ipc_op_body_size(op);
		size_t len;

		memset(pair->buf, 0, sizeof(pair->buf));
		*hdr = (struct wpfs_hdr){.version = WPFS_WIRE_VERSION, .op = (uint16_t)op};
		hdr->len = sizeof(*hdr);
		if (body < 0) {
			assert_int_equal(body, -EPROTO);
			assert_int_equal(ipc_op_reply_size(op), -EPROTO);
			assert_int_equal(ipc_check_request(hdr, hdr->len, NULL), -EPROTO);
			continue;
		}
		known++;
		len = sizeof(*hdr) + (size_t)body;
		hdr->len = (uint32_t)len;
		assert_int_equal(ipc_check_request(hdr, len, NULL), 0);
		assert_int_equal(ipc_check_request(hdr, len + 1, NULL), -EPROTO);
		assert_int_equal(ipc_check_request(hdr, len - 1, NULL), -EPROTO);
		hdr->len = (uint32_t)len + 8;
		assert_int_equal(ipc_check_request(hdr, len + 8, NULL), -EPROTO);
		hdr->len = (uint32_t)len;
		hdr->version++;
		assert_int_equal(ipc_check_request(hdr, len, NULL), -EPROTO);
	}
	assert_int_equal(known, 29);
	assert_int_equal(ipc_check_request(hdr, 0, NULL), -EPROTO);
	assert_int_equal(ipc_check_request(hdr, sizeof(*hdr) - 1, NULL), -EPROTO);
}

static void test_strings_need_their_nul(void **state)
{
	struct pair *pair = *state;
	struct wpfs_hdr *hdr = (void *)pair->buf;
	size_t len = sizeof(*hdr) + sizeof(struct wpfs_hello);
	struct wpfs_select *select = (void *)(hdr + 1);

	memset(pair->buf, 'x', sizeof(pair->buf));
	*hdr = (struct wpfs_hdr){
		.len = (uint32_t)len, .version = WPFS_WIRE_VERSION, .op = WPFS_OP_HELLO};
	assert_int_equal(ipc_check_request(hdr, len, NULL), -EPROTO);

	len = sizeof(*hdr) + sizeof(*select);
	hdr->len = (uint32_t)len;
	hdr->op = WPFS_OP_PROTECT;
	select->name[sizeof(select->name) - 1] = '\0';
	assert_int_equal(ipc_check_request(hdr, len, NULL), -EPROTO);
	select->file[sizeof(select->file) - 1] = '\0';
	assert_int_equal(ipc_check_request(hdr, len, NULL), 0);
}

static void test_truncated(void **state)
{
	struct pair *pair = *state;
	struct wpfs_select select = {0};
	struct wpfs_hdr hdr = {.op = WPFS_OP_SYNC};
	struct ipc_fds fds = IPC_FDS_INIT;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	unsigned before = count_fds();

	assert_int_equal(ipc_send(pair->a, &hdr, &select, sizeof(select), &null, 1), 0);
	assert_int_equal(ipc_recv(pair->b, pair->buf, 100, &fds), -EPROTO);
	assert_int_equal(fds.nr, 0);
	assert_int_equal(count_fds(), before);
	close(null);
	assert_int_equal(ipc_send(pair->a, &hdr, &select, WPFS_WIRE_MAX, NULL, 0), -EMSGSIZE);
}

static void test_fds(void **state)
{
	struct pair *pair = *state;
	struct wpfs_attach attach = {.nr_fds = 2};
	struct wpfs_hdr hdr = {.op = WPFS_OP_ATTACH};
	struct ipc_fds fds = IPC_FDS_INIT;
	int null[2] = {open("/dev/null", O_RDONLY), open("/dev/null", O_RDONLY)};
	unsigned before = count_fds();
	ssize_t n;

	assert_int_equal(ipc_send(pair->a, &hdr, &attach, sizeof(attach), null, 2), 0);
	n = ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds);
	assert_int_equal(ipc_check_request(pair->buf, (size_t)n, &fds), 0);
	assert_int_equal(fds.nr, 2);
	assert_true(fcntl(fds.fd[0], F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(fds.fd[1], F_GETFD) & FD_CLOEXEC);
	assert_int_equal(count_fds(), before + 2);
	ipc_fds_closep(&fds);
	assert_int_equal(count_fds(), before);

	/* An op that carries none. */
	hdr.op = WPFS_OP_SETTLE;
	assert_int_equal(ipc_send(pair->a, &hdr, NULL, 0, null, 1), 0);
	n = ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds);
	assert_int_equal(ipc_check_request(pair->buf, (size_t)n, &fds), -EPROTO);
	ipc_fds_closep(&fds);

	/* Nobody asked for any. */
	assert_int_equal(ipc_send(pair->a, &hdr, NULL, 0, null, 1), 0);
	assert_int_equal(ipc_recv(pair->b, pair->buf, sizeof(pair->buf), NULL), -EPROTO);
	assert_int_equal(count_fds(), before);
	close(null[0]);
	close(null[1]);
}

/* As many descriptors as the kernel lets one packet carry, then a receiver with no room for any. */
static void test_fd_flood(void **state)
{
	struct pair *pair = *state;
	struct wpfs_hdr hdr = {
		.len = sizeof(hdr), .version = WPFS_WIRE_VERSION, .op = WPFS_OP_SETTLE};
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * 253)];
	} control;
	struct iovec iov = {.iov_base = &hdr, .iov_len = sizeof(hdr)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.buf,
			     .msg_controllen = sizeof(control.buf)};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	struct ipc_fds fds = IPC_FDS_INIT;
	struct rlimit limit, none;
	unsigned before = count_fds();

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int) * 253);
	for (size_t i = 0; i < 253; i++)
		memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &pair->a, sizeof(int));
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(sendmsg(pair->a, &msg, 0), sizeof(hdr));
		assert_int_equal(ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds), -EPROTO);
		assert_int_equal(fds.nr, 0);
	}
	assert_int_equal(count_fds(), before);

	assert_int_equal(ipc_send(pair->a, &hdr, NULL, 0, &pair->a, 1), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = limit;
	none.rlim_cur = 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds), -EPROTO);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(count_fds(), before);
}

static void test_closed(void **state)
{
	struct pair *pair = *state;
	struct wpfs_hdr hdr = {.op = WPFS_OP_SETTLE};
	struct ipc_fds fds = IPC_FDS_INIT;

	close_fd(&pair->a);
	assert_int_equal(ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds), 0);
	assert_int_equal(ipc_send(pair->b, &hdr, NULL, 0, NULL, 0), -EPIPE);
}

/* A client that reads late gets everything, in order, descriptors included. */
static void test_outq(void **state)
{
	struct pair *pair = *state;
	struct ipc_outq q = {0};
	char body[8000] = {0};
	unsigned sent = 0, got = 0;
	int flags = fcntl(pair->a, F_GETFL);

	fcntl(pair->a, F_SETFL, flags | O_NONBLOCK);
	while (q.bytes < 1 << 20) {
		struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD, .seq = sent};

		assert_int_equal(
			ipc_outq_send(&q, pair->a, &hdr, body, sizeof(body), &pair->b, sent % 2),
			0);
		sent++;
	}
	assert_false(ipc_outq_empty(&q));
	while (got < sent) {
		struct ipc_fds fds = IPC_FDS_INIT;
		const struct wpfs_hdr *hdr = (const void *)pair->buf;
		ssize_t n = ipc_recv(pair->b, pair->buf, sizeof(pair->buf), &fds);

		assert_int_equal(n, sizeof(*hdr) + sizeof(body));
		assert_int_equal(hdr->seq, got);
		assert_int_equal(fds.nr, got % 2);
		ipc_fds_closep(&fds);
		got++;
		n = ipc_outq_flush(&q, pair->a);
		assert_true(n == 0 || n == -EAGAIN);
	}
	assert_true(ipc_outq_empty(&q));
	assert_int_equal(q.bytes, 0);

	for (;;) {
		struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD};
		int err = ipc_outq_send(&q, pair->a, &hdr, pair->buf, 60000, &pair->b, 1);

		if (err == -EMFILE) /* the test's own limit of descriptors comes first */
			break;
		if (err == -ENOBUFS) {
			assert_true(q.bytes <= IPC_OUTQ_MAX);
			break;
		}
		assert_int_equal(err, 0);
	}
	ipc_outq_clear(&q);
	assert_int_equal(q.bytes, 0);
}

struct seen {
	unsigned nr[WPFS_REC_PROGRESS + 1];
	char path[WPFS_PATH_MAX];
	uint64_t last_pgoff;
};

static int see(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_map *map = body;
	const struct wpfs_rec_run *run = body;
	struct seen *seen = arg;

	seen->nr[type]++;
	if (type == WPFS_REC_MAP)
		strcpy(seen->path, map->path);
	if (type == WPFS_REC_RUN)
		seen->last_pgoff = run->pgoff;
	return 0;
}

static int walk_sink(void *arg, const void *body, size_t len)
{
	return ipc_records_walk(body, len, see, arg);
}

static void test_records(void **state)
{
	static struct ipc_records records;
	static struct wpfs_rec_map map = {.path = "/a/b"};
	struct wpfs_rec_mm mm = {.name = "db"};
	struct wpfs_rec_event event = {.kind = WPFS_EVENT_ATTACH, .name = "db"};
	struct wpfs_rec_top top = {.mm = {.name = "db"}};
	struct wpfs_rec_note note = {.text = "nothing armed"};
	struct seen seen = {0};

	ipc_records_init(&records, walk_sink, &seen);
	assert_int_equal(ipc_records_add(&records, WPFS_REC_MM, &mm, sizeof(mm)), 0);
	assert_int_equal(ipc_records_add(&records, WPFS_REC_MAP, &map, sizeof(map)), 0);
	assert_true(records.used < 400);
	for (uint64_t i = 0; i < 10000; i++) {
		struct wpfs_rec_run run = {.pgoff = i, .pages = 1};

		assert_int_equal(ipc_records_add(&records, WPFS_REC_RUN, &run, sizeof(run)), 0);
	}
	assert_int_equal(ipc_records_add(&records, WPFS_REC_NOTE, &note, sizeof(note)), 0);
	assert_int_equal(ipc_records_add(&records, WPFS_REC_EVENT, &event, sizeof(event)), 0);
	assert_int_equal(ipc_records_add(&records, WPFS_REC_TOP, &top, sizeof(top)), 0);
	assert_int_equal(ipc_records_flush(&records), 0);
	memset(event.comm, 'x', sizeof(event.comm)); /* no NUL */
	assert_int_equal(ipc_records_add(&records, WPFS_REC_EVENT, &event, sizeof(event)), 0);
	assert_int_equal(ipc_records_flush(&records), -EPROTO);
	memset(top.mm.name, 'x', sizeof(top.mm.name));
	assert_int_equal(ipc_records_add(&records, WPFS_REC_TOP, &top, sizeof(top)), 0);
	assert_int_equal(ipc_records_flush(&records), -EPROTO);
	assert_int_equal(seen.nr[WPFS_REC_EVENT], 1);
	assert_int_equal(seen.nr[WPFS_REC_TOP], 1);
	assert_int_equal(seen.nr[WPFS_REC_MM], 1);
	assert_int_equal(seen.nr[WPFS_REC_MAP], 1);
	assert_int_equal(seen.nr[WPFS_REC_RUN], 10000);
	assert_int_equal(seen.nr[WPFS_REC_NOTE], 1);
	assert_int_equal(seen.last_pgoff, 9999);
	assert_string_equal(seen.path, "/a/b");

	/* A path with no NUL at all is ended by the writer. */
	memset(map.path, 'x', sizeof(map.path));
	assert_int_equal(ipc_records_add(&records, WPFS_REC_MAP, &map, sizeof(map)), 0);
	assert_int_equal(ipc_records_walk(records.buf, records.used, see, &seen), 0);
	assert_int_equal(strlen(seen.path), sizeof(map.path) - 1);
}

static void test_records_hostile(void **state)
{
	struct {
		struct wpfs_rec rec;
		char body[64];
	} packet = {.rec = {.len = sizeof(struct wpfs_rec), .type = WPFS_REC_RUN}};
	struct seen seen = {0};

	memset(packet.body, 'x', sizeof(packet.body));
	assert_int_equal(ipc_records_walk(&packet, sizeof(packet), see, &seen), -EPROTO);
	packet.rec.len = 0;
	assert_int_equal(ipc_records_walk(&packet, sizeof(packet), see, &seen), -EPROTO);
	packet.rec.len = sizeof(packet) + 8;
	assert_int_equal(ipc_records_walk(&packet, sizeof(packet), see, &seen), -EPROTO);
	packet.rec.len = sizeof(packet);
	packet.rec.type = WPFS_REC_NOTE; /* no NUL */
	assert_int_equal(ipc_records_walk(&packet, sizeof(packet), see, &seen), -EPROTO);
	packet.rec.type = 77;
	assert_int_equal(ipc_records_walk(&packet, sizeof(packet), see, &seen), -EPROTO);
	assert_int_equal(ipc_records_walk(&packet, 4, see, &seen), -EPROTO);
	packet.rec.type = WPFS_REC_NOTE;
	packet.body[offsetof(struct wpfs_rec_note, text) + 3] = '\0';
	assert_int_equal(ipc_records_walk(&packet, sizeof(packet), see, &seen), 0);
	assert_int_equal(seen.nr[WPFS_REC_NOTE], 1);
}

static void test_ids(void **state)
{
	assert_true(ipc_id_valid("0"));
	assert_true(ipc_id_valid("2b1f6c3e-5f0a-4d53-9c2e-0123456789ab"));
	assert_false(ipc_id_valid(""));
	assert_false(ipc_id_valid(".."));
	assert_false(ipc_id_valid("a/b"));
	assert_false(ipc_id_valid("ABC"));
	assert_false(ipc_id_valid("0123456789012345678901234567890123456789"));
	assert_true(ipc_id_valid("012345678901234567890123456789012345678"));
}

static void test_not_a_mount(void **state)
{
	_cleanup_close_ int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct wpfs_mount_info info;
	struct ipc_client *client;

	assert_int_equal(ipc_mount_info(fd, &info), -ENOTTY);
	assert_int_equal(ipc_client_connect("../x", 1000, &client), -EINVAL);
	assert_int_equal(ipc_client_connect("0-0-0", 1000, &client), -ENOENT);
}

/* A server of a few requests: STATUS, a REPORT, an error, then silence. */
static void *serve(void *arg)
{
	static struct ipc_records records;
	static _Alignas(8) char buf[WPFS_WIRE_MAX];
	int listen_fd = *(int *)arg;
	struct ipc_outq q = {0};
	struct ipc_peer peer;
	int fd = ipc_accept(listen_fd, &peer);

	if (fd < 0 || peer.pid != getpid() || peer.uid != getuid() || peer.gid != getgid())
		return (void *)"wrong peer";
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	for (;;) {
		const struct wpfs_hdr *req = (const void *)buf;
		struct ipc_fds fds = IPC_FDS_INIT;
		ssize_t n = ipc_recv(fd, buf, sizeof(buf), &fds);
		struct wpfs_status status = {.pid = 42};
		struct wpfs_hello_reply hello = {0};
		struct wpfs_rec_run run = {.pgoff = 5, .pages = 2};
		struct wpfs_hdr rec = {.op = WPFS_OP_RECORD, .seq = req->seq};
		struct seen seen = {0};

		if (n == 0)
			break;
		if (n < 0 || ipc_check_request(buf, (size_t)n, &fds))
			return (void *)"bad request";
		switch (req->op) {
		case WPFS_OP_HELLO:
			ipc_reply(&q, fd, req, 0, &hello, sizeof(hello), NULL, 0);
			break;
		case WPFS_OP_STATUS:
			ipc_reply(&q, fd, req, 3, &status, sizeof(status), NULL, 0);
			break;
		case WPFS_OP_REPORT:
			rec.seq = req->seq;
			ipc_records_init(&records, walk_sink, &seen);
			ipc_records_add(&records, WPFS_REC_RUN, &run, sizeof(run));
			ipc_outq_send(&q, fd, &rec, records.buf, records.used, NULL, 0);
			ipc_outq_send(&q, fd, &rec, records.buf, records.used, NULL, 0);
			ipc_reply(&q, fd, req, 0, NULL, 0, NULL, 0);
			break;
		case WPFS_OP_FORGET:
			ipc_reply_error(&q, fd, req, -ENOENT, "no name '%s'", "x");
			break;
		case WPFS_OP_LOAD: /* a reply of the wrong size */
			ipc_reply(&q, fd, req, 0, &hello, 4, NULL, 0);
			break;
		default:
			break;
		}
	}
	close(fd);
	return NULL;
}

static void test_client(void **state)
{
	char dir[] = "/tmp/wpfs-ipc-XXXXXX";
	static struct wpfs_select select;
	_cleanup_close_ int listen_fd = -1;
	struct ipc_client *client;
	struct wpfs_status status;
	struct seen seen = {0};
	pthread_t thread;
	struct stat st;
	char path[64];
	void *failed;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	listen_fd = ipc_listen(path);
	close(listen_fd);
	listen_fd = ipc_listen(path); /* over a stale one */
	assert_true(listen_fd >= 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0666);
	assert_int_equal(ipc_accept(listen_fd, &(struct ipc_peer){0}), -EAGAIN);
	fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) & ~O_NONBLOCK);
	assert_int_equal(pthread_create(&thread, NULL, serve, &listen_fd), 0);

	assert_int_equal(ipc_client_connect_path(path, true, 500, &client), 0);
	assert_int_equal(ipc_client_call(client, WPFS_OP_STATUS, NULL, &status, NULL, NULL), 3);
	assert_int_equal(status.pid, 42);
	assert_int_equal(ipc_client_call(client, WPFS_OP_REPORT, &select, NULL, see, &seen), 0);
	assert_int_equal(seen.nr[WPFS_REC_RUN], 2);
	assert_int_equal(ipc_client_call(client, WPFS_OP_FORGET, &select, NULL, NULL, NULL),
			 -ENOENT);
	assert_string_equal(ipc_client_error(client), "no name 'x'");
	assert_int_equal(ipc_client_call(client, WPFS_OP_LOAD, &select, NULL, NULL, NULL), -EPROTO);
	assert_string_equal(ipc_client_error(client), "");
	assert_int_equal(ipc_client_call(client, WPFS_OP_SETTLE, NULL, NULL, NULL, NULL),
			 -ETIMEDOUT);
	ipc_client_close(client);
	pthread_join(thread, &failed);
	assert_null(failed);
	unlink(path);
	rmdir(dir);
}

/* Mapping n is in slot n % 15, which is written before n is counted. */
static void test_untold(void **state)
{
	const uint64_t full = WPFS_UNTOLD_FILES;
	struct wpfs_untold untold = {.count = 5 | WPFS_UNTOLD_DROPPED};

	for (uint64_t seen = 0; seen < 40; seen++) {
		assert_true(untold_is_whole(seen, seen, seen));
		assert_true(untold_is_whole(seen + full - 1, seen + full - 1, seen));
		/* The slot of mapping `seen` may be the next one's already. */
		assert_false(untold_is_whole(seen + full, seen + full, seen));
		assert_false(untold_is_whole(seen + 1, seen + full, seen));
		assert_false(untold_is_whole(seen + 100, seen + 100, seen));
		assert_false(untold_is_whole(seen, seen, seen + 1));
	}
	for (uint64_t child = 1; child < 40000; child++) {
		untold_count_child(&untold);
		assert_int_equal(untold.count & WPFS_UNTOLD_COUNT, 5);
		assert_true(untold.count & WPFS_UNTOLD_DROPPED);
		assert_int_equal((untold.count & WPFS_UNTOLD_CHILDREN) / WPFS_UNTOLD_CHILD,
				 child % 32768);
	}
}

int main(void)
{
#define PAIR_TEST(fn) cmocka_unit_test_setup_teardown(fn, pair_open, pair_close)
	const struct CMUnitTest tests[] = {
		PAIR_TEST(test_round_trip),
		PAIR_TEST(test_lengths),
		PAIR_TEST(test_strings_need_their_nul),
		PAIR_TEST(test_truncated),
		PAIR_TEST(test_fds),
		PAIR_TEST(test_fd_flood),
		PAIR_TEST(test_closed),
		PAIR_TEST(test_outq),
		cmocka_unit_test(test_records),
		cmocka_unit_test(test_records_hostile),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_not_a_mount),
		cmocka_unit_test(test_client),
		cmocka_unit_test(test_untold),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
