"""The table of first embeddings: how good a model is before it is continued, and soon after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dept.evaluation.report.measured import SPREAD, cells
from dept.evaluation.report.names import label
from dept.evaluation.report.run_records import RUN, number, select
from dept.evaluation.report.table import Table

SHARES = {"at 0 %": 0.0, "10 %": 0.1, "33 %": 1 / 3, "end": 1.0}
NEAR = 0.05  # how far an evaluation may be from a share of the steps


def first_embeddings(records: pd.DataFrame, corpus: str) -> list[Table]:
    """Bits per byte of each first embedding at shares of the steps.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        A table for runs over the same sources; none if there are no such runs.
    """
    here = select(records, corpus, "embeddings")
    return [
        _table(of, corpus, name) for name, of in here.groupby(here["sources"].map(on), sort=False)
    ]


def on(sources: Mapping[str, Any]) -> str:
    """What a run is over, in short: its only source, or how many it has."""
    return next(iter(sources)) if len(sources) == 1 else f"{len(sources)} sources"


def _table(here: pd.DataFrame, corpus: str, name: str) -> Table:
    values = [at_shares(run.curves, int(run.sequential)) for run in here.itertuples()]
    index = pd.MultiIndex.from_frame(here[["method", "setting", *RUN]])
    found = cells(pd.DataFrame(values, index=index, columns=list(SHARES)), 3)
    rows = [[setting, label(method), *row] for (method, setting), row in found.items()]
    caption = (
        "Average bits per byte over the sources of the run, lower is better, at shares of its "
        f"steps: of the nearest evaluation, at most {NEAR:.0%} of the steps away; blank: none. "
        f"{SPREAD.capitalize()}. Rows of one method are of the same body and the same text."
    )
    head = ["first embedding", "method", *SHARES, "runs"]
    title = f"{corpus}, first embeddings, {name}"
    return Table(corpus, "embeddings", title, caption, head, rows, texts=2)


def at_shares(curves: dict, steps: int) -> list[float]:
    """Bits per byte at the shares, ``nan`` where nothing was evaluated nearby.

    Args:
        curves: of a record.
        steps: sequential steps of the run.
    """
    shares = np.array(curves.get("steps") or [math.inf], dtype=float) / steps
    bits = [number(value) for value in curves.get("average", {}).get("bits_per_byte") or [None]]
    found = []
    for share in SHARES.values():
        nearest = int(np.abs(shares - share).argmin())
        near = abs(shares[nearest] - share) <= NEAR
        found.append(bits[nearest] if near else math.nan)
    return found
