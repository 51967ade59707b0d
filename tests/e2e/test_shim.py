# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The preloaded library: a program sees what it would see without it, whatever it does to its memory
and descriptors, and whatever the other end of the socket is.
"""

import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
import uuid

import pytest

import harness
import proc
import report
import wire
from mapper import Child, map_file, mapped
from wire import HDR

PAGE = harness.PAGE
TIMEOUT = 10  # seconds; CLIENT_TIMEOUT_S of the library
PROMPT = TIMEOUT - 1  # seconds; anything that waited for a daemon would take longer than this
HELLO_REPLY = struct.Struct("=QII")
OP_HELLO, OP_REPLY = 1, 128


def preload(**more):
    return {"LD_PRELOAD": str(harness.SHIM), **more}


def bare_output(wpfs):
    """What the battery of calls prints on tmpfs, without the shim."""
    path = f"/dev/shm/wpfs-{uuid.uuid4()}"
    try:
        done = wpfs.command(harness.program("shimcalls"), path)
    finally:
        os.unlink(path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["protected", "tracked", "preloaded", "no daemon"])
def test_calls_behave_as_without_the_shim(wpfs, how):
    expected = bare_output(wpfs)
    if how == "no daemon":
        target = f"/dev/shm/wpfs-{uuid.uuid4()}"
        done = wpfs.command(harness.program("shimcalls"), target, env=preload(WPFS_MOUNT="0-0"))
        os.unlink(target)
    elif how == "preloaded":
        done = wpfs.command(harness.program("shimcalls"), wpfs.mnt / "f", env=preload())
    else:
        done = wpfs.run(harness.program("shimcalls"), wpfs.mnt / "f", name="s",
                        protect=how == "protected")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert done.stderr == ""


def test_without_a_daemon_one_line_says_so(wpfs):
    """Its mount is there and nobody answers: the program runs, and says it once."""
    prog = wpfs.spawn_bare(harness.program("mapper"), env=preload())
    prog.order(f"open 0 {wpfs.mnt}/f")
    prog.order(f"size 0 {4 * PAGE}")
    sock = harness.RUN_DIR / wpfs.id / "sock"
    sock.rename(f"{sock}.away")
    prog.order(f"map 0 0 0 {4 * PAGE}")
    prog.order(f"map 1 0 0 {4 * PAGE}")
    prog.order("store 0 1 7")
    lines = prog.stderr().splitlines()
    assert lines == [f"wpfs: mount {wpfs.id}: its daemon is not running: this program is not tracked"]
    os.rename(f"{sock}.away", sock)
    prog.order(f"map 2 0 0 {4 * PAGE}")  # asked again: tracked now
    assert [mm["pid"] for mm in wpfs.wpctl_json("ps")["mms"]] == [prog.pid]
    prog.send("exit 0")
    prog.wait()


def test_quiet_and_require(wpfs):
    sock = harness.RUN_DIR / wpfs.id / "sock"
    sock.rename(f"{sock}.away")
    for extra, answer in (({"WPFS_QUIET": "1"}, "ok"),
                          ({"WPFS_QUIET": "1", "WPFS_REQUIRE": "1"}, "err ECONNREFUSED")):
        prog = wpfs.spawn_bare(harness.program("mapper"), env=preload(**extra))
        prog.order(f"open 0 {wpfs.mnt}/f")
        prog.order(f"size 0 {4 * PAGE}")
        assert prog.ask(f"map 0 0 0 {4 * PAGE}").startswith(answer)
        assert prog.stderr() == ""
        prog.send("exit 0")
        prog.wait()
    os.rename(f"{sock}.away", sock)


def test_require_with_a_descriptor_of_a_daemon_that_died(wpfs):
    """Its first mapping: nobody has told the program yet what file system it is."""
    prog = wpfs.spawn_bare(harness.program("mapper"), env=preload(WPFS_QUIET="1", WPFS_REQUIRE="1"))
    prog.order(f"open 0 {wpfs.mnt}/f")
    prog.order(f"size 0 {4 * PAGE}")
    wpfs.kill9()
    assert prog.ask(f"map 0 0 0 {4 * PAGE}") == "err ECONNREFUSED"
    prog.kill9()
    wpfs.restart()


def test_a_name_that_is_none(wpfs):
    prog = wpfs.spawn_bare(harness.program("mapper"), env=preload(WPFS_NAME="a/b"))
    prog.order(f"open 0 {wpfs.mnt}/f")
    prog.order(f"size 0 {PAGE}")
    assert prog.stderr() == ""
    prog.order(f"map 0 0 0 {PAGE}")
    prog.order(f"map 1 0 0 {PAGE}")
    assert prog.stderr().count("WPFS_NAME is not 1-64 of") == 1
    assert [mm["name"] for mm in wpfs.wpctl_json("ps")["mms"]] == [None]


def test_mapped_before_main(wpfs):
    """From the constructor of another library, and from a thread of it."""
    done = wpfs.run(harness.program("earlymap"), wpfs.mnt / "f", name="early", protect=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "before main: ok\nin a thread: ok\n"
    mms = wpfs.wpctl_json("dirty", "--name", "early")["mms"]
    pages = [page for mm in mms for one in mm["maps"] for run in one["runs"]
             for page in range(run["pgoff"], run["pgoff"] + run["pages"])]
    assert set(pages) == {0, 1}


@pytest.mark.parametrize("tracked", [False, True])
def test_under_a_seccomp_filter_nothing_is_tried(wpfs, tracked):
    """The filter kills for anything that attaching needs: the program lives."""
    argv = (harness.program("confined"), wpfs.mnt / "f")
    done = wpfs.run(*argv, name="c") if tracked else wpfs.command(*argv, env=preload())
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("how", ["prctl", "syscall", "failed"])
def test_a_filter_that_only_knows_the_programs_calls(wpfs, how):
    """What is mapped under it counts; a filter that was not installed changes nothing."""
    done = wpfs.run(harness.program("strict"), how, wpfs.mnt / "f", name="s", protect=True)
    assert (done.returncode, done.stdout) == (0, "mapped\ndone\n"), done.stderr
    if how == "failed":
        assert report.dirty(wpfs, "s") == {1, 2}
    else:
        assert report.dirty(wpfs, "s") >= {1, 2}


def test_mapped_in_a_chroot(wpfs):
    """There is no /proc there to look into, and the file is the first one that it opens."""
    program = wpfs.spawn(harness.program("mapper"), name="c", protect=True)
    program.order(f"chroot {wpfs.mnt}")
    program.order("open 0 /f")
    program.order(f"size 0 {8 * PAGE}")
    program.order(f"map 0 0 0 {8 * PAGE}")
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "c") == {3}


def test_mapped_in_a_chroot_to_a_directory_of_the_mount(wpfs):
    """The mount itself is above it, and to a user the kernel does not tell what that is."""
    top = wpfs.mnt / "top"
    top.mkdir(mode=0o777)
    top.chmod(0o777)
    program = wpfs.spawn(harness.program("mapper"), name="c", protect=True)
    program.order(f"chroot {top}")
    program.order("uid 1234")
    program.order("open 0 /f")
    program.order(f"size 0 {8 * PAGE}")
    program.order(f"map 0 0 0 {8 * PAGE}")
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "c", "/top/f") == {3}


def test_mapped_in_a_chroot_under_a_filter_from_before(wpfs):
    """There is one more call there that it may kill for."""
    done = wpfs.command(harness.program("confined"), "/f", wpfs.mnt, env=preload())
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert "a seccomp filter is installed already" in done.stderr


def test_fixed_where_there_is_no_room_for_another_one(wpfs):
    """It needs no more memory than what it replaces: as without wpfs it is made, and tracked."""
    program = mapped(wpfs)
    with open(f"/proc/{program.pid}/statm", encoding="ascii") as statm:
        size = int(statm.read().split()[0]) * PAGE
    resource.prlimit(program.pid, resource.RLIMIT_AS, (size + 8 * PAGE, size + 8 * PAGE))
    program.order(f"map 0 0 0 {64 * PAGE} at={program.addr}")
    program.order("store 0 3 1")
    assert 3 in report.dirty(wpfs, "t")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {5}
    program.kill9()
    assert report.dirty(wpfs, "t") == {5}


@pytest.mark.parametrize("options", [[], ["resident=16M"]], ids=["native", "capped"])
@pytest.mark.parametrize("fixed", [False, True])
def test_locked_beyond_the_limit(make_wpfs, options, fixed):
    """It is refused, and what it was to replace is as it was."""
    wpfs = make_wpfs(store=True, options=options)
    program = mapped(wpfs)
    resource.prlimit(program.pid, resource.RLIMIT_MEMLOCK, (16 * PAGE, 16 * PAGE))
    program.order("uid 1234")
    place = f" at={program.addr}" if fixed else ""
    assert program.ask(f"map 1 0 0 {64 * PAGE} locked{place}") == "err EAGAIN"
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == {3}
    program.order(f"map 0 0 0 {16 * PAGE} locked{place}")
    program.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {3, 5}


def test_threads_that_fork_at_once(wpfs):
    """One to which the lock is refused must not give back another one's."""
    done = wpfs.run(harness.program("forkers"), wpfs.mnt / "f", name="t")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr


