# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who owns a mark: wpfs's and the program's never mix, and what is left over stays nobody's."""

import os
import signal

import pytest

import harness
import pagemap
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, Child, killed, mapped
from test_children import in_call, trace

SENDMSG, IOCTL = 46, 16  # system calls of x86-64
UFFDIO_REGISTER = 0xc020aa00
LAST = {PAGES - 1, PAGES - 2}  # written all the time by two threads


@pytest.fixture(params=[False, True], ids=["alone", "writers"])
def writers(request):
    return request.param


def begun(wpfs, writers=False, **how):
    """A program that has mapped the file."""
    program = wpfs.spawn(harness.program("uffdorders"), name="t", **how)
    program.order(f"map {wpfs.mnt}/f {PAGES}")
    if writers:
        program.order("writers")
    program.order("uffd")
    return program


def marks(program):
    """Where the kernel has a mark, but for what the writers' pages are at the moment."""
    bits = program.ask("marks").removeprefix("ok ")
    return {page for page, bit in enumerate(bits) if bit == "1"} - LAST


def stored(program, pages):
    """Those of the pages whose store made a message."""
    return {page for page in pages if program.order(f"store {page}")}


def owned_all(wpfs):
    return report.marked(wpfs, "t", owner="program")


def owned(wpfs):
    return owned_all(wpfs) - LAST


def test_no_mark_of_wpfs_makes_a_message(wpfs, writers):
    program = begun(wpfs, writers, protect=True)
    assert marks(program) == set(range(PAGES)) - LAST, "not protected by wpfs"
    program.order("register 0 32")
    assert marks(program) == set(range(32, PAGES)) - LAST
    assert stored(program, range(0, 40)) == set()
    assert owned(wpfs) == set()
    assert report.dirty(wpfs, "t") >= set(range(40))
    program.order("protect 0 16")
    assert stored(program, range(8)) == set(range(8))
    assert owned(wpfs) == set(range(8, 16))
    assert report.marked(wpfs, "t") - LAST == set(range(40, PAGES)) - LAST


@pytest.mark.parametrize("protect", [False, True])
def test_the_next_run_gets_its_own_marks_only(wpfs, writers, protect):
    """Of the run before, half was protected by wpfs and half by the program."""
    program = begun(wpfs, writers, protect=True)
    program.order("register 0 32")
    program.order("protect 0 16")
    assert stored(program, [3]) == {3}
    program.kill9()
    again = begun(wpfs, writers, protect=protect)
    again.order("register 0 48")
    assert marks(again) & set(range(48)) == set(range(16)) - {3}
    assert stored(again, range(PAGES - 2)) == set(range(16)) - {3}


def test_registered_twice_arms_nothing_again(wpfs, writers):
    begun(wpfs, writers).order("register 0 16")
    program = wpfs.programs[-1]
    program.order("protect 0 16")
    program.kill9()
    again = begun(wpfs, writers)
    again.order("register 0 16")
    assert stored(again, range(8)) == set(range(8))
    again.order("unregister 0 16")
    again.order("register 0 16")
    assert marks(again) == set(), "given up by the program, and armed again"
    assert stored(again, range(16)) == set()
    again.kill9()
    third = begun(wpfs, writers)
    third.order("register 0 16")
    assert marks(third) == set()


@pytest.mark.parametrize("what", ["anon", "private /f", "shared /other", "shared /f"])
def test_leftovers(wpfs, writers, what):
    """Where something else stands now the marks are gone; those around it are not."""
    kind, _, path = what.partition(" ")
    program = begun(wpfs, writers)
    program.order("register 0 32")
    program.order("protect 0 32")
    assert owned(wpfs) == set(range(32))
    program.order(f"over 8 8 {kind} {wpfs.mnt}{path}" if path else f"over 8 8 {kind}")
    left = set(range(32)) - set(range(8, 16))
    assert marks(program) == left
    assert stored(program, range(8, 16)) == set()
    assert owned(wpfs) == left
    # The file again, where the marks were: it is a new mapping.
    program.order(f"over 8 8 shared {wpfs.mnt}/f")
    program.order("register 8 8")
    assert marks(program) == left
    program.kill9()
    assert owned(wpfs) == left
    again = begun(wpfs, writers)
    again.order("register 0 32")
    assert marks(again) == left


@pytest.mark.parametrize("what", ["anon", "private /f", "shared /other"])
def test_another_mapping_is_not_given_the_marks(wpfs, what):
    """In the next run, before it registers: only the same file at its place is armed."""
    kind, _, path = what.partition(" ")
    program = begun(wpfs)
    program.order("register 0 32")
    program.order("protect 0 32")
    program.kill9()
    again = begun(wpfs)
    again.order(f"over 8 8 {kind} {wpfs.mnt}{path}" if path else f"over 8 8 {kind}")
    again.order("register 0 32")
    assert marks(again) == set(range(32)) - set(range(8, 16))
    assert stored(again, range(8, 16)) == set()


