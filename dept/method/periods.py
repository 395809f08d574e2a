"""Periods of a run: consecutive rounds whose sources are drawn from the same set S."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dept.method.sampling import draw, grouped


@dataclass(frozen=True)
class Period:
    """Consecutive rounds with the same sources. A run has one, unless sources join or leave.

    Attributes:
        first: its first round, from 0.
        sources: names of the sources S, in the order of the corpus.
        sources_per_round: ``|S_t|``.
        groups: number of groups of neighbours that ``S_t`` is drawn from.
    """

    first: int
    sources: tuple[str, ...]
    sources_per_round: int
    groups: int

    def drawn(self, seed: int, round_index: int) -> tuple[str, ...]:
        """The sources of a round, S_t, in the order of ``sources`` (Algorithm 1, line 1).

        Args:
            seed: seed of the run.
            round_index: a round of this period, from 0.
        """
        return draw(
            grouped(self.sources, self.groups),
            self.sources_per_round // self.groups,
            seed=seed,
            round_index=round_index,
        )

    def draws_like(self, other: Period) -> bool:
        """Whether both draw the same sources in any given round."""
        mine = (self.sources, self.sources_per_round, self.groups)
        return mine == (other.sources, other.sources_per_round, other.groups)

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and for ``summary.json``."""
        return {**vars(self), "sources": list(self.sources)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Period:
        """Rebuild a period from its ``state_dict``."""
        return cls(**{**state, "sources": tuple(state["sources"])})
