"""Numerical faults: what of a round must not reach the global model, and how that is told.

A fault is a plain mapping, since it goes into checkpoints, to other workers and into
``summary.json``:

    source, round (from 1)
    why         what was found, as a part of a sentence
    step        local step at which the loss was not finite (from 1); None: found in the update
    samples     those of its batch, numbers over all shards of the training split in file order
    positions   [first, last] that the slot, or that batch, read in the source's order of samples
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

REMEMBERED = 10
"""Rounds of a source that its update is held against."""

Fault = dict[str, Any]


def not_finite(tensors: Mapping[str, Any]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; what is no tensor is passed."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            return name
    return None


def not_finite_state(states: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The same for an optimizer's state, by parameter name."""
    for name, state in states.items():
        if (key := not_finite(state)) is not None:
            return f"{key} of {name}"
    return None


def reach(norm: float, rates: Sequence[float]) -> float | None:
    """How far an update goes for each unit of learning rate, so that warm-up does not count.

    Args:
        norm: of the update.
        rates: learning rates of its steps.

    Returns:
        ``norm / sum(rates)``; ``None`` where all rates are zero.
    """
    total = math.fsum(rates)
    return norm / total if total > 0 else None


def multiple_of(history: Sequence[float], here: float | None) -> float | None:
    """How many times the median of the last rounds a reach is; ``None`` if there is no saying."""
    usual = median(history[-REMEMBERED:]) if history else 0.0
    return here / usual if here is not None and usual > 0 else None


def remember(history: Sequence[float], here: float | None) -> list[float]:
    """The history after a round: as long as is looked at."""
    return [*history, *([] if here is None else [here])][-REMEMBERED:]


def of_update(
    *,
    values: Mapping[str, Tensor],
    states: Mapping[str, Mapping[str, Any]],
    norm: float,
    here: float | None,
    history: Sequence[float],
    limit: float | None,
) -> str | None:
    """What is wrong with a local model, as a part of a sentence; ``None`` if nothing is.

    Args:
        values: all its parameters.
        states: of its inner optimizer.
        norm: of what would be handed over.
        here: its reach.
        history: reaches of earlier rounds that were not left out.
        limit: ``algorithms.dept.outlier_multiple``.
    """
    if (name := not_finite(values)) is not None:
        return f"{name} was not finite after its last step"
    if (name := not_finite_state(states)) is not None:
        return f"the inner optimizer's {name} was not finite after its last step"
    if not math.isfinite(norm):
        return "the norm of its update was not finite"
    times = multiple_of(history, here)
    if limit is not None and times is not None and times > limit:
        return (
            f"its update, of norm {norm:.4g}, was {times:.4g} times what is usual for its "
            f"learning rate, more than algorithms.dept.outlier_multiple = {limit:g}"
        )
    return None


def describe(fault: Fault) -> str:
    """One sentence with the identity of the batch, or of all that the slot read."""
    first, last = fault["positions"]
    if fault["step"] is None:
        where = f"it read positions {first} to {last} of its order of samples"
    else:
        samples = ", ".join(map(str, fault["samples"]))
        where = (
            f"the batch was samples {samples} of its training split, positions {first} to {last}"
        )
    return f"source {fault['source']} in round {fault['round']}: {fault['why']} ({where})"


def told(faults: Iterable[Fault], all_of_round: bool) -> list[str]:
    """What to say of the faults of a round whose updates are left out."""
    lines = [f"{describe(fault)}: its update is left out of the average" for fault in faults]
    if all_of_round:
        lines.append("no update of this round is left: the global model stays as it was")
    return lines
