# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documents name is there."""

import re
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
            if line.startswith("| ") and not line.startswith(("| kernel |", "| event |", "| rule |"))]
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
