"""From the pseudo-gradients of a round to the one of the outer step: clip, combine, add noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dept.errors import ConfigError
from dept.method.privacy import Privacy, noisy_mean
from dept.method.robust import Updates, clipped
from dept.method.rules import Mean, Rule, rule_of


@dataclass(frozen=True)
class Aggregation:
    """How the pseudo-gradients of a round are combined.

    Attributes:
        rule: the rule that combines them.
        clip: the largest norm of a pseudo-gradient; ``None`` for any.
        privacy: noise added to the mean; ``None`` for none.
    """

    rule: Rule = field(default_factory=Mean)
    clip: float | None = None
    privacy: Privacy | None = None

    @classmethod
    def of(
        cls,
        average: Mapping[str, Any],
        clip: float | None,
        privacy: Mapping[str, Any] | None,
        *,
        weighted: bool = False,
        by_row: bool = False,
    ) -> Aggregation:
        """Build it from options of ``algorithms.dept``.

        Args:
            average: the option ``average``.
            clip: the option ``clip_update_norm``.
            privacy: the option ``privacy``.
            weighted: whether sources have different weights.
            by_row: whether some parameter is averaged by token row.

        Raises:
            ConfigError: a value is not allowed, or some do not fit together.
        """
        rule, private, where = rule_of(**average), Privacy.of(privacy), "algorithms.dept"
        if weighted and not rule.weighs:
            raise ConfigError(
                f"{where}.weighting is tokens, and {where}.average.name is {average['name']}, "
                f"which has no weights: set weighting to uniform"
            )
        if private is None:
            return cls(rule, clip)
        reasons = {
            f"{where}.average.name is {average['name']}, and the guarantee is that of a mean: set "
            f"it to mean": not isinstance(rule, Mean),
            f"{where}.weighting is tokens, which depends on the data: set it to uniform": weighted,
            f"{where}.clip_update_norm is null, so one source could move the model by any "
            f"distance: set it to a number": clip is None,
            f"{where}.variant averages by token row, and which rows change gives away the "
            f"vocabulary of a source: set it to glob, spec or spec_opt": by_row,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ConfigError(f"{where}.privacy is set, and {reason}")
        return cls(rule, clip, private)

    @property
    def is_plain(self) -> bool:
        """Whether it is the mean of Algorithm 1 and no update is needed on its own."""
        return isinstance(self.rule, Mean) and self.clip is None and self.privacy is None

    def combine(
        self,
        updates: Updates,
        start: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        *,
        drawn: int,
        noise_seed: int,
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Combine the pseudo-gradients of a round.

        Args:
            updates: by source; empty only with privacy, if all were left out.
            start: the global parameters by name, for shapes, dtypes and devices.
            rows: for each parameter averaged by token row, int64[n], ascending: the rows that some
                source holds.
            drawn: how many sources were drawn for the round.
            noise_seed: seed of the noise of this round.

        Returns:
            What :meth:`dept.method.rules.Rule.combine` returns.
        """
        if self.clip is not None:
            limit = self.clip
            updates = {s: (clipped(update, limit), share) for s, (update, share) in updates.items()}
        if self.privacy is None:
            return self.rule.combine(updates, start, rows)
        assert self.clip is not None
        every = [update for update, _ in updates.values()]
        deviation = self.privacy.noise_multiplier * self.clip
        mean = noisy_mean(every, start, drawn=drawn, deviation=deviation, seed=noise_seed)
        return mean, tuple(updates)
