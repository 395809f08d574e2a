"""Average the local models of a round across workers, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dept.method.averaging import Average, Share
from dept.transport.topology import Place
from dept.transport.workers import Workers


class ExactReduction:
    """Weighted mean of local models (Algorithm 1, line 8).

    A worker that trains one source communicates its local model unchanged. A worker that trains
    several sums them first, in float64, and communicates the sum: 8 bytes per parameter, for any
    number of sources. The sum over workers is in float64 as well. So the float32 result is the same
    to the last bit, whichever worker trained which source: float32 values of similar magnitude are
    added in float64 without rounding. (Only if their magnitudes differ by a factor above 2^26, or
    weights have many digits, a tie may round to the neighbouring float32 value.) The mean of equal
    values is that value, and the mean of one value is itself.

    Each parameter is cut into one part per worker. A worker receives its part from all others,
    divides, and sends the mean in float32 to all. This sends as much as a ring all-reduce, and the
    order of summation does not depend on the number of workers. If all sources of a worker are left
    out of the round, it has no local model and sends nothing.

    Args:
        start: the global parameters that every source starts from, by name. Kept by reference.
        bucket: elements exchanged at once; the exchange needs a few times as much memory. By
            default an eighth of the model, within limits: each bucket waits for the network.
    """

    def __init__(self, start: Mapping[str, Tensor], bucket: int | None = None) -> None:
        self.start = start
        size = sum(value.numel() for value in start.values())
        self.bucket = bucket or min(max(1 << 20, size // 8), 1 << 24)
        self.shares: list[Share] = []
        # In the shape of the global parameters: one local model in float32, without its weight, or
        # the weighted sum of several in float64.
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, source: str, local: Mapping[str, Tensor], share: Share) -> None:
        """Add the local model of one source.

        Args:
            source: its name; no sum depends on it.
            local: its parameters by name; only those that the variant shares.
            share: its weight and the rows it holds.

        Raises:
            ValueError: the weight is not positive, or a shape differs from that of its global rows.
        """
        if not share.weight > 0:
            raise ValueError(f"the weight of a source must be above 0, not {share.weight}")
        if len(self.shares) == 1:
            weight = self.shares[0].weight
            self._sums = {n: value.to(torch.float64) * weight for n, value in self._sums.items()}
        for name, tensor in local.items():
            start, held = self.start[name], share.rows.get(name)
            expected = start.shape if held is None else (held.numel(), *start.shape[1:])
            if tensor.shape != torch.Size(expected):
                raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected)}")
            index = slice(None) if held is None else held.to(start.device)
            if not self.shares and held is None:
                self._sums[name] = tensor.clone()
            elif not self.shares:
                self._sums[name] = torch.zeros_like(start)
                self._sums[name][index] = tensor
            else:
                self._sums[name][index] += tensor.to(torch.float64) * share.weight
        self.shares.append(share)

    @torch.no_grad()
    def averages(
        self,
        workers: Workers | None = None,
        shares: Sequence[Mapping[str, Share]] | None = None,
        *,
        stage: str = "the outer step",
    ) -> dict[str, Average]:
        """The mean of the local models of all workers, on every rank; their sums are dropped.

        Args:
            workers: the workers of the job; this one alone by default. All must make this call.
            shares: for each worker, the shares of the local models that it has; not all empty.
            stage: name of this point in errors.

        Returns:
            The average of every parameter of ``start``, by name.

        Raises:
            WorkerLost: another worker did not arrive.
        """
        workers = workers or Workers(Place())
        every = [list(own.values()) for own in shares] if shares else [self.shares]
        by_row = {name for own in every for share in own for name in share.rows}
        contributions = [_Contribution.of(self.start, own, sorted(by_row)) for own in every]
        held = {
            name: torch.stack([c.held[name] for c in contributions]).any(dim=0)
            for name in contributions[0].held
        }
        values = {name: value.clone() for name, value in self.start.items()}
        if workers.leads:
            names = list(self.start)
            for parts in _buckets(self.start, names, held, workers.count, self.bucket):
                self._exchange(parts, values, contributions, workers, stage)
        self._sums = {}
        workers.share(list(values.values()))
        return {name: Average(value, held.get(name)) for name, value in values.items()}

    def _exchange(
        self,
        parts: Sequence[Sequence[_Segment]],
        values: Mapping[str, Tensor],
        contributions: Sequence[_Contribution],
        workers: Workers,
        stage: str,
    ) -> None:
        """Average one bucket into ``values``: each part goes to its worker, its mean to all."""
        here = workers.place.worker
        mine, own = parts[here], contributions[here]
        # All workers must send one dtype, although only some may have several local models.
        several = any(c.sources > 1 for c in contributions)
        own_sums = self._sums or self.start
        sums = [torch.cat([p.of(own_sums)[p.index(own)].flatten() for p in part]) for part in parts]
        sums = [each.to(torch.float64) if several else each for each in sums]
        sizes = [sum(p.numel(self.start, c) for p in mine) for c in contributions]
        received = workers.all_to_all(sums, sizes, kind="model", stage=stage)
        means = torch.cat(
            [
                _mean(p, self.start, pieces, contributions).flatten()
                for p, pieces in zip(
                    mine, _pieces(mine, self.start, received, contributions), strict=True
                )
            ]
        )
        sizes = [sum(p.numel(self.start) for p in part) for part in parts]
        every = workers.all_to_all([means] * workers.count, sizes, kind="model", stage=stage)
        for part, flat in zip(parts, every, strict=True):
            lengths = [p.numel(self.start) for p in part]
            for p, mean in zip(part, flat.split(lengths), strict=True):
                target = p.of(values)
                target[p.index()] = mean.reshape(-1, *target.shape[1:])


@dataclass(frozen=True)
class _Contribution:
    """The contribution of one worker to the mean: its weights and its rows."""

    sources: int
    weight: float  # sum over its sources, for a parameter that every source holds
    held: dict[str, Tensor]  # bool[rows] by name
    row_weights: dict[str, Tensor]  # float64[rows] by name

    @classmethod
    def of(
        cls, start: Mapping[str, Tensor], shares: Sequence[Share], by_row: Sequence[str]
    ) -> _Contribution:
        weights = {}
        for name in by_row:
            tensor = start[name]
            weights[name] = torch.zeros(len(tensor), dtype=torch.float64, device=tensor.device)
            for share in shares:
                weights[name][share.rows[name].to(tensor.device)] += share.weight
        held = {name: weight > 0 for name, weight in weights.items()}
        return cls(len(shares), sum(share.weight for share in shares), held, weights)

    @property
    def scale(self) -> float:
        """The factor that its values still lack."""
        return self.weight if self.sources == 1 else 1.0


@dataclass(frozen=True)
class _Segment:
    """A piece of a parameter: a range of its flattened elements, or of its averaged rows."""

    name: str
    first: int
    last: int
    ids: Tensor | None = None  # all rows of the parameter that some source holds

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor that it indexes."""
        return tensors[self.name].view(-1) if self.ids is None else tensors[self.name]

    def index(self, contribution: _Contribution | None = None) -> slice | Tensor:
        """The index of its elements or rows; with ``contribution``, only those of that worker."""
        if self.ids is None:
            is_empty = contribution is not None and not contribution.sources
            return slice(self.first, self.first if is_empty else self.last)
        ids = self.ids[self.first : self.last]
        return ids if contribution is None else ids[contribution.held[self.name][ids]]

    def numel(
        self, tensors: Mapping[str, Tensor], contribution: _Contribution | None = None
    ) -> int:
        """How many numbers ``index`` selects."""
        if self.ids is None:
            index = self.index(contribution)
            return index.stop - index.start
        return len(self.index(contribution)) * tensors[self.name][0].numel()


