/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of subcommands, which is the one source of --help, and the command line: parsed and
 * checked here, so that a command sees only what is well-formed.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "ctl/ctl.h"
#include "ctl/parse.h"
#include "ctl/say.h"

const struct ctl_command ctl_commands[] = {
	{"status", "MNT|STORE", "what a mount is and how it does",
	 "Kind, memory, tracked programs and last commit of a mount; of a store that is not\n"
	 "mounted, what its database holds.",
	 0, CTL_MNT_OR_STORE, cmd_status},
	{"run", "[--name N] [--protect] MNT -- COMMAND [ARG...]", "run a program tracked",
	 "Sets LD_PRELOAD, WPFS_NAME, WPFS_PROTECT and WPFS_MOUNT, and becomes the program.\n"
	 "With a name its marks outlive it and are there again at the next run of that name.\n"
	 "--protect arms every shared mapping of a file of MNT as it is made.",
	 CTL_OPT_NAME | CTL_OPT_PROTECT, CTL_MNT_COMMAND, cmd_run},
	{"ps", "[--name N] MNT|STORE", "list tracked programs",
	 "One line per address space, with its armed, marked and dirty pages.", CTL_OPT_NAME,
	 CTL_MNT_OR_STORE, cmd_ps},
	{"marks", "[--name N] [--file P] MNT|STORE", "list marked pages",
	 "The pages that are protected and not written since, as runs.",
	 CTL_OPT_NAME | CTL_OPT_FILE, CTL_MNT_OR_STORE, cmd_marks},
	{"dirty", "[--name N] [--file P] [--epoch E] MNT|STORE", "list pages written since protect",
	 "The pages that were armed and have been written or dropped since, as runs; with\n"
	 "--epoch, those of a closed epoch.",
	 CTL_OPT_NAME | CTL_OPT_FILE | CTL_OPT_EPOCH, CTL_MNT_OR_STORE, cmd_dirty},
	{"protect", "[--name N] [--file P] [--range OFF+LEN] MNT", "protect pages: begin an epoch",
	 "Arms the pages of live programs: all, or those of a name, a file, a range of it.",
	 CTL_OPT_NAME | CTL_OPT_FILE | CTL_OPT_RANGE, CTL_MNT, cmd_protect},
	{"unprotect", "[--name N] [--file P] [--range OFF+LEN] MNT", "take protection away",
	 "Removes the marks, and the pages from what counts as armed.",
	 CTL_OPT_NAME | CTL_OPT_FILE | CTL_OPT_RANGE, CTL_MNT, cmd_unprotect},
	{"sync", "[--name N] MNT", "harvest and commit marks now",
	 "Returns when the marks as they are now are in the database.", CTL_OPT_NAME, CTL_MNT,
	 cmd_sync},
	{"forget", "--name N MNT|STORE", "drop all that is kept of a name",
	 "Its marks, armed pages and epochs. Not while a program of that name lives.",
	 CTL_OPT_NAME | CTL_NEED_NAME, CTL_MNT_OR_STORE, cmd_forget},
	{"evict", "MNT PATH", "move a file's pages out of memory",
	 "Capped mounts only. PATH is inside the mount, with leading '/'.", 0, CTL_MNT_PATH,
	 cmd_evict},
	{"load", "MNT PATH", "bring a file's pages back into memory",
	 "Capped mounts only. PATH is inside the mount, with leading '/'.", 0, CTL_MNT_PATH,
	 cmd_load},
	{"map", "[--name N] [--file P] [-o FILE] [--dark] MNT|STORE", "draw the marks",
	 "A row of cells for each mapping: which of its pages are dirty, marked, never armed,\n"
	 "and which are not in memory. In the terminal, or with -o as a picture.",
	 CTL_OPT_NAME | CTL_OPT_FILE | CTL_OPT_OUTPUT | CTL_OPT_DARK, CTL_MNT_OR_STORE, cmd_map},
	{"top", "[--once] [--interval SECONDS] MNT", "watch tracked programs, live",
	 "A table of the live programs, most dirty pages first, every 2 seconds or as\n"
	 "--interval says. Keys: d, r, m, k, f, n, p sort, R reverses, arrows scroll, q quits.\n"
	 "--once prints one table; rates are in it if an --interval is given, which it waits.",
	 CTL_OPT_ONCE | CTL_OPT_EVERY, CTL_MNT, cmd_top},
	{"watch", "[--name N] MNT", "print what happens, as it happens",
	 "A line for each attach, detach, harvest and commit, and for each second of evictions;\n"
	 "with --name, what is of that program. Ends with the mount.",
	 CTL_OPT_NAME, CTL_MNT, cmd_watch},
	{"metrics", "[-o FILE] [--openmetrics] MNT", "write metrics for monitoring",
	 "In the text format of Prometheus; with -o to FILE, at once and as a whole, for the node\n"
	 "exporter's textfile directory. If the mount's daemon does not answer, FILE says so.",
	 CTL_OPT_TO | CTL_OPT_OPENMETRICS, CTL_MNT, cmd_metrics},
	{"export", "--file P [--name N] [--epoch E | --since E | --full] [--force] MNT|STORE DIR",
	 "copy the pages of a file that changed",
	 "Writes the pages of P that are dirty, or that a closed epoch ended with, or all that\n"
	 "were closed --since one, to DIR, for wpctl apply. Refuses when they may not be all that\n"
	 "changed, but for --force; --full copies all pages, to begin with and after a refusal.",
	 CTL_OPT_SINCE | CTL_OPT_NAME | CTL_OPT_FILE | CTL_OPT_EPOCH | CTL_OPT_FULL |
		 CTL_OPT_FORCE | CTL_NEED_FILE,
	 CTL_MNT_DIR, cmd_export},
	{"apply", "DIR TARGET", "bring a copy of a file up to date",
	 "Checks all that wpctl export has put into DIR, and writes it into the file TARGET.\n"
	 "To be done again when it was interrupted.",
	 0, CTL_DIR_FILE, cmd_apply},
	{"check", "[--repair] STORE", "check a store that is not mounted",
	 "Database, tree, contents and marks against each other; a line for each thing that is\n"
	 "wrong. Nothing is changed without --repair, which throws no contents away: files\n"
	 "without a name go to /lost+found of the tree, contents without a file to\n"
	 "STORE/lost+found, and pages in doubt count as dirty.",
	 CTL_OPT_REPAIR, CTL_STORE, cmd_check},
	{"completion", "bash|zsh|fish", "write a completion script",
	 "For the shell of that name; installed with wpfs. It knows commands, options, "
	 "mountpoints\n"
	 "and names.",
	 0, CTL_SHELL, cmd_completion},
	{0},
};

