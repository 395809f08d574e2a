"""Records of finished runs, as a report takes them: read, checked, and put in order.

A record is what ``results/runs/<run>.json`` holds; ``eval/records.py`` makes it from a run's
folder. Nothing here needs torch, so that a report can be rebuilt wherever the records are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dept.evaluation.report.names import COMPARED, METHODS, PLASTICITY, STAGES, STARTS, order

Record = Mapping[str, Any]
Run = tuple[int, int | None]
"""Seed of the body, and which random embedding it starts from; ``None`` where a plan draws none."""

RUNS = "runs"


def read(folder: Path) -> list[Record]:
    """The records in ``folder/runs/*.json``.

    Raises:
        ValueError: a file is not JSON, or ``check`` refuses it.
    """
    records = []
    for path in sorted((folder / RUNS).glob("*.json")):
        try:
            records.append(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    return arranged(records)


def arranged(records: Iterable[Record]) -> list[Record]:
    """Records in the one order that a report is made in, whatever order they came in.

    Raises:
        ValueError: of what ``check`` refuses.
    """
    records = list(records)
    check(records)
    stages = list(STAGES)
    return sorted(
        records,
        key=lambda r: (
            r["corpus"],
            stages.index(r["stage"]),
            order(r["method"]),
            r["seed"],
            -1 if r.get("draw") is None else r["draw"],
            r["run"],
        ),
    )


def check(records: Iterable[Record]) -> None:
    """Refuse what would be shown wrongly.

    Raises:
        ValueError: an unknown method, stage or start, a run that is there twice, two runs for one
            place in a table, runs of a numbered draw beside one of none, or a method that is a
            baseline in one run and not in another.
    """
    runs: set[str] = set()
    places: dict[tuple[Any, ...], str] = {}
    drawn: dict[tuple[Any, ...], tuple[bool, str]] = {}
    baselines: dict[str, bool] = {}
    for record in records:
        run, method, stage = record["run"], record["method"], record["stage"]
        if method not in METHODS:
            raise ValueError(f"{run}: method {method!r} is none of {', '.join(METHODS)}")
        if stage not in STAGES:
            raise ValueError(f"{run}: stage {stage!r} is none of {', '.join(STAGES)}")
        if run in runs:
            raise ValueError(f"{run} is there twice")
        runs.add(run)
        if baselines.setdefault(method, record["baseline"]) != record["baseline"]:
            raise ValueError(f"{run}: {method} is a baseline in one run and not in another")
        place = (record["corpus"], stage, method, record["seed"], record["source"])
        place += (record["learning_rate"],) if stage in ("tuning", "tuning_cpt") else ()
        place += (record["setting"],) if stage in ("study", "downstream") else ()
        if stage == "tuning_cpt":
            place += (start_of(record),)
        draw = record.get("draw")
        if (place, draw) in places:
            raise ValueError(f"{run} and {places[place, draw]} are for the same place of a table")
        places[place, draw] = run
        # A run without a number has the first embedding: beside numbered ones it would count twice.
        numbered, other = drawn.setdefault(place, (draw is not None, run))
        if numbered != (draw is not None):
            raise ValueError(
                f"{run} and {other} are for the same place of a table, but only one of them has a "
                f"draw: remove the runs of the older plan"
            )


def run_of(record: Record) -> Run:
    """What runs of two methods have in common where they are paired."""
    return record["seed"], record.get("draw")


def start_of(record: Record) -> str:
    """Which embedding a run of ``tuning_cpt`` starts from: a key of ``names.STARTS``.

    Raises:
        ValueError: its setting's name does not begin with one.
    """
    start = re.split(r"[\s,]", record["setting"] or "", maxsplit=1)[0]
    if start not in STARTS:
        raise ValueError(
            f"{record['run']}: setting {record['setting']!r} of tuning_cpt begins with none of "
            f"{', '.join(STARTS)}"
        )
    return start


def stage_name(records: Iterable[Record], corpus: str, stage: str) -> str:
    """What a stage is called in titles, with the steps of its runs where it starts from a body."""
    if stage not in (*COMPARED, *PLASTICITY) or stage == "pretrain":
        return STAGES[stage]
    steps = sorted({sequential_steps(record) for record in select(records, corpus, stage)})
    return f"{STAGES[stage]}, {' or '.join(f'{count:,}' for count in steps)} steps"


def number(value: Any) -> float | None:
    """A value of a record: ``inf`` for one that is not finite, which JSON may hold as text."""
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else math.inf


def sequential_steps(record: Record) -> int:
    """Steps of one source's training: where sources take turns, a run has more batches."""
    return record["rounds"] * record["local_steps"] or record["steps"]


def corpora(records: Iterable[Record]) -> list[str]:
    return sorted({record["corpus"] for record in records})


def select(records: Iterable[Record], corpus: str, *stages: str) -> list[Record]:
    """Those of a corpus and of the stages."""
    return [r for r in records if r["corpus"] == corpus and r["stage"] in stages]


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each method, methods in the order of tables."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["method"], []).append(record)
    return {method: found[method] for method in sorted(found, key=order)}


def names(records: Iterable[Record], kind: str) -> list[str]:
    """Names of the sources (``kind`` "sources" or "held_out"), in the corpus's own order.

    A run of one source knows only that one, so the order is that of the run which has the most.
    """
    fullest = sorted((list(r.get(kind) or {}) for r in records), key=len, reverse=True)
    return list(dict.fromkeys(name for entry in fullest for name in entry))


def unseen(records: Iterable[Record], corpus: str, stage: str) -> list[str]:
    """The sources that bodies adapt to in a stage of plasticity, in the corpus's own order."""
    everything = [record for record in records if record["corpus"] == corpus]
    known = [*names(everything, "held_out"), *names(everything, "sources")]
    adapted_to = {record["source"] for record in select(everything, corpus, stage)}
    ordered = [name for name in dict.fromkeys(known) if name in adapted_to]
    return ordered + sorted(adapted_to - set(known))
