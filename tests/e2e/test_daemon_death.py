# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of the daemon under tracked programs: they never wait, and the next daemon knows all."""

import contextlib
import os
import random
import sqlite3

import pytest

import harness
import pagemap
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, Child, killed, map_file, mapped

CHURN_PAGES = 16384
GAP_MS = 2000  # the longest that a program may ever have stood still
TURNS = 10  # more if the machine was busy: so often has it to get a processor in that time


@pytest.fixture(params=["none", "store"])
def any_wpfs(request, make_wpfs):
    return make_wpfs(store=request.param != "none")


# ---- a program that never stands still


class Churn:
    def __init__(self, wpfs, protect=True):
        self.reference = wpfs.dir / "reference"
        self.program = wpfs.spawn(harness.program("churn"), wpfs.mnt / "f", self.reference,
                                  CHURN_PAGES, name="c", protect=protect)
        assert self.program.read() == "ok"
        assert self.program.ask("go") == "ok"

    def count(self):
        return [int(number) for number in self.program.ask("count").split()]

    def goes_on(self, forks=2):
        """Returns when it has written, moved and forked so much more."""
        until = self.count()[2] + forks
        proc.wait_for(lambda: self.count()[2] >= until, harness.SECONDS, "it stands still")

    def stop(self):
        writes, moves, forks, gap, stall = (int(number) for number in self.program.ask("stop").split())
        assert writes and moves and forks
        assert gap < GAP_MS + TURNS * stall, f"it stood still for {gap} ms, where others did for {stall} ms"

    def written(self):
        """(done for sure, perhaps done)"""
        states = self.reference.read_bytes()
        return ({page for page, state in enumerate(states) if state == 2},
                {page for page, state in enumerate(states) if state})


def check(wpfs, churn):
    done, begun = churn.written()
    dirty = report.dirty(wpfs, "c")
    assert not done - dirty, "a mark lies: pages were written and are not dirty"
    assert done, "the program wrote nothing"
    # It writes half of the pages at most, all of them if it has the time; the others are its children's.
    assert not dirty - begun, "pages are dirty that it did not write, its children perhaps"


def test_a_busy_program_lives_through_it(any_wpfs):
    wpfs = any_wpfs
    churn = Churn(wpfs)
    for _ in range(3):
        churn.goes_on()
        wpfs.kill9()
        churn.goes_on()
        wpfs.restart()
        churn.goes_on()
    churn.stop()
    check(wpfs, churn)
    assert report.ps(wpfs, "c")["state"] == "live"
    wpfs.wpctl("protect", wpfs.mnt, "--name", "c")
    assert report.dirty(wpfs, "c") == set()
    churn.program.kill9()
    assert report.dirty(wpfs, "c") == set()


def test_killed_in_mid_work_while_the_daemon_is_dead(any_wpfs):
    """The witness keeps its page tables until the next daemon comes: exact."""
    wpfs = any_wpfs
    churn = Churn(wpfs)
    churn.goes_on()
    wpfs.kill9()
    churn.goes_on()
    churn.program.kill9()
    wpfs.restart()
    check(wpfs, churn)
    assert report.ps(wpfs, "c")["state"] == "detached"


@pytest.mark.parametrize("seed", range(5))
def test_both_killed_at_any_moment(make_wpfs, seed):
    rng = random.Random(seed)
    wpfs = make_wpfs(store=True)
    churn = Churn(wpfs)
    target = churn.count()[0] + rng.randrange(3000)
    proc.wait_for(lambda: churn.count()[0] >= target, harness.SECONDS, "writes")
    first, second = rng.sample([wpfs.kill9, churn.program.kill9], 2)
    first()
    second()
    wpfs.restart()
    check(wpfs, churn)


# ---- one thing at a time


def test_tree_data_and_program_are_found(any_wpfs):
    wpfs = any_wpfs
    (wpfs.mnt / "dir").mkdir()
    (wpfs.mnt / "dir/file").write_text("data")
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.order(f"pwrite 0 {5 * PAGE} {PAGE} 7")
    assert program.order("load 0 5") == 7, "its descriptor works on"
    wpfs.restart()
    assert (wpfs.mnt / "dir/file").read_text() == "data"
    assert (wpfs.mnt / "f").read_bytes()[2 * PAGE] == 1
    assert (wpfs.mnt / "f").read_bytes()[5 * PAGE] == 7
    assert report.names(wpfs) == {"t": "live"}
    assert report.dirty(wpfs, "t") == {1, 2}
    # It is tracked as before: by itself, and when it asks the new daemon for something.
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == {1, 2, 3}
    program.order("unmap 0 8 8")
    map_file_again(program, wpfs)
    program.order("store 1 0 1")
    assert report.dirty(wpfs, "t") == {1, 2, 3, 8}
    assert killed(wpfs, program) == {1, 2, 3, 8}
    assert program.stderr() == ""


