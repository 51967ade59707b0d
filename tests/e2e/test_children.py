# SPDX-License-Identifier: LGPL-2.1-or-later
"""No store of a fork child is lost, however it was born and whatever else has its name."""

import os
import signal

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, Child, mapped
from test_witness import lose_witness


def union(wpfs, name="t"):
    """Dirty in the mm of this name or in an instance of it: what a backup copies."""
    answer = wpfs.wpctl_json("dirty", "--name", name)
    return {page for mm in answer["mms"] for page in report.pages_of(mm)}


def test_as_many_pages_as_before_the_protection(wpfs):
    """It wrote other pages than its parent, but just as many: still something to keep."""
    program = mapped(wpfs)
    for page in (1, 2, 3):
        program.order(f"store 0 {page} 1")
    child = Child(wpfs, program)
    wpfs.wpctl("protect", wpfs.mnt)
    for page in (11, 12, 13):
        child.order(f"store 0 {page} 1")
    child.end()
    assert union(wpfs) == {11, 12, 13}


SAME_PID = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
os.ftruncate(fd, 64 * 4096)
view = mmap.mmap(fd, 64 * 4096)

def child(page, pid=0):
    for _ in range(500):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1) if pid else "0")
        got = os.fork()
        if got == 0:
            if not pid or os.getpid() == pid:
                view[page * 4096] = 1
            os._exit(0)
        os.waitpid(got, 0)
        if not pid or got == pid:
            return got
    sys.exit("the kernel never gave that pid again")

free = next(pid for pid in range(30000, 32000) if not os.path.exists(f"/proc/{pid}"))
first = child(10, free)
print(first, child(20, first))
"""


@pytest.mark.alone
def test_a_pid_again(wpfs):
    done = wpfs.run("/usr/bin/python3", "-c", SAME_PID, wpfs.mnt / "f", name="t", protect=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
    assert union(wpfs) == {10, 20}
    assert report.dirty(wpfs, f"t/{first}") == {10}
    assert report.dirty(wpfs, f"t/{first}.2") == {20}


def test_born_and_ended_while_the_daemon_is_dead(wpfs):
    """Nobody saw its stores: a row of its own says so, and its parent stays exact."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    child = Child(wpfs, program)
    child.order("store 0 33 1")
    child.end()
    wpfs.restart()
    assert union(wpfs) == ALL
    assert report.dirty(wpfs, "t") == {1}
    assert report.dirty(wpfs, "t/untracked") == ALL
    # A new epoch begins with nothing in doubt: that child is gone.
    wpfs.wpctl("protect", wpfs.mnt)
    program.order("store 0 2 1")
    assert union(wpfs) == {2}


def test_born_while_the_daemon_is_dead_and_alive_after(wpfs):
    program = mapped(wpfs)
    wpfs.kill9()
    child = Child(wpfs, program)
    wpfs.restart()
    child.order("store 0 33 1")
    assert 33 in union(wpfs)
    wpfs.wpctl("protect", wpfs.mnt)
    child.order("store 0 34 1")
    assert 34 in union(wpfs)
    child.end()
    assert 34 in union(wpfs)


