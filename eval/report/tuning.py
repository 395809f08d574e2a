"""The tables of learning rates that were tried, of pre-training and of continued pre-training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dept.evaluation.report.measured import SPREAD, Measured, averaged, is_best, lowest
from dept.evaluation.report.names import METRICS, STARTS, label, metric_of
from dept.evaluation.report.run_records import Record, by_method, select, start_of
from dept.evaluation.report.table import Cell, Table, plain


def tuning(records: list[Record], corpus: str) -> list[Table]:
    """Learning rates of pre-training, and what each gave."""
    here, metric = select(records, corpus, "tuning"), metric_of("tuning")
    rates = _rates(here)
    rows = [
        [Cell(label(method)), *_cells(_by_rate(runs, rates, metric), digits=3)]
        for method, runs in by_method(here).items()
    ]
    caption = (
        f"Average {METRICS[metric]} over sources after pre-training, lower is better; the best "
        f"rate of a method bold; {SPREAD}; blank: not tried."
    )
    head = ["method", *(f"{rate:g}" for rate in rates)]
    return plain(corpus, "tuning", "peak learning rates", caption, head, rows)


def tuning_cpt(records: list[Record], corpus: str) -> list[Table]:
    """Learning rates of continued pre-training, those in use among them.

    The runs at a rate in use are those of the comparison, of the same method, start and seeds.
    """
    tried = select(records, corpus, "tuning_cpt")
    metric = metric_of("tuning_cpt")
    found: dict[tuple[str, str], list[Record]] = {}
    in_use: dict[str, list[Record]] = {}
    for start, stage in STARTS.items():
        compared = select(records, corpus, stage)
        for method, runs in by_method(r for r in tried if start_of(r) == start).items():
            seeds = {run["seed"] for run in runs}
            joined = [r for r in compared if r["method"] == method and r["seed"] in seeds]
            found[start, method] = runs + joined
            in_use.setdefault(start, []).extend(joined)
    rates = _rates(run for runs in found.values() for run in runs)
    rows = [
        [Cell(start), Cell(label(method)), *_cells(_by_rate(runs, rates, metric), digits=1)]
        for (start, method), runs in found.items()
    ]
    chosen = [
        f"{start} {' and '.join(f'{rate:g}' for rate in _rates(runs))}"
        for start, runs in in_use.items()
        if runs
    ]
    used = f"Rates in use, from the runs of the comparison: {', '.join(chosen)}. " if chosen else ""
    caption = (
        f"Average {METRICS[metric]} over sources after continued pre-training, lower is better; "
        f"the best rate of a row bold; {SPREAD}; (n): of n runs only; blank: not tried. {used}"
        "Only the seeds that other rates were tried with."
    )
    head = ["embedding", "method", *(f"{rate:g}" for rate in rates)]
    title = "peak learning rates of continued pre-training"
    return plain(corpus, "tuning", title, caption, head, rows, texts=2)


def _rates(runs: Iterable[Record]) -> list[float]:
    return sorted({run["learning_rate"] for run in runs})


def _by_rate(runs: list[Record], rates: list[float], metric: str) -> dict[float, Measured | None]:
    return {
        rate: averaged((run for run in runs if run["learning_rate"] == rate), metric)
        for rate in rates
    }


def _cells(found: Mapping[float, Measured | None], digits: int) -> list[Cell]:
    best = lowest(found.values(), digits)
    most = max((each.runs for each in found.values() if each), default=0)
    return [
        Cell(each.text(digits, of=most) if each else "", is_best(each, best, digits))
        for each in found.values()
    ]
