"""The sources of a federation: who is drawn in which round, while some join and leave."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from dept.method.periods import Period
from dept.method.sampling import UNIFORM, groups_of


class Roster:
    """Which sources a federation has in each round.

    It is a sequence of periods, as in a job whose sources change. A round is drawn from the sources
    of its period, with the same stream of random numbers, so a federation draws what a job draws
    that resumes with the same sources in the same order.

    Args:
        periods: the periods, ascending.
        sources_per_round: the option; ``None`` draws all sources.
    """

    def __init__(self, periods: Sequence[Period], sources_per_round: int | None) -> None:
        self.periods, self._wanted = list(periods), sources_per_round

    @classmethod
    def of(cls, sources: Sequence[str], sources_per_round: int | None) -> Roster:
        """The roster of a new federation, with these sources from the first round on."""
        roster = cls([], sources_per_round)
        roster.periods.append(roster._period(0, sources))
        return roster

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the last period: that of the coming round, in the order of draws."""
        return self.periods[-1].sources

    def sources_of(self, round_index: int) -> tuple[str, ...]:
        """The sources of a round, from 0."""
        return next(p for p in reversed(self.periods) if p.first <= round_index).sources

    def change(
        self, round_index: int, *, joined: Collection[str] = (), left: Collection[str] = ()
    ) -> None:
        """Let sources join and leave from a round on.

        Args:
            round_index: their first round, or the first one without them: from 0, and not before
                the last change.
            joined: names that are added at the end, in their alphabetical order.
            left: names that are removed.
        """
        kept = [source for source in self.sources if source not in left]
        period = self._period(round_index, [*kept, *sorted(set(joined) - set(kept))])
        if self.periods[-1].first == round_index:
            self.periods.pop()
        self.periods.append(period)

    def drawn(self, able: Collection[str], *, seed: int, round_index: int) -> tuple[str, ...]:
        """The sources of a round, S_t; the draw of a job if all can be trained.

        Args:
            able: the sources that can be trained now.
            seed: seed of the run.
            round_index: from 0.
        """
        sources = tuple(s for s in self.sources_of(round_index) if s in able)
        return self._period(round_index, sources).drawn(seed, round_index)

    def _period(self, first: int, sources: Sequence[str]) -> Period:
        count = len(sources)
        wanted = min(self._wanted or count, count)
        groups = groups_of(UNIFORM, sources=count, drawn=wanted, workers=1) if count else 0
        return Period(first, tuple(sources), wanted, groups)

    # --- records ---------------------------------------------------------------------------------

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The periods after the first one, as ``summary.json`` has them; rounds from 1."""
        found = []
        for before, period in zip(self.periods, self.periods[1:], strict=False):
            found.append(
                {
                    "round": period.first + 1,
                    "sources": list(period.sources),
                    "sources_per_round": period.sources_per_round,
                    "joined": [s for s in period.sources if s not in before.sources],
                    "left": [s for s in before.sources if s not in period.sources],
                }
            )
        return found

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [period.state_dict() for period in self.periods]

    @classmethod
    def from_state(cls, state: Sequence[dict[str, Any]], sources_per_round: int | None) -> Roster:
        """The roster of an earlier server, from its ``state_dict``."""
        return cls([Period.of(period) for period in state], sources_per_round)
