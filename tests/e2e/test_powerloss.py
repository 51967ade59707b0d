# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store at every moment: the daemon is killed at points of commit and flush, power is lost at random
calls with any part of what was not synced, and the store's disk is full or fails.
"""

import errno
import os
import shutil
import sqlite3
import stat
import subprocess

import pytest

import harness
import powerloss
import report
from harness import PAGE
from mapper import mapped
from test_store import Doer, sync, tree

PAGES = 3  # of a file that is written again and again


def stored_tree(store):
    """The tree by the rows and the data files, as tree() gives it of a mount."""
    db = sqlite3.connect(f"{store}/wpfs.db")
    inodes = {row[0]: row[1:] for row in db.execute("SELECT id, mode, size, target, nlink FROM inode")}
    names = {}
    for parent, name, ino in db.execute("SELECT parent, name, id FROM dirent"):
        names.setdefault(parent, []).append((name.decode(), ino))
    db.close()
    found = {}

    def walk(parent, above):
        for name, ino in names.get(parent, []):
            mode, size, target, nlink = inodes[ino]
            if stat.S_ISDIR(mode):
                found[above + name] = ("dir",)
                walk(ino, f"{above}{name}/")
            elif stat.S_ISLNK(mode):
                found[above + name] = ("link", target.decode())
            else:
                found[above + name] = ("file", nlink, contents(store, ino, size))

    walk(1, "")
    return found


def contents(store, ino, size):
    try:
        with open(f"{store}/data/{ino & 255:02x}/{ino}", "rb") as file:
            return file.read(size).ljust(size, b"\0")
    except FileNotFoundError:
        return bytes(size)


class Work:
    """Names that change at random in n/, files of fixed size that are written anew; what was promised."""

    def __init__(self, wpfs, seed):
        self.wpfs = wpfs
        self.top = wpfs.mnt / "n"
        self.doer = Doer(self.top, seed)
        self.versions = {f"c{n}": [] for n in range(3)}
        self.promised = []  # (size of the log, number of the state of n/, versions of the files)

    def promise(self):
        self.promised.append((powerloss.log_size(self.wpfs), self.doer.safe,
                              {name: len(all_of) - 1 for name, all_of in self.versions.items()
                               if name in self.synced}))

    synced = frozenset()

    def write(self, name):
        number = sum(map(len, self.versions.values())) + 1
        data = bytes([number % 255 + 1]) * (PAGES * PAGE)
        self.versions[name].append(data)
        fd = os.open(self.wpfs.mnt / name, os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, data, 0)
        if self.doer.random.randrange(2):
            os.fsync(fd)
            self.synced = {name}
            self.doer.safe = len(self.doer.states) - 1
            self.promise()
        os.close(fd)

    def run(self, steps):
        """Ends early when the daemon is gone."""
        for _ in range(steps):
            try:
                self.doer.step()
                if self.doer.random.randrange(3) == 0:
                    self.write(self.doer.random.choice(list(self.versions)))
                os.listdir(self.wpfs.mnt)
            except OSError as problem:
                if problem.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                    return
                raise

    def hold(self, found, log):
        """Is this a tree that may be there when the log had that many bytes?"""
        names = {name[2:]: what for name, what in found.items() if name.startswith("n/")}
        assert names in self.doer.states, f"a tree that never was: {names}"
        last = len(self.doer.states) - 1 - self.doer.states[::-1].index(names)
        least = {}
        for at, state, versions in self.promised:
            if at <= log:
                assert last >= state, f"state {state} was promised, and {last} is the last one there"
                least.update(versions)
        for name, version in least.items():
            kind, _, data = found[name]
            assert kind == "file" and len(data) == PAGES * PAGE
            for page in range(0, len(data), PAGE):
                may = {one[page:page + PAGE] for one in self.versions[name][version:]}
                assert data[page:page + PAGE] in may, f"{name}: page {page // PAGE} is older than synced"


def no_findings(wpfs, store):
    assert wpfs.wpctl_json("check", target=store)["findings"] == []


def begun(make_wpfs, *options):
    """A mount on a store that has been mounted before, under control; what the store was."""
    wpfs = make_wpfs(store=True, options=["flush=1", *options])
    (wpfs.mnt / "n").mkdir()
    wpfs.umount()
    base = wpfs.dir / "base"
    shutil.copytree(wpfs.store, base)
    control = powerloss.watch(wpfs)
    wpfs.restart()
    return wpfs, base, control


@pytest.mark.parametrize("seed", range(3))
def test_power_is_lost_at_any_call(make_wpfs, seed):
    wpfs, base, _ = begun(make_wpfs)
    work = Work(wpfs, seed)
    work.run(40)
    wpfs.umount()
    wpfs.daemon_env = {}
    for turn, (place, log) in enumerate(powerloss.cuts(wpfs, base, seed, 12)):
        copy = wpfs.dir / "copy"
        shutil.copytree(place, copy)
        found = stored_tree(copy)
        work.hold(found, log)
        shutil.rmtree(copy)
        no_findings(wpfs, place)
        if turn % 6 == 5:
            wpfs.store = str(place)
            wpfs.restart()
            assert tree(wpfs.mnt) == found
            wpfs.umount()
            told = wpfs.wpctl_json("check", target=place)
            assert told["findings"] == [] and told["leftovers"] == 0


POINTS = [("C", False), ("W", False), ("S", False), ("Y", False), ("U", False), ("W", True), ("S", True)]


@pytest.mark.parametrize("op,database", POINTS)
def test_killed_at_a_point(make_wpfs, op, database):
    """What the store has then is whole, and the next daemon on the same memory loses nothing at all."""
    wpfs, _, control = begun(make_wpfs)
    work = Work(wpfs, ord(op))
    work.run(5)
    control.kill_before(op, database, nth=1 + work.doer.random.randrange(3))
    work.run(200)
    assert harness.proc.is_over(wpfs.pidfd, harness.SECONDS), "it never came to that point"
    wpfs.kill9()
    copy = wpfs.dir / "copy"
    shutil.copytree(wpfs.store, copy)
    work.hold(stored_tree(copy), powerloss.log_size(wpfs))
    no_findings(wpfs, wpfs.store)
    wpfs.daemon_env = {}
    wpfs.restart()
    now = tree(wpfs.mnt)
    names = {name[2:]: what for name, what in now.items() if name.startswith("n/")}
    last = work.doer.states[-1]  # and perhaps the change that was under way
    assert names == last or abs(len(names) - len(last)) <= 1
    for name, versions in work.versions.items():
        if versions:
            assert now[name][2][:1] in {one[:1] for one in versions[-2:]}
    wpfs.umount()
    assert stored_tree(wpfs.store) == now
    no_findings(wpfs, wpfs.store)


def test_contents_are_never_newer_than_their_marks(make_wpfs):
    """A page that the store calls not written has the contents it was armed with."""
    wpfs, base, _ = begun(make_wpfs, "harvest=1")
    path = wpfs.mnt / "f"
    path.write_bytes(b"0" * 16 * PAGE)
    program = mapped(wpfs, "t", pages=16)
    armed = {1: path.read_bytes()}
    for turn in range(24):
        program.order(f"store 0 {turn * 7 % 16} 1")
        if turn % 3 == 1:
            sync(path)
        if turn % 8 == 7:
            wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
            armed[len(armed) + 1] = path.read_bytes()
    program.kill9()
    wpfs.umount()
    clean = 0
    for place, _ in powerloss.cuts(wpfs, base, 5, 20):
        db = sqlite3.connect(place / "wpfs.db")
        rows = db.execute("SELECT m.epoch, f.file, f.unsettled FROM mm AS m JOIN mm_file AS f ON f.mm = m.id"
                          " JOIN inode AS i ON i.id = f.file").fetchall()
        size = db.execute("SELECT i.size FROM inode AS i JOIN mm_file AS f ON f.file = i.id").fetchall()
        db.close()
        no_findings(wpfs, place)
        if not rows or rows[0][2] or rows[0][0] not in armed:
            continue
        epoch, ino, _ = rows[0]
        data = contents(place, ino, size[0][0])
        dirty = report.dirty(wpfs, "t", target=place)
        for page in set(range(16)) - dirty:
            assert data[page * PAGE:(page + 1) * PAGE] == armed[epoch][page * PAGE:(page + 1) * PAGE], \
                f"page {page} of epoch {epoch} is stored newer than its mark"
            clean += 1
    assert clean, "no page was ever proven clean: this test saw nothing"
