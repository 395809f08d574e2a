"""Mixed batches of all sources, for ordinary training (STD) and continued pre-training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from dept.data.loader import Batch, OpenSource, collate
from dept.data.order import PRETRAINING
from dept.data.shard_cache import ShardCache
from dept.method.streams import seed_of


def draw(probabilities: Sequence[float], size: int, *, seed: int, stage: str, batch: int) -> Any:
    """The source of each sequence of a batch: int64[size], drawn independently.

    Args:
        probabilities: probability of each source; their sum is 1.
        size: sequences of the batch, of all ranks together.
        seed: seed of the run.
        stage: stage of training.
        batch: number of the batch over the whole run, from 0.
    """
    generator = np.random.default_rng(seed_of(seed, "mixture", stage, batch))
    return generator.choice(len(probabilities), size=size, p=probabilities)


class Mixture(IterableDataset):
    """Mixed batches, one epoch after another (STD of the paper: ``p_k ~ tokens_k ** tau``).

    The source of each sequence is drawn at random, and the sequence is the next one in the order of
    that source. DEPT reads it in the same order: whole passes, each with a new shuffle. So batch
    ``b`` is a function of the seed and ``b``, and a resumed run needs only the number of batches.

    Args:
        sources: the sources by name, in the order of the corpus.
        tokens: tokens of the training split of each source, by name.
        tau: 0 draws sources uniformly, 1 in proportion to their tokens.
        epoch_batches: batches of an epoch; by default an epoch is all samples.
        batch_size: sequences in a batch of this rank.
        rank: rank of this process; ranks read parts of the same batch.
        ranks: number of ranks.
        seed: seed of the draws.
        stage: stage of training; a run that starts from another one has its own draws.
        cache: cache of remote shards, if the sources are remote.
    """

    def __init__(
        self,
        sources: Mapping[str, OpenSource],
        *,
        tokens: Mapping[str, int],
        tau: float,
        batch_size: int,
        seed: int,
        epoch_batches: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        stage: str = PRETRAINING,
        cache: ShardCache | None = None,
    ) -> None:
        self.sources = dict(sources)
        weights = np.array([float(tokens[name]) ** float(tau) for name in sources])
        self.probabilities = weights / weights.sum()
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.seed, self.stage = seed, stage
        samples = sum(source.order.samples for source in sources.values())
        self.epoch_batches = epoch_batches or max(1, samples // (batch_size * ranks))
        self.batch = 0
        """Number of the next batch, over the whole run."""
        self._positions = np.zeros(len(weights), dtype=np.int64)
        self._epochs = 0  # number of epochs begun
        self._cache = cache
        self._ahead: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.epoch_batches

    def __iter__(self) -> Iterator[Batch]:
        end = (self.batch // self.epoch_batches + 1) * self.epoch_batches
        self._epochs = end // self.epoch_batches
        while self.batch < end:
            yield self._next_batch()

    @property
    def positions(self) -> dict[str, int]:
        """Sequences read of each source so far, on all ranks together."""
        return dict(zip(self.sources, self._positions.tolist(), strict=True))

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The position of training, in the interface of StreamingDataset that Composer calls.

        Args:
            num_samples: samples trained on in this epoch, on all ranks.
            from_beginning: whether they count from the beginning of the epoch; always true.
        """
        of_epoch = num_samples // (self.batch_size * self.ranks)
        begun = self._epochs if num_samples == 0 else self._epochs - 1
        return {"batch": begun * self.epoch_batches + of_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the batch after those that were trained on."""
        self.batch = 0
        self._positions[:] = 0
        while self.batch < state["batch"]:
            self._positions += np.bincount(self._draw(), minlength=len(self._positions))
            self.batch += 1
        self._epochs = self.batch // self.epoch_batches

    def _draw(self) -> Any:
        return draw(
            self.probabilities,
            self.batch_size * self.ranks,
            seed=self.seed,
            stage=self.stage,
            batch=self.batch,
        )

    def _next_batch(self) -> Batch:
        self._look_ahead()
        sources = list(self.sources.values())
        first = self.rank * self.batch_size
        samples = []
        for place, drawn in enumerate(self._draw()):
            if first <= place < first + self.batch_size:
                samples.append(sources[drawn].sample_at(int(self._positions[drawn])))
            self._positions[drawn] += 1
        self.batch += 1
        return collate(samples)

    def _look_ahead(self) -> None:
        """Fetch the next shards in the background, at the beginning of a block."""
        if self._cache is None:
            return
        at = list(zip(self.sources.values(), self._positions.tolist(), strict=True))
        ends = tuple(source.order.block_end(position) for source, position in at)
        if ends == self._ahead:
            return
        self._ahead = ends
        now = [shard for source, position in at for shard in source.shards_at(position)]
        then = [
            shard
            for source, end in zip(self.sources.values(), ends, strict=True)
            for shard in source.shards_at(end)
        ]
        self._cache.want([*now, *then])
