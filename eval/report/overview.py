"""The tables over all corpora: what each method is, and who is best in each comparison."""

from __future__ import annotations

import pandas as pd

from dept.evaluation.report.compare import AVERAGE, Comparison, won
from dept.evaluation.report.comparison_tables import percent, text_of
from dept.evaluation.report.measured import SPREAD, runs_of, text
from dept.evaluation.report.names import BUDGETS, METHODS, METRICS, label
from dept.evaluation.report.table import Table


def methods(records: pd.DataFrame) -> list[Table]:
    """Descriptions of all methods."""
    baseline = records.groupby("method")["baseline"].first()
    shown = [method for method in METHODS if method in baseline]
    rows = [[label(m), "baseline" if baseline[m] else "DEPT", METHODS[m].what] for m in shown]
    caption = "In the order of all tables and plots."
    head, parts = ["method", "kind", "what it is"], (int(baseline.sum()),)
    return [Table("", "overview", "Methods", caption, head, rows, parts, texts=3)]


def overview(every: list[Comparison]) -> list[Table]:
    """One row a comparison: who is best on the average, and in how many columns."""
    rows, wins, columns = [], 0, 0
    for comparison in every:
        best = [comparison.best(AVERAGE, baseline) for baseline in (True, False)]
        ours, both, clear = won(comparison)
        if not both:
            continue
        wins, columns = wins + ours, columns + both
        digits = comparison.digits(AVERAGE)
        gain = pairs = ""
        if all(best):
            theirs, dept = (runs for _, runs in best)
            gain = percent(100 * (1 - dept.mean() / theirs.mean()))
            pairs = paired(dept, theirs)
        texts = [
            comparison.corpus,
            comparison.name,
            BUDGETS.get(comparison.budget, ""),
            text_of(comparison),
            METRICS[comparison.metric],
            *(
                f"{label(b[0])} {text(b[1], digits)} ({runs_of(b[1].index)})" if b else ""
                for b in best
            ),
            gain,
            pairs,
            f"{ours} of {both}",
            "" if clear is None else f"{clear} of {both}",
        ]
        rows.append(texts)
    if not rows:
        return []
    caption = (
        f"A DEPT method is best in {wins} of {columns} columns. Best baseline and best DEPT: the "
        f"one with the lowest average over sources, and that average: {SPREAD}. Improvement "
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
    return [Table("", "overview", title, caption, head, rows, texts=7)]


def paired(ours: pd.Series, theirs: pd.Series) -> str:
    """Improvement in percent in the runs that both have, with its standard error and their number.

    Empty of fewer than two such runs.

    Args:
        ours: float[runs], values of DEPT, lower is better; indexed by run.
        theirs: float[runs], values of the baseline, indexed by run.
    """
    gains = (100 * (1 - ours / theirs)).dropna()
    return f"{gains.mean():+.1f} ± {gains.sem():.1f} % ({len(gains)})" if len(gains) > 1 else ""
