"""What a method exchanges while it pre-trains, for a table and for a plot."""

from __future__ import annotations

import math

import pandas as pd

from dept.evaluation.report.measured import runs_of
from dept.evaluation.report.run_records import RUN, select

BYTES_PER_PARAMETER = 4  # averages are taken in float32

_COUNTED = ["parameters_per_step", "reduction", "sent_bytes", "every_step_bytes"]


def sent(records: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Of each method (rows) whose pre-training counted it, means over its runs.

    A body that trains on one source alone is averaged with no other, so it gives nothing,
    though its run has what it would.

    Returns:
        Columns, ``nan`` where no run has it: ``parameters_per_step`` that a source gives to the
        average, spread over its steps; ``reduction``, how many times that goes into the whole
        model; ``exchanged``, bytes that a source gives to the average in all its steps;
        ``sent_bytes`` of the runs' workers, counted at the transport; ``every_step_bytes`` that
        they would have sent, exchanging every gradient; and ``runs``, how many there are.
    """
    here = select(records, corpus, "pretrain")
    here = here[here["communication"].astype(bool)]
    counted = pd.DataFrame(list(here["communication"]), here.index, _COUNTED, dtype=float)
    counted["steps"] = here["sequential"].astype(float)
    found = counted.groupby(here["method"], sort=False).mean()
    whole = found["reduction"].isna() & (found["parameters_per_step"] > 0)
    found.loc[whole, "reduction"] = 1.0  # STD's runs leave it out: the whole model, at every step
    runs = here.set_index(RUN).groupby("method", sort=False)
    found["runs"] = pd.Series({method: runs_of(of.index) for method, of in runs})
    found["exchanged"] = found["parameters_per_step"] * found.pop("steps") * BYTES_PER_PARAMETER
    alone = here["source"].notna().groupby(here["method"], sort=False).all()
    found.loc[alone, found.columns != "runs"] = math.nan
    found.loc[alone, ["parameters_per_step", "exchanged"]] = 0.0
    return found
