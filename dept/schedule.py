"""Who trains what when: the rounds, slots and local steps of a run, as a function of the seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dept.streams import seed_of


@dataclass(frozen=True)
class RoundSchedule:
    """The order in which sources are trained (Algorithm 1, line 1: draw ``S_t`` from ``S``).

    A round is a sequence of *slots*, one for each drawn source, each of ``local_steps`` batches.
    Workers share the slots equally, and run theirs one after another. What is drawn depends on
    ``(seed, round)`` alone, so that any process, and a resumed run, finds the same sources
    without a message, however many workers there are.

    A source always belongs to the same worker, since its private state stays where it is. So the
    sources are cut, in their order, into groups of neighbours, and as many of each group are
    drawn: see :attr:`groups`.

    Args:
        sources: names of the sources, in the order of the corpus.
        sources_per_round: ``|S_t|``, how many sources are drawn each round.
        local_steps: ``N_local``, batches per slot.
        seed: seed of the run.
        workers: how many workers share the slots.

    Raises:
        ValueError: a number is out of range, workers do not divide the slots, or names repeat.
    """

    sources: tuple[str, ...]
    sources_per_round: int
    local_steps: int
    seed: int
    workers: int = 1

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
        """How many groups of neighbours the sources are drawn from.

        The greatest common divisor of ``|S|`` and ``|S_t|``: equal groups, of which as many are
        drawn each, give every source the same chance, whatever number of workers shares them. A
        number of workers that does not divide it needs ``|S_t|`` groups, which differ by one
        source; those of the smaller ones are then drawn more often.
        """
        equal = math.gcd(len(self.sources), self.sources_per_round)
        return equal if equal % self.workers == 0 else self.sources_per_round

    @property
    def slots_per_worker(self) -> int:
        """Sources that a worker trains in a round, one after another."""
        return self.sources_per_round // self.workers

    @property
    def batches_per_round(self) -> int:
        """Batches of one round on one worker, all its slots together."""
        return self.slots_per_worker * self.local_steps

    def drawn(self, round_index: int) -> tuple[str, ...]:
        """The sources of round ``round_index`` (from 0), in slot order: that of ``sources``."""
        return draw(
            grouped(self.sources, self.groups),
            self.sources_per_round // self.groups,
            seed=self.seed,
            round_index=round_index,
        )

    def slots_of(self, worker: int, round_index: int) -> tuple[str, ...]:
        """The sources that ``worker`` trains in round ``round_index``, in slot order."""
        first = worker * self.slots_per_worker
        return self.drawn(round_index)[first : first + self.slots_per_worker]

    def sources_of(self, worker: int) -> tuple[str, ...]:
        """The sources that belong to ``worker``: all that it can ever draw."""
        groups, each = grouped(self.sources, self.groups), self.groups // self.workers
        mine = groups[worker * each : (worker + 1) * each]
        return tuple(source for group in mine for source in group)

    def remaining(
        self, worker: int, round_index: int, done: Mapping[str, int]
    ) -> list[tuple[str, int]]:
        """What ``worker`` has still to train in a round: a source and its local step, by batch.

        Args:
            worker: from 0.
            round_index: from 0.
            done: local steps of this round that a source has already taken, 0 by default. Any
                mixture will do, since until the round ends sources know nothing of each other.
        """
        return [
            (source, step)
            for source in self.slots_of(worker, round_index)
            for step in range(done.get(source, 0), self.local_steps)
        ]


def draw(
    groups: Sequence[Sequence[str]], of_each: int, *, seed: int, round_index: int
) -> tuple[str, ...]:
    """Draw ``of_each`` sources of each group without replacement, from ``(seed, round)`` alone."""
    generator = np.random.default_rng(seed_of(seed, "sampling", round_index))
    chosen = [generator.choice(len(group), size=of_each, replace=False) for group in groups]
    return tuple(
        group[i] for group, drawn in zip(groups, chosen, strict=True) for i in sorted(drawn)
    )


def grouped(sources: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Cut ``sources`` into ``count`` groups of neighbours, as equal as can be."""
    ends = [len(sources) * i // count for i in range(count + 1)]
    return [tuple(sources[first:last]) for first, last in pairwise(ends)]


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
