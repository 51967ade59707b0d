# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that lose their witness, and what they lose with it."""

import os
import resource
import select
import signal

import pytest

import harness
import mapper
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, Child
from test_failure import witness_of

CAPPED = ["resident=64M", "settle=0"]


def lose_witness(program):
    witness = witness_of(program)
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)


def witnesses(program):
    return [pid for pid in proc.children(program.pid)
            if "wpfs-witness" in proc.describe(pid) and proc.state(pid) != "Z"]


def silent(program):
    readable, _, _ = select.select([program.popen.stdout], [], [], 0.5)
    return not readable


@pytest.mark.parametrize("before", [None, "closefrom 3", "closeall 3"])
def test_killed_with_the_daemon_on_a_capped_mount(make_wpfs, before):
    """
    As `pkill -9 wpfs` does. The program has the userfaultfd too: what it touches of the store waits
    for the next daemon, and is no page of zeros; no mark is lost.
    """
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    program = mapper.mapped(wpfs)
    for page in ALL:
        program.order(f"store 0 {page} {page + 1}")
    if before:
        program.order(before)
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    program.order("store 0 7 200")
    lose_witness(program)
    wpfs.kill9()
    program.send("load 0 3")
    assert silent(program), "it has a page that is in the store"
    wpfs.restart()
    assert program.read() == "ok 4"
    contents = [200 if page == 7 else page + 1 for page in sorted(ALL)]
    assert [program.order(f"load 0 {page}") for page in sorted(ALL)] == contents
    assert report.dirty(wpfs, "t") == {7}
    program.order("store 0 9 201")
    assert report.dirty(wpfs, "t") == {7, 9}
    with open(wpfs.mnt / "f", "rb") as file:
        assert file.read()[::PAGE] == bytes(201 if n == 9 else byte for n, byte in enumerate(contents))
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"map 1 0 0 {8 * PAGE}")  # with this one it gets another witness
    assert len(witnesses(program)) == 1
    program.order("store 1 2 1")
    program.kill9()
    assert report.dirty(wpfs, "t") == {2, 7, 9}


def answer(program):
    readable, _, _ = select.select([program.popen.stdout], [], [], harness.SECONDS)
    assert readable, "it waits for ever"
    return program.read()


def test_killed_with_the_daemon_and_nothing_was_protected(make_wpfs):
    """What an eviction registered, no database has."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    program = mapper.mapped(wpfs, protect=False)
    for page in ALL:
        program.order(f"store 0 {page} {page + 1}")
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    lose_witness(program)
    wpfs.kill9()
    program.send("load 0 3")
    assert silent(program), "it has a page that is in the store"
    wpfs.restart()
    assert answer(program) == "ok 4"
    for page in ALL:
        program.send(f"load 0 {page}")
        assert answer(program) == f"ok {page + 1}"


@pytest.mark.parametrize("there", ["nothing", "private memory"])
def test_killed_with_the_daemon_and_the_first_mapping_gone(make_wpfs, there):
    """The next daemon knows the program's userfaultfd by any mapping."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    program = mapper.mapped(wpfs)
    other = program.order(f"map 1 0 0 {64 * PAGE}")
    first, left = (0, 1) if program.addr < other else (1, 0)
    program.order("store 0 3 4")
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    lose_witness(program)
    wpfs.kill9()
    program.order(f"rawunmap {first}")
    if there != "nothing":
        program.order(f"map {first} 0 0 {64 * PAGE} anon raw at={min(program.addr, other)}")
    wpfs.restart()
    program.send(f"load {left} 3")
    assert answer(program) == "ok 4"
    if there != "nothing":
        program.send(f"load {first} 5")
        assert answer(program) == "ok 0"