def test_a_raw_register_is_refused_where_wpfs_has_armed(wpfs, writers):
    program = begun(wpfs, writers, protect=True)
    assert program.ask("raw_register 0 32") == "EBUSY"
    assert program.ask("raw_register 0 32") == "EBUSY"
    assert marks(program) == set(range(PAGES)) - LAST
    assert report.dirty(wpfs, "t") <= LAST
    program.order("register 0 32")
    assert marks(program) & set(range(32)) == set()


def test_a_confined_program(wpfs, writers):
    """Under a filter that kills for what the shim would do: its uffd works, its close lets go."""
    program = begun(wpfs, writers)
    program.order("register 0 32")
    program.order("protect 0 32")
    program.order("confine")
    assert stored(program, range(4)) == set(range(4))
    program.order("unregister 16 16")
    program.order("register 16 8")
    program.order("protect 16 8")
    assert stored(program, [16]) == {16}
    assert owned(wpfs) >= set(range(4, 16)), "not read"
    program.order("close")
    assert stored(program, range(32)) == set(), "waits for nobody"
    assert owned(wpfs) == set()


def test_a_confined_program_is_killed(wpfs):
    program = begun(wpfs)
    program.order("register 0 32")
    program.order("protect 0 32")
    program.order("confine")
    assert stored(program, range(4)) == set(range(4))
    program.kill9()
    assert owned(wpfs) == set(range(4, 32))


def test_a_fork_child_with_a_uffd_of_its_own(wpfs):
    """It has mapped nothing itself; its marks are kept like those of any program."""
    program = begun(wpfs)
    child = program.order("fork")
    program.order("uffd")
    program.order("register 0 16")
    program.order("protect 0 16")
    assert stored(program, [2]) == {2}
    mms = wpfs.wpctl_json("marks")["mms"]
    marked = [report.pages_of(mm, owner="program") for mm in mms if mm["pid"] == child]
    assert [set(pages) for pages in marked] == [set(range(16)) - {2}]
    os.kill(child, 9)


def test_the_daemon_dies_and_comes_back(wpfs, writers):
    """Meanwhile the program is served by its own thread, and closing lets its writers go."""
    program = begun(wpfs, writers)
    program.order("register 0 32")
    program.order("protect 0 32")
    wpfs.kill9()
    assert stored(program, range(4)) == set(range(4))
    wpfs.restart()
    assert owned(wpfs) == set(range(4, 32))
    program.kill9()
    assert owned(wpfs) == set(range(4, 32)), "the new daemon has no copy of its uffd"


def test_closed_while_there_is_no_daemon(wpfs, writers):
    program = begun(wpfs, writers)
    program.order("register 0 32")
    program.order("protect 0 32")
    wpfs.kill9()
    program.order("close")
    assert stored(program, range(32)) == set()
    wpfs.restart()
    assert owned(wpfs) == set()


def marked_past_wpfs(wpfs, order, before=None):
    """What is dirty after a store, and marks that the program puts where it registered nothing."""
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {PAGES * PAGE}")
    program.order(f"map 1 1 0 {PAGES * PAGE}")
    uffd = program.order("uffd 1 0 16")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f")
    program.order("store 0 4 1")
    if before:
        program.order(before)
    program.order(order.format(uffd))
    return program, report.dirty(wpfs, "t")


@pytest.mark.parametrize("order", ["wp {} 0 4 1 on", "wp {} 0 0 64 on"])
def test_marks_put_where_nothing_was_registered(wpfs, order):
    """The kernel lets any userfaultfd of the mm do it: what was written must not look clean."""
    program, dirty = marked_past_wpfs(wpfs, order)
    assert dirty == ALL
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f")
    program.order("store 0 5 1")
    assert killed(wpfs, program) == {5}


@pytest.mark.parametrize("order", ["wp {} 0 4 1 off", "wp {} 1 0 16 on", "wp {} 1 3 2 off"])
def test_marks_put_where_they_may_be_leave_others_exact(wpfs, order):
    program, dirty = marked_past_wpfs(wpfs, order)
    assert dirty == {4}
    assert killed(wpfs, program) == {4}


def test_marks_put_under_a_filter(wpfs):
    program, dirty = marked_past_wpfs(wpfs, "wp {} 0 4 1 on", "seccomp")
    assert dirty == ALL
    assert killed(wpfs, program) == ALL


def test_marks_put_after_the_registration_was_lost(wpfs):
    """A mapping that moved without EVENT_REMAP is nobody's, until wpfs arms it."""
    program = mapped(wpfs)
    uffd = program.order(f"uffd 0 0 {PAGES}")
    program.order("move 0")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f")
    program.order("store 0 4 1")
    program.order(f"wp {uffd} 0 4 1 on")
    assert report.dirty(wpfs, "t") >= {4}, "written, and marked past wpfs"
    assert killed(wpfs, program) >= {4}


