"""The tables that compare methods: perplexities by source, improvements, and who is best."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dept.evaluation.report.compare import AVERAGE, Comparison, compare, improvements
from dept.evaluation.report.measured import SPREAD, cells, runs_of
from dept.evaluation.report.names import BUDGETS, COMPARED, METHODS, METRICS, PLASTICITY, label
from dept.evaluation.report.run_records import select
from dept.evaluation.report.table import Table

_KINDS = {"sources": "sources", "held_out": "held-out sources"}


def comparisons(records: pd.DataFrame, by_budget: bool = True) -> list[Comparison]:
    """Every comparison that has rows, by corpus, stage, budget, sources before held-out ones.

    Args:
        records: as ``run_records.arranged`` gives them.
        by_budget: whether baselines at equal steps and those at equal tokens are compared with DEPT
            apart; where a stage has no baseline, and otherwise, all methods are together.
    """
    found = []
    for corpus in records["corpus"].unique():
        for stage in (*COMPARED, *PLASTICITY):
            budgets = {METHODS[m].budget for m in select(records, corpus, stage)["method"]}
            for budget in [b for b in BUDGETS if by_budget and b in budgets] or [""]:
                found += [compare(records, corpus, stage, kind, budget) for kind in _KINDS]
    return [comparison for comparison in found if not comparison.values.empty]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The main table of a comparison, and that of improvements if there are any."""
    tables, found = [_main(comparison)], improvements(comparison)
    if found.empty:
        return tables
    rows = []
    for method, row in found.iterrows():
        row = row.dropna()
        ends = [f"{percent(row[name])} ({name})" for name in (row.idxmin(), row.idxmax())]
        better = f"{(row > 0).sum()} of {len(row)}"
        runs = runs_of(comparison.runs(method).index)
        texts = (label(method), percent(row.mean()), *ends, better, runs)
        rows.append(texts)
    caption = (
        "Improvement in a column: 100 (1 - m / b) percent, where m is the method's mean over "
        "runs and b the lowest mean of any baseline in that same column; positive is better. "
        "Average, minimum and maximum are over the columns of sources that have both. Runs: of the "
        "method; those of baselines are in the table above."
    )
    title = f"{tables[0].title}: improvement over the best baseline of each column"
    head = ["method", "average", "minimum", "maximum", "columns better", "runs"]
    return [*tables, Table(comparison.corpus, comparison.stage, title, caption, head, rows)]


def text_of(comparison: Comparison) -> str:
    """A text that describes its columns."""
    return "unseen sources" if comparison.stage in PLASTICITY else _KINDS[comparison.kind]


def percent(value: float) -> str:
    """An improvement as text, in percent."""
    return f"{value:+.1f} %" if math.isfinite(value) else "diverged"


def _main(comparison: Comparison) -> Table:
    notes = {name: f"unigram CE {value:.2f}" for name, value in comparison.unigram.items()}
    columns = [(name, notes.get(name, "")) for name in comparison.columns]
    digits = {c: comparison.digits(c) for c in [*comparison.columns, AVERAGE]}
    found = cells(comparison.values, digits)
    dept = [
        place for place, m in enumerate(comparison.means.index) if m not in comparison.baselines
    ]
    parts = [
        comparison.corpus,
        comparison.name,
        METRICS[comparison.metric],
        text_of(comparison),
        BUDGETS.get(comparison.budget, ""),
    ]
    return Table(
        comparison.corpus,
        comparison.stage,
        ", ".join(filter(None, parts)),
        _caption(comparison),
        ["method", *columns, "average", "runs"],
        [[label(method), *row] for (method,), row in found.items()],
        parts=tuple(place for place in dept[:1] if place),  # between baselines and DEPT
    )


def _caption(comparison: Comparison) -> str:
    runs = comparison.values.reset_index()
    bodies = sorted(set(comparison.bodies) - {1})
    after = ""
    if comparison.stage in PLASTICITY:
        after = " after the last step on a source that the body never saw, from a random embedding"
    sentences = [
        f"Validation {METRICS[comparison.metric]}{after}, lower is better; best of a column bold."
    ]
    if runs["method"].duplicated().any():
        draws = "; a draw is a random embedding" if (runs["draw"] >= 0).any() else ""
        sentences.append(f"{SPREAD.capitalize()}{draws}.")
    if comparison.metric == "perplexity":
        sentences.append("Unigram CE: what counting tokens gives, nats a token.")
    else:
        sentences.append(
            "Unigram CE: what counting the global tokenizer's tokens gives, bits a byte."
        )
    sentences.append(
        "Average: of the columns of sources, if the method has all; blank: not measured."
    )
    if bodies:
        how = "the mean over bodies"
        if comparison.stage == "pretrain" and comparison.kind == "sources":
            how = "that of the source's own body"
        count = " or ".join(map(str, bodies))
        sentences.append(f"A body for each source ({count} of a run): a column is {how}.")
    if np.isinf(comparison.values).any(axis=None):
        sentences.append("Diverged: not finite in that many runs.")
    return " ".join(sentences)
