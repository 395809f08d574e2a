"""Checks of a yaml against the corpus that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dept.config import registries
from dept.config.options import (
    CorpusOptions,
    DeptOptions,
    MixtureOptions,
    ValidationOptions,
    parse,
)
from dept.data.corpus import GLOBAL, PreparedCorpus, PreparedSource, read_corpus
from dept.data.fetch import fetch_corpus
from dept.data.shard_cache import block_bytes, too_small
from dept.data.shard_files import fault, remake, size_fault
from dept.data.tokenizer_files import tokenizer_hash
from dept.errors import ConfigError, DataError, shown
from dept.method.variants import Vocabulary

READ_AT_START = 1 << 30
"""Up to this many bytes of shards, a corpus is read completely before training, in about a second.
In a larger one, each shard is checked before its first sample (``make check-data`` reads all)."""


def check(
    config: Mapping[str, Any], dept: DeptOptions | None, loader: CorpusOptions
) -> tuple[tuple[str, ...], list[PreparedSource]]:
    """Refuse a yaml that does not fit the corpus that it names, or a corpus that is damaged.

    Args:
        config: a resolved yaml, whose options were checked.
        dept: options of ``algorithms.dept``; ``None`` for a run without DEPT.
        loader: options of ``train_loader``.

    Returns:
        Names of the sources to train, and what is prepared of each.

    Raises:
        ConfigError: a value does not fit the corpus.
        DataError: the corpus is missing, half-written or of another tokenizer.
    """
    corpus, names = corpus_and_sources(loader, dept)
    own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
    prepared = [corpus.source(name, name if own else GLOBAL) for name in names]
    for source in prepared:
        source.counts()
    if loader.remote is None:
        held_out = corpus.held_out if evaluates_held_out(dept) else ()
        _check_shards([*prepared, *map(corpus.source, held_out)])
    _check_tokenizer(config, corpus)
    length = config["max_seq_len"]
    if length != corpus.sequence_length:
        raise ConfigError(
            f"max_seq_len is {length}, but the samples of corpus {corpus.name} are "
            f"{corpus.sequence_length} tokens long: set it to {corpus.sequence_length}"
        )
    if not own:
        _check_vocabulary_size(config, corpus)
    _check_cache_limit(loader, prepared)
    for source in prepared:
        if source.splits["val"].samples < 1 or source.splits["train"].samples < 1:
            raise DataError(f"source {source.name} has an empty split: give it more text")
    for key, given in registries.eval_loaders(config):
        if given["name"] == "validation":
            _check_validation(key, given)
    return names, prepared


def corpus_and_sources(
    loader: CorpusOptions, dept: DeptOptions | None
) -> tuple[PreparedCorpus, tuple[str, ...]]:
    """The corpus of a loader, and the names of the sources to train.

    Args:
        loader: options of ``train_loader``. With ``remote``, files of the corpus that are missing
            below ``root`` are fetched, but no shards.
        dept: options of ``algorithms.dept``; ``None`` for a run without DEPT.

    Raises:
        ConfigError: the corpus lacks a source that is named.
        DataError: the corpus is missing, half-written or cannot be fetched.
    """
    if loader.remote is not None:
        fetch_corpus(
            loader.remote,
            loader.root,
            loader.corpus,
            loader.sources,
            own_tokenizers=dept is not None and dept.sharing.vocabulary is Vocabulary.OWN,
            held_out=evaluates_held_out(dept),
        )
    corpus = read_corpus(loader.root, loader.corpus)
    names = corpus.sources if loader.sources is None else tuple(loader.sources)
    for name in names:
        if name not in corpus.sources + corpus.held_out:
            raise ConfigError(
                f"train_loader.sources names {name!r}, which corpus {corpus.name} does not have: "
                f"choose from {', '.join(corpus.sources + corpus.held_out)}"
            )
    return corpus, names


def evaluates_held_out(dept: DeptOptions | None) -> bool:
    """Whether the run has an embedding for text that it does not train on."""
    return dept is None or dept.sharing.has_global_embedding


def _check_shards(sources: Sequence[PreparedSource]) -> None:
    """Check existence and sizes of all shards; of a small corpus also their contents."""
    shards = [(s, source) for source in sources for i in source.indexes.values() for s in i.shards]
    reads = sum(shard.bytes for shard, _ in shards) <= READ_AT_START
    for shard, source in shards:
        found = fault(shard, source.vocab_size) if reads else size_fault(shard)
        if found is not None:
            raise DataError(f"{found}: {remake(shard)}")


def _check_cache_limit(loader: CorpusOptions, prepared: Sequence[PreparedSource]) -> None:
    limit = loader.cache_bytes
    of_each = [block_bytes(source.train, loader.block_shards) for source in prepared]
    needed = sum(of_each) if isinstance(loader, MixtureOptions) else max(of_each)
    if limit is not None and limit < needed:
        raise too_small(limit, needed)


def _check_tokenizer(config: Mapping[str, Any], corpus: PreparedCorpus) -> None:
    name = str((config.get("tokenizer") or {}).get("name"))
    if not Path(name).is_dir():
        raise DataError(
            f"tokenizer.name is {shown(name)}, which is no folder here: set it to "
            f"{corpus.tokenizers[GLOBAL].path}, with which the shards were written"
        )
    if tokenizer_hash(name) != corpus.tokenizers[GLOBAL].hash:
        raise DataError(
            f"the shards of corpus {corpus.name} were written with another tokenizer than {name}: "
            f"set tokenizer.name to {corpus.tokenizers[GLOBAL].path}, or prepare the corpus again"
        )


def _check_vocabulary_size(config: Mapping[str, Any], corpus: PreparedCorpus) -> None:
    model = config.get("model") or {}
    rows = (model.get("config_overrides") or {}).get("vocab_size", model.get("vocab_size"))
    needed = corpus.tokenizers[GLOBAL].vocab_size
    if rows is not None and rows < needed:
        raise ConfigError(
            f"model.vocab_size is {rows}, but ids of corpus {corpus.name} go up to {needed - 1}: "
            f"set it to {needed} or more"
        )


def _check_validation(key: str, section: Mapping[str, Any]) -> None:
    options = {name: value for name, value in section.items() if name not in ("name", "label")}
    chosen = parse(ValidationOptions, key, options)
    read_corpus(chosen.root, chosen.corpus).source(chosen.source, chosen.written_with)
