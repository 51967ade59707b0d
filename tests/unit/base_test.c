/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/progress.h"
#include "base/units.h"

static void test_size_suffixes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},	    {"4096", 4096},
		{"1k", 1024},	    {"1K", 1024},
		{"64m", 64 << 20},  {"3G", 3ULL << 30},
		{"2t", 2ULL << 40}, {"0%", 0},
		{"1M", 1 << 20},    {"8388607T", ((1ULL << 23) - 1) << 40},
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		uint64_t bytes = ~0ULL;

		assert_int_equal(units_parse_size(good[i].text, &bytes), 0);
		assert_int_equal(bytes, good[i].bytes);
	}
}

static void test_size_percent(void **state)
{
	uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * WPFS_PAGE_SIZE;
	uint64_t whole, half;

	assert_int_equal(units_parse_size("100%", &whole), 0);
	assert_int_equal(units_parse_size("50%", &half), 0);
	assert_true(whole <= memory && whole > memory - 100 * WPFS_PAGE_SIZE);
	assert_true(half <= whole / 2 + WPFS_PAGE_SIZE && half + WPFS_PAGE_SIZE >= whole / 2);
}

static void test_size_refused(void **state)
{
	static const char *const not_a_size[] = {
		"", "k", "-1", "+1", " 1", "1 ", "1kb", "0x10", "1.5G", "%", "1%%", "nan",
	};
	static const char *const out_of_range[] = {
		"101%",
		"8388608T",
		"18446744073709551616",
		"9223372036854775808",
	};
	uint64_t bytes;

	for (size_t i = 0; i < sizeof(not_a_size) / sizeof(not_a_size[0]); i++)
		assert_int_equal(units_parse_size(not_a_size[i], &bytes), -EINVAL);
	for (size_t i = 0; i < sizeof(out_of_range) / sizeof(out_of_range[0]); i++)
		assert_int_equal(units_parse_size(out_of_range[i], &bytes), -ERANGE);
}

static void test_size_format(void **state)
{
	char buf[16];

	assert_string_equal(units_format_size(64 << 20, buf, sizeof(buf)), "64.0M");
	assert_string_equal(units_format_size((uint64_t)16 << 30, buf, sizeof(buf)), "16.0G");
}

static void test_whole_reads_and_writes(void **state)
{
	_cleanup_close_ int fd = memfd_create("base_test", MFD_CLOEXEC);
	char out[5000], in[5000];

	assert_true(fd >= 0);
	memset(out, 'x', sizeof(out));
	assert_int_equal(fdio_pwrite_full(fd, out, sizeof(out), 100), 0);
	assert_int_equal(fdio_pread_full(fd, in, sizeof(in), 100), 0);
	assert_memory_equal(in, out, sizeof(out));
	assert_int_equal(fdio_pread_full(fd, in, sizeof(in), 101), -ENODATA);
	assert_int_equal(fdio_pread_full(-1, in, sizeof(in), 0), -EBADF);
}

static void test_read_file(void **state)
{
	_cleanup_free_ char *text = NULL;
	char *none = NULL;
	size_t len;

	assert_int_equal(fdio_read_file(-1, "/proc/self/stat", &text, &len), 0);
	assert_int_equal(strlen(text), len);
	assert_true(len > 0);
	assert_int_equal(fdio_read_file(-1, "/proc/self/nonexistent", &none, &len), -ENOENT);
}

static void test_progress(void **state)
{
	struct progress load = {.what = "load", .unit = PROGRESS_BYTES, .total = 100u << 20};
	struct progress files = {.what = "check", .unit = PROGRESS_THINGS};
	char text[160];

	progress_format(&load, 0, 700, 80, text, sizeof(text));
	assert_string_equal(text, "load: 0B of 100.0M, 0 %");
	progress_format(&load, 25u << 20, 1000, 80, text, sizeof(text));
	assert_string_equal(text, "load: 25.0M of 100.0M, 25 %, 25.0M/s, 0:03 left");
	progress_format(&load, 25u << 20, 1000, 12, text, sizeof(text));
	assert_string_equal(text, "load: 25.0M");
	progress_format(&load, 25u << 20, 1000, 0, text, sizeof(text));
	assert_string_equal(text, "");
	progress_format(&load, 1 << 20, 10000, 80, text, sizeof(text));
	assert_string_equal(text, "load: 1.0M of 100.0M, 1 %, 102.4K/s, 16:30 left");
	progress_format(&load, 200u << 20, 1000, 80, text, sizeof(text)); /* more than there was */
	assert_string_equal(text, "load: 100.0M of 100.0M, 100 %, 100.0M/s, 0:00 left");
	progress_format(&files, 7, 2000, 80, text, sizeof(text));
	assert_string_equal(text, "check: 7, 3/s");
	progress_format(&files, 0, 62000, 80, text, sizeof(text));
	assert_string_equal(text, "check: 1:02");
	files.total = 10;
	progress_format(&files, 5, 100000000, 80, text, sizeof(text));
	assert_string_equal(text, "check: 5 of 10, 50 %, 0/s, 1666:40 left");
	progress_format(&files, 1, 1000000000, 80, text, sizeof(text)); /* too long to be told */
	assert_string_equal(text, "check: 1 of 10, 10 %, 0/s");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_size_suffixes),
		cmocka_unit_test(test_size_percent),
		cmocka_unit_test(test_size_refused),
		cmocka_unit_test(test_size_format),
		cmocka_unit_test(test_whole_reads_and_writes),
		cmocka_unit_test(test_read_file),
		cmocka_unit_test(test_progress),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