def test_born_while_the_daemon_is_dead_and_alive_after_its_parent(wpfs):
    """Nobody watches it any more, and every epoch that begins may have stores of it."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    child = Child(wpfs, program)
    child.order("store 0 33 1")
    program.kill9()
    wpfs.restart()
    for page in (34, 35):
        assert union(wpfs) >= {33}
        wpfs.wpctl("protect", wpfs.mnt)
        child.order(f"store 0 {page} 1")
        assert page in union(wpfs)
    child.end()
    assert 35 in union(wpfs)
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("protect", wpfs.mnt)
    assert union(wpfs) == set(), "when it is gone, that is over"


PROGRAM = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
os.ftruncate(fd, 64 * 4096)
view = mmap.mmap(fd, 64 * 4096)
view[0] = 1
os.setresuid(1000, 1000, 1000)
pid = os.fork()
if pid == 0:
    view[10 * 4096] = 1
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_of_a_program_that_gave_root_up(wpfs):
    done = wpfs.run("/usr/bin/python3", "-c", PROGRAM, wpfs.mnt / "f", name="t", protect=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert union(wpfs) == {0, 10}


def test_a_file_that_grew_between_runs(wpfs):
    """More pages of a file that has an open epoch: armed as the first ones were."""
    for pages, page in ((16, 1), (64, 20)):
        program = mapped(wpfs, pages=pages)
        program.order(f"store 0 {page} 1")
        program.wait()
    assert report.dirty(wpfs, "t") == {1, 20}
    assert os.stat(wpfs.mnt / "f").st_size == 64 * PAGE


def test_protected_again_after_unprotect(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.wpctl("unprotect", wpfs.mnt, "--name", "t")
    program.order("unmap 0")
    program.order(f"map 0 0 0 {64 * PAGE}")
    program.order("store 0 2 1")
    assert report.dirty(wpfs, "t") == {2}
    assert harness.SANITIZER.search(wpfs.read_log()) is None


def test_a_child_that_outlives_its_parent_and_the_daemon(wpfs):
    """Its uffd goes with its parent's witness, which the next daemon ends: it is in doubt then."""
    program = mapped(wpfs)
    wpfs.kill9()
    child = Child(wpfs, program)
    program.kill9()
    child.order("store 0 4 1")
    wpfs.restart()
    child.order("store 0 5 1")
    assert {4, 5} <= union(wpfs)
    child.end()
    assert {4, 5} <= union(wpfs)


def test_unprotect_of_those_that_ended(wpfs):
    program = mapped(wpfs)
    child = Child(wpfs, program)
    child.order("store 0 5 1")
    child.end()
    program.order("store 0 6 1")
    program.kill9()
    assert union(wpfs) == {5, 6}
    answer = wpfs.wpctl_json("unprotect", "--name", "t")
    assert answer["mms"] == 2 and answer["pages"] == 128
    assert union(wpfs) == set()


def test_children_do_not_pile_up(wpfs):
    """One that ended is kept for the epoch in which it wrote and as the last closed one."""
    program = mapped(wpfs)
    for _ in range(2):
        child = Child(wpfs, program)
        child.order("store 0 5 1")
        child.end()
    assert len(report.names(wpfs)) == 3
    wpfs.wpctl("protect", wpfs.mnt)
    assert len(report.names(wpfs)) == 3 and union(wpfs) == set()
    wpfs.wpctl("protect", wpfs.mnt)
    assert set(report.names(wpfs)) == {"t", "t/ended"}


def test_protect_does_what_it_can(wpfs):
    """A program without its witness cannot be protected; the others are, and one line says so."""
    broken, whole = mapped(wpfs, name="a"), mapped(wpfs, name="b", path="g")
    whole.order("store 0 1 1")
    (witness,) = harness.proc.children(broken.pid)
    pidfd = os.pidfd_open(witness)
    os.kill(witness, 9)
    assert harness.proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    done = wpfs.wpctl("protect", wpfs.mnt, status=1)
    assert len(done.stderr.splitlines()) == 1 and "a (pid" in done.stderr, done.stderr
    assert report.dirty(wpfs, "b", "/g") == set()
    assert report.dirty(wpfs, "a") == ALL


