"""How far the sources moved the body in a round, and how much they agree."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

SKETCH_SIZE = 8_192
KEPT_SIGNS = 1 << 24  # of a larger body on a CPU, signs are drawn for each slot


@torch.no_grad()
def sketch(update: Mapping[str, Tensor], seed: int = 0, size: int = SKETCH_SIZE) -> Tensor:
    """Project an update onto ``size`` numbers that keep its inner products with other updates.

    Keeping whole updates until the round ends would need a copy of the model for every source.
    Each coordinate gets a random sign and is added to the bucket of its index modulo ``size``
    (count sketch, Charikar et al. 2002); the same ``seed`` gives the same signs. Inner products
    are unbiased. The cosine of two updates has a standard error of about ``size ** -0.5`` (1 %),
    and is exact if the update has at most ``size`` coordinates.

    Args:
        update: tensors by name, the same names and shapes for all updates to be compared.
        seed: seed of the signs.
        size: length of the sketch.

    Returns:
        float32[size].
    """
    tensors = [update[name].detach().flatten() for name in sorted(update)]
    counts = tuple(tensor.numel() for tensor in tensors)
    total, offset = torch.zeros(size, device=tensors[0].device), 0
    # One tensor at a time: the whole update once more would be the peak of memory in a round.
    for tensor, signs in zip(tensors, _signs(counts, seed, total.device), strict=True):
        edges = (offset % size, -(offset + len(tensor)) % size)
        padded = torch.nn.functional.pad(tensor.float() * signs, edges)
        total += padded.reshape(-1, size).sum(dim=0)
        offset += len(tensor)
    return total.cpu()


def _signs(counts: tuple[int, ...], seed: int, device: torch.device) -> Iterable[Tensor]:
    """int8[count] of -1 and 1 for each count, the same on every device."""
    if device.type == "cpu" and sum(counts) > KEPT_SIGNS:
        return _drawn_signs(counts, seed)
    return _kept_signs(counts, seed, device)


def _drawn_signs(counts: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for count in counts:
        yield torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8) * 2 - 1


@functools.lru_cache(maxsize=1)
def _kept_signs(counts: tuple[int, ...], seed: int, device: torch.device) -> list[Tensor]:
    """A byte for each parameter; a GPU would wait for the CPU to draw them."""
    return [signs.to(device) for signs in _drawn_signs(counts, seed)]


def norm(update: Mapping[str, Tensor]) -> float:
    """L2 norm of an update, over all its tensors."""
    norms = [torch.linalg.vector_norm(tensor.detach().float()) for tensor in update.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def cosines(sketches: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
    """Cosine between the updates of every two sources, from their sketches; 0 if one is zero."""
    names = list(sketches)
    return {
        (first, second): float(
            torch.nn.functional.cosine_similarity(sketches[first], sketches[second], dim=0)
        )
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }
