"""Stage 3: text parts -> MDS shards of token samples, and their statistics.

A task writes one subdirectory of a split (`train/00007/`: one text part; `val/00000/`: all of
validation, so that just one tail is dropped) under a temporary name and renames it. `finish` joins
the subdirectories to data sets; the `index.json` of a split comes last, so a half-written split
never looks whole.
"""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dept.checkpoint import durable, library_patches
from dept.data.corpus import SPLITS
from dept.data.token_counts import count_tokens, local_vocabulary, unigram_cross_entropy
from dept.data_prep.files import WORK, publish_directory, read_json, read_texts, write_json
from dept.data_prep.mds import TokenShards, merged_index
from dept.data_prep.pool import Task
from dept.errors import DataError

BATCH_BYTES = 1 << 20  # text that is tokenized at once
CACHED_WORDS = 200_000  # the default of `tokenizers`, 10 000, is 1.4 times slower on English


def token_dtype(vocab_size: int) -> str:
    """Smallest unsigned type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_part(
    task: Task,
    texts: list[Path],
    tokenizer: dict[str, Any],
    sequence_length: int,
    target: Path,
) -> None:
    """Tokenizes text parts into one directory of shards with `counts.npy` and `part.json`.

    Args:
        task: reports progress, in bytes of text.
        texts: text parts, read one after another.
        tokenizer: `path`, and the result of describe_tokenizer.
        sequence_length: tokens of a sample.
        target: directory to make.
    """
    work = target.parents[3] / WORK / "-".join(target.parts[-4:])
    shutil.rmtree(work, ignore_errors=True)
    packer = Packer(tokenizer, sequence_length, work)
    documents = itertools.chain.from_iterable(map(read_texts, texts))
    for first in documents:
        batch, size = [first], len(first)
        while size < BATCH_BYTES and (text := next(documents, None)) is not None:
            batch.append(text)
            size += len(text)
        task.report(packer.add(batch))
    packer.close()
    publish_directory(work, target)


class Packer:
    """Concatenates the tokens of documents, an end-of-text token behind each, and cuts them into
    samples.

    Args:
        tokenizer: `path`, `eos_id`, `vocab_size` and, where known, `hash`.
        sequence_length: tokens of a sample.
        directory: directory of the shards.
    """

    def __init__(self, tokenizer: dict[str, Any], sequence_length: int, directory: Path):
        from tokenizers import Tokenizer

        self._encoder = Tokenizer.from_file(str(Path(tokenizer["path"]) / "tokenizer.json"))
        self._encoder.encode_special_tokens = True  # "</s>" in a text is text
        self._encoder.no_truncation()
        self._encoder.no_padding()
        library_patches.remember_words(self._encoder, CACHED_WORDS)
        self._eos = tokenizer["eos_id"]
        self._vocab_size = tokenizer["vocab_size"]
        self._hash = tokenizer.get("hash")
        self._length = sequence_length
        self._directory = directory
        self._shards = TokenShards(directory, sequence_length, token_dtype(self._vocab_size))
        self._counts = np.zeros(self._vocab_size, np.int64)
        self._rest = np.zeros(0, np.uint32)  # tokens not yet in a sample
        # Documents that reach into the rest, with their numbers of tokens: what is dropped in the
        # end.
        self._open: collections.deque[tuple[str, int]] = collections.deque()
        self._open_tokens = 0
        self._documents = 0
        self._bytes = 0

    def add(self, texts: list[str]) -> int:
        """Adds documents; returns their UTF-8 bytes."""
        ids = [e.ids for e in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]
        for text, document in zip(texts, ids, strict=True):
            document.append(self._eos)
            self._open.append((text, len(document)))
            self._open_tokens += len(document)
        new = np.fromiter(itertools.chain.from_iterable(ids), np.uint32)
        tokens = np.concatenate([self._rest, new])
        whole = len(tokens) // self._length * self._length
        if whole:
            self._counts += count_tokens(tokens[:whole], self._vocab_size)
            self._shards.write(tokens[:whole].reshape(-1, self._length))
        self._rest = tokens[whole:]
        while self._open and self._open_tokens - self._open[0][1] >= len(self._rest):
            self._open_tokens -= self._open.popleft()[1]
        size = sum(len(text.encode()) for text in texts)
        self._documents += len(texts)
        self._bytes += size
        return size

    def close(self) -> None:
        """Writes the index, the counts and `part.json`: documents, bytes, tokens, samples,
        dropped_tokens."""
        documents, size = self._dropped()
        self._shards.close()
        np.save(self._directory / "counts.npy", self._counts)
        write_json(
            self._directory / "part.json",
            {
                "documents": self._documents - documents,
                "bytes": self._bytes - size,
                "tokens": self._shards.samples * self._length,
                "samples": self._shards.samples,
                "dropped_tokens": len(self._rest),
                "tokenizer": self._hash,
            },
        )

    def _dropped(self) -> tuple[int, int]:
        """Documents that have no token in a sample, and the bytes of text that no sample holds."""
        documents = size = 0
        missing = len(self._rest)
        for text, tokens in reversed(self._open):
            if tokens <= missing:
                documents, size = documents + 1, size + len(text.encode())
                missing -= tokens
            elif missing:
                kept = bytes_of_tokens(self._encoder, text, tokens - missing)
                size += len(text.encode()) - kept
        return documents, size


def bytes_of_tokens(encoder: Any, text: str, tokens: int) -> int:
    """UTF-8 bytes of the text that its first `tokens` tokens represent.

    A character of several byte tokens counts in proportion to those included.

    Args:
        encoder: a `Tokenizer` of tokenizers.
        text: the text.
        tokens: number of its first tokens.
    """
    offsets = encoder.encode(text, add_special_tokens=False).offsets
    if tokens >= len(offsets):
        return len(text.encode())
    span = offsets[tokens]  # byte tokens of a character share its offsets
    inside = sum(1 for _ in itertools.takewhile(span.__eq__, offsets[:tokens][::-1]))
    outside = sum(1 for _ in itertools.takewhile(span.__eq__, offsets[tokens:]))
    before, shared = text[: span[0]], text[span[0] : span[1]]
    return len(before.encode()) + len(shared.encode()) * inside // (inside + outside)


def finish(
    directory: Path, source: str, tokenizer: dict[str, Any], sequence_length: int, parts: dict
) -> dict[str, Any]:
    """Joins the parts of both splits: `counts.npy`, `stats.json`, then each `index.json`.

    Args:
        directory: `data/<corpus>/<source>/<tokenizer>`.
        source: name of the source.
        tokenizer: `name`, `hash`, and the result of describe_tokenizer.
        sequence_length: tokens of a sample.
        parts: split -> names of its subdirectories.

    Returns:
        The content of stats.json.

    Raises:
        DataError: a split has not one sample.
    """
    splits: dict[str, dict[str, int]] = {}
    counts = {}
    for split in SPLITS:
        folders = [directory / split / part for part in parts[split]]
        found = [read_json(folder / "part.json") for folder in folders]
        keys = ("documents", "bytes", "tokens", "samples", "dropped_tokens")
        splits[split] = {key: sum(part[key] for part in found) for key in keys}
        counts[split] = sum(
            (np.load(folder / "counts.npy") for folder in folders),
            start=np.zeros(tokenizer["vocab_size"], np.int64),
        )
        if not splits[split]["samples"]:
            raise DataError(
                f"Source {source}: its {split} text has {splits[split]['dropped_tokens']} tokens "
                f"({tokenizer['name']} tokenizer) and a sample takes {sequence_length}: add more "
                "text, lower sequence_length, or raise split.val_fraction."
            )
    indexes = {split: merged_index(directory / split, parts[split]) for split in SPLITS}
    stats = {
        "source": source,
        "tokenizer": {k: tokenizer[k] for k in ("name", "hash", "special_ids")},
        "vocab_size": tokenizer["vocab_size"],
        "local_vocab_size": len(local_vocabulary(counts["train"], tokenizer["special_ids"])),
        "sequence_length": sequence_length,
        "dtype": token_dtype(tokenizer["vocab_size"]),
        "splits": splits,
        "unigram_ce": unigram_cross_entropy(counts["val"], counts["train"]),
        # An index holds hashes of its shards: with these, all of a source is of one writing.
        "index_sha256": {s: hashlib.sha256(index).hexdigest() for s, index in indexes.items()},
    }
    buffer = io.BytesIO()
    np.save(buffer, counts["train"])
    durable.write(directory / "counts.npy", buffer.getvalue())
    write_json(directory / "stats.json", stats)
    for split, index in indexes.items():
        durable.write(directory / split / "index.json", index)
    return stats
