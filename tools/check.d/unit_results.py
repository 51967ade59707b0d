# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns meson's testlog.json into one line of JSON per cmocka test case."""

import json
import re
import sys

CASE = re.compile(r"^\[\s*(RUN|OK|FAILED|ERROR|SKIPPED)\s*\] ?(\w+)\s*$", re.MULTILINE)


def program_results(test):
    """Yields (name, outcome) for each case of one program."""
    outcomes = {}
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    for status, case in CASE.findall(text):
        if status == "RUN":
            outcomes.setdefault(case, None)
        elif status == "OK":
            outcomes[case] = outcomes.get(case) or "passed"
        elif status == "SKIPPED":
            outcomes[case] = "skipped"
        else:
            outcomes[case] = "failed"
    for case, outcome in outcomes.items():
        yield f"{test['name']}::{case}", outcome or "failed"  # it began and never ended
    if not outcomes or (test["result"] != "OK" and "failed" not in outcomes.values()):
        yield f"{test['name']} ({test['result']})", "failed"


def main(log, build):
    programs = 0
    with open(log, encoding="utf-8") as lines:
        for line in lines:
            test = json.loads(line)
            results = list(program_results(test))
            programs += 1
            for name, outcome in results:
                seconds = test["duration"] / len(results)
                print(json.dumps({"name": f"{build} {name}", "outcome": outcome, "seconds": seconds}))
    return programs


try:
    ran = main(*sys.argv[1:3])
except (OSError, ValueError) as problem:
    print(f"tools/check: {problem}", file=sys.stderr)
    ran = 0
if not ran:
    print(json.dumps({"name": "unit tests", "outcome": "failed", "seconds": 0}))
