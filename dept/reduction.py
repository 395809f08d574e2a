"""From the local models of a round to their average, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


class Reduction:
    """Weighted mean of local models, summed one source at a time (Algorithm 1, line 8).

    Sums are in float64: the mean of equal values is that value, the mean of one is itself, and
    the order in which sources arrive changes nothing that float32 can show (but for a tie, one
    unit in the last place).

    Args:
        start: the global parameters that every source starts from, by name. Kept by reference.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.start = start
        self.totals: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.sent_bytes = 0

    @torch.no_grad()
    def add(
        self, local: Mapping[str, Tensor], weight: float, rows: Mapping[str, Tensor] | None = None
    ) -> None:
        """Hand over the local model of one source.

        Args:
            local: its parameters by name; only those that the variant shares.
            weight: its weight in the mean, above 0.
            rows: for a parameter averaged by token row, int64[n]: the rows of the global
                parameter that ``local[name]``, of n rows, holds.

        Raises:
            ValueError: the weight is not positive, or a shape is not that of its global rows.
        """
        if not weight > 0:
            raise ValueError(f"the weight of a source must be above 0, not {weight}")
        rows = rows or {}
        for name, tensor in local.items():
            start, held = self.start[name], rows.get(name)
            expected = start.shape if held is None else (held.numel(), *start.shape[1:])
            if tensor.shape != torch.Size(expected):
                raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected)}")
            if name not in self.totals:
                self.totals[name] = torch.zeros_like(start, dtype=torch.float64)
                count = () if held is None else (start.shape[0],)
                self.weights[name] = torch.zeros(count, dtype=torch.float64, device=start.device)
            self.sent_bytes += tensor.numel() * tensor.element_size()
            weighted = tensor.to(torch.float64) * weight
            if held is None:
                self.totals[name] += weighted
                self.weights[name] += weight
            else:
                held = held.to(start.device)
                self.totals[name].index_add_(0, held, weighted)
                self.weights[name].index_add_(
                    0, held, torch.full_like(held, weight, dtype=torch.float64)
                )

    @torch.no_grad()
    def averages(self) -> dict[str, Average]:
        """The mean of what was handed over, for each parameter that was."""
        result = {}
        for name, total in self.totals.items():
            start, weight = self.start[name], self.weights[name]
            if weight.dim() == 0:
                result[name] = Average(value=(total / weight).to(start.dtype), held=None)
                continue
            held = weight > 0
            value = start.clone()
            by_row = weight[held].reshape(-1, *[1] * (total.dim() - 1))
            value[held] = (total[held] / by_row).to(start.dtype)
            result[name] = Average(value=value, held=held)
        return result

    def state_dict(self) -> dict[str, object]:
        """The sums so far, to go on from in mid-round."""
        return {"totals": self.totals, "weights": self.weights, "sent_bytes": self.sent_bytes}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore what ``state_dict`` gave."""
        self.totals = {
            name: total.to(self.start[name].device) for name, total in state["totals"].items()
        }
        self.weights = {
            name: weight.to(self.start[name].device) for name, weight in state["weights"].items()
        }
        self.sent_bytes = state["sent_bytes"]
