"""The mathematics of the comparison: methods by sources, the best of a column, improvements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from dept.evaluation.report.measured import by_source
from dept.evaluation.report.names import METHODS, PLASTICITY, metric_of
from dept.evaluation.report.run_records import RUN, names, number, select, stage_name, unseen

OWN_TOKENIZER = ("spec_opt",)  # methods whose tokenizers are not the global one in pre-training
AVERAGE = ""  # the column that no source is called like


@dataclass(frozen=True)
class Comparison:
    """Methods by sources of one corpus and stage.

    Attributes:
        name: what the stage is called, with its steps.
        kind: ``sources`` or ``held_out``; what bodies adapt to is ``sources``.
        metric: ``perplexity`` or ``bits_per_byte``.
        budget: what baselines have as much of as DEPT, ``steps`` or ``tokens``; ``""`` for all.
        columns: the sources.
        unigram: what counting tokens gives for each source, in nats per token of the global
            tokenizer, or in bits per byte if that is the metric; absent where no run has it.
        values: of methods in runs (rows: ``method``, ``seed``, ``draw``) on sources and on their
            ``AVERAGE``, which a run has if it has all sources.
        baselines: which methods are.
        bodies: of a run, by method: more than one where every source has a body.
    """

    corpus: str
    stage: str
    name: str
    kind: str
    metric: str
    budget: str
    columns: list[str]
    unigram: dict[str, float]
    values: pd.DataFrame
    baselines: list[str]
    bodies: pd.Series

    @cached_property
    def means(self) -> pd.DataFrame:
        """Over the runs of each method; ``inf`` if one of them diverged."""
        return self.values.groupby("method", sort=False).mean()

    def runs(self, method: str) -> pd.DataFrame:
        """Values of one method, by seed and draw."""
        return self.values[self.values.index.isin([method], "method")].droplevel("method")

    def side(self, baseline: bool) -> pd.DataFrame:
        """The finite means of baselines, or of DEPT's methods."""
        means = self.means[self.means.index.isin(self.baselines) == baseline]
        return means.where(np.isfinite(means))

    def best(self, column: str, baseline: bool) -> tuple[str, pd.Series] | None:
        """The baseline, or the method of DEPT, with the lowest mean in a column, and its runs.

        Args:
            column: name of the column.
            baseline: look among the baselines, instead of the methods of DEPT.

        Returns:
            Name of the method, and its values by run; ``None`` if no method has a value.
        """
        means = self.side(baseline)[column].dropna()
        if means.empty:
            return None
        return means.idxmin(), self.runs(means.idxmin())[column].dropna()

    def digits(self, column: str) -> int:
        """Decimals of a column: three significant digits of its smallest value at least."""
        if self.metric == "bits_per_byte":
            return 3
        return 2 if self.means[column].min() < 10 else 1


def compare(
    records: pd.DataFrame, corpus: str, stage: str, kind: str, budget: str = ""
) -> Comparison:
    """Methods by sources.

    Args:
        records: of any corpora and stages, as ``run_records.arranged`` gives them.
        corpus: name of one.
        stage: name of one.
        kind: ``sources`` or ``held_out``.
        budget: which baselines to show: those with as many ``steps`` or ``tokens`` as DEPT; all if
            empty.
    """
    here, metric = select(records, corpus, stage), metric_of(stage)
    if budget:
        here = here[[METHODS[m].budget in ("", "both", budget) for m in here["method"]]]
    adapts = stage in PLASTICITY
    columns = unseen(records, corpus, stage) if adapts and kind == "sources" else names(here, kind)
    values = by_source(here, kind, columns, metric)
    values[AVERAGE] = values.mean(axis=1, skipna=False)
    bodies = here.groupby(["method", *RUN]).size().groupby("method").max()
    return Comparison(
        corpus,
        stage,
        stage_name(records, corpus, stage),
        kind,
        metric,
        budget,
        columns,
        {name: u for name in columns if (u := _unigram(here, kind, name, metric)) is not None},
        values,
        baselines=list(here["method"][here["baseline"]].unique()),
        bodies=bodies.clip(upper=1) if adapts else bodies,
    )


def improvements(comparison: Comparison) -> pd.DataFrame:
    """Improvements of DEPT's methods (rows) over the best baseline of each column, in percent.

    Returns:
        ``100 (1 - DEPT / best baseline)`` of means over runs; positive is better, ``-inf`` where
        DEPT diverged, ``nan`` where one of the two has no value.
    """
    means = comparison.means[comparison.columns]
    ours = means[~means.index.isin(comparison.baselines)]
    return (100 * (1 - ours / comparison.side(baseline=True).min())[ours.columns]).dropna(how="all")


def won(comparison: Comparison) -> tuple[int, int, int | None]:
    """Columns in which a DEPT method has the lowest mean.

    Returns:
        columns won, columns that have both sides, and columns won by every run: the worst run of
        the best DEPT method is below the best run of any baseline. The last is ``None`` unless
        that method and the best baseline have several runs in every column.
    """
    wins, clear, several = 0, 0, True
    both = improvements(comparison).notna().any()
    for name in both.index[both]:
        baseline, dept = (comparison.best(name, side) for side in (True, False))
        if not dept:  # all of them diverged
            continue
        rivals = comparison.values.loc[comparison.values.index.isin(comparison.baselines, 0), name]
        several = several and min(len(dept[1]), len(baseline[1])) > 1
        wins += dept[1].mean() < baseline[1].mean()
        clear += dept[1].max() < rivals.min()
    return int(wins), int(both.sum()), int(clear) if several and both.any() else None


def _unigram(records: pd.DataFrame, kind: str, name: str, metric: str) -> float | None:
    for record in records.itertuples():
        evaluation = getattr(record, kind).get(name, {}).get("eval") or {}
        cross_entropy = number(evaluation.get("unigram_ce"))
        own = record.stage == "pretrain" and record.method in OWN_TOKENIZER
        if math.isnan(cross_entropy) or own:
            continue
        if metric == "perplexity":
            return cross_entropy
        loss, bits = number(evaluation.get("loss")), number(evaluation.get("bits_per_byte"))
        if 0 < loss < math.inf and math.isfinite(bits):
            return cross_entropy * bits / loss  # bits for a byte are in proportion to nats a token
    return None
