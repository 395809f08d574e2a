"""Prepared corpora as training reads them: `corpus.json`, `stats.json`, `counts.npy`.

`data_prep/prepare.py` writes these files with the functions of this module, and training and
evaluation read them with the same functions, so that numbers in `stats.json` and in a run agree.
It imports only numpy and the standard library, so that data preparation, unit tests and the cost
model run without torch.

Layout, relative to the root of the repository:

    tokenizers/<corpus>/<tokenizer>/      transformers tokenizer, named `global` or after its source
    data/<corpus>/corpus.json             written last: if it exists, the corpus is complete
    data/<corpus>/<source>/<tokenizer>/
        {train,val}/                      MDS shards, column `tokens`
        stats.json                        documents, bytes, tokens, samples, unigram cross-entropy
        counts.npy                        int64[vocab_size], tokens of the written train samples
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dept.data.shard_files import ShardFile, SplitIndex, is_name, read_index
from dept.data.token_counts import local_vocabulary
from dept.data.tokenizer_files import tokenizer_fault
from dept.errors import DataError

GLOBAL = "global"
"""Name of the tokenizer that all sources share; no source may have this name."""

SPLITS = ("train", "val")


@dataclass(frozen=True)
class PreparedTokenizer:
    """A tokenizer of the corpus; `path` is absolute when the root given to `read_corpus` is.

    Attributes:
        name: `global`, or the name of the source that it is of.
        path: its folder.
        hash: hash of its files.
        vocab_size: rows of an embedding for it.
    """

    name: str
    path: Path
    hash: str
    vocab_size: int  # rows of an embedding for it: largest id + 1, or more if the corpus yaml pads


@dataclass(frozen=True)
class PreparedSplit:
    """Sizes of the written samples of one split; the first four exclude the tail that is too short
    for a sample."""

    documents: int  # documents with at least one token in a sample
    bytes: int  # UTF-8 bytes of their text: bits per byte = loss * tokens / (bytes * ln 2)
    tokens: int  # samples * sequence_length, the end-of-document tokens among them
    samples: int
    dropped_tokens: int  # at the ends of parts, too few for a sample


@dataclass(frozen=True)
class PreparedSource:
    """One source in the tokens of one tokenizer: the fields of its `stats.json`, and its files.

    Attributes:
        name: name of the source.
        tokenizer: `global`, or the source's own name.
        tokenizer_hash: hash of the files of the tokenizer.
        special_ids: ids of its special tokens.
        vocab_size: rows of an embedding for the tokenizer.
        local_vocab_size: `|V_k|`, the number of ids of :meth:`local_vocabulary`.
        sequence_length: tokens of a sample.
        dtype: dtype of the column `tokens`: `uint16` or `uint32`.
        splits: sizes of `train` and `val`.
        unigram_ce: nats per validation token.
        directory: folder of the source in this tokenizer.
        indexes: the shards of each split.
    """

    name: str
    tokenizer: str  # `global` or the source's own name
    tokenizer_hash: str
    special_ids: tuple[int, ...]
    vocab_size: int
    local_vocab_size: int
    sequence_length: int
    dtype: str  # of the column `tokens`: uint16 or uint32
    splits: dict[str, PreparedSplit]
    unigram_ce: float  # nats per validation token
    directory: Path
    indexes: dict[str, SplitIndex]  # of the shards of each split

    @property
    def train(self) -> Path:
        """Directory of MDS shards to train on."""
        return self.directory / "train"

    @property
    def val(self) -> Path:
        """Directory of MDS shards to validate on."""
        return self.directory / "val"

    def shards(self, split: str) -> tuple[ShardFile, ...]:
        """The shards of a split, in the order of its index."""
        return self.indexes[split].shards

    def counts(self) -> np.ndarray:
        """Occurrences of each id in the train samples, int64[vocab_size].

        Raises:
            DataError: the file is missing or is not of this source.
        """
        file = self.directory / "counts.npy"
        try:
            # Mapped, so that a header with a wrong size is refused before memory is allocated.
            counts = np.array(np.load(file, mmap_mode="r", allow_pickle=False), ndmin=1)
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise DataError(
                f"{file} cannot be read ({error}): {make_again(self.directory.parent.parent.name)}"
            ) from None
        is_ours = counts.shape == (self.vocab_size,) and counts.dtype == np.int64
        if not is_ours or int(counts.sum()) != self.splits["train"].tokens:
            raise DataError(
                f"{file} does not belong to the stats.json beside it: "
                f"{make_again(self.directory.parent.parent.name)}"
            )
        return counts

    def local_vocabulary(self) -> np.ndarray:
        """V_k of this source in this tokenizer, int64[local_vocab_size], ascending."""
        return local_vocabulary(self.counts(), self.special_ids)


@dataclass(frozen=True)
class PreparedCorpus:
    """The fields of `corpus.json`, and readers for the files beside it.

    Attributes:
        name: name of the corpus.
        sequence_length: tokens of a sample.
        sources: names of the sources, in the order of the corpus yaml.
        held_out: names of the held-out sources.
        tokenizers: tokenizers by name; one of them is `global`.
        directory: folder of the corpus.
    """

    name: str
    sequence_length: int
    sources: tuple[str, ...]  # in the order of the corpus yaml
    held_out: tuple[str, ...]
    tokenizers: dict[str, PreparedTokenizer]
    directory: Path

    def source(self, name: str, tokenizer: str = GLOBAL) -> PreparedSource:
        """Reads the statistics of a source (or held-out source) in the tokens of `global` or of its
        own tokenizer.

        Args:
            name: name of the source.
            tokenizer: ``global``, or the name of the source for its own tokenizer.

        Raises:
            DataError: no such source or tokenizer, or its shards are missing, half-written, or of
                another tokenizer than `corpus.json` says.
        """
        if name not in self.sources + self.held_out:
            raise DataError(
                f"Corpus {self.name} has no source {name!r}: it has {', '.join(self.sources)}, "
                f"and held out {', '.join(self.held_out) or 'none'}."
            )
        if tokenizer != GLOBAL and (tokenizer != name or tokenizer not in self.tokenizers):
            raise DataError(
                f"Source {name} of corpus {self.name} is not tokenized with {tokenizer!r}: "
                f"there is {' and '.join([GLOBAL] + [t for t in self.tokenizers if t == name])}."
            )
        source = read_source(self.directory / name / tokenizer)
        if source.tokenizer_hash != self.tokenizers[tokenizer].hash:
            raise DataError(
                f"{source.directory} was written with another tokenizer than "
                f"{self.tokenizers[tokenizer].path}: {make_again(self.name)}"
            )
        return source


def read_source(directory: str | Path) -> PreparedSource:
    """Reads `data/<corpus>/<source>/<tokenizer>/stats.json` and the indexes of both splits.

    Raises:
        DataError: a file is missing, or the statistics were written with another index.
    """
    directory = Path(directory)
    corpus = directory.parent.parent.name
    stats = _read_json(directory / "stats.json", corpus)
    indexes = {split: read_index(directory / split, make_again(corpus)) for split in SPLITS}
    try:
        source = PreparedSource(
            name=stats["source"],
            tokenizer=stats["tokenizer"]["name"],
            tokenizer_hash=stats["tokenizer"]["hash"],
            special_ids=tuple(stats["tokenizer"]["special_ids"]),
            vocab_size=stats["vocab_size"],
            local_vocab_size=stats["local_vocab_size"],
            sequence_length=stats["sequence_length"],
            dtype=stats["dtype"],
            splits={k: PreparedSplit(**v) for k, v in stats["splits"].items()},
            unigram_ce=stats["unigram_ce"],
            directory=directory,
            indexes=indexes,
        )
        written_with = {split: stats.get("index_sha256", {}).get(split) for split in SPLITS}
        shape = {(source.dtype, source.sequence_length)}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{directory / 'stats.json'} lacks {error}: {make_again(corpus)}") from None
    for split, index in indexes.items():
        if index.samples != source.splits[split].samples:
            raise DataError(
                f"{index.path} counts {index.samples} samples and stats.json beside it "
                f"{source.splits[split].samples}: {make_again(corpus)}"
            )
        # Corpora that were prepared before the hash existed are checked by the shape of samples.
        same = written_with[split] in (None, index.sha256)
        if not same or {(s.dtype, s.sequence_length) for s in index.shards} - shape:
            raise DataError(
                f"{index.path} is not the one that {directory / 'stats.json'} was written with, so "
                f"its shards may be of another tokenizer: {make_again(corpus)}"
            )
    return source


def read_corpus(root: str | Path, name: str) -> PreparedCorpus:
    """Reads `<root>/data/<name>/corpus.json`.

    Args:
        root: directory that holds `data/` and `tokenizers/`, the repository by default.
        name: `corpus:` of the corpus yaml.

    Raises:
        DataError: the corpus is missing or not finished, or was made with another tokenizer.
    """
    root = Path(root)
    directory = root / "data" / name
    corpus = described(directory / "corpus.json", name)
    tokenizers = {}
    for key, value in corpus["tokenizers"].items():
        path = root / "tokenizers" / name / key
        fault = tokenizer_fault(path, value)
        if fault is not None:
            raise DataError(f"{fault}: {make_again(name)}")
        tokenizers[key] = PreparedTokenizer(key, path, value["hash"], value["vocab_size"])
    return PreparedCorpus(
        name=corpus["corpus"],
        sequence_length=corpus["sequence_length"],
        sources=tuple(corpus["sources"]),
        held_out=tuple(corpus["held_out"]),
        tokenizers=tokenizers,
        directory=directory,
    )


def described(file: Path, name: str) -> Mapping[str, Any]:
    """Reads a `corpus.json`; its names become names of folders, so they are checked.

    Args:
        file: path of the `corpus.json`.
        name: name of the corpus, for errors.

    Returns:
        The content of the file.

    Raises:
        DataError: it is missing, does not describe a corpus, or a name points to another folder.
    """
    corpus = _read_json(file, name)
    try:
        names = [corpus["corpus"], *corpus["sources"], *corpus["held_out"], *corpus["tokenizers"]]
        whole = isinstance(corpus["sequence_length"], int) and all(
            {"hash", "vocab_size"} <= set(value) for value in corpus["tokenizers"].values()
        )
    except (KeyError, TypeError, AttributeError):
        whole, names = False, []
    if not whole or GLOBAL not in corpus["tokenizers"]:
        raise DataError(f"{file} does not describe a corpus: {make_again(name)}")
    for each in names:
        if not is_name(each):
            raise DataError(
                f"{file} has the name {each!r}, which is not that of a source or tokenizer: do not "
                f"use a corpus of this origin"
            )
    return corpus


def _read_json(file: Path, corpus: str) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"{file} does not exist: {make_again(corpus)}")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f"{file} is not JSON: {make_again(corpus)}") from None


def make_again(corpus: str) -> str:
    """The fix, in errors about a file of a corpus that is missing or of another kind."""
    return (
        f"make it with `make data CORPUS={corpus}` or `python data_prep/prepare.py <corpus yaml>`."
    )
