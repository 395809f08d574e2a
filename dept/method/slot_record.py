"""The record of one slot: one source trained on one worker in one round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dept.method.faults import Fault


@dataclass
class SlotRecord:
    """The record of one slot, which grows with each local step.

    Attributes:
        losses: loss of each local step, in nats per token.
        rates: learning rate of each local step.
        tokens: tokens trained so far, on all ranks of the worker.
        norm: L2 norm of the update of the body; ``None`` until the slot has ended.
        sketch: sketch of that update, float32[n] (:func:`dept.method.updates.sketch`).
        reach: norm of the pseudo-gradient per unit of learning rate
            (:func:`dept.method.faults.reach`).
        fault: why the update is left out of the average, if it is.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    tokens: int = 0
    norm: float | None = None
    sketch: Tensor | None = None
    reach: float | None = None
    fault: Fault | None = None

    @property
    def steps(self) -> int:
        """Local steps taken."""
        return len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for files and for other workers."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> SlotRecord:
        """Rebuild a record from its ``state_dict``."""
        return cls(**state)
