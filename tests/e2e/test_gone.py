# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon, or the whole mount, goes while a command waits for its answer: one line says so."""

import os
import signal
import subprocess

import pytest

import harness
import proc
from harness import PAGE, WPCTL
from mapper import mapped

ASKING = [["ps"], ["marks"], ["dirty", "--file", "/f"], ["map"], ["map", "-o", "map.svg"], ["status"], ["protect"],
          ["unprotect"], ["sync"], ["forget", "--name", "u"], ["top", "--once"], ["top", "--json"], ["metrics"],
          ["export", "--file", "/f"], ["export", "--file", "/f", "--full"]]
LAST = {"export": "out", "evict": "/f", "load": "/f"}


def stop(pid):
    """Stops all threads of a process."""
    proc.stop(pid)
    proc.wait_for(lambda: all(proc.state(f"{pid}/task/{task}") == "T" for task in os.listdir(f"/proc/{pid}/task")),
                  harness.SECONDS, "its stop")


class Asking:
    """wpctl COMMAND in the background, once it waits for a daemon that is stopped and does not answer."""

    def __init__(self, wpfs, command, door):
        """door: by which it waits: the "mount" that it opens first, or the daemon's "socket"."""
        argv = [WPCTL, *command, wpfs.mnt, *([LAST[command[0]]] if command[0] in LAST else [])]
        self.wpfs, self.log = wpfs, wpfs.dir / "strace.log"
        env = wpfs.env()
        if door == "socket":  # it stops when it has been greeted and is about to ask
            when = "recvmsg:signal=SIGSTOP:when=1" if "--full" in command else \
                "sendmsg:error=EINTR:signal=SIGSTOP:when=2"
            argv = ["strace", "-o", self.log, "-e", f"inject={when}", *argv]
            env["ASAN_OPTIONS"] += ":detect_leaks=0"  # which does not work there
        else:
            stop(wpfs.pid)
        self.popen = subprocess.Popen([str(word) for word in argv], env=env, cwd=wpfs.dir, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self.popen.pid
        if door == "socket":
            proc.wait_for(self.greeted, harness.SECONDS, "its greeting")
            (self.pid,) = proc.children(self.pid)
            stop(wpfs.pid)
            os.kill(self.pid, signal.SIGCONT)
        proc.wait_for(self.waits, harness.SECONDS, "its question")

    def greeted(self):
        return self.log.exists() and "stopped by SIGSTOP" in self.log.read_text()

    def waits(self):
        """At its socket, or in a call of the file system."""
        with open(f"/proc/{self.pid}/wchan", encoding="ascii") as wchan:
            where = wchan.read()
        return any(word in where for word in ("poll", "skb", "request_wait"))

    def said(self):
        """How it fails: in one line, which this gives."""
        out, err = self.popen.communicate(timeout=harness.SECONDS)
        assert self.popen.returncode == 1 and out == "", (self.popen.returncode, out, err)
        (line,) = err.splitlines()
        return line


@pytest.mark.parametrize("door", ["mount", "socket"])
@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_killed(make_wpfs, command, door):
    wpfs = make_wpfs(store=True)
    mapped(wpfs, pages=16).order("store 0 3 1")
    asking = Asking(wpfs, command, door)
    wpfs.kill9()
    line = asking.said()
    assert line.startswith(f"wpctl: {command[0]}: {wpfs.mnt}: ") and "its daemon is gone: start it again" in line
    assert not (wpfs.dir / "map.svg").exists() and not (wpfs.dir / "out/manifest").exists()
    wpfs.restart()
    if command[0] == "export":  # what it left is no hindrance
        wpfs.wpctl("export", "--file", "/f", "--full", wpfs.mnt, "out")
        assert (wpfs.dir / "out/pages").stat().st_size == PAGE
    assert wpfs.wpctl_json("dirty", "--name", "t")["mms"][0]["dirty"] == 1


@pytest.mark.parametrize("door", ["mount", "socket"])
@pytest.mark.parametrize("verb", ["evict", "load"])
def test_killed_on_a_capped_mount(make_wpfs, verb, door):
    wpfs = make_wpfs(store=True, options=["resident=64M"])
    (wpfs.mnt / "f").write_bytes(bytes(range(256)) * 16 * 16)
    asking = Asking(wpfs, [verb], door)
    wpfs.kill9()
    assert "its daemon is gone: start it again" in asking.said()
    wpfs.restart()
    wpfs.wpctl(verb, wpfs.mnt, "/f")


def test_never_answers(wpfs):
    """A daemon that is stopped is no reason to hang for ever: interrupted, it ends at once."""
    asking = Asking(wpfs, ["ps"], "mount")
    asking.popen.send_signal(signal.SIGINT)
    assert asking.popen.wait(harness.SECONDS) == -signal.SIGINT
    os.kill(wpfs.pid, signal.SIGCONT)
    asking.popen.communicate()
