/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line of wpfs. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>

#include <cmocka.h>

#include "wpfs/options.h"

#define MAX_ARGS 16

static char error[OPTIONS_ERROR_SIZE];

/* Parses words separated by single blanks. */
static int parse(const char *line, struct options *o)
{
	static char copy[512];
	char *argv[MAX_ARGS] = {(char *)"wpfs"};
	int argc = 1;

	error[0] = '\0';
	strcpy(copy, line);
	for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
		argv[argc++] = word;
	return options_parse(argc, argv, o, error);
}

static void test_defaults(void **state)
{
	struct options o;

	assert_int_equal(parse("none /mnt", &o), 0);
	assert_int_equal(o.action, OPTIONS_MOUNT);
	assert_string_equal(o.store, "none");
	assert_string_equal(o.mountpoint, "/mnt");
	assert_false(o.foreground);
	assert_string_equal(o.lower, "");
	assert_int_equal(o.mount_flags, 0);
	assert_int_equal(o.resident, 0);
	assert_int_equal(o.settle_ms, 100);
	assert_false(o.sigbus);
	assert_int_equal(o.flush_s, 30);
	assert_int_equal(o.uffd_policy, TRACK_UFFD_WRITERS);
}

static void test_options_of_the_lower(void **state)
{
	struct options o;

	assert_int_equal(parse("-o size=64M,nr_inodes=2k,huge=never,mode=0755,uid=5,gid=root "
			       "/s /m",
			       &o),
			 0);
	assert_string_equal(o.lower,
			    "size=67108864,nr_inodes=2048,huge=never,mode=755,uid=5,gid=0");
	assert_true(o.has_root_attrs);
}

static void test_mount_flags(void **state)
{
	struct options o;

	/* as mount(8) calls its helpers: options behind the arguments, the last word counts */
	assert_int_equal(parse("/s /m -n -o rw,noexec,nodev -o dev,ro,nosuid,x-y.z=1,_netdev", &o),
			 0);
	assert_int_equal(o.mount_flags, MS_RDONLY | MS_NOEXEC | MS_NOSUID);
	assert_int_equal(parse("/s /m -o rw,noexec,user,users,owner,group,nofail,noauto", &o), 0);
	assert_int_equal(o.mount_flags, MS_NOEXEC);
}

static void test_own_options(void **state)
{
	struct options o;

	assert_int_equal(parse("-d -o resident=1G,settle=2s,onerror=sigbus,flush=0,harvest=5 "
			       "-o io_uring,uffd=gid=7 /s /m",
			       &o),
			 0);
	assert_true(o.debug && o.foreground && o.uring);
	assert_int_equal(o.resident, 1 << 30);
	assert_int_equal(o.settle_ms, 2000);
	assert_true(o.sigbus);
	assert_int_equal(o.flush_s, 0);
	assert_int_equal(o.harvest_s, 5);
	assert_int_equal(o.uffd_policy, TRACK_UFFD_GID);
	assert_int_equal(o.uffd_gid, 7);
	assert_int_equal(parse("-o settle=50ms,uffd=all /s /m", &o), 0);
	assert_int_equal(o.settle_ms, 50);
	assert_int_equal(o.uffd_policy, TRACK_UFFD_ALL);
}

static void test_other_actions(void **state)
{
	struct options o;

	assert_int_equal(parse("--probe", &o), 0);
	assert_int_equal(o.action, OPTIONS_PROBE);
	assert_int_equal(parse("--help", &o), 0);
	assert_int_equal(o.action, OPTIONS_HELP);
	assert_int_equal(parse("--version", &o), 0);
	assert_int_equal(o.action, OPTIONS_VERSION);
}

/* Every refusal names the word it is about. */
static void test_refusals_name_the_word(void **state)
{
	static const struct {
		const char *line, *names;
	} bad[] = {
		{"", "STORE"},
		{"none", "MOUNTPOINT"},
		{"none /m third", "third"},
		{"-o bogus none /m", "bogus"},
		{"-o size none /m", "size"},
		{"-o sizes=1 none /m", "sizes"},
		{"-o size=3X none /m", "3X"},
		{"-o size=-1 none /m", "-1"},
		{"-o size=101% none /m", "101%"},
		{"-o size= none /m", "size="},
		{"-o nr_inodes=5% none /m", "5%"},
		{"-o huge=maybe none /m", "maybe"},
		{"-o resident=1G,huge=always s /m", "resident="},
		{"-o mode=8 none /m", "'8'"},
		{"-o mode=17777 none /m", "17777"},
		{"-o uid=nobody-here none /m", "nobody-here"},
		{"-o gid=-1 none /m", "-1"},
		{"-o settle=1h /s /m", "1h"},
		{"-o onerror=crash /s /m", "crash"},
		{"-o flush=x /s /m", "'x'"},
		{"-o harvest=999999999 /s /m", "999999999"},
		{"-o uffd=some none /m", "some"},
		{"-o resident=1M none /m", "resident"},
		{"-o resident=1 /s /m", "resident"},
		{"-o remount,resident=1G none /m", "resident="},
		{"-o user_id=5 none /m", "user_id=5"},
		{"-o rw=1 none /m", "rw=1"},
		{"-x none /m", "-x"},
		{"--bogus none /m", "--bogus"},
		{"none /m -o", "-o"},
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct options o;

		assert_int_equal(parse(bad[i].line, &o), -EINVAL);
		if (!strstr(error, bad[i].names) || strchr(error, '\n'))
			fail_msg("'%s' gives: %s", bad[i].line, error);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),      cmocka_unit_test(test_options_of_the_lower),
		cmocka_unit_test(test_mount_flags),   cmocka_unit_test(test_own_options),
		cmocka_unit_test(test_other_actions), cmocka_unit_test(test_refusals_name_the_word),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
