# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The same random operations on wpfs and on a tmpfs, compared step by step (tests/progs/fsdiff). A
difference prints its seed and how to run it again.
"""

import os
import subprocess
import tempfile

import pytest

import harness
import proc
from trees import everything

LIMITS = "size=64M,mode=755"


@pytest.fixture
def tmpfs():
    """Mounts tmpfs with options, where every user may go."""
    points = []

    def mount(options):
        point = tempfile.mkdtemp(prefix="wpfs-tmpfs-")
        points.append(point)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"inode64,{options}", "none", point], check=True)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", point], check=True)
        os.rmdir(point)


def compare(wpfs, model, *options):
    """Runs fsdiff and fails with what it printed."""
    os.chmod(wpfs.dir, 0o755)
    done = wpfs.command(harness.program("fsdiff"), *options, model, wpfs.mnt, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("options", ["relatime", "noatime", "strictatime"])
def test_random_operations(make_wpfs, tmpfs, options):
    """
    A slice, the same each time: a change that makes a difference is what made it. tools/soak --fs
    looks for new ones, with seeds of its own and for longer.
    """
    limits = f"{LIMITS},{options}"
    compare(make_wpfs(options=limits.split(",")), tmpfs(limits), "--operations", 12000, "--seed", 1)


def test_random_operations_while_they_are_stored(make_wpfs, tmpfs):
    """Every second: nobody notices. And all of it is there after an unmount, and a mount."""
    wpfs = make_wpfs(store=True, options=[*LIMITS.split(","), "relatime", "flush=1"])
    compare(wpfs, tmpfs(f"{LIMITS},relatime"), "--operations", 12000, "--seed", 2)
    before = everything(wpfs.mnt)
    assert len(before) > 100
    wpfs.umount()
    assert wpfs.wpctl_json("check", target=wpfs.store)["findings"] == []
    wpfs.restart()
    after = everything(wpfs.mnt)
    assert {path: (before.get(path), after.get(path)) for path in before.keys() | after.keys()
            if before.get(path) != after.get(path)} == {}


def test_random_operations_where_it_is_full(make_wpfs, tmpfs):
    """ENOSPC and SIGBUS as on the tmpfs. One hand: several would fill it in another order."""
    limits = "size=400K,nr_inodes=70,mode=755"
    compare(make_wpfs(options=limits.split(",")), tmpfs(limits), "--operations", 1500,
            "--hands", 1, "--seed", 1)


@pytest.mark.parametrize("options", ["size=1M", "size=2%,nr_inodes=1k", "size=10000,nr_inodes=7", "size=0,nr_inodes=0",
                                     "mode=1751,uid=1000,gid=1001", "mode=0", "size=3M,huge=always"])
def test_options(make_wpfs, tmpfs, options):
    """The root, and how much there is room for, as the same options give on a tmpfs."""
    model, wpfs = tmpfs(options), make_wpfs(options=options.split(","))

    def seen(top):
        root, room = os.stat(top), os.statvfs(top)
        return (oct(root.st_mode), root.st_uid, root.st_gid, root.st_nlink, root.st_size, room.f_bsize, room.f_frsize,
                room.f_blocks, room.f_bfree, room.f_bavail, room.f_files, room.f_ffree, room.f_namemax)

    assert seen(wpfs.mnt) == seen(model)


def test_remount(make_wpfs, tmpfs):
    """Room and huge pages change, the root's owner and mode do not."""
    proc.make_huge_pages()
    limits = "size=8M,nr_inodes=50,mode=750,uid=3"
    model, wpfs = tmpfs(limits), make_wpfs(options=limits.split(","))

    def seen(top):
        fresh = f"{top}/f{len(os.listdir(top))}"
        with open(fresh, "wb") as file:
            file.write(b"x")
        root, room, new = os.stat(top), os.statvfs(top), os.stat(fresh)
        return (oct(root.st_mode), root.st_uid, root.st_gid, room.f_blocks, room.f_bfree, room.f_files, room.f_ffree,
                new.st_blocks, new.st_blksize)

    for options in ("huge=always", "size=12M,huge=always", "huge=never", "mode=700,uid=5,gid=6,nr_inodes=60"):
        subprocess.run(["mount", "-o", f"remount,{options}", model], check=True)
        done = wpfs.command(harness.WPFS, "none", wpfs.mnt, "-o", f"rw,remount,{options}")
        assert done.returncode == 0, done.stderr
        assert seen(wpfs.mnt) == seen(model), options
