"""Averages of the inner optimizer's moments, at periods of their own (``inner_state: average``).

After DES-LOC (Iacob et al., ICLR 2026, Algorithm 1 and its section on momenta): parameters, first
and second moments are averaged over the sources, the moments less often than the parameters. What
DEPT adds are sources that are not drawn in every round, rows that not every source holds, and
sources that differ so much that a moment of one may not fit the other moment of another. So the
averages are global state, and :func:`limited` keeps the two moments of a source consistent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dept.errors import ConfigError
from dept.method.averaging import Average
from dept.method.moment_schedule import FIRST, SECOND

MOMENTS = (FIRST, SECOND)

States = dict[str, dict[str, Any]]


def limit_of(optimizer: Optimizer) -> float:
    """The largest ``|m| / sqrt(v)`` that Adam's recurrence can reach, for its betas.

    By the Cauchy-Schwarz inequality, ``m = (1 - b1) sum b1^i g_i`` and ``v = (1 - b2) sum b2^i
    g_i^2`` have ``|m| <= (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) sqrt(v)``. A step preserves this
    and so does an average of both moments over the same sources.

    Args:
        optimizer: the inner optimizer.

    Raises:
        ConfigError: it has no betas, or betas without such a limit.
    """
    limits = []
    for group in optimizer.param_groups:
        if "betas" not in group:
            raise _without_moments(type(optimizer).__name__)
        first, second = group["betas"]
        if first**2 >= second:
            raise ConfigError(
                f"optimizer.betas are {first} and {second}, with which a first moment has no limit "
                f"beside the second: set betas[1] above {first**2:g} for algorithms.dept."
                f"inner_state: average, or set that to keep"
            )
        limits.append((1 - first) / math.sqrt((1 - second) * (1 - first**2 / second)))
    return min(limits)


def refuse_without_moments(name: str, build: Callable[..., Optimizer]) -> None:
    """Refuse an optimizer whose state is not a first moment, a second moment and a step count.

    Args:
        name: its name in the yaml.
        build: builds it for a list of parameters.

    Raises:
        ConfigError: its state is another one.
    """
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.ones(2, 3)
    optimizer = build([parameter])
    optimizer.step()
    state = optimizer.state[parameter]
    like = {key for key, entry in state.items() if getattr(entry, "shape", None) == (2, 3)}
    if like != set(MOMENTS) or state.keys() - like != {"step"}:
        raise _without_moments(name)
    limit_of(optimizer)


def _without_moments(name: str) -> ConfigError:
    return ConfigError(
        f"algorithms.dept.inner_state is average, but the state of optimizer {name} is not just "
        f"{FIRST}, {SECOND} and a step count: set optimizer.name to decoupled_adamw, or "
        f"algorithms.dept.inner_state to keep"
    )


def limited(first: Tensor, second: Tensor, limit: float) -> Tensor:
    """The first moment, with a magnitude that Adam permits beside the second.

    Without it, a first moment of other sources beside a second moment of the source itself moves a
    parameter that the source hardly trains by many times the learning rate.

    Args:
        first: first moments, of any shape.
        second: second moments, of the same shape.
        limit: the result of :func:`limit_of`.
    """
    most = limit * second.sqrt()
    return first.clamp(-most, most)


class MomentAverages:
    """The averaged moments of shared parameters: global state of a run, on the CPU.

    Args:
        interval: rounds between two averages, by moment.
        limit: the result of :func:`limit_of`.

    Attributes:
        values: the averages by moment and parameter; empty before the first one.
        rounds: int64 of no or one dimension, by moment and parameter: the round, from 1, of the
            average of the parameter, or of each of its token rows; 0 before the first one.
        step: the largest step count of the sources in any average.
    """

    def __init__(self, interval: Mapping[str, int], limit: float) -> None:
        self.interval = dict(interval)
        self.limit = limit
        self.values: dict[str, dict[str, Tensor]] = {}
        self.rounds: dict[str, dict[str, Tensor]] = {}
        self.step = 0.0

    def start(self, moment: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The averages so far, which updates are relative to: zeros before the first one.

        Args:
            moment: ``exp_avg`` or ``exp_avg_sq``.
            like: shared global parameters by name, for shapes, dtypes and devices.
        """
        before = self.values.get(moment, {})
        return {
            name: before[name].to(value.device, copy=True)
            if name in before
            else torch.zeros_like(value)
            for name, value in like.items()
        }

    def take(
        self, averages: Mapping[str, Mapping[str, Average]], step: float, round_number: int
    ) -> None:
        """Take the averages of a round.

        A second moment below zero, which coding can make, becomes zero.

        Args:
            averages: averages by moment and parameter.
            step: the largest step count of the sources in them.
            round_number: number of the round, from 1.
        """
        self.step = max(self.step, step)
        for moment, of_moment in averages.items():
            values, rounds = self.values.setdefault(moment, {}), self.rounds.setdefault(moment, {})
            for name, average in of_moment.items():
                value = average.value.cpu()
                values[name] = value.clamp(min=0) if moment == SECOND else value
                if average.held is None:
                    rounds[name] = torch.tensor(round_number)
                else:
                    before = rounds.get(name, torch.zeros(len(value), dtype=torch.int64))
                    rounds[name] = torch.where(average.held.cpu(), round_number, before)

    def begin(
        self, own: States, since: int, local: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> States:
        """The inner state that a source starts a slot with.

        Each moment, or each token row of it, is the average or the one that the source kept,
        whichever is of the later round; an average that the source took part in is the later one.
        A source keeps its step count. One that has none starts from the averages with the largest
        step count of those in them, or with no state before every moment has an average.

        Args:
            own: inner state that the source kept, by parameter; not changed.
            since: the round, from 1, that it is of; 0 for a source that was never trained.
            local: shared parameters as the source starts with them, by name, for shapes.
            rows: for each parameter averaged by token row, int64[n]: the global rows of its n rows.
        """
        states = dict(own)
        known = [moment for moment in MOMENTS if moment in self.values]
        if not known or not (since or len(known) == len(MOMENTS)):
            return states
        for name, value in local.items():
            kept = own.get(name) or {"step": torch.tensor(self.step)}
            taken, state = torch.tensor(False), {"step": kept["step"]}
            for moment in MOMENTS:
                state[moment] = kept[moment] if moment in kept else torch.zeros_like(value).cpu()
                if moment not in known:
                    continue
                average, at = self.values[moment][name], self.rounds[moment][name]
                if name in rows:
                    held = rows[name].cpu()
                    average, at = average[held], at[held]
                newer = at >= max(since, 1)
                newer = newer.view(*newer.shape, *[1] * (value.dim() - newer.dim()))
                state[moment] = torch.where(newer, average, state[moment])
                taken = taken | newer
            fits = limited(state[FIRST], state[SECOND], self.limit)
            state[FIRST] = torch.where(taken, fits, state[FIRST])
            states[name] = state
        return states

    def state_dict(self) -> dict[str, Any]:
        """Averages, their rounds, and the step count, for a checkpoint."""
        return {"values": self.values, "rounds": self.rounds, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a ``state_dict``; tensors are kept by reference."""
        self.values, self.rounds = dict(state["values"]), dict(state["rounds"])
        self.step = state["step"]
