"""What is told of a round, and what is added up over rounds: the same on every worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dept.method import faults, updates

Slot = Mapping[str, Any]


def none_yet(workers: int) -> dict[str, Any]:
    """Totals of a run that has not begun; part of its checkpoints.

    ``rounds`` counts outer steps, ``last_round`` is the last one (from 1) that a source was drawn
    for. What it was drawn for counts there, in ``rounds_trained`` and in ``tokens``, though its
    update may have been left out: ``left_out`` has those. ``reaches`` are what updates are held
    against (:func:`dept.method.faults.reach`), by source.
    """
    return {
        "rounds": 0,
        "last_round": {},
        "rounds_trained": {},
        "tokens": {},
        "sent_bytes": 0,
        "other_bytes": 0,
        "swap_seconds": 0.0,
        "outer_step_seconds": 0.0,
        "wait_seconds": [0.0] * workers,
        "left_out": [],
        "reaches": {},
    }


def add(totals: dict[str, Any], every: Sequence[Mapping[str, Any]]) -> int:
    """Add a round to the totals.

    Args:
        totals: of :func:`none_yet`; changed.
        every: of each worker, its ``slots`` by source, bytes ``sent`` by kind, seconds ``waited``.

    Returns:
        Bytes of models that all workers sent.
    """
    totals["rounds"] += 1
    for source, slot in slots_of(every).items():
        totals["last_round"][source] = totals["rounds"]
        for total, new in (("rounds_trained", 1), ("tokens", slot["tokens"])):
            totals[total][source] = totals[total].get(source, 0) + new
        if slot.get("fault") is not None:
            totals["left_out"].append(slot["fault"])
        else:
            history = totals["reaches"].get(source, [])
            totals["reaches"][source] = faults.remember(history, slot.get("reach"))
    sent = sum(given["sent"].get("model", 0) for given in every)
    totals["sent_bytes"] += sent
    totals["other_bytes"] += sum(sum(given["sent"].values()) for given in every) - sent
    for worker, given in enumerate(every):
        totals["wait_seconds"][worker] += given["waited"]
    return sent


def slots_of(every: Sequence[Mapping[str, Any]]) -> dict[str, Slot]:
    """The slots of all workers, by source."""
    return {source: slot for given in every for source, slot in given["slots"].items()}


def metrics(slots: Mapping[str, Slot], figures: Mapping[str, float]) -> dict[str, float]:
    """What is logged of a round; of slots that were left out, only that and where it was."""
    return dict(_metrics(slots, figures))


def _metrics(
    slots: Mapping[str, Slot], figures: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    yield from ((f"dept/{name}", value) for name, value in figures.items())
    kept = {source: slot for source, slot in slots.items() if slot.get("fault") is None}
    for source, slot in slots.items():
        if source in kept:
            yield f"dept/{source}/train_loss", sum(slot["losses"]) / len(slot["losses"])
            yield f"dept/{source}/update_norm", slot["norm"]
        else:
            fault = slot["fault"]
            yield f"dept/{source}/left_out/step", fault["step"] or len(slot["losses"])
            yield f"dept/{source}/left_out/position", fault["positions"][0]
    pairs = updates.cosines({source: slot["sketch"] for source, slot in kept.items()})
    for (first, second), cosine in pairs.items():
        yield f"dept/cosine/{first}-{second}", cosine
