"""A yaml of this repository: whether it can run, and what DEPT adds to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dept import icl, workers
from dept.corpus import (
    GLOBAL,
    DataError,
    PreparedCorpus,
    PreparedSource,
    read_corpus,
)
from dept.options import (
    ConfigError,
    CorpusOptions,
    DeptOptions,
    SourcesOptions,
    StartFromOptions,
    options_of,
    parse,
)
from dept.outer_optimizer import OuterOptimizer
from dept.place import Place
from dept.remote import fetch_corpus
from dept.run_folder import checkpoint_name, checkpoints_of, find_checkpoint, remote_of
from dept.schedule import RoundSchedule
from dept.shard_cache import block_bytes, too_small
from dept.shard_files import fault, remake, size_fault
from dept.tokenizer_files import tokenizer_hash
from dept.variants import Vocabulary

READ_AT_START = 1 << 30
"""Bytes of shards up to which a corpus is read whole before training, in about a second; of a
larger one each shard is looked at before its first sample (``make check-data`` reads all)."""


def check(config: Mapping[str, Any]) -> list[str]:
    """Refuse what cannot run, before the libraries that take half a minute to import.

    Args:
        config: a resolved yaml, as plain containers.

    Returns:
        What can run and is still worth saying, in sentences.

    Raises:
        ConfigError: a key or value is wrong.
        DataError: the corpus is missing, half-written or of another tokenizer.
    """
    dept, loader = options_of(config)
    tasks = icl.tasks_of(config)
    icl.check_files(tasks)
    start_from = (config.get("callbacks") or {}).get("start_from")
    if start_from is not None:
        start_from = parse(StartFromOptions, "callbacks.start_from", start_from)
        find_checkpoint(start_from.checkpoint)
        _check_start_from(start_from, dept, loader)
    if loader is None:
        return []
    corpus, names = _corpus_and_sources(loader, dept)
    own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
    if dept is not None:
        icl.check_embedding(tasks, dept, names)
    prepared = [corpus.source(name, name if own else GLOBAL) for name in names]
    for source in prepared:
        source.counts()
    if loader.remote is None:
        held_out = corpus.held_out if _evaluates_held_out(dept) else ()
        _check_shards([*prepared, *map(corpus.source, held_out)])
    _check_tokenizer(config, corpus)
    length = config.get("max_seq_len")
    if length != corpus.sequence_length:
        raise ConfigError(
            f"max_seq_len is {length}, but the samples of corpus {corpus.name} are "
            f"{corpus.sequence_length} tokens long: set it to {corpus.sequence_length}"
        )
    if not own:
        _check_vocabulary_size(config, corpus)
    batch = config.get("global_train_batch_size", 1)
    if isinstance(loader, SourcesOptions):
        _check_cache_limit(loader, prepared)
    for source in prepared:
        if source.splits["val"].samples < 1 or source.splits["train"].samples < 1:
            raise DataError(f"source {source.name} has an empty split: give it more text")
    if dept is None:
        return []
    place = Place.of(os.environ, dept.ranks_per_worker)
    RoundSchedule(
        sources=tuple(names),
        sources_per_round=dept.sources_per_round or len(names),
        local_steps=dept.local_steps,
        seed=int(config.get("seed", 17)),
        workers=place.workers,
    )
    OuterOptimizer(**dept.outer_optimizer)
    duration = str(config.get("max_duration"))
    if not (duration.endswith("ep") and duration[:-2].isdigit() and int(duration[:-2]) > 0):
        raise ConfigError(
            f"max_duration is {duration!r}: give DEPT a whole number of rounds, such as 10ep"
        )
    if not isinstance(batch, int) or batch < 1 or batch % dept.ranks_per_worker:
        raise ConfigError(
            f"global_train_batch_size, the batch of one worker, is {batch!r}: set it to a multiple "
            f"of ranks_per_worker = {dept.ranks_per_worker}"
        )
    if config.get("fsdp_config") or config.get("parallelism_config"):
        raise ConfigError(
            "fsdp_config is set, but FSDP flattens parameters into shards of fixed size, and DEPT "
            "exchanges embeddings of other sizes in the same model: remove it, the ranks of a "
            "worker average gradients by DDP"
        )
    if config.get("spin_dataloaders"):
        raise ConfigError("spin_dataloaders: true skips batches on resume: set it to false")
    return [
        f"source {source.name} has {source.splits['train'].samples} samples, fewer than a batch of "
        f"{batch}, which holds some of them more than once"
        for source in prepared
        if source.splits["train"].samples < batch
    ]


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """What DEPT adds to an llm-foundry config; registered as a config transform.

    * schedulers run on sequential steps (``dept/learning_rate.py``);
    * a model of transformers runs no code of its repository, unless the yaml says so;
    * a model without a vocabulary size gets that of the global tokenizer;
    * an evaluator for every source, and for held-out ones where there is a global embedding;
    * a loader resumes by itself, and what belongs to a source is DEPT's to save;
    * checkpoints are written whole, and before an end by SIGTERM (``callbacks/checkpoints.py``);
    * in-context-learning tasks are read in the tokens of the embedding that there is;
    * workers beside the first write nothing but the files of their sources.
    """
    dept, loader = options_of(config)
    model = config.get("model")
    if isinstance(model, dict) and str(model.get("name")).startswith("hf_"):
        model.setdefault("trust_remote_code", False)  # llm-foundry's default is true
    if loader is None:
        return config
    remote = remote_of(config)
    if remote is not None:
        config["save_folder"] = str(checkpoints_of(config))
    corpus, names = _corpus_and_sources(loader, dept)
    own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
    model = config["model"]
    sizes = model.setdefault("config_overrides", {}) if model["name"].startswith("hf_") else model
    sizes.setdefault("vocab_size", corpus.tokenizers[GLOBAL].vocab_size)
    if not config.get("eval_loader") and not config.get("eval_loaders"):
        held_out = [n for n in corpus.held_out if n not in names and _evaluates_held_out(dept)]
        config["eval_loaders"] = [  # what llm-foundry calls a list of eval_loader
            {
                "name": "validation",
                "label": name,
                "corpus": corpus.name,
                "root": loader.root,
                "remote": loader.remote,
                "source": name,
                "written_with": name if own else GLOBAL,
                "held_out": name not in names,
            }
            for name in (*names, *held_out)
        ]
    if dept is None:
        _add_checkpoints(config, remote)
        return config
    if tasks := icl.tasks_of(config):
        config["icl_tasks"] = icl.in_own_tokens(tasks, dept, corpus)
        config.pop("icl_tasks_str", None)
    config["spin_dataloaders"] = False
    config["train_loader"]["own_tokenizers"] = own
    config["scheduler"] = {
        "name": "sequential_steps",
        "scheduler": config["scheduler"],
        "local_steps": dept.local_steps,
    }
    config["save_ignore_keys"] = [*(config.get("save_ignore_keys") or []), "state/optimizers"]
    if config.get("save_folder") and config.get("save_interval", "1ep"):
        config.setdefault("save_filename", checkpoint_name(workers.current().count))
        _add_source_checkpoints(config, remote if dept.upload_sources else None)
    _add_checkpoints(config, remote)
    return config if workers.current().place.worker == 0 else _quiet(config)


def _add_source_checkpoints(config: dict[str, Any], remote: str | None) -> None:
    """Files of sources beside the checkpoints, and where those are sent."""
    config["callbacks"] = {
        **(config.get("callbacks") or {}),
        "source_checkpoints": {
            "checkpoints": config["save_folder"],
            "save_interval": config.get("save_interval", "1ep"),
            "save_num_checkpoints_to_keep": config.get("save_num_checkpoints_to_keep", -1),
            "remote": remote,
        },
    }


def _add_checkpoints(config: dict[str, Any], remote: str | None) -> None:
    """Our saver of checkpoints instead of Composer's own; what ends the run comes after it."""
    if not config.get("save_folder") or not config.get("save_interval", "1ep"):
        return
    names = {
        "save_folder": "folder",
        "save_filename": "filename",
        "save_latest_filename": "latest_filename",
        "save_interval": "save_interval",
        "save_num_checkpoints_to_keep": "num_checkpoints_to_keep",
        "save_overwrite": "overwrite",
        "save_weights_only": "weights_only",
        "save_ignore_keys": "ignore_keys",
    }
    options = {option: config[key] for key, option in names.items() if config.get(key) is not None}
    config["callbacks"] = {
        **(config.get("callbacks") or {}),
        "checkpoints": options | ({"remote": remote} if remote else {}),
        "stop_on_sigterm": {},
    }


