"""Lines of plots, from the curves of runs: one line a method, the mean over its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dept.evaluation.report.names import metric_of
from dept.evaluation.report.run_records import (
    Record,
    Run,
    by_method,
    number,
    run_of,
    select,
    unseen,
)

Curve = tuple[np.ndarray, np.ndarray]  # float[points] each: where, and what


@dataclass(frozen=True)
class Line:
    """A method's value in the course of training; ``nan`` where a run's is not finite.

    Attributes:
        x: float[points], tokens or steps.
        y: float[runs, points].
    """

    x: np.ndarray
    y: np.ndarray


def over_tokens(records: list[Record], corpus: str, stage: str) -> dict[str, Line]:
    """The average over sources, by tokens trained in this stage.

    In pre-training, bodies that each train one source are one training: tokens are added up.
    """

    def curve(run: Record) -> Curve:
        curves = run.get("curves") or {}
        return _points(curves.get("tokens"), (curves.get("average") or {}).get(metric_of(stage)))

    return _lines(select(records, corpus, stage), curve, add=stage == "pretrain")


def plasticity(records: list[Record], corpus: str, stage: str) -> dict[str, dict[str, Line]]:
    """Perplexity by steps, for each source that the bodies had not seen, in the corpus's order."""

    def curve(run: Record) -> Curve:
        curves = run.get("curves") or {}
        own = (curves.get("sources") or {}).get(run["source"]) or curves.get("average") or {}
        return _points(curves.get("steps"), own.get("perplexity"))

    here = select(records, corpus, stage)
    return {
        name: _lines([run for run in here if run["source"] == name], curve)
        for name in unseen(records, corpus, stage)
    }


def stability(records: list[Record], corpus: str) -> list[Record]:
    """The runs that norms are compared on: those at one learning rate, else all pre-training."""
    return select(records, corpus, "stability") or select(records, corpus, "pretrain")


def norms(records: list[Record], corpus: str, key: str) -> dict[str, Line]:
    """Norms by steps of training, of the methods that logged them.

    Args:
        records: of all stages.
        corpus: name of one.
        key: ``activations`` or ``parameters``.
    """

    def curve(run: Record) -> Curve:
        logged = run.get("norms") or {}
        return _points(logged.get("steps"), logged.get(key))

    return _lines(stability(records, corpus), curve)


def _lines(
    records: list[Record], curve: Callable[[Record], Curve], add: bool = False
) -> dict[str, Line]:
    lines = {}
    for method, runs in by_method(records).items():
        bodies: dict[Run, list[Curve]] = {}
        for run in runs:
            x, y = curve(run)
            if len(x):
                bodies.setdefault(run_of(run), []).append((x, y))
        if bodies:
            lines[method] = _line([_together(curves, add) for curves in bodies.values()])
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
