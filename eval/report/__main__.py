"""Rebuilds the report: `python -m dept.evaluation.report results`."""

import argparse
import sys
from pathlib import Path

from dept.evaluation.report import writing
from dept.evaluation.report.run_records import read


def main() -> None:
    """Command line: rebuild the report of a folder."""
    parser = argparse.ArgumentParser(
        description=writing.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where runs/*.json are")
    folder = parser.parse_args().folder
    try:
        files = writing.write(read(folder), folder)
    except ValueError as error:
        sys.exit(f"{folder}: {error}")
    print(f"{files[-1]}: {len(files) - 2} plots; {writing.TABLES} beside it has the tables.")


if __name__ == "__main__":
    main()
