# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Stores that come in beside what a program is known to map: no mark may say that there were none.
tests/progs/beside.c has the ways.
"""

import contextlib
import os
import select
import signal
import sqlite3

import pytest

import harness
import mapper
import proc
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


@pytest.mark.parametrize("restarted", [False, True])
def test_who_is_alone_and_has_a_uffd(wpfs, restarted):
    """A store waits, and the thread that could read of it is not the first: the copy stays."""
    program = mapped(wpfs, "alone_uffd")
    assert program.read() == "stored"
    if restarted:
        wpfs.kill9()
        wpfs.restart()
    assert len(proc.descriptors(wpfs.pid, "userfaultfd]")) == 1
    assert not proc.is_over(wpfs.pidfd, 0.5)  # in which it looks for who has it, some times
    assert len(proc.descriptors(wpfs.pid, "userfaultfd]")) == 1
    program.kill9()
    assert report.marked(wpfs, "t", owner="program") == PAGES


ALONE = """
import ctypes, mmap, os, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "maps":
    view = mmap.mmap(fd, 4096)
    os.close(fd)
def second():
    sys.stdin.readline()
    os._exit(0)
threading.Thread(target=second).start()
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""


def alone(wpfs, path, what):
    stranger = wpfs.spawn_bare("/usr/bin/python3", "-c", ALONE, path, what)
    proc.wait_for(lambda: proc.state(stranger.pid) == "Z", harness.SECONDS, "its first thread ended")
    return stranger


@pytest.mark.parametrize("what", ["maps", "opens"])
def test_a_stranger_without_its_first_thread(wpfs, what):
    """It is named as any other."""
    mapped(wpfs, "alone", send=False)
    stranger = alone(wpfs, wpfs.mnt / "f", what)
    said = "maps it" if what == "maps" else "has it open"
    (note,) = wpfs.wpctl_json("dirty", "--file", "/f")["notes"]
    assert f"(pid {stranger.pid}, {said})" in note
    stranger.send("")
    stranger.wait()


def test_such_a_stranger_on_a_capped_mount(make_wpfs):
    """What it maps stays in memory."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    with open(wpfs.mnt / "f", "wb") as file:
        file.write(b"\xab" * harness.PAGE)
    stranger = alone(wpfs, harness.RUN_DIR / wpfs.id / "private/lower/f", "maps")
    done = wpfs.wpctl("evict", wpfs.mnt, "/f", status=1)
    assert f"pid {stranger.pid}" in done.stderr
    stranger.send("")
    stranger.wait()
    wpfs.wpctl("evict", wpfs.mnt, "/f")


def test_such_a_stranger_with_a_descriptor_from_before(wpfs):
    """What goes through it nobody sees: whether write(2) changed the file is not known."""
    mapper.mapped(wpfs).order("close 0")
    stranger = alone(wpfs, wpfs.mnt / "f", "opens")
    wpfs.kill9()
    wpfs.restart()
    wpfs.wpctl("protect", wpfs.mnt)
    (mm,) = wpfs.wpctl_json("dirty")["mms"]
    assert [one["write_calls"] for one in mm["maps"]] == ["unknown"]
    stranger.send("")
    stranger.wait()
    wpfs.wpctl("protect", wpfs.mnt)
    (mm,) = wpfs.wpctl_json("dirty")["mms"]
    assert [one["write_calls"] for one in mm["maps"]] == ["no"]


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
    proc.stop(wpfs.pid)
    try:
        program.send("store")
        readable, _, _ = select.select([program.popen.stdout], [], [], 0.5)
        assert not readable, "the daemon was not asked"
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert program.read() == "stored"
    assert report.dirty(wpfs, "t") >= STORED


class Survivor:
    """A child made with CLONE_VM: it stores when its program has ended and the test says go."""

    def __init__(self, wpfs):
        self.wpfs = wpfs
        self.fifos = [wpfs.dir / name for name in ("go", "done", "end")]
        for fifo in self.fifos:
            os.mkfifo(fifo)
        self.program = mapped(wpfs, "survivor", *self.fifos)
        assert self.program.read() == "stored"
        (self.pid,) = [pid for pid in proc.children(self.program.pid)
                       if "witness" not in proc.describe(pid)]
        self.pidfd = os.pidfd_open(self.pid)

    def store(self):
        open(self.fifos[0], "wb").close()
        open(self.fifos[1], "rb").close()
        with open(self.wpfs.mnt / "f", "rb") as file:
            assert os.pread(file.fileno(), 1, 7 * harness.PAGE) == b"\1", "it did not store"

    def end(self):
        open(self.fifos[2], "wb").close()
        assert proc.is_over(self.pidfd, harness.SECONDS)
        os.close(self.pidfd)


@pytest.mark.parametrize("end", ["kill9", "exit"])
def test_who_outlives_the_program_in_its_memory(wpfs, end):
    """The mm goes on with it: its stores are seen as the program's were, in epochs too."""
    survivor = Survivor(wpfs)
    if end == "kill9":
        survivor.program.kill9()
    else:
        survivor.program.send("end")
        survivor.program.wait()
    assert report.dirty(wpfs, "t") == set()
    mm = report.ps(wpfs, "t")
    assert (mm["state"], mm["pid"]) == ("live", survivor.pid)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    survivor.store()
    assert report.dirty(wpfs, "t") == STORED
    survivor.end()
    assert report.dirty(wpfs, "t") == STORED
    assert report.names(wpfs) == {"t": "detached"}


