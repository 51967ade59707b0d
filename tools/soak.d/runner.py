# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs of a world, as they are known from what they were told to do."""

# It cannot be told from wpfs's own, so what looks like one of its mappings counts as one.
BESIDE = "beside an asynchronous userfaultfd of the program's"


def family(name):
    """What a program and its children have in common."""
    return name.split("/")[0]


class Page:
    """
    A page that a program maps shared. `raw`: by a system call that nobody was told of. What was
    stored to it since is seen if the mapping is still there when somebody looks: wpfs(7).
    """

    def __init__(self, key, pgoff, prot, own=False, raw=False, aside=False):
        self.key, self.pgoff, self.prot, self.own, self.raw = key, pgoff, prot, own, raw
        self.past_shim = raw  # still, when a protect has made it known to the daemon
        self.stored = False
        self.aside = aside  # moved, or born, with a userfaultfd of the program's, which may have it
        self.loose = False  # unprotected, and no protect since

    def copy(self, pgoff=None):
        """As it is in a fork child, or where mremap has moved it."""
        other = Page(self.key, self.pgoff if pgoff is None else pgoff, self.prot,
                     raw=self.raw)
        other.past_shim, other.loose, other.aside = self.past_shim, self.loose, self.aside
        return other

    def in_doubt(self):
        """Why nobody watches it; None: somebody does."""
        if self.raw:
            return "mapped by a raw system call"
        if self.own or self.aside:
            return "a userfaultfd of the program's"
        return "armed by a mapping, and one that was unprotected shows it too" if self.loose else None


class Runner:
    """A live program: what it has open and mapped."""

    def __init__(self, program, mm):
        self.program, self.mm = program, mm
        self.pid = program.pid
        self.files = {}  # number of an open file: which daemon it was opened by
        self.asked = set()  # daemons whose mount is known to be one: a file of it was mapped
        self.asyncs = set()  # files that an asynchronous userfaultfd of its own has, or had
        self.slots = {}  # number: [address, pages]
        self.pages = {}  # page of the address space: Page
        self.held = set()  # all pages of the address space that it has mapped itself
        self.known = False  # has told the daemon of a mapping; a protect does not find it before
        self.uffds = []
        self.thread = None  # that stores all the while; see writers.py
        self.threaded = False  # it has one, or had

    def fork(self, child, mm):
        other = Runner(child, mm)
        other.files, other.asked = dict(self.files), set(self.asked)
        other.asyncs = set(self.asyncs)
        other.known = self.known
        other.threaded = self.threaded  # the notes are its parent's
        other.held = set(self.held)
        other.slots = {slot: list(where) for slot, where in self.slots.items()}
        other.pages = {at: page.copy() for at, page in self.pages.items()}
        for at, page in self.pages.items():
            other.pages[at].aside = page.own or page.aside
        return other

    def runs_held(self, first, count):
        """What of a range is mapped still: elsewhere the kernel may have put something else."""
        runs = []
        for page in range(first, first + count):
            if page not in self.held:
                continue
            if runs and runs[-1][0] + runs[-1][1] == page:
                runs[-1][1] += 1
            else:
                runs.append([page, 1])
        return runs

    def looked_at(self):
        """Somebody looks, or it ends and its last look is taken."""
        for page in self.pages.values():
            if page.stored and self.known:
                self.mm.changed(page.key, {page.pgoff})
            if page.in_doubt():
                self.mm.doubted(page.key, {page.pgoff}, page.in_doubt())
            if page.key in self.asyncs:
                self.mm.doubted(page.key, {page.pgoff}, BESIDE)

    def doubted(self, first, count, why):
        """Nobody was told before something happened to these pages of the address space."""
        for at in range(first, first + count):
            if at in self.pages:
                self.mm.doubted(self.pages[at].key, {self.pages[at].pgoff}, why)

    def went(self, first, count):
        """These pages of the address space go, and the shim tells of those that it knows of."""
        for at in range(first, first + count):
            page = self.pages.get(at)
            if page and page.past_shim:
                self.mm.doubted(page.key, {page.pgoff}, "mapped by a raw system call, and unmapped")
            elif page and page.in_doubt():
                self.mm.doubted(page.key, {page.pgoff}, page.in_doubt())

    def told(self, keys, span):
        """A protect made all of its mappings known."""
        for page in self.pages.values():
            if page.key in keys and (span is None or page.pgoff in span):
                page.raw = page.raw and span is not None
                page.stored = page.loose = False

    def mapped(self, key):
        return {page.pgoff for page in self.pages.values() if page.key == key}

    def keys(self):
        return {page.key for page in self.pages.values()}
