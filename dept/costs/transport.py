"""What a run sends, as formulas; tests hold them against what is counted at the transport."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch is slow to import, and most runs have no compression
    from torch import Tensor

    from dept.method.averaging import Share
    from dept.method.compression import Compression

Shapes = Mapping[str, Sequence[int]]


def every_step_bytes(parameters: int, workers: int, steps: int) -> int:
    """Bytes that all workers send if they average gradients at every step, ring all-reduce.

    Args:
        parameters: of the model, float32.
        workers: that each hold it.
        steps: of training.
    """
    return 2 * (workers - 1) * 4 * parameters * steps


def outer_step_bytes(
    averaged: Shapes,
    by_row: Shapes,
    held: Sequence[np.ndarray],
    *,
    slots_per_worker: int,
) -> int:
    """Bytes of model state that all workers send in one outer step.

    Of ``n`` averaged numbers, worker w averages ``n / W``: it receives that part of each other
    worker, in float32 if they trained one source each and else in float64, and sends its mean,
    in float32, to each of them. Of rows, only those that a worker holds go to who averages them,
    and those that any holds come back.

    Args:
        averaged: shapes of the parameters that are averaged, by name.
        by_row: shapes of those averaged by token row.
        held: for each worker, int64[rows]: the rows that its sources of this round hold, distinct.
        slots_per_worker: sources that each of them trained.
    """
    workers, word = len(held), 4 if slots_per_worker == 1 else 8
    numbers = sum(math.prod(shape) for shape in averaged.values())
    total = (workers - 1) * numbers * (word + 4)
    if not by_row:
        return total
    width = sum(math.prod(shape[1:]) for shape in by_row.values())
    anyone = np.unique(np.concatenate(held))
    ends = [len(anyone) * i // workers for i in range(workers + 1)]
    away = sum(
        len(np.setdiff1d(rows, anyone[ends[worker] : ends[worker + 1]]))
        for worker, rows in enumerate(held)
    )
    return total + width * (word * away + 4 * (workers - 1) * len(anyone))


def coded_step_bytes(
    compression: Compression,
    start: Mapping[str, Tensor],
    shares: Sequence[Mapping[str, Share]],
) -> int:
    """Bytes of model state that all workers send in one outer step of coded updates.

    Each worker but the first sends it the message of each of its sources; the first sends the
    coded mean to every other one.

    Args:
        compression: of updates.
        start: the global parameters; only their shapes count, so they may be on the meta device.
        shares: of each worker, by source.
    """
    import torch

    every = [share for own in shares for share in own.values()]
    names = {name for share in every for name in share.rows}
    union = {name: torch.cat([share.rows[name] for share in every]).unique() for name in names}
    up = sum(_message(compression, start, s.rows) for own in shares[1:] for s in own.values())
    return up + (len(shares) - 1) * _message(compression, start, union)


def _message(
    compression: Compression, start: Mapping[str, Tensor], rows: Mapping[str, Tensor]
) -> int:
    import torch

    like = {
        name: torch.empty((len(rows[name]), *value.shape[1:]), device="meta")
        if name in rows
        else value
        for name, value in start.items()
    }
    return compression.size(like, rows)
