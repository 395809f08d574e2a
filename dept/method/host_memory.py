"""Copies of tensors on the CPU, in page-locked memory if they come from a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name")


def to_host(values: Mapping[Name, Any], *, copy: bool = True) -> dict[Name, Any]:
    """Copy tensors to the CPU: all at once, and with one wait, if they come from a GPU.

    A GPU copies to and from page-locked (pinned) memory at full speed, while it computes.

    Args:
        values: tensors by name; other values are passed on unchanged.
        copy: whether tensors that are on the CPU already are copied too.
    """
    copies: dict[Name, Any] = {}
    device = None
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_cuda:
            device = value.device
            copies[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            copies[name].copy_(value, non_blocking=True)
        else:
            copies[name] = value.clone() if copy and isinstance(value, Tensor) else value
    if device is not None:
        torch.cuda.current_stream(device).synchronize()
    return copies


def states_to_host(states: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same for an optimizer's state, by parameter name and key; of a CPU it is not copied."""
    flat = {(name, key): v for name, state in states.items() for key, v in state.items()}
    copies = to_host(flat, copy=False)
    return {name: {key: copies[name, key] for key in state} for name, state in states.items()}
