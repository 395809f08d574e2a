"""The outer step of a parameter averaged by token row, some of whose rows no source holds."""

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
    """Step each held row as a separate parameter; the other rows keep their value and state.

    Rows with equal scalar state (such as Adam's step count) are stepped together, as one smaller
    matrix. For an optimizer that works by element the result is the same.

    Args:
        step: steps a parameter. It takes value, gradient and state by key (empty before the first
            step), and returns the new value and state. It may write into the old ones.
        start: the parameter, [rows, ...].
        gradient: its gradient, of the same shape.
        held: bool[rows], which rows to step.
        before: the state that the previous call returned; empty before the first one.

    Returns:
        The new value and the new state. State by element has the shape of the parameter. A scalar
        becomes a tensor [rows] under ``rows.<key>``. ``rows.begun``, bool[rows], marks the rows
        that were ever stepped; the state of other rows has no meaning.
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
    """The optimizer's own state of rows that have equal scalar state."""
    if not before or not before[BEGUN][rows[0]]:
        return {}
    return {
        key.removeprefix(PREFIX): state[rows[0]].clone() if key.startswith(PREFIX) else state[rows]
        for key, state in before.items()
        if key != BEGUN
    }


def _alike(held: Tensor, before: State) -> Iterator[Tensor]:
    """Groups of held rows with equal scalar state, each int64[n] of row numbers."""
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
