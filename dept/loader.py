"""From MDS shards to batches: a loader over sources to train on, one over a split to evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dept.corpus import PreparedSource
from dept.order import SampleOrder
from dept.remote import address_of
from dept.schedule import RoundSchedule
from dept.shard_cache import ShardCache
from dept.shards import TokenReader

Batch = dict[str, Tensor]


def collate(samples: list[np.ndarray]) -> Batch:
    """Token samples to the batch a causal language model takes: int64[batch, length] each."""
    input_ids = torch.from_numpy(np.stack(samples).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}


class SourceLoader:
    """Batches of one round after another, the slots of a round in turn.

    One pass over the loader is one round, which makes a Composer epoch a round. The loader knows
    sources and positions in them; which source comes when is the schedule's, set by the algorithm.

    Args:
        prepared: the sources, by name, in the order of the corpus.
        batch_size: samples in a batch.
        seed: of the order of samples.
        block_shards: shards whose samples are mixed.
        remote: where ``data/`` is that missing shards are fetched from, ahead of their need.
        cache_limit: the most bytes of remote shards to keep on disk; all by default.
    """

    def __init__(
        self,
        prepared: Mapping[str, PreparedSource],
        *,
        batch_size: int,
        seed: int,
        block_shards: int = 16,
        remote: str | None = None,
        cache_limit: int | None = None,
    ) -> None:
        self.prepared = dict(prepared)
        self.batch_size = batch_size
        self.schedule: RoundSchedule | None = None
        self.positions = dict.fromkeys(prepared, 0)
        self._start = (0, 0)
        self._cache = None if remote is None else ShardCache(cache_limit)
        self._ahead: tuple[str, int, str | None] | None = None
        self._readers = {
            name: TokenReader(
                source.train, remote=remote and address_of(remote, source.train), cache=self._cache
            )
            for name, source in prepared.items()
        }
        self._orders = {
            name: SampleOrder(
                reader.shard_samples, seed=seed, source=name, block_shards=block_shards
            )
            for name, reader in self._readers.items()
        }

    def start(self, round_index: int, batch_in_round: int) -> None:
        """Let the next pass be round ``round_index``, from its batch ``batch_in_round`` on."""
        self._start = (round_index, batch_in_round)

    def __len__(self) -> int:
        if self.schedule is None:
            raise NotImplementedError("the loader over sources has no length before its schedule")
        return self.schedule.batches_per_round

    def __iter__(self) -> Iterator[Batch]:
        if self.schedule is None:
            raise ValueError("train_loader.name: sources needs the algorithm: add algorithms.dept")
        round_index, first = self._start
        drawn, steps = self.schedule.drawn(round_index), self.schedule.local_steps
        following = [*drawn[1:], self.schedule.drawn(round_index + 1)[0]]
        for batch_in_round in range(first, len(self)):
            slot = self.schedule.slot_of_batch(batch_in_round)
            self._look_ahead(drawn[slot], steps - batch_in_round % steps, following[slot])
            yield self._next_batch(drawn[slot])

    def _look_ahead(self, source: str, batches: int, next_source: str | None) -> None:
        """Let the shards that come next be fetched; does nothing but when a block or slot begins.

        Args:
            source: the source of the next batch.
            batches: how many batches in a row are its own, the next one included.
            next_source: the source after them; ``None`` if there is none.
        """
        if self._cache is None:
            return
        position = self.positions[source]
        end = self._orders[source].block_end(position)
        if self._ahead == (source, end, next_source):
            return
        self._ahead = (source, end, next_source)
        plan = [(source, position), (source, end)]
        if next_source is not None and next_source != source:
            # Its block is needed first, or that after this one, whichever the slot comes to.
            ends_first = position + batches * self.batch_size <= end
            plan.insert(1 if ends_first else 2, (next_source, self.positions[next_source]))
        self._cache.want(
            [
                shard
                for name, at in plan
                for shard in self._readers[name].shards(self._orders[name].shards_at(at))
            ]
        )

    def _next_batch(self, source: str) -> Batch:
        reader, order, position = (
            self._readers[source],
            self._orders[source],
            self.positions[source],
        )
        self.positions[source] += self.batch_size
        return collate([reader[order.sample_at(position + i)] for i in range(self.batch_size)])

    def state_dict(self) -> dict[str, Any]:
        """Samples read of each source so far."""
        return {"positions": dict(self.positions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.positions.update(state["positions"])


class ValidationLoader:
    """Every sample of a source's validation split, in order; the last batch may be smaller.

    Args:
        prepared: the source.
        batch_size: samples in a batch.
        held_out: whether the run does not train on this source; for who reads the results.
        remote: where ``data/`` is that missing shards are fetched from, when they are first read.
            They stay: every evaluation reads them all.
    """

    def __init__(
        self,
        prepared: PreparedSource,
        *,
        batch_size: int,
        held_out: bool = False,
        remote: str | None = None,
    ) -> None:
        self.prepared = prepared
        self.held_out = held_out
        self.batch_size = batch_size
        self._reader = TokenReader(prepared.val, remote=remote and address_of(remote, prepared.val))

    def __len__(self) -> int:
        return -(-len(self._reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self._reader.prefetch(range(len(self._reader.shard_samples)))
        for first in range(0, len(self._reader), self.batch_size):
            last = min(first + self.batch_size, len(self._reader))
            yield collate([self._reader[i] for i in range(first, last)])
