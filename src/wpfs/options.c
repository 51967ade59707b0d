/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/options.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

#include "base/cleanup.h"
#include "base/units.h"

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif

const char options_help[] =
	"usage: wpfs [-f] [-d] [-o OPTION,...] STORE|none MOUNTPOINT\n"
	"       wpfs --probe | --help | --version\n"
	"\n"
	"Mounts a file system in memory that remembers write-protection. STORE is a directory\n"
	"that keeps it across mounts (made when it is missing); none keeps nothing.\n"
	"\n"
	"  -f             stay in the foreground, log to stderr\n"
	"  -d             log every request (implies -f)\n"
	"  --probe        say what this kernel and system lack, and exit\n"
	"\n"
	"  -o size=SIZE          largest amount of file contents (default 50% of memory)\n"
	"  -o nr_inodes=N        largest number of files\n"
	"  -o huge=POLICY        never, always, within_size or advise\n"
	"  -o mode=MODE,uid=UID,gid=GID   of the root directory\n"
	"  -o resident=SIZE      capped: at most SIZE of page contents in memory, the rest in "
	"STORE\n"
	"  -o settle=TIME        how long direct I/O may take there (default 100ms)\n"
	"  -o onerror=wait|sigbus         there: a page that cannot be read back (default wait)\n"
	"  -o flush=SECONDS      write changes to STORE that often (default 30, 0: at unmount)\n"
	"  -o harvest=SECONDS    make marks durable that often (default 10, 0: when asked)\n"
	"  -o io_uring           FUSE over io_uring\n"
	"  -o uffd=all|gid=N|root         who may track (default: who may write to the root)\n"
	"and the options of mount(8) for every file system: ro, nosuid, nodev, noexec, noatime, "
	"...\n"
	"SIZE takes K, M, G, T or % (of memory). See wpfs(8).\n";

/* Words of mount(8): flags they set or clear. A flag of 0 with `set` is accepted, for fstab. */
static const struct {
	const char *word;
	unsigned long flag;
	bool set;
} flag_words[] = {
	{"ro", MS_RDONLY, true},
	{"rw", MS_RDONLY, false},
	{"nosuid", MS_NOSUID, true},
	{"suid", MS_NOSUID, false},
	{"nodev", MS_NODEV, true},
	{"dev", MS_NODEV, false},
	{"noexec", MS_NOEXEC, true},
	{"exec", MS_NOEXEC, false},
	{"noatime", MS_NOATIME, true},
	{"atime", MS_NOATIME, false},
	{"nodiratime", MS_NODIRATIME, true},
	{"diratime", MS_NODIRATIME, false},
	{"relatime", MS_RELATIME, true},
	{"norelatime", MS_RELATIME, false},
	{"strictatime", MS_STRICTATIME, true},
	{"nostrictatime", MS_STRICTATIME, false},
	{"nosymfollow", MS_NOSYMFOLLOW, true},
	{"symfollow", MS_NOSYMFOLLOW, false},
	{"sync", MS_SYNCHRONOUS, true},
	{"async", MS_SYNCHRONOUS, false},
	{"dirsync", MS_DIRSYNC, true},
	{"defaults", 0, true},
	{"auto", 0, true},
	{"noauto", 0, true},
	{"nofail", 0, true},
	{"nouser", 0, true},
	{"user", 0, true}, /* what these four imply mount(8) says in words of its own */
	{"users", 0, true},
	{"owner", 0, true},
	{"group", 0, true},
	{"_netdev", 0, true},
	{"allow_other", 0, true},
	{"default_permissions", 0, true},
};

__attribute__((format(printf, 2, 3))) static int bad(char error[OPTIONS_ERROR_SIZE],
						     const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, OPTIONS_ERROR_SIZE, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

static int parse_number(const char *text, int base, uint64_t max, uint64_t *value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	*value = strtoull(text, &end, base);
	return errno || *end || *value > max ? -EINVAL : 0;
}

static int lower_add(struct options *o, char *error, const char *fmt, ...)
{
	size_t used = strlen(o->lower);
	va_list ap;
	int n;

	if (used)
		o->lower[used++] = ',';
	va_start(ap, fmt);
	n = vsnprintf(o->lower + used, sizeof(o->lower) - used, fmt, ap);
	va_end(ap);
	return n < 0 || (size_t)n >= sizeof(o->lower) - used ? bad(error, "too many options") : 0;
}

static int take_size(struct options *o, const char *value, char *error)
{
	uint64_t bytes;

	if (units_parse_size(value, &bytes))
		return bad(error, "bad size '%s' in size=: a number with K, M, G, T or %%", value);
	o->size = bytes;
	return lower_add(o, error, "size=%" PRIu64, bytes);
}

static int take_resident(struct options *o, const char *value, char *error)
{
	if (units_parse_size(value, &o->resident) || o->resident < WPFS_PAGE_SIZE)
		return bad(error,
			   "bad size '%s' in resident=: at least a page, with K, M, G, T or %%",
			   value);
	return 0;
}

static int take_nr_inodes(struct options *o, const char *value, char *error)
{
	uint64_t nr;

	if (strchr(value, '%') || units_parse_size(value, &nr))
		return bad(error, "bad number '%s' in nr_inodes=: a number with K, M or G", value);
	return lower_add(o, error, "nr_inodes=%" PRIu64, nr);
}

static int take_huge(struct options *o, const char *value, char *error)
{
	static const char *const policies[] = {"never", "always", "within_size", "advise"};

	for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
		if (strcmp(value, policies[i]) == 0)
			return lower_add(o, error, "huge=%s", value);
	}
	return bad(error, "bad value '%s' in huge=: never, always, within_size or advise", value);
}

