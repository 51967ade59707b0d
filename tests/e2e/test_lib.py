# SPDX-License-Identifier: LGPL-2.1-or-later
"""libwpfs: explicit marks. tests/progs/libuser.c takes the orders."""

import errno
import os
import re
import socket
import struct
import subprocess

import pytest

import harness
import report
import wire

PAGE = harness.PAGE
USER = harness.program("libuser")
LIB = harness.BUILD / "src/lib"
PAGES = 32
SIZE = PAGES * PAGE

BARE = {"LD_LIBRARY_PATH": str(LIB)}
PRELOADED = {**BARE, "LD_PRELOAD": str(harness.SHIM)}


class User:
    """A program that uses the library, and its answers as Python values."""

    def __init__(self, wpfs, env=None):
        self.program = wpfs.spawn_bare(USER, env={**BARE, **(env or {})})
        self.pid = self.program.pid

    def do(self, line):
        answer = self.program.ask(line)
        assert answer.startswith("ok"), f"{line}: {answer}: {self.why()}"
        return answer[3:].strip()

    def fails(self, line):
        answer = self.program.ask(line)
        assert answer.startswith("err "), f"{line}: {answer}"
        return answer[4:]

    def why(self):
        return self.program.ask("error")[3:]

    def pages(self, line):
        """The pages of runs."""
        found = []
        for run in self.do(line).split():
            first, last = map(int, run.split("-"))
            found += range(first, last + 1)
        assert found == sorted(set(found)), f"{line}: not ascending or not disjoint"
        return set(found)

    def dirty(self, since=0, until=0, file=0):
        return self.pages(f"dirty {file} 0 0 {since} {until}")

    def clean(self, file=0):
        return self.pages(f"clean {file} 0 0")

    def watched(self, file=0):
        return self.pages(f"watched {file} 0 0")

    def calls(self):
        """[(page, the byte that was in it)], in order, since the last question."""
        return [tuple(map(int, call.split(":"))) for call in self.do("calls").split()]

    def kill9(self):
        self.program.kill9()

    def end(self):
        self.program.wait()


def user(wpfs, name="t", env=None, file="f", path=None):
    """Attached, with a file of PAGES pages as file 0, mapped as mapping 0."""
    one = User(wpfs, env)
    one.do(f"attach {path or wpfs.mnt} {name}")
    one.do(f"open 0 {wpfs.mnt}/{file}")
    one.do(f"size 0 {SIZE}")
    one.do(f"map 0 0 0 {SIZE}")
    return one


ALL = set(range(PAGES))
BOTH = pytest.mark.parametrize("env", [BARE, PRELOADED], ids=["bare", "preloaded"])


# ---- protect, write, ask


@BOTH
def test_protect_write_ask(wpfs, env):
    one = user(wpfs, env=env)
    assert one.dirty() == one.clean() == set()
    one.do("store 0 3 1")
    assert one.dirty() == set(), "nothing was protected"
    first = int(one.do("protect 0 0 0"))
    assert one.clean() == ALL
    assert one.dirty() == set()
    one.do("store 0 5 1 3")
    one.do("load 0 9")
    assert one.dirty() == {5, 6, 7}
    assert one.clean() == ALL - {5, 6, 7}
    assert report.dirty(wpfs, "t") == {5, 6, 7}, "wpctl says something else"
    second = int(one.do("protect 0 0 0"))
    assert second > first
    assert one.clean() == ALL
    one.do("store 0 20 1")
    assert one.dirty() == {20}
    assert one.dirty(first, first) == {5, 6, 7}
    assert one.dirty(first) == {5, 6, 7, 20}
    assert one.dirty(second) == {20}
    assert one.pages(f"dirty 0 {6 * PAGE} {PAGE} {first} 0") == {6}
    assert one.pages(f"dirty 0 {6 * PAGE} 0 {first} 0") == {6, 7, 20}
    one.do("unprotect 0 0 0")
    one.do("store 0 21 1")
    assert one.dirty() == one.clean() == set()
    assert one.dirty(first) == {5, 6, 7, 20}, "what closed epochs ended with is kept"
    one.end()


