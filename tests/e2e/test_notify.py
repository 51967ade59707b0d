# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpfs under a service manager: what it tells it and when, its watchdog, and levels for the journal."""

import concurrent.futures
import ctypes
import os
import socket
import subprocess
import time

import pytest

import harness
import powerloss
import proc
from mapper import mapped

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Manager:
    """The socket of a service manager, at a path or abstract."""

    def __init__(self, wpfs, abstract=False, seconds=harness.SECONDS):
        self.path = f"\0wpfs-test-{os.getpid()}" if abstract else str(wpfs.dir / "notify sock")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.settimeout(seconds)
        wpfs.daemon_env["NOTIFY_SOCKET"] = self.path.replace("\0", "@")

    def next(self):
        """The next message, as a dictionary."""
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().splitlines())

    def until(self, name):
        while True:
            message = self.next()
            if name in message:
                return message

    def drain(self):
        """What has come so far."""
        found = []
        self.sock.setblocking(False)
        try:
            while True:
                found.append(self.next())
        except BlockingIOError:
            self.sock.settimeout(harness.SECONDS)
        return found


STATFS = {"x86_64": 137, "aarch64": 43}[os.uname().machine]


class Stopped:
    """Some threads of the daemon, stopped one by one while the others go on."""

    def __init__(self, wpfs, *names):
        self.tids = []
        while new := self.others(wpfs, names):  # one that goes on may make another
            for tid in new:
                self.call(PTRACE_SEIZE, tid)
                self.call(PTRACE_INTERRUPT, tid)
                os.waitpid(tid, proc.WALL)
            self.tids += new
        assert self.tids, names

    def others(self, wpfs, names):
        """Threads of these names that are not stopped yet."""
        tids = set(map(int, os.listdir(f"/proc/{wpfs.pid}/task"))) - set(self.tids)
        return [tid for tid in tids if proc.describe(tid).split(" (")[0] in names]

    def call(self, request, tid):
        assert libc.ptrace(request, tid, None, None) == 0, os.strerror(ctypes.get_errno())

    def go_on(self):
        for tid in self.tids:
            self.call(PTRACE_DETACH, tid)


def in_system_call(pid, number):
    """Does it sleep there?"""
    with open(f"/proc/{pid}/syscall", encoding="ascii") as syscall:
        return syscall.read().split()[0] == str(number)


def threads(wpfs):
    return {proc.describe(tid).split(" (")[0] for tid in os.listdir(f"/proc/{wpfs.pid}/task")}


@pytest.mark.parametrize("abstract", [False, True])
def test_life(make_wpfs, abstract):
    """Ready when it is, and not before; stopping before the store is written."""
    wpfs = make_wpfs(store=True, start=False)
    manager = Manager(wpfs, abstract)
    wpfs.launch()
    ready = manager.until("READY")
    assert wpfs.answers() and (wpfs.mnt / "f").write_text("x") == 1
    assert ready["READY"] == "1" and ready["MAINPID"] == str(wpfs.pid)
    assert ready["STATUS"] == f"Mounted on {wpfs.mnt}, native"
    wpfs.id = wpfs.read_id()
    assert "wpfs-watchdog" not in threads(wpfs)
    wpfs.umount()
    stopping = manager.until("STOPPING")
    assert stopping["STOPPING"] == "1" and stopping["STATUS"]
    assert not [m for m in manager.drain() if "READY" in m or "WATCHDOG" in m]


