# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prints the slowest tests, what failed or was skipped, and the counts; exits 1 unless all is well."""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as lines:
    results = [json.loads(line) for line in lines]

print("\n10 slowest:")
for result in sorted(results, key=lambda r: -r["seconds"])[:10]:
    print(f"  {result['seconds']:8.1f} s  {result['name']}")

for outcome in ("failed", "skipped"):
    names = [r["name"] + (f": {r['why']}" if r.get("why") else "")
             for r in results if r["outcome"] == outcome]
    if names:
        print(f"\n{outcome}:", *names, sep="\n  ")

count = {outcome: sum(r["outcome"] == outcome for r in results)
         for outcome in ("passed", "failed", "skipped")}
print(f"\n{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
sys.exit(0 if count["passed"] and not count["failed"] else 1)
