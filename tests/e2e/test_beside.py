# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Stores that come in beside what a program is known to map: no mark may say that there were none.
tests/progs/beside.c has the ways.
"""

import os
import select
import signal

import pytest

import harness
import report

PAGES = set(range(64))
STORED = {7}


def mapped(wpfs, *how, send=True):
    program = wpfs.spawn(harness.program("beside"), wpfs.mnt / "f", *how, name="t", protect=True)
    assert program.read() == "mapped"
    assert report.dirty(wpfs, "t") == set()
    if send:
        program.send("store")
    return program


# What is dirty then: exact where it can be.
WAYS = {
    "file_pages": STORED,
    "file_pages keep": STORED,
    "scan": PAGES,
    "vm": PAGES,
    "reopen": STORED,
    "grow": PAGES - {0},
    "failed": PAGES,
    "alone": STORED,
}


@pytest.mark.parametrize("how", WAYS)
def test_no_store_is_missed(wpfs, how):
    program = mapped(wpfs, *how.split(), *[wpfs.mnt / "f"] * (how == "failed"))
    assert program.read() == "stored"
    assert report.dirty(wpfs, "t") == WAYS[how]
    program.kill9()
    assert report.dirty(wpfs, "t") == WAYS[how]


def test_mappings_that_nobody_was_told_of(wpfs):
    """There is nothing to say of their pages; a report says why."""
    program = wpfs.spawn(harness.program("mapper"), name="t")
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order("size 0 65536")
    program.order("map 0 0 0 65536 raw")
    program.order("store 0 7 1")
    answer = wpfs.wpctl_json("dirty")
    assert answer["mms"] == []
    assert "maps files by raw system calls" in answer["notes"][0]


def test_who_is_alone_stays_tracked(wpfs):
    """A program whose first thread has ended is no dead one, and goes through epochs as any other."""
    program = mapped(wpfs, "alone")
    assert program.read() == "stored"
    for _ in range(2):
        wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
        assert report.names(wpfs) == {"t": "live"}
        assert report.dirty(wpfs, "t") == set()
    program.send("end")
    program.wait()
    assert report.dirty(wpfs, "t") == set()


def test_the_pages_of_a_file_in_another_order(wpfs):
    """The mapping that remap_file_pages(2) makes is armed as any other."""
    program = mapped(wpfs, "file_pages", "keep")
    assert program.read() == "stored"
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == set()
    assert report.marked(wpfs, "t") == PAGES
    program.send("end")
    program.wait()
    assert report.dirty(wpfs, "t") == set()


def test_a_store_before_the_daemon_knows(wpfs):
    """Another thread uses what mremap(2) grows to, at an address it knows, before it is armed."""
    program = mapped(wpfs, "grow", send=False)
    os.kill(wpfs.pid, signal.SIGSTOP)
    try:
        program.send("store")
        readable, _, _ = select.select([program.popen.stdout], [], [], 0.5)
        assert not readable, "the daemon was not asked"
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert program.read() == "stored"
    assert report.dirty(wpfs, "t") >= STORED


@pytest.mark.parametrize("end", ["kill9", "exit"])
def test_who_outlives_the_program_in_its_memory(wpfs, end):
    """wpfs reads the last marks when the program is gone; the other stores after that."""
    fifos = [wpfs.dir / "go", wpfs.dir / "done"]
    for fifo in fifos:
        os.mkfifo(fifo)
    program = mapped(wpfs, "survivor", *fifos)
    assert program.read() == "stored"
    if end == "kill9":
        program.kill9()
    else:
        program.send("end")
        program.wait()
    assert report.dirty(wpfs, "t") == PAGES
    open(fifos[0], "wb").close()
    open(fifos[1], "rb").close()
    with open(wpfs.mnt / "f", "rb") as file:
        assert os.pread(file.fileno(), 1, 7 * harness.PAGE) == b"\1", "it did not live to store"
    assert report.dirty(wpfs, "t") == PAGES