const struct ctl_option ctl_options[] = {
	{CTL_OPT_NAME,
	 {"name", required_argument, NULL, 'n'},
	 "--name N           the program of this name"},
	{CTL_OPT_FILE,
	 {"file", required_argument, NULL, 'f'},
	 "--file P           this file: a path inside the mount, with leading '/'"},
	{CTL_OPT_RANGE,
	 {"range", required_argument, NULL, 'r'},
	 "--range OFF+LEN    these bytes of the file, page-aligned; K, M, G, T"},
	{CTL_OPT_EPOCH,
	 {"epoch", required_argument, NULL, 'e'},
	 "--epoch E          this epoch, by number"},
	{CTL_OPT_SINCE,
	 {"since", required_argument, NULL, 's'},
	 "--since E          this epoch and all that were closed after it"},
	{CTL_OPT_PROTECT,
	 {"protect", no_argument, NULL, 'p'},
	 "--protect          arm each shared mapping as it is made"},
	{CTL_OPT_FULL,
	 {"full", no_argument, NULL, 'a'},
	 "--full             all pages of the file, changed or not"},
	{CTL_OPT_FORCE,
	 {"force", no_argument, NULL, 'F'},
	 "--force            though pages may be missing"},
	{CTL_OPT_REPAIR,
	 {"repair", no_argument, NULL, 'R'},
	 "--repair           mend what is wrong"},
	{CTL_OPT_OUTPUT,
	 {"output", required_argument, NULL, 'o'},
	 "-o, --output FILE  to this file: .svg or .png"},
	{CTL_OPT_TO, {"output", required_argument, NULL, 'o'}, "-o, --output FILE  to this file"},
	{CTL_OPT_ONCE, {"once", no_argument, NULL, '1'}, "--once             one table, then end"},
	{CTL_OPT_EVERY,
	 {"interval", required_argument, NULL, 'i'},
	 "--interval SECONDS how long from one look to the next, from 0.1"},
	{CTL_OPT_OPENMETRICS,
	 {"openmetrics", no_argument, NULL, 'O'},
	 "--openmetrics      in the OpenMetrics text format"},
	{CTL_OPT_DARK,
	 {"dark", no_argument, NULL, 'd'},
	 "--dark             with -o: for a dark page"},
	{0,
	 {"json", no_argument, NULL, 'j'},
	 "--json             one JSON object instead of text: wpctl(1) lists its keys"},
	{0, {"help", no_argument, NULL, 'h'}, "--help             this text"},
	{0},
};
#define NR_OPTIONS (sizeof(ctl_options) / sizeof(ctl_options[0]) - 1)

