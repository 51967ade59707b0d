/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Completion for shells, out of the table that --help is made of. What depends on the moment (where
 * a mount is, which names there are) the script asks for when it runs.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"

/* Both find the mount that a command line names, or the only one there is. */
static const char bash_head[] =
	"# Completion of wpctl(1) for bash, made by `wpctl completion bash`.\n"
	"_wpctl_mounts() {\n"
	"	local mnt type\n"
	"	while read -r _ mnt type _; do\n"
	"		[[ $type == fuse.wpfs ]] && printf '%b\\n' \"$mnt\"\n"
	"	done </proc/self/mounts\n"
	"}\n"
	"\n"
	"_wpctl_target() {\n"
	"	local word mounts\n"
	"	mounts=$(_wpctl_mounts)\n"
	"	for word in \"${COMP_WORDS[@]:2}\"; do\n"
	"		[[ $word && $'\\n'$mounts$'\\n' == *$'\\n'${word%/}$'\\n'* || -e "
	"$word/wpfs.db ]] ||\n"
	"			continue\n"
	"		printf '%s\\n' \"${word%/}\"\n"
	"		return\n"
	"	done\n"
	"	printf '%s\\n' \"${mounts%%$'\\n'*}\"\n"
	"}\n"
	"\n"
	"_wpctl_names() {\n"
	"	wpctl ps --json \"$(_wpctl_target)\" 2>/dev/null | grep -o '\"name\":\"[^\"]*\"' "
	"|\n"
	"		cut -d'\"' -f4\n"
	"}\n"
	"\n"
	"# What begins as the word does; one a line.\n"
	"_wpctl_reply() {\n"
	"	local line\n"
	"	while IFS= read -r line; do\n"
	"		[[ $line == \"$cur\"* ]] && COMPREPLY+=(\"$line\")\n"
	"	done\n"
	"}\n"
	"\n"
	"# Paths inside the mount.\n"
	"_wpctl_files() {\n"
	"	local target\n"
	"	target=$(_wpctl_target)\n"
	"	compopt -o filenames 2>/dev/null\n"
	"	_wpctl_reply < <(compgen -f -- \"$target$cur\" | cut -c$((${#target} + 1))-)\n"
	"}\n"
	"\n"
	"_wpctl() {\n"
	"	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} "
	"options= operands=\n"
	"	COMPREPLY=()\n"
	"	local commands='";

static const char bash_middle[] =
	"'\n"
	"	if ((COMP_CWORD == 1)); then\n"
	"		_wpctl_reply <<<\"$commands\"$'help\\nversion\\n--help\\n--version'\n"
	"		return\n"
	"	fi\n"
	"	case ${COMP_WORDS[1]} in\n"
	"	help)\n"
	"		((COMP_CWORD > 2)) || _wpctl_reply <<<\"$commands\"\n"
	"		return\n"
	"		;;\n"
	"	version) return ;;\n";

static const char bash_tail[] =
	"	esac\n"
	"	case $prev in\n"
	"	--name)\n"
	"		_wpctl_reply < <(_wpctl_names)\n"
	"		return\n"
	"		;;\n"
	"	--file)\n"
	"		_wpctl_files\n"
	"		return\n"
	"		;;\n"
	"	--range | --epoch | --since | --interval) return ;;\n"
	"	esac\n"
	"	compopt -o filenames 2>/dev/null\n"
	"	case $cur in\n"
	"	-*)\n"
	"		compopt +o filenames 2>/dev/null\n"
	"		_wpctl_reply <<<\"${options// /$'\\n'}\"\n"
	"		;;\n"
	"	*)\n"
	"		if [[ $operands == shell ]]; then\n"
	"			_wpctl_reply <<<$'bash\\nzsh\\nfish'\n"
	"		elif [[ $operands == path && $'\\n'$(_wpctl_mounts)$'\\n' == "
	"*$'\\n'${prev%/}$'\\n'* ]]; then\n"
	"			_wpctl_files\n"
	"		else\n"
	"			_wpctl_reply < <(_wpctl_mounts; compgen -f -- \"$cur\")\n"
	"		fi\n"
	"		;;\n"
	"	esac\n"
	"}\n"
	"complete -F _wpctl wpctl\n";

/* What a help line says of its option, without the option. */
static const char *option_text(const struct ctl_option *option)
{
	const char *text = strstr(option->help, "  ");

	return text ? text + strspn(text, " ") : option->help;
}

/* Inside '...' of a shell. */
static void put_quoted(FILE *f, const char *text)
{
	for (; *text; text++) {
		if (*text == '\'')
			fputs("'\\''", f);
		else
			putc(*text, f);
	}
}

static bool has_option(const struct ctl_command *c, const struct ctl_option *option)
{
	return !option->option || (option->option & c->options);
}

