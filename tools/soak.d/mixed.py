# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Everything at once on one mount with a store, in a memory cgroup that holds a small part of what
is written, the rest in swap: contents stay right, the daemon's own memory does not grow, no request
waits for long, and after an unmount everything is there.
"""

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests/e2e")]

import harness
import swap

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 256 << 20
FILES, BLOCK = 24, 1 << 20
BLOCKS = 32  # of each file
STUCK = 30  # seconds
# of the daemon's memory, after the first third; ASan keeps what was freed, 256 MiB of it
GROWTH = 336 << 20 if b"__asan_init" in harness.WPFS.read_bytes() else 16 << 20


@contextlib.contextmanager
def cgroup():
    group = MEMORY / f"wpfs-soak-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    try:
        yield group
    finally:
        while (group / "cgroup.procs").read_text().split():
            time.sleep(0.1)
        group.rmdir()


def in_swap(area):
    """Bytes of a swap area that are in use."""
    with open("/proc/swaps", encoding="utf-8") as lines:
        return next(int(line.split()[3]) << 10 for line in lines if line.startswith(area.name))


def own_memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) << 10


def block_of(number, version):
    return hashlib.sha256(f"{number} {version}".encode()).digest() * (BLOCK // 32)


def writer(top, seed, end):
    """Blocks that are written anew and looked at, with fsync now and then; gives what is there."""
    rng, there = random.Random(seed), {}
    while time.monotonic() < end:
        file, at = rng.randrange(FILES), rng.randrange(BLOCKS)
        fd = os.open(f"{top}/{seed}-{file}", os.O_RDWR | os.O_CREAT)
        if (file, at) in there:
            found = os.pread(fd, BLOCK, at * BLOCK)
            assert found == block_of(at, there[file, at]), f"{seed}-{file}: block {at} is not what was written"
        there[file, at] = rng.randrange(1 << 30)
        os.pwrite(fd, block_of(at, there[file, at]), at * BLOCK)
        if rng.randrange(16) == 0:
            os.fsync(fd)
        os.close(fd)
    return there


def load(kind, top, seed, seconds):
    """One process of the load: `python3 mixed.py KIND DIR SEED SECONDS`."""
    end = time.monotonic() + seconds
    if kind == "writer":
        for (file, at), version in writer(top, seed, end).items():
            print(file, at, version)
        return
    while time.monotonic() < end:
        done = subprocess.run([sys.executable, str(harness.SOURCE / "tests/e2e/fs_stress.py"), top, str(seed),
                               "2000"], check=True, stdout=subprocess.PIPE)
        assert not done.stdout, done.stdout.decode()
        seed += 1


def start(kind, top, seed, seconds, group):
    def enter():
        (group / "cgroup.procs").write_text("0")

    return subprocess.Popen([sys.executable, __file__, kind, top, str(seed), str(seconds)], text=True,
                            stdout=subprocess.PIPE, preexec_fn=enter)


class Probe(threading.Thread):
    """A few requests, again and again; how long they took at most."""

    def __init__(self, top):
        super().__init__(daemon=True)
        self.top, self.longest, self.began, self.over = top, 0.0, time.monotonic(), False

    def run(self):
        while not self.over:
            self.began = time.monotonic()
            os.statvfs(self.top)
            os.close(os.open(f"{self.top}/probe", os.O_CREAT | os.O_WRONLY))
            os.stat(f"{self.top}/probe")
            os.unlink(f"{self.top}/probe")
            self.longest = max(self.longest, time.monotonic() - self.began)
            time.sleep(0.1)


def watch(one, probe, seconds):
    """The daemon's memory after a third of the time, and at the end."""
    end, early = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        time.sleep(min(1, seconds / 10))
        assert time.monotonic() - probe.began < STUCK, "a request is stuck"
        if end - time.monotonic() > seconds * 2 / 3:
            early = max(early, own_memory(one.pid))
    return early, own_memory(one.pid)


def compare(top, seed, there):
    for file, at, version in there:
        with open(f"{top}/{seed}-{file}", "rb") as data:
            data.seek(at * BLOCK)
            assert data.read(BLOCK) == block_of(at, version), f"{seed}-{file}: block {at} after the unmount"


def soak(args):
    seconds, seed = args.minutes * 60, args.seed % 100000
    print(f"seed {seed}")
    one = harness.Wpfs(store=True, options=["size=3G"])
    one.start()
    with swap.area(3 << 30) as area, cgroup() as group:
        for name in ("w", "s"):
            (one.mnt / name).mkdir()
        loads = [start("writer", f"{one.mnt}/w", seed + n, seconds, group) for n in range(2)]
        loads += [start("stress", f"{one.mnt}/s", seed + 10 * n, seconds, group) for n in range(2)]
        probe = Probe(str(one.mnt))
        probe.start()
        early, late = watch(one, probe, seconds)
        said = [one_of.communicate(timeout=120)[0] for one_of in loads]
        swapped = in_swap(area)
        probe.over = True
        probe.join()
        assert all(one_of.returncode == 0 for one_of in loads), "a program found something wrong"
        print(f"{swapped >> 20} MiB in swap; longest requests {probe.longest:.2f} s; "
              f"memory of the daemon {early / 2**20:.1f} MiB, then {late / 2**20:.1f} MiB", flush=True)
        assert late < early + GROWTH, "the daemon's memory grows"
        one.umount()
    one.restart()
    for n in range(2):
        there = [tuple(map(int, line.split())) for line in said[n].splitlines()]
        assert there
        compare(f"{one.mnt}/w", seed + n, there)
    one.close()
    print("everything is there after an unmount")
    return 0


if __name__ == "__main__":
    load(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
