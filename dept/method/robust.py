"""Rules that combine the pseudo-gradients of a round, some of which may be faulty.

The updates of all sources are needed at once. In a parameter averaged by token row (TRIM), a row is
combined over the sources that hold it. With few holders a rule protects less:

| rule | a row with h holders | protects it from |
|---|---|---|
| `mean` | their mean | none |
| `trimmed_mean` | ``min(trim, (h - 1) // 2)`` values are dropped at each end | as many |
| `median` | the median; of two holders their mean | fewer than ``h / 2`` |
| `krum`, `multi_krum` | the mean of the holders that were selected, if there are any | see there |

So a row of one source is that of this source under every rule, unless Krum does not select it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dept.errors import ConfigError, shown
from dept.method.averaging import Share, mean_update

WHERE = "algorithms.dept.average"

Updates = Mapping[str, tuple[Mapping[str, Tensor], Share]]
"""By source: its pseudo-gradient, start - local, by parameter name, and its share. Of a parameter
averaged by token row the pseudo-gradient has the rows of the share, in their order."""

Tensors = Mapping[str, Tensor]


class Rule(Protocol):
    """Combines pseudo-gradients.

    Attributes:
        weighs: whether it uses the weights of shares.
        selects: whether it leaves sources out, and with them the rows that only they hold.
    """

    weighs: bool
    selects: bool

    def check(self, sources: int) -> None:
        """Refuse rounds of this many sources, if the rule cannot work with them.

        Raises:
            ConfigError: there are too few.
        """

    def combine(
        self, updates: Updates, start: Tensors, rows: Tensors
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Combine the pseudo-gradients of a round.

        Args:
            updates: of at least one source.
            start: the global parameters by name, for shapes, dtypes and devices.
            rows: for each parameter averaged by token row, int64[n], ascending: the rows that some
                source holds.

        Returns:
            The pseudo-gradient for the outer step by name, of a parameter averaged by token row
            with those n rows; and the sources that it is made of. A row that none of these holds
            is 0, and is to keep its value and its outer state.
        """


@dataclass(frozen=True)
class Mean:
    """The weighted mean (Algorithm 1, line 8)."""

    weighs = True
    selects = False

    def check(self, sources: int) -> None:
        """Any number of sources has a mean."""

    def combine(
        self, updates: Updates, start: Tensors, rows: Tensors
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        return mean_update(updates.values(), start, rows), tuple(updates)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its smallest and largest values (Yin et al. 2018).

    Of h values it drops ``min(trim, (h - 1) // 2)`` at each end, so that one or two are left.

    Args:
        trim: how many values to drop at each end, which is how many sources may be faulty.
    """

    trim: int = 1
    weighs = False
    selects = False

    def check(self, sources: int) -> None:
        if sources < 2 * self.trim + 1:
            raise ConfigError(
                f"{WHERE} drops the {self.trim} smallest and largest of {sources} values, one of "
                f"each source of a round: set trim to {(sources - 1) // 2}, or sources_per_round "
                f"to {2 * self.trim + 1} or more"
                if sources > 2
                else f"{WHERE}.name is trimmed_mean, and a round has {sources} of the 3 sources or "
                f"more that it needs: set it to mean"
            )

    def combine(
        self, updates: Updates, start: Tensors, rows: Tensors
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        return _by_coordinate(trimmed_mean, self.trim, updates, start, rows), tuple(updates)


@dataclass(frozen=True)
class Median:
    """The median of each coordinate (Yin et al. 2018); of two middle values their mean."""

    weighs = False
    selects = False

    def check(self, sources: int) -> None:
        if sources < 3:
            raise ConfigError(
                f"{WHERE}.name is median, and a round has {sources} of the 3 sources or more that "
                f"it needs: set it to mean"
            )

    def combine(
        self, updates: Updates, start: Tensors, rows: Tensors
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        return _by_coordinate(trimmed_mean, None, updates, start, rows), tuple(updates)


@dataclass(frozen=True)
class Krum:
    """The mean of the ``selected`` updates that are closest to others (Blanchard et al. 2017).

    An update is scored by the sum of its squared distances to the ``n - faulty - 2`` closest other
    ones, and those with the lowest scores are selected; of equal ones the first. The distance is
    over the coordinates that all sources of the round hold: in TRIM, rows that only some hold are
    not compared, and a source that is faulty only in them may be selected.

    If updates were left out of the round, ``faulty`` is at most ``n - 3``, and one or two updates
    are averaged.

    Args:
        faulty: how many sources may be faulty.
        selected: how many updates to average: 1 is Krum; ``None`` is ``n - faulty``, multi-Krum.
    """

    faulty: int = 1
    selected: int | None = None
    weighs = False
    selects = True

    def check(self, sources: int) -> None:
        least = 2 * self.faulty + 3
        if sources < least:
            raise ConfigError(
                f"{WHERE} is Krum with faulty: {self.faulty}, which needs {least} sources in a "
                f"round, and a round has {sources}: set "
                + (f"faulty to {(sources - 3) // 2}" if sources >= 5 else "name to median or mean")
                + f", or sources_per_round to {least} or more"
            )
        if self.selected is not None and self.selected > sources - self.faulty:
            raise ConfigError(
                f"{WHERE}.selected is {self.selected}, and a round has {sources} sources, "
                f"{self.faulty} of them faulty: set it to {sources - self.faulty} or less"
            )

    def combine(
        self, updates: Updates, start: Tensors, rows: Tensors
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        names = list(updates)
        if len(names) < 3:
            chosen = names
        else:
            faulty = min(self.faulty, len(names) - 3)
            count = len(names) - faulty if self.selected is None else self.selected
            scores = krum_scores(squared_distances(updates, rows), faulty)
            best = sorted(range(len(names)), key=lambda i: (scores[i].item(), i))
            chosen = [names[i] for i in sorted(best[: min(count, len(names) - faulty)])]
        return mean_of(updates, chosen, start, rows), tuple(chosen)


RULES: dict[str, Callable[..., Rule]] = {
    "mean": Mean,
    "trimmed_mean": TrimmedMean,
    "median": Median,
    "krum": lambda faulty=1: Krum(faulty, 1),
    "multi_krum": lambda faulty=1, selected=None: Krum(faulty, selected),
}
"""Rules by their names in ``algorithms.dept.average``, with the defaults of their options."""


def rule_of(name: str, **options: Any) -> Rule:
    """Build the rule of ``algorithms.dept.average``.

    Args:
        name: a key of :data:`RULES`.
        options: its options, such as ``trim``.

    Raises:
        ConfigError: the name or an option is unknown, or a value is out of range.
    """
    if name not in RULES:
        raise ConfigError(f"{WHERE}.name is {shown(name)}: set it to one of {', '.join(RULES)}")
    for key, value in options.items():
        counts = ("trim", "faulty", "selected")
        if key in counts and not (type(value) is int and 1 <= value < 1 << 16):
            raise ConfigError(f"{WHERE}.{key} is {shown(value)}: set it to a whole number above 0")
    try:
        return RULES[name](**options)
    except TypeError:
        raise ConfigError(
            f"{WHERE} has an option that {name} does not take: {', '.join(options)}"
        ) from None


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


def _by_coordinate(
    rule: Callable[[Tensor, Tensor, int | None], Tensor],
    trim: int | None,
    updates: Updates,
    start: Tensors,
    rows: Tensors,
) -> dict[str, Tensor]:
    """Combine each coordinate over the sources that have it."""
    combined = {}
    for name, value in start.items():
        parts = list(_pieces(name, list(updates.values()), rows.get(name), value))
        result = torch.cat([rule(values, present, trim) for values, present in parts])
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
