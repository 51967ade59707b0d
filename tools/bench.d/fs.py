# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The work of `tools/bench fs`: wpfs and tmpfs side by side, round by round in turn; wpfs also with a
store at the default flush, and over io_uring. Goals are ratios to tmpfs, or to the time of the FUSE
round trips that the work takes, each that of an uncached statfs of the same round. They are counted
in the log of a daemon that says each request.
"""
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import rig

# work, how often at one time, what the ratio is to, goal
CALLS = [
    ("read", "1 MiB read", 640, "tmpfs", 0.97),
    ("write", "1 MiB write", 640, "tmpfs", 0.97),
    ("load", "mmap load, resident, 64 MiB", 40, "tmpfs", 0.97),
    ("store", "mmap store, resident, 64 MiB", 40, "tmpfs", 0.97),
    ("pread", "4 KiB random pread", 300000, "tmpfs", 0.95),
    ("pwrite", "4 KiB random pwrite", 300000, "tmpfs", 0.75),
    ("stat", "stat, cached", 300000, "tmpfs", 0.9),
    ("lookup", "lookup of 3 names, cached", 300000, "tmpfs", 0.9),
    ("negative", "negative lookup, cached", 300000, "tmpfs", 0.9),
    ("statfs", "statfs: one round trip", 10000, None, None),
    ("open", "open + close", 10000, "trips", 1.2),
    ("create", "create + write + close + unlink", 5000, "trips", 1.2),
    ("rename", "rename", 10000, "trips", 1.2),
    ("readdir", "readdir + stat, a name of 10k", 20000, "trips", 1.2),
]
TREES = [("unpack", "unpack 20k files"), ("status", "git status there"), ("remove", "rm -rf of it")]
FLAT = [1000, 100000, 1000000]
NAMES = 100000
WITH_STORE = 1.1  # times the same without one, at most
GROUPS = ("calls", "trees", "flat", "mount")
URING = "/sys/module/fuse/parameters/enable_uring"
REQUEST = re.compile(r"opcode: (\w+) ")
NOT_WAITED_FOR = {"FORGET", "BATCH_FORGET", "RELEASE", "RELEASEDIR", "INIT", "DESTROY"}


class Mount:
    """A mounted file system of one kind, empty at first. `store`: to be mounted again."""

    def __init__(self, where, kind, store=None):
        self.dir = tempfile.mkdtemp(prefix="wpfs-bench-")
        self.point = os.path.join(self.dir, "mnt")
        self.log = os.path.join(self.dir, "log")
        self.daemon = self.took = self.over_uring = None
        os.mkdir(self.point)
        try:
            self._start(where, kind, store)
        except BaseException:
            self.close()
            raise

    def _start(self, where, kind, store):
        if kind == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80%,nr_inodes=3M", "none", self.point],
                           check=True)
            return
        argv = [os.path.join(where, "src/wpfs/wpfs"), "-d" if kind == "logged" else "-f", "-o",
                "size=80%,nr_inodes=3M" + (",io_uring" if kind == "uring" else ""),
                store or (os.path.join(self.dir, "store") if kind == "store" else "none"), self.point]
        if kind != "uring":
            self._mount(argv)
            return
        with uring_enabled():
            self._mount(argv)
        self.over_uring = "FUSE over io_uring is not" not in self._said()

    def _said(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def _mount(self, argv):
        with open(self.log, "wb") as log:
            began = time.monotonic()
            self.daemon = subprocess.Popen(argv, stderr=log)
        while not os.path.ismount(self.point) or not os.path.exists(self.point + "/."):
            if self.daemon.poll() is not None or time.monotonic() > began + 120:
                raise RuntimeError(f"wpfs does not mount: {self._said()}")
            time.sleep(0.001)
        self.took = (time.monotonic() - began) * 1e9

    def run(self, where, name, count, mib=64):
        """What one took, each time it was measured; a file that is read or written has `mib`."""
        top = tempfile.mkdtemp(dir=self.point)
        done = subprocess.run([os.path.join(where, "tools/bench-fs"), top, name, str(count), str(mib)],
                              check=True, stdout=subprocess.PIPE, text=True)
        return top, [float(line) for line in done.stdout.split()]

    def work(self, where, name, count, mib):
        top, (ns,) = self.run(where, name, count, mib)
        shutil.rmtree(top)
        return ns

    def requests(self, where, name, count):
        """How many requests somebody waited for, of each kind, `count` times the work took."""
        before = os.path.getsize(self.log)
        self.run(where, name, count)
        with open(self.log, encoding="utf-8", errors="replace") as log:
            log.seek(before)
            return [kind for kind in REQUEST.findall(log.read()) if kind not in NOT_WAITED_FOR]

    def close(self):
        """Leaves nothing behind, also when it was not even mounted yet."""
        with rig.undisturbed():
            if os.path.ismount(self.point):
                subprocess.run(["umount", self.point], check=False)
            if self.daemon:
                if os.path.ismount(self.point) or self.took is None:
                    self.daemon.terminate()
                self.daemon.wait(600)
            if os.path.ismount(self.point):
                subprocess.run(["umount", "-l", self.point], check=False)
            shutil.rmtree(self.dir)


def trips(where, name, many):
    """Requests per piece of work: what so many take more than half of them, by kind."""
    mount = Mount(where, "logged")
    try:
        few, more = (mount.requests(where, name, n) for n in (many // 2, many))
    finally:
        mount.close()
    kinds = {kind: (more.count(kind) - few.count(kind)) / (many - many // 2) for kind in set(more)}
    return {kind: n for kind, n in sorted(kinds.items()) if n >= 0.0005}


def make_tree(files):
    """A repository of that many files as a tar archive; its path."""
    top = tempfile.mkdtemp(prefix="wpfs-bench-", dir="/dev/shm")
    tree = os.path.join(top, "tree")
    for number in range(files):
        path = f"{tree}/d{number % 97}/e{number % 13}/file{number}.c"
        if number < 97 * 13:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(f"/* {number} */\n" * (number % 300 + 1))
    git = ["git", "-C", tree, "-c", "user.name=b", "-c", "user.email=b@b", "-c", "gc.auto=0"]
    for argv in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *argv], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["tar", "-C", top, "-cf", f"{top}/tree.tar", "tree"], check=True)
    shutil.rmtree(tree)
    return f"{top}/tree.tar"


def seconds(*argv):
    start = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - start) * 1e9


def tree_times(mount, archive):
    tree = os.path.join(mount.point, "tree")
    return {"unpack": seconds("tar", "-C", mount.point, "-xf", archive),
            "status": seconds("git", "-C", tree, "status", "--porcelain"),
            "remove": seconds("rm", "-rf", tree)}


@contextlib.contextmanager
def uring_enabled():
    """The kernel asks its parameter when a file system is mounted, and not again."""
    with open(URING, encoding="ascii") as value:
        before = value.read()
    try:
        with open(URING, "w", encoding="ascii") as value:
            value.write("Y")
        yield
    finally:
        with open(URING, "w", encoding="ascii") as value:
            value.write(before)


class Figures:
    """{row: {kind: [ns of each round]}}"""

    def __init__(self, where, args):
        self.where, self.tiny, self.rounds = where, args.tiny, args.rounds
        self.ns = {}

    def note(self, row, kind, value):
        self.ns.setdefault(row, {}).setdefault(kind, []).append(value)

    def median(self, row, kind):
        return statistics.median(self.ns[row][kind])

    def ratio(self, row, a, b):
        return statistics.median(x / y for x, y in zip(self.ns[row][a], self.ns[row][b]))

    def beside(self, calls, trees):
        """Calls and trees, all kinds in turn, the first one changing from round to round."""
        kinds = ["tmpfs", "wpfs", "store"] + (["uring"] if os.access(URING, os.W_OK) else [])
        mounts = {}
        archive = make_tree(50 if self.tiny else 20000) if trees else None
        try:
            for kind in kinds:
                mounts[kind] = Mount(self.where, kind)
            if "uring" in kinds and not mounts["uring"].over_uring:
                print("bench: no FUSE over io_uring in this build", file=sys.stderr, flush=True)
                kinds.remove("uring")
            for i in range(self.rounds):
                print(f"bench: round {i + 1}", file=sys.stderr, flush=True)
                order = kinds[i % len(kinds):] + kinds[:i % len(kinds)]
                for name, _, count, _, _ in CALLS if calls else []:
                    count, mib = (max(2, count // 1000), 1) if self.tiny else (count, 64)
                    for kind in order:
                        self.note(name, kind, mounts[kind].work(self.where, name, count, mib))
                for kind in order if trees else []:
                    for name, value in tree_times(mounts[kind], archive).items():
                        self.note(name, kind, value)
        finally:
            for mount in mounts.values():
                mount.close()
            if archive:
                shutil.rmtree(os.path.dirname(archive))

    def flat(self):
        for size in [30, 100] if self.tiny else FLAT:
            print(f"bench: among {size}", file=sys.stderr, flush=True)
            for kind in ("tmpfs", "wpfs"):
                mount = Mount(self.where, kind)
                try:
                    for ns in mount.run(self.where, "flat", size)[1]:
                        self.note(f"flat_{size}", kind, ns)
                finally:
                    mount.close()

    def mount(self):
        """What a mount of a store takes for each name in it."""
        count = 100 if self.tiny else NAMES
        top = tempfile.mkdtemp(prefix="wpfs-bench-")
        store = os.path.join(top, "store")
        try:
            mount = Mount(self.where, "wpfs", store)
            try:
                mount.run(self.where, "names", count)
            finally:
                mount.close()
            for i in range(self.rounds):
                print(f"bench: mount {i + 1}", file=sys.stderr, flush=True)
                mount = Mount(self.where, "wpfs", store)
                self.note("mount", "store", mount.took / count)
                mount.close()
        finally:
            shutil.rmtree(top)


def judge_call(figures, add, call):
    name, text, _, to, goal = call
    if to == "tmpfs":
        add(name, text, 1 / figures.ratio(name, "wpfs", "tmpfs"), "of tmpfs's speed", goal)
    elif to == "trips":
        many = 200 if figures.tiny else 20000 if name == "readdir" else 2000
        counted = trips(figures.where, name, many)
        # A name of a directory comes with many others in one request: held against one for each.
        total = max(1, sum(counted.values()))
        # What the work takes on a tmpfs is not the round trips' doing.
        of_trips = statistics.median(
            (w - t) / (total * s) for w, t, s in
            zip(figures.ns[name]["wpfs"], figures.ns[name]["tmpfs"], figures.ns["statfs"]["wpfs"]))
        add(name, text, of_trips, f"of {total:.2g} round trips", goal, False, counted)
    else:
        add(name, text)


def judge(figures, groups):
    """Rows: key, text, medians of each kind, value, what it is of, goal, kept, trips, and what
    wpfs with a store, and over io_uring, takes of wpfs's time."""
    rows = []

    def add(key, text, value=None, of="", goal=None, least=True, counted=None):
        kinds = figures.ns[key]
        store = figures.ratio(key, "store", "wpfs") if {"store", "wpfs"} <= set(kinds) else None
        rows.append({"key": key, "text": text, "value": value, "of": of, "goal": goal,
                     "bound": "min" if least else "max",
                     "ok": None if goal is None else (value >= goal if least else value <= goal),
                     "ns": {kind: statistics.median(ns) for kind, ns in kinds.items()},
                     "trips": counted, "store": store,
                     "store_ok": None if store is None else store <= WITH_STORE,
                     "uring": figures.ratio(key, "uring", "wpfs") if "uring" in kinds else None})

    for call in CALLS if "calls" in groups else []:
        judge_call(figures, add, call)
    for name, text in TREES if "trees" in groups else []:
        add(name, text, figures.ratio(name, "wpfs", "tmpfs"), "x tmpfs's time", 5, False)
    flat = [key for key in figures.ns if key.startswith("flat_")]
    for key in flat:
        add(key, f"make, stat, open, rename among {key[5:]}",
            figures.median(key, "wpfs") / figures.median(flat[0], "wpfs"),
            f"x that among {flat[0][5:]}", 1.2, False)
    if "mount" in groups:
        add("mount", "mount, a name of 100k", figures.median("mount", "store") / 1000, "us a name", 15,
            False)
    return rows


