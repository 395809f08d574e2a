"""Pseudo-gradients of a round, some of which may be faulty: clipped, trimmed or compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dept.method.averaging import Share, mean_update

Updates = Mapping[str, tuple[Mapping[str, Tensor], Share]]
"""By source: its pseudo-gradient, start - local, by parameter name, and its share. Of a parameter
averaged by token row the pseudo-gradient has the rows of the share, in their order."""

Tensors = Mapping[str, Tensor]


@torch.no_grad()
def mean_of(
    updates: Updates, chosen: Sequence[str], start: Tensors, rows: Tensors
) -> dict[str, Tensor]:
    """The mean of some of the updates, with equal weights.

    Args:
        updates: by source.
        chosen: the sources to average.
        start: the global parameters by name.
        rows: for each parameter averaged by token row, int64[n], ascending: the rows that some
            source of ``updates`` holds.

    Returns:
        The mean by name, of a parameter averaged by token row with those n rows; a row that no
        chosen source holds is 0.
    """
    equal = [(updates[source][0], Share(1.0, updates[source][1].rows)) for source in chosen]
    mean = mean_update(equal, start, rows)
    for name, ids in rows.items():
        held = [share.rows[name].to(ids.device) for _, share in equal]
        mean[name][~torch.isin(ids, torch.cat(held))] = 0.0  # 0 / 0 so far
    return mean


@torch.no_grad()
def clipped(update: Tensors, limit: float) -> dict[str, Tensor]:
    """Scale an update so that its L2 norm is at most ``limit``.

    Args:
        update: tensors by name.
        limit: the largest norm over all tensors together.

    Returns:
        The update by name; unchanged if its norm is within the limit.
    """
    total = sum(float(value.double().square().sum()) for _, value in sorted(update.items()))
    norm = total**0.5
    if norm <= limit:
        return dict(update)
    return {
        name: (value.double() * (limit / norm)).to(value.dtype) for name, value in update.items()
    }


@torch.no_grad()
def trimmed_mean(values: Tensor, present: Tensor, trim: int | None) -> Tensor:
    """The mean of each coordinate without its smallest and largest values.

    Args:
        values: float[sources, n, ...].
        present: bool[sources, n]: which values there are; a coordinate may have none.
        trim: how many to drop at each end, at most ``(h - 1) // 2`` of h; ``None`` is that many,
            which leaves the median.

    Returns:
        float64[n, ...]; 0 where no value is present.
    """
    shape = (*present.shape, *[1] * (values.dim() - 2))
    there = present.view(shape)
    ascending = values.masked_fill(~there, torch.inf).sort(dim=0).values.double()
    count = there.sum(dim=0)
    dropped = (count - 1).clamp(min=0) // 2
    if trim is not None:
        dropped = dropped.clamp(max=trim)
    place = torch.arange(len(values), device=values.device).view(-1, *[1] * (values.dim() - 1))
    kept = (place >= dropped) & (place < count - dropped)
    total = ascending.masked_fill(~kept, 0.0).sum(dim=0)
    return total / (count - 2 * dropped).clamp(min=1)


def krum_scores(distances: Tensor, faulty: int) -> Tensor:
    """The score of each update: its squared distances to the closest others, summed.

    Args:
        distances: float64[n, n], squared, with zeros on the diagonal.
        faulty: how many updates may be faulty, at most ``n - 3``.

    Returns:
        float64[n].
    """
    closest = len(distances) - faulty - 2
    return distances.sort(dim=1).values[:, 1 : 1 + closest].sum(dim=1)


@torch.no_grad()
def squared_distances(updates: Updates, rows: Tensors) -> Tensor:
    """Squared L2 distances between updates, over the coordinates that all of them have.

    Args:
        updates: by source.
        rows: names of the parameters averaged by token row; only rows that all hold are compared.

    Returns:
        float64[n, n] on the CPU, in the order of the sources.
    """
    found, shares = [update for update, _ in updates.values()], [s for _, s in updates.values()]
    total = torch.zeros(len(found), len(found), dtype=torch.float64)
    for name in sorted(found[0]):
        values = [update[name] for update in found]
        if name in rows:
            common = shares[0].rows[name]
            for share in shares[1:]:
                common = common[torch.isin(common, share.rows[name])]
            places = [torch.searchsorted(share.rows[name], common) for share in shares]
            values = [v[at.to(v.device)] for v, at in zip(values, places, strict=True)]
        for i, one in enumerate(values):
            for j, other in enumerate(values[:i]):
                total[i, j] += float((one.double() - other.double()).square().sum())
    return total + total.T


@torch.no_grad()
def trimmed_updates(
    updates: Updates, trim: int | None, start: Tensors, rows: Tensors
) -> dict[str, Tensor]:
    """The trimmed mean of each coordinate over the sources that have it.

    Args:
        updates: by source.
        trim: as for :func:`trimmed_mean`.
        start: the global parameters by name, for shapes, dtypes and devices.
        rows: for each parameter averaged by token row, int64[n], ascending: the rows that some
            source holds.

    Returns:
        The result by name, of a parameter averaged by token row with those n rows.
    """
    combined = {}
    for name, value in start.items():
        parts = list(_pieces(name, list(updates.values()), rows.get(name), value))
        result = torch.cat([trimmed_mean(values, present, trim) for values, present in parts])
        shape = value.shape if name not in rows else (len(rows[name]), *value.shape[1:])
        combined[name] = result.to(value.dtype).view(shape)
    return combined


_PIECE = 1 << 20
"""Numbers of a parameter that are sorted at once, of each source."""


def _pieces(
    name: str,
    updates: Sequence[tuple[Tensors, Share]],
    rows: Tensor | None,
    like: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Values [sources, n, ...] and their presence [sources, n], piece by piece."""
    if rows is None:
        flat = [update[name].reshape(-1) for update, _ in updates]
        for first in range(0, max(1, like.numel()), _PIECE):
            values = torch.stack([each[first : first + _PIECE] for each in flat])
            yield values, torch.ones_like(values, dtype=torch.bool)
        return
    width = like[0].numel()
    step = max(1, _PIECE // width)
    held = [share.rows[name].to(rows.device) for _, share in updates]
    for first in range(0, max(1, len(rows)), step):
        ids = rows[first : first + step]
        values = like.new_zeros((len(updates), len(ids), *like.shape[1:]))
        present = torch.zeros(len(updates), len(ids), dtype=torch.bool, device=like.device)
        for source, ((update, _), own) in enumerate(zip(updates, held, strict=True)):
            here = torch.isin(ids, own)
            values[source, here] = update[name][torch.searchsorted(own, ids[here])]
            present[source] = here
        yield values, present
