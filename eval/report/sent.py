"""What a method exchanges while it pre-trains, for a table and for a plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dept.evaluation.report.run_records import Record, by_method, number, select, sequential_steps

BYTES_PER_PARAMETER = 4  # averages are taken in float32


@dataclass(frozen=True)
class Sent:
    """Means over the runs of a method; ``None`` where no run has it.

    Attributes:
        per_step: parameters that a source gives to the average, spread over its steps.
        reduction: how many times that goes into the whole model.
        exchanged: bytes that a source gives to the average in all its steps.
        counted: bytes that the runs' workers sent, counted at the transport.
        every_step: bytes they would have sent, exchanging every gradient.
    """

    per_step: float | None
    reduction: float | None
    exchanged: float | None
    counted: float | None
    every_step: float | None


def sent(records: list[Record], corpus: str) -> dict[str, Sent]:
    """Of each method whose pre-training counted it.

    A body that trains on one source alone is averaged with no other, so it gives nothing,
    though its run has what it would.
    """
    found = {}
    for method, runs in by_method(select(records, corpus, "pretrain")).items():
        counts = [run.get("communication") or {} for run in runs]
        if any(counts) and all(run["source"] for run in runs):
            found[method] = Sent(0.0, None, 0.0, None, None)
            continue
        per_step = _mean(entry.get("parameters_per_step") for entry in counts)
        reduction = _mean(entry.get("reduction") for entry in counts)
        if reduction is None and per_step:
            reduction = 1.0  # STD's runs leave it out: the whole model, at every step
        exchanged = None
        if per_step is not None and (steps := _mean(map(sequential_steps, runs))):
            exchanged = per_step * steps * BYTES_PER_PARAMETER
        counted = _mean(entry.get("sent_bytes") for entry in counts)
        every_step = _mean(entry.get("every_step_bytes") for entry in counts)
        if any(counts):
            found[method] = Sent(per_step, reduction, exchanged, counted, every_step)
    return found


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in map(number, values) if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