@pytest.mark.parametrize("op", ["Y", "W"])
def test_time_is_asked_for_as_long_as_the_store_is_written(make_wpfs, op):
    """Also while nothing is to be counted: one system call takes as long as the disk does."""
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    control = powerloss.watch(wpfs)
    manager = Manager(wpfs)
    wpfs.start()
    (wpfs.mnt / "f").write_bytes(b"x" * 10000)
    control.pause_before(op, database=False)
    subprocess.run(["umount", wpfs.mnt], check=True, timeout=harness.SECONDS)
    manager.until("STOPPING")
    proc.wait_for(lambda: control.paused, harness.SECONDS, "a disk that takes long")
    manager.drain()
    for _ in range(2):
        assert int(manager.until("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) >= 30000000
    control.go()
    assert proc.is_over(wpfs.pidfd, harness.SECONDS)
    assert wpfs._reaped() == 0
    wpfs.daemon_env = {}
    wpfs.restart()
    assert (wpfs.mnt / "f").read_bytes() == b"x" * 10000


def test_signal_that_cannot_end_it(wpfs_with_manager):
    wpfs, manager = wpfs_with_manager
    one = mapped(wpfs)
    os.kill(wpfs.pid, 15)
    assert "cannot: Device or resource busy" in manager.until("STATUS")["STATUS"]
    one.kill9()


@pytest.fixture
def wpfs_with_manager(make_wpfs):
    wpfs = make_wpfs(start=False)
    manager = Manager(wpfs)
    wpfs.start()
    manager.until("READY")
    return wpfs, manager


def test_not_ready_when_it_fails(make_wpfs):
    wpfs = make_wpfs(start=False)
    manager = Manager(wpfs)
    wpfs.allow_log("resident=")
    done = wpfs.command(harness.WPFS, "-f", "-o", "resident=64M", "none", "/nowhere/mnt", env=wpfs.daemon_env)
    assert done.returncode != 0
    assert not [m for m in manager.drain() if "READY" in m]


@pytest.mark.parametrize("value", ["/nowhere/sock", "relative", "vsock:2:1234", "", "@", "/" + "x" * 200])
def test_sockets_that_are_none(make_wpfs, value):
    """It works as without."""
    wpfs = make_wpfs(start=False)
    wpfs.daemon_env["NOTIFY_SOCKET"] = value
    wpfs.start()
    said = "service manager" in wpfs.read_log()
    assert said == (value != "/nowhere/sock"), wpfs.read_log()


def watched(make_wpfs, usec=600000, **more):
    wpfs = make_wpfs(start=False, **more)
    manager = Manager(wpfs)
    wpfs.daemon_env["WATCHDOG_USEC"] = str(usec)
    wpfs.start()
    manager.until("READY")
    manager.until("WATCHDOG")
    return wpfs, manager


@pytest.mark.parametrize("options", [[], ["io_uring"]])
def test_watchdog_goes_on(make_wpfs, options):
    """More than twice in the time given, as long as nothing is wrong; and it is no user of the mount."""
    seconds = 12
    wpfs, manager = watched(make_wpfs, seconds * 1000000, options=options)
    begin = time.monotonic()
    for _ in range(2):
        manager.until("WATCHDOG")
    assert time.monotonic() - begin < seconds
    wpfs.umount()


@pytest.mark.parametrize("names", [("wpfs-track",), ("fuse_worker", "wpfs")])
def test_watchdog_tells_a_hang(make_wpfs, names):
    """One of the two sides hangs: no sign of life any more. It goes on: signs again."""
    wpfs, manager = watched(make_wpfs)
    if names == ("fuse_worker", "wpfs"):
        names = tuple(threads(wpfs) - {"wpfs-track", "wpfs-watchdog"})
    stopped = Stopped(wpfs, *names)
    manager.drain()
    manager.sock.settimeout(2)
    late = 0
    try:
        while late < 3:  # one may have been on its way
            manager.until("WATCHDOG")
            late += 1
    except TimeoutError:
        pass
    finally:
        stopped.go_on()
    assert late <= 1, "signs of life of one that hangs"
    manager.sock.settimeout(harness.SECONDS)
    manager.until("WATCHDOG")


def test_statfs_without_programs(make_wpfs):
    """Nobody can have left the mount, so the track thread, which may be busy, is not asked."""
    wpfs = make_wpfs()
    stopped = Stopped(wpfs, "wpfs-track")
    with subprocess.Popen(["stat", "-f", wpfs.mnt], stdout=subprocess.DEVNULL) as asks:
        try:
            assert asks.wait(harness.SECONDS) == 0
        finally:
            stopped.go_on()


def test_statfs_lets_go_of_a_program(make_wpfs):
    """umount(8) makes one first: a program that has ended must not be in the way then."""
    wpfs = make_wpfs()
    program = wpfs.spawn(harness.program("mapper"), name="db", protect=True)
    for order in (f"open 0 {wpfs.mnt}/f", "size 0 4096", "map 0 0 0 4096"):
        program.order(order)
    stopped = Stopped(wpfs, "wpfs-track")
    with subprocess.Popen(["stat", "-f", wpfs.mnt], stdout=subprocess.DEVNULL) as asks:
        try:
            program.kill9()
            proc.wait_for(lambda: asks.poll() is not None or in_system_call(asks.pid, STATFS), harness.SECONDS,
                          "a statfs under way")
            assert asks.poll() is None, "it did not wait"
        finally:
            stopped.go_on()
        assert asks.wait(harness.SECONDS) == 0
    subprocess.run(["umount", "-i", wpfs.mnt], check=True, timeout=harness.SECONDS)
    assert proc.is_over(wpfs.pidfd, harness.SECONDS) and wpfs._reaped() == 0


@pytest.mark.parametrize("what", ["file", "directory"])
def test_many_wait_for_the_disk(make_wpfs, what):
    """That is no hang: everybody else goes on, and so does the watchdog."""
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    control, manager = powerloss.watch(wpfs), Manager(wpfs)
    wpfs.daemon_env["WATCHDOG_USEC"] = "600000"
    wpfs.start()
    manager.until("READY")
    paths = [wpfs.mnt / f"f{number}" for number in range(60)]
    for path in paths:
        path.write_bytes(b"x") if what == "file" else path.mkdir()
    control.pause_before("S", database=what == "directory")
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    with concurrent.futures.ThreadPoolExecutor(len(fds)) as pool:
        waiting = [pool.submit(os.fsync, fd) for fd in fds]
        try:
            proc.wait_for(lambda: control.paused >= (32 if what == "file" else 1), harness.SECONDS, "they wait")
            subprocess.run(["stat", "-f", wpfs.mnt], check=True, stdout=subprocess.DEVNULL, timeout=harness.SECONDS)
            manager.drain()
            for _ in range(3):
                manager.until("WATCHDOG")
            assert not any(one.done() for one in waiting)
        finally:
            control.go()
        for one in waiting:
            one.result(harness.SECONDS)
    for fd in fds:
        os.close(fd)


def test_watchdog_of_another_process(make_wpfs):
    wpfs = make_wpfs(start=False)
    wpfs.daemon_env.update(WATCHDOG_USEC="300000", WATCHDOG_PID="1")
    Manager(wpfs)
    wpfs.start()
    assert "wpfs-watchdog" not in threads(wpfs)


def test_levels_for_the_journal_only(make_wpfs):
    """The harness says that stderr is the journal; where that is not so, no levels."""
    wpfs = make_wpfs(start=False, store=True)
    for stream, prefix in ((None, "wpfs: "), ("1:2", "wpfs: "), ("nonsense", "wpfs: ")):
        env = {"JOURNAL_STREAM": stream} if stream else {}
        done = wpfs.command(harness.WPFS, "-f", wpfs.store, "/nowhere/mnt", env=env)
        assert done.returncode != 0 and done.stderr.startswith(prefix), done.stderr
    with open(wpfs.dir / "journal", "w+b") as journal:
        status = os.fstat(journal.fileno())
        env = wpfs.env({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        subprocess.run([harness.WPFS, "-f", wpfs.store, "/nowhere/mnt"], env=env, stderr=journal,
                       timeout=60, check=False)
        journal.seek(0)
        assert journal.read().startswith(b"<3>wpfs: ")