def map_file_again(program, wpfs):
    program.order(f"open 1 {wpfs.mnt}/f")
    program.order(f"map 1 1 {8 * PAGE} {8 * PAGE}")


def test_killed_with_both(any_wpfs):
    wpfs = any_wpfs
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.kill9()
    wpfs.restart()
    assert report.names(wpfs) == {"t": "detached"}
    assert report.dirty(wpfs, "t") == {1, 2}
    again = mapped(wpfs, protect=False)
    assert pagemap.marked(again.pid, again.addr, PAGES) == ALL - {1, 2}


def test_ended_as_programs_do_while_the_daemon_is_dead(any_wpfs):
    wpfs = any_wpfs
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.wait()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2}


def test_a_file_that_the_new_mount_was_never_asked_for(wpfs):
    """Opened before, mapped after, through a descriptor of the dead mount: it has its name."""
    (wpfs.mnt / "g").write_bytes(bytes(8 * PAGE))
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    wpfs.kill9()
    wpfs.restart()
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 1 3 1")
    assert report.dirty(wpfs, "t", "/g") == {3}


@pytest.mark.parametrize("looked", [False, True])
def test_a_name_that_was_only_seen_for_a_moment(wpfs, looked):
    """Mapped through a descriptor of the dead mount, and gone before anybody asks what it was."""
    (wpfs.mnt / "g").write_bytes(bytes(8 * PAGE))
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    wpfs.kill9()
    wpfs.restart()
    addr = program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 1 3 1")
    if looked:
        assert report.dirty(wpfs, "t", "/g") == {3}
    program.order(f"map 1 0 0 {8 * PAGE} at={addr}")
    assert report.dirty(wpfs, "t", "/g") == {3}


