# SPDX-License-Identifier: LGPL-2.1-or-later
"""What nobody tells the daemon, and it must find out all the same, whatever happens meanwhile."""

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, Child, mapped
from test_children import closed, fork_held, in_call, trace, union
from test_failure import witness_of

MMAP = 9  # a system call of x86-64
WITNESS_FDS = 64

__all__ = ["fork_held"]  # a fixture


def test_an_epoch_begins_between_the_count_and_the_call(wpfs):
    """A program that can tell nobody of a mapping counts it: it has to be in the new epoch too."""
    program = mapped(wpfs)
    program.order("seccomp")
    strace = trace(program, "trace=mmap", "inject=mmap:delay_enter=100s")
    program.send(f"map 1 0 0 {PAGES * PAGE}")
    proc.wait_for(lambda: in_call(program.pid, MMAP), harness.SECONDS, "the call")
    wpfs.wpctl("protect", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set()
    strace.kill()
    strace.wait()
    assert program.read().startswith("ok ")
    program.order("store 1 5 1")
    program.order("unmap 1")
    assert 5 in report.dirty(wpfs, "t")


def test_what_is_counted_cannot_be_read_for_a_while(wpfs):
    """For want of memory, say: all may be there, then and later."""
    program = mapped(wpfs)
    program.order("seccomp")
    strace = trace(wpfs, "trace=process_vm_readv", "inject=process_vm_readv:error=ENOMEM")
    assert report.dirty(wpfs, "t") == ALL
    strace.kill()
    strace.wait()
    wpfs.wpctl("protect", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set()
    program.order(f"map 1 0 0 {PAGES * PAGE}")
    program.order("store 1 5 1")
    program.order("unmap 1")
    assert 5 in report.dirty(wpfs, "t")


def test_more_children_than_a_witness_keeps(wpfs):
    """Of the last one nothing is left that tells of it, and it outlives the others."""
    program = mapped(wpfs, name=None)
    children = [Child(wpfs, program, how="raw") for _ in range(WITNESS_FDS + 1)]
    witness = witness_of(program)
    # And wpfs's own; what there is no place for it has a moment longer.
    proc.wait_for(lambda: len(proc.descriptors(witness, "userfaultfd")) == WITNESS_FDS + 1, harness.SECONDS, "the last")
    last = children.pop()
    for child in children:
        child.end()
    for page in (33, 34):
        wpfs.wpctl("protect", wpfs.mnt)
        last.order(f"store 0 {page} 1")
        (row,) = wpfs.wpctl_json("dirty", "--file", "/f")["mms"]
        assert page in set(report.pages_of(row))
    assert wpfs.wpctl_json("status")["conservative"] >= PAGES
    last.end()
    wpfs.wpctl("protect", wpfs.mnt)
    proc.wait_for(lambda: len(proc.descriptors(witness, "userfaultfd")) == 1, harness.SECONDS, "that it has closed them")
    wpfs.wpctl("protect", wpfs.mnt)
    (row,) = wpfs.wpctl_json("dirty", "--file", "/f")["mms"]
    assert set(report.pages_of(row)) == set()


def test_a_raw_child_has_the_number_of_one_on_its_way(wpfs, fork_held):
    """That one has its userfaultfd and is not attached yet; what is under the number is another's."""
    program, child, pid, let_go = fork_held
    witness = witness_of(program)
    proc.wait_for(lambda: len(proc.descriptors(witness, "userfaultfd")) == 1, harness.SECONDS, "the witness has closed it")
    assert program.read() == f"ok {pid}"
    raw = Child(wpfs, program, how="raw")
    raw.order("store 0 33 1")
    epoch = wpfs.wpctl_json("protect")["epoch"]
    let_go()
    child.begin(f"ok {pid}")
    assert 33 in closed(wpfs, epoch - 1)
    raw.order("store 0 34 1")
    assert 34 in union(wpfs)
    raw.end()
    child.end()


def test_a_child_has_a_mapping_that_nobody_was_told_of(wpfs):
    """Its parent has made it by a system call of its own, and takes it away before anybody looks."""
    mapped(wpfs).kill9()
    program = mapped(wpfs, protect=False, path="g")
    program.order(f"open 1 {wpfs.mnt}/f")
    program.order(f"map 1 1 0 {PAGES * PAGE} raw")
    child = Child(wpfs, program)
    program.order("rawunmap 1")
    child.order("store 1 5 1")
    assert 5 in union(wpfs)
    child.order("rawunmap 1")
    child.end()
    assert 5 in union(wpfs)
