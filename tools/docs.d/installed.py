#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
README.md as it is installed: a link to what is not installed next to it becomes its text.

    installed.py README.md OUTPUT DIRECTORY...    directories that are
"""

import re
import sys

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def installed(text, directories):
    def link(match):
        name = match[2]
        stays = "://" in name or name.startswith("#") or name.split("/")[0] in directories
        return match[0] if stays else match[1]

    return LINK.sub(link, text)


if __name__ == "__main__":
    source, output, *directories = sys.argv[1:]
    with open(source, encoding="utf-8") as readme, open(output, "w", encoding="utf-8") as result:
        result.write(installed(readme.read(), directories))
