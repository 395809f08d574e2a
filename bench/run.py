"""Speed of this repository against that of the libraries, as ratios: `make bench`.

    python bench/run.py [--list] [--row NAME ...] [--times 5] [--mb 200] [--small]
        [--root .] [--corpus multilingual] [--out results/bench]

Each row compares two things that run one after the other, again and again, on this machine; the
table has the median and the spread of their ratio. Records are written into results/bench/.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# As the commands that are measured do, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import codec_rows
import federation_rows
import memory_rows
import preparation_rows
import startup_rows
import training_rows
import worker_rows
from measure import REPOSITORY, Setting, record, table

from dept import terminal
from dept.log import log

ROWS = {
    row.name: row
    for row in (
        *training_rows.ROWS,
        *memory_rows.ROWS,
        *worker_rows.ROWS,
        *codec_rows.ROWS,
        *federation_rows.ROWS,
        *preparation_rows.ROWS,
        *startup_rows.ROWS,
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Measure rows; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    if chosen.list or chosen.row == ["list"]:
        for row in ROWS.values():
            print(f"{row.name:20} {row.goal:10} {row.title}, against {row.against}")
        return 0
    for name in chosen.row:
        if name not in ROWS:
            log.error(f"there is no row {name}: call it with --list")
            return 2
    setting = Setting(
        times=1 if chosen.small else chosen.times,
        megabytes=chosen.mb,
        small=chosen.small,
        root=chosen.root.absolute(),
        corpus=chosen.corpus,
    )
    os.chdir(REPOSITORY)
    records = []
    for name in chosen.row or ROWS:
        row = ROWS[name]
        log.info(f"{name}: {row.title}, against {row.against}")
        records.append(record(row, row.measure(setting), setting, chosen.out.absolute()))
    terminal.show(table(records), keys=2)
    return 0


def _parser() -> argparse.ArgumentParser:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--list", action="store_true", help="print the rows and their goals")
    parser.add_argument("--row", nargs="*", default=[], help="rows to measure (default: all)")
    parser.add_argument("--times", type=int, default=5, help="alternations of a row")
    parser.add_argument("--mb", type=float, default=200.0, help="MB of text to prepare")
    parser.add_argument("--small", action="store_true", help="the least work, for tests")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="where data/ is")
    parser.add_argument("--corpus", default="multilingual", help="prepared corpus to train on")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "bench")
    return parser


if __name__ == "__main__":
    sys.exit(main())
