"""The tables that compare methods: perplexities by source, improvements, and who is best."""

from __future__ import annotations

import math

from dept.evaluation.report.compare import AVERAGE, Comparison, compare, improvements
from dept.evaluation.report.measured import SPREAD, is_best, lowest
from dept.evaluation.report.names import BUDGETS, COMPARED, METHODS, METRICS, PLASTICITY, label
from dept.evaluation.report.run_records import Record, corpora, select
from dept.evaluation.report.table import Cell, Table

_KINDS = {"sources": "sources", "held_out": "held-out sources"}


def comparisons(records: list[Record], by_budget: bool = True) -> list[Comparison]:
    """Every comparison that has rows, by corpus, stage, budget, sources before held-out ones.

    Args:
        records: in the order of ``run_records.arranged``.
        by_budget: whether baselines at equal steps and those at equal tokens are compared with DEPT
            apart; where a stage has no baseline, and otherwise, all methods are together.
    """
    found = []
    for corpus in corpora(records):
        for stage in (*COMPARED, *PLASTICITY):
            budgets = {METHODS[r["method"]].budget for r in select(records, corpus, stage)}
            for budget in [b for b in BUDGETS if by_budget and b in budgets] or [""]:
                found += [compare(records, corpus, stage, kind, budget) for kind in _KINDS]
    return [comparison for comparison in found if comparison.rows]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The main table of a comparison, and that of improvements if there are any."""
    tables = [_main(comparison)]
    if found := improvements(comparison):
        rows = []
        for method, improvement in found.items():
            by = improvement.by_source
            rows.append(
                [
                    Cell(label(method)),
                    Cell(percent(improvement.average)),
                    Cell(f"{percent(by[improvement.least])} ({improvement.least})"),
                    Cell(f"{percent(by[improvement.most])} ({improvement.most})"),
                    Cell(f"{sum(value > 0 for value in by.values())} of {len(by)}"),
                ]
            )
        caption = (
            "Improvement in a column: 100 (1 - m / b) percent, where m is the method's mean over "
            "runs and b the lowest mean of any baseline in that same column; positive is better. "
            "Average, minimum and maximum are over the columns of sources that have both."
        )
        title = f"{_title(comparison)}: improvement over the best baseline of each column"
        head = ["method", "average", "minimum", "maximum", "columns better"]
        tables.append(_table(comparison, title, caption, head, rows))
    return tables


def text_of(comparison: Comparison) -> str:
    """What its columns are."""
    return "unseen sources" if comparison.stage in PLASTICITY else _KINDS[comparison.kind]


def digits_of(comparison: Comparison, column: str) -> int:
    """Decimals of a column: three significant digits of its smallest value at least."""
    if comparison.metric == "bits_per_byte":
        return 3
    means = [c.mean for m in comparison.rows if (c := comparison.cell(m, column))]
    return 2 if min(means, default=math.inf) < 10 else 1


def percent(value: float) -> str:
    return f"{value:+.1f} %" if math.isfinite(value) else "diverged"


def _main(comparison: Comparison) -> Table:
    columns = [*comparison.columns, AVERAGE]
    digits = {c: digits_of(comparison, c) for c in columns}
    head = [("method", "")]
    for column in comparison.columns:
        note = ""
        if column in comparison.unigram:
            note = f"unigram CE {comparison.unigram[column]:.2f}"
        head.append((column, note))
    head += [("average", ""), ("runs", "")]

    best = {c: lowest((comparison.cell(m, c) for m in comparison.rows), digits[c]) for c in columns}
    rows = []
    for method, row in comparison.rows.items():
        cells = [Cell(label(method))]
        for column in columns:
            cell, places = comparison.cell(method, column), digits[column]
            text = cell.text(places, of=row.runs) if cell else ""
            cells.append(Cell(text, is_best(cell, best[column], places)))
        rows.append([*cells, Cell(str(row.runs))])
    dept = [place for place, row in enumerate(comparison.rows.values()) if not row.baseline]
    return Table(
        comparison.corpus,
        comparison.stage,
        _title(comparison),
        _caption(comparison),
        head,
        rows,
        parts=tuple(place for place in dept[:1] if place),  # between baselines and DEPT
    )


def _caption(comparison: Comparison) -> str:
    diverged = any(c.diverged for row in comparison.rows.values() for c in row.cells.values())
    bodies = {row.bodies for row in comparison.rows.values()} - {1}
    after = ""
    if comparison.stage in PLASTICITY:
        after = " after the last step on a source that the body never saw, from a random embedding"
    sentences = [
        f"Validation {METRICS[comparison.metric]}{after}, lower is better; best of a column bold."
    ]
    if any(row.runs > 1 for row in comparison.rows.values()):
        runs = [r for row in comparison.rows.values() for c in row.cells.values() for r in c.by_run]
        drawn = any(draw is not None for _, draw in runs)
        what = "seeds and random embeddings" if drawn else "seeds"
        sentences.append(f"{SPREAD.capitalize()}; runs: {what}; (n): of n runs only.")
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
        count = " or ".join(map(str, sorted(bodies)))
        sentences.append(f"A body for each source ({count} of a run): a column is {how}.")
    if diverged:
        sentences.append("Diverged: not finite in that many runs.")
    return " ".join(sentences)


def _title(comparison: Comparison) -> str:
    parts = [
        comparison.corpus,
        comparison.name,
        METRICS[comparison.metric],
        text_of(comparison),
        BUDGETS.get(comparison.budget, ""),
    ]
    return ", ".join(filter(None, parts))


def _table(
    comparison: Comparison, title: str, caption: str, head: list[str], rows: list[list[Cell]]
) -> Table:
    heads = [(name, "") for name in head]
    return Table(comparison.corpus, comparison.stage, title, caption, heads, rows)
