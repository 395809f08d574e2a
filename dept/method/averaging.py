"""What the sources of a round made of the global parameters, and how each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
