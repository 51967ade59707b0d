# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A program with a userfaultfd of its own runs again. What it had marked is marked when it registers,
but for what it has stored to before.
"""

import errno
import os
import signal

import pytest

import harness
import pagemap
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, Child, mapped
from seam import Seam
from test_own_marks import begun_by_mapper, in_register, owned_all
from test_children import in_call, trace

LAST = PAGES - 1  # where the program's userfaultfd is made


def ran_before(wpfs, *stored):
    """A run that had marked all, and stored to some."""
    program = begun_by_mapper(wpfs)
    for page in stored:
        program.order(f"store 0 {page} 1")
    program.kill9()


def given(program):
    """The marks that it finds when it registers."""
    uffd = program.order(f"uffd 0 {LAST} 1")
    program.order(f"reg {uffd} 0 0 {PAGES}")
    return pagemap.marked(program.pid, program.addr, LAST)


def check(wpfs, program, marks):
    """What is marked is known, also after its end, and to the next run."""
    assert owned_all(wpfs) - {LAST} == marks
    program.kill9()
    assert owned_all(wpfs) - {LAST} == marks
    assert given(mapped(wpfs, protect=False)) == marks


# A look by chance at what was done without a word would, rightly, count more as written.
NO_HARVEST = "harvest=0"


@pytest.fixture(params=[[], ["resident=64M"]], ids=["native", "capped"])
def mount(request, make_wpfs):
    return make_wpfs(store=True, options=[NO_HARVEST, *request.param])


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs(options=[NO_HARVEST])


def advised(program, what):
    program.order("store 0 5 1")
    program.order(f"advise 0 5 1 {what}")


def through_another_mapping(program):
    program.order(f"map 1 0 0 {PAGES * PAGE}")
    program.order("store 1 5 1")
    program.order("unmap 1")


def mapped_anew(program):
    program.order("store 0 5 1")
    program.order("unmap 0")
    program.addr = program.order(f"map 0 0 0 {PAGES * PAGE}")


def moved(program):
    program.order("store 0 5 1")
    program.addr = program.order("move 0")


STORES = {
    "a store": lambda program: program.order("store 0 5 1"),
    "protected": lambda program: program.order("store 0 5 1"),
    "dropped": lambda program: advised(program, "dontneed"),
    "paged out": lambda program: advised(program, "pageout"),
    "of the kernel": lambda program: program.order("kstore 0 5"),
    "another mapping": through_another_mapping,
    "mapped anew": mapped_anew,
    "moved": moved,
}


@pytest.mark.parametrize("how", STORES)
def test_stored_before_it_registers(mount, how):
    ran_before(mount, 3)
    program = mapped(mount, protect=how == "protected")
    STORES[how](program)
    marks = ALL - {3, 5, LAST}
    assert given(program) == marks
    check(mount, program, marks)


def test_stored_and_never_registered(mount):
    ran_before(mount, 3)
    program = mapped(mount, protect=False)
    program.order("store 0 5 1")
    program.kill9()
    assert given(mapped(mount, protect=False)) == ALL - {3, 5, LAST}


def test_protected_before_it_registers(mount):
    """An epoch of wpfs's begins in between."""
    ran_before(mount, 3)
    program = mapped(mount, protect=False)
    program.order("store 0 5 1")
    mount.wpctl("protect", mount.mnt, "--name", "t")
    program.order("store 0 6 1")
    marks = ALL - {3, 5, 6, LAST}
    assert given(program) == marks
    check(mount, program, marks)


def test_the_daemon_is_killed_before_it_registers(mount):
    ran_before(mount, 3)
    program = mapped(mount, protect=False)
    program.order("store 0 5 1")
    mount.kill9()
    program.send("store 0 6 1")  # on a capped mount it waits for the next daemon
    mount.restart()
    assert program.read() == "ok 0"
    program.order("store 0 7 1")
    marks = ALL - {3, 5, 6, 7, LAST}
    assert given(program) == marks
    check(mount, program, marks)


NANOSLEEP = 35  # system call of x86-64


