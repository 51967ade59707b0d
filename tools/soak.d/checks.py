# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be true, whatever the steps were."""

import pagemap
import report
from harness import PAGE
from runner import family


class Lie(Exception):
    """A page that was written and is not dirty, or a mark that the kernel does not have."""


class Checks:
    def check(self):
        for runner in self.runners:
            runner.looked_at()
            self.notes_take(runner)
        dirty, marks = self.wpfs.wpctl_json("dirty"), self.wpfs.wpctl_json("marks")
        self.pids = {row["pid"] for row in dirty["mms"] if row["state"] == "live"}
        for mm in list(self.mms.values()):
            if mm.final is None or mm.kept:
                self.check_dirty(mm, dirty)
            elif report.mm_of(dirty, mm.name) or mm.family and mm.wrote:
                mm.kept = True
                self.check_dirty(mm, dirty)
            else:
                self.check_ended(mm, dirty)
        for row in marks["mms"]:
            self.check_marks(row)
        self.check_untracked()
        self.check_history()

    def check_ended(self, mm, answer):
        """
        wpctl(1), Fl name: a child that ended is shown for as long as it has dirty pages that its
        parent did not have when it was made. It is not: then others have them, and keep them.
        """
        del self.mms[mm.name]
        heirs = sorted(self.selected(family(mm.name)), key=lambda heir: heir.family)
        for key, must in mm.final.items():
            for heir in heirs:
                rows = self.rows(heir, answer)
                theirs = must & {page for row in rows for page in self.pages_of(row, key)}
                heir.file(key).must |= theirs
                must = must - theirs
            self.checks += 1
            if must:
                raise Lie(f"{mm.name} ended and has no row, and nobody of its family has "
                          f"{sorted(must)} of f{key}")

    def is_tracked(self, runner):
        """wpfs(8): a child that was born while no daemon was running may not be."""
        return not runner.mm.family or runner.pid in self.pids

    def check_untracked(self):
        """A process that is not tracked and has a file open is named."""
        for runner in self.runners:
            named = sorted(key for key in runner.files if self.names[key])
            for key in named if not self.is_tracked(runner) else []:
                answer = self.wpfs.wpctl_json("dirty", "--file", "/" + self.names[key][0])
                self.checks += 1
                if not any(f"pid {runner.pid}," in note for note in answer["notes"]):
                    raise Lie(f"pid {runner.pid} ({runner.mm.name}) has f{key} open and is not "
                              f"tracked: nobody says so: {answer['notes']}")

    def rows(self, mm, answer):
        if not mm.family:
            return [report.mm_of(answer, mm.name)]
        return [row for row in answer["mms"] if family(row["name"]) == family(mm.name)]

    def check_dirty(self, mm, answer):
        rows = self.rows(mm, answer)
        for key, file in mm.files.items():
            dirty = {page for row in rows for page in self.pages_of(row, key)}
            self.checks += 1
            missing = file.must - dirty
            if missing:
                raise Lie(f"{mm.name}, f{key}: {sorted(missing)} were written and are not "
                          f"dirty: {sorted(dirty)} (has a row: {rows[0] is not None})")
            calls = {one["write_calls"] for row in rows if row for one in row["maps"]
                     if one["file"] in self.paths[key] and one["owner"] == "wpfs"}
            if self.names[key] and file.called and file.armed and calls == {"no"}:
                raise Lie(f"{mm.name}, f{key}: write(2) changed it, and it is said it did not")
            if not mm.family:
                excess = dirty - file.must - file.touched - self.may_be_stored_to(mm, key)
                fresh = excess - self.excess.get((mm.name, key), set())
                self.excess[mm.name, key] = excess
                self.needless.update(file.why(page) for page in fresh)
                unexplained = sorted(page for page in fresh if not file.why(page))
                if unexplained:
                    self.say(f"  {mm.name}, f{key}: {unexplained} are dirty, and nothing tells why")

    def check_marks(self, row):
        if row["state"] != "live":
            return
        for one in row["maps"]:
            if one["start"] is None:
                continue
            start = int(one["start"], 16)
            count = one["pages"]
            try:
                kernel = pagemap.marked(row["pid"], start, count)
            except OSError:
                continue
            said = {run["pgoff"] - one["pgoff"] + n for run in one["runs"]
                    for n in range(run["pages"])}
            self.checks += 1
            said -= {page - start // PAGE for runner in self.runners
                     if runner.thread and runner.pid == row["pid"]
                     for page in range(runner.thread.at, runner.thread.at + runner.thread.count)}
            if said - kernel:
                raise Lie(f"{row['name']}, {one['file']} at {one['start']}: marks that the "
                          f"kernel does not have: {sorted(said - kernel)}")