int ctl_finish(void)
{
	if (fflush(stdout) || ferror(stdout)) {
		ctl_say("cannot write the answer to stdout: %s", log_errstr(errno));
		return CTL_FAILED;
	}
	return CTL_DONE;
}

static int show_overview(void)
{
	printf("usage: wpctl COMMAND ...\n"
	       "Look at and control a wpfs mount: the marks of the programs that map its "
	       "files.\n\n");
	for (const struct ctl_command *c = ctl_commands; c->name; c++)
		printf("  %-10s %s\n", c->name, c->summary);
	printf("\nMNT is the mountpoint; STORE the directory given to wpfs(8).\n"
	       "wpctl help COMMAND, or wpctl COMMAND --help, tells more; wpctl(1) tells all.\n");
	return ctl_finish();
}

static int show_help(const struct ctl_command *c)
{
	printf("usage: wpctl %s %s\n%s\n\n", c->name, c->synopsis, c->help);
	for (size_t i = 0; i < NR_OPTIONS; i++) {
		if (!ctl_options[i].option || (ctl_options[i].option & c->options))
			printf("  %s\n", ctl_options[i].help);
	}
	return ctl_finish();
}

static int usage(const struct ctl_command *c, const char *what, const char *which)
{
	ctl_say("%s: %s%s%s%s: usage: wpctl %s %s", c->name, what, which ? " '" : "", which ?: "",
		which ? "'" : "", c->name, c->synopsis);
	return CTL_USAGE;
}

static int bad_value(const struct ctl_command *c, const char *option, const char *value,
		     const char *why)
{
	ctl_say("%s: %s '%s' %s", c->name, option, value, why);
	return CTL_USAGE;
}

static int set_name(struct ctl_args *args, const char *value)
{
	bool gives = args->command->operands == CTL_MNT_COMMAND;
	const char *why = gives ? parse_name(value) : parse_mm_name(value);

	if (why)
		return bad_value(args->command, "name", value, why);
	snprintf(args->select.name, sizeof(args->select.name), "%s", value);
	args->select.set |= WPFS_SELECT_NAME;
	return 0;
}

static int set_file(struct ctl_args *args, const char *value)
{
	const char *why = parse_path(value, args->select.file, sizeof(args->select.file));

	if (why)
		return bad_value(args->command, "path", value, why);
	args->select.set |= WPFS_SELECT_FILE;
	return 0;
}