GRANDCHILD = """
import ctypes, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
os.ftruncate(fd, 64 * 4096)
view = mmap.mmap(fd, 64 * 4096)
fork = lambda: ctypes.CDLL(None).syscall(57)  # behind the shim's back
child = fork()
if child == 0:
    if fork():
        os._exit(0)
    for page in range(30, 64):
        with open(sys.argv[2]):  # until somebody lets it go on
            view[page * 4096] = 1
        with open(sys.argv[3], "w") as done:
            done.write(str(os.getpid()))
os.waitpid(child, 0)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_child_of_a_child_that_nobody_watches(wpfs):
    """Nobody told of either: in doubt in every epoch, and named to who asks for the file."""
    go, done = wpfs.dir / "go", wpfs.dir / "done"
    for fifo in (go, done):
        os.mkfifo(fifo)
    program = wpfs.spawn("/usr/bin/python3", "-c", GRANDCHILD, wpfs.mnt / "f", go, done, name="t",
                         protect=True)
    assert program.read() == "ready"

    def store():
        open(go, "wb").close()
        return int(done.read_text())

    pid = store()
    assert 30 in union(wpfs)
    for page in (31, 32):
        assert f"(pid {pid}, maps it)" in "".join(wpfs.wpctl_json("dirty", "--file", "/f")["notes"])
        wpfs.wpctl("protect", wpfs.mnt)
        assert store() == pid
        assert page in union(wpfs)
        assert report.dirty(wpfs, "t") == set(), "its parent's parent is exact"
    program.kill9()
    wpfs.wpctl("protect", wpfs.mnt)
    assert store() == pid
    assert 33 in union(wpfs)
    harness.proc.kill(pid)


def test_an_epoch_of_a_program_that_ended(wpfs):
    program = mapped(wpfs)
    program.order("store 0 5 1")
    program.kill9()
    assert report.dirty(wpfs, "t") == {5}
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == set() and report.marked(wpfs, "t") == ALL
    program = mapped(wpfs)
    program.order("store 0 6 1")
    assert report.dirty(wpfs, "t") == {6}


def test_a_closed_epoch_of_children_that_are_gone(wpfs):
    """They do not pile up, and what each epoch ended with in any of them is kept all the same."""
    program = mapped(wpfs)
    epochs = []
    for page in (5, 6, 7):
        children = [Child(wpfs, program) for _ in range(2)]
        for n, child in enumerate(children):
            child.order(f"store 0 {page + 10 * n} 1")
            child.end()
        epochs.append(wpfs.wpctl_json("protect")["epoch"] - 1)
    for _ in range(2):
        wpfs.wpctl("protect", wpfs.mnt)
        wpfs.kill9()
        wpfs.restart()

    wpfs.wpctl("protect", wpfs.mnt)
    assert set(report.names(wpfs)) == {"t", "t/ended"}
    assert [closed(wpfs, epoch) for epoch in epochs] == [{5, 15}, {6, 16}, {7, 17}]
    assert [closed(wpfs, epoch) for epoch in (epochs[-1] + 1, epochs[-1] + 2)] == [set(), set()]
    program.wait()
    wpfs.wpctl("forget", wpfs.mnt, "--name", "t")
    assert not report.names(wpfs)


def test_a_child_that_turned_and_ended_after_another_daemon(wpfs):
    """What it wrote before is in the epoch before, whoever has to remember that."""
    program = mapped(wpfs)
    child = Child(wpfs, program)
    child.order("store 0 5 1")
    epoch = wpfs.wpctl_json("protect")["epoch"] - 1
    wpfs.kill9()
    wpfs.restart()
    child.end()
    for _ in range(2):
        assert closed(wpfs, epoch) == {5}
        wpfs.wpctl("protect", wpfs.mnt)


def test_children_that_were_in_other_epochs(wpfs):
    """Of a file each had an epoch of its own time: together, at each time what either wrote."""
    program = mapped(wpfs)
    old = Child(wpfs, program)
    old.order("store 0 5 1")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/g", status=None)
    other = mapped(wpfs, "u", path="g")
    first = wpfs.wpctl_json("protect", "--name", "u")["epoch"]
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f")
    young = Child(wpfs, program)
    young.order("store 0 6 1")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "u")
    second = wpfs.wpctl_json("protect")["epoch"]
    old.end()
    young.end()
    for _ in range(2):
        wpfs.wpctl("protect", wpfs.mnt)
    assert set(report.names(wpfs)) == {"t", "t/ended", "u"}
    closed = [set(report.pages_of(report.mm_of(
        wpfs.wpctl_json("dirty", "--name", "t", "--epoch", epoch), "t/ended")))
        for epoch in range(first - 1, second + 1)]
    assert closed == [{5}, {5}, {6}, {6}, set()], closed
    other.wait()


def test_of_a_program_that_has_a_userfaultfd_where_it_was_armed(wpfs):
    """Nothing of wpfs is on its parent's mapping, and what it stores to its own is seen all the same."""
    program = mapped(wpfs)
    uffd = program.order("uffd 0 0 64")
    child = Child(wpfs, program)
    child.order("closefrom 3")
    program.order(f"uclose {uffd}")
    wpfs.wpctl("protect", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set()
    child.order("store 0 6 1")
    assert 6 in union(wpfs)
    wpfs.wpctl("protect", wpfs.mnt)
    child.order("store 0 7 1")
    assert report.dirty(wpfs, f"t/{child.pid}") == {7}
    child.end()


def test_a_raw_child_that_ended_before_another_came(wpfs):
    """Nobody had looked meanwhile: the other's coming must not make it forgotten."""
    program = mapped(wpfs)
    program.order("child raw 0 5")
    child = Child(wpfs, program)
    child.order("store 0 8 1")
    assert union(wpfs) >= {5, 8}
    assert report.dirty(wpfs, "t") == set()
    assert report.dirty(wpfs, f"t/{child.pid}") == {8}
    child.end()


def test_a_raw_child_after_others_that_ended_unseen(wpfs):
    """Of two that were looked at and have ended, a fork takes the numbers away: others are seen still."""
    program = mapped(wpfs)
    ended = [Child(wpfs, program, how="raw") for _ in range(2)]
    assert report.dirty(wpfs, "t") == set()
    for child in ended:
        child.end()
    Child(wpfs, program).end()
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("protect", wpfs.mnt)
    assert union(wpfs) == set()
    child = Child(wpfs, program, how="raw")
    child.order("store 0 8 1")
    child.end()
    assert 8 in union(wpfs)


def test_a_raw_child_and_a_witness_that_is_killed(wpfs):
    """The witness has what would tell of the child, whoever looks afterwards."""
    program = mapped(wpfs)
    child = Child(wpfs, program, how="raw")
    lose_witness(program)
    assert union(wpfs) == ALL
    program.order(f"map 1 0 0 {8 * PAGE}")  # another one
    for page in (34, 35):
        wpfs.wpctl("protect", wpfs.mnt)
        child.order(f"store 0 {page} 1")
        assert page in union(wpfs)
    assert report.dirty(wpfs, "t") == set()
    child.end()


def closed(wpfs, epoch, name="t"):
    answer = wpfs.wpctl_json("dirty", "--name", name, "--epoch", epoch)
    return {page for mm in answer["mms"] for page in report.pages_of(mm)}


@pytest.mark.parametrize("unmapped", [False, True], ids=["", "unmapped"])
def test_a_raw_child_that_stores_before_anybody_looks(wpfs, unmapped):
    """Nobody has told of it, and its first look is the one with which an epoch ends. What its program
    has unmapped before that it maps still."""
    program = mapped(wpfs)
    child = Child(wpfs, program, how="raw")
    if unmapped:
        program.order("unmap 0")
    child.order("store 0 33 1")
    epoch = wpfs.wpctl_json("protect")["epoch"]
    assert 33 in closed(wpfs, epoch - 1)
    child.order("store 0 34 1")
    child.end()
    assert 34 in union(wpfs)
    for _ in range(2):
        wpfs.wpctl("protect", wpfs.mnt)
    assert union(wpfs) == set()


def later_run(wpfs):
    """A program whose name has a row of such children from a run before: it comes before the program's."""
    program = mapped(wpfs)
    child = Child(wpfs, program, how="raw")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    child.end()
    program.kill9()
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    assert report.dirty(wpfs, "t/untracked") == set()
    return mapped(wpfs)


@pytest.mark.parametrize("ends", [False, True])
def test_a_raw_child_of_a_later_run(wpfs, ends):
    """Its stores are in the epoch that ends, though the row that is to have them is there already."""
    child = Child(wpfs, later_run(wpfs), how="raw")
    child.order("store 0 33 1")
    if ends:
        child.end()
    epoch = wpfs.wpctl_json("protect", "--file", "/f")["epoch"]
    assert 33 in closed(wpfs, epoch - 1)
    if not ends:
        child.order("store 0 34 1")
        child.end()
        assert 34 in union(wpfs)
    for _ in range(2):
        wpfs.wpctl("protect", wpfs.mnt)
    assert union(wpfs) == set()


def test_a_raw_child_after_an_unprotect_of_the_others(wpfs):
    """The epoch that the row was in has ended, and is later than the one that its parent is in."""
    program, other = mapped(wpfs, path="g"), mapped(wpfs)
    child = Child(wpfs, other, how="raw")
    epoch = wpfs.wpctl_json("protect", "--file", "/f")["epoch"]
    child.end()
    wpfs.wpctl("unprotect", wpfs.mnt, "--file", "/f")
    assert union(wpfs) == set()
    program.order(f"open 1 {wpfs.mnt / 'f'}")
    program.order(f"map 1 1 0 {64 * PAGE}")
    child = Child(wpfs, program, how="raw")
    child.order("store 1 33 1")
    child.end()
    next_epoch = wpfs.wpctl_json("protect", "--file", "/f")["epoch"]
    assert 33 in closed(wpfs, next_epoch - 1)
    assert closed(wpfs, epoch, "t") == ALL
    assert union(wpfs) == set()


def test_a_raw_child_when_an_epoch_of_another_file_ends(wpfs):
    """What the row has of the first file stays in the epoch that it was in."""
    program = mapped(wpfs)
    child = Child(wpfs, program, how="raw")
    epoch = wpfs.wpctl_json("protect", "--file", "/f")["epoch"]
    child.end()
    program.order(f"open 1 {wpfs.mnt / 'g'}")
    program.order(f"size 1 {64 * PAGE}")
    program.order(f"map 1 1 0 {64 * PAGE}")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/g")
    child = Child(wpfs, program, how="raw")
    child.order("store 0 33 1")
    child.end()
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/g")
    assert 33 in closed(wpfs, epoch)
    assert 33 in union(wpfs)


def test_a_file_goes_that_a_child_was_born_with(wpfs):
    """As many pages are dirty as at its birth, and they are others: its own."""
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt / 'g'}")
    program.order(f"size 1 {64 * PAGE}")
    program.order(f"map 1 1 0 {64 * PAGE}")
    program.order("store 1 1 1")
    child = Child(wpfs, program)
    for who in (program, child):
        who.order("unmap 1")
        who.order("close 1")
    os.unlink(wpfs.mnt / "g")
    assert union(wpfs) == set()
    child.order("store 0 5 1")
    child.end()
    assert union(wpfs) == {5}