def test_ranges_and_all_files(wpfs):
    one = user(wpfs)
    one.do(f"open 1 {wpfs.mnt}/g")
    one.do(f"size 1 {SIZE}")
    one.do(f"map 1 1 0 {SIZE}")
    one.do(f"protect 0 {8 * PAGE} {4 * PAGE}")
    assert one.clean() == {8, 9, 10, 11}
    assert one.clean(1) == set()
    one.do("store 0 0 1 10")
    assert one.dirty() == {8, 9}
    one.do("protect -1 0 0")
    assert one.clean() == one.clean(1) == ALL
    one.do("store 1 1 1")
    assert one.dirty(file=1) == {1}
    one.do(f"unprotect 1 0 {2 * PAGE}")
    assert one.dirty(file=1) == set()
    assert one.clean(1) == ALL - {0, 1}
    one.end()


def test_two_mappings_and_a_move(wpfs):
    one = user(wpfs)
    one.do(f"map 1 0 {8 * PAGE} {8 * PAGE}")
    one.do("protect 0 0 0")
    one.do("store 1 2 1")
    assert one.dirty() == {10}
    one.do("move 0")
    assert one.dirty() == {10}
    one.do("store 0 1 1")
    assert one.dirty() == {1, 10}
    one.do("unmap 1")
    one.do("unmap 0 16 16")
    assert one.dirty() == {1, 10}
    assert one.clean() == ALL - {1, 10}, "unmapped pages are remembered"
    one.do(f"map 2 0 0 {SIZE}")
    one.do("store 2 31 1")
    assert one.dirty() == {1, 10, 31}, "mapped again, it was not protected again"
    one.end()


def test_contents_taken_away(wpfs):
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("remove 0 4 2")
    assert one.dirty() == {4, 5}
    one.end()


def test_fixed_over_a_mapping(wpfs):
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("store 0 1 1")
    one.do(f"map 1 0 0 {SIZE} fixed=0")
    assert one.dirty() == {1}
    one.do("store 1 2 1")
    assert one.dirty() == {1, 2}
    one.end()


def test_a_raw_mapping_costs_precision_never_truth(wpfs):
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do(f"rawmap 1 0 0 {4 * PAGE}")
    one.do("store 1 2 1")
    assert {2} <= one.dirty() <= {0, 1, 2, 3}
    one.end()


# ---- what outlives what


@BOTH
def test_next_run_goes_on(wpfs, env):
    one = user(wpfs, env=env)
    epoch = int(one.do("protect 0 0 0"))
    one.do("store 0 4 1")
    one.kill9()
    assert report.dirty(wpfs, "t") == {4}
    two = User(wpfs, env)
    two.do(f"attach {wpfs.mnt}/f t")
    two.do(f"open 0 {wpfs.mnt}/f")
    assert two.dirty() == {4}, "asked before anything is mapped"
    assert two.clean() == ALL - {4}
    two.do(f"map 0 0 0 {SIZE}")
    two.do("store 0 5 1")
    assert two.dirty(epoch) == {4, 5}
    two.end()


def test_durable(make_wpfs):
    wpfs = make_wpfs(store=True)
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("store 0 7 77 2")
    one.do("sync 0")
    wpfs.kill9()
    one.kill9()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {7, 8}
    again = user(wpfs)
    assert again.dirty() == {7, 8}
    assert again.do("load 0 7") == "77"
    again.do("protect 0 0 0")
    again.do("store 0 9 1")
    again.do("sync -1")
    assert again.dirty() == {9}
    again.end()
    wpfs.umount()
    assert report.dirty(wpfs, "t", target=wpfs.store) == {9}
    wpfs.restart()


def test_daemon_away_and_back(wpfs):
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("store 0 1 1")
    wpfs.kill9()
    one.do("store 0 2 1")
    assert one.fails("dirty 0 0 0 0 0") == "ECONNREFUSED"
    assert "not running" in one.why()
    assert one.fails("protect 0 0 0") == "ECONNREFUSED"
    assert one.fails("sync 0") == "ENOTCONN"
    assert one.fails(f"map 1 0 0 {SIZE}") == "ECONNREFUSED"
    wpfs.restart()
    assert one.dirty() == {1, 2}
    assert one.clean() == ALL - {1, 2}
    one.do("store 0 3 1")
    assert one.dirty() == {1, 2, 3}
    one.do("sync -1")
    assert report.dirty(wpfs, "t") == {1, 2, 3}
    one.end()


