"""Token samples of one split, from shards on disk or fetched when they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from streaming import Stream
from streaming.base.world import World

from dept.data.fetch import (
    ATTEMPTS,
    clear_abandoned,
)
from dept.data.shard import WORK, Shard, stream_options
from dept.data.shard_cache import ShardCache
from dept.data.shard_files import fault, read_index, refuse_missing, remake
from dept.errors import DataError


class TokenReader:
    """Random access to the token samples of one split.

    It uses the readers of ``StreamingDataset``, but not the dataset, which shares memory and
    barriers between ranks: ranks that read different sources would wait there for ever.

    Args:
        directory: folder of the split, with its ``index.json``.
        remote: remote address of the same split, from which missing shards are fetched.
        cache: the cache that fetches them, shared by all readers under one limit.
        vocab_size: all tokens must be below this; by default any token is accepted.

    Raises:
        DataError: a shard is missing and there is no ``remote``, or the index names files or
            columns that are not allowed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        remote: str | None = None,
        cache: ShardCache | None = None,
        vocab_size: int | None = None,
    ) -> None:
        index = read_index(directory, "prepare the corpus again")
        self._files = index.shards
        self._unread = set(range(len(index.shards)))
        self._vocab_size = vocab_size
        stream = Stream(local=str(directory), keep_zip=True)
        stream.apply_default(stream_options(keep_zip=True))
        self._readers = stream.get_shards(World.detect(), allow_unsafe_types=False)
        self._cache = cache or ShardCache(None)
        self._shards: list[Shard] = []
        if remote is None:
            refuse_missing(index)
        else:
            for left in directory.glob(f"{WORK}*"):
                clear_abandoned(left)
            self._shards = [
                Shard(reader, directory, remote, number)
                for number, reader in enumerate(self._readers)
            ]
            self._cache.add(self._shards)
        self.shard_samples = [len(reader) for reader in self._readers]
        self._ends = np.cumsum(self.shard_samples)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of sample ``index``: uint16 or uint32 [sequence_length].

        Raises:
            DataError: its shard cannot be fetched, or is not as it was written.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = self._ends[number] - self.shard_samples[number]
        for _ in range(1 + ATTEMPTS):
            if self._shards:
                self._cache.need(self._shards[number])
            try:
                if number in self._unread:
                    self._look_at(number)
                return self._readers[number].get_item(int(index - first))["tokens"]
            except FileNotFoundError:
                if self._shards:
                    self._cache.forget(self._shards[number])
        raise DataError(f"{self._files[number].path} was removed while it was read")

    def _look_at(self, number: int) -> None:
        """Check a whole shard, once, before its first sample is read."""
        if not self._files[number].path.exists():
            raise FileNotFoundError
        found = fault(self._files[number], self._vocab_size)
        if found is not None:
            fix = f"remove it, so that it is fetched again from {self._shards[number].address}"
            raise DataError(f"{found}: {fix if self._shards else remake(self._files[number])}")
        self._unread.discard(number)

    def shards(self, numbers: Iterable[int]) -> list[Shard]:
        """The shards for a cache to fetch; empty if the split is not remote."""
        return [self._shards[number] for number in numbers] if self._shards else []

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Fetch these shards in advance, in this order; they replace earlier ones of the cache."""
        self._cache.want(self.shards(numbers))