def in_call(pid, nr):
    """Is the thread held at the system call of this number?"""
    try:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as call:
            return call.read().split()[0] == str(nr)
    except OSError:
        return False


CONNECT, SOCKETPAIR = 42, 53  # system calls of x86-64


@pytest.fixture
def fork_held(wpfs):
    """
    A child that its parent's daemon has given its userfaultfd, on its way to attach: what keeps it
    from that happens in the test. Gives the program, the child, its pid, and a function that lets it
    go on.
    """
    program = mapped(wpfs)
    program.order("store 0 1 1")
    strace = proc.Strace(program.pid, "trace=socketpair", "inject=socketpair:delay_enter=100s")
    child = ChildToBe(wpfs, program)
    yield program, child, child.find(lambda pid: in_call(pid, SOCKETPAIR)), strace.end
    strace.end()


def trace(program, *expressions, how=()):
    return proc.Strace(program.pid, *expressions, path=how[1] if how else None).popen


class ChildToBe(Child):
    """One whose fork() does not return yet."""

    def __init__(self, wpfs, parent):
        Child.number += 1
        self.parent = parent
        self.before = set(proc.children(parent.pid))
        self.fifos = [wpfs.dir / f"child{Child.number}.{end}" for end in ("in", "out")]
        for fifo in self.fifos:
            os.mkfifo(fifo)
        parent.send(f"fork {self.fifos[0]} {self.fifos[1]}")

    def find(self, condition):
        def found():
            return [pid for pid in set(proc.children(self.parent.pid)) - self.before if condition(pid)]

        proc.wait_for(found, harness.SECONDS, "the child")
        return found()[0]

    def begin(self, answer=None):
        """`answer`: the parent's, if it has been read."""
        self.pid = int((answer or self.parent.read()).removeprefix("ok "))
        self.stdin = open(self.fifos[0], "w", encoding="ascii")
        self.stdout = open(self.fifos[1], encoding="ascii")
        assert self.read() == "ok 0", "fork's value in the child"
        return self


