# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A capped mount against a model: several programs with threads map one file that is larger than what
may be in memory, each with marks of its own; they write, fork, are killed, and so is the daemon,
while pages are evicted and come back. Contents are compared byte for byte, dirty pages as sets.
"""

import random

import pytest

import harness
import proc
import report
from seam import waiting

PAGES = 3072  # 12 MiB, of which 4 may be in memory
NAMES = ("a", "b", "c")


class Model:
    def __init__(self, wpfs, seed):
        self.wpfs, self.rng = wpfs, random.Random(seed)
        self.programs, self.dirty = {}, {name: set() for name in NAMES}
        self.epoch = set()  # names with an open epoch
        self.before = 0  # pages that daemons have evicted which were killed
        for name in NAMES:
            self.run(name)
        self.programs["a"].order(f"fill {seed}")
        self.programs["a"].order("clear")

    def run(self, name):
        program = self.wpfs.spawn(
            harness.program("refault"), self.wpfs.mnt / "f", PAGES, self.wpfs.dir / "copy",
            NAMES.index(name), len(NAMES), name=name)
        assert program.read() == "ok ready"
        self.programs[name] = program

    def written(self, name):
        """Adds to what a program should have dirty; what it wrote without an epoch is nothing."""
        path = self.wpfs.dir / f"written-{name}"
        self.programs[name].order(f"written {path}")
        pages = {page for page, byte in enumerate(path.read_bytes()) if byte}
        if name in self.epoch:
            self.dirty[name] |= pages
        self.programs[name].order("clear")

    def some(self):
        return self.rng.sample(NAMES, self.rng.randint(1, len(NAMES)))

    # -- what can happen

    def write(self, meanwhile=None):
        names = self.some()
        for name in names:
            self.programs[name].send(f"write {self.rng.randrange(10**6)} "
                                     f"{self.rng.randrange(1, 400)} {self.rng.choice((1, 2, 4))}")
        if meanwhile:
            meanwhile()
        for name in names:
            assert self.programs[name].read() == "ok 0"
            self.written(name)

    def write_while_evicted(self):
        self.write(lambda: self.wpfs.wpctl("evict", self.wpfs.mnt, "/f", status=None))

    def write_while_loaded(self):
        self.write(lambda: self.wpfs.wpctl("load", self.wpfs.mnt, "/f", status=None))

    def protect(self):
        name = self.rng.choice(NAMES)
        self.wpfs.wpctl("protect", self.wpfs.mnt, "--name", name)
        self.dirty[name] = set()
        self.epoch.add(name)

    def verify(self):
        for name in self.some():
            self.programs[name].send(f"verify {self.rng.choice((1, 2, 4))}")
            assert self.programs[name].read() == "ok 0", f"{name} sees other contents"

    def fork(self):
        assert self.programs[self.rng.choice(NAMES)].order("forks 2") == 0

    def move(self):
        assert self.programs[self.rng.choice(NAMES)].order("moves 1") == 0

    def kill_program(self):
        name = self.rng.choice(NAMES)
        self.programs[name].kill9()
        self.run(name)

    def kill_daemon(self):
        """With faults outstanding, if there are any; a batch that it was at is in doubt."""
        self.before = self.evictions()
        names = self.some()
        for name in names:
            self.programs[name].send("verify 2")
        proc.wait_for(lambda: any(waiting(self.programs[name].pid) for name in names)
                      or all(self.idle(name) for name in names), harness.SECONDS, "a fault")
        self.wpfs.kill9()
        self.wpfs.restart()
        for name in names:
            assert self.programs[name].read() == "ok 0", f"{name} sees other contents"
        for name in self.epoch:
            now = report.dirty(self.wpfs, name)
            assert self.dirty[name] <= now, f"{name} forgot what was written"
            self.dirty[name] = now

    def evictions(self):
        return self.before + self.wpfs.wpctl_json("status")["evictions"]

    def idle(self, name):
        with open(f"/proc/{self.programs[name].pid}/wchan", encoding="ascii") as wchan:
            return "pipe" in wchan.read()

    def check(self, step):
        for name in self.epoch:
            assert report.dirty(self.wpfs, name) == self.dirty[name], f"{step}: {name}"
            assert report.marked(self.wpfs, name) == \
                set(range(PAGES)) - self.dirty[name], f"{step}: {name}"


@pytest.mark.parametrize("seed", range(3))
def test_model(make_wpfs, seed):
    wpfs = make_wpfs("store", ["resident=4M", "settle=5ms", "flush=2"])
    model = Model(wpfs, seed)
    model.protect()
    steps = [model.write, model.write, model.write_while_evicted, model.write_while_loaded,
             model.protect, model.verify, model.fork, model.move, model.kill_program,
             model.kill_daemon]
    for number in range(16):
        step = model.rng.choice(steps)
        step()
        model.check(f"seed {seed}, step {number} ({step.__name__})")
    assert model.programs["a"].order("verify 2") == 0
    proc.wait_for(lambda: model.evictions() > PAGES, harness.STORE_SECONDS, "as many pages to leave as there are")
