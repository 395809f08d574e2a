"""The communication of each method in pre-training, for a table and for a plot."""

from __future__ import annotations

import math

import pandas as pd

from dept.evaluation.report.measured import runs_of
from dept.evaluation.report.run_records import RUN, select

BYTES_PER_PARAMETER = 4  # averages are taken in float32

_COUNTED = ["parameters_per_step", "reduction", "sent_bytes", "every_step_bytes"]


def bytes_exchanged(runs: pd.DataFrame) -> pd.Series:
    """The bytes that a source of each run gives to the average, or to that of gradients, in all.

    Args:
        runs: records, as ``run_records.arranged`` gives them.
    """
    columns = ["parameters_per_step", "bytes_per_exchange", "reduction"]
    counted = pd.DataFrame(list(runs["communication"]), runs.index, columns, dtype=float)
    steps, rounds = runs["sequential"].astype(float), runs["rounds"].astype(float)
    # STD, which has no reduction, exchanges at every step.
    times = rounds.where(counted["reduction"].notna(), steps)
    uncoded = counted["parameters_per_step"] * steps * BYTES_PER_PARAMETER
    return (counted["bytes_per_exchange"] * times).fillna(uncoded)


def sent(records: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """The communication of each method (rows) that was counted, as means over its runs.

    A body that trains on one source alone is not averaged, so it communicates nothing, although
    its record has the number for an average.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        Columns, ``nan`` if no run has the value: ``parameters_per_step``, parameters that a source
        communicates, divided by its steps; ``reduction``, size of the whole model divided by that;
        ``exchanged``, bytes that a source communicates in all its steps; ``sent_bytes`` of the
        runs' workers, counted at the transport; ``every_step_bytes``, which they would have sent by
        exchanging every gradient; and ``runs``, the number of runs.
    """
    here = select(records, corpus, "pretrain")
    here = here[here["communication"].astype(bool)]
    counted = pd.DataFrame(list(here["communication"]), here.index, _COUNTED, dtype=float)
    counted["exchanged"] = bytes_exchanged(here)
    found = counted.groupby(here["method"], sort=False).mean()
    whole = found["reduction"].isna() & (found["parameters_per_step"] > 0)
    found.loc[whole, "reduction"] = 1.0  # STD's runs leave it out: the whole model, at every step
    runs = here.set_index(RUN).groupby("method", sort=False)
    found["runs"] = pd.Series({method: runs_of(of.index) for method, of in runs})
    alone = here["source"].notna().groupby(here["method"], sort=False).all()
    found.loc[alone, found.columns != "runs"] = math.nan
    found.loc[alone, ["parameters_per_step", "exchanged"]] = 0.0
    return found
