"""The average of the local models of a round, and the share of each source in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Average:
    """The average of one parameter over the sources of a round.

    Attributes:
        value: the average, with the shape and dtype of the parameter. A row that no source holds
            keeps its value from the start of the round.
        held: bool[rows], for a parameter averaged by token row: which rows some source holds;
            ``None`` if every source holds all of the parameter.
    """

    value: Tensor
    held: Tensor | None


@dataclass(frozen=True)
class Share:
    """The share of one source in the average: its weight and its token rows.

    Attributes:
        weight: weight of the source in the mean, above 0.
        rows: for each parameter averaged by token row, int64[n]: the rows of the global parameter
            that correspond to the n rows of the local one.
    """

    weight: float = 1.0
    rows: Mapping[str, Tensor] = field(default_factory=dict)


def shapes(start: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta tensors with the shapes of an update that holds some token rows, by name.

    Args:
        start: the global parameters; only their shapes and dtypes are read.
        rows: for each parameter averaged by token row, int64[n]: the rows of the update.
    """
    return {
        name: value.new_empty(
            (len(rows[name]), *value.shape[1:]) if name in rows else value.shape, device="meta"
        )
        for name, value in start.items()
    }


@torch.no_grad()
def mean_update(
    updates: Iterable[tuple[Mapping[str, Tensor], Share]],
    start: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Compute the weighted mean of pseudo-gradients, summed in float64 in the order given.

    Args:
        updates: pseudo-gradients, start - local, by name. A parameter averaged by token row has
            only the rows of its share.
        start: the global parameters, for shapes, dtypes and devices.
        rows: for each parameter averaged by token row, int64[n]: the rows that some share holds.

    Returns:
        The mean by name. For a parameter averaged by token row it has those n rows.
    """
    sums = {
        name: torch.zeros(like.shape, dtype=torch.float64, device=start[name].device)
        for name, like in shapes(start, rows).items()
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
