/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "ctl/width.h"
#include "ctl/exe.h"
#include "ctl/json.h"
#include "base/mountinfo.h"
#include "ctl/out.h"
#include "ctl/parse.h"
#include "ctl/say.h"

static void test_names(void **state)
{
	char longest[WPFS_NAME_MAX + 2];

	memset(longest, 'x', sizeof(longest));
	longest[WPFS_NAME_MAX] = '\0';
	assert_null(parse_name(longest));
	assert_null(parse_mm_name(longest));
	assert_null(parse_name("a.B_9-"));
	assert_null(parse_mm_name("db/2"));
	assert_null(parse_mm_name("db/4194304"));

	longest[WPFS_NAME_MAX] = 'x';
	longest[WPFS_NAME_MAX + 1] = '\0';
	assert_non_null(strstr(parse_name(longest), "longer than 64"));
	assert_non_null(strstr(parse_mm_name(longest), "longer than 64"));
	assert_non_null(strstr(parse_name("a/b"), "slash"));
	assert_non_null(strstr(parse_name("db/2"), "slash"));
	for (const char *const *bad = (const char *const[]){"", "a b", "\xc3\xa4", "a\n", NULL};
	     *bad; bad++) {
		assert_non_null(parse_name(*bad));
		assert_non_null(parse_mm_name(*bad));
	}
	for (const char *const *bad = (const char *const[]){"/2", "db/", "db/x", "db/2x", "db/2/3",
							    "db/-1", "db/99999999999", NULL};
	     *bad; bad++)
		assert_non_null(parse_mm_name(*bad));
}

static void test_ranges(void **state)
{
	static const struct {
		const char *text;
		uint64_t offset, len;
	} good[] = {
		{"0+4096", 0, 4096},
		{"4K+8k", 4096, 8192},
		{"1G+64M", 1 << 30, 64 << 20},
		{"0+9223372036854771712", 0, 0x7ffffffffffff000},
	};
	static const struct {
		const char *text, *why;
	} bad[] = {
		{"", "OFF+LEN"},
		{"4096", "OFF+LEN"},
		{"+4096", "OFF+LEN"},
		{"0+", "OFF+LEN"},
		{"-1+4096", "OFF+LEN"},
		{"0x0+4096", "OFF+LEN"},
		{"10%+4K", "OFF+LEN"},
		{"0+10%", "OFF+LEN"},
		{"0+4K+4K", "OFF+LEN"},
		{"1+4096", "aligned"},
		{"0+4095", "aligned"},
		{"0+0", "empty"},
		{"4K+9223372036854771712", "beyond"},
		{"00000000000000000000000000000000000000+4096", "OFF+LEN"},
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		uint64_t offset = 1, len = 1;

		assert_null(parse_range(good[i].text, &offset, &len));
		assert_int_equal(offset, good[i].offset);
		assert_int_equal(len, good[i].len);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t offset, len;
		const char *why = parse_range(bad[i].text, &offset, &len);

		assert_non_null(why);
		assert_non_null(strstr(why, bad[i].why));
	}
}

static void test_numbers(void **state)
{
	uint64_t n;

	assert_null(parse_number("0", &n));
	assert_int_equal(n, 0);
	assert_null(parse_number("18446744073709551615", &n));
	assert_int_equal(n, UINT64_MAX);
	for (const char *const *bad = (const char *const[]){"", "-1", "+1", " 1", "1 ", "0x1", "1K",
							    "18446744073709551616", NULL};
	     *bad; bad++)
		assert_non_null(parse_number(*bad, &n));
}

static void test_paths(void **state)
{
	char buf[16];

	assert_null(parse_path("/f", buf, sizeof(buf)));
	assert_string_equal(buf, "/f");
	assert_null(parse_path("//a/./b//c/", buf, sizeof(buf)));
	assert_string_equal(buf, "/a/b/c");
	assert_null(parse_path("/", buf, sizeof(buf)));
	assert_string_equal(buf, "/");
	assert_null(parse_path("/..a/...", buf, sizeof(buf)));
	assert_string_equal(buf, "/..a/...");
	assert_null(parse_path("/23456789012345", buf, sizeof(buf)));
	assert_non_null(parse_path("/234567890123456", buf, sizeof(buf)));
	assert_non_null(parse_path("f", buf, sizeof(buf)));
	assert_non_null(parse_path("", buf, sizeof(buf)));
	assert_non_null(parse_path("/a/../b", buf, sizeof(buf)));
	assert_non_null(parse_path("/..", buf, sizeof(buf)));
}

