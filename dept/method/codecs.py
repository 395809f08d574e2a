"""Codecs, which code blocks of float32 numbers in fewer bytes, each block independently.

A codec turns float32[n, block] into uint8[n, width] and back. Since no block depends on another,
any sequence of blocks can be cut out, sent and decoded alone. A new codec is a class with the four
members of :class:`Codec` and a row of :data:`CODECS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dept.errors import ConfigError, is_number, shown

WHERE = "algorithms.dept.compression"


class Codec(Protocol):
    """Codes blocks of numbers.

    Attributes:
        block: how many numbers are coded together.
        width: bytes of a coded block.
    """

    block: int

    @property
    def width(self) -> int:
        """Bytes of a coded block."""

    def encode(self, blocks: Tensor) -> Tensor:
        """Code float32[n, block] as uint8[n, width]."""

    def decode(self, coded: Tensor) -> Tensor:
        """Decode uint8[n, width] to float32[n, block]."""


@dataclass(frozen=True)
class Float32:
    """Each number as it is, for updates that are gathered and not compressed."""

    block: int = 1

    @property
    def width(self) -> int:
        return 4 * self.block

    def encode(self, blocks: Tensor) -> Tensor:
        return blocks.contiguous().view(torch.uint8)

    def decode(self, coded: Tensor) -> Tensor:
        return coded.clone().view(torch.float32)  # the copy is aligned


@dataclass(frozen=True)
class BFloat16:
    """The upper half of a float32, rounded to nearest."""

    block: int = 1024

    @property
    def width(self) -> int:
        return 2 * self.block

    def encode(self, blocks: Tensor) -> Tensor:
        return blocks.to(torch.bfloat16).view(torch.uint8)

    def decode(self, coded: Tensor) -> Tensor:
        return coded.view(torch.bfloat16).to(torch.float32)


@dataclass(frozen=True)
class Integers:
    """Integer multiples of a step, with ``bits`` for each number; each block has its own step.

    The step is the largest magnitude of the block divided by ``2 ** (bits - 1) - 1``. A coded block
    is the step (float32), then the numbers. With 4 bits, the first of two numbers is the lower half
    of a byte.

    Args:
        bits: 8 or 4.
        block: numbers in a block, an even number.
    """

    bits: int
    block: int

    @property
    def width(self) -> int:
        return 4 + self.block * self.bits // 8

    def encode(self, blocks: Tensor) -> Tensor:
        most = 2 ** (self.bits - 1) - 1
        step = blocks.abs().amax(dim=1, keepdim=True) / most
        # No quotient is above ``most`` by more than rounding, so none needs a limit.
        whole = (blocks / step.clamp(min=_TINY)).round_().to(torch.int8)
        if self.bits == 4:
            pairs = whole.add_(8).view(torch.int16)
            numbers = (pairs | pairs >> 4).to(torch.uint8)
        else:
            numbers = whole.view(torch.uint8)
        return torch.cat([step.view(torch.uint8), numbers], dim=1)

    def decode(self, coded: Tensor) -> Tensor:
        step, numbers = _floats(coded[:, :4]), coded[:, 4:]
        if self.bits == 4:
            pairs = numbers.to(torch.int16)
            whole = ((pairs | pairs << 4) & 0x0F0F).view(torch.int8).sub_(8)
        else:
            whole = numbers.view(torch.int8)
        return whole.to(torch.float32).mul_(step)


@dataclass(frozen=True)
class TopK:
    """The largest numbers of each block, with ``bits`` for each; others are 0 (SparseLoCo, 2025).

    A coded block is the largest magnitude (float32), then the indices of the kept numbers in
    ascending order, then their levels: ``2 ** bits`` levels, evenly spaced from minus to plus the
    largest magnitude. Indices and levels are packed without gaps, lowest bit first, and each of the
    two is padded to whole bytes. Of numbers of equal magnitude those with lower indices are kept.

    Args:
        density: fraction of a block that is kept.
        bits: bits of a level, 1 to 8.
        block: numbers in a block.
    """

    density: float
    bits: int
    block: int

    @property
    def kept(self) -> int:
        """Numbers of a block that are kept, at least one."""
        return max(1, round(self.density * self.block))

    @property
    def place_bits(self) -> int:
        """Bits of an index in the block."""
        return max(1, math.ceil(math.log2(self.block)))

    @property
    def width(self) -> int:
        return 4 + _packed(self.kept, self.place_bits) + _packed(self.kept, self.bits)

    def encode(self, blocks: Tensor) -> Tensor:
        places = self._largest(blocks)
        values = blocks.gather(1, places)
        largest = values.abs().amax(dim=1, keepdim=True)
        top = 2**self.bits - 1
        levels = (values / largest.clamp(min=_TINY) + 1) * (top / 2)
        levels = levels.round_().clamp_(0, top).to(torch.int64)
        parts = [
            largest.view(torch.uint8),
            _pack(places, self.place_bits),
            _pack(levels, self.bits),
        ]
        return torch.cat(parts, dim=1)

    def _largest(self, blocks: Tensor) -> Tensor:
        """The indices of the numbers to keep, in ascending order: int64[n, kept]."""
        count, kept = len(blocks), self.kept
        # Magnitudes have the order of their bits, read as integers, in which NaN has a place too.
        sizes = blocks.view(torch.int32) & 0x7FFFFFFF
        groups = self.block
        while groups % 2 == 0 and groups >= 8 * kept:
            groups //= 2
        # As many groups as numbers to keep have their largest number at ``least`` or above, so that
        # all numbers to keep are. These are few, and only they need to be compared.
        least = _at_rank(sizes.view(count, -1, groups).amax(dim=1), kept)
        places = _reached(sizes, least)
        rows = places // self.block
        each = rows.bincount(minlength=count)
        first = (each.cumsum(0) - each).gather(0, rows)
        found = sizes.new_full((count, int(each.max())), -1)
        cells = torch.arange(len(rows), device=rows.device) - first + rows * found.shape[1]
        found.view(-1).scatter_(0, cells, sizes.view(-1).gather(0, places))
        last = _at_rank(found, kept)
        is_kept, equal = found > last, found == last
        is_kept |= equal & (equal.cumsum(dim=1) <= kept - is_kept.sum(dim=1, keepdim=True))
        is_kept = is_kept.view(-1).gather(0, cells)
        return (places - rows * self.block)[is_kept].view(count, kept)

    def decode(self, coded: Tensor) -> Tensor:
        places_end = 4 + _packed(self.kept, self.place_bits)
        places = _unpack(coded[:, 4:places_end], self.kept, self.place_bits)
        levels = _unpack(coded[:, places_end:], self.kept, self.bits).to(torch.float32)
        values = (levels * (2 / (2**self.bits - 1)) - 1) * _floats(coded[:, :4])
        blocks = torch.zeros(len(coded), self.block, dtype=torch.float32, device=coded.device)
        return blocks.scatter_(1, places.clamp(max=self.block - 1), values)


CODECS: dict[str, Callable[..., Codec]] = {
    "bf16": BFloat16,
    "int8": lambda block=512: Integers(8, block),
    "int4": lambda block=1024: Integers(4, block),
    "topk": lambda density=1 / 64, bits=2, block=4096: TopK(density, bits, block),
}
"""Codecs by their names in ``algorithms.dept.compression``, with the defaults of their options."""


def codec_of(name: str, **options: Any) -> Codec:
    """Build the codec of ``algorithms.dept.compression``.

    Args:
        name: a key of :data:`CODECS`.
        options: its options, such as ``block``.

    Raises:
        ConfigError: the name or an option is unknown, or a value is out of range.
    """
    if name not in CODECS:
        raise ConfigError(
            f"{WHERE}.name is {shown(name)}: set it to one of none, {', '.join(CODECS)}"
        )
    for key, (least, most) in {"block": (2, 1 << 16), "bits": (1, 8)}.items():
        value = options.get(key, least)
        if not (type(value) is int and least <= value <= most):
            raise ConfigError(f"{WHERE}.{key} is {shown(value)}: set it to {least} to {most}")
    density = options.get("density", 1)
    if not (is_number(density) and 0 < density <= 1):
        raise ConfigError(f"{WHERE}.density is {shown(density)}: set it above 0, and to 1 at most")
    try:
        codec = CODECS[name](**options)
    except TypeError:
        raise ConfigError(
            f"{WHERE} has an option that {name} does not take: {', '.join(options)}"
        ) from None
    if isinstance(codec, Integers) and codec.block % 2:
        raise ConfigError(f"{WHERE}.block is {codec.block}: set it to an even number")
    return codec


def of_rows(codec: Codec, width: int) -> Codec:
    """The same codec with rows of ``width`` numbers, padded to an even number, as its blocks.

    Args:
        codec: the codec of parameters that are averaged as a whole. It is not changed.
        width: numbers of a token row.
    """
    return replace(codec, block=width + width % 2)  # type: ignore[type-var]


_TINY = torch.finfo(torch.float32).tiny


def _floats(coded: Tensor) -> Tensor:
    return coded.flatten().clone().view(torch.float32).unsqueeze(1)  # the copy is aligned


def _packed(count: int, bits: int) -> int:
    return (count * bits + 7) // 8


def _at_rank(values: Tensor, rank: int) -> Tensor:
    """The number of ``rank``, from 1 for the largest, in each row: int32[n, m] to int32[n, 1]."""
    if not values.is_cpu:
        return values.topk(rank, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    place = values.shape[1] - rank
    ordered = np.partition(values.numpy(), place, axis=1)  # many times as fast as topk on a CPU
    return torch.from_numpy(ordered[:, place : place + 1])


def _reached(values: Tensor, least: Tensor) -> Tensor:
    """Where a flattened int32[n, m] is at least as large as its row's int32[n, 1], ascending."""
    if not values.is_cpu:
        return (values >= least).flatten().nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(values.numpy() >= least.numpy()))  # as fast


