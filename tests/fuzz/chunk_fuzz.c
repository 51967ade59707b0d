/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A set of pages as the database has it (mm/set.h). Byte 0: its kind; byte 1: which chunk; the
 * rest: its bytes.
 */
#include <errno.h>

#include "mm/set.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t indices[] = {0, 1, 255, 65534, 65535, 65536, UINT32_MAX};
	_cleanup_set_ struct mm_set set = {NULL}, again = {NULL};
	struct input in = {data, size};
	enum mm_chunk_kind kind = input_u8(&in) % 3;
	uint32_t index = indices[input_u8(&in) % (sizeof(indices) / sizeof(indices[0]))];
	static struct mm_chunk chunk;
	int r = mm_set_add_chunk(&set, index, kind, in.at, in.left);

	MUST(r == 0 || r == -EBADMSG);
	if (r < 0) {
		MUST(mm_set_is_empty(&set));
		return 0;
	}
	MUST(index < MM_SET_MAX >> MM_CHUNK_SHIFT);
	if (kind == MM_CHUNK_BITS)
		MUST(mm_set_count(&set) >= 1 && mm_set_count(&set) < MM_CHUNK_PAGES);
	/* All of it lies in its chunk, and is the same after it was stored and read again. */
	MUST(mm_set_count(&set) ==
	     mm_set_count_range(&set, (uint64_t)index << MM_CHUNK_SHIFT, MM_CHUNK_PAGES));
	mm_set_get_chunk(&set, index, &chunk);
	MUST(chunk.kind == kind);
	MUST(mm_set_add_chunk(&again, index, chunk.kind, chunk.bytes, chunk.len) == 0);
	MUST(mm_set_is_equal(&set, &again));
	return 0;
}