def test_daemon_restarted_before_anything_was_mapped(wpfs):
    one = User(wpfs)
    one.do(f"attach {wpfs.mnt} t")
    wpfs.kill9()
    wpfs.restart()
    one.do(f"open 0 {wpfs.mnt}/f")
    one.do(f"size 0 {SIZE}")
    assert one.dirty() == set(), "not attached anew"
    one.do(f"map 0 0 0 {SIZE}")
    one.do("protect 0 0 0")
    one.do("store 0 1 1")
    assert one.dirty() == {1}
    one.end()


# ---- names and processes


def test_two_names(wpfs):
    one, two = user(wpfs, "one"), user(wpfs, "two")
    one.do("protect 0 0 0")
    two.do("protect 0 0 0")
    one.do("store 0 1 1")
    two.do("store 0 2 1")
    assert (one.dirty(), two.dirty()) == ({1}, {2})
    assert (report.dirty(wpfs, "one"), report.dirty(wpfs, "two")) == ({1}, {2})
    one.end()
    two.end()


@BOTH
def test_fork(wpfs, env):
    one = user(wpfs, env=env)
    one.do("protect 0 0 0")
    one.do("store 0 1 1")
    assert one.pages("fork 0 0 6") == {1, 6}, "the child's answer"
    assert one.dirty() == {1}, "the parent's marks are its own"
    one.end()


def test_one_attach_per_process(wpfs):
    one = user(wpfs)
    assert one.fails("second") == "EEXIST"
    assert one.fails(f"attach {wpfs.mnt} other") == "EEXIST"
    one.do(f"attach {wpfs.mnt} t")
    one.do("protect 0 0 0")
    one.do("store 0 1 1")
    assert one.dirty() == {1}
    assert wpfs.wpctl_json("status")["clients"] == 1
    one.end()


def test_the_preloaded_library_is_used(wpfs):
    """Not a second attach beside it; and what it hooks is known to both."""
    program = wpfs.spawn(USER, name="t", env=BARE)
    one = User.__new__(User)
    one.program, one.pid = program, program.pid
    one.do(f"attach {wpfs.mnt} -")
    one.do(f"open 0 {wpfs.mnt}/f")
    one.do(f"size 0 {SIZE}")
    one.do(f"rawmap 0 0 0 {SIZE}")
    one.do("protect 0 0 0")
    one.do("store 0 3 1")
    assert one.dirty() == {3} == report.dirty(wpfs, "t")
    assert wpfs.wpctl_json("status")["clients"] == 1
    assert one.fails(f"attach {wpfs.mnt} other") == "EEXIST"
    one.end()


def test_an_ordinary_user(wpfs):
    os.chmod(wpfs.mnt, 0o777)
    os.chmod(wpfs.dir, 0o755)
    argv = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", str(USER)]
    one = User.__new__(User)
    one.program = wpfs.spawn_bare(*argv, env=BARE)
    one.do(f"attach {wpfs.mnt} t")
    one.do(f"open 0 {wpfs.mnt}/f")
    one.do(f"size 0 {SIZE}")
    one.do(f"map 0 0 0 {SIZE}")
    one.do("protect 0 0 0")
    one.do("store 0 3 1")
    assert one.dirty() == {3}
    one.do("watch 0 8 4")
    one.do("store 0 9 1")
    one.do("readinto 0 10")
    assert one.calls() == [(9, 0), (10, 0)]
    one.end()


