/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * wpctl: what every subcommand gets and gives. One thread, one command, then exit.
 *
 * A command says everything that goes wrong itself, in one line on stderr (ctl_say), and gives an
 * exit status; nothing of a failed command is on stdout except, with a report that breaks off in
 * the middle, what had come until then.
 */
#ifndef WPFS_CTL_CTL_H
#define WPFS_CTL_CTL_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc/wire.h"

enum ctl_status {
	CTL_DONE = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2,
	CTL_CANNOT_EXEC = 126, /* of `run`, as env(1): found and not executable */
	CTL_NOT_FOUND = 127,   /* of `run`: no such program */
};

/* Which options a command takes besides --json and --help. */
#define CTL_OPT_NAME	    (1u << 0)
#define CTL_OPT_FILE	    (1u << 1)
#define CTL_OPT_RANGE	    (1u << 2)
#define CTL_OPT_EPOCH	    (1u << 3)
#define CTL_OPT_PROTECT	    (1u << 4)
/* --name, --file has to be given */
#define CTL_NEED_NAME	    (1u << 5)
#define CTL_NEED_FILE	    (1u << 6)
#define CTL_OPT_FULL	    (1u << 7)
#define CTL_OPT_FORCE	    (1u << 8)
#define CTL_OPT_REPAIR	    (1u << 9)
#define CTL_OPT_OUTPUT	    (1u << 10)
#define CTL_OPT_DARK	    (1u << 11)
#define CTL_OPT_TO	    (1u << 12) /* a file of any kind */
#define CTL_OPT_ONCE	    (1u << 13)
#define CTL_OPT_EVERY	    (1u << 14)
#define CTL_OPT_SINCE	    (1u << 15)
#define CTL_OPT_OPENMETRICS (1u << 16)

/* Which operands it takes: all that are named are required. */
enum ctl_operands {
	CTL_MNT,	  /* a mount */
	CTL_STORE,	  /* a store that is not mounted */
	CTL_MNT_OR_STORE, /* a mount, or a store, mounted or not */
	CTL_MNT_PATH,	  /* a mount, and a path inside it */
	CTL_MNT_COMMAND,  /* a mount, and a command line */
	CTL_MNT_DIR,	  /* a mount or a store, and a directory outside */
	CTL_SHELL,	  /* the name of a shell */
	CTL_DIR_FILE,	  /* a directory and a file, neither in a mount */
};

/* A parsed and checked command line. The strings are those of argv. */
struct ctl_args {
	const struct ctl_command *command;
	bool json;
	bool protect;
	bool full, force, repair;
	const char *output; /* --output; NULL: none */
	bool once;
	unsigned interval_ms; /* 0: not given */
	bool has_since;
	uint64_t since; /* an epoch */
	bool png, dark;
	bool openmetrics;
	const char *target;  /* CTL_SHELL: its name; MNT or STORE; CTL_DIR_FILE: the directory */
	const char *operand; /* CTL_MNT_DIR, CTL_DIR_FILE: the second one */
	char **argv;	     /* CTL_MNT_COMMAND: the command line, NULL-terminated */
	struct wpfs_select select; /* --name, --file or PATH, --range, --epoch */
};

struct ctl_command {
	const char *name;
	const char *synopsis; /* what stands after the name */
	const char *summary;  /* a line */
	const char *help;     /* paragraphs, for --help */
	unsigned options;     /* CTL_OPT_*, CTL_NEED_* */
	enum ctl_operands operands;
	int (*run)(const struct ctl_args *args); /* gives an enum ctl_status */
};

struct ctl_option {
	unsigned option; /* CTL_OPT_*, or 0: every command has it */
	struct option getopt;
	const char *help; /* "--name N   what it is" */
};

/* All options; ends with one without help. */
extern const struct ctl_option ctl_options[];

/* The commands, in the order of --help; ends with one without a name. */
extern const struct ctl_command ctl_commands[];

int cmd_status(const struct ctl_args *args);
int cmd_run(const struct ctl_args *args);
int cmd_ps(const struct ctl_args *args);
int cmd_marks(const struct ctl_args *args);
int cmd_dirty(const struct ctl_args *args);
int cmd_protect(const struct ctl_args *args);
int cmd_unprotect(const struct ctl_args *args);
int cmd_sync(const struct ctl_args *args);
int cmd_forget(const struct ctl_args *args);
int cmd_evict(const struct ctl_args *args);
int cmd_load(const struct ctl_args *args);
int cmd_completion(const struct ctl_args *args);
int cmd_map(const struct ctl_args *args);
int cmd_export(const struct ctl_args *args);
int cmd_apply(const struct ctl_args *args);
int cmd_check(const struct ctl_args *args);
int cmd_top(const struct ctl_args *args);
int cmd_watch(const struct ctl_args *args);
int cmd_metrics(const struct ctl_args *args);

/*
 * Flushes stdout, says so when that or an earlier write failed, and gives the exit status: the
 * last call of every command that wrote something.
 */
int ctl_finish(void);

#endif
