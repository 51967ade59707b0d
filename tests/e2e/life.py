# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A program whose pages are armed, by wpfs or by a userfaultfd of its own, with or without threads that
write to it all the while, and what must be true of its marks whatever is done to its mapping.
"""

import contextlib
import ctypes
import errno
import os

import harness
import proc
import report
from harness import PAGE

PAGES = 4096
BASE = PAGES - 64  # below it the threads write, from it on things are done to the mapping
SPAN = range(BASE + 8, BASE + 24)  # what most things are done to
HOME, ELSEWHERE, THERE = 0x200000000000, 0x210000000000, 0x220000000000

CONTINUE, DETACH, SEIZE, INTERRUPT = 7, 17, 0x4206, 0x4207  # of ptrace(2)


class Life:
    """A program of a name of its own with mapping 0 of all of a file of that name, file 0."""

    def __init__(self, wpfs, kind, threads, events="remap fork", populated=False):
        self.wpfs, self.kind, self.threads = wpfs, kind, threads
        self.name = "busy" if threads else "quiet"
        self.reference = wpfs.dir / f"{self.name}.reference"
        self.path = f"/{self.name}"
        self.file = wpfs.mnt / self.name
        self.all = set(range(PAGES))
        self.written = set()  # by stores that were orders
        self.changed = set()  # dirty for owner wpfs though no store was seen, by design
        self.gone = set()  # marks of owner program that go as they do in the kernel
        self.family = set()  # written by children
        self.twice = False  # a page may be marked through one mapping and written through another
        self.program = wpfs.spawn(harness.program("mapper"), name=self.name,
                                  protect=kind == "wpfs" and not populated)
        self.order = self.program.order
        self.map(populated)
        self.arm(events, populated)
        self.write_on()

    def map(self, populated=False):
        self.order(f"open 0 {self.file}")
        self.order(f"size 0 {PAGES * PAGE}")
        self.addr = self.order(f"map 0 0 0 {PAGES * PAGE} at={HOME}")
        if populated:
            self.order(f"store 0 0 9 {PAGES}")

    def arm(self, events, populated):
        self.uffd = None
        if self.own:
            self.uffd = self.order(f"uffd 0 0 {PAGES} {events}")
        elif populated:
            self.wpfs.wpctl("protect", self.wpfs.mnt, "--name", self.name)

    @property
    def own(self):
        return self.kind == "own"

    @property
    def pid(self):
        return self.program.pid

    def write_on(self):
        if self.threads:
            self.order(f"writers 0 0 {BASE} {self.threads} {self.reference}")
            self.order("busy 100")

    def rest(self):
        if self.threads:
            self.order("busy 50")
            self.order("rest")

    def store(self, *pages, mapping=0, first=0):
        """Stores through a mapping that shows the file from page `first` on."""
        for page in pages:
            self.order(f"store {mapping} {page - first} 1")
            self.written.add(page)

    def unseen_if_own(self, *pages):
        """They were stored to where the program's userfaultfd is not."""
        if self.own:
            self.written -= set(pages)

    def pages(self, answer, state):
        """The file's pages in what `wpctl marks` or `dirty` said of this program."""
        owner = "program" if self.own else "wpfs"
        mm = report.mm_of(answer, self.name)
        assert mm["state"] == state
        return set(report.pages_of(mm, self.path, owner))

    def check(self, dirty, marks, state):
        """What was written must not be called clean, nothing else may be called written."""
        bits = self.reference.read_bytes() if self.threads else b""
        done = {page for page, value in enumerate(bits) if value & 2}
        begun = {page for page, value in enumerate(bits) if value == 1}
        look = self.check_own if self.own else self.check_wpfs
        look(self.pages(dirty, state), self.pages(marks, state), done, begun)
        union = {page for mm in dirty["mms"] if (mm["name"] or "").startswith(self.name)
                 for page in report.pages_of(mm, self.path)}
        assert not self.family - union, "a child's stores are not known"

    def check_wpfs(self, dirty, marked, done, begun):
        must = self.written | done | self.changed
        assert not must - dirty, "a mark lies"
        assert not dirty - must - begun, "dirty, and nobody wrote"
        assert not self.all - dirty - marked, "neither dirty nor marked"
        assert self.twice or not marked & (self.written | done), "written, and marked"

    def check_own(self, dirty, marked, done, begun):
        must_not = self.written | done | self.gone
        assert self.twice or not marked & must_not, "a mark lies"
        assert not self.all - must_not - begun - marked, "marks are lost"
        assert self.twice or not dirty & marked

    def kill(self):
        """In the midst of writes if there are any."""
        if self.threads:
            self.write_on()
        self.program.kill9()


def check(lives, state="live"):
    dirty, marks = (lives[0].wpfs.wpctl_json(verb) for verb in ("dirty", "marks"))
    for life in lives:
        life.check(dirty, marks, state)


def check_and_end(lives):
    """A look at them, kill -9, a look: what was known stays known."""
    for life in lives:
        life.rest()
    check(lives)
    for life in lives:
        life.kill()
    check(lives, "detached")


def live(life, what, after=True):
    """Some stores, `what` is done, some stores more."""
    life.store(BASE + 1, BASE + 9, BASE + 17)
    if not life.threads:  # known before, or found only after it
        life.wpfs.wpctl("sync", life.wpfs.mnt)
    what(life)
    life.store(BASE + 2, BASE + 30)
    if after:
        life.store(BASE + 10)


def another(life):
    """A program of which wpfs knows nothing, with the same file 0 and mapping 0."""
    program = life.wpfs.spawn_bare(harness.program("mapper"))
    program.order(f"open 0 {life.file}")
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    return program


def poke(pid, addr):
    """As a debugger does. False: the kernel refuses it."""
    fd = os.open(f"/proc/{pid}/mem", os.O_WRONLY)
    try:
        return os.pwrite(fd, b"x", addr) == 1
    except OSError as error:
        assert error.errno == errno.EIO
        return False
    finally:
        os.close(fd)


@contextlib.contextmanager
def traced(pid):
    """As under a debugger, which looks in once and sees the signals that come."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4

    def ptrace(request, data=0):
        assert libc.ptrace(request, pid, 0, data) == 0, os.strerror(ctypes.get_errno())

    def stopped():
        ptrace(INTERRUPT)
        assert os.WIFSTOPPED(os.waitpid(pid, proc.WALL)[1])

    ptrace(SEIZE)
    stopped()
    ptrace(CONTINUE)
    try:
        yield
    finally:
        stopped()
        ptrace(DETACH)
