# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What tests/progs/storeio.c wrote down of a daemon's store, and every state of the store that a power
loss may leave: of what was not synced any part is lost, in blocks of 4096 bytes.
"""

import mmap
import os
import random
import shutil
import struct
from pathlib import Path

import harness

RECORD = struct.Struct("<IIQQ")
CONTROL = struct.Struct("<14I")
BLOCK = 4096
WRITE, SYNC, DB = 1, 2, 4


class Control:
    """What the preloaded library is told, and how far the daemon is."""

    def __init__(self, path):
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def get(self, field):
        return CONTROL.unpack_from(self.map)[field]

    def put(self, field, value):
        struct.pack_into("<I", self.map, 4 * field, value)

    calls = property(lambda self: self.get(0))
    failed = property(lambda self: self.get(4))

    def kill_after(self, calls):
        self.put(1, self.calls + calls)

    def kill_before(self, op, database, nth=1):
        """The nth call of this kind from now on is not done."""
        self.put(5, ord(op))
        self.put(6, int(database))
        self.put(7, nth)

    def fail(self, what, error=0, spare=0):
        """All calls of this kind, but for the first `spare`."""
        self.put(3, error)
        self.put(8, spare)
        self.put(2, what)

    def lose(self):
        """What was written and not synced is lost when a sync fails, though who reads sees it still."""
        self.put(9, 1)

    paused = property(lambda self: self.get(13))

    def pause_before(self, op, database, nth=1):
        """The nth call of this kind from now on waits, and so do those after it, for go()."""
        self.put(10, ord(op))
        self.put(11, int(database))
        self.put(12, nth)

    def go(self):
        self.put(10, 0)


def watch(wpfs):
    """From its next start on the daemon is under control; gives that."""
    control = Control(wpfs.dir / "storeio.ctl")
    wpfs.daemon_env = {
        "LD_PRELOAD": str(harness.BUILD / "tests/storeio.so"), "STOREIO_STORE": os.path.realpath(wpfs.store),
        "STOREIO_LOG": str(wpfs.dir / "storeio.log"), "STOREIO_CTL": str(wpfs.dir / "storeio.ctl")}
    return control


def log_size(wpfs):
    return os.stat(wpfs.dir / "storeio.log").st_size


def records(wpfs):
    """(op, path, off, len, data, where it ends in the log) for each call."""
    log = (wpfs.dir / "storeio.log").read_bytes()
    at = 0
    while at < len(log):
        op, path_len, off, size = RECORD.unpack_from(log, at)
        at += RECORD.size
        path = log[at:at + path_len].decode()
        at += path_len
        data = log[at:at + size] if chr(op) == "W" else b""
        at += len(data)
        yield chr(op), path, off, size, data, at


class File:
    """Contents that are safe, and what was done since they last were."""

    def __init__(self, content=b""):
        self.safe, self.pending = bytearray(content), []

    @staticmethod
    def apply(content, op, off, size, data):
        if op == "T":
            del content[size:]
            content.extend(bytes(size - len(content)))
        elif op == "P":
            end = min(off + size, len(content))
            content[off:end] = bytes(max(end - off, 0))
        else:
            content.extend(bytes(max(off - len(content), 0)))
            content[off:off + size] = data

    def do(self, op, off, size, data):
        """A write is as many as it has blocks."""
        if op != "W":
            self.pending.append((op, off, size, data))
            return
        at = off
        while at < off + size:
            end = min((at // BLOCK + 1) * BLOCK, off + size)
            self.pending.append(("W", at, end - at, data[at - off:end - off]))
            at = end

    def sync(self):
        for one in self.pending:
            self.apply(self.safe, *one)
        self.pending = []

    def lost(self, keep):
        """A copy of what may be left: each pending change is kept when keep() says so."""
        content = bytearray(self.safe)
        for one in self.pending:
            if keep():
                self.apply(content, *one)
        return content


class Disk:
    """The store: names that are safe and the changes of names since, by directory."""

    def __init__(self, base):
        self.names = {str(path.relative_to(base)): None if path.is_dir() else File(path.read_bytes())
                      for path in Path(base).rglob("*") if not path.name.endswith("-shm")}
        self.safe = dict(self.names)
        self.pending = {}

    def do(self, op, path, off, size, data):
        if op in "CMU":
            new = {"C": File, "M": lambda: None, "U": lambda: "gone"}[op]()
            if op == "U":
                self.names.pop(path, None)
            else:
                self.names[path] = new
            self.pending.setdefault(os.path.dirname(path), []).append((path, new))
        elif op == "L":
            for name, one in self.names.items():
                if one and path in ("", name) and not name.startswith("wpfs.db"):
                    one.pending = []
        elif op == "Y":
            for one in self.names.values():
                if one:
                    one.sync()
            for parent in list(self.pending):
                self.sync_dir(parent)
        elif op == "S" and self.names.get(path) is not None:
            self.names[path].sync()
        elif op == "S":
            self.sync_dir(path)
        elif self.names.get(path):
            self.names[path].do(op, off, size, data)

    @staticmethod
    def rename(names, path, new):
        if new == "gone":
            names.pop(path, None)
        else:
            names[path] = new

    def sync_dir(self, parent):
        for path, new in self.pending.pop(parent, []):
            self.rename(self.safe, path, new)

    def leave(self, place, keep):
        """Makes a directory with what is left."""
        names = dict(self.safe)
        for changes in self.pending.values():
            for path, new in changes:
                if keep():
                    self.rename(names, path, new)
        place.mkdir(mode=0o700)
        for path, one in sorted(names.items()):
            to = place / path
            if not to.parent.is_dir():
                continue  # with its directory
            if one is None:
                to.mkdir(exist_ok=True)
            else:
                to.write_bytes(one.lost(keep))


def cuts(wpfs, base, seed, number, within=None):
    """
    `number` power losses at random calls, all or the first `within`, and after the last of them: (directory,
    bytes of the log that were written until then). Everything that was not synced is lost in some, nothing in
    others, any part of it in most.
    """
    choice = random.Random(seed)
    log = list(records(wpfs))[:within]
    ends = sorted(choice.choices(range(1, len(log) + 1), k=number - 1)) + [len(log)]
    disk, done = Disk(base), 0
    for turn, end in enumerate(ends):
        for op, path, off, size, data, at in log[done:end]:
            disk.do(op, path, off, size, data)
        done = end
        share = choice.choice([0, 1, 0.2, 0.5, 0.8])
        place = wpfs.dir / f"cut{turn}"
        disk.leave(place, lambda share=share: choice.random() < share)
        yield place, log[end - 1][5]
        shutil.rmtree(place)
