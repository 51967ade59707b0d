# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The file system for longer than tools/check has time: random operations beside a tmpfs, a million
files under few descriptors, and programs that check themselves.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import harness
from trees import everything

MILLION = 1000000
LIMIT = 20000


def tmpfs(options):
    point = tempfile.mkdtemp(prefix="wpfs-tmpfs-")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"inode64,{options}", "none", point], check=True)
    return point


def kept(one):
    """Is all of it there after an unmount and a mount?"""
    before = everything(one.mnt)
    one.umount()
    findings = one.wpctl_json("check", target=one.store)["findings"]
    one.options = [option for option in one.options if not option.startswith("mode=")]  # the root's as stored
    one.restart()
    after = everything(one.mnt)
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            print(f"{name}: was {before.get(name)}, is {after.get(name)}")
    for finding in findings:
        print(finding)
    return before == after and not findings


def random_operations(args):
    """
    Rounds of fsdiff, each with the next seed; every other one on a mount whose store is written each
    second. 0 when there was no difference.
    """
    end = time.monotonic() + args.minutes * 60
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "little")
    options = ["relatime", "noatime", "strictatime", "nodiratime"]
    rounds = 0
    while time.monotonic() < end:
        limits = ["size=256M", "mode=755", options[seed % 4]]
        store = seed % 2 == 1
        one, model = harness.Wpfs(store or "none", [*limits, "flush=1"]), tmpfs(",".join(limits))
        try:
            one.start()
            os.chmod(one.dir, 0o755)
            seconds = max(1, min(60, round(end - time.monotonic())))
            done = subprocess.run([harness.program("fsdiff"), "--seed", str(seed), "--seconds",
                                   str(seconds), model, one.mnt], check=False)
            if done.returncode or (store and not kept(one)):
                print(f"again: tools/soak --fs --seed {seed}")
                return 1
        finally:
            subprocess.run(["umount", model], check=True)
            os.rmdir(model)
            one.close()
        seed += 1
        rounds += 1
    print(f"{rounds} rounds, no difference")
    return 0


def rss(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def make_files(top, count):
    for number in range(count):
        os.close(os.open(f"{top}/{number}", os.O_CREAT | os.O_WRONLY))


def deep(top, count):
    """Directories in each other, 100 files in each."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(count // 100):
        for number in range(99):
            os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def timed(what, function, *args):
    start = time.monotonic()
    value = function(*args)
    print(f"{what:42} {time.monotonic() - start:8.1f} s", flush=True)
    return value


def scale():
    one = harness.Wpfs(options=["nr_inodes=3M"])
    one.under = ["prlimit", f"--nofile={LIMIT}:{LIMIT}", "setpriv", "--bounding-set=-sys_resource"]
    one.start()
    try:
        before = rss(one.pid)
        (one.mnt / "wide").mkdir()
        timed("a million files in one directory", make_files, one.mnt / "wide", MILLION)
        print(f"memory of the daemon per known file        {(rss(one.pid) - before) / MILLION:8.0f} B")
        names = timed("readdir", os.listdir, one.mnt / "wide")
        assert len(set(names)) == MILLION, len(names)
        timed("stat of each", lambda: [os.stat(f"{one.mnt}/wide/{name}") for name in names])
        timed("a million in a deep tree", deep, one.mnt, MILLION)
        timed("rm -r of the wide one", shutil.rmtree, one.mnt / "wide")
        timed("find, and rm -r, of the deep one", one.command, "rm", "-r", one.mnt / "d")
        print(f"descriptors of the daemon                  {len(os.listdir(f'/proc/{one.pid}/fd')):8}")
        print(f"memory of the daemon then                  {rss(one.pid) / 2**20:8.1f} MiB")
    finally:
        one.close()
    return 0


def run(one, *argv, user=None, timeout=600):
    argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv] if user else argv
    done = one.command(*argv, timeout=timeout)
    print(f"{'ok' if done.returncode == 0 else 'FAILED':7} {' '.join(map(str, argv))}", flush=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:])
    return done.returncode


def postgres(one):
    bins = [Path(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    if not bins or not (bins[-1] / "initdb").exists():
        print("FAILED  PostgreSQL is not installed: apt-get install postgresql")
        return 1
    data, where = one.mnt / "pg", bins[-1]
    user = shutil.which("pgbench") and "postgres"
    data.mkdir()
    shutil.chown(data, user, user)
    bad = run(one, where / "initdb", "-D", data, "--no-instructions", user=user)
    bad = bad or run(one, where / "pg_ctl", "-D", data, "-w", "-l", data / "log", "-o",
                     f"-k {data} -c listen_addresses=", "start", user=user)
    if bad:
        return bad
    try:
        bad = run(one, "pgbench", "-h", data, "-i", "-s", "5", "postgres", user=user)
        bad = bad or run(one, "pgbench", "-h", data, "-c", "4", "-T", "20", "postgres", user=user)
        bad = bad or run(one, where / "pg_amcheck" if (where / "pg_amcheck").exists() else "true",
                         "-h", data, "--install-missing", "postgres", user=user)
    finally:
        bad = run(one, where / "pg_ctl", "-D", data, "-w", "stop", user=user) or bad
    return bad


def fio(one):
    common = ["fio", "--name=f", f"--directory={one.mnt}", "--size=32M", "--numjobs=2", "--verify=crc32c",
              "--verify_fatal=1", "--group_reporting", "--minimal"]
    return sum(run(one, *common, f"--rw={rw}", f"--ioengine={engine}", "--bs=4k") for rw, engine in
               (("randwrite", "psync"), ("randrw", "mmap"), ("write", "libaio"), ("randwrite", "io_uring")))


STRESSORS = ("access chmod chown copy-file dentry dir dup fallocate fanotify fcntl fiemap file-ioctl "
             "filename flock fpunch hdd inode-flags inotify lease link locka lockf lockofd "
             "mknod mmap mmapmany msync open rename seek sendfile symlink sync-file touch "
             "utime xattr").split()


def stress_ng(one):
    bad = 0
    for name in STRESSORS:
        bad += run(one, "stress-ng", f"--{name}", "2", "--timeout", "4s", "--verify", "--temp-path",
                   one.mnt, "--quiet") != 0
    return bad


def programs():
    one = harness.Wpfs(options=["size=4G"]).start()
    os.chmod(one.dir, 0o755)
    os.chmod(one.mnt, 0o1777)
    try:
        bad = postgres(one) + fio(one) + stress_ng(one)
    finally:
        one.close()
    print(f"{bad} failed")
    return 1 if bad else 0


def soak(args):
    if args.fs_scale:
        return scale()
    return programs() if args.fs_programs else random_operations(args)