static int set_option(struct ctl_args *args, int option, const char *value)
{
	const char *why = NULL;

	switch (option) {
	case 'n':
		return set_name(args, value);
	case 'f':
		return set_file(args, value);
	case 'r':
		why = parse_range(value, &args->select.offset, &args->select.len);
		args->select.set |= WPFS_SELECT_RANGE;
		return why ? bad_value(args->command, "range", value, why) : 0;
	case 'e':
		why = parse_number(value, &args->select.epoch);
		args->select.set |= WPFS_SELECT_EPOCH;
		return why ? bad_value(args->command, "epoch", value, why) : 0;
	case 's':
		why = parse_number(value, &args->since);
		args->has_since = true;
		return why ? bad_value(args->command, "epoch", value, why) : 0;
	case 'p':
		args->protect = true;
		return 0;
	case 'o':
		if (args->command->options & CTL_OPT_OUTPUT)
			why = parse_picture(value, &args->png);
		args->output = value;
		return why ? bad_value(args->command, "picture", value, why) : 0;
	case 'd':
		args->dark = true;
		return 0;
	case 'O':
		args->openmetrics = true;
		return 0;
	case '1':
		args->once = true;
		return 0;
	case 'i':
		why = parse_interval(value, &args->interval_ms);
		return why ? bad_value(args->command, "interval", value, why) : 0;
	case 'a':
		args->full = true;
		return 0;
	case 'F':
		args->force = true;
		return 0;
	case 'R':
		args->repair = true;
		return 0;
	default:
		args->json = true;
		return 0;
	}
}

/*
 * Options up to the next operand, or all (permuting) when the command has no command line of its
 * own. Gives 0, a ctl_status, or -1 after --help.
 */
static int parse_options(struct ctl_args *args, int argc, char **argv)
{
	const struct ctl_command *c = args->command;
	const char *letters = c->operands == CTL_MNT_COMMAND		   ? "+:h"
			      : c->options & (CTL_OPT_OUTPUT | CTL_OPT_TO) ? ":ho:"
									   : ":h";
	struct option list[NR_OPTIONS + 1];
	size_t nr = 0;
	int option, r;

	memset(list, 0, sizeof(list));
	for (size_t i = 0; i < NR_OPTIONS; i++) {
		if (!ctl_options[i].option || (ctl_options[i].option & c->options))
			list[nr++] = ctl_options[i].getopt;
	}
	opterr = 0;
	while ((option = getopt_long(argc, argv, letters, list, NULL)) != -1) {
		if (option == 'h')
			return show_help(c) ?: -1;
		if (option == ':')
			return usage(c, "no value after option", argv[optind - 1]);
		if (option == '?')
			return usage(c, "unknown option", argv[optind - 1]);
		r = set_option(args, option, optarg);
		if (r)
			return r;
	}
	return 0;
}

static const char *no_target(const struct ctl_command *c)
{
	switch (c->operands) {
	case CTL_STORE:
		return "no store given";
	case CTL_SHELL:
		return "no shell given";
	case CTL_DIR_FILE:
		return "no directory given";
	case CTL_MNT_OR_STORE:
	case CTL_MNT_DIR:
		return "no mount or store given";
	default:
		return "no mount given";
	}
}