static int take_mode(struct options *o, const char *value, char *error)
{
	uint64_t mode;

	if (parse_number(value, 8, 07777, &mode))
		return bad(error, "bad mode '%s' in mode=: an octal number up to 7777", value);
	o->has_root_attrs = true;
	return lower_add(o, error, "mode=%" PRIo64, mode);
}

static int take_uid(struct options *o, const char *value, char *error)
{
	struct passwd *user = getpwnam(value);
	uint64_t uid = user ? user->pw_uid : 0;

	if (!user && parse_number(value, 10, UINT32_MAX - 1, &uid))
		return bad(error, "bad user '%s' in uid=: a number or a name that exists", value);
	o->has_root_attrs = true;
	return lower_add(o, error, "uid=%" PRIu64, uid);
}

static int parse_group(const char *value, uint64_t *gid)
{
	struct group *group = getgrnam(value);

	if (!group)
		return parse_number(value, 10, UINT32_MAX - 1, gid);
	*gid = group->gr_gid;
	return 0;
}

static int take_gid(struct options *o, const char *value, char *error)
{
	uint64_t gid;

	if (parse_group(value, &gid))
		return bad(error, "bad group '%s' in gid=: a number or a name that exists", value);
	o->has_root_attrs = true;
	return lower_add(o, error, "gid=%" PRIu64, gid);
}

/* "100", "100ms" or "2s". */
static int take_settle(struct options *o, const char *value, char *error)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);
	unsigned long scale = strcmp(end, "s") == 0 ? 1000 : 1;

	if (*value < '0' || *value > '9' || (*end && strcmp(end, "ms") != 0 && scale == 1) ||
	    n > 3600000 / scale)
		return bad(error, "bad time '%s' in settle=: milliseconds, or with ms or s", value);
	o->settle_ms = (unsigned)(n * scale);
	return 0;
}

static int take_onerror(struct options *o, const char *value, char *error)
{
	o->sigbus = strcmp(value, "sigbus") == 0;
	if (!o->sigbus && strcmp(value, "wait") != 0)
		return bad(error, "bad word '%s' in onerror=: wait or sigbus", value);
	return 0;
}

static int take_seconds(const char *key, const char *value, unsigned *seconds, char *error)
{
	uint64_t n;

	if (parse_number(value, 10, 7 * 24 * 3600, &n))
		return bad(error, "bad time '%s' in %s=: seconds, at most a week", value, key);
	*seconds = (unsigned)n;
	return 0;
}

static int take_flush(struct options *o, const char *value, char *error)
{
	return take_seconds("flush", value, &o->flush_s, error);
}

static int take_harvest(struct options *o, const char *value, char *error)
{
	return take_seconds("harvest", value, &o->harvest_s, error);
}

static int take_uffd(struct options *o, const char *value, char *error)
{
	uint64_t gid;

	if (strcmp(value, "all") == 0) {
		o->uffd_policy = TRACK_UFFD_ALL;
	} else if (strcmp(value, "root") == 0) {
		o->uffd_policy = TRACK_UFFD_ROOT;
	} else if (strncmp(value, "gid=", 4) == 0 && parse_group(value + 4, &gid) == 0) {
		o->uffd_policy = TRACK_UFFD_GID;
		o->uffd_gid = (gid_t)gid;
	} else {
		return bad(error, "bad value '%s' in uffd=: all, gid=GROUP or root", value);
	}
	return 0;
}

static const struct {
	const char *key;
	int (*take)(struct options *o, const char *value, char *error);
} value_words[] = {
	{"size", take_size},	     {"nr_inodes", take_nr_inodes},
	{"huge", take_huge},	     {"mode", take_mode},
	{"uid", take_uid},	     {"gid", take_gid},
	{"resident", take_resident}, {"settle", take_settle},
	{"onerror", take_onerror},   {"flush", take_flush},
	{"harvest", take_harvest},   {"uffd", take_uffd},
};

