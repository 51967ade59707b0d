# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documents show: commands are run as they stand, and print what is shown."""

import difflib
import re
import sys

import pytest

import harness
from harness import BUILD, SOURCE

sys.path.insert(0, str(SOURCE / "tools/docs.d"))
import shown  # noqa: E402

DOCUMENTS = sorted([*SOURCE.glob("*.md"), *SOURCE.glob("docs/*.md"), *SOURCE.glob("man/*.[0-9]")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)[^)]*\)")


def ids(path):
    return path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_every_block_is_run_or_says_why_not(path):
    assert not shown.faults(path)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if shown.is_story(path)], ids=ids)
@pytest.mark.timeout(shown.SECONDS + 60)
def test_story(path, tmp_path):
    ran, whole, last = shown.run(path, SOURCE / "tools/docs.d/stage.sh",
                                 shown.environment(BUILD, tmp_path))
    wrong = []
    for block, command, expected, printed in ran:
        if expected is not None and not shown.same(expected, printed):
            wrong += [f"{path.name}:{block.line}: $ {command}",
                      *difflib.ndiff(shown.normal(expected), shown.normal(printed))]
    assert not wrong, "\n".join(wrong)
    assert whole, f"it ended early, or something was left:\n{last}"
    for report in tmp_path.glob("san.*"):
        assert not harness.SANITIZER.search(report.read_text()), report.read_text()


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.suffix == ".md"], ids=ids)
def test_links(path):
    for target in LINK.findall(path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_what_differs_is_seen():
    """The comparison itself: only what differs from run to run may."""
    assert shown.same("at 0x7f0123456000, pid 12", "at 0x7fffff000000,  pid 999\n")
    assert shown.same("PID  UID\n12   0", "PID UID\n7   0")
    assert shown.same("db/12  -  0", "db/13  -  0") and not shown.same("db/12  - 0", "de/12  - 0")
    assert not shown.same("PID  UID\n12   0", "PID UID\n7   1")
    assert not shown.same("1 page", "2 pages")
    assert not shown.same("", "a line")
    assert not shown.same("a line", "")
    assert shown.same("a\n...\nb", "a\nsomething\nelse\nb")
    assert not shown.same("a\n...\nb", "a\nsomething\nelse\nc")


def test_blocks(tmp_path):
    document = tmp_path / "x.md"
    document.write_text("text\n\n<!-- no-run: for a reason -->\n```sh\nfalse\n```\n\n"
                        "<!-- unseen: true -->\n```console\n$ a \\\n> b\nc\n$ d\n```\n\n"
                        "    indented\n")
    first, second, third, fourth = shown.blocks_of(document)
    assert first.tag == ("no-run", "for a reason") and first.line == 5
    assert second.text == "true" and not second.tag[0]
    assert third.commands() == [("a \\\nb", "c"), ("d", "")]
    assert fourth.language == "indented"
