# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Requests that wait, for the kernel or for a disk, never take all threads of the daemon: the others are
answered meanwhile. There are 32 threads, so there are more requests.
"""

import os
import signal
import subprocess
import sys

import harness
import proc

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
    number = {"utimensat": 280, "readlink": 89, "chmod": 90, "truncate": 76}[name]
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
        proc.wait_for(lambda: in_call(self.popen.pid, call) == count, harness.SECONDS, f"{count} times {call}")

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
    os.kill(wpfs.pid, signal.SIGSTOP)
    try:
        calls.wait("utimensat", MANY)
        calls.go()
        calls.wait("readlink", MANY)
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    calls.end()
    assert all(os.lstat(wpfs.mnt / f"l{number}").st_mtime == 2 for number in range(MANY))
