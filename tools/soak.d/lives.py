# SPDX-License-Identifier: LGPL-2.1-or-later
"""Steps: programs begin, have children, become others and end; and userfaultfds of their own."""

import os

import harness
from harness import PAGE
from mapper import Child
from model import Mm
from runner import Runner
from writers import THREAD

NAMES = ("a", "b")
CHILDREN = 2


class Lives:
    def spawn(self):
        name = self.rng.choice(NAMES)
        protect = self.rng.random() < 0.5
        if any(runner.mm.name == name for runner in self.runners):
            return
        if not self.alive:
            return
        mm = self.mms.setdefault(name, Mm(name))
        mm.protect_new = protect
        self.say(f"{name}: starts, protect={protect}")
        program = self.wpfs.spawn(harness.program("mapper"), name=name, protect=protect,
                                  env={"WPFS_QUIET": "1"})
        runner = Runner(program, mm)
        self.runners.append(runner)
        self.order(runner, "close 63")  # it runs: wpctl has asked what it asks

    def fork(self):
        runner = self.runner()
        if not runner or len(self.runners) >= len(NAMES) + CHILDREN:
            return
        if not runner.known or not any(page.pgoff in runner.mm.file(page.key).armed
                                       for page in runner.pages.values()):
            return  # its child would be a program like any other, under the first free name
        self.say(f"{runner.mm.name}({runner.pid}): fork")
        child = Child(self.wpfs, runner.program)
        name = f"{runner.mm.name.split('/')[0]}/{child.pid}"
        self.say(f"  is {name}")
        mm = runner.mm.fork(name)
        mm.family |= not self.alive or runner.mm.family
        for page in runner.pages.values():
            if page.in_doubt():
                mm.doubted(page.key, {page.pgoff}, page.in_doubt())
        if runner.thread:  # what it had stored by then is not known
            mm.doubted(runner.thread.key, runner.thread.pages(), THREAD)
        self.mms[name] = mm
        self.runners.append(runner.fork(child, mm))

    def is_child(self, runner):
        return isinstance(runner.program, Child)

    def end_child(self):
        children = [runner for runner in self.runners if self.is_child(runner)]
        choice, how = self.rng.random(), self.rng.random()
        if children:
            self.child_ends(children[int(choice * len(children))], how < 0.5)

    def child_ends(self, runner, by_itself):
        self.say(f"{runner.mm.name}: {'ends' if by_itself else 'is killed'}")
        pidfd = os.pidfd_open(runner.pid)
        if by_itself:
            runner.program.stdin.close()
        else:
            os.kill(runner.pid, 9)
            runner.program.stdin.close()
        assert harness.proc.is_over(pidfd, harness.SECONDS), "a child does not end"
        os.close(pidfd)
        self.ended(runner)
        runner.mm.end()
        runner.program.stdout.close()
        self.runners.remove(runner)
        self.wpfs._reap()

    def parents(self):
        return [runner for runner in self.runners if not self.is_child(runner)]

    def kill(self):
        parents, choice = self.parents(), self.rng.random()
        if parents:
            self.program_ends(parents[int(choice * len(parents))], False)

    def leave(self):
        parents, choice = self.parents(), self.rng.random()
        if parents:
            self.program_ends(parents[int(choice * len(parents))], True)

    def program_ends(self, runner, by_itself):
        self.say(f"{runner.mm.name}: {'ends' if by_itself else 'is killed'}")
        if by_itself:
            runner.program.wait()
        else:
            runner.program.kill9()
        self.ended(runner)
        self.runners.remove(runner)

    def all_end(self):
        for runner in list(self.runners):
            end = self.child_ends if self.is_child(runner) else self.program_ends
            end(runner, self.rng.random() < 0.5)

    def exec(self):
        """It becomes the same program anew, with the same name and pid; maybe several times."""
        parents, choice, times = self.parents(), self.rng.random(), self.rng.choice([1, 1, 2, 3])
        if not parents:
            return
        runner = parents[int(choice * len(parents))]
        if not self.alive:
            return
        for _ in range(times):
            self.say(f"{runner.mm.name}: exec")
            runner.program.send(f"exec {harness.program('mapper')}")
        fresh = Runner(runner.program, runner.mm)
        self.runners[self.runners.index(runner)] = fresh
        assert runner.program.ask("close 63") == "err EBADF"
        self.ended(runner)

    # -- a userfaultfd of its own

    def uffd(self):
        runner = self.runner()
        part = self.part(runner)
        features = self.rng.choice(["", " remap", " fork", " remap fork", " async"])
        if not part or runner.uffds or not self.alive or self.is_child(runner):
            return
        slot, addr, first, count = part
        there = [runner.pages.get(addr // PAGE + first + n) for n in range(count)]
        if any(page is None for page in there):
            return
        # What has wpfs's own uffd on it is given to the program's; see the shim.
        uffd = self.order(runner, f"uffd {slot} {first} {count}{features}")
        if uffd is None:
            return
        runner.uffds.append(uffd)
        for page in there:
            page.own = True
            if "async" in features:
                runner.asyncs.add(page.key)
            runner.mm.changed(page.key, {page.pgoff})  # its epoch cannot be proven there

    def uffd_end(self):
        runner = self.runner()
        if runner and runner.uffds and self.alive:
            self.order(runner, f"uclose {runner.uffds.pop()}")
            for page in runner.pages.values():
                page.own = page.aside = False
