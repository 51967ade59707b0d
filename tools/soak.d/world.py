# SPDX-License-Identifier: LGPL-2.1-or-later
"""One world: a daemon, files, programs, and the steps that may happen in it."""

from collections import Counter

import harness
from checks import Checks
from control import Control
from files import Files
from lives import Lives
from mappings import Mappings
from writers import Writers

CHECK_EVERY = 15


class World(Mappings, Writers, Files, Lives, Control, Checks):
    def __init__(self, rng, verbose, capped=None):
        self.rng, self.verbose = rng, verbose
        self.capped = rng.random() < 0.25 if capped is None else capped
        if self.capped:
            # Enough for all, so that pages leave when a step says so; or so little that they always do.
            resident = rng.choice(["64M", "128K"])
            self.wpfs = harness.Wpfs("store", [f"resident={resident}", "settle=0"]).start()
        else:
            self.wpfs = harness.Wpfs(rng.choice(["none", "store"])).start()
        self.alive = True
        self.daemons = 0  # that there were before this one
        self.mms = {}  # by name
        self.runners = []
        self.steps = self.checks = self.evicted = 0
        self.needless = Counter()  # pages that were dirty without need, by the reason
        self.excess = {}  # (name, file): pages that were dirty though they need not be
        self.nr_far = 0
        self.pids = set()  # of live rows at the last check
        self.closed = {}  # number of an epoch: {(name without /, file): what it ended with}
        self.history = []
        self.begin_files()

    def say(self, text):
        self.history.append(text)
        if self.verbose:
            print("   ", text, flush=True)

    # -- steps

    def step(self):
        steps = [
            (self.store, 30), (self.map, 10), (self.unmap, 4), (self.remap, 6), (self.prot, 4),
            (self.advise, 8), (self.kstore, 2), (self.load, 3), (self.msync, 1),
            (self.fork, 3), (self.end_child, 2), (self.spawn, 4), (self.kill, 2), (self.leave, 1),
            (self.exec, 1), (self.kill_daemon, 2), (self.uffd, 1), (self.uffd_end, 1),
            (self.thread_begin, 3), (self.thread_stir, 3), (self.thread_end, 1),
        ]
        if self.capped and not self.alive:
            steps = []  # who touches a page that is not there waits for the daemon
        if self.capped and self.alive:
            steps += [(self.evict, 8), (self.load_back, 2)]
        if self.alive:
            steps += [(self.protect, 5), (self.unprotect, 1), (self.sync, 1), (self.size, 2),
                      (self.punch, 2), (self.pwrite, 2), (self.forget, 1),
                      (self.rename, 1), (self.link, 1), (self.unlink, 2), (self.replace, 1),
                      (self.remount, 0.5)]
        else:
            steps += [(self.restart, 25)]
        fns, weights = zip(*steps)
        self.rng.choices(fns, weights)[0]()
        self.vanish()
        self.steps += 1
        if self.alive and self.steps % CHECK_EVERY == 0:
            self.check()

    def runner(self):
        return self.rng.choice(self.runners) if self.runners else None

    def order(self, runner, line):
        """None: the program was told that it cannot be done."""
        self.say(f"{runner.mm.name}({runner.pid}): {line}")
        answer = runner.program.ask(line)
        if answer.startswith("ok "):
            return int(answer[3:])
        self.say(f"  {answer}")
        return None

    def finish(self):
        if not self.alive:
            self.restart()
        self.check()
        self.count_evicted()

    def count_evicted(self):
        """Pages that left since the daemon began."""
        if self.capped and self.alive:
            self.evicted += self.wpfs.wpctl_json("status")["evictions"]

    def close(self):
        for runner in self.runners:
            if self.is_child(runner):
                harness.proc.kill(runner.pid)
                runner.program.stdin.close()
                runner.program.stdout.close()
        self.wpfs._reap()
        if not self.wpfs.daemon:
            self.wpfs.restart()
        self.wpfs.close()
