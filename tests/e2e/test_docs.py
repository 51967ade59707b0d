# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documents name is there."""

import re
import shlex
import subprocess

import pytest

import harness

CORRESPONDENCE = harness.SOURCE / "docs/CORRESPONDENCE.md"
NAMED = re.compile(r"`((?:src|tests|schema)/[\w./]+\.(?:c|h|py|sql))(?::(\w+))?`")


def named():
    return sorted({(path, name) for path, name in NAMED.findall(CORRESPONDENCE.read_text())})


def test_the_table_has_rows():
    assert len(named()) > 40


@pytest.mark.parametrize("path,name", named())
def test_correspondence(path, name):
    text = (harness.SOURCE / path).read_text()
    if path.endswith("_test.c") and name:
        assert re.search(rf"^static void {name}\(", text, re.M), f"no test {name} in {path}"
        assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} in {path} is not run"
    elif name:
        assert re.search(rf"\b(?:def |struct )?{name}\b[^;]*[({{]", text), f"no {name} in {path}"


def test_every_row_has_a_test():
    rows = [line for line in CORRESPONDENCE.read_text().splitlines()
            if line.startswith("| ") and not line.startswith(("| kernel |", "| event |", "| rule |", "| race |"))]
    assert rows
    for row in rows:
        assert "tests/" in row.split("|")[-2], f"no test named: {row}"


@pytest.mark.parametrize("page", sorted((harness.SOURCE / "man").glob("*.[0-9]")), ids=lambda p: p.name)
def test_man_page(page):
    """mandoc has nothing to say against it, and meson installs it."""
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True,
                          text=True, timeout=harness.SECONDS, check=False)
    assert lint.returncode == 0 and not lint.stdout, lint.stdout
    assert f"'{page.name}'" in (harness.SOURCE / "man/meson.build").read_text()


def test_every_function_has_a_page():
    header = (harness.SOURCE / "include/wpfs.h").read_text()
    declared = re.findall(r"^(?:int|void|const char \*)\s?\*?(wpfs_\w+)\(", header, re.M)
    assert len(declared) > 12
    pages = "".join(page.read_text() for page in (harness.SOURCE / "man").glob("wpfs_*.3"))
    for name in declared:
        assert re.search(rf"^\.Nm {name}\b", pages, re.M), f"no page for {name}"
        meson = (harness.SOURCE / "man/meson.build").read_text()
        assert f"'{name}'" in meson or f"'{name}.3'" in meson, f"{name}(3) is not installed"


def test_pages_that_are_referred_to():
    man = harness.SOURCE / "man"
    meson = (man / "meson.build").read_text()
    for page in man.glob("*.[0-9]"):
        for name, section in re.findall(r"^\.Xr ((?:lib)?wp\w+) (\d)", page.read_text(), re.M):
            assert (man / f"{name}.{section}").exists() or (section == "3" and f"'{name}'" in meson), \
                f"{page.name} refers to {name}({section}), which is not there"


# -- what wpctl(1) and wpctl know of each other

WPCTL_1 = (harness.SOURCE / "man/wpctl.1").read_text()


def section(page, title):
    """The lines of a section of a manual page."""
    return re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh )", page, re.M | re.S)[1]


def long_options(mdoc):
    return set(re.findall(r"\bFl -(\w+)", mdoc))


def help_of(command, *args):
    done = subprocess.run([command, *args], capture_output=True, text=True, timeout=harness.SECONDS, check=True)
    return done.stdout


def helped_options(text):
    """The options that a --help lists."""
    return set(re.findall(r"^  (?:-\w, )?--(\w+)", text, re.M))


def wpctl_commands():
    return re.findall(r"^  (\w+) ", help_of(harness.WPCTL, "--help"), re.M)


def test_options_of_wpctl():
    """Each command has the same options in its --help, in its synopsis there and in the manual's."""
    synopsis = {}
    for form in re.split(r"^\.Nm\n", section(WPCTL_1, "SYNOPSIS"), flags=re.M)[1:]:
        synopsis[re.match(r"\.Cm (\w+)", form)[1]] = long_options(form) | \
            ({"output"} if ".Op Fl o " in form else set())
    commands = wpctl_commands()
    assert list(synopsis) == [*commands, "help", "version"]
    told = long_options(section(WPCTL_1, "OPTIONS"))
    seen = set()
    for command in commands:
        text = help_of(harness.WPCTL, command, "--help")
        options = helped_options(text)
        assert synopsis[command] == options - {"help"}, command
        short = set(re.findall(r"--(\w+)", text.splitlines()[0])) | ({"output"} if "[-o " in text else set())
        assert short == options - {"help", "json"}, text.splitlines()[0]
        seen |= options
    assert told == seen | {"version"}


