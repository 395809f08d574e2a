"""A value of a method over its runs: the mean, the spread, and two methods in pairs of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dept.evaluation.report.run_records import Record, Run, number, run_of

SPREAD = "mean over runs ± their sample standard deviation (n - 1), nothing of a single run"
"""What captions say of ``Measured.text``."""


@dataclass(frozen=True)
class Measured:
    """One value of one method.

    Attributes:
        by_run: the value by run; ``inf`` where training diverged.
    """

    by_run: Mapping[Run, float]

    @property
    def mean(self) -> float:
        """Over runs; ``inf`` if one of them diverged."""
        return sum(self.by_run.values()) / len(self.by_run)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; ``None`` of one run or of a method that diverged."""
        if self.runs < 2 or self.diverged:
            return None
        return statistics.stdev(self.by_run.values())

    @property
    def diverged(self) -> int:
        """How many runs did."""
        return sum(math.isinf(value) for value in self.by_run.values())

    @property
    def runs(self) -> int:
        return len(self.by_run)

    def text(self, digits: int, of: int = 0) -> str:
        """The mean and the spread, and the number of runs if there are fewer than ``of``."""
        if self.diverged:
            some = "" if self.runs == 1 else f" ({self.diverged} of {self.runs})"
            return f"diverged{some}"
        spread = "" if self.spread is None else f" ± {self.spread:,.{digits}f}"
        return f"{self.mean:,.{digits}f}{spread}" + (f" ({self.runs})" if self.runs < of else "")


@dataclass(frozen=True)
class Paired:
    """Improvement of one method over another, in percent, from runs that differ in nothing else.

    Attributes:
        mean: over pairs; positive is better.
        error: standard error of the mean.
        pairs: how many.
    """

    mean: float
    error: float
    pairs: int


def measured(runs: Iterable[Record], kind: str, name: str, metric: str) -> Measured | None:
    """The value of a source over the runs of one method; ``None`` if no run has it.

    Where each source has a body of its own, bodies of one seed and draw are one run, and its value
    is the mean over them; but in pre-training, where a body knows its own source alone, it is that
    of the source's body.
    """
    found: dict[Run, list[float]] = {}
    for record in runs:
        own = record["source"]
        if record["stage"] == "pretrain" and kind == "sources" and own not in (None, name):
            continue
        evaluation = (record.get(kind) or {}).get(name, {}).get("eval") or {}
        if (value := number(evaluation.get(metric))) is not None:
            found.setdefault(run_of(record), []).append(value)
    return _of_bodies(found)


def averaged(runs: Iterable[Record], metric: str) -> Measured | None:
    """The same of the average over sources, as each run has it."""
    found: dict[Run, list[float]] = {}
    for record in runs:
        if (value := number((record.get("average") or {}).get(metric))) is not None:
            found.setdefault(run_of(record), []).append(value)
    return _of_bodies(found)


def average(cells: Iterable[Measured]) -> Measured | None:
    """The mean over sources, in the runs that have them all; ``None`` if no run has."""
    cells = list(cells)
    common = [run for run in cells[0].by_run if all(run in cell.by_run for cell in cells)]
    means = {run: sum(cell.by_run[run] for cell in cells) / len(cells) for run in common}
    return Measured(means) if means else None


def paired(ours: Measured, theirs: Measured) -> Paired | None:
    """``100 (1 - ours / theirs)`` in the runs that both have.

    ``None`` of fewer than two such runs, or if one of them diverged.
    """
    differences = [
        100 * (1 - value / theirs.by_run[run])
        for run, value in ours.by_run.items()
        if run in theirs.by_run
    ]
    if len(differences) < 2 or ours.diverged or theirs.diverged:
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Paired(statistics.fmean(differences), error, len(differences))


def lowest(found: Iterable[Measured | None], digits: int) -> str | None:
    """The lowest mean as it is shown: equal ones are all best. ``None`` without a finite one."""
    means = [each.mean for each in found if each and not each.diverged]
    return f"{min(means):,.{digits}f}" if means else None


def is_best(of: Measured | None, best: str | None, digits: int) -> bool:
    """Whether a mean is shown as ``lowest`` is."""
    return of is not None and not of.diverged and f"{of.mean:,.{digits}f}" == best


def _of_bodies(found: Mapping[Run, list[float]]) -> Measured | None:
    return Measured({run: sum(v) / len(v) for run, v in found.items()}) if found else None
