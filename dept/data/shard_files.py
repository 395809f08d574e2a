"""The shard files of one split: reading their index, and checking files against it.

An index may come from an untrusted origin, so it is checked before any file that it names is
opened: it must name files in its own folder, and one column of tokens. MDS supports other columns,
even pickled ones that run code; they are refused. It imports only numpy, as dept/data/corpus.py.
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
HASH = "xxh64"  # the hash that data preparation writes
BLOCK = 1 << 22  # bytes that are hashed at once

_ENCODING = re.compile(r"ndarray:(uint16|uint32):([1-9]\d{0,9})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
_ELSEWHERE = "do not use shards of this origin"


@dataclass(frozen=True)
class ShardFile:
    """The entry of a shard in an index.

    Attributes:
        path: local path of the shard.
        bytes: size of the shard.
        samples: number of its samples.
        hashes: digests in hexadecimal, by algorithm.
        dtype: dtype of the column of tokens: ``uint16`` or ``uint32``.
        sequence_length: tokens of a sample.
    """

    path: Path
    bytes: int
    samples: int
    hashes: Mapping[str, str]  # algorithm -> digest in hexadecimal; none in shards of other writers
    dtype: str
    sequence_length: int


@dataclass(frozen=True)
class SplitIndex:
    """A parsed ``index.json``.

    Attributes:
        path: path of the ``index.json``.
        sha256: digest of its bytes, in hexadecimal.
        shards: its shards, in its order.
    """

    path: Path
    sha256: str
    shards: tuple[ShardFile, ...]

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


def is_name(text: Any) -> bool:
    """Whether a name from a file can only name an entry of the folder in which it is used."""
    return isinstance(text, str) and _PART.fullmatch(text) is not None


def read_index(directory: Path, fix: str) -> SplitIndex:
    """Read the ``index.json`` of a split.

    Args:
        directory: directory of the split.
        fix: the fix if it is missing or damaged; it ends the message.

    Raises:
        DataError: it is missing or not an index, or names other files or columns than allowed.
    """
    path = directory / INDEX
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"{path} does not exist: {fix}") from None
    try:
        content = json.loads(data)
        shards = tuple(_shard(path, entry) for entry in content["shards"])
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is not an index of MDS shards: {fix}") from None
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
    """Refuse a split with shards that are missing or have the wrong size.

    Raises:
        DataError: a shard is missing or cut short.
    """
    for shard in index.shards:
        found = size_fault(shard)
        if found is not None:
            raise DataError(f"{found}: {remake(shard)}")


def remake(shard: ShardFile) -> str:
    """The fix, in errors about a damaged shard."""
    return f"remove {shard.path.parent} and prepare the corpus again, which makes what is missing"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def size_fault(shard: ShardFile) -> str | None:
    """Describe what is wrong with a file by its size alone; ``None`` if nothing is."""
    try:
        size = shard.path.stat().st_size
    except OSError:
        return f"{shard.path} is missing"
    if size != shard.bytes:
        return f"{shard.path} has {size:,} bytes, but {shard.bytes:,} in its index"
    return None


def tokens(shard: ShardFile) -> np.ndarray:
    """The samples of a shard, [samples, sequence_length], mapped from the file.

    Raises:
        DataError: the file does not have the layout of fixed-length samples.
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
        raise DataError(f"{shard.path} does not have the layout of its index")
    return np.memmap(shard.path, kind, "r", offset=int(offsets[0]), shape=shape)


def hash_fault(shard: ShardFile) -> str | None:
    """Describe a difference from the hashes of the index; ``None`` if there is none."""
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
    """A new hash object, by the names of Streaming."""
    if name in xxhash.algorithms_available:
        return getattr(xxhash, name)()
    if name in hashlib.algorithms_available and not name.startswith("shake"):
        return hashlib.new(name)
    raise DataError(f"the hash {name!r} is unknown: {_ELSEWHERE}")


def fault(shard: ShardFile, vocab_size: int | None) -> str | None:
    """Read a whole shard and describe what is wrong with it; ``None`` if nothing is.

    Args:
        shard: the shard.
        vocab_size: every token must be below this; ``None`` accepts any token.
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