def test_two_mounts_in_one_program(make_wpfs):
    """A witness for each; when the program dies none of them takes away what another needs."""
    one, two = make_wpfs(), make_wpfs()
    prog = mapped(one)
    prog.order(f"open 1 {two.mnt}/f")
    prog.order(f"size 1 {8 * PAGE}")
    prog.order(f"map 1 1 0 {8 * PAGE}")
    prog.order("store 0 1 1")
    prog.order("store 1 2 1")
    child = Child(one, prog)
    child.order("store 0 5 1")
    child.order("store 1 6 1")
    assert report.dirty(one, f"t/{child.pid}") == {1, 5}
    assert report.names(two)[f"t/{child.pid}"] == "live"
    child.end()
    prog.kill9()
    assert report.dirty(one, "t") == {1}
    assert report.dirty(two, "t") == {2}


def test_a_program_of_an_ordinary_user(wpfs):
    os.chmod(wpfs.dir, 0o755)
    os.chmod(wpfs.mnt, 0o1777)
    prog = wpfs.spawn_bare("/usr/bin/setpriv", "--reuid", "65534", "--regid", "65534",
                           "--clear-groups", harness.program("mapper"),
                           env=preload(WPFS_NAME="u", WPFS_PROTECT="1"))
    map_file(prog, wpfs.mnt / "f")
    prog.order("store 0 1 1")
    assert report.dirty(wpfs, "u") == {1}
    prog.kill9()
    assert report.dirty(wpfs, "u") == {1}


