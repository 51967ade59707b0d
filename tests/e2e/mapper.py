# SPDX-License-Identifier: LGPL-2.1-or-later
"""tests/progs/mapper.c with one mapping made, and children that it forks."""

import os

import harness
import report
from harness import PAGE

PAGES = 64
ALL = set(range(PAGES))


def mapped(wpfs, name="t", protect=True, pages=PAGES, path="f", spawn=None):
    """A program with mapping 0 of file 0, all of it; its address is in .addr."""
    program = (spawn or wpfs.spawn)(harness.program("mapper"), name=name, protect=protect)
    return map_file(program, wpfs.mnt / path, pages)


class direct_file:
    """An open that cannot map the file: on a capped mount nothing is brought back for it."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        os.close(self.fd)


def map_file(program, path, pages=PAGES):
    program.order(f"open 0 {path}")
    program.order(f"size 0 {pages * PAGE}")
    program.addr = program.order(f"map 0 0 0 {pages * PAGE}")
    return program


def killed(wpfs, program, name="t"):
    """kill -9, and what is dirty then."""
    program.kill9()
    dirty = report.dirty(wpfs, name)
    assert report.names(wpfs)[name] == "detached"
    return dirty


class Child:
    """A child that a mapper (or a child of one) forks; takes orders as its parent does."""

    number = 0

    def __init__(self, wpfs, parent, meanwhile=None, how=""):
        """meanwhile() is called when the order to fork has been given."""
        Child.number += 1
        self.fifos = [wpfs.dir / f"child{Child.number}.{end}" for end in ("in", "out")]
        for fifo in self.fifos:
            os.mkfifo(fifo)
        parent.send(f"fork {self.fifos[0]} {self.fifos[1]} {how}")
        if meanwhile:
            meanwhile()
        answer = parent.read()
        assert answer.startswith("ok "), answer
        self.pid = int(answer[3:])
        self.stdin = open(self.fifos[0], "w", encoding="ascii")
        self.stdout = open(self.fifos[1], encoding="ascii")
        assert self.read() == "ok 0", "fork's value in the child"

    def read(self):
        answer = self.stdout.readline()
        assert answer, "the child ended"
        return answer.rstrip("\n")

    def send(self, line):
        self.stdin.write(line + "\n")
        self.stdin.flush()

    def ask(self, line):
        self.send(line)
        return self.read()

    order = harness.Program.order

    def close(self):
        self.stdin.close()
        self.stdout.close()

    def end(self):
        """It exits when its orders end, and is gone when this returns."""
        pidfd = os.pidfd_open(self.pid)
        self.stdin.close()
        assert self.stdout.read() == "", "it said something at its end"
        self.stdout.close()
        assert harness.proc.is_over(pidfd, harness.SECONDS)
        os.close(pidfd)