static void put_bash(FILE *f)
{
	fputs(bash_head, f);
	for (const struct ctl_command *c = ctl_commands; c->name; c++)
		fprintf(f, "%s\n", c->name);
	fputs(bash_middle, f);
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		fprintf(f, "	%s) options='", c->name);
		for (const struct ctl_option *o = ctl_options; o->help; o++) {
			if (has_option(c, o))
				fprintf(f, "--%s ", o->getopt.name);
		}
		fprintf(f, "'%s ;;\n",
			c->operands == CTL_SHELL      ? " operands=shell"
			: c->operands == CTL_MNT_PATH ? " operands=path"
						      : "");
	}
	fputs(bash_tail, f);
}

/* ---- zsh ---- */

static const char zsh_head[] =
	"#compdef wpctl\n"
	"# Completion of wpctl(1) for zsh, made by `wpctl completion zsh`.\n"
	"_wpctl_mounts() {\n"
	"	local -a mounts\n"
	"	mounts=(${(f)\"$(awk '$3 == \"fuse.wpfs\" {print $2}' /proc/self/mounts)\"})\n"
	"	mounts=(${(g::)mounts})\n"
	"	compadd -f -a mounts\n"
	"	_files\n"
	"}\n"
	"\n"
	"# Paths inside the mount that the line names, or the first one.\n"
	"_wpctl_paths() {\n"
	"	local word target\n"
	"	local -a mounts found\n"
	"	mounts=(${(f)\"$(awk '$3 == \"fuse.wpfs\" {print $2}' /proc/self/mounts)\"})\n"
	"	mounts=(${(g::)mounts})\n"
	"	target=$mounts[1]\n"
	"	for word in ${(Q)words[3,-1]}; do\n"
	"		((${mounts[(Ie)${word%/}]})) || continue\n"
	"		target=${word%/}\n"
	"		break\n"
	"	done\n"
	"	[[ -n $target ]] || return\n"
	"	found=($target${(Q)PREFIX}*(NM))\n"
	"	found=(${found#$target})\n"
	"	compadd -S '' -a found\n"
	"}\n"
	"\n"
	"_wpctl_names() {\n"
	"	local word\n"
	"	local -a names\n"
	"	for word in ${(Q)words[3,-1]} "
	"${(f)\"$(awk '$3 == \"fuse.wpfs\" {print $2}' /proc/self/mounts)\"}; do\n"
	"		[[ -d $word ]] || continue\n"
	"		names=(${(f)\"$(wpctl ps --json $word 2>/dev/null |\n"
	"			grep -o '\"name\":\"[^\"]*\"' | cut -d'\"' -f4)\"})\n"
	"		((#names)) || continue\n"
	"		compadd -a names\n"
	"		return\n"
	"	done\n"
	"}\n"
	"\n"
	"_wpctl() {\n"
	"	local -a commands\n"
	"	commands=(\n";

static const char *zsh_action(int letter)
{
	switch (letter) {
	case 'n':
		return ":name:_wpctl_names";
	case 'f':
		return ":path:_wpctl_paths";
	case 'o':
		return ":file:_files";
	default:
		return ":value: ";
	}
}

static void put_zsh(FILE *f)
{
	fputs(zsh_head, f);
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		fprintf(f, "		'%s:", c->name);
		put_quoted(f, c->summary);
		fputs("'\n", f);
	}
	fputs("	)\n	if ((CURRENT == 2)); then\n		_describe command commands\n"
	      "		compadd -- help version --help --version\n"
	      "		return\n	fi\n	case $words[2] in\n"
	      "	help) ((CURRENT > 3)) || _describe command commands ;;\n",
	      f);
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		fprintf(f, "	%s)\n		_arguments", c->name);
		for (const struct ctl_option *o = ctl_options; o->help; o++) {
			if (!has_option(c, o))
				continue;
			fprintf(f, " \\\n			'--%s[", o->getopt.name);
			put_quoted(f, option_text(o));
			fprintf(f, "]%s'", o->getopt.has_arg ? zsh_action(o->getopt.val) : "");
		}
		fprintf(f, " \\\n			%s\n		;;\n",
			c->operands == CTL_SHELL ? "'2:shell:(bash zsh fish)'"
			: c->operands == CTL_MNT_PATH
				? "'2:mount:_wpctl_mounts' '3:path:_wpctl_paths'"
				: "'*:mount:_wpctl_mounts'");
	}
	fputs("	esac\n}\n_wpctl \"$@\"\n", f);
}

/* ---- fish ---- */