# Callbacks that write files or speak to the terminal, for the whole job.
_FOR_ALL = ("progress", "run_files", "checkpoints", "hf_checkpointer")


def _quiet(config: dict[str, Any]) -> dict[str, Any]:
    """What a worker other than the first runs: that one speaks, logs, saves and loads for all."""
    callbacks = {k: v for k, v in (config.get("callbacks") or {}).items() if k not in _FOR_ALL}
    quiet = {"loggers": {}, "save_folder": None, "load_path": None, "autoresume": False}
    return config | quiet | {"callbacks": callbacks}


def _check_start_from(
    start_from: StartFromOptions, dept: DeptOptions | None, loader: CorpusOptions | None
) -> None:
    if loader is None:
        raise ConfigError(
            "callbacks.start_from goes on with sources of a prepared corpus: set train_loader.name "
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


def _evaluates_held_out(dept: DeptOptions | None) -> bool:
    return dept is None or dept.sharing.has_global_embedding


def _corpus_and_sources(
    loader: CorpusOptions, dept: DeptOptions | None
) -> tuple[PreparedCorpus, tuple[str, ...]]:
    if loader.remote is not None:
        fetch_corpus(
            loader.remote,
            loader.root,
            loader.corpus,
            loader.sources,
            own_tokenizers=dept is not None and dept.sharing.vocabulary is Vocabulary.OWN,
            held_out=_evaluates_held_out(dept),
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
    """Existence and sizes of all shards; what is in them too, where that takes no time."""
    shards = [(s, source) for source in sources for i in source.indexes.values() for s in i.shards]
    reads = sum(shard.bytes for shard, _ in shards) <= READ_AT_START
    for shard, source in shards:
        found = fault(shard, source.vocab_size) if reads else size_fault(shard)
        if found is not None:
            raise DataError(f"{found}: {remake(shard)}")


def _check_cache_limit(loader: SourcesOptions, prepared: Sequence[PreparedSource]) -> None:
    limit = loader.cache_bytes
    needed = max(block_bytes(source.train, loader.block_shards) for source in prepared)
    if limit is not None and limit < needed:
        raise too_small(limit, needed)


def _check_tokenizer(config: Mapping[str, Any], corpus: PreparedCorpus) -> None:
    name = str((config.get("tokenizer") or {}).get("name"))
    if Path(name).is_dir() and tokenizer_hash(name) != corpus.tokenizers[GLOBAL].hash:
        raise DataError(
            f"the shards of corpus {corpus.name} were written with another tokenizer than {name}: "
            f"set tokenizer.name to {corpus.tokenizers[GLOBAL].path}, or prepare the corpus anew"
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
