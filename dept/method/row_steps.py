"""The outer step of a parameter whose rows are held in some rounds and not in others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

PREFIX = "rows."
BEGUN = f"{PREFIX}begun"

State = Mapping[str, Tensor]
Step = Callable[[Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


def step_rows(
    step: Step, start: Tensor, gradient: Tensor, held: Tensor, before: State
) -> tuple[Tensor, dict[str, Tensor]]:
    """Step each held row as if it were a parameter of its own; the others keep value and state.

    Rows with the same scalar state (such as Adam's count of steps) are stepped together, as one
    smaller matrix. That is the same for an optimizer that works by element.

    Args:
        step: steps a parameter: given its value, its gradient and its state by key, which is empty
            before its first step, it gives the new value and state. It may write into the old ones.
        start: the parameter, [rows, ...].
        gradient: of its shape.
        held: bool[rows], which rows to step.
        before: what this gave after the last step; empty before the first one.

    Returns:
        The new value and the new state. What the optimizer keeps by element has the shape of the
        parameter. A scalar of it is a tensor [rows] under ``rows.<key>``. ``rows.begun``, a
        bool[rows], says which rows were ever stepped; the state of others means nothing.
    """
    value, after = start.clone(), {key: state.clone() for key, state in before.items()}
    for rows in _alike(held, before):
        own = _state_of(rows, before)
        value[rows], own = step(start[rows], gradient[rows], own)
        for key, state in own.items():
            shape, name = (start.shape, key) if state.dim() else (start.shape[:1], PREFIX + key)
            if name not in after:
                after[name] = state.new_zeros(shape, device=start.device)
            after[name][rows] = state.to(start.device)
    if after:
        after[BEGUN] = held | before[BEGUN] if before else held.clone()
    return value, after


def _state_of(rows: Tensor, before: State) -> dict[str, Tensor]:
    """What the optimizer kept of rows with equal scalar state, as it kept it."""
    if not before or not before[BEGUN][rows[0]]:
        return {}
    return {
        key.removeprefix(PREFIX): state[rows[0]].clone() if key.startswith(PREFIX) else state[rows]
        for key, state in before.items()
        if key != BEGUN
    }


def _alike(held: Tensor, before: State) -> Iterator[Tensor]:
    """Numbers of the held rows, int64[n], by equal scalar state."""
    rows = held.nonzero().flatten()
    if not len(rows):
        return
    if not before:
        yield rows
        return
    marks = [state[rows].double() for key, state in before.items() if key.startswith(PREFIX)]
    _, group, sizes = torch.stack(marks, dim=1).unique(
        dim=0, return_inverse=True, return_counts=True
    )
    yield from rows[group.argsort(stable=True)].split(sizes.tolist())
