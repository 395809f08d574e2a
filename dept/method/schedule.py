"""The schedule of a run, as a function of the seed: its rounds, slots and local steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from dept.method.periods import Period
from dept.method.sampling import UNIFORM, chances, grouped, groups_of


@dataclass(frozen=True)
class RoundSchedule:
    """The order in which sources are trained (Algorithm 1, line 1: draw ``S_t`` from ``S``).

    A round is a sequence of *slots*, one for each drawn source, each of ``local_steps`` batches.
    Workers share the slots equally, and run theirs one after another. The draw depends on
    ``(seed, round)`` alone, so that any process, and a resumed run, finds the same sources
    without communication.

    A source is *held* by the worker that trained it last, which has its private state. With
    ``sampling: uniform`` a source may move between workers (:attr:`moves`), and its holder follows
    from the draws: see :meth:`holders`. With ``stratified`` a source always stays on the same
    worker.

    Sources may join and leave between rounds (docs/data.md). The run then has several periods, and
    these are the sources of the last one.

    Args:
        sources: names of the sources, in the order of the corpus.
        sources_per_round: ``|S_t|``, how many sources are drawn each round.
        local_steps: ``N_local``, batches per slot.
        seed: seed of the run.
        workers: how many workers share the slots.
        sampling: how sources are drawn, one of :data:`dept.method.sampling.RULES`.
        since: the first round with these sources, from 0.
        earlier: the periods before that round, which had other sources. Their rounds are drawn as
            they were; the number of batches in them is counted for the present workers.

    Raises:
        ValueError: a number is out of range, workers do not divide the slots, or names repeat.
    """

    sources: tuple[str, ...]
    sources_per_round: int
    local_steps: int
    seed: int
    workers: int = 1
    sampling: str = UNIFORM
    since: int = 0
    earlier: tuple[Period, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if len(set(self.sources)) != len(self.sources):
            raise ValueError(f"sources holds a name twice: {', '.join(self.sources)}")
        if not 1 <= self.sources_per_round <= len(self.sources):
            raise ValueError(
                f"sources_per_round is {self.sources_per_round}, but there are {len(self.sources)} "
                f"sources ({', '.join(self.sources)}): set it to a value from 1 to "
                f"{len(self.sources)}"
            )
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}: set it to 1 or more")
        if self.sources_per_round % self.workers:
            would_do = [n for n in range(1, len(self.sources) + 1) if n % self.workers == 0]
            counts = [n for n in range(1, self.sources_per_round) if not self.sources_per_round % n]
            raise ValueError(
                f"{self.workers} workers cannot share sources_per_round = {self.sources_per_round} "
                f"equally: start {_either([*counts, self.sources_per_round])} workers"
                + (f", or set sources_per_round to {_either(would_do)}" if would_do else "")
            )

    @property
    def groups(self) -> int:
        """Number of groups of neighbours that the sources are drawn from; draws depend on it."""
        return groups_of(
            self.sampling,
            sources=len(self.sources),
            drawn=self.sources_per_round,
            workers=self.workers,
        )

    @property
    def moves(self) -> bool:
        """Whether a source may be trained by different workers in different rounds."""
        draws_some = self.sources_per_round < len(self.sources)
        return self.sampling == UNIFORM and self.workers > 1 and draws_some

    @property
    def slots_per_worker(self) -> int:
        """Sources that a worker trains in a round, one after another."""
        return self.sources_per_round // self.workers

    @property
    def batches_per_round(self) -> int:
        """Batches of one round on one worker, all its slots together."""
        return self.slots_per_worker * self.local_steps

    @property
    def periods(self) -> tuple[Period, ...]:
        """All periods of the run, the last one of these sources."""
        now = Period(self.since, self.sources, self.sources_per_round, self.groups)
        return (*self.earlier, now)

    def period_of(self, round_index: int) -> Period:
        """The period of round ``round_index`` (from 0)."""
        return next(p for p in reversed(self.periods) if p.first <= round_index)

    def after(self, periods: Sequence[Period], first: int) -> RoundSchedule:
        """This schedule, after the rounds that an earlier job had.

        Args:
            periods: periods of the earlier job. Of those, rounds from ``first`` on are dropped.
            first: the first round of these sources, if they are not those of the period before.
        """
        earlier = tuple(period for period in periods if period.first < first)
        if not earlier:
            return replace(self, since=0, earlier=())
        if earlier[-1].draws_like(self.periods[-1]):
            return replace(self, since=earlier[-1].first, earlier=earlier[:-1])
        return replace(self, since=first, earlier=earlier)

    def batches_of(self, round_index: int) -> int:
        """Batches of round ``round_index`` (from 0) on one worker, all its slots together."""
        return self.period_of(round_index).sources_per_round // self.workers * self.local_steps

    def batches_before(self, round_index: int) -> int:
        """Batches of all rounds before ``round_index`` (from 0) on one worker."""
        slots = 0
        for period, ends in zip(
            self.periods, [*(p.first for p in self.periods[1:]), round_index], strict=True
        ):
            rounds = max(0, min(ends, round_index) - period.first)
            slots += rounds * period.sources_per_round
        return slots * self.local_steps // self.workers

    @property
    def chances(self) -> dict[str, Fraction]:
        """The probability of each source to be drawn in a round."""
        return chances(grouped(self.sources, self.groups), self.sources_per_round // self.groups)

    def drawn(self, round_index: int) -> tuple[str, ...]:
        """The sources of round ``round_index`` (from 0), in slot order: that of ``sources``."""
        return self.period_of(round_index).drawn(self.seed, round_index)

    def slots_of(self, worker: int, round_index: int) -> tuple[str, ...]:
        """The sources that ``worker`` trains in round ``round_index``, in slot order.

        Args:
            worker: number of the worker, from 0.
            round_index: number of the round, from 0: ``t - 1`` in Algorithm 1, whose line 1 draws
                ``S_t``.

        Returns:
            The worker's equal part of ``S_t``.
        """
        drawn = self.drawn(round_index)
        each = len(drawn) // self.workers
        return drawn[worker * each : (worker + 1) * each]

    def sources_of(self, worker: int) -> tuple[str, ...]:
        """All sources that ``worker`` may train in any round of its present sources."""
        if self.moves:
            return self.sources
        return tuple(source for source, home in self._homes().items() if home == worker)

    def holders(self, round_index: int) -> dict[str, int]:
        """Which worker holds each source in a round, in the order of ``sources``.

        It is the worker that trained the source in the latest round up to this one. A source that
        was never trained since :attr:`since` has a fixed holder. A worker that is alone also holds,
        in a round before that, the sources of that round.
        """
        if self.workers == 1:
            return dict.fromkeys((*self.sources, *self.drawn(round_index)), 0)
        trained: dict[str, int] = {}
        for earlier in range(round_index, self.since - 1, -1) if self.moves else ():
            trained = self._trainers(earlier) | trained
            if len(trained) == len(self.sources):
                break
        return {source: trained.get(source, home) for source, home in self._homes().items()}

    def held_by(self, worker: int, round_index: int) -> tuple[str, ...]:
        """The sources that ``worker`` holds in a round, including those that it trains in it.

        Args:
            worker: number of the worker, from 0.
            round_index: number of the round, from 0: ``t - 1`` in Algorithm 1.

        Returns:
            Names of sources, from :meth:`holders`.
        """
        return tuple(s for s, holder in self.holders(round_index).items() if holder == worker)

    def moving(self, before: int, round_index: int) -> dict[str, tuple[int, int]]:
        """The sources that move between two rounds, each with its old and its new worker.

        Args:
            before: the earlier round, from 0.
            round_index: the later round, from 0: ``t - 1`` in Algorithm 1.

        Returns:
            By source, in the order of the corpus: numbers of its worker in the earlier and in the
            later round, from 0.
        """
        old, new = self.holders(before), self.holders(round_index)
        return {s: (old[s], new[s]) for s in self.sources if old[s] != new[s]}

    def most_held(self, rounds: int) -> int:
        """The most sources that a worker holds at the same time, in a run of ``rounds`` rounds."""
        holders = self._homes()
        most = max(Counter(holders.values()).values())
        for round_index in range(rounds) if self.moves else ():
            holders |= self._trainers(round_index)
            most = max(most, *Counter(holders.values()).values())
        return most

    def _trainers(self, round_index: int) -> dict[str, int]:
        drawn = self.drawn(round_index)
        return {source: slot // self.slots_per_worker for slot, source in enumerate(drawn)}

    def _homes(self) -> dict[str, int]:
        """Which worker holds each source that was never trained."""
        groups = grouped(self.sources, self.workers if self.moves else self.groups)
        each = len(groups) // self.workers
        return {source: i // each for i, group in enumerate(groups) for source in group}

    def remaining(
        self, worker: int, round_index: int, done: Mapping[str, int]
    ) -> list[tuple[str, int]]:
        """The batches that ``worker`` has still to train in a round.

        Args:
            worker: from 0.
            round_index: from 0.
            done: local steps of this round that each source has already taken, 0 by default. Any
                combination is valid, since sources are independent until the round ends.

        Returns:
            For each batch, its source and its local step (from 0).
        """
        return [
            (source, step)
            for source in self.slots_of(worker, round_index)
            for step in range(done.get(source, 0), self.local_steps)
        ]


@dataclass(frozen=True)
class DirectedSchedule(RoundSchedule):
    """The schedule of a silo of a federation, whose server draws the sources of each round.

    Args:
        directed: the drawn sources of this silo by round (from 0), in slot order; a round that the
            server has not directed yet has none.
    """

    directed: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def drawn(self, round_index: int) -> tuple[str, ...]:
        return self.directed.get(round_index, ())

    def slots_of(self, worker: int, round_index: int) -> tuple[str, ...]:
        return self.drawn(round_index)


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