def human(ns):
    for size, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= size:
            return f"{ns / size:.3g} {name}"
    return f"{ns:.0f} ns"


def table(rows):
    kinds = [kind for kind in ("tmpfs", "wpfs", "store", "uring") if any(kind in row["ns"] for row in rows)]
    beside = [kind for kind in ("store", "uring") if any(row[kind] for row in rows)]
    print(f"{'':34}" + "".join(f"{kind:>10}" for kind in kinds) +
          "".join(f"{kind + '/wpfs':>12}" for kind in beside) + "  wpfs")
    for row in rows:
        cells = "".join(f"{human(row['ns'][kind]) if kind in row['ns'] else '-':>10}" for kind in kinds)
        for kind in beside:
            missed = "!" if kind == "store" and row["store_ok"] is False else " "
            cells += f"{row[kind]:>11.2f}{missed}" if row[kind] else f"{'-':>11} "
        verdict = ""
        if row["goal"] is not None:
            verdict = f"  {row['value']:.3g} {row['of']}: {'ok' if row['ok'] else 'missed'} ({row['goal']:g})"
        print(f"{row['text']:34}{cells}{verdict}")
        if row["trips"]:
            print(" " * 36 + ", ".join(f"{kind} {n:.3g}" for kind, n in row["trips"].items()))
    if "store" in beside:
        print(f"!: with a store it takes more than {WITH_STORE:g} times as long as without")


def main(args):
    groups = args.groups or GROUPS
    figures = Figures(rig.build(), args)
    if "calls" in groups or "trees" in groups:
        figures.beside("calls" in groups, "trees" in groups)
    if "flat" in groups:
        figures.flat()
    if "mount" in groups:
        figures.mount()
    rows = judge(figures, groups)
    if args.json:
        print(json.dumps({"bench": "fs", "rounds": args.rounds, "tiny": args.tiny,
                          "rows": {row.pop("key"): row for row in rows}}))
    else:
        print(f"{args.rounds} rounds, in turn; medians")
        table(rows)
