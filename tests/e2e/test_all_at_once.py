# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Requests that wait, for the kernel or for a disk, never take all threads of the daemon: the others are
answered meanwhile. There are 32 threads, so there are more requests.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import harness
import proc
from test_store import stored

MANY = 60

# Threads that each make one call; a line when all of them are over. By exec, as it may have to be killed.
CALLS = """
import os, sys, threading
def run(call, names):
    threads = [threading.Thread(target=call, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    return threads
"""


def in_call(pid, name):
    """How many threads of a process wait in this system call."""
    number = {"utimensat": 280, "readlink": 89, "chmod": 90, "truncate": 76, "openat": 257, "stat": 262}[name]
    found = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/syscall", encoding="ascii") as line:
                found += line.read().split()[0] == str(number)
        except OSError:
            pass
    return found


class Calls:
    """A program whose threads make calls, `first` and then `second`, when it is told to."""

    def __init__(self, code, *args):
        self.popen = subprocess.Popen([sys.executable, "-c", CALLS + code, *map(str, args)], text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def go(self):
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def wait(self, call, count):
        """Until so many threads wait in the call; None: all that are left."""
        def they_do():
            left = len(os.listdir(f"/proc/{self.popen.pid}/task")) - 1
            return in_call(self.popen.pid, call) == (left if count is None else count)

        proc.wait_for(they_do, harness.SECONDS, f"{count} times {call}")

    def end(self, seconds=harness.SECONDS):
        """It ends by itself."""
        try:
            out, _ = self.popen.communicate(timeout=seconds)
        finally:
            self.popen.kill()
            self.popen.wait()
        assert self.popen.returncode == 0, out


def test_symbolic_links_whose_text_is_asked_for(wpfs):
    """Their times change, and the kernel is told to forget the text, which it waits for just then."""
    for number in range(MANY):
        os.symlink("target", wpfs.mnt / f"l{number}")
        os.lstat(wpfs.mnt / f"l{number}")
    calls = Calls("""
names = [f"{sys.argv[1]}/l{number}" for number in range(int(sys.argv[2]))]
threads = run(lambda name: os.utime(name, (1, 2), follow_symlinks=False), names)
sys.stdin.readline()
for thread in threads + run(os.readlink, names):
    thread.join()
""", wpfs.mnt, MANY)
    proc.stop(wpfs.pid)
    try:
        calls.wait("utimensat", MANY)
        calls.go()
        calls.wait("readlink", MANY)
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    calls.end()
    assert all(os.lstat(wpfs.mnt / f"l{number}").st_mtime == 2 for number in range(MANY))


def slow_disk(wpfs):
    """Contents that are still in the store take until the returned function is called."""
    pipes = [path for path in Path(wpfs.store, "data").rglob("*") if path.is_file()]
    for path in pipes:
        path.unlink()
        os.mkfifo(path)

    def go_on(over=False):
        for path in pipes:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass  # nobody waits there
            if over:
                path.unlink()

    return go_on


@pytest.mark.parametrize("call", ["truncate", "chmod", "stat"])
def test_files_that_are_still_in_the_store(make_wpfs, call):
    """Contents come before the size changes, the mode does not change while they come; and their room is looked at."""
    wpfs, _ = stored(make_wpfs, count=MANY + 1, options=["size=8M"], small=0)
    wpfs.options.append("size=16K")  # so that nothing comes in the background
    wpfs.restart()
    harness.proc.wait_for(lambda: "stay in the store" in wpfs.read_log(), harness.SECONDS, "nothing comes")
    paths = [wpfs.mnt / f"f{number}" for number in range(1, MANY + 1)]
    if call != "stat":
        for path in paths:
            path.stat()
    go_on = slow_disk(wpfs)
    calls = Calls("""
names = [f"{sys.argv[1]}/f{number}" for number in range(1, int(sys.argv[2]) + 1)]
opened = run(lambda name: os.close(os.open(name, os.O_RDONLY)), names if sys.argv[3] == "chmod" else [])
sys.stdin.readline()
calls = {"chmod": lambda name: os.chmod(name, 0o600), "truncate": lambda name: os.truncate(name, 100), "stat": os.stat}
threads = run(calls[sys.argv[3]], names) + opened
print("all of them", flush=True)
for thread in threads:
    thread.join()
""", wpfs.mnt, MANY, call)
    try:
        if call == "chmod":
            calls.wait("openat", MANY)
            # Answered when all of them have been read; else a chmod may come before its file's open.
            assert not (wpfs.mnt / "nothing").exists()
        calls.go()
        calls.popen.stdout.readline()
        calls.wait(call, None if call == "stat" else MANY)  # of stats only some wait
        assert in_call(calls.popen.pid, call) >= 8
        other = subprocess.Popen(["touch", wpfs.mnt / "new"])
        proc.wait_for(lambda: other.poll() is not None, harness.SECONDS, "a file is made beside")
    finally:
        proc.wait_for(lambda: go_on() or calls.popen.poll() is not None, harness.SECONDS, "all go on")
        go_on(over=True)
    assert other.wait(harness.SECONDS) == 0
    calls.end()
    assert {path.stat().st_mode & 0o777 for path in paths} == ({0o600} if call == "chmod" else {0o644})
    assert call != "truncate" or {path.stat().st_size for path in paths} == {100}
