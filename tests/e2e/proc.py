# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes and mounts as the kernel shows them, and waiting for them without sleeping blindly."""

import ctypes
import os
import re
import select
import signal
import subprocess
import time

PR_SET_CHILD_SUBREAPER = 36
WALL = 0x40000000  # __WALL: a witness is a clone child that sends no signal

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper():
    """From now on what our programs leave behind becomes our child, and so can be found."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children(pid="self"):
    """Pids of the children of all threads of a process; empty if it is gone."""
    found = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return found
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as text:
                found += [int(child) for child in text.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def descendants(pid="self"):
    found = []
    todo = children(pid)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children(pid)
    return found


def state(pid):
    """One letter of proc(5), or None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as text:
            return text.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def cpu_ns(pid):
    """Time that a process has run, in ns."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as schedstat:
        main = int(schedstat.read().split()[0])
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as schedstat:
                total += int(schedstat.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended
    return max(main, total)


def descriptors(pid, kind):
    """The numbers of those descriptors of a process whose link has this word in it: one may be closed meanwhile."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if kind in os.readlink(f"/proc/{pid}/fd/{fd}"):
                found.append(int(fd))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def describe(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as text:
            return f"{text.read().strip()} (pid {pid}, {state(pid)})"
    except (FileNotFoundError, ProcessLookupError):
        return f"pid {pid}, gone"


def is_over(pidfd, seconds):
    """Waits until the process of a pidfd has ended; False when it has not in that time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def pidfd_of(pid):
    """A pidfd, or None when the process is gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def stop(pid):
    """SIGSTOP. Its threads stand still when this returns; until then they may still do something."""
    def stands():
        try:
            return all(state(f"{pid}/task/{task}") in ("T", "t", "Z", None)
                       for task in os.listdir(f"/proc/{pid}/task"))
        except FileNotFoundError:
            return True  # it was killed meanwhile

    os.kill(pid, signal.SIGSTOP)
    wait_for(stands, 30, f"{describe(pid)} to stop")


class Strace:
    """strace(1) of a process that runs: from here on each of its threads stops at what is traced."""

    def __init__(self, pid, *expressions, path=None):
        argv = ["strace", "-f", "-o", "/dev/null", "-p", str(pid)] + (["-P", path] if path else [])
        for expression in expressions:
            argv += ["-e", expression]
        self.popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = self.popen.stderr.readline()  # when it has attached to all of them, and not before
        if "attached" not in said:
            self.end()
        assert "attached" in said, said

    def end(self):
        """Who is held goes on."""
        self.popen.kill()
        self.popen.wait()
        self.popen.stderr.close()


def is_traced(pid):
    """Has somebody attached to it, as strace(1) does?"""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(line.split()[1] != "0" for line in status if line.startswith("TracerPid"))


def kill(pid):
    """SIGKILL; a process that is gone already is as good."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def unescape(field):
    """A path of /proc/PID/mountinfo, where blanks and backslashes are \\ooo."""
    parts = field.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def mounts_below(path):
    """(mountpoint, type) of what is mounted at `path` or below it."""
    path = str(path)
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            point = unescape(left.split()[4])
            if point == path or point.startswith(path + "/"):
                found.append((point, right.split()[0]))
    return found


class KernelLog:
    """What the kernel says against itself from now on; nothing where its log cannot be read."""

    TROUBLE = re.compile(r"\b(BUG|WARNING|Oops|Kernel panic|blocked for more than|soft lockup|"
                         r"general protection fault)\b")

    def __init__(self):
        try:
            self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self.fd, 0, os.SEEK_END)
        except OSError:
            self.fd = -1

    def trouble(self):
        """Lines since the last call that should not be there."""
        found = []
        while self.fd >= 0:
            try:
                line = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # some lines were overwritten before they were read
            if self.TROUBLE.search(line):
                found.append(line.rstrip())
        return found

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)


class MountWatch:
    """Waits for a change of the mount table, as poll(2) on mountinfo reports it."""

    def __init__(self):
        self.file = open("/proc/self/mountinfo", encoding="utf-8")
        self.file.read()

    def wait(self, condition, seconds, pidfd=None):
        """True when condition() holds; False when time is up or the process of pidfd ended."""
        poll = select.poll()
        poll.register(self.file, select.POLLPRI)
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            # A change between two polls is kept by the kernel; 1 s is only a bound.
            ready = dict(poll.poll(min(left, 1) * 1000))
            if pidfd is not None and pidfd in ready:
                return condition()
        return True

    def close(self):
        self.file.close()


def wait_for(condition, seconds, what):
    """For what has no descriptor to wait on. Fails the test when time is up."""
    end = time.monotonic() + seconds
    pause = 0.001
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def make_huge_pages(count=64):
    """Free memory in pieces of 2 MiB. Nobody who stores waits for the kernel to put them together."""
    def free():
        with open("/proc/buddyinfo", encoding="ascii") as zones:
            return sum(int(nr) << order for line in zones for order, nr in enumerate(line.split()[4 + 9:]))

    for file in ("compact_memory", "drop_caches", "compact_memory"):
        if free() >= count:
            return
        with open(f"/proc/sys/vm/{file}", "w", encoding="ascii") as order:
            order.write("1")


def waits_for_fuse(pid, where="fuse_"):
    """Does it wait for an answer of a FUSE daemon, in this function of the kernel's?"""
    with open(f"/proc/{pid}/stack", encoding="ascii") as stack:
        return where in stack.read()
