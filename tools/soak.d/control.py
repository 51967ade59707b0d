# SPDX-License-Identifier: LGPL-2.1-or-later
"""Steps: the daemon dies and comes back, and what people do with wpctl."""

import harness
import report
from checks import Lie
from harness import PAGE
from lives import NAMES
from model import ALL
from runner import family


class Control:
    def kill_daemon(self):
        if not self.alive:
            return
        self.say("the daemon is killed")
        self.count_evicted()
        self.wpfs.kill9()
        self.alive = False
        for mm in self.mms.values() if self.capped else []:  # what was just leaving is in doubt
            for key in mm.files:
                mm.doubted(key, {ALL}, "a capped mount whose daemon was killed")

    def restart(self):
        self.say("the daemon is started again")
        self.wpfs.restart()
        self.alive = True
        self.daemons += 1

    def remount(self):
        """All is in the store then, and what is not kept is what had no link."""
        if not self.alive or self.wpfs.store == "none":
            return
        self.all_end()
        self.vanish()
        self.check()
        self.say("unmounts, and mounts again")
        self.count_evicted()
        self.wpfs.umount()
        self.wpfs.wpctl("check", self.wpfs.store)
        dirty = self.wpfs.wpctl_json("dirty", target=self.wpfs.store)
        for mm in self.mms.values():
            self.check_dirty(mm, dirty)
        self.wpfs.restart()
        self.daemons += 1
        self.check()

    # -- capped mounts

    def evict(self):
        """Pages of a file go; those that somebody keeps stay, and that is no failure here."""
        self.wpctl("evict", "/" + self.names[self.any_file()][0], status=None)

    def load_back(self):
        self.wpctl("load", "/" + self.names[self.any_file()][0], status=None)

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
        key = self.rng.choice([None, self.any_file()])
        span = None
        if key is not None and self.rng.random() < 0.3 and self.sizes[key]:
            first = self.rng.randrange(self.sizes[key])
            span = range(first, first + self.rng.randint(1, self.sizes[key] - first))
        args = ["--name", name] if name else []
        args += ["--file", "/" + self.names[key][0]] if key is not None else []
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
            if runner and not runner.known:
                runner = None  # wpfs(7), WHAT MARKS CANNOT SEE
            if runner:
                self.notes_clear(runner)
                runner.told(runner.keys() if key is None else {key}, span)
            keys = set(mm.files) | (runner.keys() if runner else set())
            for file in sorted(keys) if key is None else [key]:
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
            dirty = self.pages_of(report.mm_of(answer, name), file)
            self.checks += 1
            if must - dirty:
                raise Lie(f"epoch {epoch} of {name}, f{file}: {sorted(must - dirty)} were "
                          f"written and are not in {sorted(dirty)}")

    def check_history(self):
        """What was dirty when an epoch ended is kept, whatever became of who wrote it."""
        kept = [epoch for epoch in sorted(self.closed) if self.closed[epoch]]
        if not kept:
            return
        epoch = self.rng.choice(kept)
        answer = self.wpfs.wpctl_json("dirty", "--epoch", epoch)
        for (name, file), must in self.closed[epoch].items():
            dirty = {page for row in answer["mms"] if family(row["name"]) == name
                     for page in self.pages_of(row, file)}
            self.checks += 1
            if must - dirty:
                raise Lie(f"epoch {epoch} of {name} and its children, f{file}: "
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
                if self.live(mm):
                    self.notes_clear(self.live(mm))
                    for page in self.live(mm).pages.values():
                        page.loose = True
                mm.unprotected()

    def forget(self):
        name = self.rng.choice(NAMES)
        if any(self.live(mm) for mm in self.selected(name)):
            return
        if self.wpctl("forget", "--name", name, status=None).returncode == 0:
            self.forget_history(name)
            for mm in self.selected(name):
                del self.mms[mm.name]