# -- at the other end of the socket is something else


class FakeDaemon:
    """Listens where a daemon of mount `id` would, and does with each connection what `serve` does."""

    def __init__(self, serve, instead_of=None):
        self.id = instead_of.id if instead_of else str(uuid.uuid4())
        self.dir = harness.RUN_DIR / self.id
        self.away = instead_of and (self.dir / "sock").rename(self.dir / "sock.away")
        self.dir.mkdir(parents=True, exist_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.dir / "sock"))
        self.listener.listen()
        self.listener.settimeout(harness.SECONDS)
        self.requests = []
        self.thread = threading.Thread(target=self._run, args=(serve,))
        self.thread.start()

    def _run(self, serve):
        conn, _ = self.listener.accept()
        conn.settimeout(harness.SECONDS)
        with conn:
            request = conn.recv(65536)
            self.requests.append(request)
            if serve(conn, HDR.unpack_from(request)) is HANG_UP:
                return
            try:
                while request := conn.recv(65536):
                    self.requests.append(request)
            except ConnectionResetError:
                pass

    def close(self):
        self.thread.join(harness.SECONDS)
        self.listener.close()
        (self.dir / "sock").unlink()
        if self.away:
            self.away.rename(self.dir / "sock")
        else:
            self.dir.rmdir()


def reply(conn, seq, body=b"", op=OP_REPLY, fds=(), **header):
    socket.send_fds(conn, [wire.packet(op, seq, body, **header)], list(fds))


def null_fds(count):
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


HANG_UP = object()

