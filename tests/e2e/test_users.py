# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two users: neither sees or changes of the other what a tmpfs would not let it."""

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

import harness

ALICE, BOB = 1000, 1001


def as_user(uid, function, *args):
    """What the function gives, run in a child that is this user: its repr, or its error's name."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            text = repr(function(*args))
        except OSError as problem:
            text = type(problem).__name__
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as answer:
        text = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def attempts(top):
    """Everything Bob tries with what is Alice's; each gives a name and an outcome."""
    home, secret = top / "home", top / "home/secret"
    shared, readable = top / "shared.txt", top / "readable"
    return {
        "list her home": as_user(BOB, os.listdir, home),
        "stat in her home": as_user(BOB, os.stat, secret),
        "read her secret": as_user(BOB, secret.read_bytes),
        "read what has no right for him": as_user(BOB, (top / "private").read_bytes),
        "write what is readable": as_user(BOB, readable.write_bytes, b"x"),
        "read what is readable": as_user(BOB, readable.read_bytes),
        "remove in a sticky directory": as_user(BOB, os.unlink, readable),
        "rename in a sticky directory": as_user(BOB, os.rename, readable, top / "mine"),
        "link to what he cannot write": as_user(BOB, os.link, top / "private", top / "linked"),
        "chmod": as_user(BOB, os.chmod, shared, 0o777),
        "chown": as_user(BOB, os.chown, shared, BOB, BOB),
        "utime": as_user(BOB, os.utime, shared, (0, 0)),
        "truncate": as_user(BOB, os.truncate, readable, 0),
        "set an xattr": as_user(BOB, os.setxattr, readable, "user.x", b"1"),
        "get an xattr": as_user(BOB, os.getxattr, top / "private", "user.x"),
        "list trusted xattrs": as_user(BOB, os.listxattr, readable),
        "get a trusted xattr": as_user(BOB, os.getxattr, readable, "trusted.t"),
        "set a capability": as_user(BOB, os.setxattr, readable, "security.capability", b"1"),
        "make a device": as_user(BOB, os.mknod, top / "dev", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        "make a directory in hers": as_user(BOB, os.mkdir, home / "d"),
        "open her fifo": as_user(BOB, os.open, top / "fifo", os.O_RDWR | os.O_NONBLOCK),
        "change the root": as_user(BOB, os.chmod, top, 0o777),
    }


def prepare(top):
    os.chmod(top, 0o1777)
    (top / "home").mkdir(mode=0o700)
    for name, mode in (("home/secret", 0o644), ("private", 0o600), ("readable", 0o644), ("shared.txt", 0o666)):
        (top / name).write_bytes(name.encode())
        os.chmod(top / name, mode)
        os.setxattr(top / name, "user.x", b"1")
        os.setxattr(top / name, "trusted.t", b"1")
    os.mkfifo(top / "fifo", 0o600)
    for name in ("home", "home/secret", "private", "readable", "shared.txt", "fifo"):
        os.chown(top / name, ALICE, ALICE)


@pytest.fixture
def tmpfs(tmp_path_factory):
    point = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    for directory in (point, *point.parents):
        if directory.name.startswith(("pytest", "popen")):
            os.chmod(directory, 0o755)
    yield point
    subprocess.run(["umount", point], check=True)


def test_through_the_mount_as_on_tmpfs(wpfs, tmpfs):
    os.chmod(wpfs.dir, 0o755)
    prepare(wpfs.mnt)
    prepare(tmpfs)
    seen, expected = attempts(wpfs.mnt), attempts(tmpfs)
    assert seen == expected
    refused = [what for what, outcome in seen.items() if outcome in ("PermissionError", "OSError")]
    assert len(refused) >= 19 and "read what is readable" not in refused, seen


def everything_below(top):
    """What a user can open below a directory, or list."""
    found = []
    for directory, dirs, files in os.walk(top):
        found.append(str(directory))
        for name in files:
            path = os.path.join(directory, name)
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                found.append(path)
            except OSError:
                pass
        dirs[:] = [name for name in dirs if os.access(os.path.join(directory, name), os.R_OK | os.X_OK)]
    return found


def test_not_past_the_mount(make_wpfs):
    """The run directory shows a socket and nothing else; the store shows nothing."""
    wpfs = make_wpfs(store=True)
    os.chmod(wpfs.dir, 0o755)
    (wpfs.mnt / "secret").write_bytes(b"secret")
    os.chmod(wpfs.mnt / "secret", 0o600)
    run = harness.RUN_DIR / wpfs.id
    assert as_user(BOB, everything_below, str(run)) == repr([str(run)])
    assert as_user(BOB, os.listdir, run / "private") == "PermissionError"
    assert as_user(BOB, os.stat, run / "private/lower/secret") == "PermissionError"
    assert as_user(BOB, everything_below, wpfs.store) == "[]" or \
        as_user(BOB, os.listdir, wpfs.store) == "PermissionError"
    for inside in ("wpfs.db", "data", "lock"):
        assert as_user(BOB, os.stat, Path(wpfs.store) / inside) == "PermissionError"
    assert as_user(BOB, (run / "sock").unlink) == "PermissionError"
    assert as_user(BOB, (run / "new").touch) == "PermissionError"
    assert not os.stat(run / "private").st_mode & 0o077 and not os.stat(wpfs.store).st_mode & 0o077


def test_a_store_in_a_directory_of_hers(make_wpfs):
    """An empty one becomes root's. One that is a store already may hold whatever its owner has put there."""
    wpfs = make_wpfs(store=True, start=False)
    os.chmod(wpfs.dir, 0o755)
    os.chown(wpfs.store, ALICE, ALICE)
    wpfs.start()
    (wpfs.mnt / "secret").write_bytes(b"secret")
    assert os.stat(wpfs.store).st_uid == 0
    assert as_user(ALICE, os.listdir, wpfs.store) == "PermissionError"
    wpfs.umount()
    os.chown(wpfs.store, ALICE, ALICE)
    done = wpfs.command(harness.WPFS, wpfs.store, wpfs.mnt)
    assert done.returncode == 1 and f"belongs to user {ALICE}" in done.stderr
    os.chown(wpfs.store, 0, 0)
    wpfs.restart()


def test_a_store_below_a_directory_of_hers(make_wpfs):
    """What she puts in the place of a store that is mounted is neither read nor written."""
    wpfs = make_wpfs(store=True)
    store, away = Path(wpfs.store), Path(wpfs.store + ".away")
    os.rename(store, away)
    (store / "data").mkdir(parents=True)
    for name in ("wpfs.db", "wpfs.db-wal"):
        (store / name).write_bytes(b"hers")

    def seen():
        stats = {path: path.stat() for path in store.rglob("*")}
        return {path: (st.st_ino, st.st_size, st.st_mtime_ns) for path, st in stats.items()}

    before = seen()
    program = wpfs.spawn(harness.program("mapper"), name="mine", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order("size 0 65536")
    program.order("map 0 0 0 65536")
    program.order("store 0 3 1")
    assert wpfs.wpctl_json("dirty", "--name", "mine")["mms"][0]["maps"][0]["runs"][0]["pgoff"] == 3
    fd = os.open(wpfs.mnt / "f", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    program.kill9()
    wpfs.umount()
    assert seen() == before
    os.rename(store, str(store) + ".hers")
    os.rename(away, store)
    assert not (store / "wpfs.db-wal").exists()
    wpfs.restart()
    assert (wpfs.mnt / "f").stat().st_size == 65536
    assert "mine" in str(wpfs.wpctl_json("ps"))


@pytest.mark.parametrize("hers", ["data", "spill", "data/05", "lock", "wpfs.db-wal"])
def test_a_store_with_a_part_of_hers(make_wpfs, hers):
    """Through it she would write into files of root's."""
    wpfs = make_wpfs(store=True, start=False)
    part = Path(wpfs.store) / hers
    is_begun = hers in ("data", "spill", "lock")
    if not is_begun:
        wpfs.start()
        wpfs.umount()
    if hers == "lock" or "." in hers:
        part.touch()
    else:
        part.mkdir(exist_ok=True)
    os.chown(part, ALICE, ALICE)
    if is_begun:
        os.chown(wpfs.store, ALICE, ALICE)
    done = wpfs.command(harness.WPFS, wpfs.store, wpfs.mnt)
    assert done.returncode == 1 and f"{part} belongs to user {ALICE}" in done.stderr, done.stderr
    os.chown(part, 0, 0)
    assert not os.stat(wpfs.store).st_mode & 0o077
    wpfs.restart()


def test_not_by_the_socket(wpfs):
    """Anyone may connect; of another's processes nothing is told."""
    os.chmod(wpfs.dir, 0o755)
    os.chmod(wpfs.mnt, 0o1777)
    program = wpfs.spawn(harness.program("mapper"), name="hers", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order("size 0 65536")
    program.order("map 0 0 0 65536")
    program.order("store 0 3 1")

    def connects():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(harness.RUN_DIR / wpfs.id / "sock"))
        return True

    assert as_user(BOB, connects) == "True"
    bob = ["setpriv", f"--reuid={BOB}", f"--regid={BOB}", "--clear-groups"]
    for verb in ("ps", "dirty", "marks"):
        done = wpfs.command(*bob, harness.WPCTL, verb, wpfs.mnt, "--json")
        assert "hers" not in done.stdout + done.stderr
    for verb in (["forget"], ["unprotect"], ["protect"]):
        done = wpfs.command(*bob, harness.WPCTL, *verb, wpfs.mnt, "--name", "hers")
        assert done.returncode != 0, verb
    assert "hers" in str(wpfs.wpctl_json("ps"))
    assert wpfs.wpctl_json("dirty", "--name", "hers")["mms"][0]["maps"]