def test_two_mounts(make_wpfs):
    """A handle speaks of its own mount; one thread serves the watches of both."""
    first, second = make_wpfs(), make_wpfs()
    one = user(first)
    one.do("protect 0 0 0")
    one.do("watch 0 0 2")
    one.do(f"attach {second.mnt} u")
    assert one.fails("dirty 0 0 0 0 0") == "EXDEV"
    assert one.fails("watch 0 4 2") == "EINVAL"
    one.do(f"open 1 {second.mnt}/g")
    one.do(f"size 1 {SIZE}")
    one.do(f"map 1 1 0 {SIZE}")
    one.do("protect -1 0 0")
    one.do("watch 1 8 2")
    one.do("store 0 4 1")
    one.do("store 1 5 1")
    assert one.dirty(file=1) == {5, 8, 9}
    one.do("store 1 9 1")
    one.do("store 0 1 1")
    assert [page for page, _ in one.calls()] == [9, 1]
    one.do(f"attach {first.mnt} t")
    assert one.dirty() == {0, 1, 4}
    one.kill9()
    assert report.marked(first, "t", owner="program") == {0}
    assert report.marked(second, "u", file="/g", owner="program") == {8}


# ---- errors


def test_errors(wpfs, tmp_path):
    one = User(wpfs)
    assert one.fails(f"attach {tmp_path} t") == "ENOTTY"
    assert "not on a wpfs mount" in one.why()
    assert one.fails(f"attach {wpfs.mnt}/none t") == "ENOENT"
    assert one.fails(f"attach {wpfs.mnt} a/b") == "EINVAL"
    one.do(f"attach {wpfs.mnt} t")
    one.do(f"open 0 {wpfs.mnt}/f")
    one.do(f"size 0 {SIZE}")
    one.do(f"map 0 0 0 {SIZE}")
    one.do(f"open 1 {tmp_path}/other")
    assert one.fails(f"map 1 1 0 {PAGE}") == "EXDEV"
    assert one.fails(f"map 1 0 1 {PAGE}") == "EINVAL"
    assert one.fails("map 1 0 0 0") == "EINVAL"
    assert one.fails("protect 1 0 0") == "EXDEV"
    assert one.fails("protect 0 1 0") == "EINVAL"
    assert one.fails(f"protect 0 0 {PAGE // 2}") == "EINVAL"
    assert one.fails(f"protect -1 0 {PAGE}") == "EINVAL"
    assert one.fails("dirty 0 5 0 0 0") == "EINVAL"
    assert one.fails("dirty 0 0 0 9 0") == "ENOENT"
    assert "no epoch 9" in one.why()
    assert one.fails("dirty 0 0 0 9 8") == "EINVAL"
    assert one.fails(f"dirty 0 {2 ** 63} {2 ** 63} 0 0") == "EINVAL"
    assert one.fails("sync 1") == "EXDEV"
    one.do("close 1")
    assert one.fails("dirty 1 0 0 0 0") == "EBADF"
    one.end()


SELF_PROTECT, SELF_SYNC, SELF_RUNS = 96, 98, 99