def test_who_outlives_program_and_daemon(wpfs):
    """Neither does the witness go nor does it take the memory away; the next daemon finds both."""
    survivor = Survivor(wpfs)
    (witness,) = [pid for pid in proc.children(survivor.program.pid) if pid != survivor.pid]
    wpfs.kill9()
    survivor.program.kill9()
    pidfd = os.pidfd_open(witness)
    assert not proc.is_over(pidfd, 2.5)  # in which it would have unmapped what is not of a mount
    os.close(pidfd)
    wpfs.restart()
    survivor.store()
    assert report.dirty(wpfs, "t") == STORED
    assert report.ps(wpfs, "t")["pid"] == survivor.pid
    wpfs.kill9()
    wpfs.restart()
    assert report.ps(wpfs, "t")["pid"] == survivor.pid
    survivor.end()
    assert report.dirty(wpfs, "t") == STORED
    assert report.names(wpfs) == {"t": "detached"}


def test_a_stopped_witness_and_who_outlives_the_program(wpfs):
    """What the witness does not say is looked for."""
    survivor = Survivor(wpfs)
    (witness,) = [pid for pid in proc.children(survivor.program.pid) if pid != survivor.pid]
    proc.stop(witness)
    survivor.program.kill9()
    assert report.ps(wpfs, "t")["pid"] == survivor.pid
    survivor.store()
    assert report.dirty(wpfs, "t") == STORED
    survivor.end()
    assert report.names(wpfs) == {"t": "detached"}


def test_who_outlives_program_and_witness(wpfs):
    """Nobody sees what it stores: in doubt, in every epoch as long as it has the file mapped."""
    survivor = Survivor(wpfs)
    (witness,) = [pid for pid in proc.children(survivor.program.pid) if pid != survivor.pid]
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    survivor.program.kill9()
    assert report.dirty(wpfs, "t") == PAGES
    for _ in range(2):
        wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
        assert report.dirty(wpfs, "t") == PAGES
        wpfs.kill9()
        wpfs.restart()
    survivor.store()
    survivor.end()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == set()


def test_who_outlives_program_and_witness_beside_another_run(wpfs):
    """The name goes on with the next run, and so does the doubt."""
    survivor = Survivor(wpfs)
    (witness,) = [pid for pid in proc.children(survivor.program.pid) if pid != survivor.pid]
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    survivor.program.kill9()
    program = mapper.mapped(wpfs, pages=len(PAGES))
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    survivor.store()
    assert report.dirty(wpfs, "t") >= STORED
    survivor.end()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 2 1")
    assert report.dirty(wpfs, "t") == {2}


