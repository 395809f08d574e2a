"""Pre-train from a yaml: `composer -n 2 train.py yamls/dept_spec.yaml [key=value ...]`.

`-n W` trains W sources in parallel, with one worker per process. One process, `python train.py`,
trains them one after another, with the same results. For several machines see docs/workers.md.

`python train.py --check yamls/X.yaml [key=value ...] [--workers W]` checks in seconds whether a run
can start, and prints why not. `--print` prints the resolved yaml, with the origin of each key.
`--debug` shows the traceback of an error that is otherwise one sentence.

Every yaml is an llm-foundry yaml. `extends: FILE` merges it over another one. This repository adds
`algorithms.dept` and `train_loader: {name: sources}`.
"""

import argparse
import sys
from collections.abc import Sequence

from dept.imports import without_collection
from dept.training import environment  # noqa: F401 - before what a run imports


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment; returns the exit status."""
    chosen = parser().parse_args(arguments)
    with without_collection():  # these take seconds, which --help need not wait for
        from dept.training import command

    return command.run(chosen)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line: the yaml, its overrides and options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("yaml", help="the experiment")
    options.add_argument("overrides", nargs="*", help="key=value, over the yaml")
    options.add_argument("--print", action="store_true", help="print the resolved yaml")
    options.add_argument(
        "--check", action="store_true", help="check yaml, data and machine, and end"
    )
    options.add_argument("--workers", type=int, help="number of workers for --check")
    options.add_argument("--debug", action="store_true", help="show tracebacks")
    return options


if __name__ == "__main__":
    sys.exit(main())
