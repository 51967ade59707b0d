/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What people type to wpctl (ctl/parse.h) and sizes (base/units.h). Byte 0: how large a buffer. */
#include <errno.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/parse.h"
#include "ipc/wire.h"
#include "tests/fuzz/fuzz.h"

static void check_path(const char *text, size_t room)
{
	_cleanup_free_ char *buf = malloc(room ? room : 1);
	_cleanup_free_ char *again = malloc(room ? room : 1);

	MUST(buf && again);
	if (room == 0 || parse_path(text, buf, room))
		return;
	MUST(buf[0] == '/' && memchr(buf, '\0', room));
	MUST(!strstr(buf, "//") && !strstr(buf, "/./") && !strstr(buf, "/../"));
	/* A path that is in the daemon's form already stays as it is. */
	MUST(parse_path(buf, again, room) == NULL && strcmp(buf, again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	size_t room = input_u8(&in), len = in.left;
	_cleanup_free_ char *text = malloc(len + 1);
	uint64_t offset, length, bytes;

	MUST(text);
	input_bytes(&in, text, len);
	text[len] = '\0';
	if (parse_name(text) == NULL) {
		MUST(strlen(text) >= 1 && strlen(text) <= WPFS_NAME_MAX);
		MUST(strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				  "0123456789._-") == strlen(text));
		MUST(parse_mm_name(text) == NULL);
	}
	if (parse_range(text, &offset, &length) == NULL)
		MUST(length && !((offset | length) % WPFS_PAGE_SIZE) && offset + length > offset &&
		     offset + length <= INT64_MAX);
	if (parse_number(text, &bytes) == NULL)
		MUST(text[0] >= '0' && text[0] <= '9');
	if (units_parse_size(text, &bytes) == 0)
		MUST(bytes <= INT64_MAX);
	MUST(parse_distance(text, text) == 0 || strlen(text) > 31);
	check_path(text, room);
	check_path(text, WPFS_PATH_MAX);
	return 0;
}
