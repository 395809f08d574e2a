"""Studies of one thing that is varied: what each setting gives, relative to the method itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from dept.evaluation.report.measured import SPREAD, runs_of, text
from dept.evaluation.report.names import (
    CONTINUED_ALONE,
    METHODS,
    METRICS,
    STAGES,
    STUDIED,
    label,
    metric_of,
)
from dept.evaluation.report.run_records import RUN, number, select
from dept.evaluation.report.sent import bytes_exchanged
from dept.evaluation.report.table import Table

PLACE = ["method", "setting", *RUN]
_DIGITS = {"bits_per_byte": 3, "perplexity": 1}


class Part(NamedTuple):
    """What a study has measured at one point: after pre-training, or after continuing it."""

    name: str
    stage: str
    values: pd.Series
    """By method, setting, seed and draw; those of the reference too."""

    differences: pd.Series
    """From the reference in the same run, in percent."""


def parts_of(records: pd.DataFrame, corpus: str, stage: str) -> list[Part]:
    """The parts of a study, in the order of its columns.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: a key of ``names.STUDIED``.
    """
    after_cpt = f"{METRICS['perplexity']} after CPT"
    if stage in CONTINUED_ALONE:
        places = [(after_cpt, stage, "cpt_random")]
    else:
        of_bytes = METRICS[metric_of(stage)]
        places = [(of_bytes, stage, "pretrain"), (after_cpt, f"{stage}_cpt", "cpt_random")]
    found = [(n, s, studied(records, corpus, s, beside)["value"]) for n, s, beside in places]
    return [Part(n, s, values, differences(values, STUDIED[stage])) for n, s, values in found]


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
    reference, is_trained = STUDIED[stage], stage not in CONTINUED_ALONE
    found = parts_of(records, corpus, stage)
    runs = studied(records, corpus, stage, "pretrain" if is_trained else "cpt_random")
    sent = runs["sent"].groupby(level=["method", "setting"]).mean()
    if not is_trained:
        sent = sent.fillna(0.0)  # what a body has sent is not of interest here
    rows: list[list[str]] = []
    parts = []
    for method in (m for m in METHODS if m in sent.index):
        parts += [len(rows)] if rows else []
        of_method = sent.loc[method]
        most = of_method.get(reference, math.nan)
        order = sorted(of_method.index, key=lambda s: (s != reference, -of_method[s], s))
        for setting in order:
            row = [label(method), setting]
            if is_trained:
                fewer = most / of_method[setting]
                row.append(f"{of_method[setting] / 1e6:,.3f} MB")
                row.append("" if math.isnan(fewer) else f"{fewer:,.1f}")
            for part in found:
                own, pairs = (_of(v, method, setting) for v in (part.values, part.differences))
                row.append(text(own, _DIGITS[metric_of(part.stage)], len(own)))
                row.append("" if setting == reference else _percent(pairs))
                row.append(runs_of(own.index) if len(own) else "")
            rows.append(row)
    caption = f"Averages over sources, lower is better; {SPREAD}. "
    head = ["method", "setting"]
    if is_trained:
        caption += (
            "Sent: what a source gives to the average in pre-training, as coded; fewer: how many "
            f"times less than {reference}. "
        )
        head += ["sent", "fewer"]
    caption += (
        f"Difference: of each run from that of {reference} with the same seed, and the same random "
        "embedding, in percent; mean over pairs ± their sample standard deviation (pairs). The "
        f"runs of {reference} are those of the comparison."
    )
    head += [name for part in found for name in (part.name, "difference", "runs")]
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
