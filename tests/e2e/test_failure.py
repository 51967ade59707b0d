# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything at once is killed, stopped or started again: marks are exact or too many, never too few."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, Child, mapped

MEMORY = Path("/sys/fs/cgroup/memory")


class Cgroup:
    """A memory cgroup (v1) of the test's own."""

    def __init__(self, name, limit=None):
        self.path = MEMORY / name
        self.path.mkdir()
        if limit:
            (self.path / "memory.limit_in_bytes").write_text(str(limit))

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self):
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def remove(self):
        proc.wait_for(lambda: not self.pids(), harness.SECONDS, "an empty cgroup")
        proc.wait_for(self._removed, harness.SECONDS, "the cgroup goes")

    def _removed(self):
        try:
            self.path.rmdir()
        except OSError:
            return False
        return True


@pytest.fixture
def cgroup(request):
    made = []

    def make(limit=None):
        made.append(Cgroup(f"wpfs-test-{os.getpid()}-{len(made)}", limit))
        return made[-1]

    yield make
    for one in made:
        for pid in one.pids():
            proc.kill(pid)
        one.remove()


def witness_of(program):
    (witness,) = [pid for pid in proc.children(program.pid)
                  if "wpfs-witness" in proc.describe(pid)]
    return witness


@pytest.fixture(params=["wpfs", "own"])
def kind(request):
    """Who has armed the program's pages: wpfs, or a userfaultfd of its own."""
    return request.param


def armed(wpfs, kind):
    program = mapped(wpfs, protect=kind == "wpfs")
    if kind == "own":
        program.order(f"uffd 0 0 {PAGES}")
    return program


def written(wpfs, kind, target=None):
    """As far as is known, or more."""
    if kind == "wpfs":
        return report.dirty(wpfs, "t", target=target)
    return ALL - report.marked(wpfs, "t", owner="program", target=target)


def test_the_whole_cgroup_is_killed(wpfs, cgroup, kind):
    """As cgroup.kill does: no task of the mm is left, so what was armed and not harvested counts."""
    group = cgroup()
    program = armed(wpfs, kind)
    for pid in (program.pid, witness_of(program)):
        group.add(pid)
    program.order("store 0 1 1")
    wpfs.wpctl("sync", wpfs.mnt)
    program.order("store 0 2 1")
    pidfds = [os.pidfd_open(pid) for pid in group.pids()]
    proc.stop(wpfs.pid)  # or it might be quick enough to see the last marks
    for pid in group.pids():
        os.kill(pid, signal.SIGKILL)
    for pidfd in pidfds:
        assert proc.is_over(pidfd, harness.SECONDS)
        os.close(pidfd)
    os.kill(wpfs.pid, signal.SIGCONT)
    assert written(wpfs, kind) == ALL
    assert report.ps(wpfs, "t")["state"] == "detached"
    assert wpfs.wpctl_json("status")["conservative"] == len(ALL) - 1


def test_out_of_memory(wpfs, cgroup, kind):
    """The kernel kills the program and its witness, which share the memory."""
    group = cgroup(limit=48 << 20)
    program = armed(wpfs, kind)
    witness = witness_of(program)
    pidfd = os.pidfd_open(witness)
    group.add(program.pid)
    group.add(witness)
    program.order("store 0 1 1")
    program.order(f"map 1 0 0 {256 << 20} anon")
    program.send(f"store 1 0 1 {(256 << 20) // PAGE}")
    program.popen.wait(harness.SECONDS)
    assert program.popen.returncode == -signal.SIGKILL
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    assert 1 in written(wpfs, kind)
    assert report.ps(wpfs, "t")["state"] == "detached"