ABUSE = {
    "closes at once": lambda conn, hdr: HANG_UP,
    "empty packet": lambda conn, hdr: conn.send(b"\0"),
    "wrong version": lambda conn, hdr: reply(conn, hdr[3], bytes(16), version=9),
    "wrong seq": lambda conn, hdr: reply(conn, hdr[3] + 1, bytes(16)),
    "wrong op": lambda conn, hdr: reply(conn, hdr[3], bytes(16), op=OP_HELLO),
    "wrong length": lambda conn, hdr: reply(conn, hdr[3], bytes(16), length=99),
    "short body": lambda conn, hdr: reply(conn, hdr[3], bytes(8)),
    "long body": lambda conn, hdr: reply(conn, hdr[3], bytes(2000)),
    "huge": lambda conn, hdr: conn.send(b"\xff" * 60000),
    "error": lambda conn, hdr: reply(conn, hdr[3], status=-12),
    "no descriptors": lambda conn, hdr: reply(conn, hdr[3], HELLO_REPLY.pack(1, 0, 2)),
    "one descriptor": lambda conn, hdr: reply(conn, hdr[3], HELLO_REPLY.pack(1, 0, 2),
                                              fds=null_fds(1)),
    "not a uffd": lambda conn, hdr: reply(conn, hdr[3], HELLO_REPLY.pack(1, 0, 2),
                                          fds=null_fds(2)),
    "flood of descriptors": lambda conn, hdr: reply(conn, hdr[3], HELLO_REPLY.pack(1, 0, 2),
                                                    fds=null_fds(100)),
}


def list_descriptors(env):
    return subprocess.run(["/bin/ls", "/proc/self/fd"], capture_output=True, text=True,
                          timeout=harness.SECONDS, check=False, env=env)


@pytest.mark.parametrize("abuse", ABUSE)
def test_a_daemon_that_talks_nonsense(abuse):
    """The program is not tracked; it runs to its end and has no descriptor more than before."""
    fake = FakeDaemon(ABUSE[abuse])
    try:
        done = list_descriptors({"LD_PRELOAD": str(harness.SHIM), "WPFS_MOUNT": fake.id})
    finally:
        fake.close()
    plain = list_descriptors({})
    assert done.returncode == 0
    assert done.stdout == plain.stdout
    assert done.stderr == ""
    assert len(fake.requests[0]) == HDR.size + 80


def refused_by_version_1(conn, hdr):
    """As any version answers to what it does not speak."""
    reply(conn, hdr[3], b"not a message of protocol version 1".ljust(512, b"\0"), status=-71, version=1)
    return HANG_UP


def test_a_daemon_of_another_version(wpfs):
    """It was not ended when another wpfs was installed. Who asks is told so, once, and goes on untracked."""
    prog = wpfs.spawn_bare(harness.program("mapper"), env=preload())
    prog.order(f"open 0 {wpfs.mnt}/f")
    prog.order(f"size 0 {4 * PAGE}")
    fake = FakeDaemon(refused_by_version_1, instead_of=wpfs)
    try:
        prog.order(f"map 0 0 0 {4 * PAGE}")
    finally:
        fake.close()
    prog.order(f"map 1 0 0 {4 * PAGE}")
    prog.order("store 0 1 7")
    (line,) = prog.stderr().splitlines()
    assert "its daemon is of another version of wpfs: this program is not tracked" in line
    fake = FakeDaemon(refused_by_version_1, instead_of=wpfs)
    try:
        done = wpfs.wpctl("ps", wpfs.mnt, status=1)
    finally:
        fake.close()
    assert "its daemon is of another version: use the wpctl that came with it" in done.stderr


