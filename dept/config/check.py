"""Checks whether a yaml of this repository can run, before the slow imports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from dept.checkpoint.run_folder import find_checkpoint
from dept.config import icl, registries, yaml_keys
from dept.config.federation_options import check_silo
from dept.config.options import (
    CorpusOptions,
    DeptOptions,
    MixtureOptions,
    StartFromOptions,
    ValidationOptions,
    options_of,
    parse,
)
from dept.data.corpus import GLOBAL, PreparedCorpus, PreparedSource, read_corpus
from dept.data.fetch import fetch_corpus
from dept.data.shard_cache import block_bytes, too_small
from dept.data.shard_files import fault, remake, size_fault
from dept.data.tokenizer_files import tokenizer_hash
from dept.errors import ConfigError, DataError, shown
from dept.method.compression import Compression
from dept.method.outer_optimizer import OUTER_OPTIMIZERS, OuterOptimizer
from dept.method.presets import PRESETS
from dept.method.sampling import UNIFORM
from dept.method.schedule import RoundSchedule
from dept.method.variants import Vocabulary
from dept.transport.topology import Place

READ_AT_START = 1 << 30
"""Up to this many bytes of shards, a corpus is read completely before training, in about a second.
In a larger one, each shard is checked before its first sample (``make check-data`` reads all)."""


SHARED_FOLDER = (
    "set save_folder to a folder that all machines share, or algorithms.dept.sampling to stratified"
)


def check(config: Mapping[str, Any], *, any_name: bool = False) -> list[str]:
    """Refuse a yaml that cannot run, before libraries that take half a minute to import.

    Args:
        config: a resolved yaml, as plain containers.
        any_name: whether unknown names are accepted, since a program may have registered them.

    Returns:
        Notes on a yaml that can run, one sentence each.

    Raises:
        ConfigError: a key or value is wrong.
        DataError: the corpus is missing, half-written or of another tokenizer.
    """
    try:
        return _check(config, any_name)
    except OSError as error:  # a name too long for a file, a folder that may not be read
        raise ConfigError(
            f"{shown(error.filename)} cannot be read ({error.strerror}): name another path"
        ) from None


def _check(config: Mapping[str, Any], any_name: bool) -> list[str]:
    dept, loader = options_of(config)
    yaml_keys.check(config, whole=loader is not None, any_name=any_name)
    for path in config.get("code_paths") or ():
        if not Path(path).is_file():
            raise ConfigError(f"code_paths names {path}, which does not exist: name a file")
    tasks = icl.tasks_of(config)
    icl.check_files(tasks)
    start_from = (config.get("callbacks") or {}).get("start_from")
    if start_from is not None:
        start_from = parse(StartFromOptions, "callbacks.start_from", start_from)
        find_checkpoint(start_from.checkpoint)
        _check_start_from(start_from, dept, loader)
    if loader is None:
        return []
    _check_parts(config, dept, loader)
    corpus, names = corpus_and_sources(loader, dept)
    own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
    if dept is not None:
        icl.check_embedding(tasks, dept, names)
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
    if dept is None:
        return []
    schedule = _check_dept(config, dept, names)
    batch = config["global_train_batch_size"]
    return note_on_chances(schedule) + [
        f"source {source.name} has {source.splits['train'].samples} samples, fewer than a batch of "
        f"{batch}, which holds some of them more than once"
        for source in prepared
        if source.splits["train"].samples < batch
    ]


def _check_parts(
    config: Mapping[str, Any], dept: DeptOptions | None, loader: CorpusOptions
) -> None:
    """Check values that each have the right type, but may not fit together."""
    _check_model(config["model"], config["max_seq_len"])
    callbacks = config.get("callbacks") or {}
    for name in ("run_files", "best_checkpoint"):
        if name in callbacks and "source_metrics" not in callbacks:
            raise ConfigError(f"callbacks.{name} needs source_metrics beside it: add that")
    for name in ("active_forgetting", "best_checkpoint"):
        if name in callbacks and dept is not None:
            raise ConfigError(f"callbacks.{name} is for baselines: remove it, or algorithms.dept")
    if config.get("eval_loader") and config.get("eval_loaders"):
        raise ConfigError("eval_loader and eval_loaders say the same: remove one of them")
    batch, processes = config["global_train_batch_size"], int(os.environ.get("WORLD_SIZE", 1))
    if dept is None and batch % processes:
        raise ConfigError(
            f"global_train_batch_size is {batch}: set it to a multiple of the {processes} processes"
        )


def _check_model(model: Mapping[str, Any], length: int) -> None:
    if model["name"] != "mpt_causal_lm":
        return
    width, heads = model.get("d_model", 2048), model.get("n_heads", 16)
    if width % heads:
        raise ConfigError(
            f"model.d_model is {width}, which model.n_heads = {heads} do not divide: set it to "
            f"{width // heads * heads or heads}"
        )
    positions = model.get("max_seq_len", 2048)
    if positions < length:
        raise ConfigError(
            f"model.max_seq_len is {positions}, and samples have {length} tokens: set it to "
            f"{length} or more"
        )


def schedule_of(
    config: Mapping[str, Any], dept: DeptOptions, names: Sequence[str], workers: int
) -> RoundSchedule:
    """The schedule of a resolved yaml.

    Args:
        config: the resolved yaml, for its ``seed``.
        dept: options of ``algorithms.dept``.
        names: names of the sources to train, in the order of the corpus.
        workers: number of workers of the job.

    Raises:
        ValueError: no schedule fits these numbers of sources and workers.
    """
    drawn = None if dept.federation is not None else dept.sources_per_round  # the server draws
    return RoundSchedule(
        sources=tuple(names),
        sources_per_round=drawn or len(names),
        local_steps=dept.local_steps,
        seed=config.get("seed", 17),
        workers=workers,
        sampling=dept.sampling,
    )


def note_on_chances(schedule: RoundSchedule) -> list[str]:
    """A note if some sources are drawn more often than others; otherwise an empty list."""
    sources_of: dict[Fraction, list[str]] = {}
    for source, chance in schedule.chances.items():
        sources_of.setdefault(chance, []).append(source)
    if len(sources_of) == 1:
        return []
    chances = [f"{chance} for {', '.join(names)}" for chance, names in sources_of.items()]
    return [
        f"algorithms.dept.sampling is stratified, and {schedule.workers} workers cannot have equal "
        f"groups of sources: the chance of a source to be in a round is {'; '.join(chances)}"
    ]


def _check_dept(
    config: Mapping[str, Any], dept: DeptOptions, names: Sequence[str]
) -> RoundSchedule:
    place = Place.of(os.environ, dept.ranks_per_worker)
    if dept.federated is not None:
        check_silo(config, dept.federated, names, place.workers, is_open=dept.allow_source_changes)
        dept.federated.noise()
    schedule = schedule_of(config, dept, names, place.workers)
    if schedule.moves and not config.get("save_folder"):
        raise nowhere(place.workers)
    _check_outer_optimizer(dept.outer_optimizer, by_row=dept.sharing.averages_by_row)
    Compression.of(dept.compression)
    everyone = schedule.sources if dept.federated is None else dept.federated.sources
    dept.aggregation().rule.check(dept.sources_per_round or len(everyone))
    duration = config["max_duration"]
    if not _rounds(duration):
        raise ConfigError(
            f"max_duration is {duration!r}: give DEPT a whole number of rounds, such as 10ep"
        )
    batch = config["global_train_batch_size"]
    if batch % dept.ranks_per_worker:
        raise ConfigError(
            f"global_train_batch_size, the batch of one worker, is {batch!r}: set it to a multiple "
            f"of ranks_per_worker = {dept.ranks_per_worker}"
        )
    if config.get("tp_config"):
        raise ConfigError(
            "tp_config is set, and tensor parallelism cannot replace embeddings by others of "
            "another size: remove it, fsdp_config shards the model over the ranks of a worker"
        )
    if (config.get("fsdp_config") or {}).get("state_dict_type", "full") != "full":
        raise ConfigError(
            "fsdp_config.state_dict_type is not full, and DEPT saves whole parameters: remove it"
        )
    if config.get("spin_dataloaders"):
        raise ConfigError("spin_dataloaders: true skips batches on resume: set it to false")
    if config.get("train_subset_num_batches", -1) != -1:
        raise ConfigError(
            "train_subset_num_batches would cut rounds short: remove it, and set "
            "algorithms.dept.local_steps"
        )
    return schedule


def _rounds(duration: Any) -> bool:
    text = str(duration)
    return text.endswith("ep") and text[:-2].isdigit() and int(text[:-2]) > 0


def _check_validation(key: str, section: Mapping[str, Any]) -> None:
    options = {name: value for name, value in section.items() if name not in ("name", "label")}
    chosen = parse(ValidationOptions, key, options)
    read_corpus(chosen.root, chosen.corpus).source(chosen.source, chosen.written_with)


def _check_outer_optimizer(options: Mapping[str, Any], *, by_row: bool) -> None:
    """Test a step of the outer optimizer, if its class is known without llm-foundry."""
    if "classes" in options:
        raise ConfigError("algorithms.dept.outer_optimizer has no option classes: remove it")
    if options["name"] not in (*PRESETS, *OUTER_OPTIMIZERS):
        return
    optimizer = OuterOptimizer(**options)
    optimizer.check_step()
    if by_row:
        optimizer.check_by_row()


def _check_start_from(
    start_from: StartFromOptions, dept: DeptOptions | None, loader: CorpusOptions | None
) -> None:
    if loader is None:
        raise ConfigError(
            "callbacks.start_from trains sources of a prepared corpus: set train_loader.name "
            "to mixture, or to sources with algorithms.dept"
        )
    if dept is None:
        return
    if dept.sharing.has_global_embedding:
        raise ConfigError(
            f"callbacks.start_from adds sources with embeddings of their own, and "
            f"algorithms.dept.variant is {dept.variant}: set it to spec or spec_opt"
        )
    if start_from.embedding == "pretrained":
        raise ConfigError(
            "callbacks.start_from.embedding is pretrained, and a new source has none: set it to "
            "random or merged"
        )


def evaluates_held_out(dept: DeptOptions | None) -> bool:
    """Whether the run has an embedding for text that it does not train on."""
    return dept is None or dept.sharing.has_global_embedding


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


def nowhere(workers: int) -> ConfigError:
    """The error about a run whose sources move between workers, but which saves no files."""
    return ConfigError(
        f"algorithms.dept.sampling is {UNIFORM}, so any of the {workers} workers may train any "
        f"source, whose state it reads from checkpoints/sources of the run, and this run saves "
        f"nothing: {SHARED_FOLDER}"
    )