def test_daemon_killed_before_a_child_has_attached(wpfs, fork_held):
    """It is not tracked then, and what it stores is in doubt, now and in each epoch."""
    program, child, _, let_go = fork_held
    wpfs.kill9()
    wpfs.restart()
    let_go()
    child.begin()
    child.order("store 0 33 1")
    assert 33 in union(wpfs)
    assert report.dirty(wpfs, "t") == {1}
    for page in (34, 35):
        wpfs.wpctl("protect", wpfs.mnt)
        child.order(f"store 0 {page} 1")
        assert page in union(wpfs)
    child.end()
    assert 35 in union(wpfs)
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("protect", wpfs.mnt)
    assert union(wpfs) == set()
    program.order("store 0 2 1")
    assert union(wpfs) == {2}


def test_a_child_that_is_killed_before_it_has_attached(wpfs, fork_held):
    """Nothing of it stays behind in the daemon, nor is anything forgotten that it might have stored."""
    _, _, pid, let_go = fork_held
    pidfd = os.pidfd_open(pid)
    os.kill(pid, 9)
    let_go()
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    proc.wait_for(lambda: len(wpfs.wpctl_json("ps")["mms"]) == 2, harness.SECONDS, "its row")
    assert report.dirty(wpfs, "t") == {1}
    assert union(wpfs) == ALL
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("protect", wpfs.mnt)
    assert union(wpfs) == set()
    assert [mm["name"] for mm in wpfs.wpctl_json("ps")["mms"]] == ["t", "t/ended"]


