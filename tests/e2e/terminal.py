# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real terminal (tmux) of a size, with a command in it; and a pseudo-terminal for what writes lines."""

import os
import re
import subprocess

import proc

SECONDS = 60
_number = 0


class Terminal:
    """
    Runs a shell command; what it shows is read with screen(), its exit status is the last line. With
    `record`, a path, every byte that is written to it is there too, however short it was shown.
    """

    def __init__(self, command, columns=80, lines=24, env=None, record=None):
        global _number
        _number += 1
        self.socket = f"wpfs-{os.getpid()}-{_number}"
        self.env = {**(env or os.environ), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "TMUX"):
            self.env.pop(name, None)
        self.record = record
        begin = f"{record}.begin"
        if record:
            os.mkfifo(begin)
            command = f"read go <{begin}; {command}"
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines),
                  f"{command}; echo ended with $?; exec cat")
        if record:
            self.tmux("pipe-pane", f"exec cat >{record}")
            with open(begin, "w", encoding="ascii") as go:
                go.write("go\n")

    def tmux(self, *args):
        return subprocess.run(["tmux", "-L", self.socket, "-f", "/dev/null", *args], env=self.env,
                              timeout=SECONDS, check=True, capture_output=True, text=True).stdout

    def screen(self, colour=False):
        return self.tmux("capture-pane", "-p", *(["-e"] if colour else [])).split("\n")

    def wait(self, what, why):
        """Until what(lines of the screen) is true, and gives those."""
        seen = []

        def looks():
            seen[:] = self.screen()
            return what(seen)

        try:
            proc.wait_for(looks, SECONDS, why)
        except AssertionError as problem:
            raise AssertionError(f"{problem}; the screen:\n" + "\n".join(seen)) from None
        return seen

    def ended(self):
        """Waits for the end of the command; its exit status and what is on the screen."""
        lines = self.wait(lambda lines: any("ended with" in line for line in lines), "the end")
        (line,) = [line for line in lines if "ended with" in line]
        return int(line.split()[-1]), lines

    def written(self):
        """Waits for the end of the command; all lines that were ever written, in order."""
        def all_of_it():
            try:
                with open(self.record, encoding="utf-8", errors="replace") as record:
                    text = record.read()
            except FileNotFoundError:
                return None
            return text if re.search("ended with [0-9]+\r?\n", text) else None

        text = proc.wait_for(all_of_it, SECONDS, "the end")
        return [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line) for line in re.split("[\r\n]+", text)]

    def keys(self, *keys):
        self.tmux("send-keys", *keys)

    def resize(self, columns, lines):
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def close(self):
        """The terminal goes, and is waited for what was in it."""
        pane = int(self.tmux("display-message", "-p", "#{pane_pid}"))
        going = [proc.pidfd_of(pid) for pid in [pane, *proc.descendants(pane)]]
        self.tmux("kill-server")
        for pidfd in filter(None, going):
            over = proc.is_over(pidfd, SECONDS)
            os.close(pidfd)
            assert over, "it lives on without its terminal"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
