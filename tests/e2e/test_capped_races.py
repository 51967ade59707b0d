# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interleavings of evictions and refaults that are made to happen, one by one."""

import ctypes
import errno
import fcntl
import os
import select
import signal
import sqlite3
import subprocess
import threading

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, Child, direct_file, map_file, mapped
from seam import Seam, wait_waiting, waiting

EVICT_STEPS = ("recorded", "fencing", "fenced", "leased", "saved", "spilled", "punched",
               "unfencing", "unfenced")
FENCED_STEPS = EVICT_STEPS[1:-1]
SYS_PIDFD_GETFD = 438
libc = ctypes.CDLL(None, use_errno=True)
LOAD_STEPS = ("asked", "read", "filled")


@pytest.fixture
def wpfs(make_wpfs):
    wpfs = make_wpfs("store", ["resident=256M", "settle=0", "flush=0"], start=False)
    wpfs.seam = Seam(wpfs)
    wpfs.start()
    return wpfs


def fill(program):
    for page in range(64):
        program.order(f"store 0 {page} {page + 1}")


def filled(wpfs, name="t"):
    """A program whose 64 pages are filled and marked."""
    program = mapped(wpfs, name, protect=False)
    fill(program)
    protect(wpfs, name)
    return program


def protect(wpfs, name="t"):
    wpfs.wpctl("protect", wpfs.mnt, "--name", name)


def evict(wpfs):
    return wpfs.wpctl_json("evict", "/f")["pages"]


