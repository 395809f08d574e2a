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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dept.errors import ConfigError, shown
from dept.method.averaging import mean_update
from dept.method.robust import (
    Tensors,
    Updates,
    krum_scores,
    mean_of,
    squared_distances,
    trimmed_updates,
)

WHERE = "algorithms.dept.average"


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
        return trimmed_updates(updates, self.trim, start, rows), tuple(updates)


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
        return trimmed_updates(updates, None, start, rows), tuple(updates)


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
