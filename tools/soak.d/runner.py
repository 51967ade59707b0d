# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs of a world, as they are known from what they were told to do."""


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

    def keys(self):
        return {page.key for page in self.pages.values()}
