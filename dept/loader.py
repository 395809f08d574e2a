"""From MDS shards to batches: a loader over sources to train on, one over a split to evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from streaming import Stream
from streaming.base.world import World
from torch import Tensor

from dept.corpus import DataError, PreparedSource
from dept.order import SampleOrder
from dept.place import Place
from dept.schedule import RoundSchedule

Batch = dict[str, Tensor]


class TokenReader:
    """Random access to the token samples of one split.

    Uses the readers beneath ``StreamingDataset``, not the dataset: that one shares memory and
    barriers between ranks, which ranks that read different sources would wait at for ever.

    Args:
        directory: the split, with its ``index.json``.

    Raises:
        DataError: the index names a shard that is not there.
    """

    def __init__(self, directory: Path) -> None:
        stream = Stream(local=str(directory), keep_zip=True)
        defaults = {"split": "", "download_retry": 2, "download_timeout": 60.0}
        stream.apply_default({**defaults, "validate_hash": None, "keep_zip": True})
        self._shards = stream.get_shards(World.detect(), allow_unsafe_types=False)
        for shard in self._shards:
            for part in shard.file_pairs:
                path = directory / part[0].basename
                if not path.is_file() or path.stat().st_size != part[0].bytes:
                    raise DataError(
                        f"{path} is missing or cut short: remove {directory.parent} and prepare "
                        f"the corpus again"
                    )
        self.shard_samples = [len(shard) for shard in self._shards]
        self._ends = np.cumsum(self.shard_samples)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of sample ``index``: uint16 or uint32 [sequence_length]."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = self._ends[shard] - self.shard_samples[shard]
        return self._shards[shard].get_item(int(index - first))["tokens"]


def collate(samples: list[np.ndarray]) -> Batch:
    """Token samples to the batch a causal language model takes: int64[batch, length] each."""
    input_ids = torch.from_numpy(np.stack(samples).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}


class SourceLoader:
    """Batches of one round after another, the slots of this worker in turn.

    One pass over the loader is one round, which makes a Composer epoch a round. The loader knows
    sources and positions in them; which source comes when is the schedule's, set by the algorithm.

    Args:
        prepared: the sources, by name, in the order of the corpus.
        batch_size: samples in a batch of this rank.
        seed: of the order of samples.
        place: of this rank; the ranks of a worker read parts of the same batch.

    Attributes:
        plan: source and local step of each batch of the pass.
        current: those of the batch that was given last.
        coming_step: the sequential step (of one source's training) of the batch to come.
    """

    def __init__(
        self,
        prepared: Mapping[str, PreparedSource],
        *,
        batch_size: int,
        seed: int,
        place: Place | None = None,
    ) -> None:
        self.prepared = dict(prepared)
        self.batch_size = batch_size
        self.place = place or Place()
        self.schedule: RoundSchedule | None = None
        self.positions = dict.fromkeys(prepared, 0)
        self.plan: list[tuple[str, int]] = []
        self.current = ("", 0)
        self.coming_step = 0
        self._round = 0
        self._readers = {name: TokenReader(source.train) for name, source in prepared.items()}
        self._orders = {
            name: SampleOrder(reader.shard_samples, seed=seed, source=name)
            for name, reader in self._readers.items()
        }

    def start(self, round_index: int, done: Mapping[str, int]) -> None:
        """Let the next pass be what is left of a round.

        Args:
            round_index: from 0.
            done: local steps that a source has already taken in it.
        """
        assert self.schedule is not None
        self._round = round_index
        self.plan = self.schedule.remaining(self.place.worker, round_index, done)
        self.coming_step = self._sequential_step(0)

    def _sequential_step(self, batch: int) -> int:
        assert self.schedule is not None
        steps = self.schedule.local_steps
        step = self.plan[batch][1] if batch < len(self.plan) else steps
        return self._round * steps + step

    def __len__(self) -> int:
        if self.schedule is None:
            raise NotImplementedError("the loader over sources has no length before its schedule")
        return self.schedule.batches_per_round

    def __iter__(self) -> Iterator[Batch]:
        if self.schedule is None:
            raise ValueError("train_loader.name: sources needs the algorithm: add algorithms.dept")
        for batch, current in enumerate(self.plan):
            self.current, self.coming_step = current, self._sequential_step(batch + 1)
            yield self._next_batch(current[0])

    def _next_batch(self, source: str) -> Batch:
        reader, order = self._readers[source], self._orders[source]
        first = self.positions[source] + self.place.rank * self.batch_size
        self.positions[source] += self.place.ranks * self.batch_size
        return collate([reader[order.sample_at(first + i)] for i in range(self.batch_size)])


class ValidationLoader:
    """Every sample of a source's validation split, in order; the last batch may be smaller.

    Args:
        prepared: the source.
        batch_size: samples in a batch.
        held_out: whether the run does not train on this source; for who reads the results.
    """

    def __init__(
        self, prepared: PreparedSource, *, batch_size: int, held_out: bool = False
    ) -> None:
        self.prepared = prepared
        self.held_out = held_out
        self.batch_size = batch_size
        self._reader = TokenReader(prepared.val)

    def __len__(self) -> int:
        return -(-len(self._reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._reader), self.batch_size):
            last = min(first + self.batch_size, len(self._reader))
            yield collate([self._reader[i] for i in range(first, last)])
