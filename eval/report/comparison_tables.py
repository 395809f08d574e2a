"""The tables that compare methods: perplexities by source, improvements, and who is best."""

from __future__ import annotations

import math

from eval.report.compare import AVERAGE, Comparison, Measured, compare, improvements, won
from eval.report.names import BUDGETS, COMPARED, METHODS, METRICS, STAGES, label
from eval.report.run_records import Record, corpora, select
from eval.report.table import Cell, Table

KINDS = {"sources": "sources", "held_out": "held-out sources"}


def comparisons(records: list[Record], by_budget: bool = True) -> list[Comparison]:
    """Every comparison that has rows, by corpus, stage, budget, sources before held-out ones.

    Args:
        records: in the order of ``run_records.arranged``.
        by_budget: whether baselines at equal steps and those at equal tokens are compared with DEPT
            apart; where a stage has no baseline, and otherwise, all methods are together.
    """
    found = []
    for corpus in corpora(records):
        for stage in COMPARED:
            budgets = {METHODS[r["method"]].budget for r in select(records, corpus, stage)}
            for budget in [b for b in BUDGETS if by_budget and b in budgets] or [""]:
                found += [compare(records, corpus, stage, kind, budget) for kind in KINDS]
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
                    Cell(_percent(improvement.average)),
                    Cell(f"{_percent(by[improvement.least])} ({improvement.least})"),
                    Cell(f"{_percent(by[improvement.most])} ({improvement.most})"),
                    Cell(f"{sum(value > 0 for value in by.values())} of {len(by)}"),
                ]
            )
        caption = (
            "Improvement in a column: 100 (1 - m / b) percent, where m is the method's mean over "
            "seeds and b the lowest mean of any baseline in that same column; positive is better. "
            "Average, minimum and maximum are over the columns of sources that have both."
        )
        title = f"{_title(comparison)}: improvement over the best baseline of each column"
        head = ["method", "average", "minimum", "maximum", "columns better"]
        tables.append(_table(comparison, title, caption, head, rows))
    return tables


def overview(every: list[Comparison]) -> list[Table]:
    """One row a comparison: who is best on the average, and in how many columns."""
    rows, wins, columns = [], 0, 0
    for comparison in every:
        baseline, dept = comparison.best_baseline(AVERAGE), comparison.best_dept(AVERAGE)
        ours, both, clear = won(comparison)
        if not both:
            continue
        wins, columns = wins + ours, columns + both
        gain = 100 * (1 - dept[1].mean / baseline[1].mean) if dept and baseline else None
        rows.append(
            [
                Cell(comparison.corpus),
                Cell(STAGES[comparison.stage]),
                Cell(BUDGETS.get(comparison.budget, "")),
                Cell(KINDS[comparison.kind]),
                Cell(METRICS[comparison.metric]),
                *(_named(best, comparison) for best in (baseline, dept)),
                Cell("" if gain is None else _percent(gain)),
                Cell(f"{ours} of {both}"),
                Cell("" if clear is None else f"{clear} of {both}"),
            ]
        )
    if not rows:
        return []
    caption = (
        f"A DEPT method is best in {wins} of {columns} columns. Best baseline and best DEPT: the "
        "one with the lowest average over sources, and that average; improvement is of the one "
        "average over the other. Columns won: sources for which the lowest mean over seeds is a "
        "DEPT method's, whichever. By every seed: its worst seed is below the best seed of every "
        "baseline; blank if it or the best baseline has a single seed."
    )
    head = [
        "corpus",
        "stage",
        "baselines",
        "text",
        "figure",
        "best baseline",
        "best DEPT",
        "improvement",
    ]
    head += ["columns won", "by every seed"]
    title = "Best baseline and best DEPT method"
    return [Table("", "overview", title, caption, [(name, "") for name in head], rows, texts=7)]


def _main(comparison: Comparison) -> Table:
    columns = [*comparison.columns, AVERAGE]
    formats = {c: _digits(comparison, c) for c in columns}
    head = [("method", "")]
    for column in comparison.columns:
        note = ""
        if column in comparison.unigram:
            note = f"unigram CE {comparison.unigram[column]:.2f}"
        head.append((column, note))
    head += [("average", ""), ("seeds", "")]

    lowest = {}
    for column in columns:
        means = [c.mean for m in comparison.rows if (c := comparison.cell(m, column))]
        finite = [mean for mean in means if math.isfinite(mean)]
        lowest[column] = f"{min(finite):,.{formats[column]}f}" if finite else None
    rows = []
    for method, row in comparison.rows.items():
        cells = [Cell(label(method))]
        for column in columns:
            cell = comparison.cell(method, column)
            text, mean = _measured(cell, formats[column], row.seeds)
            cells.append(Cell(text, best=mean is not None and mean == lowest[column]))
        rows.append([*cells, Cell(str(row.seeds))])
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
    several = any(row.seeds > 1 for row in comparison.rows.values())
    bodies = {n for row in comparison.rows.values() for n in row.bodies.values()} - {1}
    sentences = [
        f"Validation {METRICS[comparison.metric]}, lower is better; best of a column bold."
    ]
    if several:
        sentences.append("Mean over seeds ± half the range over seeds; (n): of n seeds only.")
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
        sentences.append(f"A body for each source ({count} of a seed): a column is {how}.")
    if diverged:
        sentences.append("Diverged: not finite in that many seeds.")
    return " ".join(sentences)


def _title(comparison: Comparison) -> str:
    parts = [
        comparison.corpus,
        STAGES[comparison.stage],
        METRICS[comparison.metric],
        KINDS[comparison.kind],
        BUDGETS.get(comparison.budget, ""),
    ]
    return ", ".join(filter(None, parts))


def _table(
    comparison: Comparison, title: str, caption: str, head: list[str], rows: list[list[Cell]]
) -> Table:
    heads = [(name, "") for name in head]
    return Table(comparison.corpus, comparison.stage, title, caption, heads, rows)


def _digits(comparison: Comparison, column: str) -> int:
    """Decimals of a column: three significant digits of its smallest figure at least."""
    if comparison.metric == "bits_per_byte":
        return 3
    means = [c.mean for m in comparison.rows if (c := comparison.cell(m, column))]
    return 2 if min(means, default=math.inf) < 10 else 1


def _measured(cell: Measured | None, digits: int, seeds: int) -> tuple[str, str | None]:
    """The text of a cell, and its mean as shown (``None`` without a finite one)."""
    if cell is None:
        return "", None
    if cell.diverged:
        of = "" if cell.seeds == cell.diverged == 1 else f" ({cell.diverged} of {cell.seeds})"
        return f"diverged{of}", None
    mean = f"{cell.mean:,.{digits}f}"
    spread = "" if cell.spread is None else f" ± {cell.spread:,.{digits}f}"
    return mean + spread + (f" ({cell.seeds})" if cell.seeds < seeds else ""), mean


def _percent(value: float) -> str:
    return f"{value:+.1f} %" if math.isfinite(value) else "diverged"


def _named(best: tuple[str, Measured] | None, comparison: Comparison) -> Cell:
    if best is None:
        return Cell("")
    return Cell(f"{label(best[0])} {best[1].mean:,.{_digits(comparison, AVERAGE)}f}")
