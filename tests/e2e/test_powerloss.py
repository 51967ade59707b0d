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
import time
from pathlib import Path

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
    except (FileNotFoundError, IsADirectoryError):
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
    end = time.monotonic() + harness.SECONDS
    while not harness.proc.is_over(wpfs.pidfd, 0) and time.monotonic() < end:
        work.run(20)
    assert harness.proc.is_over(wpfs.pidfd, harness.SECONDS), "it never came to that point"
    wpfs.kill9()
    copy, log = wpfs.dir / "copy", powerloss.log_size(wpfs)
    no_findings(wpfs, wpfs.store)
    shutil.copytree(wpfs.store, copy)
    wpfs.daemon_env = {}
    wpfs.restart()
    now = tree(wpfs.mnt)
    names = {name[2:]: what for name, what in now.items() if name.startswith("n/")}
    last = work.doer.states[-1]
    assert names == last or abs(len(names) - len(last)) <= 1, "more is gone than what was under way"
    work.doer.states.append(names)
    work.hold(stored_tree(copy), log)
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


# ---- a disk that fails, a disk that is full

SAID = "cannot (write the contents|flush to the store|store names|write to the database)"


def refused(wpfs, path, error):
    """fsync says so, and so does status."""
    with pytest.raises(OSError) as problem:
        sync(path)
    assert problem.value.errno == error
    assert wpfs.wpctl_json("status")["store_error"] == os.strerror(error)
    assert "not all are in the store" in wpfs.wpctl("status", wpfs.mnt).stdout


@pytest.mark.parametrize("what", [powerloss.WRITE, powerloss.SYNC, powerloss.WRITE | powerloss.SYNC])
def test_the_disk_fails_for_a_while(make_wpfs, what):
    wpfs, base, control = begun(make_wpfs)
    wpfs.allow_log(SAID)
    safe, late = wpfs.mnt / "safe", wpfs.mnt / "late"
    safe.write_bytes(b"s" * 3 * PAGE)
    sync(safe)
    control.fail(what, errno.EIO)
    late.write_bytes(b"l" * 5 * PAGE)
    refused(wpfs, late, errno.EIO)
    refused(wpfs, late, errno.EIO)
    assert control.failed >= 2, "the second time was no better than the first"
    (wpfs.mnt / "n/x").mkdir()
    assert safe.read_bytes() == b"s" * 3 * PAGE and late.read_bytes() == b"l" * 5 * PAGE
    control.fail(0)
    sync(late)
    promised = powerloss.log_size(wpfs)
    assert wpfs.wpctl_json("status")["store_error"] is None
    wpfs.umount()
    wpfs.daemon_env = {}
    seen = 0
    for place, log in powerloss.cuts(wpfs, base, what, 12):
        found = stored_tree(place)
        if log >= promised:
            assert found["safe"][2] == b"s" * 3 * PAGE and found["late"][2] == b"l" * 5 * PAGE
            seen += 1
        no_findings(wpfs, place)
    assert seen, "every cut was too early"


