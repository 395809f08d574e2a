"""The samples that the oracle trains on, and their order, by the streams that are documented."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from streaming import LocalDataset
from tokenizers import Tokenizer
from torch import Tensor

BLOCK_SHARDS = 16


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """The generator of a purpose: seeded by 63 bits of the hash of its name."""
    digest = hashlib.sha256(json.dumps([seed, *name]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big") >> 1)


class Source:
    """A source as it lies on disk, read with Streaming's reader.

    Args:
        root: holds ``data`` and ``tokenizers``.
        corpus: name of the prepared corpus.
        name: of the source.
        tokenizer: that its text is read in: ``global``, or its own.

    Attributes:
        train: int64[samples, length], of all shards in the order of the index.
        val: int64[samples, length].
        shard_samples: samples of each shard of the training split.
        vocab_size: |V|.
        vocabulary: int64[|V_k|], sorted: the ids that occur in ``train``, and the special ones,
            which dept/data/corpus.py gives to every source.
        unknown: the special id that stands for an input outside V_k.
        val_bytes: UTF-8 bytes of the text that ``val`` stands for.
    """

    def __init__(self, root: Path, corpus: str, name: str, tokenizer: str = "global") -> None:
        self.name = name
        folder = root / "data" / corpus / name / tokenizer
        stats = json.loads((folder / "stats.json").read_text())
        index = json.loads((folder / "train" / "index.json").read_text())
        self.shard_samples = [shard["samples"] for shard in index["shards"]]
        self.train, self.val = (_samples(folder / split) for split in ("train", "val"))
        self.vocab_size = stats["vocab_size"]
        written = root / "tokenizers" / corpus / tokenizer
        names = json.loads((written / "special_tokens_map.json").read_text())
        added = json.loads((written / "tokenizer.json").read_text())["added_tokens"]
        ids = {token["content"]: token["id"] for token in added}
        self.special_ids = torch.tensor(sorted(ids.values()))
        self.unknown = ids[names.get("unk_token", names["eos_token"])]
        text = Tokenizer.from_file(str(written / "tokenizer.json")).decode(
            self.val.flatten().tolist()
        )
        self.val_bytes = len(text.encode())

    @cached_property
    def vocabulary(self) -> Tensor:
        return torch.cat([self.train.flatten(), self.special_ids]).unique()


def _samples(folder: Path) -> Tensor:
    data = LocalDataset(local=str(folder))
    return torch.from_numpy(np.stack([data[i]["tokens"] for i in range(len(data))]).astype("int64"))


class Reader:
    """Whole passes over a source, each in an order of its own."""

    def __init__(self, source: Source, seed: int, stage: str) -> None:
        self.source = source
        self._of = (seed, "order", stage, source.name)
        self._pass = 0
        self._coming: list[int] = []

    def take(self, count: int) -> Tensor:
        """The next ``count`` samples, int64[count, length]."""
        while len(self._coming) < count:
            self._coming += self._order(self._pass)
            self._pass += 1
        taken, self._coming = self._coming[:count], self._coming[count:]
        return self.source.train[taken]

    def _order(self, number: int) -> list[int]:
        """Shards shuffled, then samples within blocks of shards; the shards' stream is block -1."""
        sizes = np.array(self.source.shard_samples)
        ends = np.cumsum(sizes)
        shards, order = stream(*self._of, number, -1).permutation(len(sizes)), []
        for block, first in enumerate(range(0, len(shards), BLOCK_SHARDS)):
            mixed = shards[first : first + BLOCK_SHARDS]
            samples = np.concatenate([np.arange(ends[s] - sizes[s], ends[s]) for s in mixed])
            order += stream(*self._of, number, block).permutation(samples).tolist()
        return order


def drawn_sources(seed: int, t: int, sources: Sequence[Source], count: int) -> list[Source]:
    """S_t: drawn uniformly, without replacement, in the order of the corpus."""
    drawn = stream(seed, "sampling", t).choice(len(sources), size=count, replace=False)
    return [sources[k] for k in sorted(drawn)]


def mixed_batches(
    seed: int, stage: str, sources: Sequence[Source], batch: int, tau: float
) -> Iterator[Tensor]:
    """Batches of a mixture, int64[batch, length], for ever; every sequence from a drawn source."""
    weights = np.array([source.train.numel() for source in sources], dtype=np.float64) ** tau
    readers = [Reader(source, seed, stage) for source in sources]
    number = 0
    while True:
        drawn = stream(seed, "mixture", stage, number).choice(
            len(sources), size=batch, p=weights / weights.sum()
        )
        yield torch.cat([readers[k].take(1) for k in drawn])
        number += 1