def test_connection_aborted_on_a_capped_mount(make_wpfs):
    """The daemon leaves, and the program, which keeps the userfaultfd, does not wait for it."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    program = mapper.mapped(wpfs)
    for page in ALL:
        program.order(f"store 0 {page} {page + 1}")
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    assert program.order("load 0 7") == 8
    wpfs.command("umount", "-f", wpfs.mnt)  # which is busy, but aborted
    assert proc.is_over(wpfs.pidfd, harness.SECONDS)
    wpfs.kill9()  # reaps it
    program.send("load 0 3")
    answer(program)
    program.send("store 0 7 1")
    assert answer(program) == "ok 0"
    # The next daemon does not know it: then it lets go of its userfaultfd.
    assert proc.descriptors(program.pid, "userfaultfd")
    wpfs.restart()
    program.order(f"open 1 {wpfs.mnt}/f")
    program.ask(f"map 1 1 0 {8 * PAGE}")
    assert not proc.descriptors(program.pid, "userfaultfd")


def test_another_one_on_a_capped_mount(make_wpfs):
    """Nothing is lost, and what it maps can be evicted again."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0"])
    program = mapper.mapped(wpfs)
    wpfs.wpctl("protect", wpfs.mnt)
    program.order("store 0 7 200")
    lose_witness(program)
    assert "no witness" in wpfs.wpctl("evict", wpfs.mnt, "/f", status=1).stderr
    program.order(f"map 1 0 0 {8 * PAGE}")
    assert report.dirty(wpfs, "t") == {7}
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    program.order("store 1 2 1")
    assert program.order("load 0 7") == 200
    wpfs.kill9()
    program.send("store 0 3 1")
    assert silent(program)
    wpfs.restart()
    assert program.read() == "ok 0"
    program.kill9()
    assert report.dirty(wpfs, "t") == {2, 3, 7}


def test_another_one(wpfs):
    """The marks went with the first one; from the next epoch on they are exact again."""
    program = mapper.mapped(wpfs)
    program.order("store 0 1 1")
    lose_witness(program)
    assert report.dirty(wpfs, "t") == ALL
    program.order(f"map 1 0 0 {8 * PAGE}")
    assert len(witnesses(program)) == 1
    assert report.dirty(wpfs, "t") == ALL
    wpfs.wpctl("protect", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set()
    program.order("store 0 40 1")
    program.order("store 1 2 1")
    child = Child(wpfs, program)
    child.order("store 0 50 1")
    child.end()
    assert report.dirty(wpfs, "t") == {2, 40}
    program.kill9()
    assert report.dirty(wpfs, "t") == {2, 40}
    assert report.dirty(wpfs, f"t/{child.pid}") == {2, 40, 50}


def test_none_behind_a_filter(wpfs):
    """A program that has a seccomp filter by then stays without: all that it has armed is dirty."""
    program = mapper.mapped(wpfs)
    program.order("seccomp")
    lose_witness(program)
    program.order(f"map 1 0 0 {8 * PAGE}")
    assert witnesses(program) == []
    program.order("store 1 2 1")
    assert report.dirty(wpfs, "t") == ALL
    program.kill9()
    assert report.dirty(wpfs, "t") == ALL


@pytest.mark.parametrize("options", [None, CAPPED])
def test_none_that_tells_an_exec(wpfs, make_wpfs, options):
    """The image that follows is no renewal of the one before: it has its own name and its own marks."""
    if options:
        wpfs = make_wpfs("capped", options)
    program = mapper.mapped(wpfs)
    program.order("store 0 1 1")
    lose_witness(program)
    program.order("store 0 2 1")
    program.order("setenv WPFS_NAME u")
    program.send(f"exec {harness.program('mapper')}")
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    assert report.names(wpfs) == {"t": "detached", "u": "live"}
    assert report.dirty(wpfs, "t") == ALL
    assert len(witnesses(program)) == 1
    program.order("store 0 40 1")
    assert report.dirty(wpfs, "u") == {40}
    program.kill9()
    assert report.dirty(wpfs, "u") == {40}
    assert report.dirty(wpfs, "t") == ALL


def test_none_that_tells_an_exec_and_a_child_has_the_connection(wpfs):
    """That it is still open does not mean that it is still the same image."""
    program = mapper.mapped(wpfs)
    program.order("store 0 1 1")
    child = mapper.Child(wpfs, program, how="raw")
    lose_witness(program)
    program.order("setenv WPFS_NAME u")
    program.send(f"exec {harness.program('mapper')}")
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    assert report.names(wpfs) == {"t": "detached", "u": "live"}
    assert report.dirty(wpfs, "t") == ALL
    program.order("store 0 40 1")
    assert report.dirty(wpfs, "u") == {40}
    child.end()
    program.kill9()
    assert report.dirty(wpfs, "u") == {40}


def limit_descriptors(program, most):
    hard = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (min(most, hard), hard))