def _buckets(
    start: Mapping[str, Tensor],
    names: Sequence[str],
    held: Mapping[str, Tensor],
    workers: int,
    size: int,
) -> Iterator[list[list[_Segment]]]:
    """Cut the averaged parameters into a part for each worker, and each part into buckets.

    Yields:
        For each worker, segments of its part. A bucket of all workers has about ``size`` elements.
    """
    bucket: list[list[_Segment]] = [[] for _ in range(workers)]
    filled = 0
    for name in names:
        ids = held[name].nonzero().flatten() if name in held else None
        width = 1 if ids is None else start[name][0].numel()
        length = start[name].numel() if ids is None else len(ids)
        ends = [length * i // workers for i in range(workers + 1)]
        step = max(1, size // workers // width)
        for offset in range(0, max(last - first for first, last in pairwise(ends)), step):
            for part, (first, last) in zip(bucket, pairwise(ends), strict=True):
                here = min(first + offset, last)
                part.append(_Segment(name, here, min(here + step, last), ids))
                filled += (part[-1].last - here) * width
            if filled >= size:
                yield bucket
                bucket, filled = [[] for _ in range(workers)], 0
    if filled:
        yield bucket


def _pieces(
    parts: Sequence[_Segment],
    start: Mapping[str, Tensor],
    received: Sequence[Tensor],
    contributions: Sequence[_Contribution],
) -> Iterator[list[Tensor]]:
    """For each part, the piece of each worker."""
    split = [
        flat.split([p.numel(start, c) for p in parts])
        for flat, c in zip(received, contributions, strict=True)
    ]
    yield from map(list, zip(*split, strict=True))


def _mean(
    part: _Segment,
    start: Mapping[str, Tensor],
    pieces: Sequence[Tensor],
    contributions: Sequence[_Contribution],
) -> Tensor:
    """The mean of elements [n] or rows [n, ...], summed in the order of the workers."""
    tensor = part.of(start)[part.index()]
    total = torch.zeros_like(tensor, dtype=torch.float64)
    if part.ids is None:
        for piece, contribution in zip(pieces, contributions, strict=True):
            if contribution.sources:
                total += piece.to(torch.float64) * contribution.scale
        return (total / sum(c.weight for c in contributions)).to(tensor.dtype)
    ids = part.index()
    weight = torch.zeros(len(ids), dtype=torch.float64, device=tensor.device)
    for piece, contribution in zip(pieces, contributions, strict=True):
        has = contribution.held[part.name][ids]
        rows = piece.to(torch.float64).reshape(-1, *tensor.shape[1:])
        total[has] += rows * contribution.scale
        weight += contribution.row_weights[part.name][ids]
    return (total / weight.reshape(-1, *[1] * (tensor.dim() - 1))).to(tensor.dtype)
