# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Everyday and less everyday file operations, each giving what it saw. Run by itself on a directory
(`fs_battery.py DIR`) it prints one JSON object; the same on a tmpfs and on a wpfs mount must be
the same. Runs as root, in a process of its own, because cases change credentials and umask.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)

cases = {}


def case(function):
    cases[function.__name__] = function
    return function


def attempt(function, *args):
    """What a call gives, or the name of its error."""
    try:
        return function(*args)
    except OSError as problem:
        return errno.errorcode[problem.errno]


def as_user(uid, gid, groups, function, umask=0o022):
    """The same in a child that is this user; the value comes back as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.umask(umask)
        os.write(write, repr(attempt(function)).encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as answer:
        text = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def call(name, *args):
    """A libc function that takes numbers and paths; raises OSError."""
    args = [ctypes.c_long(a) if isinstance(a, int) else a.encode() for a in args]
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)


def look(path):
    s = os.lstat(path)
    return oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_size


def make(path, mode=0o666, data=b"x", owner=None):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode)
    os.write(fd, data)
    os.close(fd)
    if owner:
        os.chown(path, *owner)
        os.chmod(path, mode)


def opened(path, flags, mode=0o600):
    os.close(os.open(path, flags, mode))
    return "opened"


def write_to(path, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    try:
        return os.write(fd, b"y")
    finally:
        os.close(fd)


def fallocate(path, mode, off, length):
    fd = os.open(path, os.O_RDWR)
    try:
        call("fallocate", fd, mode, off, length)
        return os.fstat(fd).st_size, os.fstat(fd).st_blocks
    finally:
        os.close(fd)


# -- creation: owner, group, mode

@case
def create_as_user():
    os.chmod(".", 0o777)
    as_user(1000, 1000, [], lambda: make("a"))
    as_user(1000, 1000, [], lambda: make("b"), 0o077)
    as_user(1000, 1000, [], lambda: os.mkdir("d"))
    as_user(1000, 1000, [], lambda: os.symlink("target", "l"))
    as_user(1000, 1000, [], lambda: os.mkfifo("p"))
    return [look(name) for name in ("a", "b", "d", "l", "p")], os.readlink("l")


@case
def create_in_set_group_id_directory():
    os.chown(".", 0, 500)
    os.chmod(".", 0o2777)
    as_user(1000, 1000, [], lambda: os.mkdir("d"))
    as_user(1000, 1000, [], lambda: make("f"))
    as_user(1000, 1000, [], lambda: make("stranger", 0o2755))
    as_user(1000, 1000, [500], lambda: make("member", 0o2755))
    return [look(name) for name in ("d", "f", "stranger", "member")]


@case
def devices():
    os.chmod(".", 0o777)
    refused = as_user(1000, 1000, [], lambda: os.mknod("u", stat.S_IFCHR | 0o666, 0x103))
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return refused, write_to("null"), look("null"), os.lstat("null").st_rdev


@case
def sticky_directory_and_permissions():
    os.chmod(".", 0o1777)
    make("f", 0o600, owner=(1000, 1000))
    return (as_user(1001, 1001, [], lambda: os.unlink("f")),
            as_user(1001, 1001, [], lambda: opened("f", os.O_RDONLY)),
            as_user(1001, 1001, [], lambda: os.chmod("f", 0o777)),
            as_user(1001, 1001, [], lambda: os.utime("f")),
            as_user(1000, 1000, [], lambda: os.unlink("f")))


# -- suid, sgid and capabilities

def suid_after(function, mode=0o6777, uid=1001):
    make("s", mode, owner=(1000, 1000))
    seen = as_user(uid, uid, [], function), look("s")
    os.unlink("s")
    return seen


@case
def suid_bits_after_a_user():
    os.chmod(".", 0o777)
    return [suid_after(lambda: write_to("s")),
            suid_after(lambda: os.truncate("s", 0)),
            suid_after(lambda: opened("s", os.O_WRONLY | os.O_TRUNC)),
            suid_after(lambda: fallocate("s", 3, 0, 4096)),
            suid_after(lambda: fallocate("s", 0, 0, 4096))]


@case
def suid_bits_after_root():
    return [suid_after(lambda: write_to("s"), uid=0),
            suid_after(lambda: write_to("s", os.O_RDWR), uid=0),
            suid_after(lambda: write_to("s"), 0o2644, uid=0),
            suid_after(lambda: os.truncate("s", 0), uid=0),
            suid_after(lambda: opened("s", os.O_WRONLY | os.O_TRUNC), uid=0),
            suid_after(lambda: fallocate("s", 3, 0, 4096), uid=0),
            suid_after(lambda: os.chown("s", 1002, 1002), uid=0),
            suid_after(lambda: os.chown("s", 1002, 1002), 0o2644, uid=0)]


@case
def set_group_id_after_a_chown_to_nobody_else():
    os.chmod(".", 0o777)
    os.mkfifo("p")
    seen = []
    for uid, groups in ((0, []), (1000, []), (1000, [500])):
        os.chown("p", 1000, 500)
        os.chmod("p", 0o2644)
        as_user(uid, uid, groups, lambda: os.chown("p", -1, -1))
        seen.append(look("p"))
    return seen


@case
def set_group_id_by_owner():
    make("f", 0o755, owner=(1000, 500))
    stranger = as_user(1000, 1000, [], lambda: os.chmod("f", 0o2755)), look("f")
    return stranger, as_user(1000, 1000, [500], lambda: os.chmod("f", 0o2755)), look("f")


@case
def capabilities_go_with_a_write():
    seen = []
    for uid in (1001, 0):
        make(f"c{uid}", 0o777, owner=(0, 0))
        os.setxattr(f"c{uid}", "security.capability", CAPABILITY)
        as_user(uid, uid, [], lambda u=uid: write_to(f"c{u}"))
        seen.append(attempt(os.getxattr, f"c{uid}", "security.capability"))
    return repr(seen)


# -- extended attributes and ACLs

@case
def extended_attributes():
    make("f", 0o666, owner=(1000, 1000))
    os.symlink("f", "l")
    os.setxattr("f", "user.a", b"1" * 1000)
    os.setxattr("f", "trusted.t", b"2")
    os.setxattr("l", "trusted.t", b"3", follow_symlinks=False)
    return repr([
        os.getxattr("f", "user.a"), sorted(os.listxattr("f")),
        as_user(1000, 1000, [], lambda: os.listxattr("f")),
        as_user(1000, 1000, [], lambda: os.getxattr("f", "trusted.t")),
        attempt(os.getxattr, "f", "user.none"),
        attempt(os.setxattr, "f", "user.a", b"", os.XATTR_CREATE),
        attempt(lambda: os.setxattr("l", "user.a", b"1", follow_symlinks=False)),
        os.listxattr("l", follow_symlinks=False),
        attempt(os.removexattr, "f", "user.a"), attempt(os.removexattr, "f", "user.a")])


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xffffffff
ACL = acl((1, 6, NO_ID), (2, 6, 1001), (4, 4, NO_ID), (16, 6, NO_ID), (32, 0, NO_ID))
DEFAULT_ACL = acl((1, 7, NO_ID), (2, 7, 1001), (4, 5, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID))


@case
def access_acl():
    make("f", 0o600, owner=(1000, 1000))
    os.setxattr("f", "system.posix_acl_access", ACL)
    named = as_user(1001, 1001, [], lambda: opened("f", os.O_RDWR))
    other = as_user(1002, 1002, [], lambda: opened("f", os.O_RDONLY))
    before = look("f")
    os.chmod("f", 0o640)
    return named, other, before, os.getxattr("f", "system.posix_acl_access").hex(), look("f")


@case
def default_acl():
    os.chmod(".", 0o777)
    os.setxattr(".", "system.posix_acl_default", DEFAULT_ACL)
    as_user(1000, 1000, [], lambda: make("f"), 0o077)
    as_user(1000, 1000, [], lambda: os.mkdir("d"), 0o077)
    return (look("f"), os.getxattr("f", "system.posix_acl_access").hex(),
            look("d"), os.getxattr("d", "system.posix_acl_default").hex())


@case
def acl_and_set_group_id():
    seen = []
    for name, groups in (("stranger", []), ("member", [500])):
        make(name, 0o2770, owner=(1000, 500))
        as_user(1000, 1000, groups,
                lambda n=name: os.setxattr(n, "system.posix_acl_access", ACL))
        seen.append(look(name))
    return seen


# -- names

@case
def rename_in_all_its_forms():
    for name in "abc":
        make(name, data=name.encode() * 3)
    os.mkdir("d")
    os.rename("a", "b")
    seen = [look("b"), attempt(call, "renameat2", AT_FDCWD, "b", AT_FDCWD, "c", 1)]
    call("renameat2", AT_FDCWD, "b", AT_FDCWD, "d", 2)
    seen.append([look("b"), look("d")])
    call("renameat2", AT_FDCWD, "c", AT_FDCWD, "e", 4)
    return seen, look("c"), look("e"), attempt(os.rename, "b", "b/x"), sorted(os.listdir("."))


@case
def links():
    make("f")
    os.link("f", "g")
    same = os.lstat("f").st_ino == os.lstat("g").st_ino
    os.symlink("f", "s")
    os.link("s", "s2", follow_symlinks=False)
    return same, look("f"), look("s2"), attempt(os.link, ".", "dir"), attempt(os.link, "f", "g")


@case
def unlinked_and_open():
    make("f")
    os.link("f", "g")
    fd = os.open("f", os.O_RDWR)
    os.unlink("f")
    os.unlink("g")
    os.pwrite(fd, b"zz", 5)
    os.fchmod(fd, 0o400)
    os.setxattr(fd, "user.a", b"1")
    seen = os.pread(fd, 9, 0), os.fstat(fd).st_nlink, os.fstat(fd).st_size
    os.ftruncate(fd, 1)
    return repr(seen), os.fstat(fd).st_size, oct(os.fstat(fd).st_mode), os.listxattr(fd), \
        attempt(lambda: os.link(f"/proc/self/fd/{fd}", "h"))


@case
def replaced_and_open():
    make("f", data=b"old")
    make("g", data=b"new")
    fd = os.open("f", os.O_RDONLY)
    os.rename("g", "f")
    with open("f", "rb") as new:
        return repr([os.read(fd, 9), os.fstat(fd).st_nlink, new.read()])


@case
def removed_directory_in_use():
    here = os.getcwd()
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    seen = os.listdir("."), attempt(make, "f"), os.stat(".").st_nlink
    os.chdir(here)
    return seen


@case
def file_without_a_name():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"tmp")
    seen = os.fstat(fd).st_nlink
    os.link(f"/proc/self/fd/{fd}", "f", follow_symlinks=True)
    never = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with open("f", encoding="ascii") as named:
        return seen, look("f"), named.read(), \
            attempt(lambda: os.link(f"/proc/self/fd/{never}", "g", follow_symlinks=True))


@case
def refusals():
    make("f")
    os.mkdir("d")
    make("d/f")
    return [attempt(make, "x" * 256), attempt(make, "x" * 255), attempt(make, "f"),
            attempt(opened, "d", os.O_RDWR), attempt(os.rmdir, "d"), attempt(os.unlink, "d"),
            attempt(os.rmdir, "f"), attempt(opened, "f/x", os.O_RDONLY),
            attempt(opened, "none", os.O_RDONLY), attempt(os.readlink, "f"),
            attempt(os.truncate, "f", -1), attempt(os.mkdir, "none/d")]


@case
def many_names():
    names = [f"f{i}" for i in range(3000)]
    for name in names:
        make(name, data=b"")
    complete = sorted(os.listdir(".")) == sorted(names)
    with os.scandir(".") as entries:
        for entry in entries:  # removing while reading: none is missed, none comes twice
            os.unlink(entry.path)
    return complete, os.listdir(".")


@case
def numbers_agree():
    make("f")
    os.mkdir("d")
    with os.scandir(".") as entries:
        return sorted((e.name, e.inode() == os.lstat(e.name).st_ino, e.is_dir()) for e in entries)


def comes_to(function, value):
    """In time: what nobody uses any more may go a little later."""
    for _ in range(200):
        if function() == value:
            return True
        time.sleep(0.02)
    return function()


@case
def a_directory_that_files_have_left_goes():
    def free():
        return os.statvfs(".").f_ffree

    os.mkdir("stays")
    at_first = free()
    for how in ("tmpfile", "linked", "linked open"):
        os.mkdir("d")
        if how == "tmpfile":
            fd = os.open("d", os.O_TMPFILE | os.O_RDWR, 0o644)
            os.link(f"/proc/self/fd/{fd}", f"stays/{how}", src_dir_fd=fd)
            os.close(fd)
        else:
            make("d/f")
            fd = os.open("d/f", os.O_RDWR)
            os.link("d/f", f"stays/{how}")
            if how == "linked":
                os.close(fd)
            os.unlink("d/f")
            if how != "linked":
                os.close(fd)
        os.rmdir("d")
    return sorted(os.listdir("stays")), comes_to(free, at_first - 3)


# -- contents

@case
def holes():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"a", 500000)
    return (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 500000, os.SEEK_HOLE),
            os.fstat(fd).st_blocks, attempt(os.lseek, fd, 600000, os.SEEK_DATA),
            attempt(os.lseek, fd, 2 << 20, os.SEEK_HOLE))


@case
def holes_that_a_load_fills():
    """While blocks behind the end make up for them, or more than that."""
    told = []
    for behind in (1, 2, 3):
        name = f"f{behind}"
        fd = os.open(name, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 3 * 4096)
        os.pwrite(fd, b"a", 0)
        call("fallocate", fd, 1, 3 * 4096, behind * 4096)
        os.close(fd)
        fd = os.open(name, os.O_RDONLY)
        before = os.fstat(fd).st_blocks
        with mmap.mmap(fd, 3 * 4096, prot=mmap.PROT_READ) as mapping:
            told.append((before, mapping[4096], os.fstat(fd).st_blocks,
                         mapping[8192], os.stat(name).st_blocks))
        os.close(fd)
        told.append(os.stat(name).st_blocks)
    return told


@case
def holes_that_come_later():
    """Into a file that only a reader has, by its descriptor or by a mapping alone."""
    told = []
    for number, (by_name, is_open) in enumerate((a, b) for a in (True, False) for b in (True, False)):
        name = f"f{number}"
        make(name, data=b"a" * 3 * 4096)
        fd = os.open(name, os.O_RDONLY)
        told.append((os.fstat(fd).st_blocks, os.stat(name).st_blocks))
        with mmap.mmap(fd, 3 * 4096, prot=mmap.PROT_READ) as mapping:
            if not is_open:
                os.close(fd)
            if by_name:
                os.truncate(name, 4096)
                os.truncate(name, 3 * 4096)
            else:
                told.append(attempt(fallocate, name, 3, 4096, 8192))
            told.append((os.stat(name).st_blocks, mapping[4096], os.stat(name).st_blocks,
                         mapping[8192], os.stat(name).st_blocks))
        if is_open:
            os.close(fd)
    return told


@case
def allocation():
    make("f", data=b"a" * 65536)
    return [attempt(fallocate, "f", mode, 8192, 8192) for mode in (0, 1, 2, 3, 8, 16, 32, 64)], \
        attempt(fallocate, "f", 0, 1 << 20, 4096), attempt(fallocate, "f", 1, 2 << 20, 4096)


@case
def far_offsets():
    """At the last byte that an offset can tell, and around it."""
    seen = []
    end = 2**63 - 1
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    for at in (end - 4096, end - 1, end, 2**62):
        lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
        from_end = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_END, at, 10, 0)
        seen.append([at, attempt(os.lseek, fd, at, os.SEEK_SET), attempt(os.lseek, fd, 1, os.SEEK_CUR),
                     attempt(os.lseek, fd, at, os.SEEK_END), attempt(os.lseek, fd, at, os.SEEK_DATA),
                     attempt(call, "pread", fd, "x" * 10, 4, at), attempt(os.pwrite, fd, b"ab", at), os.fstat(fd).st_size,
                     attempt(os.ftruncate, fd, at), os.fstat(fd).st_size, attempt(os.truncate, "f", at - 1),
                     attempt(os.lseek, fd, 0, os.SEEK_END), attempt(os.lseek, fd, 1, os.SEEK_END),
                     attempt(os.pwrite, fd, b"ab", at), os.fstat(fd).st_size, os.fstat(fd).st_blocks,
                     attempt(os.lseek, fd, 0, os.SEEK_DATA),
                     attempt(os.pread, fd, 9, at - 3), attempt(fcntl.lockf, fd, fcntl.LOCK_EX, 10, at),
                     attempt(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, lock),
                     attempt(fcntl.fcntl, fd, fcntl.F_SETLK, from_end)])
        for mode, off, length in ((0, at, 1), (1, at, 4096), (3, at, 1), (3, 0, at), (0, 1, at), (3, at, end)):
            seen.append((mode, attempt(fallocate, "f", mode, off, length)))
        os.ftruncate(fd, 0)
        seen.append(attempt(os.copy_file_range, fd, fd, 10, 0, at))
    return repr(seen)


@case
def through_two_names():
    make("f", data=b"f" * 5000)
    os.mkdir("d")
    os.link("f", "d/g")
    first, second = os.open("f", os.O_RDWR), os.open("d/g", os.O_RDWR)
    with mmap.mmap(first, 4096) as one, mmap.mmap(second, 4096) as two:
        one[0] = ord("1")
        os.pwrite(second, b"2", 1)
        seen = two[0:3], one[0:3], os.pread(first, 3, 0)
        os.unlink("f")
        two[2] = ord("3")
        seen += one[0:3], os.fstat(first).st_nlink, os.fstat(second).st_ino == os.stat("d/g").st_ino
    os.ftruncate(first, 10)
    os.rename("d/g", "f")
    return repr(seen), os.fstat(second).st_size, os.stat("f").st_size, attempt(os.stat, "d/g"), look("f")


@case
def copy_range_and_append():
    make("f", data=bytes(range(256)) * 64)
    source = os.open("f", os.O_RDONLY)
    copy = os.open("g", os.O_RDWR | os.O_CREAT)
    copied = os.copy_file_range(source, copy, 1000, 100, 0)
    append = os.open("g", os.O_WRONLY | os.O_APPEND)
    os.write(append, b"1")
    os.write(append, b"2")
    return copied, os.pread(copy, 2000, 0).hex(), os.fstat(append).st_size, \
        os.lseek(append, 0, os.SEEK_CUR)


@case
def times():
    make("f")
    os.utime("f", ns=(123456789012345678, 223456789012345678))
    exact = os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns
    write_to("f")
    moved = os.stat("f").st_mtime_ns > 10**18
    os.utime(".", ns=(0, 0))
    make("g")
    return exact, moved, os.stat(".").st_mtime_ns > 10**18


@case
def mappings():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    with mmap.mmap(fd, 8192) as shared, mmap.mmap(fd, 8192, mmap.MAP_PRIVATE) as private:
        shared[5000] = 65
        seen = private[5000], os.pread(fd, 1, 5000)
        private[5000] = 66
        os.pwrite(fd, b"C", 5001)
        seen += shared[5000], shared[5001]
        os.ftruncate(fd, 4096)
        pid = os.fork()
        if pid == 0:
            os._exit(shared[5000])
        return repr(seen), os.waitpid(pid, 0)[1] == signal.SIGBUS


@case
def locks():
    make("f")
    first, second = os.open("f", os.O_RDWR), os.open("f", os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    seen = [attempt(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)]
    fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    seen.append(as_user(0, 0, [], lambda: fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB)))
    os.close(first)
    seen.append(attempt(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB))
    return seen


@case
def sockets_and_pipes():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        client.connect("s")
    os.mkfifo("p")
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    write_to("p")
    return look("s"), repr(os.read(reader, 9)), look("p")


@case
def programs():
    subprocess.run(["cp", "/bin/cat", "cat"], check=True)
    ran = subprocess.run(["./cat"], input=b"hello", capture_output=True, check=True).stdout
    with subprocess.Popen(["./cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdin.write(b"x")
        running.stdin.flush()
        running.stdout.read(1)  # it is executing
        busy = attempt(opened, "cat", os.O_WRONLY)
        running.kill()
    return repr(ran), busy


@case
def syncing_and_flags():
    make("f")
    fd, here = os.open("f", os.O_RDWR | os.O_DIRECT), os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.fsync(here)
    return os.statvfs(".").f_bsize, os.statvfs(".").f_namemax, \
        attempt(opened, "f", os.O_RDONLY | os.O_DIRECTORY), \
        attempt(opened, "f", os.O_RDONLY | os.O_NOFOLLOW)


def main():
    top = os.path.abspath(sys.argv[1])
    seen = {}
    os.umask(0o022)
    for name, function in cases.items():
        os.mkdir(f"{top}/{name}")
        os.chdir(f"{top}/{name}")
        seen[name] = attempt(function)
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
