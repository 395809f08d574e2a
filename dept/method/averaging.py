"""What the sources of a round made of the global parameters, and how each counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Average:
    """The average of what the sources of a round made of one parameter.

    Attributes:
        value: the average, of the shape and dtype of the parameter. A row that no source holds
            is the row the round started from.
        held: bool[rows] for a parameter averaged by token row, which rows some source holds;
            ``None`` where every source holds everything.
    """

    value: Tensor
    held: Tensor | None


@dataclass(frozen=True)
class Share:
    """What is known beforehand of the local model of one source.

    Attributes:
        weight: its weight in the mean, above 0.
        rows: for a parameter averaged by token row, int64[n]: the rows of the global parameter
            that the local one, of n rows, holds.
    """

    weight: float = 1.0
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def mean_update(
    updates: Iterable[tuple[Mapping[str, Tensor], Share]],
    start: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weighted mean of pseudo-gradients, summed in float64 in the order given.

    Args:
        updates: start - local by name, of which parameters by row have the rows of their share.
        start: the global parameters, for shapes, dtypes and devices.
        rows: for each parameter averaged by token row, int64[n]: the rows that some share holds.

    Returns:
        The mean by name; of parameters by row, for those n rows.
    """
    sums = {
        name: torch.zeros((len(rows[name]), *value.shape[1:]), dtype=torch.float64).to(value.device)
        if name in rows
        else torch.zeros_like(value, dtype=torch.float64)
        for name, value in start.items()
    }
    weights = {name: torch.zeros(len(ids), dtype=torch.float64) for name, ids in rows.items()}
    total = 0.0
    for update, share in updates:
        total += share.weight
        for name, value in update.items():
            if name not in rows:
                sums[name] += value.to(torch.float64) * share.weight
                continue
            places = torch.searchsorted(rows[name], share.rows[name].to(rows[name].device))
            sums[name][places] += value.to(torch.float64) * share.weight
            weights[name][places.cpu()] += share.weight
    means = {}
    for name, value in sums.items():
        weight = (
            weights[name].to(value.device).view(-1, *[1] * (value.dim() - 1))
            if name in rows
            else total
        )
        means[name] = (value / weight).to(start[name].dtype)
    return means
