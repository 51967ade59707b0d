# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The work of `tools/bench marks`, one function a group of rows. Each measures wpfs and the kernel's
own call in turn, round by round, so that noise of the machine falls on both; who comes first
changes from round to round.
"""
import resource
import time

from rig import Rig

PAGE = 4096
GIB = 1 << 30
MIB = 1 << 20


class Row:
    """One line of the table: figures of wpfs, figures of the kernel (or none), and a goal."""

    def __init__(self, key, text, goal, unit="ns", least=False, ratio=True):
        self.key, self.text, self.goal, self.unit = key, text, goal, unit
        self.least = least  # the goal is a lower bound
        self.ratio = ratio  # the goal is about wpfs / raw, not about wpfs
        self.wpfs, self.raw, self.slack = [], [], 0

    def add(self, wpfs, raw=None):
        self.wpfs.append(wpfs)
        if raw is not None:
            self.raw.append(raw)

    def values(self):
        """What is held against the goal, one of each round. `slack` is allowed beside the ratio."""
        if not self.ratio:
            return self.wpfs
        return [max(w - self.slack, 0) / r if self.slack else w / r
                for w, r in zip(self.wpfs, self.raw)]


def in_turn(i, *calls):
    """Results of all calls, in their order; made in another order each round."""
    results = [None] * len(calls)
    for k in range(len(calls)):
        at = (i + k) % len(calls)
        results[at] = calls[at]()
    return results


def first_write(where, sizes, rounds):
    ways = ["plain", "raw", "wpfs", "sync", "segv"]
    first = Row("first_write", "first write to an armed page", 1.05)
    sync = Row("advantage_sync_uffd", "  its advantage over a sync uffd, of the raw call's", 0.95,
               "x", least=True)
    segv = Row("advantage_mprotect", "  its advantage over mprotect+SIGSEGV, of the raw call's",
               0.95, "x", least=True)
    with Rig(where) as rig:
        program = rig.program("first")
        for slot, way in enumerate(ways):
            path = rig.file() if way == "wpfs" else rig.raw_file(way)
            program.ask("map", slot, path, sizes["first_write"])
            program.ask("touch", slot)
        program.ask("uffd", ways.index("raw"), "async")
        program.ask("uffd", ways.index("sync"), "sync")
        program.ask("segv", ways.index("segv"))
        for i in range(rounds):
            rig.ctl.ask("protect", "first")
            for way in ("raw", "sync", "segv"):
                program.ask("protect", ways.index(way))
            order = [(k + i) % len(ways) for k in range(len(ways))]
            ns = dict(zip((ways[k] for k in order), program.ask("writes", *order)))
            first.add(ns["wpfs"], ns["raw"])
            sync.add(ns["sync"] / ns["wpfs"], ns["sync"] / ns["raw"])
            segv.add(ns["segv"] / ns["wpfs"], ns["segv"] / ns["raw"])
    return [first, sync, segv]


def own_uffd(where, sizes, rounds):
    fault = Row("own_uffd_fault", "own uffd: fault round trip", 1.03)
    one = Row("own_uffd_protect_page", "own uffd: UFFDIO_WRITEPROTECT of 1 page", 1.03)
    whole = Row("own_uffd_protect_gib", "own uffd: UFFDIO_WRITEPROTECT of 1 GiB", 1.03)
    nr = sizes["calls"]
    with Rig(where) as rig:
        programs = [rig.program("own"), rig.program(shim=False)]
        for program, path in zip(programs, (rig.file("s"), rig.raw_file("s"))):
            program.ask("map", 0, path, nr * PAGE)
            program.ask("touch", 0)
            program.ask("uffd", 0, "sync")
        for i in range(rounds):
            fault.add(*in_turn(i, *(lambda p=p: p.one("faults", 0, nr) for p in programs)))
            one.add(*in_turn(i, *(lambda p=p: p.one("single", 0, nr) for p in programs)))
        for program, path in zip(programs, (rig.file("l"), rig.raw_file("l"))):
            program.ask("map", 1, path, sizes["gib"])
            program.ask("uffd", 1, "async")
            program.ask("protect", 1)  # page tables are there from now on
        for i in range(rounds):
            # Several each: one call is short enough to lose a time slice in.
            ns = [in_turn(i, *(lambda p=p: p.one("protect", 1) for p in programs))
                  for _ in range(9)]
            whole.add(*(min(column) for column in zip(*ns)))
    return [fault, one, whole]


def mmap(where, sizes, rounds):
    attached = Row("mmap_attached", "mmap() in an attached program, nothing to arm", 60000,
                   ratio=False)
    native = Row("mmap_not_attached", "mmap() in one that is not, against tmpfs", 1.1)
    with Rig(where) as rig:
        tracked, plain = rig.program("maps"), rig.program(shim=False)
        tracked.ask("map", 0, rig.file("first"), PAGE)  # attached with this one
        for i in range(rounds):
            attached.add(tracked.one("mmaps", rig.file(), MIB, 50))
            native.add(*in_turn(i, lambda: plain.one("mmaps", rig.file(), MIB, sizes["calls"]),
                                lambda: plain.one("mmaps", rig.raw_file(), MIB, sizes["calls"])))
    return [attached, native]


def rearm_run(rig, name, size, raw_order, first):
    """One run of a program whose marks were kept: (ns of its mmap(), ns of the raw call)."""
    program = rig.program(name)
    program.ask("map", 0, rig.file("first"), PAGE)
    program.ask("map", 1, rig.raw_file(), size)
    program.ask("uffd", 1, "async")
    if first:
        raw = program.one(raw_order, 1)
    ns = program.ask("map", 2, rig.file(name), size)[1]
    if not first:
        raw = program.one(raw_order, 1)
    rig.end(program)
    return ns, raw


def rearm(where, sizes, rounds):
    rows = []
    for key, text, size, goal, order in (
            ("rearm_gib", "re-arm 1 GiB, all marked", sizes["gib"], 1.1, "protect"),
            ("rearm_64gib", "re-arm 64 GiB, all marked", sizes["large"], 1.1, "protect"),
            ("rearm_alternating", "re-arm 1 GiB, every other page", sizes["gib"], 1.3,
             "alternate")):
        row = Row(key, text, goal)
        rows.append(row)
        with Rig(where) as rig:
            program = rig.program(key)
            program.ask("map", 0, rig.file(key), size)
            rig.ctl.ask("protect", key)
            if order == "alternate":
                program.ask("evens", 0)
            rig.end(program)
            for i in range(rounds):
                row.add(*rearm_run(rig, key, size, order, i % 2))
    return rows


def harvest_rows(where, size, rounds, key, text, real):
    """`real`: pages are written; else their marks are taken off as a write would."""
    ns = Row(f"harvest_{key}", f"harvest and commit {text}, random half marked", 1.3)
    ns.slack = 20e6
    commits = Row(f"harvest_{key}_commits", "  commits", 1, "", ratio=False)
    small = Row(f"harvest_{key}_one_chunk", "  database pages written for one chunk that changed",
                16, "", ratio=False)
    half = Row(f"db_{key}_half", f"database bytes per page of {text}, random half marked", 0.15, "B",
               ratio=False)
    full = Row(f"db_{key}_all", f"database bytes per page of {text}, all marked", 0.001, "B",
               ratio=False)
    with Rig(where) as rig:
        program = rig.program("harvest")
        addr = int(program.ask("map", 0, rig.file(), size)[0])
        rig.ctl.ask("sync")
        bare = rig.db_bytes()
        for i in range(rounds):
            rig.ctl.ask("protect", "harvest")
            if i == 0:  # later ones keep closed epochs, which are not marks
                rig.ctl.ask("sync")
                full.add((rig.db_bytes() - bare) / (size / PAGE))
            pid, fd = rig.witness(program.pid)
            if real:
                program.ask("scribble", 0, i + 1)
            else:
                rig.ctl.ask("clear", pid, fd, addr, size, i + 1)
            before = rig.log()
            raw, wpfs = in_turn(i, lambda: rig.ctl.one("scan", pid, addr, size),
                                lambda: rig.ctl.one("sync"))
            commits.add(rig.logged(before)[0])
            ns.add(wpfs, raw)
            if i == 0:
                half.add((rig.db_bytes() - bare) / (size / PAGE))
            before = rig.log()
            # Whichever of the two is marked still.
            for page in range(64):
                rig.ctl.ask("clear", pid, fd, addr + page * PAGE, PAGE, 0)
            rig.ctl.ask("sync")
            small.add(rig.logged(before)[1])
    return [ns, commits, small, half, full]


def harvest(where, sizes, rounds):
    return (harvest_rows(where, sizes["gib"], rounds, "gib", "1 GiB", True)[:3] +
            harvest_rows(where, sizes["large"], rounds, "64gib", "64 GiB", False))


def death(where, sizes, rounds):
    row = Row("kill_to_committed", "kill -9 to detached and committed, 1 GiB", 100e6, ratio=False)
    with Rig(where) as rig:
        for i in range(rounds):
            name = f"death{i}"
            program = rig.program(name)
            program.ask("map", 0, rig.file(), sizes["gib"])
            rig.ctl.ask("protect", name)
            program.ask("scribble", 0, i + 1)
            start = time.monotonic_ns()
            program.popen.kill()
            while rig.query("SELECT state FROM mm WHERE name = ?", name)[0] != 2:
                time.sleep(0.0002)
            row.add(time.monotonic_ns() - start)
            rig.end(program)
    return [row]


def growth(rig, rounds, counts, grow, text, key, program_bytes=None):
    """Harvest at a quarter, a half and all of a number of things: is all four times a quarter?"""
    row = Row(key, text, 1.25)
    ns = {count: [] for count in counts}
    for count in counts:
        grow(count)
        rig.ctl.ask("sync")
        for _ in range(rounds):
            ns[count].append(rig.ctl.one("sync"))
    # Per thing, so that linear is 1.
    for few, all_ in zip(ns[counts[0]], ns[counts[-1]]):
        row.add(all_ / counts[-1], few / counts[0])
    return row


def crowd(where, sizes, rounds):
    processes, mappings = sizes["processes"], sizes["mappings"]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    memory = Row("daemon_memory", "daemon memory per tracked process", 65536, "B", ratio=False)
    rows = []
    with Rig(where) as rig:
        many = []
        bare = rig.daemon_bytes()

        def grow_processes(count):
            new = [rig.program(protect=True) for _ in range(count - len(many))]
            for program in new:
                program.send("map", 0, rig.file(), 16 * MIB)
            for program in new:
                program.receive()
            many.extend(new)

        rows.append(growth(rig, rounds, [processes // 4, processes // 2, processes],
                           grow_processes, f"harvest of {processes} processes of 16 MiB, per process",
                           "harvest_processes"))
        memory.add((rig.daemon_bytes() - bare) / processes)
    rows.append(memory)
    with Rig(where) as rig:
        program = rig.program("pieces", protect=True)
        made = [0]

        def grow_mappings(count):
            program.ask("pieces", rig.file(f"p{made[0]}"), count - made[0])
            made[0] = count

        rows.append(growth(rig, rounds, [mappings // 4, mappings // 2, mappings], grow_mappings,
                           f"harvest of {mappings} mappings in one, per mapping",
                           "harvest_mappings"))
    return rows


GROUPS = {"first_write": first_write, "own_uffd": own_uffd, "mmap": mmap, "rearm": rearm,
          "harvest": harvest, "death": death, "crowd": crowd}
SIZES = {"first_write": 64 * MIB, "calls": 2000, "gib": GIB, "large": 64 * GIB, "processes": 1000,
         "mappings": 10000}
TINY = {"first_write": MIB, "calls": 50, "gib": 16 * MIB, "large": 1024 * MIB, "processes": 8,
        "mappings": 80}
