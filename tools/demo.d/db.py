# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The program of the demo: an LMDB database with a writable map, which knows nothing of wpfs. It takes
one order per line on stdin and answers each with a line.

    load FILE    replace everything by the records of FILE (blank line between two)
    change N     one transaction that changes N records
    read N       N records, far apart
    poke PAGE    one store, of the byte that is there already, into a page of the map
    work         transactions without end; the answer comes after the third
    quit
"""

import mmap
import os
import random
import sys

import lmdb

MAP_SIZE = 128 << 20
PAGE = 4096


def load(env, path):
    with open(path, "rb") as text:
        records = text.read().split(b"\n\n")
    with env.begin(write=True) as txn:
        for number, record in enumerate(records):
            txn.put(b"%08d" % number, record, append=True)
    return f"{len(records)} records, {(env.info()['last_pgno'] + 1) * PAGE} bytes"


def change(env, count, rng):
    with env.begin(write=True) as txn:
        records = txn.stat()["entries"]
        for _ in range(count):
            key = b"%08d" % rng.randrange(records)
            txn.put(key, txn.get(key) + b"\nChecked: %d" % rng.randrange(10**9))
    return f"{count} records changed"


def read(env, count):
    with env.begin() as txn:
        records = txn.stat()["entries"]
        total = sum(len(txn.get(b"%08d" % (i * records // count))) for i in range(count))
    return f"{total} bytes in {count} records"


def poke(path, page):
    with open(os.path.join(path, "data.mdb"), "r+b") as file:
        view = mmap.mmap(file.fileno(), MAP_SIZE)
    view[page * PAGE] = view[page * PAGE]
    return f"page {page} written"


def main(path):
    env = lmdb.open(path, map_size=MAP_SIZE, writemap=True)
    rng = random.Random(os.getpid())
    print("ready", flush=True)
    for line in sys.stdin:
        order, *args = line.split()
        if order == "load":
            answer = load(env, *args)
        elif order == "change":
            answer = change(env, int(args[0]), rng)
        elif order == "read":
            answer = read(env, int(args[0]))
        elif order == "poke":
            answer = poke(path, int(args[0]))
        elif order == "work":
            for _ in range(3):
                change(env, 20, rng)
            print("at work", flush=True)
            while True:
                change(env, 20, rng)
        else:
            break
        print(answer, flush=True)
    env.close()


main(sys.argv[1])
