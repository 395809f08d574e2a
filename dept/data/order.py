"""The order in which the samples of a source are read, as a function of seed, source and epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dept.method.streams import seed_of

PRETRAINING = "pretraining"
"""The stage of a run that does not start from another one."""


class SampleOrder:
    """Consecutive shuffled passes over a source, addressed by one integer.

    Shards are shuffled, then samples within blocks of ``block_shards`` shards, so that the shards
    of a remote corpus are read nearly in sequence and a local cache of a block is enough. Every
    pass has a new shuffle. Position ``p`` is in pass ``p // samples``, so a resumed run needs only
    the position.

    Args:
        shard_samples: how many samples each shard holds.
        seed: seed of the run.
        source: name of the source, so that sources are shuffled differently.
        stage: stage of training: a run that starts from another one must not repeat its batches.
        block_shards: how many shards are mixed by the shuffle.

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
        """The first position after the block of ``position``; no block extends over two passes."""
        epoch, within = divmod(position, self.samples)
        starts = self._blocks(epoch)[1]
        block = int(np.searchsorted(starts, within, side="right"))
        return epoch * self.samples + (int(starts[block]) if block < len(starts) else self.samples)

    def shards_at(self, position: int) -> list[int]:
        """The shards that the rest of the block of ``position`` needs, in the order of first use.

        ``shards_at(block_end(position))`` are the shards of the next block, which may be in the
        next pass.
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
        """The stream of a block's samples; block -1 is the stream of the order of shards."""
        return np.random.default_rng(seed_of(self._seed, "order", *self._of, epoch, block))