def test_a_childs_userfaultfd_is_unregistered(wpfs):
    """By its parent, to which the fork event gave it: at these addresses the parent has marks too."""
    program = mapped(wpfs, protect=False)
    uffd = program.order(f"uffd 0 0 {PAGES} fork")
    program.order("store 0 3 1")
    child = Child(wpfs, program)
    (its,) = set(proc.descriptors(program.pid, "userfaultfd")) - {uffd}
    program.order(f"unreg {its} 0 0 32")
    assert pagemap.marked(child.pid, program.addr, PAGES) == set(range(32, PAGES))
    assert owned(wpfs) == ALL - {3} - LAST
    program.order("store 0 4 1")
    child.end()
    program.kill9()
    assert owned(wpfs) == ALL - {3, 4} - LAST


def test_a_childs_userfaultfd_is_registered(wpfs):
    """What its parent has from an earlier run, or wpfs protects in it, is nothing of the child's."""
    program = mapped(wpfs, protect=False)
    program.order("uffd 0 0 8")
    program.kill9()
    program = mapped(wpfs, protect=False)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    uffd = program.order("uffd 0 16 8 fork")
    child = Child(wpfs, program)
    (its,) = set(proc.descriptors(program.pid, "userfaultfd")) - {uffd}
    before = pagemap.marked(child.pid, program.addr, PAGES)
    program.ask(f"reg {its} 0 0 8")
    assert pagemap.marked(child.pid, program.addr, PAGES) == before
    program.order("store 0 60 1")
    assert report.dirty(wpfs, "t") == set(range(16, 24)) | {60}
    child.end()


def test_marks_put_in_a_child_that_inherited_no_registration(wpfs):
    program = mapped(wpfs, protect=False)
    program.order(f"uffd 0 0 {PAGES}")
    child = Child(wpfs, program)
    child.order(f"open 1 {wpfs.mnt}/g")
    child.order(f"size 1 {PAGES * PAGE}")
    child.order(f"map 1 1 0 {PAGES * PAGE}")
    uffd = child.order("uffd 1 0 16")
    name, = (mm["name"] for mm in wpfs.wpctl_json("ps")["mms"] if mm["pid"] == child.pid)
    wpfs.wpctl("protect", wpfs.mnt, "--name", name, "--file", "/f")
    child.order("store 0 4 1")
    child.order(f"wp {uffd} 0 4 1 on")
    assert report.dirty(wpfs, name) >= {4}, "written, and marked past wpfs"
    child.close()


@pytest.mark.parametrize("looked", [False, True], ids=["", "looked"])
@pytest.mark.parametrize("end", ["uclose {}", "unreg {} 0 0 8"])
@pytest.mark.parametrize("protect", [False, True], ids=["tracked", "protected"])
def test_marks_that_are_gone_are_not_given_to_another_one(wpfs, protect, end, looked):
    """Of the same run: who registers anew has no marks but those it makes."""
    program = mapped(wpfs, protect=protect)
    program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
    first = program.order("uffd 0 0 8")
    wpfs.wpctl("sync", wpfs.mnt)
    program.order(end.format(first))
    if looked:
        wpfs.wpctl("sync", wpfs.mnt)
    second = program.order("uffd 1 0 1")
    program.order(f"reg {second} 0 0 8")
    assert pagemap.marked(program.pid, program.addr, 8) == set()
    killed(wpfs, program)
    assert report.marked(wpfs, "t", owner="program") == {8}


@pytest.mark.parametrize("protect", [False, True], ids=["tracked", "protected"])
def test_a_look_between_unregister_and_its_message(wpfs, protect):
    """wpfs takes the range just then, and gives it back to whom it is asked for by."""
    program = mapped(wpfs, protect=protect)
    uffd = program.order(f"uffd 0 0 {PAGES}")
    strace = trace(program, "trace=sendmsg", "inject=sendmsg:delay_enter=100s")
    program.send(f"unreg {uffd} 0 0 {PAGES}")
    proc.wait_for(lambda: in_call(program.pid, SENDMSG), harness.SECONDS, "the message")
    wpfs.wpctl("sync", wpfs.mnt)
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    wpfs.wpctl("sync", wpfs.mnt)
    program.order(f"reg {uffd} 0 0 {PAGES}")
    assert pagemap.marked(program.pid, program.addr, PAGES) == set()


def begun_by_mapper(wpfs):
    program = mapped(wpfs, protect=False)
    program.order(f"uffd 0 0 {PAGES}")
    return program


def in_register(pid):
    with open(f"/proc/{pid}/syscall", encoding="ascii") as call:
        return call.read().split()[:3:2] == [str(IOCTL), hex(UFFDIO_REGISTER)]


def test_marks_that_come_too_late(wpfs):
    """The daemon stands still after a REGISTER until nobody waits for it any more: what is stored from
    then on is not marked."""
    killed(wpfs, begun_by_mapper(wpfs))
    program = mapped(wpfs, protect=False)
    uffd = program.order(f"uffd 0 {PAGES - 1} 1")
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(f"reg {uffd} 0 0 {PAGES}")
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    proc.stop(wpfs.pid)
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    assert "its daemon does not answer" in program.stderr()
    program.order("store 0 5 1")
    os.kill(wpfs.pid, signal.SIGCONT)
    assert 5 not in report.marked(wpfs, "t", owner="program")
