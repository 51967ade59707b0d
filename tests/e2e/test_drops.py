# SPDX-License-Identifier: LGPL-2.1-or-later
"""Contents that go while their marks stay: who asks afterwards is told, whatever came in between."""

import os
import subprocess

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, mapped


def start_killed_after(make_wpfs):
    """A daemon that is killed right after it has dropped contents, once the file it gives is there."""
    wpfs = make_wpfs("none", start=False)
    trigger = wpfs.dir / "kill"
    wpfs.daemon_env["LD_PRELOAD"] = str(harness.BUILD / "tests/killafter.so")
    wpfs.daemon_env["KILLAFTER"] = str(trigger)
    wpfs.start()
    return wpfs, trigger


def punch(path):
    subprocess.run(["fallocate", "-p", "-o", str(3 * PAGE), "-l", str(2 * PAGE), path], check=False,
                   stderr=subprocess.DEVNULL, timeout=harness.SECONDS)


def truncate(path):
    try:
        os.truncate(path, 60 * PAGE)
    except OSError:
        pass


def truncate_by_descriptor(path):
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, 60 * PAGE)
    except OSError:
        pass
    os.close(fd)


def truncate_by_open(path):
    try:
        os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
    except OSError:
        pass


@pytest.mark.parametrize("drop, pages", [
    (punch, {3, 4}),
    (truncate, set(range(60, PAGES))),
    (truncate_by_descriptor, set(range(60, PAGES))),
    (truncate_by_open, ALL),
])
def test_daemon_killed_in_the_midst(make_wpfs, drop, pages):
    """Its contents have gone, and nobody has been answered."""
    wpfs, trigger = start_killed_after(make_wpfs)
    program = mapped(wpfs)
    for page in ALL:
        program.order(f"store 0 {page} 1")
    wpfs.wpctl("protect", wpfs.mnt)
    program.order("store 0 9 2")
    trigger.touch()
    drop(wpfs.mnt / "f")
    assert wpfs._reaped() == -9
    trigger.unlink()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == pages | {9}


@pytest.mark.parametrize("drop", [punch, truncate])
def test_what_fails(wpfs, drop):
    """Nothing went: who has no rights, and what tmpfs does not know."""
    program = mapped(wpfs)
    program.order("store 0 9 2")
    for what in (["-z"], ["-c"], ["-i"]):
        done = wpfs.command("fallocate", *what, "-o", 0, "-l", PAGE, wpfs.mnt / "f")
        assert done.returncode
    assert report.dirty(wpfs, "t") == {9}
    drop(wpfs.mnt / "f")
    assert len(report.dirty(wpfs, "t")) > 1


@pytest.mark.parametrize("restart", [False, True])
def test_protect_between_the_question_and_madv_remove(wpfs, restart):
    """The epoch that begins then is the one in which the contents go."""
    program = mapped(wpfs)
    for page in ALL:
        program.order(f"store 0 {page} 1")
    wpfs.wpctl("protect", wpfs.mnt)
    # It asks, and is held at the call itself.
    strace = proc.Strace(program.pid, "trace=madvise", "inject=madvise:delay_enter=200s")
    try:
        program.send("advise 0 3 2 remove")
        proc.wait_for(lambda: report.dirty(wpfs, "t") == {3, 4}, harness.SECONDS, "the question")
        if restart:
            wpfs.kill9()
            wpfs.restart()
        wpfs.wpctl("protect", wpfs.mnt)
        assert proc.is_traced(program.pid)
    finally:
        strace.end()
    assert program.read() == "ok 0"
    assert [program.order(f"load 0 {page}") for page in (2, 3, 4, 5)] == [1, 0, 0, 1]
    assert report.dirty(wpfs, "t") == {3, 4}
    wpfs.wpctl("protect", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set(), "that is over"
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == {3}


def test_protect_as_contents_go_that_nobody_could_be_told_of(make_wpfs):
    """The next daemon has read that something was to go; what goes later is later's."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    program.order("store 0 0 5 64")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    # MADV_COLD, which tells what is locked; the call itself; then pages are brought back, by the
    # next daemon; then they are taken out.
    strace = proc.Strace(program.pid, "trace=madvise", "inject=madvise:delay_enter=200s:when=4")
    try:
        wpfs.kill9()
        program.send("advise 0 8 8 remove")
        wpfs.restart()
        assert set(range(8, 16)) <= report.dirty(wpfs, "t")
        wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
        assert proc.is_traced(program.pid)
    finally:
        strace.end()
    assert program.read() == "ok 0"
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 0, 0, 5]
    assert set(range(8, 16)) <= report.dirty(wpfs, "t")