def _pack(numbers: Tensor, bits: int) -> Tensor:
    """Pack int64[n, count], each number below ``2 ** bits``, into uint8[n, bytes]; 16 bits at most.

    Eight numbers are ``bits`` bytes: the first of two words of 8 bytes. Each word of ``halves`` has
    four numbers.
    """
    rows, count = numbers.shape
    fours = torch.nn.functional.pad(numbers, (0, -count % 8)).view(rows, -1, 2, 4)
    halves = (fours << _shifts(bits, numbers.device)).sum(dim=-1)
    words, size = halves.clone(), 4 * bits
    if size < 64:
        words[..., 0] |= halves[..., 1] << size
        words[..., 1] >>= 64 - size
    return words.view(torch.uint8)[..., :bits].flatten(1)[:, : _packed(count, bits)]


def _unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """Invert ``_pack``: int64[n, count]."""
    rows, size = len(packed), 4 * bits
    eights = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).view(rows, -1, bits)
    words = torch.nn.functional.pad(eights, (0, 16 - bits)).view(torch.int64)
    if size < 64:
        in_first = words[..., 0] >> size & ((1 << (64 - size)) - 1)
        words[..., 1] = words[..., 1] << (64 - size) | in_first
    numbers = words.unsqueeze(-1) >> _shifts(bits, packed.device) & ((1 << bits) - 1)
    return numbers.flatten(1)[:, :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    """Where four numbers begin in a word."""
    return torch.arange(0, 4 * bits, bits, device=device)
