# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon, the programs that are measured, and the database they end up in."""
import contextlib
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def build():
    """The build to measure: WPFS_BUILD as it is, else build/, made new."""
    where = os.environ.get("WPFS_BUILD")
    if where:
        return os.path.abspath(where)
    where = os.path.join(TOP, "build")
    subprocess.run([os.path.join(TOP, "tools", "build"), where], check=True, stdout=subprocess.DEVNULL)
    return where


@contextlib.contextmanager
def undisturbed():
    """An interruption waits until the end of this."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Orders:
    """A program that takes orders; see bench.d/raw.h."""

    def __init__(self, argv, env=None):
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      env=env)
        self.pid = self.popen.pid

    def send(self, *words):
        self.popen.stdin.write(" ".join(map(str, words)) + "\n")
        self.popen.stdin.flush()

    def receive(self):
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.popen.args}: ended with {self.popen.wait()}")
        return [float(word) for word in line.split()]

    def ask(self, *words):
        self.send(*words)
        return self.receive()

    def one(self, *words):
        return self.ask(*words)[0]

    def end(self):
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            pass  # it has ended before
        self.popen.wait()
        self.popen.stdout.close()

    def kill(self):
        self.popen.kill()
        self.end()


class Rig:
    """A mounted store, a directory of tmpfs beside it, and a connection to the daemon."""

    def __init__(self, where):
        self.where = where
        self.programs = []
        self.ctl = None
        self.dir = tempfile.mkdtemp(prefix="wpfs-bench-")
        self.raw = tempfile.mkdtemp(prefix="wpfs-bench-", dir="/dev/shm")  # tmpfs everywhere
        self.mnt = os.path.join(self.dir, "mnt")
        self.store = os.path.join(self.dir, "store")
        self.daemon = self.db = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        os.mkdir(self.mnt)
        os.mkdir(self.store, 0o700)
        # Nothing but what is asked for: no flush, no harvest of its own.
        self.daemon = subprocess.Popen([self.tool("wpfs"), "-f", "-o", "flush=0,harvest=0,size=90%",
                                        self.store, self.mnt])
        end = time.monotonic() + 30
        while not os.path.ismount(self.mnt):
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError("wpfs does not mount")
            time.sleep(0.01)
        self.ctl = Orders([os.path.join(self.where, "tools", "bench-ctl"), self.mnt])
        # Read-only, and never in the way of the writer for longer than a query.
        self.db = sqlite3.connect(f"file:{self.store}/wpfs.db?mode=ro", uri=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        code = self.close()
        if code and not error:
            raise RuntimeError(f"wpfs ended with {code}")

    def close(self):
        """Leaves nothing behind, whatever happens meanwhile. Gives the daemon's exit status."""
        with undisturbed():
            for program in self.programs:
                program.popen.kill()
            for program in self.programs:
                program.end()
            if self.db:
                self.db.close()
            if self.ctl:
                self.ctl.kill()
            code = self._end_daemon() if self.daemon else 0
            shutil.rmtree(self.dir)
            shutil.rmtree(self.raw)
        return code

    def _end_daemon(self):
        # Nothing is to be kept: an unmount would store what was written.
        if os.path.ismount(self.mnt) and self.daemon.poll() is None:
            for name in os.listdir(self.mnt):
                os.unlink(os.path.join(self.mnt, name))
            subprocess.run([self.tool("umount.fuse.wpfs"), self.mnt], check=False)
        try:
            code = self.daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            code = self.daemon.wait()
        if os.path.ismount(self.mnt):
            subprocess.run(["umount", "-l", self.mnt], check=False)
        return code

    def tool(self, name):
        return os.path.join(self.where, "src", "wpfs" if name == "wpfs" else "ctl", name)

    def file(self, name="f"):
        return os.path.join(self.mnt, name)

    def raw_file(self, name="f"):
        return os.path.join(self.raw, name)

    def program(self, name=None, protect=False, shim=True):
        """A program under measurement, as `wpctl run` would start it."""
        env = dict(os.environ)
        if shim:
            env["LD_PRELOAD"] = os.path.join(self.where, "src", "preload", "libwpfs_preload.so")
        if name:
            env["WPFS_NAME"] = name
        if protect:
            env["WPFS_PROTECT"] = "1"
        program = Orders([os.path.join(self.where, "tools", "bench-prog")], env)
        self.programs.append(program)
        return program

    def end(self, program, kill=False):
        self.programs.remove(program)
        (program.kill if kill else program.end)()

    def query(self, sql, *args):
        return self.db.execute(sql, args).fetchone()

    def witness(self, pid):
        """(pid, number of wpfs's uffd in it) of a tracked program's witness."""
        return self.query("SELECT witness_pid, uffd_fd FROM mm WHERE pid = ? AND state = 1", pid)

    def db_bytes(self):
        """Of the database, without pages that are free."""
        pages, = self.query("SELECT page_count FROM pragma_page_count")
        free, = self.query("SELECT freelist_count FROM pragma_freelist_count")
        size, = self.query("SELECT page_size FROM pragma_page_size")
        return (pages - free) * size

    def log(self):
        """(commits, pages) in the database's log, and what tells one log from the next."""
        with open(self.store + "/wpfs.db-wal", "rb") as wal:
            head = wal.read(32)
            size, salts = struct.unpack_from(">I", head, 8)[0], head[16:24]
            commits = pages = 0
            while len(frame := wal.read(24)) == 24 and frame[8:16] == salts:
                commits += struct.unpack_from(">I", frame, 4)[0] != 0
                pages += 1
                wal.seek(size, os.SEEK_CUR)
        return salts, commits, pages

    def logged(self, before):
        """(commits, pages) since; a log that began anew counts from its begin."""
        salts, commits, pages = self.log()
        if salts != before[0]:
            return commits, pages
        return commits - before[1], pages - before[2]

    def daemon_bytes(self):
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")