def test_a_witness_that_is_killed(wpfs):
    """Its uffd goes with it, and the marks: all that was armed is dirty, and the program lives on."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    witness = witness_of(program)
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    program.order("store 0 2 1")
    child = Child(wpfs, program)
    child.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == ALL
    child.end()
    program.order("unmap 0 8 8")
    assert report.dirty(wpfs, "t") == ALL
    program.wait()
    assert report.dirty(wpfs, "t") == ALL


def test_a_witness_that_is_killed_beside_a_userfaultfd_of_the_program(wpfs):
    """Which it does not hold: exact while the program lives, and at its end there is nobody to ask."""
    program = armed(wpfs, "own")
    program.order("store 0 1 1")
    witness = witness_of(program)
    pidfd = os.pidfd_open(witness)
    os.kill(witness, signal.SIGKILL)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    program.order("store 0 2 1")
    assert written(wpfs, "own") == {1, 2}
    program.kill9()
    assert written(wpfs, "own") == ALL


def test_everything_is_stopped(wpfs, kind):
    """SIGSTOP of daemon, witness and program, in every order, and on: exact."""
    program = armed(wpfs, kind)
    everybody = [wpfs.pid, witness_of(program), program.pid]
    for n in range(3):
        program.order(f"store 0 {n} 1")
        order = everybody[n:] + everybody[:n]
        for pid in order:
            proc.stop(pid)
        for pid in order:
            proc.wait_for(lambda: proc.state(pid) == "T", harness.SECONDS, "it is stopped")
        program.send(f"store 0 {10 + n} 1")
        for pid in reversed(order):
            os.kill(pid, signal.SIGCONT)
        assert program.read() == "ok 0"
    assert written(wpfs, kind) == {0, 1, 2, 10, 11, 12}
    proc.stop(everybody[1])
    program.kill9()
    assert written(wpfs, kind) == {0, 1, 2, 10, 11, 12}, "a stopped witness is harvested too"


class Storm:
    """8 programs that write, move and fork without end; they exec, end and are killed, and start anew."""

    PROGRAMS = 8

    def __init__(self, wpfs, rng):
        self.wpfs, self.rng = wpfs, rng
        self.lives = self.writes = self.gap = 0
        self.programs = [self.begin(n) for n in range(self.PROGRAMS)]

    def begin(self, n):
        program = self.wpfs.spawn(harness.program("churn"), self.wpfs.mnt / f"f{n}",
                                  self.reference(n), 2048, name=f"c{n}", protect=True)
        assert program.read() == "ok" and program.ask("go") == "ok"
        self.lives += 1
        return program

    def reference(self, n):
        return self.wpfs.dir / f"reference{n}"

    def stop(self, n):
        writes, _, _, gap, _ = (int(number) for number in self.programs[n].ask("stop").split())
        self.writes += writes
        self.gap = max(self.gap, gap)

    def turn(self):
        """While a daemon is there: one of them becomes another."""
        n, how = self.rng.randrange(self.PROGRAMS), self.rng.choice(["exec", "end", "kill"])
        program = self.programs[n]
        if how == "exec":
            program.send("exec")
            assert program.read() == "ok" and program.ask("go") == "ok"
            self.lives += 1
            return
        if how == "end":
            self.stop(n)
            program.wait()
        else:
            program.kill9()
        self.programs[n] = self.begin(n)

    def check(self):
        for n in range(self.PROGRAMS):
            states = self.reference(n).read_bytes()
            written = {page for page, state in enumerate(states) if state == 2}
            missing = written - report.dirty(self.wpfs, f"c{n}", f"/f{n}")
            assert written and not missing, f"c{n}: a mark lies: {sorted(missing)[:20]}"


@pytest.mark.parametrize("seconds", [int(os.environ.get("WPFS_STORM", "10"))])
def test_a_storm_of_daemons(make_wpfs, seconds):
    """kill -9 every 100 ms, while it starts too; now and then one comes as far as to serve."""
    wpfs = make_wpfs(store=True)
    rng = random.Random(seconds)
    storm = Storm(wpfs, rng)
    end, daemons, served = time.monotonic() + seconds, 1, 1
    while time.monotonic() < end:
        wpfs.kill9()
        for _ in range(rng.randrange(6)):
            wpfs.launch()
            proc.is_over(wpfs.pidfd, rng.uniform(0, 0.1))
            wpfs.kill9()
            daemons += 1
        wpfs.restart()
        storm.turn()
        daemons += 1
        served += 1
    for n in range(storm.PROGRAMS):
        storm.stop(n)
    storm.check()
    conservative = wpfs.wpctl_json("status")["conservative"]
    print(f"{daemons} daemons, {served} of them served; {storm.lives} lives, {storm.writes} writes, "
          f"longest standstill {storm.gap} ms, {conservative} conservative pages, 0 lies")
    assert storm.gap < 10000 and served >= seconds / 10
