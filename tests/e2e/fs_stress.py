# SPDX-License-Identifier: LGPL-2.1-or-later
"""`fs_stress.py DIR SEED OPERATIONS`: random operations on few names, so that several of these
meet on the same ones. Prints every error that such a race cannot explain."""

import errno
import os
import random
import sys

EXPECTED = {errno.EPERM, errno.ENOENT, errno.EACCES, errno.EEXIST, errno.EXDEV, errno.ENOTDIR,
            errno.EISDIR, errno.EINVAL, errno.ENOTEMPTY, errno.ELOOP}


class Hands:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.held = []

    def directory(self):
        return f"d{self.random.randrange(4)}"

    def name(self):
        return f"{self.directory()}/f{self.random.randrange(12)}"

    def fd(self):
        if not self.held:
            self.create()
        return self.random.choice(self.held)

    def create(self):
        self.held.append(os.open(self.name(), os.O_CREAT | os.O_RDWR))
        os.pwrite(self.held[-1], b"x" * self.random.randrange(20000), self.random.randrange(100000))

    def unlink(self):
        os.unlink(self.name())

    def rename(self):
        os.rename(self.name(), self.name())

    def link(self):
        os.link(self.name(), self.name())

    def symlink(self):
        os.symlink("x", self.name())

    def mkdir(self):
        os.mkdir(self.name())

    def rmdir(self):
        os.rmdir(self.name())

    def nameless(self):
        fd = os.open(self.directory(), os.O_TMPFILE | os.O_RDWR)
        self.held.append(fd)
        if self.random.random() < 0.5:
            os.link(f"/proc/self/fd/{fd}", self.name(), follow_symlinks=True)

    def release(self):
        fd = self.fd()
        self.held.remove(fd)
        os.close(fd)

    def release_all(self):
        while len(self.held) > 50:
            os.close(self.held.pop())

    def look(self):
        os.listdir(self.directory())
        with os.scandir(self.directory()) as entries:
            for entry in entries:
                try:
                    entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    pass
        os.fstat(self.fd())

    def resize(self):
        os.ftruncate(self.fd(), self.random.randrange(50000))
        os.truncate(self.name(), self.random.randrange(100000))

    def attributes(self):
        os.chmod(self.name(), self.random.choice([0o600, 0o6755]))
        os.utime(self.name())
        os.setxattr(self.name(), "user.x", b"1" * self.random.randrange(100))

    def sync(self):
        os.fsync(self.fd())
        os.statvfs(".")


def main():
    top, seed, operations = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.chdir(top)
    for number in range(4):
        try:
            os.mkdir(f"d{number}")
        except FileExistsError:
            pass
    hands = Hands(seed)
    moves = [hands.create, hands.unlink, hands.rename, hands.link, hands.symlink, hands.mkdir,
             hands.rmdir, hands.nameless, hands.release, hands.release_all, hands.look,
             hands.resize, hands.attributes, hands.sync]
    for _ in range(operations):
        move = hands.random.choice(moves)
        try:
            move()
        except OSError as problem:
            if problem.errno not in EXPECTED:
                print(f"seed {seed}: {move.__name__}: {problem}")


if __name__ == "__main__":
    main()