@pytest.mark.parametrize("adopted", [False, True])
def test_one_file_that_cannot_be_written(make_wpfs, adopted):
    """It holds up neither the files after it nor the names, and is tried again until it is stored."""
    wpfs = make_wpfs(store=True, options=["flush=1"])
    wpfs.allow_log(SAID)
    (wpfs.mnt / "old").write_bytes(b"o" * PAGE)
    bad = wpfs.mnt / "bad"
    bad.touch()
    sync(bad)
    ino = bad.stat().st_ino
    if adopted:
        wpfs.kill9()  # the next daemon stores everything
    data = Path(wpfs.store, "data", f"{ino & 255:02x}", str(ino))
    data.mkdir(parents=True)
    if adopted:
        wpfs.restart()
    bad.write_bytes(b"b" * PAGE)
    for number in range(20):
        (wpfs.mnt / f"good{number}").write_bytes(bytes([number + 1]) * PAGE)
    harness.proc.wait_for(lambda: wpfs.wpctl_json("status")["store_files"], harness.SECONDS, "a file that fails")
    refused(wpfs, bad, errno.EISDIR)
    sync(wpfs.mnt / "good3")
    refused_still = wpfs.wpctl_json("status")
    assert refused_still["store_files"] == 1 and refused_still["store_error"] == os.strerror(errno.EISDIR)
    want = {f"good{number}": ("file", 1, bytes([number + 1]) * PAGE) for number in range(20)}
    want["old"] = ("file", 1, b"o" * PAGE)
    harness.proc.wait_for(lambda: stored_tree(wpfs.store) == {**want, "bad": ("file", 1, b"")}, harness.SECONDS,
                          "all others are stored")
    assert wpfs.read_log().count("cannot write the contents") == 1, "said once"
    data.rmdir()
    harness.proc.wait_for(lambda: wpfs.wpctl_json("status")["store_error"] is None, harness.SECONDS, "a better try")
    assert wpfs.wpctl_json("status")["store_files"] == 0
    wpfs.lose_power()
    assert stored_tree(wpfs.store) == {**want, "bad": ("file", 1, b"b" * PAGE)}
    wpfs.restart()


def test_synced_while_a_flush_is_under_way(make_wpfs):
    """A flush has written the contents and not made them durable: an fsync then has something to do."""
    wpfs, base, control = begun(make_wpfs)
    wpfs.allow_log(SAID)
    path = wpfs.mnt / "f"
    path.write_bytes(b"f" * 3 * PAGE)
    control.fail(powerloss.SYNC, errno.EIO)  # that of the flush, which stands for one that takes long
    harness.proc.wait_for(lambda: control.failed > 0, harness.SECONDS, "a flush")
    control.fail(0)
    sync(path)
    promised = powerloss.log_size(wpfs)
    wpfs.lose_power()
    wpfs.daemon_env = {}
    disk = powerloss.Disk(base)
    for op, name, off, size, data, at in powerloss.records(wpfs):
        if at <= promised:
            disk.do(op, name, off, size, data)
    disk.leave(wpfs.dir / "cut", lambda: False)
    assert stored_tree(wpfs.dir / "cut")["f"][2] == b"f" * 3 * PAGE


def test_the_disk_is_full(make_wpfs, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "none", disk], check=True, timeout=harness.SECONDS)
    wpfs = make_wpfs(store=True, options=["flush=1"], start=False)
    wpfs.allow_log(SAID)
    wpfs.store = str(disk / "store")
    try:
        wpfs.start()
        (wpfs.mnt / "safe").write_bytes(b"s" * (1 << 20))
        sync(wpfs.mnt / "safe")
        (wpfs.mnt / "large").write_bytes(b"l" * (2 << 20))
        refused(wpfs, wpfs.mnt / "large", errno.ENOSPC)
        (wpfs.mnt / "large").write_bytes(b"L" * (2 << 20))
        assert (wpfs.mnt / "safe").read_bytes() == b"s" * (1 << 20)
        copy = wpfs.dir / "copy"
        shutil.copytree(wpfs.store, copy)
        assert stored_tree(copy)["safe"][2] == b"s" * (1 << 20), "what was safe still is"
        subprocess.run(["mount", "-o", "remount,size=16M", disk], check=True, timeout=harness.SECONDS)
        sync(wpfs.mnt / "large")
        assert wpfs.wpctl_json("status")["store_error"] is None
        wpfs.lose_power()
        wpfs.restart()
        assert (wpfs.mnt / "large").read_bytes() == b"L" * (2 << 20)
        assert (wpfs.mnt / "safe").read_bytes() == b"s" * (1 << 20)
        wpfs.umount()
        no_findings(wpfs, wpfs.store)
    finally:
        if wpfs.daemon:
            wpfs.lose_power()
        subprocess.run(["umount", "-l", disk], check=True, timeout=harness.SECONDS)
