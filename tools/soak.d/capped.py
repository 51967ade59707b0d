# SPDX-License-Identifier: LGPL-2.1-or-later
"""
tools/soak --capped: a file of random data, eight times as large as what may be in memory, is mapped,
marked at random, read whole, written at random by threads, killed, and run again, over and over.
Contents, marks and dirty pages are held against a reference, and the status against the cap.
"""
import os
import random
import shutil
import tempfile
import threading
import time

import harness
import report

PAGE = 4096
MIB = 1 << 20
LONG = 900  # seconds, for one thing to happen on a busy disk


class Watch:
    """The most that the status ever says is resident."""

    def __init__(self, wpfs):
        self.wpfs, self.most, self.end = wpfs, 0, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.end.wait(0.1):
            self.most = max(self.most, self.wpfs.wpctl_json("status")["resident"])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()


class World:
    def __init__(self, seed, size, resident, verbose):
        harness.SECONDS = LONG
        self.rng, self.seed, self.pages = random.Random(seed), seed, size // PAGE
        self.resident, self.verbose, self.begin = resident, verbose, time.monotonic()
        self.dirty, self.armed = set(), set()
        self.wpfs = harness.Wpfs("store", [f"resident={resident}", "settle=20ms", "flush=0",
                                           "size=90%"])
        self.wpfs.start()
        fd, self.copy = tempfile.mkstemp(prefix="wpfs-soak-", dir="/dev/shm")
        os.close(fd)
        self.program = self.run()

    def say(self, text):
        if self.verbose:
            print(f"{time.monotonic() - self.begin:7.1f} s  {text}", flush=True)

    def run(self):
        program = self.wpfs.spawn(harness.program("refault"), self.wpfs.mnt / "f", self.pages,
                                  self.copy, 0, 1, name="t")
        assert program.read() == "ok ready"
        return program

    def mark(self):
        """Protects ranges at random: a new epoch of each."""
        for _ in range(self.rng.randint(1, 4)):
            first = self.rng.randrange(self.pages)
            nr = self.rng.randint(1, self.pages - first)
            self.wpfs.wpctl("protect", self.wpfs.mnt, "--name", "t", "--file", "/f", "--range",
                            f"{first * PAGE}+{nr * PAGE}")
            pages = set(range(first, first + nr))
            self.armed, self.dirty = self.armed | pages, self.dirty - pages
        self.say(f"marked: {len(self.armed)} pages are armed")

    def read(self):
        assert self.program.order("verify 2") == 0, "contents are not what they should be"
        self.say("read whole")

    def write(self):
        count = self.rng.randint(1, self.pages // 4)
        self.program.order(f"write {self.rng.randrange(1 << 30)} {count} 4")
        path = self.wpfs.dir / "written"
        self.program.order(f"written {path}")
        self.program.order("clear")
        written = {page for page, byte in enumerate(path.read_bytes()) if byte}
        self.dirty |= written & self.armed
        self.say(f"{count} writes, {len(written)} pages")

    def kill(self):
        self.program.kill9()
        self.check()
        self.program = self.run()
        self.say("killed, and run again")

    def check(self):
        assert report.dirty(self.wpfs, "t") == self.dirty, "dirty is not what was written"

    def check_marks(self):
        assert report.marked(self.wpfs, "t") == self.armed - self.dirty, "other pages are marked"

    def mount_again(self):
        """Unmounts with all of the contents and mounts; how long either takes."""
        self.program.wait()
        begin = time.monotonic()
        done = self.wpfs.command(harness.UMOUNT_HELPER, self.wpfs.mnt, timeout=LONG)
        assert done.returncode == 0, done.stderr
        assert self.wpfs.daemon.wait(LONG) == 0, self.wpfs.read_log()
        unmounted = time.monotonic()
        os.close(self.wpfs.pidfd)
        self.wpfs.daemon = None
        self.wpfs.restart()
        mounted = time.monotonic()
        self.program = self.run()
        return unmounted - begin, mounted - unmounted

    def close(self):
        for program in self.wpfs.programs:
            program.close()
        for name in os.listdir(self.wpfs.mnt):
            os.unlink(self.wpfs.mnt / name)
        self.wpfs.command(harness.UMOUNT_HELPER, self.wpfs.mnt, timeout=LONG)
        self.wpfs.daemon.wait(LONG)  # a disk may take its time to give a store's room back
        shutil.rmtree(self.wpfs.dir)
        os.unlink(self.copy)


def round_of(world):
    world.mark()
    world.check_marks()
    world.read()
    world.write()
    world.check()
    world.check_marks()
    world.kill()
    world.check()
    world.check_marks()


def soak(args):
    size, resident = args.size * MIB, args.size * MIB // 8
    print(f"seed {args.seed}: {args.size} MiB, {resident // MIB} of them in memory", flush=True)
    world = World(args.seed, size, resident, args.verbose)
    rounds = 0
    try:
        with Watch(world.wpfs) as watch:
            world.program.order(f"fill {args.seed}")
            world.program.order("clear")
            world.say("filled")
            while rounds == 0 or time.monotonic() - world.begin < args.minutes * 60:
                round_of(world)
                rounds += 1
                world.say(f"round {rounds} is right; at most {watch.most / MIB:.1f} MiB so far")
            world.read()
        umount, mount = world.mount_again()
        with Watch(world.wpfs) as after:
            world.check()
            world.check_marks()
            world.read()
            round_of(world)  # on what came from the store
            rounds += 1
        world.mount_again()
        with Watch(world.wpfs) as last:
            world.check()
            world.check_marks()
            world.read()
        watch.most = max(watch.most, after.most, last.most)
        assert watch.most <= resident + 64 * MIB, f"{watch.most / MIB:.1f} MiB were resident"
        now = world.wpfs.wpctl_json("status")
    finally:
        world.close()
    print(f"{rounds} rounds are right: contents, marks and dirty pages. At most "
          f"{watch.most / MIB:.1f} of {resident / MIB:.0f} MiB were resident; "
          f"{now['evictions']} pages left, {now['refaults']} came back. With all of "
          f"it an unmount took {umount:.1f} s, a mount {mount:.1f} s.")
    return 0
