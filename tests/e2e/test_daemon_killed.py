# SPDX-License-Identifier: LGPL-2.1-or-later
"""
kill -9 of the daemon while tracked programs run: they never wait for it, and the next daemon on the
same store finds the tree, the data, the programs and their marks.
"""

import os
import time

import pytest

import harness
import report
from harness import PAGE
from mapper import ALL, PAGES, Child, mapped

PROMPT = 5  # seconds; anything that waited for a daemon would take longer than this


@pytest.fixture(params=["store", "none"])
def wpfs(request, make_wpfs):
    return make_wpfs(store=request.param)


def test_a_program_writes_forks_and_mremaps_without_a_daemon(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    start = time.monotonic()
    program.order("store 0 2 1")
    program.order("move 0")
    program.order("store 0 3 1")
    child = Child(wpfs, program)
    child.order("store 0 9 1")
    child.order("move 0")
    child.order("store 0 10 1")
    child.end()
    program.order("store 0 4 1")
    assert program.order("load 0 9") == 1, "it does not share the file with its child"
    assert time.monotonic() - start < PROMPT
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2, 3, 4}
    assert report.marked(wpfs, "t") == ALL - {1, 2, 3, 4}
    program.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {1, 2, 3, 4, 5}
    program.kill9()
    assert report.dirty(wpfs, "t") == {1, 2, 3, 4, 5}


def test_the_shim_finds_the_new_daemon(wpfs):
    """Its next need connects again: what it unmaps and maps after the restart is exact."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    wpfs.restart()
    program.order("store 0 2 1")
    program.order("unmap 0 8 8")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {4 * PAGE}")
    program.order(f"map 1 1 0 {4 * PAGE}")
    program.order("store 1 3 1")
    assert report.dirty(wpfs, "t") == {1, 2}
    assert report.dirty(wpfs, "t", "/g") == {3}
    assert program.stderr() == ""
    program.order("unmap 0 16 8")
    program.kill9()
    assert report.dirty(wpfs, "t") == {1, 2}
    assert report.dirty(wpfs, "t", "/g") == {3}


def test_what_needs_the_daemon_says_so_while_it_is_away(wpfs):
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 0 1 1")
    program.order("store 1 2 1")
    wpfs.kill9()
    start = time.monotonic()
    assert program.ask("msync 0") == "err EIO", "durable, without a daemon"
    assert program.ask("msync 0") == "err EIO"
    program.order("unmap 1")
    assert time.monotonic() - start < PROMPT
    lines = program.stderr().splitlines()
    assert len(lines) == 1 and "its daemon is not running" in lines[0]
    wpfs.restart()
    program.order("msync 0")
    assert report.dirty(wpfs, "t") == {1}
    assert 2 in report.dirty(wpfs, "t", "/g"), "what was unmapped unseen is in doubt, so dirty"


def test_it_is_killed_while_the_daemon_is_away(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.kill9()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2}
    assert report.names(wpfs)["t"] == "detached"


def test_it_execs_while_the_daemon_is_away(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.send("exec /bin/sleep 1000")
    while os.readlink(f"/proc/{program.pid}/exe") != os.path.realpath("/bin/sleep"):
        time.sleep(0.01)
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2}
    assert report.names(wpfs)["t"] == "detached"


def test_the_daemon_is_killed_again_and_again(wpfs):
    program = mapped(wpfs)
    written = set()
    for page in range(0, PAGES, 8):
        program.order(f"store 0 {page} 1")
        written.add(page)
        wpfs.kill9()
        program.order(f"store 0 {page + 1} 1")
        written.add(page + 1)
        if page % 16:
            program.order("move 0")
        wpfs.restart()
        assert report.dirty(wpfs, "t") == written
    program.send("exit 0")
    program.wait()
    assert report.dirty(wpfs, "t") == written
    assert harness.proc.children(program.pid) == []
