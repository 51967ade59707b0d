# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A wpfs daemon that a test owns: started in a directory of its own, watched, and at the end gone
without a trace. Everything here is bounded in time; what goes wrong is an AssertionError that says
what was waited for and shows the daemon's log.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import proc

SOURCE = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("WPFS_BUILD", SOURCE / "build-asan")).resolve()
WPFS = BUILD / "src/wpfs/wpfs"
WPCTL = BUILD / "src/ctl/wpctl"
SHIM = BUILD / "src/preload/libwpfs_preload.so"
UMOUNT_HELPER = BUILD / "src/ctl/umount.fuse.wpfs"
RUN_DIR = Path("/run/wpfs")
SANITIZED = WPFS.exists() and re.search(rb"__(asan|tsan)_init", WPFS.read_bytes()) is not None

PAGE = 4096
SECONDS = 60  # for one thing to happen; generous, since nothing waits it out when all is well
STORE_SECONDS = 120  # for an unmount, which writes the store: others may be writing to the disk

SANITIZER = re.compile(r"(ERROR|WARNING): \w+Sanitizer|runtime error:|SUMMARY: \w+Sanitizer")
ERROR_LINE = re.compile(r"^<([0-3])>")

# struct wpfs_mount_info of include/wpfs.h: version, kind, id[40]
MOUNT_INFO_SIZE = 48
IOC_MOUNT_INFO = (2 << 30) | (MOUNT_INFO_SIZE << 16) | (ord("W") << 8) | 0x70


def program(name):
    """Path of the test program of tests/progs/NAME.c."""
    return BUILD / "tests" / name