def test_a_child_that_gives_up(wpfs):
    """It could not take the answer, and goes on without being tracked."""
    program = mapped(wpfs)
    strace = proc.Strace(program.pid, "trace=recvmsg", "inject=recvmsg:error=EIO:when=2")  # in each process
    child = ChildToBe(wpfs, program).begin()
    strace.end()
    child.order("store 0 33 1")
    assert 33 in union(wpfs)
    wpfs.wpctl("protect", wpfs.mnt)
    child.order("store 0 34 1")
    assert 34 in union(wpfs)
    assert report.dirty(wpfs, "t") == set()
    child.end()


def test_children_that_end_before_a_witness_that_is_stopped_goes_on(wpfs):
    """They have come for what it still has of theirs: there is nothing in doubt."""
    program = mapped(wpfs)
    (witness,) = proc.children(program.pid)
    strace = proc.Strace(program.pid, "trace=connect", "inject=connect:delay_enter=100s")
    children = [ChildToBe(wpfs, program)]
    pids = [children[0].find(lambda pid: in_call(pid, CONNECT))]
    proc.stop(witness)  # it has read the event, or there would be no child
    strace.end()
    child = children[0].begin()
    child.order("store 0 5 1")
    child.end()
    assert union(wpfs) == {5}
    assert set(report.names(wpfs)) == {"t", f"t/{pids[0]}"}
    os.kill(witness, signal.SIGCONT)
    second = Child(wpfs, program)
    second.end()
    wpfs.wpctl("protect", wpfs.mnt)
    wpfs.wpctl("protect", wpfs.mnt)
    assert set(report.names(wpfs)) == {"t", "t/ended"}