@pytest.mark.parametrize("protect", [False, True], ids=["tracked", "protected"])
def test_registers_while_there_is_no_daemon(wpfs, protect):
    """Which alone can make wpfs give way: it waits for the next one."""
    ran_before(wpfs, 3)
    program = mapped(wpfs, protect=protect)
    program.order("store 0 5 1")
    wpfs.kill9()
    program.send(f"uffd 0 8 {PAGES - 8}")
    proc.wait_for(lambda: in_call(program.pid, NANOSLEEP), harness.SECONDS, "it waits")
    os.kill(program.pid, signal.SIGSTOP)  # it does not count how long the start takes
    wpfs.restart()
    os.kill(program.pid, signal.SIGCONT)
    assert program.read().startswith("ok ")
    program.order("store 0 9 1")
    assert owned_all(wpfs) == ALL - set(range(8)) - {9}
    program.kill9()
    assert owned_all(wpfs) - {*range(8, PAGES)} <= ALL - {3, 5}


def test_mapped_by_a_raw_system_call(wpfs):
    """Nobody was told of it, so what it shows is not believed."""
    ran_before(wpfs, 3)
    program = mapped(wpfs, protect=False)
    program.order(f"map 1 0 0 {16 * PAGE} raw")
    program.order("store 1 5 1")
    marks = ALL - set(range(16)) - {LAST}
    assert given(program) == marks
    program.order("rawunmap 1")
    check(wpfs, program, marks)


def test_a_child_of_a_program_that_has_not_registered(wpfs):
    """What it stores is its own."""
    ran_before(wpfs, 3)
    program = mapped(wpfs, protect=False)
    child = Child(wpfs, program)
    child.order("store 0 5 1")
    child.end()
    program.order("store 0 6 1")
    assert given(program) == ALL - {3, 6, LAST}


def test_what_it_carries_is_no_mark_of_wpfs(wpfs):
    ran_before(wpfs, 3)
    program = mapped(wpfs, protect=False)
    program.order("store 0 5 1")
    wpfs.wpctl("sync", wpfs.mnt)
    assert report.marked(wpfs, "t") == set() and report.dirty(wpfs, "t") == set()
    assert report.dirty(wpfs, "t", owner="program") == {5}


def test_a_second_mapping_of_what_it_has_marked(wpfs):
    """In the same run: a mapping that is registered later has no marks, as on tmpfs."""
    program = begun_by_mapper(wpfs)
    addr = program.order(f"map 1 0 0 {PAGES * PAGE}")
    uffd = program.order(f"uffd 1 {LAST} 1")
    program.order(f"reg {uffd} 1 0 {PAGES}")
    assert pagemap.marked(program.pid, addr, LAST) == set()
    program.order("store 1 5 1")
    assert pagemap.marked(program.pid, program.addr, PAGES) == ALL


# ---- other threads, while it registers