def source_of(*rooms):
    return "".join(path.read_text() for room in rooms for path in sorted((harness.SOURCE / room).glob("*.c")))


def test_json_keys():
    """Every key that is written is in the manual, and none that is not."""
    written = set(re.findall(r'\bjson_\w+\([^,;"]*,\s*"(\w+)"', source_of("src/ctl"))) | \
        set(re.findall(r'\bjson_rate\(\s*json,\s*"(\w+)"', source_of("src/ctl")))
    assert len(written) > 60
    told = set()
    for line in re.findall(r"^\.(?:It )?Va (.*)$", section(WPCTL_1, "JSON"), re.M):
        told |= set(re.findall(r"\b[a-z]\w+\b", re.split(r" (?:Ns|No|Pq) ", line)[0]))
    assert written - told == set() and told - written == set()


def test_options_of_wpfs():
    """Those of its --help, of its source and of wpfs(8)."""
    page = (harness.SOURCE / "man/wpfs.8").read_text()
    text = help_of(harness.WPFS, "--help")
    taken = set(re.findall(r'\{"(\w+)", take_\w+\}', source_of("src/wpfs"))) | {"io_uring"}
    assert len(taken) > 10
    named = set(re.findall(r"\bCm (\w+)=", section(page, "OPTIONS"))) | \
        set(re.findall(r"^\.It Cm (\w+)$", section(page, "OPTIONS"), re.M))
    assert taken == named
    for option in taken:
        assert re.search(rf"\b{option}\b", text), f"{option} is not in wpfs --help"
    assert long_options(page) >= helped_options(text) - {"help", "version"}


# -- what Markdown names is there

MARKDOWN = sorted([*harness.SOURCE.glob("*.md"), *harness.SOURCE.glob("docs/*.md")])
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
TREE = subprocess.run(["git", "-C", harness.SOURCE, "ls-files", "--cached", "--others", "--exclude-standard"],
                      capture_output=True, text=True, timeout=harness.SECONDS, check=True).stdout.splitlines()
TOPS = {path.split("/")[0] for path in TREE}
MADE = re.compile(r"(build[\w-]*|\.cache)(/|$)|.*[<*{]|.*\bNAME\b|.*\bNNN")  # not in a fresh clone
KERNEL = re.compile(r"include/linux/|tools/testing/")  # paths of its tree


def words_of(text):
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def is_path(word):
    return word.removeprefix("./").split("/")[0] in TOPS and ("/" in word or "." in word)


def paths_of(path):
    """Paths of this tree that a document names: in text and in blocks."""
    text = path.read_text()
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S))
    for code in [*CODE.findall(text), *blocks.splitlines()]:
        for word in words_of(code.split(" # ")[0]):
            name = word.partition("::")[0].partition(":")[0].rstrip(",;.").removeprefix("./")
            if is_path(name) and not MADE.match(name) and not KERNEL.match(name):
                yield name


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.name)
def test_paths_in_markdown(path):
    for name in paths_of(path):
        assert (harness.SOURCE / name).exists(), f"{path.name} names {name}"


def test_every_picture_is_shown():
    images = {path.name for path in (harness.SOURCE / "docs/img").iterdir()}
    shown = set(re.findall(r"docs/img/([\w.-]+)", (harness.SOURCE / "README.md").read_text()))
    assert images == shown


def test_some_paths_are_found():
    assert {"src/db/check.h", "tools/check"} <= {name for path in MARKDOWN for name in paths_of(path)}


@pytest.mark.parametrize("path", [path for path in MARKDOWN if path != CORRESPONDENCE], ids=lambda p: p.name)
def test_identifiers_in_markdown(path):
    """`some_function` and `some_function()` occur in the source. (The table names the kernel's too.)"""
    everything = "".join((harness.SOURCE / name).read_text(errors="replace") for name in TREE
                         if name.endswith((".c", ".h", ".py", ".sql", ".build", ".in", ".map")) or
                         name.startswith(("tools/", "man/")))
    for code in CODE.findall(path.read_text()):
        if re.fullmatch(r"[a-z][a-z0-9]*_[a-z0-9_]+(\(\))?", code):
            assert re.search(rf"\b{code.removesuffix('()')}\b", everything), f"{path.name} names {code}"
