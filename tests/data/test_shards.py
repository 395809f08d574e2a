"""Shards of a remote split: what is fetched when, and what is removed when there is a limit."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from small_shards import write_split
from training import REPOSITORY

from dept.data.fetch import address_of
from dept.data.loader import SourceLoader
from dept.data.shard import Shard
from dept.data.shard_cache import ShardCache, block_bytes
from dept.data.shards import TokenReader
from dept.errors import DataError
from dept.method.schedule import RoundSchedule

SIZES = [5, 3, 8, 2, 6, 7, 4, 5, 6, 3]
STARTS = np.cumsum(SIZES) - SIZES


class Split:
    """A split at a remote folder, and the folder that stands for it here: only its index."""

    def __init__(self, root, source="en", first=0):
        self.remote = root / "remote/data/c" / source / "global/train"
        self.local = root / "local/data/c" / source / "global/train"
        self.tokens = write_split(self.remote, SIZES, first=first)
        self.local.mkdir(parents=True)
        shutil.copy(self.remote / "index.json", self.local)

    def reader(self, limit=None, **options):
        cache = ShardCache(limit, **options)
        return TokenReader(self.local, remote=str(self.remote), cache=cache), cache

    def path(self, number):
        return self.local / f"{number:05}/shard.00000.mds"

    def here(self):
        return [n for n in range(len(SIZES)) if self.path(n).exists()]

    def bytes(self, *numbers):
        return sum((self.remote / f"{n:05}/shard.00000.mds").stat().st_size for n in numbers)


@pytest.fixture
def split(tmp_path):
    return Split(tmp_path)


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Numbers of the shards fetched so far, in order; not what an earlier test still fetches."""
    order, fetch = [], Shard.fetch

    def recording(self, stream):
        if self.path.is_relative_to(tmp_path):
            order.append(int(self.path.parent.name))
        fetch(self, stream)

    monkeypatch.setattr(Shard, "fetch", recording)
    return order


def settled(cache):
    """Wait until there is nothing more to fetch, or no room."""
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join()
    assert not cache._under_way


def test_a_shard_is_fetched_when_a_sample_of_it_is_read(split, fetched):
    reader, cache = split.reader()
    assert split.here() == []
    assert np.array_equal(reader[int(STARTS[2])], split.tokens[STARTS[2]])
    assert split.here() == [2] and cache.waits == 1
    assert np.array_equal([reader[i] for i in range(len(reader))], split.tokens)
    assert sorted(fetched) == list(range(len(SIZES)))
    assert not list(split.local.glob(".fetch-*"))
    assert np.array_equal(TokenReader(split.local)[0], split.tokens[0])  # now a local split


def test_needed_shards_come_before_read_ahead_and_that_in_its_order(split, fetched, monkeypatch):
    reader, cache = split.reader(fetchers=1)
    begun, gate, fetch = threading.Event(), threading.Event(), Shard.fetch

    def gated(self, stream):
        begun.set()
        gate.wait()
        fetch(self, stream)

    monkeypatch.setattr(Shard, "fetch", gated)
    reader.prefetch([3, 1, 2, 3])
    begun.wait()
    needing = threading.Thread(target=reader.__getitem__, args=[int(STARTS[9])])
    needing.start()
    while cache._needed is None:
        time.sleep(0.001)
    gate.set()
    needing.join()
    settled(cache)
    assert fetched == [3, 9, 1, 2] and cache.waits == 1
    reader[int(STARTS[1])], reader[int(STARTS[2])], reader[int(STARTS[3])]
    assert cache.waits == 1 and len(fetched) == 4


def test_what_is_cut_short_is_fetched_again(split, fetched):
    reader, cache = split.reader()
    reader.prefetch(range(4))
    settled(cache)
    reader.prefetch([])
    os.truncate(split.path(1), 10)
    left = split.local / ".fetch-00007"  # of a killed process, the whole file in it or not
    left.mkdir()
    (left / "half").write_bytes(b"half")
    fetched.clear()
    reader, _ = split.reader()
    assert split.here() == [0, 2, 3] and not left.exists()
    assert np.array_equal(reader[int(STARTS[1])], split.tokens[STARTS[1]])
    assert fetched == [1]


