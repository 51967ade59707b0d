# SPDX-License-Identifier: LGPL-2.1-or-later
"""embed.py OUT.c 001_x.sql 002_y.sql ...: the migrations as a C array (struct db_migration)."""
import os
import sys


def literal(line):
    return '"' + line.replace('\\', '\\\\').replace('"', '\\"').replace('?', '\\?') + '\\n"'


out, *files = sys.argv[1:]
files.sort(key=os.path.basename)
text = ['/* Made from schema/ by schema/embed.py. */', '#include "db/schema.h"', '',
        'const struct db_migration db_migrations[] = {']
for number, path in enumerate(files, 1):
    name = os.path.basename(path)
    if name[:3] != '%03d' % number:
        sys.exit(f'{path}: expected number {number:03d}')
    with open(path, encoding='utf-8') as f:
        lines = f.read().split('\n')
    text.append(f'\t{{{number}, "{name}",')
    text.extend('\t ' + literal(line) for line in lines)
    text[-1] += '},'
text += ['};', '', f'const int db_nr_migrations = {len(files)};', '']
with open(out, 'w', encoding='utf-8') as f:
    f.write('\n'.join(text))