def request(wpfs, op, body):
    """One request of a process that is not attached, on a wpctl connection: the reply's status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(harness.SECONDS)
        sock.connect(str(harness.RUN_DIR / wpfs.id / "sock"))
        hello = struct.pack("II72x", 2, 0)
        for seq, (number, payload) in enumerate([(1, hello), (op, body)]):
            sock.send(wire.packet(number, seq, payload))
            reply = sock.recv(65536)
    return wire.HDR.unpack_from(reply)[4]


def self_body(runs=0, file=0, offset=0, length=0, since=0, until=0):
    return struct.pack("II5Q", runs, 0, file, offset, length, since, until)


def test_only_about_oneself(wpfs):
    """A process that is not attached has nothing to ask, and bad questions are refused first."""
    one = user(wpfs)
    one.do("protect 0 0 0")
    ino = os.stat(wpfs.mnt / "f").st_ino
    for op, body in ((SELF_PROTECT, self_body()), (SELF_SYNC, b""), (SELF_RUNS, self_body(1, ino))):
        assert request(wpfs, op, body) == -errno.ESRCH
    for bad in (self_body(0, ino), self_body(4, ino), self_body(1, 0), self_body(1, ino, 1),
                self_body(1, ino, 0, 5), self_body(1, ino, 2 ** 64 - PAGE, 2 * PAGE),
                self_body(1, ino, 2 ** 44, PAGE), self_body(1, ino, 0, 0, 5, 4)):
        assert request(wpfs, SELF_RUNS, bad) == -errno.EINVAL
    assert one.clean() == ALL
    one.end()


def test_descriptors_closed_behind_its_back(wpfs):
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("closeall")
    one.do(f"open 0 {wpfs.mnt}/f")
    one.do("store 0 2 1")
    assert one.dirty() == {2}
    one.do(f"map 1 0 0 {SIZE}")
    one.do("store 1 3 1")
    assert one.dirty() == {2, 3}
    one.end()


# ---- all at once


def stress_file(wpfs):
    (wpfs.mnt / "f").touch()
    os.truncate(wpfs.mnt / "f", 4096 * PAGE)


def stress_counts(line):
    words = line.split()
    return dict(zip(words[::2], map(int, words[1::2])))


def test_every_store_is_in_its_epoch(wpfs):
    """Threads that store, ask, map, unmap and fork, against 40 protects."""
    stress_file(wpfs)
    done = wpfs.command(harness.program("libstress"), wpfs.mnt / "f", 40, env=BARE, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = stress_counts(done.stdout)
    assert counts["asked"] > 10 and counts["forks"] > 10, counts
    assert counts["extra"] < 100, counts


def test_daemons_come_and_go_under_it(make_wpfs):
    """What was asked of a daemon that was killed is asked of the next; nothing is missed."""
    wpfs = make_wpfs(store=True)
    stress_file(wpfs)
    program = wpfs.spawn_bare(harness.program("libstress"), wpfs.mnt / "f", 24, "away", env=BARE)
    for kills in range(4):
        while program.read() != f"round {5 * (kills + 1)}":
            pass
        wpfs.kill9()
        wpfs.restart()
    line = program.read()
    while line.startswith("round"):
        line = program.read()
    assert stress_counts(line)["missing"] == 0, line
    program.wait()


# ---- watch


@BOTH
def test_watch(wpfs, env):
    one = user(wpfs, env=env)
    one.do("store 0 3 33")
    one.do("watch 0 0 16")
    assert one.calls() == []
    assert one.watched() == set(range(16))
    one.do("store 0 3 1")
    one.do("load 0 4")
    one.do("store 0 3 2")
    one.do("store 0 20 1")
    one.do("readinto 0 5")
    assert one.calls() == [(3, 33), (5, 0)], "not once, or not before the store"
    assert one.watched() == set(range(16)) - {3, 5}
    one.do("watch 0 2 2")
    one.do("store 0 3 4")
    one.do("store 0 5 4")
    assert one.calls() == [(3, 2)], "watched again: called again"
    assert one.fails("unmap 0") == "EBUSY"
    assert one.fails("move 0") == "EBUSY"
    one.do("unwatch 0 4 4")
    one.do("store 0 4 1 4")
    assert one.calls() == []
    one.do("store 0 0 1 16")
    assert one.calls() == [(page, 0) for page in (0, 1, 2, 8, 9, 10, 11, 12, 13, 14, 15)]
    one.do("unwatch 0 0 32")
    one.do("unmap 0")
    one.end()


@BOTH
def test_watch_outlives(wpfs, env):
    one = user(wpfs, env=env)
    one.do("watch 0 0 8")
    one.do("store 0 1 11 2")
    one.kill9()
    assert report.marked(wpfs, "t", owner="program") == {0, 3, 4, 5, 6, 7}
    two = user(wpfs, env=env)
    two.do("watch 0 0 32 resume")
    two.do("store 0 0 5 32")
    assert two.calls() == [(page, 0) for page in (0, 3, 4, 5, 6, 7)]
    two.do("watch 0 0 4")
    two.do("store 0 1 6")
    two.end()  # a normal end keeps it too
    three = user(wpfs, env=env)
    three.do("watch 0 0 32 resume")
    three.do("store 0 0 7 32")
    assert [page for page, _ in three.calls()] == [0, 2, 3]
    three.do("watch 0 0 4")
    three.do("detach")
    three.end()
    four = user(wpfs, env=env)
    four.do("watch 0 0 32 resume")
    four.do("store 0 0 8 32")
    assert four.calls() == [], "ended by detach, and came back"
    four.end()


def test_watch_without_a_daemon(wpfs):
    one = user(wpfs)
    one.do("watch 0 0 8")
    wpfs.kill9()
    one.do("store 0 1 1")
    assert one.calls() == [(1, 0)]
    wpfs.restart()
    one.do("store 0 2 1")
    assert one.calls() == [(2, 0)]
    assert one.watched() == {0, 3, 4, 5, 6, 7}
    one.kill9()
    assert report.marked(wpfs, "t", owner="program") == {0, 3, 4, 5, 6, 7}


def test_watch_and_protect(wpfs):
    """One userfaultfd to a mapping: what is watched cannot be proven clean for wpfs."""
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("store 0 20 1")
    one.do("watch 0 0 4")
    assert one.dirty() == {0, 1, 2, 3, 20}
    one.do("protect 0 0 0")
    assert one.dirty() == {0, 1, 2, 3}
    one.do("store 0 1 1")
    assert one.calls() == [(1, 0)], "protecting took the watch away"
    one.do("unwatch 0 0 4")
    one.do("protect 0 0 0")
    assert one.clean() == ALL
    one.do("store 0 2 1")
    assert one.dirty() == {2}
    one.end()


def test_watch_and_fork(wpfs):
    one = user(wpfs)
    one.do("watch 0 0 8")
    one.do("fork 0 0 5")
    assert one.calls() == [], "called for a child's store"
    one.do("store 0 5 1")
    assert one.calls() == [(5, 99)], "the parent's watch went with the fork"
    one.end()


def test_watch_whose_descriptor_is_closed(wpfs):
    """It has ended: nobody waits for a message that nobody reads, and another one can begin."""
    one = user(wpfs)
    one.do("watch 0 0 8")
    one.do("closeall")
    assert one.fails("watch 0 4 8") == "EBUSY"
    one.do("watch 0 16 4")
    one.do("store 0 1 1")
    one.do("store 0 17 1")
    assert one.calls() == [(17, 0)]
    one.do("watch 0 0 8")
    one.do("store 0 1 1 2")
    one.do("store 0 18 1")
    assert one.calls() == [(1, 1), (2, 0), (18, 0)]
    one.end()


def test_a_user_who_gets_no_userfaultfd(make_wpfs):
    wpfs = make_wpfs(options=["uffd=root"])
    os.chmod(wpfs.mnt, 0o777)
    os.chmod(wpfs.dir, 0o755)
    one = User.__new__(User)
    one.program = wpfs.spawn_bare("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", USER,
                                  env=BARE)
    assert one.fails(f"attach {wpfs.mnt} t") == "EPERM"
    assert "uffd=" in one.why()
    one.end()


def test_watch_errors(wpfs):
    one = user(wpfs)
    assert one.fails("watch 0 0 64") == "EINVAL"
    assert one.fails("watch 0 0 0") == "EINVAL"
    one.do("unwatch 0 0 4")
    one.do("watch 0 0 8")
    one.do(f"attach {wpfs.mnt} -")
    assert one.fails("watch 0 4 8") == "EEXIST"
    one.end()


@BOTH
@pytest.mark.parametrize("what", ["once", "again", "end"])
def test_watch_against_writers(wpfs, what, env):
    (wpfs.mnt / "f").write_bytes(bytes(64 * PAGE))
    done = wpfs.command(harness.program("libwatch"), what, wpfs.mnt / "f", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = int(done.stdout.split("calls ")[1])
    assert calls == 6400 if what == "once" else calls > 0


@pytest.mark.parametrize("what", ["once", "again"])
def test_watch_on_a_capped_mount(make_wpfs, what):
    wpfs = make_wpfs(store=True, options=["resident=64M"])
    (wpfs.mnt / "f").write_bytes(bytes(64 * PAGE))
    done = wpfs.command(harness.program("libwatch"), what, wpfs.mnt / "f", env=BARE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_protect_on_a_capped_mount(make_wpfs):
    wpfs = make_wpfs(store=True, options=["resident=64M"])
    one = user(wpfs)
    one.do("protect 0 0 0")
    one.do("store 0 3 1")
    assert one.dirty() == {3}
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    one.do("store 0 5 1")
    assert one.do("load 0 3") == "1"
    assert one.dirty() == {3, 5}
    assert one.clean() == ALL - {3, 5}
    one.end()


# ---- as others build against it


@pytest.fixture(scope="module")
def prefix(installed):
    """An installed libwpfs, and the environment to build and run with it."""
    pc = next(installed.rglob("wpfs.pc"))
    lib = next(installed.rglob("libwpfs.so.0")).parent
    return {"PKG_CONFIG_PATH": str(pc.parent), "PKG_CONFIG_SYSROOT_DIR": str(installed),
            "LD_LIBRARY_PATH": str(lib)}


def flags(prefix, *what):
    done = subprocess.run(["pkg-config", *what, "wpfs"], env={**os.environ, **prefix}, check=True,
                          timeout=60, capture_output=True, text=True)
    return done.stdout.split()


def compiled(prefix, compiler, source, to):
    subprocess.run([*compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", str(source), "-o", str(to),
                    *flags(prefix, "--cflags", "--libs")], check=True, timeout=120)
    return to


def counts(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(line.split()[0]) for line in done.stdout.splitlines()]


def test_the_example(wpfs, prefix, tmp_path):
    """examples/increment.c with an installed library, as its first lines say."""
    file, copy = wpfs.mnt / "f", tmp_path / "copy"
    file.write_bytes(os.urandom(256 * PAGE + 100))
    example = compiled(prefix, ["cc"], harness.SOURCE / "examples/increment.c", tmp_path / "increment")
    first, second = counts(wpfs.command(example, file, copy, env=prefix))
    assert first == 257 and 1 <= second <= 3
    assert copy.read_bytes() == file.read_bytes()
    # Its last stores, before it ended, were backed up: nothing is left for the next run.
    first, second = counts(wpfs.command(example, file, copy, "50", env=prefix))
    assert first == 0 and 30 <= second <= 50
    assert copy.read_bytes() == file.read_bytes()
    (tmp_path / "copy.epoch").unlink()
    assert counts(wpfs.command(example, file, copy, env=prefix))[0] == 257
    assert len((harness.SOURCE / "examples/increment.c").read_text().splitlines()) < 100


def test_the_header_in_cxx(prefix, tmp_path):
    source = tmp_path / "user.cc"
    source.write_text("""
