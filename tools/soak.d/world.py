# SPDX-License-Identifier: LGPL-2.1-or-later
"""One world: a daemon, files, programs, and the steps that may happen in it."""
import os

import harness
import pagemap
import report
from harness import PAGE
from mapper import Child
from model import Mm

FILES = 3
PAGES = 40  # the largest file
SLOTS = 5
NAMES = ("a", "b")
CHILDREN = 2
CHECK_EVERY = 15


class Lie(Exception):
    """A page that was written and is not dirty, or a mark that the kernel does not have."""


def family(name):
    """What a program and its children have in common."""
    return name.split("/")[0]


class Page:
    """A page that a program maps shared."""

    def __init__(self, key, pgoff, prot, own=False):
        self.key, self.pgoff, self.prot, self.own = key, pgoff, prot, own


class Runner:
    """A live program: what it has open and mapped."""

    def __init__(self, program, mm):
        self.program, self.mm = program, mm
        self.pid = program.pid
        self.files = set()  # numbers of open files
        self.slots = {}  # number: [address, pages]
        self.pages = {}  # page of the address space: Page
        self.uffds = []

    def fork(self, child, mm):
        other = Runner(child, mm)
        other.files = set(self.files)
        other.slots = {slot: list(where) for slot, where in self.slots.items()}
        other.pages = {at: Page(p.key, p.pgoff, p.prot) for at, p in self.pages.items()}
        return other

    def mapped(self, key):
        return {page.pgoff for page in self.pages.values() if page.key == key}


