# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Steps: what happens to the files, from outside of the programs. A file has a number (key), which is
also what programs call it when they have it open; names are never used for another file while
somebody may have the one that had them before.
"""

import os

import report
from harness import PAGE

FILES = 3  # that have a name
PAGES = 40  # the largest one
KEYS = 40  # in all the life of a world
LINKS = 3


class Files:
    def begin_files(self):
        self.sizes = {}
        self.names = {}  # key: its links, below the mountpoint; empty: unlinked
        self.paths = {}  # key: all that it was ever called, as wpctl says it
        self.gone = set()  # unlinked, and mapped nowhere
        self.nr_names = 0
        os.mkdir(self.wpfs.mnt / "d")
        for _ in range(FILES):
            self.new_file()

    def new_file(self):
        key, name = len(self.sizes), self.new_name()
        self.sizes[key] = self.rng.randint(1, PAGES)
        self.names[key], self.paths[key] = [], []
        self.named(key, name)
        with open(self.path(key), "xb") as file:
            file.truncate(self.sizes[key] * PAGE)
            # What it is called if it had lost its last name before anybody asked.
            self.paths[key].append(f"(no name, file {os.fstat(file.fileno()).st_ino})")
        self.say(f"f{key}: new, {self.sizes[key]} pages")

    def new_name(self):
        self.nr_names += 1
        return self.rng.choice(["", "d/"]) + f"n{self.nr_names}"

    def named(self, key, name):
        self.names[key].append(name)
        self.paths[key].append("/" + name)

    def path(self, key):
        return self.wpfs.mnt / self.names[key][0]

    def any_file(self):
        return self.rng.choice([key for key in self.names if self.names[key]])

    def pages_of(self, row, key):
        return {page for path in self.paths[key] for page in report.pages_of(row, path)}

    # -- contents

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
        key, pages = self.any_file(), self.rng.randint(0, PAGES)
        pages = max([pages, *(runner.thread.first + runner.thread.count for runner in self.runners
                              if runner.thread and runner.thread.key == key)])
        self.say(f"truncate f{key} to {pages} pages")
        os.truncate(self.path(key), pages * PAGE)
        if pages < self.sizes[key]:
            self.dropped(key, pages, 1 << 32)
        self.sizes[key] = pages

    def punch(self):
        key, first, count = (self.any_file(), self.rng.randrange(PAGES), self.rng.randint(1, 8))
        self.say(f"punch f{key} {first}+{count}")
        done = self.wpfs.command("fallocate", "-p", "-o", first * PAGE, "-l", count * PAGE,
                                 self.path(key))
        assert done.returncode == 0, done.stderr
        self.dropped(key, first, first + count)

    def pwrite(self):
        key, page = self.any_file(), self.rng.randrange(PAGES)
        if page >= self.sizes[key]:
            return
        self.say(f"write f{key} page {page}")
        with open(self.path(key), "r+b", buffering=0) as file:
            file.seek(page * PAGE)
            file.write(b"w")
        self.called(key)

    # -- names

    def rename(self):
        key, name = self.any_file(), self.new_name()
        old = self.rng.choice(self.names[key])
        self.say(f"rename f{key} from {old} to {name}")
        os.rename(self.wpfs.mnt / old, self.wpfs.mnt / name)
        self.names[key].remove(old)
        self.named(key, name)

    def link(self):
        key, name = self.any_file(), self.new_name()
        if len(self.names[key]) < LINKS:
            self.say(f"link f{key} {name}")
            os.link(self.path(key), self.wpfs.mnt / name)
            self.named(key, name)

    def unlink(self):
        key = self.any_file()
        name = self.rng.choice(self.names[key])
        if len(self.names) == KEYS:
            return
        self.say(f"unlink f{key} {name}")
        os.unlink(self.wpfs.mnt / name)
        self.names[key].remove(name)
        self.after_unlink()

    def replace(self):
        """By rename; who has the file that had the name still, has another one."""
        key, other = self.any_file(), self.any_file()
        name = self.rng.choice(self.names[key])
        over = self.rng.choice(self.names[other])
        if key == other or len(self.names[other]) > 1 or len(self.names) == KEYS or \
                any(other in runner.files for runner in self.runners):
            return
        self.say(f"rename f{key} from {name} to {over}, over f{other}")
        os.rename(self.wpfs.mnt / name, self.wpfs.mnt / over)
        self.names[key].remove(name)
        self.names[other].remove(over)
        self.named(key, over)
        self.after_unlink()

    def after_unlink(self):
        self.vanish()
        while sum(bool(names) for names in self.names.values()) < FILES:
            self.new_file()

    def vanish(self):
        """With a file's last link and its last mapping its marks go: wpfs(7)."""
        for key, names in self.names.items():
            if names or key in self.gone:
                continue
            if any(page.key == key for runner in self.runners for page in runner.pages.values()):
                continue
            for mm in self.mms.values():
                mm.files.pop(key, None)
                if mm.final:
                    mm.final.pop(key, None)
            for history in self.closed.values():
                for which in [which for which in history if which[1] == key]:
                    del history[which]
