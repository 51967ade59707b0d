# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The commands and outputs that the documents show, run as they stand and compared.

A document is one story: its blocks are run in order by one shell, in an empty directory, with
mount, pid and run directories of its own, /mnt/w made for it, and the built commands in PATH.

In Markdown a block is fenced, and its language says what becomes of it:

    console        lines after "$ " (and "> ") are typed, what stands below is what they print
    sh             is typed; what it prints is not shown; nothing of it may fail
    LANG FILE      is put into FILE
    anything else  needs one of the tags below

In mdoc(7) a block is `.Bd -literal`, or a line `.Dl`: console if a line of it begins with "$ ", else sh.

A comment (`<!-- ... -->`, or `.\\" ...`) on the line before a block tags it:

    no-run: REASON          not run
    tested: FILE::TEST      that test runs it

and one of its own, `unseen: COMMAND`, is typed and not shown.

In an output "..." stands for anything. Addresses, pids, ids and times differ from run to run and are
compared by form only (`normal`).
"""

import dataclasses
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
SECONDS = 240  # for one document

FENCE = re.compile(r"^```(.*)$")
TAG = re.compile(r"(no-run|tested|unseen): *(.*)$")
MARK = "\x1e"


@dataclasses.dataclass
class Block:
    line: int  # of the document, from 1: where its text begins
    language: str
    text: str
    tag: tuple = ("", "")

    def commands(self):
        """(command, output that is shown or None) of a block that is typed."""
        if self.language != "console":
            return [(self.text, None)]
        found = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append([line[2:], []])
            elif line.startswith("> ") and found and not found[-1][1]:
                found[-1][0] += "\n" + line[2:]
            else:
                assert found, f"line {self.line}: output of no command"
                found[-1][1].append(line)
        return [(command, "\n".join(output)) for command, output in found]


def tag_of(line):
    """The tag in a comment, or none."""
    comment = re.match(r'^(?:<!-- *(.*?) *-->|\.\\" *(.*))$', line)
    found = TAG.match(comment.group(1) or comment.group(2) or "") if comment else None
    return found.groups() if found else ("", "")


def tagged(blocks, line, at):
    """The tag that this line gives to the next block; one that is a block itself is appended."""
    kind, value = tag_of(line)
    if kind != "unseen":
        return kind, value
    blocks.append(Block(at + 1, "sh", value))
    return "", ""


def markdown(text):
    """The blocks of a Markdown document."""
    blocks, tag, at = [], ("", ""), 0
    lines = text.splitlines()
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence:
            end = lines.index("```", at + 1)
            blocks.append(Block(at + 2, fence.group(1).strip(), "\n".join(lines[at + 1:end]), tag))
            at = end
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            blocks.append(Block(at + 1, "indented", lines[at], tag))
        if lines[at].strip():
            tag = tagged(blocks, lines[at], at)
        at += 1
    return blocks


def mdoc(text):
    """The literal blocks of a manual page."""
    blocks, tag, at = [], ("", ""), 0
    lines = text.splitlines()
    while at < len(lines):
        if lines[at].startswith(".Bd -literal"):
            end = lines.index(".Ed", at + 1)
            shown = "\n".join(lines[at + 1:end]).replace("\\e", "\\").replace("\\&", "")
            blocks.append(Block(at + 2, "console" if re.search(r"^\$ ", shown, re.M) else "sh",
                                shown, tag))
            at = end
        elif lines[at].startswith(".Dl "):
            blocks.append(Block(at + 1, "sh", lines[at][4:], tag))
        tag = tagged(blocks, lines[at], at)
        at += 1
    return blocks


def blocks_of(path):
    text = path.read_text()
    return markdown(text) if path.suffix == ".md" else mdoc(text)


def faults(path):
    """What is wrong with the blocks of a document before anything is run: lines."""
    found = []
    for block in blocks_of(path):
        kind, value = block.tag
        where = f"{path.name}:{block.line}"
        if kind == "no-run":
            if len(value.split()) < 2:
                found.append(f"{where}: no-run without a reason")
        elif kind == "tested":
            file, _, name = value.partition("::")
            test = SOURCE / file
            if not name or not test.exists() or \
                    not re.search(rf"^def {re.escape(name)}\(", test.read_text(), re.M):
                found.append(f"{where}: there is no test {value}")
        elif block.language not in ("console", "sh") and len(block.language.split()) != 2:
            found.append(f"{where}: neither run nor tagged ({block.language or 'no language'})")
    return found


def is_story(path):
    """Is anything of this document run?"""
    return any(block.language in ("console", "sh") and not block.tag[0] for block in blocks_of(path))


def normal(text):
    """An output without what is never the same twice."""
    lines, column = [], None
    for line in text.rstrip().splitlines():
        line = re.sub(r"0x[0-9a-f]{5,}", "0x~", line)
        line = re.sub(r"\bpid \d+", "pid ~", line)
        line = re.sub(r'"pid":\d+', '"pid":~', line)
        line = re.sub(r"\b[0-9a-f]{32}\b", "ID", line)
        line = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(, \d+ s ago)?", "DATE", line)
        line = re.sub(r"^([\w.-]+)/\d+ ", r"\1/~ ", line)  # a fork child
        words = line.split()
        if "PID" in words:
            column = words.index("PID")
        elif not words:
            column = None
        elif column is not None and column < len(words) and words[column].isdigit():
            words[column] = "~"
        lines.append(" ".join(words))
    return lines


def same(shown, printed):
    """Is this what the document shows?"""
    pattern = re.escape("\n".join(normal(shown))).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, "\n".join(normal(printed)), re.S) is not None


def story(blocks, stage):
    """A shell script that types the blocks and says what each command printed."""
    script = [f". {shlex.quote(str(stage))}", "cd \"$STORY\""]
    for number, block in enumerate(blocks):
        if block.tag[0]:
            continue
        if block.language not in ("console", "sh"):
            name = block.language.split()[1]
            script.append(f"printf '%s\\n' {shlex.quote(block.text)} > {shlex.quote(name)}")
            continue
        for order, (command, _) in enumerate(block.commands()):
            script += [f"printf '{MARK}{number} {order}\\n'",
                       f"eval {shlex.quote(command)}" if block.language == "console" else
                       f"set -e; {{ {command}\n}}; set +e"]
    return "\n".join([*script, f"printf '{MARK}end\\n'", "leave", ""])


def run(path, stage, env):
    """
    Runs a document. Gives [(block, command, shown, printed)] of all commands that ran, where shown is
    None if nothing is, and whether it ran to its end.
    """
    blocks = blocks_of(path)
    with tempfile.TemporaryDirectory(prefix="wpfs-docs-") as scratch:
        directory = Path(scratch) / "story"
        directory.mkdir()
        script = Path(scratch) / "script"
        script.write_text(story(blocks, stage))
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child",
             "--mount-proc", "bash", script], env={**env, "STORY": str(directory)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=SECONDS, check=False)
    before, *parts = done.stdout.decode(errors="replace").split(MARK)
    ran = []
    for part in parts:
        head, _, printed = part.partition("\n")
        if head == "end":
            return ran, done.returncode == 0 and not printed.strip(), printed
        number, order = map(int, head.split())
        command, shown = blocks[number].commands()[order]
        ran.append((blocks[number], command, shown, printed))
    return ran, False, ran[-1][3] if ran else before


def environment(build, scratch):
    """The environment of a story: the built commands, and where sanitizers write."""
    env = {key: value for key, value in os.environ.items()
           if not key.startswith(("WPFS_", "LD_PRELOAD"))}
    env["BUILD"], env["SOURCE"] = str(build), str(SOURCE)
    env["PATH"] = f"{build}/src/wpfs:{build}/src/ctl:{build}/tests:{env['PATH']}"
    env["PKG_CONFIG_PATH"] = f"{build}/meson-uninstalled"
    env["LC_ALL"] = "C.UTF-8"
    env["ASAN_OPTIONS"] = f"log_path={scratch}/san:detect_stack_use_after_return=0"
    env["UBSAN_OPTIONS"] = f"log_path={scratch}/san:print_stacktrace=1:halt_on_error=1"
    env["LSAN_OPTIONS"] = f"suppressions={SOURCE}/tests/e2e/lsan.supp:print_suppressions=0"
    return env


def rewritten(path, ran):
    """The text of a document with what its commands printed in the place of what it shows."""
    lines = path.read_text().splitlines()
    for block in sorted({id(one[0]): one[0] for one in ran}.values(), key=lambda b: -b.line):
        if block.language != "console":
            continue
        new = []
        for _, command, shown, printed in (one for one in ran if one[0] is block):
            first, *more = command.split("\n")
            new += [f"$ {first}", *(f"> {line}" for line in more)]
            new += (shown if same(shown, printed) else printed.rstrip()).splitlines()
        lines[block.line - 1:block.line - 1 + len(block.text.splitlines())] = new
    return "\n".join(lines) + "\n"
