# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The work of `tools/bench capped`: a capped mount beside O_DIRECT on the same disk, a raw userfaultfd
and the kernel's own swapping, in turn, round by round. Everything on disk is in /var/tmp.
"""
import contextlib
import os
import shutil
import subprocess
import tempfile
import time

from marks import Row, in_turn
from rig import Orders

MIB = 1 << 20
PAGE = 4096
SIZES = {"fits": 64 * MIB, "resident": 256 * MIB, "file": 1024 * MIB, "reads": 20000,
         "zipf": 200000, "uniform": 40000}
TINY = {"fits": 4 * MIB, "resident": 4 * MIB, "file": 16 * MIB, "reads": 200, "zipf": 2000,
        "uniform": 500}


class Program(Orders):
    def value(self, *words):
        self.send(*words)
        line = self.popen.stdout.readline().strip()
        if not line or line.startswith("err"):
            raise RuntimeError(f"{words}: {line or 'ended'}")
        return int(line)


class Capped:
    """A capped mount on a store in /var/tmp, and a file beside it."""

    def __init__(self, where, resident):
        self.where, self.programs = where, []
        self.dir = tempfile.mkdtemp(prefix="wpfs-bench-", dir="/var/tmp")
        self.mnt, self.store = self.dir + "/mnt", self.dir + "/store"
        self.direct = self.dir + "/direct"
        os.mkdir(self.mnt)
        os.mkdir(self.store, 0o700)
        self.daemon = subprocess.Popen(
            [f"{where}/src/wpfs/wpfs", "-f", "-o", f"resident={resident},flush=0,harvest=0",
             self.store, self.mnt], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not os.path.ismount(self.mnt):
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError("wpfs does not mount")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for program in self.programs:
            program.kill()
        for name in os.listdir(self.mnt):
            os.unlink(os.path.join(self.mnt, name))  # nothing to be stored at the unmount
        subprocess.run(["umount", self.mnt], check=True)
        self.daemon.wait()
        shutil.rmtree(self.dir)

    def program(self, pages, name="bench"):
        """One that maps FILE of the mount, tracked."""
        env = dict(os.environ, WPFS_NAME=name,
                   LD_PRELOAD=f"{self.where}/src/preload/libwpfs_preload.so")
        program = self.bare(env)
        program.value("map", self.mnt + "/f", pages)
        return program

    def bare(self, env=None):
        program = Program([f"{self.where}/tools/bench-capped"], env)
        self.programs.append(program)
        return program

    def ctl(self, *words):
        subprocess.run([f"{self.where}/src/ctl/wpctl", words[0], self.mnt, *words[1:]], check=True,
                       stdout=subprocess.DEVNULL)

    def evict(self):
        begin = time.monotonic_ns()
        self.ctl("evict", "/f")
        return time.monotonic_ns() - begin

    def daemon_bytes(self):
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status
                        if line.startswith("VmRSS:"))


@contextlib.contextmanager
def swapping(resident, size):
    """A way to start a program in a memory cgroup of its own, with a swap file of `size`."""
    group = "/sys/fs/cgroup/memory/wpfs-bench"
    limit = "memory.limit_in_bytes"
    if not os.path.isdir("/sys/fs/cgroup/memory"):
        group, limit = "/sys/fs/cgroup/wpfs-bench", "memory.max"
    fd, swap = tempfile.mkstemp(prefix="wpfs-bench-swap-", dir="/var/tmp")
    tmpfs = tempfile.mkdtemp(prefix="wpfs-bench-", dir="/var/tmp")
    os.posix_fallocate(fd, 0, size)
    os.close(fd)
    os.makedirs(group, exist_ok=True)
    subprocess.run(["mkswap", "-q", swap], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["swapon", swap], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%", "none", tmpfs], check=True)
    try:
        with open(f"{group}/{limit}", "w", encoding="ascii") as file:
            file.write(str(resident))

        def join(pid):
            with open(f"{group}/cgroup.procs", "w", encoding="ascii") as procs:
                procs.write(str(pid))

        yield tmpfs, join
    finally:
        subprocess.run(["umount", tmpfs], check=True)
        os.rmdir(tmpfs)
        subprocess.run(["swapoff", swap], check=True)
        os.unlink(swap)
        os.rmdir(group)


def fits(where, sizes, rounds):
    """Everything stays in memory: what the mount costs then."""
    memory = Row("fits", "a file that fits: random reads and stores, time", 1 / 0.97)
    first = Row("fits_first_write", "  first write to a marked page", 1.2)
    pages = sizes["fits"] // PAGE
    tmpfs = tempfile.mkdtemp(prefix="wpfs-bench-", dir="/dev/shm")
    try:
        with Capped(where, sizes["fits"] * 4) as rig:
            program, raw, marked = rig.program(pages), rig.bare(), rig.bare()
            raw.value("map", tmpfs + "/f", pages)
            marked.value("map", tmpfs + "/m", pages)
            for one in (program, raw, marked):
                one.value("touch")
            marked.value("uffd")
            for i in range(max(rounds, 9)):
                memory.add(*in_turn(i, lambda: program.value("load", "uniform", pages * 64, i),
                                    lambda: raw.value("load", "uniform", pages * 64, i)))
            for i in range(max(rounds, 9)):
                rig.ctl("protect", "--name", "bench")
                marked.value("protect")
                first.add(*in_turn(i, lambda: program.value("writes"),
                                   lambda: marked.value("writes")))
    finally:
        shutil.rmtree(tmpfs)
    return [memory, first]


def refault(where, sizes, rounds):
    """Pages that come back, and pages that go."""
    one = Row("refault_random", "refault, random 4 KiB (raw: O_DIRECT read)", 1.3)
    one.slack = 15000
    threads = Row("refault_threads", "  4 threads, of one thread's rate", 1.6, "x", least=True,
                  ratio=False)
    sequential = Row("refault_sequential", "refault, sequential, rate of O_DIRECT 1 MiB reads", 0.7,
                     "MB/s", least=True)
    evict = Row("evict", "evict, rate of O_DIRECT 1 MiB writes", 0.7, "MB/s", least=True)
    memory = Row("daemon_memory", "memory of the daemon, of the file", 0.3, "%", ratio=False)
    size, reads = sizes["file"], sizes["reads"]
    pages = size // PAGE

    def rate(ns):
        return size / 1e6 / (ns / 1e9)

    with Capped(where, size * 2) as rig:
        before = rig.daemon_bytes()
        program, raw = rig.program(pages), rig.bare()
        program.value("fill", 1)
        for i in range(rounds):
            evict.add(*map(rate, in_turn(
                i, rig.evict, lambda: raw.value("direct", rig.direct, "write", pages))))
            alone, disk = in_turn(
                i, lambda: program.value("random", reads, i, 1) / reads,
                lambda: raw.value("direct", rig.direct, "random", pages, reads, i) / reads)
            one.add(alone, disk)
            rig.evict()
            threads.add(alone / (program.value("random", reads, i + 100, 4) / reads))
            rig.evict()
            sequential.add(*map(rate, in_turn(
                i, lambda: program.value("sequential"),
                lambda: raw.value("direct", rig.direct, "read", pages))))
        memory.add((rig.daemon_bytes() - before) * 100 / size)
        if program.value("check", 1):
            raise RuntimeError("the contents are not what they were")
    return [one, threads, sequential, evict, memory]


def loads(where, sizes, rounds):
    """A file four times as large as what may be in memory, beside the kernel and its swap."""
    rows = {"zipf": Row("load_zipf", "zipf 0.99, half stores, file 4x (raw: the kernel's swap)", 1.0),
            "uniform": Row("load_uniform", "uniform, likewise", 1 / 0.8)}
    memory = Row("daemon_memory_capped", "  memory of the daemon, of the file", 0.3, "%",
                 ratio=False)
    resident, size = sizes["resident"], sizes["file"]
    for i in range(rounds):
        ns = {}
        with Capped(where, resident) as rig:
            before = rig.daemon_bytes()
            program = rig.program(size // PAGE)
            program.value("fill", 1)
            for kind in rows:
                program.value("load", kind, sizes[kind], i)  # what is used is in memory then
                ns[kind] = program.value("load", kind, sizes[kind], i + 100)
            memory.add((rig.daemon_bytes() - before) * 100 / size)
        with swapping(resident, size * 2) as (tmpfs, join):
            program = Program([f"{where}/tools/bench-capped"])
            try:
                join(program.pid)
                program.value("map", tmpfs + "/f", size // PAGE)
                program.value("fill", 1)
                for kind, row in rows.items():
                    program.value("load", kind, sizes[kind], i)
                    row.add(ns[kind] / sizes[kind],
                            program.value("load", kind, sizes[kind], i + 100) / sizes[kind])
            finally:
                program.kill()
    return [*rows.values(), memory]


GROUPS = {"fits": fits, "refault": refault, "loads": loads}
