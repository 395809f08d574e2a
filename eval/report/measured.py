"""Values of methods over their runs, and how a table shows them: mean, spread, number of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dept.evaluation.report.run_records import RUN, number
from dept.evaluation.report.table import Cell

SPREAD = (
    "mean over runs ± their sample standard deviation (n - 1), nothing of a single run; "
    "(n): of n runs only"
)
"""The description of ``text`` in captions."""


def by_source(records: pd.DataFrame, kind: str, names: Iterable[str], metric: str) -> pd.DataFrame:
    """Values of methods in runs (rows: ``method``, ``seed``, ``draw``) on sources (columns).

    If each source has its own body, the bodies of one seed and draw are one run, and its value is
    the mean over them. In pre-training, where a body is only trained on its own source, the value
    is that of the source's body.

    Args:
        records: records of the runs to take.
        kind: ``sources`` or ``held_out``.
        names: names of the sources, in the order of columns.
        metric: key of a source's evaluation, such as ``perplexity`` or ``bits_per_byte``.

    Returns:
        ``inf`` where training diverged, ``nan`` where a run has no value.
    """
    rows = []
    for record in records.itertuples():
        own = record.source if record.stage == "pretrain" and kind == "sources" else None
        evaluated = {name: entry.get("eval") or {} for name, entry in getattr(record, kind).items()}
        rows.append({n: number(e.get(metric)) for n, e in evaluated.items() if own in (None, n)})
    index = pd.MultiIndex.from_frame(records[["method", *RUN]])
    frame = pd.DataFrame(rows, index=index, columns=list(names), dtype=float)
    return frame.groupby(level=[0, 1, 2], sort=False).mean().dropna(how="all")


def pivoted(
    records: pd.DataFrame, values: Iterable[Any], rows: list[str], column: str
) -> pd.DataFrame:
    """Values of one column of records in runs: rows by runs, and what ``column`` holds.

    Args:
        records: records of the runs to take.
        values: a value for each record, in their order.
        rows: columns of ``records`` that name a row, besides seed and draw.
        column: column of ``records`` whose values become columns.

    Returns:
        The mean of the values in each cell; columns are sorted.
    """
    found = records.assign(value=[number(value) for value in values])
    table = found.pivot_table("value", [*rows, *RUN], column, sort=False)
    return table.sort_index(axis=1)


def text(values: pd.Series, digits: int, of: int = 0) -> str:
    """The mean and the spread of runs, and their number if there are fewer than ``of``.

    Args:
        values: values of runs; ``nan`` ones are left out, and ``inf`` means that training diverged.
        digits: digits behind the point.
        of: the number of runs that are expected.
    """
    values = values.dropna()
    if values.empty:
        return ""
    if diverged := int(np.isinf(values).sum()):
        return "diverged" + (f" ({diverged} of {len(values)})" if len(values) > 1 else "")
    spread = f" ± {values.std():,.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():,.{digits}f}{spread}" + (
        f" ({len(values)})" if len(values) < of else ""
    )


def runs_of(index: pd.MultiIndex) -> str:
    """How many runs, of which seeds and draws: ``2 seeds``, or ``2 seeds x 3 draws``."""
    seeds, draws = (index.get_level_values(level) for level in RUN)
    count, drawn = seeds.nunique(), draws[draws >= 0].nunique()
    shown = f"{count} seed{'s' * (count > 1)}"
    if not drawn:
        return shown
    shown += f" x {drawn} draw{'s' * (drawn > 1)}"
    return shown if len(index) == count * drawn else f"{len(index)} of {shown}"


def cells(
    values: pd.DataFrame,
    digits: int | Mapping[Any, int],
    best: np.ufunc | None = np.fmin,
    axis: int = 0,
) -> dict[tuple[Any, ...], list[Cell | str]]:
    """A table's cells by row: of each column, and how many runs the row is of.

    Args:
        values: of rows in runs.
        digits: decimals, of all columns or by column.
        best: which mean is bold, if any: the lowest, or with ``np.fmax`` the highest. Means that
            are shown alike are all best.
        axis: 0 for the best of each column, 1 for that of each row.
    """
    digits = digits if isinstance(digits, Mapping) else dict.fromkeys(values, digits)
    groups = list(values.groupby([n for n in values.index.names if n not in RUN], sort=False))
    if not groups:
        return {}
    means = np.array([runs.mean() for _, runs in groups])
    finite = np.where(np.isfinite(means), means, np.nan)
    top = best.reduce(finite, axis=axis, keepdims=True) if best else np.full_like(means, np.nan)
    top = np.broadcast_to(top, means.shape)
    found = {}
    for (key, runs), mean, highest in zip(groups, means, top, strict=True):
        found[key] = [
            Cell(text(runs[name], d, len(runs)), f"{m:.{d}f}" == f"{h:.{d}f}" != "nan")
            for (name, d), m, h in zip(digits.items(), mean, highest, strict=True)
        ]
        found[key].append(runs_of(runs.index))
    return found
