"""Records of finished runs for a report: read, checked, and arranged in one table.

A record is what ``results/runs/<run>.json`` holds; ``eval/reproduce/records.py`` makes it from a
run's folder. Nothing here needs torch, so that a report can be rebuilt wherever the records are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from dept.evaluation.report.names import (
    BY_SETTING,
    COMPARED,
    METHODS,
    PLASTICITY,
    STAGES,
    STARTS,
    STUDIED,
)

Record = Mapping[str, Any]

RUNS = "runs"
RUN = ["seed", "draw"]
"""What runs of two methods have in common where they are paired: the seed of the body, and which
random embedding they start from, -1 where a plan draws none."""

_NESTED = (
    "sources",
    "held_out",
    "average",
    "communication",
    "curves",
    "norms",
    "updates",
    "transfer",
)
_WHOLE = ("tokens", "steps", "rounds", "local_steps")  # not of fine-tuning
_WITH_SETTINGS = ["downstream", *BY_SETTING, *STUDIED, *(f"{stage}_cpt" for stage in STUDIED)]
_ORDER = {"stage": list(STAGES).index, "method": list(METHODS).index}


def read(folder: Path) -> list[Record]:
    """The records in ``folder/runs/*.json``.

    Raises:
        ValueError: a file is not JSON.
    """
    records = []
    for path in sorted((folder / RUNS).glob("*.json")):
        try:
            records.append(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    return records


def arranged(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record, in the one order that a report is made in, whatever order they came in.

    Columns are the keys of records, those of ``_NESTED`` being dicts that may be empty;
    ``sequential``, the steps of one source's training; and ``start``, which embedding a run of
    ``tuning_cpt`` starts from, a key of ``names.STARTS``.

    Raises:
        ValueError: of what ``check`` refuses.
    """
    optional = dict.fromkeys((*_WHOLE, "setting", "draw", "after"))
    rows = [optional | dict(r) | {key: r.get(key) or {} for key in _NESTED} for r in records]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(_WHOLE, "Int64"))
    frame["draw"] = frame["draw"].astype("Int64").fillna(-1).astype(int)
    # Where sources take turns, a run has more batches than a source has steps.
    sequential = frame["rounds"] * frame["local_steps"]
    frame["sequential"] = sequential.where(sequential > 0, frame["steps"])
    frame["start"] = [
        _start_of(row) if row.stage == "tuning_cpt" else None for row in frame.itertuples()
    ]
    check(frame)
    return frame.sort_values(
        ["corpus", "stage", "method", *RUN, "run"],
        key=lambda column: column.map(_ORDER[column.name]) if column.name in _ORDER else column,
        ignore_index=True,
    )


def check(records: pd.DataFrame) -> None:
    """Refuse what would be shown wrongly.

    Raises:
        ValueError: an unknown method or stage, a run that is there twice, two runs for one place in
            a table, runs of a numbered draw beside one of none, or a method that is a baseline in
            one run and not in another.
    """
    for column, known in (("method", METHODS), ("stage", STAGES)):
        for row in records[~records[column].isin(known)].itertuples():
            raise ValueError(
                f"{row.run}: {column} {getattr(row, column)!r} is none of {', '.join(known)}"
            )
    for run in records["run"][records["run"].duplicated()]:
        raise ValueError(f"{run} is there twice")
    for method, runs in records.groupby("method"):
        if runs["baseline"].nunique() > 1:
            raise ValueError(f"{method} is a baseline in one run and not in another")
    stage = records["stage"]
    place = records[["corpus", "stage", "method", "seed", "source", "start"]].assign(
        rate=records["learning_rate"].where(stage.isin(["tuning", "tuning_cpt"])),
        setting=records["setting"].where(stage.isin(_WITH_SETTINGS)),
    )
    for _, runs in records.groupby([place[key] for key in place], dropna=False):
        if (same := runs["draw"].duplicated(keep=False)).any():
            names = " and ".join(runs["run"][same])
            raise ValueError(f"{names} are for the same place of a table")
        # A run without a number has the first embedding: beside numbered ones it would count twice.
        if (runs["draw"] < 0).any() and len(runs) > 1:
            raise ValueError(
                f"{' and '.join(runs['run'])} are for the same place of a table, but only one of "
                f"them has a draw: remove the runs of the older plan"
            )


def _start_of(record: Any) -> str:
    start = re.split(r"[\s,]", record.setting or "", maxsplit=1)[0]
    if start not in STARTS:
        raise ValueError(
            f"{record.run}: setting {record.setting!r} of tuning_cpt begins with none of "
            f"{', '.join(STARTS)}"
        )
    return start


def stage_name(records: pd.DataFrame, corpus: str, stage: str) -> str:
    """The title of a stage, with the steps of its runs if it starts from a body.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: key of ``STAGES``.
    """
    if stage not in (*COMPARED, *PLASTICITY) or stage == "pretrain":
        return STAGES[stage]
    steps = sorted(select(records, corpus, stage)["sequential"].unique())
    return f"{STAGES[stage]}, {' or '.join(f'{count:,}' for count in steps)} steps"


def number(value: Any) -> float:
    """A value of a record: ``nan`` for none, ``inf`` for one that is not finite, maybe as text."""
    if value is None:
        return math.nan
    value = float(value)
    return value if math.isfinite(value) else math.inf


def select(records: pd.DataFrame, corpus: str, *stages: str) -> pd.DataFrame:
    """The records of a corpus and of the given stages.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stages: names of the stages.
    """
    return records[(records["corpus"] == corpus) & records["stage"].isin(stages)]


def names(records: pd.DataFrame, kind: str) -> list[str]:
    """Names of the sources (``kind`` "sources" or "held_out"), in the corpus's own order.

    A run of one source knows only that one, so the order is that of the run which has the most.

    Args:
        records: records of the runs to look at.
        kind: ``sources`` or ``held_out``.
    """
    fullest = sorted(records[kind], key=len, reverse=True)
    return list(dict.fromkeys(chain.from_iterable(fullest)))


def unseen(records: pd.DataFrame, corpus: str, stage: str) -> list[str]:
    """The sources that bodies adapt to in a stage of plasticity, in the corpus's own order.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: a stage of plasticity.
    """
    everything = records[records["corpus"] == corpus]
    known = dict.fromkeys([*names(everything, "held_out"), *names(everything, "sources")])
    adapted_to = set(select(records, corpus, stage)["source"])
    return [name for name in known if name in adapted_to] + sorted(adapted_to - set(known))
