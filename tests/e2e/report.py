# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `wpctl marks`, `dirty` and `ps` said, as sets of pages of a file."""


def mm_of(answer, name):
    """The one mm with exactly this name (None: unnamed) in a report; None when there is none."""
    found = [mm for mm in answer["mms"] if mm["name"] == name]
    assert len(found) <= 1, f"{name} is there {len(found)} times: {answer}"
    return found[0] if found else None


def pages_of(mm, file="/f", owner="wpfs"):
    """The pages in the runs of a file's maps of one mm; each must be there once."""
    pages = []
    for one in mm["maps"] if mm else []:
        if one["file"] == file and one["owner"] == owner:
            for run in one["runs"]:
                pages += range(run["pgoff"], run["pgoff"] + run["pages"])
    return pages


def ps(wpfs, name):
    return mm_of(wpfs.wpctl_json("ps"), name)


def dirty(wpfs, name, file="/f", owner="wpfs", target=None):
    """The dirty pages of a file in the mm of this name, which must exist."""
    mm = mm_of(wpfs.wpctl_json("dirty", target=target), name)
    assert mm, f"no mm of the name {name}"
    pages = pages_of(mm, file, owner)
    assert len(pages) == len(set(pages)), "a dirty page is listed twice"
    return set(pages)


def marked(wpfs, name, file="/f", owner="wpfs", target=None):
    """Likewise the marked pages; one of two mappings is enough to be listed."""
    mm = mm_of(wpfs.wpctl_json("marks", target=target), name)
    assert mm, f"no mm of the name {name}"
    return set(pages_of(mm, file, owner))


def names(wpfs):
    return {mm["name"]: mm["state"] for mm in wpfs.wpctl_json("ps")["mms"]}