static void test_distance(void **state)
{
	assert_int_equal(parse_distance("dirty", "dirty"), 0);
	assert_int_equal(parse_distance("", "ps"), 2);
	assert_int_equal(parse_distance("ditry", "dirty"), 1);
	assert_int_equal(parse_distance("mark", "marks"), 1);
	assert_int_equal(parse_distance("markss", "marks"), 1);
	assert_int_equal(parse_distance("kitten", "sitting"), 3);
	assert_int_equal(parse_distance("x", "01234567890123456789012345678901"), UINT_MAX);
}

/* What `write` puts into a FILE; the caller frees. */
static char *written(void (*write)(FILE *f, const void *arg), const void *arg)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	write(f, arg);
	assert_int_equal(fclose(f), 0);
	return text;
}

static void write_json_string(FILE *f, const void *arg)
{
	struct json json;

	json_init(&json, f);
	json_string(&json, NULL, arg);
}

static void write_json_bytes(FILE *f, const void *arg)
{
	struct json json;

	json_init(&json, f);
	json_object(&json, NULL);
	json_bytes(&json, "file", arg);
	json_end(&json);
}

static void write_text(FILE *f, const void *arg)
{
	say_text(f, arg);
}

static void check_written(void (*write)(FILE *f, const void *arg), const void *arg,
			  const char *expected)
{
	_cleanup_free_ char *text = written(write, arg);

	assert_string_equal(text, expected);
}

