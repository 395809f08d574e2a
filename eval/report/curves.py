"""Lines of plots, from the curves of runs: one line a method, the mean over its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dept.evaluation.report.names import metric_of
from dept.evaluation.report.run_records import RUN, number, select, unseen

Curve = tuple[np.ndarray, np.ndarray]  # float[points] each: x and y


@dataclass(frozen=True)
class Line:
    """A method's value in the course of training; ``nan`` where a run's is not finite.

    Attributes:
        x: float[points], tokens or steps.
        y: float[runs, points].
    """

    x: np.ndarray
    y: np.ndarray


def over_tokens(records: pd.DataFrame, corpus: str, stage: str) -> dict[str, Line]:
    """The average over sources, by tokens trained in this stage.

    In pre-training, bodies that each train one source are one training: tokens are added up.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: name of the stage.

    Returns:
        A line for each method: tokens, and the stage's metric in each run.
    """

    def curve(run: Any) -> Curve:
        return _points(
            run.curves.get("tokens"), run.curves.get("average", {}).get(metric_of(stage))
        )

    return _lines(select(records, corpus, stage), curve, add=stage == "pretrain")


def plasticity(records: pd.DataFrame, corpus: str, stage: str) -> dict[str, dict[str, Line]]:
    """Perplexity by steps, for each source that the bodies had not seen, in the corpus's order.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: name of the stage.

    Returns:
        For each source, a line for each method.
    """

    def curve(run: Any) -> Curve:
        own = run.curves.get("sources", {}).get(run.source) or run.curves.get("average", {})
        return _points(run.curves.get("steps"), own.get("perplexity"))

    here = select(records, corpus, stage)
    return {
        name: _lines(here[here["source"] == name], curve) for name in unseen(records, corpus, stage)
    }


def stability(records: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """The runs that norms are compared on: those at one learning rate, else all pre-training.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
    """
    found = select(records, corpus, "stability")
    return select(records, corpus, "pretrain") if found.empty else found


def norms(records: pd.DataFrame, corpus: str, key: str) -> dict[str, Line]:
    """Norms by steps of training, of the methods that logged them.

    Args:
        records: of all stages.
        corpus: name of one.
        key: ``activations`` or ``parameters``.
    """

    def curve(run: Any) -> Curve:
        return _points(run.norms.get("steps"), run.norms.get(key))

    return _lines(stability(records, corpus), curve)


def _lines(
    records: pd.DataFrame, curve: Callable[[Any], Curve], add: bool = False
) -> dict[str, Line]:
    lines = {}
    for method, of_method in records.groupby("method", sort=False):
        runs = []
        for _, of_run in of_method.groupby(RUN):
            bodies = [drawn for body in of_run.itertuples() if len((drawn := curve(body))[0])]
            runs += [_together(bodies, add)] if bodies else []
        if runs:
            lines[method] = _line(runs)
    return lines


def _together(bodies: list[Curve], add: bool) -> Curve:
    """The curve of a run: the mean over its bodies."""
    if add:
        points = min(len(x) for x, _ in bodies)
        return sum(x[:points] for x, _ in bodies), sum(y[:points] for _, y in bodies) / len(bodies)
    line = _line(bodies)
    return line.x, line.y.mean(axis=0)


def _line(curves: list[Curve]) -> Line:
    """Curves where all of them have points, at the points of the one that has fewest."""
    x = min((x for x, _ in curves), key=len)
    x = x[(x >= max(other[0] for other, _ in curves)) & (x <= min(o[-1] for o, _ in curves))]
    return Line(x, np.stack([np.interp(x, *curve) for curve in curves]))


def _points(x: Iterable[Any] | None, y: Iterable[Any] | None) -> Curve:
    pairs = [(number(a), number(b)) for a, b in zip(x or (), y or (), strict=True) if b is not None]
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    return values[:, 0], np.where(np.isinf(values[:, 1]), np.nan, values[:, 1])