@pytest.mark.parametrize("lost", ["program", "daemon too", "witness too"])
def test_who_outlives_the_program_on_a_capped_mount(make_wpfs, lost):
    """Pages that are not in memory come for it as they did for the program."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    with open(wpfs.mnt / "f", "wb") as file:
        file.write(b"\xab" * len(PAGES) * harness.PAGE)
    survivor = Survivor(wpfs)
    (witness,) = [pid for pid in proc.children(survivor.program.pid) if pid != survivor.pid]
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    assert wpfs.wpctl_json("status")["spilled"] == len(PAGES) * harness.PAGE
    if lost == "daemon too":
        wpfs.kill9()
    if lost == "witness too":
        pidfd = os.pidfd_open(witness)
        os.kill(witness, signal.SIGKILL)
        assert proc.is_over(pidfd, harness.SECONDS)
        os.close(pidfd)
    survivor.program.kill9()
    if lost == "daemon too":
        wpfs.restart()
    assert report.names(wpfs)["t"] == ("detached" if lost == "witness too" else "live")
    survivor.store()
    with open(wpfs.mnt / "f", "rb") as file:
        assert file.read() == b"".join(
            (b"\1" if page in STORED else b"\xab") + b"\xab" * (harness.PAGE - 1)
            for page in sorted(PAGES))
    assert report.dirty(wpfs, "t") == (PAGES if lost == "witness too" else STORED)
    survivor.end()
    assert report.names(wpfs) == {"t": "detached"}
    wpfs.wpctl("evict", wpfs.mnt, "/f")


def test_who_maps_by_raw_system_calls_only_is_named(wpfs):
    """A protect finds none of its mappings; also where an earlier run of the name has a row."""
    mapper.mapped(wpfs, "b").kill9()
    program = wpfs.spawn(harness.program("mapper"), name="b")
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"map 3 0 {2 * harness.PAGE} {3 * harness.PAGE} raw")
    for verb in "protect", "dirty":
        said = wpfs.wpctl_json(verb, "--file", "/f")
        assert any(f"pid {program.pid}, maps it" in note for note in said["notes"]), said
    for args in (), ("--name", "b"):
        said = wpfs.wpctl_json("dirty", *args)
        assert any(f"pid {program.pid})" in note and "raw system calls" in note
                   for note in said["notes"]), said


LATE = """
import ctypes, mmap, os, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR)
def second():
    sys.stdin.readline()
    view = mmap.mmap(fd, 64 * 4096)
    print("mapped", flush=True)
    for line in sys.stdin:
        view[int(line) * 4096] = 1
        print("stored", flush=True)
    os._exit(0)
threading.Thread(target=second).start()
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""


@pytest.mark.parametrize("options", [[], ["resident=64M", "settle=0"]])
def test_mapped_without_its_first_thread(make_wpfs, options):
    """It is attached when its first thread has ended already: as any other program."""
    wpfs = make_wpfs("store", options)
    with open(wpfs.mnt / "f", "wb") as file:
        file.write(b"\xab" * 64 * harness.PAGE)
    program = wpfs.spawn("/usr/bin/python3", "-c", LATE, wpfs.mnt / "f", name="t", protect=True)
    proc.wait_for(lambda: proc.state(program.pid) == "Z", harness.SECONDS, "its first thread ended")
    program.send("")
    assert program.read() == "mapped"
    if options:
        wpfs.wpctl("evict", wpfs.mnt, "/f")
    program.send("7")
    assert program.read() == "stored"
    assert report.dirty(wpfs, "t") == STORED
    program.kill9()
    assert report.dirty(wpfs, "t") == STORED


def restarted_with_number_of(wpfs, other):
    """
    wpfs's mount had, when its daemon was killed, the st_dev number that other's has now: as when the
    kernel gives it again.
    """
    wpfs.kill9()
    with contextlib.closing(sqlite3.connect(f"{wpfs.store}/wpfs.db", isolation_level=None)) as db:
        ((devs,),) = db.execute("SELECT value FROM meta WHERE key = 'devs'")
        devs += f"{os.stat(other.mnt).st_dev} "
        db.execute("UPDATE meta SET value = ? WHERE key = 'devs'", (devs,))
    wpfs.restart()
    assert os.stat(wpfs.mnt / "f").st_ino == os.stat(other.mnt / "f").st_ino


@pytest.mark.parametrize("others", ["maps", "opens"])
def test_a_number_that_another_mount_has_now(make_wpfs, others):
    """What is mapped or open there, with an inode number as here, is no file of this one."""
    wpfs, other = make_wpfs("store"), make_wpfs()
    stranger = mapper.mapped(other)
    if others == "opens":
        stranger.order("unmap 0")
    (wpfs.mnt / "f").touch()
    restarted_with_number_of(wpfs, other)
    mapper.mapped(wpfs)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    answer = wpfs.wpctl_json("dirty", "--file", "/f")
    assert [one["write_calls"] for one in answer["mms"][0]["maps"]] == ["no"]
    assert answer["notes"] == []


def test_such_a_number_under_a_name_that_was_in_doubt(make_wpfs):
    """Who might have stored has ended, and a mapping on the other mount is not taken for its."""
    wpfs, other = make_wpfs("store"), make_wpfs()
    survivor = Survivor(wpfs)
    (witness,) = [pid for pid in proc.children(survivor.program.pid) if pid != survivor.pid]
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    survivor.program.kill9()
    assert report.dirty(wpfs, "t") == PAGES
    mapper.mapped(other)
    restarted_with_number_of(wpfs, other)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == PAGES  # it is there still
    survivor.store()
    survivor.end()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == set()
