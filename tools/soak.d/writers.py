# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A thread of a program that stores to a mapping of its own (slot WRITTEN) all the while. It notes in
a file what it has begun (1) and done (2); what is noted as both since the notes were cleared was
stored since then, and must be dirty if it was armed all that time.
"""

from harness import PAGE
from runner import Page

WRITTEN = 6  # not one of those that other steps change
# Nor are its addresses any that the kernel chooses: other steps may map over where a mapping was.
FAR, APART = 1 << 44, 1 << 24
THREAD = "a thread that stores all the while"


class Thread:
    def __init__(self, key, first, count, notes):
        self.key, self.first, self.count, self.notes = key, first, count, notes
        self.at = 0  # page of the address space

    def pages(self):
        return set(range(self.first, self.first + self.count))


class Writers:
    def far(self):
        self.nr_far += 1
        return FAR + self.nr_far * APART

    def thread_begin(self):
        runner, key = self.runner(), self.any_file()
        part, fast = self.rng.random(), self.rng.choice(["", " fast"])
        if not runner or runner.threaded or not self.alive or self.sizes[key] < 2:
            return
        if key not in runner.files:
            if self.order(runner, f"open {key} {self.path(key)}") is None:
                return
            runner.files[key] = self.daemons
        first = int(part * (self.sizes[key] - 1))
        thread = Thread(key, first, self.sizes[key] - first,
                        self.wpfs.dir / f"notes{runner.pid}")
        addr = self.order(runner, f"map {WRITTEN} {key} {first * PAGE} {thread.count * PAGE} "
                                  f"at={self.far()}")
        if addr is None:
            return
        self.thread_placed(runner, thread, addr)
        self.armed_by_mapping(runner, key, thread.pages())
        thread.notes.unlink(missing_ok=True)
        if self.order(runner, f"writers {WRITTEN} 0 {thread.count} 1 {thread.notes}{fast}") is None:
            return
        runner.thread, runner.threaded = thread, True

    def thread_placed(self, runner, thread, addr):
        thread.at = addr // PAGE
        runner.known = True
        runner.asked.add(runner.files[thread.key])
        for n in range(thread.count):
            runner.pages[thread.at + n] = Page(thread.key, thread.first + n, "rw")

    def thread_stir(self):
        """Things that happen to a mapping while it is stored to."""
        runner, what = self.runner(), self.rng.choice(
            ["move", "dontneed", "remove", "pageout", "cold", "populate_read", "populate_write"])
        if not runner or not runner.thread:
            return
        thread = runner.thread
        if what != "move":
            done = self.order(runner, f"advise {WRITTEN} 0 {thread.count} {what}")
            if what == "remove" and not self.alive:
                self.removed_untold({thread.key})
            if what == "remove" and done is not None and self.is_tracked(runner):
                self.dropped(thread.key, thread.first, thread.first + thread.count, called=False)
            return
        addr = self.order(runner, f"remap {WRITTEN} 0 {thread.count} {thread.count} "
                                  f"at={self.far()}")
        if addr is not None:
            self.clear(runner, thread.at * PAGE, thread.count)
            self.thread_placed(runner, thread, addr)
            self.order(runner, "busy 2")  # no store to the old address is under way any more

    def thread_end(self):
        runner = self.runner()
        if runner and runner.thread and self.order(runner, "rest") is not None:
            self.notes_take(runner)
            runner.thread = None

    def ended(self, runner):
        """Its last marks are read."""
        runner.looked_at()
        self.notes_take(runner)
        runner.thread = None

    def notes_take(self, runner):
        """What has been stored by now at the latest."""
        thread = runner.thread
        if thread:
            notes = thread.notes.read_bytes()
            runner.mm.changed(thread.key, {thread.first + n for n, byte in enumerate(notes)
                                           if byte == 3})
            # It may have been there before it noted that it was done, or before the notes were cleared.
            runner.mm.doubted(thread.key, thread.pages(), THREAD)

    def notes_clear(self, runner):
        if runner.thread:
            with open(runner.thread.notes, "r+b", buffering=0) as notes:
                notes.write(bytes(runner.thread.count))

    def may_be_stored_to(self, mm, key):
        """Pages that somebody may store to at any moment."""
        return set().union(*(runner.thread.pages() for runner in self.runners
                             if runner.thread and runner.mm is mm and runner.thread.key == key))