def opened_before(wpfs, path="f", protect=True):
    """A program that has opened a file and mapped nothing shared, while the daemon is another."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=protect)
    program.order(f"open 0 {wpfs.mnt}/{path}")
    program.order(f"size 0 {PAGES * PAGE}")
    wpfs.kill9()
    wpfs.restart()
    return program


def test_a_descriptor_from_before_is_mapped_first(wpfs):
    """Nobody knows the program, and the dead mount cannot be asked what it is: armed, and exact."""
    program = opened_before(wpfs)
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == {3}
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 4 1")
    assert killed(wpfs, program) == {4}
    assert program.stderr() == ""


def test_a_mapping_of_one_of_many_mounts(make_wpfs):
    """Each daemon makes a mount of another number, and programs may have mappings of any of them."""
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    with contextlib.closing(sqlite3.connect(f"{wpfs.store}/wpfs.db")) as db:
        (devs,) = db.execute("SELECT value FROM meta WHERE key = 'devs'").fetchone()
        others = " ".join(str((1 << 40) + n) for n in range(100))
        db.execute("UPDATE meta SET value = ? WHERE key = 'devs'", (f"{others} {devs}",))
        db.commit()
    for page in (2, 3):
        wpfs.restart()
        assert report.dirty(wpfs, "t") == {page - 1}
        wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
        program.order(f"store 0 {page} 1")
        assert report.dirty(wpfs, "t") == {page}
        wpfs.kill9()
    wpfs.restart()


def test_a_descriptor_from_before_is_mapped_beside_another(wpfs):
    program = opened_before(wpfs, protect=False)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {PAGES * PAGE}")
    program.order(f"map 1 1 0 {PAGES * PAGE}")
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 3 1")
    program.order("store 1 4 1")
    program.order("unmap 0 8 8")
    assert report.dirty(wpfs, "t", "/f") == {3}
    assert report.dirty(wpfs, "t", "/g") == {4}


def test_mapped_first_while_the_daemon_is_dead(wpfs):
    """
    Known from its next mapping on: then what it has mapped meanwhile is armed, and dirty. Which
    file that was nobody can say, so what is armed from then on counts as well, until a protect.
    """
    program = opened_before(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {PAGES * PAGE}")
    wpfs.kill9()
    program.order(f"map 0 0 0 {8 * PAGE}")
    program.order("store 0 3 1")
    wpfs.restart()
    program.order(f"map 1 1 0 {PAGES * PAGE}")
    assert report.dirty(wpfs, "t", "/g") == ALL
    assert report.dirty(wpfs, "t", "/f") == set(range(8))
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 5 1")
    program.order("store 1 4 1")
    assert report.dirty(wpfs, "t", "/g") == {4}
    assert killed(wpfs, program) == {5}


def test_mapped_first_and_ended_without_a_word_to_the_next_daemon(wpfs):
    """An earlier run of its name has something armed: what it stores to that is in doubt."""
    mapped(wpfs).wait()
    assert report.dirty(wpfs, "t") == set()
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=False)
    program.order(f"open 0 {wpfs.mnt}/f")
    wpfs.kill9()
    program.order(f"map 0 0 0 {8 * PAGE}")
    program.order("store 0 3 1")
    wpfs.restart()
    assert 3 in report.dirty(wpfs, "t")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 5 1")
    assert 5 in report.dirty(wpfs, "t")
    program.wait()
    assert 5 in report.dirty(wpfs, "t")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == set()


def test_contents_removed_while_the_daemon_is_dead(wpfs):
    """MADV_REMOVE is no request to the file system: nobody but the program knows of it."""
    program = mapped(wpfs)
    other = mapped(wpfs, name="other")
    wpfs.kill9()
    program.order("advise 0 8 4 remove")
    wpfs.restart()
    assert report.dirty(wpfs, "t") >= set(range(8, 12))
    assert report.dirty(wpfs, "other") >= set(range(8, 12)), "they are gone for everybody"


@pytest.mark.parametrize("known", [False, True])
def test_a_raw_mapping_is_protected_too(wpfs, known):
    """Mapped by a system call of the program's own, which nobody sees: armed, and dirty."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {PAGES * PAGE}")
    if known:
        program.order(f"open 1 {wpfs.mnt}/g")
        program.order(f"size 1 {PAGES * PAGE}")
        program.order(f"map 1 1 0 {PAGES * PAGE}")
    program.order(f"map 0 0 {8 * PAGE} {8 * PAGE} raw")
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == set(range(8, 16))
    if known:
        assert report.dirty(wpfs, "t", "/g") == set()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {13}
    wpfs.wpctl("unprotect", wpfs.mnt, "--name", "t")
    program.order("store 0 6 1")
    assert report.dirty(wpfs, "t") == set(), "unprotected, and armed again unasked"
    # A new one is news; what was unprotected stays so (test_marks.py:test_what_was_unprotected_stays_so).
    program.order(f"map 2 0 0 {4 * PAGE} raw")
    assert report.dirty(wpfs, "t") == {0, 1, 2, 3}
    assert killed(wpfs, program) == {0, 1, 2, 3}


def test_mremap_while_the_daemon_is_dead(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.addr = program.order("move 0")
    assert pagemap.marked(program.pid, program.addr, PAGES) == ALL - {1, 2}
    program.order("store 0 3 1")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2, 3}
    program.order("store 0 4 1")
    assert killed(wpfs, program) == {1, 2, 3, 4}