#include <wpfs.h>
#include <cstdio>
static void on_write(void *, void *) {}
int main()
{
    struct wpfs *w;
    struct wpfs_runs runs = {0, nullptr};
    uint64_t epoch;
    void *at = nullptr;
    int err = wpfs_attach("/", "x", &w);
    if (err)
        return std::printf("%s\\n", wpfs_error()) < 0;
    wpfs_map(w, &at, WPFS_PAGE, 3, 1, 0, 0);
    wpfs_protect(w, -1, 0, 0, &epoch);
    wpfs_dirty(w, 0, 0, 0, 0, 0, &runs);
    wpfs_watch(w, at, WPFS_PAGE, WPFS_WATCH_RESUME, on_write, nullptr);
    wpfs_runs_free(&runs);
    wpfs_detach(w);
    struct wpfs_mount_info info;
    return info.kind == WPFS_KIND_CAPPED;
}
""")
    for standard in ("-std=c++11", "-std=c++20"):
        program = compiled(prefix, ["c++", standard, "-Wno-maybe-uninitialized"], source,
                           tmp_path / "user")
        done = subprocess.run([program], env={**os.environ, **prefix}, timeout=60, check=True,
                              capture_output=True, text=True)
        assert done.stdout == "/: not on a wpfs mount\n"


def test_what_it_exports(prefix):
    """Only what the header declares, with versions; and no function of libc is replaced."""
    library = LIB / "libwpfs.so.0"
    done = subprocess.run(["nm", "-D", "--defined-only", library], check=True, timeout=60,
                          capture_output=True, text=True)
    names = {line.split()[-1] for line in done.stdout.splitlines() if " A " not in line}
    header = (harness.SOURCE / "include/wpfs.h").read_text()
    declared = set(re.findall(r"^(?:int|void|const char \*)\s?\*?(wpfs_\w+)\(", header, re.M))
    assert len(declared) > 12
    assert names == {f"{name}@@WPFS_0" for name in declared}
    done = subprocess.run(["readelf", "-d", library], check=True, timeout=60, capture_output=True,
                          text=True)
    assert "soname: [libwpfs.so.0]" in done.stdout
    assert "NODELETE" in done.stdout
