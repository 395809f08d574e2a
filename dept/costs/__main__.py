"""Compute the costs of experiments from their yamls alone:

    python -m dept.costs yamls/mc4/1b_spec_opt.yaml yamls/mc4/1b_std.yaml [key=value ...] [--json]
    python -m dept.costs --codecs yamls/mc4/1b_spec_opt.yaml ...
    python -m dept.costs --paper

The first prints parameters, memory and communication. The second prints the bytes of an exchange
under each compression. The third prints the paper's table of costs beside ours, and exits with 1 if
a number differs and no note explains it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from rich.table import Table

from dept import terminal
from dept.config import extends
from dept.costs import codings, paper
from dept.costs.experiment import Costs, costs_of
from dept.log import log

NOTES = """\
For the model that a worker trains, for a source of mean size. In float32, without activations:
  |V_k|        * measured in data/<corpus>, the others as stated in the yaml
  memory       weights, gradients and state of the inner optimizer
  DEPT adds    the start of the round, sums of local models, state of the outer optimizer
  kept/source  on the CPU: a source's embedding, inner state, and local model until the round ends
  per step     parameters that a worker communicates, divided by its local steps
  fewer        bytes of STD's gradients of the whole model, divided by coded bytes per step"""
MEMORY = ("memory", "DEPT adds", "kept/source")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the costs; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    yamls = [argument for argument in chosen.yamls if "=" not in argument]
    overrides = [argument for argument in chosen.yamls if "=" in argument]
    if chosen.paper:
        if chosen.yamls or chosen.json or chosen.build or chosen.codecs:
            _parser().error("--paper takes no yamls or options: it has its own yamls")
        return paper.show()
    if not yamls or chosen.slots < 1:
        _parser().error("name a yaml, or give --paper; --slots is 1 or more")
    every, by_codec = {}, {}
    for path in yamls:
        try:
            config = extends.resolve(extends.load(path, overrides))
            if chosen.codecs:
                by_codec[path] = codings.costs_by_codec(config)
                continue
            with _hushed() if chosen.build else nullcontext():
                every[path] = costs_of(config, slots=chosen.slots, build=chosen.build)
        except ValueError as error:
            log.error(f"{path}: {error}")
            return 2
    if chosen.codecs:
        terminal.show(codings.table(by_codec, number))
    elif chosen.json:
        print(json.dumps({path: costs.as_dict() for path, costs in every.items()}, indent=1))
    else:
        terminal.show(_table(every))
        terminal.say(NOTES, style="dim")
    return 0


def _parser() -> argparse.ArgumentParser:
    about, *_ = (__doc__ or "").split("\n\nThe first")
    parser = argparse.ArgumentParser(
        prog="python -m dept.costs",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("yamls", nargs="*", help="experiments, and key=value overrides for all")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes and numbers")
    parser.add_argument(
        "--slots",
        type=int,
        default=1,
        help="sources that a worker trains in a round, one after another (default 1)",
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="count the model that llm-foundry builds on the meta device (half a minute of "
        "imports), of any kind; otherwise an MPT by formula",
    )
    parser.add_argument(
        "--codecs", action="store_true", help="bytes of an exchange under each compression"
    )
    parser.add_argument("--paper", action="store_true", help="the paper's table beside ours")
    return parser


@contextmanager
def _hushed() -> Iterator[None]:
    """Silence the warnings of libraries while a model is built; errors are still raised."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _table(every: Mapping[str, Costs]) -> Table:
    table = Table()
    table.add_column("experiment", overflow="fold")
    for header in ("|V_k|", "body", "embedding", "model", *MEMORY, "per step", "fewer"):
        table.add_column(header, justify="right")
    for path, costs in every.items():
        memory = costs.memory
        table.add_row(
            path.removeprefix("yamls/").removesuffix(".yaml"),
            f"{costs.vocabulary.held:,.0f}" + "*" * (costs.vocabulary.origin == "measured"),
            *(number(n) for n in (costs.parameters.body, costs.embedding, costs.total)),
            *(number(n, "B") for n in (memory.training, memory.dept, memory.kept_per_source)),
            number(costs.per_step),
            f"{costs.byte_reduction:,.0f}",
        )
    return table


def number(value: float, unit: str = "") -> str:
    """A number in four digits: 1.208B parameters, 20.98 GB.

    Args:
        value: the number, 0 or more.
        unit: its unit, written after ``k``, ``M`` or ``G``; empty for a count, written with ``B``
            for 1e9.
    """
    steps = [("k", 1e3), ("M", 1e6), ("G" if unit else "B", 1e9)]
    for name, size in reversed(steps):
        if value >= size:
            digits = max(0, 3 - len(str(int(value / size))) + 1)
            return f"{value / size:.{digits}f}{' ' if unit else ''}{name}{unit}"
    return f"{value:.0f}{' ' + unit if unit else ''}"


if __name__ == "__main__":
    sys.exit(main())
