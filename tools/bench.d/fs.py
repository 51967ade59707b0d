# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The work of `tools/bench fs`: wpfs and tmpfs side by side, round by round in turn; wpfs also with a
store at the default flush, and over io_uring. Goals are ratios to tmpfs, or to the time of the FUSE
round trips that the work takes, each that of an uncached statfs of the same round. They are counted
in the log of a daemon that says each request.
"""
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
    ("readdir", "readdir + stat, of 10k", 20000, "trips", 1.2),
]
TREES = [("unpack", "unpack 20k files"), ("status", "git status there"), ("remove", "rm -rf of it")]
FLAT = [1000, 100000, 1000000]
REQUEST = re.compile(r"opcode: (\w+) ")
NOT_WAITED_FOR = {"FORGET", "BATCH_FORGET", "RELEASE", "RELEASEDIR", "INIT", "DESTROY"}


class Mount:
    """A mounted file system of one kind, empty before each piece of work."""

    def __init__(self, where, kind):
        self.dir = tempfile.mkdtemp(prefix="wpfs-bench-")
        self.point = os.path.join(self.dir, "mnt")
        self.log = os.path.join(self.dir, "log")
        self.daemon = None
        os.mkdir(self.point)
        if kind == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80%,nr_inodes=3M", "none", self.point],
                           check=True)
            return
        argv = [os.path.join(where, "src/wpfs/wpfs"), "-d" if kind == "logged" else "-f", "-o",
                "size=80%,nr_inodes=3M" + (",io_uring" if kind == "uring" else ""),
                os.path.join(self.dir, "store") if kind == "store" else "none", self.point]
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen(argv, stderr=log)
        end = time.monotonic() + 30
        while not os.path.ismount(self.point) or not os.path.exists(self.point + "/."):
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"wpfs does not mount: {open(self.log, encoding='utf-8').read()}")
            time.sleep(0.01)

    def work(self, where, name, count):
        top = tempfile.mkdtemp(dir=self.point)
        done = subprocess.run([os.path.join(where, "tools/bench-fs"), top, name, str(count)], check=True,
                              stdout=subprocess.PIPE, text=True)
        shutil.rmtree(top)
        return float(done.stdout)

    def requests(self, where, name, count):
        """How many requests somebody waited for, of each kind, `count` times the work took."""
        top = tempfile.mkdtemp(dir=self.point)
        before = os.path.getsize(self.log)
        subprocess.run([os.path.join(where, "tools/bench-fs"), top, name, str(count)], check=True,
                       stdout=subprocess.DEVNULL)
        with open(self.log, encoding="utf-8", errors="replace") as log:
            log.seek(before)
            return [kind for kind in REQUEST.findall(log.read()) if kind not in NOT_WAITED_FOR]

    def close(self):
        subprocess.run(["umount", self.point], check=True)
        if self.daemon:
            self.daemon.wait(600)
        shutil.rmtree(self.dir)


def trips(where, name):
    """Requests per piece of work: what 2000 take more than 1000, by kind."""
    mount = Mount(where, "logged")
    try:
        many = 20000 if name == "readdir" else 2000
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


def measure(where, args):
    """{row: {kind: [ns of each round]}}"""
    kinds = ["tmpfs", "wpfs", "store", "uring"]
    if not uring_enabled():
        kinds.remove("uring")
    figures = {}
    mounts = {kind: Mount(where, kind) for kind in kinds}
    archive = make_tree(200 if args.tiny else 20000)

    def note(row, kind, value):
        figures.setdefault(row, {}).setdefault(kind, []).append(value)

    try:
        for i in range(args.rounds):
            print(f"bench: round {i + 1}", file=sys.stderr, flush=True)
            order = kinds[i % len(kinds):] + kinds[:i % len(kinds)]
            for name, _, count, _, _ in CALLS:
                for kind in order:
                    note(name, kind, mounts[kind].work(where, name, max(2, count // 1000) if args.tiny
                                                       else count))
            for kind in order:
                for name, value in tree_times(mounts[kind], archive).items():
                    note(name, kind, value)
        for size in (FLAT[:1] if args.tiny else FLAT if args.flat else FLAT[:2]):
            for kind in ("tmpfs", "wpfs"):
                for _ in range(args.rounds if size == FLAT[0] else 1):
                    note(f"flat {size}", kind, mounts[kind].work(where, "flat", size))
    finally:
        for mount in mounts.values():
            mount.close()
        shutil.rmtree(os.path.dirname(archive))
    return figures


def uring_enabled():
    try:
        with open("/sys/module/fuse/parameters/enable_uring", encoding="ascii") as value:
            return value.read().strip() == "Y"
    except OSError:
        return False


def ratio(figures, a, b):
    return statistics.median(x / y for x, y in zip(figures[a], figures[b]))


def judge(figures, where, tiny):
    """Rows: key, text, medians of each kind, value, what it is of, goal, kept, trips."""
    rows = []

    def add(key, text, value=None, of="", goal=None, least=True, counted=None):
        rows.append({"key": key, "text": text, "value": value, "of": of, "goal": goal,
                     "ok": None if goal is None else (value >= goal if least else value <= goal),
                     "ns": {kind: statistics.median(ns) for kind, ns in figures[key].items()},
                     "trips": counted})

    for name, text, _, to, goal in CALLS:
        if to == "tmpfs":
            add(name, text, 1 / ratio(figures[name], "wpfs", "tmpfs"), "of tmpfs's speed", goal)
        elif to == "trips":
            counted = trips(where, name)
            total = sum(counted.values())
            # At least: what the work takes beside, on a tmpfs, is not the round trips' doing.
            of_trips = statistics.median(
                (w - t) / (total * s) for w, t, s in
                zip(figures[name]["wpfs"], figures[name]["tmpfs"], figures["statfs"]["wpfs"]))
            add(name, text, of_trips, f"of {total:.2g} round trips", goal, False, counted)
        else:
            add(name, text)
    for name, text in TREES:
        add(name, text, ratio(figures[name], "wpfs", "tmpfs"), "x tmpfs's time", 5, False)
    flat = [key for key in figures if key.startswith("flat ")]
    for key in flat:
        first = statistics.median(figures[flat[0]]["wpfs"])
        add(key, f"create, stat, unlink among {key[5:]}", statistics.median(figures[key]["wpfs"]) / first,
            f"x that among {flat[0][5:]}", 1.2, False)
    return rows


def human(ns):
    for size, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= size:
            return f"{ns / size:.3g} {name}"
    return f"{ns:.0f} ns"


def table(rows):
    kinds = [kind for kind in ("tmpfs", "wpfs", "store", "uring") if kind in rows[0]["ns"]]
    print(f"{'':34}" + "".join(f"{kind:>10}" for kind in kinds) + "  wpfs")
    for row in rows:
        cells = "".join(f"{human(row['ns'][kind]) if kind in row['ns'] else '-':>10}" for kind in kinds)
        verdict = ""
        if row["goal"] is not None:
            verdict = f"  {row['value']:.3g} {row['of']}: {'ok' if row['ok'] else 'missed'} ({row['goal']:g})"
        print(f"{row['text']:34}{cells}{verdict}")
        if row["trips"]:
            print(" " * 36 + ", ".join(f"{kind} {n:.3g}" for kind, n in row["trips"].items()))


def main(args):
    where = rig.build()
    rows = judge(measure(where, args), where, args.tiny)
    if args.json:
        print(json.dumps({"bench": "fs", "rounds": args.rounds, "tiny": args.tiny,
                          "rows": {row.pop("key"): row for row in rows}}))
    else:
        print(f"{args.rounds} rounds, in turn; medians")
        table(rows)
