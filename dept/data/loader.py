"""Loaders that make batches from MDS shards: over sources to train, over a split to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from dept.data.corpus import PreparedSource
from dept.data.fetch import address_of
from dept.data.order import PRETRAINING, SampleOrder
from dept.data.shard import Shard
from dept.data.shard_cache import ShardCache
from dept.data.shards import TokenReader
from dept.data.upload import Batch, batches_ahead
from dept.errors import DataError
from dept.method.schedule import RoundSchedule
from dept.transport.topology import Place


def collate(samples: list[np.ndarray]) -> Batch:
    """Stack token samples to a batch for a causal language model: int64[batch, length] each.

    In training a batch also has its ``source`` and ``step``.
    """
    input_ids = torch.from_numpy(np.stack(samples).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}


class OpenSource:
    """The training split of a source, read in its order.

    Args:
        prepared: the source.
        seed: seed of the order.
        stage: stage of training (:class:`dept.data.order.SampleOrder`).
        block_shards: how many shards are mixed by the shuffle.
        remote: folder or address of ``data/`` that missing shards are fetched from.
        cache: cache of remote shards, shared by all sources under one limit.

    Raises:
        DataError: a shard is missing.
    """

    def __init__(
        self,
        prepared: PreparedSource,
        *,
        seed: int,
        stage: str = PRETRAINING,
        block_shards: int = 16,
        remote: str | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        self._reader = TokenReader(
            prepared.train,
            remote=remote and address_of(remote, prepared.train),
            cache=cache,
            vocab_size=prepared.vocab_size,
        )
        self.order = SampleOrder(
            self._reader.shard_samples,
            seed=seed,
            source=prepared.name,
            stage=stage,
            block_shards=block_shards,
        )

    def sample_at(self, position: int) -> np.ndarray:
        """The tokens at ``position`` of the order: uint16 or uint32 [sequence_length]."""
        return self._reader[self.order.sample_at(position)]

    def shards_at(self, position: int) -> list[Shard]:
        """The shards of a remote source that the rest of the block of ``position`` needs."""
        return self._reader.shards(self.order.shards_at(position))


class SourceLoader:
    """Batches of one round after another: the slots of this worker, one after another.

    One pass over the loader is one round, which makes a Composer epoch a round. The loader keeps
    sources and positions in them; the algorithm gives it the schedule, which orders the sources.
    Only sources that this worker may train are read, and must be on its machine.

    Args:
        prepared: the sources, by name, in the order of the corpus.
        batch_size: samples in a batch of this rank.
        seed: seed of the order of samples.
        stage: stage of training.
        place: place of this rank; the ranks of a worker read parts of the same batch.
        block_shards: how many shards are mixed by the shuffle.
        remote: folder or address of ``data/`` that missing shards are fetched from in advance.
        cache_limit: the most bytes of remote shards to keep on disk; all by default.
        find: finds another source of the corpus by name, for :meth:`add`.

    Attributes:
        block_shards: how many shards are mixed by the shuffle.
        positions: samples read so far of each source, including batches not yet trained on.
        round_index: round of the pass, from 0.
        plan: source and local step of each batch of the pass.
    """

    def __init__(
        self,
        prepared: Mapping[str, PreparedSource],
        *,
        batch_size: int,
        seed: int,
        stage: str = PRETRAINING,
        place: Place | None = None,
        block_shards: int = 16,
        remote: str | None = None,
        cache_limit: int | None = None,
        find: Callable[[str], PreparedSource] | None = None,
    ) -> None:
        self.prepared = dict(prepared)
        self._find = find
        self.batch_size = batch_size
        self.place = place or Place()
        self.plan: list[tuple[str, int]] = []
        self.positions = dict.fromkeys(prepared, 0)
        self._seed, self._stage = seed, stage
        self.block_shards = block_shards
        self._remote = remote
        self._cache = None if remote is None else ShardCache(cache_limit)
        self._ahead: tuple[str, int, str] | None = None
        self.round_index = 0
        self._schedule: RoundSchedule | None = None
        self._open: dict[str, OpenSource] = {}

    def add(self, source: str) -> PreparedSource:
        """Add a source of the corpus, to finish a round of earlier sources.

        Args:
            source: its name.

        Raises:
            DataError: the corpus does not have it any more.
        """
        if self._find is None:
            raise DataError(f"the round cannot end without {source}: name it in sources again")
        self.prepared[source] = self._find(source)
        return self.prepared[source]

    def bind(self, schedule: RoundSchedule) -> None:
        """Follow ``schedule``, and open all sources that this worker may train in any round.

        Raises:
            DataError: a shard is missing.
        """
        self._schedule = schedule
        here = schedule.sources_of(self.place.worker)
        added = [name for name in self.prepared if name not in schedule.sources]
        for name in (*here, *added):
            self._open[name] = OpenSource(
                self.prepared[name],
                seed=self._seed,
                stage=self._stage,
                block_shards=self.block_shards,
                remote=self._remote,
                cache=self._cache,
            )

    @property
    def schedule(self) -> RoundSchedule:
        """The schedule of the loader.

        Raises:
            ValueError: the loader has no schedule yet.
        """
        if self._schedule is None:
            raise ValueError("train_loader.name: sources needs the algorithm: add algorithms.dept")
        return self._schedule

    def start(
        self, round_index: int, done: Mapping[str, int], positions: Mapping[str, int]
    ) -> list[tuple[str, int]]:
        """Set the next pass to the remaining batches of a round.

        Args:
            round_index: from 0.
            done: local steps that each source has already taken in the round.
            positions: samples trained on so far, of each source that this worker holds.

        Returns:
            The source and the local step of each batch of the pass.
        """
        self.round_index = round_index
        self.positions = dict(positions)
        self.plan = self.schedule.remaining(self.place.worker, round_index, done)
        return self.plan

    def samples_at(self, source: str, first: int, last: int) -> list[int]:
        """The samples at positions ``first`` to ``last`` (excluded) of a source's order, as numbers
        in its training split over all shards in file order.

        Args:
            source: name of a source that this worker has opened.
            first: first position, in samples from 0.
            last: position after the last one, in samples.
        """
        return [self._open[source].order.sample_at(at) for at in range(first, last)]

    def __len__(self) -> int:
        if self._schedule is None:
            raise NotImplementedError("the loader over sources has no length before its schedule")
        return self._schedule.batches_of(self.round_index)

    def __iter__(self) -> Iterator[Batch]:
        return batches_ahead(self._batches())

    def _batches(self) -> Iterator[Batch]:
        sources = [source for source, _ in self.plan]
        if sources:
            sources.append(self._next_round_source(otherwise=sources[-1]))
        for batch, (source, step) in enumerate(self.plan):
            left = self.schedule.local_steps - step
            self._look_ahead(source, left, sources[batch + left])
            yield self._next_batch(source) | {"source": source, "step": step}

    def _next_round_source(self, otherwise: str) -> str:
        """The source that this worker trains first in the next round, if it holds its position."""
        slots = self.schedule.slots_of(self.place.worker, self.round_index + 1)
        if not slots:  # the server of a federation has not drawn it yet
            return otherwise
        holder = self.schedule.holders(self.round_index).get(slots[0])  # None: it joins then
        return slots[0] if holder == self.place.worker else otherwise

    def _look_ahead(self, source: str, batches: int, next_source: str) -> None:
        """Fetch the next shards in the background, at the beginning of a block or slot.

        Args:
            source: the source of the next batch.
            batches: how many consecutive batches are of this source, including the next one.
            next_source: the source after them.
        """
        if self._cache is None:
            return
        position = self.positions[source]
        end = self._open[source].order.block_end(position)
        if self._ahead == (source, end, next_source):
            return
        self._ahead = (source, end, next_source)
        plan = [(source, position), (source, end)]
        if next_source != source:
            # The slot needs the block of its own position, or the block after the current one.
            ends_first = position + batches * self.batch_size * self.place.ranks <= end
            plan.insert(1 if ends_first else 2, (next_source, self.positions[next_source]))
        self._cache.want([shard for name, at in plan for shard in self._open[name].shards_at(at)])

    def _next_batch(self, source: str) -> Batch:
        first = self.positions[source] + self.place.rank * self.batch_size
        self.positions[source] += self.place.ranks * self.batch_size
        samples = [self._open[source].sample_at(first + i) for i in range(self.batch_size)]
        return collate(samples)


class ValidationLoader:
    """Every sample of a source's validation split, in order; the last batch may be smaller.

    Args:
        prepared: the source.
        batch_size: samples in a batch.
        held_out: whether the run does not train on this source; reported with the results.
        remote: folder or address of ``data/`` that missing shards are fetched from at their first
            use. They are kept, since every evaluation reads all of them.
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
        self._reader = TokenReader(
            prepared.val,
            remote=remote and address_of(remote, prepared.val),
            vocab_size=prepared.vocab_size,
        )

    def __len__(self) -> int:
        return -(-len(self._reader) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._batches()
        return batches_ahead(batches) if torch.cuda.is_available() else batches

    def _batches(self) -> Iterator[Batch]:
        self._reader.prefetch(range(len(self._reader.shard_samples)))
        for first in range(0, len(self._reader), self.batch_size):
            last = min(first + self.batch_size, len(self._reader))
            yield collate([self._reader[i] for i in range(first, last)])
