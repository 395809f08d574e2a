"""The mathematics of the comparison: methods by sources, the best of a column, improvements."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from dept.evaluation.report.measured import Measured, average, measured
from dept.evaluation.report.names import METHODS, PLASTICITY, metric_of
from dept.evaluation.report.run_records import (
    Record,
    by_method,
    names,
    number,
    run_of,
    select,
    stage_name,
    unseen,
)

OWN_TOKENIZER = ("spec_opt",)  # methods whose tokenizers are not the global one in pre-training


@dataclass(frozen=True)
class Row:
    """A method in a comparison.

    Attributes:
        cells: by source; a source without a value is absent.
        average: over all sources of the comparison; ``None`` if any of them is absent in all runs.
        runs: how many.
        bodies: of each run: more than one where every source has a body.
    """

    baseline: bool
    cells: dict[str, Measured]
    average: Measured | None
    runs: int
    bodies: int


@dataclass(frozen=True)
class Comparison:
    """Methods (rows) by sources (columns) of one corpus and stage.

    Attributes:
        name: what the stage is called, with its steps.
        kind: ``sources`` or ``held_out``; what bodies adapt to is ``sources``.
        metric: ``perplexity`` or ``bits_per_byte``.
        budget: what baselines have as much of as DEPT, ``steps`` or ``tokens``; ``""`` for all.
        unigram: what counting tokens gives for each source, in nats per token of the global
            tokenizer, or in bits per byte if that is the metric; absent where no run has it.
    """

    corpus: str
    stage: str
    name: str
    kind: str
    metric: str
    budget: str
    columns: list[str]
    unigram: dict[str, float]
    rows: dict[str, Row]

    def best_baseline(self, column: str) -> tuple[str, Measured] | None:
        """The baseline with the lowest mean in a column; ``None`` if none has a finite one."""
        return self._best(column, baseline=True)

    def best_dept(self, column: str) -> tuple[str, Measured] | None:
        """The same of DEPT's methods."""
        return self._best(column, baseline=False)

    def cell(self, method: str, column: str) -> Measured | None:
        """The value of a method; the column ``average`` is the mean over sources."""
        row = self.rows[method]
        return row.average if column == AVERAGE else row.cells.get(column)

    def _best(self, column: str, baseline: bool) -> tuple[str, Measured] | None:
        found = [
            (cell.mean, place, method, cell)
            for place, (method, row) in enumerate(self.rows.items())
            if row.baseline == baseline
            and (cell := self.cell(method, column)) is not None
            and math.isfinite(cell.mean)
        ]
        return min(found)[2:] if found else None


AVERAGE = ""  # the column that no source is called like


@dataclass(frozen=True)
class Improvement:
    """Of a DEPT method over the best baseline of each column, in percent.

    Attributes:
        by_source: ``100 (1 - DEPT / best baseline)`` of means over runs; positive is better,
            ``-inf`` where DEPT diverged. Absent where one of the two has no value.
    """

    by_source: dict[str, float]

    @property
    def average(self) -> float:
        return sum(self.by_source.values()) / len(self.by_source)

    @property
    def least(self) -> str:
        """The source with the least improvement."""
        return min(self.by_source, key=self.by_source.__getitem__)

    @property
    def most(self) -> str:
        return max(self.by_source, key=self.by_source.__getitem__)


def compare(
    records: list[Record], corpus: str, stage: str, kind: str, budget: str = ""
) -> Comparison:
    """Methods by sources.

    Args:
        records: of any corpora and stages, in the order of ``run_records.arranged``.
        corpus: name of one.
        stage: name of one.
        kind: ``sources`` or ``held_out``.
        budget: which baselines to show: those with as many ``steps`` or ``tokens`` as DEPT; all if
            empty.
    """
    here, metric = select(records, corpus, stage), metric_of(stage)
    if budget:
        fitting = ("", "both", budget)
        here = [record for record in here if METHODS[record["method"]].budget in fitting]
    adapts = stage in PLASTICITY
    columns = unseen(records, corpus, stage) if adapts and kind == "sources" else names(here, kind)
    rows = {}
    for method, runs in by_method(here).items():
        cells = {name: m for name in columns if (m := measured(runs, kind, name, metric))}
        if not cells:
            continue
        bodies = Counter(map(run_of, runs))
        rows[method] = Row(
            baseline=runs[0]["baseline"],
            cells=cells,
            average=average(cells.values()) if len(cells) == len(columns) else None,
            runs=len(bodies),
            bodies=1 if adapts else max(bodies.values()),
        )
    unigram = {name: u for name in columns if (u := _unigram(here, kind, name, metric)) is not None}
    name = stage_name(records, corpus, stage)
    return Comparison(corpus, stage, name, kind, metric, budget, columns, unigram, rows)


def improvements(comparison: Comparison) -> dict[str, Improvement]:
    """Of each DEPT method that has a column in common with a baseline."""
    found = {}
    for method, row in comparison.rows.items():
        if row.baseline:
            continue
        by_source = {
            name: 100 * (1 - cell.mean / best[1].mean)
            for name, cell in row.cells.items()
            if (best := comparison.best_baseline(name))
        }
        if by_source:
            found[method] = Improvement(by_source)
    return found


def won(comparison: Comparison) -> tuple[int, int, int | None]:
    """Columns in which a DEPT method has the lowest mean.

    Returns:
        columns won, columns that have both sides, and columns won by every run: the worst run of
        the best DEPT method is below the best run of any baseline. The last is ``None`` unless
        that method and the best baseline have several runs in every column.
    """
    wins, clear, both, several = 0, 0, 0, True
    for name in comparison.columns:
        sides = {row.baseline: 1 for row in comparison.rows.values() if name in row.cells}
        baseline, dept = comparison.best_baseline(name), comparison.best_dept(name)
        if len(sides) < 2 or not baseline:
            continue
        both += 1
        if not dept:  # all of them diverged
            continue
        ours = dept[1].by_run.values()
        rivals = [r.cells[name] for r in comparison.rows.values() if r.baseline and name in r.cells]
        theirs = [value for rival in rivals for value in rival.by_run.values()]
        several = several and min(len(ours), baseline[1].runs) > 1
        wins += dept[1].mean < baseline[1].mean
        clear += max(ours) < min(theirs)
    return wins, both, clear if several and both else None


def _unigram(records: list[Record], kind: str, name: str, metric: str) -> float | None:
    for record in records:
        evaluation = (record.get(kind) or {}).get(name, {}).get("eval") or {}
        cross_entropy = number(evaluation.get("unigram_ce"))
        own = record["stage"] == "pretrain" and record["method"] in OWN_TOKENIZER
        if cross_entropy is None or own:
            continue
        if metric == "perplexity":
            return cross_entropy
        loss, bits = number(evaluation.get("loss")), number(evaluation.get("bits_per_byte"))
        if loss and bits and math.isfinite(loss) and math.isfinite(bits):
            return cross_entropy * bits / loss  # bits for a byte are in proportion to nats a token
    return None
