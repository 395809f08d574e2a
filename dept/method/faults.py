"""Numerical faults: updates that must not reach the global model, and the messages about them.

A fault is a plain mapping, since it is stored in checkpoints, sent to other workers and written to
``summary.json``:

    source, round (from 1)
    why         what was found, as a part of a sentence
    step        local step at which the loss was not finite (from 1); None: found in the update
    samples     samples of the batch, numbered over all shards of the training split in file order
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
"""How many earlier rounds of a source its update is compared with."""

Fault = dict[str, Any]


def not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity; other values are skipped."""
    given = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in given.values():
        # One value that is not finite makes the sum so, and a sum is computed much faster.
        by_device.setdefault(value.device, []).append(value.sum(dtype=torch.float32))
    sums = [torch.stack(of_one) for of_one in by_device.values()]
    if all(bool(torch.isfinite(of_one).all()) for of_one in sums):  # one wait for a GPU
        return None
    # Sums of large values may overflow.
    return next((n for n, v in given.items() if not bool(torch.isfinite(v).all())), None)


def not_finite_state(states: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name of the first entry of an optimizer's state, by parameter name, that is not finite."""
    return not_finite(
        {f"{key} of {name}": v for name, state in states.items() for key, v in state.items()}
    )


def reach(norm: float, rates: Sequence[float]) -> float | None:
    """Norm of an update per unit of learning rate, which makes rounds of warm-up comparable.

    Args:
        norm: L2 norm of the update.
        rates: learning rates of its local steps.

    Returns:
        ``norm / sum(rates)``; ``None`` if all rates are zero.
    """
    total = math.fsum(rates)
    return norm / total if total > 0 else None


def multiple_of(history: Sequence[float], here: float | None) -> float | None:
    """A reach as a multiple of the median of the last rounds.

    Args:
        history: reaches of earlier rounds, oldest first.
        here: reach of this round.

    Returns:
        The multiple; ``None`` if there is no reach to compare, or no history.
    """
    usual = median(history[-REMEMBERED:]) if history else 0.0
    return here / usual if here is not None and usual > 0 else None


def remember(history: Sequence[float], here: float | None) -> list[float]:
    """The history after a round, with at most ``REMEMBERED`` entries.

    Args:
        history: reaches (:func:`reach`) of earlier rounds of a source, oldest first.
        here: its reach of this round; ``None`` if there is none, which adds no entry.
    """
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
    """Describe what is wrong with a local model, as a part of a sentence.

    Args:
        values: all its parameters by name.
        states: state of its inner optimizer by parameter name.
        norm: L2 norm of the pseudo-gradient that would be communicated.
        here: its reach (:func:`reach`).
        history: reaches of earlier rounds of the source that entered the average.
        limit: ``algorithms.dept.outlier_multiple``.

    Returns:
        The description; ``None`` if nothing is wrong.
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
    """One sentence that identifies the batch, or the range of samples that the slot read."""
    first, last = fault["positions"]
    if fault["step"] is None:
        where = f"it read positions {first} to {last} of its order of samples"
    else:
        samples = ", ".join(map(str, fault["samples"]))
        where = (
            f"the batch was samples {samples} of its training split, positions {first} to {last}"
        )
    return f"source {fault['source']} in round {fault['round']}: {fault['why']} ({where})"


def messages(faults: Iterable[Fault], all_of_round: bool) -> list[str]:
    """The messages about the faults of a round whose updates are left out of the average.

    Args:
        faults: the faults of the round, at most one for each source.
        all_of_round: whether every source of the round has a fault. Then Algorithm 1, line 9, is
            skipped, and ``theta[t]`` equals ``theta[t-1]``.

    Returns:
        One sentence for each fault, and one about the round if no update is left.
    """
    lines = [f"{describe(fault)}: its update is left out of the average" for fault in faults]
    if all_of_round:
        lines.append("no update of this round is left: the global model is unchanged")
    return lines
