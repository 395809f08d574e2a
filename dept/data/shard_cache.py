"""The cache of remote shards on disk: they are fetched in advance, within a limit."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dept.data.shard import Shard
from dept.errors import DataError

FETCHERS = 4
"""Shards fetched in parallel: a block is needed almost at once, and one connection is slow."""


class ShardCache:
    """The shards that a process keeps on disk, of all its sources.

    One thread reads. Background threads fetch; they end when nothing is left to fetch, and the exit
    of the process does not wait for them. ``want`` announces the shards to read, in order of use,
    and ``need`` waits for one shard. To make room, the cache first removes shards that are not
    wanted, least recently used first, and then those that are wanted last. So the bytes on disk,
    including partial downloads, never exceed the limit.

    Processes may share folders. Each holds a shared lock on the files that it wants, so that no
    other process removes them. Files that another process holds count for that process only.

    Args:
        limit: bytes on disk, of shards whose addresses are all of one kind (a folder, ``s3://``);
            ``None`` keeps everything.
        fetchers: shards fetched in parallel.
    """

    def __init__(self, limit: int | None, *, fetchers: int = FETCHERS) -> None:
        self.waits = 0
        """How often a shard was not on disk when it was needed."""
        self._limit = limit
        self._fetchers = fetchers
        # Least recently needed first; with the lock on those that are wanted.
        self._held: OrderedDict[Shard, int | None] = OrderedDict()
        self._plan: list[Shard] = []
        self._needed: Shard | None = None
        self._under_way: set[Shard] = set()
        self._failed: dict[Shard, Exception] = {}
        self._broken: Exception | None = None
        self._threads = 0
        self._connections: list[Any] = []
        self._changed = threading.Condition()

    def add(self, shards: Iterable[Shard]) -> None:
        """Count those of ``shards`` that an earlier process left on disk."""
        with self._changed:
            for shard in shards:
                if shard.is_whole():
                    self._held[shard] = None
                else:
                    shard.remove()  # cut short by another program

    def want(self, shards: Sequence[Shard]) -> None:
        """Fetch ``shards`` in this order, as far as there is room; they replace earlier ones.

        Failed downloads are tried again.
        """
        with self._changed:
            self._plan, self._needed = list(shards), None
            self._failed.clear()
            self._settle()

    def need(self, shard: Shard) -> None:
        """Wait until ``shard`` is on disk; it is fetched before shards that are only wanted.

        Raises:
            DataError: it cannot be fetched.
            OSError: files on the disk cannot be locked or removed.
        """
        with self._changed:
            self._needed = shard
            if self._held.get(shard) is None:
                self._failed.pop(shard, None)
                self._settle()
                self.waits += self._held.get(shard) is None
                while self._held.get(shard) is None:
                    if shard in self._failed:
                        raise self._failed.pop(shard)
                    if self._broken is not None:
                        raise self._broken
                    self._changed.wait()
            self._held.move_to_end(shard)

    def forget(self, shard: Shard) -> None:
        """Fetch ``shard`` again, since a program that ignores locks has removed its file."""
        with self._changed:
            lock = self._held.pop(shard, None)
            if lock is not None:
                os.close(lock)

    def _wanted(self) -> list[Shard]:
        first = [] if self._needed is None else [self._needed]
        return list(dict.fromkeys([*first, *self._plan]))

    def _settle(self) -> None:
        """Lock wanted shards on disk, release shards that are not wanted, fetch missing ones."""
        wanted = self._wanted()
        keep = set(wanted)
        for shard, lock in list(self._held.items()):
            if shard not in keep and lock is not None:
                os.close(lock)
                self._held[shard] = None
            elif shard in keep and lock is None:
                self._lock(shard)
        self._make_room(0, wanted, 1)  # an earlier process may have had a higher limit
        missing = sum(self._is_missing(shard) for shard in wanted)
        for _ in range(min(missing, self._fetchers - self._threads)):
            self._threads += 1
            threading.Thread(target=self._work, name="shards", daemon=True).start()

    def _is_missing(self, shard: Shard) -> bool:
        return not (shard in self._held or shard in self._under_way or shard in self._failed)

    def _lock(self, shard: Shard) -> None:
        lock = shard.hold()
        if lock is None:  # another process has removed it
            del self._held[shard]
        else:
            self._held[shard] = lock

    def _work(self) -> None:
        """Run a fetching thread; its failure must not leave the reading thread waiting."""
        try:
            self._fetch()
        except Exception as raised:
            with self._changed:
                self._broken = raised
                self._threads -= 1
                self._changed.notify_all()

    def _fetch(self) -> None:
        """Fetch missing shards until none is missing or there is no room."""
        while True:
            with self._changed:
                shard = self._next()
                if shard is None:
                    self._threads -= 1
                    return
                self._under_way.add(shard)
                connection = self._connections.pop() if self._connections else None
            error = None
            try:
                connection = connection or shard.connect()
                shard.fetch(connection)
            except Exception as raised:  # for the thread that needs the shard
                connection, error = None, raised
            with self._changed:
                self._under_way.remove(shard)
                if connection is not None:
                    self._connections.append(connection)
                if error is None:
                    self._held[shard] = None
                    if shard in self._wanted():
                        self._lock(shard)
                else:
                    self._failed[shard] = error
                self._changed.notify_all()

    def _next(self) -> Shard | None:
        """The first missing shard, with room made for it; ``None`` if it has to wait for room."""
        wanted = self._wanted()
        for place, shard in enumerate(wanted):
            if not self._is_missing(shard):
                continue
            if self._limit is not None and shard.bytes > self._limit:
                self._failed[shard] = too_small(self._limit, shard.bytes)
                self._changed.notify_all()
                continue
            return shard if self._make_room(shard.bytes, wanted, place) else None
        return None

    def _make_room(self, size: int, wanted: Sequence[Shard], keep: int) -> bool:
        """Remove shards until ``size`` bytes fit. Nothing is removed if that is impossible without
        the first ``keep`` of the wanted ones."""
        if self._limit is None:
            return True
        used = sum(shard.bytes for shard in (*self._held, *self._under_way))
        excess = used + size - self._limit
        removable = [shard for shard in self._held if shard not in wanted]
        removable += [shard for shard in reversed(wanted[keep:]) if shard in self._held]
        if sum(shard.bytes for shard in removable) < excess:
            return False
        for shard in removable:
            if excess <= 0:
                break
            lock = self._held.pop(shard)
            if lock is not None:
                os.close(lock)
            shard.remove()
            excess -= shard.bytes
        return True


def block_bytes(split: Path, block_shards: int) -> int:
    """The greatest size of ``block_shards`` shards of a split in bytes, from its ``index.json``.

    Args:
        split: local folder of the split.
        block_shards: number of shards of a block.

    Returns:
        Bytes of its largest ``block_shards`` shards. Packed files, if any, are counted in addition.
    """
    shards = json.loads((split / "index.json").read_text())["shards"]
    sizes = [
        sum(part["bytes"] for part in (shard["raw_data"], shard["zip_data"]) if part)
        for shard in shards
    ]
    return sum(sorted(sizes, reverse=True)[:block_shards])


def too_small(limit: int, needed: int) -> DataError:
    """The error about a limit below the ``needed`` bytes.

    Args:
        limit: ``train_loader.cache_limit`` in bytes.
        needed: bytes that are needed at the same time.

    Returns:
        The error, for the caller to raise.
    """
    return DataError(
        f"train_loader.cache_limit is {limit} bytes, but {needed} are needed at the same time: set "
        f"it to {needed} or more"
    )
