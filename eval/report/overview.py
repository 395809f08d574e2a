"""The tables over all corpora: what each method is, and who is best in each comparison."""

from __future__ import annotations

from dept.evaluation.report.compare import AVERAGE, Comparison, won
from dept.evaluation.report.comparison_tables import digits_of, percent, text_of
from dept.evaluation.report.measured import Measured, Paired, paired
from dept.evaluation.report.names import BUDGETS, METHODS, METRICS, label
from dept.evaluation.report.run_records import Record, by_method
from dept.evaluation.report.table import Cell, Table


def methods(records: list[Record]) -> list[Table]:
    """What each method is."""
    rows, dept = [], 0
    for method, runs in by_method(records).items():
        dept += runs[0]["baseline"]
        kind = "baseline" if runs[0]["baseline"] else "DEPT"
        rows.append([Cell(label(method)), Cell(kind), Cell(METHODS[method].what)])
    caption = "In the order of all tables and plots."
    heads = [(name, "") for name in ("method", "kind", "what it is")]
    return [Table("", "overview", "Methods", caption, heads, rows, (dept,), texts=3)]


def overview(every: list[Comparison]) -> list[Table]:
    """One row a comparison: who is best on the average, and in how many columns."""
    rows, wins, columns = [], 0, 0
    for comparison in every:
        baseline, dept = comparison.best_baseline(AVERAGE), comparison.best_dept(AVERAGE)
        ours, both, clear = won(comparison)
        if not both:
            continue
        wins, columns = wins + ours, columns + both
        gain = pairs = None
        if dept and baseline:
            gain = 100 * (1 - dept[1].mean / baseline[1].mean)
            pairs = paired(dept[1], baseline[1])
        rows.append(
            [
                Cell(comparison.corpus),
                Cell(comparison.name),
                Cell(BUDGETS.get(comparison.budget, "")),
                Cell(text_of(comparison)),
                Cell(METRICS[comparison.metric]),
                *(_named(best, comparison) for best in (baseline, dept)),
                Cell("" if gain is None else percent(gain)),
                Cell(_pairs(pairs)),
                Cell(f"{ours} of {both}"),
                Cell("" if clear is None else f"{clear} of {both}"),
            ]
        )
    if not rows:
        return []
    caption = (
        f"A DEPT method is best in {wins} of {columns} columns. Best baseline and best DEPT: the "
        "one with the lowest average over sources, and that average, mean over runs; improvement "
        "is of the one average over the other. In pairs: the same improvement from run to run of "
        "equal seed and random embedding, mean over pairs ± its standard error (pairs); blank with "
        "fewer than two pairs. The error takes pairs as independent, though those of one seed "
        "share their bodies, and leaves out that both methods were picked for their averages. "
        "Columns won: sources for which the lowest mean over runs is a DEPT method's, whichever. "
        "By every run: its worst run is below the best run of every baseline; blank if it or the "
        "best baseline has a single run."
    )
    head = ["corpus", "stage", "baselines", "text", "metric", "best baseline", "best DEPT"]
    head += ["improvement", "in pairs", "columns won", "by every run"]
    title = "Best baseline and best DEPT method"
    return [Table("", "overview", title, caption, [(name, "") for name in head], rows, texts=7)]


def _named(best: tuple[str, Measured] | None, comparison: Comparison) -> Cell:
    if best is None:
        return Cell("")
    return Cell(f"{label(best[0])} {best[1].mean:,.{digits_of(comparison, AVERAGE)}f}")


def _pairs(of: Paired | None) -> str:
    return "" if of is None else f"{of.mean:+.1f} ± {of.error:.1f} % ({of.pairs})"
