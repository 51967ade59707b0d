# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mount options as tmpfs has them, and what mount(8) makes of them: remount, flags, tags."""

import errno
import os
import stat
import subprocess

import pytest

import harness


def mounted(point):
    """Options, type, source and options of the file system, from the mount table."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        line = [line for line in lines if line.split()[4] == str(point)][-1]
    flags, _, rest = line.split(None, 5)[5].partition(" - ")
    return flags.split()[0].split(","), rest.split()[0], rest.split()[1]


def fill(path, size):
    """Writes until `size` or an error; what it wrote."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    done = 0
    try:
        while done < size:
            done += os.write(fd, bytes(65536))
    except OSError as problem:
        assert problem.errno == errno.ENOSPC
    finally:
        os.close(fd)
    return done


def remount(wpfs, options, status=0):
    done = wpfs.command(harness.WPFS, "none", wpfs.mnt, "-o", f"rw,remount,{options}")
    assert done.returncode == status, done.stderr
    return done.stderr


def test_remount_changes_the_size(make_wpfs):
    wpfs = make_wpfs(options=["size=1M", "nr_inodes=100"])
    assert fill(wpfs.mnt / "f", 4 << 20) == 1 << 20
    remount(wpfs, "size=3M,user_id=0,group_id=0,default_permissions,allow_other")
    assert fill(wpfs.mnt / "f", 8 << 20) == 3 << 20
    assert "more is in use" in remount(wpfs, "size=1M", status=1)
    os.truncate(wpfs.mnt / "f", 0)
    remount(wpfs, "size=1M,nr_inodes=200")
    assert fill(wpfs.mnt / "f", 4 << 20) == 1 << 20
    assert os.statvfs(wpfs.mnt).f_files == 200
    assert "resident=" in remount(wpfs, "resident=1M", status=2)


@pytest.mark.parametrize("store", [False, True])
def test_a_remount_outlives_the_daemon(make_wpfs, store):
    """Started again as it was, it keeps what was remounted since; other options are meant."""
    def size():
        space = os.statvfs(wpfs.mnt)
        return space.f_blocks * space.f_frsize, space.f_files

    wpfs = make_wpfs(store=store, options=["size=2M", "nr_inodes=100"])
    remount(wpfs, "size=3M")
    for _ in range(2):
        wpfs.kill9()
        wpfs.restart()
        assert size() == (3 << 20, 100)
    wpfs.kill9()
    wpfs.options[0] = "size=4M"
    for _ in range(2):
        wpfs.restart()
        assert size() == (4 << 20, 100)
        wpfs.kill9()
    (wpfs.options).clear()  # no limits are said: none are changed
    wpfs.restart()
    assert size() == (4 << 20, 100)


def test_remount_changes_flags(make_wpfs):
    wpfs = make_wpfs()
    assert {"rw", "relatime"} <= set(mounted(wpfs.mnt)[0])
    assert not {"nosuid", "nodev", "noexec"} & set(mounted(wpfs.mnt)[0])
    (wpfs.mnt / "true").write_bytes(b"#!/bin/true\n")
    os.chmod(wpfs.mnt / "true", 0o755)
    subprocess.run([wpfs.mnt / "true"], check=True)
    remount(wpfs, "noexec,noatime,ro")
    assert {"ro", "noexec", "noatime"} <= set(mounted(wpfs.mnt)[0])
    with pytest.raises(PermissionError):
        subprocess.run([wpfs.mnt / "true"], check=True)
    with pytest.raises(OSError) as problem:
        (wpfs.mnt / "new").touch()
    assert problem.value.errno == errno.EROFS
    remount(wpfs, "size=1G")
    (wpfs.mnt / "new").touch()


def test_remount_of_something_else(make_wpfs):
    wpfs = make_wpfs(start=False)
    assert "no wpfs is mounted" in remount(wpfs, "size=1M", status=1)


def test_devices_and_suid_programs_work(make_wpfs):
    wpfs = make_wpfs()
    os.mknod(wpfs.mnt / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (wpfs.mnt / "null").read_bytes() == b""
    (wpfs.mnt / "id").write_bytes(open("/usr/bin/id", "rb").read())
    os.chmod(wpfs.mnt / "id", 0o4755)
    os.chmod(wpfs.dir, 0o755)
    done = wpfs.command("setpriv", "--reuid=1000", "--clear-groups", wpfs.mnt / "id", "-u")
    assert done.stdout == "0\n", done.stderr


def test_any_tag_is_a_device(make_wpfs):
    """As mount(8) calls it: what is no path stands for no store."""
    wpfs = make_wpfs(start=False)
    helper = wpfs.dir / "mount.fuse.wpfs"
    helper.symlink_to(harness.WPFS)
    done = wpfs.command(helper, "scratch", wpfs.mnt, "-o", "rw,size=1M")
    assert done.returncode == 0, done.stderr
    try:
        flags, kind, source = mounted(wpfs.mnt)
        assert (kind, source) == ("fuse.wpfs", "scratch") and "rw" in flags
        assert not (wpfs.dir / "scratch").exists()
        (wpfs.mnt / "f").touch()
    finally:
        assert wpfs.command("umount", wpfs.mnt).returncode == 0
