"""Batches on the GPU before they are needed: read, pinned and copied while the GPU computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from dept.data.ahead import ahead

Batch = dict[str, Any]


def batches_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches, prepared in advance; on a machine with a GPU they are on it.

    Args:
        batches: tensors on the CPU by name, and other values; a thread reads them.
    """
    if not torch.cuda.is_available():
        return ahead(batches)
    # A new thread begins with the first GPU, whichever this one uses.
    device = torch.device("cuda", torch.cuda.current_device())
    return _received(ahead(_sent(batches, device)))


def _sent(
    batches: Iterator[Batch], device: torch.device
) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """In the thread: copy each batch on a stream of its own, from page-locked memory."""
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = {
                name: value.pin_memory().to(device, non_blocking=True)
                if isinstance(value, Tensor)
                else value
                for name, value in batch.items()
            }
            done = stream.record_event()
        yield copy, done


def _received(copies: Iterator[tuple[Batch, torch.cuda.Event]]) -> Iterator[Batch]:
    """In the trainer: let its stream wait for the copy, and keep the memory until it was read."""
    with closing(copies) as received:  # type: ignore[type-var]
        for batch, done in received:
            stream = torch.cuda.current_stream()
            stream.wait_event(done)
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(stream)
            yield batch