def store(program, page):
    """As another thread would; the kernel does it here."""
    with open(f"/proc/{program.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(program.addr + page * PAGE)
        assert memory.write(b"\1") == 1


def load(program, page):
    with open(f"/proc/{program.pid}/mem", "rb", buffering=0) as memory:
        memory.seek(program.addr + page * PAGE)
        assert memory.read(1)


def registering(wpfs):
    """A run that registers, once the daemon is there again."""
    program = mapped(wpfs, protect=False)
    program.order("load 0 20")
    uffd = program.order(f"uffd 0 {LAST} 1")
    return program, f"reg {uffd} 0 0 {PAGES}"


def test_a_store_between_the_question_and_the_call(wpfs):
    """To pages that the program had read, or reads then, or has not touched."""
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(order)
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    load(program, 9)
    for page in (9, 20, 30):
        store(program, page)
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    assert not pagemap.marked(program.pid, program.addr, LAST) & {3, 9, 20, 30}
    assert not owned_all(wpfs) & {3, 9, 20, 30}


def test_a_look_between_the_question_and_the_call(wpfs):
    """wpfs watches no more, and the program not yet: nothing is lost by that, nor believed for long."""
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(order)
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    wpfs.wpctl("sync", wpfs.mnt)
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    marks = ALL - {3, 20, LAST}  # it had read page 20, and has two threads
    got = pagemap.marked(program.pid, program.addr, LAST)
    assert got <= marks, "a mark lies"
    assert len(got) > PAGES // 2, "marks are lost"
    check(wpfs, program, got)


def test_killed_between_the_question_and_the_call(wpfs):
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(order)
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    store(program, 9)
    os.kill(program.pid, signal.SIGKILL)
    strace.kill()
    strace.wait()
    program.popen.wait(harness.SECONDS)
    assert not owned_all(wpfs) & {3, 9}
    assert not given(mapped(wpfs, protect=False)) & {3, 9}


def test_read_and_stored_between_the_question_and_the_call(wpfs):
    """A store to a page that was read then changes nothing but the page."""
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(order)
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    load(program, 9)
    store(program, 9)
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    assert not pagemap.marked(program.pid, program.addr, LAST) & {3, 9}
    assert not owned_all(wpfs) & {3, 9}


def test_present_while_another_thread_runs(wpfs):
    """Whether that has stored to a page which was there before cannot be seen."""
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    program.order(order)
    assert not owned_all(wpfs) & {3, 20}


def test_registered_without_marks(make_wpfs):
    """Of such a REGISTER no other word comes: what is stored from then on is not marked."""
    wpfs = make_wpfs()
    ran_before(wpfs, 3)
    program = mapped(wpfs, protect=False)
    uffd = program.order(f"uffd 0 {LAST} 1")
    program.order(f"pwrite 0 {5 * PAGE} {PAGE} 1")  # its page is there
    program.order(f"reg {uffd} 0 0 {LAST} missing")
    program.order("store 0 5 1")
    wpfs.wpctl("sync", wpfs.mnt)
    assert 5 in report.dirty(wpfs, "t", owner="program")
    assert not owned_all(wpfs) & {3, 5}
    program.order("advise 0 5 1 dontneed")
    program.order(f"reg {uffd} 0 0 {PAGES}")
    assert not pagemap.marked(program.pid, program.addr, LAST) & {3, 5}
    assert not owned_all(wpfs) & {3, 5}


def test_stored_and_dropped_before_the_marks(make_wpfs):
    """By a thread of the program: nothing of it is in the page table."""
    wpfs = make_wpfs(start=False)
    seam = Seam(wpfs)
    wpfs.start()
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    seam.pause("rearming")
    program.send("beside 0 9")
    assert program.read() == "ok 0"
    program.send(order)
    seam.wait_at("rearming")
    os.kill(program.pid, signal.SIGUSR1)
    proc.wait_for(lambda: "beside" in program.stderr(), harness.SECONDS, "the thread's store")
    seam.go("rearming")
    assert program.read() == "ok 0"
    assert not pagemap.marked(program.pid, program.addr, LAST) & {3, 9}
    assert not owned_all(wpfs) & {3, 9}


@pytest.mark.parametrize("step", ["rearming", "rearmed"])
def test_a_store_before_the_marks(make_wpfs, step):
    wpfs = make_wpfs(start=False)
    seam = Seam(wpfs)
    wpfs.start()
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    seam.pause(step)
    program.send(order)
    seam.wait_at(step)
    load(program, 9)
    if step == "rearming":
        for page in (9, 20, 30):
            store(program, page)
    seam.go(step)
    assert program.read() == "ok 0"
    for page in (9, 20, 30):
        program.order(f"store 0 {page} 1")
    assert not owned_all(wpfs) & {3, 9, 20, 30}


@pytest.mark.parametrize("step", ["rearming", "rearmed"])
def test_marks_that_come_while_it_gives_up(make_wpfs, step):
    """Its 10 seconds end while the daemon puts the marks there: what it stores to then is not marked,
    and what it marks itself stays."""
    wpfs = make_wpfs(start=False)
    seam = Seam(wpfs)
    wpfs.start()
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    seam.pause(step)
    program.send(order)
    seam.wait_at(step)
    assert program.read() == "ok 0"
    assert "its daemon does not answer" in program.stderr()
    program.order("store 0 5 1")
    program.order(f"wp {order.split()[1]} 0 6 1 on")
    seam.go(step)
    assert 5 not in owned_all(wpfs)
    assert 6 in pagemap.marked(program.pid, program.addr, PAGES)
    assert wpfs.wpctl_json("status")["conservative"] > 0
    wpfs.kill9()
    wpfs.restart()
    assert 5 not in owned_all(wpfs)
    program.kill9()
    assert 5 not in owned_all(wpfs)
    assert 5 not in given(mapped(wpfs, protect=False))


def test_the_daemon_is_killed_before_marks_that_lie_are_gone(make_wpfs):
    """All is marked first, and what was stored to loses its mark then."""
    wpfs = make_wpfs(start=False)
    seam = Seam(wpfs)
    wpfs.start()
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    seam.pause("rearming")
    seam.pause("rearmed")
    program.send(order)
    seam.wait_at("rearming")
    store(program, 9)
    seam.go("rearming")
    seam.wait_at("rearmed")
    wpfs.kill9()
    seam.go("rearmed")
    wpfs.restart()
    assert program.read() == "ok 0"
    assert not owned_all(wpfs) & {3, 9}
    program.kill9()
    assert not owned_all(wpfs) & {3, 9}
    assert not given(mapped(wpfs, protect=False)) & {3, 9}


def test_marks_that_lie_cannot_be_taken_away(make_wpfs):
    wpfs = make_wpfs(start=False)
    seam = Seam(wpfs)
    wpfs.start()
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    seam.pause("rearming")
    seam.fail_once("disarm", errno.EAGAIN, 0)
    program.send(order)
    seam.wait_at("rearming")
    store(program, 9)
    seam.go("rearming")
    assert program.read() == "ok 0"
    assert seam.has_failed("disarm")
    assert not owned_all(wpfs) & {3, 9}
    wpfs.kill9()
    wpfs.restart()
    assert not owned_all(wpfs) & {3, 9}
    program.kill9()
    assert not owned_all(wpfs) & {3, 9}


def test_the_daemon_is_killed_while_it_registers_once_more(wpfs):
    """What its own userfaultfd has marked is not taken for a mark of wpfs."""
    program = mapped(wpfs)
    uffd = program.order(f"uffd 0 {LAST} 1 async")
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(f"reg {uffd} 0 0 32")
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    wpfs.kill9()
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    program.order("store 0 5 1")
    program.order(f"wp {uffd} 0 5 1 on")
    wpfs.restart()
    assert 5 not in report.marked(wpfs, "t")
    program.kill9()
    assert 5 not in report.marked(wpfs, "t")


def test_a_run_that_cannot_store(wpfs):
    """Its mapping can never be written: what the run before had marked stays marked."""
    ran_before(wpfs, 3)
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=False)
    program.order(f"open 0 {wpfs.mnt}/f ro")
    program.order(f"map 0 0 0 {PAGES * PAGE} ro")
    wpfs.wpctl("sync", wpfs.mnt)
    program.kill9()
    assert report.dirty(wpfs, "t", owner="program") == set()
    assert given(mapped(wpfs, protect=False)) == ALL - {3, LAST}


def test_the_daemon_is_killed_while_it_registers(wpfs):
    """After the question, before the call: nothing is marked, and nothing is believed that was."""
    ran_before(wpfs, 3)
    program, order = registering(wpfs)
    strace = trace(program, "trace=ioctl", "inject=ioctl:delay_enter=100s:when=2")
    program.send(order)
    proc.wait_for(lambda: in_register(program.pid), harness.SECONDS, "the call")
    wpfs.kill9()
    strace.kill()
    strace.wait()
    assert program.read() == "ok 0"
    program.order("store 0 5 1")
    wpfs.restart()
    assert not owned_all(wpfs) & {3, 5}
    program.kill9()
    assert not given(mapped(wpfs, protect=False)) & {3, 5}
