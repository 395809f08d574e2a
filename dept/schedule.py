"""Who trains what when: the rounds, slots and local steps of a run, as a function of the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RoundSchedule:
    """The order in which sources are trained (Algorithm 1, line 1: draw ``S_t`` from ``S``).

    A round is a sequence of *slots*, one for each drawn source, each of ``local_steps`` batches.
    One worker runs the slots one after another. What is drawn depends on ``(seed, round)`` alone,
    so that any process, and a resumed run, finds the same sources without a message.

    Args:
        sources: names of the sources, in the order of the corpus.
        sources_per_round: ``|S_t|``, how many sources are drawn each round.
        local_steps: ``N_local``, batches per slot.
        seed: seed of the run.

    Raises:
        ValueError: ``sources_per_round`` or ``local_steps`` is out of range, or names repeat.
    """

    sources: tuple[str, ...]
    sources_per_round: int
    local_steps: int
    seed: int

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

    @property
    def batches_per_round(self) -> int:
        """Batches of one round on one worker, all slots together."""
        return self.sources_per_round * self.local_steps

    def drawn(self, round_index: int) -> tuple[str, ...]:
        """The sources of round ``round_index`` (from 0), in slot order.

        Uniform, without replacement. Slots follow the order of ``sources``, so that drawing all
        of them gives the same order every round.
        """
        return draw(self.sources, self.sources_per_round, seed=self.seed, round_index=round_index)

    def slot_of_batch(self, batch_in_round: int) -> int:
        """The slot that batch ``batch_in_round`` (from 0) of a round belongs to."""
        return batch_in_round // self.local_steps


def sequential_step(batch: int, local_steps: int, sources_per_round: int) -> int:
    """The step of one source's training that batch ``batch`` (from 0) of the run is.

    ``round * local_steps + local step``: the slots of a round stand for workers side by side, so
    running them one after another must not make the learning rate's time pass faster.
    """
    round_index, batch_in_round = divmod(batch, local_steps * sources_per_round)
    return round_index * local_steps + batch_in_round % local_steps


def draw(sources: Sequence[str], count: int, *, seed: int, round_index: int) -> tuple[str, ...]:
    """Draw ``count`` of ``sources`` without replacement, from ``(seed, round_index)`` alone."""
    generator = np.random.default_rng([seed, round_index])
    chosen = generator.choice(len(sources), size=count, replace=False)
    return tuple(sources[i] for i in sorted(chosen))
