"""The order in which the samples of a source are read, as a function of seed, source and epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dept.method.streams import seed_of

PRETRAINING = "pretraining"
"""The stage of a run that starts from nothing."""


class SampleOrder:
    """A shuffled pass over a source after another, addressed by one integer.

    Shards are shuffled, then samples within blocks of ``block_shards`` shards, so that the shards
    of a remote corpus are read nearly in sequence and a local cache of a block is enough. Every
    pass shuffles anew. Position ``p`` is in pass ``p // samples``: the position is all that a
    resumed run needs.

    Args:
        shard_samples: how many samples each shard holds.
        seed: seed of the run.
        source: name of the source, so that sources are shuffled differently.
        stage: of training: a run that starts from another one must not read its batches again.
        block_shards: shards whose samples are mixed.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(
        self,
        shard_samples: Sequence[int],
        *,
        seed: int,
        source: str,
        stage: str = PRETRAINING,
        block_shards: int = 16,
    ) -> None:
        self.shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self.samples = int(self.shard_samples.sum())
        if self.samples == 0:
            raise ValueError(f"source {source} holds no samples")
        self._offsets = np.cumsum(self.shard_samples) - self.shard_samples
        self._seed, self._of = seed, (stage, source)
        self._block_shards = block_shards
        self._pass: tuple[int, list[np.ndarray], np.ndarray] | None = None
        self._block: tuple[int, int, np.ndarray] | None = None

    def sample_at(self, position: int) -> int:
        """The sample (its index over all shards in file order) at ``position`` (from 0)."""
        epoch, within = divmod(position, self.samples)
        blocks, starts = self._blocks(epoch)
        block = int(np.searchsorted(starts, within, side="right")) - 1
        return int(self._permutation(epoch, block, blocks[block])[within - starts[block]])

    def block_end(self, position: int) -> int:
        """The position behind the block of ``position``; the last block of a pass ends with it."""
        epoch, within = divmod(position, self.samples)
        starts = self._blocks(epoch)[1]
        block = int(np.searchsorted(starts, within, side="right"))
        return epoch * self.samples + (int(starts[block]) if block < len(starts) else self.samples)

    def shards_at(self, position: int) -> list[int]:
        """What is still to be read of the block of ``position``: its shards, first needed first.

        ``shards_at(block_end(position))`` are the shards of the block that follows, in the next
        pass if need be.
        """
        epoch, within = divmod(position, self.samples)
        blocks, starts = self._blocks(epoch)
        block = int(np.searchsorted(starts, within, side="right")) - 1
        samples = self._permutation(epoch, block, blocks[block])[within - starts[block] :]
        shards = np.searchsorted(self._offsets, samples, side="right") - 1
        return shards[np.sort(np.unique(shards, return_index=True)[1])].tolist()

    def _blocks(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The shards of each block of a pass, and the position in the pass at which it starts."""
        if self._pass is None or self._pass[0] != epoch:
            shards = self._generator(epoch, -1).permutation(len(self.shard_samples))
            blocks = [
                shards[i : i + self._block_shards]
                for i in range(0, len(shards), self._block_shards)
            ]
            sizes = np.array([self.shard_samples[block].sum() for block in blocks])
            self._pass = (epoch, blocks, np.cumsum(sizes) - sizes)
        return self._pass[1], self._pass[2]

    def _permutation(self, epoch: int, index: int, shards: np.ndarray) -> np.ndarray:
        if self._block is None or self._block[:2] != (epoch, index):
            samples = np.concatenate(
                [self._offsets[shard] + np.arange(self.shard_samples[shard]) for shard in shards]
            )
            self._block = (epoch, index, self._generator(epoch, index).permutation(samples))
        return self._block[2]

    def _generator(self, epoch: int, block: int) -> np.random.Generator:
        """The stream of a block's samples; block -1 is that of the order of shards."""
        return np.random.default_rng(seed_of(self._seed, "order", *self._of, epoch, block))