static void test_json_escapes(void **state)
{
	check_written(write_json_string, "", "\"\"");
	check_written(write_json_string, "a\"b\\c/", "\"a\\\"b\\\\c/\"");
	check_written(write_json_string, "\n\t\x01\x1f\x7f",
		      "\"\\u000a\\u0009\\u0001\\u001f\\u007f\"");
	check_written(write_json_string, "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80",
		      "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"");
	/* overlong, surrogate, beyond U+10FFFF, cut short, stray continuation: each byte by itself
	 */
	check_written(write_json_string, "\xc0\xaf", "\"\\ufffd\\ufffd\"");
	check_written(write_json_string, "\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\"");
	check_written(write_json_string, "\xf4\x90\x80\x80", "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");
	check_written(write_json_string, "\xe2\x82", "\"\\ufffd\\ufffd\"");
	check_written(write_json_string, "a\x80z", "\"a\\ufffdz\"");
}

static void test_json_paths(void **state)
{
	check_written(write_json_bytes, "/\xc3\xa4", "{\"file\":\"/\xc3\xa4\"}\n");
	check_written(write_json_bytes, "/\xff", "{\"file\":\"/\\ufffd\",\"file_hex\":\"2fff\"}\n");
}

static void write_document(FILE *f, const void *arg)
{
	struct json json;

	json_init(&json, f);
	json_object(&json, NULL);
	json_array(&json, "empty");
	json_end(&json);
	json_array(&json, "mixed");
	json_u64(&json, NULL, UINT64_MAX);
	json_null(&json, NULL);
	json_object(&json, NULL);
	json_bool(&json, "yes", true);
	json_bool(&json, "no", false);
	json_addr(&json, "addr", 0x7fff00001000);
	json_end_to(&json, 1);
	json_string(&json, "last", "x");
	json_end(&json);
}

static void test_json_document(void **state)
{
	check_written(
		write_document, NULL,
		"{\"empty\":[],\"mixed\":[18446744073709551615,null,{\"yes\":true,\"no\":false,"
		"\"addr\":\"0x7fff00001000\"}],\"last\":\"x\"}\n");
}

static void test_text_for_terminals(void **state)
{
	check_written(write_text, "/plain \xc3\xa4", "/plain \xc3\xa4");
	check_written(write_text, "/\033[31m\n", "/\\x1b[31m\\x0a");
	check_written(write_text, "/a\\b", "/a\\\\b");
	check_written(write_text, "/\xff", "/\\xff");
	check_written(write_text, "/\xc2\x9b", "/\\xc2\\x9b"); /* CSI in eight bits */
}

static void test_mountinfo(void **state)
{
	struct mountinfo m;

	assert_int_equal(mountinfo_parse("36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime shared:1 "
					 "master:1 - ext3 /dev/root rw",
					 &m),
			 0);
	assert_int_equal(m.id, 36);
	assert_int_equal(m.parent, 35);
	assert_int_equal(m.dev, makedev(98, 0));
	assert_string_equal(m.mountpoint, "/mnt 2\\x");
	assert_string_equal(m.fstype, "ext3");
	assert_int_equal(mountinfo_parse("1 2 0:30 / / rw - fuse.wpfs wpfs rw", &m), 0);
	assert_string_equal(m.fstype, "fuse.wpfs");
	assert_int_equal(mountinfo_parse("1 2 0:30 / / rw", &m), -EINVAL);
	assert_int_equal(mountinfo_parse("nonsense", &m), -EINVAL);
}

/* Runs a report into a file in the place of stdout and gives what was written. */
static char *report(const struct wpfs_rec_mm *mm, const struct wpfs_rec_map *map,
		    const struct wpfs_rec_run *run, const char *note)
{
	struct wpfs_rec_note n;
	FILE *old = stdout;
	struct out out;
	char *text = NULL;
	size_t len;

	stdout = open_memstream(&text, &len);
	out_init(&out, WPFS_REPORT_DIRTY, true);
	snprintf(n.text, sizeof(n.text), "%s", note ?: "");
	if (mm)
		assert_int_equal(out_record(&out, WPFS_REC_MM, mm), 0);
	if (map)
		assert_int_equal(out_record(&out, WPFS_REC_MAP, map), 0);
	if (run)
		assert_int_equal(out_record(&out, WPFS_REC_RUN, run), 0);
	if (note)
		assert_int_equal(out_record(&out, WPFS_REC_NOTE, &n), 0);
	assert_int_equal(out_finish(&out), 0);
	out_free(&out);
	fclose(stdout);
	stdout = old;
	return text;
}

static void test_report_json(void **state)
{
	const struct wpfs_rec_mm mm = {.uid = 7,
				       .pid = 12,
				       .state = WPFS_MM_LIVE,
				       .files = 1,
				       .epoch = 3,
				       .armed = 4,
				       .marked = 3,
				       .dirty = 1,
				       .name = "db",
				       .comm = "prog"};
	const struct wpfs_rec_mm detached = {.state = WPFS_MM_DETACHED};
	const struct wpfs_rec_map map = {.start = 0x7f0000000000,
					 .end = 0x7f0000004000,
					 .pgoff = 2,
					 .pages = 4,
					 .armed = 4,
					 .marked = 3,
					 .dirty = 1,
					 .owner = WPFS_OWNER_WPFS,
					 .written = WPFS_WRITTEN_YES,
					 .path = "/f"};
	const struct wpfs_rec_map parked = {.pages = 4, .owner = WPFS_OWNER_PROGRAM, .path = "/g"};
	const struct wpfs_rec_run run = {.pgoff = 3, .pages = 1, .vaddr = 0x7f0000001000};
	const struct wpfs_rec_run nowhere = {.pgoff = 3, .pages = 1};
	_cleanup_free_ char *empty = report(NULL, NULL, NULL, "nothing attached");
	_cleanup_free_ char *full = report(&mm, &map, &run, NULL);
	_cleanup_free_ char *gone = report(&detached, &parked, &nowhere, "hm");

	assert_string_equal(empty, "{\"mms\":[],\"notes\":[\"nothing attached\"]}\n");
	assert_string_equal(full,
			    "{\"mms\":[{\"name\":\"db\",\"uid\":7,\"pid\":12,\"state\":\"live\","
			    "\"comm\":\"prog\",\"epoch\":3,\"files\":1,\"armed\":4,\"marked\":3,"
			    "\"dirty\":1,\"maps\":[{\"file\":\"/f\",\"start\":\"0x7f0000000000\","
			    "\"end\":\"0x7f0000004000\",\"pgoff\":2,\"pages\":4,\"owner\":\"wpfs\","
			    "\"armed\":4,\"marked\":3,\"dirty\":1,\"write_calls\":\"yes\",\"runs\":"
			    "[{\"pgoff\":3,\"pages\":1,"
			    "\"vaddr\":\"0x7f0000001000\"}]}],\"notes\":[]}],\"notes\":[]}\n");
	assert_string_equal(
		gone, "{\"mms\":[{\"name\":null,\"uid\":0,\"pid\":null,\"state\":\"detached\","
		      "\"comm\":\"\",\"epoch\":0,\"files\":0,\"armed\":0,\"marked\":0,"
		      "\"dirty\":0,\"maps\":[{\"file\":\"/g\",\"start\":null,\"end\":null,"
		      "\"pgoff\":0,\"pages\":4,\"owner\":\"program\",\"armed\":0,\"marked\":0,"
		      "\"dirty\":0,\"write_calls\":null,\"runs\":[{\"pgoff\":3,\"pages\":1,"
		      "\"vaddr\":null}]}],"
		      "\"notes\":[\"hm\"]}],\"notes\":[]}\n");
}

static void test_programs_found(void **state)
{
	char dir[] = "/tmp/ctl_test.XXXXXX", path[PATH_MAX], found[PATH_MAX], list[PATH_MAX + 8];
	_cleanup_free_ char *old = strdup(getenv("PATH") ?: "");
	FILE *f;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/prog", dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs("#!/bin/sh\n", f);
	fclose(f);
	snprintf(list, sizeof(list), "/nonexistent:%s", dir);
	setenv("PATH", list, 1);
	assert_int_equal(exe_find("prog", found, sizeof(found)), -EACCES);
	assert_int_equal(chmod(path, 0755), 0);
	assert_int_equal(exe_find("prog", found, sizeof(found)), 0);
	assert_string_equal(found, path);
	assert_int_equal(exe_find(path, found, sizeof(found)), 0);
	assert_int_equal(exe_find("other", found, sizeof(found)), -ENOENT);
	assert_int_equal(exe_find("", found, sizeof(found)), -ENOENT);
	assert_int_equal(exe_find(dir, found, sizeof(found)), -EACCES);
	setenv("PATH", old, 1);
	unlink(path);
	rmdir(dir);
}

static void test_intervals(void **state)
{
	static const char *const bad[] = {"",
					  "x",
					  "-1",
					  " 1",
					  "1x",
					  "1.",
					  "1.5.5",
					  ".5",
					  "0",
					  "0.0999",
					  "3601",
					  "3600.1",
					  "99999999999999999999"};
	unsigned ms;

	assert_null(parse_interval("0.1", &ms));
	assert_int_equal(ms, 100);
	assert_null(parse_interval("2", &ms));
	assert_int_equal(ms, 2000);
	assert_null(parse_interval("1.2345", &ms));
	assert_int_equal(ms, 1234);
	assert_null(parse_interval("3600", &ms));
	assert_int_equal(ms, 3600000);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_non_null(parse_interval(bad[i], &ms));
}

static const char *fit(const char *text, size_t columns)
{
	static char buf[64];

	width_fit(buf, sizeof(buf), text, columns);
	return buf;
}

static void test_widths(void **state)
{
	char small[4];

	assert_int_equal(width_of("abc"), 3);
	assert_int_equal(width_of("漢字"), 4);
	assert_int_equal(width_of("ä"), 1);
	assert_int_equal(width_of("a\xcc\x88"), 1); /* a letter that stands on the one before */
	assert_string_equal(fit("abc", 5), "abc  ");
	assert_string_equal(fit("abcdef", 4), "abc~");
	assert_string_equal(fit("abcd", 4), "abcd");
	assert_string_equal(fit("漢字", 4), "漢字");
	assert_string_equal(fit("漢字", 3), "漢~");
	assert_string_equal(fit("漢字", 2), "~ ");
	assert_string_equal(fit("a漢字", 3), "a~ ");
	assert_string_equal(fit("a\033b", 8), "a\\x1bb  ");
	assert_string_equal(fit("\xff", 6), "\\xff  ");
	assert_string_equal(fit("a\\b", 4), "a\\\\b");
	assert_string_equal(fit("abc", 0), "");
	width_fit(small, sizeof(small), "abcdef", 6);
	assert_true(strlen(small) < sizeof(small));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_paths),
		cmocka_unit_test(test_distance),
		cmocka_unit_test(test_json_escapes),
		cmocka_unit_test(test_json_paths),
		cmocka_unit_test(test_json_document),
		cmocka_unit_test(test_text_for_terminals),
		cmocka_unit_test(test_mountinfo),
		cmocka_unit_test(test_report_json),
		cmocka_unit_test(test_programs_found),
		cmocka_unit_test(test_intervals),
		cmocka_unit_test(test_widths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
