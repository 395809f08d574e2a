"""MDS shards of fixed-length token samples, byte for byte as streaming's MDSWriter writes them.

MDSWriter itself needs 20 s of imports (torch, every cloud client) in each process, and a Python
call for each sample. For one column of fixed size the format is a header and a block of memory,
which numpy writes here; tests/end_to_end/test_preparation.py compares the bytes with MDSWriter's.

A shard: uint32 samples n | uint32 offsets[n + 1] from the start of the file | JSON of the columns |
samples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dept.checkpoint import durable
from dept.data.shard_files import HASH

SHARD_BYTES = 1 << 26  # the default of MDSWriter


class TokenShards:
    """Writes samples of one split into a directory: `shard.00000.mds`, ..., and on `close`
    `index.json`.

    Args:
        directory: directory of the shards; it is made if it is missing.
        sequence_length: tokens of a sample.
        dtype: type of a token in numpy, such as `uint16`.
        limit: the most bytes of a shard.
    """

    def __init__(self, directory: Path, sequence_length: int, dtype: str, limit: int = SHARD_BYTES):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.samples = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._sample_bytes = sequence_length * self._dtype.itemsize
        self._config: dict[str, Any] = {
            "column_encodings": [f"ndarray:{dtype}:{sequence_length}"],
            "column_names": ["tokens"],
            "column_sizes": [self._sample_bytes],
            "compression": None,
            "format": "mds",
            "hashes": [HASH],
            "size_limit": limit,
            "version": 2,
        }
        self._header = json.dumps(self._config, sort_keys=True).encode()
        fixed = 4 + 4 + len(self._header)  # as MDSWriter counts
        self._per_shard = max((limit - fixed) // (self._sample_bytes + 4), 1)
        self._pending: list[np.ndarray] = []
        self._pending_samples = 0
        self._shards: list[dict[str, Any]] = []

    def write(self, samples: np.ndarray) -> None:
        """Appends samples of shape [n, sequence_length]."""
        self._pending.append(samples.astype(self._dtype))
        self._pending_samples += len(samples)
        self.samples += len(samples)
        while self._pending_samples >= self._per_shard:
            self._flush(self._per_shard)

    def close(self) -> None:
        """Writes what is pending, then the index."""
        if self._pending_samples:
            self._flush(self._pending_samples)
        durable.write(self.directory / "index.json", index_of(self._shards))

    def _flush(self, count: int) -> None:
        samples = np.concatenate(self._pending)
        self._pending, self._pending_samples = [samples[count:]], len(samples) - count
        offsets = np.arange(count + 1, dtype=np.int64) * self._sample_bytes
        offsets += 4 + 4 * (count + 1) + len(self._header)
        number = np.array([count], "<u4")
        parts = (number.tobytes(), offsets.astype("<u4").tobytes(), self._header)
        data = b"".join((*parts, samples[:count].tobytes()))
        name = f"shard.{len(self._shards):05}.mds"
        (self.directory / name).write_bytes(data)
        hashes = {HASH: xxhash.xxh64(data).hexdigest()}
        raw = {"basename": name, "bytes": len(data), "hashes": hashes}
        self._shards.append({**self._config, "raw_data": raw, "samples": count, "zip_data": None})


def merged_index(directory: Path, parts: list[str]) -> bytes:
    """The `index.json` that makes one data set of those in subdirectories, in their order.

    streaming's merge_index does the same, but needs its slow imports.

    Args:
        directory: directory of the subdirectories.
        parts: names of the subdirectories.

    Returns:
        The content of `index.json`.
    """
    shards = []
    for part in parts:
        for shard in json.loads((directory / part / "index.json").read_bytes())["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
    return index_of(shards)


def index_of(shards: list[dict[str, Any]]) -> bytes:
    """The content of an `index.json`."""
    return json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()