def test_fork_while_the_daemon_is_dead(wpfs):
    """The child has the marks, and what it writes is not its parent's."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    child = Child(wpfs, program)
    assert pagemap.marked(child.pid, program.addr, PAGES) == ALL - {1, 2}
    child.order("store 0 3 1")
    addr = child.order("move 0")
    grandchild = Child(wpfs, child)
    grandchild.order("store 0 4 1")
    program.order("store 0 5 1")
    assert pagemap.marked(program.pid, program.addr, PAGES) == ALL - {1, 2, 5}
    assert pagemap.marked(child.pid, addr, PAGES) == ALL - {1, 2, 3}
    assert pagemap.marked(grandchild.pid, addr, PAGES) == ALL - {1, 2, 3, 4}
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2, 5}
    child.order("store 0 6 1")
    program.order("store 0 7 1")
    assert report.dirty(wpfs, "t") == {1, 2, 5, 7}
    for one in (grandchild, child):
        one.end()
    assert killed(wpfs, program) == {1, 2, 5, 7}


def test_a_child_forked_before(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    child = Child(wpfs, program)
    wpfs.kill9()
    child.order("store 0 2 1")
    program.order("store 0 3 1")
    program.kill9()
    child.order("store 0 4 1")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 3}
    assert report.dirty(wpfs, f"t/{child.pid}") == {1, 2, 4}
    child.end()
    assert report.dirty(wpfs, f"t/{child.pid}") == {1, 2, 4}


def test_unmapped_while_the_daemon_is_dead(wpfs):
    """Nobody looked before the mapping went: what was armed in it is dirty, and nothing else."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("unmap 0 8 8")
    program.order("store 0 2 1")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {1, 2} | set(range(8, 16))
    assert killed(wpfs, program) == {1, 2} | set(range(8, 16))


def test_mapped_while_the_daemon_is_dead(wpfs):
    """Nobody could be told of the mapping, so all that is armed of the file is dirty."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
    program.order("store 1 0 1")
    (line,) = program.stderr().splitlines()
    assert "its daemon is not running" in line
    wpfs.restart()
    assert report.dirty(wpfs, "t") == ALL
    assert killed(wpfs, program) == ALL


@pytest.mark.parametrize("times", [1, 40])
def test_mapped_and_gone_while_the_daemon_is_dead(wpfs, times):
    """No trace of the mapping is left but what the program counted: another file is as it was."""
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 1 2 1")
    wpfs.kill9()
    for _ in range(times):
        program.order(f"map 2 0 {8 * PAGE} {8 * PAGE}")
        program.order("store 2 0 1")
        program.order("unmap 2")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == ALL
    if times == 1:
        assert report.dirty(wpfs, "t", "/g") == {2}
    # Told of from now on, and exact again.
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order(f"map 2 0 0 {8 * PAGE}")
    program.order("store 2 3 1")
    program.order("unmap 2")
    assert killed(wpfs, program) == {3}


def test_grown_and_gone_while_the_daemon_is_dead(wpfs):
    program = mapped(wpfs, pages=8)
    program.order(f"size 0 {PAGES * PAGE}")
    program.order(f"map 1 0 0 {PAGES * PAGE}")
    wpfs.kill9()
    program.order(f"grow 0 {PAGES * PAGE}")
    program.order("store 0 50 1")
    program.order("unmap 0")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == ALL


def test_own_uffd(wpfs):
    """Faults go on being delivered; what was protected comes back with the next run."""
    program = wpfs.spawn(harness.program("ownuffd"), "hold", wpfs.mnt / "f", name="t")
    while program.read() != "ready":
        pass
    marked = set(range(32)) - {3, 5}
    assert report.marked(wpfs, "t", owner="program") == marked
    wpfs.kill9()
    wpfs.restart()
    assert report.marked(wpfs, "t", owner="program") == marked
    program.kill9()
    assert report.marked(wpfs, "t", owner="program") == marked


def test_killed_again_and_again(make_wpfs):
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs)
    written = set()
    for page in range(8):
        program.order(f"store 0 {2 * page} 1")
        wpfs.kill9()
        program.order(f"store 0 {2 * page + 1} 1")
        written |= {2 * page, 2 * page + 1}
        wpfs.restart()
        if page % 2:
            assert report.dirty(wpfs, "t") == written
    program.kill9()
    wpfs.umount()
    assert report.dirty(wpfs, "t", target=wpfs.store) == written


def test_nothing_is_left_without_a_daemon(make_wpfs):
    """A program killed after its daemon: its witness is told to go by SIGTERM, and goes."""
    wpfs = make_wpfs()
    program = mapped(wpfs)
    (witness,) = proc.children(program.pid)
    pidfd = os.pidfd_open(witness)
    wpfs.kill9()
    program.kill9()
    assert not proc.is_over(pidfd, 0)
    os.kill(witness, 15)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)


def test_killed_after_protect(wpfs):
    """No harvest has come since: the next daemon finds all marks, and nothing dirty."""
    program = mapped(wpfs, protect=False)
    for page in range(64):
        program.order(f"store 0 {page} 1")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 3 3")
    wpfs.kill9()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {3} and report.marked(wpfs, "t") == ALL - {3}
