"""Splits in shards of a few samples, so that there is something to fetch ahead and to remove."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from dept.data_prep.mds import TokenShards, merged_index

LENGTH = 8


def write_split(directory: Path, sizes: list[int], *, first: int = 0) -> np.ndarray:
    """A split with shards of ``sizes`` samples; returns their tokens, uint16[samples, LENGTH].

    Args:
        directory: to write to.
        sizes: samples of each shard.
        first: the first token; the others follow it, so that no two samples are alike.
    """
    count = sum(sizes)
    tokens = (first + np.arange(count * LENGTH)).reshape(count, LENGTH).astype(np.uint16)
    _write(directory, np.split(tokens, np.cumsum(sizes)[:-1]))
    return tokens


def reshard(prepared: Path, root: Path, samples: int) -> None:
    """A copy of the prepared corpus ``tiny`` in shards of ``samples`` samples, below ``root``."""
    from dept.data.shards import TokenReader

    shutil.copytree(prepared / "tokenizers", root / "tokenizers")
    text = shutil.ignore_patterns("text", "words*")
    shutil.copytree(prepared / "data", root / "data", ignore=text)
    for index in sorted(root.glob("data/tiny/*/*/*/index.json")):
        reader = TokenReader(index.parent)
        tokens = np.stack([reader[i] for i in range(len(reader))])
        shutil.rmtree(index.parent)
        _write(index.parent, [tokens[i : i + samples] for i in range(0, len(tokens), samples)])
        stats = json.loads((index.parents[1] / "stats.json").read_text())
        written = hashlib.sha256(index.read_bytes()).hexdigest()
        stats["index_sha256"][index.parent.name] = written
        (index.parents[1] / "stats.json").write_text(json.dumps(stats))


def _write(directory: Path, shards: list[np.ndarray]) -> None:
    """As data preparation does it: a subdirectory for each part, and an index over all."""
    parts = []
    for number, tokens in enumerate(shards):
        parts.append(f"{number:05}")
        writer = TokenShards(directory / parts[-1], tokens.shape[1], tokens.dtype.name)
        writer.write(tokens)
        writer.close()
    (directory / "index.json").write_bytes(merged_index(directory, parts))