class World:
    def __init__(self, rng, verbose):
        self.rng, self.verbose = rng, verbose
        self.wpfs = harness.Wpfs(rng.choice(["none", "store"])).start()
        self.sizes = [rng.randint(1, PAGES) for _ in range(FILES)]
        for key, size in enumerate(self.sizes):
            with open(self.path(key), "wb") as file:
                file.truncate(size * PAGE)
        self.alive = True
        self.mms = {}  # by name
        self.runners = []
        self.steps = self.checks = self.conservative = 0
        self.excess = {}  # (name, file): pages that were dirty though they need not be
        self.pids = set()  # of live rows at the last check
        self.closed = {}  # number of an epoch: {(name without /, file): what it ended with}
        self.history = []

    def path(self, key):
        return self.wpfs.mnt / f"f{key}"

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
        ]
        if self.alive:
            steps += [(self.protect, 5), (self.unprotect, 1), (self.sync, 1), (self.size, 2),
                      (self.punch, 2), (self.pwrite, 2), (self.forget, 1)]
        else:
            steps += [(self.restart, 25)]
        fns, weights = zip(*steps)
        self.rng.choices(fns, weights)[0]()
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

    # -- mappings

    def map(self):
        runner, key, slot = self.runner(), self.rng.randrange(FILES), self.rng.randrange(SLOTS)
        first = self.rng.randrange(PAGES)
        count = self.rng.randint(1, PAGES - first)
        kind = self.rng.choices(["", " ro", " private"], [6, 1, 1])[0]
        over = self.rng.random() < 0.3
        if not runner:
            return
        if key not in runner.files:
            if not self.alive or self.order(runner, f"open {key} {self.path(key)}") is None:
                return
            runner.files.add(key)
        if slot in runner.slots and not over:
            return
        at = ""
        if slot in runner.slots:  # MAP_FIXED over the beginning of what is there, or all
            count = min(count, runner.slots[slot][1])
            at = f" at={runner.slots[slot][0]}"
        addr = self.order(runner, f"map {slot} {key} {first * PAGE} {count * PAGE}{kind}{at}")
        if addr is None:
            return
        self.placed(runner, slot, addr, count)
        self.clear(runner, addr, count)
        if kind == " private":
            return
        for n in range(count):
            prot = "r" if kind else "rw"
            runner.pages[addr // PAGE + n] = Page(key, first + n, prot)
        runner.mm.mapped(key, set(range(first, first + count)),
                         self.alive and not runner.mm.family)

    def placed(self, runner, slot, addr, count):
        old = runner.slots.get(slot)
        runner.slots[slot] = [addr, count]
        if old and old[0] == addr and old[1] > count:
            # The rest is there still, and no number means it any more.
            self.order(runner, f"map {SLOTS} 0 0 {(old[1] - count) * PAGE} anon "
                               f"at={addr + count * PAGE}")
            self.clear(runner, addr + count * PAGE, old[1] - count)

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
        if self.order(runner, f"{raw} {slot} {first} {count}") is None:
            return
        self.clear(runner, addr + first * PAGE, count)
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
        to = self.order(runner, f"remap {slot} {first} {count} {size} as={new}")
        if to is None:
            return
        self.clear(runner, addr + first * PAGE, count)
        runner.slots[new] = [to, size]
        if whole and new != slot:
            del runner.slots[slot]
        for n in range(size):
            page = there[min(n, count - 1)]
            runner.pages[to // PAGE + n] = Page(page.key, there[0].pgoff + n, page.prot)
        if any(page.own for page in there):  # its uffd has no EVENT_REMAP: gone, unwatched
            self.unwatch(runner, to, size)

    def unwatch(self, runner, addr, count):
        for n in range(count):
            page = runner.pages.get(addr // PAGE + n)
            if page:
                page.own = False

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
        if self.order(runner, f"advise {slot} {first} {count} {what}") is None:
            return
        if what == "remove":
            for page in there:  # no call that inotify tells of: its pages are dirty, that is all
                self.dropped(page.key, page.pgoff, page.pgoff + 1, called=False)

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

    # -- files

    def dropped(self, key, first, end, called=True):
        for mm in self.mms.values():
            mm.dropped(key, first, end)
        if called:
            self.called(key)

    def called(self, key):
        for mm in self.mms.values():
            if key in mm.files:
                mm.files[key].called = True

    def size(self):
        key, pages = self.rng.randrange(FILES), self.rng.randint(0, PAGES)
        self.say(f"truncate f{key} to {pages} pages")
        os.truncate(self.path(key), pages * PAGE)
        if pages < self.sizes[key]:
            self.dropped(key, pages, 1 << 32)
        self.sizes[key] = pages

    def punch(self):
        key, first, count = (self.rng.randrange(FILES), self.rng.randrange(PAGES),
                             self.rng.randint(1, 8))
        self.say(f"punch f{key} {first}+{count}")
        done = self.wpfs.command("fallocate", "-p", "-o", first * PAGE, "-l", count * PAGE,
                                 self.path(key))
        assert done.returncode == 0, done.stderr
        self.dropped(key, first, first + count)

    def pwrite(self):
        key, page = self.rng.randrange(FILES), self.rng.randrange(PAGES)
        if page >= self.sizes[key]:
            return
        self.say(f"write f{key} page {page}")
        with open(self.path(key), "r+b", buffering=0) as file:
            file.seek(page * PAGE)
            file.write(b"w")
        self.called(key)

    # -- lives

    def fork(self):
        runner = self.runner()
        if not runner or len(self.runners) >= len(NAMES) + CHILDREN or runner.uffds:
            return
        if not any(page.pgoff in runner.mm.file(page.key).armed
                   for page in runner.pages.values()):
            return  # its child would be a program like any other, under the first free name
        self.say(f"{runner.mm.name}({runner.pid}): fork")
        child = Child(self.wpfs, runner.program)
        name = f"{runner.mm.name.split('/')[0]}/{child.pid}"
        self.say(f"  is {name}")
        mm = runner.mm.fork(name)
        mm.family |= not self.alive or runner.mm.family
        self.mms[name] = mm
        self.runners.append(runner.fork(child, mm))

    def is_child(self, runner):
        return isinstance(runner.program, Child)

    def end_child(self):
        children = [runner for runner in self.runners if self.is_child(runner)]
        choice, how = self.rng.random(), self.rng.random()
        if not children:
            return
        runner = children[int(choice * len(children))]
        self.say(f"{runner.mm.name}: {'ends' if how < 0.5 else 'is killed'}")
        pidfd = os.pidfd_open(runner.pid)
        if how < 0.5:
            runner.program.stdin.close()
        else:
            os.kill(runner.pid, 9)
            runner.program.stdin.close()
        assert harness.proc.is_over(pidfd, harness.SECONDS), "a child does not end"
        os.close(pidfd)
        runner.mm.end()
        runner.program.stdout.close()
        self.runners.remove(runner)
        self.wpfs._reap()

    def parents(self):
        return [runner for runner in self.runners if not self.is_child(runner)]

    def kill(self):
        parents, choice = self.parents(), self.rng.random()
        if parents:
            runner = parents[int(choice * len(parents))]
            self.say(f"{runner.mm.name}: is killed")
            runner.program.kill9()
            self.runners.remove(runner)

    def leave(self):
        parents, choice = self.parents(), self.rng.random()
        if parents:
            runner = parents[int(choice * len(parents))]
            self.say(f"{runner.mm.name}: ends")
            runner.program.wait()
            self.runners.remove(runner)

    def exec(self):
        """It becomes the same program anew, with the same name and pid."""
        parents, choice = self.parents(), self.rng.random()
        if not parents:
            return
        runner = parents[int(choice * len(parents))]
        if not self.alive:
            return
        self.say(f"{runner.mm.name}: exec")
        runner.program.send(f"exec {harness.program('mapper')}")
        fresh = Runner(runner.program, runner.mm)
        self.runners[self.runners.index(runner)] = fresh
        assert runner.program.ask("close 63") == "err EBADF"

    # -- a userfaultfd of its own

    def uffd(self):
        runner = self.runner()
        part = self.part(runner)
        if not part or runner.uffds or not self.alive or self.is_child(runner):
            return
        slot, addr, first, count = part
        there = [runner.pages.get(addr // PAGE + first + n) for n in range(count)]
        if any(page is None for page in there):
            return
        # What has wpfs's own uffd on it is given to the program's; see the shim.
        uffd = self.order(runner, f"uffd {slot} {first} {count}")
        if uffd is None:
            return
        runner.uffds.append(uffd)
        for page in there:
            page.own = True
            runner.mm.changed(page.key, {page.pgoff})  # its epoch cannot be proven there

    def uffd_end(self):
        runner = self.runner()
        if runner and runner.uffds and self.alive:
            self.order(runner, f"uclose {runner.uffds.pop()}")
            for page in runner.pages.values():
                page.own = False

    # -- the daemon and wpctl

    def kill_daemon(self):
        if not self.alive:
            return
        self.say("the daemon is killed")
        self.wpfs.kill9()
        self.alive = False

    def restart(self):
        self.say("the daemon is started again")
        self.wpfs.restart()
        self.alive = True

    def live(self, mm):
        return next((runner for runner in self.runners if runner.mm is mm), None)

    def sync(self):
        self.wpctl("sync", status=None)

    def wpctl(self, verb, *args, status=0):
        self.say(f"wpctl {verb} {' '.join(map(str, args))}")
        done = self.wpfs.wpctl(verb, self.wpfs.mnt, *args, status=status)
        if done.returncode:
            self.say(f"  {done.stderr.strip()}")
        return done

    def selected(self, name):
        return [mm for mm in self.mms.values()
                if name is None or mm.name == name or mm.name.startswith(name + "/")]

    def protect(self):
        name = self.rng.choice([None, *NAMES])
        key = self.rng.choice([None, *range(FILES)])
        span = None
        if key is not None and self.rng.random() < 0.3 and self.sizes[key]:
            first = self.rng.randrange(self.sizes[key])
            span = range(first, first + self.rng.randint(1, self.sizes[key] - first))
        args = ["--name", name] if name else []
        args += ["--file", f"/f{key}"] if key is not None else []
        args += ["--range", f"{span[0] * PAGE}+{len(span) * PAGE}"] if span else []
        self.check()  # what this protect closes is known then
        done = self.wpctl("protect", *args, "--json", status=None)
        if done.returncode:
            assert "has mapped a file" in done.stderr, done.stderr
            return
        epoch = harness.json.loads(done.stdout)["epoch"]
        closed = {}
        for mm in self.selected(name):
            runner = self.live(mm)
            # One that ended, was in a protect since and has changed nothing since may be forgotten.
            if "/" in mm.name and not runner and key is None and mm.turned and \
                    not any(file.must for file in mm.files.values()):
                del self.mms[mm.name]
                continue
            mm.turned = True
            for file in range(FILES) if key is None else [key]:
                mapped = runner.mapped(file) if runner and self.is_tracked(runner) else set()
                if not mapped and not mm.file(file).armed:
                    continue
                must = mm.protect(file, mapped, span)
                if must:
                    history = self.closed.setdefault(epoch - 1, {})
                    history.setdefault((family(mm.name), file), set()).update(must)
                if must and not mm.family:
                    closed[mm.name, file] = must
                self.excess.pop((mm.name, file), None)
        if closed:
            self.check_closed(epoch - 1, closed)

    def check_closed(self, epoch, closed):
        answer = self.wpfs.wpctl_json("dirty", "--epoch", epoch)
        for (name, file), must in closed.items():
            dirty = set(report.pages_of(report.mm_of(answer, name), f"/f{file}"))
            self.checks += 1
            if must - dirty:
                raise Lie(f"epoch {epoch} of {name}, /f{file}: {sorted(must - dirty)} were "
                          f"written and are not in {sorted(dirty)}")

    def check_history(self):
        """What was dirty when an epoch ended is kept, whatever became of who wrote it."""
        if not self.closed:
            return
        epoch = self.rng.choice(sorted(self.closed))
        answer = self.wpfs.wpctl_json("dirty", "--epoch", epoch)
        for (name, file), must in self.closed[epoch].items():
            dirty = {page for row in answer["mms"] if family(row["name"]) == name
                     for page in report.pages_of(row, f"/f{file}")}
            self.checks += 1
            if must - dirty:
                raise Lie(f"epoch {epoch} of {name} and its children, /f{file}: "
                          f"{sorted(must - dirty)} are not kept: {sorted(dirty)}")

    def forget_history(self, name):
        """wpctl(1): what an unprotect took out is not in its epoch any more."""
        for history in self.closed.values():
            for key in [key for key in history if key[0] == name]:
                del history[key]

    def unprotect(self):
        name = self.rng.choice(NAMES)
        if self.wpctl("unprotect", "--name", name, status=None).returncode == 0:
            self.forget_history(name)
            for mm in self.selected(name):
                mm.turned = True
                for file in list(mm.files):
                    mm.unprotect(file)

    def forget(self):
        name = self.rng.choice(NAMES)
        if any(self.live(mm) for mm in self.selected(name)):
            return
        if self.wpctl("forget", "--name", name, status=None).returncode == 0:
            self.forget_history(name)
            for mm in self.selected(name):
                del self.mms[mm.name]

    # -- what must be true

    def check(self):
        dirty, marks = self.wpfs.wpctl_json("dirty"), self.wpfs.wpctl_json("marks")
        self.pids = {row["pid"] for row in dirty["mms"] if row["state"] == "live"}
        for mm in list(self.mms.values()):
            if mm.final is None or mm.kept:
                self.check_dirty(mm, dirty)
            elif report.mm_of(dirty, mm.name) or mm.family and mm.wrote:
                mm.kept = True
                self.check_dirty(mm, dirty)
            else:
                self.check_ended(mm, dirty)
        for row in marks["mms"]:
            self.check_marks(row)
        self.check_untracked()
        self.check_history()

    def check_ended(self, mm, answer):
        """
        wpctl(1), Fl name: a child that ended is shown for as long as it has dirty pages that its
        parent did not have when it was made. It is not: then others have them, and keep them.
        """
        del self.mms[mm.name]
        heirs = sorted(self.selected(family(mm.name)), key=lambda heir: heir.family)
        for key, must in mm.final.items():
            for heir in heirs:
                rows = self.rows(heir, answer)
                theirs = must & {page for row in rows for page in report.pages_of(row, f"/f{key}")}
                heir.file(key).must |= theirs
                must = must - theirs
            self.checks += 1
            if must:
                raise Lie(f"{mm.name} ended and has no row, and nobody of its family has "
                          f"{sorted(must)} of /f{key}")

    def is_tracked(self, runner):
        """wpfs(8): a child that was born while no daemon was running may not be."""
        return not runner.mm.family or runner.pid in self.pids

    def check_untracked(self):
        """A process that is not tracked and has a file open is named."""
        for runner in self.runners:
            for key in sorted(runner.files) if not self.is_tracked(runner) else []:
                answer = self.wpfs.wpctl_json("dirty", "--file", f"/f{key}")
                self.checks += 1
                if not any(f"pid {runner.pid}," in note for note in answer["notes"]):
                    raise Lie(f"pid {runner.pid} ({runner.mm.name}) has /f{key} open and is not "
                              f"tracked: nobody says so: {answer['notes']}")

    def rows(self, mm, answer):
        if not mm.family:
            return [report.mm_of(answer, mm.name)]
        return [row for row in answer["mms"] if family(row["name"]) == family(mm.name)]

    def check_dirty(self, mm, answer):
        rows = self.rows(mm, answer)
        for key, file in mm.files.items():
            path = f"/f{key}"
            dirty = {page for row in rows for page in report.pages_of(row, path)}
            self.checks += 1
            missing = file.must - dirty
            if missing:
                raise Lie(f"{mm.name}, {path}: {sorted(missing)} were written and are not "
                          f"dirty: {sorted(dirty)} (has a row: {rows[0] is not None})")
            calls = {one["write_calls"] for row in rows if row for one in row["maps"]
                     if one["file"] == path and one["owner"] == "wpfs"}
            if file.called and file.armed and calls == {"no"}:
                raise Lie(f"{mm.name}, {path}: write(2) changed it, and it is said it did not")
            if not mm.family:
                excess = dirty - file.must
                self.conservative += len(excess - self.excess.get((mm.name, key), set()))
                self.excess[mm.name, key] = excess

    def check_marks(self, row):
        if row["state"] != "live":
            return
        for one in row["maps"]:
            if one["start"] is None:
                continue
            start = int(one["start"], 16)
            count = one["pages"]
            try:
                kernel = pagemap.marked(row["pid"], start, count)
            except OSError:
                continue
            said = {run["pgoff"] - one["pgoff"] + n for run in one["runs"]
                    for n in range(run["pages"])}
            self.checks += 1
            if said - kernel:
                raise Lie(f"{row['name']}, {one['file']} at {one['start']}: marks that the "
                          f"kernel does not have: {sorted(said - kernel)}")

    def finish(self):
        if not self.alive:
            self.restart()
        self.check()

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