class Program:
    """A program under test: lines in, lines out. See tests/progs/mapper.c for one that takes orders."""

    def __init__(self, argv, env, cwd, log):
        self.argv = [str(arg) for arg in argv]
        self.log = log
        with open(log, "ab") as stderr:
            self.popen = subprocess.Popen(
                self.argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, text=True)
        self.pid = self.popen.pid
        self.pidfd = os.pidfd_open(self.pid)

    def send(self, line):
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def read(self):
        """The next line it prints; fails when it ended instead. (The test's time limit bounds it.)"""
        line = self.popen.stdout.readline()
        assert line, f"{self.argv} ended ({self.popen.wait(SECONDS)}): {self.stderr()}"
        return line.rstrip("\n")

    def ask(self, line):
        self.send(line)
        return self.read()

    def order(self, line):
        """An order to tests/progs/mapper.c that must succeed; its value."""
        answer = self.ask(line)
        assert answer.startswith("ok "), f"{line}: {answer}"
        return int(answer[3:])

    def stderr(self):
        return Path(self.log).read_text(errors="replace")

    def kill9(self):
        self.popen.kill()
        self.popen.wait(SECONDS)

    def wait(self, status=0):
        """Closes its input and waits for its end with this status."""
        self.popen.stdin.close()
        got = self.popen.wait(SECONDS)
        assert got == status, f"{self.argv}: status {got}, expected {status}: {self.stderr()}"

    def close(self):
        self.kill9()
        for stream in (self.popen.stdin, self.popen.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                pass
        os.close(self.pidfd)


class Wpfs:
    """One store (or none), one mountpoint, and the daemon that serves it."""

    def __init__(self, store="none", options=()):
        self.dir = Path(tempfile.mkdtemp(prefix="wpfs-e2e-"))
        self.mnt = self.dir / "mnt"
        self.mnt.mkdir()
        self.store = "none"
        if store != "none":
            self.store = str(self.dir / "store")
            os.mkdir(self.store, 0o700)
        self.options = list(options)
        self.under = []  # a command and its options that starts the daemon's
        self.log = self.dir / "daemon.log"
        self.log.touch()
        self.allowed = []
        self.daemon_env = {}
        self.daemon = None
        self.pidfd = -1
        self.id = None
        self.programs = []

    # -- the daemon

    @property
    def pid(self):
        return self.daemon.pid

    def env(self, extra=None):
        env = {key: value for key, value in os.environ.items()
               if not key.startswith(("WPFS_", "LD_PRELOAD"))}
        env["ASAN_OPTIONS"] = f"log_path={self.dir}/san:detect_stack_use_after_return=0"
        env["UBSAN_OPTIONS"] = f"log_path={self.dir}/san:print_stacktrace=1:halt_on_error=1"
        env["TSAN_OPTIONS"] = f"log_path={self.dir}/san"
        env["LSAN_OPTIONS"] = f"suppressions={SOURCE}/tests/e2e/lsan.supp:print_suppressions=0"
        env.update(extra or {})
        return env

    def launch(self, *options):
        """Starts the daemon; it has not mounted anything when this returns."""
        assert self.daemon is None, "a daemon is running already"
        argv = [*self.under, str(WPFS), "-f"]
        if self.options or options:
            argv += ["-o", ",".join([*self.options, *options])]
        with open(self.log, "ab") as log:
            status = os.fstat(log.fileno())
            env = self.env({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
                            **self.daemon_env})  # asks for levels
            if "LD_PRELOAD" in self.daemon_env:
                env["ASAN_OPTIONS"] += ":verify_asan_link_order=0"
            self.daemon = subprocess.Popen(
                [*argv, self.store, str(self.mnt)], env=env, cwd="/", stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)
        self.pidfd = os.pidfd_open(self.daemon.pid)

    def start(self, *options):
        """Starts the daemon and returns when its mount works."""
        watch = proc.MountWatch()
        self.launch(*options)
        mounted = watch.wait(self.answers, SECONDS, self.pidfd)
        watch.close()
        assert mounted, f"wpfs did not mount: {self.read_log()}"
        self.id = self.read_id()
        assert (RUN_DIR / self.id / "sock").is_socket(), "mounted, and no socket"
        return self

    def restart(self):
        """Starts the daemon again: after umount(), or after kill9() over what it left."""
        return self.start()

    def is_mounted(self):
        return any(kind == "fuse.wpfs" for _, kind in proc.mounts_below(self.mnt))

    def answers(self):
        """Is a living wpfs mounted? What a killed one left gives ENOTCONN, the directory ENOTTY."""
        try:
            return bool(self.read_id())
        except OSError:
            return False

    def read_id(self):
        fd = os.open(self.mnt, os.O_RDONLY | os.O_DIRECTORY)
        try:
            info = fcntl.ioctl(fd, IOC_MOUNT_INFO, bytes(MOUNT_INFO_SIZE))
        finally:
            os.close(fd)
        return info[8:].split(b"\0")[0].decode()

    def read_log(self):
        text = self.log.read_text(errors="replace")
        for report in sorted(self.dir.glob("san.*")):
            text += f"\n{report.name}:\n{report.read_text(errors='replace')}"
        return text

    def allow_log(self, pattern):
        """Error lines that match this regular expression are what the test is about."""
        self.allowed.append(re.compile(pattern))

    def kill9(self):
        """kill -9 of the daemon; its mount stays, and answers ENOTCONN."""
        self.daemon.kill()
        self._reaped()

    def lose_power(self):
        """
        What a reboot without warning leaves: the store as it was written so far, and no process.
        """
        self.kill9()
        for started in self.programs:
            started.kill9()
        for pid in proc.descendants():
            if proc.describe(pid).startswith("wpfs-witness"):
                pidfd = proc.pidfd_of(pid)
                proc.kill(pid)
                assert pidfd is None or proc.is_over(pidfd, SECONDS), "a witness that does not die"
                if pidfd is not None:
                    os.close(pidfd)
        self._reap()
        self._forget_run()

    def _forget_run(self):
        while proc.mounts_below(self.mnt):
            subprocess.run(["umount", "-l", str(self.mnt)], timeout=SECONDS, check=True)
        if self.id:
            run = RUN_DIR / self.id
            for point, _ in reversed(proc.mounts_below(run)):
                subprocess.run(["umount", "-l", point], timeout=SECONDS, check=True)
            shutil.rmtree(run, ignore_errors=True)

    def _reaped(self):
        status = self.daemon.wait(SECONDS)
        os.close(self.pidfd)
        self.daemon, self.pidfd = None, -1
        return status

    def umount(self):
        """Unmounts as a user would and sees that nothing of the daemon is left."""
        argv = [str(UMOUNT_HELPER)] if UMOUNT_HELPER.exists() else ["umount"]
        done = self.command(*argv, str(self.mnt), timeout=STORE_SECONDS)
        assert done.returncode == 0, f"umount: {done.stderr}{self.read_log()}"
        assert not self.is_mounted(), "umount returned and the mount is there"
        assert proc.is_over(self.pidfd, SECONDS), f"unmounted, and wpfs runs on: {self.read_log()}"
        status = self._reaped()
        assert status == 0, f"wpfs ended with {status}: {self.read_log()}"
        assert not (RUN_DIR / self.id).exists(), f"left behind: {RUN_DIR / self.id}"
        assert not proc.mounts_below(RUN_DIR / self.id), "a mount is left in the run directory"

    # -- programs

    def command(self, *argv, env=None, timeout=SECONDS, **more):
        """Runs a command to its end; CompletedProcess with text."""
        return subprocess.run([str(arg) for arg in argv], env=self.env(env), timeout=timeout,
                              capture_output=True, text=True, check=False, cwd=self.dir, **more)

    def wpctl(self, *args, status=0, timeout=SECONDS):
        """wpctl ARGS with an expected exit status (None: any)."""
        done = self.command(WPCTL, *args, timeout=timeout)
        assert status is None or done.returncode == status, \
            f"wpctl {' '.join(map(str, args))}: status {done.returncode}: " \
            f"{done.stdout}{done.stderr}{self.read_log()}"
        return done

    def wpctl_json(self, verb, *args, target=None):
        """The object that `wpctl VERB MNT ARGS --json` prints."""
        done = self.wpctl(verb, target or self.mnt, *args, "--json")
        return json.loads(done.stdout)

    def _run_argv(self, argv, name, protect):
        options = (["--name", name] if name else []) + (["--protect"] if protect else [])
        return [WPCTL, "run", *options, self.mnt, "--", *argv]

    def run(self, *argv, name=None, protect=False, **more):
        """Runs a program under `wpctl run` to its end."""
        return self.command(*self._run_argv(argv, name, protect), **more)

    def spawn(self, *argv, name=None, protect=False, env=None):
        """Starts a program under `wpctl run`; it is killed at the end of the test."""
        return self.spawn_bare(*self._run_argv(argv, name, protect), env=env)

    def spawn_bare(self, *argv, env=None):
        """Starts a program without wpctl."""
        log = self.dir / f"program{len(self.programs)}.log"
        started = Program(argv, self.env(env), self.dir, log)
        self.programs.append(started)
        return started

    # -- the end

    def problems(self):
        """What the logs say that they should not."""
        found = []
        for line in self.read_log().splitlines():
            if SANITIZER.search(line):
                found.append(line)
            elif ERROR_LINE.match(line) and not any(rule.search(line) for rule in self.allowed):
                found.append(line)
        return found

    def close(self):
        """Ends everything this object started; raises AssertionError for what was not right."""
        wrong = []
        for started in self.programs:
            started.close()
        self._reap()
        try:
            if self.daemon and self.daemon.poll() is not None:
                wrong.append(f"wpfs had ended by itself with {self._reaped()}")
            if self.daemon:
                self.umount()
        except (AssertionError, subprocess.TimeoutExpired) as problem:
            wrong.append(str(problem))
        self._force_end()
        wrong += self.problems()
        log = self.read_log()
        shutil.rmtree(self.dir, ignore_errors=True)
        assert not wrong, "\n".join(wrong) + "\n-- daemon's log:\n" + log

    def _reap(self):
        """Zombies that our programs left to us: witnesses and their like."""
        ours = {self.daemon.pid} if self.daemon else set()
        for pid in proc.children():
            if pid not in ours and proc.state(pid) == "Z":
                try:
                    os.waitpid(pid, os.WNOHANG | proc.WALL)
                except ChildProcessError:
                    pass

    def _force_end(self):
        """After a failure: only what is ours, by pid and by path."""
        if self.daemon:
            self.daemon.kill()
            self._reaped()
        self._forget_run()