static const char fish_head[] =
	"# Completion of wpctl(1) for fish, made by `wpctl completion fish`.\n"
	"function __wpctl_mounts\n"
	"	awk '$3 == \"fuse.wpfs\" {print $2}' /proc/self/mounts | while read -l mnt\n"
	"		printf '%b\\n' $mnt\n"
	"	end\n"
	"end\n"
	"\n"
	"function __wpctl_names\n"
	"	for word in (commandline -opc)[3..-1] (__wpctl_mounts)\n"
	"		test -d $word; or continue\n"
	"		set -l names (wpctl ps --json $word 2>/dev/null |\n"
	"			string match -ra '\"name\":\"[^\"]*\"' | cut -d'\"' -f4)\n"
	"		test -n \"$names\"; or continue\n"
	"		printf '%s\\n' $names\n"
	"		return\n"
	"	end\n"
	"end\n"
	"\n"
	"# The mount that the line names; with any, the first there is if it names none.\n"
	"function __wpctl_target\n"
	"	set -l mounts (__wpctl_mounts)\n"
	"	for word in (commandline -opc)[3..-1]\n"
	"		set word (string trim -r -c / -- $word)\n"
	"		contains -- \"$word\" $mounts; and echo $word; and return\n"
	"	end\n"
	"	set -q argv[1]; and set -q mounts[1]; and echo $mounts[1]\n"
	"end\n"
	"\n"
	"function __wpctl_paths\n"
	"	set -l root (__wpctl_target any); or return\n"
	"	for path in $root(commandline -ct)*\n"
	"		test -d $path; and set path $path/\n"
	"		string replace -- $root '' $path\n"
	"	end\n"
	"end\n"
	"\n"
	"function __wpctl_helps\n"
	"	test (commandline -opc | string join ' ') = 'wpctl help'\n"
	"end\n"
	"\n"
	"complete -c wpctl -f\n"
	"complete -c wpctl -n __fish_use_subcommand -l help -d 'what there is'\n"
	"complete -c wpctl -n __fish_use_subcommand -l version -d 'which version'\n"
	"complete -c wpctl -n __fish_use_subcommand -f -a help -d 'what there is'\n"
	"complete -c wpctl -n __fish_use_subcommand -f -a version -d 'which version'\n";

static void put_fish_operands(FILE *f, const struct ctl_command *c)
{
	static const char when[] = "complete -c wpctl -n '__fish_seen_subcommand_from";

	if (c->operands == CTL_SHELL) {
		fprintf(f, "%s %s' -f -a 'bash zsh fish'\n", when, c->name);
	} else if (c->operands == CTL_MNT_PATH) {
		fprintf(f, "%s %s; and not __wpctl_target' -f -a '(__wpctl_mounts)'\n", when,
			c->name);
		fprintf(f, "%s %s; and __wpctl_target' -f -a '(__wpctl_paths)'\n", when, c->name);
	} else {
		fprintf(f, "%s %s' -F -a '(__wpctl_mounts)'\n", when, c->name);
	}
}

static void put_fish(FILE *f)
{
	fputs(fish_head, f);
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		fprintf(f, "complete -c wpctl -n __fish_use_subcommand -f -a %s -d '", c->name);
		put_quoted(f, c->summary);
		fprintf(f, "'\ncomplete -c wpctl -n __wpctl_helps -f -a %s -d '", c->name);
		put_quoted(f, c->summary);
		fputs("'\n", f);
		put_fish_operands(f, c);
		for (const struct ctl_option *o = ctl_options; o->help; o++) {
			if (!has_option(c, o))
				continue;
			fprintf(f, "complete -c wpctl -n '__fish_seen_subcommand_from %s' -l %s",
				c->name, o->getopt.name);
			if (o->getopt.val == 'n')
				fputs(" -x -a '(__wpctl_names)'", f);
			else if (o->getopt.val == 'f')
				fputs(" -x -a '(__wpctl_paths)'", f);
			else if (o->getopt.has_arg)
				fputs(o->getopt.val == 'o' ? " -r" : " -x", f);
			fputs(" -d '", f);
			put_quoted(f, option_text(o));
			fputs("'\n", f);
		}
	}
}

int cmd_completion(const struct ctl_args *args)
{
	static const struct {
		const char *name;
		void (*put)(FILE *f);
	} shells[] = {{"bash", put_bash}, {"zsh", put_zsh}, {"fish", put_fish}};
	_cleanup_free_ char *script = NULL;
	struct json json;
	size_t len, i = 0;
	FILE *f;

	while (i < 3 && strcmp(args->target, shells[i].name) != 0)
		i++;
	if (i == 3) {
		ctl_say("completion: %s: no such shell: bash, zsh or fish", args->target);
		return CTL_USAGE;
	}
	if (!args->json) {
		shells[i].put(stdout);
		return ctl_finish();
	}
	f = open_memstream(&script, &len);
	if (f)
		shells[i].put(f);
	if (!f || fclose(f)) {
		ctl_say("completion: %s", log_errstr(ENOMEM));
		return CTL_FAILED;
	}
	json_init(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "shell", args->target);
	json_string(&json, "script", script);
	json_end(&json);
	return ctl_finish();
}
