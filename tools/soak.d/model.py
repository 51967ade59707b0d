# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What must be dirty, by the rules of the marks alone: armed pages that were stored to through a
mapping of that address space, or whose contents were dropped, since the epoch began. wpfs may call
more pages dirty, never fewer; of those that it may, because nobody could know (wpfs(8), WHAT MARKS
CANNOT SEE), `doubt` has the reason: others that are dirty are so without one.

Where the rules leave it open whether a page is armed, it is not armed here: less is demanded then.
"""


LARGEST = 1 << 10  # page of a file, and what may be mapped behind its end
ALL = None  # in a set of pages: all of the file


class File:
    """One file in one address space."""

    def __init__(self):
        self.armed = set()
        self.must = set()  # armed, and changed since
        self.touched = set()  # changed since, armed or not
        self.doubt = {}  # may be dirty: page, or ALL, and why
        self.protect = False  # what is mapped later is armed too
        self.called = False  # write(2) or its like, since the epoch began

    def why(self, page):
        """Of a page that is dirty and need not be; None: nothing tells."""
        return self.doubt.get(page) or self.doubt.get(ALL)

    def copy(self):
        other = File()
        other.armed, other.must = set(self.armed), set(self.must)
        other.touched, other.doubt = set(self.touched), dict(self.doubt)
        other.protect, other.called = self.protect, self.called
        return other


class Mm:
    """The marks kept under one name: of a live program or of one that has ended."""

    def __init__(self, name):
        self.name = name
        self.files = {}
        self.protect_new = False
        self.family = False  # only the rows of all its relatives together are known to have it
        self.wrote = False  # has something to tell that its parent has not
        self.turned = False  # was in a protect or unprotect
        self.final = None  # a child that ended: {file: what must be dirty then}
        self.kept = False  # and has a row

    def file(self, key):
        return self.files.setdefault(key, File())

    def mapped(self, key, pages, watched):
        """A new shared mapping; `watched`: a daemon was told."""
        file = self.file(key)
        if watched and (self.protect_new or file.protect):
            if not file.armed:
                file.called = False  # its first epoch
            file.armed |= pages
            file.protect = True

    def changed(self, key, pages):
        """Stored to, or dropped, or (where wpfs stepped aside) nobody can say."""
        file = self.file(key)
        file.touched |= pages
        pages = file.armed & pages
        self.wrote |= bool(pages - file.must)
        file.must |= pages

    def doubted(self, key, pages, why):
        for page in pages:
            self.file(key).doubt.setdefault(page, why)

    def end(self):
        self.final = {key: set(file.must) for key, file in self.files.items()}

    def unprotected(self):
        """Nobody has to have what it ended with any more."""
        if self.final is not None:
            self.final = {}
        for file in list(self.files):
            self.unprotect(file)

    def dropped(self, key, first, end):
        """
        What a child was dropped of after it ended is no reason to keep it: `wrote` and `final` stay.
        """
        if key in self.files:
            file = self.files[key]
            pages = range(first, min(end, LARGEST))
            file.must |= file.armed & set(pages)
            file.touched |= set(pages)

    def protect(self, key, mapped, span):
        """Begins an epoch; what the one before it must have ended with."""
        file = self.file(key)
        within = (lambda page: True) if span is None else (lambda page: page in span)
        closed = {page for page in file.must if within(page)}
        if span is None or not file.armed:
            file.called = False
        file.armed |= {page for page in mapped if within(page)}
        file.must -= closed
        file.touched = {page for page in file.touched if not within(page)}
        file.doubt = {} if span is None else {page: why for page, why in file.doubt.items()
                                              if page is ALL or not within(page)}
        if span is None:
            file.protect = True
        return closed

    def unprotect(self, key):
        self.files[key] = File()

    def fork(self, name):
        child = Mm(name)
        child.files = {key: file.copy() for key, file in self.files.items()}
        child.protect_new = self.protect_new
        return child
