# SPDX-License-Identifier: LGPL-2.1-or-later
"""Steps: programs map files, change their mappings, and store through them."""

from files import PAGES
from harness import PAGE
from model import ALL
from runner import Page

SLOTS = 5
NO_DAEMON = "mapped, unmapped, moved or taken out while there was no daemon"


class Mappings:
    def map(self):
        runner, slot = self.runner(), self.rng.randrange(SLOTS)
        key = self.any_open(runner)
        first = self.rng.randrange(PAGES)
        count = self.rng.randint(1, PAGES - first)
        kind = self.rng.choices(["", " ro", " private", " raw"], [12, 2, 2, 1])[0]
        over = self.rng.random() < 0.3
        if not runner:
            return
        if key not in runner.files:
            if not self.alive or self.order(runner, f"open {key} {self.path(key)}") is None:
                return
            runner.files[key] = self.daemons
        if slot in runner.slots and not over:
            return
        at = ""
        if slot in runner.slots:  # MAP_FIXED over the beginning of what is there, or all
            count = min(count, runner.slots[slot][1])
            at = f" at={runner.slots[slot][0]}"
            if runner.runs_held(runner.slots[slot][0] // PAGE, count) != \
                    [[runner.slots[slot][0] // PAGE, count]]:
                return
        if at:
            runner.went(runner.slots[slot][0] // PAGE, count)
        if at and (kind == " raw" or not self.alive):
            runner.doubted(runner.slots[slot][0] // PAGE, count,
                           "replaced by a raw system call" if kind == " raw" else NO_DAEMON)
        if not self.alive and kind in ("", " ro"):
            runner.mm.doubted(key, {ALL}, NO_DAEMON)  # what it stores there, and unmaps, nobody sees
            for other in runner.mm.files if runner.files[key] not in runner.asked else []:
                runner.mm.doubted(other, {ALL}, "nobody was there to say which file was mapped")
        addr = self.order(runner, f"map {slot} {key} {first * PAGE} {count * PAGE}{kind}{at}")
        if addr is None:
            if at and kind == " raw":  # mmap(2): what was there may be gone all the same
                first = runner.slots[slot][0] // PAGE
                self.clear(runner, first * PAGE, count)
                runner.held -= set(range(first, first + count))
            return
        runner.known |= kind in ("", " ro")
        if self.alive and kind in ("", " ro"):
            runner.asked.add(runner.files[key])
        self.placed(runner, slot, addr, count)
        self.clear(runner, addr, count)
        runner.held |= set(range(addr // PAGE, addr // PAGE + count))
        if kind == " private":
            return
        for n in range(count):
            runner.pages[addr // PAGE + n] = Page(key, first + n, "r" if kind == " ro" else "rw",
                                                  raw=kind == " raw")
        if kind != " raw":
            self.armed_by_mapping(runner, key, set(range(first, first + count)))

    def armed_by_mapping(self, runner, key, pages):
        runner.mm.mapped(key, pages, self.alive and not runner.mm.family)
        self.notes_clear(runner)  # what was noted may have been before the arming

    def any_open(self, runner):
        """Of a file that has a name, or is open still; both numbers are drawn in any case."""
        named, choice = self.any_file(), self.rng.random()
        nameless = [key for key in sorted(runner.files) if not self.names[key]] if runner else []
        return nameless[int(choice * 4 * len(nameless))] if nameless and choice < 0.25 else named

    def placed(self, runner, slot, addr, count):
        old = runner.slots.get(slot)
        runner.slots[slot] = [addr, count]
        if old and old[0] == addr and old[1] > count:
            # The rest is there still, and no number means it any more.
            for first, more in runner.runs_held(addr // PAGE + count, old[1] - count):
                runner.went(first, more)
                if not self.alive:
                    runner.doubted(first, more, NO_DAEMON)
                self.order(runner, f"map {SLOTS} 0 0 {more * PAGE} anon at={first * PAGE}")
                self.clear(runner, first * PAGE, more)

    def clear(self, runner, addr, count):
        for n in range(count):
            runner.pages.pop(addr // PAGE + n, None)

    def part(self, runner):
        """A slot and a range of pages in it, or None."""
        if not runner or not runner.slots:
            self.rng.random()
            return None
        slot = self.rng.choice(sorted(runner.slots))
        addr, pages = runner.slots[slot]
        first = self.rng.randrange(pages)
        return slot, addr, first, self.rng.randint(1, pages - first)

    def unmap(self):
        runner = self.runner()
        part = self.part(runner)
        raw = self.rng.choice(["unmap", "unmap", "rawunmap"])
        whole = self.rng.random() < 0.4
        if not part:
            return
        slot, addr, first, count = part
        if whole:
            first, count = 0, runner.slots[slot][1]
        for page, pages in runner.runs_held(addr // PAGE + first, count):
            runner.went(page, pages)
            if raw == "rawunmap" or not self.alive:
                runner.doubted(page, pages,
                               "unmapped by a raw system call" if raw == "rawunmap" else NO_DAEMON)
            if self.order(runner, f"{raw} {slot} {page - addr // PAGE} {pages}") is not None:
                self.clear(runner, page * PAGE, pages)
                runner.held -= set(range(page, page + pages))
        if whole:
            del runner.slots[slot]

    def remap(self):
        """All of a slot, or a part to a slot of its own; larger, smaller or as it is."""
        runner = self.runner()
        part = self.part(runner)
        new, whole = self.rng.randrange(SLOTS), self.rng.random() < 0.5
        grown = self.rng.choice([0, 0, 0, 3, -2])
        if not part:
            return
        slot, addr, first, count = part
        if whole:
            first, count, new = 0, runner.slots[slot][1], slot
        elif new in runner.slots:
            return
        at = addr // PAGE + first
        there = [runner.pages.get(at + n) for n in range(count)]
        if any(page is None for page in there):
            return  # holes, or something else: what mremap does there is not for this test
        if len({(page.key, page.pgoff - n, page.prot, page.own)
                for n, page in enumerate(there)}) != 1:
            return  # more than one mapping: EFAULT before Linux 6.17
        size = max(1, count + grown)
        runner.went(at + size, count - size)
        if not self.alive:
            runner.mm.doubted(there[0].key, {ALL} if size > count else set(), NO_DAEMON)
            runner.doubted(at + size, count - size, NO_DAEMON)
        elif size > count:
            runner.mm.doubted(there[0].key, range(there[-1].pgoff, there[0].pgoff + size),
                              "grown by mremap")
        to = self.order(runner, f"remap {slot} {first} {count} {size} as={new}")
        if to is None:
            return
        self.clear(runner, addr + first * PAGE, count)
        runner.held -= set(range(at, at + count))
        runner.held |= set(range(to // PAGE, to // PAGE + size))
        runner.slots[new] = [to, size]
        if whole and new != slot:
            del runner.slots[slot]
        for n in range(size):
            page = there[min(n, count - 1)]
            runner.pages[to // PAGE + n] = page.copy(there[0].pgoff + n)
        if any(page.own for page in there):  # its uffd has no EVENT_REMAP: gone, unwatched
            self.unwatch(runner, to, size)

    def unwatch(self, runner, addr, count):
        for n in range(count):
            page = runner.pages.get(addr // PAGE + n)
            if page:
                page.own, page.aside = False, True

    def prot(self):
        runner = self.runner()
        part = self.part(runner)
        prot = self.rng.choice(["r", "rw", "rw", "none"])
        if not part:
            return
        slot, addr, first, count = part
        if any(addr // PAGE + first + n not in runner.pages for n in range(count)):
            return
        if self.order(runner, f"prot {slot} {first} {count} {prot}") is not None:
            for n in range(count):
                runner.pages[addr // PAGE + first + n].prot = prot

    def advise(self):
        runner = self.runner()
        part = self.part(runner)
        what = self.rng.choice(["dontneed", "remove", "pageout", "cold", "willneed",
                                "populate_read", "populate_write", "collapse"])
        if not part:
            return
        slot, addr, first, count = part
        there = [runner.pages.get(addr // PAGE + first + n) for n in range(count)]
        if any(page is None or page.prot != "rw" or page.pgoff >= self.sizes[page.key]
               for page in there):
            return
        if what == "populate_write":  # clears marks, and stores nothing
            runner.doubted(addr // PAGE + first, count, "MADV_POPULATE_WRITE")
        if self.order(runner, f"advise {slot} {first} {count} {what}") is None:
            return
        if what == "remove" and not self.alive:
            self.removed_untold({page.key for page in there})
        if what == "remove" and self.is_tracked(runner) and runner.known:  # wpfs(8)
            for page in there:  # no call that inotify tells of: its pages are dirty, that is all
                self.dropped(page.key, page.pgoff, page.pgoff + 1, called=False)

    def removed_untold(self, keys):
        """There is nobody to be told which pages: all of the file is in doubt, in every program."""
        for mm in self.mms.values():
            for key in keys & set(mm.files):
                mm.doubted(key, {ALL}, NO_DAEMON)

    # -- stores

    def target(self, runner, prot="rw"):
        """A page that can be touched: slot and page in it."""
        choice = self.rng.random()
        if not runner:
            return None
        good = [(slot, n) for slot, (addr, pages) in sorted(runner.slots.items())
                for n in range(pages)
                if (page := runner.pages.get(addr // PAGE + n)) and page.prot in (prot, "rw")
                and page.pgoff < self.sizes[page.key]]
        return good[int(choice * len(good))] if good else None

    def stored(self, runner, slot, n):
        page = runner.pages[runner.slots[slot][0] // PAGE + n]
        if page.raw:
            page.stored = True
        else:
            runner.mm.changed(page.key, {page.pgoff})

    def store(self):
        runner = self.runner()
        target = self.target(runner)
        if target and self.order(runner, "store {} {} 1".format(*target)) is not None:
            self.stored(runner, *target)

    def kstore(self):
        runner = self.runner()
        target = self.target(runner)
        if target and self.order(runner, "kstore {} {}".format(*target)) is not None:
            self.stored(runner, *target)

    def load(self):
        runner = self.runner()
        target = self.target(runner, "r")
        if target:
            self.order(runner, "load {} {}".format(*target))

    def msync(self):
        runner = self.runner()
        part = self.part(runner)
        if part:
            self.order(runner, f"msync {part[0]}")
