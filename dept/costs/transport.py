"""The bytes that a run sends, as formulas; tests compare them with counts at the transport."""

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
    """Bytes that all workers send if they average gradients at every step by a ring all-reduce.

    Args:
        parameters: number of parameters of the model, float32.
        workers: number of workers, each with a copy of the model.
        steps: number of training steps.
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

    Each of W workers averages ``n / W`` of ``n`` numbers. It receives this part from each other
    worker, in float32 if they trained one source each and otherwise in float64, and sends the mean
    in float32 to each of them. Of a parameter averaged by token row, a worker sends only the rows
    that it holds, and receives the rows that any worker holds.

    Args:
        averaged: shapes of the parameters that are averaged, by name.
        by_row: shapes of those averaged by token row.
        held: for each worker, int64[rows]: the distinct rows that its sources of this round hold.
        slots_per_worker: sources that each worker trained.
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
    of_workers: Sequence[Mapping[str, Share]],
) -> int:
    """Bytes of model state that all workers send in one outer step, if updates are gathered.

    Each other worker sends the message of each of its sources to the first one, which sends the
    coded result to every other worker.

    Args:
        compression: compression of updates; :data:`dept.method.compression.LOSSLESS` for none.
        start: the global parameters; only their shapes are read, so meta tensors are fine.
        of_workers: for each worker, the shares of its sources by name.
    """
    import torch

    from dept.method.averaging import shapes

    every = [share for own in of_workers for share in own.values()]
    names = {name for share in every for name in share.rows}
    union = {name: torch.cat([share.rows[name] for share in every]).unique() for name in names}
    up = sum(
        compression.size(shapes(start, share.rows), share.rows)
        for own in of_workers[1:]
        for share in own.values()
    )
    return up + (len(of_workers) - 1) * compression.size(shapes(start, union), union)


def federation_round_bytes(
    averaged: Shapes,
    by_row: Shapes,
    rows: Sequence[int],
    *,
    silos: int,
    compression: Compression | None = None,
) -> tuple[int, int]:
    """Bytes of arrays in one round of a federation, without what Flower adds.

    The server sends the whole global model to every silo, in float32. A silo sends the local model
    of each of its drawn sources, or its coded update.

    Args:
        averaged: shapes of the parameters that are averaged, by name.
        by_row: shapes of those averaged by token row.
        rows: for each drawn source, the number of token rows that it holds; only its length counts
            if nothing is averaged by row.
        silos: how many silos take part.
        compression: compression of updates; the global model is sent as it is.

    Returns:
        Bytes that the server sends, and bytes that all silos send.
    """
    numbers = sum(math.prod(shape) for shape in averaged.values())
    widths = [math.prod(shape[1:]) for shape in by_row.values()]
    down = 4 * (numbers + sum(math.prod(shape) for shape in by_row.values()))
    if compression is None:
        return silos * down, sum(4 * (numbers + held * sum(widths)) for held in rows)
    width = widths[0] if widths else 0
    each = [compression.bytes_of(numbers, held * len(widths), width) for held in rows]
    return silos * down, round(sum(each))
