"""Shards of one split as files: what their index says, and whether they are what it says.

An index may come from elsewhere, so it is read before anything that it names is opened: it must
name files of its own folder, and one column of tokens. MDS knows other columns, pickled ones that
run code among them; they are none of ours. Imports stay at numpy, as in dept/data/corpus.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dept.errors import DataError

INDEX = "index.json"
HASH = "xxh64"  # that data preparation writes
BLOCK = 1 << 22  # bytes that are hashed at once

_ENCODING = re.compile(r"ndarray:(uint16|uint32):([1-9]\d{0,9})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
_ELSEWHERE = "do not use shards of this origin"


@dataclass(frozen=True)
class ShardFile:
    """What an index says of a shard."""

    path: Path
    bytes: int
    samples: int
    hashes: Mapping[str, str]  # algorithm -> digest in hexadecimal; none in shards of other writers
    dtype: str
    sequence_length: int


@dataclass(frozen=True)
class SplitIndex:
    """An ``index.json``, read."""

    path: Path
    sha256: str
    shards: tuple[ShardFile, ...]

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


def is_name(text: Any) -> bool:
    """Whether a name out of a file can name nothing but an entry of the folder it is used in."""
    return isinstance(text, str) and _PART.fullmatch(text) is not None


def read_index(directory: Path, mend: str) -> SplitIndex:
    """Read the ``index.json`` of a split.

    Args:
        directory: of the split.
        mend: what to do if it is not there or not whole; ends the message.

    Raises:
        DataError: it is missing, is no index, or names files elsewhere or columns of another kind.
    """
    path = directory / INDEX
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"{path} does not exist: {mend}") from None
    try:
        content = json.loads(data)
        shards = tuple(_shard(path, entry) for entry in content["shards"])
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is not an index of MDS shards: {mend}") from None
    return SplitIndex(path, hashlib.sha256(data).hexdigest(), shards)


def _shard(index: Path, entry: Mapping[str, Any]) -> ShardFile:
    raw, packed = entry["raw_data"], entry["zip_data"]
    for part in (raw, packed) if packed else (raw,):
        if not all(map(is_name, part["basename"].split("/"))):
            raise DataError(f"{index} names a file {part['basename']!r}: {_ELSEWHERE}")
        if not _is_count(part["bytes"]) or not isinstance(part["hashes"], Mapping):
            raise TypeError
    encoding = _ENCODING.fullmatch(entry["column_encodings"][0])
    if entry["format"] != "mds" or entry["column_names"] != ["tokens"] or not encoding:
        raise DataError(
            f"{index} has the columns {', '.join(map(str, entry['column_encodings']))}, where one "
            f"of tokens is expected (ndarray:uint16 or uint32) and nothing else is read: "
            f"{_ELSEWHERE}"
        )
    size = int(encoding[2]) * np.dtype(encoding[1]).itemsize
    sizes = {"column_encodings": [encoding[0]], "column_sizes": [size], "version": 2}
    if not _is_count(entry["samples"]) or any(entry[key] != value for key, value in sizes.items()):
        raise TypeError
    return ShardFile(
        path=index.parent / raw["basename"],
        bytes=raw["bytes"],
        samples=entry["samples"],
        hashes={str(name): str(digest) for name, digest in raw["hashes"].items()},
        dtype=encoding[1],
        sequence_length=int(encoding[2]),
    )


def refuse_missing(index: SplitIndex) -> None:
    """Refuse a split whose shards are not all here, with all their bytes.

    Raises:
        DataError: one is missing or cut short.
    """
    for shard in index.shards:
        found = size_fault(shard)
        if found is not None:
            raise DataError(f"{found}: {remake(shard)}")


def remake(shard: ShardFile) -> str:
    """What makes a shard anew."""
    return f"remove {shard.path.parent} and prepare the corpus again, which makes what is missing"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def size_fault(shard: ShardFile) -> str | None:
    """What is wrong with a file by its size alone, or ``None``."""
    try:
        size = shard.path.stat().st_size
    except OSError:
        return f"{shard.path} is missing"
    if size != shard.bytes:
        return f"{shard.path} has {size:,} bytes and its index says {shard.bytes:,}"
    return None


def tokens(shard: ShardFile) -> np.ndarray:
    """The samples of a shard, [samples, sequence_length], mapped from the file.

    Raises:
        DataError: the file has another layout than that of fixed-length samples.
    """
    with shard.path.open("rb") as file:
        head = np.fromfile(file, "<u4", shard.samples + 2)
    kind = np.dtype(shard.dtype).newbyteorder("<")
    shape = (shard.samples, shard.sequence_length)
    if len(head) != shard.samples + 2 or int(head[0]) != shard.samples or not shard.samples:
        raise DataError(f"{shard.path} does not hold the {shard.samples} samples of its index")
    offsets = head[1:].astype(np.int64)
    expected = offsets[0] + kind.itemsize * shape[1] * np.arange(shard.samples + 1)
    whole = offsets[0] >= head.nbytes and int(offsets[-1]) == shard.path.stat().st_size
    if not whole or not np.array_equal(offsets, expected):
        raise DataError(f"{shard.path} is not laid out as its index says")
    return np.memmap(shard.path, kind, "r", offset=int(offsets[0]), shape=shape)


def hash_fault(shard: ShardFile) -> str | None:
    """What is wrong with the bytes of a file by the hashes of its index, or ``None``."""
    algorithms = {name: _algorithm(name) for name in shard.hashes}
    with shard.path.open("rb") as file:
        while block := file.read(BLOCK):
            for algorithm in algorithms.values():
                algorithm.update(block)
    for name, algorithm in algorithms.items():
        if algorithm.hexdigest() != shard.hashes[name]:
            return f"{shard.path} is not as it was written, by its {name}"
    return None


def _algorithm(name: str) -> Any:
    """As Streaming names them."""
    if name in xxhash.algorithms_available:
        return getattr(xxhash, name)()
    if name in hashlib.algorithms_available and not name.startswith("shake"):
        return hashlib.new(name)
    raise DataError(f"the hash {name!r} is unknown: {_ELSEWHERE}")


def fault(shard: ShardFile, vocab_size: int | None) -> str | None:
    """What is wrong with a shard, read whole once, or ``None``.

    Args:
        shard: the shard.
        vocab_size: rows of its embedding, that every token must be below; ``None`` takes any.
    """
    found = size_fault(shard) or hash_fault(shard)
    if found is not None:
        return found
    try:
        largest = int(tokens(shard).max(initial=0))
    except DataError as error:
        return str(error)
    if vocab_size is not None and largest >= vocab_size:
        return (
            f"{shard.path} holds the token {largest}, beyond the vocabulary of {vocab_size}, so it "
            f"was made with another tokenizer"
        )
    return None