def test_the_work_of_another_process_is_left_alone(split):
    busy = split.local / ".fetch-00007"
    busy.mkdir()
    handle = os.open(busy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    split.reader()
    assert busy.exists()
    os.close(handle)
    split.reader()
    assert not busy.exists()


def test_the_limit_holds_over_whole_passes_of_two_sources(tmp_path, monkeypatch):
    block = 3
    splits = {"en": Split(tmp_path, "en"), "it": Split(tmp_path, "it", first=1000)}
    needed = block_bytes(splits["en"].local, block)
    assert needed == splits["en"].bytes(2, 5, 4)  # the largest
    most, fetch = [], Shard.fetch

    def measure():
        """Bytes of shards and of parts of them; a file that is just being renamed counts once."""
        sizes = {}
        with loader._cache._changed:  # nothing is removed meanwhile
            for folder, _, names in os.walk(tmp_path / "local"):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        stat = os.stat(os.path.join(folder, name))
                        sizes[stat.st_ino] = stat.st_size if ".mds" in name else 0
        most.append(sum(sizes.values()))

    def measuring(self, stream):
        measure()
        fetch(self, stream)
        measure()

    monkeypatch.setattr(Shard, "fetch", measuring)
    for extra in (0, 150, 1000):
        for held in tmp_path.glob("local/**/*.mds"):
            held.unlink()
        loader = loader_of(splits, block, remote=str(tmp_path / "remote"), limit=needed + extra)
        plain = loader_of(splits, block, remote=None)
        most.clear()
        for round_index in range(20):
            loader.start(round_index, {}, loader.positions)
            plain.start(round_index, {}, plain.positions)
            for ours, theirs in zip(loader, plain, strict=True):
                assert np.array_equal(ours["input_ids"], theirs["input_ids"])
                measure()
        assert loader.positions["en"] > 2 * sum(SIZES)
        assert needed / 2 < max(most) <= needed + extra
        settled(loader._cache)


def loader_of(splits, block, remote, limit=None):
    prepared = {
        name: SimpleNamespace(
            name=name, train=split.local if remote else split.remote, vocab_size=1 << 16
        )
        for name, split in splits.items()
    }
    loader = SourceLoader(
        prepared, batch_size=4, seed=3, block_shards=block, remote=remote, cache_limit=limit
    )
    loader.bind(RoundSchedule(tuple(splits), len(splits), local_steps=3, seed=1))
    return loader


def test_what_comes_is_said_when_a_block_or_slot_begins_only(tmp_path, monkeypatch):
    splits = {"en": Split(tmp_path, "en"), "it": Split(tmp_path, "it", first=1000)}
    loader = loader_of(splits, 3, remote=str(tmp_path / "remote"))
    said, english = [], loader._open["en"]
    monkeypatch.setattr(loader._cache, "want", said.append)
    end = english.order.block_end(0)
    now, then, next_slot = (
        english.shards_at(0),
        english.shards_at(end),
        loader._open["it"].shards_at(0),
    )
    loader._look_ahead("en", end // 4, "it")  # batches of 4
    assert said.pop() == [*now, *next_slot, *then]
    loader._look_ahead("en", end // 4 - 1, "it")
    assert said == []
    loader._look_ahead("en", end // 4 + 1, "en")  # the only source
    assert said.pop() == [*now, *then]
    loader._ahead = None
    loader._look_ahead("en", end // 4 + 1, "it")
    assert said.pop() == [*now, *then, *next_slot]
    loader.positions["en"] = end
    loader._look_ahead("en", 1, "it")
    assert said.pop()[: len(then)] == then


def test_what_is_wanted_first_keeps_its_room(split, fetched):
    room = split.bytes(0, 1, 2)
    reader, cache = split.reader(room, fetchers=1)
    reader.prefetch([0, 1, 2, 4, 5])
    settled(cache)
    assert split.here() == [0, 1, 2]  # the others wait for room
    reader[int(STARTS[1])], reader[0]
    reader.prefetch([1, 6, 0, 2])
    settled(cache)
    assert 6 in split.here() and 2 not in split.here()  # what is wanted last gave its room
    reader.prefetch([9])  # of those not wanted, that needed longest ago goes
    settled(cache)
    assert split.here() == [0, 6, 9]
    assert split.bytes(*split.here()) <= room


def test_what_an_earlier_process_left_is_counted_and_reduced_to_the_limit(split, fetched):
    shutil.copytree(split.remote, split.local, dirs_exist_ok=True)
    reader, cache = split.reader(split.bytes(2, 4, 5))
    reader.prefetch([5, 4])
    settled(cache)
    assert {4, 5} < set(split.here()) and split.bytes(*split.here()) <= split.bytes(2, 4, 5)
    assert fetched == []


def test_what_another_process_holds_is_not_removed(split):
    reader, cache = split.reader(split.bytes(0, 1))
    reader.prefetch([0, 1])
    settled(cache)
    other, others = split.reader(split.bytes(0))  # locks are of descriptors: this one is another's
    other.prefetch([0])
    reader.prefetch([3, 1])
    settled(cache)
    assert set(split.here()) == {0, 1, 3}
    others.want([])
    reader.prefetch([6])
    settled(cache)
    assert 6 in split.here()


def test_a_failed_read_ahead_is_said_where_the_shard_is_needed(split, fetched):
    (split.remote / "00001/shard.00000.mds").rename(split.remote / "away")
    reader, cache = split.reader()
    reader.prefetch([0, 1, 2])
    settled(cache)
    assert split.here() == [0, 2] and reader[0] is not None
    address = rf"{split.remote}/00001/shard.00000.mds cannot be fetched .*train_loader.remote"
    with pytest.raises(DataError, match=address):
        reader[int(STARTS[1])]
    (split.remote / "away").rename(split.remote / "00001/shard.00000.mds")
    assert np.array_equal(reader[int(STARTS[1])], split.tokens[STARTS[1]])


def test_a_file_that_cannot_be_removed_ends_the_wait(split, monkeypatch):
    def remove(self):
        raise PermissionError(f"{self.path} is not ours")

    reader, cache = split.reader(split.bytes(0, 1))
    reader.prefetch([0, 1])
    settled(cache)
    monkeypatch.setattr(Shard, "remove", remove)
    with pytest.raises(PermissionError, match="is not ours"):
        reader[int(STARTS[2])]


def test_a_shard_of_another_version_is_refused(split):
    write_split(split.remote, SIZES, first=5)  # of the same sizes
    reader, _ = split.reader()
    with pytest.raises(DataError, match=r"00000.mds is cut short or of another version"):
        reader[0]
    assert split.here() == []


def test_a_limit_below_one_shard_is_refused(split):
    reader, _ = split.reader(split.bytes(2) - 1)
    reader[0]
    with pytest.raises(DataError, match=rf"cache_limit is .* set it to {split.bytes(2)} or more"):
        reader[int(STARTS[2])]


def test_a_local_split_is_neither_fetched_nor_removed(split):
    with pytest.raises(DataError, match=r"shard.00000.mds is missing: remove"):
        TokenReader(split.local)
    reader = TokenReader(split.remote, cache=ShardCache(1))
    reader.prefetch([0, 1])
    assert np.array_equal([reader[i] for i in range(len(reader))], split.tokens)
    assert len(list(split.remote.glob("*/*.mds"))) == len(SIZES)


READ_ALL = """
import sys
from pathlib import Path
from dept.data.fetch import address_of
from dept.data.shard_cache import ShardCache
from dept.data.shards import TokenReader

local, remote, limit, passes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reader = TokenReader(local, remote=address_of(remote, local), cache=ShardCache(limit))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(passes):
    for first in range(0, len(reader.shard_samples), 3):
        block = [n % len(reader.shard_samples) for n in range(first, first + 6)]
        reader.prefetch(block)
        ends = reader._ends
        for sample in range(ends[first - 1] if first else 0, ends[min(first + 2, len(ends) - 1)]):
            assert reader[int(sample)][0] == sample * 8, sample
print("read", flush=True)
"""


def process(split, remote, limit, passes=1):
    """A process that reads the split, once it may begin."""
    arguments = [str(split.local), str(remote), str(limit), str(passes)]
    started = subprocess.Popen(
        [sys.executable, "-c", READ_ALL, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "ready\n"
    return started


def test_two_processes_read_one_folder(tmp_path, split):
    assert address_of(str(tmp_path / "remote"), split.local) == str(split.remote)
    limit = block_bytes(split.local, 4)
    readers = [process(split, tmp_path / "remote", limit, passes=15) for _ in range(2)]
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    assert [reader.communicate()[0] for reader in readers] == ["read\n", "read\n"]
    assert split.bytes(*split.here()) <= 2 * limit
    # A process does not wait at its end for what it fetches ahead; the next one fetches that again.
    reader, _ = split.reader()
    assert np.array_equal([reader[i] for i in range(len(reader))], split.tokens)
    assert not list(split.local.glob(".fetch-*/*"))
