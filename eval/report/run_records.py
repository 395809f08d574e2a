"""Records of finished runs, as a report takes them: read, checked, and put in order.

A record is what ``results/runs/<run>.json`` holds; ``eval/records.py`` makes it from a run's
folder. Nothing here needs torch, so that a report can be rebuilt wherever the records are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.report.names import METHODS, STAGES, order

Record = Mapping[str, Any]

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
            r["run"],
        ),
    )


def check(records: Iterable[Record]) -> None:
    """Refuse what would be shown wrongly.

    Raises:
        ValueError: an unknown method or stage, a run told twice, two runs for one place in a table,
            or a method that is a baseline in one run and not in another.
    """
    runs: set[str] = set()
    places: dict[tuple[Any, ...], str] = {}
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
        if stage == "plasticity":  # there, `source` does not tell apart the bodies of `isolated`
            continue
        place = (record["corpus"], stage, method, record["seed"], record["source"])
        place += (record["learning_rate"],) if stage == "tuning" else ()
        place += (record["setting"],) if stage in ("study", "downstream") else ()
        if place in places:
            raise ValueError(f"{run} and {places[place]} are for the same place of a table")
        places[place] = run


def number(value: Any) -> float | None:
    """A figure of a record: ``inf`` for one that is not finite, which JSON may hold as text."""
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