def evict_meanwhile(wpfs):
    return subprocess.Popen([harness.WPCTL, "evict", wpfs.mnt, "/f"], env=wpfs.env(None),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(evicting, status=0):
    out, err = evicting.communicate(timeout=harness.SECONDS)
    assert status is None or evicting.returncode == status, err
    return out


def loaded(program, slot=0):
    return [program.order(f"load {slot} {page}") for page in range(64)]


def as_filled(**changed):
    return [changed.get(f"p{page}", page + 1) for page in range(64)]


@pytest.mark.parametrize("step", FENCED_STEPS)
def test_writer_under_the_fence(wpfs, step):
    """A store between two steps waits for the end; it is not lost, and seen."""
    program = filled(wpfs)
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    program.send("store 0 5 77")
    wait_waiting(program.pid)
    wpfs.seam.go(step)
    ended(evicting)
    assert program.read() == "ok 0"
    assert loaded(program) == as_filled(p5=77)
    assert report.dirty(wpfs, "t") == {5} and report.marked(wpfs, "t") == ALL - {5}


@pytest.mark.parametrize("step", FENCED_STEPS)
def test_unmarked_pages_are_unmarked_after_it(wpfs, step):
    """The fence is no mark: neither for who looks meanwhile nor afterwards."""
    program = mapped(wpfs, protect=False)
    fill(program)
    protect(wpfs)
    for page in range(0, 64, 3):
        program.order(f"store 0 {page} 9")
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    asking = subprocess.Popen([harness.WPCTL, "dirty", "--json", wpfs.mnt], env=wpfs.env(None),
                              stdout=subprocess.PIPE, text=True)
    wpfs.seam.go(step)
    ended(evicting)
    asking.communicate(timeout=harness.SECONDS)
    assert report.dirty(wpfs, "t") == set(range(0, 64, 3))
    assert report.marked(wpfs, "t") == ALL - set(range(0, 64, 3))


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_two_refault_one_page(wpfs, step):
    """The second one to ask for a page that is being read waits for it; it is read once."""
    one = filled(wpfs, "one")
    two = map_file(wpfs.spawn(harness.program("mapper"), name="two"), wpfs.mnt / "f")
    assert evict(wpfs) == 64
    before = wpfs.wpctl_json("status")["refaults"]
    wpfs.seam.pause(step)
    one.send("load 0 3")
    wpfs.seam.wait_at(step)
    two.send("load 0 3")
    if step != "filled":  # then it is there
        wait_waiting(two.pid)
    wpfs.seam.go(step)
    assert one.read() == "ok 4" and two.read() == "ok 4"
    assert wpfs.wpctl_json("status")["refaults"] == before + 1
    assert report.marked(wpfs, "one") == ALL


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_two_threads_refault_one_page(wpfs, step):
    """The same by two threads of one program."""
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", 64, name="t")
    assert program.read() == "ok ready"
    program.order("fill 1")
    value = program.order("read 5 1")
    protect(wpfs)
    assert evict(wpfs) == 64
    before = wpfs.wpctl_json("status")["refaults"]
    wpfs.seam.pause(step)
    program.order("later 5")
    wpfs.seam.wait_at(step)
    program.send("later 5")
    said = [program.read()]
    if step == "filled":  # then it is there, and what the thread says may come first
        said.append(program.read())
    else:
        proc.wait_for(lambda: waiting(program.pid, 2), harness.SECONDS, "the second one")
    wpfs.seam.go(step)
    said += [program.read() for _ in range(3 - len(said))]
    assert sorted(said) == ["ok 0", f"read {value}", f"read {value}"]
    assert wpfs.wpctl_json("status")["refaults"] == before + 1
    assert report.marked(wpfs, "t") == ALL and program.order("verify 2") == 0


@pytest.mark.parametrize("how", ["load", "read", "write"])
@pytest.mark.parametrize("there", [True, False], ids=["in the store", "zeros"])
def test_a_page_that_came_before_its_fault(wpfs, there, how):
    """The message of a missing page is not read yet, and somebody else brings the page in, or writes
    it: that is what the program gets (EEXIST, were it put into the page table)."""
    program = filled(wpfs) if there else mapped(wpfs)
    assert evict(wpfs) == (64 if there else 0)
    with direct_file(wpfs.mnt / "f") as fd:
        wpfs.seam.pause("message")
        program.send("load 0 3")
        wpfs.seam.wait_at("message")
        if how == "load":
            wpfs.wpctl("load", wpfs.mnt, "/f")
        elif how == "read":
            assert os.pread(fd, 1, 3 * PAGE) == (b"\4" if there else b"\0")
        else:
            os.pwrite(fd, b"\x63", 3 * PAGE)
        wpfs.seam.go("message")
        value = 0x63 if how == "write" else 4 if there else 0
        assert program.read() == f"ok {value}" and os.pread(fd, 1, 3 * PAGE) == bytes([value])
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()
    program.order("store 0 3 5")
    assert report.dirty(wpfs, "t") == {3}


@pytest.mark.parametrize("again", [True, False])
def test_a_store_to_what_a_failed_load_has_brought(make_wpfs, again):
    """There is room for a part of it only, and then for all (again) or not: what came is not filled twice."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=0", "flush=0"] + ["size=64M"] * again, start=False)
    wpfs.seam = Seam(wpfs)
    wpfs.start()
    program = mapped(wpfs, protect=False)
    fill(program)
    assert evict(wpfs) == 64
    wpfs.seam.pause("filled")
    wpfs.seam.fail_once("lower-short", errno.ENOSPC, 0)
    loading = subprocess.Popen([harness.WPCTL, "load", wpfs.mnt, "/f"], env=wpfs.env(None),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wpfs.seam.wait_at("filled")
    program.order("store 0 3 99")  # it is there: nobody is asked
    wpfs.seam.go("filled")
    ended(loading, 0 if again else 1)
    assert program.order("load 0 3") == 99
    wpfs.wpctl("load", wpfs.mnt, "/f")
    assert loaded(program) == as_filled(p3=99)


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_refault_against_evict_of_a_neighbour(wpfs, step):
    """Pages beside one that is being read leave meanwhile."""
    program = filled(wpfs)
    other = map_file(wpfs.spawn(harness.program("mapper"), name="other"), wpfs.mnt / "f")
    assert evict(wpfs) == 64
    assert other.order("load 0 2") == 3 and other.order("load 0 4") == 5
    wpfs.seam.pause(step)
    program.send("load 0 3")
    wpfs.seam.wait_at(step)
    evicting = evict_meanwhile(wpfs)
    if step != "filled":  # else it is resident too, and waited for
        ended(evicting)
    wpfs.seam.go(step)
    assert program.read() == "ok 4"
    ended(evicting)
    assert loaded(program) == as_filled() and loaded(other) == as_filled()
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()


@pytest.mark.parametrize("step", EVICT_STEPS)
def test_moved_while_fenced(wpfs, step):
    """mremap of what is fenced: the fence comes off at the new address."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    program.send("move 0")
    program.send("store 0 8 80")
    wpfs.seam.go(step)
    ended(evicting, None)
    assert program.read().startswith("ok ") and program.read() == "ok 0"
    assert loaded(program) == as_filled(p7=70, p8=80)
    assert report.dirty(wpfs, "t") == {7, 8} and report.marked(wpfs, "t") == ALL - {7, 8}


@pytest.mark.parametrize("how", ("unmap 0", "exit", "kill"))
@pytest.mark.parametrize("step", EVICT_STEPS)
def test_gone_while_fenced(wpfs, step, how):
    """munmap, exit and kill -9 under the fence: what the program wrote is known, and no more."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    if how == "kill":
        program.popen.kill()
    elif how == "exit":
        program.popen.stdin.close()
    else:
        program.send(how)
    wpfs.seam.go(step)
    ended(evicting, None)
    if how == "unmap 0":
        assert program.read() == "ok 0"
    else:
        program.popen.wait(harness.SECONDS)
    assert report.dirty(wpfs, "t") == {7}
    again = map_file(wpfs.spawn(harness.program("mapper"), name="again"), wpfs.mnt / "f")
    assert loaded(again) == as_filled(p7=70)


@pytest.mark.parametrize("step", EVICT_STEPS)
def test_forked_while_fenced(wpfs, step):
    """A child is born under the fence: it has its parent's contents and marks, and not the fence's."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    before = len(proc.children(program.pid))

    def go_on():
        proc.wait_for(lambda: len(proc.children(program.pid)) > before or waiting(program.pid),
                      harness.SECONDS, "the fork")
        wpfs.seam.go(step)
        ended(evicting, None)

    child = Child(wpfs, program, go_on)
    name = f"t/{child.pid}"
    for one in ("t", name):
        assert report.marked(wpfs, one) == ALL - {7} and report.dirty(wpfs, one) == {7}
    assert [child.order(f"load 0 {page}") for page in range(64)] == as_filled(p7=70)
    child.order("store 0 8 80")
    program.order("store 0 9 90")
    assert loaded(program) == as_filled(p7=70, p8=80, p9=90)
    assert report.dirty(wpfs, "t") == {7, 9} and report.dirty(wpfs, name) == {7, 8}
    assert evict(wpfs) == 64 and loaded(program) == as_filled(p7=70, p8=80, p9=90)
    child.end()


def call_meanwhile(wpfs, step, what):
    """Begins a call that changes page 3 while the daemon is at a step, and lets both go on. What is
    in that page after."""
    calls = {"punch": lambda fd: subprocess.run(
                 ["fallocate", "-p", "-o", str(3 * PAGE), "-l", str(PAGE), wpfs.mnt / "f"],
                 check=True, timeout=harness.SECONDS),
             "truncate": lambda fd: (os.ftruncate(fd, 3 * PAGE + 1), os.ftruncate(fd, 64 * PAGE)),
             "write": lambda fd: os.pwrite(fd, b"\x63", 3 * PAGE)}

    def call():
        with direct_file(wpfs.mnt / "f") as fd:
            calls[what](fd)

    thread = threading.Thread(target=call)
    thread.start()
    wpfs.seam.go(step)
    thread.join(harness.SECONDS)
    assert not thread.is_alive()
    return {"punch": 0, "truncate": 4, "write": 0x63}[what]


def byte_of_page_3(wpfs):
    with direct_file(wpfs.mnt / "f") as fd:
        return os.pread(fd, 1, 3 * PAGE)[0]


@pytest.mark.parametrize("step", LOAD_STEPS)
@pytest.mark.parametrize("what", ["punch", "truncate", "write"])
def test_file_calls_during_a_refault(wpfs, step, what):
    """A call that changes a page that is being read comes before or after, never in between."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    wpfs.seam.pause(step)
    program.send("load 0 3")
    wpfs.seam.wait_at(step)
    after = call_meanwhile(wpfs, step, what)
    assert program.read() in ("ok 4", f"ok {after}")
    assert program.order("load 0 3") == byte_of_page_3(wpfs) == after
    if what == "truncate":
        assert loaded(program) == [1, 2, 3, 4] + [0] * 60
    else:
        assert loaded(program) == as_filled(p3=after)
    assert report.dirty(wpfs, "t") == {"punch": {3}, "truncate": ALL - {0, 1, 2},
                                         "write": set()}[what]


def test_events_that_are_not_read(wpfs):
    """A fork whose event nobody has read yet: the kernel lets no fence be put up, and the eviction
    waits until it is read."""
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", 64, name="t")
    assert program.read() == "ok ready"
    program.order("fill 1")
    protect(wpfs)
    wpfs.seam.pause("recorded")
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at("recorded")
    wpfs.seam.pause("message")
    program.send("forks 1")
    wpfs.seam.wait_at("message")
    wpfs.seam.pause("again")
    wpfs.seam.go("recorded")
    wpfs.seam.wait_at("again")
    wpfs.seam.go("message")
    wpfs.seam.go("again")
    ended(evicting, None)  # the child may map it and is nobody's yet: then nothing leaves
    assert program.read() == "ok 0" and program.order("verify 2") == 0
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()
    assert evict(wpfs) == 64 and program.order("verify 2") == 0
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()


@pytest.mark.parametrize("step", FENCED_STEPS)
@pytest.mark.parametrize("what", ["punch", "truncate", "write"])
def test_file_calls_during_an_eviction(wpfs, step, what):
    """A call that changes pages that are leaving comes after they have."""
    program = filled(wpfs)
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    after = call_meanwhile(wpfs, step, what)
    ended(evicting)
    assert program.order("load 0 3") == byte_of_page_3(wpfs) == after
    if what == "truncate":
        assert loaded(program) == [1, 2, 3, 4] + [0] * 60
    else:
        assert loaded(program) == as_filled(p3=after)
    assert report.dirty(wpfs, "t") == {"punch": {3}, "truncate": ALL - {0, 1, 2},
                                         "write": set()}[what]


@pytest.mark.parametrize("step", FENCED_STEPS)
@pytest.mark.parametrize("what", ["dontneed", "remove"])
def test_advice_during_an_eviction(wpfs, step, what):
    """The fence is not left behind where a page goes out of the page tables under it, and what is removed
    does not come back."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    program.send(f"advise 0 3 5 {what}")
    if what == "dontneed":
        assert program.read() == "ok 0"
    wpfs.seam.go(step)
    ended(evicting)
    if what == "remove":
        assert program.read() == "ok 0"
    gone = dict.fromkeys(("p3", "p4", "p5", "p6", "p7"), 0) if what == "remove" else {"p7": 70}
    dirty = {3, 4, 5, 6, 7} if what == "remove" else {7}
    assert loaded(program) == as_filled(**gone)
    assert report.dirty(wpfs, "t") == dirty and report.marked(wpfs, "t") == ALL - {7}
    program.order("store 0 4 40")
    assert report.dirty(wpfs, "t") == dirty | {4}
    assert evict(wpfs) == 64 and loaded(program) == as_filled(**{**gone, "p4": 40})


def test_foreign_open_after_the_lease(wpfs):
    """Who opens the lower file between probe and punch waits until the batch is over."""
    program = filled(wpfs)
    lower = harness.RUN_DIR / wpfs.id / "private/lower/f"
    wpfs.seam.pause("leased")
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at("leased")
    opener = subprocess.Popen(["/usr/bin/python3", "-c",
                               f"open({str(lower)!r}, 'rb'); print('open'); input()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def blocked():
        with open(f"/proc/{opener.pid}/wchan", encoding="ascii") as wchan:
            return "lease" in wchan.read()

    proc.wait_for(blocked, harness.SECONDS, "the open to wait for the lease")
    wpfs.seam.go("leased")
    ended(evicting)
    assert opener.stdout.readline() == "open\n"
    opener.communicate("\n", timeout=harness.SECONDS)
    assert loaded(program) == as_filled()
    assert report.marked(wpfs, "t") == ALL


@pytest.mark.parametrize("step", LOAD_STEPS)
@pytest.mark.parametrize("what", ["dontneed", "remove"])
def test_advice_during_a_refault(wpfs, step, what):
    program = filled(wpfs, "one")
    other = map_file(wpfs.spawn(harness.program("mapper"), name="two"), wpfs.mnt / "f")
    assert evict(wpfs) == 64
    wpfs.seam.pause(step)
    other.send("load 0 3")
    wpfs.seam.wait_at(step)
    program.send(f"advise 0 3 1 {what}")
    wpfs.seam.go(step)
    assert program.read() == "ok 0"
    assert other.read() in ("ok 4", "ok 0")
    assert program.order("load 0 3") == (4 if what == "dontneed" else 0)
    assert loaded(program)[4:] == as_filled()[4:]
    assert report.dirty(wpfs, "one") == (set() if what == "dontneed" else {3})


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_marks_are_set_and_read_during_a_refault(wpfs, step):
    """protect, unprotect and a harvest while a page is being read for a write."""
    program = mapped(wpfs, protect=False)
    fill(program)
    assert evict(wpfs) == 64
    wpfs.seam.pause(step)
    program.send("store 0 3 33")
    wpfs.seam.wait_at(step)
    protect(wpfs)
    assert report.marked(wpfs, "t") == ALL
    if step != "filled":  # there the store is done as soon as it is let through
        wpfs.wpctl("unprotect", wpfs.mnt, "--name", "t")
        protect(wpfs)
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()
    wpfs.seam.go(step)
    assert program.read() == "ok 0"
    assert report.dirty(wpfs, "t") == {3} and report.marked(wpfs, "t") == ALL - {3}
    assert loaded(program) == as_filled(p3=33)


def test_faults_are_counted(wpfs):
    """A read refault of a marked page: one message, read-only; the next write exactly one more. A
    write refault: one for the missing page, then one for the mark."""
    program = filled(wpfs)
    assert evict(wpfs) == 64

    def faults(order):
        before = wpfs.wpctl_json("status")["faults"]
        program.order(order)
        return wpfs.wpctl_json("status")["faults"] - before

    assert faults("load 0 10") == 1
    assert report.marked(wpfs, "t") == ALL
    assert faults("store 0 10 1") == 1 and faults("store 0 10 2") == 0
    assert faults("store 0 40 1") == 2 and faults("store 0 40 2") == 0
    assert report.dirty(wpfs, "t") == {10, 40}


@pytest.mark.parametrize("step", EVICT_STEPS)
@pytest.mark.parametrize("victims", ["daemon", "both"])
def test_killed_in_an_eviction(wpfs, step, victims):
    """kill -9 between any two steps: no contents are lost, nothing written looks marked."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    wpfs.kill9()
    if victims == "both":
        program.kill9()
    ended(evicting, None)
    wpfs.seam.go(step)
    wpfs.restart()
    if victims == "both":
        program = map_file(wpfs.spawn(harness.program("mapper"), name="t"), wpfs.mnt / "f")
    assert loaded(program) == as_filled(p7=70)
    dirty = report.dirty(wpfs, "t")
    assert 7 in dirty and report.marked(wpfs, "t") == ALL - dirty
    assert evict(wpfs) == 64 and loaded(program) == as_filled(p7=70)
    assert report.dirty(wpfs, "t") == dirty


@pytest.mark.parametrize("step,after", [("fencing", 0), ("fencing", 1), ("unfencing", 0),
                                        ("unfencing", 1)])
def test_killed_between_two_programs(wpfs, step, after):
    """One is fenced, and the other is not or not any more: both are right afterwards."""
    one = filled(wpfs, "one")
    one.order("store 0 7 70")
    two = map_file(wpfs.spawn(harness.program("mapper"), name="two"), wpfs.mnt / "f")
    protect(wpfs, "two")
    two.order("store 0 8 80")
    wpfs.seam.pause(step, after)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    wpfs.kill9()
    ended(evicting, None)
    wpfs.seam.go(step)
    two.send("store 0 9 90")
    wpfs.restart()
    assert two.read() == "ok 0"
    dirty = {name: report.dirty(wpfs, name) for name in ("one", "two")}
    assert 7 in dirty["one"] and {8, 9} <= dirty["two"]
    for name in dirty:
        assert report.marked(wpfs, name) == ALL - dirty[name]
    for program in (one, two):
        assert loaded(program) == as_filled(p7=70, p8=80, p9=90)
    assert evict(wpfs) == 64 and loaded(one) == as_filled(p7=70, p8=80, p9=90)


@pytest.mark.parametrize("step", ["saved", "spilled", "punched"])
@pytest.mark.parametrize("after", [1, 2])
def test_killed_between_two_parts(wpfs, step, after):
    """A part of the pages has left, one is on its way, and one is not: the kill finds all three."""
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", 1024, name="t")
    assert program.read() == "ok ready"
    program.order("fill 1")
    program.order("clear")
    protect(wpfs)
    program.order("write 2 30 1")
    program.order(f"written {wpfs.dir}/written")
    written = {page for page, byte in enumerate((wpfs.dir / "written").read_bytes()) if byte}
    wpfs.seam.pause(step, after)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    wpfs.kill9()
    ended(evicting, None)
    wpfs.seam.go(step)
    wpfs.restart()
    assert program.order("verify 4") == 0
    dirty = report.dirty(wpfs, "t")
    assert written <= dirty and report.marked(wpfs, "t") == set(range(1024)) - dirty
    assert evict(wpfs) > 0 and program.order("verify 4") == 0


def test_killed_in_a_truncation(wpfs):
    """The file is shorter, and the daemon is killed before it could say so: what was behind the end
    never comes back."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    wpfs.seam.pause("dropped")
    cutting = subprocess.Popen(["truncate", "-s", str(3 * PAGE + 1), wpfs.mnt / "f"],
                               stderr=subprocess.DEVNULL)
    wpfs.seam.wait_at("dropped")
    wpfs.kill9()
    assert cutting.wait(harness.SECONDS) != 0
    wpfs.seam.go("dropped")
    wpfs.restart()
    assert os.stat(wpfs.mnt / "f").st_size == 3 * PAGE + 1
    os.truncate(wpfs.mnt / "f", 64 * PAGE)
    assert loaded(program) == [1, 2, 3, 4] + [0] * 60
    assert report.dirty(wpfs, "t") == ALL - {0, 1, 2}


@pytest.mark.parametrize("step", LOAD_STEPS)
@pytest.mark.parametrize("victims", ["daemon", "program", "both"])
def test_killed_in_a_refault(wpfs, step, victims):
    """Likewise while a page is being read; who waits for it is served by the next daemon."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    assert evict(wpfs) == 64
    wpfs.seam.pause(step)
    program.send("load 0 3")
    wpfs.seam.wait_at(step)
    if victims != "program":
        wpfs.kill9()
    if victims != "daemon":
        program.kill9()
    wpfs.seam.go(step)
    if victims != "program":
        wpfs.restart()
    if victims == "daemon":
        assert program.read() == "ok 4"
    else:
        program = map_file(wpfs.spawn(harness.program("mapper"), name="t"), wpfs.mnt / "f")
    assert loaded(program) == as_filled(p7=70)
    assert report.dirty(wpfs, "t") == {7} and report.marked(wpfs, "t") == ALL - {7}


def test_zeroed_when_the_daemon_was_killed_in_a_refault(wpfs):
    """
    The page is in memory and in the store. The program reaches it without a fault and clears it: no
    daemon brings the old contents back.
    """
    program = filled(wpfs)
    other = map_file(wpfs.spawn(harness.program("mapper"), name="other"), wpfs.mnt / "f")
    assert evict(wpfs) == 64
    wpfs.seam.pause("filled")
    program.send("load 0 3")
    wpfs.seam.wait_at("filled")
    wpfs.kill9()
    wpfs.seam.go("filled")
    other.order("store 0 3 0")
    assert other.order("load 0 3") == 0
    wpfs.restart()
    assert program.read() == "ok 0"
    assert loaded(program) == as_filled(p3=0) == loaded(other)


@pytest.mark.parametrize("first", ["witness", "daemon"])
def test_witness_and_daemon_killed(wpfs, first):
    """All that wpfs has is gone but the program, whose pages are in the store: it waits for the next
    daemon. It never sees zeros, and what it stores then is not lost."""
    program = filled(wpfs)
    program.order("store 0 7 70")
    assert evict(wpfs) == 64
    (witness,) = proc.children(program.pid)
    pidfd = os.pidfd_open(witness)
    if first == "daemon":
        wpfs.kill9()
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    if first == "witness":
        wpfs.kill9()
    program.send("load 0 3")
    stdout = select.poll()
    stdout.register(program.popen.stdout, select.POLLIN)
    proc.wait_for(lambda: waiting(program.pid) or stdout.poll(0), harness.SECONDS, "a fault")
    assert not stdout.poll(0), f"somebody has answered: {program.read()}"
    wpfs.restart()
    assert program.read() == "ok 4"
    program.order("store 0 8 80")
    assert loaded(program) == as_filled(p7=70, p8=80)
    dirty = report.dirty(wpfs, "t")
    assert {7, 8} <= dirty and report.marked(wpfs, "t") <= ALL - dirty
    # Another one maps it, and the mount goes on.
    again = map_file(wpfs.spawn(harness.program("mapper"), name="again"), wpfs.mnt / "f")
    assert loaded(again) == as_filled(p7=70, p8=80)
    program.kill9()
    assert {7, 8} <= report.dirty(wpfs, "t")
    proc.wait_for(lambda: wpfs.wpctl("evict", wpfs.mnt, "/f", status=None).returncode == 0,
                  harness.SECONDS, "the file to leave")
    assert loaded(again) == as_filled(p7=70, p8=80)


def test_everything_that_holds_a_userfaultfd_is_gone(wpfs):
    """Daemon and witness are killed, and the program has closed descriptors that it never opened:
    what it reads until the next daemon is zeros, but nothing of the file is lost."""
    wpfs.allow_log("has read zeros|cannot be served any more")
    program = filled(wpfs)
    assert evict(wpfs) == 64
    program.order("rawclosefrom 10")
    (witness,) = proc.children(program.pid)
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    wpfs.kill9()
    assert [program.order(f"load 0 {page}") for page in (3, 4)] == [0, 0]
    program.order("store 0 5 99")
    lower = harness.RUN_DIR / wpfs.id / "private/lower/f"
    before = os.stat(lower)
    wpfs.restart()
    after = os.stat(wpfs.mnt / "f")
    assert (after.st_mtime_ns, after.st_atime_ns) == (before.st_mtime_ns, before.st_atime_ns)
    assert loaded(program) == as_filled(p5=99)
    assert report.dirty(wpfs, "t") == ALL
    assert "userfaultfd" in wpfs.read_log()
    with direct_file(wpfs.mnt / "f") as fd:
        assert [os.pread(fd, 1, page * PAGE)[0] for page in range(64)] == as_filled(p5=99)
    assert "not tracked" in wpfs.wpctl("evict", wpfs.mnt, "/f", status=1).stderr


def userfaultfds(witness):
    fds = f"/proc/{witness}/fd"
    try:
        return [fd for fd in os.listdir(fds) if "userfaultfd" in os.readlink(f"{fds}/{fd}")]
    except FileNotFoundError:
        return []  # it has closed one meanwhile


def has_userfaultfds(witness, nr):
    """Until the daemon has told it: what a child waits for is zeros if the daemon is killed before."""
    proc.wait_for(lambda: len(userfaultfds(witness)) == nr, harness.SECONDS, f"{nr} userfaultfds")


def raw_child(wpfs):
    """A program whose pages are in the store, and a child of it that nobody tracks. The program's
    witness has what both need."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    (program.witness,) = proc.children(program.pid)
    child = Child(wpfs, program, how="raw")
    has_userfaultfds(program.witness, 2)
    return program, child


def ask_meanwhile(asked, order):
    """It waits in a fault, with no daemon there."""
    asked.send(order)
    stdout = select.poll()
    stdout.register(asked.stdout, select.POLLIN)
    proc.wait_for(lambda: waiting(asked.pid) or stdout.poll(0), harness.SECONDS, "a fault")
    assert not stdout.poll(0), f"somebody has answered: {asked.read()}"


@pytest.mark.parametrize("asks", ["after", "before", "between"])
def test_a_raw_child_and_a_daemon_that_is_killed(wpfs, asks):
    """Its pages come for it as before, also what it asked for before the kill or while no daemon was
    there. The next daemon is killed too."""
    program, child = raw_child(wpfs)
    for page in (3, 4):
        if asks == "before":
            wpfs.seam.pause("asked")
            child.send(f"load 0 {page}")
            wpfs.seam.wait_at("asked")
        wpfs.kill9()
        if asks == "before":
            wpfs.seam.go("asked")
        if asks == "between":
            ask_meanwhile(child, f"load 0 {page}")
        wpfs.restart()
        if asks == "after":
            child.send(f"load 0 {page}")
        assert child.read() == f"ok {page + 1}"
    child.order("store 0 9 1")
    assert 9 in report.dirty(wpfs, "t/untracked") and report.dirty(wpfs, "t") == set()
    assert "not tracked" in wpfs.wpctl("evict", wpfs.mnt, "/f", status=1).stderr
    protect(wpfs)
    child.order("store 0 10 1")
    child.end()
    assert 10 in report.dirty(wpfs, "t/untracked") and report.dirty(wpfs, "t") == set()
    assert loaded(program) == as_filled(p9=1, p10=1)
    assert evict(wpfs) == 64
    assert loaded(program) == as_filled(p9=1, p10=1)


def test_a_raw_child_that_ended_while_no_daemon_was_there(wpfs):
    """What it stored is in doubt, and nothing of it stays."""
    program, child = raw_child(wpfs)
    child.order("store 0 9 1")
    wpfs.kill9()
    child.order("store 0 9 2")
    child.end()
    wpfs.restart()
    assert 9 in report.dirty(wpfs, "t/untracked") and report.dirty(wpfs, "t") == set()
    assert loaded(program) == as_filled(p9=2)
    assert evict(wpfs) == 64


def test_a_raw_child_that_ended_before_anybody_looked(make_wpfs):
    """The witness has its userfaultfd until what it stored is noted."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=0", "flush=0", "harvest=0"])
    program = filled(wpfs)
    (witness,) = proc.children(program.pid)
    child = Child(wpfs, program, how="raw")
    has_userfaultfds(witness, 2)
    child.order("store 0 9 1")
    child.end()
    has_userfaultfds(witness, 1)
    wpfs.kill9()
    wpfs.restart()
    assert 9 in report.dirty(wpfs, "t/untracked")


def test_a_raw_child_that_is_born_while_no_daemon_was_there(wpfs):
    """Beside one that the witness has already."""
    program, child = raw_child(wpfs)
    wpfs.kill9()
    other = Child(wpfs, program, wpfs.restart, how="raw")
    has_userfaultfds(program.witness, 3)
    wpfs.kill9()
    wpfs.restart()
    assert other.order("load 0 3") == 4 and child.order("load 0 4") == 5
    other.end()
    child.end()


def test_a_raw_child_and_a_daemon_that_is_killed_and_its_program(wpfs):
    """The witness has what both need."""
    program, child = raw_child(wpfs)
    wpfs.kill9()
    program.kill9()
    wpfs.restart()
    assert loaded(child) == as_filled()
    child.order("store 0 9 1")
    assert 9 in report.dirty(wpfs, "t/untracked")
    child.end()


@pytest.mark.parametrize("touches", [False, True], ids=["", "touches"])
@pytest.mark.parametrize("killed", [False, True], ids=["", "and its program"])
def test_a_raw_child_that_is_born_as_the_daemon_is_killed(wpfs, killed, touches):
    """Before its witness is told, so nobody has its userfaultfd: what it touches before there is another
    daemon is zeros, and nothing else; nobody else ever sees those."""
    wpfs.allow_log("had no userfaultfd")
    program = filled(wpfs)
    assert evict(wpfs) == 64
    wpfs.seam.pause("born")
    child = Child(wpfs, program, how="raw")
    wpfs.seam.wait_at("born")
    wpfs.kill9()
    wpfs.seam.go("born")
    changed = {"p5": 99} if touches else {}
    if touches:
        assert child.order("load 0 3") == 0
        child.order("store 0 5 99")
    if killed:
        program.kill9()
    wpfs.restart()
    assert loaded(child) == as_filled(**changed)
    assert "had no userfaultfd" in wpfs.read_log()
    child.order("store 0 9 1")
    assert 9 in report.dirty(wpfs, "t/untracked") and report.dirty(wpfs, "t") == set()
    assert "not tracked" in wpfs.wpctl("evict", wpfs.mnt, "/f", status=1).stderr
    child.end()
    if not killed:
        assert loaded(program) == as_filled(p9=1, **changed)
    assert evict(wpfs) == 64
    again = map_file(wpfs.spawn(harness.program("mapper"), name="again"), wpfs.mnt / "f")
    assert loaded(again) == as_filled(p9=1, **changed)


def born_as_it_is_killed(wpfs, program):
    """A raw child of a program whose userfaultfd nobody has, while no daemon is there."""
    wpfs.seam.pause("born")
    child = Child(wpfs, program, how="raw")
    wpfs.seam.wait_at("born")
    wpfs.kill9()
    wpfs.seam.go("born")
    return child


@pytest.mark.parametrize("goes", ["ends", "unmaps"])
def test_a_raw_child_that_is_gone_before_the_next_daemon(wpfs, goes):
    """What it has read as zeros nobody else does, though nobody is there to be found."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    child = born_as_it_is_killed(wpfs, program)
    assert child.order("load 0 3") == 0
    child.order("store 0 5 99")
    child.order("unmap 0")
    if goes == "ends":
        child.end()
    wpfs.restart()
    assert loaded(program) == as_filled(p5=99)
    assert evict(wpfs) == 64 and loaded(program) == as_filled(p5=99)
    if goes == "unmaps":
        child.end()


def test_a_raw_child_that_goes_on_while_its_pages_come_back(wpfs):
    """What it stores meanwhile stays, and zeros that it reads do not."""
    wpfs.allow_log("had no userfaultfd")
    program = filled(wpfs)
    assert evict(wpfs) == 64
    child = born_as_it_is_killed(wpfs, program)
    wpfs.seam.pause("read")
    starting = threading.Thread(target=wpfs.restart)
    starting.start()
    wpfs.seam.wait_at("read")
    child.order("store 0 5 99")
    assert child.order("load 0 6") == 0 and child.order("load 0 60") == 0
    wpfs.seam.go("read")
    starting.join(harness.SECONDS)
    assert not starting.is_alive()
    assert loaded(child) == as_filled(p5=99) and loaded(program) == as_filled(p5=99)
    child.end()


def test_a_page_that_is_made_zeros_as_it_comes_back(wpfs):
    """It is in memory, nothing says so yet, and the daemon is killed: those zeros are a program's."""
    program = filled(wpfs)
    other = map_file(wpfs.spawn(harness.program("mapper"), name="other"), wpfs.mnt / "f")
    assert evict(wpfs) == 64
    wpfs.seam.pause("filled")
    program.send("load 0 3")
    wpfs.seam.wait_at("filled")
    other.order("store 0 3 0")
    wpfs.kill9()
    wpfs.seam.go("filled")
    wpfs.restart()
    assert program.read() == "ok 0"
    assert loaded(program) == as_filled(p3=0) and loaded(other) == as_filled(p3=0)


def test_a_raw_child_that_maps_otherwise_than_its_program(wpfs):
    """What a page is that it asks for, the next daemon has from it."""
    program, child = raw_child(wpfs)
    program.order("unmap 0")
    wpfs.kill9()
    ask_meanwhile(child, "load 0 3")
    wpfs.restart()
    assert child.read() == "ok 4"
    assert loaded(child) == as_filled()
    child.end()


def test_a_witness_keeps_no_userfaultfd_of_who_has_its_own(wpfs):
    """Nor of a child that has ended."""
    program = mapped(wpfs)
    (witness,) = proc.children(program.pid)
    has_userfaultfds(witness, 1)
    raw = Child(wpfs, program, how="raw")
    has_userfaultfds(witness, 2)
    child = Child(wpfs, program)
    child.order("store 0 3 1")
    raw.end()
    has_userfaultfds(witness, 1)
    assert report.dirty(wpfs, f"t/{child.pid}") == {3}
    child.end()


READ_INTO = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
other = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECT)
for page in range(len(view) // 4096):
    view[page * 4096] = (page + 1) % 256
print("mapped", flush=True)
for line in sys.stdin:
    os.preadv(other, [memoryview(view)[5 * 4096:6 * 4096]], 0)
    print([view[page * 4096] for page in range(64)], flush=True)
"""


def test_evict_during_a_read_into_a_mapping(wpfs):
    """read(2) of a file of the mount goes right into pages that a program maps, as direct I/O does:
    they do not leave before it has ended, however long it waits for the store."""
    (wpfs.mnt / "g").write_bytes(b"g" * PAGE)
    wpfs.wpctl("evict", wpfs.mnt, "/g")
    (wpfs.mnt / "f").write_bytes(bytes(64 * PAGE))
    program = wpfs.spawn("/usr/bin/python3", "-c", READ_INTO, wpfs.mnt / "f", wpfs.mnt / "g")
    assert program.read() == "mapped"
    wpfs.seam.pause("asked")
    program.send("")
    wpfs.seam.wait_at("asked")
    told = ended(evict_meanwhile(wpfs), None)
    wpfs.seam.go("asked")
    assert program.read() == str(as_filled(p5=ord("g"))), told
    assert evict(wpfs) == 64
    program.send("")
    assert program.read() == str(as_filled(p5=ord("g")))


READ_ROUND = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
for _ in range(6):
    for page in range(64, len(view) // 4096):
        assert view[page * 4096] == (page + 1) % 256
"""


def test_pressure_during_a_read_into_a_mapping(make_wpfs):
    """The same where pages leave by themselves."""
    wpfs = make_wpfs("store", ["resident=8M", "settle=0", "flush=0"], start=False)
    wpfs.seam = Seam(wpfs)
    wpfs.start()
    (wpfs.mnt / "g").write_bytes(b"g" * PAGE)
    wpfs.wpctl("evict", wpfs.mnt, "/g")
    (wpfs.mnt / "f").write_bytes(bytes(12 << 20))
    program = wpfs.spawn("/usr/bin/python3", "-c", READ_INTO, wpfs.mnt / "f", wpfs.mnt / "g")
    assert program.read() == "mapped"
    wpfs.seam.pause("reading")
    program.send("")
    wpfs.seam.wait_at("reading")
    done = wpfs.run("/usr/bin/python3", "-c", READ_ROUND, wpfs.mnt / "f", name="other")
    assert done.returncode == 0, done.stderr
    wpfs.seam.go("reading")
    assert program.read() == str(as_filled(p5=ord("g")))


def mtime(wpfs):
    return os.stat(wpfs.mnt / "f").st_mtime_ns


@pytest.mark.parametrize("step", ("saved", "punched"))
def test_times_set_during_an_eviction(wpfs, step):
    """What utimensat(2) sets stays, whatever the eviction puts back."""
    filled(wpfs)
    wpfs.seam.pause(step)
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at(step)
    os.utime(wpfs.mnt / "f", ns=(10**18, 10**18))
    assert mtime(wpfs) == 10**18
    wpfs.seam.go(step)
    ended(evicting)
    assert mtime(wpfs) == 10**18


def copies_of_lower(wpfs, name):
    """Of the one struct file that the daemon has, and whoever maps the file was given."""
    copies = []
    for fd in os.listdir(f"/proc/{wpfs.pid}/fd"):
        try:
            if not os.readlink(f"/proc/{wpfs.pid}/fd/{fd}").endswith(f"/{name}"):
                continue
        except FileNotFoundError:
            continue
        copy = libc.syscall(SYS_PIDFD_GETFD, wpfs.pidfd, int(fd), 0)
        assert copy >= 0, os.strerror(ctypes.get_errno())
        if fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            copies.append(copy)
        else:
            os.close(copy)
    assert copies
    return copies


def test_cut_under_an_eviction(wpfs):
    """A program may have the lower file's descriptor: that it cuts the file costs its own pages
    and nobody else's mount."""
    filled(wpfs)
    wpfs.seam.pause("looked")
    evicting = evict_meanwhile(wpfs)
    wpfs.seam.wait_at("looked")
    for copy in copies_of_lower(wpfs, "f"):
        os.ftruncate(copy, 0)
        os.close(copy)
    wpfs.seam.go("looked")
    _, err = evicting.communicate(timeout=harness.SECONDS)
    assert evicting.returncode == 1 and "Input/output error" in err
    assert wpfs.wpctl_json("status")["spilled"] == 0
    (wpfs.mnt / "g").write_bytes(b"goes on")
    assert (wpfs.mnt / "g").read_bytes() == b"goes on"


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_times_set_during_a_refault(wpfs, step):
    program = filled(wpfs)
    assert evict(wpfs) == 64
    wpfs.seam.pause(step)
    program.send("load 0 5")
    wpfs.seam.wait_at(step)
    os.utime(wpfs.mnt / "f", ns=(10**18, 10**18))
    assert mtime(wpfs) == 10**18
    wpfs.seam.go(step)
    assert program.read() == "ok 6"
    assert mtime(wpfs) == 10**18


@pytest.mark.parametrize("step", LOAD_STEPS)
def test_write_during_a_refault(wpfs, step):
    """The file was changed then, and its time says so; a refault alone does not change it."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    os.utime(wpfs.mnt / "f", ns=(10**18, 10**18))
    wpfs.seam.pause(step)
    program.send("load 0 5")
    wpfs.seam.wait_at(step)
    assert mtime(wpfs) == 10**18
    file = os.open(wpfs.mnt / "f", os.O_WRONLY)  # which can not be mapped
    os.pwrite(file, b"x", 64 * PAGE)
    os.close(file)
    assert mtime(wpfs) > 10**18
    wpfs.seam.go(step)
    assert program.read() == "ok 6"
    assert mtime(wpfs) > 10**18


def test_fsync_during_a_refault(wpfs):
    """What a commit stores of the times is what the user sees."""
    program = filled(wpfs)
    os.utime(wpfs.mnt / "f", ns=(10**18, 10**18))
    assert evict(wpfs) == 64
    wpfs.seam.pause("filled")
    program.send("load 0 5")
    wpfs.seam.wait_at("filled")
    os.chmod(wpfs.mnt / "f", 0o600)
    directory = os.open(wpfs.mnt, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    db = sqlite3.connect(f"{wpfs.store}/wpfs.db", isolation_level=None)
    assert db.execute("SELECT mtime_ns FROM inode JOIN dirent USING (id) "
                      "WHERE name = CAST('f' AS BLOB)").fetchall() == [(10**18,)]
    db.close()
    wpfs.seam.go("filled")
    assert program.read() == "ok 6"


def test_the_one_struct_file_with_o_append(wpfs):
    """Whoever maps the file has it too and may set the flag: pages come back to where they were, and
    what others write goes where they write it."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    for copy in copies_of_lower(wpfs, "f"):
        fcntl.fcntl(copy, fcntl.F_SETFL, fcntl.fcntl(copy, fcntl.F_GETFL) | os.O_APPEND)
        os.close(copy)
    assert loaded(program) == as_filled()
    assert os.stat(wpfs.mnt / "f").st_size == 64 * PAGE
    assert evict(wpfs) == 64 and loaded(program) == as_filled()
    for copy in copies_of_lower(wpfs, "f"):
        fcntl.fcntl(copy, fcntl.F_SETFL, fcntl.fcntl(copy, fcntl.F_GETFL) | os.O_APPEND)
        os.close(copy)
    with open(wpfs.mnt / "f", "r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), bytes([77]), 5 * PAGE) == 1
    assert loaded(program) == as_filled(p5=77)
    assert os.stat(wpfs.mnt / "f").st_size == 64 * PAGE


def test_o_append_that_is_set_all_the_time(wpfs):
    """Nor does anything go to the end if that is between a look at the flag and the write."""
    filled(wpfs)
    copies = copies_of_lower(wpfs, "f")
    over = threading.Event()

    def set_it():
        while not over.is_set():
            for copy in copies:
                fcntl.fcntl(copy, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)

    thread = threading.Thread(target=set_it)
    thread.start()
    try:
        with direct_file(wpfs.mnt / "f") as fd:
            for turn in range(2000):
                assert os.pwrite(fd, bytes([turn % 256]), 5 * PAGE) == 1
                assert os.fstat(fd).st_size == 64 * PAGE
                assert os.pread(fd, 1, 5 * PAGE) == bytes([turn % 256])
    finally:
        over.set()
        thread.join()
        for copy in copies:
            os.close(copy)


def test_killed_while_contents_are_removed(wpfs):
    """What madvise(2) is about to take out is gone, daemon and program are killed: its pages are
    dirty."""
    program = filled(wpfs)
    assert evict(wpfs) == 64  # so it is the daemon that takes them out
    wpfs.seam.pause("removed")
    program.send("advise 0 8 4 remove")
    wpfs.seam.wait_at("removed")
    os.kill(program.pid, signal.SIGSTOP)  # so that it cannot count what nobody answered
    wpfs.kill9()
    program.kill9()
    wpfs.seam.go("removed")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == set(range(8, 12))
    again = map_file(wpfs.spawn(harness.program("mapper"), name="again"), wpfs.mnt / "f")
    assert loaded(again) == as_filled(p8=0, p9=0, p10=0, p11=0)


@pytest.mark.parametrize("size", [0, PAGE])
def test_killed_when_nothing_was_known_of_a_file_yet(wpfs, size):
    """The daemon had made the file with the bits of another one, and no more."""
    program = filled(wpfs)
    assert evict(wpfs) == 64
    wpfs.kill9()
    bits = harness.RUN_DIR / wpfs.id / "private/spilled/123456789"
    bits.write_bytes(bytes(size))
    wpfs.restart()
    assert loaded(program) == as_filled() and not bits.exists()
    assert report.marked(wpfs, "t") == ALL


CAPABILITIES = [(0x02000001).to_bytes(4, "little") + one.to_bytes(4, "little") + bytes(12)
                for one in (0x400, 0x800)]


class InRequest:
    """Looks whether a thread waits for an answer: for longer than a call has others before its own."""

    def __init__(self, thread):
        self.wchan, self.seen = f"/proc/self/task/{thread.native_id}/wchan", 0

    def __call__(self):
        try:
            with open(self.wchan, encoding="ascii") as wchan:
                self.seen = self.seen + 1 if "request_wait" in wchan.read() else 0
        except (FileNotFoundError, ProcessLookupError):
            return True  # it has ended, or does between open and read
        return self.seen > 20


@pytest.mark.parametrize("what,after", [("get", 0), ("list", 0), ("set", 1), ("remove", None),
                                        ("chown", None), ("write", None)])
def test_capabilities_during_a_refault(wpfs, what, after):
    """To move pages takes them away for a moment: nobody sees it, and nobody's change is undone."""
    path = wpfs.mnt / "f"
    program = filled(wpfs)
    assert evict(wpfs) == 64
    os.setxattr(path, "security.capability", CAPABILITIES[0])
    file = os.open(path, os.O_WRONLY)
    calls = {"get": lambda: os.getxattr(path, "security.capability"),
             "list": lambda: os.listxattr(path),
             "set": lambda: os.setxattr(path, "security.capability", CAPABILITIES[1]),
             "remove": lambda: os.removexattr(path, "security.capability"),
             "chown": lambda: os.chown(path, 1, 1),
             "write": lambda: os.pwrite(file, b"x", 70 * PAGE)}
    result = []

    def call():
        try:
            result.append(calls[what]())
        except OSError as error:
            result.append(error)

    wpfs.seam.pause("filled")
    program.send("load 0 3")
    wpfs.seam.wait_at("filled")
    thread = threading.Thread(target=call)
    thread.start()
    in_request = InRequest(thread)
    proc.wait_for(lambda: result or in_request(), harness.SECONDS, "the request")
    wpfs.seam.go("filled")
    thread.join(harness.SECONDS)
    os.close(file)
    assert program.read() == "ok 4"
    assert result == [{"get": CAPABILITIES[0], "list": ["security.capability"], "write": 1}.get(what)]
    if after is None:
        assert "security.capability" not in os.listxattr(path)
    else:
        assert os.getxattr(path, "security.capability") == CAPABILITIES[after]


def test_an_eviction_while_a_truncate_waits(wpfs):
    """It lets it go before, but not for as long as that takes: it may wait for just this room."""
    program = filled(wpfs)
    wpfs.seam.pause("coming")
    thread = threading.Thread(target=lambda: os.truncate(wpfs.mnt / "f", 60 * PAGE))
    thread.start()
    wpfs.seam.wait_at("coming")
    assert ended(evict_meanwhile(wpfs)) is not None
    wpfs.seam.go("coming")
    thread.join(harness.SECONDS)
    assert not thread.is_alive()
    assert [program.order(f"load 0 {page}") for page in range(60)] == as_filled()[:60]


def test_a_truncate_while_pages_come_back_all_the_time(wpfs):
    """Those that are being read are waited for, and others begin after it only."""
    program = filled(wpfs)
    other = map_file(wpfs.spawn(harness.program("mapper"), name="other"), wpfs.mnt / "f")
    assert evict(wpfs) == 64
    wpfs.seam.pause("asked")
    program.send("load 0 3")
    wpfs.seam.wait_at("asked")
    wpfs.seam.pause("coming")
    thread = threading.Thread(target=lambda: os.truncate(wpfs.mnt / "f", 60 * PAGE))
    thread.start()
    wpfs.seam.wait_at("coming")
    wpfs.seam.go("coming")
    before = wpfs.wpctl_json("status")["faults"]
    other.send("load 0 20")
    proc.wait_for(lambda: wpfs.wpctl_json("status")["faults"] > before, harness.SECONDS, "the fault")
    wpfs.seam.pause("read", 1)
    wpfs.seam.go("asked")
    thread.join(harness.SECONDS)
    assert not thread.is_alive()
    assert program.read() == "ok 4"
    wpfs.seam.wait_at("read")
    wpfs.seam.go("read")
    assert other.read() == "ok 21"
    assert report.dirty(wpfs, "t") == set(range(60, 64))