/* argv[0] is the command. Gives a ctl_status, or -1 after --help. */
static int parse(struct ctl_args *args, int argc, char **argv)
{
	const struct ctl_command *c = args->command;
	int r;

	r = parse_options(args, argc, argv);
	if (r)
		return r;
	if (optind == argc)
		return usage(c, no_target(c), NULL);
	args->target = argv[optind++];
	if (c->operands == CTL_MNT_COMMAND) {
		r = parse_options(args, argc, argv); /* also between MNT and -- */
		if (r)
			return r;
		if (optind == argc)
			return usage(c, "no command given", NULL);
		args->argv = argv + optind;
	} else if (c->operands == CTL_MNT_PATH) {
		if (optind == argc)
			return usage(c, "no path given", NULL);
		r = set_file(args, argv[optind++]);
		if (r)
			return r;
	}
	if (c->operands == CTL_MNT_DIR || c->operands == CTL_DIR_FILE) {
		if (optind == argc)
			return usage(c,
				     c->operands == CTL_MNT_DIR ? "no directory given"
								: "no file given",
				     NULL);
		args->operand = argv[optind++];
	}
	if (c->operands != CTL_MNT_COMMAND && optind < argc)
		return usage(c, "one operand too many:", argv[optind]);
	if ((c->options & CTL_NEED_NAME) && !(args->select.set & WPFS_SELECT_NAME))
		return usage(c, "no --name given", NULL);
	if ((c->options & CTL_NEED_FILE) && !(args->select.set & WPFS_SELECT_FILE))
		return usage(c, "no --file given", NULL);
	if (args->dark && !args->output)
		return usage(c, "--dark needs -o", NULL);
	if (args->has_since && (args->full || (args->select.set & WPFS_SELECT_EPOCH)))
		return usage(c, "--since is of several epochs: not with --epoch or --full", NULL);
	if (args->full && (args->select.set & (WPFS_SELECT_EPOCH | WPFS_SELECT_NAME)))
		return usage(c, "--full is of no epoch and no program", NULL);
	if ((args->select.set & WPFS_SELECT_RANGE) && !(args->select.set & WPFS_SELECT_FILE))
		return usage(c, "--range needs --file", NULL);
	return 0;
}

static const struct ctl_command *find_command(const char *name)
{
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		if (!strcmp(c->name, name))
			return c;
	}
	return NULL;
}

static void consider(const char *typed, const char *word, const char **nearest, unsigned *best)
{
	unsigned distance = parse_distance(typed, word);

	if (distance < *best && distance < strlen(word)) {
		*best = distance;
		*nearest = word;
	}
}

static int unknown_command(const char *name)
{
	unsigned best = 3; /* farther than two letters is no slip */
	const char *nearest = NULL;

	for (const struct ctl_command *c = ctl_commands; c->name; c++)
		consider(name, c->name, &nearest, &best);
	consider(name, "help", &nearest, &best);
	consider(name, "version", &nearest, &best);
	if (nearest)
		ctl_say("unknown command '%s': did you mean '%s'?", name, nearest);
	else
		ctl_say("unknown command '%s': wpctl --help lists them", name);
	return CTL_USAGE;
}

/* What is the same word as its option. */
static bool is_word(const char *arg, const char *word)
{
	return !strcmp(arg, word) || (!strncmp(arg, "--", 2) && !strcmp(arg + 2, word));
}

static int help(int argc, char **argv)
{
	const struct ctl_command *c;

	if (argc == 0)
		return show_overview();
	if (argc > 1) {
		ctl_say("help: one operand too many: '%s': usage: wpctl help [COMMAND]", argv[1]);
		return CTL_USAGE;
	}
	if (!strcmp(argv[0], "help") || !strcmp(argv[0], "version"))
		return show_overview();
	c = find_command(argv[0]);
	return c ? show_help(c) : unknown_command(argv[0]);
}

int main(int argc, char **argv)
{
	struct ctl_args args = {0};
	int r;

	if (argc < 2) {
		ctl_say("no command given: wpctl --help lists them");
		return CTL_USAGE;
	}
	if (is_word(argv[1], "help") || !strcmp(argv[1], "-h"))
		return help(argc - 2, argv + 2);
	if (is_word(argv[1], "version")) {
		printf("wpctl %s\n", WPFS_VERSION);
		return ctl_finish();
	}
	args.command = find_command(argv[1]);
	if (!args.command)
		return unknown_command(argv[1]);
	r = parse(&args, argc - 1, argv + 1);
	if (r)
		return r < 0 ? CTL_DONE : r;
	return args.command->run(&args);
}