@pytest.mark.parametrize("full", [False, True])
def test_killed_with_the_daemon_and_its_number_is_wanted(make_wpfs, full):
    """What the program puts on the userfaultfd's number moves that, also with no number left above,
    or none at all below the soft limit."""
    wpfs = make_wpfs("store", CAPPED)
    program = mapper.mapped(wpfs)
    program.order("store 0 3 4")
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    (kept,) = proc.descriptors(program.pid, "userfaultfd")
    limit_descriptors(program, kept + 1)
    if full:
        program.order("fill 0")
    program.order(f"dup 0 {kept}")
    assert resource.prlimit(program.pid, resource.RLIMIT_NOFILE)[0] == kept + 1
    lose_witness(program)
    wpfs.kill9()
    program.send("load 0 3")
    assert silent(program), "it has a page that is in the store"
    wpfs.restart()
    assert answer(program) == "ok 4"
    program.kill9()


@pytest.mark.parametrize("options, free, reached", [(None, 1, False), (None, 3, True),
                                                    (CAPPED, 3, False), (CAPPED, 4, True)])
def test_another_one_when_there_are_descriptors_for_it(wpfs, make_wpfs, options, free, reached):
    """With some it cannot take what the daemon sends; with one more it only lacks the userfaultfd."""
    if options:
        wpfs = make_wpfs("capped", options)
    program = mapper.mapped(wpfs)
    used = 1 + max(int(fd) for fd in os.listdir(f"/proc/{program.pid}/fd") if int(fd) < 100)
    lose_witness(program)
    limit_descriptors(program, used + free)
    program.ask(f"map 1 0 0 {8 * PAGE}")
    assert witnesses(program) == []
    assert ("no descriptor is free" in program.stderr()) != reached
    limit_descriptors(program, 1024)
    program.order(f"map 2 0 0 {8 * PAGE}")
    assert len(witnesses(program)) == 1
    wpfs.wpctl("protect", wpfs.mnt)
    program.order("store 2 5 1")
    assert report.dirty(wpfs, "t") >= {5}
    program.kill9()
    assert report.dirty(wpfs, "t") >= {5}


def test_reaped_by_its_program(wpfs):
    """Nothing is left of it but that it was there; its number may be another process's."""
    program = mapper.mapped(wpfs)
    other = mapper.mapped(wpfs, name="o", path="g")
    other.order("store 0 4 1")
    witness = witness_of(program)
    lose_witness(program)
    assert program.order("reap") == witness
    assert report.dirty(wpfs, "t") == ALL
    assert report.dirty(wpfs, "o", "/g") == {4}
    program.order("fsync 0")
    wpfs.wpctl("sync", wpfs.mnt)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "o")
    program.order(f"map 1 0 0 {8 * PAGE}")  # with this one it gets another witness
    wpfs.wpctl("protect", wpfs.mnt)
    program.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {5}


def test_none_that_tells_an_exec_of_who_is_not_tracked(wpfs):
    """The mm has ended, whatever the process does now: its name is free, and its marks are kept."""
    program = mapper.mapped(wpfs)
    lose_witness(program)
    program.order("setenv LD_PRELOAD /no/such.so")
    program.send("exec /usr/bin/sleep 100")
    proc.wait_for(lambda: proc.describe(program.pid).startswith("sleep"), harness.SECONDS, "exec")
    assert report.names(wpfs)["t"] == "detached"
    assert report.dirty(wpfs, "t") == ALL
    again = mapper.mapped(wpfs, protect=False)
    again.order("store 0 5 1")
    assert report.names(wpfs)["t"] == "live"
    wpfs.wpctl("protect", wpfs.mnt)
    again.order("store 0 6 1")
    assert report.dirty(wpfs, "t") == {6}
