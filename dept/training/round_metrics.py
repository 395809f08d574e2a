"""Metrics of a round and totals over rounds; they are the same on every worker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dept.method import faults, updates
from dept.method.slot_record import SlotRecord


def none_yet(workers: int) -> dict[str, Any]:
    """Totals of a run that has not begun; part of its checkpoints.

    ``rounds`` counts outer steps. ``last_round`` is the last round (from 1) that a source was drawn
    for. ``last_round``, ``rounds_trained`` and ``tokens`` also count rounds in which the update of
    the source was left out; ``left_out`` lists those. ``communicated`` are the parameters of all
    slots that enter averages, and ``message_bytes`` the bytes of their messages. ``reaches`` are
    the values that updates are compared with (:func:`dept.method.faults.reach`), by source.
    """
    return {
        "rounds": 0,
        "last_round": {},
        "rounds_trained": {},
        "tokens": {},
        "communicated": 0,
        "message_bytes": 0,
        "sent_bytes": 0,
        "other_bytes": 0,
        "swap_seconds": 0.0,
        "outer_step_seconds": 0.0,
        "wait_seconds": [0.0] * workers,
        "left_out": [],
        "reaches": {},
    }


@contextmanager
def timed(totals: dict[str, Any], name: str) -> Iterator[None]:
    """Add the seconds of a ``with`` block to the totals.

    Args:
        totals: totals over rounds, by name; changed when the block ends without an exception.
        name: the entry that gets the seconds.
    """
    began = time.perf_counter()
    yield
    totals[name] += time.perf_counter() - began


def add(
    totals: dict[str, Any],
    records: Mapping[str, SlotRecord],
    sent: Sequence[Mapping[str, int]],
    waited: Sequence[float],
) -> int:
    """Add a round to the totals.

    Args:
        totals: the totals (:func:`none_yet`); changed in place.
        records: records of the slots of all workers, by source.
        sent: bytes that each worker sent, by purpose.
        waited: seconds that each worker waited for the others.

    Returns:
        Bytes of models that all workers sent.
    """
    totals["rounds"] += 1
    for source, record in records.items():
        totals["last_round"][source] = totals["rounds"]
        for total, new in (("rounds_trained", 1), ("tokens", record.tokens)):
            totals[total][source] = totals[total].get(source, 0) + new
        if record.fault is not None:
            totals["left_out"].append(record.fault)
        else:
            history = totals["reaches"].get(source, [])
            totals["reaches"][source] = faults.remember(history, record.reach)
    of_models = sum(kinds.get("model", 0) for kinds in sent)
    totals["sent_bytes"] += of_models
    totals["other_bytes"] += sum(sum(kinds.values()) for kinds in sent) - of_models
    for worker, seconds in enumerate(waited):
        totals["wait_seconds"][worker] += seconds
    return of_models


def metrics(records: Mapping[str, SlotRecord], of_round: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a round; a slot that was left out only has metrics about that.

    Args:
        records: records of all slots of the round, by source.
        of_round: metrics of the round as a whole.
    """
    return {f"dept/{name}": value for name, value in of_round.items()} | dict(_of_slots(records))


def _of_slots(records: Mapping[str, SlotRecord]) -> Iterator[tuple[str, float]]:
    kept = {source: record for source, record in records.items() if record.fault is None}
    for source, record in records.items():
        if source in kept:
            yield f"dept/{source}/train_loss", sum(record.losses) / record.steps
            yield f"dept/{source}/update_norm", record.norm
        else:
            yield f"dept/{source}/left_out/step", record.fault["step"] or record.steps
            yield f"dept/{source}/left_out/position", record.fault["positions"][0]
    pairs = updates.cosines({source: record.sketch for source, record in kept.items()})
    for (first, second), cosine in pairs.items():
        yield f"dept/cosine/{first}-{second}", cosine
