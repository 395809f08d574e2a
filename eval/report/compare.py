"""The mathematics of the comparison: means over seeds, the best of a column, improvements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eval.report.names import METHODS, metric_of
from eval.report.run_records import Record, by_method, names, number, select

OWN_TOKENIZER = ("spec_opt",)  # methods whose tokenizers are not the global one in pre-training


@dataclass(frozen=True)
class Measured:
    """One figure of one method, over seeds.

    Attributes:
        by_seed: the figure by seed; ``inf`` where training diverged.
    """

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over seeds; ``inf`` if one of them diverged."""
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def spread(self) -> float | None:
        """Half the range over seeds; ``None`` of one seed or of a method that diverged."""
        values = self.by_seed.values()
        if len(values) < 2 or self.diverged:
            return None
        return (max(values) - min(values)) / 2

    @property
    def diverged(self) -> int:
        """How many seeds did."""
        return sum(math.isinf(value) for value in self.by_seed.values())

    @property
    def seeds(self) -> int:
        return len(self.by_seed)


@dataclass(frozen=True)
class Row:
    """A method in a comparison.

    Attributes:
        cells: by source; a source without a figure is absent.
        average: over all sources of the comparison; ``None`` if any of them is absent in all seeds.
        bodies: how many runs each seed has: more than one where every source has a body.
    """

    baseline: bool
    cells: dict[str, Measured]
    average: Measured | None
    bodies: dict[int, int]

    @property
    def seeds(self) -> int:
        return len(self.bodies)


@dataclass(frozen=True)
class Comparison:
    """Methods (rows) by sources (columns) of one corpus and stage.

    Attributes:
        kind: ``sources`` or ``held_out``.
        metric: ``perplexity`` or ``bits_per_byte``.
        budget: what baselines have as much of as DEPT, ``steps`` or ``tokens``; ``""`` for all.
        unigram: what counting tokens gives for each source, in nats per token of the global
            tokenizer, or in bits per byte if that is the metric; absent where no run tells it.
    """

    corpus: str
    stage: str
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
        """The figure of a method; the column ``average`` is the mean over sources."""
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
        by_source: ``100 (1 - DEPT / best baseline)`` of seed means; positive is better, ``-inf``
            where DEPT diverged. Absent where one of the two has no figure.
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
    columns = names(here, kind)
    rows = {}
    for method, runs in by_method(here).items():
        cells = {name: m for name in columns if (m := measured(runs, kind, name, metric))}
        if not cells:
            continue
        bodies: dict[int, int] = {}
        for record in runs:
            bodies[record["seed"]] = bodies.get(record["seed"], 0) + 1
        rows[method] = Row(runs[0]["baseline"], cells, _average(cells, columns), bodies)
    unigram = {name: u for name in columns if (u := _unigram(here, kind, name, metric)) is not None}
    return Comparison(corpus, stage, kind, metric, budget, columns, unigram, rows)


def measured(runs: list[Record], kind: str, name: str, metric: str) -> Measured | None:
    """The figure of a source over the seeds of one method; ``None`` if no run has it.

    Where each source has a body of its own, a seed's figure is the mean over bodies; but in
    pre-training, where a body knows its own source alone, it is that of the source's body.
    """
    found: dict[int, list[float]] = {}
    for record in runs:
        own = record["source"]
        if record["stage"] == "pretrain" and kind == "sources" and own not in (None, name):
            continue
        evaluation = (record.get(kind) or {}).get(name, {}).get("eval") or {}
        if (value := number(evaluation.get(metric))) is not None:
            found.setdefault(record["seed"], []).append(value)
    if not found:
        return None
    return Measured({seed: sum(values) / len(values) for seed, values in sorted(found.items())})


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
        columns won, columns that have both sides, and columns won by every seed: the worst seed of
        the best DEPT method is below the best seed of any baseline. The last is ``None`` unless
        that method and the best baseline have several seeds in every column.
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
        ours = dept[1].by_seed.values()
        rivals = [r.cells[name] for r in comparison.rows.values() if r.baseline and name in r.cells]
        theirs = [value for rival in rivals for value in rival.by_seed.values()]
        several = several and min(len(ours), baseline[1].seeds) > 1
        wins += dept[1].mean < baseline[1].mean
        clear += max(ours) < min(theirs)
    return wins, both, clear if several and both else None


def _average(cells: dict[str, Measured], columns: list[str]) -> Measured | None:
    """The mean over all sources, in the seeds that have them all."""
    if len(cells) < len(columns):
        return None
    seeds = set.intersection(*(set(cell.by_seed) for cell in cells.values()))
    means = {s: sum(c.by_seed[s] for c in cells.values()) / len(cells) for s in sorted(seeds)}
    return Measured(means) if means else None


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
