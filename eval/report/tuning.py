"""The tables of learning rates that were tried, of pre-training and of continued pre-training."""

from __future__ import annotations

import pandas as pd

from dept.evaluation.report.measured import SPREAD, cells, pivoted
from dept.evaluation.report.names import METRICS, STARTS, label, metric_of
from dept.evaluation.report.run_records import select
from dept.evaluation.report.table import Table


def tuning(records: pd.DataFrame, corpus: str) -> list[Table]:
    """Learning rates of pre-training, and what each gave.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        The tables; none if there are no such runs.
    """
    here, metric = select(records, corpus, "tuning"), metric_of("tuning")
    caption = (
        f"Average {METRICS[metric]} over sources after pre-training, lower is better; the best "
        f"rate of a method bold; {SPREAD}; blank: not tried."
    )
    return _by_rate(corpus, here, metric, ["method"], 3, "peak learning rates", caption)


def tuning_cpt(records: pd.DataFrame, corpus: str) -> list[Table]:
    """Learning rates of continued pre-training, those in use among them.

    The runs at a rate in use are those of the comparison, of the same method, start and seeds.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        The tables; none if there are no such runs.
    """
    tried, metric = select(records, corpus, "tuning_cpt"), metric_of("tuning_cpt")
    keys = ["start", "method", "seed"]
    compared = select(records, corpus, *STARTS.values())
    starts = {stage: start for start, stage in STARTS.items()}
    compared = compared.assign(start=compared["stage"].map(starts))
    in_use = compared.merge(tried[keys].drop_duplicates())
    together = pd.concat([tried, in_use]).sort_values(
        "start", key=lambda start: start.map(list(STARTS).index), kind="stable"
    )
    rates = in_use.groupby("start")["learning_rate"].unique()
    chosen = [
        f"{start} {' and '.join(f'{rate:g}' for rate in sorted(rates[start]))}"
        for start in STARTS
        if start in rates
    ]
    used = f"Rates in use, from the runs of the comparison: {', '.join(chosen)}. " if chosen else ""
    caption = (
        f"Average {METRICS[metric]} over sources after continued pre-training, lower is better; "
        f"the best rate of a row bold; {SPREAD}; blank: not tried. {used}"
        "Only the seeds that other rates were tried with."
    )
    title = "peak learning rates of continued pre-training"
    return _by_rate(corpus, together, metric, ["start", "method"], 1, title, caption)


def _by_rate(
    corpus: str,
    runs: pd.DataFrame,
    metric: str,
    keys: list[str],
    digits: int,
    title: str,
    caption: str,
) -> list[Table]:
    values = pivoted(runs, [of.get(metric) for of in runs["average"]], keys, "learning_rate")
    if values.empty:
        return []
    found = cells(values, digits, axis=1)
    rows = [[*starts, label(method), *row] for (*starts, method), row in found.items()]
    names = [{"start": "embedding"}.get(key, key) for key in keys]
    head = [*names, *(f"{rate:g}" for rate in values), "runs"]
    return [Table(corpus, "tuning", f"{corpus}, {title}", caption, head, rows, texts=len(keys))]