def test_a_client_of_another_version(wpfs):
    """The same the other way round: the answer says so in words, and the connection is closed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(harness.SECONDS)
        sock.connect(str(harness.RUN_DIR / wpfs.id / "sock"))
        sock.send(wire.packet(OP_HELLO, 5, bytes(80), version=1))
        answer = sock.recv(65536)
        length, version, op, seq, status = HDR.unpack_from(answer)
        assert (length, version, op, seq, status) == (len(answer), wire.VERSION, OP_REPLY, 5, -71)
        assert b"another version of wpfs (protocol 2, asked in 1)" in answer
        assert sock.recv(65536) == b""


def test_a_daemon_that_hangs():
    """It is waited for, once, and not for ever."""
    fake = FakeDaemon(lambda conn, hdr: None)
    try:
        done = list_descriptors({"LD_PRELOAD": str(harness.SHIM), "WPFS_MOUNT": fake.id})
    finally:
        fake.close()
    assert done.returncode == 0
    assert len(fake.requests) == 1


def test_a_socket_that_is_not_roots_is_left_alone():
    """Whoever listens there, the shim says nothing to him."""
    run = harness.RUN_DIR / str(uuid.uuid4())
    run.mkdir(parents=True)
    os.chown(run, 65534, 65534)
    script = ("import os, socket, sys\n"
              "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
              f"s.bind('{run}/sock'); os.chmod('{run}/sock', 0o666); s.listen()\n"
              "print('ready', flush=True)\n"
              "c, _ = s.accept()\n"
              "print(len(c.recv(65536)), flush=True)\n")
    other = subprocess.Popen(["/usr/bin/python3", "-c", script], user=65534, group=65534,
                             extra_groups=[], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "ready\n"
        done = subprocess.run(["/bin/true"], timeout=harness.SECONDS, check=False,
                              capture_output=True, text=True,
                              env={"LD_PRELOAD": str(harness.SHIM), "WPFS_MOUNT": run.name})
        assert done.returncode == 0
        assert other.stdout.readline() == "0\n"
        assert other.wait(harness.SECONDS) == 0
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
        (run / "sock").unlink(missing_ok=True)
        run.rmdir()


# -- a FUSE mount that says it is a wpfs mount


class HostileMount:
    """tests/progs/hostilefs.c at a mountpoint of its own, answering with this id."""

    def __init__(self, wpfs, answer):
        self.mnt = wpfs.dir / "hostile"
        self.mnt.mkdir()
        self.log = wpfs.dir / "hostile.log"
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen([harness.program("hostilefs"), answer, self.mnt],
                                          stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.popen.stdout.readline() == "mounted\n"

    def was_asked(self):
        return self.log.read_text().count("asked\n")

    def close(self):
        subprocess.run(["umount", self.mnt], timeout=harness.SECONDS, check=True)
        assert self.popen.wait(harness.SECONDS) == 0
        self.popen.stdout.close()


@pytest.mark.parametrize("answer", ["another mount's", "nobody's", "no id", "without an end"])
def test_a_hostile_mount_gets_nothing(wpfs, answer):
    """It can name any mount it likes; what it maps is not tracked, and the program is not harmed."""
    said = {"another mount's": wpfs.id, "nobody's": "0123456789abcdef", "no id": "../../tmp/x",
            "without an end": ""}[answer]
    hostile = HostileMount(wpfs, said)
    try:
        prog = wpfs.spawn_bare(harness.program("mapper"),
                               env=preload(WPFS_NAME="v", WPFS_PROTECT="1"))
        prog.order(f"open 0 {hostile.mnt}/f")
        prog.order(f"map 0 0 0 {4 * PAGE}")
        prog.order("store 0 1 7")
        assert prog.order("load 0 1") == 7
        assert hostile.was_asked() >= 1
        names = [mm["name"] for mm in wpfs.wpctl_json("ps")["mms"]]
        assert names == [], "it took a name with a file that is not of the mount"
        # The same program's own mappings of the real mount are tracked as ever.
        prog.order(f"open 1 {wpfs.mnt}/f")
        prog.order(f"size 1 {4 * PAGE}")
        prog.order(f"map 1 1 0 {4 * PAGE}")
        prog.order("store 1 2 7")
        prog.order("store 0 3 7")
        mms = wpfs.wpctl_json("dirty", "--name", "v")["mms"]
        assert [(one["file"], one["runs"][0]["pgoff"], one["dirty"])
                for mm in mms for one in mm["maps"]] == [("/f", 2, 1)]
        prog.order("unmap 0")
        prog.order("unmap 1")
        prog.send("exit 0")
        prog.wait()
    finally:
        hostile.close()


def test_a_foreign_file_system_of_which_nothing_is_known(wpfs):
    """In a chroot, under a filter that was there before, only it itself can be asked."""
    foreign = HostileMount(wpfs, f"-{errno.EOPNOTSUPP}")
    try:
        done = wpfs.command(harness.program("confined"), "/f", foreign.mnt,
                            env=preload(WPFS_REQUIRE="1"))
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
        assert foreign.was_asked() == 1
    finally:
        foreign.close()


# -- the daemon is killed and started again


def test_the_shim_finds_the_new_daemon(wpfs):
    """Its next need connects again: what it unmaps and maps after the restart is exact."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    wpfs.restart()
    program.order("store 0 2 1")
    program.order("unmap 0 8 8")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {4 * PAGE}")
    program.order(f"map 1 1 0 {4 * PAGE}")
    program.order("store 1 3 1")
    assert report.dirty(wpfs, "t") == {1, 2}
    assert report.dirty(wpfs, "t", "/g") == {3}
    assert program.stderr() == ""
    program.order("unmap 0 16 8")
    program.kill9()
    assert report.dirty(wpfs, "t") == {1, 2}
    assert report.dirty(wpfs, "t", "/g") == {3}


