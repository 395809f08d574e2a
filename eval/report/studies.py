"""Studies of one thing that is varied: what each setting gives, relative to the method itself."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dept.evaluation.report.measured import SPREAD, runs_of, text
from dept.evaluation.report.names import METHODS, STAGES, STUDIED, label, metric_of
from dept.evaluation.report.run_records import RUN, number, select
from dept.evaluation.report.sent import bytes_exchanged
from dept.evaluation.report.table import Table

PLACE = ["method", "setting", *RUN]
_DIGITS = {"bits_per_byte": 3, "perplexity": 1}


def studies(records: pd.DataFrame, corpus: str) -> list[Table]:
    """A table for each study: settings of a method beside the method itself.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        The tables; none if there are no such runs.
    """
    return [
        _table(records, corpus, stage)
        for stage in STUDIED
        if not select(records, corpus, stage).empty
    ]


def studied(records: pd.DataFrame, corpus: str, stage: str, beside: str) -> pd.DataFrame:
    """Runs of a stage of a study, and those of its methods that it is compared with.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: a key of ``names.STUDIED``, or that with ``_cpt``.
        beside: the stage of the runs to compare with: ``pretrain``, or ``cpt_random``.

    Returns:
        Indexed by method, setting, seed and draw: ``value`` of the stage's metric, ``inf`` if
        training diverged; and ``sent``, the bytes that a source gives to the average.
    """
    found = select(records, corpus, stage)
    compared = select(records, corpus, beside)
    compared = compared[compared["method"].isin(found["method"].unique())]
    compared = compared.assign(setting=STUDIED[stage.removesuffix("_cpt")])
    runs = pd.concat([compared, found])
    values = [number(of.get(metric_of(stage))) for of in runs["average"]]
    runs = runs.assign(value=values, sent=bytes_exchanged(runs))
    return runs.set_index(PLACE)[["value", "sent"]]


def differences(values: pd.Series, reference: str) -> pd.Series:
    """How much higher each value is than that of the reference in the same run, in percent.

    Args:
        values: by method, setting, seed and draw.
        reference: name of the setting to compare with.

    Returns:
        The same index, without runs that have no pair; ``inf`` if the run diverged.
    """
    pairs = values[values.index.isin([reference], "setting")].droplevel("setting")
    pairs = pairs.rename("reference")
    both = values.reset_index().merge(pairs.reset_index(), on=["method", *RUN])
    both = both[np.isfinite(both["reference"])].set_index(PLACE)
    return 100 * (both["value"] / both["reference"] - 1)


def _table(records: pd.DataFrame, corpus: str, stage: str) -> Table:
    reference = STUDIED[stage]
    trained = studied(records, corpus, stage, "pretrain")
    continued = studied(records, corpus, f"{stage}_cpt", "cpt_random")["value"]
    columns = [(trained["value"], stage), (continued, f"{stage}_cpt")]
    against = [differences(values, reference) for values, _ in columns]
    sent = trained["sent"].groupby(level=["method", "setting"]).mean()
    rows: list[list[str]] = []
    parts = []
    for method in (m for m in METHODS if m in sent.index):
        parts += [len(rows)] if rows else []
        of_method = sent.loc[method]
        most = of_method.get(reference, math.nan)
        order = sorted(of_method.index, key=lambda s: (s != reference, -of_method[s], s))
        for setting in order:
            fewer = most / of_method[setting]
            row = [label(method), setting, f"{of_method[setting] / 1e6:,.3f} MB"]
            row.append("" if math.isnan(fewer) else f"{fewer:,.1f}")
            for (values, of_stage), of_pairs in zip(columns, against, strict=True):
                own = _of(values, method, setting)
                row.append(text(own, _DIGITS[metric_of(of_stage)], len(own)))
                row.append("" if setting == reference else _percent(_of(of_pairs, method, setting)))
                row.append(runs_of(own.index) if len(own) else "")
            rows.append(row)
    caption = (
        f"Averages over sources, lower is better; {SPREAD}. Sent: what a source gives to the "
        f"average in pre-training, as coded; fewer: how many times less than {reference}. "
        f"Difference: of each run from that of {reference} with the same seed, and the same random "
        "embedding, in percent; mean over pairs ± their sample standard deviation (pairs). The "
        f"runs of {reference} are those of the comparison."
    )
    head = ["method", "setting", "sent", "fewer", "bits per byte", "difference", "runs"]
    head += ["perplexity after CPT", "difference", "runs"]
    title = f"{corpus}, {STAGES[stage]}"
    return Table(corpus, stage, title, caption, head, rows, tuple(parts), texts=2)


def _of(values: pd.Series, method: str, setting: str) -> pd.Series:
    """Values of one setting by run."""
    chosen = values.index.isin([method], "method") & values.index.isin([setting], "setting")
    return values[chosen].droplevel(["method", "setting"])


def _percent(values: pd.Series) -> str:
    values = values.dropna()
    if values.empty:
        return ""
    if np.isinf(values).any():
        return "diverged"
    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():+.2f}{spread} % ({len(values)})"
