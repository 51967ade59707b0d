# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store at every moment: the daemon is killed at points of commit and flush, power is lost at random
calls with any part of what was not synced, and the store's disk is full or fails.
"""

import errno
import itertools
import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import harness
import powerloss
import report
from harness import PAGE
from mapper import mapped
from test_store import Doer, sync, tree, unsettled

PAGES = 3  # of a file that is written again and again


def stored_tree(store):
    """The tree by the rows and the data files, as tree() gives it of a mount."""
    db = sqlite3.connect(f"{store}/wpfs.db", isolation_level=None)
    db.execute("BEGIN")  # a daemon may commit between the two
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
        """Some versions have a page of zeros, which is a hole in the store."""
        number = sum(map(len, self.versions.values())) + 1
        data = bytes([number % 255 + 1]) * (PAGES * PAGE)
        if number % 2:
            data = data[:PAGE] + bytes(PAGE) + data[2 * PAGE:]
        self.versions[name].append(data)
        fd = os.open(self.wpfs.mnt / name, os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, data, 0)
        if self.doer.random.randrange(2):
            os.fsync(fd)
            self.synced = {name}
            self.doer.safe = len(self.doer.states) - 1
            self.promise()
        os.close(fd)

    def cut(self):
        """One of many files gets another size."""
        fd = os.open(self.wpfs.mnt / f"t{self.doer.random.randrange(40)}", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, self.doer.random.randrange(3 * PAGE))
        os.pwrite(fd, b"t", 0)
        os.close(fd)

    def run(self, steps):
        """Ends early when the daemon is gone."""
        for _ in range(steps):
            try:
                self.doer.step()
                if self.doer.random.randrange(3) == 0:
                    self.write(self.doer.random.choice(list(self.versions)))
                    self.cut()
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


# Of data files: made, written, cut, a hole punched, synced one by one and all, removed, a directory made for
# them; of the database: written and synced.
POINTS = [(op, False) for op in "CWTPSYUM"] + [("W", True), ("S", True)]


@pytest.mark.parametrize("op,database", POINTS)
def test_killed_at_a_point(make_wpfs, op, database):
    """What the store has then is whole, and the next daemon on the same memory loses nothing at all."""
    wpfs, _, control = begun(make_wpfs)
    work = Work(wpfs, ord(op))
    work.run(5)
    control.kill_before(op, database, nth=1 + work.doer.random.randrange(3))
    end = time.monotonic() + harness.STORE_SECONDS
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


AT_THE_END = [("W", False, 1), ("Y", False, 1), ("W", True, 1), ("S", True, 1), ("S", True, 2), ("W", True, 4), ("T", True, 1)]


@pytest.mark.parametrize("op,database,nth", AT_THE_END)
def test_killed_at_a_point_of_the_last_flush(make_wpfs, op, database, nth):
    """Nobody uses the mount any more; the next daemon finds the files in memory, and stores them."""
    wpfs, _, control = begun(make_wpfs)
    work = Work(wpfs, nth)
    work.run(20)
    (wpfs.mnt / "last").write_bytes(b"l" * 3 * PAGE)
    before = tree(wpfs.mnt)
    control.kill_before(op, database, nth)
    subprocess.run(["umount", wpfs.mnt], check=False, timeout=harness.SECONDS, capture_output=True)
    assert harness.proc.is_over(wpfs.pidfd, harness.SECONDS), "it never came to that point"
    assert wpfs._reaped() < 0, "it ended in order"
    no_findings(wpfs, wpfs.store)
    wpfs.daemon_env = {}
    wpfs.restart()
    assert tree(wpfs.mnt) == before
    wpfs.umount()
    assert stored_tree(wpfs.store) == before
    no_findings(wpfs, wpfs.store)
    wpfs.restart()


def check_marks(make_wpfs, options):
    """A page that the store calls not written has the contents it was armed with."""
    wpfs, base, _ = begun(make_wpfs, "harvest=1", *options)
    path = wpfs.mnt / "f"
    path.write_bytes(b"0" * 16 * PAGE)
    program = mapped(wpfs, "t", pages=16)
    armed = {1: path.read_bytes()}
    for turn in range(24):
        program.order(f"store 0 {turn * 7 % 16} 1")
        if options and turn % 4 == 3:
            wpfs.wpctl("evict", wpfs.mnt, "/f", status=None)
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


def test_contents_are_never_newer_than_their_marks(make_wpfs):
    check_marks(make_wpfs, [])


@pytest.mark.parametrize("options", [[], ["resident=64M"]])
def test_what_msync_has_promised(make_wpfs, options):
    """Contents and marks of the file, as they were when it returned, whatever else is lost."""
    wpfs, base, _ = begun(make_wpfs, *options)
    path = wpfs.mnt / "f"
    program = mapped(wpfs, "t", pages=16)
    versions, stored, promised = [bytes(16 * PAGE)], set(), []
    for turn in range(24):
        page = turn * 7 % 16
        program.order(f"store 0 {page} {turn + 1}")
        stored.add(page)
        versions.append(path.read_bytes())
        if turn % 3 == 2:
            program.order("msync 0")
            promised.append((powerloss.log_size(wpfs), set(stored), len(versions) - 1))
        if options and turn % 5 == 4:
            wpfs.wpctl("evict", wpfs.mnt, "/f", status=None)
    ino = path.stat().st_ino
    program.kill9()
    wpfs.umount()
    seen = 0
    for place, log in powerloss.cuts(wpfs, base, 6, 16):
        no_findings(wpfs, place)
        last = [promise for promise in promised if promise[0] <= log]
        if not last:
            continue
        _, pages, version = last[-1]
        data, dirty = contents(place, ino, 16 * PAGE), report.dirty(wpfs, "t", target=place)
        assert pages <= dirty, "a store that msync knew of, and the page is called clean"
        for page in range(16):
            may = {one[page * PAGE:(page + 1) * PAGE] for one in versions[version:]}
            assert data[page * PAGE:(page + 1) * PAGE] in may, f"page {page} is older than what msync has stored"
        seen += 1
    assert seen, "every cut was too early"


def test_marks_of_a_capped_mount_are_not_newer_than_contents(make_wpfs):
    """As above, and pages are in the spill file when they are marked, and when they are stored."""
    check_marks(make_wpfs, ["resident=64M"])


@pytest.mark.parametrize("seed", range(2))
def test_power_is_lost_on_a_new_store(make_wpfs, seed):
    """At any call since the first one of its first mount: it can be mounted, and is what it was."""
    wpfs = make_wpfs(store=True, options=["flush=1"], start=False)
    base = wpfs.dir / "base"
    shutil.copytree(wpfs.store, base)
    powerloss.watch(wpfs)
    wpfs.start()
    (wpfs.mnt / "n").mkdir()
    work = Work(wpfs, seed)
    work.run(20)
    wpfs.umount()
    wpfs.daemon_env = {}
    begins = len(list(powerloss.records(wpfs)))
    empty = 0
    for place, log in itertools.chain(powerloss.cuts(wpfs, base, seed, 4, within=5),
                                      powerloss.cuts(wpfs, base, seed, 6, within=60),
                                      powerloss.cuts(wpfs, base, seed, 6)):
        wpfs.store = str(place)
        wpfs.restart()
        found = tree(wpfs.mnt)
        wpfs.umount()
        if "n" in found:
            work.hold(found, log)
        else:
            assert not found and not [promise for promise in work.promised if promise[0] <= log]
            empty += 1
        no_findings(wpfs, place)
    assert begins > 60 and empty, "no cut was early enough"


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
    wait_stored(wpfs)
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
    wait_stored(wpfs)
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


def at_the_end(wpfs, base, keep=lambda: False):
    """The tree that a power loss now leaves, with nothing of what was not synced."""
    disk = powerloss.Disk(base)
    for op, name, off, size, data, _ in powerloss.records(wpfs):
        disk.do(op, name, off, size, data)
    disk.leave(wpfs.dir / "cut", keep)
    found = stored_tree(wpfs.dir / "cut")
    shutil.rmtree(wpfs.dir / "cut")
    return found


def test_what_a_failed_sync_has_lost_is_written_again(make_wpfs):
    """Also of a file that could not be written to its end: the sync was to make its first part durable."""
    wpfs, base, control = begun(make_wpfs)
    wpfs.allow_log(SAID)
    path = wpfs.mnt / "f"
    path.write_bytes(b"x")
    sync(path)
    control.lose()
    control.fail(powerloss.WRITE | powerloss.SYNC, errno.EIO, spare=1)  # the first MiB can be written
    path.write_bytes(b"f" * (2 << 20))
    harness.proc.wait_for(lambda: wpfs.wpctl_json("status")["store_error"], harness.SECONDS, "a flush that fails")
    harness.proc.wait_for(lambda: control.failed >= 2, harness.SECONDS, "a sync that fails")
    control.fail(0)
    sync(path)
    assert at_the_end(wpfs, base)["f"][2] == b"f" * (2 << 20)


@pytest.mark.parametrize("what", ["an old file", "a new file", "fails"])
def test_what_a_dead_daemon_has_not_synced(make_wpfs, what):
    """The next one finds nothing to write, since memory has it all: that is not enough."""
    wpfs, base, control = begun(make_wpfs, "flush=0")
    path = wpfs.mnt / "f"
    if what != "a new file":
        path.write_bytes(b"o" * PAGE)
        sync(path)
    path.write_bytes(b"n" * PAGE)
    if what == "fails":
        control.lose()
    control.kill_before("S", False)
    with pytest.raises(OSError):
        sync(path)
    wpfs.kill9()
    wpfs.restart()
    if what == "fails":
        wpfs.allow_log(SAID)
        control.fail(powerloss.SYNC, errno.EIO)
        refused(wpfs, path, errno.EIO)
        control.fail(0)
    sync(path)
    assert at_the_end(wpfs, base)["f"][2] == b"n" * PAGE


@pytest.mark.parametrize("how", ["fsync", "flush"])
def test_what_a_dead_daemon_has_not_synced_is_not_called_as_armed(make_wpfs, how):
    """Nothing to write, and nothing durable: a page may still be stored older than its mark."""
    wpfs, _, control = begun(make_wpfs, "flush=0")
    path = wpfs.mnt / "f"
    path.write_bytes(b"o" * 8 * PAGE)
    mapped(wpfs, "t", pages=8).order("store 0 1 1")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    control.kill_before("S", False)
    with pytest.raises(OSError):
        sync(path)
    wpfs.kill9()
    wpfs.options[1] = "flush=1" if how == "flush" else "flush=0"
    control.fail(powerloss.SYNC, errno.EIO)
    wpfs.restart()
    wpfs.allow_log(SAID)
    with open(path, "r+b"):  # touched
        if how == "fsync":
            refused(wpfs, path, errno.EIO)
        else:
            before = control.failed
            harness.proc.wait_for(lambda: control.failed >= before + 2, harness.SECONDS, "a flush that fails")
        assert unsettled(wpfs) == 1
    control.fail(0)
    sync(path)
    assert unsettled(wpfs) == 0


def test_a_dead_daemons_loss_is_not_taken_for_anothers(make_wpfs):
    """An error is told once: when a flush of one file has it, all that the dead one wrote may be lost."""
    wpfs, base, control = begun(make_wpfs, "flush=0")
    path = wpfs.mnt / "g"
    path.write_bytes(b"o" * 2 * PAGE)
    sync(path)
    control.lose()
    path.write_bytes(b"n" * 2 * PAGE)
    control.kill_before("S", False)
    with pytest.raises(OSError):
        sync(path)
    wpfs.kill9()
    wpfs.options[1] = "flush=1"
    wpfs.restart()
    wpfs.allow_log(SAID)
    control.fail(powerloss.SYNC, errno.EIO)
    (wpfs.mnt / "f").write_bytes(b"f" * PAGE)
    harness.proc.wait_for(lambda: control.failed, harness.SECONDS, "a flush that fails")
    control.fail(0)
    sync(path)
    assert at_the_end(wpfs, base)["g"][2] == b"n" * 2 * PAGE


def test_a_synchronous_write_after_a_cut_during_the_first_flush(make_wpfs):
    """What the flush has read before does not come back: the cut was not yet in what it has stored."""
    wpfs, base, control = begun(make_wpfs, "flush=0")
    path, other = wpfs.mnt / "f", wpfs.mnt / "g"
    path.write_bytes(b"A" * 100 * PAGE)
    other.touch()
    sync(path)
    wpfs.kill9()
    wpfs.restart()  # the first fsync of all flushes everything, and nobody else does
    fd = os.open(path, os.O_RDWR | os.O_DSYNC)
    with mmap.mmap(fd, 100 * PAGE) as ours:
        ours[99 * PAGE] = ord("B")
    control.pause_before("W", False)
    with ThreadPoolExecutor(1) as pool:
        flush = pool.submit(sync, other)
        try:
            harness.proc.wait_for(lambda: control.paused, harness.SECONDS, "the flush writes")
            os.ftruncate(fd, 0)
            os.ftruncate(fd, 100 * PAGE)
        finally:
            control.go()
        flush.result(harness.SECONDS)
    os.pwrite(fd, b"C" * PAGE, 0)
    assert at_the_end(wpfs, base)["f"][2] == b"C" * PAGE + bytes(99 * PAGE)
    os.close(fd)


def test_a_synchronous_write_after_what_was_taken_out_of_memory(make_wpfs):
    """MADV_REMOVE of a program that wpfs knows is a cut as one by a request."""
    wpfs, base, _ = begun(make_wpfs, "flush=0")
    path = wpfs.mnt / "f"
    path.write_bytes(b"A" * 64 * PAGE)
    program = mapped(wpfs)
    sync(path)
    program.order("advise 0 8 4 remove")
    fd = os.open(path, os.O_WRONLY | os.O_DSYNC)
    os.pwrite(fd, b"C" * PAGE, 0)
    os.close(fd)
    assert at_the_end(wpfs, base)["f"][2] == b"C" * PAGE + b"A" * 7 * PAGE + bytes(4 * PAGE) + b"A" * 52 * PAGE


def test_a_synchronous_write_does_not_hide_what_else_fails(make_wpfs):
    """Of a file that cannot be written a part is as it was: what has to be written still is not forgotten."""
    wpfs, _, control = begun(make_wpfs)
    wpfs.allow_log(SAID)
    fd = os.open(wpfs.mnt / "f", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    os.pwrite(fd, b"f" * 3 * PAGE, 0)
    control.fail(powerloss.WRITE, errno.EIO)
    with mmap.mmap(fd, 3 * PAGE) as ours:
        ours[2 * PAGE] = ord("t")
    harness.proc.wait_for(lambda: wpfs.wpctl_json("status")["store_files"] == 1, harness.SECONDS, "a flush that fails")
    for _ in range(20):
        os.pwrite(fd, b"f", 0)
        assert wpfs.wpctl_json("status")["store_files"] == 1
    os.close(fd)
    control.fail(0)
    wait_stored(wpfs)


def test_a_synchronous_write_after_one_that_failed(make_wpfs):
    """It stores what that one could not, and so nothing waits any more."""
    wpfs, _, control = begun(make_wpfs, "flush=0")
    wpfs.allow_log(SAID)
    fd = os.open(wpfs.mnt / "f", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    os.pwrite(fd, b"f" * 3 * PAGE, 0)
    control.fail(powerloss.WRITE, errno.ENOSPC)
    with pytest.raises(OSError):
        os.pwrite(fd, b"g" * PAGE, PAGE)
    assert wpfs.wpctl_json("status")["store_files"] == 1
    control.fail(0)
    os.pwrite(fd, b"h" * PAGE, 2 * PAGE)
    assert wpfs.wpctl_json("status")["store_files"] == 0
    os.close(fd)


def do(*argv):
    done = subprocess.run(list(map(str, argv)), timeout=harness.SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


class LoopDisk:
    """An ext4 on an image on a tmpfs: what the tmpfs has no room for the disk cannot write."""

    def __init__(self, place, size):
        self.below, self.disk = place / "below", place / "disk"
        for point in (self.below, self.disk):
            point.mkdir()
        do("mount", "-t", "tmpfs", "-o", "size=1G", "none", self.below)
        self.image = self.below / "image"
        do("fallocate", "-l", size, self.image)
        do("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", self.image)
        do("fallocate", "-l", size, self.image)  # the journal is not to be what cannot be written
        do("mount", "-o", "loop", self.image, self.disk)

    def close(self):
        do("umount", "-l", self.disk)
        do("umount", "-l", self.below)

    def breaks(self):
        """From now on no block that is free can be written: EIO, when the kernel tries to."""
        do("sync", "-f", self.disk)
        do("fstrim", self.disk)
        used = os.statvfs(self.below)
        do("mount", "-o", f"remount,size={(used.f_blocks - used.f_bfree) * used.f_frsize}", self.below)

    def mends(self):
        do("mount", "-o", "remount,size=1G", self.below)


@pytest.fixture
def loop_disk(tmp_path):
    made = []

    def make(size):
        made.append(LoopDisk(tmp_path, size))
        return made[0]

    yield make
    for one in made:
        one.close()


def on_disk(make_wpfs, loop_disk, size):
    disk = loop_disk(size)
    wpfs = make_wpfs(store=True, options=["flush=1"], start=False)
    wpfs.allow_log(SAID)
    wpfs.store = str(disk.disk / "store")
    wpfs.start()
    return wpfs, disk


def good_again(wpfs, want):
    """Stored, there after a power loss and after an unmount, and the store is whole."""
    for name in want:
        harness.proc.wait_for(lambda name=name: sync_works(wpfs.mnt / name), harness.SECONDS, "fsync works again")
    wait_stored(wpfs)
    wpfs.lose_power()
    subprocess.run(["sync", "-f", Path(wpfs.store).parent], stderr=subprocess.DEVNULL, timeout=harness.SECONDS,
                   check=False)  # it tells of the errors that were
    for path in Path(wpfs.store, "data").rglob("*/*"):  # what is read now is what the disk has
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    found = stored_tree(wpfs.store)
    assert {name: found[name][2] for name in want} == want
    wpfs.restart()
    assert {name: (wpfs.mnt / name).read_bytes() for name in want} == want
    wpfs.umount()
    no_findings(wpfs, wpfs.store)


def wait_stored(wpfs):
    """A flush that began before the disk was better may have its error to tell still."""
    harness.proc.wait_for(lambda: wpfs.wpctl_json("status")["store_error"] is None, harness.SECONDS, "all is stored")


def sync_works(path):
    try:
        sync(path)
    except OSError:
        return False
    return True


def test_a_small_disk_is_full(make_wpfs, loop_disk):
    wpfs, disk = on_disk(make_wpfs, loop_disk, "24M")
    try:
        ballast = disk.disk / "ballast"
        (wpfs.mnt / "safe").write_bytes(b"s" * (1 << 20))
        sync(wpfs.mnt / "safe")
        room = os.statvfs(disk.disk)
        do("fallocate", "-l", room.f_bavail * room.f_frsize - (1 << 20), ballast)
        (wpfs.mnt / "large").write_bytes(b"l" * (4 << 20))
        refused(wpfs, wpfs.mnt / "large", errno.ENOSPC)
        (wpfs.mnt / "large").write_bytes(b"L" * (4 << 20))
        (wpfs.mnt / "dir").mkdir()
        assert (wpfs.mnt / "safe").read_bytes() == b"s" * (1 << 20)
        ballast.unlink()
        good_again(wpfs, {"safe": b"s" * (1 << 20), "large": b"L" * (4 << 20)})
    finally:
        if wpfs.daemon:
            wpfs.lose_power()


def test_a_disk_cannot_write_some_blocks(make_wpfs, loop_disk):
    """What the kernel could not write is lost from its cache, and told of once. It is written again."""
    wpfs, disk = on_disk(make_wpfs, loop_disk, "64M")
    try:
        want = {f"f{number}": bytes([number + 1]) * (700000 * number + PAGE) for number in range(6)}
        for name, data in want.items():
            (wpfs.mnt / name).write_bytes(data)
            sync(wpfs.mnt / name)
        disk.breaks()
        for name, data in want.items():
            want[name] = data + b"more" * 1000000
            (wpfs.mnt / name).write_bytes(want[name])
        failed = [name for name in want if not sync_works(wpfs.mnt / name)]
        assert len(failed) > 1, "the disk could write nearly everything"
        assert wpfs.wpctl_json("status")["store_error"]
        assert {name: (wpfs.mnt / name).read_bytes() for name in want} == want
        disk.mends()
        good_again(wpfs, want)
    finally:
        if wpfs.daemon:
            wpfs.lose_power()


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
        wait_stored(wpfs)
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