def test_attached_and_nothing_mapped(wpfs):
    """The new daemon does not know it: it attaches as a new program, with a new witness."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    assert program.ask("load") == "err EINVAL"  # it runs
    (old,) = proc.children(program.pid)
    wpfs.kill9()
    wpfs.restart()
    map_file(program, wpfs.mnt / "f")
    program.order("store 0 1 1")
    (new,) = proc.children(program.pid)
    assert new != old
    assert report.dirty(wpfs, "t") == {1}
    assert program.stderr() == ""
    program.kill9()
    assert report.dirty(wpfs, "t") == {1}


def test_attached_and_mapped_only_while_the_daemon_was_away(wpfs):
    """As above, and the mapping that it has counts from when the new daemon knows of it."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {8 * PAGE}")
    wpfs.kill9()
    program.order(f"map 0 0 0 {8 * PAGE}")
    program.order("store 0 1 1")
    wpfs.restart()
    program.order(f"open 1 {wpfs.mnt}/f")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 0 2 1")
    assert report.dirty(wpfs, "t") >= {1, 2}
    program.kill9()
    assert report.dirty(wpfs, "t") >= {1, 2}


def test_a_daemon_that_stands_still(wpfs):
    """It is waited for once by a program; then neither it nor its children ever wait again."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    proc.stop(wpfs.pid)
    try:
        start = time.monotonic()
        program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
        assert time.monotonic() - start < 2 * TIMEOUT - 1
        start = time.monotonic()
        program.order("store 1 0 1")
        program.order("unmap 1")
        program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
        child = Child(wpfs, program)
        child.order(f"map 2 0 0 {8 * PAGE}")
        child.order("unmap 0 40 8")
        assert time.monotonic() - start < PROMPT
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert report.dirty(wpfs, "t") >= {1, 8}
    child.end()
    (line,) = program.stderr().splitlines()
    assert "its daemon does not answer" in line
    program.kill9()
    assert report.dirty(wpfs, "t") >= {1, 8}


def test_a_child_born_without_a_daemon(wpfs):
    """It says whose child it is when there is a daemon again, with what it could not tell."""
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 0 1 1")
    wpfs.kill9()
    child = Child(wpfs, program)
    child.order("store 0 2 1")
    child.order(f"map 2 1 0 {8 * PAGE}")
    child.order("store 2 3 1")
    child.order("unmap 2")
    wpfs.restart()
    child.order(f"map 3 0 {32 * PAGE} {8 * PAGE}")
    child.order("store 3 0 1")
    name = f"t/{child.pid}"
    assert report.dirty(wpfs, name) == {1, 2, 32}
    assert 3 in report.dirty(wpfs, name, "/g")
    program.order("store 0 4 1")
    child.order("unmap 3")
    child.end()
    assert report.dirty(wpfs, name) == {1, 2, 32}
    assert {1, 4} <= report.dirty(wpfs, "t")
    program.kill9()


def limit_descriptors(program, most):
    hard = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (min(most, hard), hard))


def test_without_a_free_descriptor_that_is_what_it_says(wpfs):
    """And what it then cannot tell counts; with a descriptor again it is tracked again."""
    program = mapped(wpfs)
    wpfs.kill9()
    wpfs.restart()
    limit_descriptors(program, 4)
    program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
    program.order("store 1 0 1")
    program.order("unmap 1")
    (line,) = program.stderr().splitlines()
    assert "no descriptor is free" in line
    limit_descriptors(program, 1024)
    program.order(f"map 1 0 0 {8 * PAGE}")
    assert 8 in report.dirty(wpfs, "t")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 1 5 1")
    program.order("unmap 1")
    assert report.dirty(wpfs, "t") == {5}
    program.kill9()


def test_a_descriptor_of_the_old_daemon_still_maps_tracked(wpfs):
    """fstat on it fails from now on; its mappings are tracked all the same."""
    program = mapped(wpfs)
    wpfs.kill9()
    wpfs.restart()
    program.order("unmap 0")
    program.order(f"map 0 0 0 {4 * PAGE}")
    program.order("store 0 1 1")
    assert report.dirty(wpfs, "t") == {1}
    program.kill9()
    assert report.dirty(wpfs, "t") == {1}


def test_what_needs_the_daemon_says_so_while_it_is_away(wpfs):
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 0 1 1")
    program.order("store 1 2 1")
    wpfs.kill9()
    start = time.monotonic()
    assert program.ask("msync 0") == "err EIO", "durable, without a daemon"
    assert program.ask("msync 0") == "err EIO"
    program.order("unmap 1")
    assert time.monotonic() - start < PROMPT
    lines = program.stderr().splitlines()
    assert len(lines) == 1 and "its daemon is not running" in lines[0]
    wpfs.restart()
    program.order("msync 0")
    assert report.dirty(wpfs, "t") == {1}
    assert 2 in report.dirty(wpfs, "t", "/g"), "what was unmapped unseen is in doubt, so dirty"


@pytest.mark.alone
def test_a_device_number_again(make_wpfs):
    """File systems that were not wpfs go, and their numbers become those of a wpfs mount."""
    wpfs = make_wpfs(start=False)
    others = [wpfs.dir / f"other{number}" for number in range(4)]
    program = wpfs.spawn_bare(harness.program("mapper"),
                              env=preload(WPFS_NAME="t", WPFS_PROTECT="1"))
    for other in others:
        other.mkdir()
    for _ in range(20):  # until nobody else on the machine has taken them
        numbers = set()
        for slot, other in enumerate(others):
            subprocess.run(["mount", "-t", "tmpfs", "none", other], timeout=harness.SECONDS, check=True)
            numbers.add(os.stat(other).st_dev)
            program.order(f"open {slot} {other}/f")
            program.order(f"size {slot} {PAGE}")
            program.order(f"map {slot} {slot} 0 {PAGE}")
            program.order(f"unmap {slot}")
            program.order(f"close {slot}")
        for other in others:
            subprocess.run(["umount", other], timeout=harness.SECONDS, check=True)
        wpfs.start()
        if os.stat(wpfs.mnt).st_dev in numbers:
            break
        wpfs.umount()
    assert os.stat(wpfs.mnt).st_dev in numbers, "the kernel gave the numbers to somebody else"
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {4 * PAGE}")
    program.order(f"map 0 0 0 {4 * PAGE}")
    program.order("store 0 2 1")
    assert report.dirty(wpfs, "t") == {2}


def test_a_daemon_that_comes_to_it_when_nobody_waits_any_more(make_wpfs):
    """What it was told of the mapping is old then: stores may have come before the marks."""
    wpfs = make_wpfs(options=["harvest=1"])
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    proc.stop(wpfs.pid)
    try:
        # It is to look at all marks first when it goes on: that is due before the program says anything.
        due = time.monotonic() + 1.2
        proc.wait_for(lambda: time.monotonic() > due, harness.SECONDS, "a second")
        program.order(f"map 1 1 0 {8 * PAGE}")
        program.order("store 1 3 1")
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert 3 in report.dirty(wpfs, "t", "/g")
    program.kill9()
    assert 3 in report.dirty(wpfs, "t", "/g")
