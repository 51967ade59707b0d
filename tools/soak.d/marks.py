# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Worlds of random programs under a real daemon. A world is a daemon, some files and some programs
(tests/progs/mapper.c); it is made of steps that depend on its seed alone. Every now and then, and
at its end, what `wpctl dirty` and `wpctl marks` say is held against the model and, for programs that
live, against the kernel's page tables.
"""
import random
import subprocess
import sys
import time
from collections import Counter

import harness
import proc
from checks import Lie
from world import World

STEPS = 150


class Total:
    def __init__(self):
        self.worlds = self.steps = self.checks = self.evicted = 0
        self.needless = Counter()

    def add(self, world):
        self.steps += world.steps
        self.checks += world.checks
        self.needless.update(world.needless)
        self.evicted += world.evicted


def tried(fn):
    """What went wrong in it, or None."""
    try:
        fn()
    except (Lie, AssertionError, OSError, subprocess.TimeoutExpired) as problem:
        return problem
    return None


def run_world(seed, number, total, verbose):
    if verbose:
        print(f"  world {number}", flush=True)
    world = World(random.Random(f"{seed}/{number}"), verbose)

    def steps():
        for _ in range(STEPS):
            world.step()
        world.finish()

    problem = tried(steps)
    total.add(world)
    end = tried(world.close)
    problem = problem or end
    if problem:
        kind = "LIE" if isinstance(problem, Lie) else "FAILED"
        print(f"{kind} in world {number}, step {world.steps}: {type(problem).__name__}: {problem}")
        print("  last steps:", *world.history[-12:], sep="\n    ")
        print(f"  again: tools/soak --marks --seed {seed} --world {number}", flush=True)
    return problem is None, isinstance(problem, Lie)


def soak(args):
    proc.become_subreaper()
    print(f"soak: seed {args.seed}, {args.minutes:g} minutes, {harness.BUILD.name}", flush=True)
    end = time.monotonic() + args.minutes * 60
    numbers = [args.world] if args.world is not None else range(sys.maxsize)
    total, lies, failed = Total(), 0, 0
    for number in numbers:
        if total.worlds and time.monotonic() >= end:
            break
        good, lie = run_world(args.seed, number, total, args.verbose)
        total.worlds += 1
        lies += lie
        failed += not good and not lie
    for why, pages in total.needless.most_common():
        print(f"  {pages:6} pages dirty without need: {why or 'unexplained'}")
    print(f"soak: {total.worlds} worlds, {total.steps} steps, {total.checks} checks, "
          f"{total.evicted} pages evicted; {total.needless.total()} pages dirty without need, "
          f"{total.needless[None]} of them unexplained; {failed} failures, {lies} lies")
    return 1 if lies or failed else 0
