# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demo stands on: a mount of its own, programs that take orders, and checked claims."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = 4096
SECONDS = 60  # for any one thing


class Wrong(Exception):
    """Something was not as the demo claims."""


def title(text):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def claim(true, text):
    """Prints what is so; ends the demo when it is not."""
    if not true:
        raise Wrong(text)
    print(f"   ok  {text}", flush=True)


class Program:
    """A program that reads orders and answers each with one line."""

    def __init__(self, argv, env):
        self.popen = subprocess.Popen(argv, env=env, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = None
        self._expect()

    def _expect(self):
        line = self.popen.stdout.readline()
        if not line:
            raise Wrong(f"the program ended with status {self.popen.wait(SECONDS)}")
        self.pid = self.popen.pid  # wpctl run has become the program
        return line.strip()

    def order(self, line):
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        return self._expect()

    def kill9(self):
        self.popen.kill()
        self.popen.wait(SECONDS)

    def quit(self):
        self.popen.stdin.close()
        if self.popen.wait(SECONDS) != 0:
            raise Wrong(f"the program ended with status {self.popen.returncode}")


class Stage:
    """A temporary directory with a store, a mountpoint and the built commands."""

    def __init__(self, build):
        self.dir = Path(tempfile.mkdtemp(prefix="wpfs-demo-"))
        self.mnt = self.dir / "mnt"
        self.store = self.dir / "store"
        self.mnt.mkdir()
        self.store.mkdir(mode=0o700)
        self.wpfs = Path(build).resolve() / "src/wpfs/wpfs"
        self.wpctl = Path(build).resolve() / "src/ctl/wpctl"
        self.umount_helper = Path(build).resolve() / "src/ctl/umount.fuse.wpfs"
        self.programs = []
        self.run_dir = None

    def command(self, *argv):
        """Shows a command as a user would type it, runs it, and gives its output."""
        argv = [str(arg) for arg in argv]
        shown = [os.path.basename(argv[0]), *argv[1:]]
        print("   $ " + " ".join(shown).replace(f"{self.dir}/", ""), flush=True)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False,
                              cwd=self.dir)
        if done.returncode != 0:
            raise Wrong(f"{shown[0]}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def show(self, text):
        for line in text.rstrip().splitlines():
            print("       " + line.replace(f"{self.dir}/", ""), flush=True)

    def mount(self, options=None):
        self.command(self.wpfs, *(["-o", options] if options else []), self.store, self.mnt)
        self.run_dir = Path("/run/wpfs") / self.status("id")

    def umount(self):
        self.command(self.umount_helper if self.umount_helper.exists() else "umount", self.mnt)
        claim(not self.run_dir.exists(), "nothing is left of the mount but its store")

    def ctl(self, verb, *args):
        return self.command(self.wpctl, verb, self.mnt.name, *args)

    def ctl_json(self, verb, *args):
        return json.loads(self.ctl(verb, *args, "--json"))

    def status(self, key):
        done = subprocess.run([self.wpctl, "status", self.mnt, "--json"], capture_output=True,
                              text=True, timeout=SECONDS, check=True)
        return json.loads(done.stdout)[key]

    def run(self, name, *argv):
        """Starts a program under wpctl run."""
        argv = [self.wpctl, "run", "--name", name, self.mnt, "--", *argv]
        shown = " ".join(["wpctl", *map(str, argv[1:])])
        print("   $ " + shown.replace(f"{self.dir}/", "").replace(f"{os.getcwd()}/", "") + " &",
              flush=True)
        started = Program([str(arg) for arg in argv], os.environ)
        self.programs.append(started)
        return started

    def close(self):
        """Ends what is still there, after a failure too. Only what is ours, by path and pid."""
        for program in self.programs:
            program.kill9()
        if os.path.ismount(self.mnt):  # the helper returns when the daemon has ended
            helper = self.umount_helper if self.umount_helper.exists() else "umount"
            subprocess.run([helper, self.mnt], timeout=SECONDS, check=False)
        if os.path.ismount(self.mnt):
            subprocess.run(["umount", "-l", self.mnt], timeout=SECONDS, check=False)
        if self.run_dir and self.run_dir.exists():
            lower = self.run_dir / "private/lower"
            if os.path.ismount(lower):
                subprocess.run(["umount", lower], timeout=SECONDS, check=False)
            shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.dir, ignore_errors=True)


class Marks:
    """The runs of `wpctl marks --json` or `wpctl dirty --json` for one file, as sets of pages."""

    def __init__(self, answer):
        self.pages = set()
        self.starts = set()  # addresses where the file is mapped
        self.armed = 0
        for mm in answer["mms"]:
            for entry in mm["maps"]:
                self.armed = max(self.armed, entry["armed"])
                if entry["start"]:
                    self.starts.add(entry["start"])
                for run in entry["runs"]:
                    self.pages.update(range(run["pgoff"], run["pgoff"] + run["pages"]))


def pages_that_differ(path, copy):
    """The set of pages in which a file is not what it was when it was copied."""
    differ = set()
    chunk = 256 * PAGE
    with open(path, "rb") as now, open(copy, "rb") as then:
        first = 0
        while True:
            new, old = now.read(chunk), then.read(chunk)
            if not new and not old:
                return differ
            if new != old:
                for at in range(0, max(len(new), len(old)), PAGE):
                    if new[at:at + PAGE] != old[at:at + PAGE]:
                        differ.add(first + at // PAGE)
            first += chunk // PAGE