static int take_word(struct options *o, const char *word, char *error)
{
	const char *equals = strchr(word, '=');
	size_t len = equals ? (size_t)(equals - word) : strlen(word);

	for (size_t i = 0; !equals && i < sizeof(flag_words) / sizeof(flag_words[0]); i++) {
		if (strcmp(word, flag_words[i].word) != 0)
			continue;
		o->mount_flags &= ~flag_words[i].flag;
		o->mount_flags |= flag_words[i].set ? flag_words[i].flag : 0;
		return 0;
	}
	for (size_t i = 0; i < sizeof(value_words) / sizeof(value_words[0]); i++) {
		if (strlen(value_words[i].key) != len ||
		    strncmp(word, value_words[i].key, len) != 0)
			continue;
		return equals ? value_words[i].take(o, equals + 1, error)
			      : bad(error, "option '%s' needs a value: %s=...", word, word);
	}
	if (strcmp(word, "io_uring") == 0) {
		o->uring = true;
		return 0;
	}
	if (strncmp(word, "x-", 2) == 0 || strncmp(word, "comment=", 8) == 0)
		return 0; /* for others who read fstab(5) */
	if (strcmp(word, "remount") == 0) {
		o->action = OPTIONS_REMOUNT;
		return 0;
	}
	/* What mount(8) reads in the mount table and says again. */
	if (strcmp(word, "user_id=0") == 0 || strcmp(word, "group_id=0") == 0)
		return 0;
	return bad(error, "unknown option '%s': see wpfs --help", word);
}

/* The words of one -o, separated by commas. */
static int take_words(struct options *o, const char *words, char *error)
{
	_cleanup_free_ char *copy = strdup(words);
	char *save = NULL;

	if (!copy)
		return bad(error, "out of memory");
	for (char *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		int r = take_word(o, word, error);

		if (r)
			return r;
	}
	return 0;
}

/* mount(8) runs us by another name, and lets anything be the device of a file system in memory. */
static int take_arguments(struct options *o, int nr, char **args, bool is_helper, char *error)
{
	if (nr == 0)
		return bad(error, "no STORE and no MOUNTPOINT given: see wpfs --help");
	if (nr == 1)
		return bad(error, "no MOUNTPOINT given after '%s': see wpfs --help", args[0]);
	if (nr > 2)
		return bad(error, "one argument too many, '%s': see wpfs --help", args[2]);
	if (!args[0][0] || !args[1][0])
		return bad(error, "an empty word is no %s", args[0][0] ? "MOUNTPOINT" : "STORE");
	o->store = o->source = args[0];
	o->mountpoint = args[1];
	if (is_helper && !strchr(o->store, '/'))
		o->store = "none";
	if (o->action == OPTIONS_REMOUNT)
		return o->resident ? bad(error, "resident= cannot be changed: unmount, then mount")
				   : 0;
	if (o->resident && strcmp(o->store, "none") == 0)
		return bad(error,
			   "resident= needs a STORE: with 'none' there is no place for the rest");
	if (!o->resident || strstr(o->lower, "huge=never"))
		return 0;
	if (strstr(o->lower, "huge="))
		return bad(error, "huge= other than never does not go with resident=");
	/* A part of a huge page cannot leave memory. */
	return lower_add(o, error, "huge=never");
}

int options_parse(int argc, char **argv, struct options *o, char error[OPTIONS_ERROR_SIZE])
{
	static const struct option longs[] = {
		{"probe", no_argument, NULL, 'p'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	const char *name = strrchr(argv[0], '/');
	bool is_helper = strncmp(name ? name + 1 : argv[0], "mount.", 6) == 0;
	int c, r = 0;

	*o = (struct options){.settle_ms = 100, .flush_s = 30, .harvest_s = 10};
	optind = 0; /* also resets glibc's inner state */
	opterr = 0;
	while (!r && (c = getopt_long(argc, argv, "fdo:hVnsv", longs, NULL)) != -1) {
		switch (c) {
		case 'f':
			o->foreground = true;
			break;
		case 'd':
			o->foreground = o->debug = true;
			break;
		case 'o':
			r = take_words(o, optarg, error);
			break;
		case 'p':
			o->action = OPTIONS_PROBE;
			return 0;
		case 'h':
			o->action = OPTIONS_HELP;
			return 0;
		case 'V':
			o->action = OPTIONS_VERSION;
			return 0;
		case 'n':
		case 's':
		case 'v':
			break; /* what mount(8) gives to its helpers */
		default:
			if (optopt == 'o')
				return bad(error, "-o needs a value: see wpfs --help");
			return bad(error, "unknown option '%s': see wpfs --help", argv[optind - 1]);
		}
	}
	return r ? r : take_arguments(o, argc - optind, argv + optind, is_helper, error);
}
